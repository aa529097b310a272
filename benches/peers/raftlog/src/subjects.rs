//! What is measured: each takes a round of entries and returns when they are durable.

use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine as RaftEngine, LogBatch, MessageExt, ReadableSize};
use raftlog::{BLOCK_BYTES, Backend, ENTRY_OVERHEAD_BYTES, Entry, HardState, Log, Options};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BATCH_HEADER_BYTES: usize = 64;
/// The largest single write of the log, and so of the floor.
const WRITE_BYTES_MAX: usize = 1 << 20;
const FILE_BYTES: usize = 64 << 20;
/// How much each keeps before it gives space back.
const KEEP_BYTES: u64 = 96 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub writers: u64,
    pub bytes: usize,
}

impl Shape {
    pub fn round_bytes(&self) -> u64 {
        self.writers * self.bytes as u64
    }
}

pub trait Subject {
    fn name(&self) -> &'static str;
    /// Waits for work that has nothing to do with rounds.
    fn settle(&mut self) {}
    fn prepare(&mut self, shape: Shape);
    fn round(&mut self);
    /// Gives space back; not measured.
    fn tidy(&mut self) {}
    /// Durable writes so far.
    fn flushes(&self) -> u64;
}

/// Data that no compression could help with.
fn data(bytes: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    (0..bytes)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// The raw floor.
pub struct Bare {
    file: File,
    memory: *mut u8,
    layout: Layout,
    /// The sizes of a round's writes.
    writes: Vec<usize>,
    offset: usize,
    flushes: u64,
}

impl Bare {
    pub fn open(dir: &Path) -> Bare {
        let path = dir.join("floor");
        std::fs::write(&path, vec![0; FILE_BYTES]).expect("room");
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(flags).open(&path)
        };
        // Not every file system has O_DIRECT.
        let file = open(libc::O_DIRECT).or_else(|_| open(0)).expect("open");
        file.sync_all().expect("sync");
        let layout = Layout::from_size_align(WRITE_BYTES_MAX, BLOCK_BYTES).expect("a valid layout");
        // SAFETY: the layout's size is not zero; freed once, in `drop`, with the same layout.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null(), "out of memory");
        Bare {
            file,
            memory,
            layout,
            writes: Vec::new(),
            offset: 0,
            flushes: 0,
        }
    }

    fn write(&mut self, bytes: usize) {
        if self.offset + bytes > FILE_BYTES {
            self.offset = 0;
        }
        let part = libc::iovec {
            iov_base: self.memory.cast(),
            iov_len: bytes,
        };
        // SAFETY: the descriptor is open, and `part` lies in memory that lives as long as `self`: no write
        // is longer than `WRITE_BYTES_MAX`.
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

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: allocated in `open` with this layout, and not freed before.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

impl Subject for Bare {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn prepare(&mut self, shape: Shape) {
        // As the log fills its batches.
        let record = shape.bytes + ENTRY_OVERHEAD_BYTES;
        self.writes.clear();
        let mut open = BATCH_HEADER_BYTES;
        for _ in 0..shape.writers {
            if open + record > WRITE_BYTES_MAX {
                self.writes.push(open.next_multiple_of(BLOCK_BYTES));
                open = BATCH_HEADER_BYTES;
            }
            open += record;
        }
        self.writes.push(open.next_multiple_of(BLOCK_BYTES));
    }

    fn round(&mut self) {
        for n in 0..self.writes.len() {
            self.write(self.writes[n]);
        }
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }
}

/// The log.
pub struct Ours {
    log: Log,
    ring: bool,
    shape: Shape,
    entries: Vec<Entry>,
}

impl Ours {
    pub fn open(dir: &Path, ring: bool) -> Result<Ours, raftlog::OpenError> {
        let (log, _) = Log::open(Options {
            backend: if ring { Backend::Uring } else { Backend::Sync },
            ..Options::new(dir)
        })?;
        let shape = Shape {
            writers: 0,
            bytes: 0,
        };
        Ok(Ours {
            log,
            ring,
            shape,
            entries: Vec::new(),
        })
    }
}

impl Subject for Ours {
    fn name(&self) -> &'static str {
        match self.ring {
            false => "ours, pwritev2",
            true => "ours, io_uring",
        }
    }

    fn settle(&mut self) {
        while self.log.stats().ready_segments < 2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn prepare(&mut self, shape: Shape) {
        self.shape = shape;
        let data = Bytes::from(data(shape.bytes));
        let entry = Entry {
            index: 0,
            term: 1,
            kind: 0,
            data,
        };
        self.entries = vec![entry; shape.writers as usize];
    }

    fn round(&mut self) {
        let last = self.log.last_index();
        for (entry, index) in self.entries.iter_mut().zip(last + 1..) {
            entry.index = index;
        }
        let hard_state = HardState {
            term: 1,
            vote: 1,
            commit: last,
        };
        let mark = self.log.append(&self.entries, Some(hard_state));
        let mark = mark.expect("there is room");
        assert!(self.log.sync().covers(mark));
        let keep = KEEP_BYTES / (self.shape.bytes as u64 + ENTRY_OVERHEAD_BYTES as u64);
        // As a member does after a checkpoint: not after every round.
        if last % (keep / 8).max(1) < self.shape.writers && last > keep {
            self.log.trim(last - keep);
        }
    }

    fn flushes(&self) -> u64 {
        self.log.stats().flushes
    }
}

/// A file that grows, as logs are commonly written.
pub struct Grown {
    path: PathBuf,
    file: File,
    round: Vec<u8>,
    bytes: usize,
    flushes: u64,
}

impl Grown {
    pub fn open(dir: &Path) -> Grown {
        let path = dir.join("grown");
        Grown {
            file: File::create(&path).expect("a file to write to"),
            path,
            round: Vec::new(),
            bytes: 0,
            flushes: 0,
        }
    }
}

impl Subject for Grown {
    fn name(&self) -> &'static str {
        "file, fdatasync"
    }

    fn prepare(&mut self, shape: Shape) {
        let record = data(shape.bytes + ENTRY_OVERHEAD_BYTES);
        self.round = record.repeat(shape.writers as usize);
    }

    fn round(&mut self) {
        self.file.write_all(&self.round).expect("room");
        self.file.sync_data().expect("a disk that works");
        self.bytes += self.round.len();
        self.flushes += 1;
    }

    fn tidy(&mut self) {
        if self.bytes > FILE_BYTES {
            self.file = File::create(&self.path).expect("a file to write to");
            self.bytes = 0;
        }
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }
}

/// raft-engine, one group of entries.
pub struct Engine {
    engine: RaftEngine,
    shape: Shape,
    data: Vec<u8>,
    last: u64,
    purged: u64,
    flushes: u64,
}

/// An entry is its bytes; the first eight are its index.
#[derive(Clone)]
struct Numbered;

impl MessageExt for Numbered {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let number = entry.value[..8].try_into().expect("eight bytes");
        u64::from_le_bytes(number)
    }
}

const GROUP: u64 = 1;

impl Engine {
    pub fn open(dir: &Path) -> Engine {
        let config = Config {
            dir: dir.to_str().expect("a path that is text").to_owned(),
            batch_compression_threshold: ReadableSize(0),
            purge_threshold: ReadableSize::mb(256),
            ..Config::default()
        };
        Engine {
            engine: RaftEngine::open(config).expect("raft-engine opens"),
            shape: Shape {
                writers: 0,
                bytes: 0,
            },
            data: Vec::new(),
            last: 0,
            purged: 0,
            flushes: 0,
        }
    }
}

impl Subject for Engine {
    fn name(&self) -> &'static str {
        "raft-engine"
    }

    fn prepare(&mut self, shape: Shape) {
        self.shape = shape;
        self.data = data(shape.bytes);
    }

    fn round(&mut self) {
        let entries: Vec<BytesValue> = (self.last + 1..=self.last + self.shape.writers)
            .map(|index| {
                let mut entry = BytesValue::new();
                entry.value = self.data.clone();
                entry.value[..8].copy_from_slice(&index.to_le_bytes());
                entry
            })
            .collect();
        self.last += self.shape.writers;
        let mut batch = LogBatch::default();
        batch
            .add_entries::<Numbered>(GROUP, &entries)
            .expect("entries follow each other");
        self.engine.write(&mut batch, true).expect("room");
        self.flushes += 1;
    }

    fn tidy(&mut self) {
        let keep = KEEP_BYTES / self.shape.bytes as u64;
        if self.last > self.purged + keep {
            self.engine.compact_to(GROUP, self.last - keep / 2);
            self.engine.purge_expired_files().expect("files go");
            self.purged = self.last;
        }
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }
}
