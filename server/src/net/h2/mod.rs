//! HTTP/2 for a server, without I/O: bytes in, events out; answers in, bytes out (RFC 9113, RFC 7541).
//!
//! Written here because a call of etcd's API is small: with a general library most of its cost is the
//! library's (a header map, a lock, a task and a boxed body per call). This one keeps no heap per call
//! beyond a slot, takes the header block that a client repeats byte for byte as it was understood
//! before, and writes small answers straight into the buffer that goes to the socket. It knows neither
//! sockets, clocks, threads nor gRPC, so every rule is tested with bytes alone.
//!
//! - [`frame`] heads, kinds, flags, error codes
//! - [`huffman`], [`hpack`] header compression
//! - [`request`] what a request's header list must be
//! - [`streams`] the open streams and what they have yet to send
//! - [`output`] bytes on their way to the socket
//! - [`connection`] the state machine
//! - [`conduct`] what a client may do how often; the only part that is told the time
//!
//! Not there: server push, priorities (ignored, as the RFC allows), the upgrade from HTTP/1.1.

mod conduct;
mod connection;
mod frame;
mod hpack;
mod huffman;
mod output;
mod request;
mod streams;

pub use conduct::{Pings, Resets};
pub use connection::{Connection, Event, Failed, Limits};
pub use frame::{PREFACE, Reason};
pub use hpack::{write_field, write_status};
pub use output::Output;
pub use request::Head;
