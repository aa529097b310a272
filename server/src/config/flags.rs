//! Every flag of etcd 3.6 and what this server does with it.
//!
//! One table drives parsing, `--help`, environment names, the config file and `docs/status.md`.
//!
//! Invariants:
//! 1. A flag that touches safety, TLS, authentication or membership and that is not honoured yet is
//!    refused by name when it is set to anything but its default, never ignored.
//! 2. A flag accepted without effect is reported at start when it is set.
//! 3. `docs/status.md` has exactly one row for each entry, with the same verdict; a test walks it.

/// The type of a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Free text.
    Text,
    /// `true` or `false`; bare `--flag` means true.
    Bool,
    /// A signed whole number.
    Int,
    /// An unsigned whole number.
    Uint,
    /// A Go duration such as `5s`; whole nanoseconds in the config file.
    Duration,
    /// Comma-separated; a YAML list in the config file.
    List,
}

/// What happens when a flag is set to something other than its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Honoured.
    Works,
    /// Accepted without effect; the text says why that is harmless.
    Warns(&'static str),
    /// Refused; the text says what is missing.
    Refused(&'static str),
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// Default as it would be typed.
    pub default: &'static str,
    /// Section of `--help`.
    pub section: &'static str,
    /// What setting it does.
    pub verdict: Verdict,
    /// One line for `--help`.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that sets this flag.
    pub fn env(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

const fn flag(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    verdict: Verdict,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        section,
        verdict,
        help,
    }
}

use Kind::{Bool, Duration, Int, List, Text, Uint};
use Verdict::{Refused, Warns, Works};

const MEMBER: &str = "Member";
const CLUSTERING: &str = "Clustering";
const SECURITY: &str = "Security";
const AUTH: &str = "Auth";
const MONITORING: &str = "Monitoring";
const LOGGING: &str = "Logging";
const TRACING: &str = "Distributed tracing";
const TUNING: &str = "Tuning";
const EXPERIMENTAL: &str = "Experimental (deprecated spellings)";
const UNSAFE: &str = "Unsafe";
const QUORATE: &str = "Quorate";
const MISC: &str = "Misc";

const NO_TLS: Verdict = Refused("TLS is not served yet");
const NO_PEERS: Verdict = Refused("clusters of several members are not supported yet");
const NO_DISCOVERY: Verdict = Refused("discovery is not supported yet");
const OWN_ENGINE: Verdict = Warns("the storage engine has no such setting");
const PEER_PACE: Verdict = Warns("a single member has no peer connections");
const ONE_MEMBER: Verdict = Warns("a single member has no peer to compare with");
const NO_TRACING: Verdict = Warns("traces are not exported");
const LEGACY: Verdict = Warns("a flag of etcd 2 without meaning since");

/// The table. Order is the order of `--help`.
pub const FLAGS: &[Flag] = &[
    flag(MEMBER, "name", Text, "default", Works, "Human-readable name for this member."),
    flag(MEMBER, "data-dir", Text, "${name}.etcd", Works, "Path to the data directory."),
    flag(MEMBER, "wal-dir", Text, "", Works, "Path to the dedicated log directory."),
    flag(MEMBER, "snapshot-count", Uint, "10000", Warns("checkpoints are made by size and time"), "Number of committed entries between raft snapshots."),
    flag(MEMBER, "snapshot-catchup-entries", Uint, "5000", Works, "Number of log entries kept behind a checkpoint for slow followers."),
    flag(MEMBER, "heartbeat-interval", Uint, "100", Works, "Time (in milliseconds) of a heartbeat interval."),
    flag(MEMBER, "election-timeout", Uint, "1000", Works, "Time (in milliseconds) for an election to timeout."),
    flag(MEMBER, "initial-election-tick-advance", Bool, "true", Warns("a single member elects itself at once"), "Whether to fast-forward initial election ticks on boot."),
    flag(MEMBER, "listen-peer-urls", Text, "http://localhost:2380", Warns("a single member serves no peers"), "List of URLs to listen on for peer traffic."),
    flag(MEMBER, "listen-client-urls", Text, "http://localhost:2379", Works, "List of URLs to listen on for client gRPC and HTTP traffic."),
    flag(MEMBER, "listen-client-http-urls", Text, "", Refused("separate HTTP listeners are not served yet"), "List of URLs to listen on for HTTP-only client traffic."),
    flag(MEMBER, "max-snapshots", Uint, "5", Warns("there are no snapshot files to keep"), "Maximum number of snapshot files to retain."),
    flag(MEMBER, "max-wals", Uint, "5", Warns("log segments are recycled"), "Maximum number of wal files to retain."),
    flag(MEMBER, "memory-mlock", Bool, "false", OWN_ENGINE, "Lock etcd pages into RAM."),
    flag(MEMBER, "quota-backend-bytes", Int, "0", Works, "Raise alarms when the store exceeds the given quota; 0 means 2 GiB, negative none."),
    flag(MEMBER, "backend-bbolt-freelist-type", Text, "map", OWN_ENGINE, "Freelist type of bbolt."),
    flag(MEMBER, "backend-batch-interval", Duration, "0s", OWN_ENGINE, "Maximum time before the backend transaction is committed."),
    flag(MEMBER, "backend-batch-limit", Int, "0", OWN_ENGINE, "Maximum operations before the backend transaction is committed."),
    flag(MEMBER, "max-txn-ops", Uint, "128", Works, "Maximum number of operations permitted in a transaction."),
    flag(MEMBER, "max-request-bytes", Uint, "1572864", Works, "Maximum client request size in bytes the server will accept."),
    flag(MEMBER, "max-concurrent-streams", Uint, "4294967295", Works, "Maximum concurrent streams that each client can open at a time."),
    flag(MEMBER, "grpc-keepalive-min-time", Duration, "5s", Warns("clients that ping often are not disconnected"), "Minimum interval that a client should wait before pinging the server."),
    flag(MEMBER, "grpc-keepalive-interval", Duration, "2h", Works, "Frequency of server-to-client pings to check if a connection is alive."),
    flag(MEMBER, "grpc-keepalive-timeout", Duration, "20s", Works, "Additional wait before closing a non-responsive connection."),
    flag(MEMBER, "socket-reuse-port", Bool, "false", Warns("listeners always allow quick re-binding; a port is never shared"), "Set SO_REUSEPORT on listeners."),
    flag(MEMBER, "socket-reuse-address", Bool, "false", Warns("always on"), "Set SO_REUSEADDR on listeners."),
    flag(MEMBER, "enable-grpc-gateway", Bool, "true", Warns("the JSON gateway is not served yet"), "Enable the JSON gateway."),
    flag(MEMBER, "raft-read-timeout", Duration, "5s", PEER_PACE, "Read timeout set on each rafthttp connection."),
    flag(MEMBER, "raft-write-timeout", Duration, "5s", PEER_PACE, "Write timeout set on each rafthttp connection."),
    flag(MEMBER, "feature-gates", Text, "", Works, "Comma-separated feature gates; unknown names are refused."),
    flag(CLUSTERING, "initial-advertise-peer-urls", Text, "http://localhost:2380", Works, "List of this member's peer URLs to advertise to the rest of the cluster."),
    flag(CLUSTERING, "initial-cluster", Text, "${name}=http://localhost:2380", Works, "Initial cluster configuration; must name this member alone for now."),
    flag(CLUSTERING, "initial-cluster-state", Text, "new", Works, "Initial cluster state; 'existing' is refused for now when there is no data."),
    flag(CLUSTERING, "initial-cluster-token", Text, "etcd-cluster", Works, "Initial cluster token; part of the ids."),
    flag(CLUSTERING, "advertise-client-urls", Text, "http://localhost:2379", Works, "List of this member's client URLs to advertise to the public."),
    flag(CLUSTERING, "discovery", Text, "", NO_DISCOVERY, "Discovery URL used to bootstrap the cluster."),
    flag(CLUSTERING, "discovery-proxy", Text, "", NO_DISCOVERY, "HTTP proxy to use for traffic to the discovery service."),
    flag(CLUSTERING, "discovery-fallback", Text, "exit", NO_DISCOVERY, "Expected behavior when discovery fails."),
    flag(CLUSTERING, "discovery-token", Text, "", NO_DISCOVERY, "V3 discovery: token."),
    flag(CLUSTERING, "discovery-endpoints", Text, "", NO_DISCOVERY, "V3 discovery: endpoints."),
    flag(CLUSTERING, "discovery-dial-timeout", Duration, "2s", NO_DISCOVERY, "V3 discovery: dial timeout."),
    flag(CLUSTERING, "discovery-request-timeout", Duration, "5s", NO_DISCOVERY, "V3 discovery: request timeout."),
    flag(CLUSTERING, "discovery-keepalive-time", Duration, "2s", NO_DISCOVERY, "V3 discovery: keepalive time."),
    flag(CLUSTERING, "discovery-keepalive-timeout", Duration, "6s", NO_DISCOVERY, "V3 discovery: keepalive timeout."),
    flag(CLUSTERING, "discovery-insecure-transport", Bool, "true", NO_DISCOVERY, "V3 discovery: disable transport security."),
    flag(CLUSTERING, "discovery-insecure-skip-tls-verify", Bool, "false", NO_DISCOVERY, "V3 discovery: skip server certificate verification."),
    flag(CLUSTERING, "discovery-cert", Text, "", NO_DISCOVERY, "V3 discovery: client certificate."),
    flag(CLUSTERING, "discovery-key", Text, "", NO_DISCOVERY, "V3 discovery: client key."),
    flag(CLUSTERING, "discovery-cacert", Text, "", NO_DISCOVERY, "V3 discovery: CA bundle."),
    flag(CLUSTERING, "discovery-user", Text, "", NO_DISCOVERY, "V3 discovery: user."),
    flag(CLUSTERING, "discovery-password", Text, "", NO_DISCOVERY, "V3 discovery: password."),
    flag(CLUSTERING, "discovery-srv", Text, "", NO_DISCOVERY, "DNS SRV domain used to bootstrap the cluster."),
    flag(CLUSTERING, "discovery-srv-name", Text, "", NO_DISCOVERY, "Suffix to the DNS SRV name queried when bootstrapping."),
    flag(CLUSTERING, "strict-reconfig-check", Bool, "true", NO_PEERS, "Reject reconfiguration requests that would cause quorum loss."),
    flag(CLUSTERING, "pre-vote", Bool, "true", Warns("a single member needs no votes"), "Enable the raft Pre-Vote algorithm."),
    flag(CLUSTERING, "auto-compaction-retention", Text, "0", Works, "Auto compaction retention length; 0 means off."),
    flag(CLUSTERING, "auto-compaction-mode", Text, "periodic", Works, "Interpret auto-compaction-retention as one of periodic|revision."),
    flag(CLUSTERING, "v2-deprecation", Text, "write-only", Warns("there is no v2 store"), "Phase of the v2store deprecation."),
    flag(CLUSTERING, "max-learners", Int, "1", NO_PEERS, "Maximum number of learners."),
    flag(SECURITY, "cert-file", Text, "", NO_TLS, "Path to the client server TLS cert file."),
    flag(SECURITY, "key-file", Text, "", NO_TLS, "Path to the client server TLS key file."),
    flag(SECURITY, "client-cert-auth", Bool, "false", NO_TLS, "Enable client cert authentication."),
    flag(SECURITY, "client-cert-file", Text, "", NO_TLS, "Path to an explicit client TLS cert file."),
    flag(SECURITY, "client-key-file", Text, "", NO_TLS, "Path to an explicit client TLS key file."),
    flag(SECURITY, "client-crl-file", Text, "", NO_TLS, "Path to the client certificate revocation list file."),
    flag(SECURITY, "client-cert-allowed-hostname", Text, "", NO_TLS, "Comma-separated list of SAN hostnames for client cert authentication."),
    flag(SECURITY, "trusted-ca-file", Text, "", NO_TLS, "Path to the client server TLS trusted CA cert file."),
    flag(SECURITY, "auto-tls", Bool, "false", NO_TLS, "Client TLS using generated certificates."),
    flag(SECURITY, "peer-cert-file", Text, "", NO_TLS, "Path to the peer server TLS cert file."),
    flag(SECURITY, "peer-key-file", Text, "", NO_TLS, "Path to the peer server TLS key file."),
    flag(SECURITY, "peer-client-cert-auth", Bool, "false", NO_TLS, "Enable peer client cert authentication."),
    flag(SECURITY, "peer-client-cert-file", Text, "", NO_TLS, "Path to an explicit peer client TLS cert file."),
    flag(SECURITY, "peer-client-key-file", Text, "", NO_TLS, "Path to an explicit peer client TLS key file."),
    flag(SECURITY, "peer-trusted-ca-file", Text, "", NO_TLS, "Path to the peer server TLS trusted CA file."),
    flag(SECURITY, "peer-cert-allowed-cn", Text, "", NO_TLS, "Comma-separated list of CNs for inter-peer TLS authentication."),
    flag(SECURITY, "peer-cert-allowed-hostname", Text, "", NO_TLS, "Comma-separated list of SAN hostnames for inter-peer TLS authentication."),
    flag(SECURITY, "peer-auto-tls", Bool, "false", NO_TLS, "Peer TLS using self-generated certificates."),
    flag(SECURITY, "peer-crl-file", Text, "", NO_TLS, "Path to the peer certificate revocation list file."),
    flag(SECURITY, "peer-skip-client-san-verification", Bool, "false", NO_TLS, "Skip verification of SAN field in client certificate for peer connections."),
    flag(SECURITY, "self-signed-cert-validity", Uint, "1", NO_TLS, "Validity period of self-signed certificates, in years."),
    flag(SECURITY, "cipher-suites", List, "", NO_TLS, "Comma-separated list of supported TLS cipher suites."),
    flag(SECURITY, "tls-min-version", Text, "TLS1.2", NO_TLS, "Minimum TLS version."),
    flag(SECURITY, "tls-max-version", Text, "", NO_TLS, "Maximum TLS version."),
    flag(SECURITY, "cors", Text, "*", Works, "Comma-separated whitelist of origins for CORS."),
    flag(SECURITY, "host-whitelist", Text, "*", Works, "Acceptable hostnames from HTTP client requests."),
    flag(AUTH, "auth-token", Text, "simple", Refused("authentication is not supported yet"), "Token type: 'simple' or 'jwt,...'."),
    flag(AUTH, "auth-token-ttl", Uint, "300", Refused("authentication is not supported yet"), "Time (in seconds) of the auth-token-ttl."),
    flag(AUTH, "bcrypt-cost", Uint, "10", Refused("authentication is not supported yet"), "Cost of the bcrypt algorithm for hashing passwords."),
    flag(MONITORING, "metrics", Text, "basic", Works, "Level of detail for exported metrics: basic or extensive."),
    flag(MONITORING, "listen-metrics-urls", Text, "", Works, "List of URLs to listen on for the metrics and health endpoints."),
    flag(MONITORING, "enable-pprof", Bool, "false", Warns("there is no Go profiler"), "Enable runtime profiling data via HTTP."),
    flag(LOGGING, "logger", Text, "zap", Works, "Structured logger; only 'zap' is known."),
    flag(LOGGING, "log-outputs", List, "default", Works, "default, stderr, stdout, or a list of file paths."),
    flag(LOGGING, "log-level", Text, "info", Works, "debug, info, warn, error, dpanic, panic or fatal."),
    flag(LOGGING, "log-format", Text, "json", Works, "json or console."),
    flag(LOGGING, "enable-log-rotation", Bool, "false", Refused("log files are not rotated by the server"), "Enable log rotation of a single log-outputs file target."),
    flag(LOGGING, "log-rotation-config-json", Text, r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#, Warns("log files are not rotated by the server"), "Log rotation settings."),
    flag(LOGGING, "warning-apply-duration", Duration, "100ms", Works, "Duration after which an apply is counted as slow."),
    flag(LOGGING, "warning-unary-request-duration", Duration, "300ms", Warns("slow requests show in the metrics"), "Duration after which a unary request is logged as slow."),
    flag(TRACING, "enable-distributed-tracing", Bool, "false", NO_TRACING, "Enable distributed tracing."),
    flag(TRACING, "distributed-tracing-address", Text, "localhost:4317", NO_TRACING, "Address of the tracing collector."),
    flag(TRACING, "distributed-tracing-service-name", Text, "etcd", NO_TRACING, "Service name in traces."),
    flag(TRACING, "distributed-tracing-instance-id", Text, "", NO_TRACING, "Instance id in traces."),
    flag(TRACING, "distributed-tracing-sampling-rate", Int, "0", NO_TRACING, "Samples per million spans."),
    flag(TUNING, "corrupt-check-time", Duration, "0s", ONE_MEMBER, "Duration of time between cluster corruption check passes."),
    flag(TUNING, "compact-hash-check-time", Duration, "1m", ONE_MEMBER, "Duration of time between leader checks of followers' compaction hashes."),
    flag(TUNING, "compaction-batch-limit", Int, "1000", Warns("compaction drops whole chunks in small slices"), "Maximum revisions deleted in each compaction batch."),
    flag(TUNING, "compaction-sleep-interval", Duration, "10ms", Warns("compaction drops whole chunks in small slices"), "Sleep interval between compaction batches."),
    flag(TUNING, "watch-progress-notify-interval", Duration, "10m", Works, "Duration of periodic watch progress notifications."),
    flag(TUNING, "bootstrap-defrag-threshold-megabytes", Uint, "0", Warns("space is reclaimed while running"), "Defragment at start if it frees this much."),
    flag(TUNING, "downgrade-check-time", Duration, "5s", Warns("downgrades are not supported yet"), "Duration of time between two downgrade status checks."),
    flag(UNSAFE, "force-new-cluster", Bool, "false", NO_PEERS, "Force to create a new one-member cluster."),
    flag(UNSAFE, "unsafe-no-fsync", Bool, "false", Warns("writes are always made durable"), "Disable fsync."),
    flag(QUORATE, "wal-backend", Text, "auto", Works, "How log and tree files are written: auto, uring or sync."),
    flag(QUORATE, "cache-bytes", Uint, "268435456", Works, "Memory for cached pages of the tree file, in bytes."),
    flag(MISC, "config-file", Text, "", Works, "Path to the server configuration file; other flags and the environment are then ignored."),
    flag(EXPERIMENTAL, "experimental-initial-corrupt-check", Bool, "false", ONE_MEMBER, "Feature gate InitialCorruptCheck."),
    flag(EXPERIMENTAL, "experimental-corrupt-check-time", Duration, "0s", ONE_MEMBER, "See corrupt-check-time."),
    flag(EXPERIMENTAL, "experimental-compact-hash-check-enabled", Bool, "false", ONE_MEMBER, "Feature gate CompactHashCheck."),
    flag(EXPERIMENTAL, "experimental-compact-hash-check-time", Duration, "1m", ONE_MEMBER, "See compact-hash-check-time."),
    flag(EXPERIMENTAL, "experimental-enable-lease-checkpoint", Bool, "false", Warns("remaining lease times are not checkpointed yet"), "Feature gate LeaseCheckpoint."),
    flag(EXPERIMENTAL, "experimental-enable-lease-checkpoint-persist", Bool, "false", Warns("remaining lease times are not checkpointed yet"), "Feature gate LeaseCheckpointPersist."),
    flag(EXPERIMENTAL, "experimental-compaction-batch-limit", Int, "1000", Warns("compaction drops whole chunks in small slices"), "See compaction-batch-limit."),
    flag(EXPERIMENTAL, "experimental-compaction-sleep-interval", Duration, "10ms", Warns("compaction drops whole chunks in small slices"), "See compaction-sleep-interval."),
    flag(EXPERIMENTAL, "experimental-peer-skip-client-san-verification", Bool, "false", NO_TLS, "See peer-skip-client-san-verification."),
    flag(EXPERIMENTAL, "experimental-watch-progress-notify-interval", Duration, "10m", Works, "See watch-progress-notify-interval."),
    flag(EXPERIMENTAL, "experimental-warning-apply-duration", Duration, "100ms", Works, "See warning-apply-duration."),
    flag(EXPERIMENTAL, "experimental-warning-unary-request-duration", Duration, "300ms", Warns("slow requests show in the metrics"), "See warning-unary-request-duration."),
    flag(EXPERIMENTAL, "experimental-txn-mode-write-with-shared-buffer", Bool, "true", OWN_ENGINE, "Feature gate TxnModeWriteWithSharedBuffer."),
    flag(EXPERIMENTAL, "experimental-bootstrap-defrag-threshold-megabytes", Uint, "0", Warns("space is reclaimed while running"), "See bootstrap-defrag-threshold-megabytes."),
    flag(EXPERIMENTAL, "experimental-downgrade-check-time", Duration, "5s", Warns("downgrades are not supported yet"), "See downgrade-check-time."),
    flag(EXPERIMENTAL, "experimental-memory-mlock", Bool, "false", OWN_ENGINE, "See memory-mlock."),
    flag(EXPERIMENTAL, "experimental-snapshot-catchup-entries", Uint, "5000", Works, "See snapshot-catchup-entries."),
    flag(EXPERIMENTAL, "experimental-stop-grpc-service-on-defrag", Bool, "false", Warns("defragmentation stops nothing"), "Feature gate StopGRPCServiceOnDefrag."),
    flag(EXPERIMENTAL, "experimental-enable-distributed-tracing", Bool, "false", NO_TRACING, "See enable-distributed-tracing."),
    flag(EXPERIMENTAL, "experimental-distributed-tracing-address", Text, "localhost:4317", NO_TRACING, "See distributed-tracing-address."),
    flag(EXPERIMENTAL, "experimental-distributed-tracing-service-name", Text, "etcd", NO_TRACING, "See distributed-tracing-service-name."),
    flag(EXPERIMENTAL, "experimental-distributed-tracing-instance-id", Text, "", NO_TRACING, "See distributed-tracing-instance-id."),
    flag(EXPERIMENTAL, "experimental-distributed-tracing-sampling-rate", Int, "0", NO_TRACING, "See distributed-tracing-sampling-rate."),
    flag(MISC, "cluster-active-size", Text, "", LEGACY, "Ignored."),
    flag(MISC, "cluster-remove-delay", Text, "", LEGACY, "Ignored."),
    flag(MISC, "cluster-sync-interval", Text, "", LEGACY, "Ignored."),
    flag(MISC, "config", Text, "", LEGACY, "Ignored."),
    flag(MISC, "force", Bool, "false", LEGACY, "Ignored."),
    flag(MISC, "max-result-buffer", Text, "", LEGACY, "Ignored."),
    flag(MISC, "max-retry-attempts", Text, "", LEGACY, "Ignored."),
    flag(MISC, "peer-heartbeat-interval", Text, "", LEGACY, "Ignored."),
    flag(MISC, "peer-election-timeout", Text, "", LEGACY, "Ignored."),
    flag(MISC, "retry-interval", Text, "", LEGACY, "Ignored."),
    flag(MISC, "snapshot", Bool, "false", LEGACY, "Ignored."),
    flag(MISC, "v", Bool, "false", LEGACY, "Ignored."),
    flag(MISC, "vv", Bool, "false", LEGACY, "Ignored."),
];

/// Feature gates of etcd 3.6 and 3.7 with their defaults.
pub const FEATURE_GATES: &[(&str, bool)] = &[
    ("AllAlpha", false),
    ("AllBeta", false),
    ("CompactHashCheck", false),
    ("FastLeaseKeepAlive", true),
    ("InitialCorruptCheck", false),
    ("LeaseCheckpoint", false),
    ("LeaseCheckpointPersist", false),
    ("PriorityRequest", false),
    ("SetMemberLocalAddr", false),
    ("StopGRPCServiceOnDefrag", false),
    ("TxnModeWriteWithSharedBuffer", true),
];

/// The entry of a flag.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|f| f.name == name)
}
