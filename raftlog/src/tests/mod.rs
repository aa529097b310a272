//! Tests of the whole log: over the simulated disk, over damaged images, over real files.

mod beside;
mod crash;
mod damage;
mod every;
mod handover;
pub(crate) mod harness;
mod mounts;
mod plain;
mod real;

/// How many seeds the random tests use: `QUORATE_SEEDS`, or a default that takes seconds.
pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("QUORATE_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(default)
}
