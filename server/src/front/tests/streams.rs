//! Streaming calls.

use super::*;
use std::time::Duration;

struct Chat {
    send: SendStream<Bytes>,
    body: RecvStream,
    held: BytesMut,
}

impl Chat {
    /// Opens a stream with a first message; headers come with the first answer.
    async fn open(raw: &Raw, first: &Note) -> Chat {
        let (response, mut send) = raw.open("POST", &format!("/{TEST}/Chat"), GRPC).await;
        send.send_data(framed(first), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        Chat {
            send,
            body: response.into_body(),
            held: BytesMut::new(),
        }
    }

    async fn next(&mut self) -> Option<Note> {
        loop {
            if self.held.len() >= 5 {
                let len = u32::from_be_bytes(self.held[1..5].try_into().unwrap()) as usize;
                if self.held.len() >= 5 + len {
                    let message = self.held.split_to(5 + len).freeze();
                    return Some(Note::decode(message.slice(5..)).unwrap());
                }
            }
            let piece = next_piece(&mut self.body).await?.unwrap();
            self.held.extend_from_slice(&piece);
        }
    }

    async fn status(&mut self) -> (u16, String) {
        assert_eq!(self.next().await, None);
        let trailers = self.body.trailers().await.unwrap().unwrap();
        let text = |name| Answer::text(&trailers, name).unwrap_or("").to_owned();
        (
            text("grpc-status").parse().unwrap(),
            percent_decode(&text("grpc-message")),
        )
    }
}

#[tokio::test]
async fn messages_go_both_ways_until_the_client_closes() {
    let f = started();
    let raw = f.raw().await;
    let mut chat = Chat::open(&raw, &note(0, "a")).await;
    assert_eq!(chat.next().await, Some(note(0, "a")));
    for i in 1..200 {
        chat.send.send_data(framed(&note(i, "b")), false).unwrap();
        assert_eq!(chat.next().await, Some(note(i, "b")));
    }
    // Several messages in one frame.
    let both = [framed(&note(1, "x")), framed(&note(2, "y"))].concat();
    chat.send.send_data(both.into(), false).unwrap();
    assert_eq!(chat.next().await, Some(note(1, "x")));
    assert_eq!(chat.next().await, Some(note(2, "y")));
    chat.send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(chat.status().await, (0, String::new()));
    f.running(0).await;
}

#[tokio::test]
async fn a_handler_s_status_comes_after_its_messages() {
    let f = started();
    let raw = f.raw().await;
    let mut chat = Chat::open(&raw, &note(0, "a")).await;
    chat.send.send_data(framed(&note(1, "b")), false).unwrap();
    chat.send.send_data(framed(&note(2, "end")), false).unwrap();
    assert_eq!(chat.next().await, Some(note(0, "a")));
    assert_eq!(chat.next().await, Some(note(1, "b")));
    assert_eq!(chat.status().await, (10, "as told".into()));
}

#[tokio::test]
async fn an_end_without_a_message_is_headers_alone() {
    let f = started();
    let raw = f.raw().await;
    let path = format!("/{TEST}/Chat");
    let answer = raw
        .call(&path, GRPC, framed(&note(0, "end")))
        .await
        .unwrap();
    assert_eq!(answer.status(), (10, "as told".into()));
    assert!(answer.trailers.is_none());
    let answer = raw.call(&path, GRPC, Bytes::new()).await.unwrap();
    assert_eq!(answer.status(), (0, String::new()));
}

#[tokio::test]
async fn a_bad_message_ends_the_stream_after_what_went_before() {
    let f = started();
    let raw = f.raw().await;
    for (bad, status, text) in [
        (
            frame(0, b"\x0a\xff"),
            13,
            "grpc: failed to unmarshal the received message: ",
        ),
        (
            frame(0, &vec![0; (2 << 20) + 1]),
            8,
            "grpc: received message larger than max",
        ),
        (
            frame(1, b""),
            13,
            "grpc: compressed flag set with identity or empty encoding",
        ),
    ] {
        let mut chat = Chat::open(&raw, &note(0, "a")).await;
        chat.send.send_data(bad, false).unwrap();
        assert_eq!(chat.next().await, Some(note(0, "a")));
        let (code, message) = chat.status().await;
        assert_eq!(code, status);
        assert!(message.starts_with(text), "{message}");
    }
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let f = started();
    let raw = f.raw().await;
    let mut chats = Vec::new();
    for i in 0..300 {
        chats.push(Chat::open(&raw, &note(i, "open")).await);
    }
    f.running(300).await;
    for (i, chat) in chats.iter_mut().enumerate() {
        assert_eq!(chat.next().await, Some(note(i as u64, "open")));
    }
    drop(chats);
    f.running(0).await;
}

#[tokio::test]
async fn a_server_stream_sends_all_and_then_its_status() {
    let f = started();
    let raw = f.raw().await;
    let body = framed(&note(1000, vec![1; 500]));
    let answer = raw
        .call(&format!("/{TEST}/Count"), GRPC, body)
        .await
        .unwrap();
    let numbers = answer
        .messages::<Note>()
        .into_iter()
        .map(|n| n.remaining_bytes);
    assert!(numbers.eq(0..1000));
    assert_eq!(answer.status(), (0, String::new()));
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_own_stream_only() {
    let f = started();
    let raw = f.raw().await;
    // 64 KiB a message, and nobody takes them beyond the client's window.
    let body = framed(&note(100_000, vec![1; 64 << 10]));
    let (response, mut send) = raw.open("POST", &format!("/{TEST}/Count"), GRPC).await;
    send.send_data(body, true).unwrap();
    let slow = response.await.unwrap();
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let queued = f.seen.queued.load(Ordering::SeqCst);
        if queued == before && queued > 0 {
            break;
        }
        before = queued;
    }
    // The queue's megabyte, the client's window, and a message on either side of them.
    assert!(
        before <= 40,
        "{before} messages were made for a client that reads none"
    );
    let other = f.raw().await;
    assert_eq!(other.echo(&note(1, "x")).await, note(1, "x"));
    drop((slow, send));
    f.running(0).await;
}

#[tokio::test]
async fn a_connection_that_reads_no_answer_begins_no_further_call() {
    let f = started();
    let stream = TcpStream::connect(f.addr()).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let greedy = Raw::over(stream, builder).await;
    let mut responses = Vec::new();
    let path = format!("/{TEST}/Blow");
    for _ in 0..40 {
        let (response, mut send) = greedy.open("POST", &path, GRPC).await;
        send.send_data(framed(&note(1 << 20, "")), true).unwrap();
        responses.push(response);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let sent = || f.metrics.network.client_sent_bytes.get() >> 20;
    while sent() < 16 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(sent() <= 17, "{} MiB are held for one connection", sent());
    // Others do not notice.
    let other = f.raw().await;
    assert_eq!(other.echo(&note(1, "x")).await, note(1, "x"));
    // What is given up makes room for what waited.
    responses.drain(..10);
    while sent() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
