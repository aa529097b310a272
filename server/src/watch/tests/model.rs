//! Random histories, watches, slow readers and compactions against what must come out.

use super::super::{Options, WatchStream};
use super::*;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;

const KEYS: [&str; 6] = ["a", "a/x", "a/y", "b", "b/x", "c"];

/// What one watch must deliver, and how far it has.
struct Expect {
    request: pb::WatchCreateRequest,
    start: i64,
    /// Events delivered so far.
    got: Vec<mvccpb::Event>,
    /// Last header revision of a response with events or of a progress response.
    header: i64,
    /// No event up to this revision may follow.
    promised: i64,
    /// Fragments of a response that is not complete.
    open: bool,
    ended: Option<i64>,
}

struct Client {
    stream: WatchStream,
    watches: BTreeMap<i64, Expect>,
    /// Creates that were not answered yet, in order.
    asked: Vec<pb::WatchCreateRequest>,
    /// Cancels that were not answered yet.
    canceled: Vec<i64>,
}

fn wants(request: &pb::WatchCreateRequest, event: &Event) -> bool {
    let filter = match event.kind {
        EventKind::Put => FilterType::Noput,
        EventKind::Delete => FilterType::Nodelete,
    };
    let key = &event.kv.key[..];
    let inside = match &request.range_end[..] {
        [] => key == request.key,
        [0] => key >= &request.key[..],
        end => key >= &request.key[..] && key < end,
    };
    inside && !request.filters.contains(&(filter as i32))
}

impl Client {
    fn receive(&mut self, response: pb::WatchResponse, store: &Store) {
        let header = revision(&response);
        let id = response.watch_id;
        if response.created {
            let request = self.asked.remove(0);
            if response.canceled {
                assert_eq!(id, -1);
                return;
            }
            let start = match request.start_revision {
                0 => header + 1,
                start => start,
            };
            let expect = Expect {
                request,
                start,
                got: Vec::new(),
                header: 0,
                promised: 0,
                open: false,
                ended: None,
            };
            assert!(self.watches.insert(id, expect).is_none(), "id {id} twice");
            return;
        }
        if response.canceled {
            if response.compact_revision > 0 {
                let watch = self.watches.get_mut(&id).expect("a known watch");
                assert!(watch.ended.is_none() && !watch.open && header == 0);
                watch.ended = Some(response.compact_revision);
            } else {
                let at = self.canceled.iter().position(|&c| c == id);
                self.canceled.remove(at.expect("a cancel was asked for"));
                let watch = self.watches.remove(&id).unwrap();
                watch.check(store, false);
            }
            return;
        }
        if response.events.is_empty() {
            for (_, watch) in self.watches.iter_mut().filter(|w| id == -1 || *w.0 == id) {
                if watch.ended.is_none() {
                    assert!(header >= watch.header, "a header went back");
                    assert!(header >= watch.start, "a promise before the start");
                    (watch.header, watch.promised) = (header, header);
                    watch.check_prefix(store, header);
                }
            }
            return;
        }
        let watch = self.watches.get_mut(&id).expect("a known watch");
        assert!(watch.ended.is_none(), "an event after the end");
        let first = response.events[0].kv.as_ref().unwrap().mod_revision;
        if !watch.open {
            assert!(header >= watch.header, "a header went back");
            let last = watch
                .got
                .last()
                .map_or(0, |e| e.kv.as_ref().unwrap().mod_revision);
            assert!(first > last, "revision {last} was split");
        }
        assert!(first > watch.promised, "an event behind its promise");
        assert!(!response.fragment || watch.request.fragment);
        (watch.header, watch.open) = (header, response.fragment);
        watch.got.extend(response.events);
    }
}

impl Expect {
    /// All of what was delivered is what should have been, in order and up to revision `to`.
    fn check_prefix(&self, store: &Store, to: i64) {
        let want = store
            .events
            .iter()
            .filter(|e| e.revision.main >= self.start && e.revision.main <= to)
            .filter(|e| wants(&self.request, e));
        let mut got = self.got.iter();
        for want in want {
            let got = got.next().unwrap_or_else(|| panic!("{want:?} is missing"));
            let kv = got.kv.as_ref().unwrap();
            assert_eq!(
                (&kv.key, &kv.value, kv.mod_revision, kv.version),
                (
                    &want.kv.key,
                    &want.kv.value,
                    want.revision.main,
                    want.kv.version
                )
            );
            assert_eq!(got.r#type, i32::from(want.kind == EventKind::Delete));
            match (&got.prev_kv, &want.prev) {
                (Some(got), Some(want)) => {
                    assert!(self.request.prev_kv);
                    assert_eq!(
                        (&got.value, got.mod_revision),
                        (&want.value, want.mod_revision)
                    );
                }
                (None, Some(_)) => {
                    // May be gone only where a compaction reached the event.
                    let compacted = store.compact_revision >= want.revision.main;
                    assert!(!self.request.prev_kv || compacted, "{want:?} lost its past");
                }
                (None, None) => {}
                (Some(_), None) => panic!("{want:?} has no past"),
            }
        }
        assert!(got.next().is_none(), "more than there is");
    }

    /// At the end: everything if the watch lives, a prefix that ends below the compact revision if not.
    fn check(&self, store: &Store, complete: bool) {
        let last = self
            .got
            .last()
            .map_or(0, |e| e.kv.as_ref().unwrap().mod_revision);
        match self.ended {
            Some(compact_revision) => {
                assert!(self.start < compact_revision && last < compact_revision);
                self.check_prefix(store, last);
            }
            None if complete => self.check_prefix(store, store.revision),
            None => self.check_prefix(store, last),
        }
    }
}

fn create_request(rng: &mut StdRng, store: &Store) -> pb::WatchCreateRequest {
    let (key, range_end) = *[
        ("a", ""),
        ("b/x", ""),
        ("a", "b"),
        ("a/", "a0"),
        ("b", "\0"),
        ("\0", "\0"),
        ("c", "a"),
    ]
    .choose(rng)
    .unwrap();
    let filters = match rng.gen_range(0..8) {
        0 => vec![FilterType::Noput as i32],
        1 => vec![FilterType::Nodelete as i32],
        _ => vec![],
    };
    pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: match rng.gen_range(0..3) {
            0 => 0,
            _ => rng.gen_range(-1..store.revision + 4),
        },
        progress_notify: rng.gen_bool(0.3),
        filters,
        prev_kv: rng.gen_bool(0.5),
        watch_id: if rng.gen_bool(0.1) {
            rng.gen_range(0..5)
        } else {
            0
        },
        fragment: rng.gen_bool(0.3),
    }
}

fn ops(rng: &mut StdRng) -> Vec<Op> {
    let count = if rng.gen_bool(0.7) {
        1
    } else {
        rng.gen_range(1..7)
    };
    (0..count)
        .map(|_| {
            let key = KEYS.choose(rng).unwrap();
            match rng.gen_bool(0.7) {
                true => Op::Put(key, "v".repeat(rng.gen_range(0..60))),
                false => Op::Delete(key),
            }
        })
        .collect()
}

/// One run of random steps; every watch is checked at every promise and at the end.
fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let options = Options {
        ring_events_max: rng.gen_range(1..20),
        stream_responses_max: rng.gen_range(1..6),
        stream_bytes_max: rng.gen_range(200..1500),
        catch_up_revisions_max: rng.gen_range(1..5),
        catch_up_bytes: rng.gen_range(1..200),
        catch_up_watchers_max: rng.gen_range(1..4),
        pump_revisions_max: rng.gen_range(1..5),
        fragment_bytes: 150,
        ..options()
    };
    let mut world = World::new(options);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..400 {
        match rng.gen_range(0..100) {
            0..25 => world.store.txn(&ops(&mut rng)),
            25..40 => world.publish(),
            40..42 => {
                let to = rng.gen_range(-1..=world.store.revision);
                if to > world.store.compact_revision && world.store.revision > 1 {
                    world.store.compact_revision = to;
                }
            }
            42..45 if clients.len() < 4 => clients.push(Client {
                stream: world.hub.open(),
                watches: BTreeMap::new(),
                asked: Vec::new(),
                canceled: Vec::new(),
            }),
            45 if !clients.is_empty() => {
                clients.swap_remove(rng.gen_range(0..clients.len()));
            }
            46..54 => {
                if let Some(client) = clients.choose_mut(&mut rng) {
                    // A view is published before the feed hears of it.
                    let request = create_request(&mut rng, &world.store);
                    client.asked.push(request.clone());
                    world.create(&client.stream, request);
                }
            }
            54..56 => {
                if let Some(client) = clients.choose_mut(&mut rng) {
                    let ids: Vec<_> = client.watches.keys().copied().collect();
                    let id = ids.choose(&mut rng);
                    if let Some(&id) = id.filter(|id| !client.canceled.contains(id)) {
                        client.canceled.push(id);
                        client.stream.cancel(id, world.store.seen());
                    }
                }
            }
            56..60 => {
                if let Some(client) = clients.choose(&mut rng) {
                    client.stream.progress(world.store.seen());
                }
            }
            60..62 => {
                world.later(Duration::from_secs(700));
                world.hub.tick(world.now);
            }
            62..75 => drop(world.hub.pump()),
            75..85 => {
                // Reading history overlaps with everything else.
                let past = world.past();
                let victim = match clients.choose(&mut rng) {
                    Some(client) if rng.gen_bool(0.3) => {
                        let ids: Vec<_> = client.watches.keys().copied().collect();
                        ids.choose(&mut rng)
                            .filter(|id| !client.canceled.contains(id))
                            .map(|&id| (client, id))
                    }
                    _ => None,
                };
                let mut cancelled = None;
                {
                    let seen = world.store.seen();
                    let done = RefCell::new(&mut cancelled);
                    let hub = &world.hub;
                    let during = Box::new(|| {
                        hub.pump();
                        if let Some((client, id)) = victim {
                            client.stream.cancel(id, seen);
                            **done.borrow_mut() = Some(id);
                        }
                    });
                    hub.catch_up(|| Past {
                        store: past.store,
                        during,
                    });
                }
                if let (Some((client, id)), Some(_)) = (victim, cancelled) {
                    let stream: *const WatchStream = &client.stream;
                    let client = clients.iter_mut().find(|c| std::ptr::eq(&c.stream, stream));
                    client.unwrap().canceled.push(id);
                }
            }
            _ => {
                if let Some(client) = clients.choose_mut(&mut rng) {
                    for response in take_some(&client.stream, rng.gen_range(1..8)) {
                        client.receive(response, &world.store);
                    }
                }
            }
        }
    }
    world.publish();
    for _ in 0..2000 {
        world.settle();
        let mut idle = true;
        for client in &mut clients {
            for response in take(&client.stream) {
                idle = false;
                client.receive(response, &world.store);
            }
        }
        if idle {
            break;
        }
    }
    world.settle();
    let stats = world.hub.stats();
    assert_eq!(
        (stats.unsynced, stats.queued),
        (0, 0),
        "everything is delivered"
    );
    for client in &clients {
        assert!(client.asked.is_empty() && client.canceled.is_empty());
        for watch in client.watches.values() {
            assert!(!watch.open, "fragments are complete");
            watch.check(&world.store, true);
        }
    }
    drop(clients);
    assert_eq!((world.feed.watchers(), world.hub.stats().watchers), (0, 0));
}

#[test]
fn every_watch_delivers_its_events_once_in_order_and_whole() {
    let rounds = std::env::var("QUORATE_ROUNDS").ok();
    let rounds: u64 = rounds.map_or(400, |r| r.parse().expect("QUORATE_ROUNDS is a number"));
    let seeds = std::env::var("QUORATE_SEED").ok();
    if let Some(seed) = seeds {
        return run(seed.parse().expect("QUORATE_SEED is a number"));
    }
    for seed in 0..rounds {
        if let Err(failed) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("run again with QUORATE_SEED={seed}");
            std::panic::resume_unwind(failed);
        }
    }
}
