//! SCAFFOLD: an in-memory imitation of the store layer's API, so that the record layer and the
//! server can be worked on before the tree is there. It keeps nothing across restarts. Removed
//! as soon as `store` works.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::types::{IoBackend, Result};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum TreeId {
    K = 0,
    E = 1,
    L = 2,
    S = 3,
}

pub const LIVE: u8 = 1;

#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub dir: std::path::PathBuf,
    pub page_bytes: usize,
    pub cache_bytes: usize,
    pub backend: IoBackend,
    pub extend_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RunRef {
    pub unit: u64,
    pub birth: u64,
    pub len: u32,
    pub crc: u32,
}

impl RunRef {
    pub fn to_bytes(self) -> [u8; 24] {
        let mut b = [0; 24];
        b[..8].copy_from_slice(&self.unit.to_le_bytes());
        b[8..16].copy_from_slice(&self.birth.to_le_bytes());
        b[16..20].copy_from_slice(&self.len.to_le_bytes());
        b[20..].copy_from_slice(&self.crc.to_le_bytes());
        b
    }
    pub fn from_bytes(b: &[u8; 24]) -> RunRef {
        RunRef {
            unit: u64::from_le_bytes(b[..8].try_into().expect("8")),
            birth: u64::from_le_bytes(b[8..16].try_into().expect("8")),
            len: u32::from_le_bytes(b[16..20].try_into().expect("4")),
            crc: u32::from_le_bytes(b[20..].try_into().expect("4")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunKind {
    Value,
    Chunk,
}

pub struct Entry {
    pub flags: u8,
    pub value: Bytes,
}

type Map = BTreeMap<Vec<u8>, (u8, Bytes)>;

#[derive(Clone, Default)]
struct State {
    trees: [Arc<Map>; 4],
    runs: Arc<BTreeMap<u64, Bytes>>,
}

#[derive(Clone)]
pub struct Durable {
    pub checkpoint: u64,
    pub user_meta: Arc<[u8]>,
}

type Callback = Box<dyn Fn(&Durable) + Send + Sync>;

struct Inner {
    durable: Mutex<Durable>,
    callbacks: Mutex<Vec<Callback>>,
}

#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub struct Recovered {
    pub checkpoint: u64,
    pub user_meta: Vec<u8>,
    pub fell_back: bool,
}

#[derive(Default)]
pub struct StoreStats {
    pub file_bytes: u64,
    pub in_use_bytes: u64,
    pub free_bytes: u64,
    pub dirty_bytes: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_bytes: u64,
}

type Kept = BTreeMap<std::path::PathBuf, (u64, Vec<u8>, State)>;
static KEPT: Mutex<Kept> = Mutex::new(BTreeMap::new());

impl Store {
    pub fn open(o: StoreOptions) -> Result<(Store, StoreWriter, Recovered)> {
        let kept = KEPT.lock().expect("lock").get(&o.dir).cloned();
        let (checkpoint, user_meta, state) = kept.unwrap_or_default();
        let store = Store(Arc::new(Inner {
            durable: Mutex::new(Durable {
                checkpoint,
                user_meta: Arc::from(&user_meta[..]),
            }),
            callbacks: Mutex::new(Vec::new()),
        }));
        let writer = StoreWriter {
            store: store.clone(),
            next_unit: state.runs.keys().next_back().copied().unwrap_or(0) + 1,
            published: state.clone(),
            state,
            dir: o.dir,
            checkpoint,
        };
        let recovered = Recovered {
            checkpoint,
            user_meta,
            fell_back: false,
        };
        Ok((store, writer, recovered))
    }
    pub fn durable(&self) -> Durable {
        self.0.durable.lock().expect("lock").clone()
    }
    pub fn wait_durable(&self, _: u64) -> Result<()> {
        Ok(())
    }
    pub fn on_durable(&self, cb: Callback) {
        self.0.callbacks.lock().expect("lock").push(cb);
    }
    pub fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

#[derive(Clone)]
pub struct Snapshot(State);

pub struct Cursor<'a> {
    map: &'a Map,
    at: Option<(&'a Vec<u8>, &'a (u8, Bytes))>,
}

impl Cursor<'_> {
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.at = self
            .map
            .range::<[u8], _>((Bound::Included(key), Bound::Unbounded))
            .next();
        Ok(())
    }
    pub fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.at = self
            .map
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key)))
            .next_back();
        Ok(())
    }
    pub fn seek_last(&mut self) -> Result<()> {
        self.at = self.map.iter().next_back();
        Ok(())
    }
    pub fn next(&mut self) -> Result<()> {
        if let Some((key, _)) = self.at {
            self.at = self
                .map
                .range::<[u8], _>((Bound::Excluded(&key[..]), Bound::Unbounded))
                .next();
        }
        Ok(())
    }
    pub fn prev(&mut self) -> Result<()> {
        if let Some((key, _)) = self.at {
            self.seek_before(&key[..])?;
        }
        Ok(())
    }
    pub fn valid(&self) -> bool {
        self.at.is_some()
    }
    pub fn key(&self) -> &[u8] {
        self.at.expect("valid").0
    }
    pub fn flags(&self) -> u8 {
        self.at.expect("valid").1.0
    }
    pub fn value(&self) -> &[u8] {
        &self.at.expect("valid").1.1
    }
}

impl State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Option<Entry> {
        let (flags, value) = self.trees[tree as usize].get(key)?;
        Some(Entry {
            flags: *flags,
            value: value.clone(),
        })
    }
    fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> u64 {
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        if let Bound::Excluded(end) = end
            && start >= end
        {
            return 0;
        }
        self.trees[tree as usize]
            .range::<[u8], _>((Bound::Included(start), end))
            .filter(|(_, v)| v.0 & LIVE != 0)
            .count() as u64
    }
}

macro_rules! reads {
    ($ty:ty, $field:tt) => {
        impl $ty {
            pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Entry>> {
                Ok(self.$field.get(tree, key))
            }
            pub fn cursor(&self, tree: TreeId) -> Cursor<'_> {
                Cursor {
                    map: &self.$field.trees[tree as usize],
                    at: None,
                }
            }
            pub fn count(&self, tree: TreeId, start: &[u8], end: Option<&[u8]>) -> Result<u64> {
                Ok(self.$field.count(tree, start, end))
            }
            pub fn read_run(&self, run: RunRef) -> Result<Bytes> {
                Ok(self.$field.runs[&run.unit].clone())
            }
        }
    };
}
reads!(Snapshot, 0);
reads!(StoreWriter, state);

pub struct StoreWriter {
    store: Store,
    state: State,
    published: State,
    dir: std::path::PathBuf,
    next_unit: u64,
    checkpoint: u64,
}

impl StoreWriter {
    pub fn insert(&mut self, tree: TreeId, key: &[u8], flags: u8, value: &[u8]) -> Result<()> {
        let map = Arc::make_mut(&mut self.state.trees[tree as usize]);
        map.insert(key.to_vec(), (flags, Bytes::copy_from_slice(value)));
        Ok(())
    }
    pub fn remove(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        let map = Arc::make_mut(&mut self.state.trees[tree as usize]);
        Ok(map.remove(key).is_some())
    }
    pub fn write_run(&mut self, _: RunKind, _: &[u8], _: [u8; 16], bytes: Bytes) -> Result<RunRef> {
        let run = RunRef {
            unit: self.next_unit,
            birth: 1,
            len: bytes.len() as u32,
            crc: 0,
        };
        self.next_unit += 1;
        Arc::make_mut(&mut self.state.runs).insert(run.unit, bytes);
        Ok(run)
    }
    pub fn free_run(&mut self, run: RunRef) -> Result<()> {
        let was = Arc::make_mut(&mut self.state.runs).remove(&run.unit);
        assert!(was.is_some(), "run freed twice");
        Ok(())
    }
    pub fn publish(&mut self) -> Snapshot {
        self.published = self.state.clone();
        Snapshot(self.state.clone())
    }
    pub fn checkpoint_running(&self) -> bool {
        false
    }
    pub fn checkpoint(&mut self, user_meta: Vec<u8>) -> Result<u64> {
        self.checkpoint += 1;
        let kept = (self.checkpoint, user_meta.clone(), self.published.clone());
        KEPT.lock().expect("lock").insert(self.dir.clone(), kept);
        let durable = Durable {
            checkpoint: self.checkpoint,
            user_meta: Arc::from(user_meta),
        };
        *self.store.0.durable.lock().expect("lock") = durable.clone();
        for cb in self.store.0.callbacks.lock().expect("lock").iter() {
            cb(&durable);
        }
        Ok(self.checkpoint)
    }
    pub fn dirty_bytes(&self) -> u64 {
        0
    }
    pub fn request_shrink(&mut self) {}
}
