use super::*;
use crate::membership::{ConfChangeContext, Member};
use crate::testing::generate::*;
use crate::testing::req::*;
use crate::testing::{TERM, identity, open_applier};
use proptest::prelude::*;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::membershippb;
use quorate_proto::raftpb::ConfChangeType;
use std::path::Path;
use std::sync::Mutex;

/// One entry of a log: a request or a configuration change.
#[derive(Clone, Debug)]
enum Entry {
    Normal(Bytes),
    Conf(Bytes),
}

/// What an entry answered.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Nothing,
    Normal(u64, Result<Reply, Status>),
    Conf(Box<ConfOutcome>),
}

/// An applier fed entry by entry.
struct Member1 {
    engine: engine::Engine,
    applier: Applier,
}

impl Member1 {
    fn open(dir: &Path) -> Member1 {
        Member1::open_with(dir, Arc::new(()))
    }

    fn open_with(dir: &Path, hook: Arc<dyn LeaseHook>) -> Member1 {
        let (engine, applier) = open_applier(dir, Limits::default(), hook);
        Member1 { engine, applier }
    }

    fn feed(&mut self, index: u64, entry: &Entry) -> Answer {
        match entry {
            Entry::Normal(data) => match self.applier.apply(index, TERM, data).expect("applies") {
                None => Answer::Nothing,
                Some((id, result)) => Answer::Normal(id, result),
            },
            Entry::Conf(data) => self
                .applier
                .apply_conf_change(index, TERM, data)
                .expect("applies")
                .map_or(Answer::Nothing, |o| Answer::Conf(Box::new(o))),
        }
    }

    /// Applies and publishes the next entry.
    fn run(&mut self, request: pb::InternalRaftRequest) -> Result<Reply, Status> {
        let index = self.applier.applied().index + 1;
        let answer = self.feed(index, &normal(index, request));
        self.applier.publish(index, TERM).expect("publishes");
        match answer {
            Answer::Normal(id, result) => {
                assert_eq!(id, index);
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn change(&mut self, kind: ConfChangeType, context: &ConfChangeContext) -> ConfOutcome {
        let index = self.applier.applied().index + 1;
        let answer = self.feed(index, &conf(index, kind, context));
        self.applier.publish(index, TERM).expect("publishes");
        match answer {
            Answer::Conf(outcome) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    fn checkpoint(&mut self) {
        if let Some(number) = self.applier.writer().checkpoint().expect("starts") {
            self.engine.wait_durable(number).expect("becomes durable");
        }
    }
}

fn normal(id: u64, mut request: pb::InternalRaftRequest) -> Entry {
    request.header = Some(pb::RequestHeader {
        id,
        ..Default::default()
    });
    Entry::Normal(request.encode_to_vec().into())
}

fn conf(id: u64, kind: ConfChangeType, context: &ConfChangeContext) -> Entry {
    let change = raftpb::ConfChange {
        id: Some(id),
        r#type: Some(kind as i32),
        node_id: Some(context.member.id),
        context: Some(serde_json::to_vec(context).expect("serialises").into()),
    };
    Entry::Conf(change.encode_to_vec().into())
}

fn request() -> pb::InternalRaftRequest {
    pb::InternalRaftRequest::default()
}

fn put_entry(r: pb::PutRequest) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        put: Some(r),
        ..request()
    }
}

fn grant(id: i64, ttl: i64) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        lease_grant: Some(pb::LeaseGrantRequest { id, ttl }),
        ..request()
    }
}

fn revoke(id: i64) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        lease_revoke: Some(pb::LeaseRevokeRequest { id }),
        ..request()
    }
}

fn alarm(action: AlarmAction, member_id: u64, alarm: i32) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        alarm: Some(pb::AlarmRequest {
            action: action as i32,
            member_id,
            alarm,
        }),
        ..request()
    }
}

fn fresh() -> (tempfile::TempDir, Member1) {
    let dir = tempfile::tempdir().expect("a directory");
    let member = Member1::open(dir.path());
    (dir, member)
}

fn person(id: u64) -> Member {
    Member {
        id,
        peer_urls: vec![format!("http://m{id}:2380")],
        ..Member::default()
    }
}

fn plain(member: Member) -> ConfChangeContext {
    ConfChangeContext {
        member,
        is_promote: false,
    }
}

// Order, replay, and what stops the member.

#[test]
fn entries_come_in_order_and_old_ones_are_skipped() {
    let (_dir, mut m) = fresh();
    let entry = normal(1, put_entry(put_of("k", "v")));
    assert!(matches!(
        m.feed(1, &entry),
        Answer::Normal(1, Ok(Reply::Put(_)))
    ));
    assert_eq!(m.feed(1, &entry), Answer::Nothing);
    assert_eq!(m.applier.writer().revision(), 2);
    let Entry::Normal(data) = &entry else {
        unreachable!()
    };
    let gap = m.applier.apply(3, TERM, data);
    assert!(matches!(
        gap,
        Err(Stop::Gap {
            expected: 2,
            got: 3
        })
    ));
    assert!(matches!(m.applier.publish(2, TERM), Err(Stop::Gap { .. })));
}

#[test]
fn an_empty_entry_answers_nobody_and_counts_as_applied() {
    let (_dir, mut m) = fresh();
    assert_eq!(m.feed(1, &Entry::Normal(Bytes::new())), Answer::Nothing);
    assert_eq!(m.applier.publish(1, TERM).unwrap().view.applied().index, 1);
}

#[test]
fn the_request_id_is_the_old_field_or_the_headers() {
    let (_dir, mut m) = fresh();
    let both = pb::InternalRaftRequest {
        id: 5,
        header: Some(pb::RequestHeader {
            id: 9,
            ..Default::default()
        }),
        ..put_entry(put_of("k", "v"))
    };
    let data = Bytes::from(both.encode_to_vec());
    assert!(matches!(
        m.applier.apply(1, TERM, &data),
        Ok(Some((5, Ok(_))))
    ));
}

#[test]
fn what_cannot_be_understood_stops_the_member_with_a_sentence() {
    let (_dir, mut m) = fresh();
    let garbage = m
        .applier
        .apply(1, TERM, &Bytes::from_static(b"\xff\xff\xff"));
    let Err(stop @ Stop::Undecodable { index: 1, .. }) = garbage else {
        panic!("{garbage:?}");
    };
    assert!(
        stop.to_string()
            .starts_with("log entry 1 cannot be decoded")
    );
    let unknown = Bytes::from(request().encode_to_vec());
    assert!(unknown.is_empty());
    let only_header = match normal(1, request()) {
        Entry::Normal(data) => data,
        Entry::Conf(_) => unreachable!(),
    };
    let stop = m.applier.apply(1, TERM, &only_header);
    assert!(matches!(stop, Err(Stop::UnknownRequest { index: 1 })));
    let no_context = raftpb::ConfChange {
        node_id: Some(1),
        ..Default::default()
    };
    let data = Bytes::from(no_context.encode_to_vec());
    let stop = m.applier.apply_conf_change(1, TERM, &data);
    assert!(matches!(stop, Err(Stop::Undecodable { index: 1, .. })));
}

#[test]
fn what_is_not_supported_is_answered_alike_everywhere() {
    let (_dir, mut m) = fresh();
    let auth = pb::InternalRaftRequest {
        auth_enable: Some(pb::AuthEnableRequest {}),
        ..request()
    };
    let status = m.run(auth).unwrap_err();
    assert_eq!(status.code, Code::Unimplemented);
    assert_eq!(
        status.message,
        "AuthEnable is not supported by this version"
    );
}

// 5L. Leases.

/// Remembers what apply told it.
#[derive(Default)]
struct Heard(Mutex<Vec<(i64, Option<i64>)>>);

impl LeaseHook for Heard {
    fn granted(&self, id: i64, ttl: i64) {
        self.0.lock().unwrap().push((id, Some(ttl)));
    }
    fn revoked(&self, id: i64) {
        self.0.lock().unwrap().push((id, None));
    }
}

#[test]
fn rule_5l_1_grants_and_their_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let mut m = Member1::open_with(dir.path(), heard.clone());
    for (id, ttl) in [(5, 60), (-5, 9_000_000_000), (i64::MIN, 1)] {
        let Ok(Reply::LeaseGrant(r)) = m.run(grant(id, ttl)) else {
            panic!("granted");
        };
        assert_eq!((r.id, r.ttl, r.error.as_str()), (id, ttl, ""));
        assert_eq!(r.header, Some(txn::header(1)));
    }
    assert_eq!(m.run(grant(5, 60)), Err(errors::LEASE_EXIST));
    assert_eq!(
        m.run(grant(6, 9_000_000_001)),
        Err(errors::LEASE_TTL_TOO_LARGE)
    );
    assert_eq!(m.run(grant(0, 60)), Err(errors::LEASE_NOT_FOUND));
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.len(), 3, "a refused grant is not heard of");
    assert_eq!(heard[1], (-5, Some(9_000_000_000)));
}

#[test]
fn rule_5l_2_revoke_deletes_in_key_order_in_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let mut m = Member1::open_with(dir.path(), heard.clone());
    assert_eq!(m.run(revoke(0)), Err(errors::LEASE_NOT_FOUND));
    m.run(grant(7, 60)).unwrap();
    for key in ["c", "a", "b"] {
        let r = pb::PutRequest {
            lease: 7,
            ..put_of(key, "v")
        };
        m.run(put_entry(r)).unwrap();
    }
    m.run(put_entry(put_of("kept", "v"))).unwrap();
    let index = m.applier.applied().index + 1;
    assert!(matches!(
        m.feed(index, &normal(index, revoke(7))),
        Answer::Normal(_, Ok(Reply::LeaseRevoke(r))) if r.header == Some(txn::header(6))
    ));
    let published = m.applier.publish(index, TERM).unwrap();
    let deleted: Vec<_> = published
        .events
        .iter()
        .map(|e| (e.kind, e.revision.main, e.revision.sub, e.kv.key.clone()))
        .collect();
    let expected: Vec<_> = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(sub, key)| (engine::EventKind::Delete, 6, sub as i64, Bytes::from(*key)))
        .collect();
    assert_eq!(deleted, expected);
    assert_eq!(m.run(revoke(7)), Err(errors::LEASE_NOT_FOUND));
    assert_eq!(heard.0.lock().unwrap().last(), Some(&(7, None)));
    // Without keys the revision stays.
    m.run(grant(8, 60)).unwrap();
    let Ok(Reply::LeaseRevoke(r)) = m.run(revoke(8)) else {
        panic!("revoked");
    };
    assert_eq!(r.header, Some(txn::header(6)));
}

#[test]
fn rule_5l_8_leases_survive_a_restart_in_etcds_form() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Member1::open(dir.path());
    m.run(grant(1111, 3600)).unwrap();
    m.checkpoint();
    drop(m);
    let mut m = Member1::open(dir.path());
    let stored = m
        .engine
        .view()
        .sys_get(buckets::LEASE, &buckets::lease_key(1111));
    // The row etcd keeps for this lease: CNcIEJAc.
    assert_eq!(
        stored.unwrap().unwrap(),
        &[0x08, 0xd7, 0x08, 0x10, 0x90, 0x1c][..]
    );
    assert_eq!(m.run(grant(1111, 1)), Err(errors::LEASE_EXIST));
}

// 6. Cluster.

#[test]
fn rule_6_10_members_and_their_attributes_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Member1::open(dir.path());
    let me = identity().member_id;
    let added = m.change(ConfChangeType::ConfChangeAddNode, &plain(person(me)));
    assert!(added.accepted && added.to_consensus && !added.removed_self);
    assert_eq!(added.request_id, 1);
    let attributes = |member_id| pb::InternalRaftRequest {
        cluster_member_attr_set: Some(membershippb::ClusterMemberAttrSetRequest {
            member_id,
            member_attributes: Some(membershippb::Attributes {
                name: "default".into(),
                client_urls: vec!["http://localhost:2379".into()],
            }),
        }),
        ..request()
    };
    assert_eq!(m.run(attributes(me)), Ok(Reply::Empty));
    assert_eq!(m.run(attributes(77)), Err(errors::MEMBER_NOT_FOUND));
    let version = pb::InternalRaftRequest {
        cluster_version_set: Some(membershippb::ClusterVersionSetRequest {
            ver: "3.6.0".into(),
        }),
        ..request()
    };
    assert_eq!(m.run(version), Ok(Reply::Empty));
    m.checkpoint();
    drop(m);
    let m = Member1::open(dir.path());
    let view = m.engine.view();
    let members = membership::members(&view).unwrap();
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].id, members[0].name.as_str()), (me, "default"));
    assert_eq!(members[0].client_ur_ls, ["http://localhost:2379"]);
    assert_eq!(
        membership::cluster_version(&view).unwrap().as_deref(),
        Some("3.6.0")
    );
    assert_eq!(m.applier.conf_state().voters, [me]);
}

#[test]
fn rule_6_a_refused_change_has_no_effect_and_stays_out_of_consensus() {
    let (_dir, mut m) = fresh();
    m.change(ConfChangeType::ConfChangeAddNode, &plain(person(1)));
    let before = (m.applier.members().clone(), m.applier.conf_state().clone());
    let outcome = m.change(ConfChangeType::ConfChangeAddNode, &plain(person(1)));
    assert!(!outcome.accepted && !outcome.to_consensus);
    assert_eq!(outcome.result, Err(errors::MEMBER_EXIST));
    assert_eq!(
        before,
        (m.applier.members().clone(), m.applier.conf_state().clone())
    );
}

#[test]
fn rule_6_the_life_of_a_member() {
    let (_dir, mut m) = fresh();
    let me = identity().member_id;
    m.change(ConfChangeType::ConfChangeAddNode, &plain(person(me)));
    let learner = Member {
        is_learner: true,
        ..person(2)
    };
    m.change(ConfChangeType::ConfChangeAddLearnerNode, &plain(learner));
    assert_eq!(m.applier.conf_state().learners, [2]);
    let promote = ConfChangeContext {
        member: Member {
            id: 2,
            ..Member::default()
        },
        is_promote: true,
    };
    m.change(ConfChangeType::ConfChangeAddNode, &promote);
    assert_eq!(m.applier.conf_state().voters, [2, me]);
    assert!(m.applier.conf_state().learners.is_empty());
    let voter = m.applier.members().get(2).unwrap();
    assert!(
        !voter.is_learner && voter.peer_urls == person(2).peer_urls,
        "keeps its URLs"
    );
    let moved = Member {
        peer_urls: vec!["http://elsewhere:2380".into()],
        ..person(2)
    };
    let update = m.change(ConfChangeType::ConfChangeUpdateNode, &plain(moved.clone()));
    assert!(
        update.accepted && !update.to_consensus,
        "never reaches consensus"
    );
    assert_eq!(
        m.applier.members().get(2).unwrap().peer_urls,
        moved.peer_urls
    );
    let gone = m.change(ConfChangeType::ConfChangeRemoveNode, &plain(person(2)));
    assert!(gone.accepted && !gone.removed_self);
    let Ok(Reply::Members(left)) = gone.result else {
        panic!("members");
    };
    assert_eq!(left.len(), 1);
    let back = m.change(ConfChangeType::ConfChangeAddNode, &plain(person(2)));
    assert_eq!(back.result, Err(errors::MEMBER_NOT_FOUND));
    let myself = m.change(ConfChangeType::ConfChangeRemoveNode, &plain(person(me)));
    assert!(myself.removed_self);
}

// 7. Alarms.

#[test]
fn rule_7_2_alarms_are_listed_raised_and_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Member1::open(dir.path());
    let (nospace, corrupt) = (pb::AlarmType::Nospace as i32, pb::AlarmType::Corrupt as i32);
    let run = |m: &mut Member1, action, member, kind| match m.run(alarm(action, member, kind)) {
        Ok(Reply::Alarm(r)) => r
            .alarms
            .iter()
            .map(|a| (a.member_id, a.alarm))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    use AlarmAction::{Activate, Deactivate, Get};
    assert_eq!(run(&mut m, Activate, 9, nospace), [(9, nospace)]);
    assert_eq!(
        run(&mut m, Activate, 9, nospace),
        [(9, nospace)],
        "raising twice"
    );
    assert_eq!(
        run(&mut m, Activate, 0, corrupt),
        [(0, corrupt)],
        "taken literally"
    );
    assert_eq!(run(&mut m, Activate, 9, 0), [], "NONE is nothing to raise");
    assert_eq!(run(&mut m, Activate, 9, 42), [], "nor is what nobody knows");
    m.checkpoint();
    drop(m);
    let mut m = Member1::open(dir.path());
    assert_eq!(run(&mut m, Get, 0, 0), [(9, nospace), (0, corrupt)]);
    assert_eq!(run(&mut m, Get, 0, corrupt), [(0, corrupt)]);
    assert_eq!(m.run(put_entry(put_of("k", "v"))), Err(errors::CORRUPT));
    assert_eq!(run(&mut m, Deactivate, 8, nospace), [], "nothing matched");
    assert_eq!(run(&mut m, Deactivate, 0, corrupt), [(0, corrupt)]);
    assert_eq!(run(&mut m, Deactivate, 9, nospace), [(9, nospace)]);
    assert_eq!(run(&mut m, Get, 0, 0), []);
    m.run(put_entry(put_of("k", "v"))).unwrap();
}

// Determinism.

fn entry_strategy() -> impl Strategy<Value = Entry> {
    let id = any::<u64>();
    let requests = prop_oneof![
        8 => put_strategy().prop_map(put_entry),
        3 => delete_strategy().prop_map(|r| pb::InternalRaftRequest { delete_range: Some(r), ..request() }),
        6 => txn_strategy(op_strategy().boxed())
            .prop_map(|r| pb::InternalRaftRequest { txn: Some(r), ..request() }),
        1 => (-1i64..30).prop_map(|revision| pb::InternalRaftRequest {
            compaction: Some(pb::CompactionRequest { revision, physical: false }), ..request()
        }),
        2 => prop::sample::select(vec![1i64, 2, -3]).prop_map(|id| grant(id, 60)),
        1 => prop::sample::select(vec![1i64, 2, -3]).prop_map(revoke),
        1 => (0..3i32, 0..3i32).prop_map(|(action, kind)| pb::InternalRaftRequest {
            alarm: Some(pb::AlarmRequest { action, member_id: 1, alarm: kind }), ..request()
        }),
        // Alarms stand for a while, not for ever.
        2 => (1..3i32).prop_map(|kind| alarm(AlarmAction::Deactivate, 1, kind)),
    ];
    let changes = (0..4i32, 1u64..4, any::<bool>(), any::<bool>()).prop_map(
        |(kind, id, is_learner, is_promote)| {
            let member = Member {
                is_learner,
                ..person(id)
            };
            let kind = ConfChangeType::try_from(kind).expect("is one of four");
            conf(id, kind, &ConfChangeContext { member, is_promote })
        },
    );
    prop_oneof![
        30 => (id, requests).prop_map(|(id, r)| normal(id, r)),
        2 => changes,
        1 => Just(Entry::Normal(Bytes::new())),
    ]
}

/// Everything a state shows, for comparison.
#[derive(Debug, PartialEq)]
struct Portrait {
    rolling_hash: u64,
    revision: i64,
    compact_revision: i64,
    kvs: Vec<engine::KeyValue>,
    meta: Vec<u8>,
    system: Vec<Vec<u8>>,
}

fn portrait(view: &engine::View) -> Portrait {
    let mut kvs = Vec::new();
    view.visit(&engine::KeyRange::all(), 0, &mut |kv| {
        kvs.push(kv.to_owned());
        std::ops::ControlFlow::Continue(())
    })
    .expect("reads");
    let mut system = Vec::new();
    for bucket in 0..=8 {
        view.sys_scan(bucket, &mut |key, value| {
            system.push([key, value].concat());
            std::ops::ControlFlow::Continue(())
        })
        .expect("reads");
    }
    Portrait {
        rolling_hash: view.rolling_hash(),
        revision: view.revision(),
        compact_revision: view.compact_revision(),
        kvs,
        meta: view.meta().to_vec(),
        system,
    }
}

fn cases() -> u32 {
    std::env::var("QUORATE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Two members with one log answer alike and end alike, however the log is cut into batches and
    /// however often one of them is checkpointed, killed and replays.
    #[test]
    fn apply_is_a_function_of_the_log(
        log in prop::collection::vec(entry_strategy(), 1..80),
        batches in prop::collection::vec(1usize..12, 1..20),
        crashes in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.3)), 1..20),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut steady = Member1::open(dir.path());
        let mut answers = Vec::new();
        for (i, entry) in log.iter().enumerate() {
            answers.push(steady.feed(i as u64 + 1, entry));
            steady.applier.publish(i as u64 + 1, TERM).expect("publishes");
        }

        let other = tempfile::tempdir().expect("a directory");
        let mut shaky = Member1::open(other.path());
        let (mut next, mut round) = (0, 0);
        while next < log.len() {
            let batch = batches[round % batches.len()].min(log.len() - next);
            for i in next..next + batch {
                let answer = shaky.feed(i as u64 + 1, &log[i]);
                prop_assert_eq!(&answer, &answers[i], "entry {}", i + 1);
            }
            next += batch;
            shaky.applier.publish(next as u64, TERM).expect("publishes");
            let (checkpoint, crash) = crashes[round % crashes.len()];
            if checkpoint {
                shaky.applier.writer().compact_step(engine::Budget::default()).expect("compacts");
                shaky.applier.publish(next as u64, TERM).expect("publishes");
                shaky.checkpoint();
            }
            if crash {
                drop(shaky);
                shaky = Member1::open(other.path());
                let durable = shaky.applier.applied().index as usize;
                prop_assert!(durable <= next);
                // Replay from before the checkpoint: what is in it already is skipped.
                for (i, entry) in log.iter().enumerate().take(next) {
                    let answer = shaky.feed(i as u64 + 1, entry);
                    if i < durable {
                        prop_assert_eq!(answer, Answer::Nothing);
                    } else {
                        prop_assert_eq!(&answer, &answers[i], "entry {} replayed", i + 1);
                    }
                }
                shaky.applier.publish(next as u64, TERM).expect("publishes");
            }
            round += 1;
        }
        prop_assert_eq!(portrait(&steady.engine.view()), portrait(&shaky.engine.view()));
        prop_assert_eq!(steady.applier.conf_state(), shaky.applier.conf_state());
        prop_assert_eq!(steady.applier.members(), shaky.applier.members());
        prop_assert_eq!(steady.applier.alarms(), shaky.applier.alarms());
    }
}

/// The pages of a batch are read before it is applied, and applying it comes to the same.
#[test]
fn a_batch_finds_its_pages_at_hand() {
    const KEYS: usize = 6000;
    let entry = |n: usize, value: u8| {
        let put = pb::PutRequest {
            key: format!("{n:06}").into(),
            value: vec![value; 250].into(),
            ..Default::default()
        };
        pb::InternalRaftRequest {
            put: Some(put),
            ..request()
        }
    };
    let batch: Vec<_> = (0..KEYS).step_by(100).map(|n| entry(n, 2)).collect();
    let run = |ahead: bool| {
        let dir = tempfile::tempdir().unwrap();
        let mut member = Member1::open(dir.path());
        for n in 0..KEYS {
            member.run(entry(n, 1)).unwrap();
        }
        member.checkpoint();
        drop(member);
        let mut member = Member1::open(dir.path());
        let first = member.applier.applied().index + 1;
        let batch: Vec<Bytes> = (first..)
            .zip(&batch)
            .map(|(index, request)| match normal(index, request.clone()) {
                Entry::Normal(data) | Entry::Conf(data) => data,
            })
            .collect();
        if ahead {
            assert_eq!(member.applier.read_ahead(batch.iter()), batch.len());
        }
        // Nobody watches: the versions replaced are not read.
        member.applier.writer().skip_events();
        let before = member.engine.stats().cache_misses;
        for (index, data) in (first..).zip(&batch) {
            member.applier.apply(index, TERM, data).unwrap();
        }
        let misses = member.engine.stats().cache_misses - before;
        (misses, member.applier.writer().rolling_hash())
    };
    let (with, without) = (run(true), run(false));
    assert_eq!(with.1, without.1);
    assert!(without.0 >= batch.len() as u64, "{without:?}");
    assert!(with.0 < 5, "{with:?}");
}
