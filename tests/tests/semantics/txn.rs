//! 4: Txn.

use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, alone};
use quorate_tests::table;
use tonic::Code;

use CompareResult::{Equal, Greater, Less, NotEqual};

table![
    SERIAL => [
        r4_1_size_of_each_level,
        r4_1_nested_budget,
        r4_2_empty_transaction,
        r4_2_validation_in_both_branches,
        r4_2_operation_without_a_request,
        r4_3_duplicate_keys,
        r4_3_nested_duplicates,
        r4_3_open_ended_delete_is_not_seen_as_overlap,
        r4_4_compare_operators,
        r4_4_missing_key,
        r4_4_all_compares_must_hold,
        r4_4_union_of_another_target,
        r4_4_compare_over_a_range,
        r4_4_nested_paths_are_decided_beforehand,
        r4_5_operations_see_earlier_effects,
        r4_5_sub_response_headers,
        r4_6_checks_against_the_state_before,
        r4_6_range_revisions,
        r4_8_read_only,
        r4_9_one_response_per_operation,
    ],
    alone(&[]) => [r4_6_negative_revision_before_the_first_compaction],
    SERIAL.ours() => [r4_7_a_put_that_fails_midway_is_refused],
];

const TOO_MANY: &str = "etcdserver: too many operations in txn request";
const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
const NO_KEY: &str = "etcdserver: key is not provided";
const NOT_FOUND: &str = "etcdserver: key not found";

fn sub(response: &pb::TxnResponse, n: usize) -> &Response {
    let op = &response.responses[n];
    op.response.as_ref().expect("a response of some kind")
}

fn nested(response: &pb::TxnResponse, n: usize) -> &pb::TxnResponse {
    match sub(response, n) {
        Response::ResponseTxn(txn) => txn,
        other => panic!("no nested response: {other:?}"),
    }
}

async fn r4_1_size_of_each_level(c: Ctx) {
    let puts = |count: usize| -> Vec<pb::RequestOp> {
        (0..count)
            .map(|n| put(c.key(&n.to_string()), "v").op())
            .collect()
    };
    let compares = |count: usize| vec![version(c.key("a"), Equal, 0); count];
    let too_many = [
        txn(compares(129), [], []),
        txn([], puts(129), []),
        txn([], [], puts(129)),
    ];
    for request in too_many {
        fails(c.try_txn(request).await, Code::InvalidArgument, TOO_MANY);
    }
    // The largest of the three counts, not their sum.
    let response = c.txn(txn(compares(128), puts(128), puts(128))).await;
    assert!(response.succeeded);
    assert_eq!(response.responses.len(), 128);
}

async fn r4_1_nested_budget(c: Ctx) {
    let outer = |inner: usize, own: usize| {
        let deletes = |n: usize| vec![delete(c.key("a")).op(); n];
        let mut ops = deletes(own - 1);
        ops.push(txn([], deletes(inner), []).op());
        txn([], ops, [])
    };
    fails(
        c.try_txn(outer(50, 100)).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    fails(
        c.try_txn(outer(29, 100)).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    assert!(c.txn(outer(28, 100)).await.succeeded, "128 - 100 are left");
    let untaken = txn([], [], outer(50, 100).success);
    fails(c.try_txn(untaken).await, Code::InvalidArgument, TOO_MANY);
}

async fn r4_2_empty_transaction(c: Ctx) {
    let at = c.revision().await;
    let response = c.txn(txn([], [], [])).await;
    assert!(response.succeeded);
    assert!(response.responses.is_empty());
    assert_eq!(rev(&response.header), at);
}

async fn r4_2_validation_in_both_branches(c: Ctx) {
    let cases = [
        (put("", "v").op(), NO_KEY),
        (range("").op(), NO_KEY),
        (delete("").op(), NO_KEY),
        (
            pb::PutRequest {
                ignore_value: true,
                ..put(c.key("a"), "v")
            }
            .op(),
            "etcdserver: value is provided",
        ),
        (
            pb::PutRequest {
                ignore_lease: true,
                lease: 3,
                ..put(c.key("a"), "v")
            }
            .op(),
            "etcdserver: lease is provided",
        ),
    ];
    for (op, text) in cases {
        for request in [
            txn([], [op.clone()], []),
            txn([], [], [op.clone()]),
            txn([], [txn([], [], [op.clone()]).op()], []),
        ] {
            fails(c.try_txn(request).await, Code::InvalidArgument, text);
        }
    }
    let no_key = txn([version("", Equal, 0)], [], []);
    fails(c.try_txn(no_key).await, Code::InvalidArgument, NO_KEY);
}

async fn r4_2_operation_without_a_request(c: Ctx) {
    let request = txn([], [pb::RequestOp { request: None }], []);
    fails(c.try_txn(request).await, Code::InvalidArgument, NOT_FOUND);
}

async fn r4_3_duplicate_keys(c: Ctx) {
    let a = || put(c.key("a"), "v").op();
    let refused = [
        vec![a(), a()],
        vec![a(), delete(c.key("a")).op()],
        vec![delete(c.key("a")).op(), a()],
        vec![a(), c.delete_all().op()],
        vec![delete_span(c.key("a"), c.key("b")).op(), a()],
    ];
    for ops in refused {
        let taken = txn([], ops.clone(), []);
        fails(c.try_txn(taken).await, Code::InvalidArgument, DUPLICATE);
        let untaken = txn([], [], ops);
        fails(c.try_txn(untaken).await, Code::InvalidArgument, DUPLICATE);
    }
    let accepted = [
        txn([], [a()], [a()]),
        txn([], [c.delete_all().op(), delete(c.key("a")).op()], []),
        txn([], [a(), delete_span(c.key("b"), c.key("c")).op()], []),
        txn([], [a(), delete_span(c.key(""), c.key("a")).op()], []),
        txn([], [a(), range(c.key("a")).op()], []),
    ];
    for request in accepted {
        assert!(c.txn(request).await.succeeded);
    }
}

async fn r4_3_nested_duplicates(c: Ctx) {
    let a = || put(c.key("a"), "v").op();
    let del = || delete(c.key("a")).op();
    let then = |op: pb::RequestOp| txn([], [op], []).op();
    let other = |op: pb::RequestOp| txn([], [], [op]).op();
    let refused = [
        ("siblings put, different sides", vec![then(a()), other(a())]),
        ("parent puts, nested puts", vec![a(), then(a())]),
        ("parent puts, nested deletes", vec![a(), then(del())]),
        ("parent deletes, nested puts", vec![del(), then(a())]),
        (
            "sibling deletes, then sibling puts",
            vec![then(del()), then(a())],
        ),
    ];
    for (what, ops) in refused {
        let result = c.try_txn(txn([], ops, [])).await;
        assert!(result.is_err(), "{what}");
        fails(result, Code::InvalidArgument, DUPLICATE);
    }
    let accepted = [
        ("both sides of one", vec![txn([], [a()], [a()]).op()]),
        (
            "sibling puts, then sibling deletes",
            vec![then(a()), then(del())],
        ),
        ("another key", vec![put(c.key("b"), "v").op(), then(del())]),
    ];
    for (what, ops) in accepted {
        let result = c.try_txn(txn([], ops, [])).await;
        assert!(result.is_ok(), "{what}: {result:?}");
    }
}

async fn r4_3_open_ended_delete_is_not_seen_as_overlap(c: Ctx) {
    // Every other key of this server sorts before "~".
    let ops = [put("~k", "v").op(), delete_span("~", "\0").op()];
    let response = c.txn(txn([], ops, [])).await;
    match sub(&response, 1) {
        Response::ResponseDeleteRange(deleted) => assert_eq!(deleted.deleted, 1),
        other => panic!("{other:?}"),
    }
    assert!(
        c.get("~k").await.is_none(),
        "put and deleted in one revision"
    );
}

async fn r4_4_compare_operators(c: Ctx) {
    let lease_id = c.grant(100, 0).await.id;
    c.put_all(&[("a", "m")]).await;
    let request = pb::PutRequest {
        lease: lease_id,
        ..put(c.key("a"), "m")
    };
    c.put(request).await;
    let kv = c.get(c.key("a")).await.expect("the key");
    let holds = async |compare: pb::Compare| c.txn(txn([compare], [], [])).await.succeeded;
    type Make = fn(bytes::Bytes, CompareResult, i64) -> pb::Compare;
    let numbers: [(Make, i64); 4] = [
        (version, kv.version),
        (create, kv.create_revision),
        (modified, kv.mod_revision),
        (lease, kv.lease),
    ];
    for (make, actual) in numbers {
        for (result, below, same, above) in [
            (Equal, false, true, false),
            (Greater, true, false, false),
            (Less, false, false, true),
            (NotEqual, true, false, true),
        ] {
            let row = [
                holds(make(c.key("a"), result, actual - 1)).await,
                holds(make(c.key("a"), result, actual)).await,
                holds(make(c.key("a"), result, actual + 1)).await,
            ];
            assert_eq!(row, [below, same, above], "{result:?} of {actual}");
        }
    }
    for (result, row) in [
        (Equal, [false, true, false, false]),
        (Greater, [true, false, false, true]),
        (Less, [false, false, true, false]),
        (NotEqual, [true, false, true, true]),
    ] {
        for (constant, expected) in ["l", "m", "ma", ""].into_iter().zip(row) {
            let got = holds(value(c.key("a"), result, constant)).await;
            assert_eq!(got, expected, "m {result:?} {constant:?}");
        }
    }
    let unknown = pb::Compare {
        result: 99,
        ..version(c.key("a"), Equal, 1234)
    };
    assert!(holds(unknown).await, "an unknown operator is satisfied");
}

async fn r4_4_missing_key(c: Ctx) {
    let key = || c.key("none");
    let holds = async |compare: pb::Compare| c.txn(txn([compare], [], [])).await.succeeded;
    for make in [version, create, modified, lease] {
        assert!(holds(make(key(), Equal, 0)).await, "compared as zero");
        assert!(holds(make(key(), Less, 1)).await);
        assert!(!holds(make(key(), Greater, 0)).await);
        assert!(!holds(make(key(), NotEqual, 0)).await);
    }
    for result in [Equal, Greater, Less, NotEqual] {
        assert!(!holds(value(key(), result, "")).await, "{result:?}");
        assert!(!holds(value(key(), result, "x")).await, "{result:?}");
    }
}

async fn r4_4_all_compares_must_hold(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1")]).await;
    let both = |n: i64| {
        txn(
            [version(c.key("a"), Equal, 1), version(c.key("b"), Equal, n)],
            [put(c.key("r"), "success").op()],
            [put(c.key("r"), "failure").op()],
        )
    };
    assert!(c.txn(both(1)).await.succeeded);
    assert_eq!(c.get(c.key("r")).await.expect("put").value, "success");
    assert!(!c.txn(both(2)).await.succeeded);
    assert_eq!(c.get(c.key("r")).await.expect("put").value, "failure");
}

async fn r4_4_union_of_another_target(c: Ctx) {
    c.put_all(&[("a", "1")]).await;
    let holds = async |compare: pb::Compare| c.txn(txn([compare], [], [])).await.succeeded;
    let no_union = |result, target| compare(c.key("a"), result, None, target);
    assert!(!holds(no_union(Equal, CompareTarget::Version)).await);
    assert!(holds(no_union(Greater, CompareTarget::Version)).await);
    assert!(holds(no_union(Greater, CompareTarget::Value)).await);
    let other = TargetUnion::ModRevision(1);
    let mixed = compare(c.key("a"), Equal, other, CompareTarget::Version);
    assert!(!holds(mixed).await, "compared with zero, not with one");
    let other = TargetUnion::Version(1);
    let mixed = compare(c.key("none"), Equal, other, CompareTarget::Mod);
    assert!(holds(mixed).await, "compared with zero, not with one");
}

async fn r4_4_compare_over_a_range(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1"), ("b", "2")]).await;
    let over = |compare: pb::Compare, end: bytes::Bytes| pb::Compare {
        range_end: end,
        ..compare
    };
    let holds = async |compare: pb::Compare| c.txn(txn([compare], [], [])).await.succeeded;
    let at_least_one = version(c.key("a"), Greater, 0);
    assert!(holds(over(at_least_one.clone(), c.key("c"))).await);
    assert!(!holds(over(version(c.key("a"), Equal, 1), c.key("c"))).await);
    assert!(holds(over(version(c.key("a"), Equal, 1), c.key("b"))).await);
    // A range without keys is as a missing key.
    assert!(!holds(over(version(c.key("x"), Greater, 0), c.key("y"))).await);
    assert!(holds(over(version(c.key("x"), Equal, 0), c.key("y"))).await);
    assert!(!holds(over(value(c.key("x"), NotEqual, "1"), c.key("y"))).await);
}

async fn r4_4_nested_paths_are_decided_beforehand(c: Ctx) {
    let guard = [version(c.key("a"), Equal, 0)];
    let inner = txn(
        guard,
        [put(c.key("r"), "absent").op()],
        [put(c.key("r"), "present").op()],
    );
    let response = c
        .txn(txn([], [put(c.key("a"), "1").op(), inner.op()], []))
        .await;
    assert!(
        nested(&response, 1).succeeded,
        "the put before it does not count"
    );
    assert_eq!(c.get(c.key("r")).await.expect("put").value, "absent");
}

async fn r4_5_operations_see_earlier_effects(c: Ctx) {
    c.put_all(&[("b", "1")]).await;
    let ops = [
        put(c.key("a"), "1").op(),
        c.all().op(),
        delete(c.key("b")).op(),
        c.all().op(),
        txn([], [c.all().op()], []).op(),
    ];
    let response = c.txn(txn([], ops, [])).await;
    let seen = |n: usize| match sub(&response, n) {
        Response::ResponseRange(r) => c.names(&r.kvs).concat(),
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(1), "ab");
    assert_eq!(seen(3), "a");
    match sub(nested(&response, 4), 0) {
        Response::ResponseRange(r) => assert_eq!(c.names(&r.kvs), ["a"]),
        other => panic!("{other:?}"),
    }
}

async fn r4_5_sub_response_headers(c: Ctx) {
    c.put_all(&[("b", "1")]).await;
    let begin = c.revision().await;
    let ops = [
        c.all().op(),
        delete(c.key("none")).op(),
        put(c.key("a"), "1").op(),
        c.all().op(),
        delete(c.key("none")).op(),
        delete(c.key("b")).op(),
        txn([], [put(c.key("n"), "1").op()], []).op(),
    ];
    let response = c.txn(txn([], ops, [])).await;
    assert_eq!(rev(&response.header), begin + 1);
    let revision = |op: &Response| match op {
        Response::ResponseRange(r) => rev(&r.header),
        Response::ResponsePut(r) => rev(&r.header),
        Response::ResponseDeleteRange(r) => rev(&r.header),
        Response::ResponseTxn(r) => rev(&r.header),
    };
    let revisions: Vec<i64> = (0..7).map(|n| revision(sub(&response, n))).collect();
    let next = begin + 1;
    assert_eq!(revisions, [begin, begin, next, next, next, next, 0]);
    let inner = nested(&response, 6);
    assert_eq!(
        inner.header,
        Some(pb::ResponseHeader::default()),
        "an empty header message"
    );
    assert_eq!(revision(sub(inner, 0)), next);
    // The headers inside carry the revision alone.
    match sub(&response, 2) {
        Response::ResponsePut(put) => {
            let header = put.header.expect("a header");
            assert_eq!(
                (header.member_id, header.cluster_id, header.raft_term),
                (0, 0, 0)
            );
        }
        other => panic!("{other:?}"),
    }
}

async fn r4_6_checks_against_the_state_before(c: Ctx) {
    let at = c.revision().await;
    let lease = pb::PutRequest {
        lease: 987654321,
        ..put(c.key("b"), "v")
    };
    let request = txn([], [put(c.key("a"), "v").op(), lease.op()], []);
    fails(
        c.try_txn(request).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    let ignore = pb::PutRequest {
        ignore_value: true,
        ..put(c.key("b"), "")
    };
    let create_first = txn([], [put(c.key("b"), "v").op()], []);
    let request = txn([], [ignore.clone().op()], []);
    fails(c.try_txn(request).await, Code::InvalidArgument, NOT_FOUND);
    // Not the state a delete in the same transaction would leave, nor a put in a nested one.
    let inside = txn([], [c.all().op(), ignore.clone().op()], []);
    fails(c.try_txn(inside).await, Code::InvalidArgument, NOT_FOUND);
    assert_eq!(c.revision().await, at, "no effect");
    assert_eq!(c.range(c.all()).await.count, 0, "no effect");
    // An operation of the branch not taken is not checked.
    let untaken = txn([version(c.key("b"), Equal, 0)], [], [ignore.op()]);
    assert!(c.txn(untaken).await.succeeded);
    c.txn(create_first).await;
}

async fn r4_6_range_revisions(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    c.put_all(&[("a", "2"), ("a", "3")]).await;
    c.compact(first + 1).await;
    let at = |revision: i64| {
        let read = pb::RangeRequest {
            revision,
            ..range(c.key("a"))
        };
        c.try_txn(txn([], [put(c.key("b"), "v").op(), read.op()], []))
    };
    let future = "etcdserver: mvcc: required revision is a future revision";
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    fails(at(first + 3).await, Code::OutOfRange, future);
    fails(at(first).await, Code::OutOfRange, compacted);
    fails(at(-1).await, Code::OutOfRange, compacted);
    fails(at(-5).await, Code::OutOfRange, compacted);
    assert!(c.get(c.key("b")).await.is_none(), "no effect");
    let response = ok(at(first + 1).await);
    match sub(&response, 1) {
        Response::ResponseRange(r) => assert_eq!(r.kvs[0].value, "2"),
        other => panic!("{other:?}"),
    }
}

async fn r4_6_negative_revision_before_the_first_compaction(c: Ctx) {
    c.put_all(&[("a", "1")]).await;
    let at = |revision: i64| {
        let read = pb::RangeRequest {
            revision,
            ..range(c.key("a"))
        };
        c.try_txn(txn([], [read.op()], []))
    };
    match sub(&ok(at(-1).await), 0) {
        Response::ResponseRange(r) => assert_eq!(r.kvs.len(), 1),
        other => panic!("{other:?}"),
    }
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    fails(at(-5).await, Code::OutOfRange, compacted);
}

async fn r4_7_a_put_that_fails_midway_is_refused(c: Ctx) {
    c.put(put("~k", "v")).await;
    let at = c.revision().await;
    let rewrite = pb::PutRequest {
        ignore_value: true,
        ..put("~k", "")
    };
    let request = txn([], [delete_span("~", "\0").op(), rewrite.op()], []);
    fails(c.try_txn(request).await, Code::InvalidArgument, NOT_FOUND);
    assert_eq!(c.revision().await, at, "no effect");
    assert_eq!(c.get("~k").await.expect("still there").value, "v");
    c.delete(delete("~k")).await;
}

async fn r4_8_read_only(c: Ctx) {
    c.put_all(&[("a", "1")]).await;
    let index = c.status().await.raft_index;
    let read = |serializable: bool| pb::RangeRequest {
        serializable,
        ..range(c.key("a"))
    };
    for request in [
        txn([version(c.key("a"), Equal, 1)], [read(false).op()], []),
        txn([version(c.key("a"), Equal, 1)], [read(true).op()], []),
        txn([version(c.key("a"), Equal, 1)], [], []),
    ] {
        assert!(c.txn(request).await.succeeded);
    }
    assert_eq!(c.status().await.raft_index, index, "raft is not used");
    let guard = [version(c.key("a"), Equal, 1)];
    let reads_now = txn(guard, [read(false).op()], [put(c.key("a"), "2").op()]);
    assert!(c.txn(reads_now).await.succeeded);
    assert!(
        c.status().await.raft_index > index,
        "a put in either branch goes through raft"
    );
}

async fn r4_9_one_response_per_operation(c: Ctx) {
    let failure = [
        put(c.key("a"), "1").op(),
        range(c.key("a")).op(),
        delete(c.key("b")).op(),
        txn([], [], []).op(),
    ];
    let guard = [version(c.key("a"), Equal, 7)];
    let response = c.txn(txn(guard, [], failure)).await;
    assert!(!response.succeeded);
    let kinds: Vec<&str> = (0..response.responses.len())
        .map(|n| match sub(&response, n) {
            Response::ResponsePut(_) => "put",
            Response::ResponseRange(_) => "range",
            Response::ResponseDeleteRange(_) => "delete",
            Response::ResponseTxn(_) => "txn",
        })
        .collect();
    assert_eq!(kinds, ["put", "range", "delete", "txn"]);
    assert!(nested(&response, 3).succeeded);
}
