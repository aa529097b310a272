//! The Maintenance service: Status, Alarm, Defragment, Hash, HashKV, MoveLeader.

use super::{Api, Learner, RequestCtx, engine_status, mismatched};
use crate::apply::{Alarms, Reply};
use crate::node::Node;
use crate::status::{Code, Status, errors};
use crate::{membership, version};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::AlarmType;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use std::time::Instant;

mod hashes;

pub use hashes::Hashes;

impl<N: Node> Api<N> {
    /// Status. Needs no leader.
    pub async fn status(
        &self,
        ctx: &RequestCtx,
        _: pb::StatusRequest,
    ) -> Result<pb::StatusResponse, Status> {
        self.admit(ctx, Learner::Serves)?;
        let view = self.node.engine().view();
        let stats = self.node.engine().stats();
        let node = self.node.status();
        let mut problems = Vec::new();
        if node.leader == 0 {
            problems.push(errors::NO_LEADER.message.into_owned());
        }
        for alarm in Alarms::load(&view)
            .map_err(engine_status)?
            .list(AlarmType::None as i32)
        {
            problems.push(alarm_text(&alarm));
        }
        Ok(pb::StatusResponse {
            header: Some(self.node.header(view.revision())),
            version: version::SERVER.into(),
            db_size: stats.file_bytes as i64,
            leader: node.leader,
            raft_index: node.committed,
            raft_term: node.term,
            raft_applied_index: node.applied,
            errors: problems,
            db_size_in_use: stats.in_use_bytes as i64,
            is_learner: node.is_learner,
            storage_version: version::STORAGE.into(),
            db_size_quota: self.limits.quota_bytes.unwrap_or(0),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    /// Alarm. Listing reads the state; the other actions go through the log.
    pub async fn alarm(
        &self,
        ctx: &RequestCtx,
        r: pb::AlarmRequest,
    ) -> Result<pb::AlarmResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        if r.action == AlarmAction::Get as i32 {
            self.node.linearizable().await?;
            let view = self.node.engine().view();
            let alarms = Alarms::load(&view).map_err(engine_status)?;
            return Ok(pb::AlarmResponse {
                header: Some(self.node.header(view.revision())),
                alarms: alarms.list(r.alarm),
            });
        }
        let request = pb::InternalRaftRequest {
            alarm: Some(r),
            ..Default::default()
        };
        match self.node.propose(request).await? {
            Reply::Alarm(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }

    /// Defragment. The response carries no header, as etcd's does not.
    pub async fn defragment(
        &self,
        ctx: &RequestCtx,
        _: pb::DefragmentRequest,
    ) -> Result<pb::DefragmentResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.node.defragment().await?;
        Ok(pb::DefragmentResponse { header: None })
    }

    /// Hash: equal on members that applied the same log. Comparable with no other server's.
    pub async fn hash(
        &self,
        ctx: &RequestCtx,
        _: pb::HashRequest,
    ) -> Result<pb::HashResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let since = Instant::now();
        let view = self.node.engine().view();
        let hash = view.rolling_hash();
        self.observer.hashed(since.elapsed());
        Ok(pb::HashResponse {
            header: Some(self.node.header(view.revision())),
            hash: (hash ^ (hash >> 32)) as u32,
        })
    }

    /// HashKV: etcd's hash of the history up to a revision.
    pub async fn hash_kv(
        &self,
        ctx: &RequestCtx,
        r: pb::HashKvRequest,
    ) -> Result<pb::HashKvResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let history = self.node.engine().long_history().map_err(engine_status)?;
        let header = self.node.header(history.revision());
        let hash = match self.hashes.at(r.revision).await {
            Some(hash) => hash,
            None => self.hashes.hash(r.revision, history).await?,
        };
        Ok(pb::HashKvResponse {
            header: Some(header),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        })
    }

    /// MoveLeader. To itself always succeeds; another voter needs a cluster of more than one.
    pub async fn move_leader(
        &self,
        ctx: &RequestCtx,
        r: pb::MoveLeaderRequest,
    ) -> Result<pb::MoveLeaderResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let status = self.node.status();
        if !status.is_leader {
            return Err(errors::NOT_LEADER);
        }
        let members = membership::members(&self.node.engine().view()).map_err(engine_status)?;
        match members.iter().find(|m| m.id == r.target_id) {
            Some(m) if !m.is_learner => {}
            _ => return Err(errors::BAD_LEADER_TRANSFEREE),
        }
        if r.target_id != self.node.identity().member_id {
            return Err(Status::fixed(
                Code::Unimplemented,
                "moving the leader to another member is not supported by this version",
            ));
        }
        Ok(pb::MoveLeaderResponse { header: None })
    }
}

/// etcd's text of an alarm, with its trailing blank.
fn alarm_text(alarm: &pb::AlarmMember) -> String {
    let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |a| a.as_str_name());
    format!("memberID:{} alarm:{name} ", alarm.member_id)
}

#[cfg(test)]
mod tests;
