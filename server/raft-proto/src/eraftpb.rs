//! The message types, under the module name `raft` expects.
//!
//! Fields are public and named as `raft` names them; etcd's names and numbers stand in the comments
//! where they differ. The accessors are exactly those `raft` calls plus the few the replica needs.
//!
//! # Invariants
//!
//! 1. Enum values equal etcd's numbers.
//! 2. [`ConfChangeType`] has the three changes the core can execute. etcd's fourth, `UpdateNode`,
//!    exists in [`ConfChangeAction`] only and turns into a change of node 0, which the core ignores.

use bytes::Bytes;
use std::fmt;

/// Declares an enum whose numbers are those on the wire.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            #[default]
            $($(#[$vdoc])* $variant = $number),+
        }

        impl $name {
            /// The value with this wire number, if there is one.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some($name::$variant),)+
                    _ => None,
                }
            }

            /// The wire number.
            pub fn number(self) -> u64 {
                self as u64
            }
        }
    };
}

wire_enum! {
    /// What an entry holds.
    EntryType {
        /// A command for the state machine, or nothing at all: the first entry of a term.
        EntryNormal = 0,
        /// A [`ConfChange`].
        EntryConfChange = 1,
        /// A [`ConfChangeV2`]. Never produced here: etcd refuses it.
        EntryConfChangeV2 = 2,
    }
}

wire_enum! {
    /// The kind of a [`Message`]. etcd's names differ in spelling (`MsgProp`, `MsgApp`, `MsgVote`).
    #[allow(clippy::enum_variant_names)]
    MessageType {
        /// Local: start an election.
        MsgHup = 0,
        /// Local: send heartbeats.
        MsgBeat = 1,
        /// Entries to append, on their way to the leader.
        MsgPropose = 2,
        /// Entries and commit index from the leader.
        MsgAppend = 3,
        /// Answer to an append or a snapshot.
        MsgAppendResponse = 4,
        /// A candidate asks for a vote.
        MsgRequestVote = 5,
        /// The answer to a vote request.
        MsgRequestVoteResponse = 6,
        /// A snapshot from the leader.
        MsgSnapshot = 7,
        /// A heartbeat from the leader.
        MsgHeartbeat = 8,
        /// The answer to a heartbeat.
        MsgHeartbeatResponse = 9,
        /// Local: the last send to a member failed.
        MsgUnreachable = 10,
        /// Local: how sending a snapshot ended.
        MsgSnapStatus = 11,
        /// Local: a leader checks whether it still hears a quorum.
        MsgCheckQuorum = 12,
        /// A request to hand leadership to the sender.
        MsgTransferLeader = 13,
        /// The leader tells the receiver to campaign now.
        MsgTimeoutNow = 14,
        /// A member asks the leader for a read index.
        MsgReadIndex = 15,
        /// The answer to a read index request.
        MsgReadIndexResp = 16,
        /// A pre-candidate asks whether it would get a vote.
        MsgRequestPreVote = 17,
        /// The answer to a pre-vote request.
        MsgRequestPreVoteResponse = 18,
    }
}

wire_enum! {
    /// How a [`ConfChangeV2`] passes through joint consensus.
    ConfChangeTransition {
        /// The simple protocol if possible, else as `Implicit`.
        Auto = 0,
        /// Joint consensus, left automatically.
        Implicit = 1,
        /// Joint consensus, left by another change.
        Explicit = 2,
    }
}

wire_enum! {
    /// What a [`ConfChange`] asks for, with etcd's numbers.
    ConfChangeAction {
        /// Make the node a voter; also promotes a learner.
        AddNode = 0,
        /// Remove the node.
        RemoveNode = 1,
        /// Change the node's record in the membership, not its part in the quorum.
        UpdateNode = 2,
        /// Make the node a learner.
        AddLearnerNode = 3,
    }
}

wire_enum! {
    /// The changes the core executes; numbers as in [`ConfChangeAction`].
    ConfChangeType {
        /// Make the node a voter.
        AddNode = 0,
        /// Remove the node.
        RemoveNode = 1,
        /// Make the node a learner.
        AddLearnerNode = 3,
    }
}

impl From<ConfChangeType> for ConfChangeAction {
    fn from(change: ConfChangeType) -> Self {
        match change {
            ConfChangeType::AddNode => ConfChangeAction::AddNode,
            ConfChangeType::RemoveNode => ConfChangeAction::RemoveNode,
            ConfChangeType::AddLearnerNode => ConfChangeAction::AddLearnerNode,
        }
    }
}

/// The `context` of an entry: `raft` names the field, `raftpb` has none, and this type can hold
/// nothing but the empty context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoContext;

impl NoContext {
    /// Always 0.
    pub fn len(&self) -> usize {
        0
    }

    /// Always true.
    pub fn is_empty(&self) -> bool {
        true
    }
}

impl From<Vec<u8>> for NoContext {
    /// # Panics
    ///
    /// If `context` is not empty: it could not be sent.
    fn from(context: Vec<u8>) -> Self {
        assert!(context.is_empty(), "raftpb entries carry no context");
        NoContext
    }
}

/// One position of the log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// What `data` is. Field 1, `Type`.
    pub entry_type: EntryType,
    /// The term it was appended in. Field 2.
    pub term: u64,
    /// Its position, from 1. Field 3.
    pub index: u64,
    /// The command, or the encoded [`ConfChange`]; empty for the first entry of a term. Field 4.
    pub data: Bytes,
    /// Not on the wire.
    pub context: NoContext,
}

/// Commands may hold secrets and are large: the length is shown in their place.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("type", &self.entry_type)
            .field("term", &self.term)
            .field("index", &self.index)
            .field("data_bytes", &self.data.len())
            .finish()
    }
}

impl Entry {
    /// `entry_type`.
    pub fn get_entry_type(&self) -> EntryType {
        self.entry_type
    }

    /// Sets `entry_type`.
    pub fn set_entry_type(&mut self, entry_type: EntryType) {
        self.entry_type = entry_type;
    }

    /// `term`.
    pub fn get_term(&self) -> u64 {
        self.term
    }

    /// `index`.
    pub fn get_index(&self) -> u64 {
        self.index
    }

    /// `data`.
    pub fn get_data(&self) -> &[u8] {
        &self.data
    }

    /// Takes `data`, leaving it empty.
    pub fn take_data(&mut self) -> Bytes {
        std::mem::take(&mut self.data)
    }
}

/// Who votes and who listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Members that count for the quorum. Field 1.
    pub voters: Vec<u64>,
    /// Members that receive the log without voting. Field 2.
    pub learners: Vec<u64>,
    /// Voters of the configuration being left; empty outside joint consensus. Field 3.
    pub voters_outgoing: Vec<u64>,
    /// Voters that become learners when joint consensus is left. Field 4.
    pub learners_next: Vec<u64>,
    /// Whether joint consensus is left automatically. Field 5.
    pub auto_leave: bool,
}

impl ConfState {
    /// `voters`.
    pub fn get_voters(&self) -> &[u64] {
        &self.voters
    }

    /// Sets `voters`.
    pub fn set_voters(&mut self, ids: Vec<u64>) {
        self.voters = ids;
    }

    /// `learners`.
    pub fn get_learners(&self) -> &[u64] {
        &self.learners
    }

    /// Sets `learners`.
    pub fn set_learners(&mut self, ids: Vec<u64>) {
        self.learners = ids;
    }

    /// `voters_outgoing`.
    pub fn get_voters_outgoing(&self) -> &[u64] {
        &self.voters_outgoing
    }

    /// Sets `voters_outgoing`.
    pub fn set_voters_outgoing(&mut self, ids: Vec<u64>) {
        self.voters_outgoing = ids;
    }

    /// `learners_next`.
    pub fn get_learners_next(&self) -> &[u64] {
        &self.learners_next
    }

    /// Sets `learners_next`.
    pub fn set_learners_next(&mut self, ids: Vec<u64>) {
        self.learners_next = ids;
    }
}

impl<V, L> From<(V, L)> for ConfState
where
    V: IntoIterator<Item = u64>,
    L: IntoIterator<Item = u64>,
{
    fn from((voters, learners): (V, L)) -> Self {
        ConfState {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            ..ConfState::default()
        }
    }
}

/// What a snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMetadata {
    /// The configuration at `index`. Field 1.
    pub conf_state: ConfState,
    /// The last applied index it contains. Field 2.
    pub index: u64,
    /// The term of that entry. Field 3.
    pub term: u64,
}

impl SnapshotMetadata {
    /// `conf_state`.
    pub fn get_conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// `conf_state`, to be changed.
    pub fn mut_conf_state(&mut self) -> &mut ConfState {
        &mut self.conf_state
    }

    /// Sets `conf_state`.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Takes `conf_state`, leaving the empty one.
    pub fn take_conf_state(&mut self) -> ConfState {
        std::mem::take(&mut self.conf_state)
    }
}

/// A snapshot of the state machine, or the announcement of one that travels beside the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Opaque to raft. Field 1.
    pub data: Bytes,
    /// What it stands for. Field 2.
    pub metadata: SnapshotMetadata,
}

/// What [`Message::get_snapshot`] answers when there is none.
static NO_SNAPSHOT: Snapshot = Snapshot {
    data: Bytes::new(),
    metadata: SnapshotMetadata {
        conf_state: ConfState {
            voters: Vec::new(),
            learners: Vec::new(),
            voters_outgoing: Vec::new(),
            learners_next: Vec::new(),
            auto_leave: false,
        },
        index: 0,
        term: 0,
    },
};

impl Snapshot {
    /// Whether it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.metadata.index == 0
    }

    /// `metadata`.
    pub fn get_metadata(&self) -> &SnapshotMetadata {
        &self.metadata
    }

    /// `metadata`, to be changed.
    pub fn mut_metadata(&mut self) -> &mut SnapshotMetadata {
        &mut self.metadata
    }

    /// Sets `metadata`.
    pub fn set_metadata(&mut self, metadata: SnapshotMetadata) {
        self.metadata = metadata;
    }

    /// Takes `metadata`, leaving the empty one.
    pub fn take_metadata(&mut self) -> SnapshotMetadata {
        std::mem::take(&mut self.metadata)
    }
}

/// What one member tells another.
///
/// Two fields never travel: `priority` and `deprecated_priority` stay 0 in this product, and their
/// numbers mean something else to etcd. Field 15, the term of the commit index in vote messages, is
/// unknown to etcd and skipped there. Field 13 is `request_snapshot` between our own members; etcd
/// calls it `vote`, writes 0 and never reads it from a peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The kind. Field 1, `type`.
    pub msg_type: MessageType,
    /// Receiver. Field 2.
    pub to: u64,
    /// Sender. Field 3.
    pub from: u64,
    /// The sender's term, or the term asked about; 0 in forwarded proposals and reads. Field 4.
    pub term: u64,
    /// The term of the entry at `index`. Field 5, `logTerm`.
    pub log_term: u64,
    /// The position the message is about; its meaning depends on the kind. Field 6.
    pub index: u64,
    /// Entries that follow `index`. Field 7.
    pub entries: Vec<Entry>,
    /// The sender's commit index as far as the receiver may use it. Field 8.
    pub commit: u64,
    /// Present in snapshot messages. Field 9.
    pub snapshot: Option<Box<Snapshot>>,
    /// Whether an answer is a refusal. Field 10.
    pub reject: bool,
    /// Where a refusing follower suggests to continue. Field 11, `rejectHint`.
    pub reject_hint: u64,
    /// Opaque: the read context in heartbeats, the campaign type in vote requests. Field 12.
    pub context: Bytes,
    /// The index a follower wants in a snapshot it asks for. Field 13.
    pub request_snapshot: u64,
    /// The term of the entry at `commit`, in vote messages. Field 15, written when not 0.
    pub commit_term: u64,
    /// Not on the wire.
    pub priority: i64,
    /// Not on the wire.
    pub deprecated_priority: u64,
}

impl Message {
    /// `msg_type`.
    pub fn get_msg_type(&self) -> MessageType {
        self.msg_type
    }

    /// Sets `msg_type`.
    pub fn set_msg_type(&mut self, msg_type: MessageType) {
        self.msg_type = msg_type;
    }

    /// `index`.
    pub fn get_index(&self) -> u64 {
        self.index
    }

    /// Sets `index`.
    pub fn set_index(&mut self, index: u64) {
        self.index = index;
    }

    /// Sets `commit`.
    pub fn set_commit(&mut self, commit: u64) {
        self.commit = commit;
    }

    /// Sets `entries`.
    pub fn set_entries(&mut self, entries: Vec<Entry>) {
        self.entries = entries;
    }

    /// `entries`, to be changed.
    pub fn mut_entries(&mut self) -> &mut Vec<Entry> {
        &mut self.entries
    }

    /// Takes `entries`, leaving none.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// The snapshot; the empty one if there is none.
    pub fn get_snapshot(&self) -> &Snapshot {
        self.snapshot.as_deref().unwrap_or(&NO_SNAPSHOT)
    }

    /// Sets `snapshot`.
    pub fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(Box::new(snapshot));
    }

    /// Takes the snapshot; the empty one if there is none.
    pub fn take_snapshot(&mut self) -> Snapshot {
        self.snapshot.take().map(|boxed| *boxed).unwrap_or_default()
    }

    /// Takes `context`, leaving it empty.
    pub fn take_context(&mut self) -> Bytes {
        std::mem::take(&mut self.context)
    }
}

/// What a member must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen. Field 1.
    pub term: u64,
    /// The candidate that got this member's vote in `term`, 0 for none. Field 2.
    pub vote: u64,
    /// The highest index known to be committed. Field 3.
    pub commit: u64,
}

/// A change of one member, the content of an entry of type [`EntryType::EntryConfChange`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChange {
    /// The proposer's request id. Field 1.
    pub id: u64,
    /// What to do. Field 2, `type`.
    pub action: ConfChangeAction,
    /// To which member. Field 3.
    pub node_id: u64,
    /// For the state machine: the member as JSON. Field 4.
    pub context: Bytes,
}

/// One step of a [`ConfChangeV2`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeSingle {
    /// What to do. Field 1, `type`.
    pub change_type: ConfChangeType,
    /// To which member; 0 makes the core ignore the step. Field 2.
    pub node_id: u64,
}

impl ConfChangeSingle {
    /// `change_type`.
    pub fn get_change_type(&self) -> ConfChangeType {
        self.change_type
    }
}

/// Several changes at once. The form in which the core executes every change; never in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeV2 {
    /// How joint consensus is entered and left. Field 1.
    pub transition: ConfChangeTransition,
    /// The steps. Field 2.
    pub changes: Vec<ConfChangeSingle>,
    /// For the state machine. Field 3.
    pub context: Bytes,
}
