//! The time every lease has left.
//!
//! A member that does not lead knows the leases but no deadlines. When it comes to lead, every lease
//! starts again with its full TTL and one election timeout on top, because the leader before may have
//! renewed it without a trace; where thousands would then end together they are spread out.
//!
//! Invariants:
//! 1. A deadline never lies earlier than TTL after the grant or the last renewal on this leader.
//! 2. Deadlines belong to one term of leadership; those of another term are never used.
//! 3. A lease has exactly one entry in the queue while there are deadlines. The entry may be early (a
//!    renewal moves only the deadline), never late; popped early it is queued again.
//! 4. No operation but the change of leadership costs more than O(log leases).

use super::LeaseHook;
use crate::apply::buckets;
use crate::clock::Clock;
use prost::Message;
use quorate_proto::leasepb;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Revocations proposed per scan at most.
pub const REVOKES_PER_SCAN_MAX: usize = 500;
/// An expired lease that is still there after this long is proposed again.
pub const RETRY: Duration = Duration::from_secs(3);
/// From this many leases on a new leader spreads their ends.
const SPREAD_LEASES_MIN: usize = 1000;
/// Ends per second it spreads them to.
const SPREAD_PER_SECOND: usize = 750;

/// The shortest TTL granted, in seconds: a lease must outlive an election.
pub fn ttl_min_s(election_timeout: Duration) -> i64 {
    (election_timeout.as_secs_f64() * 1.5).ceil() as i64
}

struct Lease {
    ttl_s: i64,
    /// When it ends; meaningless unless this member is the primary.
    deadline: Instant,
}

#[derive(Default)]
struct Inner {
    /// Ordered, so that everything done for all leases is done in the same order everywhere.
    leases: BTreeMap<i64, Lease>,
    queue: BinaryHeap<Reverse<(Instant, i64)>>,
    /// The term in which this member leads and for which the deadlines hold.
    primary: Option<u64>,
}

/// Whether this member's deadlines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// This member leads.
    pub is_leader: bool,
    /// The current term.
    pub term: u64,
}

impl From<crate::node::NodeStatus> for Primary {
    fn from(status: crate::node::NodeStatus) -> Primary {
        Primary {
            is_leader: status.is_leader,
            term: status.term,
        }
    }
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It lives for this many seconds again.
    Renewed(i64),
    /// There is no such lease.
    NotFound,
    /// Its time is over and its revocation is on the way: ask again when [`Lessor::revocation`] tells.
    Expired,
    /// This member does not lead.
    NotPrimary,
}

/// The leases of a member.
pub struct Lessor {
    inner: Mutex<Inner>,
    clock: Arc<dyn Clock>,
    election_timeout: Duration,
    revoked: Notify,
    renewals: AtomicU64,
    expirations: AtomicU64,
}

impl Lessor {
    /// Without leases.
    pub fn new(clock: Arc<dyn Clock>, election_timeout: Duration) -> Lessor {
        Lessor {
            inner: Mutex::default(),
            clock,
            election_timeout,
            revoked: Notify::new(),
            renewals: AtomicU64::new(0),
            expirations: AtomicU64::new(0),
        }
    }

    /// Takes over the leases of a view: at boot, and when a snapshot replaced the state.
    pub fn load(&self, view: &engine::View) -> engine::Result<()> {
        let now = self.clock.now();
        let mut leases = BTreeMap::new();
        let mut broken = None;
        view.sys_scan(
            buckets::LEASE,
            &mut |_, value| match leasepb::Lease::decode(value) {
                Ok(lease) => {
                    let ttl_s = lease.ttl;
                    let deadline = now;
                    leases.insert(lease.id, Lease { ttl_s, deadline });
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    broken = Some(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        if let Some(error) = broken {
            return Err(engine::Error::Corrupt(format!(
                "a lease record cannot be decoded: {error}"
            )));
        }
        let mut inner = self.lock();
        *inner = Inner {
            leases,
            ..Inner::default()
        };
        drop(inner);
        self.revoked.notify_waiters();
        Ok(())
    }

    /// Compares with the consensus state: a member that has come to lead gives every lease its full
    /// time, one that leads no longer forgets the deadlines.
    pub fn observe(&self, status: impl Into<Primary>) {
        let Primary { is_leader, term } = status.into();
        let primary = is_leader.then_some(term);
        let mut inner = self.lock();
        if inner.primary == primary {
            return;
        }
        inner.primary = primary;
        inner.queue.clear();
        if primary.is_some() {
            inner.start(self.clock.now(), self.election_timeout);
        }
    }

    /// Leases that have ended, the longest ended first, at most `max`. Each is handed out again after
    /// [`RETRY`] unless it is revoked by then. None unless this member leads as last observed.
    pub fn expired(&self, max: usize) -> Vec<i64> {
        let now = self.clock.now();
        let mut inner = self.lock();
        let mut expired = Vec::new();
        while expired.len() < max {
            let Some(&Reverse((due, id))) = inner.queue.peek() else {
                break;
            };
            if due > now {
                break;
            }
            inner.queue.pop();
            let Some(lease) = inner.leases.get(&id) else {
                continue;
            };
            let next = if lease.deadline > now {
                lease.deadline
            } else {
                expired.push(id);
                now + RETRY
            };
            inner.queue.push(Reverse((next, id)));
        }
        expired
    }

    /// Gives a lease its full TTL again.
    pub fn renew(&self, id: i64) -> Renewal {
        let now = self.clock.now();
        let mut inner = self.lock();
        let primary = inner.primary.is_some();
        match inner.leases.get_mut(&id) {
            None => Renewal::NotFound,
            Some(_) if !primary => Renewal::NotPrimary,
            Some(lease) if lease.deadline <= now => Renewal::Expired,
            Some(lease) => {
                // A lease that was spread out keeps its later deadline.
                lease.deadline = lease.deadline.max(after(now, lease.ttl_s));
                self.renewals.fetch_add(1, Ordering::Relaxed);
                Renewal::Renewed(lease.ttl_s)
            }
        }
    }

    /// Renewals since the start.
    pub fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Relaxed)
    }

    /// Leases revoked because their time was over, since the start.
    pub fn expirations(&self) -> u64 {
        self.expirations.load(Ordering::Relaxed)
    }

    pub(super) fn count_expiration(&self) {
        self.expirations.fetch_add(1, Ordering::Relaxed);
    }

    /// Completes at the next revocation. Create it, then look, then await it.
    pub fn revocation(&self) -> impl Future<Output = ()> + Send {
        self.revoked.notified()
    }

    /// Granted and remaining time of a lease, if it exists. Without leadership the whole TTL remains.
    pub fn times(&self, id: i64) -> Option<(i64, Duration)> {
        let now = self.clock.now();
        let inner = self.lock();
        let lease = inner.leases.get(&id)?;
        Some((lease.ttl_s, inner.remaining(lease, now)))
    }

    /// The ids of all leases, the one that ends first in front.
    pub fn ids(&self) -> Vec<i64> {
        let now = self.clock.now();
        let inner = self.lock();
        let mut ids: Vec<_> = inner
            .leases
            .iter()
            .map(|(&id, lease)| (inner.remaining(lease, now), id))
            .collect();
        drop(inner);
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.lock().leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything can panic.
        self.inner.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// `now` plus a TTL; the longest TTL, 285 years, still fits an instant.
fn after(now: Instant, ttl_s: i64) -> Instant {
    now + Duration::from_secs(ttl_s.max(0) as u64)
}

impl Inner {
    fn remaining(&self, lease: &Lease, now: Instant) -> Duration {
        match self.primary {
            Some(_) => lease.deadline.saturating_duration_since(now),
            None => Duration::from_secs(lease.ttl_s.max(0) as u64),
        }
    }

    /// Sets all deadlines at the start of a leadership.
    fn start(&mut self, now: Instant, extend: Duration) {
        let mut ends: Vec<(Instant, i64)> = self
            .leases
            .iter()
            .map(|(&id, lease)| (after(now, lease.ttl_s) + extend, id))
            .collect();
        if ends.len() >= SPREAD_LEASES_MIN {
            ends.sort_unstable();
            spread(&mut ends);
        }
        for &(deadline, id) in &ends {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.deadline = deadline;
            }
        }
        self.queue = ends.into_iter().map(Reverse).collect();
    }
}

/// Moves sorted ends back until no second sees more than [`SPREAD_PER_SECOND`]; none moves forward.
fn spread(ends: &mut [(Instant, i64)]) {
    let mut window = VecDeque::with_capacity(SPREAD_PER_SECOND + 1);
    for (end, _) in ends {
        if window.len() == SPREAD_PER_SECOND {
            let before: Instant = window.pop_front().unwrap_or(*end);
            *end = (*end).max(before + Duration::from_secs(1));
        }
        window.push_back(*end);
    }
}

impl LeaseHook for Lessor {
    fn granted(&self, id: i64, ttl: i64) {
        let deadline = after(self.clock.now(), ttl);
        let mut inner = self.lock();
        let ttl_s = ttl;
        inner.leases.insert(id, Lease { ttl_s, deadline });
        if inner.primary.is_some() {
            inner.queue.push(Reverse((deadline, id)));
        }
    }

    fn revoked(&self, id: i64) {
        let mut inner = self.lock();
        inner.leases.remove(&id);
        // Its queue entry is dropped when it comes up, unless most of the queue is such entries.
        if inner.queue.len() > 2 * inner.leases.len() + 64 {
            let Inner { leases, queue, .. } = &mut *inner;
            queue.retain(|Reverse((_, id))| leases.contains_key(id));
        }
        drop(inner);
        self.revoked.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const LEADS: Primary = Primary {
        is_leader: true,
        term: 2,
    };
    const FOLLOWS: Primary = Primary {
        is_leader: false,
        term: 2,
    };

    fn lessor() -> (Arc<ManualClock>, Lessor) {
        let clock = Arc::new(ManualClock::default());
        let lessor = Lessor::new(clock.clone(), Duration::from_secs(1));
        (clock, lessor)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const NONE: [i64; 0] = [];
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_shortest_ttl_is_one_and_a_half_election_timeouts_5l_1() {
        for (election_ms, ttl_min) in [(1000, 2), (100, 1), (2000, 3), (5000, 8)] {
            assert_eq!(ttl_min_s(Duration::from_millis(election_ms)), ttl_min);
        }
    }

    #[test]
    fn a_lease_ends_at_its_ttl_and_not_before_5l_6() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, 10);
        clock.advance(s(10) - MS);
        assert_eq!(lessor.expired(500), NONE);
        clock.advance(MS);
        assert_eq!(lessor.expired(500), [7]);
    }

    #[test]
    fn what_is_not_revoked_is_handed_out_again_after_a_while_5l_6() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, 2);
        clock.advance(s(2));
        assert_eq!(lessor.expired(500), [7]);
        clock.advance(RETRY - MS);
        assert_eq!(lessor.expired(500), NONE);
        clock.advance(MS);
        assert_eq!(lessor.expired(500), [7]);
        lessor.revoked(7);
        clock.advance(s(60));
        assert_eq!(lessor.expired(500), NONE);
    }

    #[test]
    fn a_scan_hands_out_the_longest_ended_first_and_no_more_than_asked_5l_6() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        (0..1200).for_each(|id| lessor.granted(id, 2 + (1200 - id) / 400));
        clock.advance(s(60));
        let first = lessor.expired(REVOKES_PER_SCAN_MAX);
        assert_eq!(first.len(), 500);
        assert!(first.iter().all(|&id| id > 400), "{first:?}");
        assert_eq!(lessor.expired(500).len(), 500);
        assert_eq!(lessor.expired(500).len(), 200);
        assert_eq!(lessor.expired(500).len(), 0);
    }

    #[test]
    fn renewal_gives_the_full_ttl_5l_3() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, 10);
        for _ in 0..5 {
            clock.advance(s(9));
            assert_eq!(lessor.renew(7), Renewal::Renewed(10));
            assert_eq!(lessor.times(7), Some((10, s(10))));
            assert_eq!(lessor.expired(500), NONE);
        }
        clock.advance(s(10));
        assert_eq!(lessor.renew(7), Renewal::Expired, "too late");
        assert_eq!(lessor.expired(500), [7]);
        assert_eq!(
            lessor.renew(7),
            Renewal::Expired,
            "its revocation is under way"
        );
        lessor.revoked(7);
        assert_eq!(lessor.renew(7), Renewal::NotFound);
    }

    #[test]
    fn renewals_do_not_grow_the_queue() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, 3600);
        for _ in 0..1000 {
            clock.advance(s(1));
            lessor.renew(7);
            lessor.expired(500);
        }
        assert_eq!(lessor.lock().queue.len(), 1);
        for id in 0..10_000 {
            lessor.granted(id, 3600);
            lessor.revoked(id);
        }
        assert!(lessor.lock().queue.len() < 100);
    }

    #[test]
    fn only_the_leader_lets_leases_end_5l_6() {
        let (clock, lessor) = lessor();
        lessor.granted(7, 2);
        clock.advance(s(100));
        assert_eq!(lessor.expired(500), NONE);
        assert_eq!(lessor.renew(7), Renewal::NotPrimary);
        assert_eq!(lessor.renew(8), Renewal::NotFound);
        lessor.observe(FOLLOWS);
        assert_eq!(lessor.times(7), Some((2, s(2))));
        assert_eq!(lessor.expired(500), NONE);
    }

    #[test]
    fn a_new_leader_gives_full_time_and_an_election_timeout_5l_7() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, 10);
        clock.advance(s(9));
        // Lost and won again between two looks: another leader may have renewed it meanwhile.
        lessor.observe(Primary { term: 4, ..LEADS });
        clock.advance(s(11) - MS);
        assert_eq!(lessor.expired(500), NONE);
        clock.advance(MS);
        assert_eq!(lessor.expired(500), [7]);
        lessor.observe(Primary { term: 5, ..FOLLOWS });
        clock.advance(s(100));
        assert_eq!(lessor.expired(500), NONE, "not ours any more");
        lessor.observe(Primary { term: 6, ..LEADS });
        assert_eq!(lessor.times(7), Some((10, s(11))));
        // A repeated look changes nothing.
        clock.advance(s(5));
        lessor.observe(Primary { term: 6, ..LEADS });
        assert_eq!(lessor.times(7), Some((10, s(6))));
    }

    #[test]
    fn a_new_leader_spreads_the_ends_of_many_leases_5l_7() {
        for (count, spread) in [(999, false), (1000, true), (5000, true)] {
            let (clock, lessor) = lessor();
            (0..count).for_each(|id| lessor.granted(id, 10));
            lessor.observe(LEADS);
            clock.advance(s(11) - MS);
            assert_eq!(lessor.expired(10_000), NONE, "never early");
            clock.advance(MS);
            let mut per_second = Vec::new();
            let mut all = 0;
            while all < count as usize {
                let ended = lessor.expired(10_000);
                ended.iter().for_each(|&id| lessor.revoked(id));
                per_second.push(ended.len());
                all += ended.len();
                clock.advance(s(1));
            }
            let most = *per_second.iter().max().unwrap();
            match spread {
                true => assert!(most <= 750 && per_second.len() == count as usize / 750 + 1),
                false => assert_eq!(per_second, [999]),
            }
        }
    }

    #[test]
    fn ids_come_in_the_order_of_their_ends_5l_5() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        for (id, ttl) in [(1, 30), (2, 10), (3, 20), (-4, 10)] {
            lessor.granted(id, ttl);
        }
        assert_eq!(lessor.ids(), [-4, 2, 3, 1]);
        clock.advance(s(9));
        lessor.renew(2);
        assert_eq!(lessor.ids(), [-4, 2, 3, 1]);
        clock.advance(s(0));
        lessor.renew(-4);
        lessor.renew(1);
        clock.advance(s(5));
        assert_eq!(lessor.ids(), [-4, 2, 3, 1]);
        lessor.revoked(2);
        assert_eq!((lessor.ids(), lessor.len()), (vec![-4, 3, 1], 3));
    }

    #[test]
    fn the_longest_ttl_fits() {
        let (clock, lessor) = lessor();
        lessor.observe(LEADS);
        lessor.granted(7, crate::apply::TTL_MAX_S);
        clock.advance(s(1));
        assert_eq!(lessor.renew(7), Renewal::Renewed(9_000_000_000));
        assert_eq!(lessor.expired(500), NONE);
    }
}
