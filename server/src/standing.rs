//! Work that goes on as long as the member does, and whose end by a panic must be the member's.
//!
//! A runtime catches the panic of a task and goes on without it. A member whose leases no longer expire, or whose
//! watchers hear nothing more, looks well and is not: etcd ends in such a case, and so do we.
//!
//! Invariants:
//! 1. When standing work panics, [`Standing::panicked`] returns its name, whether it was waited for before or not.
//! 2. Work that ends by itself, or is dropped with its runtime, is not reported.

use tokio::sync::watch;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Standing {
    first: watch::Sender<Option<&'static str>>,
}

impl Default for Standing {
    fn default() -> Standing {
        Standing {
            first: watch::Sender::new(None),
        }
    }
}

impl Standing {
    /// `work`, with its panic reported under `name`.
    pub fn work(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let alarm = Alarm {
            first: self.first.clone(),
            name,
        };
        async move {
            // Dropped here when `work` unwinds.
            let _alarm = alarm;
            work.await;
        }
    }

    /// Waits for the first panic; the name of what panicked.
    pub async fn panicked(&self) -> &'static str {
        let mut first = self.first.subscribe();
        loop {
            if let Some(name) = *first.borrow_and_update() {
                return name;
            }
            if first.changed().await.is_err() {
                // Not while `self` is there.
                std::future::pending::<()>().await;
            }
        }
    }
}

struct Alarm {
    first: watch::Sender<Option<&'static str>>,
    name: &'static str,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.first.send_if_modified(|first| {
                let news = first.is_none();
                first.get_or_insert(self.name);
                news
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_panic_is_told_whoever_waits_and_whenever() {
        let standing = Standing::default();
        let waiting = tokio::spawn({
            let standing = standing.clone();
            async move { standing.panicked().await }
        });
        tokio::task::yield_now().await;
        let work = standing.work("expiry", async {
            tokio::task::yield_now().await;
            panic!("as the test wants");
        });
        tokio::spawn(work).await.unwrap_err();
        assert_eq!(waiting.await.unwrap(), "expiry");
        let later = standing.work("later", async { panic!("as the test wants") });
        tokio::spawn(later).await.unwrap_err();
        assert_eq!(standing.panicked().await, "expiry");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ordinary_end_is_not_told() {
        let standing = Standing::default();
        tokio::spawn(standing.work("short", async {}))
            .await
            .unwrap();
        let long = tokio::spawn(standing.work("long", std::future::pending()));
        tokio::task::yield_now().await;
        long.abort();
        assert!(long.await.unwrap_err().is_cancelled());
        drop(standing.work("never begun", async {}));
        tokio::time::timeout(Duration::from_secs(1), standing.panicked())
            .await
            .unwrap_err();
    }
}
