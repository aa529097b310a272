//! The fields of every message: lengths, writing, reading.
//!
//! Each type spells its fields three times, in the same ascending order; the tests hold the three
//! together and compare them with generated code for the same `.proto`.

use crate::eraftpb::{
    ConfChange, ConfChangeAction, ConfChangeSingle, ConfChangeTransition, ConfChangeType,
    ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
    SnapshotMetadata,
};
use crate::wire::{DecodeError, Reader, len_field_len, put_bytes, put_len, put_scalar, scalar_len};
use bytes::Bytes;
use protobuf::ProtobufError;

/// Encoding and decoding of one message type.
pub trait Wire: Default {
    /// Length in bytes of what [`Wire::encode`] appends.
    fn encoded_len(&self) -> usize;

    /// Appends the encoded message to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads `frame`, which must be one whole message. Byte strings in the result share its buffer
    /// and keep it alive.
    fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        message.merge(&frame)?;
        Ok(message)
    }

    /// The encoded message in a buffer of its own.
    fn encode_to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode(&mut out);
        out
    }

    /// Reads `frame` on top of `self`: scalars are replaced, repeated fields extended.
    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError>;
}

/// Reading from a window; [`Wire::merge`] opens the outermost one.
trait Merge {
    fn merge_window(&mut self, reader: Reader<'_>) -> Result<(), DecodeError>;
}

fn enum_value<T>(
    name: &'static str,
    from_number: fn(u64) -> Option<T>,
    value: u64,
) -> Result<T, DecodeError> {
    from_number(value).ok_or(DecodeError::UnknownEnum { name, value })
}

fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        0
    } else {
        len_field_len(bytes.len())
    }
}

fn put_nonempty(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_bytes(out, field, bytes);
    }
}

fn put_message(out: &mut Vec<u8>, field: u32, message: &impl Wire) {
    put_len(out, field, message.encoded_len());
    message.encode(out);
}

fn message_len(message: &impl Wire) -> usize {
    len_field_len(message.encoded_len())
}

impl Wire for Entry {
    #[inline]
    fn encoded_len(&self) -> usize {
        scalar_len(self.entry_type.number())
            + scalar_len(self.term)
            + scalar_len(self.index)
            + bytes_len(&self.data)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.entry_type.number());
        put_scalar(out, 2, self.term);
        put_scalar(out, 3, self.index);
        put_nonempty(out, 4, &self.data);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl Merge for Entry {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => {
                    self.entry_type =
                        enum_value("EntryType", EntryType::from_number, field.scalar()?)?;
                }
                2 => self.term = field.scalar()?,
                3 => self.index = field.scalar()?,
                4 => self.data = field.len()?.bytes(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for ConfState {
    fn encoded_len(&self) -> usize {
        self.lists()
            .iter()
            .flat_map(|(_, list)| list.iter())
            .map(|&id| scalar_len(id))
            .sum::<usize>()
            + scalar_len(self.auto_leave.into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for (field, list) in self.lists() {
            for &id in list {
                put_scalar(out, field, id);
            }
        }
        put_scalar(out, 5, self.auto_leave.into());
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl ConfState {
    fn lists(&self) -> [(u32, &[u64]); 4] {
        [
            (1, &self.voters),
            (2, &self.learners),
            (3, &self.voters_outgoing),
            (4, &self.learners_next),
        ]
    }
}

impl Merge for ConfState {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => field.extend(&mut self.voters)?,
                2 => field.extend(&mut self.learners)?,
                3 => field.extend(&mut self.voters_outgoing)?,
                4 => field.extend(&mut self.learners_next)?,
                5 => self.auto_leave = field.scalar()? != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for SnapshotMetadata {
    fn encoded_len(&self) -> usize {
        message_len(&self.conf_state) + scalar_len(self.index) + scalar_len(self.term)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_message(out, 1, &self.conf_state);
        put_scalar(out, 2, self.index);
        put_scalar(out, 3, self.term);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl Merge for SnapshotMetadata {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => self.conf_state.merge_window(field.len()?)?,
                2 => self.index = field.scalar()?,
                3 => self.term = field.scalar()?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for Snapshot {
    fn encoded_len(&self) -> usize {
        bytes_len(&self.data) + message_len(&self.metadata)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_nonempty(out, 1, &self.data);
        put_message(out, 2, &self.metadata);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl Merge for Snapshot {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => self.data = field.len()?.bytes(),
                2 => self.metadata.merge_window(field.len()?)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for Message {
    fn encoded_len(&self) -> usize {
        let entries: usize = self.entries.iter().map(message_len).sum();
        let snapshot = self.snapshot.as_deref().map_or(0, message_len);
        let commit_term = match self.commit_term {
            0 => 0,
            term => scalar_len(term),
        };
        scalar_len(self.msg_type.number())
            + scalar_len(self.to)
            + scalar_len(self.from)
            + scalar_len(self.term)
            + scalar_len(self.log_term)
            + scalar_len(self.index)
            + entries
            + scalar_len(self.commit)
            + snapshot
            + scalar_len(self.reject.into())
            + scalar_len(self.reject_hint)
            + bytes_len(&self.context)
            + scalar_len(self.request_snapshot)
            + commit_term
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.msg_type.number());
        put_scalar(out, 2, self.to);
        put_scalar(out, 3, self.from);
        put_scalar(out, 4, self.term);
        put_scalar(out, 5, self.log_term);
        put_scalar(out, 6, self.index);
        for entry in &self.entries {
            put_message(out, 7, entry);
        }
        put_scalar(out, 8, self.commit);
        if let Some(snapshot) = self.snapshot.as_deref() {
            put_message(out, 9, snapshot);
        }
        put_scalar(out, 10, self.reject.into());
        put_scalar(out, 11, self.reject_hint);
        put_nonempty(out, 12, &self.context);
        put_scalar(out, 13, self.request_snapshot);
        if self.commit_term != 0 {
            put_scalar(out, 15, self.commit_term);
        }
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl Merge for Message {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => {
                    self.msg_type =
                        enum_value("MessageType", MessageType::from_number, field.scalar()?)?;
                }
                2 => self.to = field.scalar()?,
                3 => self.from = field.scalar()?,
                4 => self.term = field.scalar()?,
                5 => self.log_term = field.scalar()?,
                6 => self.index = field.scalar()?,
                7 => {
                    let mut entry = Entry::default();
                    entry.merge_window(field.len()?)?;
                    self.entries.push(entry);
                }
                8 => self.commit = field.scalar()?,
                9 => self
                    .snapshot
                    .get_or_insert_default()
                    .merge_window(field.len()?)?,
                10 => self.reject = field.scalar()? != 0,
                11 => self.reject_hint = field.scalar()?,
                12 => self.context = field.len()?.bytes(),
                13 => self.request_snapshot = field.scalar()?,
                15 => self.commit_term = field.scalar()?,
                // 14 are etcd's responses to its own storage threads, 16 a priority we do not use.
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for HardState {
    fn encoded_len(&self) -> usize {
        scalar_len(self.term) + scalar_len(self.vote) + scalar_len(self.commit)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.term);
        put_scalar(out, 2, self.vote);
        put_scalar(out, 3, self.commit);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        let mut reader = Reader::new(frame);
        while let Some(field) = reader.field()? {
            match field.number {
                1 => self.term = field.scalar()?,
                2 => self.vote = field.scalar()?,
                3 => self.commit = field.scalar()?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for ConfChange {
    fn encoded_len(&self) -> usize {
        scalar_len(self.id)
            + scalar_len(self.action.number())
            + scalar_len(self.node_id)
            + bytes_len(&self.context)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.id);
        put_scalar(out, 2, self.action.number());
        put_scalar(out, 3, self.node_id);
        put_nonempty(out, 4, &self.context);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        let mut reader = Reader::new(frame);
        while let Some(field) = reader.field()? {
            match field.number {
                1 => self.id = field.scalar()?,
                2 => {
                    self.action = enum_value(
                        "ConfChangeType",
                        ConfChangeAction::from_number,
                        field.scalar()?,
                    )?;
                }
                3 => self.node_id = field.scalar()?,
                4 => self.context = field.len()?.bytes(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for ConfChangeSingle {
    fn encoded_len(&self) -> usize {
        scalar_len(self.change_type.number()) + scalar_len(self.node_id)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.change_type.number());
        put_scalar(out, 2, self.node_id);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        self.merge_window(Reader::new(frame))
    }
}

impl Merge for ConfChangeSingle {
    fn merge_window(&mut self, mut reader: Reader<'_>) -> Result<(), DecodeError> {
        while let Some(field) = reader.field()? {
            match field.number {
                1 => {
                    self.change_type = enum_value(
                        "ConfChangeType",
                        ConfChangeType::from_number,
                        field.scalar()?,
                    )?;
                }
                2 => self.node_id = field.scalar()?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Wire for ConfChangeV2 {
    fn encoded_len(&self) -> usize {
        let changes: usize = self.changes.iter().map(message_len).sum();
        scalar_len(self.transition.number()) + changes + bytes_len(&self.context)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_scalar(out, 1, self.transition.number());
        for change in &self.changes {
            put_message(out, 2, change);
        }
        put_nonempty(out, 3, &self.context);
    }

    fn merge(&mut self, frame: &Bytes) -> Result<(), DecodeError> {
        let mut reader = Reader::new(frame);
        while let Some(field) = reader.field()? {
            match field.number {
                1 => {
                    self.transition = enum_value(
                        "ConfChangeTransition",
                        ConfChangeTransition::from_number,
                        field.scalar()?,
                    )?;
                }
                2 => {
                    let mut change = ConfChangeSingle::default();
                    change.merge_window(field.len()?)?;
                    self.changes.push(change);
                }
                3 => self.context = field.len()?.bytes(),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The trait `raft` asks for, in terms of [`Wire`].
macro_rules! raft_message {
    ($($name:ty),+) => {$(
        impl protobuf::Message for $name {
            #[inline]
            fn compute_size(&self) -> u32 {
                // Only compared with byte limits far below this bound.
                u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
            }

            fn write_to_bytes(&self) -> Result<Vec<u8>, ProtobufError> {
                Ok(self.encode_to_vec())
            }

            fn merge_from_bytes(&mut self, bytes: &[u8]) -> Result<(), ProtobufError> {
                self.merge(&Bytes::copy_from_slice(bytes))
                    .map_err(|error| ProtobufError(error.to_string()))
            }
        }
    )+};
}

raft_message!(
    Entry,
    ConfState,
    SnapshotMetadata,
    Snapshot,
    Message,
    HardState,
    ConfChange,
    ConfChangeSingle,
    ConfChangeV2
);
