//! What happens beside the owner: readers, a flush thread, a disk that hangs.
//!
//! A hang is a call that does not return until the test lets it. Nothing here waits for a clock.

use super::harness::entry;
use crate::{Backend, Entry, HardState, Log, Options, ReadError, Stall};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, OpKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

fn options(disk: &Disk, flush_thread: bool) -> Options {
    Options {
        segment_bytes: 64 << 10,
        backend: Backend::Sim(disk.clone()),
        flush_thread,
        ..Options::new("log")
    }
}

/// Lets durable writes of `disk` hang until the sender is dropped; says when one has begun to.
fn hang(disk: &Disk) -> (Sender<()>, Receiver<()>) {
    let (release, released) = channel::<()>();
    let (begun, has_begun) = channel();
    disk.fail_when(move |op| {
        if op.kind == OpKind::WriteDsync {
            let _ = begun.send(());
            let _ = released.recv();
        }
        None
    });
    (release, has_begun)
}

#[test]
fn a_flush_that_hangs_is_told_of_while_its_owner_waits() {
    let disk = Disk::new(1);
    let (mut log, _) = Log::open(options(&disk, false)).unwrap();
    let (tell, told) = channel();
    let hook = Box::new(move |stall| tell.send(stall).unwrap());
    log.set_on_stall(Duration::from_millis(4), hook).unwrap();
    let clock = log.flush_clock();
    assert_eq!(clock.in_flight(), None);
    let (release, has_begun) = hang(&disk);
    let owner = std::thread::spawn(move || {
        let mark = log.append(&[entry(1, 1, 10)], None).unwrap();
        assert!(log.sync().covers(mark), "the write went through in the end");
        log
    });
    has_begun.recv().unwrap();
    assert!(matches!(told.recv().unwrap(), Stall::Begun(t) if t >= Duration::from_millis(4)));
    assert!(matches!(told.recv().unwrap(), Stall::Goes(_)));
    assert!(clock.stalled(Duration::from_millis(4)).is_some());
    drop(release);
    let log = owner.join().unwrap();
    assert_eq!(clock.in_flight(), None);
    // What was told last before the end is doubled no more often than it went on.
    let last = told.iter().find(|s| !matches!(s, Stall::Goes(_)));
    assert!(matches!(last, Some(Stall::Ended(_))), "{last:?}");
    drop(log);
}

#[test]
fn with_a_flush_thread_the_owner_goes_on_and_is_woken() {
    let disk = Disk::new(1);
    let (mut log, _) = Log::open(options(&disk, true)).unwrap();
    let (wake, woken) = channel();
    let wake = std::sync::Mutex::new(wake);
    let waker = Arc::new(move || wake.lock().unwrap().send(()).unwrap());
    assert!(log.set_waker(waker));
    let (release, has_begun) = hang(&disk);
    let first = log.append(&[entry(1, 1, 10)], None).unwrap();
    log.flush();
    has_begun.recv().unwrap();
    // The disk hangs; the owner appends, looks, and knows how long it has been.
    let second = log.append(&[entry(2, 1, 10)], None).unwrap();
    log.flush();
    assert!(!log.poll().covers(first));
    assert!(log.flush_clock().in_flight().is_some());
    assert_eq!(log.last_index(), 2);
    assert!(matches!(
        log.entries(1, 2, 1000),
        Err(ReadError::Unavailable { last_index: 0 })
    ));
    drop(release);
    woken.recv().unwrap();
    // The second flush begins when the end of the first is noticed.
    while !log.poll().covers(first) {}
    woken.recv().unwrap();
    while !log.poll().covers(second) {}
    assert_eq!(log.stats().flushes, 2);
    assert_eq!(log.entries(1, 3, 1000).unwrap().len(), 2);
}

#[test]
fn an_error_in_the_flush_thread_ends_the_log() {
    let disk = Disk::new(1);
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = lines.clone();
    let (mut log, _) = Log::open(Options {
        fatal: Some(Arc::new(move |line: &str| {
            seen.lock().unwrap().push(line.to_string());
        })),
        ..options(&disk, true)
    })
    .unwrap();
    disk.fail_when(|op| (op.kind == OpKind::WriteDsync).then_some(simdisk::Fault::Eio));
    let mark = log.append(&[entry(1, 1, 10)], None).unwrap();
    log.flush();
    while lines.lock().unwrap().is_empty() {
        assert!(!log.poll().covers(mark));
    }
    assert!(!log.sync().covers(mark));
    assert!(lines.lock().unwrap()[0].contains("cannot write"));
    assert!(log.append(&[entry(2, 1, 10)], None).is_err());
}

/// Readers beside an owner that appends, replaces, trims and recycles over real files.
#[test]
fn readers_see_durable_entries_or_are_told_where_the_log_is() {
    let temp = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(Options {
        segment_bytes: 64 << 10,
        backend: Backend::Sync,
        ..Options::new(temp.path())
    })
    .unwrap();
    let over = AtomicBool::new(false);
    let (read, trimmed) = (AtomicU64::new(0), AtomicU64::new(0));
    let reader = log.reader();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (over, read, trimmed) = (&over, &read, &trimmed);
            let mut reader = reader.clone();
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut from = 1;
                while !over.load(Ordering::Relaxed) {
                    let to = from + rng.gen_range(1..30);
                    match reader.entries(from, to, 50_000) {
                        Ok(entries) => {
                            for (e, index) in entries.iter().zip(from..) {
                                check(e, index);
                            }
                            from += entries.len() as u64;
                            read.fetch_add(entries.len() as u64, Ordering::Relaxed);
                        }
                        Err(ReadError::Trimmed { first_index }) => {
                            assert!(first_index > from);
                            from = first_index;
                            trimmed.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(ReadError::Unavailable { last_index }) => {
                            assert!(last_index + 1 < to);
                            from = from.saturating_sub(rng.gen_range(0..200)).max(1);
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            });
        }
        let mut rng = StdRng::seed_from_u64(9);
        let mut hs = HardState::default();
        // Until the readers have seen enough of everything.
        while read.load(Ordering::Relaxed) < 3000 || trimmed.load(Ordering::Relaxed) < 3 {
            hs.term += u64::from(rng.gen_range(0..10) == 0);
            let last = log.last_index();
            let from = match rng.gen_range(0..6) {
                0 => rng.gen_range(hs.commit + 1..=last + 1),
                _ => last + 1,
            };
            let entries: Vec<_> = (from..from + rng.gen_range(1..5))
                .map(|i| entry(i, hs.term, rng.gen_range(1..6000)))
                .collect();
            let last = entries.last().map_or(last, |e| e.index);
            hs.commit = hs.commit.max(last.saturating_sub(8));
            log.append(&entries, Some(hs)).unwrap();
            log.sync();
            log.trim(hs.commit.saturating_sub(150).max(1));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(log.stats().rolls > 3);
}

fn check(found: &Entry, index: u64) {
    assert_eq!(found.index, index);
    let tells = format!("{index}/{} ", found.term);
    assert!(found.data.starts_with(tells.as_bytes()), "{found:?}");
}
