//! Defragmentation while the engine is in use: the file gets as small as its contents allow, nobody is held up, and
//! nothing that can be read changes.

use std::ops::ControlFlow;
use std::time::Instant;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mvcc::{Engine, View, Writer};
use crate::types::{Applied, Budget, CompactProgress, KeyRange, Options};

struct Run {
    engine: Engine,
    writer: Writer,
    index: u64,
    rng: StdRng,
    _dir: tempfile::TempDir,
}

/// Everything a view can tell, in a form to compare.
fn contents(view: &View) -> Vec<String> {
    let mut out = Vec::new();
    let oldest = view.compact_revision().max(1);
    for at in [view.revision(), (oldest + view.revision()) / 2, oldest] {
        view.visit(&KeyRange::all(), at, &mut |kv| {
            out.push(format!("{kv:?}"));
            ControlFlow::Continue(())
        })
        .expect("reads");
        out.push(format!("{:?}", view.hash_kv(at).expect("hashes")));
    }
    view.events(oldest, usize::MAX, &mut |event| {
        out.push(format!("{:?}", event.to_event().expect("reads")));
        ControlFlow::Continue(())
    })
    .expect("reads");
    view.sys_scan(3, &mut |key, value| {
        out.push(format!("{key:?} {value:?}"));
        ControlFlow::Continue(())
    })
    .expect("reads");
    out
}

impl Run {
    fn new(change: impl FnOnce(&mut Options)) -> Run {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path());
        options.page_bytes = 1024;
        options.cache_bytes = 2 << 20;
        options.chunk_bytes = 8000;
        options.extend_bytes = 64 << 10;
        options.reserve_bytes = 64 << 10;
        change(&mut options);
        let (engine, writer) = Engine::open(options).expect("opens");
        Run {
            engine,
            writer,
            index: 0,
            rng: StdRng::seed_from_u64(11),
            _dir: dir,
        }
    }

    fn publish(&mut self) -> View {
        self.index += 1;
        let applied = Applied {
            index: self.index,
            term: 1,
        };
        self.writer.publish(applied, b"").view
    }

    fn checkpoint(&mut self) {
        self.publish();
        while self.writer.store.checkpoint_running() {
            std::thread::yield_now();
        }
        let number = self
            .writer
            .checkpoint()
            .expect("begins")
            .expect("none runs");
        self.engine.wait_durable(number).expect("durable");
        while self.writer.store.checkpoint_running() {
            std::thread::yield_now();
        }
    }

    fn put(&mut self, key: u32) {
        let mut name = format!("key{:08}", key.wrapping_mul(2_654_435_761)).into_bytes();
        if key.is_multiple_of(50) {
            name.extend([b'l'; 900]);
        }
        let bytes = match key % 7 {
            0 => self.rng.gen_range(400..4000),
            _ => self.rng.gen_range(0..80),
        };
        let value = vec![self.rng.r#gen(); bytes];
        let mut txn = self.writer.txn();
        txn.put(name.into(), value.into(), 0).expect("puts");
        txn.finish();
    }

    fn put_sized(&mut self, key: u32, bytes: usize) {
        let name = format!("key{:010}", key.wrapping_mul(2_654_435_761));
        let mut txn = self.writer.txn();
        let value = vec![key as u8; bytes];
        txn.put(name.into(), value.into(), 0).expect("puts");
        txn.finish();
    }

    fn delete_between(&mut self, start: u8, end: u8) {
        let range = |n: u8| Bytes::from(format!("key{n:02}"));
        let mut txn = self.writer.txn();
        txn.delete_range(
            &KeyRange::Half {
                start: range(start),
                end: range(end),
            },
            false,
        )
        .expect("deletes");
        txn.finish();
    }

    fn compact(&mut self, at: i64) {
        self.writer.compact(at).expect("compacts");
        while self.writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {
        }
    }

    fn file_and_use(&self) -> (u64, u64) {
        let stats = self.engine.stats();
        (stats.file_bytes, stats.in_use_bytes)
    }
}

/// Fills, makes holes all over, and defragments. Answers size before and after, and what is in use then.
fn shrink_under_readers(moves_runs: bool) -> (u64, u64, u64) {
    let mut run = Run::new(|options| options.fragmentation_max = 100);
    if !moves_runs {
        run.writer.store.leave_runs();
    }
    for i in 0..6000 {
        run.put(i);
        if i % 500 == 499 {
            let record = vec![i as u8; 3000];
            run.writer
                .sys_put(3, &i.to_be_bytes(), &record)
                .expect("puts");
            run.checkpoint();
        }
    }
    for i in 0..1500 {
        run.put(i * 4);
    }
    run.checkpoint();
    let before = run.file_and_use().0;
    for decade in 0..5 {
        run.delete_between(10 + decade * 16, 10 + decade * 16 + 8);
        run.delete_between(18 + decade * 16, 18 + decade * 16 + 5);
    }
    for i in (499..6000u32).step_by(1000) {
        run.writer.sys_delete(3, &i.to_be_bytes()).expect("deletes");
    }
    // The newest history stays, with what it refers to.
    for i in 0..200 {
        run.put(i % 150);
    }
    let at = run.writer.revision() - 150;
    run.compact(at);
    run.checkpoint();
    let held = run.publish();
    let expected = contents(&held);
    run.writer.shrink();
    let mut rounds = 0;
    while run.writer.shrinking() {
        rounds += 1;
        assert!(rounds < 200, "it comes to an end: {:?}", run.engine.stats());
        while run.writer.defragment_step(64 << 10).expect("steps") {}
        let view = run.publish();
        assert!(contents(&view) == expected, "round {rounds}");
        run.engine.check(&view).expect("sound");
        drop(view);
        run.checkpoint();
        run.engine.check_file().expect("sound");
        // The held view keeps its pages; what it reads stays as it was.
        if rounds == 3 {
            assert!(contents(&held) == expected);
        }
        if rounds == 4 {
            break;
        }
    }
    assert!(contents(&held) == expected);
    drop(held);
    run.writer.shrink();
    while run.writer.shrinking() {
        rounds += 1;
        assert!(rounds < 400, "it comes to an end: {:?}", run.engine.stats());
        while run.writer.defragment_step(64 << 10).expect("steps") {}
        run.checkpoint();
    }
    let view = run.publish();
    assert!(contents(&view) == expected);
    run.engine.check_file().expect("sound");
    let stats = run.engine.stats();
    assert!(stats.packed_bytes > 0, "{stats:?}");
    (before, stats.file_bytes, stats.in_use_bytes)
}

#[test]
fn the_file_shrinks_to_its_contents() {
    let (before, after, used) = shrink_under_readers(true);
    assert!(after < before / 2, "{before} to {after} for {used} in use");
    assert!(after * 100 <= used * 115, "{after} for {used} in use");
    // Negative control: with runs left where they are it does not get there.
    let (_, stuck, used) = shrink_under_readers(false);
    assert!(stuck * 100 > used * 125, "{stuck} for {used} in use");
}

/// Random overwrites and deletes for a while, then less data than before: how much of the file lies free.
fn churn(fragmentation_max: u64) -> u64 {
    let mut run = Run::new(|options| options.fragmentation_max = fragmentation_max);
    for i in 0..8000 {
        run.put(i);
    }
    run.checkpoint();
    for decade in 0..8 {
        run.delete_between(11 + decade * 10, 18 + decade * 10);
    }
    let mut worst = 0;
    for round in 0..60 {
        for _ in 0..60 {
            let key = run.rng.gen_range(0..800);
            run.put(key);
        }
        let at = run.writer.revision() - 20;
        run.compact(at);
        run.checkpoint();
        if round >= 40 {
            let stats = run.engine.stats();
            worst = worst.max(stats.free_bytes * 100 / stats.file_bytes);
        }
    }
    run.engine.check_file().expect("sound");
    worst
}

#[test]
fn under_churn_the_file_shrinks_by_itself() {
    let worst = churn(20);
    assert!(worst <= 20, "{worst} % of the file are free");
    // Negative control.
    let worst = churn(100);
    assert!(worst > 20, "{worst} % of the file are free");
}

/// Half of the keys go, and puts of the others never stop: the size of the file, in percent of what is in use or waits
/// for checkpoints to pass, and the number of checkpoints.
fn shrink_under_puts(asked: bool) -> (u64, u32) {
    let mut run = Run::new(|options| options.fragmentation_max = 100);
    for key in 0..12_000 {
        run.put_sized(key, 60);
    }
    run.checkpoint();
    for key in (0..12_000u32).step_by(2) {
        let name = format!("key{:010}", key.wrapping_mul(2_654_435_761));
        let mut txn = run.writer.txn();
        txn.delete_range(&KeyRange::One(name.into()), false)
            .expect("deletes");
        txn.finish();
    }
    let mut rounds = 0;
    if asked {
        run.publish();
        run.writer.shrink();
    }
    loop {
        rounds += 1;
        for part in 0..4 {
            // Of keys in some parts of the tree: what lies elsewhere moves only when it is moved.
            for i in 0..40 {
                let key = run.rng.gen_range(0..30) * 200 + (i + part) % 3;
                run.put_sized(key * 2 + 1, 60);
            }
            run.writer.defragment_step(8 << 10).expect("steps");
            run.publish();
        }
        run.compact(run.writer.revision() - 50);
        run.checkpoint();
        let stats = run.engine.stats();
        let held = stats.in_use_bytes + stats.pending_bytes;
        let done = match asked {
            true => !run.writer.shrinking(),
            false => rounds == 150,
        };
        if done {
            run.engine.check_file().expect("sound");
            return (stats.file_bytes * 100 / held, rounds);
        }
        assert!(rounds < 1000, "it comes to an end: {stats:?}");
    }
}

#[test]
fn puts_without_end_do_not_stop_it_short() {
    let (percent, rounds) = shrink_under_puts(true);
    assert!(percent <= 125, "{percent} % after {rounds} checkpoints");
    // Negative control.
    let (percent, _) = shrink_under_puts(false);
    assert!(percent > 150, "{percent} %");
}

/// Batches of 100 puts with their publication: what each took, in microseconds, sorted.
struct Batches(Vec<u64>);

impl Batches {
    fn run(run: &mut Run, batches: usize, keys: u32, mut between: impl FnMut(&mut Run)) -> Batches {
        let mut took = Vec::new();
        for batch in 0..batches {
            let began = Instant::now();
            for _ in 0..100 {
                let key = run.rng.gen_range(0..keys);
                run.put_sized(key, 256);
            }
            run.publish();
            between(run);
            took.push(began.elapsed().as_micros() as u64);
            if run.writer.dirty_bytes() > 48 << 20 || batch % 500 == 499 {
                run.publish();
                // As the server: it does not wait for one unless the next is due.
                let _ = run.writer.checkpoint().expect("begins");
            }
        }
        took.sort_unstable();
        Batches(took)
    }

    fn say(&self, what: &str) {
        let at = |part: f64| self.0[((self.0.len() - 1) as f64 * part) as usize];
        println!(
            "{what}: p50 {} p99 {} p99.9 {} most {} µs for 100 puts",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
}

/// Background work waits for those who want the disk, and ends all the same when they never stop.
#[test]
fn background_work_gives_way() {
    let mut run = Run::new(|_| {});
    run.put(1);
    run.checkpoint();
    assert_eq!(run.engine.stats().gave_way, 0);
    let engine = run.engine.clone();
    engine.log_write(|| {
        run.put(2);
        run.publish();
        run.writer.checkpoint().unwrap().unwrap();
        // Nobody waits for its end, so it gives way.
        while run.engine.stats().gave_way == 0 {
            std::thread::yield_now();
        }
    });
    run.checkpoint();
    let waited = run.engine.stats().gave_way;
    run.put(3);
    run.checkpoint();
    assert_eq!(run.engine.stats().gave_way, waited);
}

/// Figures, printed and never judged: with `QUORATE_KEYS=1000000` in release mode and `--nocapture`. The default is a
/// smoke run of the same code.
#[test]
fn figures() {
    let keys = std::env::var("QUORATE_KEYS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(4000);
    let batches = (keys as usize / 100).clamp(40, 5000);
    let mut run = Run::new(|options| {
        let defaults = Options::new(options.dir.clone());
        *options = Options {
            cache_bytes: 256 << 20,
            ..defaults
        };
    });
    for key in 0..keys {
        run.put_sized(key, 256);
        if key % 100 == 99 {
            run.publish();
        }
        if run.writer.dirty_bytes() > 48 << 20 {
            run.publish();
            let _ = run.writer.checkpoint().expect("begins");
        }
    }
    run.checkpoint();
    Batches::run(&mut run, batches, keys, |_| {}).say("quiet");
    // The first two digits of the numbers are 00 to 42.
    for start in 0..43u8 {
        if start % 2 == 0 {
            run.delete_between(start, start + 1);
            run.publish();
        }
    }
    let compact_to = run.writer.revision();
    run.writer.compact(compact_to).expect("compacts");
    while run.writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
    run.checkpoint();
    println!("half deleted: {:?}", run.file_and_use());
    run.writer.shrink();
    let (mut slices, mut slowest) = (0u64, 0u64);
    let mut most = 0;
    Batches::run(&mut run, batches, keys / 8, |run| {
        let began = Instant::now();
        let _ = run.writer.compact(run.writer.revision() - 50_000);
        run.writer.compact_step(Budget::default()).expect("steps");
        run.writer.defragment_step(128 << 10).expect("steps");
        let took = began.elapsed().as_micros() as u64;
        slices += 1;
        slowest = slowest.max(took);
        most += took;
        if !run.writer.store.checkpoint_running() && run.writer.shrinking() {
            run.publish();
            let _ = run.writer.checkpoint().expect("begins");
        }
    })
    .say("with defragmentation, compaction and checkpoints");
    println!(
        "slices of both: {} µs on average, slowest {slowest} µs",
        most / slices.max(1)
    );
    let began = Instant::now();
    let mut checkpoints = 0;
    while run.writer.shrinking() && checkpoints < 10_000 {
        while run.writer.defragment_step(128 << 10).expect("steps") {}
        run.checkpoint();
        checkpoints += 1;
    }
    let (file, used) = run.file_and_use();
    println!(
        "then {checkpoints} checkpoints in {:?}: file {file}, in use {used}: {:.2}; {:?}",
        began.elapsed(),
        file as f64 / used as f64,
        run.engine.stats()
    );
    run.engine.check_file().expect("sound");
}
