//! The promises of the handles, one at a time.

use bytes::Bytes;

use super::*;

#[test]
fn a_new_store_is_empty_and_a_missing_one_can_be_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let asked = StoreOptions {
        create: false,
        ..options(dir.path())
    };
    assert!(matches!(Store::open(asked), Err(Error::Missing { .. })));
    let (store, mut writer, recovered) = Store::open(options(dir.path())).unwrap();
    assert_eq!(
        (
            recovered.checkpoint,
            recovered.user_meta.len(),
            recovered.fell_back
        ),
        (0, 0, false)
    );
    let snapshot = writer.publish();
    for tree in TreeId::ALL {
        assert_eq!(snapshot.get(tree, b"k").unwrap(), None);
        assert_eq!(snapshot.count(tree, b"", None).unwrap(), 0);
        assert!(!snapshot.cursor(tree).seek(b"").unwrap());
        assert!(!snapshot.cursor(tree).seek_last().unwrap());
    }
    assert_eq!(store.check(&mut no_runs).unwrap(), CheckReport::default());
}

#[test]
fn published_states_never_change() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    let mut snapshots = Vec::new();
    for round in 0..40u8 {
        for i in 0..50u32 {
            writer
                .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[round; 20])
                .unwrap();
        }
        snapshots.push(writer.publish());
        if round % 7 == 0 {
            while writer.checkpoint_running() {
                std::thread::yield_now();
            }
            writer.checkpoint(Vec::new()).unwrap();
        }
        writer
            .remove(TreeId::K, &u32::from(round).to_be_bytes())
            .unwrap();
    }
    for (round, snapshot) in snapshots.iter().enumerate() {
        let all = contents(snapshot, TreeId::K);
        assert_eq!(all.len(), 50);
        assert!(all.values().all(|(_, value)| *value == [round as u8; 20]));
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    let value = vec![0; store.value_bytes_max() + 1];
    let refused = writer.insert(TreeId::K, b"k", 0, &value);
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            bytes: 129,
            bytes_max: 128,
            ..
        })
    ));
    assert_eq!(writer.get(TreeId::K, b"k").unwrap(), None);
    assert!(matches!(
        writer.checkpoint(vec![0; USER_META_MAX + 1]),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn keys_of_two_mebibytes_work() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(StoreOptions {
        cache_bytes: 16 << 20,
        ..options(dir.path())
    })
    .unwrap();
    let mut model = Model::new();
    for last in [3u8, 1, 2, 0, 5, 4] {
        let mut key = vec![b'k'; 2 << 20];
        key.push(last);
        writer.insert(TreeId::S, &key, LIVE, &[last]).unwrap();
        model.insert(key, (LIVE, vec![last]));
    }
    let snapshot = writer.publish();
    assert_eq!(contents(&snapshot, TreeId::S), model);
    checkpoint(&store, &mut writer, b"");
    drop((store, writer, snapshot));
    let (store, mut writer, _) = Store::open(StoreOptions {
        cache_bytes: 1 << 20,
        ..options(dir.path())
    })
    .unwrap();
    let snapshot = writer.publish();
    assert_eq!(contents(&snapshot, TreeId::S), model);
    store.check(&mut no_runs).unwrap();
}

#[test]
fn one_checkpoint_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    store.on_durable(Box::new(move |durable| {
        kept.lock().unwrap().push(durable.checkpoint);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }));
    let mut refused = 0;
    let mut last = 0;
    for i in 0..2000u32 {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[1; 100])
            .unwrap();
        writer.publish();
        match writer.checkpoint(Vec::new()) {
            Ok(number) => last = number,
            Err(Error::CheckpointRunning) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    store.wait_durable(last).unwrap();
    drop(writer);
    let seen = seen.lock().unwrap();
    assert!(refused > 0 && seen.is_sorted() && seen.last() == Some(&last));
    assert!(matches!(store.wait_durable(last + 1), Err(Error::Closed)));
}

#[test]
fn runs_are_readable_before_and_after_their_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    let big = Bytes::from(
        (0..3_000_000u32)
            .map(|i| (i % 251) as u8)
            .collect::<Vec<_>>(),
    );
    let run = writer
        .write_run(RunKind::Value, b"owner", [1; 16], big.clone())
        .unwrap();
    writer
        .insert(TreeId::K, b"owner", LIVE | BY_RUN, &run.to_bytes())
        .unwrap();
    assert_eq!(RunRef::from_bytes(&run.to_bytes()), run);
    let before = writer.publish();
    assert_eq!(before.read_run(run).unwrap(), big);
    assert!(writer.dirty_bytes() > 3_000_000);
    checkpoint(&store, &mut writer, b"");
    writer.publish();
    assert_eq!(writer.dirty_bytes(), 0);
    assert_eq!(before.read_run(run).unwrap(), big);
    writer.free_run(run);
    writer.remove(TreeId::K, b"owner").unwrap();
    for _ in 0..4 {
        writer.publish();
        checkpoint(&store, &mut writer, b"");
    }
    // The snapshot from before still needs the run, whatever was freed since.
    assert_eq!(before.read_run(run).unwrap(), big);
    assert!(store.stats().pending_bytes > 3_000_000);
    drop(before);
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    assert!(store.stats().pending_bytes < 10_000, "{:?}", store.stats());
    let mut wrong = run;
    wrong.birth += 1;
    assert!(matches!(writer.read_run(wrong), Err(Error::Corrupt { .. })));
}

#[test]
fn dead_pages_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    for i in 0..20_000u32 {
        let flags = if (100..19_900).contains(&i) { 0 } else { LIVE };
        writer
            .insert(TreeId::K, &i.to_be_bytes(), flags, b"value")
            .unwrap();
    }
    let snapshot = writer.publish();
    checkpoint(&store, &mut writer, b"");
    let mut cursor = snapshot.cursor(TreeId::K);
    cursor.skip_dead(true);
    let (mut live, mut seen) = (0, 0);
    cursor.seek(&0u32.to_be_bytes()).unwrap();
    while cursor.valid() {
        live += u32::from(cursor.flags() & LIVE);
        seen += 1;
        cursor.next().unwrap();
    }
    assert_eq!(live, 200);
    assert!(seen < 300, "{seen}");
    cursor.seek(&5000u32.to_be_bytes()).unwrap();
    assert!(cursor.key() >= &19_800u32.to_be_bytes()[..]);
    cursor.seek_before(&5000u32.to_be_bytes()).unwrap();
    assert!(cursor.key() < &200u32.to_be_bytes()[..]);
    let mut back = 0;
    cursor.seek_last().unwrap();
    while cursor.valid() {
        back += 1;
        cursor.prev().unwrap();
    }
    assert!((200..300).contains(&back), "{back}");
}

#[test]
fn ascending_inserts_fill_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(StoreOptions {
        page_bytes: 8192,
        ..options(dir.path())
    })
    .unwrap();
    for i in 0..100_000u64 {
        writer
            .insert(TreeId::E, &i.to_be_bytes(), LIVE, &[7; 30])
            .unwrap();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    let report = store.check(&mut no_runs).unwrap();
    let payload = 100_000 * (8 + 30 + 3 + 4);
    assert!(
        report.pages * 8192 < payload * 115 / 100,
        "{} pages",
        report.pages
    );
}
