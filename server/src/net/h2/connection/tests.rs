//! The state machine, frame by frame; then against the crate `h2`, and against noise.

use super::super::hpack::write_field;
use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    streams_max: 100,
    stream_window: 100_000,
    connection_window: 1_000_000,
    header_list_bytes_max: 8_000,
};

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Saw {
    Request(u32, String, bool),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
    Ping,
    Pong,
}

/// A frame that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

struct Peer {
    c: Connection,
    rest: Vec<u8>,
}

fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, kind, flags, stream, payload);
    out
}

fn block(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    write_field(&mut block, b":path", path.as_bytes());
    write_field(&mut block, b"te", b"trailers");
    block
}

fn request(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let end = if end { flag::END_STREAM } else { 0 };
    framed(kind::HEADERS, flag::END_HEADERS | end, stream, &block(path))
}

fn data(stream: u32, payload: &[u8], end: bool) -> Vec<u8> {
    let end = if end { flag::END_STREAM } else { 0 };
    framed(kind::DATA, end, stream, payload)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    framed(kind::SETTINGS, 0, 0, &payload)
}

fn update(stream: u32, more: u32) -> Vec<u8> {
    framed(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// Everything that comes of these bytes behind what came before.
fn take_in(c: &mut Connection, rest: &mut Vec<u8>, bytes: &[u8]) -> Result<Vec<Saw>, Failed> {
    rest.extend_from_slice(bytes);
    let all = std::mem::take(rest);
    let mut input = &all[..];
    let mut seen = Vec::new();
    while let Some(event) = c.next(&mut input)? {
        seen.push(match event {
            Event::Request { slot, end, .. } => {
                let path = String::from_utf8_lossy(c.head().path()).into_owned();
                Saw::Request(slot, path, end)
            }
            Event::Data { slot, bytes, end } => {
                c.release_connection(bytes.len());
                Saw::Data(slot, bytes.to_vec(), end)
            }
            Event::Reset { slot } => Saw::Reset(slot),
            Event::Ping => Saw::Ping,
            Event::Pong => Saw::Pong,
        });
    }
    *rest = input.to_vec();
    Ok(seen)
}

impl Peer {
    /// Behind preface and settings.
    fn new() -> Peer {
        let mut c = Connection::new(LIMITS);
        c.output().drain();
        let mut peer = Peer {
            c,
            rest: Vec::new(),
        };
        peer.ok(&[&PREFACE[..], &framed(kind::SETTINGS, 0, 0, &[])].concat());
        assert_eq!(peer.sent(), [sent(kind::SETTINGS, flag::ACK, 0, &[])]);
        peer
    }

    fn put(&mut self, bytes: &[u8]) -> Result<Vec<Saw>, Failed> {
        take_in(&mut self.c, &mut self.rest, bytes)
    }

    fn ok(&mut self, bytes: &[u8]) -> Vec<Saw> {
        self.put(bytes).expect("no failure")
    }

    /// The frames in the output, which is emptied.
    fn sent(&mut self) -> Vec<Sent> {
        frames(&self.c.output().drain())
    }

    /// Opens a stream and returns its slot.
    fn open(&mut self, stream: u32, end: bool) -> u32 {
        match self.ok(&request(stream, "/p", end))[..] {
            [Saw::Request(slot, ..)] => slot,
            ref other => panic!("{other:?}"),
        }
    }

    /// The connection fails for this reason and says so.
    fn fails(mut self, bytes: &[u8], reason: Reason) {
        assert_eq!(self.put(bytes).expect_err("fails").reason, reason);
        let sent = self.sent();
        let last = sent.last().expect("a GOAWAY");
        assert_eq!(last.kind, kind::GOAWAY);
        assert_eq!(number(&last.payload[4..]), reason as u32);
        self.put(&request(99, "/p", true)).expect_err("has ended");
    }

    /// The stream is reset for this reason and the connection lives on.
    fn resets(mut self, bytes: &[u8], stream: u32, reason: Reason) {
        self.ok(bytes);
        let reset = sent(kind::RST_STREAM, 0, stream, &(reason as u32).to_be_bytes());
        assert!(self.sent().contains(&reset), "stream {stream}: {reason:?}");
        self.ok(&request(1001, "/alive", true));
    }
}

fn sent(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Sent {
    Sent {
        kind,
        flags,
        stream,
        payload: payload.to_vec(),
    }
}

fn frames(mut bytes: &[u8]) -> Vec<Sent> {
    let mut all = Vec::new();
    while let Some(head) = frame::Head::read(bytes) {
        let payload = &bytes[HEAD_BYTES..HEAD_BYTES + head.len];
        all.push(sent(head.kind, head.flags, head.stream, payload));
        bytes = &bytes[HEAD_BYTES + head.len..];
    }
    assert!(bytes.is_empty(), "half a frame");
    all
}

/// The bytes of DATA on a stream.
fn body(sent: &[Sent], stream: u32) -> usize {
    let of = |s: &&Sent| s.kind == kind::DATA && s.stream == stream;
    sent.iter().filter(of).map(|s| s.payload.len()).sum()
}

#[test]
fn it_says_hello_first() {
    let mut c = Connection::new(LIMITS);
    let hello = frames(&c.output().drain());
    assert_eq!((hello[0].kind, hello[0].flags), (kind::SETTINGS, 0));
    assert_eq!(hello[0].payload[..6], [0, 3, 0, 0, 0, 100]);
    assert_eq!(
        hello[1],
        sent(
            kind::WINDOW_UPDATE,
            0,
            0,
            &(1_000_000u32 - 65_535).to_be_bytes()
        )
    );
}

#[test]
fn a_request_and_its_answer() {
    let mut p = Peer::new();
    let seen = p.ok(&[request(1, "/a", false), data(1, b"body", true)].concat());
    let [Saw::Request(slot, path, false), rest] = &seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(
        (&path[..], rest),
        ("/a", &Saw::Data(*slot, b"body".to_vec(), true))
    );
    p.c.headers(*slot, b"\x88", false);
    p.c.data(*slot, Bytes::from_static(b"answer"));
    p.c.trailers(*slot, b"\x89");
    assert_eq!(
        p.sent(),
        [
            sent(kind::HEADERS, flag::END_HEADERS, 1, b"\x88"),
            sent(kind::DATA, 0, 1, b"answer"),
            sent(
                kind::HEADERS,
                flag::END_HEADERS | flag::END_STREAM,
                1,
                b"\x89"
            ),
        ]
    );
    assert_eq!(p.c.streams(), 0);
    // The same in one.
    let slot = p.open(3, true);
    assert!(p.c.whole(slot, b"\x88", &[b"an", b"swer"], b"\x89"));
    let again = p.sent();
    assert_eq!(again[1], sent(kind::DATA, 0, 3, b"answer"));
    assert_eq!(again.len(), 3);
    // And without trailers.
    let slot = p.open(5, true);
    p.c.headers(slot, b"\x88", false);
    p.c.finish(slot);
    assert_eq!(p.sent()[1], sent(kind::DATA, flag::END_STREAM, 5, b""));
    assert_eq!(p.c.streams(), 0);
}

#[test]
fn what_a_preface_must_be() {
    let bad = b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n";
    for cut in [1, 10, 24] {
        let mut c = Connection::new(LIMITS);
        let mut rest = Vec::new();
        let first = take_in(&mut c, &mut rest, &bad[..cut]);
        let second = take_in(&mut c, &mut rest, &bad[cut..]);
        assert!(first.is_err() || second.is_err());
    }
    for first in [
        framed(kind::PING, 0, 0, &[0; 8]),
        framed(kind::SETTINGS, flag::ACK, 0, &[]),
        request(1, "/", true),
    ] {
        let mut c = Connection::new(LIMITS);
        let bytes = [&PREFACE[..], &first].concat();
        let failed = take_in(&mut c, &mut Vec::new(), &bytes).unwrap_err();
        assert_eq!(failed.reason, Reason::Protocol);
    }
}

#[test]
fn frames_that_end_the_connection() {
    use Reason::{Compression, FlowControl, FrameSize, Protocol, StreamClosed};
    let open = request(1, "/p", false);
    let ended = [request(1, "/p", true), request(3, "/p", false)].concat();
    let closed = [
        request(1, "/p", false),
        framed(kind::RST_STREAM, 0, 1, &[0; 4]),
    ]
    .concat();
    for (before, bytes, reason) in [
        (&open, framed(kind::DATA, 0, 0, b"x"), Protocol),
        (&open, framed(kind::DATA, 0, 3, b"x"), Protocol),
        (&open, framed(kind::DATA, 0, 2, b"x"), Protocol),
        (&open, framed(kind::DATA, flag::PADDED, 1, &[]), FrameSize),
        (
            &open,
            framed(kind::DATA, flag::PADDED, 1, &[2, 0]),
            Protocol,
        ),
        (
            &open,
            framed(kind::DATA, 0, 1, &[0; PAYLOAD_BYTES_MAX + 1]),
            FrameSize,
        ),
        (&closed, data(1, b"x", true), StreamClosed),
        (&closed, request(1, "/p", true), StreamClosed),
        (
            &open,
            framed(kind::HEADERS, flag::END_HEADERS, 0, &block("/")),
            Protocol,
        ),
        (
            &open,
            framed(kind::HEADERS, flag::END_HEADERS, 2, &block("/")),
            Protocol,
        ),
        (
            &open,
            [request(9, "/", true), request(7, "/", true)].concat(),
            Protocol,
        ),
        (
            &open,
            framed(
                kind::HEADERS,
                flag::END_HEADERS | flag::PADDED,
                3,
                &[9, 0x82],
            ),
            Protocol,
        ),
        (
            &open,
            framed(
                kind::HEADERS,
                flag::END_HEADERS | flag::PRIORITY,
                3,
                &[0; 4],
            ),
            FrameSize,
        ),
        (
            &open,
            framed(kind::HEADERS, flag::END_HEADERS, 3, &[0xbe]),
            Compression,
        ),
        (
            &open,
            framed(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
            Protocol,
        ),
        (
            &open,
            [
                framed(kind::HEADERS, 0, 3, &block("/")),
                data(1, b"x", false),
            ]
            .concat(),
            Protocol,
        ),
        (
            &open,
            [
                framed(kind::HEADERS, 0, 3, &block("/")),
                framed(0x77, 0, 3, &[]),
            ]
            .concat(),
            Protocol,
        ),
        (
            &open,
            [
                framed(kind::HEADERS, 0, 3, &block("/")),
                framed(kind::CONTINUATION, flag::END_HEADERS, 5, &[]),
            ]
            .concat(),
            Protocol,
        ),
        (&open, framed(kind::RST_STREAM, 0, 0, &[0; 4]), Protocol),
        (&open, framed(kind::RST_STREAM, 0, 3, &[0; 4]), Protocol),
        (&open, framed(kind::RST_STREAM, 0, 1, &[0; 3]), FrameSize),
        (&open, framed(kind::SETTINGS, 0, 1, &[]), Protocol),
        (&open, framed(kind::SETTINGS, 0, 0, &[0; 5]), FrameSize),
        (
            &open,
            framed(kind::SETTINGS, flag::ACK, 0, &[0; 6]),
            FrameSize,
        ),
        (&open, setting(setting::ENABLE_PUSH, 2), Protocol),
        (
            &open,
            setting(setting::INITIAL_WINDOW_SIZE, 1 << 31),
            FlowControl,
        ),
        (&open, setting(setting::MAX_FRAME_SIZE, 16_383), Protocol),
        (&open, setting(setting::MAX_FRAME_SIZE, 1 << 24), Protocol),
        (
            &open,
            [
                update(1, 1),
                setting(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1),
            ]
            .concat(),
            FlowControl,
        ),
        (
            &open,
            framed(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0; 8]),
            Protocol,
        ),
        (&open, framed(kind::PING, 0, 1, &[0; 8]), Protocol),
        (&open, framed(kind::PING, 0, 0, &[0; 7]), FrameSize),
        (&open, framed(kind::GOAWAY, 0, 1, &[0; 8]), Protocol),
        (&open, framed(kind::GOAWAY, 0, 0, &[0; 7]), FrameSize),
        (&open, update(0, 0), Protocol),
        (&open, update(0, (1 << 31) - 1), FlowControl),
        (&open, update(3, 1), Protocol),
        (&open, framed(kind::WINDOW_UPDATE, 0, 0, &[0; 5]), FrameSize),
        (&open, framed(kind::PRIORITY, 0, 0, &[0; 5]), Protocol),
        (&ended, framed(kind::RST_STREAM, 0, 5, &[0; 4]), Protocol),
    ] {
        let mut p = Peer::new();
        p.ok(before);
        p.fails(&bytes, reason);
    }
}

#[test]
fn frames_that_end_their_stream() {
    use Reason::{FlowControl, FrameSize, Protocol, RefusedStream, StreamClosed};
    let bad = |more: &[(&str, &str)]| {
        let mut block = block("/p");
        for (name, value) in more {
            write_field(&mut block, name.as_bytes(), value.as_bytes());
        }
        framed(kind::HEADERS, flag::END_HEADERS, 3, &block)
    };
    let circular = [&3u32.to_be_bytes()[..], &[0], &block("/p")].concat();
    for (bytes, stream, reason) in [
        (data(1, b"after the end", false), 1, StreamClosed),
        (request(1, "/trailers", true), 1, StreamClosed),
        (bad(&[("Upper", "x")]), 3, Protocol),
        (bad(&[("connection", "close")]), 3, Protocol),
        (bad(&[(":late", "x")]), 3, Protocol),
        (
            framed(
                kind::HEADERS,
                flag::END_HEADERS | flag::PRIORITY,
                3,
                &circular,
            ),
            3,
            Protocol,
        ),
        (framed(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), 1, Protocol),
        (framed(kind::PRIORITY, 0, 1, &[0; 4]), 1, FrameSize),
        (update(1, 0), 1, Protocol),
        (update(1, (1 << 31) - 1), 1, FlowControl),
        (
            [request(3, "/p", false), request(3, "no end", false)].concat(),
            3,
            Protocol,
        ),
        (
            [
                request(3, "/p", false),
                // A pseudo-header in trailers.
                request(3, "/p", true),
            ]
            .concat(),
            3,
            Protocol,
        ),
        (
            [bad(&[("content-length", "5")]), data(3, b"four", true)].concat(),
            3,
            Protocol,
        ),
        (
            [bad(&[("content-length", "5")]), data(3, b"more..", false)].concat(),
            3,
            Protocol,
        ),
        (
            (0..100)
                .flat_map(|n| request(3 + 2 * n, "/p", true))
                .collect(),
            201,
            RefusedStream,
        ),
        (
            [
                request(3, "/p", false),
                (0..7)
                    .flat_map(|_| data(3, &[0; PAYLOAD_BYTES_MAX], false))
                    .collect(),
            ]
            .concat(),
            3,
            FlowControl,
        ),
    ] {
        let mut p = Peer::new();
        p.open(1, true);
        if reason == RefusedStream {
            p.ok(&bytes);
            let reset = sent(kind::RST_STREAM, 0, stream, &(reason as u32).to_be_bytes());
            assert_eq!(p.sent(), [reset]);
            continue;
        }
        p.resets(&bytes, stream, reason);
    }
}

#[test]
fn what_is_passed_over() {
    let mut p = Peer::new();
    let slot = p.open(1, false);
    p.ok(&framed(0xfa, 0xff, 77, b"unknown"));
    p.ok(&framed(kind::PRIORITY, 0, 99, &[0, 0, 0, 0, 5]));
    p.ok(&setting(0x99, 7));
    p.ok(&framed(kind::GOAWAY, 0, 0, &[0; 8]));
    p.sent();
    // Padding, priority, and a block in many parts.
    let block = block("/parts");
    let first = [&[3, 0, 0, 0, 0, 9][..], &block[..2], &[0; 3]].concat();
    let flags = flag::PADDED | flag::PRIORITY | flag::END_STREAM;
    p.ok(&framed(kind::HEADERS, flags, 3, &first));
    p.ok(&framed(kind::CONTINUATION, 0, 3, &[]));
    let seen = p.ok(&framed(
        kind::CONTINUATION,
        flag::END_HEADERS,
        3,
        &block[2..],
    ));
    assert!(matches!(&seen[..], [Saw::Request(_, path, true)] if path == "/parts"));
    let padded = [&[4][..], b"body", &[0; 4]].concat();
    let seen = p.ok(&framed(kind::DATA, flag::PADDED, 1, &padded));
    assert_eq!(seen, [Saw::Data(slot, b"body".to_vec(), false)]);
    // Trailers.
    let mut trailers = Vec::new();
    write_field(&mut trailers, b"x", b"y");
    let flags = flag::END_HEADERS | flag::END_STREAM;
    let seen = p.ok(&framed(kind::HEADERS, flags, 1, &trailers));
    assert_eq!(seen, [Saw::Data(slot, vec![], true)]);
    assert_eq!(p.sent(), []);
}

#[test]
fn pings_are_answered() {
    let mut p = Peer::new();
    assert_eq!(p.ok(&framed(kind::PING, 0, 0, b"12345678")), [Saw::Ping]);
    assert_eq!(p.sent(), [sent(kind::PING, flag::ACK, 0, b"12345678")]);
    assert_eq!(
        p.ok(&framed(kind::PING, flag::ACK, 0, b"87654321")),
        [Saw::Pong]
    );
    assert_eq!(p.sent(), []);
}

#[test]
fn a_reset_frees_the_slot_and_late_frames_do_no_harm() {
    let mut p = Peer::new();
    let slot = p.open(1, false);
    let cancel = framed(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    assert_eq!(p.ok(&cancel), [Saw::Reset(slot)]);
    assert_eq!(p.c.streams(), 0);
    p.c.headers(slot, b"\x88", true);
    p.c.data(slot, Bytes::from_static(b"late"));
    p.c.trailers(slot, b"\x88");
    p.c.release(slot, 10);
    assert_eq!(p.sent(), []);
    assert_eq!(p.ok(&cancel), []);
    // A stream we reset: whatever was on its way is passed over, and its header block still counts.
    let slot = p.open(3, false);
    p.c.reset(slot, Reason::Internal);
    let mut kept = vec![0x83, 0x86, 0x44, 5];
    kept.extend_from_slice(b"/kept");
    assert_eq!(p.ok(&data(3, b"late", false)), []);
    assert_eq!(
        p.ok(&framed(kind::HEADERS, flag::END_HEADERS, 3, &kept)),
        []
    );
    assert_eq!(p.ok(&update(3, 5)), []);
    let again = framed(kind::HEADERS, flag::END_HEADERS, 5, &[0x83, 0x86, 0xbe]);
    assert!(matches!(&p.ok(&again)[..], [Saw::Request(_, path, false)] if path == "/kept"));
}

#[test]
fn a_repeated_head_is_known_until_the_table_changes() {
    let mut p = Peer::new();
    let known = |p: &mut Peer, stream, block: &[u8]| {
        let bytes = framed(
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            stream,
            block,
        );
        let mut input = &bytes[..];
        match p.c.next(&mut input) {
            Ok(Some(Event::Request { repeated, .. })) => (
                repeated,
                String::from_utf8_lossy(p.c.head().path()).into_owned(),
            ),
            other => panic!("{other:?}"),
        }
    };
    let kept = |path: &str| {
        let mut block = vec![0x83, 0x86, 0x44, path.len() as u8];
        block.extend_from_slice(path.as_bytes());
        block
    };
    let newest = [0x83, 0x86, 0xbe];
    let is = |repeated, path: &str| (repeated, path.to_owned());
    assert_eq!(known(&mut p, 1, &kept("/a")), is(false, "/a"));
    assert_eq!(known(&mut p, 3, &newest), is(false, "/a"));
    assert_eq!(known(&mut p, 5, &newest), is(true, "/a"));
    // The same bytes mean something else once another entry is the newest.
    assert_eq!(known(&mut p, 7, &kept("/b")), is(false, "/b"));
    assert_eq!(known(&mut p, 9, &newest), is(false, "/b"));
    assert_eq!(known(&mut p, 11, &newest), is(true, "/b"));
    // A block that changes the table is decoded each time.
    assert_eq!(known(&mut p, 13, &kept("/c")), is(false, "/c"));
    assert_eq!(known(&mut p, 15, &kept("/c")), is(false, "/c"));
    // Trailers in between leave nothing behind.
    assert_eq!(known(&mut p, 17, &newest), is(false, "/c"));
    p.open(19, false);
    let mut trailers = Vec::new();
    write_field(&mut trailers, b"x", b"y");
    let flags = flag::END_HEADERS | flag::END_STREAM;
    p.ok(&framed(kind::HEADERS, flags, 19, &trailers));
    assert_eq!(known(&mut p, 21, &newest), is(false, "/c"));
}

#[test]
fn a_header_list_too_large_is_answered_as_such() {
    let mut p = Peer::new();
    let mut block = block("/p");
    write_field(&mut block, b"big", &[b'x'; 9_000]);
    let bytes = framed(kind::HEADERS, flag::END_HEADERS, 1, &block);
    assert_eq!(p.ok(&bytes), []);
    let answer = p.sent();
    assert_eq!(answer.len(), 1);
    let flags = flag::END_HEADERS | flag::END_STREAM;
    assert_eq!((answer[0].kind, answer[0].flags), (kind::HEADERS, flags));
    assert!(answer[0].payload.ends_with(b"431"));
    // Its body is passed over, and the same list again is refused again.
    assert_eq!(p.ok(&data(1, b"x", true)), []);
    assert_eq!(p.c.streams(), 0);
    p.ok(&framed(kind::HEADERS, flag::END_HEADERS, 3, &block));
    assert!(p.sent()[0].payload.ends_with(b"431"));
}

#[test]
fn no_more_is_sent_than_the_windows_allow() {
    let mut p = Peer::new();
    let a = p.open(1, true);
    let b = p.open(3, true);
    for slot in [a, b] {
        p.c.headers(slot, b"\x88", false);
        for _ in 0..5 {
            p.c.data(slot, vec![7; 10_000].into());
        }
        p.c.trailers(slot, b"\x89");
    }
    p.c.pump(|_| {});
    let first = p.sent();
    assert_eq!(
        body(&first, 1) + body(&first, 3),
        65_535,
        "the connection's window"
    );
    assert_eq!(p.c.unsent(), 100_000 - 65_535);
    assert_eq!(p.c.queued_in(b), 100_000 - 65_535);
    p.ok(&update(3, 10_000));
    p.c.pump(|_| {});
    assert_eq!(p.sent(), [], "the stream's window is not the connection's");
    p.ok(&update(0, 100_000));
    p.c.pump(|_| {});
    let last = p.sent();
    assert_eq!(body(&last, 3), 100_000 - 65_535);
    assert_eq!(
        last.last().unwrap().flags,
        flag::END_HEADERS | flag::END_STREAM
    );
    assert_eq!((p.c.streams(), p.c.unsent()), (0, 0));
}

#[test]
fn a_smaller_window_may_be_below_zero() {
    let mut p = Peer::new();
    let slot = p.open(1, true);
    p.c.headers(slot, b"\x88", false);
    p.c.data(slot, vec![7; 10_000].into());
    p.ok(&setting(setting::INITIAL_WINDOW_SIZE, 4_000));
    assert_eq!(body(&p.sent(), 1), 10_000);
    let mut emptied = Vec::new();
    p.c.data(slot, vec![7; 5_000].into());
    p.ok(&update(1, 6_000));
    p.c.pump(|slot| emptied.push(slot));
    assert_eq!(p.sent(), [], "still at zero");
    p.ok(&update(1, 3_000));
    p.c.pump(|slot| emptied.push(slot));
    assert_eq!(body(&p.sent(), 1), 3_000);
    assert!(emptied.is_empty());
    p.ok(&setting(setting::INITIAL_WINDOW_SIZE, 100_000));
    p.c.pump(|slot| emptied.push(slot));
    assert_eq!(body(&p.sent(), 1), 2_000);
    assert_eq!(emptied, [slot]);
    // New streams begin with the new window.
    let other = p.open(3, true);
    p.ok(&update(0, 1_000_000));
    p.c.headers(other, b"\x88", false);
    p.c.data(other, vec![7; 120_000].into());
    p.c.finish(other);
    p.c.pump(|_| {});
    let frames = p.sent();
    assert_eq!(body(&frames, 3), 100_000);
    assert!(frames.iter().all(|f| f.payload.len() <= PAYLOAD_BYTES_MAX));
    p.ok(&update(3, 100_000));
    p.c.pump(|_| {});
    let frames = p.sent();
    assert_eq!(body(&frames, 3), 20_000);
    assert_eq!(frames.last().unwrap().flags, flag::END_STREAM);
}

#[test]
fn a_whole_answer_that_does_not_fit_sends_nothing() {
    let mut p = Peer::new();
    p.ok(&setting(setting::INITIAL_WINDOW_SIZE, 10));
    p.sent();
    let slot = p.open(1, true);
    assert!(!p.c.whole(slot, b"\x88", &[b"eleven byte"], b"\x89"));
    assert_eq!(p.sent(), []);
    assert!(p.c.whole(slot, b"\x88", &[b"ten bytes."], b"\x89"));
}

#[test]
fn windows_are_given_back_as_bytes_are_done_with() {
    let mut p = Peer::new();
    let slot = p.open(1, false);
    let piece = data(1, &[0; 10_000], false);
    for n in 1..=30 {
        p.ok(&piece);
        p.c.release(slot, 10_000);
        let updates = p.sent();
        let of = |stream| {
            let of = |f: &&Sent| f.kind == kind::WINDOW_UPDATE && f.stream == stream;
            updates
                .iter()
                .filter(of)
                .map(|f| number(&f.payload))
                .sum::<u32>()
        };
        assert_eq!(of(1), if n % 5 == 0 { 50_000 } else { 0 });
        assert_eq!(of(0), 0);
    }
    for _ in 30..50 {
        p.ok(&piece);
        p.c.release(slot, 10_000);
    }
    assert!(
        p.sent()
            .contains(&sent(kind::WINDOW_UPDATE, 0, 0, &500_000u32.to_be_bytes()))
    );
    // Streams that are closed count as well, and padding does.
    p.c.reset(slot, Reason::Internal);
    let padded = [&[255][..], &[0; 255]].concat();
    for _ in 0..4000 {
        p.ok(&framed(kind::DATA, flag::PADDED, 1, &padded));
    }
}

#[test]
fn what_comes_too_often_ends_the_connection() {
    let calm = Reason::EnhanceYourCalm;
    let flood = |frame: Vec<u8>, times: usize| frame.repeat(times);
    for frame in [
        data(1, b"", false),
        framed(kind::SETTINGS, 0, 0, &[]),
        framed(kind::SETTINGS, flag::ACK, 0, &[]),
        framed(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 5]),
        framed(0x55, 0, 0, &[]),
        update(0, 1),
    ] {
        let mut p = Peer::new();
        p.open(1, false);
        p.ok(&flood(frame.clone(), CHATTER_MAX as usize - 10));
        p.ok(&data(1, b"useful", false));
        p.ok(&flood(frame.clone(), CHATTER_MAX as usize - 10));
        p.fails(&flood(frame, 11), calm);
    }
    // A header block without end, by bytes and by frames.
    let mut p = Peer::new();
    p.ok(&framed(kind::HEADERS, 0, 1, &[0; 100]));
    let more = framed(kind::CONTINUATION, 0, 1, &[0; PAYLOAD_BYTES_MAX]);
    p.ok(&flood(more.clone(), 3));
    p.fails(&more, calm);
    let mut p = Peer::new();
    p.ok(&framed(kind::HEADERS, 0, 1, &[]));
    let more = framed(kind::CONTINUATION, 0, 1, &[]);
    p.ok(&flood(more.clone(), BLOCK_FRAMES_MAX as usize - 1));
    p.fails(&more, calm);
    // Streams that are refused, without end.
    let mut p = Peer::new();
    let bad = |n: u32| framed(kind::HEADERS, flag::END_HEADERS, 2 * n + 1, &[0x83]);
    let mut strays = 0;
    let failed = (0..).find_map(|n| {
        strays += 1;
        let result = p.put(&bad(n));
        p.c.output().drain();
        result.err()
    });
    assert_eq!(failed.unwrap().reason, calm);
    assert_eq!(strays, STRAYS_MAX + 1);
    assert!(p.c.reset_ids.len() <= RESET_IDS_MAX);
}

#[test]
fn a_client_that_shrinks_its_table_is_told_that_ours_is_empty() {
    let mut p = Peer::new();
    p.ok(&setting(setting::HEADER_TABLE_SIZE, 100));
    p.sent();
    for (stream, expected) in [(1, &b"\x20\x88"[..]), (3, b"\x88")] {
        let slot = p.open(stream, true);
        p.c.headers(slot, b"\x88", true);
        assert_eq!(p.sent()[0].payload, expected);
    }
}

#[test]
fn a_long_block_goes_on_in_further_frames() {
    let mut p = Peer::new();
    let slot = p.open(1, true);
    let mut block = vec![0x88];
    write_field(&mut block, b"grpc-message", &[b'x'; 40_000]);
    p.c.headers(slot, &block, true);
    let frames = p.sent();
    let shape: Vec<_> = frames.iter().map(|f| (f.kind, f.flags)).collect();
    assert_eq!(
        shape,
        [
            (kind::HEADERS, flag::END_STREAM),
            (kind::CONTINUATION, 0),
            (kind::CONTINUATION, flag::END_HEADERS)
        ]
    );
    let whole: Vec<u8> = frames.into_iter().flat_map(|f| f.payload).collect();
    assert_eq!(whole, block);
}

#[test]
fn a_drain_serves_what_was_begun_and_nothing_later() {
    let mut p = Peer::new();
    let first = p.open(1, true);
    p.c.drain();
    p.c.drain();
    let told = p.sent();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].kind, kind::GOAWAY);
    assert_eq!(number(&told[0].payload), (1 << 31) - 1);
    // Begun before the client knew.
    let second = p.open(3, true);
    p.ok(&framed(kind::PING, flag::ACK, 0, &told[1].payload));
    let last = p.sent();
    assert_eq!(number(&last[0].payload), 3);
    assert_eq!(p.ok(&request(5, "/p", false)), []);
    assert_eq!(p.ok(&data(5, b"x", true)), []);
    assert!(!p.c.is_drained());
    for slot in [first, second] {
        p.c.headers(slot, b"\x88", true);
    }
    assert!(p.c.is_drained());
}

#[test]
fn a_request_that_goes_on_after_its_answer_is_read_for_a_while() {
    let mut p = Peer::new();
    let slot = p.open(1, false);
    let other = p.open(3, false);
    p.c.headers(slot, b"\x88", true);
    p.c.headers(other, b"\x88", true);
    p.sent();
    assert!(p.c.has_lingering());
    assert_eq!(p.ok(&data(1, b"still", false)), []);
    assert!(p.c.end_lingering());
    assert_eq!(p.ok(&data(3, b"", true)), []);
    assert_eq!(p.sent(), [], "nobody is reset who ends by himself");
    assert!(!p.c.end_lingering());
    assert_eq!(p.sent(), [sent(kind::RST_STREAM, 0, 1, &[0; 4])]);
    assert_eq!(p.c.streams(), 0);
}

/// A client's bytes, of frames that mostly make sense.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let payload = || prop::collection::vec(any::<u8>(), 0..200);
    let stream = || (0u32..12).prop_map(|n| 2 * n + 1);
    let one = prop_oneof![
        4 => (stream(), any::<bool>()).prop_map(|(s, end)| request(s, "/p", end)),
        4 => (stream(), payload(), any::<bool>()).prop_map(|(s, p, end)| data(s, &p, end)),
        1 => (stream(), 0u32..100_000).prop_map(|(s, n)| update(s, n)),
        1 => stream().prop_map(|s| framed(kind::RST_STREAM, 0, s, &[0; 4])),
        1 => (0u16..7, 0u32..100_000).prop_map(|(id, value)| setting(id, value)),
        1 => Just(framed(kind::PING, 0, 0, &[1; 8])),
        1 => (any::<u8>(), any::<u8>(), 0u32..24, payload())
            .prop_map(|(k, f, s, p)| framed(k, f, s, &p)),
        1 => payload(),
    ];
    prop::collection::vec(one, 0..40).prop_map(|frames| {
        let hello = [&PREFACE[..], &framed(kind::SETTINGS, 0, 0, &[])].concat();
        [hello, frames.concat()].concat()
    })
}

/// Events, how it ended, and what was sent, when the bytes come in these pieces. Every request in an even
/// slot is answered when it begins.
fn outcome(pieces: &[&[u8]]) -> (Vec<Saw>, Option<Failed>, Vec<u8>) {
    let mut c = Connection::new(LIMITS);
    let (mut rest, mut events) = (Vec::new(), Vec::new());
    for piece in pieces {
        rest.extend_from_slice(piece);
        let all = std::mem::take(&mut rest);
        let mut input = &all[..];
        loop {
            let event = match c.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(failed) => {
                    let sent = c.output().drain();
                    return (events, Some(failed), sent);
                }
            };
            events.push(match event {
                Event::Request { slot, end, .. } => {
                    let path = String::from_utf8_lossy(c.head().path()).into_owned();
                    // Some are answered before they end.
                    if slot % 2 == 0 {
                        c.headers(slot, b"\x88", false);
                        c.data(slot, vec![1; 5000].into());
                        c.trailers(slot, b"\x88");
                    }
                    Saw::Request(slot, path, end)
                }
                Event::Data { slot, bytes, end } => {
                    c.release_connection(bytes.len());
                    c.release(slot, bytes.len());
                    Saw::Data(slot, bytes.to_vec(), end)
                }
                Event::Reset { slot } => Saw::Reset(slot),
                Event::Ping => Saw::Ping,
                Event::Pong => Saw::Pong,
            });
            c.pump(|_| {});
        }
        rest = input.to_vec();
    }
    let sent = c.output().drain();
    (events, None, sent)
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_makes_no_difference(
        bytes in conversation(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let whole = outcome(&[&bytes]);
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(outcome(&pieces), whole);
    }

    #[test]
    fn noise_ends_in_an_error_or_in_nothing(
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        hello in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        if hello {
            bytes = [&PREFACE[..], &framed(kind::SETTINGS, 0, 0, &[])].concat();
        }
        bytes.extend_from_slice(&noise);
        let (events, _, sent) = outcome(&[&bytes]);
        prop_assert!(sent.len() < 1000 + 5100 * events.len() + noise.len());
        frames(&sent);
    }

    /// Windows of the client are never overrun, whatever it grants when.
    #[test]
    fn windows_hold(
        steps in prop::collection::vec((0u8..5, 0u32..40_000), 1..60),
    ) {
        let mut p = Peer::new();
        let slots = [p.open(1, true), p.open(3, true)];
        for slot in slots {
            p.c.headers(slot, b"\x88", false);
        }
        let mut windows = [65_535i64, 65_535, 65_535];
        let mut initial = 65_535i64;
        let (mut given, mut got) = (0, 0);
        for (what, n) in steps {
            match what {
                0 | 1 => {
                    p.c.data(slots[usize::from(what)], vec![0; n as usize].into());
                    given += n as usize;
                }
                2 if n > 0 => {
                    p.ok(&update(0, n));
                    windows[0] += i64::from(n);
                }
                3 if n > 0 => {
                    p.ok(&update(1, n));
                    windows[1] += i64::from(n);
                }
                4 => {
                    p.ok(&setting(setting::INITIAL_WINDOW_SIZE, n));
                    windows[1] += i64::from(n) - initial;
                    windows[2] += i64::from(n) - initial;
                    initial = i64::from(n);
                }
                _ => {}
            }
            p.c.pump(|_| {});
            let frames = p.sent();
            for (at, stream) in [(1, 1), (2, 3)] {
                let bytes = body(&frames, stream);
                got += bytes;
                windows[at] -= bytes as i64;
                windows[0] -= bytes as i64;
                prop_assert!(bytes == 0 || (windows[at] >= 0 && windows[0] >= 0));
            }
            prop_assert_eq!(p.c.unsent(), given - got);
        }
        // Nothing is lost: with windows wide open all of it comes.
        p.ok(&[update(0, 1 << 28), update(1, 1 << 28), update(3, 1 << 28)].concat());
        while p.c.unsent() > 0 {
            p.c.pump(|_| {});
            let frames = p.sent();
            got += body(&frames, 1) + body(&frames, 3);
        }
        prop_assert_eq!(got, given);
    }
}
