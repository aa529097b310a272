//! What a client may do how often: pings, and calls it gives up.
//!
//! Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Pings that come too early and are forgiven, until the next answer.
const STRIKES_MAX: u32 = 2;
/// What a client without calls has to keep between two pings.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 3600);

/// Counts pings as grpc-go does: a client that keeps pinging earlier than it may is told to go away
/// with `too_many_pings`. Every frame of an answer forgives all.
#[derive(Debug)]
pub struct Pings {
    min_time: Duration,
    last: Option<Instant>,
    strikes: u32,
}

impl Pings {
    /// Pings may come every `min_time` while there are calls.
    pub fn new(min_time: Duration) -> Pings {
        Pings {
            min_time,
            last: None,
            strikes: 0,
        }
    }

    /// A ping came. `answered` tells whether headers or data were sent since the last one, `calls`
    /// whether any are open. False when it is one too many.
    pub fn allows(&mut self, now: Instant, answered: bool, calls: bool) -> bool {
        let last = self.last.replace(now);
        if answered {
            self.strikes = 0;
            return true;
        }
        let min_time = match calls {
            true => self.min_time,
            false => IDLE_MIN_TIME,
        };
        if last.is_some_and(|last| now.duration_since(last) < min_time) {
            self.strikes += 1;
        }
        self.strikes <= STRIKES_MAX
    }
}

/// Calls that may be given up at once; what comes beyond needs time.
const RESETS_MAX: f64 = 1000.0;
/// Calls that may be given up per second in the long run.
const RESETS_PER_SECOND: f64 = 200.0;

/// Bounds how fast calls are begun only to be given up: each costs the server more than the client.
#[derive(Debug)]
pub struct Resets {
    left: f64,
    since: Option<Instant>,
}

impl Default for Resets {
    fn default() -> Resets {
        Resets {
            left: RESETS_MAX,
            since: None,
        }
    }
}

impl Resets {
    /// A call was given up. False when it is one too many.
    pub fn allows(&mut self, now: Instant) -> bool {
        let since = self.since.replace(now).unwrap_or(now);
        let earned = now.duration_since(since).as_secs_f64() * RESETS_PER_SECOND;
        self.left = (self.left + earned).min(RESETS_MAX) - 1.0;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many pings, this far apart, are allowed; at most 100 are tried.
    fn pings(min: u32, apart: Duration, answered: bool, calls: bool) -> u32 {
        let mut pings = Pings::new(min * SECOND);
        let begin = Instant::now();
        let allowed = |n: &u32| pings.allows(begin + *n * apart, answered, calls);
        (0..100).take_while(allowed).count() as u32
    }

    #[test]
    fn pings_are_counted_as_grpc_go_counts() {
        // The first is never early; two strikes are forgiven.
        assert_eq!(pings(5, Duration::ZERO, false, true), 3);
        assert_eq!(pings(5, 4 * SECOND, false, true), 3);
        assert_eq!(pings(5, 5 * SECOND, false, true), 100);
        assert_eq!(pings(5, Duration::ZERO, true, true), 100);
        // Without calls the flag does not count.
        assert_eq!(pings(5, 60 * SECOND, false, false), 3);
        assert_eq!(pings(5, 7200 * SECOND, false, false), 100);
    }

    #[test]
    fn an_answer_forgives() {
        let mut pings = Pings::new(5 * SECOND);
        let now = Instant::now();
        for _ in 0..10 {
            assert!(pings.allows(now, true, true));
            assert!(pings.allows(now, false, true));
            assert!(pings.allows(now, false, true));
        }
        assert!(!pings.allows(now, false, true));
    }

    #[test]
    fn given_up_calls_are_bounded_by_a_burst_and_a_rate() {
        let begin = Instant::now();
        let mut resets = Resets::default();
        assert_eq!((0..5000).take_while(|_| resets.allows(begin)).count(), 1000);
        let mut resets = Resets::default();
        let slow = |n: &u32| resets.allows(begin + *n * Duration::from_millis(5));
        assert_eq!((0..5000).take_while(slow).count(), 5000);
    }
}
