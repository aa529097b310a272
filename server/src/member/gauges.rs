//! Where the metrics come from: hooks for what must be measured when it happens, and one refresh
//! before each scrape for everything that is state kept elsewhere.

use crate::api;
use crate::apply::{Alarms, Applier, Counters, Observer};
use crate::lease::{LeaseHook, Lessor};
use crate::limits::Limits;
use crate::metrics::{Metrics, Store};
use crate::node::{self, Node, NodeHandle};
use crate::watch::Feed;
use prometheus::{Histogram, IntCounter, IntGauge};
use quorate_proto::etcdserverpb::AlarmType;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Measures applies; the histogram of each kind of request is looked up once.
struct Applies {
    metrics: Arc<Metrics>,
    slow: Duration,
    known: Mutex<BTreeMap<(&'static str, bool), Histogram>>,
}

impl Observer for Applies {
    fn applied(&self, op: &'static str, ok: bool, took: Duration) {
        // Only the apply thread comes here, so the lock is never contended.
        let mut known = self.known.lock().unwrap_or_else(|p| p.into_inner());
        let histogram = known.entry((op, ok)).or_insert_with(|| {
            let success = if ok { "true" } else { "false" };
            let seconds = &self.metrics.server.apply_seconds;
            seconds.with_label_values(&["v3", op, success])
        });
        histogram.observe(took.as_secs_f64());
        if took > self.slow {
            self.metrics.server.slow_apply.inc();
        }
    }
}

/// Counts grants and revocations on their way to the lessor.
pub struct CountedLeases {
    lessor: Arc<Lessor>,
    metrics: Arc<Metrics>,
}

impl CountedLeases {
    /// Forwards to `lessor`.
    pub fn new(lessor: Arc<Lessor>, metrics: Arc<Metrics>) -> CountedLeases {
        CountedLeases { lessor, metrics }
    }
}

impl LeaseHook for CountedLeases {
    fn granted(&self, id: i64, ttl: i64) {
        self.metrics.lease.granted.inc();
        self.metrics.lease.ttl_seconds.observe(ttl as f64);
        self.lessor.granted(id, ttl);
    }

    fn revoked(&self, id: i64) {
        self.metrics.lease.revoked.inc();
        self.lessor.revoked(id);
    }
}

/// Background work of the node.
pub struct NodeWork(pub Arc<Metrics>);

impl node::Observer for NodeWork {
    fn checkpoint(&self, took: Duration) {
        let seconds = &self.0.disk.backend_commit_seconds;
        seconds.observe(took.as_secs_f64());
    }

    fn compacted(&self, took: Duration) {
        let mvcc = &self.0.mvcc;
        let milliseconds = &mvcc.compaction_total_milliseconds;
        milliseconds.observe(took.as_secs_f64() * 1e3);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        mvcc.compaction_last
            .set(since.map_or(0, |d| d.as_secs() as i64));
    }

    fn defragmented(&self, took: Option<Duration>) {
        let disk = &self.0.disk;
        disk.defrag_inflight.set(i64::from(took.is_none()));
        if let Some(took) = took {
            disk.backend_defrag_seconds.observe(took.as_secs_f64());
        }
    }

    fn compaction_slice(&self, took: Duration) {
        let milliseconds = &self.0.mvcc.compaction_pause_milliseconds;
        milliseconds.observe(took.as_secs_f64() * 1e3);
    }

    fn log_appended(&self, took: Duration) {
        self.0.disk.wal_write_seconds.observe(took.as_secs_f64());
    }

    fn log_bytes(&self, total: u64) {
        self.0.disk.wal_write_bytes.set(total as i64);
    }

    fn log_stalled(&self, stall: raftlog::Stall) {
        match stall {
            raftlog::Stall::Begun(so_far) => {
                self.0.disk.wal_stalls.inc();
                tracing::error!(
                    seconds = so_far.as_secs_f64(),
                    "a durable write of the log does not end: the disk hangs; nothing is acknowledged until it ends"
                );
            }
            raftlog::Stall::Goes(so_far) => tracing::error!(
                seconds = so_far.as_secs_f64(),
                "the durable write of the log still has not ended"
            ),
            raftlog::Stall::Ended(took) => tracing::warn!(
                seconds = took.as_secs_f64(),
                "the durable write of the log that took so long has ended"
            ),
        }
    }
}

/// The services; histograms with labels are looked up once.
pub struct Served {
    metrics: Arc<Metrics>,
    ranges: [Histogram; 2],
}

impl Served {
    /// Feeds these metrics.
    pub fn new(metrics: Arc<Metrics>) -> Served {
        let seconds = &metrics.server.range_seconds;
        let ranges = ["false", "true"].map(|success| seconds.with_label_values(&[success]));
        Served { metrics, ranges }
    }
}

impl api::Observer for Served {
    fn ranged(&self, ok: bool, took: Duration) {
        self.ranges[usize::from(ok)].observe(took.as_secs_f64());
    }

    fn hashed(&self, took: Duration) {
        self.metrics.mvcc.hash_seconds.observe(took.as_secs_f64());
    }

    fn hashed_revision(&self, took: Duration) {
        let seconds = &self.metrics.mvcc.hash_rev_seconds;
        seconds.observe(took.as_secs_f64());
    }

    fn stream_failed(&self, api: &'static str) {
        let failures = &self.metrics.network.server_stream_failures;
        failures.with_label_values(&["receive", api]).inc();
    }
}

/// Hooks the measurements into apply and the log. A durable write of the log that takes longer than
/// `stall` is shown.
pub fn observe(
    metrics: &Arc<Metrics>,
    applier: &mut Applier,
    log: &mut raftlog::Log,
    slow_apply: Duration,
    stall: Duration,
) {
    applier.set_observer(Arc::new(Applies {
        metrics: metrics.clone(),
        slow: slow_apply,
        known: Mutex::default(),
    }));
    let disk = metrics.disk.clone();
    log.set_on_flush(Box::new(move |took| {
        disk.wal_fsync_seconds.observe(took.as_secs_f64());
    }));
    let stats = log.stats();
    let word = |yes: bool| if yes { "true" } else { "false" };
    let labels = [
        log.backend_name(),
        word(stats.direct),
        word(stats.registered_buffers),
    ];
    metrics.disk.wal_backend.with_label_values(&labels).set(1);
    let clock = log.flush_clock();
    metrics.on_scrape(move |metrics| {
        let so_far = clock.stalled(stall).unwrap_or_default();
        metrics.disk.wal_stalled_seconds.set(so_far.as_secs_f64());
    });
}

/// Raises a counter to a total kept elsewhere.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Sets what is state elsewhere, before each scrape.
pub fn refresh(
    metrics: &Metrics,
    node: &NodeHandle,
    feed: &Arc<Feed>,
    counters: Arc<Counters>,
    lessor: Arc<Lessor>,
    limits: &Limits,
) {
    let server = &metrics.server;
    let member = format!("{:x}", node.identity().member_id);
    server.id.with_label_values(&[&member]).set(1);
    server
        .quota_backend_bytes
        .set(limits.quota_bytes.unwrap_or(0));
    metrics
        .network
        .known_peers
        .with_label_values(&[&member, &member])
        .set(1);
    for (name, on) in crate::config::flags::FEATURE_GATES {
        let stage = match *name {
            "AllBeta" | "TxnModeWriteWithSharedBuffer" => "BETA",
            _ => "ALPHA",
        };
        server
            .feature_enabled
            .with_label_values(&[name, stage])
            .set(i64::from(*on));
    }
    let (node, feed) = (node.clone(), feed.clone());
    metrics.on_scrape(move |metrics| {
        consensus(metrics, &node, &member);
        store(metrics, &node, &counters);
        watches(metrics, &feed);
        raise(&metrics.lease.renewed, lessor.renewals());
        raise(&metrics.lease.expired, lessor.expirations());
    });
}

fn consensus(metrics: &Metrics, node: &NodeHandle, member: &str) {
    let status = node.status();
    let server = &metrics.server;
    server.has_leader.set(i64::from(status.leader != 0));
    server.is_leader.set(i64::from(status.is_leader));
    server.is_learner.set(i64::from(status.is_learner));
    server.proposals_committed.set(status.committed as i64);
    server.proposals_applied.set(status.applied as i64);
    server
        .proposals_pending
        .set(node.proposals_pending() as i64);
    raise(&server.leader_changes_seen, node.shared().leader_changes());
    raise(&server.proposals_failed, node.shared().proposals_failed());
    raise(&server.read_indexes_failed, node.shared().reads_failed());
    raise(&server.slow_read_indexes, node.shared().reads_late());
    server
        .auth_revision
        .set(crate::api::auth::AUTH_REVISION as i64);
    let view = node.engine().view();
    if let Ok(Some(version)) = crate::membership::cluster_version(&view) {
        // Labels carry major and minor only.
        let minor = version
            .rsplit_once('.')
            .map_or(&version[..], |(minor, _)| minor);
        server.cluster_version.reset();
        server.cluster_version.with_label_values(&[minor]).set(1);
    }
    if let Ok(alarms) = Alarms::load(&view) {
        server.alarms.reset();
        for alarm in alarms.list(AlarmType::None as i32) {
            let owner = match alarm.member_id {
                0 => member.to_owned(),
                id => format!("{id:x}"),
            };
            let kind = alarm.alarm().as_str_name();
            server.alarms.with_label_values(&[&owner, kind]).set(1);
        }
    }
}

fn store(metrics: &Metrics, node: &NodeHandle, counters: &Counters) {
    let mvcc = &metrics.mvcc;
    raise(&mvcc.range, counters.ranges());
    raise(&mvcc.put, counters.puts());
    mvcc.put_size.set(counters.put_bytes() as i64);
    raise(&mvcc.delete, counters.deletes());
    raise(&mvcc.txn, counters.txns());
    let view = node.engine().view();
    mvcc.current_revision.set(view.revision());
    mvcc.compact_revision.set(view.compact_revision());
    let stats = node.engine().stats();
    mvcc.db_size.set(stats.file_bytes as i64);
    mvcc.db_size_in_use.set(stats.in_use_bytes as i64);
    mvcc.keys.set(stats.keys as i64);
    engine_figures(&metrics.store, &stats, &node.engine().scrub_report());
}

fn engine_figures(store: &Store, stats: &engine::Stats, scrub: &engine::ScrubReport) {
    let set = |gauge: &IntGauge, value: u64| gauge.set(value as i64);
    set(&store.file_bytes, stats.file_bytes);
    set(&store.free_bytes, stats.free_bytes);
    set(&store.pending_bytes, stats.pending_bytes);
    set(&store.allocated_bytes, stats.allocated_bytes);
    set(&store.dirty_bytes, stats.dirty_bytes);
    set(&store.cache_bytes, stats.cache_bytes);
    raise(&store.cache_hits, stats.cache_hits);
    raise(&store.cache_misses, stats.cache_misses);
    raise(&store.cache_evictions, stats.cache_evictions);
    raise(&store.checkpoints_failed, stats.checkpoints_failed);
    raise(&store.checkpoint_bytes, stats.checkpoint_bytes);
    let last = Duration::from_micros(stats.checkpoint_last_micros);
    store.checkpoint_last_seconds.set(last.as_secs_f64());
    raise(&store.gave_way, stats.gave_way);
    raise(&store.moved_bytes, stats.moved_bytes);
    let age = stats.oldest_pin_age.as_secs_f64();
    store.page_pin_seconds.set(age);
    set(&store.history_pins, stats.history_pins);
    store
        .history_pin_revision
        .set(stats.oldest_history_pin.unwrap_or(-1));
    let age = stats.oldest_history_pin_age.as_secs_f64();
    store.history_pin_seconds.set(age);
    raise(&store.history_pins_expired, stats.history_pins_expired);
    raise(&store.scrub_passes, scrub.passes);
    raise(&store.scrub_bytes, scrub.bytes);
    set(&store.scrub_pass_bytes, scrub.pass_bytes);
    set(&store.scrub_pass_of_bytes, scrub.pass_of);
    raise(&store.scrub_damage, scrub.damaged);
}

fn watches(metrics: &Metrics, feed: &Arc<Feed>) {
    let (mut streams, mut watchers, mut slow, mut pending, mut events) = (0, 0, 0, 0, 0);
    for hub in feed.hubs() {
        let stats = hub.stats();
        streams += stats.streams;
        watchers += stats.watchers;
        slow += stats.unsynced;
        pending += stats.queued;
        events += stats.events;
    }
    metrics.watch.streams.set(streams as i64);
    metrics.watch.watchers.set(watchers as i64);
    metrics.watch.slow_watchers.set(slow as i64);
    metrics.watch.pending_events.set(pending as i64);
    raise(&metrics.watch.events, events);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    /// Each figure reaches a series of its own.
    #[test]
    fn the_figures_of_the_engine_are_exported() {
        let metrics = Metrics::new(&metrics::Options { extensive: false });
        let stats = engine::Stats {
            file_bytes: 1001,
            free_bytes: 1002,
            pending_bytes: 1003,
            allocated_bytes: 1004,
            dirty_bytes: 1005,
            cache_bytes: 1006,
            cache_hits: 1007,
            cache_misses: 1008,
            cache_evictions: 1009,
            checkpoints_failed: 1010,
            checkpoint_bytes: 1011,
            checkpoint_last_micros: 1_012_000_000,
            gave_way: 1013,
            moved_bytes: 1014,
            oldest_pin_age: Duration::from_secs(1015),
            history_pins: 1016,
            oldest_history_pin: Some(1017),
            oldest_history_pin_age: Duration::from_secs(1018),
            history_pins_expired: 1019,
            ..Default::default()
        };
        let scrub = engine::ScrubReport {
            passes: 1020,
            bytes: 1021,
            pass_bytes: 1022,
            pass_of: 1023,
            damaged: 1024,
            damage: Vec::new(),
        };
        for _ in 0..2 {
            engine_figures(&metrics.store, &stats, &scrub);
        }
        let text = String::from_utf8(metrics.render()).unwrap();
        let mut seen: Vec<u64> = text
            .lines()
            .filter(|l| l.starts_with("quorate_store_") || l.starts_with("quorate_scrub_"))
            .map(|l| l.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (1001..=1024).collect::<Vec<_>>());
    }
}
