//! One connection, from its first bytes to its end.

use super::http2::Driver;
use super::server::{Phase, Settings};
use super::stream::{Detached, Protocol, Rewound, detect};
use super::{App, Connection, Role};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the peer of a connection that we end may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
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
    let (protocol, io) = {
        let opening = open(stream, connection.role, settings.first_bytes_timeout);
        tokio::select! {
            first = opening => first?,
            _ = phase.wait_for(|p| *p != Phase::Serving) => return Ok(()),
        }
    };
    // Boxed: a task is as large as the largest of what it may become.
    match protocol {
        Protocol::Http1 => Box::pin(http1(io, app, connection, phase, settings)).await,
        Protocol::Http2 => {
            let driver = Driver::new(io, app, connection, &settings);
            drop(settings);
            http2(driver, phase).await
        }
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

async fn http1<A: App>(
    io: Rewound,
    app: Arc<A>,
    connection: Arc<Connection>,
    mut phase: watch::Receiver<Phase>,
    settings: Arc<Settings>,
) -> io::Result<()> {
    let service = service_fn(move |request: ::http::Request<Incoming>| {
        let (head, _body) = request.into_parts();
        let response = app.clone().http(head, connection.role);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    let mut driver = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        biased;
        ended = driver.as_mut() => Some(ended),
        _ = phase.wait_for(|p| *p != Phase::Serving) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            driver.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = driver.as_mut() => ended,
                _ = phase.wait_for(|p| *p == Phase::Cut) => return Ok(()),
            }
        }
    };
    ended.map_err(io::Error::other)
}

async fn http2<A: App>(mut driver: Driver<A>, mut phase: watch::Receiver<Phase>) -> io::Result<()> {
    let ended = tokio::select! {
        biased;
        ended = driver.serve() => Some(ended),
        _ = phase.wait_for(|p| *p != Phase::Serving) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            driver.drain();
            tokio::select! {
                biased;
                ended = driver.serve() => ended,
                _ = phase.wait_for(|p| *p == Phase::Cut) => return Ok(()),
            }
        }
    };
    tokio::select! {
        biased;
        () = driver.part() => {}
        _ = phase.wait_for(|p| *p == Phase::Cut) => {}
        () = tokio::time::sleep(LAST_WORDS) => {}
    }
    ended
}
