//! Which published states are still held: their units are not used again.
//!
//! Invariants:
//! 1. A state is pinned before anybody can see it, and unpinned when the last who could is gone.
//! 2. `oldest` never passes a state that is pinned. The lock orders the last read of an unpinned state before whatever
//!    is done on the word of `oldest`.

use std::collections::BTreeMap;

use super::sync::{Mutex, MutexGuard};

#[derive(Default)]
pub(super) struct Pins(Mutex<BTreeMap<u64, usize>>);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn pin(&self, publish: u64) {
        *self.lock().entry(publish).or_default() += 1;
    }

    pub fn unpin(&self, publish: u64) {
        let mut pins = self.lock();
        if let Some(count) = pins.get_mut(&publish) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&publish);
            }
        }
    }

    /// Number of the oldest state that is held.
    pub fn oldest(&self) -> Option<u64> {
        self.lock().keys().next().copied()
    }
}
