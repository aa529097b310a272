//! 1: revisions and response headers.

use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::compare::CompareResult;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, alone};
use quorate_tests::table;

table![
    alone(&[]) => [
        r1_1_a_new_store_is_at_revision_1,
    ],
    SERIAL => [
        r1_2_one_request_one_revision,
        r1_2_nothing_else_moves_the_revision,
        r1_3_changes_of_one_request_share_the_main_revision,
        r1_4_versions_and_create_revisions,
        r1_5_header_names_the_answering_member,
        r1_5_header_revision_of_each_rpc,
    ],
];

async fn r1_1_a_new_store_is_at_revision_1(c: Ctx) {
    let response = c.range(c.all()).await;
    let header = response.header.expect("a header");
    assert_eq!(header.revision, 1);
    assert_eq!(header.raft_term, 2, "a member bootstrapped alone");
    let first = c.put(put(c.key("a"), "1")).await;
    assert_eq!(rev(&first.header), 2);
}

async fn r1_2_one_request_one_revision(c: Ctx) {
    let mut at = c.revision().await;
    let mut next = || {
        at += 1;
        at
    };
    c.put_all(&[("a", "1")]).await;
    assert_eq!(c.revision().await, next());
    let three = ["b", "c", "d"].map(|k| put(c.key(k), "1").op());
    c.txn(txn([], three, [])).await;
    assert_eq!(c.revision().await, next(), "a transaction of three puts");
    c.delete(c.delete_all()).await;
    assert_eq!(c.revision().await, next(), "a delete of four keys");
    let lease = c.grant(100, 0).await.id;
    for key in ["x", "y"] {
        let request = pb::PutRequest {
            lease,
            ..put(c.key(key), "1")
        };
        c.put(request).await;
        next();
    }
    c.revoke(lease).await;
    assert_eq!(
        c.revision().await,
        next(),
        "a revoke of a lease on two keys"
    );
}

async fn r1_2_nothing_else_moves_the_revision(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1")]).await;
    let at = c.revision().await;
    let steady = async |what: &str| assert_eq!(c.revision().await, at, "{what}");

    assert_eq!(c.delete(delete(c.key("none"))).await.deleted, 0);
    steady("a delete of nothing").await;
    c.txn(txn([], [range(c.key("a")).op()], [])).await;
    steady("a read-only transaction").await;
    c.txn(txn([version(c.key("a"), CompareResult::Equal, 1)], [], []))
        .await;
    steady("a transaction that only compares").await;
    let guard = [version(c.key("a"), CompareResult::Equal, 7)];
    c.txn(txn(guard, [put(c.key("a"), "2").op()], [])).await;
    steady("a transaction whose put is in the other branch").await;
    c.txn(txn([], [delete(c.key("none")).op()], [])).await;
    steady("a transaction that deletes nothing").await;
    let lease = c.grant(100, 0).await.id;
    steady("a lease grant").await;
    c.revoke(lease).await;
    steady("a revoke of a lease without keys").await;
    c.alarm(AlarmAction::Activate, 77, pb::AlarmType::Nospace)
        .await;
    c.alarm(AlarmAction::Deactivate, 77, pb::AlarmType::Nospace)
        .await;
    steady("alarms").await;
    c.compact(at - 1).await;
    steady("a compaction").await;
    ok(c.try_defragment().await);
    steady("a defragmentation").await;
}

async fn r1_3_changes_of_one_request_share_the_main_revision(c: Ctx) {
    c.put_all(&[("old", "1")]).await;
    let mut watch = c.watching(c.watch_all()).await;
    let ops = [
        put(c.key("b"), "1").op(),
        put(c.key("a"), "1").op(),
        delete(c.key("old")).op(),
        put(c.key("c"), "1").op(),
    ];
    let at = rev(&c.txn(txn([], ops, [])).await.header);
    let events = watch.events(4).await;
    let seen: Vec<(String, i64)> = events
        .iter()
        .map(|e| e.kv.as_ref().expect("a key-value"))
        .map(|kv| (c.name(&kv.key), kv.mod_revision))
        .collect();
    let expected = ["b", "a", "old", "c"].map(|k| (k.to_owned(), at));
    assert_eq!(seen, expected, "in the order of execution");
    assert_eq!(c.get(c.key("c")).await.expect("put").create_revision, at);
}

async fn r1_4_versions_and_create_revisions(c: Ctx) {
    let seen = async || {
        let kv = c.get(c.key("a")).await.expect("the key");
        (kv.create_revision, kv.mod_revision, kv.version)
    };
    let born = rev(&c.put(put(c.key("a"), "1")).await.header);
    assert_eq!(seen().await, (born, born, 1));
    let second = rev(&c.put(put(c.key("a"), "1")).await.header);
    assert_eq!(second, born + 1);
    assert_eq!(seen().await, (born, second, 2), "put on a live key");
    c.delete(delete(c.key("a"))).await;
    assert!(c.get(c.key("a")).await.is_none());
    let again = rev(&c.put(put(c.key("a"), "1")).await.header);
    assert_eq!(seen().await, (again, again, 1), "put after a delete");
}

async fn r1_5_header_names_the_answering_member(c: Ctx) {
    let status = c.status().await;
    let own = status.header.expect("a header");
    assert_ne!(own.member_id, 0);
    assert_ne!(own.cluster_id, 0);
    assert_eq!(own.raft_term, status.raft_term);
    let headers = [
        c.put(put(c.key("a"), "1")).await.header,
        c.range(c.all()).await.header,
        c.delete(c.delete_all()).await.header,
        c.txn(txn([], [], [])).await.header,
        c.grant(100, 0).await.header,
        c.leases().await.header,
        c.compact(c.revision().await).await.header,
        c.alarm(AlarmAction::Get, 0, pb::AlarmType::None)
            .await
            .header,
        ok(c.try_hash_kv(0).await).header,
    ];
    for header in headers {
        let header = header.expect("a header");
        assert_eq!(
            (header.cluster_id, header.member_id, header.raft_term),
            (own.cluster_id, own.member_id, own.raft_term)
        );
    }
}

async fn r1_5_header_revision_of_each_rpc(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    let now = rev(&c.put(put(c.key("b"), "1")).await.header);
    assert_eq!(now, first + 1);
    let historic = pb::RangeRequest {
        revision: first,
        ..c.all()
    };
    assert_eq!(
        rev(&c.range(historic).await.header),
        now,
        "current, not the requested revision"
    );
    assert_eq!(rev(&c.delete(delete(c.key("none"))).await.header), now);
    assert_eq!(rev(&c.delete(delete(c.key("b"))).await.header), now + 1);
    let now = now + 1;
    assert_eq!(
        rev(&c.compact(first).await.header),
        now,
        "not the compacted"
    );
    assert_eq!(rev(&c.txn(txn([], [], [])).await.header), now);
    let ops = [put(c.key("b"), "1").op(), put(c.key("c"), "1").op()];
    assert_eq!(rev(&c.txn(txn([], ops, [])).await.header), now + 1);
    let now = now + 1;
    let lease = c.grant(100, 0).await;
    assert_eq!(rev(&lease.header), now);
    assert_eq!(rev(&c.time_to_live(lease.id).await.header), now);
    assert_eq!(rev(&c.leases().await.header), now);
    let mut keep_alive = c.keep_alive_stream().await;
    keep_alive.send(lease.id).await;
    assert_eq!(rev(&keep_alive.next().await.header), now);
    assert_eq!(rev(&c.revoke(lease.id).await.header), now);
    assert_eq!(rev(&c.status().await.header), now);
    assert_eq!(rev(&ok(c.try_hash_kv(0).await).header), now);
    let hash = c.maintenance.clone().hash(pb::HashRequest {}).await;
    assert_eq!(rev(&ok(hash).into_inner().header), now);
    let alarm = c.alarm(AlarmAction::Get, 0, pb::AlarmType::None).await;
    assert_eq!(rev(&alarm.header), now);
    let members = c
        .cluster
        .clone()
        .member_list(pb::MemberListRequest::default())
        .await;
    assert_eq!(rev(&ok(members).into_inner().header), 0, "cluster calls");
    assert_eq!(
        ok(c.try_defragment().await).header,
        None,
        "no header message at all"
    );
}
