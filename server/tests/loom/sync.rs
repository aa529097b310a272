//! What the modules name, over loom.

pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub use loom::sync::{Mutex, MutexGuard};
use std::cell::Cell;
use std::sync::{LockResult, PoisonError};
use std::time::Duration;

thread_local! {
    /// Wake-ups are dropped: the control of the models. (All threads of a model are one of the system's.)
    pub static DEAF: Cell<bool> = const { Cell::new(false) };
}

pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub fn new() -> Condvar {
        Condvar(loom::sync::Condvar::new())
    }

    /// There is no time: a wait for one change.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        match self.0.wait(guard) {
            Ok(guard) => Ok((guard, false)),
            Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), false))),
        }
    }

    pub fn notify_one(&self) {
        if !DEAF.get() {
            self.0.notify_one();
        }
    }

    pub fn notify_all(&self) {
        if !DEAF.get() {
            self.0.notify_all();
        }
    }
}

/// One permit, one waiter: what a dispatcher needs of tokio's.
#[derive(Default)]
pub struct Notify {
    permit: Mutex<bool>,
    waker: loom::future::AtomicWaker,
}

impl Notify {
    pub fn notify_one(&self) {
        if DEAF.get() {
            return;
        }
        *self.permit.lock().unwrap() = true;
        self.waker.wake();
    }

    pub async fn notified(&self) {
        std::future::poll_fn(|cx| {
            self.waker.register_by_ref(cx.waker());
            match std::mem::take(&mut *self.permit.lock().unwrap()) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }
}

/// A value for one receiver, as tokio's.
pub mod oneshot {
    use super::Mutex;
    use loom::future::AtomicWaker;
    use loom::sync::Arc;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    struct Place<T> {
        value: Mutex<Option<Option<T>>>,
        waker: AtomicWaker,
    }

    pub struct Sender<T>(Option<Arc<Place<T>>>);
    pub struct Receiver<T>(Arc<Place<T>>);

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let place = Arc::new(Place {
            value: Mutex::new(None),
            waker: AtomicWaker::new(),
        });
        (Sender(Some(place.clone())), Receiver(place))
    }

    impl<T> Place<T> {
        fn set(&self, value: Option<T>) {
            *self.value.lock().unwrap() = Some(value);
            self.waker.wake();
        }
    }

    impl<T> Sender<T> {
        pub fn send(mut self, value: T) -> Result<(), T> {
            self.0.take().expect("a sender sends once").set(Some(value));
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            if let Some(place) = self.0.take() {
                place.set(None);
            }
        }
    }

    impl<T> Future for Receiver<T> {
        /// `None` when the sender was dropped.
        type Output = Option<T>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.waker.register_by_ref(cx.waker());
            match self.0.value.lock().unwrap().take() {
                Some(value) => Poll::Ready(value),
                None => Poll::Pending,
            }
        }
    }
}
