//! The model: a list of every change ever made, searched from the end.

use bytes::Bytes;

use crate::types::{Event, EventKind, KeyRange, KeyValue, Revision};

#[derive(Clone)]
struct Change {
    rev: Revision,
    key: Bytes,
    /// None: deleted.
    kv: Option<KeyValue>,
}

#[derive(Clone)]
pub struct Model {
    changes: Vec<Change>,
    pub revision: i64,
    pub compact_revision: i64,
}

impl Model {
    pub fn new() -> Model {
        Model {
            changes: Vec::new(),
            revision: 1,
            compact_revision: -1,
        }
    }

    fn next(&self, main: i64) -> Revision {
        let sub = self.changes.iter().filter(|c| c.rev.main == main).count();
        Revision {
            main,
            sub: sub as i64,
        }
    }

    pub fn put(&mut self, main: i64, key: &Bytes, value: &Bytes, lease: i64) -> Option<KeyValue> {
        let old = self.get(key, main);
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: old.as_ref().map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease,
        };
        let rev = self.next(main);
        self.changes.push(Change {
            rev,
            key: key.clone(),
            kv: Some(kv),
        });
        old
    }

    pub fn delete(&mut self, main: i64, range: &KeyRange) -> Vec<KeyValue> {
        let gone = self.range(range, main);
        for kv in &gone {
            let rev = self.next(main);
            self.changes.push(Change {
                rev,
                key: kv.key.clone(),
                kv: None,
            });
        }
        gone
    }

    pub fn finish(&mut self, main: i64) -> i64 {
        if self.changes.last().is_some_and(|c| c.rev.main == main) {
            self.revision = main;
        }
        self.revision
    }

    /// The newest change of a key up to main revision `at`.
    fn newest(&self, key: &[u8], at: i64) -> Option<&Change> {
        self.changes
            .iter()
            .rev()
            .find(|c| c.rev.main <= at && c.key == key)
    }

    pub fn get(&self, key: &[u8], at: i64) -> Option<KeyValue> {
        self.newest(key, at)?.kv.clone()
    }

    pub fn keys(&self) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> = self.changes.iter().map(|c| c.key.clone()).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    pub fn range(&self, range: &KeyRange, at: i64) -> Vec<KeyValue> {
        self.keys()
            .iter()
            .filter(|key| range.contains(key))
            .filter_map(|key| self.get(key, at))
            .collect()
    }

    pub fn events(&self, from: i64) -> Vec<Event> {
        self.changes
            .iter()
            .enumerate()
            .filter(|(_, c)| c.rev.main >= from)
            .map(|(i, c)| {
                let before = self.changes[..i].iter().rev().find(|b| b.key == c.key);
                let readable = c.rev.main > self.compact_revision;
                Event {
                    kind: match c.kv {
                        Some(_) => EventKind::Put,
                        None => EventKind::Delete,
                    },
                    revision: c.rev,
                    kv: c.kv.clone().unwrap_or(KeyValue {
                        key: c.key.clone(),
                        mod_revision: c.rev.main,
                        ..KeyValue::default()
                    }),
                    prev: before.and_then(|b| b.kv.clone()).filter(|_| readable),
                }
            })
            .collect()
    }

    pub fn lease_keys(&self, lease: i64) -> Vec<Bytes> {
        self.range(&KeyRange::all(), self.revision)
            .into_iter()
            .filter(|kv| kv.lease == lease)
            .map(|kv| kv.key)
            .collect()
    }

    /// What an export shows: what a finished compaction leaves.
    pub fn versions(&self) -> Vec<(EventKind, Revision, KeyValue)> {
        let kept = self.changes.iter().filter(|c| {
            let newest = self.newest(&c.key, self.compact_revision);
            c.rev.main > self.compact_revision
                || c.kv.is_some() && newest.is_some_and(|n| n.rev == c.rev)
        });
        kept.map(|c| match &c.kv {
            Some(kv) => (EventKind::Put, c.rev, kv.clone()),
            None => {
                let kv = KeyValue {
                    key: c.key.clone(),
                    mod_revision: c.rev.main,
                    ..KeyValue::default()
                };
                (EventKind::Delete, c.rev, kv)
            }
        })
        .collect()
    }

    /// HashKV as the specification words it: over the bucket that a finished compaction leaves.
    pub fn hash_kv(&self, rev: i64) -> u32 {
        let compact = self.compact_revision;
        let is_newest = |c: &Change, at| self.newest(&c.key, at).is_some_and(|n| n.rev == c.rev);
        let bucket = self
            .changes
            .iter()
            .filter(|c| c.rev.main > compact || (c.kv.is_some() && is_newest(c, compact)));
        let nothing_kept = self.range(&KeyRange::all(), rev).is_empty();
        let mut crc = crc32c::crc32c(b"key");
        for c in bucket.filter(|c| c.rev.main <= rev) {
            let kept = c.kv.is_some() && is_newest(c, rev);
            if c.rev.main <= compact && !kept && !nothing_kept {
                continue;
            }
            let mut key = c.rev.main.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend(c.rev.sub.to_be_bytes());
            if c.kv.is_none() {
                key.push(b't');
            }
            crc = crc32c::crc32c_append(crc, &key);
            let kv = c.kv.clone().unwrap_or(KeyValue {
                key: c.key.clone(),
                ..KeyValue::default()
            });
            crc = crc32c::crc32c_append(crc, &encode(&kv));
        }
        crc
    }
}

/// mvccpb.KeyValue, fields in order, zero fields absent.
fn encode(kv: &KeyValue) -> Vec<u8> {
    fn varint(out: &mut Vec<u8>, mut n: u64) {
        loop {
            let low = (n & 0x7f) as u8;
            n >>= 7;
            out.push(if n == 0 { low } else { low | 0x80 });
            if n == 0 {
                return;
            }
        }
    }
    let mut out = Vec::new();
    let bytes = |out: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
        if !bytes.is_empty() {
            out.push(tag);
            varint(out, bytes.len() as u64);
            out.extend(bytes);
        }
    };
    let int = |out: &mut Vec<u8>, tag: u8, n: i64| {
        if n != 0 {
            out.push(tag);
            varint(out, n as u64);
        }
    };
    bytes(&mut out, 0x0a, &kv.key);
    int(&mut out, 0x10, kv.create_revision);
    int(&mut out, 0x18, kv.mod_revision);
    int(&mut out, 0x20, kv.version);
    bytes(&mut out, 0x2a, &kv.value);
    int(&mut out, 0x30, kv.lease);
    out
}
