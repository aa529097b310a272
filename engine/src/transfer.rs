//! Whole contents in and out: what snapshots, restore and import are made of.
//!
//! Out, [`View::visit`] gives the keys of a revision in key order, and [`View::export`] all versions that can still be read
//! in the order of their revisions, which is how etcd's bucket holds them. What may take long, as when a client takes it
//! over the network, does the same in slices with [`LongRead`](crate::LongRead) and [`LongHistory`]. In, [`Writer::load`] builds the tree of keys from
//! sorted input, packed and written in large pieces, and [`Writer::replay`] puts the history behind it.
//!
//! Invariants:
//! 1. What was exported and loaded again answers every read from the loaded revision on, and HashKV, as the original.
//! 2. Memory is bounded, by the caller's figure for an export; for a load by one page for each level of the tree, and by
//!    the keys that are attached to leases.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::events::chunk::EventView;
use crate::mvcc::long::Slices;
use crate::mvcc::reader::{Reader, Slice, lease_key};
use crate::mvcc::{LongHistory, Txn, View, Writer};
use crate::record::{Anchors, Live, ValueRef, encode_record};
use crate::source::{LIVE, RunKind, Snapshot, Source, TreeId};
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
    pub fn export(&self, memory_bytes: usize, f: &mut VersionVisitor<'_>) -> Result<()> {
        let mut export = Exporter::new(self, memory_bytes);
        let mut broken = false;
        while !broken
            && export.step(&mut |version| {
                let flow = f(version);
                broken = flow.is_break();
                flow
            })?
        {}
        Ok(())
    }
}

impl LongHistory {
    /// As [`View::export`], of all that this reads, a slice at a time.
    pub fn export(&self, memory_bytes: usize) -> Export<'_> {
        Export(Exporter::new(self, memory_bytes))
    }
}

/// An export under way. It holds no page between two calls.
pub struct Export<'h>(Exporter<'h, LongHistory>);

impl Export<'_> {
    /// Does a bounded piece of the work and hands what it came to, perhaps nothing, to `f`, until that breaks. Whether there
    /// is more. `f` must not wait for anybody: pages are pinned meanwhile.
    pub fn step(&mut self, f: &mut VersionVisitor<'_>) -> Result<bool> {
        self.0.step(f)
    }
}

/// What an export calls.
pub type VersionVisitor<'f> = dyn FnMut(Version<'_>) -> ControlFlow<()> + 'f;

/// An export from anything that can be read in slices.
pub(crate) struct Exporter<'s, S> {
    from: &'s S,
    memory_bytes: usize,
    stage: Stage,
}

enum Stage {
    /// Looks for the versions at the compact revision that come next: those above `behind`, as many as memory holds.
    Gather {
        behind: Revision,
        window: Window,
        key: Vec<u8>,
    },
    /// Shows them; then goes back, if there are more.
    Show {
        window: BTreeMap<Revision, Bytes>,
        more_behind: Option<Revision>,
    },
    /// Shows the changes from here on.
    Changes(Revision),
    End,
}

/// The keys of the lowest revisions, so many bytes of them.
#[derive(Default)]
struct Window {
    keys: BTreeMap<Revision, Bytes>,
    bytes: usize,
    /// From here on keys were left out.
    cut: Option<Revision>,
}

impl Window {
    fn add(&mut self, revision: Revision, key: &[u8], bytes_max: usize) {
        const BOOKS: usize = 96;
        if self.cut.is_some_and(|cut| revision >= cut) {
            return;
        }
        self.bytes += key.len() + BOOKS;
        self.keys.insert(revision, Bytes::copy_from_slice(key));
        while self.bytes > bytes_max && self.keys.len() > 1 {
            if let Some((last, key)) = self.keys.pop_last() {
                self.bytes -= key.len() + BOOKS;
                self.cut = Some(last);
            }
        }
    }
}

impl Stage {
    fn gather(behind: Revision) -> Stage {
        Stage::Gather {
            behind,
            window: Window::default(),
            key: Vec::new(),
        }
    }

    fn changes(compact: i64) -> Stage {
        Stage::Changes(Revision {
            main: compact.max(0) + 1,
            sub: 0,
        })
    }
}

impl<'s, S: Slices> Exporter<'s, S> {
    pub(crate) fn new(from: &'s S, memory_bytes: usize) -> Exporter<'s, S> {
        let compact = from.compact_revision();
        Exporter {
            from,
            memory_bytes,
            stage: match compact > 0 {
                true => Stage::gather(Revision::default()),
                false => Stage::changes(compact),
            },
        }
    }

    /// See [`Export::step`].
    pub(crate) fn step(&mut self, f: &mut VersionVisitor<'_>) -> Result<bool> {
        let (from, at) = (self.from, self.from.compact_revision());
        self.stage = match std::mem::replace(&mut self.stage, Stage::End) {
            Stage::Gather {
                behind,
                mut window,
                key,
            } => {
                let next = from.slice(|reader| {
                    reader.versions(&key, None, at, from.bounds(), &mut |key, rev, _| {
                        if rev > behind {
                            window.add(rev, key, self.memory_bytes);
                        }
                        Ok(ControlFlow::Continue(()))
                    })
                })?;
                match next {
                    Some(key) => Stage::Gather {
                        behind,
                        window,
                        key,
                    },
                    None => Stage::Show {
                        more_behind: window
                            .cut
                            .and_then(|_| window.keys.last_key_value())
                            .map(|(last, _)| *last),
                        window: window.keys,
                    },
                }
            }
            Stage::Show {
                mut window,
                more_behind,
            } => {
                from.slice(|reader| show(&reader, at, &mut window, from.bounds(), f))?;
                match (window.is_empty(), more_behind) {
                    (false, _) => Stage::Show {
                        window,
                        more_behind,
                    },
                    (true, Some(behind)) => Stage::gather(behind),
                    (true, None) => Stage::changes(at),
                }
            }
            Stage::Changes(place) => {
                let upto = from.revision();
                let next = from.slice(|reader| {
                    reader.changes(place, upto, from.bounds(), &mut |event| {
                        show_change(&reader, event, f)
                    })
                })?;
                next.map_or(Stage::End, Stage::Changes)
            }
            Stage::End => Stage::End,
        };
        Ok(!matches!(self.stage, Stage::End))
    }
}

/// Shows and removes the first few versions of a window.
fn show(
    reader: &Reader<'_, Snapshot>,
    at: i64,
    window: &mut BTreeMap<Revision, Bytes>,
    bounds: Slice,
    f: &mut VersionVisitor<'_>,
) -> Result<()> {
    let (mut entries, mut bytes) = (bounds.entries, bounds.bytes);
    while entries > 0
        && bytes > 0
        && let Some((revision, key)) = window.pop_first()
    {
        let mut flow = ControlFlow::Continue(());
        reader.read(&key, at, |kv| {
            bytes = bytes.saturating_sub(kv.key.len() + kv.value.len());
            flow = f(Version {
                revision,
                kind: EventKind::Put,
                kv,
            });
        })?;
        entries -= 1;
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

fn show_change(
    reader: &Reader<'_, Snapshot>,
    event: &EventView<'_>,
    f: &mut VersionVisitor<'_>,
) -> Result<ControlFlow<()>> {
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
                run = Source::read_run(reader.src, at)?;
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
