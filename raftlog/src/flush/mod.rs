//! At most one durable write in flight.
//!
//! Three ways of doing it. The *ring* hands the write to the kernel and returns; its end is noticed
//! at the next poll or wait. *Inline* has nobody to run on but the owner: the write waits in the slot
//! and is done by the thread that polls or waits for it. The *thread* is there for an owner with other
//! work: it does what the owner does not wait for. An owner that waits at once does the write itself
//! there too, since two thread switches cost more than they gain: 3,000 writes of one block,
//! alternating on a busy machine of two cores, took at the tenth percentile 85 µs bare, 79 µs inline
//! through the log, 84 µs with the ring through the log, and 102 µs through a thread.

pub(crate) mod handover;
pub(crate) mod stall;
pub(crate) mod thread;
pub(crate) mod uring;

use crate::buffer::Buffer;
use crate::disk::SegFile;
use std::io;
use std::sync::Arc;

/// A durable write and the memory it is made from.
pub(crate) struct Write {
    pub file: Arc<dyn SegFile>,
    /// One behind the other.
    pub buffers: Vec<Buffer>,
    pub offset: u64,
    /// Whole blocks, from the start of the first buffer.
    pub len: usize,
}

impl Write {
    /// The bytes of each buffer that are written.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.len;
        self.buffers.iter().map(move |buffer| {
            let n = left.min(buffer.len());
            left -= n;
            &buffer[..n]
        })
    }
}

/// The one slot.
pub(crate) enum Flusher {
    Inline(Option<Write>),
    Thread(thread::FlushThread),
    Ring(Box<uring::Ring>),
}

impl Flusher {
    pub fn is_busy(&self) -> bool {
        match self {
            Flusher::Inline(slot) => slot.is_some(),
            Flusher::Thread(thread) => thread.is_busy(),
            Flusher::Ring(ring) => ring.is_busy(),
        }
    }

    /// Starts a write. The slot must be free.
    pub fn start(&mut self, write: Write) -> io::Result<()> {
        assert!(!self.is_busy(), "one durable write in flight at most");
        match self {
            Flusher::Inline(slot) => {
                *slot = Some(write);
                Ok(())
            }
            Flusher::Thread(thread) => {
                thread.hold(write);
                Ok(())
            }
            Flusher::Ring(ring) => ring.start(write),
        }
    }

    /// The owner will not wait for the write in flight now.
    pub fn kick(&mut self) {
        if let Flusher::Thread(thread) = self {
            thread.kick();
        }
    }

    /// Gives the buffers back if the write has ended; with `block`, waits for that. `None` if
    /// nothing is in flight or, without `block`, it goes on. After an error nothing is in flight.
    pub fn finish(&mut self, block: bool) -> io::Result<Option<Vec<Buffer>>> {
        match self {
            Flusher::Inline(slot) => slot.take().map(thread::write).transpose(),
            Flusher::Thread(thread) => thread.finish(block),
            Flusher::Ring(ring) => ring.finish(block),
        }
    }
}
