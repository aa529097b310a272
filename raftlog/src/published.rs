//! What readers on other threads see: where durable entries lie, and in which files.
//!
//! The owner changes it when a flush has ended, when entries are replaced, and when the log is
//! trimmed; readers look a place up, let go, read the file, and look again.
//!
//! Invariants:
//! 1. The lock is held for a look-up or a change of a few words, never across I/O. So a reader that
//!    waits for the disk never keeps the writer waiting, nor the other way round.
//! 2. An entry can be looked up only while it is durable and nothing appended since replaces it.
//! 3. A file may be recycled and overwritten while it is being read. Then the place that was read
//!    is not in the index any more by the time the file is given away: a reader that finds other
//!    bytes than it was sent for looks again, and only if the place still stands is the log damaged.

use crate::index::{BatchRef, Index};
use crate::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;

/// A segment that readers may be sent to. `F` is its file.
#[derive(Clone)]
pub(crate) struct Source<F> {
    pub seq: u64,
    pub seg_id: u64,
    pub file: F,
}

struct State<F> {
    index: Index,
    /// Oldest first.
    sources: VecDeque<Source<F>>,
    first_index: u64,
    readable: u64,
}

/// Shared by the owner and the readers.
pub(crate) struct Published<F> {
    state: Mutex<State<F>>,
}

/// Why there is no place to read from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The log starts here.
    Trimmed(u64),
    /// It ends here, as far as it is durable.
    Unavailable(u64),
}

impl<F: Clone> Published<F> {
    pub fn new(
        index: Index,
        sources: impl IntoIterator<Item = Source<F>>,
        first_index: u64,
        readable: u64,
    ) -> Published<F> {
        Published {
            state: Mutex::new(State {
                index,
                sources: sources.into_iter().collect(),
                first_index,
                readable,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    // ---- the owner's side ----------------------------------------------------------------------

    /// A flush has ended: `batch` holds entries, and everything up to `readable` may be read. With
    /// `voids_all` nothing before it may.
    pub fn landed(&self, batch: Option<BatchRef>, voids_all: bool, readable: u64) {
        let mut state = self.lock();
        if voids_all {
            state.index.clear();
        }
        if let Some(batch) = batch {
            state.index.push(batch);
        }
        state.readable = readable;
    }

    /// Entries above `readable` were replaced, or all of them if it is 0.
    pub fn replaced(&self, readable: u64) {
        self.lock().readable = readable;
    }

    /// A segment was begun.
    pub fn begun(&self, source: Source<F>) {
        self.lock().sources.push_back(source);
    }

    /// The log starts at `first_index` now.
    pub fn trimmed(&self, first_index: u64) {
        let mut state = self.lock();
        state.first_index = state.first_index.max(first_index);
        state.index.trim(first_index);
    }

    /// The oldest segment is about to be given away: nobody is sent there any more.
    pub fn retired(&self, seq: u64) {
        let mut state = self.lock();
        while state.sources.front().is_some_and(|s| s.seq <= seq) {
            state.sources.pop_front();
        }
        let first_index = state.first_index;
        state.index.leave(seq, first_index);
    }

    // ---- the readers' side -----------------------------------------------------------------------

    /// Whether all of `from..to` may be read.
    pub fn check(&self, from: u64, to: u64) -> Result<(), Absent> {
        let state = self.lock();
        if from < state.first_index {
            return Err(Absent::Trimmed(state.first_index));
        }
        if to > state.readable + 1 {
            return Err(Absent::Unavailable(state.readable));
        }
        Ok(())
    }

    /// Where the entry `index` lies now.
    pub fn find(&self, index: u64) -> Result<(BatchRef, Source<F>), Absent> {
        let state = self.lock();
        if index < state.first_index {
            return Err(Absent::Trimmed(state.first_index));
        }
        if index > state.readable {
            return Err(Absent::Unavailable(state.readable));
        }
        let batch = *state
            .index
            .find(index)
            .expect("readable entries have a place");
        let of = |s: &&Source<F>| s.seq == batch.segment;
        let source = state.sources.iter().find(of);
        Ok((batch, source.expect("places lie in live segments").clone()))
    }

    /// Whether what was read from `batch`, up to and including `last`, still stands.
    pub fn stands(&self, batch: &BatchRef, from: u64, last: u64) -> bool {
        let state = self.lock();
        let same = |b: &BatchRef| b.batch_seq == batch.batch_seq && b.last >= last;
        from >= state.first_index
            && last <= state.readable
            && state.index.find(from).is_some_and(same)
    }
}
