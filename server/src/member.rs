//! A member from start to end: open, serve, stop.
//!
//! Start, in etcd's order: listeners are bound, the data directory is opened, consensus runs, the member
//! publishes its name and URLs through the log, and only then clients are served and readiness is
//! announced. Stop: connections are drained, the node checkpoints, the process ends by the signal that
//! stopped it.
//!
//! Invariants:
//! 1. No client is served before the member's own attributes are committed and applied.
//! 2. When the node thread ends by itself the process ends, with an error, and nothing is answered
//!    after it.
//! 3. So it is when other work panics that goes on as long as the member ([`crate::standing`]).

use crate::api::Api;
use crate::api::health::Health;
use crate::api::maintenance::Hashes;
use crate::bootstrap::{self, Opened};
use crate::clock::{Clock, RuntimeClock};
use crate::compactor;
use crate::config::{AutoCompaction, Config};
use crate::front::Front;
use crate::http;
use crate::lease::{self, LeaseHook, Lessor};
use crate::limits::Limits;
use crate::membership;
use crate::metrics::{self, Metrics};
use crate::net::{self, Role, Server, Settings, Threads};
use crate::node::{Node, NodeHandle, NodeLoop, Parts};
use crate::standing::Standing;
use crate::version;
use crate::watch::{self, Feed};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::membershippb;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

mod gauges;
#[cfg(test)]
mod tests;

/// How long open calls may take to finish when the member stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause between tries to publish the member's attributes.
const PUBLISH_RETRY: Duration = Duration::from_millis(500);

/// Runs a member until a signal stops it; answers the signal's number.
pub fn run(config: Config) -> Result<Option<i32>, String> {
    run_hooked(config, |leases| leases)
}

/// As [`run`]; what hears of leases goes through `wrap`.
fn run_hooked(
    config: Config,
    wrap: impl FnOnce(Arc<dyn LeaseHook>) -> Arc<dyn LeaseHook>,
) -> Result<Option<i32>, String> {
    let started = Instant::now();
    net::raise_fd_limit();
    let limits = limits(&config);
    let mut listeners = Vec::new();
    for endpoint in &config.listen_client_urls {
        listeners.push(net::bind(endpoint, Role::All).map_err(|e| e.to_string())?);
    }
    for endpoint in &config.listen_metrics_urls {
        listeners.push(net::bind(endpoint, Role::Metrics).map_err(|e| e.to_string())?);
    }
    let metrics = Arc::new(Metrics::new(&metrics::Options {
        extensive: config.metrics_extensive,
    }));

    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock);
    let lessor = Arc::new(Lessor::new(clock.clone(), limits.election_timeout));
    let hook = gauges::CountedLeases::new(lessor.clone(), metrics.clone());
    let opened = bootstrap::open(&config, &limits, wrap(Arc::new(hook)))?;
    let view = opened.engine.view();
    lessor.load(&view).map_err(|e| e.to_string())?;
    let feed = Feed::new(
        view.revision(),
        view.compact_revision(),
        watch::Options::new(&limits),
    );
    drop(view);

    let threads = Threads::start(Threads::count_by_default())
        .map_err(|e| format!("cannot start network threads: {e}"))?;
    let Opened {
        identity,
        engine,
        mut applier,
        mut log,
        replica,
        lock,
    } = opened;
    let (slow, stall) = (config.warning_apply, config.election);
    gauges::observe(&metrics, &mut applier, &mut log, slow, stall);
    let counters = applier.counters().clone();
    let served = Arc::new(gauges::Served::new(metrics.clone()));
    let hashes = Hashes::new(served.clone());
    applier.set_compaction_hook(Arc::new(hashes.clone()));
    let (node_loop, node) = NodeLoop::new(Parts {
        identity,
        limits: limits.clone(),
        engine: engine.clone(),
        applier,
        log,
        replica,
        feed: feed.clone(),
        observer: Arc::new(gauges::NodeWork(metrics.clone())),
        network_threads: threads.count(),
        tick: config.heartbeat,
        catchup_entries: config.snapshot_catchup_entries,
        dirty_bytes_max: bootstrap::DIRTY_BYTES_MAX,
        stall,
    });
    let node_thread = std::thread::Builder::new()
        .name("node".into())
        .spawn(move || node_loop.run())
        .map_err(|e| format!("cannot start the node thread: {e}"))?;
    let mut hubs = Vec::new();
    let standing = Standing::default();
    for thread in 0..threads.count() {
        let dispatching = node.clone();
        let dispatching = async move { dispatching.dispatch(thread).await };
        threads.spawn_on(thread, standing.work("dispatch of answers", dispatching));
        let hub = feed.hub();
        let driving = watch::drive(hub.clone(), engine.clone());
        threads.spawn_on(thread, standing.work("delivery of events", driving));
        hubs.push(hub);
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the service runtime: {e}"))?;
    let mut api = Api::new(
        node.clone(),
        limits.clone(),
        counters.clone(),
        hashes,
        lessor.clone(),
        hubs,
    );
    api.set_observer(served);
    let api = Arc::new(api);
    gauges::refresh(&metrics, &node, &feed, counters, lessor.clone(), &limits);
    let outcome = runtime.block_on(async {
        publish(&node, &config).await?;
        let setting = set_cluster_version(node.clone());
        tokio::spawn(standing.work("setting of the cluster version", setting));
        let expiry = lease::expire(Arc::new(node.clone()), lessor);
        tokio::spawn(standing.work("expiry of leases", expiry));
        if let Some(retention) = retention(config.auto_compaction) {
            let compacting = compactor::run(api.clone(), retention, clock);
            tokio::spawn(standing.work("automatic compaction", compacting));
        }
        let endpoints = http::Settings {
            origins: config.cors.clone(),
            hosts: config.host_whitelist.clone(),
            check_timeout: limits.request_timeout,
        };
        let health = Arc::new(Health::default());
        let app = Arc::new(Front::new(api, &health, metrics.clone(), endpoints));
        let settings = Settings {
            concurrent_streams_max: config.max_concurrent_streams,
            keepalive_min_time: config.grpc_keepalive_min_time,
            keepalive_interval: config.grpc_keepalive_interval,
            keepalive_timeout: config.grpc_keepalive_timeout,
            ..Settings::default()
        };
        let server = Server::start(&threads, listeners, app, settings)
            .map_err(|e| format!("cannot serve: {e}"))?;
        announce(&config, &node, started);
        let stop = until_stopped(&node, &standing).await?;
        tracing::info!(signal = stop.name, "received signal; shutting down");
        server.shutdown(DRAIN).await;
        Ok::<_, String>(stop)
    });
    node.stop();
    let ended = node_thread
        .join()
        .map_err(|panic| format!("the node thread panicked: {}", said_by(&*panic)))?;
    drop(threads);
    drop(lock);
    ended.map_err(|e| e.to_string())?;
    let stop = outcome?;
    tracing::info!(
        name = config.name,
        data_dir = %config.data_dir.display(),
        "closed etcd server"
    );
    Ok(Some(stop.number))
}

/// The message of a panic.
fn said_by(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "it did not say why",
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        request_bytes_max: config.max_request_bytes,
        txn_ops_max: config.max_txn_ops,
        quota_bytes: match config.quota_backend_bytes {
            0 => Limits::default().quota_bytes,
            n if n < 0 => None,
            n => Some(n),
        },
        request_timeout: Duration::from_secs(5) + 2 * config.election,
        election_timeout: config.election,
        watch_progress_interval: config.watch_progress_notify_interval,
        ..Limits::default()
    }
}

fn retention(setting: AutoCompaction) -> Option<compactor::Retention> {
    match setting {
        AutoCompaction::Off => None,
        AutoCompaction::Periodic(keep) => Some(compactor::Retention::Period(keep)),
        AutoCompaction::Revisions(keep) => Some(compactor::Retention::Revisions(keep)),
    }
}

/// Puts this member's name and client URLs into the log; a member counts as started from then on.
async fn publish(node: &NodeHandle, config: &Config) -> Result<(), String> {
    let attributes = membershippb::ClusterMemberAttrSetRequest {
        member_id: node.identity().member_id,
        member_attributes: Some(membershippb::Attributes {
            name: config.name.clone(),
            client_urls: config.advertise_client_urls.clone(),
        }),
    };
    loop {
        let request = pb::InternalRaftRequest {
            cluster_member_attr_set: Some(attributes.clone()),
            ..Default::default()
        };
        tokio::select! {
            result = node.propose(request) => match result {
                Ok(_) => break,
                Err(status) => {
                    tracing::warn!(error = %status, "failed to publish local member to cluster through raft");
                    tokio::time::sleep(PUBLISH_RETRY).await;
                }
            },
            () = node.stopped() => return Err("the node stopped while starting".into()),
        }
    }
    tracing::info!(
        local_member_id = format!("{:x}", node.identity().member_id),
        cluster_id = format!("{:x}", node.identity().cluster_id),
        "published local member to cluster through raft"
    );
    Ok(())
}

/// The leader settles the cluster version once every member is known; alone it knows itself.
async fn set_cluster_version(node: NodeHandle) {
    loop {
        let known = membership::cluster_version(&node.engine().view());
        if matches!(&known, Ok(Some(v)) if v == version::CLUSTER) {
            return;
        }
        let request = pb::InternalRaftRequest {
            cluster_version_set: Some(membershippb::ClusterVersionSetRequest {
                ver: version::CLUSTER.to_owned(),
            }),
            ..Default::default()
        };
        match node.propose(request).await {
            Ok(_) => tracing::info!(cluster_version = version::CLUSTER, "set cluster version"),
            Err(status) => {
                tracing::warn!(error = %status, "failed to set cluster version");
                tokio::time::sleep(PUBLISH_RETRY).await;
            }
        }
    }
}

/// Says that clients are served: log lines others wait for, and the service manager.
fn announce(config: &Config, node: &NodeHandle, started: Instant) {
    tracing::info!(
        local_member_id = format!("{:x}", node.identity().member_id),
        took = format!("{:?}", started.elapsed()),
        "ready to serve client requests"
    );
    for endpoint in &config.listen_client_urls {
        tracing::warn!(
            traffic = "grpc+http",
            address = endpoint.url.split("://").nth(1).unwrap_or(&endpoint.url),
            "serving client traffic insecurely; this is strongly discouraged!"
        );
    }
    for endpoint in &config.listen_metrics_urls {
        tracing::info!(address = endpoint.url, "serving metrics");
    }
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tracing::info!("notifying init daemon");
        match sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            Ok(()) => tracing::info!("successfully notified init daemon"),
            Err(error) => tracing::error!(%error, "failed to notify init daemon"),
        }
    }
}

/// A signal that stops the member.
struct Stop {
    number: i32,
    name: &'static str,
}

async fn until_stopped(node: &NodeHandle, standing: &Standing) -> Result<Stop, String> {
    let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Stop { number: libc::SIGTERM, name: "terminated" }),
        _ = interrupt.recv() => Ok(Stop { number: libc::SIGINT, name: "interrupt" }),
        () = node.stopped() => Err("the node stopped".into()),
        work = standing.panicked() => Err(format!("the {work} panicked")),
    }
}

/// Ends the process by the signal that stopped it, as etcd does, so that whoever waits sees why. The
/// first process of a container cannot be killed by its own signal and just exits.
pub fn end_by_signal(number: i32) -> std::process::ExitCode {
    if std::process::id() != 1 {
        // An error leaves the ordinary exit below.
        let _ = signal_hook::low_level::emulate_default_handler(number);
    }
    std::process::ExitCode::SUCCESS
}
