//! The Lease service. Grant and Revoke go through the log; the time a lease has left is the leader's
//! and never logged.

use super::stream::{Requests, Responses};
use super::{Api, Learner, RequestCtx, engine_status, mismatched};
use crate::apply::{Reply, cost};
use crate::lease::{Renewal, ttl_min_s};
use crate::node::Node;
use crate::status::{Status, errors};
use quorate_proto::etcdserverpb as pb;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep, timeout_at};

/// How often a call that needs the leader looks for it.
const LEADER_POLL: Duration = Duration::from_millis(20);

/// Makes ids for leases whose client leaves the choice to us: the low 16 bits of the member's id, then
/// 48 bits that start at the time of day in milliseconds times 256 and count up. Ids of two runs of a
/// member differ unless it granted more than 256 leases per millisecond.
#[derive(Debug)]
pub struct LeaseIds {
    member: u64,
    counter: AtomicU64,
}

impl LeaseIds {
    /// For a member, starting at the time of day.
    pub fn new(member_id: u64) -> LeaseIds {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.unwrap_or_default().as_millis() as u64;
        LeaseIds::starting_at(member_id, now_ms)
    }

    fn starting_at(member_id: u64, now_ms: u64) -> LeaseIds {
        LeaseIds {
            member: member_id << 48,
            counter: AtomicU64::new(now_ms << 8),
        }
    }

    /// The next id: positive, never zero.
    fn next(&self) -> i64 {
        loop {
            let count = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
            let id = (self.member | (count & ((1 << 48) - 1))) & (u64::MAX >> 1);
            if id != 0 {
                return id as i64;
            }
        }
    }
}

impl<N: Node> Api<N> {
    /// LeaseGrant. The TTL is raised to the shortest one here, by the proposer, so that all members log
    /// and apply the same.
    pub async fn lease_grant(
        &self,
        ctx: &RequestCtx,
        r: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.check_quota(cost::LEASE_GRANT).await?;
        let id = match r.id {
            0 => self.lease_ids.next(),
            id => id,
        };
        let ttl = r.ttl.max(ttl_min_s(self.limits.election_timeout));
        let request = pb::InternalRaftRequest {
            lease_grant: Some(pb::LeaseGrantRequest { id, ttl }),
            ..Default::default()
        };
        match self.propose(request).await? {
            Reply::LeaseGrant(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }

    /// LeaseRevoke.
    pub async fn lease_revoke(
        &self,
        ctx: &RequestCtx,
        r: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let request = pb::InternalRaftRequest {
            lease_revoke: Some(r),
            ..Default::default()
        };
        match self.propose(request).await? {
            Reply::LeaseRevoke(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }

    /// LeaseKeepAlive: one response per request, in order. An unknown lease is answered with TTL 0; any
    /// other failure ends the call.
    pub async fn lease_keep_alive(
        &self,
        ctx: &RequestCtx,
        mut requests: impl Requests<pb::LeaseKeepAliveRequest>,
        mut responses: impl Responses<pb::LeaseKeepAliveResponse>,
    ) -> Result<(), Status> {
        self.admit(ctx, Learner::Refuses)?;
        while let Some(request) = requests.next().await {
            let request = request.inspect_err(|e| self.count_failure("lease-keepalive", e));
            let id = request?.id;
            // Taken before the renewal: a response never claims a state it may not have seen.
            let revision = self.node.engine().view().revision();
            let response = pb::LeaseKeepAliveResponse {
                header: Some(self.node.header(revision)),
                id,
                ttl: self.lease_renew(id).await?,
            };
            if responses.send(response).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The TTL a lease has again, or 0 when there is no such lease.
    async fn lease_renew(&self, id: i64) -> Result<i64, Status> {
        let deadline = Instant::now() + self.limits.request_timeout;
        loop {
            self.lead_until(deadline).await?;
            let revocation = self.lessor.revocation();
            match self.lessor.renew(id) {
                Renewal::Renewed(ttl) => return Ok(ttl),
                Renewal::NotFound => return Ok(0),
                // Leadership moved after we looked.
                Renewal::NotPrimary => sleep(LEADER_POLL).await,
                // Its keys go with the revocation; only then may the client hear that it is gone.
                Renewal::Expired => {
                    let gone = timeout_at(deadline, revocation).await;
                    gone.map_err(|_| errors::TIMEOUT)?;
                }
            }
        }
    }

    /// Returns once this member has proved that it leads and has applied everything acknowledged before
    /// the call.
    async fn lead_until(&self, deadline: Instant) -> Result<(), Status> {
        loop {
            let status = self.node.status();
            if status.is_leader {
                self.node.linearizable().await?;
                let status = self.node.status();
                if status.is_leader {
                    self.lessor.observe(status);
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(match status.leader {
                    0 => errors::NO_LEADER,
                    _ => errors::TIMEOUT,
                });
            }
            sleep(LEADER_POLL).await;
        }
    }

    /// LeaseTimeToLive. An unknown lease is an answer, not an error.
    pub async fn lease_time_to_live(
        &self,
        ctx: &RequestCtx,
        r: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.lead_until(Instant::now() + self.limits.request_timeout)
            .await?;
        let view = self.node.engine().view();
        let header = Some(self.node.header(view.revision()));
        let Some((granted_ttl, remaining)) = self.lessor.times(r.id) else {
            return Ok(pb::LeaseTimeToLiveResponse {
                header,
                id: r.id,
                ttl: -1,
                ..Default::default()
            });
        };
        let keys = match r.keys {
            true => view.lease_keys(r.id).map_err(engine_status)?,
            false => Vec::new(),
        };
        Ok(pb::LeaseTimeToLiveResponse {
            header,
            id: r.id,
            ttl: remaining.as_secs() as i64,
            granted_ttl,
            keys,
        })
    }

    /// LeaseLeases: what this member knows, without asking anyone.
    pub async fn lease_leases(
        &self,
        ctx: &RequestCtx,
        _: pb::LeaseLeasesRequest,
    ) -> Result<pb::LeaseLeasesResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let leases = self.lessor.ids().into_iter();
        Ok(pb::LeaseLeasesResponse {
            header: Some(self.node.header(self.node.engine().view().revision())),
            leases: leases.map(|id| pb::LeaseStatus { id }).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
