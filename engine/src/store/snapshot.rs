//! A published state: four roots and a pin that keeps their units from being used again.

use std::sync::Arc;

use bytes::Bytes;

use super::btree::{Root, Top};
use super::cursor::Cursor;
use super::error::Result;
use super::store::Store;
use super::types::{Entry, RunRef, TreeId};

/// An immutable state of the trees. Cloning is one reference count. Reading blocks only for pages that are not in
/// memory.
#[derive(Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    roots: [Root; 4],
    tops: [Top; 4],
    publish: u64,
}

impl Snapshot {
    /// `publish` must have been pinned; the snapshot takes the pin over.
    pub(super) fn new(store: Store, roots: [Root; 4], publish: u64) -> Snapshot {
        Snapshot {
            inner: Arc::new(Inner {
                store,
                roots,
                tops: Default::default(),
                publish,
            }),
        }
    }

    pub(super) fn root(&self, tree: TreeId) -> &Root {
        &self.inner.roots[tree as usize]
    }

    fn top(&self, tree: TreeId) -> &Top {
        &self.inner.tops[tree as usize]
    }

    /// Its number among the states published since the store was opened.
    pub fn publish(&self) -> u64 {
        self.inner.publish
    }

    /// The entry of `key`.
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>> {
        self.get_with(tree, key, |flags, value| Entry {
            flags,
            value: Bytes::copy_from_slice(value),
        })
    }

    /// Calls `f` with flags and value of `key`, without copying them.
    pub fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        f: impl FnOnce(u8, &[u8]) -> R,
    ) -> Result<Option<R>> {
        let (top, pages) = (self.top(tree), &self.store().shared.pages);
        self.root(tree).get_by(top, pages, tree as u8, key, f)
    }

    /// A cursor that stands nowhere yet.
    pub fn cursor(&self, tree: TreeId) -> Cursor<'_> {
        let (top, pages) = (self.top(tree), &self.store().shared.pages);
        Cursor::new(pages, self.root(tree), tree as u8, Some(top))
    }

    /// LIVE entries in `[start, end)`, or from `start` on. Takes time logarithmic in the size of the tree.
    pub fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
        self.root(tree)
            .count(&self.store().shared.pages, tree as u8, start, end)
    }

    /// Brings the leaves that hold `keys` into the cache, many pages at a time. Blocks for the reads.
    pub fn prefetch(&self, tree: TreeId, keys: &[&[u8]]) {
        let pages = &self.store().shared.pages;
        pages.prefetch(self.root(tree), tree as u8, keys);
    }

    /// The contents of a run.
    pub fn read_run(&self, run: RunRef) -> Result<Bytes> {
        self.store().shared.pages.run(run)
    }

    /// The store this is a state of.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.store.shared.unpin(self.publish);
    }
}
