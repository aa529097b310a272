//! The log of a cluster that is being created.
//!
//! etcd starts a new cluster from a log that already holds one committed `ConfChangeAddNode` per
//! initial member, in the order of their ids, all of term 1. Writing exactly that keeps member
//! records where etcd's tools look for them and makes every initial member begin with the same log.

use crate::config::Boot;
use crate::types::{ConfChange, ConfChangeAction, ConfState, Entry, EntryKind, HardState};
use bytes::Bytes;
use raft_proto::Wire;
use std::fmt;

/// An initial member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its id; not 0.
    pub id: u64,
    /// The member as etcd writes it in JSON.
    pub context: Bytes,
}

/// Why no cluster can be made of these members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootstrapError {
    /// There are none.
    Empty,
    /// One has id 0.
    ZeroId,
    /// Two have this id.
    Duplicate(u64),
}

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootstrapError::Empty => f.write_str("a cluster needs at least one member"),
            BootstrapError::ZeroId => f.write_str("member id 0 does not exist"),
            BootstrapError::Duplicate(id) => write!(f, "two initial members have id {id:x}"),
        }
    }
}

impl std::error::Error for BootstrapError {}

/// What every initial member writes before its first start: one entry per member at index 1 to n,
/// committed, in term 1. The order of `members` does not matter.
///
/// `entries` and `hard_state` of the result must be durable before a [`crate::Replica`] is built
/// from it.
pub fn bootstrap(mut members: Vec<InitialMember>) -> Result<Boot, BootstrapError> {
    members.sort_by_key(|member| member.id);
    if members.is_empty() {
        return Err(BootstrapError::Empty);
    }
    if members[0].id == 0 {
        return Err(BootstrapError::ZeroId);
    }
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(BootstrapError::Duplicate(pair[0].id));
    }
    let voters = members.iter().map(|member| member.id).collect::<Vec<_>>();
    let entries: Vec<Entry> = (1..).zip(members).map(add_member).collect();
    Ok(Boot {
        hard_state: HardState {
            term: 1,
            vote: 0,
            commit: entries.len() as u64,
        },
        conf_state: ConfState::from((voters, Vec::new())),
        applied: 0,
        first_index: 1,
        previous_term: 0,
        entries,
    })
}

fn add_member((index, member): (u64, InitialMember)) -> Entry {
    let change = ConfChange {
        id: 0,
        action: ConfChangeAction::AddNode,
        node_id: member.id,
        context: member.context,
    };
    Entry {
        index,
        term: 1,
        kind: EntryKind::ConfChange,
        data: Bytes::from(change.encode_to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> InitialMember {
        InitialMember {
            id,
            context: Bytes::from(format!("{{\"id\":{id}}}")),
        }
    }

    #[test]
    fn members_are_added_in_the_order_of_their_ids() {
        let boot = bootstrap(vec![member(300), member(1), member(20)]).unwrap();
        assert_eq!(
            boot.hard_state,
            HardState {
                term: 1,
                vote: 0,
                commit: 3
            }
        );
        assert_eq!(boot.conf_state.voters, [1, 20, 300]);
        let ids: Vec<u64> = boot
            .entries
            .iter()
            .map(|entry| ConfChange::decode(entry.data.clone()).unwrap().node_id)
            .collect();
        assert_eq!(ids, [1, 20, 300]);
        let positions: Vec<_> = boot.entries.iter().map(|e| (e.index, e.term)).collect();
        assert_eq!(positions, [(1, 1), (2, 1), (3, 1)]);
        // Field by field as etcd's encoder writes it: id 0, type 0, node id, context.
        assert_eq!(
            &boot.entries[0].data[..],
            b"\x08\x00\x10\x00\x18\x01\x22\x08{\"id\":1}"
        );
    }

    #[test]
    fn impossible_clusters_are_refused() {
        assert_eq!(bootstrap(vec![]).unwrap_err(), BootstrapError::Empty);
        assert_eq!(
            bootstrap(vec![member(0)]).unwrap_err(),
            BootstrapError::ZeroId
        );
        assert_eq!(
            bootstrap(vec![member(2), member(1), member(2)]).unwrap_err(),
            BootstrapError::Duplicate(2)
        );
    }
}
