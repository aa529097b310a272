//! The state of one connection: frames in, events out; answers in, frames out.
//!
//! Invariants:
//! 1. What comes out depends on the bytes that came in, not on how they were cut.
//! 2. After [`Failed`] a GOAWAY that says why is in the output, and nothing is read any more.
//! 3. A slot named by [`Event::Request`] belongs to that request until its answer was given to the end or
//!    [`Event::Reset`] named it.
//! 4. No more is sent than the client's windows allow, on the stream and on the connection; no more is
//!    taken than ours allow. Every byte of DATA counts, also on streams that are closed.
//! 5. What a client can make the connection hold is bounded: a header block, its decoded list, streams,
//!    their windows. The output is bounded by whoever reads: it reads no more while much is unsent.
//! 6. Frames that bring nothing (empty, unknown, repeated settings) are counted, and too many of them
//!    between two useful ones end the connection.

use super::frame::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX, PREFACE, Reason, WINDOW_MAX};
use super::frame::{flag, kind, number, setting};
use super::hpack::{Decoder, Fields, TABLE_EMPTIED, write_status};
use super::output::Output;
use super::request::{self, Head, Parts};
use super::streams::{Answer, Lingers, Stream, Streams};
use bytes::Bytes;
use std::collections::VecDeque;

/// Bytes of a header block, before it is decoded.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Frames of a header block.
const BLOCK_FRAMES_MAX: u32 = 64;
/// Useless frames between two useful ones.
const CHATTER_MAX: u32 = 10_000;
/// Frames on streams that are closed, and streams refused, over the life of a connection. Clients send
/// some whenever a call ends before they expect it.
const STRAYS_MAX: u32 = 65_536;
/// Streams that we reset and whose late frames are passed over.
const RESET_IDS_MAX: usize = 1024;
/// Streams that ended lately; a client that goes on with one breaks the protocol.
const ENDED_IDS_MAX: usize = 32;
/// Frames are no larger than this even where the client takes more, so that streams take turns.
const SEND_PAYLOAD_MAX: usize = 64 << 10;
/// Output that may wait for the socket; what is beyond stays in its stream.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Pieces shorter than this are copied: a reference costs more.
const SHARED_BYTES_MIN: usize = 8 << 10;
/// Marks the ping whose answer tells that the client has seen the first GOAWAY.
const DRAIN_PING: [u8; 8] = *b"goodbye?";

/// What a client is granted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams open at once.
    pub streams_max: u32,
    /// Bytes of one stream that may be on their way.
    pub stream_window: u32,
    /// The same for all streams together.
    pub connection_window: u32,
    /// Bytes of a decoded header list, by the RFC's count.
    pub header_list_bytes_max: usize,
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// A request begins; [`Connection::head`] has its head until the next event.
    Request {
        slot: u32,
        /// It has no body.
        end: bool,
        /// The head is the same as that of the request before.
        repeated: bool,
    },
    /// A part of its body. The bytes are to be released when they are done with.
    Data {
        slot: u32,
        bytes: &'i [u8],
        end: bool,
    },
    /// The request is over: the client gave it up or broke a rule. The slot is free.
    Reset { slot: u32 },
    /// The client asked whether we live; it was answered.
    Ping,
    /// The client answered a ping of ours.
    Pong,
}

/// The connection is lost; this is what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: Reason,
    pub text: &'static str,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", self.text, self.reason)
    }
}

impl std::error::Error for Failed {}

const fn failed(reason: Reason, text: &'static str) -> Failed {
    Failed { reason, text }
}

fn protocol(text: &'static str) -> Failed {
    failed(Reason::Protocol, text)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// So many bytes of the preface have come.
    Preface(usize),
    Settings,
    Open,
    Failed,
}

/// How far the connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client was told, and may have begun more meanwhile.
    Told,
    /// Streams above this are not served.
    After(u32),
}

/// A header block that goes on in the next frame.
struct Block {
    stream: u32,
    end: bool,
    /// The stream depends on itself.
    circular: bool,
    bytes: Vec<u8>,
    frames: u32,
}

pub struct Connection {
    limits: Limits,
    stage: Stage,
    leaving: Leaving,
    hpack: Decoder,
    fields: Fields,
    parts: Parts,
    /// The block that `fields` and `parts` came of, if it is of use again.
    known_block: Vec<u8>,
    known_generation: u64,
    block: Option<Box<Block>>,
    streams: Streams,
    /// The highest stream the client has opened.
    last_id: u32,
    reset_ids: VecDeque<u32>,
    ended_ids: VecDeque<u32>,
    /// Streams whose answer was sent and whose request has not ended.
    lingering: usize,
    recv_window: i64,
    credit: u32,
    send_window: i64,
    peer_stream_window: i64,
    peer_payload_max: usize,
    /// The client made its header table smaller; the next block says that we use none.
    tell_table_emptied: bool,
    /// Slots with something to send and a window for it.
    turns: VecDeque<u32>,
    /// Bytes that wait in streams.
    queued: usize,
    chatter: u32,
    strays: u32,
    /// Headers or data were sent since this was last asked.
    answered: bool,
    out: Output,
}

impl Connection {
    /// A connection of which nothing was read. Its settings are in the output.
    pub fn new(limits: Limits) -> Connection {
        let mut c = Connection {
            stage: Stage::Preface(0),
            leaving: Leaving::No,
            hpack: Decoder::new(limits.header_list_bytes_max),
            fields: Fields::default(),
            parts: Parts::default(),
            known_block: Vec::new(),
            known_generation: 0,
            block: None,
            streams: Streams::default(),
            last_id: 0,
            reset_ids: VecDeque::new(),
            ended_ids: VecDeque::new(),
            lingering: 0,
            recv_window: i64::from(limits.connection_window),
            credit: 0,
            send_window: i64::from(frame::WINDOW_DEFAULT),
            peer_stream_window: i64::from(frame::WINDOW_DEFAULT),
            peer_payload_max: PAYLOAD_BYTES_MAX,
            tell_table_emptied: false,
            turns: VecDeque::new(),
            queued: 0,
            chatter: 0,
            strays: 0,
            answered: false,
            out: Output::default(),
            limits,
        };
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, limits.streams_max),
            (setting::INITIAL_WINDOW_SIZE, limits.stream_window),
            (
                setting::MAX_HEADER_LIST_SIZE,
                limits.header_list_bytes_max as u32,
            ),
        ];
        let mut payload = Vec::with_capacity(18);
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        c.write(kind::SETTINGS, 0, 0, &payload);
        let more = limits
            .connection_window
            .saturating_sub(frame::WINDOW_DEFAULT);
        if more > 0 {
            c.write(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        c
    }

    /// The next event that whole frames at the front of `input` make; what was used is taken off it.
    /// `None` when more input is needed.
    pub fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Failed> {
        let result = self.advance(input);
        if let Err(failed) = &result
            && self.stage != Stage::Failed
        {
            self.fail(*failed);
        }
        result
    }

    /// Ends the connection with a GOAWAY that says why.
    pub fn fail(&mut self, failed: Failed) {
        self.stage = Stage::Failed;
        self.goaway(self.last_id, failed.reason, failed.text);
    }

    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Failed> {
        if let Stage::Preface(seen) = self.stage {
            let n = input.len().min(PREFACE.len() - seen);
            if input[..n] != PREFACE[seen..seen + n] {
                return Err(protocol("no HTTP/2 preface"));
            }
            *input = &input[n..];
            self.stage = match seen + n == PREFACE.len() {
                true => Stage::Settings,
                false => Stage::Preface(seen + n),
            };
        }
        if self.stage == Stage::Failed {
            return Err(protocol("the connection has ended"));
        }
        while let Some(head) = frame::Head::read(input) {
            if head.len > PAYLOAD_BYTES_MAX {
                return Err(failed(Reason::FrameSize, "a frame larger than allowed"));
            }
            if self.stage == Stage::Settings && (head.kind != kind::SETTINGS || head.has(flag::ACK))
            {
                return Err(protocol("no settings behind the preface"));
            }
            let Some(payload) = input.get(HEAD_BYTES..HEAD_BYTES + head.len) else {
                break;
            };
            *input = &input[HEAD_BYTES + head.len..];
            if let Some(event) = self.frame(head, payload)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn frame<'i>(
        &mut self,
        head: frame::Head,
        payload: &'i [u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(protocol("a header block is interrupted"));
        }
        match head.kind {
            kind::DATA => self.on_data(head, payload),
            kind::HEADERS => self.on_headers(head, payload),
            kind::CONTINUATION => self.on_continuation(head, payload),
            kind::RST_STREAM => self.on_reset(head, payload),
            kind::WINDOW_UPDATE => self.on_window_update(head, payload),
            kind::SETTINGS => self.on_settings(head, payload),
            kind::PING => self.on_ping(head, payload),
            kind::PRIORITY => self.on_priority(head, payload),
            kind::GOAWAY => {
                if head.stream != 0 {
                    return Err(protocol("GOAWAY on a stream"));
                }
                if payload.len() < 8 {
                    return Err(failed(Reason::FrameSize, "GOAWAY too short"));
                }
                // The client begins no more; what it has begun goes on.
                self.chatter().map(|()| None)
            }
            kind::PUSH_PROMISE => Err(protocol("a client does not push")),
            _ => self.chatter().map(|()| None),
        }
    }

    fn on_data<'i>(
        &mut self,
        head: frame::Head,
        payload: &'i [u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if head.stream == 0 {
            return Err(protocol("DATA on the connection"));
        }
        let bytes = unpad(head, payload)?;
        let end = head.has(flag::END_STREAM);
        self.recv_window -= payload.len() as i64;
        if self.recv_window < 0 {
            return Err(failed(Reason::FlowControl, "more DATA than the window"));
        }
        self.release_connection(payload.len() - bytes.len());
        let Some(slot) = self.streams.find(head.stream) else {
            self.release_connection(bytes.len());
            return self.on_closed(head.stream);
        };
        if bytes.is_empty() && !end {
            self.chatter()?;
        }
        let stream = self.streams.get(slot);
        if stream.ended {
            self.release_connection(bytes.len());
            return Ok(self.stream_error(slot, Reason::StreamClosed));
        }
        stream.recv_window -= payload.len() as i64;
        stream.credit += (payload.len() - bytes.len()) as u32;
        let too_much = stream.recv_window < 0;
        let mut wrong_length = false;
        if let Some(left) = &mut stream.body_left {
            match left.checked_sub(bytes.len() as u64) {
                Some(rest) => {
                    *left = rest;
                    wrong_length = end && rest > 0;
                }
                None => wrong_length = true,
            }
        }
        if too_much || wrong_length {
            self.release_connection(bytes.len());
            let reason = match too_much {
                true => Reason::FlowControl,
                false => Reason::Protocol,
            };
            return Ok(self.stream_error(slot, reason));
        }
        stream.ended = end;
        if matches!(stream.answer, Answer::Given | Answer::Sent) {
            // Nobody reads it any more.
            self.release_connection(bytes.len());
            if end {
                self.close_if_done(slot);
            }
            return Ok(None);
        }
        if bytes.is_empty() && !end {
            return Ok(None);
        }
        if !bytes.is_empty() {
            self.chatter = 0;
        }
        Ok(Some(Event::Data { slot, bytes, end }))
    }

    fn on_headers<'i>(
        &mut self,
        head: frame::Head,
        payload: &'i [u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if head.stream.is_multiple_of(2) {
            return Err(protocol("HEADERS on a stream that is not the client's"));
        }
        let mut bytes = unpad(head, payload)?;
        let mut circular = false;
        if head.has(flag::PRIORITY) {
            if bytes.len() < 5 {
                return Err(failed(Reason::FrameSize, "HEADERS too short"));
            }
            circular = number(bytes) & 0x7fff_ffff == head.stream;
            bytes = &bytes[5..];
        }
        let end = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.on_block(head.stream, end, circular, bytes);
        }
        self.block = Some(Box::new(Block {
            stream: head.stream,
            end,
            circular,
            bytes: bytes.to_vec(),
            frames: 1,
        }));
        Ok(None)
    }

    fn on_continuation<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        let Some(block) = self.block.as_mut().filter(|b| b.stream == head.stream) else {
            return Err(protocol("CONTINUATION of nothing"));
        };
        block.frames += 1;
        if block.bytes.len() + payload.len() > BLOCK_BYTES_MAX || block.frames > BLOCK_FRAMES_MAX {
            return Err(failed(
                Reason::EnhanceYourCalm,
                "a header block without end",
            ));
        }
        block.bytes.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(None);
        }
        match self.block.take() {
            Some(b) => self.on_block(b.stream, b.end, b.circular, &b.bytes),
            None => Ok(None),
        }
    }

    /// A whole header block. It is decoded whatever becomes of its stream, since the table changes.
    fn on_block<'i>(
        &mut self,
        id: u32,
        end: bool,
        circular: bool,
        block: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        let repeated = !block.is_empty()
            && self.known_block == block
            && self.known_generation == self.hpack.generation();
        if !repeated {
            self.known_block.clear();
            let generation = self.hpack.generation();
            self.hpack
                .decode(block, &mut self.fields)
                .map_err(|_| failed(Reason::Compression, "a header block cannot be decoded"))?;
            self.known_generation = generation;
        }
        if let Some(slot) = self.streams.find(id) {
            self.known_block.clear();
            return Ok(self.on_trailers(slot, end));
        }
        if id <= self.last_id {
            return self.on_late_headers(id);
        }
        if let Leaving::After(last) = self.leaving
            && id > last
        {
            self.last_id = id;
            return self.stray();
        }
        self.last_id = id;
        if circular {
            self.write_reset(id, Reason::Protocol);
            return self.stray();
        }
        if self.streams.len() >= self.limits.streams_max as usize {
            self.write_reset(id, Reason::RefusedStream);
            return self.stray();
        }
        if !repeated {
            if self.fields.is_over() {
                let slot = self.open(id, end, None);
                let mut answer = Vec::new();
                write_status(&mut answer, 431);
                self.headers(slot, &answer, true);
                return self.stray();
            }
            let Ok(parts) = request::check(&self.fields) else {
                self.write_reset(id, Reason::Protocol);
                return self.stray();
            };
            self.parts = parts;
            // Only a block that leaves the table as it is means the same the next time.
            if self.known_generation == self.hpack.generation() {
                self.known_block.extend_from_slice(block);
            }
        }
        if end && self.parts.body_bytes.is_some_and(|bytes| bytes > 0) {
            self.write_reset(id, Reason::Protocol);
            return self.stray();
        }
        self.chatter = 0;
        let slot = self.open(id, end, self.parts.body_bytes);
        Ok(Some(Event::Request {
            slot,
            end,
            repeated,
        }))
    }

    fn open(&mut self, id: u32, end: bool, body_left: Option<u64>) -> u32 {
        self.streams.insert(Stream {
            id,
            ended: end,
            answer: Answer::None,
            in_turn: false,
            lingers: Lingers::Not,
            send_window: self.peer_stream_window,
            recv_window: i64::from(self.limits.stream_window),
            credit: 0,
            body_left,
            queue: None,
        })
    }

    /// A second list on an open stream ends the request. Nothing in it is of use.
    fn on_trailers<'i>(&mut self, slot: u32, end: bool) -> Option<Event<'i>> {
        let well_formed = request::check_trailers(&self.fields).is_ok();
        let stream = self.streams.get(slot);
        if stream.ended {
            return self.stream_error(slot, Reason::StreamClosed);
        }
        if !end || !well_formed || stream.body_left.is_some_and(|left| left > 0) {
            return self.stream_error(slot, Reason::Protocol);
        }
        stream.ended = true;
        match stream.answer {
            Answer::None | Answer::Begun => Some(Event::Data {
                slot,
                bytes: &[],
                end: true,
            }),
            Answer::Given | Answer::Sent => {
                self.close_if_done(slot);
                None
            }
        }
    }

    fn on_late_headers<'i>(&mut self, id: u32) -> Result<Option<Event<'i>>, Failed> {
        if self.reset_ids.contains(&id) {
            return self.stray();
        }
        Err(match self.ended_ids.contains(&id) {
            true => failed(Reason::StreamClosed, "HEADERS on a stream that has ended"),
            false => protocol("streams are not opened in order"),
        })
    }

    /// DATA on a stream that is not open.
    fn on_closed<'i>(&mut self, id: u32) -> Result<Option<Event<'i>>, Failed> {
        if id > self.last_id || id.is_multiple_of(2) {
            return Err(protocol("DATA on a stream that was never opened"));
        }
        if self.ended_ids.contains(&id) {
            return Err(failed(
                Reason::StreamClosed,
                "DATA on a stream that has ended",
            ));
        }
        self.stray()
    }

    fn on_reset<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if payload.len() != 4 {
            return Err(failed(Reason::FrameSize, "RST_STREAM of a wrong size"));
        }
        if head.stream == 0 || head.stream > self.last_id {
            return Err(protocol("RST_STREAM on a stream that was never opened"));
        }
        let Some(slot) = self.streams.find(head.stream) else {
            return self.stray();
        };
        let is_served = self.is_served(slot);
        self.close(slot);
        self.remember_ended(head.stream);
        Ok(is_served.then_some(Event::Reset { slot }))
    }

    /// Whether someone holds the slot: its answer was not given to the end.
    fn is_served(&mut self, slot: u32) -> bool {
        matches!(self.streams.get(slot).answer, Answer::None | Answer::Begun)
    }

    fn on_window_update<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if payload.len() != 4 {
            return Err(failed(Reason::FrameSize, "WINDOW_UPDATE of a wrong size"));
        }
        self.chatter()?;
        let more = i64::from(number(payload) & 0x7fff_ffff);
        if head.stream == 0 {
            if more == 0 {
                return Err(protocol("WINDOW_UPDATE of nothing"));
            }
            self.send_window += more;
            if self.send_window > WINDOW_MAX {
                return Err(failed(Reason::FlowControl, "a window too large"));
            }
            return Ok(None);
        }
        if head.stream > self.last_id || head.stream.is_multiple_of(2) {
            return Err(protocol("WINDOW_UPDATE on a stream that was never opened"));
        }
        let Some(slot) = self.streams.find(head.stream) else {
            return Ok(None);
        };
        if more == 0 {
            return Ok(self.stream_error(slot, Reason::Protocol));
        }
        let stream = self.streams.get(slot);
        stream.send_window += more;
        if stream.send_window > WINDOW_MAX {
            return Ok(self.stream_error(slot, Reason::FlowControl));
        }
        self.take_turn(slot);
        Ok(None)
    }

    fn on_settings<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if head.stream != 0 {
            return Err(protocol("SETTINGS on a stream"));
        }
        self.stage = Stage::Open;
        self.chatter()?;
        if head.has(flag::ACK) {
            return match payload.is_empty() {
                true => Ok(None),
                false => Err(failed(Reason::FrameSize, "an answer with settings")),
            };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(failed(Reason::FrameSize, "SETTINGS of a wrong size"));
        }
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            self.on_setting(id, number(&entry[2..]))?;
        }
        self.write(kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(None)
    }

    fn on_setting(&mut self, id: u16, value: u32) -> Result<(), Failed> {
        match id {
            setting::HEADER_TABLE_SIZE => self.tell_table_emptied |= value < 4096,
            setting::ENABLE_PUSH if value > 1 => return Err(protocol("ENABLE_PUSH is 0 or 1")),
            setting::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                if window > WINDOW_MAX {
                    return Err(failed(Reason::FlowControl, "a window too large"));
                }
                let change = window - self.peer_stream_window;
                self.peer_stream_window = window;
                let mut waiting = Vec::new();
                for (slot, stream) in self.streams.iter_mut() {
                    stream.send_window += change;
                    if stream.send_window > WINDOW_MAX {
                        return Err(failed(Reason::FlowControl, "a window too large"));
                    }
                    if stream.queue.is_some() {
                        waiting.push(slot);
                    }
                }
                waiting.into_iter().for_each(|slot| self.take_turn(slot));
            }
            setting::MAX_FRAME_SIZE => {
                let value = value as usize;
                if !(PAYLOAD_BYTES_MAX..1 << 24).contains(&value) {
                    return Err(protocol("MAX_FRAME_SIZE out of bounds"));
                }
                self.peer_payload_max = value.min(SEND_PAYLOAD_MAX);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_ping<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if head.stream != 0 {
            return Err(protocol("PING on a stream"));
        }
        if payload.len() != 8 {
            return Err(failed(Reason::FrameSize, "PING of a wrong size"));
        }
        if head.has(flag::ACK) {
            if payload == DRAIN_PING && self.leaving == Leaving::Told {
                self.leaving = Leaving::After(self.last_id);
                self.goaway(self.last_id, Reason::NoError, "");
            }
            return Ok(Some(Event::Pong));
        }
        self.write(kind::PING, flag::ACK, 0, payload);
        Ok(Some(Event::Ping))
    }

    fn on_priority<'i>(
        &mut self,
        head: frame::Head,
        payload: &[u8],
    ) -> Result<Option<Event<'i>>, Failed> {
        if head.stream == 0 {
            return Err(protocol("PRIORITY on the connection"));
        }
        self.chatter()?;
        let reason = match payload.len() {
            5 if number(payload) & 0x7fff_ffff != head.stream => return Ok(None),
            5 => Reason::Protocol,
            _ => Reason::FrameSize,
        };
        match self.streams.find(head.stream) {
            Some(slot) => Ok(self.stream_error(slot, reason)),
            None => {
                self.write_reset(head.stream, reason);
                self.stray()
            }
        }
    }

    fn chatter(&mut self) -> Result<(), Failed> {
        self.chatter += 1;
        match self.chatter > CHATTER_MAX {
            true => Err(failed(Reason::EnhanceYourCalm, "too_many_frames")),
            false => Ok(()),
        }
    }

    fn stray<'i>(&mut self) -> Result<Option<Event<'i>>, Failed> {
        self.strays += 1;
        match self.strays > STRAYS_MAX {
            true => Err(failed(Reason::EnhanceYourCalm, "too_many_stray_frames")),
            false => Ok(None),
        }
    }

    /// Resets a stream for a rule it broke and says so, if anybody serves it.
    fn stream_error<'i>(&mut self, slot: u32, reason: Reason) -> Option<Event<'i>> {
        let is_served = self.is_served(slot);
        self.reset(slot, reason);
        is_served.then_some(Event::Reset { slot })
    }

    // What is sent.

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::write(self.out.tail(), kind, flags, stream, payload);
    }

    fn write_reset(&mut self, id: u32, reason: Reason) {
        if self.reset_ids.len() == RESET_IDS_MAX {
            self.reset_ids.pop_front();
        }
        self.reset_ids.push_back(id);
        self.write(kind::RST_STREAM, 0, id, &(reason as u32).to_be_bytes());
    }

    fn goaway(&mut self, last: u32, reason: Reason, text: &str) {
        let mut payload = Vec::with_capacity(8 + text.len());
        payload.extend_from_slice(&last.to_be_bytes());
        payload.extend_from_slice(&(reason as u32).to_be_bytes());
        payload.extend_from_slice(text.as_bytes());
        self.write(kind::GOAWAY, 0, 0, &payload);
    }

    /// Sends the headers of an answer; `end` when they are all of it.
    pub fn headers(&mut self, slot: u32, block: &[u8], end: bool) {
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        let id = stream.id;
        stream.answer = match end {
            true => Answer::Sent,
            false => Answer::Begun,
        };
        self.write_block(id, block, end);
        if end {
            self.sent(slot);
        }
    }

    fn write_block(&mut self, id: u32, block: &[u8], end: bool) {
        self.answered = true;
        let end_stream = if end { flag::END_STREAM } else { 0 };
        let emptied = std::mem::take(&mut self.tell_table_emptied);
        let max = self.peer_payload_max;
        if !emptied && block.len() <= max {
            return self.write(kind::HEADERS, end_stream | flag::END_HEADERS, id, block);
        }
        let mut whole = Vec::with_capacity(block.len() + 1);
        if emptied {
            whole.push(TABLE_EMPTIED);
        }
        whole.extend_from_slice(block);
        let mut pieces = whole.chunks(max).peekable();
        let (mut kind, mut flags) = (kind::HEADERS, end_stream);
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            self.write(kind, flags, id, piece);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// Whether so many bytes of a body can be sent right now.
    fn has_room(&mut self, slot: u32, len: usize) -> bool {
        let stream = self.streams.get(slot);
        stream.queue.is_none()
            && len as i64 <= stream.send_window.min(self.send_window)
            && len <= self.peer_payload_max
            && self.out.len() < OUTPUT_BYTES_MAX
    }

    /// Sends a part of the body of an answer, or keeps it until the windows allow.
    pub fn data(&mut self, slot: u32, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        let (id, len) = (stream.id, piece.len());
        if self.has_room(slot, len) {
            return self.write_data(slot, id, piece, false);
        }
        let queue = self.streams.get(slot).queue.get_or_insert_default();
        queue.bytes += len;
        queue.pieces.push_back(piece);
        self.queued += len;
        self.take_turn(slot);
    }

    /// Ends an answer with trailers.
    pub fn trailers(&mut self, slot: u32, block: &[u8]) {
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        match &mut stream.queue {
            Some(queue) => {
                stream.answer = Answer::Given;
                queue.trailers = Some(block.into());
            }
            None => {
                stream.answer = Answer::Sent;
                let id = stream.id;
                self.write_block(id, block, true);
                self.sent(slot);
            }
        }
    }

    /// Ends an answer without trailers.
    pub fn finish(&mut self, slot: u32) {
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        match &mut stream.queue {
            Some(queue) => {
                stream.answer = Answer::Given;
                queue.trailers = Some(Box::default());
            }
            None => {
                stream.answer = Answer::Sent;
                let id = stream.id;
                self.write(kind::DATA, flag::END_STREAM, id, &[]);
                self.sent(slot);
            }
        }
    }

    /// A whole answer in one: headers, a body in one piece, trailers. Returns whether it was sent; if
    /// not, windows forbid it, and nothing was.
    pub fn whole(&mut self, slot: u32, headers: &[u8], body: &[&[u8]], trailers: &[u8]) -> bool {
        let Some(stream) = self.streams.open(slot) else {
            return true;
        };
        let id = stream.id;
        let len = body.iter().map(|part| part.len()).sum();
        if len >= SHARED_BYTES_MIN || !self.has_room(slot, len) {
            return false;
        }
        self.write_block(id, headers, false);
        self.send_window -= len as i64;
        let stream = self.streams.get(slot);
        stream.send_window -= len as i64;
        stream.answer = Answer::Sent;
        let out = self.out.tail();
        frame::Head {
            len,
            kind: kind::DATA,
            flags: 0,
            stream: id,
        }
        .write(out);
        body.iter().for_each(|part| out.extend_from_slice(part));
        self.write_block(id, trailers, true);
        self.sent(slot);
        true
    }

    fn write_data(&mut self, slot: u32, id: u32, piece: Bytes, end: bool) {
        self.answered = true;
        self.chatter = 0;
        let len = piece.len();
        self.send_window -= len as i64;
        self.streams.get(slot).send_window -= len as i64;
        let flags = if end { flag::END_STREAM } else { 0 };
        let out = self.out.tail();
        frame::Head {
            len,
            kind: kind::DATA,
            flags,
            stream: id,
        }
        .write(out);
        match len < SHARED_BYTES_MIN {
            true => out.extend_from_slice(&piece),
            false => self.out.share(piece),
        }
    }

    fn take_turn(&mut self, slot: u32) {
        let stream = self.streams.get(slot);
        if stream.queue.is_some() && stream.send_window > 0 && !stream.in_turn {
            stream.in_turn = true;
            self.turns.push_back(slot);
        }
    }

    /// Sends what windows and output allow of what waits, a frame of each stream at a time. Calls
    /// `emptied` for slots that wait for nothing any more and whose answers go on.
    pub fn pump(&mut self, mut emptied: impl FnMut(u32)) {
        while self.send_window > 0
            && self.out.len() < OUTPUT_BYTES_MAX
            && let Some(slot) = self.turns.pop_front()
        {
            let window = self.send_window.min(self.peer_payload_max as i64);
            let Some(stream) = self.streams.open(slot) else {
                continue;
            };
            stream.in_turn = false;
            let id = stream.id;
            let window = window.min(stream.send_window);
            let Some(queue) = &mut stream.queue else {
                continue;
            };
            if window <= 0 {
                continue;
            }
            let Some(first) = queue.pieces.front_mut() else {
                continue;
            };
            let piece = match first.len() as i64 <= window {
                true => queue.pieces.pop_front().unwrap_or_default(),
                false => first.split_to(window as usize),
            };
            queue.bytes -= piece.len();
            self.queued -= piece.len();
            let mut last = None;
            if queue.pieces.is_empty() {
                last = stream.queue.take();
            }
            let Some(last) = last else {
                self.write_data(slot, id, piece, false);
                self.take_turn(slot);
                continue;
            };
            match last.trailers {
                None => {
                    self.write_data(slot, id, piece, false);
                    emptied(slot);
                }
                Some(block) => {
                    self.write_data(slot, id, piece, block.is_empty());
                    if !block.is_empty() {
                        self.write_block(id, &block, true);
                    }
                    self.streams.get(slot).answer = Answer::Sent;
                    self.sent(slot);
                }
            }
        }
    }

    /// All of an answer is in the output.
    fn sent(&mut self, slot: u32) {
        self.strays = self.strays.saturating_sub(1);
        let stream = self.streams.get(slot);
        if stream.ended {
            return self.close_if_done(slot);
        }
        stream.lingers = Lingers::New;
        self.lingering += 1;
    }

    fn close_if_done(&mut self, slot: u32) {
        let stream = self.streams.get(slot);
        if stream.answer == Answer::Sent {
            let id = stream.id;
            self.close(slot);
            self.remember_ended(id);
        }
    }

    fn close(&mut self, slot: u32) {
        if self.streams.get(slot).lingers != Lingers::Not {
            self.lingering -= 1;
        }
        self.queued -= self.streams.remove(slot);
    }

    fn remember_ended(&mut self, id: u32) {
        if self.ended_ids.len() == ENDED_IDS_MAX {
            self.ended_ids.pop_front();
        }
        self.ended_ids.push_back(id);
    }

    /// Resets a stream; its slot is free.
    pub fn reset(&mut self, slot: u32, reason: Reason) {
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        let id = stream.id;
        self.close(slot);
        self.write_reset(id, reason);
    }

    /// Gives back a part of the window of a stream: so many bytes are done with.
    pub fn release(&mut self, slot: u32, bytes: usize) {
        let window = self.limits.stream_window;
        let Some(stream) = self.streams.open(slot) else {
            return;
        };
        stream.credit += bytes as u32;
        if stream.credit < window / 2 || stream.ended {
            return;
        }
        let (id, credit) = (stream.id, std::mem::take(&mut stream.credit));
        stream.recv_window += i64::from(credit);
        self.write(kind::WINDOW_UPDATE, 0, id, &credit.to_be_bytes());
    }

    /// The same for the connection.
    pub fn release_connection(&mut self, bytes: usize) {
        self.credit += bytes as u32;
        if self.credit >= self.limits.connection_window / 2 {
            let credit = std::mem::take(&mut self.credit);
            self.recv_window += i64::from(credit);
            self.write(kind::WINDOW_UPDATE, 0, 0, &credit.to_be_bytes());
        }
    }

    /// Asks whether the client lives.
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.write(kind::PING, 0, 0, &payload);
    }

    /// Tells the client to begin no more here. What it has begun is served.
    pub fn drain(&mut self) {
        if self.leaving == Leaving::No && self.stage != Stage::Failed {
            self.leaving = Leaving::Told;
            self.goaway(WINDOW_MAX as u32, Reason::NoError, "");
            self.ping(DRAIN_PING);
        }
    }

    /// Resets the streams that were answered before the last call and whose requests have still not
    /// ended. Returns whether there are more of that kind.
    pub fn end_lingering(&mut self) -> bool {
        let mut late = Vec::new();
        if self.lingering > 0 {
            for (slot, stream) in self.streams.iter_mut() {
                match stream.lingers {
                    Lingers::Not => {}
                    Lingers::New => stream.lingers = Lingers::Seen,
                    Lingers::Seen => late.push(slot),
                }
            }
        }
        for slot in late {
            self.reset(slot, Reason::NoError);
        }
        self.lingering > 0
    }

    // What is asked.

    /// The head of the request of the last event.
    pub fn head(&self) -> Head<'_> {
        Head {
            fields: &self.fields,
            parts: self.parts,
        }
    }

    /// Whether any answered stream has a request that goes on.
    pub fn has_lingering(&self) -> bool {
        self.lingering > 0
    }

    /// Bytes that wait in a stream for its window.
    pub fn queued_in(&mut self, slot: u32) -> usize {
        let queue = self.streams.open(slot).and_then(|s| s.queue.as_ref());
        queue.map_or(0, |queue| queue.bytes)
    }

    /// Bytes that wait in all streams and in the output.
    pub fn unsent(&self) -> usize {
        self.queued + self.out.len()
    }

    /// Whether so much waits for the socket that no more should be read.
    pub fn is_clogged(&self) -> bool {
        self.out.len() >= OUTPUT_BYTES_MAX
    }

    /// Open streams.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether headers or data were sent since this was last asked.
    pub fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Whether the client knows that no more is served, and all that it began was.
    pub fn is_drained(&self) -> bool {
        matches!(self.leaving, Leaving::After(_)) && self.streams.len() == 0
    }

    /// What goes to the socket.
    pub fn output(&mut self) -> &mut Output {
        &mut self.out
    }
}

/// Takes the padding off a payload.
fn unpad(head: frame::Head, payload: &[u8]) -> Result<&[u8], Failed> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let Some((padding, rest)) = payload.split_first() else {
        return Err(failed(Reason::FrameSize, "a padded frame without a length"));
    };
    let len = rest.len().checked_sub(usize::from(*padding));
    len.map(|len| &rest[..len])
        .ok_or(protocol("more padding than payload"))
}

#[cfg(test)]
mod tests;
