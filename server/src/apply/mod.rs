//! Applying committed log entries: command in, engine transaction, result and events out.

use quorate_proto::etcdserverpb as pb;

/// What an applied request answers. Headers carry the revision only; the API layer fills in who
/// answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing but success (cluster attributes, version).
    Empty,
    /// Put.
    Put(pb::PutResponse),
    /// DeleteRange.
    DeleteRange(pb::DeleteRangeResponse),
    /// Txn that had to go through the log.
    Txn(pb::TxnResponse),
    /// Compact: the logical part is done.
    Compact(pb::CompactionResponse),
    /// LeaseGrant.
    LeaseGrant(pb::LeaseGrantResponse),
    /// LeaseRevoke.
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// Alarm.
    Alarm(pb::AlarmResponse),
}
