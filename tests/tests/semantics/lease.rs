//! 5L: Lease.

use std::time::{Duration, Instant};

use quorate_proto::etcdserverpb as pb;
use quorate_proto::mvccpb::event::EventType;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, TOGETHER, alone};
use quorate_tests::table;
use tonic::Code;

table![
    SERIAL => [
        r5l_1_ids,
        r5l_2_revoke_deletes_in_key_order,
    ],
    TOGETHER => [
        r5l_1_ttl_bounds,
        r5l_1_existing_id,
        r5l_2_revoke_unknown,
        r5l_3_keep_alive,
        r5l_3_keep_alive_unknown,
        r5l_3_keep_alive_keeps_alive,
        r5l_4_time_to_live,
        r5l_6_expiry_deletes_the_keys,
        r5l_6_expiry_of_many,
    ],
    alone(&[]) => [
        r5l_1_blocked_by_alarms,
        r5l_5_leases_by_remaining_time,
        r5l_7_a_restart_gives_the_full_ttl,
        r5l_8_leases_and_attachments_survive_a_crash,
    ],
];

const NOT_FOUND: &str = "etcdserver: requested lease not found";

async fn put_on(c: &Ctx, lease: i64, name: &str) {
    let request = pb::PutRequest {
        lease,
        ..put(c.key(name), "v")
    };
    c.put(request).await;
}

async fn r5l_1_ids(c: Ctx) {
    let picked = c.grant(100, 0).await;
    assert!(picked.id > 0, "picked: positive");
    assert_eq!((picked.ttl, picked.error.as_str()), (100, ""));
    let member = picked.header.expect("a header").member_id;
    assert_eq!(
        picked.id >> 48,
        ((member & 0x7fff) as i64),
        "the low bits of the member id on top"
    );
    let other = c.grant(100, 0).await.id;
    assert_ne!(other, picked.id);
    for id in [-5, 1, i64::MAX, i64::MIN] {
        assert_eq!(c.grant(100, id).await.id, id, "as given");
        c.revoke(id).await;
    }
}

async fn r5l_1_ttl_bounds(c: Ctx) {
    let ttl = async |asked: i64| {
        let lease = c.grant(asked, 0).await;
        let known = c.time_to_live(lease.id).await;
        assert_eq!(known.granted_ttl, lease.ttl);
        lease.ttl
    };
    // ceil(1.5 x the election timeout of 1 s)
    assert_eq!(ttl(1).await, 2);
    assert_eq!(ttl(0).await, 2);
    assert_eq!(ttl(-100).await, 2);
    assert_eq!(ttl(3).await, 3);
    assert_eq!(ttl(9_000_000_000).await, 9_000_000_000);
    fails(
        c.try_grant(9_000_000_001, 0).await,
        Code::OutOfRange,
        "etcdserver: too large lease TTL",
    );
}

async fn r5l_1_existing_id(c: Ctx) {
    let id = c.grant(100, 0).await.id;
    fails(
        c.try_grant(50, id).await,
        Code::FailedPrecondition,
        "etcdserver: lease already exists",
    );
    assert_eq!(c.time_to_live(id).await.granted_ttl, 100, "unchanged");
}

async fn r5l_1_blocked_by_alarms(c: Ctx) {
    use pb::alarm_request::AlarmAction;
    let lease = c.grant(100, 0).await.id;
    c.alarm(AlarmAction::Activate, 77, pb::AlarmType::Nospace)
        .await;
    fails(
        c.try_grant(100, 0).await,
        Code::ResourceExhausted,
        "etcdserver: mvcc: database space exceeded",
    );
    c.revoke(lease).await;
    c.alarm(AlarmAction::Deactivate, 77, pb::AlarmType::Nospace)
        .await;
    c.grant(100, lease).await;
    c.alarm(AlarmAction::Activate, 77, pb::AlarmType::Corrupt)
        .await;
    let text = "etcdserver: corrupt cluster";
    fails(c.try_grant(100, 0).await, Code::DataLoss, text);
    fails(c.try_revoke(lease).await, Code::DataLoss, text);
}

async fn r5l_2_revoke_unknown(c: Ctx) {
    for id in [987654321, 0, -1] {
        fails(c.try_revoke(id).await, Code::NotFound, NOT_FOUND);
    }
    let id = c.grant(100, 0).await.id;
    c.revoke(id).await;
    fails(c.try_revoke(id).await, Code::NotFound, NOT_FOUND);
}

async fn r5l_2_revoke_deletes_in_key_order(c: Ctx) {
    let lease = c.grant(100, 0).await.id;
    for name in ["c", "a", "b"] {
        put_on(&c, lease, name).await;
    }
    c.put_all(&[("d", "stays")]).await;
    let mut watch = c.watching(c.watch_all()).await;
    let at = c.revision().await;
    let response = c.revoke(lease).await;
    assert_eq!(rev(&response.header), at + 1);
    let answer = watch.next().await;
    let gone: Vec<_> = answer
        .events
        .iter()
        .inspect(|e| assert_eq!(e.r#type(), EventType::Delete))
        .map(|e| e.kv.as_ref().expect("a key"))
        .inspect(|kv| assert_eq!(kv.mod_revision, at + 1))
        .map(|kv| c.name(&kv.key))
        .collect();
    assert_eq!(gone, ["a", "b", "c"]);
    assert_eq!(c.names(&c.range(c.all()).await.kvs), ["d"]);
}

async fn r5l_3_keep_alive(c: Ctx) {
    let one = c.grant(100, 0).await.id;
    let two = c.grant(200, 0).await.id;
    let mut stream = c.keep_alive_stream().await;
    for id in [one, two, 987654321, one] {
        stream.send(id).await;
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let answer = stream.next().await;
        assert!(rev(&answer.header) > 0);
        answers.push((answer.id, answer.ttl));
    }
    let expected = [(one, 100), (two, 200), (987654321, 0), (one, 100)];
    assert_eq!(answers, expected, "one per request, in order");
}

async fn r5l_3_keep_alive_unknown(c: Ctx) {
    let id = c.grant(100, 0).await.id;
    let mut stream = c.keep_alive_stream().await;
    stream.send(id).await;
    assert_eq!(stream.next().await.ttl, 100);
    c.revoke(id).await;
    stream.send(id).await;
    let answer = stream.next().await;
    assert_eq!((answer.id, answer.ttl), (id, 0), "an answer, no error");
    let other = c.grant(50, 0).await.id;
    stream.send(other).await;
    assert_eq!(stream.next().await.ttl, 50, "the stream lives on");
}

async fn r5l_3_keep_alive_keeps_alive(c: Ctx) {
    let id = c.grant(2, 0).await.id;
    put_on(&c, id, "a").await;
    let mut stream = c.keep_alive_stream().await;
    let began = Instant::now();
    // Three times its life.
    while began.elapsed() < Duration::from_secs(6) {
        stream.send(id).await;
        assert_eq!(stream.next().await.ttl, 2);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(c.get(c.key("a")).await.is_some());
}

async fn r5l_4_time_to_live(c: Ctx) {
    let unknown = c.time_to_live(987654321).await;
    assert_eq!(
        (unknown.id, unknown.ttl, unknown.granted_ttl),
        (987654321, -1, 0),
        "no error"
    );
    assert!(rev(&unknown.header) > 0);
    let id = c.grant(100, 0).await.id;
    put_on(&c, id, "b").await;
    put_on(&c, id, "a").await;
    let known = c.time_to_live(id).await;
    assert_eq!(known.granted_ttl, 100);
    assert!(
        (1..=100).contains(&known.ttl),
        "whole seconds left: {known:?}"
    );
    let mut keys = known.keys;
    keys.sort();
    assert_eq!(keys, [c.key("a"), c.key("b")]);
    let request = pb::LeaseTimeToLiveRequest { id, keys: false };
    let plain = c.lease.clone().lease_time_to_live(request).await;
    assert!(ok(plain).into_inner().keys.is_empty(), "not asked for");
}

async fn r5l_5_leases_by_remaining_time(c: Ctx) {
    assert!(c.leases().await.leases.is_empty());
    for (id, ttl) in [(3, 300), (1, 100), (4, 400), (-2, 200)] {
        c.grant(ttl, id).await;
    }
    let ids = async || -> Vec<i64> { c.leases().await.leases.iter().map(|l| l.id).collect() };
    assert_eq!(ids().await, [1, -2, 3, 4]);
    c.revoke(-2).await;
    assert_eq!(ids().await, [1, 3, 4]);
}

async fn r5l_6_expiry_deletes_the_keys(c: Ctx) {
    let mut watch = c.watching(c.watch_all()).await;
    let asked = Instant::now();
    let id = c.grant(2, 0).await.id;
    for name in ["b", "a"] {
        put_on(&c, id, name).await;
    }
    assert_eq!(watch.events(2).await.len(), 2);
    let answer = watch.next().await;
    assert!(asked.elapsed() >= Duration::from_secs(2), "never early");
    let gone: Vec<_> = answer
        .events
        .iter()
        .inspect(|e| assert_eq!(e.r#type(), EventType::Delete))
        .map(|e| c.name(&e.kv.as_ref().expect("a key").key))
        .collect();
    assert_eq!(gone, ["a", "b"], "in one revision, in key order");
    assert_eq!(c.time_to_live(id).await.ttl, -1);
    fails(c.try_revoke(id).await, Code::NotFound, NOT_FOUND);
}

async fn r5l_6_expiry_of_many(c: Ctx) {
    let mut watch = c.watching(c.watch_all()).await;
    let mut grants = tokio::task::JoinSet::new();
    for n in 0..600 {
        let client = c.client.clone();
        let key = c.key(&format!("{n:03}"));
        grants.spawn(async move {
            let lease = client.grant(2, 0).await.id;
            let request = pb::PutRequest {
                lease,
                ..put(key, "v")
            };
            client.try_put(request).await
        });
    }
    let mut puts = 0;
    while let Some(result) = grants.join_next().await {
        puts += usize::from(result.expect("no panic").is_ok());
    }
    let events = watch.events(2 * puts).await;
    let deletes = events.iter().filter(|e| e.r#type() == EventType::Delete);
    assert_eq!(deletes.count(), puts, "every lease expired");
    assert_eq!(c.range(c.all()).await.count, 0);
}

async fn r5l_7_a_restart_gives_the_full_ttl(mut c: Ctx) {
    let id = c.grant(60, 0).await.id;
    // Let some of its life go by.
    while c.time_to_live(id).await.ttl > 57 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    c.crash_and_restart().await;
    let known = c.time_to_live(id).await;
    assert_eq!(known.granted_ttl, 60);
    // The full life again, extended by up to one election timeout.
    assert!((58..=61).contains(&known.ttl), "{known:?}");
}

async fn r5l_8_leases_and_attachments_survive_a_crash(mut c: Ctx) {
    let kept = c.grant(500, 0).await.id;
    let revoked = c.grant(500, 0).await.id;
    let moved = c.grant(500, 0).await.id;
    put_on(&c, kept, "a").await;
    put_on(&c, kept, "b").await;
    put_on(&c, kept, "c").await;
    put_on(&c, moved, "c").await;
    put_on(&c, revoked, "d").await;
    c.put_all(&[("b", "detached")]).await;
    c.revoke(revoked).await;
    c.crash_and_restart().await;
    assert_eq!(c.time_to_live(kept).await.keys, [c.key("a")]);
    assert_eq!(c.time_to_live(moved).await.keys, [c.key("c")]);
    assert_eq!(c.time_to_live(revoked).await.ttl, -1);
    c.revoke(kept).await;
    assert_eq!(c.names(&c.range(c.all()).await.kvs), ["b", "c"]);
}
