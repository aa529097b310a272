//! A whole server in this process, asked by clients of other makes.

mod connections;
mod member;
mod rules;
mod streams;

use crate::api::RequestCtx;
use crate::api::stream::{Requests, Responses};
use crate::config::urls::Endpoint;
use crate::front::Front;
use crate::grpc::{Learner, Router};
use crate::http::{Http, Probe, Settings as HttpSettings};
use crate::metrics::{Metrics, Options};
use crate::net::{Role, Server, Settings, Threads, bind};
use crate::status::{Code, Status};
use ::http::{HeaderMap, Request};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpStream, UnixStream};

const TEST: &str = "test.Test";

/// A test's message: any with a number and bytes.
type Note = pb::SnapshotResponse;

fn note(number: u64, blob: impl Into<Bytes>) -> Note {
    Note {
        remaining_bytes: number,
        blob: blob.into(),
        ..Default::default()
    }
}

/// What handlers of the test service did.
#[derive(Default)]
struct Seen {
    /// Handlers running.
    running: AtomicUsize,
    /// Handlers begun.
    begun: AtomicUsize,
    /// Messages handed to streams.
    queued: AtomicUsize,
}

struct Running(Arc<Seen>);

impl Running {
    fn begin(seen: &Arc<Seen>) -> Running {
        seen.running.fetch_add(1, Ordering::SeqCst);
        seen.begun.fetch_add(1, Ordering::SeqCst);
        Running(seen.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A service with one method for each thing a call may do.
fn test_router(seen: &Arc<Seen>, metrics: &Arc<Metrics>) -> Router {
    let mut r = Router::new((), metrics.clone(), 2 << 20);
    let s = seen.clone();
    r.unary(
        TEST,
        "Echo",
        Learner::Serves,
        move |_: RequestCtx, n: Note| {
            let running = Running::begin(&s);
            async move {
                let _running = running;
                Ok::<Note, Status>(n)
            }
        },
    );
    let s = seen.clone();
    r.unary(
        TEST,
        "Hang",
        Learner::Serves,
        move |_: RequestCtx, _: Note| {
            let running = Running::begin(&s);
            async move {
                let _running = running;
                std::future::pending::<Result<Note, Status>>().await
            }
        },
    );
    r.unary(
        TEST,
        "Panic",
        Learner::Serves,
        |_: RequestCtx, n: Note| async move {
            if n.remaining_bytes > 0 {
                tokio::task::yield_now().await;
            }
            match n.blob.is_empty() {
                true => panic!("a handler's"),
                false => Ok::<Note, Status>(n),
            }
        },
    );
    r.unary(
        TEST,
        "Fail",
        Learner::Serves,
        |_: RequestCtx, n: Note| async move {
            let text = String::from_utf8_lossy(&n.blob).into_owned();
            Err::<Note, Status>(Status::new(Code::ALL[n.remaining_bytes as usize], text))
        },
    );
    r.unary(
        TEST,
        "Blow",
        Learner::Serves,
        |_: RequestCtx, n: Note| async move {
            Ok::<Note, Status>(note(0, vec![7; n.remaining_bytes as usize]))
        },
    );
    let s = seen.clone();
    r.server_stream(
        TEST,
        "Count",
        true,
        false,
        move |_, n: Note, mut responses: crate::grpc::Responder<Note>| {
            let (s, running) = (s.clone(), Running::begin(&s));
            async move {
                let _running = running;
                for i in 0..n.remaining_bytes {
                    s.queued.fetch_add(1, Ordering::SeqCst);
                    if responses.send(note(i, n.blob.clone())).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(())
            }
        },
    );
    let s = seen.clone();
    r.bidi_stream(
        TEST,
        "Chat",
        true,
        move |_,
              mut requests: crate::grpc::Inbound<Note>,
              mut responses: crate::grpc::Responder<Note>| {
            let running = Running::begin(&s);
            async move {
                let _running = running;
                while let Some(request) = requests.next().await {
                    let request = request?;
                    if request.blob == "end" {
                        return Err(Status::fixed(Code::Aborted, "as told"));
                    }
                    if responses.send(request).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(())
            }
        },
    );
    r
}

/// A healthy member for the HTTP endpoints.
struct Well;

impl Probe for Well {
    fn alarms(&self) -> Result<Vec<quorate_proto::etcdserverpb::AlarmType>, Status> {
        Ok(Vec::new())
    }
    fn has_leader(&self) -> bool {
        true
    }
    fn is_learner(&self) -> bool {
        false
    }
    async fn read(&self, _: bool) -> Result<(), Status> {
        Ok(())
    }
    fn cluster_version(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed("3.6.0"))
    }
    fn raft_status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

struct Fixture {
    server: Server,
    addrs: Vec<SocketAddr>,
    seen: Arc<Seen>,
    metrics: Arc<Metrics>,
    unix: PathBuf,
    /// Ends after the server.
    _threads: Threads,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    async fn raw(&self) -> Raw {
        Raw::connect(self.addr()).await
    }

    /// Waits until as many handlers run.
    async fn running(&self, count: usize) {
        while self.seen.running.load(Ordering::SeqCst) != count {
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

/// The test service on two TCP ports, an HTTP-only one, a gRPC-only one, a metrics one and a Unix socket.
fn start(settings: Settings, threads: usize) -> Fixture {
    let seen = Arc::new(Seen::default());
    let metrics = Arc::new(Metrics::new(&Options { extensive: true }));
    let router = test_router(&seen, &metrics);
    let http = Http::new(Well, metrics.clone(), HttpSettings::default());
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("client");
    let mut listeners = Vec::new();
    for role in [Role::All, Role::All, Role::Http, Role::Grpc, Role::Metrics] {
        listeners.push(bind(&Endpoint::parse("http://127.0.0.1:0").unwrap(), role).unwrap());
    }
    let addrs = listeners.iter().map(|l| l.tcp_addr().unwrap()).collect();
    let url = format!("unix://{}", unix.display());
    listeners.push(bind(&Endpoint::parse(&url).unwrap(), Role::All).unwrap());
    let threads = Threads::start(threads).unwrap();
    let front = Arc::new(Front::with(router, http));
    let server = Server::start(&threads, listeners, front, settings).unwrap();
    Fixture {
        server,
        addrs,
        seen,
        metrics,
        unix,
        _threads: threads,
        _dir: dir,
    }
}

fn started() -> Fixture {
    start(Settings::default(), 2)
}

/// A client that can break every rule of gRPC, but none of HTTP/2.
#[derive(Clone)]
struct Raw {
    requests: SendRequest<Bytes>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    http: u16,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn text<'a>(map: &'a HeaderMap, name: &str) -> Option<&'a str> {
        map.get(name).map(|v| v.to_str().unwrap())
    }

    /// The gRPC status, from the trailers or from headers alone, and its message, decoded.
    fn status(&self) -> (u16, String) {
        let map = match &self.trailers {
            Some(trailers) => trailers,
            None => &self.headers,
        };
        let code = Answer::text(map, "grpc-status").expect("has a status");
        let message = Answer::text(map, "grpc-message").unwrap_or("");
        (code.parse().unwrap(), percent_decode(message))
    }

    /// The messages in the body.
    fn messages<M: Message + Default>(&self) -> Vec<M> {
        let mut messages = Vec::new();
        let mut rest = &self.body[..];
        while let Some((prefix, after)) = rest.split_at_checked(5) {
            assert_eq!(prefix[0], 0);
            let len = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            messages.push(M::decode(&after[..len]).unwrap());
            rest = &after[len..];
        }
        assert!(rest.is_empty());
        messages
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn framed(message: &impl Message) -> Bytes {
    frame(0, &message.encode_to_vec())
}

fn frame(flag: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

const GRPC: &[(&str, &[u8])] = &[("content-type", b"application/grpc"), ("te", b"trailers")];

impl Raw {
    /// With a window of the connection wide enough that no stream stops the others.
    async fn connect(addr: SocketAddr) -> Raw {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(16 << 20);
        Raw::over(stream, builder).await
    }

    async fn unix(path: &std::path::Path) -> Raw {
        let stream = UnixStream::connect(path).await.unwrap();
        Raw::over(stream, h2::client::Builder::new()).await
    }

    async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        builder: h2::client::Builder,
    ) -> Raw {
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(async move {
            // Ends with the server; tests see it in their calls.
            let _ = connection.await;
        });
        Raw {
            requests: requests.ready().await.unwrap(),
        }
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut requests = self.requests.clone().ready().await.unwrap();
        let request = request.body(()).unwrap();
        requests.send_request(request, false).unwrap()
    }

    /// One request with this body.
    async fn call(
        &self,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<Bytes>,
    ) -> Result<Answer, h2::Error> {
        let (response, mut send) = self.open("POST", path, headers).await;
        // A server that refuses early stops reading; its answer counts.
        let _ = send.send_data(body.into(), true);
        answer(response).await
    }

    async fn echo(&self, n: &Note) -> Note {
        let path = format!("/{TEST}/Echo");
        let answer = self.call(&path, GRPC, framed(n)).await.unwrap();
        assert_eq!(answer.status(), (0, String::new()));
        answer.messages().remove(0)
    }
}

async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(piece) = next_piece(&mut body).await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(Answer {
        http: head.status.as_u16(),
        headers: head.headers,
        body: bytes.freeze(),
        trailers: body.trailers().await?,
    })
}

async fn next_piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = body.data().await?;
    if let Ok(piece) = &piece {
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    Some(piece)
}

/// An HTTP/1.1 exchange on a connection of its own: status line and headers, then the body.
async fn http1(addr: SocketAddr, request: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    match all.split_once("\r\n\r\n") {
        Some((head, body)) => (head.into(), body.into()),
        None => (all, String::new()),
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}
