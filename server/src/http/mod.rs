//! The HTTP endpoints beside gRPC: health, version, metrics, variables.
//!
//! Bodies, texts, headers and status codes are etcd's, since probes and scripts match on them. The
//! metrics listener serves a part of the paths, and without the cross-origin headers.
//!
//! Invariants:
//! 1. No request here changes state, whatever its method or body.
//! 2. A health check ends within [`Settings::check_timeout`].
//!
//! Absent so far: the JSON gateway (`/v3/…` is answered as not implemented), `/debug/pprof`.

mod health;
#[cfg(test)]
mod tests;

use crate::metrics::{self, Metrics};
use crate::net::{Body, Role, fd_limit};
use crate::status::Status;
use crate::version;
use ::http::header::{ALLOW, CONTENT_TYPE, HOST, LOCATION, ORIGIN};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use quorate_proto::etcdserverpb::AlarmType;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What the endpoints ask the member.
pub trait Probe: Send + Sync + 'static {
    /// The alarms in force, by type then member.
    fn alarms(&self) -> Result<Vec<AlarmType>, Status>;
    /// Whether a leader is known.
    fn has_leader(&self) -> bool;
    /// Whether this member is a learner.
    fn is_learner(&self) -> bool;
    /// Reads one key, of the newest state of the cluster or of this member's.
    fn read(&self, linearizable: bool) -> impl Future<Output = Result<(), Status>> + Send;
    /// The cluster version; `None` before it is decided.
    fn cluster_version(&self) -> Option<Cow<'static, str>>;
    /// What `/debug/vars` shows as `raft.status`.
    fn raft_status(&self) -> serde_json::Value;
}

/// How the endpoints behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--cors`: origins that may read answers; `*` is all. Empty is all.
    pub origins: Vec<String>,
    /// `--host-whitelist`: values of `Host` that are served; `*` is all. Empty is all.
    pub hosts: Vec<String>,
    /// How long a health check may take.
    pub check_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            origins: Vec::new(),
            hosts: Vec::new(),
            check_timeout: Duration::from_secs(7),
        }
    }
}

/// The endpoints of one member.
pub struct Http<P> {
    probe: P,
    metrics: Arc<Metrics>,
    settings: Settings,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
static NOSNIFF: (HeaderName, HeaderValue) = (
    ::http::header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

impl<P: Probe> Http<P> {
    /// The endpoints over this member.
    pub fn new(probe: P, metrics: Arc<Metrics>, settings: Settings) -> Http<P> {
        Http {
            probe,
            metrics,
            settings,
        }
    }

    /// Whether a path belongs to these endpoints, for requests that came over HTTP/2.
    pub fn serves(&self, path: &str) -> bool {
        matches!(
            path,
            "/health" | "/livez" | "/readyz" | "/version" | "/metrics" | "/debug/vars"
        ) || ["/livez/", "/readyz/"].iter().any(|p| path.starts_with(p))
    }

    /// Answers a request; its body is not looked at.
    pub async fn respond(&self, request: &Parts, role: Role) -> Response<Body> {
        if role == Role::Metrics {
            return self.monitoring(request).await;
        }
        let host = host_name(request);
        if !listed(&self.settings.hosts, &host) {
            return misdirected(&host);
        }
        let mut response = match request.method == Method::OPTIONS {
            true => Response::new(Body::empty()),
            false => self.client(request).await,
        };
        self.allow_origin(&request.headers, response.headers_mut());
        response
    }

    /// What both kinds of listeners serve.
    async fn monitoring(&self, request: &Parts) -> Response<Body> {
        match request.uri.path() {
            "/metrics" => self.metrics(&request.method),
            "/health" => self.health(request).await,
            path => match self.checks(path, request).await {
                Some(response) => response,
                None => not_found(),
            },
        }
    }

    async fn client(&self, request: &Parts) -> Response<Body> {
        match request.uri.path() {
            "/version" => self.version(&request.method),
            "/debug/vars" => self.variables(),
            "/v3" => redirect("/v3/"),
            path if path.starts_with("/v3/") || path.starts_with("/v3beta/") => {
                gateway(&request.method)
            }
            _ => self.monitoring(request).await,
        }
    }

    fn version(&self, method: &Method) -> Response<Body> {
        if method != Method::GET {
            return method_not_allowed();
        }
        let cluster = self.probe.cluster_version();
        let storage = cluster.as_ref().map_or("unknown", |_| version::STORAGE);
        let cluster = cluster.as_deref().unwrap_or("not_decided");
        let body = format!(
            r#"{{"etcdserver":"{}","etcdcluster":"{cluster}","storage":"{storage}"}}"#,
            version::SERVER
        );
        respond(StatusCode::OK, JSON, body)
    }

    fn metrics(&self, method: &Method) -> Response<Body> {
        // etcd's handler answers every method alike; the client mux in front of it lets only GET in.
        if method != Method::GET && method != Method::HEAD {
            return method_not_allowed();
        }
        respond(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.render())
    }

    fn variables(&self) -> Response<Body> {
        let variables = serde_json::json!({
            "cmdline": std::env::args().collect::<Vec<_>>(),
            "file_descriptor_limit": fd_limit(),
            "raft.status": self.probe.raft_status(),
        });
        let body = format!("{variables:#}\n");
        respond(StatusCode::OK, "application/json; charset=utf-8", body)
    }

    fn allow_origin(&self, request: &HeaderMap, response: &mut HeaderMap) {
        let origins = &self.settings.origins;
        let allowed = match request.get(ORIGIN) {
            _ if origins.is_empty() || origins.iter().any(|o| o == "*") => {
                HeaderValue::from_static("*")
            }
            Some(origin) if origins.iter().any(|o| o == origin) => origin.clone(),
            _ => return,
        };
        response.insert(
            ::http::header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
        );
        response.insert(::http::header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        response.insert(
            ::http::header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("accept, content-type, authorization"),
        );
    }
}

/// The host a client asked for, without its port.
fn host_name(request: &Parts) -> String {
    let host = match request.headers.get(HOST) {
        Some(host) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        None => request
            .uri
            .authority()
            .map_or(String::new(), |a| a.to_string()),
    };
    let port = host.rfind(':').filter(|&at| {
        let bracketed = host[..at].ends_with(']');
        host[at + 1..].bytes().all(|b| b.is_ascii_digit())
            && (bracketed || !host[..at].contains(':'))
    });
    let name = port.map_or(&host[..], |at| &host[..at]);
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    bare.unwrap_or(name).to_owned()
}

fn listed(list: &[String], value: &str) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*" || entry == value)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A plain text error, with the line end and the header that Go's `http.Error` gives it.
fn text_error(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = respond(status, TEXT, text.into() + "\n");
    response
        .headers_mut()
        .insert(NOSNIFF.0.clone(), NOSNIFF.1.clone());
    response
}

fn not_found() -> Response<Body> {
    text_error(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed() -> Response<Body> {
    let mut response = text_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

fn redirect(to: &'static str) -> Response<Body> {
    let body = format!("<a href=\"{to}\">Temporary Redirect</a>.\n\n");
    let mut response = respond(
        StatusCode::TEMPORARY_REDIRECT,
        "text/html; charset=utf-8",
        body,
    );
    response
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static(to));
    response
}

fn gateway(method: &Method) -> Response<Body> {
    let message = match *method == Method::POST {
        true => "the JSON gateway is not implemented by this server; use gRPC",
        false => "Method Not Allowed",
    };
    let body = format!(r#"{{"code":12, "message":"{message}"}}"#);
    respond(StatusCode::NOT_IMPLEMENTED, JSON, body)
}

fn misdirected(host: &str) -> Response<Body> {
    let text = format!(
        "The name {host:?} in the Host header is not one this server answers to.\n\
         \n\
         Either enable TLS, with which every name is served, or add the name with --host-whitelist.\n\
         The check keeps web pages from reaching this server through names they made up\n\
         (DNS rebinding, CVE-2018-5702)."
    );
    text_error(StatusCode::MISDIRECTED_REQUEST, text)
}
