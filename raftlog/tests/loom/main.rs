//! Every interleaving of the log's hand-overs, by loom: segments between the owner and the background, a
//! flush between the owner and its thread, and places to read from between the owner and readers.
//!
//! The modules themselves are compiled here once more, with loom's locks in the place of the standard
//! library's; no compiler flag is needed. One thread drives a log, so these are all the hand-overs it has:
//! who proposes and who waits for an answer meet in the server, in front of that thread.

#![allow(dead_code)]

#[path = "../../src/flush/handover.rs"]
mod handover;
mod handover_models;
#[path = "../../src/index.rs"]
mod index;
#[path = "../../src/pool.rs"]
mod pool;
mod pool_models;
#[path = "../../src/published.rs"]
mod published;
mod published_models;

/// What the modules name in the place of `std::sync`.
mod sync {
    pub use loom::sync::{Mutex, MutexGuard};
    use std::sync::LockResult;
    use std::time::Duration;

    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        /// There is no time: a wait for one change.
        pub fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _limit: Duration,
        ) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl Default for Condvar {
        fn default() -> Condvar {
            Condvar::new()
        }
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}
