//! The buckets of the engine's system tree and the keys in them.
//!
//! One number per kind of replicated record that is not a user's key. Numbers are part of the file
//! format: never reuse one.

/// Leases: 8-byte big-endian id → `leasepb.Lease`.
pub const LEASE: u8 = 1;
/// Alarms: encoded `AlarmMember` → nothing.
pub const ALARM: u8 = 2;
/// Members: lower-case hex id → member JSON.
pub const MEMBERS: u8 = 3;
/// Ids of removed members: lower-case hex id → nothing.
pub const MEMBERS_REMOVED: u8 = 4;
/// Facts about the cluster, see [`CLUSTER_VERSION`].
pub const CLUSTER: u8 = 5;

/// In [`CLUSTER`]: the cluster version as text, `3.6.0`.
pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// The key of a lease record.
pub fn lease_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

/// The key of a member record.
pub fn member_key(id: u64) -> String {
    format!("{id:x}")
}
