//! What the record layer reads from: a published snapshot or the writer's working state.
//!
//! The only file of the record layer that knows which store is underneath.

use bytes::Bytes;

use crate::types::{Error, Options, Result};

pub(crate) use crate::store::{
    Cursor, Entry, LIVE, RunKind, RunRef, ScrubPlace, ScrubSlice, Snapshot, SpaceUse, Store,
    StoreOptions, StoreWriter, TailRun, TreeId,
};

/// Reads common to published and working states.
pub(crate) trait Source {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>>;
    fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        f: impl FnOnce(u8, &[u8]) -> R,
    ) -> Result<Option<R>>;
    /// With `skip_dead`, pages without a live entry are passed over.
    fn cursor(&self, tree: TreeId, skip_dead: bool) -> Cursor<'_>;
    fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64>;
    fn read_run(&self, run: RunRef) -> Result<Bytes>;
}

macro_rules! source {
    ($ty:ty) => {
        impl Source for $ty {
            fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>> {
                Ok(<$ty>::get(self, tree, key)?)
            }
            fn get_with<R>(
                &self,
                tree: TreeId,
                key: &[u8],
                f: impl FnOnce(u8, &[u8]) -> R,
            ) -> Result<Option<R>> {
                Ok(<$ty>::get_with(self, tree, key, f)?)
            }
            fn cursor(&self, tree: TreeId, skip_dead: bool) -> Cursor<'_> {
                let mut cursor = <$ty>::cursor(self, tree);
                cursor.skip_dead(skip_dead);
                cursor
            }
            fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
                Ok(<$ty>::count(self, tree, start, end)?)
            }
            fn read_run(&self, run: RunRef) -> Result<Bytes> {
                Ok(<$ty>::read_run(self, run)?)
            }
        }
    };
}
source!(Snapshot);
source!(StoreWriter);

impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Error {
        use crate::store::Error as Store;
        match error {
            Store::NoSpace { .. } => Error::NoSpace,
            Store::Corrupt { .. } | Store::Mismatch { .. } => Error::Corrupt(error.to_string()),
            Store::TooLarge { .. } | Store::CheckpointRunning => Error::Invalid(error.to_string()),
            other => Error::Io(std::io::Error::other(other)),
        }
    }
}

/// The store's part of the options.
pub(crate) fn store_options(options: &Options) -> StoreOptions {
    let mut store = StoreOptions::new(&options.dir);
    store.page_bytes = options.page_bytes;
    store.cache_bytes = options.cache_bytes;
    store.backend = options.backend.clone();
    store.extend_bytes = options.extend_bytes;
    store.reserve_bytes = options.reserve_bytes;
    store.fragmentation_max = options.fragmentation_max;
    store.dirty_bytes_limit = options.dirty_bytes_limit();
    store.background = options.background;
    store.identity = options.identity;
    store.create = options.create;
    store.on_fatal = options.on_fatal.clone();
    store
}
