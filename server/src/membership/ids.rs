//! Member and cluster ids: the first eight bytes of a SHA-1, big-endian.

use sha1::{Digest, Sha1};

fn leading_u64(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(head)
}

/// The id of a member with these peer URLs. Bootstrap members hash the cluster token; members added
/// at run time pass an empty token and the time of the request in unix seconds instead.
pub fn member_id(peer_urls: &[String], token: &str, added_unix_s: Option<u64>) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    if let Some(seconds) = added_unix_s {
        hash.update(seconds.to_string().as_bytes());
    }
    leading_u64(hash)
}

/// The id of a cluster that started with these members, in any order.
pub fn cluster_id(initial_member_ids: &[u64]) -> u64 {
    let mut ids = initial_member_ids.to_vec();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    leading_u64(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_6_1_default_single_member_has_the_well_known_ids() {
        let id = member_id(&["http://localhost:2380".into()], "etcd-cluster", None);
        assert_eq!(id, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(&[id]), 0xcdf8_1819_4e3a_8c32);
    }

    #[test]
    fn rule_6_1_order_of_urls_and_members_does_not_matter() {
        let (a, b) = ("http://a:1".to_string(), "http://b:1".to_string());
        assert_eq!(
            member_id(&[a.clone(), b.clone()], "t", None),
            member_id(&[b, a], "t", None)
        );
        assert_eq!(cluster_id(&[3, 1, 2]), cluster_id(&[1, 2, 3]));
    }

    #[test]
    fn rule_6_1_run_time_members_hash_the_time() {
        let urls = ["http://a:1".to_string()];
        assert_ne!(member_id(&urls, "", Some(1)), member_id(&urls, "", Some(2)));
        // The digits follow the token directly.
        assert_eq!(member_id(&urls, "", Some(17)), member_id(&urls, "17", None));
    }
}
