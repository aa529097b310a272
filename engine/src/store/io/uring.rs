//! io_uring backend: batches of writes and reads go to the kernel at once. Single reads and syncs use the blocking
//! calls of the same file, which are not slower.
//!
//! Invariant: no batch function returns while the kernel may still touch a buffer of the batch.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, TryLockError};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::sync::SyncFile;
use super::{AlignedBuf, PageFile};

/// Operations in flight at most.
const DEPTH: usize = 64;

/// A file whose batches go through a ring.
pub(super) struct UringFile {
    inner: SyncFile,
    ring: Mutex<IoUring>,
}

/// Whether io_uring works for this process in this directory: ring, operations, and one real write and read.
pub(super) fn probe(dir: &Path) -> io::Result<()> {
    let ring = IoUring::new(DEPTH as u32)?;
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations)?;
    if !operations.is_supported(opcode::Read::CODE) || !operations.is_supported(opcode::Write::CODE)
    {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "io_uring without read and write",
        ));
    }
    let path = dir.join("tree.probe");
    let tried = probe_file(&path, ring);
    let removed = std::fs::remove_file(&path);
    tried.and(removed)
}

fn probe_file(path: &Path, ring: IoUring) -> io::Result<()> {
    let file = UringFile {
        inner: SyncFile::open(path, true)?,
        ring: Mutex::new(ring),
    };
    let (mut written, mut read) = (AlignedBuf::new(4096), AlignedBuf::new(4096));
    written.fill(0x5a);
    file.write_many(&[(0, &written), (4096, &written)])?;
    file.read_many(&mut [(4096, &mut read)])?;
    if read[..] != written[..] {
        return Err(io::Error::other("io_uring did not read back what it wrote"));
    }
    Ok(())
}

impl UringFile {
    pub fn new(inner: SyncFile) -> io::Result<UringFile> {
        Ok(UringFile {
            inner,
            ring: Mutex::new(IoUring::new(DEPTH as u32)?),
        })
    }
}

/// Submits the entries, at most `DEPTH`, and waits for all; `results[i]` is the result of the entry with user data i.
///
/// # Safety
/// Every buffer and descriptor that an entry names must stay valid until this returns.
unsafe fn run(ring: &mut IoUring, entries: &[squeue::Entry], results: &mut [i32]) {
    debug_assert!(entries.len() <= DEPTH);
    // SAFETY: passed on to the caller; the ring has DEPTH free slots because every run empties it.
    unsafe { ring.submission().push_multiple(entries) }.expect("the ring is empty between batches");
    let mut done = 0;
    while done < entries.len() {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            Err(error) => {
                // Buffers may be in the kernel's hands: going on would hand them back to their owners.
                eprintln!("quorate: io_uring stopped working in the middle of a batch: {error}");
                std::process::abort();
            }
        }
        for completion in ring.completion() {
            results[completion.user_data() as usize] = completion.result();
            done += 1;
        }
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl PageFile for UringFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, buf)
    }

    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        // The ring may be busy with a checkpoint's writes; a reader does not wait for those.
        let mut ring = match self.ring.try_lock() {
            Ok(ring) => ring,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.inner.read_many(reads),
        };
        let fd = types::Fd(self.inner.file.as_raw_fd());
        for batch in reads.chunks_mut(DEPTH) {
            let entries: Vec<_> = batch
                .iter_mut()
                .enumerate()
                .map(|(i, (offset, buf))| {
                    opcode::Read::new(fd, buf.as_mut_ptr(), buf.len() as u32)
                        .offset(*offset)
                        .build()
                        .user_data(i as u64)
                })
                .collect();
            let mut results = vec![0; entries.len()];
            // SAFETY: the buffers are borrowed mutably by `reads` and the file by self until `run` returned.
            unsafe { run(&mut ring, &entries, &mut results) };
            for ((offset, buf), result) in batch.iter_mut().zip(results) {
                if outcome(result)? < buf.len() {
                    self.inner.read(*offset, buf)?;
                }
            }
        }
        Ok(())
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        let mut ring = crate::store::lock(&self.ring);
        let fd = types::Fd(self.inner.file.as_raw_fd());
        for batch in writes.chunks(DEPTH) {
            let entries: Vec<_> = batch
                .iter()
                .enumerate()
                .map(|(i, (offset, bytes))| {
                    opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32)
                        .offset(*offset)
                        .build()
                        .user_data(i as u64)
                })
                .collect();
            let mut results = vec![0; entries.len()];
            // SAFETY: the buffers are borrowed by `writes` and the file by self until `run` returned.
            unsafe { run(&mut ring, &entries, &mut results) };
            for ((offset, bytes), result) in batch.iter().zip(results) {
                if outcome(result)? < bytes.len() {
                    self.inner.file.write_all_at(bytes, *offset)?;
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
        self.inner.allocate(from, to)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn backend(&self) -> &'static str {
        if self.inner.backend() == "sync, direct" {
            "io_uring, direct"
        } else {
            "io_uring, buffered"
        }
    }
}
