//! What apply tells the metrics. Nothing here flows back.

use super::txn::Ops;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Hears about every applied request. Called on the apply thread; must not block.
pub trait Observer: Send + Sync + 'static {
    /// A request of kind `op` (etcd's metric label) was applied in `took`; `ok` tells whether it was
    /// answered without an error.
    fn applied(&self, op: &'static str, ok: bool, took: Duration);
}

/// Nobody listens.
impl Observer for () {
    fn applied(&self, _op: &'static str, _ok: bool, _took: Duration) {}
}

/// Operations executed by this member since it started, operations inside transactions included, and
/// roughly how full the store is.
#[derive(Debug, Default)]
pub struct Counters {
    in_use_bytes: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    deletes: AtomicU64,
    ranges: AtomicU64,
    txns: AtomicU64,
}

impl Counters {
    /// Puts.
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// Bytes of the keys and values of puts.
    pub fn put_bytes(&self) -> u64 {
        self.put_bytes.load(Ordering::Relaxed)
    }

    /// Delete requests, whether or not a key was there.
    pub fn deletes(&self) -> u64 {
        self.deletes.load(Ordering::Relaxed)
    }

    /// Ranges, inside and outside transactions.
    pub fn ranges(&self) -> u64 {
        self.ranges.load(Ordering::Relaxed)
    }

    /// Transactions that went through the log.
    pub fn txns(&self) -> u64 {
        self.txns.load(Ordering::Relaxed)
    }

    /// Bytes in use as last looked up, plus what entries since then may have added. Good enough to
    /// tell that the quota is far; ask the engine when it is near.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.in_use_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_in_use_bytes(&self, bytes: u64) {
        self.in_use_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_in_use_bytes(&self, bytes: u64) {
        self.in_use_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, ops: &Ops) {
        for (counter, n) in [
            (&self.puts, ops.puts),
            (&self.put_bytes, ops.put_bytes),
            (&self.deletes, ops.deletes),
            (&self.ranges, ops.ranges),
        ] {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn add_txn(&self) {
        self.txns.fetch_add(1, Ordering::Relaxed);
    }
}
