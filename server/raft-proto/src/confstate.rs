//! Comparing configurations.

use crate::eraftpb::ConfState;

/// Whether two configurations are the same; the order inside a list means nothing.
#[must_use]
pub fn conf_state_eq(a: &ConfState, b: &ConfState) -> bool {
    a.auto_leave == b.auto_leave
        && same_members(&a.voters, &b.voters)
        && same_members(&a.learners, &b.learners)
        && same_members(&a.voters_outgoing, &b.voters_outgoing)
        && same_members(&a.learners_next, &b.learners_next)
}

fn same_members(a: &[u64], b: &[u64]) -> bool {
    a == b || (a.iter().all(|id| b.contains(id)) && b.iter().all(|id| a.contains(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_ignored_and_content_is_not() {
        let a = ConfState::from((vec![1, 2, 3], vec![4]));
        let b = ConfState::from((vec![3, 1, 2], vec![4]));
        assert!(conf_state_eq(&a, &b));
        assert!(!conf_state_eq(&a, &ConfState::from((vec![1, 2], vec![4]))));
        assert!(!conf_state_eq(&ConfState::from((vec![1, 2], vec![4])), &a));
        assert!(!conf_state_eq(
            &a,
            &ConfState::from((vec![1, 2, 3], vec![]))
        ));
        let leaving = ConfState {
            auto_leave: true,
            ..a.clone()
        };
        assert!(!conf_state_eq(&a, &leaving));
    }
}
