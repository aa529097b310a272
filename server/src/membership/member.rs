//! One member, in etcd's JSON form: the context of a configuration change and the stored record.

use quorate_proto::etcdserverpb as pb;
use serde::{Deserialize, Serialize};

/// A member record. The field order is that of etcd's JSON; empty fields are left out except the
/// peer URLs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Member id; a decimal number beyond 2^53 in JSON.
    pub id: u64,
    /// Where peers reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Receives the log but does not vote.
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// `--name`; empty until the member has started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until the member has started.
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub client_urls: Vec<String>,
}

/// What a configuration change carries: a member, and whether it promotes a learner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfChangeContext {
    /// The member added, promoted or updated.
    #[serde(flatten)]
    pub member: Member,
    /// Set when an existing learner becomes a voter.
    #[serde(rename = "isPromote", default, skip_serializing_if = "is_false")]
    pub is_promote: bool,
}

fn is_false(b: &bool) -> bool {
    !b
}

/// etcd writes `null` for a list that was never set.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(d)?.unwrap_or_default())
}

impl Member {
    /// The stored form. Sorted peer URLs are the caller's concern, as in etcd.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and integers always serialise.
        serde_json::to_vec(self).expect("a member record has no unserialisable part")
    }

    /// Reads the stored form; the error says what is wrong and where.
    pub fn from_json(bytes: &[u8]) -> Result<Member, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Whether the member has announced itself.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }
}

impl From<Member> for pb::Member {
    fn from(m: Member) -> pb::Member {
        pb::Member {
            id: m.id,
            name: m.name,
            peer_ur_ls: m.peer_urls,
            client_ur_ls: m.client_urls,
            is_learner: m.is_learner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_context_is_what_etcd_writes() {
        let member = Member {
            id: 10276657743932975437,
            peer_urls: vec!["http://localhost:2380".into()],
            name: "default".into(),
            ..Member::default()
        };
        assert_eq!(
            String::from_utf8(member.to_json()).unwrap(),
            r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"name":"default"}"#
        );
    }

    #[test]
    fn stored_row_of_a_real_member_reads_and_writes_back_equal() {
        let row = r#"{"id":11999495729959466739,"peerURLs":["http://127.0.0.1:24811"],"name":"m1","clientURLs":["http://127.0.0.1:24810"]}"#;
        let member = Member::from_json(row.as_bytes()).unwrap();
        assert_eq!(member.id, 0xa686_c5ca_540c_f6f3);
        assert_eq!(member.to_json(), row.as_bytes());
    }

    #[test]
    fn promotion_context_has_null_urls_and_the_flag() {
        let text = r#"{"id":7,"peerURLs":null,"isPromote":true}"#;
        let context: ConfChangeContext = serde_json::from_str(text).unwrap();
        assert!(context.is_promote);
        assert!(context.member.peer_urls.is_empty());
    }
}
