//! The writing end of history: events gather in an open chunk, full chunks become runs.
//!
//! E, the index tree, maps the revision of a chunk's first event to where the chunk is and what
//! compaction and counts need to know without reading it. The open chunk is in memory only; the
//! writer seals it before each checkpoint, so a durable state has no open chunk.
//!
//! Invariants:
//! 1. Events are appended in strictly ascending (main, sub); chunks do not overlap.
//! 2. `seq`, the running number of an event since the store was made, is dense over all chunks.
//! 3. A chunk is at most `chunk_bytes` of slots and data, unless one event alone is larger.

use bytes::Bytes;

use crate::record::{Anchors, Live, ValueRef, run_ref};
use crate::source::{LIVE, RunKind, RunRef, StoreWriter, TreeId};
use crate::types::{Error, Result, Revision};

use super::append_buf::{AppendBuf, Published};
use super::chunk::{self, ChunkView, Prev, SLOT_BYTES};

pub(crate) const INDEX_KEY_BYTES: usize = 12;
const INDEX_VALUE_BYTES: usize = 24 + 8 + 4 + 4 + 8 + 4 + 4;
/// An event takes at least this much with its slot: flags, a key of one byte, a depth.
const EVENT_BYTES_MIN: usize = SLOT_BYTES + 4;

/// Key of E: big-endian, so that byte order is history order.
pub(crate) fn index_key(rev: Revision) -> [u8; INDEX_KEY_BYTES] {
    let mut key = [0; INDEX_KEY_BYTES];
    key[..8].copy_from_slice(&(rev.main as u64).to_be_bytes());
    key[8..].copy_from_slice(&u32::try_from(rev.sub).unwrap_or(u32::MAX).to_be_bytes());
    key
}

/// Value of E.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkEntry {
    pub run: RunRef,
    pub last: Revision,
    pub events: u32,
    /// Running number of the first event.
    pub first_seq: u64,
    /// Delete events in the chunk: compaction looks for their tombstones.
    pub deletes: u32,
    /// Previous values in runs: compaction frees them.
    pub prev_runs: u32,
}

impl ChunkEntry {
    pub(crate) fn encode(&self) -> [u8; INDEX_VALUE_BYTES] {
        let mut out = [0; INDEX_VALUE_BYTES];
        out[..24].copy_from_slice(&self.run.to_bytes());
        out[24..32].copy_from_slice(&(self.last.main as u64).to_le_bytes());
        out[32..36].copy_from_slice(&(self.last.sub as u32).to_le_bytes());
        out[36..40].copy_from_slice(&self.events.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        out[48..52].copy_from_slice(&self.deletes.to_le_bytes());
        out[52..].copy_from_slice(&self.prev_runs.to_le_bytes());
        out
    }

    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<(Revision, ChunkEntry)> {
        if key.len() != INDEX_KEY_BYTES || value.len() != INDEX_VALUE_BYTES {
            return Err(Error::Corrupt(
                "an entry of the event index has a wrong size".into(),
            ));
        }
        let u32_at = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().expect("8"));
        let main = |n: u64| {
            i64::try_from(n).map_err(|_| Error::Corrupt("event index: revision too large".into()))
        };
        let first = Revision {
            main: main(u64::from_be_bytes(key[..8].try_into().expect("8")))?,
            sub: i64::from(u32::from_be_bytes(key[8..].try_into().expect("4"))),
        };
        let entry = ChunkEntry {
            run: run_ref(&value[..24])?,
            last: Revision {
                main: main(u64_at(24))?,
                sub: i64::from(u32_at(32)),
            },
            events: u32_at(36),
            first_seq: u64_at(40),
            deletes: u32_at(48),
            prev_runs: u32_at(52),
        };
        Ok((first, entry))
    }
}

/// The open chunk, owner's side.
struct Open {
    first: Revision,
    last: Revision,
    first_seq: u64,
    deletes: u32,
    prev_runs: u32,
    slots: AppendBuf,
    data: AppendBuf,
}

/// The open chunk as a published state sees it.
#[derive(Clone)]
pub(crate) struct OpenChunk {
    pub first: Revision,
    pub first_seq: u64,
    slots: Published,
    data: Published,
}

impl OpenChunk {
    pub(crate) fn view(&self) -> ChunkView<'_> {
        ChunkView::open(self.first.main, self.slots.as_slice(), self.data.as_slice())
    }
}

/// Appends events and seals chunks. Owned by the writer.
pub(crate) struct EventLog {
    open: Option<Open>,
    next_seq: u64,
    chunk_bytes: usize,
    scratch: Vec<u8>,
}

impl EventLog {
    pub(crate) fn new(next_seq: u64, chunk_bytes: usize) -> EventLog {
        EventLog {
            open: None,
            next_seq,
            chunk_bytes,
            scratch: Vec::new(),
        }
    }

    /// The running number the next event will get.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The first event of the open chunk.
    pub(crate) fn first(&self) -> Option<Revision> {
        self.open.as_ref().map(|open| open.first)
    }

    /// The last event of the open chunk.
    pub(crate) fn last(&self) -> Option<Revision> {
        self.open.as_ref().map(|open| open.last)
    }

    /// Appends one event, sealing the open chunk first when it is full.
    pub(crate) fn append(
        &mut self,
        store: &mut StoreWriter,
        rev: Revision,
        key: &[u8],
        anchors: &Anchors,
        new: Option<&Live<'_>>,
        prev: &Prev<'_>,
    ) -> Result<()> {
        let mut event = std::mem::take(&mut self.scratch);
        event.clear();
        chunk::encode_event(rev, key, anchors, new, prev, &mut event);
        if !self.fits(event.len()) {
            self.seal(store)?;
        }
        let next_seq = self.next_seq;
        let room = self.chunk_bytes;
        let open = self
            .open
            .get_or_insert_with(|| Open::new(rev, next_seq, room, event.len()));
        assert!(
            open.slots.as_slice().is_empty() || open.last < rev,
            "history goes forward"
        );
        let offset = open.data.as_slice().len();
        let slot = chunk::encode_slot(open.first.main, rev, offset)?;
        let fitted = open.slots.append(&slot) && open.data.append(&event);
        assert!(fitted, "room was checked");
        open.last = rev;
        open.deletes += u32::from(new.is_none());
        if let Prev::Live(_, live) = prev {
            open.prev_runs += u32::from(matches!(live.value, ValueRef::Run(_)));
        }
        self.next_seq += 1;
        self.scratch = event;
        Ok(())
    }

    fn fits(&self, event_bytes: usize) -> bool {
        self.open
            .as_ref()
            .is_none_or(|open| open.fits(event_bytes, self.chunk_bytes))
    }

    /// Turns the open chunk, if there is one, into a run and an entry of E.
    pub(crate) fn seal(&mut self, store: &mut StoreWriter) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let key = index_key(open.first);
        let mut owner = [0; 16];
        owner[..INDEX_KEY_BYTES].copy_from_slice(&key);
        let bytes: Bytes =
            chunk::seal(open.first.main, open.slots.as_slice(), open.data.as_slice());
        let run = store.write_run(RunKind::Chunk, &key, owner, bytes)?;
        let entry = ChunkEntry {
            run,
            last: open.last,
            events: (open.slots.as_slice().len() / SLOT_BYTES) as u32,
            first_seq: open.first_seq,
            deletes: open.deletes,
            prev_runs: open.prev_runs,
        };
        store.insert(TreeId::E, &key, LIVE, &entry.encode())?;
        Ok(())
    }

    /// The open chunk as of now.
    pub(crate) fn published(&self) -> Option<OpenChunk> {
        self.open.as_ref().map(|open| OpenChunk {
            first: open.first,
            first_seq: open.first_seq,
            slots: open.slots.published(),
            data: open.data.published(),
        })
    }
}

impl Open {
    fn new(first: Revision, first_seq: u64, chunk_bytes: usize, event_bytes: usize) -> Open {
        Open {
            first,
            last: first,
            first_seq,
            deletes: 0,
            prev_runs: 0,
            slots: AppendBuf::new((chunk_bytes / EVENT_BYTES_MIN).max(1) * SLOT_BYTES),
            data: AppendBuf::new(chunk_bytes.max(event_bytes)),
        }
    }

    fn fits(&self, event_bytes: usize, chunk_bytes: usize) -> bool {
        let used = self.slots.as_slice().len() + self.data.as_slice().len();
        self.slots.room() >= SLOT_BYTES
            && self.data.room() >= event_bytes
            && used + SLOT_BYTES + event_bytes <= chunk_bytes
    }
}
