use super::*;
use crate::limits::Limits;
use crate::membership::{ConfChangeContext, Member};
use crate::testing::req::*;
use crate::testing::{LocalNode, TERM, block_on, identity};
use quorate_proto::raftpb;
use quorate_proto::raftpb::ConfChangeType;

fn api() -> Api<LocalNode> {
    crate::testing::api(Limits::default())
}

fn ctx() -> RequestCtx {
    RequestCtx::default()
}

/// Runs a handler on a request.
macro_rules! call {
    ($api:expr, $handler:ident, $request:expr) => {
        block_on($api.$handler(&ctx(), $request))
    };
}

fn put(api: &Api<LocalNode>, key: &str, value: &str) {
    call!(api, put, put_of(key, value)).expect("puts");
}

fn compact(api: &Api<LocalNode>, revision: i64) {
    let r = pb::CompactionRequest {
        revision,
        physical: true,
    };
    call!(api, compact, r).expect("compacts");
}

fn alarm(
    api: &Api<LocalNode>,
    action: AlarmAction,
    member_id: u64,
    alarm: AlarmType,
) -> Vec<(u64, i32)> {
    let r = pb::AlarmRequest {
        action: action as i32,
        member_id,
        alarm: alarm as i32,
    };
    let r = call!(api, alarm, r).expect("is answered");
    assert_eq!(
        r.header.expect("has a header").member_id,
        identity().member_id
    );
    r.alarms.iter().map(|a| (a.member_id, a.alarm)).collect()
}

fn add_member(api: &Api<LocalNode>, id: u64, kind: ConfChangeType) {
    let member = Member {
        id,
        peer_urls: vec![format!("http://m{id}:2380")],
        is_learner: kind == ConfChangeType::ConfChangeAddLearnerNode,
        ..Member::default()
    };
    let context = ConfChangeContext {
        member,
        is_promote: false,
    };
    let change = raftpb::ConfChange {
        id: Some(1),
        r#type: Some(kind as i32),
        node_id: Some(id),
        context: Some(serde_json::to_vec(&context).unwrap().into()),
    };
    assert!(api.node.apply_conf_change(change).accepted);
}

#[test]
fn rule_7_1_status() {
    let api = api();
    put(&api, "k", "v");
    let r = call!(api, status, pb::StatusRequest {}).unwrap();
    assert_eq!(r.version, "3.6.14");
    assert_eq!(r.storage_version, "3.6.0");
    assert_eq!(r.leader, identity().member_id);
    assert_eq!(
        (r.raft_term, r.raft_index, r.raft_applied_index),
        (TERM, 1, 1)
    );
    assert_eq!(r.db_size_quota, 2_147_483_648);
    assert_eq!(r.errors, Vec::<String>::new());
    assert_eq!(r.downgrade_info, Some(pb::DowngradeInfo::default()));
    assert_eq!(r.header.unwrap().revision, 2);
    assert!(r.db_size >= r.db_size_in_use);
}

#[test]
fn rule_7_1_status_tells_what_is_wrong_and_needs_no_leader() {
    let api = api();
    alarm(
        &api,
        AlarmAction::Activate,
        10276657743932975437,
        AlarmType::Nospace,
    );
    alarm(&api, AlarmAction::Activate, 7, AlarmType::Corrupt);
    api.node.set_status(|s| s.leader = 0);
    let r = call!(api, status, pb::StatusRequest {}).unwrap();
    assert_eq!(
        r.errors,
        [
            "etcdserver: no leader",
            "memberID:10276657743932975437 alarm:NOSPACE ",
            "memberID:7 alarm:CORRUPT ",
        ]
    );
    api.node.set_status(|s| s.is_learner = true);
    let r = call!(api, status, pb::StatusRequest {}).unwrap();
    assert!(r.is_learner);
}

#[test]
fn rule_7_2_alarm_get_reads_and_makes_no_entry() {
    let api = api();
    let (nospace, corrupt) = (AlarmType::Nospace as i32, AlarmType::Corrupt as i32);
    use AlarmAction::{Activate, Deactivate, Get};
    assert_eq!(alarm(&api, Activate, 5, AlarmType::Nospace), [(5, nospace)]);
    assert_eq!(alarm(&api, Activate, 6, AlarmType::Corrupt), [(6, corrupt)]);
    let applied = api.node.status().applied;
    assert_eq!(
        alarm(&api, Get, 0, AlarmType::None),
        [(5, nospace), (6, corrupt)]
    );
    assert_eq!(
        alarm(&api, Get, 6, AlarmType::None),
        [(5, nospace), (6, corrupt)],
        "the member does not matter"
    );
    assert_eq!(alarm(&api, Get, 0, AlarmType::Nospace), [(5, nospace)]);
    assert_eq!(api.node.status().applied, applied);
    assert_eq!(alarm(&api, Deactivate, 5, AlarmType::Corrupt), []);
    assert_eq!(
        alarm(&api, Deactivate, 5, AlarmType::Nospace),
        [(5, nospace)]
    );
    assert_eq!(alarm(&api, Get, 0, AlarmType::None), [(6, corrupt)]);
}

#[test]
fn rule_1_5_defragment_and_move_leader_have_no_header() {
    let api = api();
    let r = call!(api, defragment, pb::DefragmentRequest {}).unwrap();
    assert_eq!(r.header, None);
}

#[test]
fn rule_7_9_move_leader() {
    let api = api();
    let me = identity().member_id;
    add_member(&api, me, ConfChangeType::ConfChangeAddNode);
    add_member(&api, 5, ConfChangeType::ConfChangeAddLearnerNode);
    let to =
        |target_id| call!(api, move_leader, pb::MoveLeaderRequest { target_id }).map(|r| r.header);
    assert_eq!(to(me), Ok(None));
    for target in [0, 99, 5] {
        assert_eq!(to(target), Err(errors::BAD_LEADER_TRANSFEREE));
    }
    api.node.set_status(|s| s.is_leader = false);
    assert_eq!(to(me), Err(errors::NOT_LEADER));
}

fn hash_kv(api: &Api<LocalNode>, revision: i64) -> Result<(u32, i64, i64), Status> {
    call!(api, hash_kv, pb::HashKvRequest { revision })
        .map(|r| (r.hash, r.compact_revision, r.hash_revision))
}

#[test]
fn rule_7_5_hash_kv_of_revisions() {
    let api = api();
    for value in ["1", "2", "3"] {
        put(&api, "k", value);
    }
    let now = hash_kv(&api, 0).unwrap();
    assert_eq!((now.1, now.2), (-1, 4));
    assert_eq!(hash_kv(&api, 4).unwrap(), now);
    assert_ne!(hash_kv(&api, 3).unwrap().0, now.0);
    assert_eq!(hash_kv(&api, 5), Err(errors::FUTURE_REV));
    // The checksum of nothing but the bucket's name, as 3.6.14 answers it.
    assert_eq!(hash_kv(&api, -3), Ok((1_084_519_789, -1, -3)));
    let r = call!(api, hash_kv, pb::HashKvRequest { revision: 2 }).unwrap();
    assert_eq!(r.header.unwrap().revision, 4, "current, not asked for");
}

#[test]
fn rule_7_5_a_compacted_revision_answers_from_before_its_compaction() {
    let api = api();
    for value in ["1", "2", "3", "4", "5"] {
        put(&api, "k", value);
    }
    let before_first = hash_kv(&api, 3).unwrap();
    compact(&api, 3);
    assert_eq!(hash_kv(&api, 3).unwrap(), before_first);
    assert_eq!(before_first.1, -1, "the compact revision of that time");
    assert_eq!(hash_kv(&api, 2), Err(errors::COMPACTED));
    let at_five = hash_kv(&api, 5).unwrap();
    assert_eq!(at_five.1, 3);
    compact(&api, 5);
    assert_eq!(hash_kv(&api, 5).unwrap(), at_five);
    assert_eq!(hash_kv(&api, 3).unwrap(), before_first, "still kept");
    assert_eq!(hash_kv(&api, 6).unwrap().1, 5);
}

#[test]
fn rule_7_5_a_refused_compaction_remembers_nothing() {
    let api = api();
    for value in ["1", "2", "3"] {
        put(&api, "k", value);
    }
    alarm(&api, AlarmAction::Activate, 1, AlarmType::Corrupt);
    let r = pb::CompactionRequest {
        revision: 3,
        physical: false,
    };
    assert_eq!(call!(api, compact, r), Err(errors::CORRUPT));
    assert_eq!(block_on(api.hashes.at(3)), None);
}

#[test]
fn rule_7_6_hash_follows_the_applied_history() {
    let (a, b) = (api(), api());
    let hash = |api: &Api<LocalNode>| call!(api, hash, pb::HashRequest {}).unwrap().hash;
    assert_eq!(hash(&a), hash(&b));
    put(&a, "k", "1");
    assert_ne!(hash(&a), hash(&b));
    put(&b, "k", "1");
    assert_eq!(hash(&a), hash(&b));
}

#[test]
fn rule_6_2_member_list_is_sorted_and_names_no_revision() {
    let api = api();
    add_member(&api, 9, ConfChangeType::ConfChangeAddNode);
    add_member(&api, 3, ConfChangeType::ConfChangeAddLearnerNode);
    let list =
        |linearizable| call!(api, member_list, pb::MemberListRequest { linearizable }).unwrap();
    let reads = || api.node.reads.load(std::sync::atomic::Ordering::Relaxed);
    let r = list(false);
    assert_eq!(reads(), 0);
    assert_eq!(r.members.iter().map(|m| m.id).collect::<Vec<_>>(), [3, 9]);
    assert!(r.members[0].is_learner && r.members[0].name.is_empty());
    let header = r.header.unwrap();
    assert_eq!((header.revision, header.raft_term), (0, TERM));
    assert_eq!(list(true).members.len(), 2);
    assert_eq!(reads(), 1);
}

#[test]
fn rule_6_3_to_6_7_what_cannot_be_done_to_the_only_member() {
    let api = api();
    let me = identity().member_id;
    add_member(&api, me, ConfChangeType::ConfChangeAddNode);
    let add = |urls: &[&str]| {
        let r = pb::MemberAddRequest {
            peer_ur_ls: urls.iter().map(|u| u.to_string()).collect(),
            is_learner: false,
        };
        call!(api, member_add, r).unwrap_err()
    };
    for bad in [
        &[] as &[&str],
        &[""],
        &["a:1"],
        &["ftp://a:1"],
        &["http://a"],
        &["http://a:1", "x"],
    ] {
        assert_eq!(add(bad), errors::MEMBER_BAD_URLS, "{bad:?}");
    }
    let own = format!("http://m{me}:2380");
    assert_eq!(add(&[&own]), errors::PEER_URL_EXIST);
    assert_eq!(add(&["http://new:2380"]).code, Code::Unimplemented);
    let remove = |id| call!(api, member_remove, pb::MemberRemoveRequest { id }).unwrap_err();
    assert_eq!(remove(7), errors::MEMBER_NOT_FOUND);
    assert_eq!(remove(me), errors::MEMBER_NOT_ENOUGH_STARTED);
    let promote = |id| call!(api, member_promote, pb::MemberPromoteRequest { id }).unwrap_err();
    assert_eq!(promote(7), errors::MEMBER_NOT_FOUND);
    assert_eq!(promote(me), errors::MEMBER_NOT_LEARNER);
    let update = |id, urls: &[&str]| {
        let peer_ur_ls = urls.iter().map(|u| u.to_string()).collect();
        call!(
            api,
            member_update,
            pb::MemberUpdateRequest { id, peer_ur_ls }
        )
        .unwrap_err()
    };
    assert_eq!(update(me, &[]), errors::MEMBER_BAD_URLS);
    assert_eq!(update(7, &["http://a:1"]), errors::MEMBER_NOT_FOUND);
    assert_eq!(update(me, &["http://a:1"]).code, Code::Unimplemented);
}

#[test]
fn rule_8_1_auth_is_off() {
    let api = api();
    let r = call!(api, auth_status, pb::AuthStatusRequest {}).unwrap();
    assert_eq!((r.enabled, r.auth_revision), (false, 1));
    assert_eq!(
        call!(api, authenticate, pb::AuthenticateRequest::default()),
        Err(errors::AUTH_NOT_ENABLED)
    );
}

#[test]
fn rule_6_9_a_learner_refuses_what_needs_a_voter() {
    let api = api();
    api.node.set_status(|s| s.is_learner = true);
    let refused = errors::NOT_SUPPORTED_FOR_LEARNER;
    assert_eq!(call!(api, hash, pb::HashRequest {}), Err(refused.clone()));
    assert_eq!(hash_kv(&api, 0), Err(refused.clone()));
    let list = call!(api, member_list, pb::MemberListRequest::default());
    assert_eq!(list, Err(refused));
}
