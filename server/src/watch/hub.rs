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

use super::feed::{Batch, Feed, Marks, Options};
use super::frame::{self, EventRef, Pieces, WatchFrame, reason};
use super::index::{Index, Place, Span};
use super::slots::{Key, Slots};
use bytes::{Bytes, BytesMut};
use engine::{EventKind, EventsEnd, KeyValue};
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

/// Why history could not be read.
#[derive(Debug)]
pub enum HistoryError {
    /// It begins above the revision asked for.
    Compacted,
    /// The engine failed.
    Failed(String),
}

/// An immutable state of the store whose events can be read.
pub trait History {
    /// Its revision.
    fn revision(&self) -> i64;
    /// Its compact revision, -1 before the first compaction.
    fn compact_revision(&self) -> i64;
    /// Calls `f` with the events from revision `from` on, in order, until `f` breaks, the revision
    /// that passes `bytes_max` is complete, or there are no more.
    fn events(
        &self,
        from: i64,
        bytes_max: usize,
        f: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
    ) -> Result<EventsEnd, HistoryError>;
}

/// An event of history whose values are read when asked for.
pub trait PastEvent {
    /// Its revision.
    fn main(&self) -> i64;
    /// Put or delete.
    fn kind(&self) -> EventKind;
    /// The key that changed.
    fn key(&self) -> &[u8];
    /// The new version; of a delete only key and mod revision.
    fn kv(&self) -> Result<KeyValue, HistoryError>;
    /// The version before, unless there was none or it can no longer be read.
    fn prev(&self) -> Result<Option<KeyValue>, HistoryError>;
}

impl From<engine::Error> for HistoryError {
    fn from(error: engine::Error) -> HistoryError {
        match error {
            engine::Error::Compacted => HistoryError::Compacted,
            other => HistoryError::Failed(other.to_string()),
        }
    }
}

impl PastEvent for engine::EventRef<'_> {
    fn main(&self) -> i64 {
        self.revision().main
    }
    fn kind(&self) -> EventKind {
        engine::EventRef::kind(self)
    }
    fn key(&self) -> &[u8] {
        engine::EventRef::key(self)
    }
    fn kv(&self) -> Result<KeyValue, HistoryError> {
        Ok(engine::EventRef::kv(self)?)
    }
    fn prev(&self) -> Result<Option<KeyValue>, HistoryError> {
        Ok(engine::EventRef::prev(self)?)
    }
}

impl History for engine::View {
    fn revision(&self) -> i64 {
        engine::View::revision(self)
    }
    fn compact_revision(&self) -> i64 {
        engine::View::compact_revision(self)
    }
    fn events(
        &self,
        from: i64,
        bytes_max: usize,
        f: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
    ) -> Result<EventsEnd, HistoryError> {
        Ok(engine::View::events(self, from, bytes_max, &mut |event| {
            f(&event)
        })?)
    }
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

/// Events a call of `pump` or `catch_up` compares for near watchers before it lets others run.
const NEAR_BUDGET: usize = 50_000;

/// What one watcher of a history slice is to be sent.
struct Spec {
    watcher: Key,
    span: Span,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    next: i64,
    /// Its events in the slice's buffer.
    pieces: Vec<Range<usize>>,
}

impl Spec {
    fn filters(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        }
    }
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
        act.serve_near();
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

    // ---- requests of a stream ----

    fn create(&mut self, stream: Key, request: &pb::WatchCreateRequest, seen: Seen, now: Instant) {
        let (id, span) = match self.admit(stream, request) {
            Ok(admitted) => admitted,
            Err(why) => return self.refuse(stream, why.into(), seen.revision),
        };
        self.push(
            stream,
            WatchFrame {
                revision: seen.revision,
                watch_id: id,
                created: true,
                ..WatchFrame::default()
            },
        );
        let start = match request.start_revision {
            0 => seen.revision + 1,
            start => start,
        };
        let filter =
            |f: pb::watch_create_request::FilterType| request.filters.contains(&(f as i32));
        let key = self.watchers.insert(Watcher {
            stream,
            id,
            span,
            no_put: filter(pb::watch_create_request::FilterType::Noput),
            no_delete: filter(pb::watch_create_request::FilterType::Nodelete),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            progress_due: true,
            start,
            next: start,
            header: seen.revision,
            state: State::Near,
            mark: UNMARKED,
        });
        self.add_live(key);
        self.streams[stream].watchers.insert(id, key);
        if start < seen.compact_revision {
            self.end_compacted(key, seen.compact_revision);
        } else if start > seen.revision && start > self.position {
            self.sync(key);
        } else {
            self.near.push(key);
            self.serve_near();
        }
        if request.progress_notify {
            self.start_ticking(stream, now);
        }
    }

    /// Checks a create request and reserves its id.
    fn admit(
        &mut self,
        stream: Key,
        request: &pb::WatchCreateRequest,
    ) -> Result<(i64, Span), &'static str> {
        let span = Span::from_request(request.key.clone(), request.range_end.clone())
            .ok_or(reason::EMPTY_RANGE)?;
        if request.start_revision < 0 {
            return Err(reason::COMPACTED);
        }
        let stream = &mut self.streams[stream];
        if request.watch_id != 0 {
            return match stream.watchers.contains_key(&request.watch_id) {
                true => Err(reason::DUPLICATE_ID),
                false => Ok((request.watch_id, span)),
            };
        }
        while stream.watchers.contains_key(&stream.next_id) {
            stream.next_id += 1;
        }
        stream.next_id += 1;
        Ok((stream.next_id - 1, span))
    }

    fn refuse(&mut self, stream: Key, why: Cow<'static, str>, revision: i64) {
        self.push(
            stream,
            WatchFrame {
                revision,
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: why,
                ..WatchFrame::default()
            },
        );
    }

    fn cancel(&mut self, stream: Key, id: i64, revision: i64) {
        let Some(key) = self.streams[stream].watchers.remove(&id) else {
            return;
        };
        self.retire(key);
        self.watchers.remove(key);
        self.push(
            stream,
            WatchFrame {
                revision,
                watch_id: id,
                canceled: true,
                ..WatchFrame::default()
            },
        );
        self.answer_progress();
    }

    fn progress(&mut self, stream: Key, revision: i64) {
        let target = &mut self.streams[stream].progress;
        let waiting = target.is_some();
        // One answer at the later revision serves both requests.
        *target = Some(target.map_or(revision, |t| t.max(revision)));
        if !waiting {
            self.inner_mut().progress.push(stream);
        }
        self.answer_progress();
        if self.position < revision {
            self.hub.pump.notify_one();
        }
    }

    fn close(&mut self, stream: Key) {
        let Some(closed) = self.streams.remove(stream) else {
            return;
        };
        for key in closed.watchers.into_values() {
            self.retire(key);
            self.watchers.remove(key);
        }
        self.hub.streams.fetch_sub(1, Ordering::Relaxed);
    }

    fn inner_mut(&mut self) -> &mut Inner {
        self
    }

    // ---- states of a watcher ----

    fn add_live(&mut self, key: Key) {
        // Counted before the marks are read: from here on the ring keeps what is published.
        self.hub.feed.watcher_added();
        if self.live == 0 {
            // Nobody was synced, so nothing needs handing out on the way.
            self.position = self.position.max(self.hub.feed.marks().newest);
        }
        self.live += 1;
        // The node thread must see it before the lock is gone.
        self.hub.live.store(self.live, Ordering::SeqCst);
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

    // ---- live delivery ----

    /// Hands out the events of a batch above the position, up to revision `until`.
    fn distribute(&mut self, batch: &Batch, until: i64) {
        let mut at = batch.after(self.position);
        while at < batch.events.len() {
            let main = batch.events[at].revision.main;
            if main > until {
                return;
            }
            let rest = &batch.events[at..];
            let count = rest.iter().take_while(|e| e.revision.main == main).count();
            if count == 1 {
                self.hand_out_one(batch, at, main);
            } else {
                self.hand_out_many(batch, at..at + count, main);
            }
            self.position = main;
            let mut full = std::mem::take(&mut self.full);
            for key in full.drain(..) {
                self.unsync(key, main, State::Blocked);
            }
            self.full = full;
            at += count;
        }
    }

    /// The usual case: a revision with one event.
    fn hand_out_one(&mut self, batch: &Batch, at: usize, main: i64) {
        let event = &batch.events[at];
        let options = self.hub.feed.options();
        let inner = self.inner.as_mut().expect("held until drop");
        let Inner {
            streams,
            watchers,
            index,
            groups,
            full,
            ..
        } = &mut **inner;
        index.lookup(&event.kv.key, groups);
        for &key in groups.iter().flat_map(|&group| index.members(group)) {
            let watcher = &mut watchers[key];
            if !watcher.wants(event.kind, main) {
                continue;
            }
            let stream = &mut streams[watcher.stream];
            if !stream.has_room(options) {
                full.push(key);
                continue;
            }
            watcher.progress_due = false;
            self.events += 1;
            let frame = WatchFrame {
                revision: main,
                watch_id: watcher.id,
                events: Pieces::One(batch.piece(at, watcher.prev_kv)),
                ..WatchFrame::default()
            };
            stream.push(frame, &mut self.wakers);
        }
        groups.clear();
    }

    /// A revision with several events: they are gathered per watcher first.
    fn hand_out_many(&mut self, batch: &Batch, events: Range<usize>, main: i64) {
        let mut touched = std::mem::take(&mut self.touched);
        let inner = self.inner_mut();
        let Inner {
            watchers,
            index,
            groups,
            ..
        } = inner;
        for at in events {
            let event = &batch.events[at];
            index.lookup(&event.kv.key, groups);
            for &key in groups.iter().flat_map(|&group| index.members(group)) {
                let watcher = &mut watchers[key];
                if !watcher.wants(event.kind, main) {
                    continue;
                }
                if watcher.mark == UNMARKED {
                    watcher.mark = touched.len() as u32;
                    touched.push((key, Vec::new()));
                }
                let piece = batch.piece(at, watcher.prev_kv);
                touched[watcher.mark as usize].1.push(piece);
            }
            groups.clear();
        }
        for (key, pieces) in touched.drain(..) {
            self.watchers[key].mark = UNMARKED;
            let stream = self.watchers[key].stream;
            if self.room(stream) {
                self.respond(key, main, pieces);
            } else {
                self.full.push(key);
            }
        }
        self.touched = touched;
    }

    /// Sends events as one response, or as fragments when the watch asked for them.
    fn respond(&mut self, key: Key, revision: i64, pieces: Vec<Bytes>) {
        let fragment_bytes = self.options().fragment_bytes;
        let watcher = &mut self.watchers[key];
        watcher.progress_due = false;
        let (stream, watch_id) = (watcher.stream, watcher.id);
        let fragments = watcher.fragment;
        self.events += pieces.len() as u64;
        let mut events = Pieces::None;
        let mut bytes = HEAD_BYTES;
        for piece in pieces {
            if fragments && !events.is_empty() && bytes + piece.len() >= fragment_bytes {
                let frame = WatchFrame {
                    revision,
                    watch_id,
                    fragment: true,
                    events: std::mem::take(&mut events),
                    ..WatchFrame::default()
                };
                self.push(stream, frame);
                bytes = HEAD_BYTES;
            }
            bytes += piece.len();
            events.push(piece);
        }
        let frame = WatchFrame {
            revision,
            watch_id,
            events,
            ..WatchFrame::default()
        };
        self.push(stream, frame);
    }

    /// The ring no longer reaches back to the position: what was synced catches up.
    fn fall_behind(&mut self, newest: i64) {
        let next = self.position + 1;
        for key in self.index.all_members() {
            if self.watchers[key].next <= newest {
                self.unsync(key, next, State::Near);
            }
        }
        self.position = newest;
    }

    // ---- catching up from the ring ----

    /// Serves the watchers in `near`: from the ring up to the position, then synced; or passes them on
    /// to where they belong. Returns whether the budget ended it.
    fn serve_near(&mut self) -> bool {
        if self.near.is_empty() {
            return false;
        }
        let mut near = std::mem::take(&mut self.near);
        near.retain(|&key| {
            self.watchers
                .get(key)
                .is_some_and(|w| w.state == State::Near)
        });
        let from = near.iter().map(|&key| self.watchers[key].next).min();
        let mut batches = std::mem::take(&mut self.batches);
        let after = from.map_or(i64::MAX, |next| next - 1);
        let marks = self.hub.feed.read(after, i64::MAX, &mut batches);
        let mut budget = NEAR_BUDGET;
        let mut more = false;
        for key in near {
            if budget == 0 {
                more = true;
                self.near.push(key);
            } else {
                self.serve_near_one(key, marks, &batches, &mut budget);
            }
        }
        batches.clear();
        self.batches = batches;
        more
    }

    fn serve_near_one(
        &mut self,
        key: Key,
        marks: Marks,
        batches: &[Arc<Batch>],
        budget: &mut usize,
    ) {
        let revisions_max = self.options().catch_up_revisions_max as i64;
        loop {
            let position = self.position;
            let watcher = &self.watchers[key];
            let (next, header, stream) = (watcher.next, watcher.header, watcher.stream);
            if next > position {
                match next > header || position >= header {
                    true => self.sync(key),
                    // The pump will come past here with the position moved.
                    false => self.near.push(key),
                }
                return;
            }
            if !self.room(stream) {
                return self.block(key);
            }
            if next < marks.compacted {
                return self.end_compacted(key, marks.compacted);
            }
            if next <= marks.floor {
                self.watchers[key].state = State::Far;
                self.far.push_back(key);
                self.hub.history.notify_one();
                return;
            }
            let end = position.min(next.saturating_add(revisions_max - 1));
            let (pieces, end) = self.gather(key, marks, batches, next..=end, budget);
            let header = header.max(position);
            let watcher = &mut self.watchers[key];
            watcher.next = end + 1;
            watcher.header = header;
            if !pieces.is_empty() {
                self.respond(key, header, pieces);
            }
        }
    }

    /// The events of a watcher in a range of revisions, cut after the revision that passes the slice's
    /// bytes; and the last revision looked at.
    fn gather(
        &self,
        key: Key,
        marks: Marks,
        batches: &[Arc<Batch>],
        revisions: std::ops::RangeInclusive<i64>,
        budget: &mut usize,
    ) -> (Vec<Bytes>, i64) {
        let watcher = &self.watchers[key];
        let bytes_max = self.options().catch_up_bytes;
        let mut pieces = Vec::new();
        let mut bytes = 0;
        let mut last = 0;
        let first = batches.partition_point(|b| b.last < *revisions.start());
        for batch in &batches[first..] {
            for at in batch.after(revisions.start() - 1)..batch.events.len() {
                let event = &batch.events[at];
                let main = event.revision.main;
                if main > *revisions.end() {
                    return (pieces, *revisions.end());
                }
                if main != last && bytes >= bytes_max {
                    return (pieces, last);
                }
                last = main;
                *budget = budget.saturating_sub(1);
                if watcher.wants(event.kind, main) && watcher.span.contains(&event.kv.key) {
                    // As from history: what was before a compacted revision cannot be read.
                    let with_prev = watcher.prev_kv && main > marks.compacted;
                    let piece = batch.piece(at, with_prev);
                    bytes += piece.len();
                    pieces.push(piece);
                }
            }
        }
        (pieces, *revisions.end())
    }

    // ---- catching up from history ----

    /// Picks watchers for a slice of history: the one that waited longest and those close above it.
    fn pick_far(&mut self, compact_revision: i64) -> Vec<Spec> {
        let floor = self.hub.feed.marks().floor;
        let mut specs = Vec::new();
        let mut horizon = i64::MAX;
        let options = self.options();
        let watchers_max = options.catch_up_watchers_max;
        let revisions_max = options.catch_up_revisions_max as i64;
        for _ in 0..self.far.len() {
            let Some(key) = self.far.pop_front() else {
                break;
            };
            let Some(watcher) = self.watchers.get(key).filter(|w| w.state == State::Far) else {
                continue;
            };
            let (next, stream) = (watcher.next, watcher.stream);
            let lowest = specs.first().map_or(i64::MIN, |s: &Spec| s.next);
            if specs.len() == watchers_max || next < lowest || next >= horizon {
                self.far.push_back(key);
            } else if !self.room(stream) {
                self.block(key);
            } else if next < compact_revision {
                self.end_compacted(key, compact_revision);
            } else if next > floor {
                self.watchers[key].state = State::Near;
                self.near.push(key);
                self.hub.pump.notify_one();
            } else {
                if specs.is_empty() {
                    horizon = next.saturating_add(revisions_max);
                }
                let watcher = &mut self.watchers[key];
                watcher.state = State::Reading;
                specs.push(Spec {
                    watcher: key,
                    span: watcher.span.clone(),
                    no_put: watcher.no_put,
                    no_delete: watcher.no_delete,
                    prev_kv: watcher.prev_kv,
                    next,
                    pieces: Vec::new(),
                });
            }
        }
        specs
    }

    fn deliver_slice(
        &mut self,
        history: &impl History,
        specs: Vec<Spec>,
        slice: Result<Slice, HistoryError>,
    ) {
        for spec in specs {
            let key = spec.watcher;
            let Some(watcher) = self.watchers.get(key) else {
                continue;
            };
            if watcher.state != State::Reading {
                continue;
            }
            let (stream, header) = (watcher.stream, watcher.header.max(history.revision()));
            let slice = match &slice {
                Ok(slice) if spec.next <= slice.last => slice,
                // Not reached; or the view was too old, then the next one tells.
                Ok(_) | Err(HistoryError::Compacted) => {
                    self.watchers[key].state = State::Far;
                    self.far.push_back(key);
                    continue;
                }
                Err(HistoryError::Failed(why)) => {
                    self.end_failed(key, why.clone());
                    continue;
                }
            };
            if !spec.pieces.is_empty() {
                if !self.room(stream) {
                    self.block(key);
                    continue;
                }
                let pieces = slice.pieces(&spec, self.watchers[key].fragment);
                self.watchers[key].header = header;
                self.respond(key, header, pieces);
            }
            let watcher = &mut self.watchers[key];
            watcher.next = slice.last + 1;
            watcher.state = State::Near;
            self.near.push(key);
        }
    }

    /// History cannot be read: the client is told instead of being left without events.
    fn end_failed(&mut self, key: Key, why: String) {
        let (stream, id) = (self.watchers[key].stream, self.watchers[key].id);
        self.retire(key);
        let frame = WatchFrame {
            revision: self.position,
            watch_id: id,
            canceled: true,
            cancel_reason: why.into(),
            ..WatchFrame::default()
        };
        self.push(stream, frame);
    }

    // ---- progress ----

    fn answer_progress(&mut self) {
        if self.progress.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.progress);
        for key in waiting {
            match self.progress_verdict(key) {
                Verdict::Wait => self.progress.push(key),
                Verdict::Drop => self.clear_progress(key),
                Verdict::Answer => {
                    self.clear_progress(key);
                    let frame = WatchFrame {
                        revision: self.position,
                        watch_id: -1,
                        ..WatchFrame::default()
                    };
                    self.push(key, frame);
                }
            }
        }
    }

    fn clear_progress(&mut self, stream: Key) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.progress = None;
        }
    }

    /// What a waiting progress request of a stream is due (6W.12).
    fn progress_verdict(&self, stream: Key) -> Verdict {
        let position = self.position;
        let Some(stream) = self.streams.get(stream) else {
            return Verdict::Drop;
        };
        let Some(target) = stream.progress.filter(|_| stream.live > 0) else {
            return Verdict::Drop;
        };
        if position < target || stream.unsynced > 0 || !stream.has_room(self.options()) {
            return Verdict::Wait;
        }
        let mut verdict = Verdict::Answer;
        for &key in stream.watchers.values() {
            let watcher = &self.watchers[key];
            if watcher.state == State::Dead || watcher.progresses(position) {
                continue;
            }
            if watcher.start > position {
                // A watch of the future: etcd drops the request, and the client asks again.
                return Verdict::Drop;
            }
            verdict = Verdict::Wait;
        }
        verdict
    }

    fn start_ticking(&mut self, key: Key, now: Instant) {
        let interval = self.options().progress_interval;
        let stream = &mut self.streams[key];
        if std::mem::replace(&mut stream.ticking, true) {
            return;
        }
        let due = now + spread(interval, stream.serial);
        self.ticks.push(Reverse((due, key)));
        self.hub.pump.notify_one();
    }

    /// One tick of a stream (6W.11).
    fn notify_progress(&mut self, key: Key, now: Instant) {
        let position = self.position;
        let interval = self.options().progress_interval;
        let Some(stream) = self.streams.get(key) else {
            return;
        };
        let serial = stream.serial;
        let keys: Vec<Key> = stream.watchers.values().copied().collect();
        let mut ticking = false;
        for watcher in keys {
            let room = self.room(key);
            let watcher = &mut self.watchers[watcher];
            if !watcher.progress_notify || watcher.state == State::Dead {
                continue;
            }
            ticking = true;
            let due = std::mem::replace(&mut watcher.progress_due, true);
            if due && room && watcher.progresses(position) {
                let frame = WatchFrame {
                    revision: position,
                    watch_id: watcher.id,
                    ..WatchFrame::default()
                };
                self.push(key, frame);
            }
        }
        self.streams[key].ticking = ticking;
        if ticking {
            self.ticks
                .push(Reverse((now + spread(interval, serial), key)));
        }
    }

    // ---- the client's side ----

    fn take(
        &mut self,
        key: Key,
        max: usize,
        out: &mut Vec<WatchFrame>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let options = self.hub.feed.options();
        let inner = self.inner.as_mut().expect("held until drop");
        let Inner {
            streams,
            watchers,
            near,
            ..
        } = &mut **inner;
        let stream = &mut streams[key];
        if stream.queue.is_empty() {
            stream.taker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = stream.queue.len().min(max);
        for frame in stream.queue.drain(..count) {
            stream.bytes -= frame.weight();
            out.push(frame);
        }
        if stream.queue.is_empty() && stream.queue.capacity() > IDLE_RESPONSES_MAX {
            stream.queue = VecDeque::new();
        }
        let mut pump = stream.progress.is_some();
        if stream.half_empty(options) {
            self.wakers.extend(stream.requester.take());
            pump |= !stream.blocked.is_empty();
            for key in stream.blocked.drain(..) {
                if let Some(watcher) = watchers.get_mut(key)
                    && watcher.state == State::Blocked
                {
                    watcher.state = State::Near;
                    near.push(key);
                }
            }
        }
        if pump {
            self.hub.pump.notify_one();
        }
        Poll::Ready(())
    }
}

/// An upper bound of the encoded fields besides the events of a response that carries events.
const HEAD_BYTES: usize = 64;

/// Room for responses that an idle stream keeps.
const IDLE_RESPONSES_MAX: usize = 8;

enum Verdict {
    Answer,
    Wait,
    Drop,
}

/// The interval with up to 10 % added, by a hash of the stream's number: restarted clients do not
/// stay in step, and runs repeat.
fn spread(interval: std::time::Duration, serial: u64) -> std::time::Duration {
    let mut x = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let tenth = (x >> 40) as f64 / (1u64 << 24) as f64 / 10.0;
    interval + interval.mul_f64(tenth)
}

impl Inner {
    fn leave_index(&mut self, place: Place) {
        if let Some(moved) = self.index.remove(place) {
            self.watchers[moved].state = State::Synced(place);
        }
    }
}

/// Events read from history for a group of watchers, encoded once.
struct Slice {
    /// Events without and with the previous version, each in order.
    buffers: [Bytes; 2],
    /// Every event up to this revision was looked at.
    last: i64,
}

impl Slice {
    /// Reads from the lowest `next` of the specs on and notes in each what it is to be sent.
    fn read(
        history: &impl History,
        specs: &mut [Spec],
        options: &Options,
    ) -> Result<Slice, HistoryError> {
        let from = specs.iter().map(|s| s.next).min().unwrap_or(i64::MAX);
        let mut index = Index::default();
        for (i, spec) in specs.iter().enumerate() {
            index.insert(&spec.span, i);
        }
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut groups = Vec::new();
        let (mut revisions, mut counted) = (0, 0);
        let mut stopped = None;
        let mut failed = None;
        let end = history.events(from, options.catch_up_bytes, &mut |event| {
            let main = event.main();
            if revisions >= options.catch_up_revisions_max && main != counted {
                stopped = Some(main);
                return ControlFlow::Break(());
            }
            index.lookup(event.key(), &mut groups);
            // Per form: where this event was put, once someone wanted it.
            let mut put: [Option<Range<usize>>; 2] = [None, None];
            for &i in groups.iter().flat_map(|&group| index.members(group)) {
                let spec: &mut Spec = &mut specs[i];
                if spec.filters(event.kind()) || main < spec.next {
                    continue;
                }
                let form = usize::from(spec.prev_kv);
                let range = match &put[form] {
                    Some(range) => range.clone(),
                    None => match encode(event, spec.prev_kv, &mut buffers[form]) {
                        Ok(range) => range,
                        Err(why) => {
                            failed = Some(why);
                            return ControlFlow::Break(());
                        }
                    },
                };
                put[form] = Some(range.clone());
                spec.pieces.push(range);
                if main != counted {
                    counted = main;
                    revisions += 1;
                }
            }
            groups.clear();
            ControlFlow::Continue(())
        })?;
        if let Some(why) = failed {
            return Err(why);
        }
        let last = match stopped {
            Some(main) => main - 1,
            None if end.reached_end => history.revision(),
            None => end.next_main - 1,
        };
        Ok(Slice {
            buffers: buffers.map(BytesMut::freeze),
            last,
        })
    }

    /// The bytes for one watcher. Adjacent events become one piece, except where fragments must be
    /// able to part them; a small share of a large buffer is copied rather than keeping it alive.
    fn pieces(&self, spec: &Spec, apart: bool) -> Vec<Bytes> {
        let buffer = &self.buffers[usize::from(spec.prev_kv)];
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in &spec.pieces {
            match ranges.last_mut() {
                Some(last) if last.end == range.start && !apart => last.end = range.end,
                _ => ranges.push(range.clone()),
            }
        }
        let total: usize = ranges.iter().map(|r| r.len()).sum();
        if total >= buffer.len() / 4 {
            return ranges.into_iter().map(|r| buffer.slice(r)).collect();
        }
        let copy = ranges.into_iter();
        if apart {
            return copy.map(|r| Bytes::copy_from_slice(&buffer[r])).collect();
        }
        let mut own = BytesMut::with_capacity(total);
        copy.for_each(|r| own.extend_from_slice(&buffer[r]));
        vec![own.freeze()]
    }
}

/// Appends an event of history to a buffer; returns where it stands.
fn encode(
    event: &dyn PastEvent,
    with_prev: bool,
    buffer: &mut BytesMut,
) -> Result<Range<usize>, HistoryError> {
    let kv = event.kv()?;
    let prev = match with_prev {
        true => event.prev()?,
        false => None,
    };
    let start = buffer.len();
    let event = EventRef {
        kind: event.kind(),
        kv: frame::borrow(&kv),
        prev: prev.as_ref().map(frame::borrow),
    };
    frame::encode_event(event, buffer);
    Ok(start..buffer.len())
}

/// The server's side of one watch call.
pub struct WatchStream {
    hub: Arc<Hub>,
    key: Key,
}

impl WatchStream {
    /// Creates a watch and queues the answer. `seen` is the newest view of the moment, `now` starts
    /// the stream's progress ticker.
    pub fn create(&self, request: &pb::WatchCreateRequest, seen: Seen, now: Instant) {
        self.hub.act().create(self.key, request, seen, now);
    }

    /// Answers a create request that may not be served.
    pub fn refuse(&self, why: Cow<'static, str>, seen: Seen) {
        self.hub.act().refuse(self.key, why, seen.revision);
    }

    /// Ends a watch; nothing of it follows the answer. An unknown id is not answered.
    pub fn cancel(&self, watch_id: i64, seen: Seen) {
        self.hub.act().cancel(self.key, watch_id, seen.revision);
    }

    /// Asks for a progress response once every watch of the stream has everything up to
    /// `seen.revision`.
    pub fn progress(&self, seen: Seen) {
        self.hub.act().progress(self.key, seen.revision);
    }

    /// Appends up to `max` queued responses to `out`, waiting for the first. One waiter at a time.
    pub async fn take(&self, max: usize, out: &mut Vec<WatchFrame>) {
        poll_fn(|cx| self.poll_take(max, out, cx)).await;
    }

    /// As `take`, for callers that poll.
    pub fn poll_take(
        &self,
        max: usize,
        out: &mut Vec<WatchFrame>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.hub.act().take(self.key, max, out, cx)
    }

    /// Waits until the stream has room for the answer to another request. One waiter at a time.
    pub async fn room(&self) {
        poll_fn(|cx| {
            let mut inner = self.hub.lock();
            let stream = &mut inner.streams[self.key];
            if stream.has_room(self.hub.feed.options()) {
                return Poll::Ready(());
            }
            stream.requester = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.hub.act().close(self.key);
    }
}
