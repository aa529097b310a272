//! Figures of all engines: reads of a warm store, durable writes.

use engine_peers::measure::{median, per_call, process_cpu_micros, short, table, written_bytes};
use engine_peers::{CACHE_BYTES, PREFIX, Pair, Peer, VALUE_BYTES, all, key, load, value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::Setup;

/// Every engine with keys `0..n` in it.
fn loaded(setup: &Setup, dir: &std::path::Path) -> Vec<Box<dyn Peer>> {
    let mut peers = all(dir, CACHE_BYTES);
    for peer in &mut peers {
        let started = std::time::Instant::now();
        load(peer.as_mut(), setup.keys, VALUE_BYTES);
        eprintln!(
            "{}: {} keys in {:.1} s",
            peer.name(),
            setup.keys,
            started.elapsed().as_secs_f64()
        );
    }
    peers
}

/// Reads, then writes, of the same data.
pub fn peers(setup: &Setup) {
    let dir = setup.dir();
    let mut peers = loaded(setup, dir.path());
    reads(setup, &peers);
    writes(setup, &mut peers);
}

/// Point gets, ranges, counts. Rounds alternate between the engines.
fn reads(setup: &Setup, peers: &[Box<dyn Peer>]) {
    let n = setup.keys;
    let ops: [(&str, u64, usize); 4] = [
        ("get", 100_000, 0),
        ("range of 10", 20_000, 10),
        ("range of 1,000", 400, 1000),
        ("range of 10,000", 40, 10_000),
    ];
    let mut figures = vec![vec![Vec::new(); ops.len() + 1]; peers.len()];
    for round in 0..=setup.rounds {
        for (peer, figures) in peers.iter().zip(&mut figures) {
            let mut reader = peer.reader();
            for ((_, calls, limit), figures) in ops.iter().zip(figures.iter_mut()) {
                let mut rng = SmallRng::seed_from_u64(round);
                let keys: Vec<Vec<u8>> = (0..*calls).map(|_| key(rng.gen_range(0..n))).collect();
                let mut word = 0u64;
                let micros = per_call(*calls, |i| {
                    let key = &keys[i as usize];
                    word = word.wrapping_add(match limit {
                        0 => reader.get(key).expect("is there"),
                        limit => reader.range(key, *limit).1,
                    });
                });
                std::hint::black_box(word);
                // The first round warms up.
                if round > 0 {
                    figures.push(micros);
                }
            }
            if round == 1 {
                let calls = if peer.name() == "Quorate" { 1000 } else { 1 };
                let micros = per_call(calls, |_| assert_eq!(reader.count(PREFIX), n));
                figures[ops.len()].push(micros);
            }
        }
    }
    let mut head = vec!["CPU µs per call"];
    head.extend(peers.iter().map(|peer| peer.name()));
    let ratios: Vec<String> = peers[1..]
        .iter()
        .map(|peer| format!("{} / {}", peers[0].name(), peer.name()))
        .collect();
    head.extend(ratios.iter().map(String::as_str));
    let names = ops
        .iter()
        .map(|op| op.0)
        .chain(["count of a prefix of all"]);
    let rows: Vec<Vec<String>> = names
        .enumerate()
        .map(|(i, name)| {
            let middle: Vec<f64> = figures.iter().map(|f| median(f[i].clone())).collect();
            let mut row = vec![name.to_string()];
            row.extend(middle.iter().map(|f| short(*f)));
            row.extend(middle[1..].iter().map(|f| short(middle[0] / f)));
            row
        })
        .collect();
    table(&format!("Reads of {n} keys, warm"), &head, &rows);
    let live: u64 = (0..n.min(1000)).map(|i| key(i).len() as u64).sum::<u64>() / n.clamp(1, 1000);
    let live = n * (live + VALUE_BYTES as u64);
    let rows: Vec<Vec<String>> = peers
        .iter()
        .map(|peer| {
            let bytes = peer.file_bytes();
            vec![
                peer.name().into(),
                engine_peers::measure::mib(bytes),
                short(bytes as f64 / live as f64),
            ]
        })
        .collect();
    table(
        "File after random inserts",
        &["engine", "MiB", "bytes per byte of keys and values"],
        &rows,
    );
}

/// Puts of random keys that exist, durable per batch.
fn writes(setup: &Setup, peers: &mut [Box<dyn Peer>]) {
    let batches: [(usize, u64); 3] = [(1, 300), (100, 30), (5000, 3)];
    let mut wall = vec![vec![Vec::new(); batches.len()]; peers.len()];
    let mut cpu = wall.clone();
    let mut written = wall.clone();
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..setup.rounds {
        for (at, peer) in peers.iter_mut().enumerate() {
            for (i, (size, times)) in batches.iter().enumerate() {
                let work: Vec<Vec<Pair>> = (0..*times)
                    .map(|_| {
                        let mut pair = || {
                            let i = rng.gen_range(0..setup.keys);
                            (key(i), value(rng.r#gen(), VALUE_BYTES))
                        };
                        (0..*size).map(|_| pair()).collect()
                    })
                    .collect();
                let puts = (*size as u64 * times) as f64;
                let (bytes, micros) = (written_bytes(), process_cpu_micros());
                let started = std::time::Instant::now();
                work.iter().for_each(|batch| peer.put(batch));
                wall[at][i].push(started.elapsed().as_secs_f64() * 1e6 / puts);
                // Each pays for the checkpoint that it made necessary.
                peer.rest();
                cpu[at][i].push((process_cpu_micros() - micros) / puts);
                written[at][i].push((written_bytes() - bytes) as f64 / puts);
            }
        }
    }
    for (what, figures) in [
        ("µs by the clock per put", wall),
        ("CPU µs of the process per put", cpu),
        ("bytes written per put", written),
    ] {
        let mut head = vec!["batch"];
        head.extend(peers.iter().map(|peer| peer.name()));
        let rows: Vec<Vec<String>> = batches
            .iter()
            .enumerate()
            .map(|(i, (size, _))| {
                let mut row = vec![size.to_string()];
                row.extend(figures.iter().map(|f| short(median(f[i].clone()))));
                row
            })
            .collect();
        table(&format!("Durable puts: {what}"), &head, &rows);
    }
}
