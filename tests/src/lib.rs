//! The harness of the end-to-end tests: real server processes and real clients.
//!
//! * [`server`] starts a member as a process of its own, ours or a real etcd, waits until it serves,
//!   kills it, stops it, starts it again on the same files, and keeps its log when a test fails.
//! * [`client`] is one connection with a typed client per service, and short constructors for requests.
//! * [`transcript`] makes what a script of `etcdctl` commands prints comparable.
//! * [`runner`] runs a table of cases against every server there is, one process for many cases.
//!
//! Rules: nothing here sleeps for a fixed time where a condition can be awaited; nothing passes or
//! fails by how long it took, except that nothing may hang ([`PATIENCE`]).

use std::time::Duration;

pub mod client;
pub mod runner;
pub mod server;
pub mod transcript;

/// How long anything awaited may take before the test fails as hung. Generous: a slow machine must not
/// make a test red.
pub const PATIENCE: Duration = Duration::from_secs(30);
