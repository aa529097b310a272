//! The ring of recent events that all hubs read.
//!
//! The node thread appends each published batch and wakes every hub with watchers once; nothing a
//! client does can make it wait. Hubs read by revision, so a hub that falls behind the ring notices
//! the gap and turns to history.
//!
//! Invariants:
//! 1. The ring holds every event with `floor < main <= newest`, in order, in whole revisions.
//! 2. It holds at most `events_max` events and `bytes_max` bytes, except that the newest batch may
//!    stand alone above them.
//! 3. `newest` is the revision of the last published view, whether or not its events were kept.

use super::frame::{self, EventRef};
use super::hub::Hub;
use bytes::{Bytes, BytesMut};
use engine::Event;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use crate::limits::Limits;

/// Bounds of the watch path. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events kept in the ring.
    pub ring_events_max: usize,
    /// Bytes kept in the ring, encoded forms included.
    pub ring_bytes_max: usize,
    /// Responses a stream may have waiting; what does not fit is caught up later.
    pub stream_responses_max: usize,
    /// Bytes a stream may have waiting; one response may go over it.
    pub stream_bytes_max: usize,
    /// Revisions in one catch-up response.
    pub catch_up_revisions_max: usize,
    /// Bytes of history one catch-up slice reads.
    pub catch_up_bytes: usize,
    /// Watchers served by one catch-up slice.
    pub catch_up_watchers_max: usize,
    /// Revisions handed to live watchers before the hub lets the streams drain.
    pub pump_revisions_max: usize,
    /// Responses of watches that ask for fragments are split at this size.
    pub fragment_bytes: usize,
    /// Interval of progress notifications; up to 10 % are added per stream.
    pub progress_interval: Duration,
}

impl Options {
    /// The options of a member.
    pub fn new(limits: &Limits) -> Options {
        Options {
            ring_events_max: 16_384,
            ring_bytes_max: 16 << 20,
            stream_responses_max: 128,
            stream_bytes_max: 4 << 20,
            catch_up_revisions_max: 1000,
            catch_up_bytes: 1 << 20,
            catch_up_watchers_max: 512,
            pump_revisions_max: 64,
            fragment_bytes: limits.receive_bytes_max(),
            progress_interval: limits
                .watch_progress_interval
                .max(Duration::from_millis(100)),
        }
    }
}

/// Events published together, with their encoded forms as they are asked for.
pub struct Batch {
    /// Revision of the first event.
    pub first: i64,
    /// Revision of the last event.
    pub last: i64,
    /// The events, in order.
    pub events: Arc<[Event]>,
    /// By event: without and with the previous version.
    encoded: Box<[[OnceLock<Bytes>; 2]]>,
    weight: usize,
}

impl Batch {
    fn new(events: Arc<[Event]>) -> Batch {
        let weight = events.iter().map(weight).sum();
        Batch {
            first: events[0].revision.main,
            last: events[events.len() - 1].revision.main,
            encoded: events.iter().map(|_| Default::default()).collect(),
            weight,
            events,
        }
    }

    /// Position of the first event above a revision.
    pub fn after(&self, revision: i64) -> usize {
        self.events.partition_point(|e| e.revision.main <= revision)
    }

    /// An event encoded for a response; encoded by the first who asks, shared by all.
    pub fn piece(&self, at: usize, with_prev: bool) -> Bytes {
        let event = &self.events[at];
        let with_prev = with_prev && event.prev.is_some();
        self.encoded[at][usize::from(with_prev)]
            .get_or_init(|| {
                let mut out = BytesMut::new();
                frame::encode_event(EventRef::of(event, with_prev), &mut out);
                out.freeze()
            })
            .clone()
    }
}

/// What an event may come to hold in the ring: its key-values and both encoded forms.
fn weight(event: &Event) -> usize {
    let kv = |kv: &engine::KeyValue| kv.key.len() + kv.value.len() + 48;
    let fixed = size_of::<Event>() + size_of::<[OnceLock<Bytes>; 2]>();
    fixed + 3 * kv(&event.kv) + 2 * event.prev.as_ref().map_or(0, kv)
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    events: usize,
    bytes: usize,
    floor: i64,
    newest: i64,
    compacted: i64,
    hubs: Arc<[Weak<Hub>]>,
}

/// The shared ring.
pub struct Feed {
    ring: Mutex<Ring>,
    /// Watchers of all hubs: without any, events need not be kept.
    watchers: AtomicUsize,
    options: Options,
}

/// Where the ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The ring holds every event above this revision.
    pub floor: i64,
    /// Revision of the last published view.
    pub newest: i64,
    /// Compact revision of the last published view, -1 before the first compaction.
    pub compacted: i64,
}

impl Feed {
    /// An empty ring behind a view of this revision and compact revision.
    pub fn new(revision: i64, compact_revision: i64, options: Options) -> Arc<Feed> {
        Arc::new(Feed {
            ring: Mutex::new(Ring {
                batches: VecDeque::new(),
                events: 0,
                bytes: 0,
                floor: revision,
                newest: revision,
                compacted: compact_revision,
                hubs: Arc::new([]),
            }),
            watchers: AtomicUsize::new(0),
            options,
        })
    }

    /// Adds a hub: one per network thread.
    pub fn hub(self: &Arc<Feed>) -> Arc<Hub> {
        let hub = Arc::new(Hub::new(self.clone()));
        let mut ring = self.lock();
        let added = Arc::downgrade(&hub);
        ring.hubs = ring.hubs.iter().cloned().chain([added]).collect();
        hub
    }

    /// Takes what a publish made visible: called on the node thread after the view is set and before
    /// anyone learns that the requests in it are done. Does not block beyond short mutexes.
    pub fn published(&self, published: &engine::Published) {
        let view = &published.view;
        self.append(
            view.revision(),
            view.compact_revision(),
            published.events.clone(),
        );
    }

    /// The same with the parts that count.
    pub fn append(&self, revision: i64, compact_revision: i64, events: Arc<[Event]>) {
        let mut ring = self.lock();
        ring.compacted = compact_revision;
        if revision == ring.newest && events.is_empty() {
            return;
        }
        let wanted = self.watchers.load(Ordering::SeqCst) > 0;
        ring.append(revision, events, wanted, &self.options);
        let hubs = ring.hubs.clone();
        drop(ring);
        if wanted {
            hubs.iter()
                .filter_map(Weak::upgrade)
                .for_each(|hub| hub.published());
        }
    }

    /// Where the ring stands.
    pub fn marks(&self) -> Marks {
        self.lock().marks()
    }

    /// Appends to `out` the batches with events above `after`, until they hold `revisions_max`
    /// revisions. What is not above the floor is not there: compare with the marks.
    pub fn read(&self, after: i64, revisions_max: i64, out: &mut Vec<Arc<Batch>>) -> Marks {
        let ring = self.lock();
        let start = ring.batches.partition_point(|b| b.last <= after);
        let mut from = after;
        for batch in ring.batches.range(start..) {
            if from >= after.saturating_add(revisions_max) {
                break;
            }
            from = batch.last;
            out.push(batch.clone());
        }
        ring.marks()
    }

    /// The bounds.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Watchers of all hubs.
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::SeqCst)
    }

    /// The hubs, for metrics.
    pub fn hubs(&self) -> Vec<Arc<Hub>> {
        let hubs = self.lock().hubs.clone();
        hubs.iter().filter_map(Weak::upgrade).collect()
    }

    /// Counts a watcher in before its first look at the marks, so that no later event goes unkept.
    pub(super) fn watcher_added(&self) {
        self.watchers.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn watcher_removed(&self) {
        self.watchers.fetch_sub(1, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every change below is complete before anything can panic.
        self.ring.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Ring {
    fn marks(&self) -> Marks {
        Marks {
            floor: self.floor,
            newest: self.newest,
            compacted: self.compacted,
        }
    }

    fn append(&mut self, revision: i64, events: Arc<[Event]>, wanted: bool, options: &Options) {
        // Without watchers, after a publish too large to carry its events, and after a snapshot
        // replaced the state, the ring starts afresh and history bridges the gap.
        let whole = match (events.first(), events.last()) {
            (Some(first), Some(last)) => {
                first.revision.main == self.newest + 1 && last.revision.main == revision
            }
            _ => false,
        };
        self.newest = revision;
        if !wanted || !whole {
            self.batches.clear();
            (self.events, self.bytes, self.floor) = (0, 0, revision);
            return;
        }
        let batch = Batch::new(events);
        self.events += batch.events.len();
        self.bytes += batch.weight;
        self.batches.push_back(Arc::new(batch));
        while self.events > options.ring_events_max || self.bytes > options.ring_bytes_max {
            if self.batches.len() == 1 {
                break;
            }
            let Some(old) = self.batches.pop_front() else {
                break;
            };
            self.events -= old.events.len();
            self.bytes -= old.weight;
            self.floor = old.last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{EventKind, KeyValue, Revision};

    fn events(from: i64, to: i64) -> Arc<[Event]> {
        (from..=to)
            .map(|main| Event {
                kind: EventKind::Put,
                revision: Revision { main, sub: 0 },
                kv: KeyValue {
                    key: "k".into(),
                    mod_revision: main,
                    ..Default::default()
                },
                prev: None,
            })
            .collect()
    }

    fn feed(events_max: usize) -> Arc<Feed> {
        let feed = Feed::new(
            1,
            -1,
            Options {
                ring_events_max: events_max,
                ..Options::new(&Limits::default())
            },
        );
        feed.watcher_added();
        feed
    }

    fn held(feed: &Feed, after: i64, max: i64) -> Vec<i64> {
        let mut batches = Vec::new();
        feed.read(after, max, &mut batches);
        batches
            .iter()
            .flat_map(|b| b.events[b.after(after)..].iter().map(|e| e.revision.main))
            .collect()
    }

    #[test]
    fn old_batches_leave_and_the_floor_tells_so() {
        let feed = feed(5);
        feed.append(3, -1, events(2, 3));
        feed.append(6, -1, events(4, 6));
        assert_eq!(held(&feed, 1, 100), [2, 3, 4, 5, 6]);
        feed.append(7, -1, events(7, 7));
        assert_eq!(feed.marks().floor, 3);
        assert_eq!(held(&feed, 4, 100), [5, 6, 7]);
        assert_eq!(held(&feed, 3, 2), [4, 5, 6], "whole batches");
        feed.append(20, -1, events(8, 20));
        assert_eq!((feed.marks().floor, held(&feed, 7, 100).len()), (7, 13));
    }

    #[test]
    fn a_gap_starts_the_ring_afresh() {
        let feed = feed(100);
        feed.append(3, -1, events(2, 3));
        feed.append(9, 4, Arc::new([]));
        let marks = Marks {
            floor: 9,
            newest: 9,
            compacted: 4,
        };
        assert_eq!((feed.marks(), held(&feed, 0, 100)), (marks, vec![]));
        feed.append(10, 4, events(10, 10));
        assert_eq!(held(&feed, 9, 100), [10]);
    }

    #[test]
    fn nothing_is_kept_without_watchers() {
        let feed = feed(100);
        feed.watcher_removed();
        feed.append(3, -1, events(2, 3));
        assert_eq!((feed.marks().floor, held(&feed, 0, 100)), (3, vec![]));
    }

    #[test]
    fn an_event_is_encoded_once_per_form() {
        let batch = Batch::new(events(2, 2));
        let (a, b) = (batch.piece(0, true), batch.piece(0, false));
        assert_eq!(a.as_ptr(), b.as_ptr(), "no previous version: one form");
    }
}
