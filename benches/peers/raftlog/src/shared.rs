//! What the bench by criterion and the figures beside raft-engine have in common: the raw floor, and a log
//! with a raft-like owner who commits and trims as it goes.

use bytes::Bytes;
use raftlog::{
    Appended, BLOCK_BYTES, Backend, ENTRY_OVERHEAD_BYTES, Entry, HardState, Log, OpenError, Options,
};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

const BATCH_HEADER_BYTES: usize = 64;
/// The largest single write of the log, and so of the floor.
const WRITE_BYTES_MAX: usize = 16 << 20;
pub const FILE_BYTES: usize = 64 << 20;
/// How much a log keeps before it gives space back.
pub const KEEP_BYTES: u64 = 96 << 20;

/// The writes that the log makes of so many entries.
pub fn write_sizes(writers: u64, bytes: usize) -> Vec<usize> {
    let record = bytes + ENTRY_OVERHEAD_BYTES;
    let mut sizes = Vec::new();
    let mut open = BATCH_HEADER_BYTES;
    for _ in 0..writers {
        if open + record > WRITE_BYTES_MAX {
            sizes.push(open.next_multiple_of(BLOCK_BYTES));
            open = BATCH_HEADER_BYTES;
        }
        open += record;
    }
    sizes.push(open.next_multiple_of(BLOCK_BYTES));
    sizes
}

/// Durable direct writes to a file that was written before, from aligned memory: no log can be faster.
pub struct Floor {
    file: File,
    memory: memmap2::MmapMut,
    offset: usize,
    pub flushes: u64,
}

impl Floor {
    /// In a file of its own. `huge`: from memory in huge pages, as the log's is where there are any.
    pub fn open(path: &Path, huge: bool) -> Floor {
        std::fs::write(path, vec![0; FILE_BYTES]).expect("room");
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(flags).open(path)
        };
        // Not every file system has O_DIRECT.
        let file = open(libc::O_DIRECT).or_else(|_| open(0)).expect("open");
        file.sync_all().expect("sync");
        let mut memory = memmap2::MmapMut::map_anon(WRITE_BYTES_MAX).expect("memory");
        if huge {
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        memory.fill(0);
        Floor {
            file,
            memory,
            offset: 0,
            flushes: 0,
        }
    }

    pub fn write(&mut self, bytes: usize) {
        if self.offset + bytes > FILE_BYTES {
            self.offset = 0;
        }
        let part = libc::iovec {
            iov_base: self.memory[..bytes].as_mut_ptr().cast(),
            iov_len: bytes,
        };
        // SAFETY: the descriptor is open, and `part` lies in memory that lives as long as `self`.
        let written = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                &part,
                1,
                self.offset as libc::off_t,
                libc::RWF_DSYNC,
            )
        };
        assert_eq!(written, bytes as isize);
        self.offset += bytes;
        self.flushes += 1;
    }
}

/// Writers whose entries went with one append, and since when they wait.
struct Waiting {
    mark: Appended,
    writers: usize,
    since: Instant,
}

/// A log and its owner.
pub struct Owner {
    pub log: Log,
    entries: Vec<Entry>,
    waiting: VecDeque<Waiting>,
}

impl Owner {
    pub fn open(dir: &Path, backend: Backend, flush_thread: bool) -> Result<Owner, OpenError> {
        let (log, _) = Log::open(Options {
            backend,
            flush_thread,
            ..Options::new(dir)
        })?;
        Ok(Owner {
            log,
            entries: Vec::new(),
            waiting: VecDeque::new(),
        })
    }

    /// Waits until the segments in reserve are there.
    pub fn settle(&self) {
        while self.log.stats().ready_segments < 2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// So many writers, with entries of so many bytes.
    pub fn prepare(&mut self, writers: u64, data: Bytes) {
        let entry = Entry {
            index: 0,
            term: 1,
            kind: 0,
            data,
        };
        self.entries = vec![entry; writers as usize];
    }

    fn append(&mut self, writers: usize) -> Appended {
        let last = self.log.last_index();
        let entries = &mut self.entries[..writers];
        for (entry, index) in entries.iter_mut().zip(last + 1..) {
            entry.index = index;
        }
        let hard_state = HardState {
            term: 1,
            vote: 1,
            commit: last,
        };
        let mark = self.log.append(entries, Some(hard_state));
        mark.expect("there is room")
    }

    fn trim(&mut self, last: u64) {
        let entry = self.entries[0].data.len() as u64 + ENTRY_OVERHEAD_BYTES as u64;
        let keep = KEEP_BYTES / entry;
        // As a member does after a checkpoint: not after every round.
        if last % (keep / 8).max(1) < self.entries.len() as u64 && last > keep {
            self.log.trim(last - keep);
        }
    }

    /// All writers at once, and all of them wait: nothing is there to be encoded meanwhile.
    pub fn round(&mut self) {
        let last = self.log.last_index();
        let mark = self.append(self.entries.len());
        assert!(self.log.sync().covers(mark));
        self.trim(last);
    }

    /// Begins the closed loop of [`Owner::turn`]: half of the writers are in a flush, the others behind it.
    pub fn begin(&mut self) {
        let half = self.entries.len() / 2;
        for writers in [half, self.entries.len() - half] {
            self.give(writers);
        }
    }

    fn give(&mut self, writers: usize) {
        let since = Instant::now();
        let mark = self.append(writers);
        self.log.flush();
        self.waiting.push_back(Waiting {
            mark,
            writers,
            since,
        });
    }

    /// One flush ends and the next begins; each writer whose entry is durable by now is told (`told`: how
    /// many, since when they waited) and gives its next one, which is encoded during that flush.
    pub fn turn(&mut self, mut told: impl FnMut(usize, Instant)) {
        let last = self.log.last_index();
        let durable = self.log.wait_next();
        let mut ready = 0;
        while self.waiting.front().is_some_and(|w| durable.covers(w.mark)) {
            let of = self.waiting.pop_front().expect("looked at");
            told(of.writers, of.since);
            ready += of.writers;
        }
        // Where a segment ends, one append is two flushes.
        if ready > 0 {
            self.give(ready);
            self.trim(last);
        }
    }

    /// Ends it: everything given becomes durable.
    pub fn end(&mut self) {
        self.log.sync();
        self.waiting.clear();
    }
}
