//! 3: Put and DeleteRange.

use quorate_proto::etcdserverpb as pb;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL};
use quorate_tests::table;
use tonic::Code;

table![
    SERIAL => [
        r3_1_checks_and_their_order,
        r3_1_unknown_lease,
        r3_1_ignore_flags_need_the_key,
        r3_2_empty_value,
        r3_2_lease_attachment,
        r3_3_prev_kv,
        r3_3_ignore_value_rewrites,
        r3_4_delete_range,
        r3_4_delete_detaches_leases,
    ],
];

async fn r3_1_checks_and_their_order(c: Ctx) {
    let no_key = pb::PutRequest {
        ignore_value: true,
        ignore_lease: true,
        lease: 1,
        ..put("", "v")
    };
    let text = "etcdserver: key is not provided";
    fails(c.try_put(no_key).await, Code::InvalidArgument, text);
    fails(c.try_delete(delete("")).await, Code::InvalidArgument, text);
    fails(
        c.try_delete(delete_span("", "\0")).await,
        Code::InvalidArgument,
        text,
    );
    let value_and_lease = pb::PutRequest {
        ignore_value: true,
        ignore_lease: true,
        lease: 1,
        ..put(c.key("a"), "v")
    };
    fails(
        c.try_put(value_and_lease).await,
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
    let lease = pb::PutRequest {
        ignore_lease: true,
        lease: 1,
        ..put(c.key("a"), "v")
    };
    fails(
        c.try_put(lease).await,
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );
}

async fn r3_1_unknown_lease(c: Ctx) {
    for lease in [987654321, -5] {
        let request = pb::PutRequest {
            lease,
            ..put(c.key("a"), "v")
        };
        fails(
            c.try_put(request).await,
            Code::NotFound,
            "etcdserver: requested lease not found",
        );
    }
    assert!(c.get(c.key("a")).await.is_none());
}

async fn r3_1_ignore_flags_need_the_key(c: Ctx) {
    let value = pb::PutRequest {
        ignore_value: true,
        ..put(c.key("a"), "")
    };
    let lease = pb::PutRequest {
        ignore_lease: true,
        ..put(c.key("a"), "v")
    };
    for request in [value, lease] {
        fails(
            c.try_put(request).await,
            Code::InvalidArgument,
            "etcdserver: key not found",
        );
    }
}

async fn r3_2_empty_value(c: Ctx) {
    assert!(c.get(c.key("a")).await.is_none());
    c.put(put(c.key("a"), "")).await;
    let kv = c.get(c.key("a")).await.expect("the key");
    assert!(kv.value.is_empty());
    assert_eq!(kv.version, 1);
}

async fn r3_2_lease_attachment(c: Ctx) {
    let one = c.grant(100, 0).await.id;
    let two = c.grant(100, 0).await.id;
    let with = async |lease: i64, ignore_lease: bool| {
        let request = pb::PutRequest {
            lease,
            ignore_lease,
            ..put(c.key("a"), "v")
        };
        c.put(request).await;
        let stored = c.get(c.key("a")).await.expect("the key").lease;
        let keys = (
            c.time_to_live(one).await.keys.len(),
            c.time_to_live(two).await.keys.len(),
        );
        (stored, keys)
    };
    assert_eq!(with(one, false).await, (one, (1, 0)));
    assert_eq!(with(0, true).await, (one, (1, 0)), "kept");
    assert_eq!(with(two, false).await, (two, (0, 1)), "moved");
    assert_eq!(with(0, false).await, (0, (0, 0)), "detached");
    c.revoke(one).await;
    c.revoke(two).await;
    assert!(c.get(c.key("a")).await.is_some(), "on neither lease");
}

async fn r3_3_prev_kv(c: Ctx) {
    let request = || pb::PutRequest {
        prev_kv: true,
        ..put(c.key("a"), "v")
    };
    assert_eq!(c.put(request()).await.prev_kv, None, "created");
    let stored = c.get(c.key("a")).await;
    assert_eq!(c.put(request()).await.prev_kv, stored);
    assert_eq!(
        c.put(put(c.key("a"), "w")).await.prev_kv,
        None,
        "not asked for"
    );
    c.delete(delete(c.key("a"))).await;
    assert_eq!(c.put(request()).await.prev_kv, None, "deleted before");
}

async fn r3_3_ignore_value_rewrites(c: Ctx) {
    c.put(put(c.key("a"), "v")).await;
    let lease = c.grant(100, 0).await.id;
    let request = pb::PutRequest {
        ignore_value: true,
        lease,
        prev_kv: true,
        ..put(c.key("a"), "")
    };
    let response = c.put(request).await;
    assert_eq!(response.prev_kv.expect("asked for").value, "v");
    let kv = c.get(c.key("a")).await.expect("the key");
    assert_eq!(kv.value, "v");
    assert_eq!(kv.lease, lease);
    assert_eq!(kv.version, 2);
    assert_eq!(kv.mod_revision, rev(&response.header));
}

async fn r3_4_delete_range(c: Ctx) {
    let pairs = [("c", "3"), ("a", "1"), ("b", "2"), ("d", "4")];
    c.put_all(&pairs).await;
    let mut watch = c.watching(c.watch_all()).await;
    let before = c.range(c.all()).await.kvs;
    let request = pb::DeleteRangeRequest {
        prev_kv: true,
        ..delete_span(c.key("a"), c.key("d"))
    };
    let response = c.delete(request).await;
    assert_eq!(response.deleted, 3);
    assert_eq!(response.prev_kvs, before[..3], "in key order");
    let events = watch.events(3).await;
    let at = rev(&response.header);
    let gone: Vec<_> = events
        .iter()
        .map(|e| e.kv.as_ref().expect("a key"))
        .inspect(|kv| assert_eq!(kv.mod_revision, at, "one revision"))
        .map(|kv| c.name(&kv.key))
        .collect();
    assert_eq!(gone, ["a", "b", "c"], "in key order");
    let inverted = c.delete(delete_span(c.key("z"), c.key("a"))).await;
    assert_eq!(inverted.deleted, 0);
    let rest = c.delete(c.delete_all()).await;
    assert_eq!(rest.deleted, 1);
    assert!(rest.prev_kvs.is_empty(), "not asked for");
    // The keys of this table sort before everything from "~" on.
    c.put(put(c.key("a"), "1")).await;
    c.put(put("~1", "1")).await;
    c.put(put("~2", "1")).await;
    assert_eq!(c.delete(delete_span("~", "\0")).await.deleted, 2);
    assert!(c.get(c.key("a")).await.is_some());
}

async fn r3_4_delete_detaches_leases(c: Ctx) {
    let lease = c.grant(100, 0).await.id;
    let request = pb::PutRequest {
        lease,
        ..put(c.key("a"), "v")
    };
    c.put(request).await;
    assert_eq!(c.time_to_live(lease).await.keys, [c.key("a")]);
    c.delete(delete(c.key("a"))).await;
    assert!(c.time_to_live(lease).await.keys.is_empty());
    c.put(put(c.key("a"), "v")).await;
    c.revoke(lease).await;
    assert!(
        c.get(c.key("a")).await.is_some(),
        "not the lease's any more"
    );
}
