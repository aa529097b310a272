//! Automatic compaction: keep a span of time or a number of revisions, drop older history.
//!
//! [`Compactor`] decides when and what; [`run`] proposes it. Only the leader proposes; the others go on
//! sampling, so a new leader knows what a revision's age is.
//!
//! Invariants:
//! 1. Periodic: nothing younger than the retention is dropped, and nothing is dropped before one full
//!    retention has passed since the start.
//! 2. A revision is proposed again only until it succeeds once.
//! 3. Samples are bounded: one retention of them.

use crate::api::Api;
use crate::clock::Clock;
use crate::node::Node;
use crate::status::errors;
use quorate_proto::etcdserverpb as pb;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// This much time.
    Period(Duration),
    /// This many revisions.
    Revisions(i64),
}

/// Longest time between periodic compactions.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Samples per interval.
const SAMPLES_PER_INTERVAL: u32 = 10;
/// Time between looks in revision mode.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Decides what to compact. Driven by [`Compactor::wake`] every [`Compactor::interval`].
#[derive(Debug)]
pub struct Compactor {
    retention: Retention,
    /// Revisions seen, oldest first; the front is the one of a retention ago once full.
    samples: VecDeque<i64>,
    samples_max: usize,
    /// The revision last compacted to.
    compacted: i64,
    /// No compaction before this.
    not_before: Instant,
}

impl Compactor {
    /// Starts at `now`, when the store is at `revision`.
    pub fn new(retention: Retention, now: Instant, revision: i64) -> Compactor {
        let (samples_max, first) = match retention {
            Retention::Revisions(_) => (0, Duration::ZERO),
            Retention::Period(period) => {
                let samples = period.as_nanos() / sample_interval(period).as_nanos().max(1);
                (samples as usize, period)
            }
        };
        Compactor {
            retention,
            samples: VecDeque::from([revision]),
            samples_max,
            compacted: 0,
            not_before: now + first,
        }
    }

    /// Time from one `wake` to the next.
    pub fn interval(&self) -> Duration {
        match self.retention {
            Retention::Period(period) => sample_interval(period),
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// Looks at the store's revision; returns what to compact to, if anything is due.
    pub fn wake(&mut self, now: Instant, revision: i64, is_leader: bool) -> Option<i64> {
        let target = match self.retention {
            Retention::Revisions(keep) => revision - keep,
            Retention::Period(_) => {
                // Full, the samples reach back exactly one retention before this one is added.
                let target = self.samples.front().copied().unwrap_or(revision);
                self.samples.push_back(revision);
                if self.samples.len() > self.samples_max {
                    self.samples.pop_front();
                }
                target
            }
        };
        let due = is_leader && now >= self.not_before;
        (due && target > 0 && target != self.compacted).then_some(target)
    }

    /// A compaction that `wake` asked for has succeeded.
    pub fn done(&mut self, now: Instant, revision: i64) {
        self.compacted = revision;
        if let Retention::Period(period) = self.retention {
            self.not_before = now + period.min(INTERVAL_MAX);
        }
    }
}

fn sample_interval(period: Duration) -> Duration {
    period.min(INTERVAL_MAX) / SAMPLES_PER_INTERVAL
}

/// Compacts as long as the member runs. Runs until dropped; spawn it once per member.
pub async fn run<N: Node>(api: Arc<Api<N>>, retention: Retention, clock: Arc<dyn Clock>) {
    let node = &api.node;
    let revision = || node.engine().view().revision();
    let mut compactor = Compactor::new(retention, clock.now(), revision());
    loop {
        tokio::time::sleep(compactor.interval()).await;
        let is_leader = node.status().is_leader;
        let Some(target) = compactor.wake(clock.now(), revision(), is_leader) else {
            continue;
        };
        let request = pb::CompactionRequest {
            revision: target,
            physical: false,
        };
        match api.compact_to(request).await {
            Err(status) if status != errors::COMPACTED => {
                tracing::warn!(revision = target, %status, "automatic compaction failed");
            }
            _ => {
                tracing::info!(revision = target, "automatic compaction");
                compactor.done(clock.now(), target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes a compactor of a store that gains one revision per second, and notes what it does.
    fn simulate(
        retention: Retention,
        hours: u64,
        leads: impl Fn(u64) -> bool,
        succeeds: impl Fn(u64) -> bool,
    ) -> Vec<(u64, i64)> {
        let start = Instant::now();
        let mut compactor = Compactor::new(retention, start, 1);
        let mut done = Vec::new();
        let step = compactor.interval().as_secs();
        assert!(step > 0);
        for at in (step..=hours * 3600).step_by(step as usize) {
            let now = start + Duration::from_secs(at);
            if let Some(revision) = compactor.wake(now, 1 + at as i64, leads(at)) {
                done.push((at, revision));
                if succeeds(at) {
                    compactor.done(now, revision);
                }
            }
        }
        done
    }

    const HOUR: u64 = 3600;

    #[test]
    fn a_short_retention_compacts_every_retention() {
        let got = simulate(
            Retention::Period(Duration::from_secs(600)),
            1,
            |_| true,
            |_| true,
        );
        let want: Vec<_> = (1..=6u64)
            .map(|i| (600 * i, 600 * (i as i64 - 1) + 1))
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_long_retention_waits_once_and_then_compacts_hourly() {
        let got = simulate(
            Retention::Period(Duration::from_secs(5 * HOUR)),
            8,
            |_| true,
            |_| true,
        );
        let want: Vec<_> = (5..=8u64)
            .map(|h| (h * HOUR, (h as i64 - 5) * HOUR as i64 + 1))
            .collect();
        assert_eq!(got, want, "to the revision of five hours ago");
    }

    #[test]
    fn a_new_leader_knows_the_samples_of_before() {
        let got = simulate(
            Retention::Period(Duration::from_secs(HOUR)),
            4,
            |at| at > 2 * HOUR + 100,
            |_| true,
        );
        // Due since the first hour, done at the first look that leads.
        assert_eq!(got[0], (2 * HOUR + 360, HOUR as i64 + 361));
    }

    #[test]
    fn a_failure_is_tried_again_at_the_next_look() {
        let got = simulate(
            Retention::Period(Duration::from_secs(HOUR)),
            2,
            |_| true,
            |at| at > HOUR + 700,
        );
        let times: Vec<_> = got.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [HOUR, HOUR + 360, HOUR + 720]);
        assert_eq!(got[1].1, 361, "still one retention ago");
    }

    #[test]
    fn revisions_are_counted_every_five_minutes() {
        let got = simulate(Retention::Revisions(1000), 1, |_| true, |_| true);
        assert_eq!(got[0], (1200, 201), "not before there are enough");
        assert_eq!(got[1], (1500, 501));
        assert_eq!(got.len(), 9);
        assert!(simulate(Retention::Revisions(1000), 1, |_| false, |_| true).is_empty());
    }

    #[test]
    fn an_idle_store_is_compacted_once() {
        let start = Instant::now();
        for retention in [
            Retention::Revisions(10),
            Retention::Period(Duration::from_secs(600)),
        ] {
            let mut compactor = Compactor::new(retention, start, 50);
            let mut now = start;
            let mut count = 0;
            for _ in 0..100 {
                now += compactor.interval();
                if let Some(revision) = compactor.wake(now, 50, true) {
                    count += 1;
                    compactor.done(now, revision);
                }
            }
            assert_eq!(count, 1);
        }
    }

    #[test]
    fn samples_are_bounded() {
        let start = Instant::now();
        let week = Duration::from_secs(7 * 24 * HOUR);
        let mut compactor = Compactor::new(Retention::Period(week), start, 1);
        for i in 0..10_000 {
            assert_eq!(compactor.wake(start, i, false), None);
        }
        assert_eq!(compactor.samples.len(), 1680);
    }
}
