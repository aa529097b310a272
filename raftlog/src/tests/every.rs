//! Every damage to a log that real files held: every bit, every cut, every sector zeroed, filled or as
//! it was at an earlier moment.
//!
//! The log is written by the real backend, with segments of 64 KiB: rolled, trimmed, recycled and
//! reopened, so that it holds stale batches, a roll record, a recovered segment and zeros. Its files then
//! go to a simulated disk, where each damage is made, judged and taken back.
//!
//! Allowed are the same records, a refusal, or, for a log whose last batch has no witness, the loss of
//! that one batch. `QUORATE_EVERY=1` takes every bit and every byte's cut (a quarter of an hour); otherwise all
//! bits of what may be a header and a part of the others, and cuts around sectors.

use super::harness::entry;
use crate::disk::Dir;
use crate::disk::sim::SimDir;
use crate::error::OpenError;
use crate::format::batch::{self, BatchHeader};
use crate::format::segment::parse_log_name;
use crate::reader::{Published, Reader};
use crate::recovery::scan::{Context, LiveSegment, recover};
use crate::{Backend, Entry, HardState, Log, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, SECTOR};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SEGMENT_BYTES: u64 = 64 << 10;

/// File names and contents.
type Files = BTreeMap<String, Vec<u8>>;

struct Built {
    now: Files,
    /// The same directory at earlier moments: what a lost write leaves.
    before: Vec<Files>,
    entries: Vec<Entry>,
    /// The lowest entry that must be there.
    first: u64,
    sealed: bool,
}

fn files(dir: &Path) -> Files {
    let mut found = Files::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if parse_log_name(&name).is_some() {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

fn build(sealed: bool) -> Built {
    let temp = tempfile::tempdir().unwrap();
    let options = |seed| Options {
        segment_bytes: SEGMENT_BYTES,
        backend: Backend::Sync,
        identity: [1, 2],
        inline_background: true,
        id_seed: Some(seed),
        ..Options::new(temp.path())
    };
    let mut entries = Vec::new();
    let mut before = Vec::new();
    let mut rng = StdRng::seed_from_u64(1);
    let say = |log: &mut Log, entries: &mut Vec<Entry>, len: usize| {
        let index = entries.len() as u64 + 1;
        let e = entry(index, 1, len);
        let hs = HardState {
            term: 1,
            vote: 1,
            commit: index - 1,
        };
        log.append(std::slice::from_ref(&e), Some(hs)).unwrap();
        log.sync();
        log.background_step();
        entries.push(e);
    };
    let (mut log, _) = Log::open(options(1)).unwrap();
    for _ in 0..20 {
        say(&mut log, &mut entries, rng.gen_range(10..7000));
    }
    let first = log.last_index() - 1;
    log.trim(first);
    while log.background_step() {}
    before.push(files(temp.path()));
    // Into the recycled segment, whose old batches stand behind the new ones.
    for len in [100, 5000, 4032 - 88, 12_000, 1] {
        say(&mut log, &mut entries, len);
    }
    before.push(files(temp.path()));
    drop(log);
    let (mut log, _) = Log::open(options(2)).unwrap();
    for len in [300, 6000] {
        say(&mut log, &mut entries, len);
    }
    before.push(files(temp.path()));
    for len in [9000, 2000] {
        say(&mut log, &mut entries, len);
    }
    if sealed {
        log.idle();
        log.wait();
    }
    let kept = log.first_index();
    drop(log);
    Built {
        now: files(temp.path()),
        before,
        entries,
        first: kept,
        sealed,
    }
}

impl Built {
    /// The files on a simulated disk, everything durable.
    fn disk(&self) -> Disk {
        let disk = Disk::new(1);
        for (name, bytes) in &self.now {
            let file = disk.create_new(&format!("log/{name}")).unwrap();
            file.write_all_at(0, bytes).unwrap();
            file.sync_data().unwrap();
        }
        disk.sync_dir("log").unwrap();
        disk
    }

    /// Judges what is on the disk now; how many entries are missing, or the refusal.
    fn judge(&self, disk: &Disk, what: &dyn Fn() -> String) -> Result<usize, String> {
        let dir: Arc<dyn Dir> = Arc::new(SimDir {
            disk: disk.clone(),
            dir: "log".into(),
            skip_sync: false,
        });
        let seqs: Vec<u64> = self.now.keys().filter_map(|n| parse_log_name(n)).collect();
        let context = Context {
            dir: &*dir,
            identity: Some([1, 2]),
            committed: None,
            accept_loss: false,
            trust_unsynced: false,
        };
        let recovery = match recover(&context, &seqs) {
            Ok(recovery) => recovery,
            Err(OpenError::Refused(refusal)) => {
                let line = refusal.to_string();
                assert!(line.contains(".log at byte"), "{}: {line}", what());
                assert!(line.contains("Ways out"), "{}: {line}", what());
                return Err(line);
            }
            Err(e) => panic!("{}: {e}", what()),
        };
        let state = recovery.state;
        assert!(state.first_index <= self.first, "{}: {state:?}", what());
        let sources = recovery.segments.iter().map(LiveSegment::source);
        let published =
            Published::new(recovery.index, sources, state.first_index, state.last_index);
        let read = Reader::new("log".into(), Arc::new(published))
            .entries(state.first_index, state.last_index + 1, usize::MAX)
            .unwrap_or_else(|e| panic!("{}: {e}", what()));
        let (first, last) = (state.first_index as usize - 1, state.last_index as usize);
        assert_eq!(read, self.entries[first..last], "{}", what());
        let commit = state.last_index - 1;
        let hs = HardState {
            term: 1,
            vote: 1,
            commit,
        };
        assert_eq!(state.hard_state, hs, "{}", what());
        let missing = self.entries.len() - last;
        assert!(
            missing == 0 || (missing == 1 && !self.sealed),
            "{}: {missing} acknowledged entries were cut silently",
            what()
        );
        Ok(missing)
    }
}

/// What came of many damages.
#[derive(Default, Debug)]
struct Tally {
    same: AtomicUsize,
    torn: AtomicUsize,
    refused: AtomicUsize,
}

impl Tally {
    fn count(&self, outcome: &Result<usize, String>) {
        let which = match outcome {
            Ok(0) => &self.same,
            Ok(_) => &self.torn,
            Err(_) => &self.refused,
        };
        which.fetch_add(1, Ordering::Relaxed);
    }
}

fn exhaustive() -> bool {
    std::env::var_os("QUORATE_EVERY").is_some()
}

/// A part of a file of the log.
struct Part<'a> {
    path: String,
    /// The whole file.
    bytes: &'a [u8],
    /// The bytes that are to be damaged.
    range: Range<usize>,
}

/// Runs `work` for all parts of all files, on all processors, each thread with its own disk.
fn each_part(built: &Built, work: impl Fn(&Disk, &Part<'_>) + Sync) {
    let mut parts = Vec::new();
    for (name, bytes) in &built.now {
        parts.extend((0..bytes.len()).step_by(4096).map(|start| Part {
            path: format!("log/{name}"),
            bytes,
            range: start..bytes.len().min(start + 4096),
        }));
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let disk = built.disk();
                while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(&disk, part);
                }
            });
        }
    });
}

/// Which bytes may belong to a header: the first of each block, and of each batch.
fn is_head(bytes: &[u8], at: usize) -> bool {
    let within = at % 4096;
    let block = at - within;
    match block {
        0 => within < 164,
        _ if BatchHeader::decode(&bytes[block..]).is_some() => within < batch::HEADER_BYTES + 8,
        _ => within == 0,
    }
}

#[test]
fn every_bit() {
    for sealed in [false, true] {
        let built = build(sealed);
        assert!(built.now.len() >= 3, "{:?}", built.now.keys());
        let tally = Tally::default();
        each_part(&built, |disk, Part { path, bytes, range }| {
            for at in range.clone() {
                let bits = match (exhaustive(), is_head(bytes, at)) {
                    (true, _) => 0..8,
                    // Both tests together take every bit.
                    (_, true) if sealed => 0..4,
                    (_, true) => 4..8,
                    _ if (at + at / 4096) % 61 == 0 => {
                        let bit = (at % 8) as u8;
                        bit..bit + 1
                    }
                    _ => continue,
                };
                for bit in bits {
                    disk.poke(path, at as u64, &[bytes[at] ^ (1 << bit)])
                        .unwrap();
                    let what = || format!("sealed {sealed}, {path} byte {at} bit {bit}");
                    tally.count(&built.judge(disk, &what));
                }
                disk.poke(path, at as u64, &bytes[at..at + 1]).unwrap();
            }
        });
        println!("sealed {sealed}: {tally:?}");
        assert!(tally.refused.into_inner() > 1000);
        assert_eq!(tally.torn.into_inner() == 0, sealed);
    }
}

#[test]
fn every_sector_zeroed_filled_or_of_an_earlier_time() {
    for sealed in [false, true] {
        let built = build(sealed);
        let tally = Tally::default();
        each_part(&built, |disk, Part { path, bytes, range }| {
            let name = path.strip_prefix("log/").unwrap();
            for at in range.clone().step_by(SECTOR) {
                let sector = at / SECTOR;
                let mut news: Vec<Vec<u8>> = vec![vec![0; SECTOR], vec![0xff; SECTOR]];
                for earlier in &built.before {
                    // The file itself as it was, and every other one: it may have been recycled.
                    let own = earlier.get(name).into_iter();
                    let others = earlier.values();
                    let stale = own.chain(others).filter_map(|f| f.get(at..at + SECTOR));
                    news.extend(stale.map(<[u8]>::to_vec));
                }
                // A misdirected write of this file.
                let other = (sector * 7 + 5) % (bytes.len() / SECTOR) * SECTOR;
                news.push(bytes[other..other + SECTOR].to_vec());
                news.sort();
                news.dedup();
                for (n, new) in news.into_iter().enumerate() {
                    disk.poke(path, at as u64, &new).unwrap();
                    let what = || format!("sealed {sealed}, {path} sector {sector} case {n}");
                    tally.count(&built.judge(disk, &what));
                }
                disk.poke(path, at as u64, &bytes[at..at + SECTOR]).unwrap();
            }
        });
        println!("sealed {sealed}: {tally:?}");
        assert!(tally.refused.into_inner() > 100);
        assert_eq!(tally.torn.into_inner() == 0, sealed);
    }
}

#[test]
fn every_truncation() {
    for sealed in [false, true] {
        let built = build(sealed);
        let tally = Tally::default();
        each_part(&built, |disk, Part { path, range, .. }| {
            // Only a successor's word may excuse a short file.
            for cut in range.clone() {
                if !exhaustive() && ![0, 1, SECTOR - 1].contains(&(cut % SECTOR)) {
                    continue;
                }
                let fork = disk.fork();
                fork.open(path).unwrap().set_len(cut as u64).unwrap();
                let what = || format!("sealed {sealed}, {path} cut at {cut}");
                let outcome = built.judge(&fork, &what);
                assert!(!matches!(outcome, Ok(1..)), "{}: {outcome:?}", what());
                tally.count(&outcome);
            }
        });
        println!("sealed {sealed}: {tally:?}");
        assert!(tally.refused.into_inner() > 100);
    }
}
