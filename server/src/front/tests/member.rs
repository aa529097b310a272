//! The real handlers behind the real network, asked by tonic clients.

use super::*;
use crate::api::Api;
use crate::api::health::Health;
use crate::clock::ManualClock;
use crate::lease::Lessor;
use crate::limits::Limits;
use crate::node::Node;
use crate::testing::LocalNode;
use crate::watch::{self, Feed};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::health::health_client::HealthClient;
use std::time::Duration;
use tonic::transport::Channel;

pub(super) struct Member {
    pub addr: SocketAddr,
    api: Arc<Api<LocalNode>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    server: Server,
    _threads: Threads,
}

pub(super) async fn start() -> Member {
    let limits = Limits {
        election_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let clock = Arc::new(ManualClock::default());
    let lessor = Arc::new(Lessor::new(clock, limits.election_timeout));
    let node = LocalNode::new(limits.clone(), lessor.clone());
    lessor.observe(node.status());
    let view = node.engine().view();
    let feed = Feed::new(
        view.revision(),
        view.compact_revision(),
        watch::Options::new(&limits),
    );
    let threads = Threads::start(2).unwrap();
    let hubs: Vec<_> = (0..threads.count()).map(|_| feed.hub()).collect();
    for (thread, hub) in hubs.iter().enumerate() {
        threads.spawn_on(thread, watch::drive(hub.clone(), node.engine().clone()));
    }
    node.on_published(Box::new(move |published| feed.published(published)));
    let (counters, hashes) = (node.counters(), node.hashes(Arc::new(())));
    let api = Arc::new(Api::new(node, limits, counters, hashes, lessor, hubs));
    let health = Arc::new(Health::default());
    let metrics = Arc::new(Metrics::new(&Options::default()));
    let front = Front::new(
        api.clone(),
        &health,
        metrics.clone(),
        HttpSettings::default(),
    );
    let bound = bind(&Endpoint::parse("http://127.0.0.1:0").unwrap(), Role::All).unwrap();
    let addr = bound.tcp_addr().unwrap();
    let server =
        Server::start(&threads, vec![bound], Arc::new(front), Settings::default()).unwrap();
    Member {
        addr,
        api,
        metrics,
        health,
        server,
        _threads: threads,
    }
}

impl Member {
    async fn channel(&self) -> Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.addr));
        endpoint.unwrap().connect().await.unwrap()
    }
}

#[tokio::test]
async fn puts_and_ranges() {
    let member = start().await;
    let mut kv = KvClient::new(member.channel().await);
    for i in 0..50 {
        let request = pb::PutRequest {
            key: format!("k{i:02}").into(),
            value: vec![b'v'; i * 1000].into(),
            ..Default::default()
        };
        let response = kv.put(request).await.unwrap().into_inner();
        assert_eq!(response.header.unwrap().revision, i as i64 + 2);
    }
    let all = pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    };
    let response = kv.range(all).await.unwrap().into_inner();
    assert_eq!((response.kvs.len(), response.count), (50, 50));
    assert_eq!(response.kvs[49].value.len(), 49_000);
    let error = kv.put(pb::PutRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert_eq!(error.message(), "etcdserver: key is not provided");
    let status = MaintenanceClient::new(member.channel().await)
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.version, "3.6.14");
}

#[tokio::test]
async fn watches() {
    let member = start().await;
    let mut kv = KvClient::new(member.channel().await);
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: "a".into(),
            range_end: "b".into(),
            ..Default::default()
        })),
    };
    let (sender, requests) = tokio::sync::mpsc::channel(4);
    sender.send(create).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut watch = WatchClient::new(member.channel().await);
    let mut responses = watch.watch(requests).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
    for i in 0..20 {
        let request = pb::PutRequest {
            key: format!("a{i}").into(),
            value: vec![b'v'; i * 3000].into(),
            ..Default::default()
        };
        kv.put(request).await.unwrap();
        let response = responses.message().await.unwrap().unwrap();
        assert_eq!(response.events.len(), 1);
        let event = response.events[0].kv.clone().unwrap();
        assert_eq!(event.key, format!("a{i}"));
        assert_eq!(event.value.len(), i * 3000);
    }
    let Member {
        server, _threads, ..
    } = member;
    let stopping = tokio::spawn(server.shutdown(Duration::from_secs(60)));
    let error = responses.message().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    drop((kv, watch, sender));
    assert!(stopping.await.unwrap());
}

#[tokio::test]
async fn leases() {
    let member = start().await;
    let mut lease = LeaseClient::new(member.channel().await);
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 7 };
    assert_eq!(lease.lease_grant(grant).await.unwrap().into_inner().id, 7);
    let (sender, requests) = tokio::sync::mpsc::channel(4);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    sender
        .send(pb::LeaseKeepAliveRequest { id: 7 })
        .await
        .unwrap();
    sender
        .send(pb::LeaseKeepAliveRequest { id: 8 })
        .await
        .unwrap();
    let mut responses = lease.lease_keep_alive(requests).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap().unwrap().ttl, 60);
    assert_eq!(responses.message().await.unwrap().unwrap().ttl, 0);
    drop(sender);
    assert_eq!(responses.message().await.unwrap(), None);
}

#[tokio::test]
async fn health_service() {
    let member = start().await;
    let mut client = HealthClient::new(member.channel().await);
    let request = |service: &str| quorate_proto::health::HealthCheckRequest {
        service: service.into(),
    };
    assert_eq!(
        client.check(request("")).await.unwrap().into_inner().status,
        1
    );
    let error = client.check(request("nope")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (tonic::Code::NotFound, "unknown service")
    );
    let mut changes = client.watch(request("")).await.unwrap().into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().status, 1);
    member.health.set_serving(false);
    assert_eq!(changes.message().await.unwrap().unwrap().status, 2);
}

#[tokio::test]
async fn without_a_leader() {
    let member = start().await;
    let mut watch = WatchClient::new(member.channel().await);
    let needs_leader = |request| {
        let mut request = tonic::Request::new(request);
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
        request
    };
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        })),
    };
    let requests = || tokio_stream::iter([create.clone()]);
    let mut strict = watch
        .watch(needs_leader(requests()))
        .await
        .unwrap()
        .into_inner();
    assert!(strict.message().await.unwrap().unwrap().created);
    let mut lax = watch.watch(requests()).await.unwrap().into_inner();
    assert!(lax.message().await.unwrap().unwrap().created);

    member.api.node().set_status(|s| s.leader = 0);
    let error = strict.message().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert_eq!(error.message(), "etcdserver: no leader");
    let error = watch.watch(needs_leader(requests())).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: no leader");
    // The other one goes on.
    let put = pb::PutRequest {
        key: "a".into(),
        ..Default::default()
    };
    KvClient::new(member.channel().await)
        .put(put)
        .await
        .unwrap();
    assert_eq!(lax.message().await.unwrap().unwrap().events.len(), 1);
}

#[tokio::test]
async fn a_learner_serves_what_it_may() {
    let member = start().await;
    member.api.node().set_status(|s| s.is_learner = true);
    let mut kv = KvClient::new(member.channel().await);
    let range = |serializable| pb::RangeRequest {
        key: "k".into(),
        serializable,
        ..Default::default()
    };
    kv.range(range(true)).await.unwrap();
    let error = kv.range(range(false)).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: rpc not supported for learner");
    let mut watch = WatchClient::new(member.channel().await);
    let error = watch.watch(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: rpc not supported for learner");
    MaintenanceClient::new(member.channel().await)
        .status(pb::StatusRequest {})
        .await
        .unwrap();
    let (head, _) = http1(member.addr, &get("/readyz")).await;
    assert!(head.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn all_methods_of_etcd_are_counted_from_the_start() {
    let member = start().await;
    let text = String::from_utf8(member.metrics.render()).unwrap();
    let series = |name: &str| {
        text.lines()
            .filter(|l| l.starts_with(&format!("{name}{{")))
            .count()
    };
    // 41 methods of etcd's services and 3 of the health service, each with 17 codes.
    assert_eq!(series("grpc_server_started_total"), 44);
    assert_eq!(series("grpc_server_handled_total"), 44 * 17);
    assert_eq!(series("grpc_server_msg_sent_total"), 44);
    for (service, method, kind) in [
        ("etcdserverpb.Watch", "Watch", "bidi_stream"),
        ("etcdserverpb.Lease", "LeaseKeepAlive", "bidi_stream"),
        ("etcdserverpb.Maintenance", "Snapshot", "server_stream"),
        ("grpc.health.v1.Health", "Watch", "server_stream"),
        ("etcdserverpb.Auth", "RoleRevokePermission", "unary"),
    ] {
        let line = format!(
            "grpc_server_started_total{{grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"}} 0"
        );
        assert!(text.lines().any(|l| l == line), "{line}");
    }
}

#[tokio::test]
async fn methods_that_are_not_served_yet_are_unknown_methods() {
    let member = start().await;
    let raw = Raw::connect(member.addr).await;
    for path in [
        "/etcdserverpb.Auth/UserAdd",
        "/etcdserverpb.Maintenance/Snapshot",
        "/v3lockpb.Lock/Lock",
        "/v3electionpb.Election/Observe",
    ] {
        let (service, method) = path[1..].split_once('/').unwrap();
        let answer = raw.call(path, GRPC, frame(0, b"")).await.unwrap();
        let text = format!("unknown method {method} for service {service}");
        assert_eq!(answer.status(), (12, text));
    }
}

#[tokio::test]
async fn http_endpoints_of_a_member() {
    let member = start().await;
    let (_, body) = http1(member.addr, &get("/health")).await;
    assert_eq!(body, r#"{"health":"true","reason":""}"#);
    let (_, body) = http1(member.addr, &get("/readyz?verbose")).await;
    assert_eq!(body.lines().count(), 5);
    member.api.node().set_status(|s| s.leader = 0);
    let (_, body) = http1(member.addr, &get("/health")).await;
    assert_eq!(
        body,
        "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"
    );
    let alarm = pb::AlarmRequest {
        action: 1,
        member_id: 1,
        alarm: pb::AlarmType::Corrupt as i32,
    };
    member
        .api
        .node()
        .apply(pb::InternalRaftRequest {
            alarm: Some(alarm),
            ..Default::default()
        })
        .unwrap();
    let (_, body) = http1(member.addr, &get("/health")).await;
    assert_eq!(
        body,
        "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n"
    );
    let (_, body) = http1(member.addr, &get("/readyz/data_corruption")).await;
    assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT"));
}
