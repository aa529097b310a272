//! The Cluster service. Responses name no revision.

use super::{Api, Learner, RequestCtx, engine_status};
use crate::membership;
use crate::node::Node;
use crate::status::{Code, Status};
use quorate_proto::etcdserverpb as pb;

const ONE_MEMBER: Status = Status::fixed(
    Code::Unimplemented,
    "changing the members of a cluster is not supported by this version",
);

impl<N: Node> Api<N> {
    /// MemberList, by id.
    pub async fn member_list(
        &self,
        ctx: &RequestCtx,
        r: pb::MemberListRequest,
    ) -> Result<pb::MemberListResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        if r.linearizable {
            self.node.linearizable().await?;
        }
        let view = self.node.engine().view();
        Ok(pb::MemberListResponse {
            header: Some(self.node.header(0)),
            members: membership::members(&view).map_err(engine_status)?,
        })
    }

    /// MemberAdd: refused, a cluster has one member so far.
    pub async fn member_add(
        &self,
        ctx: &RequestCtx,
        _: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        Err(ONE_MEMBER)
    }

    /// MemberRemove: refused, a cluster has one member so far.
    pub async fn member_remove(
        &self,
        ctx: &RequestCtx,
        _: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        Err(ONE_MEMBER)
    }

    /// MemberUpdate: refused, a cluster has one member so far.
    pub async fn member_update(
        &self,
        ctx: &RequestCtx,
        _: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        Err(ONE_MEMBER)
    }

    /// MemberPromote: refused, a cluster has one member so far.
    pub async fn member_promote(
        &self,
        ctx: &RequestCtx,
        _: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        Err(ONE_MEMBER)
    }
}
