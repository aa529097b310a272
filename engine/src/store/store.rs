//! The shared handle and the writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::btree::{Root, Tree};
use super::bulk::Bulk;
use super::checkpoint::{self, Job};
use super::cursor::Cursor;
use super::defrag::{self, Progress, TailRun};
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
        let _hurry = self.shared.pace.hurry();
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

    #[cfg(test)]
    pub(crate) fn reached_units_for_tests(&self) -> Vec<u64> {
        let map = lock(&self.shared.durable).map.clone();
        let units =
            |extent: super::alloc::Extent| extent.unit..extent.unit + u64::from(extent.units);
        map.reached.extents().flat_map(units).collect()
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        self.shared.path()
    }

    /// The runs that wait to be moved, for reading ahead what that needs.
    pub fn noted_runs(&self) -> Vec<TailRun> {
        lock(&self.shared.tail).runs()
    }

    /// Runs a durable write of the log; background work holds its next piece of I/O back meanwhile, for a moment.
    pub fn log_write<R>(&self, write: impl FnOnce() -> R) -> R {
        let held_up_since = self.shared.pace.log_begins();
        self.shared.yielding.log(true);
        let result = write();
        self.shared.yielding.log(false);
        self.shared.pace.log_ends(held_up_since);
        result
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

/// What a publish moves at most, in bytes: some tens of microseconds of work, some hundreds when pages are packed.
const MOVED_PER_PUBLISH: usize = 128 << 10;

/// What a publish moves at least, when there is something to move.
const MOVED_LEAST: usize = 16 << 10;

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

    #[cfg(test)]
    pub(crate) fn store_for_tests(&self) -> Store {
        self.last.store().clone()
    }

    /// For tests that break rules.
    #[cfg(test)]
    pub(crate) fn leave_runs(&self) {
        self.shared().moves_runs.store(false, Ordering::Relaxed);
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
        Cursor::new(
            self.space.pages(),
            &self.roots[tree as usize],
            tree as u8,
            None,
        )
    }

    /// LIVE entries of the working state in `[start, end)`, or from `start` on.
    pub fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
        self.roots[tree as usize].count(self.space.pages(), tree as u8, start, end)
    }

    /// Brings the leaves that hold `keys` into the cache, many pages at a time. Blocks for the reads.
    pub fn prefetch(&self, tree: TreeId, keys: &[&[u8]]) {
        let pages = self.space.pages();
        pages.prefetch(&self.roots[tree as usize], tree as u8, keys);
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

    /// Begins to load an empty tree with sorted entries. `CheckpointRunning` while a checkpoint is being written.
    pub fn bulk(&mut self, tree: TreeId) -> Result<Bulk<'_>> {
        self.shared().check_poison()?;
        if self.checkpoint_running() {
            return Err(Error::CheckpointRunning);
        }
        self.settle();
        Bulk::new(&mut self.space, &mut self.roots[tree as usize], tree as u8)
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

    /// Bytes that the next publish may move: half of what it changes, so that nobody who writes little pays for much;
    /// more when somebody asked for it.
    pub fn moved_per_publish(&self) -> usize {
        match self.shared().shrinks.load(Ordering::Relaxed) > 0 {
            true => MOVED_PER_PUBLISH,
            false => (self.space.own_bytes() / 2).clamp(MOVED_LEAST, MOVED_PER_PUBLISH),
        }
    }

    /// Makes the working state immutable and shows it. Costs four reference counts; after a checkpoint ended, also
    /// a visit to the pages changed since it began.
    pub fn publish(&mut self) -> Snapshot {
        self.settle();
        // Moving is no duty: a page that cannot be read is reported to whoever needs it.
        if self.move_tail(self.moved_per_publish()).is_err() {
            defrag::Tail::default().put(self.shared());
        }
        let publish = self.space.end_publish();
        let shared = self.shared();
        shared.pin(publish);
        shared
            .counters
            .newest_publish
            .store(publish, Ordering::Relaxed);
        shared.pace.set_dirty(self.space.dirty_bytes() as u64);
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
        shared.pace.begin(job.frozen.bytes);
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

    /// Waits, for `longest` at most, while what is changed in memory is further on its way to the limit than the checkpoint being
    /// written is on its way to its end. Called after every batch, it slows the owner down instead of stopping it when
    /// memory is full.
    pub fn keep_pace(&self, longest: Duration) {
        if self.in_flight {
            self.shared()
                .pace
                .keep(self.space.dirty_bytes() as u64, longest);
        }
    }

    /// Begins to make the file as small as its contents allow: checkpoints note which pages are sparse, then what lies
    /// at the end of the file, publishes and `move_tail` pack the ones and move the others before it, and checkpoints
    /// cut off what falls free. Goes on as long as there are publishes and checkpoints; `shrinking` tells when there is
    /// nothing more to do: the goal is reached, or a number of checkpoints in a row have brought no progress. Errors are
    /// those of reading pages.
    pub fn request_shrink(&mut self) -> Result<()> {
        let shared = self.shared();
        lock(&shared.packing).ask();
        *lock(&shared.progress) = Progress::default();
        shared.shrinks.store(checkpoint::SHRINKS, Ordering::Relaxed);
        self.move_tail(MOVED_PER_PUBLISH).map(|_| ())
    }

    /// Packs pages that were noted as sparse, and moves pages and keys that were noted at the end of the file, up to
    /// `bytes`; how many bytes were written anew. Errors are those of reading pages.
    pub fn move_tail(&mut self, bytes: usize) -> Result<usize> {
        defrag::move_tail(&mut self.space, &mut self.roots, bytes)
    }

    /// From now on the caller moves the runs of its own: values and chunks.
    pub fn moves_runs(&self) {
        self.shared().moves_runs.store(true, Ordering::Relaxed);
    }

    /// Runs at the end of the file that should move before it, up to `bytes`, at least one if there is any. For each,
    /// the caller looks who refers to it; if somebody does, it writes a copy with [`StoreWriter::copy_run`], has it
    /// referred to instead, and frees the old one.
    pub fn tail_runs(&mut self, bytes: usize) -> Vec<TailRun> {
        lock(&self.shared().tail).take_runs(bytes)
    }

    /// A copy of a run that lies before it. None when there is no room any more.
    pub fn copy_run(&mut self, old: &TailRun) -> Result<Option<RunRef>> {
        let contents = Bytes::copy_from_slice(&old.bytes);
        let copy = self.space.write_run_below(
            old.kind,
            old.owner_key.clone(),
            old.owner,
            contents,
            old.run.unit,
        )?;
        if copy.is_some() {
            let bytes = u64::from(old.run.units) * self.space.pages().geo.unit_bytes as u64;
            let counter = &self.shared().counters.moved_bytes;
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(copy)
    }

    /// Whether anything noted waits to be moved.
    pub fn tail_waits(&self) -> bool {
        !lock(&self.shared().tail).is_empty()
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
        let shared = self.space.shared.clone();
        let _hurry = shared.pace.hurry();
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
