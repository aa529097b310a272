//! Reads that work alike on a published state and on the writer's working state.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::events::chunk::EventView;
use crate::events::log::OpenChunk;
use crate::events::scan::{ChunkCache, History, OldVersion};
use crate::record::{Live, OwnedValue, Record, ValueRef, decode_record};
use crate::source::{LIVE, Source, TreeId};
use crate::types::{Error, KeyRange, KeyValue, KvRef, KvVisitor, RecordVisitor, Result, Revision};

/// One state, ready to be read.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a, S> {
    pub src: &'a S,
    pub open: Option<&'a OpenChunk>,
    pub next_seq: u64,
    /// The newest complete revision.
    pub revision: i64,
    pub compact: i64,
    /// Changes of revision + 1 are in the state too; only reads "at 0" see them.
    pub changing: bool,
}

/// How much one piece of long work looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// Entries of a tree, or events.
    pub entries: usize,
    /// Bytes of keys and values shown; the one that passes it is the last.
    pub bytes: usize,
}

impl Slice {
    /// A millisecond, warm.
    pub(crate) const LONG: Slice = Slice {
        entries: 1024,
        bytes: 1 << 20,
    };

    fn is_over(&self) -> bool {
        self.entries == 0 || self.bytes == 0
    }

    fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What is shown of a version: key, place in history, the rest. A value in a run is not read.
pub(crate) type VersionVisitor<'f> =
    dyn FnMut(&[u8], Revision, &Live<'_>) -> Result<ControlFlow<()>> + 'f;

/// Whether values kept in runs are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    Load,
    /// Values in runs are handed out empty.
    Skip,
}

impl<'a, S: Source> Reader<'a, S> {
    pub(crate) fn history(&self) -> History<'a, S> {
        History {
            src: self.src,
            open: self.open,
            next_seq: self.next_seq,
        }
    }

    /// None: the state as it is; else the older revision to look for.
    fn resolve(&self, at: i64) -> Result<Option<i64>> {
        if at <= 0 {
            return Ok(None);
        }
        if at > self.revision {
            return Err(Error::Future);
        }
        if at < self.compact {
            return Err(Error::Compacted);
        }
        Ok((at < self.revision || self.changing).then_some(at))
    }

    pub(crate) fn get(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>> {
        let at = self.resolve(at)?;
        let found = self.src.get_with(TreeId::K, key, |flags, value| {
            if at.is_none() && flags & LIVE == 0 {
                return Ok(None);
            }
            let record = decode_record(flags, value)?;
            self.pick(key, &record, at, &mut ChunkCache::default())
                .map(|picked| picked.detach(record.rev))
        })?;
        let Some(version) = found.transpose()?.flatten() else {
            return Ok(None);
        };
        Ok(Some(KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: version.create,
            mod_revision: version.rev.main,
            version: version.version,
            lease: version.lease,
            value: self.load(version.value)?,
        }))
    }

    pub(crate) fn read<R>(
        &self,
        key: &[u8],
        at: i64,
        f: impl FnOnce(KvRef<'_>) -> R,
    ) -> Result<Option<R>> {
        let at = self.resolve(at)?;
        let (mut f, mut answer) = (Some(f), None);
        self.visit_one(key, at, Values::Load, &mut |kv| {
            answer = f.take().map(|f| f(kv));
            ControlFlow::Continue(())
        })?;
        Ok(answer)
    }

    /// The version of a K entry that is valid at `at`.
    fn pick<'r>(
        &self,
        key: &[u8],
        record: &Record<'r>,
        at: Option<i64>,
        cache: &mut ChunkCache,
    ) -> Result<Picked<'r>> {
        match at {
            Some(at) if record.rev.main > at => Ok(
                match self.history().version_at(key, record.rev, at, cache)? {
                    Some(old) => Picked::Older(old),
                    None => Picked::Nothing,
                },
            ),
            _ => Ok(record.live.map_or(Picked::Nothing, Picked::Newest)),
        }
    }

    pub(crate) fn load(&self, value: OwnedValue) -> Result<Bytes> {
        match value {
            OwnedValue::Bytes(bytes) => Ok(bytes),
            OwnedValue::Run(run) => self.src.read_run(run),
        }
    }

    pub(crate) fn visit(
        &self,
        range: &KeyRange,
        at: i64,
        values: Values,
        f: &mut KvVisitor<'_>,
    ) -> Result<()> {
        let at = self.resolve(at)?;
        if range.is_empty() {
            return Ok(());
        }
        if let KeyRange::One(key) = range {
            return self.visit_one(key, at, values, f);
        }
        let mut cursor = self.src.cursor(TreeId::K, at.is_none());
        let mut cache = ChunkCache::default();
        if let KeyRange::Half { end, .. } = range {
            cursor.until(end);
        }
        cursor.seek(range.start())?;
        while cursor.valid() {
            let (key, flags, value) = (cursor.key(), cursor.flags(), cursor.value());
            if self
                .show(key, flags, value, at, values, &mut cache, f)?
                .is_break()
            {
                return Ok(());
            }
            cursor.next()?;
        }
        Ok(())
    }

    /// Hands the versions that are live at `at`, of keys in `[from, end)`, to `f` in key order, within bounds or until it
    /// breaks. Where to go on; `None` when there is nothing more.
    pub(crate) fn versions(
        &self,
        from: &[u8],
        end: Option<&[u8]>,
        at: i64,
        mut left: Slice,
        f: &mut VersionVisitor<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let at = self.resolve(at)?;
        let mut cursor = self.src.cursor(TreeId::K, at.is_none());
        let mut cache = ChunkCache::default();
        if let Some(end) = end {
            cursor.until(end);
        }
        cursor.seek(from)?;
        while cursor.valid() {
            let key = cursor.key();
            if left.is_over() {
                return Ok(Some(key.to_vec()));
            }
            left.entries -= 1;
            let record = decode_record(cursor.flags(), cursor.value())?;
            let older;
            let shown = match self.pick(key, &record, at, &mut cache)? {
                Picked::Nothing => None,
                Picked::Newest(live) => Some((record.rev, live)),
                Picked::Older(old) => {
                    older = old;
                    Some((older.rev, older.live()))
                }
            };
            if let Some((rev, live)) = shown {
                left.take(key.len() + live.value_bytes());
                if f(key, rev, &live)?.is_break() {
                    return Ok(Some([key, &[0]].concat()));
                }
            }
            cursor.next()?;
        }
        Ok(None)
    }

    /// Hands events from `from` on, up to main revision `upto`, to `f` in order, within bounds or until it breaks. Where
    /// to go on; `None` when there is nothing more.
    pub(crate) fn changes(
        &self,
        from: Revision,
        upto: i64,
        mut left: Slice,
        f: &mut dyn FnMut(&EventView<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<Option<Revision>> {
        let mut next = None;
        self.history().scan(from, |event, _| {
            if event.rev.main > upto {
                return Ok(ControlFlow::Break(()));
            }
            if left.is_over() {
                next = Some(event.rev);
                return Ok(ControlFlow::Break(()));
            }
            left.entries -= 1;
            let value = event.new.map_or(0, |live| live.value_bytes());
            left.take(event.key.len() + value);
            let flow = f(&event)?;
            if flow.is_break() {
                next = Some(event.rev.next());
            }
            Ok(flow)
        })?;
        Ok(next)
    }

    pub(crate) fn visit_rev(
        &self,
        range: &KeyRange,
        at: i64,
        values: Values,
        f: &mut KvVisitor<'_>,
    ) -> Result<()> {
        let at = self.resolve(at)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut cursor = self.src.cursor(TreeId::K, at.is_none());
        let mut cache = ChunkCache::default();
        match range {
            KeyRange::One(key) => return self.visit_one(key, at, values, f),
            KeyRange::Half { end, .. } => cursor.seek_before(end)?,
            KeyRange::From(_) => cursor.seek_last()?,
        };
        while cursor.valid() && range.contains(cursor.key()) {
            let (key, flags, value) = (cursor.key(), cursor.flags(), cursor.value());
            if self
                .show(key, flags, value, at, values, &mut cache, f)?
                .is_break()
            {
                return Ok(());
            }
            cursor.prev()?;
        }
        Ok(())
    }

    fn visit_one(
        &self,
        key: &[u8],
        at: Option<i64>,
        values: Values,
        f: &mut KvVisitor<'_>,
    ) -> Result<()> {
        let shown = self.src.get_with(TreeId::K, key, |flags, value| {
            let mut cache = ChunkCache::default();
            self.show(key, flags, value, at, values, &mut cache, f)
        })?;
        shown.transpose().map(|_| ())
    }

    /// Hands one K entry, as it was at `at`, to `f`.
    #[allow(clippy::too_many_arguments)]
    fn show(
        &self,
        key: &[u8],
        flags: u8,
        value: &[u8],
        at: Option<i64>,
        values: Values,
        cache: &mut ChunkCache,
        f: &mut KvVisitor<'_>,
    ) -> Result<ControlFlow<()>> {
        if at.is_none() && flags & LIVE == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let record = decode_record(flags, value)?;
        let older;
        let (main, live) = match self.pick(key, &record, at, cache)? {
            Picked::Nothing => return Ok(ControlFlow::Continue(())),
            Picked::Newest(live) => (record.rev.main, live),
            Picked::Older(old) => {
                older = old;
                (older.rev.main, older.live())
            }
        };
        let run;
        let value = match live.value {
            ValueRef::Inline(bytes) => bytes,
            ValueRef::Run(_) if values == Values::Skip => &[],
            ValueRef::Run(at) => {
                run = self.src.read_run(at)?;
                &run
            }
        };
        Ok(f(KvRef {
            key,
            value,
            create_revision: live.create,
            mod_revision: main,
            version: live.version,
            lease: live.lease,
        }))
    }

    pub(crate) fn count(&self, range: &KeyRange, at: i64) -> Result<u64> {
        let at = self.resolve(at)?;
        if range.is_empty() {
            return Ok(0);
        }
        let (start, end) = match range {
            KeyRange::One(_) => return self.count_visible(range, at),
            KeyRange::Half { start, end } => (start, Some(&end[..])),
            KeyRange::From(start) => (start, None),
        };
        let now = self.src.count(TreeId::K, start, end)?;
        let Some(at) = at else { return Ok(now) };
        let since = Revision {
            main: at + 1,
            sub: 0,
        };
        // An event of a scan is about as dear as a key; the constant favours the certain cost.
        if self.history().events_after(since)? <= now.saturating_add(1024) {
            self.count_by_events(range, since, now)
        } else {
            self.count_visible(range, Some(at))
        }
    }

    fn count_visible(&self, range: &KeyRange, at: Option<i64>) -> Result<u64> {
        let mut n = 0;
        self.visit(range, at.unwrap_or(0), Values::Skip, &mut |_| {
            n += 1;
            ControlFlow::Continue(())
        })?;
        Ok(n)
    }

    /// Takes back what the events since a revision did to the number of keys.
    fn count_by_events(&self, range: &KeyRange, since: Revision, now: u64) -> Result<u64> {
        let (mut created, mut deleted) = (0u64, 0u64);
        self.history().scan(since, |event, _| {
            if range.contains(event.key) {
                match event.new {
                    None => deleted += 1,
                    Some(live) => created += u64::from(live.version == 1),
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        (now + deleted)
            .checked_sub(created)
            .ok_or_else(|| Error::Corrupt("history creates more keys than the tree counts".into()))
    }

    pub(crate) fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>> {
        let prefix = lease.to_be_bytes();
        let mut keys = Vec::new();
        let mut cursor = self.src.cursor(TreeId::L, false);
        cursor.seek(&prefix)?;
        while cursor.valid() {
            let Some(key) = cursor.key().strip_prefix(&prefix[..]) else {
                break;
            };
            keys.push(Bytes::copy_from_slice(key));
            cursor.next()?;
        }
        Ok(keys)
    }

    pub(crate) fn sys_get(&self, bucket: u8, key: &[u8]) -> Result<Option<Bytes>> {
        let Some(entry) = self.src.get(TreeId::S, &sys_key(bucket, key))? else {
            return Ok(None);
        };
        self.sys_value(entry.flags, &entry.value).map(Some)
    }

    pub(crate) fn sys_scan(&self, bucket: u8, f: &mut RecordVisitor<'_>) -> Result<()> {
        let mut cursor = self.src.cursor(TreeId::S, false);
        cursor.seek(&[bucket])?;
        while cursor.valid() {
            let Some(key) = cursor.key().strip_prefix(&[bucket]) else {
                break;
            };
            let value = self.sys_value(cursor.flags(), cursor.value())?;
            if f(key, &value).is_break() {
                break;
            }
            cursor.next()?;
        }
        Ok(())
    }

    fn sys_value(&self, flags: u8, value: &[u8]) -> Result<Bytes> {
        if flags & crate::record::RUN != 0 {
            self.src.read_run(crate::record::run_ref(value)?)
        } else {
            Ok(Bytes::copy_from_slice(value))
        }
    }
}

/// Key of S.
pub(crate) fn sys_key(bucket: u8, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(bucket);
    out.extend_from_slice(key);
    out
}

/// Key of L.
pub(crate) fn lease_key(lease: i64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&lease.to_be_bytes());
    out.extend_from_slice(key);
    out
}

enum Picked<'r> {
    Nothing,
    Newest(Live<'r>),
    Older(OldVersion),
}

impl Picked<'_> {
    /// Copies what lies in K, where it is at `rev`.
    fn detach(self, rev: Revision) -> Option<OldVersion> {
        match self {
            Picked::Nothing => None,
            Picked::Newest(live) => Some(OldVersion::new(rev, &live, None)),
            Picked::Older(old) => Some(old),
        }
    }
}
