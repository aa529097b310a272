//! What the gRPC layer counts: calls begun, ended by code, and messages, for each method.
//!
//! Every method gets its handles once, when the server is put together; a call then touches atomics
//! only and looks nothing up by label.

use super::Builder;
use crate::status::Code;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};
use std::collections::BTreeMap;
use std::sync::RwLock;

/// How many messages go which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl Kind {
    /// The value of the label `grpc_type`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

/// The gRPC metrics.
pub struct Grpc {
    started: IntCounterVec,
    handled: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    seconds: Option<HistogramVec>,
    /// Calls by kind and client version.
    pub client_requests: ClientRequests,
}

const METHOD: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
const METHOD_AND_CODE: [&str; 4] = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
const SECONDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

impl Grpc {
    pub(super) fn new(b: &mut Builder, extensive: bool) -> Grpc {
        Grpc {
            started: b.counters("grpc_server_started_total", "Calls begun.", &METHOD),
            handled: b.counters(
                "grpc_server_handled_total",
                "Calls ended, by code.",
                &METHOD_AND_CODE,
            ),
            received: b.counters(
                "grpc_server_msg_received_total",
                "Messages received.",
                &METHOD,
            ),
            sent: b.counters("grpc_server_msg_sent_total", "Messages sent.", &METHOD),
            seconds: extensive.then(|| {
                b.histograms(
                    "grpc_server_handling_seconds",
                    "Time from the beginning of a call to its end.",
                    &METHOD,
                    SECONDS.to_vec(),
                )
            }),
            client_requests: ClientRequests::new(b),
        }
    }

    /// The handles of one method; its series exist, at zero, from now on.
    pub fn method(&self, kind: Kind, service: &str, method: &str) -> MethodMetrics {
        let labels = [kind.label(), service, method];
        MethodMetrics {
            started: self.started.with_label_values(&labels),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            handled: Code::ALL.map(|code| {
                self.handled
                    .with_label_values(&[kind.label(), service, method, code.name()])
            }),
            seconds: self.seconds.as_ref().map(|s| s.with_label_values(&labels)),
        }
    }
}

/// The handles of one method.
#[derive(Clone)]
pub struct MethodMetrics {
    /// Calls begun.
    pub started: IntCounter,
    /// Messages received.
    pub received: IntCounter,
    /// Messages sent.
    pub sent: IntCounter,
    handled: [IntCounter; 17],
    /// Duration of calls; only with `--metrics extensive`.
    pub seconds: Option<Histogram>,
}

impl MethodMetrics {
    /// Counts the end of a call.
    pub fn handled(&self, code: Code) {
        self.handled[code as usize].inc();
    }
}

/// `etcd_server_client_requests_total`. The version comes from the client, so the number of different
/// ones that are counted apart is capped; the rest counts as `unknown`.
pub struct ClientRequests {
    counters: IntCounterVec,
    unknown: [IntCounter; 2],
    known: RwLock<BTreeMap<Box<str>, [IntCounter; 2]>>,
}

/// Versions counted apart.
const VERSIONS_MAX: usize = 64;
/// Longest version that is counted apart, in bytes.
const VERSION_BYTES_MAX: usize = 64;
const UNKNOWN: &str = "unknown";

impl ClientRequests {
    fn new(b: &mut Builder) -> ClientRequests {
        let counters = b.counters(
            "etcd_server_client_requests_total",
            "Calls by the version of the client.",
            &["type", "client_api_version"],
        );
        ClientRequests {
            unknown: resolve(&counters, UNKNOWN),
            known: RwLock::new(BTreeMap::new()),
            counters,
        }
    }

    /// Counts a call of a client that named this version.
    pub fn count(&self, kind: Kind, version: Option<&str>) {
        let at = usize::from(kind != Kind::Unary);
        let Some(version) = version else {
            return self.unknown[at].inc();
        };
        let known = self.known.read().unwrap_or_else(|p| p.into_inner());
        if let Some(counters) = known.get(version) {
            return counters[at].inc();
        }
        drop(known);
        self.learn(version)[at].inc();
    }

    fn learn(&self, version: &str) -> [IntCounter; 2] {
        let mut known = self.known.write().unwrap_or_else(|p| p.into_inner());
        if let Some(counters) = known.get(version) {
            return counters.clone();
        }
        if known.len() >= VERSIONS_MAX || version.len() > VERSION_BYTES_MAX {
            return self.unknown.clone();
        }
        let counters = resolve(&self.counters, version);
        known.insert(version.into(), counters.clone());
        counters
    }
}

fn resolve(counters: &IntCounterVec, version: &str) -> [IntCounter; 2] {
    ["unary", "stream"].map(|kind| counters.with_label_values(&[kind, version]))
}
