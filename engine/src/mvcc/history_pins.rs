//! From which revision on history is still being read by long readers, against what compaction may take apart.
//!
//! A pin holds no page. It only keeps physical compaction from events at or above its revision; logical compaction goes
//! on, and whoever asks anew below the compact revision is refused.
//!
//! Invariants:
//! 1. `swept`, up to which history may have been taken apart in some state, never goes back. A pin below it is refused.
//! 2. While a pin holds, [`HistoryPins::floor`] answers nothing above it.
//! 3. Who takes a state and asks [`Pin::holds`] *afterwards* has a state with everything from its revision on.
//! 4. A pin that keeps compaction waiting for longer than the patience is ended, and counted: none stops it for ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::sync::{Arc, Mutex, MutexGuard};

pub(crate) struct HistoryPins {
    state: Mutex<State>,
    patience: Duration,
}

struct State {
    /// Revision and number of each pin; when it was opened.
    open: BTreeMap<(i64, u64), Instant>,
    next: u64,
    swept: i64,
    expired: u64,
}

/// What there is of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PinStats {
    pub open: u64,
    /// The lowest revision that is pinned.
    pub oldest: Option<i64>,
    /// Of the one open longest.
    pub age: Duration,
    /// Ended because compaction waited too long.
    pub expired: u64,
}

impl HistoryPins {
    /// History below `swept` may be gone.
    pub(crate) fn new(swept: i64, patience: Duration) -> HistoryPins {
        HistoryPins {
            state: Mutex::new(State {
                open: BTreeMap::new(),
                next: 0,
                swept,
                expired: 0,
            }),
            patience,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Pins history from revision `from` on, unless compaction has been there.
    pub(crate) fn pin(pins: &Arc<HistoryPins>, from: i64) -> Option<Pin> {
        let mut state = pins.lock();
        if from < state.swept {
            return None;
        }
        let key = (from, state.next);
        state.next += 1;
        state.open.insert(key, Instant::now());
        drop(state);
        Some(Pin {
            pins: pins.clone(),
            key,
        })
    }

    /// Up to where history may be taken apart now, given the compact revision. For the writer: from here on it counts as
    /// taken apart up to there.
    pub(crate) fn floor(&self, compact: i64) -> i64 {
        let mut state = self.lock();
        let mut floor = compact;
        while let Some(first) = state.open.first_entry() {
            let from = first.key().0;
            if from >= compact {
                break;
            }
            if first.get().elapsed() < self.patience {
                floor = from;
                break;
            }
            first.remove();
            state.expired += 1;
        }
        state.swept = state.swept.max(floor);
        floor
    }

    pub(crate) fn stats(&self) -> PinStats {
        let state = self.lock();
        PinStats {
            open: state.open.len() as u64,
            oldest: state.open.keys().next().map(|(from, _)| *from),
            age: state
                .open
                .values()
                .min()
                .map_or(Duration::ZERO, |opened| opened.elapsed()),
            expired: state.expired,
        }
    }
}

/// Ends when dropped.
pub(crate) struct Pin {
    pins: Arc<HistoryPins>,
    key: (i64, u64),
}

impl Pin {
    pub(crate) fn from(&self) -> i64 {
        self.key.0
    }

    /// False: compaction has waited long enough.
    pub(crate) fn holds(&self) -> bool {
        self.pins.lock().open.contains_key(&self.key)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.lock().open.remove(&self.key);
    }
}
