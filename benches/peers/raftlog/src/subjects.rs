//! What is measured: each takes a round of entries and returns when they are durable.

use crate::shared::{FILE_BYTES, Floor, KEEP_BYTES, Owner, write_sizes};
use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine as RaftEngine, LogBatch, MessageExt, ReadableSize};
use raftlog::{Backend, ENTRY_OVERHEAD_BYTES};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

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
pub fn data(bytes: usize) -> Vec<u8> {
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
    floor: Floor,
    name: &'static str,
    /// The sizes of a round's writes.
    writes: Vec<usize>,
}

impl Bare {
    pub fn open(dir: &Path, name: &'static str, huge: bool) -> Bare {
        Bare {
            floor: Floor::open(&dir.join(name), huge),
            name,
            writes: Vec::new(),
        }
    }
}

impl Subject for Bare {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&mut self, shape: Shape) {
        self.writes = write_sizes(shape.writers, shape.bytes);
    }

    fn round(&mut self) {
        for n in &self.writes {
            self.floor.write(*n);
        }
    }

    fn flushes(&self) -> u64 {
        self.floor.flushes
    }
}

/// The log.
pub struct Ours {
    owner: Owner,
    name: &'static str,
}

impl Ours {
    pub fn open(dir: &Path, name: &'static str, ring: bool) -> Result<Ours, raftlog::OpenError> {
        let backend = if ring { Backend::Uring } else { Backend::Sync };
        let owner = Owner::open(dir, backend, false)?;
        Ok(Ours { owner, name })
    }
}

impl Subject for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn settle(&mut self) {
        self.owner.settle();
    }

    fn prepare(&mut self, shape: Shape) {
        let data = Bytes::from(data(shape.bytes));
        self.owner.prepare(shape.writers, data);
    }

    fn round(&mut self) {
        self.owner.round();
    }

    fn flushes(&self) -> u64 {
        self.owner.log.stats().flushes
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
