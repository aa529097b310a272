//! Readers that take long: they pin history, not pages.
//!
//! A held [`View`] keeps the space of all its pages from being used again. That is right for a request, and wrong for
//! what takes minutes: a stream of a whole range, a snapshot, a hash over everything. Such a reader keeps to a revision and
//! reads in slices, each from the newest state at the time: it seeks anew to where the last slice ended and finds the
//! versions of its revision by way of the events after it. What it pins is that history, which only delays the physical
//! part of compaction.
//!
//! Invariants:
//! 1. No page is pinned between two slices, and a slice looks at [`Slice::LONG`] at most (one value may be larger).
//! 2. What is read is exactly the state at the revision, whatever is written, compacted, moved or checkpointed meanwhile;
//!    or else an error. [`Error::Compacted`] says that compaction had waited for
//!    [`Options::history_pin_max`](crate::Options) and waits no longer.
//! 3. Nothing that a request could notice depends on who reads, or for how long.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::record::{Live, ValueRef};
use crate::source::{Snapshot, Source};
use crate::types::{Error, HashKv, KeyRange, KvRef, KvVisitor, Result, Revision};

use super::history_pins::{HistoryPins, Pin};
use super::publish::Shared;
use super::reader::{Reader, Slice};
use super::view::View;

/// What long work reads from, a bounded piece at a time.
pub(crate) trait Slices {
    /// The newest revision it shows.
    fn revision(&self) -> i64;
    /// Of the state that it shows.
    fn compact_revision(&self) -> i64;
    /// How long one piece may get.
    fn bounds(&self) -> Slice {
        Slice::LONG
    }
    /// Reads a piece. The reader lives for as long only.
    fn slice<R>(&self, f: impl FnOnce(Reader<'_, Snapshot>) -> Result<R>) -> Result<R>;
}

/// Whoever holds a view anyway may read it in pieces too.
impl Slices for View {
    fn revision(&self) -> i64 {
        View::revision(self)
    }
    fn compact_revision(&self) -> i64 {
        View::compact_revision(self)
    }
    fn slice<R>(&self, f: impl FnOnce(Reader<'_, Snapshot>) -> Result<R>) -> Result<R> {
        f(self.reader())
    }
}

/// A revision and what is needed to read it.
struct Pinned {
    shared: Arc<Shared>,
    /// Always the same one, so that no slice is of an older state than the one before.
    shard: usize,
    pin: Pin,
    revision: i64,
}

impl Pinned {
    fn slice<R>(&self, f: impl FnOnce(Reader<'_, Snapshot>) -> Result<R>) -> Result<R> {
        let view = self.shared.view(self.shard);
        // After the view was taken: if the pin holds now, that view has all it needs.
        if !self.pin.holds() {
            return Err(Error::Compacted);
        }
        f(Reader {
            compact: self.pin.from(),
            ..view.reader()
        })
    }

    fn visit(
        &self,
        range: &KeyRange,
        at: i64,
        bounds: Slice,
        f: &mut KvVisitor<'_>,
    ) -> Result<Option<KeyRange>> {
        if range.is_empty() {
            return Ok(None);
        }
        let behind = |key: &[u8]| [key, &[0]].concat();
        let (start, end) = match range {
            KeyRange::One(key) => (key, Some(Bytes::from(behind(key)))),
            KeyRange::Half { start, end } => (start, Some(end.clone())),
            KeyRange::From(start) => (start, None),
        };
        let rest = self.slice(|reader| {
            reader.versions(start, end.as_deref(), at, bounds, &mut |key, rev, live| {
                let run;
                let value = match live.value {
                    ValueRef::Inline(bytes) => bytes,
                    ValueRef::Run(at) => {
                        run = Source::read_run(reader.src, at)?;
                        &run
                    }
                };
                Ok(f(KvRef {
                    key,
                    value,
                    create_revision: live.create,
                    mod_revision: rev.main,
                    version: live.version,
                    lease: live.lease,
                }))
            })
        })?;
        Ok(rest.map(|start| match end {
            Some(end) => KeyRange::Half {
                start: start.into(),
                end,
            },
            None => KeyRange::From(start.into()),
        }))
    }
}

/// A reader of one revision that may take as long as it likes. It holds no page between two calls; see the module.
pub struct LongRead {
    pinned: Pinned,
}

impl LongRead {
    pub(super) fn open(shared: &Arc<Shared>, shard: usize, at: i64) -> Result<LongRead> {
        let view = shared.view(shard);
        let revision = if at <= 0 { view.revision() } else { at };
        if revision > view.revision() {
            return Err(Error::Future);
        }
        if revision < view.compact_revision() {
            return Err(Error::Compacted);
        }
        Ok(LongRead {
            pinned: Pinned {
                pin: HistoryPins::pin(&shared.history, revision).ok_or(Error::Compacted)?,
                shared: shared.clone(),
                shard,
                revision,
            },
        })
    }

    /// The revision that is read.
    pub fn revision(&self) -> i64 {
        self.pinned.revision
    }

    /// Hands the next keys of a range to `f`, in key order: so many as make a slice, or until `f` breaks. What is left of
    /// the range, for the next call; `None` at its end. `f` must not wait for anybody: pages are pinned meanwhile.
    pub fn visit(&self, range: &KeyRange, f: &mut KvVisitor<'_>) -> Result<Option<KeyRange>> {
        let pinned = &self.pinned;
        pinned.visit(range, pinned.revision, Slice::LONG, f)
    }

    #[cfg(test)]
    pub(crate) fn visit_in(
        &self,
        range: &KeyRange,
        bounds: Slice,
        f: &mut KvVisitor<'_>,
    ) -> Result<Option<KeyRange>> {
        self.pinned.visit(range, self.pinned.revision, bounds, f)
    }
}

/// A reader of all that can be read when it is opened: every revision from the compact revision on, and the history in
/// between. It may take as long as it likes, and holds no page between two slices; see the module.
pub struct LongHistory {
    pinned: Pinned,
}

impl LongHistory {
    pub(super) fn open(shared: &Arc<Shared>, shard: usize) -> Result<LongHistory> {
        let mut view = shared.view(shard);
        loop {
            let compact = view.compact_revision();
            if let Some(pin) = HistoryPins::pin(&shared.history, compact) {
                return Ok(LongHistory {
                    pinned: Pinned {
                        pin,
                        shared: shared.clone(),
                        shard,
                        revision: view.revision(),
                    },
                });
            }
            view = shared.view(shard);
            if view.compact_revision() == compact {
                return Err(Error::Compacted);
            }
        }
    }

    /// Of the writer's working state.
    pub(super) fn of_working_state(
        shared: &Arc<Shared>,
        compact: i64,
        revision: i64,
    ) -> Option<LongHistory> {
        Some(LongHistory {
            pinned: Pinned {
                pin: HistoryPins::pin(&shared.history, compact)?,
                shared: shared.clone(),
                shard: 0,
                revision,
            },
        })
    }

    /// The newest revision that is read.
    pub fn revision(&self) -> i64 {
        self.pinned.revision
    }

    /// The compact revision when it was opened, the oldest one that is read; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.pinned.pin.from()
    }

    /// As [`LongRead::visit`] at any revision that is read; `at <= 0` means the newest of them.
    pub fn visit(
        &self,
        range: &KeyRange,
        at: i64,
        f: &mut KvVisitor<'_>,
    ) -> Result<Option<KeyRange>> {
        let newest = self.pinned.revision;
        if at > newest {
            return Err(Error::Future);
        }
        let at = if at <= 0 { newest } else { at };
        self.pinned.visit(range, at, Slice::LONG, f)
    }

    /// As [`View::hash_kv`], with this compact revision.
    pub fn hash_kv(&self, rev: i64) -> Result<HashKv> {
        crate::hash::kv::hash_kv(self, rev)
    }
}

impl Slices for LongHistory {
    fn revision(&self) -> i64 {
        LongHistory::revision(self)
    }
    fn compact_revision(&self) -> i64 {
        LongHistory::compact_revision(self)
    }
    fn slice<R>(&self, f: impl FnOnce(Reader<'_, Snapshot>) -> Result<R>) -> Result<R> {
        self.pinned.slice(f)
    }
}

/// What of a state's versions is shown: where to read runs from, key, place in history, the rest.
pub(crate) type EachVersion<'f> =
    dyn FnMut(&Snapshot, &[u8], Revision, &Live<'_>) -> Result<()> + 'f;

/// Hands all versions that are live at `at` to `f`, in key order.
pub(crate) fn each_version<S: Slices>(from: &S, at: i64, f: &mut EachVersion<'_>) -> Result<()> {
    let mut place = Some(Vec::new());
    while let Some(next) = place {
        place = from.slice(|reader| {
            reader.versions(&next, None, at, from.bounds(), &mut |key, rev, live| {
                f(reader.src, key, rev, live)?;
                Ok(ControlFlow::Continue(()))
            })
        })?;
    }
    Ok(())
}
