//! One error enum per operation.

use std::fmt;

/// Why a replica cannot be built from what was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootError {
    /// A setting cannot work; the text says which and why.
    Config(String),
    /// The entries do not follow each other, or do not follow the start of the log.
    Gap {
        /// The index that was expected.
        expected: u64,
        /// The index that was found.
        found: u64,
    },
    /// Terms fall along the log, or exceed the term in the hard state.
    Terms {
        /// Where.
        index: u64,
    },
    /// The state machine is older than the log's first entry: the entries between are lost.
    StateTooOld {
        /// The state machine's applied index.
        applied: u64,
        /// The log's first index.
        first_index: u64,
    },
    /// The state machine or the hard state is ahead of the log: acknowledged entries are lost.
    LostEntries {
        /// The index that must be there.
        needed: u64,
        /// The log's last index.
        last_index: u64,
    },
    /// The configuration cannot be used.
    ConfState(String),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::Config(reason) => write!(f, "invalid raft configuration: {reason}"),
            BootError::Gap { expected, found } => {
                write!(f, "raft log has index {found} where {expected} must be")
            }
            BootError::Terms { index } => {
                write!(f, "raft log has an impossible term at index {index}")
            }
            BootError::StateTooOld {
                applied,
                first_index,
            } => write!(
                f,
                "state is applied up to {applied} but the raft log begins at {first_index}; \
                 remove this member, wipe it and add it again, or restore a backup"
            ),
            BootError::LostEntries { needed, last_index } => write!(
                f,
                "raft log ends at {last_index} but index {needed} was acknowledged; remove this \
                 member, wipe it and add it again, or restore a backup"
            ),
            BootError::ConfState(reason) => write!(f, "invalid raft membership: {reason}"),
        }
    }
}

impl std::error::Error for BootError {}

/// Why nothing was proposed. The log is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// No leader is known.
    NoLeader,
    /// Leadership is being handed over.
    Transferring,
    /// This leader is no longer a member.
    NotMember,
    /// Too many bytes wait for a quorum; try again when some are committed.
    Full,
    /// A conf change is not applied yet, or a new leader has not yet learned that none is pending.
    ConfChangePending,
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProposeError::NoLeader => "no leader",
            ProposeError::Transferring => "leadership is being transferred",
            ProposeError::NotMember => "not a member of the cluster",
            ProposeError::Full => "too many uncommitted bytes",
            ProposeError::ConfChangePending => "a membership change is pending",
        })
    }
}

impl std::error::Error for ProposeError {}

/// Why no read round was joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// No leader is known.
    NoLeader,
    /// As many reads wait as the configuration allows.
    Full,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadError::NoLeader => "no leader",
            ReadError::Full => "too many reads are waiting",
        })
    }
}

impl std::error::Error for ReadError {}

/// Why a message was dropped. The replica is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// The message is for another member, or claims to come from this one.
    Misrouted,
    /// A response from a member this one does not know; normal around membership changes.
    UnknownPeer,
    /// The message contradicts itself; the text says how.
    Malformed(&'static str),
    /// The sender counts on entries this member does not have. After a disk was replaced or restored
    /// under a living member id this is a lost acknowledgement.
    LostEntries,
    /// The core refused it: a proposal without a leader, or over the limit for uncommitted bytes.
    Dropped,
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiveError::Misrouted => f.write_str("message for another member"),
            ReceiveError::UnknownPeer => f.write_str("response from an unknown member"),
            ReceiveError::Malformed(how) => write!(f, "malformed message: {how}"),
            ReceiveError::LostEntries => {
                f.write_str("the sender counts on entries this member does not have")
            }
            ReceiveError::Dropped => f.write_str("proposal dropped"),
        }
    }
}

impl std::error::Error for ReceiveError {}

/// Why a conf change cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfChangeError {
    /// It would leave no voter.
    NoVoters,
    /// Member id 0.
    ZeroId,
}

impl fmt::Display for ConfChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfChangeError::NoVoters => "the change would leave no voting member",
            ConfChangeError::ZeroId => "member id 0 does not exist",
        })
    }
}

impl std::error::Error for ConfChangeError {}
