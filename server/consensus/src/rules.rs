//! The rules under which the core is safe, as names.
//!
//! Each rule has a test that breaks it and demands a failure. The switch for that exists in test
//! builds only: elsewhere [`Rule::broken`] is the constant `false`.

use crate::config::Config;

/// The rules by their number in the essay of this crate, and how a test breaks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The core merges append messages.
    R1NoMerging,
    /// Read contexts repeat.
    R2FreshContexts,
    /// A removed leader stays leader.
    R3StepDownOnRemoval,
    /// A sole voter campaigns with entries in flight.
    R4SoleVoterWaits,
    /// Acknowledgements and votes leave before the write ends.
    R5DurableFirst,
    /// Vote requests leave with the messages that may overtake a write.
    R6OnlyHarmlessOvertake,
    /// The commit index read from disk is taken as it is.
    R7CommitCoversApplied,
    /// Election timeouts come from the thread's generator.
    R8SeededElections,
    /// A leader's messages leave before its own term is durable.
    R9DurableTermFirst,
    /// Elections go on while a snapshot is being installed.
    R10NoElectionWhileInstalling,
}

impl Rule {
    /// Whether a test asked for this rule to be ignored.
    #[inline]
    pub(crate) fn broken(self, config: &Config) -> bool {
        #[cfg(test)]
        return config.broken == Some(self);
        #[cfg(not(test))]
        {
            let _ = config;
            false
        }
    }
}
