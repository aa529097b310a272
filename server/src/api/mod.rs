//! The services: plain async functions, request in, response or status out.
//!
//! Handlers know neither HTTP/2 nor the runtime that drives them; the gRPC layer, the JSON gateway and
//! tests call them alike. Each file holds one service of etcd's API.
//!
//! Invariants:
//! 1. Checks run in etcd's order: learner rule, leader requirement, local quota, shape of the request,
//!    then the node's own (back-pressure, size, consensus, apply).
//! 2. A read takes one view and answers from it alone, so a response never mixes two states.
//! 3. Hashes over everything are taken by a thread of their own, one at a time (see `maintenance::hashes`), and reads that
//!    turn out to be large by a few reader threads, within a budget of bytes (see `large`).

pub mod auth;
pub mod cluster;
pub mod context;
pub mod health;
pub mod kv;
mod large;
pub mod lease;
pub mod maintenance;
pub mod reply;
pub mod stream;
pub mod validate;
pub mod watch;

pub use context::RequestCtx;
pub use reply::{Encoded, Reply};

use crate::apply::Counters;
use crate::lease::Lessor;
use crate::limits::Limits;
use crate::node::Node;
use crate::status::{Code, Status, errors};
use crate::watch::Hub;
use large::{Bounds, Large};
use lease::LeaseIds;
use maintenance::Hashes;
use quorate_proto::etcdserverpb as pb;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the services tell the metrics. Must not block. Nothing flows back.
pub trait Observer: Send + Sync + 'static {
    /// A Range was answered from a view.
    fn ranged(&self, ok: bool, took: Duration);
    /// Hash was answered.
    fn hashed(&self, took: Duration);
    /// The history up to a revision was hashed.
    fn hashed_revision(&self, took: Duration);
    /// A stream of a client failed while it was received; `api` is etcd's name of it.
    fn stream_failed(&self, api: &'static str);
}

/// Nobody listens.
impl Observer for () {
    fn ranged(&self, _ok: bool, _took: Duration) {}
    fn hashed(&self, _took: Duration) {}
    fn hashed_revision(&self, _took: Duration) {}
    fn stream_failed(&self, _api: &'static str) {}
}

/// The services of one member, on top of its node. Cheap to share behind an `Arc`.
pub struct Api<N> {
    pub(crate) node: N,
    pub(crate) limits: Limits,
    counters: Arc<Counters>,
    hashes: Hashes,
    large: Large,
    observer: Arc<dyn Observer>,
    lessor: Arc<Lessor>,
    lease_ids: LeaseIds,
    /// One per network thread.
    hubs: Box<[Arc<Hub>]>,
}

impl<N: Node> Api<N> {
    /// The services of `node`. `counters` are those of its applier, `hashes` hears of its compactions, `lessor` of its
    /// leases, and `hubs`, one per network thread and at least one, are fed with its events.
    pub fn new(
        node: N,
        limits: Limits,
        counters: Arc<Counters>,
        hashes: Hashes,
        lessor: Arc<Lessor>,
        hubs: Vec<Arc<Hub>>,
    ) -> Api<N> {
        assert!(!hubs.is_empty(), "a member has a network thread");
        Api {
            large: Large::new(Bounds::new(limits.request_timeout)),
            observer: Arc::new(()),
            lessor,
            lease_ids: LeaseIds::new(node.identity().member_id),
            hubs: hubs.into(),
            node,
            limits,
            counters,
            hashes,
        }
    }

    /// Sends what happens to `observer`.
    pub fn set_observer(&mut self, observer: Arc<dyn Observer>) {
        self.observer = observer;
    }

    /// A stream's request could not be received; what the client itself ended does not count.
    pub(crate) fn count_failure(&self, api: &'static str, status: &Status) {
        if !matches!(status.code, Code::Canceled | Code::DeadlineExceeded) {
            self.observer.stream_failed(api);
        }
    }

    /// The node underneath.
    pub fn node(&self) -> &N {
        &self.node
    }

    /// The checks that come before any look at the request.
    pub(crate) fn admit(&self, ctx: &RequestCtx, learner: Learner) -> Result<(), Status> {
        let status = self.node.status();
        if status.is_learner && learner == Learner::Refuses {
            return Err(errors::NOT_SUPPORTED_FOR_LEARNER);
        }
        if ctx.has_leader && status.leader == 0 {
            return Err(errors::NO_LEADER);
        }
        Ok(())
    }

    /// The watch hub of the calling network thread.
    fn hub(&self) -> &Arc<Hub> {
        let thread = crate::net::current_thread_index().unwrap_or(0);
        &self.hubs[thread % self.hubs.len()]
    }

    /// Fills in who answers; the revision was set where the answer was made.
    pub(crate) fn complete(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |h| h.revision);
        *header = Some(self.node.header(revision));
    }
}

#[cfg(test)]
mod tests;

/// Whether a member that does not vote serves a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learner {
    Serves,
    Refuses,
}

/// What a client sees of an engine error on the read path.
pub(crate) fn engine_status(error: engine::Error) -> Status {
    match error {
        engine::Error::Compacted => errors::COMPACTED,
        engine::Error::Future => errors::FUTURE_REV,
        engine::Error::NoSpace => errors::NO_SPACE,
        engine::Error::Corrupt(_) => {
            let text = error.to_string();
            tell_once(&text);
            Status::new(Code::DataLoss, text)
        }
        _ => {
            let text = error.to_string();
            tell_once(&text);
            Status::new(Code::Internal, text)
        }
    }
}

/// What the disk did to a read is the operator's to know, not only the client's; a client that tries
/// again and again must not fill the log, so each text is logged once, and [`TOLD_MAX`] at most.
fn tell_once(text: &str) {
    const TOLD_MAX: usize = 64;
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut told = TOLD.lock().unwrap_or_else(|p| p.into_inner());
    if told.len() < TOLD_MAX && !told.iter().any(|t| t == text) {
        told.push(text.to_owned());
        tracing::error!("a read failed: {text}");
    }
}

/// An answer of the wrong kind: the id of a proposal was mixed up. Never seen; not worth a crash.
pub(crate) fn mismatched() -> Status {
    Status::fixed(Code::Internal, "the answer does not belong to this request")
}
