//! Watch responses as they leave: a small head of their own and the shared bytes of the events.
//!
//! An event is encoded at most twice, with and without the previous version, as one element of
//! `WatchResponse.events` (tag, length, `mvccpb.Event`); every response that carries it refers to the
//! same bytes.

use crate::api::Reply;
use bytes::{BufMut, Bytes, BytesMut};
use engine::{EventKind, KvRef};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use quorate_proto::etcdserverpb as pb;
use std::borrow::Cow;

/// Why a watch could not be created or was ended, in etcd's words.
pub mod reason {
    /// The id is in use on this stream.
    pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
    /// The range holds no key.
    pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
    /// A negative start revision.
    pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
}

/// The encoded events of a response, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// No event.
    #[default]
    None,
    /// Bytes of one event or of adjacent ones.
    One(Bytes),
    /// Several.
    Many(Vec<Bytes>),
}

impl Pieces {
    /// Appends a piece.
    pub fn push(&mut self, piece: Bytes) {
        *self = match std::mem::take(self) {
            Pieces::None => Pieces::One(piece),
            Pieces::One(first) => Pieces::Many(vec![first, piece]),
            Pieces::Many(mut all) => {
                all.push(piece);
                Pieces::Many(all)
            }
        };
    }

    /// The pieces in order.
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            Pieces::None => &[],
            Pieces::One(one) => std::slice::from_ref(one),
            Pieces::Many(all) => all,
        }
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.as_slice().iter().map(Bytes::len).sum()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        matches!(self, Pieces::None)
    }
}

/// One watch response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchFrame {
    /// `header.revision`.
    pub revision: i64,
    /// The watch, or -1.
    pub watch_id: i64,
    /// Answers a create request.
    pub created: bool,
    /// The watch has ended.
    pub canceled: bool,
    /// More of this response follows.
    pub fragment: bool,
    /// Set when compaction ended the watch.
    pub compact_revision: i64,
    /// Why a create request was refused.
    pub cancel_reason: Cow<'static, str>,
    /// What happened.
    pub events: Pieces,
}

impl WatchFrame {
    /// Bytes the frame holds on to while it is queued.
    pub fn weight(&self) -> usize {
        size_of::<WatchFrame>() + self.cancel_reason.len() + self.events.len()
    }

    /// The response as it goes out, in the name of the member in `header`.
    pub fn answer(self, header: pb::ResponseHeader) -> WatchReply {
        let head = pb::WatchResponse {
            header: Some(pb::ResponseHeader {
                revision: self.revision,
                ..header
            }),
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.into_owned(),
            fragment: self.fragment,
            events: Vec::new(),
        };
        WatchReply {
            head,
            events: self.events,
        }
    }
}

/// A watch response ready for the network: `events` is the highest field of the message, so the head
/// followed by the pieces is its canonical encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchReply {
    head: pb::WatchResponse,
    events: Pieces,
}

impl WatchReply {
    /// The message with its events decoded, for callers that need fields (the JSON gateway, tests).
    pub fn into_message(self) -> pb::WatchResponse {
        let mut message = self.head;
        for piece in self.events.as_slice() {
            message
                .merge(piece.clone())
                .expect("pieces are encoded by this module");
        }
        message
    }
}

/// Pieces up to this size are copied behind the head: that is cheaper than another reference.
const COPY_BYTES_MAX: usize = 4096;

impl Reply for WatchReply {
    fn encoded_len(&self) -> usize {
        Message::encoded_len(&self.head) + self.events.len()
    }

    fn encode(self, head: &mut BytesMut, tail: &mut Vec<Bytes>) {
        head.reserve(Message::encoded_len(&self.head));
        self.head.encode_raw(head);
        let mut copying = true;
        for piece in self.events.as_slice() {
            copying &= piece.len() <= COPY_BYTES_MAX;
            if copying {
                head.extend_from_slice(piece);
            } else {
                tail.push(piece.clone());
            }
        }
    }
}

/// An event to encode.
#[derive(Clone, Copy, Debug)]
pub struct EventRef<'a> {
    /// Put or delete.
    pub kind: EventKind,
    /// The new version; of a delete only key and mod revision count.
    pub kv: KvRef<'a>,
    /// What was there before, when it is to be sent.
    pub prev: Option<KvRef<'a>>,
}

impl<'a> EventRef<'a> {
    /// Borrows a published event.
    pub fn of(event: &'a engine::Event, with_prev: bool) -> EventRef<'a> {
        EventRef {
            kind: event.kind,
            kv: borrow(&event.kv),
            prev: event.prev.as_ref().filter(|_| with_prev).map(borrow),
        }
    }
}

/// Borrows a key-value.
pub fn borrow(kv: &engine::KeyValue) -> KvRef<'_> {
    KvRef {
        key: &kv.key,
        value: &kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// `WatchResponse.events`, length-delimited.
const TAG_EVENTS: u8 = 11 << 3 | 2;
const TAG_TYPE: u8 = 1 << 3;
const TAG_KV: u8 = 2 << 3 | 2;
const TAG_PREV_KV: u8 = 3 << 3 | 2;

/// Appends an event as an element of `WatchResponse.events`.
pub fn encode_event(event: EventRef<'_>, out: &mut BytesMut) {
    let kv_len = kv_len(event.kv);
    let prev_len = event.prev.map(self::kv_len);
    let deleted = event.kind == EventKind::Delete;
    let len = 2 * usize::from(deleted) + field_len(kv_len) + prev_len.map_or(0, field_len);
    out.reserve(field_len(len));
    out.put_u8(TAG_EVENTS);
    encode_varint(len as u64, out);
    if deleted {
        out.put_slice(&[TAG_TYPE, 1]);
    }
    out.put_u8(TAG_KV);
    encode_varint(kv_len as u64, out);
    put_kv(event.kv, out);
    if let (Some(prev), Some(prev_len)) = (event.prev, prev_len) {
        out.put_u8(TAG_PREV_KV);
        encode_varint(prev_len as u64, out);
        put_kv(prev, out);
    }
}

/// Bytes of a length-delimited field with a one-byte tag.
fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn int_len(value: i64) -> usize {
    if value == 0 {
        0
    } else {
        1 + encoded_len_varint(value as u64)
    }
}

fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        field_len(value.len())
    }
}

fn kv_len(kv: KvRef<'_>) -> usize {
    bytes_len(kv.key)
        + int_len(kv.create_revision)
        + int_len(kv.mod_revision)
        + int_len(kv.version)
        + bytes_len(kv.value)
        + int_len(kv.lease)
}

fn put_int(number: u8, value: i64, out: &mut BytesMut) {
    if value != 0 {
        out.put_u8(number << 3);
        encode_varint(value as u64, out);
    }
}

fn put_bytes(number: u8, value: &[u8], out: &mut BytesMut) {
    if !value.is_empty() {
        out.put_u8(number << 3 | 2);
        encode_varint(value.len() as u64, out);
        out.put_slice(value);
    }
}

fn put_kv(kv: KvRef<'_>, out: &mut BytesMut) {
    put_bytes(1, kv.key, out);
    put_int(2, kv.create_revision, out);
    put_int(3, kv.mod_revision, out);
    put_int(4, kv.version, out);
    put_bytes(5, kv.value, out);
    put_int(6, kv.lease, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Event, KeyValue, Revision};
    use proptest::prelude::*;
    use quorate_proto::mvccpb;

    fn kv() -> impl Strategy<Value = KeyValue> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        let int = || prop_oneof![Just(0), 1i64..300, any::<i64>()];
        (bytes(200), bytes(20_000), int(), int(), int(), int()).prop_map(
            |(key, value, create_revision, mod_revision, version, lease)| KeyValue {
                key,
                value,
                create_revision,
                mod_revision,
                version,
                lease,
            },
        )
    }

    fn message(kv: &KeyValue) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value.clone(),
            lease: kv.lease,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A frame's bytes are those prost makes of the same message.
        #[test]
        fn frames_encode_as_prost_does(
            events in prop::collection::vec((kv(), prop::option::of(kv()), any::<bool>()), 0..4),
            with_prev: bool, watch_id: i64, revision: i64, created: bool, canceled: bool,
            compact_revision: i64, fragment: bool, cancel_reason: String,
        ) {
            let mut frame = WatchFrame {
                revision, watch_id, created, canceled, fragment, compact_revision,
                cancel_reason: cancel_reason.clone().into(),
                events: Pieces::None,
            };
            let header = pb::ResponseHeader { cluster_id: 7, member_id: 9, revision: -1, raft_term: 3 };
            let mut want = pb::WatchResponse {
                header: Some(pb::ResponseHeader { revision, ..header }),
                watch_id, created, canceled, compact_revision, fragment, cancel_reason,
                events: Vec::new(),
            };
            for (kv, prev, put) in events {
                let kind = if put { EventKind::Put } else { EventKind::Delete };
                let event = Event { kind, revision: Revision::default(), kv, prev };
                let mut piece = BytesMut::new();
                encode_event(EventRef::of(&event, with_prev), &mut piece);
                frame.events.push(piece.freeze());
                want.events.push(mvccpb::Event {
                    r#type: i32::from(!put),
                    kv: Some(message(&event.kv)),
                    prev_kv: event.prev.as_ref().filter(|_| with_prev).map(message),
                });
            }
            let reply = frame.answer(header);
            prop_assert_eq!(reply.clone().into_message(), want.clone());
            let len = Reply::encoded_len(&reply);
            let (mut head, mut tail) = (BytesMut::new(), Vec::new());
            Reply::encode(reply, &mut head, &mut tail);
            tail.iter().for_each(|piece| head.extend_from_slice(piece));
            prop_assert_eq!(head.len(), len);
            prop_assert_eq!(&head[..], &want.encode_to_vec()[..]);
        }
    }
}
