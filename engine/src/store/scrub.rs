//! Reading the newest durable checkpoint from disk bit by bit, so that rot is found before its bytes are needed.
//!
//! A slice goes on where the last one ended, by tree and key, in whatever checkpoint is the newest then: it holds its
//! pages still for the slice only. All that the checker asks of a page and its place in the tree is asked here too,
//! past the cache: checksum, address, birth, tree, level, count, order, bounds; and of runs. After the trees come the
//! allocation map and the meta page.
//!
//! Invariants:
//! 1. Nothing is written, and no lock is held while reading.
//! 2. Damage ends neither slice nor pass: what the damaged page leads to is passed over.
//! 3. A pass visits every page that is in all checkpoints from its beginning to its end.

use super::btree::{Kid, Root};
use super::check::{PinnedDurable, check_map};
use super::error::{Error, Result};
use super::io::AlignedBuf;
use super::lock;
use super::meta::{META_BYTES, Untrusted, slot_offset};
use super::node::{Node, NodeRef};
use super::page::Addr;
use super::pages::Pages;
use super::store::Store;
use super::types::{RunRef, TreeId};

/// Told the checkpoint's user meta and an entry; adds the runs that the entry owns, directly or through others, those
/// aside that it has read itself with [`Store::read_run_from_disk`].
pub type ScrubVisitor<'a> =
    dyn FnMut(&[u8], TreeId, &[u8], u8, &[u8], &mut Vec<RunRef>) -> Result<()> + 'a;

/// Where a pass stands.
#[derive(Default)]
pub struct ScrubPlace {
    tree: usize,
    /// The next entry looked at is the first that is not below this.
    key: Vec<u8>,
    /// Inner pages that were read last, from the root down.
    path: Vec<(Addr, NodeRef)>,
}

/// What a slice did.
#[derive(Default)]
pub struct ScrubSlice {
    /// Bytes read and found good.
    pub bytes: u64,
    /// What was not.
    pub damage: Vec<Error>,
    /// The pass is over.
    pub finished: bool,
}

impl Store {
    /// Reads about `bytes` more of the newest durable checkpoint.
    pub fn scrub(
        &self,
        place: &mut ScrubPlace,
        bytes: u64,
        visit: &mut ScrubVisitor<'_>,
    ) -> ScrubSlice {
        self.shared.give_way();
        let pinned = PinnedDurable::new(&self.shared);
        let mut slice = Slice {
            pages: &self.shared.pages,
            pinned: &pinned,
            place,
            visit,
            left: bytes,
            done: ScrubSlice::default(),
        };
        slice.run();
        slice.done
    }

    /// Reads a run past the cache, and checks it.
    pub fn read_run_from_disk(&self, run: RunRef) -> Result<bytes::Bytes> {
        self.shared.pages.read_run(run)
    }

    /// Bytes that the newest durable checkpoint takes.
    pub fn durable_bytes(&self) -> u64 {
        let units = lock(&self.shared.durable).map.reached.ones();
        units * self.shared.pages.geo.unit_bytes as u64
    }
}

struct Slice<'a, 'p, 'v> {
    pages: &'a Pages,
    pinned: &'a PinnedDurable<'a>,
    place: &'p mut ScrubPlace,
    visit: &'p mut ScrubVisitor<'v>,
    left: u64,
    done: ScrubSlice,
}

/// What a parent says of the page below.
struct Expected {
    addr: Addr,
    level: u8,
    live: u64,
    born: u64,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

impl Slice<'_, '_, '_> {
    fn run(&mut self) {
        while self.left > 0 {
            let Some(tree) = TreeId::ALL.get(self.place.tree).copied() else {
                self.books();
                *self.place = ScrubPlace::default();
                self.done.finished = true;
                return;
            };
            let mut upper = None;
            if let Err(error) = self.leaf(tree, &mut upper) {
                self.done.damage.push(error);
                self.place.path.clear();
            } else if self.left == 0 {
                // The place is inside of the leaf, or was moved on already.
                return;
            }
            match upper {
                Some(upper) => self.place.key = upper,
                None => {
                    self.place.tree += 1;
                    self.place.key.clear();
                    self.place.path.clear();
                }
            }
        }
    }

    fn good(&mut self, bytes: u64) {
        self.done.bytes += bytes;
        self.left = self.left.saturating_sub(bytes);
    }

    /// Looks at the leaf at the place. `upper` is the bound of the page reached last, good or bad.
    fn leaf(&mut self, tree: TreeId, upper: &mut Option<Vec<u8>>) -> Result<()> {
        let root: &Root = &self.pinned.roots[tree as usize];
        let Some(Kid::Disk(addr)) = root.kid else {
            return Ok(());
        };
        let mut expected = Expected {
            addr,
            level: root.level,
            live: root.live,
            born: u64::MAX,
            lower: Vec::new(),
            upper: None,
        };
        let mut depth = 0;
        loop {
            let node = self.page(tree, &expected, depth)?;
            let page = node.page();
            if page.is_leaf() {
                return self.entries(tree, &node, &expected, upper);
            }
            let i = page.child_for(&self.place.key, self.pages)?;
            let child = page.child(i);
            let mut below = Expected {
                addr: child.addr,
                level: expected.level - 1,
                live: child.live,
                born: expected.addr.birth,
                lower: expected.lower,
                upper: expected.upper,
            };
            if i > 0 {
                below.lower.clear();
                page.key_into(i, self.pages, &mut below.lower)?;
            }
            if i + 1 < page.len() {
                let mut key = Vec::new();
                page.key_into(i + 1, self.pages, &mut key)?;
                below.upper = Some(key);
            }
            upper.clone_from(&below.upper);
            expected = below;
            depth += 1;
        }
    }

    /// Reads a page, unless it is an inner one that the last slice or leaf came by.
    fn page(&mut self, tree: TreeId, expected: &Expected, depth: usize) -> Result<NodeRef> {
        if let Some((addr, node)) = self.place.path.get(depth)
            && *addr == expected.addr
        {
            return Ok(node.clone());
        }
        self.place.path.truncate(depth);
        let node = self.pages.read_node(expected.addr)?;
        let page = node.page();
        let fail = |what: String| Err(self.pages.corrupt(expected.addr.unit, what));
        if page.tree() != tree as u8 || page.level() != expected.level {
            return fail(format!(
                "tree {} level {} where {tree:?} level {} belong",
                page.tree(),
                page.level(),
                expected.level
            ));
        }
        if page.live() != expected.live {
            return fail(format!(
                "{} live entries, the parent says {}",
                page.live(),
                expected.live
            ));
        }
        if expected.addr.birth > expected.born {
            return fail("younger than its parent".into());
        }
        let first = usize::from(!page.is_leaf());
        for i in [first, page.len() - 1] {
            if i < first {
                continue;
            }
            let mut key = Vec::new();
            page.key_into(i, self.pages, &mut key)?;
            let inside =
                expected.lower <= key && expected.upper.as_ref().is_none_or(|upper| key < *upper);
            if !inside {
                return fail(format!(
                    "key {i} is outside of the bounds that its parents set"
                ));
            }
        }
        self.good(self.pages.geo.page_bytes as u64);
        if !page.is_leaf() {
            for i in 1..page.len() {
                self.long_key(&node, i)?;
            }
            self.place.path.push((expected.addr, node.clone()));
        }
        Ok(node)
    }

    fn long_key(&mut self, node: &Node, i: usize) -> Result<()> {
        match node.page().long(i) {
            Some(run) => self.check_run(run),
            None => Ok(()),
        }
    }

    fn check_run(&mut self, run: RunRef) -> Result<()> {
        self.pages.read_run(run)?;
        self.good(u64::from(run.units) * self.pages.geo.unit_bytes as u64);
        Ok(())
    }

    fn entries(
        &mut self,
        tree: TreeId,
        node: &Node,
        expected: &Expected,
        upper: &mut Option<Vec<u8>>,
    ) -> Result<()> {
        let page = node.page();
        let (from, _) = page.search(0, &self.place.key, self.pages)?;
        let mut owned = Vec::new();
        for i in from..page.len() {
            let mut key = Vec::new();
            page.key_into(i, self.pages, &mut key)?;
            let (flags, value) = (page.flags(i), page.value(i));
            owned.clear();
            let listed = (self.visit)(&self.pinned.user, tree, &key, flags, value, &mut owned);
            self.done.damage.extend(listed.err());
            let long = self.long_key(node, i);
            self.done.damage.extend(long.err());
            for run in owned.drain(..) {
                let checked = self.check_run(run);
                self.done.damage.extend(checked.err());
            }
            if self.left == 0 && i + 1 < page.len() {
                // The least key behind this one.
                key.push(0);
                self.place.key = key;
                return Ok(());
            }
        }
        upper.clone_from(&expected.upper);
        if self.left == 0 {
            match &expected.upper {
                Some(upper) => self.place.key.clone_from(upper),
                None => {
                    self.place.tree += 1;
                    self.place.key.clear();
                    self.place.path.clear();
                }
            }
        }
        Ok(())
    }

    /// Allocation map and meta page.
    fn books(&mut self) {
        match check_map(self.pages, &self.pinned.map) {
            Ok(()) => {
                let units =
                    u64::from(self.pinned.map.index.units) + self.pinned.map.pages.len() as u64;
                self.good(units * self.pages.geo.unit_bytes as u64);
            }
            Err(error) => self.done.damage.push(error),
        }
        if let Err(error) = self.meta() {
            self.done.damage.push(error);
        }
    }

    fn meta(&mut self) -> Result<()> {
        let at = slot_offset(self.pinned.slot);
        let mut page = AlignedBuf::new(META_BYTES);
        self.pages
            .file
            .read(at, &mut page)
            .map_err(|error| Error::io(&self.pages.path, at, "reading a meta page", &error))?;
        let checkpoint = self.pinned.checkpoint;
        match Untrusted(&page).verify() {
            Ok(meta) if meta.checkpoint == checkpoint => {
                self.good(META_BYTES as u64);
                Ok(())
            }
            // The slot is written again by the checkpoint after the next.
            _ if lock(&self.pinned.shared.durable).checkpoint != checkpoint => Ok(()),
            Ok(meta) => Err(Error::corrupt(
                &self.pages.path,
                at,
                format!(
                    "the meta page of checkpoint {checkpoint} says {}",
                    meta.checkpoint
                ),
            )),
            Err(fault) => Err(Error::corrupt(
                &self.pages.path,
                at,
                format!("the meta page of checkpoint {checkpoint} is unusable: {fault:?}"),
            )),
        }
    }
}
