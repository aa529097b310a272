//! Which published states are still held: their units are not used again.
//!
//! Invariants:
//! 1. A state is pinned before anybody can see it, and unpinned when the last who could is gone.
//! 2. `oldest` never passes a state that is pinned. The lock orders the last read of an unpinned state before whatever
//!    is done on the word of `oldest`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::stall;
use super::sync::{Mutex, MutexGuard};

#[derive(Default)]
pub(super) struct Pins(Mutex<BTreeMap<u64, Held>>);

/// By how many a state is held, and since when it is not the newest.
#[derive(Default)]
struct Held {
    by: usize,
    replaced: Option<Instant>,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Held>> {
        stall::lock(&self.0, stall::Cause::PinsLock)
    }

    pub fn pin(&self, publish: u64) {
        let mut pins = self.lock();
        if let Some(mut before) = pins.last_entry()
            && *before.key() < publish
        {
            before.get_mut().replaced.get_or_insert_with(Instant::now);
        }
        pins.entry(publish).or_default().by += 1;
    }

    pub fn unpin(&self, publish: u64) {
        let mut pins = self.lock();
        if let Some(held) = pins.get_mut(&publish) {
            held.by -= 1;
            if held.by == 0 {
                pins.remove(&publish);
            }
        }
    }

    /// Number of the oldest state that is held.
    pub fn oldest(&self) -> Option<u64> {
        self.lock().keys().next().copied()
    }

    /// For how long the oldest state that is held has been replaced by a newer one.
    pub fn oldest_age(&self) -> Duration {
        let pins = self.lock();
        let replaced = pins.values().next().and_then(|held| held.replaced);
        replaced.map_or(Duration::ZERO, |replaced| replaced.elapsed())
    }
}
