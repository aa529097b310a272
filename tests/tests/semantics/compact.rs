//! 5: Compact.

use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, alone};
use quorate_tests::table;
use tonic::Code;

table![
    SERIAL => [
        r5_1_bounds,
        r5_1_allowed_under_nospace,
        r5_2_what_is_kept,
        r5_3_physical,
        r5_4_synced_watches_live_on,
    ],
    alone(&[]) => [r5_1_zero_succeeds_once, r5_3_a_compaction_survives_a_crash],
    alone(&["--compaction-batch-limit=10"]) => [r5_3_a_sweep_is_resumed_after_a_crash],
];

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

async fn r5_1_bounds(c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    let now = c.revision().await;
    let to = |revision| c.try_compact(revision, false);
    fails(to(now + 1).await, Code::OutOfRange, FUTURE);
    ok(to(now - 1).await);
    fails(to(now - 1).await, Code::OutOfRange, COMPACTED);
    fails(to(now - 2).await, Code::OutOfRange, COMPACTED);
    fails(to(0).await, Code::OutOfRange, COMPACTED);
    fails(to(-3).await, Code::OutOfRange, COMPACTED);
    let response = ok(to(now).await);
    assert_eq!(rev(&response.header), now);
}

async fn r5_1_zero_succeeds_once(c: Ctx) {
    ok(c.try_compact(0, false).await);
    fails(c.try_compact(0, false).await, Code::OutOfRange, COMPACTED);
    fails(c.try_compact(2, false).await, Code::OutOfRange, FUTURE);
    ok(c.try_compact(1, false).await);
}

async fn r5_1_allowed_under_nospace(c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    let now = c.revision().await;
    let alarm = pb::AlarmType::Nospace;
    c.alarm(AlarmAction::Activate, 77, alarm).await;
    let result = c.try_compact(now, false).await;
    c.alarm(AlarmAction::Deactivate, 77, alarm).await;
    ok(result);
}

async fn r5_2_what_is_kept(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    // +1 a=2, +2 b=1, +3 delete b, +4 a=3, +5 c=1
    c.put_all(&[("a", "2"), ("b", "1")]).await;
    c.delete(delete(c.key("b"))).await;
    c.put_all(&[("a", "3"), ("c", "1")]).await;
    c.compact(first + 3).await;
    let at = |revision| {
        c.try_range(pb::RangeRequest {
            revision,
            ..c.all()
        })
    };
    fails(at(first + 2).await, Code::OutOfRange, COMPACTED);
    let kept = ok(at(first + 3).await);
    assert_eq!(c.names(&kept.kvs), ["a"], "b was deleted");
    assert_eq!(
        (kept.kvs[0].value.as_ref(), kept.kvs[0].mod_revision),
        (&b"2"[..], first + 1),
        "the newest version not above the compacted revision"
    );
    let newer = ok(at(first + 4).await);
    assert_eq!(newer.kvs[0].value, "3");
    assert_eq!(newer.kvs[0].version, 3);
    assert_eq!(c.names(&ok(at(0).await).kvs), ["a", "c"]);
}

async fn r5_3_physical(c: Ctx) {
    for n in 0..200 {
        c.put(put(c.key("a"), n.to_string())).await;
    }
    let now = c.revision().await;
    let response = ok(c.try_compact(now, true).await);
    assert_eq!(rev(&response.header), now);
    fails(
        c.try_range(pb::RangeRequest {
            revision: now - 1,
            ..range(c.key("a"))
        })
        .await,
        Code::OutOfRange,
        COMPACTED,
    );
    assert_eq!(c.get(c.key("a")).await.expect("kept").value, "199");
}

async fn r5_3_a_compaction_survives_a_crash(mut c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2"), ("a", "3")]).await;
    let now = c.revision().await;
    c.compact(now - 1).await;
    c.crash_and_restart().await;
    assert_eq!(c.revision().await, now);
    let at = |revision| {
        c.try_range(pb::RangeRequest {
            revision,
            ..c.all()
        })
    };
    fails(at(now - 2).await, Code::OutOfRange, COMPACTED);
    assert_eq!(ok(at(now - 1).await).kvs[0].value, "2");
    fails(
        c.try_compact(now - 1, false).await,
        Code::OutOfRange,
        COMPACTED,
    );
}

async fn r5_3_a_sweep_is_resumed_after_a_crash(mut c: Ctx) {
    for n in 0..300 {
        c.put(put(c.key("a"), n.to_string())).await;
    }
    let now = c.revision().await;
    // Ten entries at a time: killed most likely in the middle; either way the result must be the same.
    c.compact(now - 5).await;
    let before = ok(c.try_hash_kv(now).await).hash;
    c.crash_and_restart().await;
    assert_eq!(ok(c.try_hash_kv(now).await).hash, before);
    let request = pb::RangeRequest {
        revision: now - 5,
        ..c.all()
    };
    assert_eq!(c.range(request).await.kvs[0].value, "294");
    ok(c.try_compact(now, true).await);
    assert_eq!(c.get(c.key("a")).await.expect("kept").value, "299");
}

/// What becomes of a watch that had not caught up is rule 6W.4.
async fn r5_4_synced_watches_live_on(c: Ctx) {
    let mut watch = c.watching(c.watch_all()).await;
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    watch.events(2).await;
    c.compact(c.revision().await).await;
    c.put_all(&[("a", "3")]).await;
    let events = watch.events(1).await;
    assert_eq!(events[0].kv.as_ref().expect("a pair").value, "3");
}
