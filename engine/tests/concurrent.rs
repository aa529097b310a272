//! Readers beside the writer: what they see is whole, and never goes back.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use engine::{Applied, Budget, CompactProgress, Engine, KeyRange, Options};

/// Every request moves one unit between two of these keys, so their sum is constant.
const KEYS: u64 = 16;
const EACH: i64 = 100;

fn key(i: u64) -> Bytes {
    Bytes::from(format!("account/{i:02}"))
}

fn amount(value: &[u8]) -> i64 {
    i64::from_be_bytes(value.try_into().expect("eight bytes"))
}

fn read_all(engine: &Engine, newest: &mut i64) {
    let view = engine.view();
    assert!(view.revision() >= *newest, "a view went back");
    assert_eq!(view.applied().index as i64, view.revision());
    *newest = view.revision();
    for at in [0, view.compact_revision().max(2)] {
        let (mut sum, mut n) = (0, 0);
        view.visit(&KeyRange::all(), at, &mut |kv| {
            sum += amount(kv.value);
            n += 1;
            ControlFlow::Continue(())
        })
        .expect("reads");
        assert_eq!((n, sum), (KEYS, KEYS as i64 * EACH), "at {at} of {newest}");
        assert_eq!(view.count(&KeyRange::all(), at).expect("counts"), KEYS);
    }
}

#[test]
fn views_are_whole_and_monotone() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.page_bytes = 512;
    options.cache_bytes = 1 << 20;
    options.chunk_bytes = 2048;
    let (engine, mut writer) = Engine::open(options).expect("opens");
    let mut txn = writer.txn();
    for i in 0..KEYS {
        let value = Bytes::copy_from_slice(&EACH.to_be_bytes());
        txn.put(key(i), value, 0).expect("puts");
    }
    let first = txn.finish();
    let applied = |rev: i64| Applied {
        index: rev as u64,
        term: 1,
    };
    writer.publish(applied(first), b"");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !stop.load(Ordering::Relaxed) {
                    read_all(&engine, &mut newest);
                }
            });
        }
        for step in 0..6000u64 {
            let (from, to) = (step * 7 % KEYS, step * 11 % KEYS);
            if from == to {
                continue;
            }
            let mut txn = writer.txn();
            for (i, change) in [(from, -1), (to, 1)] {
                let old = txn.get(&key(i)).expect("reads").expect("exists");
                let value = (amount(&old.value) + change).to_be_bytes();
                txn.put(key(i), Bytes::copy_from_slice(&value), 0)
                    .expect("puts");
            }
            let rev = txn.finish();
            let published = writer.publish(applied(rev), b"");
            assert_eq!(published.events.len(), 2);
            if step % 500 == 400 {
                writer.compact(rev - 50).expect("compacts");
                writer.publish(applied(rev), b"");
            }
            let _: CompactProgress = writer.compact_step(Budget { events: 20 }).expect("steps");
            if step % 700 == 0 {
                writer.publish(applied(rev), b"");
                writer.checkpoint().expect("starts");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    engine.check(&engine.view()).expect("sound");
}

/// One request deletes more than fits any buffer; history spans many chunks and stays exact.
#[test]
fn a_huge_delete_is_one_revision() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.publish_bytes_max = 1 << 16;
    let (engine, mut writer) = Engine::open(options).expect("opens");
    let n = 20_000u32;
    let mut txn = writer.txn();
    for i in 0..n {
        let value = Bytes::from(vec![i as u8; 40]);
        txn.put(Bytes::from(format!("key/{i:08}")), value, 5)
            .expect("puts");
    }
    txn.put(Bytes::from_static(b"other"), Bytes::new(), 0)
        .expect("puts");
    assert_eq!(txn.finish(), 2);
    let mut txn = writer.txn();
    let range = KeyRange::from_request(b"key/", b"key0");
    let (deleted, prevs) = txn.delete_range(&range, false).expect("deletes");
    assert_eq!((deleted, prevs.len()), (u64::from(n), 0));
    assert_eq!(txn.finish(), 3);
    let published = writer.publish(Applied { index: 2, term: 1 }, b"");
    assert!(published.overflow && published.events.is_empty());
    let view = published.view;
    assert_eq!(view.count(&KeyRange::all(), 0).expect("counts"), 1);
    assert_eq!(view.count(&range, 2).expect("counts"), u64::from(n));
    assert!(view.lease_keys(5).expect("reads").is_empty());
    let mut seen = 0;
    let end = view
        .events(3, 1000, &mut |event| {
            assert_eq!(event.revision().sub, seen);
            let prev = event.prev().expect("reads").expect("had a value");
            assert_eq!(prev.value, vec![seen as u8; 40]);
            seen += 1;
            ControlFlow::Continue(())
        })
        .expect("reads");
    assert_eq!((seen, end.reached_end), (i64::from(n), true));
    assert!(engine.check(&view).expect("sound").chunks > 10);
    // Seals the chunk, so that none holds both dead and living events.
    writer.checkpoint().expect("starts");
    let mut txn = writer.txn();
    txn.put(Bytes::from_static(b"more"), Bytes::new(), 0)
        .expect("puts");
    txn.finish();
    writer.publish(Applied { index: 3, term: 1 }, b"");
    writer.compact(4).expect("compacts");
    while writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
    let view = writer.publish(Applied { index: 4, term: 1 }, b"").view;
    let report = engine.check(&view).expect("sound");
    assert_eq!((report.keys, report.tombstones), (2, 0));
}

/// Memory that the process has, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
    kib.and_then(|n| n.parse::<u64>().ok())
        .expect("VmRSS in kB")
        * 1024
}

/// One request deletes a million keys (`QUORATE_DELETE_KEYS` sets another number) while others read: each of them sees
/// all keys or none and none of them waits for its end; what is gathered in memory is no more than the history it makes.
#[test]
fn a_delete_of_everything_holds_up_no_reader() {
    let n = std::env::var("QUORATE_DELETE_KEYS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000_000u64);
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.cache_bytes = 16 << 20;
    options.publish_bytes_max = 1 << 20;
    let (engine, mut writer) = Engine::open(options).expect("opens");
    let at = |index| Applied { index, term: 1 };
    let name = |i: u64| Bytes::from(format!("key/{i:012}"));
    for from in (0..n).step_by(1000) {
        let mut txn = writer.txn();
        for i in from..n.min(from + 1000) {
            txn.put_with(name(i), Bytes::from(vec![i as u8; 32]), 0, false)
                .expect("puts");
        }
        txn.finish();
        writer.publish(at(from + 1), b"");
        if writer.checkpoint_due() {
            writer.checkpoint().expect("starts");
        }
    }
    writer.publish(at(n + 1), b"");
    loop {
        if let Some(number) = writer.checkpoint().expect("starts") {
            engine.wait_durable(number).expect("durable");
            break;
        }
        std::thread::yield_now();
    }
    let before = writer.revision();
    let all = KeyRange::all();
    let (deleting, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let read_meanwhile = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2u64)
            .map(|reader| {
                let (engine, all, deleting, done) = (&engine, &all, &deleting, &done);
                scope.spawn(move || {
                    let (mut meanwhile, mut i) = (0u64, reader);
                    while !done.load(Ordering::Acquire) {
                        i = (i * 7919 + 1) % n;
                        let began = deleting.load(Ordering::Acquire);
                        let view = engine.view();
                        let count = view.count(all, 0).expect("counts");
                        let found = view.get(&name(i), 0).expect("reads").is_some();
                        assert_eq!(
                            (count, found),
                            if view.revision() == before {
                                (n, true)
                            } else {
                                (0, false)
                            }
                        );
                        let old = view.read(&name(i), before, |kv| kv.value.len());
                        assert_eq!(old.expect("reads"), Some(32));
                        meanwhile += u64::from(began && view.revision() == before);
                    }
                    meanwhile
                })
            })
            .collect();
        deleting.store(true, Ordering::Release);
        let resident = resident_bytes();
        let mut txn = writer.txn();
        let (deleted, prevs) = txn.delete_range(&all, false).expect("deletes");
        assert_eq!((deleted, prevs.len()), (n, 0));
        txn.finish();
        let resident = resident_bytes().saturating_sub(resident);
        // Not published yet: nobody may have seen it, and it weighs what its history and its tombstones weigh.
        let dirty = writer.dirty_bytes();
        assert!(
            dirty < n * 200 + (16 << 20),
            "{dirty} bytes for {n} deletes"
        );
        // Nor does the process, beyond what the page cache, the readers and the tests beside this one take.
        println!("{n} deletes: {dirty} bytes changed, {resident} more resident");
        assert!(
            resident < dirty + (96 << 20),
            "{resident} bytes more resident for {dirty} bytes changed"
        );
        let published = writer.publish(at(n + 2), b"");
        assert!(published.overflow && published.events.is_empty());
        done.store(true, Ordering::Release);
        readers
            .into_iter()
            .map(|reader| reader.join().expect("reads"))
            .sum::<u64>()
    });
    assert!(
        read_meanwhile > 100,
        "{read_meanwhile} reads beside the delete"
    );
    assert_eq!(engine.view().count(&all, 0).expect("counts"), 0);
    assert_eq!(engine.view().count(&all, before).expect("counts"), n);
}

/// Values outside the tree come and go while checkpoints run beside the writer; none is lost.
#[test]
fn runs_outlive_the_checkpoints_that_free_their_neighbours() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.page_bytes = 512;
    options.cache_bytes = 1 << 20;
    options.chunk_bytes = 1024;
    let (engine, mut writer) = Engine::open(options).expect("opens");
    let mut index = 0;
    let mut publish = |writer: &mut engine::Writer| {
        index += 1;
        writer.publish(Applied { index, term: 1 }, b"").view
    };
    let mut checkpoints = 0;
    for step in 0u64.. {
        if checkpoints == 100 {
            break;
        }
        let mut txn = writer.txn();
        let value = Bytes::from(vec![step as u8; 200 + step as usize % 900]);
        txn.put(key(step * 7919 % 5003), value, 0).expect("puts");
        let rev = txn.finish();
        if step % 8 == 0 {
            publish(&mut writer);
            checkpoints += u32::from(writer.checkpoint().expect("starts").is_some());
        }
        if step % 64 == 63 {
            writer.compact(rev - 20).expect("compacts"); // keeps freeing runs
        }
        let _: CompactProgress = writer.compact_step(Budget { events: 4 }).expect("steps");
    }
    let view = publish(&mut writer);
    engine.check(&view).expect("sound");
    loop {
        if let Some(last) = writer.checkpoint().expect("starts") {
            engine.wait_durable(last).expect("durable");
            break;
        }
        std::thread::yield_now();
    }
    engine.check(&engine.view()).expect("sound");
    engine.check_file().expect("sound");
}
