//! Bytes: the segment header, the batch, the records in it. Pure; no I/O.
//!
//! All integers are little-endian. Bytes from disk become one of these types only after magic,
//! checksum and bounds were checked, in that order; what cannot be checked here (does this batch
//! belong to this place in the chain?) is checked by the recovery and the reader.

pub(crate) mod batch;
pub(crate) mod segment;

#[cfg(test)]
mod tests;

/// Everything on disk starts and ends on a multiple of this many bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Rounds up to a whole number of blocks.
pub(crate) fn padded(len: usize) -> usize {
    len.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
