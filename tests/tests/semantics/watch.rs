//! 6W: Watch.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, TOGETHER, alone};
use quorate_tests::table;

table![
    SERIAL => [
        r6w_1_created_comes_first,
        r6w_3_keys_and_ranges,
        r6w_4_start_revision,
        r6w_4_below_compaction,
        r6w_7_event_contents,
        r6w_8_one_response_per_revision,
        r6w_12_progress_on_request,
    ],
    TOGETHER => [
        r6w_2_watch_ids,
        r6w_2_duplicate_id,
        r6w_4_negative_start_revision,
        r6w_5_cancel,
        r6w_5_empty_request_and_half_close,
        r6w_7_prev_kv,
        r6w_7_filters,
        r6w_8_history_then_live_without_gap,
        r6w_9_fragments,
        r6w_10_a_slow_reader_loses_nothing,
        r6w_13_require_leader,
    ],
    alone(&["--watch-progress-notify-interval=200ms"]) => [r6w_11_progress_notify],
    alone(&[]) => [
        r6w_3_everything,
        r6w_14_resume_after_a_restart,
        r6w_15_shutdown_ends_the_stream,
    ],
];

fn from(revision: i64, request: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        start_revision: revision,
        ..request
    }
}

fn shape(c: &Ctx, event: &Event) -> String {
    let kv = event.kv.as_ref().expect("a key-value");
    let value = String::from_utf8_lossy(&kv.value);
    match event.r#type() {
        EventType::Put => format!("{}={value}", c.name(&kv.key)),
        EventType::Delete => format!("-{}", c.name(&kv.key)),
    }
}

fn shapes(c: &Ctx, events: &[Event]) -> Vec<String> {
    events.iter().map(|e| shape(c, e)).collect()
}

/// Proves that nothing was sent on the stream: the next response is the creation of another watch.
async fn nothing_came(stream: &mut WatchStream) {
    let created = stream.create(watch("nobody's key", "")).await;
    assert!(created.created, "something came: {created:?}");
}

async fn r6w_1_created_comes_first(c: Ctx) {
    let at = rev(&c.put(put(c.key("a"), "1")).await.header);
    let mut stream = c.watch_stream().await;
    let created = stream.create(from(at, c.watch_all())).await;
    assert!(created.created && !created.canceled);
    assert_eq!(created.watch_id, 0);
    assert_eq!(rev(&created.header), at);
    assert!(created.events.is_empty(), "{created:?}");
    let events = stream.events(1).await;
    assert_eq!(shapes(&c, &events), ["a=1"]);
}

async fn r6w_2_watch_ids(c: Ctx) {
    let mut stream = c.watch_stream().await;
    let mut id_of = async |wanted: i64| {
        let request = pb::WatchCreateRequest {
            watch_id: wanted,
            ..c.watch_all()
        };
        let created = stream.create(request).await;
        assert!(created.created && !created.canceled, "{created:?}");
        created.watch_id
    };
    assert_eq!(id_of(0).await, 0, "counted from 0");
    assert_eq!(id_of(0).await, 1);
    assert_eq!(id_of(3).await, 3, "as given");
    assert_eq!(id_of(-9).await, -9, "negative too");
    assert_eq!(id_of(0).await, 2);
    assert_eq!(id_of(0).await, 4, "3 is in use");
    stream.cancel(1).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && canceled.watch_id == 1);
    let created = stream.create(c.watch_all()).await;
    assert_eq!(created.watch_id, 5, "a freed id is not picked again");
    // Ids belong to one stream.
    let mut other = c.watch_stream().await;
    assert_eq!(other.create(c.watch_all()).await.watch_id, 0);
}

async fn r6w_2_duplicate_id(c: Ctx) {
    let seven = || pb::WatchCreateRequest {
        watch_id: 7,
        ..c.watch_all()
    };
    let mut stream = c.watching(seven()).await;
    let refused = stream.create(seven()).await;
    assert!(refused.created && refused.canceled);
    assert_eq!(refused.watch_id, -1);
    assert_eq!(
        refused.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    c.put_all(&[("a", "1")]).await;
    let events = stream.next().await;
    assert_eq!(events.watch_id, 7, "the stream lives on");
    assert_eq!(events.events.len(), 1);
}

async fn r6w_3_keys_and_ranges(c: Ctx) {
    let requests = [
        ("the key alone", watch(c.key("b"), ""), "b"),
        ("half-open", watch(c.key("a"), c.key("c")), "ab"),
        ("from the key on", watch(c.key("b"), "\0"), "bc"),
        ("everything", watch("\0", "\0"), "abc"),
    ];
    let mut streams = Vec::new();
    for (what, request, expected) in requests {
        streams.push((what, c.watching(request).await, expected));
    }
    c.put_all(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
    for (what, mut stream, expected) in streams {
        let events = stream.events(expected.len()).await;
        let keys: String = events
            .iter()
            .map(|e| c.name(&e.kv.as_ref().expect("a key").key))
            .collect();
        assert_eq!(keys, expected, "{what}");
    }
    let mut stream = c.watch_stream().await;
    for (key, end) in [("b", "b"), ("c", "a")] {
        let refused = stream.create(watch(c.key(key), c.key(end))).await;
        assert!(refused.created && refused.canceled, "{refused:?}");
        assert_eq!(refused.watch_id, -1);
        assert_eq!(refused.cancel_reason, "mvcc: watcher range is empty");
    }
    nothing_came(&mut stream).await;
}

async fn r6w_3_everything(c: Ctx) {
    let mut only_nul = c.watching(watch("", "")).await;
    let mut all = c.watching(watch("\0", "\0")).await;
    let keys: [&[u8]; 3] = [b"a", b"\0", b"\xff\xff"];
    for key in keys {
        c.put(put(key, "1")).await;
    }
    let seen = |events: Vec<Event>| -> Vec<Bytes> {
        let keys = events.into_iter().map(|e| e.kv.expect("a key").key);
        keys.collect()
    };
    assert_eq!(seen(all.events(3).await), keys);
    assert_eq!(
        seen(only_nul.events(1).await),
        [&b"\0"[..]],
        "an empty key stands for the key of one zero byte"
    );
    nothing_came(&mut only_nul).await;
}

async fn r6w_4_start_revision(c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    let now = c.revision().await;
    let mut current = c.watching(c.watch_all()).await;
    let mut past = c.watching(from(now - 1, c.watch_all())).await;
    let mut next = c.watching(from(now + 1, c.watch_all())).await;
    let mut future = c.watching(from(now + 3, c.watch_all())).await;
    c.put_all(&[("a", "3"), ("a", "4"), ("a", "5")]).await;
    let first = async |stream: &mut WatchStream| shape(&c, &stream.next().await.events[0]);
    assert_eq!(
        first(&mut current).await,
        "a=3",
        "what comes after creation"
    );
    assert_eq!(first(&mut past).await, "a=1", "history first");
    assert_eq!(first(&mut next).await, "a=3");
    assert_eq!(first(&mut future).await, "a=5", "silent until then");
}

async fn r6w_4_below_compaction(c: Ctx) {
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    c.put_all(&[("a", "2"), ("b", "1"), ("a", "3")]).await;
    c.compact(first + 2).await;

    let mut at = c.watching(from(first + 2, c.watch_all())).await;
    let events = at.events(2).await;
    assert_eq!(
        shapes(&c, &events),
        ["b=1", "a=3"],
        "the compacted revision"
    );

    let mut stream = c.watch_stream().await;
    let created = stream.create(from(first + 1, c.watch_all())).await;
    assert!(created.created && !created.canceled, "{created:?}");
    let id = created.watch_id;
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created);
    assert_eq!(canceled.watch_id, id);
    assert_eq!(canceled.compact_revision, first + 2);
    assert_eq!(canceled.cancel_reason, "", "no reason");
    assert_eq!(rev(&canceled.header), 0);
    assert!(canceled.events.is_empty());

    // The id stays taken until the client cancels it.
    let same = pb::WatchCreateRequest {
        watch_id: 5,
        ..from(first + 1, c.watch_all())
    };
    assert!(stream.create(same.clone()).await.created);
    assert!(stream.next().await.canceled);
    let refused = stream.create(same).await;
    assert_eq!(refused.watch_id, -1);
    stream.cancel(5).await;
    let acknowledged = stream.next().await;
    assert!(acknowledged.canceled && acknowledged.watch_id == 5);
    let again = pb::WatchCreateRequest {
        watch_id: 5,
        ..c.watch_all()
    };
    assert_eq!(stream.create(again).await.watch_id, 5);
}

async fn r6w_4_negative_start_revision(c: Ctx) {
    let mut stream = c.watch_stream().await;
    for start in [-1, i64::MIN] {
        let refused = stream.create(from(start, c.watch_all())).await;
        assert!(refused.created && refused.canceled, "{refused:?}");
        assert_eq!(refused.watch_id, -1);
        assert_eq!(
            refused.cancel_reason,
            "etcdserver: mvcc: required revision has been compacted"
        );
        assert_eq!(refused.compact_revision, 0);
    }
}

async fn r6w_5_cancel(c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    assert_eq!(stream.create(c.watch_all()).await.watch_id, 1);
    stream.cancel(42).await;
    nothing_came(&mut stream).await;
    stream.cancel(0).await;
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created, "{canceled:?}");
    assert_eq!(
        (canceled.watch_id, canceled.cancel_reason.as_str()),
        (0, "")
    );
    assert_eq!(canceled.compact_revision, 0);
    assert!(rev(&canceled.header) > 0);
    c.put_all(&[("a", "1")]).await;
    let events = stream.next().await;
    assert_eq!(events.watch_id, 1, "nothing for the cancelled one");
    nothing_came(&mut stream).await;
    stream.cancel(0).await;
    nothing_came(&mut stream).await;
}

async fn r6w_5_empty_request_and_half_close(c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    let empty = pb::WatchRequest {
        request_union: None,
    };
    stream.send_raw(empty).await;
    nothing_came(&mut stream).await;
    stream.half_close();
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    assert_eq!(shapes(&c, &stream.events(2).await), ["a=1", "a=2"]);
}

async fn r6w_7_event_contents(c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    let lease = c.grant(100, 0).await.id;
    c.put_all(&[("a", "1")]).await;
    let born = c.revision().await;
    let request = pb::PutRequest {
        lease,
        ..put(c.key("a"), "2")
    };
    c.put(request).await;
    let stored = c.get(c.key("a")).await;
    c.delete(c.delete_all()).await;
    let events = stream.events(3).await;
    let first = events[0].kv.as_ref().expect("a key-value");
    assert_eq!(
        (first.create_revision, first.mod_revision, first.version),
        (born, born, 1),
        "a creation"
    );
    assert_eq!(events[1].kv, stored, "the whole key-value");
    assert_eq!(events[2].r#type(), EventType::Delete);
    let gone = quorate_proto::mvccpb::KeyValue {
        key: c.key("a"),
        mod_revision: born + 2,
        ..Default::default()
    };
    assert_eq!(events[2].kv, Some(gone), "key and mod_revision alone");
    assert!(events.iter().all(|e| e.prev_kv.is_none()), "not asked for");
}

async fn r6w_7_prev_kv(c: Ctx) {
    let request = pb::WatchCreateRequest {
        prev_kv: true,
        ..c.watch_all()
    };
    let mut live = c.watching(request.clone()).await;
    let first = rev(&c.put(put(c.key("a"), "1")).await.header);
    c.put_all(&[("a", "2")]).await;
    c.delete(delete(c.key("a"))).await;
    c.put_all(&[("a", "3")]).await;
    let mut past = c.watching(from(first, request)).await;
    for stream in [&mut live, &mut past] {
        let events = stream.events(4).await;
        let previous: Vec<Option<Bytes>> = events
            .iter()
            .map(|e| e.prev_kv.as_ref().map(|kv| kv.value.clone()))
            .collect();
        let some = |v: &'static str| Some(Bytes::from(v));
        assert_eq!(previous, [None, some("1"), some("2"), None]);
        let before = events[1].prev_kv.as_ref().expect("there");
        assert_eq!((before.mod_revision, before.version), (first, 1));
    }
}

async fn r6w_7_filters(c: Ctx) {
    let filtered = |filters: &[FilterType]| pb::WatchCreateRequest {
        filters: filters.iter().map(|f| *f as i32).collect(),
        ..c.watch_all()
    };
    let start = c.revision().await + 1;
    c.put_all(&[("a", "1")]).await;
    c.delete(delete(c.key("a"))).await;
    c.put_all(&[("a", "2")]).await;
    for start in [start, 0] {
        let request = |filters| from(start, filtered(filters));
        let mut puts = c.watching(request(&[FilterType::Nodelete])).await;
        let mut deletes = c.watching(request(&[FilterType::Noput])).await;
        let mut none = c
            .watching(request(&[FilterType::Noput, FilterType::Nodelete]))
            .await;
        if start == 0 {
            c.put_all(&[("a", "1")]).await;
            c.delete(delete(c.key("a"))).await;
            c.put_all(&[("a", "2")]).await;
        }
        assert_eq!(shapes(&c, &puts.events(2).await), ["a=1", "a=2"]);
        assert_eq!(shapes(&c, &deletes.events(1).await), ["-a"]);
        nothing_came(&mut none).await;
        nothing_came(&mut deletes).await;
    }
}

async fn r6w_8_one_response_per_revision(c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    let ops: Vec<_> = (0..100)
        .map(|n| put(c.key(&format!("k{n:03}")), "1").op())
        .collect();
    let at = rev(&c.txn(txn([], ops, [])).await.header);
    c.put_all(&[("l", "1"), ("m", "1")]).await;
    let responses = stream.responses_of(102).await;
    let sizes: Vec<usize> = responses.iter().map(|r| r.events.len()).collect();
    assert_eq!(sizes, [100, 1, 1], "a revision is never split");
    let revisions: Vec<i64> = responses.iter().map(|r| rev(&r.header)).collect();
    assert_eq!(
        revisions,
        [at, at + 1, at + 2],
        "the revision of the events"
    );

    let mut past = c.watching(from(at, c.watch_all())).await;
    let responses = past.responses_of(102).await;
    assert!(responses[0].events.len() >= 100);
    for response in responses {
        assert_eq!(rev(&response.header), at + 2, "history: the current one");
    }
}

async fn r6w_8_history_then_live_without_gap(c: Ctx) {
    let first = rev(&c.put(put(c.key("n"), "0")).await.header);
    let writer = c.reconnect().await;
    let key = c.key("n");
    let writing = tokio::spawn(async move {
        for n in 1..2500 {
            writer.put(put(key.clone(), n.to_string())).await;
        }
    });
    let mut streams = Vec::new();
    for _ in 0..4 {
        // Begun while the writer writes: history and live meet at another place for each.
        c.range(c.all()).await;
        streams.push(c.watching(from(first, c.watch_all())).await);
    }
    for stream in &mut streams {
        let events = stream.events(2500).await;
        for (n, event) in events.iter().enumerate() {
            assert_eq!(shape(&c, event), format!("n={n}"));
        }
    }
    writing.await.expect("the writer");
}

async fn r6w_9_fragments(c: Ctx) {
    let large = Bytes::from(vec![b'v'; 1 << 20]);
    for key in ["a", "b", "c", "d", "e"] {
        c.put(put(c.key(key), large.clone())).await;
    }
    // One revision of 5 MiB: each deletion brings the value before it.
    let with_previous = pb::WatchCreateRequest {
        prev_kv: true,
        ..c.watch_all()
    };
    let fragmented = pb::WatchCreateRequest {
        fragment: true,
        ..with_previous.clone()
    };
    // On connections of their own: what is not read yet uses up the window of a connection.
    let apart = async |request| c.reconnect().await.watching(request).await;
    let whole_live = apart(with_previous.clone()).await;
    let pieces_live = apart(fragmented.clone()).await;
    let at = rev(&c.delete(c.delete_all()).await.header);
    let whole_past = apart(from(at, with_previous)).await;
    let pieces_past = apart(from(at, fragmented)).await;
    let names = |responses: &[pb::WatchResponse]| {
        let events = responses.iter().flat_map(|r| &r.events);
        let keys = events.map(|e| c.name(&e.kv.as_ref().expect("a key").key));
        keys.collect::<String>()
    };
    for (what, mut stream) in [("live", whole_live), ("past", whole_past)] {
        let responses = stream.responses_of(5).await;
        assert_eq!(responses.len(), 1, "{what}: whole, whatever its size");
        assert!(!responses[0].fragment);
        assert_eq!(names(&responses), "abcde");
    }
    for (what, mut stream) in [("live", pieces_live), ("past", pieces_past)] {
        let responses = stream.responses_of(5).await;
        assert_eq!(names(&responses), "abcde", "{what}");
        let (last, pieces) = responses.split_last().expect("some");
        assert!(!pieces.is_empty(), "{what}: split");
        assert!(pieces.iter().all(|r| r.fragment), "all but the last");
        assert!(!last.fragment, "all but the last");
        for response in &responses {
            assert!(response.events.len() <= 2, "{what}: within 2 MiB");
        }
    }
}

async fn r6w_10_a_slow_reader_loses_nothing(c: Ctx) {
    let mut slow = c.reconnect().await.watching(c.watch_all()).await;
    let value = vec![b'v'; 4096];
    // 8 MiB while nobody reads: far more than flow control and the buffers of the stream hold.
    for n in 0..2000 {
        c.put(put(c.key(&format!("{n:04}")), value.clone())).await;
    }
    let events = slow.events(2000).await;
    for (n, event) in events.iter().enumerate() {
        let kv = event.kv.as_ref().expect("a key-value");
        assert_eq!(c.name(&kv.key), format!("{n:04}"));
    }
    c.put_all(&[("last", "1")]).await;
    assert_eq!(shapes(&c, &slow.events(1).await), ["last=1"]);
}

async fn r6w_11_progress_notify(c: Ctx) {
    let request = pb::WatchCreateRequest {
        progress_notify: true,
        ..c.watch_all()
    };
    let mut stream = c.watching(request).await;
    let other = c.watching(c.watch_all()).await;
    let now = rev(&c.put(put("elsewhere", "1")).await.header);
    // A tick may have come before that put.
    let mut progress = stream.next().await;
    while rev(&progress.header) < now {
        progress = stream.next().await;
    }
    assert!(progress.events.is_empty() && !progress.canceled && !progress.created);
    assert_eq!(progress.watch_id, 0);
    assert_eq!(rev(&progress.header), now);
    // Progress never promises what is still to come.
    let mut at = now;
    for n in 0..300 {
        c.put(put(c.key("a"), n.to_string())).await;
    }
    let mut seen = 0;
    while seen < 300 {
        let response = stream.next().await;
        let revision = rev(&response.header);
        assert!(revision >= at, "monotone");
        for event in &response.events {
            assert!(event.kv.as_ref().expect("a key").mod_revision > at);
            seen += 1;
        }
        if response.events.is_empty() {
            at = revision;
        }
    }
    let mut other = other;
    let events = other.responses_of(300).await;
    assert!(
        events.iter().all(|r| !r.events.is_empty()),
        "only on watches that asked for it"
    );
}

async fn r6w_12_progress_on_request(c: Ctx) {
    let mut stream = c.watch_stream().await;
    stream.progress().await;
    assert_eq!(
        stream.create(c.watch_all()).await.watch_id,
        0,
        "a stream without watches gets none"
    );
    let now = rev(&c.put(put(c.key("a"), "1")).await.header);
    assert_eq!(stream.events(1).await.len(), 1);
    stream.progress().await;
    let progress = stream.next().await;
    assert_eq!(progress.watch_id, -1, "of all watches");
    assert!(progress.events.is_empty() && !progress.canceled && !progress.created);
    assert_eq!(rev(&progress.header), now);

    // What is promised has been delivered.
    for round in 0..50 {
        c.put(put(c.key("a"), round.to_string())).await;
        stream.progress().await;
    }
    let mut delivered = now;
    while delivered < now + 50 {
        let response = stream.next().await;
        let revision = rev(&response.header);
        if response.watch_id == -1 {
            assert!(revision <= delivered, "promised, not delivered");
        } else {
            assert_eq!(revision, delivered + 1);
            delivered = revision;
        }
    }

    // A watch of the future is not there yet.
    let mut lone = c.watching(from(now + 1000, c.watch_all())).await;
    lone.progress().await;
    nothing_came(&mut lone).await;
}

async fn r6w_13_require_leader(c: Ctx) {
    let mut stream = c
        .watch_stream_with(|metadata| {
            metadata.insert("hasleader", "true".parse().expect("a value"));
        })
        .await;
    assert!(stream.create(c.watch_all()).await.created);
    c.put_all(&[("a", "1")]).await;
    assert_eq!(shapes(&c, &stream.events(1).await), ["a=1"]);
}

async fn r6w_14_resume_after_a_restart(mut c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    c.put_all(&[("a", "1"), ("b", "1")]).await;
    let seen = stream.events(2).await;
    let last = seen[1].kv.as_ref().expect("a key").mod_revision;
    c.put_all(&[("c", "1")]).await;
    c.delete(delete(c.key("a"))).await;
    c.crash_and_restart().await;
    let mut resumed = c.watching(from(last + 1, c.watch_all())).await;
    c.put_all(&[("d", "1")]).await;
    let events = resumed.events(3).await;
    assert_eq!(shapes(&c, &events), ["c=1", "-a", "d=1"]);
}

async fn r6w_15_shutdown_ends_the_stream(mut c: Ctx) {
    let mut stream = c.watching(c.watch_all()).await;
    c.put_all(&[("a", "1")]).await;
    assert_eq!(stream.events(1).await.len(), 1);
    let server = c.server();
    server.signal_term();
    let (before, _) = stream.end().await;
    assert!(before.iter().all(|r| r.events.is_empty()), "{before:?}");
    server.terminate_after_signal().await;
    // Nothing that was acknowledged is lost, and the member serves again.
    c.crash_and_restart().await;
    assert_eq!(c.get(c.key("a")).await.expect("kept").value, "1");
    let mut stream = c.watching(c.watch_all()).await;
    let silent = stream.next_within(Duration::from_millis(100)).await;
    assert_eq!(silent, None);
}
