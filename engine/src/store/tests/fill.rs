//! How full pages are: what the contents need, of what their pages take.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::*;

/// Contents (entries without overhead of pages) in percent of the bytes of the pages that hold them.
fn fill(store: &Store, writer: &mut StoreWriter) -> u64 {
    writer.publish();
    checkpoint(store, writer, b"");
    let mut needed = 0u64;
    let report = store
        .check(&mut |_, key, _, value, _| {
            // Slot, cell and what they carry.
            needed += 8 + 3 + key.len() as u64 + value.len() as u64;
            Ok(())
        })
        .unwrap();
    needed * 100 / (report.pages * store.shared.pages.geo.page_bytes as u64)
}

struct Churn {
    store: Store,
    writer: StoreWriter,
    rng: StdRng,
    keys: Vec<Vec<u8>>,
    _dir: tempfile::TempDir,
}

impl Churn {
    fn new(seed: u64) -> Churn {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            page_bytes: 4096,
            cache_bytes: 32 << 20,
            ..options(dir.path())
        };
        let (store, writer, _) = Store::open(options).unwrap();
        Churn {
            store,
            writer,
            rng: StdRng::seed_from_u64(seed),
            keys: Vec::new(),
            _dir: dir,
        }
    }

    fn insert(&mut self) {
        // No common prefix: what is shared would be stored once and count as more than full.
        let key: [u8; 16] = self.rng.r#gen();
        let value = vec![1; self.rng.gen_range(20..140)];
        self.writer.insert(TreeId::K, &key, LIVE, &value).unwrap();
        self.keys.push(key.to_vec());
    }

    fn remove(&mut self) {
        let i = self.rng.gen_range(0..self.keys.len());
        let key = self.keys.swap_remove(i);
        assert!(self.writer.remove(TreeId::K, &key).unwrap());
    }
}

#[test]
fn pages_stay_full_under_random_inserts_and_deletes() {
    let mut churn = Churn::new(1);
    for _ in 0..12_000 {
        churn.insert();
    }
    let grown = fill(&churn.store, &mut churn.writer);
    let mut worst = 100;
    for _ in 0..6 {
        for _ in 0..6000 {
            churn.insert();
            churn.remove();
        }
        worst = worst.min(fill(&churn.store, &mut churn.writer));
    }
    // Random order, so that no neighbourhood goes at once.
    churn.keys.shuffle(&mut StdRng::seed_from_u64(2));
    for _ in 0..6000 {
        churn.remove();
    }
    let halved = fill(&churn.store, &mut churn.writer);
    for _ in 0..4500 {
        churn.remove();
    }
    let rest = fill(&churn.store, &mut churn.writer);
    println!("inserts {grown} %, churn {worst} %, half deleted {halved} %, seven eighths {rest} %");
    assert!(grown >= 65, "{grown} %");
    assert!(worst >= 65, "{worst} %");
    assert!(halved >= 65, "{halved} %");
    assert!(rest >= 65, "{rest} %");
}
