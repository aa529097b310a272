//! Packing: sparse pages become fewer and fuller ones. Splits leave pages half full, and deletes thin them out down to
//! two thirds before neighbours are merged; while the file is being made smaller that is not good enough.
//!
//! It works as moving does (see `defrag`). After a checkpoint its thread goes through the trees in the order of their
//! keys, leaves first, then the pages above them, and notes which adjacent pages below one parent would be fewer if
//! they were filled to nine tenths; their pages enter the cache. The writer, a little with each publish, looks at the
//! same pages as they are then, and puts those together that are still worth it. The place is kept from checkpoint to
//! checkpoint, so a pass over all trees comes to its end however small the steps are.
//!
//! Why nine tenths: a page of 8 KiB with records of 300 bytes then takes two or three more before it splits. When a
//! twentieth of new keys arrives in random order, one page in twenty-five splits; filled to 95 % two in five would, each
//! into two that are half empty, and what was won would be lost and written again. Entries are not cut, so a page may
//! be some hundredths fuller than the average.
//!
//! Invariants:
//! 1. This changes where entries lie and nothing else. A crash loses progress only.
//! 2. Each change makes at least one page less, of at most [`WINDOW_ASKED`]; so without inserts it comes to an end,
//!    and pages that are as full as packing makes them are left alone: [`WINDOW_ASKED`] of them on average fuller than
//!    (1 - 1 / [`WINDOW_ASKED`]) × 90 %.
//! 3. By itself it goes over the trees once, and again only after checkpoints have written as much as the store holds.
//! 4. It takes no more room than lies free in the file, apart from [`ROOM_LEAST`] when the disk is not full.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::btree::{Root, Weight, Window, child_of, page_limit};
use super::cache::Frame;
use super::defrag::Budget;
use super::error::Result;
use super::lock;
use super::node::NodeRef;
use super::page::Addr;
use super::shared::Shared;

/// Adjacent pages that are looked at together when the file is to shrink: sixteen that are less than 84 % full become
/// fifteen. Putting them together is the longest that the writer does at a time.
const WINDOW_ASKED: usize = 16;

/// By itself four that are less than 67 % full become three: nothing that random inserts leave for long.
const WINDOW_ALONE: usize = 4;

/// Bytes that may be noted though the file has no free space for them.
const ROOM_LEAST: usize = 1 << 20;

/// Passes that one request starts at most, as long as each finds something to do.
const PASSES_MAX: u32 = 3;

/// Children of one page that are read at once.
const READ_AHEAD: usize = 64;

/// Pages that would be fewer.
pub(super) struct Sparse {
    pub tree: u8,
    /// Of the pages.
    pub level: u8,
    /// Lies in the first of them.
    pub key: Vec<u8>,
    pub count: usize,
}

/// Where a pass goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    tree: u8,
    /// Of the pages that are put together.
    level: u8,
    key: Vec<u8>,
}

/// How far packing is.
#[derive(Default)]
pub(super) struct Packing {
    /// None: no pass is under way.
    place: Option<Place>,
    /// Passes begun for the request that is being served, and still to begin at most.
    passes_left: u32,
    /// Pages that this pass has looked at, and those it can do without.
    seen: u64,
    saved: u64,
    /// Bytes that checkpoints had written when the last pass ended.
    rests_since: Option<u64>,
    /// Walks that got on.
    steps: u64,
}

impl Packing {
    /// The file is to shrink: a whole pass, and more as long as they help.
    pub fn ask(&mut self) {
        *self = Packing {
            place: Some(Place::default()),
            passes_left: PASSES_MAX - 1,
            steps: self.steps,
            ..Packing::default()
        };
    }

    /// Goes up whenever a pass gets on.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether a pass is.
    pub fn is_under_way(&self) -> bool {
        self.place.is_some()
    }

    /// Begins a pass by itself, when it is time to.
    fn begin(&mut self, written: u64, held: u64) {
        if self.place.is_none()
            && self
                .rests_since
                .is_none_or(|since| written >= since.saturating_add(held))
        {
            *self = Packing {
                place: Some(Place::default()),
                steps: self.steps,
                ..Packing::default()
            };
        }
    }

    fn end_pass(&mut self, written: u64) {
        // Another one pays when this one made a fiftieth of the pages superfluous.
        let again = self.passes_left > 0 && self.saved * 50 > self.seen;
        *self = Packing {
            place: again.then(Place::default),
            passes_left: self.passes_left.saturating_sub(1),
            rests_since: Some(written),
            seen: 0,
            saved: 0,
            steps: self.steps,
        };
    }
}

/// Notes sparse pages from where the last walk ended, within the budget, and takes off it what it used. Runs on the
/// checkpoint thread, with no lock held while it reads.
pub(super) fn note_sparse(
    shared: &Shared,
    roots: &[Root; 4],
    asked: bool,
    budget: &mut Budget,
) -> VecDeque<Sparse> {
    let geo = shared.pages.geo;
    let (held, free) = {
        let alloc = lock(&shared.alloc);
        let taken = alloc.taken_units();
        (taken, alloc.high_water() - taken)
    };
    let free = geo.offset(free) as usize;
    let room = match shared.no_space.load(Ordering::Relaxed) {
        true => free,
        false => free.max(ROOM_LEAST),
    };
    let written = shared.counters.bytes.load(Ordering::Relaxed);
    let place = {
        let mut packing = lock(&shared.packing);
        if !asked {
            packing.begin(written, geo.offset(held));
        }
        packing.place.clone()
    };
    let Some(place) = place else {
        return VecDeque::new();
    };
    let moved = budget.moved.min(room);
    let mut walk = Walk {
        shared,
        roots,
        most: if asked { WINDOW_ASKED } else { WINDOW_ALONE },
        place: place.clone(),
        left: Budget {
            moved,
            read: budget.read,
        },
        found: VecDeque::new(),
        seen: 0,
        saved: 0,
    };
    // A page that cannot be read is reported to whoever needs it; here it ends the pass.
    let ended = walk.run().unwrap_or(true);
    budget.moved -= moved - walk.left.moved;
    budget.read = walk.left.read;
    let mut packing = lock(&shared.packing);
    // Unless a request came meanwhile and began anew.
    if packing.place == Some(place) {
        packing.steps += u64::from(ended || packing.place.as_ref() != Some(&walk.place));
        packing.seen += walk.seen;
        packing.saved += walk.saved;
        packing.place = Some(walk.place);
        if ended {
            packing.end_pass(written);
        }
    }
    walk.found
}

struct Walk<'a> {
    shared: &'a Shared,
    roots: &'a [Root; 4],
    /// Pages looked at together.
    most: usize,
    place: Place,
    left: Budget,
    found: VecDeque<Sparse>,
    seen: u64,
    saved: u64,
}

/// A page above those that are put together, and the keys it is bounded by.
struct Parent {
    node: NodeRef,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Walk<'_> {
    /// Whether the pass is at its end.
    fn run(&mut self) -> Result<bool> {
        while self.left.moved > 0 && self.left.read > 0 {
            let Some(root) = self.roots.get(usize::from(self.place.tree)) else {
                return Ok(true);
            };
            if root.level <= self.place.level {
                self.place = Place {
                    tree: self.place.tree + 1,
                    ..Place::default()
                };
                continue;
            }
            let parent = self.parent(root)?;
            if !self.look_below(&parent)? {
                continue;
            }
            match parent.upper {
                Some(upper) => self.place.key = upper,
                None => {
                    self.place.level += 1;
                    self.place.key.clear();
                    // The pages above are looked at when those below have been put together.
                    if !self.found.is_empty() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }

    /// The page above the place.
    fn parent(&self, root: &Root) -> Result<Parent> {
        let pages = &self.shared.pages;
        let Some(node) = root.node(pages, self.place.tree)? else {
            unreachable!("a root above leaves has a page")
        };
        let mut parent = Parent {
            node,
            lower: Vec::new(),
            upper: None,
        };
        while parent.node.page().level() > self.place.level + 1 {
            let page = parent.node.page();
            let i = page.child_for(&self.place.key, pages)?;
            if i > 0 {
                parent.lower.clear();
                page.key_into(i, pages, &mut parent.lower)?;
            }
            if i + 1 < page.len() {
                let mut upper = Vec::new();
                page.key_into(i + 1, pages, &mut upper)?;
                parent.upper = Some(upper);
            }
            parent.node = child_of(pages, &parent.node, i)?;
        }
        Ok(parent)
    }

    /// Goes through the children of a page from the place on; whether to the last.
    fn look_below(&mut self, parent: &Parent) -> Result<bool> {
        let pages = &self.shared.pages;
        let page = parent.node.page();
        let mut from = page.child_for(&self.place.key, pages)?;
        while from < page.len() {
            let to = page.len().min(from + READ_AHEAD);
            let addrs: Vec<Addr> = (from..to).map(|i| page.child(i).addr).collect();
            self.shared.give_way();
            let nodes = pages.look_at_many(&addrs);
            let cost = addrs.len() * pages.geo.page_bytes;
            self.left.read = self.left.read.saturating_sub(cost);
            let mut at = 0;
            // Of the last few of them more is to be seen together with those that follow.
            while at + self.most <= nodes.len() || to == page.len() && at < nodes.len() {
                at += self.look_at(parent, from, at, &addrs, &nodes)?;
            }
            self.seen += at as u64;
            from += at;
            if from < page.len() && (self.left.moved == 0 || self.left.read == 0) {
                self.place.key.clear();
                page.key_into(from, pages, &mut self.place.key)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at the pages from `nodes[at]` on together; how many are done with.
    fn look_at(
        &mut self,
        parent: &Parent,
        from: usize,
        at: usize,
        addrs: &[Addr],
        nodes: &[Option<NodeRef>],
    ) -> Result<usize> {
        let pages = &self.shared.pages;
        let together = &nodes[at..nodes.len().min(at + self.most)];
        let weights: Vec<Weight> = together
            .iter()
            .map_while(|node| node.as_ref().map(|node| Weight::of(node.page())))
            .collect();
        let window = Window::find(page_limit(pages), &weights);
        let Some(window) = window.filter(|_| self.left.moved > 0) else {
            return Ok(1);
        };
        let first = at + window.first;
        let mut key = parent.lower.clone();
        if from + first > 0 {
            key.clear();
            let page = parent.node.page();
            page.key_into(from + first, pages, &mut key)?;
        }
        for (addr, node) in addrs.iter().zip(nodes).skip(first).take(window.count) {
            if let Some(node) = node {
                pages.cache.insert(*addr, Frame::Node(node.clone()));
            }
        }
        self.found.push_back(Sparse {
            tree: self.place.tree,
            level: self.place.level,
            key,
            count: window.count,
        });
        self.saved += (window.count - window.into) as u64;
        let cost = window.into * pages.geo.page_bytes;
        self.left.moved = self.left.moved.saturating_sub(cost);
        Ok(window.first + window.count)
    }
}
