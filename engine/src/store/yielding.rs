//! How much defragmentation may do when the log gets slower by it.
//!
//! The log says how long its writes take. Between two checkpoints those are counted that took many times the usual.
//! While nothing is moved their share is the disk's own; when it rises well above that while things are moved, the
//! next walk notes half as much, and so on; when it has fallen again, twice as much.
//!
//! Invariants:
//! 1. The part never falls below 1 / [`LEAST`], so that the work ends whatever the disk does.
//! 2. It decides how much is moved and when, never what is read.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// A write of the log that takes so many times the usual is a slow one.
const SLOW: u32 = 8;
/// Writes that must have been seen for their share to mean anything.
const ENOUGH: u64 = 100;
/// Smallest part.
const LEAST: u64 = 16;
/// Per thousand above twice the quiet share that are taken for chance.
const CHANCE: u64 = 10;

#[derive(Default)]
pub(super) struct Yielding(Mutex<State>);

#[derive(Default)]
struct State {
    /// The write under way.
    begun: Option<Instant>,
    /// Usual time of a write; zero before the first. Slow writes hardly move it.
    usual: Duration,
    writes: u64,
    slow: u64,
    /// Slow ones per thousand while nothing is moved, smoothed.
    quiet: u64,
    /// Halvings in force.
    halved: u32,
    /// Bytes moved by the last call.
    moved_bytes: u64,
}

impl Yielding {
    /// A write of the log begins, or ends.
    pub fn log(&self, begins: bool) {
        let begun = match begins {
            true => {
                lock(&self.0).begun = Some(Instant::now());
                return;
            }
            false => lock(&self.0).begun.take(),
        };
        if let Some(begun) = begun {
            self.log_wrote(begun.elapsed());
        }
    }

    /// A write of the log took so long.
    fn log_wrote(&self, took: Duration) {
        let mut state = lock(&self.0);
        if state.usual.is_zero() {
            state.usual = took;
        }
        let most = state.usual * SLOW;
        state.writes += 1;
        state.slow += u64::from(took > most);
        state.usual = (state.usual * 63 + took.min(most)) / 64;
    }

    /// The part of `bytes` that the next walk may note, now that so many bytes have been moved in all. Called after
    /// every checkpoint, so that it knows how the disk is when nothing is moved.
    pub fn part_of(&self, bytes: u64, moved_bytes: u64) -> u64 {
        let mut state = lock(&self.0);
        let moved = std::mem::replace(&mut state.moved_bytes, moved_bytes) != moved_bytes;
        if state.writes >= ENOUGH {
            let share = state.slow * 1000 / state.writes;
            if !moved {
                state.quiet = (state.quiet * 3 + share) / 4;
            }
            state.halved = match moved && share > 2 * state.quiet + CHANCE {
                true => (state.halved + 1).min(LEAST.ilog2()),
                false => state.halved.saturating_sub(1),
            };
            (state.writes, state.slow) = (0, 0);
        }
        bytes >> state.halved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(yielding: &Yielding, slow_per_hundred: u64) {
        for i in 0..500 {
            let slow = i % 100 < slow_per_hundred;
            let micros = if slow { 4000 } else { 80 };
            yielding.log_wrote(Duration::from_micros(micros));
        }
    }

    #[test]
    fn a_slower_log_halves_the_budget_and_a_quick_one_doubles_it() {
        let yielding = Yielding::default();
        let mut moved_bytes = 0;
        let mut part = |moved: bool| {
            moved_bytes += u64::from(moved);
            yielding.part_of(64, moved_bytes)
        };
        assert_eq!(part(true), 64);
        write(&yielding, 1);
        assert_eq!(part(false), 64);
        // As slow as ever: that is the disk, not what is moved.
        write(&yielding, 1);
        assert_eq!(part(true), 64);
        for expected in [32, 16, 8, 4, 4] {
            write(&yielding, 6);
            assert_eq!(part(true), expected);
        }
        // Too few writes say nothing.
        yielding.log_wrote(Duration::from_micros(80));
        assert_eq!(part(true), 4);
        for expected in [8, 16, 32, 64, 64] {
            write(&yielding, 1);
            assert_eq!(part(true), expected);
        }
        // A disk that is always so is not our doing.
        for _ in 0..20 {
            write(&yielding, 6);
            part(false);
        }
        write(&yielding, 6);
        assert_eq!(part(true), 64);
    }
}
