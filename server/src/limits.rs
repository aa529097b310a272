//! The limits a member was started with, as the request path needs them.
//!
//! Limits decide whether a request is admitted; they never change what an admitted entry does, or
//! members with different flags would diverge.

use std::time::Duration;

/// Admission limits. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest encoded log entry (`--max-request-bytes`).
    pub request_bytes_max: usize,
    /// Operations per level of a transaction (`--max-txn-ops`).
    pub txn_ops_max: usize,
    /// Storage quota in bytes (`--quota-backend-bytes`); `None` = no quota.
    pub quota_bytes: Option<i64>,
    /// Entries that may be committed and not yet applied before proposals are refused.
    pub unapplied_entries_max: u64,
    /// Time a proposal or a linearizable read may take: 5 s + 2 × election timeout.
    pub request_timeout: Duration,
    /// Election timeout; leases never live shorter than 1.5 times this.
    pub election_timeout: Duration,
    /// Interval of watch progress notifications (`--watch-progress-notify-interval`).
    pub watch_progress_interval: Duration,
}

impl Limits {
    /// What gRPC may receive in one message.
    pub fn receive_bytes_max(&self) -> usize {
        self.request_bytes_max + 512 * 1024
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_bytes_max: 1_572_864,
            txn_ops_max: 128,
            quota_bytes: Some(2 << 30),
            unapplied_entries_max: 5000,
            request_timeout: Duration::from_secs(7),
            election_timeout: Duration::from_secs(1),
            watch_progress_interval: Duration::from_secs(600),
        }
    }
}
