//! The record layer's checker: reads all of a state and verifies what other code relies on.
//!
//! It checks, beyond that everything decodes and every run is readable:
//! 1. K: no version is newer than the state's revision; the LIVE flag is right.
//! 2. E: chunks are in order without gaps; every revision from the compact revision on is there,
//!    sub-revisions 0..n; each event's previous version is the one the history before it left.
//! 3. K and E agree about the newest change of every key that changed in the kept history.
//! 4. L holds exactly the attachments of live keys.
//! 5. After a finished compaction no chunk lies wholly below it, and no tombstone in K is older
//!    than the oldest chunk.
//! 6. No two different versions share a run.
//!
//! Below that it runs the store's own checks: of a view's pages, or of the whole file. For the
//! file it names every run that a state owns, so that a run freed too early, twice or never shows
//! up against the allocation map.
//!
//! Memory grows with the number of keys and events: it is for tests and for offline tools.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::events::chunk::{ChunkView, Prev};
use crate::mvcc::reader::lease_key;
use crate::mvcc::{Meta, View};
use crate::record::{Live, RUN, ValueRef, decode_record, run_ref};
use crate::source::{LIVE, RunRef, Source, SpaceUse, Store, TreeId};
use crate::types::{Error, Result, Revision};

fn broken(what: String) -> Error {
    Error::Corrupt(format!("check: {what}"))
}

macro_rules! ensure {
    ($cond:expr, $($text:tt)*) => {
        if !$cond {
            return Err(broken(format!($($text)*)));
        }
    };
}

/// What the checker saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Live keys.
    pub keys: u64,
    /// Deleted keys K still remembers.
    pub tombstones: u64,
    /// Events kept.
    pub events: u64,
    /// Sealed chunks.
    pub chunks: u64,
    /// Values in runs of their own.
    pub value_runs: u64,
    /// Key attachments to leases.
    pub attachments: u64,
    /// System records.
    pub sys_records: u64,
}

/// Newest change of a key: its revision, and whether it left the key live.
type Newest = BTreeMap<Vec<u8>, (Revision, bool)>;

struct Checker<'v> {
    view: &'v View,
    report: CheckReport,
    /// Run unit to the version that owns it.
    runs: BTreeMap<u64, (Vec<u8>, Revision)>,
}

/// What the check of the file saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReport {
    /// The durable checkpoint that was checked.
    pub checkpoint: u64,
    /// Tree pages.
    pub pages: u64,
    /// Entries of all trees.
    pub entries: u64,
    /// Runs: values, chunks, long keys.
    pub runs: u64,
    /// Allocation units in use.
    pub units: u64,
    /// What they hold.
    pub space: SpaceUse,
}

/// Checks the newest durable checkpoint as it lies on disk.
pub(crate) fn check_file(store: &Store, view: &View) -> Result<FileReport> {
    loop {
        let durable = store.durable();
        if durable.checkpoint == 0 {
            return Ok(FileReport::default());
        }
        let meta = Meta::decode(&durable.user_meta)?;
        let owned = |tree, _: &[u8], flags, value: &[u8], out: &mut Vec<RunRef>| {
            let read = |run| Source::read_run(&view.inner.snapshot, run);
            owned_runs(&read, meta.sweep, tree, flags, value, out)
        };
        let mut owned = in_store_terms(owned);
        let result = store.check(&mut owned);
        // A checkpoint that ended meanwhile may have another sweep position than we assumed.
        match result {
            Ok(report) if report.checkpoint == durable.checkpoint => {
                return Ok(FileReport {
                    checkpoint: report.checkpoint,
                    pages: report.pages,
                    entries: report.entries,
                    runs: report.runs,
                    units: report.units,
                    space: report.space,
                });
            }
            Err(error) if store.durable().checkpoint == durable.checkpoint => {
                return Err(error.into());
            }
            _ => {}
        }
    }
}

/// What an opening can see at once: that history ends where the state says, with the number of events that it says.
pub(crate) fn check_opened(view: &View) -> Result<()> {
    let meta = &view.inner.meta;
    match view.reader().history().last_sealed()? {
        Some(entry) => {
            let events = entry.first_seq + u64::from(entry.events);
            ensure!(
                entry.last.main == meta.revision && events == meta.next_seq,
                "the state is at revision {} after {} events, its history at {} after {events}",
                meta.revision,
                meta.next_seq,
                entry.last.main
            );
        }
        // A new state, or one that was loaded.
        None => ensure!(
            meta.next_seq == 0 && meta.revision == meta.compact_revision.max(1),
            "the state is at revision {} after {} events, and has no history",
            meta.revision,
            meta.next_seq
        ),
    }
    Ok(())
}

/// Adds the runs an entry owns. `read` gives the contents of a chunk.
pub(crate) fn owned_runs(
    read: &dyn Fn(RunRef) -> Result<bytes::Bytes>,
    sweep: Revision,
    tree: TreeId,
    flags: u8,
    value: &[u8],
    out: &mut Vec<RunRef>,
) -> Result<()> {
    match tree {
        TreeId::K => {
            if let Some(live) = decode_record(flags, value)?.live
                && let ValueRef::Run(run) = live.value
            {
                out.push(run);
            }
        }
        TreeId::S if flags & RUN != 0 => out.push(run_ref(value)?),
        TreeId::S | TreeId::L => {}
        TreeId::E => {
            let run = run_ref(value.get(..24).unwrap_or_default())?;
            out.push(run);
            let bytes = read(run)?;
            let chunk = ChunkView::sealed(&bytes)?;
            for i in chunk.lower_bound(sweep)..chunk.len() {
                if let Prev::Live(_, live) = chunk.event(i)?.prev
                    && let ValueRef::Run(run) = live.value
                {
                    out.push(run);
                }
            }
        }
    }
    Ok(())
}

/// The visitor with the store's error type.
fn in_store_terms(
    mut visit: impl FnMut(TreeId, &[u8], u8, &[u8], &mut Vec<RunRef>) -> Result<()>,
) -> impl FnMut(TreeId, &[u8], u8, &[u8], &mut Vec<RunRef>) -> crate::store::Result<()> {
    move |tree, key, flags, value, out| {
        visit(tree, key, flags, value, out).map_err(|error| crate::store::Error::Corrupt {
            file: std::path::PathBuf::new(),
            offset: 0,
            what: error.to_string(),
        })
    }
}

pub(crate) fn check(view: &View) -> Result<CheckReport> {
    let sweep = view.inner.meta.sweep;
    let snapshot = &view.inner.snapshot;
    snapshot.check(&mut in_store_terms(|tree, _, flags, value, out| {
        let read = |run| Source::read_run(snapshot, run);
        owned_runs(&read, sweep, tree, flags, value, out)
    }))?;
    let mut checker = Checker {
        view,
        report: CheckReport::default(),
        runs: BTreeMap::new(),
    };
    let newest = checker.keys()?;
    checker.chunks()?;
    checker.events(&newest)?;
    checker.system()?;
    checker.report.value_runs = checker.runs.len() as u64;
    Ok(checker.report)
}

impl Checker<'_> {
    fn value(&mut self, key: &[u8], rev: Revision, live: &Live<'_>) -> Result<()> {
        let ValueRef::Run(run) = live.value else {
            return Ok(());
        };
        self.run(key, rev, run)
    }

    fn run(&mut self, key: &[u8], rev: Revision, run: RunRef) -> Result<()> {
        let owner = (key.to_vec(), rev);
        match self.runs.get(&run.unit) {
            Some(other) => ensure!(
                *other == owner,
                "run {run:?} has two owners: {owner:?}, {other:?}"
            ),
            None => {
                let bytes = Source::read_run(&self.view.inner.snapshot, run)?;
                ensure!(
                    bytes.len() == run.len as usize,
                    "run {run:?} has another length"
                );
                self.runs.insert(run.unit, owner);
            }
        }
        Ok(())
    }

    fn keys(&mut self) -> Result<Newest> {
        let snapshot = &self.view.inner.snapshot;
        let mut newest = Newest::new();
        let mut attached = BTreeSet::new();
        let mut cursor = Source::cursor(snapshot, TreeId::K, false);
        cursor.seek(&[])?;
        while cursor.valid() {
            let key = cursor.key().to_vec();
            let record = decode_record(cursor.flags(), cursor.value())?;
            ensure!(!key.is_empty(), "an empty key");
            ensure!(
                (1..=self.view.revision()).contains(&record.rev.main),
                "key {key:?} is at revision {:?}",
                record.rev
            );
            match &record.live {
                None => self.report.tombstones += 1,
                Some(live) => {
                    self.report.keys += 1;
                    ensure!(
                        live.version >= 1 && live.create >= 1,
                        "key {key:?} has version {} and create revision {}",
                        live.version,
                        live.create
                    );
                    self.value(&key, record.rev, live)?;
                    if live.lease != 0 {
                        attached.insert(lease_key(live.lease, &key));
                    }
                }
            }
            newest.insert(key, (record.rev, record.live.is_some()));
            cursor.next()?;
        }
        let mut cursor = Source::cursor(snapshot, TreeId::L, false);
        cursor.seek(&[])?;
        while cursor.valid() {
            ensure!(
                attached.remove(cursor.key()),
                "stray attachment {:?}",
                cursor.key()
            );
            self.report.attachments += 1;
            cursor.next()?;
        }
        ensure!(attached.is_empty(), "missing attachments {attached:?}");
        Ok(newest)
    }

    fn chunks(&mut self) -> Result<()> {
        let meta = &self.view.inner.meta;
        let done = meta.compact_done == meta.compact_revision;
        let mut next_seq = None;
        let mut chunks = 0;
        let history = self.view.reader().history();
        history.sealed(|first, entry| {
            chunks += 1;
            ensure!(first <= entry.last, "chunk {first:?} ends before it begins");
            ensure!(
                next_seq.is_none_or(|n| n == entry.first_seq),
                "chunk {first:?} begins with event number {}, not {next_seq:?}",
                entry.first_seq
            );
            next_seq = Some(entry.first_seq + u64::from(entry.events));
            ensure!(
                !done || entry.last.main >= meta.compact_revision,
                "chunk {first:?} should have been dropped by the compaction at {}",
                meta.compact_revision
            );
            Ok(())
        })?;
        self.report.chunks = chunks;
        let open = self.view.inner.open.as_ref();
        let end = next_seq.map_or(open.map(|open| open.first_seq), Some);
        if let (Some(end), Some(open)) = (end, open) {
            ensure!(
                end == open.first_seq,
                "the open chunk does not follow the last sealed one"
            );
            let events = open.view().len() as u64;
            ensure!(
                open.first_seq + events == meta.next_seq,
                "events are miscounted"
            );
        } else if let Some(end) = end {
            ensure!(end == meta.next_seq, "events are miscounted");
        }
        Ok(())
    }

    fn events(&mut self, newest: &Newest) -> Result<()> {
        let meta = &self.view.inner.meta;
        let mut last: Option<Revision> = None;
        let mut first = None;
        let mut known = Newest::new();
        // Runs of previous values below the sweep position are freed already.
        let (swept, sweeping) = (meta.sweep, meta.sweep > Revision::default());
        self.view
            .reader()
            .history()
            .scan(Revision::default(), |event, _| {
                let rev = event.rev;
                self.report.events += 1;
                let follows = match last {
                    None => rev.sub == 0 || rev.main < meta.compact_revision,
                    Some(last) if last.main == rev.main => rev.sub == last.sub + 1,
                    Some(last) => rev.main == last.main + 1 && rev.sub == 0,
                };
                ensure!(follows, "event {rev:?} after {last:?}");
                last = Some(rev);
                first.get_or_insert(rev);
                let prev = match event.prev {
                    Prev::None => None,
                    Prev::Tombstone(at) => Some((at, false)),
                    Prev::Live(at, _) => Some((at, true)),
                };
                match known.get(event.key) {
                    Some(before) => ensure!(
                        prev == Some(*before)
                        // Its tombstone was swept before the put.
                        || (prev.is_none() && !before.1 && before.0.main < meta.compact_revision),
                        "event {rev:?} of {:?} replaced {prev:?}, history says {before:?}",
                        event.key
                    ),
                    None => ensure!(
                        prev.is_none_or(|(at, _)| Some(at) < first),
                        "event {rev:?} replaced {prev:?}, which history lacks"
                    ),
                }
                ensure!(
                    event.new.is_some() || prev.is_some_and(|p| p.1),
                    "event {rev:?} deletes nothing"
                );
                known.insert(event.key.to_vec(), (rev, event.new.is_some()));
                let kept = rev.main >= meta.compact_revision && !(sweeping && rev < swept);
                if let Prev::Live(at, live) = &event.prev
                    && kept
                {
                    self.value(event.key, *at, live)?;
                }
                if let Some(live) = &event.new
                    && kept
                {
                    self.value(event.key, rev, live)?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
        let from = meta.compact_revision.max(2);
        // A loaded state has its history behind the compact revision, not from it on.
        let loaded = meta.revision == meta.compact_revision && first.is_none();
        ensure!(
            meta.revision < from
                || loaded
                || (first.is_some_and(|f| f.main <= from + 1)
                    && last.is_some_and(|l| l.main == meta.revision)),
            "history is {first:?} to {last:?}, not {from} to {}",
            meta.revision
        );
        for (key, state) in &known {
            match newest.get(key) {
                Some(found) => ensure!(
                    found == state,
                    "key {key:?} is {found:?}, history says {state:?}"
                ),
                None => ensure!(
                    !state.1 && state.0.main < meta.compact_revision,
                    "key {key:?} is missing, history says {state:?}"
                ),
            }
        }
        if let Some(first) = first
            && meta.compact_done == meta.compact_revision
        {
            for (key, (rev, live)) in newest {
                ensure!(
                    *live || *rev >= first,
                    "key {key:?} is a dead tombstone of {rev:?}"
                );
            }
        }
        Ok(())
    }

    fn system(&mut self) -> Result<()> {
        let snapshot = &self.view.inner.snapshot;
        let mut cursor = Source::cursor(snapshot, TreeId::S, false);
        cursor.seek(&[])?;
        while cursor.valid() {
            ensure!(cursor.flags() & LIVE != 0, "a system record is marked dead");
            if cursor.flags() & RUN != 0 {
                let key = cursor.key().to_vec();
                self.run(&key, Revision::default(), run_ref(cursor.value())?)?;
            }
            self.report.sys_records += 1;
            cursor.next()?;
        }
        Ok(())
    }
}
