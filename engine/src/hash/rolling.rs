//! The rolling hash: one number that depends on every change ever applied, in order.
//!
//! It is folded from what a command did (key, value, revision, lease), never from how it is
//! stored, so members whose checkpoints and compaction progress differ still agree.

use crate::types::Revision;

/// An odd constant with well spread bits (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

fn fold(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(SPREAD);
    mixed ^ (mixed >> 29)
}

/// After a put (`new`: version, lease, value) or delete (none) of `key` at `rev`.
pub(crate) fn change(hash: u64, rev: Revision, key: &[u8], new: Option<(i64, i64, &[u8])>) -> u64 {
    let bytes = |hash, bytes: &[u8]| {
        let hash = fold(hash, bytes.len() as u64);
        fold(hash, u64::from(crc32c::crc32c(bytes)))
    };
    let mut hash = fold(hash, rev.main as u64);
    hash = fold(hash, rev.sub as u64);
    hash = bytes(hash, key);
    match new {
        None => fold(hash, 0),
        Some((version, lease, value)) => {
            hash = fold(hash, version as u64);
            hash = fold(hash, lease as u64);
            bytes(hash, value)
        }
    }
}

/// After a compaction at `rev`.
pub(crate) fn compaction(hash: u64, rev: i64) -> u64 {
    fold(fold(hash, u64::MAX), rev as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts() {
        let rev = |main, sub| Revision { main, sub };
        let base = change(0, rev(2, 0), b"k", Some((1, 0, b"v")));
        let others = [
            change(1, rev(2, 0), b"k", Some((1, 0, b"v"))),
            change(0, rev(3, 0), b"k", Some((1, 0, b"v"))),
            change(0, rev(2, 1), b"k", Some((1, 0, b"v"))),
            change(0, rev(2, 0), b"l", Some((1, 0, b"v"))),
            change(0, rev(2, 0), b"k", Some((2, 0, b"v"))),
            change(0, rev(2, 0), b"k", Some((1, 9, b"v"))),
            change(0, rev(2, 0), b"k", Some((1, 0, b"w"))),
            change(0, rev(2, 0), b"k", Some((1, 0, b""))),
            change(0, rev(2, 0), b"k", None),
            compaction(0, 2),
        ];
        assert!(others.iter().all(|other| *other != base));
    }
}
