//! `/health`, `/livez` and `/readyz`.

use super::{Http, Probe, TEXT, method_not_allowed, not_found, respond, text_error};
use crate::net::Body;
use crate::status::Status;
use ::http::request::Parts;
use ::http::{Method, Response, StatusCode};
use quorate_proto::etcdserverpb::AlarmType;

/// A check of `/livez` or `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// The values of a query parameter, decoded; a name without `=` has an empty value.
fn query<'a>(request: &'a Parts, name: &'a str) -> impl Iterator<Item = String> + 'a {
    request
        .uri
        .query()
        .unwrap_or("")
        .split('&')
        .filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(key) == name).then(|| unescape(value))
        })
}

fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl<P: Probe> Http<P> {
    pub(super) async fn health(&self, request: &Parts) -> Response<Body> {
        if request.method != Method::GET {
            return method_not_allowed();
        }
        let excluded: Vec<String> = query(request, "exclude").collect();
        let serializable = query(request, "serializable").next().as_deref() == Some("true");
        match self.ill(&excluded, serializable).await {
            None => {
                self.metrics.health.success.inc();
                respond(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#)
            }
            Some(reason) => {
                self.metrics.health.failures.inc();
                let reason = serde_json::Value::from(reason);
                let body = format!(r#"{{"health":"false","reason":{reason}}}"#);
                tracing::warn!(output = body, "/health error");
                text_error(StatusCode::SERVICE_UNAVAILABLE, body)
            }
        }
    }

    /// Why the member is not healthy.
    async fn ill(&self, excluded: &[String], serializable: bool) -> Option<String> {
        let alarms = match self.probe.alarms() {
            Ok(alarms) => alarms,
            Err(status) => return Some(format!("RANGE ERROR:{}", status.message)),
        };
        let raised = alarms
            .iter()
            .map(AlarmType::as_str_name)
            .find(|name| !excluded.iter().any(|e| e == name));
        if let Some(name) = raised {
            return Some(format!("ALARM {name}"));
        }
        if !serializable && !self.probe.has_leader() {
            return Some("RAFT NO LEADER".into());
        }
        let error = self.read(!serializable).await.err()?;
        Some(format!("RANGE ERROR:{error}"))
    }

    async fn read(&self, linearizable: bool) -> Result<(), String> {
        let read = self.probe.read(linearizable);
        match tokio::time::timeout(self.settings.check_timeout, read).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Status { message, .. })) => Err(message.into_owned()),
            Err(_) => Err("context deadline exceeded".into()),
        }
    }

    /// `/livez`, `/readyz` and the single checks below them; `None` for any other path.
    pub(super) async fn checks(&self, path: &str, request: &Parts) -> Option<Response<Body>> {
        let (root, single) = match path[1..].split_once('/') {
            Some((root, single)) => (root, Some(single)),
            None => (&path[1..], None),
        };
        let all = match root {
            "livez" => LIVEZ,
            "readyz" => READYZ,
            _ => return None,
        };
        let chosen: Vec<Check> = match single {
            Some(name) => match all.iter().find(|check| check.name() == name) {
                Some(check) => vec![*check],
                None => return Some(not_found()),
            },
            None => {
                let excluded: Vec<String> = query(request, "exclude").collect();
                let kept = |check: &&Check| !excluded.iter().any(|e| e == check.name());
                all.iter().filter(kept).copied().collect()
            }
        };
        if request.method != Method::GET {
            return Some(method_not_allowed());
        }
        let verbose = query(request, "verbose").next().is_some();
        Some(self.run(root, &chosen, verbose).await)
    }

    async fn run(&self, root: &str, checks: &[Check], verbose: bool) -> Response<Body> {
        let mut lines = String::new();
        let mut failed = false;
        for check in checks {
            let name = check.name();
            let result = self.check(*check).await;
            let outcome = match &result {
                Ok(()) => "success",
                Err(_) => "error",
            };
            let health = &self.metrics.health;
            let gauge = health.check.with_label_values(&[root, name]);
            gauge.set(i64::from(result.is_ok()));
            health
                .checks
                .with_label_values(&[root, name, outcome])
                .inc();
            match result {
                Ok(()) => lines += &format!("[+]{name} ok\n"),
                Err(error) => {
                    failed = true;
                    lines += &format!("[-]{name} failed: {error}\n");
                }
            }
        }
        if failed {
            tracing::error!(output = lines, "Health check error");
            return text_error(StatusCode::SERVICE_UNAVAILABLE, lines);
        }
        // `text_error` only adds what Go adds to every plain text: a line end and a header.
        let mut response = text_error(
            StatusCode::OK,
            if verbose { lines + "ok" } else { "ok".into() },
        );
        *response.status_mut() = StatusCode::OK;
        response
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        match check {
            Check::DataCorruption => match self.probe.alarms() {
                Ok(alarms) if alarms.contains(&AlarmType::Corrupt) => {
                    Err("alarm activated: CORRUPT".into())
                }
                Ok(_) => Ok(()),
                Err(status) => Err(status.message.into_owned()),
            },
            Check::SerializableRead => self.read(false).await,
            Check::LinearizableRead => self.read(true).await,
            Check::NonLearner if self.probe.is_learner() => Err("not supported for learner".into()),
            Check::NonLearner => Ok(()),
        }
    }
}
