//! Carrying results from the node thread back to the calls that wait for them.
//!
//! Every network thread owns one shard. A call registers in the shard of the thread it runs on; the
//! node thread hands each shard all results of a batch at once and wakes it once; a task on that
//! thread then completes the calls with wake-ups that stay on the thread. A wake across threads
//! costs a system call, so there is one per batch and shard instead of one per request.
//!
//! Invariants:
//! 1. A registered call is completed exactly once: with its result, or with a timeout by `expire`,
//!    or with `STOPPED` by `close`. A result for an id that is gone is dropped.
//! 2. The number of registered calls is bounded by what the mailbox and the network layer admit.
//! 3. No lock is held while a call is woken by the node thread.

use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Notify, Ordering, oneshot,
};
use crate::apply::Reply;
use crate::status::{Status, errors};
use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a proposal ends with.
pub type Outcome = Result<Reply, Status>;

/// Shards are named by the low bits of a request id.
const SHARD_BITS: u32 = 6;
/// Network threads at most; more would share shards.
pub const SHARDS_MAX: usize = 1 << SHARD_BITS;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

struct Waiter {
    since: Instant,
    done: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Shard {
    waiting: Mutex<HashMap<u64, Waiter>>,
    finished: Mutex<Vec<(u64, Outcome)>>,
    wake: Notify,
    /// Whether a dispatcher runs; without one the node thread completes calls itself.
    attended: AtomicBool,
}

/// All calls that wait for the node.
pub struct Completions {
    shards: Vec<Shard>,
    id_prefix: u64,
    next: AtomicU64,
    pending: AtomicUsize,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}

impl Completions {
    /// Shards for `threads` network threads. `member_id` and `boot_ms` (milliseconds since the epoch
    /// at boot) make ids unique across members and restarts: 16 bits of the member, 42 of a counter
    /// that starts at the boot time, 6 of the shard.
    pub fn new(threads: usize, member_id: u64, boot_ms: u64) -> Completions {
        Completions {
            shards: (0..threads.clamp(1, SHARDS_MAX))
                .map(|_| Shard::default())
                .collect(),
            id_prefix: (member_id & 0xffff) << 48,
            next: AtomicU64::new(boot_ms << 8),
            pending: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Runs the dispatcher of one network thread; the future never ends by itself.
    pub async fn dispatch(&self, thread: usize) {
        let shard = &self.shards[thread % self.shards.len()];
        SHARD.with(|s| s.set(thread % self.shards.len()));
        shard.attended.store(true, Ordering::Release);
        let mut batch = Vec::new();
        loop {
            shard.wake.notified().await;
            std::mem::swap(&mut batch, &mut *lock(&shard.finished));
            if batch.is_empty() {
                continue;
            }
            // The senders are taken out under the lock and used after it.
            let mut ready = Vec::with_capacity(batch.len());
            {
                let mut waiting = lock(&shard.waiting);
                for (id, outcome) in batch.drain(..) {
                    if let Some(waiter) = waiting.remove(&id) {
                        ready.push((waiter.done, outcome));
                    }
                }
            }
            self.pending.fetch_sub(ready.len(), Ordering::Relaxed);
            for (done, outcome) in ready {
                // A caller that went away is no error.
                let _ = done.send(outcome);
            }
        }
    }

    /// Registers a call of the current thread.
    pub fn register(&self) -> Result<(u64, oneshot::Receiver<Outcome>), Status> {
        if self.closed.load(Ordering::Acquire) {
            return Err(errors::STOPPED);
        }
        let shard = SHARD.with(Cell::get) % self.shards.len();
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let id =
            self.id_prefix | (count & ((1 << (48 - SHARD_BITS)) - 1)) << SHARD_BITS | shard as u64;
        let (done, result) = oneshot::channel();
        lock(&self.shards[shard].waiting).insert(
            id,
            Waiter {
                since: Instant::now(),
                done,
            },
        );
        self.pending.fetch_add(1, Ordering::Relaxed);
        Ok((id, result))
    }

    /// Withdraws a call whose proposal was refused.
    pub fn withdraw(&self, id: u64) {
        if lock(&self.shard_of(id).waiting).remove(&id).is_some() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether the call of this id still waits.
    pub fn waits(&self, id: u64) -> bool {
        lock(&self.shard_of(id).waiting).contains_key(&id)
    }

    /// Hands over the results of one batch; called by the node thread after publishing.
    pub fn complete(&self, batch: &mut Vec<(u64, Outcome)>) {
        if batch.is_empty() {
            return;
        }
        let mut touched = 0u64;
        for (id, outcome) in batch.drain(..) {
            let index = self.shard_index(id);
            let shard = &self.shards[index];
            if shard.attended.load(Ordering::Acquire) {
                lock(&shard.finished).push((id, outcome));
                touched |= 1 << index;
            } else {
                self.finish(shard, id, outcome);
            }
        }
        for (index, shard) in self.shards.iter().enumerate() {
            if touched & (1 << index) != 0 {
                shard.wake.notify_one();
            }
        }
    }

    /// Ends calls that wait longer than `timeout`; `status` is what they get.
    pub fn expire(&self, timeout: Duration, status: &Status) -> usize {
        let now = Instant::now();
        let mut expired = 0;
        for shard in &self.shards {
            let late: Vec<Waiter> = lock(&shard.waiting)
                .extract_if(|_, w| now.duration_since(w.since) > timeout)
                .map(|(_, w)| w)
                .collect();
            expired += late.len();
            self.pending.fetch_sub(late.len(), Ordering::Relaxed);
            for waiter in late {
                let _ = waiter.done.send(Err(status.clone()));
            }
        }
        expired
    }

    /// Refuses new calls and ends the waiting ones with `STOPPED`.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for shard in &self.shards {
            let finished = std::mem::take(&mut *lock(&shard.finished));
            for (id, outcome) in finished {
                self.finish(shard, id, outcome);
            }
            let rest: Vec<Waiter> = lock(&shard.waiting).drain().map(|(_, w)| w).collect();
            self.pending.fetch_sub(rest.len(), Ordering::Relaxed);
            for waiter in rest {
                let _ = waiter.done.send(Err(errors::STOPPED));
            }
        }
    }

    /// Calls that wait.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    fn finish(&self, shard: &Shard, id: u64, outcome: Outcome) {
        let waiter = lock(&shard.waiting).remove(&id);
        if let Some(waiter) = waiter {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            let _ = waiter.done.send(outcome);
        }
    }

    fn shard_index(&self, id: u64) -> usize {
        (id & ((1 << SHARD_BITS) - 1)) as usize % self.shards.len()
    }

    fn shard_of(&self, id: u64) -> &Shard {
        &self.shards[self.shard_index(id)]
    }
}
