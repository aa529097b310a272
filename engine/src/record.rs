//! How one version of a key is written down, in K and inside events.
//!
//! A K entry holds the newest version of its key, a tombstone included, until compaction drops
//! the tombstone. Layout (all numbers LEB128 varints):
//!
//! ```text
//! main, sub, depth, { main - anchor.main, anchor.sub } x levels(depth)
//! live only: main - create, version, zigzag(lease), then the value: the rest, or a run reference
//! ```
//!
//! `depth` counts the changes of this key since its K entry appeared, across deletes and
//! re-creations. Anchor `l` (from 1) is the revision of the change at depth
//! `depth - depth % 4^l`; there are at most 12. They let a read at an old revision jump: from any change the oldest
//! anchor newer than the wanted revision, else one step back, so a key with a million changes
//! costs some forty steps instead of a million.
//!
//! Invariants:
//! 1. Flag LIVE (bit 0 of the entry) is set exactly for live versions; the store counts those.
//! 2. Flag RUN (bit 1) is set exactly when the value is in a run of its own.
//! 3. An anchor is never newer than the version that carries it.
//!
//! Bytes from disk are untrusted: every decoder returns `Corrupt` rather than reading past its
//! input.

use bytes::Bytes;

use crate::types::{Error, Result, Revision};

use crate::source::RunRef;

/// Entry flag: the value is in a run, the entry ends in its reference.
pub(crate) const RUN: u8 = 2;

const RUN_REF_BYTES: usize = 24;
/// log4 of the fan-out of the anchor levels.
const LEVEL_BITS: u32 = 2;
/// Enough for steps of 16 million changes; beyond that a walk takes several of those.
const LEVELS_MAX: usize = 12;

/// Where the bytes of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueRef<'a> {
    Inline(&'a [u8]),
    Run(RunRef),
}

/// A live version, revision aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live<'a> {
    pub create: i64,
    pub version: i64,
    pub lease: i64,
    pub value: ValueRef<'a>,
}

/// A version as K holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub rev: Revision,
    pub links: Links<'a>,
    /// None: a tombstone.
    pub live: Option<Live<'a>>,
}

/// Depth and encoded anchors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links<'a> {
    pub depth: u64,
    /// `levels(depth)` pairs of varints.
    raw: &'a [u8],
}

/// The anchors of a new version, in owned form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchors {
    pub depth: u64,
    at: [Revision; LEVELS_MAX],
}

fn levels(depth: u64) -> usize {
    if depth == 0 {
        return 0;
    }
    LEVELS_MAX.min(((63 - depth.leading_zeros()) / LEVEL_BITS) as usize)
}

impl Anchors {
    /// Of the first change of a key that K does not hold.
    pub(crate) fn first() -> Anchors {
        Anchors {
            depth: 0,
            at: [Revision::default(); LEVELS_MAX],
        }
    }

    /// Of the change at `rev` that follows `old`.
    pub(crate) fn after(old: &Record<'_>, rev: Revision) -> Result<Anchors> {
        let mut next = Anchors::first();
        next.depth = old.links.depth + 1;
        let mut level = 0;
        old.links.each(old.rev, |anchor| {
            next.at[level] = anchor;
            level += 1;
            false
        })?;
        for l in 0..levels(next.depth) {
            if next
                .depth
                .is_multiple_of(1 << (LEVEL_BITS * (l as u32 + 1)))
            {
                next.at[l] = rev;
            }
        }
        Ok(next)
    }

    /// Appends depth and anchors for a version at `rev`.
    pub(crate) fn encode(&self, rev: Revision, out: &mut Vec<u8>) {
        put_varint(out, self.depth);
        for anchor in &self.at[..levels(self.depth)] {
            put_varint(out, (rev.main - anchor.main) as u64);
            put_varint(out, anchor.sub as u64);
        }
    }
}

impl Links<'_> {
    /// Calls `f` for every anchor, newest first, until it answers true.
    fn each(&self, rev: Revision, mut f: impl FnMut(Revision) -> bool) -> Result<()> {
        let mut dec = Decoder::new(self.raw);
        for _ in 0..levels(self.depth) {
            let anchor = Revision {
                main: dec.main_before(rev.main)?,
                sub: dec.int()?,
            };
            if f(anchor) {
                break;
            }
        }
        Ok(())
    }

    /// The oldest anchor with `main > at`, if that is older than `rev` itself.
    pub(crate) fn jump(&self, rev: Revision, at: i64) -> Result<Option<Revision>> {
        let mut best = None;
        self.each(rev, |anchor| {
            if anchor.main <= at {
                return true;
            }
            if anchor < rev {
                best = Some(anchor);
            }
            false
        })?;
        Ok(best)
    }
}

/// The owner written into the run of a value, beside the key.
pub(crate) fn value_owner(rev: Revision) -> [u8; 16] {
    let mut owner = [0; 16];
    owner[..8].copy_from_slice(&(rev.main as u64).to_be_bytes());
    owner[8..].copy_from_slice(&(rev.sub as u64).to_be_bytes());
    owner
}

/// Encodes a K entry's value; the flags to store with it are returned.
pub(crate) fn encode_record(
    rev: Revision,
    anchors: &Anchors,
    live: Option<&Live<'_>>,
    out: &mut Vec<u8>,
) -> u8 {
    put_varint(out, rev.main as u64);
    put_varint(out, rev.sub as u64);
    anchors.encode(rev, out);
    let Some(live) = live else { return 0 };
    encode_live_head(rev.main, live, out);
    match live.value {
        ValueRef::Inline(bytes) => {
            out.extend_from_slice(bytes);
            crate::source::LIVE
        }
        ValueRef::Run(run) => {
            out.extend_from_slice(&run.to_bytes());
            crate::source::LIVE | RUN
        }
    }
}

/// Decodes a K entry.
#[inline]
pub(crate) fn decode_record(flags: u8, bytes: &[u8]) -> Result<Record<'_>> {
    Decoder::new(bytes).try_record(flags).ok_or_else(short)
}

/// create, version and lease of a version at `main`.
pub(crate) fn encode_live_head(main: i64, live: &Live<'_>, out: &mut Vec<u8>) {
    put_varint(out, (main - live.create) as u64);
    put_varint(out, live.version as u64);
    put_varint(out, zigzag(live.lease));
}

/// A value with its length, as events carry it.
pub(crate) fn encode_sized_value(value: &ValueRef<'_>, out: &mut Vec<u8>) {
    match value {
        ValueRef::Inline(bytes) => {
            put_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        ValueRef::Run(run) => out.extend_from_slice(&run.to_bytes()),
    }
}

/// A value detached from where it was read.
#[derive(Clone, Debug)]
pub(crate) enum OwnedValue {
    Bytes(Bytes),
    Run(RunRef),
}

impl ValueRef<'_> {
    /// Copies inline bytes; `home`, if the bytes lie in it, is sliced instead.
    pub(crate) fn to_owned_in(self, home: Option<&Bytes>) -> OwnedValue {
        match self {
            ValueRef::Run(run) => OwnedValue::Run(run),
            ValueRef::Inline(bytes) => OwnedValue::Bytes(match home {
                Some(home) => home.slice_ref(bytes),
                None => Bytes::copy_from_slice(bytes),
            }),
        }
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

/// A bounds-checked reader of untrusted bytes.
///
/// Every scan decodes a record per key: the steps answer with an `Option`, which fits registers, and only the outermost
/// call makes an error of it.
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Decoder { rest }
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        self.try_byte().ok_or_else(short)
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        self.try_varint().ok_or_else(short)
    }

    /// A non-negative `i64`, small enough that counting on from it cannot overflow.
    pub(crate) fn int(&mut self) -> Result<i64> {
        self.try_int().ok_or_else(short)
    }

    /// A revision stored as its distance below `main`.
    pub(crate) fn main_before(&mut self, main: i64) -> Result<i64> {
        self.try_main_before(main).ok_or_else(short)
    }

    pub(crate) fn links(&mut self) -> Result<Links<'a>> {
        self.try_links().ok_or_else(short)
    }

    pub(crate) fn live_head(&mut self, main: i64) -> Result<(i64, i64, i64)> {
        self.try_live_head(main).ok_or_else(short)
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn sized(&mut self) -> Result<&'a [u8]> {
        let n = usize::try_from(self.varint()?).map_err(|_| short())?;
        self.take(n)
    }

    pub(crate) fn run(&mut self) -> Result<RunRef> {
        run_ref(self.take(RUN_REF_BYTES)?)
    }

    /// Bytes not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    fn try_byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
    fn try_varint(&mut self) -> Option<u64> {
        match self.try_byte()? {
            b @ 0..0x80 => Some(u64::from(b)),
            b => self.try_varint_after(b),
        }
    }

    /// The rest of a varint of more than one byte.
    #[inline]
    fn try_varint_after(&mut self, first: u8) -> Option<u64> {
        let mut v = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let b = self.try_byte()?;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(v);
            }
        }
        None
    }

    #[inline]
    fn try_int(&mut self) -> Option<i64> {
        let n = self.try_varint()?;
        (n < 1 << 62).then_some(n as i64)
    }

    #[inline]
    fn try_main_before(&mut self, main: i64) -> Option<i64> {
        let before = main.checked_sub(self.try_int()?)?;
        (before >= 0).then_some(before)
    }

    #[inline]
    fn try_links(&mut self) -> Option<Links<'a>> {
        let depth = self.try_int()? as u64;
        let from = self.rest;
        for _ in 0..2 * levels(depth) {
            self.try_varint()?;
        }
        Some(Links {
            depth,
            raw: &from[..from.len() - self.rest.len()],
        })
    }

    #[inline]
    fn try_live_head(&mut self, main: i64) -> Option<(i64, i64, i64)> {
        Some((
            self.try_main_before(main)?,
            self.try_int()?,
            unzigzag(self.try_varint()?),
        ))
    }

    #[inline]
    fn try_record(&mut self, flags: u8) -> Option<Record<'a>> {
        let rev = Revision {
            main: self.try_int()?,
            sub: self.try_int()?,
        };
        let links = self.try_links()?;
        let live = if flags & crate::source::LIVE == 0 {
            None
        } else {
            let (create, version, lease) = self.try_live_head(rev.main)?;
            let value = if flags & RUN != 0 {
                let head: &[u8; RUN_REF_BYTES] = self.rest.first_chunk()?;
                ValueRef::Run(RunRef::from_bytes(head))
            } else {
                ValueRef::Inline(self.rest)
            };
            Some(Live {
                create,
                version,
                lease,
                value,
            })
        };
        Some(Record { rev, links, live })
    }
}

/// Reads the reference that fills `bytes`.
pub(crate) fn run_ref(bytes: &[u8]) -> Result<RunRef> {
    let bytes: &[u8; RUN_REF_BYTES] = bytes.try_into().map_err(|_| short())?;
    Ok(RunRef::from_bytes(bytes))
}

#[cold]
fn short() -> Error {
    Error::Corrupt("a stored record ends early or holds an impossible number".into())
}

impl Live<'_> {
    /// Length of the value, wherever it is.
    pub(crate) fn value_bytes(&self) -> usize {
        match self.value {
            ValueRef::Inline(bytes) => bytes.len(),
            ValueRef::Run(run) => run.len as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn at(main: i64, sub: i64) -> Revision {
        Revision { main, sub }
    }

    #[test]
    fn golden_bytes() {
        let live = Live {
            create: 298,
            version: 3,
            lease: -1,
            value: ValueRef::Inline(b"v"),
        };
        let mut anchors = Anchors::first();
        anchors.depth = 4;
        anchors.at[0] = at(299, 1);
        let mut out = Vec::new();
        assert_eq!(
            encode_record(at(300, 2), &anchors, Some(&live), &mut out),
            1
        );
        // main 300, sub 2, depth 4, anchor 300-1.1, create 300-2, version 3, lease -1, value
        assert_eq!(out, [0xac, 0x02, 2, 4, 1, 1, 2, 3, 1, b'v']);
        let back = decode_record(1, &out).expect("own bytes");
        assert_eq!((back.rev, back.live), (at(300, 2), Some(live)));
        out.clear();
        assert_eq!(
            encode_record(at(5, 0), &Anchors::first(), None, &mut out),
            0
        );
        assert_eq!(out, [5, 0, 0]);
        assert_eq!(decode_record(0, &out).expect("own bytes").live, None);
    }

    /// Builds a chain of changes and checks every anchor against its definition.
    #[test]
    fn anchors_are_where_they_should_be() {
        let rev = |depth: u64| at(10 + depth as i64 / 2, depth as i64 % 2);
        let mut bytes = Vec::new();
        encode_record(rev(0), &Anchors::first(), None, &mut bytes);
        for depth in 1..5000u64 {
            let old = decode_record(0, &bytes).expect("own bytes");
            let anchors = Anchors::after(&old, rev(depth)).expect("sound");
            let mut next = Vec::new();
            encode_record(rev(depth), &anchors, None, &mut next);
            bytes = next;
            let links = decode_record(0, &bytes).expect("own bytes").links;
            let mut seen = Vec::new();
            links
                .each(rev(depth), |anchor| {
                    seen.push(anchor);
                    false
                })
                .expect("own bytes");
            let expected: Vec<Revision> = (1..32)
                .map(|level| 4u64.pow(level))
                .take_while(|step| *step <= depth)
                .map(|step| rev(depth - depth % step))
                .collect();
            assert_eq!(seen, expected, "at depth {depth}");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut decoded = 0;
        for _ in 0..50_000 {
            let mut bytes = vec![0; rng.gen_range(0..40)];
            rng.fill(&mut bytes[..]);
            if rng.gen_bool(0.5) {
                bytes.iter_mut().for_each(|b| *b &= 0x83);
            }
            if let Ok(record) = decode_record(rng.gen_range(0..4), &bytes) {
                decoded += 1;
                let _ = record.links.jump(record.rev, 1);
                let _ = Anchors::after(&record, at(record.rev.main + 1, 0));
            }
        }
        assert!(decoded > 1000, "only {decoded} decoded");
    }
}
