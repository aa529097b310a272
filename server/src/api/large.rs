//! Answers that may be large, built beside the network threads and within a bound on their bytes.
//!
//! A network thread serves many connections, so it must not read for long. It begins every read itself,
//! which is all that small ones take; one that passes [`Bounds::inline_bytes`] is given up and begun
//! anew by one of a few reader threads. Old revisions of several keys go there at once: counting them
//! means reading them.
//!
//! Invariants:
//! 1. The bytes that reader threads read into answers, of all calls together and until the answer is sent
//!    or dropped, stay within [`Bounds::budget_bytes`]. An answer that is larger alone takes all of it.
//! 2. A call waits for its share for as long as a request may take, then it gets `TOO_MANY_REQUESTS`.
//! 3. An answer nobody waits for any more is not built further.
//!
//! Absent on purpose: answers of transactions that change something and of deletions. They are part of
//! applying an entry and cannot be refused there.

use crate::apply::range::Reads;
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use engine::{KeyRange, KeyValue, KvRef, View};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// How much is large, and how much of it there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes a network thread reads for one call at most; each key counts for [`KEY_BYTES`] more.
    pub inline_bytes: usize,
    /// Bytes of all larger answers together.
    pub budget_bytes: usize,
    /// Reader threads.
    pub readers: usize,
    /// How long a call waits for its share.
    pub wait: Duration,
}

impl Bounds {
    pub fn new(wait: Duration) -> Bounds {
        Bounds {
            inline_bytes: 512 << 10,
            budget_bytes: 256 << 20,
            readers: std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)),
            wait,
        }
    }
}

/// What a key costs besides its bytes.
const KEY_BYTES: usize = 64;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 4096;
/// How often a reader looks whether its share can grow.
const SHARE_POLL: Duration = Duration::from_millis(5);

type Job = Box<dyn FnOnce() + Send>;

/// The reader threads and the budget.
pub(super) struct Large {
    bounds: Bounds,
    budget: Arc<Semaphore>,
    /// Started with the first large answer.
    readers: OnceLock<Sender<Job>>,
}

/// The share of an answer in the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share(OwnedSemaphorePermit);

impl Share {
    fn bytes(&self) -> usize {
        self.0.num_permits() * UNIT
    }
}

/// A view that says what reading it costs, and stops when that is too much.
pub(super) struct Metered<'a> {
    view: &'a View,
    spend: &'a dyn Fn(usize) -> bool,
    stopped: Cell<bool>,
}

impl<'a> Metered<'a> {
    fn new(view: &'a View, spend: &'a dyn Fn(usize) -> bool) -> Metered<'a> {
        Metered {
            view,
            spend,
            stopped: Cell::new(false),
        }
    }

    /// Of the view.
    pub fn compact_revision(&self) -> i64 {
        self.view.compact_revision()
    }

    fn take(&self, kv: &KvRef<'_>) -> bool {
        let goes_on = (self.spend)(kv.key.len() + kv.value.len() + KEY_BYTES);
        if !goes_on {
            self.stopped.set(true);
        }
        goes_on
    }
}

macro_rules! metered {
    ($($visit:ident),*) => {
        $(fn $visit(
            &self,
            range: &KeyRange,
            at: i64,
            f: &mut dyn FnMut(KvRef<'_>) -> ControlFlow<()>,
        ) -> engine::Result<()> {
            self.view.$visit(range, at, &mut |kv| match self.take(&kv) {
                true => f(kv),
                false => ControlFlow::Break(()),
            })
        })*
    };
}

impl Reads for Metered<'_> {
    fn revision(&self) -> i64 {
        self.view.revision()
    }
    fn get(&self, key: &[u8], at: i64) -> engine::Result<Option<KeyValue>> {
        self.view.get(key, at)
    }
    metered!(visit, visit_keys, visit_rev);
    fn count(&self, range: &KeyRange, at: i64) -> engine::Result<u64> {
        self.view.count(range, at)
    }
}

/// What is known about a read before it begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Hint {
    /// It reads more than its answer has, so a reader thread takes it at once.
    pub slow: bool,
    /// What it reads at most: the keys of a range, and a limit.
    pub keys: Option<(KeyRange, u64)>,
}

impl Hint {
    /// Keys it reads at most; more than it has seen, if nothing is known.
    fn keys_max(&self, view: &View, seen: u64) -> u64 {
        let known = self.keys.as_ref().and_then(|(keys, limit)| {
            let count = view.count(keys, 0).ok()?;
            Some(count.min(*limit))
        });
        known.unwrap_or(2 * seen).max(seen)
    }
}

impl Large {
    pub fn new(bounds: Bounds) -> Large {
        Large {
            bounds,
            budget: Arc::new(Semaphore::new(bounds.budget_bytes.div_ceil(UNIT))),
            readers: OnceLock::new(),
        }
    }

    /// Reads from a view: here if that is quickly done, else on a reader thread, with a share of the
    /// budget that the caller keeps as long as the answer takes memory. `read` may run twice.
    pub async fn read<T: Send + 'static>(
        &self,
        view: View,
        hint: Hint,
        read: impl Fn(&Metered<'_>) -> Result<T, Status> + Send + 'static,
    ) -> Result<(T, Option<Share>), Status> {
        let mut expected = self.bounds.inline_bytes;
        if !hint.slow {
            let (read_bytes, keys) = (Cell::new(0), Cell::new(0));
            let spend = |bytes: usize| {
                read_bytes.set(read_bytes.get() + bytes);
                keys.set(keys.get() + 1);
                read_bytes.get() <= self.bounds.inline_bytes
            };
            let metered = Metered::new(&view, &spend);
            let result = read(&metered);
            if !metered.stopped.get() {
                return result.map(|answer| (answer, None));
            }
            // As if the rest were like the beginning.
            let (read_bytes, keys) = (read_bytes.get() as u64, keys.get() as u64);
            let all = hint.keys_max(&view, keys);
            expected = (read_bytes / keys.max(1)).saturating_mul(all) as usize;
        }
        let share = self.share(expected).await?;
        self.on_reader(view, share, read).await
    }

    /// Waits for a share.
    async fn share(&self, bytes: usize) -> Result<Share, Status> {
        let units = self.units(bytes);
        let share = self.budget.clone().acquire_many_owned(units);
        match tokio::time::timeout(self.bounds.wait, share).await {
            Ok(Ok(share)) => Ok(Share(share)),
            _ => Err(errors::TOO_MANY_REQUESTS),
        }
    }

    fn units(&self, bytes: usize) -> u32 {
        bytes.min(self.bounds.budget_bytes).div_ceil(UNIT) as u32
    }

    async fn on_reader<T: Send + 'static>(
        &self,
        view: View,
        share: Share,
        read: impl Fn(&Metered<'_>) -> Result<T, Status> + Send + 'static,
    ) -> Result<(T, Option<Share>), Status> {
        let failed = |what: &'static str| Status::fixed(Code::Internal, what);
        let (done, result) = oneshot::channel();
        let (budget, bounds) = (self.budget.clone(), self.bounds);
        let job = move || {
            let (share, spent, refused) = (Cell::new(Some(share)), Cell::new(0), Cell::new(false));
            let spend = |bytes: usize| {
                spent.set(spent.get() + bytes);
                let Some(mut held) = share.take() else {
                    return false;
                };
                let fits = grow(&budget, &bounds, &mut held, spent.get(), &|| {
                    done.is_closed()
                });
                share.set(Some(held));
                refused.set(!fits);
                fits
            };
            let metered = Metered::new(&view, &spend);
            let answer = read(&metered);
            // Given back before a failure is told.
            let share = share.take();
            let answer = match refused.get() {
                true => {
                    drop(share);
                    Err(errors::TOO_MANY_REQUESTS)
                }
                false => answer.map(|answer| (answer, share)),
            };
            // A caller that went away needs no answer.
            let _ = done.send(answer);
        };
        self.readers()?
            .send(Box::new(job))
            .map_err(|_| failed("the reader threads have ended"))?;
        match result.await {
            Ok(answer) => answer,
            Err(_) => Err(failed("the read ended without a result")),
        }
    }

    fn readers(&self) -> Result<&Sender<Job>, Status> {
        if let Some(readers) = self.readers.get() {
            return Ok(readers);
        }
        let readers = start(self.bounds.readers)
            .map_err(|e| Status::new(Code::Internal, format!("cannot start a thread: {e}")))?;
        // Of two that start them at once one is dropped again, and its threads end.
        Ok(self.readers.get_or_init(|| readers))
    }
}

/// Makes a share large enough, waiting within bounds. False: there is no more, or nobody waits.
fn grow(
    budget: &Arc<Semaphore>,
    bounds: &Bounds,
    share: &mut Share,
    bytes: usize,
    given_up: &dyn Fn() -> bool,
) -> bool {
    let mut deadline = None;
    loop {
        if given_up() {
            return false;
        }
        let missing = bytes.min(bounds.budget_bytes).saturating_sub(share.bytes());
        if missing == 0 {
            return true;
        }
        // By half at least, so that it does not come here for every key.
        let wanted = missing
            .max(share.bytes() / 2)
            .min(bounds.budget_bytes - share.bytes());
        let take = |bytes: usize| {
            let units = bytes.div_ceil(UNIT) as u32;
            budget.clone().try_acquire_many_owned(units)
        };
        if let Ok(more) = take(wanted).or_else(|_| take(missing)) {
            share.0.merge(more);
            continue;
        }
        if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + bounds.wait) {
            return false;
        }
        std::thread::sleep(SHARE_POLL);
    }
}

/// Threads that end when the sender is dropped.
fn start(count: usize) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..count.max(1) {
        let jobs = jobs.clone();
        std::thread::Builder::new()
            .name("reader".into())
            .spawn(move || {
                let next = || jobs.lock().unwrap_or_else(|p| p.into_inner()).recv();
                while let Ok(job) = next() {
                    // Whoever waits for it is told by the sender it drops; the panic was printed.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
    }
    Ok(sender)
}

/// Bytes that give their share back when the last reference is dropped.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Keeps the share for as long as the bytes.
pub(super) fn hold(bytes: Bytes, share: Option<Share>) -> Bytes {
    match share {
        None => bytes,
        Some(share) => Bytes::from_owner(Held {
            bytes,
            _share: share,
        }),
    }
}

#[cfg(test)]
mod tests;
