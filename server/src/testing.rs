//! What tests of handlers need: a node that applies at once, and short ways to write requests.

pub mod generate;

use crate::api::Api;
use crate::api::maintenance::Hashes;
use crate::apply::{Applier, ConfOutcome, Reply};
use crate::clock::ManualClock;
use crate::lease::{LeaseHook, Lessor};
use crate::limits::Limits;
use crate::node::{Identity, Node, NodeStatus};
use crate::status::Status;
use crate::watch::{self, Feed};
use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::raftpb;
use std::sync::{Arc, Mutex};

/// What a [`LocalNode`] calls after each publication, before the proposer gets its answer.
pub type OnPublished = Box<dyn FnMut(&engine::Published) + Send>;

/// A member without consensus: each proposal is an entry of its own, applied and published at once.
/// Engine and apply are the real ones, on files in a directory of its own.
pub struct LocalNode {
    engine: engine::Engine,
    identity: Identity,
    applier: Mutex<Applier>,
    on_published: Mutex<Option<OnPublished>>,
    status: Mutex<NodeStatus>,
    /// Linearizable reads asked for.
    pub reads: std::sync::atomic::AtomicU64,
    /// Removed with the node.
    _dir: tempfile::TempDir,
}

/// The term of every entry.
pub const TERM: u64 = 2;

/// Options that suit tests: small pages and chunks, so that little data makes deep trees.
pub fn engine_options(dir: &std::path::Path) -> engine::Options {
    engine::Options {
        page_bytes: 1024,
        chunk_bytes: 2048,
        cache_bytes: 1 << 20,
        extend_bytes: 64 << 10,
        ..engine::Options::new(dir)
    }
}

/// Who answers in tests.
pub fn identity() -> Identity {
    Identity {
        member_id: 0x8e9e_05c5_2164_694d,
        cluster_id: 0xcdf8_1819_4e3a_8c32,
        name: "default".into(),
    }
}

/// An applier on an engine in `dir`, as a restarted member makes it.
pub fn open_applier(
    dir: &std::path::Path,
    limits: Limits,
    hook: Arc<dyn LeaseHook>,
) -> (engine::Engine, Applier) {
    let (engine, writer) = engine::Engine::open(engine_options(dir)).expect("opens");
    let initial = raftpb::ConfState {
        voters: vec![identity().member_id],
        ..Default::default()
    };
    let applier = Applier::new(engine.clone(), writer, identity(), limits, hook, initial)
        .expect("reads its records");
    (engine, applier)
}

impl LocalNode {
    /// A fresh member with these limits.
    pub fn new(limits: Limits, hook: Arc<dyn LeaseHook>) -> LocalNode {
        let dir = tempfile::tempdir().expect("a directory");
        let (engine, applier) = open_applier(dir.path(), limits, hook);
        LocalNode {
            engine,
            identity: identity(),
            applier: Mutex::new(applier),
            on_published: Mutex::new(None),
            status: Mutex::new(NodeStatus {
                term: TERM,
                leader: identity().member_id,
                is_leader: true,
                ..Default::default()
            }),
            reads: Default::default(),
            _dir: dir,
        }
    }

    /// Calls `f` after each publication.
    pub fn on_published(&self, f: OnPublished) {
        *self.on_published.lock().unwrap() = Some(f);
    }

    /// Pretends another consensus state.
    pub fn set_status(&self, change: impl FnOnce(&mut NodeStatus)) {
        change(&mut self.status.lock().unwrap());
    }

    /// The counters of the applier, for [`Api::new`](crate::api::Api::new).
    pub fn counters(&self) -> Arc<crate::apply::Counters> {
        self.applier.lock().unwrap().counters().clone()
    }

    /// Hashes that hear of its compactions, for [`Api::new`](crate::api::Api::new).
    pub fn hashes(&self, observer: Arc<dyn crate::api::Observer>) -> Hashes {
        let hashes = Hashes::new(observer);
        let mut applier = self.applier.lock().unwrap();
        applier.set_compaction_hook(Arc::new(hashes.clone()));
        hashes
    }

    /// Applies one entry and publishes it.
    pub fn apply(&self, mut request: pb::InternalRaftRequest) -> Result<Reply, Status> {
        let mut applier = self.applier.lock().unwrap();
        let index = applier.applied().index + 1;
        request.header = Some(pb::RequestHeader {
            id: index,
            ..Default::default()
        });
        let data = Bytes::from(request.encode_to_vec());
        let (id, result) = applier
            .apply(index, TERM, &data)
            .expect("applies")
            .expect("is new");
        assert_eq!(id, index);
        self.publish(&mut applier, index);
        result
    }

    /// Applies one configuration change and publishes it.
    pub fn apply_conf_change(&self, change: raftpb::ConfChange) -> ConfOutcome {
        let mut applier = self.applier.lock().unwrap();
        let index = applier.applied().index + 1;
        let data = Bytes::from(change.encode_to_vec());
        let outcome = applier
            .apply_conf_change(index, TERM, &data)
            .expect("applies")
            .expect("is new");
        self.publish(&mut applier, index);
        outcome
    }

    fn publish(&self, applier: &mut Applier, index: u64) {
        let published = applier.publish(index, TERM).expect("publishes");
        let mut status = self.status.lock().unwrap();
        status.committed = index;
        status.applied = index;
        drop(status);
        if let Some(f) = &mut *self.on_published.lock().unwrap() {
            f(&published);
        }
    }
}

/// A fresh member with all its services: one watch hub, and a lessor on a clock that stands still.
pub fn member(limits: Limits) -> (Api<LocalNode>, Arc<ManualClock>) {
    observed_member(limits, Arc::new(()))
}

/// As [`member`]; `observer` hears of what it does.
pub fn observed_member(
    limits: Limits,
    observer: Arc<dyn crate::api::Observer>,
) -> (Api<LocalNode>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let lessor = Arc::new(Lessor::new(clock.clone(), limits.election_timeout));
    let node = LocalNode::new(limits.clone(), lessor.clone());
    lessor.observe(node.status());
    let view = node.engine().view();
    let options = watch::Options::new(&limits);
    let feed = Feed::new(view.revision(), view.compact_revision(), options);
    let hubs = vec![feed.hub()];
    node.on_published(Box::new(move |published| feed.published(published)));
    let (counters, hashes) = (node.counters(), node.hashes(observer.clone()));
    let mut api = Api::new(node, limits, counters, hashes, lessor, hubs);
    api.set_observer(observer);
    (api, clock)
}

/// The services of a fresh member.
pub fn api(limits: Limits) -> Api<LocalNode> {
    member(limits).0
}

impl Node for LocalNode {
    async fn propose(&self, request: pb::InternalRaftRequest) -> Result<Reply, Status> {
        self.apply(request)
    }

    async fn linearizable(&self) -> Result<(), Status> {
        self.reads
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    async fn compacted(&self, revision: i64) -> Result<(), Status> {
        let mut applier = self.applier.lock().unwrap();
        while engine::CompactProgress::Done
            != applier
                .writer()
                .compact_step(engine::Budget::default())
                .expect("compacts")
        {
            // Hashes may be taken of what is older.
            std::thread::yield_now();
        }
        let applied = applier.applied();
        self.publish(&mut applier, applied.index);
        let number = applier.writer().checkpoint().expect("starts");
        self.engine
            .wait_durable(number.expect("none was running"))
            .expect("becomes durable");
        assert!(self.engine.view().compact_done() >= revision);
        Ok(())
    }

    async fn defragment(&self) -> Result<(), Status> {
        self.applier.lock().unwrap().writer().shrink();
        Ok(())
    }

    fn engine(&self) -> &engine::Engine {
        &self.engine
    }

    fn status(&self) -> NodeStatus {
        *self.status.lock().unwrap()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// Runs a future that never waits for anything outside.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Requests in few words.
pub mod req {
    use quorate_proto::etcdserverpb as pb;
    use quorate_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
    use quorate_proto::etcdserverpb::request_op::Request;

    /// Wraps any request as an operation of a transaction.
    pub fn op(request: impl Into<Op>) -> pb::RequestOp {
        request.into().0
    }

    /// See [`op`].
    pub struct Op(pb::RequestOp);

    macro_rules! ops {
        ($($message:ident as $variant:ident by $name:ident,)*) => {
            $(impl From<pb::$message> for Op {
                fn from(r: pb::$message) -> Op {
                    Op(pb::RequestOp { request: Some(Request::$variant(r)) })
                }
            }

            /// An operation of a transaction.
            pub fn $name(r: pb::$message) -> pb::RequestOp {
                op(r)
            })*
        };
    }

    ops! {
        RangeRequest as RequestRange by op_range,
        PutRequest as RequestPut by op_put,
        DeleteRangeRequest as RequestDeleteRange by op_delete,
        TxnRequest as RequestTxn by op_txn,
    }

    /// Puts a key.
    pub fn put_of(key: &str, value: &str) -> pb::PutRequest {
        pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        }
    }

    /// Reads one key.
    pub fn range_of(key: &str) -> pb::RangeRequest {
        pb::RangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        }
    }

    /// Reads every key.
    pub fn range_all() -> pb::RangeRequest {
        pb::RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            ..Default::default()
        }
    }

    /// Deletes a range.
    pub fn delete_of(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest {
            key: key.to_owned().into(),
            range_end: range_end.to_owned().into(),
            ..Default::default()
        }
    }

    /// Compares a key's version for equality.
    pub fn cmp_version(key: &str, version: i64) -> pb::Compare {
        pb::Compare {
            target: CompareTarget::Version as i32,
            key: key.to_owned().into(),
            target_union: Some(TargetUnion::Version(version)),
            ..Default::default()
        }
    }
}
