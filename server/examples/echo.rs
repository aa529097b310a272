//! What the network layer costs by itself: a call that is answered at once, over one network thread.
//!
//! `cargo run --release --example echo -- [seconds]` prints, for several numbers of connections and calls
//! in flight on each, the CPU time of the network thread per call, once for HTTP/2 alone with an
//! answer made of constants (`bare`) and once for the whole gRPC layer (`grpc`); before that, the memory of
//! an idle connection. The client runs in
//! the same process on another thread, so only the time of the thread `net-0` counts.

use ::http::request::Parts;
use ::http::{Request, Response};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use quorate::api::RequestCtx;
use quorate::config::urls::Endpoint;
use quorate::grpc::{self, Learner, Router};
use quorate::metrics::{Metrics, Options};
use quorate::net::h2::Head;
use quorate::net::{
    Answer, App, Body, Connection, Exchange, Role, Server, Settings, Threads, bind,
};
use quorate::status::Status;
use quorate_proto::etcdserverpb as pb;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Reads the request, looks at nothing and answers with constants.
struct Bare(Bytes);

struct BareCall {
    body: Bytes,
    ended: bool,
}

impl Exchange for BareCall {
    fn data(&mut self, _: &[u8], end: bool) {
        self.ended |= end;
    }

    fn poll(&mut self, _: &mut Context<'_>, answer: &mut Answer<'_>) -> Poll<()> {
        if !self.ended {
            return Poll::Pending;
        }
        let headers = b"\x88\x0f\x10\x10application/grpc";
        let trailers = b"\0\x0bgrpc-status\x010";
        assert!(answer.whole(headers, &[&self.body], trailers), "is small");
        Poll::Ready(())
    }
}

impl App for Bare {
    type Route = ();
    type Exchange = BareCall;

    async fn http(self: Arc<Self>, _: Parts, _: Role) -> Response<Body> {
        Response::new(Body::empty())
    }

    fn route(&self, _: &Head<'_>, _: Role) {}

    fn begin(self: &Arc<Self>, (): &(), _: &Arc<Connection>) -> BareCall {
        BareCall {
            body: self.0.clone(),
            ended: false,
        }
    }
}

/// One unary method behind the whole layer.
struct Echo(Router);

impl App for Echo {
    type Route = grpc::Route;
    type Exchange = grpc::Exchange;

    async fn http(self: Arc<Self>, _: Parts, _: Role) -> Response<Body> {
        Response::new(Body::empty())
    }

    fn route(&self, head: &Head<'_>, _: Role) -> grpc::Route {
        grpc::Route::new(&self.0, head)
    }

    fn begin(
        self: &Arc<Self>,
        route: &grpc::Route,
        connection: &Arc<Connection>,
    ) -> grpc::Exchange {
        route.begin(connection)
    }
}

fn echo() -> Echo {
    let metrics = Arc::new(Metrics::new(&Options::default()));
    let mut router = Router::new((), metrics, 2 << 20);
    router.unary(
        "etcdserverpb.KV",
        "Put",
        Learner::Serves,
        |_: RequestCtx, r: pb::PutRequest| async move {
            Ok::<_, Status>(pb::PutResponse {
                header: Some(pb::ResponseHeader {
                    cluster_id: 1 << 60,
                    member_id: 1 << 61,
                    revision: r.value.len() as i64,
                    raft_term: 2,
                }),
                prev_kv: None,
            })
        },
    );
    Echo(router)
}

fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("memory suffices");
    bytes.freeze()
}

/// User and system time of the network thread.
fn network_time() -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("/proc is mounted") {
        let path = task.expect("a task").path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("net-") {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            let on_cpu = stat
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<u64>().ok());
            nanos += on_cpu.unwrap_or(0);
        }
    }
    Duration::from_nanos(nanos)
}

async fn connect(addr: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(addr)
        .await
        .expect("connects");
    stream.set_nodelay(true).expect("is a TCP socket");
    let (requests, connection) = h2::client::Builder::new()
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .expect("speaks HTTP/2");
    tokio::spawn(connection);
    requests
}

async fn keep_calling(
    requests: SendRequest<Bytes>,
    body: Bytes,
    until: Instant,
    done: Arc<AtomicU64>,
) {
    while Instant::now() < until {
        let mut requests = requests.clone().ready().await.expect("is open");
        let request = Request::post("http://localhost/etcdserverpb.KV/Put")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("client-api-version", "3.6.14")
            .body(())
            .expect("is well formed");
        let (response, mut send) = requests.send_request(request, false).expect("is open");
        send.send_data(body.clone(), true).expect("has a window");
        let mut response = response.await.expect("answers").into_body();
        while let Some(piece) = response.data().await {
            let len = piece.expect("arrives").len();
            response
                .flow_control()
                .release_capacity(len)
                .expect("was taken");
        }
        response.trailers().await.expect("arrive");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn measure<A: App>(threads: &Threads, name: &str, app: A, span: Duration) {
    let endpoint = Endpoint::parse("http://127.0.0.1:0").expect("a URL");
    let bound = bind(&endpoint, Role::All).expect("a free port");
    let addr = bound.tcp_addr().expect("TCP");
    let server = Server::start(threads, vec![bound], Arc::new(app), Settings::default());
    let _server = server.expect("serves");
    let body = framed(&pb::PutRequest {
        key: "key of some length".into(),
        value: vec![7; 256].into(),
        ..Default::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for (connections, calls) in [(1, 1), (10, 1), (10, 10), (10, 100), (1000, 1)] {
        let done = Arc::new(AtomicU64::new(0));
        let (cpu, wall) = runtime.block_on(async {
            let mut open = Vec::new();
            for _ in 0..connections {
                open.push(connect(addr).await);
            }
            let (cpu, begin) = (network_time(), Instant::now());
            let mut tasks = Vec::new();
            for requests in open {
                for _ in 0..calls {
                    let (body, done) = (body.clone(), done.clone());
                    let task = keep_calling(requests.clone(), body, begin + span, done);
                    tasks.push(tokio::spawn(task));
                }
            }
            for task in tasks {
                task.await.expect("calls end");
            }
            (network_time() - cpu, begin.elapsed())
        });
        let count = done.load(Ordering::Relaxed) as f64;
        println!(
            "{name} {connections}x{calls}: {:.2} us CPU per call, {:.0} calls/s",
            cpu.as_secs_f64() * 1e6 / count,
            count / wall.as_secs_f64()
        );
    }
}

/// What a connection holds that has said hello and nothing else. The client's side is a bare socket, so
/// nearly all of it is the server's.
fn idle(threads: &Threads, connections: usize) {
    use std::io::Write;
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let endpoint = Endpoint::parse("http://127.0.0.1:0").expect("a URL");
    let bound = bind(&endpoint, Role::All).expect("a free port");
    let addr = bound.tcp_addr().expect("TCP");
    let server = Server::start(threads, vec![bound], Arc::new(echo()), Settings::default());
    let server = server.expect("serves");
    let before = resident_bytes();
    let open: Vec<_> = (0..connections)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(addr).expect("connects");
            stream.write_all(HELLO).expect("sends");
            stream
        })
        .collect();
    while server.connections().iter().sum::<usize>() < open.len() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    println!(
        "idle: {} bytes for each of {connections} connections",
        resident_bytes().saturating_sub(before) / connections
    );
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .map_or(3.0, |s| s.parse().expect("seconds"));
    let span = Duration::from_secs_f64(seconds);
    let threads = Threads::start(1).expect("threads start");
    idle(&threads, 5000);
    measure(
        &threads,
        "bare",
        Bare(framed(&pb::PutResponse::default())),
        span,
    );
    measure(&threads, "grpc", echo(), span);
}
