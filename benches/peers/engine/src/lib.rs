//! The storage engine and its peers behind one small interface, so that each does the same work in the same run.
//!
//! What "the same" means:
//! - **Keys and values**: [`key`] and [`value`]; values do not compress.
//! - **Durability**: [`Peer::put`] returns when all of its pairs survive a power loss. redb commits with its default
//!   (`Immediate`), LMDB with its default (sync), fjall persists with `SyncAll`. Quorate is written as the product
//!   writes it: one entry of the log per put, one durable log write per batch, then the tree; its checkpoints run in
//!   the background, so the two layers are measured together.
//! - **Reads** are of one snapshot that is opened once; a read looks at the first and last byte of each value where it
//!   lies, without copying it, where the engine can do that.
//!
//! Quorate keeps what the others do not have: versions, revisions, leases and the history since the last compaction.

mod lmdb;
mod lsm;
pub mod measure;
pub mod ours;
mod redb_peer;

pub use lmdb::Lmdb;
pub use lsm::Fjall;
pub use ours::Quorate;
pub use redb_peer::Redb;

use std::path::Path;

/// Bytes of each value.
pub const VALUE_BYTES: usize = 256;

/// Memory each engine may use to keep pages, unless a figure is about less.
pub const CACHE_BYTES: usize = 1 << 30;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An engine that writes.
pub trait Peer {
    /// Its name in tables.
    fn name(&self) -> &'static str;
    /// Writes pairs in one durable commit.
    fn put(&mut self, pairs: &[Pair]);
    /// Does what writes have left to be done in the background, as far as the engine can tell.
    fn rest(&mut self) {}
    /// Brings all that was written where reads find it cheapest, and frees what nobody needs.
    fn settle(&mut self);
    /// A snapshot of now.
    fn reader(&self) -> Box<dyn Reads + '_>;
    /// Bytes of the engine's files that hold data, logs aside.
    fn file_bytes(&self) -> u64;
}

/// A snapshot to read from.
pub trait Reads {
    /// Reads one value; a word made of its ends.
    fn get(&mut self, key: &[u8]) -> Option<u64>;
    /// Reads up to `limit` pairs from `start` on; how many, and a word made of all values' ends and key lengths.
    fn range(&mut self, start: &[u8], limit: usize) -> (usize, u64);
    /// How many keys begin with `prefix`, by the cheapest way the engine has.
    fn count(&mut self, prefix: &[u8]) -> u64;
}

/// What a read of a value comes to: both ends were looked at.
pub fn ends(value: &[u8]) -> u64 {
    match value {
        [first, .., last] => u64::from(*first) << 8 | u64::from(*last),
        [one] => u64::from(*one),
        [] => 0,
    }
}

/// Key number `i`: the shape of Kubernetes' keys, 44 bytes, in an order that has nothing to do with `i`.
pub fn key(i: u64) -> Vec<u8> {
    let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "/registry/pods/namespace-{:04}/pod-{:015x}",
        mixed % 97,
        mixed >> 4
    )
    .into_bytes()
}

/// What all keys begin with.
pub const PREFIX: &[u8] = b"/registry/pods/";

/// A value that does not compress.
pub fn value(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// The first key behind all that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// Writes keys `0..n` in batches of 50,000 and settles.
pub fn load(peer: &mut dyn Peer, n: u64, value_bytes: usize) {
    let mut from = 0;
    while from < n {
        let to = n.min(from + 50_000);
        let pairs: Vec<Pair> = (from..to)
            .map(|i| (key(i), value(i, value_bytes)))
            .collect();
        peer.put(&pairs);
        from = to;
    }
    peer.settle();
}

/// Opens an engine in a directory, with a cache of so many bytes.
type Open = fn(&Path, usize) -> Box<dyn Peer>;

/// Every engine, each in a directory of its own below `dir`; those alone that `QUORATE_ENGINES` names, if it is set.
pub fn all(dir: &Path, cache_bytes: usize) -> Vec<Box<dyn Peer>> {
    let wanted = std::env::var("QUORATE_ENGINES").unwrap_or_default();
    let engines: [(&str, Open); 4] = [
        ("Quorate", |dir, cache| Box::new(Quorate::open(dir, cache))),
        ("LMDB", |dir, _| Box::new(Lmdb::open(dir))),
        ("redb", |dir, cache| Box::new(Redb::open(dir, cache))),
        ("fjall", |dir, cache| Box::new(Fjall::open(dir, cache))),
    ];
    engines
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.split(',').any(|wanted| wanted == *name))
        .map(|(name, open)| {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).expect("a directory");
            open(&dir, cache_bytes)
        })
        .collect()
}

/// Bytes of all files below a directory, by their length.
pub fn bytes_below(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() {
            bytes_below(&entry.path())
        } else {
            meta.len()
        };
    }
    bytes
}
