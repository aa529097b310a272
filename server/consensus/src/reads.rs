//! The read hub: many reads, few rounds.
//!
//! A linearizable read needs an index that was committed when the read began, vouched for by the
//! leader of a quorum. All reads that come in while earlier rounds fly share the next round. A leader
//! asks its core; another member asks the leader with a `MsgReadIndex`, whose answer is the result of
//! a round of the leader's own hub.
//!
//! # Invariants
//!
//! 1. A read joins a round that starts after the read.
//! 2. A context is 16 bytes, the boot nonce and a counter, and is used once (rule R2): an answer that
//!    arrives late finds no round.
//! 3. At most [`ROUNDS_MAX`] rounds fly, at most `reads_max` reads wait.
//! 4. A change of leader, role or term ends all rounds: the member's own reads are reported as
//!    aborted, those of peers are dropped (the peers notice the change themselves).

use crate::types::{Message, MessageType, ReadDone, Role, SoftState};
use bytes::Bytes;
use raft_proto::eraftpb as pb;
use std::collections::VecDeque;

/// Rounds in flight at once.
const ROUNDS_MAX: usize = 4;

pub(crate) type Context = [u8; 16];

enum Waiter {
    /// A read of this member.
    Local(u64),
    /// A read round of another member, to be answered with its own context.
    Peer { from: u64, context: Bytes },
}

struct Round {
    context: Context,
    born: u64,
    waiters: Vec<Waiter>,
}

/// How a round is started.
pub(crate) enum Start {
    /// By the core of this leader.
    Core(Context),
    /// By a message to the leader.
    Ask(Message),
}

pub(crate) struct ReadHub {
    id: u64,
    nonce: u64,
    reuse_contexts: bool,
    counter: u64,
    reads_max: usize,
    waiting: usize,
    epoch: SoftState,
    gathering: Vec<Waiter>,
    flying: VecDeque<Round>,
    done: Vec<ReadDone>,
    aborted: Vec<u64>,
}

impl ReadHub {
    pub(crate) fn new(id: u64, nonce: u64, reads_max: usize, reuse_contexts: bool) -> ReadHub {
        ReadHub {
            id,
            nonce,
            reuse_contexts,
            counter: 0,
            reads_max,
            waiting: 0,
            epoch: SoftState::default(),
            gathering: Vec::new(),
            flying: VecDeque::new(),
            done: Vec::new(),
            aborted: Vec::new(),
        }
    }

    /// Ends all rounds if leader, role or term changed.
    pub(crate) fn set_epoch(&mut self, epoch: SoftState) {
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        let flown = self.flying.drain(..).flat_map(|round| round.waiters);
        for waiter in flown.chain(self.gathering.drain(..)) {
            if let Waiter::Local(ctx) = waiter {
                self.aborted.push(ctx);
            }
        }
        self.waiting = 0;
    }

    /// Adds a read of this member; false when too many wait.
    pub(crate) fn add(&mut self, ctx: u64) -> bool {
        self.add_waiter(Waiter::Local(ctx))
    }

    /// Adds a round of another member; false when too many wait.
    pub(crate) fn add_peer(&mut self, from: u64, context: Bytes) -> bool {
        self.add_waiter(Waiter::Peer { from, context })
    }

    fn add_waiter(&mut self, waiter: Waiter) -> bool {
        if self.waiting >= self.reads_max {
            return false;
        }
        self.waiting += 1;
        self.gathering.push(waiter);
        true
    }

    /// Whether a round could start, provided the leader may answer it.
    pub(crate) fn wants_round(&self) -> bool {
        !self.gathering.is_empty() && self.flying.len() < ROUNDS_MAX
    }

    /// Starts a round for all that gathered.
    pub(crate) fn start(&mut self, now: u64) -> Start {
        let context = self.mint();
        self.flying.push_back(Round {
            context,
            born: now,
            waiters: std::mem::take(&mut self.gathering),
        });
        if self.epoch.role == Role::Leader {
            Start::Core(context)
        } else {
            Start::Ask(Message {
                msg_type: MessageType::MsgReadIndex,
                to: self.epoch.leader,
                from: self.id,
                entries: vec![pb::Entry {
                    data: Bytes::copy_from_slice(&context),
                    ..pb::Entry::default()
                }],
                ..Message::default()
            })
        }
    }

    /// Rounds that asked a leader in vain for `patience` ticks gather again, for a new context. A
    /// leader's own rounds need no repetition: its heartbeats carry the latest context.
    pub(crate) fn retry(&mut self, now: u64, patience: u64) {
        if self.epoch.role == Role::Leader {
            return;
        }
        while let Some(round) = self.flying.front() {
            if round.born + patience > now {
                break;
            }
            let round = self.flying.pop_front().expect("just seen");
            self.gathering.extend(round.waiters);
        }
    }

    /// A round ended with `index`. Returns the answers to peers.
    pub(crate) fn finish(&mut self, context: &[u8], index: u64) -> Vec<Message> {
        let Some(at) = self
            .flying
            .iter()
            .position(|round| round.context == context)
        else {
            return Vec::new();
        };
        let round = self.flying.remove(at).expect("position is inside");
        self.waiting -= round.waiters.len();
        let mut answers = Vec::new();
        for waiter in round.waiters {
            match waiter {
                Waiter::Local(ctx) => self.done.push(ReadDone { ctx, index }),
                Waiter::Peer { from, context } => answers.push(self.answer(from, context, index)),
            }
        }
        answers
    }

    fn answer(&self, to: u64, context: Bytes, index: u64) -> Message {
        Message {
            msg_type: MessageType::MsgReadIndexResp,
            to,
            from: self.id,
            term: self.epoch.term,
            index,
            entries: vec![pb::Entry {
                data: context,
                ..pb::Entry::default()
            }],
            ..Message::default()
        }
    }

    pub(crate) fn take_done(&mut self) -> Vec<ReadDone> {
        std::mem::take(&mut self.done)
    }

    pub(crate) fn take_aborted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.aborted)
    }

    pub(crate) fn has_results(&self) -> bool {
        !self.done.is_empty() || !self.aborted.is_empty()
    }

    fn mint(&mut self) -> Context {
        self.counter += 1;
        let (nonce, counter) = if self.reuse_contexts {
            (0, self.counter % 2)
        } else {
            (self.nonce, self.counter)
        };
        let mut context = [0; 16];
        context[..8].copy_from_slice(&nonce.to_be_bytes());
        context[8..].copy_from_slice(&counter.to_be_bytes());
        context
    }
}

#[cfg(test)]
mod tests;
