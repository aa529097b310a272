//! The loop on a real log and a real tree file, in directories of their own; where a disk has to fail,
//! the log is on a simulated one.

use super::*;
use crate::apply::Reply;
use crate::bootstrap::{self, Opened, Sizes};
use crate::config::{self, Config, Request};
use crate::lease::LeaseHook;
use crate::node::Node;
use crate::node::background::{DEFRAGMENT_FAILURES_MAX, DEFRAGMENTS_MAX, SHRINK_CHECKPOINTS_MAX};
use crate::testing::block_on;
use crate::testing::req::{self, delete_of, put_of};
use crate::watch;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use std::ffi::OsString;
use std::path::Path;
use std::thread::JoinHandle;

fn settings(dir: &Path, flags: &[&str]) -> Config {
    let data_dir = format!("--data-dir={}", dir.display());
    let args = [&data_dir[..]].into_iter().chain(flags.iter().copied());
    match config::parse(args.map(OsString::from), []) {
        Ok(Request::Run(config)) => *config,
        Ok(Request::Print(text)) => panic!("asked to print {text}"),
        Err(error) => panic!("{}", error.message),
    }
}

struct Setup<'a> {
    flags: &'a [&'a str],
    hook: Arc<dyn LeaseHook>,
    limits: Limits,
    dirty_bytes_max: u64,
    log_disk: Option<simdisk::Disk>,
    observer: Arc<dyn Observer>,
    stall: Duration,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup {
            flags: &[],
            hook: Arc::new(()),
            limits: Limits::default(),
            dirty_bytes_max: 1 << 20,
            log_disk: None,
            observer: Arc::new(()),
            stall: Duration::from_secs(3600),
        }
    }
}

impl Setup<'_> {
    fn try_open(self, dir: &Path) -> Result<(NodeLoop, NodeHandle), String> {
        let limits = self.limits;
        let sizes = Sizes {
            segment_bytes: 8 << 20,
            dirty_bytes_max: self.dirty_bytes_max,
            reserve_bytes: 4 << 20,
            log_disk: self.log_disk,
        };
        let config = settings(dir, self.flags);
        let Opened {
            identity,
            engine,
            applier,
            log,
            replica,
            ..
        } = bootstrap::open_sized(&config, &limits, self.hook, sizes)?;
        let view = engine.view();
        let feed = Feed::new(
            view.revision(),
            view.compact_revision(),
            watch::Options::new(&limits),
        );
        Ok(NodeLoop::new(Parts {
            identity,
            limits,
            engine,
            applier,
            log,
            replica,
            feed,
            observer: self.observer,
            network_threads: 1,
            tick: Duration::from_millis(100),
            catchup_entries: 10,
            dirty_bytes_max: self.dirty_bytes_max,
            stall: self.stall,
        }))
    }

    fn open(self, dir: &Path) -> (NodeLoop, NodeHandle) {
        self.try_open(dir).expect("opens")
    }

    /// Opened, and leading.
    fn lead(self, dir: &Path) -> (NodeLoop, NodeHandle) {
        let (mut node, handle) = self.open(dir);
        node.elect().unwrap();
        assert_ne!(handle.status().leader, 0);
        (node, handle)
    }

    fn start(self, dir: &Path) -> (JoinHandle<Result<(), Fatal>>, NodeHandle) {
        let (node, handle) = self.open(dir);
        (std::thread::spawn(move || node.run()), handle)
    }
}

fn put(key: &str, value: &str) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        put: Some(put_of(key, value)),
        ..Default::default()
    }
}

fn grant(id: i64) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        lease_grant: Some(pb::LeaseGrantRequest { id, ttl: 60 }),
        ..Default::default()
    }
}

fn compact(revision: i64) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        compaction: Some(pb::CompactionRequest {
            revision,
            physical: true,
        }),
        ..Default::default()
    }
}

fn txn(ops: impl Iterator<Item = pb::RequestOp>) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        txn: Some(pb::TxnRequest {
            success: ops.collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Proposes all at once, past the mailbox, and applies them.
fn apply_all(node: &mut NodeLoop, requests: impl Iterator<Item = pb::InternalRaftRequest>) {
    hold(node, requests);
    node.propose();
    node.rounds().unwrap();
}

fn hold(node: &mut NodeLoop, requests: impl Iterator<Item = pb::InternalRaftRequest>) {
    for request in requests {
        let payload = Bytes::from(request.encode_to_vec());
        node.take(Input::Propose { id: 1, payload });
    }
}

type Answer = oneshot::Receiver<Result<(), Status>>;

fn ask(node: &mut NodeLoop, input: impl FnOnce(Waiter) -> Input) -> Answer {
    let (done, waits) = oneshot::channel();
    node.take(input(done));
    waits
}

fn is_waiting(answer: &mut Answer) -> bool {
    answer.try_recv() == Err(oneshot::error::TryRecvError::Empty)
}

/// Nothing may hang; far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends what would wait for ever.
fn within<T>(future: impl Future<Output = T>) -> T {
    block_on(async { tokio::time::timeout(PATIENCE, future).await }).expect("waits for ever")
}

/// Runs the background until a checkpoint has ended.
fn checkpoint(node: &mut NodeLoop) {
    let began = Instant::now();
    while !node.work.background.is_checkpointing() {
        assert!(began.elapsed() < PATIENCE, "no checkpoint begins");
        node.background().unwrap();
    }
    node.join_checkpoint().unwrap();
    assert!(!node.work.background.is_checkpointing());
}

fn finish_compaction(node: &mut NodeLoop) {
    while node.work.background.compacting {
        node.background().unwrap();
    }
    node.join_checkpoint().unwrap();
}

/// Everything that must be the same after a restart.
fn state(handle: &NodeHandle) -> (i64, u64, engine::HashKv, u64) {
    let view = handle.engine().view();
    let keys = view.count(&engine::KeyRange::all(), 0).unwrap();
    handle.engine().check(&view).unwrap();
    let hash = view.hash_kv(0).unwrap();
    (view.revision(), view.rolling_hash(), hash, keys)
}

/// Panics where a member cannot go on.
struct PanicOnGrant;

impl LeaseHook for PanicOnGrant {
    fn granted(&self, id: i64, _ttl: i64) {
        panic!("lease {id} was granted, as this test wants it");
    }
    fn revoked(&self, _id: i64) {}
}

fn panicking<'a>() -> Setup<'a> {
    Setup {
        hook: Arc::new(PanicOnGrant),
        ..Setup::default()
    }
}

// ---- how it ends ---------------------------------------------------------------------------------

#[test]
fn a_loop_that_panics_ends_every_call_and_says_that_it_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, handle) = panicking().start(dir.path());
    block_on(handle.linearizable()).unwrap();
    // Inside the loop before the request that panics: the mailbox keeps order.
    let inside = handle.ask(|done| Input::Compacted(1 << 40, done)).unwrap();
    assert_eq!(
        block_on(handle.propose(grant(7))).unwrap_err(),
        errors::STOPPED
    );
    assert!(within(inside).is_err(), "nobody will answer");
    within(handle.stopped());
    assert_eq!(
        block_on(handle.propose(put("k", "v"))).unwrap_err(),
        errors::STOPPED
    );
    assert!(block_on(handle.linearizable()).is_err());
    assert!(block_on(handle.defragment()).is_err());
    assert!(thread.join().is_err(), "the panic goes on");
}

#[test]
fn what_the_loop_did_not_take_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = Setup::default().open(dir.path());
    let inputs: [fn(Waiter) -> Input; 3] = [Input::Defragment, Input::Read, |done| {
        Input::Compacted(5, done)
    }];
    let waiting = inputs.map(|input| handle.ask(input).unwrap());
    let (_, proposed) = handle.inner.completions.register().unwrap();
    drop(Ended(node.handle.clone()));
    for answer in waiting {
        assert!(within(answer).is_err(), "nobody will answer");
    }
    assert_eq!(within(proposed).unwrap(), Err(errors::STOPPED));
    assert!(handle.ask(Input::Defragment).is_err());
}

#[test]
fn what_was_acknowledged_is_there_after_a_stop_and_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut expected = None;
    for round in 0..4 {
        let crash = round % 2 == 1;
        let setup = if crash { panicking() } else { Setup::default() };
        let (thread, handle) = setup.start(dir.path());
        block_on(handle.linearizable()).unwrap();
        if let Some(expected) = expected {
            assert_eq!(state(&handle), expected, "round {round}");
        }
        acknowledged.extend(write_from_threads(&handle, round));
        expected = Some(state(&handle));
        let view = handle.engine().view();
        for (key, revision) in &acknowledged {
            let found = view.get(key.as_bytes(), 0).unwrap().unwrap();
            assert_eq!(found.mod_revision, *revision, "{key}");
        }
        drop(view);
        if crash {
            // The panic ends the loop with neither checkpoint nor close. What comes then is a replay;
            // the grant was not acknowledged, but it is in the log.
            let lost = block_on(handle.propose(grant(round as i64)));
            assert_eq!(lost.unwrap_err(), errors::STOPPED);
            assert!(thread.join().is_err());
            expected = None;
        } else {
            handle.stop();
            thread.join().unwrap().unwrap();
        }
    }
}

/// Four threads write at once; the answers: key and revision.
fn write_from_threads(handle: &NodeHandle, round: usize) -> Vec<(String, i64)> {
    let write = |t: usize| {
        let handle = handle.clone();
        std::thread::spawn(move || {
            let put_one = |i: usize| {
                let key = format!("{t}/{:02}", i % 40);
                let value = format!("{round}-{i}").repeat(1 + i % 7 * 40);
                match block_on(handle.propose(put(&key, &value))) {
                    Ok(Reply::Put(r)) => (key, r.header.unwrap().revision),
                    other => panic!("{other:?}"),
                }
            };
            (0..60).map(put_one).collect::<Vec<_>>()
        })
    };
    let threads: Vec<_> = (0..4).map(write).collect();
    threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect()
}

#[test]
fn a_stop_leaves_nothing_to_replay() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, handle) = Setup::default().start(dir.path());
    block_on(handle.propose(put("k", "v"))).unwrap();
    let applied = handle.engine().view().applied();
    handle.stop();
    thread.join().unwrap().unwrap();
    drop(handle);
    let (node, handle) = Setup::default().open(dir.path());
    assert_eq!(node.applier.applied(), applied);
    assert_eq!(handle.engine().durable_applied(), applied);
}

// ---- how it begins -------------------------------------------------------------------------------

#[test]
fn the_ids_are_those_of_the_data_whatever_the_flags_say() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, first) = Setup::default().start(dir.path());
    block_on(first.propose(put("k", "v"))).unwrap();
    first.stop();
    thread.join().unwrap().unwrap();
    let was = first.identity().clone();
    drop(first);
    for flags in [
        &["--name=other", "--initial-cluster-token=other"][..],
        // Flags that could found nothing here are not looked at when there is data, as in etcd.
        &["--initial-cluster=a=http://a:2380,b=http://b:2380"],
        &["--initial-cluster-state=existing"],
        &[
            "--initial-advertise-peer-urls=http://moved:2380",
            "--initial-cluster=default=http://localhost:2380",
        ],
    ] {
        let setup = Setup {
            flags,
            ..Setup::default()
        };
        let (thread, handle) = setup.start(dir.path());
        let identity = handle.identity();
        assert_eq!(
            (identity.cluster_id, identity.member_id),
            (was.cluster_id, was.member_id),
            "{flags:?}"
        );
        block_on(handle.propose(put("k", "v"))).unwrap();
        handle.stop();
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn flags_that_can_found_nothing_are_refused_where_there_is_no_data() {
    for (flag, said) in [
        (
            "--initial-cluster-state=existing",
            "--initial-cluster-state",
        ),
        (
            "--initial-cluster=a=http://a:2380,b=http://b:2380",
            "--initial-cluster",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup {
            flags: &[flag],
            ..Setup::default()
        };
        let refused = setup.try_open(dir.path()).map(|_| ()).unwrap_err();
        assert!(refused.contains(said), "{refused}");
        let left = std::fs::read_dir(dir.path().join("member/store")).unwrap();
        assert_eq!(left.count(), 0, "nothing was created");
        // And with other flags it is founded after all.
        Setup::default().lead(dir.path());
    }
}

#[test]
fn a_crash_between_the_log_and_its_founding_entry_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("member/log");
    std::fs::create_dir_all(&log).unwrap();
    let options = raftlog::Options {
        identity: [77, 99],
        segment_bytes: 8 << 20,
        ..raftlog::Options::new(&log)
    };
    drop(raftlog::Log::open(options).unwrap());
    // The flags say other ids than the log was created with.
    let (mut node, handle) = Setup::default().lead(dir.path());
    assert_eq!(handle.identity().member_id, 99);
    assert_eq!(handle.status().leader, 99);
    apply_all(&mut node, [put("k", "v")].into_iter());
    assert_eq!(handle.engine().view().revision(), 2);
}

#[test]
fn a_log_that_was_deleted_is_missed_from_the_first_start_on() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, handle) = panicking().start(dir.path());
    block_on(handle.propose(put("k", "v"))).unwrap();
    block_on(handle.propose(grant(7))).unwrap_err();
    assert!(thread.join().is_err());
    drop(handle);
    std::fs::remove_dir_all(dir.path().join("member/log")).unwrap();
    let refused = Setup::default()
        .try_open(dir.path())
        .map(|_| ())
        .unwrap_err();
    assert!(refused.contains("holds no log"), "{refused}");
}

// ---- what is bounded -----------------------------------------------------------------------------

#[test]
fn a_request_that_the_log_cannot_take_is_refused_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        limits: Limits {
            request_bytes_max: 64 << 20,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let (thread, handle) = setup.start(dir.path());
    let large = put("k", &"v".repeat(9 << 20));
    assert_eq!(
        block_on(handle.propose(large)).unwrap_err(),
        errors::REQUEST_TOO_LARGE
    );
    block_on(handle.propose(put("k", &"v".repeat(7 << 20)))).unwrap();
    handle.stop();
    thread.join().unwrap().unwrap();
}

/// Keys in another order than that of the tree, so that few of them change many pages.
fn scattered(i: u32) -> String {
    format!("{:08x}{}", i.wrapping_mul(2_654_435_761), "s".repeat(250))
}

fn dirty_bound(node: &NodeLoop) -> u64 {
    node.dirty_bytes_max * DIRTY_PERCENT_MAX / 100
}

#[test]
fn changed_bytes_stay_bounded_while_history_is_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup {
        dirty_bytes_max: 512 << 10,
        ..Setup::default()
    }
    .lead(dir.path());
    for from in (0..20_000).step_by(250) {
        let keys = || (from..from + 250).map(scattered);
        let puts = txn(keys().map(|k| req::op_put(put_of(&k, "v"))));
        let deletes = txn(keys().map(|k| req::op_delete(delete_of(&k, ""))));
        apply_all(&mut node, [puts, deletes].into_iter());
        node.background().unwrap();
    }
    let revision = handle.engine().view().revision();
    apply_all(&mut node, [compact(revision)].into_iter());
    let (mut highest, mut slices) = (0, 0);
    while node.work.background.compacting {
        node.background().unwrap();
        highest = highest.max(node.applier.writer().dirty_bytes());
        slices += 1;
    }
    assert!(slices > 2, "compaction was to take several slices");
    let slice = engine::Budget::default().events as u64 * 8192 * 5 / 4;
    let bound = dirty_bound(&node) + slice;
    assert!(highest <= bound, "{highest} of {bound} bytes in memory");
    let view = handle.engine().view();
    assert_eq!(view.compact_done(), revision);
    handle.engine().check(&view).unwrap();
}

/// Runs the background until a call is answered.
fn answered(node: &mut NodeLoop, answer: &mut Answer) -> Result<(), Status> {
    let began = Instant::now();
    loop {
        match answer.try_recv() {
            Ok(result) => return result,
            Err(error) => assert_eq!(error, oneshot::error::TryRecvError::Empty),
        }
        assert!(began.elapsed() < PATIENCE, "waits for ever");
        node.background().unwrap();
    }
}

#[test]
fn a_long_reader_holds_back_what_it_needs_of_a_compaction_and_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup::default().lead(dir.path());
    apply_all(&mut node, (0..40).map(|i| put("k", &i.to_string())));
    let read = handle.engine().long_read(20).unwrap();
    let newest = handle.engine().view().revision();
    apply_all(&mut node, [compact(newest)].into_iter());
    let mut all = ask(&mut node, |done| Input::Compacted(newest, done));
    let mut some = ask(&mut node, |done| Input::Compacted(15, done));
    // What is gone is gone from the disk too.
    answered(&mut node, &mut some).unwrap();
    assert_eq!(handle.engine().view().compact_done(), 20);
    assert!(is_waiting(&mut all));
    // One that comes while it waits, with nothing left to do for it.
    let mut some = ask(&mut node, |done| Input::Compacted(20, done));
    answered(&mut node, &mut some).unwrap();
    assert!(is_waiting(&mut all));
    let mut shown = Vec::new();
    let rest = read.visit(&engine::KeyRange::all(), &mut |kv| {
        shown.push((kv.mod_revision, kv.value.to_vec()));
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!((rest.unwrap(), shown), (None, vec![(20, b"18".to_vec())]));
    drop(read);
    answered(&mut node, &mut all).unwrap();
    assert_eq!(handle.engine().view().compact_done(), newest);
    assert!(node.work.background.compact_at().is_none());
}

#[test]
fn a_compaction_waits_for_a_long_reader_as_long_as_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        flags: &["--history-pin-max=0s"],
        ..Setup::default()
    };
    let (mut node, handle) = setup.lead(dir.path());
    apply_all(&mut node, (0..40).map(|i| put("k", &i.to_string())));
    let read = handle.engine().long_read(20).unwrap();
    apply_all(&mut node, [compact(30)].into_iter());
    let mut all = ask(&mut node, |done| Input::Compacted(30, done));
    answered(&mut node, &mut all).unwrap();
    let told = read.visit(&engine::KeyRange::all(), &mut |_| panic!("shown"));
    assert!(matches!(told, Err(engine::Error::Compacted)));
    assert_eq!(handle.engine().stats().history_pins_expired, 1);
}

#[test]
fn changed_bytes_stay_bounded_while_a_log_is_replayed_and_in_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let written = {
        let (mut node, handle) = Setup {
            dirty_bytes_max: 1 << 30,
            ..Setup::default()
        }
        .lead(dir.path());
        // One batch, with far more than may be changed at a time.
        apply_all(
            &mut node,
            (0..4000).map(|i| put(&scattered(i), &"v".repeat(1000))),
        );
        assert!(node.applier.writer().dirty_bytes() > 4 << 20);
        state(&handle)
    };
    let limit = 512 << 10;
    let (mut node, handle) = Setup {
        dirty_bytes_max: limit,
        ..Setup::default()
    }
    .open(dir.path());
    let before = handle.engine().stats().checkpoint;
    node.elect().unwrap();
    let made = handle.engine().stats().checkpoint - before;
    assert!(made >= 4, "{made} checkpoints in the replay");
    assert!(node.applier.writer().dirty_bytes() <= dirty_bound(&node) + (64 << 10));
    let at_replay = handle.engine().stats().checkpoint;
    assert_eq!(state(&handle), written);
    apply_all(
        &mut node,
        (0..4000).map(|i| put(&scattered(i), &"w".repeat(1000))),
    );
    assert!(handle.engine().stats().checkpoint - at_replay >= 4);
    assert!(node.applier.writer().dirty_bytes() <= dirty_bound(&node) + (64 << 10));
}

#[test]
fn memory_that_no_checkpoint_can_empty_takes_no_more_proposals() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup {
        dirty_bytes_max: 256 << 10,
        ..Setup::default()
    }
    .lead(dir.path());
    // As after a checkpoint that found no room.
    node.work.background.retry_at = Instant::now() + Duration::from_secs(3600);
    apply_all(&mut node, (0..1000).map(|i| put(&scattered(i), "v")));
    assert_eq!(
        within(handle.propose(put("k", "v"))).unwrap_err(),
        errors::NO_SPACE
    );
    node.work.background.retry_at = Instant::now();
    node.background().unwrap();
    let proposal = handle.propose(put("k", "v"));
    let mut proposal = std::pin::pin!(proposal);
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    assert!(
        proposal.as_mut().poll(&mut context).is_pending(),
        "it is in the mailbox"
    );
}

#[test]
fn proposals_that_wait_for_a_leader_are_bounded_and_forgotten_with_their_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup::default().open(dir.path());
    assert_eq!(handle.status().leader, 0);
    let payload = Bytes::from(vec![0; 1 << 20]);
    let mut calls = Vec::new();
    for _ in 0..100 {
        let (id, call) = handle.inner.completions.register().unwrap();
        node.take(Input::Propose {
            id,
            payload: payload.clone(),
        });
        calls.push(call);
    }
    node.propose();
    let held = node.work.held.ids.len();
    assert!((60..=64).contains(&held), "{held} MiB wait");
    assert!(node.work.held.bytes <= HELD_BYTES_MAX + payload.len());
    for call in calls.drain(held..) {
        assert_eq!(
            block_on(call).unwrap(),
            Err(errors::TOO_MANY_REQUESTS),
            "the newest are refused"
        );
    }
    node.tick();
    assert_eq!(node.work.held.ids.len(), held, "their calls wait");
    handle
        .inner
        .completions
        .expire(Duration::ZERO, &errors::TIMEOUT);
    node.work.next_expire = Instant::now();
    node.tick();
    assert_eq!((node.work.held.ids.len(), node.work.held.bytes), (0, 0));
}

/// 9.2, 9.6: more than 5000 entries behind nothing more is taken in, and the client is told so as UNKNOWN.
#[test]
fn rule_9_2_a_member_far_behind_takes_no_proposals() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, handle) = Setup::default().lead(dir.path());
    let shared = &handle.inner.shared;
    let applied = shared.applied.load(Ordering::Relaxed);
    shared.committed.store(applied + 5000, Ordering::Relaxed);
    assert!(handle.queue(put("a", "")).is_ok());
    shared.committed.store(applied + 5001, Ordering::Relaxed);
    let refused = handle.queue(put("a", "")).unwrap_err();
    assert_eq!(refused, errors::TOO_MANY_REQUESTS);
    assert_eq!(refused.code, crate::status::Code::Unknown);
    assert_eq!(refused.message, "etcdserver: too many requests");
}

/// 9.3: a proposal ends after 5 s and two election timeouts, whatever the client's deadline.
#[test]
fn rule_9_3_a_proposal_times_out() {
    assert_eq!(Limits::default().request_timeout, Duration::from_secs(7));
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup::default().open(dir.path());
    assert_eq!(handle.status().leader, 0, "nobody takes it");
    let mut call = handle.queue(put("a", "")).unwrap();
    let completions = &handle.inner.completions;
    completions.expire(Duration::from_secs(7), &errors::TIMEOUT);
    assert!(call.try_recv().is_err(), "it has just begun");
    node.handle
        .completions
        .expire(Duration::ZERO, &errors::TIMEOUT);
    let status = call.try_recv().unwrap().unwrap_err();
    assert_eq!(status.code, crate::status::Code::Unavailable);
    assert_eq!(status.message, "etcdserver: request timed out");
    node.tick();
}

#[test]
fn those_whose_callers_went_away_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    for id in 0..10 {
        node.work.reads.insert(id, oneshot::channel().0);
        drop(ask(&mut node, |done| Input::Compacted(1 << 40, done)));
    }
    let mut stays = ask(&mut node, |done| Input::Compacted(1 << 40, done));
    node.work.next_expire = Instant::now();
    node.tick();
    assert!(node.work.reads.is_empty());
    assert_eq!(node.work.compacted.len(), 1);
    assert!(is_waiting(&mut stays));
}

#[test]
fn reads_that_wait_for_their_round_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    let mut calls: Vec<Answer> = (0..1 << 16).map(|_| ask(&mut node, Input::Read)).collect();
    assert!(calls.iter_mut().all(is_waiting));
    let mut refused = ask(&mut node, Input::Read);
    assert_eq!(refused.try_recv(), Ok(Err(errors::TOO_MANY_REQUESTS)));
    node.rounds().unwrap();
    for call in &mut calls {
        assert_eq!(call.try_recv(), Ok(Ok(())));
    }
    assert!(node.work.reads.is_empty());
}

#[test]
fn compactions_that_are_waited_for_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    let mut calls: Vec<Answer> = (0..COMPACTED_WAITERS_MAX)
        .map(|_| ask(&mut node, |done| Input::Compacted(1 << 40, done)))
        .collect();
    assert!(calls.iter_mut().all(is_waiting));
    let mut refused = ask(&mut node, |done| Input::Compacted(1 << 40, done));
    assert_eq!(refused.try_recv(), Ok(Err(errors::TOO_MANY_REQUESTS)));
}

// ---- checkpoints and who waits for them -----------------------------------------------------------

#[test]
fn whoever_waits_for_a_checkpoint_is_not_forgotten_when_it_finds_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    apply_all(&mut node, [put("k", "v"), put("k", "w")].into_iter());
    apply_all(&mut node, [compact(2)].into_iter());
    let mut waits = ask(&mut node, |done| Input::Compacted(2, done));
    while !node.work.background.is_checkpointing() {
        node.background().unwrap();
    }
    node.retry_checkpoint();
    assert!(is_waiting(&mut waits));
    // Nothing is written any more; the wait ends nevertheless.
    node.work.background.retry_at = Instant::now();
    checkpoint(&mut node);
    assert_eq!(waits.try_recv(), Ok(Ok(())));
}

#[test]
fn freeing_the_log_answers_those_who_wait_for_its_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    apply_all(&mut node, [put("k", "v"), put("k", "w")].into_iter());
    apply_all(&mut node, [compact(2)].into_iter());
    let mut compacted = ask(&mut node, |done| Input::Compacted(2, done));
    while !node.work.background.is_checkpointing() {
        node.background().unwrap();
    }
    let mut defragmented = ask(&mut node, Input::Defragment);
    node.reclaim_log().unwrap();
    assert_eq!(compacted.try_recv(), Ok(Ok(())));
    // Its two checkpoints began after the call.
    while is_waiting(&mut defragmented) {
        assert!(!node.work.background.compacting);
        checkpoint(&mut node);
    }
}

#[test]
fn a_defragmentation_is_not_made_longer_by_the_next_and_waits_for_checkpoints_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    apply_all(&mut node, [put("k", "v")].into_iter());
    finish_compaction(&mut node);
    // One that is being written already does not count.
    node.work.background.retry_at = Instant::now();
    node.start_now().unwrap();
    let mut first = ask(&mut node, Input::Defragment);
    node.join_checkpoint().unwrap();
    let mut made = 0;
    let mut later = Vec::new();
    while is_waiting(&mut first) {
        checkpoint(&mut node);
        made += 1;
        later.push(ask(&mut node, Input::Defragment));
    }
    assert!((2..=SHRINK_CHECKPOINTS_MAX).contains(&made), "{made}");
    assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    // The file shrinks no more; the last call has not seen two checkpoints.
    assert!(is_waiting(later.last_mut().unwrap()));
    while later.iter_mut().any(is_waiting) {
        checkpoint(&mut node);
    }
}

#[test]
fn defragmentations_are_bounded_and_given_up_when_no_checkpoint_finds_room() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _handle) = Setup::default().lead(dir.path());
    finish_compaction(&mut node);
    let mut calls: Vec<Answer> = (0..DEFRAGMENTS_MAX)
        .map(|_| ask(&mut node, Input::Defragment))
        .collect();
    let mut refused = ask(&mut node, Input::Defragment);
    assert_eq!(refused.try_recv(), Ok(Err(errors::TOO_MANY_REQUESTS)));
    // A caller that went away makes room.
    calls.pop();
    calls.push(ask(&mut node, Input::Defragment));
    assert!(calls.iter_mut().all(is_waiting));
    for _ in 0..DEFRAGMENT_FAILURES_MAX {
        assert!(calls.iter_mut().all(is_waiting));
        node.retry_checkpoint();
    }
    for call in &mut calls {
        assert_eq!(call.try_recv(), Ok(Err(errors::NO_SPACE)));
    }
    assert!(!node.work.background.is_busy());
}

// ---- disks that fill or fail ------------------------------------------------------------------------

fn nospace_stands(node: &NodeLoop) -> bool {
    node.applier
        .alarms()
        .has(node.handle.identity.member_id, pb::AlarmType::Nospace)
}

#[test]
fn the_alarm_of_a_full_disk_is_raised_as_soon_as_there_is_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    let disk = simdisk::Disk::with_capacity(1, 20 << 20);
    let (mut node, handle) = Setup {
        log_disk: Some(disk),
        ..Setup::default()
    }
    .open(dir.path());
    // The third segment does not fit.
    while !node.log.stats().disk_full {
        std::thread::yield_now();
    }
    assert_eq!(handle.status().leader, 0);
    node.watch_space();
    assert!(node.work.background.alarm_due());
    node.elect().unwrap();
    assert!(!nospace_stands(&node));
    node.work.background.look_at_space_now();
    node.watch_space();
    node.rounds().unwrap();
    assert!(nospace_stands(&node), "it was not forgotten");
    node.work.background.look_at_space_now();
    node.watch_space();
    assert!(!node.work.background.alarm_due());
}

#[test]
fn an_append_that_does_not_become_durable_ends_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let disk = simdisk::Disk::new(1);
    let (mut node, _handle) = Setup {
        log_disk: Some(disk.clone()),
        ..Setup::default()
    }
    .lead(dir.path());
    let said = Arc::new(std::sync::Mutex::new(String::new()));
    let hears = said.clone();
    node.log.set_fatal(Arc::new(move |line| {
        *hears.lock().unwrap() = line.to_owned()
    }));
    let before = node.applier.applied();
    disk.fail_when(|op| op.kind.is_step().then_some(simdisk::Fault::Eio));
    hold(&mut node, [put("k", "v")].into_iter());
    node.propose();
    let ended = node.rounds().unwrap_err();
    assert!(ended.to_string().contains("durable"), "{ended}");
    assert!(said.lock().unwrap().contains("cannot write"), "{said:?}");
    assert_eq!(node.applier.applied(), before, "nothing is applied");
}

/// Keeps what it is told of the log's disk.
#[derive(Default)]
struct Hears(std::sync::Mutex<Vec<raftlog::Stall>>);

impl Observer for Hears {
    fn checkpoint(&self, _took: Duration) {}
    fn compacted(&self, _took: Duration) {}
    fn compaction_slice(&self, _took: Duration) {}
    fn log_appended(&self, _took: Duration) {}
    fn defragmented(&self, _took: Option<Duration>) {}
    fn log_bytes(&self, _total: u64) {}
    fn log_stalled(&self, stall: raftlog::Stall) {
        self.0.lock().unwrap().push(stall);
    }
}

#[test]
fn a_disk_that_hangs_is_told_of_and_calls_end_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = simdisk::Disk::new(1);
    let hears = Arc::new(Hears::default());
    let (thread, handle) = Setup {
        log_disk: Some(disk.clone()),
        observer: hears.clone(),
        stall: Duration::from_millis(4),
        limits: Limits {
            request_timeout: Duration::from_millis(20),
            ..Limits::default()
        },
        ..Setup::default()
    }
    .start(dir.path());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let told = async {
        // A slow machine may take longer than the timeout: it leads in the end.
        while handle.propose(put("k", "1")).await.is_err() {}
        disk.fail_when(move |op| {
            if op.kind == simdisk::OpKind::WriteDsync {
                let _ = released.recv();
            }
            None
        });
        let unanswered = handle.propose(put("k", "2"));
        let mut hangs = handle.log_hangs();
        hangs.wait_for(|h| *h).await.unwrap();
        assert_eq!(unanswered.await.unwrap_err(), errors::TIMEOUT);
        assert!(*handle.log_hangs().borrow(), "it still does");
        // What was acknowledged can be read.
        handle.linearizable().await.unwrap();
        let begun = hears.0.lock().unwrap()[..].first().copied();
        assert!(matches!(begun, Some(raftlog::Stall::Begun(_))), "{begun:?}");
        drop(release);
        hangs.wait_for(|h| !*h).await.unwrap();
        while handle.propose(put("k", "3")).await.is_err() {}
    };
    within(async {
        tokio::select! {
            () = handle.dispatch(0) => unreachable!("it never ends"),
            () = told => {}
        }
    });
    let heard = std::mem::take(&mut *hears.0.lock().unwrap());
    let ended = |s: &raftlog::Stall| matches!(s, raftlog::Stall::Ended(_));
    assert!(heard.iter().any(ended), "{heard:?}");
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_restart_on_a_full_disk_gives_its_segments_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, handle) = Setup {
        log_disk: Some(simdisk::Disk::with_capacity(1, 20 << 20)),
        ..Setup::default()
    }
    .lead(dir.path());
    while !node.log.stats().disk_full {
        std::thread::yield_now();
    }
    // As many as are kept for those who lag, and more than one segment of them.
    let value = "v".repeat(1 << 20);
    apply_all(&mut node, (0..7).map(|i| put(&format!("{i}"), &value)));
    node.watch_space();
    assert!(handle.shared().space_low.load(Ordering::Relaxed));
    apply_all(&mut node, (0..2).map(|_| delete("0")));
    let before = node.log.first_index();
    for _ in 0..2 {
        checkpoint(&mut node);
        node.work.background.look_at_space_now();
        node.watch_space();
    }
    let applied = handle.engine().previous_durable_applied().index;
    assert!(applied > before);
    assert_eq!(
        node.log.first_index(),
        applied,
        "nothing is kept to catch up"
    );
}

fn delete(key: &str) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest {
        delete_range: Some(delete_of(key, "")),
        ..Default::default()
    }
}

#[test]
fn what_frees_space_passes_while_the_alarm_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, handle) = Setup::default().start(dir.path());
    block_on(handle.propose(grant(5))).unwrap();
    let leased = pb::InternalRaftRequest {
        put: Some(pb::PutRequest {
            lease: 5,
            ..put_of("k", "v")
        }),
        ..Default::default()
    };
    block_on(handle.propose(leased)).unwrap();
    let alarm = pb::InternalRaftRequest {
        alarm: Some(pb::AlarmRequest {
            action: pb::alarm_request::AlarmAction::Activate as i32,
            member_id: handle.identity().member_id,
            alarm: pb::AlarmType::Nospace as i32,
        }),
        ..Default::default()
    };
    block_on(handle.propose(alarm)).unwrap();
    handle.stop();
    thread.join().unwrap().unwrap();
    drop(handle);

    // The alarm survives the restart, and lease 5 can still expire.
    let (thread, handle) = Setup::default().start(dir.path());
    block_on(handle.linearizable()).unwrap();
    let refused = block_on(handle.propose(put("k", "w")));
    assert_eq!(refused.unwrap_err(), errors::NO_SPACE);
    let revoke = pb::InternalRaftRequest {
        lease_revoke: Some(pb::LeaseRevokeRequest { id: 5 }),
        ..Default::default()
    };
    block_on(handle.propose(revoke)).unwrap();
    let view = handle.engine().view();
    assert_eq!(view.get(b"k", 0).unwrap(), None);
    drop(view);
    handle.stop();
    thread.join().unwrap().unwrap();
}
