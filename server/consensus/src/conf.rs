//! Configurations and the changes the core makes to them, as a pure function.
//!
//! The state machine writes the configuration into its own state together with the entry that
//! changes it, before the core is told. Both must come to the same result; [`crate::Replica`] checks
//! that they do.

use crate::error::ConfChangeError;
use crate::types::{ConfChange, ConfChangeAction, ConfState};

/// The configuration after `change`, with ids in ascending order.
///
/// Changes are idempotent: adding a voter that is one, or removing a stranger, changes nothing.
/// Adding a learner as a voter promotes it, adding a voter as a learner demotes it, and
/// `UpdateNode` concerns the membership only.
pub fn apply_conf_change(
    conf_state: &ConfState,
    change: &ConfChange,
) -> Result<ConfState, ConfChangeError> {
    let mut next = conf_state.clone();
    let id = change.node_id;
    if change.action != ConfChangeAction::UpdateNode {
        if id == 0 {
            return Err(ConfChangeError::ZeroId);
        }
        next.voters.retain(|&voter| voter != id);
        next.learners.retain(|&learner| learner != id);
    }
    match change.action {
        ConfChangeAction::AddNode => next.voters.push(id),
        ConfChangeAction::AddLearnerNode => next.learners.push(id),
        ConfChangeAction::RemoveNode | ConfChangeAction::UpdateNode => {}
    }
    if next.voters.is_empty() {
        return Err(ConfChangeError::NoVoters);
    }
    sort(&mut next);
    Ok(next)
}

/// Puts ids in ascending order, so that equal configurations have equal bytes.
pub(crate) fn sort(conf_state: &mut ConfState) {
    conf_state.voters.sort_unstable();
    conf_state.learners.sort_unstable();
    conf_state.voters_outgoing.sort_unstable();
    conf_state.learners_next.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(action: ConfChangeAction, node_id: u64) -> ConfChange {
        ConfChange {
            action,
            node_id,
            ..ConfChange::default()
        }
    }

    fn state(voters: &[u64], learners: &[u64]) -> ConfState {
        ConfState::from((voters.to_vec(), learners.to_vec()))
    }

    #[test]
    fn every_change_and_its_repetition() {
        use ConfChangeAction::*;
        let cases = [
            (state(&[2], &[]), AddNode, 1, Ok(state(&[1, 2], &[]))),
            (state(&[1, 2], &[]), AddNode, 1, Ok(state(&[1, 2], &[]))),
            (state(&[1], &[2]), AddNode, 2, Ok(state(&[1, 2], &[]))),
            (state(&[1], &[]), AddLearnerNode, 2, Ok(state(&[1], &[2]))),
            (
                state(&[1, 2], &[]),
                AddLearnerNode,
                2,
                Ok(state(&[1], &[2])),
            ),
            (state(&[1, 2], &[3]), RemoveNode, 3, Ok(state(&[1, 2], &[]))),
            (state(&[1, 2], &[]), RemoveNode, 9, Ok(state(&[1, 2], &[]))),
            (state(&[1], &[2]), UpdateNode, 2, Ok(state(&[1], &[2]))),
            (
                state(&[1], &[2]),
                RemoveNode,
                1,
                Err(ConfChangeError::NoVoters),
            ),
            (
                state(&[1], &[]),
                AddLearnerNode,
                1,
                Err(ConfChangeError::NoVoters),
            ),
            (state(&[1], &[]), AddNode, 0, Err(ConfChangeError::ZeroId)),
        ];
        for (before, action, id, expected) in cases {
            let result = apply_conf_change(&before, &change(action, id));
            assert_eq!(result, expected, "{action:?} {id} on {before:?}");
        }
    }
}
