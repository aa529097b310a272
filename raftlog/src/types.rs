//! The words of the public interface: entries, hard state, and the three marks.

use bytes::Bytes;

/// One raft log entry. `kind` is the caller's and is stored as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub kind: u8,
    pub data: Bytes,
}

/// Raft's hard state: what a member must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// How much has been taken into the log's buffers: a count of successful appends, which only
/// grows. Says nothing about the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Appended(pub(crate) u64);

/// How much survives a power loss, on the same scale as [`Appended`]. Only this mark may be
/// acknowledged to anyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(pub(crate) u64);

/// An index (and its term) that the raft group, or the store behind it, says is committed. The log
/// never cuts below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
}

impl Appended {
    /// The mark as a number, for messages and metrics.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl Durable {
    /// Whether what was appended up to `mark` is durable.
    pub fn covers(self, mark: Appended) -> bool {
        self.0 >= mark.0
    }

    /// The mark as a number, for messages and metrics.
    pub fn number(self) -> u64 {
        self.0
    }
}
