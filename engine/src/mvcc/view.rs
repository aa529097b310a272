//! A published state: immutable, whole, cheap to clone, readable from any thread.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::events::chunk::{EventView, Prev};
use crate::events::log::OpenChunk;
use crate::record::{Live, OwnedValue};
use crate::source::{Snapshot, Source};
use crate::types::{
    Applied, Error, Event, EventKind, EventsEnd, HashKv, KeyRange, KeyValue, KvRef, KvVisitor,
    RecordVisitor, Result, Revision,
};

use super::Meta;
use super::reader::{Reader, Values};

/// One whole state. Reads never wait for the writer; a read that misses the page cache waits for
/// the disk. A held view keeps the space of its pages from being reused, so let go of it, and take a
/// [`LongRead`](crate::LongRead) for what may last.
#[derive(Clone)]
pub struct View {
    pub(crate) inner: Arc<ViewInner>,
}

pub(crate) struct ViewInner {
    pub snapshot: Snapshot,
    pub open: Option<OpenChunk>,
    pub meta: Meta,
}

impl View {
    /// As [`Writer::prefetch`](crate::Writer::prefetch), from any thread: what is known of a request
    /// before it is applied can bring its pages into memory meanwhile.
    pub fn prefetch(&self, keys: &[&[u8]]) {
        self.inner.snapshot.prefetch(crate::source::TreeId::K, keys);
    }

    /// The newest revision, at least 1.
    pub fn revision(&self) -> i64 {
        self.inner.meta.revision
    }

    /// Reads below this are refused; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.inner.meta.compact_revision
    }

    /// History below this is physically gone; equals [`View::compact_revision`] when nothing is left
    /// to do.
    pub fn compact_done(&self) -> i64 {
        self.inner.meta.compact_done
    }

    /// The last log entry in this state.
    pub fn applied(&self) -> Applied {
        self.inner.meta.applied
    }

    /// A hash of every change ever applied, equal on members with equal logs.
    pub fn rolling_hash(&self) -> u64 {
        self.inner.meta.rolling
    }

    /// The server's blob given at publication.
    pub fn meta(&self) -> &[u8] {
        &self.inner.meta.blob
    }

    pub(crate) fn reader(&self) -> Reader<'_, Snapshot> {
        let inner = &*self.inner;
        Reader {
            src: &inner.snapshot,
            open: inner.open.as_ref(),
            next_seq: inner.meta.next_seq,
            revision: inner.meta.revision,
            compact: inner.meta.compact_revision,
            changing: false,
        }
    }

    /// One key at revision `at`; `at <= 0` means the newest.
    pub fn get(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>> {
        self.reader().get(key, at)
    }

    /// Calls `f` with one key's version at revision `at` (`<= 0`: newest), where it lies, if there is one.
    pub fn read<R>(
        &self,
        key: &[u8],
        at: i64,
        f: impl FnOnce(KvRef<'_>) -> R,
    ) -> Result<Option<R>> {
        self.reader().read(key, at, f)
    }

    /// Hands the live keys of a range at revision `at` (`<= 0`: newest) to `f` in key order.
    pub fn visit(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.reader().visit(range, at, Values::Load, f)
    }

    /// As [`View::visit`], in descending key order.
    pub fn visit_rev(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.reader().visit_rev(range, at, Values::Load, f)
    }

    /// As [`View::visit`] without reading values that are stored outside the tree: those are
    /// empty. For answers that show no values.
    pub fn visit_keys(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.reader().visit(range, at, Values::Skip, f)
    }

    /// Number of live keys of a range at revision `at` (`<= 0`: newest, O(log n)).
    pub fn count(&self, range: &KeyRange, at: i64) -> Result<u64> {
        self.reader().count(range, at)
    }

    /// Hands every event from revision `from_main` on to `f`, in order. Stops after the revision
    /// with which the events reach `max_bytes`; when `f` breaks, its revision counts as not
    /// delivered. `from_main` may be the compact revision itself, not less.
    pub fn events(
        &self,
        from_main: i64,
        max_bytes: usize,
        f: &mut dyn FnMut(EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventsEnd> {
        let meta = &self.inner.meta;
        if from_main < meta.compact_revision {
            return Err(Error::Compacted);
        }
        let mut end = EventsEnd {
            next_main: (meta.revision + 1).max(from_main),
            reached_end: true,
        };
        let mut current = from_main;
        let mut bytes = 0usize;
        let from = Revision {
            main: from_main.max(0),
            sub: 0,
        };
        self.reader().history().scan(from, |event, home| {
            let main = event.rev.main;
            let stop = |next_main| EventsEnd {
                next_main,
                reached_end: false,
            };
            if main > current && bytes >= max_bytes {
                end = stop(main);
                return Ok(ControlFlow::Break(()));
            }
            current = main;
            let shown = EventRef {
                event,
                home,
                snapshot: &self.inner.snapshot,
                // As etcd: the previous version is the one readable at main - 1.
                prev_readable: main > meta.compact_revision,
            };
            bytes += shown.size();
            let flow = f(shown);
            if flow.is_break() {
                end = stop(main);
            }
            Ok(flow)
        })?;
        Ok(end)
    }

    /// The keys attached to a lease, in key order.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>> {
        self.reader().lease_keys(lease)
    }

    /// A system record.
    pub fn sys_get(&self, bucket: u8, key: &[u8]) -> Result<Option<Bytes>> {
        self.reader().sys_get(bucket, key)
    }

    /// The system records of a bucket in key order.
    pub fn sys_scan(&self, bucket: u8, f: &mut RecordVisitor<'_>) -> Result<()> {
        self.reader().sys_scan(bucket, f)
    }

    /// etcd's HashKV at `rev`; 0 means the newest. Reads every key: not for a hot path.
    pub fn hash_kv(&self, rev: i64) -> Result<HashKv> {
        crate::hash::kv::hash_kv(self, rev)
    }
}

/// An event borrowed from history. Values in runs are read when asked for.
pub struct EventRef<'a> {
    event: EventView<'a>,
    home: Option<&'a Bytes>,
    snapshot: &'a Snapshot,
    prev_readable: bool,
}

impl EventRef<'_> {
    /// Put or delete.
    pub fn kind(&self) -> EventKind {
        self.event.kind()
    }

    /// Its place in history.
    pub fn revision(&self) -> Revision {
        self.event.rev
    }

    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        self.event.key
    }

    /// Bytes of key and values, roughly what the event takes in an answer.
    pub fn size(&self) -> usize {
        let value = |live: &Live<'_>| 32 + live.value_bytes();
        let prev = match &self.event.prev {
            Prev::Live(_, live) => value(live),
            _ => 0,
        };
        16 + self.event.key.len() + self.event.new.as_ref().map_or(0, value) + prev
    }

    /// The new version; for a delete only key and mod_revision.
    pub fn kv(&self) -> Result<KeyValue> {
        match &self.event.new {
            Some(live) => self.key_value(self.event.rev.main, live),
            None => Ok(KeyValue {
                key: self.own(self.event.key),
                mod_revision: self.event.rev.main,
                ..KeyValue::default()
            }),
        }
    }

    /// The live version that was replaced or removed, unless it was compacted away.
    pub fn prev(&self) -> Result<Option<KeyValue>> {
        match &self.event.prev {
            Prev::Live(rev, live) if self.prev_readable => self.key_value(rev.main, live).map(Some),
            _ => Ok(None),
        }
    }

    /// Everything, owned.
    pub fn to_event(&self) -> Result<Event> {
        Ok(Event {
            kind: self.kind(),
            revision: self.revision(),
            kv: self.kv()?,
            prev: self.prev()?,
        })
    }

    fn own(&self, bytes: &[u8]) -> Bytes {
        match self.home {
            Some(home) => home.slice_ref(bytes),
            None => Bytes::copy_from_slice(bytes),
        }
    }

    fn key_value(&self, main: i64, live: &Live<'_>) -> Result<KeyValue> {
        Ok(KeyValue {
            key: self.own(self.event.key),
            value: match live.value.to_owned_in(self.home) {
                OwnedValue::Bytes(bytes) => bytes,
                OwnedValue::Run(run) => Source::read_run(self.snapshot, run)?,
            },
            create_revision: live.create,
            mod_revision: main,
            version: live.version,
            lease: live.lease,
        })
    }
}
