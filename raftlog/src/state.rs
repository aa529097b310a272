//! What the log says, apart from the entries themselves: a fold over its records.
//!
//! The writer and the recovery run the same fold, so a header written at a roll can be checked
//! against what recovery finds in the segment before it.
//!
//! Invariants (upheld by [`State::check`] before a record is taken, asserted on the way back):
//! 1. `first_index ≤ last_index + 1`; entries follow each other without gaps.
//! 2. `hard_state.commit ≤ last_index`: a commit is recorded only behind what it commits.
//! 3. Nothing at or below `commit` is ever replaced; a snapshot mark is not below `commit`, and a
//!    trim mark not above `commit + 1`. So what is trimmed is never written again.
//! 4. `first_index` never goes back.

use crate::format::batch::Record;
use crate::types::HardState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The lowest index the log still promises to hold.
    pub first_index: u64,
    /// The highest index; `first_index - 1` if the log holds none.
    pub last_index: u64,
    /// The term of `last_index`, 0 if nothing was ever written.
    pub last_term: u64,
    pub hard_state: HardState,
    /// The newest snapshot mark.
    pub snapshot: Option<(u64, u64)>,
}

impl Default for State {
    fn default() -> State {
        State {
            first_index: 1,
            last_index: 0,
            last_term: 0,
            hard_state: HardState::default(),
            snapshot: None,
        }
    }
}

impl State {
    /// Whether the record may follow, and if not, why.
    pub fn check(&self, record: &Record<'_>) -> Result<(), &'static str> {
        match *record {
            Record::Entry { index, .. } if index == 0 || index >= 1 << 62 => {
                Err("an entry's index is out of range")
            }
            Record::Entry { index, .. } if index > self.last_index + 1 => {
                Err("an entry leaves a gap behind the last one")
            }
            Record::Entry { index, .. } if index <= self.hard_state.commit => {
                Err("an entry would replace a committed one")
            }
            Record::Entry { index, .. } if index < self.first_index => {
                Err("an entry would replace a trimmed one")
            }
            Record::HardState(hs) if hs.commit > self.last_index => {
                Err("the commit index lies beyond the last entry")
            }
            Record::HardState(hs) if hs.commit < self.hard_state.commit => {
                Err("the commit index goes back")
            }
            Record::HardState(hs) if hs.term < self.hard_state.term => Err("the term goes back"),
            Record::Snapshot { index, .. } if index == 0 || index >= 1 << 62 => {
                Err("a snapshot's index is out of range")
            }
            Record::Snapshot { index, .. } if index < self.hard_state.commit => {
                Err("a snapshot mark lies below the commit index")
            }
            Record::Snapshot { index, .. } if index + 1 < self.first_index => {
                Err("a snapshot mark lies below the start of the log")
            }
            Record::Trim { keep_from }
                if keep_from < self.first_index || keep_from > self.hard_state.commit + 1 =>
            {
                Err("a trim mark lies outside the log")
            }
            _ => Ok(()),
        }
    }

    /// Folds a record in that [`State::check`] has passed.
    pub fn apply(&mut self, record: &Record<'_>) {
        match *record {
            Record::Entry { index, term, .. } => {
                self.last_index = index;
                self.last_term = term;
            }
            Record::HardState(hs) => self.hard_state = hs,
            Record::Snapshot { index, term } => {
                self.first_index = index + 1;
                self.last_index = index;
                self.last_term = term;
                self.snapshot = Some((index, term));
            }
            Record::Trim { keep_from } => self.first_index = keep_from,
            Record::Roll { .. } => {}
        }
    }
}
