//! The network threads: one single-threaded runtime each.
//!
//! Invariants:
//! 1. A future spawned on a thread runs there only; nothing migrates.
//! 2. When the last handle is dropped, every thread ends: futures that still run are dropped on it.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

thread_local! {
    static INDEX: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the network thread this is, counted from 0 within its server; `None` elsewhere.
pub fn current_thread_index() -> Option<usize> {
    INDEX.get()
}

/// A handle to the network threads. Cheap to clone.
#[derive(Clone)]
pub struct Threads {
    inner: Arc<Inner>,
}

struct Inner {
    threads: Vec<Thread>,
}

struct Thread {
    runtime: Handle,
    stop: Arc<Notify>,
    join: Option<JoinHandle<()>>,
}

impl Threads {
    /// Half the cores, at least one: the other half belongs to the node, the log and the store.
    pub fn count_by_default() -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / 2).max(1)
    }

    /// Starts `count` threads.
    pub fn start(count: usize) -> io::Result<Threads> {
        let threads = (0..count.max(1))
            .map(Thread::start)
            .collect::<io::Result<_>>()?;
        Ok(Threads {
            inner: Arc::new(Inner { threads }),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.inner.threads.len()
    }

    /// Runs a future on a thread. `thread` counts from 0; panics beyond `count`.
    pub fn spawn_on(
        &self,
        thread: usize,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        self.inner.threads[thread]
            .runtime
            .spawn(future)
            .abort_handle()
    }
}

impl Thread {
    fn start(index: usize) -> io::Result<Thread> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let join = std::thread::Builder::new()
            .name(format!("net-{index}"))
            .spawn(move || {
                INDEX.set(Some(index));
                runtime.block_on(stopped.notified());
            })?;
        Ok(Thread {
            runtime: handle,
            stop,
            join: Some(join),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.stop.notify_one();
        }
        for thread in &mut self.threads {
            // The last handle may be held by a future of such a thread, which cannot wait for itself.
            let join = thread.join.take();
            if let Some(join) = join.filter(|j| j.thread().id() != std::thread::current().id()) {
                // A panic of the thread was reported where it happened.
                let _ = join.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn futures_stay_on_their_thread_and_end_with_it() {
        let threads = Threads::start(3).unwrap();
        assert_eq!(threads.count(), 3);
        assert_eq!(current_thread_index(), None);
        let (sender, results) = mpsc::channel();
        for thread in 0..3 {
            let sender = sender.clone();
            threads.spawn_on(thread, async move {
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    sender.send((thread, current_thread_index())).unwrap();
                }
                // Keeps the sender until the thread ends.
                std::future::pending::<()>().await;
            });
        }
        drop(sender);
        for _ in 0..30 {
            let (thread, index) = results.recv().unwrap();
            assert_eq!(index, Some(thread));
        }
        drop(threads);
        results.recv().unwrap_err();
    }
}
