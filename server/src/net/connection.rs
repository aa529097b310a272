//! One connection, from its first bytes to its end.

use super::coalesce::{Flusher, gather};
use super::server::{Phase, Settings};
use super::stream::{Detached, Protocol, Rewound, detect};
use super::{App, Connection, Role};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

/// Streams a connection may have open, whatever the flag says: each costs some kilobytes.
const STREAMS_MAX: u32 = 32_768;
/// Streams a client may open and reset faster than they are looked at; more is an attack.
const PENDING_RESETS_MAX: usize = 1000;
/// Frames on streams that are closed already, over the life of a connection; more is an attack. Clients
/// send some whenever a call ends before they expect it.
const STRAY_FRAMES_MAX: usize = 65_536;
/// How long the peer of a connection that has ended may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of one stream's request that may be on their way.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of request headers.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Bytes of a response that are handed to the codec of HTTP/2 ahead of the client's window.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// Buffer of an HTTP/1.1 connection; also bounds its headers.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;

/// Serves a connection until it ends or is cut.
pub(super) async fn serve<A: App>(
    stream: Detached,
    app: Arc<A>,
    connection: Arc<Connection>,
    mut phase: watch::Receiver<Phase>,
    settings: Arc<Settings>,
) -> io::Result<()> {
    let first = {
        let mut phase = phase.clone();
        let opening = open(stream, connection.role, settings.first_bytes_timeout);
        tokio::select! {
            first = opening => first?,
            _ = phase.wait_for(|p| *p != Phase::Serving) => return Ok(()),
        }
    };
    let service = service_fn(move |request: ::http::Request<Incoming>| {
        let response = app.clone().call(request, connection.clone());
        async move { Ok::<_, Infallible>(response.await) }
    });
    let (protocol, io) = first;
    let (io, flusher) = gather(io);
    let io = TokioIo::new(io);
    macro_rules! drive {
        ($driver:expr) => {{
            let mut driver = std::pin::pin!($driver);
            let ended = tokio::select! {
                biased;
                ended = poll_fn(|cx| step(driver.as_mut(), &flusher, cx)) => Some(ended),
                _ = phase.wait_for(|p| *p != Phase::Serving) => None,
            };
            match ended {
                Some(ended) => ended,
                None => {
                    driver.as_mut().graceful_shutdown();
                    tokio::select! {
                        biased;
                        ended = poll_fn(|cx| step(driver.as_mut(), &flusher, cx)) => ended,
                        _ = phase.wait_for(|p| *p == Phase::Cut) => return Ok(()),
                    }
                }
            }
        }};
    }
    let ended = match protocol {
        Protocol::Http1 => drive!(http1(&settings).serve_connection(io, service)),
        Protocol::Http2 => drive!(http2(&settings).serve_connection(io, service)),
    };
    tokio::select! {
        // The last words, such as why the connection was ended.
        flushed = poll_fn(|cx| flusher.poll_flush(cx)) => ended.and(flushed),
        _ = phase.wait_for(|p| *p == Phase::Cut) => ended,
        () = tokio::time::sleep(LAST_WORDS) => ended,
    }
}

/// Lets the protocol do what it can, then writes what came of it.
fn step<F: Future<Output = hyper::Result<()>>>(
    driver: Pin<&mut F>,
    flusher: &Flusher,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let ended = driver.poll(cx).map_err(io::Error::other);
    match flusher.poll_flush(cx) {
        Poll::Ready(Err(error)) if ended.is_pending() => Poll::Ready(Err(error)),
        _ => ended,
    }
}

async fn open(
    stream: Detached,
    role: Role,
    first_bytes_timeout: Duration,
) -> io::Result<(Protocol, Rewound)> {
    let io = stream.attach()?;
    match role {
        Role::Grpc => Ok((Protocol::Http2, Rewound::fresh(io))),
        Role::Http | Role::Metrics => Ok((Protocol::Http1, Rewound::fresh(io))),
        Role::All => tokio::time::timeout(first_bytes_timeout, detect(io)).await?,
    }
}

fn http1(settings: &Settings) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
}

fn http2(settings: &Settings) -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(settings.concurrent_streams_max.min(STREAMS_MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(STRAY_FRAMES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    if !settings.keepalive_interval.is_zero() {
        builder
            .keep_alive_interval(settings.keepalive_interval)
            .keep_alive_timeout(settings.keepalive_timeout);
    }
    builder
}
