//! One gRPC call on an HTTP/2 stream: headers in, response out.
//!
//! This and [`inbound`](super::inbound) are the only files of the layer that know the HTTP library.

use super::channel::{Framed, Out, Receiver, channel};
use super::frame::no_decompressor;
use super::inbound::Messages;
use super::metadata::{GRPC, Metadata, encode_message};
use super::router::{Call, Handler, Router, Streaming};
use crate::net::{Body, Connection, Frames, Unsent};
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::task::AbortHandle;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The client's deadline has passed.
const DEADLINE_EXCEEDED: Status =
    Status::fixed(Code::DeadlineExceeded, "context deadline exceeded");

/// The call ended before its message.
const EOF: Status = Status::fixed(Code::Unknown, "EOF");

/// Answers one call.
pub async fn call(
    router: Arc<Router>,
    request: Request<Incoming>,
    connection: Arc<Connection>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let metadata = match Metadata::read(&head.method, &head.headers) {
        Ok(metadata) => metadata,
        Err(refusal) => {
            let mut response = trailers_only(&refusal.status, GRPC);
            *response.status_mut() =
                StatusCode::from_u16(refusal.http).unwrap_or(StatusCode::BAD_REQUEST);
            return response;
        }
    };
    let content_type = metadata.content_type;
    let path = head.uri.path();
    let Some(handler) = router.methods.get(path) else {
        return trailers_only(&router.unknown(path), content_type);
    };
    if let Some(encoding) = metadata.encoding.as_deref().filter(|e| *e != "identity") {
        return trailers_only(&no_decompressor(encoding), content_type);
    }
    let truncated = match handler {
        Handler::Unary(_) => Code::Unknown,
        Handler::Streaming { .. } => Code::Internal,
    };
    let messages = Messages::new(
        body,
        router.receive_bytes_max,
        metadata.encoding.as_deref(),
        truncated,
    );
    let deadline = metadata.ctx.deadline;
    let call = Call {
        ctx: metadata.ctx,
        client_version: metadata.client_version,
    };
    match handler {
        Handler::Unary(handler) => {
            let answering = async {
                connection.unsent.room().await;
                let message = one_message(messages).await?;
                handler.call(call, message).await
            };
            match within(deadline, answering).await {
                Ok(framed) => whole(framed, content_type, &connection.unsent),
                Err(status) => trailers_only(&status, content_type),
            }
        }
        Handler::Streaming { handler, endless } => {
            let stream = start(&**handler, *endless, call, messages, &connection);
            streamed(stream, content_type).await
        }
    }
}

async fn one_message(mut messages: Messages) -> Result<Bytes, Status> {
    match messages.next().await {
        Some(message) => message,
        None => Err(EOF),
    }
}

/// Ends the work when the deadline passes. A timer is made only for work that has to wait.
async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let mut work = pin!(work);
    let Some(deadline) = deadline else {
        return work.await;
    };
    if deadline <= Instant::now() {
        return Err(DEADLINE_EXCEEDED);
    }
    let first = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
    if let Poll::Ready(result) = first {
        return result;
    }
    tokio::time::timeout_at(deadline.into(), work)
        .await
        .unwrap_or(Err(DEADLINE_EXCEEDED))
}

fn trailers_only(status: &Status, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    write_status(headers, status);
    response
}

fn write_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(&GRPC_STATUS, HeaderValue::from(status.code as u16));
    if !status.message.is_empty() {
        headers.insert(&GRPC_MESSAGE, encode_message(&status.message));
    }
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(&GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

fn whole(framed: Framed, content_type: HeaderValue, unsent: &Arc<Unsent>) -> Response<Body> {
    let mut response = Response::new(Body::Trailed {
        head: Some(unsent.hold(framed.head)),
        tail: framed.tail.into_iter().map(|p| unsent.hold(p)).collect(),
        trailers: Some(Box::new(ok_trailers())),
    });
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// A streaming call under way: its handler runs as a task of the same thread, so that it can take
/// requests while responses wait for the client; it ends with the response's body.
struct Stream {
    receiver: Receiver,
    unsent: Arc<Unsent>,
    task: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(
    handler: &dyn Streaming,
    endless: bool,
    call: Call,
    messages: Messages,
    connection: &Connection,
) -> Stream {
    let (sender, receiver) = channel();
    let finisher = sender.finisher();
    let deadline = call.ctx.deadline;
    let handling = handler.call(call, messages, sender);
    let mut draining = connection.draining.clone();
    let task = tokio::spawn(async move {
        let handling = within(deadline, handling);
        let result = tokio::select! {
            result = handling => result,
            _ = draining.wait_for(|d| *d), if endless => Err(errors::STOPPED),
        };
        finisher.finish(match result {
            Ok(()) => Status::fixed(Code::Ok, ""),
            Err(status) => status,
        });
    });
    Stream {
        receiver,
        unsent: connection.unsent.clone(),
        task: task.abort_handle(),
    }
}

/// Headers go out with the first message, as grpc-go sends them; a stream that ends before is
/// answered with its status alone.
async fn streamed(mut stream: Stream, content_type: HeaderValue) -> Response<Body> {
    let first = poll_fn(|cx| stream.receiver.poll_next(cx)).await;
    let framed = match first {
        Out::Message(framed) => framed,
        Out::End(status) => return trailers_only(&status, content_type),
    };
    let mut pieces = Pieces {
        ready: VecDeque::new(),
        stream: Some(stream),
    };
    pieces.take(framed);
    let mut response = Response::new(Body::Streaming(Box::new(pieces)));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The body of a streaming response.
struct Pieces {
    ready: VecDeque<Bytes>,
    /// Gone once the trailers are sent.
    stream: Option<Stream>,
}

impl Pieces {
    fn take(&mut self, framed: Framed) {
        if let Some(stream) = &mut self.stream {
            let framed = stream.receiver.gather(framed);
            let pieces = std::iter::once(framed.head).chain(framed.tail);
            self.ready.extend(pieces.map(|p| stream.unsent.hold(p)));
        }
    }
}

impl Frames for Pieces {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Frame::data(piece)));
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(None);
            };
            match std::task::ready!(stream.receiver.poll_next(cx)) {
                Out::Message(framed) => self.take(framed),
                Out::End(status) => {
                    self.stream = None;
                    let mut trailers = HeaderMap::with_capacity(2);
                    write_status(&mut trailers, &status);
                    return Poll::Ready(Some(Frame::trailers(trailers)));
                }
            }
        }
    }
}
