//! The requests of a call: from pieces of a body to decoded messages.

use super::frame::Decoder;
use crate::api::stream::Requests;
use crate::metrics::MethodMetrics;
use crate::status::{Code, Status};
use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use prometheus::IntCounter;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Slices of a message shorter than this are copied before they are handed out of a stream: they may
/// live long (the key of a watch), and would pin the whole buffer they arrived in.
const COPY_BYTES_MAX: usize = 4096;

/// How long the rest of a request is read after the call has ended.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The messages of a body, not yet decoded.
///
/// A request that is not read to its end would be reset, and what the client still sends on it would be
/// taken for misbehaviour of the connection. So dropping this leaves the rest to a task that reads
/// and discards it for a while.
pub struct Messages {
    /// There until it is dropped.
    body: Option<Incoming>,
    decoder: Decoder,
    /// The code of a message that breaks off; grpc-go has one for unary calls and one for streams.
    truncated: Code,
    ended: bool,
}

impl Messages {
    /// For messages up to `bytes_max`; one that breaks off is refused with the code `truncated`.
    pub fn new(
        body: Incoming,
        bytes_max: usize,
        encoding: Option<&str>,
        truncated: Code,
    ) -> Messages {
        Messages {
            body: Some(body),
            truncated,
            decoder: Decoder::new(bytes_max, encoding),
            ended: false,
        }
    }

    /// The next message; `None` after the last. Cancel-safe: what has arrived stays here.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if self.ended {
                return None;
            }
            match self.decoder.next() {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
            let Some(body) = &mut self.body else {
                return None;
            };
            match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
                // Trailers of a request carry nothing we need.
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        self.decoder.feed(piece);
                    }
                }
                Some(Err(_)) => {
                    self.ended = true;
                    // The stream was reset or the connection broke; the call is over either way.
                    return Some(Err(CANCELED));
                }
                None => {
                    self.ended = true;
                    return match self.decoder.is_mid_message() {
                        true => Some(Err(Status::fixed(self.truncated, "unexpected EOF"))),
                        false => None,
                    };
                }
            }
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else {
            return;
        };
        if body.is_end_stream() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let rest = async {
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
            };
            // A client that never ends its request is cut off.
            let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
        });
    }
}

/// The client has cancelled the call.
pub const CANCELED: Status = Status::fixed(Code::Canceled, "context canceled");

/// Decodes a message; `what` is how grpc-go begins its complaint.
pub fn decode<M: prost::Message + Default>(message: Bytes, what: &str) -> Result<M, Status> {
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
        let message = match message.len() < COPY_BYTES_MAX {
            true => Bytes::copy_from_slice(&message),
            false => message,
        };
        let decoded = decode(message, "grpc: failed to unmarshal the received message");
        if decoded.is_ok() {
            self.metrics.received.inc();
        }
        Some(decoded)
    }
}
