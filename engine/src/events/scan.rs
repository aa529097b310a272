//! Reading history: finding one event, walking to an old version, scanning forward.
//!
//! Invariant: a walk for revision R only follows revisions newer than R. Those are at or above
//! the compact revision, whose chunks compaction keeps, so every hop finds its event.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::record::{Live, OwnedValue, ValueRef};
use crate::source::{Source, TreeId};
use crate::types::{Error, Result, Revision};

use super::chunk::{ChunkView, EventView, Prev};
use super::log::{ChunkEntry, OpenChunk, index_key};

#[cfg(test)]
thread_local! {
    /// Events looked at by walks of this thread.
    pub(crate) static HOPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The event log of one state.
#[derive(Clone, Copy)]
pub(crate) struct History<'a, S> {
    pub src: &'a S,
    pub open: Option<&'a OpenChunk>,
    /// Running number after the last event.
    pub next_seq: u64,
}

/// An older version of a key, detached from its chunk.
pub(crate) struct OldVersion {
    pub rev: Revision,
    pub create: i64,
    pub version: i64,
    pub lease: i64,
    pub value: OwnedValue,
}

/// A chunk kept at hand between look-ups.
#[derive(Default)]
pub(crate) struct ChunkCache(Option<Held>);

struct Held {
    first: Revision,
    last: Revision,
    bytes: Bytes,
}

impl<'a, S: Source> History<'a, S> {
    /// The open chunk, if it holds the place `rev`.
    pub(crate) fn open_at(&self, rev: Revision) -> Option<ChunkView<'a>> {
        let open = self.open?;
        (rev >= open.first).then(|| open.view())
    }

    /// The sealed chunk with the last first event at or before `rev`.
    pub(crate) fn entry_at(&self, rev: Revision) -> Result<Option<(Revision, ChunkEntry)>> {
        let mut cursor = self.src.cursor(TreeId::E, false);
        let behind = Revision {
            main: rev.main,
            sub: rev.sub.saturating_add(1),
        };
        cursor.seek_before(&index_key(behind))?;
        if !cursor.valid() {
            return Ok(None);
        }
        ChunkEntry::decode(cursor.key(), cursor.value()).map(Some)
    }

    /// The first sealed chunk whose first event is after `rev`.
    fn entry_after(&self, rev: Revision) -> Result<Option<(Revision, ChunkEntry)>> {
        let mut cursor = self.src.cursor(TreeId::E, false);
        let behind = Revision {
            main: rev.main,
            sub: rev.sub.saturating_add(1),
        };
        cursor.seek(&index_key(behind))?;
        if !cursor.valid() {
            return Ok(None);
        }
        ChunkEntry::decode(cursor.key(), cursor.value()).map(Some)
    }

    /// Calls `f` with the event at exactly `rev` and the chunk bytes it lies in (none when open).
    pub(crate) fn at<R>(
        &self,
        rev: Revision,
        cache: &mut ChunkCache,
        f: impl FnOnce(EventView<'_>, Option<&Bytes>) -> Result<R>,
    ) -> Result<R> {
        if let Some(view) = self.open_at(rev) {
            return f(exactly(view, rev)?, None);
        }
        let hit = matches!(&cache.0, Some(held) if held.first <= rev && rev <= held.last);
        if !hit {
            let (first, entry) = self.entry_at(rev)?.ok_or_else(|| missing(rev))?;
            cache.0 = Some(Held {
                first,
                last: entry.last,
                bytes: self.src.read_run(entry.run)?,
            });
        }
        let held = cache.0.as_ref().expect("just filled");
        f(
            exactly(ChunkView::sealed(&held.bytes)?, rev)?,
            Some(&held.bytes),
        )
    }

    /// The version of `key` at revision `at`, given that its newest change is at `newest`, which
    /// is after `at`. None when the key did not exist then.
    pub(crate) fn version_at(
        &self,
        key: &[u8],
        newest: Revision,
        at: i64,
        cache: &mut ChunkCache,
    ) -> Result<Option<OldVersion>> {
        enum Step {
            Older(Revision),
            Found(Option<OldVersion>),
        }
        let mut here = newest;
        loop {
            debug_assert!(here.main > at);
            #[cfg(test)]
            HOPS.set(HOPS.get() + 1);
            let step = self.at(here, cache, |event, home| {
                if event.key != key {
                    return Err(Error::Corrupt(format!(
                        "the event at {here:?} is of another key than the one that names it"
                    )));
                }
                if let Some(older) = event.links.jump(here, at)? {
                    return Ok(Step::Older(older));
                }
                Ok(match event.prev {
                    Prev::None => Step::Found(None),
                    Prev::Tombstone(rev) | Prev::Live(rev, _) if rev.main > at => Step::Older(rev),
                    Prev::Tombstone(_) => Step::Found(None),
                    Prev::Live(rev, live) => Step::Found(Some(OldVersion::new(rev, &live, home))),
                })
            })?;
            match step {
                Step::Found(version) => return Ok(version),
                Step::Older(rev) if rev < here => here = rev,
                Step::Older(_) => {
                    return Err(Error::Corrupt(format!(
                        "the event at {here:?} names a newer one as older"
                    )));
                }
            }
        }
    }

    /// Calls `f` for every event at or after `from`, in order, until it breaks.
    pub(crate) fn scan(
        &self,
        from: Revision,
        mut f: impl FnMut(EventView<'_>, Option<&Bytes>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let sealed_only = self.open.is_none_or(|open| from < open.first);
        if sealed_only {
            let mut next = match self.entry_at(from)? {
                None => self.entry_after(from)?,
                found => found,
            };
            while let Some((first, entry)) = next {
                if entry.last >= from {
                    let bytes = self.src.read_run(entry.run)?;
                    let view = ChunkView::sealed(&bytes)?;
                    for i in view.lower_bound(from)..view.len() {
                        if f(view.event(i)?, Some(&bytes))?.is_break() {
                            return Ok(());
                        }
                    }
                }
                next = self.entry_after(first)?;
            }
        }
        let Some(open) = self.open else { return Ok(()) };
        let view = open.view();
        for i in view.lower_bound(from)..view.len() {
            if f(view.event(i)?, None)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// How many events there are at or after `from`, or a little more: whole sealed chunks count.
    pub(crate) fn events_after(&self, from: Revision) -> Result<u64> {
        if let (Some(view), Some(open)) = (self.open_at(from), self.open) {
            return Ok(self.next_seq - open.first_seq - view.lower_bound(from) as u64);
        }
        let first_seq = match self.entry_at(from)? {
            Some((_, entry)) => entry.first_seq,
            None => match self.entry_after(from)? {
                Some((_, entry)) => entry.first_seq,
                None => self.open.map_or(self.next_seq, |open| open.first_seq),
            },
        };
        Ok(self.next_seq - first_seq)
    }

    /// The oldest event kept.
    pub(crate) fn oldest(&self) -> Result<Option<Revision>> {
        Ok(match self.entry_after(Revision::default())? {
            Some((first, _)) => Some(first),
            None => self.open.map(|open| open.first),
        })
    }

    /// Running number of the oldest event kept.
    pub(crate) fn first_seq(&self) -> Result<u64> {
        let oldest = Revision::default();
        Ok(match self.entry_after(oldest)? {
            Some((_, entry)) => entry.first_seq,
            None => self.open.map_or(self.next_seq, |open| open.first_seq),
        })
    }

    /// The newest sealed chunk.
    pub(crate) fn last_sealed(&self) -> Result<Option<ChunkEntry>> {
        let mut cursor = self.src.cursor(TreeId::E, false);
        if !cursor.seek_last()? {
            return Ok(None);
        }
        ChunkEntry::decode(cursor.key(), cursor.value()).map(|(_, entry)| Some(entry))
    }

    /// Every chunk that is sealed, oldest first.
    pub(crate) fn sealed(
        &self,
        mut f: impl FnMut(Revision, ChunkEntry) -> Result<()>,
    ) -> Result<()> {
        let mut cursor = self.src.cursor(TreeId::E, false);
        cursor.seek(&[])?;
        while cursor.valid() {
            let (first, entry) = ChunkEntry::decode(cursor.key(), cursor.value())?;
            f(first, entry)?;
            cursor.next()?;
        }
        Ok(())
    }
}

impl OldVersion {
    pub(crate) fn new(rev: Revision, live: &Live<'_>, home: Option<&Bytes>) -> OldVersion {
        OldVersion {
            rev,
            create: live.create,
            version: live.version,
            lease: live.lease,
            value: live.value.to_owned_in(home),
        }
    }

    /// Borrows the version.
    pub(crate) fn live(&self) -> Live<'_> {
        Live {
            create: self.create,
            version: self.version,
            lease: self.lease,
            value: match &self.value {
                OwnedValue::Bytes(bytes) => ValueRef::Inline(bytes),
                OwnedValue::Run(run) => ValueRef::Run(*run),
            },
        }
    }
}

fn exactly(view: ChunkView<'_>, rev: Revision) -> Result<EventView<'_>> {
    let i = view.lower_bound(rev);
    if i == view.len() || view.rev(i) != rev {
        return Err(missing(rev));
    }
    view.event(i)
}

fn missing(rev: Revision) -> Error {
    Error::Corrupt(format!(
        "history lacks the event at {}.{}",
        rev.main, rev.sub
    ))
}
