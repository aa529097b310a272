//! Stalls: time that threads on the way of a request spend waiting for what somebody else holds, by cause.
//!
//! Always on, for the whole process. Nothing is counted and no clock is read unless a thread really waits: a lock is tried
//! first. Threads that work in the background say so ([`background_thread`]); their own waits hold nobody up and are not
//! counted.
//!
//! Invariants:
//! 1. Figures only: nothing that is stored or answered depends on them.
//! 2. What one cause counts, is counted by no other.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
use std::time::{Duration, Instant};

/// What a thread waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Cause {
    /// The newest view, being replaced or cloned.
    ViewLock,
    /// The table of states that are held.
    PinsLock,
    /// The mark of the newest durable checkpoint.
    DurableLock,
    /// The desk of the checkpoint thread.
    JobsLock,
    /// The allocator of file space.
    AllocLock,
    /// What defragmentation has noted.
    TailLock,
    /// The table of runs that no checkpoint has written.
    RunsLock,
    /// A part of the page cache.
    CacheLock,
    /// Pages read from the file.
    PageRead,
    /// A page that another thread was reading.
    PageReadByOther,
    /// A durable write of the log that began while background I/O was under way. All of its time counts.
    LogWrite,
    /// Changes that came faster than the checkpoint being written.
    ChangesAhead,
    /// Memory for changes used up: the rest of the checkpoint.
    ChangesFull,
    /// Room for the log on a full disk.
    LogSpace,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 14] = [
        Cause::ViewLock,
        Cause::PinsLock,
        Cause::DurableLock,
        Cause::JobsLock,
        Cause::AllocLock,
        Cause::TailLock,
        Cause::RunsLock,
        Cause::CacheLock,
        Cause::PageRead,
        Cause::PageReadByOther,
        Cause::LogWrite,
        Cause::ChangesAhead,
        Cause::ChangesFull,
        Cause::LogSpace,
    ];

    /// Its name, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::ViewLock => "view_lock",
            Cause::PinsLock => "pins_lock",
            Cause::DurableLock => "durable_lock",
            Cause::JobsLock => "jobs_lock",
            Cause::AllocLock => "alloc_lock",
            Cause::TailLock => "tail_lock",
            Cause::RunsLock => "runs_lock",
            Cause::CacheLock => "cache_lock",
            Cause::PageRead => "page_read",
            Cause::PageReadByOther => "page_read_by_other",
            Cause::LogWrite => "log_write",
            Cause::ChangesAhead => "changes_ahead",
            Cause::ChangesFull => "changes_full",
            Cause::LogSpace => "log_space",
        }
    }
}

/// Upper bounds of the histogram's buckets in microseconds; the last bucket has none.
pub const BOUNDS_MICROS: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000,
    1_000_000, 5_000_000,
];

struct Waits {
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Waits {
    const fn new() -> Waits {
        Waits {
            buckets: [const { AtomicU64::new(0) }; BOUNDS_MICROS.len() + 1],
            nanos: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }

    fn record(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let nanos = took.as_nanos() as u64;
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.longest.fetch_max(nanos, Ordering::Relaxed);
    }
}

static WAITS: [Waits; Cause::ALL.len()] = [const { Waits::new() }; Cause::ALL.len()];

/// What was seen of one cause since the process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalls {
    /// Which.
    pub cause: Cause,
    /// Waits by length: as many as [`BOUNDS_MICROS`], and one for those longer than all.
    pub buckets: Vec<u64>,
    /// Time of all waits.
    pub total: Duration,
    /// The longest wait since [`take_longest`] was called last.
    pub longest: Duration,
}

impl Stalls {
    /// How many waits.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What was seen so far, of every cause.
pub fn seen() -> Vec<Stalls> {
    let of = |cause: Cause| {
        let waits = &WAITS[cause as usize];
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stalls {
            cause,
            buckets: waits.buckets.iter().map(load).collect(),
            total: Duration::from_nanos(load(&waits.nanos)),
            longest: Duration::from_nanos(load(&waits.longest)),
        }
    };
    Cause::ALL.map(of).into()
}

/// As [`seen`]; the longest wait is looked for afresh from now on.
pub fn take_longest() -> Vec<Stalls> {
    let seen = seen();
    for waits in &WAITS {
        waits.longest.store(0, Ordering::Relaxed);
    }
    seen
}

thread_local! {
    static BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread works in the background: its waits hold no request up.
pub fn background_thread() {
    BACKGROUND.set(true);
}

/// Notes a wait of this thread.
pub fn record(cause: Cause, took: Duration) {
    if !BACKGROUND.get() {
        WAITS[cause as usize].record(took);
    }
}

/// Runs what makes this thread wait, and notes how long it took.
pub(crate) fn waiting<R>(cause: Cause, f: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = f();
    record(cause, begun.elapsed());
    result
}

/// Takes a lock, and notes the wait if there is one. Poison is passed over: see `store::lock`.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>, cause: Cause) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => waiting(cause, || {
            mutex.lock().unwrap_or_else(PoisonError::into_inner)
        }),
    }
}

/// A lock that knows what waiting for it is to be called.
pub(crate) struct Watched<T> {
    mutex: Mutex<T>,
    cause: Cause,
}

impl<T> Watched<T> {
    pub fn new(cause: Cause, value: T) -> Watched<T> {
        Watched {
            mutex: Mutex::new(value),
            cause,
        }
    }
}

/// As [`lock`], of a lock for many readers, for reading.
pub(crate) fn read<T>(lock: &RwLock<T>, cause: Cause) -> RwLockReadGuard<'_, T> {
    match lock.try_read() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => waiting(cause, || {
            lock.read().unwrap_or_else(PoisonError::into_inner)
        }),
    }
}

/// As [`read`], for writing.
pub(crate) fn write<T>(lock: &RwLock<T>, cause: Cause) -> RwLockWriteGuard<'_, T> {
    match lock.try_write() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => waiting(cause, || {
            lock.write().unwrap_or_else(PoisonError::into_inner)
        }),
    }
}

/// What can be locked with a wait that goes unnoticed or not.
pub(crate) trait Lock {
    /// What is behind it.
    type Value: ?Sized;

    /// Takes the lock.
    fn take(&self) -> MutexGuard<'_, Self::Value>;
}

impl<T: ?Sized> Lock for Mutex<T> {
    type Value = T;

    fn take(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Lock for Watched<T> {
    type Value = T;

    fn take(&self) -> MutexGuard<'_, T> {
        lock(&self.mutex, self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cause: Cause) -> Stalls {
        seen().swap_remove(cause as usize)
    }

    #[test]
    fn waits_stand_in_their_bucket() {
        let waits = Waits::new();
        for micros in [1, 10, 11, 5000, 5001, 60_000_000] {
            waits.record(Duration::from_micros(micros));
        }
        let counts = waits.buckets.each_ref().map(|n| n.load(Ordering::Relaxed));
        let at = |bound| BOUNDS_MICROS.iter().position(|b| *b == bound).unwrap();
        let mut expected = [0; BOUNDS_MICROS.len() + 1];
        expected[at(10)] = 2;
        expected[at(25)] = 1;
        expected[at(5000)] = 1;
        expected[at(10_000)] = 1;
        expected[BOUNDS_MICROS.len()] = 1;
        assert_eq!(counts, expected);
        assert_eq!(
            waits.longest.load(Ordering::Relaxed),
            Duration::from_secs(60).as_nanos() as u64
        );
    }

    #[test]
    fn causes_stand_at_their_place_and_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> =
            Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        for (at, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
            assert_eq!(of(cause).cause, cause);
        }
    }

    /// A lock that is held counts for who waits, under its cause; one that is free counts for nobody, and neither does a
    /// wait in the background.
    #[test]
    fn only_real_waits_of_request_threads_count() {
        // No other test has such a lock.
        let cause = Cause::LogSpace;
        let watched = Watched::new(cause, 0);
        let before = of(cause).count();
        *watched.take() += 1;
        assert_eq!(of(cause).count(), before, "nobody waited");
        let wait = |in_background: bool| {
            let held = watched.take();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    if in_background {
                        background_thread();
                    }
                    *watched.take() += 1;
                });
                // Long enough for the other to find it taken.
                std::thread::sleep(Duration::from_millis(50));
                drop(held);
                waiter.join().unwrap();
            });
        };
        wait(true);
        assert_eq!(of(cause).count(), before);
        // A machine that is busy enough may have the other come too late.
        while of(cause).count() == before {
            wait(false);
        }
        assert!(of(cause).total > Duration::ZERO);
        assert!(of(cause).longest > Duration::ZERO);
    }
}
