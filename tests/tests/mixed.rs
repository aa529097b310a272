//! Everything at once: several clients put, delete, compare, read and revoke, each on its own keys and
//! each beside an exact model of them, with values from nothing to the request limit, while the store
//! is compacted and defragmented and hashed; between the phases the member is killed. Every answer, every
//! event of a watch and every old revision must be what the model says. The same runs against real
//! etcd, so that the model itself is proven.
//!
//! `QUORATE_MIXED_OPS` sets the calls per client and phase (250), `QUORATE_MIXED_SEED` the seed (1).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_tests::client::{self, Client, IntoOp, rev};
use quorate_tests::server::{Program, Server};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use tonic::Code;

const WORKERS: usize = 6;
const PHASES: usize = 3;
const KEYS: u32 = 40;
/// Old states that a worker remembers.
const PAST_MAX: usize = 8;
/// Compactions stay this far behind the slowest watch.
const BEHIND: i64 = 150;

type State = BTreeMap<Bytes, KeyValue>;

/// What one worker knows of its keys: nobody else touches them.
struct Model {
    prefix: String,
    state: State,
    past: VecDeque<(i64, State)>,
    events: Vec<Event>,
    leases: Vec<i64>,
    next_lease: i64,
}

impl Model {
    fn new(worker: usize) -> Model {
        Model {
            prefix: format!("m{worker}/"),
            state: State::new(),
            past: VecDeque::new(),
            events: Vec::new(),
            leases: Vec::new(),
            next_lease: 1000 * (worker as i64 + 1),
        }
    }

    fn key(&self, number: u32) -> Bytes {
        Bytes::from(format!("{}{number:02}", self.prefix))
    }

    fn end(&self) -> Bytes {
        client::prefix_end(self.prefix.as_bytes())
    }

    fn put(&mut self, revision: i64, key: &Bytes, value: Bytes, lease: i64) -> Option<KeyValue> {
        let prev = self.state.get(key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            value,
            create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(0, |p| p.version) + 1,
            lease,
        };
        self.events.push(Event {
            r#type: EventType::Put as i32,
            kv: Some(kv.clone()),
            prev_kv: prev.clone(),
        });
        self.state.insert(key.clone(), kv);
        prev
    }

    /// Deletes what `keys` picks, in key order.
    fn delete(&mut self, revision: i64, keys: impl Fn(&KeyValue) -> bool) -> Vec<KeyValue> {
        let gone: Vec<_> = self.state.values().filter(|kv| keys(kv)).cloned().collect();
        for kv in &gone {
            self.state.remove(&kv.key);
            self.events.push(Event {
                r#type: EventType::Delete as i32,
                kv: Some(KeyValue {
                    key: kv.key.clone(),
                    mod_revision: revision,
                    ..KeyValue::default()
                }),
                prev_kv: Some(kv.clone()),
            });
        }
        gone
    }

    fn remember(&mut self, revision: i64) {
        self.past.push_back((revision, self.state.clone()));
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }
}

/// What the workers share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// For each worker: events with revisions up to here have been seen by its watch.
    watched: [AtomicI64; WORKERS],
    /// The highest revision a compaction was asked for.
    compacted: AtomicI64,
}

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok().and_then(|n| n.parse().ok());
    set.unwrap_or(default)
}

/// Mostly small values, some of many pages, a few near the request limit of 1.5 MiB.
fn value(rng: &mut StdRng) -> Bytes {
    let len = match rng.gen_range(0..100) {
        0..=4 => 0,
        5..=79 => rng.gen_range(1..600),
        80..=93 => rng.gen_range(600..20_000),
        94..=97 => rng.gen_range(20_000..300_000),
        _ => rng.gen_range(300_000..1_400_000),
    };
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes.into()
}

fn same(found: &[KeyValue], expected: &[KeyValue], what: &str) {
    // Not assert_eq: a value may be megabytes.
    let names = |kvs: &[KeyValue]| -> Vec<String> {
        let name = |kv: &KeyValue| {
            let key = String::from_utf8_lossy(&kv.key);
            let (c, m, v) = (kv.create_revision, kv.mod_revision, kv.version);
            format!("{key} {c}/{m}/{v} lease {} {} B", kv.lease, kv.value.len())
        };
        kvs.iter().map(name).collect()
    };
    assert_eq!(names(found), names(expected), "{what}");
    assert!(found == expected, "{what}: a value differs");
}

/// The keys of `state` in `[from, to)`.
fn between(state: &State, from: &Bytes, to: &Bytes) -> Vec<KeyValue> {
    let kvs = state.range(from.clone()..to.clone());
    kvs.map(|(_, kv)| kv.clone()).collect()
}

async fn put_one(c: &Client, m: &mut Model, rng: &mut StdRng) {
    let key = m.key(rng.gen_range(0..KEYS));
    let lease = match rng.gen_bool(0.2) {
        true => m.leases.choose(rng).copied().unwrap_or(0),
        false => 0,
    };
    let mut request = client::put(key.clone(), value(rng));
    request.lease = lease;
    request.prev_kv = rng.gen_bool(0.5);
    request.ignore_value = m.state.contains_key(&key) && rng.gen_bool(0.1);
    if request.ignore_value {
        request.value = m.state[&key].value.clone();
    }
    let (value, wants_prev) = (request.value.clone(), request.prev_kv);
    if request.ignore_value {
        request.value = Bytes::new();
    }
    let response = c.put(request).await;
    let revision = rev(&response.header);
    let prev = m.put(revision, &key, value, lease).filter(|_| wants_prev);
    same(
        response.prev_kv.as_slice(),
        prev.as_slice(),
        "the previous pair of a put",
    );
    m.remember(revision);
}

async fn delete_some(c: &Client, m: &mut Model, rng: &mut StdRng) {
    let from = rng.gen_range(0..KEYS);
    let to = from + rng.gen_range(1..6);
    let (from, to) = (m.key(from), m.key(to));
    let mut request = client::delete_span(from.clone(), to.clone());
    request.prev_kv = rng.gen_bool(0.5);
    let wants_prev = request.prev_kv;
    let response = c.delete(request).await;
    let revision = rev(&response.header);
    let gone = m.delete(revision, |kv| kv.key >= from && kv.key < to);
    assert_eq!(response.deleted as usize, gone.len());
    let expected: &[KeyValue] = if wants_prev { &gone } else { &[] };
    same(&response.prev_kvs, expected, "the pairs deleted");
    if !gone.is_empty() {
        m.remember(revision);
    }
}

/// If a version holds: put one key, put another, delete a third, read all; else read all.
async fn transact(c: &Client, m: &mut Model, rng: &mut StdRng) {
    let mut numbers: Vec<u32> = (0..KEYS).collect();
    numbers.shuffle(rng);
    let [one, two, three] = [numbers[0], numbers[1], numbers[2]].map(|n| m.key(n));
    let version = m.state.get(&one).map_or(0, |kv| kv.version);
    let asked = version + i64::from(rng.gen_bool(0.3));
    let compare = client::compare(
        one.clone(),
        CompareResult::Equal,
        TargetUnion::Version(asked),
        CompareTarget::Version,
    );
    let (value_1, value_2) = (value(rng), Bytes::from(format!("{asked}")));
    let all = client::span(m.prefix.clone(), m.end());
    let then = [
        client::put(one.clone(), value_1.clone()).op(),
        client::put(two.clone(), value_2.clone()).op(),
        client::delete(three.clone()).op(),
        all.clone().op(),
    ];
    let response = c.txn(client::txn([compare], then, [all.op()])).await;
    assert_eq!(response.succeeded, asked == version);
    if response.succeeded {
        let revision = rev(&response.header);
        m.put(revision, &one, value_1, 0);
        m.put(revision, &two, value_2, 0);
        m.delete(revision, |kv| kv.key == three);
        m.remember(revision);
    }
    let Some(Response::ResponseRange(read)) =
        response.responses.last().and_then(|r| r.response.as_ref())
    else {
        panic!("the last answer of a transaction is no range");
    };
    let expected: Vec<_> = m.state.values().cloned().collect();
    same(&read.kvs, &expected, "a range in a transaction");
}

async fn read(c: &Client, m: &Model, rng: &mut StdRng, shared: &Shared) {
    let from = rng.gen_range(0..KEYS);
    let to = m.key(rng.gen_range(from..KEYS + 1));
    let from = m.key(from);
    let mut request = client::span(from.clone(), to.clone());
    let limit = rng.gen_range(0..10usize);
    request.limit = limit as i64;
    request.serializable = rng.gen_bool(0.5);
    let (mut state, mut old) = (&m.state, None);
    if rng.gen_bool(0.4)
        && let Some((revision, past)) = m.past.iter().collect::<Vec<_>>().choose(rng)
    {
        request.revision = *revision;
        (state, old) = (past, Some(*revision));
    }
    if from == to {
        // The wire knows no empty span: the same key twice reads nothing.
        return;
    }
    let response = match (c.try_range(request).await, old) {
        (Err(status), Some(revision)) => {
            assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
            let compacted = shared.compacted.load(Ordering::Acquire);
            assert!(
                revision < compacted,
                "{revision} is not compacted: {compacted} is"
            );
            return;
        }
        (response, _) => client::ok(response),
    };
    let all = between(state, &from, &to);
    let cut = if limit == 0 {
        all.len()
    } else {
        limit.min(all.len())
    };
    assert_eq!(response.count as usize, all.len(), "count");
    assert_eq!(response.more, cut < all.len(), "more");
    same(&response.kvs, &all[..cut], "a range");
}

async fn lease(c: &Client, m: &mut Model, rng: &mut StdRng) {
    if m.leases.len() < 3 {
        m.next_lease += 1;
        c.grant(6000, m.next_lease).await;
        return m.leases.push(m.next_lease);
    }
    let at = rng.gen_range(0..m.leases.len());
    let id = m.leases[at];
    let attached = |kv: &KeyValue| kv.lease == id;
    let mut keys = c.time_to_live(id).await.keys;
    keys.sort();
    let known: Vec<_> = m.state.values().filter(|kv| attached(kv)).collect();
    assert_eq!(keys, known.iter().map(|kv| &kv.key).collect::<Vec<_>>());
    if rng.gen_bool(0.5) {
        let revision = rev(&c.revoke(id).await.header);
        m.leases.swap_remove(at);
        if !m.delete(revision, attached).is_empty() {
            m.remember(revision);
        }
    }
}

async fn work(c: Client, mut m: Model, mut rng: StdRng, shared: Arc<Shared>, ops: u64) -> Model {
    for _ in 0..ops {
        match rng.gen_range(0..100) {
            0..=39 => put_one(&c, &mut m, &mut rng).await,
            40..=49 => delete_some(&c, &mut m, &mut rng).await,
            50..=64 => transact(&c, &mut m, &mut rng).await,
            65..=92 => read(&c, &m, &mut rng, &shared).await,
            _ => lease(&c, &mut m, &mut rng).await,
        }
    }
    m
}

/// Receives what happens to the keys of a worker until `shared.stop`; later what the model has more.
async fn follow(c: Client, worker: usize, shared: Arc<Shared>, from: i64) -> (Vec<Event>, Client) {
    let prefix = format!("m{worker}/");
    let mut request = client::watch(prefix.clone(), client::prefix_end(prefix.as_bytes()));
    request.start_revision = from;
    request.prev_kv = true;
    request.fragment = worker % 2 == 1;
    let mut stream = c.watching(request).await;
    let mut events: Vec<Event> = Vec::new();
    while !shared.stop.load(Ordering::Acquire) {
        let Some(response) = stream.next_within(Duration::from_millis(20)).await else {
            continue;
        };
        assert!(!response.canceled, "{}", response.cancel_reason);
        shared.watched[worker].fetch_max(rev(&response.header), Ordering::AcqRel);
        events.extend(response.events);
    }
    // A marker behind everything: what comes before it is all there was.
    let marker = client::put(format!("{prefix}~end"), "");
    let last = rev(&c.put(marker.clone()).await.header);
    loop {
        let done = events
            .last()
            .is_some_and(|e| e.kv.as_ref().is_some_and(|kv| kv.mod_revision == last));
        if done {
            events.pop();
            break;
        }
        let response = stream.next().await;
        assert!(!response.canceled, "{}", response.cancel_reason);
        events.extend(response.events);
    }
    c.delete(client::delete(marker.key)).await;
    (events, c)
}

/// Compacts well behind the watches, defragments, and hashes twice at one revision.
async fn disturb(c: Client, mut rng: StdRng, shared: Arc<Shared>) {
    while !shared.stop.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(rng.gen_range(10..80))).await;
        let watched = shared.watched.iter().map(|w| w.load(Ordering::Acquire));
        let to = watched.min().unwrap_or(0) - BEHIND;
        match rng.gen_range(0..10) {
            0 => drop(client::ok(c.try_defragment().await)),
            1..=3 => {
                let at = c.revision().await;
                let [one, two] = [c.try_hash_kv(at).await, c.try_hash_kv(at).await].map(client::ok);
                if one.compact_revision == two.compact_revision {
                    assert_eq!(one.hash, two.hash, "the hash at {at}");
                }
            }
            _ if to > shared.compacted.load(Ordering::Acquire) => {
                shared.compacted.store(to, Ordering::Release);
                client::ok(c.try_compact(to, rng.gen_bool(0.4)).await);
            }
            _ => {}
        }
    }
}

/// The whole of what a fresh reader sees.
async fn verify(c: &Client, models: &[Model]) {
    for m in models {
        let read = c.range(client::span(m.prefix.clone(), m.end())).await;
        let expected: Vec<_> = m.state.values().cloned().collect();
        same(&read.kvs, &expected, "after a restart");
        for &id in &m.leases {
            let mut keys = c.time_to_live(id).await.keys;
            keys.sort();
            let attached = m.state.values().filter(|kv| kv.lease == id);
            assert_eq!(keys, attached.map(|kv| &kv.key).collect::<Vec<_>>());
        }
    }
}

async fn run(program: &Program, ops: u64) {
    let seed = number("QUORATE_MIXED_SEED", 1);
    let rng = |of: u64| StdRng::seed_from_u64(seed * 10_000 + of);
    let mut server = Server::start(program, &["--quota-backend-bytes=8589934592"]).await;
    let mut models: Vec<_> = (0..WORKERS).map(Model::new).collect();
    let shared = Arc::new(Shared::default());
    for phase in 0..PHASES as u64 {
        shared.stop.store(false, Ordering::Release);
        let from = Client::new(server.connect().await).revision().await + 1;
        let mut followers = Vec::new();
        let mut workers = Vec::new();
        for (n, model) in models.drain(..).enumerate() {
            shared.watched[n].store(from - 1, Ordering::Release);
            let watching = Client::new(server.connect().await);
            followers.push(tokio::spawn(follow(watching, n, shared.clone(), from)));
            let client = Client::new(server.connect().await);
            let rng = rng(phase * 100 + n as u64);
            workers.push(tokio::spawn(work(client, model, rng, shared.clone(), ops)));
        }
        let client = Client::new(server.connect().await);
        let disturber = tokio::spawn(disturb(client, rng(phase * 100 + 99), shared.clone()));
        for worker in workers {
            models.push(worker.await.expect("a worker"));
        }
        shared.stop.store(true, Ordering::Release);
        disturber.await.expect("compactions and hashes");
        for (m, follower) in models.iter_mut().zip(followers) {
            let (events, _) = follower.await.expect("a watch");
            let expected = std::mem::take(&mut m.events);
            for (found, expected) in events.iter().zip(&expected) {
                assert_eq!(found.r#type, expected.r#type);
                same(found.kv.as_slice(), expected.kv.as_slice(), "an event");
                let (found, expected) = (found.prev_kv.as_slice(), expected.prev_kv.as_slice());
                same(found, expected, "the previous pair of an event");
            }
            assert_eq!(events.len(), expected.len(), "events of {}", m.prefix);
        }
        assert!(server.exited().is_none(), "{}", server.log_tail());
        server.restart().await;
        verify(&Client::new(server.connect().await), &models).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_what_the_model_says() {
    run(
        &Program::quorate().unwrap(),
        number("QUORATE_MIXED_OPS", 250),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_holds_for_real_etcd() {
    let etcds = Program::etcds();
    if etcds.is_empty() {
        assert!(
            std::env::var_os("QUORATE_REQUIRE_PEERS").is_none(),
            "no etcd was fetched"
        );
        println!("no etcd is there: passed over");
    }
    for program in etcds {
        run(&program, number("QUORATE_MIXED_OPS", 250) / 3).await;
    }
}
