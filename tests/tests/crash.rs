//! `kill -9` under load: every acknowledged write is there, revisions never go back, a watch resumes
//! without gap, and the checker finds nothing.
//!
//! `QUORATE_KILL_ROUNDS` sets the rounds per backend (10).

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_tests::client::{self, Client};
use quorate_tests::server::{Program, Server};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const WRITERS: u64 = 8;
const KEYS_PER_WRITER: u64 = 40;

/// What the clients know of one key.
#[derive(Clone, Copy, Default)]
struct Known {
    submitted: u64,
    acknowledged: u64,
}

#[derive(Default)]
struct Ledger {
    keys: Mutex<HashMap<String, Known>>,
    revision: AtomicI64,
    /// Revisions below this were seen by the watcher.
    watched: AtomicI64,
    stop: AtomicBool,
}

impl Ledger {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

fn rounds() -> u64 {
    std::env::var("QUORATE_KILL_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10)
}

/// Puts ever larger numbers; a number is submitted before it is sent and acknowledged after.
async fn write(client: Client, ledger: Arc<Ledger>, writer: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !ledger.stopped() {
        let key = format!("w{writer}/{:03}", rng.gen_range(0..KEYS_PER_WRITER));
        let number = {
            let mut keys = ledger.keys.lock().unwrap();
            let known = keys.entry(key.clone()).or_default();
            known.submitted += 1;
            known.submitted
        };
        // Values from a few bytes to several pages.
        let pad = "x".repeat(rng.gen_range(0..100usize).pow(2));
        let result = client
            .try_put(client::put(key.clone(), format!("{number} {pad}")))
            .await;
        let Ok(response) = result else { return };
        let revision = client::rev(&response.header);
        ledger.revision.fetch_max(revision, Ordering::AcqRel);
        let mut keys = ledger.keys.lock().unwrap();
        let known = keys.get_mut(&key).unwrap();
        known.acknowledged = known.acknowledged.max(number);
    }
}

/// Compacts well behind the watcher and defragments, so that both are under way when the kill comes.
async fn churn(client: Client, ledger: Arc<Ledger>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !ledger.stopped() {
        tokio::time::sleep(Duration::from_millis(rng.gen_range(5..60))).await;
        let behind = ledger.watched.load(Ordering::Acquire) - 500;
        let failed = if rng.gen_bool(0.2) {
            client.try_defragment().await.is_err()
        } else if behind > 0 {
            // Compacting what is compacted already is refused; that is no failure here.
            matches!(client.try_compact(behind, rng.gen_bool(0.3)).await,
                Err(e) if e.code() == tonic::Code::Unavailable)
        } else {
            false
        };
        if failed {
            return;
        }
    }
}

/// Follows every change from the last one seen; each revision must be the next one.
async fn follow(client: Client, ledger: Arc<Ledger>) {
    let next = ledger.watched.load(Ordering::Acquire) + 1;
    let mut create = client::watch("w", "x");
    create.start_revision = next;
    let mut stream = client.watch_stream().await;
    let created = stream.create(create).await;
    assert!(created.created && !created.canceled, "{created:?}");
    let mut next = next;
    while !ledger.stopped() {
        let Some(response) = stream.next_within(Duration::from_millis(50)).await else {
            continue;
        };
        assert_eq!(response.compact_revision, 0, "{response:?}");
        for event in &response.events {
            let revision = event.kv.as_ref().unwrap().mod_revision;
            assert_eq!(revision, next, "the watch has a gap or a duplicate");
            next = revision + 1;
        }
        ledger.watched.store(next - 1, Ordering::Release);
    }
}

async fn verify(client: &Client, ledger: &Ledger) {
    let revision = client.revision().await;
    let acknowledged = ledger.revision.load(Ordering::Acquire);
    assert!(
        revision >= acknowledged,
        "revision went back: {revision} after {acknowledged} was acknowledged"
    );
    let known = ledger.keys.lock().unwrap().clone();
    let all = client.range(client::span("w", "x")).await;
    let mut found = HashMap::new();
    for kv in &all.kvs {
        let value = std::str::from_utf8(&kv.value).unwrap();
        let number: u64 = value.split(' ').next().unwrap().parse().unwrap();
        found.insert(String::from_utf8(kv.key.to_vec()).unwrap(), number);
    }
    assert_eq!(all.count as usize, all.kvs.len());
    for (key, known) in &known {
        let number = found.get(key).copied().unwrap_or(0);
        assert!(
            number >= known.acknowledged && number <= known.submitted,
            "{key}: found {number}, acknowledged {}, submitted {}",
            known.acknowledged,
            known.submitted
        );
    }
    // What is found now is acknowledged from here on: it was read.
    let mut keys = ledger.keys.lock().unwrap();
    for (key, number) in found {
        keys.get_mut(&key).unwrap().acknowledged = number;
    }
    ledger.revision.fetch_max(revision, Ordering::AcqRel);
}

/// Walks every page, chunk and record of the files a kill left.
fn check_files(data_dir: &Path) {
    let copy = tempfile::tempdir().unwrap();
    let from = data_dir.join("member/store");
    for entry in std::fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let (engine, _writer) = engine::Engine::open(engine::Options::new(copy.path())).unwrap();
    engine.check(&engine.view()).unwrap();
}

async fn rounds_on(backend: &str) {
    let program = Program::quorate().unwrap();
    let flag = format!("--wal-backend={backend}");
    let mut server = Server::start(&program, &[&flag]).await;
    let mut rng = StdRng::seed_from_u64(7);
    let ledger = Arc::new(Ledger {
        watched: AtomicI64::new(1),
        ..Ledger::default()
    });
    for round in 0..rounds() {
        ledger.stop.store(false, Ordering::Release);
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let client = Client::new(server.connect().await);
            tasks.push(tokio::spawn(write(
                client,
                ledger.clone(),
                writer,
                round * 100 + writer,
            )));
        }
        let client = Client::new(server.connect().await);
        tasks.push(tokio::spawn(churn(client.clone(), ledger.clone(), round)));
        let follower = tokio::spawn(follow(client, ledger.clone()));
        tokio::time::sleep(Duration::from_millis(rng.gen_range(50..700))).await;
        let before = ledger.revision.load(Ordering::Acquire);
        server.kill();
        ledger.stop.store(true, Ordering::Release);
        for task in tasks {
            task.await.unwrap();
        }
        // The stream of a killed server ends in an error; only a broken promise counts.
        if let Err(error) = follower.await
            && let Ok(message) = error.try_into_panic()
        {
            let text = message
                .downcast_ref::<String>()
                .cloned()
                .unwrap_or_default();
            assert!(!text.contains("gap or a duplicate"), "{text}");
        }
        check_files(&server.data_dir());
        server.restart().await;
        let client = Client::new(server.connect().await);
        verify(&client, &ledger).await;
        println!("{backend} round {round}: {before} revisions acknowledged before the kill");
    }
    assert!(
        ledger.revision.load(Ordering::Acquire) > 100,
        "there was no load"
    );

    // The last watcher sees everything up to the end, without gap.
    ledger.stop.store(false, Ordering::Release);
    let client = Client::new(server.connect().await);
    let last = client.revision().await;
    let follower = tokio::spawn(follow(client, ledger.clone()));
    while ledger.watched.load(Ordering::Acquire) < last && !follower.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.stop.store(true, Ordering::Release);
    follower.await.unwrap();

    let status = server.terminate().await;
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(
        status.signal(),
        Some(15),
        "ends by the signal that stopped it"
    );
    check_files(&server.data_dir());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9_with_blocking_io() {
    rounds_on("sync").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9_with_io_uring() {
    // Where io_uring is forbidden `auto` falls back, and the test says which backend ran.
    let backend = if io_uring_allowed() { "uring" } else { "auto" };
    println!("backend: {backend}");
    rounds_on(backend).await;
}

/// Whether the kernel lets this process set up a ring: with a null pointer the call fails either way,
/// with EFAULT when it is allowed.
fn io_uring_allowed() -> bool {
    // SAFETY: the kernel checks the pointer it is given and writes nothing through null.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// 5L.7, 5L.8: leases and their keys survive a crash; keys do not vanish early.
#[tokio::test]
async fn leases_survive_kill_9() {
    let program = Program::quorate().unwrap();
    let mut server = Server::start(&program, &[]).await;
    let client = Client::new(server.connect().await);
    client.grant(600, 77).await;
    client.grant(2, 78).await;
    let mut long = client::put("long", "v");
    long.lease = 77;
    client.put(long).await;
    let mut short = client::put("short", "v");
    short.lease = 78;
    client.put(short).await;
    server.kill();
    server.restart().await;
    let client = Client::new(server.connect().await);
    assert!(client.get("long").await.is_some());
    assert_eq!(client.time_to_live(77).await.granted_ttl, 600);
    // The short one starts again with its full TTL and then goes, with its key.
    while client.get("short").await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.time_to_live(78).await.ttl, -1);
    let leases: Vec<i64> = client.leases().await.leases.iter().map(|l| l.id).collect();
    assert_eq!(leases, [77]);
}
