//! The record layer's own numbers, as each checkpoint carries them.
//!
//! ```text
//! version u8 = 1 | revision | compact revision | compact done | applied index | applied term
//! | rolling hash | next event number | sweep main | sweep sub      (8 bytes each)
//! | blob length u16 | blob | CRC-32C of all before                 (little endian)
//! ```

use bytes::Bytes;

use crate::types::{Applied, Error, Result, Revision};

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 1 + 9 * 8 + 2;
/// Longest server blob.
pub(crate) const BLOB_BYTES_MAX: usize = 1024;

/// Everything of a state that is not in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub revision: i64,
    pub compact_revision: i64,
    /// Physical compaction has finished up to this revision.
    pub compact_done: i64,
    pub applied: Applied,
    pub rolling: u64,
    pub next_seq: u64,
    /// Events of the oldest chunk before this one are already taken apart.
    pub sweep: Revision,
    pub blob: Bytes,
}

impl Default for Meta {
    /// Of a new store.
    fn default() -> Meta {
        Meta {
            revision: 1,
            compact_revision: -1,
            compact_done: -1,
            applied: Applied::default(),
            rolling: 0,
            next_seq: 0,
            sweep: Revision::default(),
            blob: Bytes::new(),
        }
    }
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + self.blob.len() + 4);
        out.push(VERSION);
        for n in [
            self.revision as u64,
            self.compact_revision as u64,
            self.compact_done as u64,
            self.applied.index,
            self.applied.term,
            self.rolling,
            self.next_seq,
            self.sweep.main as u64,
            self.sweep.sub as u64,
        ] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&(self.blob.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.blob);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Meta> {
        let bad = |why: &str| Error::Corrupt(format!("the state's meta record {why}"));
        let (body, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| bad("is too short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(bad("has a wrong checksum"));
        }
        if body.len() < FIXED_BYTES {
            return Err(bad("is too short"));
        }
        if body[0] != VERSION {
            return Err(bad("is of an unknown version; a newer program wrote it"));
        }
        let word = |i: usize| {
            let at = 1 + i * 8;
            u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"))
        };
        let blob_bytes = u16::from_le_bytes([body[FIXED_BYTES - 2], body[FIXED_BYTES - 1]]);
        let blob = &body[FIXED_BYTES..];
        if blob.len() != usize::from(blob_bytes) || blob.len() > BLOB_BYTES_MAX {
            return Err(bad("has a wrong length"));
        }
        let meta = Meta {
            revision: word(0) as i64,
            compact_revision: word(1) as i64,
            compact_done: word(2) as i64,
            applied: Applied {
                index: word(3),
                term: word(4),
            },
            rolling: word(5),
            next_seq: word(6),
            sweep: Revision {
                main: word(7) as i64,
                sub: word(8) as i64,
            },
            blob: Bytes::copy_from_slice(blob),
        };
        if meta.revision < 1
            || meta.compact_revision < -1
            || meta.compact_revision > meta.revision
            || meta.compact_done > meta.compact_revision
        {
            return Err(bad("contradicts itself"));
        }
        Ok(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Meta {
        Meta {
            revision: 238,
            compact_revision: 100,
            compact_done: 99,
            applied: Applied { index: 7, term: 2 },
            rolling: 0x0123_4567_89ab_cdef,
            next_seq: 300,
            sweep: Revision { main: 12, sub: 3 },
            blob: Bytes::from_static(b"conf"),
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1..9], 238u64.to_le_bytes());
        assert_eq!(bytes[9..17], 100u64.to_le_bytes());
        assert_eq!(bytes[73..75], [4, 0]);
        assert_eq!(&bytes[75..79], b"conf");
        assert_eq!(bytes.len(), 83);
        assert_eq!(Meta::decode(&bytes).expect("own bytes"), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let good = sample().encode();
        for cut in 0..good.len() {
            assert!(Meta::decode(&good[..cut]).is_err());
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&bad).is_err());
        }
    }
}
