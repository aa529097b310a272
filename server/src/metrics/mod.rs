//! Metrics: the names, types, labels and buckets of etcd, so that its alerts and dashboards keep
//! working.
//!
//! One [`Metrics`] belongs to one server; nothing is global, so several members can live in one
//! process. The handles are grouped by the part that updates them and are resolved once: updating a
//! metric without labels is one atomic operation.
//!
//! Invariants:
//! 1. A name that is registered has exactly the type, labels and buckets of etcd's (`table.txt`, checked
//!    by a test).
//! 2. Series without labels exist from the start; series with labels appear with their first use, except
//!    the gRPC ones and the stalls, which exist for every method and cause from the start.
//! 3. The number of series is bounded: no label value comes from a client without a cap.
//!
//! Absent on purpose: the Go runtime's (`go_*`, `etcd_server_go_version`), the v2 store's
//! (`etcd_debugging_store_*`) and the gRPC proxy's (`etcd_grpc_proxy_*`).

mod grpc;
mod process;
mod stalls;
#[cfg(test)]
mod tests;

pub use grpc::{ClientRequests, Grpc, Kind, MethodMetrics};

use prometheus::core::Collector;
use prometheus::{
    Counter, Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::{Mutex, MutexGuard};

/// The content type of what [`Metrics::render`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What a registered metric looks like to a scraper.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Full name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of the variable labels.
    pub labels: Vec<String>,
    /// Upper bounds of the buckets without `+Inf`; empty unless a histogram.
    pub buckets: Vec<f64>,
}

/// Registers metrics and remembers what they look like.
struct Builder {
    registry: Registry,
    specs: Vec<Spec>,
}

impl Builder {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        kind: &'static str,
        buckets: &[f64],
        metric: prometheus::Result<C>,
    ) -> C {
        // Names and labels are constants of this module; a bad one fails every test that makes a server.
        let metric = metric.expect("a metric's name and labels are well formed");
        for desc in metric.desc() {
            self.specs.push(Spec {
                name: desc.fq_name.clone(),
                kind,
                labels: desc.variable_labels.clone(),
                buckets: buckets.to_vec(),
            });
        }
        self.registry
            .register(Box::new(metric.clone()))
            .expect("each metric is registered once");
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add("counter", &[], IntCounter::new(name, help))
    }

    fn float_counter(&mut self, name: &str, help: &str) -> Counter {
        self.add("counter", &[], Counter::new(name, help))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add("gauge", &[], IntGauge::new(name, help))
    }

    fn float_gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add("gauge", &[], Gauge::new(name, help))
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.clone());
        self.add("histogram", &buckets, Histogram::with_opts(opts))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(
            "counter",
            &[],
            IntCounterVec::new(Opts::new(name, help), labels),
        )
    }

    fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(
            "gauge",
            &[],
            IntGaugeVec::new(Opts::new(name, help), labels),
        )
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.clone());
        self.add("histogram", &buckets, HistogramVec::new(opts, labels))
    }
}

/// `count` upper bounds: `start`, `start * factor`, …
fn exp(start: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * factor))
        .take(count)
        .collect()
}

/// Defines a struct of handles and how they are registered. A line reads
/// `field: method(name, help, …)` with the methods of [`Builder`].
macro_rules! group {
    ($(#[$doc:meta])* $group:ident { $($field:ident: $type:ty = $make:ident($help:literal, $name:literal $(, $arg:expr)*);)* }) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $group {
            $(#[doc = concat!("`", $name, "`: ", $help, ".")] pub $field: $type,)*
        }
        impl $group {
            fn new(builder: &mut Builder) -> $group {
                $group { $($field: builder.$make($name, concat!($help, ".") $(, $arg)*),)* }
            }
        }
    };
}

group! {
    /// Consensus and the life of this member.
    Server {
        cluster_version: IntGaugeVec = gauges("1 for the cluster version in force", "etcd_cluster_version", &["cluster_version"]);
        version: IntGaugeVec = gauges("1 for the version this server announces", "etcd_server_version", &["server_version"]);
        id: IntGaugeVec = gauges("1 for the id of this member, in hexadecimal", "etcd_server_id", &["server_id"]);
        has_leader: IntGauge = gauge("1 while this member knows a leader", "etcd_server_has_leader");
        is_leader: IntGauge = gauge("1 while this member leads", "etcd_server_is_leader");
        is_learner: IntGauge = gauge("1 while this member is a learner", "etcd_server_is_learner");
        leader_changes_seen: IntCounter = counter("Changes of leader seen, the first election included", "etcd_server_leader_changes_seen_total");
        learner_promote_successes: IntCounter = counter("Learners promoted while this member led", "etcd_server_learner_promote_successes");
        learner_promote_failures: IntCounterVec = counters("Promotions of learners that failed while this member led", "etcd_server_learner_promote_failures", &["Reason"]);
        heartbeat_send_failures: IntCounter = counter("Heartbeats this member, as leader, sent too late", "etcd_server_heartbeat_send_failures_total");
        proposals_committed: IntGauge = gauge("Highest committed index", "etcd_server_proposals_committed_total");
        proposals_applied: IntGauge = gauge("Highest applied index", "etcd_server_proposals_applied_total");
        proposals_pending: IntGauge = gauge("Proposals of this member that wait for their apply", "etcd_server_proposals_pending");
        proposals_failed: IntCounter = counter("Proposals that failed or timed out", "etcd_server_proposals_failed_total");
        slow_apply: IntCounter = counter("Applies slower than the warning threshold", "etcd_server_slow_apply_total");
        slow_read_indexes: IntCounter = counter("Read-index rounds that were out of date or timed out", "etcd_server_slow_read_indexes_total");
        read_indexes_failed: IntCounter = counter("Read-index rounds that failed", "etcd_server_read_indexes_failed_total");
        quota_backend_bytes: IntGauge = gauge("Storage quota in force, in bytes", "etcd_server_quota_backend_bytes");
        snapshot_apply_in_progress: IntGauge = gauge("1 while a received snapshot is installed", "etcd_server_snapshot_apply_in_progress_total");
        apply_seconds: HistogramVec = histograms("Time to apply an entry, by kind of request", "etcd_server_apply_duration_seconds", &["version", "op", "success"], exp(0.0001, 2.0, 20));
        range_seconds: HistogramVec = histograms("Time of the local part of a range", "etcd_server_range_duration_seconds", &["success"], exp(0.0001, 2.0, 20));
        feature_enabled: IntGaugeVec = gauges("Whether a feature gate is on", "etcd_server_feature_enabled", &["name", "stage"]);
        alarms: IntGaugeVec = gauges("1 for every alarm that is raised", "etcd_debugging_server_alarms", &["server_id", "alarm_type"]);
        auth_revision: IntGauge = gauge("Revision of the auth store", "etcd_debugging_auth_revision");
    }
}

group! {
    /// Health checks.
    Health {
        success: IntCounter = counter("Healthy answers of /health", "etcd_server_health_success");
        failures: IntCounter = counter("Unhealthy answers of /health", "etcd_server_health_failures");
        check: IntGaugeVec = gauges("Last result of a check of /livez or /readyz", "etcd_server_healthcheck", &["type", "name"]);
        checks: IntCounterVec = counters("Results of the checks of /livez and /readyz", "etcd_server_healthchecks_total", &["type", "name", "status"]);
    }
}

group! {
    /// The key space, its history and its compaction.
    Mvcc {
        range: IntCounter = counter("Ranges executed by this member", "etcd_mvcc_range_total");
        put: IntCounter = counter("Puts executed by this member", "etcd_mvcc_put_total");
        delete: IntCounter = counter("Deletes executed by this member", "etcd_mvcc_delete_total");
        txn: IntCounter = counter("Write transactions executed by this member", "etcd_mvcc_txn_total");
        put_3_4: IntCounter = counter("Puts executed by this member, under the name of 3.4", "etcd_debugging_mvcc_put_total");
        delete_3_4: IntCounter = counter("Deletes executed by this member, under the name of 3.4", "etcd_debugging_mvcc_delete_total");
        txn_3_4: IntCounter = counter("Write transactions executed by this member, under the name of 3.4", "etcd_debugging_mvcc_txn_total");
        db_size_3_4: IntGauge = gauge("Allocated bytes of the store, under the name of 3.4", "etcd_debugging_mvcc_db_total_size_in_bytes");
        db_size: IntGauge = gauge("Allocated bytes of the store", "etcd_mvcc_db_total_size_in_bytes");
        db_size_in_use: IntGauge = gauge("Live bytes of the store", "etcd_mvcc_db_total_size_in_use_in_bytes");
        current_revision: IntGauge = gauge("Newest revision", "etcd_debugging_mvcc_current_revision");
        compact_revision: IntGauge = gauge("Revision of the last compaction, -1 before the first", "etcd_debugging_mvcc_compact_revision");
        keys: IntGauge = gauge("Keys that exist", "etcd_debugging_mvcc_keys_total");
        put_size: IntGauge = gauge("Bytes of all puts since the start", "etcd_debugging_mvcc_total_put_size_in_bytes");
        compaction_last: IntGauge = gauge("Unix time of the end of the last compaction", "etcd_debugging_mvcc_db_compaction_last");
        compaction_pause_milliseconds: Histogram = histogram("Time of one slice of a compaction", "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", exp(1.0, 2.0, 13));
        compaction_total_milliseconds: Histogram = histogram("Time of a whole compaction", "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", exp(100.0, 2.0, 14));
        hash_seconds: Histogram = histogram("Time of a hash over the whole store", "etcd_mvcc_hash_duration_seconds", exp(0.01, 2.0, 15));
        hash_rev_seconds: Histogram = histogram("Time of a hash at a revision", "etcd_mvcc_hash_rev_duration_seconds", exp(0.01, 2.0, 15));
    }
}

group! {
    /// Watch streams and their events.
    Watch {
        streams: IntGauge = gauge("Open watch streams", "etcd_debugging_mvcc_watch_stream_total");
        watchers: IntGauge = gauge("Watchers", "etcd_debugging_mvcc_watcher_total");
        slow_watchers: IntGauge = gauge("Watchers that are behind", "etcd_debugging_mvcc_slow_watcher_total");
        events: IntCounter = counter("Events sent to watchers", "etcd_debugging_mvcc_events_total");
        pending_events: IntGauge = gauge("Events queued for watchers", "etcd_debugging_mvcc_pending_events_total");
    }
}

group! {
    /// Leases.
    Lease {
        granted: IntCounter = counter("Leases granted", "etcd_debugging_lease_granted_total");
        revoked: IntCounter = counter("Leases revoked", "etcd_debugging_lease_revoked_total");
        renewed: IntCounter = counter("Leases renewed while this member led", "etcd_debugging_lease_renewed_total");
        ttl_seconds: Histogram = histogram("Time to live of granted leases, in seconds", "etcd_debugging_lease_ttl_total", exp(1.0, 2.0, 24));
        expired: IntCounter = counter("Leases that expired while this member led", "etcd_debugging_server_lease_expired_total");
    }
}

group! {
    /// The log, the store's file and snapshots.
    Disk {
        wal_fsync_seconds: Histogram = histogram("Time of a durable write of the log", "etcd_disk_wal_fsync_duration_seconds", exp(0.001, 2.0, 14));
        wal_write_seconds: Histogram = histogram("Time to hand a batch to the log", "etcd_disk_wal_write_duration_seconds", exp(0.001, 2.0, 14));
        wal_write_bytes: IntGauge = gauge("Bytes written to the log", "etcd_disk_wal_write_bytes_total");
        wal_backend: IntGaugeVec = gauges("1 for the way the log is written", "quorate_wal_backend", &["backend", "direct", "registered_buffers"]);
        wal_stalls: IntCounter = counter("Durable writes of the log that took longer than the election timeout", "quorate_wal_stalls_total");
        wal_stalled_seconds: Gauge = float_gauge("Time that the log's durable write under way has taken, if longer than the election timeout, else 0", "quorate_wal_stalled_seconds");
        backend_commit_seconds: Histogram = histogram("Time of a commit of the store", "etcd_disk_backend_commit_duration_seconds", exp(0.001, 2.0, 14));
        backend_defrag_seconds: Histogram = histogram("Time of a defragmentation", "etcd_disk_backend_defrag_duration_seconds", exp(0.1, 2.0, 13));
        defrag_inflight: IntGauge = gauge("1 while a defragmentation runs", "etcd_disk_defrag_inflight");
    }
}

group! {
    /// The engine: its file, cache, checkpoints, pins and scrubber. Ours alone.
    Store {
        file_bytes: IntGauge = gauge("Bytes of the tree file up to the last one used", "quorate_store_file_bytes");
        free_bytes: IntGauge = gauge("Bytes below it that can be used at once", "quorate_store_free_bytes");
        pending_bytes: IntGauge = gauge("Bytes that wait for older checkpoints and held views to go", "quorate_store_pending_bytes");
        allocated_bytes: IntGauge = gauge("Length of the tree file with the space kept ready", "quorate_store_allocated_bytes");
        dirty_bytes: IntGauge = gauge("Bytes changed in memory since the last checkpoint", "quorate_store_dirty_bytes");
        cache_bytes: IntGauge = gauge("Bytes of cached pages", "quorate_store_cache_bytes");
        cache_hits: IntCounter = counter("Pages found in the cache", "quorate_store_cache_hits_total");
        cache_misses: IntCounter = counter("Pages read from the file", "quorate_store_cache_misses_total");
        cache_evictions: IntCounter = counter("Pages that made room for others in the cache", "quorate_store_cache_evictions_total");
        checkpoints_failed: IntCounter = counter("Checkpoints that found no room", "quorate_store_checkpoints_failed_total");
        checkpoint_bytes: IntCounter = counter("Bytes written by checkpoints", "quorate_store_checkpoint_bytes_total");
        checkpoint_last_seconds: Gauge = float_gauge("Time that the last checkpoint took", "quorate_store_checkpoint_last_seconds");
        gave_way: IntCounter = counter("Pieces of background I/O that let the log go first", "quorate_store_gave_way_total");
        moved_bytes: IntCounter = counter("Bytes moved towards the front of the file", "quorate_store_moved_bytes_total");
        page_pin_seconds: Gauge = float_gauge("For how long the oldest view that is held has not been the newest", "quorate_store_oldest_page_pin_seconds");
        history_pins: IntGauge = gauge("Readers of old revisions that physical compaction waits for, or would", "quorate_store_history_pins");
        history_pin_revision: IntGauge = gauge("The lowest revision that one of them needs, -1 also without any", "quorate_store_oldest_history_pin_revision");
        history_pin_seconds: Gauge = float_gauge("How long the oldest of them has been there", "quorate_store_oldest_history_pin_seconds");
        history_pins_expired: IntCounter = counter("Readers of old revisions that compaction did not wait for any longer", "quorate_store_history_pins_expired_total");
        scrub_passes: IntCounter = counter("Whole passes over the tree file in search of damage", "quorate_scrub_passes_total");
        scrub_bytes: IntCounter = counter("Bytes read and found good by them", "quorate_scrub_bytes_total");
        scrub_pass_bytes: IntGauge = gauge("Of these, in the pass under way", "quorate_scrub_pass_bytes");
        scrub_pass_of_bytes: IntGauge = gauge("What the pass under way will read, about", "quorate_scrub_pass_of_bytes");
        scrub_damage: IntCounter = counter("Times that they met something damaged", "quorate_scrub_damage_total");
    }
}

group! {
    /// Traffic with clients and peers.
    Network {
        client_received_bytes: IntCounter = counter("Bytes of messages received from clients", "etcd_network_client_grpc_received_bytes_total");
        client_sent_bytes: IntCounter = counter("Bytes of messages sent to clients", "etcd_network_client_grpc_sent_bytes_total");
        server_stream_failures: IntCounterVec = counters("Failures on streams with clients", "etcd_network_server_stream_failures_total", &["Type", "API"]);
        peer_sent_bytes: IntCounterVec = counters("Bytes sent to a peer", "etcd_network_peer_sent_bytes_total", &["To"]);
        peer_received_bytes: IntCounterVec = counters("Bytes received from a peer", "etcd_network_peer_received_bytes_total", &["From"]);
        peer_sent_failures: IntCounterVec = counters("Failed sends to a peer", "etcd_network_peer_sent_failures_total", &["To"]);
        peer_received_failures: IntCounterVec = counters("Failed receives from a peer", "etcd_network_peer_received_failures_total", &["From"]);
        peer_round_trip_seconds: HistogramVec = histograms("Round trip to a peer", "etcd_network_peer_round_trip_time_seconds", &["To"], exp(0.0001, 2.0, 16));
        active_peers: IntGaugeVec = gauges("Connected peers", "etcd_network_active_peers", &["Local", "Remote"]);
        disconnected_peers: IntCounterVec = counters("Connections to peers that ended", "etcd_network_disconnected_peers_total", &["Local", "Remote"]);
        known_peers: IntGaugeVec = gauges("Members known, this one included", "etcd_network_known_peers", &["Local", "Remote"]);
        snapshot_send_success: IntCounterVec = counters("Snapshots sent to a peer", "etcd_network_snapshot_send_success", &["To"]);
        snapshot_send_failures: IntCounterVec = counters("Snapshots that could not be sent to a peer", "etcd_network_snapshot_send_failures", &["To"]);
        snapshot_send_inflights: IntGaugeVec = gauges("Snapshots on their way to a peer", "etcd_network_snapshot_send_inflights_total", &["To"]);
        snapshot_send_seconds: HistogramVec = histograms("Time to send a snapshot to a peer", "etcd_network_snapshot_send_total_duration_seconds", &["To"], exp(0.1, 2.0, 10));
        snapshot_receive_success: IntCounterVec = counters("Snapshots received from a peer", "etcd_network_snapshot_receive_success", &["From"]);
        snapshot_receive_failures: IntCounterVec = counters("Snapshots from a peer that could not be received", "etcd_network_snapshot_receive_failures", &["From"]);
        snapshot_receive_inflights: IntGaugeVec = gauges("Snapshots arriving from a peer", "etcd_network_snapshot_receive_inflights_total", &["From"]);
        snapshot_receive_seconds: HistogramVec = histograms("Time to receive a snapshot from a peer", "etcd_network_snapshot_receive_total_duration_seconds", &["From"], exp(0.1, 2.0, 10));
    }
}

group! {
    /// The exposition of metrics itself.
    Exposition {
        requests: IntCounterVec = counters("Scrapes by HTTP status", "promhttp_metric_handler_requests_total", &["code"]);
        in_flight: IntGauge = gauge("Scrapes being answered", "promhttp_metric_handler_requests_in_flight");
    }
}

/// How the metrics are set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--metrics extensive`: also measure how long gRPC calls take.
    pub extensive: bool,
}

type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Every metric of one server.
pub struct Metrics {
    registry: Registry,
    specs: Vec<Spec>,
    refresh: Mutex<Vec<Refresh>>,
    process: process::Process,
    exposition: Exposition,
    /// Consensus and this member.
    pub server: Server,
    /// Health checks.
    pub health: Health,
    /// The key space.
    pub mvcc: Mvcc,
    /// Watches.
    pub watch: Watch,
    /// Leases.
    pub lease: Lease,
    /// Files.
    pub disk: Disk,
    /// See [`Store`].
    pub store: Store,
    /// Clients and peers.
    pub network: Network,
    /// gRPC calls.
    pub grpc: Grpc,
}

impl Metrics {
    /// Registers everything.
    pub fn new(options: &Options) -> Metrics {
        let mut builder = Builder {
            registry: Registry::new(),
            specs: Vec::new(),
        };
        // Nobody feeds it: it reads the engine's figures.
        builder.add("histogram", &stalls::buckets(), stalls::Stalls::new());
        let metrics = Metrics {
            process: process::Process::new(&mut builder),
            exposition: Exposition::new(&mut builder),
            server: Server::new(&mut builder),
            health: Health::new(&mut builder),
            mvcc: Mvcc::new(&mut builder),
            watch: Watch::new(&mut builder),
            lease: Lease::new(&mut builder),
            disk: Disk::new(&mut builder),
            store: Store::new(&mut builder),
            network: Network::new(&mut builder),
            grpc: Grpc::new(&mut builder, options.extensive),
            refresh: Mutex::new(Vec::new()),
            registry: builder.registry,
            specs: builder.specs,
        };
        metrics.mvcc.compact_revision.set(-1);
        for code in ["200", "500", "503"] {
            metrics.exposition.requests.with_label_values(&[code]);
        }
        metrics
            .server
            .version
            .with_label_values(&[crate::version::SERVER])
            .set(1);
        metrics
    }

    /// Has `refresh` called before each scrape, to set gauges from state that is kept elsewhere. It must
    /// neither block nor register another refresh.
    pub fn on_scrape(&self, refresh: impl Fn(&Metrics) + Send + Sync + 'static) {
        self.refreshes().push(Box::new(refresh));
    }

    fn refreshes(&self) -> MutexGuard<'_, Vec<Refresh>> {
        self.refresh.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// All metrics in Prometheus' text format. Reads files of `/proc`, so it may take a millisecond.
    pub fn render(&self) -> Vec<u8> {
        self.exposition.in_flight.inc();
        for refresh in self.refreshes().iter() {
            refresh(self);
        }
        self.process.refresh();
        self.repeat_under_old_names();
        let mut text = Vec::with_capacity(256 * 1024);
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        self.exposition.in_flight.dec();
        // Writing into a vector cannot fail, and every family that is gathered has metrics.
        encoded.expect("metrics can be written to memory");
        self.exposition.requests.with_label_values(&["200"]).inc();
        text
    }

    fn repeat_under_old_names(&self) {
        let mvcc = &self.mvcc;
        let catch_up = |old: &IntCounter, new: &IntCounter| {
            old.inc_by(new.get().saturating_sub(old.get()));
        };
        catch_up(&mvcc.put_3_4, &mvcc.put);
        catch_up(&mvcc.delete_3_4, &mvcc.delete);
        catch_up(&mvcc.txn_3_4, &mvcc.txn);
        mvcc.db_size_3_4.set(mvcc.db_size.get());
    }

    /// What is registered, in order of registration.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }
}
