use super::*;
use crate::api::stream::Closed;
use crate::limits::Limits;
use crate::testing::{LocalNode, member};
use crate::watch::drive;
use quorate_proto::mvccpb;
use quorate_proto::mvccpb::event::EventType;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};

/// Both ends of a watch call in a channel each.
struct Call {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: mpsc::Receiver<pb::WatchResponse>,
    handler: JoinHandle<Result<(), Status>>,
}

struct In(mpsc::Receiver<pb::WatchRequest>);
struct Out(mpsc::Sender<pb::WatchResponse>);

impl Requests<pb::WatchRequest> for In {
    async fn next(&mut self) -> Option<Result<pb::WatchRequest, Status>> {
        self.0.recv().await.map(Ok)
    }
}

impl Responses<WatchReply> for Out {
    async fn send(&mut self, reply: WatchReply) -> Result<(), Closed> {
        self.0.send(reply.into_message()).await.map_err(|_| Closed)
    }
}

impl Call {
    fn start(api: &Arc<Api<LocalNode>>) -> Call {
        let (requests, incoming) = mpsc::channel(16);
        let (outgoing, responses) = mpsc::channel(1);
        let api = api.clone();
        let handler = tokio::spawn(async move {
            let ctx = RequestCtx::default();
            api.watch(&ctx, In(incoming), Out(outgoing)).await
        });
        Call {
            requests,
            responses,
            handler,
        }
    }

    async fn ask(&self, request: RequestUnion) {
        let request_union = Some(request);
        let request = pb::WatchRequest { request_union };
        self.requests.send(request).await.expect("the call runs");
    }

    async fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(60), self.responses.recv());
        next.await.expect("a response").expect("the call runs")
    }
}

fn run(test: impl AsyncFnOnce(Arc<Api<LocalNode>>)) {
    run_with(Limits::default(), test);
}

fn run_with(limits: Limits, test: impl AsyncFnOnce(Arc<Api<LocalNode>>)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let api = Arc::new(member(limits).0);
        let driver = tokio::spawn(drive(api.hub().clone(), api.node.engine().clone()));
        test(api).await;
        assert!(!driver.is_finished());
        driver.abort();
    });
}

fn key(key: &'static str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        ..Default::default()
    }
}

fn everything_from(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        range_end: "\0".into(),
        start_revision,
        prev_kv: true,
        ..key("\0")
    }
}

async fn put(api: &Api<LocalNode>, key: &str, value: &str) -> i64 {
    let request = pb::PutRequest {
        key: key.to_string().into(),
        value: value.to_string().into(),
        ..Default::default()
    };
    let response = api.put(&RequestCtx::default(), request).await;
    response.expect("puts").header.expect("is there").revision
}

async fn compact(api: &Api<LocalNode>, revision: i64) {
    let request = pb::CompactionRequest {
        revision,
        physical: true,
    };
    let response = api.compact(&RequestCtx::default(), request).await;
    response.expect("compacts");
}

#[test]
fn a_watch_from_creation_to_cancel() {
    run(async |api| {
        let mut call = Call::start(&api);
        call.create(key("k")).await;
        let created = call.next().await;
        assert!(created.created && created.watch_id == 0);
        assert_eq!(created.header, Some(api.node.header(1)));
        let revision = put(&api, "k", "v").await;
        put(&api, "other", "v").await;
        let event = call.next().await;
        assert_eq!(event.header, Some(api.node.header(revision)));
        assert_eq!(event.events[0].kv.as_ref().unwrap().value, "v");
        call.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
            .await;
        let progress = call.next().await;
        assert_eq!(progress.watch_id, -1);
        assert_eq!(progress.header, Some(api.node.header(revision + 1)));
        // A request without content is ignored.
        let empty = pb::WatchRequest::default();
        call.requests.send(empty).await.unwrap();
        let cancel = pb::WatchCancelRequest { watch_id: 0 };
        call.ask(RequestUnion::CancelRequest(cancel)).await;
        assert!(call.next().await.canceled);
    });
}

#[test]
fn responses_go_on_after_the_client_half_closes_6w_5() {
    run(async |api| {
        let mut call = Call::start(&api);
        call.create(key("k")).await;
        call.next().await;
        let (closed, _) = mpsc::channel(1);
        call.requests = closed;
        for _ in 0..3 {
            let revision = put(&api, "k", "v").await;
            assert_eq!(call.next().await.header.unwrap().revision, revision);
        }
        assert!(!call.handler.is_finished());
    });
}

#[test]
fn dropping_the_call_frees_its_watches() {
    run(async |api| {
        let mut call = Call::start(&api);
        call.create(key("k")).await;
        call.next().await;
        assert_eq!(api.hub().stats().watchers, 1);
        call.handler.abort();
        assert!(call.handler.await.unwrap_err().is_cancelled());
        assert_eq!(api.hub().stats().watchers, 0);
        // A client that goes while something is sent.
        let mut call = Call::start(&api);
        call.create(key("k")).await;
        call.next().await;
        drop(call.responses);
        put(&api, "k", "v").await;
        assert_eq!(call.handler.await.unwrap(), Ok(()));
        assert_eq!(api.hub().stats().streams, 0);
    });
}

#[test]
fn history_comes_from_the_store_and_compaction_ends_what_is_below() {
    run(async |api| {
        // Nobody watches, so the ring keeps nothing.
        for i in 0..200 {
            put(&api, "k", &i.to_string()).await;
        }
        let mut call = Call::start(&api);
        call.create(everything_from(2)).await;
        assert!(call.next().await.created);
        let mut events = Vec::new();
        while events.len() < 200 {
            let response = call.next().await;
            assert_eq!(response.header.unwrap().revision, 201);
            events.extend(response.events);
        }
        for (i, event) in events.iter().enumerate() {
            let kv = event.kv.as_ref().unwrap();
            assert_eq!((kv.mod_revision, kv.version), (i as i64 + 2, i as i64 + 1));
            let prev = event.prev_kv.as_ref().map(|kv| kv.mod_revision);
            assert_eq!(prev, (i > 0).then_some(i as i64 + 1));
        }
        compact(&api, 100).await;
        let mut call = Call::start(&api);
        call.create(everything_from(99)).await;
        assert!(call.next().await.created);
        let end = call.next().await;
        assert!(end.canceled && end.compact_revision == 100);
        assert_eq!(end.header, Some(api.node.header(0)));
        call.create(everything_from(100)).await;
        assert!(call.next().await.created);
        let first = call.next().await;
        assert_eq!(first.events.len(), 102);
        assert_eq!(first.events[0].prev_kv, None);
        assert_eq!(first.events[1].prev_kv.as_ref().unwrap().mod_revision, 100);
    });
}

#[test]
fn progress_is_notified_by_the_clock_6w_11() {
    let limits = Limits {
        watch_progress_interval: Duration::from_millis(100),
        ..Limits::default()
    };
    run_with(limits, async |api| {
        let mut call = Call::start(&api);
        let request = pb::WatchCreateRequest {
            progress_notify: true,
            watch_id: 5,
            ..key("k")
        };
        call.create(request).await;
        assert!(call.next().await.created);
        put(&api, "other", "v").await;
        for _ in 0..2 {
            let progress = call.next().await;
            assert!(progress.events.is_empty());
            assert_eq!(
                (progress.watch_id, progress.header.unwrap().revision),
                (5, 2)
            );
        }
    });
}

/// What must arrive for a watch, according to the watch of everything.
fn expected(all: &[mvccpb::Event], request: &pb::WatchCreateRequest) -> Vec<mvccpb::Event> {
    let end = &request.range_end[..];
    let inside = |key: &[u8]| match end {
        [] => key == request.key,
        _ => key >= &request.key[..] && key < end,
    };
    all.iter()
        .filter(|event| {
            let kv = event.kv.as_ref().unwrap();
            kv.mod_revision >= request.start_revision && inside(&kv.key)
        })
        .cloned()
        .map(|event| mvccpb::Event {
            prev_kv: event.prev_kv.filter(|_| request.prev_kv),
            ..event
        })
        .collect()
}

/// Writers, slow and fast watchers from all revisions, on the real engine.
#[test]
fn watches_of_a_busy_store_agree_with_the_watch_of_everything() {
    run(async |api| {
        let mut rng = StdRng::seed_from_u64(1);
        let mut all = Call::start(&api);
        all.create(everything_from(1)).await;
        assert!(all.next().await.created);
        let collector = tokio::task::spawn_local(async move {
            let mut events: Vec<mvccpb::Event> = Vec::new();
            loop {
                let response = all.next().await;
                events.extend(response.events);
                let last = events.last().and_then(|e| e.kv.as_ref());
                if last.is_some_and(|kv| kv.key == "end") {
                    return events;
                }
            }
        });
        let mut watches = Vec::new();
        for i in 0..600 {
            let request = pb::TxnRequest {
                success: (0..rng.gen_range(1..4))
                    .map(|j| {
                        let key = format!("{}/{}", rng.gen_range(0..3), j);
                        match rng.gen_bool(0.8) {
                            true => crate::testing::req::op(pb::PutRequest {
                                key: key.into(),
                                value: "x".repeat(rng.gen_range(0..600)).into(),
                                ..Default::default()
                            }),
                            false => crate::testing::req::op(pb::DeleteRangeRequest {
                                key: key.into(),
                                ..Default::default()
                            }),
                        }
                    })
                    .collect(),
                ..Default::default()
            };
            // Two operations on one key are refused; that writes nothing.
            let _ = api.txn(&RequestCtx::default(), request).await;
            if i % 20 == 0 {
                let revision = api.node.engine().view().revision();
                let prefix = rng.gen_range(0..3);
                let request = pb::WatchCreateRequest {
                    key: format!("{prefix}/").into(),
                    range_end: match rng.gen_bool(0.7) {
                        true => format!("{prefix}0").into(),
                        false => "zzz".into(),
                    },
                    start_revision: rng.gen_range(1..revision + 5),
                    prev_kv: rng.gen_bool(0.5),
                    ..Default::default()
                };
                let mut call = Call::start(&api);
                call.create(request.clone()).await;
                let slow = rng.gen_bool(0.5);
                let reader = tokio::task::spawn_local(async move {
                    let mut events = Vec::new();
                    loop {
                        let response = call.next().await;
                        if slow {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        events.extend(response.events);
                        if response.watch_id == -1 {
                            return events;
                        }
                        if response.created {
                            let requests = call.requests.clone();
                            tokio::task::spawn_local(async move {
                                tokio::time::sleep(Duration::from_millis(400)).await;
                                let request = RequestUnion::ProgressRequest(Default::default());
                                let request_union = Some(request);
                                let _ = requests.send(pb::WatchRequest { request_union }).await;
                            });
                        }
                    }
                });
                watches.push((request, reader));
            }
            if i % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        put(&api, "end", "").await;
        let all = collector.await.unwrap();
        assert!(all.len() > 600);
        assert!(all.iter().any(|e| e.r#type == EventType::Delete as i32));
        for (request, reader) in watches {
            let got = reader.await.unwrap();
            let until = got
                .last()
                .and_then(|e| e.kv.as_ref())
                .map_or(0, |kv| kv.mod_revision);
            let mut want = expected(&all, &request);
            // A promise may come before the last writes.
            want.retain(|e| e.kv.as_ref().unwrap().mod_revision <= until);
            assert_eq!(got, want);
        }
    });
}
