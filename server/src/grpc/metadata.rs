//! The request headers of a call: what is refused, and what is kept.
//!
//! Invariant: nothing but the fields named here is read, so a header a client adds cannot change what
//! the server does.

use crate::api::RequestCtx;
use crate::status::{Code, Status};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What the headers of a call say.
#[derive(Debug)]
pub struct Metadata {
    /// For the handler; its deadline is set when the call begins.
    pub ctx: RequestCtx,
    /// `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// Metadata `client-api-version`.
    pub client_version: ClientVersion,
    /// `grpc-encoding`.
    pub encoding: Option<Box<str>>,
    /// The content type to answer with: the client's sub-type comes back as it is.
    pub content_type: Bytes,
}

/// What a client says about its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientVersion {
    /// Nothing.
    Absent,
    /// This.
    Named(Arc<str>),
    /// Bytes that are not UTF-8.
    Invalid,
}

impl ClientVersion {
    /// The version, if it was named.
    pub fn name(&self) -> Option<&str> {
        match self {
            ClientVersion::Named(value) => Some(value),
            _ => None,
        }
    }
}

/// A call refused before its method is looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub http: u16,
    /// The gRPC status beside it.
    pub status: Status,
}

/// The content type of answers, unless the client named a sub-type.
pub const GRPC: Bytes = Bytes::from_static(b"application/grpc");

/// Whether a content type is gRPC's: the bare name or one with a sub-type or parameters.
pub fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => matches!(next, b'+' | b';'),
        None => false,
    }
}

impl Metadata {
    /// Reads the headers, with grpc-go's checks in its order: content type, malformed timeout, method.
    /// Of a field given twice the first counts.
    pub fn read<'a>(
        method: &[u8],
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Metadata, Refusal> {
        let mut fields = Fields::default();
        headers.for_each(|(name, value)| fields.take(name, value));
        let content_type = fields.content_type.unwrap_or(b"");
        if !is_grpc(content_type) {
            let shown = String::from_utf8_lossy(content_type);
            return Err(Refusal {
                http: 415,
                status: Status::new(
                    Code::InvalidArgument,
                    format!("invalid gRPC request content-type {shown:?}"),
                ),
            });
        }
        let timeout = fields.timeout.map(parse_timeout).transpose();
        let timeout = timeout.map_err(|status| Refusal { http: 400, status })?;
        if method != b"POST" {
            let shown = String::from_utf8_lossy(method);
            return Err(Refusal {
                http: 405,
                status: Status::new(
                    Code::Internal,
                    format!("Received a HEADERS frame with :method {shown:?} which should be POST"),
                ),
            });
        }
        Ok(Metadata {
            ctx: RequestCtx {
                token: fields.token(),
                has_leader: fields.has_leader == Some(b"true"),
                deadline: None,
                gateway: fields.gateway,
            },
            timeout,
            client_version: client_version(fields.client_version),
            encoding: fields.encoding.map(|v| String::from_utf8_lossy(v).into()),
            content_type: match content_type.starts_with(b"application/grpc+") {
                true => Bytes::copy_from_slice(content_type),
                false => GRPC,
            },
        })
    }
}

/// The fields that are read, found in one pass.
#[derive(Default)]
struct Fields<'a> {
    content_type: Option<&'a [u8]>,
    timeout: Option<&'a [u8]>,
    encoding: Option<&'a [u8]>,
    token: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    has_leader: Option<&'a [u8]>,
    client_version: Option<&'a [u8]>,
    gateway: bool,
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &[u8], value: &'a [u8]) {
        let field = match name {
            b"content-type" => &mut self.content_type,
            b"grpc-timeout" => &mut self.timeout,
            b"grpc-encoding" => &mut self.encoding,
            b"token" => &mut self.token,
            b"authorization" => &mut self.authorization,
            b"hasleader" => &mut self.has_leader,
            b"client-api-version" => &mut self.client_version,
            b"grpcgateway-accept" => {
                self.gateway = true;
                return;
            }
            _ => return,
        };
        field.get_or_insert(value);
    }

    fn token(&self) -> Option<Box<str>> {
        let text = |value: &[u8]| std::str::from_utf8(value).ok().map(Box::from);
        if let Some(token) = self.token {
            return text(token);
        }
        let token: Box<str> = text(self.authorization?)?;
        match token.strip_prefix("Bearer ") {
            Some(bare) => Some(bare.into()),
            None => Some(token),
        }
    }
}

fn client_version(value: Option<&[u8]>) -> ClientVersion {
    match value.map(std::str::from_utf8) {
        None => ClientVersion::Absent,
        Some(Ok(version)) => ClientVersion::Named(version.into()),
        Some(Err(_)) => ClientVersion::Invalid,
    }
}

/// At most eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Result<Duration, Status> {
    let text = String::from_utf8_lossy(value);
    let malformed =
        |why: String| Status::new(Code::Internal, format!("malformed grpc-timeout: {why}"));
    if text.len() < 2 {
        return Err(malformed(format!(
            "transport: timeout string is too short: {text:?}"
        )));
    }
    if text.len() > 9 {
        return Err(malformed(format!(
            "transport: timeout string is too long: {text:?}"
        )));
    }
    let unit: fn(u64) -> Duration = match text.as_bytes()[text.len() - 1] {
        b'H' => |n| Duration::from_secs(n * 3600),
        b'M' => |n| Duration::from_secs(n * 60),
        b'S' => Duration::from_secs,
        b'm' => Duration::from_millis,
        b'u' => Duration::from_micros,
        b'n' => Duration::from_nanos,
        _ => {
            return Err(malformed(format!(
                "transport: timeout unit is not recognized: {text:?}"
            )));
        }
    };
    let digits = &text[..text.len() - 1];
    match digits.parse::<u64>() {
        Ok(n) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(unit(n)),
        _ => Err(malformed(format!(
            "strconv.ParseInt: parsing {digits:?}: invalid syntax"
        ))),
    }
}

/// The value of `grpc-message`: printable ASCII as it is, everything else and `%` as `%XX`.
pub fn encode_message(message: &str) -> Cow<'_, str> {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'%';
    if message.bytes().all(plain) {
        return Cow::Borrowed(message);
    }
    let mut encoded = String::with_capacity(message.len() + 16);
    for byte in message.bytes() {
        match plain(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(method: &str, pairs: &[(&str, &[u8])]) -> Result<Metadata, Refusal> {
        let pairs = pairs.iter().map(|(name, value)| (name.as_bytes(), *value));
        Metadata::read(method.as_bytes(), pairs)
    }

    const PLAIN: (&str, &[u8]) = ("content-type", b"application/grpc");

    fn read(pairs: &[(&str, &[u8])]) -> Result<Metadata, Refusal> {
        read_as("POST", &[pairs, &[PLAIN]].concat())
    }

    #[test]
    fn content_types() {
        for good in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            read(&[("content-type", good.as_bytes())]).unwrap();
        }
        for bad in [
            "",
            "application/json",
            "application/grpc-web",
            "text/application/grpc",
        ] {
            let refusal = read(&[("content-type", bad.as_bytes())]).unwrap_err();
            assert_eq!(refusal.http, 415);
            assert_eq!(
                refusal.status,
                Status::new(
                    Code::InvalidArgument,
                    format!("invalid gRPC request content-type \"{bad}\"")
                )
            );
        }
    }

    #[test]
    fn only_post() {
        let refusal = read_as("GET", &[PLAIN]).unwrap_err();
        assert_eq!(refusal.http, 405);
        assert_eq!(
            refusal.status.message,
            "Received a HEADERS frame with :method \"GET\" which should be POST"
        );
    }

    #[test]
    fn timeouts() {
        let read = |text: &str| read(&[("grpc-timeout", text.as_bytes())]);
        for (text, duration) in [
            ("5S", Duration::from_secs(5)),
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(read(text).unwrap().timeout, Some(duration), "{text}");
        }
        for (text, why) in [
            ("S", "transport: timeout string is too short: \"S\""),
            (
                "123456789S",
                "transport: timeout string is too long: \"123456789S\"",
            ),
            ("5x", "transport: timeout unit is not recognized: \"5x\""),
            ("-5S", "strconv.ParseInt: parsing \"-5\": invalid syntax"),
            ("+5S", "strconv.ParseInt: parsing \"+5\": invalid syntax"),
        ] {
            let refusal = read(text).unwrap_err();
            assert_eq!(refusal.http, 400);
            assert_eq!(
                refusal.status.message,
                format!("malformed grpc-timeout: {why}")
            );
        }
    }

    #[test]
    fn tokens_and_flags() {
        let ctx = |pairs: &[(&str, &[u8])]| read(pairs).unwrap().ctx;
        let token = |pairs: &[(&str, &[u8])]| ctx(pairs).token.map(String::from);
        assert_eq!(token(&[]), None);
        assert_eq!(
            token(&[("token", b"t"), ("authorization", b"a")]),
            Some("t".into())
        );
        assert_eq!(token(&[("authorization", b"a")]), Some("a".into()));
        assert_eq!(token(&[("authorization", b"Bearer a")]), Some("a".into()));
        assert!(!ctx(&[]).has_leader && !ctx(&[("hasleader", b"1")]).has_leader);
        assert!(ctx(&[("hasleader", b"true")]).has_leader);
        assert!(ctx(&[("grpcgateway-accept", b"*/*")]).gateway);
    }

    #[test]
    fn client_versions() {
        let version = |pairs: &[(&str, &[u8])]| read(pairs).unwrap().client_version;
        assert_eq!(version(&[]), ClientVersion::Absent);
        assert_eq!(
            version(&[("client-api-version", b"3.6.0")]).name(),
            Some("3.6.0")
        );
        assert_eq!(
            version(&[("client-api-version", "3.6.0-ü".as_bytes())]).name(),
            Some("3.6.0-ü")
        );
        assert_eq!(
            version(&[("client-api-version", b"\xff")]),
            ClientVersion::Invalid
        );
    }

    #[test]
    fn messages_are_percent_encoded() {
        for (message, encoded) in [
            (
                "etcdserver: key is not provided",
                "etcdserver: key is not provided",
            ),
            ("100%", "100%25"),
            ("a\nb", "a%0Ab"),
            ("ü", "%C3%BC"),
            ("", ""),
        ] {
            assert_eq!(encode_message(message), encoded);
        }
    }
}
