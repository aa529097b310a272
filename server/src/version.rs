//! The versions this server announces.
//!
//! Clients and Kubernetes gate features on etcd's version numbers, so the server names the etcd
//! release whose behaviour it implements. Its own version is the crate's.

/// What `Status.version`, `/version` and `X-Server-Version` say.
pub const SERVER: &str = "3.6.14";
/// The cluster version a fresh cluster settles on.
pub const CLUSTER: &str = "3.6.0";
/// What `Status.storageVersion` says.
pub const STORAGE: &str = "3.6.0";
/// Quorate's own version.
pub const QUORATE: &str = env!("CARGO_PKG_VERSION");
