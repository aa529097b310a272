//! The seam between the store and the disk: one file of pages in one directory.
//!
//! Everything above works on [`PageFile`] and [`Directory`]; below are blocking calls (`sync`), io_uring for batches
//! (`uring`, around the same file) and a simulated disk (`sim`, with the feature of that name).
//!
//! Contract:
//! 1. Offsets and lengths are multiples of the store's unit; buffers come from [`AlignedBuf`]. That lets every backend
//!    use direct I/O, so that what is read is what the device holds.
//! 2. `write` and `set_len` promise nothing until `sync` returned; `sync` covers all writes that returned before it.
//! 3. A name is durable after `Directory::sync`.
//! 4. Calls block; none is made with a lock held that a reader takes.

mod buffer;
#[cfg(any(test, feature = "sim"))]
mod sim;
mod sync;
mod uring;

use std::io;
use std::path::Path;

pub(super) use buffer::{AlignedBuf, BufPool};

use super::types::IoBackend;

/// One open file.
pub(super) trait PageFile: Send + Sync {
    /// Fills `buf` from `offset`. `UnexpectedEof` when the file ends before.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Fills several buffers; backends may do it at once.
    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        for (offset, buf) in reads {
            self.read(*offset, buf)?;
        }
        Ok(())
    }
    /// Writes all pieces, in any order.
    fn write_many(&self, writes: &[(u64, &[u8])]) -> io::Result<()>;
    /// Makes all that was written durable, with the length.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file or makes it longer without reserving space.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file longer and reserves the space where the file system can.
    fn allocate(&self, from: u64, to: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    /// What does the work, for the log.
    fn backend(&self) -> &'static str;
}

/// The directory of the file.
pub(super) trait Directory: Send + Sync {
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Box<dyn PageFile>>;
    /// Creates an empty file, cutting one that was left over.
    fn create(&self, name: &str) -> io::Result<Box<dyn PageFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// The directory with the backend asked for; creates it when its parent exists.
pub(super) fn directory(path: &Path, backend: &IoBackend) -> io::Result<Box<dyn Directory>> {
    match backend {
        #[cfg(any(test, feature = "sim"))]
        IoBackend::Sim(disk) => Ok(Box::new(sim::SimDirectory::new(disk, path))),
        IoBackend::Sync => Ok(Box::new(sync::RealDirectory::open(path, false)?)),
        IoBackend::Uring => {
            let dir = sync::RealDirectory::open(path, true)?;
            uring::probe(path)?;
            Ok(Box::new(dir))
        }
        IoBackend::Auto => {
            let uring = sync::RealDirectory::open(path, false)
                .and_then(|_| uring::probe(path))
                .is_ok();
            Ok(Box::new(sync::RealDirectory::open(path, uring)?))
        }
    }
}

/// Whether an error says that the disk is full.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        || error.kind() == io::ErrorKind::StorageFull
}
