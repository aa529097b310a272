//! The flush hand-over: work is done once and in order, results and errors reach the owner, the end drops
//! nothing and leaves nobody asleep.

use crate::handover::{Answer, Handover};
use crate::model;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

type Place = Arc<Handover<u32, Result<u32, u32>>>;

/// Does pieces until the end; a piece that is 13 fails.
fn serve(place: &Place, done: &AtomicU32) {
    while let Some(work) = place.next() {
        done.fetch_add(1, Ordering::Relaxed);
        place.done(if work == 13 { Err(work) } else { Ok(work) });
    }
    place.leave();
}

/// Two flushes one after the other, then the end: each is done exactly once, by one of the
/// two, its result comes to the owner in order, and nobody sleeps for ever.
#[test]
fn each_piece_is_done_once_and_in_order() {
    model(|| {
        let place: Place = Arc::new(Handover::new());
        let done = Arc::new(AtomicU32::new(0));
        let thread = {
            let (place, done) = (place.clone(), done.clone());
            thread::spawn(move || serve(&place, &done))
        };
        for work in 1..=2 {
            place.give(work);
            match place.collect(true) {
                Answer::Done(result) => assert_eq!(result, Ok(work)),
                Answer::Back(back) => {
                    assert_eq!(back, work);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(done.load(Ordering::Relaxed), work);
        }
        assert_eq!(place.collect(false), Answer::Nothing);
        place.stop();
        thread.join().unwrap();
    });
}

/// An owner that looks now and then, as between other work.
#[test]
fn looking_without_waiting_loses_nothing() {
    model(|| {
        let place: Place = Arc::new(Handover::new());
        let done = Arc::new(AtomicU32::new(0));
        let thread = {
            let (place, done) = (place.clone(), done.clone());
            thread::spawn(move || serve(&place, &done))
        };
        place.give(13);
        let answer = match place.collect(false) {
            Answer::Busy => place.collect(true),
            other => other,
        };
        match answer {
            // The error reaches the owner.
            Answer::Done(result) => assert_eq!(result, Err(13)),
            Answer::Back(13) => {}
            other => panic!("{other:?}"),
        }
        place.stop();
        thread.join().unwrap();
    });
}

/// The end comes while work is there: it is done or handed back, never dropped.
#[test]
fn the_end_drops_no_work() {
    model(|| {
        let place: Place = Arc::new(Handover::new());
        let done = Arc::new(AtomicU32::new(0));
        let thread = {
            let (place, done) = (place.clone(), done.clone());
            thread::spawn(move || serve(&place, &done))
        };
        place.give(1);
        place.stop();
        let back = match place.collect(true) {
            Answer::Done(Ok(1)) => false,
            Answer::Back(1) => true,
            other => panic!("{other:?}"),
        };
        thread.join().unwrap();
        assert_eq!(done.load(Ordering::Relaxed), u32::from(!back));
    });
}

/// The thread dies at work: whoever waits is told.
#[test]
fn a_thread_that_dies_wakes_the_owner() {
    model(|| {
        let place: Place = Arc::new(Handover::new());
        let thread = {
            let place = place.clone();
            thread::spawn(move || {
                let _ = place.next();
                place.leave();
            })
        };
        place.give(1);
        match place.collect(true) {
            Answer::Lost => {}
            Answer::Back(1) => place.stop(),
            other => panic!("{other:?}"),
        }
        thread.join().unwrap();
    });
}

/// The control: the thread tells the result before it has done the work.
#[test]
#[should_panic(expected = "told before it was done")]
fn a_result_told_too_early_is_noticed() {
    model(|| {
        let place: Place = Arc::new(Handover::new());
        let done = Arc::new(AtomicU32::new(0));
        let thread = {
            let (place, done) = (place.clone(), done.clone());
            thread::spawn(move || {
                if let Some(work) = place.next() {
                    place.done(Ok(work));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        place.give(1);
        let early = match place.collect(true) {
            Answer::Done(_) => done.load(Ordering::Relaxed) == 0,
            _ => false,
        };
        place.stop();
        thread.join().unwrap();
        assert!(!early, "told before it was done");
    });
}
