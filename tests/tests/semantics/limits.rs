//! 9: limits, timeouts, transport; and what stands outside the services.

use bytes::Bytes;
use prost::Message;
use quorate_proto::health;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, TOGETHER, alone};
use quorate_tests::table;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

table![
    TOGETHER => [
        r9_1_largest_request,
        r9_1_receive_limit,
        r9_4_too_many_pings,
        r9_7_unknown_methods,
        r9_7_undecodable_request,
        r9_7_deadline,
        r9_7_client_api_version,
        r9_7_health_service,
        r9_7_no_reflection,
    ],
    alone(&["--grpc-keepalive-min-time=1ms"]) => [r9_4_pings_by_flag],
    alone(&["--max-request-bytes=10000", "--max-txn-ops=3"]) => [r9_1_limits_by_flag],
];

async fn r9_1_largest_request(c: Ctx) {
    let sized = |bytes: usize| put(c.key("a"), vec![b'v'; bytes]);
    c.put(sized(1_572_864 - 256)).await;
    let text = "etcdserver: request is too large";
    for bytes in [1_572_864, 2_000_000] {
        let result = c.try_put(sized(bytes)).await;
        fails(result, Code::InvalidArgument, text);
    }
    let ops: Vec<_> = (0..3)
        .map(|n| put(c.key(&n.to_string()), vec![b'v'; 600_000]).op())
        .collect();
    fails(
        c.try_txn(txn([], ops, [])).await,
        Code::InvalidArgument,
        text,
    );
    // Reads carry no log entry and may answer with any size.
    for n in 0..3 {
        c.put(put(c.key(&n.to_string()), vec![b'v'; 1_500_000]))
            .await;
    }
    assert_eq!(c.range(c.all()).await.kvs.len(), 4);
}

async fn r9_1_receive_limit(c: Ctx) {
    let request = put(c.key("a"), vec![b'v'; 2_097_152]);
    let size = request.encoded_len();
    let text = format!("grpc: received message larger than max ({size} vs. 2097152)");
    fails(c.try_put(request).await, Code::ResourceExhausted, &text);
    // For every call, also where there is no log entry.
    let request = range(vec![b'k'; 2_097_152]);
    let size = request.encoded_len();
    let text = format!("grpc: received message larger than max ({size} vs. 2097152)");
    fails(c.try_range(request).await, Code::ResourceExhausted, &text);
    c.put_all(&[("a", "the connection lives on")]).await;
}

async fn r9_1_limits_by_flag(c: Ctx) {
    let sized = |bytes: usize| put(c.key("a"), vec![b'v'; bytes]);
    c.put(sized(9_800)).await;
    fails(
        c.try_put(sized(10_000)).await,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    let limit = 10_000 + 512 * 1024;
    let request = sized(limit);
    let size = request.encoded_len();
    fails(
        c.try_put(request).await,
        Code::ResourceExhausted,
        &format!("grpc: received message larger than max ({size} vs. {limit})"),
    );
    let ops = |count| vec![delete(c.key("a")).op(); count];
    c.txn(txn([], ops(3), [])).await;
    fails(
        c.try_txn(txn([], ops(4), [])).await,
        Code::InvalidArgument,
        "etcdserver: too many operations in txn request",
    );
}

/// Sends eight pings, this far apart, on a connection with a call under way or without calls; returns how
/// many were answered and the body of the GOAWAY, if one came.
async fn ping_eight_times(c: &Ctx, calling: bool, apart: Duration) -> (u32, Option<Vec<u8>>) {
    let address = c.url.strip_prefix("http://").expect("a plain URL");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("a connection");
    let frame = |kind: u8, flags: u8, body: &[u8]| {
        let mut frame = vec![0, 0, body.len() as u8, kind, flags, 0, 0, 0, 0];
        frame.extend_from_slice(body);
        frame
    };
    let (settings, ping, goaway) = (4, 6, 7);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(settings, 0, &[]));
    if calling {
        // A watch that is never created is a call that never ends.
        let (headers, end_headers) = (1, 4);
        let mut block = b"\x83\x86\x04\x19/etcdserverpb.Watch/Watch".to_vec();
        block.extend(b"\x0f\x10\x10application/grpc\0\x02te\x08trailers");
        let mut call = frame(headers, end_headers, &block);
        call[8] = 1;
        bytes.extend(call);
    }
    stream.write_all(&bytes).await.expect("sent");
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        for n in 0..8 {
            // The server may have said goodbye by now.
            let _ = writer.write_all(&frame(ping, 0, &[n; 8])).await;
            tokio::time::sleep(apart).await;
        }
    };
    let read = async {
        let mut answered = 0;
        while answered < 8 {
            let mut head = [0; 9];
            reader.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut body = vec![0; length as usize];
            reader.read_exact(&mut body).await.expect("a body");
            match head[3] {
                kind if kind == goaway => return (answered, Some(body)),
                // Its answers; grpc-go has pings of its own.
                kind if kind == ping && head[4] == 1 => answered += 1,
                _ => {}
            }
        }
        (answered, None)
    };
    let both = async { tokio::join!(read, write).0 };
    let read = tokio::time::timeout(quorate_tests::PATIENCE, both).await;
    read.expect("answers or a GOAWAY")
}

fn too_many(outcome: (u32, Option<Vec<u8>>)) {
    let (answered, goaway) = outcome;
    assert!(answered < 8, "answered all");
    let goaway = goaway.expect("a GOAWAY");
    let enhance_your_calm = 11_u32.to_be_bytes();
    assert_eq!(goaway[4..8], enhance_your_calm);
    assert_eq!(&goaway[8..], b"too_many_pings");
}

async fn r9_4_too_many_pings(c: Ctx) {
    too_many(ping_eight_times(&c, false, Duration::ZERO).await);
    too_many(ping_eight_times(&c, true, Duration::ZERO).await);
}

async fn r9_4_pings_by_flag(c: Ctx) {
    let apart = Duration::from_millis(20);
    // Without a call the flag does not count.
    too_many(ping_eight_times(&c, false, apart).await);
    assert_eq!(ping_eight_times(&c, true, apart).await, (8, None));
}

async fn r9_7_unknown_methods(c: Ctx) {
    let call = async |path| crate::raw::call(&c, path, "").await;
    fails(
        call("/etcdserverpb.KV/Nothing").await,
        Code::Unimplemented,
        "unknown method Nothing for service etcdserverpb.KV",
    );
    fails(
        call("/etcdserverpb.Nothing/Range").await,
        Code::Unimplemented,
        "unknown service etcdserverpb.Nothing",
    );
}

async fn r9_7_undecodable_request(c: Ctx) {
    // Field 1, length 5, one byte.
    let result = crate::raw::call(&c, "/etcdserverpb.KV/Range", &b"\x0a\x05a"[..]).await;
    let status = result.expect_err("undecodable");
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    c.put_all(&[("a", "the connection lives on")]).await;
}

async fn r9_7_deadline(c: Ctx) {
    let request = range(c.key("a")).encode_to_vec();
    let result = crate::raw::call_with(&c, "/etcdserverpb.KV/Range", request, |metadata| {
        metadata.insert("grpc-timeout", "1n".parse().expect("a value"));
    })
    .await;
    let status = result.expect_err("too late");
    let code = status.code();
    // Our side of the connection may give up first, with the other code.
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );
    c.put_all(&[("a", "the connection lives on")]).await;
}

async fn r9_7_client_api_version(c: Ctx) {
    let request = range(c.key("a")).encode_to_vec();
    let result = crate::raw::call_with(&c, "/etcdserverpb.KV/Range", request, |metadata| {
        metadata.insert("client-api-version", "3.6".parse().expect("a value"));
        metadata.insert("hasleader", "true".parse().expect("a value"));
    })
    .await;
    ok(result);
}

async fn r9_7_health_service(c: Ctx) {
    let check = async |service: &str| {
        let request = health::HealthCheckRequest {
            service: service.to_owned(),
        };
        let path = "/grpc.health.v1.Health/Check";
        crate::raw::call(&c, path, Bytes::from(request.encode_to_vec())).await
    };
    let answer = ok(check("").await);
    let answer = health::HealthCheckResponse::decode(answer).expect("a response");
    assert_eq!(answer.status, 1, "SERVING");
    fails(
        check("etcdserverpb.KV").await,
        Code::NotFound,
        "unknown service",
    );
}

async fn r9_7_no_reflection(c: Ctx) {
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    fails(
        crate::raw::call(&c, path, "").await,
        Code::Unimplemented,
        "unknown service grpc.reflection.v1.ServerReflection",
    );
}
