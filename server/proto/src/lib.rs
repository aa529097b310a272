//! The messages of etcd's client API, raft log, files and peer wire.
//!
//! Generated at build time from the `.proto` files beside this crate; the field numbers are etcd's,
//! the files are ours. `bytes` fields are [`bytes::Bytes`]: decoding from a `Bytes` shares the
//! buffer instead of copying.
//!
//! Generated types stop at the edges of the server: the API handlers, the encoding of log entries,
//! and the files and streams that are defined as protobuf. With the feature `client` the crate also
//! holds tonic clients, for tests and load drivers.

#![allow(clippy::all, missing_docs)]

/// Includes one generated package.
macro_rules! tonic_include {
    ($package:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
    };
}
/// `etcdserverpb`: the client API and the payload of raft log entries.
pub mod etcdserverpb {
    tonic_include!("etcdserverpb");
}
/// `mvccpb`: key-value pairs and events.
pub mod mvccpb {
    tonic_include!("mvccpb");
}
/// `authpb`: users, roles, permissions.
pub mod authpb {
    tonic_include!("authpb");
}
/// `membershippb`: membership requests in the raft log.
pub mod membershippb {
    tonic_include!("membershippb");
}
/// `leasepb`: stored leases and lease messages between members.
pub mod leasepb {
    tonic_include!("leasepb");
}
/// `raftpb`: raft messages, entries, hard state.
pub mod raftpb {
    tonic_include!("raftpb");
}
/// `walpb`: records of an etcd WAL.
pub mod walpb {
    tonic_include!("walpb");
}
/// `snappb`: the envelope of an etcd snapshot file.
pub mod snappb {
    tonic_include!("snappb");
}
/// `v3lockpb`: the lock service.
pub mod v3lockpb {
    tonic_include!("v3lockpb");
}
/// `v3electionpb`: the election service.
pub mod v3electionpb {
    tonic_include!("v3electionpb");
}
/// `grpc.health.v1`: the health service.
pub mod health {
    tonic_include!("grpc.health.v1");
}
