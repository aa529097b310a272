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
//! revision and the checksums are joined; the events are read in order anyway. K is read once
//! (in stores beyond some millions of keys once per window, so that memory stays bounded), in slices, so that nothing is
//! pinned for long when a [`LongHistory`](crate::LongHistory) is hashed.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::mvcc::long::{Slices, each_version};
use crate::record::{Live, ValueRef, put_varint};
use crate::source::{Snapshot, Source};
use crate::types::{Error, HashKv, Result, Revision};

use super::combine::Combiner;

/// Old versions held in memory at once, times two; a larger store is read in several passes.
const PIECES_MAX: usize = 2 << 20;

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

pub(crate) fn hash_kv<S: Slices>(from: &S, rev: i64) -> Result<HashKv> {
    hash_in(from, rev, PIECES_MAX)
}

/// With windows of so many pieces.
pub(crate) fn hash_in<S: Slices>(from: &S, rev: i64, pieces_max: usize) -> Result<HashKv> {
    let compact_revision = from.compact_revision();
    if rev > from.revision() {
        return Err(Error::Future);
    }
    if rev > 0 && rev < compact_revision {
        return Err(Error::Compacted);
    }
    let hash_revision = if rev == 0 { from.revision() } else { rev };
    let mut crc = crc32c::crc32c(b"key");
    if hash_revision > 0 {
        let mut old = OldVersions {
            from,
            compact: compact_revision,
            pieces_max,
        };
        let (joined, any_live) = old.add(hash_revision, crc)?;
        crc = joined;
        if !any_live {
            crc = old.add(compact_revision, crc)?.0;
        }
        crc = add_events(from, compact_revision, hash_revision, crc)?;
    }
    Ok(HashKv {
        hash: crc,
        compact_revision,
        hash_revision,
    })
}

/// Feeds versions at or below the compact revision, in windows of bounded memory.
struct OldVersions<'r, S> {
    from: &'r S,
    compact: i64,
    pieces_max: usize,
}

impl<S: Slices> OldVersions<'_, S> {
    /// Feeds the versions live at `at`; answers the checksum and whether any key is live then.
    fn add(&mut self, at: i64, mut crc: u32) -> Result<(u32, bool)> {
        let mut any_live = false;
        if at <= 0 {
            return Ok((crc, any_live));
        }
        let mut combiner = Combiner::new();
        let mut behind = Revision::default();
        loop {
            let mut window = Window::new(behind, self.pieces_max);
            any_live |= self.collect(at, &mut window)?;
            let (pieces, cut) = window.finish();
            for piece in &pieces {
                crc = combiner.join(crc, piece.crc, piece.len);
            }
            match pieces.last() {
                Some(last) if cut => behind = last.rev,
                _ => return Ok((crc, any_live)),
            }
        }
    }

    /// One pass over K.
    fn collect(&self, at: i64, window: &mut Window) -> Result<bool> {
        let mut any_live = false;
        let mut scratch = Scratch::default();
        each_version(self.from, at, &mut |src, key, rev, live| {
            any_live = true;
            if rev.main <= self.compact && window.takes(rev) {
                let (crc, len) = scratch.put(src, rev, key, live, 0)?;
                window.push(Piece { rev, crc, len });
            }
            Ok(())
        })?;
        Ok(any_live)
    }
}

/// The pieces with the lowest revisions above a bound, so many at most.
struct Window {
    behind: Revision,
    /// Pieces above this were cut away.
    upto: Option<Revision>,
    pieces: Vec<Piece>,
    pieces_max: usize,
}

impl Window {
    fn new(behind: Revision, pieces_max: usize) -> Window {
        Window {
            behind,
            upto: None,
            pieces: Vec::new(),
            pieces_max,
        }
    }

    fn takes(&self, rev: Revision) -> bool {
        rev > self.behind && self.upto.is_none_or(|upto| rev <= upto)
    }

    fn push(&mut self, piece: Piece) {
        self.pieces.push(piece);
        if self.pieces.len() >= 2 * self.pieces_max {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let last = self.pieces_max - 1;
        let (_, kept, _) = self.pieces.select_nth_unstable_by_key(last, |p| p.rev);
        self.upto = Some(kept.rev);
        self.pieces.truncate(self.pieces_max);
    }

    /// The pieces in order, and whether there are more above them.
    fn finish(mut self) -> (Vec<Piece>, bool) {
        if self.pieces.len() > self.pieces_max {
            self.cut();
        }
        self.pieces.sort_unstable_by_key(|piece| piece.rev);
        (self.pieces, self.upto.is_some())
    }
}

/// Feeds the events in (`after`, `upto`].
fn add_events<S: Slices>(from: &S, after: i64, upto: i64, mut crc: u32) -> Result<u32> {
    let mut scratch = Scratch::default();
    let mut place = Some(Revision {
        main: after + 1,
        sub: 0,
    });
    while let Some(next) = place {
        place = from.slice(|reader| {
            reader.changes(next, upto, from.bounds(), &mut |event| {
                crc = match &event.new {
                    Some(live) => scratch.put(reader.src, event.rev, event.key, live, crc)?.0,
                    None => scratch.tombstone(event.rev, event.key, crc),
                };
                Ok(ControlFlow::Continue(()))
            })
        })?;
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_all_in_order() {
        let all: Vec<i64> = (1..200).map(|i| i * 7919 % 1009 + 1).collect();
        let mut seen = Vec::new();
        let mut behind = Revision::default();
        loop {
            let mut window = Window::new(behind, 7);
            for main in &all {
                let rev = Revision {
                    main: *main,
                    sub: 0,
                };
                if window.takes(rev) {
                    window.push(Piece {
                        rev,
                        crc: 0,
                        len: 0,
                    });
                }
            }
            let (pieces, cut) = window.finish();
            assert!(pieces.len() <= 7);
            seen.extend(pieces.iter().map(|p| p.rev.main));
            if !cut {
                break;
            }
            behind = pieces.last().expect("a full window").rev;
        }
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(seen, sorted);
    }
}
