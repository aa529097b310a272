//! Leases: who lives how long.
//!
//! The set of leases and their granted TTLs is replicated state: apply writes it to the engine's
//! system tree. The time a lease has left is not replicated; it is kept by the [`Lessor`] of every
//! member and counts only on the leader, which proposes the revocation of what has expired. Nothing
//! here decides what an entry does, so clocks may differ between members.

mod expire;
mod lessor;

pub use expire::expire;
pub use lessor::{Lessor, Primary, Renewal, ttl_min_s};

/// What apply tells the lessor. Called on the apply thread, in log order, after the change is part of
/// the engine's working state; must not block.
pub trait LeaseHook: Send + Sync + 'static {
    /// A lease was granted with this effective TTL in seconds.
    fn granted(&self, id: i64, ttl: i64);
    /// A lease was revoked (by a client or because it expired).
    fn revoked(&self, id: i64);
}

/// Leases go unnoticed: for replays and tests of apply alone.
impl LeaseHook for () {
    fn granted(&self, _id: i64, _ttl: i64) {}
    fn revoked(&self, _id: i64) {}
}
