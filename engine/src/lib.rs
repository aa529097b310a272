//! The storage engine: versioned keys in a copy-on-write B+tree file, with history.
//!
//! Two layers. `store` keeps ordered byte entries and runs of bytes in one file, writes
//! checkpoints and recovers to the last durable one. Above it the record layer gives them
//! meaning, in four trees:
//!
//! - **K**, the keys: user key to its newest version, tombstones included until compaction;
//! - **E**, the events: every change since the last compaction, in revision order, each with the
//!   version before it;
//! - **L**, the leases: (lease, key) for every attached key;
//! - **S**, the system records: auth, members, alarms, counters, as the server wants them.
//!
//! One [`Writer`] applies requests ([`Writer::txn`]) and publishes whole states; any number of
//! readers hold [`View`]s of them, which never change and never wait for the writer. The engine
//! knows no log and no network: after a crash [`Engine::open`] gives the state of a durable
//! checkpoint, and the server replays its log from [`View::applied`] on.
//!
//! Invariants (each module states its own):
//! 1. A view holds whole revisions only and never changes.
//! 2. Any revision from the compact revision to the newest can be read exactly.
//! 3. What is stored depends on the applied requests alone: no clock, no randomness.

#![deny(missing_docs)]

mod check;
mod compaction;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hash;
mod mvcc;
mod record;
mod relocate;
mod scrub;
mod source;
pub mod stall;
pub(crate) mod store;
mod sync;
mod transfer;
mod types;

#[cfg(test)]
mod tests;

pub use check::{CheckReport, FileReport};
pub use mvcc::{Engine, EventRef, LongHistory, LongRead, Published, Txn, View, Writer};
pub use store::{FatalHook, IoBackend, Share, SpaceUse};
pub use transfer::{Export, Version};
pub use types::{
    Applied, Budget, CompactError, CompactProgress, DIRTY_PERCENT_MAX, Error, Event, EventKind,
    EventsEnd, HashKv, KeyRange, KeyValue, KvRef, KvVisitor, Options, RecordVisitor, Result,
    Revision, ScrubReport, Stats,
};
