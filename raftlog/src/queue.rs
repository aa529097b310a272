//! What is appended but not handed to the disk: batches being filled, in order. Pure.
//!
//! A batch lies in chunks of one size, so that it can grow without being moved and its memory goes from
//! one batch to the next. Where each batch will lie in its segment is planned when it is opened: a
//! batch grows up to the segment's end and not beyond, and the next one begins the next segment.
//!
//! Memory: what is gathered (`Options::gather_bytes_max` and one append), the batch in flight (at most
//! [`BATCH_BYTES_MAX`], or a single larger record), and spare chunks: [`SPARE_MAX`] of them during bursts,
//! [`CHUNKS_KEPT`] from the next pause on.

use crate::buffer::Buffer;
use crate::format::batch::{BatchHeader, HEADER_BYTES, Record};
use crate::format::padded;
use crate::format::segment::FIRST_BATCH;
use crate::state::State;
use std::collections::VecDeque;
use std::io;

/// The largest batch but for single larger records.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// The largest chunk: a huge page, where the kernel gives one.
const CHUNK_BYTES_MAX: usize = 2 << 20;
/// Chunks that are always there: one in flight, one being filled.
pub(crate) const CHUNKS_KEPT: usize = 2;
/// Spare chunks kept while bursts go on: fresh memory must be cleared by the kernel first.
const SPARE_MAX: usize = BATCH_BYTES_MAX / CHUNK_BYTES_MAX;
/// The checksum follows the copying so closely that it finds the bytes in the processor's first cache.
const DIGEST_BYTES: usize = 16 << 10;

/// The size of all chunks of a log.
pub(crate) fn chunk_bytes(segment_bytes: u64) -> usize {
    padded((segment_bytes / 8) as usize).min(CHUNK_BYTES_MAX)
}

/// Records on their way to one durable write.
pub(crate) struct Batch {
    chunks: Vec<Buffer>,
    chunk_bytes: usize,
    /// It begins a segment.
    pub rolls: bool,
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
    digest: crc32fast::Hasher,
    digested: usize,
}

impl Batch {
    /// Brings the checksum up to date.
    fn digest(&mut self) {
        while self.digested < self.len {
            let at = self.digested % self.chunk_bytes;
            let n = (self.len - self.digested).min(self.chunk_bytes - at);
            let chunk = &self.chunks[self.digested / self.chunk_bytes];
            self.digest.update(&chunk[at..at + n]);
            self.digested += n;
        }
    }

    /// Copies bytes behind what is there; the chunks for them are there.
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.len % self.chunk_bytes;
            let n = bytes.len().min(self.chunk_bytes - at).min(DIGEST_BYTES);
            let chunk = &mut self.chunks[self.len / self.chunk_bytes];
            chunk[at..at + n].copy_from_slice(&bytes[..n]);
            self.len += n;
            bytes = &bytes[n..];
            if self.len - self.digested >= DIGEST_BYTES {
                self.digest();
            }
        }
    }

    /// Nothing will be added: zeros up to the end of the last block, and the checksum of the records.
    pub fn finish(&mut self) -> u32 {
        self.digest();
        let at = self.len % self.chunk_bytes;
        if at != 0 {
            self.chunks[self.len / self.chunk_bytes][at..padded(at)].fill(0);
        }
        self.digest.clone().finalize()
    }

    /// Puts the header in front of the records; returns its checksum.
    pub fn set_header(&mut self, header: &BatchHeader) -> u32 {
        header.encode(&mut self.chunks[0])
    }

    /// Its memory, to be written up to the padded length.
    pub fn into_chunks(self) -> Vec<Buffer> {
        self.chunks
    }
}

/// Where the next record goes. Follows the same rules whether records are taken or only thought of.
#[derive(Clone, Copy)]
struct Plan {
    /// Where the open batch begins, or the next one if none is open.
    place: u64,
    /// Bytes of the open batch, header included; 0 if none is open.
    len: usize,
    batch_bytes_max: usize,
    /// Where batches end in a segment: its last block is kept for the roll record.
    usable: u64,
}

/// What a record makes necessary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It fits the open batch.
    Goes,
    /// Another batch, in the same segment.
    Opens,
    /// Another batch, in the next segment.
    Rolls,
}

impl Plan {
    fn take(&mut self, bytes: usize) -> Turn {
        let len = self.len + bytes;
        let fits = len <= self.batch_bytes_max && self.place + padded(len) as u64 <= self.usable;
        if self.len > 0 && fits {
            self.len = len;
            return Turn::Goes;
        }
        self.open(HEADER_BYTES + bytes)
    }

    /// A batch of at least `len` bytes.
    fn open(&mut self, len: usize) -> Turn {
        self.place += padded(self.len) as u64;
        self.len = len;
        if self.place + padded(len) as u64 <= self.usable {
            return Turn::Opens;
        }
        self.place = FIRST_BATCH;
        Turn::Rolls
    }
}

/// What it takes to write everything gathered and some records more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Segments behind the present one.
    pub segments: usize,
    /// Chunks for the records.
    pub chunks: usize,
}

/// Batches in order; the last one is open for more.
pub(crate) struct Queue {
    batches: VecDeque<Batch>,
    plan: Plan,
    chunk_bytes: usize,
    spare: Vec<Buffer>,
    bytes: usize,
    /// Batches that begin a segment.
    rolls: usize,
    /// The last append that was taken whole.
    upto: u64,
}

/// Bytes of a segment that batches may use.
pub(crate) fn usable(segment_bytes: u64) -> u64 {
    segment_bytes - crate::format::BLOCK_BYTES as u64
}

impl Queue {
    /// `arena`: chunks of this segment size, to begin with.
    pub fn new(segment_bytes: u64, arena: Vec<Buffer>) -> Queue {
        let usable = usable(segment_bytes);
        Queue {
            batches: VecDeque::new(),
            plan: Plan {
                place: FIRST_BATCH,
                len: 0,
                batch_bytes_max: BATCH_BYTES_MAX.min((usable - FIRST_BATCH) as usize),
                usable,
            },
            chunk_bytes: chunk_bytes(segment_bytes),
            spare: arena,
            bytes: 0,
            rolls: 0,
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
        let room = (self.plan.usable - FIRST_BATCH) as usize;
        room - HEADER_BYTES - crate::format::batch::ENTRY_BYTES
    }

    /// The next batch handed to the disk goes to `offset`. To be said before records are thought of or
    /// taken.
    pub fn starts_at(&mut self, offset: u64) {
        if self.batches.is_empty() {
            (self.plan.place, self.plan.len) = (offset, 0);
        }
    }

    /// What it takes to write everything gathered and records of these sizes.
    pub fn needs(&self, records: impl Iterator<Item = usize>) -> Needs {
        let mut plan = self.plan;
        let mut needs = Needs {
            segments: self.rolls,
            chunks: 0,
        };
        let mut there = self.batches.back().map_or(0, |b| b.chunks.len());
        for record in records {
            let turn = plan.take(record);
            needs.segments += usize::from(turn == Turn::Rolls);
            if turn != Turn::Goes {
                there = 0;
            }
            let wanted = plan.len.div_ceil(self.chunk_bytes);
            needs.chunks += wanted - there;
            there = wanted;
        }
        needs
    }

    /// Makes sure that there are so many spare chunks, before any record is taken.
    pub fn provide(&mut self, chunks: usize) -> io::Result<()> {
        while self.spare.len() < chunks {
            self.spare.push(Buffer::new(self.chunk_bytes)?);
        }
        Ok(())
    }

    /// Takes a record; memory was provided.
    pub fn push(&mut self, record: &Record<'_>, state: &State) {
        let turn = self.plan.take(record.encoded_bytes());
        if turn != Turn::Goes {
            self.open_batch(turn, state);
        }
        let batch = self.batches.back_mut().expect("opened above");
        while batch.chunks.len() * self.chunk_bytes < self.plan.len {
            let chunk = self.spare.pop().expect("memory was provided");
            batch.chunks.push(chunk);
        }
        let before = batch.len;
        let (head, head_bytes) = record.head();
        batch.put(&head[..head_bytes]);
        batch.put(record.data());
        assert_eq!(
            batch.len, self.plan.len,
            "records go where they were planned"
        );
        batch.records += 1;
        batch.state = *state;
        self.bytes += batch.len - before;
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
        self.provide(1)?;
        let turn = self.plan.open(HEADER_BYTES);
        self.open_batch(turn, state);
        self.mark(upto);
        Ok(())
    }

    fn open_batch(&mut self, turn: Turn, state: &State) {
        // A chunk that is registered with the kernel if there is one, and the one used last: it is still
        // in the processor's caches.
        let registered = self.spare.iter().rposition(|c| c.slot.is_some());
        let last = self.spare.len().checked_sub(1);
        let at = registered.or(last).expect("memory was provided");
        let rolls = turn == Turn::Rolls;
        self.rolls += usize::from(rolls);
        self.bytes += HEADER_BYTES;
        self.batches.push_back(Batch {
            chunks: vec![self.spare.swap_remove(at)],
            chunk_bytes: self.chunk_bytes,
            rolls,
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

    /// Whether the next batch begins a segment.
    pub fn next_rolls(&self) -> bool {
        self.batches.front().is_some_and(|b| b.rolls)
    }

    pub fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.len;
        self.rolls -= usize::from(batch.rolls);
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
        self.spare.sort_by_key(|c| c.slot.is_none());
        self.spare.truncate(CHUNKS_KEPT);
    }

    /// Takes memory back for reuse.
    pub fn reuse(&mut self, chunks: Vec<Buffer>) {
        for chunk in chunks {
            if chunk.slot.is_some() || self.spare.len() < SPARE_MAX {
                self.spare.push(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::crc;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn state() -> State {
        State::default()
    }

    fn queue(segment_bytes: u64) -> Queue {
        Queue::new(segment_bytes, Vec::new())
    }

    /// The bytes of a batch as the disk gets them.
    fn written(mut batch: Batch) -> (Vec<u8>, u32, usize) {
        let (sum, len) = (batch.finish(), batch.len);
        let chunks = batch.into_chunks();
        let all: Vec<u8> = chunks.iter().flat_map(|c| c.iter().copied()).collect();
        (all[..padded(len)].to_vec(), sum, len)
    }

    /// Records of all sizes, in segments of several sizes: what was thought of is what was needed, batches
    /// fill segments to the end, none crosses it, and each holds its records' bytes.
    #[test]
    fn batches_hold_what_was_put_where_it_was_planned() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let segment_bytes = [16u64, 64, 256, 1024][seed as usize % 4] << 10;
            let mut queue = queue(segment_bytes);
            let room = queue.entry_bytes_max();
            let mut offset = FIRST_BATCH + 4096 * rng.gen_range(0..3);
            // Encoded records in front of the next batch to be popped.
            let mut expected: Vec<u8> = Vec::new();
            for round in 0..40 {
                let datas: Vec<Vec<u8>> = (0..rng.gen_range(1..5))
                    .map(|_| {
                        let len = match rng.gen_range(0..8) {
                            0 => rng.gen_range(0..=room),
                            1 => rng.gen_range(3900..4200).min(room),
                            _ => rng.gen_range(0..900),
                        };
                        vec![rng.gen_range(1..255); len]
                    })
                    .collect();
                let records: Vec<Record<'_>> = datas
                    .iter()
                    .map(|data| Record::Entry {
                        index: round,
                        term: 1,
                        kind: 0,
                        data,
                    })
                    .collect();
                queue.starts_at(offset);
                let needs = queue.needs(records.iter().map(|r| r.encoded_bytes()));
                queue.provide(needs.chunks).unwrap();
                let spare = queue.spare.len();
                for record in &records {
                    queue.push(record, &state());
                    let mut bytes = vec![0; record.encoded_bytes()];
                    record.encode(&mut bytes);
                    expected.extend(bytes);
                }
                assert_eq!(queue.rolls, needs.segments, "seed {seed}");
                assert_eq!(spare - queue.spare.len(), needs.chunks, "seed {seed}");
                for _ in 0..rng.gen_range(0..3) {
                    let rolls = queue.next_rolls();
                    let Some(batch) = queue.pop() else { break };
                    let (bytes, sum, len) = written(batch);
                    let next = offset + bytes.len() as u64;
                    let fits = next <= usable(segment_bytes);
                    assert!(fits || rolls, "seed {seed}");
                    if rolls {
                        offset = FIRST_BATCH;
                    }
                    offset += bytes.len() as u64;
                    assert!(offset <= usable(segment_bytes), "seed {seed}");
                    let rest = expected.split_off(len - HEADER_BYTES);
                    assert_eq!(bytes[HEADER_BYTES..len], expected, "seed {seed}");
                    assert_eq!(sum, crc(&expected), "seed {seed}");
                    assert!(bytes[len..].iter().all(|b| *b == 0), "seed {seed}");
                    expected = rest;
                }
            }
        }
    }

    #[test]
    fn a_burst_is_one_batch_and_its_memory_is_given_back() {
        let mut queue = queue(64 << 20);
        let data = vec![7; 64 << 10];
        let record = Record::Entry {
            index: 1,
            term: 1,
            kind: 0,
            data: &data,
        };
        let fitting = (BATCH_BYTES_MAX - HEADER_BYTES) / record.encoded_bytes();
        queue.starts_at(FIRST_BATCH);
        let sizes = std::iter::repeat_n(record.encoded_bytes(), fitting);
        let needs = queue.needs(sizes);
        assert_eq!(needs.chunks, SPARE_MAX);
        queue.provide(needs.chunks).unwrap();
        for _ in 0..fitting {
            queue.push(&record, &state());
        }
        assert_eq!(queue.batches.len(), 1);
        let needs = queue.needs(std::iter::once(record.encoded_bytes()));
        assert_eq!(needs.chunks, 1, "another batch");
        let batch = queue.pop().unwrap();
        queue.reuse(batch.into_chunks());
        assert_eq!(queue.spare.len(), SPARE_MAX);
        queue.reuse(vec![Buffer::new(queue.chunk_bytes).unwrap()]);
        assert_eq!(queue.spare.len(), SPARE_MAX);
        queue.release();
        assert_eq!(queue.spare.len(), CHUNKS_KEPT);
    }
}
