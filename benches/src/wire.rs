//! The client's side of one HTTP/2 connection, as lean as it can be: a driver that costs more than
//! the servers it compares, on the same cores, would measure itself.
//!
//! It sends what a gRPC client sends after its first call (a header block of table references and one
//! DATA frame), all requests of a wake in one write, and reads frames. It knows no more of HTTP/2 than that takes:
//! response headers are not decoded, because an answer without a message is an error whatever they say.
//!
//! Invariants:
//! 1. Never more bytes in flight than the server's connection window; a request is at most
//!    [`REQUEST_BYTES_MAX`], below every stream window.
//! 2. All calls of a connection go to one method, so that the header block stays the same.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest request: a DATA frame that every server takes.
pub const REQUEST_BYTES_MAX: usize = 16_000;

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// What the server may send unasked, per stream and at first in all.
const WINDOW: u32 = 1 << 30;

/// A connection with calls in flight, each known by the caller's number for it.
pub struct Wire {
    stream: TcpStream,
    out: Vec<u8>,
    input: BytesMut,
    next_id: u32,
    /// Bytes that may be sent.
    window: i64,
    /// Bytes received since the window was last opened.
    received: u32,
    /// Stream id → the caller's number and its message so far.
    calls: HashMap<u32, (usize, BytesMut)>,
    path: &'static str,
    authority: String,
}

/// How a call ended: its number and its message, or what went wrong.
pub type Ended = (usize, Result<Bytes, String>);

impl Wire {
    /// Connects; calls will go to `path`.
    pub async fn connect(endpoint: &str, path: &'static str) -> io::Result<Wire> {
        let stream = TcpStream::connect(endpoint).await?;
        stream.set_nodelay(true)?;
        let mut wire = Wire {
            stream,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            input: BytesMut::with_capacity(64 << 10),
            next_id: 1,
            window: 65_535,
            received: 0,
            calls: HashMap::new(),
            path,
            authority: endpoint.to_owned(),
        };
        // ENABLE_PUSH 0, INITIAL_WINDOW_SIZE.
        let mut settings = vec![0, 2, 0, 0, 0, 0, 0, 4];
        settings.extend(WINDOW.to_be_bytes());
        wire.frame(SETTINGS, 0, 0, &settings);
        wire.frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Ok(wire)
    }

    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        self.frame_head(payload.len(), kind, flags, id);
        self.out.extend(payload);
    }

    fn frame_head(&mut self, len: usize, kind: u8, flags: u8, id: u32) {
        self.out.extend(&(len as u32).to_be_bytes()[1..]);
        self.out.extend([kind, flags]);
        self.out.extend(id.to_be_bytes());
    }

    /// Whether the server's window has room for a request of any size allowed.
    pub fn has_room(&self) -> bool {
        self.window > (REQUEST_BYTES_MAX + 5) as i64
    }

    /// Begins a call; nothing is sent before [`Wire::send`].
    pub fn call(&mut self, number: usize, message: &[u8]) {
        let id = self.next_id;
        self.next_id += 2;
        let block = match id {
            1 => self.first_headers(),
            // POST, http, and the four fields that the first block put into the table.
            _ => vec![0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe],
        };
        self.frame(HEADERS, END_HEADERS, id, &block);
        let len = message.len() + 5;
        self.frame_head(len, DATA, END_STREAM, id);
        self.out.push(0);
        self.out.extend((message.len() as u32).to_be_bytes());
        self.out.extend(message);
        self.window -= len as i64;
        self.calls.insert(id, (number, BytesMut::new()));
    }

    /// The fields of every call, each put into the server's table.
    fn first_headers(&self) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        // Names 4, 1 and 31 of the static table, then one of our own.
        let fields: [(&[u8], &[u8]); 4] = [
            (&[0x44], self.path.as_bytes()),
            (&[0x41], self.authority.as_bytes()),
            (&[0x5f], b"application/grpc"),
            (b"\x40\x02te", b"trailers"),
        ];
        for (name, value) in fields {
            block.extend(name);
            assert!(value.len() < 127, "one length byte");
            block.push(value.len() as u8);
            block.extend(value);
        }
        block
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Sends what has gathered.
    pub async fn send(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits for bytes and adds the calls that ended. Safe to drop while it waits.
    pub async fn receive(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        self.input.reserve(16 << 10);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while self.input.len() >= FRAME_HEADER {
            let len = u32::from_be_bytes([0, self.input[0], self.input[1], self.input[2]]) as usize;
            if self.input.len() < FRAME_HEADER + len {
                break;
            }
            let head = self.input.split_to(FRAME_HEADER);
            let payload = self.input.split_to(len).freeze();
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1);
            self.take(head[3], head[4], id, payload, ended)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        kind: u8,
        flags: u8,
        id: u32,
        mut payload: Bytes,
        ended: &mut Vec<Ended>,
    ) -> io::Result<()> {
        match kind {
            DATA => {
                self.received += payload.len() as u32;
                if self.received > WINDOW / 2 {
                    let opened = self.received.to_be_bytes();
                    self.frame(WINDOW_UPDATE, 0, 0, &opened);
                    self.received = 0;
                }
                if flags & PADDED != 0 {
                    let pad = usize::from(payload.get_u8());
                    payload.truncate(payload.len() - pad);
                }
                if let Some((_, message)) = self.calls.get_mut(&id) {
                    message.extend_from_slice(&payload);
                }
            }
            SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload),
            WINDOW_UPDATE if id == 0 => self.window += i64::from(payload.get_u32()),
            GOAWAY => return Err(io::Error::other(format!("GOAWAY {payload:?}"))),
            _ => {}
        }
        let over =
            kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0);
        if let Some((number, message)) = over.then(|| self.calls.remove(&id)).flatten() {
            let whole = message.len() >= 5
                && u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize
                    == message.len() - 5;
            let result = match whole {
                true => Ok(message.freeze().slice(5..)),
                false => Err("a call ended without a message".to_owned()),
            };
            ended.push((number, result));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Against the crate h2: what is sent is understood, and answers in pieces come together.
    #[tokio::test]
    async fn calls_reach_a_server_and_answers_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(socket).await.unwrap();
            while let Some(call) = server.accept().await {
                let (request, mut respond) = call.unwrap();
                assert_eq!(request.uri().path(), "/a.B/C");
                assert_eq!(request.headers()["te"], "trailers");
                tokio::spawn(async move {
                    let body = request.into_body().data().await.unwrap().unwrap();
                    let mut stream = respond
                        .send_response(http::Response::new(()), false)
                        .unwrap();
                    if &body[5..] == b"fail" {
                        return stream.send_trailers(http::HeaderMap::new()).unwrap();
                    }
                    let (one, two) = (body.slice(..6), body.slice(6..));
                    stream.send_data(one, false).unwrap();
                    stream.send_data(two, false).unwrap();
                    stream.send_trailers(http::HeaderMap::new()).unwrap();
                });
            }
        });
        let mut wire = Wire::connect(&address, "/a.B/C").await.unwrap();
        let mut ended = Vec::new();
        for (number, message) in ["hello", "fail", "again"].into_iter().enumerate() {
            wire.call(number, message.as_bytes());
        }
        assert_eq!(wire.in_flight(), 3);
        wire.send().await.unwrap();
        while ended.len() < 3 {
            wire.receive(&mut ended).await.unwrap();
            wire.send().await.unwrap();
        }
        ended.sort_by_key(|(number, _)| *number);
        assert_eq!(ended[0].1, Ok(Bytes::from("hello")));
        assert!(ended[1].1.is_err());
        assert_eq!(ended[2].1, Ok(Bytes::from("again")));
        assert_eq!(wire.in_flight(), 0);
    }
}
