//! The open streams of a connection, and what they have yet to send.
//!
//! A stream lives in a numbered slot, which whoever serves the connection uses as the name of the call;
//! slots are used again.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::OnceLock;

/// Slots that a connection without streams keeps.
const SLOTS_KEPT: usize = 128;

/// How far the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing was sent.
    None,
    /// The headers were.
    Begun,
    /// All of it was handed over; perhaps some of it waits for the window.
    Given,
    /// All was sent.
    Sent,
}

/// Whether the answer was sent while the request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lingers {
    Not,
    /// Since the last look.
    New,
    /// The last look has seen it.
    Seen,
}

/// What waits for the window.
#[derive(Debug, Default)]
pub struct Queue {
    pub pieces: VecDeque<Bytes>,
    pub bytes: usize,
    /// The block that ends the answer; an empty one is an end without fields.
    pub trailers: Option<Box<[u8]>>,
}

#[derive(Debug)]
pub struct Stream {
    /// 0 when the slot is free.
    pub id: u32,
    /// The client has sent all.
    pub ended: bool,
    pub answer: Answer,
    /// Waits for its turn to send.
    pub in_turn: bool,
    pub lingers: Lingers,
    /// May be below zero after the client made its windows smaller.
    pub send_window: i64,
    pub recv_window: i64,
    /// Taken from the window by what was consumed and not yet given back.
    pub credit: u32,
    /// What `content-length` promises and has not come.
    pub body_left: Option<u64>,
    pub queue: Option<Box<Queue>>,
}

/// Spreads stream ids. They are the client's choice, so the factor is not known outside.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u32(u32::from(*b)));
    }

    fn write_u32(&mut self, id: u32) {
        static FACTOR: OnceLock<u64> = OnceLock::new();
        let factor = FACTOR.get_or_init(|| RandomState::new().hash_one(0) | 1);
        let wide = u128::from((self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
            * u128::from(*factor);
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default)]
pub struct Streams {
    slots: Vec<Stream>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    /// The stream looked up last, and its slot: frames of one stream follow each other.
    last: (u32, u32),
}

impl Streams {
    /// Open streams.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn find(&mut self, id: u32) -> Option<u32> {
        if self.last.0 == id {
            return Some(self.last.1);
        }
        let slot = *self.by_id.get(&id)?;
        self.last = (id, slot);
        Some(slot)
    }

    /// The stream in a slot that is taken.
    pub fn get(&mut self, slot: u32) -> &mut Stream {
        &mut self.slots[slot as usize]
    }

    /// The stream in a slot, if it is taken.
    pub fn open(&mut self, slot: u32) -> Option<&mut Stream> {
        self.slots.get_mut(slot as usize).filter(|s| s.id != 0)
    }

    pub fn insert(&mut self, stream: Stream) -> u32 {
        let id = stream.id;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = stream;
                slot
            }
            None => {
                self.slots.push(stream);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_id.insert(id, slot);
        self.last = (id, slot);
        slot
    }

    /// Frees a slot; returns the bytes that waited in it.
    pub fn remove(&mut self, slot: u32) -> usize {
        let stream = &mut self.slots[slot as usize];
        let id = std::mem::take(&mut stream.id);
        let queue = stream.queue.take();
        self.by_id.remove(&id);
        if self.last.0 == id {
            self.last = (0, 0);
        }
        self.free.push(slot);
        if self.by_id.is_empty() && self.slots.len() > SLOTS_KEPT {
            // A quiet connection holds little.
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        queue.map_or(0, |queue| queue.bytes)
    }

    /// Slots and streams.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Stream)> {
        let all = self.slots.iter_mut().enumerate();
        all.filter(|(_, s)| s.id != 0).map(|(at, s)| (at as u32, s))
    }
}
