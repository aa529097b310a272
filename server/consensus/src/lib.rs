//! One member's part in the consensus: which entries are in the log, which are committed, who leads.
//!
//! [`Replica`] wraps the crate `raft`. It is a state machine without clock, threads, files and
//! network: the driver feeds it ticks, messages of peers and reports about finished work, and takes
//! [`Ready`]s, each a bundle of things to write, send and apply. Equal inputs give equal outputs, so a
//! whole cluster runs from one seed in one thread.
//!
//! # A turn of the driver
//!
//! 1. Feed everything that came in: [`Replica::receive`], [`Replica::propose`] with all payloads of
//!    the turn in one call, [`Replica::persisted`], [`Replica::applied`], [`Replica::read`],
//!    [`Replica::tick`].
//! 2. Take [`Replica::ready`] until it is `None`. For each: send `messages`; queue `wal` behind the
//!    earlier tasks; hand `committed` to the state machine; complete `reads` once the state machine
//!    has applied their index.
//! 3. When a write ends, [`WalTask::durable`] gives the messages that waited for it and the
//!    [`Persisted`] that goes back to the replica. Several tasks may share one write; they finish in
//!    order.
//!
//! # Rules
//!
//! The core is safe under conditions that its types do not enforce. This crate does, and every rule
//! has a test that breaks it and must fail:
//!
//! - R1 Append messages are never merged (`batch_append` is off): a merged message may claim entries
//!   that the receiver does not have.
//! - R2 Read contexts are 16 bytes, minted by this process, used once; peers' contexts never reach
//!   the core.
//! - R3 A leader that executes its own removal or demotion becomes a follower at once.
//! - R4 A sole voter does not campaign while entries are in flight to its disk.
//! - R5 Writes are reported in order and after they are durable; what promises anything about them
//!   leaves afterwards.
//! - R6 Only messages that promise nothing overtake a write: heartbeat responses and forwarded
//!   requests. Requests for votes do not.
//! - R7 At start the commit index is at least the applied index. A commit index alone is never
//!   written.
//! - R8 Election timeouts are a function of seed, member, start, term and role.
//! - R9 A leader's messages leave before its own write ends, but not before its term is durable.
//! - R10 No election begins while a snapshot is being installed.
//!
//! # Invariants the driver may rely on
//!
//! 1. Committed entries come out once, in order, without gap, and are durable on this member.
//! 2. A [`ReadDone`] names an index at or above everything committed when its read began.
//! 3. [`Replica::receive`] does not panic on a message that contradicts itself. It does on proof of
//!    a broken group: a leader whose log contradicts entries this member knows to be committed.
//! 4. Memory is bounded: see [`Config`] for the log window, uncommitted bytes and waiting reads.
//!
//! Deliberately absent: joint consensus, leases, priorities, any clock. Types of `raft` do not leave
//! this crate.

mod bootstrap;
mod conf;
mod config;
mod error;
mod log_view;
mod reads;
mod ready;
mod replica;
mod rules;
#[cfg(test)]
mod sim;
mod types;

pub use bootstrap::{BootstrapError, InitialMember, bootstrap};
pub use conf::apply_conf_change;
pub use config::{Boot, Config, LogFn, LogLevel, LogSink};
pub use error::{BootError, ConfChangeError, ProposeError, ReadError, ReceiveError};
pub use log_view::{FETCHES_MAX, Fetch, SnapshotWanted};
pub use raft_proto::{DecodeError, Wire};
pub use ready::{Persisted, Ready, WalTask};
pub use replica::Replica;
pub use types::{
    ConfChange, ConfChangeAction, ConfState, Entry, EntryKind, HardState, Message, MessageType,
    PeerProgress, ReadDone, Role, SnapshotMeta, SoftState, Status, Verdict,
};

/// The message types inside [`Message`], for transports that look into them.
pub mod raftpb {
    pub use raft_proto::eraftpb::{Entry, EntryType, Snapshot, SnapshotMetadata};
}
