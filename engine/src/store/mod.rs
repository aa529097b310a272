//! The store: four copy-on-write B+trees and their value runs in one file of checksummed, self-identifying pages.
//!
//! One [`StoreWriter`] changes the trees in memory and publishes an immutable [`Snapshot`] of them whenever its
//! owner likes; any number of readers work on snapshots and never wait for the writer. A checkpoint, on a thread of
//! its own, writes one published state to free space of the file and then turns to it with a single durable write of
//! a meta page. Everything between two checkpoints lives in memory only: the owner's log brings it back.
//!
//! Invariants:
//! 1. A published page, run or root never changes.
//! 2. After a crash the file opens as exactly one durable checkpoint: the newest, or the one before it.
//! 3. A unit reachable from the two newest durable checkpoints or from a live snapshot is never written.
//! 4. Bytes read from the file are believed only after checksum, address, birth and every bound in them were checked.
//! 5. Readers hold no lock across I/O and take none that the writer or the checkpoint holds across I/O.
//! 6. A failed write or sync is final: the process ends. Only "no space", seen before the meta page is touched, is
//!    an ordinary error: nothing is lost and a later checkpoint tries again.

//!
//! ```text
//! Store        open(StoreOptions) -> (Store, StoreWriter, Recovered)   durable()  wait_durable(n)  on_durable(f)  stats()  check(f)
//! Snapshot     get(tree, key)  get_with(tree, key, |flags, value| ..)  cursor(tree) -> Cursor<'_>
//!              count(tree, start, end)  read_run(run)  store()  publish()  check(f)
//! Cursor       skip_dead(bool)  seek(key)  seek_last()  seek_before(key)  next()  prev() -> Result<bool>
//!              valid()  key() -> &[u8]  flags()  value() -> &[u8]
//! StoreWriter  get  get_with  cursor  count  read_run   (working state)
//!              insert(tree, key, flags, value) -> Option<previous flags>   remove(tree, key) -> bool
//!              write_run(kind, owner_key, owner, bytes) -> RunRef   free_run(run)
//!              publish() -> Snapshot   checkpoint(user_meta) -> n   checkpoint_running()   dirty_bytes()   request_shrink()   shrinking()
//! ```

mod alloc;
mod btree;
pub(crate) mod bulk;
mod cache;
mod cells;
mod check;
mod checkpoint;
mod cursor;
mod defrag;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod io;
mod map;
mod meta;
mod node;
mod open;
mod pace;
mod pack;
mod page;
mod pages;
mod pins;
mod prefetch;
mod runs;
mod scrub;
mod shared;
mod slabs;
mod snapshot;
mod space;
#[allow(clippy::module_inception)]
mod store;
#[cfg(test)]
mod tests;
mod types;
mod yielding;

use crate::{stall, sync};

pub use cursor::Cursor;
pub use defrag::TailRun;
pub use error::{Error, Result};
pub use scrub::{ScrubPlace, ScrubSlice};
pub use snapshot::Snapshot;
pub use store::{Store, StoreWriter};
pub use types::{
    Entry, FatalHook, IoBackend, LIVE, RunKind, RunRef, Share, SpaceUse, StoreOptions, TreeId,
};

/// Takes a lock. A panic elsewhere while it was held changes nothing here: the data behind every lock of the store is
/// whole at every point where code that holds it can panic.
fn lock<L: stall::Lock + ?Sized>(lock: &L) -> std::sync::MutexGuard<'_, L::Value> {
    lock.take()
}
