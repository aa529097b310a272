//! fjall, a log-structured merge tree.

use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use crate::{Pair, Peer, Reads, bytes_below, ends};

pub struct Fjall {
    db: Database,
    keys: Keyspace,
    dir: PathBuf,
}

impl Fjall {
    pub fn open(dir: &Path, cache_bytes: usize) -> Fjall {
        let db = Database::builder(dir)
            .cache_size(cache_bytes as u64)
            .open()
            .expect("opens");
        let keys = db
            .keyspace("kv", KeyspaceCreateOptions::default)
            .expect("creates");
        Fjall {
            db,
            keys,
            dir: dir.to_path_buf(),
        }
    }
}

impl Peer for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn put(&mut self, pairs: &[Pair]) {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        for (key, value) in pairs {
            batch.insert(&self.keys, &key[..], &value[..]);
        }
        batch.commit().expect("commits");
    }

    fn settle(&mut self) {
        self.keys.rotate_memtable_and_wait().expect("flushes");
        self.keys.major_compact().expect("compacts");
    }

    fn reader(&self) -> Box<dyn Reads + '_> {
        Box::new(Reader {
            snapshot: self.db.snapshot(),
            keys: &self.keys,
        })
    }

    fn file_bytes(&self) -> u64 {
        bytes_below(&self.dir)
    }
}

struct Reader<'a> {
    snapshot: Snapshot,
    keys: &'a Keyspace,
}

impl Reads for Reader<'_> {
    fn get(&mut self, key: &[u8]) -> Option<u64> {
        self.snapshot
            .get(self.keys, key)
            .expect("reads")
            .map(|value| ends(&value))
    }

    fn range(&mut self, start: &[u8], limit: usize) -> (usize, u64) {
        let (mut n, mut word) = (0, 0u64);
        for guard in self.snapshot.range(self.keys, start..).take(limit) {
            let (key, value) = guard.into_inner().expect("reads");
            n += 1;
            word = word.wrapping_add(ends(&value) + key.len() as u64);
        }
        (n, word)
    }

    fn count(&mut self, prefix: &[u8]) -> u64 {
        self.snapshot.prefix(self.keys, prefix).count() as u64
    }
}
