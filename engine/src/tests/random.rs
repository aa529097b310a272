//! Random requests, compactions, checkpoints and restarts; after each round everything that can
//! be asked is asked of engine and model alike.
//!
//! `QUORATE_SEEDS` sets how many histories are tried (default 16), `QUORATE_SEED` picks one.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::Disk;

use super::model::Model;
use crate::mvcc::long::Slices;
use crate::mvcc::reader::{Reader, Slice};
use crate::mvcc::{Engine, LongHistory, LongRead, View, Writer};
use crate::source::Snapshot;
use crate::store::{FatalHook, IoBackend};
use crate::transfer::Exporter;
use crate::types::{
    Applied, Budget, CompactError, CompactProgress, Error, Event, KeyRange, KeyValue, Options,
};

struct Run {
    rng: StdRng,
    options: Options,
    /// None only while reopening.
    open: Option<(Engine, Writer)>,
    model: Model,
    index: u64,
    /// The model as of each publication, by applied index: what a checkpoint may bring back.
    published: BTreeMap<u64, Model>,
    /// Events since the last publication.
    fresh_from: i64,
    /// The writer was told to gather no events for the next publication.
    skipping: bool,
    /// How many keys there are: few meet often, many make the trees deep.
    keys: u32,
    /// Views held for a while, which must not change.
    held: Vec<(View, Model)>,
    /// Readers that pin history, on their way through a range.
    long: Vec<Long>,
    /// A reader of all history is on its way, a slice between steps.
    beside: bool,
    /// Slices read, and compactions that waited for them.
    slices: u32,
    waited: u32,
    reopens: u32,
    /// The simulated disk, when crashes are wanted.
    disk: Option<Disk>,
    _dir: tempfile::TempDir,
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Run {
    fn new(seed: u64) -> Run {
        Run::on(seed, None)
    }

    /// On a simulated disk that crashes instead of closing.
    fn crashing(seed: u64) -> Run {
        Run::on(seed, Some(Disk::new(seed)))
    }

    fn on(seed: u64, disk: Option<Disk>) -> Run {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path());
        options.page_bytes = 512 << rng.gen_range(0..3);
        options.cache_bytes = 1 << 20;
        options.chunk_bytes = [200, 600, 4096][rng.gen_range(0..3)];
        options.extend_bytes = 1 << 20;
        options.fragmentation_max = [0, 20][rng.gen_range(0..2)];
        options.publish_bytes_max = [1 << 12, 1 << 20][rng.gen_range(0..2)];
        if let Some(disk) = &disk {
            options.dir = "store".into();
            options.backend = IoBackend::Sim(disk.clone());
            options.background = false;
            options.extend_bytes = 8192;
            options.reserve_bytes = 8192;
            options.on_fatal = Some(FatalHook(Arc::new(|_| {})));
        }
        let open = Engine::open(options.clone()).expect("opens");
        Run {
            rng,
            options,
            open: Some(open),
            model: Model::new(),
            index: 0,
            published: BTreeMap::from([(0, Model::new())]),
            fresh_from: 2,
            skipping: false,
            keys: [24, 24, 24, 60][seed as usize % 4],
            held: Vec::new(),
            long: Vec::new(),
            beside: false,
            slices: 0,
            waited: 0,
            reopens: 0,
            disk,
            _dir: dir,
        }
    }

    fn writer(&mut self) -> &mut Writer {
        &mut self.open.as_mut().expect("open").1
    }

    fn engine(&self) -> &Engine {
        &self.open.as_ref().expect("open").0
    }

    fn key(&mut self) -> Bytes {
        let n = self.rng.gen_range(0..self.keys) as u8;
        let mut key = vec![b'k', n / 6, 0xff * (n & 1), n];
        if n == 7 {
            key.extend([b'x'; 700]);
        }
        key.into()
    }

    fn value(&mut self) -> Bytes {
        let bytes = match self.rng.gen_range(0..10) {
            0 => 0,
            1 => self.rng.gen_range(100..3000),
            _ => self.rng.gen_range(1..60),
        };
        let byte = self.rng.r#gen::<u8>();
        vec![byte; bytes].into()
    }

    fn range(&mut self) -> KeyRange {
        let (start, end) = (self.key(), self.key());
        match self.rng.gen_range(0..6) {
            0 => KeyRange::all(),
            1 => KeyRange::One(start),
            2 => KeyRange::From(start),
            _ => KeyRange::Half { start, end },
        }
    }

    fn lease(&mut self) -> i64 {
        [0, 0, 1, 2, -1][self.rng.gen_range(0..5)]
    }

    fn request(&mut self) {
        let main = self.model.revision + 1;
        let ops = if self.rng.gen_bool(0.2) {
            self.rng.gen_range(0..8)
        } else {
            1
        };
        let mut planned = Vec::new();
        for _ in 0..ops {
            let delete = self.rng.gen_bool(0.15);
            planned.push(if delete {
                (None, self.range())
            } else {
                let key = self.key();
                (Some((self.value(), self.lease())), KeyRange::One(key))
            });
        }
        let collect = self.rng.gen_bool(0.5);
        let probe = self.range();
        let at = self.readable();
        let model = &mut self.model;
        let mut txn = self.open.as_mut().expect("open").1.txn();
        assert_eq!(txn.begin_revision(), main - 1);
        for (put, range) in planned {
            match put {
                Some((value, lease)) => {
                    let key = Bytes::copy_from_slice(range.start());
                    let put = txn.put_with(key.clone(), value.clone(), lease, collect);
                    let (prev, expected) =
                        (put.expect("puts"), model.put(main, &key, &value, lease));
                    // Not asked for, it may come or not.
                    assert!(prev == expected || !collect && prev.is_none());
                }
                None => {
                    let (n, prevs) = txn.delete_range(&range, collect).expect("deletes");
                    let gone = model.delete(main, &range);
                    assert_eq!(n, gone.len() as u64);
                    assert_eq!(prevs, if collect { gone } else { Vec::new() });
                }
            }
            let now = model.range(&probe, main);
            assert_eq!(collect_range(|f| txn.visit(&probe, 0, f)), now);
            assert_eq!(txn.count(&probe, 0).expect("counts"), now.len() as u64);
            if let Some(at) = at {
                let then = model.range(&probe, at);
                assert_eq!(collect_range(|f| txn.visit(&probe, at, f)), then);
                assert_eq!(txn.count(&probe, at).expect("counts"), then.len() as u64);
            }
        }
        assert_eq!(txn.finish(), model.finish(main));
    }

    /// Some revision that can be read.
    fn readable(&mut self) -> Option<i64> {
        let from = self.model.compact_revision.max(1);
        Some(self.rng.gen_range(from..=self.model.revision))
    }

    fn compact(&mut self) {
        let rev = self.rng.gen_range(-1..=self.model.revision + 1);
        let expected = if rev <= self.model.compact_revision {
            Err(CompactError::Compacted)
        } else if rev > self.model.revision {
            Err(CompactError::Future)
        } else {
            self.model.compact_revision = rev;
            Ok(())
        };
        assert_eq!(self.writer().compact(rev), expected);
    }

    fn compact_step(&mut self) {
        let events = self.rng.gen_range(1..40);
        let done = self
            .writer()
            .compact_step(Budget { events })
            .expect("steps");
        let reached = self.writer().compact_done();
        match done {
            CompactProgress::Done => assert_eq!(reached, self.model.compact_revision),
            CompactProgress::More => {}
            CompactProgress::Held => {
                self.waited += 1;
                let stats = self.engine().stats();
                assert_eq!(stats.oldest_history_pin, Some(reached));
                assert!(stats.history_pins > 0 && reached < self.model.compact_revision);
            }
        }
    }

    /// Opens a reader of a range at some revision.
    fn read_long(&mut self) {
        self.publish();
        let (at, range) = (self.readable().expect("some"), self.range());
        let read = self.engine().long_read(at).expect("can be read");
        assert_eq!(read.revision(), at);
        let expected = self.model.range(&range, at).into();
        self.long.push(Long {
            read,
            rest: Some(range),
            expected,
        });
    }

    /// One slice of one of them.
    fn read_on(&mut self) {
        let i = self.rng.gen_range(0..self.long.len());
        let bounds = Slice {
            entries: self.rng.gen_range(1..6),
            bytes: self.rng.gen_range(1..5000),
        };
        let most = self.rng.gen_range(1..6);
        let long = &mut self.long[i];
        let Some(range) = long.rest.take() else {
            assert!(long.expected.is_empty(), "left out: {:?}", long.expected);
            self.long.swap_remove(i);
            return;
        };
        let mut shown = 0;
        let rest = long.read.visit_in(&range, bounds, &mut |kv| {
            assert_eq!(Some(kv.to_owned()), long.expected.pop_front());
            shown += 1;
            match shown == most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        long.rest = rest.expect("reads");
        self.slices += 1;
    }

    /// Hashes and exports a state in slices while it becomes history.
    fn read_history(&mut self) {
        let early = self.rng.gen_bool(0.5);
        let of_writer = early.then(|| self.writer().long_history().expect("pins"));
        self.publish();
        let history = of_writer.unwrap_or_else(|| self.engine().long_history().expect("published"));
        let model = self.model.clone();
        assert_eq!(history.revision(), model.revision);
        assert_eq!(history.compact_revision(), model.compact_revision);
        let at = self.readable().expect("some");
        let memory = self.rng.gen_range(200..3000);
        self.beside = true;
        let beside = Beside {
            history,
            run: RefCell::new(self),
        };
        let hash = crate::hash::kv::hash_in(&beside, at, 5).expect("hashes");
        assert_eq!(hash.hash, model.hash_kv(at), "at {at}");
        let mut export = Exporter::new(&beside, memory);
        let mut versions = Vec::new();
        while export
            .step(&mut |v| {
                versions.push((v.kind, v.revision, v.kv.to_owned()));
                match versions.len() % 7 {
                    0 => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })
            .expect("exports")
        {}
        assert!(versions == model.versions());
        self.beside = false;
    }

    fn publish(&mut self) {
        self.index += 1;
        let applied = Applied {
            index: self.index,
            term: 1,
        };
        let blob = self.index.to_le_bytes();
        let published = self.writer().publish(applied, &blob);
        let expected: Vec<Event> = {
            // Events of a publication are as they were applied, whatever was compacted since.
            let mut uncompacted = self.model.clone();
            uncompacted.compact_revision = -1;
            uncompacted.events(self.fresh_from)
        };
        if published.overflow {
            assert!(published.events.is_empty() && (self.skipping || !expected.is_empty()));
        } else {
            assert_eq!(*published.events, expected[..]);
        }
        self.skipping = self.rng.gen_bool(0.1);
        if self.skipping {
            self.writer().skip_events();
        }
        self.fresh_from = self.model.revision + 1;
        self.published.insert(self.index, self.model.clone());
        assert_eq!(self.engine().view().applied(), applied);
        assert_eq!(self.engine().view().meta(), blob);
        if self.rng.gen_bool(0.1) {
            self.held.push((published.view, self.model.clone()));
        }
    }

    fn checkpoint(&mut self) {
        self.publish();
        let index = self.index;
        let started = self.writer().checkpoint().expect("starts");
        if let Some(number) = started
            && self.rng.gen_bool(0.7)
        {
            self.engine().wait_durable(number).expect("durable");
            assert_eq!(self.engine().durable_applied().index, index);
            assert_eq!(
                self.engine().check_file().expect("sound").checkpoint,
                number
            );
        }
    }

    /// Closes without a checkpoint, or crashes, usually within one.
    fn reopen(&mut self) {
        self.held.clear();
        // Their pins end with the process.
        self.long.clear();
        if let Some(disk) = self.disk.clone()
            && self.rng.gen_bool(0.8)
        {
            self.publish();
            disk.crash_at(disk.steps() + self.rng.gen_range(1..20));
            let _ = self.writer().checkpoint();
        }
        let durable = self.engine().durable_applied().index;
        self.open = None;
        if let Some(disk) = self.disk.take() {
            disk.power_off();
            let images: Vec<_> = disk.process_images().collect();
            let image = match self.rng.gen_range(0..3) {
                0 => images[self.rng.gen_range(0..images.len())].clone(),
                _ => disk.random_power_image(self.rng.r#gen()),
            };
            self.options.backend = IoBackend::Sim(image.disk.clone());
            self.disk = Some(image.disk);
        }
        self.open = Some(Engine::open(self.options.clone()).expect("opens again"));
        let view = self.engine().view();
        let index = view.applied().index;
        assert!(index >= durable, "a durable checkpoint was lost");
        self.model = self.published[&index].clone();
        self.index = index;
        self.published.retain(|at, _| *at <= index);
        self.fresh_from = self.model.revision + 1;
        self.reopens += 1;
        compare(&view, &self.model, None);
        self.engine().check_file().expect("sound");
    }

    /// A step, and the checker over what readers see after it, if that is another state.
    fn step(&mut self) {
        let before = self.engine().view().inner.snapshot.publish();
        self.step_unchecked();
        if self.engine().view().inner.snapshot.publish() != before {
            let view = self.engine().view();
            self.engine().check(&view).expect("sound");
        }
    }

    fn step_unchecked(&mut self) {
        match self.rng.gen_range(0..100) {
            0..=55 => self.request(),
            56..=58 if self.long.len() < 3 => self.read_long(),
            59..=68 if !self.long.is_empty() => self.read_on(),
            69 if !self.beside && self.rng.gen_bool(0.3) => self.read_history(),
            56..=69 => self.request(),
            70..=79 => self.publish(),
            80..=81 => self.compact(),
            82..=91 => self.compact_step(),
            92..=95 => self.checkpoint(),
            96 if !self.beside => self.reopen(),
            97 => self.writer().shrink(),
            98 => {
                let bytes = self.rng.gen_range(1..20_000);
                self.writer().defragment_step(bytes).expect("steps");
            }
            _ if !self.held.is_empty() => {
                let i = self.rng.gen_range(0..self.held.len());
                let (view, model) = self.held.swap_remove(i);
                compare(&view, &model, Some(&mut self.rng));
            }
            _ => self.request(),
        }
    }

    fn compare_newest(&mut self) {
        self.publish();
        let view = self.engine().view();
        compare(&view, &self.model, Some(&mut self.rng));
        self.engine().check(&view).expect("sound");
    }
}

/// A range that is read in slices, and what is to come of it.
struct Long {
    read: LongRead,
    rest: Option<KeyRange>,
    expected: VecDeque<KeyValue>,
}

/// Random steps between the slices of a reader of all history.
struct Beside<'r> {
    history: LongHistory,
    run: RefCell<&'r mut Run>,
}

impl Slices for Beside<'_> {
    fn revision(&self) -> i64 {
        self.history.revision()
    }
    fn compact_revision(&self) -> i64 {
        self.history.compact_revision()
    }
    fn bounds(&self) -> Slice {
        Slice {
            entries: 9,
            bytes: 4000,
        }
    }
    fn slice<R>(
        &self,
        f: impl FnOnce(Reader<'_, Snapshot>) -> crate::types::Result<R>,
    ) -> crate::types::Result<R> {
        let run = &mut *self.run.borrow_mut();
        run.slices += 1;
        for _ in 0..run.rng.gen_range(0..3) {
            run.step();
        }
        self.history.slice(f)
    }
}

fn collect_range(
    read: impl FnOnce(
        &mut dyn FnMut(crate::types::KvRef<'_>) -> ControlFlow<()>,
    ) -> crate::types::Result<()>,
) -> Vec<KeyValue> {
    let mut out = Vec::new();
    read(&mut |kv| {
        out.push(kv.to_owned());
        ControlFlow::Continue(())
    })
    .expect("reads");
    out
}

/// Asks a view everything its model can answer; with a generator, only at some revisions.
fn compare(view: &View, model: &Model, mut rng: Option<&mut StdRng>) {
    assert_eq!(view.revision(), model.revision);
    assert_eq!(view.compact_revision(), model.compact_revision);
    let first = model.compact_revision.max(1);
    let all = KeyRange::all();
    for at in first..=model.revision {
        if let Some(rng) = &mut rng
            && at != first
            && at != model.revision
            && !rng.gen_bool(0.3)
        {
            continue;
        }
        let expected = model.range(&all, at);
        assert_eq!(
            collect_range(|f| view.visit(&all, at, f)),
            expected,
            "at {at}"
        );
        let mut back = collect_range(|f| view.visit_rev(&all, at, f));
        back.reverse();
        assert_eq!(back, expected, "backwards at {at}");
        assert_eq!(view.count(&all, at).expect("counts"), expected.len() as u64);
        let keys = model.keys();
        for pair in keys.windows(3).step_by(2) {
            let half = KeyRange::Half {
                start: pair[0].clone(),
                end: pair[2].clone(),
            };
            let inside: Vec<_> = expected
                .iter()
                .filter(|kv| half.contains(&kv.key))
                .collect();
            assert_eq!(view.count(&half, at).expect("counts"), inside.len() as u64);
            let first = collect_range(|f| {
                view.visit(&half, at, &mut |kv| {
                    let _ = f(kv);
                    ControlFlow::Break(())
                })
            });
            assert_eq!(first.first(), inside.first().copied());
            assert_eq!(
                view.get(&pair[0], at).expect("reads"),
                model.get(&pair[0], at)
            );
        }
        assert_eq!(
            view.hash_kv(at).expect("hashes").hash,
            model.hash_kv(at),
            "at {at}"
        );
        let mut events = Vec::new();
        let end = view
            .events(at, usize::MAX, &mut |event| {
                events.push(event.to_event().expect("reads"));
                ControlFlow::Continue(())
            })
            .expect("reads");
        assert_eq!(events, model.events(at), "events from {at}");
        assert!(end.reached_end);
        // The same in slices, as a slow watcher reads them: whole revisions, no gap, none twice.
        let (mut sliced, mut from) = (Vec::new(), at);
        loop {
            let end = view
                .events(from, 500, &mut |event| {
                    sliced.push(event.to_event().expect("reads"));
                    ControlFlow::Continue(())
                })
                .expect("reads");
            assert!(end.reached_end || end.next_main > from);
            from = end.next_main;
            if end.reached_end {
                break;
            }
        }
        assert_eq!(sliced, events, "slices from {at}");
        // A range with a limit is the beginning of the range.
        let limit = at as usize % 7 + 1;
        let mut limited = Vec::new();
        view.visit(&all, at, &mut |kv| {
            limited.push(kv.to_owned());
            if limited.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .expect("reads");
        assert_eq!(limited[..], expected[..limit.min(expected.len())]);
        let read = keys
            .first()
            .map(|key| view.read(key, at, |kv| kv.to_owned()));
        assert_eq!(
            read.and_then(|read| read.expect("reads")),
            keys.first().and_then(|key| model.get(key, at))
        );
    }
    if first > 1 {
        assert!(matches!(view.get(b"k", first - 1), Err(Error::Compacted)));
        assert!(matches!(view.hash_kv(first - 1), Err(Error::Compacted)));
    }
    assert!(matches!(
        view.count(&all, model.revision + 1),
        Err(Error::Future)
    ));
    for lease in [1, 2, -1, 5] {
        assert_eq!(
            view.lease_keys(lease).expect("reads"),
            model.lease_keys(lease)
        );
    }
}

fn run(seed: u64, prepare: impl FnOnce(&mut Run)) -> Run {
    let mut run = Run::new(seed);
    prepare(&mut run);
    let rounds = env("QUORATE_ROUNDS").unwrap_or(8);
    for _ in 0..rounds {
        for _ in 0..60 {
            run.step();
        }
        run.compare_newest();
    }
    // Nobody reads any longer: what waited goes.
    run.long.clear();
    run.writer().defragment_step(1 << 20).expect("moves");
    while run.writer().compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
    assert_eq!(run.writer().compact_done(), run.model.compact_revision);
    run.compare_newest();
    run
}

/// Oracle of a crash: the state is that of a durable checkpoint, not older than the newest that
/// was reported durable, and it goes on from there; crashes follow crashes.
#[test]
fn crashes_leave_the_state_of_a_checkpoint() {
    let mut crashes = 0;
    for seed in 0..env("QUORATE_SEEDS").unwrap_or(12) {
        let end = catch_unwind(AssertUnwindSafe(|| {
            let mut run = Run::crashing(seed);
            for _ in 0..env("QUORATE_ROUNDS").unwrap_or(8) {
                for _ in 0..60 {
                    run.step();
                }
                run.reopen();
            }
            run
        }))
        .unwrap_or_else(|_| panic!("seed {seed}"));
        crashes += end.reopens;
    }
    assert!(crashes >= 8);
}

#[test]
fn random_histories_equal_the_model() {
    let seeds = match env("QUORATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env("QUORATE_SEEDS").unwrap_or(16),
    };
    let (mut compacted, mut reopened) = (0, 0);
    let (mut slices, mut waited) = (0, 0);
    let all = seeds.end - seeds.start;
    for seed in seeds {
        let end = catch_unwind(AssertUnwindSafe(|| run(seed, |_| {})))
            .unwrap_or_else(|_| panic!("set QUORATE_SEED={seed} to see it again"));
        compacted += u32::from(end.model.compact_revision > 1);
        reopened += end.reopens;
        slices += end.slices;
        waited += end.waited;
    }
    println!("{slices} slices of long readers, compaction waited {waited} times");
    if all >= 16 {
        assert!(slices > 1000, "{slices} slices");
        assert!(waited > 100, "compaction waited {waited} times only");
        assert!(
            compacted > 12,
            "the histories must compact, {compacted} did"
        );
        assert!(reopened > 8, "the histories must reopen, {reopened} did");
    }
}

/// Negative control: the comparison must notice when compaction drops what a watch may ask for.
#[test]
fn dropping_the_events_at_the_compact_revision_is_noticed() {
    let noticed = |seed| {
        catch_unwind(AssertUnwindSafe(|| {
            let mut run = Run::new(seed);
            run.options.chunk_bytes = 200;
            for _ in 0..8 {
                for _ in 0..60 {
                    run.writer().drops_too_much = true;
                    run.step();
                }
                run.compare_newest();
            }
        }))
        .is_err()
    };
    assert!((0..8).any(noticed));
}

/// Negative control: the comparison must notice when compaction takes what a long reader needs.
#[test]
fn compaction_that_does_not_wait_for_long_readers_is_noticed() {
    let noticed = |seed| {
        catch_unwind(AssertUnwindSafe(|| {
            let mut run = Run::new(seed);
            run.options.chunk_bytes = 200;
            for _ in 0..12 * 60 {
                run.writer().deaf_to_pins = true;
                run.step();
            }
        }))
        .is_err()
    };
    assert!((0..8).any(noticed));
}

/// A key with many versions costs a read at any old revision a few dozen steps.
#[test]
fn old_reads_of_a_hot_key_are_bounded() {
    let versions = env("QUORATE_VERSIONS").unwrap_or(20_000) as i64;
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut writer) = Engine::open(Options::new(dir.path())).expect("opens");
    let key = Bytes::from_static(b"hot");
    for i in 0..versions {
        let mut txn = writer.txn();
        if i % 1000 == 999 {
            let range = KeyRange::One(key.clone());
            assert_eq!(txn.delete_range(&range, false).expect("deletes").0, 1);
        } else {
            let value = Bytes::copy_from_slice(&i.to_be_bytes());
            txn.put(key.clone(), value, 0).expect("puts");
        }
        txn.finish();
    }
    let view = writer.publish(Applied { index: 1, term: 1 }, b"").view;
    engine.check(&view).expect("sound");
    let mut rng = StdRng::seed_from_u64(1);
    let mut worst = 0;
    for _ in 0..2000 {
        let at = rng.gen_range(2..=view.revision());
        crate::events::scan::HOPS.set(0);
        let found = view.get(&key, at).expect("reads");
        worst = worst.max(crate::events::scan::HOPS.get());
        let i = at - 2;
        let expected = (i % 1000 != 999).then(|| i.to_be_bytes().to_vec());
        assert_eq!(found.map(|kv| kv.value.to_vec()), expected);
    }
    assert!(worst <= 60, "{worst} steps");
}
