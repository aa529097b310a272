//! Every interleaving of a reader beside an owner that publishes, replaces, trims and recycles.
//!
//! A file is a cell that holds the number of the batch written to it last. A reader that was sent there
//! for one batch and finds another must come to the conclusion that the log has moved on, never that it
//! is damaged, and must never take the other batch for the one it wanted.

use crate::index::{BatchRef, Index};
use crate::model;
use crate::published::{Absent, Published, Source};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

type Cell = Arc<AtomicU64>;

fn batch(index: u64, segment: u64, batch_seq: u64) -> BatchRef {
    BatchRef {
        first: index,
        last: index,
        segment,
        offset: 0,
        disk_bytes: 0,
        batch_seq,
    }
}

fn source(seq: u64, file: &Cell) -> Source<Cell> {
    Source {
        seq,
        seg_id: seq,
        file: file.clone(),
    }
}

#[derive(Debug, PartialEq)]
enum Read {
    Batch(u64),
    Absent(Absent),
    Damaged,
}

/// What a reader does, see `reader.rs`.
fn read(log: &Published<Cell>, index: u64) -> Read {
    loop {
        let (wanted, at) = match log.find(index) {
            Ok(found) => found,
            Err(absent) => return Read::Absent(absent),
        };
        let found = at.file.load(Ordering::Acquire);
        if log.stands(&wanted, index, index) {
            return match found == wanted.batch_seq {
                true => Read::Batch(found),
                false => Read::Damaged,
            };
        }
    }
}

/// Segment 1 is trimmed, its file recycled as segment 2 and written again.
#[test]
fn a_recycled_file_is_not_taken_for_damage() {
    model(|| {
        let file: Cell = Arc::new(AtomicU64::new(1));
        let mut index = Index::default();
        index.push(batch(1, 1, 1));
        let log = Arc::new(Published::new(index, [source(1, &file)], 1, 1));
        let reader = {
            let log = log.clone();
            thread::spawn(move || read(&log, 1))
        };
        log.trimmed(2);
        log.retired(1);
        log.begun(source(2, &file));
        file.store(2, Ordering::Release);
        log.landed(Some(batch(2, 2, 2)), false, 2);
        match reader.join().unwrap() {
            Read::Batch(1) | Read::Absent(Absent::Trimmed(2)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(read(&log, 2), Read::Batch(2));
    });
}

/// The control: the file is given away and written again before readers are kept from it.
#[test]
#[should_panic(expected = "Damaged")]
fn giving_a_file_away_too_early_is_noticed() {
    model(|| {
        let file: Cell = Arc::new(AtomicU64::new(1));
        let mut index = Index::default();
        index.push(batch(1, 1, 1));
        let log = Arc::new(Published::new(index, [source(1, &file)], 1, 1));
        let reader = {
            let log = log.clone();
            thread::spawn(move || read(&log, 1))
        };
        file.store(2, Ordering::Release);
        log.trimmed(2);
        log.retired(1);
        let read = reader.join().unwrap();
        assert!(read != Read::Damaged, "Damaged");
    });
}

/// Entry 1 is replaced by a new leader: it disappears when the replacement is appended and comes back,
/// changed, when that is durable. A reader never sees what is not durable.
#[test]
fn a_replaced_entry_is_the_old_one_the_new_one_or_not_there() {
    model(|| {
        let file: Cell = Arc::new(AtomicU64::new(1));
        let other: Cell = Arc::new(AtomicU64::new(0));
        let mut index = Index::default();
        index.push(batch(1, 1, 1));
        let sources = [source(1, &file), source(2, &other)];
        let log = Arc::new(Published::new(index, sources, 1, 1));
        let reader = {
            let log = log.clone();
            thread::spawn(move || read(&log, 1))
        };
        log.replaced(0);
        other.store(2, Ordering::Release);
        log.landed(Some(batch(1, 2, 2)), false, 1);
        match reader.join().unwrap() {
            Read::Batch(1 | 2) | Read::Absent(Absent::Unavailable(0)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(read(&log, 1), Read::Batch(2));
    });
}

/// A snapshot mark voids everything; the log goes on behind it.
#[test]
fn a_snapshot_mark_voids_what_is_being_read() {
    model(|| {
        let file: Cell = Arc::new(AtomicU64::new(1));
        let other: Cell = Arc::new(AtomicU64::new(0));
        let mut index = Index::default();
        index.push(batch(1, 1, 1));
        let sources = [source(1, &file), source(2, &other)];
        let log = Arc::new(Published::new(index, sources, 1, 1));
        let reader = {
            let log = log.clone();
            thread::spawn(move || (read(&log, 1), read(&log, 9)))
        };
        log.trimmed(9);
        log.replaced(0);
        other.store(2, Ordering::Release);
        log.landed(Some(batch(9, 2, 2)), true, 9);
        log.retired(1);
        let (old, new) = reader.join().unwrap();
        assert!(
            matches!(old, Read::Batch(1) | Read::Absent(Absent::Trimmed(9))),
            "{old:?}"
        );
        assert!(
            matches!(new, Read::Batch(2) | Read::Absent(Absent::Unavailable(_))),
            "{new:?}"
        );
    });
}
