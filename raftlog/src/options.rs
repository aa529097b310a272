//! How a log is opened.

use crate::fatal::FatalHook;
use crate::format::BLOCK_BYTES;
use crate::types::Committed;
use std::fmt;
use std::path::PathBuf;

/// How durable writes are made.
#[derive(Clone, Default)]
pub enum Backend {
    /// The ring if it works here, else blocking calls.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// `pwritev2`, in the owner's thread or, with `Options::flush_thread`, in one of its own.
    Sync,
    /// A simulated disk; `Options::dir` names a directory on it.
    #[cfg(any(test, feature = "sim"))]
    Sim(simdisk::Disk),
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "Auto",
            Backend::Uring => "Uring",
            Backend::Sync => "Sync",
            #[cfg(any(test, feature = "sim"))]
            Backend::Sim(_) => "Sim",
        })
    }
}

/// Deliberate mistakes, to prove that the tests notice them.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    #[default]
    None,
    /// Count a batch as durable when its write starts.
    AcknowledgeEarly,
    /// Leave out directory syncs.
    SkipDirSync,
    /// Go on in the recovered segment behind its tail instead of opening a new one.
    AppendToRecoveredTail,
    /// Write the roll record before the new segment's header.
    RollBeforeHeader,
    /// Give all incarnations of a segment file the same id and do not chain batches.
    SameSegmentId,
    /// Do not write batches with a durable write but with a plain one.
    SkipDsync,
    /// At opening, believe what is read without a sync.
    TrustUnsynced,
    /// Let a batch say that it is durable itself.
    WitnessForItself,
}

/// How a log is opened. [`Options::new`] gives the defaults.
#[derive(Clone)]
pub struct Options {
    /// The directory; created if missing, used by one log at a time.
    pub dir: PathBuf,
    /// Size of new segments in bytes; a multiple of 4096, at least 16 KiB. Default 64 MiB.
    pub segment_bytes: u64,
    pub backend: Backend,
    /// Cluster and member id; a log opens only with those it was made with.
    pub identity: [u64; 2],
    /// Segments kept ready, at least 2: the last one is for hard state only. Default 2.
    pub reserve_segments: usize,
    /// Up to this many ready segments are kept if trimming yields them. Default 4.
    pub recycle_segments: usize,
    /// What is gathered behind a flush in flight, in bytes; an append beyond it waits for the
    /// flush. Default 64 MiB.
    pub gather_bytes_max: usize,
    /// What the store has durably applied. If the log ends below it, or starts above it, it is
    /// refused. `None` skips the check.
    pub committed: Option<Committed>,
    /// Cut the log where it is damaged instead of refusing. Loses acknowledged data.
    pub accept_loss: bool,
    /// Called with the last line when a write or sync has failed; default: print and abort.
    pub fatal: Option<FatalHook>,
    /// With blocking calls: do writes that the owner does not wait for in a thread of their own, so
    /// that [`crate::Log::flush`] and [`crate::Log::poll`] do not block. Default: no; then they are done
    /// by whoever polls or waits.
    pub flush_thread: bool,
    /// Use `O_DIRECT` where the file system has it. Default: yes.
    pub allow_direct: bool,
    /// Use `RWF_DSYNC` where the file system has it, else `fdatasync`. Default: yes.
    pub allow_dsync: bool,
    /// Do background work inside the owner's calls instead of a thread, for deterministic tests.
    pub inline_background: bool,
    /// Where segment ids come from; `None`: the system's randomness. Ids must never repeat in
    /// one directory, so each opening needs its own seed.
    pub id_seed: Option<u64>,
    #[cfg(any(test, feature = "sim"))]
    pub sabotage: Sabotage,
}

impl Options {
    /// The defaults for a log in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            backend: Backend::Auto,
            identity: [0, 0],
            reserve_segments: 2,
            recycle_segments: 4,
            gather_bytes_max: 64 << 20,
            committed: None,
            accept_loss: false,
            fatal: None,
            flush_thread: false,
            allow_direct: true,
            allow_dsync: true,
            inline_background: false,
            id_seed: None,
            #[cfg(any(test, feature = "sim"))]
            sabotage: Sabotage::None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err("segment_bytes is not a multiple of 4096");
        }
        if self.segment_bytes < 4 * BLOCK_BYTES as u64 || self.segment_bytes > 1 << 31 {
            return Err("segment_bytes is not between 16 KiB and 2 GiB");
        }
        if self.reserve_segments < 2 {
            return Err("reserve_segments is below 2");
        }
        Ok(())
    }
}
