//! Figures of speed, printed, never judged: with `QUORATE_KEYS=1000000` in release mode and `--nocapture`.
//! The default run is a smoke run of the same code.

use std::time::Instant;

use super::*;

fn key(i: u64) -> Vec<u8> {
    format!(
        "/registry/pods/namespace-{:04}/pod-{:012}",
        i % 97,
        i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
    )
    .into_bytes()
}

/// CPU time of this thread: a busy machine disturbs it less than the clock.
fn cpu_micros() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn each(what: &str, n: u64, mut f: impl FnMut(u64)) {
    let (started, cpu) = (Instant::now(), cpu_micros());
    (0..n).for_each(&mut f);
    let wall = started.elapsed().as_secs_f64() * 1e6;
    println!(
        "{what}: {:.3} µs of CPU each, {:.3} µs of time",
        (cpu_micros() - cpu) / n as f64,
        wall / n as f64
    );
}

#[test]
fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cache_bytes: 1 << 30,
        backend: IoBackend::Auto,
        ..StoreOptions::new(dir.path())
    };
    let (store, mut writer, recovered) = Store::open(options.clone()).unwrap();
    println!("{}", recovered.report);
    let n: u64 = std::env::var("QUORATE_KEYS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    let value = [7u8; 256];
    let keys: Vec<Vec<u8>> = (0..n).map(key).collect();
    each("insert, publish per 100", n, |i| {
        writer
            .insert(TreeId::K, &keys[i as usize], LIVE, &value)
            .unwrap();
        if i % 100 == 99 {
            writer.publish();
        }
    });
    let snapshot = writer.publish();
    each("get, pages in memory", n, |i| {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
        snapshot
            .get_with(TreeId::K, &keys[i as usize], |_, value| {
                assert!(value.len() == 256)
            })
            .unwrap()
            .unwrap();
    });
    drop(snapshot);
    let started = Instant::now();
    let number = writer.checkpoint(Vec::new()).unwrap();
    println!("checkpoint() returned in {:?}", started.elapsed());
    store.wait_durable(number).unwrap();
    println!(
        "first checkpoint: {:?}, {} MB",
        started.elapsed(),
        store.stats().checkpoint_bytes >> 20
    );
    let started = Instant::now();
    let snapshot = writer.publish();
    println!("publish with settling: {:?}", started.elapsed());
    each("get, through the cache", n, |i| {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
        snapshot
            .get_with(TreeId::K, &keys[i as usize], |_, value| {
                assert!(value.len() == 256)
            })
            .unwrap()
            .unwrap();
    });
    let mut cursor = snapshot.cursor(TreeId::K);
    cursor.seek(b"").unwrap();
    let mut bytes = 0;
    each("scan", n - 1, |_| {
        bytes += cursor.key().len() + cursor.value().len();
        cursor.next().unwrap();
    });
    let scanned = bytes;
    each("count of a random half range", 100_000, |i| {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
        snapshot.count(TreeId::K, &keys[i as usize], None).unwrap();
    });
    each("overwrite, publish per 100", n, |i| {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
        writer
            .insert(TreeId::K, &keys[i as usize], LIVE, &value)
            .unwrap();
        if i % 100 == 99 {
            writer.publish();
        }
    });
    each("overwrite of one key, publish each", 100_000, |_| {
        writer.insert(TreeId::K, &keys[17], LIVE, &value).unwrap();
        writer.publish();
    });
    each("publish alone", 100_000, |_| drop(writer.publish()));
    // Changes and reads while a checkpoint runs.
    let mut slowest = std::time::Duration::ZERO;
    let number = writer.checkpoint(Vec::new()).unwrap();
    let mut during = 0;
    while writer.checkpoint_running() {
        let started = Instant::now();
        writer
            .insert(TreeId::K, &keys[(during * 7919 % n) as usize], LIVE, &value)
            .unwrap();
        writer.publish();
        slowest = slowest.max(started.elapsed());
        during += 1;
    }
    store.wait_durable(number).unwrap();
    println!(
        "{during} overwrites during a checkpoint of {} ms, slowest {slowest:?}",
        store.stats().checkpoint_last_micros / 1000
    );
    let started = Instant::now();
    writer.publish();
    println!("publish with settling: {:?}", started.elapsed());
    checkpoint(&store, &mut writer, b"");
    println!("{:?}", store.stats());
    println!("{scanned} bytes scanned");
    drop((snapshot, store, writer));
    let started = Instant::now();
    let (store, mut writer, _) = Store::open(StoreOptions {
        cache_bytes: 64 << 20,
        ..options
    })
    .unwrap();
    println!("open: {:?}", started.elapsed());
    let snapshot = writer.publish();
    let mut cursor = snapshot.cursor(TreeId::K);
    cursor.seek(b"").unwrap();
    each("scan from disk", n - 1, |_| {
        cursor.next().unwrap();
    });
    each("cold random get", 20_000.min(n), |i| {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
        snapshot
            .get_with(TreeId::K, &keys[i as usize], |_, _| ())
            .unwrap()
            .unwrap();
    });
    println!("{:?}", store.stats());
}
