//! A set of key intervals, kept as disjoint ranges, for questions of the kind "is this key covered".

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Where an interval ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Just before this key.
    Before(Bytes),
    /// Nowhere. Greater than every `Before`.
    Open,
}

impl End {
    /// The end of the interval that holds just this key.
    pub fn after(key: &Bytes) -> End {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        End::Before(end.into())
    }

    fn is_above(&self, key: &Bytes) -> bool {
        match self {
            End::Before(end) => key < end,
            End::Open => true,
        }
    }
}

/// A union of half-open intervals, start to end. Invariant: no two overlap or touch.
#[derive(Debug, Default)]
pub struct Intervals(BTreeMap<Bytes, End>);

impl Intervals {
    /// Adds `[start, end)`; an empty or inverted interval changes nothing.
    pub fn insert(&mut self, mut start: Bytes, mut end: End) {
        if !end.is_above(&start) {
            return;
        }
        while let Some((s, e)) = self.last_starting_within(&end) {
            if e != End::Open && !e.is_above(&start) && e != End::Before(start.clone()) {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    /// The interval with the greatest start that is at most `end`.
    fn last_starting_within(&self, end: &End) -> Option<(Bytes, End)> {
        let upper = match end {
            End::Before(key) => Bound::Included(key),
            End::Open => Bound::Unbounded,
        };
        let mut upto = self.0.range::<Bytes, _>((Bound::Unbounded, upper));
        upto.next_back().map(|(s, e)| (s.clone(), e.clone()))
    }

    /// Adds every interval of `other`.
    pub fn append(&mut self, other: Intervals) {
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }

    /// Whether some interval holds `key`.
    pub fn contains(&self, key: &Bytes) -> bool {
        let mut upto = self
            .0
            .range::<Bytes, _>((Bound::Unbounded, Bound::Included(key)));
        upto.next_back().is_some_and(|(_, end)| end.is_above(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The merged intervals answer as a list of all of them would.
        #[test]
        fn agrees_with_a_plain_list(
            list in prop::collection::vec((0u8..30, 0u8..32), 0..20),
            probes in prop::collection::vec(0u8..31, 1..20),
        ) {
            let key = |n: u8| Bytes::from(vec![n]);
            // 31 stands for "no end".
            let end = |n: u8| if n == 31 { End::Open } else { End::Before(key(n)) };
            let mut merged = Intervals::default();
            for &(s, e) in &list {
                merged.insert(key(s), end(e));
            }
            for p in probes {
                let expected = list.iter().any(|&(s, e)| s <= p && p < e);
                prop_assert_eq!(merged.contains(&key(p)), expected);
            }
            let kept: Vec<_> = merged.0.iter().collect();
            prop_assert!(kept.windows(2).all(|w| *w[0].1 < End::Before(w[1].0.clone())));
        }
    }
}
