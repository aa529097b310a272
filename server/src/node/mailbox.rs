//! The queue in front of a thread that works in batches.
//!
//! Producers push under a mutex; the consumer swaps the whole vector out, so one wake carries
//! everything that gathered while it worked, and batches form by themselves without timers.
//!
//! Invariants:
//! 1. Items come out in the order they were pushed (per producer and overall).
//! 2. A consumer that sleeps is woken by the first push after its last drain; later pushes cost no
//!    system call.
//! 3. The weight of queued items never exceeds the limit by more than one item; `push` refuses then.
//! 4. After `close`, pushes are refused and the consumer drains what is left exactly once more.

use super::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

struct Inner<T> {
    items: Vec<T>,
    weight: usize,
    sleeping: bool,
    closed: bool,
}

/// A bounded many-producer queue whose consumer takes everything at once.
pub struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
    wake: Condvar,
    weight_max: usize,
}

/// Why a push was refused; carries the item back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The queue holds its limit of bytes.
    Full(T),
    /// The consumer has stopped.
    Closed(T),
}

/// What a wait ended with.
#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    /// Items were appended to the output, or the deadline passed with none.
    Open,
    /// The mailbox is closed and now empty.
    Closed,
}

impl<T> Mailbox<T> {
    /// A mailbox that refuses pushes once the queued weight has reached `weight_max`.
    pub fn new(weight_max: usize) -> Mailbox<T> {
        Mailbox {
            inner: Mutex::new(Inner {
                items: Vec::new(),
                weight: 0,
                sleeping: false,
                closed: false,
            }),
            wake: Condvar::new(),
            weight_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // A panic elsewhere cannot leave the vector half changed.
        self.inner.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Queues an item of the given weight (bytes). Never blocks beyond the short mutex.
    pub fn push(&self, item: T, weight: usize) -> Result<(), Refused<T>> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Refused::Closed(item));
        }
        if inner.weight >= self.weight_max {
            return Err(Refused::Full(item));
        }
        inner.weight += weight;
        inner.items.push(item);
        let wake = std::mem::take(&mut inner.sleeping);
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes what is queued without waiting.
    pub fn drain(&self, out: &mut Vec<T>) -> Drained {
        Self::take(&mut self.lock(), out)
    }

    /// Takes what is queued, waiting until `deadline` for the first item.
    pub fn wait(&self, out: &mut Vec<T>, deadline: Option<Instant>) -> Drained {
        let mut inner = self.lock();
        while inner.items.is_empty() && !inner.closed {
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(at) => match at.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => left,
                    _ => break,
                },
            };
            inner.sleeping = true;
            inner = self
                .wake
                .wait_timeout(inner, left)
                .unwrap_or_else(|p| p.into_inner())
                .0;
            inner.sleeping = false;
        }
        Self::take(&mut inner, out)
    }

    fn take(inner: &mut Inner<T>, out: &mut Vec<T>) -> Drained {
        if inner.items.is_empty() && inner.closed {
            return Drained::Closed;
        }
        inner.weight = 0;
        if out.is_empty() {
            // Swap keeps both allocations alive for the next round.
            std::mem::swap(out, &mut inner.items);
        } else {
            out.append(&mut inner.items);
        }
        Drained::Open
    }

    /// Refuses further pushes and wakes the consumer.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }
}
