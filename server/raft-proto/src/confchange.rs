//! Conf changes as the core executes them.

use crate::eraftpb::{
    ConfChange, ConfChangeAction, ConfChangeSingle, ConfChangeTransition, ConfChangeType,
    ConfChangeV2,
};
use std::borrow::Cow;

/// One step of a conf change.
pub fn new_conf_change_single(node_id: u64, change_type: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type,
        node_id,
    }
}

/// Reads steps written as words: `v1` makes 1 a voter, `l2` makes 2 a learner, `r3` removes 3.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    text.split_ascii_whitespace().map(parse_step).collect()
}

fn parse_step(word: &str) -> Result<ConfChangeSingle, String> {
    let change_type = match word.as_bytes().first() {
        Some(b'v') => ConfChangeType::AddNode,
        Some(b'l') => ConfChangeType::AddLearnerNode,
        Some(b'r') => ConfChangeType::RemoveNode,
        _ => return Err(format!("unknown conf change {word:?}")),
    };
    let node_id = word[1..]
        .parse()
        .map_err(|error| format!("bad node id in {word:?}: {error}"))?;
    Ok(new_conf_change_single(node_id, change_type))
}

/// The words [`parse_conf_change`] reads.
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|change| {
            let letter = match change.change_type {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{letter}{}", change.node_id)
        })
        .collect();
    words.join(" ")
}

/// A conf change in either form.
pub trait ConfChangeI {
    /// The form the core executes.
    fn into_v2(self) -> ConfChangeV2;

    /// The form the core executes, borrowed if it is one already.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// The simple form, if it is one.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        let step = match self.action {
            ConfChangeAction::AddNode => {
                new_conf_change_single(self.node_id, ConfChangeType::AddNode)
            }
            ConfChangeAction::RemoveNode => {
                new_conf_change_single(self.node_id, ConfChangeType::RemoveNode)
            }
            ConfChangeAction::AddLearnerNode => {
                new_conf_change_single(self.node_id, ConfChangeType::AddLearnerNode)
            }
            // Node 0 is the core's word for a change it must not execute. Keeping the node here
            // would promote a learner whose record is updated.
            ConfChangeAction::UpdateNode => new_conf_change_single(0, ConfChangeType::AddNode),
        };
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: vec![step],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether the change enters joint consensus, and if so whether that is left automatically.
    ///
    /// One step with the default transition does not; everything else does, also where the simple
    /// protocol would do.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// Whether the change leaves joint consensus: it is empty but for its context.
    pub fn leave_joint(&self) -> bool {
        self.transition == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_their_text_form() {
        let text = "v1 l18446744073709551615 r3";
        let steps = parse_conf_change(text).unwrap();
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[1].node_id, u64::MAX);
        assert_eq!(stringify_conf_change(&steps), text);
        for bad in ["x1", "v", "v-1", "é1"] {
            assert!(parse_conf_change(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn updating_a_member_reaches_the_core_as_a_change_of_nobody() {
        let update = ConfChange {
            action: ConfChangeAction::UpdateNode,
            node_id: 7,
            ..ConfChange::default()
        };
        let v2 = update.into_v2();
        assert_eq!(v2.changes.len(), 1);
        assert_eq!(v2.changes[0].node_id, 0);
        assert!(!v2.leave_joint());
        assert_eq!(v2.enter_joint(), None);
    }

    #[test]
    fn only_single_automatic_steps_stay_out_of_joint_consensus() {
        let one = ConfChangeV2 {
            changes: parse_conf_change("v1").unwrap(),
            ..ConfChangeV2::default()
        };
        assert_eq!(one.enter_joint(), None);
        let two = ConfChangeV2 {
            changes: parse_conf_change("v1 v2").unwrap(),
            ..ConfChangeV2::default()
        };
        assert_eq!(two.enter_joint(), Some(true));
        let explicit = ConfChangeV2 {
            transition: ConfChangeTransition::Explicit,
            ..one.clone()
        };
        assert_eq!(explicit.enter_joint(), Some(false));
        assert!(ConfChangeV2::default().leave_joint());
        assert!(!one.leave_joint());
    }
}
