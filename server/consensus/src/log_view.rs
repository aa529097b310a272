//! The log as the core reads it.
//!
//! The core never waits for the disk: entries that may be needed at once are in memory, and a read
//! of older ones for a lagging follower becomes a [`Fetch`] which the driver answers later. Only the
//! terms of all readable entries are always at hand, as runs of equal terms.
//!
//! ```text
//!   first-1      first ............ window ............ last
//!   term known   on disk only       in memory (and on disk or on the way there)
//! ```
//!
//! # Invariants
//!
//! 1. `first <= window <= last + 1`, and every index in `first-1..=last` has a known term.
//! 2. Every index above the core's applied index is in memory. The core reads those without being
//!    able to wait (committed entries for a ready, conf changes before an election).
//! 3. Bytes in memory are at most the catch-up limit plus the entries invariant 2 asks for.
//! 4. Entries fetched from disk are served only if index and term agree with the known terms.
//! 5. At most [`FETCHES_MAX`] fetches are open. A follower whose fetch was not taken asks again with
//!    its next heartbeat response.

use crate::types::{ConfState, Entry, HardState, SnapshotMeta};
use raft::eraftpb as pb;
use raft::{Error as RaftError, GetEntriesContext, RaftState, Storage, StorageError};
use raft_proto::Wire;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

/// Open fetches at once.
pub const FETCHES_MAX: usize = 16;

/// Followers that may wait for the same fetch.
const WAITERS_MAX: usize = 8;

/// Entries a driver must read from its disk; answer with [`crate::Replica::fetched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Names the fetch in the answer.
    pub id: u64,
    /// First index wanted.
    pub from: u64,
    /// Index after the last one wanted.
    pub to: u64,
    /// Stop after the entry that passes this many bytes; at least one entry is wanted.
    pub bytes_max: u64,
}

/// A member waits for a snapshot; answer with [`crate::Replica::offer_snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotWanted {
    /// The member.
    pub to: u64,
    /// The snapshot's index must not be below this.
    pub index_min: u64,
}

#[derive(Clone, Copy, Debug)]
struct TermRun {
    first: u64,
    term: u64,
}

#[derive(Default)]
struct Wants {
    next_id: u64,
    open: Vec<OpenFetch>,
    fresh: Vec<Fetch>,
    /// Entries of the fetch being answered.
    served: VecDeque<pb::Entry>,
    snapshots: Vec<SnapshotWanted>,
    offers: BTreeMap<u64, SnapshotMeta>,
}

struct OpenFetch {
    fetch: Fetch,
    waiters: Vec<GetEntriesContext>,
}

pub(crate) struct LogView {
    initial: RaftState,
    first: u64,
    runs: Vec<TermRun>,
    entries: VecDeque<pb::Entry>,
    window: u64,
    bytes: usize,
    wants: RefCell<Wants>,
}

impl LogView {
    /// `entries` follow `first - 1` without gap; the caller has checked that.
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        first: u64,
        previous_term: u64,
        entries: Vec<Entry>,
    ) -> LogView {
        let mut view = LogView {
            initial: RaftState::new(hard_state.to_pb(), conf_state),
            first,
            runs: vec![TermRun {
                first: first - 1,
                term: previous_term,
            }],
            entries: VecDeque::with_capacity(entries.len()),
            window: first,
            bytes: 0,
            wants: RefCell::default(),
        };
        for entry in entries {
            view.push(entry.into_pb());
        }
        view
    }

    /// Appends entries, first removing whatever stands at their indexes and after.
    ///
    /// # Panics
    ///
    /// If they leave a gap, or reach below the memory window: those are applied.
    pub(crate) fn append(&mut self, entries: &[pb::Entry]) {
        let Some(head) = entries.first() else { return };
        assert!(
            self.window <= head.index && head.index <= self.last() + 1,
            "append at {} outside of {}..={}",
            head.index,
            self.window,
            self.last() + 1
        );
        self.truncate(head.index);
        for entry in entries {
            self.push(entry.clone());
        }
    }

    /// Replaces the whole log by a snapshot.
    pub(crate) fn install(&mut self, snapshot: &SnapshotMeta) {
        self.first = snapshot.index + 1;
        self.window = self.first;
        self.entries = VecDeque::new();
        self.bytes = 0;
        self.runs = vec![TermRun {
            first: snapshot.index,
            term: snapshot.term,
        }];
    }

    /// Entries before `first` are gone from the disk.
    ///
    /// # Panics
    ///
    /// If `first` is beyond the entry after the last one.
    pub(crate) fn trim(&mut self, first: u64) {
        if first <= self.first {
            return;
        }
        assert!(first <= self.last() + 1, "trim to {first} beyond the log");
        let term = self.term_at(first - 1).expect("inside the log");
        self.forget(first);
        let kept = self.run_of(first - 1);
        self.runs.drain(..kept);
        self.runs[0] = TermRun {
            first: first - 1,
            term,
        };
        self.first = first;
        self.window = self.window.max(first);
    }

    /// Drops entries from memory: those before `keep_from`, and beyond `bytes_max` also later ones,
    /// but never one above `applied`.
    pub(crate) fn shrink(&mut self, applied: u64, keep_from: u64, bytes_max: usize) {
        let keep_from = keep_from.min(applied + 1);
        self.forget(keep_from);
        while self.bytes > bytes_max && self.window <= applied {
            self.forget(self.window + 1);
        }
        // A burst must not hold its memory for ever.
        if self.entries.capacity() > 1024 && self.entries.capacity() / 8 > self.entries.len() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Forgets entries in memory before `from`; they stay readable on disk.
    fn forget(&mut self, from: u64) {
        while self.window < from {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= entry.data.len();
            self.window += 1;
        }
    }

    fn push(&mut self, entry: pb::Entry) {
        debug_assert_eq!(entry.index, self.last() + 1);
        if self.runs.last().is_none_or(|run| run.term != entry.term) {
            self.runs.push(TermRun {
                first: entry.index,
                term: entry.term,
            });
        }
        self.bytes += entry.data.len();
        self.entries.push_back(entry);
    }

    fn truncate(&mut self, from: u64) {
        while self.last() >= from {
            let entry = self.entries.pop_back().expect("last is in memory");
            self.bytes -= entry.data.len();
        }
        while self.runs.len() > 1 && self.runs[self.runs.len() - 1].first >= from {
            self.runs.pop();
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn last(&self) -> u64 {
        self.window + self.entries.len() as u64 - 1
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Position of the run that covers `index`, which must be `first - 1` or later.
    fn run_of(&self, index: u64) -> usize {
        self.runs.partition_point(|run| run.first <= index) - 1
    }

    /// The term at `index`, if it is in `first-1..=last`.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index + 1 < self.first || index > self.last() {
            return None;
        }
        Some(self.runs[self.run_of(index)].term)
    }

    /// Fetches not handed out yet.
    pub(crate) fn take_fetches(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.wants.get_mut().fresh)
    }

    /// Snapshots not asked for yet.
    pub(crate) fn take_snapshots_wanted(&mut self) -> Vec<SnapshotWanted> {
        std::mem::take(&mut self.wants.get_mut().snapshots)
    }

    pub(crate) fn has_wants(&self) -> bool {
        let wants = self.wants.borrow();
        !wants.fresh.is_empty() || !wants.snapshots.is_empty()
    }

    /// Takes the answer to a fetch and returns what waits for it. Entries that contradict the log
    /// are left out; whoever waits asks again.
    pub(crate) fn answer(&mut self, id: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let wants = self.wants.get_mut();
        let Some(at) = wants.open.iter().position(|open| open.fetch.id == id) else {
            return Vec::new();
        };
        let open = wants.open.swap_remove(at);
        let served = (open.fetch.from..)
            .zip(entries)
            .take_while(|(index, entry)| {
                entry.index == *index && self.term_at(*index) == Some(entry.term)
            })
            .map(|(_, entry)| entry.into_pb())
            .collect();
        self.wants.get_mut().served = served;
        open.waiters
    }

    /// The fetched entries have been looked at by all who waited.
    pub(crate) fn forget_answer(&mut self) {
        self.wants.get_mut().served = VecDeque::new();
    }

    /// Keeps a snapshot for the next time the core wants to send one to `to`.
    pub(crate) fn offer(&mut self, to: u64, snapshot: SnapshotMeta) {
        self.wants.get_mut().offers.insert(to, snapshot);
    }

    /// Forgets offers for members that are gone.
    pub(crate) fn retain_offers(&mut self, is_member: impl Fn(u64) -> bool) {
        self.wants.get_mut().offers.retain(|&to, _| is_member(to));
    }

    fn want(&self, from: u64, to: u64, bytes_max: u64, waiter: GetEntriesContext) {
        let mut wants = self.wants.borrow_mut();
        if let Some(open) = wants.open.iter_mut().find(|open| open.fetch.from == from) {
            if open.waiters.len() < WAITERS_MAX {
                open.waiters.push(waiter);
            }
            return;
        }
        if wants.open.len() >= FETCHES_MAX {
            return;
        }
        wants.next_id += 1;
        let fetch = Fetch {
            id: wants.next_id,
            from,
            to,
            bytes_max,
        };
        wants.fresh.push(fetch);
        wants.open.push(OpenFetch {
            fetch,
            waiters: vec![waiter],
        });
    }

    /// Entries of the answered fetch, if they begin at or before `low`.
    fn served(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<pb::Entry>> {
        let wants = self.wants.borrow();
        let head = wants.served.front()?.index;
        let end = high.min(head + wants.served.len() as u64);
        if low < head || low >= end {
            return None;
        }
        let range = (low - head) as usize..(end - head) as usize;
        Some(limited(wants.served.range(range), bytes_max))
    }
}

/// The longest prefix within `bytes_max`, at least one entry.
fn limited<'a>(entries: impl Iterator<Item = &'a pb::Entry>, bytes_max: u64) -> Vec<pb::Entry> {
    let mut size = 0u64;
    entries
        .take_while(|entry| {
            let first = size == 0;
            size += entry.encoded_len() as u64;
            first || size <= bytes_max
        })
        .cloned()
        .collect()
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<pb::Entry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if low < self.first {
            return Err(RaftError::Store(StorageError::Compacted));
        }
        assert!(
            low <= high && high <= self.last() + 1,
            "entries {low}..{high} of a log that ends at {}",
            self.last()
        );
        if low >= self.window {
            let range = (low - self.window) as usize..(high - self.window) as usize;
            return Ok(limited(self.entries.range(range), bytes_max));
        }
        if let Some(entries) = self.served(low, high, bytes_max) {
            return Ok(entries);
        }
        if !context.can_async() {
            // Invariant 2 is broken; the core turns this into a panic.
            return Err(RaftError::Store(StorageError::Unavailable));
        }
        self.want(low, high.min(self.window), bytes_max, context);
        Err(RaftError::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index + 1 < self.first {
            return Err(RaftError::Store(StorageError::Compacted));
        }
        self.term_at(index)
            .ok_or(RaftError::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<pb::Snapshot> {
        let mut wants = self.wants.borrow_mut();
        // An offer below the start of the log would leave the follower with a gap.
        let index_min = request_index.max(self.first - 1);
        if let Some(snapshot) = wants.offers.remove(&to)
            && snapshot.index >= index_min
        {
            return Ok(snapshot.into_pb());
        }
        if !wants.snapshots.iter().any(|wanted| wanted.to == to) {
            wants.snapshots.push(SnapshotWanted { to, index_min });
        }
        Err(RaftError::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}

#[cfg(test)]
mod tests;
