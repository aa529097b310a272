//! What the handles of one store share, and the small locks that order it.
//!
//! Locks, none of them held across I/O: `durable` (what the newest durable checkpoint is), `alloc`, `pins`, `jobs`,
//! `packing`, `progress`, `tail`. Where two are taken it is in that order.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::alloc::{Alloc, Extent};
use super::checkpoint::Job;
use super::defrag::{Progress, Tail};
use super::error::{Error, Result};
use super::lock;
use super::map::Map;
use super::meta::RootAt;
use super::node::NodeRef;
use super::pace::Pace;
use super::pack::Packing;
use super::pages::Pages;
use super::pins::Pins;
use super::stall::{Cause, Watched};
use super::types::{Durable, FatalHook, StoreStats};
use super::yielding::Yielding;

/// The newest durable checkpoint.
pub(super) struct DurableState {
    pub checkpoint: u64,
    /// Publish number of the state it wrote.
    pub publish: u64,
    pub user: Arc<[u8]>,
    pub roots: [Option<RootAt>; 4],
    /// Meta page that holds it.
    pub slot: usize,
    pub map: Map,
    /// The newest checkpoint that failed for want of space.
    pub failed: u64,
    /// The newest one whose callbacks have returned.
    pub announced: u64,
}

/// How a checkpoint ended.
pub(super) struct JobDone {
    pub result: Result<()>,
    /// Of a failed one: what it was to drop.
    pub dropped: Vec<Extent>,
    /// Of a failed one: what was written for it before.
    pub added: Vec<Extent>,
    /// Of a successful one: first units of the runs it wrote.
    pub runs: Vec<u64>,
}

/// The checkpoint thread's desk.
#[derive(Default)]
pub(super) struct Jobs {
    pub next: Option<Job>,
    pub done: Option<JobDone>,
    /// Pages to be freed where nobody waits for it.
    pub buried: Vec<NodeRef>,
    /// The writer is going: the thread ends when nothing is left to do.
    pub closing: bool,
    /// The thread has ended: no checkpoint will come any more.
    pub closed: bool,
}

#[derive(Default)]
pub(super) struct Counters {
    pub checkpoints: AtomicU64,
    pub failed: AtomicU64,
    pub bytes: AtomicU64,
    pub last_micros: AtomicU64,
    pub total_micros: AtomicU64,
    pub newest_publish: AtomicU64,
    /// Bytes moved towards the front, or into fuller pages.
    pub moved_bytes: AtomicU64,
    /// Bytes of pages that packing made superfluous.
    pub packed_bytes: AtomicU64,
}

pub(super) struct Shared {
    pub pages: Pages,
    pub durable: Watched<DurableState>,
    /// Told whenever a checkpoint ends.
    pub durable_moved: Condvar,
    pub alloc: Watched<Alloc>,
    /// Live snapshots by publish number.
    pins: Pins,
    pub jobs: Watched<Jobs>,
    pub jobs_moved: Condvar,
    pub callbacks: Mutex<Vec<Callback>>,
    pub counters: Counters,
    pub no_space: AtomicBool,
    /// How fast background I/O goes.
    pub pace: Pace,
    pub file_len: AtomicU64,
    /// Checkpoints to come that cut the free end off.
    pub shrinks: AtomicU64,
    /// What lies at the end of the file and the writer is to move.
    pub tail: Watched<Tail>,
    /// The record layer moves the runs of values and chunks.
    pub moves_runs: AtomicBool,
    /// Unit at which the file would end if all were moved.
    pub defrag_goal: AtomicU64,
    /// How much is moved beside the log.
    pub yielding: Yielding,
    /// How far packing is.
    pub packing: Mutex<Packing>,
    /// What the walks have brought so far.
    pub progress: Mutex<Progress>,
    /// Things are being moved: the map moves along.
    pub tidying: AtomicBool,
    /// Free space of more than this part of the file, in percent, is taken back without being asked.
    pub fragmentation_max: u64,
    pub extend_bytes: u64,
    pub reserve_bytes: u64,
    pub background: bool,
    poisoned: AtomicBool,
    on_fatal: Option<FatalHook>,
    /// Negative control: the meta page is written before the pages.
    #[cfg(test)]
    pub meta_first: AtomicBool,
    /// Negative control: packing puts the keys between pages one entry too late.
    #[cfg(test)]
    pub cut_late: AtomicBool,
}

/// Called with every new durable checkpoint.
pub(super) type Callback = Arc<dyn Fn(&Durable) + Send + Sync>;

/// The parts of [`Shared`] that opening decides.
pub(super) struct Setup {
    pub pages: Pages,
    pub durable: DurableState,
    pub alloc: Alloc,
    pub file_len: u64,
    pub extend_bytes: u64,
    pub reserve_bytes: u64,
    pub fragmentation_max: u64,
    pub background: bool,
    /// See [`super::StoreOptions::dirty_bytes_limit`].
    pub dirty_bytes_limit: u64,
    pub on_fatal: Option<FatalHook>,
}

impl Shared {
    pub fn new(setup: Setup) -> Shared {
        Shared {
            pages: setup.pages,
            durable: Watched::new(Cause::DurableLock, setup.durable),
            durable_moved: Condvar::new(),
            alloc: Watched::new(Cause::AllocLock, setup.alloc),
            pins: Pins::default(),
            jobs: Watched::new(Cause::JobsLock, Jobs::default()),
            jobs_moved: Condvar::new(),
            callbacks: Mutex::default(),
            counters: Counters::default(),
            no_space: AtomicBool::new(false),
            pace: Pace::new(setup.background, setup.dirty_bytes_limit),
            file_len: AtomicU64::new(setup.file_len),
            shrinks: AtomicU64::new(0),
            tail: Watched::new(Cause::TailLock, Tail::default()),
            moves_runs: AtomicBool::new(false),
            defrag_goal: AtomicU64::new(0),
            yielding: Yielding::default(),
            packing: Mutex::default(),
            progress: Mutex::default(),
            tidying: AtomicBool::new(false),
            fragmentation_max: setup.fragmentation_max,
            extend_bytes: setup.extend_bytes,
            reserve_bytes: setup.reserve_bytes,
            background: setup.background,
            poisoned: AtomicBool::new(false),
            on_fatal: setup.on_fatal,
            #[cfg(test)]
            meta_first: AtomicBool::new(false),
            #[cfg(test)]
            cut_late: AtomicBool::new(false),
        }
    }

    pub fn path(&self) -> &Path {
        &self.pages.path
    }

    // --- pins ----------------------------------------------------------------------------------------------------

    pub fn pin(&self, publish: u64) {
        self.pins.pin(publish);
    }

    pub fn unpin(&self, publish: u64) {
        self.pins.unpin(publish);
    }

    pub fn oldest_pin(&self) -> Option<u64> {
        self.pins.oldest()
    }

    /// Makes dropped units free that may be, and forgets runs in memory that lay there.
    pub fn reclaim(&self) {
        let durable = lock(&self.durable).checkpoint;
        let oldest = self.oldest_pin();
        let mut alloc = lock(&self.alloc);
        let freed = alloc.reclaim(durable, oldest);
        // Before the writer can take the units again: what it puts there must not be forgotten.
        self.pages
            .forget_mem_runs(freed.iter().map(|extent| extent.unit));
    }

    /// Called before each piece of background I/O that is not a checkpoint's: lets the log go first.
    pub fn give_way(&self) {
        self.pace.give_way();
    }

    // --- ends ----------------------------------------------------------------------------------------------------

    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub fn check_poison(&self) -> Result<()> {
        if self.poisoned() {
            Err(Error::Poisoned)
        } else {
            Ok(())
        }
    }

    /// A write or sync failed: what the device holds is unknown from here on, and asking again would only hide it.
    /// Ends the process; with a hook (tests) refuses everything that follows.
    pub fn fatal(&self, what: &str) {
        self.poisoned.store(true, Ordering::Release);
        let line = format!(
            "quorate: fatal: {}: {what}; stopping so that nothing is acknowledged that the disk does not hold",
            self.path().display()
        );
        match &self.on_fatal {
            Some(hook) => (hook.0)(&line),
            None => {
                eprintln!("{line}");
                std::process::abort();
            }
        }
        let durable = lock(&self.durable);
        self.durable_moved.notify_all();
        drop(durable);
    }

    /// Frees pages on the checkpoint thread.
    pub fn bury(&self, nodes: Vec<NodeRef>) {
        if nodes.is_empty() || !self.background {
            return;
        }
        lock(&self.jobs).buried.extend(nodes);
        self.jobs_moved.notify_all();
    }

    pub fn durable(&self) -> Durable {
        let durable = lock(&self.durable);
        Durable {
            checkpoint: durable.checkpoint,
            user_meta: durable.user.clone(),
        }
    }

    pub fn stats(&self) -> StoreStats {
        let unit = self.pages.geo.unit_bytes as u64;
        let cache = self.pages.cache.stats();
        let (high_water, taken, pending) = {
            let alloc = lock(&self.alloc);
            (
                alloc.high_water(),
                alloc.taken_units(),
                alloc.pending_units(),
            )
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            file_bytes: high_water * unit,
            in_use_bytes: (taken - pending) * unit,
            free_bytes: (high_water - taken) * unit,
            pending_bytes: pending * unit,
            allocated_bytes: get(&self.file_len),
            dirty_bytes: self.pace.dirty(),
            cache_bytes: cache.bytes,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            cache_evictions: cache.evictions,
            checkpoints: get(&self.counters.checkpoints),
            checkpoints_failed: get(&self.counters.failed),
            checkpoint_bytes: get(&self.counters.bytes),
            checkpoint_last_micros: get(&self.counters.last_micros),
            checkpoint_total_micros: get(&self.counters.total_micros),
            gave_way: get(&self.pace.gave_way),
            moved_bytes: get(&self.counters.moved_bytes),
            packed_bytes: get(&self.counters.packed_bytes),
            defrag_goal_bytes: get(&self.defrag_goal) * unit,
            defragmenting: get(&self.shrinks) > 0,
            no_space: self.no_space.load(Ordering::Relaxed),
            oldest_pin: self.oldest_pin(),
            oldest_pin_age: self.pins.oldest_age(),
            newest_publish: get(&self.counters.newest_publish),
        }
    }
}
