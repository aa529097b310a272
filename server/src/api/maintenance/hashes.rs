//! HashKV's hashes: those that are asked for, and those that etcd keeps of the state before each compaction.
//!
//! A hash reads the whole store. It is taken by one thread, one at a time, from a reader that pins history and no page
//! ([`LongHistory`]), so neither a compaction nor a call waits for the hash of another.
//!
//! Invariants:
//! 1. What is hashed is the state as it was when the call came, or just before the compaction, however long the hash waits
//!    for its turn.
//! 2. At most [`KEPT_MAX`] hashes of compactions are kept or waited for; the oldest goes first. At most [`CALLS_MAX`] calls
//!    wait; beyond, they are refused with `TOO_MANY_REQUESTS`. What nobody waits for any more is not begun.
//! 3. Compactions go before calls: they hold the physical part of compaction back.

use crate::api::{Observer, engine_status};
use crate::apply::CompactionHook;
use crate::status::{Code, Status, errors};
use engine::{HashKv, LongHistory};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::watch;

/// Hashes of compacted revisions kept.
const KEPT_MAX: usize = 10;
/// Calls that may wait for a hash.
const CALLS_MAX: usize = 64;

/// A hash that is waited for.
type Coming = watch::Receiver<Option<Result<HashKv, Status>>>;

/// A hash to be taken.
struct Job {
    revision: i64,
    history: LongHistory,
    done: watch::Sender<Option<Result<HashKv, Status>>>,
}

#[derive(Default)]
struct Jobs {
    compactions: VecDeque<Job>,
    calls: VecDeque<Job>,
    /// A thread is there to take them.
    served: bool,
    /// The hashes at the newest compacted revisions, each of the state just before its compaction.
    kept: VecDeque<(i64, Coming)>,
}

/// The hashes of one member. Cheap to share.
#[derive(Clone)]
pub struct Hashes {
    jobs: Arc<Mutex<Jobs>>,
    observer: Arc<dyn Observer>,
}

impl Hashes {
    /// Tells `observer` of each hash that was taken.
    pub fn new(observer: Arc<dyn Observer>) -> Hashes {
        Hashes {
            jobs: Arc::default(),
            observer,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // Every critical section leaves the queues whole.
        self.jobs.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// The hash of what `history` reads, at a revision of it; 0 is the newest.
    pub(super) async fn hash(&self, revision: i64, history: LongHistory) -> Result<HashKv, Status> {
        let coming = self.ask(revision, history)?;
        arrived(coming).await
    }

    fn ask(&self, revision: i64, history: LongHistory) -> Result<Coming, Status> {
        let mut jobs = self.lock();
        // A caller that went away needs no answer.
        jobs.calls.retain(|job| !job.done.is_closed());
        if jobs.calls.len() >= CALLS_MAX {
            return Err(errors::TOO_MANY_REQUESTS);
        }
        let (done, coming) = watch::channel(None);
        jobs.calls.push_back(Job {
            revision,
            history,
            done,
        });
        self.serve(jobs);
        Ok(coming)
    }

    /// The hash of the state before `revision` was compacted, once it is there.
    pub(super) async fn at(&self, revision: i64) -> Option<HashKv> {
        let kept = |jobs: &Jobs| {
            let found = jobs.kept.iter().find(|(at, _)| *at == revision)?;
            Some(found.1.clone())
        };
        let coming = kept(&self.lock())?;
        arrived(coming).await.ok()
    }

    /// Starts the thread, unless it is there.
    fn serve(&self, mut jobs: MutexGuard<'_, Jobs>) {
        if std::mem::replace(&mut jobs.served, true) {
            return;
        }
        drop(jobs);
        let all = self.clone();
        let started = std::thread::Builder::new()
            .name("hash".into())
            .spawn(move || while all.take_one() {});
        if let Err(error) = started {
            tracing::error!(%error, "cannot start a thread; hashes are not taken");
            let mut jobs = self.lock();
            jobs.served = false;
            // Whoever waits is told by the senders that are dropped.
            jobs.compactions.clear();
            jobs.calls.clear();
        }
    }

    /// Takes the next hash. False: there is none, and the thread ends.
    fn take_one(&self) -> bool {
        let job = {
            let mut jobs = self.lock();
            let job = jobs.compactions.pop_front();
            let job = job.or_else(|| jobs.calls.pop_front());
            jobs.served = job.is_some();
            job
        };
        let Some(job) = job else { return false };
        if !job.done.is_closed() {
            // After a panic, which was printed, whoever waits is told by the sender that is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let since = Instant::now();
                let hash = job.history.hash_kv(job.revision).map_err(engine_status);
                self.observer.hashed_revision(since.elapsed());
                job.done.send_replace(Some(hash));
            }));
        }
        true
    }
}

/// The hash, or that its thread ended without a word.
async fn arrived(mut coming: Coming) -> Result<HashKv, Status> {
    let lost = || Status::fixed(Code::Internal, "the hash ended without a result");
    let arrived = coming.wait_for(Option::is_some).await;
    arrived.map_err(|_| lost())?.clone().ok_or_else(lost)?
}

impl CompactionHook for Hashes {
    fn compacted(&self, revision: i64, before: LongHistory) {
        // As in etcd, nothing is kept of a compaction to nothing.
        if revision <= 0 {
            return;
        }
        let (done, coming) = watch::channel(None);
        let mut jobs = self.lock();
        if jobs.kept.len() == KEPT_MAX {
            jobs.kept.pop_front();
        }
        jobs.kept.push_back((revision, coming));
        // One that was dropped from those kept need not be taken.
        jobs.compactions.retain(|job| !job.done.is_closed());
        jobs.compactions.push_back(Job {
            revision,
            history: before,
            done,
        });
        self.serve(jobs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Api, RequestCtx};
    use crate::limits::Limits;
    use crate::node::Node;
    use crate::testing::req::put_of;
    use crate::testing::{LocalNode, block_on};
    use quorate_proto::etcdserverpb as pb;
    use std::sync::Condvar;
    use std::time::Duration;

    /// Only against hanging for ever.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Keeps the thread that takes hashes, when it has one, until it is opened.
    #[derive(Default)]
    struct Gate {
        open: Mutex<bool>,
        opened: Condvar,
        taken: Mutex<u32>,
        began: Condvar,
    }

    impl Gate {
        fn open(&self) {
            *self.open.lock().unwrap() = true;
            self.opened.notify_all();
        }

        fn wait_for_hash(&self) {
            let taken = self.taken.lock().unwrap();
            let waited = self.began.wait_timeout_while(taken, PATIENCE, |n| *n == 0);
            assert!(!waited.unwrap().1.timed_out(), "no hash is taken");
        }
    }

    impl Observer for Gate {
        fn ranged(&self, _ok: bool, _took: Duration) {}
        fn hashed(&self, _took: Duration) {}
        fn hashed_revision(&self, _took: Duration) {
            *self.taken.lock().unwrap() += 1;
            self.began.notify_all();
            let open = self.open.lock().unwrap();
            let waited = self
                .opened
                .wait_timeout_while(open, PATIENCE, |open| !*open);
            assert!(!waited.unwrap().1.timed_out(), "never opened");
        }
        fn stream_failed(&self, _api: &'static str) {}
    }

    fn gated() -> (Api<LocalNode>, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let api = crate::testing::observed_member(Limits::default(), gate.clone()).0;
        for value in 0..30 {
            put(&api, value);
        }
        (api, gate)
    }

    fn put(api: &Api<LocalNode>, value: u32) {
        let r = put_of(&format!("k{}", value % 7), &value.to_string());
        block_on(api.put(&RequestCtx::default(), r)).unwrap();
    }

    fn compact(api: &Api<LocalNode>, revision: i64) {
        let r = pb::CompactionRequest {
            revision,
            physical: false,
        };
        let ctx = RequestCtx::default();
        let compacted =
            block_on(async { tokio::time::timeout(PATIENCE, api.compact(&ctx, r)).await });
        compacted.expect("waits for a hash").expect("compacts");
    }

    fn hash_kv(api: &Api<LocalNode>, revision: i64) -> Result<HashKv, Status> {
        let r = pb::HashKvRequest { revision };
        let r = block_on(api.hash_kv(&RequestCtx::default(), r))?;
        Ok(HashKv {
            hash: r.hash,
            compact_revision: r.compact_revision,
            hash_revision: r.hash_revision,
        })
    }

    #[test]
    fn neither_compactions_nor_puts_wait_for_a_hash() {
        let (api, gate) = gated();
        let view = api.node.engine().view();
        let before = |revision| view.hash_kv(revision).unwrap();
        let (now, at_five) = (before(0), before(5));
        std::thread::scope(|scope| {
            let call = scope.spawn(|| hash_kv(&api, 0));
            gate.wait_for_hash();
            // The store is being hashed, and will be for as long as we like.
            compact(&api, 5);
            put(&api, 30);
            let at_nine = api.node.engine().view().hash_kv(9).unwrap();
            compact(&api, 9);
            put(&api, 31);
            let stats = api.node.engine().stats();
            assert_eq!(
                (stats.history_pins, stats.oldest_history_pin),
                (3, Some(-1))
            );
            gate.open();
            assert_eq!(call.join().unwrap(), Ok(now));
            // Of the states just before each compaction.
            assert_eq!(hash_kv(&api, 5), Ok(at_five));
            assert_eq!(hash_kv(&api, 9), Ok(at_nine));
            assert_eq!(
                (at_five.compact_revision, at_nine.compact_revision),
                (-1, 5)
            );
            assert_eq!(hash_kv(&api, 8), Err(errors::COMPACTED));
        });
        // Once all are taken nothing holds the physical part back.
        block_on(api.node.compacted(9)).unwrap();
        assert_eq!(api.node.engine().view().compact_done(), 9);
    }

    #[test]
    fn what_waits_for_a_hash_is_bounded() {
        let (api, gate) = gated();
        let engine = api.node.engine();
        let ask = || api.hashes.ask(0, engine.long_history().unwrap());
        let first = ask().unwrap();
        gate.wait_for_hash();
        let calls: Vec<Coming> = (0..CALLS_MAX).map(|_| ask().unwrap()).collect();
        assert_eq!(ask().err(), Some(errors::TOO_MANY_REQUESTS));
        drop(calls);
        let again = ask().expect("nobody waits for the others");
        assert_eq!(engine.stats().history_pins, 2);
        for revision in 2..=20 {
            compact(&api, revision);
        }
        assert_eq!(engine.stats().history_pins, 2 + KEPT_MAX as u64);
        gate.open();
        for (call, compact_revision) in [(first, -1), (again, -1)] {
            assert_eq!(
                block_on(arrived(call)).unwrap().compact_revision,
                compact_revision
            );
        }
        assert_eq!(block_on(api.hashes.at(10)), None);
        for revision in 11..=20 {
            let hash = block_on(api.hashes.at(revision)).expect("is kept");
            assert_eq!(
                (hash.hash_revision, hash.compact_revision),
                (revision, revision - 1)
            );
        }
        assert_eq!(*gate.taken.lock().unwrap(), 2 + KEPT_MAX as u32);
    }
}
