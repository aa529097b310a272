//! One gRPC call on an HTTP/2 stream: head and pieces of the request in, answer out.
//!
//! Invariants:
//! 1. A unary call whose message comes in one piece is decoded where it lies.
//! 2. A timer is made only for a call that has to wait.
//! 3. Headers of a stream go out with its first message, as grpc-go sends them; a call that ends before
//!    is answered with its status alone.

use super::channel::{Framed, Out, Receiver, Sender, channel};
use super::frame::{Decoder, at_once, no_decompressor};
use super::inbound::Inbox;
use super::metadata::{ClientVersion, GRPC, Metadata, encode_message};
use super::router::{Answering, Boxed, Call, Handler, Message, Router, Streaming};
use crate::api::RequestCtx;
use crate::net::h2::{self, Head};
use crate::net::{Answer, Connection};
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The client's deadline has passed.
const DEADLINE_EXCEEDED: Status =
    Status::fixed(Code::DeadlineExceeded, "context deadline exceeded");

/// The call ended before its message.
const EOF: Status = Status::fixed(Code::Unknown, "EOF");

/// The call ended within its message.
const TRUNCATED: Status = Status::fixed(Code::Unknown, "unexpected EOF");

/// Messages from this size on are not copied again when they are decoded.
const OWNED_BYTES_MIN: usize = 4096;

/// `:status: 200` and `content-type: application/grpc`.
const OK_HEADERS: &[u8] = b"\x88\x0f\x10\x10application/grpc";

/// `grpc-status: 0`.
const OK_TRAILERS: &[u8] = b"\0\x0bgrpc-status\x010";

/// What the head of a call says.
pub struct Route(Arc<Known>);

struct Known {
    target: Target,
    /// The headers of the answer, unless the call is refused.
    headers: Bytes,
    content_type: Bytes,
}

enum Target {
    /// Answered without a look at the message.
    Refused { http: u16, status: Status },
    Handler {
        handler: Handler,
        ctx: RequestCtx,
        timeout: Option<Duration>,
        client_version: ClientVersion,
        encoding: Option<Box<str>>,
        receive_bytes_max: usize,
    },
}

impl Route {
    /// Finds the handler of a call and understands its metadata.
    pub fn new(router: &Router, head: &Head<'_>) -> Route {
        let metadata = match Metadata::read(head.method(), head.fields()) {
            Ok(metadata) => metadata,
            Err(refusal) => return Route::refused(refusal.http, refusal.status, GRPC),
        };
        let content_type = metadata.content_type;
        let path = String::from_utf8_lossy(head.path());
        let Some(handler) = router.methods.get(&*path) else {
            return Route::refused(200, router.unknown(&path), content_type);
        };
        let encoding = metadata.encoding;
        if let Some(unknown) = encoding.as_deref().filter(|e| *e != "identity") {
            return Route::refused(200, no_decompressor(unknown), content_type);
        }
        Route(Arc::new(Known {
            target: Target::Handler {
                handler: handler.clone(),
                ctx: metadata.ctx,
                timeout: metadata.timeout,
                client_version: metadata.client_version,
                encoding,
                receive_bytes_max: router.receive_bytes_max,
            },
            headers: match content_type == GRPC {
                true => Bytes::from_static(OK_HEADERS),
                false => headers(200, &content_type).into(),
            },
            content_type,
        }))
    }

    fn refused(http: u16, status: Status, content_type: Bytes) -> Route {
        Route(Arc::new(Known {
            target: Target::Refused { http, status },
            headers: Bytes::new(),
            content_type,
        }))
    }

    /// Begins a call with this head.
    pub fn begin(&self, connection: &Arc<Connection>) -> Exchange {
        let known = &*self.0;
        let mut deadline = None;
        let state = match &known.target {
            Target::Refused { http, status } => State::Refused(*http, status.clone()),
            Target::Handler {
                handler, timeout, ..
            } => {
                // A deadline further away than the clock can tell is none.
                deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                match handler {
                    Handler::Unary(_) => State::Gathering {
                        decoder: None,
                        ended: false,
                    },
                    Handler::Streaming { handler, endless } => {
                        let call = known.call(deadline);
                        let decoder = known.decoder();
                        let stream = Stream::start(&**handler, *endless, call, decoder, connection);
                        State::Streaming(Box::new(stream))
                    }
                }
            }
        };
        Exchange {
            known: self.0.clone(),
            deadline,
            timer: None,
            received: 0,
            state,
        }
    }
}

impl Known {
    fn call(&self, deadline: Option<Instant>) -> Call {
        let Target::Handler {
            ctx,
            client_version,
            ..
        } = &self.target
        else {
            return Call {
                ctx: RequestCtx::default(),
                client_version: ClientVersion::Absent,
            };
        };
        Call {
            ctx: RequestCtx {
                deadline,
                ..ctx.clone()
            },
            client_version: client_version.clone(),
        }
    }

    fn decoder(&self) -> Decoder {
        let encoding = match &self.target {
            Target::Handler { encoding, .. } => encoding.as_deref(),
            Target::Refused { .. } => None,
        };
        Decoder::new(self.bytes_max(), encoding)
    }

    fn bytes_max(&self) -> usize {
        match &self.target {
            Target::Handler {
                receive_bytes_max, ..
            } => *receive_bytes_max,
            Target::Refused { .. } => 0,
        }
    }
}

fn headers(http: u16, content_type: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(64);
    h2::write_status(&mut block, http);
    h2::write_field(&mut block, b"content-type", content_type);
    block
}

fn write_grpc_status(block: &mut Vec<u8>, status: &Status) {
    let code = (status.code as u16).to_string();
    h2::write_field(block, b"grpc-status", code.as_bytes());
    if !status.message.is_empty() {
        let message = encode_message(&status.message);
        h2::write_field(block, b"grpc-message", message.as_bytes());
    }
}

/// A call under way.
pub struct Exchange {
    known: Arc<Known>,
    deadline: Option<Instant>,
    /// For the deadline, once there was something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes of a unary request that were taken and not given back to the window.
    received: usize,
    state: State,
}

enum State {
    Refused(u16, Status),
    /// A unary call whose message is on its way; the decoder is made when it comes in parts.
    Gathering {
        decoder: Option<Box<Decoder>>,
        ended: bool,
    },
    Answering {
        answering: Answering,
        /// It was polled; until then it has done no work.
        begun: bool,
    },
    Streaming(Box<Stream>),
    Over,
}

impl crate::net::Exchange for Exchange {
    fn data(&mut self, bytes: &[u8], end: bool) {
        match &mut self.state {
            State::Streaming(stream) => stream.inbox.put(bytes, end),
            State::Gathering { decoder, ended } => {
                self.received += bytes.len();
                *ended |= end;
                if decoder.is_none()
                    && let Some(message) = at_once(bytes, self.known.bytes_max())
                    && message.len() < OWNED_BYTES_MIN
                {
                    return self.start(Message::Lent(message));
                }
                let known = &self.known;
                let decoder = decoder.get_or_insert_with(|| Box::new(known.decoder()));
                decoder.feed(bytes);
            }
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, answer: &mut Answer<'_>) -> Poll<()> {
        let polled = self.poll_state(cx, answer);
        if polled.is_ready() || self.deadline.is_none() {
            return polled;
        }
        ready!(self.poll_deadline(cx));
        let begun = matches!(&self.state, State::Streaming(stream) if stream.begun);
        self.state = State::Over;
        self.end(&DEADLINE_EXCEEDED, begun, answer);
        Poll::Ready(())
    }
}

impl Exchange {
    /// Hands the message to the handler of a unary call, which begins with its first poll.
    fn start(&mut self, message: Message<'_>) {
        let Target::Handler {
            handler: Handler::Unary(handler),
            ..
        } = &self.known.target
        else {
            return;
        };
        let late = self.deadline.is_some_and(|d| d <= Instant::now());
        let started = match late {
            true => Err(DEADLINE_EXCEEDED),
            false => handler.call(self.known.call(self.deadline), message),
        };
        self.state = match started {
            Ok(answering) => State::Answering {
                answering,
                begun: false,
            },
            Err(status) => State::Refused(200, status),
        };
    }

    fn poll_state(&mut self, cx: &mut Context<'_>, answer: &mut Answer<'_>) -> Poll<()> {
        if matches!(self.state, State::Gathering { .. }) {
            ready!(self.poll_message(answer));
        }
        match &mut self.state {
            State::Answering { answering, begun } => {
                if !*begun && !answer.may_begin() {
                    return Poll::Pending;
                }
                *begun = true;
                match ready!(answering.as_mut().poll(cx)) {
                    Ok(framed) => self.whole(framed, answer),
                    Err(status) => self.end(&status, false, answer),
                }
                Poll::Ready(())
            }
            State::Streaming(stream) => {
                let status = ready!(stream.poll(cx, &self.known.headers, answer));
                let begun = stream.begun;
                self.end(&status, begun, answer);
                Poll::Ready(())
            }
            State::Refused(200, status) => {
                let status = status.clone();
                self.end(&status, false, answer);
                Poll::Ready(())
            }
            State::Refused(http, status) => {
                let mut block = headers(*http, &self.known.content_type);
                write_grpc_status(&mut block, status);
                answer.headers(&block, true);
                Poll::Ready(())
            }
            State::Gathering { .. } => Poll::Pending,
            State::Over => Poll::Ready(()),
        }
    }

    /// Ready when the message is there and was handed on, or was refused.
    fn poll_message(&mut self, answer: &mut Answer<'_>) -> Poll<()> {
        let State::Gathering { decoder, ended } = &mut self.state else {
            return Poll::Ready(());
        };
        answer.release(std::mem::take(&mut self.received));
        let Some(decoder) = decoder else {
            if *ended {
                self.state = State::Refused(200, EOF);
                return Poll::Ready(());
            }
            return Poll::Pending;
        };
        let refusal = match decoder.next() {
            Ok(Some(message)) => {
                match message.len() < OWNED_BYTES_MIN {
                    true => self.start(Message::Lent(&message)),
                    false => self.start(Message::Owned(message)),
                }
                return Poll::Ready(());
            }
            Ok(None) if !*ended => return Poll::Pending,
            Ok(None) if decoder.is_mid_message() => TRUNCATED,
            Ok(None) => EOF,
            Err(status) => status,
        };
        self.state = State::Refused(200, refusal);
        Poll::Ready(())
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        timer.as_mut().poll(cx)
    }

    /// A unary answer.
    fn whole(&mut self, framed: Framed, answer: &mut Answer<'_>) {
        if framed.tail.is_empty() && answer.whole(&self.known.headers, &[&framed.head], OK_TRAILERS)
        {
            return;
        }
        answer.headers(&self.known.headers, false);
        answer.data(framed.head);
        framed.tail.into_iter().for_each(|piece| answer.data(piece));
        answer.trailers(OK_TRAILERS);
    }

    /// Ends with a status, behind messages or without any.
    fn end(&self, status: &Status, begun: bool, answer: &mut Answer<'_>) {
        if begun {
            if status.code == Code::Ok && status.message.is_empty() {
                return answer.trailers(OK_TRAILERS);
            }
            let mut block = Vec::with_capacity(32 + status.message.len());
            write_grpc_status(&mut block, status);
            return answer.trailers(&block);
        }
        let mut block = headers(200, &self.known.content_type);
        write_grpc_status(&mut block, status);
        answer.headers(&block, true);
    }
}

/// A streaming call under way.
struct Stream {
    /// Gone once it has ended.
    handling: Option<Boxed<Result<(), Status>>>,
    finisher: Sender,
    receiver: Receiver,
    inbox: Inbox,
    /// The headers were sent.
    begun: bool,
}

impl Stream {
    fn start(
        handler: &dyn Streaming,
        endless: bool,
        call: Call,
        decoder: Decoder,
        connection: &Connection,
    ) -> Stream {
        let (sender, receiver) = channel();
        let finisher = sender.finisher();
        let inbox = Inbox::new(decoder);
        let late = call.ctx.deadline.is_some_and(|d| d <= Instant::now());
        let mut handling = match late {
            false => handler.call(call, inbox.messages(), sender),
            true => Box::pin(std::future::ready(Err(DEADLINE_EXCEEDED))),
        };
        if endless {
            let mut draining = connection.draining.clone();
            let handled = handling;
            handling = Box::pin(async move {
                tokio::select! {
                    biased;
                    result = handled => result,
                    _ = draining.wait_for(|d| *d) => Err(errors::STOPPED),
                }
            });
        }
        Stream {
            handling: Some(handling),
            finisher,
            receiver,
            inbox,
            begun: false,
        }
    }

    /// Lets the handler go on and sends what it has made, as far as the client takes it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        headers: &[u8],
        answer: &mut Answer<'_>,
    ) -> Poll<Status> {
        if let Some(handling) = &mut self.handling
            && let Poll::Ready(result) = handling.as_mut().poll(cx)
        {
            self.handling = None;
            self.finisher.finish(match result {
                Ok(()) => Status::fixed(Code::Ok, ""),
                Err(status) => status,
            });
        }
        answer.release(self.inbox.take_released());
        while !answer.is_behind() {
            match ready!(self.receiver.poll_next(cx)) {
                Out::Message(framed) => {
                    if !std::mem::replace(&mut self.begun, true) {
                        answer.headers(headers, false);
                    }
                    let framed = self.receiver.gather(framed);
                    answer.data(framed.head);
                    framed.tail.into_iter().for_each(|piece| answer.data(piece));
                }
                Out::End(status) => return Poll::Ready(status),
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_made_beforehand_say_what_they_should() {
        assert_eq!(headers(200, &GRPC), OK_HEADERS);
        let mut trailers = Vec::new();
        write_grpc_status(&mut trailers, &Status::fixed(Code::Ok, ""));
        assert_eq!(trailers, OK_TRAILERS);
    }
}
