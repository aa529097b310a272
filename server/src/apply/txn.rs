//! Transactions: which path runs, whether it may run, and running it.
//!
//! Invariants:
//! 1. The branches of all nested transactions are chosen from the state before the transaction, before
//!    anything executes.
//! 2. Everything that can make an operation fail is found before the first change, so a transaction
//!    has all of its effects or none.
//! 3. Operations run in order and see the effects of earlier ones.

use super::intervals::{End, Intervals};
use super::range::{Reads, key_range, range, to_proto};
use super::{Failure, LeaseSet};
use crate::status::errors;
use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

/// The outcome of each compare list of the taken path, in the order the path meets them.
pub struct Path(Vec<bool>);

/// Decides the path of a transaction from the state it would run on.
pub fn decide<R: Reads>(reads: &R, txn: &pb::TxnRequest) -> engine::Result<Path> {
    let mut path = Vec::new();
    decide_into(reads, txn, &mut path)?;
    Ok(Path(path))
}

fn decide_into<R: Reads>(
    reads: &R,
    txn: &pb::TxnRequest,
    path: &mut Vec<bool>,
) -> engine::Result<()> {
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(reads, compare)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    for op in branch(txn, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            decide_into(reads, nested, path)?;
        }
    }
    Ok(())
}

fn branch(txn: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// Whether every key in the compare's range satisfies it. No key at all compares as zeros, except
/// that a value compare is false.
fn holds<R: Reads>(reads: &R, compare: &pb::Compare) -> engine::Result<bool> {
    let keys = key_range(&compare.key, &compare.range_end);
    let of_value = compare.target == CompareTarget::Value as i32;
    let (mut found, mut all) = (false, true);
    let mut each = |kv: engine::KvRef<'_>| {
        found = true;
        all = holds_for(compare, &kv);
        if all {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    if of_value {
        reads.visit(&keys, 0, &mut each)?;
    } else {
        reads.visit_keys(&keys, 0, &mut each)?;
    }
    if found {
        return Ok(all);
    }
    if of_value {
        return Ok(false);
    }
    let absent = engine::KvRef {
        key: &[],
        value: &[],
        create_revision: 0,
        mod_revision: 0,
        version: 0,
        lease: 0,
    };
    Ok(holds_for(compare, &absent))
}

/// A constant that is missing, or set for another target than the one named, counts as zero.
fn holds_for(compare: &pb::Compare, kv: &engine::KvRef<'_>) -> bool {
    let given = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&match given {
            Some(TargetUnion::Version(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&match given {
            Some(TargetUnion::CreateRevision(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&match given {
            Some(TargetUnion::ModRevision(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match given {
            Some(TargetUnion::Lease(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => kv.value.cmp(match given {
            Some(TargetUnion::Value(v)) => &v[..],
            _ => &[],
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(CompareResult::Less) => ordering == Ordering::Less,
        Err(_) => true,
    }
}

/// Checks the taken path against the state before the transaction: leases exist, keys whose value or
/// lease is to be kept exist, revisions are readable.
pub fn check<R: Reads>(
    reads: &R,
    txn: &pb::TxnRequest,
    path: &Path,
    compact_revision: i64,
    leases: &LeaseSet,
) -> Result<(), Failure> {
    let mut steps = path.0.iter().copied();
    let mut check = Check {
        reads,
        compact_revision,
        leases,
        deleted: Intervals::default(),
        rewritten: BTreeSet::new(),
        track: has_keeping_put(txn),
    };
    check.ops(txn, &mut steps)
}

/// Whether a put anywhere in the transaction keeps the old value or lease.
fn has_keeping_put(txn: &pb::TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .any(|op| match &op.request {
            Some(Request::RequestPut(r)) => r.ignore_value || r.ignore_lease,
            Some(Request::RequestTxn(r)) => has_keeping_put(r),
            _ => false,
        })
}

struct Check<'a, R> {
    reads: &'a R,
    compact_revision: i64,
    leases: &'a LeaseSet,
    /// Keys that operations before the one at hand delete …
    deleted: Intervals,
    /// … and keys they wrote afterwards.
    rewritten: BTreeSet<Bytes>,
    /// Whether anyone will ask about the two above.
    track: bool,
}

impl<R: Reads> Check<'_, R> {
    fn ops(
        &mut self,
        txn: &pb::TxnRequest,
        steps: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Failure> {
        let succeeded = steps.next().unwrap_or(false);
        for op in branch(txn, succeeded) {
            match &op.request {
                Some(Request::RequestRange(r)) => self.range(r)?,
                Some(Request::RequestPut(r)) => self.put(r)?,
                Some(Request::RequestDeleteRange(r)) => self.delete_range(r),
                Some(Request::RequestTxn(r)) => self.ops(r, steps)?,
                None => return Err(errors::KEY_NOT_FOUND.into()),
            }
        }
        Ok(())
    }

    /// Unlike a range of its own, one inside a transaction does not take every negative revision for
    /// "newest": it must lie at or above the compact revision, which starts at -1.
    fn range(&self, r: &pb::RangeRequest) -> Result<(), Failure> {
        if r.revision == 0 {
            Ok(())
        } else if r.revision > self.reads.revision() {
            Err(errors::FUTURE_REV.into())
        } else if r.revision < self.compact_revision {
            Err(errors::COMPACTED.into())
        } else {
            Ok(())
        }
    }

    fn put(&mut self, r: &pb::PutRequest) -> Result<(), Failure> {
        if (r.ignore_value || r.ignore_lease) && !self.key_will_exist(&r.key)? {
            return Err(errors::KEY_NOT_FOUND.into());
        }
        if r.lease != 0 && !self.leases.contains(r.lease) {
            return Err(errors::LEASE_NOT_FOUND.into());
        }
        if self.track {
            self.rewritten.insert(r.key.clone());
        }
        Ok(())
    }

    /// The key must exist before the transaction, and still when its put runs. etcd checks the former
    /// only and crashes on the latter: a delete with the open end `\0` may precede the put.
    fn key_will_exist(&self, key: &Bytes) -> Result<bool, Failure> {
        if self.deleted.contains(key) && !self.rewritten.contains(key) {
            return Ok(false);
        }
        Ok(self.reads.get(key, 0)?.is_some())
    }

    fn delete_range(&mut self, r: &pb::DeleteRangeRequest) {
        if !self.track {
            return;
        }
        let end = match &r.range_end[..] {
            [] => End::after(&r.key),
            [0] => End::Open,
            _ => End::Before(r.range_end.clone()),
        };
        let upper = match &end {
            End::Before(key) if *key <= r.key => return,
            End::Before(key) => Bound::Excluded(key.clone()),
            End::Open => Bound::Unbounded,
        };
        let gone: Vec<Bytes> = self
            .rewritten
            .range((Bound::Included(r.key.clone()), upper))
            .cloned()
            .collect();
        for key in &gone {
            self.rewritten.remove(key);
        }
        self.deleted.insert(r.key.clone(), end);
    }
}

/// What operations did, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ops {
    /// Puts executed.
    pub puts: u64,
    /// Bytes of their keys and values.
    pub put_bytes: u64,
    /// Delete requests executed, whether or not a key was there.
    pub deletes: u64,
    /// Ranges executed.
    pub ranges: u64,
}

/// Runs the taken path of a read-only transaction on a view. The path was checked.
pub fn read<R: Reads>(
    reads: &R,
    txn: &pb::TxnRequest,
    path: &Path,
    ops: &mut Ops,
) -> engine::Result<pb::TxnResponse> {
    let succeeded = path.0.first().copied().unwrap_or(false);
    let mut responses = Vec::new();
    for op in branch(txn, succeeded) {
        // Only ranges: anything else goes through the log.
        if let Some(Request::RequestRange(r)) = &op.request {
            ops.ranges += 1;
            responses.push(respond(Response::ResponseRange(range_response(
                reads,
                r,
                reads.revision(),
            )?)));
        }
    }
    Ok(pb::TxnResponse {
        header: Some(header(reads.revision())),
        succeeded,
        responses,
    })
}

/// Runs the taken path. The path was checked against this very state, so the only failures left are
/// the engine's.
pub fn execute(
    state: &mut engine::Txn<'_>,
    txn: &pb::TxnRequest,
    path: &Path,
    ops: &mut Ops,
) -> engine::Result<pb::TxnResponse> {
    let mut steps = path.0.iter().copied();
    let mut response = execute_branch(state, txn, &mut steps, ops)?;
    response.header = Some(header(revision_now(state)));
    Ok(response)
}

fn execute_branch(
    state: &mut engine::Txn<'_>,
    txn: &pb::TxnRequest,
    steps: &mut impl Iterator<Item = bool>,
    ops: &mut Ops,
) -> engine::Result<pb::TxnResponse> {
    let succeeded = steps.next().unwrap_or(false);
    let taken = branch(txn, succeeded);
    let mut responses = Vec::with_capacity(taken.len());
    for op in taken {
        let response = match &op.request {
            Some(Request::RequestRange(r)) => {
                ops.ranges += 1;
                let revision = revision_now(state);
                Response::ResponseRange(range_response(&*state, r, revision)?)
            }
            Some(Request::RequestPut(r)) => {
                ops.puts += 1;
                ops.put_bytes += (r.key.len() + r.value.len()) as u64;
                Response::ResponsePut(put(state, r)?)
            }
            Some(Request::RequestDeleteRange(r)) => {
                ops.deletes += 1;
                Response::ResponseDeleteRange(delete_range(state, r)?)
            }
            Some(Request::RequestTxn(r)) => {
                let mut nested = execute_branch(state, r, steps, ops)?;
                nested.header = Some(pb::ResponseHeader::default());
                Response::ResponseTxn(nested)
            }
            // Refused by the check.
            None => continue,
        };
        responses.push(respond(response));
    }
    Ok(pb::TxnResponse {
        header: None,
        succeeded,
        responses,
    })
}

fn respond(response: Response) -> pb::ResponseOp {
    pb::ResponseOp {
        response: Some(response),
    }
}

/// A header that names the revision alone.
pub fn header(revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader {
        revision,
        ..Default::default()
    }
}

/// The revision a response made now names: one more once anything has changed.
fn revision_now(state: &engine::Txn<'_>) -> i64 {
    state.begin_revision() + i64::from(state.changed())
}

/// A range as a message.
pub fn range_response<R: Reads>(
    reads: &R,
    r: &pb::RangeRequest,
    revision: i64,
) -> engine::Result<pb::RangeResponse> {
    let mut kvs = Vec::new();
    let summary = range(reads, r, &mut kvs)?;
    Ok(pb::RangeResponse {
        header: Some(header(revision)),
        kvs,
        more: summary.more,
        count: summary.count,
    })
}

/// Writes one key. Lease and existence were checked: a kept value or lease is there.
pub fn put(state: &mut engine::Txn<'_>, r: &pb::PutRequest) -> engine::Result<pb::PutResponse> {
    let (mut value, mut lease) = (r.value.clone(), r.lease);
    if (r.ignore_value || r.ignore_lease)
        && let Some(old) = state.get(&r.key)?
    {
        if r.ignore_value {
            value = old.value;
        }
        if r.ignore_lease {
            lease = old.lease;
        }
    }
    let prev = state.put_with(r.key.clone(), value, lease, r.prev_kv)?;
    Ok(pb::PutResponse {
        header: Some(header(revision_now(state))),
        prev_kv: prev.filter(|_| r.prev_kv).map(to_proto),
    })
}

/// Deletes a range.
pub fn delete_range(
    state: &mut engine::Txn<'_>,
    r: &pb::DeleteRangeRequest,
) -> engine::Result<pb::DeleteRangeResponse> {
    let (deleted, prev_kvs) = state.delete_range(&key_range(&r.key, &r.range_end), r.prev_kv)?;
    Ok(pb::DeleteRangeResponse {
        header: Some(header(revision_now(state))),
        deleted: deleted as i64,
        prev_kvs: prev_kvs.into_iter().map(to_proto).collect(),
    })
}
