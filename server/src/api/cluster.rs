//! The Cluster service. Responses name no revision.
//!
//! A cluster has one member so far: what etcd refuses is refused with etcd's answer, and what would
//! make a second member is not implemented.

use super::{Api, Learner, RequestCtx, engine_status};
use crate::membership;
use crate::node::Node;
use crate::status::{Code, Status, errors};
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

    /// MemberAdd. What is wrong with the request is told; a right one cannot be done yet.
    pub async fn member_add(
        &self,
        ctx: &RequestCtx,
        r: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        if r.peer_ur_ls.is_empty() || !r.peer_ur_ls.iter().all(|url| is_peer_url(url)) {
            return Err(errors::MEMBER_BAD_URLS);
        }
        let mut taken = self.members()?.into_iter().flat_map(|m| m.peer_ur_ls);
        if taken.any(|url| r.peer_ur_ls.contains(&url)) {
            return Err(errors::PEER_URL_EXIST);
        }
        Err(ONE_MEMBER)
    }

    /// MemberRemove. The only member there is cannot be removed.
    pub async fn member_remove(
        &self,
        ctx: &RequestCtx,
        r: pb::MemberRemoveRequest,
    ) -> Result<pb::MemberRemoveResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let members = self.members()?;
        match members.iter().find(|m| m.id == r.id) {
            None => Err(errors::MEMBER_NOT_FOUND),
            Some(_) if members.len() == 1 => Err(errors::MEMBER_NOT_ENOUGH_STARTED),
            Some(_) => Err(ONE_MEMBER),
        }
    }

    /// MemberUpdate. What is wrong with the request is told; a right one cannot be done yet.
    pub async fn member_update(
        &self,
        ctx: &RequestCtx,
        r: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        if r.peer_ur_ls.is_empty() {
            return Err(errors::MEMBER_BAD_URLS);
        }
        if self.members()?.iter().all(|m| m.id != r.id) {
            return Err(errors::MEMBER_NOT_FOUND);
        }
        Err(ONE_MEMBER)
    }

    /// MemberPromote.
    pub async fn member_promote(
        &self,
        ctx: &RequestCtx,
        r: pb::MemberPromoteRequest,
    ) -> Result<pb::MemberPromoteResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        match self.members()?.iter().find(|m| m.id == r.id) {
            None => Err(errors::MEMBER_NOT_FOUND),
            Some(m) if !m.is_learner => Err(errors::MEMBER_NOT_LEARNER),
            Some(_) => Err(ONE_MEMBER),
        }
    }

    fn members(&self) -> Result<Vec<pb::Member>, Status> {
        membership::members(&self.node.engine().view()).map_err(engine_status)
    }
}

/// Absolute, of a known scheme, with host and port.
fn is_peer_url(url: &str) -> bool {
    !url.contains(',') && crate::config::urls::advertised(url).is_ok()
}
