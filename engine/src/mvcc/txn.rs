//! One request's changes: puts and deletes at the next revision, each visible to the reads after.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::events::chunk::Prev;
use crate::events::scan::OldVersion;
use crate::record::{Anchors, Live, ValueRef, decode_record, encode_record, value_owner};
use crate::source::{LIVE, RunKind, TreeId};
use crate::types::{Error, Event, EventKind, KeyRange, KeyValue, KvVisitor, Result, Revision};

use super::Writer;
use super::reader::{Reader, Values, lease_key};

/// Keys collected before a range delete goes on, and their bytes: what bounds its memory.
const DELETE_BATCH_KEYS: usize = 256;
const DELETE_BATCH_BYTES: usize = 256 << 10;

/// An open request. [`Txn::finish`] it; one that is dropped after an error or with unfinished
/// changes leaves the writer refused.
pub struct Txn<'w> {
    writer: &'w mut Writer,
    main: i64,
    sub: i64,
    failed: bool,
}

impl<'w> Txn<'w> {
    pub(crate) fn new(writer: &'w mut Writer) -> Txn<'w> {
        let main = writer.meta.revision + 1;
        Txn {
            writer,
            main,
            sub: 0,
            failed: false,
        }
    }

    /// Applies one change that happened elsewhere, at the place it had there.
    pub(crate) fn replay(
        writer: &mut Writer,
        kind: EventKind,
        rev: Revision,
        kv: &KeyValue,
    ) -> Result<()> {
        let mut txn = Txn {
            writer,
            main: rev.main,
            sub: rev.sub,
            failed: false,
        };
        let old = txn.old(&kv.key)?;
        let new = match kind {
            EventKind::Put => Some(NewVersion {
                create: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                value: &kv.value,
            }),
            EventKind::Delete => None,
        };
        if new.is_none() && old.as_ref().is_none_or(|old| old.live.is_none()) {
            txn.sub = 0;
            return Err(Error::Invalid(format!(
                "{:?}, deleted at {}.{}, does not live",
                kv.key, rev.main, rev.sub
            )));
        }
        txn.writer.pending.overflow = true;
        txn.guarded(|txn| txn.change(&kv.key, old, new.as_ref(), false))?;
        txn.finish();
        Ok(())
    }

    /// The revision before this request.
    pub fn begin_revision(&self) -> i64 {
        self.main - 1
    }

    /// Whether anything was put or deleted so far.
    pub fn changed(&self) -> bool {
        self.sub > 0
    }

    fn read<R>(
        &self,
        f: impl FnOnce(Reader<'_, crate::source::StoreWriter>) -> Result<R>,
    ) -> Result<R> {
        let open = self.writer.log.published();
        let mut reader = self.writer.reader(open.as_ref());
        reader.changing = self.changed();
        f(reader)
    }

    /// One key; `at <= 0` is the working state with this request's own changes, otherwise any
    /// readable revision up to [`Txn::begin_revision`].
    pub fn get_at(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>> {
        self.read(|reader| reader.get(key, at))
    }

    /// One key with this request's own changes.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        self.get_at(key, 0)
    }

    /// Live keys of a range in key order; `at` as in [`Txn::get_at`].
    pub fn visit(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.read(|reader| reader.visit(range, at, Values::Load, f))
    }

    /// As [`Txn::visit`], descending.
    pub fn visit_rev(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.read(|reader| reader.visit_rev(range, at, Values::Load, f))
    }

    /// As [`Txn::visit`], values stored outside the tree left empty.
    pub fn visit_keys(&self, range: &KeyRange, at: i64, f: &mut KvVisitor<'_>) -> Result<()> {
        self.read(|reader| reader.visit(range, at, Values::Skip, f))
    }

    /// Number of live keys of a range; `at` as in [`Txn::get_at`].
    pub fn count(&self, range: &KeyRange, at: i64) -> Result<u64> {
        self.read(|reader| reader.count(range, at))
    }

    /// Writes a system record within the request.
    pub fn sys_put(&mut self, bucket: u8, key: &[u8], value: &[u8]) -> Result<()> {
        self.writer.sys_put(bucket, key, value)
    }

    /// Deletes a system record within the request.
    pub fn sys_delete(&mut self, bucket: u8, key: &[u8]) -> Result<bool> {
        self.writer.sys_delete(bucket, key)
    }

    /// A system record.
    pub fn sys_get(&self, bucket: u8, key: &[u8]) -> Result<Option<Bytes>> {
        self.writer.sys_get(bucket, key)
    }

    /// Gives `key` a new version and answers the live version it replaced. An error is final for
    /// the writer.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<KeyValue>> {
        self.put_with(key, value, lease, true)
    }

    /// As [`Txn::put`]; the replaced version may be left out unless `want_prev`.
    pub fn put_with(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: i64,
        want_prev: bool,
    ) -> Result<Option<KeyValue>> {
        if key.is_empty() {
            return Err(Error::Invalid("a key must not be empty".into()));
        }
        self.guarded(|txn| txn.put_inner(key, value, lease, want_prev))
    }

    fn put_inner(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: i64,
        want_prev: bool,
    ) -> Result<Option<KeyValue>> {
        let old = self.old(&key)?;
        let (create, version) = match old.as_ref().and_then(|old| old.live.as_ref()) {
            Some(live) => (live.create, live.version + 1),
            None => (self.main, 1),
        };
        let new = NewVersion {
            create,
            version,
            lease,
            value: &value,
        };
        let want_prev = want_prev || !self.writer.pending.overflow;
        let prev = self.change(&key, old, Some(&new), want_prev)?;
        let pending = &mut self.writer.pending;
        if !pending.overflow {
            pending.push(Event {
                kind: EventKind::Put,
                revision: Revision {
                    main: self.main,
                    sub: self.sub - 1,
                },
                kv: KeyValue {
                    key,
                    value,
                    create_revision: create,
                    mod_revision: self.main,
                    version,
                    lease,
                },
                prev: prev.clone(),
            });
        }
        Ok(prev)
    }

    /// Deletes the live keys of a range, in key order, and answers how many there were and, if
    /// `collect_prev`, what they held. An error is final for the writer.
    pub fn delete_range(
        &mut self,
        range: &KeyRange,
        collect_prev: bool,
    ) -> Result<(u64, Vec<KeyValue>)> {
        self.guarded(|txn| txn.delete_range_inner(range, collect_prev))
    }

    fn delete_range_inner(
        &mut self,
        range: &KeyRange,
        collect_prev: bool,
    ) -> Result<(u64, Vec<KeyValue>)> {
        let mut deleted = 0;
        let mut prevs = Vec::new();
        let mut rest = range.clone();
        loop {
            let keys = self.next_keys(&rest)?;
            let Some(last) = keys.last() else { break };
            // The least key after the last one.
            let mut behind = last.to_vec();
            behind.push(0);
            for key in keys {
                let prev = self.delete_one(key, collect_prev)?;
                deleted += 1;
                prevs.extend(prev.filter(|_| collect_prev));
            }
            rest = match rest {
                KeyRange::One(_) => break,
                KeyRange::Half { end, .. } => KeyRange::Half {
                    start: behind.into(),
                    end,
                },
                KeyRange::From(_) => KeyRange::From(behind.into()),
            };
        }
        Ok((deleted, prevs))
    }

    /// The first few live keys of a range.
    fn next_keys(&self, range: &KeyRange) -> Result<Vec<Bytes>> {
        let mut keys = Vec::new();
        let mut bytes = 0;
        let reader = self.writer.reader(None);
        reader.visit(range, 0, Values::Skip, &mut |kv| {
            keys.push(Bytes::copy_from_slice(kv.key));
            bytes += kv.key.len();
            if keys.len() >= DELETE_BATCH_KEYS || bytes >= DELETE_BATCH_BYTES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(keys)
    }

    fn delete_one(&mut self, key: Bytes, want_prev: bool) -> Result<Option<KeyValue>> {
        let old = self.old(&key)?;
        let want_event = !self.writer.pending.overflow;
        let prev = self.change(&key, old, None, want_prev || want_event)?;
        if want_event {
            self.writer.pending.push(Event {
                kind: EventKind::Delete,
                revision: Revision {
                    main: self.main,
                    sub: self.sub - 1,
                },
                kv: KeyValue {
                    key,
                    mod_revision: self.main,
                    ..KeyValue::default()
                },
                prev: prev.clone(),
            });
        }
        Ok(prev)
    }

    /// The place of the next change.
    fn next_rev(&self) -> Revision {
        Revision {
            main: self.main,
            sub: self.sub,
        }
    }

    /// What K holds for a key.
    fn old(&self, key: &[u8]) -> Result<Option<Old>> {
        let rev = self.next_rev();
        let found = self.writer.store.get_with(TreeId::K, key, |flags, value| {
            let record = decode_record(flags, value)?;
            Ok(Old {
                rev: record.rev,
                next: Anchors::after(&record, rev)?,
                live: record
                    .live
                    .map(|live| OldVersion::new(record.rev, &live, None)),
            })
        })?;
        found.transpose()
    }

    /// Records one change of one key in K, E, L and the rolling hash.
    fn change(
        &mut self,
        key: &Bytes,
        old: Option<Old>,
        new: Option<&NewVersion<'_>>,
        want_prev: bool,
    ) -> Result<Option<KeyValue>> {
        let rev = self.next_rev();
        let writer = &mut *self.writer;
        let first = Anchors::first();
        let anchors = old.as_ref().map_or(&first, |old| &old.next);
        let prev = match &old {
            None => Prev::None,
            Some(Old { rev, live, .. }) => match live {
                Some(live) => Prev::Live(*rev, live.live()),
                None => Prev::Tombstone(*rev),
            },
        };
        let live = match new {
            Some(new) => Some(writer.place(rev, key, anchors, new)?),
            None => None,
        };
        writer.scratch.clear();
        let flags = encode_record(rev, anchors, live.as_ref(), &mut writer.scratch);
        writer
            .store
            .insert(TreeId::K, key, flags, &writer.scratch)?;
        writer
            .log
            .append(&mut writer.store, rev, key, anchors, live.as_ref(), &prev)?;
        let was = old.and_then(|old| old.live);
        writer.attach(
            key,
            was.as_ref().map_or(0, |was| was.lease),
            new.map_or(0, |new| new.lease),
        )?;
        let hashed = new.map(|new| (new.version, new.lease, &new.value[..]));
        writer.meta.rolling = crate::hash::rolling::change(writer.meta.rolling, rev, key, hashed);
        self.sub += 1;
        match was {
            Some(was) if want_prev => Ok(Some(KeyValue {
                key: key.clone(),
                value: writer.reader(None).load(was.value)?,
                create_revision: was.create,
                mod_revision: was.rev.main,
                version: was.version,
                lease: was.lease,
            })),
            _ => Ok(None),
        }
    }

    /// Runs a change; its failure marks the transaction failed.
    fn guarded<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        self.writer.check_usable()?;
        self.writer.unpublished = true;
        self.failed = true;
        let result = f(self)?;
        self.failed = false;
        Ok(result)
    }

    /// Ends the request and answers the revision after it: one more if anything changed.
    pub fn finish(self) -> i64 {
        if self.changed() && !self.failed {
            self.writer.meta.revision = self.main;
        }
        self.writer.meta.revision
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        let finished = self.writer.meta.revision == self.main || !self.changed();
        if self.failed || !finished {
            self.writer.broken = true;
        }
    }
}

/// What K held for a key before a change.
struct Old {
    rev: Revision,
    /// Of the change to come.
    next: Anchors,
    /// None: a tombstone.
    live: Option<OldVersion>,
}

/// What a put gives a key, revision aside.
struct NewVersion<'v> {
    create: i64,
    version: i64,
    lease: i64,
    value: &'v Bytes,
}

impl Writer {
    /// Decides where the value of a new version lives: in K while the entry stays within what the
    /// tree takes, else in a run.
    fn place<'v>(
        &mut self,
        rev: Revision,
        key: &[u8],
        anchors: &Anchors,
        new: &NewVersion<'v>,
    ) -> Result<Live<'v>> {
        let mut live = Live {
            create: new.create,
            version: new.version,
            lease: new.lease,
            value: ValueRef::Inline(&[]),
        };
        self.scratch.clear();
        encode_record(rev, anchors, Some(&live), &mut self.scratch);
        live.value = if self.scratch.len() + new.value.len() <= self.inline_max {
            ValueRef::Inline(new.value)
        } else {
            let owner = value_owner(rev);
            let bytes = new.value.clone();
            ValueRef::Run(self.store.write_run(RunKind::Value, key, owner, bytes)?)
        };
        Ok(live)
    }

    /// Moves a key from one lease to another; 0 is none.
    fn attach(&mut self, key: &[u8], from: i64, to: i64) -> Result<()> {
        if from == to {
            return Ok(());
        }
        if from != 0 {
            self.store.remove(TreeId::L, &lease_key(from, key))?;
        }
        if to != 0 {
            self.store
                .insert(TreeId::L, &lease_key(to, key), LIVE, &[])?;
        }
        Ok(())
    }
}
