//! A batch: what one durable write carries.

use super::{crc, padded, put_u32, put_u64, u32_at, u64_at};
use crate::types::HardState;

pub const MAGIC: u32 = u32::from_le_bytes(*b"QLB1");
pub const HEADER_BYTES: usize = 64;
/// Bytes in front of an entry's data.
pub const ENTRY_BYTES: usize = 24;
/// The longest record but for data.
const HEAD_BYTES_MAX: usize = 32;

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const SNAPSHOT: u8 = 3;
const TRIM: u8 = 4;
const ROLL: u8 = 5;

/// A batch's header, its checksum checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub seg_id: u64,
    pub batch_seq: u64,
    /// The highest batch known durable when this one was handed to the disk.
    pub durable_seq: u64,
    /// The index of the first entry inside, 0 if there is none. For messages.
    pub first_index: u64,
    /// Bytes of records behind the header.
    pub len: u32,
    pub records: u32,
    /// Header checksum of the batch before.
    pub chain: u32,
    pub payload_crc: u32,
    /// This header's own checksum: the next batch's `chain`.
    pub crc: u32,
}

impl BatchHeader {
    /// Bytes on disk, padding included.
    pub fn disk_bytes(&self) -> u64 {
        padded(HEADER_BYTES + self.len as usize) as u64
    }

    /// Writes the header in front of its records and returns its checksum.
    pub fn encode(&self, buf: &mut [u8]) -> u32 {
        put_u32(buf, 0, MAGIC);
        put_u32(buf, 4, self.len);
        put_u64(buf, 8, self.seg_id);
        put_u64(buf, 16, self.batch_seq);
        put_u64(buf, 24, self.durable_seq);
        put_u64(buf, 32, self.first_index);
        put_u32(buf, 40, self.records);
        put_u32(buf, 44, self.chain);
        put_u32(buf, 48, self.payload_crc);
        put_u64(buf, 52, 0);
        let sum = crc(&buf[..HEADER_BYTES - 4]);
        put_u32(buf, HEADER_BYTES - 4, sum);
        sum
    }

    /// Reads a header whose checksum is good. Whether its batch belongs here is for the caller.
    pub fn decode(buf: &[u8]) -> Option<BatchHeader> {
        if buf.len() < HEADER_BYTES || u32_at(buf, 0) != MAGIC {
            return None;
        }
        let sum = u32_at(buf, HEADER_BYTES - 4);
        if crc(&buf[..HEADER_BYTES - 4]) != sum {
            return None;
        }
        Some(BatchHeader {
            len: u32_at(buf, 4),
            seg_id: u64_at(buf, 8),
            batch_seq: u64_at(buf, 16),
            durable_seq: u64_at(buf, 24),
            first_index: u64_at(buf, 32),
            records: u32_at(buf, 40),
            chain: u32_at(buf, 44),
            payload_crc: u32_at(buf, 48),
            crc: sum,
        })
    }
}

/// One record of a batch, borrowing its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    Entry {
        index: u64,
        term: u64,
        kind: u8,
        data: &'a [u8],
    },
    HardState(HardState),
    /// Everything before is covered by a snapshot; the log goes on after it.
    Snapshot {
        index: u64,
        term: u64,
    },
    /// Entries below are not needed any more.
    Trim {
        keep_from: u64,
    },
    /// The next segment, whose header is durable by now.
    Roll {
        seq: u64,
        seg_id: u64,
    },
}

impl Record<'_> {
    /// Bytes of the whole record.
    pub(crate) fn encoded_bytes(&self) -> usize {
        match self {
            Record::Entry { data, .. } => ENTRY_BYTES + data.len(),
            Record::HardState(_) => 32,
            Record::Snapshot { .. } | Record::Roll { .. } => 24,
            Record::Trim { .. } => 16,
        }
    }

    /// What stands in front of [`Record::data`], and its length. Every record: type u8, kind u8, zero
    /// u16, length u32 of what follows these eight bytes.
    pub(crate) fn head(&self) -> ([u8; HEAD_BYTES_MAX], usize) {
        let (tag, kind) = match self {
            Record::Entry { kind, .. } => (ENTRY, *kind),
            Record::HardState(_) => (HARD_STATE, 0),
            Record::Snapshot { .. } => (SNAPSHOT, 0),
            Record::Trim { .. } => (TRIM, 0),
            Record::Roll { .. } => (ROLL, 0),
        };
        let mut out = [0; HEAD_BYTES_MAX];
        let len = self.encoded_bytes();
        out[0] = tag;
        out[1] = kind;
        put_u32(&mut out, 4, (len - 8) as u32);
        match self {
            Record::Entry { index, term, .. } => {
                put_u64(&mut out, 8, *index);
                put_u64(&mut out, 16, *term);
            }
            Record::HardState(hs) => {
                put_u64(&mut out, 8, hs.term);
                put_u64(&mut out, 16, hs.vote);
                put_u64(&mut out, 24, hs.commit);
            }
            Record::Snapshot { index, term } => {
                put_u64(&mut out, 8, *index);
                put_u64(&mut out, 16, *term);
            }
            Record::Trim { keep_from } => put_u64(&mut out, 8, *keep_from),
            Record::Roll { seq, seg_id } => {
                put_u64(&mut out, 8, *seq);
                put_u64(&mut out, 16, *seg_id);
            }
        }
        (out, len - self.data().len())
    }

    /// An entry's data; empty for the others.
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Record::Entry { data, .. } => data,
            _ => &[],
        }
    }

    /// Writes the record at the start of `out`.
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let (head, len) = self.head();
        let data = self.data();
        out[..len].copy_from_slice(&head[..len]);
        out[len..len + data.len()].copy_from_slice(data);
    }
}

/// The records of a payload, in order. Yields `None` once at the first byte that makes no sense;
/// with a good payload checksum that is a defect of the writer.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
    failed: bool,
}

pub(crate) fn records(payload: &[u8]) -> Records<'_> {
    Records {
        rest: payload,
        failed: false,
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Option<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.failed {
            return None;
        }
        let record = self.take();
        self.failed = record.is_none();
        Some(record)
    }
}

impl<'a> Records<'a> {
    fn take(&mut self) -> Option<Record<'a>> {
        let head = self.rest.get(..8)?;
        let (tag, kind, zero) = (head[0], head[1], u32_at(head, 0) >> 16);
        let len = u32_at(head, 4) as usize;
        let body = self.rest.get(8..8usize.checked_add(len)?)?;
        self.rest = &self.rest[8 + len..];
        let word = |n: usize| u64_at(body, n * 8);
        if zero != 0 || (tag != ENTRY && kind != 0) {
            return None;
        }
        Some(match (tag, len) {
            (ENTRY, 16..) => Record::Entry {
                index: word(0),
                term: word(1),
                kind,
                data: &body[16..],
            },
            (HARD_STATE, 24) => Record::HardState(HardState {
                term: word(0),
                vote: word(1),
                commit: word(2),
            }),
            (SNAPSHOT, 16) => Record::Snapshot {
                index: word(0),
                term: word(1),
            },
            (TRIM, 8) => Record::Trim { keep_from: word(0) },
            (ROLL, 16) => Record::Roll {
                seq: word(0),
                seg_id: word(1),
            },
            _ => return None,
        })
    }
}
