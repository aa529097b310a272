//! The rules of gRPC over HTTP/2 that are not about streams, with grpc-go's codes and texts.
//!
//! With `QUORATE_REFERENCE` set to the address of a real etcd (`127.0.0.1:2379`), the same table is
//! demanded of it.

use super::*;

struct Case {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static [u8])>,
    body: Bytes,
    http: u16,
    status: u16,
    message: Expected,
}

enum Expected {
    Exactly(&'static str),
    Begins(&'static str),
}

use Expected::{Begins, Exactly};

const RANGE: &str = "/etcdserverpb.KV/Range";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

fn case(
    name: &'static str,
    path: &'static str,
    body: Bytes,
    status: u16,
    message: Expected,
) -> Case {
    Case {
        name,
        method: "POST",
        path,
        headers: GRPC.to_vec(),
        body,
        http: 200,
        status,
        message,
    }
}

impl Case {
    fn header(mut self, name: &'static str, value: &'static [u8]) -> Case {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value));
        self
    }

    fn without(mut self, name: &'static str) -> Case {
        self.headers.retain(|(n, _)| *n != name);
        self
    }

    fn http(mut self, http: u16) -> Case {
        self.http = http;
        self
    }

    fn method(mut self, method: &'static str) -> Case {
        self.method = method;
        self
    }
}

fn cases() -> Vec<Case> {
    let empty = || frame(0, b"");
    let ok = |name, path| case(name, path, empty(), 0, Exactly(""));
    vec![
        ok("health", HEALTH),
        ok("sub-type", HEALTH).header("content-type", b"application/grpc+proto"),
        ok("parameters", HEALTH).header("content-type", b"application/grpc;x=y"),
        ok("identity", HEALTH).header("grpc-encoding", b"identity"),
        case(
            "wrong content type",
            RANGE,
            empty(),
            3,
            Exactly("invalid gRPC request content-type \"application/json\""),
        )
        .header("content-type", b"application/json")
        .http(415),
        case(
            "grpc-web",
            RANGE,
            empty(),
            3,
            Exactly("invalid gRPC request content-type \"application/grpc-web\""),
        )
        .header("content-type", b"application/grpc-web")
        .http(415),
        case(
            "no content type",
            RANGE,
            empty(),
            3,
            Exactly("invalid gRPC request content-type \"\""),
        )
        .without("content-type")
        .http(415),
        case(
            "not a POST",
            RANGE,
            empty(),
            13,
            Exactly("Received a HEADERS frame with :method \"PUT\" which should be POST"),
        )
        .method("PUT")
        .http(405),
        case(
            "unknown service",
            "/no.Such/M",
            empty(),
            12,
            Exactly("unknown service no.Such"),
        ),
        case(
            "unknown method",
            "/etcdserverpb.KV/Nope",
            empty(),
            12,
            Exactly("unknown method Nope for service etcdserverpb.KV"),
        ),
        case(
            "a method of a later release",
            "/etcdserverpb.KV/RangeStream",
            empty(),
            12,
            Exactly("unknown method RangeStream for service etcdserverpb.KV"),
        ),
        case(
            "reflection",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            empty(),
            12,
            Exactly("unknown service grpc.reflection.v1.ServerReflection"),
        ),
        case(
            "no method",
            "/nothing",
            empty(),
            12,
            Exactly("malformed method name: \"/nothing\""),
        ),
        case(
            "deep path",
            "/a/b/c",
            empty(),
            12,
            Exactly("unknown service a/b"),
        ),
        case(
            "undecodable",
            RANGE,
            frame(0, b"\x0a\xff"),
            13,
            Begins("grpc: error unmarshalling request: "),
        ),
        case(
            "too large",
            RANGE,
            frame(0, &vec![0; (2 << 20) + 1]),
            8,
            Exactly("grpc: received message larger than max (2097153 vs. 2097152)"),
        ),
        case(
            "too large by its prefix alone",
            RANGE,
            Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff]),
            8,
            Exactly("grpc: received message larger than max (2147483647 vs. 2097152)"),
        ),
        case(
            "unknown encoding",
            RANGE,
            frame(1, b"x"),
            12,
            Exactly("grpc: Decompressor is not installed for grpc-encoding \"deflate\""),
        )
        .header("grpc-encoding", b"deflate"),
        case(
            "unknown encoding named, not used",
            RANGE,
            empty(),
            12,
            Exactly("grpc: Decompressor is not installed for grpc-encoding \"deflate\""),
        )
        .header("grpc-encoding", b"deflate"),
        case(
            "compressed without an encoding",
            RANGE,
            frame(1, b"x"),
            13,
            Exactly("grpc: compressed flag set with identity or empty encoding"),
        ),
        case(
            "odd flag",
            RANGE,
            frame(7, b"x"),
            13,
            Exactly("grpc: received unexpected payload format 7"),
        ),
        case(
            "deadline over before it began",
            RANGE,
            framed(&pb::RangeRequest {
                key: "k".into(),
                ..Default::default()
            }),
            4,
            Exactly("context deadline exceeded"),
        )
        .header("grpc-timeout", b"0n"),
        case(
            "malformed deadline",
            RANGE,
            empty(),
            13,
            Exactly("malformed grpc-timeout: transport: timeout unit is not recognized: \"5x\""),
        )
        .header("grpc-timeout", b"5x")
        .http(400),
        case(
            "client version not UTF-8",
            RANGE,
            framed(&pb::RangeRequest {
                key: "k".into(),
                ..Default::default()
            }),
            3,
            Exactly("etcdserver: invalid client api version"),
        )
        .header("client-api-version", b"\xff\xfe"),
        case(
            "empty key",
            RANGE,
            empty(),
            3,
            Exactly("etcdserver: key is not provided"),
        ),
        case("no message", RANGE, Bytes::new(), 2, Exactly("EOF")),
        case(
            "half a message",
            RANGE,
            Bytes::from_static(&[0, 0, 0, 0, 9, 1, 2]),
            2,
            Exactly("unexpected EOF"),
        ),
        case(
            "half a prefix",
            RANGE,
            Bytes::from_static(&[0, 0, 0]),
            2,
            Exactly("EOF"),
        ),
        case(
            "stream without its message",
            HEALTH_WATCH,
            Bytes::new(),
            13,
            Exactly(
                "cardinality violation: received no request message from non-client-streaming RPC",
            ),
        ),
        case(
            "stream with half a message",
            HEALTH_WATCH,
            Bytes::from_static(&[0, 0, 0, 0, 9, 1, 2]),
            13,
            Exactly("unexpected EOF"),
        ),
        case(
            "stream with an undecodable message",
            HEALTH_WATCH,
            frame(0, b"\x0a\xff"),
            13,
            Begins("grpc: failed to unmarshal the received message: "),
        ),
        case(
            "stream with an unknown encoding",
            HEALTH_WATCH,
            empty(),
            12,
            Exactly("grpc: Decompressor is not installed for grpc-encoding \"deflate\""),
        )
        .header("grpc-encoding", b"deflate"),
        case(
            "stream with a message too large",
            "/etcdserverpb.Watch/Watch",
            Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff]),
            8,
            Exactly("grpc: received message larger than max (2147483647 vs. 2097152)"),
        ),
        case(
            "stream closed at once",
            "/etcdserverpb.Lease/LeaseKeepAlive",
            Bytes::new(),
            0,
            Exactly(""),
        ),
    ]
}

async fn demand(addr: SocketAddr) {
    let mut wrong = Vec::new();
    for case in cases() {
        let raw = Raw::connect(addr).await;
        let (response, mut send) = raw.open(case.method, case.path, &case.headers).await;
        let _ = send.send_data(case.body.clone(), true);
        let answer = match answer(response).await {
            Ok(answer) => answer,
            Err(error) => {
                wrong.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        let (status, message) = answer.status();
        let fits = match case.message {
            Exactly(text) => message == text,
            Begins(text) => message.starts_with(text),
        };
        if (answer.http, status, fits) != (case.http, case.status, true) {
            wrong.push(format!(
                "{}: {} {status} {message:?}",
                case.name, answer.http
            ));
        }
        if status != 0 && answer.trailers.is_some() {
            wrong.push(format!("{}: not headers alone", case.name));
        }
    }
    assert!(wrong.is_empty(), "{addr}:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn refusals() {
    let member = super::member::start().await;
    demand(member.addr).await;
}

#[tokio::test]
async fn the_reference_is_as_the_table_says() {
    if let Ok(addr) = std::env::var("QUORATE_REFERENCE") {
        demand(addr.parse().expect("an address and a port")).await;
    }
}

#[tokio::test]
async fn a_plain_call_and_its_headers() {
    let f = started();
    let raw = f.raw().await;
    let n = note(5, "hello");
    let path = format!("/{TEST}/Echo");
    for content_type in ["application/grpc", "application/grpc+proto"] {
        let headers = [("content-type", content_type.as_bytes())];
        let answer = raw.call(&path, &headers, framed(&n)).await.unwrap();
        assert_eq!(answer.http, 200);
        assert_eq!(
            Answer::text(&answer.headers, "content-type"),
            Some(content_type)
        );
        assert_eq!(answer.headers.len(), 1, "{:?}", answer.headers);
        assert_eq!(answer.status(), (0, String::new()));
        assert_eq!(answer.messages::<Note>(), std::slice::from_ref(&n));
    }
}

#[tokio::test]
async fn every_code_and_any_text_reach_the_client() {
    let f = started();
    let raw = f.raw().await;
    for code in Code::ALL.into_iter().skip(1) {
        let text = format!("{}: 100 % wrong, ümlaut, line\nbreak", code.name());
        let body = framed(&note(code as u64, text.clone()));
        let answer = raw
            .call(&format!("/{TEST}/Fail"), GRPC, body)
            .await
            .unwrap();
        assert_eq!(answer.status(), (code as u16, text));
        assert!(answer.trailers.is_none() && answer.body.is_empty());
    }
}

#[tokio::test]
async fn messages_of_every_size_survive_however_they_are_cut() {
    let f = started();
    let raw = f.raw().await;
    for size in [0, 1, 4090, 16 << 10, 70_000, (2 << 20) - 20] {
        let n = note(1, vec![3; size]);
        assert_eq!(raw.echo(&n).await, n);
    }
    let n = note(9, vec![1; 300]);
    let bytes = framed(&n);
    let path = format!("/{TEST}/Echo");
    for step in [1, 3, 5, 100] {
        let (response, mut send) = raw.open("POST", &path, GRPC).await;
        for piece in bytes.chunks(step) {
            send.send_data(Bytes::copy_from_slice(piece), false)
                .unwrap();
        }
        // The end of the stream in a frame of its own, as some clients send it.
        send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(
            answer(response).await.unwrap().messages::<Note>(),
            std::slice::from_ref(&n)
        );
    }
}

#[tokio::test]
async fn an_answer_need_not_wait_for_the_end_of_the_request() {
    let f = started();
    let raw = f.raw().await;
    let (response, mut send) = raw.open("POST", &format!("/{TEST}/Echo"), GRPC).await;
    send.send_data(framed(&note(1, "x")), false).unwrap();
    assert_eq!(answer(response).await.unwrap().status(), (0, String::new()));
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_its_handler() {
    let f = started();
    let raw = f.raw().await;
    let headers = [GRPC[0], ("grpc-timeout", b"20m")];
    let hang = format!("/{TEST}/Hang");
    let answer = raw.call(&hang, &headers, frame(0, b"")).await.unwrap();
    assert_eq!(answer.status(), (4, "context deadline exceeded".into()));
    f.running(0).await;
    // Also while the request has not arrived.
    let (response, _send) = raw.open("POST", &hang, &headers).await;
    let answer = super::answer(response).await.unwrap();
    assert_eq!(answer.status(), (4, "context deadline exceeded".into()));
    let text = String::from_utf8(f.metrics.render()).unwrap();
    assert!(text.contains(
        "grpc_server_handled_total{grpc_code=\"DeadlineExceeded\",grpc_method=\"Hang\",\
         grpc_service=\"test.Test\",grpc_type=\"unary\"} 1"
    ));
}

#[tokio::test]
async fn a_cancelled_call_drops_its_handler() {
    let f = started();
    let raw = f.raw().await;
    let hang = format!("/{TEST}/Hang");
    let (response, mut send) = raw.open("POST", &hang, GRPC).await;
    send.send_data(frame(0, b""), true).unwrap();
    f.running(1).await;
    send.send_reset(h2::Reason::CANCEL);
    drop(response);
    f.running(0).await;
    assert_eq!(raw.echo(&note(1, "alive")).await, note(1, "alive"));
    // A connection that ends takes its calls along.
    let other = f.raw().await;
    let (response, mut send) = other.open("POST", &hang, GRPC).await;
    send.send_data(frame(0, b""), true).unwrap();
    f.running(1).await;
    drop((response, send, other));
    f.running(0).await;
    let text = String::from_utf8(f.metrics.render()).unwrap();
    assert!(text.contains(
        "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Hang\",\
         grpc_service=\"test.Test\",grpc_type=\"unary\"} 2"
    ));
}

#[tokio::test]
async fn a_handler_that_panics_costs_the_others_nothing() {
    let f = started();
    let raw = f.raw().await;
    let path = format!("/{TEST}/Panic");
    let (hanging, mut send) = raw.open("POST", &format!("/{TEST}/Hang"), GRPC).await;
    send.send_data(frame(0, b""), true).unwrap();
    f.running(1).await;
    // At once, and after it had to wait.
    for waits in [0, 1] {
        let error = raw.call(&path, GRPC, framed(&note(waits, ""))).await;
        let error = error.expect_err("no answer");
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        assert_eq!(raw.echo(&note(1, "x")).await, note(1, "x"));
    }
    f.running(1).await;
    drop((hanging, send));
    f.running(0).await;
}

#[tokio::test]
async fn calls_and_bytes_are_counted() {
    let f = started();
    let raw = f.raw().await;
    let n = note(1, vec![0; 1000]);
    let len = n.encoded_len() as u64;
    for _ in 0..3 {
        raw.echo(&n).await;
    }
    let version = [GRPC[0], ("client-api-version", b"3.6.14")];
    let undecodable = frame(0, b"\x0a\xff");
    let echo = format!("/{TEST}/Echo");
    raw.call(&echo, &version, framed(&n)).await.unwrap();
    // Refused before it counts as a call.
    raw.call(&echo, GRPC, undecodable).await.unwrap();
    let network = &f.metrics.network;
    assert_eq!(network.client_received_bytes.get(), 4 * len + 2);
    assert_eq!(network.client_sent_bytes.get(), 4 * len);
    let text = String::from_utf8(f.metrics.render()).unwrap();
    let labels = "{grpc_method=\"Echo\",grpc_service=\"test.Test\",grpc_type=\"unary\"}";
    for series in [
        format!("grpc_server_started_total{labels} 4"),
        format!("grpc_server_msg_received_total{labels} 4"),
        format!("grpc_server_msg_sent_total{labels} 4"),
        format!("grpc_server_handling_seconds_count{labels} 4"),
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Echo\",\
         grpc_service=\"test.Test\",grpc_type=\"unary\"} 4"
            .into(),
        "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"} 3".into(),
        "etcd_server_client_requests_total{client_api_version=\"3.6.14\",type=\"unary\"} 1".into(),
    ] {
        assert!(text.lines().any(|line| line == series), "{series}");
    }
}

#[tokio::test]
async fn thousands_of_calls_answered_before_their_end_do_not_end_the_connection() {
    let f = started();
    let raw = f.raw().await;
    let echo = format!("/{TEST}/Echo");
    for i in 0..4000 {
        let (response, mut send) = raw.open("POST", &echo, GRPC).await;
        // Every other one is refused by its message, and goes on sending.
        let message = match i % 2 {
            0 => framed(&note(i, "x")),
            _ => frame(9, &[0; 300]),
        };
        send.send_data(message, false).unwrap();
        let answer = answer(response).await.unwrap();
        assert_eq!(answer.status().0, if i % 2 == 0 { 0 } else { 13 });
        // The server may have closed the stream by now.
        let _ = send.send_data(Bytes::from_static(b"more"), false);
        let _ = send.send_data(Bytes::new(), true);
    }
    assert_eq!(raw.echo(&note(1, "x")).await, note(1, "x"));
}
