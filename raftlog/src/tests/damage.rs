//! Damage at rest, by the rows of the table: each is met by a log, with the cause that it names. (Every
//! bit, cut and sector is in [`super::every`].)
//!
//! Whatever happened to the files, opening yields the records that were written, a prefix of them
//! that the table allows, or a refusal that names file and offset. Never other records, and never
//! a prefix shorter than what a witness on disk proves.

use super::harness::{Harness, entry};
use crate::{Backend, Committed, Entry, HardState, Log, OpenError, Options, Recovered, Row};
use simdisk::{Disk, Survivors};

const KIB: u64 = 1024;

fn hs(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    Some(HardState { term, vote, commit })
}

/// A log of some segments with everything durable, on a disk at rest, and all its records.
struct Built {
    disk: Disk,
    /// `contents[n]`: entries after the first n batches.
    entries: Vec<Entry>,
    hard_state: HardState,
}

/// Several segments of 16 KiB, one of them recycled so that stale batches stand behind the end.
fn build(sealed: bool) -> Built {
    let mut h = Harness::new(Disk::new(1), 16 * KIB);
    h.open().unwrap();
    let mut entries = Vec::new();
    let mut i = 0;
    let mut say = |h: &mut Harness, len: usize, entries: &mut Vec<Entry>| {
        i += 1;
        let e = entry(i, 1, len);
        h.append(std::slice::from_ref(&e), hs(1, 1, i - 1));
        h.sync();
        h.log().background_step();
        entries.push(e);
    };
    for _ in 0..12 {
        say(&mut h, 2000, &mut entries);
    }
    h.trim(9);
    for _ in 0..6 {
        h.log().background_step();
    }
    for len in [100, 5000, 100, 100, 4032, 600] {
        say(&mut h, len, &mut entries);
    }
    // A restart in the middle, so that a recovered segment is among them.
    h.open().unwrap();
    for _ in 0..4 {
        h.log().background_step();
    }
    for len in [300, 6000, 300] {
        say(&mut h, len, &mut entries);
    }
    if sealed {
        h.log().idle();
        h.wait();
    }
    let hard_state = h.content().hard_state;
    h.log = None;
    Built {
        disk: h.disk.after_power_loss(&Survivors::All),
        entries,
        hard_state,
    }
}

fn options(disk: &Disk) -> Options {
    Options {
        segment_bytes: 16 * KIB,
        backend: Backend::Sim(disk.clone()),
        identity: [0xc1, 0x0e],
        inline_background: true,
        id_seed: Some(99_999_999),
        ..Options::new("log")
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Same,
    /// So many entries are missing at the end.
    Prefix(usize),
    Refused(Option<Row>),
}

/// Opens a damaged log and checks the promise of the module's head.
fn outcome(built: &Built, disk: &Disk, what: &dyn Fn() -> String) -> Outcome {
    match Log::open(options(disk)) {
        Err(OpenError::Refused(refusal)) => {
            let line = refusal.to_string();
            assert!(line.contains(".log at byte"), "{}: {line}", what());
            assert!(line.contains("Ways out"), "{}: {line}", what());
            Outcome::Refused(refusal.row)
        }
        Err(e) => panic!("{}: {e}", what()),
        Ok((log, recovered)) => opened(built, &log, &recovered, what),
    }
}

fn opened(built: &Built, log: &Log, r: &Recovered, what: &dyn Fn() -> String) -> Outcome {
    let read = log
        .entries(r.first_index, r.last_index + 1, usize::MAX)
        .unwrap_or_else(|e| panic!("{}: {e}", what()));
    let first = r.first_index as usize - 1;
    let last = r.last_index as usize;
    assert!(r.first_index <= 9, "{}: {r:?}", what());
    assert_eq!(read, built.entries[first..last], "{}", what());
    assert_eq!(r.hard_state.term, 1, "{}", what());
    match built.entries.len() - last {
        0 => {
            assert_eq!(r.hard_state, built.hard_state, "{}", what());
            Outcome::Same
        }
        missing => Outcome::Prefix(missing),
    }
}

fn logs(disk: &Disk) -> Vec<String> {
    let names = disk.list("log").unwrap();
    let logs = names.into_iter().filter(|n| n.ends_with(".log"));
    logs.map(|n| format!("log/{n}")).collect()
}

#[test]
fn the_undamaged_log_opens() {
    for sealed in [false, true] {
        let built = build(sealed);
        assert!(logs(&built.disk).len() >= 6);
        let outcome = outcome(&built, &built.disk.fork(), &|| "undamaged".into());
        assert_eq!(outcome, Outcome::Same);
    }
}

#[test]
fn every_missing_segment_is_noticed() {
    let built = build(true);
    let all = logs(&built.disk);
    for (n, path) in all.iter().enumerate() {
        let disk = built.disk.fork();
        disk.unlink(path).unwrap();
        let with_store = Options {
            committed: Some(Committed { index: 8, term: 1 }),
            ..options(&disk)
        };
        let opened = Log::open(with_store);
        let staged = n + 1 == all.len();
        // The oldest holds entries that were trimmed but stand in a segment with others.
        match opened {
            Ok((_, r)) => assert!(
                staged || (n == 0 && r.first_index <= 9),
                "{path} is missing: {r:?}"
            ),
            Err(OpenError::Refused(_)) => assert!(!staged, "{path}"),
            // Without its predecessor the newest segment's end cannot be proven.
            Err(e) => panic!("{path}: {e}"),
        }
    }
}

fn refusal(options: Options) -> crate::Refusal {
    match Log::open(options) {
        Err(OpenError::Refused(refusal)) => *refusal,
        Err(e) => panic!("{e}"),
        Ok((_, r)) => panic!("opened: {r:?}"),
    }
}

/// The file that was written last and where its last data batch starts.
fn last_batch(disk: &Disk) -> (String, u64) {
    let mut found: Option<(u64, String, u64)> = None;
    for path in logs(disk) {
        let bytes = disk.contents(&path).unwrap();
        for at in (4096..bytes.len()).step_by(4096) {
            let header = crate::format::batch::BatchHeader::decode(&bytes[at..]);
            let newest = found.as_ref().map_or(0, |(seq, ..)| *seq);
            if let Some(h) = header.filter(|h| h.first_index > 0 && h.batch_seq > newest) {
                found = Some((h.batch_seq, path.clone(), at as u64));
            }
        }
    }
    let (_, path, at) = found.expect("there are batches");
    (path, at)
}

#[test]
fn row_1_a_store_ahead_of_the_log_is_refused() {
    let built = build(false);
    let disk = built.disk.fork();
    let (path, at) = last_batch(&disk);
    disk.flip_bit(&path, at + 70, 0).unwrap();
    let index = built.entries.len() as u64;
    let refused = refusal(Options {
        committed: Some(Committed { index, term: 1 }),
        ..options(&disk)
    });
    assert_eq!(refused.row, Some(Row::CommittedLost));
    assert_eq!(
        (refused.first_lost, refused.last_lost),
        (index, Some(index))
    );
    assert_eq!(refused.offset, at);
    // Without that knowledge it is a torn tail.
    let (_, r) = Log::open(options(&disk)).unwrap();
    assert_eq!(r.last_index, index - 1);
    assert!(r.report.contains("row 6"), "{}", r.report);
}

#[test]
fn row_2_a_seal_proves_that_the_last_batch_was_durable() {
    let built = build(true);
    let disk = built.disk.fork();
    let (path, at) = last_batch(&disk);
    disk.flip_bit(&path, at + 70, 0).unwrap();
    let refused = refusal(options(&disk));
    assert_eq!(refused.row, Some(Row::AcknowledgedDamaged));
    assert!(refused.can_accept);
}

#[test]
fn row_2_an_older_segment_is_held_to_its_successors_word() {
    let built = build(false);
    let all = logs(&built.disk);
    let disk = built.disk.fork();
    disk.flip_bit(&all[1], 4096 + 20, 0).unwrap();
    assert_eq!(refusal(options(&disk)).row, Some(Row::AcknowledgedDamaged));
}

#[test]
fn row_2a_a_cut_file_is_refused() {
    let built = build(false);
    let disk = built.disk.fork();
    let (path, at) = last_batch(&disk);
    disk.open(&path).unwrap().set_len(at).unwrap();
    assert_eq!(refusal(options(&disk)).row, Some(Row::CutShort));
}

#[test]
fn row_3_a_started_segment_with_a_bad_header_is_refused() {
    // With several batches in it, the later ones prove that the first was durable: row 2 then.
    let built = build(false);
    let all = logs(&built.disk);
    let (path, _) = last_batch(&built.disk);
    for path in [&all[1], &path] {
        let disk = built.disk.fork();
        disk.flip_bit(path, 100, 0).unwrap();
        assert!(refusal(options(&disk)).row <= Some(Row::SuccessorDamaged));
    }
    // Also if no batch is in it yet but a roll record names it.
    let mut h = Harness::new(Disk::new(1), 16 * KIB);
    h.open().unwrap();
    for i in 1..=2 {
        h.append(&[entry(i, 1, 3000)], None);
        h.sync();
    }
    while h.log().background_step() {}
    let staged = h.disk.steps();
    h.disk.crash_at(staged + 3);
    h.append(&[entry(3, 1, 3000)], None);
    h.sync();
    h.log = None;
    let disk = h.disk.after_power_loss(&Survivors::None);
    assert_eq!(Log::open(options(&disk.fork())).unwrap().1.last_index, 2);
    disk.flip_bit("log/0000000000000002.log", 100, 0).unwrap();
    let refused = refusal(options(&disk));
    assert_eq!(refused.row, Some(Row::SuccessorDamaged));
    assert!(refused.detail.contains("a roll record names"), "{refused}");
    // And if the roll record has rotted but one batch is in it.
    let mut h = Harness::new(Disk::new(1), 16 * KIB);
    h.open().unwrap();
    for i in 1..=3 {
        h.append(&[entry(i, 1, 3000)], None);
        h.sync();
    }
    h.log = None;
    let disk = h.disk.after_power_loss(&Survivors::None);
    disk.flip_bit("log/0000000000000001.log", 12288, 0).unwrap();
    disk.flip_bit("log/0000000000000002.log", 100, 0).unwrap();
    assert!(refusal(options(&disk)).row <= Some(Row::SuccessorDamaged));
}

#[test]
fn row_4_a_prepared_segment_is_used_next() {
    let built = build(true);
    let all = logs(&built.disk);
    let (last, _) = last_batch(&built.disk);
    assert!(all.last().unwrap() > &last, "one is staged");
    let disk = built.disk.fork();
    let (_, r) = Log::open(options(&disk)).unwrap();
    assert!(r.report.contains("prepared but never used"), "{}", r.report);
    // Whatever its header block holds, it was never in use.
    let disk = built.disk.fork();
    disk.poke(all.last().unwrap(), 0, &[0x5a; 4096]).unwrap();
    let (_, r) = Log::open(options(&disk)).unwrap();
    assert_eq!(r.last_index, built.entries.len() as u64);
}

#[test]
fn row_5_a_batch_of_the_same_incarnation_in_the_wrong_place_is_refused() {
    let built = build(false);
    let disk = built.disk.fork();
    let (path, at) = last_batch(&disk);
    let bytes = disk.contents(&path).unwrap();
    // The last batch once more, a block further: as if a write had been misdirected and its own
    // place had kept the old bytes.
    let block = bytes[at as usize..at as usize + 4096].to_vec();
    disk.poke(&path, at + 4096, &block).unwrap();
    assert_eq!(refusal(options(&disk)).row, Some(Row::OutOfOrder));
}

#[test]
fn the_oldest_header_and_a_missing_log_are_refused() {
    let built = build(true);
    let all = logs(&built.disk);
    let disk = built.disk.fork();
    disk.flip_bit(&all[0], 30, 1).unwrap();
    let refused = refusal(options(&disk));
    assert!(!refused.can_accept);
    assert_eq!(refused.row, Some(Row::SuccessorDamaged));

    let empty = Disk::new(5);
    let refused = refusal(Options {
        committed: Some(Committed { index: 3, term: 1 }),
        ..options(&empty)
    });
    assert_eq!(refused.row, Some(Row::CommittedLost));
}

#[test]
fn a_hole_below_the_log_is_refused() {
    let built = build(true);
    let refused = refusal(Options {
        committed: Some(Committed { index: 2, term: 1 }),
        ..options(&built.disk.fork())
    });
    assert_eq!(refused.row, None);
    assert_eq!(refused.first_lost, 3);
}

#[test]
fn an_accepted_loss_opens_cuts_and_is_final() {
    let built = build(true);
    let all = logs(&built.disk);
    let disk = built.disk.fork();
    disk.flip_bit(&all[1], 4096 + 20, 0).unwrap();
    let lost = refusal(options(&disk)).first_lost;
    let accept = Options {
        accept_loss: true,
        ..options(&disk)
    };
    let (mut log, r) = Log::open(accept).unwrap();
    assert!(r.report.contains("LOSS ACCEPTED"), "{}", r.report);
    assert_eq!(r.last_index, lost - 1);
    assert!(r.hard_state.commit <= r.last_index);
    let e = Entry {
        term: 7,
        ..entry(lost, 7, 100)
    };
    let hard = HardState {
        term: 7,
        ..r.hard_state
    };
    log.append(std::slice::from_ref(&e), Some(hard)).unwrap();
    log.sync();
    drop(log);
    let names = disk.list("log").unwrap();
    assert!(names.iter().any(|n| n.ends_with(".discarded")), "{names:?}");
    let again = Options {
        id_seed: Some(4),
        ..options(&disk)
    };
    let (log, r) = Log::open(again).unwrap();
    assert_eq!(r.last_index, lost);
    assert_eq!(log.entries(lost, lost + 1, 1000).unwrap(), [e]);
}

#[test]
fn an_accepted_loss_starts_where_the_store_is() {
    let disk = Disk::new(5);
    let committed = Some(Committed { index: 30, term: 4 });
    let (log, r) = Log::open(Options {
        committed,
        accept_loss: true,
        ..options(&disk)
    })
    .unwrap();
    assert_eq!((r.first_index, r.last_index), (31, 30));
    assert_eq!(r.previous_term, Some(4));
    drop(log);
    let (_, r) = Log::open(Options {
        committed,
        id_seed: Some(4),
        ..options(&disk)
    })
    .unwrap();
    assert_eq!(r.snapshot, Some((30, 4)));
}

#[test]
fn a_newer_format_is_named() {
    let built = build(true);
    let all = logs(&built.disk);
    let disk = built.disk.fork();
    let mut block = disk.contents(&all[0]).unwrap()[..4096].to_vec();
    block[8] = 2;
    let sum = crate::format::crc(&block[..160]);
    block[160..164].copy_from_slice(&sum.to_le_bytes());
    disk.poke(&all[0], 0, &block).unwrap();
    let error = Log::open(options(&disk)).err().unwrap();
    assert!(
        matches!(error, OpenError::Format { format: 2, .. }),
        "{error}"
    );
}
