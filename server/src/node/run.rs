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
//! 4. Background work (compaction slices, checkpoint bookkeeping) runs between rounds, in slices, and
//!    never while calls wait in the mailbox for longer than one slice.
//!
//! The log write is waited for on this thread: with one voter there is nothing else to do meanwhile,
//! and a hand-over to a log thread and back would cost more than the write of a fast disk. Reads and
//! watches never pass through here.

use super::completions::{Completions, Outcome};
use super::handle::{HandleInner, Input, MAILBOX_BYTES_MAX, NodeHandle, Shared};
use super::mailbox::{Drained, Mailbox};
use super::{Identity, Observer};
use crate::apply::Applier;
use crate::limits::Limits;
use crate::status::{Status, errors};
use crate::watch::Feed;
use bytes::Bytes;
use consensus::{ConfChange, EntryKind, Replica, Verdict, Wire};
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A checkpoint is made this long after a change even if little has changed.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
/// How often a running checkpoint or job is looked at when nothing else wakes the loop.
const JOB_POLL: Duration = Duration::from_millis(2);
/// Quiet after which the end of the log is sealed.
const IDLE: Duration = Duration::from_millis(50);
/// How often the free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// How long after a defragmentation the space is taken to have come free.
const SPACE_RECHECK: Duration = Duration::from_secs(2);
/// Checkpoints one defragmentation makes at most while the file goes on shrinking.
const SHRINK_CHECKPOINTS_MAX: u32 = 4096;
/// Bytes moved between two batches while a defragmentation runs: some tens of microseconds.
const DEFRAGMENT_SLICE: usize = 128 << 10;
/// Wait after a checkpoint that found no room.
const CHECKPOINT_RETRY: Duration = Duration::from_millis(500);
/// Tries to free log segments before the member gives up, and the wait after each.
const RECLAIM_TRIES: usize = 10;
const RECLAIM_PAUSE: Duration = Duration::from_millis(200);
/// How often calls that wait too long are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(500);
/// Dirty bytes, in percent of the checkpoint threshold, beyond which proposals wait for the checkpoint.
pub const DIRTY_PERCENT_MAX: u64 = 125;

type Waiter = oneshot::Sender<Result<(), Status>>;

/// Why the loop ended by itself; the process must end too.
#[derive(Debug)]
pub struct Fatal(pub String);

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

fn fatal(what: impl std::fmt::Display) -> Fatal {
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

/// A defragmentation on its way.
struct Defragment {
    since: Instant,
    /// Checkpoints made so far.
    made: u32,
    /// More waits to be moved before the next checkpoint.
    moving: bool,
    /// Durable checkpoints still to come, each started after the one before.
    checkpoints_left: u8,
    waiters: Vec<Waiter>,
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
}

/// Everything the node thread owns.
pub struct NodeLoop {
    handle: Arc<HandleInner>,
    replica: Replica,
    log: raftlog::Log,
    applier: Applier,
    feed: Arc<Feed>,
    observer: Arc<dyn Observer>,
    tick: Duration,
    catchup_entries: u64,
    dirty_bytes_max: u64,
    work: Work,
}

/// What is under way besides requests.
struct Work {
    next_tick: Instant,
    next_expire: Instant,
    next_space: Instant,
    /// No checkpoint before this: the last one found no room.
    retry_at: Instant,
    /// The checkpoint being written: its number, and how far compaction was done in it.
    checkpoint: Option<(u64, i64)>,
    last_checkpoint: Instant,
    /// Applied index of the last checkpoint started.
    checkpoint_applied: u64,
    checkpoint_wanted: bool,
    trimmed_to: u64,
    compacting: bool,
    compacting_since: Option<Instant>,
    /// The last compaction that was finished, -1 before the first.
    compact_done: i64,
    /// When the log last took something that no seal covers yet.
    unsealed: Option<Instant>,
    compacted: Vec<(i64, Waiter)>,
    defragment: Option<Defragment>,
    /// Reads whose round is not over, by context.
    reads: Vec<(u64, Waiter)>,
    /// Contexts of confirmed reads and the index they wait for.
    confirmed: Vec<(u64, u64)>,
    next_read: u64,
    results: Vec<(u64, Outcome)>,
    stopping: bool,
}

impl Work {
    fn new(applied: u64, compact_done: i64) -> Work {
        let now = Instant::now();
        Work {
            next_tick: now,
            next_expire: now + EXPIRE_INTERVAL,
            next_space: now,
            retry_at: now,
            checkpoint: None,
            last_checkpoint: now,
            checkpoint_applied: applied,
            checkpoint_wanted: false,
            trimmed_to: 0,
            compacting: true,
            compacting_since: None,
            compact_done,
            unsealed: None,
            compacted: Vec::new(),
            defragment: None,
            reads: Vec::new(),
            confirmed: Vec::new(),
            next_read: 0,
            results: Vec::new(),
            stopping: false,
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
        let handle = Arc::new(HandleInner {
            mailbox: Mailbox::new(MAILBOX_BYTES_MAX),
            completions: Completions::new(parts.network_threads, parts.identity.member_id, boot_ms),
            shared: Shared::default(),
            engine: parts.engine,
            identity: parts.identity,
            limits: parts.limits,
            stopped: tokio::sync::watch::Sender::new(false),
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
            work: Work::new(applied.index, compact_done),
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

    fn serve(&mut self) -> Result<(), Fatal> {
        self.elect()?;
        let mut inputs = Vec::new();
        let mut proposals = Vec::new();
        while !self.work.stopping {
            let deadline = self.deadline();
            if self.handle.mailbox.wait(&mut inputs, Some(deadline)) == Drained::Closed {
                break;
            }
            for input in inputs.drain(..) {
                self.take(input, &mut proposals);
            }
            // Without a leader proposals wait here; their calls end by their timeout. What may gather is
            // bounded by the calls that the network layer admits in that time.
            if !proposals.is_empty() && self.replica.status().leader != 0 {
                self.propose(&mut proposals);
            }
            self.tick();
            self.watch_space();
            self.rounds()?;
            self.background()?;
        }
        self.last_checkpoint()
    }

    /// A sole voter elects itself at once; others wait for ticks.
    fn elect(&mut self) -> Result<(), Fatal> {
        // Nobody may campaign before the committed conf changes of the log are applied.
        self.rounds()?;
        if self.replica.status().is_sole_voter {
            self.replica.campaign();
        }
        self.rounds()
    }

    fn take(&mut self, input: Input, proposals: &mut Vec<Bytes>) {
        match input {
            Input::Propose(payload) => proposals.push(payload),
            Input::Read(done) => {
                self.work.next_read += 1;
                match self.replica.read(self.work.next_read) {
                    Ok(()) => self.work.reads.push((self.work.next_read, done)),
                    Err(error) => {
                        tracing::debug!(%error, "read not started");
                        // The call may have timed out meanwhile.
                        let _ = done.send(Err(errors::NO_LEADER));
                    }
                }
            }
            Input::Compacted(revision, done) => {
                self.work.compacted.push((revision, done));
                self.work.compacting = true;
            }
            Input::Defragment(done) => match &mut self.work.defragment {
                // The one under way began before this call; it must see two checkpoints after it.
                Some(job) => {
                    job.checkpoints_left = 2;
                    job.waiters.push(done);
                }
                None => {
                    self.observer.defragmented(None);
                    self.work.defragment = Some(Defragment {
                        since: Instant::now(),
                        made: 0,
                        moving: false,
                        checkpoints_left: 2,
                        waiters: vec![done],
                    });
                }
            },
            Input::Stop => self.work.stopping = true,
        }
    }

    fn propose(&mut self, proposals: &mut Vec<Bytes>) {
        if let Err(error) = self.replica.propose(std::mem::take(proposals)) {
            // As in etcd a proposal that cannot be taken is dropped; its call ends by its timeout.
            tracing::debug!(%error, "proposals dropped");
        }
    }

    fn tick(&mut self) {
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
            let limits = &self.handle.limits;
            let expired = self
                .handle
                .completions
                .expire(limits.request_timeout, &errors::TIMEOUT);
            self.handle
                .shared
                .proposals_failed
                .fetch_add(expired as u64, Ordering::Relaxed);
            self.work.next_expire = now + EXPIRE_INTERVAL;
        }
    }

    /// Runs consensus until it has nothing more to hand out, then makes the results visible.
    fn rounds(&mut self) -> Result<(), Fatal> {
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
        let mut appended = self.log.append(&entries, hard_state);
        for _ in 0..RECLAIM_TRIES {
            if !matches!(appended, Err(raftlog::AppendError::NoSpace)) {
                break;
            }
            self.reclaim_log()?;
            appended = self.log.append(&entries, hard_state);
        }
        appended.map_err(|e| fatal(format!("the log takes no more: {e}")))?;
        self.log.sync();
        self.work.unsealed = Some(Instant::now());
        Ok(())
    }

    /// Applies a committed batch and makes it visible as one.
    fn apply(&mut self, committed: Vec<consensus::Entry>) -> Result<(), Fatal> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        let (index, term) = (last.index, last.term);
        let mut verdicts = Vec::new();
        if self.feed.watchers() == 0 {
            // Whoever comes before the publication is caught up from history.
            self.applier.writer().skip_events();
        }
        for entry in &committed {
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
        }
        self.replica.applied(index, verdicts);
        self.publish(index, term)
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

    fn publish(&mut self, index: u64, term: u64) -> Result<(), Fatal> {
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
            self.work.compacting = true;
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
        if let Some(at) = self.work.reads.iter().position(|(id, _)| *id == ctx) {
            // The call may have timed out meanwhile.
            let _ = self.work.reads.swap_remove(at).1.send(result);
        }
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let moving = self.work.defragment.as_ref().is_some_and(|job| job.moving);
        if self.work.compacting || moving {
            return now;
        }
        let next = self.work.next_tick.min(self.work.next_expire);
        if self.work.checkpoint.is_some() || self.work.defragment.is_some() {
            return next.min(now + JOB_POLL);
        }
        next
    }

    fn background(&mut self) -> Result<(), Fatal> {
        self.compact_slice()?;
        self.finish_checkpoint()?;
        self.defragment_slice()?;
        self.start_checkpoint()?;
        self.bound_dirty()
    }

    fn defragment_slice(&mut self) -> Result<(), Fatal> {
        if let Some(job) = &mut self.work.defragment {
            let step = self.applier.writer().defragment_step(DEFRAGMENT_SLICE);
            job.moving = step.map_err(fatal)?;
        }
        Ok(())
    }

    /// Memory and the room a checkpoint needs are bounded by waiting here, with the mailbox as the queue
    /// that then fills.
    fn bound_dirty(&mut self) -> Result<(), Fatal> {
        let limit = self.dirty_bytes_max * DIRTY_PERCENT_MAX / 100;
        if self.applier.writer().dirty_bytes() <= limit {
            return Ok(());
        }
        if let Some((number, _)) = self.work.checkpoint {
            self.await_checkpoint(number)?;
            self.finish_checkpoint()?;
        }
        self.start_checkpoint()
    }

    fn compact_slice(&mut self) -> Result<(), Fatal> {
        if !self.work.compacting {
            return Ok(());
        }
        let since = *self.work.compacting_since.get_or_insert_with(Instant::now);
        let progress = self
            .applier
            .writer()
            .compact_step(engine::Budget::default())
            .map_err(fatal)?;
        if progress == engine::CompactProgress::Done {
            self.work.compacting = false;
            self.work.compacting_since = None;
            let done = self.applier.writer().compact_done();
            if done > self.work.compact_done {
                self.work.compact_done = done;
                self.observer.compacted(since.elapsed());
                tracing::info!(
                    compact_revision = done,
                    took = format!("{:?}", since.elapsed()),
                    "finished scheduled compaction"
                );
            }
            let applied = self.applier.applied();
            self.publish(applied.index, applied.term)?;
            if !self.work.compacted.is_empty() {
                self.work.checkpoint_wanted = true;
            }
        }
        Ok(())
    }

    /// Notices a disk that fills, in the log's directory or the store's: raises the alarm, lets nothing
    /// in that takes space, and makes checkpoints so that log segments come free.
    fn watch_space(&mut self) {
        let now = Instant::now();
        if now < self.work.next_space {
            return;
        }
        self.observer.log_bytes(self.log.stats().flushed_bytes);
        let low = self.log.stats().disk_full || self.handle.engine.stats().no_space;
        let was = self.handle.shared.space_low.swap(low, Ordering::AcqRel);
        if low {
            self.work.checkpoint_wanted = true;
        }
        if low && !was {
            tracing::warn!("the disk is full: raising NOSPACE and refusing what takes space");
            self.raise_no_space();
        }
        self.work.next_space = now + SPACE_INTERVAL;
    }

    fn raise_no_space(&mut self) {
        let request = pb::InternalRaftRequest {
            header: Some(pb::RequestHeader::default()),
            alarm: Some(pb::AlarmRequest {
                action: pb::alarm_request::AlarmAction::Activate as i32,
                member_id: self.handle.identity.member_id,
                alarm: pb::AlarmType::Nospace as i32,
            }),
            ..Default::default()
        };
        self.propose(&mut vec![Bytes::from(request.encode_to_vec())]);
    }

    /// Frees log segments when the disk has no room for new ones: with two checkpoints made, nothing
    /// before the last entry applied is needed any more. Waits for the disk; nothing else can go on.
    fn reclaim_log(&mut self) -> Result<(), Fatal> {
        self.work.next_space = Instant::now();
        for _ in 0..2 {
            if let Some((number, _)) = self.work.checkpoint.take() {
                self.await_checkpoint(number)?;
            }
            let applied = self.applier.applied();
            self.publish(applied.index, applied.term)?;
            if let Some(number) = self.start_now()? {
                self.await_checkpoint(number)?;
            }
        }
        self.trim_to(self.handle.engine.previous_durable_applied().index);
        // The log's background hands the segments back in its own time.
        std::thread::sleep(RECLAIM_PAUSE);
        Ok(())
    }

    /// Waits for a checkpoint; one that found no room is no failure.
    fn await_checkpoint(&self, number: u64) -> Result<(), Fatal> {
        match self.handle.engine.wait_durable(number) {
            Ok(()) | Err(engine::Error::NoSpace) => Ok(()),
            Err(error) => Err(fatal(error)),
        }
    }

    /// Starts a checkpoint of the last published state; `None` when one runs or there is no room.
    fn start_now(&mut self) -> Result<Option<u64>, Fatal> {
        match self.applier.writer().checkpoint() {
            Ok(started) => Ok(started),
            Err(engine::Error::NoSpace) => Ok(None),
            Err(error) => Err(fatal(error)),
        }
    }

    /// Looks whether the running checkpoint is durable and does what waited for it.
    fn finish_checkpoint(&mut self) -> Result<(), Fatal> {
        let Some((number, done)) = self.work.checkpoint else {
            return Ok(());
        };
        match self.handle.engine.checkpoint_outcome(number) {
            None => return Ok(()),
            Some(Ok(())) => {
                self.work.checkpoint = None;
                self.observer
                    .checkpoint(self.work.last_checkpoint.elapsed());
            }
            Some(Err(engine::Error::NoSpace)) => {
                tracing::warn!("a checkpoint found no room on the disk; it will be tried again");
                self.work.checkpoint = None;
                self.work.next_space = Instant::now();
                self.work.retry_at = Instant::now() + CHECKPOINT_RETRY;
                return Ok(());
            }
            Some(Err(error)) => return Err(fatal(error)),
        }
        for (revision, waiter) in std::mem::take(&mut self.work.compacted) {
            if revision <= done {
                let _ = waiter.send(Ok(()));
            } else {
                self.work.compacted.push((revision, waiter));
            }
        }
        if let Some(job) = &mut self.work.defragment {
            job.checkpoints_left = job.checkpoints_left.saturating_sub(1);
            job.made += 1;
            if job.checkpoints_left == 0
                && job.made < SHRINK_CHECKPOINTS_MAX
                && self.applier.writer().shrinking()
            {
                job.checkpoints_left = 1;
            }
            if job.checkpoints_left == 0
                && let Some(job) = self.work.defragment.take()
            {
                self.observer.defragmented(Some(job.since.elapsed()));
                // Space has come free: what was refused for want of it may be tried at once.
                self.log.retry_space();
                self.handle.shared.space_low.store(false, Ordering::Release);
                self.work.next_space = Instant::now() + SPACE_RECHECK;
                for waiter in job.waiters {
                    let _ = waiter.send(Ok(()));
                }
            }
        }
        self.trim();
        Ok(())
    }

    fn trim(&mut self) {
        let keep_from = self
            .handle
            .engine
            .previous_durable_applied()
            .index
            .min(self.log.last_index().saturating_sub(self.catchup_entries));
        self.trim_to(keep_from);
    }

    fn trim_to(&mut self, keep_from: u64) {
        if keep_from > self.work.trimmed_to {
            self.log.trim(keep_from);
            self.replica.trimmed(keep_from);
            self.work.trimmed_to = keep_from;
        }
    }

    fn start_checkpoint(&mut self) -> Result<(), Fatal> {
        if self.work.checkpoint.is_some()
            || self.work.compacting
            || Instant::now() < self.work.retry_at
        {
            return Ok(());
        }
        let changed = self.applier.applied().index > self.work.checkpoint_applied;
        let aged = changed && self.work.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL;
        let due = self.applier.writer().checkpoint_due();
        let defragmenting = self.work.defragment.as_ref().is_some_and(|job| !job.moving);
        if !(due || aged || defragmenting || self.work.checkpoint_wanted) {
            return Ok(());
        }
        if let Some(job) = &self.work.defragment {
            if job.made == 0 {
                self.applier.writer().shrink();
            }
            // Pages move towards the front with every publish.
            let applied = self.applier.applied();
            self.publish(applied.index, applied.term)?;
        }
        let done = self.handle.engine.view().compact_done();
        let started = self.start_now()?;
        self.work.checkpoint = started.map(|number| (number, done));
        if started.is_some() {
            self.work.checkpoint_wanted = false;
            self.work.last_checkpoint = Instant::now();
            self.work.checkpoint_applied = self.applier.applied().index;
        }
        Ok(())
    }

    /// Leaves a state that opens without replay.
    fn last_checkpoint(&mut self) -> Result<(), Fatal> {
        self.log.sync();
        if let Some((number, _)) = self.work.checkpoint.take() {
            self.await_checkpoint(number)?;
        }
        if let Some(number) = self.start_now()? {
            self.await_checkpoint(number)?;
        }
        Ok(())
    }
}
