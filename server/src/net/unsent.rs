//! Large responses that a connection holds because its client does not read.
//!
//! Invariants:
//! 1. A piece counts from its making until the codec has written its last byte or dropped it.
//! 2. A call begins only while its connection holds less than the bound. What calls that have begun
//!    answer may pass it: an answer is never thrown away.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Smaller pieces are not counted; the bound on streams bounds them.
const COUNTED_BYTES_MIN: usize = 64 << 10;
/// A connection that holds this much begins no further call.
const HELD_BYTES_MAX: usize = 16 << 20;

/// What one connection holds.
#[derive(Debug, Default)]
pub struct Unsent {
    bytes: AtomicUsize,
    less: Notify,
}

impl Unsent {
    /// Counts a piece of a response for as long as it lives.
    pub fn hold(self: &Arc<Self>, piece: Bytes) -> Bytes {
        if piece.len() < COUNTED_BYTES_MIN {
            return piece;
        }
        self.bytes.fetch_add(piece.len(), Ordering::Relaxed);
        Bytes::from_owner(Held {
            piece,
            unsent: self.clone(),
        })
    }

    /// Waits until the connection may begin another call.
    pub async fn room(&self) {
        while self.bytes() >= HELD_BYTES_MAX {
            let less = self.less.notified();
            let mut less = std::pin::pin!(less);
            less.as_mut().enable();
            if self.bytes() >= HELD_BYTES_MAX {
                less.await;
            }
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

struct Held {
    piece: Bytes,
    unsent: Arc<Unsent>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self
            .unsent
            .bytes
            .fetch_sub(self.piece.len(), Ordering::Relaxed);
        if before >= HELD_BYTES_MAX && before - self.piece.len() < HELD_BYTES_MAX {
            self.unsent.less.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::yield_now;

    #[tokio::test]
    async fn calls_wait_until_the_client_has_read() {
        let unsent = Arc::new(Unsent::default());
        let small = unsent.hold(Bytes::from_static(b"small"));
        assert_eq!(unsent.bytes(), 0);
        unsent.room().await;
        let a = unsent.hold(vec![0; HELD_BYTES_MAX - 1].into());
        unsent.room().await;
        let b = unsent.hold(vec![0; COUNTED_BYTES_MIN].into());
        let call = tokio::spawn({
            let unsent = unsent.clone();
            async move { unsent.room().await }
        });
        yield_now().await;
        assert!(!call.is_finished());
        let rest = b.slice(10..);
        drop(b);
        yield_now().await;
        assert!(!call.is_finished(), "a part of the piece is still held");
        drop(rest);
        call.await.unwrap();
        drop((a, small));
        assert_eq!(unsent.bytes(), 0);
    }
}
