//! Reading ahead: many pages at once, each once, and nothing but the cache changes.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, OpKind};

use super::*;

fn key(i: u32) -> Vec<u8> {
    format!("key{:07}", i.wrapping_mul(2_654_435_761) % 10_000_019).into_bytes()
}

fn filled(options: &StoreOptions) -> (Store, StoreWriter) {
    let (store, mut writer, _) = Store::open(options.clone()).unwrap();
    for i in 0..4000 {
        writer.insert(TreeId::K, &key(i), LIVE, &[1; 50]).unwrap();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    drop((store, writer));
    let (store, writer, _) = Store::open(options.clone()).unwrap();
    (store, writer)
}

#[test]
fn what_was_prefetched_is_not_read_again() {
    let disk = Disk::new(1);
    let options = StoreOptions {
        backend: IoBackend::Sim(disk.clone()),
        background: false,
        cache_bytes: 8 << 20,
        extend_bytes: 4096,
        reserve_bytes: 4096,
        ..options(Path::new("store"))
    };
    let (store, mut writer) = filled(&options);
    let reads = Arc::new(AtomicU64::new(0));
    let counted = reads.clone();
    disk.fail_when(move |op| {
        counted.fetch_add(u64::from(op.kind == OpKind::Read), Ordering::Relaxed);
        None
    });
    let keys: Vec<Vec<u8>> = (0..300).map(|i| key(i * 13)).collect();
    let named: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    writer.prefetch(TreeId::K, &named);
    let pages = reads.load(Ordering::Relaxed);
    assert_eq!(pages, store.stats().cache_misses, "each page once");
    assert!(pages > 200, "{pages}");
    for key in &keys {
        assert!(writer.get(TreeId::K, key).unwrap().is_some());
    }
    assert_eq!(
        reads.load(Ordering::Relaxed),
        pages,
        "nothing is read again"
    );
    // Control: a key elsewhere is.
    for i in 0..20 {
        writer
            .insert(TreeId::K, &key(i * 13 + 1), LIVE, b"new")
            .unwrap();
    }
    assert!(reads.load(Ordering::Relaxed) > pages);
}

/// Both backends, with changes in memory and threads that read the same pages, and a file that rots meanwhile.
#[test]
fn prefetching_changes_nothing_that_is_read() {
    for backend in [IoBackend::Sync, IoBackend::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            backend,
            ..options(dir.path())
        };
        let (store, mut writer) = filled(&options);
        let mut rng = StdRng::seed_from_u64(3);
        for round in 0..30 {
            for _ in 0..20 {
                let i = rng.gen_range(0..8000);
                writer
                    .insert(TreeId::K, &key(i), LIVE, &[round; 50])
                    .unwrap();
            }
            let snapshot = writer.publish();
            let picked: Vec<Vec<u8>> = (0..60).map(|_| key(rng.gen_range(0..8000))).collect();
            let named: Vec<&[u8]> = picked.iter().map(|key| &key[..]).collect();
            let before = contents(&snapshot, TreeId::K);
            std::thread::scope(|scope| {
                let (snapshot, named) = (&snapshot, &named);
                for _ in 0..2 {
                    scope.spawn(move || snapshot.prefetch(TreeId::K, named));
                }
                for key in named {
                    let found = snapshot.get(TreeId::K, key).unwrap();
                    assert_eq!(found.is_some(), before.contains_key(*key));
                }
            });
            writer.prefetch(TreeId::K, &named);
            writer.prefetch(TreeId::L, &named);
            writer.prefetch(TreeId::K, &[]);
            assert!(contents(&snapshot, TreeId::K) == before);
            assert!(store.stats().cache_bytes <= options.cache_bytes as u64);
        }
    }
}

#[test]
fn a_page_that_rots_is_reported_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let (store, writer) = filled(&options);
    drop((store, writer));
    let path = dir.path().join("tree.qdb");
    let mut bytes = std::fs::read(&path).unwrap();
    // Every leaf's last byte: the roots, which opening reads, are inner pages.
    for page in bytes[131_072..].chunks_mut(512) {
        if page[4] == 1 {
            page[511] ^= 1;
        }
    }
    std::fs::write(&path, bytes).unwrap();
    let (_store, writer, _) = Store::open(options).unwrap();
    let keys: Vec<Vec<u8>> = (0..50).map(key).collect();
    let named: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    writer.prefetch(TreeId::K, &named);
    for key in named {
        let found = writer.get(TreeId::K, key);
        assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
    }
}
