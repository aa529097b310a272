//! Blocking backend: pread, pwrite, fdatasync; direct where the file system allows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::uring::UringFile;
use super::{AlignedBuf, Directory, PageFile};

/// Threads that read a batch, the caller among them, and from how many reads on they are worth starting.
const READ_THREADS: usize = 4;
const READS_FOR_THREADS: usize = 8;

/// A directory of the real file system.
pub(super) struct RealDirectory {
    path: PathBuf,
    handle: File,
    uring: bool,
}

impl RealDirectory {
    /// Opens the directory, creating it (mode 0700) when only it is missing.
    pub fn open(path: &Path, uring: bool) -> io::Result<RealDirectory> {
        if !path.is_dir() {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o700).create(path)?;
            if let Some(parent) = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(RealDirectory {
            path: path.to_path_buf(),
            handle: File::open(path)?,
            uring,
        })
    }

    fn wrap(&self, file: SyncFile) -> io::Result<Box<dyn PageFile>> {
        if self.uring {
            return Ok(Box::new(UringFile::new(file)?));
        }
        Ok(Box::new(file))
    }
}

impl Directory for RealDirectory {
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path.join(name).try_exists()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn PageFile>> {
        self.wrap(SyncFile::open(&self.path.join(name), false)?)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PageFile>> {
        self.wrap(SyncFile::open(&self.path.join(name), true)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// A file read and written by blocking calls.
pub(super) struct SyncFile {
    pub file: File,
    direct: bool,
}

impl SyncFile {
    pub fn open(path: &Path, create: bool) -> io::Result<SyncFile> {
        let options = |direct: bool, truncate: bool| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create(create)
                .truncate(truncate)
                .mode(0o600);
            if direct {
                options.custom_flags(libc::O_DIRECT);
            }
            options.open(path)
        };
        if let Ok(file) = options(true, create)
            && direct_works(&file, create)
        {
            return Ok(SyncFile { file, direct: true });
        }
        let file = options(false, create)?;
        // What a crashed process left in the page cache may never have reached the device: bring it there, then
        // drop it, so that reads see the device.
        file.sync_data()?;
        // SAFETY: plain system call on an open descriptor; its result is advice only.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(SyncFile {
            file,
            direct: false,
        })
    }
}

/// The smallest unit a store has is 512 bytes: direct I/O is used only when the file takes pieces that small, or the
/// file's first page shows that it needs none smaller.
fn direct_works(file: &File, create: bool) -> bool {
    let mut buf = AlignedBuf::new(4096);
    if create {
        // The probe's bytes lie where the first meta page will be written.
        let written = file.write_all_at(&buf[..512], 512).is_ok();
        return written && file.set_len(0).is_ok();
    }
    file.read_at(&mut buf[..512], 512).is_ok()
}

impl PageFile for SyncFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        let read = |part: &mut [(u64, &mut [u8])]| {
            part.iter_mut()
                .try_for_each(|(offset, buf)| self.file.read_exact_at(buf, *offset))
        };
        if reads.len() < READS_FOR_THREADS {
            return read(reads);
        }
        // What the device does for several at once takes several callers.
        let part = reads.len().div_ceil(READ_THREADS);
        std::thread::scope(|scope| {
            let mut parts = reads.chunks_mut(part);
            let own = parts.next();
            let others: Vec<_> = parts.map(|part| scope.spawn(|| read(part))).collect();
            let own = own.map_or(Ok(()), read);
            others.into_iter().fold(own, |done, other| {
                let other = other.join();
                done.and(other.unwrap_or_else(|_| Err(io::Error::other("a reading thread died"))))
            })
        })
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        writes
            .iter()
            .try_for_each(|(offset, bytes)| self.file.write_all_at(bytes, *offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
        loop {
            // SAFETY: plain system call on an open descriptor.
            let done = unsafe {
                libc::fallocate(
                    self.file.as_raw_fd(),
                    0,
                    from as libc::off_t,
                    (to - from) as libc::off_t,
                )
            };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return self.file.set_len(to),
                _ => return Err(error),
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn backend(&self) -> &'static str {
        if self.direct {
            "sync, direct"
        } else {
            "sync, buffered"
        }
    }
}
