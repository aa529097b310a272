//! Where the settings of a member come from: flags, `ETCD_*` variables, or one config file.
//!
//! The rules are etcd's. With a config file everything else is ignored. A setting given both as a
//! flag and in the environment is an error. Unknown flags are errors that name the flag; unknown
//! `ETCD_*` variables are only warned about, because charts set several of their own.
//!
//! Invariants:
//! 1. Every value is checked against its flag's type before anything else happens.
//! 2. A flag that cannot be honoured is refused by name when set (see [`flags`]).
//! 3. Parsing touches no file but the config file and changes nothing.

pub mod duration;
pub mod flags;
pub mod urls;

use clap::parser::ValueSource;
use flags::{FEATURE_GATES, FLAGS, Flag, Kind, Verdict};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use urls::{Endpoint, InitialCluster};

/// A start that cannot go on, with the exit status etcd uses for it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong; one line.
    pub message: String,
    /// Process exit status: 2 for the command line itself, 1 for values.
    pub exit: i32,
}

fn bad(message: impl Into<String>) -> ConfigError {
    ConfigError {
        message: message.into(),
        exit: 1,
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Start a member.
    Run(Box<Config>),
    /// Print this and exit with status 0.
    Print(String),
}

/// `--auto-compaction-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// No automatic compaction.
    Off,
    /// Keep this much time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revisions(i64),
}

/// How files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalBackend {
    /// What measured best: blocking calls for the log; for the tree io_uring where a probe works.
    Auto,
    /// io_uring or refuse to start.
    Uring,
    /// Blocking calls.
    Sync,
}

/// The checked settings of a member.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // named after the flags
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub wal_dir: Option<PathBuf>,
    pub snapshot_catchup_entries: u64,
    pub heartbeat: Duration,
    pub election: Duration,
    pub listen_client_urls: Vec<Endpoint>,
    pub listen_metrics_urls: Vec<Endpoint>,
    /// As given; members publish them literally.
    pub advertise_client_urls: Vec<String>,
    pub advertise_peer_urls: Vec<String>,
    pub initial_cluster: InitialCluster,
    pub initial_cluster_existing: bool,
    pub initial_cluster_token: String,
    pub quota_backend_bytes: i64,
    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    pub max_concurrent_streams: u32,
    pub grpc_keepalive_min_time: Duration,
    pub grpc_keepalive_interval: Duration,
    pub grpc_keepalive_timeout: Duration,
    pub auto_compaction: AutoCompaction,
    pub cors: Vec<String>,
    pub host_whitelist: Vec<String>,
    pub metrics_extensive: bool,
    pub log_outputs: Vec<String>,
    pub log_level: String,
    pub log_console: bool,
    pub warning_apply: Duration,
    pub watch_progress_notify_interval: Duration,
    pub wal_backend: WalBackend,
    pub cache_bytes: usize,
    /// In percent, 100 at most.
    pub fragmentation_max: u64,
    pub scrub_bytes_per_second: u64,
    pub history_pin_max: Duration,
    pub wal_accept_loss: bool,
    /// Lines to log once logging is up: flags without effect, unknown variables.
    pub warnings: Vec<String>,
}

/// Raw settings by flag name.
struct Values {
    set: BTreeMap<&'static str, String>,
}

impl Values {
    fn text(&self, name: &'static str) -> &str {
        match self.set.get(name) {
            Some(value) => value,
            // Every name asked for here stands in the table; a test walks them.
            None => flags::find(name).map_or("", |f| f.default),
        }
    }

    fn is_set(&self, name: &'static str) -> bool {
        self.set.contains_key(name)
    }

    fn duration(&self, name: &'static str) -> Result<Duration, ConfigError> {
        duration::parse(self.text(name))
            .map_err(|e| bad(format!("invalid value for --{name}: {e}")))
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, ConfigError> {
        let text = self.text(name);
        text.parse().map_err(|_| {
            bad(format!(
                "invalid value {text:?} for --{name}: not a number in range"
            ))
        })
    }

    fn list(&self, name: &'static str) -> Vec<String> {
        self.text(name)
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The value of a flag or, when only that is set, of its deprecated spelling.
    fn with_old_spelling(&self, name: &'static str, old: &'static str) -> &'static str {
        if self.is_set(old) && !self.is_set(name) {
            old
        } else {
            name
        }
    }
}

/// The text of `--version`.
pub fn version_text() -> String {
    format!(
        "etcd Version: {}\nGit SHA: quorate\nGo Version: none (Rust)\nGo OS/Arch: {}/{}\nQuorate Version: {}\n",
        crate::version::SERVER,
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        env!("CARGO_PKG_VERSION"),
    )
}

fn command() -> clap::Command {
    let mut command = clap::Command::new("quorate")
        .about("A drop-in replacement for etcd")
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(120)
        .arg(
            clap::Arg::new("version")
                .long("version")
                .action(clap::ArgAction::SetTrue)
                .help("Print the version and exit."),
        );
    for flag in FLAGS {
        let mut arg = clap::Arg::new(flag.name)
            .long(flag.name)
            .help_heading(flag.section)
            .action(clap::ArgAction::Set)
            .overrides_with(flag.name)
            .allow_hyphen_values(true)
            .help(help_line(flag));
        if flag.kind == Kind::Bool {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        command = command.arg(arg);
    }
    command
}

fn help_line(flag: &Flag) -> String {
    let default = if flag.default.is_empty() {
        String::new()
    } else {
        format!(" [default: {}]", flag.default)
    };
    let verdict = match flag.verdict {
        Verdict::Works => String::new(),
        Verdict::Warns(why) => format!(" (no effect: {why})"),
        Verdict::Refused(why) => format!(" (refused: {why})"),
    };
    format!("{}{default}{verdict}", flag.help)
}

/// Go's flag package takes one dash or two; clap wants two.
fn two_dashes(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
            format!("-{text}").into()
        }
        _ => arg,
    }
}

/// Reads the command line (without the program's name) and the environment.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Request, ConfigError> {
    let args = std::iter::once(OsString::from("quorate")).chain(args.into_iter().map(two_dashes));
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) if e.kind() == clap::error::ErrorKind::DisplayHelp => {
            return Ok(Request::Print(e.to_string()));
        }
        Err(e) => {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or("bad command line");
            return Err(ConfigError {
                message: line.trim_start_matches("error: ").to_owned(),
                exit: 2,
            });
        }
    };
    if matches.get_flag("version") {
        return Ok(Request::Print(version_text()));
    }

    let mut warnings = Vec::new();
    let mut from_flags = BTreeMap::new();
    for flag in FLAGS {
        if matches.value_source(flag.name) == Some(ValueSource::CommandLine)
            && let Some(value) = matches.get_one::<String>(flag.name)
        {
            from_flags.insert(flag.name, value.clone());
        }
    }
    let mut from_env: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (key, value) in env {
        let (Some(key), Some(value)) = (key.to_str(), value.to_str()) else {
            continue;
        };
        if !key.starts_with("ETCD_") || value.is_empty() {
            continue;
        }
        match FLAGS.iter().find(|f| f.env() == key) {
            Some(flag) => {
                from_env.insert(flag.name, value.to_owned());
            }
            None if key == "ETCD_UNSUPPORTED_ARCH" => {}
            None => unknown.push(key.to_owned()),
        }
    }

    let file = from_flags
        .get("config-file")
        .or_else(|| from_env.get("config-file"))
        .cloned();
    let set = match file {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|e| bad(format!("cannot read the configuration file {path}: {e}")))?;
            warnings.push(format!(
                "loaded server configuration from {path}; other command line flags and environment variables are ignored"
            ));
            from_file(&text).map_err(|e| bad(format!("configuration file {path}: {e}")))?
        }
        None => {
            if let Some(name) = from_flags.keys().find(|n| from_env.contains_key(*n)) {
                let variable = flags::find(name).map(Flag::env).unwrap_or_default();
                return Err(bad(format!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag (either unset environment variable or disable flag)"
                )));
            }
            unknown.sort();
            warnings.extend(
                unknown
                    .into_iter()
                    .map(|key| format!("unrecognized environment variable {key}")),
            );
            from_env.append(&mut from_flags);
            from_env
        }
    };
    build(Values { set }, warnings).map(|c| Request::Run(Box::new(c)))
}

/// Reads the YAML form. Unknown keys are ignored, types are strict.
fn from_file(text: &str) -> Result<BTreeMap<&'static str, String>, String> {
    use serde_norway::Value;
    let root: Value = serde_norway::from_str(text).map_err(|e| e.to_string())?;
    let mut set = BTreeMap::new();
    let Value::Mapping(root) = root else {
        return match root {
            Value::Null => Ok(set),
            _ => Err("not a mapping".to_owned()),
        };
    };
    for (key, value) in &root {
        let Some(key) = key.as_str() else { continue };
        match (key, value) {
            ("client-transport-security", Value::Mapping(tls)) => {
                tls_section(tls, "", &mut set)?;
            }
            ("peer-transport-security", Value::Mapping(tls)) => {
                tls_section(tls, "peer-", &mut set)?;
            }
            ("socket-options", Value::Mapping(options)) => {
                for (name, value) in options {
                    let flag = match name.as_str() {
                        Some("reuse-port") => "socket-reuse-port",
                        Some("reuse-address") => "socket-reuse-address",
                        _ => continue,
                    };
                    if let Some(flag) = flags::find(flag) {
                        set.insert(flag.name, scalar(flag, value)?);
                    }
                }
            }
            ("discovery-config", Value::Mapping(_)) => {
                set.insert("discovery-token", "config".to_owned());
            }
            ("experimental-snapshot-catch-up-entries", value) => {
                if let Some(flag) = flags::find("snapshot-catchup-entries") {
                    set.insert(flag.name, scalar(flag, value)?);
                }
            }
            _ => {
                if let Some(flag) = flags::find(key) {
                    set.insert(flag.name, scalar(flag, value)?);
                }
            }
        }
    }
    Ok(set)
}

fn tls_section(
    section: &serde_norway::Mapping,
    prefix: &str,
    set: &mut BTreeMap<&'static str, String>,
) -> Result<(), String> {
    for (key, value) in section {
        let Some(key) = key.as_str() else { continue };
        let name = match (prefix, key) {
            ("", "allowed-hostname") => "client-cert-allowed-hostname".to_owned(),
            ("peer-", "allowed-cn") => "peer-cert-allowed-cn".to_owned(),
            ("peer-", "allowed-hostname") => "peer-cert-allowed-hostname".to_owned(),
            (_, "client-cert-file" | "client-key-file") => format!("{prefix}{key}"),
            ("peer-", "skip-client-san-verification") => {
                "peer-skip-client-san-verification".to_owned()
            }
            _ => format!("{prefix}{key}"),
        };
        if let Some(flag) = flags::find(&name) {
            let text = match value {
                serde_norway::Value::Sequence(items) => list(flag.name, items)?,
                _ => scalar(flag, value)?,
            };
            set.insert(flag.name, text);
        }
    }
    Ok(())
}

fn list(name: &str, items: &[serde_norway::Value]) -> Result<String, String> {
    let items: Option<Vec<&str>> = items.iter().map(|i| i.as_str()).collect();
    items
        .map(|i| i.join(","))
        .ok_or_else(|| format!("{name}: a list of strings is expected"))
}

/// The text form of a YAML value, if it has the flag's type.
fn scalar(flag: &Flag, value: &serde_norway::Value) -> Result<String, String> {
    use serde_norway::Value;
    let name = flag.name;
    match (flag.kind, value) {
        (_, Value::Null) => Ok(flag.default.to_owned()),
        (Kind::Bool, Value::Bool(b)) => Ok(b.to_string()),
        (Kind::Int | Kind::Uint, Value::Number(n)) if n.is_i64() || n.is_u64() => Ok(n.to_string()),
        (Kind::Duration, Value::Number(n)) => n
            .as_u64()
            .map(|ns| format!("{ns}ns"))
            .ok_or_else(|| format!("{name}: whole nanoseconds are expected")),
        (Kind::Text, Value::String(s)) => Ok(s.clone()),
        (Kind::List, Value::Sequence(items)) => list(name, items),
        (kind, _) => Err(format!(
            "{name}: expected {}",
            match kind {
                Kind::Bool => "true or false",
                Kind::Int | Kind::Uint => "a whole number",
                Kind::Duration => "whole nanoseconds (a number, not a string)",
                Kind::List => "a list of strings",
                Kind::Text => "a string",
            }
        )),
    }
}

/// Checks one value against its flag's type.
fn check_type(flag: &Flag, value: &str) -> Result<(), String> {
    let ok = match flag.kind {
        Kind::Text | Kind::List => true,
        Kind::Bool => parse_bool(value).is_some(),
        Kind::Int => value.parse::<i64>().is_ok(),
        Kind::Uint => value.parse::<u64>().is_ok(),
        Kind::Duration => return duration::parse(value).map(drop),
    };
    ok.then_some(()).ok_or_else(|| "parse error".to_owned())
}

/// What Go's strconv.ParseBool takes.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a value differs from the flag's default.
fn differs(flag: &Flag, value: &str) -> bool {
    match flag.kind {
        Kind::Bool => parse_bool(value) != parse_bool(flag.default),
        Kind::Duration => duration::parse(value).ok() != duration::parse(flag.default).ok(),
        Kind::Int | Kind::Uint => value.parse::<i128>().ok() != flag.default.parse::<i128>().ok(),
        Kind::Text | Kind::List => value != flag.default,
    }
}

fn build(values: Values, mut warnings: Vec<String>) -> Result<Config, ConfigError> {
    for (name, value) in &values.set {
        let Some(flag) = flags::find(name) else {
            continue;
        };
        check_type(flag, value).map_err(|e| ConfigError {
            message: format!("invalid value {value:?} for flag --{name}: {e}"),
            exit: 2,
        })?;
        if differs(flag, value) {
            match flag.verdict {
                Verdict::Works => {}
                Verdict::Warns(why) => {
                    warnings.push(format!("flag --{name} has no effect: {why}"));
                }
                Verdict::Refused(why) => {
                    return Err(bad(format!("flag --{name}={value} is refused: {why}")));
                }
            }
        }
        if name.starts_with("experimental-") {
            warnings.push(format!("flag --{name} is deprecated"));
        }
    }
    feature_gates(values.text("feature-gates"), &mut warnings)?;
    if values.text("logger") != "zap" {
        return Err(bad(format!("unknown logger {:?}", values.text("logger"))));
    }

    let name = values.text("name").to_owned();
    let data_dir = match values.is_set("data-dir") && !values.text("data-dir").is_empty() {
        true => PathBuf::from(values.text("data-dir")),
        false => PathBuf::from(format!("{name}.etcd")),
    };
    let wal_dir = Some(values.text("wal-dir"))
        .filter(|d| !d.is_empty())
        .map(PathBuf::from);

    let heartbeat_ms: u64 = values.number("heartbeat-interval")?;
    let election_ms: u64 = values.number("election-timeout")?;
    if heartbeat_ms == 0 || election_ms == 0 {
        return Err(bad(
            "heartbeat-interval and election-timeout must be positive",
        ));
    }
    if election_ms < 5 * heartbeat_ms {
        return Err(bad(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
        )));
    }
    if election_ms > 50_000 {
        return Err(bad(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than 50000ms"
        )));
    }

    if values.is_set("listen-client-urls") && !values.is_set("advertise-client-urls") {
        return Err(bad(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ));
    }
    let listen_client_urls = endpoints(&values, "listen-client-urls")?;
    let listen_metrics_urls = endpoints(&values, "listen-metrics-urls")?;
    endpoints(&values, "listen-peer-urls")?;
    let advertise_client_urls = urls::advertised(values.text("advertise-client-urls"))
        .map_err(|e| bad(format!("--advertise-client-urls: {e}")))?;
    let advertise_peer_urls = urls::advertised(values.text("initial-advertise-peer-urls"))
        .map_err(|e| bad(format!("--initial-advertise-peer-urls: {e}")))?;
    let initial_cluster = match values.is_set("initial-cluster") {
        true => InitialCluster::parse(values.text("initial-cluster"))
            .map_err(|e| bad(format!("--initial-cluster: {e}")))?,
        false => InitialCluster::single(&name, &advertise_peer_urls),
    };
    let initial_cluster_existing = match values.text("initial-cluster-state") {
        "new" => false,
        "existing" => true,
        other => {
            return Err(bad(format!(
                "invalid value {other:?} for --initial-cluster-state"
            )));
        }
    };

    let cache_bytes: u64 = values.number("cache-bytes")?;
    let fragmentation_max: u64 = values.number("fragmentation-max")?;
    if fragmentation_max > 100 {
        return Err(bad("--fragmentation-max is a percentage"));
    }
    let quota_backend_bytes: i64 = values.number("quota-backend-bytes")?;
    let streams: u64 = values.number("max-concurrent-streams")?;
    let watch_progress = values.with_old_spelling(
        "watch-progress-notify-interval",
        "experimental-watch-progress-notify-interval",
    );
    let warning_apply = values.with_old_spelling(
        "warning-apply-duration",
        "experimental-warning-apply-duration",
    );
    let catchup = values.with_old_spelling(
        "snapshot-catchup-entries",
        "experimental-snapshot-catchup-entries",
    );
    Ok(Config {
        data_dir,
        wal_dir,
        snapshot_catchup_entries: values.number(catchup)?,
        heartbeat: Duration::from_millis(heartbeat_ms),
        election: Duration::from_millis(election_ms),
        listen_client_urls,
        listen_metrics_urls,
        advertise_client_urls,
        advertise_peer_urls,
        initial_cluster,
        initial_cluster_existing,
        initial_cluster_token: values.text("initial-cluster-token").to_owned(),
        quota_backend_bytes,
        max_txn_ops: values.number("max-txn-ops")?,
        max_request_bytes: values.number("max-request-bytes")?,
        max_concurrent_streams: streams.min(u64::from(u32::MAX)) as u32,
        grpc_keepalive_min_time: values.duration("grpc-keepalive-min-time")?,
        grpc_keepalive_interval: values.duration("grpc-keepalive-interval")?,
        grpc_keepalive_timeout: values.duration("grpc-keepalive-timeout")?,
        auto_compaction: auto_compaction(
            values.text("auto-compaction-mode"),
            values.text("auto-compaction-retention"),
        )?,
        cors: values.list("cors"),
        host_whitelist: values.list("host-whitelist"),
        metrics_extensive: match values.text("metrics") {
            "basic" => false,
            "extensive" => true,
            other => return Err(bad(format!("invalid value {other:?} for --metrics"))),
        },
        log_outputs: log_outputs(&values)?,
        log_level: match values.text("log-level") {
            level @ ("debug" | "info" | "warn" | "error" | "dpanic" | "panic" | "fatal") => {
                level.to_owned()
            }
            other => return Err(bad(format!("unrecognized level: {other:?} (--log-level)"))),
        },
        log_console: match values.text("log-format") {
            "json" => false,
            "console" => true,
            other => return Err(bad(format!("unknown log format {other:?} (--log-format)"))),
        },
        warning_apply: values.duration(warning_apply)?,
        watch_progress_notify_interval: values
            .duration(watch_progress)?
            .max(Duration::from_millis(100)),
        wal_backend: match values.text("wal-backend") {
            "auto" => WalBackend::Auto,
            "uring" => WalBackend::Uring,
            "sync" => WalBackend::Sync,
            other => return Err(bad(format!("invalid value {other:?} for --wal-backend"))),
        },
        wal_accept_loss: parse_bool(values.text("wal-accept-loss")) == Some(true),
        cache_bytes: usize::try_from(cache_bytes)
            .map_err(|_| bad("--cache-bytes is too large"))?
            .max(1 << 20),
        fragmentation_max,
        scrub_bytes_per_second: values.number("scrub-bytes-per-second")?,
        history_pin_max: values.duration("history-pin-max")?,
        warnings,
        name,
    })
}

fn log_outputs(values: &Values) -> Result<Vec<String>, ConfigError> {
    let outputs = values.list("log-outputs");
    if let Some(journal) = outputs.iter().find(|o| *o == "systemd/journal") {
        return Err(bad(format!(
            "--log-outputs={journal} is refused: log to stderr and let the service manager collect it"
        )));
    }
    if outputs.len() > 1 && outputs.iter().any(|o| o == "default") {
        return Err(bad(
            "multi logoutput for \"default\" is not supported (--log-outputs)",
        ));
    }
    Ok(outputs)
}

fn endpoints(values: &Values, name: &'static str) -> Result<Vec<Endpoint>, ConfigError> {
    values
        .list(name)
        .iter()
        .map(|text| {
            let endpoint = Endpoint::parse(text).map_err(|e| bad(format!("--{name}: {e}")))?;
            if endpoint.tls && name != "listen-peer-urls" {
                return Err(bad(format!(
                    "--{name}={text} is refused: TLS is not served yet"
                )));
            }
            Ok(endpoint)
        })
        .collect()
}

fn auto_compaction(mode: &str, retention: &str) -> Result<AutoCompaction, ConfigError> {
    let invalid = |what: &str| {
        bad(format!(
            "invalid value {retention:?} for --auto-compaction-retention: {what}"
        ))
    };
    match mode {
        "periodic" | "" => {
            let keep = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.saturating_mul(3600)),
                Err(_) => duration::parse(retention).map_err(|e| invalid(&e))?,
            };
            Ok(if keep.is_zero() {
                AutoCompaction::Off
            } else {
                AutoCompaction::Periodic(keep)
            })
        }
        "revision" => {
            let keep = retention
                .parse::<i64>()
                .map_err(|_| invalid("not a number"))?;
            Ok(if keep <= 0 {
                AutoCompaction::Off
            } else {
                AutoCompaction::Revisions(keep)
            })
        }
        other => Err(bad(format!(
            "invalid value {other:?} for --auto-compaction-mode"
        ))),
    }
}

fn feature_gates(text: &str, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(bad(format!(
                "missing bool value for feature gate {pair:?} (--feature-gates)"
            )));
        };
        let Some((_, default)) = FEATURE_GATES.iter().find(|(n, _)| *n == name.trim()) else {
            return Err(bad(format!(
                "unrecognized feature gate: {name} (--feature-gates)"
            )));
        };
        let Some(value) = parse_bool(value.trim()) else {
            return Err(bad(format!(
                "invalid value {value:?} of feature gate {name} (--feature-gates)"
            )));
        };
        if value != *default {
            warnings.push(format!(
                "feature gate {name}={value} has no effect on a single member"
            ));
        }
    }
    Ok(())
}

/// The directory of the member's own files inside the data directory.
pub fn member_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member")
}

#[cfg(test)]
mod tests;
