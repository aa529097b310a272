//! The trees: look-up, count, insert, remove. All changes go through [`Space::own`], so a published page is never
//! touched; reading needs nothing but a root.
//!
//! Shape: leaves hold entries, inner pages hold for every child the least key that may lie in it (the first child has
//! none), its address and its number of live entries. A page that overflows is divided in two; a page that
//! deletes leave less than 65 % full is merged with a neighbour when both fit in nine tenths, or a leaf with two
//! neighbours to make two; an empty page is dropped. So under random inserts and deletes pages are 65 % full on average. The root has two children at
//! least, or is a leaf.

use std::sync::OnceLock;
#[cfg(test)]
use std::sync::atomic::Ordering;

use super::cache::Frame;
use super::cells::Cells;
use super::error::{Error, Result};
use super::meta::RootAt;
use super::node::{NewNode, Node, NodeRef};
use super::page::{Addr, Child, NO_CHILD, Page, StoredKey, common};
use super::pages::Pages;
use super::space::Space;
use super::types::{LIVE, RunRef};

/// A page less full than this looks whether it can give its entries to its neighbours.
const FULL_ENOUGH_PERCENT: usize = 65;

/// Longest key the trees take.
pub(super) const KEY_BYTES_MAX: usize = 64 << 20;

/// A page: in memory because no checkpoint has written it, or on disk.
#[derive(Clone)]
pub(super) enum Kid {
    Mem(NodeRef),
    Disk(Addr),
}

/// The root of one tree in one state.
#[derive(Clone, Default)]
pub(super) struct Root {
    pub kid: Option<Kid>,
    pub level: u8,
    pub live: u64,
}

/// The child `i` of an inner page.
pub(super) fn child_of(pages: &Pages, node: &Node, i: usize) -> Result<NodeRef> {
    match node.kid(i) {
        Some(kid) => Ok(kid.clone()),
        None => {
            let page = node.page();
            pages.node(page.child(i).addr, page.tree(), page.level() - 1)
        }
    }
}

/// The two upper levels of a published tree, kept at hand: every read passes them, and looking them up in the cache
/// each time costs as much as reading them. Filled by reads as they come by.
///
/// What this holds is bounded: the root and its inner children, up to [`Top::KIDS_MAX`] of them.
#[derive(Default)]
pub(super) struct Top {
    root: OnceLock<NodeRef>,
    kids: OnceLock<Box<[OnceLock<NodeRef>]>>,
}

impl Top {
    const KIDS_MAX: usize = 64;

    /// The root page of `root`, whose top this must be.
    pub fn root<'a>(
        &'a self,
        root: &'a Root,
        pages: &Pages,
        tree: u8,
    ) -> Result<Option<&'a NodeRef>> {
        match &root.kid {
            None => Ok(None),
            Some(Kid::Mem(node)) => Ok(Some(node)),
            Some(Kid::Disk(addr)) => match self.root.get() {
                Some(node) => Ok(Some(node)),
                None => {
                    let node = pages.node(*addr, tree, root.level)?;
                    Ok(Some(self.root.get_or_init(|| node)))
                }
            },
        }
    }

    /// Where child `i` of the root page is kept, if it may be.
    fn place(&self, root: &Node, i: usize) -> Option<&OnceLock<NodeRef>> {
        let page = root.page();
        if page.level() < 2 || page.len() > Self::KIDS_MAX {
            return None;
        }
        let kids = self
            .kids
            .get_or_init(|| (0..page.len()).map(|_| OnceLock::new()).collect());
        kids.get(i)
    }

    /// Child `i` of the root page, borrowed, if it is one to keep.
    fn kept<'a>(&'a self, pages: &Pages, root: &Node, i: usize) -> Result<Option<&'a NodeRef>> {
        let Some(place) = self.place(root, i) else {
            return Ok(None);
        };
        if place.get().is_none() {
            let child = child_of(pages, root, i)?;
            return Ok(Some(place.get_or_init(|| child)));
        }
        Ok(place.get())
    }

    /// Child `i` of the root page.
    pub fn child(&self, pages: &Pages, root: &Node, i: usize) -> Result<NodeRef> {
        match self.kept(pages, root, i)? {
            Some(child) => Ok(child.clone()),
            None => child_of(pages, root, i),
        }
    }
}

impl Root {
    /// A root as a durable checkpoint has it.
    pub fn at(found: Option<RootAt>) -> Root {
        match found {
            None => Root::default(),
            Some(found) => Root {
                kid: Some(Kid::Disk(found.addr)),
                level: found.level,
                live: found.live,
            },
        }
    }

    pub fn node(&self, pages: &Pages, tree: u8) -> Result<Option<NodeRef>> {
        match &self.kid {
            None => Ok(None),
            Some(Kid::Mem(node)) => Ok(Some(node.clone())),
            Some(Kid::Disk(addr)) => pages.node(*addr, tree, self.level).map(Some),
        }
    }

    /// Calls `f` with flags and value of `key`.
    pub fn get<R>(
        &self,
        pages: &Pages,
        tree: u8,
        key: &[u8],
        f: impl FnOnce(u8, &[u8]) -> R,
    ) -> Result<Option<R>> {
        match &self.kid {
            None => Ok(None),
            Some(Kid::Mem(node)) => get_below(pages, node, key, f),
            Some(Kid::Disk(addr)) => {
                let node = pages.node(*addr, tree, self.level)?;
                get_below(pages, &node, key, f)
            }
        }
    }

    /// As [`Root::get`], by way of the pages in `top`.
    pub fn get_by<R>(
        &self,
        top: &Top,
        pages: &Pages,
        tree: u8,
        key: &[u8],
        f: impl FnOnce(u8, &[u8]) -> R,
    ) -> Result<Option<R>> {
        let Some(root) = top.root(self, pages, tree)? else {
            return Ok(None);
        };
        if root.page().is_leaf() {
            return get_below(pages, root, key, f);
        }
        let i = root.page().child_for(key, pages)?;
        if let Some(kid) = root.kid(i) {
            return get_below(pages, kid, key, f);
        }
        match top.kept(pages, root, i)? {
            Some(kid) => get_below(pages, kid, key, f),
            None => get_below(pages, &child_of(pages, root, i)?, key, f),
        }
    }

    /// Live entries with keys below `key`.
    pub fn count_below(&self, pages: &Pages, tree: u8, key: &[u8]) -> Result<u64> {
        let Some(mut node) = self.node(pages, tree)? else {
            return Ok(0);
        };
        let mut count = 0;
        while !node.page().is_leaf() {
            let page = node.page();
            let i = page.child_for(key, pages)?;
            count += (0..i).map(|j| page.child_live(j)).sum::<u64>();
            node = child_of(pages, &node, i)?;
        }
        let page = node.page();
        let (i, _) = page.search(0, key, pages)?;
        Ok(count + (0..i).map(|j| u64::from(page.flags(j) & LIVE)).sum::<u64>())
    }

    /// Live entries with keys in `[start, end)`; without `end`, to the last.
    pub fn count(&self, pages: &Pages, tree: u8, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
        let upto = match end {
            Some(end) if end <= start => return Ok(0),
            Some(end) => self.count_below(pages, tree, end)?,
            None => self.live,
        };
        let before = if start.is_empty() {
            0
        } else {
            self.count_below(pages, tree, start)?
        };
        Ok(upto - before)
    }
}

/// Calls `f` with flags and value of `key`, which can only be below `node`.
fn get_below<R>(
    pages: &Pages,
    node: &Node,
    key: &[u8],
    f: impl FnOnce(u8, &[u8]) -> R,
) -> Result<Option<R>> {
    let mut owned;
    let mut node = node;
    // Pages in memory are reached by reference; the first one that is not begins a chain of counted ones.
    let start = loop {
        if node.page().is_leaf() {
            break None;
        }
        let i = node.page().child_for(key, pages)?;
        match node.kid(i) {
            Some(kid) => node = kid,
            None => break Some(child_of(pages, node, i)?),
        }
    };
    if let Some(start) = start {
        owned = start;
        while !owned.page().is_leaf() {
            let i = owned.page().child_for(key, pages)?;
            owned = child_of(pages, &owned, i)?;
        }
        node = &owned;
    }
    let page = node.page();
    let (i, found) = page.search(0, key, pages)?;
    Ok(found.then(|| f(page.flags(i), page.value(i))))
}

/// What an insertion did below.
struct Inserted {
    /// Flags of the entry that was there.
    previous: Option<u8>,
    split: Option<Split>,
}

/// A page that came into being to the right of another.
struct Split {
    key: SeparatorKey,
    node: NodeRef,
}

struct SeparatorKey {
    bytes: Vec<u8>,
    long: Option<RunRef>,
}

impl SeparatorKey {
    fn stored(&self) -> StoredKey<'_> {
        StoredKey {
            bytes: &self.bytes,
            long: self.long,
        }
    }
}

/// The tree being changed.
pub(super) struct Tree<'a> {
    pub space: &'a mut Space,
    pub id: u8,
}

impl Tree<'_> {
    /// Puts an entry in; the flags of the one that was there.
    pub fn insert(
        &mut self,
        root: &mut Root,
        key: &[u8],
        flags: u8,
        value: &[u8],
    ) -> Result<Option<u8>> {
        self.check_sizes(key, value)?;
        let mut kid = match root.kid.take() {
            Some(kid) => kid,
            None => {
                root.level = 0;
                Kid::Mem(self.space.new_page(self.id, 0).share())
            }
        };
        let done = self.insert_at(&mut kid, root.level, key, flags, value, true);
        root.kid = Some(kid);
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.drop_empty_root(root);
                return Err(error);
            }
        };
        if let Some(split) = done.split {
            self.grow(root, split);
        }
        root.live = root_live(root);
        Ok(done.previous)
    }

    fn drop_empty_root(&mut self, root: &mut Root) {
        if let Some(Kid::Mem(node)) = &root.kid
            && node.page().len() == 0
        {
            let kid = Kid::Mem(node.clone());
            self.space.retire(&kid);
            *root = Root::default();
        }
    }

    pub fn check_sizes(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let value_max = self.space.pages().geo.value_max;
        for (what, bytes, bytes_max) in [
            ("a key", key.len(), KEY_BYTES_MAX),
            ("a value", value.len(), value_max),
        ] {
            if bytes > bytes_max {
                return Err(Error::TooLarge {
                    what,
                    bytes,
                    bytes_max,
                });
            }
        }
        Ok(())
    }

    /// A new root above the two halves of the old one.
    fn grow(&mut self, root: &mut Root, split: Split) {
        let Some(Kid::Mem(left)) = root.kid.take() else {
            unreachable!("a page that was just divided is in memory")
        };
        let mut cells = Cells::new(false);
        let nothing = StoredKey {
            bytes: &[],
            long: None,
        };
        cells.insert_child(0, nothing, in_memory(&left), Some(left));
        cells.insert_child(
            1,
            split.key.stored(),
            in_memory(&split.node),
            Some(split.node),
        );
        root.level += 1;
        let node = self.build(&cells, root.level, 0, 2);
        root.kid = Some(Kid::Mem(self.space.adopt(node)));
    }

    fn build(&self, cells: &Cells, level: u8, from: usize, to: usize) -> NewNode {
        cells.build(
            &self.space.pages().geo,
            self.id,
            level,
            from,
            to,
            self.space.made(),
        )
    }

    fn insert_at(
        &mut self,
        kid: &mut Kid,
        level: u8,
        key: &[u8],
        flags: u8,
        value: &[u8],
        edge: bool,
    ) -> Result<Inserted> {
        let node = self.space.own(kid, self.id, level)?;
        if level == 0 {
            return self.insert_leaf(node, key, flags, value, edge);
        }
        let i = node.page().child_for(key, self.space.pages())?;
        let edge = edge && i + 1 == node.page().len();
        let mut child = take_child(node, i);
        let done = self.insert_at(&mut child, level - 1, key, flags, value, edge);
        put_child(node, i, child);
        let done = done?;
        let Some(split) = done.split else {
            return Ok(done);
        };
        let right = in_memory(&split.node);
        let split = if node
            .page_mut()
            .inner_insert(i + 1, split.key.stored(), right)
        {
            let live = node.page().live() + right.live;
            node.page_mut().set_live(live);
            node.add_kid(i + 1, split.node);
            None
        } else {
            let mut cells = Cells::of(node);
            cells.insert_child(i + 1, split.key.stored(), right, Some(split.node));
            self.rebuild(node, &cells, edge)?
        };
        Ok(Inserted {
            previous: done.previous,
            split,
        })
    }

    fn insert_leaf(
        &mut self,
        node: &mut Node,
        key: &[u8],
        flags: u8,
        value: &[u8],
        edge: bool,
    ) -> Result<Inserted> {
        let page = node.page();
        let (i, found) = page.search(0, key, self.space.pages())?;
        if found {
            let previous = Some(page.flags(i));
            let mut split = None;
            if !node.page_mut().leaf_replace(i, flags, value) {
                let mut cells = Cells::of(node);
                cells.replace_entry(i, flags, value);
                split = self.rebuild(node, &cells, false)?;
            }
            return Ok(Inserted { previous, split });
        }
        let ascending = i == page.len() && (edge || i > 0 && page.hint() == i - 1);
        let geo = self.space.pages().geo;
        let stored = if key.len() > geo.key_inline_max {
            StoredKey {
                bytes: &key[..geo.key_head],
                long: Some(self.space.write_key(key)?),
            }
        } else {
            StoredKey {
                bytes: key,
                long: None,
            }
        };
        let mut split = None;
        if !node.page_mut().leaf_insert(i, stored, flags, value) {
            let mut cells = Cells::of(node);
            cells.insert_entry(i, stored, flags, value);
            let done = self.rebuild(node, &cells, ascending);
            if let (Err(_), Some(run)) = (&done, stored.long) {
                self.space.free_run(run);
            }
            split = done?;
        }
        Ok(Inserted {
            previous: None,
            split,
        })
    }

    /// Puts the entries back: into the page when they fit with some room to spare, else into it and a new one.
    fn rebuild(
        &mut self,
        node: &mut Node,
        cells: &Cells,
        ascending: bool,
    ) -> Result<Option<Split>> {
        let capacity = self.space.pages().geo.capacity();
        let (level, size, n) = (node.page().level(), cells.size(), cells.len());
        let at = if size <= capacity - capacity / 16 {
            None
        } else {
            cells.split_at(capacity, ascending)
        };
        let Some(at) = at else {
            assert!(
                size <= capacity,
                "entries that do not fit one page can always be divided: page invariant 4"
            );
            node.become_as(self.build(cells, level, 0, n));
            return Ok(None);
        };
        let key = self.separator(cells, at, level)?;
        node.become_as(self.build(cells, level, 0, at));
        let right = self.build(cells, level, at, n);
        Ok(Some(Split {
            key,
            node: self.space.adopt(right),
        }))
    }

    /// The key between slots `at - 1` and `at`. Of an inner page it is the key of `at`, which moves up; of a leaf the
    /// shortest that separates the two.
    fn separator(&mut self, cells: &Cells, at: usize, level: u8) -> Result<SeparatorKey> {
        let right = cells.key(at);
        if level > 0 {
            return Ok(SeparatorKey {
                bytes: right.bytes.to_vec(),
                long: right.long,
            });
        }
        let left = cells.key(at - 1);
        let same = common(left.bytes, right.bytes);
        let differ_in_page = same < left.bytes.len() || left.long.is_none();
        if differ_in_page && same < right.bytes.len() {
            return Ok(SeparatorKey {
                bytes: right.bytes[..=same].to_vec(),
                long: None,
            });
        }
        let (left, right) = (self.whole(left)?, self.whole(right)?);
        let bytes = &right[..=common(&left, &right)];
        let geo = self.space.pages().geo;
        if bytes.len() <= geo.key_inline_max {
            return Ok(SeparatorKey {
                bytes: bytes.to_vec(),
                long: None,
            });
        }
        Ok(SeparatorKey {
            bytes: bytes[..geo.key_head].to_vec(),
            long: Some(self.space.write_key(bytes)?),
        })
    }

    fn whole(&self, key: StoredKey<'_>) -> Result<bytes::Bytes> {
        match key.long {
            Some(run) => self.space.pages().run(run),
            None => Ok(bytes::Bytes::copy_from_slice(key.bytes)),
        }
    }

    /// Takes the entry of `key` out; whether there was one.
    pub fn remove(&mut self, root: &mut Root, key: &[u8]) -> Result<bool> {
        if root
            .get(self.space.pages(), self.id, key, |_, _| ())?
            .is_none()
        {
            return Ok(false);
        }
        let Some(mut kid) = root.kid.take() else {
            return Ok(false);
        };
        let done = self.remove_at(&mut kid, root.level, key);
        root.kid = Some(kid);
        self.shrink(root);
        root.live = root_live(root);
        done.map(|()| true)
    }

    /// Drops roots that are empty or have one child only.
    fn shrink(&mut self, root: &mut Root) {
        while let Some(Kid::Mem(node)) = &root.kid {
            let page = node.page();
            let below = match (page.is_leaf(), page.len()) {
                (_, 0) => None,
                (false, 1) => Some(match node.kid(0) {
                    Some(kid) => Kid::Mem(kid.clone()),
                    None => Kid::Disk(page.child(0).addr),
                }),
                _ => return,
            };
            let (live, old) = (page.live(), root.kid.take());
            if let Some(old) = old {
                self.space.retire(&old);
            }
            root.level = if below.is_some() { root.level - 1 } else { 0 };
            root.live = live;
            root.kid = below;
        }
    }

    fn remove_at(&mut self, kid: &mut Kid, level: u8, key: &[u8]) -> Result<()> {
        let node = self.space.own(kid, self.id, level)?;
        if level == 0 {
            let (i, found) = node.page().search(0, key, self.space.pages())?;
            debug_assert!(found, "remove looked the key up first");
            let long = node.page().long(i);
            node.page_mut().leaf_remove(i);
            if let Some(run) = long {
                self.space.free_run(run);
            }
            return Ok(());
        }
        let i = node.page().child_for(key, self.space.pages())?;
        let mut child = take_child(node, i);
        let done = self.remove_at(&mut child, level - 1, key);
        put_child(node, i, child);
        done?;
        self.mend(node, i)
    }

    /// Drops child `i` when it is empty, merges it with a neighbour when it is small.
    fn mend(&mut self, node: &mut Node, i: usize) -> Result<()> {
        let Some(child) = node.kid(i) else {
            return Ok(());
        };
        let (len, used) = (child.page().len(), child.page().used());
        if len == 0 {
            let empty = Kid::Mem(child.clone());
            self.space.retire(&empty);
            self.drop_slot(node, i, true);
            return Ok(());
        }
        let capacity = self.space.pages().geo.capacity();
        if used >= capacity * FULL_ENOUGH_PERCENT / 100 {
            return Ok(());
        }
        // What is not in memory is worth reading only for a page that is nearly empty.
        let read = used < capacity / 3;
        let n = node.page().len();
        let pairs = [Some(i), i.checked_sub(1)].map(|left| (left, 2));
        let threes = [i.checked_sub(1), Some(i), i.checked_sub(2)].map(|left| (left, 3));
        for (left, count) in pairs.into_iter().chain(threes) {
            let Some(left) = left else { continue };
            if count == 3 && node.page().level() > 1 {
                continue;
            }
            if left + count <= n
                && self.at_hand(node, left, count, read)
                && self.rejoin(node, left, count, count - 1)?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether these children can be had without reading, or are to be read.
    fn at_hand(&self, node: &Node, from: usize, count: usize, read: bool) -> bool {
        let cache = &self.space.pages().cache;
        read || (from..from + count)
            .all(|i| node.kid(i).is_some() || cache.peek(node.page().child(i).addr).is_some())
    }

    /// Makes `into` pages of the `count` children from `left` on, when these fill them to nine tenths at most and the
    /// keys between them fit the page; whether they did.
    fn rejoin(&mut self, node: &mut Node, left: usize, count: usize, into: usize) -> Result<bool> {
        let limit = page_limit(self.space.pages());
        let capacity = self.space.pages().geo.capacity();
        let level = node.page().level() - 1;
        let mut children = Vec::with_capacity(count);
        let (mut body, mut bytes, mut entries) = (0, 0, 0);
        for i in left..left + count {
            let child = child_of(self.space.pages(), node, i)?;
            let page = child.page();
            body += Weight::of(page).body;
            if body > into * limit {
                return Ok(false);
            }
            bytes += page.used() + page.len() * page.prefix().len();
            entries += page.len();
            children.push(child);
        }
        let mut cells = Cells::with_room(level == 0, bytes, entries);
        for (i, child) in (left..).zip(&children) {
            let first = cells.len();
            cells.append(child);
            if level > 0 && i > left {
                // The key that stood between the two goes down with the child that had none.
                let page = node.page();
                let bytes = [page.prefix(), page.suffix(i)].concat();
                let key = StoredKey {
                    bytes: &bytes,
                    long: page.long(i),
                };
                cells.set_key(first, key);
            }
        }
        // On average nine tenths; a page may be fuller where entries are long, but not so full that it is as good as split.
        let Some(cuts) = cells.divide(capacity - capacity / 16, into) else {
            return Ok(false);
        };
        let Some(keys) = self.separators(node, &cells, &cuts, left..left + count)? else {
            return Ok(false);
        };
        let ends = cuts.iter().copied().chain([cells.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let built: Vec<NewNode> = starts
            .zip(ends)
            .map(|(from, to)| self.build(&cells, level, from, to))
            .collect();
        drop((cells, children));
        for i in left..left + count {
            let child = take_child(node, i);
            self.space.retire(&child);
        }
        for i in (left + 1..left + count).rev() {
            self.drop_slot(node, i, level == 0);
        }
        let mut built = built.into_iter();
        if let Some(first) = built.next() {
            let first = self.space.adopt(first);
            put_child(node, left, Kid::Mem(first));
        }
        for (i, (key, next)) in (left + 1..).zip(keys.iter().zip(built)) {
            let next = self.space.adopt(next);
            let child = in_memory(&next);
            let inserted = node.page_mut().inner_insert(i, key.stored(), child);
            assert!(inserted, "its room was counted");
            let live = node.page().live() + child.live;
            node.page_mut().set_live(live);
            node.add_kid(i, next);
        }
        Ok(true)
    }

    /// The keys between the pages that `cells` are cut into, if they have room where those between the children
    /// `old` stand.
    fn separators(
        &mut self,
        node: &Node,
        cells: &Cells,
        cuts: &[usize],
        old: std::ops::Range<usize>,
    ) -> Result<Option<Vec<SeparatorKey>>> {
        let page = node.page();
        let level = page.level() - 1;
        let freed: usize = old.skip(1).map(|i| page.slot_bytes(i)).sum();
        let mut room = self.space.pages().geo.capacity() - page.used() + freed;
        let mut keys: Vec<SeparatorKey> = Vec::with_capacity(cuts.len());
        let mut failed = None;
        for at in cuts {
            #[cfg(test)]
            let late = usize::from(self.space.shared.cut_late.load(Ordering::Relaxed));
            #[cfg(test)]
            let at = &(at + late).min(cells.len() - 1);
            let key = match self.separator(cells, *at, level) {
                Ok(key) => key,
                Err(error) => {
                    failed = Some(Err(error));
                    break;
                }
            };
            let fits = key.bytes.starts_with(page.prefix());
            let suffix = key.bytes.len().saturating_sub(page.prefix().len());
            let takes = page.child_bytes(suffix, key.long.is_some());
            keys.push(key);
            if !fits || takes > room {
                failed = Some(Ok(None));
                break;
            }
            room -= takes;
        }
        let Some(failed) = failed else {
            return Ok(Some(keys));
        };
        // Those of inner pages stay where they are.
        for run in keys.into_iter().filter_map(|key| key.long) {
            if level == 0 {
                self.space.free_run(run);
            }
        }
        failed
    }

    /// Removes a child's slot. `free_key`: the key that goes with it is not kept elsewhere.
    fn drop_slot(&mut self, node: &mut Node, i: usize, free_key: bool) {
        // Without its first child a page's second one needs no key any more.
        let keyless = if i == 0 { 1 } else { i };
        let long = (keyless < node.page().len())
            .then(|| node.page().long(keyless))
            .flatten();
        node.drop_kid(i);
        node.page_mut().inner_remove(i);
        if let (Some(run), true) = (long, free_key) {
            self.space.free_run(run);
        }
    }

    /// Makes fewer pages of the `count` pages of `level` from the one that holds `key` on, as far as they are at hand
    /// and lie below one page; how many pages were written for how many.
    pub fn pack(
        &mut self,
        root: &mut Root,
        level: u8,
        key: &[u8],
        count: usize,
    ) -> Result<Option<Packed>> {
        let Some((left, found)) = self.find_window(root, level, key, count)? else {
            return Ok(None);
        };
        let Some(mut kid) = root.kid.take() else {
            return Ok(None);
        };
        let done = self.pack_at(&mut kid, root.level, level, key, (left, &found));
        root.kid = Some(kid);
        self.shrink(root);
        root.live = root_live(root);
        Ok(done?.map(|after| Packed {
            before: found.count,
            after,
        }))
    }

    /// Looks for something to pack, and changes nothing.
    fn find_window(
        &self,
        root: &Root,
        level: u8,
        key: &[u8],
        count: usize,
    ) -> Result<Option<(usize, Window)>> {
        let pages = self.space.pages();
        if root.level <= level {
            return Ok(None);
        }
        let Some(mut node) = root.node(pages, self.id)? else {
            return Ok(None);
        };
        while node.page().level() > level + 1 {
            let i = node.page().child_for(key, pages)?;
            node = child_of(pages, &node, i)?;
        }
        let first = node.page().child_for(key, pages)?;
        let mut weights = Vec::with_capacity(count);
        for i in first..node.page().len().min(first + count) {
            let held = match node.kid(i) {
                Some(kid) => kid.clone(),
                None => match pages.cache.peek(node.page().child(i).addr) {
                    Some(Frame::Node(held)) => held,
                    _ => break,
                },
            };
            weights.push(Weight::of(held.page()));
        }
        let found = Window::find(page_limit(pages), &weights);
        Ok(found.map(|window| (first + window.first, window)))
    }

    fn pack_at(
        &mut self,
        kid: &mut Kid,
        at: u8,
        level: u8,
        key: &[u8],
        window: (usize, &Window),
    ) -> Result<Option<usize>> {
        let node = self.space.own(kid, self.id, at)?;
        if at == level + 1 {
            let (left, window) = window;
            // Entries of many sizes may not divide as evenly as was counted on.
            for into in [window.into, window.into + 1] {
                if into < window.count && self.rejoin(node, left, window.count, into)? {
                    return Ok(Some(into));
                }
            }
            return Ok(None);
        }
        let i = node.page().child_for(key, self.space.pages())?;
        let mut child = take_child(node, i);
        let done = self.pack_at(&mut child, at - 1, level, key, window);
        put_child(node, i, child);
        let done = done?;
        self.mend(node, i)?;
        Ok(done)
    }
}

/// What packing did: pages before and after.
pub(super) struct Packed {
    pub before: usize,
    pub after: usize,
}

/// How much of a page must lie somewhere, whatever it is divided into.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    /// Bytes of the entries.
    pub body: usize,
    /// Bytes that they share.
    pub prefix: usize,
}

impl Weight {
    pub fn of(page: Page<'_>) -> Weight {
        let prefix = page.prefix().len();
        Weight {
            body: page.used() - prefix,
            prefix,
        }
    }
}

/// Bytes behind the header up to which pages are filled that are made of others: nine tenths. What is left takes the
/// next few inserts; see `pack` for the choice.
pub(super) fn page_limit(pages: &Pages) -> usize {
    pages.geo.capacity() / 10 * 9
}

/// Adjacent pages that would be fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub first: usize,
    pub count: usize,
    pub into: usize,
}

impl Window {
    /// The part of these adjacent pages without which they could not become as many fewer as they can.
    pub fn find(limit: usize, pages: &[Weight]) -> Option<Window> {
        let needed = |part: &[Weight]| {
            let body: usize = part.iter().map(|page| page.body).sum();
            let prefix = part.iter().map(|page| page.prefix).max().unwrap_or(0);
            body.div_ceil(limit.saturating_sub(prefix).max(1)).max(1)
        };
        let saved = |part: &[Weight]| part.len().saturating_sub(needed(part));
        let most = saved(pages);
        let mut part = 0..pages.len();
        while most > 0 && saved(&pages[part.start + 1..part.end]) == most {
            part.start += 1;
        }
        while most > 0 && saved(&pages[part.start..part.end - 1]) == most {
            part.end -= 1;
        }
        (most > 0).then_some(Window {
            first: part.start,
            count: part.len(),
            into: part.len() - most,
        })
    }
}

fn in_memory(node: &NodeRef) -> Child {
    Child {
        live: node.page().live(),
        ..NO_CHILD
    }
}

fn root_live(root: &Root) -> u64 {
    match &root.kid {
        Some(Kid::Mem(node)) => node.page().live(),
        Some(Kid::Disk(_)) => root.live,
        None => 0,
    }
}

pub(super) fn take_child(node: &mut Node, i: usize) -> Kid {
    match node.lift_kid(i) {
        Some(kid) => Kid::Mem(kid),
        None => Kid::Disk(node.page().child(i).addr),
    }
}

/// Puts a child back and brings its live count up to date.
pub(super) fn put_child(node: &mut Node, i: usize, child: Kid) {
    if let Kid::Mem(child) = child {
        let live = child.page().live();
        node.page_mut().set_child_live(i, live);
        node.put_kid(i, child);
    }
}
