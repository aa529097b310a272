//! Accepting connections, spreading them over the threads, and stopping.

use super::connection::serve;
use super::listen::{Bound, Socket};
use super::stream::Detached;
use super::{App, Connection, Role, Threads};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

/// File descriptors that are left for files, peers and everything else.
const RESERVED_FDS: usize = 150;
/// Wait after a failed accept: the usual cause, too many open files, needs time to pass.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections open at once.
    pub connections_max: usize,
    /// Calls in flight on one HTTP/2 connection (`--max-concurrent-streams`).
    pub concurrent_streams_max: u32,
    /// What clients have to keep between two pings (`--grpc-keepalive-min-time`).
    pub keepalive_min_time: Duration,
    /// Silence after which a client is asked whether it lives (`--grpc-keepalive-interval`); zero = never.
    pub keepalive_interval: Duration,
    /// How long it may take to answer (`--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// How long a new connection may stay silent.
    pub first_bytes_timeout: Duration,
    /// How long an HTTP/1.1 client may take to send the headers of its next request.
    pub header_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            connections_max: fd_limit().saturating_sub(RESERVED_FDS).max(64),
            concurrent_streams_max: u32::MAX,
            keepalive_min_time: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2 * 3600),
            keepalive_timeout: Duration::from_secs(20),
            first_bytes_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(300),
        }
    }
}

/// The soft limit of open files of this process.
pub fn fd_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a whole `rlimit` that lives through the call and may be written.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        _ => 1024,
    }
}

/// Raises the soft limit of open files to the hard one: every connection is a file. Returns the limit in
/// force afterwards.
pub fn raise_fd_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a whole `rlimit` that lives through both calls and may be read and written.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            // Where this is not allowed the limit stays as it was.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
    fd_limit()
}

/// Counters of a server.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that ended with an error of the transport or the protocol.
    pub failed: AtomicU64,
}

/// How far the server is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    Draining,
    Cut,
}

struct Shared<A> {
    app: Arc<A>,
    settings: Arc<Settings>,
    threads: Threads,
    /// Connections per thread.
    load: Arc<[AtomicUsize]>,
    slots: Arc<Semaphore>,
    stats: Arc<Stats>,
    phase: watch::Receiver<Phase>,
    draining: watch::Receiver<bool>,
    /// Every connection holds a clone; when all are gone the receiver of `shutdown` ends.
    alive: watch::Sender<()>,
}

/// A serving server. Dropping it stops accepting and cuts every connection.
pub struct Server {
    phase: watch::Sender<Phase>,
    draining: watch::Sender<bool>,
    acceptors: Vec<AbortHandle>,
    alive: watch::Receiver<()>,
    stats: Arc<Stats>,
    load: Arc<[AtomicUsize]>,
    unix_paths: Vec<PathBuf>,
}

impl Server {
    /// Begins to accept on the listeners. Each serves `app`, which tells them apart by their role.
    pub fn start<A: App>(
        threads: &Threads,
        listeners: Vec<Bound>,
        app: Arc<A>,
        settings: Settings,
    ) -> io::Result<Server> {
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let (draining, draining_seen) = watch::channel(false);
        let (alive_sender, alive) = watch::channel(());
        let stats = Arc::new(Stats::default());
        let load: Arc<[AtomicUsize]> = (0..threads.count()).map(|_| AtomicUsize::new(0)).collect();
        let shared = Arc::new(Shared {
            app,
            slots: Arc::new(Semaphore::new(
                settings.connections_max.min(Semaphore::MAX_PERMITS),
            )),
            settings: Arc::new(settings),
            threads: threads.clone(),
            load: load.clone(),
            stats: stats.clone(),
            phase: phase_seen,
            draining: draining_seen,
            alive: alive_sender,
        });
        let mut server = Server {
            phase,
            draining,
            acceptors: Vec::new(),
            alive,
            stats,
            load,
            unix_paths: Vec::new(),
        };
        for bound in listeners {
            if let Socket::Unix(_, path) = &bound.socket {
                server.unix_paths.push(path.clone());
            }
            server.accept_on(&shared, bound)?;
        }
        Ok(server)
    }

    fn accept_on<A: App>(&mut self, shared: &Arc<Shared<A>>, bound: Bound) -> io::Result<()> {
        match &bound.socket {
            Socket::Tcp(listener) => listener.set_nonblocking(true)?,
            Socket::Unix(listener, _) => listener.set_nonblocking(true)?,
        }
        let shared = shared.clone();
        let threads = shared.threads.clone();
        self.acceptors.push(threads.spawn_on(0, async move {
            let url = bound.url().to_owned();
            if let Err(error) = accept_loop(shared, bound).await {
                tracing::error!(address = url, %error, "cannot accept connections");
            }
        }));
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Open connections of each network thread.
    pub fn connections(&self) -> Vec<usize> {
        self.load
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect()
    }

    /// Stops accepting, tells every connection to finish, waits up to `drain`, then cuts what is left.
    /// Needs a runtime with a timer. Returns whether nothing had to be cut.
    pub async fn shutdown(mut self, drain: Duration) -> bool {
        for acceptor in self.acceptors.drain(..) {
            acceptor.abort();
        }
        self.draining.send_replace(true);
        self.phase.send_replace(Phase::Draining);
        // Ends with an error once every connection has dropped its sender.
        let all_gone =
            async |alive: &mut watch::Receiver<()>| while alive.changed().await.is_ok() {};
        let drained = tokio::time::timeout(drain, all_gone(&mut self.alive)).await;
        self.phase.send_replace(Phase::Cut);
        all_gone(&mut self.alive).await;
        drained.is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for acceptor in &self.acceptors {
            acceptor.abort();
        }
        self.draining.send_replace(true);
        self.phase.send_replace(Phase::Cut);
        for path in &self.unix_paths {
            // Another server may have replaced or removed the file already.
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Detached> {
        Ok(match self {
            Listener::Tcp(listener) => Detached::Tcp(listener.accept().await?.0.into_std()?),
            Listener::Unix(listener) => Detached::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

async fn accept_loop<A: App>(shared: Arc<Shared<A>>, bound: Bound) -> io::Result<()> {
    let listener = match bound.socket {
        Socket::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
        Socket::Unix(listener, _) => Listener::Unix(UnixListener::from_std(listener)?),
    };
    loop {
        match listener.accept().await {
            Ok(stream) => {
                // The listener stops here while all slots are taken.
                let Ok(slot) = shared.slots.clone().acquire_owned().await else {
                    return Ok(());
                };
                hand_over(&shared, bound.role, stream, slot);
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// What a connection gives back when it ends, however it ends.
struct Occupied {
    load: Arc<[AtomicUsize]>,
    thread: usize,
    _slot: OwnedSemaphorePermit,
    _alive: watch::Sender<()>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.load[self.thread].fetch_sub(1, Ordering::Relaxed);
    }
}

fn hand_over<A: App>(
    shared: &Arc<Shared<A>>,
    role: Role,
    stream: Detached,
    slot: OwnedSemaphorePermit,
) {
    let load = |thread: &usize| shared.load[*thread].load(Ordering::Relaxed);
    let thread = (0..shared.load.len()).min_by_key(load).unwrap_or(0);
    shared.load[thread].fetch_add(1, Ordering::Relaxed);
    shared.stats.accepted.fetch_add(1, Ordering::Relaxed);
    let occupied = Occupied {
        load: shared.load.clone(),
        thread,
        _slot: slot,
        _alive: shared.alive.clone(),
    };
    let connection = Arc::new(Connection {
        role,
        draining: shared.draining.clone(),
    });
    let serving = serve(
        stream,
        shared.app.clone(),
        connection,
        shared.phase.clone(),
        shared.settings.clone(),
    );
    let stats = shared.stats.clone();
    shared.threads.spawn_on(thread, async move {
        let _occupied = occupied;
        if let Err(error) = serving.await {
            stats.failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "a client connection failed");
        }
    });
}
