//! How fast background I/O goes: it leaves the disk to the log, and yet a checkpoint ends before the memory for changes is
//! full.
//!
//! A disk works off what it was handed, whoever waits for it: a durable write of the log that comes upon a mebibyte of
//! pages in the queue waits for that mebibyte. So background work hands over little at a time:
//!
//! - **calm**: up to [`CALM_BYTES`], one after the other, each only when the log is not being written (for a bounded time);
//! - **brisk**: the same with [`BRISK_BYTES`], while the file is to shrink because somebody asked: that takes many
//!   checkpoints, and each rewrites what was changed since the last;
//! - **urgent**: as much as the caller has gathered: when changes come faster than the checkpoint being written, when
//!   somebody waits for it, or when nobody uses the log.
//!
//! There are no pauses between pieces: a checkpoint that takes long makes the next one larger, and a shrink, which
//! needs many, take minutes.
//!
//! Whether changes come too fast is told by shares. Between the changed bytes at a checkpoint's beginning and the limit lies
//! the room for new ones. In its first half the checkpoint should be written by the time as large a share of it is
//! used: behind that it is urgent. In the second half the writer waits until the checkpoint has come as far as the
//! changes have: in small portions, so that what waits behind it is slowed down and never stopped, unless the limit
//! itself is reached.
//!
//! Invariants:
//! 1. Every wait here is bounded, whatever the others do.
//! 2. What is written, and in which order around a sync, does not depend on it.
//! 3. Without a thread (simulation) there are no waits and no clocks.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::{lock, stall};

/// Handed to the disk at a time while calm.
pub(super) const CALM_BYTES: usize = 16 << 10;
/// Handed to the disk at a time while brisk.
const BRISK_BYTES: usize = 64 << 10;

/// How often a piece looks whether the log's write has ended, and how long it lets it go first.
const LOOK: Duration = Duration::from_micros(50);
const GIVE_WAY_MAX: Duration = Duration::from_millis(2);
/// So long after its last write the log counts as used no more.
const IDLE: Duration = Duration::from_millis(20);

pub(super) struct Pace {
    /// False: no waits.
    background: bool,
    /// Changed bytes that are not to be passed.
    limit: u64,
    /// The log is being written.
    log_waits: AtomicBool,
    /// Writes of the log so far.
    log_writes: AtomicU64,
    /// Pieces of background I/O in the hands of the disk.
    under_way: AtomicU32,
    /// Those who wait for a checkpoint.
    hurried: AtomicU32,
    /// Changed bytes, as of the newest publish.
    dirty: AtomicU64,
    /// Of the checkpoint being written: bytes in all, 0 when there is none; bytes written; changed bytes at its beginning.
    of: AtomicU64,
    written: AtomicU64,
    began_at: AtomicU64,
    /// Those who wait for it to come further.
    waiters: AtomicU32,
    desk: Mutex<()>,
    moved: Condvar,
    /// Times that background I/O let the log go first.
    pub gave_way: AtomicU64,
}

impl Pace {
    pub fn new(background: bool, limit: u64) -> Pace {
        Pace {
            background,
            limit,
            log_waits: AtomicBool::new(false),
            log_writes: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            hurried: AtomicU32::new(0),
            dirty: AtomicU64::new(0),
            of: AtomicU64::new(0),
            written: AtomicU64::new(0),
            began_at: AtomicU64::new(0),
            waiters: AtomicU32::new(0),
            desk: Mutex::default(),
            moved: Condvar::new(),
            gave_way: AtomicU64::new(0),
        }
    }

    // --- what others say -----------------------------------------------------------------------------------------

    /// The log is about to be written. Since when it counts as held up: background I/O is under way.
    pub fn log_begins(&self) -> Option<Instant> {
        self.log_writes.fetch_add(1, Ordering::Relaxed);
        self.log_waits.store(true, Ordering::Relaxed);
        (self.under_way.load(Ordering::Relaxed) > 0).then(Instant::now)
    }

    pub fn log_ends(&self, held_up_since: Option<Instant>) {
        self.log_waits.store(false, Ordering::Relaxed);
        if let Some(since) = held_up_since {
            stall::record(stall::Cause::LogWrite, since.elapsed());
        }
    }

    pub fn set_dirty(&self, bytes: u64) {
        self.dirty.store(bytes, Ordering::Relaxed);
    }

    pub fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Until the answer is dropped somebody waits for the checkpoint being written.
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::Relaxed);
        Hurry(self)
    }

    /// A checkpoint of so many bytes begins. At least one, so that it can be told from none.
    pub fn begin(&self, bytes: u64) {
        self.began_at.store(self.dirty(), Ordering::Relaxed);
        self.written.store(0, Ordering::Relaxed);
        self.of.store(bytes.max(1), Ordering::SeqCst);
    }

    /// It ended, well or not.
    pub fn end(&self) {
        self.of.store(0, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.desk));
            self.moved.notify_all();
        }
    }

    // --- the writer ----------------------------------------------------------------------------------------------

    /// Changed bytes at which the second half of the room begins.
    fn soft(&self) -> u64 {
        let began_at = self.began_at.load(Ordering::Relaxed);
        began_at + self.limit.saturating_sub(began_at) / 2
    }

    /// Waits while changes are further ahead than the checkpoint being written, but not longer than `longest`. What is
    /// written counts for nine tenths; the last one comes with its end.
    pub fn keep(&self, dirty: u64, longest: Duration) {
        let soft = self.soft();
        if dirty <= soft || !self.background || !self.is_behind(dirty, soft) {
            return;
        }
        stall::waiting(stall::Cause::ChangesAhead, || {
            self.waiters.fetch_add(1, Ordering::SeqCst);
            let desk = lock(&self.desk);
            let waited = self
                .moved
                .wait_timeout_while(desk, longest, |()| self.is_behind(dirty, soft));
            drop(waited.unwrap_or_else(|poisoned| poisoned.into_inner()));
            self.waiters.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn is_behind(&self, dirty: u64, soft: u64) -> bool {
        let of = u128::from(self.of.load(Ordering::SeqCst));
        let written = u128::from(self.written.load(Ordering::SeqCst)) * 9 / 10;
        let room = u128::from(self.limit.saturating_sub(soft));
        let used = u128::from(dirty.saturating_sub(soft)).min(room);
        // written / of < used / room, and nothing to wait for without a checkpoint.
        of > 0 && (room == 0 || written.min(of) * room < used * of)
    }

    // --- background I/O ------------------------------------------------------------------------------------------

    fn is_urgent(&self) -> bool {
        if self.hurried.load(Ordering::Relaxed) > 0 || !self.background {
            return true;
        }
        let of = u128::from(self.of.load(Ordering::Relaxed));
        let written = u128::from(self.written.load(Ordering::Relaxed));
        let began_at = self.began_at.load(Ordering::Relaxed);
        let new = u128::from(self.dirty().saturating_sub(began_at));
        let room = u128::from(self.soft() - began_at);
        of > 0 && written * room < new * of
    }

    /// Called before each piece of background I/O: waits while the log is being written, but not for long, so that
    /// the work goes on whatever happens.
    pub fn give_way(&self) {
        let wanted = || self.background && self.log_waits.load(Ordering::Relaxed);
        if !wanted() {
            return;
        }
        self.gave_way.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        while wanted() && begun.elapsed() < GIVE_WAY_MAX {
            std::thread::sleep(LOOK);
        }
    }
}

/// See [`Pace::hurry`].
pub(super) struct Hurry<'a>(&'a Pace);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One thread's background I/O.
#[derive(Default)]
pub(super) struct Pacer {
    brisk: bool,
    log_writes: u64,
    /// When the log was seen in use last.
    used_at: Option<Instant>,
}

impl Pacer {
    /// `brisk`: somebody waits for what takes several checkpoints.
    pub fn new(brisk: bool) -> Pacer {
        Pacer {
            brisk,
            ..Pacer::default()
        }
    }

    /// Bytes that may be handed to the disk at once, of those that are ready.
    pub fn bytes(&mut self, pace: &Pace) -> usize {
        if pace.is_urgent() || !self.log_in_use(pace) {
            usize::MAX
        } else if self.brisk {
            BRISK_BYTES
        } else {
            CALM_BYTES
        }
    }

    fn log_in_use(&mut self, pace: &Pace) -> bool {
        let writes = pace.log_writes.load(Ordering::Relaxed);
        if writes != self.log_writes {
            self.log_writes = writes;
            self.used_at = Some(Instant::now());
        }
        self.used_at.is_some_and(|at| at.elapsed() < IDLE)
    }

    /// Has `io` move a piece of a checkpoint of so many bytes to the disk, when it is its turn.
    pub fn piece<R>(&self, pace: &Pace, bytes: u64, io: impl FnOnce() -> R) -> R {
        if !pace.background {
            return io();
        }
        if !pace.is_urgent() {
            pace.give_way();
        }
        pace.under_way.fetch_add(1, Ordering::Relaxed);
        let result = io();
        pace.under_way.fetch_sub(1, Ordering::Relaxed);
        pace.written.fetch_add(bytes, Ordering::SeqCst);
        pace.wake();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 100;

    /// A checkpoint of 1000 bytes that began at 60 changed bytes: soft mark at 80.
    fn running() -> Pace {
        let pace = Pace::new(true, LIMIT);
        pace.set_dirty(60);
        pace.begin(1000);
        pace
    }

    #[test]
    fn the_writer_waits_in_proportion() {
        let pace = running();
        let soft = pace.soft();
        assert_eq!(soft, 80);
        let behind = |dirty, written| {
            pace.written.store(written, Ordering::SeqCst);
            pace.is_behind(dirty, soft)
        };
        assert!(!behind(80, 0));
        assert!(behind(81, 0));
        // A quarter of the room, a quarter of the checkpoint, of which nine tenths count.
        assert!(behind(85, 277));
        assert!(!behind(85, 278));
        // At the limit and beyond only its end will do.
        assert!(behind(100, 1000));
        assert!(behind(1000, 1000));
        pace.end();
        assert!(!behind(1000, 0), "there is nothing to wait for");
    }

    #[test]
    fn a_checkpoint_is_urgent_when_changes_are_ahead_of_it_or_somebody_waits() {
        let pace = running();
        assert!(!pace.is_urgent());
        pace.set_dirty(70);
        pace.written.store(499, Ordering::SeqCst);
        assert!(
            pace.is_urgent(),
            "half of the time, less than half of the work"
        );
        pace.written.store(500, Ordering::SeqCst);
        assert!(!pace.is_urgent());
        let hurry = pace.hurry();
        assert!(pace.is_urgent());
        drop(hurry);
        assert!(!pace.is_urgent());
    }

    #[test]
    fn pieces_are_small_while_the_log_is_in_use() {
        let (pace, mut pacer) = (running(), Pacer::default());
        assert_eq!(pacer.bytes(&pace), usize::MAX, "nobody has used the log");
        pace.log_ends(pace.log_begins());
        assert_eq!(pacer.bytes(&pace), CALM_BYTES);
        pacer.brisk = true;
        assert_eq!(pacer.bytes(&pace), BRISK_BYTES);
        let _hurry = pace.hurry();
        assert_eq!(pacer.bytes(&pace), usize::MAX);
    }

    /// A checkpoint that does not come further holds the writer for the time given and no longer; one that does, or
    /// ends, lets it go.
    #[test]
    fn waits_end() {
        let pace = running();
        let begun = Instant::now();
        pace.keep(90, Duration::from_millis(30));
        assert!(begun.elapsed() >= Duration::from_millis(30));
        let ahead = || stall::seen()[stall::Cause::ChangesAhead as usize].count();
        assert!(ahead() > 0);
        for ends in [false, true] {
            pace.written.store(0, Ordering::SeqCst);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| pace.keep(90, Duration::from_secs(3600)));
                let pacer = Pacer::default();
                match ends {
                    true => pace.end(),
                    false => pacer.piece(&pace, 600, || ()),
                }
                writer.join().unwrap();
            });
        }
    }

    #[test]
    fn a_write_of_the_log_beside_background_io_is_a_stall() {
        let pace = running();
        assert!(pace.log_begins().is_none());
        let pacer = Pacer::default();
        let before = stall::seen()[stall::Cause::LogWrite as usize].count();
        pace.log_ends(None);
        pacer.piece(&pace, 1, || pace.log_ends(pace.log_begins()));
        assert!(stall::seen()[stall::Cause::LogWrite as usize].count() > before);
    }

    /// It lets the log go first, and ends all the same when the log never stops.
    #[test]
    fn a_piece_gives_way() {
        let (pace, pacer) = (running(), Pacer::default());
        pacer.piece(&pace, 1, || ());
        assert_eq!(pace.gave_way.load(Ordering::Relaxed), 0);
        let _ = pace.log_begins();
        pacer.piece(&pace, 1, || ());
        assert_eq!(pace.gave_way.load(Ordering::Relaxed), 1);
    }
}
