//! The standard gRPC health service. The empty name stands for the server; there are no others.

use super::stream::Responses;
use crate::status::{Code, Status};
use quorate_proto::health as pb;
use quorate_proto::health::health_check_response::ServingStatus;
use tokio::sync::watch;

/// The health of a server. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Health {
    serving: watch::Sender<bool>,
}

const UNKNOWN_SERVICE: Status = Status::fixed(Code::NotFound, "unknown service");

fn response(status: ServingStatus) -> pb::HealthCheckResponse {
    pb::HealthCheckResponse {
        status: status as i32,
    }
}

fn server(serving: bool) -> pb::HealthCheckResponse {
    response(match serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    })
}

impl Default for Health {
    /// Serving: the network is opened only then.
    fn default() -> Health {
        Health {
            serving: watch::Sender::new(true),
        }
    }
}

impl Health {
    /// Changes what is answered and tells those who watch.
    pub fn set_serving(&self, serving: bool) {
        self.serving
            .send_if_modified(|was| std::mem::replace(was, serving) != serving);
    }

    /// Check.
    pub async fn check(
        &self,
        r: pb::HealthCheckRequest,
    ) -> Result<pb::HealthCheckResponse, Status> {
        match &r.service[..] {
            "" => Ok(server(*self.serving.borrow())),
            _ => Err(UNKNOWN_SERVICE),
        }
    }

    /// List.
    pub async fn list(&self, _: pb::HealthListRequest) -> Result<pb::HealthListResponse, Status> {
        let server = server(*self.serving.borrow());
        Ok(pb::HealthListResponse {
            statuses: [(String::new(), server)].into(),
        })
    }

    /// Watch: the state of now, then every change, until the client goes.
    pub async fn watch(
        &self,
        r: pb::HealthCheckRequest,
        mut responses: impl Responses<pb::HealthCheckResponse>,
    ) -> Result<(), Status> {
        if !r.service.is_empty() {
            let unknown = response(ServingStatus::ServiceUnknown);
            return match responses.send(unknown).await {
                // The name may become known one day; the client decides how long to wait.
                Ok(()) => std::future::pending().await,
                Err(_) => Ok(()),
            };
        }
        let mut changes = self.serving.subscribe();
        loop {
            let now = server(*changes.borrow_and_update());
            if responses.send(now).await.is_err() || changes.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}
