//! The network: listeners, the threads that serve connections, and the life of a connection.
//!
//! There are N network threads, each a single-threaded runtime. A listener accepts on the first of
//! them and hands the connection to the thread with the fewest; there it stays, with all its calls.
//! The first bytes of a connection decide whether it speaks HTTP/2, which is ours ([`h2`]), or HTTP/1.1,
//! which is hyper's. What is served on it is an [`App`]; this module knows neither gRPC nor the API.
//!
//! Invariants:
//! 1. A listener is bound before the member starts; it accepts only once the server serves. Until
//!    then clients wait in the kernel's queue, as with etcd.
//! 2. At most [`Settings::connections_max`] connections are served; each listener holds back the next one
//!    and leaves the others in the kernel's queue.
//! 3. A connection costs others nothing: what it may hold (header bytes, streams, unread data) is
//!    bounded by the settings, and silence before the first request ends after a while.
//! 4. After [`Server::shutdown`] begins, no connection is accepted; the open ones are told to go
//!    (GOAWAY, `Connection: close`), may finish what they began until the deadline, and are then cut.

mod body;
mod connection;
pub mod h2;
mod http2;
mod listen;
mod server;
mod stream;
mod threads;

pub use body::Body;
pub use http2::{Answer, Exchange};
pub use listen::{BindError, Bound, bind};
pub use server::{Server, Settings, Stats, fd_limit, raise_fd_limit};
pub use threads::{Threads, current_thread_index};

use std::sync::Arc;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// gRPC and HTTP on one port.
    All,
    /// gRPC only: everything is taken for HTTP/2.
    Grpc,
    /// HTTP/1.1 only.
    Http,
    /// The metrics listener: HTTP/1.1 with a few paths.
    Metrics,
}

/// The connection a request came on.
pub struct Connection {
    /// What its listener serves.
    pub role: Role,
    /// Turns true when the server begins to shut down.
    pub draining: tokio::sync::watch::Receiver<bool>,
}

/// What is served on connections.
pub trait App: Send + Sync + 'static {
    /// What the head of a request over HTTP/2 means. Depends on the head alone, so it serves for all
    /// requests with the same head.
    type Route: Send + 'static;
    /// A request over HTTP/2.
    type Exchange: Exchange;

    /// Answers a request over HTTP/1.1; its body is not looked at. The future runs on the connection's
    /// thread and is dropped when the connection ends.
    fn http(
        self: Arc<Self>,
        head: ::http::request::Parts,
        role: Role,
    ) -> impl Future<Output = ::http::Response<Body>> + Send + 'static;

    /// What a head means.
    fn route(&self, head: &h2::Head<'_>, role: Role) -> Self::Route;

    /// Begins a request over HTTP/2. What it returns lives on the connection's thread and is dropped when
    /// it has answered, when the client cancels the request or when the connection ends.
    fn begin(self: &Arc<Self>, route: &Self::Route, connection: &Arc<Connection>)
    -> Self::Exchange;
}
