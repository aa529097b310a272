//! Golden bytes, round trips, and bytes from nowhere.

use super::batch::{self, BatchHeader, Record, records};
use super::segment::{
    HeaderFault, PrevEnd, SegmentHeader, free_name, log_name, parse_free_name, parse_log_name,
};
use super::{BLOCK_BYTES, crc};
use crate::state::State;
use crate::types::HardState;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    lines.join("\n")
}

fn header() -> SegmentHeader {
    SegmentHeader {
        seq: 0x11,
        seg_id: 0x2222_2222_2222_2222,
        identity: [0x3333, 0x4444],
        segment_bytes: 64 << 20,
        prev_end: PrevEnd {
            seq: 0x10,
            offset: 0x5000,
            chain: 0x6666_6666,
        },
        next_batch_seq: 0x77,
        state: State {
            first_index: 0x80,
            last_index: 0x99,
            last_term: 0xa,
            hard_state: HardState {
                term: 0xb,
                vote: 0xc,
                commit: 0x98,
            },
            snapshot: Some((0x7f, 0x9)),
        },
    }
}

/// The tables of docs/file-format.md, as bytes.
#[test]
fn segment_header_golden_bytes() {
    let mut block = vec![0xff; BLOCK_BYTES];
    header().encode(&mut block);
    let expected = "\
5152544c4f470d0a0100000001000000
11000000000000002222222222222222
33330000000000004444000000000000
00000004000000001000000000000000
00500000000000006666666600000000
77000000000000008000000000000000
99000000000000000a00000000000000
0b000000000000000c00000000000000
98000000000000007f00000000000000
09000000000000000100000000000000";
    assert_eq!(hex(&block[..160]), expected);
    assert_eq!(hex(&block[160..164]), "55693078");
    assert!(block[164..].iter().all(|b| *b == 0));
    assert_eq!(SegmentHeader::decode(&block), Ok(header()));
}

#[test]
fn batch_golden_bytes() {
    let data = b"abc";
    let all = [
        Record::Entry {
            index: 5,
            term: 2,
            kind: 1,
            data,
        },
        Record::HardState(HardState {
            term: 2,
            vote: 3,
            commit: 4,
        }),
        Record::Snapshot { index: 9, term: 2 },
        Record::Trim { keep_from: 10 },
        Record::Roll {
            seq: 7,
            seg_id: 0x8888,
        },
    ];
    let mut buf = vec![0u8; 256];
    let mut end = batch::HEADER_BYTES;
    for record in &all {
        record.encode(&mut buf[end..]);
        end += record.encoded_bytes();
    }
    let mut header = BatchHeader {
        seg_id: 0x1122_3344_5566_7788,
        batch_seq: 0x21,
        durable_seq: 0x20,
        first_index: 5,
        len: (end - batch::HEADER_BYTES) as u32,
        records: 5,
        chain: 0xdead_beef,
        payload_crc: crc(&buf[batch::HEADER_BYTES..end]),
        crc: 0,
    };
    header.crc = header.encode(&mut buf);
    let expected = "\
514c42317b0000008877665544332211
21000000000000002000000000000000
050000000000000005000000efbeadde
dd990eed000000000000000092342310
01010000130000000500000000000000
02000000000000006162630200000018
00000002000000000000000300000000
00000004000000000000000300000010
00000009000000000000000200000000
00000004000000080000000a00000000
00000005000000100000000700000000
0000008888000000000000";
    assert_eq!(hex(&buf[..end]), expected);
    assert_eq!(BatchHeader::decode(&buf), Some(header));
    let decoded: Vec<_> = records(&buf[batch::HEADER_BYTES..end])
        .map(|r| r.unwrap())
        .collect();
    assert_eq!(decoded, all);
}

#[test]
fn names_round_trip_and_only_canonical_ones_are_ours() {
    assert_eq!(log_name(0x1f), "000000000000001f.log");
    assert_eq!(parse_log_name("000000000000001f.log"), Some(0x1f));
    assert_eq!(free_name(2), "free-0000000000000002.seg");
    assert_eq!(parse_free_name("free-0000000000000002.seg"), Some(2));
    for other in [
        "000000000000001F.log",
        "1f.log",
        "+00000000000001f.log",
        "000000000000001f.log.discarded",
        "free-2.seg",
    ] {
        assert_eq!(parse_log_name(other), None);
        assert_eq!(parse_free_name(other), None);
    }
}

#[test]
fn impossible_headers_are_nonsense_even_with_a_good_checksum() {
    let good = header();
    let broken = [
        SegmentHeader {
            prev_end: PrevEnd {
                offset: 0x5001,
                ..good.prev_end
            },
            ..good.clone()
        },
        SegmentHeader {
            seq: 0x10,
            ..good.clone()
        },
        SegmentHeader {
            next_batch_seq: 0,
            ..good.clone()
        },
        SegmentHeader {
            state: State {
                first_index: 0x9b,
                ..good.state
            },
            ..good.clone()
        },
        SegmentHeader {
            state: State {
                last_index: u64::MAX,
                ..good.state
            },
            ..good.clone()
        },
    ];
    for header in broken {
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderFault::Nonsense));
    }
    let mut block = vec![0; BLOCK_BYTES];
    good.encode(&mut block);
    block[8] = 2;
    assert_eq!(SegmentHeader::decode(&block), Err(HeaderFault::Checksum));
    assert_eq!(
        SegmentHeader::decode(&block[..100]),
        Err(HeaderFault::Magic)
    );
}

#[derive(Clone, Debug)]
enum Owned {
    Entry(u64, u64, u8, Vec<u8>),
    HardState(u64, u64, u64),
    Snapshot(u64, u64),
    Trim(u64),
    Roll(u64, u64),
}

impl Owned {
    fn record(&self) -> Record<'_> {
        match self {
            Owned::Entry(index, term, kind, data) => Record::Entry {
                index: *index,
                term: *term,
                kind: *kind,
                data,
            },
            Owned::HardState(term, vote, commit) => Record::HardState(HardState {
                term: *term,
                vote: *vote,
                commit: *commit,
            }),
            Owned::Snapshot(index, term) => Record::Snapshot {
                index: *index,
                term: *term,
            },
            Owned::Trim(keep_from) => Record::Trim {
                keep_from: *keep_from,
            },
            Owned::Roll(seq, seg_id) => Record::Roll {
                seq: *seq,
                seg_id: *seg_id,
            },
        }
    }
}

fn owned() -> impl Strategy<Value = Owned> {
    let n = any::<u64>;
    prop_oneof![
        3 => (n(), n(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(i, t, k, d)| Owned::Entry(i, t, k, d)),
        1 => (n(), n(), n()).prop_map(|(a, b, c)| Owned::HardState(a, b, c)),
        1 => (n(), n()).prop_map(|(a, b)| Owned::Snapshot(a, b)),
        1 => n().prop_map(Owned::Trim),
        1 => (n(), n()).prop_map(|(a, b)| Owned::Roll(a, b)),
    ]
}

fn encode(all: &[Owned]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in all {
        let record = one.record();
        let start = bytes.len();
        bytes.resize(start + record.encoded_bytes(), 0xee);
        record.encode(&mut bytes[start..]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_round_trip(all in prop::collection::vec(owned(), 0..20)) {
        let bytes = encode(&all);
        let back: Option<Vec<_>> = records(&bytes).collect();
        let expected: Vec<_> = all.iter().map(|o| o.record()).collect();
        prop_assert_eq!(back, Some(expected));
    }

    /// A prefix of records decodes to a prefix, then fails or ends; never to something else.
    #[test]
    fn cut_records_decode_to_a_prefix(all in prop::collection::vec(owned(), 1..10), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&all);
        let cut = cut.index(bytes.len());
        let good: Vec<_> = records(&bytes[..cut]).map_while(|r| r).collect();
        let expected: Vec<_> = all.iter().map(|o| o.record()).take(good.len()).collect();
        prop_assert_eq!(good, expected);
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let _ = records(&bytes).count();
        let _ = BatchHeader::decode(&bytes);
        let _ = SegmentHeader::decode(&bytes);
    }

    /// One wrong bit anywhere in a header that carries meaning is noticed.
    #[test]
    fn header_bits_matter(at in 0usize..164 * 8) {
        let mut block = vec![0; BLOCK_BYTES];
        header().encode(&mut block);
        block[at / 8] ^= 1 << (at % 8);
        prop_assert!(SegmentHeader::decode(&block).is_err());
    }
}
