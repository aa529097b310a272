//! The hand-over of prepared segments from the background to the owner, and of retired ones back.
//!
//! Invariants:
//! 1. `ready()` never shrinks but by the owner's `take`: what an append was promised is there when
//!    the flush needs it. (A segment on its way from *free* to *staged* counts.)
//! 2. The lock is held for a few moves of small values, never across I/O.
//! 3. At most one segment has a name and no header: the next one is named only when the owner has said
//!    that the one it took is in use. A crash never leaves two, of which recovery could not tell
//!    whether the first had been in use.
//! 4. Whoever waits is woken by every change that could end the wait: a segment becoming staged or
//!    free, the disk being found full, a failure, the end.

use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::Duration;

/// What the background does next. `F` is a segment file.
pub(crate) enum Job<F> {
    /// Give this free segment the name of the log's next one.
    Stage {
        free: F,
        seq: u64,
    },
    /// Get rid of this: trimmed segments in ascending order.
    Retire(Retired<F>),
    /// Write zeros into a new one.
    Fill,
    /// Nothing to do until something changes.
    Nothing,
    Stop,
}

/// What the owner does not need any more.
pub(crate) enum Retired<F> {
    /// A whole segment; `recycle` says whether the pool could use it.
    Segment { seq: u64, file: F, recycle: bool },
    /// The part of a segment behind `len`: dead since its successor was started.
    Tail { file: F, len: u64 },
}

struct State<F> {
    free: Vec<F>,
    staging: bool,
    staged: Option<F>,
    /// The one taken last has no header yet.
    beginning: bool,
    next_seq: u64,
    retired: VecDeque<Retired<F>>,
    /// Segments asked for beyond the target, by an append that spans more.
    demand: usize,
    full: bool,
    failed: bool,
    stop: bool,
    urgent: bool,
}

/// Shared by the owner and the background.
pub(crate) struct Pool<F> {
    state: Mutex<State<F>>,
    changed: Condvar,
    target: usize,
    keep: usize,
}

/// Why no segment will come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoSegment {
    Full,
    Failed,
}

impl<F> State<F> {
    fn ready(&self) -> usize {
        self.free.len() + usize::from(self.staging) + usize::from(self.staged.is_some())
    }

    fn may_stage(&self) -> bool {
        self.staged.is_none() && !self.staging && !self.beginning && !self.free.is_empty()
    }
}

impl<F> Pool<F> {
    /// A pool that aims at `target` ready segments, keeps up to `keep` if trimming yields more,
    /// and names the next staged one `next_seq`.
    pub fn new(free: Vec<F>, next_seq: u64, target: usize, keep: usize) -> Pool<F> {
        Pool {
            state: Mutex::new(State {
                free,
                staging: false,
                staged: None,
                beginning: false,
                next_seq,
                retired: VecDeque::new(),
                demand: 0,
                full: false,
                failed: false,
                stop: false,
                urgent: false,
            }),
            changed: Condvar::new(),
            target,
            keep: keep.max(target),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    // ---- the owner's side ----------------------------------------------------------------------

    pub fn ready(&self) -> usize {
        self.lock().ready()
    }

    /// Whether more than `count` segments are ready; or why there never will be. `None`: not yet,
    /// but the background will see to it.
    pub fn more_than(&self, count: usize) -> Option<Result<(), NoSegment>> {
        self.lock().more_than(count)
    }

    /// Whether the background last found the disk full.
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Has the background try again, though the disk was full.
    pub fn try_again(&self) {
        self.lock().full = false;
    }

    /// Blocks until more than `count` segments are ready.
    pub fn wait_for_more_than(&self, count: usize) -> Result<(), NoSegment> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.more_than(count) {
                state.urgent = false;
                return answer;
            }
            state = self.hurry(state);
        }
    }

    /// Takes the staged segment if there is one. No other is named before [`Pool::begun`].
    pub fn take(&self) -> Option<Result<F, NoSegment>> {
        let taken = self.lock().take();
        self.changed.notify_all();
        taken
    }

    /// Takes the staged segment, waiting for it.
    pub fn wait_and_take(&self) -> Result<F, NoSegment> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.take() {
                state.urgent = false;
                drop(state);
                self.changed.notify_all();
                return answer;
            }
            state = self.hurry(state);
        }
    }

    /// The segment taken last has its header, durable.
    pub fn begun(&self) {
        self.lock().beginning = false;
        self.changed.notify_all();
    }

    fn hurry<'a>(&'a self, mut state: MutexGuard<'a, State<F>>) -> MutexGuard<'a, State<F>> {
        state.urgent = true;
        self.changed.notify_all();
        self.changed.wait(state).unwrap_or_else(|e| e.into_inner())
    }

    pub fn retire(&self, what: Retired<F>) {
        self.lock().retired.push_back(what);
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    // ---- the background's side -------------------------------------------------------------------

    /// Takes the next job.
    pub fn next_job(&self) -> Job<F> {
        let mut state = self.lock();
        if state.stop || state.failed {
            return Job::Stop;
        }
        if state.may_stage()
            && let Some(free) = state.free.pop()
        {
            state.staging = true;
            let seq = state.next_seq;
            return Job::Stage { free, seq };
        }
        if let Some(mut what) = state.retired.pop_front() {
            let enough = state.ready() >= self.keep;
            if let Retired::Segment { recycle, .. } = &mut what {
                *recycle = *recycle && !enough;
            }
            return Job::Retire(what);
        }
        if state.ready() < self.target.max(state.demand) {
            return Job::Fill;
        }
        state.full = false;
        Job::Nothing
    }

    /// A free segment has got its name.
    pub fn staged(&self, file: F) {
        let mut state = self.lock();
        state.staging = false;
        state.staged = Some(file);
        drop(state);
        self.changed.notify_all();
    }

    /// A segment was filled or recycled.
    pub fn add_free(&self, file: F) {
        let mut state = self.lock();
        state.free.push(file);
        state.full = false;
        drop(state);
        self.changed.notify_all();
    }

    pub fn set_full(&self) {
        self.lock().full = true;
        self.changed.notify_all();
    }

    pub fn set_failed(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }

    /// Sleeps until something changes, at most for `limit`. Returns at once at the end, if segments
    /// were retired, and with `unless_urgent` if someone waits for a segment.
    pub fn rest(&self, limit: Duration, unless_urgent: bool) {
        let state = self.lock();
        if !state.must_not_rest(unless_urgent) {
            drop(self.changed.wait_timeout(state, limit));
        }
    }

    /// Sleeps until there is a job (or the end).
    pub fn wait_for_job(&self) {
        let mut state = self.lock();
        while !(state.stop
            || state.failed
            || !state.retired.is_empty()
            || state.ready() < self.target.max(state.demand)
            || state.may_stage())
        {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }
}

impl<F> State<F> {
    fn must_not_rest(&self, unless_urgent: bool) -> bool {
        self.stop || !self.retired.is_empty() || (unless_urgent && self.urgent)
    }

    fn more_than(&mut self, count: usize) -> Option<Result<(), NoSegment>> {
        let answer = if self.ready() > count {
            Some(Ok(()))
        } else if self.failed {
            Some(Err(NoSegment::Failed))
        } else {
            self.full.then_some(Err(NoSegment::Full))
        };
        self.demand = match answer {
            None => count + 1,
            Some(_) => 0,
        };
        answer
    }

    fn take(&mut self) -> Option<Result<F, NoSegment>> {
        if let Some(file) = self.staged.take() {
            self.next_seq += 1;
            self.beginning = true;
            return Some(Ok(file));
        }
        if self.failed {
            return Some(Err(NoSegment::Failed));
        }
        // Full, and nothing is on its way.
        (self.full && self.ready() == 0).then_some(Err(NoSegment::Full))
    }
}
