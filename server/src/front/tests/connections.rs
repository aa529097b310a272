//! Connections: protocols on one port, limits, abuse, and the end of a server.

use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn one_port_speaks_http1_and_http2_side_by_side() {
    let f = started();
    for addr in &f.addrs[..2] {
        let raw = Raw::connect(*addr).await;
        let (head, body) = http1(*addr, &get("/version")).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(
            body,
            r#"{"etcdserver":"3.6.14","etcdcluster":"3.6.0","storage":"3.6.0"}"#
        );
        assert_eq!(raw.echo(&note(1, "x")).await, note(1, "x"));
        let (head, _) = http1(*addr, &get("/nope")).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
    let raw = Raw::unix(&f.unix).await;
    assert_eq!(raw.echo(&note(2, "y")).await, note(2, "y"));
    // The endpoints answer over HTTP/2 as well when no gRPC is claimed.
    let (response, mut send) = raw.open("GET", "/version", &[]).await;
    send.send_data(Bytes::new(), true).unwrap();
    let answer = answer(response).await.unwrap();
    assert_eq!(answer.http, 200);
    assert!(answer.body.starts_with(b"{\"etcdserver\""));
}

#[tokio::test]
async fn split_ports_serve_their_kind_only() {
    let f = started();
    let [_, _, http, grpc, metrics] = f.addrs[..] else {
        panic!("five ports");
    };
    assert!(
        http1(http, &get("/health"))
            .await
            .0
            .starts_with("HTTP/1.1 200")
    );
    let raw = Raw::connect(grpc).await;
    assert_eq!(raw.echo(&note(1, "x")).await, note(1, "x"));
    let (response, mut send) = raw.open("GET", "/version", &[]).await;
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(answer(response).await.unwrap().http, 415);
    let (head, body) = http1(metrics, &get("/metrics")).await;
    assert!(head.starts_with("HTTP/1.1 200") && body.contains("process_open_fds"));
    assert!(
        http1(metrics, &get("/version"))
            .await
            .0
            .starts_with("HTTP/1.1 404")
    );
    // The first thing a gRPC port says is HTTP/2, whatever it is asked.
    let mut stream = TcpStream::connect(grpc).await.unwrap();
    stream.write_all(get("/health").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It hangs up on what it cannot understand, perhaps with a reset.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        answer.len() >= 9 && answer[3] == 4,
        "a SETTINGS frame: {answer:?}"
    );
}

#[tokio::test]
async fn garbage_and_silence_cost_only_themselves() {
    let f = start(
        Settings {
            first_bytes_timeout: Duration::from_millis(50),
            ..Settings::default()
        },
        1,
    );
    let raw = f.raw().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\0\0\0\0\0\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a settings frame at all",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET",
        b"PRI * HT",
        b"",
    ] {
        let mut stream = TcpStream::connect(f.addr()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        if garbage.len() < 24 && garbage != b"GET" {
            // Too little to be anything: the server hangs up.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        assert_eq!(raw.echo(&note(1, "x")).await, note(1, "x"));
    }
}

#[tokio::test]
async fn rapid_resets_end_at_most_their_own_connection() {
    let f = start(Settings::default(), 1);
    let good = f.raw().await;
    let bad = f.raw().await;
    let hang = format!("/{TEST}/Hang");
    for _ in 0..3000 {
        let Ok(mut requests) = bad.requests.clone().ready().await else {
            break;
        };
        let request = Request::builder()
            .method("POST")
            .uri(format!("http://localhost{hang}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let Ok((response, mut send)) = requests.send_request(request, false) else {
            break;
        };
        let _ = send.send_data(frame(0, b""), true);
        send.send_reset(h2::Reason::CANCEL);
        drop(response);
    }
    assert_eq!(good.echo(&note(1, "x")).await, note(1, "x"));
    f.running(0).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let f = start(
        Settings {
            connections_max: 3,
            ..Settings::default()
        },
        2,
    );
    let mut open = Vec::new();
    for _ in 0..3 {
        let raw = f.raw().await;
        raw.echo(&note(1, "x")).await;
        open.push(raw);
    }
    let addr = f.addr();
    let waiting =
        tokio::spawn(async move { Raw::connect(addr).await.echo(&note(2, "late")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    assert_eq!(f.server.connections().iter().sum::<usize>(), 3);
    drop(open.pop());
    assert_eq!(waiting.await.unwrap(), note(2, "late"));
}

#[tokio::test]
async fn connections_are_spread_over_the_threads() {
    let f = start(Settings::default(), 3);
    let mut open = Vec::new();
    for _ in 0..9 {
        let raw = f.raw().await;
        raw.echo(&note(1, "x")).await;
        open.push(raw);
    }
    assert_eq!(f.server.connections(), [3, 3, 3]);
}

#[tokio::test]
async fn the_stream_limit_is_announced() {
    let f = start(
        Settings {
            concurrent_streams_max: 7,
            ..Settings::default()
        },
        1,
    );
    let raw = f.raw().await;
    raw.echo(&note(1, "x")).await;
    assert_eq!(raw.requests.current_max_send_streams(), 7);
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_a_dead_one_is_dropped() {
    let f = start(
        Settings {
            keepalive_interval: Duration::from_millis(30),
            keepalive_timeout: Duration::from_millis(50),
            ..Settings::default()
        },
        1,
    );
    // Answers pings, so it stays although it says nothing else.
    let alive = f.raw().await;
    // Says hello and never reads or answers again.
    let mut dead = TcpStream::connect(f.addr()).await.unwrap();
    dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    while f.server.connections() != [2] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while f.server.connections() != [1] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(alive.echo(&note(1, "x")).await, note(1, "x"));
}

#[tokio::test]
async fn shutdown_lets_calls_finish_and_ends_endless_streams() {
    let f = started();
    let raw = f.raw().await;
    let count = format!("/{TEST}/Count");
    // A stream with an end of its own, held open by a client that has not read it yet.
    let body = framed(&note(100, vec![1; 64 << 10]));
    let (counting, mut send) = raw.open("POST", &count, GRPC).await;
    send.send_data(body, true).unwrap();
    let counting = counting.await.unwrap();
    // A stream without one.
    let (chatting, mut chat) = raw.open("POST", &format!("/{TEST}/Chat"), GRPC).await;
    chat.send_data(framed(&note(1, "a")), false).unwrap();
    let chatting = chatting.await.unwrap();

    let Fixture {
        server,
        addrs,
        _threads,
        ..
    } = f;
    let shutdown = tokio::spawn(server.shutdown(Duration::from_secs(60)));
    let (_, mut body) = chatting.into_parts();
    while let Some(piece) = next_piece(&mut body).await {
        piece.unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(Answer::text(&trailers, "grpc-status"), Some("14"));
    assert_eq!(
        Answer::text(&trailers, "grpc-message"),
        Some("etcdserver: server stopped")
    );

    assert!(!shutdown.is_finished(), "a call is still under way");
    let (_, mut body) = counting.into_parts();
    let mut bytes = 0;
    while let Some(piece) = next_piece(&mut body).await {
        bytes += piece.unwrap().len();
    }
    assert!(bytes > 100 * (64 << 10));
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(Answer::text(&trailers, "grpc-status"), Some("0"));
    assert!(shutdown.await.unwrap(), "nothing had to be cut");
    TcpStream::connect(addrs[0]).await.unwrap_err();
    raw.requests.clone().ready().await.unwrap_err();
}

#[tokio::test]
async fn shutdown_cuts_what_does_not_end() {
    let f = started();
    let raw = f.raw().await;
    let (response, mut send) = raw.open("POST", &format!("/{TEST}/Hang"), GRPC).await;
    send.send_data(frame(0, b""), true).unwrap();
    f.running(1).await;
    // A connection that has said nothing, and an idle HTTP/1.1 one.
    let _silent = TcpStream::connect(f.addr()).await.unwrap();
    let mut idle = TcpStream::connect(f.addr()).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    let Fixture {
        server,
        seen,
        _threads,
        ..
    } = f;
    assert!(!server.shutdown(Duration::from_millis(50)).await);
    response.await.unwrap_err();
    while seen.running.load(Ordering::SeqCst) != 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_dropped_server_frees_its_ports_and_its_socket_file() {
    let f = started();
    let raw = f.raw().await;
    raw.echo(&note(1, "x")).await;
    let Fixture {
        server,
        addrs,
        unix,
        _threads,
        ..
    } = f;
    drop(server);
    while TcpStream::connect(addrs[0]).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!unix.exists());
    let url = format!("http://{}", addrs[0]);
    bind(&Endpoint::parse(&url).unwrap(), Role::All).unwrap();
}

/// The frames that a client of raw bytes gets until the server hangs up.
async fn frames_of(f: &Fixture, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut stream = TcpStream::connect(f.addr()).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // The server may have enough before it has all.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let mut frames = Vec::new();
    let mut rest = &all[..];
    while let [a, b, c, kind, _, _, _, _, _, tail @ ..] = rest {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        frames.push((*kind, tail[..len].to_vec()));
        rest = &tail[len..];
    }
    assert!(rest.is_empty());
    frames
}

#[tokio::test]
async fn the_client_reads_why_its_connection_ended() {
    let f = start(Settings::default(), 1);
    let frame = |kind: u8, stream: u8, body: &[u8]| {
        let len = (body.len() as u32).to_be_bytes();
        let mut frame = vec![len[1], len[2], len[3], kind, 4, 0, 0, 0, stream];
        frame.extend_from_slice(body);
        frame
    };
    let (headers, ping) = (1, 6);
    let pings = frame(ping, 0, &[7; 8]).repeat(100_000);
    // A header block that cannot be decoded, and more behind it than a socket holds.
    let mut undecodable = frame(headers, 1, &[0xbe]);
    undecodable.extend(frame(9, 1, &[0; 16 << 10]).repeat(500));
    for (bytes, reason, text) in [
        (pings, 11, "too_many_pings"),
        (undecodable, 9, "a header block cannot be decoded"),
    ] {
        let frames = frames_of(&f, &bytes).await;
        let (kind, goaway) = frames.last().unwrap();
        assert_eq!(*kind, 7, "{frames:?}");
        assert_eq!(goaway[4..8], [0, 0, 0, reason]);
        assert_eq!(&goaway[8..], text.as_bytes());
    }
    assert_eq!(f.raw().await.echo(&note(1, "x")).await, note(1, "x"));
}

#[tokio::test]
async fn answers_forgive_pings() {
    let f = start(Settings::default(), 1);
    let stream = TcpStream::connect(f.addr()).await.unwrap();
    let (requests, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let raw = Raw {
        requests: requests.ready().await.unwrap(),
    };
    for i in 0..50 {
        assert_eq!(raw.echo(&note(i, "x")).await, note(i, "x"));
        pings.ping(h2::Ping::opaque()).await.unwrap();
    }
}
