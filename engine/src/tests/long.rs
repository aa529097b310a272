//! Readers that take long: what they keep, what they do not, and when they are not waited for any more.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;

use crate::mvcc::reader::Slice;
use crate::mvcc::{Engine, LongHistory, LongRead, View, Writer};
use crate::types::{
    Applied, Budget, CompactProgress, Error, EventKind, KeyRange, KeyValue, Options, Revision,
};

struct Run {
    options: Options,
    engine: Engine,
    writer: Writer,
    index: u64,
    _dir: tempfile::TempDir,
}

impl Run {
    fn new(change: impl FnOnce(&mut Options)) -> Run {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path());
        options.cache_bytes = 1 << 20;
        options.extend_bytes = 64 << 10;
        options.reserve_bytes = 64 << 10;
        options.fragmentation_max = 100;
        change(&mut options);
        let (engine, writer) = Engine::open(options.clone()).expect("opens");
        Run {
            options,
            engine,
            writer,
            index: 0,
            _dir: dir,
        }
    }

    fn put(&mut self, key: u32, value: Vec<u8>) -> i64 {
        let mut txn = self.writer.txn();
        let key = Bytes::from(format!("key{key:06}"));
        txn.put_with(key, value.into(), 0, false).expect("puts");
        txn.finish()
    }

    fn publish(&mut self) -> View {
        self.index += 1;
        let index = self.index;
        self.writer.publish(Applied { index, term: 1 }, b"").view
    }

    fn checkpoint(&mut self) {
        self.publish();
        while self.writer.store.checkpoint_running() {
            std::thread::yield_now();
        }
        let number = self
            .writer
            .checkpoint()
            .expect("starts")
            .expect("none runs");
        self.engine.wait_durable(number).expect("durable");
        while self.writer.store.checkpoint_running() {
            std::thread::yield_now();
        }
    }

    /// Compacts as far as it goes.
    fn compact(&mut self, rev: i64) -> CompactProgress {
        self.writer.compact(rev).expect("compacts");
        self.publish();
        self.compact_on()
    }

    fn compact_on(&mut self) -> CompactProgress {
        loop {
            match self.writer.compact_step(Budget::default()).expect("steps") {
                CompactProgress::More => {}
                end => return end,
            }
        }
    }
}

fn all() -> KeyRange {
    KeyRange::all()
}

fn read_to_end(read: &LongRead) -> Vec<KeyValue> {
    let (mut rest, mut seen) = (Some(all()), Vec::new());
    while let Some(range) = rest {
        rest = read
            .visit(&range, &mut |kv| {
                seen.push(kv.to_owned());
                ControlFlow::Continue(())
            })
            .expect("reads");
    }
    seen
}

fn read_view(view: &View, at: i64) -> Vec<KeyValue> {
    let mut seen = Vec::new();
    view.visit(&all(), at, &mut |kv| {
        seen.push(kv.to_owned());
        ControlFlow::Continue(())
    })
    .expect("reads");
    seen
}

type Exported = (EventKind, Revision, KeyValue);

fn export(history: &LongHistory) -> Result<Vec<Exported>, Error> {
    let (mut export, mut seen) = (history.export(1 << 20), Vec::new());
    while export.step(&mut |v| {
        seen.push((v.kind, v.revision, v.kv.to_owned()));
        ControlFlow::Continue(())
    })? {}
    Ok(seen)
}

/// How far the file grows by twenty rounds that change a few bytes in every page of a store, each with a checkpoint,
/// beside a long reader or beside a held view. Both see what they began with; the reader reads a slice per round.
fn growth_beside(hold_view: bool) -> (u64, u64) {
    const KEYS: u32 = 12_000;
    let mut run = Run::new(|options| options.page_bytes = 4096);
    for key in 0..KEYS {
        run.put(key, vec![key as u8; 200]);
    }
    for _ in 0..3 {
        run.put(0, vec![1]);
        run.checkpoint();
    }
    let before = run.engine.view();
    let revision = before.revision();
    let expected = read_view(&before, 0);
    let view = hold_view.then_some(before);
    let read = run.engine.long_read(0).expect("opens");
    let (mut rest, mut seen) = (Some(all()), Vec::new());
    let size = |run: &Run| run.engine.stats().file_bytes;
    let begun = size(&run);
    for round in 0..20 {
        // One key in each page.
        for key in (round..KEYS).step_by(15) {
            run.put(key, vec![round as u8; 20]);
        }
        run.checkpoint();
        let bounds = Slice {
            entries: KEYS as usize / 20 + 1,
            bytes: usize::MAX,
        };
        if let Some(range) = rest.take() {
            let slice = read.visit_in(&range, bounds, &mut |kv| {
                seen.push(kv.to_owned());
                ControlFlow::Continue(())
            });
            rest = slice.expect("reads");
        }
        // Nobody but the view keeps a page.
        let lag = run.engine.stats().oldest_pin_lag;
        assert_eq!(lag > 0, hold_view, "{lag}");
    }
    assert!(rest.is_none() && seen == expected);
    let grown = size(&run) - begun;
    let stats = run.engine.stats();
    assert_eq!(
        (stats.history_pins, stats.oldest_history_pin),
        (1, Some(revision))
    );
    assert!(stats.oldest_history_pin_age > Duration::ZERO);
    assert_eq!(stats.oldest_pin_age > Duration::ZERO, hold_view);
    if let Some(view) = view {
        assert!(read_view(&view, 0) == expected);
    }

    // Compaction goes as far as the reader lets it, and no new reader gets behind it.
    let newest = run.writer.revision();
    assert_eq!(run.compact(newest), CompactProgress::Held);
    assert_eq!(run.writer.compact_done(), revision);
    assert!(matches!(
        run.engine.long_read(revision),
        Err(Error::Compacted)
    ));
    assert!(matches!(
        run.engine.view().get(b"k", revision),
        Err(Error::Compacted)
    ));
    assert!(read_to_end(&read) == expected);
    run.checkpoint();
    let held = run.engine.stats().in_use_bytes;
    drop(read);
    assert_eq!(run.engine.stats().history_pins, 0);
    assert_eq!(run.compact_on(), CompactProgress::Done);
    assert_eq!(run.writer.compact_done(), newest);
    run.checkpoint();
    run.engine.check(&run.engine.view()).expect("sound");
    run.engine.check_file().expect("sound");
    let freed = held.saturating_sub(run.engine.stats().in_use_bytes);
    (grown, freed)
}

#[test]
fn pages_are_used_again_beside_a_long_reader() {
    let (grown, freed) = growth_beside(false);
    // What was written is 20 times the store; what is kept is the history, some hundred bytes for each of 16,000 changes,
    // and the pages of two checkpoints.
    assert!(grown < 12 << 20, "the file grew by {grown}");
    assert!(
        freed > 1 << 20,
        "compaction freed {freed} when it could go on"
    );
    // The control: the same beside a view.
    let (with_view, _) = growth_beside(true);
    println!("the file grew by {grown} beside a long reader, by {with_view} beside a view");
    assert!(
        with_view > 4 * grown,
        "{with_view} beside a view, {grown} without"
    );
}

/// Values that a long reader needs move in the file, below the compact revision, where only it still asks for the events
/// that made them. What it then reads, if it does.
fn read_moved_values(deaf: bool) -> Result<bool, Error> {
    let mut run = Run::new(|options| {
        options.page_bytes = 1024;
        options.chunk_bytes = 600;
    });
    for bytes in [3000, 10] {
        for key in 0..400 {
            run.put(key, vec![key as u8; bytes]);
        }
    }
    let compact = run.writer.revision();
    // These come to lie at the end of the file, and are never written again.
    for key in 1000..1400 {
        run.put(key, vec![key as u8; 3000]);
    }
    run.checkpoint();
    // Room in front of them.
    assert_eq!(run.compact(compact), CompactProgress::Done);
    run.checkpoint();
    let history = run.engine.long_history().expect("opens");
    let expected = export(&history).expect("exports");
    let newest = run.engine.view().hash_kv(0).expect("hashes");
    assert_eq!(history.hash_kv(0).expect("hashes"), newest);
    for key in 0..100 {
        run.put(key, vec![1]);
    }
    assert_eq!(run.compact(run.writer.revision()), CompactProgress::Held);
    run.writer.deaf_to_pins = deaf;
    let before = run.engine.stats();
    run.writer.shrink();
    for _ in 0..100 {
        while run.writer.defragment_step(64 << 10).expect("moves") {}
        run.checkpoint();
        if !run.writer.shrinking() {
            break;
        }
    }
    let after = run.engine.stats();
    assert!(after.moved_bytes > 400 * 3000, "{after:?}");
    assert!(
        after.file_bytes + 400 * 3000 < before.file_bytes,
        "{after:?}"
    );
    run.engine.check(&run.engine.view()).expect("sound");
    run.engine.check_file().expect("sound");
    Ok(export(&history)? == expected && history.hash_kv(0)? == newest)
}

#[test]
fn values_that_a_long_reader_needs_may_move() {
    assert!(read_moved_values(false).expect("reads"));
    // The control: moved without a thought of the reader.
    assert!(!read_moved_values(true).unwrap_or(false));
}

#[test]
fn compaction_waits_for_so_long_and_the_reader_is_told() {
    for patient in [true, false] {
        let mut run = Run::new(|options| {
            options.history_pin_max = match patient {
                true => Duration::from_secs(3600),
                false => Duration::ZERO,
            }
        });
        for n in 0..3000 {
            run.put(n % 7, vec![n as u8; 30]);
        }
        run.publish();
        let read = run.engine.long_read(1000).expect("opens");
        let history = run.engine.long_history().expect("opens");
        // Nothing waits for them yet, however long they have been there.
        assert_eq!(read_to_end(&read).len(), 7);
        let end = run.compact(2000);
        assert_eq!(end == CompactProgress::Held, patient);
        let stats = run.engine.stats();
        if patient {
            assert_eq!((stats.history_pins, stats.history_pins_expired), (2, 0));
            assert_eq!(
                (stats.oldest_history_pin, run.writer.compact_done()),
                (Some(-1), -1)
            );
            assert_eq!(read_to_end(&read).len(), 7);
            assert_eq!(history.hash_kv(1500).expect("hashes").compact_revision, -1);
            drop(history);
            assert_eq!(run.compact_on(), CompactProgress::Held);
            assert_eq!(run.writer.compact_done(), 1000);
        } else {
            assert_eq!((stats.history_pins, stats.history_pins_expired), (0, 2));
            assert_eq!(
                (stats.oldest_history_pin, run.writer.compact_done()),
                (None, 2000)
            );
            let told = read.visit(&all(), &mut |_| panic!("shown too much"));
            assert!(matches!(told, Err(Error::Compacted)));
            assert!(matches!(history.hash_kv(1500), Err(Error::Compacted)));
            assert!(matches!(export(&history), Err(Error::Compacted)));
            assert_eq!(run.engine.history_pins_expired(), 2);
        }
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let mut run = Run::new(|_| {});
    for n in 0..100 {
        run.put(n, vec![]);
    }
    assert_eq!(
        run.engine.long_read(0).expect("opens").revision(),
        1,
        "not published"
    );
    let early = run.writer.long_history().expect("opens");
    assert!(
        matches!(early.hash_kv(101), Err(Error::Future)),
        "not published"
    );
    run.publish();
    assert_eq!(early.hash_kv(101).expect("hashes").hash_revision, 101);
    assert!(matches!(early.hash_kv(102), Err(Error::Future)));
    assert!(matches!(run.engine.long_read(102), Err(Error::Future)));
    let shown = |at| {
        let mut n = 0;
        let rest = early.visit(&all(), at, &mut |_| {
            n += 1;
            ControlFlow::Continue(())
        });
        rest.map(|rest| (n, rest.is_none()))
    };
    assert_eq!(shown(0).expect("reads"), (100, true));
    assert_eq!(shown(41).expect("reads"), (40, true));
    assert!(matches!(shown(102), Err(Error::Future)));
    run.writer.compact(50).expect("compacts");
    // Not published, so nobody has been told; but it is being carried out.
    assert_eq!(run.engine.long_read(20).expect("opens").revision(), 20);
    drop(early);
    assert_eq!(run.compact_on(), CompactProgress::Done);
    assert!(matches!(run.engine.long_read(20), Err(Error::Compacted)));
    assert!(matches!(run.engine.long_history(), Err(Error::Compacted)));
    assert_eq!(
        run.writer.long_history().expect("opens").compact_revision(),
        50
    );
    run.publish();
    assert!(matches!(run.engine.long_read(49), Err(Error::Compacted)));
    assert_eq!(
        read_to_end(&run.engine.long_read(50).expect("opens")).len(),
        49
    );
    assert_eq!(
        run.engine.long_history().expect("opens").compact_revision(),
        50
    );
    // One key, and no key.
    let read = run.engine.long_read(60).expect("opens");
    let one = |range: &KeyRange| {
        let mut keys = Vec::new();
        let rest = read.visit(range, &mut |kv| {
            keys.push(kv.key.to_vec());
            ControlFlow::Continue(())
        });
        assert_eq!(rest.expect("reads"), None);
        keys
    };
    let key = |n: u32| Bytes::from(format!("key{n:06}"));
    assert_eq!(one(&KeyRange::One(key(7))), [key(7)]);
    assert!(one(&KeyRange::One(key(70))).is_empty());
    let half = |start, end| KeyRange::Half {
        start: key(start),
        end: key(end),
    };
    assert_eq!(one(&half(7, 9)), [key(7), key(8)]);
    assert!(one(&half(9, 7)).is_empty());
}

/// Pins are not stored: after a restart compaction goes on to its end.
#[test]
fn a_restart_ends_pins() {
    let mut run = Run::new(|_| {});
    for n in 0..2000 {
        run.put(n % 5, vec![n as u8; 30]);
    }
    run.publish();
    let read = run.engine.long_read(100).expect("opens");
    assert_eq!(run.compact(1500), CompactProgress::Held);
    run.checkpoint();
    drop(read);
    let Run {
        options,
        engine,
        writer,
        _dir,
        ..
    } = run;
    drop((engine, writer));
    let (engine, mut writer) = Engine::open(options).expect("opens");
    assert_eq!(
        (writer.compact_revision(), writer.compact_done()),
        (1500, 100)
    );
    assert!(
        matches!(engine.long_read(200), Err(Error::Compacted)),
        "kept, but not to be read"
    );
    while writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
    assert_eq!(writer.compact_done(), 1500);
    engine
        .check(&writer.publish(Applied { index: 9, term: 1 }, b"").view)
        .expect("sound");
}
