//! What is appended but not handed to the disk: batches being filled, in order. Pure.

use crate::buffer::Buffer;
use crate::format::batch::{HEADER_BYTES, Record};
use crate::format::padded;
use crate::format::segment::FIRST_BATCH;
use crate::state::State;
use std::collections::VecDeque;
use std::io;

/// The size of an arena buffer: the largest batch but for single larger entries.
pub(crate) const ARENA_BYTES: usize = 1 << 20;
/// Buffers that are always there: one in flight, one being filled, and slack.
pub(crate) const ARENA_BUFFERS: usize = 3;
/// Spare buffers kept while bursts go on: fresh memory costs a page fault for each page.
const SPARE_MAX: usize = 16;

/// Records on their way to one durable write.
pub(crate) struct Batch {
    pub buffer: Buffer,
    /// Bytes used, header included.
    pub len: usize,
    pub records: u32,
    /// The first entry's index, 0 if there is none.
    pub first_index: u64,
    /// The lowest index it writes behind its last snapshot mark; its live entries go from there to
    /// the state's last index.
    pub lowest: Option<u64>,
    /// It holds a snapshot mark: what was before is void.
    pub voids_all: bool,
    /// The log's state behind it.
    pub state: State,
    /// The last append that is wholly in it or before it.
    pub upto: u64,
    /// Checksum of its records, as far as `digested`.
    pub digest: crc32fast::Hasher,
    digested: usize,
}

impl Batch {
    /// Brings the checksum up to date.
    pub fn digest(&mut self) {
        self.digest.update(&self.buffer[self.digested..self.len]);
        self.digested = self.len;
    }
}

/// Batches in order; the last one is open for more.
pub(crate) struct Queue {
    batches: VecDeque<Batch>,
    spare: Vec<Buffer>,
    /// The largest batch in bytes, header included, except for single records.
    batch_bytes_max: usize,
    /// Where batches end in a segment: its last block is kept for the roll record.
    usable: u64,
    bytes: usize,
    /// The last append that was taken whole.
    upto: u64,
}

/// Bytes of a segment that batches may use.
pub(crate) fn usable(segment_bytes: u64) -> u64 {
    segment_bytes - crate::format::BLOCK_BYTES as u64
}

impl Queue {
    pub fn new(segment_bytes: u64, arena: Vec<Buffer>) -> Queue {
        let usable = usable(segment_bytes);
        Queue {
            batches: VecDeque::new(),
            spare: arena,
            batch_bytes_max: ARENA_BYTES.min((usable - FIRST_BATCH) as usize),
            usable,
            bytes: 0,
            upto: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes gathered.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The largest entry data that fits a segment.
    pub fn entry_bytes_max(&self) -> usize {
        (self.usable - FIRST_BATCH) as usize - HEADER_BYTES - crate::format::batch::ENTRY_BYTES
    }

    fn fits(&self, len: usize, record: usize) -> bool {
        len + record <= self.batch_bytes_max
    }

    /// How many further segments it takes to write everything gathered and records of these sizes,
    /// if the next batch goes to `offset` in the present one.
    pub fn segments_needed(&self, offset: u64, records: impl Iterator<Item = usize>) -> usize {
        let mut end = offset;
        let mut further = 0;
        let mut place = |len: usize| {
            if end + padded(len) as u64 > self.usable {
                further += 1;
                end = FIRST_BATCH;
            }
            end += padded(len) as u64;
        };
        let closed = self.batches.len().saturating_sub(1);
        self.batches.iter().take(closed).for_each(|b| place(b.len));
        let mut open = self.batches.back().map(|b| b.len);
        for record in records {
            match &mut open {
                Some(len) if self.fits(*len, record) => *len += record,
                _ => {
                    if let Some(len) = open {
                        place(len);
                    }
                    open = Some(HEADER_BYTES + record);
                }
            }
        }
        if let Some(len) = open {
            place(len);
        }
        further
    }

    /// Makes sure that memory for these records can be had, before any of them is taken.
    pub fn provide(&mut self, records: impl Iterator<Item = usize>) -> io::Result<()> {
        let mut open = self.batches.back().map(|b| b.len);
        let mut needed = Vec::new();
        for record in records {
            match &mut open {
                Some(len) if self.fits(*len, record) => *len += record,
                _ => {
                    open = Some(HEADER_BYTES + record);
                    needed.push(HEADER_BYTES + record);
                }
            }
        }
        // Large ones are made to measure; the others come from the spares.
        let small = needed.iter().filter(|n| **n <= ARENA_BYTES).count();
        while self.spare.iter().filter(|b| b.len() == ARENA_BYTES).count() < small {
            self.spare.push(Buffer::new(ARENA_BYTES)?);
        }
        for large in needed.into_iter().filter(|n| *n > ARENA_BYTES) {
            self.spare.push(Buffer::new(large)?);
        }
        Ok(())
    }

    /// Takes a record; memory was provided.
    pub fn push(&mut self, record: &Record<'_>, state: &State) {
        let bytes = record.encoded_bytes();
        let open = self.batches.back().map(|b| b.len);
        if !open.is_some_and(|len| self.fits(len, bytes)) {
            self.open_batch(HEADER_BYTES + bytes, state);
        }
        let batch = self.batches.back_mut().expect("opened above");
        record.encode(&mut batch.buffer[batch.len..batch.len + bytes]);
        batch.len += bytes;
        batch.records += 1;
        batch.state = *state;
        self.bytes += bytes;
        match record {
            Record::Entry { index, .. } => {
                if batch.first_index == 0 {
                    batch.first_index = *index;
                }
                batch.lowest = Some(batch.lowest.map_or(*index, |l| l.min(*index)));
            }
            Record::Snapshot { .. } => {
                batch.lowest = None;
                batch.voids_all = true;
            }
            _ => {}
        }
    }

    /// Adds an empty batch: a seal.
    pub fn push_seal(&mut self, state: &State, upto: u64) -> io::Result<()> {
        if self.spare.is_empty() {
            self.spare.push(Buffer::new(ARENA_BYTES)?);
        }
        self.open_batch(HEADER_BYTES, state);
        self.mark(upto);
        Ok(())
    }

    fn open_batch(&mut self, len: usize, state: &State) {
        // The smallest that will do: a large one was made for a record that fits nowhere else.
        // The one used last comes first: it is still in the processor's caches.
        let latest = self.spare.iter().enumerate().rev();
        let fitting = latest.filter(|(_, b)| b.len() >= len);
        let (at, _) = fitting
            .min_by_key(|(_, b)| b.len())
            .expect("memory was provided");
        self.bytes += HEADER_BYTES;
        self.batches.push_back(Batch {
            buffer: self.spare.swap_remove(at),
            len: HEADER_BYTES,
            records: 0,
            first_index: 0,
            lowest: None,
            voids_all: false,
            state: *state,
            upto: self.upto,
            digest: crc32fast::Hasher::new(),
            digested: HEADER_BYTES,
        });
    }

    /// Brings the checksum of the open batch up to date.
    pub fn digest(&mut self) {
        if let Some(open) = self.batches.back_mut() {
            open.digest();
        }
    }

    /// Everything appended up to `upto` is in the queue or before it.
    pub fn mark(&mut self, upto: u64) {
        self.upto = upto;
        if let Some(last) = self.batches.back_mut() {
            last.upto = upto;
        }
    }

    /// The bytes of the next batch, padded.
    pub fn next_bytes(&self) -> Option<u64> {
        self.batches.front().map(|b| padded(b.len) as u64)
    }

    pub fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.len;
        Some(batch)
    }

    /// The highest index below everything that the queue will replace.
    pub fn untouched_below(&self) -> u64 {
        let lowest = |b: &Batch| match b.voids_all {
            true => 0,
            false => b.lowest.map_or(u64::MAX, |l| l - 1),
        };
        self.batches.iter().map(lowest).min().unwrap_or(u64::MAX)
    }

    /// Gives the memory of bursts back.
    pub fn release(&mut self) {
        let mut others = 0;
        self.spare.retain(|buffer| {
            others += usize::from(buffer.slot.is_none());
            buffer.slot.is_some() || others <= ARENA_BUFFERS
        });
    }

    /// Takes memory back for reuse.
    pub fn reuse(&mut self, buffer: Buffer) {
        let wanted = buffer.slot.is_some() || self.spare.len() < SPARE_MAX;
        if wanted && buffer.len() == ARENA_BYTES {
            self.spare.push(buffer);
        }
    }
}
