//! The operations of `engine-figures` under criterion, for its statistics and comparisons from run to run.
//!
//! `QUORATE_KEYS` sets the size of the data (100,000).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine_peers::{CACHE_BYTES, PREFIX, Pair, Peer, VALUE_BYTES, all, key, load, value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn keys() -> u64 {
    std::env::var("QUORATE_KEYS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000)
}

fn loaded(dir: &std::path::Path) -> Vec<Box<dyn Peer>> {
    let mut peers = all(dir, CACHE_BYTES);
    peers
        .iter_mut()
        .for_each(|peer| load(peer.as_mut(), keys(), VALUE_BYTES));
    peers
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let peers = loaded(dir.path());
    let n = keys();
    for limit in [0usize, 10, 1000, 10_000] {
        let name = if limit == 0 {
            "get".into()
        } else {
            format!("range-{limit}")
        };
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(limit.max(1) as u64));
        for peer in &peers {
            let mut reader = peer.reader();
            let mut rng = SmallRng::seed_from_u64(1);
            group.bench_function(peer.name(), |b| {
                b.iter_batched(
                    || key(rng.gen_range(0..n)),
                    |key| match limit {
                        0 => reader.get(&key),
                        limit => Some(reader.range(&key, limit).1),
                    },
                    criterion::BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
    let mut group = c.benchmark_group("count-prefix");
    group.sample_size(10);
    for peer in &peers {
        let mut reader = peer.reader();
        group.bench_function(peer.name(), |b| b.iter(|| reader.count(PREFIX)));
    }
    group.finish();
}

fn writes(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut peers = loaded(dir.path());
    let n = keys();
    let mut group = c.benchmark_group("put-durable");
    group.sample_size(10);
    for batch in [1usize, 100, 5000] {
        group.throughput(Throughput::Elements(batch as u64));
        for peer in &mut peers {
            let mut rng = SmallRng::seed_from_u64(2);
            group.bench_function(BenchmarkId::new(peer.name(), batch), |b| {
                b.iter_batched(
                    || -> Vec<Pair> {
                        (0..batch)
                            .map(|_| (key(rng.gen_range(0..n)), value(rng.r#gen(), VALUE_BYTES)))
                            .collect()
                    },
                    |pairs| peer.put(&pairs),
                    criterion::BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, reads, writes);
criterion_main!(benches);
