//! The API at work: one scenario per promise, read like documentation.

use std::ops::ControlFlow;

use bytes::Bytes;
use engine::{
    Applied, Budget, CompactError, CompactProgress, Engine, Error, Event, EventKind, KeyRange,
    KeyValue, Options, View, Writer,
};

fn bytes(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

fn open(dir: &tempfile::TempDir) -> (Engine, Writer) {
    let mut options = Options::new(dir.path());
    options.page_bytes = 512;
    options.cache_bytes = 1 << 20;
    Engine::open(options).expect("opens")
}

fn put(w: &mut Writer, key: &str, value: &str) -> i64 {
    put_lease(w, key, value, 0)
}

fn put_lease(w: &mut Writer, key: &str, value: &str, lease: i64) -> i64 {
    let mut txn = w.txn();
    txn.put(bytes(key), bytes(value), lease).expect("puts");
    txn.finish()
}

fn delete(w: &mut Writer, range: &KeyRange) -> (u64, i64) {
    let mut txn = w.txn();
    let (n, prevs) = txn.delete_range(range, true).expect("deletes");
    assert_eq!(prevs.len() as u64, n);
    (n, txn.finish())
}

fn publish(w: &mut Writer) -> View {
    w.publish(Applied { index: 1, term: 1 }, b"").view
}

fn keys(view: &View, range: &KeyRange, at: i64) -> Vec<String> {
    let mut out = Vec::new();
    view.visit(range, at, &mut |kv| {
        out.push(String::from_utf8(kv.key.to_vec()).expect("text"));
        ControlFlow::Continue(())
    })
    .expect("reads");
    out
}

fn events(view: &View, from: i64) -> Vec<Event> {
    let mut out = Vec::new();
    let end = view
        .events(from, usize::MAX, &mut |event| {
            out.push(event.to_event().expect("reads"));
            ControlFlow::Continue(())
        })
        .expect("reads");
    assert!(end.reached_end);
    assert_eq!(end.next_main, view.revision() + 1);
    out
}

#[test]
fn a_new_store_is_at_revision_1_and_versions_count() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut w) = open(&dir);
    assert_eq!(
        (engine.view().revision(), engine.view().compact_revision()),
        (1, -1)
    );
    assert_eq!(put(&mut w, "a", "1"), 2);
    assert_eq!(put(&mut w, "a", "2"), 3);
    assert_eq!(engine.view().revision(), 1, "not published yet");
    let view = publish(&mut w);
    let kv = view.get(b"a", 0).expect("reads").expect("exists");
    assert_eq!(
        kv,
        KeyValue {
            key: bytes("a"),
            value: bytes("2"),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 0
        }
    );
    assert_eq!(
        view.get(b"a", 2).expect("reads").expect("existed").value,
        "1"
    );
    assert_eq!(view.get(b"a", 1).expect("reads"), None);
    assert!(matches!(view.get(b"a", 4), Err(Error::Future)));
    assert_eq!(delete(&mut w, &KeyRange::all()), (1, 4));
    assert_eq!(delete(&mut w, &KeyRange::all()), (0, 4));
    put(&mut w, "a", "3");
    let view = publish(&mut w);
    let kv = view.get(b"a", 0).expect("reads").expect("exists");
    assert_eq!((kv.create_revision, kv.version), (5, 1));
    assert_eq!(view.get(b"a", 4).expect("reads"), None);
    assert_eq!(
        view.get(b"a", 3).expect("reads").expect("existed").value,
        "2"
    );
    engine.check(&view).expect("sound");
}

#[test]
fn a_request_has_one_revision_and_sees_its_own_changes() {
    let dir = tempfile::tempdir().expect("dir");
    let (_engine, mut w) = open(&dir);
    put(&mut w, "x", "old");
    let mut txn = w.txn();
    assert_eq!(txn.begin_revision(), 2);
    assert!(!txn.changed());
    txn.put(bytes("x"), bytes("new"), 0).expect("puts");
    txn.put(bytes("y"), bytes("1"), 0).expect("puts");
    assert_eq!(txn.get(b"x").expect("reads").expect("exists").value, "new");
    assert_eq!(
        txn.get_at(b"x", 2).expect("reads").expect("exists").value,
        "old"
    );
    assert_eq!(txn.count(&KeyRange::all(), 0).expect("counts"), 2);
    assert_eq!(txn.count(&KeyRange::all(), 2).expect("counts"), 1);
    assert_eq!(
        txn.delete_range(&KeyRange::all(), false).expect("deletes"),
        (2, vec![])
    );
    assert_eq!(txn.finish(), 3);
    let published = w.publish(Applied { index: 9, term: 2 }, b"blob");
    assert_eq!(published.view.meta(), b"blob");
    assert_eq!(published.view.applied(), Applied { index: 9, term: 2 });
    let seen: Vec<_> = published
        .events
        .iter()
        .map(|e| (e.revision.main, e.revision.sub, e.kind, e.prev.is_some()))
        .collect();
    assert_eq!(
        seen,
        [
            (2, 0, EventKind::Put, false),
            (3, 0, EventKind::Put, true),
            (3, 1, EventKind::Put, false),
            (3, 2, EventKind::Delete, true),
            (3, 3, EventKind::Delete, true),
        ]
    );
    assert_eq!(events(&published.view, 2), published.events.to_vec());
    assert_eq!(w.txn().finish(), 3, "an empty request has no revision");
}

#[test]
fn ranges_follow_request_rules() {
    let dir = tempfile::tempdir().expect("dir");
    let (_engine, mut w) = open(&dir);
    for key in ["a", "b", "b1", "c"] {
        put(&mut w, key, "");
    }
    let view = publish(&mut w);
    let range = |key: &str, end: &[u8]| KeyRange::from_request(key.as_bytes(), end);
    assert_eq!(keys(&view, &range("b", b""), 0), ["b"]);
    assert_eq!(keys(&view, &range("b", b"c"), 0), ["b", "b1"]);
    assert_eq!(keys(&view, &range("b", b"\0"), 0), ["b", "b1", "c"]);
    assert_eq!(keys(&view, &range("c", b"b"), 0), [""; 0]);
    assert_eq!(view.count(&range("c", b"b"), 0).expect("counts"), 0);
    assert_eq!(view.count(&range("b", b"c"), 3).expect("counts"), 1);
    let mut back = Vec::new();
    view.visit_rev(&range("a", b"c"), 0, &mut |kv| {
        back.push(kv.key.to_vec());
        if back.len() == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .expect("reads");
    assert_eq!(back, [b"b1".to_vec(), b"b".to_vec()]);
}

#[test]
fn compaction_refuses_at_once_and_drops_in_slices() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut w) = open(&dir);
    for i in 0..200 {
        put(&mut w, &format!("k{}", i % 10), &"v".repeat(i));
    }
    let (_, last) = delete(&mut w, &KeyRange::from_request(b"k3", b"k5"));
    let old = publish(&mut w);
    w.checkpoint().expect("starts");
    assert_eq!(w.compact(last + 1), Err(CompactError::Future));
    assert_eq!(w.compact(0), Ok(()));
    assert_eq!(w.compact(0), Err(CompactError::Compacted));
    assert_eq!(w.compact(last - 5), Ok(()));
    let view = publish(&mut w);
    assert!(matches!(view.get(b"k1", last - 6), Err(Error::Compacted)));
    assert!(view.get(b"k1", last - 5).expect("reads").is_some());
    assert!(matches!(
        view.events(last - 6, 1, &mut |_| ControlFlow::Continue(())),
        Err(Error::Compacted)
    ));
    assert_eq!(
        events(&view, last - 5).first().expect("kept").revision.main,
        last - 5
    );
    assert_eq!(
        old.get(b"k1", 4)
            .expect("an old view still reads")
            .expect("existed")
            .value,
        "v"
    );
    put(&mut w, "z", "");
    w.compact(last + 1).expect("compacts");
    let mut steps = 0;
    while w.compact_step(Budget { events: 7 }).expect("steps") == CompactProgress::More {
        steps += 1;
        let view = publish(&mut w);
        engine.check(&view).expect("sound");
    }
    assert!(steps > 10);
    let view = publish(&mut w);
    assert_eq!(view.compact_done(), last + 1);
    let report = engine.check(&view).expect("sound");
    assert_eq!((report.keys, report.events), (9, 1));
    assert_eq!(keys(&view, &KeyRange::all(), 0).len(), 9);
}

#[test]
fn leases_list_their_keys() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut w) = open(&dir);
    put_lease(&mut w, "b", "", 7);
    put_lease(&mut w, "a", "", 7);
    put_lease(&mut w, "c", "", -7);
    put_lease(&mut w, "d", "", 7);
    put_lease(&mut w, "d", "", 0);
    let view = publish(&mut w);
    assert_eq!(view.lease_keys(7).expect("reads"), ["a", "b"]);
    assert_eq!(view.lease_keys(-7).expect("reads"), ["c"]);
    delete(&mut w, &KeyRange::One(bytes("a")));
    put_lease(&mut w, "b", "", -7);
    let view = publish(&mut w);
    assert_eq!(view.lease_keys(7).expect("reads"), [""; 0]);
    assert_eq!(view.lease_keys(-7).expect("reads"), ["b", "c"]);
    engine.check(&view).expect("sound");
}

#[test]
fn system_records_of_any_size() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut w) = open(&dir);
    w.sys_put(1, b"a", b"small").expect("puts");
    w.sys_put(1, b"b", &[9; 5000]).expect("puts");
    w.sys_put(2, b"a", b"other").expect("puts");
    w.sys_put(1, b"b", &[8; 6000]).expect("puts");
    assert!(w.sys_delete(2, b"a").expect("deletes"));
    assert!(!w.sys_delete(2, b"a").expect("deletes"));
    let view = publish(&mut w);
    assert_eq!(
        view.sys_get(1, b"b").expect("reads").expect("exists"),
        vec![8; 6000]
    );
    let mut seen = Vec::new();
    view.sys_scan(1, &mut |key, value| {
        seen.push((key.to_vec(), value.len()));
        ControlFlow::Continue(())
    })
    .expect("reads");
    assert_eq!(seen, [(b"a".to_vec(), 5), (b"b".to_vec(), 6000)]);
    assert_eq!(view.sys_get(2, b"a").expect("reads"), None);
    engine.check(&view).expect("sound");
}

#[test]
fn scans_of_events_stop_between_revisions() {
    let dir = tempfile::tempdir().expect("dir");
    let (_engine, mut w) = open(&dir);
    for _ in 0..20 {
        let mut txn = w.txn();
        for key in ["a", "b", "c"] {
            txn.put(bytes(key), bytes("value"), 0).expect("puts");
        }
        txn.finish();
    }
    let view = publish(&mut w);
    let (mut from, mut rounds, mut seen) = (2, 0, 0);
    loop {
        let mut last = 0;
        let end = view
            .events(from, 200, &mut |event| {
                last = event.revision().main;
                seen += 1;
                ControlFlow::Continue(())
            })
            .expect("reads");
        assert_eq!(end.next_main, last + 1);
        rounds += 1;
        if end.reached_end {
            break;
        }
        from = end.next_main;
    }
    assert_eq!(seen, 60);
    assert!(rounds > 5);
    let end = view
        .events(5, 1 << 20, &mut |_| ControlFlow::Break(()))
        .expect("reads");
    assert_eq!((end.next_main, end.reached_end), (5, false));
}

#[test]
fn compaction_frees_large_values_of_few_events() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut w) = open(&dir);
    let large = "v".repeat(100_000);
    for _ in 0..20 {
        put(&mut w, "a", &large);
    }
    let last = put(&mut w, "b", "1");
    let checkpoint = |w: &mut Writer| {
        publish(w);
        let number = w.checkpoint().expect("starts").expect("none was running");
        engine.wait_durable(number).expect("durable");
    };
    // Half of the history in a sealed chunk, half in the open one.
    checkpoint(&mut w);
    for _ in 0..20 {
        put(&mut w, "a", &large);
    }
    publish(&mut w);
    let before = engine.stats().in_use_bytes;
    assert!(before > 40 * 100_000);
    let expected = engine.view().hash_kv(last + 20).expect("hashes").hash;
    w.compact(last + 10).expect("compacts");
    while w.compact_step(Budget { events: 3 }).expect("steps") == CompactProgress::More {}
    // Space is free once no durable state needs it.
    for _ in 0..3 {
        put(&mut w, "c", "1");
        checkpoint(&mut w);
    }
    let after = engine.stats().in_use_bytes;
    assert!(after < 14 * 100_000, "{after} of {before} bytes in use");
    let view = engine.view();
    engine.check(&view).expect("sound");
    let kv = view.get(b"a", last + 10).expect("reads").expect("kept");
    assert_eq!(kv.mod_revision, last + 10);
    assert_eq!(kv.value.len(), large.len());
    assert_ne!(
        view.hash_kv(last + 20).expect("hashes").hash,
        expected,
        "history below is gone from the hash"
    );
    // The rest goes with the next compaction.
    w.compact(last + 20).expect("compacts");
    while w.compact_step(Budget { events: 3 }).expect("steps") == CompactProgress::More {}
    for _ in 0..3 {
        put(&mut w, "c", "1");
        checkpoint(&mut w);
    }
    let after = engine.stats().in_use_bytes;
    assert!(after < 4 * 100_000, "{after} bytes in use");
    engine.check(&engine.view()).expect("sound");
}
