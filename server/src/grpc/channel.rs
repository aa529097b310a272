//! The queue between a streaming handler and the codec: encoded messages, then one status.
//!
//! Invariants:
//! 1. Messages come out in the order they went in; the status comes out after all of them.
//! 2. The queue is full when it holds [`MESSAGES_MAX`] messages or [`BYTES_MAX`] bytes; the sender then
//!    waits. One message may pass the bound on bytes.
//! 3. Whichever end goes first, the other learns it: a sender gets [`Closed`], a receiver the status
//!    given when the sender's task was ended.

use crate::api::Reply;
use crate::api::stream::{Closed, Responses};
use crate::metrics::MethodMetrics;
use crate::status::{Code, Status};
use bytes::{BufMut, Bytes, BytesMut};
use prometheus::IntCounter;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::frame::PREFIX_BYTES;

/// Messages a stream may hold.
pub const MESSAGES_MAX: usize = 128;
/// Bytes a stream may hold before its handler waits.
pub const BYTES_MAX: usize = 1 << 20;

/// Small messages that wait together leave in pieces of up to this size: the smallest limit HTTP/2
/// has for a frame.
const GATHER_BYTES_MAX: usize = 16 << 10;

/// One framed message: its first piece begins with the prefix.
#[derive(Debug)]
pub struct Framed {
    /// Prefix and first bytes.
    pub head: Bytes,
    /// The rest.
    pub tail: Vec<Bytes>,
}

impl Framed {
    /// Frames a reply. Refuses what the four bytes of the length cannot say.
    pub fn new(reply: impl Reply) -> Result<Framed, Status> {
        let len = reply.encoded_len();
        let Ok(announced) = u32::try_from(len) else {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!(
                    "trying to send message larger than max ({len} vs. {})",
                    u32::MAX
                ),
            ));
        };
        let mut head = BytesMut::with_capacity(PREFIX_BYTES + len);
        head.put_u8(0);
        head.put_u32(announced);
        let mut tail = Vec::new();
        reply.encode(&mut head, &mut tail);
        let framed = Framed {
            head: head.freeze(),
            tail,
        };
        debug_assert_eq!(framed.len(), PREFIX_BYTES + len);
        Ok(framed)
    }

    /// Bytes with the prefix.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>()
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Framed>,
    bytes: usize,
    end: Option<Status>,
    receiver_gone: bool,
    receiver: Option<Waker>,
    sender: Option<Waker>,
}

impl State {
    fn is_full(&self) -> bool {
        self.queue.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }
}

struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// A queue for one call.
pub fn channel() -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
    });
    (
        Sender {
            shared: shared.clone(),
        },
        Receiver { shared },
    )
}

/// The handler's end.
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Waits for room. Cancel-safe.
    async fn room(&self) -> Result<(), Closed> {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            if state.receiver_gone || state.end.is_some() {
                return Poll::Ready(Err(Closed));
            }
            if !state.is_full() {
                return Poll::Ready(Ok(()));
            }
            state.sender = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn push(&self, framed: Framed) -> Result<(), Closed> {
        let mut state = self.shared.lock();
        if state.receiver_gone || state.end.is_some() {
            return Err(Closed);
        }
        state.bytes += framed.len();
        state.queue.push_back(framed);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Ok(())
    }

    /// Ends the stream with a status; only the first counts. What is queued is still sent.
    pub fn finish(&self, status: Status) {
        let mut state = self.shared.lock();
        state.end.get_or_insert(status);
        let wakers = (state.receiver.take(), state.sender.take());
        drop(state);
        if let Some(waker) = wakers.0 {
            waker.wake();
        }
        if let Some(waker) = wakers.1 {
            waker.wake();
        }
    }

    /// Another handle to the same queue, to end it from outside of the handler.
    pub fn finisher(&self) -> Sender {
        Sender {
            shared: self.shared.clone(),
        }
    }
}

/// What comes out of a queue.
#[derive(Debug)]
pub enum Out {
    /// The next message.
    Message(Framed),
    /// The end.
    End(Status),
}

/// The codec's end.
pub struct Receiver {
    shared: Arc<Shared>,
}

impl Receiver {
    /// The next message, or the end once all have been taken.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Out> {
        let mut state = self.shared.lock();
        if let Some(framed) = state.queue.pop_front() {
            state.bytes -= framed.len();
            let sender = match state.is_full() {
                true => None,
                false => state.sender.take(),
            };
            drop(state);
            if let Some(sender) = sender {
                sender.wake();
            }
            return Poll::Ready(Out::Message(framed));
        }
        if let Some(status) = &state.end {
            return Poll::Ready(Out::End(status.clone()));
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Receiver {
    /// Puts the messages that wait behind `first` into one piece with it, as far as they fit a frame of
    /// HTTP/2: a watch that fell behind sends many small messages, and a frame costs more than a copy.
    pub fn gather(&mut self, first: Framed) -> Framed {
        if !first.tail.is_empty() {
            return first;
        }
        let mut state = self.shared.lock();
        let first_len = first.head.len();
        let mut len = first_len;
        let more = state.queue.iter().take_while(|next| {
            len += next.head.len();
            next.tail.is_empty() && len <= GATHER_BYTES_MAX
        });
        let count = more.count();
        if count == 0 {
            return first;
        }
        let mut head = BytesMut::with_capacity(GATHER_BYTES_MAX.min(len));
        head.put(first.head);
        for next in state.queue.drain(..count) {
            head.put(next.head);
        }
        state.bytes -= head.len() - first_len;
        let sender = match state.is_full() {
            true => None,
            false => state.sender.take(),
        };
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        Framed {
            head: head.freeze(),
            tail: Vec::new(),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.receiver_gone = true;
        state.queue.clear();
        state.bytes = 0;
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

/// The responses of a call as its handler sees them: encodes and counts.
pub struct Responder<R> {
    sender: Sender,
    metrics: Arc<MethodMetrics>,
    sent_bytes: IntCounter,
    replies: PhantomData<fn(R)>,
}

impl<R> Responder<R> {
    /// Sends on `sender` and counts on `metrics` and `sent_bytes`.
    pub fn new(
        sender: Sender,
        metrics: Arc<MethodMetrics>,
        sent_bytes: IntCounter,
    ) -> Responder<R> {
        Responder {
            sender,
            metrics,
            sent_bytes,
            replies: PhantomData,
        }
    }
}

impl<R: Reply> Responses<R> for Responder<R> {
    async fn send(&mut self, reply: R) -> Result<(), Closed> {
        self.sender.room().await?;
        let framed = match Framed::new(reply) {
            Ok(framed) => framed,
            Err(status) => {
                self.sender.finish(status);
                return Err(Closed);
            }
        };
        self.sent_bytes.inc_by((framed.len() - PREFIX_BYTES) as u64);
        self.metrics.sent.inc();
        self.sender.push(framed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Kind, Metrics, Options};
    use quorate_proto::etcdserverpb as pb;
    use tokio::task::yield_now;

    fn pair() -> (Responder<pb::WatchResponse>, Sender, Receiver, Metrics) {
        let metrics = Metrics::new(&Options::default());
        let (sender, receiver) = channel();
        let finisher = sender.finisher();
        let method = Arc::new(metrics.grpc.method(Kind::BidiStream, "s", "m"));
        let bytes = metrics.network.client_sent_bytes.clone();
        (
            Responder::new(sender, method, bytes),
            finisher,
            receiver,
            metrics,
        )
    }

    fn response(id: i64, reason: &str) -> pb::WatchResponse {
        pb::WatchResponse {
            watch_id: id,
            cancel_reason: reason.into(),
            ..Default::default()
        }
    }

    async fn next(receiver: &mut Receiver) -> Out {
        poll_fn(|cx| receiver.poll_next(cx)).await
    }

    #[tokio::test]
    async fn small_messages_that_wait_leave_together_in_order() {
        let (mut responder, _finisher, mut receiver, _metrics) = pair();
        let sizes = [10, 20, 0, 9_000, 9_000, 40_000, 5, 6, 16_380, 80, 7];
        for (id, size) in sizes.into_iter().enumerate() {
            let reason = "x".repeat(size);
            responder.send(response(id as i64, &reason)).await.unwrap();
        }
        let (mut pieces, mut ids) = (Vec::new(), Vec::new());
        while ids.len() < sizes.len() {
            let Out::Message(first) = next(&mut receiver).await else {
                panic!("ended before all messages");
            };
            let mut piece = receiver.gather(first).head;
            let before = ids.len();
            while !piece.is_empty() {
                let prefix = piece.split_to(PREFIX_BYTES);
                let len = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
                let message: pb::WatchResponse =
                    prost::Message::decode(piece.split_to(len)).unwrap();
                ids.push(message.watch_id);
            }
            pieces.push(ids.len() - before);
        }
        assert_eq!(ids, (0..sizes.len() as i64).collect::<Vec<_>>());
        assert_eq!(pieces, [4, 1, 1, 2, 1, 2]);
        assert_eq!(receiver.shared.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_sender_and_nothing_is_lost_or_reordered() {
        for payload in [10, 100_000] {
            let (mut responder, finisher, mut receiver, metrics) = pair();
            let reason = "x".repeat(payload);
            let total = 1000;
            let sending = tokio::spawn(async move {
                for id in 0..total {
                    responder.send(response(id, &reason)).await.unwrap();
                }
                finisher.finish(crate::status::errors::STOPPED);
            });
            for _ in 0..50 {
                yield_now().await;
            }
            let held = receiver.shared.lock().queue.len();
            let bytes = receiver.shared.lock().bytes;
            assert!(held <= MESSAGES_MAX && bytes < BYTES_MAX + payload + 50);
            assert!(held == MESSAGES_MAX || bytes >= BYTES_MAX);
            let mut sum = 0;
            for id in 0..total {
                let Out::Message(framed) = next(&mut receiver).await else {
                    panic!("ended before all messages");
                };
                sum += framed.len() - PREFIX_BYTES;
                let message: pb::WatchResponse =
                    prost::Message::decode(framed.head.slice(PREFIX_BYTES..)).unwrap();
                assert_eq!(message.watch_id, id);
            }
            assert!(
                matches!(next(&mut receiver).await, Out::End(s) if s == crate::status::errors::STOPPED)
            );
            sending.await.unwrap();
            assert_eq!(metrics.network.client_sent_bytes.get(), sum as u64);
        }
    }

    #[tokio::test]
    async fn a_gone_receiver_wakes_a_waiting_sender() {
        let (mut responder, _finisher, receiver, _metrics) = pair();
        let sending = tokio::spawn(async move {
            for id in 0.. {
                if responder.send(response(id, "")).await.is_err() {
                    return id;
                }
            }
            0
        });
        for _ in 0..20 {
            yield_now().await;
        }
        drop(receiver);
        assert_eq!(sending.await.unwrap(), MESSAGES_MAX as i64);
    }

    #[tokio::test]
    async fn an_end_from_outside_stops_the_sender_and_comes_after_the_messages() {
        let (mut responder, finisher, mut receiver, _metrics) = pair();
        responder.send(response(1, "")).await.unwrap();
        finisher.finish(crate::status::errors::NO_LEADER);
        finisher.finish(crate::status::errors::STOPPED);
        assert_eq!(responder.send(response(2, "")).await, Err(Closed));
        assert!(matches!(next(&mut receiver).await, Out::Message(_)));
        assert!(
            matches!(next(&mut receiver).await, Out::End(s) if s == crate::status::errors::NO_LEADER)
        );
    }
}
