//! The ring: one write with `RWF_DSYNC` in flight: of a registered buffer, of another one, or of several.
//!
//! The ring belongs to the thread that first writes with it (`SINGLE_ISSUER`), so it is made at the
//! first write and made anew if the owner moves to another thread while nothing is in flight.
//! The first buffers of the queue and the current segment's descriptor are registered where the kernel allows it
//! (locked-memory limits may not); without, everything works the same. What was refused is reported
//! when the log is opened.
//!
//! Invariants:
//! 1. The memory and the file of a write in flight are owned by the ring's slot until its
//!    completion has been read from the completion queue; a ring that is dropped waits for it.
//! 2. There is never more than one submission without its completion read.

use super::Write;
use crate::buffer::Buffer;
use crate::disk::SegFile;
use crate::disk::os::{OsDir, vectors};
use crate::format::BLOCK_BYTES;
use io_uring::{IoUring, Probe, opcode, types};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread::ThreadId;

struct Live {
    ring: IoUring,
    thread: ThreadId,
    /// The file in slot 0 of the file table, if there is a table. Held open, so that its
    /// descriptor's number cannot come to mean another file while the table knows it.
    registered: Option<Option<Arc<dyn SegFile>>>,
    fixed_buffers: bool,
}

pub(crate) struct Ring {
    live: Option<Live>,
    /// Address and length of the registered buffers, by slot.
    arena: Vec<libc::iovec>,
    in_flight: Option<InFlight>,
}

struct InFlight {
    write: Write,
    /// Bytes known written: short writes are continued.
    done: usize,
    /// The rest, as the kernel was told.
    vectors: Vec<libc::iovec>,
}

// SAFETY: the raw pointers in `arena` are only handed to the kernel for registration and stay
// valid as long as those buffers live; the ones in `in_flight` point into the buffers beside them. They
// carry no thread affinity.
unsafe impl Send for Ring {}

/// Makes a ring with the cheapest completion mode that the kernel has.
fn build() -> io::Result<IoUring> {
    let defer = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(4);
    match defer {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(4),
        other => other,
    }
}

/// Whether a ring really works here: sets one up, asks for the operations, then writes and reads
/// back one block in the log's own directory.
pub(crate) fn probe(dir: &OsDir) -> io::Result<()> {
    let ring = build()?;
    let mut found = Probe::new();
    ring.submitter().register_probe(&mut found)?;
    for code in [opcode::Writev::CODE, opcode::WriteFixed::CODE] {
        if !found.is_supported(code) {
            return Err(io::Error::other("the ring lacks write operations"));
        }
    }
    drop(ring);
    if !dir.abilities().dsync {
        return Err(io::Error::other("the file system lacks RWF_DSYNC"));
    }
    let file = dir.probe_file(dir.abilities())?;
    let tried = write_and_read_back(file);
    dir.remove_probe_file()?;
    tried
}

fn write_and_read_back(file: Arc<dyn SegFile>) -> io::Result<()> {
    file.allocate(BLOCK_BYTES as u64)?;
    let mut buffer = Buffer::new(BLOCK_BYTES)?;
    buffer
        .iter_mut()
        .enumerate()
        .for_each(|(i, b)| *b = ((i * 17) >> 2) as u8);
    let mut ring = Ring::new(&mut []);
    ring.start(Write {
        file: file.clone(),
        buffers: vec![buffer],
        offset: 0,
        len: BLOCK_BYTES,
    })?;
    let written = ring.finish(true)?.expect("a write was in flight");
    let mut back = Buffer::new(BLOCK_BYTES)?;
    if file.read(0, &mut back)? != BLOCK_BYTES || back[..] != written[0][..] {
        return Err(io::Error::other("a block did not read back as written"));
    }
    Ok(())
}

impl Ring {
    /// A ring to come, for writes from these buffers (which get their slot numbers) and others.
    /// These buffers must outlive the ring; they may move, their memory does not.
    pub fn new(arena: &mut [Buffer]) -> Ring {
        let table = arena.iter_mut().enumerate().map(|(slot, buffer)| {
            buffer.slot = Some(slot as u16);
            libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            }
        });
        Ring {
            arena: table.collect(),
            live: None,
            in_flight: None,
        }
    }

    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    pub fn start(&mut self, write: Write) -> io::Result<()> {
        self.make_live()?;
        self.in_flight = Some(InFlight {
            write,
            done: 0,
            vectors: Vec::new(),
        });
        self.submit()
    }

    /// Makes the ring now, on this thread, and says what the kernel would not register: a limit on
    /// locked memory may forbid it. The log works without.
    pub fn prepare(&mut self) -> io::Result<Vec<String>> {
        self.make_live()
    }

    /// Whether writes name their buffer by its number.
    pub fn has_registered_buffers(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.fixed_buffers)
    }

    fn make_live(&mut self) -> io::Result<Vec<String>> {
        let mut refused = Vec::new();
        let me = std::thread::current().id();
        if self.live.as_ref().is_some_and(|live| live.thread == me) {
            return Ok(refused);
        }
        self.live = None;
        let ring = build()?;
        // SAFETY: each entry names a mapping that lives as long as the ring (see `new`).
        let buffers = unsafe { ring.submitter().register_buffers(&self.arena) };
        let files = ring.submitter().register_files_sparse(1);
        for (what, outcome) in [("buffers", &buffers), ("file", &files)] {
            if let Err(e) = outcome {
                let limit = match e.raw_os_error() {
                    Some(libc::ENOMEM) => ", see RLIMIT_MEMLOCK",
                    _ => "",
                };
                refused.push(format!("{what} not registered: {e}{limit}"));
            }
        }
        self.live = Some(Live {
            ring,
            thread: me,
            registered: files.is_ok().then_some(None),
            fixed_buffers: buffers.is_ok(),
        });
        Ok(refused)
    }

    fn submit(&mut self) -> io::Result<()> {
        let (Some(live), Some(flight)) = (&mut self.live, &mut self.in_flight) else {
            unreachable!("called with a live ring and a write in flight");
        };
        let write = &flight.write;
        let fd = write
            .file
            .ring_fd()
            .ok_or_else(|| io::Error::other("the file cannot be used with a ring"))?;
        let offset = write.offset + flight.done as u64;
        flight.vectors = vectors(write.parts(), flight.done);
        let slot = live.slot_for(&write.file, fd);
        let registered = match &write.buffers[..] {
            [only] if live.fixed_buffers => only.slot,
            _ => None,
        };
        let entry = match (slot, registered, &flight.vectors[..]) {
            (Some(file), Some(buffer), [only]) => {
                let (data, len) = (only.iov_base as *const u8, only.iov_len as u32);
                opcode::WriteFixed::new(file, data, len, buffer)
                    .offset(offset)
                    .rw_flags(libc::RWF_DSYNC)
                    .build()
            }
            (Some(file), _, all) => opcode::Writev::new(file, all.as_ptr(), all.len() as u32)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC)
                .build(),
            (None, _, all) => opcode::Writev::new(types::Fd(fd), all.as_ptr(), all.len() as u32)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC)
                .build(),
        };
        // SAFETY: memory, vectors and descriptor are owned by `in_flight`, which is given up only after
        // the completion was read (invariant 1), also when the ring is dropped.
        unsafe { live.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        loop {
            match live.ring.submit() {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub fn finish(&mut self, block: bool) -> io::Result<Option<Vec<Buffer>>> {
        loop {
            if self.in_flight.is_none() {
                return Ok(None);
            }
            let Some(result) = self.completion(block)? else {
                return Ok(None);
            };
            let flight = self.in_flight.as_mut().expect("checked above");
            if result < 0 {
                self.in_flight = None;
                return Err(io::Error::from_raw_os_error(-result));
            }
            let left = flight.write.len - flight.done;
            let n = result as usize;
            if n >= left {
                return Ok(self.in_flight.take().map(|f| f.write.buffers));
            }
            // Short: go on from the last whole block, writing the same bytes again.
            let whole = n - n % BLOCK_BYTES;
            if whole == 0 {
                self.in_flight = None;
                return Err(io::ErrorKind::WriteZero.into());
            }
            flight.done += whole;
            self.submit()?;
        }
    }

    /// The result of the submission in flight, once it is there.
    fn completion(&mut self, block: bool) -> io::Result<Option<i32>> {
        let live = self.live.as_mut().expect("a write in flight has a ring");
        assert_eq!(
            live.thread,
            std::thread::current().id(),
            "a log may change threads only while nothing is in flight"
        );
        loop {
            if let Some(entry) = live.ring.completion().next() {
                return Ok(Some(entry.result()));
            }
            let entered = live.ring.submit_and_wait(usize::from(block));
            match entered {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            if !block {
                let entry = live.ring.completion().next();
                return Ok(entry.map(|e| e.result()));
            }
        }
    }
}

impl Live {
    /// The file table's slot, holding `file`; `None` if there is no table.
    fn slot_for(&mut self, file: &Arc<dyn SegFile>, fd: RawFd) -> Option<types::Fixed> {
        let held = self.registered.as_ref()?;
        if held.as_ref().and_then(|f| f.ring_fd()) != Some(fd) {
            let updated = self.ring.submitter().register_files_update(0, &[fd]);
            self.registered = updated.is_ok().then(|| Some(file.clone()));
            self.registered.as_ref()?;
        }
        Some(types::Fixed(0))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let Some(flight) = self.in_flight.take() else {
            return;
        };
        // The kernel may still read the memory: wait, and if that is not possible, leak it.
        let mine = self
            .live
            .as_ref()
            .is_some_and(|l| l.thread == std::thread::current().id());
        let ended = mine && matches!(self.completion(true), Ok(Some(_)));
        if !ended {
            std::mem::forget(flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Dir;
    use crate::disk::os::Abilities;

    fn dir() -> (tempfile::TempDir, OsDir) {
        let temp = tempfile::tempdir().unwrap();
        let Ok(dir) = OsDir::open(temp.path(), Abilities::ALL) else {
            panic!("cannot open")
        };
        (temp, dir)
    }

    #[test]
    fn writes_from_arena_and_other_memory_land_where_they_should() {
        let (_temp, dir) = dir();
        if let Err(e) = probe(&dir) {
            eprintln!("no ring here ({e}); nothing to test");
            return;
        }
        let mut arena = [Buffer::new(8192).unwrap(), Buffer::new(8192).unwrap()];
        let mut ring = Ring::new(&mut arena);
        let other = Buffer::new(8192).unwrap();
        let file = dir.create("f").unwrap();
        file.allocate(64 * 1024).unwrap();
        for (i, mut buffer) in arena.into_iter().chain([other]).enumerate() {
            buffer.fill(i as u8 + 1);
            ring.start(Write {
                file: file.clone(),
                buffers: vec![buffer],
                offset: i as u64 * 8192,
                len: 8192,
            })
            .unwrap();
            // Alternate between polling and waiting.
            let back = if i % 2 == 0 {
                ring.finish(true).unwrap()
            } else {
                loop {
                    if let Some(b) = ring.finish(false).unwrap() {
                        break Some(b);
                    }
                }
            };
            assert!(back.is_some());
            assert!(!ring.is_busy());
        }
        let mut all = Buffer::new(3 * 8192).unwrap();
        file.read(0, &mut all).unwrap();
        for i in 0..3 {
            assert!(all[i * 8192..][..8192].iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn a_ring_may_change_threads_between_writes_and_be_dropped_during_one() {
        let (_temp, dir) = dir();
        if probe(&dir).is_err() {
            return;
        }
        let mut ring = Ring::new(&mut []);
        let file = dir.create("f").unwrap();
        file.allocate(8192).unwrap();
        let write = |fill: u8| {
            let mut buffer = Buffer::new(4096).unwrap();
            buffer.fill(fill);
            Write {
                file: file.clone(),
                buffers: vec![buffer],
                offset: 0,
                len: 4096,
            }
        };
        ring.start(write(1)).unwrap();
        ring.finish(true).unwrap();
        let w = write(2);
        std::thread::spawn(move || {
            let mut ring = ring;
            ring.start(w).unwrap();
            ring.finish(true).unwrap();
            let _ = ring.start(Write {
                file: Arc::clone(&file),
                buffers: vec![Buffer::new(4096).unwrap()],
                offset: 4096,
                len: 4096,
            });
            drop(ring);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_error_is_reported_and_frees_the_slot() {
        let (temp, dir) = dir();
        if probe(&dir).is_err() {
            return;
        }
        std::fs::write(temp.path().join("g"), [0; 4096]).unwrap();
        let file = dir.open("g").unwrap();
        let mut ring = Ring::new(&mut []);
        // An offset no file can have.
        ring.start(Write {
            file,
            buffers: vec![Buffer::new(4096).unwrap()],
            offset: i64::MAX as u64 - 4095,
            len: 4096,
        })
        .unwrap();
        assert!(ring.finish(true).is_err());
        assert!(!ring.is_busy());
    }
}
