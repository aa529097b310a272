//! What arbitrary bytes must not do: entry points for a fuzzer, and for the mutator in the tests.
//!
//! Each takes bytes as a disk might return them. None may panic, read out of bounds or run away, and
//! what they accept must be what the encoder would have written.

use crate::error::{OpenError, ReadError};
use crate::format::batch::{self, BatchHeader, HEADER_BYTES};
use crate::format::segment::{HEADER_BYTES as SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::{BLOCK_BYTES, crc};
use crate::{Backend, Log, Options};
use simdisk::Disk;

/// A segment header.
pub fn segment_header(bytes: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        let mut again = vec![0; BLOCK_BYTES];
        header.encode(&mut again);
        assert_eq!(SegmentHeader::decode(&again), Ok(header));
    }
}

/// A batch header and what follows it.
pub fn batch(bytes: &[u8]) {
    let Some(header) = BatchHeader::decode(bytes) else {
        return;
    };
    let mut again = vec![0; HEADER_BYTES];
    let sum = header.encode(&mut again);
    let back = BatchHeader::decode(&again).expect("just encoded");
    assert_eq!(back, BatchHeader { crc: sum, ..header });
    let end = HEADER_BYTES + header.len as usize;
    if let Some(payload) = bytes.get(HEADER_BYTES..end) {
        records(payload);
    }
}

/// Records. Those accepted must encode to the very bytes they came from.
pub fn records(bytes: &[u8]) {
    let mut at = 0;
    for record in batch::records(bytes) {
        let Some(record) = record else {
            return;
        };
        let mut again = vec![0; record.encoded_bytes()];
        record.encode(&mut again);
        assert_eq!(again, bytes[at..at + again.len()]);
        at += again.len();
    }
    assert_eq!(at, bytes.len(), "records end where the bytes end");
}

/// A whole directory of segments of 16 KiB. The first byte says whether checksums are put right, so that
/// what lies behind them is reached. A log that opens must give back what it says it holds, take another
/// entry, and open again.
pub fn directory(bytes: &[u8]) {
    let Some((mode, image)) = bytes.split_first() else {
        return;
    };
    const SEGMENT_BYTES: usize = 16 << 10;
    let disk = Disk::new(1);
    for (n, part) in image.chunks(SEGMENT_BYTES).take(4).enumerate() {
        let mut part = part.to_vec();
        if mode & 1 == 1 {
            part.resize(SEGMENT_BYTES, 0);
            put_right(&mut part);
        }
        let name = format!("log/{:016x}.log", n + 1);
        let file = disk.create_new(&name).expect("a new name");
        file.write_all_at(0, &part).expect("the disk is whole");
        file.sync_data().expect("the disk is whole");
    }
    let options = |seed| Options {
        segment_bytes: SEGMENT_BYTES as u64,
        backend: Backend::Sim(disk.clone()),
        identity: [1, 2],
        inline_background: true,
        accept_loss: mode & 2 == 2,
        id_seed: Some(seed),
        ..Options::new("log")
    };
    let Some(last) = open_and_read(options(1 << 40), true) else {
        return;
    };
    let again = open_and_read(options(1 << 41), false);
    assert_eq!(again, Some(last), "what was opened opens again");
}

/// The last index, after one more entry if asked for; `None` if the log refuses.
fn open_and_read(options: Options, append: bool) -> Option<u64> {
    let (mut log, recovered) = match Log::open(options) {
        Ok(opened) => opened,
        Err(OpenError::Refused(_) | OpenError::Format { .. } | OpenError::Identity { .. }) => {
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let (first, last) = (recovered.first_index, recovered.last_index);
    // Not more than the image could hold, whatever its numbers say.
    match log.entries(first, last + 1, 1 << 16) {
        Ok(_) => {}
        Err(ReadError::Trimmed { .. } | ReadError::Unavailable { .. }) => {}
        Err(e) => panic!("{e}"),
    }
    if append {
        let entry = crate::Entry {
            index: last + 1,
            term: log.hard_state().term,
            kind: 0,
            data: bytes::Bytes::from_static(b"one more"),
        };
        if log.append(&[entry], None).is_ok() {
            log.sync();
        }
    }
    Some(log.last_index())
}

/// Gives every header that has its magic the checksum that it asks for, and chains the batches.
fn put_right(segment: &mut [u8]) {
    let put = |block: &mut [u8], end: usize| {
        let sum = crc(&block[..end - 4]);
        block[end - 4..end].copy_from_slice(&sum.to_le_bytes());
        sum
    };
    if segment[..8] == crate::format::segment::MAGIC {
        put(segment, SEGMENT_HEADER_BYTES);
    }
    let mut chain: Option<u32> = None;
    let mut at = BLOCK_BYTES;
    while at + BLOCK_BYTES <= segment.len() {
        let block = &mut segment[at..];
        at += BLOCK_BYTES;
        if block[..4] != batch::MAGIC.to_le_bytes() {
            continue;
        }
        let len = u32::from_le_bytes(block[4..8].try_into().expect("four bytes")) as usize;
        if let Some(payload) = block.get(HEADER_BYTES..HEADER_BYTES.saturating_add(len)) {
            let sum = crc(payload);
            block[48..52].copy_from_slice(&sum.to_le_bytes());
        }
        if let Some(chain) = chain {
            block[44..48].copy_from_slice(&chain.to_le_bytes());
        }
        chain = Some(put(block, HEADER_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HardState;
    use crate::tests::harness::{Harness, entry};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// A small log of several segments, as bytes.
    fn grown() -> Vec<u8> {
        let mut h = Harness::new(Disk::new(1), 16 << 10);
        h.identity = [1, 2];
        h.open().unwrap();
        for i in 1..=7 {
            let hs = HardState {
                term: 1,
                vote: 1,
                commit: i - 1,
            };
            h.append(&[entry(i, 1, 40 * i as usize)], Some(hs));
            h.sync();
            h.log().background_step();
        }
        h.trim(3);
        h.append(&[entry(7, 2, 10)], None);
        h.snapshot_mark(9, 2);
        h.append(&[entry(10, 2, 10)], None);
        h.sync();
        h.log = None;
        let mut bytes = vec![0];
        for name in h.disk.list("log").unwrap() {
            if name.ends_with(".log") {
                bytes.extend(h.disk.contents(&format!("log/{name}")).unwrap());
            }
        }
        bytes
    }

    /// Some of: bits turned, words of interest, stretches copied, the end cut.
    fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
        for _ in 0..rng.gen_range(1..6) {
            if bytes.len() < 32 {
                bytes.resize(32, 0);
            }
            // Mostly where headers are.
            let block = rng.gen_range(0..bytes.len()) / BLOCK_BYTES * BLOCK_BYTES;
            let at = match rng.gen_range(0..4) {
                0 => rng.gen_range(0..bytes.len()),
                _ => (block + rng.gen_range(0..200)).min(bytes.len() - 1),
            };
            match rng.gen_range(0..6) {
                0 | 1 => bytes[at] ^= 1 << rng.gen_range(0..8),
                2 => bytes[at] = rng.r#gen(),
                3 => {
                    let words = [0u64, 1, u64::MAX, 1 << 62, 1 << 31, 4096, 64];
                    let word = words[rng.gen_range(0..words.len())].to_le_bytes();
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].copy_from_slice(&word[..end - at]);
                }
                4 => {
                    let len = [8, 64, 4096][rng.gen_range(0..3)];
                    let from = rng.gen_range(0..bytes.len());
                    let n = len.min(bytes.len() - from).min(bytes.len() - at);
                    bytes.copy_within(from..from + n, at);
                }
                _ if rng.gen_range(0..8) == 0 => bytes.truncate(at),
                _ => {}
            }
        }
    }

    /// Seeds beyond the default that found something once: batch numbers that leave no room for those to come.
    const FOUND: [u64; 2] = [4572, 21020];

    /// What a fuzzer does in hours, for a second: the same targets, mutations from a seed.
    #[test]
    fn mutated_bytes_do_no_harm() {
        let log = grown();
        let rounds = crate::tests::seeds(3000);
        for seed in (0..rounds).chain(FOUND) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = log.clone();
            mutate(&mut bytes, &mut rng);
            bytes[0] = rng.r#gen();
            directory(&bytes);
            let block = rng.gen_range(0..5) * BLOCK_BYTES + 1;
            let part = bytes.get(block..).unwrap_or_default();
            segment_header(part);
            batch(part);
            records(part.get(HEADER_BYTES..).unwrap_or_default());
            let mut fixed = part.to_vec();
            fixed.resize(fixed.len().max(4 * BLOCK_BYTES), 0);
            put_right(&mut fixed);
            segment_header(&fixed);
            batch(&fixed[BLOCK_BYTES..]);
        }
    }

    #[test]
    fn the_log_that_is_mutated_is_sound() {
        for mode in 0..4 {
            let mut bytes = grown();
            bytes[0] = mode;
            directory(&bytes);
            batch(&bytes[1 + BLOCK_BYTES..]);
            segment_header(&bytes[1..]);
        }
        let mut bytes = grown();
        bytes[0] = 0;
        // An empty directory is created anew; this one must not have been.
        let disk = Disk::new(1);
        let file = disk.create_new("log/0000000000000001.log").unwrap();
        file.write_all_at(0, &bytes[1..1 + (16 << 10)]).unwrap();
        let first = SegmentHeader::decode(&bytes[1..]);
        assert!(first.is_ok(), "{first:?}");
    }
}
