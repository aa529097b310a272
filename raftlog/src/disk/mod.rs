//! The seam to the medium: one directory of segment files, and three implementations of it.
//!
//! All offsets and lengths of reads and writes are multiples of the block size and all buffers are
//! [`crate::buffer::Buffer`]s, so that every implementation may go around the page cache.

pub(crate) mod os;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod sim;

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

/// One directory. Calls block.
pub(crate) trait Dir: Send + Sync {
    /// Names of files (not directories) and their lengths in bytes.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Creates a file; the name must be free.
    fn create(&self, name: &str) -> io::Result<Arc<dyn SegFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn SegFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync(&self) -> io::Result<()>;
    /// The full path of a name, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// Whether its files are read and written around the page cache.
    fn is_direct(&self) -> bool;
}

/// One open segment file. Calls block.
pub(crate) trait SegFile: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    /// Reserves space, growing the file to `len`; `ENOSPC` if there is not enough. Contents are
    /// undefined until written.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Writes everything; durable after [`SegFile::sync`].
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Writes the parts one behind the other, all of them with one call where that is possible, and
    /// returns when that much is durable.
    fn write_durable(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes everything written to the file durable, by whomever, length included.
    fn sync(&self) -> io::Result<()>;
    /// Fills `buf` from what the medium holds; returns fewer bytes only at the end of the file.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Forgets cached contents that might differ from the medium.
    fn drop_cache(&self);
    /// For a ring: the descriptor. `None` if the file is not the kernel's, or if a write with
    /// `RWF_DSYNC` is not durable there.
    fn ring_fd(&self) -> Option<RawFd>;
}

/// Whether an error means that the disk is full rather than broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC) | Some(libc::EDQUOT)
    )
}
