//! Granting and revoking leases: the replicated part. Time is the lessor's.

use super::{Applier, Failure, buckets, txn};
use crate::status::errors;
use engine::KeyRange;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::leasepb;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Longest TTL a lease may ask for, in seconds.
pub const TTL_MAX_S: i64 = 9_000_000_000;

/// Ids of the leases that exist. Only ever asked about one id, never walked.
#[derive(Clone, Debug, Default)]
pub struct LeaseSet(HashSet<i64>);

impl LeaseSet {
    pub(super) fn load(view: &engine::View) -> engine::Result<LeaseSet> {
        let (mut set, mut broken) = (HashSet::new(), false);
        view.sys_scan(
            buckets::LEASE,
            &mut |key, _| match <[u8; 8]>::try_from(key) {
                Ok(id) => {
                    set.insert(i64::from_be_bytes(id));
                    ControlFlow::Continue(())
                }
                Err(_) => {
                    broken = true;
                    ControlFlow::Break(())
                }
            },
        )?;
        if broken {
            return Err(engine::Error::Corrupt(
                "a lease record has a key that is not 8 bytes long".into(),
            ));
        }
        Ok(LeaseSet(set))
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: i64) -> bool {
        self.0.contains(&id)
    }
}

impl Applier {
    /// The proposer has raised the TTL to the minimum its election timeout asks for; the record takes
    /// what the entry says, so it is the same everywhere. (An imported entry may still carry less than
    /// a second.)
    pub(super) fn lease_grant(
        &mut self,
        r: &pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Failure> {
        if r.id == 0 {
            return Err(errors::LEASE_NOT_FOUND.into());
        }
        if r.ttl > TTL_MAX_S {
            return Err(errors::LEASE_TTL_TOO_LARGE.into());
        }
        if self.leases.contains(r.id) {
            return Err(errors::LEASE_EXIST.into());
        }
        let ttl = r.ttl.max(1);
        let record = leasepb::Lease {
            id: r.id,
            ttl,
            remaining_ttl: 0,
        };
        self.writer.sys_put(
            buckets::LEASE,
            &buckets::lease_key(r.id),
            &record.encode_to_vec(),
        )?;
        self.leases.0.insert(r.id);
        self.lease_hook.granted(r.id, ttl);
        Ok(pb::LeaseGrantResponse {
            header: Some(txn::header(self.writer.revision())),
            id: r.id,
            ttl,
            error: String::new(),
        })
    }

    /// Deletes the attached keys in key order, all in one revision, and forgets the lease.
    pub(super) fn lease_revoke(
        &mut self,
        r: &pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Failure> {
        if !self.leases.contains(r.id) {
            return Err(errors::LEASE_NOT_FOUND.into());
        }
        let keys = self.writer.lease_keys(r.id)?;
        let mut state = self.writer.txn();
        for key in keys {
            state.delete_range(&KeyRange::One(key), false)?;
        }
        state.finish();
        self.writer
            .sys_delete(buckets::LEASE, &buckets::lease_key(r.id))?;
        self.leases.0.remove(&r.id);
        self.lease_hook.revoked(r.id);
        Ok(pb::LeaseRevokeResponse {
            header: Some(txn::header(self.writer.revision())),
        })
    }
}
