//! Figures of one file: what it takes to write it, to open it, to read old versions from it, and in how much memory.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use engine_peers::measure::{
    Times, allocated_bytes, free_bytes, mib, per_call, resident_bytes, short, table, written_bytes,
};
use engine_peers::{
    CACHE_BYTES, Fjall, Lmdb, Pair, Peer, Quorate, Redb, VALUE_BYTES, key, load, ours, value,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{Setup, number};

/// Bytes written to the store per put, the log aside.
pub fn volume(setup: &Setup) {
    let dir = setup.dir();
    let mut options = ours::options(dir.path(), CACHE_BYTES);
    // The figure says when a checkpoint comes.
    options.dirty_bytes_max = u64::MAX;
    let mut ours = Quorate::with(dir.path(), options);
    let n = setup.keys;
    let mut from = 0;
    while from < n {
        let to = n.min(from + 50_000);
        let pairs: Vec<Pair> = (from..to)
            .map(|i| (key(i), value(i, VALUE_BYTES)))
            .collect();
        ours.apply(&pairs);
        ours.checkpoint_and_wait();
        from = to;
    }
    ours.settle();
    let mut sorted: Vec<Vec<u8>> = (0..n).map(key).collect();
    sorted.sort_unstable();
    let mut rows = Vec::new();
    for (name, every, hot) in [
        ("hot", 50_000, true),
        ("uniform", 50_000, false),
        ("hot", 5000, true),
    ] {
        let mut rng = SmallRng::seed_from_u64(3);
        let puts = 150_000.max(every);
        let bytes = written_bytes();
        for put in 1..=puts {
            let i = if hot && rng.gen_ratio(9, 10) {
                // One percent of the keys, side by side.
                n / 2 + rng.gen_range(0..n.div_ceil(100))
            } else {
                rng.gen_range(0..n)
            };
            let pair = (sorted[i as usize].clone(), value(rng.r#gen(), VALUE_BYTES));
            ours.apply(&[pair]);
            if put % 16 == 0 {
                ours.publish();
            }
            if put % every == 0 {
                ours.checkpoint_and_wait();
            }
            if put % 100_000 == 0 {
                let at = ours.writer.revision() - 100_000;
                if ours.writer.compact(at).is_ok() {
                    while ours.compact_slice() == engine::CompactProgress::More {}
                }
            }
        }
        rows.push(vec![
            name.into(),
            every.to_string(),
            short((written_bytes() - bytes) as f64 / puts as f64),
        ]);
    }
    table(
        &format!(
            "Bytes written to the store per put, {n} keys, {VALUE_BYTES} byte values, history of 100,000 puts kept"
        ),
        &["keys", "puts per checkpoint", "bytes per put"],
        &rows,
    );
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("lists").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// Opening what a process left that ended without closing, just before a checkpoint.
pub fn open(setup: &Setup) {
    let mut rows = Vec::new();
    let mut row = |name: &str, keys: u64, bytes: u64, open: f64, replay: String| {
        rows.push(vec![
            name.to_string(),
            keys.to_string(),
            mib(bytes),
            short(open),
            replay,
        ]);
    };
    for keys in [setup.keys, setup.open_keys] {
        let dir = setup.dir();
        let mut ours = Quorate::open(dir.path(), 64 << 20);
        // In key order: the figure is about opening.
        let mut revision = 0;
        for from in (0..keys).step_by(1000) {
            let pairs: Vec<Pair> = (from..keys.min(from + 1000))
                .map(|i| (ordered(i), value(i, 64)))
                .collect();
            ours.apply(&pairs);
            ours.publish();
            if ours.writer.revision() > revision + 200_000 {
                revision = ours.writer.revision();
                ours.writer.compact(revision).expect("compacts");
                while ours.compact_slice() == engine::CompactProgress::More {}
            }
        }
        ours.settle();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut lost: Vec<Pair> = Vec::new();
        while !ours.writer.checkpoint_due() {
            let pair = (ordered(rng.gen_range(0..keys)), value(rng.r#gen(), 64));
            ours.apply(std::slice::from_ref(&pair));
            ours.publish_only();
            lost.push(pair);
        }
        let bytes = ours.file_bytes();
        drop(ours);
        let started = Instant::now();
        let mut ours = Quorate::open(dir.path(), 64 << 20);
        let opened = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for batch in lost.chunks(256) {
            ours.apply(batch);
            ours.publish_only();
        }
        let replayed = started.elapsed().as_secs_f64();
        row(
            "Quorate",
            keys,
            bytes,
            opened,
            format!("{} for {} puts", short(replayed), lost.len()),
        );
    }
    let keys = setup.keys;
    let dir = setup.dir();
    let at = |name: &str| dir.path().join(name);
    let fresh = |name: &str| {
        std::fs::create_dir(at(name)).expect("a directory");
        at(name)
    };
    let opened = |f: &dyn Fn(&Path), name: &str| {
        let image = at(&format!("{name}-crashed"));
        copy_all(&at(name), &image);
        let bytes = engine_peers::bytes_below(&image);
        let started = Instant::now();
        f(&image);
        (bytes, started.elapsed().as_secs_f64())
    };
    let mut lmdb = Lmdb::open(&fresh("LMDB"));
    fill_in_order(&mut lmdb, keys);
    drop(lmdb);
    let (bytes, took) = opened(&|dir| drop(Lmdb::open(dir)), "LMDB");
    row("LMDB", keys, bytes, took, String::new());
    let mut redb = Redb::open(&fresh("redb"), 64 << 20);
    fill_in_order(&mut redb, keys);
    let (bytes, took) = opened(&|dir| drop(Redb::open(dir, 64 << 20)), "redb");
    row("redb", keys, bytes, took, String::new());
    drop(redb);
    let mut fjall = Fjall::open(&fresh("fjall"), 64 << 20);
    fill_in_order(&mut fjall, keys);
    let (bytes, took) = opened(&|dir| drop(Fjall::open(dir, 64 << 20)), "fjall");
    row("fjall", keys, bytes, took, String::new());
    table(
        "Open after a crash, 64 byte values",
        &[
            "engine",
            "keys",
            "MiB",
            "open s",
            "s to apply again what no checkpoint had",
        ],
        &rows,
    );
}

fn ordered(i: u64) -> Vec<u8> {
    format!("/registry/pods/namespace/pod-{i:015x}").into_bytes()
}

fn fill_in_order(peer: &mut dyn Peer, keys: u64) {
    for from in (0..keys).step_by(20_000) {
        let pairs: Vec<Pair> = (from..keys.min(from + 20_000))
            .map(|i| (ordered(i), value(i, 64)))
            .collect();
        peer.put(&pairs);
    }
}

/// One key, a million versions; and ranges and counts at old revisions.
pub fn versions(setup: &Setup) {
    let dir = setup.dir();
    let mut ours = Quorate::open(dir.path(), CACHE_BYTES);
    let versions = setup.keys;
    let hot = key(0);
    for i in 0..versions {
        ours.apply(&[(hot.clone(), value(i, VALUE_BYTES))]);
        if i % 64 == 0 {
            ours.publish();
        }
    }
    ours.checkpoint_and_wait();
    let view = ours.publish();
    let mut rng = SmallRng::seed_from_u64(5);
    let mut rows = Vec::new();
    let mut times = Times::default();
    let micros = per_call(20_000, |_| {
        let at = rng.gen_range(2..=versions as i64);
        let found = times.time(|| view.read(&hot, at, |kv| kv.mod_revision));
        assert_eq!(found.expect("reads"), Some(at));
    });
    rows.push(vec![
        format!("get of one key with {versions} versions"),
        short(micros),
        short(times.micros(0.99)),
    ]);
    drop(view);
    drop(ours);
    let dir = setup.dir();
    let mut ours = Quorate::open(dir.path(), CACHE_BYTES);
    let n = setup.keys.min(200_000);
    load(&mut ours, n, VALUE_BYTES);
    let old = ours.writer.revision();
    let puts = 100_000.min(n);
    for i in 0..puts {
        // Every key twice at most, one in ten new, one in ten gone.
        match i % 10 {
            0 => ours.delete(&[key(i)]),
            1 => ours.apply(&[(key(n + i), value(i, VALUE_BYTES))]),
            _ => ours.apply(&[(key(i), value(i, VALUE_BYTES))]),
        }
        if i % 64 == 0 {
            ours.publish();
        }
    }
    ours.checkpoint_and_wait();
    let view = ours.publish();
    for (what, at) in [("now", 0), ("100,000 changes ago", old)] {
        for limit in [10usize, 1000] {
            let mut times = Times::default();
            let micros = per_call(if limit == 10 { 5000 } else { 100 }, |_| {
                let from = engine::KeyRange::From(Bytes::from(key(rng.gen_range(0..n))));
                let mut left = limit;
                times.time(|| {
                    view.visit(&from, at, &mut |_| {
                        left -= 1;
                        if left > 0 {
                            std::ops::ControlFlow::Continue(())
                        } else {
                            std::ops::ControlFlow::Break(())
                        }
                    })
                    .expect("reads")
                });
            });
            rows.push(vec![
                format!("range of {limit} of {n} keys, {what}"),
                short(micros),
                short(times.micros(0.99)),
            ]);
        }
        let all = engine::KeyRange::all();
        let micros = per_call(10, |_| {
            view.count(&all, at).expect("counts");
        });
        rows.push(vec![
            format!("count of {n} keys, {what}"),
            short(micros),
            String::new(),
        ]);
    }
    table(
        "Old revisions",
        &["call", "CPU µs", "p99 µs by the clock"],
        &rows,
    );
}

/// What a stage took at most: of the system, and of the allocator.
#[derive(Default)]
struct Most {
    resident: u64,
    allocated: u64,
}

impl Most {
    fn look(&mut self) {
        self.resident = self.resident.max(resident_bytes());
        self.allocated = self.allocated.max(allocated_bytes());
    }
}

/// Memory with far more data than cache.
pub fn memory(setup: &Setup) {
    let bytes = number("QUORATE_LARGE_GB", 10) << 30;
    let dir = setup.dir();
    let free = free_bytes(dir.path());
    // Twice: what was replaced, until two checkpoints later, and the log.
    let needed = bytes * 2;
    println!(
        "\n{} GiB of data need up to {} GiB of disk; {} GiB are free at {}",
        bytes >> 30,
        needed >> 30,
        free >> 30,
        dir.path().display()
    );
    if free < needed + (5 << 30) {
        println!("too little, or too little to spare: passed over");
        return;
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut most = Most::default();
    let mut stage = |name: &str, most: &mut Most, stats: engine::Stats| {
        most.look();
        rows.push(vec![
            name.into(),
            mib(most.resident),
            mib(most.allocated),
            mib(resident_bytes()),
            mib(allocated_bytes()),
            mib(stats.cache_bytes),
            mib(stats.dirty_bytes),
            mib(stats.file_bytes),
        ]);
        *most = Most::default();
    };
    stage("before", &mut most, engine::Stats::default());
    let mut ours = Quorate::open(dir.path(), 64 << 20);
    let value_bytes = 1024;
    let keys = bytes / (value_bytes as u64 + 44);
    for from in (0..keys).step_by(500) {
        let pairs: Vec<Pair> = (from..keys.min(from + 500))
            .map(|i| (ordered(i), value(i, value_bytes)))
            .collect();
        ours.apply(&pairs);
        ours.publish();
        ours.bound_dirty();
        most.look();
        if from % 20_000 == 0 {
            ours.compact_all();
        }
    }
    stage("loaded in order", &mut most, ours.engine.stats());
    ours.settle();
    stage("settled", &mut most, ours.engine.stats());
    let mut rng = SmallRng::seed_from_u64(9);
    let mut times = Times::default();
    let view = ours.publish();
    for i in 0..100_000 {
        let key = ordered(rng.gen_range(0..keys));
        times.time(|| view.read(&key, 0, |kv| kv.value.len()).expect("reads"));
        if i % 1024 == 0 {
            most.look();
        }
    }
    stage("100,000 random gets", &mut most, ours.engine.stats());
    let mut n = 0u64;
    view.visit(&engine::KeyRange::all(), 0, &mut |_| {
        n += 1;
        if n.is_multiple_of(4096) {
            most.look();
        }
        std::ops::ControlFlow::Continue(())
    })
    .expect("reads");
    assert_eq!(n, keys);
    drop(view);
    stage("all keys in one range", &mut most, ours.engine.stats());
    for round in 0..200_000u64 {
        let pair = (ordered(rng.gen_range(0..keys)), value(round, value_bytes));
        ours.apply(&[pair]);
        if round % 64 == 0 {
            ours.publish();
            ours.bound_dirty();
        }
        if round % 1024 == 0 {
            most.look();
        }
        if round % 20_000 == 0 {
            ours.compact_all();
        }
    }
    stage("200,000 random puts", &mut most, ours.engine.stats());
    ours.settle();
    stage("settled", &mut most, ours.engine.stats());
    drop(ours);
    let mut ours = Quorate::open(dir.path(), 64 << 20);
    stage("opened again", &mut most, ours.engine.stats());
    let used = engine_peers::bytes_below(dir.path());
    ours.publish();
    drop(ours);
    table(
        &format!(
            "Memory with a cache of 64 MiB, MiB; {keys} keys with values of {value_bytes} bytes, {} MiB of disk used",
            mib(used)
        ),
        &[
            "stage",
            "resident at most",
            "in use at most",
            "resident after",
            "in use after",
            "cache",
            "dirty",
            "file",
        ],
        &rows,
    );
    println!(
        "\ngets of cold keys: p50 {} µs, p99 {} µs",
        short(times.micros(0.5)),
        short(times.micros(0.99))
    );
}
