//! 6: Cluster, as far as a cluster of one shows it.

use quorate_proto::etcdserverpb as pb;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, alone};
use quorate_tests::table;
use sha1::{Digest, Sha1};

table![
    SERIAL => [r6_2_member_list],
    alone(&["--initial-cluster-token", "other-token"]) => [r6_1_ids_follow_urls_and_token],
    alone(&[]) => [r6_1_ids_are_kept_over_restarts, r6_11_cluster_version],
];

fn first_8_bytes(parts: &[&[u8]]) -> u64 {
    let mut sha = Sha1::new();
    for part in parts {
        sha.update(part);
    }
    let digest = sha.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}

async fn members(c: &Ctx, linearizable: bool) -> pb::MemberListResponse {
    let request = pb::MemberListRequest { linearizable };
    ok(c.cluster.clone().member_list(request).await).into_inner()
}

async fn r6_1_ids_follow_urls_and_token(c: Ctx) {
    let member = first_8_bytes(&[c.peer_url.as_bytes(), b"other-token"]);
    let cluster = first_8_bytes(&[&member.to_be_bytes()]);
    let header = c.status().await.header.expect("a header");
    assert_eq!((header.member_id, header.cluster_id), (member, cluster));
    assert_eq!(members(&c, false).await.members[0].id, member);
}

async fn r6_1_ids_are_kept_over_restarts(mut c: Ctx) {
    let member = first_8_bytes(&[c.peer_url.as_bytes(), b"etcd-cluster"]);
    let before = c.status().await.header.expect("a header");
    assert_eq!(before.member_id, member, "the default token");
    c.crash_and_restart().await;
    let after = c.status().await.header.expect("a header");
    assert_eq!(
        (after.member_id, after.cluster_id),
        (before.member_id, before.cluster_id)
    );
    assert!(after.raft_term > before.raft_term, "a new election");
}

async fn r6_2_member_list(c: Ctx) {
    for linearizable in [false, true] {
        let list = members(&c, linearizable).await;
        let header = list.header.expect("a header");
        assert_eq!(header.revision, 0);
        let [member] = list.members.as_slice() else {
            panic!("one member: {:?}", list.members);
        };
        assert_eq!(member.id, header.member_id);
        assert_eq!(member.name, "m1");
        assert_eq!(member.peer_ur_ls, std::slice::from_ref(&c.peer_url));
        assert_eq!(member.client_ur_ls, std::slice::from_ref(&c.url));
        assert!(!member.is_learner);
    }
}

async fn r6_11_cluster_version(c: Ctx) {
    // Known shortly after the start; the member's own minor.
    let expected = format!("3.{}.0", c.minor);
    loop {
        let version: serde_json::Value =
            serde_json::from_slice(&crate::raw::http_get(&c.url, "/version").await.1)
                .expect("JSON");
        assert_eq!(version["etcdserver"], c.status().await.version);
        if version["etcdcluster"] == expected {
            break;
        }
        assert!(
            ["not_decided", "3.0.0"].contains(&version["etcdcluster"].as_str().expect("text")),
            "{version}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
