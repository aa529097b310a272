//! What arbitrary bytes must not do: entry points for a fuzzer, and for the mutator in the tests.
//!
//! Each takes bytes as a disk might return them. None may panic, read out of bounds or run away, whatever it accepts.
//! Checksums are put right first, so that what lies behind them is reached.

pub use crate::store::fuzz::{file, map_page, meta_page, page, run};

use crate::events::chunk::ChunkView;
use crate::events::log::ChunkEntry;
use crate::mvcc::Meta;
use crate::record::{Anchors, decode_record};
use crate::types::Revision;

/// A sealed chunk of events: all of them, and looking some up.
pub fn chunk(bytes: &[u8]) {
    let Ok(chunk) = ChunkView::sealed(bytes) else {
        return;
    };
    for i in 0..chunk.len() {
        if let Ok(event) = chunk.event(i) {
            let _ = (event.kind(), event.links.jump(event.rev, 1));
        }
        let _ = chunk.lower_bound(chunk.rev(i));
    }
}

/// A version of a key, as K holds it. The first byte is the entry's flags.
pub fn record(bytes: &[u8]) {
    let Some((flags, bytes)) = bytes.split_first() else {
        return;
    };
    if let Ok(record) = decode_record(*flags, bytes) {
        let _ = record.links.jump(record.rev, 1);
        let next = Revision {
            main: record.rev.main + 1,
            sub: 0,
        };
        let _ = Anchors::after(&record, next);
    }
}

/// An entry of the index of chunks: twelve bytes of key, then the value.
pub fn chunk_entry(bytes: &[u8]) {
    let (key, value) = bytes.split_at(bytes.len().min(12));
    let _ = ChunkEntry::decode(key, value);
}

/// The record layer's numbers, as each checkpoint carries them.
pub fn state(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c(body).to_le_bytes();
    }
    if let Ok(meta) = Meta::decode(&bytes) {
        assert_eq!(meta.encode(), bytes, "what is accepted was written so");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::mvcc::Engine;
    use crate::source::RunRef;
    use crate::types::{Applied, KeyRange, Options};

    /// A small file with everything in it: several levels, long keys, values and events in runs.
    fn grown() -> Vec<u8> {
        grown_by(60)
    }

    fn grown_by(changes: u32) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path());
        options.page_bytes = 512;
        options.chunk_bytes = 600;
        options.extend_bytes = 4096;
        options.reserve_bytes = 4096;
        let (engine, mut writer) = Engine::open(options).expect("opens");
        for i in 0..changes {
            let mut txn = writer.txn();
            let mut key = format!("key{}", i % 23).into_bytes();
            if i % 9 == 0 {
                key.extend([b'l'; 300]);
            }
            let value = vec![i as u8; if i % 7 == 0 { 900 } else { 20 }];
            txn.put(key.into(), value.into(), i64::from(i % 3))
                .expect("puts");
            if i % 11 == 0 {
                let range = KeyRange::One(Bytes::from_static(b"key5"));
                txn.delete_range(&range, false).expect("deletes");
            }
            txn.finish();
            if i % 30 == 29 {
                writer.sys_put(1, b"name", &[i as u8; 400]).expect("puts");
                writer.publish(
                    Applied {
                        index: u64::from(i),
                        term: 1,
                    },
                    b"blob",
                );
                let number = writer.checkpoint().expect("starts").expect("none runs");
                engine.wait_durable(number).expect("durable");
                while writer.store.checkpoint_running() {
                    std::thread::yield_now();
                }
            }
        }
        drop((engine, writer));
        std::fs::read(dir.path().join("tree.qdb")).expect("is there")
    }

    /// Some of: bits turned, words of interest, stretches copied.
    fn mutate(bytes: &mut [u8], from: usize, rng: &mut StdRng) {
        let words = [
            0u64,
            1,
            u64::MAX,
            1 << 47,
            1 << 31,
            0xffff,
            0x8000,
            511,
            512,
        ];
        for _ in 0..rng.gen_range(1..5) {
            if bytes.len() < from + 9 {
                return;
            }
            let at = rng.gen_range(from..bytes.len() - 8);
            match rng.gen_range(0..5) {
                0 | 1 => bytes[at] ^= 1 << rng.gen_range(0..8),
                2 => bytes[at] = rng.r#gen(),
                3 => {
                    let width = [1, 2, 4, 8][rng.gen_range(0..4)];
                    let word = words[rng.gen_range(0..words.len())].to_le_bytes();
                    bytes[at..at + width].copy_from_slice(&word[..width]);
                }
                _ => {
                    let n = rng.gen_range(1..64).min(bytes.len() - at);
                    let from = rng.gen_range(from..=bytes.len() - n);
                    bytes.copy_within(from..from + n, at);
                }
            }
        }
    }

    /// What the targets take apart in a file: pages, map pages, runs, chunks.
    struct Pieces<'a> {
        units: Vec<&'a [u8]>,
        pages: Vec<&'a [u8]>,
        maps: Vec<&'a [u8]>,
        runs: Vec<Vec<u8>>,
    }

    fn pieces(file: &[u8]) -> Pieces<'_> {
        let units: Vec<&[u8]> = file[131_072..].chunks_exact(512).collect();
        let of = |kinds: std::ops::RangeInclusive<u8>| {
            let of_kind = units.iter().filter(move |u| kinds.contains(&u[4]));
            of_kind.copied().collect::<Vec<_>>()
        };
        let whole_run = |at: usize| {
            let n = u32::from_le_bytes(units[at][36..40].try_into().expect("four")) as usize;
            Some(units.get(at..at + n)?.concat())
        };
        Pieces {
            pages: of(1..=2),
            maps: of(3..=4),
            runs: (0..units.len())
                .filter(|at| units[*at][4] == 5)
                .filter_map(whole_run)
                .collect(),
            units,
        }
    }

    /// The chunk in a run, if there is one: it begins with its magic, behind the owner's key.
    fn chunk_in(run: &[u8]) -> Option<&[u8]> {
        run.windows(4)
            .position(|w| w == b"QEV1")
            .map(|at| &run[at..])
    }

    /// Where a meta page has the record layer's numbers.
    const STATE: std::ops::Range<usize> = 256..256 + 75 + 4 + 4;

    fn a_record() -> Vec<u8> {
        [&[1u8, 0xac, 2, 2, 4, 1, 1, 2, 3, 1, b'v'][..], &[0; 24]].concat()
    }

    fn a_chunk_entry() -> Vec<u8> {
        [
            &[0u8; 12][..],
            &RunRef::from_bytes(&[1; 24]).to_bytes(),
            &[0; 32],
        ]
        .concat()
    }

    /// Writes what a fuzzer begins with into `QUORATE_CORPUS`, a directory per target: real files of several sizes, and
    /// what they are made of.
    #[test]
    fn corpora_are_made_of_sound_files() {
        let dir = std::env::var_os("QUORATE_CORPUS").map(std::path::PathBuf::from);
        let keep = |target: &str, name: String, bytes: &[u8]| {
            let Some(dir) = &dir else { return };
            std::fs::create_dir_all(dir.join(target)).expect("a directory");
            std::fs::write(dir.join(target).join(name), bytes).expect("writes");
        };
        for changes in [0, 30, 60, 150, 600] {
            let good = grown_by(changes);
            assert_eq!(file(&good), Ok(()));
            keep("file", format!("{changes}"), &good);
            let pieces = pieces(&good);
            // What a run holds may look like the beginning of another page.
            let mut sound = 0;
            for (i, bytes) in pieces.pages.iter().enumerate() {
                let bytes = [&[0], *bytes].concat();
                sound += usize::from(page(&bytes));
                keep("page", format!("{changes}-{i}"), &bytes);
            }
            assert!(sound * 2 >= pieces.pages.len());
            sound = 0;
            for (i, bytes) in pieces.maps.iter().enumerate() {
                keep("map_page", format!("{changes}-{i}"), bytes);
            }
            for (i, bytes) in pieces.runs.iter().enumerate() {
                sound += usize::from(run(bytes));
                keep("run", format!("{changes}-{i}"), bytes);
                if let Some(bytes) = chunk_in(bytes) {
                    keep("chunk", format!("{changes}-{i}"), bytes);
                }
            }
            assert!(sound * 2 >= pieces.runs.len());
            for (slot, at) in [0, 65_536].into_iter().enumerate() {
                keep(
                    "meta_page",
                    format!("{changes}-{slot}"),
                    &good[at..at + 4096],
                );
                keep("state", format!("{changes}-{slot}"), &good[at..][STATE]);
            }
        }
        keep("record", "one".into(), &a_record());
        keep("chunk_entry", "one".into(), &a_chunk_entry());
    }

    /// What a fuzzer does in hours, for some seconds: the same targets, mutations from a seed.
    #[test]
    fn mutated_bytes_do_no_harm() {
        let good = grown();
        let Pieces {
            units,
            pages,
            maps,
            runs,
        } = pieces(&good);
        assert!(pages.len() > 10 && runs.len() > 10 && !maps.is_empty());
        let rounds = std::env::var("QUORATE_ROUNDS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(20_000);
        let (mut sound, mut used) = (0u64, 0u64);
        for seed in 0..rounds {
            let mut rng = StdRng::seed_from_u64(seed);
            // One in sixteen as it is: the targets must reach what lies behind the checks.
            let change = !seed.is_multiple_of(16);
            let mut picked = |of: &[u8], from: usize| {
                let mut bytes = of.to_vec();
                if change {
                    mutate(&mut bytes, from, &mut rng);
                }
                bytes
            };
            let i = seed as usize;
            used += u64::from(page(
                &[&[0], &picked(pages[i % pages.len()], 4)[..]].concat(),
            ));
            map_page(&picked(maps[i % maps.len()], 4));
            let image = &runs[i % runs.len()];
            let whole = run(&picked(image, 4));
            sound += u64::from(whole);
            if let Some(image) = chunk_in(image) {
                chunk(&picked(image, 0));
            }
            meta_page(&picked(&good[..4096], 12));
            meta_page(&picked(&good[65536..69632], 12));
            state(&picked(&good[STATE], 0));
            record(&picked(&a_record(), 0));
            chunk_entry(&picked(&a_chunk_entry(), 0));
            if seed.is_multiple_of(40) {
                let mut bytes = good.clone();
                for _ in 0..4 {
                    let at = 131_072 + rng.gen_range(0..units.len()) * 512;
                    mutate(&mut bytes[at..at + 512], 24, &mut rng);
                }
                let _ = file(&bytes);
            }
        }
        assert!(used > rounds / 20 && used < rounds, "{used} pages accepted");
        assert!(
            sound > rounds / 20 && sound < rounds,
            "{sound} runs accepted"
        );
    }

    /// The file that is mutated is sound, and read whole.
    #[test]
    fn the_file_that_is_mutated_is_sound() {
        assert_eq!(file(&grown()), Ok(()));
    }

    /// Negative control: the harness notices a panic behind the checks.
    #[test]
    fn a_view_that_believes_a_page_unchecked_would_be_noticed() {
        let noticed = std::panic::catch_unwind(|| {
            let mut page = grown()[131_072..][..512].to_vec();
            page[4] = 1;
            page[24..26].copy_from_slice(&u16::MAX.to_le_bytes());
            crate::store::fuzz::use_unchecked(&page);
        });
        assert!(noticed.is_err());
    }

    #[test]
    fn nothing_at_all_is_no_harm_either() {
        for bytes in [&[][..], &[0], &[1; 11], &[0xff; 40]] {
            page(bytes);
            map_page(bytes);
            run(bytes);
            chunk(bytes);
            meta_page(bytes);
            state(bytes);
            record(bytes);
            chunk_entry(bytes);
            let _ = file(bytes);
        }
    }
}
