//! What a client listener serves: gRPC calls and HTTP requests, told apart request by request.
//!
//! Over HTTP/1.1 everything is HTTP. Over HTTP/2 everything is gRPC, except that the paths of the HTTP
//! endpoints are answered too when no gRPC content type is given.

#[cfg(test)]
mod tests;

use crate::api::Api;
use crate::api::health::Health;
use crate::apply::Alarms;
use crate::grpc::{self, Router};
use crate::http::{Http, Probe, Settings};
use crate::metrics::Metrics;
use crate::net::h2::{self, Head};
use crate::net::{Answer, App, Body, Connection, Exchange, Role};
use crate::node::Node;
use crate::status::{Code, Status};
use ::http::header::HOST;
use ::http::request::Parts;
use ::http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use quorate_proto::etcdserverpb::AlarmType;
use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The services of a member as its listeners offer them.
pub struct Front<P> {
    router: Router,
    http: Arc<Http<P>>,
}

impl<N: Node> Front<Member<N>> {
    /// Everything a member serves.
    pub fn new(
        api: Arc<Api<N>>,
        health: &Arc<Health>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Front<Member<N>> {
        let router = grpc::routes::router(&api, health, metrics.clone());
        Front::with(router, Http::new(Member(api), metrics, settings))
    }
}

impl<P: Probe> Front<P> {
    /// These calls and these endpoints.
    pub fn with(router: Router, http: Http<P>) -> Front<P> {
        Front {
            router,
            http: Arc::new(http),
        }
    }

    /// The request, if it is for an endpoint: no gRPC is claimed, and the path is one of them.
    fn as_http(&self, head: &Head<'_>, role: Role) -> Option<Request<()>> {
        let is_grpc =
            |(name, value): (&[u8], &[u8])| name == b"content-type" && grpc::is_grpc(value);
        if role != Role::All || head.fields().any(is_grpc) {
            return None;
        }
        let uri = Uri::try_from(head.path()).ok()?;
        if !self.http.serves(uri.path()) {
            return None;
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(head.method()).ok()?;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        for (name, value) in head.fields() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                headers.append(name, value);
            }
        }
        if let Some(Ok(authority)) = head.authority().map(HeaderValue::from_bytes) {
            headers.insert(HOST, authority);
        }
        Some(request)
    }
}

impl<P: Probe> App for Front<P> {
    type Route = Route;
    type Exchange = Served;

    async fn http(self: Arc<Self>, head: Parts, role: Role) -> Response<Body> {
        self.http.respond(&head, role).await
    }

    fn route(&self, head: &Head<'_>, role: Role) -> Route {
        match self.as_http(head, role) {
            Some(request) => Route::Http(Box::new(request)),
            None => Route::Grpc(grpc::Route::new(&self.router, head)),
        }
    }

    fn begin(self: &Arc<Self>, route: &Route, connection: &Arc<Connection>) -> Served {
        match route {
            Route::Grpc(route) => Served::Grpc(route.begin(connection)),
            Route::Http(request) => {
                let (head, ()) = Request::clone(request).into_parts();
                let (http, role) = (self.http.clone(), connection.role);
                let is_head = head.method == Method::HEAD;
                let response = async move { http.respond(&head, role).await };
                Served::Http(Box::pin(response), is_head)
            }
        }
    }
}

/// What the head of a request over HTTP/2 asks for.
pub enum Route {
    /// A call.
    Grpc(grpc::Route),
    /// An endpoint.
    Http(Box<Request<()>>),
}

/// A request over HTTP/2 under way.
pub enum Served {
    /// A call.
    Grpc(grpc::Exchange),
    /// An endpoint; whether it is asked for its headers only.
    Http(Pin<Box<dyn Future<Output = Response<Body>> + Send>>, bool),
}

impl Exchange for Served {
    fn data(&mut self, bytes: &[u8], end: bool) {
        if let Served::Grpc(call) = self {
            call.data(bytes, end);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, answer: &mut Answer<'_>) -> Poll<()> {
        match self {
            Served::Grpc(call) => call.poll(cx, answer),
            Served::Http(response, is_head) => {
                let (head, body) = ready!(response.as_mut().poll(cx)).into_parts();
                let body = body.into_bytes();
                let mut block = Vec::with_capacity(128);
                h2::write_status(&mut block, head.status.as_u16());
                for (name, value) in &head.headers {
                    h2::write_field(&mut block, name.as_str().as_bytes(), value.as_bytes());
                }
                let len = body.len().to_string();
                h2::write_field(&mut block, b"content-length", len.as_bytes());
                if *is_head || body.is_empty() {
                    answer.headers(&block, true);
                } else {
                    answer.headers(&block, false);
                    answer.data(body);
                    answer.finish();
                }
                Poll::Ready(())
            }
        }
    }
}

/// A member as the HTTP endpoints see it.
pub struct Member<N>(Arc<Api<N>>);

fn engine_status(error: engine::Error) -> Status {
    Status::new(Code::Unknown, error.to_string())
}

impl<N: Node> Probe for Member<N> {
    fn alarms(&self) -> Result<Vec<AlarmType>, Status> {
        let alarms = Alarms::load(&self.0.node().engine().view()).map_err(engine_status)?;
        let all = alarms.list(AlarmType::None as i32).into_iter();
        Ok(all.map(|alarm| alarm.alarm()).collect())
    }

    fn has_leader(&self) -> bool {
        self.0.node().status().leader != 0
    }

    fn is_learner(&self) -> bool {
        self.0.node().status().is_learner
    }

    async fn read(&self, linearizable: bool) -> Result<(), Status> {
        if linearizable {
            self.0.node().linearizable().await?;
        }
        let view = self.0.node().engine().view();
        view.get(b"\0", 0).map(drop).map_err(engine_status)
    }

    fn cluster_version(&self) -> Option<Cow<'static, str>> {
        let view = self.0.node().engine().view();
        // An unreadable version is reported by the checks that read; here it counts as undecided.
        let version = crate::membership::cluster_version(&view).ok()??;
        Some(Cow::Owned(version))
    }

    fn raft_status(&self) -> serde_json::Value {
        let status = self.0.node().status();
        let hex = |id: u64| format!("{id:x}");
        serde_json::json!({
            "id": hex(self.0.node().identity().member_id),
            "term": status.term,
            "commit": status.committed,
            "applied": status.applied,
            "lead": hex(status.leader),
            "raftState": match (status.is_leader, status.leader) {
                (true, _) => "StateLeader",
                (false, 0) => "StateCandidate",
                (false, _) => "StateFollower",
            },
        })
    }
}
