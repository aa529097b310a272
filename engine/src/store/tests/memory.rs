//! Memory stays within its limits; figures add up; backends agree.

use super::*;

/// Ten times as much data as the cache holds: read twice, the cache never grows beyond its limit, and what a
/// checkpoint wrote is not held by anybody.
#[test]
fn a_scan_of_ten_caches_stays_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 1 << 20;
    let options = StoreOptions {
        page_bytes: 4096,
        cache_bytes: limit,
        ..options(dir.path())
    };
    let (store, mut writer, _) = Store::open(options).unwrap();
    let mut held = Vec::new();
    for i in 0..40_000u32 {
        let key = i.wrapping_mul(2_654_435_761).to_be_bytes();
        writer
            .insert(TreeId::K, &key, LIVE, &[i as u8; 200])
            .unwrap();
        if i % 2000 == 1999 {
            let snapshot = writer.publish();
            if writer.dirty_bytes() > 2 << 20 {
                checkpoint(&store, &mut writer, b"");
                held.push(memory_of(&snapshot).clone());
            }
        }
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    writer.publish();
    // Nothing is dirty but pages that moving away from the file's end touched.
    assert!(writer.dirty_bytes() < 200 << 10);
    assert!(
        store.stats().in_use_bytes > 10 * limit as u64,
        "{:?}",
        store.stats()
    );
    for _ in 0..2 {
        let snapshot = writer.publish();
        let mut cursor = snapshot.cursor(TreeId::K);
        let (mut seen, mut more) = (0, cursor.seek(b"").unwrap());
        while more {
            seen += 1;
            if seen % 500 == 0 {
                assert!(store.stats().cache_bytes <= limit as u64);
            }
            more = cursor.next().unwrap();
        }
        assert_eq!(seen, 40_000);
    }
    assert!(store.stats().cache_evictions > 1000);
    // Roots of states that were checkpointed are held by nobody but this test.
    drop(writer);
    drop(store);
    assert!(!held.is_empty());
    assert!(held.iter_mut().all(|root| root.get_mut().is_some()));
}

fn memory_of(snapshot: &Snapshot) -> &super::super::node::NodeRef {
    match &snapshot.root(TreeId::K).kid {
        Some(super::super::btree::Kid::Mem(node)) => node,
        _ => panic!("a state that was just changed has its root in memory"),
    }
}

/// After checkpoint and publish nothing in the working tree or in the new snapshot holds written pages.
#[test]
fn written_pages_are_reached_by_address() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    for i in 0..5000u32 {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[1; 50])
            .unwrap();
    }
    writer.publish();
    let number = writer.checkpoint(Vec::new()).unwrap();
    // Some pages change while the checkpoint runs; only these and their parents may stay.
    for i in (0..5000u32).step_by(1000) {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[2; 50])
            .unwrap();
    }
    writer.publish();
    store.wait_durable(number).unwrap();
    while writer.checkpoint_running() {
        std::thread::yield_now();
    }
    let snapshot = writer.publish();
    assert!(
        in_memory(memory_of(&snapshot)) < 60,
        "{}",
        in_memory(memory_of(&snapshot))
    );
    checkpoint(&store, &mut writer, b"");
    let snapshot = writer.publish();
    assert!(matches!(
        snapshot.root(TreeId::K).kid,
        Some(super::super::btree::Kid::Disk(_))
    ));
    assert_eq!(snapshot.count(TreeId::K, b"", None).unwrap(), 5000);
    store.check(&mut no_runs).unwrap();
}

fn in_memory(node: &super::super::node::Node) -> usize {
    1 + node.kids().map(|kid| in_memory(kid)).sum::<usize>()
}

/// Hot pages survive a scan of everything.
#[test]
fn a_scan_does_not_push_out_what_is_hot() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        page_bytes: 4096,
        cache_bytes: 1 << 20,
        ..options(dir.path())
    };
    let (store, mut writer, _) = Store::open(options.clone()).unwrap();
    for i in 0..40_000u32 {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[i as u8; 200])
            .unwrap();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    drop((store, writer));
    let (store, mut writer, _) = Store::open(options).unwrap();
    let snapshot = writer.publish();
    let hot = |snapshot: &Snapshot| {
        for i in 20_000..20_500u32 {
            snapshot.get(TreeId::K, &i.to_be_bytes()).unwrap().unwrap();
        }
    };
    let fill = |snapshot: &Snapshot| {
        let mut cursor = snapshot.cursor(TreeId::K);
        let mut more = cursor.seek(b"").unwrap();
        while more {
            more = cursor.next().unwrap();
        }
    };
    hot(&snapshot);
    hot(&snapshot);
    fill(&snapshot);
    let before = store.stats().cache_misses;
    hot(&snapshot);
    let missed = store.stats().cache_misses - before;
    assert!(
        missed < 5,
        "{missed} pages of the hot range were pushed out"
    );
}

#[test]
fn one_load_for_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    for i in 0..20u32 {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[1; 10])
            .unwrap();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    drop((store, writer));
    for _ in 0..20 {
        let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
        let snapshot = writer.publish();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    snapshot
                        .get(TreeId::K, &3u32.to_be_bytes())
                        .unwrap()
                        .unwrap()
                });
            }
        });
        let leafs = u64::from(snapshot.root(TreeId::K).level) + 1;
        assert_eq!(store.stats().cache_misses, leafs);
    }
}

/// Readers on old and new states while the writer changes, publishes and checkpoints: each state is whole.
#[test]
fn readers_see_whole_states_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    for i in 0..500u32 {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &0u32.to_be_bytes())
            .unwrap();
    }
    let newest = Mutex::new(writer.publish());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let snapshot = newest.lock().unwrap().clone();
                    let all = contents(&snapshot, TreeId::K);
                    assert_eq!(all.len(), 500);
                    let rounds: std::collections::BTreeSet<_> =
                        all.values().map(|(_, value)| value.clone()).collect();
                    assert_eq!(rounds.len(), 1, "a state between two publishes was seen");
                    let round =
                        u32::from_be_bytes(rounds.first().unwrap().as_slice().try_into().unwrap());
                    assert!(round >= last);
                    last = round;
                }
            });
        }
        for round in 1..300u32 {
            for i in 0..500u32 {
                writer
                    .insert(TreeId::K, &i.to_be_bytes(), LIVE, &round.to_be_bytes())
                    .unwrap();
            }
            *newest.lock().unwrap() = writer.publish();
            if !writer.checkpoint_running() {
                writer.checkpoint(Vec::new()).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(newest);
    while writer.checkpoint_running() {
        std::thread::yield_now();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    store.check(&mut no_runs).unwrap();
    assert!(store.stats().file_bytes < 2 << 20, "{:?}", store.stats());
}

/// Both real backends write files that the other reads.
#[test]
fn backends_agree() {
    let mut made = Vec::new();
    for backend in [IoBackend::Sync, IoBackend::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            backend,
            page_bytes: 8192,
            background: false,
            ..options(dir.path())
        };
        let (store, mut writer, _) = Store::open(options).unwrap();
        for i in 0..3000u32 {
            writer
                .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[i as u8; 300])
                .unwrap();
        }
        let run = writer
            .write_run(RunKind::Value, b"", [0; 16], vec![5; 3 << 20].into())
            .unwrap();
        writer
            .insert(TreeId::S, b"run", BY_RUN, &run.to_bytes())
            .unwrap();
        writer.publish();
        checkpoint(&store, &mut writer, b"");
        store.check(&mut runs_by_flag).unwrap();
        made.push(std::fs::read(dir.path().join("tree.qdb")).unwrap());
    }
    assert!(made[0] == made[1]);
}
