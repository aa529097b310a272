//! The values that cross the boundary of this crate.
//!
//! Messages, configurations and conf changes are those of `raft-proto`, which this workspace owns;
//! nothing here names a type of the crate `raft`.

use bytes::Bytes;
use raft_proto::eraftpb as pb;
use std::fmt;

pub use raft_proto::eraftpb::{ConfChange, ConfChangeAction, ConfState, Message, MessageType};

/// What an entry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A command for the state machine; without data the first entry of a term.
    #[default]
    Normal = 0,
    /// An encoded [`ConfChange`].
    ConfChange = 1,
}

impl EntryKind {
    /// The kind with this number, which is also etcd's number of the entry type.
    pub fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Normal),
            1 => Some(EntryKind::ConfChange),
            _ => None,
        }
    }

    /// The number stored in logs and sent to peers.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// One position of the log. Cloning shares the payload.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Position, from 1, without gaps.
    pub index: u64,
    /// The term of the leader that appended it.
    pub term: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// The payload.
    pub data: Bytes,
}

/// Payloads may hold secrets and are large: the length is shown in their place.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Entry({}/{} {:?} {} B)",
            self.index,
            self.term,
            self.kind,
            self.data.len()
        )
    }
}

impl Entry {
    /// # Panics
    ///
    /// On an entry of type `EntryConfChangeV2`: [`crate::Replica`] lets none into the log.
    pub(crate) fn from_pb(entry: pb::Entry) -> Entry {
        let kind = match entry.entry_type {
            pb::EntryType::EntryNormal => EntryKind::Normal,
            pb::EntryType::EntryConfChange => EntryKind::ConfChange,
            pb::EntryType::EntryConfChangeV2 => {
                unreachable!("joint conf changes are refused at every entrance")
            }
        };
        Entry {
            index: entry.index,
            term: entry.term,
            kind,
            data: entry.data,
        }
    }

    pub(crate) fn into_pb(self) -> pb::Entry {
        pb::Entry {
            entry_type: match self.kind {
                EntryKind::Normal => pb::EntryType::EntryNormal,
                EntryKind::ConfChange => pb::EntryType::EntryConfChange,
            },
            term: self.term,
            index: self.index,
            data: self.data,
            ..pb::Entry::default()
        }
    }
}

/// What a member must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: u64,
    /// The member that got this member's vote in `term`; 0 for none.
    pub vote: u64,
    /// The highest index known to be committed. May lag behind after a crash.
    pub commit: u64,
}

impl HardState {
    pub(crate) fn from_pb(state: &pb::HardState) -> HardState {
        HardState {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
        }
    }

    pub(crate) fn to_pb(self) -> pb::HardState {
        pb::HardState {
            term: self.term,
            vote: self.vote,
            commit: self.commit,
        }
    }
}

/// The part a member plays in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one. Learners are followers.
    #[default]
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

impl From<raft::StateRole> for Role {
    fn from(role: raft::StateRole) -> Role {
        match role {
            raft::StateRole::Follower => Role::Follower,
            raft::StateRole::PreCandidate => Role::PreCandidate,
            raft::StateRole::Candidate => Role::Candidate,
            raft::StateRole::Leader => Role::Leader,
        }
    }
}

/// Who leads, as far as this member knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftState {
    /// The leader's id; 0 when none is known.
    pub leader: u64,
    /// This member's part.
    pub role: Role,
    /// The term both belong to.
    pub term: u64,
}

/// A finished read round: a state with everything up to `index` applied answers the read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDone {
    /// What the caller passed to [`crate::Replica::read`].
    pub ctx: u64,
    /// The index to wait for.
    pub index: u64,
}

/// What a state snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last index applied in it.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The configuration at that index.
    pub conf_state: ConfState,
    /// Opaque: whatever the installing side needs to find the state that travels beside the message.
    pub data: Bytes,
}

impl SnapshotMeta {
    pub(crate) fn from_pb(snapshot: pb::Snapshot) -> SnapshotMeta {
        SnapshotMeta {
            index: snapshot.metadata.index,
            term: snapshot.metadata.term,
            conf_state: snapshot.metadata.conf_state,
            data: snapshot.data,
        }
    }

    pub(crate) fn into_pb(self) -> pb::Snapshot {
        pb::Snapshot {
            data: self.data,
            metadata: pb::SnapshotMetadata {
                conf_state: self.conf_state,
                index: self.index,
                term: self.term,
            },
        }
    }
}

/// What the state machine decided about a committed conf change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the entry.
    pub index: u64,
    /// The change to execute; `None` when the state machine refused it.
    pub accepted: Option<ConfChange>,
}

/// Figures about the replica. Reading them costs a few loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: u64,
    /// Current term.
    pub term: u64,
    /// The candidate that got this member's vote in `term`; 0 for none.
    pub vote: u64,
    /// The leader's id; 0 when none is known.
    pub leader: u64,
    /// This member's part.
    pub role: Role,
    /// Highest index known to be committed.
    pub commit: u64,
    /// Highest index reported with [`crate::Replica::applied`].
    pub applied: u64,
    /// Highest index durable here.
    pub persisted: u64,
    /// Highest index in the log.
    pub last_index: u64,
    /// Lowest index still readable, in memory or on disk.
    pub first_index: u64,
    /// Whether this member votes.
    pub is_voter: bool,
    /// Whether this member is the only voter.
    pub is_sole_voter: bool,
    /// Whether a conf change may be in the log and not applied yet. May be true without one for a
    /// while after an election.
    pub pending_conf_change: bool,
    /// The member leadership is being handed to; 0 for none.
    pub transferee: u64,
    /// Payload bytes of entries in memory.
    pub log_bytes: usize,
    /// Entries in memory.
    pub log_entries: usize,
}

/// How a leader sees another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The member.
    pub id: u64,
    /// Highest index known to be in its log.
    pub matched: u64,
    /// Index of the next entry to send.
    pub next: u64,
    /// Whether it was heard from since the last check of the quorum.
    pub recently_active: bool,
    /// Whether it is being sent a snapshot.
    pub in_snapshot: bool,
    /// Whether it is a learner.
    pub is_learner: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_conversion() {
        for kind in [EntryKind::Normal, EntryKind::ConfChange] {
            let entry = Entry {
                index: 3,
                term: 2,
                kind,
                data: Bytes::from_static(b"x"),
            };
            assert_eq!(Entry::from_pb(entry.clone().into_pb()), entry);
            assert_eq!(EntryKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(EntryKind::from_number(2), None);
    }
}
