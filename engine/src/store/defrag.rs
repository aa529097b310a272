//! Moving what lies at the end of the file to free space before it, so that the end can be cut off. Online and in
//! place: a page or run is copied into the working state, and the next checkpoint writes the copy, low addresses
//! first.
//!
//! 1. After a checkpoint its thread walks down from the last used unit and notes what it finds: every page and run says
//!    itself what it is, and any of a page's keys, or the owner written into a run, leads to who refers to it. What the
//!    writer will need for that is read into the cache here, so that the writer does not wait for the disk.
//! 2. The writer, a little with each publish, looks whether the working state still refers to the noted place, and
//!    makes the copy: pages and runs of keys here, runs of values and chunks in the record layer, which knows who
//!    refers to them ([`super::StoreWriter::tail_runs`]).
//! 3. Two checkpoints later the old place is free, and what lies free at the end is cut off.
//!
//! The walk ends at the goal, the size that the contents need and some slack. Only when nothing behind the goal finds
//! room, because the free space is scattered in pieces too small for it, the walk goes on below: pages move into the
//! small pieces, and what they leave is large.
//!
//! Before that, pages that deletes left sparse become fewer: see `pack`.
//!
//! Invariants:
//! 1. This changes where bytes are and nothing else. A crash loses progress only.
//! 2. Nothing is noted that does not have free space before it, so every move goes down and the walk comes to an end.
//! 3. What one checkpoint notes, and so what the next writes beyond its duty, is bounded by [`Budget`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::alloc::Extent;
use super::btree::{Kid, Root, Tree, child_of, put_child, take_child};
use super::cache::Frame;
use super::checkpoint::SHRINKS;
use super::error::Result;
use super::io::AlignedBuf;
use super::lock;
use super::map::Map;
use super::node::{NewNode, Node};
use super::pack::{self, Sparse};
use super::page::{Addr, KIND_INNER, KIND_LEAF, KIND_RUN, Page, get_u64};
use super::runs;
use super::shared::Shared;
use super::space::Space;
use super::types::{RunKind, RunRef, TreeId};

/// A page to be moved.
pub(super) struct TailPage {
    tree: u8,
    level: u8,
    unit: u64,
    key: Vec<u8>,
}

/// A run to be moved: what it says of itself, and its contents.
#[derive(Clone, Debug)]
pub struct TailRun {
    pub run: RunRef,
    pub kind: RunKind,
    /// As given when it was written: who refers to it.
    pub owner_key: Bytes,
    pub owner: [u8; 16],
    pub bytes: Bytes,
}

/// What the last walk noted and nobody has moved yet.
#[derive(Default)]
pub(super) struct Tail {
    pub sparse: VecDeque<Sparse>,
    pages: VecDeque<TailPage>,
    keys: VecDeque<TailRun>,
    runs: VecDeque<TailRun>,
}

impl Tail {
    pub fn is_empty(&self) -> bool {
        self.sparse.is_empty()
            && self.pages.is_empty()
            && self.keys.is_empty()
            && self.runs.is_empty()
    }

    /// Takes the place of what was noted before, whose memory is freed without the lock.
    pub fn put(self, shared: &Shared) {
        let old = std::mem::replace(&mut *lock(&shared.tail), self);
        drop(old);
    }

    pub fn runs(&self) -> Vec<TailRun> {
        self.runs.iter().cloned().collect()
    }

    /// Takes noted runs of values and chunks of up to `bytes`, at least one if there is any.
    pub fn take_runs(&mut self, bytes: usize) -> Vec<TailRun> {
        let (mut taken, mut left) = (Vec::new(), bytes);
        while let Some(run) = self.runs.front() {
            let len = run.bytes.len();
            if len > left && !taken.is_empty() {
                break;
            }
            left = left.saturating_sub(len);
            taken.extend(self.runs.pop_front());
        }
        taken
    }
}

/// How much one walk may do.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    /// Bytes noted.
    pub moved: usize,
    /// Bytes read while looking.
    pub read: usize,
}

/// What the walks have brought since a shrink was asked for.
#[derive(Default)]
pub(super) struct Progress {
    /// The smallest that the file was, in units; 0 before the first walk.
    best: u64,
    /// Bytes moved when it was that, and by the last walk.
    moved_at_best: u64,
    moved: u64,
    /// Walks in a row that brought nothing.
    idle: u32,
    /// Walks of packing by the last walk.
    packing: u64,
}

/// Walks in a row without progress after which a shrink ends. What a walk notes shows some checkpoints later.
const IDLE_MAX: u32 = 3 * SHRINKS as u32;

/// Whether a shrink that was asked for brings something: the file has become smaller by 1/256, packing gets on, or
/// things are being moved and the file is not near the goal yet. It comes to an end whatever is written meanwhile:
/// packing makes few passes, and when twice as much was moved as the store holds since the file last got smaller, it
/// will not. Near the goal, puts that never stop always leave something behind it.
pub(super) fn goes_on(shared: &Shared, file: u64, held: u64) -> bool {
    let moved = shared.counters.moved_bytes.load(Ordering::Relaxed);
    let goal = shared.defrag_goal.load(Ordering::Relaxed);
    let packing = lock(&shared.packing);
    let (steps, is_packing) = (packing.steps(), packing.is_under_way());
    drop(packing);
    let mut progress = lock(&shared.progress);
    let smaller = progress.best == 0 || file + file / 256 < progress.best;
    let gets_on = steps != progress.packing || is_packing && moved != progress.moved;
    if smaller {
        progress.best = file;
    }
    if smaller || gets_on {
        progress.moved_at_best = moved;
    }
    let moves = moved != progress.moved && file > goal + goal / 32;
    progress.idle = match smaller || gets_on || moves {
        true => 0,
        false => progress.idle + 1,
    };
    progress.moved = moved;
    progress.packing = steps;
    let held = shared.pages.geo.offset(held);
    progress.idle < IDLE_MAX && moved - progress.moved_at_best <= 2 * held
}

/// Notes what is to be packed and what is to be moved. When the file is to shrink packing goes first, since it decides
/// what there is to be moved; by itself it has half of the budget, so that the file does not wait for it.
pub(super) fn note(
    shared: &Shared,
    map: &Map,
    roots: &[Root; 4],
    asked: bool,
    budget: &mut Budget,
) -> Tail {
    shared
        .defrag_goal
        .store(goal(shared, map), Ordering::Relaxed);
    // What the writer has not got to yet is still to be done.
    let mut sparse = std::mem::take(&mut lock(&shared.tail).sparse);
    if sparse.is_empty() {
        let mut part = *budget;
        if !asked {
            part.moved /= 2;
        }
        let moved = part.moved;
        sparse = pack::note_sparse(shared, roots, asked, &mut part);
        budget.moved -= moved - part.moved;
        budget.read = part.read;
    }
    let first = asked && (!sparse.is_empty() || lock(&shared.packing).is_under_way());
    let mut tail = match first {
        true => Tail::default(),
        false => note_tail(shared, map, roots, *budget),
    };
    tail.sparse = sparse;
    tail
}

/// Where a file with this map could end: what is in use, what waits for two checkpoints to pass, and a twentieth.
fn goal(shared: &Shared, map: &Map) -> u64 {
    let used = map.reached.ones();
    let pending = lock(&shared.alloc).pending_units();
    shared.pages.geo.first_unit + used + pending + used / 20 + 64
}

/// Notes what is to be moved, the last first, within the budget. Runs on the checkpoint thread, with no lock held
/// while it reads. `roots`: of the same checkpoint as the map.
fn note_tail(shared: &Shared, map: &Map, roots: &[Root; 4], budget: Budget) -> Tail {
    let goal = goal(shared, map);
    let mut walk = Walk {
        shared,
        map,
        roots,
        goal,
        left: budget,
        gaps: HashMap::new(),
        stuck: false,
        digging: false,
        tail: Tail::default(),
    };
    walk.run();
    walk.tail
}

/// Units read at a time.
const BLOCK: u64 = 64;

struct Walk<'a> {
    shared: &'a Shared,
    map: &'a Map,
    roots: &'a [Root; 4],
    goal: u64,
    left: Budget,
    /// Free places before the goal that are not promised yet, by size.
    gaps: HashMap<u32, u64>,
    /// Something behind the goal found no free place.
    stuck: bool,
    /// The walk goes on below the goal.
    digging: bool,
    tail: Tail,
}

impl Walk<'_> {
    fn run(&mut self) {
        let geo = self.shared.pages.geo;
        let mut end = self.map.reached.end();
        let file_units = self.shared.file_len.load(Ordering::Relaxed) / geo.unit_bytes as u64;
        while end > geo.first_unit && self.left.moved > 0 && self.left.read > 0 {
            let start = (end - 1) / BLOCK * BLOCK;
            let used = |unit: &u64| self.map.reached.contains(*unit);
            if !(start..end).any(|unit| used(&unit)) {
                end = start;
                continue;
            }
            let until = (start + BLOCK).min(file_units);
            let mut block = AlignedBuf::new(((until - start) as usize) * geo.unit_bytes);
            let pages = &self.shared.pages;
            self.shared.give_way();
            if pages
                .read_at(start, &mut block, "looking for what to move")
                .is_err()
            {
                // Whoever needs these bytes will report them.
                return;
            }
            self.left.read = self.left.read.saturating_sub(block.len());
            for unit in (start.max(geo.first_unit)..end).rev() {
                if self.left.moved == 0 || self.ends_at(unit) {
                    return;
                }
                if self.map.reached.contains(unit) {
                    let at = (unit - start) as usize * geo.unit_bytes;
                    self.look(unit, &block[at..]);
                }
            }
            end = start;
        }
    }

    /// Below the goal there is something to do only when all that lies behind it is stuck, and only while free places
    /// lie below.
    fn ends_at(&mut self, unit: u64) -> bool {
        if unit >= self.goal {
            return false;
        }
        if !self.digging {
            self.digging = self.stuck && self.tail.is_empty();
            self.gaps.clear();
        }
        let page_units = self.shared.pages.geo.units_per_page;
        !self.digging || !lock(&self.shared.alloc).has_gap_below(page_units, unit)
    }

    /// Whether there is a free place for something at `unit` that nothing else was promised; promises it.
    fn promise(&mut self, unit: u64, units: u32) -> bool {
        let below = self.goal.min(unit);
        let most = (self.left.moved / self.shared.pages.geo.unit_bytes) as u64 + 1;
        let shared = self.shared;
        let gaps = self
            .gaps
            .entry(units)
            .or_insert_with(|| lock(&shared.alloc).gaps_below(units, below, most));
        let found = *gaps > 0;
        *gaps -= u64::from(found);
        self.stuck |= !found && unit >= self.goal;
        found
    }

    /// Notes the page or run that begins at `unit`, if one does: bytes inside of a page or run may look like one, but
    /// no checksum makes them so.
    fn look(&mut self, unit: u64, bytes: &[u8]) {
        if get_u64(bytes, 8) != unit {
            return;
        }
        match bytes[4] {
            KIND_LEAF | KIND_INNER => self.look_page(unit, bytes),
            KIND_RUN => self.look_run(unit, bytes),
            _ => {}
        }
    }

    fn look_page(&mut self, unit: u64, bytes: &[u8]) {
        let pages = &self.shared.pages;
        let addr = Addr {
            unit,
            birth: get_u64(bytes, 16),
        };
        let node = match bytes.get(..pages.geo.page_bytes) {
            Some(image) if Page::check(image, &pages.geo, addr, pages.seed).is_ok() => {
                NewNode::durable(image, addr).share()
            }
            Some(_) => return,
            None => match pages.read_node(addr) {
                Ok(node) => node,
                Err(_) => return,
            },
        };
        if !self.promise(unit, pages.geo.units_per_page) {
            return;
        }
        let page = node.page();
        let mut key = Vec::new();
        let slot = usize::from(!page.is_leaf());
        if slot < page.len() && page.key_into(slot, pages, &mut key).is_err() {
            return;
        }
        let found = TailPage {
            tree: page.tree(),
            level: page.level(),
            unit,
            key,
        };
        if let Some(root) = self.roots.get(usize::from(found.tree)) {
            // Reads what leads there into the cache; nothing else comes of it.
            let _ = still_there(pages, root, &found);
        }
        pages.cache.insert(addr, Frame::Node(node));
        self.left.moved = self.left.moved.saturating_sub(pages.geo.page_bytes);
        self.tail.pages.push_back(found);
    }

    fn look_run(&mut self, unit: u64, bytes: &[u8]) {
        let pages = &self.shared.pages;
        let Some(said) = runs::describe(&pages.geo, bytes, unit) else {
            return;
        };
        let movable = said.kind == RunKind::Key || self.shared.moves_runs.load(Ordering::Relaxed);
        let extent = Extent {
            unit,
            units: said.run.units,
        };
        let inside = unit + u64::from(extent.units) <= self.map.reached.end();
        if !movable || !inside || !self.promise(unit, extent.units) {
            return;
        }
        let Ok((image, range)) = pages.run_image(said.run) else {
            return;
        };
        let image = Bytes::from_owner(image);
        let owner_key = image.slice(runs::RUN_HEADER..runs::RUN_HEADER + said.owner_key_bytes);
        let run = TailRun {
            run: said.run,
            kind: said.kind,
            owner_key: Bytes::copy_from_slice(&owner_key),
            owner: said.owner,
            bytes: image.slice(range),
        };
        let cost = extent.units as usize * pages.geo.unit_bytes;
        self.left.moved = self.left.moved.saturating_sub(cost);
        if run.kind == RunKind::Key {
            for (tree, root) in TreeId::ALL.iter().zip(self.roots) {
                let _ = holder(pages, root, *tree as u8, &run);
            }
            self.tail.keys.push_back(run);
        } else {
            self.tail.runs.push_back(run);
        }
    }
}

/// Putting pages together takes so many times the work of copying them.
const PACKING_COSTS: usize = 4;

/// Packs and moves noted pages, and moves keys, of up to `bytes`; how many bytes were written anew.
pub(super) fn move_tail(space: &mut Space, roots: &mut [Root; 4], bytes: usize) -> Result<usize> {
    let mut moved = 0;
    let page_bytes = space.pages().geo.page_bytes;
    let mut looked_at = 0;
    // Looking costs too.
    while moved < bytes && looked_at < bytes {
        let Some(sparse) = lock(&space.shared.tail).sparse.pop_front() else {
            break;
        };
        looked_at += page_bytes;
        let Some(root) = roots.get_mut(usize::from(sparse.tree)) else {
            continue;
        };
        let mut tree = Tree {
            space,
            id: sparse.tree,
        };
        if let Some(packed) = tree.pack(root, sparse.level, &sparse.key, sparse.count)? {
            moved += packed.after * page_bytes;
            looked_at += packed.before * page_bytes * PACKING_COSTS;
            let saved = (packed.before - packed.after) * page_bytes;
            let counter = &space.shared.counters.packed_bytes;
            counter.fetch_add(saved as u64, Ordering::Relaxed);
        }
    }
    while moved < bytes && looked_at < bytes {
        looked_at += page_bytes;
        let Some(page) = lock(&space.shared.tail).pages.pop_front() else {
            break;
        };
        let Some(root) = roots.get_mut(usize::from(page.tree)) else {
            continue;
        };
        if !still_there(space.pages(), root, &page)? {
            continue;
        }
        let level = root.level;
        if let Some(kid) = &mut root.kid {
            own_path(
                space,
                kid,
                page.tree,
                level,
                page.level,
                &page.key,
                &mut |_| {},
            )?;
            moved += page_bytes;
        }
    }
    while moved < bytes {
        let Some(run) = lock(&space.shared.tail).keys.pop_front() else {
            break;
        };
        if move_key(space, roots, &run)? {
            moved += run.run.units as usize * space.pages().geo.unit_bytes;
        }
    }
    let counter = &space.shared.counters.moved_bytes;
    counter.fetch_add(moved as u64, Ordering::Relaxed);
    Ok(moved)
}

fn unit_of(kid: &Kid) -> Option<u64> {
    match kid {
        Kid::Disk(addr) => Some(addr.unit),
        Kid::Mem(node) => node.addr.get().map(|addr| addr.unit),
    }
}

/// Whether the tree still holds the page where it was seen.
fn still_there(pages: &super::pages::Pages, root: &Root, page: &TailPage) -> Result<bool> {
    if root.level < page.level {
        return Ok(false);
    }
    let Some(kid) = &root.kid else {
        return Ok(false);
    };
    if root.level == page.level {
        return Ok(unit_of(kid) == Some(page.unit));
    }
    let Some(mut node) = root.node(pages, page.tree)? else {
        return Ok(false);
    };
    loop {
        let i = node.page().child_for(&page.key, pages)?;
        if node.page().level() == page.level + 1 {
            let unit = match node.kid(i) {
                Some(kid) => kid.addr.get().map(|addr| addr.unit),
                None => Some(node.page().child(i).addr.unit),
            };
            return Ok(unit == Some(page.unit));
        }
        node = child_of(pages, &node, i)?;
    }
}

/// Makes the page on the way to `key` at level `to` and all above it the writer's own, and calls `f` with it.
fn own_path(
    space: &mut Space,
    kid: &mut Kid,
    tree: u8,
    level: u8,
    to: u8,
    key: &[u8],
    f: &mut dyn FnMut(&mut Node),
) -> Result<()> {
    let node = space.own(kid, tree, level)?;
    if level == to {
        f(node);
        return Ok(());
    }
    let i = node.page().child_for(key, space.pages())?;
    let mut child = take_child(node, i);
    let done = own_path(space, &mut child, tree, level - 1, to, key, f);
    put_child(node, i, child);
    done
}

/// Level and slot of the page that names a run as its key: a page that does lies on the way to that very key.
fn holder(
    pages: &super::pages::Pages,
    root: &Root,
    tree: u8,
    run: &TailRun,
) -> Result<Option<(u8, usize)>> {
    let key = &run.bytes;
    let Some(mut node) = root.node(pages, tree)? else {
        return Ok(None);
    };
    loop {
        let page = node.page();
        if page.is_leaf() {
            let (i, found) = page.search(0, key, pages)?;
            return Ok((found && page.long(i) == Some(run.run)).then_some((0, i)));
        }
        let i = page.child_for(key, pages)?;
        if i > 0 && page.long(i) == Some(run.run) {
            return Ok(Some((page.level(), i)));
        }
        node = child_of(pages, &node, i)?;
    }
}

fn move_key(space: &mut Space, roots: &mut [Root; 4], run: &TailRun) -> Result<bool> {
    for (tree, root) in roots.iter_mut().enumerate() {
        let tree = tree as u8;
        let Some((at, slot)) = holder(space.pages(), root, tree, run)? else {
            continue;
        };
        let (owner_key, bytes) = (run.owner_key.clone(), Bytes::copy_from_slice(&run.bytes));
        let below = run.run.unit;
        let copy = space.write_run_below(RunKind::Key, owner_key, run.owner, bytes, below)?;
        let (Some(copy), Some(kid)) = (copy, &mut root.kid) else {
            return Ok(false);
        };
        let mut rename = |node: &mut Node| node.page_mut().set_long(slot, copy);
        match own_path(space, kid, tree, root.level, at, &run.bytes, &mut rename) {
            Ok(()) => space.free_run(run.run),
            Err(error) => {
                space.free_run(copy);
                return Err(error);
            }
        }
        return Ok(true);
    }
    Ok(false)
}
