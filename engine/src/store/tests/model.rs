//! Random histories against a `BTreeMap`.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Keys with shared prefixes, long runs of equal bytes, empty ones, and ones far longer than a page.
fn random_key(rng: &mut StdRng, space: u32) -> Vec<u8> {
    let id = rng.gen_range(0..space);
    match id % 11 {
        0 => format!("/registry/pods/default/pod-{id:06}").into_bytes(),
        1 => vec![0xff; (id % 90) as usize],
        2 => vec![0; (id % 70) as usize],
        3 => [
            vec![b'l'; 400 + (id % 3) as usize * 300],
            id.to_be_bytes().to_vec(),
        ]
        .concat(),
        4 => [
            id.to_be_bytes().to_vec(),
            vec![b'm'; 120 + (id % 40) as usize],
        ]
        .concat(),
        5 => [
            vec![b'h'; 36 + (id % 32) as usize],
            vec![b'a' + (id % 5) as u8],
        ]
        .concat(),
        6 => id.to_string().into_bytes(),
        _ => format!("/registry/{:02}/{:04}", id % 7, id).into_bytes(),
    }
}

struct Run {
    dir: tempfile::TempDir,
    store: Store,
    writer: StoreWriter,
    model: Model,
    published: Model,
    held: Vec<(Snapshot, Model)>,
    durable: Model,
    step: u64,
    /// By the stores opened before this one.
    packed_bytes: u64,
}

impl Run {
    fn new(background: bool) -> Run {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer, recovered) = Store::open(StoreOptions {
            background,
            ..options(dir.path())
        })
        .unwrap();
        assert_eq!(recovered.checkpoint, 0);
        Run {
            dir,
            store,
            writer,
            model: Model::new(),
            published: Model::new(),
            held: Vec::new(),
            durable: Model::new(),
            step: 0,
            packed_bytes: 0,
        }
    }

    fn put(&mut self, rng: &mut StdRng, key: Vec<u8>) {
        let flags = rng.gen_range(0..2u8) | rng.gen_range(0..8u8) << 2;
        let value = vec![rng.r#gen::<u8>(); [0, 3, 10, 40, 128][rng.gen_range(0..5)]];
        self.free_if_run(&key);
        let previous = if rng.gen_ratio(1, 12) {
            let long: Vec<u8> = (0..rng.gen_range(0..5000)).map(|_| rng.r#gen()).collect();
            let run = self
                .writer
                .write_run(RunKind::Value, &key, [7; 16], Bytes::from(long.clone()))
                .unwrap();
            assert_eq!(self.writer.read_run(run).unwrap(), long);
            let flags = flags | BY_RUN;
            let previous = self
                .writer
                .insert(TreeId::K, &key, flags, &run.to_bytes())
                .unwrap();
            let old = self.model.insert(key, (flags, run.to_bytes().to_vec()));
            assert_eq!(previous, old.map(|(flags, _)| flags));
            return;
        } else {
            self.writer.insert(TreeId::K, &key, flags, &value).unwrap()
        };
        let old = self.model.insert(key, (flags, value));
        assert_eq!(previous, old.map(|(flags, _)| flags));
    }

    fn free_if_run(&mut self, key: &[u8]) {
        if let Some((flags, value)) = self.model.get(key)
            && flags & BY_RUN != 0
        {
            self.writer
                .free_run(RunRef::from_bytes(value.as_slice().try_into().unwrap()));
        }
    }

    fn remove(&mut self, key: &[u8]) {
        self.free_if_run(key);
        assert_eq!(
            self.writer.remove(TreeId::K, key).unwrap(),
            self.model.remove(key).is_some()
        );
    }

    fn compare(&self, rng: &mut StdRng, snapshot: &Snapshot, model: &Model) {
        assert_eq!(contents(snapshot, TreeId::K), *model);
        let (a, b) = (random_key(rng, 4000), random_key(rng, 4000));
        let live = |range: &mut dyn Iterator<Item = &(u8, Vec<u8>)>| {
            range.filter(|(flags, _)| flags & LIVE != 0).count() as u64
        };
        assert_eq!(
            snapshot.count(TreeId::K, &a, None).unwrap(),
            live(&mut model.range(a.clone()..).map(|(_, v)| v))
        );
        let expected = if a < b {
            live(&mut model.range(a.clone()..b.clone()).map(|(_, v)| v))
        } else {
            0
        };
        assert_eq!(snapshot.count(TreeId::K, &a, Some(&b)).unwrap(), expected);
        let mut cursor = snapshot.cursor(TreeId::K);
        cursor.seek(&a).unwrap();
        let mut after = model.range(a.clone()..);
        for _ in 0..20 {
            let expected = after.next();
            assert_eq!(
                cursor.valid().then(|| cursor.key().to_vec()),
                expected.map(|(key, _)| key.clone())
            );
            cursor.next().unwrap();
        }
        let (mut bounded, mut seen) = (snapshot.cursor(TreeId::K), Vec::new());
        bounded.until(&b);
        let mut more = bounded.seek(&a).unwrap();
        while more {
            seen.push(bounded.key().to_vec());
            more = bounded.next().unwrap();
        }
        let between = model.range(a.clone()..).take_while(|(key, _)| **key < b);
        assert!(seen.iter().eq(between.map(|(key, _)| key)));
        cursor.seek_before(&a).unwrap();
        let mut before = model.range(..a.clone()).rev();
        for _ in 0..20 {
            let expected = before.next();
            assert_eq!(
                cursor.valid().then(|| cursor.key().to_vec()),
                expected.map(|(key, _)| key.clone())
            );
            cursor.prev().unwrap();
        }
        for (flags, value) in model
            .values()
            .filter(|(flags, _)| flags & BY_RUN != 0)
            .take(5)
        {
            assert_eq!(*flags & BY_RUN, BY_RUN);
            snapshot
                .read_run(RunRef::from_bytes(value.as_slice().try_into().unwrap()))
                .unwrap();
        }
        snapshot.check(&mut runs_by_flag).unwrap();
    }

    fn reopen(&mut self) {
        self.held.clear();
        let Run { dir, .. } = self;
        let path = dir.path().to_path_buf();
        // The old handles go first: the file has one store at a time.
        let fresh = tempfile::tempdir().unwrap();
        let (store, writer, _) = Store::open(options(fresh.path())).unwrap();
        drop(std::mem::replace(&mut self.writer, writer));
        drop(std::mem::replace(&mut self.store, store));
        let (store, writer, recovered) = Store::open(options(&path)).unwrap();
        assert!(!recovered.fell_back, "{}", recovered.report);
        self.writer = writer;
        self.store = store;
        let snapshot = self.writer.publish();
        assert_eq!(contents(&snapshot, TreeId::K), self.durable);
        self.store.check(&mut runs_by_flag).unwrap();
        self.model = self.durable.clone();
        self.published = self.durable.clone();
    }

    fn step(&mut self, rng: &mut StdRng) {
        self.step += 1;
        match rng.gen_range(0..100) {
            0..=54 => {
                for _ in 0..rng.gen_range(1..60) {
                    let key = random_key(rng, 4000);
                    self.put(rng, key);
                }
            }
            55..=79 => {
                let keys: Vec<_> = self.model.keys().cloned().collect();
                let from = rng.gen_range(0..keys.len().max(1));
                // All of some neighbours, or some among many: the one empties pages, the other thins them out.
                let step = rng.gen_range(1..4);
                let keys = keys.into_iter().skip(from).step_by(step);
                let keys = keys.take(rng.gen_range(1..120));
                keys.for_each(|key| self.remove(&key));
                self.remove(b"not there");
            }
            80..=89 => {
                let snapshot = self.writer.publish();
                self.published = self.model.clone();
                self.compare(rng, &snapshot, &self.published.clone());
                if rng.gen_ratio(1, 2) {
                    self.held.push((snapshot, self.published.clone()));
                }
                if self.held.len() > 4 {
                    let (snapshot, model) = self.held.remove(0);
                    self.compare(rng, &snapshot, &model);
                }
            }
            90..=96 => {
                if rng.gen_bool(0.5) && self.writer.checkpoint_running() {
                    return;
                }
                while self.writer.checkpoint_running() {
                    std::thread::yield_now();
                }
                let number = self.writer.checkpoint(vec![self.step as u8]).unwrap();
                self.durable = self.published.clone();
                if rng.gen_bool(0.5) {
                    self.store.wait_durable(number).unwrap();
                    self.store.check(&mut runs_by_flag).unwrap();
                    assert_eq!(*self.store.durable().user_meta, [self.step as u8]);
                }
            }
            97 => self.writer.request_shrink().unwrap(),
            _ => {
                while self.writer.checkpoint_running() {
                    std::thread::yield_now();
                }
                self.packed_bytes += self.store.stats().packed_bytes;
                self.reopen();
            }
        }
    }
}

#[test]
fn random_histories_agree_with_a_map() {
    let mut packed_bytes = 0;
    for seed in 0..env("QUORATE_SEEDS", 8) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut run = Run::new(seed % 4 != 0);
        for _ in 0..env("QUORATE_ROUNDS", 250) {
            run.step(&mut rng);
        }
        let snapshot = run.writer.publish();
        let model = run.model.clone();
        run.compare(&mut rng, &snapshot, &model);
        for (snapshot, model) in std::mem::take(&mut run.held) {
            run.compare(&mut rng, &snapshot, &model);
        }
        packed_bytes += run.packed_bytes;
    }
    assert!(packed_bytes > 0, "nothing was packed");
}

/// Everything goes in, everything goes out: the tree is empty and, two checkpoints later, so is the file.
#[test]
fn an_emptied_store_gives_all_space_back() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut run = Run::new(true);
    for _ in 0..4000 {
        let key = random_key(&mut rng, 100_000);
        run.put(&mut rng, key);
    }
    run.writer.publish();
    checkpoint(&run.store, &mut run.writer, b"full");
    let keys: Vec<_> = run.model.keys().cloned().collect();
    let full = run.store.check(&mut runs_by_flag).unwrap();
    assert_eq!(full.entries, keys.len() as u64);
    keys.iter().for_each(|key| run.remove(key));
    run.writer.request_shrink().unwrap();
    for _ in 0..6 {
        run.writer.publish();
        checkpoint(&run.store, &mut run.writer, b"empty");
    }
    let empty = run.store.check(&mut runs_by_flag).unwrap();
    assert_eq!((empty.entries, empty.pages, empty.runs), (0, 0, 0));
    let stats = run.store.stats();
    assert!(stats.in_use_bytes < 160 << 10, "{stats:?}");
    assert!(stats.allocated_bytes < 400 << 10, "{stats:?}");
    assert_eq!(
        std::fs::metadata(run.dir.path().join("tree.qdb"))
            .unwrap()
            .len(),
        stats.allocated_bytes
    );
    run.durable = Model::new();
    run.reopen();
}

/// Half of everything goes, all over the file: pages move to the front, the file shrinks, the contents stay.
#[test]
fn a_store_with_holes_is_packed() {
    let mut rng = StdRng::seed_from_u64(6);
    let mut run = Run::new(true);
    for i in 0..6000u32 {
        let key = [
            &i.wrapping_mul(2_654_435_761).to_be_bytes()[..],
            &[b'k'; 20],
        ]
        .concat();
        let flags = rng.gen_range(0..2u8);
        run.writer.insert(TreeId::K, &key, flags, &[1; 60]).unwrap();
        run.model.insert(key, (flags, vec![1; 60]));
    }
    run.writer.publish();
    checkpoint(&run.store, &mut run.writer, b"full");
    let before = run.store.stats().file_bytes;
    let keys: Vec<_> = run.model.keys().cloned().collect();
    for part in keys.chunks(40) {
        part.iter().take(36).for_each(|key| run.remove(key));
    }
    run.writer.publish();
    checkpoint(&run.store, &mut run.writer, b"holes");
    run.writer.request_shrink().unwrap();
    let mut rounds = 0;
    while run.writer.shrinking() {
        rounds += 1;
        assert!(rounds < 60, "it comes to an end");
        let snapshot = run.writer.publish();
        let model = run.model.clone();
        run.compare(&mut rng, &snapshot, &model);
        drop(snapshot);
        checkpoint(&run.store, &mut run.writer, b"packing");
        run.store.check(&mut runs_by_flag).unwrap();
    }
    let stats = run.store.stats();
    assert!(stats.file_bytes < before / 3, "{before} {stats:?}");
    assert!(
        stats.file_bytes < (stats.in_use_bytes + (128 << 10)) * 12 / 10,
        "{stats:?}"
    );
    run.durable = run.model.clone();
    run.reopen();
}
