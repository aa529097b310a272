//! Proposes the revocation of leases that have ended.

use super::lessor::{Lessor, Primary, REVOKES_PER_SCAN_MAX};
use crate::node::Node;
use quorate_proto::etcdserverpb as pb;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Time between scans.
const SCAN_INTERVAL: Duration = Duration::from_millis(500);
/// Revocations that wait for consensus at a time.
const IN_FLIGHT_MAX: usize = 16;

/// Scans for leases that have ended and revokes them while this member leads. Runs until dropped;
/// spawn it once per member.
pub async fn expire<N: Node>(node: Arc<N>, lessor: Arc<Lessor>) {
    let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut ticks = tokio::time::interval(SCAN_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let primary = Primary::from(node.status());
        lessor.observe(primary);
        for id in lessor.expired(REVOKES_PER_SCAN_MAX) {
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            if Primary::from(node.status()) != primary {
                // Another leader counts now, and may have renewed it.
                break;
            }
            let (node, lessor) = (node.clone(), lessor.clone());
            tokio::spawn(async move {
                let request = pb::InternalRaftRequest {
                    lease_revoke: Some(pb::LeaseRevokeRequest { id }),
                    ..Default::default()
                };
                // A client may have been faster; anything else is tried again by a later scan.
                match node.propose(request).await {
                    Ok(_) => lessor.count_expiration(),
                    Err(status) => tracing::debug!(lease = id, %status, "lease not revoked yet"),
                }
                drop(permit);
            });
        }
    }
}
