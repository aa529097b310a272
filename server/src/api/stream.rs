//! The two ends of a streaming call, as handlers see them.
//!
//! Invariants the driver of a handler owes:
//! 1. The future of `next` may be dropped before it is ready without losing a request.
//! 2. When the peer cancels the call or the connection ends, the driver drops the handler's future;
//!    `send` returning [`Closed`] means the same and the handler returns.
//! 3. `send` waits while the stream may not send more (flow control, the cap on unsent bytes): an item
//!    is buffered at most once, in the driver's own bounded buffer.

use crate::status::Status;

/// The peer is gone; nothing can be sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// The requests of a call.
pub trait Requests<T>: Send {
    /// The next request, in arrival order. `None` once the client has half-closed; an error when what
    /// arrived could not be decoded or the call failed.
    fn next(&mut self) -> impl Future<Output = Option<Result<T, Status>>> + Send;
}

/// The responses of a call.
pub trait Responses<T>: Send {
    /// Hands one response over, waiting for room.
    fn send(&mut self, item: T) -> impl Future<Output = Result<(), Closed>> + Send;
}
