//! The exported set against the table of etcd's, and the exposition against a reader of the format.

use super::*;
use crate::status::Code;
use std::collections::{BTreeMap, BTreeSet};

fn metrics() -> Metrics {
    Metrics::new(&Options { extensive: true })
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn parse_buckets(text: &str) -> Vec<f64> {
    if text == "-" {
        return Vec::new();
    }
    match text.strip_prefix("exp(").and_then(|t| t.strip_suffix(')')) {
        Some(args) => {
            let args: Vec<f64> = args.split(',').map(|a| a.parse().unwrap()).collect();
            exp(args[0], args[1], args[2] as usize)
        }
        None => text
            .split(',')
            .map(|bound| bound.parse().unwrap())
            .collect(),
    }
}

fn table() -> BTreeMap<String, Spec> {
    lines(include_str!("table.txt"))
        .map(|line| {
            let [name, kind, labels, buckets] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("four columns: {line}");
            };
            let spec = Spec {
                name: name.to_owned(),
                kind,
                labels: match labels {
                    "-" => Vec::new(),
                    labels => labels.split(',').map(str::to_owned).collect(),
                },
                buckets: parse_buckets(buckets),
            };
            (name.to_owned(), spec)
        })
        .collect()
}

#[test]
fn the_exported_set_is_the_table() {
    let table = table();
    let ours: BTreeMap<String, Spec> = metrics()
        .specs()
        .iter()
        .map(|spec| (spec.name.clone(), spec.clone()))
        .collect();
    let names = |m: &BTreeMap<String, Spec>| m.keys().cloned().collect::<BTreeSet<_>>();
    let (a, b) = (names(&ours), names(&table));
    let difference: Vec<_> = a.symmetric_difference(&b).collect();
    assert!(difference.is_empty(), "only on one side: {difference:?}");
    for (name, spec) in &ours {
        assert_eq!(spec, &table[name], "{name}");
    }
}

#[test]
fn what_is_missing_is_missing() {
    let metrics = metrics();
    for line in lines(include_str!("missing.txt")) {
        let (pattern, reason) = line.split_once(": ").expect("a name and a reason");
        assert!(!reason.is_empty());
        let hit = metrics
            .specs()
            .iter()
            .find(|spec| match pattern.strip_suffix('*') {
                Some(prefix) => spec.name.starts_with(prefix),
                None => spec.name == pattern,
            });
        assert!(hit.is_none(), "{pattern} is exported: {hit:?}");
    }
}

fn samples(metrics: &Metrics) -> BTreeMap<String, f64> {
    let text = String::from_utf8(metrics.render()).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn series_without_labels_exist_from_the_start() {
    let metrics = metrics();
    let samples = samples(&metrics);
    for spec in metrics.specs().iter().filter(|spec| spec.labels.is_empty()) {
        let series = match spec.kind {
            "histogram" => format!("{}_count", spec.name),
            _ => spec.name.clone(),
        };
        assert!(samples.contains_key(&series), "{series}");
    }
    assert_eq!(samples["etcd_debugging_mvcc_compact_revision"], -1.0);
    assert_eq!(
        samples[&format!(
            "etcd_server_version{{server_version=\"{}\"}}",
            crate::version::SERVER
        )],
        1.0
    );
}

#[test]
fn a_method_has_all_its_series_at_zero() {
    let metrics = metrics();
    let put = metrics.grpc.method(Kind::Unary, "etcdserverpb.KV", "Put");
    let labels =
        "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"".to_owned();
    let handled = |code: Code| {
        format!(
            "grpc_server_handled_total{{grpc_code=\"{}\",{labels}}}",
            code.name()
        )
    };
    let before = samples(&metrics);
    for code in Code::ALL {
        assert_eq!(before[&handled(code)], 0.0);
    }
    assert_eq!(
        before[&format!("grpc_server_started_total{{{labels}}}")],
        0.0
    );
    assert_eq!(
        before[&format!("grpc_server_handling_seconds_count{{{labels}}}")],
        0.0
    );
    put.started.inc();
    put.handled(Code::NotFound);
    let after = samples(&metrics);
    assert_eq!(after[&handled(Code::NotFound)], 1.0);
    assert_eq!(after[&handled(Code::Ok)], 0.0);
    assert_eq!(
        after[&format!("grpc_server_started_total{{{labels}}}")],
        1.0
    );
}

#[test]
fn durations_of_calls_only_when_extensive() {
    let basic = Metrics::new(&Options::default());
    assert!(basic.grpc.method(Kind::Unary, "s", "m").seconds.is_none());
    assert!(
        metrics()
            .grpc
            .method(Kind::Unary, "s", "m")
            .seconds
            .is_some()
    );
}

#[test]
fn client_versions_are_capped() {
    let metrics = metrics();
    let requests = &metrics.grpc.client_requests;
    for i in 0..1000 {
        requests.count(Kind::Unary, Some(&format!("v{i}")));
    }
    requests.count(Kind::BidiStream, Some("v0"));
    requests.count(Kind::Unary, Some(&"x".repeat(500)));
    requests.count(Kind::Unary, None);
    let samples = samples(&metrics);
    let series = |kind: &str, version: &str| {
        samples[&format!(
            "etcd_server_client_requests_total{{client_api_version=\"{version}\",type=\"{kind}\"}}"
        )]
    };
    assert_eq!(series("unary", "v0"), 1.0);
    assert_eq!(series("stream", "v0"), 1.0);
    assert_eq!(series("unary", "unknown"), 1000.0 - 64.0 + 2.0);
    let versions = samples
        .keys()
        .filter(|s| s.starts_with("etcd_server_client_requests_total"));
    assert_eq!(versions.count(), 2 * (64 + 1));
}

#[test]
fn names_of_3_4_repeat_today_s_values() {
    let metrics = metrics();
    metrics.mvcc.put.inc_by(3);
    metrics.mvcc.db_size.set(4096);
    metrics.render();
    metrics.mvcc.put.inc();
    let samples = samples(&metrics);
    assert_eq!(samples["etcd_debugging_mvcc_put_total"], 4.0);
    assert_eq!(samples["etcd_mvcc_put_total"], 4.0);
    assert_eq!(
        samples["etcd_debugging_mvcc_db_total_size_in_bytes"],
        4096.0
    );
}

#[test]
fn refreshes_run_before_each_scrape() {
    let metrics = metrics();
    metrics.on_scrape(|m| m.mvcc.keys.inc());
    metrics.render();
    assert_eq!(samples(&metrics)["etcd_debugging_mvcc_keys_total"], 2.0);
}

/// A wait that the engine has seen stands in the buckets of its cause.
#[test]
fn stalls_are_shown_by_cause() {
    let metrics = metrics();
    let took = std::time::Duration::from_millis(4);
    let series = |what: &str| format!("quorate_stall_seconds_{what}");
    let before = samples(&metrics);
    engine::stall::record(engine::stall::Cause::ChangesFull, took);
    let after = samples(&metrics);
    let grown = |name: String| after[&name] - before[&name];
    assert!(grown(series("count{cause=\"changes_full\"}")) >= 1.0);
    assert!(grown(series("sum{cause=\"changes_full\"}")) >= 0.004);
    assert!(grown(series("bucket{cause=\"changes_full\",le=\"0.005\"}")) >= 1.0);
    for cause in engine::stall::Cause::ALL {
        let name = series(&format!("bucket{{cause=\"{}\",le=\"+Inf\"}}", cause.name()));
        let count = series(&format!("count{{cause=\"{}\"}}", cause.name()));
        assert!(
            after.contains_key(&name) && after.contains_key(&count),
            "{name}"
        );
    }
}
