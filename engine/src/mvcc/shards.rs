//! The newest value of something, for readers on any number of threads.
//!
//! It stands in several mutex-guarded shards. A reader locks one for a single clone; the writer replaces shard after
//! shard. No lock is held across anything else.
//!
//! Invariants:
//! 1. When `set` returns, every shard has the new value: whoever learns of it afterwards reads it or a newer one.
//! 2. What is read from one shard never goes back.
//! 3. The value that is replaced is dropped outside of the lock: its drop may take long.

use crate::stall;
use crate::sync::{Mutex, MutexGuard};

/// Each on cache lines of its own, so that readers on different threads do not contend.
#[repr(align(128))]
struct Shard<T>(Mutex<T>);

pub(crate) struct Shards<T, const N: usize> {
    shards: [Shard<T>; N],
}

fn lock<T>(shard: &Shard<T>) -> MutexGuard<'_, T> {
    // Every critical section is a plain assignment or clone: poisoned data is whole.
    stall::lock(&shard.0, stall::Cause::ViewLock)
}

impl<T: Clone, const N: usize> Shards<T, N> {
    pub(crate) fn new(value: &T) -> Shards<T, N> {
        Shards {
            shards: std::array::from_fn(|_| Shard(Mutex::new(value.clone()))),
        }
    }

    /// The value, as of the shard of this number.
    pub(crate) fn get(&self, shard: usize) -> T {
        lock(&self.shards[shard % N]).clone()
    }

    /// Replaces the value. For one writer.
    pub(crate) fn set(&self, value: &T) {
        for shard in &self.shards {
            let old = std::mem::replace(&mut *lock(shard), value.clone());
            drop(old);
        }
    }
}
