//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length follow each other in the order of their symbols, and
//! those of the next length begin where they end. So the lengths say it all, and decoding needs one
//! look-up for codes of up to eight bits, which is nearly all text, and a search by length for others.

/// Not a string of this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Ends a string; never part of one.
const EOS: u16 = 256;
const LONGEST: usize = 30;

/// Bits of the code of each symbol.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

struct Tables {
    /// By the next eight bits: symbol and length; length 0 where the code is longer.
    short: [(u8, u8); 256],
    /// By length: the first code, moved to the top of [`LONGEST`] bits.
    first: [u32; LONGEST + 2],
    /// By length: where the symbols of that length begin in `symbols`.
    at: [u16; LONGEST + 2],
    /// Symbols by length, then value.
    symbols: [u16; 257],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut t = Tables {
        short: [(0, 0); 256],
        first: [0; LONGEST + 2],
        at: [0; LONGEST + 2],
        symbols: [0; 257],
    };
    let mut code: u32 = 0;
    let mut count = 0;
    let mut len = 1;
    while len <= LONGEST {
        t.first[len] = code << (LONGEST - len);
        t.at[len] = count as u16;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == len {
                t.symbols[count] = symbol as u16;
                count += 1;
                if len <= 8 {
                    let mut low = 0;
                    while low < 1 << (8 - len) {
                        t.short[((code as usize) << (8 - len)) | low] = (symbol as u8, len as u8);
                        low += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        len += 1;
    }
    t.first[LONGEST + 1] = u32::MAX;
    t
}

/// Appends what `input` says to `out`.
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut input = input.iter();
    // The lowest `count` bits of `bits` are the next ones.
    let (mut bits, mut count) = (0u64, 0u32);
    loop {
        while count <= 56
            && let Some(byte) = input.next()
        {
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        if count == 0 {
            return Ok(());
        }
        // Behind the end there are ones, as the padding is.
        let window = match count.checked_sub(LONGEST as u32) {
            Some(more) => (bits >> more) as u32 & ((1 << LONGEST) - 1),
            None => {
                let missing = LONGEST as u32 - count;
                let kept = bits as u32 & ((1u32 << count) - 1);
                kept << missing | ((1 << missing) - 1)
            }
        };
        let (symbol, len) = match TABLES.short[(window >> (LONGEST - 8)) as usize] {
            (_, 0) => long(window),
            (symbol, len) => (u16::from(symbol), u32::from(len)),
        };
        if len > count {
            let padding = (1u64 << count) - 1;
            return match count < 8 && bits & padding == padding {
                true => Ok(()),
                false => Err(Malformed),
            };
        }
        if symbol == EOS {
            return Err(Malformed);
        }
        out.push(symbol as u8);
        count -= len;
    }
}

fn long(window: u32) -> (u16, u32) {
    let mut len = 9;
    while len < LONGEST && window >= TABLES.first[len + 1] {
        len += 1;
    }
    let offset = (window - TABLES.first[len]) >> (LONGEST - len);
    let at = usize::from(TABLES.at[len]) + offset as usize;
    (TABLES.symbols[at.min(256)], len as u32)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Encodes, for the tests of what decodes.
    pub fn encode(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut out) = (0u64, 0, Vec::new());
        for byte in text {
            let len = LENGTHS[usize::from(*byte)];
            let (first, at) = (TABLES.first[usize::from(len)], TABLES.at[usize::from(len)]);
            let symbols = &TABLES.symbols[usize::from(at)..];
            let nth = symbols.iter().position(|s| *s == u16::from(*byte)).unwrap() as u32;
            let code = (first >> (LONGEST as u32 - u32::from(len))) + nth;
            bits = bits << len | u64::from(code);
            count += len;
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | ((1 << (8 - count)) - 1));
        }
        out
    }

    pub fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn the_strings_of_rfc_7541() {
        for (code, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5ba9 7d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("6402", "302"),
            ("aec3 771a 4b", "private"),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3",
                "https://www.example.com",
            ),
            ("640e ff", "307"),
            (
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 \
                 3160 65c0 03ed 4ee5 b106 3d50 07",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            assert_eq!(decoded(&hex(code)).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), hex(code));
        }
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        // "a" is 00011.
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
        assert_eq!(decoded(&[0b0001_1110]), Err(Malformed));
        assert_eq!(
            decoded(&[0b0001_1111, 0xff]),
            Err(Malformed),
            "a byte too many"
        );
        assert_eq!(decoded(&[0xff]), Err(Malformed), "a whole byte of padding");
        assert_eq!(
            decoded(&[0xff, 0xff, 0xff, 0xff]),
            Err(Malformed),
            "the end symbol"
        );
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0x1f]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_survive(text in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(decoded(&encode(&text)).unwrap(), text);
        }

        #[test]
        fn what_decodes_encodes_to_itself(code in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(text) = decoded(&code) {
                prop_assert_eq!(encode(&text), code);
            }
        }
    }
}
