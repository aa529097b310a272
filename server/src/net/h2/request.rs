//! What the header list of a request must be (RFC 9113, section 8.2 and 8.3).
//!
//! `:authority` is taken as any text: etcdctl 3.4 sends a whole URL in it.

use super::hpack::Fields;

/// The list breaks a rule; the stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Where in a list the parts of a request are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    method: usize,
    path: usize,
    authority: Option<usize>,
    /// The first field that is no pseudo-header.
    regular: usize,
    /// What `content-length` promises.
    pub body_bytes: Option<u64>,
}

/// The head of a request.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub(super) fields: &'a Fields,
    pub(super) parts: Parts,
}

impl<'a> Head<'a> {
    pub fn method(&self) -> &'a [u8] {
        self.fields.get(self.parts.method).1
    }

    pub fn path(&self) -> &'a [u8] {
        self.fields.get(self.parts.path).1
    }

    pub fn authority(&self) -> Option<&'a [u8]> {
        self.parts.authority.map(|at| self.fields.get(at).1)
    }

    /// Names and values of the fields that are no pseudo-headers, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let fields = self.fields;
        (self.parts.regular..fields.len()).map(move |at| fields.get(at))
    }
}

/// Checks the list of a request.
pub fn check(fields: &Fields) -> Result<Parts, Malformed> {
    let [mut method, mut path, mut scheme, mut authority] = [None; 4];
    let mut regular = fields.len();
    let mut body_bytes = None;
    for (at, (name, value)) in fields.iter().enumerate() {
        if let [b':', ..] = name {
            let slot = match name {
                b":method" => &mut method,
                b":path" => &mut path,
                b":scheme" => &mut scheme,
                b":authority" => &mut authority,
                _ => return Err(Malformed),
            };
            if regular < fields.len() || slot.replace(at).is_some() || !is_value(value) {
                return Err(Malformed);
            }
            continue;
        }
        regular = regular.min(at);
        check_field(name, value)?;
        if name == b"content-length" {
            let bytes = number(value).ok_or(Malformed)?;
            if body_bytes
                .replace(bytes)
                .is_some_and(|before| before != bytes)
            {
                return Err(Malformed);
            }
        }
    }
    let (Some(method), Some(path), Some(_)) = (method, path, scheme) else {
        return Err(Malformed);
    };
    if fields.get(path).1.is_empty() || fields.get(method).1.is_empty() {
        return Err(Malformed);
    }
    Ok(Parts {
        method,
        path,
        authority,
        regular,
        body_bytes,
    })
}

/// Checks the list that ends a request.
pub fn check_trailers(fields: &Fields) -> Result<(), Malformed> {
    fields
        .iter()
        .try_for_each(|(name, value)| check_field(name, value))
}

fn check_field(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let forbidden = match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => value != b"trailers",
        _ => false,
    };
    let is_name = |b: &u8| matches!(b, b'!'..=b'~') && !b.is_ascii_uppercase() && *b != b':';
    match !forbidden && !name.is_empty() && name.iter().all(is_name) && is_value(value) {
        true => Ok(()),
        false => Err(Malformed),
    }
}

fn is_value(value: &[u8]) -> bool {
    !value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'))
}

fn number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::super::hpack::{Decoder, write_field};
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut block = Vec::new();
        for (name, value) in list {
            write_field(&mut block, name.as_bytes(), value.as_bytes());
        }
        let mut fields = Fields::default();
        Decoder::new(1 << 16).decode(&block, &mut fields).unwrap();
        fields
    }

    const BASE: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/p")];

    fn with(more: &[(&str, &str)]) -> Result<Parts, Malformed> {
        check(&fields(&[&BASE[..], more].concat()))
    }

    #[test]
    fn what_a_request_says() {
        let list = fields(
            &[
                &BASE[..],
                &[
                    (":authority", "#initially=[http://127.0.0.1:2379];x y"),
                    ("te", "trailers"),
                    ("content-length", "12"),
                ],
            ]
            .concat(),
        );
        let parts = check(&list).unwrap();
        let head = Head {
            fields: &list,
            parts,
        };
        assert_eq!((head.method(), head.path()), (&b"POST"[..], &b"/p"[..]));
        let authority = head.authority().unwrap();
        assert_eq!(authority, b"#initially=[http://127.0.0.1:2379];x y");
        assert!(
            head.fields()
                .map(|f| f.0)
                .eq([&b"te"[..], b"content-length"])
        );
        assert_eq!(parts.body_bytes, Some(12));
        assert_eq!(with(&[]).unwrap().authority, None);
    }

    #[test]
    fn what_breaks_a_rule() {
        let good: [&[(&str, &str)]; 3] = [
            &[("x", "")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("x", "\u{fc}\t\x7f")],
        ];
        for fields in good {
            with(fields).unwrap();
        }
        let bad: [&[(&str, &str)]; 19] = [
            &[("X-Upper", "v")],
            &[("", "v")],
            &[("a b", "v")],
            &[("a:b", "v")],
            &[("a", "line\nbreak")],
            &[("a", "nul\0")],
            &[(":status", "200")],
            &[(":unknown", "v")],
            &[(":path", "/again")],
            &[("a", "b"), (":authority", "late")],
            &[("connection", "close")],
            &[("proxy-connection", "close")],
            &[("keep-alive", "1")],
            &[("transfer-encoding", "chunked")],
            &[("upgrade", "h2c")],
            &[("te", "gzip")],
            &[("content-length", "-1")],
            &[("content-length", "1"), ("content-length", "2")],
            &[("content-length", "99999999999999999999999")],
        ];
        for fields in bad {
            assert_eq!(with(fields), Err(Malformed), "{fields:?}");
        }
        for missing in 0..BASE.len() {
            let mut base = BASE.to_vec();
            base.remove(missing);
            assert_eq!(check(&fields(&base)), Err(Malformed));
        }
        let mut base = BASE;
        base[2].1 = "";
        assert_eq!(check(&fields(&base)), Err(Malformed), "an empty path");
        let trailers = |list: &[(&str, &str)]| check_trailers(&fields(list));
        trailers(&[("x", "y")]).unwrap();
        assert_eq!(trailers(&[(":path", "/")]), Err(Malformed));
    }
}
