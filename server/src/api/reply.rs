//! What a handler may answer with: a protobuf message, or one that is encoded already.
//!
//! An encoded reply exists for two reasons. A part shared between many streams (the events of a
//! revision) is encoded once and then only referred to; and a large answer can be encoded piece by
//! piece from a view without first becoming a tree of generated types.

use bytes::{Bytes, BytesMut};

/// A message of the API on its way out.
pub trait Reply: Send + 'static {
    /// Bytes of the encoded message.
    fn encoded_len(&self) -> usize;

    /// Appends the encoded message to `head`, and to `tail` the pieces that follow it and are sent as
    /// they are, without being copied.
    fn encode(self, head: &mut BytesMut, tail: &mut Vec<Bytes>);
}

impl<M: prost::Message + 'static> Reply for M {
    fn encoded_len(&self) -> usize {
        prost::Message::encoded_len(self)
    }

    fn encode(self, head: &mut BytesMut, _tail: &mut Vec<Bytes>) {
        head.reserve(prost::Message::encoded_len(&self));
        // The one error of `encode` is a lack of room, and `BytesMut` grows.
        self.encode_raw(head);
    }
}

/// A message encoded before, in pieces whose concatenation is the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The first piece, made for this call; it is copied.
    pub head: Bytes,
    /// Further pieces, usually shared; large ones are not copied.
    pub tail: Vec<Bytes>,
}

/// Pieces shorter than this are copied behind the head: a frame header and a reference cost more
/// than the copy, and a short slice pins its whole buffer.
const COPY_BYTES_MAX: usize = 4096;

impl Reply for Encoded {
    fn encoded_len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>()
    }

    fn encode(self, head: &mut BytesMut, tail: &mut Vec<Bytes>) {
        let mut pieces = self.tail.into_iter().peekable();
        head.extend_from_slice(&self.head);
        while let Some(piece) = pieces.next_if(|piece| piece.len() < COPY_BYTES_MAX) {
            head.extend_from_slice(&piece);
        }
        tail.extend(pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_proto::etcdserverpb as pb;

    fn whole(reply: impl Reply) -> Vec<u8> {
        let len = reply.encoded_len();
        let (mut head, mut tail) = (BytesMut::new(), Vec::new());
        reply.encode(&mut head, &mut tail);
        let mut all = head.to_vec();
        tail.iter().for_each(|piece| all.extend_from_slice(piece));
        assert_eq!(all.len(), len);
        all
    }

    #[test]
    fn pieces_keep_their_order_whatever_their_size() {
        for sizes in [vec![], vec![1, 2], vec![5000, 3], vec![3, 5000, 2, 9000]] {
            let tail: Vec<Bytes> = sizes
                .iter()
                .enumerate()
                .map(|(i, &n)| Bytes::from(vec![i as u8; n]))
                .collect();
            let head = Bytes::from_static(b"head");
            let want = tail.iter().fold(head.to_vec(), |mut all, piece| {
                all.extend_from_slice(piece);
                all
            });
            assert_eq!(whole(Encoded { head, tail }), want);
        }
    }

    #[test]
    fn a_message_is_encoded_as_prost_does() {
        let message = pb::PutRequest {
            key: "k".into(),
            value: "v".into(),
            ..Default::default()
        };
        assert_eq!(
            whole(message.clone()),
            prost::Message::encode_to_vec(&message)
        );
    }
}
