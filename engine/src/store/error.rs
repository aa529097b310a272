//! What can go wrong in the store, said so that an operator knows which file, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store operation failed. None of them leaves a half-done change behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The operating system refused a read, an open or a directory operation.
    Io {
        file: PathBuf,
        offset: u64,
        what: &'static str,
        reason: String,
    },
    /// Bytes in the file are not what was written there.
    Corrupt {
        file: PathBuf,
        offset: u64,
        what: String,
    },
    /// The file is sound but was made with other parameters or by another version.
    Mismatch { file: PathBuf, what: String },
    /// There is no file, and the caller said that there must be one.
    Missing { file: PathBuf },
    /// The file system has no room for the checkpoint. Nothing was lost; a later checkpoint tries again.
    NoSpace { file: PathBuf },
    /// A write or sync failed earlier; the store takes nothing any more.
    Poisoned,
    /// A checkpoint is still being written.
    CheckpointRunning,
    /// An argument is beyond what the store takes (key, value, run or user meta too long).
    TooLarge {
        what: &'static str,
        bytes: usize,
        bytes_max: usize,
    },
    /// A bulk load was begun or fed against its rules.
    Order(&'static str),
    /// The checkpoint waited for will not come: the store was closed.
    Closed,
}

impl Error {
    pub(super) fn io(
        file: &Path,
        offset: u64,
        what: &'static str,
        error: &std::io::Error,
    ) -> Error {
        Error::Io {
            file: file.to_path_buf(),
            offset,
            what,
            reason: error.to_string(),
        }
    }

    pub(super) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt {
            file: file.to_path_buf(),
            offset,
            what: what.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io {
                file,
                offset,
                what,
                reason,
            } => write!(
                f,
                "{}: {what} at offset {offset} failed: {reason}; check the disk and the permissions of the data directory",
                file.display()
            ),
            Error::Corrupt { file, offset, what } => write!(
                f,
                "{}: damaged at offset {offset}: {what}; nothing was overwritten: keep the file for analysis and restore \
                 this member from its peers or from a snapshot",
                file.display()
            ),
            Error::Mismatch { file, what } => {
                write!(f, "{}: {what}; nothing was overwritten", file.display())
            }
            Error::Missing { file } => write!(
                f,
                "{}: missing; restore this member from its peers or from a snapshot, or remove the whole data directory to \
                 start anew",
                file.display()
            ),
            Error::NoSpace { file } => write!(
                f,
                "{}: no space left for a checkpoint; nothing is lost, free disk space or delete and compact keys",
                file.display()
            ),
            Error::Poisoned => f.write_str("the store stopped after a failed write or sync"),
            Error::CheckpointRunning => f.write_str("a checkpoint is already being written"),
            Error::TooLarge {
                what,
                bytes,
                bytes_max,
            } => write!(
                f,
                "{what} of {bytes} bytes is over the limit of {bytes_max}"
            ),
            Error::Order(what) => f.write_str(what),
            Error::Closed => f.write_str("the store was closed"),
        }
    }
}

impl std::error::Error for Error {}
