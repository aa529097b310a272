//! The work of the node thread beside requests: compaction slices, checkpoints and what waits for them,
//! defragmentation, disks that fill.
//!
//! Invariants:
//! 1. It runs between rounds, in slices, and never holds up what waits in the mailbox for longer than one
//!    slice; except that it waits for a checkpoint where memory, or the room for log segments, is used up.
//! 2. Compaction goes before a checkpoint that can wait. A checkpoint that cannot wait is made in the middle
//!    of a compaction: the position of the sweep is part of it.
//!    One that waits for a long reader holds no checkpoint up.
//! 3. A checkpoint that found no room is tried again; nobody who waits for one is forgotten.
//! 4. A defragmentation ends after two checkpoints that began after its call, or when the file has stopped
//!    shrinking; at the latest after [`SHRINK_CHECKPOINTS_MAX`], or with `NO_SPACE` after
//!    [`DEFRAGMENT_FAILURES_MAX`] that found no room. No other call makes it longer. At most
//!    [`DEFRAGMENTS_MAX`] wait; the others are refused with `TOO_MANY_REQUESTS`.

use super::run::{
    CHECKPOINT_INTERVAL, DIRTY_PERCENT_MAX, Fatal, NodeLoop, SLOWED_MAX, Waiter, answer, fatal,
};
use crate::status::errors;
use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How soon after it had to wait for a long reader a compaction is tried again.
const HELD_POLL: Duration = Duration::from_millis(50);
/// How often the free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// How long after a defragmentation the space is taken to have come free.
const SPACE_RECHECK: Duration = Duration::from_secs(2);
/// How long after an alarm was proposed and is not seen it is proposed again.
const ALARM_RETRY: Duration = Duration::from_secs(1);
/// Checkpoints one defragmentation waits for at most while the file goes on shrinking.
pub const SHRINK_CHECKPOINTS_MAX: u32 = 4096;
/// Bytes moved between two batches while a defragmentation runs: some tens of microseconds.
const DEFRAGMENT_SLICE: usize = 128 << 10;
/// Checkpoints without room after which a defragmentation gives up.
pub const DEFRAGMENT_FAILURES_MAX: u32 = 4;
/// Defragment calls that may wait.
pub const DEFRAGMENTS_MAX: usize = 256;
/// Wait after a checkpoint that found no room.
const CHECKPOINT_RETRY: Duration = Duration::from_millis(500);
/// Tries to free log segments before the member gives up, and the wait after each.
pub(super) const RECLAIM_TRIES: usize = 10;
const RECLAIM_PAUSE: Duration = Duration::from_millis(200);

/// The checkpoint being written.
struct Running {
    number: u64,
    started: Instant,
    /// The compact revision that is physically done in it.
    compact_done: i64,
}

/// A Defragment call.
struct Defragment {
    since: Instant,
    waiter: Waiter,
    /// The engine was asked to shrink the file after the call.
    asked: bool,
    /// The checkpoint being written was begun after the call.
    counts: bool,
    /// Durable checkpoints begun after the call.
    made: u32,
    /// Checkpoints begun after the call that found no room.
    failed: u32,
}

/// Its state.
pub(super) struct Background {
    next_space: Instant,
    /// No checkpoint before this: the last one found no room.
    pub retry_at: Instant,
    checkpoint: Option<Running>,
    last_checkpoint: Instant,
    /// Applied index of the last checkpoint started.
    checkpoint_applied: u64,
    /// A checkpoint is to be made though little has changed.
    wanted: bool,
    trimmed_to: u64,
    /// History may be left to drop.
    pub compacting: bool,
    compacting_since: Option<Instant>,
    /// A long reader needs the history that is left to drop: not before this.
    compact_after: Option<Instant>,
    /// Revision up to which history was dropped last, -1 before the first compaction.
    compact_done: i64,
    /// Long readers that were not waited for any longer, as far as told.
    pins_expired: u64,
    defragments: Vec<Defragment>,
    /// More waits to be moved before the next checkpoint of a defragmentation.
    moving: bool,
    /// When NOSPACE is to be raised, unless it stands by then.
    alarm_due: Option<Instant>,
}

impl Background {
    pub fn new(applied: u64, compact_done: i64) -> Background {
        let now = Instant::now();
        Background {
            next_space: now,
            retry_at: now,
            checkpoint: None,
            last_checkpoint: now,
            checkpoint_applied: applied,
            wanted: false,
            trimmed_to: 0,
            compacting: true,
            compacting_since: None,
            compact_after: None,
            compact_done,
            pins_expired: 0,
            defragments: Vec::new(),
            moving: false,
            alarm_due: None,
        }
    }

    /// When history is to be dropped next, if some is left.
    pub fn compact_at(&self) -> Option<Instant> {
        self.compacting
            .then(|| self.compact_after.unwrap_or_else(Instant::now))
    }

    /// Something is under way whose end must be noticed soon.
    pub fn is_busy(&self) -> bool {
        self.checkpoint.is_some() || !self.defragments.is_empty()
    }
}

impl NodeLoop {
    /// One slice of everything.
    pub(super) fn background(&mut self) -> Result<(), Fatal> {
        self.compact_slice()?;
        self.finish_checkpoint()?;
        self.defragment_slice()?;
        self.start_checkpoint()?;
        self.bound_dirty()
    }

    // ---- memory ------------------------------------------------------------------------------------------

    pub(super) fn is_too_dirty(&mut self) -> bool {
        let limit = self.dirty_bytes_max * DIRTY_PERCENT_MAX / 100;
        self.applier.writer().dirty_bytes() > limit
    }

    /// Memory and the room a checkpoint needs are bounded by waiting here, with the mailbox as the queue
    /// that then fills: a little, as soon as changes are ahead of the checkpoint, and for all of it at the limit. Where waiting does not help, because no checkpoint finds room, proposals are
    /// refused until one does.
    pub(super) fn bound_dirty(&mut self) -> Result<(), Fatal> {
        let mut stuck = false;
        if self.applier.writer().checkpoint_due() {
            self.start_checkpoint()?;
        }
        self.applier.writer().keep_pace(SLOWED_MAX);
        if self.is_too_dirty() {
            let begun = Instant::now();
            if self.work.background.checkpoint.is_some() {
                self.join_checkpoint()?;
                engine::stall::record(engine::stall::Cause::ChangesFull, begun.elapsed());
            }
            self.start_checkpoint()?;
            stuck = self.work.background.checkpoint.is_none() && self.is_too_dirty();
        }
        let was = self.handle.shared.no_room.swap(stuck, Ordering::AcqRel);
        if stuck && !was {
            tracing::error!(
                dirty_bytes = self.applier.writer().dirty_bytes(),
                "the disk has no room for what is changed in memory: refusing all proposals until it has"
            );
        }
        Ok(())
    }

    // ---- compaction --------------------------------------------------------------------------------------

    /// Whether the next slice may begin. While memory is full a checkpoint goes first.
    pub(super) fn may_compact(&mut self) -> bool {
        let due = self.work.background.compact_at();
        due.is_some_and(|due| due <= Instant::now()) && !self.is_too_dirty()
    }

    fn compact_slice(&mut self) -> Result<(), Fatal> {
        if !self.may_compact() {
            return Ok(());
        }
        let work = &mut self.work.background;
        let since = *work.compacting_since.get_or_insert_with(Instant::now);
        let begun = Instant::now();
        let writer = self.applier.writer();
        let progress = writer
            .compact_step(engine::Budget::default())
            .map_err(fatal)?;
        self.observer.compaction_slice(begun.elapsed());
        if progress != engine::CompactProgress::More {
            let done = writer.compact_done();
            let wanted = writer.compact_revision();
            self.tell_expired_pins();
            self.compacted_to(done, wanted, since)?;
        } else {
            work.compact_after = None;
        }
        Ok(())
    }

    /// History below `done` is dropped; a long reader may need what is left below `wanted`.
    fn compacted_to(&mut self, done: i64, wanted: i64, since: Instant) -> Result<(), Fatal> {
        let work = &mut self.work.background;
        let advanced = done > work.compact_done;
        work.compact_done = done;
        if done == wanted {
            work.compacting = false;
            work.compacting_since = None;
            work.compact_after = None;
            if advanced {
                self.observer.compacted(since.elapsed());
                tracing::info!(
                    compact_revision = done,
                    took = format!("{:?}", since.elapsed()),
                    "finished scheduled compaction"
                );
            }
        } else {
            if work.compact_after.is_none() {
                tracing::info!(
                    compact_revision = wanted,
                    done,
                    "compaction waits for a long reader of this member"
                );
            }
            work.compact_after = Some(Instant::now() + HELD_POLL);
        }
        if advanced || done == wanted {
            self.publish_again()?;
        }
        if self
            .work
            .compacted
            .iter()
            .any(|(revision, _)| *revision <= done)
        {
            self.work.background.wanted = true;
        }
        Ok(())
    }

    /// Long readers that compaction has waited for long enough end with an error; the operator hears of it.
    fn tell_expired_pins(&mut self) {
        let expired = self.handle.engine.history_pins_expired();
        let told = std::mem::replace(&mut self.work.background.pins_expired, expired);
        if expired > told {
            tracing::warn!(
                readers = expired - told,
                "compaction has waited too long for readers of old revisions and goes on without them"
            );
        }
    }

    /// Publishes what changed besides entries.
    fn publish_again(&mut self) -> Result<(), Fatal> {
        let applied = self.applier.applied();
        self.publish(applied.index, applied.term)
    }

    // ---- space -------------------------------------------------------------------------------------------

    /// Notices a disk that fills, in the log's directory or the store's: raises the alarm, lets nothing
    /// in that takes space, and makes checkpoints so that log segments come free.
    pub(super) fn watch_space(&mut self) {
        let now = Instant::now();
        if now < self.work.background.next_space {
            return;
        }
        let log = self.log.stats();
        self.observer.log_bytes(log.flushed_bytes);
        let low = log.disk_full || self.handle.engine.stats().no_space;
        let was = self.handle.shared.space_low.swap(low, Ordering::AcqRel);
        let work = &mut self.work.background;
        work.next_space = now + SPACE_INTERVAL;
        if low {
            work.wanted = true;
        }
        if low && !was {
            tracing::warn!("the disk is full: raising NOSPACE and refusing what takes space");
            work.alarm_due = Some(now);
        }
        self.raise_no_space(now);
    }

    /// Proposes the alarm until it stands: a proposal may get lost with the leader it went to.
    fn raise_no_space(&mut self, now: Instant) {
        let Some(due) = self.work.background.alarm_due else {
            return;
        };
        let member_id = self.handle.identity.member_id;
        if self.applier.alarms().has(member_id, pb::AlarmType::Nospace) {
            self.work.background.alarm_due = None;
            return;
        }
        if now < due || self.replica.status().leader == 0 {
            return;
        }
        let request = pb::InternalRaftRequest {
            header: Some(pb::RequestHeader::default()),
            alarm: Some(pb::AlarmRequest {
                action: pb::alarm_request::AlarmAction::Activate as i32,
                member_id,
                alarm: pb::AlarmType::Nospace as i32,
            }),
            ..Default::default()
        };
        if let Err(error) = self
            .replica
            .propose(vec![Bytes::from(request.encode_to_vec())])
        {
            tracing::warn!(%error, "the NOSPACE alarm could not be proposed; it will be tried again");
        }
        self.work.background.alarm_due = Some(now + ALARM_RETRY);
    }

    /// Frees log segments when the disk has no room for new ones: with two checkpoints made, nothing
    /// before the last entry applied is needed any more. Waits for the disk; nothing else can go on.
    pub(super) fn reclaim_log(&mut self) -> Result<(), Fatal> {
        let begun = Instant::now();
        self.work.background.next_space = begun;
        for _ in 0..2 {
            self.join_checkpoint()?;
            self.publish_again()?;
            self.start_now()?;
            self.join_checkpoint()?;
        }
        self.trim_to(self.handle.engine.previous_durable_applied().index);
        // The log's background hands the segments back in its own time.
        std::thread::sleep(RECLAIM_PAUSE);
        engine::stall::record(engine::stall::Cause::LogSpace, begun.elapsed());
        Ok(())
    }

    fn trim(&mut self) {
        let applied = self.handle.engine.previous_durable_applied().index;
        // Where space is short nothing is kept for those who lag.
        let keep_from = match self.handle.shared.space_low.load(Ordering::Acquire) {
            true => applied,
            false => applied.min(self.log.last_index().saturating_sub(self.catchup_entries)),
        };
        self.trim_to(keep_from);
    }

    fn trim_to(&mut self, keep_from: u64) {
        if keep_from > self.work.background.trimmed_to {
            self.log.trim(keep_from);
            self.replica.trimmed(keep_from);
            self.work.background.trimmed_to = keep_from;
        }
    }

    // ---- checkpoints -------------------------------------------------------------------------------------

    fn start_checkpoint(&mut self) -> Result<(), Fatal> {
        let changed = self.applier.applied().index > self.work.background.checkpoint_applied;
        let due = self.applier.writer().checkpoint_due();
        let work = &self.work.background;
        if work.checkpoint.is_some() || Instant::now() < work.retry_at {
            return Ok(());
        }
        let aged = changed && work.last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL;
        let defragments = !work.defragments.is_empty() && !work.moving;
        let wanted = aged || work.wanted || defragments;
        // A compaction that waits may wait for long.
        let compacts = work.compacting && work.compact_after.is_none();
        if due || wanted && !compacts {
            self.start_now()?;
        }
        Ok(())
    }

    /// Starts a checkpoint of the last published state, unless one runs or there is no room.
    pub(super) fn start_now(&mut self) -> Result<(), Fatal> {
        let work = &mut self.work.background;
        if !work.defragments.is_empty() {
            let asks = work.defragments.iter().any(|call| !call.asked);
            // One under way goes on until the file shrinks no more. For a call that it ends too early for
            // the next one begins.
            if asks && !self.applier.writer().shrinking() {
                self.applier.writer().shrink();
                let work = &mut self.work.background;
                work.defragments
                    .iter_mut()
                    .for_each(|call| call.asked = true);
            }
            // Pages move towards the front with every publish.
            self.publish_again()?;
        }
        let writer = self.applier.writer();
        let compact_done = writer.compact_done();
        let number = match writer.checkpoint() {
            Ok(Some(number)) => number,
            Ok(None) => return Ok(()),
            Err(engine::Error::NoSpace) => {
                self.retry_checkpoint();
                return Ok(());
            }
            Err(error) => return Err(fatal(error)),
        };
        let work = &mut self.work.background;
        let started = Instant::now();
        work.checkpoint = Some(Running {
            number,
            started,
            compact_done,
        });
        for call in &mut work.defragments {
            call.counts = true;
        }
        work.wanted = false;
        work.last_checkpoint = started;
        work.checkpoint_applied = self.applier.applied().index;
        Ok(())
    }

    /// Waits for the checkpoint being written, if there is one, and does what waited for it. One that
    /// found no room is no failure.
    pub(super) fn join_checkpoint(&mut self) -> Result<(), Fatal> {
        let Some(running) = &self.work.background.checkpoint else {
            return Ok(());
        };
        match self.handle.engine.wait_durable(running.number) {
            Ok(()) | Err(engine::Error::NoSpace) => self.finish_checkpoint(),
            Err(error) => Err(fatal(error)),
        }
    }

    /// Looks whether the running checkpoint is durable and does what waited for it.
    fn finish_checkpoint(&mut self) -> Result<(), Fatal> {
        let Some(running) = &self.work.background.checkpoint else {
            return Ok(());
        };
        match self.handle.engine.checkpoint_outcome(running.number) {
            None => return Ok(()),
            Some(Ok(())) => {}
            Some(Err(engine::Error::NoSpace)) => {
                self.retry_checkpoint();
                return Ok(());
            }
            Some(Err(error)) => return Err(fatal(error)),
        }
        self.observer.checkpoint(running.started.elapsed());
        let done = running.compact_done;
        self.work.background.checkpoint = None;
        // What it wrote leaves memory with this, and counts no longer as changed.
        self.publish_again()?;
        let waiters = &mut self.work.compacted;
        for (_, waiter) in waiters.extract_if(.., |(revision, _)| *revision <= done) {
            answer(waiter, Ok(()));
        }
        self.count_for_defragments();
        self.trim();
        Ok(())
    }

    /// A checkpoint found no room: whoever waits for one waits for the next, within bounds.
    pub(super) fn retry_checkpoint(&mut self) {
        tracing::warn!("a checkpoint found no room on the disk; it will be tried again");
        let now = Instant::now();
        let work = &mut self.work.background;
        work.checkpoint = None;
        work.wanted = true;
        work.next_space = now;
        work.retry_at = now + CHECKPOINT_RETRY;
        for call in &mut work.defragments {
            call.failed += 1;
            call.counts = false;
        }
        let given_up = work
            .defragments
            .extract_if(.., |call| call.failed >= DEFRAGMENT_FAILURES_MAX);
        let given_up: Vec<Defragment> = given_up.collect();
        self.end_defragments(given_up, || Err(errors::NO_SPACE));
    }

    /// So that a log that is gone is told from a member that is new. Nothing was answered before it.
    pub(super) fn first_checkpoint(&mut self) -> Result<(), Fatal> {
        let new = self.handle.engine.durable_applied().index == 0;
        if new && self.applier.applied().index > 0 {
            self.start_now()?;
            self.join_checkpoint()?;
        }
        Ok(())
    }

    /// Leaves a state that opens without replay.
    pub(super) fn last_checkpoint(&mut self) -> Result<(), Fatal> {
        self.join_checkpoint()?;
        self.start_now()?;
        self.join_checkpoint()
    }

    // ---- defragmentation ---------------------------------------------------------------------------------

    /// Whether the next slice may begin. While memory is full a checkpoint goes first.
    pub(super) fn may_move(&mut self) -> bool {
        self.work.background.moving && !self.is_too_dirty()
    }

    fn defragment_slice(&mut self) -> Result<(), Fatal> {
        if self.work.background.defragments.is_empty() {
            self.work.background.moving = false;
        } else if !self.is_too_dirty() {
            let step = self.applier.writer().defragment_step(DEFRAGMENT_SLICE);
            self.work.background.moving = step.map_err(fatal)?;
        }
        Ok(())
    }

    pub(super) fn defragment(&mut self, waiter: Waiter) {
        let calls = &mut self.work.background.defragments;
        calls.retain(|call| !call.waiter.is_closed());
        if calls.len() >= DEFRAGMENTS_MAX {
            return answer(waiter, Err(errors::TOO_MANY_REQUESTS));
        }
        if calls.is_empty() {
            self.observer.defragmented(None);
        }
        calls.push(Defragment {
            since: Instant::now(),
            waiter,
            asked: false,
            counts: false,
            made: 0,
            failed: 0,
        });
    }

    /// A checkpoint is durable.
    fn count_for_defragments(&mut self) {
        let shrinking = self.applier.writer().shrinking();
        let calls = &mut self.work.background.defragments;
        for call in calls.iter_mut() {
            call.made += u32::from(std::mem::take(&mut call.counts));
        }
        let done = |call: &mut Defragment| {
            call.made >= 2 && (!shrinking || call.made >= SHRINK_CHECKPOINTS_MAX)
        };
        let done: Vec<Defragment> = calls.extract_if(.., done).collect();
        if done.is_empty() {
            return;
        }
        // Space has come free: what was refused for want of it may be tried at once.
        self.log.retry_space();
        self.handle.shared.space_low.store(false, Ordering::Release);
        self.work.background.next_space = Instant::now() + SPACE_RECHECK;
        self.end_defragments(done, || Ok(()));
    }

    fn end_defragments(
        &mut self,
        calls: Vec<Defragment>,
        result: impl Fn() -> Result<(), crate::status::Status>,
    ) {
        for call in calls {
            self.observer.defragmented(Some(call.since.elapsed()));
            answer(call.waiter, result());
        }
        if !self.work.background.defragments.is_empty() {
            // The last one said that none is under way.
            self.observer.defragmented(None);
        }
    }
}

#[cfg(test)]
impl Background {
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoint.is_some()
    }

    pub fn look_at_space_now(&mut self) {
        self.next_space = Instant::now();
    }

    pub fn alarm_due(&self) -> bool {
        self.alarm_due.is_some()
    }
}
