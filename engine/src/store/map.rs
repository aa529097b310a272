//! Map pages: the persisted form of "which units does this checkpoint reach", copied on write like everything else.
//!
//! ```text
//! map page (one unit)   page header (kind 3; number of the map page u64 at 32) | one bit per unit
//! map index (units)     page header (kind 4; count u64 at 32) | unit u64, birth u64 of each map page
//! ```
//!
//! A checkpoint writes the map pages that changed and a new index. Map pages and index are units of the file too and
//! stand in the map themselves, so writing them changes it: `Change::settle` goes on until nothing more changes.

use std::collections::BTreeSet;

use super::alloc::{Bitmap, Extent};
use super::meta::MapIndexAt;
use super::page::{
    Addr, Geometry, HEADER, KIND_MAP, KIND_MAP_INDEX, check_identity, get_u64, put_u64, seal,
};

/// Bytes of the set that one map page holds.
pub(super) fn bytes_per_map(geo: &Geometry) -> usize {
    geo.unit_bytes - HEADER
}

fn units_per_map(geo: &Geometry) -> u64 {
    bytes_per_map(geo) as u64 * 8
}

const INDEX_ENTRY: usize = 16;

/// The map of one checkpoint.
#[derive(Clone, Default)]
pub(super) struct Map {
    pub reached: Bitmap,
    pub pages: Vec<Addr>,
    pub index: MapIndexAt,
}

/// What a checkpoint has to write for its map.
pub(super) struct Change {
    pub map: Map,
    /// Numbers of the map pages that are new.
    pub changed: Vec<usize>,
    /// Units taken for map pages and index.
    pub taken: Vec<Extent>,
    /// Units of the map pages and the index that were replaced.
    pub dropped: Vec<Extent>,
}

impl Map {
    /// The map of checkpoint `birth`, which adds `added` and drops `dropped`; map pages at or behind unit `move_from`
    /// are written anew. None when nothing changes.
    pub fn change(
        &self,
        geo: &Geometry,
        birth: u64,
        added: &[Extent],
        dropped: &[Extent],
        move_from: u64,
        alloc: &mut dyn FnMut(u32) -> Extent,
    ) -> Option<Change> {
        let far: Vec<usize> = (0..self.pages.len())
            .filter(|i| self.pages[*i].unit >= move_from)
            .collect();
        let index_far = self.index.pages > 0 && self.index.unit >= move_from;
        if added.is_empty() && dropped.is_empty() && far.is_empty() && !index_far {
            return None;
        }
        let mut change = Settling {
            geo,
            birth,
            map: self.clone(),
            dirty: far.into_iter().collect(),
            done: BTreeSet::new(),
            taken: Vec::new(),
            dropped: Vec::new(),
        };
        added.iter().for_each(|extent| change.add(*extent));
        dropped.iter().for_each(|extent| change.remove(*extent));
        Some(change.settle(alloc))
    }

    /// Image of map page `number`; `out` is one zeroed unit.
    pub fn page_image(&self, number: usize, seed: u32, out: &mut [u8]) {
        let per_map = out.len() - HEADER;
        out[4] = KIND_MAP;
        put_u64(out, 32, number as u64);
        self.reached
            .copy_bytes(number * per_map, &mut out[HEADER..]);
        seal(out, self.pages[number], seed);
    }

    /// Image of the index; `out` is zeroed and has the length of its units.
    pub fn index_image(&self, seed: u32, out: &mut [u8]) {
        out[4] = KIND_MAP_INDEX;
        put_u64(out, 32, self.pages.len() as u64);
        for (i, addr) in self.pages.iter().enumerate() {
            put_u64(out, HEADER + i * INDEX_ENTRY, addr.unit);
            put_u64(out, HEADER + i * INDEX_ENTRY + 8, addr.birth);
        }
        let addr = Addr {
            unit: self.index.unit,
            birth: self.index.birth,
        };
        seal(out, addr, seed);
    }
}

struct Settling<'a> {
    geo: &'a Geometry,
    birth: u64,
    map: Map,
    dirty: BTreeSet<usize>,
    done: BTreeSet<usize>,
    taken: Vec<Extent>,
    dropped: Vec<Extent>,
}

impl Settling<'_> {
    fn touch(&mut self, extent: Extent) {
        let per_map = units_per_map(self.geo);
        let last = extent.unit + u64::from(extent.units) - 1;
        for number in extent.unit / per_map..=last / per_map {
            if !self.done.contains(&(number as usize)) {
                self.dirty.insert(number as usize);
            }
        }
    }

    fn add(&mut self, extent: Extent) {
        let added = self.map.reached.insert(extent);
        debug_assert_eq!(
            added,
            u64::from(extent.units),
            "{extent:?} was reached already"
        );
        self.touch(extent);
    }

    /// Units that were never reached (a run freed before it was written) change nothing.
    fn remove(&mut self, extent: Extent) {
        if self.map.reached.remove(extent) > 0 {
            self.touch(extent);
        }
    }

    /// Gives every changed map page a new place.
    fn place_pages(&mut self, alloc: &mut dyn FnMut(u32) -> Extent) {
        while let Some(number) = self.dirty.pop_first() {
            self.done.insert(number);
            while self.map.pages.len() <= number {
                let missing = self.map.pages.len();
                if missing != number {
                    self.dirty.insert(missing);
                }
                self.map.pages.push(Addr { unit: 0, birth: 0 });
            }
            let old = self.map.pages[number];
            if old.unit != 0 {
                self.drop_unit(old.unit, 1);
            }
            let new = self.take_unit(1, alloc);
            self.map.pages[number] = Addr {
                unit: new.unit,
                birth: self.birth,
            };
        }
    }

    fn settle(mut self, alloc: &mut dyn FnMut(u32) -> Extent) -> Change {
        let old = self.map.index;
        if old.pages > 0 {
            self.drop_unit(old.unit, old.units);
        }
        // Images are made at the end, so the order of taking units does not matter. The index comes
        // after the pages it lists; what it takes itself may add a page, for which it has room to
        // spare, unless the allocator hands out units far beyond those reached so far.
        let mut index: Option<(Extent, usize)> = None;
        let index = loop {
            self.place_pages(alloc);
            match index {
                Some((extent, room)) if self.map.pages.len() <= room => break extent,
                Some((extent, _)) => self.drop_unit(extent.unit, extent.units),
                None => {}
            }
            let room = self.map.pages.len() + 8;
            let units = self.geo.units_for(HEADER + room * INDEX_ENTRY);
            index = Some((self.take_unit(units, alloc), room));
        };
        self.map.index = MapIndexAt {
            unit: index.unit,
            birth: self.birth,
            units: index.units,
            pages: self.map.pages.len() as u32,
        };
        Change {
            map: self.map,
            changed: self.done.into_iter().collect(),
            taken: self.taken,
            dropped: self.dropped,
        }
    }

    fn take_unit(&mut self, units: u32, alloc: &mut dyn FnMut(u32) -> Extent) -> Extent {
        let extent = alloc(units);
        self.taken.push(extent);
        self.add(extent);
        extent
    }

    fn drop_unit(&mut self, unit: u64, units: u32) {
        let extent = Extent { unit, units };
        self.dropped.push(extent);
        self.remove(extent);
    }
}

/// Reads the addresses of the map pages out of an index.
pub(super) fn check_index(
    geo: &Geometry,
    image: &[u8],
    at: MapIndexAt,
    seed: u32,
) -> Result<Vec<Addr>, String> {
    let addr = Addr {
        unit: at.unit,
        birth: at.birth,
    };
    check_identity(image, addr, seed)?;
    let count = at.pages as usize;
    if image[4] != KIND_MAP_INDEX || get_u64(image, 32) != u64::from(at.pages) {
        return Err("not the index of the allocation map".into());
    }
    if count.saturating_mul(INDEX_ENTRY).saturating_add(HEADER) > image.len() {
        return Err(format!("{count} map pages do not fit the index"));
    }
    (0..count)
        .map(|i| {
            let addr = Addr {
                unit: get_u64(image, HEADER + i * INDEX_ENTRY),
                birth: get_u64(image, HEADER + i * INDEX_ENTRY + 8),
            };
            if addr.unit < geo.first_unit || addr.birth > at.birth {
                return Err(format!(
                    "map page {i} at unit {} of checkpoint {} cannot be",
                    addr.unit, addr.birth
                ));
            }
            Ok(addr)
        })
        .collect()
}

/// Adds a map page's bits to the set.
pub(super) fn check_page(
    image: &[u8],
    number: usize,
    addr: Addr,
    seed: u32,
    set: &mut Bitmap,
) -> Result<(), String> {
    check_identity(image, addr, seed)?;
    if image[4] != KIND_MAP || get_u64(image, 32) != number as u64 {
        return Err(format!("not page {number} of the allocation map"));
    }
    set.merge_bytes(number * (image.len() - HEADER), &image[HEADER..]);
    Ok(())
}
