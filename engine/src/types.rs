//! The nouns of the engine's API: key-values, revisions, events, ranges, options, errors.
//!
//! Names and meanings are etcd's. Nothing here knows how anything is stored.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::store::{FatalHook, IoBackend};

/// One version of a key as etcd's API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct KeyValue {
    /// The user key, never empty.
    pub key: Bytes,
    /// The value; empty in the key-value of a delete event.
    pub value: Bytes,
    /// Revision that created this generation of the key.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// 1 at creation, one more with each put of the generation.
    pub version: i64,
    /// Attached lease, 0 for none. Negative ids are legal.
    pub lease: i64,
}

/// A [`KeyValue`] that borrows from the page or run it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRef<'a> {
    /// See [`KeyValue::key`].
    pub key: &'a [u8],
    /// See [`KeyValue::value`].
    pub value: &'a [u8],
    /// See [`KeyValue::create_revision`].
    pub create_revision: i64,
    /// See [`KeyValue::mod_revision`].
    pub mod_revision: i64,
    /// See [`KeyValue::version`].
    pub version: i64,
    /// See [`KeyValue::lease`].
    pub lease: i64,
}

impl KvRef<'_> {
    /// Copies the borrowed bytes.
    pub fn to_owned(&self) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(self.key),
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// Place of one change in history: `main` counts mutating requests, `sub` the changes inside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// The request's revision, what the API calls "revision".
    pub main: i64,
    /// 0, 1, 2, … in execution order inside the request.
    pub sub: i64,
}

impl Revision {
    /// The least place after this one.
    pub(crate) fn next(self) -> Revision {
        Revision {
            main: self.main,
            sub: self.sub.saturating_add(1),
        }
    }
}

/// What an event did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The key got a new version.
    Put,
    /// The key was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// Where in history it stands.
    pub revision: Revision,
    /// Put: the new version. Delete: only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// The live version this event replaced or removed.
    pub prev: Option<KeyValue>,
}

/// A set of keys in etcd's request form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly one key.
    One(Bytes),
    /// `[start, end)`; empty when `start >= end`.
    Half {
        /// First key of the range.
        start: Bytes,
        /// First key after the range.
        end: Bytes,
    },
    /// Every key at or after this one.
    From(Bytes),
}

impl KeyRange {
    /// Reads `key` and `range_end` as a request carries them: an empty `range_end` means the one
    /// key, the single byte 0 means everything from `key` on, anything else is half-open.
    pub fn from_request(key: &[u8], range_end: &[u8]) -> KeyRange {
        let start = Bytes::copy_from_slice(key);
        match range_end {
            [] => KeyRange::One(start),
            [0] => KeyRange::From(start),
            end => KeyRange::Half {
                start,
                end: Bytes::copy_from_slice(end),
            },
        }
    }

    /// Every key there is.
    pub fn all() -> KeyRange {
        KeyRange::From(Bytes::new())
    }

    /// Whether `key` belongs to the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => key == one,
            KeyRange::Half { start, end } => key >= &start[..] && key < &end[..],
            KeyRange::From(start) => key >= &start[..],
        }
    }

    /// The first key that could be in the range.
    pub fn start(&self) -> &[u8] {
        match self {
            KeyRange::One(start) | KeyRange::Half { start, .. } | KeyRange::From(start) => start,
        }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Half { start, end } if start >= end)
    }
}

/// The last log entry whose effects a state contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Applied {
    /// Raft log index.
    pub index: u64,
    /// Raft term of that entry.
    pub term: u64,
}

/// The answer to HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C over the history up to `hash_revision`, as etcd defines it.
    pub hash: u32,
    /// The compact revision the hash depends on; -1 when never compacted.
    pub compact_revision: i64,
    /// The revision that was hashed; 0 in the request resolves to the current one.
    pub hash_revision: i64,
}

/// Where a scan of events stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventsEnd {
    /// Start the next scan here.
    pub next_main: i64,
    /// Everything up to the view's revision was delivered.
    pub reached_end: bool,
}

/// How much a slice of background work may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Events looked at before the slice ends; at least one is.
    pub events: usize,
}

impl Default for Budget {
    /// About 200 µs of warm work.
    fn default() -> Self {
        Budget { events: 256 }
    }
}

/// What a slice of compaction left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactProgress {
    /// Nothing below the compact revision is left to drop.
    Done,
    /// Call again.
    More,
    /// A long reader needs the rest. Call again later: nothing tells when it ends, but after
    /// [`Options::history_pin_max`] it is not waited for any more.
    Held,
}

/// Why a compaction was refused; the state is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactError {
    /// Already compacted at or past that revision.
    Compacted,
    /// The revision has not happened yet.
    Future,
}

impl fmt::Display for CompactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CompactError::Compacted => "required revision has been compacted",
            CompactError::Future => "required revision is a future revision",
        })
    }
}

impl std::error::Error for CompactError {}

/// Why a read or a change failed.
#[derive(Debug)]
pub enum Error {
    /// The revision asked for lies below the compact revision.
    Compacted,
    /// The revision asked for has not happened yet.
    Future,
    /// The operating system failed a read or write. Final for a writer: stop the process.
    Io(std::io::Error),
    /// The file system has no room for the checkpoint. Nothing is lost; a later one tries again.
    NoSpace,
    /// Stored bytes are not what was written; the text names file, place and remedy.
    Corrupt(String),
    /// A caller broke the API's contract or an option is out of bounds.
    Invalid(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Compacted => f.write_str("required revision has been compacted"),
            Error::Future => f.write_str("required revision is a future revision"),
            Error::Io(e) => write!(f, "storage I/O failed: {e}"),
            Error::NoSpace => f.write_str("no space left for a checkpoint; free disk space"),
            Error::Corrupt(what) => write!(f, "storage is corrupt: {what}"),
            Error::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(e) => Some(e),
            _ => None,
        }
    }
}

/// What a scan of keys calls; breaking ends the scan.
pub type KvVisitor<'f> = dyn FnMut(KvRef<'_>) -> ControlFlow<()> + 'f;

/// What a scan of system records calls with key and value; breaking ends the scan.
pub type RecordVisitor<'f> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'f;

/// Result of the engine's reads and changes.
pub type Result<T> = std::result::Result<T, Error>;

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory that holds the tree file; created when missing.
    pub dir: PathBuf,
    /// Size of a tree page, fixed at creation. 8 KiB; down to 512 bytes for tests.
    pub page_bytes: usize,
    /// Limit of the page cache, at least 1 MiB.
    pub cache_bytes: usize,
    /// A checkpoint is due when this much has changed since the last.
    pub dirty_bytes_max: u64,
    /// Size at which a chunk of events is sealed: 64 KiB with what the file adds; smaller for
    /// tests.
    pub chunk_bytes: usize,
    /// [`Published::events`](crate::Published) is left empty beyond this much.
    pub publish_bytes_max: usize,
    /// Which system calls carry the file I/O.
    pub backend: IoBackend,
    /// The file grows in steps of this size.
    pub extend_bytes: u64,
    /// Space kept ready at the end of the file, so that checkpoints go on for a while when the
    /// file system is full.
    pub reserve_bytes: u64,
    /// When more than this part of the file lies free, in percent, checkpoints move what lies at its
    /// end, a bounded amount each, and cut it off. 100: only when asked to.
    pub fragmentation_max: u64,
    /// False: checkpoints are written before [`Writer::checkpoint`](crate::Writer::checkpoint)
    /// returns, on no thread of their own. For simulation.
    pub background: bool,
    /// Identity of a new file; random when none is given.
    pub identity: Option<[u8; 16]>,
    /// False: a missing file is an error, because something else says that there was one.
    pub create: bool,
    /// Called instead of ending the process when a write or sync failed. For tests.
    pub on_fatal: Option<FatalHook>,
    /// How fast the scrubber reads, in bytes per second; 0: there is none. Nor is there without
    /// `background`.
    pub scrub_bytes_per_second: u64,
    /// How long the scrubber waits before each pass.
    pub scrub_pause: Duration,
    /// How long physical compaction waits for a long reader ([`LongRead`](crate::LongRead),
    /// [`LongHistory`](crate::LongHistory)), counted from when that was opened. Then the reader gets
    /// [`Error::Compacted`].
    pub history_pin_max: Duration,
    /// Gets a line for each damage that the scrubber finds, on its thread; it goes to standard error
    /// without this.
    pub on_damage: Option<FatalHook>,
}

/// Changed bytes, in percent of those at which a checkpoint is due, that whoever applies should not go beyond: see
/// [`Writer::keep_pace`](crate::Writer::keep_pace).
pub const DIRTY_PERCENT_MAX: u64 = 187;

impl Options {
    /// [`DIRTY_PERCENT_MAX`] of `dirty_bytes_max`.
    pub fn dirty_bytes_limit(&self) -> u64 {
        self.dirty_bytes_max.saturating_mul(DIRTY_PERCENT_MAX) / 100
    }

    /// The defaults for a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            page_bytes: 8192,
            cache_bytes: 64 << 20,
            dirty_bytes_max: 64 << 20,
            chunk_bytes: (64 << 10) - 512,
            publish_bytes_max: 64 << 20,
            backend: IoBackend::Auto,
            extend_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
            fragmentation_max: 20,
            background: true,
            identity: None,
            create: true,
            on_fatal: None,
            scrub_bytes_per_second: 4 << 20,
            scrub_pause: Duration::from_secs(3600),
            history_pin_max: Duration::from_secs(30 * 60),
            on_damage: None,
        }
    }
}

/// Figures for status answers and metrics.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Size of the file up to its high-water mark.
    pub file_bytes: u64,
    /// Bytes that hold something.
    pub in_use_bytes: u64,
    /// Bytes free for reuse below the high-water mark.
    pub free_bytes: u64,
    /// Bytes changed in memory since the last checkpoint.
    pub dirty_bytes: u64,
    /// Page cache lookups that found the page.
    pub cache_hits: u64,
    /// Page cache lookups that read the file.
    pub cache_misses: u64,
    /// Bytes held by the page cache.
    pub cache_bytes: u64,
    /// Times a page made room for another.
    pub cache_evictions: u64,
    /// Bytes waiting for older checkpoints and views to go.
    pub pending_bytes: u64,
    /// Length of the file with the space kept ready behind the high-water mark.
    pub allocated_bytes: u64,
    /// Checkpoints since the engine was opened.
    pub checkpoints: u64,
    /// Checkpoints that found no room.
    pub checkpoints_failed: u64,
    /// Bytes written by checkpoints since the engine was opened.
    pub checkpoint_bytes: u64,
    /// Time that the last checkpoint took, in microseconds.
    pub checkpoint_last_micros: u64,
    /// Time of all checkpoints, in microseconds.
    pub checkpoint_total_micros: u64,
    /// Publications since the oldest view that is still held; 0 when that is the newest.
    pub oldest_pin_lag: u64,
    /// How long ago the oldest view that is still held was replaced by a newer one; 0 when it is the
    /// newest. Its pages cannot be used again.
    pub oldest_pin_age: Duration,
    /// Long readers.
    pub history_pins: u64,
    /// The lowest revision that a long reader needs; physical compaction stops there.
    pub oldest_history_pin: Option<i64>,
    /// How long the oldest long reader has been there; 0 when there is none.
    pub oldest_history_pin_age: Duration,
    /// Long readers that compaction did not wait for any longer.
    pub history_pins_expired: u64,
    /// Pieces of background I/O that let a write of the log go first: [`Engine::log_write`](crate::Engine::log_write).
    pub gave_way: u64,
    /// Bytes moved towards the front of the file, or into fuller pages, since the engine was opened.
    pub moved_bytes: u64,
    /// Bytes of the pages that filling others made superfluous.
    pub packed_bytes: u64,
    /// Size towards which defragmentation works; 0 before it first looked.
    pub defrag_goal_bytes: u64,
    /// A defragmentation that was asked for is under way.
    pub defragmenting: bool,
    /// Number of the newest durable checkpoint.
    pub checkpoint: u64,
    /// The last attempt to grow the file failed for want of disk space.
    pub no_space: bool,
    /// Live keys in the newest view.
    pub keys: u64,
    /// Events kept in the newest view.
    pub events: u64,
}

/// What the scrubber has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Whole passes over the file.
    pub passes: u64,
    /// Bytes read and found good, over all passes.
    pub bytes: u64,
    /// Of these, in the pass under way.
    pub pass_bytes: u64,
    /// Bytes that the pass will read, about.
    pub pass_of: u64,
    /// Times that something damaged was met; more with each pass over it.
    pub damaged: u64,
    /// What it was, with file, offset and what to do; the first few.
    pub damage: Vec<String>,
}
