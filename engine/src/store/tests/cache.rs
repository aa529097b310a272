//! The page cache alone: its limit, failed loads, one load for many.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::store::cache::{Cache, Frame};
use crate::store::error::{Error, Result};
use crate::store::page::Addr;

fn addr(unit: u64) -> Addr {
    Addr { unit, birth: 1 }
}

fn run_of(bytes: usize) -> Result<Frame> {
    Ok(Frame::Run(Bytes::from(vec![0; bytes])))
}

#[test]
fn the_limit_holds_whatever_comes() {
    let cache = Cache::new(100_000, 4096);
    for i in 0..5000u64 {
        let bytes = [100, 4096, 9000, 30_000, 200_000][(i % 5) as usize];
        cache.get_or_load(addr(i % 700), || run_of(bytes)).unwrap();
        cache.get_or_load(addr(i % 7), || run_of(4096)).unwrap();
        if i % 3 == 0 {
            cache.insert(addr(i), run_of(4096).unwrap());
        }
        assert!(cache.stats().bytes <= 100_000);
    }
    let stats = cache.stats();
    assert!(
        stats.evictions > 1000 && stats.hits > 0 && stats.bytes > 50_000,
        "{stats:?}"
    );
}

#[test]
fn a_failed_load_is_tried_again() {
    let cache = Cache::new(100_000, 4096);
    assert!(cache.get_or_load(addr(1), || Err(Error::Closed)).is_err());
    assert!(cache.get_or_load(addr(1), || run_of(10)).is_ok());
    assert!(cache.get_or_load(addr(1), || Err(Error::Closed)).is_ok());
}

#[test]
fn a_panicking_load_lets_the_others_go() {
    let cache = Cache::new(100_000, 4096);
    let started = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            let load = || -> Result<Frame> {
                started.wait();
                std::thread::sleep(std::time::Duration::from_millis(20));
                std::panic::resume_unwind(Box::new("load"))
            };
            cache.get_or_load(addr(1), load).is_ok()
        });
        started.wait();
        // Either it follows and is let go, or it comes late and loads itself.
        let _ = cache.get_or_load(addr(1), || run_of(10));
        assert!(leader.join().is_err());
    });
    assert!(cache.get_or_load(addr(1), || run_of(10)).is_ok());
}

#[test]
fn many_readers_one_load() {
    let cache = Cache::new(100_000, 4096);
    let loads = AtomicUsize::new(0);
    for unit in 0..50 {
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let load = || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        run_of(10)
                    };
                    cache.get_or_load(addr(unit), load).unwrap();
                });
            }
        });
    }
    assert_eq!(loads.load(Ordering::Relaxed), 50);
}

/// What was retired goes first, whatever its use; what is warm stays; queues and books stay bounded and right.
#[test]
fn retired_frames_go_first() {
    let cache = Cache::new(1_000_000, 4096);
    let load = |unit| cache.get_or_load(addr(unit), || run_of(4096)).unwrap();
    let misses = || cache.stats().misses;
    let hot: Vec<u64> = (0..150).collect();
    for _ in 0..5 {
        hot.iter().for_each(|unit| drop(load(*unit)));
    }
    let rounds = |retire: bool, from: u64| {
        let before = misses();
        for round in 0..200 {
            // As checkpoints do: new pages in, used a while, replaced by others.
            for i in 0..60 {
                let unit = from + round * 60 + i;
                cache.insert(addr(unit), run_of(4096).unwrap());
                for _ in 0..3 {
                    load(unit);
                }
                if retire {
                    cache.retire(addr(unit));
                }
            }
            if round % 10 == 0 {
                hot.iter().for_each(|unit| drop(load(*unit)));
            }
            assert!(cache.stats().bytes <= 1_000_000);
        }
        misses() - before
    };
    let retiring = rounds(true, 10_000);
    assert!(retiring < 50, "{retiring} warm pages were thrown out");
    // Negative control.
    let keeping = rounds(false, 100_000);
    assert!(keeping > 1000, "only {keeping} misses");
    // A retired frame can be had as long as it is here, and comes back when asked for again.
    cache.retire(addr(3));
    load(3);
    for unit in 0..400 {
        load(500_000 + unit);
    }
    load(3);
    assert!(cache.stats().bytes <= 1_000_000);
}
