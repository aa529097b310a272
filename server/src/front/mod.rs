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
use crate::net::{App, Body, Connection, Role};
use crate::node::Node;
use crate::status::{Code, Status};
use ::http::header::CONTENT_TYPE;
use ::http::{Request, Response, Version};
use hyper::body::Incoming;
use quorate_proto::etcdserverpb::AlarmType;
use std::borrow::Cow;
use std::sync::Arc;

/// The services of a member as its listeners offer them.
pub struct Front<P> {
    router: Arc<Router>,
    http: Http<P>,
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
            router: Arc::new(router),
            http,
        }
    }

    fn is_http(&self, request: &Request<Incoming>, role: Role) -> bool {
        match role {
            Role::Grpc => false,
            Role::Http | Role::Metrics => true,
            Role::All if request.version() != Version::HTTP_2 => true,
            Role::All => {
                let content_type = request.headers().get(CONTENT_TYPE);
                !content_type.is_some_and(|v| grpc::is_grpc(v.as_bytes()))
                    && self.http.serves(request.uri().path())
            }
        }
    }
}

impl<P: Probe> App for Front<P> {
    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<Body> {
        if self.is_http(&request, connection.role) {
            let (head, _body) = request.into_parts();
            return self.http.respond(&head, connection.role).await;
        }
        grpc::call(self.router.clone(), request, connection).await
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
