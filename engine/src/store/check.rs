//! The checker: walks everything and believes nothing.
//!
//! `Store::check` reads the newest durable checkpoint from disk, past the cache: every page, every key against the
//! bounds its parents set, every count, every run, and compares what it reached with the allocation map.
//! `Snapshot::check` does the same for a published state, pages that are only in memory included, without the map.

use std::sync::Arc;

use super::alloc::{Bitmap, Extent};
use super::btree::{Kid, Root};
use super::error::{Error, Result};
use super::io::AlignedBuf;
use super::lock;
use super::map::{self, Map};
use super::node::{Node, NodeRef};
use super::page::Addr;
use super::pages::Pages;
use super::runs;
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::store::Store;
use super::types::{RunKind, RunRef, SpaceUse, TreeId};

/// Told every entry; adds the runs that the entry leads to, directly or through other runs. A run may be named more
/// than once.
pub type RunVisitor<'a> = dyn FnMut(TreeId, &[u8], u8, &[u8], &mut Vec<RunRef>) -> Result<()> + 'a;

/// What a check saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The durable checkpoint that was checked; 0 for a published state.
    pub checkpoint: u64,
    pub pages: u64,
    pub entries: u64,
    pub live: u64,
    pub runs: u64,
    /// Units reached, map included.
    pub units: u64,
    pub space: SpaceUse,
}

impl Store {
    /// Checks the newest durable checkpoint as it lies on disk. Reads the whole file; slow.
    pub fn check(&self, visit: &mut RunVisitor<'_>) -> Result<CheckReport> {
        let pinned = PinnedDurable::new(&self.shared);
        let pages = &self.shared.pages;
        let mut walk = Walk::new(pages, visit);
        walk.report.checkpoint = pinned.checkpoint;
        for tree in TreeId::ALL {
            walk.root(tree, &pinned.roots[tree as usize])?;
        }
        walk.map(&pinned.map)?;
        if let Some(unit) = walk.seen.first_difference(&pinned.map.reached) {
            let what = if walk.seen.contains(unit) {
                "is in use, the allocation map says it is free"
            } else {
                "is free, the allocation map says it is in use"
            };
            return Err(pages.corrupt(unit, format!("unit {unit} {what}")));
        }
        for extent in walk.seen.extents() {
            let mut units = extent.unit..extent.unit + u64::from(extent.units);
            let alloc = lock(&self.shared.alloc);
            if let Some(unit) = units.find(|unit| !alloc.is_taken(*unit)) {
                return Err(pages.corrupt(
                    unit,
                    format!("unit {unit} is in use, the allocator would hand it out"),
                ));
            }
        }
        walk.report.units = walk.seen.ones();
        Ok(walk.report)
    }
}

impl Snapshot {
    /// Checks this state: structure, order, bounds, counts and runs.
    pub fn check(&self, visit: &mut RunVisitor<'_>) -> Result<CheckReport> {
        let mut walk = Walk::new(&self.store().shared.pages, visit);
        for tree in TreeId::ALL {
            walk.root(tree, self.root(tree))?;
        }
        walk.report.units = walk.seen.ones();
        Ok(walk.report)
    }
}

/// The newest durable checkpoint, held still.
pub(super) struct PinnedDurable<'a> {
    pub shared: &'a Shared,
    pin: u64,
    pub checkpoint: u64,
    pub roots: [Root; 4],
    pub map: Map,
    pub user: Arc<[u8]>,
    /// Its meta page.
    pub slot: usize,
}

impl PinnedDurable<'_> {
    pub fn new(shared: &Shared) -> PinnedDurable<'_> {
        let durable = lock(&shared.durable);
        // One less than its own publish number: the next checkpoint may be one of the same state and drop map pages.
        let pin = durable.publish.saturating_sub(1);
        shared.pin(pin);
        PinnedDurable {
            shared,
            pin,
            checkpoint: durable.checkpoint,
            roots: durable.roots.map(Root::at),
            map: durable.map.clone(),
            user: durable.user.clone(),
            slot: durable.slot,
        }
    }
}

impl Drop for PinnedDurable<'_> {
    fn drop(&mut self) {
        self.shared.unpin(self.pin);
    }
}

struct Walk<'a, 'v> {
    pages: &'a Pages,
    visit: &'a mut RunVisitor<'v>,
    seen: Bitmap,
    runs: std::collections::HashMap<u64, RunRef>,
    report: CheckReport,
}

/// Bounds that a page's keys keep: `[lower, upper)`.
#[derive(Clone, Default)]
struct Fence {
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Fence {
    fn holds(&self, key: &[u8]) -> bool {
        *self.lower <= *key && self.upper.as_deref().is_none_or(|upper| key < upper)
    }
}

impl<'a, 'v> Walk<'a, 'v> {
    fn new(pages: &'a Pages, visit: &'a mut RunVisitor<'v>) -> Walk<'a, 'v> {
        Walk {
            pages,
            visit,
            seen: Bitmap::default(),
            runs: Default::default(),
            report: CheckReport::default(),
        }
    }

    fn root(&mut self, tree: TreeId, root: &Root) -> Result<()> {
        let Some(kid) = &root.kid else { return Ok(()) };
        self.page(
            tree,
            kid,
            root.level,
            root.live,
            u64::MAX,
            &Fence::default(),
        )
    }

    fn see(&mut self, unit: u64, units: u32) -> Result<()> {
        let added = self.seen.insert(Extent { unit, units });
        if added != u64::from(units) {
            return Err(self
                .pages
                .corrupt(unit, format!("unit {unit} is reached twice")));
        }
        Ok(())
    }

    fn load(&mut self, kid: &Kid) -> Result<(NodeRef, Option<Addr>)> {
        match kid {
            Kid::Disk(addr) => Ok((self.pages.read_node(*addr)?, Some(*addr))),
            Kid::Mem(node) => Ok((node.clone(), node.addr.get().copied())),
        }
    }

    fn page(
        &mut self,
        tree: TreeId,
        kid: &Kid,
        level: u8,
        live: u64,
        born: u64,
        fence: &Fence,
    ) -> Result<()> {
        let (node, addr) = self.load(kid)?;
        let page = node.page();
        let unit = addr.map_or(0, |addr| addr.unit);
        if let Some(addr) = addr {
            self.see(addr.unit, self.pages.geo.units_per_page)?;
        }
        let fail = |what: String| Err(self.pages.corrupt(unit, what));
        if let Err(what) = page.check_body(&self.pages.geo) {
            return fail(what);
        }
        if page.tree() != tree as u8 || page.level() != level {
            return fail(format!(
                "tree {} level {} where {tree:?} level {level} belong",
                page.tree(),
                page.level()
            ));
        }
        if page.live() != live {
            return fail(format!(
                "{} live entries, the parent says {live}",
                page.live()
            ));
        }
        if addr.is_some_and(|addr| addr.birth > born) {
            return fail("younger than its parent".into());
        }
        self.report.pages += 1;
        let space = &mut self.report.space;
        let share = match page.is_leaf() {
            true => &mut space.leaves,
            false => &mut space.inner,
        };
        share.add(self.pages.geo.page_bytes, page.used());
        let born = addr.map_or(u64::MAX, |addr| addr.birth);
        if page.is_leaf() {
            self.leaf(tree, &node, unit, fence)
        } else {
            self.inner(tree, &node, unit, born, fence)
        }
    }

    /// The whole keys of a page, checked for order and bounds.
    fn keys(&mut self, node: &Node, unit: u64, from: usize, fence: &Fence) -> Result<Vec<Vec<u8>>> {
        let page = node.page();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for i in from..page.len() {
            let mut key = Vec::new();
            page.key_into(i, self.pages, &mut key)?;
            if let Some(run) = page.long(i) {
                self.run(run)?;
                if !key.starts_with(&[page.prefix(), page.suffix(i)].concat()) {
                    return Err(self
                        .pages
                        .corrupt(unit, format!("long key {i} does not begin with its head")));
                }
            }
            if keys.last().is_some_and(|before| *before >= key) {
                return Err(self
                    .pages
                    .corrupt(unit, format!("key {i} is not above the one before")));
            }
            if !fence.holds(&key) {
                return Err(self.pages.corrupt(
                    unit,
                    format!("key {i} is outside of the bounds that its parents set"),
                ));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    fn leaf(&mut self, tree: TreeId, node: &Node, unit: u64, fence: &Fence) -> Result<()> {
        let page = node.page();
        let keys = self.keys(node, unit, 0, fence)?;
        let mut named = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            (self.visit)(tree, key, page.flags(i), page.value(i), &mut named)?;
        }
        named.into_iter().try_for_each(|run| self.run(run))?;
        self.report.entries += keys.len() as u64;
        self.report.live += page.live();
        Ok(())
    }

    fn inner(
        &mut self,
        tree: TreeId,
        node: &Node,
        unit: u64,
        born: u64,
        fence: &Fence,
    ) -> Result<()> {
        let page = node.page();
        let keys = self.keys(node, unit, 1, fence)?;
        for i in 0..page.len() {
            let bounds = Fence {
                lower: if i == 0 {
                    fence.lower.clone()
                } else {
                    keys[i - 1].clone()
                },
                upper: keys.get(i).cloned().or_else(|| fence.upper.clone()),
            };
            let child = page.child(i);
            let kid = match node.kid(i) {
                Some(kid) => Kid::Mem(kid.clone()),
                None => Kid::Disk(child.addr),
            };
            self.page(tree, &kid, page.level() - 1, child.live, born, &bounds)?;
        }
        Ok(())
    }

    fn run(&mut self, run: RunRef) -> Result<()> {
        if let Some(known) = self.runs.get(&run.unit) {
            if *known == run {
                return Ok(());
            }
            return Err(self
                .pages
                .corrupt(run.unit, "two references to this run say different things"));
        }
        let kind = match self.pages.mem_run(run.unit) {
            Some(mem) if mem.run == run => {
                if runs::contents_crc(self.pages.seed, &mem.bytes) != run.crc {
                    return Err(self.pages.corrupt(run.unit, "a run in memory has changed"));
                }
                Some(mem.kind)
            }
            _ => {
                let (image, _) = self.pages.run_image(run)?;
                runs::describe(&self.pages.geo, &image, run.unit).map(|said| said.kind)
            }
        };
        let space = &mut self.report.space;
        let share = match kind {
            Some(RunKind::Value) => &mut space.values,
            Some(RunKind::Chunk) => &mut space.chunks,
            Some(RunKind::Key) => &mut space.keys,
            None => return Err(self.pages.corrupt(run.unit, "a run of no known kind")),
        };
        let units = run.units as usize;
        share.add(units * self.pages.geo.unit_bytes, run.len as usize);
        self.see(run.unit, run.units)?;
        self.runs.insert(run.unit, run);
        self.report.runs += 1;
        Ok(())
    }

    /// Checks the map's own pages against what is in memory.
    fn map(&mut self, map: &Map) -> Result<()> {
        if map.index.pages == 0 {
            return Ok(());
        }
        check_map(self.pages, map)?;
        let units = map.index.units as usize + map.pages.len();
        let bytes = units * self.pages.geo.unit_bytes;
        self.report.space.map.add(bytes, bytes);
        self.see(map.index.unit, map.index.units)?;
        map.pages.iter().try_for_each(|addr| self.see(addr.unit, 1))
    }
}

/// Reads a map from disk and holds it against the one in memory.
pub(super) fn check_map(pages: &Pages, map: &Map) -> Result<()> {
    let geo = pages.geo;
    if map.index.pages == 0 {
        return Ok(());
    }
    let mut image = AlignedBuf::new(map.index.units as usize * geo.unit_bytes);
    pages.read_at(map.index.unit, &mut image, "reading the map index")?;
    let corrupt =
        |unit: u64| move |what: String| Error::corrupt(&pages.path, geo.offset(unit), what);
    let addrs =
        map::check_index(&geo, &image, map.index, pages.seed).map_err(corrupt(map.index.unit))?;
    if addrs != map.pages {
        return Err(corrupt(map.index.unit)(
            "the map index on disk and the one in memory differ".into(),
        ));
    }
    let mut stored = Bitmap::default();
    for (number, addr) in addrs.iter().enumerate() {
        let mut image = AlignedBuf::new(geo.unit_bytes);
        pages.read_at(addr.unit, &mut image, "reading a map page")?;
        map::check_page(&image, number, *addr, pages.seed, &mut stored)
            .map_err(corrupt(addr.unit))?;
    }
    if let Some(unit) = stored.first_difference(&map.reached) {
        return Err(corrupt(unit)(format!(
            "the map on disk and the one in memory differ at unit {unit}"
        )));
    }
    Ok(())
}
