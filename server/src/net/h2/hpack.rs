//! Header compression (RFC 7541): a full decoder, and as much of an encoder as a server needs.
//!
//! What is sent uses the static table and literals alone, so that blocks that are always the same are
//! made once, and no state is shared with the client in that direction.
//!
//! Invariants:
//! 1. The dynamic table never holds more than the size announced, by the RFC's count.
//! 2. A list larger than the limit is decoded to its end, which keeps the table right, and not kept.
//! 3. What decoding costs is bounded by the size of the block.

use super::huffman;
use std::collections::VecDeque;

/// The size of the dynamic table unless another is agreed; we never agree on another.
const TABLE_BYTES_MAX: usize = 4096;
/// What an entry counts beside its strings.
const ENTRY_OVERHEAD: usize = 32;

/// The block cannot be decoded; the connection is lost, since the tables differ from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl From<huffman::Malformed> for Malformed {
    fn from(_: huffman::Malformed) -> Malformed {
        Malformed
    }
}

#[rustfmt::skip]
static STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

/// A decoded list of fields, in one buffer.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// By the RFC's count.
    size: usize,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    name: u32,
    value: u32,
    end: u32,
}

impl Fields {
    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
        self.size = 0;
        self.over = false;
    }

    /// Whether the list was larger than the limit; what is here then is a part of it.
    pub fn is_over(&self) -> bool {
        self.over
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Name and value of a field; `at` is below `len`.
    pub fn get(&self, at: usize) -> (&[u8], &[u8]) {
        let span = self.spans[at];
        (
            &self.bytes[span.name as usize..span.value as usize],
            &self.bytes[span.value as usize..span.end as usize],
        )
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// Keeps the field whose name begins at `name` and value at `value`, and which ends the buffer.
    fn push(&mut self, name: usize, value: usize, size_max: usize) {
        self.size += self.bytes.len() - name + ENTRY_OVERHEAD;
        if self.over || self.size > size_max {
            self.over = true;
            self.bytes.truncate(name);
            return;
        }
        self.spans.push(Span {
            name: name as u32,
            value: value as u32,
            end: self.bytes.len() as u32,
        });
    }
}

struct Entry {
    bytes: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.bytes.len() + ENTRY_OVERHEAD
    }
}

/// Decodes the blocks of one connection, in order.
pub struct Decoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    list_bytes_max: usize,
    generation: u64,
}

impl Decoder {
    /// Keeps lists of up to `list_bytes_max` by the RFC's count.
    pub fn new(list_bytes_max: usize) -> Decoder {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_BYTES_MAX,
            list_bytes_max,
            generation: 0,
        }
    }

    /// Changes whenever the dynamic table does: the same block decodes to the same list while it stays.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Decodes a whole block into `fields`.
    pub fn decode(&mut self, block: &[u8], fields: &mut Fields) -> Result<(), Malformed> {
        fields.clear();
        let mut rest = block;
        let mut first = true;
        while let [byte, ..] = *rest {
            if byte & 0xe0 == 0x20 {
                let size = integer(&mut rest, 5)?;
                if !first || size > TABLE_BYTES_MAX {
                    return Err(Malformed);
                }
                self.size_max = size;
                self.generation += 1;
                self.evict(0);
                continue;
            }
            first = false;
            let start = fields.bytes.len();
            if byte & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.entry(index)?;
                let counts = name.len() + value.len() + ENTRY_OVERHEAD;
                if fields.over || fields.size + counts > self.list_bytes_max {
                    fields.over = true;
                    continue;
                }
                fields.bytes.extend_from_slice(name);
                let middle = fields.bytes.len();
                fields.bytes.extend_from_slice(value);
                fields.push(start, middle, self.list_bytes_max);
                continue;
            }
            let indexed = byte & 0x40 != 0;
            match integer(&mut rest, if indexed { 6 } else { 4 })? {
                0 => string(&mut rest, &mut fields.bytes)?,
                index => fields.bytes.extend_from_slice(self.entry(index)?.0),
            }
            let middle = fields.bytes.len();
            string(&mut rest, &mut fields.bytes)?;
            if indexed {
                self.insert(&fields.bytes[start..], middle - start);
            }
            fields.push(start, middle, self.list_bytes_max);
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed)?;
        match STATIC.get(at) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => {
                let entry = self.entries.get(at - STATIC.len()).ok_or(Malformed)?;
                Ok(entry.bytes.split_at(entry.name_len))
            }
        }
    }

    fn insert(&mut self, field: &[u8], name_len: usize) {
        self.generation += 1;
        let size = field.len() + ENTRY_OVERHEAD;
        self.evict(size);
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front(Entry {
                bytes: field.into(),
                name_len,
            });
        }
    }

    /// Makes room for `size` more, or empties the table when it has not as much.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.size_max
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

/// A number with a prefix of `bits` bits; none we know of needs more than 28.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let (first, tail) = rest.split_first().ok_or(Malformed)?;
    *rest = tail;
    let full = (1usize << bits) - 1;
    let mut value = usize::from(*first) & full;
    if value < full {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let coded = rest.first().is_some_and(|b| b & 0x80 != 0);
    let len = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = tail;
    match coded {
        true => huffman::decode(text, out)?,
        false => out.extend_from_slice(text),
    }
    Ok(())
}

/// Appends a number with a prefix of `bits` bits to a block.
fn write_integer(block: &mut Vec<u8>, bits: u32, pattern: u8, value: usize) {
    let full = (1usize << bits) - 1;
    if value < full {
        return block.push(pattern | value as u8);
    }
    block.push(pattern | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// Appends a field to a block, as a literal that is not remembered. The name is lower case.
pub fn write_field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    match STATIC.iter().position(|(n, _)| n.as_bytes() == name) {
        Some(at) => write_integer(block, 4, 0, at + 1),
        None => {
            block.push(0);
            write_integer(block, 7, 0, name.len());
            block.extend_from_slice(name);
        }
    }
    write_integer(block, 7, 0, value.len());
    block.extend_from_slice(value);
}

/// Appends `:status`, which comes first in a block.
pub fn write_status(block: &mut Vec<u8>, status: u16) {
    let text = status.to_string();
    let known = |(name, value): &(&str, &str)| *name == ":status" && *value == text;
    match STATIC.iter().position(known) {
        Some(at) => write_integer(block, 7, 0x80, at + 1),
        None => write_field(block, b":status", text.as_bytes()),
    }
}

/// What tells a client that shrank its table that ours is empty; comes before the next block.
pub const TABLE_EMPTIED: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::super::huffman::tests::{encode, hex};
    use super::*;
    use proptest::prelude::*;

    type List = Vec<(String, String)>;

    fn list(fields: &Fields) -> List {
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        fields.iter().map(|(n, v)| (text(n), text(v))).collect()
    }

    fn table(decoder: &Decoder) -> List {
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        let split = |e: &Entry| (text(&e.bytes[..e.name_len]), text(&e.bytes[e.name_len..]));
        decoder.entries.iter().map(split).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> List {
        list.iter()
            .map(|(n, v)| ((*n).into(), (*v).into()))
            .collect()
    }

    /// A step of an example: the block, its list, the table behind it, its size.
    type Step<'a> = (
        &'a str,
        &'a [(&'a str, &'a str)],
        &'a [(&'a str, &'a str)],
        usize,
    );

    fn example(size_max: usize, steps: &[Step]) {
        let mut decoder = Decoder::new(1 << 16);
        decoder.size_max = size_max;
        let mut fields = Fields::default();
        for (block, expected, entries, size) in steps {
            decoder.decode(&hex(block), &mut fields).unwrap();
            assert_eq!(list(&fields), pairs(expected));
            assert_eq!(table(&decoder), pairs(entries));
            assert_eq!(decoder.size, *size);
        }
    }

    #[test]
    fn numbers_of_appendix_c_1() {
        for (bytes, bits, value) in [
            (&[0b1110_1010][..], 5, 10),
            (&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5, 1337),
            (&[0b0010_1010], 8, 42),
        ] {
            assert_eq!(integer(&mut &bytes[..], bits), Ok(value));
            let mut written = Vec::new();
            write_integer(
                &mut written,
                bits,
                bytes[0] & !((1u16 << bits) - 1) as u8,
                value,
            );
            assert_eq!(written, bytes);
        }
        // Too large, cut off, and padded without end.
        assert_eq!(
            integer(&mut &[0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f][..], 7),
            Err(Malformed)
        );
        assert_eq!(integer(&mut &[0x7f, 0x80][..], 7), Err(Malformed));
        assert_eq!(
            integer(&mut &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0][..], 7),
            Err(Malformed)
        );
    }

    #[test]
    fn literals_of_appendix_c_2() {
        let custom: &[(&str, &str)] = &[("custom-key", "custom-header")];
        let block = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
        example(4096, &[(block, custom, custom, 55)]);
        let path: &[(&str, &str)] = &[(":path", "/sample/path")];
        example(
            4096,
            &[("040c 2f73 616d 706c 652f 7061 7468", path, &[], 0)],
        );
        let secret: &[(&str, &str)] = &[("password", "secret")];
        example(
            4096,
            &[("1008 7061 7373 776f 7264 0673 6563 7265 74", secret, &[], 0)],
        );
        example(4096, &[("82", &[(":method", "GET")], &[], 0)]);
    }

    fn requests(blocks: [&str; 3]) {
        let authority = (":authority", "www.example.com");
        let cache = ("cache-control", "no-cache");
        let custom = ("custom-key", "custom-value");
        let base = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            authority,
        ];
        example(
            4096,
            &[
                (blocks[0], &base, &[authority], 57),
                (
                    blocks[1],
                    &[base[0], base[1], base[2], authority, cache],
                    &[cache, authority],
                    110,
                ),
                (
                    blocks[2],
                    &[
                        (":method", "GET"),
                        (":scheme", "https"),
                        (":path", "/index.html"),
                        authority,
                        custom,
                    ],
                    &[custom, cache, authority],
                    164,
                ),
            ],
        );
    }

    #[test]
    fn requests_of_appendix_c_3_and_4() {
        requests([
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ]);
        requests([
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ]);
    }

    fn responses(blocks: [&str; 3]) {
        let status = |code| (":status", code);
        let private = ("cache-control", "private");
        let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
        let later = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
        let location = ("location", "https://www.example.com");
        let gzip = ("content-encoding", "gzip");
        let cookie = (
            "set-cookie",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        );
        example(
            256,
            &[
                (
                    blocks[0],
                    &[status("302"), private, date, location],
                    &[location, date, private, status("302")],
                    222,
                ),
                (
                    blocks[1],
                    &[status("307"), private, date, location],
                    &[status("307"), location, date, private],
                    222,
                ),
                (
                    blocks[2],
                    &[status("200"), private, later, location, gzip, cookie],
                    &[cookie, gzip, later],
                    215,
                ),
            ],
        );
    }

    #[test]
    fn responses_of_appendix_c_5_and_6() {
        responses([
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 \
             303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 \
             6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 \
             5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 \
             5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ]);
        responses([
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b \
             ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad \
             94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 \
             65c0 03ed 4ee5 b106 3d50 07",
        ]);
    }

    #[test]
    fn malformed_blocks() {
        for block in [
            &[0x80][..],                     // index 0
            &[0xbe],                         // an empty dynamic table
            &[0x40],                         // a literal without anything
            &[0x40, 0x02, b'a'],             // a name cut off
            &[0x40, 0x01, b'a', 0x85],       // a value cut off
            &[0x3f, 0xe2, 0x1f],             // a table of 4097
            &[0x82, 0x20],                   // a change of the table behind a field
            &[0x40, 0x81, 0xff, 0x01, b'a'], // a name that is padding alone
        ] {
            let mut decoder = Decoder::new(1 << 16);
            let result = decoder.decode(block, &mut Fields::default());
            assert_eq!(result, Err(Malformed), "{block:x?}");
        }
    }

    #[test]
    fn the_table_is_emptied_by_a_new_size_and_by_an_entry_too_large() {
        let mut decoder = Decoder::new(1 << 16);
        let mut fields = Fields::default();
        let insert = |value: &[u8]| {
            let mut block = vec![0x40, 1, b'n'];
            write_integer(&mut block, 7, 0, value.len());
            block.extend_from_slice(value);
            block
        };
        decoder.decode(&insert(b"v"), &mut fields).unwrap();
        let before = decoder.generation();
        decoder.decode(&[0xbe], &mut fields).unwrap();
        assert_eq!(
            decoder.generation(),
            before,
            "looking does not change the table"
        );
        decoder
            .decode(&[0x20, 0x3f, 0xe1, 0x1f], &mut fields)
            .unwrap();
        assert!(decoder.entries.is_empty() && decoder.generation() > before);
        decoder.decode(&insert(b"v"), &mut fields).unwrap();
        decoder.decode(&insert(&[b'v'; 4096]), &mut fields).unwrap();
        assert!(decoder.entries.is_empty());
        assert_eq!(decoder.size, 0);
        assert_eq!(fields.get(0).1.len(), 4096);
    }

    #[test]
    fn a_bomb_is_not_kept_and_the_table_stays_right() {
        let mut decoder = Decoder::new(10_000);
        let mut fields = Fields::default();
        let mut block = vec![0x40, 1, b'n'];
        write_integer(&mut block, 7, 0, 4000);
        block.extend_from_slice(&[b'v'; 4000]);
        block.extend(std::iter::repeat_n(0xbe, 60_000));
        block.extend_from_slice(&[0x40, 1, b'm', 1, b'w']);
        decoder.decode(&block, &mut fields).unwrap();
        assert!(fields.is_over());
        assert!(fields.bytes.len() <= 10_000, "{}", fields.bytes.len());
        decoder.decode(&[0xbe], &mut fields).unwrap();
        assert_eq!(list(&fields), pairs(&[("m", "w")]));
        assert!(!fields.is_over());
    }

    #[test]
    fn what_is_written_is_read() {
        let mut block = Vec::new();
        write_status(&mut block, 200);
        write_field(&mut block, b"content-type", b"application/grpc");
        write_field(&mut block, b"grpc-status", b"13");
        write_field(&mut block, b"grpc-message", &[b'x'; 300]);
        assert_eq!(block[0], 0x88);
        let mut fields = Fields::default();
        Decoder::new(1 << 16).decode(&block, &mut fields).unwrap();
        let long = "x".repeat(300);
        assert_eq!(
            list(&fields),
            pairs(&[
                (":status", "200"),
                ("content-type", "application/grpc"),
                ("grpc-status", "13"),
                ("grpc-message", &long),
            ])
        );
        let mut block = Vec::new();
        write_status(&mut block, 415);
        Decoder::new(1 << 16).decode(&block, &mut fields).unwrap();
        assert_eq!(list(&fields), pairs(&[(":status", "415")]));
    }

    /// How a client may write a field.
    #[derive(Clone, Debug)]
    enum Form {
        Indexed(usize),
        Literal {
            kept: bool,
            coded: bool,
            name: Vec<u8>,
            value: Vec<u8>,
        },
    }

    fn forms() -> impl Strategy<Value = Vec<Form>> {
        let text = || prop::collection::vec(any::<u8>(), 0..60);
        let literal = (any::<bool>(), any::<bool>(), text(), text()).prop_map(
            |(kept, coded, name, value)| Form::Literal {
                kept,
                coded,
                name,
                value,
            },
        );
        prop::collection::vec(
            prop_oneof![(0usize..70).prop_map(Form::Indexed), literal],
            0..40,
        )
    }

    proptest! {
        /// A table kept by the rules of the RFC in the plainest way says the same.
        #[test]
        fn blocks_decode_as_a_plain_table_says(blocks in prop::collection::vec(forms(), 1..6)) {
            let mut decoder = Decoder::new(usize::MAX);
            let mut model: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            for forms in blocks {
                let (mut block, mut expected) = (Vec::new(), Vec::new());
                for form in forms {
                    match form {
                        Form::Indexed(n) => {
                            let n = n % (61 + model.len());
                            write_integer(&mut block, 7, 0x80, n + 1);
                            expected.push(match STATIC.get(n) {
                                Some((n, v)) => (n.as_bytes().to_vec(), v.as_bytes().to_vec()),
                                None => model[n - 61].clone(),
                            });
                        }
                        Form::Literal { kept, coded, name, value } => {
                            block.push(if kept { 0x40 } else { 0 });
                            for text in [&name, &value] {
                                let (pattern, text) = match coded {
                                    true => (0x80, encode(text)),
                                    false => (0, text.clone()),
                                };
                                write_integer(&mut block, 7, pattern, text.len());
                                block.extend_from_slice(&text);
                            }
                            expected.push((name.clone(), value.clone()));
                            if kept {
                                model.insert(0, (name, value));
                                let size = |m: &[(Vec<u8>, Vec<u8>)]| -> usize {
                                    m.iter().map(|(n, v)| n.len() + v.len() + 32).sum()
                                };
                                while size(&model) > 4096 {
                                    model.pop();
                                }
                            }
                        }
                    }
                }
                let mut fields = Fields::default();
                decoder.decode(&block, &mut fields).unwrap();
                let got: Vec<_> = fields.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                prop_assert_eq!(got, expected);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
        ) {
            let mut decoder = Decoder::new(2000);
            let mut fields = Fields::default();
            for block in blocks {
                if decoder.decode(&block, &mut fields).is_err() {
                    break;
                }
                prop_assert!(decoder.size <= 4096 && fields.bytes.len() <= 2000);
            }
        }
    }
}
