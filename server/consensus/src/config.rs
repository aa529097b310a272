//! Settings of a replica and what it starts from.

use crate::types::{ConfState, Entry, HardState};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Settings that stay for the life of the process. Times are counted in ticks.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member; not 0.
    pub id: u64,
    /// Ticks without a leader after which a follower may campaign; the real value is spread over
    /// `election_ticks..2 * election_ticks`.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Spreads election timeouts (rule R8). Random in production, fixed in simulations.
    pub seed: u64,
    /// Different for every start of this member, for as long as a message of an earlier start may
    /// still arrive (rule R2). Random in production.
    pub boot_nonce: u64,
    /// Entry bytes per append message. One entry may exceed it.
    pub append_bytes_max: u64,
    /// Append messages in flight per follower.
    pub inflight_max: usize,
    /// Entry bytes per [`crate::Ready::committed`]. One entry may exceed it.
    pub committed_bytes_max: u64,
    /// Payload bytes a leader keeps without a quorum before it refuses proposals.
    pub uncommitted_bytes_max: u64,
    /// Applied entries kept in memory for followers that lag; older ones are read from disk.
    pub catch_up_entries: u64,
    /// Payload bytes kept in memory for the same purpose.
    pub catch_up_bytes: usize,
    /// Reads that may wait at once, over all rounds.
    pub reads_max: usize,
    /// Where the core's log lines go.
    pub log: LogSink,
    /// The rule a test wants broken.
    #[cfg(test)]
    pub(crate) broken: Option<crate::rules::Rule>,
}

impl Config {
    /// etcd's timing at its default tick of 100 ms, and this product's limits.
    pub fn new(id: u64, seed: u64, boot_nonce: u64) -> Config {
        Config {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            seed,
            boot_nonce,
            append_bytes_max: 1 << 20,
            inflight_max: 256,
            committed_bytes_max: 16 << 20,
            uncommitted_bytes_max: 256 << 20,
            catch_up_entries: 5000,
            catch_up_bytes: 256 << 20,
            reads_max: 1 << 16,
            log: LogSink::Discard,
            #[cfg(test)]
            broken: None,
        }
    }
}

/// How serious a log line of the core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Followed by a panic.
    Critical,
    /// Something is wrong.
    Error,
    /// Something is odd.
    Warning,
    /// Elections, configurations, snapshots.
    Info,
    /// Every message; present in builds without optimisation only.
    Debug,
}

/// A function that takes log lines. Runs on the replica's thread and must not block.
pub type LogFn = dyn Fn(LogLevel, &str) + Send + Sync;

/// Where the core's log lines go; this crate prints nothing itself.
#[derive(Clone, Default)]
pub enum LogSink {
    /// Nowhere.
    #[default]
    Discard,
    /// To a function, each line with its key-value pairs appended.
    Callback(Arc<LogFn>),
    /// To a logger of the `slog` family.
    Slog(slog::Logger),
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogSink::Discard => "Discard",
            LogSink::Callback(_) => "Callback",
            LogSink::Slog(_) => "Slog",
        })
    }
}

impl LogSink {
    pub(crate) fn logger(&self) -> slog::Logger {
        match self {
            LogSink::Discard => slog::Logger::root(slog::Discard, slog::o!()),
            LogSink::Callback(callback) => slog::Logger::root(
                CallbackDrain(AssertUnwindSafe(callback.clone())),
                slog::o!(),
            ),
            LogSink::Slog(logger) => logger.clone(),
        }
    }
}

/// The callback is only ever called, never looked into after a panic.
struct CallbackDrain(AssertUnwindSafe<Arc<LogFn>>);

impl slog::Drain for CallbackDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<Self::Ok, Self::Err> {
        let level = match record.level() {
            slog::Level::Critical => LogLevel::Critical,
            slog::Level::Error => LogLevel::Error,
            slog::Level::Warning => LogLevel::Warning,
            slog::Level::Info => LogLevel::Info,
            slog::Level::Debug | slog::Level::Trace => LogLevel::Debug,
        };
        let mut line = Line(record.msg().to_string());
        // Writing to a string does not fail.
        let _ = slog::KV::serialize(&record.kv(), record, &mut line);
        (self.0.0)(level, &line.0);
        Ok(())
    }
}

/// A log line that collects its key-value pairs.
struct Line(String);

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        use fmt::Write as _;
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

/// What a member finds at start, or [`crate::bootstrap`] makes for a new cluster.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Term, vote and commit index as read from the log.
    pub hard_state: HardState,
    /// The configuration the state machine holds at `applied`.
    pub conf_state: ConfState,
    /// The last index contained in the state machine.
    pub applied: u64,
    /// The first index of the log; 1 in a log that was never trimmed.
    pub first_index: u64,
    /// The term of the entry before `first_index`; 0 when there was none.
    pub previous_term: u64,
    /// The entries from `first_index` on, all durable.
    pub entries: Vec<Entry>,
}
