//! Every interleaving of small hand-overs: no lost wake-up, no segment lost or given twice.

use crate::model;
use crate::pool::{Job, NoSegment, Pool, Retired};
use loom::sync::Arc;
use loom::thread;

/// The background's loop over files that are numbers: `made` may be filled before the disk is full.
fn background(pool: Arc<Pool<u32>>, made: u32) {
    let mut next = 0;
    loop {
        match pool.next_job() {
            Job::Stop => return,
            Job::Nothing => pool.wait_for_job(),
            Job::Stage { free, .. } => pool.staged(free),
            Job::Retire(Retired::Segment { file, recycle, .. }) if recycle => pool.add_free(file),
            Job::Retire(_) => {}
            Job::Fill if next < made => {
                next += 1;
                pool.add_free(next);
            }
            Job::Fill => {
                pool.set_full();
                pool.rest(std::time::Duration::ZERO, false);
            }
        }
    }
}

#[test]
fn the_owner_gets_each_segment_once_and_never_waits_forever() {
    model(|| {
        let pool = Arc::new(Pool::new(Vec::new(), 2, 2, 2));
        let worker = {
            let pool = pool.clone();
            thread::spawn(move || background(pool, 3))
        };
        assert_eq!(pool.wait_for_more_than(1), Ok(()));
        let first = pool.wait_and_take().unwrap();
        assert!(pool.ready() >= 1, "what was promised stays");
        assert!(pool.take().is_none(), "no other has a name yet");
        pool.begun();
        let second = pool.wait_and_take().unwrap();
        assert_ne!(first, second);
        pool.stop();
        worker.join().unwrap();
    });
}

/// The reserve is complete, so that nothing but the staging itself can wake the owner.
#[test]
fn staging_alone_wakes_the_owner() {
    model(|| {
        let pool = Arc::new(Pool::new(vec![1, 2], 2, 2, 2));
        let worker = {
            let pool = pool.clone();
            thread::spawn(move || background(pool, 0))
        };
        assert_eq!(pool.wait_and_take(), Ok(2));
        pool.stop();
        worker.join().unwrap();
    });
}

#[test]
fn a_full_disk_ends_the_wait_and_a_retired_segment_ends_the_rest() {
    model(|| {
        let pool = Arc::new(Pool::new(vec![9], 2, 2, 2));
        let worker = {
            let pool = pool.clone();
            thread::spawn(move || {
                loop {
                    match pool.next_job() {
                        Job::Stage { free, .. } => pool.staged(free),
                        Job::Fill => {
                            pool.set_full();
                            pool.rest(std::time::Duration::ZERO, false);
                        }
                        Job::Retire(Retired::Segment { file, .. }) => {
                            pool.add_free(file);
                            return;
                        }
                        _ => unreachable!("there is always something missing"),
                    }
                }
            })
        };
        assert_eq!(pool.wait_for_more_than(1), Err(NoSegment::Full));
        pool.retire(Retired::Segment {
            seq: 1,
            file: 8,
            recycle: true,
        });
        worker.join().unwrap();
        assert_eq!(pool.more_than(1), Some(Ok(())));
    });
}

#[test]
fn stopping_wakes_a_resting_background() {
    model(|| {
        let pool = Arc::new(Pool::new(vec![1, 2], 2, 2, 2));
        let worker = {
            let pool = pool.clone();
            thread::spawn(move || background(pool, 0))
        };
        pool.stop();
        worker.join().unwrap();
    });
}

#[test]
fn a_failure_in_the_background_ends_the_owners_wait() {
    model(|| {
        let pool: Arc<Pool<u32>> = Arc::new(Pool::new(Vec::new(), 2, 2, 2));
        let worker = {
            let pool = pool.clone();
            thread::spawn(move || {
                assert!(matches!(pool.next_job(), Job::Fill));
                pool.set_failed();
                assert!(matches!(pool.next_job(), Job::Stop));
            })
        };
        assert_eq!(pool.wait_and_take(), Err(NoSegment::Failed));
        worker.join().unwrap();
    });
}
