//! Whole contents in and out: what snapshots, restore and import are made of.
//!
//! Out, [`View::visit`] gives the keys of a revision in key order, and [`View::export`] all versions that can still be read
//! in the order of their revisions, which is how etcd's bucket holds them. In, [`Writer::load`] builds the tree of keys from
//! sorted input, packed and written in large pieces, and [`Writer::replay`] puts the history behind it.
//!
//! Invariants:
//! 1. What was exported and loaded again answers every read from the loaded revision on, and HashKV, as the original.
//! 2. Memory is bounded, by the caller's figure for an export; for a load by one page for each level of the tree, and by
//!    the keys that are attached to leases.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::mvcc::reader::lease_key;
use crate::mvcc::{Txn, View, Writer};
use crate::record::{Anchors, Live, ValueRef, encode_record};
use crate::source::{LIVE, RunKind, TreeId};
use crate::types::{Error, EventKind, KeyValue, KvRef, Result, Revision};

/// One version, as [`View::export`] hands it out.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// Its place in history.
    pub revision: Revision,
    /// Put, or delete: then `kv` has only key and mod_revision.
    pub kind: EventKind,
    /// The version.
    pub kv: KvRef<'a>,
}

impl View {
    /// Hands all versions to `f` in the order of their revisions: those that are live at the compact revision, and every
    /// change after it. The first part is put in order with about `memory_bytes`; with less than its keys take, the tree
    /// of keys is read several times.
    pub fn export(
        &self,
        memory_bytes: usize,
        f: &mut dyn FnMut(Version<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let compact = self.compact_revision();
        if compact > 0 && self.export_base(compact, memory_bytes, f)?.is_break() {
            return Ok(());
        }
        let from = Revision {
            main: compact.max(0) + 1,
            sub: 0,
        };
        let reader = self.reader();
        reader.history().scan(from, |event, _| {
            let run;
            let mut kv = KvRef {
                key: event.key,
                value: &[],
                create_revision: 0,
                mod_revision: event.rev.main,
                version: 0,
                lease: 0,
            };
            if let Some(live) = &event.new {
                kv.value = match live.value {
                    ValueRef::Inline(bytes) => bytes,
                    ValueRef::Run(at) => {
                        run = self.inner.snapshot.read_run(at)?;
                        &run
                    }
                };
                kv.create_revision = live.create;
                kv.version = live.version;
                kv.lease = live.lease;
            }
            Ok(f(Version {
                revision: event.rev,
                kind: event.kind(),
                kv,
            }))
        })
    }

    /// Versions live at `at`, a window of revisions at a time.
    fn export_base(
        &self,
        at: i64,
        memory_bytes: usize,
        f: &mut dyn FnMut(Version<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        const BOOKS: usize = 96;
        let reader = self.reader();
        let mut behind = Revision::default();
        loop {
            let mut window: BTreeMap<Revision, Bytes> = BTreeMap::new();
            let (mut held, mut cut) = (0, None);
            reader.visit_versions(at, &mut |key, revision| {
                if revision <= behind || cut.is_some_and(|cut| revision >= cut) {
                    return;
                }
                held += key.len() + BOOKS;
                window.insert(revision, Bytes::copy_from_slice(key));
                while held > memory_bytes && window.len() > 1 {
                    if let Some((last, key)) = window.pop_last() {
                        held -= key.len() + BOOKS;
                        cut = Some(last);
                    }
                }
            })?;
            for (revision, key) in window {
                behind = revision;
                let mut flow = ControlFlow::Continue(());
                reader.read(&key, at, |kv| {
                    flow = f(Version {
                        revision,
                        kind: EventKind::Put,
                        kv,
                    });
                })?;
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            if cut.is_none() {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }
}

impl Writer {
    /// Fills an engine that has no keys and no history: `keys` are what is live at `revision`, in ascending key order, each
    /// with the place of its last change. Afterwards `revision` is the newest and the compact revision. Nothing is durable
    /// before the next checkpoint; an error leaves the engine empty, or the writer refused. How many keys there are.
    pub fn load(
        &mut self,
        revision: i64,
        keys: impl IntoIterator<Item = Result<(Revision, KeyValue)>>,
    ) -> Result<u64> {
        self.check_usable()?;
        if self.meta.revision != 1 || self.log.next_seq() != 0 || revision < 1 {
            return Err(Error::Invalid(
                "only an engine without keys and history can be loaded".into(),
            ));
        }
        let mut rolling = self.meta.rolling;
        let mut attached: Vec<Vec<u8>> = Vec::new();
        let (mut scratch, inline_max) = (Vec::new(), self.inline_max);
        let mut bulk = self.store.bulk(TreeId::K)?;
        for item in keys {
            let (rev, kv) = item?;
            let sound = !kv.key.is_empty()
                && (1..=revision).contains(&rev.main)
                && rev.main == kv.mod_revision
                && kv.version >= 1
                && (1..=rev.main).contains(&kv.create_revision);
            if !sound {
                return Err(Error::Invalid(format!(
                    "key {:?} at {}.{} cannot be loaded at revision {revision}",
                    kv.key, rev.main, rev.sub
                )));
            }
            let mut live = Live {
                create: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                value: ValueRef::Inline(&[]),
            };
            scratch.clear();
            encode_record(rev, &Anchors::first(), Some(&live), &mut scratch);
            live.value = if scratch.len() + kv.value.len() <= inline_max {
                ValueRef::Inline(&kv.value)
            } else {
                let owner = crate::record::value_owner(rev);
                ValueRef::Run(bulk.write_run(RunKind::Value, &kv.key, owner, kv.value.clone())?)
            };
            scratch.clear();
            let flags = encode_record(rev, &Anchors::first(), Some(&live), &mut scratch);
            bulk.push(&kv.key, flags, &scratch)?;
            if kv.lease != 0 {
                attached.push(lease_key(kv.lease, &kv.key));
            }
            let hashed = Some((kv.version, kv.lease, &kv.value[..]));
            rolling = crate::hash::rolling::change(rolling, rev, &kv.key, hashed);
        }
        let loaded = bulk.finish()?;
        attached.sort_unstable();
        // With keys and without their leases it must not be seen.
        self.broken = true;
        let mut bulk = self.store.bulk(TreeId::L)?;
        for key in &attached {
            bulk.push(key, LIVE, &[])?;
        }
        bulk.finish()?;
        self.broken = false;
        self.meta.revision = revision;
        self.meta.compact_revision = revision;
        self.meta.compact_done = revision;
        self.meta.rolling = crate::hash::rolling::compaction(rolling, revision);
        self.unpublished = true;
        Ok(loaded)
    }

    /// Applies a change that happened elsewhere, with the numbers it had there. Changes come in the order of history and
    /// without gaps; of a delete only the key counts.
    pub fn replay(&mut self, kind: EventKind, rev: Revision, kv: &KeyValue) -> Result<()> {
        self.check_usable()?;
        let next = rev.main == self.meta.revision + 1 && rev.sub == 0;
        let same = rev.main == self.meta.revision
            && rev.sub > 0
            && self.last_event()?
                == Some(Revision {
                    sub: rev.sub - 1,
                    ..rev
                });
        if !next && !same {
            return Err(Error::Invalid(format!(
                "{}.{} does not follow what is there",
                rev.main, rev.sub
            )));
        }
        if kv.key.is_empty() {
            return Err(Error::Invalid("a key must not be empty".into()));
        }
        Txn::replay(self, kind, rev, kv)
    }

    fn last_event(&self) -> Result<Option<Revision>> {
        if let Some(last) = self.log.last() {
            return Ok(Some(last));
        }
        let last = self.reader(None).history().last_sealed()?;
        Ok(last.map(|entry| entry.last))
    }
}
