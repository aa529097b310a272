//! Moving runs of values and chunks towards the front of the file: the part of defragmentation that must know who refers
//! to a run.
//!
//! The store notes runs at the end of the file, each with the owner that was written into it. Who refers to it now:
//!
//! - a chunk: its entry in E;
//! - a value of S: its record;
//! - a value of a user key, written at revision *r*: the entry in K while *r* is the key's newest change, else the event
//!   that replaced it, as its previous value; and as long as *r* may be read, the event at *r* as its new value.
//!
//! Chunks never change, so one with events that refer to a moved value is copied too. Values are written in the order
//! of history, and so lie near those that share their chunks.
//!
//! Invariants:
//! 1. All references to a run are found before any is changed, and all are changed before the old run is freed.
//! 2. What refers to a run from the chunk that is still open, which readers may hold, is left for later.
//! 3. Bytes looked for in chunks are found by their place in the event, never by comparing contents.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::events::chunk::{ChunkView, Prev};
use crate::events::log::{ChunkEntry, index_key};
use crate::events::scan::{ChunkCache, History};
use crate::mvcc::{View, Writer};
use crate::record::{RUN, ValueRef, decode_record, run_ref};
use crate::source::{Entry, RunKind, RunRef, Source, StoreWriter, TailRun, TreeId};
use crate::types::{Error, Result, Revision};

/// Moves noted runs until about `bytes` were copied.
pub(crate) fn move_runs(writer: &mut Writer, bytes: usize) -> Result<()> {
    let mut moves = Moves::default();
    while moves.bytes < bytes {
        let Some(run) = writer.store.tail_runs(0).pop() else {
            break;
        };
        moves.add(writer, run)?;
    }
    moves.apply(writer)
}

/// Reads what moving the noted runs will need, so that it is in the cache when the writer does.
pub(crate) fn warm(view: &View, runs: &[TailRun]) {
    let (reader, meta) = (view.reader(), &view.inner.meta);
    let history = reader.history();
    for run in runs {
        let seen = Seen {
            from: meta.compact_revision,
            sweep: meta.sweep,
        };
        // Nothing comes of an error here: whoever needs the bytes will report it.
        if run.kind != RunKind::Value {
            let _ = history.src.get(TreeId::E, &run.owner_key);
        } else if run.owner == [0; 16] {
            let _ = history.src.get(TreeId::S, &run.owner_key);
        } else if let Ok(Some(found)) = referrers(&history, &seen, run) {
            for (_, entry, _, _) in found.events {
                let _ = history.src.read_run(entry.run);
            }
        }
    }
}

/// What compaction has done to history.
struct Seen {
    /// Events from here on may be read.
    from: i64,
    /// Events before this have given up their runs.
    sweep: Revision,
}

/// Which of an event's values.
#[derive(Clone, Copy)]
enum Side {
    New = 0,
    Prev = 1,
}

/// Who refers to the value of a user key.
struct Referrers {
    /// The entry in K.
    entry: Option<Entry>,
    /// Chunks, and the events in them.
    events: Vec<(Revision, ChunkEntry, Revision, Side)>,
}

/// None when nobody does any more, or when one who does is in the open chunk.
fn referrers<S: Source>(
    history: &History<'_, S>,
    seen: &Seen,
    run: &TailRun,
) -> Result<Option<Referrers>> {
    let word = |at: usize| u64::from_be_bytes(run.owner[at..at + 8].try_into().expect("8")) as i64;
    let rev = Revision {
        main: word(0),
        sub: word(8),
    };
    let Some(entry) = history.src.get(TreeId::K, &run.owner_key)? else {
        return Ok(None);
    };
    let record = decode_record(entry.flags, &entry.value)?;
    let (newest, live) = (record.rev, record.live);
    let mut found = Referrers {
        entry: None,
        events: Vec::new(),
    };
    if newest == rev {
        if live.is_none_or(|live| live.value != ValueRef::Run(run.run)) {
            return Ok(None);
        }
        found.entry = Some(entry);
    } else {
        let Some(at) = replaced_by(history, seen, newest, rev, run.run)? else {
            return Ok(None);
        };
        if !found.refer(history, at, Side::Prev)? {
            return Ok(None);
        }
    }
    // A state that was loaded has no events at the revision it was loaded at.
    let readable = rev.main > seen.from
        || rev.main == seen.from && history.oldest()?.is_some_and(|oldest| oldest <= rev);
    if readable && !found.refer(history, rev, Side::New)? {
        return Ok(None);
    }
    Ok(Some(found))
}

impl Referrers {
    /// False: the event is in the open chunk.
    fn refer<S: Source>(
        &mut self,
        history: &History<'_, S>,
        event: Revision,
        side: Side,
    ) -> Result<bool> {
        if history.open_at(event).is_some() {
            return Ok(false);
        }
        let (first, entry) = history
            .entry_at(event)?
            .ok_or_else(|| Error::Corrupt(format!("history lacks the event at {event:?}")))?;
        self.events.push((first, entry, event, side));
        Ok(true)
    }
}

/// The event that replaced the version at `rev`, if it still owns that version's run.
fn replaced_by<S: Source>(
    history: &History<'_, S>,
    seen: &Seen,
    newest: Revision,
    rev: Revision,
    run: RunRef,
) -> Result<Option<Revision>> {
    enum Step {
        Here,
        Older(Revision),
        Nowhere,
    }
    let Some(oldest) = history.oldest()? else {
        return Ok(None);
    };
    let kept_from = oldest.max(seen.sweep);
    let mut cache = ChunkCache::default();
    let mut here = newest;
    while here > rev && here >= kept_from {
        let step = history.at(here, &mut cache, |event, _| {
            Ok(match event.prev {
                Prev::Live(at, live) if at == rev => match live.value == ValueRef::Run(run) {
                    true => Step::Here,
                    false => Step::Nowhere,
                },
                Prev::None => Step::Nowhere,
                Prev::Tombstone(at) | Prev::Live(at, _) => {
                    Step::Older(event.links.jump(here, rev.main)?.unwrap_or(at))
                }
            })
        })?;
        match step {
            Step::Here => return Ok(Some(here)),
            Step::Older(older) if older < here => here = older,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Moves that are decided and not yet made.
#[derive(Default)]
struct Moves {
    bytes: usize,
    chunks: BTreeMap<Revision, Chunk>,
    entries: Vec<(TreeId, Bytes, Entry)>,
    /// Runs that nobody refers to when all is done.
    old: Vec<RunRef>,
}

/// A chunk that is to be copied.
struct Chunk {
    entry: ChunkEntry,
    bytes: Vec<u8>,
    /// It lies at the end of the file itself.
    noted: Option<TailRun>,
}

impl Moves {
    fn add(&mut self, writer: &mut Writer, run: TailRun) -> Result<()> {
        // Looking costs as much as a small copy.
        self.bytes += 4096;
        if run.kind == RunKind::Chunk {
            return self.add_chunk(writer, run);
        }
        if run.owner == [0; 16] {
            return self.add_record(writer, &run);
        }
        let seen = Seen {
            // Not the compact revision alone: a long reader may ask for new values from before it.
            from: writer.history_floor(),
            sweep: writer.meta.sweep,
        };
        let open = writer.log.published();
        let reader = writer.reader(open.as_ref());
        let Some(found) = referrers(&reader.history(), &seen, &run)? else {
            return Ok(());
        };
        let mut places = Vec::new();
        for (first, entry, event, side) in found.events {
            self.load(&writer.store, first, entry)?;
            let chunk = ChunkView::sealed(&self.chunks[&first].bytes)?;
            let i = chunk.lower_bound(event);
            let here = i < chunk.len() && chunk.rev(i) == event;
            let place = match here {
                true => chunk.run_places(i)?[side as usize],
                false => None,
            };
            let old = run.run.to_bytes();
            let place = place.filter(|at| self.chunks[&first].bytes[*at..][..old.len()] == old);
            places.push((
                first,
                place.ok_or_else(|| {
                    Error::Corrupt(format!("the event at {event:?} does not refer to its run"))
                })?,
            ));
        }
        let Some(copy) = writer.store.copy_run(&run)? else {
            return Ok(());
        };
        self.bytes += run.bytes.len();
        for (first, at) in places {
            if let Some(chunk) = self.chunks.get_mut(&first) {
                chunk.bytes[at..][..RunRef::BYTES].copy_from_slice(&copy.to_bytes());
            }
        }
        if let Some(entry) = found.entry {
            self.refer(TreeId::K, run.owner_key.clone(), entry, copy);
        }
        self.old.push(run.run);
        Ok(())
    }

    fn load(&mut self, store: &StoreWriter, first: Revision, entry: ChunkEntry) -> Result<()> {
        if let std::collections::btree_map::Entry::Vacant(slot) = self.chunks.entry(first) {
            let bytes = store.read_run(entry.run)?.to_vec();
            self.bytes += bytes.len();
            slot.insert(Chunk {
                entry,
                bytes,
                noted: None,
            });
        }
        Ok(())
    }

    fn add_chunk(&mut self, writer: &mut Writer, run: TailRun) -> Result<()> {
        let Some(found) = writer.store.get(TreeId::E, &run.owner_key)? else {
            return Ok(());
        };
        let (first, entry) = ChunkEntry::decode(&run.owner_key, &found.value)?;
        if entry.run == run.run {
            self.load(&writer.store, first, entry)?;
            if let Some(chunk) = self.chunks.get_mut(&first) {
                chunk.noted = Some(run);
            }
        }
        Ok(())
    }

    fn add_record(&mut self, writer: &mut Writer, run: &TailRun) -> Result<()> {
        let Some(entry) = writer.store.get(TreeId::S, &run.owner_key)? else {
            return Ok(());
        };
        if entry.flags & RUN == 0 || run_ref(&entry.value)? != run.run {
            return Ok(());
        }
        if let Some(copy) = writer.store.copy_run(run)? {
            self.bytes += run.bytes.len();
            self.refer(TreeId::S, run.owner_key.clone(), entry, copy);
            self.old.push(run.run);
        }
        Ok(())
    }

    /// Entries of K and S end in the reference.
    fn refer(&mut self, tree: TreeId, key: Bytes, entry: Entry, copy: RunRef) {
        let mut value = entry.value.to_vec();
        let at = value.len() - RunRef::BYTES;
        value[at..].copy_from_slice(&copy.to_bytes());
        let entry = Entry {
            flags: entry.flags,
            value: value.into(),
        };
        self.entries.push((tree, key, entry));
    }

    /// Makes the moves. Its errors are those of reading pages that were read just before; the old runs then stay, so
    /// that whatever still refers to them is right.
    fn apply(self, writer: &mut Writer) -> Result<()> {
        let store = &mut writer.store;
        let mut old = self.old;
        for (first, chunk) in self.chunks {
            let key = index_key(first);
            let bytes = Bytes::from(chunk.bytes);
            let copy = match chunk.noted {
                Some(noted) => store.copy_run(&TailRun {
                    bytes: bytes.clone(),
                    ..noted
                })?,
                None => None,
            };
            let run = match copy {
                Some(copy) => copy,
                None => {
                    let mut owner = [0; 16];
                    owner[..key.len()].copy_from_slice(&key);
                    store.write_run(RunKind::Chunk, &key, owner, bytes)?
                }
            };
            let entry = ChunkEntry { run, ..chunk.entry };
            store.insert(TreeId::E, &key, crate::source::LIVE, &entry.encode())?;
            old.push(chunk.entry.run);
        }
        for (tree, key, entry) in self.entries {
            store.insert(tree, &key, entry.flags, &entry.value)?;
        }
        old.into_iter().for_each(|run| store.free_run(run));
        Ok(())
    }
}
