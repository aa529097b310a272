//! The shape of key-value requests: what is refused before anything is proposed or read.
//!
//! Pure functions of the request; the texts and their order are etcd's. A transaction is checked in
//! both branches, whichever will run.

use crate::apply::intervals::{End, Intervals};
use crate::status::{Status, errors};
use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use std::collections::HashSet;

/// How deep transactions may nest. Each level costs at least one operation of its parent's budget,
/// so the default budget of 128 never gets here; a larger one must not exhaust the stack.
const TXN_DEPTH_MAX: usize = 256;

/// Range: the key and the enums.
pub fn range(r: &pb::RangeRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        return Err(errors::EMPTY_KEY);
    }
    if SortOrder::try_from(r.sort_order).is_err() || SortTarget::try_from(r.sort_target).is_err() {
        return Err(errors::INVALID_SORT_OPTION);
    }
    Ok(())
}

/// Put: the key, then the flags that contradict a given value or lease.
pub fn put(r: &pb::PutRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        return Err(errors::EMPTY_KEY);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(errors::VALUE_PROVIDED);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(errors::LEASE_PROVIDED);
    }
    Ok(())
}

/// DeleteRange: the key.
pub fn delete_range(r: &pb::DeleteRangeRequest) -> Result<(), Status> {
    if r.key.is_empty() {
        return Err(errors::EMPTY_KEY);
    }
    Ok(())
}

/// Txn: size, every operation of both branches, then the overlap rule per branch.
pub fn txn(r: &pb::TxnRequest, ops_max: usize) -> Result<(), Status> {
    txn_ops(r, ops_max, 0)?;
    Writes::of(&r.success)?;
    Writes::of(&r.failure)?;
    Ok(())
}

fn txn_ops(r: &pb::TxnRequest, budget: usize, depth: usize) -> Result<(), Status> {
    let widest = r.compare.len().max(r.success.len()).max(r.failure.len());
    if widest > budget || depth > TXN_DEPTH_MAX {
        return Err(errors::TOO_MANY_OPS);
    }
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(errors::EMPTY_KEY);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(r)?,
            Some(Request::RequestTxn(r)) => txn_ops(r, budget - widest, depth + 1)?,
            None => return Err(errors::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// What one branch may write, for the overlap rule.
///
/// The order in which things are held against each other is etcd's and decides the corner cases: a
/// branch's own deletes come first, then its nested transactions in order (puts against everything
/// gathered so far, their deletes added after), then its own puts.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Intervals,
}

impl Writes {
    fn of(ops: &[pb::RequestOp]) -> Result<Writes, Status> {
        let mut seen = Writes::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(r)) = &op.request {
                insert_literally(&mut seen.deletes, r);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(r)) = &op.request {
                seen.add_nested(Writes::of(&r.success)?, Writes::of(&r.failure)?)?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(r)) = &op.request {
                seen.check_put(&r.key)?;
                seen.puts.insert(r.key.clone());
            }
        }
        Ok(seen)
    }

    /// Only one side of a nested transaction runs, so its sides may share keys; against everything
    /// else both count.
    fn add_nested(&mut self, success: Writes, failure: Writes) -> Result<(), Status> {
        for key in success.puts.union(&failure.puts) {
            self.check_put(key)?;
        }
        self.puts.extend(success.puts);
        self.puts.extend(failure.puts);
        self.deletes.append(success.deletes);
        self.deletes.append(failure.deletes);
        Ok(())
    }

    fn check_put(&self, key: &Bytes) -> Result<(), Status> {
        if self.puts.contains(key) || self.deletes.contains(key) {
            return Err(errors::DUPLICATE_KEY);
        }
        Ok(())
    }
}

/// Adds a delete's target with its range end taken literally, so that the end `\0`, which means "no
/// end" when executed, makes an empty interval here. etcd has this quirk.
fn insert_literally(deletes: &mut Intervals, r: &pb::DeleteRangeRequest) {
    let end = if r.range_end.is_empty() {
        End::after(&r.key)
    } else {
        End::Before(r.range_end.clone())
    };
    deletes.insert(r.key.clone(), end);
}

/// Whether every operation of both branches is a range: such a transaction needs no log entry.
pub fn txn_is_read_only(r: &pb::TxnRequest) -> bool {
    ranges(r).all(|r| r.is_some())
}

/// Whether it may be answered from local state: all its ranges are serializable. True without any.
pub fn txn_is_serializable(r: &pb::TxnRequest) -> bool {
    ranges(r).all(|r| r.is_some_and(|r| r.serializable))
}

/// The operations of both branches; `None` for one that is not a range.
pub fn ranges(r: &pb::TxnRequest) -> impl Iterator<Item = Option<&pb::RangeRequest>> {
    r.success
        .iter()
        .chain(&r.failure)
        .map(|op| match &op.request {
            Some(Request::RequestRange(r)) => Some(r),
            _ => None,
        })
}

#[cfg(test)]
mod tests;
