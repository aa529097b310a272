//! The verdict on a configuration change, at apply.

use super::{ConfChangeContext, Members};
use crate::status::{Status, errors};
use quorate_proto::raftpb::ConfChangeType;

/// Learners a cluster may have. A constant of the protocol, not a flag: every member must judge alike.
pub const LEARNERS_MAX: usize = 1;

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id was removed before.
    IdRemoved,
    /// The id belongs to a member already.
    IdExists,
    /// The id belongs to no member.
    IdNotFound,
    /// Another member has one of the peer URLs.
    PeerUrlExists,
    /// Only a learner can be promoted.
    NotLearner,
    /// There are as many learners as there may be.
    TooManyLearners,
}

impl Refusal {
    /// What the client sees.
    pub fn status(self) -> Status {
        match self {
            Refusal::IdRemoved | Refusal::IdNotFound => errors::MEMBER_NOT_FOUND,
            Refusal::IdExists => errors::MEMBER_EXIST,
            Refusal::PeerUrlExists => errors::PEER_URL_EXIST,
            Refusal::NotLearner => errors::MEMBER_NOT_LEARNER,
            Refusal::TooManyLearners => errors::TOO_MANY_LEARNERS,
        }
    }
}

/// Judges a change against the members as they are.
pub fn validate(
    members: &Members,
    kind: ConfChangeType,
    id: u64,
    context: &ConfChangeContext,
) -> Result<(), Refusal> {
    if members.is_removed(id) {
        return Err(Refusal::IdRemoved);
    }
    let existing = members.get(id);
    match kind {
        ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode
            if context.is_promote =>
        {
            match existing {
                None => Err(Refusal::IdNotFound),
                Some(m) if !m.is_learner => Err(Refusal::NotLearner),
                Some(_) => Ok(()),
            }
        }
        ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode => {
            if existing.is_some() {
                return Err(Refusal::IdExists);
            }
            peer_urls_free(members, id, context)?;
            let adds_learner =
                kind == ConfChangeType::ConfChangeAddLearnerNode && context.member.is_learner;
            if adds_learner && members.iter().filter(|m| m.is_learner).count() >= LEARNERS_MAX {
                return Err(Refusal::TooManyLearners);
            }
            Ok(())
        }
        ConfChangeType::ConfChangeRemoveNode => match existing {
            None => Err(Refusal::IdNotFound),
            Some(_) => Ok(()),
        },
        ConfChangeType::ConfChangeUpdateNode => match existing {
            None => Err(Refusal::IdNotFound),
            Some(_) => peer_urls_free(members, id, context),
        },
    }
}

/// No member other than `id` has any of the context's peer URLs.
fn peer_urls_free(members: &Members, id: u64, context: &ConfChangeContext) -> Result<(), Refusal> {
    let taken = members
        .iter()
        .filter(|m| m.id != id)
        .flat_map(|m| &m.peer_urls)
        .any(|url| context.member.peer_urls.contains(url));
    if taken {
        Err(Refusal::PeerUrlExists)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Member;
    use ConfChangeType::*;

    fn member(id: u64, is_learner: bool) -> Member {
        Member {
            id,
            peer_urls: vec![format!("http://m{id}:2380")],
            is_learner,
            ..Member::default()
        }
    }

    fn judge(kind: ConfChangeType, context: ConfChangeContext) -> Result<(), Refusal> {
        let members = Members::of(vec![member(1, false), member(2, true)], vec![9]);
        validate(&members, kind, context.member.id, &context)
    }

    fn of(member: Member, is_promote: bool) -> ConfChangeContext {
        ConfChangeContext { member, is_promote }
    }

    #[test]
    fn rule_6_3_add() {
        let add = |m| judge(ConfChangeAddNode, of(m, false));
        assert_eq!(add(member(3, false)), Ok(()));
        assert_eq!(add(member(1, false)), Err(Refusal::IdExists));
        let same_url = Member {
            id: 3,
            ..member(1, false)
        };
        assert_eq!(add(same_url), Err(Refusal::PeerUrlExists));
    }

    #[test]
    fn rule_6_3_second_learner() {
        assert_eq!(
            judge(ConfChangeAddLearnerNode, of(member(3, true), false)),
            Err(Refusal::TooManyLearners)
        );
    }

    #[test]
    fn rule_6_5_removed_ids_never_come_back() {
        for kind in [
            ConfChangeAddNode,
            ConfChangeAddLearnerNode,
            ConfChangeRemoveNode,
            ConfChangeUpdateNode,
        ] {
            let verdict = judge(kind, of(member(9, false), false));
            assert_eq!(verdict, Err(Refusal::IdRemoved));
        }
        assert_eq!(Refusal::IdRemoved.status(), errors::MEMBER_NOT_FOUND);
        assert_eq!(
            judge(ConfChangeRemoveNode, of(member(5, false), false)),
            Err(Refusal::IdNotFound)
        );
        assert_eq!(
            judge(ConfChangeRemoveNode, of(member(2, true), false)),
            Ok(())
        );
    }

    #[test]
    fn rule_6_6_update_keeps_its_own_urls_and_takes_no_others() {
        let update = |m| judge(ConfChangeUpdateNode, of(m, false));
        assert_eq!(update(member(1, false)), Ok(()));
        assert_eq!(update(member(5, false)), Err(Refusal::IdNotFound));
        let stolen = Member {
            id: 1,
            ..member(2, false)
        };
        assert_eq!(update(stolen), Err(Refusal::PeerUrlExists));
    }

    #[test]
    fn rule_6_7_only_a_learner_is_promoted() {
        let promote = |id| judge(ConfChangeAddNode, of(member(id, false), true));
        assert_eq!(promote(2), Ok(()));
        assert_eq!(promote(1), Err(Refusal::NotLearner));
        assert_eq!(promote(5), Err(Refusal::IdNotFound));
    }
}
