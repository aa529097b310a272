//! The hand-over between the node thread, the hubs and the readers of history, on real threads.

use super::super::{Options, WatchStream};
use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

struct Shared {
    store: Mutex<Store>,
    done: AtomicBool,
}

const KEYS: [&str; 4] = ["a/1", "a/2", "b/1", "c"];

/// A client that opens a watch at a random revision, reads at its own pace and then compares.
fn client(shared: &Shared, hub: &Arc<Hub>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stream = hub.open();
    let (request, wants): (_, fn(&[u8]) -> bool) = match rng.gen_range(0..3) {
        0 => (range("a/", "a0"), |k| k.starts_with(b"a/")),
        1 => (range("\0", "\0"), |_| true),
        _ => (key("b/1"), |k| k == b"b/1"),
    };
    let seen = shared.store.lock().unwrap().seen();
    let start = rng.gen_range(1..=seen.revision + 3);
    stream.create(&from(start, request), seen, Instant::now());
    let mut got = Vec::new();
    while !shared.done.load(Ordering::SeqCst) {
        read(&stream, rng.gen_range(0..4), &mut got);
        match rng.gen_bool(0.01) {
            true => std::thread::sleep(Duration::from_micros(200)),
            false => std::thread::yield_now(),
        }
    }
    // The answer to this stands behind everything.
    stream.progress(shared.store.lock().unwrap().seen());
    while !read(&stream, 16, &mut got) {
        std::thread::yield_now();
    }
    let store = shared.store.lock().unwrap();
    let want: Vec<_> = store
        .events
        .iter()
        .filter(|e| e.revision.main >= start && wants(&e.kv.key))
        .map(|e| (e.kv.key.clone(), e.revision.main))
        .collect();
    assert_eq!(got, want);
}

/// Reads some responses; returns whether the answer to a progress request was among them.
fn read(stream: &WatchStream, max: usize, got: &mut Vec<(bytes::Bytes, i64)>) -> bool {
    let mut end = false;
    for response in take_some(stream, max) {
        assert!(!end, "something behind the promise");
        end = response.watch_id == -1;
        let kvs = response.events.into_iter().map(|e| e.kv.unwrap());
        got.extend(kvs.map(|kv| (kv.key, kv.mod_revision)));
    }
    end
}

/// Repeats a step until it is told to stop.
fn until(stop: &tokio::sync::watch::Sender<bool>, step: impl AsyncFn()) {
    let mut stop = stop.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(async {
        let steps = async {
            loop {
                step().await;
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = steps => {}
        }
    });
}

#[test]
fn nothing_is_lost_between_threads() {
    for round in 0..3 {
        let feed = Feed::new(
            1,
            -1,
            Options {
                ring_events_max: 50,
                stream_responses_max: 8,
                catch_up_revisions_max: 20,
                catch_up_bytes: 500,
                pump_revisions_max: 4,
                ..options()
            },
        );
        let shared = Shared {
            store: Mutex::new(Store {
                events: Vec::new(),
                live: BTreeMap::new(),
                revision: 1,
                compact_revision: -1,
            }),
            done: AtomicBool::new(false),
        };
        let hubs = [feed.hub(), feed.hub()];
        let stop = tokio::sync::watch::Sender::new(false);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..6)
                .map(|i| {
                    let (shared, hub) = (&shared, &hubs[i % 2]);
                    scope.spawn(move || client(shared, hub, round * 100 + i as u64))
                })
                .collect();
            for hub in &hubs {
                let (stop, shared) = (&stop, &shared);
                scope.spawn(move || {
                    until(stop, async || {
                        while hub.pump() {}
                        hub.wait().await;
                    })
                });
                scope.spawn(move || {
                    let past = || Past {
                        store: shared.store.lock().unwrap().clone(),
                        during: Box::new(|| {}),
                    };
                    until(stop, async || {
                        while hub.catch_up(past) {}
                        hub.wait_history().await;
                    })
                });
            }
            let mut rng = StdRng::seed_from_u64(round);
            for _ in 0..300 {
                // One publish of several revisions: visible first, then fed, as the node does it.
                let (seen, events) = {
                    let mut store = shared.store.lock().unwrap();
                    let before = store.events.len();
                    for _ in 0..rng.gen_range(1..6) {
                        let key = KEYS[rng.gen_range(0..KEYS.len())];
                        store.txn(&[Op::Put(key, "v".into())]);
                    }
                    (store.seen(), store.events[before..].into())
                };
                feed.append(seen.revision, seen.compact_revision, events);
                if rng.gen_bool(0.3) {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            shared.done.store(true, Ordering::SeqCst);
            let ended: Vec<_> = clients.into_iter().map(|c| c.join()).collect();
            stop.send_replace(true);
            for result in ended {
                result.unwrap_or_else(|failed| std::panic::resume_unwind(failed));
            }
        });
        assert_eq!(feed.watchers(), 0);
    }
}
