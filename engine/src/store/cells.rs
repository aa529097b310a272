//! Entries of pages taken apart, to be put together anew: when a page overflows, when two become one, or when a key
//! arrives that lacks the prefix of the others.

use super::node::{NewNode, Node, NodeRef};
use super::page::{
    Child, Geometry, HEADER, INNER_CELL, LEAF_CELL, NO_CHILD, SLOT, StoredKey, common, head_of,
    put_u16,
};
use super::types::{LIVE, RunRef};

/// One entry of a page that is being rebuilt.
struct Cell {
    key: (usize, usize),
    value: (usize, usize),
    long: Option<RunRef>,
    flags: u8,
    child: Child,
    kid: Option<NodeRef>,
}

/// The entries of some adjacent pages, in order.
pub(super) struct Cells {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    leaf: bool,
}

impl Cells {
    pub fn new(leaf: bool) -> Cells {
        Cells {
            bytes: Vec::new(),
            cells: Vec::new(),
            leaf,
        }
    }

    /// With room for what some pages hold, so that it does not move as they come.
    pub fn with_room(leaf: bool, bytes: usize, cells: usize) -> Cells {
        Cells {
            bytes: Vec::with_capacity(bytes),
            cells: Vec::with_capacity(cells),
            leaf,
        }
    }

    pub fn of(node: &Node) -> Cells {
        let mut cells = Cells::new(node.page().is_leaf());
        cells.append(node);
        cells
    }

    pub fn append(&mut self, node: &Node) {
        let page = node.page();
        for i in 0..page.len() {
            let at = self.cells.len();
            let start = self.bytes.len();
            let first_child = i == 0 && !self.leaf;
            if !first_child {
                self.bytes.extend_from_slice(page.prefix());
                self.bytes.extend_from_slice(page.suffix(i));
            }
            let mid = self.bytes.len();
            let (flags, child) = if self.leaf {
                self.bytes.extend_from_slice(page.value(i));
                (page.flags(i), NO_CHILD)
            } else {
                (0, page.child(i))
            };
            let cell = Cell {
                key: (start, mid),
                value: (mid, self.bytes.len()),
                long: page.long(i),
                flags,
                child,
                kid: if self.leaf {
                    None
                } else {
                    node.kid(i).cloned()
                },
            };
            self.cells.insert(at, cell);
        }
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> (usize, usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        (start, self.bytes.len())
    }

    pub fn insert_entry(&mut self, i: usize, key: StoredKey<'_>, flags: u8, value: &[u8]) {
        let cell = Cell {
            key: self.push_bytes(key.bytes),
            value: self.push_bytes(value),
            long: key.long,
            flags,
            child: NO_CHILD,
            kid: None,
        };
        self.cells.insert(i, cell);
    }

    pub fn replace_entry(&mut self, i: usize, flags: u8, value: &[u8]) {
        self.cells[i].value = self.push_bytes(value);
        self.cells[i].flags = flags;
    }

    pub fn insert_child(
        &mut self,
        i: usize,
        key: StoredKey<'_>,
        child: Child,
        kid: Option<NodeRef>,
    ) {
        let key_at = self.push_bytes(key.bytes);
        let cell = Cell {
            key: key_at,
            value: (0, 0),
            long: key.long,
            flags: 0,
            child,
            kid,
        };
        self.cells.insert(i, cell);
    }

    /// Gives the child in slot `i` a key, as the first child of the right page gets one when two pages become one.
    pub fn set_key(&mut self, i: usize, key: StoredKey<'_>) {
        self.cells[i].key = self.push_bytes(key.bytes);
        self.cells[i].long = key.long;
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Key of slot `i` as stored.
    pub fn key(&self, i: usize) -> StoredKey<'_> {
        let (from, to) = self.cells[i].key;
        StoredKey {
            bytes: &self.bytes[from..to],
            long: self.cells[i].long,
        }
    }

    fn value(&self, i: usize) -> &[u8] {
        let (from, to) = self.cells[i].value;
        &self.bytes[from..to]
    }

    /// First slot whose key counts.
    fn keyed_from(&self, from: usize) -> usize {
        if self.leaf { from } else { from + 1 }
    }

    fn prefix_of(&self, from: usize, to: usize) -> usize {
        let first = self.keyed_from(from);
        if to < first + 2 {
            return 0;
        }
        common(self.key(first).bytes, self.key(to - 1).bytes)
    }

    /// Bytes that slots `from..to` take in a page of their own, prefix truncation aside.
    pub fn plain(&self, i: usize, keyed: bool) -> usize {
        let cell = &self.cells[i];
        let key = if keyed {
            cell.key.1 - cell.key.0
                + if cell.long.is_some() {
                    RunRef::BYTES
                } else {
                    0
                }
        } else {
            0
        };
        let fixed = if self.leaf { LEAF_CELL } else { INNER_CELL };
        SLOT + fixed + key + cell.value.1 - cell.value.0
    }

    fn truncated(plain: usize, prefix: usize, keyed: usize) -> usize {
        plain + prefix - prefix * keyed
    }

    /// Bytes behind the header that all entries take in one page.
    pub fn size(&self) -> usize {
        self.size_of(0, self.len())
    }

    fn size_of(&self, from: usize, to: usize) -> usize {
        let first = self.keyed_from(from);
        let plain = (from..to).map(|i| self.plain(i, i >= first)).sum();
        Self::truncated(plain, self.prefix_of(from, to), to.saturating_sub(first))
    }

    /// Where to divide so that both halves fit `capacity`: as even as can be, or, when `ascending`, with only the
    /// last entry on the right. There is always such a place: either the keys keep the prefix they had, and then the
    /// two halves of one page and one entry fit because no entry is larger than half a page; or the new key lacks the
    /// prefix, and then it lies before or behind all others and can stand alone.
    pub fn split_at(&self, capacity: usize, ascending: bool) -> Option<usize> {
        let n = self.len();
        if ascending && self.size_of(0, n - 1) <= capacity && self.size_of(n - 1, n) <= capacity {
            return Some(n - 1);
        }
        let dropped = |i: usize| if self.leaf { 0 } else { self.key_bytes(i) };
        let total: usize = (0..n).map(|i| self.plain(i, true)).sum();
        let mut before = 0;
        let mut best = None;
        for i in 1..n {
            before += self.plain(i - 1, true);
            let keyed = |from: usize, to: usize| to - self.keyed_from(from).min(to);
            let left = Self::truncated(before - dropped(0), self.prefix_of(0, i), keyed(0, i));
            let right = Self::truncated(
                total - before - dropped(i),
                self.prefix_of(i, n),
                keyed(i, n),
            );
            let worst = left.max(right);
            if worst <= capacity && best.is_none_or(|(_, size)| worst < size) {
                best = Some((i, worst));
            }
        }
        best.map(|(i, _)| i)
    }

    /// Where to divide into `parts` of about the same size, each at most `limit`; None when that cannot be.
    pub fn divide(&self, limit: usize, parts: usize) -> Option<Vec<usize>> {
        let n = self.len();
        if parts == 2 {
            return self.split_at(limit, false).map(|at| vec![at]);
        }
        let total: usize = (0..n).map(|i| self.plain(i, true)).sum();
        let (mut cuts, mut from, mut to, mut before) = (Vec::new(), 0, 0, 0);
        for part in 1..=parts {
            let goal = total * part / parts;
            while to < n && (part == parts || before + self.plain(to, true) / 2 < goal) {
                before += self.plain(to, true);
                to += 1;
            }
            if to == from || self.size_of(from, to) > limit {
                return None;
            }
            if part < parts {
                cuts.push(to);
            }
            from = to;
        }
        Some(cuts)
    }

    fn key_bytes(&self, i: usize) -> usize {
        let cell = &self.cells[i];
        cell.key.1 - cell.key.0
            + if cell.long.is_some() {
                RunRef::BYTES
            } else {
                0
            }
    }

    /// Builds a page of slots `from..to`, which fit.
    pub fn build(
        &self,
        geo: &Geometry,
        tree: u8,
        level: u8,
        from: usize,
        to: usize,
        made: u64,
    ) -> NewNode {
        let mut node = NewNode::unwritten(geo.page_bytes, made);
        let mut page = node.page_mut();
        page.init(tree, level);
        let first = self.keyed_from(from);
        let prefix = self.prefix_of(from, to);
        if prefix > 0 {
            page.0[HEADER..HEADER + prefix].copy_from_slice(&self.key(first).bytes[..prefix]);
            put_u16(page.0, 28, prefix as u16);
        }
        let mut heap = geo.page_bytes;
        let mut live = 0;
        put_u16(page.0, 24, (to - from) as u16);
        for i in from..to {
            let keyed = i >= first;
            let key = if keyed {
                self.key(i)
            } else {
                StoredKey {
                    bytes: &[],
                    long: None,
                }
            };
            let suffix = if keyed { &key.bytes[prefix..] } else { &[][..] };
            let cell = self.plain(i, keyed) - SLOT - if keyed { prefix } else { 0 };
            heap -= cell;
            page.put_slot(
                i - from,
                heap,
                suffix.len(),
                key.long.is_some(),
                head_of(suffix),
            );
            if self.leaf {
                let value = self.value(i);
                put_u16(page.0, heap, value.len() as u16);
                page.0[heap + 2] = self.cells[i].flags;
                let at = page.write_key(heap + LEAF_CELL, suffix, key.long);
                page.0[at..at + value.len()].copy_from_slice(value);
                live += u64::from(self.cells[i].flags & LIVE);
            } else {
                page.write_key(heap + INNER_CELL, suffix, key.long);
                page.set_child(i - from, self.cells[i].child);
                live += self.cells[i].child.live;
            }
        }
        put_u16(page.0, 26, heap as u16);
        put_u16(page.0, 40, u16::MAX);
        page.set_live(live);
        for (i, cell) in self.cells[from..to].iter().enumerate() {
            if let Some(kid) = &cell.kid {
                node.add_kid(i, kid.clone());
            }
        }
        node
    }
}
