//! A chunk: a contiguous piece of history, and the encoding of the events in it.
//!
//! ```text
//! chunk  magic u32 | n u32 | first main u64 | data length u32 | n x slot | data
//! slot   main - first main u32 | sub u32 | offset in data u32              (little endian)
//! event  flags u8 | key length, key | depth, anchors
//!        put:  main - create, version, lease, value
//!        prev: main - prev.main, prev.sub; live: prev.main - create, version, lease, value
//! value  length, bytes | run reference                                     (varints)
//! ```
//!
//! An event is self-contained: the new version (or that it is a tombstone) and the version it
//! replaced, each with its value or the reference to the run that holds it. A creation over a
//! tombstone names the tombstone as previous, so that a walk to older versions goes on behind it.
//!
//! Invariants:
//! 1. Slots ascend strictly by (main, sub).
//! 2. The run of a previous value is owned by the event: it is freed when the event is dropped,
//!    and nowhere else. A new value's run belongs to K until another event takes it as previous.

use bytes::Bytes;

use crate::record::{
    Anchors, Decoder, Links, Live, ValueRef, encode_live_head, encode_sized_value, put_varint,
};
use crate::source::RunRef;
use crate::types::{Error, EventKind, Result, Revision};

const MAGIC: u32 = u32::from_le_bytes(*b"QEV1");
const HEADER_BYTES: usize = 20;
pub(crate) const SLOT_BYTES: usize = 12;

const PUT: u8 = 1;
const NEW_RUN: u8 = 2;
const PREV_TOMBSTONE: u8 = 4;
const PREV_LIVE: u8 = 8;
const PREV_RUN: u8 = 16;
/// Every bit with a meaning; others are reserved, among them one for "the previous version is to
/// be found at its own revision".
const KNOWN: u8 = 31;

/// What an event replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prev<'a> {
    /// K held nothing for the key.
    None,
    Tombstone(Revision),
    Live(Revision, Live<'a>),
}

/// One event, borrowed from its chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventView<'a> {
    pub rev: Revision,
    pub key: &'a [u8],
    pub links: Links<'a>,
    /// None: a delete.
    pub new: Option<Live<'a>>,
    pub prev: Prev<'a>,
}

impl EventView<'_> {
    pub(crate) fn kind(&self) -> EventKind {
        match self.new {
            Some(_) => EventKind::Put,
            None => EventKind::Delete,
        }
    }
}

/// Encodes one event.
pub(crate) fn encode_event(
    rev: Revision,
    key: &[u8],
    anchors: &Anchors,
    new: Option<&Live<'_>>,
    prev: &Prev<'_>,
    out: &mut Vec<u8>,
) {
    let mut flags = 0;
    if let Some(live) = new {
        flags |= PUT;
        if let ValueRef::Run(_) = live.value {
            flags |= NEW_RUN;
        }
    }
    flags |= match prev {
        Prev::None => 0,
        Prev::Tombstone(_) => PREV_TOMBSTONE,
        Prev::Live(_, live) => match live.value {
            ValueRef::Run(_) => PREV_LIVE | PREV_RUN,
            ValueRef::Inline(_) => PREV_LIVE,
        },
    };
    out.push(flags);
    put_varint(out, key.len() as u64);
    out.extend_from_slice(key);
    anchors.encode(rev, out);
    if let Some(live) = new {
        encode_live_head(rev.main, live, out);
        encode_sized_value(&live.value, out);
    }
    if let Prev::Tombstone(at) | Prev::Live(at, _) = prev {
        put_varint(out, (rev.main - at.main) as u64);
        put_varint(out, at.sub as u64);
    }
    if let Prev::Live(at, live) = prev {
        encode_live_head(at.main, live, out);
        encode_sized_value(&live.value, out);
    }
}

fn decode_event(rev: Revision, bytes: &[u8]) -> Result<EventView<'_>> {
    decode_with_places(rev, bytes).map(|(event, _)| event)
}

/// The event, and where in its bytes the references of its runs stand: of the new value, of the
/// previous one.
fn decode_with_places(rev: Revision, bytes: &[u8]) -> Result<(EventView<'_>, [Option<usize>; 2])> {
    let mut dec = Decoder::new(bytes);
    let mut places = [None; 2];
    let flags = dec.byte()?;
    if flags & !KNOWN != 0 {
        return Err(Error::Corrupt(format!(
            "event at {rev:?} has unknown flags"
        )));
    }
    let key = dec.sized()?;
    let links = dec.links()?;
    let new = if flags & PUT != 0 {
        let in_run = flags & NEW_RUN != 0;
        let live = decode_live(&mut dec, rev.main, in_run)?;
        places[0] = in_run.then(|| bytes.len() - dec.left() - RunRef::BYTES);
        Some(live)
    } else {
        None
    };
    let prev = if flags & (PREV_TOMBSTONE | PREV_LIVE) == 0 {
        Prev::None
    } else {
        let at = Revision {
            main: dec.main_before(rev.main)?,
            sub: dec.int()?,
        };
        if flags & PREV_LIVE != 0 {
            let in_run = flags & PREV_RUN != 0;
            let live = decode_live(&mut dec, at.main, in_run)?;
            places[1] = in_run.then(|| bytes.len() - dec.left() - RunRef::BYTES);
            Prev::Live(at, live)
        } else {
            Prev::Tombstone(at)
        }
    };
    let event = EventView {
        rev,
        key,
        links,
        new,
        prev,
    };
    Ok((event, places))
}

fn decode_live<'a>(dec: &mut Decoder<'a>, main: i64, in_run: bool) -> Result<Live<'a>> {
    let (create, version, lease) = dec.live_head(main)?;
    let value = if in_run {
        ValueRef::Run(dec.run()?)
    } else {
        ValueRef::Inline(dec.sized()?)
    };
    Ok(Live {
        create,
        version,
        lease,
        value,
    })
}

/// The slot of an event at `rev` in a chunk that starts at `first_main`.
pub(crate) fn encode_slot(
    first_main: i64,
    rev: Revision,
    offset: usize,
) -> Result<[u8; SLOT_BYTES]> {
    let fit = |n: i64| {
        u32::try_from(n).map_err(|_| Error::Invalid("a request changes too many keys".into()))
    };
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&fit(rev.main - first_main)?.to_le_bytes());
    slot[4..8].copy_from_slice(&fit(rev.sub)?.to_le_bytes());
    slot[8..].copy_from_slice(&fit(offset as i64)?.to_le_bytes());
    Ok(slot)
}

/// The bytes of a sealed chunk.
pub(crate) fn seal(first_main: i64, slots: &[u8], data: &[u8]) -> Bytes {
    let n = slots.len() / SLOT_BYTES;
    let mut out = Vec::with_capacity(HEADER_BYTES + slots.len() + data.len());
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&(n as u32).to_le_bytes());
    out.extend_from_slice(&(first_main as u64).to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(slots);
    out.extend_from_slice(data);
    Bytes::from(out)
}

/// A chunk that can be read, sealed or open.
#[derive(Clone, Copy)]
pub(crate) struct ChunkView<'a> {
    first_main: i64,
    slots: &'a [u8],
    data: &'a [u8],
}

impl<'a> ChunkView<'a> {
    /// Of the open chunk's parts.
    pub(crate) fn open(first_main: i64, slots: &'a [u8], data: &'a [u8]) -> ChunkView<'a> {
        ChunkView {
            first_main,
            slots,
            data,
        }
    }

    /// Of a sealed chunk's bytes.
    pub(crate) fn sealed(bytes: &'a [u8]) -> Result<ChunkView<'a>> {
        let bad = || Error::Corrupt("a chunk of events has a bad header".into());
        let word = |at: usize| -> Result<u32> {
            let raw = bytes.get(at..at + 4).ok_or_else(bad)?;
            Ok(u32::from_le_bytes(raw.try_into().expect("four bytes")))
        };
        if word(0)? != MAGIC {
            return Err(bad());
        }
        let slots_bytes = (word(4)? as usize)
            .checked_mul(SLOT_BYTES)
            .ok_or_else(bad)?;
        let first = u64::from(word(8)?) | u64::from(word(12)?) << 32;
        let first_main = i64::try_from(first).map_err(|_| bad())?;
        let data_bytes = word(16)? as usize;
        let body = &bytes[HEADER_BYTES..];
        if slots_bytes.checked_add(data_bytes) != Some(body.len()) {
            return Err(bad());
        }
        let (slots, data) = body.split_at(slots_bytes);
        Ok(ChunkView {
            first_main,
            slots,
            data,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() / SLOT_BYTES
    }

    fn slot(&self, i: usize) -> (Revision, usize) {
        let slot = &self.slots[i * SLOT_BYTES..(i + 1) * SLOT_BYTES];
        let word = |at: usize| u32::from_le_bytes(slot[at..at + 4].try_into().expect("four bytes"));
        let rev = Revision {
            main: self.first_main.saturating_add(i64::from(word(0))),
            sub: i64::from(word(4)),
        };
        (rev, word(8) as usize)
    }

    pub(crate) fn rev(&self, i: usize) -> Revision {
        self.slot(i).0
    }

    /// Index of the first event at or after `rev`; `len()` when there is none.
    pub(crate) fn lower_bound(&self, rev: Revision) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = low + (high - low) / 2;
            if self.rev(mid) < rev {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        low
    }

    /// Event `i < len()`.
    pub(crate) fn event(&self, i: usize) -> Result<EventView<'a>> {
        let (rev, bytes) = self.event_bytes(i)?;
        decode_event(rev, bytes)
    }

    /// Where in the bytes of a sealed chunk the references of event `i`'s runs stand: of its new
    /// value, of the previous one.
    pub(crate) fn run_places(&self, i: usize) -> Result<[Option<usize>; 2]> {
        let (rev, bytes) = self.event_bytes(i)?;
        let base = HEADER_BYTES + self.slots.len() + self.slot(i).1;
        let (_, places) = decode_with_places(rev, bytes)?;
        Ok(places.map(|place| Some(base + place?)))
    }

    fn event_bytes(&self, i: usize) -> Result<(Revision, &'a [u8])> {
        let (rev, from) = self.slot(i);
        let to = if i + 1 < self.len() {
            self.slot(i + 1).1
        } else {
            self.data.len()
        };
        let bytes = self.data.get(from..to).ok_or_else(|| {
            Error::Corrupt(format!(
                "the chunk's slot of event {rev:?} is out of bounds"
            ))
        })?;
        Ok((rev, bytes))
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

    fn live<'a>(create: i64, version: i64, value: ValueRef<'a>) -> Live<'a> {
        Live {
            create,
            version,
            lease: 0,
            value,
        }
    }

    /// A chunk of three events: a creation, an overwrite that ends a run, a delete.
    fn sample() -> Bytes {
        let run = ValueRef::Run(RunRef::from_bytes(&[7; 24]));
        let first = live(2, 1, run);
        let second = live(2, 2, ValueRef::Inline(b"w"));
        let anchors = Anchors::first();
        let (mut slots, mut data) = (Vec::new(), Vec::new());
        let events = [
            (at(2, 0), Some(&first), Prev::None),
            (at(3, 0), Some(&second), Prev::Live(at(2, 0), first)),
            (at(3, 1), None, Prev::Live(at(3, 0), second)),
        ];
        for (rev, new, prev) in events {
            slots.extend(encode_slot(2, rev, data.len()).expect("fits"));
            encode_event(rev, b"k", &anchors, new, &prev, &mut data);
        }
        seal(2, &slots, &data)
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample();
        let mut expected = Vec::new();
        expected.extend(b"QEV1");
        expected.extend([3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 80, 0, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 31, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 1, 0, 0, 0, 69, 0, 0, 0]);
        expected.extend([PUT | NEW_RUN, 1, b'k', 0, 0, 1, 0]);
        expected.extend([7; 24]);
        expected.extend([
            PUT | PREV_LIVE | PREV_RUN,
            1,
            b'k',
            0,
            1,
            2,
            0,
            1,
            b'w',
            1,
            0,
            0,
            1,
            0,
        ]);
        expected.extend([7; 24]);
        expected.extend([PREV_LIVE, 1, b'k', 0, 0, 0, 1, 2, 0, 1, b'w']);
        assert_eq!(bytes[..], expected[..]);
        let chunk = ChunkView::sealed(&bytes).expect("own bytes");
        let event = chunk.event(1).expect("own bytes");
        assert_eq!(
            (event.rev, event.key, event.kind()),
            (at(3, 0), &b"k"[..], EventKind::Put)
        );
        assert!(matches!(
            event.prev,
            Prev::Live(Revision { main: 2, sub: 0 }, _)
        ));
        let places = [0, 1, 2].map(|i| chunk.run_places(i).expect("own bytes"));
        assert_eq!(places[0], [Some(63), None]);
        assert_eq!(places[1], [None, Some(101)]);
        assert_eq!(places[2], [None, None]);
        assert_eq!(bytes[63..87], [7; 24]);
        assert_eq!(bytes[101..125], [7; 24]);
        assert_eq!(chunk.lower_bound(at(3, 1)), 2);
        assert_eq!(chunk.lower_bound(at(4, 0)), 3);
        assert_eq!(chunk.event(2).expect("own bytes").kind(), EventKind::Delete);
    }

    #[test]
    fn damaged_chunks_never_panic() {
        let good = sample();
        let read = |bytes: &[u8]| {
            let Ok(chunk) = ChunkView::sealed(bytes) else {
                return 0;
            };
            let good = (0..chunk.len()).filter(|i| chunk.event(*i).is_ok()).count();
            let _ = chunk.lower_bound(at(3, 0));
            good
        };
        assert_eq!(read(&good), 3);
        for cut in 0..good.len() {
            assert_eq!(read(&good[..cut]), 0);
        }
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..20_000 {
            let mut bad = good.to_vec();
            for _ in 0..rng.gen_range(1..4) {
                let i = rng.gen_range(0..bad.len());
                bad[i] = rng.r#gen();
            }
            read(&bad);
        }
    }
}
