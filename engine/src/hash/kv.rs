//! HashKV: etcd's checksum over its revision-ordered bucket, computed from our layout.
//!
//! etcd feeds a CRC-32C with the bucket's name `key` and then, in revision order, with key and
//! value of each bucket entry that counts at `rev`. Which entries count, for compact revision C:
//!
//! - every event in (C, rev], tombstones too;
//! - of the older ones, the versions that are live at `rev`; but if no key at all is live at
//!   `rev`, those that are live at C.
//!
//! The old ones come out of K in key order, so each is hashed alone, the list is sorted by
//! revision and the checksums are joined; the events are read in order anyway. K is read once.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::events::scan::ChunkCache;
use crate::mvcc::View;
use crate::mvcc::reader::Reader;
use crate::record::{Live, ValueRef, decode_record, put_varint};
use crate::source::{Snapshot, Source, TreeId};
use crate::types::{Error, HashKv, Result, Revision};

use super::combine::Combiner;

/// One entry of etcd's bucket, hashed alone.
struct Piece {
    rev: Revision,
    crc: u32,
    len: u64,
}

/// Where an entry's bytes are put together for hashing.
#[derive(Default)]
struct Scratch(Vec<u8>);

impl Scratch {
    /// Hashes the bucket entry of a live version.
    fn put(
        &mut self,
        src: &Snapshot,
        rev: Revision,
        key: &[u8],
        live: &Live<'_>,
        crc: u32,
    ) -> Result<(u32, u64)> {
        self.bucket_key(rev);
        let out = &mut self.0;
        bytes_field(out, 1, key);
        int_field(out, 2, live.create);
        int_field(out, 3, rev.main);
        int_field(out, 4, live.version);
        let run: Bytes;
        let value = match live.value {
            ValueRef::Inline(bytes) => bytes,
            ValueRef::Run(at) => {
                run = Source::read_run(src, at)?;
                &run
            }
        };
        bytes_field(out, 5, value);
        int_field(out, 6, live.lease);
        Ok((crc32c::crc32c_append(crc, out), out.len() as u64))
    }

    /// Hashes the bucket entry of a tombstone.
    fn tombstone(&mut self, rev: Revision, key: &[u8], crc: u32) -> u32 {
        self.bucket_key(rev);
        self.0.push(b't');
        bytes_field(&mut self.0, 1, key);
        crc32c::crc32c_append(crc, &self.0)
    }

    fn bucket_key(&mut self, rev: Revision) {
        self.0.clear();
        self.0.extend_from_slice(&(rev.main as u64).to_be_bytes());
        self.0.push(b'_');
        self.0.extend_from_slice(&(rev.sub as u64).to_be_bytes());
    }
}

/// A length-delimited protobuf field; absent when empty.
fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(number << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// A protobuf int64 field; absent when 0.
fn int_field(out: &mut Vec<u8>, number: u8, n: i64) {
    if n != 0 {
        out.push(number << 3);
        put_varint(out, n as u64);
    }
}

pub(crate) fn hash_kv(view: &View, rev: i64) -> Result<HashKv> {
    let reader = view.reader();
    let compact_revision = view.compact_revision();
    if rev > view.revision() {
        return Err(Error::Future);
    }
    if rev > 0 && rev < compact_revision {
        return Err(Error::Compacted);
    }
    let hash_revision = if rev == 0 { view.revision() } else { rev };
    let mut crc = crc32c::crc32c(b"key");
    if hash_revision > 0 {
        let (mut old, any_live) = old_pieces(&reader, hash_revision, compact_revision)?;
        if !any_live {
            old = old_pieces(&reader, compact_revision, compact_revision)?.0;
        }
        old.sort_unstable_by_key(|piece| piece.rev);
        let mut combiner = Combiner::new();
        for piece in old {
            crc = combiner.join(crc, piece.crc, piece.len);
        }
        crc = add_events(&reader, compact_revision, hash_revision, crc)?;
    }
    Ok(HashKv {
        hash: crc,
        compact_revision,
        hash_revision,
    })
}

/// The versions live at `at` that are not newer than `compact`, in key order, and whether any
/// key is live at `at`.
fn old_pieces(reader: &Reader<'_, Snapshot>, at: i64, compact: i64) -> Result<(Vec<Piece>, bool)> {
    let mut pieces = Vec::new();
    let mut any_live = false;
    if at <= 0 {
        return Ok((pieces, any_live));
    }
    let mut scratch = Scratch::default();
    let mut cache = ChunkCache::default();
    let newest = at == reader.revision;
    let mut cursor = Source::cursor(reader.src, TreeId::K, newest);
    cursor.seek(&[])?;
    while cursor.valid() {
        let key = cursor.key();
        let record = decode_record(cursor.flags(), cursor.value())?;
        let older;
        let found = if record.rev.main <= at {
            record.live.map(|live| (record.rev, live))
        } else {
            older = reader
                .history()
                .version_at(key, record.rev, at, &mut cache)?;
            older.as_ref().map(|old| (old.rev, old.live()))
        };
        if let Some((rev, live)) = found {
            any_live = true;
            if rev.main <= compact {
                let (crc, len) = scratch.put(reader.src, rev, key, &live, 0)?;
                pieces.push(Piece { rev, crc, len });
            }
        }
        cursor.next()?;
    }
    Ok((pieces, any_live))
}

/// Feeds the events in (`after`, `upto`].
fn add_events(reader: &Reader<'_, Snapshot>, after: i64, upto: i64, mut crc: u32) -> Result<u32> {
    let mut scratch = Scratch::default();
    let from = Revision {
        main: after + 1,
        sub: 0,
    };
    reader.history().scan(from, |event, _| {
        if event.rev.main > upto {
            return Ok(ControlFlow::Break(()));
        }
        crc = match &event.new {
            Some(live) => scratch.put(reader.src, event.rev, event.key, live, crc)?.0,
            None => scratch.tombstone(event.rev, event.key, crc),
        };
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(crc)
}
