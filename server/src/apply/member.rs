//! Configuration changes and what members say about themselves.

use super::{Applier, Failure, Reply, Stop};
use crate::membership::{self, ConfChangeContext};
use crate::status::Status;
use bytes::Bytes;
use prost::Message;
use quorate_proto::membershippb::ClusterMemberAttrSetRequest;
use quorate_proto::raftpb;
use quorate_proto::raftpb::ConfChangeType;

/// What became of a configuration change.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfOutcome {
    /// The id of the request, to find its waiter.
    pub request_id: u64,
    /// The change as logged.
    pub change: raftpb::ConfChange,
    /// Whether it took effect. A refused one must not reach consensus.
    pub accepted: bool,
    /// Whether consensus must hear of it: accepted, and more than an update of attributes.
    pub to_consensus: bool,
    /// This member is no longer part of the cluster.
    pub removed_self: bool,
    /// The answer: the members afterwards.
    pub result: Result<Reply, Status>,
}

impl Applier {
    pub(super) fn conf_change(&mut self, index: u64, data: &Bytes) -> Result<ConfOutcome, Stop> {
        let undecodable = |reason: String| Stop::Undecodable { index, reason };
        let change =
            raftpb::ConfChange::decode(data.clone()).map_err(|e| undecodable(e.to_string()))?;
        let kind = ConfChangeType::try_from(change.r#type.unwrap_or_default())
            .map_err(|e| undecodable(e.to_string()))?;
        let id = change.node_id.unwrap_or_default();
        let context = match (&change.context, kind) {
            // A removal needs no more than the id.
            (_, ConfChangeType::ConfChangeRemoveNode) => ConfChangeContext::default(),
            (Some(json), _) => {
                serde_json::from_slice(json).map_err(|e| undecodable(e.to_string()))?
            }
            (None, _) => return Err(undecodable("a change without a member".into())),
        };
        let verdict = membership::validate(&self.members, kind, id, &context);
        if let Ok(()) = verdict {
            self.accept(kind, id, context)
                .map_err(|error| Stop::Engine { index, error })?;
        }
        let accepted = verdict.is_ok();
        Ok(ConfOutcome {
            request_id: change.id.unwrap_or_default(),
            accepted,
            to_consensus: accepted && kind != ConfChangeType::ConfChangeUpdateNode,
            removed_self: accepted
                && kind == ConfChangeType::ConfChangeRemoveNode
                && id == self.identity.member_id,
            result: verdict
                .map(|()| Reply::Members(self.members.to_proto()))
                .map_err(|refusal| refusal.status()),
            change,
        })
    }

    fn accept(
        &mut self,
        kind: ConfChangeType,
        id: u64,
        context: ConfChangeContext,
    ) -> engine::Result<()> {
        let state = &mut self.conf_state;
        match kind {
            ConfChangeType::ConfChangeAddNode => {
                state.learners.retain(|&l| l != id);
                insert_sorted(&mut state.voters, id);
            }
            ConfChangeType::ConfChangeAddLearnerNode => {
                state.voters.retain(|&v| v != id);
                insert_sorted(&mut state.learners, id);
            }
            ConfChangeType::ConfChangeRemoveNode => {
                state.voters.retain(|&v| v != id);
                state.learners.retain(|&l| l != id);
            }
            ConfChangeType::ConfChangeUpdateNode => {}
        }
        let writer = &mut self.writer;
        match kind {
            ConfChangeType::ConfChangeRemoveNode => self.members.remove(writer, id),
            ConfChangeType::ConfChangeUpdateNode => self
                .members
                .update(writer, id, |m| m.peer_urls = context.member.peer_urls),
            _ if context.is_promote => self.members.update(writer, id, |m| m.is_learner = false),
            _ => self.members.add(
                writer,
                membership::Member {
                    id,
                    ..context.member
                },
            ),
        }
    }

    /// A member announces its name and client URLs. About a removed one nobody cares any more; one
    /// that never was is refused.
    pub(super) fn member_attributes(
        &mut self,
        r: ClusterMemberAttrSetRequest,
    ) -> Result<Reply, Failure> {
        if self.members.is_removed(r.member_id) {
            return Ok(Reply::Empty);
        }
        if self.members.get(r.member_id).is_none() {
            return Err(crate::status::errors::MEMBER_NOT_FOUND.into());
        }
        let attributes = r.member_attributes.unwrap_or_default();
        self.members.update(&mut self.writer, r.member_id, |m| {
            m.name = attributes.name;
            m.client_urls = attributes.client_urls;
        })?;
        Ok(Reply::Empty)
    }
}

fn insert_sorted(ids: &mut Vec<u64>, id: u64) {
    if let Err(at) = ids.binary_search(&id) {
        ids.insert(at, id);
    }
}
