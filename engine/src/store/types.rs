//! The store's vocabulary: names of trees, references to runs, options and figures. No behaviour.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// One of the four trees of the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum TreeId {
    /// User key to its newest version.
    K = 0,
    /// Revision to event chunk.
    E = 1,
    /// (lease, key).
    L = 2,
    /// System records: auth, members, alarms, counters.
    S = 3,
}

impl TreeId {
    /// All trees in file order.
    pub const ALL: [TreeId; 4] = [TreeId::K, TreeId::E, TreeId::L, TreeId::S];
}

/// Entry flag bit 0: the entry is counted by `count`. The other bits are the caller's.
pub const LIVE: u8 = 1;

/// Longest `user_meta` a checkpoint takes, in bytes.
pub const USER_META_MAX: usize = 2048;

/// What a run holds; stands in its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RunKind {
    /// A value too long for its tree.
    Value = 1,
    /// A chunk of events.
    Chunk = 2,
    /// A key too long for its page; made and freed by the tree itself.
    Key = 3,
}

/// Names a run: where it begins, which checkpoint first held it, how long its contents are and their CRC-32.
///
/// `units` is the space it takes, header and owner key included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RunRef {
    pub unit: u64,
    pub birth: u64,
    pub len: u32,
    pub crc: u32,
    pub units: u32,
}

impl RunRef {
    /// Length of the encoded form.
    pub const BYTES: usize = 24;

    /// The encoded form: unit u48, birth u48, len, crc, units, little endian.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[0..6].copy_from_slice(&self.unit.to_le_bytes()[..6]);
        out[6..12].copy_from_slice(&self.birth.to_le_bytes()[..6]);
        out[12..16].copy_from_slice(&self.len.to_le_bytes());
        out[16..20].copy_from_slice(&self.crc.to_le_bytes());
        out[20..24].copy_from_slice(&self.units.to_le_bytes());
        out
    }

    /// Reads the encoded form; what it names is checked when the run is read.
    pub fn from_bytes(bytes: &[u8; 24]) -> RunRef {
        let u48 = |at: usize| {
            let mut word = [0; 8];
            word[..6].copy_from_slice(&bytes[at..at + 6]);
            u64::from_le_bytes(word)
        };
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        RunRef {
            unit: u48(0),
            birth: u48(6),
            len: u32_at(12),
            crc: u32_at(16),
            units: u32_at(20),
        }
    }
}

/// An entry read from a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub flags: u8,
    pub value: Bytes,
}

/// How the file is read and written.
#[derive(Clone, Default)]
pub enum IoBackend {
    /// io_uring where it works, else `Sync`.
    #[default]
    Auto,
    /// io_uring, or an error when it does not work here.
    Uring,
    /// pread and pwrite.
    Sync,
    /// A simulated disk, for tests.
    #[cfg(any(test, feature = "sim"))]
    Sim(simdisk::Disk),
}

impl std::fmt::Debug for IoBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IoBackend::Auto => "Auto",
            IoBackend::Uring => "Uring",
            IoBackend::Sync => "Sync",
            #[cfg(any(test, feature = "sim"))]
            IoBackend::Sim(_) => "Sim",
        })
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory of the file; created when missing (its parent must exist).
    pub dir: PathBuf,
    /// Bytes of a tree page: a power of two from 512 to 32768. Fixed when the file is created.
    pub page_bytes: usize,
    /// Hard limit of the page cache in bytes.
    pub cache_bytes: usize,
    pub backend: IoBackend,
    /// The file grows in steps of this many bytes.
    pub extend_bytes: u64,
    /// Space kept ready behind the last used unit, so that checkpoints go on for a while on a full disk.
    pub reserve_bytes: u64,
    /// Free space of more than this part of the file, in percent, is taken back by itself, as checkpoints go. 100:
    /// never.
    pub fragmentation_max: u64,
    /// False: `checkpoint` writes before it returns, without a thread (simulation).
    pub background: bool,
    /// Changed bytes that the owner does not go beyond, as long as it can help it: see `StoreWriter::keep_pace`.
    pub dirty_bytes_limit: u64,
    /// Identity of a new file; random when none is given.
    pub identity: Option<[u8; 16]>,
    /// Checkpoint numbers passed over at opening. None: a random number of up to 20 bits, or none with an identity given.
    pub skip_numbers: Option<u32>,
    /// False: a missing file is an error, because something else says that there was one.
    pub create: bool,
    /// Called instead of ending the process when a write or sync failed. For tests.
    pub on_fatal: Option<FatalHook>,
}

/// Gets the last line the process would print.
#[derive(Clone)]
pub struct FatalHook(pub Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FatalHook")
    }
}

impl StoreOptions {
    /// The defaults: 8 KiB pages, 64 MiB cache, automatic backend.
    pub fn new(dir: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions {
            dir: dir.into(),
            page_bytes: 8192,
            cache_bytes: 64 << 20,
            backend: IoBackend::Auto,
            extend_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
            fragmentation_max: 20,
            background: true,
            dirty_bytes_limit: 128 << 20,
            identity: None,
            skip_numbers: None,
            create: true,
            on_fatal: None,
        }
    }
}

/// What `open` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The checkpoint the store was opened at; 0 for a new file.
    pub checkpoint: u64,
    /// As given to that checkpoint; empty for a new file.
    pub user_meta: Vec<u8>,
    /// The newest meta page could not be used and the one before it was.
    pub fell_back: bool,
    /// What was found, for the log.
    pub report: String,
}

/// The newest durable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    pub checkpoint: u64,
    pub user_meta: Arc<[u8]>,
}

/// Bytes of the file that one kind of content takes, and those of them that it fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Of pages and runs, whole.
    pub bytes: u64,
    /// Of these, what holds something.
    pub filled: u64,
}

impl Share {
    pub(super) fn add(&mut self, bytes: usize, filled: usize) {
        self.bytes += bytes as u64;
        self.filled += filled as u64;
    }
}

/// What the bytes of one checkpoint hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUse {
    /// Pages of entries.
    pub leaves: Share,
    /// The pages above them.
    pub inner: Share,
    /// Runs of history.
    pub chunks: Share,
    /// Runs of values too long for a page.
    pub values: Share,
    /// Runs of keys too long for one.
    pub keys: Share,
    /// The allocation map.
    pub map: Share,
}

/// Figures of a store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes up to the last used unit.
    pub file_bytes: u64,
    /// Bytes reachable from the newest state, unwritten ones included.
    pub in_use_bytes: u64,
    /// Bytes below the last used unit that can be used at once.
    pub free_bytes: u64,
    /// Bytes waiting for older checkpoints and snapshots to go.
    pub pending_bytes: u64,
    /// Length of the file with the space kept ready.
    pub allocated_bytes: u64,
    /// Pages and runs in memory that no checkpoint has written.
    pub dirty_bytes: u64,
    pub cache_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_evictions: u64,
    pub checkpoints: u64,
    pub checkpoints_failed: u64,
    /// Bytes written by all checkpoints since the store was opened.
    pub checkpoint_bytes: u64,
    pub checkpoint_last_micros: u64,
    pub checkpoint_total_micros: u64,
    /// Pieces of background I/O that waited for somebody else's use of the disk.
    pub gave_way: u64,
    /// Bytes that defragmentation has moved since the store was opened, into fuller pages or to the front.
    pub moved_bytes: u64,
    /// Bytes of the pages that this made superfluous.
    pub packed_bytes: u64,
    /// Size towards which defragmentation works; 0 before it first looked.
    pub defrag_goal_bytes: u64,
    /// A defragmentation that was asked for is under way.
    pub defragmenting: bool,
    /// The last attempt to grow the file failed.
    pub no_space: bool,
    /// Publish number of the oldest live snapshot.
    pub oldest_pin: Option<u64>,
    /// How long ago it was replaced by a newer one.
    pub oldest_pin_age: std::time::Duration,
    /// Publish number of the newest snapshot.
    pub newest_publish: u64,
}
