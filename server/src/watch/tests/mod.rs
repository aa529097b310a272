//! A hub against a store that is simple enough to be believed.

mod model;
mod rules;
mod stress;

use super::feed::{Feed, Options};
use super::history::{History, HistoryError, PastEvent};
use super::hub::{Hub, Seen, WatchStream};
use crate::limits::Limits;
use engine::{Event, EventKind, EventsEnd, KeyValue, Revision};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::mvccpb;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// One change of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    Put(&'static str, String),
    Delete(&'static str),
}

/// The dumb store: every event ever, the live keys, and what was not published yet.
#[derive(Clone)]
pub struct Store {
    pub events: Vec<Event>,
    pub live: BTreeMap<&'static str, KeyValue>,
    pub revision: i64,
    pub compact_revision: i64,
}

impl Store {
    pub fn txn(&mut self, ops: &[Op]) {
        let main = self.revision + 1;
        let before = self.events.len();
        for op in ops {
            let revision = Revision {
                main,
                sub: (self.events.len() - before) as i64,
            };
            let (kind, key) = match op {
                Op::Put(key, _) => (EventKind::Put, *key),
                Op::Delete(key) => (EventKind::Delete, *key),
            };
            let prev = self.live.get(key).cloned();
            let key_bytes = bytes::Bytes::from_static(key.as_bytes());
            let kv = match op {
                Op::Put(_, value) => KeyValue {
                    key: key_bytes,
                    value: value.clone().into(),
                    create_revision: prev.as_ref().map_or(main, |p| p.create_revision),
                    mod_revision: main,
                    version: prev.as_ref().map_or(1, |p| p.version + 1),
                    lease: 0,
                },
                Op::Delete(_) if prev.is_none() => continue,
                Op::Delete(_) => KeyValue {
                    key: key_bytes,
                    mod_revision: main,
                    ..KeyValue::default()
                },
            };
            match kind {
                EventKind::Put => drop(self.live.insert(key, kv.clone())),
                EventKind::Delete => drop(self.live.remove(key)),
            }
            self.events.push(Event {
                kind,
                revision,
                kv,
                prev,
            });
        }
        if self.events.len() > before {
            self.revision = main;
        }
    }

    pub fn seen(&self) -> Seen {
        Seen {
            revision: self.revision,
            compact_revision: self.compact_revision,
        }
    }
}

/// A state of the store; `during` runs in the middle of every read.
pub struct Past<'a> {
    pub store: Store,
    pub during: Box<dyn Fn() + 'a>,
}

struct Stored<'a> {
    event: &'a Event,
    compact_revision: i64,
}

impl PastEvent for Stored<'_> {
    fn main(&self) -> i64 {
        self.event.revision.main
    }
    fn kind(&self) -> EventKind {
        self.event.kind
    }
    fn key(&self) -> &[u8] {
        &self.event.kv.key
    }
    fn kv(&self) -> Result<KeyValue, HistoryError> {
        Ok(self.event.kv.clone())
    }
    fn prev(&self) -> Result<Option<KeyValue>, HistoryError> {
        let readable = self.main() > self.compact_revision;
        Ok(self.event.prev.clone().filter(|_| readable))
    }
}

impl History for Past<'_> {
    fn revision(&self) -> i64 {
        self.store.revision
    }
    fn compact_revision(&self) -> i64 {
        self.store.compact_revision
    }
    fn events(
        &self,
        from: i64,
        bytes_max: usize,
        f: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
    ) -> Result<EventsEnd, HistoryError> {
        (self.during)();
        if from < self.store.compact_revision {
            return Err(HistoryError::Compacted);
        }
        let (mut bytes, mut last) = (0, from);
        for event in self.store.events.iter().filter(|e| e.revision.main >= from) {
            let main = event.revision.main;
            if main > last && bytes >= bytes_max {
                return Ok(EventsEnd {
                    next_main: main,
                    reached_end: false,
                });
            }
            last = main;
            bytes += event.kv.key.len() + event.kv.value.len();
            let stored = Stored {
                event,
                compact_revision: self.store.compact_revision,
            };
            if f(&stored).is_break() {
                return Ok(EventsEnd {
                    next_main: main,
                    reached_end: false,
                });
            }
        }
        Ok(EventsEnd {
            next_main: self.store.revision + 1,
            reached_end: true,
        })
    }
}

/// A store with a feed and one hub.
pub struct World {
    pub store: Store,
    pub feed: Arc<Feed>,
    pub hub: Arc<Hub>,
    pub now: Instant,
    published: usize,
}

pub fn options() -> Options {
    Options::new(&Limits::default())
}

impl World {
    pub fn new(options: Options) -> World {
        let store = Store {
            events: Vec::new(),
            live: BTreeMap::new(),
            revision: 1,
            compact_revision: -1,
        };
        let feed = Feed::new(1, -1, options);
        World {
            store,
            hub: feed.hub(),
            feed,
            now: Instant::now(),
            published: 0,
        }
    }

    /// Publishes what was written since the last time.
    pub fn publish(&mut self) {
        let events = self.store.events[self.published..].into();
        self.published = self.store.events.len();
        self.feed
            .append(self.store.revision, self.store.compact_revision, events);
    }

    /// One published transaction.
    pub fn txn(&mut self, ops: &[Op]) {
        self.store.txn(ops);
        self.publish();
    }

    pub fn put(&mut self, key: &'static str) {
        let value = format!("v{}", self.store.revision + 1);
        self.txn(&[Op::Put(key, value)]);
    }

    pub fn delete(&mut self, key: &'static str) {
        self.txn(&[Op::Delete(key)]);
    }

    pub fn compact(&mut self, revision: i64) {
        self.store.compact_revision = revision;
        self.publish();
    }

    pub fn past(&self) -> Past<'static> {
        Past {
            store: self.store.clone(),
            during: Box::new(|| {}),
        }
    }

    /// Does everything there is to do.
    pub fn settle(&self) {
        for _ in 0..10_000 {
            let pumped = self.hub.pump();
            let caught_up = self.hub.catch_up(|| self.past());
            if !pumped && !caught_up {
                return;
            }
        }
        panic!("the hub does not come to rest");
    }

    pub fn create(&self, stream: &WatchStream, request: pb::WatchCreateRequest) {
        stream.create(&request, self.store.seen(), self.now);
    }

    /// Creates a watch and takes its id from the answer.
    pub fn watch(&self, stream: &WatchStream, request: pb::WatchCreateRequest) -> i64 {
        self.create(stream, request);
        let answer = take_some(stream, 1).pop().expect("an answer");
        assert!(answer.created && !answer.canceled, "{answer:?}");
        answer.watch_id
    }

    pub fn later(&mut self, time: Duration) {
        self.now += time;
    }
}

pub const HEADER: pb::ResponseHeader = pb::ResponseHeader {
    cluster_id: 1,
    member_id: 2,
    revision: 0,
    raft_term: 3,
};

/// Takes up to `max` responses a stream has.
pub fn take_some(stream: &WatchStream, max: usize) -> Vec<pb::WatchResponse> {
    let mut frames = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let _: Poll<()> = stream.poll_take(max, &mut frames, &mut cx);
    frames
        .into_iter()
        .map(|frame| frame.answer(HEADER).into_message())
        .collect()
}

/// Takes all responses a stream has.
pub fn take(stream: &WatchStream) -> Vec<pb::WatchResponse> {
    let mut all = Vec::new();
    loop {
        let some = take_some(stream, 1000);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

pub fn key(key: &'static str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub fn range(key: &'static str, end: &'static str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    }
}

pub fn from(start_revision: i64, request: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        start_revision,
        ..request
    }
}

pub fn revision(response: &pb::WatchResponse) -> i64 {
    response.header.as_ref().expect("always present").revision
}

/// `put k@2`, `delete k@3 (was @2)`.
pub fn show(event: &mvccpb::Event) -> String {
    let kv = event.kv.as_ref().expect("always present");
    let kind = ["put", "delete"][event.r#type as usize];
    let key = String::from_utf8_lossy(&kv.key);
    let was = match &event.prev_kv {
        Some(prev) => format!(" (was @{})", prev.mod_revision),
        None => String::new(),
    };
    format!("{kind} {key}@{}{was}", kv.mod_revision)
}

/// The events of a response.
pub fn shown(response: &pb::WatchResponse) -> Vec<String> {
    response.events.iter().map(show).collect()
}
