//! At most one durable write in flight.
//!
//! Two ways of doing it. The *ring* hands the write to the kernel and returns; its end is noticed
//! at the next poll or wait. *Inline* has no second thread to run on: the write waits in the
//! slot and is done by the thread that polls or waits for it. A helper thread would overlap the
//! write with other work of the owner, but adds two thread switches to every flush: 3,000 writes of
//! one block, alternating on a busy machine of two cores, took at the tenth percentile 85 µs bare,
//! 79 µs inline through the log, 84 µs with the ring through the log, and 102 µs through a helper
//! thread. The owner has little to overlap, so there is no helper.

pub(crate) mod uring;

use crate::buffer::Buffer;
use crate::disk::SegFile;
use std::io;
use std::sync::Arc;

/// A durable write and the memory it is made from.
pub(crate) struct Write {
    pub file: Arc<dyn SegFile>,
    pub buffer: Buffer,
    pub offset: u64,
    /// Whole blocks of `buffer`, from its start.
    pub len: usize,
}

/// The one slot.
pub(crate) enum Flusher {
    Inline(Option<Write>),
    Ring(Box<uring::Ring>),
}

impl Flusher {
    pub fn is_busy(&self) -> bool {
        match self {
            Flusher::Inline(slot) => slot.is_some(),
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
            Flusher::Ring(ring) => ring.start(write),
        }
    }

    /// Gives the buffer back if the write has ended; with `block`, waits for that. `None` if
    /// nothing is in flight or, without `block`, it goes on. After an error nothing is in flight.
    pub fn finish(&mut self, block: bool) -> io::Result<Option<Buffer>> {
        match self {
            Flusher::Inline(slot) => match slot.take() {
                None => Ok(None),
                Some(write) => {
                    write
                        .file
                        .write_durable(write.offset, &write.buffer[..write.len])?;
                    Ok(Some(write.buffer))
                }
            },
            Flusher::Ring(ring) => ring.finish(block),
        }
    }
}
