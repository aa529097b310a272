//! What to do where the log stops being readable: a closed table.
//!
//! The scan reports what it saw as an [`Observation`]; [`decide`] answers with the first row that
//! matches. Nothing else in the crate decides whether bytes are a torn tail or a loss. The rows in
//! words, with their causes, are in `docs/recovery.md`.
//!
//! "b" is the batch expected at the first place p where no valid batch stands.

/// What is known of the segment that follows the one that holds p.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// There is none, and nothing says that there should be.
    None,
    /// Its header is good and says that its predecessor ends exactly here.
    Reached,
    /// Its header is good and says that its predecessor ends elsewhere, or otherwise disagrees
    /// with what stands before it.
    Beyond,
    /// Its header is bad, or stale (of another sequence number), or the file is missing though
    /// something says that it was there.
    Unreadable {
        /// No further segment follows it.
        last: bool,
        /// A roll record in front of p names it.
        named: bool,
        /// A batch in it is younger than everything in front of p.
        continues: bool,
    },
}

/// Everything that the decision may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The store, or a commit index in front of p, says that an entry behind p was committed.
    pub committed_beyond: bool,
    /// A batch says that b or a later one was durable when it was handed to the disk.
    pub durable_witness: bool,
    /// The file is shorter than it was made; only segments with a successor are ever cut.
    pub cut_short: bool,
    pub successor: Successor,
    /// Behind p stands a batch of this incarnation of the segment that is not b in its place.
    pub later_batch: bool,
    /// The writer kept at most one flush in flight.
    pub depth_one: bool,
}

/// The rows, by what they conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// 0: not an end; go on in the successor.
    GoOn,
    /// 1: committed entries are gone. Refuse.
    CommittedLost,
    /// 2: acknowledged bytes are damaged. Refuse.
    AcknowledgedDamaged,
    /// 2a: a part of the file is gone. Refuse.
    CutShort,
    /// 3: a segment that was in use cannot be read. Refuse.
    SuccessorDamaged,
    /// 4: the successor was never in use; judge again as if it were not there.
    NeverStarted,
    /// 5 at depth one: impossible in a healthy history. Refuse.
    OutOfOrder,
    /// 5 at greater depth: a window of flushes was torn. The log ends before b.
    TornWindow,
    /// 6: a torn tail or a clean end. The log ends before b.
    End,
}

impl Row {
    /// Whether the log must not be opened.
    pub fn refuses(self) -> bool {
        use Row::*;
        matches!(
            self,
            CommittedLost | AcknowledgedDamaged | CutShort | SuccessorDamaged | OutOfOrder
        )
    }

    /// The row's number in the table.
    pub fn number(self) -> &'static str {
        match self {
            Row::GoOn => "0",
            Row::CommittedLost => "1",
            Row::AcknowledgedDamaged => "2",
            Row::CutShort => "2a",
            Row::SuccessorDamaged => "3",
            Row::NeverStarted => "4",
            Row::OutOfOrder | Row::TornWindow => "5",
            Row::End => "6",
        }
    }

    /// What must have happened.
    pub fn cause(self) -> &'static str {
        match self {
            Row::GoOn => "the segment was left here on purpose",
            Row::CommittedLost => {
                "the store or a commit record is ahead of the log: acknowledged entries are gone"
            }
            Row::AcknowledgedDamaged => {
                "later bytes prove that what stood here had been acknowledged: it was damaged at rest"
            }
            Row::CutShort => "the file is shorter than it was made: something cut it",
            Row::SuccessorDamaged => {
                "the next segment was in use but its header is damaged or gone"
            }
            Row::NeverStarted => "the next segment had been prepared but never used",
            Row::OutOfOrder => "batches stand out of order: a write was lost or misdirected",
            Row::TornWindow => "the writes in flight at the crash were torn",
            Row::End => "nothing was written behind this point, or the last write was torn",
        }
    }
}

type Matches = fn(&Observation) -> bool;

/// The table: first match wins, and the last row matches everything.
const TABLE: &[(Row, Matches)] = &[
    (Row::GoOn, |o| o.successor == Successor::Reached),
    (Row::CommittedLost, |o| o.committed_beyond),
    (Row::AcknowledgedDamaged, |o| {
        o.durable_witness || o.successor == Successor::Beyond
    }),
    (Row::CutShort, |o| o.cut_short),
    (Row::SuccessorDamaged, |o| {
        matches!(
            o.successor,
            Successor::Unreadable { last, named, continues } if !last || named || continues
        )
    }),
    (Row::NeverStarted, |o| {
        matches!(o.successor, Successor::Unreadable { .. })
    }),
    (Row::OutOfOrder, |o| o.later_batch && o.depth_one),
    (Row::TornWindow, |o| o.later_batch),
    (Row::End, |_| true),
];

/// The row for an observation.
pub fn decide(observation: &Observation) -> Row {
    TABLE
        .iter()
        .find(|(_, matches)| matches(observation))
        .map(|(row, _)| *row)
        .expect("the last row matches everything")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn successors() -> Vec<Successor> {
        let mut all = vec![Successor::None, Successor::Reached, Successor::Beyond];
        for bits in 0..8 {
            all.push(Successor::Unreadable {
                last: bits & 1 != 0,
                named: bits & 2 != 0,
                continues: bits & 4 != 0,
            });
        }
        all
    }

    fn vectors() -> Vec<Observation> {
        let mut all = Vec::new();
        for successor in successors() {
            for bits in 0..32 {
                all.push(Observation {
                    committed_beyond: bits & 1 != 0,
                    durable_witness: bits & 2 != 0,
                    cut_short: bits & 4 != 0,
                    later_batch: bits & 8 != 0,
                    depth_one: bits & 16 != 0,
                    successor,
                });
            }
        }
        all
    }

    /// The table once more, written as one condition per row that excludes all rows before it.
    fn exact(row: Row, o: &Observation) -> bool {
        let reached = o.successor == Successor::Reached;
        let beyond = o.successor == Successor::Beyond;
        let (unreadable, in_use) = match o.successor {
            Successor::Unreadable {
                last,
                named,
                continues,
            } => (true, !last || named || continues),
            _ => (false, false),
        };
        let proof = o.durable_witness || beyond;
        let open = !reached && !o.committed_beyond && !proof && !o.cut_short;
        match row {
            Row::GoOn => reached,
            Row::CommittedLost => !reached && o.committed_beyond,
            Row::AcknowledgedDamaged => !reached && !o.committed_beyond && proof,
            Row::CutShort => !reached && !o.committed_beyond && !proof && o.cut_short,
            Row::SuccessorDamaged => open && unreadable && in_use,
            Row::NeverStarted => open && unreadable && !in_use,
            Row::OutOfOrder => open && !unreadable && o.later_batch && o.depth_one,
            Row::TornWindow => open && !unreadable && o.later_batch && !o.depth_one,
            Row::End => open && !unreadable && !o.later_batch,
        }
    }

    const ROWS: [Row; 9] = [
        Row::GoOn,
        Row::CommittedLost,
        Row::AcknowledgedDamaged,
        Row::CutShort,
        Row::SuccessorDamaged,
        Row::NeverStarted,
        Row::OutOfOrder,
        Row::TornWindow,
        Row::End,
    ];

    #[test]
    fn every_observation_has_exactly_one_row() {
        for o in vectors() {
            let exact: Vec<_> = ROWS.iter().filter(|row| exact(**row, &o)).collect();
            assert_eq!(exact, [&decide(&o)], "{o:?}");
        }
    }

    #[test]
    fn every_row_is_reached_and_their_shares_are_pinned() {
        let mut counts = BTreeMap::new();
        for o in vectors() {
            *counts.entry(decide(&o)).or_insert(0) += 1;
        }
        let counts: Vec<_> = counts.into_iter().collect();
        assert_eq!(
            counts,
            [
                (Row::GoOn, 32),
                (Row::CommittedLost, 160),
                (Row::AcknowledgedDamaged, 88),
                (Row::CutShort, 36),
                (Row::SuccessorDamaged, 28),
                (Row::NeverStarted, 4),
                (Row::OutOfOrder, 1),
                (Row::TornWindow, 1),
                (Row::End, 2),
            ]
        );
    }

    #[test]
    fn a_never_started_successor_leaves_a_verdict_about_its_predecessor() {
        for o in vectors()
            .into_iter()
            .filter(|o| decide(o) == Row::NeverStarted)
        {
            let again = decide(&Observation {
                successor: Successor::None,
                ..o
            });
            assert!(
                matches!(again, Row::OutOfOrder | Row::TornWindow | Row::End),
                "{o:?} -> {again:?}"
            );
        }
    }

    #[test]
    fn nothing_that_speaks_of_a_loss_ends_in_an_open_log() {
        for o in vectors() {
            let loss = o.committed_beyond
                || o.durable_witness
                || o.cut_short
                || o.successor == Successor::Beyond;
            if loss && o.successor != Successor::Reached {
                assert!(decide(&o).refuses(), "{o:?}");
            }
        }
    }
}
