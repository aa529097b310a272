//! A whole cluster of replicas in one thread, run from one seed.
//!
//! Every member has a disk that holds what was synced, writes that take time, a state machine that
//! lags, and a checkpoint of it that lags more. The network loses, repeats, delays and reorders
//! messages and splits; members crash at any moment and keep an arbitrary prefix of the writes that
//! were under way. After the faults the network heals, and the cluster must agree and make progress.
//!
//! The simulation decides nothing by itself that a checker later takes for granted: what may be
//! expected stands in `check`, the faults in `world`, a member's disk and state machine in `node`.
//! A seed also picks the sizes and the rates, so that seeds differ in kind.
//!
//! `QUORATE_SEEDS` sets how many seeds [`tests`] runs, `QUORATE_SEED` runs one and prints it.

mod check;
mod node;
mod rng;
mod tests;
mod world;

use crate::rules::Rule;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run did and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Over every message sent and every entry applied.
    pub(crate) trace: u64,
    pub(crate) committed: u64,
    pub(crate) reads: u64,
    pub(crate) crashes: u64,
    pub(crate) snapshots: u64,
    pub(crate) fetches: u64,
    pub(crate) conf_changes: u64,
    pub(crate) leaders: u64,
    /// The first thing a checker objected to, or a panic of the core.
    pub(crate) failure: Option<String>,
}

/// Runs one seed. `broken` names the rule the replicas ignore.
pub(crate) fn run(seed: u64, broken: Option<Rule>) -> Outcome {
    let mut world = world::World::new(seed, broken);
    let end = catch_unwind(AssertUnwindSafe(|| world.run()));
    let mut outcome = world.outcome();
    if let Err(panic) = end {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        outcome.failure = Some(text.unwrap_or_else(|| "panic".to_owned()));
    }
    outcome
}
