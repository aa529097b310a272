//! Out of one engine, into another: nothing is lost, nothing is added.

use std::ops::ControlFlow;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mvcc::{Engine, View, Writer};
use crate::types::{
    Applied, Budget, CompactProgress, Error, EventKind, KeyRange, KeyValue, Options, Revision,
};

fn open(page_bytes: usize) -> (Engine, Writer, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.page_bytes = page_bytes;
    options.cache_bytes = 1 << 20;
    options.chunk_bytes = 2000;
    options.extend_bytes = 64 << 10;
    options.reserve_bytes = 64 << 10;
    let (engine, writer) = Engine::open(options).expect("opens");
    (engine, writer, dir)
}

fn checkpoint(engine: &Engine, writer: &mut Writer, index: u64) -> View {
    let view = writer.publish(Applied { index, term: 1 }, b"").view;
    let number = writer.checkpoint().expect("begins").expect("none runs");
    engine.wait_durable(number).expect("durable");
    while writer.store.checkpoint_running() {
        std::thread::yield_now();
    }
    view
}

fn history(writer: &mut Writer, rng: &mut StdRng, requests: usize) {
    for _ in 0..requests {
        let mut txn = writer.txn();
        for _ in 0..rng.gen_range(1..4) {
            let n: u32 = rng.gen_range(0..400);
            let mut key = format!("key{n:04}").into_bytes();
            if n.is_multiple_of(30) {
                key.extend([b'x'; 900]);
            }
            let key = Bytes::from(key);
            if rng.gen_ratio(1, 4) {
                txn.delete_range(&KeyRange::One(key), false)
                    .expect("deletes");
            } else {
                let bytes = [3, 40, 3000][rng.gen_range(0..3)];
                let lease = [0, 0, 7][rng.gen_range(0..3)];
                txn.put(key, vec![n as u8; bytes].into(), lease)
                    .expect("puts");
            }
        }
        txn.finish();
    }
}

type Exported = (EventKind, Revision, KeyValue);

fn export(view: &View, memory: usize) -> Vec<Exported> {
    let mut all = Vec::new();
    view.export(memory, &mut |version| {
        all.push((version.kind, version.revision, version.kv.to_owned()));
        ControlFlow::Continue(())
    })
    .expect("exports");
    all
}

/// Loads what was exported: the part up to the compact revision sorted by key, the rest as history.
fn import(writer: &mut Writer, all: &[Exported], compact: i64) {
    let (base, rest): (Vec<&Exported>, Vec<&Exported>) =
        all.iter().partition(|(_, rev, _)| rev.main <= compact);
    let mut base: Vec<_> = base
        .into_iter()
        .map(|(_, rev, kv)| (*rev, kv.clone()))
        .collect();
    base.sort_by(|a, b| a.1.key.cmp(&b.1.key));
    let keys = base.len() as u64;
    assert_eq!(
        writer
            .load(compact, base.into_iter().map(Ok))
            .expect("loads"),
        keys
    );
    for (kind, rev, kv) in rest {
        writer.replay(*kind, *rev, kv).expect("replays");
    }
}

#[test]
fn what_was_exported_and_loaded_again_is_the_same() {
    for (seed, page_bytes) in [(1, 512), (2, 1024), (3, 8192)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let (engine, mut writer, _dir) = open(page_bytes);
        history(&mut writer, &mut rng, 1200);
        let compact = writer.revision() - 300;
        writer.compact(compact).expect("compacts");
        while writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
        let view = checkpoint(&engine, &mut writer, 1);
        let all = export(&view, 1 << 20);
        assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].1), "in order");
        // Little memory, many passes, the same.
        assert!(export(&view, 5000) == all);
        let mut some = 0;
        view.export(5000, &mut |_| {
            some += 1;
            match some {
                10 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .expect("exports");
        assert_eq!(some, 10);

        let (other, mut into, dir) = open(page_bytes);
        import(&mut into, &all, compact);
        let loaded = into.publish(Applied { index: 1, term: 1 }, b"").view;
        other.check(&loaded).expect("sound before it is durable");
        let loaded = checkpoint(&other, &mut into, 2);
        other.check_file().expect("sound");
        let same = |loaded: &View| {
            assert!(export(loaded, 1 << 20) == all);
            assert_eq!(loaded.revision(), view.revision());
            assert_eq!(loaded.compact_revision(), view.compact_revision());
            for at in [compact, compact + 1, compact + 150, view.revision()] {
                assert_eq!(
                    loaded.hash_kv(at).expect("hashes"),
                    view.hash_kv(at).expect("hashes")
                );
                let all = KeyRange::all();
                assert_eq!(
                    loaded.count(&all, at).expect("counts"),
                    view.count(&all, at).expect("counts")
                );
            }
            let keys = |view: &View| view.lease_keys(7).expect("reads");
            assert_eq!(keys(loaded), keys(&view));
            assert!(!keys(loaded).is_empty());
        };
        same(&loaded);
        drop((loaded, other, into));
        let mut options = Options::new(dir.path());
        options.page_bytes = page_bytes;
        let (other, mut into) = Engine::open(options).expect("opens");
        same(&other.view());
        // And it goes on from there.
        history(&mut into, &mut rng, 300);
        into.compact(into.revision() - 10).expect("compacts");
        while into.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
        let view = checkpoint(&other, &mut into, 3);
        other.check(&view).expect("sound");
        other.check_file().expect("sound");
    }
}

fn kv(key: &str, rev: i64) -> (Revision, KeyValue) {
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: vec![1; 5000].into(),
        create_revision: rev,
        mod_revision: rev,
        version: 1,
        lease: 0,
    };
    (Revision { main: rev, sub: 0 }, kv)
}

/// A load that fails leaves an empty engine, and its space; one that is refused changes nothing.
#[test]
fn what_cannot_be_loaded_leaves_nothing() {
    let (engine, mut writer, _dir) = open(512);
    let before = engine.stats().in_use_bytes;
    let bad = [
        vec![Ok(kv("b", 2)), Ok(kv("a", 3))],
        vec![Ok(kv("a", 2)), Ok(kv("a", 3))],
        vec![Ok(kv("a", 2)), Ok(kv("b", 30))],
        vec![Ok(kv("a", 2)), Ok(kv("", 3))],
        vec![
            Ok(kv("a", 2)),
            Err(Error::Invalid("the source failed".into())),
        ],
        (0..2000)
            .map(|i| Ok(kv(&format!("{i:05}"), 2)))
            .chain([Ok(kv("0", 2))])
            .collect(),
    ];
    for keys in bad {
        assert!(writer.load(10, keys).is_err());
        let view = checkpoint(&engine, &mut writer, 1);
        assert_eq!((view.revision(), engine.stats().keys), (1, 0));
        assert_eq!(engine.stats().in_use_bytes, before);
        engine.check_file().expect("sound");
    }
    assert_eq!(
        writer
            .load(10, [Ok(kv("a", 2)), Ok(kv("b", 3))])
            .expect("loads"),
        2
    );
    assert!(writer.load(10, [Ok(kv("a", 2))]).is_err());
    let at = |main, sub| Revision { main, sub };
    for rev in [at(10, 0), at(12, 0), at(11, 1), at(9, 0)] {
        assert!(
            writer
                .replay(EventKind::Put, rev, &kv("c", rev.main).1)
                .is_err()
        );
    }
    assert!(
        writer
            .replay(EventKind::Delete, at(11, 0), &kv("c", 11).1)
            .is_err()
    );
    for rev in [at(11, 0), at(11, 1), at(12, 0)] {
        writer
            .replay(EventKind::Put, rev, &kv("c", rev.main).1)
            .expect("follows");
    }
    let view = checkpoint(&engine, &mut writer, 2);
    engine.check(&view).expect("sound");
    assert_eq!(engine.stats().keys, 3);
}

/// Sorted input gives a packed tree: nine tenths full and more.
#[test]
fn a_loaded_tree_is_packed() {
    let (engine, mut writer, _dir) = open(4096);
    let keys = (0..20_000).map(|i| {
        let (rev, mut kv) = kv(&format!("key{:09}", i * 7), 2);
        kv.value = vec![1; 100].into();
        Ok((rev, kv))
    });
    assert_eq!(writer.load(5, keys).expect("loads"), 20_000);
    assert!(writer.dirty_bytes() == 0, "nothing waits in memory");
    checkpoint(&engine, &mut writer, 1);
    let needed = 20_000 * (100 + 8 + 9 + 8 + 3);
    let used = engine.stats().in_use_bytes;
    assert!(used < needed * 100 / 90, "{used} for {needed}");
}

/// A state as it was loaded has no events, also none at the revision of its newest keys. Their values move all the same.
#[test]
fn values_of_a_loaded_state_can_be_moved() {
    let (engine, mut writer, _dir) = open(1024);
    for key in [b"1", b"2"] {
        writer.sys_put(3, key, &[7; 1 << 20]).expect("puts");
    }
    checkpoint(&engine, &mut writer, 1);
    let keys = (0..300).map(|i| Ok(kv(&format!("{i:05}"), if i < 150 { 2 } else { 10 })));
    writer.load(10, keys).expect("loads");
    checkpoint(&engine, &mut writer, 2);
    let expected = engine.view().hash_kv(0).expect("hashes");
    // Room in front.
    for key in [b"1", b"2"] {
        assert!(writer.sys_delete(3, key).expect("deletes"));
    }
    checkpoint(&engine, &mut writer, 3);
    writer.shrink();
    for index in 4..20 {
        checkpoint(&engine, &mut writer, index);
        while writer.defragment_step(64 << 10).expect("moves") {}
    }
    let view = checkpoint(&engine, &mut writer, 20);
    let stats = engine.stats();
    assert!(stats.moved_bytes > 150 * 5000, "{stats:?}");
    assert_eq!(view.hash_kv(0).expect("hashes"), expected);
    engine.check(&view).expect("sound");
    engine.check_file().expect("sound");
}
