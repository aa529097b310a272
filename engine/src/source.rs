//! What the record layer reads from: a published snapshot or the writer's working state.
//!
//! The only file of the record layer that knows which store is underneath.

use bytes::Bytes;

use crate::types::Result;

pub(crate) use crate::memstore::{
    Cursor, Entry, LIVE, RunKind, RunRef, Snapshot, Store, StoreOptions, StoreWriter, TreeId,
};

/// Reads common to published and working states.
pub(crate) trait Source {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>>;
    fn cursor(&self, tree: TreeId, skip_dead: bool) -> Cursor<'_>;
    fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64>;
    fn read_run(&self, run: RunRef) -> Result<Bytes>;
}

macro_rules! source {
    ($ty:ty) => {
        impl Source for $ty {
            fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>> {
                <$ty>::get(self, tree, key)
            }
            fn cursor(&self, tree: TreeId, _skip_dead: bool) -> Cursor<'_> {
                <$ty>::cursor(self, tree)
            }
            fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
                <$ty>::count(self, tree, start, end)
            }
            fn read_run(&self, run: RunRef) -> Result<Bytes> {
                <$ty>::read_run(self, run)
            }
        }
    };
}
source!(Snapshot);
source!(StoreWriter);

/// The store's part of the options.
pub(crate) fn store_options(options: &crate::types::Options) -> StoreOptions {
    StoreOptions {
        dir: options.dir.clone(),
        page_bytes: options.page_bytes,
        cache_bytes: options.cache_bytes,
        backend: options.backend,
        extend_bytes: options.extend_bytes,
    }
}
