//! Many seeds, each a run of its own; and runs with a rule broken, which must fail. R4 and R9 need
//! coincidences too rare for that: their tests stand beside the replica.

use super::{Outcome, run};
use crate::rules::Rule;

/// Seeds of a default run; a few seconds on one core.
const SEEDS: u64 = 300;

/// Of which so many run twice.
const TWICE: u64 = 20;

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = number("QUORATE_SEED") {
        return seed..seed + 1;
    }
    0..number("QUORATE_SEEDS").unwrap_or(SEEDS)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn must_succeed(seed: u64) -> Outcome {
    let outcome = run(seed, None);
    if let Some(failure) = &outcome.failure {
        panic!("seed {seed} (QUORATE_SEED={seed} repeats it): {failure}");
    }
    outcome
}

#[test]
fn every_seed_keeps_the_invariants() {
    let range = seeds();
    let mut total = Outcome::default();
    for seed in range.clone() {
        let outcome = must_succeed(seed);
        total.committed += outcome.committed;
        total.reads += outcome.reads;
        total.crashes += outcome.crashes;
        total.snapshots += outcome.snapshots;
        total.fetches += outcome.fetches;
        total.conf_changes += outcome.conf_changes;
        total.leaders += outcome.leaders;
    }
    println!("{} seeds: {total:?}", range.end - range.start);
    if range.end - range.start >= 100 {
        // The run did what it is for.
        assert!(total.committed > 10_000, "{total:?}");
        assert!(total.reads > 1_000, "{total:?}");
        assert!(total.crashes > 500, "{total:?}");
        assert!(total.snapshots > 30, "{total:?}");
        assert!(total.fetches > 1_000, "{total:?}");
        assert!(total.conf_changes > 200, "{total:?}");
        assert!(total.leaders > 200, "{total:?}");
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in seeds().take(TWICE as usize) {
        assert_eq!(must_succeed(seed), must_succeed(seed), "seed {seed}");
    }
}

/// Runs seeds without a rule until one fails, and says how.
fn failure_without(rule: Rule, seeds: u64) -> String {
    for seed in 0..seeds {
        if let Some(failure) = run(seed, Some(rule)).failure {
            println!("{rule:?}: seed {seed}: {failure}");
            return failure;
        }
    }
    panic!("{seeds} seeds do not miss {rule:?}");
}

#[test]
fn without_r1_members_diverge() {
    failure_without(Rule::R1NoMerging, 100);
}

#[test]
fn without_r2_reads_are_stale() {
    let failure = failure_without(Rule::R2FreshContexts, 300);
    assert!(failure.contains("stale read"), "{failure}");
}

#[test]
fn without_r3_a_removed_leader_fails() {
    failure_without(Rule::R3StepDownOnRemoval, 300);
}

#[test]
fn without_r5_acknowledgements_lie() {
    let failure = failure_without(Rule::R5DurableFirst, 20);
    assert!(
        failure.contains("acknowledges") || failure.contains("without remembering"),
        "{failure}"
    );
}

#[test]
fn without_r6_candidates_may_forget_their_term() {
    let failure = failure_without(Rule::R6OnlyHarmlessOvertake, 20);
    assert!(failure.contains("may forget"), "{failure}");
}

#[test]
fn without_r7_members_do_not_start() {
    failure_without(Rule::R7CommitCoversApplied, 50);
}

#[test]
fn without_r8_a_seed_does_not_repeat_itself() {
    let differs = (0..20).any(|seed| {
        let rule = Some(Rule::R8SeededElections);
        run(seed, rule).trace != run(seed, rule).trace
    });
    assert!(differs);
}

#[test]
fn without_r10_an_election_fails() {
    failure_without(Rule::R10NoElectionWhileInstalling, 1000);
}
