//! A flush that does not end: noticed from outside, because whoever waits for it cannot.
//!
//! A disk that hangs returns no error. The owner stamps a clock when it hands a write to the disk
//! and clears it when the write has ended; a thread that does no I/O looks at the clock a few times
//! per deadline and tells what it sees. Nothing is retried and nothing is given up: what was in
//! flight may still become durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Since when the durable write under way has been under way. Cheap to read, from any thread.
#[derive(Clone, Debug)]
pub struct FlushClock {
    base: Instant,
    /// Nanoseconds since `base`, plus one; 0 when nothing is in flight.
    started: Arc<AtomicU64>,
}

impl FlushClock {
    pub(crate) fn new() -> FlushClock {
        FlushClock {
            base: Instant::now(),
            started: Arc::default(),
        }
    }

    pub(crate) fn start(&self, now: Instant) {
        let since = now.duration_since(self.base).as_nanos() as u64;
        self.started.store(since + 1, Ordering::Release);
    }

    pub(crate) fn stop(&self) {
        self.started.store(0, Ordering::Release);
    }

    /// How long the durable write in flight has taken so far; `None` when there is none.
    pub fn in_flight(&self) -> Option<Duration> {
        let started = self.started.load(Ordering::Acquire).checked_sub(1)?;
        let now = self.base.elapsed();
        Some(now.saturating_sub(Duration::from_nanos(started)))
    }

    /// The same, if it is at least `deadline`: the disk hangs.
    pub fn stalled(&self, deadline: Duration) -> Option<Duration> {
        self.in_flight().filter(|so_far| *so_far >= deadline)
    }
}

/// What the watch has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// A durable write has been under way for so long, which is longer than the deadline.
    Begun(Duration),
    /// It is still under way; told again each time the time so far has doubled.
    Goes(Duration),
    /// It has ended, or another one is under way. So long it took at least.
    Ended(Duration),
}

/// Called by the watch's thread. Must not wait for the log's owner.
pub type StallHook = Box<dyn FnMut(Stall) + Send>;

/// What was told last, and what is to be told next. Pure.
#[derive(Default)]
pub(crate) struct Watch {
    told: Option<Duration>,
    longest: Duration,
}

impl Watch {
    /// Takes a look of the clock; what must be told, if anything.
    pub fn look(&mut self, in_flight: Option<Duration>, deadline: Duration) -> Option<Stall> {
        let stalled = in_flight.filter(|so_far| *so_far >= deadline);
        match (self.told, stalled) {
            (None, None) => None,
            (None, Some(so_far)) => {
                (self.told, self.longest) = (Some(so_far), so_far);
                Some(Stall::Begun(so_far))
            }
            // Less than before: another write.
            (Some(_), Some(so_far)) if so_far >= self.longest => {
                self.longest = so_far;
                let due = self.told.is_some_and(|told| so_far >= told * 2);
                due.then(|| {
                    self.told = Some(so_far);
                    Stall::Goes(so_far)
                })
            }
            (Some(_), _) => {
                self.told = None;
                Some(Stall::Ended(self.longest))
            }
        }
    }
}

/// The thread that looks.
pub(crate) struct Watcher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(
        clock: FlushClock,
        deadline: Duration,
        mut hook: StallHook,
    ) -> std::io::Result<Watcher> {
        let (stop, stopped): (_, Receiver<()>) = channel();
        let every = deadline / 4;
        let thread = std::thread::Builder::new()
            .name("raftlog-watch".into())
            .spawn(move || {
                let mut watch = Watch::default();
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                    if let Some(stall) = watch.look(clock.in_flight(), deadline) {
                        hook(stall);
                    }
                }
            })?;
        Ok(Watcher {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by its thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_stall_is_told_when_it_begins_when_it_doubles_and_when_it_ends() {
        let mut watch = Watch::default();
        let mut look = |so_far: Option<u64>| watch.look(so_far.map(S), S(10));
        assert_eq!(look(None), None);
        assert_eq!(look(Some(9)), None);
        assert_eq!(look(None), None);
        assert_eq!(look(Some(11)), Some(Stall::Begun(S(11))));
        assert_eq!(look(Some(21)), None);
        assert_eq!(look(Some(22)), Some(Stall::Goes(S(22))));
        assert_eq!(look(Some(43)), None);
        assert_eq!(look(None), Some(Stall::Ended(S(43))));
        assert_eq!(look(None), None);
        assert_eq!(look(Some(12)), Some(Stall::Begun(S(12))));
        // Another write, fast so far; then one that hangs again.
        assert_eq!(look(Some(1)), Some(Stall::Ended(S(12))));
        assert_eq!(look(Some(30)), Some(Stall::Begun(S(30))));
        assert_eq!(look(Some(15)), Some(Stall::Ended(S(30))));
        assert_eq!(look(Some(16)), Some(Stall::Begun(S(16))));
    }

    #[test]
    fn the_clock_runs_only_while_something_is_in_flight() {
        let clock = FlushClock::new();
        assert_eq!(clock.in_flight(), None);
        clock.start(Instant::now());
        let first = clock.in_flight().unwrap();
        assert!(clock.clone().in_flight().unwrap() >= first);
        assert_eq!(clock.stalled(S(3600)), None);
        assert!(clock.stalled(Duration::ZERO).is_some());
        clock.stop();
        assert_eq!(clock.in_flight(), None);
    }
}
