//! gRPC's framing: a flag byte, four bytes of length, the message; cut into pieces anywhere.
//!
//! Pure: bytes in, messages out.
//!
//! Invariants:
//! 1. What comes out depends on the bytes alone, not on how they were cut.
//! 2. At most one incomplete message is held, no larger than the limit, and memory for it is taken as
//!    its bytes arrive, not as its prefix promises.
//! 3. A refusal has grpc-go's code and text, and is final.

use crate::status::{Code, Status};
use bytes::{Buf, Bytes, BytesMut};

/// Bytes in front of every message.
pub const PREFIX_BYTES: usize = 5;

/// The message in the first piece of a call, if it is whole, alone in it and acceptable: nothing has to be
/// kept for it then.
pub fn at_once(piece: &[u8], bytes_max: usize) -> Option<&[u8]> {
    let (prefix, rest) = piece.split_first_chunk::<PREFIX_BYTES>()?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    (prefix[0] == 0 && len == rest.len() && len <= bytes_max).then_some(rest)
}

/// Takes the frames of one direction of a call apart.
#[derive(Debug)]
pub struct Decoder {
    bytes_max: usize,
    /// What has not been handed out.
    held: BytesMut,
    compressed_with: Option<Box<str>>,
    refused: bool,
}

impl Decoder {
    /// For messages up to `bytes_max`. `encoding` is the client's `grpc-encoding`.
    pub fn new(bytes_max: usize, encoding: Option<&str>) -> Decoder {
        Decoder {
            bytes_max,
            held: BytesMut::new(),
            compressed_with: encoding.map(Into::into),
            refused: false,
        }
    }

    /// Takes the next piece of input. Call [`next`](Decoder::next) until it has no more before the next
    /// piece, so that no more than one message is held.
    pub fn feed(&mut self, piece: &[u8]) {
        if !self.refused {
            self.held.extend_from_slice(piece);
        }
    }

    /// Bytes of the message at the front, without its prefix, once all of it has arrived.
    pub fn whole(&self) -> Option<usize> {
        let prefix = self.held.first_chunk::<PREFIX_BYTES>()?;
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        (self.held.len() - PREFIX_BYTES >= len).then_some(len)
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// The next whole message, if it has arrived.
    pub fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(prefix) = self.held.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let flag = prefix[0];
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.bytes_max {
            return Err(self.refuse(Status::new(
                Code::ResourceExhausted,
                format!(
                    "grpc: received message larger than max ({len} vs. {})",
                    self.bytes_max
                ),
            )));
        }
        if self.whole().is_none() {
            return Ok(None);
        }
        if let Err(status) = self.check_flag(flag) {
            return Err(self.refuse(status));
        }
        self.held.advance(PREFIX_BYTES);
        let message = self.held.split_to(len).freeze();
        if self.held.is_empty() {
            // Lets go of a buffer as large as the largest message so far.
            self.held = BytesMut::new();
        }
        Ok(Some(message))
    }

    /// Whether a prefix has arrived and its message has not. Less than a prefix at the end of a stream
    /// counts as nothing, as with grpc-go.
    pub fn is_mid_message(&self) -> bool {
        self.held.len() >= PREFIX_BYTES
    }

    fn check_flag(&self, flag: u8) -> Result<(), Status> {
        match (flag, &self.compressed_with) {
            (0, _) => Ok(()),
            (1, Some(encoding)) if &**encoding != "identity" => Err(no_decompressor(encoding)),
            (1, _) => Err(Status::fixed(
                Code::Internal,
                "grpc: compressed flag set with identity or empty encoding",
            )),
            _ => Err(Status::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {flag}"),
            )),
        }
    }

    fn refuse(&mut self, status: Status) -> Status {
        self.refused = true;
        self.held = BytesMut::new();
        status
    }
}

/// The refusal of an encoding; none is supported but identity.
pub fn no_decompressor(encoding: &str) -> Status {
    Status::new(
        Code::Unimplemented,
        format!("grpc: Decompressor is not installed for grpc-encoding {encoding:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1000;

    fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut frame = vec![flag];
        frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
        frame.extend_from_slice(message);
        frame
    }

    /// Everything that comes out for these pieces.
    fn decode(pieces: &[&[u8]], encoding: Option<&str>) -> (Vec<Bytes>, Option<Status>, bool) {
        let mut decoder = Decoder::new(MAX, encoding);
        let mut messages = Vec::new();
        for piece in pieces {
            decoder.feed(piece);
            loop {
                match decoder.next() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(status) => return (messages, Some(status), decoder.is_mid_message()),
                }
            }
        }
        (messages, None, decoder.is_mid_message())
    }

    fn refusal(bytes: &[u8], encoding: Option<&str>) -> (Code, String) {
        let status = decode(&[bytes], encoding).1.expect("refused");
        (status.code, status.message.into_owned())
    }

    #[test]
    fn refusals_have_grpc_go_s_texts() {
        assert_eq!(
            refusal(&frame(0, &[0; MAX + 1]), None),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (1001 vs. 1000)".into()
            )
        );
        assert_eq!(
            refusal(&[0, 255, 255, 255, 255], None).1,
            "grpc: received message larger than max (4294967295 vs. 1000)"
        );
        assert_eq!(
            refusal(&frame(1, b"x"), Some("gzip")),
            (
                Code::Unimplemented,
                "grpc: Decompressor is not installed for grpc-encoding \"gzip\"".into()
            )
        );
        for identity in [None, Some("identity")] {
            assert_eq!(
                refusal(&frame(1, b"x"), identity),
                (
                    Code::Internal,
                    "grpc: compressed flag set with identity or empty encoding".into()
                )
            );
        }
        assert_eq!(
            refusal(&frame(7, b"x"), None).1,
            "grpc: received unexpected payload format 7"
        );
    }

    #[test]
    fn a_promise_of_bytes_takes_no_memory() {
        let mut decoder = Decoder::new(usize::MAX, None);
        decoder.feed(&[0, 255, 255, 255, 255, 1]);
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.held.capacity() < 1024);
        assert!(decoder.is_mid_message());
    }

    #[test]
    fn a_message_alone_in_its_piece_needs_no_copy() {
        let piece = frame(0, &[7; 500]);
        assert_eq!(at_once(&piece, MAX), Some(&piece[PREFIX_BYTES..]));
        for other in [
            frame(1, &[7; 5]),
            frame(0, &[7; MAX + 1]),
            [frame(0, b"a"), frame(0, b"b")].concat(),
            frame(0, b"abc")[..7].to_vec(),
            vec![0; 4],
        ] {
            assert_eq!(at_once(&other, MAX), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn how_the_input_is_cut_makes_no_difference(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
            junk in prop::collection::vec(any::<u8>(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut all: Vec<u8> = messages.iter().flat_map(|m| frame(0, m)).collect();
            all.extend_from_slice(&junk);
            let whole = decode(&[&all], None);
            prop_assert!(whole.0.iter().map(|m| &m[..]).take(messages.len())
                .eq(messages.iter().map(|m| &m[..])));
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(all.len() + 1)).collect();
            cuts.sort();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&all[from..cut]);
                from = cut;
            }
            pieces.push(&all[from..]);
            prop_assert_eq!(decode(&pieces, None), whole);
        }
    }
}
