//! The one writer: working state, system records, compaction steps, publication, checkpoints.
//!
//! Invariants:
//! 1. A state is published only between transactions, so every view holds whole revisions.
//! 2. A transaction that fails or panics half-way leaves the writer refused: nothing is published
//!    or checkpointed from it again. The last durable checkpoint and the log repair it.
//! 3. A checkpoint is of a published state. The open chunk is sealed first, which moves bytes but
//!    changes nothing a reader can see.

use std::sync::Arc;

use bytes::Bytes;

use crate::events::log::{EventLog, OpenChunk};
use crate::record::{RUN, run_ref};
use crate::scrub::Scrubber;
use crate::source::{LIVE, RunKind, StoreWriter, TreeId};
use crate::types::{
    Applied, Budget, CompactError, CompactProgress, Error, Event, RecordVisitor, Result,
};

use super::long::LongHistory;
use super::publish::Shared;
use super::reader::{Reader, sys_key};
use super::state::BLOB_BYTES_MAX;
use super::view::{View, ViewInner};
use super::{Meta, Txn};

/// What a publication hands on.
#[derive(Clone)]
pub struct Published {
    /// The new newest state.
    pub view: View,
    /// The events since the last publication, in order. Empty when `overflow`.
    pub events: Arc<[Event]>,
    /// There were more events than [`Options::publish_bytes_max`](crate::Options) allows to hold
    /// in memory, or [`Writer::skip_events`] was called; read them from the view, from the
    /// revision after the last publication's.
    pub overflow: bool,
}

/// The only handle that changes the engine's state. Not shared; its calls do not wait for
/// readers, and for the disk only when a page is not cached.
pub struct Writer {
    pub(crate) store: StoreWriter,
    /// Ends with the writer.
    pub(crate) _scrubber: Scrubber,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: EventLog,
    /// The working state's numbers.
    pub(crate) meta: Meta,
    pub(crate) pending: Pending,
    /// A transaction began and has not finished.
    pub(crate) broken: bool,
    /// Something a reader could see changed since the last publication.
    pub(crate) unpublished: bool,
    pub(crate) inline_max: usize,
    pub(crate) dirty_bytes_max: u64,
    pub(crate) scratch: Vec<u8>,
    /// Negative control: compaction takes the events at the compact revision too.
    #[cfg(test)]
    pub(crate) drops_too_much: bool,
    /// Negative control: long readers are not waited for.
    #[cfg(test)]
    pub(crate) deaf_to_pins: bool,
}

/// Events gathered for the next publication, within a bound.
pub(crate) struct Pending {
    pub events: Vec<Event>,
    pub bytes: usize,
    pub bytes_max: usize,
    pub overflow: bool,
}

impl Pending {
    pub(crate) fn push(&mut self, event: Event) {
        let size = |value: &Bytes| 128 + value.len();
        self.bytes += event.kv.key.len()
            + size(&event.kv.value)
            + event.prev.as_ref().map_or(0, |prev| size(&prev.value));
        self.events.push(event);
        if self.bytes > self.bytes_max {
            self.overflow = true;
            self.events = Vec::new();
        }
    }
}

impl Writer {
    /// The newest revision of the working state.
    pub fn revision(&self) -> i64 {
        self.meta.revision
    }

    /// The compact revision of the working state; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.meta.compact_revision
    }

    /// The last compact revision that is physically done.
    pub fn compact_done(&self) -> i64 {
        self.meta.compact_done
    }

    /// A hash of every change ever applied.
    pub fn rolling_hash(&self) -> u64 {
        self.meta.rolling
    }

    /// Reads the pages that changes or reads of `keys` will need into the cache, many at once.
    /// Before applying a batch of requests this makes the batch wait once for each level of the
    /// tree and not once for each page. Blocks for the reads; what cannot be read is met again
    /// where it is needed.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.store.prefetch(TreeId::K, keys);
    }

    /// Begins one request. All its changes share the next revision.
    pub fn txn(&mut self) -> Txn<'_> {
        Txn::new(self)
    }

    /// Does not gather events for the next publication, which then says `overflow`: nobody would
    /// look at them. History has them all the same.
    pub fn skip_events(&mut self) {
        self.pending.overflow = true;
        self.pending.events = Vec::new();
    }

    pub(crate) fn reader<'a>(&'a self, open: Option<&'a OpenChunk>) -> Reader<'a, StoreWriter> {
        Reader {
            src: &self.store,
            open,
            next_seq: self.log.next_seq(),
            revision: self.meta.revision,
            compact: self.meta.compact_revision,
            changing: false,
        }
    }

    /// Writes a system record: alarms, leases, members, auth, counters.
    pub fn sys_put(&mut self, bucket: u8, key: &[u8], value: &[u8]) -> Result<()> {
        self.check_usable()?;
        self.unpublished = true;
        let key = sys_key(bucket, key);
        self.free_sys_run(&key)?;
        if value.len() <= self.inline_max {
            self.store.insert(TreeId::S, &key, LIVE, value)?;
        } else {
            let bytes = Bytes::copy_from_slice(value);
            let run = self.store.write_run(RunKind::Value, &key, [0; 16], bytes)?;
            self.store
                .insert(TreeId::S, &key, LIVE | RUN, &run.to_bytes())?;
        }
        Ok(())
    }

    /// Deletes a system record; answers whether it existed.
    pub fn sys_delete(&mut self, bucket: u8, key: &[u8]) -> Result<bool> {
        self.check_usable()?;
        self.unpublished = true;
        let key = sys_key(bucket, key);
        self.free_sys_run(&key)?;
        Ok(self.store.remove(TreeId::S, &key)?)
    }

    fn free_sys_run(&mut self, key: &[u8]) -> Result<()> {
        if let Some(entry) = self.store.get(TreeId::S, key)?
            && entry.flags & RUN != 0
        {
            self.store.free_run(run_ref(&entry.value)?);
        }
        Ok(())
    }

    /// A system record of the working state.
    pub fn sys_get(&self, bucket: u8, key: &[u8]) -> Result<Option<Bytes>> {
        self.reader(None).sys_get(bucket, key)
    }

    /// The system records of a bucket of the working state, in key order.
    pub fn sys_scan(&self, bucket: u8, f: &mut RecordVisitor<'_>) -> Result<()> {
        self.reader(None).sys_scan(bucket, f)
    }

    /// The keys attached to a lease in the working state, in key order.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>> {
        self.reader(None).lease_keys(lease)
    }

    /// Refuses reads below `rev` from the next publication on. The history below it is dropped
    /// by [`Writer::compact_step`].
    pub fn compact(&mut self, rev: i64) -> std::result::Result<(), CompactError> {
        if rev <= self.meta.compact_revision {
            return Err(CompactError::Compacted);
        }
        if rev > self.meta.revision {
            return Err(CompactError::Future);
        }
        self.meta.compact_revision = rev;
        self.meta.rolling = crate::hash::rolling::compaction(self.meta.rolling, rev);
        self.unpublished = true;
        Ok(())
    }

    /// A reader of everything that can be read in the working state, which may take long: it pins history, not pages.
    /// Its slices need the next publication; before it they may answer [`Error::Future`].
    pub fn long_history(&self) -> Result<LongHistory> {
        let (compact, revision) = (self.meta.compact_revision, self.meta.revision);
        LongHistory::of_working_state(&self.shared, compact, revision).ok_or(Error::Compacted)
    }

    /// Events below this may be taken apart: the compact revision, or what a long reader needs.
    pub(crate) fn history_floor(&self) -> i64 {
        #[cfg(test)]
        if self.deaf_to_pins {
            return self.meta.compact_revision;
        }
        self.shared.history.floor(self.meta.compact_revision)
    }

    /// Does a slice of the physical part of compaction, as far as long readers let it.
    pub fn compact_step(&mut self, budget: Budget) -> Result<CompactProgress> {
        self.check_usable()?;
        crate::compaction::step(self, budget)
    }

    /// Makes the working state the newest view, as of log entry `applied`. Returns when every
    /// reader that asks from now on gets it. `meta` is an opaque blob of at most 1 KiB.
    ///
    /// # Panics
    /// When a transaction failed half-way, or `meta` is too long.
    pub fn publish(&mut self, applied: Applied, meta: &[u8]) -> Published {
        assert!(
            !self.broken,
            "a transaction failed half-way; its state must not be seen"
        );
        assert!(
            meta.len() <= BLOB_BYTES_MAX,
            "the server's blob is too long"
        );
        debug_assert!(applied.index >= self.meta.applied.index);
        self.meta.applied = applied;
        if self.meta.blob != meta {
            self.meta.blob = Bytes::copy_from_slice(meta);
        }
        let view = self.publish_view();
        let overflow = std::mem::take(&mut self.pending.overflow);
        let events = std::mem::take(&mut self.pending.events);
        self.pending.bytes = 0;
        Published {
            view,
            events: Arc::from(events),
            overflow,
        }
    }

    pub(crate) fn publish_view(&mut self) -> View {
        // No duty: a run that cannot be read is reported to whoever needs it.
        let _ = crate::relocate::move_runs(self, self.store.moved_per_publish());
        self.meta.next_seq = self.log.next_seq();
        let view = View {
            inner: Arc::new(ViewInner {
                snapshot: self.store.publish(),
                open: self.log.published(),
                meta: self.meta.clone(),
            }),
        };
        self.unpublished = false;
        self.shared.set_view(&view);
        view
    }

    /// Starts a checkpoint of the last published state and answers its number, or None while
    /// one is being written. Call it right after [`Writer::publish`]: requests or system records
    /// that are not published are an error (steps of compaction are not).
    pub fn checkpoint(&mut self) -> Result<Option<u64>> {
        self.check_usable()?;
        if self.unpublished {
            return Err(Error::Invalid(
                "checkpoint of changes that are not published".into(),
            ));
        }
        if self.store.checkpoint_running() {
            return Ok(None);
        }
        self.log.seal(&mut self.store)?;
        self.publish_view();
        Ok(Some(self.store.checkpoint(self.meta.encode())?))
    }

    /// Whether enough has changed for a checkpoint.
    pub fn checkpoint_due(&self) -> bool {
        self.dirty_bytes() >= self.dirty_bytes_max && !self.store.checkpoint_running()
    }

    /// Waits, for `longest` at most, while changed bytes are further on their way to
    /// [`Options::dirty_bytes_limit`](crate::Options::dirty_bytes_limit) than the checkpoint being written is on its way
    /// to its end. Called after every batch, it slows the owner down little by little instead of stopping it when memory
    /// is full. Never waits while no checkpoint is being written.
    pub fn keep_pace(&self, longest: std::time::Duration) {
        self.store.keep_pace(longest);
    }

    /// Bytes changed in memory since the last checkpoint.
    pub fn dirty_bytes(&self) -> u64 {
        self.store.dirty_bytes() as u64
    }

    /// Begins to make sparse pages full, then to move what lies at the end of the file to free space
    /// before it, and has the checkpoints to come cut off the end. It goes on with publications and checkpoints, faster
    /// with [`Writer::defragment_step`]. [`Writer::shrinking`] tells when nothing is left to do,
    /// [`Stats`](crate::Stats) how far it is. Readers and requests are not held up, and no state
    /// that they see changes.
    pub fn shrink(&mut self) {
        // Nothing but the size of the file depends on it; a page that cannot be read is met again.
        let _ = self.store.request_shrink();
    }

    /// Packs or moves about `bytes` of what the last checkpoint noted; whether more of it waits. What was
    /// moved counts with the next publication and checkpoint. Call it between requests, with a small budget (128 KiB take some tens of microseconds, some hundreds to pack).
    pub fn defragment_step(&mut self, bytes: usize) -> Result<bool> {
        self.check_usable()?;
        self.store.move_tail(bytes)?;
        crate::relocate::move_runs(self, bytes)?;
        Ok(self.store.tail_waits())
    }

    /// Whether a shrink that was begun goes on; it needs publishes and checkpoints to.
    pub fn shrinking(&self) -> bool {
        self.store.shrinking()
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        if self.broken {
            return Err(Error::Invalid(
                "a transaction failed half-way; the state must be reopened".into(),
            ));
        }
        Ok(())
    }
}
