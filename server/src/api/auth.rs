//! The Auth service, as far as it can be answered while auth cannot be enabled: it is off, and nobody
//! can log in. Everything else is not implemented, and the transport says so.

use super::{Api, Learner, RequestCtx};
use crate::node::Node;
use crate::status::{Status, errors};
use quorate_proto::etcdserverpb as pb;

/// The auth revision of a store in which no user or role was ever touched.
pub(crate) const AUTH_REVISION: u64 = 1;

impl<N: Node> Api<N> {
    /// AuthStatus.
    pub async fn auth_status(
        &self,
        ctx: &RequestCtx,
        _: pb::AuthStatusRequest,
    ) -> Result<pb::AuthStatusResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.node.linearizable().await?;
        Ok(pb::AuthStatusResponse {
            header: Some(self.node.header(self.node.engine().view().revision())),
            enabled: false,
            auth_revision: AUTH_REVISION,
        })
    }

    /// Authenticate: refused while auth is off.
    pub async fn authenticate(
        &self,
        ctx: &RequestCtx,
        _: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        Err(errors::AUTH_NOT_ENABLED)
    }
}
