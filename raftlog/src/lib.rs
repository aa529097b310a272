//! A raft log: (index, term, bytes) in order, durable before acknowledged.
//!
//! It knows no roles, no messages and no store. Entries gather in memory; one durable write at a
//! time carries all that has gathered to a segment file that was written full of zeros beforehand,
//! so that a flush is an overwrite of allocated blocks: one write, one cache flush of the device,
//! no file-system metadata. Segments come from the background and return there when trimmed.
//!
//! ```text
//! append ─▶ queue (batches) ─▶ flush ─▶ segment SEQ.log ─▶ durable mark
//!                                │  full: header of the next, roll record, go on there
//!            pool ◀── background: zeros, names, recycling
//! open ─▶ scan ─▶ table: end of log, or refuse ─▶ new segment that pins the verdict
//! ```
//!
//! # What may be relied on
//!
//! 1. What [`Log::poll`], [`Log::wait`] or [`Log::sync`] report as durable survives the death of
//!    the process and the loss of power, and is recovered in order and complete, or the log refuses
//!    to open and says why. It is never silently cut.
//! 2. What was appended but not reported durable is recovered as a prefix, possibly empty.
//! 3. A failed write or sync ends the process. Nothing is retried, nothing acknowledged after it.
//! 4. One flush is in flight at most. There are no timers: a flush starts when it is asked for.
//! 5. No lock is shared between the append and flush path and anything that does I/O. Readers of old
//!    entries ([`Reader`]) work beside the owner, on any thread.
//! 6. A disk that hangs is told of ([`Log::set_on_stall`]); nothing is given up because of it.
//!
//! What is assumed of the medium: a 512-byte sector is written whole or not at all, and a durable
//! write is durable when it returns. Nothing is assumed about the order of sectors, about blocks
//! beside those written, or about file names that were not synced.
//!
//! The format is described in `docs/file-format.md`, the recovery in `docs/recovery.md`.
//!
//! Deliberately absent: compression, encryption, more than one flush in flight, repair of damaged
//! entries from peers, and any notion of time (the owner says when it is idle).

mod buffer;
mod disk;
mod error;
mod fatal;
mod flush;
mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod identity;
mod ids;
mod index;
pub mod inspect;
mod log;
mod open;
mod options;
mod pool;
mod prepare;
mod published;
mod queue;
mod reader;
mod recovery;
mod state;
mod sync;
mod types;

#[cfg(test)]
mod tests;

pub use error::{AppendError, OpenError, ReadError, Refusal};
pub use fatal::FatalHook;
pub use flush::stall::{FlushClock, Stall, StallHook};
pub use flush::thread::Waker;
pub use format::BLOCK_BYTES;
pub use identity::identity;
pub use log::{ENTRY_OVERHEAD_BYTES, FlushHook, Log, Stats};
pub use open::Recovered;
#[cfg(any(test, feature = "sim"))]
pub use options::Sabotage;
pub use options::{Backend, Options};
pub use reader::Reader;
pub use recovery::table::Row;
pub use types::{Appended, Committed, Durable, Entry, HardState};
