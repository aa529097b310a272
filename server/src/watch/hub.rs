//! The streams and watchers of one network thread.
//!
//! Everything is behind one mutex that the thread's own tasks take in turn; the only other taker is the
//! catch-up from history, which holds it to pick watchers and to deliver, not to read.
//!
//! Life of a watcher:
//!
//! ```text
//! create ──► Synced ◄──────────────┐ reached the position
//!    │          │ stream full      │
//!    └──────► Near ──► Far ──► Reading ──► Near …       (Near: the ring reaches back far enough)
//!               └────────┴──► Blocked ──► Near          (Blocked: the stream is full)
//!               └────────┴──► Dead                      (compaction overtook it; the id stays taken)
//! ```
//!
//! Invariants:
//! 1. A synced watcher was sent every event of its span with `next <= main <= position`; an unsynced
//!    one every event below `next`.
//! 2. The position moves only under the lock and only together with the delivery of its events.
//! 3. A watcher becomes synced only when its next revision lies above the position, so live events
//!    continue exactly where catching up ended.
//! 4. Header revisions of a watch never go back: what was sent with a header ahead of the position
//!    keeps the watcher unsynced until the position is there, unless nothing older can follow.
//! 5. A watcher is in the list of its state; entries of other lists are stale and skipped.

mod far;
mod live;
mod near;
mod progress;
mod requests;

pub use requests::WatchStream;

use super::feed::{Batch, Feed, Marks, Options};
use super::frame::{self, EventRef, Pieces, WatchFrame, reason};
use super::history::{History, HistoryError, PastEvent};
use super::index::{Index, Place, Span};
use super::slots::{Key, Slots};
use bytes::{Bytes, BytesMut};
use engine::EventKind;
use far::Slice;
use quorate_proto::etcdserverpb as pb;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::poll_fn;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::sync::Notify;

/// The newest published view as the caller of a hub saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: i64,
    /// Its compact revision, -1 before the first compaction.
    pub compact_revision: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Synced(Place),
    Near,
    Far,
    Reading,
    Blocked,
    Dead,
}

struct Watcher {
    stream: Key,
    id: i64,
    span: Span,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// No event was sent since the last tick.
    progress_due: bool,
    /// Resolved start revision.
    start: i64,
    /// See invariant 1.
    next: i64,
    /// Greatest header revision sent outside live delivery.
    header: i64,
    state: State,
    /// Position in the hand-out of a revision with several events.
    mark: u32,
}

const UNMARKED: u32 = u32::MAX;

impl Watcher {
    fn wants(&self, kind: EventKind, main: i64) -> bool {
        let filtered = match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        main >= self.next && !filtered
    }

    /// Whether a progress response at `position` would keep its promise.
    fn progresses(&self, position: i64) -> bool {
        matches!(self.state, State::Synced(_)) && position >= self.start.max(self.header)
    }
}

#[derive(Default)]
struct Stream {
    watchers: BTreeMap<i64, Key>,
    next_id: i64,
    live: usize,
    unsynced: usize,
    queue: VecDeque<WatchFrame>,
    bytes: usize,
    /// Watchers waiting for room.
    blocked: Vec<Key>,
    /// A progress request waits until this revision is reached by all.
    progress: Option<i64>,
    ticking: bool,
    serial: u64,
    taker: Option<Waker>,
    requester: Option<Waker>,
}

impl Stream {
    fn has_room(&self, options: &Options) -> bool {
        self.queue.len() < options.stream_responses_max && self.bytes < options.stream_bytes_max
    }

    fn half_empty(&self, options: &Options) -> bool {
        self.queue.len() <= options.stream_responses_max / 2
            && self.bytes <= options.stream_bytes_max / 2
    }

    fn push(&mut self, frame: WatchFrame, wakers: &mut Vec<Waker>) {
        self.bytes += frame.weight();
        self.queue.push_back(frame);
        wakers.extend(self.taker.take());
    }
}

#[derive(Default)]
struct Inner {
    position: i64,
    serial: u64,
    live: usize,
    streams: Slots<Stream>,
    watchers: Slots<Watcher>,
    index: Index<Key>,
    near: Vec<Key>,
    far: VecDeque<Key>,
    /// Streams with a progress request that waits.
    progress: Vec<Key>,
    ticks: BinaryHeap<Reverse<(Instant, Key)>>,
    /// Scratch space, empty between uses.
    groups: Vec<Key>,
    full: Vec<Key>,
    touched: Vec<(Key, Vec<Bytes>)>,
    batches: Vec<Arc<Batch>>,
}

/// Figures of a hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Open streams.
    pub streams: usize,
    /// Watches that have not ended.
    pub watchers: usize,
    /// Of these, the ones that are catching up.
    pub unsynced: usize,
    /// Responses that wait in streams.
    pub queued: usize,
    /// Events sent since the start.
    pub events: u64,
}

/// The watch hub of one network thread.
pub struct Hub {
    feed: Arc<Feed>,
    inner: Mutex<Inner>,
    /// Copy of `Inner::live` for the node thread.
    live: AtomicUsize,
    streams: AtomicUsize,
    events: AtomicU64,
    pump: Notify,
    history: Notify,
}

impl Hub {
    pub(super) fn new(feed: Arc<Feed>) -> Hub {
        let inner = Inner {
            position: feed.marks().newest,
            ..Inner::default()
        };
        Hub {
            feed,
            inner: Mutex::new(inner),
            live: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            events: AtomicU64::new(0),
            pump: Notify::new(),
            history: Notify::new(),
        }
    }

    /// Opens a stream. Dropping what is returned closes it and ends its watches.
    pub fn open(self: &Arc<Hub>) -> WatchStream {
        let mut inner = self.lock();
        inner.serial += 1;
        let serial = inner.serial;
        let key = inner.streams.insert(Stream {
            serial,
            ..Stream::default()
        });
        self.streams.fetch_add(1, Ordering::Relaxed);
        WatchStream {
            hub: self.clone(),
            key,
        }
    }

    /// Hands live watchers a bounded number of new revisions and serves unsynced watchers that the
    /// ring reaches back to. Returns whether there is more to do at once.
    pub fn pump(&self) -> bool {
        let options = self.feed.options();
        let mut act = self.act();
        let mut batches = std::mem::take(&mut act.batches);
        let after = act.position;
        let revisions_max = options.pump_revisions_max as i64;
        let marks = self.feed.read(after, revisions_max, &mut batches);
        if marks.floor > after {
            act.fall_behind(marks.newest);
        } else {
            let until = after.saturating_add(revisions_max);
            for batch in &batches {
                act.distribute(batch, until);
            }
        }
        batches.clear();
        act.batches = batches;
        let mut more = act.position < marks.newest;
        more |= act.serve_near();
        act.answer_progress();
        more
    }

    /// Reads one bounded slice of history for watchers the ring does not reach back to, and delivers
    /// it. `history` must give the newest published view. Blocks on storage reads, without the lock.
    /// Returns whether there is more to do at once.
    pub fn catch_up<H: History>(&self, history: impl FnOnce() -> H) -> bool {
        if self.lock().far.is_empty() {
            return false;
        }
        let history = history();
        let mut specs = self.act().pick_far(history.compact_revision());
        if specs.is_empty() {
            return !self.lock().far.is_empty();
        }
        let slice = Slice::read(&history, &mut specs, self.feed.options());
        let mut act = self.act();
        act.deliver_slice(&history, specs, slice);
        act.serve_near_soon();
        act.answer_progress();
        !act.far.is_empty()
    }

    /// Sends the progress notifications that are due; returns when the next are.
    pub fn tick(&self, now: Instant) -> Option<Instant> {
        let mut act = self.act();
        while let Some(&Reverse((due, stream))) = act.ticks.peek() {
            if due > now {
                return Some(due);
            }
            act.ticks.pop();
            act.notify_progress(stream, now);
        }
        None
    }

    /// Completes when there may be something to `pump` or `tick`.
    pub async fn wait(&self) {
        self.pump.notified().await;
    }

    /// Completes when there may be something to `catch_up`.
    pub async fn wait_history(&self) {
        self.history.notified().await;
    }

    /// Figures; walks the streams.
    pub fn stats(&self) -> HubStats {
        let inner = self.lock();
        let mut stats = HubStats {
            streams: self.streams.load(Ordering::Relaxed),
            watchers: inner.live,
            events: self.events.load(Ordering::Relaxed),
            ..HubStats::default()
        };
        for stream in inner.streams.iter() {
            stats.unsynced += stream.unsynced;
            stats.queued += stream.queue.len();
        }
        stats
    }

    /// The ring this hub reads.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The ring has grown.
    pub(super) fn published(&self) {
        if self.live.load(Ordering::SeqCst) > 0 {
            self.pump.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a broken invariant; going on could lose events silently.
        self.inner.lock().expect("the watch hub is intact")
    }

    fn act(&self) -> Act<'_> {
        Act {
            hub: self,
            inner: Some(self.lock()),
            wakers: Vec::new(),
            events: 0,
        }
    }
}

/// The hub while it is changed. Wakes tasks when the lock is released.
struct Act<'a> {
    hub: &'a Hub,
    inner: Option<MutexGuard<'a, Inner>>,
    wakers: Vec<Waker>,
    events: u64,
}

impl std::ops::Deref for Act<'_> {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        self.inner.as_ref().expect("held until drop")
    }
}

impl std::ops::DerefMut for Act<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.inner.as_mut().expect("held until drop")
    }
}

impl Drop for Act<'_> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.hub.live.store(inner.live, Ordering::SeqCst);
        }
        self.hub.events.fetch_add(self.events, Ordering::Relaxed);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl<'a> Act<'a> {
    fn options(&self) -> &'a Options {
        self.hub.feed.options()
    }

    fn room(&self, stream: Key) -> bool {
        self.streams[stream].has_room(self.options())
    }

    fn push(&mut self, stream: Key, frame: WatchFrame) {
        let inner = self.inner.as_mut().expect("held until drop");
        inner.streams[stream].push(frame, &mut self.wakers);
    }

    fn add_live(&mut self, key: Key) {
        // Counted in before the marks are read: what is published after them is kept in the ring and
        // wakes this hub.
        self.hub.feed.watcher_added();
        self.live += 1;
        self.hub.live.store(self.live, Ordering::SeqCst);
        if self.live == 1 {
            // Nobody was synced, so nothing needs handing out on the way.
            self.position = self.position.max(self.hub.feed.marks().newest);
        }
        let stream = self.watchers[key].stream;
        let stream = &mut self.streams[stream];
        stream.live += 1;
        stream.unsynced += 1;
    }

    /// A watcher that lives becomes synced; it was in no list, or its entry there is stale now.
    fn sync(&mut self, key: Key) {
        let inner = self.inner_mut();
        let watcher = &mut inner.watchers[key];
        debug_assert!(watcher.next > inner.position, "invariant 3");
        let place = inner.index.insert(&watcher.span, key);
        watcher.state = State::Synced(place);
        inner.streams[watcher.stream].unsynced -= 1;
    }

    /// A synced watcher goes back to catching up, from `next` on.
    fn unsync(&mut self, key: Key, next: i64, state: State) {
        let inner = self.inner_mut();
        let watcher = &mut inner.watchers[key];
        let State::Synced(place) = watcher.state else {
            return;
        };
        watcher.next = watcher.next.max(next);
        watcher.state = state;
        let stream = watcher.stream;
        inner.streams[stream].unsynced += 1;
        inner.leave_index(place);
        match state {
            State::Blocked => inner.streams[stream].blocked.push(key),
            _ => inner.near.push(key),
        }
    }

    /// Takes a watcher out of the living.
    fn retire(&mut self, key: Key) {
        let inner = self.inner_mut();
        let watcher = &mut inner.watchers[key];
        let was = std::mem::replace(&mut watcher.state, State::Dead);
        let stream = watcher.stream;
        if was == State::Dead {
            return;
        }
        if let State::Synced(place) = was {
            inner.leave_index(place);
        }
        inner.live -= 1;
        // A stream that is being closed is gone already.
        if let Some(stream) = inner.streams.get_mut(stream) {
            stream.live -= 1;
            stream.unsynced -= usize::from(!matches!(was, State::Synced(_)));
        }
        self.hub.feed.watcher_removed();
    }

    /// Compaction has overtaken a watcher: it ends, its id stays taken until the client cancels it.
    fn end_compacted(&mut self, key: Key, compact_revision: i64) {
        let (stream, id) = (self.watchers[key].stream, self.watchers[key].id);
        self.retire(key);
        self.push(
            stream,
            WatchFrame {
                watch_id: id,
                canceled: true,
                compact_revision,
                ..WatchFrame::default()
            },
        );
    }

    fn block(&mut self, key: Key) {
        let inner = self.inner_mut();
        let watcher = &mut inner.watchers[key];
        watcher.state = State::Blocked;
        inner.streams[watcher.stream].blocked.push(key);
    }
}

impl Inner {
    fn leave_index(&mut self, place: Place) {
        if let Some(moved) = self.index.remove(place) {
            self.watchers[moved].state = State::Synced(place);
        }
    }
}
