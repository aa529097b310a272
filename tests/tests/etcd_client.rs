//! The `etcd-client` crate, as its users use it, against our server and against every real etcd there is:
//! key-values, transactions, watches, leases, maintenance and cluster calls.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};
use quorate_tests::server::{Program, Server};

async fn on_every_server<F: Future<Output = ()>>(case: impl Fn(Client) -> F) {
    for program in Program::all().expect("programs") {
        let server = Server::start(&program, &[]).await;
        let client = Client::connect([server.url()], None).await;
        case(client.expect("a connection")).await;
    }
}

/// The gRPC code and text of an error.
fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> (String, String) {
    match result.expect_err("an error") {
        Error::GRpcStatus(status) => (format!("{:?}", status.code()), status.message().to_owned()),
        other => panic!("another kind of error: {other:?}"),
    }
}

#[tokio::test]
async fn key_values() {
    on_every_server(async |mut c| {
        for (key, value) in [("k/b", "2"), ("k/a", "1"), ("k/c", "3"), ("other", "4")] {
            c.put(key, value, None).await.expect("put");
        }
        let previous = PutOptions::new().with_prev_key();
        let mut answer = c.put("k/a", "one", Some(previous)).await.expect("put");
        let before = answer.take_prev_key().expect("asked for");
        assert_eq!(before.value_str().expect("text"), "1");

        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Value, SortOrder::Descend);
        let answer = c.get("k/", Some(options)).await.expect("get");
        let keys: Vec<&str> = answer
            .kvs()
            .iter()
            .map(|kv| kv.key_str().expect("text"))
            .collect();
        assert_eq!(keys, ["k/a", "k/c", "k/b"]);
        assert_eq!(answer.count(), 3);

        let revision = answer.header().expect("a header").revision();
        c.put("k/a", "uno", None).await.expect("put");
        let options = GetOptions::new().with_revision(revision);
        let past = c.get("k/a", Some(options)).await.expect("get");
        assert_eq!(past.kvs()[0].value_str().expect("text"), "one");

        let all = DeleteOptions::new().with_prefix();
        let answer = c.delete("k/", Some(all)).await.expect("delete");
        assert_eq!(answer.deleted(), 3);

        c.compact(revision, None).await.expect("compact");
        let options = GetOptions::new().with_revision(revision - 1);
        assert_eq!(
            status(c.get("k/a", Some(options)).await),
            (
                "OutOfRange".to_owned(),
                "etcdserver: mvcc: required revision has been compacted".to_owned()
            )
        );
        assert_eq!(
            status(c.put("", "no key", None).await),
            (
                "InvalidArgument".to_owned(),
                "etcdserver: key is not provided".to_owned()
            )
        );
    })
    .await;
}

#[tokio::test]
async fn transactions() {
    on_every_server(async |mut c| {
        c.put("counter", "1", None).await.expect("put");
        let kv = c.get("counter", None).await.expect("get").kvs()[0].clone();
        // The guarded update that everything is built on: it succeeds once.
        let update = |value: &str| {
            Txn::new()
                .when([Compare::mod_revision(
                    "counter",
                    CompareOp::Equal,
                    kv.mod_revision(),
                )])
                .and_then([TxnOp::put("counter", value, None)])
                .or_else([TxnOp::get("counter", None)])
        };
        let first = c.txn(update("2")).await.expect("txn");
        assert!(first.succeeded());
        let second = c.txn(update("3")).await.expect("txn");
        assert!(!second.succeeded());
        match &second.op_responses()[0] {
            TxnOpResponse::Get(answer) => {
                assert_eq!(answer.kvs()[0].value_str().expect("text"), "2");
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn many_guarded_updates_lose_none() {
    on_every_server(async |mut c| {
        c.put("n", "0", None).await.expect("put");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut c = c.clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    loop {
                        let kv = c.get("n", None).await.expect("get").kvs()[0].clone();
                        let n: u32 = kv.value_str().expect("text").parse().expect("a number");
                        let guard = Compare::mod_revision("n", CompareOp::Equal, kv.mod_revision());
                        let put = TxnOp::put("n", (n + 1).to_string(), None);
                        let txn = Txn::new().when([guard]).and_then([put]);
                        if c.txn(txn).await.expect("txn").succeeded() {
                            break;
                        }
                    }
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("a task");
        }
        let kv = c.get("n", None).await.expect("get").kvs()[0].clone();
        assert_eq!(kv.value_str().expect("text"), "160");
        assert_eq!(kv.version(), 161);
    })
    .await;
}

#[tokio::test]
async fn watches() {
    on_every_server(async |mut c| {
        let start = c.put("w/a", "1", None).await.expect("put");
        let start = start.header().expect("a header").revision();
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(start)
            .with_prev_key();
        let mut stream = c.watch("w/", Some(options)).await.expect("watch");
        let created = stream.message().await.expect("a response");
        let created = created.expect("an open stream");
        assert!(created.created());
        let id = created.watch_id();
        c.put("w/b", "2", None).await.expect("put");
        c.put("elsewhere", "3", None).await.expect("put");
        c.delete("w/a", None).await.expect("delete");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let answer = stream.message().await.expect("a response");
            let answer = answer.expect("an open stream");
            assert_eq!(answer.watch_id(), id);
            for event in answer.events() {
                let kv = event.kv().expect("a key-value");
                let key = kv.key_str().expect("text").to_owned();
                let previous = event.prev_kv().map(|kv| kv.value().to_vec());
                seen.push((event.event_type(), key, previous));
            }
        }
        let expected = [
            (EventType::Put, "w/a".to_owned(), None),
            (EventType::Put, "w/b".to_owned(), None),
            (EventType::Delete, "w/a".to_owned(), Some(b"1".to_vec())),
        ];
        assert_eq!(seen, expected);

        stream.request_progress().await.expect("sent");
        let progress = stream.message().await.expect("a response");
        let progress = progress.expect("an open stream");
        assert!(progress.events().is_empty());
        assert_eq!(
            progress.header().expect("a header").revision(),
            start + 3,
            "everything up to here was delivered"
        );

        let deletes = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
        stream.watch("w/b", Some(deletes)).await.expect("sent");
        let created = stream.message().await.expect("a response");
        assert!(created.expect("an open stream").created());
        c.put("w/b", "4", None).await.expect("put");
        stream.cancel(id).await.expect("sent");
        let mut last = stream.message().await.expect("a response").expect("open");
        if !last.canceled() {
            assert_eq!(last.events().len(), 1, "the put, on the first watch");
            last = stream.message().await.expect("a response").expect("open");
        }
        assert!(last.canceled() && last.watch_id() == id);
        c.delete("w/b", None).await.expect("delete");
        let answer = stream.message().await.expect("a response").expect("open");
        assert_eq!(answer.events()[0].event_type(), EventType::Delete);
        assert_ne!(answer.watch_id(), id);
    })
    .await;
}

#[tokio::test]
async fn leases() {
    on_every_server(async |mut c| {
        let lease = c.lease_grant(60, None).await.expect("grant");
        let (id, ttl) = (lease.id(), lease.ttl());
        assert_eq!(ttl, 60);
        let on_lease = PutOptions::new().with_lease(id);
        c.put("leased", "1", Some(on_lease)).await.expect("put");
        let (mut keeper, mut answers) = c.lease_keep_alive(id).await.expect("keep-alive");
        for _ in 0..3 {
            keeper.keep_alive().await.expect("sent");
            let answer = answers.message().await.expect("a response").expect("open");
            assert_eq!((answer.id(), answer.ttl()), (id, 60));
        }
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let left = c.lease_time_to_live(id, Some(options)).await.expect("ttl");
        assert_eq!(left.granted_ttl(), 60);
        assert_eq!(left.keys(), [b"leased".to_vec()]);
        let ids: Vec<i64> = c
            .leases()
            .await
            .expect("leases")
            .leases()
            .iter()
            .map(|l| l.id())
            .collect();
        assert_eq!(ids, [id]);
        c.lease_revoke(id).await.expect("revoke");
        let answer = c.get("leased", None).await.expect("get");
        assert_eq!(answer.count(), 0);
        assert_eq!(
            status(c.lease_revoke(id).await),
            (
                "NotFound".to_owned(),
                "etcdserver: requested lease not found".to_owned()
            )
        );
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_nobody_keeps_takes_its_keys_along() {
    on_every_server(async |mut c| {
        let id = c.lease_grant(2, None).await.expect("grant").id();
        let mut stream = c.watch("leased", None).await.expect("watch");
        let on_lease = PutOptions::new().with_lease(id);
        c.put("leased", "1", Some(on_lease)).await.expect("put");
        let mut kinds = Vec::new();
        while kinds.len() < 2 {
            let answer = stream.message().await.expect("a response").expect("open");
            kinds.extend(answer.events().iter().map(|e| e.event_type()));
        }
        assert_eq!(kinds, [EventType::Put, EventType::Delete]);
        let left = c.lease_time_to_live(id, None).await.expect("ttl");
        assert_eq!(left.ttl(), -1);
    })
    .await;
}

#[tokio::test]
async fn maintenance_and_cluster() {
    on_every_server(async |mut c| {
        c.put("a", "1", None).await.expect("put");
        let status = c.status().await.expect("status");
        assert!(status.version().starts_with("3."));
        let members = c.member_list().await.expect("members");
        assert_eq!(members.members().len(), 1);
        assert_eq!(members.members()[0].id(), status.leader());
        let hash = c.hash_kv(0).await.expect("hash");
        assert_eq!(hash.hash(), c.hash_kv(2).await.expect("hash").hash());
        c.defragment().await.expect("defragment");
        let alarms = c
            .alarm(
                etcd_client::AlarmAction::Get,
                etcd_client::AlarmType::None,
                None,
            )
            .await;
        assert!(alarms.expect("alarms").alarms().is_empty());
    })
    .await;
}
