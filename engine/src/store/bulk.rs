//! Building a tree from sorted entries: packed pages from the leaves up, written in large pieces as they fill. What it
//! takes in memory is one page for each level and a piece of output, however much is loaded.
//!
//! The pages carry the number of the next checkpoint, and nothing leads to them before it: the writer sees the tree when
//! the load is finished, and what is durable when that checkpoint is.
//!
//! Invariants:
//! 1. Entries come in strictly ascending order; anything else is refused, and so is a tree that is not empty.
//! 2. A load that is not finished leaves nothing: its units are given back.
//! 3. Nothing is read from a page before it is written.

use std::ops::Range;

use bytes::Bytes;

use super::alloc::Extent;
use super::btree::{Kid, Root, Tree};
use super::cells::Cells;
use super::checkpoint::{self, ARENA_BYTES, Stop};
use super::error::{Error, Result};
use super::io::AlignedBuf;
use super::lock;
use super::page::{Addr, Child, StoredKey, common, seal};
use super::runs::{self, MemRun};
use super::space::Space;
use super::types::{LIVE, RunKind, RunRef};

/// A load under way. Dropped before [`Bulk::finish`], it leaves the tree empty.
pub struct Bulk<'w> {
    space: &'w mut Space,
    root: &'w mut Root,
    tree: u8,
    /// Pages being filled, leaves first.
    levels: Vec<Level>,
    last_key: Vec<u8>,
    entries: u64,
    output: Output,
    /// Runs of long keys, for giving back.
    keys: Vec<RunRef>,
}

struct Level {
    cells: Cells,
    /// Bytes of the cells, without what a common prefix saves.
    plain: usize,
    live: u64,
    /// Something of this level is written already: its next page needs a parent.
    written: bool,
    /// Where the page being filled begins: the key that separates it from the one before.
    begins: Option<Separator>,
}

#[derive(Clone)]
struct Separator {
    bytes: Vec<u8>,
    long: Option<RunRef>,
}

impl Separator {
    fn stored(&self) -> StoredKey<'_> {
        StoredKey {
            bytes: &self.bytes,
            long: self.long,
        }
    }
}

/// Bytes on their way to the file.
struct Output {
    arena: AlignedBuf,
    filled: usize,
    pieces: Vec<(u64, Range<usize>)>,
    taken: Vec<Extent>,
    /// Of `taken`: handed on to the checkpoint.
    kept: bool,
}

impl Level {
    fn new(leaf: bool) -> Level {
        Level {
            cells: Cells::new(leaf),
            plain: 0,
            live: 0,
            written: false,
            begins: None,
        }
    }
}

impl<'w> Bulk<'w> {
    pub(super) fn new(space: &'w mut Space, root: &'w mut Root, tree: u8) -> Result<Bulk<'w>> {
        if root.kid.is_some() {
            return Err(Error::Order("a tree that is not empty cannot be loaded"));
        }
        Ok(Bulk {
            space,
            root,
            tree,
            levels: vec![Level::new(true)],
            last_key: Vec::new(),
            entries: 0,
            output: Output {
                arena: AlignedBuf::new(ARENA_BYTES),
                filled: 0,
                pieces: Vec::new(),
                taken: Vec::new(),
                kept: false,
            },
            keys: Vec::new(),
        })
    }

    /// Adds the next entry.
    pub fn push(&mut self, key: &[u8], flags: u8, value: &[u8]) -> Result<()> {
        if self.entries > 0 && key <= &self.last_key[..] {
            return Err(Error::Order("entries of a load must ascend"));
        }
        Tree {
            space: self.space,
            id: self.tree,
        }
        .check_sizes(key, value)?;
        let geo = self.space.pages().geo;
        let inline = key.len() <= geo.key_inline_max;
        let size = super::page::LEAF_CELL
            + super::page::SLOT
            + value.len()
            + if inline {
                key.len()
            } else {
                geo.key_head + RunRef::BYTES
            };
        let head = if inline { key } else { &key[..geo.key_head] };
        if !self.has_room(0, head, size) {
            let separator = self.separator(key)?;
            self.end_page(0, Some(separator))?;
        }
        let long = match inline {
            true => None,
            false => {
                let run = self.space.write_key(key)?;
                self.keys.push(run);
                Some(run)
            }
        };
        let leaf = &mut self.levels[0];
        let at = leaf.cells.len();
        let stored = StoredKey { bytes: head, long };
        leaf.cells.insert_entry(at, stored, flags, value);
        leaf.plain += size;
        leaf.live += u64::from(flags & LIVE);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.entries += 1;
        Ok(())
    }

    /// Whether an entry or child fits the page being filled at this level, with some room left for changes to come.
    fn has_room(&self, level: usize, key: &[u8], size: usize) -> bool {
        let Level { cells, plain, .. } = &self.levels[level];
        let n = cells.len();
        if n == 0 {
            return true;
        }
        let capacity = self.space.pages().geo.capacity();
        let first = usize::from(level > 0);
        // Keys ascend: what the first and the last share, all do. Two keys at least share a prefix.
        let prefix = match n > first {
            true => common(cells.key(first).bytes, key),
            false => 0,
        };
        let keyed = n + 1 - first;
        plain + size + prefix - prefix * keyed <= capacity - capacity / 16
    }

    /// The shortest key between the last one and `key`.
    fn separator(&mut self, key: &[u8]) -> Result<Separator> {
        let bytes = &key[..=common(&self.last_key, key)];
        let geo = self.space.pages().geo;
        if bytes.len() <= geo.key_inline_max {
            return Ok(Separator {
                bytes: bytes.to_vec(),
                long: None,
            });
        }
        let run = self.space.write_key(bytes)?;
        self.keys.push(run);
        Ok(Separator {
            bytes: bytes[..geo.key_head].to_vec(),
            long: Some(run),
        })
    }

    /// Writes the page being filled and hands it to its parent; the next page of this level begins at `next`.
    fn end_page(&mut self, level: usize, next: Option<Separator>) -> Result<()> {
        let (child, begins) = self.write_page(level, next)?;
        if self.levels.len() == level + 1 {
            self.levels.push(Level::new(false));
        }
        self.add_child(level + 1, begins, child)
    }

    fn write_page(
        &mut self,
        level: usize,
        next: Option<Separator>,
    ) -> Result<(Child, Option<Separator>)> {
        let geo = self.space.pages().geo;
        let leaf = level == 0;
        let filled = &mut self.levels[level];
        let cells = std::mem::replace(&mut filled.cells, Cells::new(leaf));
        let live = std::mem::take(&mut filled.live);
        filled.plain = 0;
        filled.written = true;
        let begins = std::mem::replace(&mut filled.begins, next);
        let node = cells.build(&geo, self.tree, level as u8, 0, cells.len(), 0);
        let extent = lock(&self.space.shared.alloc).take(geo.units_per_page);
        self.output.taken.push(extent);
        let addr = Addr {
            unit: extent.unit,
            birth: self.space.birth(),
        };
        let place = self
            .output
            .place(&self.space.shared, extent.unit, geo.page_bytes)?;
        place.copy_from_slice(&node.buf);
        seal(place, addr, self.space.pages().seed);
        Ok((Child { addr, live }, begins))
    }

    fn add_child(&mut self, level: usize, key: Option<Separator>, child: Child) -> Result<()> {
        let key = key.unwrap_or(Separator {
            bytes: Vec::new(),
            long: None,
        });
        let long_bytes = if key.long.is_some() { RunRef::BYTES } else { 0 };
        let size = super::page::SLOT + super::page::INNER_CELL + key.bytes.len() + long_bytes;
        let mut key = Some(key);
        if !self.has_room(level, key.as_ref().map_or(&[][..], |key| &key.bytes), size) {
            // The key moves up: it stands before the page that begins with this child.
            self.end_page(level, key.take())?;
        }
        let filled = &mut self.levels[level];
        let at = filled.cells.len();
        let none = StoredKey {
            bytes: &[],
            long: None,
        };
        // The first child of a page needs no key, and is stored without.
        let (stored, counted) = match &key {
            Some(key) if at > 0 => (key.stored(), size),
            _ => (none, super::page::SLOT + super::page::INNER_CELL),
        };
        filled.cells.insert_child(at, stored, child, None);
        filled.plain += counted;
        filled.live += child.live;
        Ok(())
    }

    /// Stores bytes too long for the tree, as [`super::StoreWriter::write_run`], but at once.
    pub fn write_run(
        &mut self,
        kind: RunKind,
        owner_key: &[u8],
        owner: [u8; 16],
        contents: Bytes,
    ) -> Result<RunRef> {
        let pages = self.space.pages();
        runs::check_sizes(owner_key.len(), contents.len())?;
        let (geo, seed) = (pages.geo, pages.seed);
        let units = runs::units(&geo, owner_key.len(), contents.len());
        let extent = lock(&self.space.shared.alloc).take(units);
        self.output.taken.push(extent);
        let run = RunRef {
            unit: extent.unit,
            birth: self.space.birth(),
            len: contents.len() as u32,
            crc: runs::contents_crc(seed, &contents),
            units,
        };
        let image = MemRun {
            run,
            kind,
            owner,
            owner_key: Bytes::copy_from_slice(owner_key),
            bytes: contents,
        };
        let len = units as usize * geo.unit_bytes;
        let shared = &self.space.shared;
        if len <= ARENA_BYTES {
            image.image(seed, self.output.place(shared, run.unit, len)?);
        } else {
            let mut whole = AlignedBuf::new(len);
            image.image(seed, &mut whole);
            write(shared, &[(geo.offset(run.unit), &whole)])?;
        }
        Ok(run)
    }

    /// Writes what is left and makes the tree the working state's. How many entries it has.
    pub fn finish(mut self) -> Result<u64> {
        if self.entries > 0 {
            let mut level = 0;
            loop {
                let top = self.levels.len() == level + 1;
                let (child, begins) = self.write_page(level, None)?;
                if top {
                    *self.root = Root {
                        kid: Some(Kid::Disk(child.addr)),
                        level: level as u8,
                        live: child.live,
                    };
                    break;
                }
                self.add_child(level + 1, begins, child)?;
                level += 1;
            }
        }
        if let Err(error) = self.output.flush(&self.space.shared) {
            *self.root = Root::default();
            return Err(error);
        }
        self.output.kept = true;
        let taken = std::mem::take(&mut self.output.taken);
        self.space.add_written(taken);
        Ok(self.entries)
    }
}

impl Drop for Bulk<'_> {
    fn drop(&mut self) {
        if self.output.kept {
            return;
        }
        *self.root = Root::default();
        let mut alloc = lock(&self.space.shared.alloc);
        for extent in self.output.taken.drain(..) {
            alloc.give_back(extent);
        }
        drop(alloc);
        for run in self.keys.drain(..) {
            self.space.free_run(run);
        }
    }
}

impl Output {
    /// Zeroed room for `len` bytes that belong at `unit`.
    fn place(
        &mut self,
        shared: &super::shared::Shared,
        unit: u64,
        len: usize,
    ) -> Result<&mut [u8]> {
        if self.filled + len > ARENA_BYTES {
            self.flush(shared)?;
        }
        let offset = shared.pages.geo.offset(unit);
        let range = self.filled..self.filled + len;
        match self.pieces.last_mut() {
            Some((at, piece)) if *at + piece.len() as u64 == offset => piece.end = range.end,
            _ => self.pieces.push((offset, range.clone())),
        }
        self.filled = range.end;
        let place = &mut self.arena[range];
        place.fill(0);
        Ok(place)
    }

    fn flush(&mut self, shared: &super::shared::Shared) -> Result<()> {
        let writes: Vec<(u64, &[u8])> = self
            .pieces
            .iter()
            .map(|(at, range)| (*at, &self.arena[range.clone()]))
            .collect();
        write(shared, &writes)?;
        self.pieces.clear();
        self.filled = 0;
        Ok(())
    }
}

/// A failed write is as final here as in a checkpoint.
fn write(shared: &super::shared::Shared, writes: &[(u64, &[u8])]) -> Result<()> {
    shared.check_poison()?;
    match checkpoint::write(shared, writes) {
        Ok(bytes) => {
            shared
                .counters
                .bytes
                .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }
        Err(Stop::NoSpace) => Err(Error::NoSpace {
            file: shared.path().to_path_buf(),
        }),
        Err(Stop::Fatal(what)) => {
            shared.fatal(&what);
            Err(Error::Poisoned)
        }
    }
}
