//! Varints, tags and bounds checks: the part of protobuf that knows no message.
//!
//! # Invariants
//!
//! 1. A [`Reader`] never reads past the field it was opened for: a sub-reader ends where its length
//!    prefix says, and that end was checked against the enclosing reader.
//! 2. Every error is a [`DecodeError`]; nothing here panics on input.

use bytes::Bytes;
use std::fmt;

/// Why bytes are not the message they were taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends inside a field.
    Truncated,
    /// A varint of more than 64 bits.
    VarintOverflow,
    /// A tag with field number 0, a number above 2^29 - 1, or a wire type that does not exist.
    BadTag(u64),
    /// A known field carries another wire type than its definition.
    WireType {
        /// Number of the field.
        field: u32,
        /// The wire type found.
        found: u8,
    },
    /// An enum field holds a value this member does not know.
    UnknownEnum {
        /// Name of the enum.
        name: &'static str,
        /// The value found.
        value: u64,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated => write!(f, "message ends inside a field"),
            DecodeError::VarintOverflow => write!(f, "varint exceeds 64 bits"),
            DecodeError::BadTag(tag) => write!(f, "impossible field tag {tag}"),
            DecodeError::WireType { field, found } => {
                write!(f, "field {field} has unexpected wire type {found}")
            }
            DecodeError::UnknownEnum { name, value } => write!(f, "unknown {name} {value}"),
        }
    }
}

impl std::error::Error for DecodeError {}

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LEN: u8 = 2;
pub(crate) const FIXED32: u8 = 5;

/// Bytes that `value` takes as a varint, 1 to 10.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    // Bits are counted from 1 so that zero takes one byte; 9/64 is the usual division by 7.
    let bits = 64 - (value | 1).leading_zeros() as usize;
    (bits * 9 + 64) / 64
}

#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a scalar field. All field numbers here are below 16, so a tag is one byte.
#[inline]
pub(crate) fn put_scalar(out: &mut Vec<u8>, field: u32, value: u64) {
    put_tag(out, field, VARINT);
    put_varint(out, value);
}

#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_len(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes the tag and length of a field whose content follows.
#[inline]
pub(crate) fn put_len(out: &mut Vec<u8>, field: u32, len: usize) {
    put_tag(out, field, LEN);
    put_varint(out, len as u64);
}

#[inline]
fn put_tag(out: &mut Vec<u8>, field: u32, wire_type: u8) {
    debug_assert!((1..16).contains(&field));
    out.push((field as u8) << 3 | wire_type);
}

#[inline]
pub(crate) fn scalar_len(value: u64) -> usize {
    1 + varint_len(value)
}

/// Length of a field with `len` content bytes, tag and length prefix included.
#[inline]
pub(crate) fn len_field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// One field as found on the wire.
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
}

/// The content of a field.
pub(crate) enum Value<'a> {
    Varint(u64),
    Len(Reader<'a>),
    /// Content of a wire type no message here uses.
    Fixed(u8),
}

/// A window into one buffer.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    buf: &'a Bytes,
    pos: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a Bytes) -> Self {
        Reader {
            buf,
            pos: 0,
            end: buf.len(),
        }
    }

    /// The next field, or `None` at the end of the window.
    pub(crate) fn field(&mut self) -> Result<Option<Field<'a>>, DecodeError> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| DecodeError::BadTag(tag))?;
        if number == 0 || number >= 1 << 29 {
            return Err(DecodeError::BadTag(tag));
        }
        let value = match (tag & 7) as u8 {
            VARINT => Value::Varint(self.varint()?),
            LEN => Value::Len(self.sub()?),
            FIXED64 => self.fixed(FIXED64, 8)?,
            FIXED32 => self.fixed(FIXED32, 4)?,
            _ => return Err(DecodeError::BadTag(tag)),
        };
        Ok(Some(Field { number, value }))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pos == self.end
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let window = &self.buf[self.pos..self.end];
        let mut value = 0u64;
        for (i, &byte) in window.iter().take(10).enumerate() {
            // The tenth byte holds the 64th bit alone.
            if i == 9 && byte > 1 {
                return Err(DecodeError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.pos += i + 1;
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated)
    }

    /// The rest of the window as a slice that shares the buffer.
    pub(crate) fn bytes(&self) -> Bytes {
        if self.is_empty() {
            // An empty slice would keep the whole frame alive.
            return Bytes::new();
        }
        self.buf.slice(self.pos..self.end)
    }

    fn sub(&mut self) -> Result<Reader<'a>, DecodeError> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| DecodeError::Truncated)?;
        let start = self.pos;
        self.skip(len)?;
        Ok(Reader {
            buf: self.buf,
            pos: start,
            end: self.pos,
        })
    }

    fn fixed(&mut self, wire_type: u8, len: usize) -> Result<Value<'a>, DecodeError> {
        self.skip(len)?;
        Ok(Value::Fixed(wire_type))
    }

    fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        if len > self.end - self.pos {
            return Err(DecodeError::Truncated);
        }
        self.pos += len;
        Ok(())
    }
}

impl<'a> Field<'a> {
    /// The value of a scalar field.
    pub(crate) fn scalar(&self) -> Result<u64, DecodeError> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(self.wrong()),
        }
    }

    /// The content of a string or sub-message field.
    pub(crate) fn len(&self) -> Result<Reader<'a>, DecodeError> {
        match self.value {
            Value::Len(reader) => Ok(reader),
            _ => Err(self.wrong()),
        }
    }

    /// Appends a repeated number, written one by one or packed.
    pub(crate) fn extend(&self, out: &mut Vec<u64>) -> Result<(), DecodeError> {
        match self.value {
            Value::Varint(value) => out.push(value),
            Value::Len(mut reader) => {
                while !reader.is_empty() {
                    out.push(reader.varint()?);
                }
            }
            Value::Fixed(_) => return Err(self.wrong()),
        }
        Ok(())
    }

    fn wrong(&self) -> DecodeError {
        let found = match self.value {
            Value::Varint(_) => VARINT,
            Value::Len(_) => LEN,
            Value::Fixed(wire_type) => wire_type,
        };
        DecodeError::WireType {
            field: self.number,
            found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_length_matches_what_is_written() {
        let mut values = vec![0, 1, u64::MAX];
        values.extend((1..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]));
        for value in values {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            let bytes = Bytes::from(out);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn overlong_and_cut_varints_are_refused() {
        let eleven = Bytes::from_static(&[0xff; 11]);
        assert_eq!(
            Reader::new(&eleven).varint(),
            Err(DecodeError::VarintOverflow)
        );
        let cut = Bytes::from_static(&[0x80, 0x80]);
        assert_eq!(Reader::new(&cut).varint(), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_length_prefix_cannot_leave_its_window() {
        // Field 1, 200 bytes announced, 1 present.
        let bytes = Bytes::from_static(&[0x0a, 0xc8, 0x01, 0x00]);
        assert!(matches!(
            Reader::new(&bytes).field(),
            Err(DecodeError::Truncated)
        ));
        // The announced length does not fit the address space arithmetic either.
        let huge = Bytes::from_static(&[
            0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ]);
        assert!(matches!(
            Reader::new(&huge).field(),
            Err(DecodeError::Truncated)
        ));
    }

    #[test]
    fn impossible_tags_are_refused() {
        for tag in [0x00u8, 0x06, 0x0b, 0x0c, 0x0e, 0x0f] {
            let bytes = Bytes::copy_from_slice(&[tag, 0]);
            assert!(matches!(
                Reader::new(&bytes).field(),
                Err(DecodeError::BadTag(_))
            ));
        }
    }
}
