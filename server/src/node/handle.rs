//! The handle through which the rest of the server reaches the node thread.

use super::completions::{Completions, Outcome};
use super::mailbox::{Mailbox, Refused};
use super::{Identity, Node, NodeStatus};
use crate::apply::{Reply, cost};
use crate::limits::Limits;
use crate::status::{Code, Status, errors};
use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Bytes of proposals that may wait for the node thread; beyond it calls get `TOO_MANY_REQUESTS`.
pub const MAILBOX_BYTES_MAX: usize = 64 << 20;

/// What a proposal weighs besides its payload.
pub(super) const PROPOSAL_BYTES: usize = 64;

/// How often calls that wait too long are looked for.
pub(super) const EXPIRE_INTERVAL: Duration = Duration::from_millis(500);

/// What the node thread is asked to do.
pub enum Input {
    /// Put this encoded request into the log.
    Propose {
        /// Its id, by which its call waits.
        id: u64,
        /// The entry.
        payload: Bytes,
    },
    /// Confirm leadership, then answer: a linearizable read of a member that is not the sole voter.
    Read(oneshot::Sender<Result<(), Status>>),
    /// Answer once history up to the revision is dropped durably.
    Compacted(i64, oneshot::Sender<Result<(), Status>>),
    /// Release free space at the end of the tree file, then answer.
    Defragment(oneshot::Sender<Result<(), Status>>),
    /// Checkpoint and stop.
    Stop,
}

/// State the node thread publishes for everyone.
#[derive(Default)]
pub struct Shared {
    pub(super) term: AtomicU64,
    pub(super) leader: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) applied: AtomicU64,
    pub(super) is_learner: AtomicBool,
    /// This member leads and is the only voter: what it has applied is all there is.
    pub(super) reads_local: AtomicBool,
    /// The disk is so full that nothing that takes space may enter the log.
    pub(super) space_low: AtomicBool,
    /// As much is changed in memory as may be, and no checkpoint finds room: nothing may enter the log.
    pub(super) no_room: AtomicBool,
    pub(super) leader_changes: AtomicU64,
    pub(super) proposals_failed: AtomicU64,
    pub(super) reads_failed: AtomicU64,
    pub(super) reads_late: AtomicU64,
}

impl Shared {
    /// Leader changes seen since the start; the first election counts.
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }

    /// Proposals that failed or timed out.
    pub fn proposals_failed(&self) -> u64 {
        self.proposals_failed.load(Ordering::Relaxed)
    }

    /// Rounds of linearizable reads that failed.
    pub fn reads_failed(&self) -> u64 {
        self.reads_failed.load(Ordering::Relaxed)
    }

    /// Rounds of linearizable reads that took too long.
    pub fn reads_late(&self) -> u64 {
        self.reads_late.load(Ordering::Relaxed)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) inner: Arc<HandleInner>,
}

pub(super) struct HandleInner {
    pub(super) mailbox: Mailbox<Input>,
    pub(super) completions: Completions,
    pub(super) shared: Shared,
    pub(super) engine: engine::Engine,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) stopped: watch::Sender<bool>,
    /// A durable write of the log has been under way for too long.
    pub(super) log_hangs: watch::Sender<bool>,
}

impl NodeHandle {
    /// Runs the completion dispatcher of one network thread; spawn it once per thread.
    pub async fn dispatch(&self, thread: usize) {
        let dispatcher = self.inner.completions.dispatch(thread);
        match thread {
            0 => tokio::join!(dispatcher, self.expire_beside_a_stall()).0,
            _ => dispatcher.await,
        }
    }

    /// Ends calls by their timeout while the node thread, which otherwise does, waits for a disk that
    /// hangs.
    async fn expire_beside_a_stall(&self) {
        let mut hangs = self.inner.log_hangs.subscribe();
        // An error would mean that the sender is gone; it lives as long as this handle.
        while hangs.wait_for(|h| *h).await.is_ok() {
            self.inner.expire();
            tokio::time::sleep(EXPIRE_INTERVAL).await;
        }
    }

    /// Whether the log's disk hangs: a durable write has been under way for longer than an election
    /// takes. Whoever leads with such a disk had better let another member lead; nothing that is proposed
    /// here is acknowledged until it ends. `changed` on the receiver tells when that turns.
    pub fn log_hangs(&self) -> watch::Receiver<bool> {
        self.inner.log_hangs.subscribe()
    }

    /// Proposals that wait for commit and apply.
    pub fn proposals_pending(&self) -> usize {
        self.inner.completions.pending()
    }

    /// Counters for the metrics.
    pub fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// Asks the node to checkpoint and stop; `stopped` tells when it has.
    pub fn stop(&self) {
        // A closed mailbox means it has stopped already; a full one still drains before it closes.
        let _ = self.inner.mailbox.push(Input::Stop, 0);
        self.inner.mailbox.close();
    }

    /// Resolves when the node thread has ended.
    pub async fn stopped(&self) {
        let mut stopped = self.inner.stopped.subscribe();
        // An error means the sender is gone, which also is the end.
        let _ = stopped.wait_for(|s| *s).await;
    }

    pub(super) fn ask(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<(), Status>>) -> Input,
    ) -> Result<oneshot::Receiver<Result<(), Status>>, Status> {
        let (sender, receiver) = oneshot::channel();
        match self.inner.mailbox.push(input(sender), 64) {
            Ok(()) => Ok(receiver),
            Err(Refused::Full(_)) => Err(errors::TOO_MANY_REQUESTS),
            Err(Refused::Closed(_)) => Err(errors::STOPPED),
        }
    }
}

impl HandleInner {
    /// Ends calls that have waited too long.
    pub(super) fn expire(&self) {
        let timeout = self.limits.request_timeout;
        let expired = self.completions.expire(timeout, &errors::TIMEOUT);
        let failed = &self.shared.proposals_failed;
        failed.fetch_add(expired as u64, Ordering::Relaxed);
    }
}

/// Whether a request makes the store grow; what frees space must pass even on a full disk.
fn takes_space(request: &pb::InternalRaftRequest) -> bool {
    request.put.is_some()
        || request.lease_grant.is_some()
        || request.txn.as_ref().is_some_and(|t| cost::txn(t) > 0)
}

impl NodeHandle {
    /// Puts a request into the mailbox of the node.
    pub(super) fn queue(
        &self,
        mut request: pb::InternalRaftRequest,
    ) -> Result<oneshot::Receiver<Outcome>, Status> {
        let inner = &*self.inner;
        let behind = inner
            .shared
            .committed
            .load(Ordering::Relaxed)
            .saturating_sub(inner.shared.applied.load(Ordering::Relaxed));
        if behind > inner.limits.unapplied_entries_max {
            return Err(errors::TOO_MANY_REQUESTS);
        }
        if inner.shared.space_low.load(Ordering::Relaxed) && takes_space(&request) {
            return Err(errors::NO_SPACE);
        }
        if inner.shared.no_room.load(Ordering::Relaxed) {
            return Err(errors::NO_SPACE);
        }
        let (id, result) = inner.completions.register()?;
        request
            .header
            .get_or_insert_with(pb::RequestHeader::default)
            .id = id;
        let payload = request.encode_to_vec();
        if payload.len() > inner.limits.request_bytes_max {
            inner.completions.withdraw(id);
            return Err(errors::REQUEST_TOO_LARGE);
        }
        let weight = payload.len() + PROPOSAL_BYTES;
        let payload = Bytes::from(payload);
        if let Err(refused) = inner.mailbox.push(Input::Propose { id, payload }, weight) {
            inner.completions.withdraw(id);
            return Err(match refused {
                Refused::Full(_) => errors::TOO_MANY_REQUESTS,
                Refused::Closed(_) => errors::STOPPED,
            });
        }
        Ok(result)
    }
}

impl Node for NodeHandle {
    /// Queues the request before it returns: a future that carried the request, which has room for every
    /// kind there is, would be kilobytes to move.
    fn propose(
        &self,
        request: pb::InternalRaftRequest,
    ) -> impl Future<Output = Result<Reply, Status>> + Send {
        let queued = self.queue(request);
        async move { queued?.await.unwrap_or(Err(errors::STOPPED)) }
    }

    async fn linearizable(&self) -> Result<(), Status> {
        if self.inner.shared.reads_local.load(Ordering::Acquire) {
            // Writes are acknowledged after their view is published, and nobody else can commit.
            return Ok(());
        }
        let shared = &self.inner.shared;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let read = async { self.ask(Input::Read)?.await.unwrap_or(Err(errors::STOPPED)) };
        match tokio::time::timeout(self.inner.limits.request_timeout, read).await {
            Err(_) => {
                count(&shared.reads_late);
                Err(errors::TIMEOUT)
            }
            Ok(result) => result.inspect_err(|_| {
                count(&shared.reads_failed);
            }),
        }
    }

    async fn compacted(&self, revision: i64) -> Result<(), Status> {
        let receiver = self.ask(|done| Input::Compacted(revision, done))?;
        receiver.await.unwrap_or(Err(errors::STOPPED))
    }

    async fn defragment(&self) -> Result<(), Status> {
        let receiver = self.ask(Input::Defragment)?;
        receiver.await.unwrap_or(Err(Status::fixed(
            Code::Unavailable,
            "etcdserver: server stopped",
        )))
    }

    fn engine(&self) -> &engine::Engine {
        &self.inner.engine
    }

    fn status(&self) -> NodeStatus {
        let shared = &self.inner.shared;
        let leader = shared.leader.load(Ordering::Acquire);
        NodeStatus {
            term: shared.term.load(Ordering::Acquire),
            leader,
            is_leader: leader == self.inner.identity.member_id,
            is_learner: shared.is_learner.load(Ordering::Acquire),
            committed: shared.committed.load(Ordering::Acquire),
            applied: shared.applied.load(Ordering::Acquire),
        }
    }

    fn identity(&self) -> &Identity {
        &self.inner.identity
    }
}
