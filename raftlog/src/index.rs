//! Where durable entries lie: one reference per batch, not per entry; and which term each has.

use std::collections::VecDeque;

/// A batch that holds the live entries `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchRef {
    pub first: u64,
    pub last: u64,
    pub segment: u64,
    pub offset: u32,
    pub disk_bytes: u32,
    pub batch_seq: u64,
}

/// Batches in index order, without gaps or overlaps.
#[derive(Default)]
pub(crate) struct Index {
    batches: VecDeque<BatchRef>,
}

impl Index {
    /// Voids entries at and above `index`.
    pub fn truncate(&mut self, index: u64) {
        while self.batches.back().is_some_and(|b| b.first >= index) {
            self.batches.pop_back();
        }
        if let Some(last) = self.batches.back_mut() {
            last.last = last.last.min(index - 1);
        }
    }

    /// Adds the entries of a batch; those it replaces are voided.
    pub fn push(&mut self, batch: BatchRef) {
        self.truncate(batch.first);
        debug_assert!(
            self.batches
                .back()
                .is_none_or(|b| b.last + 1 == batch.first)
        );
        self.batches.push_back(batch);
    }

    /// Voids everything.
    pub fn clear(&mut self) {
        self.batches.clear();
    }

    /// Forgets batches that lie wholly below `index`.
    pub fn trim(&mut self, index: u64) {
        while self.batches.front().is_some_and(|b| b.last < index) {
            self.batches.pop_front();
        }
    }

    /// Forgets what lies in segment `seq` or an older one: entries below `first_index` that landed
    /// after they had been trimmed.
    pub fn leave(&mut self, seq: u64, first_index: u64) {
        while let Some(batch) = self.batches.front().filter(|b| b.segment <= seq) {
            assert!(
                batch.last < first_index,
                "only what was trimmed is given away"
            );
            self.batches.pop_front();
        }
    }

    /// The batch that holds `index`.
    pub fn find(&self, index: u64) -> Option<&BatchRef> {
        let at = self.batches.partition_point(|b| b.last < index);
        self.batches.get(at).filter(|b| b.first <= index)
    }
}

/// Terms as runs of equal ones, from the index before the first entry on.
pub(crate) struct Terms {
    /// (first index of the run, term), ascending.
    runs: VecDeque<(u64, u64)>,
    last: u64,
}

impl Terms {
    /// A log that holds nothing behind `index`, whose term is `term`.
    pub fn starting_after(index: u64, term: u64) -> Terms {
        Terms {
            runs: VecDeque::from([(index, term)]),
            last: index,
        }
    }

    /// Notes an entry; those at and above it are voided.
    pub fn push(&mut self, index: u64, term: u64) {
        while self.runs.back().is_some_and(|r| r.0 >= index) {
            self.runs.pop_back();
        }
        if self.runs.back().is_none_or(|r| r.1 != term) {
            self.runs.push_back((index, term));
        }
        self.last = index;
    }

    /// Forgets what is only needed below `index`.
    pub fn trim(&mut self, index: u64) {
        while self.runs.len() > 1 && self.runs[1].0 <= index {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.0 = run.0.max(index);
        }
    }

    pub fn get(&self, index: u64) -> Option<u64> {
        if index > self.last {
            return None;
        }
        let at = self.runs.partition_point(|r| r.0 <= index);
        at.checked_sub(1).map(|at| self.runs[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a plain map, under appends that replace, trims, and snapshot marks.
        #[test]
        fn terms_and_index_agree_with_a_map(
            steps in prop::collection::vec((0..8u8, 1..6u64, 1..5u64), 1..60)
        ) {
            let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            let mut terms = Terms::starting_after(0, 0);
            let mut index = Index::default();
            let (mut first, mut last, mut term) = (1u64, 0u64, 1u64);
            for (n, (what, back, count)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        first = (first + back).min(last + 1);
                        terms.trim(first - 1);
                        index.trim(first);
                        model.retain(|i, _| *i >= first);
                    }
                    1 => {
                        last += back;
                        first = last + 1;
                        term += 1;
                        terms = Terms::starting_after(last, term);
                        index.clear();
                        model.clear();
                    }
                    _ => {
                        if what > 5 { term += 1; }
                        let from = (last + 1).saturating_sub(back - 1).max(first);
                        model.split_off(&from);
                        for i in from..from + count {
                            terms.push(i, term);
                            model.insert(i, (term, n as u64));
                        }
                        last = from + count - 1;
                        index.push(BatchRef {
                            first: from, last, segment: 1, offset: 0, disk_bytes: 0,
                            batch_seq: n as u64,
                        });
                    }
                }
                for i in first..=last + 1 {
                    prop_assert_eq!(index.find(i).map(|b| b.batch_seq), model.get(&i).map(|m| m.1));
                    prop_assert_eq!(terms.get(i), model.get(&i).map(|m| m.0));
                }
            }
        }
    }
}
