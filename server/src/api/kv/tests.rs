use super::*;
use crate::limits::Limits;
use crate::status::Code;
use crate::testing::req::*;
use crate::testing::{LocalNode, TERM, block_on, identity};
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::mvccpb;
use std::sync::atomic::Ordering;

/// A member and its KV service, called without a network.
struct Kv {
    api: Api<LocalNode>,
    ctx: RequestCtx,
}

fn kv() -> Kv {
    kv_with(Limits::default())
}

fn kv_with(limits: Limits) -> Kv {
    Kv {
        api: crate::testing::api(limits),
        ctx: RequestCtx::default(),
    }
}

impl Kv {
    fn node(&self) -> &LocalNode {
        &self.api.node
    }

    fn revision(&self) -> i64 {
        self.node().engine().view().revision()
    }

    fn range(&self, r: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let encoded = block_on(self.api.range(&self.ctx, r))?;
        let response = decode_range(&encoded).expect("is a RangeResponse");
        // The hand-written encoding is the one every protobuf encoder gives.
        let mut bytes = encoded.head.to_vec();
        encoded.tail.iter().for_each(|t| bytes.extend_from_slice(t));
        assert_eq!(bytes, response.encode_to_vec());
        Ok(response)
    }

    fn put(&self, r: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        block_on(self.api.put(&self.ctx, r))
    }

    /// Puts and answers the new revision.
    fn set(&self, key: &str, value: &str) -> i64 {
        let response = self.put(put_of(key, value)).expect("puts");
        response.header.expect("has a header").revision
    }

    fn delete(&self, r: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Status> {
        block_on(self.api.delete_range(&self.ctx, r))
    }

    fn txn(&self, r: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        block_on(self.api.txn(&self.ctx, r))
    }

    /// A transaction whose success branch runs.
    fn run(&self, ops: Vec<pb::RequestOp>) -> Result<pb::TxnResponse, Status> {
        self.txn(pb::TxnRequest {
            success: ops,
            ..Default::default()
        })
    }

    /// Whether a compare holds now.
    fn holds(&self, compare: pb::Compare) -> bool {
        let r = pb::TxnRequest {
            compare: vec![compare],
            ..Default::default()
        };
        self.txn(r).expect("compares").succeeded
    }

    fn compact(&self, revision: i64, physical: bool) -> Result<pb::CompactionResponse, Status> {
        let r = pb::CompactionRequest { revision, physical };
        block_on(self.api.compact(&self.ctx, r))
    }

    fn grant(&self, id: i64) {
        self.node()
            .apply(pb::InternalRaftRequest {
                lease_grant: Some(pb::LeaseGrantRequest { ttl: 60, id }),
                ..Default::default()
            })
            .expect("grants");
    }

    fn alarm(&self, action: AlarmAction, alarm: AlarmType) {
        let r = pb::AlarmRequest {
            action: action as i32,
            member_id: 7,
            alarm: alarm as i32,
        };
        block_on(self.api.alarm(&self.ctx, r)).expect("is logged");
    }

    fn one(&self, key: &str) -> Option<mvccpb::KeyValue> {
        self.range(range_of(key)).expect("reads").kvs.pop()
    }

    /// Keys of all there is.
    fn keys(&self) -> Vec<String> {
        keys(&self.range(range_all()).expect("reads"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn keys(r: &pb::RangeResponse) -> Vec<String> {
    r.kvs.iter().map(|kv| text(&kv.key)).collect()
}

fn revision_of(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().expect("has a header").revision
}

fn between(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        range_end: range_end.to_owned().into(),
        ..range_of(key)
    }
}

fn nested(success: Vec<pb::RequestOp>) -> pb::RequestOp {
    op_txn(pb::TxnRequest {
        success,
        ..Default::default()
    })
}

// 1. Revisions and headers.

#[test]
fn rule_1_1_a_new_store_is_at_one_and_the_first_put_makes_two() {
    let kv = kv();
    assert_eq!(revision_of(&kv.range(range_of("k")).unwrap().header), 1);
    assert_eq!(kv.set("k", "v"), 2);
}

#[test]
fn rule_1_2_only_a_change_moves_the_revision_and_by_one() {
    let kv = kv();
    kv.set("a", "1");
    kv.set("b", "1");
    type Step<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let still: Vec<Step<'_>> = vec![
        (
            "delete of nothing",
            Box::new(|| {
                kv.delete(delete_of("nothing", "")).unwrap();
            }),
        ),
        (
            "txn without operations",
            Box::new(|| {
                kv.run(vec![]).unwrap();
            }),
        ),
        (
            "read-only txn",
            Box::new(|| {
                kv.run(vec![op(range_of("a"))]).unwrap();
            }),
        ),
        (
            "txn that changed nothing",
            Box::new(|| {
                kv.run(vec![op(delete_of("nothing", ""))]).unwrap();
            }),
        ),
        ("lease grant", Box::new(|| kv.grant(5))),
        (
            "compaction",
            Box::new(|| {
                kv.compact(2, false).unwrap();
            }),
        ),
        (
            "alarm",
            Box::new(|| {
                kv.alarm(AlarmAction::Activate, AlarmType::Nospace);
                kv.alarm(AlarmAction::Deactivate, AlarmType::Nospace);
            }),
        ),
    ];
    for (what, f) in &still {
        let before = kv.revision();
        f();
        assert_eq!(kv.revision(), before, "{what}");
    }
    let before = kv.revision();
    kv.run(vec![
        op(put_of("x", "1")),
        op(put_of("y", "1")),
        op(delete_of("a", "c")),
    ])
    .unwrap();
    assert_eq!(kv.revision(), before + 1);
}

#[test]
fn rule_1_3_all_changes_of_a_request_share_its_main_revision() {
    let kv = kv();
    kv.run(vec![op(put_of("b", "")), op(put_of("a", ""))])
        .unwrap();
    for key in ["a", "b"] {
        let found = kv.one(key).unwrap();
        assert_eq!((found.create_revision, found.mod_revision), (2, 2));
    }
}

#[test]
fn rule_1_4_versions_count_from_creation() {
    let kv = kv();
    kv.set("k", "1");
    kv.set("k", "2");
    let second = kv.one("k").unwrap();
    assert_eq!(
        (second.create_revision, second.mod_revision, second.version),
        (2, 3, 2)
    );
    kv.delete(delete_of("k", "")).unwrap();
    kv.set("k", "3");
    let reborn = kv.one("k").unwrap();
    assert_eq!(
        (reborn.create_revision, reborn.mod_revision, reborn.version),
        (5, 5, 1)
    );
}

#[test]
fn rule_1_5_headers_name_the_member_and_the_right_revision() {
    let kv = kv();
    kv.set("a", "1");
    kv.set("a", "2");
    let header = |revision| {
        Some(pb::ResponseHeader {
            cluster_id: identity().cluster_id,
            member_id: identity().member_id,
            revision,
            raft_term: TERM,
        })
    };
    let pinned = pb::RangeRequest {
        revision: 2,
        ..range_of("a")
    };
    assert_eq!(
        kv.range(pinned).unwrap().header,
        header(3),
        "current, not asked for"
    );
    let miss = kv.delete(delete_of("nothing", "")).unwrap();
    assert_eq!(miss.header, header(3));
    assert_eq!(kv.put(put_of("a", "3")).unwrap().header, header(4));
    assert_eq!(kv.delete(delete_of("a", "")).unwrap().header, header(5));
    assert_eq!(kv.run(vec![]).unwrap().header, header(5));
    assert_eq!(kv.run(vec![op(put_of("b", ""))]).unwrap().header, header(6));
    assert_eq!(kv.compact(3, false).unwrap().header, header(6));
}

// 2. Range.

#[test]
fn rule_2_1_target_sets() {
    let kv = kv();
    for key in ["a", "aa", "ab", "b", "c"] {
        kv.set(key, "");
    }
    for (key, end, expected) in [
        ("a", "", vec!["a"]),
        ("a", "b", vec!["a", "aa", "ab"]),
        ("aa", "\0", vec!["aa", "ab", "b", "c"]),
        ("\0", "\0", vec!["a", "aa", "ab", "b", "c"]),
        ("b", "b", vec![]),
        ("c", "a", vec![]),
        ("nothing", "", vec![]),
    ] {
        let r = kv.range(between(key, end)).unwrap();
        assert_eq!(keys(&r), expected, "{key:?} {end:?}");
        assert_eq!(r.count, expected.len() as i64);
        assert!(!r.more);
    }
    assert_eq!(kv.range(range_of("")), Err(errors::EMPTY_KEY));
}

#[test]
fn rule_2_2_which_revisions_can_be_read() {
    let kv = kv();
    for value in ["1", "2", "3", "4"] {
        kv.set("k", value);
    }
    kv.compact(3, false).unwrap();
    let at = |revision| {
        kv.range(pb::RangeRequest {
            revision,
            ..range_of("k")
        })
        .map(|r| text(&r.kvs[0].value))
    };
    assert_eq!(at(0).unwrap(), "4");
    assert_eq!(at(-7).unwrap(), "4");
    assert_eq!(at(5).unwrap(), "4");
    assert_eq!(at(4).unwrap(), "3");
    assert_eq!(
        at(3).unwrap(),
        "2",
        "the compacted revision itself is readable"
    );
    assert_eq!(at(2), Err(errors::COMPACTED));
    assert_eq!(at(6), Err(errors::FUTURE_REV));
}

fn five() -> Kv {
    let kv = kv();
    for (key, value) in [("a", "5"), ("b", "3"), ("c", "4"), ("d", "1"), ("e", "2")] {
        kv.set(key, value);
    }
    kv
}

#[test]
fn rule_2_3_limit_more_and_count() {
    let kv = five();
    let limited = |limit| {
        let r = pb::RangeRequest {
            limit,
            ..between("a", "z")
        };
        let r = kv.range(r).unwrap();
        (r.kvs.len(), r.more, r.count)
    };
    assert_eq!(limited(-1), (5, false, 5));
    assert_eq!(limited(0), (5, false, 5));
    assert_eq!(limited(2), (2, true, 5));
    assert_eq!(limited(4), (4, true, 5));
    assert_eq!(limited(5), (5, false, 5));
    assert_eq!(limited(6), (5, false, 5));
}

#[test]
fn rule_2_3_count_ignores_filters_and_more_does_not() {
    let kv = five();
    let r = kv
        .range(pb::RangeRequest {
            limit: 2,
            min_mod_revision: 4,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!(
        (keys(&r), r.more, r.count),
        (vec!["c".into(), "d".into()], true, 5)
    );
    let r = kv
        .range(pb::RangeRequest {
            limit: 2,
            min_mod_revision: 5,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!(
        (keys(&r), r.more, r.count),
        (vec!["d".into(), "e".into()], false, 5)
    );
}

#[test]
fn rule_2_3_count_at_an_old_revision() {
    let kv = five();
    kv.delete(delete_of("b", "d")).unwrap();
    let r = kv
        .range(pb::RangeRequest {
            revision: 5,
            limit: 1,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!((keys(&r), r.more, r.count), (vec!["a".into()], true, 4));
}

#[test]
fn rule_2_4_count_only_knows_nothing_else() {
    let kv = five();
    let r = kv
        .range(pb::RangeRequest {
            count_only: true,
            limit: 1,
            sort_order: SortOrder::Descend as i32,
            sort_target: SortTarget::Value as i32,
            min_mod_revision: 100,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!((r.kvs.len(), r.more, r.count), (0, false, 5));
}

#[test]
fn rule_2_4_keys_only_strips_the_value_after_sorting_and_keeps_the_lease() {
    let kv = five();
    kv.grant(7);
    kv.put(pb::PutRequest {
        lease: 7,
        ..put_of("a", "9")
    })
    .unwrap();
    let r = kv
        .range(pb::RangeRequest {
            keys_only: true,
            sort_order: SortOrder::Descend as i32,
            sort_target: SortTarget::Value as i32,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!(keys(&r), ["a", "c", "b", "e", "d"]);
    assert!(r.kvs.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(r.kvs[0].lease, 7);
    let plain = kv
        .range(pb::RangeRequest {
            keys_only: true,
            ..between("a", "z")
        })
        .unwrap();
    assert_eq!(keys(&plain), ["a", "b", "c", "d", "e"]);
    assert!(plain.kvs.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(plain.kvs[0].lease, 7);
}

#[test]
fn rule_2_5_filters_come_before_sort_and_limit() {
    let kv = five();
    kv.set("b", "9"); // created at 3, modified at 7
    type Filter = fn(&mut pb::RangeRequest);
    let cases: [(Filter, &[&str]); 5] = [
        (|r| r.min_mod_revision = 6, &["e", "b"]),
        (|r| r.max_mod_revision = 4, &["c", "a"]),
        (|r| r.min_create_revision = 5, &["e", "d"]),
        (|r| r.max_create_revision = 3, &["b", "a"]),
        (
            |r| {
                r.min_mod_revision = 4;
                r.max_create_revision = 4;
            },
            &["c", "b"],
        ),
    ];
    for (filter, expected) in cases {
        let mut r = pb::RangeRequest {
            sort_order: SortOrder::Descend as i32,
            limit: 2,
            ..between("a", "z")
        };
        filter(&mut r);
        assert_eq!(keys(&kv.range(r).unwrap()), expected);
    }
}

#[test]
fn rule_2_6_sorts() {
    let kv = five();
    kv.set("b", "3"); // version 2, modified last
    let sorted = |target: SortTarget, order: SortOrder, limit| {
        keys(
            &kv.range(pb::RangeRequest {
                sort_target: target as i32,
                sort_order: order as i32,
                limit,
                ..between("a", "z")
            })
            .unwrap(),
        )
        .concat()
    };
    use SortOrder::{Ascend, Descend};
    assert_eq!(sorted(SortTarget::Key, SortOrder::None, 0), "abcde");
    assert_eq!(sorted(SortTarget::Key, Ascend, 0), "abcde");
    assert_eq!(sorted(SortTarget::Key, Descend, 0), "edcba");
    assert_eq!(sorted(SortTarget::Key, Descend, 2), "ed");
    assert_eq!(sorted(SortTarget::Value, Ascend, 0), "debca");
    assert_eq!(sorted(SortTarget::Value, Descend, 2), "ac");
    assert_eq!(sorted(SortTarget::Create, Descend, 0), "edcba");
    assert_eq!(sorted(SortTarget::Mod, Ascend, 0), "acdeb");
    assert_eq!(sorted(SortTarget::Mod, Descend, 1), "b");
    // Equal keys of the sort stay in key order, whichever way it runs.
    assert_eq!(sorted(SortTarget::Version, Ascend, 0), "acdeb");
    assert_eq!(sorted(SortTarget::Version, Descend, 0), "bacde");
}

#[test]
fn rule_2_6_target_without_order_sorts_the_first_keys_only() {
    let kv = five();
    let by_value = |limit, min_mod_revision| {
        let r = kv
            .range(pb::RangeRequest {
                sort_target: SortTarget::Value as i32,
                limit,
                min_mod_revision,
                ..between("a", "z")
            })
            .unwrap();
        assert_eq!(r.count, 5);
        (keys(&r).concat(), r.more)
    };
    // Values: a5 b3 c4 d1 e2.
    assert_eq!(by_value(0, 0), ("debca".into(), false));
    assert_eq!(by_value(2, 0), ("bc".into(), true), "of a, b, c only");
    assert_eq!(by_value(4, 0), ("debc".into(), true));
    assert_eq!(by_value(5, 0), ("debca".into(), false));
    assert_eq!(by_value(2, 1), ("de".into(), true), "a filter fetches all");
}

#[test]
fn rule_2_7_only_linearizable_reads_ask_the_node() {
    let kv = kv();
    let asked = || kv.node().reads.load(Ordering::Relaxed);
    kv.range(range_of("k")).unwrap();
    assert_eq!(asked(), 1);
    kv.range(pb::RangeRequest {
        serializable: true,
        ..range_of("k")
    })
    .unwrap();
    assert_eq!(asked(), 1);
}

#[test]
fn rule_2_10_an_empty_result_still_has_its_header() {
    let r = kv().range(range_of("k")).unwrap();
    assert_eq!((r.kvs.len(), r.count, r.more), (0, 0, false));
    assert!(r.header.is_some());
}

#[test]
fn large_values_and_negative_leases_survive_the_hand_written_encoding() {
    let kv = kv();
    kv.grant(-3);
    let value = "x".repeat(300_000);
    kv.put(pb::PutRequest {
        lease: -3,
        ..put_of("big", &value)
    })
    .unwrap();
    for i in 0..300 {
        kv.set(&format!("k{i:03}"), &"y".repeat(i));
    }
    let all = kv.range(range_all()).unwrap();
    assert_eq!(all.count, 301);
    assert_eq!((all.kvs[0].lease, all.kvs[0].value.len()), (-3, 300_000));
    assert!(
        all.kvs[1..]
            .iter()
            .enumerate()
            .all(|(i, kv)| kv.value.len() == i)
    );
}

// 3. Put and DeleteRange.

#[test]
fn rule_3_1_put_checks() {
    let kv = kv();
    for lease in [5, -5] {
        let r = pb::PutRequest {
            lease,
            ..put_of("k", "v")
        };
        assert_eq!(kv.put(r), Err(errors::LEASE_NOT_FOUND));
    }
    let keep_value = pb::PutRequest {
        ignore_value: true,
        ..put_of("k", "")
    };
    let keep_lease = pb::PutRequest {
        ignore_lease: true,
        ..put_of("k", "v")
    };
    assert_eq!(kv.put(keep_value), Err(errors::KEY_NOT_FOUND));
    assert_eq!(kv.put(keep_lease), Err(errors::KEY_NOT_FOUND));
    assert_eq!(kv.put(put_of("", "v")), Err(errors::EMPTY_KEY));
    assert_eq!(kv.revision(), 1, "a refused put has no effect");
}

#[test]
fn rule_3_2_a_key_has_at_most_one_lease() {
    let kv = kv();
    kv.grant(1);
    kv.grant(2);
    let put = |lease, ignore_lease| {
        let r = pb::PutRequest {
            lease,
            ignore_lease,
            ..put_of("k", "v")
        };
        kv.put(r).unwrap();
        let view = kv.node().engine().view();
        let attached = |id| view.lease_keys(id).unwrap().len();
        (kv.one("k").unwrap().lease, attached(1), attached(2))
    };
    assert_eq!(put(1, false), (1, 1, 0));
    assert_eq!(put(0, true), (1, 1, 0), "kept");
    assert_eq!(put(2, false), (2, 0, 1), "moved");
    assert_eq!(put(0, false), (0, 0, 0), "detached");
}

#[test]
fn rule_3_2_an_empty_value_is_a_value() {
    let kv = kv();
    kv.set("k", "");
    assert_eq!(kv.one("k").unwrap().version, 1);
}

#[test]
fn rule_3_3_prev_kv_and_ignore_value() {
    let kv = kv();
    let with_prev = |key, value| pb::PutRequest {
        prev_kv: true,
        ..put_of(key, value)
    };
    assert_eq!(kv.put(with_prev("k", "1")).unwrap().prev_kv, None);
    let prev = kv.put(with_prev("k", "2")).unwrap().prev_kv.unwrap();
    assert_eq!((text(&prev.value), prev.mod_revision), ("1".into(), 2));
    assert_eq!(kv.put(put_of("k", "3")).unwrap().prev_kv, None);
    let r = pb::PutRequest {
        ignore_value: true,
        ..with_prev("k", "")
    };
    assert_eq!(text(&kv.put(r).unwrap().prev_kv.unwrap().value), "3");
    let now = kv.one("k").unwrap();
    assert_eq!(
        (text(&now.value), now.version, now.mod_revision),
        ("3".into(), 4, 5)
    );
}

#[test]
fn rule_3_4_delete_range() {
    let kv = five();
    let r = kv
        .delete(pb::DeleteRangeRequest {
            prev_kv: true,
            ..delete_of("b", "d")
        })
        .unwrap();
    assert_eq!(r.deleted, 2);
    let prev: Vec<_> = r.prev_kvs.iter().map(|kv| text(&kv.key)).collect();
    assert_eq!(prev, ["b", "c"]);
    assert_eq!(kv.keys(), ["a", "d", "e"]);
    let r = kv.delete(delete_of("d", "\0")).unwrap();
    assert_eq!((r.deleted, r.prev_kvs.len()), (2, 0));
    assert_eq!(kv.keys(), ["a"]);
    assert_eq!(kv.delete(delete_of("", "")), Err(errors::EMPTY_KEY));
    assert_eq!(kv.delete(delete_of("z", "a")).unwrap().deleted, 0);
}

#[test]
fn rule_3_4_deleting_detaches_the_lease() {
    let kv = kv();
    kv.grant(1);
    kv.put(pb::PutRequest {
        lease: 1,
        ..put_of("k", "v")
    })
    .unwrap();
    kv.delete(delete_of("k", "")).unwrap();
    let view = kv.node().engine().view();
    assert!(view.lease_keys(1).unwrap().is_empty());
}

// 4. Txn.

#[test]
fn rule_4_1_and_4_2_are_checked_before_anything_is_proposed() {
    let kv = kv_with(Limits {
        txn_ops_max: 2,
        ..Limits::default()
    });
    let ops = vec![
        op(put_of("a", "")),
        op(put_of("b", "")),
        op(put_of("c", "")),
    ];
    assert_eq!(kv.run(ops), Err(errors::TOO_MANY_OPS));
    assert_eq!(
        kv.run(vec![pb::RequestOp { request: None }]),
        Err(errors::KEY_NOT_FOUND)
    );
    assert_eq!(
        kv.run(vec![op(put_of("a", "")), op(put_of("a", ""))]),
        Err(errors::DUPLICATE_KEY)
    );
    assert_eq!(kv.node().status().applied, 0);
    let empty = kv.txn(pb::TxnRequest::default()).unwrap();
    assert!(empty.succeeded && empty.responses.is_empty());
}

#[test]
fn rule_4_3_open_ended_delete_then_put_runs_in_one_revision() {
    let kv = five();
    let before = kv.revision();
    let r = kv
        .run(vec![op(delete_of("a", "\0")), op(put_of("c", "new"))])
        .unwrap();
    assert_eq!(revision_of(&r.header), before + 1);
    assert_eq!(kv.keys(), ["c"]);
    let c = kv.one("c").unwrap();
    assert_eq!((c.create_revision, c.version), (before + 1, 1));
}

#[test]
fn rule_4_3_sibling_nested_put_then_delete_is_accepted() {
    let kv = kv();
    let r = kv
        .run(vec![
            nested(vec![op(put_of("k", "v"))]),
            nested(vec![op(delete_of("k", ""))]),
        ])
        .unwrap();
    assert_eq!(revision_of(&r.header), 2);
    assert!(kv.keys().is_empty());
}

fn compare(key: &str, result: i32, target: CompareTarget, given: TargetUnion) -> pb::Compare {
    pb::Compare {
        result,
        target: target as i32,
        key: key.to_owned().into(),
        range_end: Bytes::new(),
        target_union: Some(given),
    }
}

#[test]
fn rule_4_4_every_target_and_result() {
    let kv = kv();
    kv.grant(7);
    kv.set("other", "");
    kv.set("k", "b");
    kv.put(pb::PutRequest {
        lease: 7,
        ..put_of("k", "b")
    })
    .unwrap();
    // k: create 3, mod 4, version 2, lease 7, value "b".
    type Given = fn(i64) -> TargetUnion;
    let numbers: [(CompareTarget, Given, i64); 4] = [
        (CompareTarget::Create, TargetUnion::CreateRevision, 3),
        (CompareTarget::Mod, TargetUnion::ModRevision, 4),
        (CompareTarget::Version, TargetUnion::Version, 2),
        (CompareTarget::Lease, TargetUnion::Lease, 7),
    ];
    let (eq, gt, lt, ne) = (
        CompareResult::Equal as i32,
        CompareResult::Greater as i32,
        CompareResult::Less as i32,
        CompareResult::NotEqual as i32,
    );
    for (target, given, n) in numbers {
        let holds = |result, n| kv.holds(compare("k", result, target, given(n)));
        for (result, below, equal, above) in [
            (eq, false, true, false),
            (ne, true, false, true),
            (gt, true, false, false),
            (lt, false, false, true),
            (99, true, true, true),
        ] {
            assert_eq!(holds(result, n - 1), below, "{target:?} {result}");
            assert_eq!(holds(result, n), equal, "{target:?} {result}");
            assert_eq!(holds(result, n + 1), above, "{target:?} {result}");
        }
    }
    let value = |result, v: &'static str| {
        kv.holds(compare(
            "k",
            result,
            CompareTarget::Value,
            TargetUnion::Value(v.into()),
        ))
    };
    assert!(value(eq, "b") && value(ne, "a") && value(gt, "a") && value(lt, "c"));
    assert!(!value(eq, "a") && !value(ne, "b") && !value(gt, "b") && !value(lt, "b"));
}

#[test]
fn rule_4_4_a_missing_key_compares_as_zeros_and_never_by_value() {
    let kv = kv();
    let eq = CompareResult::Equal as i32;
    for (target, given) in [
        (CompareTarget::Create, TargetUnion::CreateRevision(0)),
        (CompareTarget::Mod, TargetUnion::ModRevision(0)),
        (CompareTarget::Version, TargetUnion::Version(0)),
        (CompareTarget::Lease, TargetUnion::Lease(0)),
    ] {
        assert!(kv.holds(compare("none", eq, target, given)));
    }
    for result in 0..4 {
        let given = TargetUnion::Value(Bytes::new());
        assert!(!kv.holds(compare("none", result, CompareTarget::Value, given)));
    }
}

#[test]
fn rule_4_4_a_constant_of_another_target_counts_as_zero() {
    let kv = kv();
    kv.set("k", "v");
    let gt = CompareResult::Greater as i32;
    let mismatched = TargetUnion::Version(100);
    assert!(kv.holds(compare("k", gt, CompareTarget::Mod, mismatched)));
    let mut unset = compare("k", gt, CompareTarget::Value, TargetUnion::Version(1));
    assert!(kv.holds(unset.clone()), "\"v\" is greater than nothing");
    unset.target_union = None;
    assert!(kv.holds(unset));
}

#[test]
fn rule_4_4_with_a_range_every_key_must_satisfy() {
    let kv = five();
    kv.set("c", "");
    let all_version_one = |key: &str, end: &str| {
        kv.holds(pb::Compare {
            range_end: end.to_owned().into(),
            ..cmp_version(key, 1)
        })
    };
    assert!(all_version_one("a", "c"));
    assert!(!all_version_one("a", "d"));
    assert!(all_version_one("d", "\0"));
    assert!(!all_version_one("x", "z"), "no key: version 0");
    assert!(kv.holds(pb::Compare {
        range_end: "z".into(),
        ..cmp_version("x", 0)
    }));
    assert!(
        kv.holds(pb::Compare {
            range_end: "a".into(),
            ..cmp_version("b", 0)
        }),
        "an inverted range has no key"
    );
}

#[test]
fn rule_4_4_compares_are_anded_and_choose_the_branch() {
    let kv = kv();
    kv.set("k", "v");
    let r = |compares| pb::TxnRequest {
        compare: compares,
        success: vec![op(put_of("yes", ""))],
        failure: vec![op(put_of("no", ""))],
    };
    let both = vec![cmp_version("k", 1), cmp_version("none", 0)];
    assert!(kv.txn(r(both)).unwrap().succeeded);
    let one = vec![cmp_version("k", 1), cmp_version("none", 1)];
    assert!(!kv.txn(r(one)).unwrap().succeeded);
    assert_eq!(kv.keys(), ["k", "no", "yes"]);
}

#[test]
fn rule_4_4_nested_paths_are_decided_before_anything_runs() {
    let kv = kv();
    let inner = op_txn(pb::TxnRequest {
        compare: vec![cmp_version("k", 0)],
        success: vec![op(put_of("absent before", ""))],
        failure: vec![op(put_of("present before", ""))],
    });
    let r = kv.run(vec![op(put_of("k", "v")), inner]).unwrap();
    let Some(Response::ResponseTxn(nested)) = &r.responses[1].response else {
        panic!("a nested response");
    };
    assert!(nested.succeeded);
    assert_eq!(kv.keys(), ["absent before", "k"]);
}

#[test]
fn rule_4_5_later_operations_see_earlier_ones_and_headers_follow() {
    let kv = kv();
    kv.set("old", "v"); // revision 2
    let r = kv
        .run(vec![
            op(range_of("new")),
            op(delete_of("none", "")),
            op(put_of("new", "1")),
            op(range_of("new")),
            op(delete_of("none", "")),
            nested(vec![op(delete_of("old", "")), op(range_of("old"))]),
        ])
        .unwrap();
    assert_eq!(revision_of(&r.header), 3);
    assert_eq!(r.responses.len(), 6);
    let mut seen = Vec::new();
    for response in &r.responses {
        match response.response.as_ref().unwrap() {
            Response::ResponseRange(r) => seen.push((revision_of(&r.header), r.count)),
            Response::ResponsePut(r) => seen.push((revision_of(&r.header), -1)),
            Response::ResponseDeleteRange(r) => seen.push((revision_of(&r.header), r.deleted)),
            Response::ResponseTxn(r) => {
                assert_eq!(r.header, Some(pb::ResponseHeader::default()));
                assert!(r.succeeded);
                let Some(Response::ResponseRange(gone)) = &r.responses[1].response else {
                    panic!("a range");
                };
                assert_eq!((revision_of(&gone.header), gone.count), (3, 0));
            }
        }
    }
    assert_eq!(seen, [(2, 0), (2, 0), (3, -1), (3, 1), (3, 0)]);
    let Some(Response::ResponsePut(put)) = &r.responses[2].response else {
        panic!("a put");
    };
    let only_revision = crate::apply::txn::header(3);
    assert_eq!(
        put.header,
        Some(only_revision),
        "sub-headers name the revision alone"
    );
}

#[test]
fn rule_4_5_a_pinned_range_reads_the_past_even_after_a_change() {
    let kv = kv();
    kv.set("k", "1");
    kv.set("k", "2");
    let pinned = |revision| {
        op_range(pb::RangeRequest {
            revision,
            ..range_of("k")
        })
    };
    let r = kv
        .run(vec![op(put_of("k", "3")), pinned(2), pinned(3), pinned(0)])
        .unwrap();
    let values: Vec<String> = r.responses[1..]
        .iter()
        .map(|r| match &r.response {
            Some(Response::ResponseRange(r)) => text(&r.kvs[0].value),
            _ => panic!("a range"),
        })
        .collect();
    assert_eq!(values, ["1", "2", "3"]);
}

#[test]
fn rule_4_6_the_taken_path_is_checked_against_the_state_before() {
    let kv = kv();
    kv.set("k", "v");
    kv.set("k", "v");
    let keep = |key: &str| {
        op_put(pb::PutRequest {
            ignore_value: true,
            ..put_of(key, "")
        })
    };
    let with_lease = op_put(pb::PutRequest {
        lease: 5,
        ..put_of("l", "")
    });
    let pinned = |revision| {
        op_range(pb::RangeRequest {
            revision,
            ..range_of("k")
        })
    };
    let write = || op(put_of("w", ""));
    assert_eq!(
        kv.run(vec![write(), with_lease.clone()]),
        Err(errors::LEASE_NOT_FOUND)
    );
    assert_eq!(
        kv.run(vec![write(), nested(vec![keep("none")])]),
        Err(errors::KEY_NOT_FOUND)
    );
    assert_eq!(kv.run(vec![write(), pinned(4)]), Err(errors::FUTURE_REV));
    assert_eq!(
        kv.run(vec![pinned(4)]),
        Err(errors::FUTURE_REV),
        "read-only too"
    );
    assert_eq!(kv.revision(), 3, "a failed check leaves no effect");
    // The branch not taken is not checked.
    kv.txn(pb::TxnRequest {
        compare: vec![cmp_version("k", 2)],
        success: vec![write()],
        failure: vec![with_lease],
    })
    .unwrap();
    // Creating the key earlier in the transaction does not help: it is not there before.
    let created = kv.run(vec![
        nested(vec![op(put_of("fresh", "v"))]),
        nested(vec![op(delete_of("fresh", ""))]),
        keep("fresh"),
    ]);
    assert_eq!(created, Err(errors::DUPLICATE_KEY));
}

#[test]
fn rule_4_6_negative_revisions_in_a_txn() {
    let kv = kv();
    kv.set("k", "v");
    let at = |revision| {
        kv.run(vec![op_range(pb::RangeRequest {
            revision,
            ..range_of("k")
        })])
        .map(|r| r.responses.len())
    };
    assert_eq!(at(-1), Ok(1), "the compact revision starts at -1");
    assert_eq!(at(-5), Err(errors::COMPACTED));
    kv.compact(0, false).unwrap();
    assert_eq!(at(-1), Err(errors::COMPACTED));
    assert_eq!(at(0), Ok(1));
}

#[test]
fn rule_4_7_a_kept_value_deleted_earlier_in_the_txn_is_refused_without_effect() {
    let kv = kv();
    kv.set("k", "v");
    let keep = op_put(pb::PutRequest {
        ignore_value: true,
        ..put_of("k", "")
    });
    let all = || op(delete_of("a", "\0"));
    let before = kv.node().engine().view().rolling_hash();
    assert_eq!(
        kv.run(vec![all(), keep.clone()]),
        Err(errors::KEY_NOT_FOUND)
    );
    assert_eq!(kv.revision(), 2);
    assert_eq!(kv.node().engine().view().rolling_hash(), before);
    // In the other order nothing is wrong.
    kv.run(vec![keep, all()]).unwrap();
    assert!(kv.keys().is_empty());
}

#[test]
fn rule_4_8_read_only_txns_make_no_log_entry() {
    let kv = five();
    let node = kv.node();
    let applied = node.status().applied;
    let reads = || node.reads.load(Ordering::Relaxed);
    let r = kv
        .run(vec![op(range_of("a")), op(between("a", "c"))])
        .unwrap();
    assert_eq!((r.responses.len(), reads()), (2, 1));
    let serializable = op_range(pb::RangeRequest {
        serializable: true,
        ..range_of("a")
    });
    kv.run(vec![serializable]).unwrap();
    kv.holds(cmp_version("a", 1));
    assert_eq!(reads(), 1, "serializable and compare-only are local");
    assert_eq!(node.status().applied, applied);
    // A nested transaction, even one that only reads, goes through the log.
    kv.run(vec![nested(vec![op(range_of("a"))])]).unwrap();
    assert_eq!(node.status().applied, applied + 1);
}

#[test]
fn rule_4_9_responses_follow_the_taken_branch() {
    let kv = kv();
    let r = kv
        .txn(pb::TxnRequest {
            compare: vec![cmp_version("k", 1)],
            success: vec![op(range_of("k"))],
            failure: vec![op(put_of("k", "v")), op(range_of("k"))],
        })
        .unwrap();
    assert!(!r.succeeded);
    assert!(matches!(
        r.responses[0].response,
        Some(Response::ResponsePut(_))
    ));
    assert!(matches!(
        r.responses[1].response,
        Some(Response::ResponseRange(_))
    ));
}

// 5. Compact.

#[test]
fn rule_5_1_which_revisions_can_be_compacted() {
    let kv = five();
    let ok = |r: Result<pb::CompactionResponse, Status>| r.map(|_| ());
    assert_eq!(ok(kv.compact(-1, false)), Err(errors::COMPACTED));
    assert_eq!(ok(kv.compact(0, false)), Ok(()));
    assert_eq!(ok(kv.compact(0, false)), Err(errors::COMPACTED));
    assert_eq!(ok(kv.compact(7, false)), Err(errors::FUTURE_REV));
    assert_eq!(ok(kv.compact(6, false)), Ok(()));
    assert_eq!(ok(kv.compact(6, false)), Err(errors::COMPACTED));
    assert_eq!(ok(kv.compact(3, false)), Err(errors::COMPACTED));
}

#[test]
fn rule_5_2_and_5_3_what_a_compaction_leaves() {
    for physical in [false, true] {
        let kv = kv();
        kv.set("k", "1");
        kv.set("k", "2");
        kv.set("gone", "1");
        kv.delete(delete_of("gone", "")).unwrap();
        kv.set("k", "3");
        kv.compact(5, physical).unwrap();
        assert_eq!(kv.keys(), ["k"]);
        let at = |revision| {
            kv.range(pb::RangeRequest {
                revision,
                ..range_all()
            })
            .map(|r| (keys(&r), text(&r.kvs[0].value)))
        };
        assert_eq!(at(5).unwrap(), (vec!["k".to_owned()], "2".to_owned()));
        assert_eq!(at(6).unwrap().1, "3");
        assert_eq!(at(4), Err(errors::COMPACTED));
        if physical {
            assert_eq!(kv.node().engine().view().compact_done(), 5);
        }
    }
}

#[test]
fn rule_5_2_a_key_deleted_and_written_in_one_revision_survives_its_compaction() {
    // etcd 3.6.14 drops the new version here and crashes when it is read.
    for physical in [false, true] {
        let kv = kv();
        kv.set("e", "old");
        kv.run(vec![op(delete_of("a", "\0")), op(put_of("e", "new"))])
            .unwrap();
        kv.compact(3, physical).unwrap();
        let e = kv.one("e").unwrap();
        assert_eq!((text(&e.value), e.create_revision), ("new".into(), 3));
        assert_eq!(kv.set("e", "newer"), 4);
    }
}

// 7. Alarms.

fn txn_with(ops: Vec<pb::RequestOp>, in_failure: bool) -> pb::TxnRequest {
    let mut r = pb::TxnRequest {
        compare: vec![cmp_version("k", i64::from(in_failure))],
        ..Default::default()
    };
    // The branch that holds the operations is not the one that runs.
    *(if in_failure {
        &mut r.success
    } else {
        &mut r.failure
    }) = ops;
    r
}

#[test]
fn rule_7_3_nospace_stops_what_grows_and_nothing_else() {
    let kv = kv();
    kv.set("a", "1");
    kv.set("k", "1");
    kv.grant(1);
    kv.alarm(AlarmAction::Activate, AlarmType::Nospace);
    let put = || op(put_of("n", "v"));
    assert_eq!(kv.put(put_of("n", "v")), Err(errors::NO_SPACE));
    for in_failure in [false, true] {
        let r = txn_with(vec![put()], in_failure);
        assert_eq!(kv.txn(r), Err(errors::NO_SPACE), "in either branch");
    }
    let grant = pb::InternalRaftRequest {
        lease_grant: Some(pb::LeaseGrantRequest { ttl: 5, id: 9 }),
        ..Default::default()
    };
    assert_eq!(kv.node().apply(grant), Err(errors::NO_SPACE));
    kv.run(vec![op(delete_of("a", ""))]).unwrap();
    kv.delete(delete_of("k", "")).unwrap();
    kv.compact(2, true).unwrap();
    kv.range(range_all()).unwrap();
    let revoke = pb::InternalRaftRequest {
        lease_revoke: Some(pb::LeaseRevokeRequest { id: 1 }),
        ..Default::default()
    };
    kv.node().apply(revoke).unwrap();
    let nested_put = nested(vec![put()]);
    assert_eq!(
        kv.run(vec![nested_put]),
        Err(errors::NO_SPACE),
        "at any depth"
    );
    kv.run(vec![nested(vec![op(delete_of("a", ""))])]).unwrap();
    kv.alarm(AlarmAction::Deactivate, AlarmType::Nospace);
    kv.set("n", "v");
}

#[test]
fn rule_7_4_corrupt_stops_every_write() {
    let kv = kv();
    kv.set("a", "1");
    kv.grant(1);
    kv.alarm(AlarmAction::Activate, AlarmType::Corrupt);
    kv.alarm(AlarmAction::Activate, AlarmType::Nospace);
    assert_eq!(
        kv.put(put_of("n", "v")),
        Err(errors::CORRUPT),
        "wins over NOSPACE"
    );
    assert_eq!(kv.delete(delete_of("a", "")), Err(errors::CORRUPT));
    assert_eq!(kv.run(vec![op(delete_of("a", ""))]), Err(errors::CORRUPT));
    assert_eq!(kv.compact(2, false), Err(errors::CORRUPT));
    for request in [
        pb::InternalRaftRequest {
            lease_grant: Some(pb::LeaseGrantRequest { ttl: 5, id: 9 }),
            ..Default::default()
        },
        pb::InternalRaftRequest {
            lease_revoke: Some(pb::LeaseRevokeRequest { id: 1 }),
            ..Default::default()
        },
    ] {
        assert_eq!(kv.node().apply(request), Err(errors::CORRUPT));
    }
    assert_eq!(kv.keys(), ["a"]);
    assert_eq!(kv.run(vec![op(range_of("a"))]).unwrap().responses.len(), 1);
    // A nested read goes through the log, and there it counts as a write.
    let nested_read = nested(vec![op(range_of("a"))]);
    assert_eq!(kv.run(vec![nested_read]), Err(errors::CORRUPT));
    kv.alarm(AlarmAction::Deactivate, AlarmType::Corrupt);
    kv.alarm(AlarmAction::Deactivate, AlarmType::Nospace);
    kv.set("n", "v");
}

#[test]
fn rule_7_3_reaching_the_quota_refuses_before_proposing_and_raises_the_alarm() {
    let kv = kv_with(Limits {
        quota_bytes: Some(1),
        ..Limits::default()
    });
    assert_eq!(kv.put(put_of("k", "v")), Err(errors::NO_SPACE));
    assert_eq!(kv.revision(), 1);
    assert_eq!(kv.node().status().applied, 1, "the alarm, nothing else");
    let alarms = Alarms::load(&kv.node().engine().view()).unwrap();
    assert!(alarms.has(identity().member_id, AlarmType::Nospace));
    assert_eq!(kv.put(put_of("k", "v")), Err(errors::NO_SPACE));
    assert_eq!(kv.node().status().applied, 1, "raised once");
    // Before the shape of the request is looked at.
    assert_eq!(kv.put(put_of("", "v")), Err(errors::NO_SPACE));
    let nested_put = vec![nested(vec![op(put_of("k", "v"))])];
    assert_eq!(kv.run(nested_put), Err(errors::NO_SPACE));
    kv.delete(delete_of("k", "")).unwrap();
    kv.run(vec![op(range_of("k"))]).unwrap();
}

#[test]
fn rule_7_3_at_apply_the_entry_counts_and_only_the_answer_is_nospace() {
    let kv = kv_with(Limits {
        quota_bytes: Some(1),
        ..Limits::default()
    });
    let put = pb::InternalRaftRequest {
        put: Some(put_of("k", "v")),
        ..Default::default()
    };
    assert_eq!(kv.node().apply(put.clone()), Err(errors::NO_SPACE));
    assert_eq!(kv.revision(), 2);
    assert_eq!(kv.keys(), ["k"]);
    // The handler raises the alarm on that answer.
    assert_eq!(block_on(kv.api.propose(put)), Err(errors::NO_SPACE));
    let alarms = Alarms::load(&kv.node().engine().view()).unwrap();
    assert!(alarms.has(identity().member_id, AlarmType::Nospace));
}

#[test]
fn rule_7_3_without_a_quota_nothing_is_refused() {
    let kv = kv_with(Limits {
        quota_bytes: None,
        ..Limits::default()
    });
    kv.set("k", &"v".repeat(100_000));
}

// What comes before the request.

#[test]
fn hasleader_without_a_leader_is_refused() {
    let mut kv = kv();
    kv.node().set_status(|s| s.leader = 0);
    kv.set("k", "v");
    kv.ctx.has_leader = true;
    assert_eq!(kv.put(put_of("k", "v")), Err(errors::NO_LEADER));
    assert_eq!(kv.range(range_of("k")), Err(errors::NO_LEADER));
    assert_eq!(
        kv.put(put_of("", "v")),
        Err(errors::NO_LEADER),
        "before its shape"
    );
}

#[test]
fn rule_6_9_a_learner_serves_serializable_ranges_only() {
    let kv = kv();
    kv.node().set_status(|s| s.is_learner = true);
    let serializable = pb::RangeRequest {
        serializable: true,
        ..range_of("k")
    };
    assert!(kv.range(serializable).is_ok());
    let refused = Err(errors::NOT_SUPPORTED_FOR_LEARNER);
    assert_eq!(kv.range(range_of("k")).map(|_| ()), refused);
    assert_eq!(kv.put(put_of("k", "v")).map(|_| ()), refused);
    assert_eq!(kv.run(vec![]).map(|_| ()), refused);
    assert_eq!(kv.compact(1, false).map(|_| ()), refused);
}

#[test]
fn operations_are_counted_inside_transactions_too() {
    let kv = kv();
    kv.set("k", "v");
    kv.run(vec![
        op(put_of("a", "")),
        op(range_of("a")),
        op(delete_of("x", "")),
    ])
    .unwrap();
    kv.range(range_of("k")).unwrap();
    kv.run(vec![op(range_of("a"))]).unwrap();
    let c = &kv.api.counters;
    assert_eq!((c.puts(), c.deletes(), c.ranges(), c.txns()), (2, 1, 3, 1));
}

#[test]
fn every_error_here_has_the_code_clients_expect() {
    for (status, code) in [
        (errors::EMPTY_KEY, Code::InvalidArgument),
        (errors::COMPACTED, Code::OutOfRange),
        (errors::FUTURE_REV, Code::OutOfRange),
        (errors::NO_SPACE, Code::ResourceExhausted),
        (errors::LEASE_NOT_FOUND, Code::NotFound),
        (errors::CORRUPT, Code::DataLoss),
    ] {
        assert_eq!(status.code, code);
    }
    assert!(matches!(
        op(put_of("k", "v")).request,
        Some(Request::RequestPut(_))
    ));
}
