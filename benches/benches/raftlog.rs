//! Durable appends: the log with each backend against a bare loop of durable block writes.
//!
//! A round is what one flush carries: the entries of 1 to 2,048 writers that all wait for it. *Pipelined*, half
//! of the writers are in a flush while the entries of the other half are encoded. The bare loop writes as many
//! zero-padded bytes with one `pwritev2(RWF_DSYNC)` to a pre-written file opened with `O_DIRECT`: no log
//! can be faster on the same disk. Files lie in the system's temporary directory, or in `QUORATE_BENCH_DIR`. Compare medians within one run only: the disk is shared.
//! Percentiles, CPU per entry, raft-engine, and neighbours that sync: `log-figures` in `benches/peers`.

#[path = "../peers/raftlog/src/shared.rs"]
#[allow(dead_code)]
mod shared;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raftlog::Backend;
use shared::{Floor, Owner, write_sizes};

/// Larger rounds are left out.
const ROUND_BYTES_MAX: usize = 32 << 20;

fn durable_append(c: &mut Criterion) {
    let base = std::env::var_os("QUORATE_BENCH_DIR").map(std::path::PathBuf::from);
    let base = base.unwrap_or_else(std::env::temp_dir);
    for bytes in [300usize, 4096, 64 << 10] {
        let mut group = c.benchmark_group(format!("durable_append/{bytes}B"));
        for writers in [1u64, 16, 256, 2048] {
            if writers as usize * bytes > ROUND_BYTES_MAX {
                continue;
            }
            group.throughput(Throughput::Elements(writers));
            let temp = tempfile::tempdir_in(&base).expect("a directory for the bench");
            let writes = write_sizes(writers, bytes);
            let mut bare = Floor::open(&temp.path().join("bare"), false);
            group.bench_function(BenchmarkId::new("bare", writers), |b| {
                b.iter(|| writes.iter().for_each(|n| bare.write(*n)));
            });
            for (name, backend, thread) in [
                ("pwritev2", Backend::Sync, false),
                ("io_uring", Backend::Uring, false),
                ("pwritev2, pipelined", Backend::Sync, true),
                ("io_uring, pipelined", Backend::Uring, true),
            ] {
                if thread && writers == 1 {
                    continue;
                }
                let Ok(mut owner) = Owner::open(&temp.path().join(name), backend, thread) else {
                    eprintln!("{name} does not work here");
                    continue;
                };
                owner.settle();
                owner.prepare(writers, Bytes::from(vec![7; bytes]));
                if thread {
                    owner.begin();
                }
                group.bench_function(BenchmarkId::new(name, writers), |b| match thread {
                    false => b.iter(|| owner.round()),
                    true => b.iter(|| {
                        // Two flushes: as many entries as a round has.
                        owner.turn(|_, _| ());
                        owner.turn(|_, _| ());
                    }),
                });
            }
        }
        group.finish();
    }
}

/// What a follower that has fallen behind costs: reading entries back from the disk.
fn read_back(c: &mut Criterion) {
    let temp = tempfile::tempdir().expect("a directory for the bench");
    let mut owner = Owner::open(temp.path(), Backend::Auto, false).expect("the log opens");
    owner.prepare(256, Bytes::from(vec![7; 300]));
    for _ in 0..20 {
        owner.round();
    }
    let last = owner.log.last_index();
    let mut group = c.benchmark_group("read_back");
    group.throughput(Throughput::Elements(256));
    group.bench_function("256 entries of 300 B", |b| {
        let mut from = 1;
        b.iter(|| {
            from = if from + 512 > last { 1 } else { from + 256 };
            let read = owner.log.entries(from, from + 256, usize::MAX);
            assert_eq!(read.expect("durable entries").len(), 256);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(3));
    targets = durable_append, read_back
}
criterion_main!(benches);
