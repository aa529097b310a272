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
