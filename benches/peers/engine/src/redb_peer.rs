//! redb.

use std::path::{Path, PathBuf};

use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use crate::{Pair, Peer, Reads, ends, prefix_end};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("kv");

pub struct Redb {
    db: Database,
    file: PathBuf,
}

impl Redb {
    pub fn open(dir: &Path, cache_bytes: usize) -> Redb {
        let file = dir.join("redb");
        let db = Database::builder()
            .set_cache_size(cache_bytes)
            .create(&file)
            .expect("opens");
        let txn = db.begin_write().expect("begins");
        txn.open_table(TABLE).expect("creates");
        txn.commit().expect("commits");
        Redb { db, file }
    }

    /// Takes keys out in one commit.
    pub fn remove(&mut self, keys: &[Vec<u8>]) {
        let txn = self.db.begin_write().expect("begins");
        {
            let mut table = txn.open_table(TABLE).expect("opens");
            for key in keys {
                table.remove(&key[..]).expect("removes");
            }
        }
        txn.commit().expect("commits");
    }

    /// redb's own defragmentation; nobody may read meanwhile.
    pub fn compact(&mut self) {
        while self.db.compact().expect("compacts") {}
    }
}

impl Peer for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn put(&mut self, pairs: &[Pair]) {
        let txn = self.db.begin_write().expect("begins");
        {
            let mut table = txn.open_table(TABLE).expect("opens");
            for (key, value) in pairs {
                table.insert(&key[..], &value[..]).expect("inserts");
            }
        }
        txn.commit().expect("commits");
    }

    fn settle(&mut self) {}

    fn reader(&self) -> Box<dyn Reads + '_> {
        let txn = self.db.begin_read().expect("begins");
        Box::new(Reader(txn.open_table(TABLE).expect("opens")))
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.file).expect("exists").len()
    }
}

struct Reader(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Reads for Reader {
    fn get(&mut self, key: &[u8]) -> Option<u64> {
        self.0.get(key).expect("reads").map(|v| ends(v.value()))
    }

    fn range(&mut self, start: &[u8], limit: usize) -> (usize, u64) {
        let (mut n, mut word) = (0, 0u64);
        for pair in self.0.range(start..).expect("seeks").take(limit) {
            let (key, value) = pair.expect("reads");
            n += 1;
            word = word.wrapping_add(ends(value.value()) + key.value().len() as u64);
        }
        (n, word)
    }

    fn count(&mut self, prefix: &[u8]) -> u64 {
        let end = prefix_end(prefix);
        self.0.range(prefix..&end[..]).expect("seeks").count() as u64
    }
}
