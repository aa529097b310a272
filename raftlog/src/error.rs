//! One error type per operation.

use crate::recovery::table::Row;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a log could not be opened. Nothing was changed on disk, apart from temporary files.
#[derive(Debug)]
pub enum OpenError {
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Another process, or another `Log`, has the directory.
    Locked { path: PathBuf },
    /// The options contradict themselves.
    Options(&'static str),
    /// The log was written by a version of the format that this program does not know.
    Format { path: PathBuf, format: u32 },
    /// The log belongs to another cluster or member.
    Identity {
        path: PathBuf,
        found: [u64; 2],
        expected: [u64; 2],
    },
    /// Opening would lose or invent data.
    Refused(Box<Refusal>),
}

/// What was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The recovery table's row, or `None` for damage that the table does not have to judge.
    pub row: Option<Row>,
    pub path: PathBuf,
    /// Byte offset in that file.
    pub offset: u64,
    /// The first entry that cannot be read.
    pub first_lost: u64,
    /// The last entry that is known to have been there, if anything says so.
    pub last_lost: Option<u64>,
    /// What was seen.
    pub detail: String,
    /// Whether `Options::accept_loss` would open it.
    pub can_accept: bool,
}

/// Why an append was not taken. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The disk is full and only the last prepared segment is left, which is kept for hard state.
    NoSpace,
    /// An entry is larger than a segment can hold.
    TooLarge { bytes: usize, max: usize },
    /// The caller broke the log's rules.
    Invalid(&'static str),
    /// A write has failed before; the process should be gone by now.
    Poisoned,
}

/// Why entries could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The log starts later.
    Trimmed { first_index: u64 },
    /// Not in the log, or not durable yet.
    Unavailable { last_index: u64 },
    Io {
        path: PathBuf,
        offset: u64,
        source: io::Error,
    },
    /// The bytes on disk are not those that were written.
    Corrupt { path: PathBuf, offset: u64 },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io {
                doing,
                path,
                source,
            } => write!(f, "raft log: cannot {doing} {}: {source}", path.display()),
            OpenError::Locked { path } => write!(
                f,
                "raft log: {} is in use by another process; stop that one first",
                path.display()
            ),
            OpenError::Options(what) => write!(f, "raft log: bad options: {what}"),
            OpenError::Format { path, format } => write!(
                f,
                "raft log: {} has format {format}, which this version does not know; use the \
                 version that wrote it or a newer one",
                path.display()
            ),
            OpenError::Identity {
                path,
                found,
                expected,
            } => write!(
                f,
                "raft log: {} belongs to cluster {:x} member {:x}, but this is cluster {:x} member \
                 {:x}; check the data directory",
                path.display(),
                found[0],
                found[1],
                expected[0],
                expected[1]
            ),
            OpenError::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, offset) = (self.path.display(), self.offset);
        write!(f, "raft log: refusing to open: {path} at byte {offset}: ")?;
        if let Some(row) = self.row {
            write!(f, "{} (row {}); ", row.cause(), row.number())?;
        }
        write!(f, "{}. Entries from index {}", self.detail, self.first_lost)?;
        match self.last_lost {
            Some(last) => write!(f, " to {last} cannot be read.")?,
            None => write!(f, " on cannot be read.")?,
        }
        write!(
            f,
            " Ways out: (1) remove this member from the cluster, clear its data directory and add \
             it again, so that its peers restore it, or restore a snapshot if it was the only one;"
        )?;
        if self.can_accept {
            write!(
                f,
                " (2) accept the loss: start once with --wal-accept-loss, which cuts the log here for \
                 good and may break promises made to clients and peers."
            )
        } else {
            write!(
                f,
                " (2) none; too little is left to cut the log at a sound place."
            )
        }
    }
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::NoSpace => f.write_str("raft log: no space left to prepare a segment"),
            AppendError::TooLarge { bytes, max } => write!(
                f,
                "raft log: an entry of {bytes} bytes does not fit a segment, which holds {max}"
            ),
            AppendError::Invalid(what) => write!(f, "raft log: invalid append: {what}"),
            AppendError::Poisoned => f.write_str("raft log: an earlier write failed"),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Trimmed { first_index } => {
                write!(f, "raft log: trimmed; the first entry is {first_index}")
            }
            ReadError::Unavailable { last_index } => write!(
                f,
                "raft log: not available; the last durable entry is {last_index}"
            ),
            ReadError::Io {
                path,
                offset,
                source,
            } => write!(
                f,
                "raft log: cannot read {} at byte {offset}: {source}",
                path.display()
            ),
            ReadError::Corrupt { path, offset } => write!(
                f,
                "raft log: {} at byte {offset} does not hold what was written; stop this member \
                 and have it restored by its peers",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl std::error::Error for AppendError {}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReadError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
