//! Quorate: a drop-in replacement for etcd.
//!
//! This crate is the server: it takes requests from the network, orders them through consensus,
//! applies them to the engine and answers. The binary in `main.rs` only starts it.

pub mod api;
pub mod apply;
pub mod bootstrap;
pub mod clock;
pub mod compactor;
pub mod config;
pub mod front;
pub mod grpc;
pub mod http;
pub mod lease;
pub mod limits;
pub mod logging;
pub mod member;
pub mod membership;
pub mod metrics;
pub mod net;
pub mod node;
pub mod standing;
pub mod status;
#[cfg(test)]
pub mod testing;
pub mod utl;
pub mod version;
pub mod watch;
