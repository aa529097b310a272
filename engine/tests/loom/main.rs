//! Every interleaving of the engine's hand-overs, by loom: publication of views against readers and reclamation, the
//! page cache, the published length of a chunk, long readers against compaction.
//!
//! The modules themselves are compiled here once more, with loom's locks, cells and reference counts in the place of
//! the standard library's; no compiler flag is needed. Each model has a negative control: the same modules with one
//! rule broken, which loom must find.

#![allow(dead_code)]

mod events;
mod history;
#[path = "../../src/mvcc/shards.rs"]
mod shards;
mod store;

/// What the modules name in the place of `std::sync`.
mod sync {
    use std::cell::Cell;

    pub use loom::sync::atomic::AtomicU64;
    pub use loom::sync::{Arc, Mutex, MutexGuard};
    pub use std::sync::atomic::Ordering;

    thread_local! {
        /// Negative control: nobody is ever woken. (All threads of a model run on one of the system.)
        pub static DEAF: Cell<bool> = const { Cell::new(false) };
    }

    pub struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }
    }

    impl Condvar {
        pub fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> std::sync::LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub fn notify_all(&self) {
            if !DEAF.get() {
                self.0.notify_all();
            }
        }
    }
}

#[path = "../../src/stall.rs"]
mod real_stall;

/// Where the modules would count their waits.
mod stall {
    pub use crate::real_stall::Cause;

    use crate::sync::{Mutex, MutexGuard};

    pub fn lock<T: ?Sized>(mutex: &Mutex<T>, _: Cause) -> MutexGuard<'_, T> {
        mutex
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn waiting<R>(_: Cause, f: impl FnOnce() -> R) -> R {
        f()
    }
}

use events::append_buf::{AppendBuf, Published};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(f);
}

/// A negative control: some interleaving of this model must fail, with this complaint. It does so in a process of its
/// own, since loom may not survive what it finds. `name` is that of the test.
fn must_fail(name: &str, complaint: &str, f: impl Fn() + Sync + Send + 'static) {
    const WITHIN: &str = "QUORATE_BROKEN_MODEL";
    if std::env::var(WITHIN).is_ok_and(|within| within == name) {
        return model(f);
    }
    let ended = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(WITHIN, name)
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "nothing was found: {said}");
    assert!(said.contains(complaint), "something else was found: {said}");
}

// --- the length of a chunk --------------------------------------------------------------------------------------------

/// The owner appends on while a reader reads what was published to it.
#[test]
fn the_published_prefix_is_whole_while_the_owner_appends() {
    model(|| {
        let newest: Arc<Mutex<Option<Published>>> = Arc::new(Mutex::new(None));
        let reader = {
            let newest = newest.clone();
            thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..2 {
                    let Some(published) = newest.lock().unwrap().clone() else {
                        continue;
                    };
                    let bytes = published.as_slice();
                    assert!(bytes.len() >= seen, "a length went back");
                    assert!(bytes.iter().eq([1, 2, 3].iter().take(bytes.len())));
                    seen = bytes.len();
                }
            })
        };
        let mut buf = AppendBuf::new(3);
        for byte in 1..=3u8 {
            assert!(buf.append(&[byte]));
            *newest.lock().unwrap() = Some(buf.published());
        }
        assert!(!buf.append(&[4]), "there is no room");
        reader.join().unwrap();
        assert_eq!(buf.as_slice(), [1, 2, 3]);
    });
}

/// Negative control: the length goes over without a hand-over that orders what lies below it.
#[test]
fn a_length_that_is_not_handed_over_is_found() {
    let name = "a_length_that_is_not_handed_over_is_found";
    must_fail(name, "Causality violation", || {
        let cells = Arc::new(events::cells::Cells::new(1));
        let len = Arc::new(AtomicUsize::new(0));
        let reader = {
            let (cells, len) = (cells.clone(), len.clone());
            thread::spawn(move || {
                let len = len.load(Ordering::Relaxed);
                // SAFETY: none, that is the point; loom finds it.
                unsafe { cells.read(len) };
            })
        };
        // SAFETY: nothing is written twice.
        unsafe { cells.write(0, &[1]) };
        len.store(1, Ordering::Relaxed);
        reader.join().unwrap();
    });
}
