//! Log lines in the shape etcd writes them: one JSON object per line with `level`, `ts`, `caller`,
//! `msg` and the fields, so that what greps etcd's logs finds ours.
//!
//! A line is built whole and written with one call; a slow output delays the thread that logs. The
//! request path does not log.

use crate::config::Config;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

enum Output {
    Stderr,
    Stdout,
    File(Mutex<File>),
}

impl Output {
    fn write(&self, line: &str) {
        // A log line that cannot be written has nowhere to be reported.
        let _ = match self {
            Output::Stderr => io::stderr().lock().write_all(line.as_bytes()),
            Output::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Output::File(file) => file
                .lock()
                .unwrap_or_else(|p| p.into_inner())
                .write_all(line.as_bytes()),
        };
    }
}

/// The subscriber's one layer.
pub struct Lines {
    outputs: Vec<Output>,
    level: Level,
    console: bool,
}

impl Lines {
    /// Opens the outputs of `--log-outputs`.
    pub fn open(config: &Config) -> io::Result<Lines> {
        let outputs = config
            .log_outputs
            .iter()
            .map(|name| match name.as_str() {
                "default" | "stderr" => Ok(Output::Stderr),
                "stdout" => Ok(Output::Stdout),
                path => OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map(|f| Output::File(Mutex::new(f)))
                    .map_err(|e| io::Error::new(e.kind(), format!("log output {path}: {e}"))),
            })
            .collect::<io::Result<Vec<Output>>>()?;
        Ok(Lines {
            outputs,
            level: match config.log_level.as_str() {
                "debug" => Level::DEBUG,
                "info" => Level::INFO,
                "warn" => Level::WARN,
                // dpanic, panic and fatal lines end the process; they are written as errors here.
                _ => Level::ERROR,
            },
            console: config.log_console,
        })
    }

    /// Makes this the process's logger. Fails if there is one.
    pub fn install(self) -> Result<(), String> {
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(self))
            .map_err(|e| e.to_string())
    }

    fn line(&self, metadata: &Metadata<'_>, fields: Fields) -> String {
        let mut ts = String::new();
        if SystemTime.format_time(&mut Writer::new(&mut ts)).is_err() {
            ts.clear();
        }
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let caller = format!(
            "{}:{}",
            metadata.file().unwrap_or("unknown"),
            metadata.line().unwrap_or(0)
        );
        if self.console {
            let mut line = format!(
                "{ts}\t{}\t{caller}\t{}",
                level.to_uppercase(),
                fields.message
            );
            if !fields.rest.is_empty() {
                line.push('\t');
                line.push_str(&serde_json::Value::Object(fields.rest).to_string());
            }
            line.push('\n');
            return line;
        }
        // The order of the first keys is etcd's; readers rely on "level" coming first.
        let quote = |s: &str| serde_json::Value::from(s).to_string();
        let mut line = format!(
            "{{\"level\":{},\"ts\":{},\"caller\":{},\"msg\":{}",
            quote(level),
            quote(&ts),
            quote(&caller),
            quote(&fields.message)
        );
        for (key, value) in &fields.rest {
            line.push(',');
            line.push_str(&quote(key));
            line.push(':');
            line.push_str(&value.to_string());
        }
        line.push_str("}\n");
        line
    }
}

/// Collects the fields of an event. Names use `_` in code and `-` in lines, as etcd's do.
#[derive(Default)]
struct Fields {
    message: String,
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.rest
            .insert(field.name().replace('_', "-"), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.put(field, format!("{value:?}"));
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value);
        }
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // Libraries below us (HTTP, event loops) are of interest only when debugging.
        *metadata.level() <= self.level
            && (metadata.target().starts_with("quorate") || self.level >= Level::DEBUG)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = self.line(event.metadata(), fields);
        for output in &self.outputs {
            output.write(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn logged(extra: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut args: Vec<OsString> = extra.iter().map(OsString::from).collect();
        args.push(format!("--log-outputs={}", path.display()).into());
        let Ok(crate::config::Request::Run(config)) = crate::config::parse(args, []) else {
            panic!("refused");
        };
        let subscriber =
            tracing_subscriber::registry().with(Lines::open(&config).expect("open log"));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                local_member_id = "8e9e05c52164694d",
                took_ms = 3u64,
                "ready to serve client requests"
            );
            tracing::debug!("hidden unless asked for");
        });
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object_with_etcds_keys() {
        let text = logged(&[]);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("{\"level\":\"info\",\"ts\":\""), "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["msg"], "ready to serve client requests");
        assert_eq!(line["local-member-id"], "8e9e05c52164694d");
        assert_eq!(line["took-ms"], 3);
        assert!(line["caller"].as_str().unwrap().contains("logging.rs:"));
    }

    #[test]
    fn console_lines_and_levels() {
        assert!(logged(&["--log-format=console"]).contains("\tINFO\t"));
        assert_eq!(logged(&["--log-level=warn"]), "");
        assert_eq!(logged(&["--log-level=debug"]).lines().count(), 2);
    }
}
