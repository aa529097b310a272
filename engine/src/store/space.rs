//! The writer's side of memory and file space: which pages it may change, what becomes of those it replaces.
//!
//! A page belongs to one of these groups, told by its two marks:
//!
//! | `addr` | `made`                         | meaning |
//! |--------|--------------------------------|---------|
//! | set    | any                            | durable: replaced by a copy, its units are dropped |
//! | unset  | the current publish number     | the writer's own: changed in place |
//! | unset  | at most the frozen number      | being written by the checkpoint: replaced by a copy; its units are dropped when the checkpoint tells where it put the page |
//! | unset  | between the two                | published: replaced by a copy; as long as the state published last holds it, a checkpoint may still write it |
//!
//! Invariants:
//! 1. A page with `made` below the current number is never changed, only copied.
//! 2. Every unit that stops being reachable is dropped exactly once, with the number of the publish that shows it.
//! 3. A reference count above one on an own page cannot be: only publish hands pages out, and it moves the number.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::alloc::Extent;
use super::btree::{Kid, Root};
use super::error::Result;
use super::lock;
use super::node::{NewNode, Node, NodeRef};
use super::page::Addr;
use super::pages::Pages;
use super::runs::{self, MemRun};
use super::shared::{JobDone, Shared};
use super::types::{RunKind, RunRef};

/// A run that no checkpoint has written.
struct Unwritten {
    made: u64,
    /// Publish number that shows the state without it.
    freed: Option<u64>,
    bytes: usize,
}

/// What a checkpoint takes with it.
pub(super) struct Frozen {
    pub dropped: Vec<Extent>,
    /// Units that were written already.
    pub added: Vec<Extent>,
    pub runs: Vec<Arc<MemRun>>,
    /// Bytes to be written, about.
    pub bytes: u64,
}

pub(super) struct Space {
    pub shared: Arc<Shared>,
    /// Number of the publish being prepared.
    made: u64,
    /// Publish number of the state being written.
    frozen: Option<u64>,
    dropped: Vec<(u64, Extent)>,
    /// Published pages replaced since the last publish, written by nobody so far.
    replaced: Vec<NodeRef>,
    /// Pages that the state being written holds and the published one does not, with the publish number that shows
    /// that.
    orphans: Vec<(u64, NodeRef)>,
    /// Of `frozen_pages`: replaced since.
    frozen_replaced: usize,
    own_pages: usize,
    published_pages: usize,
    frozen_pages: usize,
    unwritten: BTreeMap<u64, Unwritten>,
    unwritten_bytes: usize,
    /// Units of bulk loads, written and in no checkpoint, with the publish number that shows them.
    prewritten: Vec<(u64, Extent)>,
    /// Number of the checkpoint that will write what is made now.
    birth: u64,
}

/// Takes out what belongs to publish numbers up to this one.
fn up_to(list: &mut Vec<(u64, Extent)>, publish: u64) -> Vec<Extent> {
    let (now, later): (Vec<_>, Vec<_>) = std::mem::take(list)
        .into_iter()
        .partition(|(made, _)| *made <= publish);
    *list = later;
    now.into_iter().map(|(_, extent)| extent).collect()
}

impl Space {
    pub fn new(shared: Arc<Shared>, birth: u64) -> Space {
        Space {
            shared,
            made: 1,
            frozen: None,
            dropped: Vec::new(),
            replaced: Vec::new(),
            orphans: Vec::new(),
            frozen_replaced: 0,
            own_pages: 0,
            published_pages: 0,
            frozen_pages: 0,
            unwritten: BTreeMap::new(),
            unwritten_bytes: 0,
            prewritten: Vec::new(),
            birth,
        }
    }

    pub fn pages(&self) -> &Pages {
        &self.shared.pages
    }

    pub fn made(&self) -> u64 {
        self.made
    }

    pub fn birth(&self) -> u64 {
        self.birth
    }

    /// Bytes of the pages that the working state has changed since it was published.
    pub fn own_bytes(&self) -> usize {
        self.own_pages * self.shared.pages.geo.page_bytes
    }

    pub fn dirty_bytes(&self) -> usize {
        let pages = self.own_pages + self.published_pages + self.frozen_pages;
        pages * self.shared.pages.geo.page_bytes + self.unwritten_bytes
    }

    // --- pages ---------------------------------------------------------------------------------------------------

    /// An empty page of the writer's own.
    pub fn new_page(&mut self, tree: u8, level: u8) -> NewNode {
        let mut node = NewNode::unwritten(self.pages().geo.page_bytes, self.made);
        node.page_mut().init(tree, level);
        self.own_pages += 1;
        node
    }

    /// Counts a page that was built elsewhere with the current number.
    pub fn adopt(&mut self, node: NewNode) -> NodeRef {
        debug_assert_eq!(node.made, self.made);
        self.own_pages += 1;
        node.share()
    }

    /// The page of `kid` for changing: itself when it is the writer's own, else a copy in its place.
    pub fn own<'k>(&mut self, kid: &'k mut Kid, tree: u8, level: u8) -> Result<&'k mut Node> {
        let copy = match kid {
            Kid::Mem(node) if node.made == self.made => None,
            Kid::Mem(node) => Some(node.copy(self.made)),
            Kid::Disk(addr) => Some(self.pages().node(*addr, tree, level)?.copy(self.made)),
        };
        if let Some(copy) = copy {
            let copy = self.adopt(copy);
            let old = std::mem::replace(kid, Kid::Mem(copy));
            self.retire(&old);
        }
        let Kid::Mem(node) = kid else {
            unreachable!("a page on disk was replaced by its copy above")
        };
        Ok(node
            .get_mut()
            .expect("invariant 3: nobody else holds an unpublished page"))
    }

    /// Notes that the working state no longer holds a page.
    pub fn retire(&mut self, kid: &Kid) {
        let page_units = self.shared.pages.geo.units_per_page;
        let at = |unit| Extent {
            unit,
            units: page_units,
        };
        match kid {
            Kid::Disk(addr) => {
                self.dropped.push((self.made, at(addr.unit)));
                self.shared.pages.cache.retire(*addr);
            }
            Kid::Mem(node) => match node.addr.get() {
                Some(addr) => {
                    self.dropped.push((self.made, at(addr.unit)));
                    self.shared.pages.cache.retire(*addr);
                }
                None if node.made == self.made => self.own_pages -= 1,
                None => {
                    match self.is_frozen(node) {
                        true => self.frozen_replaced += 1,
                        false => self.published_pages -= 1,
                    }
                    self.replaced.push(node.clone());
                }
            },
        }
    }

    fn is_frozen(&self, node: &Node) -> bool {
        self.frozen.is_some_and(|frozen| node.made <= frozen)
    }

    // --- runs ----------------------------------------------------------------------------------------------------

    /// Takes space for a run and keeps it in memory until a checkpoint writes it.
    pub fn write_run(
        &mut self,
        kind: RunKind,
        owner_key: Bytes,
        owner: [u8; 16],
        bytes: Bytes,
    ) -> Result<RunRef> {
        let run = self.write_run_below(kind, owner_key, owner, bytes, u64::MAX)?;
        Ok(run.expect("there is always room behind the last unit"))
    }

    /// As `write_run`, before unit `below`; None when there is no room.
    pub fn write_run_below(
        &mut self,
        kind: RunKind,
        owner_key: Bytes,
        owner: [u8; 16],
        bytes: Bytes,
        below: u64,
    ) -> Result<Option<RunRef>> {
        let pages = &self.shared.pages;
        runs::check_sizes(owner_key.len(), bytes.len())?;
        let units = runs::units(&pages.geo, owner_key.len(), bytes.len());
        let Some(extent) = lock(&self.shared.alloc).take_below(units, below) else {
            return Ok(None);
        };
        let run = RunRef {
            unit: extent.unit,
            birth: self.birth,
            len: bytes.len() as u32,
            crc: runs::contents_crc(pages.seed, &bytes),
            units,
        };
        let cost = units as usize * pages.geo.unit_bytes;
        pages.add_mem_run(MemRun {
            run,
            kind,
            owner,
            owner_key,
            bytes,
        });
        let unwritten = Unwritten {
            made: self.made,
            freed: None,
            bytes: cost,
        };
        self.unwritten.insert(run.unit, unwritten);
        self.unwritten_bytes += cost;
        Ok(Some(run))
    }

    /// Notes that the working state no longer refers to a run.
    pub fn free_run(&mut self, run: RunRef) {
        let extent = Extent {
            unit: run.unit,
            units: run.units,
        };
        match self.unwritten.get_mut(&run.unit) {
            Some(unwritten) if unwritten.made == self.made => {
                self.unwritten_bytes -= unwritten.bytes;
                self.unwritten.remove(&run.unit);
                self.shared.pages.forget_mem_runs([run.unit].into_iter());
                lock(&self.shared.alloc).give_back(extent);
            }
            Some(unwritten) => {
                unwritten.freed = Some(self.made);
                self.dropped.push((self.made, extent));
            }
            None => {
                self.dropped.push((self.made, extent));
                self.shared.pages.cache.retire(Addr {
                    unit: run.unit,
                    birth: run.birth,
                });
            }
        }
    }

    /// Stores a long key that tree pages refer to.
    pub fn write_key(&mut self, key: &[u8]) -> Result<RunRef> {
        self.write_run(
            RunKind::Key,
            Bytes::new(),
            [0; 16],
            Bytes::copy_from_slice(key),
        )
    }

    /// Notes units that a bulk load has written: the next checkpoint takes them in as they are.
    pub fn add_written(&mut self, extents: Vec<Extent>) {
        let made = self.made;
        self.prewritten
            .extend(extents.into_iter().map(|extent| (made, extent)));
    }

    // --- publish and checkpoint ----------------------------------------------------------------------------------

    /// Ends the current publish number: its pages never change again.
    pub fn end_publish(&mut self) -> u64 {
        let number = self.made;
        for node in std::mem::take(&mut self.replaced) {
            if self.is_frozen(&node) {
                self.orphans.push((number, node));
            }
        }
        self.made += 1;
        self.published_pages += self.own_pages;
        self.own_pages = 0;
        number
    }

    /// Hands everything that published state `publish` needs to checkpoint `birth`.
    pub fn freeze(&mut self, publish: u64) -> Frozen {
        self.frozen = Some(publish);
        self.frozen_pages = std::mem::take(&mut self.published_pages);
        self.birth += 1;
        let dropped = up_to(&mut self.dropped, publish);
        let added = up_to(&mut self.prewritten, publish);
        let mut runs = Vec::new();
        let bytes = &mut self.unwritten_bytes;
        let pages = &self.shared.pages;
        self.unwritten.retain(|unit, unwritten| {
            if unwritten.made > publish {
                return true;
            }
            if unwritten.freed.is_some_and(|freed| freed <= publish) {
                *bytes -= unwritten.bytes;
                return false;
            }
            let run = pages.mem_run(*unit);
            runs.push(run.expect("a run stays in memory until a checkpoint has written it"));
            true
        });
        let units: u64 = runs.iter().map(|run| u64::from(run.run.units)).sum();
        Frozen {
            dropped,
            added,
            bytes: (self.frozen_pages * pages.geo.page_bytes) as u64
                + units * pages.geo.unit_bytes as u64,
            runs,
        }
    }

    /// Takes in the end of a checkpoint.
    pub fn settle_job(&mut self, done: JobDone) {
        let frozen = self.frozen.take().unwrap_or(0);
        let frozen_pages = std::mem::take(&mut self.frozen_pages);
        let frozen_replaced = std::mem::take(&mut self.frozen_replaced);
        let orphans = std::mem::take(&mut self.orphans);
        if done.result.is_err() {
            // Its pages are as unwritten as before; what it was to drop waits for the next one.
            self.published_pages += frozen_pages - frozen_replaced;
            let again =
                |extents: Vec<Extent>| extents.into_iter().map(move |extent| (frozen, extent));
            self.dropped.extend(again(done.dropped));
            self.prewritten.extend(again(done.added));
        } else {
            let replaced = std::mem::take(&mut self.replaced);
            let (written, unwritten) = replaced
                .into_iter()
                .partition(|node| node.addr.get().is_some());
            self.replaced = unwritten;
            let written: Vec<NodeRef> = written;
            let made = self.made;
            for (made, node) in orphans
                .into_iter()
                .chain(written.into_iter().map(|node| (made, node)))
            {
                let addr = node
                    .addr
                    .get()
                    .expect("a finished checkpoint gave every page it wrote an address");
                let extent = Extent {
                    unit: addr.unit,
                    units: self.shared.pages.geo.units_per_page,
                };
                self.dropped.push((made, extent));
            }
            for unit in done.runs {
                if let Some(unwritten) = self.unwritten.remove(&unit) {
                    self.unwritten_bytes -= unwritten.bytes;
                }
            }
        }
    }

    /// Lets go of pages that are durable now: from here on they are reached by address, through the cache. Visits
    /// only pages changed since the checkpoint froze its state.
    pub fn release_durable(&mut self, root: &mut Root, tree: u8) {
        if let Some(kid) = &mut root.kid {
            let mut released = Vec::new();
            self.release(kid, tree, root.level, &mut released);
            self.shared.bury(released);
        }
    }

    fn release(&mut self, kid: &mut Kid, tree: u8, level: u8, released: &mut Vec<NodeRef>) {
        let Kid::Mem(node) = kid else { return };
        if let Some(addr) = node.addr.get().copied() {
            let Kid::Mem(node) = std::mem::replace(kid, Kid::Disk(addr)) else {
                return;
            };
            released.push(node);
            return;
        }
        if !Self::holds_durable(node) {
            return;
        }
        let Ok(node) = self.own(kid, tree, level) else {
            return;
        };
        for i in 0..node.page().len() {
            let Some(child) = node.lift_kid(i) else {
                continue;
            };
            let mut child = Kid::Mem(child);
            self.release(&mut child, tree, level - 1, released);
            match child {
                Kid::Mem(child) => node.put_kid(i, child),
                Kid::Disk(addr) => {
                    node.drop_kid(i);
                    node.page_mut().set_child_addr(i, addr);
                }
            }
        }
    }

    fn holds_durable(node: &Node) -> bool {
        node.kids()
            .any(|kid| kid.addr.get().is_some() || Self::holds_durable(kid))
    }
}
