//! The log itself: appends gather, one flush at a time carries them to the disk.
//!
//! Invariants:
//! 1. `durable` moves only when a write that carries everything up to it has succeeded.
//! 2. A block that may hold acknowledged bytes is never written again: `offset` only grows, a
//!    recovered segment is never continued, and a recycled one has been trimmed.
//! 3. Before the first batch of a segment is acknowledged, its header is durable, and after that a
//!    roll record in its predecessor that names it.
//! 4. `durable_seq` of a batch is stamped when it is handed to the disk, and then every batch up to
//!    it is durable.
//! 5. What an append was granted finds room: the segments it will need are ready when it returns,
//!    and one more that entries never use.

use crate::buffer::Buffer;
use crate::disk::Dir;
use crate::error::{AppendError, ReadError};
use crate::fatal::{Fatal, FatalHook};
use crate::flush::stall::{FlushClock, StallHook, Watcher};
use crate::flush::thread::Waker;
use crate::flush::{Flusher, Write};
use crate::format::batch::{BatchHeader, ENTRY_BYTES, HEADER_BYTES, Record};
use crate::format::segment::{FIRST_BATCH, PrevEnd, SegmentHeader, log_name};
use crate::format::{BLOCK_BYTES, crc, padded};
use crate::ids::Ids;
use crate::index::{BatchRef, Index, Terms};
use crate::options::Options;
#[cfg(any(test, feature = "sim"))]
use crate::options::Sabotage;
use crate::pool::{NoSegment, Retired};
use crate::prepare::{Free, Segments, Step, Worker};
use crate::queue::{Batch, Queue, usable};
use crate::reader::{Published, Reader};
use crate::recovery::scan::LiveSegment;
use crate::state::State;
use crate::types::{Appended, Committed, Durable, Entry, HardState};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Called with the duration of every flush, from its start to the moment its end was noticed.
pub type FlushHook = Box<dyn FnMut(Duration) + Send>;

/// Counters since opening, and sizes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Durable writes of batches.
    pub flushes: u64,
    /// Bytes of those writes, padding included.
    pub flushed_bytes: u64,
    /// Bytes of records in them.
    pub record_bytes: u64,
    pub entries: u64,
    /// Segments begun after the one that opening began.
    pub rolls: u64,
    /// Zeros written into new segments.
    pub prepared_bytes: u64,
    /// Segments that hold a part of the log.
    pub segments: usize,
    /// Segments ready for use.
    pub ready_segments: usize,
    /// Gathered behind the flush in flight.
    pub gathered_bytes: usize,
    /// The last attempt to prepare a segment found the disk full.
    pub disk_full: bool,
    /// Writes go around the page cache (`O_DIRECT`).
    pub direct: bool,
    /// With the ring: its buffers are registered with the kernel.
    pub registered_buffers: bool,
}

/// The background: a thread, or steps taken inside the owner's calls.
pub(crate) enum Background {
    Thread(Option<std::thread::JoinHandle<()>>),
    Inline(Box<Worker>),
}

struct InFlight {
    batch: Landing,
    started: Instant,
}

/// What a batch will mean once it is durable.
struct Landing {
    batch_seq: u64,
    segment: u64,
    offset: u64,
    disk_bytes: u64,
    record_bytes: u64,
    records: u32,
    lowest: Option<u64>,
    voids_all: bool,
    state: State,
    upto: u64,
}

/// A raft log. One owner; calls block only where they say so.
pub struct Log {
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) options: Options,
    pub(crate) backend_name: &'static str,
    pub(crate) fatal: Arc<Fatal>,
    pub(crate) flusher: Flusher,
    pub(crate) pool: Arc<Segments>,
    pub(crate) background: Background,
    pub(crate) filled_bytes: Arc<AtomicU64>,
    pub(crate) ids: Ids,
    /// Oldest first; the last one is being written.
    pub(crate) segments: VecDeque<LiveSegment>,
    /// Where the next batch goes in it.
    pub(crate) offset: u64,
    pub(crate) chain: u32,
    pub(crate) next_batch_seq: u64,
    pub(crate) durable_seq: u64,
    /// Behind everything appended.
    pub(crate) state: State,
    /// Behind everything handed to the disk.
    pub(crate) written: State,
    /// Behind everything durable.
    durable_state: State,
    /// What the owner has said it does not need any more, exclusive.
    keep_from: u64,
    pub(crate) terms: Terms,
    /// Where durable entries lie that nothing appended since has replaced.
    pub(crate) published: Arc<Published>,
    /// The last index that can be read.
    pub(crate) readable: u64,
    pub(crate) queue: Queue,
    in_flight: Option<InFlight>,
    appended: u64,
    durable: u64,
    /// Flushing goes on until this append is durable.
    flush_upto: u64,
    /// The last batch on disk has a witness, or there is none to witness for.
    sealed: bool,
    on_flush: Option<FlushHook>,
    clock: FlushClock,
    watcher: Option<Watcher>,
    stats: Stats,
    reader: RefCell<Reader>,
}

/// The parts that opening puts together.
pub(crate) struct Parts {
    pub dir: Arc<dyn Dir>,
    pub options: Options,
    pub backend_name: &'static str,
    pub fatal: Arc<Fatal>,
    pub flusher: Flusher,
    pub pool: Arc<Segments>,
    pub background: Background,
    pub filled_bytes: Arc<AtomicU64>,
    pub ids: Ids,
    pub segments: VecDeque<LiveSegment>,
    pub offset: u64,
    pub chain: u32,
    pub next_batch_seq: u64,
    pub durable_seq: u64,
    pub state: State,
    pub terms: Terms,
    pub index: Index,
    pub queue: Queue,
}

impl Log {
    pub(crate) fn assemble(parts: Parts) -> Log {
        let readable = parts.state.last_index;
        let first_index = parts.state.first_index;
        let sources = parts.segments.iter().map(LiveSegment::source);
        let published = Published::new(parts.index, sources, first_index, readable);
        let published = Arc::new(published);
        let reader = Reader::new(parts.dir.path(""), published.clone());
        Log {
            dir: parts.dir,
            options: parts.options,
            backend_name: parts.backend_name,
            fatal: parts.fatal,
            flusher: parts.flusher,
            pool: parts.pool,
            background: parts.background,
            filled_bytes: parts.filled_bytes,
            ids: parts.ids,
            segments: parts.segments,
            offset: parts.offset,
            chain: parts.chain,
            next_batch_seq: parts.next_batch_seq,
            durable_seq: parts.durable_seq,
            state: parts.state,
            written: parts.state,
            durable_state: parts.state,
            keep_from: parts.state.first_index,
            terms: parts.terms,
            published,
            readable,
            queue: parts.queue,
            in_flight: None,
            appended: 0,
            durable: 0,
            flush_upto: 0,
            sealed: true,
            on_flush: None,
            clock: FlushClock::new(),
            watcher: None,
            stats: Stats::default(),
            reader: RefCell::new(reader),
        }
    }

    // ---- appending -------------------------------------------------------------------------------

    /// Takes entries and, behind them, a hard state into the log's buffers. Nothing is durable
    /// before a flush says so.
    ///
    /// The first entry's index may be at most one above the last; at or below it, it and what
    /// follows it are replaced. The commit index may not lie beyond the last entry. A changed term
    /// or vote is placed in front of the entries, a changed commit index behind them, so that any
    /// prefix that survives is a state that raft has been in.
    ///
    /// Blocks if more is gathered than `gather_bytes_max` (until the flush in flight has ended) or
    /// if the background has fallen behind with preparing segments. On an error nothing was taken;
    /// appends without entries succeed on a full disk long after those with entries do not.
    pub fn append(
        &mut self,
        entries: &[Entry],
        hard_state: Option<HardState>,
    ) -> Result<Appended, AppendError> {
        let before = self.state.hard_state;
        let hard_state = hard_state.unwrap_or(before);
        let promise = HardState {
            commit: before.commit,
            ..hard_state
        };
        let first = (promise != before).then_some(Record::HardState(promise));
        let last = (hard_state != promise).then_some(Record::HardState(hard_state));
        let entries = entries.iter().map(|e| Record::Entry {
            index: e.index,
            term: e.term,
            kind: e.kind,
            data: &e.data,
        });
        self.take(first.into_iter().chain(entries).chain(last))
    }

    /// Notes that a snapshot covers everything up to `index`: all entries, also later ones, are
    /// void, and the log goes on at `index + 1`. Must be durable before the snapshot replaces
    /// the store. As [`Log::append`] otherwise.
    pub fn snapshot_mark(&mut self, index: u64, term: u64) -> Result<Appended, AppendError> {
        self.take(std::iter::once(Record::Snapshot { index, term }))
    }

    fn take<'a>(
        &mut self,
        records: impl Iterator<Item = Record<'a>> + Clone,
    ) -> Result<Appended, AppendError> {
        if self.fatal.is_poisoned() {
            return Err(AppendError::Poisoned);
        }
        let mut state = self.state;
        let mut has_entries = false;
        let max = self.queue.entry_bytes_max();
        for record in records.clone() {
            state.check(&record).map_err(AppendError::Invalid)?;
            state.apply(&record);
            if let Record::Entry { data, .. } = record {
                has_entries = true;
                if data.len() > max {
                    return Err(AppendError::TooLarge {
                        bytes: data.len(),
                        max,
                    });
                }
            }
        }
        let sizes = records.clone().map(|r| r.encoded_bytes());
        if self.queue.bytes() > self.options.gather_bytes_max {
            self.flush();
            self.wait();
        }
        self.queue.starts_at(self.offset);
        let needs = self.queue.needs(sizes);
        self.find_room(needs.segments, usize::from(has_entries))?;
        self.queue
            .provide(needs.chunks)
            .map_err(|_| AppendError::NoSpace)?;
        self.put(records);
        if self.in_flight.is_some() {
            // Work that would else delay the next flush.
            self.queue.digest();
        }
        self.appended += 1;
        self.queue.mark(self.appended);
        if self.queue.is_empty() && self.in_flight.is_none() {
            // Nothing new was said.
            self.durable = self.appended;
        } else if self.queue.is_empty() {
            // Durable with the flush in flight.
            let flight = self.in_flight.as_mut().expect("checked above");
            flight.batch.upto = self.appended;
        }
        Ok(Appended(self.appended))
    }

    /// Puts checked records into the queue.
    fn put<'a>(&mut self, records: impl Iterator<Item = Record<'a>>) {
        let before = self.readable;
        for record in records {
            self.state.apply(&record);
            self.queue.push(&record, &self.state);
            match record {
                Record::Entry { index, term, .. } => {
                    self.terms.push(index, term);
                    self.readable = self.readable.min(index - 1);
                }
                Record::Snapshot { index, term } => {
                    self.terms = Terms::starting_after(index, term);
                    self.readable = 0;
                    self.published.trimmed(index + 1);
                }
                _ => {}
            }
        }
        if self.readable != before {
            self.published.replaced(self.readable);
        }
    }

    /// Makes sure that `needed` segments are ready, and `spare` more.
    fn find_room(&mut self, needed: usize, spare: usize) -> Result<(), AppendError> {
        if needed == 0 {
            return Ok(());
        }
        let more_than = needed + spare - 1;
        let answer = match &mut self.background {
            Background::Thread(_) => self.pool.wait_for_more_than(more_than),
            Background::Inline(worker) => {
                self.pool.try_again();
                loop {
                    if let Some(answer) = self.pool.more_than(more_than) {
                        break answer;
                    }
                    worker.step();
                }
            }
        };
        match answer {
            Ok(()) => Ok(()),
            Err(NoSegment::Full) => Err(AppendError::NoSpace),
            Err(NoSegment::Failed) => Err(AppendError::Poisoned),
        }
    }

    // ---- flushing --------------------------------------------------------------------------------

    /// Starts the durable write of everything appended so far, unless one is in flight; then it
    /// will follow that one. With the ring or a flush thread it goes on by itself; inline it is done
    /// by the next [`Log::poll`] or [`Log::wait`].
    ///
    /// Blocks for two small writes when a new segment is begun.
    pub fn flush(&mut self) {
        self.start_flush();
        self.flusher.kick();
    }

    fn start_flush(&mut self) {
        self.flush_upto = self.appended;
        if self.in_flight.is_none() && !self.queue.is_empty() {
            self.start_next();
        }
    }

    /// Notices whether the flush in flight has ended, starts the next one if more was asked for, and
    /// says how much is durable. Does not block with the ring or a flush thread; inline it does the
    /// write.
    pub fn poll(&mut self) -> Durable {
        self.land(false);
        self.continue_flush();
        self.flusher.kick();
        Durable(self.durable)
    }

    /// Waits until everything that [`Log::flush`] was called for is durable.
    pub fn wait(&mut self) -> Durable {
        while self.in_flight.is_some() && !self.fatal.is_poisoned() {
            self.land(true);
            self.continue_flush();
        }
        Durable(self.durable)
    }

    /// Waits until the flush in flight has ended and starts the next one, if more was asked for: what an
    /// owner calls who appends while a flush goes on. Returns at once if nothing is in flight.
    pub fn wait_next(&mut self) -> Durable {
        self.land(true);
        self.continue_flush();
        self.flusher.kick();
        Durable(self.durable)
    }

    /// Makes everything appended durable.
    pub fn sync(&mut self) -> Durable {
        self.start_flush();
        self.wait()
    }

    /// To be called when nothing was appended for some 50 ms: writes an empty batch behind the last
    /// one, as a witness that it was durable. Without it the last batch, if it rots, is taken for
    /// a torn write. Costs one flush, once per pause; started, not waited for.
    pub fn idle(&mut self) {
        let busy = self.in_flight.is_some() || !self.queue.is_empty();
        if busy || self.sealed || self.fatal.is_poisoned() {
            return;
        }
        self.queue.release();
        self.queue.starts_at(self.offset);
        // Never spend the last segments on this.
        let fits = self.offset + BLOCK_BYTES as u64 <= usable(self.segment_bytes());
        if (fits || self.pool.ready() >= 2)
            && self.queue.push_seal(&self.state, self.appended).is_ok()
        {
            self.start_next();
            self.flusher.kick();
        }
    }

    /// Syncs, seals, and ends. (Dropping a log loses only what was not flushed.)
    pub fn close(mut self) {
        self.sync();
        self.idle();
        self.wait();
    }

    fn continue_flush(&mut self) {
        let more = self.in_flight.is_none() && self.durable < self.flush_upto;
        if more && !self.queue.is_empty() && !self.fatal.is_poisoned() {
            self.start_next();
        }
    }

    fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    fn active(&self) -> &LiveSegment {
        self.segments.back().expect("a log has a segment")
    }

    /// Hands the first batch of the queue to the disk.
    fn start_next(&mut self) {
        if self.fatal.is_poisoned() {
            return;
        }
        if self.queue.next_rolls() && self.roll().is_err() {
            return;
        }
        let started = Instant::now();
        self.clock.start(started);
        let mut batch = self.queue.pop().expect("the queue is not empty");
        let bytes = padded(batch.len) as u64;
        let header = self.stamp(&mut batch);
        let landing = Landing {
            batch_seq: header.batch_seq,
            segment: self.active().seq,
            offset: self.offset,
            disk_bytes: bytes,
            record_bytes: u64::from(header.len),
            records: batch.records,
            lowest: batch.lowest,
            voids_all: batch.voids_all,
            state: batch.state,
            upto: batch.upto,
        };
        assert!(
            landing.offset + bytes <= usable(self.segment_bytes()),
            "a batch ends before the segment's last block"
        );
        self.written = batch.state;
        let write = Write {
            file: self.active().file.clone(),
            buffers: batch.into_chunks(),
            offset: self.offset,
            len: bytes as usize,
        };
        self.offset += bytes;
        self.next_batch_seq += 1;
        #[cfg(any(test, feature = "sim"))]
        if self.options.sabotage == Sabotage::AcknowledgeEarly {
            self.durable = landing.upto;
        }
        #[cfg(any(test, feature = "sim"))]
        if self.options.sabotage == Sabotage::SkipDsync {
            let whole: Vec<&[u8]> = write.parts().collect();
            let mut block = Buffer::new(write.len).expect("memory");
            block.copy_from_slice(&whole.concat());
            let plain = write.file.write(write.offset, &block);
            self.in_flight = Some(InFlight {
                batch: landing,
                started,
            });
            return match plain {
                Ok(()) => self.landed(write.buffers),
                Err(e) => self.fail("write", self.offset, &e),
            };
        }
        self.in_flight = Some(InFlight {
            batch: landing,
            started,
        });
        if let Err(e) = self.flusher.start(write) {
            self.fail("start a write to", self.offset - bytes, &e);
        }
    }

    /// Completes a batch: its header, its place in the chain, zeros behind it.
    fn stamp(&mut self, batch: &mut Batch) -> BatchHeader {
        let payload_crc = batch.finish();
        let mut header = BatchHeader {
            seg_id: self.active().seg_id,
            batch_seq: self.next_batch_seq,
            durable_seq: self.witnessed(),
            first_index: batch.first_index,
            len: (batch.len - HEADER_BYTES) as u32,
            records: batch.records,
            chain: self.chain,
            payload_crc,
            crc: 0,
        };
        assert!(
            self.durable_seq < header.batch_seq,
            "a batch cannot witness for itself"
        );
        header.crc = batch.set_header(&header);
        self.chain = header.crc;
        header
    }

    /// What the batch being stamped may witness for.
    fn witnessed(&self) -> u64 {
        #[cfg(any(test, feature = "sim"))]
        if self.options.sabotage == Sabotage::WitnessForItself {
            return self.next_batch_seq;
        }
        self.durable_seq
    }

    /// Takes note of the end of the flush in flight.
    fn land(&mut self, block: bool) {
        let Some(flight) = &self.in_flight else {
            return;
        };
        if self.fatal.is_poisoned() {
            return;
        }
        let offset = flight.batch.offset;
        match self.flusher.finish(block) {
            Ok(None) => {}
            Ok(Some(buffers)) => self.landed(buffers),
            Err(e) => self.fail("write", offset, &e),
        }
    }

    fn landed(&mut self, buffers: Vec<Buffer>) {
        let InFlight { batch, started } = self.in_flight.take().expect("a flush was in flight");
        let took = started.elapsed();
        self.clock.stop();
        assert!(
            batch.batch_seq > self.durable_seq && batch.upto >= self.durable,
            "flushes end in the order in which they began"
        );
        self.durable_seq = batch.batch_seq;
        self.durable = batch.upto;
        self.durable_state = batch.state;
        self.sealed = batch.records == 0;
        self.stats.flushes += 1;
        self.stats.flushed_bytes += batch.disk_bytes;
        self.stats.record_bytes += batch.record_bytes;
        let place = batch.lowest.map(|first| BatchRef {
            first,
            last: batch.state.last_index,
            segment: batch.segment,
            offset: batch.offset as u32,
            disk_bytes: batch.disk_bytes as u32,
            batch_seq: batch.batch_seq,
        });
        if let Some(place) = &place {
            self.stats.entries += place.last + 1 - place.first;
        }
        self.readable = batch.state.last_index.min(self.queue.untouched_below());
        if place.is_some() || batch.voids_all {
            self.published.landed(place, batch.voids_all, self.readable);
        }
        self.queue.reuse(buffers);
        if let Some(hook) = &mut self.on_flush {
            hook(took);
        }
    }

    /// Begins the next segment: its header, then the roll record behind the present one's end,
    /// both durable before any batch goes there.
    fn roll(&mut self) -> Result<(), ()> {
        let Some(staged) = self.take_staged() else {
            return Err(());
        };
        let (old, old_offset) = (self.active().clone(), self.offset);
        let seg_id = self.new_segment_id();
        let header = SegmentHeader {
            seq: old.seq + 1,
            seg_id,
            identity: self.options.identity,
            segment_bytes: self.segment_bytes(),
            prev_end: PrevEnd {
                seq: old.seq,
                offset: old_offset,
                chain: self.chain,
            },
            next_batch_seq: self.next_batch_seq + 1,
            state: self.written,
        };
        assert_eq!(staged.name, log_name(header.seq), "staged under its name");
        self.clock.start(Instant::now());
        let done = Buffer::new(BLOCK_BYTES).and_then(|mut block| {
            let mut write_header = || {
                header.encode(&mut block);
                staged.file.write_durable(0, &[&block])
            };
            let mut roll = Buffer::new(BLOCK_BYTES)?;
            self.encode_roll(&mut roll, header.seq, seg_id);
            #[cfg(any(test, feature = "sim"))]
            if self.options.sabotage == Sabotage::RollBeforeHeader {
                old.file.write_durable(old_offset, &[&roll])?;
                return write_header();
            }
            write_header()?;
            old.file.write_durable(old_offset, &[&roll])
        });
        self.clock.stop();
        if let Err(e) = done {
            self.fail("begin the segment after", old_offset, &e);
            return Err(());
        }
        self.pool.begun();
        self.durable_seq = self.next_batch_seq;
        self.next_batch_seq += 1;
        self.offset = FIRST_BATCH;
        let begun = LiveSegment {
            seq: header.seq,
            seg_id,
            file: staged.file,
            base: self.written.last_index,
        };
        self.published.begun(begun.source());
        self.segments.push_back(begun);
        self.stats.rolls += 1;
        Ok(())
    }

    fn new_segment_id(&mut self) -> u64 {
        #[cfg(any(test, feature = "sim"))]
        if self.options.sabotage == Sabotage::SameSegmentId {
            return 7;
        }
        self.ids.next()
    }

    fn encode_roll(&self, block: &mut Buffer, seq: u64, seg_id: u64) {
        let record = Record::Roll { seq, seg_id };
        let end = HEADER_BYTES + record.encoded_bytes();
        record.encode(&mut block[HEADER_BYTES..end]);
        let header = BatchHeader {
            seg_id: self.active().seg_id,
            batch_seq: self.next_batch_seq,
            durable_seq: self.durable_seq,
            first_index: 0,
            len: (end - HEADER_BYTES) as u32,
            records: 1,
            chain: self.chain,
            payload_crc: crc(&block[HEADER_BYTES..end]),
            crc: 0,
        };
        header.encode(block);
    }

    /// The next segment, which an append has made sure of.
    fn take_staged(&mut self) -> Option<Free> {
        let taken = match &mut self.background {
            Background::Thread(_) => self.pool.wait_and_take(),
            Background::Inline(worker) => loop {
                if let Some(answer) = self.pool.take() {
                    break answer;
                }
                worker.step();
            },
        };
        match taken {
            Ok(free) => Some(free),
            Err(NoSegment::Failed) => None,
            Err(NoSegment::Full) => unreachable!("appends are granted only what is ready"),
        }
    }

    fn fail(&mut self, doing: &str, offset: u64, error: &io::Error) {
        let path = self.dir.path(&log_name(self.active().seq));
        self.in_flight = None;
        self.fatal.call(&format!(
            "cannot {doing} {} at byte {offset}: {error}",
            path.display()
        ));
    }

    // ---- trimming --------------------------------------------------------------------------------

    /// Says that entries below `keep_from` are not needed any more. Segments that hold nothing
    /// else go back to the reserve or are removed, in the background. Never trims beyond the
    /// commit index; does not block and forces no flush.
    pub fn trim(&mut self, keep_from: u64) {
        if self.fatal.is_poisoned() {
            return;
        }
        let keep_from = keep_from.min(self.state.hard_state.commit + 1);
        self.keep_from = self.keep_from.max(keep_from);
        if keep_from > self.state.first_index {
            self.note_trim(keep_from);
            self.published.trimmed(keep_from);
            self.terms.trim(keep_from - 1);
        }
        // What remains must bear a restart: the commit index, or the snapshot mark, that makes the
        // older entries unnecessary must be durable itself.
        let durable = &self.durable_state;
        let committed = self.keep_from.min(durable.hard_state.commit + 1);
        let first = committed.max(durable.first_index);
        while self.segments.len() > 1 && self.segments[1].base < first {
            let old = self.segments.pop_front().expect("there are two");
            self.published.retired(old.seq);
            self.pool.retire(Retired::Segment {
                seq: old.seq,
                file: Free {
                    name: log_name(old.seq),
                    file: old.file,
                },
                recycle: true,
            });
        }
        self.reader.borrow_mut().forget();
    }

    /// Puts a trim mark into the queue, so that the log starts there after a restart too; if there
    /// is no room for one it starts lower, at the oldest segment, which does no harm.
    fn note_trim(&mut self, keep_from: u64) {
        let record = Record::Trim { keep_from };
        self.queue.starts_at(self.offset);
        let needs = self.queue.needs(std::iter::once(record.encoded_bytes()));
        let room = needs.segments == 0 || self.pool.ready() > needs.segments;
        let sound = self.state.check(&record).is_ok();
        if room && sound && self.queue.provide(needs.chunks).is_ok() {
            let upto = self.appended;
            self.put(std::iter::once(record));
            self.queue.mark(upto);
        }
    }

    // ---- reading ---------------------------------------------------------------------------------

    /// As [`Reader::entries`], on the owner's thread: blocks it for disk reads.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        self.reader.borrow_mut().entries(from, to, max_bytes)
    }

    /// Reads old entries beside the owner, from any thread.
    pub fn reader(&self) -> Reader {
        Reader::new(self.dir.path(""), self.published.clone())
    }

    // ---- asking ----------------------------------------------------------------------------------

    /// The lowest index in the log; `last_index() + 1` if it is empty.
    pub fn first_index(&self) -> u64 {
        self.state.first_index.max(self.keep_from)
    }

    /// The highest index appended, durable or not.
    pub fn last_index(&self) -> u64 {
        self.state.last_index
    }

    /// The highest index that is durable and not replaced by anything appended since.
    pub fn durable_index(&self) -> u64 {
        self.readable
    }

    /// The term of an entry appended, or of the one just before the first.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index + 1 < self.first_index() {
            return None;
        }
        self.terms.get(index)
    }

    /// The hard state appended last.
    pub fn hard_state(&self) -> HardState {
        self.state.hard_state
    }

    /// The commit index appended last, with its term.
    pub fn committed(&self) -> Committed {
        let index = self.state.hard_state.commit;
        Committed {
            index,
            term: self.term(index).unwrap_or(0),
        }
    }

    /// The newest snapshot mark: index and term.
    pub fn snapshot(&self) -> Option<(u64, u64)> {
        self.state.snapshot
    }

    /// How much is durable, as far as noticed.
    pub fn durable(&self) -> Durable {
        Durable(self.durable)
    }

    /// How much was appended.
    pub fn appended(&self) -> Appended {
        Appended(self.appended)
    }

    /// How durable writes are made: `io_uring`, `pwritev2`, …
    pub fn backend_name(&self) -> &'static str {
        self.backend_name
    }

    /// The largest entry that fits, in bytes of data.
    pub fn entry_bytes_max(&self) -> usize {
        self.queue.entry_bytes_max()
    }

    /// Has the background look for room again, after space was freed elsewhere. Returns at once;
    /// [`Stats::disk_full`] is false until the next attempt has failed.
    pub fn retry_space(&self) {
        self.pool.try_again();
    }

    pub fn stats(&self) -> Stats {
        Stats {
            prepared_bytes: self.filled_bytes.load(Ordering::Relaxed),
            segments: self.segments.len(),
            ready_segments: self.pool.ready(),
            gathered_bytes: self.queue.bytes(),
            disk_full: self.pool.is_full(),
            direct: self.dir.is_direct(),
            registered_buffers: match &self.flusher {
                Flusher::Ring(ring) => ring.has_registered_buffers(),
                _ => false,
            },
            ..self.stats
        }
    }

    /// Has the duration of every flush reported.
    pub fn set_on_flush(&mut self, hook: FlushHook) {
        self.on_flush = Some(hook);
    }

    /// Since when the durable write under way is under way, for any thread to look at.
    pub fn flush_clock(&self) -> FlushClock {
        self.clock.clone()
    }

    /// Has a thread tell of durable writes that take longer than `deadline`: a disk that hangs reports
    /// no error, and whoever waits for it cannot look. Replaces what was set before.
    pub fn set_on_stall(&mut self, deadline: Duration, hook: StallHook) -> io::Result<()> {
        self.watcher = None;
        self.watcher = Some(Watcher::start(self.clock.clone(), deadline, hook)?);
        Ok(())
    }

    /// Has `waker` called from the flush thread whenever a write of it has ended, so that an owner that
    /// sleeps elsewhere can [`Log::poll`]. Only with `Options::flush_thread`; `false` without.
    pub fn set_waker(&mut self, waker: Waker) -> bool {
        match &self.flusher {
            Flusher::Thread(thread) => {
                thread.set_waker(waker);
                true
            }
            _ => false,
        }
    }

    /// Replaces what happens when a write or sync fails. If the hook returns, the log takes and
    /// acknowledges nothing any more.
    pub fn set_fatal(&mut self, hook: FatalHook) {
        self.fatal.set(hook);
    }

    /// The files of the log, for messages.
    pub fn path(&self) -> PathBuf {
        self.options.dir.clone()
    }

    /// Does one step of background work; whether there was any. For logs opened with
    /// `inline_background`; otherwise a thread does it.
    pub fn background_step(&mut self) -> bool {
        match &mut self.background {
            Background::Thread(_) => false,
            Background::Inline(worker) => matches!(worker.step(), Step::Worked | Step::Filled),
        }
    }
}

impl Drop for Log {
    /// Waits for a write in flight and for the background, then lets go of the directory.
    fn drop(&mut self) {
        self.flusher = Flusher::Inline(None);
        self.pool.stop();
        if let Background::Thread(handle) = &mut self.background
            && let Some(handle) = handle.take()
        {
            // A panic there has already been reported by its thread.
            let _ = handle.join();
        }
    }
}

/// An entry's cost beside its data, in bytes of the batch.
pub const ENTRY_OVERHEAD_BYTES: usize = ENTRY_BYTES;
