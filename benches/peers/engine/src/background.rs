//! Figures of work in the background: what checkpoints, compaction and defragmentation do to those who read and write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::stall::{self, Stalls};
use engine::{CompactProgress, Share};
use engine_peers::measure::{Times, cpu_micros, mib, short, table, waits, written_bytes};
use engine_peers::{CACHE_BYTES, Pair, Peer, Quorate, Redb, VALUE_BYTES, key, load, value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Setup;

fn pair(rng: &mut SmallRng, n: u64) -> Pair {
    (key(rng.gen_range(0..n)), value(rng.r#gen(), VALUE_BYTES))
}

/// One of the keys that are left when every second one is gone.
fn pair_left(rng: &mut SmallRng, n: u64) -> Pair {
    let i = rng.gen_range(0..n / 2) * 2 + 1;
    (key(i), value(rng.r#gen(), VALUE_BYTES))
}

/// What one phase of puts and gets showed.
#[derive(Default)]
struct Phase {
    /// Whole durable puts.
    puts: Times,
    /// The part of a put behind the log: apply, publish and a slice of compaction when one is due.
    applies: Times,
    /// The same in CPU time of its thread: what it is without those who want the cores.
    works: Times,
    /// Those of them in which the writer waited for anything: a lock, a queue, the disk.
    waited: Times,
    gets: Times,
}

impl Phase {
    fn rows(&self, name: &str) -> Vec<Vec<String>> {
        [
            ("durable put", &self.puts),
            ("apply and publish", &self.applies),
            ("the same, CPU time", &self.works),
            ("of these, those that waited", &self.waited),
            ("get", &self.gets),
        ]
        .into_iter()
        .map(|(what, times)| {
            let mut row = vec![what.to_string(), name.to_string()];
            row.extend([0.5, 0.99, 0.999].map(|q| short(times.micros(q))));
            row.push(short(times.max_micros()));
            row.push(times.len().to_string());
            row
        })
        .collect()
    }
}

const HEAD: [&str; 7] = [
    "call",
    "while",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "most µs",
    "calls",
];

/// Puts until `done`, with a reader beside; `each` is called between puts.
fn phase(
    ours: &mut Quorate,
    n: u64,
    seed: u64,
    done: impl FnMut(&mut Quorate, u64) -> bool,
    each: impl FnMut(&mut Quorate),
) -> Phase {
    phase_of(ours, n, seed, pair, done, each)
}

/// As [`phase`], with puts of `pick`.
fn phase_of(
    ours: &mut Quorate,
    n: u64,
    seed: u64,
    pick: fn(&mut SmallRng, u64) -> Pair,
    mut done: impl FnMut(&mut Quorate, u64) -> bool,
    mut each: impl FnMut(&mut Quorate),
) -> Phase {
    let stop = AtomicBool::new(false);
    let engine = ours.engine.clone();
    let mut phase = Phase::default();
    phase.gets = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut gets = Times::default();
            while !stop.load(Ordering::Relaxed) {
                let key = key(rng.gen_range(0..n));
                let view = engine.view();
                gets.time(|| view.read(&key, 0, |kv| kv.value.len()).expect("reads"));
                // As many readers' worth as leaves the writer its core.
                if gets.len() % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            gets
        });
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut puts = 0;
        while !done(ours, puts) {
            let batch = [pick(&mut rng, n)];
            phase.puts.time(|| {
                ours.log_only(&batch);
                let (waits_before, worked) = (waits(), cpu_micros());
                let started = Instant::now();
                ours.apply(&batch);
                ours.publish();
                each(ours);
                let took = started.elapsed();
                phase.applies.record(took);
                let worked = Duration::from_secs_f64((cpu_micros() - worked) / 1e6);
                phase.works.record(worked);
                if waits() != waits_before {
                    phase.waited.record(took);
                }
            });
            puts += 1;
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("reads")
    });
    phase
}

/// What runs beside a phase of [`mixed`].
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    Checkpoints,
    Everything,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Beside::Nothing => "quiet",
            Beside::Checkpoints => "checkpoints without a break",
            Beside::Everything => "these, compaction and defragmentation",
        }
    }
}

/// Drops history every 4,000 changes, but for the last 1,000.
struct Compactions {
    newest: i64,
    under_way: bool,
    done: u64,
}

impl Compactions {
    fn new(ours: &Quorate) -> Compactions {
        Compactions {
            newest: ours.writer.revision(),
            under_way: false,
            done: 0,
        }
    }

    /// Begins one when it is time to, and does a slice of what is under way.
    fn step(&mut self, ours: &mut Quorate) {
        let revision = ours.writer.revision();
        if revision > self.newest + 4000 {
            self.newest = revision;
            self.done += 1;
            ours.writer.compact(revision - 1000).expect("compacts");
            self.under_way = true;
        }
        if self.under_way {
            self.under_way = ours.compact_slice() == CompactProgress::More;
        }
    }
}

/// A phase of [`mixed`], with what the engine saw of waits meanwhile.
struct Seen {
    beside: Beside,
    phase: Phase,
    stalls: Vec<Stalls>,
    checkpoints: u64,
    compactions: u64,
    /// Puts during which a defragmentation was under way.
    defragmenting: u64,
}

fn seen(ours: &mut Quorate, n: u64, seed: u64, puts: u64, beside: Beside) -> Seen {
    let before = stall::take_longest();
    let checkpoints = ours.engine.stats().checkpoints;
    let mut compactions = Compactions::new(ours);
    let mut defragmenting = 0;
    let phase = phase(
        ours,
        n,
        seed,
        |_, done| done >= puts,
        |ours| {
            if beside == Beside::Nothing {
                return;
            }
            // One after the other, many times what a running member does.
            ours.checkpoint();
            if beside == Beside::Checkpoints {
                return;
            }
            match ours.defragmenting() {
                true => defragmenting += 1,
                false => ours.start_defragmentation(),
            }
            compactions.step(ours);
        },
    );
    let mut stalls = stall::take_longest();
    for (now, before) in stalls.iter_mut().zip(before) {
        now.total -= before.total;
        let buckets = now.buckets.iter_mut().zip(before.buckets);
        buckets.for_each(|(now, before)| *now -= before);
    }
    Seen {
        beside,
        phase,
        stalls,
        checkpoints: ours.engine.stats().checkpoints - checkpoints,
        compactions: compactions.done,
        defragmenting,
    }
}

/// Puts and gets, alone and beside everything that runs in the background. Phases of both kinds alternate, so that each of
/// the one stands between two of the other: what the machine does by itself shows in both.
pub fn mixed(setup: &Setup) {
    let dir = setup.dir();
    let mut ours = Quorate::open(dir.path(), CACHE_BYTES);
    load(&mut ours, setup.keys, VALUE_BYTES);
    let n = setup.keys;
    let puts = crate::number("QUORATE_PUTS", 50_000);
    let mut phases = Vec::new();
    for round in 0..setup.rounds.clamp(1, 4) {
        for beside in [Beside::Checkpoints, Beside::Everything] {
            let seed = 10 * phases.len() as u64;
            phases.push(seen(&mut ours, n, seed, puts, Beside::Nothing));
            if beside == Beside::Everything {
                // A quarter of the keys goes, so that there is something to defragment.
                for part in 0..n / 1000 {
                    let part = part * 1000..(part + 1) * 1000;
                    let keys: Vec<_> = part.skip(round as usize).step_by(4).map(key).collect();
                    ours.delete(&keys);
                    ours.publish();
                }
                ours.compact_all();
                ours.checkpoint_and_wait();
                ours.start_defragmentation();
            }
            phases.push(seen(&mut ours, n, seed + 1, puts, beside));
            ours.checkpoint_and_wait();
        }
    }
    phases.push(seen(&mut ours, n, 1000, puts, Beside::Nothing));
    let rows: Vec<_> = phases
        .iter()
        .flat_map(|seen| seen.phase.rows(seen.beside.name()))
        .collect();
    table(
        &format!("Calls beside background work, {n} keys, one put per durable write"),
        &HEAD,
        &rows,
    );
    let mut rows = Vec::new();
    for around in phases.windows(3).filter(|w| w[1].beside != Beside::Nothing) {
        let [before, busy, after] = around else {
            continue;
        };
        let quiet = |q| (before.phase.puts.micros(q) + after.phase.puts.micros(q)) / 2.0;
        let ratio = |q| short(busy.phase.puts.micros(q) / quiet(q));
        let mut row = vec![busy.beside.name().to_string()];
        row.extend([0.5, 0.99, 0.999].map(ratio));
        row.push(busy.checkpoints.to_string());
        row.push(busy.compactions.to_string());
        row.push(format!("{} %", 100 * busy.defragmenting / puts));
        rows.push(row);
    }
    table(
        "Durable puts beside background work / the mean of the quiet phases before and behind",
        &[
            "while",
            "p50",
            "p99",
            "p99.9",
            "checkpoints",
            "compactions",
            "of the puts beside defragmentation",
        ],
        &rows,
    );
    let mut rows = Vec::new();
    for seen in &phases {
        for stalls in seen.stalls.iter().filter(|stalls| stalls.count() > 0) {
            rows.push(vec![
                seen.beside.name().to_string(),
                stalls.cause.name().to_string(),
                stalls.count().to_string(),
                short(stalls.total.as_secs_f64() * 1e3),
                short(stalls.longest.as_secs_f64() * 1e6),
            ]);
        }
    }
    table(
        "Waits of writer and reader for what others held",
        &["while", "cause", "waits", "ms in all", "longest µs"],
        &rows,
    );
}

/// 100,000 revisions of history go.
pub fn compaction(setup: &Setup) {
    let dir = setup.dir();
    let mut ours = Quorate::open(dir.path(), CACHE_BYTES);
    let n = setup.keys.min(100_000);
    load(&mut ours, n, VALUE_BYTES);
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..1000 {
        let pairs: Vec<Pair> = (0..100).map(|_| pair(&mut rng, n)).collect();
        ours.put(&pairs);
    }
    ours.checkpoint_and_wait();
    let file = ours.file_bytes();
    let newest = ours.writer.revision();
    ours.writer.compact(newest).expect("compacts");
    ours.publish();
    let mut slices = Times::default();
    let bytes = written_bytes();
    let started = Instant::now();
    while slices.time(|| ours.compact_slice()) == CompactProgress::More {
        ours.publish();
    }
    let took = started.elapsed();
    for _ in 0..3 {
        ours.checkpoint_and_wait();
    }
    let rows = vec![vec![
        short(took.as_secs_f64() * 1e3),
        slices.len().to_string(),
        short(slices.micros(0.5)),
        short(slices.micros(0.99)),
        short(slices.max_micros()),
        mib(written_bytes() - bytes),
        mib(file),
        mib(ours.engine.stats().in_use_bytes),
    ]];
    table(
        &format!("Compaction of 100,000 revisions over {n} keys"),
        &[
            "ms",
            "slices",
            "p50 µs",
            "p99 µs",
            "most µs",
            "MiB written",
            "MiB before",
            "MiB in use after",
        ],
        &rows,
    );
}

/// What the bytes of the newest checkpoint hold.
fn parts(when: &str, ours: &Quorate, left: u64) -> Vec<String> {
    let stats = ours.engine.stats();
    let space = ours.engine.check_file().expect("sound").space;
    let share = |share: Share| match share.bytes {
        0 => "-".into(),
        bytes => format!("{}, {} %", mib(bytes), share.filled * 100 / bytes),
    };
    vec![
        when.into(),
        mib(stats.file_bytes),
        short(stats.file_bytes as f64 / left as f64),
        short(stats.file_bytes as f64 / stats.in_use_bytes as f64),
        share(space.leaves),
        share(space.inner),
        share(space.chunks),
        share(space.values),
        share(space.keys),
        mib(space.map.bytes),
        mib(stats.free_bytes + stats.pending_bytes),
    ]
}

/// Half the data goes; the file follows, under load.
pub fn defragmentation(setup: &Setup) {
    let dir = setup.dir();
    let n = setup.keys.min(500_000) / 2 * 2;
    let mut rows = Vec::new();
    let gone: Vec<Vec<u8>> = (0..n).step_by(2).map(key).collect();
    let pair_bytes = (key(0).len() + VALUE_BYTES) as u64;
    let left = n / 2 * pair_bytes;
    let mut row = |name: &str, before: u64, after: u64, seconds: f64, bytes: u64, note: String| {
        rows.push(vec![
            name.to_string(),
            mib(before),
            mib(after),
            short(before as f64 / left as f64),
            short(after as f64 / left as f64),
            short(seconds),
            mib(bytes),
            note,
        ]);
    };
    let path = dir.path().join("quorate");
    std::fs::create_dir(&path).expect("a directory");
    let mut ours = Quorate::open(&path, CACHE_BYTES);
    load(&mut ours, n, VALUE_BYTES);
    let mut shares = vec![parts("all keys there", &ours, n * pair_bytes)];
    let control = phase(&mut ours, n, 8, |_, done| done >= 5000, |_| ());
    for keys in gone.chunks(1000) {
        ours.delete(keys);
        ours.publish();
    }
    ours.compact_all();
    ours.checkpoint_and_wait();
    let before = ours.file_bytes();
    shares.push(parts("every second deleted", &ours, left));
    let bytes = written_bytes();
    let started = Instant::now();
    ours.start_defragmentation();
    let mut compactions = Compactions::new(&ours);
    // Puts of what is still there, so that the amount of data stays, a thousand a second: with as many as it takes most
    // pages change between two checkpoints, and the file must have room for all of them twice.
    let busy = phase_of(
        &mut ours,
        n,
        9,
        pair_left,
        |ours, done| {
            let due = Duration::from_millis(done);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            done >= 120_000 || done > 1000 && !ours.defragmenting()
        },
        |ours| {
            ours.checkpoint();
            compactions.step(ours);
        },
    );
    let took = started.elapsed().as_secs_f64();
    let stats = ours.engine.stats();
    row(
        "Quorate, with 1,000 puts/s and gets beside it",
        before,
        stats.file_bytes,
        took,
        written_bytes() - bytes,
        format!(
            "file / in use {}; longest apply {} µs (control {}), in CPU time {} µs (control {}), of those that waited {} µs (control {}), longest get {} µs (control {})",
            short(stats.file_bytes as f64 / stats.in_use_bytes as f64),
            short(busy.applies.max_micros()),
            short(control.applies.max_micros()),
            short(busy.works.max_micros()),
            short(control.works.max_micros()),
            short(busy.waited.max_micros()),
            short(control.waited.max_micros()),
            short(busy.gets.max_micros()),
            short(control.gets.max_micros()),
        ),
    );
    shares.push(parts("defragmented", &ours, left));
    let mut calls = control.rows("quiet");
    calls.extend(busy.rows("defragmentation"));
    drop(ours);
    let path = dir.path().join("redb");
    std::fs::create_dir(&path).expect("a directory");
    let mut redb = Redb::open(&path, CACHE_BYTES);
    load(&mut redb, n, VALUE_BYTES);
    for keys in gone.chunks(10_000) {
        redb.remove(keys);
    }
    let before = redb.file_bytes();
    let bytes = written_bytes();
    let started = Instant::now();
    redb.compact();
    row(
        "redb, nobody reads or writes",
        before,
        redb.file_bytes(),
        started.elapsed().as_secs_f64(),
        written_bytes() - bytes,
        String::new(),
    );
    table(
        &format!("Every second of {n} keys deleted, then defragmented"),
        &[
            "engine",
            "MiB before",
            "MiB after",
            "file / keys and values left, before",
            "after",
            "s",
            "MiB written",
            "",
        ],
        &rows,
    );
    table(
        "What Quorate's file holds, in MiB and how full it is",
        &[
            "when",
            "file",
            "file / keys and values",
            "file / in use",
            "leaves",
            "inner pages",
            "history",
            "values of their own",
            "keys of their own",
            "map",
            "free or waiting",
        ],
        &shares,
    );
    table("Calls meanwhile", &HEAD, &calls);
}
