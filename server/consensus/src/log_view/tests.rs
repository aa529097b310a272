use super::*;
use bytes::Bytes;
use proptest::prelude::*;

fn entry(index: u64, term: u64, len: usize) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from(vec![index as u8; len]),
        ..Entry::default()
    }
}

fn view(first: u64, previous_term: u64, terms: &[u64]) -> LogView {
    let entries = (first..)
        .zip(terms)
        .map(|(index, &term)| entry(index, term, 10))
        .collect();
    LogView::new(
        HardState::default(),
        ConfState::default(),
        first,
        previous_term,
        entries,
    )
}

fn append(view: &mut LogView, from: u64, terms: &[u64]) {
    let entries: Vec<pb::Entry> = (from..)
        .zip(terms)
        .map(|(index, &term)| entry(index, term, 10).into_pb())
        .collect();
    view.append(&entries);
}

fn read(view: &LogView, low: u64, high: u64, bytes_max: u64) -> Result<Vec<u64>, String> {
    view.entries(low, high, Some(bytes_max), GetEntriesContext::empty(true))
        .map(|entries| entries.iter().map(|entry| entry.index).collect())
        .map_err(|error| error.to_string())
}

#[test]
fn terms_stay_known_when_entries_leave_memory() {
    let mut view = view(5, 1, &[2, 2, 3, 3, 3]);
    view.shrink(9, 8, usize::MAX);
    assert_eq!(view.len(), 2);
    let terms: Vec<_> = (3..=10).map(|index| view.term_at(index)).collect();
    assert_eq!(
        terms,
        [
            None,
            Some(1),
            Some(2),
            Some(2),
            Some(3),
            Some(3),
            Some(3),
            None
        ]
    );
    assert_eq!(
        view.term(3).unwrap_err(),
        RaftError::Store(StorageError::Compacted)
    );
    assert_eq!(
        view.term(10).unwrap_err(),
        RaftError::Store(StorageError::Unavailable)
    );
}

#[test]
fn an_append_replaces_what_it_overlaps() {
    let mut view = view(1, 0, &[1, 1, 1, 2]);
    append(&mut view, 3, &[3]);
    assert_eq!(view.last(), 3);
    assert_eq!(view.term_at(2), Some(1));
    assert_eq!(view.term_at(3), Some(3));
    assert_eq!(view.term_at(4), None);
    assert_eq!(view.bytes(), 30);
}

#[test]
#[should_panic(expected = "append at 6 outside of")]
fn an_append_may_not_leave_a_gap() {
    append(&mut view(1, 0, &[1, 1]), 6, &[1]);
}

#[test]
fn unapplied_entries_stay_in_memory_whatever_the_limit() {
    let mut view = view(1, 0, &[1; 10]);
    view.shrink(4, u64::MAX, 0);
    assert_eq!(view.len(), 6);
    assert_eq!(read(&view, 5, 11, u64::MAX).unwrap().len(), 6);
}

#[test]
fn the_byte_limit_takes_the_oldest_first() {
    let mut view = view(1, 0, &[1; 10]);
    view.shrink(10, 1, 35);
    assert_eq!(view.bytes(), 30);
    assert_eq!(read(&view, 8, 11, u64::MAX).unwrap(), [8, 9, 10]);
}

#[test]
fn batches_respect_the_byte_limit_and_never_are_empty() {
    let view = view(1, 0, &[1; 4]);
    let size = view.entries[0].encoded_len() as u64;
    assert_eq!(read(&view, 1, 5, 0).unwrap(), [1]);
    assert_eq!(read(&view, 1, 5, size).unwrap(), [1]);
    assert_eq!(read(&view, 1, 5, 2 * size).unwrap(), [1, 2]);
    assert_eq!(read(&view, 1, 3, u64::MAX).unwrap(), [1, 2]);
    assert_eq!(read(&view, 3, 3, u64::MAX).unwrap(), [0u64; 0]);
}

#[test]
fn old_entries_are_fetched_and_served_once() {
    let mut view = view(1, 0, &[1, 1, 2, 2, 2]);
    view.shrink(5, 5, usize::MAX);
    assert!(read(&view, 2, 6, 100).is_err());
    assert!(view.has_wants());
    let fetches = view.take_fetches();
    assert_eq!(
        fetches,
        [Fetch {
            id: 1,
            from: 2,
            to: 5,
            bytes_max: 100
        }]
    );
    // A second reader of the same place joins.
    assert!(read(&view, 2, 6, 100).is_err());
    assert!(view.take_fetches().is_empty());

    let waiters = view.answer(1, vec![entry(2, 1, 10), entry(3, 2, 10), entry(4, 2, 10)]);
    assert_eq!(waiters.len(), 2);
    assert_eq!(read(&view, 2, 6, u64::MAX).unwrap(), [2, 3, 4]);
    assert_eq!(read(&view, 4, 6, u64::MAX).unwrap(), [4]);
    view.forget_answer();
    assert!(read(&view, 2, 6, 100).is_err());
    assert_eq!(view.take_fetches().len(), 1);
}

#[test]
fn fetched_entries_that_contradict_the_log_are_refused() {
    let mut view = view(1, 0, &[1, 1, 2, 2]);
    view.shrink(4, 5, usize::MAX);
    assert!(read(&view, 2, 5, 100).is_err());
    let id = view.take_fetches()[0].id;
    // The term at 3 is 2; what follows a contradiction is not believed either.
    view.answer(id, vec![entry(2, 1, 1), entry(3, 1, 1), entry(4, 2, 1)]);
    assert_eq!(read(&view, 2, 5, u64::MAX).unwrap(), [2]);
    // An unknown or repeated id is ignored.
    assert!(view.answer(id, vec![entry(2, 1, 1)]).is_empty());
}

#[test]
fn open_fetches_are_bounded() {
    let mut view = view(1, 0, &[1; 100]);
    view.shrink(100, 101, usize::MAX);
    for low in 1..=50 {
        assert!(read(&view, low, 101, 100).is_err());
    }
    assert_eq!(view.take_fetches().len(), FETCHES_MAX);
}

#[test]
fn trimming_moves_the_start_and_keeps_its_term() {
    let mut view = view(1, 0, &[1, 1, 2, 2, 5]);
    view.trim(4);
    assert_eq!(view.first(), 4);
    assert_eq!(view.term_at(3), Some(2));
    assert_eq!(view.term_at(2), None);
    assert_eq!(
        read(&view, 3, 5, 100).unwrap_err(),
        RaftError::Store(StorageError::Compacted).to_string()
    );
    view.trim(2);
    assert_eq!(view.first(), 4, "never backwards");
    view.trim(6);
    assert_eq!((view.first(), view.last()), (6, 5));
    assert_eq!(view.term_at(5), Some(5));
    append(&mut view, 6, &[6]);
    assert_eq!(view.term_at(6), Some(6));
}

#[test]
fn a_snapshot_replaces_everything() {
    let mut view = view(1, 0, &[1, 1, 2]);
    view.install(&SnapshotMeta {
        index: 50,
        term: 7,
        ..SnapshotMeta::default()
    });
    assert_eq!((view.first(), view.last()), (51, 50));
    assert_eq!(view.term_at(50), Some(7));
    assert_eq!(view.term_at(49), None);
    append(&mut view, 51, &[7, 8]);
    assert_eq!(view.last(), 52);
    assert_eq!(view.bytes(), 20);
}

#[test]
fn snapshots_are_asked_for_until_one_is_offered() {
    let mut view = view(10, 3, &[3, 3]);
    assert!(view.snapshot(0, 7).is_err());
    assert!(view.snapshot(0, 7).is_err());
    let wanted = SnapshotWanted {
        to: 7,
        index_min: 9,
    };
    assert_eq!(view.take_snapshots_wanted(), [wanted]);
    let meta = SnapshotMeta {
        index: 8,
        term: 3,
        ..SnapshotMeta::default()
    };
    view.offer(7, meta.clone());
    assert!(view.snapshot(0, 7).is_err(), "would leave a gap");
    view.offer(7, SnapshotMeta { index: 9, ..meta });
    assert!(view.snapshot(0, 8).is_err(), "for another member");
    assert_eq!(view.snapshot(0, 7).unwrap().metadata.index, 9);
    assert!(view.snapshot(0, 7).is_err(), "an offer is used once");
}

/// The view against a plain list of terms.
#[derive(Clone, Debug)]
enum Step {
    Append { back: u64, count: u64, bump: u64 },
    Shrink { applied: u64, keep: u64 },
    Trim { ahead: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..4, 1u64..6, 0u64..3).prop_map(|(back, count, bump)| Step::Append {
            back,
            count,
            bump
        }),
        (0u64..6, 0u64..8).prop_map(|(applied, keep)| Step::Shrink { applied, keep }),
        (0u64..4).prop_map(|ahead| Step::Trim { ahead }),
    ]
}

proptest! {
    #[test]
    fn the_view_agrees_with_a_list(steps in prop::collection::vec(step(), 1..60)) {
        let mut view = view(1, 0, &[]);
        // terms[i] is the term at index i; index 0 is the start of the log.
        let mut terms = vec![0u64];
        let (mut first, mut applied) = (1u64, 0u64);
        for step in steps {
            let last = terms.len() as u64 - 1;
            match step {
                Step::Append { back, count, bump } => {
                    let from = (last + 1 - back.min(last - applied)).max(first);
                    terms.truncate(from as usize);
                    let term = (terms[from as usize - 1] + bump).max(1);
                    append(&mut view, from, &vec![term; count as usize]);
                    terms.extend(vec![term; count as usize]);
                }
                Step::Shrink { applied: more, keep } => {
                    applied = (applied + more).min(last);
                    view.shrink(applied, applied.saturating_sub(keep), usize::MAX);
                }
                Step::Trim { ahead } => {
                    first = (first + ahead).min(applied + 1);
                    view.trim(first);
                }
            }
            let last = terms.len() as u64 - 1;
            prop_assert_eq!(view.last(), last);
            prop_assert_eq!(view.first(), first);
            for index in 0..=last + 1 {
                let known = (first - 1..=last).contains(&index);
                prop_assert_eq!(view.term_at(index), known.then(|| terms[index as usize]));
            }
            for index in applied + 1..=last {
                let got = view.entries(index, index + 1, None, GetEntriesContext::empty(false));
                prop_assert_eq!(got.unwrap()[0].term, terms[index as usize]);
            }
            prop_assert_eq!(view.bytes(), view.len() * 10);
        }
    }
}
