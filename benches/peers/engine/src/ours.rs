//! Quorate's engine and log, put together as the server puts them together.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::{Applied, Budget, CompactProgress, Engine, KeyRange, Options, View, Writer};
use raftlog::{Entry, HardState, Log};

use crate::{Pair, Peer, Reads, ends, prefix_end};

/// Engine and log of one member.
pub struct Quorate {
    pub engine: Engine,
    pub writer: Writer,
    log: Log,
    index: u64,
    dir: PathBuf,
    dirty_bytes_max: u64,
}

/// The engine's options of all figures.
pub fn options(dir: &Path, cache_bytes: usize) -> Options {
    let mut options = Options::new(dir.join("store"));
    options.cache_bytes = cache_bytes;
    options
}

impl Quorate {
    pub fn open(dir: &Path, cache_bytes: usize) -> Quorate {
        Quorate::with(dir, options(dir, cache_bytes))
    }

    pub fn with(dir: &Path, options: Options) -> Quorate {
        let dirty_bytes_max = options.dirty_bytes_max;
        let (engine, writer) = Engine::open(options).expect("opens");
        // As the server: blocking calls, since nothing overlaps the write of a sole voter.
        let options = raftlog::Options {
            backend: raftlog::Backend::Sync,
            ..raftlog::Options::new(dir.join("log"))
        };
        let (log, _) = Log::open(options).expect("opens");
        let index = log.last_index();
        Quorate {
            engine,
            writer,
            log,
            index,
            dir: dir.to_path_buf(),
            dirty_bytes_max,
        }
    }

    /// Makes a request durable as `n` entries of the log.
    fn log(&mut self, entries: Vec<Bytes>) {
        let first = self.index + 1;
        let entries: Vec<Entry> = (first..)
            .zip(entries)
            .map(|(index, data)| Entry {
                index,
                term: 1,
                kind: 0,
                data,
            })
            .collect();
        let hard_state = HardState {
            term: 1,
            vote: 1,
            commit: self.index,
        };
        let mark = self.log.append(&entries, Some(hard_state)).expect("room");
        let durable = self.engine.log_write(|| self.log.sync());
        assert!(durable.covers(mark));
        self.index += entries.len() as u64;
    }

    /// Makes pairs durable in the log.
    pub fn log_only(&mut self, pairs: &[Pair]) {
        let entries = pairs
            .iter()
            .map(|(key, value)| Bytes::from([&key[..], &value[..]].concat()))
            .collect();
        self.log(entries);
    }

    /// Publishes, and starts no checkpoint.
    pub fn publish_only(&mut self) -> View {
        let applied = Applied {
            index: self.index,
            term: 1,
        };
        let view = self.writer.publish(applied, b"").view;
        self.writer.skip_events();
        view
    }

    /// Has the file shrink to what it holds; goes on with publishes and checkpoints.
    pub fn start_defragmentation(&mut self) {
        self.writer.shrink();
    }

    pub fn defragmenting(&self) -> bool {
        self.writer.shrinking()
    }

    /// Publishes, and starts a checkpoint when one is due, as the node does.
    pub fn publish(&mut self) -> View {
        // A slice between batches while a defragmentation was asked for, as the node has it.
        if self.writer.shrinking() {
            self.writer.defragment_step(64 << 10).expect("steps");
        }
        let view = self.publish_only();
        if self.writer.checkpoint_due() {
            self.checkpoint();
        }
        view
    }

    /// Starts a checkpoint unless one runs.
    pub fn checkpoint(&mut self) -> Option<u64> {
        let started = self.writer.checkpoint().expect("starts");
        let keep = self.engine.previous_durable_applied().index;
        if keep > 5000 {
            self.log.trim(keep - 5000);
        }
        started
    }

    /// Waits for checkpoints while more is dirty than the node lets be.
    pub fn bound_dirty(&mut self) {
        const PERCENT_MAX: u64 = 125;
        while self.writer.dirty_bytes() > self.dirty_bytes_max * PERCENT_MAX / 100 {
            if self.checkpoint().is_none() {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
    }

    /// Publishes all and waits until it is durable in the tree.
    pub fn checkpoint_and_wait(&mut self) {
        self.publish();
        loop {
            if let Some(number) = self.checkpoint() {
                self.engine.wait_durable(number).expect("durable");
                self.publish();
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Applies pairs, each as a request of its own, without the log.
    pub fn apply(&mut self, pairs: &[Pair]) {
        for (key, value) in pairs {
            let mut txn = self.writer.txn();
            txn.put_with(
                Bytes::copy_from_slice(key),
                Bytes::copy_from_slice(value),
                0,
                false,
            )
            .expect("puts");
            txn.finish();
        }
    }

    /// Deletes keys, each as a request of its own, without the log.
    pub fn delete(&mut self, keys: &[Vec<u8>]) {
        for key in keys {
            let mut txn = self.writer.txn();
            let range = KeyRange::One(Bytes::copy_from_slice(key));
            txn.delete_range(&range, false).expect("deletes");
            txn.finish();
        }
    }

    /// Drops all history, physically.
    pub fn compact_all(&mut self) {
        let newest = self.writer.revision();
        if self.writer.compact(newest).is_ok() {
            while self.compact_slice() == CompactProgress::More {
                self.publish();
            }
            self.publish();
        }
    }

    pub fn compact_slice(&mut self) -> CompactProgress {
        self.writer.compact_step(Budget::default()).expect("steps")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Peer for Quorate {
    fn name(&self) -> &'static str {
        "Quorate"
    }

    fn put(&mut self, pairs: &[Pair]) {
        self.log_only(pairs);
        self.apply(pairs);
        self.publish();
    }

    fn rest(&mut self) {
        self.checkpoint_and_wait();
    }

    fn settle(&mut self) {
        self.compact_all();
        // Units dropped by a checkpoint are free once the next is durable.
        for _ in 0..3 {
            self.checkpoint_and_wait();
        }
    }

    fn reader(&self) -> Box<dyn Reads + '_> {
        Box::new(Reader(self.engine.view()))
    }

    fn file_bytes(&self) -> u64 {
        self.engine.stats().file_bytes
    }
}

struct Reader(View);

impl Reads for Reader {
    fn get(&mut self, key: &[u8]) -> Option<u64> {
        self.0.read(key, 0, |kv| ends(kv.value)).expect("reads")
    }

    fn range(&mut self, start: &[u8], limit: usize) -> (usize, u64) {
        let (mut n, mut word) = (0, 0u64);
        let range = KeyRange::From(Bytes::copy_from_slice(start));
        self.0
            .visit(&range, 0, &mut |kv| {
                n += 1;
                word = word.wrapping_add(ends(kv.value) + kv.key.len() as u64);
                if n < limit {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .expect("reads");
        (n, word)
    }

    fn count(&mut self, prefix: &[u8]) -> u64 {
        let range = KeyRange::Half {
            start: Bytes::copy_from_slice(prefix),
            end: prefix_end(prefix).into(),
        };
        self.0.count(&range, 0).expect("counts")
    }
}
