//! Packing: what is read stays as it is, pages get full, it comes to an end, and no crash meets it half-way.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::Disk;

use super::crash::{Story, examine, sim_options};
use super::*;

fn seeds(default: u64) -> u64 {
    std::env::var("QUORATE_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// A store from which many entries have gone, here and there.
struct Thin {
    store: Store,
    writer: StoreWriter,
    rng: StdRng,
    model: Model,
    _dir: tempfile::TempDir,
}

impl Thin {
    fn new(seed: u64, change: impl FnOnce(&mut StoreOptions)) -> Thin {
        let dir = tempfile::tempdir().unwrap();
        let mut options = StoreOptions {
            cache_bytes: 8 << 20,
            fragmentation_max: 100,
            ..options(dir.path())
        };
        change(&mut options);
        let (store, writer, _) = Store::open(options).unwrap();
        Thin {
            store,
            writer,
            rng: StdRng::seed_from_u64(seed),
            model: Model::new(),
            _dir: dir,
        }
    }

    fn insert(&mut self) {
        let rng = &mut self.rng;
        let mut key = match rng.gen_range(0..3) {
            0 => b"/registry/pods/default/".to_vec(),
            1 => b"/registry/".to_vec(),
            _ => Vec::new(),
        };
        key.extend(rng.r#gen::<u64>().to_be_bytes());
        if rng.gen_ratio(1, 60) {
            key.extend([b'l'; 700]);
        }
        let flags = rng.gen_range(0..2);
        let value = vec![rng.r#gen(); rng.gen_range(0..90)];
        self.writer.insert(TreeId::K, &key, flags, &value).unwrap();
        self.model.insert(key, (flags, value));
    }

    /// About one in `of` stays.
    fn thin_out(&mut self, of: u32) {
        let keys: Vec<_> = self.model.keys().cloned().collect();
        for key in keys {
            if !self.rng.gen_ratio(1, of) {
                self.writer.remove(TreeId::K, &key).unwrap();
                self.model.remove(&key);
            }
        }
    }

    fn checkpoint(&mut self) {
        self.writer.publish();
        checkpoint(&self.store, &mut self.writer, b"");
    }

    /// How full leaves are, in percent.
    fn fill(&self) -> u64 {
        let leaves = self.store.check(&mut no_runs).unwrap().space.leaves;
        leaves.filled * 100 / leaves.bytes
    }

    /// Shrinks to the end, looking at everything after each step.
    fn shrink(&mut self) {
        self.writer.request_shrink().unwrap();
        let mut held: Vec<Snapshot> = Vec::new();
        let mut rounds = 0;
        while self.writer.shrinking() {
            rounds += 1;
            assert!(rounds < 300, "it comes to an end: {:?}", self.store.stats());
            let bytes = self.rng.gen_range(1..20_000);
            self.writer.move_tail(bytes).unwrap();
            let snapshot = self.writer.publish();
            self.compare(&snapshot);
            held.push(snapshot);
            if held.len() > 3 {
                self.compare(&held.remove(0));
            }
            self.checkpoint();
            self.store.check(&mut no_runs).unwrap();
        }
    }

    fn compare(&self, snapshot: &Snapshot) {
        snapshot.check(&mut no_runs).unwrap();
        assert!(contents(snapshot, TreeId::K) == self.model);
        let live = self.model.values().filter(|(flags, _)| flags & LIVE != 0);
        let counted = snapshot.count(TreeId::K, b"", None).unwrap();
        assert_eq!(counted, live.count() as u64);
    }
}

#[test]
fn sparse_pages_become_full_ones() {
    for seed in 0..seeds(3) {
        let page_bytes = [512, 1024, 4096][seed as usize % 3];
        let mut thin = Thin::new(seed, |options| options.page_bytes = page_bytes);
        let n = page_bytes as u32 * 3;
        (0..n).for_each(|_| thin.insert());
        thin.checkpoint();
        thin.thin_out(2);
        thin.checkpoint();
        // What deletes alone leave.
        let before = thin.fill();
        assert!(before < 84, "seed {seed}: {before} %");
        thin.shrink();
        let after = thin.fill();
        // Of small pages fewer lie below one parent, and entries do not fill them as well.
        let enough = [before + 1, 76, 84][seed as usize % 3];
        assert!(
            after >= enough && after > before,
            "seed {seed}: {before} % to {after} %"
        );
        // Until nothing is left to do; and then nothing is done.
        let (mut packed, mut again) = (0, 0);
        while packed != thin.store.stats().packed_bytes {
            packed = thin.store.stats().packed_bytes;
            again += 1;
            assert!(again < 10, "seed {seed}: never content");
            thin.shrink();
        }
        let moved = thin.store.stats().moved_bytes;
        thin.shrink();
        assert_eq!(thin.store.stats().moved_bytes, moved, "seed {seed}");
        // Some new entries do not undo it.
        (0..n / 60).for_each(|_| thin.insert());
        thin.checkpoint();
        let later = thin.fill();
        assert!(later + 8 >= after, "seed {seed}: {after} % to {later} %");
    }
}

/// Negative control: what looks at everything above would notice a key between two pages that is off by one entry.
#[test]
fn a_wrong_key_between_pages_is_noticed() {
    let mut thin = Thin::new(1, |options| options.page_bytes = 1024);
    (0..3000).for_each(|_| thin.insert());
    thin.checkpoint();
    thin.thin_out(3);
    thin.checkpoint();
    thin.store.shared.cut_late.store(true, Ordering::Relaxed);
    thin.writer.request_shrink().unwrap();
    thin.checkpoint();
    let snapshot = thin.writer.publish();
    assert!(thin.store.stats().packed_bytes > 0);
    let error = snapshot.check(&mut no_runs).unwrap_err().to_string();
    assert!(error.contains("outside of the bounds"), "{error}");
}

/// By itself, with changes going on: the trees stay as full as without, what is written for it is bounded, and when the
/// changes end so does it.
#[test]
fn by_itself_it_comes_to_rest() {
    let mut thin = Thin::new(7, |options| {
        options.page_bytes = 4096;
        options.fragmentation_max = 0;
        options.extend_bytes = 4096;
    });
    (0..8000).for_each(|_| thin.insert());
    thin.checkpoint();
    thin.thin_out(3);
    thin.checkpoint();
    for _ in 0..60 {
        for _ in 0..40 {
            thin.insert();
        }
        let keys: Vec<_> = thin.model.keys().cloned().collect();
        for _ in 0..40 {
            let key = &keys[thin.rng.gen_range(0..keys.len())];
            if thin.model.remove(key).is_some() {
                thin.writer.remove(TreeId::K, key).unwrap();
            }
        }
        thin.checkpoint();
    }
    let stats = thin.store.stats();
    assert!(stats.packed_bytes > 0);
    assert!(
        stats.moved_bytes < stats.checkpoint_bytes * 2 / 3,
        "{stats:?}"
    );
    let fill = thin.fill();
    assert!(fill >= 65, "{fill} %");
    // The smallest budget is as large as this store, so some walks are enough.
    (0..12).for_each(|_| thin.checkpoint());
    let rested = thin.store.stats();
    (0..6).for_each(|_| thin.checkpoint());
    let stats = thin.store.stats();
    assert_eq!(
        (stats.packed_bytes, stats.moved_bytes),
        (rested.packed_bytes, rested.moved_bytes)
    );
    let snapshot = thin.writer.publish();
    thin.compare(&snapshot);
}

/// The keys of a round, of which every reader must see all and no others.
fn keys_of(round: u32) -> BTreeSet<Vec<u8>> {
    let era = round / 8;
    let stays = |i: &u32| i.wrapping_add(era).wrapping_mul(2_654_435_761) >> 30 == 0;
    let keys = (0..6000u32).filter(stays);
    keys.map(|i| i.to_be_bytes().to_vec()).collect()
}

#[test]
fn readers_beside_it_see_whole_states() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut there = BTreeSet::new();
    let newest = Mutex::new((0, writer.publish()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (round, snapshot) = newest.lock().unwrap().clone();
                    if round == 0 {
                        continue;
                    }
                    let found: BTreeSet<_> = contents(&snapshot, TreeId::K).into_keys().collect();
                    assert!(found == keys_of(round), "round {round}");
                    std::thread::yield_now();
                    snapshot.check(&mut no_runs).unwrap();
                }
            });
        }
        for round in 1..160 {
            let keys = keys_of(round);
            for key in there.symmetric_difference(&keys) {
                match keys.contains(key) {
                    true => {
                        let value = vec![7; rng.gen_range(0..60)];
                        writer.insert(TreeId::K, key, LIVE, &value).unwrap();
                    }
                    false => assert!(writer.remove(TreeId::K, key).unwrap()),
                }
            }
            there = keys;
            writer.move_tail(rng.gen_range(1..30_000)).unwrap();
            *newest.lock().unwrap() = (round, writer.publish());
            if round % 12 == 0 {
                writer.request_shrink().unwrap();
            }
            if !writer.checkpoint_running() {
                writer.checkpoint(Vec::new()).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(store.stats().packed_bytes > 0);
    while writer.checkpoint_running() {
        std::thread::yield_now();
    }
    checkpoint(&store, &mut writer, b"");
    store.check(&mut no_runs).unwrap();
}

/// Thins a store out and has it shrink, with a change before each checkpoint. Ends early when the disk goes down.
fn script(disk: &Disk, seed: u64) -> (Story, u64) {
    let mut story = Story::default();
    story.begun.insert(0, Model::new());
    let (options, _) = sim_options(disk);
    let options = StoreOptions {
        extend_bytes: 32 << 10,
        reserve_bytes: 32 << 10,
        cache_bytes: 1 << 20,
        ..options
    };
    let Ok((store, mut writer, _)) = Store::open(options) else {
        return (story, 0);
    };
    story.durable = Some(0);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::new();
    let mut rounds = 0;
    loop {
        let done = (|| -> Result<bool> {
            match rounds {
                0 => {
                    for _ in 0..700 {
                        let key = rng.r#gen::<u32>().to_be_bytes().to_vec();
                        let value = vec![1; rng.gen_range(0..50)];
                        writer.insert(TreeId::K, &key, LIVE, &value)?;
                        model.insert(key, (LIVE, value));
                    }
                }
                1 => {
                    let keys: Vec<_> = model.keys().cloned().collect();
                    for key in keys {
                        if rng.gen_ratio(1, 2) {
                            writer.remove(TreeId::K, &key)?;
                            model.remove(&key);
                        }
                    }
                    writer.request_shrink()?;
                }
                _ => {
                    let key = vec![rounds as u8; 3];
                    writer.insert(TreeId::K, &key, LIVE, b"x")?;
                    model.insert(key, (LIVE, b"x".to_vec()));
                    if rounds == 9 || !writer.shrinking() {
                        return Ok(true);
                    }
                }
            }
            writer.move_tail(rng.gen_range(500..9000))?;
            writer.publish();
            let number = writer.checkpoint(Vec::new())?;
            story.begun.insert(number, model.clone());
            store.wait_durable(number)?;
            story.durable = Some(number);
            Ok(false)
        })();
        match done {
            Ok(false) => rounds += 1,
            Ok(true) | Err(_) => return (story, store.stats().packed_bytes),
        }
    }
}

#[test]
fn no_crash_meets_it_half_way() {
    for seed in 1..=seeds(1) {
        let whole = Disk::new(seed);
        let (_, packed) = script(&whole, seed);
        assert!(packed > 0, "seed {seed} packs nothing");
        for step in 1..=whole.steps() {
            let disk = Disk::new(seed);
            disk.crash_at(step);
            let (story, _) = script(&disk, seed);
            let images = disk.process_images().chain(disk.power_images());
            for (i, image) in images.enumerate() {
                let examined = examine(&image.disk, &story);
                let number = examined.unwrap_or_else(|what| {
                    panic!("seed {seed} step {step}: {image:?}: {what}");
                });
                if i % 5 == 0 {
                    // Opened and left at once it is the same again.
                    let after = image.disk.after_power_loss(&simdisk::Survivors::None);
                    assert_eq!(examine(&after, &story), Ok(number));
                }
            }
        }
    }
}

/// Negative control of the crash test: with a wrong key between pages some image does not pass.
#[test]
fn the_crash_test_notices_a_wrong_key() {
    let disk = Disk::new(1);
    let (options, _) = sim_options(&disk);
    assert_eq!(options.dir, Path::new("store"));
    let (store, mut writer, _) = Store::open(options).unwrap();
    store.shared.cut_late.store(true, Ordering::Relaxed);
    let mut story = Story::default();
    let mut model = Model::new();
    for i in 0..600u32 {
        let key = i.wrapping_mul(2_654_435_761).to_be_bytes().to_vec();
        writer.insert(TreeId::K, &key, LIVE, &[1; 30]).unwrap();
        model.insert(key, (LIVE, vec![1; 30]));
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    writer.request_shrink().unwrap();
    for _ in 0..3 {
        writer.publish();
        let number = checkpoint(&store, &mut writer, b"");
        story.begun.insert(number, model.clone());
    }
    assert!(store.stats().packed_bytes > 0);
    drop((store, writer));
    let after = disk.after_power_loss(&simdisk::Survivors::None);
    assert!(examine(&after, &story).is_err());
}
