//! What must hold in every run. A violation panics with what was seen.

use super::node::Disk;
use crate::types::{Entry, Message, MessageType, ReadDone};
use raft_proto::Wire;
use std::collections::BTreeMap;

/// A read under way: member, its start, context.
type ReadKey = (u64, u64, u64);

#[derive(Default)]
pub(crate) struct Checker {
    leaders: BTreeMap<u64, u64>,
    /// Term and digest of the entry at index `i + 1`, as first applied anywhere.
    applied: Vec<(u64, u64)>,
    committed: u64,
    reads: BTreeMap<ReadKey, u64>,
    pub(crate) reads_done: u64,
    trace: u64,
}

impl Checker {
    /// At most one leader per term.
    pub(crate) fn leads(&mut self, term: u64, id: u64) {
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "two leaders in term {term}");
    }

    pub(crate) fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// A member knows `commit` to be committed.
    pub(crate) fn commits(&mut self, commit: u64) {
        self.committed = self.committed.max(commit);
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// All members apply the same entries, each in order and without gap.
    pub(crate) fn applies(&mut self, id: u64, previous: u64, entry: &Entry) {
        assert_eq!(entry.index, previous + 1, "member {id} skips");
        let digest = (
            entry.term,
            digest(&entry.data) ^ u64::from(entry.kind.number()),
        );
        let at = entry.index as usize - 1;
        if at == self.applied.len() {
            self.applied.push(digest);
        }
        assert!(
            at < self.applied.len(),
            "member {id} applies {} before anybody applied what precedes it",
            entry.index
        );
        assert_eq!(
            self.applied[at], digest,
            "member {id} applies something else at {}",
            entry.index
        );
        self.record(&[id, entry.index, digest.0, digest.1]);
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.len() as u64
    }

    pub(crate) fn read_begins(&mut self, id: u64, boot: u64, ctx: u64) {
        self.reads.insert((id, boot, ctx), self.committed);
    }

    /// The index covers what was committed when the read began.
    pub(crate) fn read_ends(&mut self, id: u64, boot: u64, read: ReadDone) {
        let needed = self
            .reads
            .remove(&(id, boot, read.ctx))
            .expect("a read is answered once");
        assert!(
            read.index >= needed,
            "stale read on member {id}: {} where {needed} was committed",
            read.index
        );
        self.reads_done += 1;
        self.record(&[id, read.ctx, read.index]);
    }

    pub(crate) fn read_aborts(&mut self, id: u64, boot: u64, ctx: u64) {
        self.reads
            .remove(&(id, boot, ctx))
            .expect("only open reads abort");
    }

    pub(crate) fn crashes(&mut self, id: u64) {
        self.reads.retain(|&(member, _, _), _| member != id);
        self.record(&[id, u64::MAX]);
    }

    /// A message promises no more than its sender's disk holds.
    pub(crate) fn sends(&mut self, message: &Message, disk: &Disk) {
        let state = disk.hard_state;
        match message.msg_type {
            MessageType::MsgAppendResponse if !message.reject => {
                // In a later term the entries may be gone again: they were in the log when this was
                // said, and what a new leader replaced cannot have been needed by the old one.
                assert!(
                    state.term > message.term
                        || (state.term == message.term && disk.last_index() >= message.index),
                    "member {} acknowledges {} in term {} with {} in term {} on disk",
                    message.from,
                    message.index,
                    message.term,
                    disk.last_index(),
                    state.term
                );
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                assert!(
                    state.term > message.term
                        || (state.term == message.term && state.vote == message.to),
                    "member {} votes without remembering it",
                    message.from
                );
            }
            MessageType::MsgRequestVote => {
                assert!(
                    state.term > message.term
                        || (state.term == message.term && state.vote == message.from),
                    "member {} asks for votes in a term it may forget",
                    message.from
                );
            }
            _ => {}
        }
        let bytes = message.encode_to_vec();
        self.record(&[digest(&bytes)]);
    }

    pub(crate) fn record(&mut self, words: &[u64]) {
        for word in words {
            self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    hash
}
