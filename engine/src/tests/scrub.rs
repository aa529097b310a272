//! The scrubber: finds what rots, wherever it is, and nothing else, while everything changes.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mvcc::{Engine, Writer};
use crate::source::ScrubPlace;
use crate::store::FatalHook;
use crate::types::{Applied, Options};

fn options(dir: &std::path::Path) -> Options {
    let mut options = Options::new(dir);
    options.page_bytes = 1024;
    options.cache_bytes = 1 << 20;
    options.chunk_bytes = 3000;
    options.extend_bytes = 64 << 10;
    options.reserve_bytes = 64 << 10;
    options.scrub_bytes_per_second = 0;
    options
}

fn fill(writer: &mut Writer, rng: &mut StdRng, keys: u32) {
    for _ in 0..keys {
        let n: u32 = rng.gen_range(0..2000);
        let mut key = format!("key{n:05}").into_bytes();
        if n.is_multiple_of(40) {
            key.extend([b'x'; 600]);
        }
        let bytes = if n.is_multiple_of(9) { 2000 } else { 30 };
        let mut txn = writer.txn();
        txn.put(key.into(), Bytes::from(vec![n as u8; bytes]), 0)
            .expect("puts");
        txn.finish();
    }
}

fn checkpoint(engine: &Engine, writer: &mut Writer, index: u64) {
    writer.publish(Applied { index, term: 1 }, b"");
    let number = writer.checkpoint().expect("begins").expect("none runs");
    engine.wait_durable(number).expect("durable");
    while writer.store.checkpoint_running() {
        std::thread::yield_now();
    }
}

/// A whole pass in slices of a few pages; what it found bad, and how much good.
fn pass(writer: &Writer, mut between: impl FnMut()) -> (Vec<String>, u64) {
    let store = writer.store.store_for_tests();
    let (mut place, mut found, mut good) = (ScrubPlace::default(), Vec::new(), 0);
    for _ in 0..100_000 {
        let done = crate::scrub::slice(&store, &mut place, 3000);
        good += done.bytes;
        found.extend(done.damage.iter().map(|error| error.to_string()));
        if done.finished {
            return (found, good);
        }
        between();
    }
    panic!("the pass does not end");
}

#[test]
fn every_reached_unit_is_read_and_every_flipped_bit_found() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut writer) = Engine::open(options(dir.path())).expect("opens");
    let mut rng = StdRng::seed_from_u64(1);
    fill(&mut writer, &mut rng, 1500);
    writer.sys_put(3, b"large", &[1; 3000]).expect("puts");
    writer.compact(700).expect("compacts");
    for _ in 0..3 {
        writer.compact_step(Default::default()).expect("steps");
    }
    checkpoint(&engine, &mut writer, 1);
    checkpoint(&engine, &mut writer, 2);
    let (found, good) = pass(&writer, || {});
    assert_eq!(found, Vec::<String>::new());
    let held = writer.store.store_for_tests().durable_bytes();
    assert!(good >= held, "{good} bytes of {held}");
    // Rot in every unit in use, one at a time. Bytes behind the contents of a run are no one's.
    let path = dir.path().join("tree.qdb");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("opens");
    let reached: Vec<u64> = writer.store.store_for_tests().reached_units_for_tests();
    let (mut tried, mut noticed) = (0, 0);
    for unit in reached.into_iter().step_by(13) {
        let at = unit * 1024 + rng.gen_range(0..16);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("reads");
        file.write_all_at(&[byte[0] ^ 4], at).expect("writes");
        let (found, _) = pass(&writer, || {});
        file.write_all_at(&byte, at).expect("writes");
        tried += 1;
        noticed += u32::from(found.iter().any(|text| {
            text.contains("tree.qdb") && (text.contains("offset") || text.contains("damaged"))
        }));
        assert!(!found.is_empty(), "rot at {at} was not found");
    }
    assert!(tried > 40 && noticed == tried, "{noticed} of {tried}");
    let (found, _) = pass(&writer, || {});
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn changes_meanwhile_are_no_damage() {
    let dir = tempfile::tempdir().expect("dir");
    let (engine, mut writer) = Engine::open(options(dir.path())).expect("opens");
    let mut rng = StdRng::seed_from_u64(2);
    fill(&mut writer, &mut rng, 1500);
    checkpoint(&engine, &mut writer, 1);
    let store = writer.store.store_for_tests();
    let (mut place, mut index, mut passes) = (ScrubPlace::default(), 1, 0);
    for round in 0..1500 {
        let done = crate::scrub::slice(&store, &mut place, 6000);
        assert!(done.damage.is_empty(), "{:?}", done.damage);
        passes += u32::from(done.finished);
        fill(&mut writer, &mut rng, 8);
        if round % 3 == 0 {
            index += 1;
            let at = writer.revision() - 50;
            let _ = writer.compact(at);
            writer.compact_step(Default::default()).expect("steps");
            writer.shrink();
            checkpoint(&engine, &mut writer, index);
        }
    }
    assert!(passes >= 2, "{passes} passes");
    assert_eq!(store.stats().oldest_pin, Some(store.stats().newest_publish));
}

/// The thread: reports, tells the hook once, and ends with the writer.
#[test]
fn the_thread_reports_and_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    let mut options = options(dir.path());
    options.scrub_bytes_per_second = 1 << 30;
    options.scrub_pause = Duration::from_millis(1);
    options.on_damage = Some(FatalHook(Arc::new(move |line: &str| {
        kept.lock().expect("not poisoned").push(line.to_string())
    })));
    let (engine, mut writer) = Engine::open(options).expect("opens");
    fill(&mut writer, &mut StdRng::seed_from_u64(3), 800);
    checkpoint(&engine, &mut writer, 1);
    let passes = |n: u64| {
        let from = engine.scrub_report().passes;
        while engine.scrub_report().passes < from + n {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    passes(3);
    let report = engine.scrub_report();
    assert!(report.bytes > 100_000 && report.damaged == 0, "{report:?}");
    let unit = writer.store.store_for_tests().reached_units_for_tests()[20];
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("tree.qdb"))
        .expect("opens");
    file.write_all_at(&[0; 48], unit * 1024).expect("writes");
    passes(3);
    let report = engine.scrub_report();
    assert!(
        report.damaged >= 2 && report.damage.len() == 1,
        "{report:?}"
    );
    assert_eq!(*lines.lock().expect("not poisoned"), report.damage);
    drop(writer);
    let ended = engine.scrub_report().passes;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(engine.scrub_report().passes, ended);
}

/// A state whose history does not end where it says is refused at once.
#[test]
fn history_that_does_not_fit_the_state_is_refused() {
    for drop_last in [false, true] {
        let dir = tempfile::tempdir().expect("dir");
        let (engine, mut writer) = Engine::open(options(dir.path())).expect("opens");
        fill(&mut writer, &mut StdRng::seed_from_u64(4), 300);
        checkpoint(&engine, &mut writer, 1);
        if drop_last {
            let mut cursor = writer.store.cursor(crate::source::TreeId::E);
            cursor.seek_last().expect("reads");
            let key = cursor.key().to_vec();
            drop(cursor);
            let removed = writer.store.remove(crate::source::TreeId::E, &key);
            assert!(removed.expect("removes"));
            checkpoint(&engine, &mut writer, 2);
        }
        drop((engine, writer));
        let opened = Engine::open(options(dir.path())).map(|_| ());
        assert_eq!(opened.is_err(), drop_last, "{opened:?}");
    }
}
