//! gRPC on top of HTTP/2: paths to handlers, framing, metadata, deadlines, statuses.
//!
//! Handlers are plain async functions (`crate::api`); this layer knows no semantics of them. It is made
//! by hand because every text and code of a refusal is grpc-go's, which clients of etcd have learned to
//! expect, and because a call may cost no more than it must.
//!
//! Invariants:
//! 1. A call is answered with exactly one status, after everything its handler sent.
//! 2. When the client cancels, its deadline passes or the connection ends, the handler's future is
//!    dropped.
//! 3. What a call may hold is bounded: one message of a unary request, a window of a streamed one,
//!    [`channel::BYTES_MAX`] of a streamed response; a connection that does not read what it asked for
//!    begins no further call.
//!
//! Absent: compression (refused as grpc-go refuses an encoding it does not have), reflection.

mod channel;
mod exchange;
mod frame;
mod inbound;
mod metadata;
mod router;
pub mod routes;

pub use channel::Responder;
pub use exchange::{Exchange, Route};
pub use inbound::Inbound;
pub use metadata::is_grpc;
pub use router::{Gate, Learner, Router};
