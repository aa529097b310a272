//! HashKV against a history that etcd wrote and hashed itself.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use engine::{
    Applied, Budget, CompactProgress, Engine, Error, KeyRange, KeyValue, Options, Writer,
};

const FIXTURE: &str = include_str!("fixtures/etcd-history.txt");

struct Row {
    sub: i64,
    tombstone: bool,
    kv: KeyValue,
}

struct Hash {
    rev: i64,
    hash: u32,
    compact_revision: i64,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
        .collect()
}

/// Decodes an mvccpb.KeyValue.
fn key_value(bytes: &[u8]) -> KeyValue {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return n;
            }
        }
    }
    let mut rest = bytes;
    let mut kv = KeyValue::default();
    while !rest.is_empty() {
        let tag = varint(&mut rest);
        let n = varint(&mut rest);
        let mut field = || {
            let (head, tail) = rest.split_at(n as usize);
            rest = tail;
            Bytes::copy_from_slice(head)
        };
        match tag {
            0x0a => kv.key = field(),
            0x10 => kv.create_revision = n as i64,
            0x18 => kv.mod_revision = n as i64,
            0x20 => kv.version = n as i64,
            0x2a => kv.value = field(),
            0x30 => kv.lease = n as i64,
            other => panic!("unknown field {other:#x}"),
        }
    }
    kv
}

fn fixture() -> (BTreeMap<i64, Vec<Row>>, Vec<Hash>) {
    let mut rows: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
    let mut hashes = Vec::new();
    for line in FIXTURE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "row" => {
                let key = hex(words[1]);
                let int = |at: usize| i64::from_be_bytes(key[at..at + 8].try_into().expect("8"));
                rows.entry(int(0)).or_default().push(Row {
                    sub: int(9),
                    tombstone: key.len() == 18,
                    kv: key_value(&hex(words[2])),
                });
            }
            "hash" => hashes.push(Hash {
                rev: words[1].parse().expect("number"),
                hash: words[2].parse().expect("number"),
                compact_revision: words[3].parse().expect("number"),
            }),
            other => panic!("unknown line {other}"),
        }
    }
    (rows, hashes)
}

fn replay(writer: &mut Writer, rows: &BTreeMap<i64, Vec<Row>>) {
    for (main, changes) in rows {
        let mut txn = writer.txn();
        for (i, row) in changes.iter().enumerate() {
            assert_eq!(row.sub, i as i64);
            let kv = &row.kv;
            if row.tombstone {
                let gone = txn.delete_range(&KeyRange::One(kv.key.clone()), false);
                assert_eq!(gone.expect("deletes").0, 1);
            } else {
                txn.put(kv.key.clone(), kv.value.clone(), kv.lease)
                    .expect("puts");
                assert_eq!(txn.get(&kv.key).expect("reads").as_ref(), Some(kv));
            }
        }
        assert_eq!(txn.finish(), *main);
    }
}

#[test]
fn equals_etcd_at_every_recorded_revision() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path());
    options.chunk_bytes = 1024;
    let (engine, mut writer) = Engine::open(options).expect("opens");
    let (rows, hashes) = fixture();
    replay(&mut writer, &rows);
    let before = writer.publish(Applied { index: 1, term: 1 }, b"").view;
    writer.checkpoint().expect("starts");
    writer.compact(100).expect("compacts");
    let logical = writer.publish(Applied { index: 2, term: 1 }, b"").view;
    while writer.compact_step(Budget::default()).expect("steps") == CompactProgress::More {}
    let physical = writer.publish(Applied { index: 2, term: 1 }, b"").view;
    assert_eq!(physical.compact_done(), 100);
    engine.check(&physical).expect("sound");
    assert_eq!(hashes.len(), 6);
    for expected in &hashes {
        let views = match expected.compact_revision {
            -1 => vec![&before],
            _ => vec![&logical, &physical],
        };
        for view in views {
            let got = view.hash_kv(expected.rev).expect("hashes");
            assert_eq!(got.hash, expected.hash, "at {}", expected.rev);
            assert_eq!(got.compact_revision, expected.compact_revision);
            let rev = if expected.rev == 0 { 238 } else { expected.rev };
            assert_eq!(got.hash_revision, rev);
        }
    }
    assert!(matches!(physical.hash_kv(99), Err(Error::Compacted)));
    assert!(matches!(physical.hash_kv(239), Err(Error::Future)));
    assert_eq!(physical.hash_kv(-3).expect("hashes").hash_revision, -3);
    let mut events = 0;
    physical
        .events(100, usize::MAX, &mut |_| {
            events += 1;
            ControlFlow::Continue(())
        })
        .expect("reads");
    let expected: usize = rows.range(100..).map(|(_, rows)| rows.len()).sum();
    assert_eq!(events, expected);
}
