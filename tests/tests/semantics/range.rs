//! 2: Range.

use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, alone};
use quorate_tests::table;
use tonic::Code;

table![
    SERIAL => [
        r2_1_empty_key,
        r2_1_range_end,
        r2_2_revision,
        r2_2_compacted_and_future_revisions,
        r2_3_limit_more_count,
        r2_4_count_only,
        r2_4_keys_only,
        r2_5_revision_filters,
        r2_6_sorting,
        r2_6_sort_target_without_order,
        r2_6_enums_out_of_range,
        r2_7_serializable_and_linearizable,
        r2_9_no_range_stream_before_3_7,
        r2_10_empty_result,
    ],
    alone(&[]) => [
        r2_1_all_keys,
    ],
];

async fn r2_1_empty_key(c: Ctx) {
    let text = "etcdserver: key is not provided";
    fails(c.try_range(range("")).await, Code::InvalidArgument, text);
    fails(
        c.try_range(span("", "x")).await,
        Code::InvalidArgument,
        text,
    );
    // Checked before anything else of the request.
    let request = pb::RangeRequest {
        revision: i64::MAX,
        sort_order: 99,
        ..range("")
    };
    fails(c.try_range(request).await, Code::InvalidArgument, text);
}

async fn r2_1_range_end(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1"), ("ba", "1"), ("c", "1"), ("d", "1")])
        .await;
    let names = async |key: &str, end: Bytes| {
        let response = c.range(span(c.key(key), end)).await;
        assert_eq!(response.count as usize, response.kvs.len());
        c.names(&response.kvs)
    };
    assert_eq!(names("b", Bytes::new()).await, ["b"], "the key alone");
    assert_eq!(names("b", c.key("d")).await, ["b", "ba", "c"], "half-open");
    assert_eq!(names("bb", c.key("d")).await, ["c"]);
    assert!(names("c", c.key("c")).await.is_empty(), "empty");
    assert!(names("d", c.key("a")).await.is_empty(), "inverted");
    assert_eq!(
        names("a", prefix_end(&c.key("b"))).await,
        ["a", "b", "ba"],
        "[a, c)"
    );
}

async fn r2_1_all_keys(c: Ctx) {
    let keys: [&[u8]; 6] = [b"\0", b"\0\0", b"a", b"a\0", b"\xff", b"\xff\xff"];
    for key in keys.iter().rev() {
        c.put(put(key.to_vec(), "1")).await;
    }
    let found = |response: pb::RangeResponse| -> Vec<Bytes> {
        response.kvs.into_iter().map(|kv| kv.key).collect()
    };
    let all = c.range(span("\0", "\0")).await;
    assert_eq!(found(all), keys, "ordered as unsigned bytes");
    let from = c.range(span("a", "\0")).await;
    assert_eq!(found(from), keys[2..], "every key from a on");
    let prefix = c.range(span(&b"\xff"[..], prefix_end(b"\xff"))).await;
    assert_eq!(found(prefix), keys[4..], "a prefix of nothing but 0xff");
}

async fn r2_2_revision(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    c.put_all(&[("a", "2"), ("b", "1")]).await;
    let gone = rev(&c.delete(delete(c.key("a"))).await.header);
    let at = async |revision: i64| {
        let request = pb::RangeRequest {
            revision,
            ..c.all()
        };
        let kvs = c.range(request).await.kvs;
        let pair = |kv: &quorate_proto::mvccpb::KeyValue| {
            let value = String::from_utf8_lossy(&kv.value).into_owned();
            format!("{}={value}", c.name(&kv.key))
        };
        kvs.iter().map(pair).collect::<Vec<_>>()
    };
    assert_eq!(at(first).await, ["a=1"]);
    assert_eq!(at(first + 1).await, ["a=2"]);
    assert_eq!(at(first + 2).await, ["a=2", "b=1"]);
    assert_eq!(at(gone).await, ["b=1"]);
    assert!(at(first - 1).await.is_empty());
    assert_eq!(at(0).await, ["b=1"], "0 is the latest");
    assert_eq!(at(-7).await, ["b=1"], "so is any negative number");
}

async fn r2_2_compacted_and_future_revisions(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    c.put_all(&[("a", "2"), ("a", "3")]).await;
    let at = |revision: i64| {
        c.try_range(pb::RangeRequest {
            revision,
            ..range(c.key("a"))
        })
    };
    let future = "etcdserver: mvcc: required revision is a future revision";
    fails(at(first + 3).await, Code::OutOfRange, future);
    c.compact(first + 1).await;
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    fails(at(first).await, Code::OutOfRange, compacted);
    fails(at(1).await, Code::OutOfRange, compacted);
    let kept = ok(at(first + 1).await);
    assert_eq!(kept.kvs[0].value, "2", "the compacted revision is readable");
    assert_eq!(ok(at(first + 2).await).kvs[0].value, "3");
}

async fn r2_3_limit_more_count(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
    let limited = async |limit: i64| {
        let request = pb::RangeRequest { limit, ..c.all() };
        let r = c.range(request).await;
        (c.names(&r.kvs).concat(), r.more, r.count)
    };
    assert_eq!(limited(0).await, ("abc".to_owned(), false, 3));
    assert_eq!(limited(-1).await, ("abc".to_owned(), false, 3));
    assert_eq!(limited(2).await, ("ab".to_owned(), true, 3));
    assert_eq!(limited(3).await, ("abc".to_owned(), false, 3));
    assert_eq!(limited(i64::MAX).await, ("abc".to_owned(), false, 3));
    let past = pb::RangeRequest {
        limit: 1,
        revision: c.revision().await - 1,
        ..c.all()
    };
    let r = c.range(past).await;
    assert_eq!((r.more, r.count), (true, 2), "at the requested revision");
}

async fn r2_4_count_only(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "2"), ("c", "3")]).await;
    let request = pb::RangeRequest {
        count_only: true,
        limit: 1,
        sort_order: SortOrder::Descend as i32,
        sort_target: SortTarget::Value as i32,
        min_mod_revision: i64::MAX,
        ..c.all()
    };
    let r = c.range(request).await;
    assert_eq!((r.kvs.len(), r.count, r.more), (0, 3, false));
    let past = pb::RangeRequest {
        count_only: true,
        revision: c.revision().await - 2,
        ..c.all()
    };
    assert_eq!(c.range(past).await.count, 1);
}

async fn r2_4_keys_only(c: Ctx) {
    let lease = c.grant(100, 0).await.id;
    c.put(pb::PutRequest {
        lease,
        ..put(c.key("a"), "9")
    })
    .await;
    c.put_all(&[("b", "5"), ("c", "7")]).await;
    let request = pb::RangeRequest {
        keys_only: true,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Value as i32,
        ..c.all()
    };
    let r = c.range(request).await;
    assert_eq!(c.names(&r.kvs), ["b", "c", "a"], "sorted by value first");
    assert!(r.kvs.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(r.kvs[2].lease, lease);
    assert_eq!(r.kvs[2].version, 1);
}

async fn r2_5_revision_filters(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    // mod revisions: a first+3, b first+1, c first+2; create revisions: first, +1, +2.
    c.put_all(&[("b", "1"), ("c", "1"), ("a", "2")]).await;
    let filtered = async |edit: fn(&mut pb::RangeRequest, i64)| {
        let mut request = c.all();
        edit(&mut request, first);
        let r = c.range(request).await;
        (c.names(&r.kvs).concat(), r.more, r.count)
    };
    let expect = |names: &str, more| (names.to_owned(), more, 3);
    assert_eq!(
        filtered(|r, n| r.min_mod_revision = n + 2).await,
        expect("ac", false)
    );
    assert_eq!(
        filtered(|r, n| r.max_mod_revision = n + 2).await,
        expect("bc", false)
    );
    assert_eq!(
        filtered(|r, n| r.min_create_revision = n + 1).await,
        expect("bc", false)
    );
    assert_eq!(
        filtered(|r, n| r.max_create_revision = n + 1).await,
        expect("ab", false)
    );
    let both = filtered(|r, n| {
        r.min_create_revision = n;
        r.max_mod_revision = n + 2;
    });
    assert_eq!(both.await, expect("bc", false));
    let limited = filtered(|r, n| {
        r.min_mod_revision = n + 2;
        r.limit = 1;
    });
    assert_eq!(limited.await, expect("a", true), "filtered, then cut");
    let limited = filtered(|r, n| {
        r.max_mod_revision = n + 1;
        r.limit = 1;
    });
    assert_eq!(
        limited.await,
        expect("b", false),
        "more is after the filter"
    );
    assert_eq!(
        filtered(|r, _| r.max_mod_revision = -1).await,
        filtered(|r, _| r.max_mod_revision = -1).await
    );
}

async fn r2_6_sorting(c: Ctx) {
    // key: a b c; version: 3 1 2; create: 1st 2nd 3rd; mod: b < c < a; value: c < a < b.
    let puts = [
        ("a", "x"),
        ("b", "z"),
        ("c", "w"),
        ("a", "x"),
        ("c", "w"),
        ("a", "x"),
    ];
    c.put_all(&puts).await;
    let sorted = async |target: SortTarget, order: SortOrder, limit: i64| {
        let request = pb::RangeRequest {
            sort_target: target as i32,
            sort_order: order as i32,
            limit,
            ..c.all()
        };
        let r = c.range(request).await;
        assert_eq!(r.count, 3);
        assert_eq!(r.more, limit != 0 && limit < 3);
        c.names(&r.kvs).concat()
    };
    let table = [
        (SortTarget::Key, "abc"),
        (SortTarget::Version, "bca"),
        (SortTarget::Create, "abc"),
        (SortTarget::Mod, "bca"),
        (SortTarget::Value, "cab"),
    ];
    for (target, ascending) in table {
        let descending: String = ascending.chars().rev().collect();
        let got = sorted(target, SortOrder::Ascend, 0).await;
        assert_eq!(got, ascending, "{target:?}");
        let got = sorted(target, SortOrder::Descend, 0).await;
        assert_eq!(got, descending, "{target:?}");
        let got = sorted(target, SortOrder::Descend, 2).await;
        assert_eq!(got, descending[..2], "{target:?}: sorted, then cut");
    }
    assert_eq!(sorted(SortTarget::Key, SortOrder::None, 2).await, "ab");
}

async fn r2_6_sort_target_without_order(c: Ctx) {
    c.put_all(&[("a", "4"), ("b", "3"), ("c", "2"), ("d", "1")])
        .await;
    let quirk = async |limit: i64| {
        let request = pb::RangeRequest {
            sort_target: SortTarget::Value as i32,
            limit,
            ..c.all()
        };
        let r = c.range(request).await;
        (c.names(&r.kvs).concat(), r.more, r.count)
    };
    assert_eq!(quirk(0).await, ("dcba".to_owned(), false, 4));
    // Only the first limit + 1 keys are fetched, and those are sorted.
    assert_eq!(quirk(2).await, ("cb".to_owned(), true, 4));
    assert_eq!(quirk(4).await, ("dcba".to_owned(), false, 4));
}

async fn r2_6_enums_out_of_range(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1")]).await;
    let bad_order = pb::RangeRequest {
        sort_order: 99,
        ..c.all()
    };
    let bad_target = pb::RangeRequest {
        sort_target: 99,
        ..c.all()
    };
    if c.minor >= 6 {
        let text = "etcdserver: invalid sort option";
        fails(
            c.try_range(bad_order.clone()).await,
            Code::InvalidArgument,
            text,
        );
        fails(c.try_range(bad_target).await, Code::InvalidArgument, text);
        let nested = txn([], [bad_order.op()], []);
        fails(c.try_txn(nested).await, Code::InvalidArgument, text);
    } else {
        let r = c.range(bad_order).await;
        assert_eq!(c.names(&r.kvs), ["a", "b"], "taken as no order");
    }
}

async fn r2_7_serializable_and_linearizable(c: Ctx) {
    let other = c.reconnect().await;
    for n in 0..50 {
        let value = n.to_string();
        c.put(put(c.key("a"), value.clone())).await;
        let kv = other.get(c.key("a")).await.expect("the key");
        assert_eq!(
            kv.value, value,
            "a linearizable read sees every write acknowledged"
        );
    }
    let request = pb::RangeRequest {
        serializable: true,
        ..c.all()
    };
    let r = c.range(request).await;
    assert_eq!(c.names(&r.kvs), ["a"]);
    assert!(rev(&r.header) > 0);
}

async fn r2_9_no_range_stream_before_3_7(c: Ctx) {
    let path = "/etcdserverpb.KV/RangeStream";
    let result = crate::raw::call(&c, path, &b"\x0a\x01a"[..]).await;
    fails(
        result,
        Code::Unimplemented,
        "unknown method RangeStream for service etcdserverpb.KV",
    );
}

async fn r2_10_empty_result(c: Ctx) {
    let at = c.revision().await;
    let r = c.range(c.all()).await;
    assert_eq!((r.kvs.len(), r.count, r.more), (0, 0, false));
    assert_eq!(rev(&r.header), at);
}
