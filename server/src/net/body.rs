//! Bodies of responses.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body that is produced while it is sent.
pub trait Frames: Send {
    /// The next frame; trailers, if any, are the last one.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>>;
}

/// The body of a response.
pub enum Body {
    /// Nothing.
    Empty,
    /// One piece of known length.
    Full(Bytes),
    /// Pieces that are all there, then trailers; no length is announced.
    Trailed {
        /// The first piece.
        head: Option<Bytes>,
        /// Further pieces.
        tail: VecDeque<Bytes>,
        /// Sent last.
        trailers: Option<Box<HeaderMap>>,
    },
    /// Made while it is sent.
    Streaming(Box<dyn Frames>),
}

impl Body {
    /// A body of these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        match bytes.is_empty() {
            true => Body::Empty,
            false => Body::Full(bytes),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Body::Empty => None,
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Body::Empty;
                Some(Frame::data(bytes))
            }
            Body::Trailed {
                head,
                tail,
                trailers,
            } => match head.take().or_else(|| tail.pop_front()) {
                Some(piece) => Some(Frame::data(piece)),
                None => trailers.take().map(|t| Frame::trailers(*t)),
            },
            Body::Streaming(frames) => match frames.poll_frame(cx) {
                Poll::Ready(next) => next,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(next.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}
