//! A position in a tree, moved in key order both ways.

use super::btree::{Root, Top, child_of};
use super::error::Result;
use super::node::{Node, NodeRef};
use super::pages::Pages;

/// How many entries before it is read a scan asks for one.
const FETCH_AHEAD: usize = 4;

/// Stands on an entry or nowhere. After an error it stands nowhere.
pub struct Cursor<'a> {
    pages: &'a Pages,
    root: &'a Root,
    tree: u8,
    /// From the root down: page and slot. The last one is a leaf whenever the cursor stands on an entry.
    path: Vec<(NodeRef, usize)>,
    key: Vec<u8>,
    flags: u8,
    /// Where in the leaf the value lies.
    value: (usize, usize),
    /// The first bytes of `key` are the leaf's prefix.
    prefix_laid: bool,
    valid: bool,
    skip_dead: bool,
    /// Upper pages at hand.
    top: Option<&'a Top>,
    /// Where moves upwards end.
    end: Option<Vec<u8>>,
    /// Slots of the leaf below `end`.
    stop: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(
        pages: &'a Pages,
        root: &'a Root,
        tree: u8,
        top: Option<&'a Top>,
    ) -> Cursor<'a> {
        Cursor {
            pages,
            root,
            tree,
            path: Vec::with_capacity(usize::from(root.level) + 1),
            key: Vec::with_capacity(128),
            flags: 0,
            value: (0, 0),
            prefix_laid: false,
            valid: false,
            skip_dead: false,
            top,
            end: None,
            stop: usize::MAX,
        }
    }

    /// From now on `seek` and `next` find nothing at or behind `end`.
    pub fn until(&mut self, end: &[u8]) {
        self.end = Some(end.to_vec());
    }

    /// From now on passes over pages that hold no LIVE entry. Single dead entries beside live ones are still shown.
    pub fn skip_dead(&mut self, skip: bool) {
        self.skip_dead = skip;
    }

    /// Whether it stands on an entry.
    pub fn valid(&self) -> bool {
        self.valid
    }

    /// The entry's key. Empty when the cursor stands nowhere.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The entry's flags. 0 when the cursor stands nowhere.
    #[inline]
    pub fn flags(&self) -> u8 {
        if self.valid { self.flags } else { 0 }
    }

    /// The entry's value. Empty when the cursor stands nowhere.
    #[inline]
    pub fn value(&self) -> &[u8] {
        match self.path.last() {
            Some((leaf, _)) if self.valid => &leaf.buf[self.value.0..][..self.value.1],
            _ => &[],
        }
    }

    /// Moves to the first entry whose key is not below `key`; whether there is one.
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        self.descend_to(key, Way::Up)
    }

    /// Moves to the last entry whose key is below `key`; whether there is one.
    pub fn seek_before(&mut self, key: &[u8]) -> Result<bool> {
        self.descend_to(key, Way::Down)
    }

    /// Moves to the last entry of all.
    pub fn seek_last(&mut self) -> Result<bool> {
        self.reset();
        match self.root.node(self.pages, self.tree)? {
            Some(node) if !self.dead(&node) => self.descend_edge(node, Way::Down),
            _ => Ok(false),
        }
    }

    /// The root page.
    fn root_node(&self) -> Result<Option<NodeRef>> {
        match self.top {
            Some(top) => Ok(top.root(self.root, self.pages, self.tree)?.cloned()),
            None => self.root.node(self.pages, self.tree),
        }
    }

    /// Moves to the entry behind; whether there is one. Standing nowhere it stays there.
    pub fn next(&mut self) -> Result<bool> {
        if !self.valid {
            return Ok(false);
        }
        if let Some((leaf, i)) = self.path.last_mut() {
            let n = leaf.page().len();
            if *i + 1 < n.min(self.stop) {
                *i += 1;
                leaf.page().fetch_soon(*i + FETCH_AHEAD);
                return self.lay_key();
            }
            if self.stop < n {
                self.reset();
                return Ok(false);
            }
        }
        self.leave_leaf(Way::Up)
    }

    /// Moves to the entry before; whether there is one. Standing nowhere it stays there.
    pub fn prev(&mut self) -> Result<bool> {
        if !self.valid {
            return Ok(false);
        }
        if let Some((_, i)) = self.path.last_mut()
            && *i > 0
        {
            *i -= 1;
            return self.lay_key();
        }
        self.leave_leaf(Way::Down)
    }

    fn reset(&mut self) {
        self.path.clear();
        self.key.clear();
        self.prefix_laid = false;
        self.valid = false;
    }

    fn dead(&self, node: &Node) -> bool {
        self.skip_dead && node.page().live() == 0
    }

    fn descend_to(&mut self, key: &[u8], way: Way) -> Result<bool> {
        self.reset();
        let Some(mut node) = self.root_node()? else {
            return Ok(false);
        };
        if self.dead(&node) {
            return Ok(false);
        }
        while !node.page().is_leaf() {
            let i = node.page().child_for(key, self.pages)?;
            if self.skip_dead && node.page().child_live(i) == 0 {
                self.path.push((node, i));
                return self.walk(way);
            }
            let child = match self.top {
                Some(top) if self.path.is_empty() => top.child(self.pages, &node, i)?,
                _ => child_of(self.pages, &node, i)?,
            };
            self.path.push((node, i));
            node = child;
        }
        let (i, _) = node.page().search(0, key, self.pages)?;
        let n = node.page().len();
        let stop = match way {
            Way::Up => (i < n).then_some(i),
            Way::Down => i.checked_sub(1),
        };
        match stop {
            Some(i) => {
                self.path.push((node, i));
                self.enter_leaf()
            }
            None => self.walk(way),
        }
    }

    fn leave_leaf(&mut self, way: Way) -> Result<bool> {
        self.valid = false;
        self.path.pop();
        self.walk(way)
    }

    /// From the inner page at the end of the path to the nearest entry behind (or before) the child it stands on.
    fn walk(&mut self, way: Way) -> Result<bool> {
        loop {
            let Some((node, at)) = self.path.last_mut() else {
                self.reset();
                return Ok(false);
            };
            let page = node.page();
            let wanted = |i: &usize| !self.skip_dead || page.child_live(*i) > 0;
            let next = match way {
                Way::Up => (*at + 1..page.len()).find(wanted),
                Way::Down => (0..*at).rev().find(wanted),
            };
            if let Some(i) = next {
                *at = i;
                let child = child_of(self.pages, node, i)?;
                return self.descend_edge(child, way);
            }
            self.path.pop();
        }
    }

    /// To the first (or last) entry below `node`.
    fn descend_edge(&mut self, mut node: NodeRef, way: Way) -> Result<bool> {
        while !node.page().is_leaf() {
            let page = node.page();
            let wanted = |i: &usize| !self.skip_dead || page.child_live(*i) > 0;
            let next = match way {
                Way::Up => (0..page.len()).find(wanted),
                Way::Down => (0..page.len()).rev().find(wanted),
            };
            let Some(i) = next else {
                return Err(self.pages.corrupt(
                    page.child(0).addr.unit,
                    "live counts of a page and its parent disagree",
                ));
            };
            let child = child_of(self.pages, &node, i)?;
            self.path.push((node, i));
            node = child;
        }
        let i = match way {
            Way::Up => 0,
            Way::Down => node.page().len() - 1,
        };
        self.path.push((node, i));
        self.enter_leaf()
    }

    fn enter_leaf(&mut self) -> Result<bool> {
        self.prefix_laid = false;
        self.stop = usize::MAX;
        if let (Some(end), Some((leaf, i))) = (&self.end, self.path.last()) {
            self.stop = leaf.page().search(0, end, self.pages)?.0;
            if *i >= self.stop {
                self.reset();
                return Ok(false);
            }
        }
        if let Some((leaf, i)) = self.path.last() {
            let page = leaf.page();
            (*i..*i + FETCH_AHEAD).for_each(|i| page.fetch_soon(i));
        }
        self.lay_key()
    }

    /// Takes the entry under the cursor apart and builds its key.
    fn lay_key(&mut self) -> Result<bool> {
        self.valid = false;
        let Some((leaf, i)) = self.path.last() else {
            return Ok(false);
        };
        let page = leaf.page();
        let entry = page.entry(*i);
        if entry.long {
            return self.lay_long_key();
        }
        let prefix = page.prefix();
        if self.prefix_laid {
            self.key.truncate(prefix.len());
        } else {
            self.key.clear();
            self.key.extend_from_slice(prefix);
            self.prefix_laid = true;
        }
        self.key.extend_from_slice(entry.suffix);
        self.flags = entry.flags;
        self.value = (entry.value_at, entry.value_len);
        self.valid = true;
        Ok(true)
    }

    #[cold]
    fn lay_long_key(&mut self) -> Result<bool> {
        let Some((leaf, i)) = self.path.last() else {
            return Ok(false);
        };
        let page = leaf.page();
        let entry = page.entry(*i);
        let Some(run) = page.long(*i) else {
            return Ok(false);
        };
        let key = self.pages.run(run)?;
        self.key.clear();
        self.key.extend_from_slice(&key);
        self.prefix_laid = false;
        self.flags = entry.flags;
        self.value = (entry.value_at, entry.value_len);
        self.valid = true;
        Ok(true)
    }
}
