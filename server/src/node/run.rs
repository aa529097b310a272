//! The one loop in which consensus, the log, apply and the readers meet. Durability order is decided
//! here and nowhere else.
//!
//! A round: take everything that gathered, propose it as one message, make the entries durable with
//! one write, apply what is committed as one batch, publish the view, feed the watchers, answer.
//! While a round works the next one gathers; there are no timers on this path.
//!
//! Invariants:
//! 1. An entry is applied only after the log says it is durable here.
//! 2. A view is published before the watchers and the waiting calls hear of it.
//! 3. A checkpoint is of an applied, hence durable, state. The log is trimmed only below the applied
//!    index of the checkpoint before the newest durable one.
//! 4. Bytes changed in memory stay below [`DIRTY_PERCENT_MAX`] of the checkpoint threshold plus what
//!    one entry changes, also while a log is replayed and while history is compacted: what would go
//!    beyond waits for a checkpoint. Long before, batches are slowed down in proportion to how far they are
//!    ahead of the checkpoint, so that full memory is met rarely.
//! 5. However the loop ends, by a panic too, whoever waits for it is told, and nobody can begin to wait.
//! 6. Everything that waits here is bounded: see [`HELD_BYTES_MAX`] and [`COMPACTED_WAITERS_MAX`], and
//!    `background` for its own.
//!
//! The log write is waited for on this thread: with one voter there is nothing else to do meanwhile,
//! and a hand-over to a log thread and back would cost more than the write of a fast disk. Reads and
//! watches never pass through here. If that disk hangs, a thread that only watches says so
//! ([`NodeHandle::log_hangs`]), and calls still end by their timeout.

use super::background::{Background, RECLAIM_TRIES};
use super::completions::{Completions, Outcome};
use super::handle::{
    EXPIRE_INTERVAL, HandleInner, Input, MAILBOX_BYTES_MAX, NodeHandle, PROPOSAL_BYTES, Shared,
};
use super::mailbox::{Drained, Mailbox};
use super::{Identity, Observer};
use crate::apply::Applier;
use crate::limits::Limits;
use crate::status::{Status, errors};
use crate::watch::Feed;
use bytes::Bytes;
use consensus::{ConfChange, EntryKind, Replica, Verdict, Wire};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A checkpoint is made this long after a change even if little has changed.
pub(super) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
/// How often a running checkpoint or job is looked at when nothing else wakes the loop.
const JOB_POLL: Duration = Duration::from_millis(2);
/// Quiet after which the end of the log is sealed.
const IDLE: Duration = Duration::from_millis(50);
/// Dirty bytes, in percent of the checkpoint threshold, beyond which proposals wait for the checkpoint.
pub use engine::DIRTY_PERCENT_MAX;
/// How long a batch waits at most because changes are ahead of the checkpoint being written. Ticks wait with it.
pub(super) const SLOWED_MAX: Duration = Duration::from_millis(20);
/// Bytes of proposals that wait for a leader at most; beyond, the newest are refused with
/// `TOO_MANY_REQUESTS`. A proposal whose call has ended is forgotten.
pub const HELD_BYTES_MAX: usize = MAILBOX_BYTES_MAX;
/// Physical compactions that may be waited for at a time; the others are refused with
/// `TOO_MANY_REQUESTS`.
pub const COMPACTED_WAITERS_MAX: usize = 1024;

pub(super) type Waiter = oneshot::Sender<Result<(), Status>>;

/// Answers a call that may have been given up meanwhile.
pub(super) fn answer(waiter: Waiter, result: Result<(), Status>) {
    let _ = waiter.send(result);
}

/// Why the loop ended by itself; the process must end too.
#[derive(Debug)]
pub struct Fatal(pub String);

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

pub(super) fn fatal(what: impl std::fmt::Display) -> Fatal {
    Fatal(what.to_string())
}

/// An entry as the log stores it.
pub fn to_log(entry: &consensus::Entry) -> raftlog::Entry {
    raftlog::Entry {
        index: entry.index,
        term: entry.term,
        kind: entry.kind.number(),
        data: entry.data.clone(),
    }
}

/// What a node is made of.
pub struct Parts {
    /// Who this member is.
    pub identity: Identity,
    /// Admission limits.
    pub limits: Limits,
    /// For readers.
    pub engine: engine::Engine,
    /// Owns the engine's writer.
    pub applier: Applier,
    /// The log, recovered.
    pub log: raftlog::Log,
    /// Consensus, before its first tick.
    pub replica: Replica,
    /// Where published batches go.
    pub feed: Arc<Feed>,
    /// Hears of background work.
    pub observer: Arc<dyn Observer>,
    /// Network threads, each of which runs `NodeHandle::dispatch`.
    pub network_threads: usize,
    /// Time between two ticks of consensus.
    pub tick: Duration,
    /// Entries kept in the log behind a checkpoint.
    pub catchup_entries: u64,
    /// Changed bytes at which a checkpoint begins.
    pub dirty_bytes_max: u64,
    /// A durable write of the log that takes longer than this means that the disk hangs.
    pub stall: Duration,
}

/// Everything the node thread owns.
pub struct NodeLoop {
    /// In front, so that whoever waits is told before the parts below close their files.
    pub(super) work: Work,
    pub(super) handle: Arc<HandleInner>,
    pub(super) replica: Replica,
    pub(super) log: raftlog::Log,
    pub(super) applier: Applier,
    pub(super) feed: Arc<Feed>,
    pub(super) observer: Arc<dyn Observer>,
    tick: Duration,
    pub(super) catchup_entries: u64,
    pub(super) dirty_bytes_max: u64,
    stall: Duration,
}

/// What is under way.
pub(super) struct Work {
    pub next_tick: Instant,
    pub next_expire: Instant,
    /// When the log last took something that no seal covers yet.
    unsealed: Option<Instant>,
    /// Proposals of this turn, or waiting for a leader: ids and payloads.
    held: Held,
    /// Reads whose round is not over, by context.
    pub reads: BTreeMap<u64, Waiter>,
    /// Contexts of confirmed reads and the index they wait for.
    confirmed: Vec<(u64, u64)>,
    next_read: u64,
    results: Vec<(u64, Outcome)>,
    stopping: bool,
    /// Calls that wait for history up to a revision to be gone.
    pub compacted: Vec<(i64, Waiter)>,
    pub background: Background,
}

/// Proposals that are not yet with consensus.
#[derive(Default)]
struct Held {
    ids: Vec<u64>,
    payloads: Vec<Bytes>,
    bytes: usize,
}

impl Held {
    /// Takes one, or hands it back if that is too much.
    fn take(&mut self, id: u64, payload: Bytes) -> Result<(), u64> {
        if self.bytes >= HELD_BYTES_MAX {
            return Err(id);
        }
        self.bytes += payload.len() + PROPOSAL_BYTES;
        self.ids.push(id);
        self.payloads.push(payload);
        Ok(())
    }

    /// Keeps those whose id is still waited for.
    fn retain(&mut self, mut waits: impl FnMut(u64) -> bool) {
        let old = std::mem::take(self);
        for (id, payload) in old.ids.into_iter().zip(old.payloads) {
            if waits(id) {
                self.bytes += payload.len() + PROPOSAL_BYTES;
                self.ids.push(id);
                self.payloads.push(payload);
            }
        }
    }
}

impl Work {
    fn new(background: Background) -> Work {
        let now = Instant::now();
        Work {
            next_tick: now,
            next_expire: now + EXPIRE_INTERVAL,
            unsealed: None,
            held: Held::default(),
            reads: BTreeMap::new(),
            confirmed: Vec::new(),
            next_read: 0,
            results: Vec::new(),
            stopping: false,
            compacted: Vec::new(),
            background,
        }
    }
}

/// Tells everyone that the loop has ended, also when it ended by a panic: calls must not wait, and the
/// process must not live on, behind a node that is gone.
struct Ended(Arc<HandleInner>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.shared.reads_local.store(false, Ordering::Release);
        self.0.mailbox.close();
        // Nobody takes these any more; dropped, they end the calls that sent them.
        self.0.mailbox.drain(&mut Vec::new());
        self.0.completions.close();
        self.0.stopped.send_replace(true);
    }
}

impl NodeLoop {
    /// Puts the parts together. The loop runs with [`NodeLoop::run`]; the handle works at once, calls
    /// wait until then.
    pub fn new(parts: Parts) -> (NodeLoop, NodeHandle) {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let boot_ms = since.map_or(0, |d| d.as_millis() as u64);
        let view = parts.engine.view();
        let (applied, compact_done) = (view.applied(), view.compact_done());
        drop(view);
        let mut limits = parts.limits;
        // What the log cannot take must be refused before it is proposed.
        limits.request_bytes_max = limits.request_bytes_max.min(parts.log.entry_bytes_max());
        let handle = Arc::new(HandleInner {
            mailbox: Mailbox::new(MAILBOX_BYTES_MAX),
            completions: Completions::new(parts.network_threads, parts.identity.member_id, boot_ms),
            shared: Shared::default(),
            engine: parts.engine,
            identity: parts.identity,
            limits,
            stopped: tokio::sync::watch::Sender::new(false),
            log_hangs: tokio::sync::watch::Sender::new(false),
        });
        handle
            .shared
            .applied
            .store(applied.index, Ordering::Release);
        let node = NodeLoop {
            handle: handle.clone(),
            replica: parts.replica,
            log: parts.log,
            applier: parts.applier,
            feed: parts.feed,
            observer: parts.observer,
            tick: parts.tick,
            catchup_entries: parts.catchup_entries,
            dirty_bytes_max: parts.dirty_bytes_max,
            stall: parts.stall,
            work: Work::new(Background::new(applied.index, compact_done)),
        };
        (node, NodeHandle { inner: handle })
    }

    /// Runs until the handle asks to stop. An error means state that cannot be trusted further.
    pub fn run(mut self) -> Result<(), Fatal> {
        let _ended = Ended(self.handle.clone());
        let result = self.serve();
        if result.is_ok() {
            // Seals the end of the log; after an error nothing more is written.
            self.log.close();
        }
        result
    }

    /// Has it told, on another thread, when the log's disk hangs: this one waits for it then.
    fn watch_log(&mut self) -> Result<(), Fatal> {
        let (handle, observer) = (self.handle.clone(), self.observer.clone());
        let hook = move |stall| {
            let hangs = !matches!(stall, raftlog::Stall::Ended(_));
            observer.log_stalled(stall);
            handle.log_hangs.send_replace(hangs);
        };
        let watching = self.log.set_on_stall(self.stall, Box::new(hook));
        watching.map_err(|e| fatal(format!("cannot watch the log's disk: {e}")))
    }

    fn serve(&mut self) -> Result<(), Fatal> {
        self.watch_log()?;
        self.elect()?;
        self.first_checkpoint()?;
        let mut inputs = Vec::new();
        while !self.work.stopping {
            let deadline = self.deadline();
            if self.handle.mailbox.wait(&mut inputs, Some(deadline)) == Drained::Closed {
                break;
            }
            for input in inputs.drain(..) {
                self.take(input);
            }
            self.propose();
            self.tick();
            self.watch_space();
            self.rounds()?;
            self.background()?;
        }
        self.last_checkpoint()
    }

    /// A sole voter elects itself at once; others wait for ticks.
    pub(super) fn elect(&mut self) -> Result<(), Fatal> {
        // Nobody may campaign before the committed conf changes of the log are applied.
        self.rounds()?;
        if self.replica.status().is_sole_voter {
            self.replica.campaign();
        }
        self.rounds()
    }

    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::Propose { id, payload } => {
                if let Err(id) = self.work.held.take(id, payload) {
                    self.refuse(id, errors::TOO_MANY_REQUESTS);
                }
            }
            Input::Read(done) => {
                self.work.next_read += 1;
                match self.replica.read(self.work.next_read) {
                    Ok(()) => {
                        self.work.reads.insert(self.work.next_read, done);
                    }
                    // As many wait already as consensus keeps.
                    Err(consensus::ReadError::Full) => {
                        answer(done, Err(errors::TOO_MANY_REQUESTS));
                    }
                    Err(consensus::ReadError::NoLeader) => answer(done, Err(errors::NO_LEADER)),
                }
            }
            Input::Compacted(_, done) if self.work.compacted.len() >= COMPACTED_WAITERS_MAX => {
                answer(done, Err(errors::TOO_MANY_REQUESTS));
            }
            Input::Compacted(revision, done) => {
                self.work.compacted.push((revision, done));
                self.work.background.compacting = true;
            }
            Input::Defragment(done) => self.defragment(done),
            Input::Stop => self.work.stopping = true,
        }
    }

    fn refuse(&mut self, id: u64, status: Status) {
        self.handle
            .shared
            .proposals_failed
            .fetch_add(1, Ordering::Relaxed);
        self.handle
            .completions
            .complete(&mut vec![(id, Err(status))]);
    }

    /// Hands over what was taken. Without a leader it stays here; its calls end by their timeout.
    pub(super) fn propose(&mut self) {
        if self.work.held.ids.is_empty() || self.replica.status().leader == 0 {
            return;
        }
        self.work.held.bytes = 0;
        let payloads = std::mem::take(&mut self.work.held.payloads);
        let proposed = self.replica.propose(payloads);
        if let Err(error) = &proposed {
            tracing::debug!(%error, "proposals dropped");
        }
        if let Err(consensus::ProposeError::Full) = proposed {
            for id in std::mem::take(&mut self.work.held.ids) {
                self.refuse(id, errors::TOO_MANY_REQUESTS);
            }
        }
        // As in etcd one that is dropped for another reason ends by its timeout.
        self.work.held.ids.clear();
    }

    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.work.next_tick {
            self.replica.tick();
            self.work.next_tick = now + self.tick;
        }
        if let Some(since) = self.work.unsealed
            && now.duration_since(since) >= IDLE
        {
            // The last batch gets a witness too: from now on damage to it is no torn tail.
            self.log.idle();
            self.log.sync();
            self.work.unsealed = None;
        }
        if now >= self.work.next_expire {
            self.handle.expire();
            // Of those who went away nobody else would ask.
            let completions = &self.handle.completions;
            self.work.held.retain(|id| completions.waits(id));
            self.work.reads.retain(|_, waiter| !waiter.is_closed());
            self.work
                .compacted
                .retain(|(_, waiter)| !waiter.is_closed());
            self.work.next_expire = now + EXPIRE_INTERVAL;
        }
    }

    /// Runs consensus until it has nothing more to hand out, then makes the results visible.
    pub(super) fn rounds(&mut self) -> Result<(), Fatal> {
        while let Some(ready) = self.replica.ready() {
            if let Some(soft) = &ready.soft {
                self.led_by(soft.leader);
            }
            // Messages of a leader may leave before its own write; there is no peer to send to yet.
            if let Some(task) = ready.wal {
                self.persist(&task)?;
                let (_messages, persisted) = task.durable();
                self.replica.persisted(persisted);
            }
            self.apply(ready.committed)?;
            self.bound_dirty()?;
            for read in ready.reads {
                self.work.confirmed.push((read.ctx, read.index));
            }
            for ctx in ready.reads_aborted {
                self.answer_read(ctx, Err(errors::LEADER_CHANGED));
            }
        }
        self.answer_confirmed();
        let status = self.replica.status();
        let shared = &self.handle.shared;
        shared.term.store(status.term, Ordering::Release);
        shared.committed.store(status.commit, Ordering::Release);
        Ok(())
    }

    fn led_by(&mut self, leader: u64) {
        let shared = &self.handle.shared;
        let before = shared.leader.swap(leader, Ordering::AcqRel);
        if leader != before && leader != 0 {
            shared.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes the entries and the hard state of a task durable.
    fn persist(&mut self, task: &consensus::WalTask) -> Result<(), Fatal> {
        let entries: Vec<raftlog::Entry> = task.entries.iter().map(to_log).collect();
        let hard_state = task.hard_state.map(|h| raftlog::HardState {
            term: h.term,
            vote: h.vote,
            commit: h.commit,
        });
        if !task.has_writes() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut appended = self.log.append(&entries, hard_state);
        self.observer.log_appended(begun.elapsed());
        for _ in 0..RECLAIM_TRIES {
            if !matches!(appended, Err(raftlog::AppendError::NoSpace)) {
                break;
            }
            self.reclaim_log()?;
            appended = self.log.append(&entries, hard_state);
        }
        let appended = appended.map_err(|e| fatal(format!("the log takes no more: {e}")))?;
        // Checkpoints and what else writes or reads in the background let the log go first.
        let durable = self.handle.engine.log_write(|| self.log.sync());
        if !durable.covers(appended) {
            return Err(fatal("the log could not make an append durable"));
        }
        self.work.unsealed = Some(Instant::now());
        Ok(())
    }

    /// Applies a committed batch and makes it visible as one.
    fn apply(&mut self, committed: Vec<consensus::Entry>) -> Result<(), Fatal> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        let last = last.index;
        let mut verdicts = Vec::new();
        self.skip_unwatched();
        let mut read_ahead = 0;
        for (n, entry) in committed.iter().enumerate() {
            if n == read_ahead {
                // The data of a conf change has no keys in it.
                read_ahead += self
                    .applier
                    .read_ahead(committed[n..].iter().map(|e| &e.data));
            }
            match entry.kind {
                EntryKind::Normal => {
                    let done = self.applier.apply(entry.index, entry.term, &entry.data);
                    self.work.results.extend(done.map_err(fatal)?);
                }
                EntryKind::ConfChange => {
                    let outcome =
                        self.applier
                            .apply_conf_change(entry.index, entry.term, &entry.data);
                    // One applied before a restart gets no second verdict: the configuration that
                    // consensus booted with has it.
                    let outcome = outcome.map_err(fatal)?;
                    let execute = outcome.as_ref().is_some_and(|o| o.to_consensus);
                    verdicts.push(self.verdict(entry, execute)?);
                    if let Some(outcome) = outcome {
                        self.work.results.push((outcome.request_id, outcome.result));
                    }
                }
            }
            // A long batch is divided so that a checkpoint begins in time.
            let full = self.is_too_dirty() || self.applier.writer().checkpoint_due();
            if entry.index == last || full {
                self.replica
                    .applied(entry.index, std::mem::take(&mut verdicts));
                self.publish(entry.index, entry.term)?;
                if entry.index < last {
                    self.bound_dirty()?;
                    self.skip_unwatched();
                }
            }
        }
        Ok(())
    }

    fn skip_unwatched(&mut self) {
        if self.feed.watchers() == 0 {
            // Whoever comes before the publication is caught up from history.
            self.applier.writer().skip_events();
        }
    }

    /// Consensus executes only what apply accepted.
    fn verdict(&self, entry: &consensus::Entry, accepted: bool) -> Result<Verdict, Fatal> {
        let change = match accepted {
            true => Some(ConfChange::decode(entry.data.clone()).map_err(fatal)?),
            false => None,
        };
        Ok(Verdict {
            index: entry.index,
            accepted: change,
        })
    }

    pub(super) fn publish(&mut self, index: u64, term: u64) -> Result<(), Fatal> {
        let published = self.applier.publish(index, term).map_err(fatal)?;
        let shared = &self.handle.shared;
        shared.applied.store(index, Ordering::Release);
        self.feed.published(&published);
        self.handle.completions.complete(&mut self.work.results);
        // From now on what is applied here is all there is, as long as nobody else can vote.
        let status = self.replica.status();
        // A backlog from before the start may come out in several batches; until the last of them a
        // read could miss what was acknowledged then.
        let caught_up = self
            .replica
            .read_index_now()
            .is_some_and(|committed| committed <= index);
        shared.reads_local.store(
            status.is_sole_voter && status.role == consensus::Role::Leader && caught_up,
            Ordering::Release,
        );
        if published.view.compact_done() < published.view.compact_revision() {
            self.work.background.compacting = true;
        }
        Ok(())
    }

    /// Answers the reads whose index is applied by now.
    fn answer_confirmed(&mut self) {
        let applied = self.applier.applied().index;
        let (ready, waiting) = std::mem::take(&mut self.work.confirmed)
            .into_iter()
            .partition(|(_, index)| *index <= applied);
        self.work.confirmed = waiting;
        let ready: Vec<(u64, u64)> = ready;
        for (ctx, _) in ready {
            self.answer_read(ctx, Ok(()));
        }
    }

    fn answer_read(&mut self, ctx: u64, result: Result<(), Status>) {
        // The call may have timed out meanwhile.
        if let Some(waiter) = self.work.reads.remove(&ctx) {
            answer(waiter, result);
        }
    }

    fn deadline(&mut self) -> Instant {
        let now = Instant::now();
        if self.may_compact() || self.may_move() {
            return now;
        }
        let mut next = self.work.next_tick.min(self.work.next_expire);
        if let Some(due) = self.work.background.compact_at()
            && due > now
        {
            next = next.min(due);
        }
        if self.work.background.is_busy() {
            return next.min(now + JOB_POLL);
        }
        next
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
