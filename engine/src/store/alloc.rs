//! Which units of the file are taken, and when a dropped one may be taken again.
//!
//! The file's map pages say for a checkpoint which units it reaches, no more and no less. In memory a unit is also
//! taken while the other durable checkpoint reaches it, while a live snapshot may, or while something not yet durable
//! will be written there.
//!
//! Invariants:
//! 1. Two-checkpoint rule: units dropped by checkpoint n are handed out again only when a later checkpoint is durable
//!    (so that the one before n stays usable while n is the newest) and no snapshot older than n's is alive.
//!    Crash story: n drops unit u, u is rewritten at once, power fails, n's meta page turns out torn: the checkpoint
//!    before n is opened and finds foreign bytes in u.
//! 2. Low addresses first, so that the end of the file falls free.
//! 3. Nothing here does I/O.

use std::collections::VecDeque;

/// Adjacent units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Extent {
    pub unit: u64,
    pub units: u32,
}

/// A set of units; grows as needed.
#[derive(Clone, Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    ones: u64,
}

impl Bitmap {
    pub fn contains(&self, unit: u64) -> bool {
        let word = self.words.get((unit / 64) as usize).copied().unwrap_or(0);
        word >> (unit % 64) & 1 == 1
    }

    pub fn ones(&self) -> u64 {
        self.ones
    }

    /// Adds an extent; how many units were not in before.
    pub fn insert(&mut self, extent: Extent) -> u64 {
        let end = extent.unit + u64::from(extent.units);
        let words = end.div_ceil(64) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        let mut added = 0;
        for unit in extent.unit..end {
            let (word, bit) = (&mut self.words[(unit / 64) as usize], 1 << (unit % 64));
            added += u64::from(*word & bit == 0);
            *word |= bit;
        }
        self.ones += added;
        added
    }

    /// Takes an extent out; how many of its units were in.
    pub fn remove(&mut self, extent: Extent) -> u64 {
        let mut removed = 0;
        for unit in extent.unit..extent.unit + u64::from(extent.units) {
            if let Some(word) = self.words.get_mut((unit / 64) as usize) {
                let bit = 1 << (unit % 64);
                removed += u64::from(*word & bit != 0);
                *word &= !bit;
            }
        }
        self.ones -= removed;
        removed
    }

    /// Unit behind the last one in the set.
    pub fn end(&self) -> u64 {
        match self.words.iter().rposition(|word| *word != 0) {
            Some(i) => i as u64 * 64 + 64 - u64::from(self.words[i].leading_zeros()),
            None => 0,
        }
    }

    /// First run of `units` absent units at or behind `from`; it may lie behind everything.
    pub fn find_gap(&self, from: u64, units: u32) -> u64 {
        let (mut start, mut at) = (from, from);
        let limit = self.words.len() as u64 * 64;
        while at < limit && at - start < u64::from(units) {
            let word = self.words[(at / 64) as usize] >> (at % 64);
            let left = 64 - at % 64;
            if word == 0 {
                at += left;
            } else if word & 1 == 0 {
                at += u64::from(word.trailing_zeros());
            } else {
                at += u64::from(word.trailing_ones()).min(left);
                start = at;
            }
        }
        start
    }

    /// Bytes `[from, from + out.len())` of the set, eight units to a byte.
    pub fn copy_bytes(&self, from: usize, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            let at = from + i;
            let word = self.words.get(at / 8).copied().unwrap_or(0);
            *byte = (word >> (at % 8 * 8)) as u8;
        }
    }

    /// Adds the units whose bits are set in `bytes`, which begins at byte `from` of the set.
    pub fn merge_bytes(&mut self, from: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            let at = from + i;
            if self.words.len() <= at / 8 {
                self.words.resize(at / 8 + 1, 0);
            }
            let add = u64::from(*byte) << (at % 8 * 8);
            self.ones += u64::from((add & !self.words[at / 8]).count_ones());
            self.words[at / 8] |= add;
        }
    }

    /// All units in the set as extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut at = 0;
        let end = self.end();
        std::iter::from_fn(move || {
            while at < end && !self.contains(at) {
                at += 1;
            }
            let unit = at;
            while at < end && self.contains(at) {
                at += 1;
            }
            (at > unit).then(|| Extent {
                unit,
                units: (at - unit) as u32,
            })
        })
    }

    /// The first unit that is in one set and not in the other.
    pub fn first_difference(&self, other: &Bitmap) -> Option<u64> {
        let words = self.words.len().max(other.words.len());
        (0..words).find_map(|i| {
            let a = self.words.get(i).copied().unwrap_or(0);
            let b = other.words.get(i).copied().unwrap_or(0);
            (a != b).then(|| i as u64 * 64 + u64::from((a ^ b).trailing_zeros()))
        })
    }
}

/// Units that a checkpoint no longer reaches.
struct Dropped {
    checkpoint: u64,
    /// Publish number of the state the checkpoint wrote.
    publish: u64,
    extents: Vec<Extent>,
}

/// Requests of this many units and more share one search hint.
const HINTS: usize = 16;

/// The allocator.
pub(super) struct Alloc {
    taken: Bitmap,
    first: u64,
    /// For requests of i + 1 units: no gap that long begins before this unit.
    hints: [u64; HINTS],
    waiting: VecDeque<Dropped>,
    pending_units: u64,
    /// Negative control: breaks the two-checkpoint rule.
    #[cfg(test)]
    pub reuse_early: bool,
}

impl Alloc {
    /// `taken`: what the newest durable checkpoint reaches; `older`: what the one before it does, if it is usable.
    pub fn new(first: u64, reached: &Bitmap, checkpoint: u64, older: Option<&Bitmap>) -> Alloc {
        let mut taken = reached.clone();
        taken.insert(Extent {
            unit: 0,
            units: first as u32,
        });
        let mut extents = Vec::new();
        for extent in older.into_iter().flat_map(Bitmap::extents) {
            for unit in extent.unit..extent.unit + u64::from(extent.units) {
                let one = Extent { unit, units: 1 };
                if taken.insert(one) == 1 {
                    extents.push(one);
                }
            }
        }
        let pending_units = extents.len() as u64;
        Alloc {
            taken,
            first,
            hints: [first; HINTS],
            waiting: VecDeque::from([Dropped {
                checkpoint,
                publish: 0,
                extents,
            }]),
            pending_units,
            #[cfg(test)]
            reuse_early: false,
        }
    }

    /// Takes `units` adjacent units, as low as can be.
    pub fn take(&mut self, units: u32) -> Extent {
        let unit = self.lowest_gap(units);
        self.take_at(unit, units)
    }

    /// Takes `units` adjacent units that end at or before unit `below`, as low as can be.
    pub fn take_below(&mut self, units: u32, below: u64) -> Option<Extent> {
        let unit = self.lowest_gap(units);
        (unit + u64::from(units) <= below).then(|| self.take_at(unit, units))
    }

    /// How many gaps of `units` end at or before unit `below`, counted up to `max`.
    pub fn gaps_below(&self, units: u32, below: u64, max: u64) -> u64 {
        let (mut gaps, mut from) = (0, self.first);
        while gaps < max {
            let unit = self.taken.find_gap(from, units);
            from = unit + u64::from(units);
            if from > below {
                break;
            }
            gaps += 1;
        }
        gaps
    }

    /// Whether a gap of `units` ends at or before unit `below`.
    pub fn has_gap_below(&self, units: u32, below: u64) -> bool {
        self.lowest_gap(units) + u64::from(units) <= below
    }

    fn lowest_gap(&self, units: u32) -> u64 {
        let hint = (units as usize).clamp(1, HINTS) - 1;
        self.taken.find_gap(self.hints[hint], units)
    }

    /// Takes the lowest gap.
    fn take_at(&mut self, unit: u64, units: u32) -> Extent {
        let hint = (units as usize).clamp(1, HINTS) - 1;
        let extent = Extent { unit, units };
        self.taken.insert(extent);
        // Gaps for longer requests do not begin before this one either. The last hint stands for many lengths, so a
        // request that uses it proves nothing for shorter ones.
        if hint < HINTS - 1 {
            for longer in &mut self.hints[hint..] {
                *longer = (*longer).max(unit);
            }
            self.hints[hint] = unit + u64::from(units);
        }
        extent
    }

    /// Gives back units that nothing durable and no snapshot ever reached.
    pub fn give_back(&mut self, extent: Extent) {
        debug_assert!(extent.unit >= self.first);
        let removed = self.taken.remove(extent);
        debug_assert_eq!(removed, u64::from(extent.units), "units given back twice");
        for (i, hint) in self.hints.iter_mut().enumerate() {
            *hint = (*hint).min(extent.unit.saturating_sub(i as u64).max(self.first));
        }
        if let Some(last) = self.hints.last_mut() {
            *last = self.first;
        }
    }

    /// Notes what a checkpoint, now durable, dropped.
    pub fn drop_later(&mut self, checkpoint: u64, publish: u64, extents: Vec<Extent>) {
        self.pending_units += extents
            .iter()
            .map(|extent| u64::from(extent.units))
            .sum::<u64>();
        self.waiting.push_back(Dropped {
            checkpoint,
            publish,
            extents,
        });
    }

    /// Makes free what may be: `durable` is the newest durable checkpoint, `oldest_pin` the publish number of the
    /// oldest live snapshot. Returns what was freed.
    pub fn reclaim(&mut self, durable: u64, oldest_pin: Option<u64>) -> Vec<Extent> {
        let mut freed = Vec::new();
        #[cfg(test)]
        let durable = durable + u64::from(self.reuse_early);
        while let Some(front) = self.waiting.front() {
            if front.checkpoint >= durable || oldest_pin.is_some_and(|pin| pin < front.publish) {
                break;
            }
            let dropped = self
                .waiting
                .pop_front()
                .map(|dropped| dropped.extents)
                .unwrap_or_default();
            for extent in dropped {
                self.pending_units -= u64::from(extent.units);
                self.give_back(extent);
                freed.push(extent);
            }
        }
        freed
    }

    /// Unit behind the last taken one.
    pub fn high_water(&self) -> u64 {
        self.taken.end()
    }

    pub fn taken_units(&self) -> u64 {
        self.taken.ones()
    }

    pub fn pending_units(&self) -> u64 {
        self.pending_units
    }

    pub fn is_taken(&self, unit: u64) -> bool {
        self.taken.contains(unit)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn units(extent: Extent) -> impl Iterator<Item = u64> {
        extent.unit..extent.unit + u64::from(extent.units)
    }

    /// Random takes, drops, checkpoints and pins against plain sets: never a unit twice, never one that a durable
    /// checkpoint or a pinned state reaches, always the lowest gap, and everything comes back in the end.
    #[test]
    fn random_histories_agree_with_sets() {
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut alloc = Alloc::new(10, &Bitmap::default(), 0, None);
            // Units in use by the working state; by each durable checkpoint; by pinned states, with their number.
            let mut working: Vec<Extent> = Vec::new();
            let mut dropped: Vec<Extent> = Vec::new();
            let (mut newest, mut older) = (BTreeSet::new(), BTreeSet::new());
            let mut pins: Vec<(u64, BTreeSet<u64>)> = Vec::new();
            let (mut checkpoint, mut publish) = (0, 0);
            for _ in 0..400 {
                match rng.gen_range(0..10) {
                    0..=4 => {
                        let wanted = [1, 2, 2, 2, 3, 9, 20, 40][rng.gen_range(0..8)];
                        let extent = alloc.take(wanted);
                        let pinned =
                            |unit: &u64| pins.iter().any(|(_, units)| units.contains(unit));
                        let mut free = units(extent);
                        assert!(free.all(|unit| unit >= 10
                            && !newest.contains(&unit)
                            && !older.contains(&unit)
                            && !pinned(&unit)));
                        assert!(working.iter().all(|other| {
                            units(*other).all(|unit| !units(extent).any(|u| u == unit))
                        }));
                        for start in 10..extent.unit {
                            assert!(
                                (start..start + u64::from(wanted)).any(|unit| alloc.is_taken(unit)),
                                "{start} was free"
                            );
                        }
                        working.push(extent);
                    }
                    5..=6 if !working.is_empty() => {
                        let extent = working.swap_remove(rng.gen_range(0..working.len()));
                        let reached = units(extent).any(|unit| newest.contains(&unit));
                        match reached || pins.iter().any(|(_, set)| set.contains(&extent.unit)) {
                            true => dropped.push(extent),
                            false => alloc.give_back(extent),
                        }
                    }
                    7 => {
                        publish += 1;
                        let set = working.iter().flat_map(|extent| units(*extent)).collect();
                        pins.push((publish, set));
                        if pins.len() > 3 {
                            pins.remove(rng.gen_range(0..3));
                        }
                    }
                    _ => {
                        publish += 1;
                        checkpoint += 1;
                        older = std::mem::replace(
                            &mut newest,
                            working.iter().flat_map(|extent| units(*extent)).collect(),
                        );
                        alloc.drop_later(checkpoint, publish, std::mem::take(&mut dropped));
                        let oldest = pins.iter().map(|(number, _)| *number).min();
                        alloc.reclaim(checkpoint, oldest);
                    }
                }
            }
            pins.clear();
            for extent in working.drain(..) {
                dropped.push(extent);
            }
            for _ in 0..2 {
                checkpoint += 1;
                publish += 1;
                alloc.drop_later(checkpoint, publish, std::mem::take(&mut dropped));
                alloc.reclaim(checkpoint, None);
            }
            assert_eq!(
                (
                    alloc.high_water(),
                    alloc.taken_units(),
                    alloc.pending_units()
                ),
                (10, 10, 0)
            );
        }
    }

    #[test]
    fn what_the_older_checkpoint_reaches_waits_for_the_next() {
        let (mut newest, mut older) = (Bitmap::default(), Bitmap::default());
        newest.insert(Extent { unit: 20, units: 4 });
        older.insert(Extent { unit: 18, units: 4 });
        let mut alloc = Alloc::new(10, &newest, 7, Some(&older));
        assert_eq!(alloc.take(8).unit, 10);
        assert_eq!(alloc.take(2).unit, 24);
        assert_eq!(alloc.pending_units(), 2);
        assert_eq!(alloc.reclaim(7, None), []);
        assert_eq!(alloc.reclaim(8, None).len(), 2);
        assert_eq!(alloc.take(2).unit, 18);
    }

    #[test]
    fn bytes_and_back() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut set = Bitmap::default();
        for _ in 0..200 {
            let unit = rng.gen_range(0..5000);
            set.insert(Extent {
                unit,
                units: rng.gen_range(1..40),
            });
            set.remove(Extent {
                unit: rng.gen_range(0..5200),
                units: rng.gen_range(1..40),
            });
        }
        let mut copy = Bitmap::default();
        for page in (0..700).step_by(58).rev() {
            let mut bytes = [0; 58];
            set.copy_bytes(page, &mut bytes);
            copy.merge_bytes(page, &bytes);
        }
        assert_eq!(copy.first_difference(&set), None);
        assert_eq!(copy.ones(), set.ones());
        assert_eq!(
            set.extents()
                .map(|extent| u64::from(extent.units))
                .sum::<u64>(),
            set.ones()
        );
        let first = set.extents().next().unwrap();
        copy.remove(Extent {
            unit: first.unit,
            units: 1,
        });
        assert_eq!(copy.first_difference(&set), Some(first.unit));
    }
}
