//! Our hand-written codec against code generated from the same definition.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use quorate_proto::raftpb;
use raft_proto::Wire;
use raft_proto::eraftpb::{
    ConfChange, ConfChangeAction, ConfChangeSingle, ConfChangeTransition, ConfChangeType,
    ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
    SnapshotMetadata,
};

fn opaque() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

/// Numbers at the edges of varint lengths as often as in between.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1 << bit) - 1),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (0u64..3, number(), number(), opaque()).prop_map(|(kind, term, index, data)| Entry {
        entry_type: EntryType::from_number(kind).unwrap(),
        term,
        index,
        data,
        ..Entry::default()
    })
}

fn ids() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(number(), 0..5)
}

fn conf_state() -> impl Strategy<Value = ConfState> {
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    (opaque(), conf_state(), number(), number()).prop_map(|(data, conf_state, index, term)| {
        Snapshot {
            data,
            metadata: SnapshotMetadata {
                conf_state,
                index,
                term,
            },
        }
    })
}

fn message() -> impl Strategy<Value = Message> {
    let kinds = (0u64..19, any::<bool>(), opaque());
    let numbers = prop::array::uniform10(number());
    let nested = (
        prop::collection::vec(entry(), 0..4),
        prop::option::of(snapshot()),
    );
    (kinds, numbers, nested).prop_map(
        |((kind, reject, context), n, (entries, snapshot))| Message {
            msg_type: MessageType::from_number(kind).unwrap(),
            to: n[0],
            from: n[1],
            term: n[2],
            log_term: n[3],
            index: n[4],
            entries,
            commit: n[5],
            snapshot: snapshot.map(Box::new),
            reject,
            reject_hint: n[6],
            context,
            request_snapshot: n[7],
            commit_term: n[8],
            ..Message::default()
        },
    )
}

fn conf_change() -> impl Strategy<Value = ConfChange> {
    (number(), 0u64..4, number(), opaque()).prop_map(|(id, action, node_id, context)| ConfChange {
        id,
        action: ConfChangeAction::from_number(action).unwrap(),
        node_id,
        context,
    })
}

fn conf_change_v2() -> impl Strategy<Value = ConfChangeV2> {
    let change_type = prop::sample::select(vec![0u64, 1, 3]);
    let step = (change_type, number()).prop_map(|(change_type, node_id)| ConfChangeSingle {
        change_type: ConfChangeType::from_number(change_type).unwrap(),
        node_id,
    });
    (0u64..3, prop::collection::vec(step, 0..4), opaque()).prop_map(
        |(transition, changes, context)| ConfChangeV2 {
            transition: ConfChangeTransition::from_number(transition).unwrap(),
            changes,
            context,
        },
    )
}

/// `None` for what proto2 writes only when not empty.
fn nonempty(bytes: &Bytes) -> Option<Bytes> {
    (!bytes.is_empty()).then(|| bytes.clone())
}

/// The generated twin of one of our messages, with the fields present that etcd writes.
trait Twin: Wire + PartialEq + std::fmt::Debug {
    type Generated: prost::Message + Default + PartialEq;
    fn twin(&self) -> Self::Generated;
}

impl Twin for Entry {
    type Generated = raftpb::Entry;
    fn twin(&self) -> raftpb::Entry {
        raftpb::Entry {
            r#type: Some(self.entry_type.number() as i32),
            term: Some(self.term),
            index: Some(self.index),
            data: nonempty(&self.data),
        }
    }
}

impl Twin for ConfState {
    type Generated = raftpb::ConfState;
    fn twin(&self) -> raftpb::ConfState {
        raftpb::ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: Some(self.auto_leave),
        }
    }
}

impl Twin for Snapshot {
    type Generated = raftpb::Snapshot;
    fn twin(&self) -> raftpb::Snapshot {
        raftpb::Snapshot {
            data: nonempty(&self.data),
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(self.metadata.conf_state.twin()),
                index: Some(self.metadata.index),
                term: Some(self.metadata.term),
            }),
        }
    }
}

impl Twin for Message {
    type Generated = raftpb::Message;
    fn twin(&self) -> raftpb::Message {
        raftpb::Message {
            r#type: Some(self.msg_type.number() as i32),
            to: Some(self.to),
            from: Some(self.from),
            term: Some(self.term),
            log_term: Some(self.log_term),
            index: Some(self.index),
            entries: self.entries.iter().map(Twin::twin).collect(),
            commit: Some(self.commit),
            vote: Some(self.request_snapshot),
            snapshot: self.snapshot.as_deref().map(Twin::twin),
            reject: Some(self.reject),
            reject_hint: Some(self.reject_hint),
            context: nonempty(&self.context),
            responses: Vec::new(),
        }
    }
}

impl Twin for HardState {
    type Generated = raftpb::HardState;
    fn twin(&self) -> raftpb::HardState {
        raftpb::HardState {
            term: Some(self.term),
            vote: Some(self.vote),
            commit: Some(self.commit),
        }
    }
}

impl Twin for ConfChange {
    type Generated = raftpb::ConfChange;
    fn twin(&self) -> raftpb::ConfChange {
        raftpb::ConfChange {
            id: Some(self.id),
            r#type: Some(self.action.number() as i32),
            node_id: Some(self.node_id),
            context: nonempty(&self.context),
        }
    }
}

impl Twin for ConfChangeV2 {
    type Generated = raftpb::ConfChangeV2;
    fn twin(&self) -> raftpb::ConfChangeV2 {
        raftpb::ConfChangeV2 {
            transition: Some(self.transition.number() as i32),
            changes: self
                .changes
                .iter()
                .map(|change| raftpb::ConfChangeSingle {
                    r#type: Some(change.change_type.number() as i32),
                    node_id: Some(change.node_id),
                })
                .collect(),
            context: nonempty(&self.context),
        }
    }
}

/// Same bytes as the generated writer, equal after our reader, and each reads the other's bytes.
fn check<T: Twin>(ours: &T) {
    let bytes = ours.encode_to_vec();
    assert_eq!(bytes.len(), ours.encoded_len());
    let twin = ours.twin();
    assert_eq!(bytes, twin.encode_to_vec());
    assert!(T::Generated::decode(bytes.as_slice()).unwrap() == twin);
    assert_eq!(&T::decode(Bytes::from(bytes)).unwrap(), ours);
}

/// Whatever the bytes: no panic, and what we accept the generated reader accepts too.
///
/// The reverse does not hold: we refuse enum values we do not know. Of etcd's `responses` to its own storage threads we skip
/// whatever is there.
fn read_anything<T: Twin>(bytes: &[u8]) {
    let ours = T::decode(Bytes::copy_from_slice(bytes));
    let theirs = T::Generated::decode(bytes);
    if let Ok(ours) = ours {
        let refused = theirs.err().map(|e| e.to_string());
        let refused = refused.filter(|why| !why.contains("responses"));
        assert!(
            refused.is_none(),
            "{ours:?} refused by the generated reader: {refused:?}"
        );
        // What was read can be written, and reads as itself.
        let again = T::decode(Bytes::from(ours.encode_to_vec())).unwrap();
        assert_eq!(again, ours);
    }
}

fn read_as_everything(bytes: &[u8]) {
    read_anything::<Entry>(bytes);
    read_anything::<ConfState>(bytes);
    read_anything::<Snapshot>(bytes);
    read_anything::<Message>(bytes);
    read_anything::<HardState>(bytes);
    read_anything::<ConfChange>(bytes);
    read_anything::<ConfChangeV2>(bytes);
}

/// A field number no message of this package uses.
fn unknown_fields() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend([0xa0, 0x06, 0x96, 0x01]); // 100, varint
    out.extend([0xa2, 0x06, 0x03, 1, 2, 3]); // 100, three bytes
    out.extend([0xa1, 0x06, 0, 0, 0, 0, 0, 0, 0, 0]); // 100, 64 bits
    out.extend([0xa5, 0x06, 0, 0, 0, 0]); // 100, 32 bits
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn messages_match_the_generated_codec(mut message in message()) {
        // The generated type has no field 15.
        let commit_term = std::mem::take(&mut message.commit_term);
        check(&message);
        message.commit_term = commit_term;
        let bytes = Bytes::from(message.encode_to_vec());
        prop_assert_eq!(bytes.len(), message.encoded_len());
        prop_assert_eq!(Message::decode(bytes).unwrap(), message);
    }

    #[test]
    fn the_small_types_match_the_generated_codec(
        entry in entry(),
        conf_state in conf_state(),
        snapshot in snapshot(),
        change in conf_change(),
        change_v2 in conf_change_v2(),
        hard_state in (number(), number(), number()),
    ) {
        check(&entry);
        check(&conf_state);
        check(&snapshot);
        check(&change);
        check(&change_v2);
        let (term, vote, commit) = hard_state;
        check(&HardState { term, vote, commit });
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        message in message(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = message.encode_to_vec();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        read_as_everything(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read_as_everything(&bytes);
    }

    #[test]
    fn unknown_fields_are_skipped(message in message()) {
        let mut bytes = unknown_fields();
        message.encode(&mut bytes);
        bytes.extend(unknown_fields());
        prop_assert_eq!(Message::decode(Bytes::from(bytes)).unwrap(), message);
    }

    #[test]
    fn a_message_cut_anywhere_is_refused_or_shorter(message in message()) {
        let bytes = Bytes::from(message.encode_to_vec());
        for end in 0..bytes.len() {
            // A cut between two fields is a valid message with fewer fields, never an equal one
            // unless the missing fields were zero.
            if let Ok(read) = Message::decode(bytes.slice(..end)) {
                prop_assert!(read.encoded_len() <= message.encoded_len());
            }
        }
    }
}

#[test]
fn absent_fields_read_as_zero() {
    assert_eq!(Message::decode(Bytes::new()), Ok(Message::default()));
    assert_eq!(Entry::decode(Bytes::new()), Ok(Entry::default()));
}

#[test]
fn a_sparse_writer_is_understood() {
    // golang/protobuf writes only what was set.
    let sparse = raftpb::Message {
        r#type: Some(3),
        to: Some(2),
        entries: vec![raftpb::Entry {
            index: Some(9),
            data: Some(Bytes::from_static(b"x")),
            ..Default::default()
        }],
        ..Default::default()
    };
    let read = Message::decode(Bytes::from(sparse.encode_to_vec())).unwrap();
    assert_eq!(read.msg_type, MessageType::MsgAppend);
    assert_eq!(read.to, 2);
    assert_eq!(read.entries[0].index, 9);
    assert_eq!(read.entries[0].entry_type, EntryType::EntryNormal);
    assert_eq!(&read.entries[0].data[..], b"x");
    assert!(read.snapshot.is_none());
}

#[test]
fn packed_numbers_are_understood() {
    let packed = [0x0a, 0x03, 0x01, 0xac, 0x02, 0x08, 0x07];
    let read = ConfState::decode(Bytes::copy_from_slice(&packed)).unwrap();
    assert_eq!(read.voters, [1, 300, 7]);
}

#[test]
fn payloads_share_the_frame() {
    let message = Message {
        msg_type: MessageType::MsgAppend,
        entries: vec![Entry {
            data: Bytes::from(vec![7; 4096]),
            ..Entry::default()
        }],
        ..Message::default()
    };
    let frame = Bytes::from(message.encode_to_vec());
    let read = Message::decode(frame.clone()).unwrap();
    let data = read.entries[0].data.as_ptr_range();
    let range = frame.as_ptr_range();
    assert!(range.start <= data.start && data.end <= range.end);
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    // MsgStorageAppend never leaves an etcd process.
    let frame = Bytes::from_static(&[0x08, 19]);
    let error = Message::decode(frame).unwrap_err();
    assert_eq!(error.to_string(), "unknown MessageType 19");
}

/// Bytes fixed once: a field renumbered by accident changes them.
#[test]
fn golden_bytes() {
    let change = ConfChange {
        id: 0x1234,
        action: ConfChangeAction::AddLearnerNode,
        node_id: 5,
        context: Bytes::from_static(b"{}"),
    };
    assert_eq!(
        change.encode_to_vec(),
        [
            0x08, 0xb4, 0x24, 0x10, 0x03, 0x18, 0x05, 0x22, 0x02, b'{', b'}'
        ]
    );
    let message = Message {
        msg_type: MessageType::MsgAppend,
        to: 1,
        from: 2,
        term: 3,
        log_term: 4,
        index: 5,
        entries: vec![Entry {
            term: 3,
            index: 6,
            data: Bytes::from_static(b"k"),
            ..Entry::default()
        }],
        commit: 7,
        ..Message::default()
    };
    assert_eq!(
        message.encode_to_vec(),
        [
            0x08, 3, 0x10, 1, 0x18, 2, 0x20, 3, 0x28, 4, 0x30, 5, // header
            0x3a, 9, 0x08, 0, 0x10, 3, 0x18, 6, 0x22, 1, b'k', // entry
            0x40, 7, 0x50, 0, 0x58, 0, 0x68, 0, // commit, reject, hint, vote
        ]
    );
}
