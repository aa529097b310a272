//! One piece of work at a time, from the owner to a thread that does it, and its result back.
//!
//! Invariants:
//! 1. Work is done once: by the thread, or by an owner that takes it back before the thread has
//!    begun.
//! 2. Whoever waits is woken by the one change that ends the wait: work given, a result, the end.
//! 3. When the thread ends, by [`Handover::stop`] or by a panic, an owner that waits gets an answer.
//! 4. The lock is held for moves of small values, never while work is done.

use crate::sync::{Condvar, Mutex, MutexGuard};

enum State<W, R> {
    Idle,
    Given(W),
    Working,
    Done(R),
}

struct Shared<W, R> {
    state: State<W, R>,
    stop: bool,
    /// The thread has ended.
    gone: bool,
}

/// The one place between the two.
pub(crate) struct Handover<W, R> {
    shared: Mutex<Shared<W, R>>,
    changed: Condvar,
}

/// What the owner gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<W, R> {
    /// Nothing was given.
    Nothing,
    /// It is being done, or will be.
    Busy,
    Done(R),
    /// The thread had not begun: the owner has it back and does it itself.
    Back(W),
    /// The thread ended while it was at work.
    Lost,
}

impl<W, R> Handover<W, R> {
    pub fn new() -> Handover<W, R> {
        Handover {
            shared: Mutex::new(Shared {
                state: State::Idle,
                stop: false,
                gone: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<W, R>> {
        self.shared.lock().unwrap_or_else(|e| e.into_inner())
    }

    // ---- the owner's side ----------------------------------------------------------------------

    /// Gives work; the place must be free.
    pub fn give(&self, work: W) {
        let mut shared = self.lock();
        assert!(matches!(shared.state, State::Idle), "one piece at a time");
        shared.state = State::Given(work);
        drop(shared);
        self.changed.notify_all();
    }

    /// Looks for the result; with `wait` until there is an answer other than `Busy`.
    pub fn collect(&self, wait: bool) -> Answer<W, R> {
        let mut shared = self.lock();
        loop {
            match std::mem::replace(&mut shared.state, State::Idle) {
                State::Idle => return Answer::Nothing,
                State::Done(result) => return Answer::Done(result),
                State::Given(work) if wait || shared.gone => return Answer::Back(work),
                State::Given(work) => {
                    shared.state = State::Given(work);
                    return Answer::Busy;
                }
                State::Working if shared.gone => return Answer::Lost,
                State::Working => shared.state = State::Working,
            }
            if !wait {
                return Answer::Busy;
            }
            shared = self.changed.wait(shared).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Ends the thread once it is not at work.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    // ---- the thread's side -----------------------------------------------------------------------

    /// The next piece; `None` at the end. Blocks.
    pub fn next(&self) -> Option<W> {
        let mut shared = self.lock();
        loop {
            match std::mem::replace(&mut shared.state, State::Working) {
                State::Given(work) => return Some(work),
                other => shared.state = other,
            }
            if shared.stop {
                return None;
            }
            shared = self.changed.wait(shared).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// The piece taken is done.
    pub fn done(&self, result: R) {
        self.lock().state = State::Done(result);
        self.changed.notify_all();
    }

    /// To be called by the thread when it ends, however it ends.
    pub fn leave(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    //! Run with `RUSTFLAGS="--cfg loom" cargo test -p raftlog --lib --release loom`.

    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;

    fn model(f: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(f);
    }

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
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn work_is_taken_back_if_nobody_has_begun() {
        let place: Handover<u32, u32> = Handover::new();
        assert_eq!(place.collect(true), Answer::Nothing);
        place.give(7);
        assert_eq!(place.collect(false), Answer::Busy);
        assert_eq!(place.collect(true), Answer::Back(7));
        place.give(8);
        assert_eq!(place.next(), Some(8));
        assert_eq!(place.collect(false), Answer::Busy);
        place.done(9);
        assert_eq!(place.collect(true), Answer::Done(9));
    }

    #[test]
    fn an_owner_that_waits_is_told_when_the_thread_is_gone() {
        let place: Arc<Handover<u32, u32>> = Arc::new(Handover::new());
        place.give(1);
        let thread = {
            let place = place.clone();
            std::thread::spawn(move || {
                assert_eq!(place.next(), Some(1));
                place.leave();
            })
        };
        thread.join().unwrap();
        assert_eq!(place.collect(true), Answer::Lost);
        place.give(2);
        assert_eq!(place.collect(false), Answer::Back(2));
    }
}
