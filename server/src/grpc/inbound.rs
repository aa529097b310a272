//! The requests of a streaming call: from pieces of a body to decoded messages.

use super::frame::Decoder;
use crate::api::stream::Requests;
use crate::metrics::MethodMetrics;
use crate::status::{Code, Status};
use bytes::Bytes;
use prometheus::IntCounter;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

/// Slices of a message shorter than this are copied before they are handed out of a stream: they may
/// live long (the key of a watch), and would pin the whole buffer they arrived in.
const COPY_BYTES_MAX: usize = 4096;

/// The body ended within a message. Unary calls have another code for it.
const TRUNCATED: Status = Status::fixed(Code::Internal, "unexpected EOF");

/// What has come of a request and was not taken, between the connection and the handler.
///
/// The window of the stream bounds it: bytes of whole messages are given back when they are taken, those
/// of a message that is still on its way at once, since nobody can take them.
#[derive(Clone)]
pub struct Inbox {
    state: Arc<Mutex<State>>,
}

struct State {
    decoder: Decoder,
    ended: bool,
    /// Nothing comes out any more.
    closed: bool,
    reader: Option<Waker>,
    /// Bytes not given back yet.
    unreleased: usize,
}

impl Inbox {
    pub fn new(decoder: Decoder) -> Inbox {
        Inbox {
            state: Arc::new(Mutex::new(State {
                decoder,
                ended: false,
                closed: false,
                reader: None,
                unreleased: 0,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// A piece has come.
    pub fn put(&self, piece: &[u8], end: bool) {
        let mut state = self.lock();
        state.unreleased += piece.len();
        state.ended |= end;
        if !state.closed {
            state.decoder.feed(piece);
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Bytes that are done with since the last call.
    pub fn take_released(&self) -> usize {
        let mut state = self.lock();
        let kept = match state.decoder.whole() {
            Some(_) => state.decoder.len(),
            None => 0,
        };
        let released = state.unreleased.saturating_sub(kept);
        state.unreleased -= released;
        released
    }

    /// The messages; there is one reader.
    pub fn messages(&self) -> Messages {
        Messages {
            inbox: self.clone(),
        }
    }
}

/// The messages of a body, not yet decoded.
pub struct Messages {
    inbox: Inbox,
}

impl Messages {
    /// The next message; `None` after the last. Cancel-safe: what has arrived stays here.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        poll_fn(|cx| {
            let mut state = self.inbox.lock();
            if state.closed {
                return Poll::Ready(None);
            }
            match state.decoder.next() {
                Ok(Some(message)) => Poll::Ready(Some(Ok(message))),
                Ok(None) if state.ended => {
                    state.closed = true;
                    let truncated = state.decoder.is_mid_message();
                    Poll::Ready(truncated.then_some(Err(TRUNCATED)))
                }
                Ok(None) => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                Err(status) => {
                    state.closed = true;
                    Poll::Ready(Some(Err(status)))
                }
            }
        })
        .await
    }
}

/// Decodes a message; `what` is how grpc-go begins its complaint.
pub fn decode<M: prost::Message + Default>(
    message: impl bytes::Buf,
    what: &str,
) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::new(Code::Internal, format!("{what}: {error}")))
}

/// The requests of a stream as its handler sees them: decodes and counts.
pub struct Inbound<T> {
    messages: Messages,
    metrics: Arc<MethodMetrics>,
    received_bytes: IntCounter,
    requests: PhantomData<fn() -> T>,
}

impl<T> Inbound<T> {
    /// Reads from `messages` and counts on `metrics` and `received_bytes`.
    pub fn new(
        messages: Messages,
        metrics: Arc<MethodMetrics>,
        received_bytes: IntCounter,
    ) -> Inbound<T> {
        Inbound {
            messages,
            metrics,
            received_bytes,
            requests: PhantomData,
        }
    }
}

impl<T: prost::Message + Default> Requests<T> for Inbound<T> {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        let message = match self.messages.next().await? {
            Ok(message) => message,
            Err(status) => return Some(Err(status)),
        };
        self.received_bytes.inc_by(message.len() as u64);
        let what = "grpc: failed to unmarshal the received message";
        let decoded = match message.len() < COPY_BYTES_MAX {
            // Fields are copied out of a slice, and cut out of `Bytes`.
            true => decode(&message[..], what),
            false => decode(message, what),
        };
        if decoded.is_ok() {
            self.metrics.received.inc();
        }
        Some(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::PREFIX_BYTES;
    use super::*;

    fn frame(len: usize) -> Vec<u8> {
        let mut frame = vec![0; PREFIX_BYTES];
        frame[1..].copy_from_slice(&(len as u32).to_be_bytes());
        frame.resize(PREFIX_BYTES + len, 7);
        frame
    }

    #[tokio::test]
    async fn the_window_is_given_back_as_messages_are_taken() {
        let inbox = Inbox::new(Decoder::new(10_000, None));
        let mut messages = inbox.messages();
        let bytes = [frame(100), frame(200), frame(5000)[..1000].to_vec()].concat();
        inbox.put(&bytes, false);
        assert_eq!(inbox.take_released(), 0, "two messages wait");
        assert_eq!(messages.next().await.unwrap().unwrap().len(), 100);
        assert_eq!(inbox.take_released(), 105);
        assert_eq!(messages.next().await.unwrap().unwrap().len(), 200);
        assert_eq!(inbox.take_released(), 205 + 1000, "the third is not whole");
        inbox.put(&frame(5000)[1000..4000], false);
        assert_eq!(inbox.take_released(), 3000);
        let reading = tokio::spawn(async move { (messages.next().await, messages.next().await) });
        tokio::task::yield_now().await;
        inbox.put(&frame(5000)[4000..], false);
        inbox.put(&frame(10)[..8], true);
        let (third, last) = reading.await.unwrap();
        assert_eq!(third.unwrap().unwrap().len(), 5000);
        assert_eq!(last, Some(Err(TRUNCATED)));
        inbox.put(&[1, 2, 3], false);
        assert_eq!(inbox.take_released(), 1005 + 8 + 3, "nobody reads");
    }
}
