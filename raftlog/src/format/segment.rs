//! Block 0 of a segment file.

use super::{BLOCK_BYTES, crc, put_u32, put_u64, u32_at, u64_at};
use crate::state::State;
use crate::types::HardState;

pub const MAGIC: [u8; 8] = *b"QRTLOG\r\n";
pub const FORMAT: u32 = 1;
/// Flushes that may be in flight at once; recovery relies on it.
pub const DEPTH: u32 = 1;
/// Bytes of the header that carry meaning; the rest of the block is zero.
pub const HEADER_BYTES: usize = 164;
/// Where batches start.
pub const FIRST_BATCH: u64 = BLOCK_BYTES as u64;

/// Where a predecessor ends, as its successor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrevEnd {
    /// The predecessor's sequence number, 0 if there never was one.
    pub seq: u64,
    /// Byte offset behind its last live batch.
    pub offset: u64,
    /// Header checksum of its last live batch.
    pub chain: u32,
}

/// A segment's header, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Position in the log, also the file's name.
    pub seq: u64,
    /// Random per incarnation; every batch repeats it.
    pub seg_id: u64,
    pub identity: [u64; 2],
    pub segment_bytes: u64,
    pub prev_end: PrevEnd,
    /// The batch sequence number that the first batch carries.
    pub next_batch_seq: u64,
    /// The log's state before the first batch, so that older segments can go.
    pub state: State,
}

/// Why a block is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    Magic,
    Checksum,
    Format(u32),
    Depth(u32),
    /// Checksum good, contents impossible.
    Nonsense,
}

impl SegmentHeader {
    /// Fills `block` (one whole block).
    pub fn encode(&self, block: &mut [u8]) {
        block[..BLOCK_BYTES].fill(0);
        block[..8].copy_from_slice(&MAGIC);
        put_u32(block, 8, FORMAT);
        put_u32(block, 12, DEPTH);
        put_u64(block, 16, self.seq);
        put_u64(block, 24, self.seg_id);
        put_u64(block, 32, self.identity[0]);
        put_u64(block, 40, self.identity[1]);
        put_u64(block, 48, self.segment_bytes);
        put_u64(block, 56, self.prev_end.seq);
        put_u64(block, 64, self.prev_end.offset);
        put_u32(block, 72, self.prev_end.chain);
        put_u64(block, 80, self.next_batch_seq);
        put_u64(block, 88, self.state.first_index);
        put_u64(block, 96, self.state.last_index);
        put_u64(block, 104, self.state.last_term);
        put_u64(block, 112, self.state.hard_state.term);
        put_u64(block, 120, self.state.hard_state.vote);
        put_u64(block, 128, self.state.hard_state.commit);
        put_u64(block, 136, self.state.snapshot.map_or(0, |s| s.0));
        put_u64(block, 144, self.state.snapshot.map_or(0, |s| s.1));
        put_u64(block, 152, u64::from(self.state.snapshot.is_some()));
        let sum = crc(&block[..HEADER_BYTES - 4]);
        put_u32(block, HEADER_BYTES - 4, sum);
    }

    /// Reads a header from one whole block.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        if block.len() < BLOCK_BYTES || block[..8] != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if crc(&block[..HEADER_BYTES - 4]) != u32_at(block, HEADER_BYTES - 4) {
            return Err(HeaderFault::Checksum);
        }
        if u32_at(block, 8) != FORMAT {
            return Err(HeaderFault::Format(u32_at(block, 8)));
        }
        if u32_at(block, 12) != DEPTH {
            return Err(HeaderFault::Depth(u32_at(block, 12)));
        }
        let header = SegmentHeader {
            seq: u64_at(block, 16),
            seg_id: u64_at(block, 24),
            identity: [u64_at(block, 32), u64_at(block, 40)],
            segment_bytes: u64_at(block, 48),
            prev_end: PrevEnd {
                seq: u64_at(block, 56),
                offset: u64_at(block, 64),
                chain: u32_at(block, 72),
            },
            next_batch_seq: u64_at(block, 80),
            state: State {
                first_index: u64_at(block, 88),
                last_index: u64_at(block, 96),
                last_term: u64_at(block, 104),
                hard_state: HardState {
                    term: u64_at(block, 112),
                    vote: u64_at(block, 120),
                    commit: u64_at(block, 128),
                },
                snapshot: match u64_at(block, 152) {
                    0 => None,
                    _ => Some((u64_at(block, 136), u64_at(block, 144))),
                },
            },
        };
        header
            .check()
            .then_some(header)
            .ok_or(HeaderFault::Nonsense)
    }

    fn check(&self) -> bool {
        let block = BLOCK_BYTES as u64;
        let end = &self.prev_end;
        let end_ok = match end.seq {
            0 => end.offset == 0,
            _ => end.offset >= FIRST_BATCH && end.offset.is_multiple_of(block),
        };
        // Sequence numbers are far below 2^63; this keeps the arithmetic on them from wrapping.
        let small = |n: u64| n < 1 << 62;
        end_ok
            && self.seq > end.seq
            && self.next_batch_seq >= 1
            && small(self.seq)
            && small(self.next_batch_seq)
            && small(self.state.last_index)
            && self.state.first_index >= 1
            && self.state.first_index <= self.state.last_index + 1
            && self.state.hard_state.commit <= self.state.last_index
    }
}

/// The file name of a segment.
pub(crate) fn log_name(seq: u64) -> String {
    format!("{seq:016x}.log")
}

/// The sequence number in a segment's file name.
pub(crate) fn parse_log_name(name: &str) -> Option<u64> {
    parse(name, "", ".log")
}

/// The file name of a segment that waits to be used.
pub(crate) fn free_name(number: u64) -> String {
    format!("free-{number:016x}.seg")
}

/// The number in a waiting segment's file name.
pub(crate) fn parse_free_name(name: &str) -> Option<u64> {
    parse(name, "free-", ".seg")
}

fn parse(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    let canonical = digits.len() == 16
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    canonical.then(|| u64::from_str_radix(digits, 16).ok())?
}
