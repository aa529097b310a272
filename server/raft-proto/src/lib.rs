//! The messages of the crate `raft`, with the wire format of etcd's `raftpb`.
//!
//! `raft` 0.7 names its messages through a crate called `raft-proto`; the workspace selects this one
//! with `[patch.crates-io]`. It differs from the published crate on purpose:
//!
//! - field numbers and enum values are etcd's, so the same bytes are understood by etcd members and
//!   by tools that read etcd's log;
//! - payloads are [`bytes::Bytes`]: cloning an entry for a peer costs a reference count, and decoding
//!   a frame shares its buffer with every entry in it;
//! - encoding and decoding are written by hand: no generator runs at build time.
//!
//! The modules: [`eraftpb`] holds the types under the name `raft` expects, `wire` the varints and
//! bounds checks, `codec` the fields of every message, `confchange` and `confstate` the
//! helpers `raft` calls.
//!
//! # Invariants
//!
//! 1. Writing is proto2 as etcd's members write it: scalars always, byte strings and repeated fields
//!    only when not empty, in ascending field order. Reading accepts absent fields (their zero
//!    value), packed repeated numbers and unknown fields, which are skipped.
//! 2. Arbitrary bytes give a message or a [`DecodeError`]: no panic, no allocation larger than a
//!    constant factor of the input.
//! 3. What was encoded decodes to an equal value, for every value this process builds (see
//!    [`eraftpb::Message`] for the two fields that never travel).

mod codec;
mod confchange;
mod confstate;
pub mod eraftpb;
mod wire;

pub use codec::Wire;
pub use confchange::{
    ConfChangeI, new_conf_change_single, parse_conf_change, stringify_conf_change,
};
pub use confstate::conf_state_eq;
pub use wire::DecodeError;

/// The names `raft` re-exports in its own prelude.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}
