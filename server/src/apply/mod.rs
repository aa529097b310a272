//! Applying committed log entries: command in, engine transaction, result and events out.
//!
//! The log payload is etcd's `InternalRaftRequest`; what an entry does is etcd's as well, so that logs
//! and data can move between the two.
//!
//! Invariants:
//! 1. Apply is a function of the state and the entry. It reads no clock, no random source and no
//!    configuration, and no answer depends on the order of a hash map. The one thing a member adds of
//!    its own is the *answer* `NO_SPACE` after a write that took effect while the member stands over
//!    its quota; effects never depend on it.
//! 2. Entries are applied in index order without a gap; one at or below the applied index is skipped.
//! 3. A refused entry has no effect at all. What can refuse it is checked before the first change.
//! 4. An error of the engine, or an entry this version cannot understand, stops the member: going on
//!    would make its state differ from its peers'.
//! 5. Nothing becomes visible before [`Applier::publish`], and then the whole batch does.
//!
//! Absent on purpose: auth, downgrade and lease checkpoint entries. They are answered `UNIMPLEMENTED`
//! on every member alike; this server never proposes them.

mod ahead;
mod alarm;
pub mod buckets;
pub(crate) mod intervals;
mod lease;
mod member;
mod observe;
pub(crate) mod range;
pub(crate) mod txn;

#[cfg(test)]
mod tests;

pub use alarm::Alarms;
pub use lease::{LeaseSet, TTL_MAX_S};
pub use member::ConfOutcome;
pub use observe::{Counters, Observer};

use crate::lease::LeaseHook;
use crate::limits::Limits;
use crate::membership::{self, Members};
use crate::node::Identity;
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::raftpb;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

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
    /// A configuration change: the members after it, by id.
    Members(Vec<pb::Member>),
}

/// Why the member must stop. Every variant names the entry.
#[derive(Debug)]
pub enum Stop {
    /// The bytes of an entry are not a request.
    Undecodable {
        /// Log index of the entry.
        index: u64,
        /// What the decoder said.
        reason: String,
    },
    /// A request of a kind this version does not know; a newer member may have written it.
    UnknownRequest {
        /// Log index of the entry.
        index: u64,
    },
    /// Entries came out of order.
    Gap {
        /// The index that was due.
        expected: u64,
        /// The index that came.
        got: u64,
    },
    /// The engine failed while an entry was applied.
    Engine {
        /// Log index of the entry.
        index: u64,
        /// The engine's error.
        error: engine::Error,
    },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Undecodable { index, reason } => write!(
                f,
                "log entry {index} cannot be decoded: {reason}; the log holds what no known version \
                 writes, restore this member from a snapshot or re-add it"
            ),
            Stop::UnknownRequest { index } => write!(
                f,
                "log entry {index} holds a request this version does not know; upgrade this member to \
                 the version of its peers"
            ),
            Stop::Gap { expected, got } => write!(
                f,
                "log entry {got} was to be applied where {expected} is due; entries are missing"
            ),
            Stop::Engine { index, error } => {
                write!(f, "applying log entry {index}: {error}")
            }
        }
    }
}

impl std::error::Error for Stop {}

/// Why one entry had no effect: an answer, the same on every member, or the end of this one.
#[derive(Debug)]
pub enum Failure {
    /// Refused.
    Status(Status),
    /// Broken.
    Engine(engine::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(status)
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Failure {
        Failure::Engine(error)
    }
}

/// Hears of compactions. Must not wait; nothing flows back.
pub trait CompactionHook: Send + Sync {
    /// The state was compacted to `revision`, and readers can see it; `before` is what it was just before.
    fn compacted(&self, revision: i64, before: engine::LongHistory);
}

/// Publications between two looks at the store's figures; in between the bytes in use are estimated.
const PUBLISHES_PER_LOOK: u32 = 32;

/// Applies entries to the engine. One per member, on the apply thread.
pub struct Applier {
    engine: engine::Engine,
    writer: engine::Writer,
    identity: Identity,
    limits: Limits,
    lease_hook: Arc<dyn LeaseHook>,
    compaction_hook: Option<Arc<dyn CompactionHook>>,
    /// Compactions that are not published yet, with what was before them.
    compactions: Vec<(i64, engine::LongHistory)>,
    observer: Arc<dyn Observer>,
    counters: Arc<Counters>,
    /// Mirrors of the system tree, written through.
    leases: LeaseSet,
    alarms: Alarms,
    members: Members,
    conf_state: raftpb::ConfState,
    applied: engine::Applied,
    /// Publications since the store's figures were last looked up.
    publishes: u32,
    cold: ahead::Cold,
}

impl Applier {
    /// Takes over the writer and loads leases, alarms and members. `initial` is the configuration of
    /// the first start; it counts only while nothing was ever published.
    pub fn new(
        engine: engine::Engine,
        writer: engine::Writer,
        identity: Identity,
        limits: Limits,
        lease_hook: Arc<dyn LeaseHook>,
        initial: raftpb::ConfState,
    ) -> engine::Result<Applier> {
        let view = engine.view();
        let counters = Arc::<Counters>::default();
        let stats = engine.stats();
        counters.set_in_use_bytes(stats.in_use_bytes);
        let mut cold = ahead::Cold::default();
        cold.look(stats.cache_misses);
        Ok(Applier {
            leases: LeaseSet::load(&view)?,
            alarms: Alarms::load(&view)?,
            members: Members::load(&view)?,
            conf_state: membership::conf_state_from(view.meta())?.unwrap_or(initial),
            applied: view.applied(),
            publishes: 0,
            cold,
            engine,
            writer,
            identity,
            limits,
            lease_hook,
            compaction_hook: None,
            compactions: Vec::new(),
            observer: Arc::new(()),
            counters,
        })
    }

    /// Sends the duration of every apply to `observer`.
    pub fn set_observer(&mut self, observer: Arc<dyn Observer>) {
        self.observer = observer;
    }

    /// Tells `hook` of every compaction.
    pub fn set_compaction_hook(&mut self, hook: Arc<dyn CompactionHook>) {
        self.compaction_hook = Some(hook);
    }

    /// Counts of executed operations, shared with the read path.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The writer, for compaction slices and checkpoints between batches.
    pub fn writer(&mut self) -> &mut engine::Writer {
        &mut self.writer
    }

    /// The last entry applied, published or not.
    pub fn applied(&self) -> engine::Applied {
        self.applied
    }

    /// The configuration after the last entry applied.
    pub fn conf_state(&self) -> &raftpb::ConfState {
        &self.conf_state
    }

    /// The members after the last entry applied.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The alarms after the last entry applied.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// Reads the pages that the first of these normal entries will need, many at a time, if pages were
    /// missed lately; how many entries that was for. Waits for the disk, once per level of the tree.
    pub fn read_ahead<'a>(&self, entries: impl ExactSizeIterator<Item = &'a Bytes>) -> usize {
        if !self.cold.is_cold() {
            return entries.len();
        }
        let (keys, taken) = ahead::keys(entries);
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        self.writer.prefetch(&keys);
        taken
    }

    /// Applies a normal entry. Answers the id of the request and its result; `None` for an entry
    /// without a request (a new leader's first) and for one that was applied before.
    #[allow(clippy::type_complexity)]
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        data: &Bytes,
    ) -> Result<Option<(u64, Result<Reply, Status>)>, Stop> {
        if !self.is_due(index)? {
            return Ok(None);
        }
        if data.is_empty() {
            self.applied = engine::Applied { index, term };
            return Ok(None);
        }
        let mut request =
            pb::InternalRaftRequest::decode(data.clone()).map_err(|e| Stop::Undecodable {
                index,
                reason: e.to_string(),
            })?;
        let id = match (request.id, &request.header) {
            (0, Some(header)) => header.id,
            (id, _) => id,
        };
        let command = Command::take(&mut request).ok_or(Stop::UnknownRequest { index })?;
        let started = Instant::now();
        let name = command.name();
        let over_quota = self.over_quota(&command);
        let result = match self.execute(command) {
            Ok(_) if over_quota => Err(errors::NO_SPACE),
            Ok(reply) => Ok(reply),
            Err(Failure::Status(status)) => Err(status),
            Err(Failure::Engine(error)) => return Err(Stop::Engine { index, error }),
        };
        self.observer
            .applied(name, result.is_ok(), started.elapsed());
        self.applied = engine::Applied { index, term };
        Ok(Some((id, result)))
    }

    /// Applies a configuration change: the verdict for consensus and the answer for the proposer.
    /// `None` when it was applied before.
    pub fn apply_conf_change(
        &mut self,
        index: u64,
        term: u64,
        data: &Bytes,
    ) -> Result<Option<ConfOutcome>, Stop> {
        if !self.is_due(index)? {
            return Ok(None);
        }
        let outcome = self.conf_change(index, data)?;
        self.applied = engine::Applied { index, term };
        Ok(Some(outcome))
    }

    /// Makes everything applied so far visible. `index` and `term` are those of the last entry.
    pub fn publish(&mut self, index: u64, term: u64) -> Result<engine::Published, Stop> {
        let applied = engine::Applied { index, term };
        if applied != self.applied {
            return Err(Stop::Gap {
                expected: self.applied.index,
                got: index,
            });
        }
        let meta = membership::conf_state_bytes(&self.conf_state);
        let published = self.writer.publish(applied, &meta);
        if let Some(hook) = &self.compaction_hook {
            for (revision, before) in self.compactions.drain(..) {
                hook.compacted(revision, before);
            }
        }
        self.publishes += 1;
        if self.publishes >= PUBLISHES_PER_LOOK {
            self.publishes = 0;
            let stats = self.engine.stats();
            self.counters.set_in_use_bytes(stats.in_use_bytes);
            self.cold.look(stats.cache_misses);
        }
        Ok(published)
    }

    fn is_due(&self, index: u64) -> Result<bool, Stop> {
        let expected = self.applied.index + 1;
        if index > expected {
            return Err(Stop::Gap {
                expected,
                got: index,
            });
        }
        Ok(index == expected)
    }

    /// Whether this member stands over its quota and the command would add to it.
    fn over_quota(&self, command: &Command) -> bool {
        let cost = match command {
            Command::Put(r) => cost::put(r),
            Command::Txn(r) => cost::txn(r),
            Command::LeaseGrant(_) => cost::LEASE_GRANT,
            _ => 0,
        };
        if cost == 0 {
            return false;
        }
        let over = cost::reaches_quota(&self.limits, &self.counters, &self.engine, cost);
        self.counters.add_in_use_bytes(cost);
        over
    }

    fn execute(&mut self, command: Command) -> Result<Reply, Failure> {
        self.gate(&command)?;
        match command {
            Command::Put(r) => self.put(&r).map(Reply::Put),
            Command::DeleteRange(r) => self.delete_range(&r).map(Reply::DeleteRange),
            Command::Txn(r) => self.txn(&r).map(Reply::Txn),
            Command::Compaction(r) => self.compact(&r).map(Reply::Compact),
            Command::LeaseGrant(r) => self.lease_grant(&r).map(Reply::LeaseGrant),
            Command::LeaseRevoke(r) => self.lease_revoke(&r).map(Reply::LeaseRevoke),
            Command::Alarm(r) => self.alarm(&r).map(Reply::Alarm),
            Command::ClusterVersionSet(r) => {
                self.writer.sys_put(
                    buckets::CLUSTER,
                    buckets::CLUSTER_VERSION,
                    r.ver.as_bytes(),
                )?;
                Ok(Reply::Empty)
            }
            Command::ClusterMemberAttrSet(r) => self.member_attributes(r),
            Command::Unsupported(what) => Err(Status::new(
                Code::Unimplemented,
                format!("{what} is not supported by this version"),
            )
            .into()),
        }
    }

    /// What the alarms in the log forbid. A put anywhere in a transaction counts, whether or not it
    /// would run; a transaction that came through the log counts as a write.
    fn gate(&self, command: &Command) -> Result<(), Status> {
        let (writes, grows) = match command {
            Command::Put(_) | Command::LeaseGrant(_) => (true, true),
            Command::Txn(r) => (true, cost::txn(r) > 0),
            Command::DeleteRange(_) | Command::Compaction(_) | Command::LeaseRevoke(_) => {
                (true, false)
            }
            _ => (false, false),
        };
        if writes && self.alarms.any(pb::AlarmType::Corrupt) {
            Err(errors::CORRUPT)
        } else if grows && self.alarms.any(pb::AlarmType::Nospace) {
            Err(errors::NO_SPACE)
        } else {
            Ok(())
        }
    }

    fn put(&mut self, r: &pb::PutRequest) -> Result<pb::PutResponse, Failure> {
        if r.key.is_empty() {
            return Err(errors::EMPTY_KEY.into());
        }
        if r.lease != 0 && !self.leases.contains(r.lease) {
            return Err(errors::LEASE_NOT_FOUND.into());
        }
        let mut state = self.writer.txn();
        if (r.ignore_value || r.ignore_lease) && state.get(&r.key)?.is_none() {
            return Err(errors::KEY_NOT_FOUND.into());
        }
        let response = txn::put(&mut state, r)?;
        state.finish();
        self.counters.add(&txn::Ops {
            puts: 1,
            put_bytes: (r.key.len() + r.value.len()) as u64,
            ..Default::default()
        });
        Ok(response)
    }

    fn delete_range(
        &mut self,
        r: &pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Failure> {
        if r.key.is_empty() {
            return Err(errors::EMPTY_KEY.into());
        }
        let mut state = self.writer.txn();
        let response = txn::delete_range(&mut state, r)?;
        state.finish();
        self.counters.add(&txn::Ops {
            deletes: 1,
            ..Default::default()
        });
        Ok(response)
    }

    fn txn(&mut self, r: &pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
        let compact_revision = self.writer.compact_revision();
        let mut state = self.writer.txn();
        let path = txn::decide(&state, r)?;
        txn::check(&state, r, &path, compact_revision, &self.leases)?;
        let mut ops = txn::Ops::default();
        let response = txn::execute(&mut state, r, &path, &mut ops)?;
        state.finish();
        self.counters.add(&ops);
        self.counters.add_txn();
        Ok(response)
    }

    /// The logical part: reads below the revision fail from the next publish on.
    fn compact(&mut self, r: &pb::CompactionRequest) -> Result<pb::CompactionResponse, Failure> {
        let hook = self.compaction_hook.as_ref();
        // The present state can always be read; without a reader of it there is no hash, and nothing else.
        let before = hook.and_then(|_| self.writer.long_history().ok());
        self.writer.compact(r.revision).map_err(|e| match e {
            engine::CompactError::Compacted => errors::COMPACTED,
            engine::CompactError::Future => errors::FUTURE_REV,
        })?;
        self.compactions
            .extend(before.map(|before| (r.revision, before)));
        Ok(pb::CompactionResponse {
            header: Some(txn::header(self.writer.revision())),
        })
    }
}

/// What a request adds to the store at most, as etcd estimates it.
pub(crate) mod cost {
    use super::Counters;
    use crate::limits::Limits;
    use quorate_proto::etcdserverpb as pb;
    use quorate_proto::etcdserverpb::request_op::Request;

    /// A lease.
    pub const LEASE_GRANT: u64 = 64;

    /// A key-value with its index entries.
    pub fn put(r: &pb::PutRequest) -> u64 {
        256 + (r.key.len() + r.value.len()) as u64
    }

    /// The dearer branch, nested transactions included.
    pub fn txn(r: &pb::TxnRequest) -> u64 {
        branch(&r.success).max(branch(&r.failure))
    }

    fn branch(ops: &[pb::RequestOp]) -> u64 {
        let of = |op: &pb::RequestOp| match &op.request {
            Some(Request::RequestPut(r)) => put(r),
            Some(Request::RequestTxn(r)) => txn(r),
            _ => 0,
        };
        ops.iter().map(of).sum()
    }

    /// Whether `cost` more bytes reach this member's quota. Asks the engine only when the running
    /// estimate says so.
    pub fn reaches_quota(
        limits: &Limits,
        counters: &Counters,
        engine: &engine::Engine,
        cost: u64,
    ) -> bool {
        let Some(quota) = limits.quota_bytes else {
            return false;
        };
        let reaches = |in_use: u64| in_use.saturating_add(cost) >= quota.max(0) as u64;
        if !reaches(counters.in_use_bytes()) {
            return false;
        }
        let in_use = engine.stats().in_use_bytes;
        counters.set_in_use_bytes(in_use);
        reaches(in_use)
    }
}

/// The one request an entry carries.
enum Command {
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compaction(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    Alarm(pb::AlarmRequest),
    ClusterVersionSet(quorate_proto::membershippb::ClusterVersionSetRequest),
    ClusterMemberAttrSet(quorate_proto::membershippb::ClusterMemberAttrSetRequest),
    /// Known by name only.
    Unsupported(&'static str),
}

impl Command {
    /// The first field set, in etcd's order of looking; `None` when none is known.
    fn take(r: &mut pb::InternalRaftRequest) -> Option<Command> {
        macro_rules! first {
            ($($field:ident => $command:ident,)* ; $($known:ident => $name:literal,)*) => {
                $(if let Some(r) = r.$field.take() {
                    return Some(Command::$command(r));
                })*
                $(if r.$known.is_some() {
                    return Some(Command::Unsupported($name));
                })*
            };
        }
        first! {
            put => Put,
            delete_range => DeleteRange,
            txn => Txn,
            compaction => Compaction,
            lease_grant => LeaseGrant,
            lease_revoke => LeaseRevoke,
            alarm => Alarm,
            cluster_version_set => ClusterVersionSet,
            cluster_member_attr_set => ClusterMemberAttrSet,
            ;
            range => "Range",
            lease_checkpoint => "LeaseCheckpoint",
            auth_enable => "AuthEnable",
            auth_disable => "AuthDisable",
            auth_status => "AuthStatus",
            authenticate => "Authenticate",
            auth_user_add => "AuthUserAdd",
            auth_user_delete => "AuthUserDelete",
            auth_user_get => "AuthUserGet",
            auth_user_change_password => "AuthUserChangePassword",
            auth_user_grant_role => "AuthUserGrantRole",
            auth_user_revoke_role => "AuthUserRevokeRole",
            auth_user_list => "AuthUserList",
            auth_role_list => "AuthRoleList",
            auth_role_add => "AuthRoleAdd",
            auth_role_delete => "AuthRoleDelete",
            auth_role_get => "AuthRoleGet",
            auth_role_grant_permission => "AuthRoleGrantPermission",
            auth_role_revoke_permission => "AuthRoleRevokePermission",
            downgrade_info_set => "DowngradeInfoSet",
            downgrade_version_test => "DowngradeVersionTest",
        }
        None
    }

    /// The name in etcd's apply metrics.
    fn name(&self) -> &'static str {
        match self {
            Command::Put(_) => "Put",
            Command::DeleteRange(_) => "DeleteRange",
            Command::Txn(_) => "Txn",
            Command::Compaction(_) => "Compaction",
            Command::LeaseGrant(_) => "LeaseGrant",
            Command::LeaseRevoke(_) => "LeaseRevoke",
            Command::Alarm(_) => "Alarm",
            Command::ClusterVersionSet(_) => "ClusterVersionSet",
            Command::ClusterMemberAttrSet(_) => "ClusterMemberAttrSet",
            Command::Unsupported(name) => name,
        }
    }
}
