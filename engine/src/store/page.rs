//! Tree pages: byte layout, borrowed views, changes in place, and the check that turns bytes from disk into a page.
//!
//! ```text
//! header (48)  crc u32 | kind u8 level u8 tree u8 flags u8 | unit u64 | birth u64 | n u16 heap u16 prefix u16 waste u16
//!              | live u64 | hint u16 | zero
//! then         prefix bytes | slots (8 each, growing up) ... free ... cells (growing down to `heap`)
//! slot         cell offset u16 | key bytes u16 (bit 15: long key) | head u32 (first key bytes, big endian)
//! leaf cell    value bytes u16 | flags u8 | key | value
//! inner cell   child unit u48 | child birth u48 | live entries below u48 | key
//! long key     first `Geometry::key_head` bytes | reference of the run that holds the whole key
//! ```
//!
//! All numbers are little endian but `head`, which is stored as a number whose order is the order of the key bytes.
//! Keys in slots lack the page's prefix. The key of an inner page's slot 0 is never looked at and stored empty.
//!
//! Invariants:
//! 1. `check` accepts or refuses any bytes without panicking; an accepted page is safe for every function here.
//! 2. Keys ascend strictly; two long keys with equal heads are ordered by their runs, which `check` cannot see.
//! 3. `waste` is exactly what cells between `heap` and the end do not use; `live` is what the entries add up to.
//! 4. An inline key has at most `key_inline_max` bytes, so two entries always fit a page, and any page that
//!    overflows by one entry can be divided in two that fit (see `cells`).

use std::cmp::Ordering;

use bytes::Bytes;

use super::error::Result;
use super::types::{LIVE, RunRef, TreeId};

pub(super) const HEADER: usize = 48;
pub(super) const SLOT: usize = 8;
pub(super) const LEAF_CELL: usize = 3;
pub(super) const INNER_CELL: usize = 18;
const LONG: u16 = 0x8000;

pub(super) const KIND_LEAF: u8 = 1;
pub(super) const KIND_INNER: u8 = 2;
pub(super) const KIND_MAP: u8 = 3;
pub(super) const KIND_MAP_INDEX: u8 = 4;
pub(super) const KIND_RUN: u8 = 5;

const U48_MAX: u64 = (1 << 48) - 1;

/// Sizes that follow from the page size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    pub page_bytes: usize,
    pub unit_bytes: usize,
    pub units_per_page: u32,
    /// Longest key stored whole in a page.
    pub key_inline_max: usize,
    /// Bytes of a long key that stand in the page.
    pub key_head: usize,
    pub value_max: usize,
    /// First unit behind the two meta blocks.
    pub first_unit: u64,
}

/// The meta pages live in the first two blocks of this size.
pub(super) const META_BLOCK: u64 = 64 << 10;

impl Geometry {
    /// None when the page size is not one the format has.
    pub fn new(page_bytes: usize) -> Option<Geometry> {
        if !page_bytes.is_power_of_two() || !(512..=32768).contains(&page_bytes) {
            return None;
        }
        let unit_bytes = page_bytes.min(4096);
        let key_inline_max = page_bytes / 8;
        Some(Geometry {
            page_bytes,
            unit_bytes,
            units_per_page: (page_bytes / unit_bytes) as u32,
            key_inline_max,
            key_head: key_inline_max - RunRef::BYTES,
            value_max: page_bytes / 4,
            first_unit: 2 * META_BLOCK / unit_bytes as u64,
        })
    }

    pub fn capacity(&self) -> usize {
        self.page_bytes - HEADER
    }

    pub fn offset(&self, unit: u64) -> u64 {
        unit.saturating_mul(self.unit_bytes as u64)
    }

    pub fn units_for(&self, bytes: usize) -> u32 {
        bytes.div_ceil(self.unit_bytes) as u32
    }
}

/// Where a page lies and which checkpoint wrote it: its identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Addr {
    pub unit: u64,
    pub birth: u64,
}

/// What an inner page says of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Child {
    pub addr: Addr,
    pub live: u64,
}

#[inline]
pub(super) fn get_u16(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

#[inline]
pub(super) fn get_u32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline]
pub(super) fn get_u48(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes([
        b[at],
        b[at + 1],
        b[at + 2],
        b[at + 3],
        b[at + 4],
        b[at + 5],
        0,
        0,
    ])
}

#[inline]
pub(super) fn get_u64(b: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(word)
}

pub(super) fn put_u16(b: &mut [u8], at: usize, v: u16) {
    b[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

pub(super) fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

pub(super) fn put_u48(b: &mut [u8], at: usize, v: u64) {
    debug_assert!(v <= U48_MAX);
    b[at..at + 6].copy_from_slice(&v.to_le_bytes()[..6]);
}

pub(super) fn put_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

#[inline]
pub(super) fn head_of(key: &[u8]) -> u32 {
    match key {
        [a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
        _ => {
            let mut word = [0; 4];
            word[..key.len()].copy_from_slice(key);
            u32::from_be_bytes(word)
        }
    }
}

/// Length of the longest common prefix.
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// CRC-32 of everything behind the checksum field, seeded with the file's identity.
pub(super) fn page_crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&bytes[4..]);
    hasher.finalize()
}

/// Writes address, birth and checksum into a page image.
pub(super) fn seal(bytes: &mut [u8], addr: Addr, seed: u32) {
    put_u64(bytes, 8, addr.unit);
    put_u64(bytes, 16, addr.birth);
    let crc = page_crc(seed, bytes);
    put_u32(bytes, 0, crc);
}

/// Checks what every page has: checksum, kind, own address, birth.
pub(super) fn check_identity(bytes: &[u8], addr: Addr, seed: u32) -> Result<(), String> {
    if bytes.len() < HEADER {
        return Err("shorter than a page header".into());
    }
    let (stored, computed) = (get_u32(bytes, 0), page_crc(seed, bytes));
    if stored != computed {
        return Err(format!(
            "checksum is {computed:#010x}, the page says {stored:#010x}"
        ));
    }
    let found = Addr {
        unit: get_u64(bytes, 8),
        birth: get_u64(bytes, 16),
    };
    if found != addr {
        return Err(format!(
            "page of unit {} and checkpoint {} found where unit {} and checkpoint {} belongs: a lost or misdirected write",
            found.unit, found.birth, addr.unit, addr.birth
        ));
    }
    Ok(())
}

/// Reads the whole of a long key.
pub(super) trait LongKeys {
    fn long_key(&self, run: RunRef) -> Result<Bytes>;
}

/// A checked page, borrowed.
#[derive(Clone, Copy)]
pub(super) struct Page<'a>(pub &'a [u8]);

struct Slot {
    off: usize,
    klen: usize,
    long: bool,
    head: u32,
}

impl<'a> Page<'a> {
    #[inline]
    pub fn is_leaf(self) -> bool {
        self.0[4] == KIND_LEAF
    }

    #[inline]
    pub fn level(self) -> u8 {
        self.0[5]
    }

    #[inline]
    pub fn tree(self) -> u8 {
        self.0[6]
    }

    #[inline]
    pub fn len(self) -> usize {
        get_u16(self.0, 24) as usize
    }

    #[inline]
    fn heap(self) -> usize {
        get_u16(self.0, 26) as usize
    }

    #[inline]
    fn prefix_len(self) -> usize {
        get_u16(self.0, 28) as usize
    }

    fn waste(self) -> usize {
        get_u16(self.0, 30) as usize
    }

    /// Live entries in and below this page.
    #[inline]
    pub fn live(self) -> u64 {
        get_u64(self.0, 32)
    }

    /// Slot of the last insertion, to recognise ascending inserts.
    #[inline]
    pub fn hint(self) -> usize {
        get_u16(self.0, 40) as usize
    }

    #[inline]
    pub fn prefix(self) -> &'a [u8] {
        &self.0[HEADER..HEADER + self.prefix_len()]
    }

    /// Bytes in use behind the header.
    pub fn used(self) -> usize {
        self.prefix_len() + self.len() * SLOT + (self.0.len() - self.heap()) - self.waste()
    }

    fn slots_end(self) -> usize {
        HEADER + self.prefix_len() + self.len() * SLOT
    }

    #[inline]
    fn slot(self, i: usize) -> Slot {
        let at = HEADER + self.prefix_len() + i * SLOT;
        let word = get_u64(self.0, at);
        let klen = (word >> 16) as u16;
        Slot {
            off: (word & 0xffff) as usize,
            klen: (klen & !LONG) as usize,
            long: klen & LONG != 0,
            head: (word >> 32) as u32,
        }
    }

    #[inline]
    fn fixed(self) -> usize {
        if self.is_leaf() {
            LEAF_CELL
        } else {
            INNER_CELL
        }
    }

    fn cell_len(self, i: usize) -> usize {
        let s = self.slot(i);
        let value = if self.is_leaf() {
            get_u16(self.0, s.off) as usize
        } else {
            0
        };
        self.fixed() + s.klen + if s.long { RunRef::BYTES } else { 0 } + value
    }

    /// Bytes that slot `i` and its cell take.
    pub fn slot_bytes(self, i: usize) -> usize {
        SLOT + self.cell_len(i)
    }

    /// Bytes that a child with a key of this length behind the prefix takes.
    pub fn child_bytes(self, suffix: usize, long: bool) -> usize {
        SLOT + INNER_CELL + suffix + if long { RunRef::BYTES } else { 0 }
    }

    /// The key of slot `i` without the prefix; of a long key its head only.
    #[inline]
    pub fn suffix(self, i: usize) -> &'a [u8] {
        let s = self.slot(i);
        let at = s.off + self.fixed();
        &self.0[at..at + s.klen]
    }

    /// All of slot `i` of a leaf at once.
    #[inline]
    pub fn entry(self, i: usize) -> LeafEntry<'a> {
        let s = self.slot(i);
        let cell = &self.0[s.off..];
        let value_len = get_u16(cell, 0) as usize;
        let key_end = LEAF_CELL + s.klen;
        let value_at = key_end + if s.long { RunRef::BYTES } else { 0 };
        LeafEntry {
            suffix: &cell[LEAF_CELL..key_end],
            long: s.long,
            flags: cell[2],
            value_at: s.off + value_at,
            value_len,
        }
    }

    /// Asks the processor for the cell of slot `i`, if there is one.
    #[inline]
    pub fn fetch_soon(self, i: usize) {
        /// As far as a cell of common size reaches.
        const BYTES: usize = 384;
        if i < self.len() {
            let off = self.slot(i).off;
            super::prefetch::soon(&self.0[off..self.0.len().min(off + BYTES)]);
        }
    }

    /// The run that holds the key of slot `i`, when it is a long one.
    pub fn long(self, i: usize) -> Option<RunRef> {
        let s = self.slot(i);
        s.long.then(|| self.run_at(s.off + self.fixed() + s.klen))
    }

    fn run_at(self, at: usize) -> RunRef {
        let mut bytes = [0; RunRef::BYTES];
        bytes.copy_from_slice(&self.0[at..at + RunRef::BYTES]);
        RunRef::from_bytes(&bytes)
    }

    #[inline]
    pub fn flags(self, i: usize) -> u8 {
        self.0[self.slot(i).off + 2]
    }

    #[inline]
    pub fn value(self, i: usize) -> &'a [u8] {
        let s = self.slot(i);
        let at = s.off + LEAF_CELL + s.klen + if s.long { RunRef::BYTES } else { 0 };
        &self.0[at..at + get_u16(self.0, s.off) as usize]
    }

    #[inline]
    pub fn child(self, i: usize) -> Child {
        let off = self.slot(i).off;
        Child {
            addr: Addr {
                unit: get_u48(self.0, off),
                birth: get_u48(self.0, off + 6),
            },
            live: get_u48(self.0, off + 12),
        }
    }

    #[inline]
    pub fn child_live(self, i: usize) -> u64 {
        get_u48(self.0, self.slot(i).off + 12)
    }

    /// Appends the whole key of slot `i` to `out`.
    pub fn key_into(self, i: usize, keys: &dyn LongKeys, out: &mut Vec<u8>) -> Result<()> {
        match self.long(i) {
            Some(run) => out.extend_from_slice(&keys.long_key(run)?),
            None => {
                out.extend_from_slice(self.prefix());
                out.extend_from_slice(self.suffix(i));
            }
        }
        Ok(())
    }

    /// First slot from `from` on whose key is not below `key`, and whether it is that key.
    pub fn search(self, from: usize, key: &[u8], keys: &dyn LongKeys) -> Result<(usize, bool)> {
        let n = self.len();
        let prefix = self.prefix();
        if !key.starts_with(prefix) {
            // All keys share the prefix, so they lie all before or all behind the key looked for.
            return Ok(if prefix < key {
                (n.max(from), false)
            } else {
                (from, false)
            });
        }
        let rest = &key[prefix.len()..];
        let head = head_of(rest);
        let (mut low, mut high) = (from, n);
        while low < high {
            let mid = (low + high) / 2;
            match self.compare(mid, head, rest, keys)? {
                Ordering::Less => low = mid + 1,
                Ordering::Greater => high = mid,
                Ordering::Equal => return Ok((mid, true)),
            }
        }
        Ok((low, false))
    }

    /// Order of the key in slot `i` against prefix + `rest`.
    #[inline]
    fn compare(self, i: usize, head: u32, rest: &[u8], keys: &dyn LongKeys) -> Result<Ordering> {
        let s = self.slot(i);
        if s.long {
            return self.compare_long(i, rest, keys);
        }
        Ok(s.head.cmp(&head).then_with(|| self.suffix(i).cmp(rest)))
    }

    fn compare_long(self, i: usize, rest: &[u8], keys: &dyn LongKeys) -> Result<Ordering> {
        let stored = self.suffix(i);
        if rest.len() <= stored.len() {
            // The stored key goes on behind its head, so equal heads mean that it is the longer one.
            return Ok(stored.cmp(rest).then(Ordering::Greater));
        }
        match stored.cmp(&rest[..stored.len()]) {
            Ordering::Equal => {}
            other => return Ok(other),
        }
        let Some(run) = self.long(i) else {
            return Ok(Ordering::Equal);
        };
        let whole = keys.long_key(run)?;
        let seen = self.prefix_len() + stored.len();
        Ok(whole
            .get(seen..)
            .unwrap_or_default()
            .cmp(&rest[stored.len()..]))
    }

    /// The child of an inner page whose range holds `key`.
    pub fn child_for(self, key: &[u8], keys: &dyn LongKeys) -> Result<usize> {
        let (i, found) = self.search(1, key, keys)?;
        Ok(if found { i } else { i - 1 })
    }

    /// Checks bytes read from disk. Says what is wrong with them.
    pub fn check(
        bytes: &'a [u8],
        geo: &Geometry,
        addr: Addr,
        seed: u32,
    ) -> Result<Page<'a>, String> {
        if bytes.len() != geo.page_bytes {
            return Err(format!(
                "{} bytes instead of {}",
                bytes.len(),
                geo.page_bytes
            ));
        }
        check_identity(bytes, addr, seed)?;
        let page = Page(bytes);
        page.check_body(geo)?;
        if !page.is_leaf() {
            (0..page.len()).try_for_each(|i| page.check_child(geo, i))?;
        }
        Ok(page)
    }

    /// Checks everything but identity and the addresses of children, which a page in memory does not have yet.
    pub fn check_body(self, geo: &Geometry) -> Result<(), String> {
        self.check_header(geo)?;
        let leaf = self.is_leaf();
        let (mut cells, mut live) = (0usize, 0u64);
        for i in 0..self.len() {
            cells += self.check_slot(geo, i)?;
            live += if leaf {
                u64::from(self.flags(i) & LIVE)
            } else {
                self.child_live(i)
            };
            let first = if leaf { 0 } else { 1 };
            if i > first {
                self.check_order(i)?;
            }
        }
        let heap_bytes = self.0.len() - self.heap();
        if cells + self.waste() != heap_bytes {
            return Err(format!(
                "cells of {cells} and waste of {} bytes do not fill a heap of {heap_bytes}",
                self.waste()
            ));
        }
        if live != self.live() {
            return Err(format!(
                "{live} live entries, the page says {}",
                self.live()
            ));
        }
        Ok(())
    }

    fn check_header(self, geo: &Geometry) -> Result<(), String> {
        let leaf = match self.0[4] {
            KIND_LEAF => true,
            KIND_INNER => false,
            kind => return Err(format!("kind {kind} is not a tree page")),
        };
        if leaf != (self.level() == 0) || self.level() > 48 {
            return Err(format!("level {} does not go with its kind", self.level()));
        }
        if self.tree() as usize >= TreeId::ALL.len() {
            return Err(format!("tree {} does not exist", self.tree()));
        }
        if self.len() == 0 || self.prefix_len() > geo.key_inline_max {
            return Err(format!(
                "{} entries, prefix of {} bytes",
                self.len(),
                self.prefix_len()
            ));
        }
        if self.slots_end() > self.heap() || self.heap() > geo.page_bytes {
            return Err(format!(
                "slots end at {}, cells begin at {}",
                self.slots_end(),
                self.heap()
            ));
        }
        Ok(())
    }

    /// Bounds of slot and cell `i`; their length.
    fn check_slot(self, geo: &Geometry, i: usize) -> Result<usize, String> {
        let s = self.slot(i);
        let key_bytes = self.prefix_len() + s.klen;
        let fixed_end = s.off + self.fixed() + s.klen + if s.long { RunRef::BYTES } else { 0 };
        if s.off < self.heap() || fixed_end > self.0.len() {
            return Err(format!("cell {i} at {} is outside of the heap", s.off));
        }
        let len = self.cell_len(i);
        if s.off + len > self.0.len() {
            return Err(format!(
                "cell {i} at {} of {len} bytes is outside of the heap",
                s.off
            ));
        }
        let first_child = i == 0 && !self.is_leaf();
        if first_child && (s.klen != 0 || s.long) {
            return Err("the first child has a key".into());
        }
        if s.long {
            let run = self.run_at(s.off + self.fixed() + s.klen);
            if key_bytes != geo.key_head
                || (run.len as usize) <= geo.key_inline_max
                || run.unit < geo.first_unit
            {
                return Err(format!(
                    "long key {i} of {} bytes has a head of {key_bytes}",
                    run.len
                ));
            }
        } else if key_bytes > geo.key_inline_max && !first_child {
            return Err(format!(
                "key {i} of {key_bytes} bytes is too long for a page"
            ));
        }
        if s.head != head_of(self.suffix(i)) {
            return Err(format!("head of key {i} is not its beginning"));
        }
        if self.is_leaf() && self.value(i).len() > geo.value_max {
            return Err(format!("value {i} is too long for a page"));
        }
        Ok(len)
    }

    fn check_child(self, geo: &Geometry, i: usize) -> Result<(), String> {
        let child = self.child(i);
        let (unit, birth) = (get_u64(self.0, 8), get_u64(self.0, 16));
        if child.addr.unit < geo.first_unit || child.addr.unit == unit || child.addr.birth > birth {
            return Err(format!(
                "child {i} at unit {} of checkpoint {} cannot be",
                child.addr.unit, child.addr.birth
            ));
        }
        Ok(())
    }

    /// A long key is known by its head only: where that is all that two keys differ in, nothing can be said here.
    fn check_order(self, i: usize) -> Result<(), String> {
        let (a, b) = (self.suffix(i - 1), self.suffix(i));
        let fine = match (self.slot(i - 1).long, self.slot(i).long) {
            (false, false) => a < b,
            (true, false) if b.len() <= a.len() => a < b,
            (true, false) => *a <= b[..a.len()],
            (false, true) => a[..a.len().min(b.len())] <= *b,
            (true, true) => a <= b,
        };
        if fine {
            return Ok(());
        }
        Err(format!("keys {} and {i} are not in order", i - 1))
    }
}

/// An entry of a leaf, taken apart once.
pub(super) struct LeafEntry<'a> {
    /// The key without the page's prefix; of a long key its head only.
    pub suffix: &'a [u8],
    pub long: bool,
    pub flags: u8,
    /// Where in the page the value lies.
    pub value_at: usize,
    pub value_len: usize,
}

/// A key as a page stores it: whole, or the head and the run that holds all of it.
#[derive(Clone, Copy)]
pub(super) struct StoredKey<'a> {
    pub bytes: &'a [u8],
    pub long: Option<RunRef>,
}

/// Changes in place. The page must be one this process built or checked, and not published.
pub(super) struct PageMut<'a>(pub &'a mut [u8]);

impl PageMut<'_> {
    /// Makes an empty page.
    pub fn init(&mut self, tree: u8, level: u8) {
        let bytes = &mut *self.0;
        bytes[..HEADER].fill(0);
        bytes[4] = if level == 0 { KIND_LEAF } else { KIND_INNER };
        bytes[5] = level;
        bytes[6] = tree;
        put_u16(bytes, 26, bytes.len() as u16);
    }

    fn view(&self) -> Page<'_> {
        Page(self.0)
    }

    fn set_waste(&mut self, waste: usize) {
        put_u16(self.0, 30, waste as u16);
    }

    pub fn set_live(&mut self, live: u64) {
        put_u64(self.0, 32, live);
    }

    pub fn put_slot(&mut self, i: usize, off: usize, klen: usize, long: bool, head: u32) {
        let at = HEADER + self.view().prefix_len() + i * SLOT;
        put_u16(self.0, at, off as u16);
        put_u16(self.0, at + 2, klen as u16 | if long { LONG } else { 0 });
        put_u32(self.0, at + 4, head);
    }

    /// Room for a cell and, with `slot`, a slot; packs the heap when only waste stands in the way.
    fn make_room(&mut self, cell: usize, slot: bool) -> bool {
        let need = cell + if slot { SLOT } else { 0 };
        let free = self.view().heap() - self.view().slots_end();
        if free >= need {
            return true;
        }
        if free + self.view().waste() < need {
            return false;
        }
        self.pack();
        true
    }

    /// Moves all cells to the end of the page, without holes.
    fn pack(&mut self) {
        let old = self.0.to_vec();
        let page = Page(&old);
        let mut heap = old.len();
        for i in 0..page.len() {
            let (s, len) = (page.slot(i), page.cell_len(i));
            heap -= len;
            self.0[heap..heap + len].copy_from_slice(&old[s.off..s.off + len]);
            self.put_slot(i, heap, s.klen, s.long, s.head);
        }
        put_u16(self.0, 26, heap as u16);
        self.set_waste(0);
    }

    /// Takes `len` bytes of the heap; the caller made room.
    fn take_cell(&mut self, len: usize) -> usize {
        let off = self.view().heap() - len;
        put_u16(self.0, 26, off as u16);
        off
    }

    fn open_slot(&mut self, i: usize) {
        let n = self.view().len();
        let base = HEADER + self.view().prefix_len();
        self.0
            .copy_within(base + i * SLOT..base + n * SLOT, base + (i + 1) * SLOT);
        put_u16(self.0, 24, (n + 1) as u16);
        put_u16(self.0, 40, i as u16);
    }

    pub fn write_key(&mut self, at: usize, suffix: &[u8], long: Option<RunRef>) -> usize {
        self.0[at..at + suffix.len()].copy_from_slice(suffix);
        let end = at + suffix.len();
        match long {
            Some(run) => {
                self.0[end..end + RunRef::BYTES].copy_from_slice(&run.to_bytes());
                end + RunRef::BYTES
            }
            None => end,
        }
    }

    /// Puts an entry into slot `i` of a leaf. False, and nothing done, when it does not fit as the page is.
    pub fn leaf_insert(&mut self, i: usize, key: StoredKey<'_>, flags: u8, value: &[u8]) -> bool {
        let prefix_len = self.view().prefix_len();
        if !key.bytes.starts_with(self.view().prefix()) {
            return false;
        }
        let suffix = &key.bytes[prefix_len..];
        let long_bytes = if key.long.is_some() { RunRef::BYTES } else { 0 };
        let cell = LEAF_CELL + suffix.len() + long_bytes + value.len();
        if !self.make_room(cell, true) {
            return false;
        }
        let off = self.take_cell(cell);
        self.open_slot(i);
        self.put_slot(i, off, suffix.len(), key.long.is_some(), head_of(suffix));
        put_u16(self.0, off, value.len() as u16);
        self.0[off + 2] = flags;
        let at = self.write_key(off + LEAF_CELL, suffix, key.long);
        self.0[at..at + value.len()].copy_from_slice(value);
        let live = self.view().live() + u64::from(flags & LIVE);
        self.set_live(live);
        true
    }

    /// Replaces flags and value of slot `i`. False, and nothing done, when the page has no room.
    pub fn leaf_replace(&mut self, i: usize, flags: u8, value: &[u8]) -> bool {
        let (s, old_flags, old_len) = (
            self.view().slot(i),
            self.view().flags(i),
            self.view().value(i).len(),
        );
        let key_bytes = s.klen + if s.long { RunRef::BYTES } else { 0 };
        let mut off = s.off;
        if old_len != value.len() {
            let cell = LEAF_CELL + key_bytes + value.len();
            if !self.make_room(cell, false) {
                return false;
            }
            let old = self.view().slot(i);
            off = self.take_cell(cell);
            self.0
                .copy_within(old.off..old.off + LEAF_CELL + key_bytes, off);
            self.put_slot(i, off, s.klen, s.long, s.head);
            put_u16(self.0, off, value.len() as u16);
            let waste = self.view().waste() + LEAF_CELL + key_bytes + old_len;
            self.set_waste(waste);
        }
        self.0[off + 2] = flags;
        let at = off + LEAF_CELL + key_bytes;
        self.0[at..at + value.len()].copy_from_slice(value);
        let live = self.view().live() - u64::from(old_flags & LIVE) + u64::from(flags & LIVE);
        self.set_live(live);
        true
    }

    /// Removes slot `i` of a leaf.
    pub fn leaf_remove(&mut self, i: usize) {
        let live = self.view().live() - u64::from(self.view().flags(i) & LIVE);
        self.set_live(live);
        self.close_slot(i);
    }

    fn close_slot(&mut self, i: usize) {
        let n = self.view().len();
        let waste = self.view().waste() + self.view().cell_len(i);
        let base = HEADER + self.view().prefix_len();
        self.0
            .copy_within(base + (i + 1) * SLOT..base + n * SLOT, base + i * SLOT);
        put_u16(self.0, 24, (n - 1) as u16);
        put_u16(self.0, 40, u16::MAX);
        self.set_waste(waste);
        if n == 1 {
            let end = self.0.len() as u16;
            put_u16(self.0, 26, end);
            self.set_waste(0);
        }
    }

    /// Puts a child into slot `i` (never 0) of an inner page; the page's live count is the caller's. False, and
    /// nothing done, when it does not fit as the page is.
    pub fn inner_insert(&mut self, i: usize, key: StoredKey<'_>, child: Child) -> bool {
        let prefix_len = self.view().prefix_len();
        if !key.bytes.starts_with(self.view().prefix()) {
            return false;
        }
        let suffix = &key.bytes[prefix_len..];
        let cell = INNER_CELL + suffix.len() + if key.long.is_some() { RunRef::BYTES } else { 0 };
        if !self.make_room(cell, true) {
            return false;
        }
        let off = self.take_cell(cell);
        self.open_slot(i);
        self.put_slot(i, off, suffix.len(), key.long.is_some(), head_of(suffix));
        self.write_key(off + INNER_CELL, suffix, key.long);
        self.set_child(i, child);
        true
    }

    /// Removes slot `i` of an inner page; its children's counts leave with it. When `i` is 0 the next child becomes
    /// the first and loses its key.
    pub fn inner_remove(&mut self, i: usize) {
        let live = self.view().live() - self.view().child_live(i);
        self.set_live(live);
        self.close_slot(i);
        if i == 0 && self.view().len() > 0 {
            let s = self.view().slot(0);
            let waste = self.view().waste() + s.klen + if s.long { RunRef::BYTES } else { 0 };
            self.put_slot(0, s.off, 0, false, 0);
            self.set_waste(waste);
        }
    }

    /// Lets the long key of slot `i` lie in another run with the same contents.
    pub fn set_long(&mut self, i: usize, run: RunRef) {
        let s = self.view().slot(i);
        debug_assert!(s.long);
        let at = s.off + self.view().fixed() + s.klen;
        self.0[at..at + RunRef::BYTES].copy_from_slice(&run.to_bytes());
    }

    pub fn set_child(&mut self, i: usize, child: Child) {
        let off = self.view().slot(i).off;
        put_u48(self.0, off, child.addr.unit);
        put_u48(self.0, off + 6, child.addr.birth);
        put_u48(self.0, off + 12, child.live);
    }

    pub fn set_child_addr(&mut self, i: usize, addr: Addr) {
        let off = self.view().slot(i).off;
        put_u48(self.0, off, addr.unit);
        put_u48(self.0, off + 6, addr.birth);
    }

    /// Sets a child's live count and moves the page's own by the difference.
    pub fn set_child_live(&mut self, i: usize, live: u64) {
        let off = self.view().slot(i).off;
        let total = self.view().live() - get_u48(self.0, off + 12) + live;
        put_u48(self.0, off + 12, live);
        self.set_live(total);
    }
}

/// A child without an address.
pub(super) const NO_CHILD: Child = Child {
    addr: Addr { unit: 0, birth: 0 },
    live: 0,
};
