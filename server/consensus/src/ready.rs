//! What a replica wants done, and in which order.

use crate::log_view::{Fetch, SnapshotWanted};
use crate::types::{Entry, HardState, Message, ReadDone, SnapshotMeta, SoftState};

/// Everything that became due since the last one. The parts are independent of each other except for
/// `wal`, whose own messages wait for it.
#[derive(Debug, Default)]
#[must_use]
pub struct Ready {
    /// Send now. A lost message is never an error; none may be sent twice.
    pub messages: Vec<Message>,
    /// Make durable, after all earlier tasks.
    pub wal: Option<WalTask>,
    /// Apply, in this order, after everything given before. All are durable here already.
    pub committed: Vec<Entry>,
    /// Read rounds that ended well.
    pub reads: Vec<ReadDone>,
    /// Reads that will not be answered because leadership changed; ask again.
    pub reads_aborted: Vec<u64>,
    /// Who leads, if that changed.
    pub soft: Option<SoftState>,
    /// Old entries that followers need, to be read from disk.
    pub fetches: Vec<Fetch>,
    /// Followers that need a snapshot.
    pub snapshots_wanted: Vec<SnapshotWanted>,
}

impl Ready {
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.wal.is_none()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.reads_aborted.is_empty()
            && self.soft.is_none()
            && self.fetches.is_empty()
            && self.snapshots_wanted.is_empty()
    }
}

/// A write that must become durable, and the messages that depend on it.
///
/// The messages cannot be reached before [`WalTask::durable`] has consumed the task, and a replica
/// learns of durability only through the [`Persisted`] that returns: to acknowledge too early one has
/// to say so.
#[derive(Debug)]
#[must_use = "a task that is dropped stops the replica for ever"]
pub struct WalTask {
    /// Write before the entries: everything in the log before and at this index is replaced by the
    /// snapshot it describes, which the driver has already stored beside the log. Install that after
    /// the write, then report its index with [`crate::Replica::applied`].
    pub snapshot: Option<SnapshotMeta>,
    /// Write; they replace whatever the log holds at and after the first one's index.
    pub entries: Vec<Entry>,
    /// Write together with the entries.
    pub hard_state: Option<HardState>,
    number: u64,
    ballot: Ballot,
    messages: Vec<Message>,
}

/// Term and vote of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) vote: u64,
}

/// Proof that a task and all before it are durable. Only a finished [`WalTask`] makes one.
#[derive(Debug)]
#[must_use = "hand it to Replica::persisted"]
pub struct Persisted {
    pub(crate) number: u64,
    pub(crate) ballot: Ballot,
}

impl WalTask {
    pub(crate) fn new(
        number: u64,
        ballot: Ballot,
        snapshot: Option<SnapshotMeta>,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        messages: Vec<Message>,
    ) -> WalTask {
        WalTask {
            snapshot,
            entries,
            hard_state,
            number,
            ballot,
            messages,
        }
    }

    /// Tasks are numbered upwards, with gaps.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether there is anything to write. A task without waits for its predecessors only.
    pub fn has_writes(&self) -> bool {
        self.snapshot.is_some() || !self.entries.is_empty() || self.hard_state.is_some()
    }

    /// To be called once this task and all before it are on stable storage: the messages to send now,
    /// and the proof for [`crate::Replica::persisted`].
    pub fn durable(self) -> (Vec<Message>, Persisted) {
        let persisted = Persisted {
            number: self.number,
            ballot: self.ballot,
        };
        (self.messages, persisted)
    }
}
