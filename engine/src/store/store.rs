//! The shared handle and the writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bytes::Bytes;

use super::btree::{Root, Tree};
use super::checkpoint::{self, Job};
use super::cursor::Cursor;
use super::defrag;
use super::error::{Error, Result};
use super::shared::{DurableState, Shared};
use super::snapshot::Snapshot;
use super::space::Space;
use super::types::{
    Durable, Entry, Recovered, RunKind, RunRef, StoreOptions, StoreStats, TreeId, USER_META_MAX,
};
use super::{lock, open};

/// Handle of an open store: file, cache, durable mark and figures. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
}

impl Store {
    /// Opens the store in `options.dir`, creating it when there is none. Blocks for a few reads.
    pub fn open(options: StoreOptions) -> Result<(Store, StoreWriter, Recovered)> {
        open::open(options)
    }

    /// The newest durable checkpoint.
    pub fn durable(&self) -> Durable {
        self.shared.durable()
    }

    /// What became of checkpoint `number`: durable, or why it failed or never will be. `None` while it is
    /// under way.
    pub fn outcome(&self, number: u64) -> Option<Result<()>> {
        self.outcome_of(&lock(&self.shared.durable), number)
    }

    fn outcome_of(&self, durable: &DurableState, number: u64) -> Option<Result<()>> {
        if durable.announced >= number {
            return Some(Ok(()));
        }
        if let Err(error) = self.shared.check_poison() {
            return Some(Err(error));
        }
        if durable.failed >= number {
            return Some(Err(Error::NoSpace {
                file: self.shared.path().to_path_buf(),
            }));
        }
        lock(&self.shared.jobs).closed.then_some(Err(Error::Closed))
    }

    /// Waits until checkpoint `number` or a later one is durable and its callbacks have returned. An error when it failed or never will be.
    pub fn wait_durable(&self, number: u64) -> Result<()> {
        let mut durable = lock(&self.shared.durable);
        loop {
            if let Some(outcome) = self.outcome_of(&durable, number) {
                return outcome;
            }
            durable = self
                .shared
                .durable_moved
                .wait(durable)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Calls `f` after each checkpoint that became durable, in order, on the checkpoint thread. It must not wait for a
    /// checkpoint itself.
    pub fn on_durable(&self, f: Box<dyn Fn(&Durable) + Send + Sync>) {
        lock(&self.shared.callbacks).push(Arc::from(f));
    }

    /// Figures of this moment.
    pub fn stats(&self) -> StoreStats {
        self.shared.stats()
    }

    /// Longest value a tree takes, in bytes.
    pub fn value_bytes_max(&self) -> usize {
        self.shared.pages.geo.value_max
    }
}

/// The one writer of a store. Dropping it ends the checkpoint thread after the checkpoint that is running.
pub struct StoreWriter {
    space: Space,
    roots: [Root; 4],
    last: Snapshot,
    in_flight: bool,
    thread: Option<JoinHandle<()>>,
}

impl StoreWriter {
    pub(super) fn new(store: &Store, roots: [Root; 4], birth: u64) -> Result<StoreWriter> {
        let shared = store.shared.clone();
        shared.pin(0);
        let last = Snapshot::new(store.clone(), roots.clone(), 0);
        let thread = if shared.background {
            let shared = shared.clone();
            let spawned = std::thread::Builder::new()
                .name("checkpoint".into())
                .spawn(move || checkpoint::serve(&shared));
            Some(spawned.map_err(|error| {
                Error::io(
                    store.shared.path(),
                    0,
                    "starting the checkpoint thread",
                    &error,
                )
            })?)
        } else {
            None
        };
        Ok(StoreWriter {
            space: Space::new(shared, birth),
            roots,
            last,
            in_flight: false,
            thread,
        })
    }

    fn shared(&self) -> &Shared {
        &self.space.shared
    }

    // --- reading the working state -------------------------------------------------------------------------------

    /// The entry of `key` in the working state.
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>> {
        self.get_with(tree, key, |flags, value| Entry {
            flags,
            value: Bytes::copy_from_slice(value),
        })
    }

    /// Calls `f` with flags and value of `key` in the working state, without copying them.
    pub fn get_with<R>(
        &self,
        tree: TreeId,
        key: &[u8],
        f: impl FnOnce(u8, &[u8]) -> R,
    ) -> Result<Option<R>> {
        self.roots[tree as usize].get(self.space.pages(), tree as u8, key, f)
    }

    /// A cursor over the working state.
    pub fn cursor(&self, tree: TreeId) -> Cursor<'_> {
        Cursor::new(self.space.pages(), &self.roots[tree as usize], tree as u8)
    }

    /// LIVE entries of the working state in `[start, end)`, or from `start` on.
    pub fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
        self.roots[tree as usize].count(self.space.pages(), tree as u8, start, end)
    }

    /// The contents of a run.
    pub fn read_run(&self, run: RunRef) -> Result<Bytes> {
        self.space.pages().run(run)
    }

    // --- changing it ---------------------------------------------------------------------------------------------

    /// Puts an entry in, over the one that is there; the flags of that one.
    pub fn insert(
        &mut self,
        tree: TreeId,
        key: &[u8],
        flags: u8,
        value: &[u8],
    ) -> Result<Option<u8>> {
        let root = &mut self.roots[tree as usize];
        let mut tree = Tree {
            space: &mut self.space,
            id: tree as u8,
        };
        tree.insert(root, key, flags, value)
    }

    /// Takes an entry out; whether there was one.
    pub fn remove(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        let root = &mut self.roots[tree as usize];
        let mut tree = Tree {
            space: &mut self.space,
            id: tree as u8,
        };
        tree.remove(root, key)
    }

    /// Stores bytes too long for a tree. Readable at once; durable with the next checkpoint of a state published
    /// after this. `owner_key` and `owner` say who refers to it, for the defragmenter.
    pub fn write_run(
        &mut self,
        kind: RunKind,
        owner_key: &[u8],
        owner: [u8; 16],
        bytes: Bytes,
    ) -> Result<RunRef> {
        self.space
            .write_run(kind, Bytes::copy_from_slice(owner_key), owner, bytes)
    }

    /// Says that the working state refers to a run no more. Published states may go on reading it.
    pub fn free_run(&mut self, run: RunRef) {
        self.space.free_run(run);
    }

    /// Makes the working state immutable and shows it. Costs four reference counts; after a checkpoint ended, also
    /// a visit to the pages changed since it began.
    pub fn publish(&mut self) -> Snapshot {
        self.settle();
        const PAGES_PER_PUBLISH: usize = 16;
        if let Err(error) = defrag::move_tail(&mut self.space, &mut self.roots, PAGES_PER_PUBLISH) {
            // Moving is no duty: a page that cannot be read is reported to whoever needs it.
            lock(&self.shared().tail).clear();
            debug_assert!(!matches!(error, Error::TooLarge { .. }));
        }
        let publish = self.space.end_publish();
        let shared = self.shared();
        shared.pin(publish);
        shared
            .counters
            .newest_publish
            .store(publish, Ordering::Relaxed);
        let dirty = self.space.dirty_bytes() as u64;
        shared.counters.dirty_bytes.store(dirty, Ordering::Relaxed);
        self.last = Snapshot::new(self.last.store().clone(), self.roots.clone(), publish);
        self.last.clone()
    }

    /// Starts a checkpoint of the state published last; its number. Returns at once (unless the store was opened
    /// without a thread). `CheckpointRunning` while one is being written.
    pub fn checkpoint(&mut self, user_meta: Vec<u8>) -> Result<u64> {
        if user_meta.len() > USER_META_MAX {
            return Err(Error::TooLarge {
                what: "user meta",
                bytes: user_meta.len(),
                bytes_max: USER_META_MAX,
            });
        }
        self.shared().check_poison()?;
        if self.checkpoint_running() {
            return Err(Error::CheckpointRunning);
        }
        self.settle();
        let number = self.space.birth();
        let job = Job {
            number,
            snapshot: self.last.clone(),
            user: user_meta,
            frozen: self.space.freeze(self.last.publish()),
        };
        self.in_flight = true;
        let shared = self.shared();
        if shared.background {
            lock(&shared.jobs).next = Some(job);
            shared.jobs_moved.notify_all();
        } else {
            checkpoint::run(shared, job);
        }
        Ok(number)
    }

    /// Whether a checkpoint is being written.
    pub fn checkpoint_running(&self) -> bool {
        self.in_flight && lock(&self.shared().jobs).done.is_none()
    }

    /// Bytes in memory that no checkpoint has written.
    pub fn dirty_bytes(&self) -> usize {
        self.space.dirty_bytes()
    }

    /// Begins to make the file smaller: pages at its end move before it, a bounded number with each call and each
    /// publish, and checkpoints cut off what falls free. Goes on as long as there are publishes and checkpoints;
    /// `shrinking` tells when there is nothing more to do. Errors are those of reading pages.
    pub fn request_shrink(&mut self) -> Result<()> {
        self.shared()
            .shrinks
            .store(checkpoint::SHRINKS, Ordering::Relaxed);
        const PAGES_PER_CALL: usize = 256;
        defrag::move_tail(&mut self.space, &mut self.roots, PAGES_PER_CALL).map(|_| ())
    }

    /// Whether a shrink that was asked for has checkpoints or pages left.
    pub fn shrinking(&self) -> bool {
        self.shared().shrinks.load(Ordering::Relaxed) > 0 || !lock(&self.shared().tail).is_empty()
    }

    /// Takes in the end of a checkpoint, if one ended: what it wrote may leave memory.
    fn settle(&mut self) {
        if !self.in_flight {
            return;
        }
        let Some(done) = lock(&self.shared().jobs).done.take() else {
            return;
        };
        self.in_flight = false;
        let succeeded = done.result.is_ok();
        self.space.settle_job(done);
        if succeeded {
            for (id, root) in self.roots.iter_mut().enumerate() {
                self.space.release_durable(root, id as u8);
            }
        }
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        lock(&self.shared().jobs).closing = true;
        self.shared().jobs_moved.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported and ended in `fatal` already.
            let _ = thread.join();
        }
        lock(&self.shared().jobs).closed = true;
        let durable = lock(&self.shared().durable);
        self.shared().durable_moved.notify_all();
        drop(durable);
    }
}
