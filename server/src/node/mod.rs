//! The node: the one place where consensus, the log, apply and the readers meet.

mod background;
pub mod completions;
pub mod handle;
pub mod mailbox;
pub mod run;
pub(crate) mod sync;

pub use handle::NodeHandle;
pub use run::{DIRTY_PERCENT_MAX, Fatal, NodeLoop, Parts, to_log};

use crate::apply::Reply;
use crate::status::Status;
use quorate_proto::etcdserverpb as pb;
use std::time::Duration;

/// Who this member is; fixed at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This member.
    pub member_id: u64,
    /// The cluster it belongs to.
    pub cluster_id: u64,
    /// `--name`.
    pub name: String,
}

/// A point-in-time view of the consensus state, read from atomics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Current term.
    pub term: u64,
    /// Member id of the leader, 0 when none is known.
    pub leader: u64,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether this member is a learner.
    pub is_learner: bool,
    /// Highest committed index.
    pub committed: u64,
    /// Highest applied index.
    pub applied: u64,
}

/// What the node tells the metrics. Called on the node thread but where it says otherwise; must not block.
/// Nothing flows back.
pub trait Observer: Send + Sync + 'static {
    /// A checkpoint became durable this long after it was started.
    fn checkpoint(&self, took: Duration);
    /// The history below a compacted revision was dropped; this long after the first slice.
    fn compacted(&self, took: Duration);
    /// One slice of dropping it took this long.
    fn compaction_slice(&self, took: Duration);
    /// A batch was handed to the log in this time; it was not durable then.
    fn log_appended(&self, took: Duration);
    /// A defragmentation began, or ended after this long.
    fn defragmented(&self, took: Option<Duration>);
    /// Bytes written to the log since the start.
    fn log_bytes(&self, total: u64);
    /// A durable write of the log takes longer than it may: the disk hangs, or has ended to. Called on a
    /// thread that only watches, since the node thread may be waiting for that disk.
    fn log_stalled(&self, stall: raftlog::Stall);
}

/// Nobody listens.
impl Observer for () {
    fn checkpoint(&self, _took: Duration) {}
    fn compacted(&self, _took: Duration) {}
    fn compaction_slice(&self, _took: Duration) {}
    fn log_appended(&self, _took: Duration) {}
    fn defragmented(&self, _took: Option<Duration>) {}
    fn log_bytes(&self, _total: u64) {}
    fn log_stalled(&self, _stall: raftlog::Stall) {}
}

/// What the request path needs from the node. The production implementation is `NodeHandle`; tests of
/// handlers bring a small one of their own that applies at once.
pub trait Node: Send + Sync + 'static {
    /// Proposes a request and waits for its local apply. Fills in the request id. Errors: the apply
    /// error, or one of the timeout family, `TOO_MANY_REQUESTS`, `REQUEST_TOO_LARGE`, `STOPPED`.
    fn propose(
        &self,
        request: pb::InternalRaftRequest,
    ) -> impl Future<Output = Result<Reply, Status>> + Send;

    /// Returns once the newest view contains every write acknowledged before the call.
    fn linearizable(&self) -> impl Future<Output = Result<(), Status>> + Send;

    /// Returns once history up to `revision` has been dropped and the drop is durable.
    fn compacted(&self, revision: i64) -> impl Future<Output = Result<(), Status>> + Send;

    /// Waits for the checkpoints that release space and truncates the free tail of the tree file.
    fn defragment(&self) -> impl Future<Output = Result<(), Status>> + Send;

    /// The engine; its newest view is what readers use.
    fn engine(&self) -> &engine::Engine;

    /// Consensus state.
    fn status(&self) -> NodeStatus;

    /// Who answers.
    fn identity(&self) -> &Identity;

    /// A response header of this member at `revision`.
    fn header(&self, revision: i64) -> pb::ResponseHeader {
        let identity = self.identity();
        pb::ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: self.status().term,
        }
    }
}

#[cfg(test)]
mod tests_completions;
#[cfg(test)]
mod tests_mailbox;
