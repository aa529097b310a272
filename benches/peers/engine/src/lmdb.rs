//! LMDB, through heed.

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvOpenOptions, RoTxn, WithTls};

use crate::{Pair, Peer, Reads, ends};

pub struct Lmdb {
    env: Env<WithTls>,
    db: Database<Bytes, Bytes>,
}

impl Lmdb {
    pub fn open(dir: &Path) -> Lmdb {
        let mut options = EnvOpenOptions::new();
        options.map_size(64 << 30);
        // SAFETY: the directory is this process's own and opened once; nobody else changes the file.
        let env = unsafe { options.open(dir) }.expect("opens");
        let mut txn = env.write_txn().expect("begins");
        let db = env.create_database(&mut txn, None).expect("creates");
        txn.commit().expect("commits");
        Lmdb { env, db }
    }

    /// Takes keys out in one commit.
    pub fn remove(&mut self, keys: &[Vec<u8>]) {
        let mut txn = self.env.write_txn().expect("begins");
        for key in keys {
            self.db.delete(&mut txn, key).expect("deletes");
        }
        txn.commit().expect("commits");
    }
}

impl Peer for Lmdb {
    fn name(&self) -> &'static str {
        "LMDB"
    }

    fn put(&mut self, pairs: &[Pair]) {
        let mut txn = self.env.write_txn().expect("begins");
        for (key, value) in pairs {
            self.db.put(&mut txn, key, value).expect("puts");
        }
        txn.commit().expect("commits");
    }

    fn settle(&mut self) {}

    fn reader(&self) -> Box<dyn Reads + '_> {
        Box::new(Reader {
            txn: self.env.read_txn().expect("begins"),
            db: self.db,
        })
    }

    fn file_bytes(&self) -> u64 {
        self.env.real_disk_size().expect("asks")
    }
}

struct Reader<'a> {
    txn: RoTxn<'a, WithTls>,
    db: Database<Bytes, Bytes>,
}

impl Reads for Reader<'_> {
    fn get(&mut self, key: &[u8]) -> Option<u64> {
        self.db.get(&self.txn, key).expect("reads").map(ends)
    }

    fn range(&mut self, start: &[u8], limit: usize) -> (usize, u64) {
        let (mut n, mut word) = (0, 0u64);
        let from = (std::ops::Bound::Included(start), std::ops::Bound::Unbounded);
        for pair in self.db.range(&self.txn, &from).expect("seeks").take(limit) {
            let (key, value) = pair.expect("reads");
            n += 1;
            word = word.wrapping_add(ends(value) + key.len() as u64);
        }
        (n, word)
    }

    fn count(&mut self, prefix: &[u8]) -> u64 {
        self.db
            .prefix_iter(&self.txn, prefix)
            .expect("seeks")
            .count() as u64
    }
}
