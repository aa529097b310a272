//! The interface without crashes.

use super::harness::{Harness, entry};
use crate::{AppendError, HardState, Log, OpenError, ReadError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use simdisk::Disk;

const KIB: u64 = 1024;

fn open(segment_bytes: u64) -> Harness {
    let mut h = Harness::new(Disk::new(1), segment_bytes);
    assert!(h.open().unwrap().is_new);
    h
}

fn hs(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    Some(HardState { term, vote, commit })
}

#[test]
fn a_new_log_is_empty() {
    let mut h = open(64 * KIB);
    assert_eq!((h.log().first_index(), h.log().last_index()), (1, 0));
    assert_eq!(h.log().term(0), Some(0));
    assert_eq!(h.log().entries(1, 1, 0).unwrap(), []);
    let again = h.open().unwrap();
    assert!(!again.is_new);
    assert_eq!((again.first_index, again.last_index), (1, 0));
}

#[test]
fn appends_are_durable_after_a_sync_and_not_before() {
    let mut h = open(64 * KIB);
    let mark = h
        .log()
        .append(&[entry(1, 1, 10), entry(2, 1, 10)], hs(1, 3, 0))
        .unwrap();
    assert!(!h.log().durable().covers(mark));
    assert!(matches!(
        h.log().entries(1, 3, 1000),
        Err(ReadError::Unavailable { last_index: 0 })
    ));
    assert!(h.log().sync().covers(mark));
    let read = h.log().entries(1, 3, 1000).unwrap();
    assert_eq!(read, [entry(1, 1, 10), entry(2, 1, 10)]);
    assert_eq!(h.log().hard_state().vote, 3);
}

#[test]
fn one_append_and_sync_is_one_durable_write() {
    let mut h = open(64 * KIB);
    h.disk.start_trace();
    h.append(&[entry(1, 1, 300)], hs(1, 1, 0));
    h.sync();
    assert_eq!(
        h.disk.take_trace(),
        ["WriteDsync log/0000000000000001.log 4096+4096"]
    );
    assert_eq!(h.log().stats().flushes, 1);
    assert_eq!(h.log().stats().flushed_bytes, 4096);
}

#[test]
fn what_gathers_behind_a_flush_goes_in_one_write() {
    let mut h = open(64 * KIB);
    h.append(&[entry(1, 1, 100)], None);
    h.log().flush();
    for i in 2..20 {
        h.append(&[entry(i, 1, 100)], None);
        h.log().flush();
    }
    h.wait();
    assert_eq!(h.durable, 19);
    assert_eq!(h.log().stats().flushes, 2);
}

#[test]
fn entries_around_and_above_a_buffer_go_in_one_append() {
    let mut h = open(16 * KIB * KIB);
    let sizes = [600, 600, 1500, 600, 3000, 1100, 2000, 10, 900];
    let sizes = sizes.map(|kib| kib * KIB as usize);
    for rotated in 0..sizes.len() as u64 {
        let first = rotated * sizes.len() as u64 + 1;
        let mut sizes = sizes;
        sizes.rotate_left(rotated as usize);
        let entries: Vec<_> = (first..).zip(sizes).map(|(i, s)| entry(i, 1, s)).collect();
        h.append(&entries, None);
        h.sync();
        let last = entries.last().unwrap().index;
        assert_eq!(
            h.log().entries(first, last + 1, usize::MAX).unwrap(),
            entries
        );
    }
}

#[test]
fn a_roll_writes_header_then_roll_record_then_goes_on() {
    let mut h = open(16 * KIB);
    for i in 1..=2 {
        h.append(&[entry(i, 1, 100)], None);
        h.sync();
    }
    while h.log().background_step() {}
    h.disk.start_trace();
    h.append(&[entry(3, 1, 100)], None);
    h.sync();
    assert_eq!(
        h.disk.take_trace(),
        [
            "WriteDsync log/0000000000000002.log 0+4096",
            "WriteDsync log/0000000000000001.log 12288+4096",
            "WriteDsync log/0000000000000002.log 4096+4096",
        ]
    );
    h.open().unwrap();
}

#[test]
fn the_background_names_and_syncs_before_use() {
    let mut h = open(16 * KIB);
    h.disk.start_trace();
    while h.log().background_step() {}
    assert_eq!(
        h.disk.take_trace(),
        [
            "Create log/prep.tmp",
            "SetLen log/prep.tmp 16384",
            "Write log/prep.tmp 0+16384",
            "SyncData log/prep.tmp",
            "Rename log/prep.tmp -> log/free-0000000000000001.seg",
            "Rename log/free-0000000000000001.seg -> log/0000000000000002.log",
            "SyncDir log",
            "Create log/prep.tmp",
            "SetLen log/prep.tmp 16384",
            "Write log/prep.tmp 0+16384",
            "SyncData log/prep.tmp",
            "Rename log/prep.tmp -> log/free-0000000000000002.seg",
        ]
    );
    assert_eq!(h.log().stats().ready_segments, 2);
}

#[test]
fn conflicting_entries_replace_what_follows() {
    let mut h = open(64 * KIB);
    h.append(
        &[entry(1, 1, 9), entry(2, 1, 9), entry(3, 1, 9)],
        hs(1, 1, 1),
    );
    h.sync();
    h.append(&[entry(2, 2, 9)], hs(2, 1, 1));
    assert_eq!(h.log().last_index(), 2);
    assert_eq!(h.log().durable_index(), 1, "2 and 3 are void at once");
    assert_eq!(h.log().term(2), Some(2));
    assert_eq!(h.log().term(3), None);
    h.sync();
    assert_eq!(
        h.log().entries(1, 3, 1000).unwrap(),
        [entry(1, 1, 9), entry(2, 2, 9)]
    );
    h.open().unwrap();
    assert_eq!(h.log().last_index(), 2);
}

#[test]
fn a_conflict_within_one_batch_is_read_back_right() {
    let mut h = open(64 * KIB);
    h.append(
        &[entry(1, 1, 9), entry(2, 1, 9), entry(3, 1, 9)],
        hs(1, 1, 0),
    );
    h.append(&[entry(2, 2, 9)], hs(2, 1, 0));
    h.append(&[entry(3, 2, 9)], None);
    h.sync();
    let want = [entry(1, 1, 9), entry(2, 2, 9), entry(3, 2, 9)];
    assert_eq!(h.log().stats().flushes, 1);
    assert_eq!(h.log().entries(1, 4, 1000).unwrap(), want);
    assert_eq!(h.log().entries(2, 3, 1000).unwrap(), want[1..2]);
    h.open().unwrap();
    assert_eq!(h.log().entries(1, 4, 1000).unwrap(), want);
}

#[test]
fn reading_stops_at_max_bytes_but_returns_one() {
    let mut h = open(64 * KIB);
    for i in 1..=5 {
        h.append(&[entry(i, 1, 100)], None);
    }
    h.sync();
    assert_eq!(h.log().entries(1, 6, 250).unwrap().len(), 2);
    assert_eq!(h.log().entries(3, 6, 0).unwrap().len(), 1);
    assert_eq!(h.log().entries(3, 4, 1000).unwrap()[0].index, 3);
}

#[test]
fn rules_are_checked_and_nothing_is_taken() {
    let mut h = open(64 * KIB);
    h.append(&[entry(1, 1, 9), entry(2, 1, 9)], hs(3, 1, 1));
    let cases = [
        h.log().append(&[entry(4, 3, 9)], None),
        h.log().append(&[entry(1, 3, 9)], None),
        h.log().append(&[], hs(3, 1, 3)),
        h.log().append(&[], hs(3, 1, 0)),
        h.log().append(&[], hs(2, 1, 1)),
        h.log().append(&[entry(3, 3, 9), entry(5, 3, 9)], None),
        h.log().snapshot_mark(0, 1),
    ];
    for case in cases {
        assert!(matches!(case, Err(AppendError::Invalid(_))), "{case:?}");
    }
    let max = h.log().entry_bytes_max();
    assert!(matches!(
        h.log().append(&[entry(3, 3, max + 1)], None),
        Err(AppendError::TooLarge { .. })
    ));
    h.sync();
    h.open().unwrap();
    assert_eq!(h.log().last_index(), 2);
}

#[test]
fn the_largest_entry_fits_and_appends_may_span_segments() {
    let mut h = open(16 * KIB);
    let max = h.log().entry_bytes_max();
    assert!(h.append(&[entry(1, 1, max)], None));
    h.sync();
    let many: Vec<_> = (2..9).map(|i| entry(i, 1, max)).collect();
    assert!(h.append(&many, None));
    h.sync();
    assert_eq!(h.log().entries(1, 9, usize::MAX).unwrap().len(), 8);
    h.open().unwrap();
    assert_eq!(h.log().last_index(), 8);
}

#[test]
fn entries_larger_than_any_batch_work() {
    let mut h = open(20 << 20);
    let big = entry(1, 1, crate::queue::BATCH_BYTES_MAX + 5000);
    h.append(&[big.clone(), entry(2, 1, 5)], hs(1, 1, 0));
    h.sync();
    // Term and vote, the large one, the small one.
    assert_eq!(h.log().stats().flushes, 3);
    h.open().unwrap();
    assert_eq!(h.log().entries(1, 2, 0).unwrap(), [big]);
}

#[test]
fn a_gathering_limit_makes_appends_flush() {
    let mut h = Harness::new(Disk::new(1), 1024 * KIB);
    let options = crate::Options {
        gather_bytes_max: 10_000,
        ..h.options()
    };
    let (mut log, _) = Log::open(options).unwrap();
    for i in 1..100 {
        log.append(&[entry(i, 1, 1000)], None).unwrap();
        assert!(log.stats().gathered_bytes < 12_000);
    }
    assert!(log.stats().flushes >= 8);
    log.close();
    h.open().unwrap_err(); // the harness knows nothing of these entries
}

#[test]
fn trimming_recycles_segments_and_survives_a_restart() {
    let mut h = open(16 * KIB);
    for i in 1..=40 {
        h.append(&[entry(i, 1, 3000)], hs(1, 1, i));
        h.sync();
        h.log().background_step();
    }
    assert!(h.log().stats().segments >= 15);
    h.trim(35);
    h.sync();
    while h.log().background_step() {}
    assert!(h.log().stats().segments <= 4);
    assert_eq!(h.log().stats().ready_segments, 4, "the pool keeps four");
    assert!(matches!(
        h.log().entries(34, 36, 1),
        Err(ReadError::Trimmed { first_index: 35 })
    ));
    assert_eq!(h.log().term(34), Some(1));
    let files = h.disk.list("log").unwrap();
    assert!(files.len() <= 8, "{files:?}");
    let recovered = h.open().unwrap();
    assert_eq!((recovered.first_index, recovered.last_index), (35, 40));
    assert_eq!(recovered.previous_term, Some(1));
    // The recycled ones hold old batches; writing over them must not confuse anything.
    for i in 41..=80 {
        h.append(&[entry(i, 2, 3000)], hs(2, 1, i));
        h.sync();
        h.trim(i - 3);
        h.log().background_step();
        h.log().background_step();
    }
    h.open().unwrap();
    assert_eq!(h.log().last_index(), 80);
}

#[test]
fn nothing_uncommitted_is_trimmed() {
    let mut h = open(16 * KIB);
    h.append(&[entry(1, 1, 9), entry(2, 1, 9)], hs(1, 1, 1));
    h.log().trim(100);
    assert_eq!(h.log().first_index(), 2);
}

#[test]
fn a_snapshot_mark_voids_everything_and_lets_segments_go() {
    let mut h = open(16 * KIB);
    for i in 1..=10 {
        h.append(&[entry(i, 1, 3000)], hs(1, 1, i.min(4)));
        h.sync();
    }
    assert!(h.snapshot_mark(8, 1));
    assert_eq!(h.log().last_index(), 8);
    assert_eq!(h.log().first_index(), 9);
    h.trim(1);
    assert!(h.log().stats().segments > 3, "not durable: all is kept");
    h.sync();
    h.append(&[entry(9, 2, 3000)], hs(2, 1, 8));
    h.sync();
    h.trim(1);
    while h.log().background_step() {}
    assert!(h.log().stats().segments <= 2);
    let recovered = h.open().unwrap();
    assert_eq!(recovered.snapshot, Some((8, 1)));
    assert_eq!((recovered.first_index, recovered.last_index), (9, 9));
    assert_eq!(recovered.previous_term, Some(1));
}

#[test]
fn a_snapshot_mark_does_not_go_back() {
    let mut h = open(16 * KIB);
    assert!(h.snapshot_mark(66, 1));
    assert!(matches!(
        h.log().snapshot_mark(64, 1),
        Err(AppendError::Invalid(_))
    ));
    assert!(h.snapshot_mark(66, 1));
    h.sync();
    h.open().unwrap();
}

#[test]
fn idling_seals_once() {
    let mut h = open(64 * KIB);
    h.log().idle();
    assert_eq!(h.log().stats().flushes, 0, "nothing to witness for");
    h.append(&[entry(1, 1, 9)], None);
    h.log().idle();
    assert_eq!(h.log().stats().flushes, 0, "busy");
    h.sync();
    h.log().idle();
    h.wait();
    h.log().idle();
    h.wait();
    assert_eq!(h.log().stats().flushes, 2);
    h.open().unwrap();
}

#[test]
fn flushes_are_reported() {
    let mut h = open(64 * KIB);
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = count.clone();
    h.log().set_on_flush(Box::new(move |_| {
        seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    h.append(&[entry(1, 1, 9)], None);
    h.sync();
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn an_append_that_says_nothing_new_is_durable_with_what_was_before() {
    let mut h = open(64 * KIB);
    let nothing = h.log().append(&[], hs(0, 0, 0)).unwrap();
    assert!(h.log().durable().covers(nothing));
    h.append(&[entry(1, 1, 9)], None);
    h.log().flush();
    let nothing = h.log().append(&[], None).unwrap();
    assert!(!h.log().durable().covers(nothing));
    assert!(h.log().wait().covers(nothing));
}

#[test]
fn another_members_log_is_refused() {
    let mut h = open(64 * KIB);
    let options = crate::Options {
        identity: [1, 2],
        ..h.options()
    };
    h.log = None;
    let error = Log::open(options).err().unwrap();
    assert!(matches!(error, OpenError::Identity { .. }), "{error}");
}

#[test]
fn other_files_are_left_alone() {
    let mut h = open(16 * KIB);
    h.disk.create_new("log/notes.txt").unwrap();
    let report = h.open().unwrap().report;
    assert!(report.contains("notes.txt"), "{report}");
    assert!(h.disk.exists("log/notes.txt"));
}

#[test]
fn segment_size_may_change_between_openings() {
    let mut h = open(16 * KIB);
    for i in 1..=5 {
        h.append(&[entry(i, 1, 3000)], hs(1, 1, i));
        h.sync();
        h.log().background_step();
    }
    while h.log().background_step() {}
    h.segment_bytes = 32 * KIB;
    h.open().unwrap();
    for i in 6..=30 {
        h.append(&[entry(i, 1, 3000)], hs(1, 1, i));
        h.sync();
        h.trim(i - 2);
        h.log().background_step();
    }
    h.segment_bytes = 16 * KIB;
    h.open().unwrap();
    assert_eq!(h.log().last_index(), 30);
}

#[test]
fn random_callers_agree_with_the_model_over_restarts() {
    for seed in 0..super::seeds(40) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut h = open([16, 20, 64][seed as usize % 3] * KIB);
        for _ in 0..6 {
            for _ in 0..40 {
                h.random_step(&mut rng);
            }
            // Dropped without a sync: whatever was not flushed is gone, nothing else.
            h.open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }
}
