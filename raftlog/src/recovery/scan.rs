//! Reading a directory of segments: what is there, where it stops, and what was seen around that
//! place. The verdict is the table's.

use super::table::{Observation, Row, Successor, decide};
use crate::buffer::Buffer;
use crate::disk::{Dir, SegFile};
use crate::error::{OpenError, Refusal};
use crate::format::batch::{self, BatchHeader, Record};
use crate::format::segment::{DEPTH, FIRST_BATCH, HeaderFault, PrevEnd, SegmentHeader, log_name};
use crate::format::{BLOCK_BYTES, crc, padded};
use crate::index::{BatchRef, Index, Terms};
use crate::published::Source;
use crate::state::State;
use crate::types::Committed;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

/// A log whose next batch would have this number or a higher one is refused.
const BATCH_SEQ_END: u64 = 1 << 61;
/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What the scan needs to know from outside.
pub(crate) struct Context<'a> {
    pub dir: &'a dyn Dir,
    /// Whose log it must be; `None`: of whoever the oldest segment says.
    pub identity: Option<[u64; 2]>,
    pub committed: Option<Committed>,
    pub accept_loss: bool,
    /// A deliberate mistake: what is read is not synced first.
    #[cfg(any(test, feature = "sim"))]
    pub trust_unsynced: bool,
}

impl Context<'_> {
    fn syncs_first(&self) -> bool {
        #[cfg(any(test, feature = "sim"))]
        return !self.trust_unsynced;
        #[cfg(not(any(test, feature = "sim")))]
        true
    }
}

/// A segment that holds a part of the log.
#[derive(Clone)]
pub(crate) struct LiveSegment {
    pub seq: u64,
    pub seg_id: u64,
    pub file: Arc<dyn SegFile>,
    /// The last index before its first batch: once everything up to here may go, so may the
    /// segments before this one.
    pub base: u64,
}

impl LiveSegment {
    /// The segment as readers see it.
    pub fn source(&self) -> Source<Arc<dyn SegFile>> {
        Source {
            seq: self.seq,
            seg_id: self.seg_id,
            file: self.file.clone(),
        }
    }
}

/// A recovered log.
pub(crate) struct Recovery {
    pub identity: [u64; 2],
    pub segments: Vec<LiveSegment>,
    pub state: State,
    pub terms: Terms,
    pub index: Index,
    /// Where the log ends; the next segment's header will say so.
    pub end: PrevEnd,
    /// The last batch found valid.
    pub durable_seq: u64,
    /// Higher than any batch sequence number that may be on the disk.
    pub next_batch_seq: u64,
    /// A prepared segment that follows the last one and was never used.
    pub never_started: Option<Arc<dyn SegFile>>,
    /// Files that an accepted loss cuts off.
    pub discarded: Vec<String>,
    pub report: String,
}

/// Reads one file after the other, forward, through one large aligned window.
struct Window {
    buffer: Buffer,
    file: Option<Arc<dyn SegFile>>,
    start: u64,
    filled: usize,
}

impl Window {
    fn new() -> io::Result<Window> {
        Ok(Window {
            buffer: Buffer::new(WINDOW_BYTES)?,
            file: None,
            start: 0,
            filled: 0,
        })
    }

    /// From now on this file is read.
    fn turn_to(&mut self, file: &Arc<dyn SegFile>) {
        self.file = Some(file.clone());
        self.filled = 0;
    }

    /// Up to `len` bytes at `offset` (a block's start); fewer at the end of the file.
    fn at(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let within = offset >= self.start && offset + len as u64 <= self.start + self.filled as u64;
        if !within {
            if padded(len) > self.buffer.len() {
                self.buffer = Buffer::new(len)?;
            }
            let file = self.file.as_ref().expect("turned to one");
            self.filled = file.read(offset, &mut self.buffer)?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let to = (from + len).min(self.filled);
        Ok(&self.buffer[from.min(to)..to])
    }
}

/// The place in the chain where the next batch is expected.
#[derive(Clone, Copy)]
struct Cursor {
    segment: usize,
    offset: u64,
    batch_seq: u64,
    chain: u32,
    durable_seq: u64,
}

struct Opened {
    seq: u64,
    file: Arc<dyn SegFile>,
    len: u64,
    header: Result<SegmentHeader, String>,
}

struct Scan<'a> {
    context: &'a Context<'a>,
    opened: Vec<Opened>,
    /// Segments exist behind a missing one.
    gap: bool,
    state: State,
    terms: Terms,
    index: Index,
    /// The last roll record seen: the segment it names.
    roll: Option<u64>,
    batches: u64,
}

/// What stands behind the place where the scan stopped.
#[derive(Default)]
struct Aftermath {
    durable_witness: Option<(u64, BatchHeader)>,
    later_batch: Option<(u64, BatchHeader)>,
    highest_seq: u64,
    /// The expected batch's header stands in its place; only its records are bad.
    torn_in_place: bool,
    not_zero: bool,
}

/// Recovers the log from the segments with these sequence numbers (ascending, not empty).
pub(crate) fn recover(context: &Context<'_>, seqs: &[u64]) -> Result<Recovery, OpenError> {
    let contiguous = seqs
        .iter()
        .zip(seqs[0]..)
        .take_while(|(seq, expected)| *seq == expected)
        .count();
    let mut opened: Vec<Opened> = Vec::new();
    for seq in &seqs[..contiguous] {
        let of_first = || opened.first()?.header.as_ref().ok().map(|h| h.identity);
        let identity = context.identity.or_else(of_first);
        opened.push(open_segment(context, *seq, identity)?);
    }
    let first = match &opened[0].header {
        Ok(header) => header.clone(),
        Err(what) => return Err(first_unreadable(context, &opened[0], what)),
    };
    let mut scan = Scan {
        context,
        opened,
        gap: contiguous < seqs.len(),
        terms: Terms::starting_after(first.state.last_index, first.state.last_term),
        state: first.state,
        index: Index::default(),
        roll: None,
        batches: 0,
    };
    let mut window = Window::new().map_err(io_error(context, "get memory for reading", seqs[0]))?;
    let start = Cursor {
        segment: 0,
        offset: FIRST_BATCH,
        batch_seq: first.next_batch_seq,
        chain: first.prev_end.chain,
        durable_seq: first.next_batch_seq - 1,
    };
    let cursor = scan.walk(start, &mut window)?;
    let recovery = scan.judge(cursor, &mut window, seqs, contiguous)?;
    check_reaches_down(context, &recovery)?;
    check_numbers_left(context, &recovery)?;
    Ok(recovery)
}

fn io_error<'a>(
    context: &'a Context<'_>,
    doing: &'static str,
    seq: u64,
) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        doing,
        path: context.dir.path(&log_name(seq)),
        source,
    }
}

fn open_segment(
    context: &Context<'_>,
    seq: u64,
    expected: Option<[u64; 2]>,
) -> Result<Opened, OpenError> {
    let name = log_name(seq);
    let file = context
        .dir
        .open(&name)
        .map_err(io_error(context, "open", seq))?;
    // Data may have reached only a device's volatile cache, or, after the death of a process, only
    // the page cache; it must not be counted on before it is durable.
    if context.syncs_first() {
        file.sync().map_err(io_error(context, "sync", seq))?;
    }
    file.drop_cache();
    let len = file
        .len()
        .map_err(io_error(context, "ask for the length of", seq))?;
    let mut block =
        Buffer::new(BLOCK_BYTES).map_err(io_error(context, "get memory for reading", seq))?;
    let n = file
        .read(0, &mut block)
        .map_err(io_error(context, "read the header of", seq))?;
    let header = match SegmentHeader::decode(&block[..n]) {
        Err(HeaderFault::Format(format)) => {
            let path = context.dir.path(&name);
            return Err(OpenError::Format { path, format });
        }
        Err(fault) => Err(format!("its header is bad ({fault:?})")),
        Ok(header) if header.seq != seq => {
            Err(format!("its header is stale (of segment {:x})", header.seq))
        }
        Ok(header) if expected.is_some_and(|e| e != header.identity) => {
            return Err(OpenError::Identity {
                path: context.dir.path(&name),
                found: header.identity,
                expected: expected.unwrap_or_default(),
            });
        }
        Ok(header) => Ok(header),
    };
    Ok(Opened {
        seq,
        file,
        len,
        header,
    })
}

fn first_unreadable(context: &Context<'_>, opened: &Opened, what: &str) -> OpenError {
    OpenError::Refused(Box::new(Refusal {
        row: Some(Row::SuccessorDamaged),
        path: context.dir.path(&log_name(opened.seq)),
        offset: 0,
        first_lost: context.committed.map_or(1, |c| c.index + 1),
        last_lost: None,
        detail: format!("it is the oldest segment and {what}"),
        can_accept: false,
    }))
}

/// Between what the store holds and what the log starts with there must be no hole.
fn check_reaches_down(context: &Context<'_>, recovery: &Recovery) -> Result<(), OpenError> {
    let Some(committed) = context.committed else {
        return Ok(());
    };
    let first = recovery.state.first_index;
    let by_snapshot = recovery.state.snapshot.is_some_and(|s| s.0 + 1 >= first);
    if committed.index + 1 >= first || by_snapshot {
        return Ok(());
    }
    Err(OpenError::Refused(Box::new(Refusal {
        row: None,
        path: context.dir.path(&log_name(recovery.segments[0].seq)),
        offset: 0,
        first_lost: committed.index + 1,
        last_lost: Some(first - 1),
        detail: format!(
            "the store has applied up to {} but the log starts at {first}: an older segment is \
             missing, or the store is older than the log",
            committed.index
        ),
        can_accept: false,
    })))
}

/// The numbers of batches to come must stay in the range that a segment's header can hold. No history is
/// that long: such a number was forged, or is a defect.
fn check_numbers_left(context: &Context<'_>, recovery: &Recovery) -> Result<(), OpenError> {
    if recovery.next_batch_seq < BATCH_SEQ_END {
        return Ok(());
    }
    Err(OpenError::Refused(Box::new(Refusal {
        row: None,
        path: context.dir.path(&log_name(recovery.end.seq)),
        offset: recovery.end.offset,
        first_lost: recovery.state.last_index + 1,
        last_lost: None,
        detail: format!(
            "the checksums are good but the next batch would have number {}; this is a defect, please \
             report it",
            recovery.next_batch_seq
        ),
        can_accept: false,
    })))
}

impl Scan<'_> {
    /// Follows the chain to the first place where no valid batch stands.
    fn walk(&mut self, mut cursor: Cursor, window: &mut Window) -> Result<Cursor, OpenError> {
        loop {
            window.turn_to(&self.opened[cursor.segment].file);
            loop {
                if self.successor_starts_at(&cursor) {
                    break;
                }
                match self.take_batch(window, &mut cursor)? {
                    true => {}
                    false => return Ok(cursor),
                }
            }
            self.check_successor_state(&cursor)?;
            let next = self.header(cursor.segment + 1).expect("it starts here");
            cursor = Cursor {
                segment: cursor.segment + 1,
                offset: FIRST_BATCH,
                batch_seq: next.next_batch_seq,
                ..cursor
            };
            self.roll = None;
        }
    }

    fn io(&self, cursor: Cursor) -> impl FnOnce(io::Error) -> OpenError + '_ {
        io_error(self.context, "read", self.opened[cursor.segment].seq)
    }

    fn header(&self, segment: usize) -> Option<&SegmentHeader> {
        self.opened.get(segment)?.header.as_ref().ok()
    }

    fn successor_starts_at(&self, cursor: &Cursor) -> bool {
        self.header(cursor.segment + 1).is_some_and(|next| {
            next.prev_end
                == PrevEnd {
                    seq: self.opened[cursor.segment].seq,
                    offset: cursor.offset,
                    chain: cursor.chain,
                }
                && next.next_batch_seq >= cursor.batch_seq
        })
    }

    /// A successor that starts here must agree with what was found in front of it.
    fn check_successor_state(&self, cursor: &Cursor) -> Result<(), OpenError> {
        let next = self.header(cursor.segment + 1).expect("it starts here");
        let here = State {
            first_index: next.state.first_index,
            ..self.state
        };
        if here == next.state {
            return Ok(());
        }
        let at = Cursor {
            segment: cursor.segment + 1,
            offset: 0,
            ..*cursor
        };
        Err(self.malformed(
            &at,
            format!(
                "its header says {:?}, but the records before it say {:?}",
                next.state, here
            ),
        ))
    }

    /// Reads the batch at the cursor and moves behind it; `false` if no valid one stands there.
    fn take_batch(&mut self, window: &mut Window, cursor: &mut Cursor) -> Result<bool, OpenError> {
        let segment = &self.opened[cursor.segment];
        let (seq, len) = (segment.seq, segment.len);
        let seg_id = self.header(cursor.segment).expect("walked into").seg_id;
        let read = io_error(self.context, "read", seq);
        let head = match window.at(cursor.offset, batch::HEADER_BYTES) {
            Ok(bytes) => BatchHeader::decode(bytes),
            Err(e) => return Err(read(e)),
        };
        let Some(header) = head else {
            return Ok(false);
        };
        let expected = header.seg_id == seg_id
            && header.batch_seq == cursor.batch_seq
            && header.chain == cursor.chain
            && header.durable_seq < header.batch_seq
            && cursor.offset + header.disk_bytes() <= len;
        if !expected {
            return Ok(false);
        }
        let whole = batch::HEADER_BYTES + header.len as usize;
        let bytes = window.at(cursor.offset, whole).map_err(read)?;
        if bytes.len() < whole || crc(&bytes[batch::HEADER_BYTES..]) != header.payload_crc {
            return Ok(false);
        }
        self.fold(&bytes[batch::HEADER_BYTES..], &header, cursor)?;
        cursor.offset += header.disk_bytes();
        cursor.durable_seq = cursor.batch_seq;
        cursor.batch_seq += 1;
        cursor.chain = header.crc;
        self.batches += 1;
        Ok(true)
    }

    fn fold(
        &mut self,
        payload: &[u8],
        header: &BatchHeader,
        cursor: &Cursor,
    ) -> Result<(), OpenError> {
        let mut lowest: Option<u64> = None;
        let mut records = 0;
        for record in batch::records(payload) {
            let Some(record) = record else {
                return Err(self.malformed(cursor, "a record cannot be decoded".into()));
            };
            records += 1;
            if let Err(what) = self.state.check(&record) {
                return Err(self.malformed(cursor, format!("a record is impossible: {what}")));
            }
            self.state.apply(&record);
            match record {
                Record::Entry { index, term, .. } => {
                    self.terms.push(index, term);
                    lowest = Some(lowest.map_or(index, |l| l.min(index)));
                }
                Record::Snapshot { index, term } => {
                    self.terms = Terms::starting_after(index, term);
                    self.index.clear();
                    lowest = None;
                }
                Record::Trim { keep_from } => {
                    self.terms.trim(keep_from - 1);
                    self.index.trim(keep_from);
                }
                Record::Roll { seq, .. } => self.roll = Some(seq),
                Record::HardState(_) => {}
            }
        }
        if records != header.records {
            return Err(self.malformed(cursor, "the number of records is wrong".into()));
        }
        if let Some(first) = lowest {
            self.index.push(BatchRef {
                first,
                last: self.state.last_index,
                segment: self.opened[cursor.segment].seq,
                offset: cursor.offset as u32,
                disk_bytes: header.disk_bytes() as u32,
                batch_seq: header.batch_seq,
            });
        }
        Ok(())
    }

    /// Checksums are good but the contents make no sense: not the disk's doing.
    fn malformed(&self, cursor: &Cursor, detail: String) -> OpenError {
        OpenError::Refused(Box::new(Refusal {
            row: None,
            path: self.path(cursor.segment),
            offset: cursor.offset,
            first_lost: self.state.last_index + 1,
            last_lost: None,
            detail: format!(
                "the checksums are good but {detail}; this is a defect, please report it"
            ),
            can_accept: false,
        }))
    }

    fn path(&self, segment: usize) -> std::path::PathBuf {
        self.context.dir.path(&log_name(self.opened[segment].seq))
    }

    /// Looks at everything behind the cursor in its segment.
    fn look_behind(&self, cursor: &Cursor, window: &mut Window) -> Result<Aftermath, OpenError> {
        let segment = &self.opened[cursor.segment];
        let seg_id = self.header(cursor.segment).expect("walked into").seg_id;
        window.turn_to(&segment.file);
        let mut seen = Aftermath {
            highest_seq: cursor.batch_seq,
            ..Aftermath::default()
        };
        let mut offset = cursor.offset;
        while offset < segment.len {
            let bytes = window.at(offset, BLOCK_BYTES).map_err(self.io(*cursor))?;
            if offset == cursor.offset {
                seen.not_zero = bytes.iter().any(|b| *b != 0);
            }
            if let Some(header) = BatchHeader::decode(bytes).filter(|h| h.seg_id == seg_id) {
                let in_place = offset == cursor.offset
                    && header.batch_seq == cursor.batch_seq
                    && header.chain == cursor.chain;
                seen.highest_seq = seen.highest_seq.max(header.batch_seq);
                seen.torn_in_place |= in_place;
                if header.durable_seq >= cursor.batch_seq {
                    seen.durable_witness.get_or_insert((offset, header));
                }
                if !in_place {
                    seen.later_batch.get_or_insert((offset, header));
                }
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(seen)
    }

    /// The youngest batch in a segment without a good header, if it is younger than the chain.
    fn continues(
        &self,
        segment: usize,
        cursor: &Cursor,
        window: &mut Window,
    ) -> Result<Option<BatchHeader>, OpenError> {
        let opened = &self.opened[segment];
        let at = Cursor { segment, ..*cursor };
        window.turn_to(&opened.file);
        let mut found: Option<BatchHeader> = None;
        let mut offset = FIRST_BATCH;
        while offset < opened.len {
            let bytes = window.at(offset, BLOCK_BYTES).map_err(self.io(at))?;
            if let Some(header) = BatchHeader::decode(bytes) {
                let younger = header.batch_seq >= cursor.batch_seq;
                if younger && found.is_none_or(|f| f.batch_seq < header.batch_seq) {
                    found = Some(header);
                }
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(found)
    }

    fn judge(
        self,
        cursor: Cursor,
        window: &mut Window,
        seqs: &[u64],
        contiguous: usize,
    ) -> Result<Recovery, OpenError> {
        let seen = self.look_behind(&cursor, window)?;
        let mut details = Vec::new();
        let next = cursor.segment + 1;
        let named = self
            .roll
            .is_some_and(|seq| seq > self.opened[cursor.segment].seq);
        let mut witness = seen.durable_witness;
        let mut last_lost = None;
        let successor = match self.opened.get(next).map(|o| &o.header) {
            None if self.gap || named => {
                details.push("the next segment file is missing".to_string());
                Successor::Unreadable {
                    last: !self.gap,
                    named,
                    continues: false,
                }
            }
            None => Successor::None,
            Some(Ok(header)) => {
                details.push(format!(
                    "the next segment says that this one goes on to byte {} of segment {:x}",
                    header.prev_end.offset, header.prev_end.seq
                ));
                last_lost = Some(header.state.last_index);
                Successor::Beyond
            }
            Some(Err(what)) => {
                let younger = self.continues(next, &cursor, window)?;
                if let Some(found) = younger {
                    details.push(format!("the next segment holds batch {}", found.batch_seq));
                    if found.durable_seq >= cursor.batch_seq {
                        witness.get_or_insert((0, found));
                    }
                }
                if named {
                    details.push("a roll record names the next segment".to_string());
                }
                details.push(format!("of the next segment, {what}"));
                Successor::Unreadable {
                    last: next + 1 == self.opened.len() && !self.gap,
                    named,
                    continues: younger.is_some(),
                }
            }
        };
        if let Some((offset, header)) = witness {
            details.push(format!(
                "batch {} at byte {offset} says that batch {} was durable",
                header.batch_seq, header.durable_seq
            ));
        }
        if let Some((offset, header)) = seen.later_batch {
            details.push(format!(
                "batch {} stands at byte {offset}",
                header.batch_seq
            ));
        }
        let header = self.header(cursor.segment).expect("walked into");
        let floor = self.context.committed.map_or(0, |c| c.index);
        if floor > self.state.last_index {
            details.push(format!("entry {floor} is known to be committed"));
        }
        let cut_short = self.opened[cursor.segment].len < header.segment_bytes;
        if cut_short {
            details.push(format!(
                "the file has {} bytes instead of {}",
                self.opened[cursor.segment].len, header.segment_bytes
            ));
        }
        details.insert(0, format!("batch {} is expected here", cursor.batch_seq));
        let mut observation = Observation {
            committed_beyond: floor > self.state.last_index,
            durable_witness: witness.is_some(),
            cut_short,
            successor,
            later_batch: seen.later_batch.is_some(),
            depth_one: DEPTH == 1,
        };
        let mut row = decide(&observation);
        let mut never_started = None;
        if row == Row::NeverStarted {
            never_started = Some(self.opened[next].file.clone());
            observation.successor = Successor::None;
            row = decide(&observation);
        }
        if row.refuses() {
            let refusal = Refusal {
                row: Some(row),
                path: self.path(cursor.segment),
                offset: cursor.offset,
                first_lost: self.state.last_index + 1,
                last_lost: last_lost.max((floor > self.state.last_index).then_some(floor)),
                detail: details.join("; "),
                can_accept: true,
            };
            if !self.context.accept_loss {
                return Err(OpenError::Refused(Box::new(refusal)));
            }
            let story = format!("LOSS ACCEPTED: {refusal}");
            let discarded = self.opened[next..].iter().map(|o| log_name(o.seq));
            let discarded = discarded.chain(seqs[contiguous..].iter().map(|s| log_name(*s)));
            let discarded = discarded.collect();
            return Ok(self.cut(cursor, seen, None, discarded, story));
        }
        let story = match (row, seen.torn_in_place, seen.not_zero) {
            (Row::TornWindow, ..) => {
                "the writes in flight at the end were torn; nothing of them \
                                      had been acknowledged"
            }
            (_, true, _) => "the last write was torn; nothing of it had been acknowledged",
            (_, false, true) => "a clean end, or a last write torn in its first block",
            (_, false, false) => "a clean end",
        };
        let prepared = match never_started {
            Some(_) => "; the next segment was prepared but never used",
            None => "",
        };
        let story = format!("{story} (row {}){prepared}", row.number());
        Ok(self.cut(cursor, seen, never_started, Vec::new(), story))
    }

    /// The log up to the cursor.
    fn cut(
        mut self,
        cursor: Cursor,
        seen: Aftermath,
        never_started: Option<Arc<dyn SegFile>>,
        discarded: Vec<String>,
        story: String,
    ) -> Recovery {
        let segments: Vec<LiveSegment> = self.opened[..=cursor.segment]
            .iter()
            .map(|o| {
                let header = o.header.as_ref().expect("walked through");
                LiveSegment {
                    seq: o.seq,
                    seg_id: header.seg_id,
                    file: o.file.clone(),
                    base: header.state.last_index,
                }
            })
            .collect();
        if let Some(c) = self
            .context
            .committed
            .filter(|c| c.index > self.state.last_index)
        {
            // Only reached when a loss was accepted: what the store has applied stands for the
            // entries that are gone.
            let mark = Record::Snapshot {
                index: c.index,
                term: c.term,
            };
            self.state.apply(&mark);
            self.terms = Terms::starting_after(c.index, c.term);
            self.index.clear();
        }
        // What lay before the oldest segment is gone, whatever the trim mark says.
        let base = segments[0].base;
        self.state.first_index = self.state.first_index.max(base + 1);
        let mut report = String::new();
        let s = &self.state;
        let _ = write!(
            report,
            "{} segments from {:x} to {:x}, {} batches, entries {}..={} (term {}), term {} vote \
             {:x} commit {}; ends at byte {} of {}: {story}",
            segments.len(),
            segments[0].seq,
            self.opened[cursor.segment].seq,
            self.batches,
            s.first_index,
            s.last_index,
            s.last_term,
            s.hard_state.term,
            s.hard_state.vote,
            s.hard_state.commit,
            cursor.offset,
            log_name(self.opened[cursor.segment].seq),
        );
        let oldest = self.opened[0].header.as_ref().expect("walked through");
        Recovery {
            identity: oldest.identity,
            end: PrevEnd {
                seq: self.opened[cursor.segment].seq,
                offset: cursor.offset,
                chain: cursor.chain,
            },
            segments,
            state: self.state,
            terms: self.terms,
            index: self.index,
            durable_seq: cursor.durable_seq,
            next_batch_seq: seen.highest_seq.max(cursor.batch_seq) + 1,
            never_started,
            discarded,
            report,
        }
    }
}
