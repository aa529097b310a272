//! The part of rust-protobuf 2 that the crate `raft` names, and nothing else.
//!
//! `raft` 0.7 depends on `protobuf = "2"` for three methods of one trait and one error type. The
//! workspace selects this crate in its place with `[patch.crates-io]`, so no parser of that crate is
//! linked: messages are encoded and decoded by `raft-proto`, which implements the trait below.
//!
//! # Invariants
//!
//! 1. Nothing in here parses or allocates; it only names things.
//! 2. The version stays in 2.x, the range `raft` asks for.

use std::fmt;

/// What `raft` asks of a message type.
pub trait Message: Sized {
    /// Encoded length in bytes. `raft` calls it per entry to keep messages and batches under their
    /// byte limits, so it must be cheap.
    fn compute_size(&self) -> u32;

    /// The encoded bytes.
    fn write_to_bytes(&self) -> Result<Vec<u8>, ProtobufError>;

    /// Reads `bytes` on top of `self`: scalars are replaced, repeated fields extended.
    ///
    /// After an error `self` holds whatever was read before it.
    fn merge_from_bytes(&mut self, bytes: &[u8]) -> Result<(), ProtobufError>;
}

/// Bytes that are not a message of the expected type; holds the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtobufError(pub String);

impl fmt::Display for ProtobufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProtobufError {}
