//! The member records in the system tree.

use super::Member;
use crate::apply::buckets;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::raftpb;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// The members and the ids of removed ones: a copy of the records, written through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
}

/// The members a view knows, by id.
pub fn members(view: &engine::View) -> engine::Result<Vec<pb::Member>> {
    Ok(Members::load(view)?.to_proto())
}

/// The cluster version a view knows; `None` until one was set.
pub fn cluster_version(view: &engine::View) -> engine::Result<Option<String>> {
    match view.sys_get(buckets::CLUSTER, buckets::CLUSTER_VERSION)? {
        None => Ok(None),
        Some(text) => String::from_utf8(text.to_vec())
            .map(Some)
            .map_err(|_| engine::Error::Corrupt("the cluster version is not text".into())),
    }
}

/// The configuration as kept beside each published state.
pub fn conf_state_bytes(state: &raftpb::ConfState) -> Vec<u8> {
    state.encode_to_vec()
}

/// Reads [`conf_state_bytes`]; `None` from a state that was never published.
pub fn conf_state_from(meta: &[u8]) -> engine::Result<Option<raftpb::ConfState>> {
    if meta.is_empty() {
        return Ok(None);
    }
    raftpb::ConfState::decode(meta)
        .map(Some)
        .map_err(|e| engine::Error::Corrupt(format!("the stored raft configuration: {e}")))
}

impl Members {
    /// Reads the records of a view.
    pub fn load(view: &engine::View) -> engine::Result<Members> {
        let (mut members, mut removed) = (BTreeMap::new(), BTreeSet::new());
        let mut broken = None;
        view.sys_scan(
            buckets::MEMBERS,
            &mut |_, json| match Member::from_json(json) {
                Ok(member) => {
                    members.insert(member.id, member);
                    ControlFlow::Continue(())
                }
                Err(e) => {
                    broken = Some(format!("a member record: {e}"));
                    ControlFlow::Break(())
                }
            },
        )?;
        view.sys_scan(buckets::MEMBERS_REMOVED, &mut |hex, _| {
            let id = std::str::from_utf8(hex)
                .ok()
                .and_then(|h| u64::from_str_radix(h, 16).ok());
            match id {
                Some(id) => {
                    removed.insert(id);
                    ControlFlow::Continue(())
                }
                None => {
                    broken = Some("the id of a removed member is not hexadecimal".into());
                    ControlFlow::Break(())
                }
            }
        })?;
        match broken {
            Some(what) => Err(engine::Error::Corrupt(what)),
            None => Ok(Members { members, removed }),
        }
    }

    /// A member.
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether this id was a member once and is not to come back.
    pub fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// The API's form, by id.
    pub fn to_proto(&self) -> Vec<pb::Member> {
        self.members.values().cloned().map(Into::into).collect()
    }

    pub(crate) fn add(
        &mut self,
        writer: &mut engine::Writer,
        member: Member,
    ) -> engine::Result<()> {
        save(writer, &member)?;
        self.members.insert(member.id, member);
        Ok(())
    }

    /// Changes a member; an id that is none changes nothing.
    pub(crate) fn update(
        &mut self,
        writer: &mut engine::Writer,
        id: u64,
        change: impl FnOnce(&mut Member),
    ) -> engine::Result<()> {
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        change(member);
        save(writer, member)
    }

    pub(crate) fn remove(&mut self, writer: &mut engine::Writer, id: u64) -> engine::Result<()> {
        let key = buckets::member_key(id);
        writer.sys_delete(buckets::MEMBERS, key.as_bytes())?;
        writer.sys_put(buckets::MEMBERS_REMOVED, key.as_bytes(), &[])?;
        self.members.remove(&id);
        self.removed.insert(id);
        Ok(())
    }

    /// Members made up for tests of rules.
    #[cfg(test)]
    pub(super) fn of(members: Vec<Member>, removed: Vec<u64>) -> Members {
        Members {
            members: members.into_iter().map(|m| (m.id, m)).collect(),
            removed: removed.into_iter().collect(),
        }
    }
}

fn save(writer: &mut engine::Writer, member: &Member) -> engine::Result<()> {
    writer.sys_put(
        buckets::MEMBERS,
        buckets::member_key(member.id).as_bytes(),
        &member.to_json(),
    )?;
    Ok(())
}
