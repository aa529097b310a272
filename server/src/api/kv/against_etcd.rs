//! The same random requests to real etcd and to this server's handlers: every answer must be equal.
//!
//! Starts the etcd that `tests/tools/fetch-etcd.sh` put into `$QUORATE_ETCD_DIR`; passes over without
//! one. `QUORATE_ROUNDS` sets the number of requests, `QUORATE_SEEDS` the one seed.

use super::*;
use crate::limits::Limits;
use crate::testing::LocalNode;
use crate::testing::generate::*;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use tonic::transport::Channel;

#[derive(Clone, Debug)]
enum Call {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    Alarm(pb::AlarmRequest),
    HashKv(pb::HashKvRequest),
}

/// Every kind of answer, with the parts that name the answering member taken out.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    Alarm(pb::AlarmResponse),
    HashKv(pb::HashKvResponse),
    Refused(u8, String),
}

fn call_strategy() -> impl Strategy<Value = Call> {
    use proptest::prelude::*;
    let lease = || prop::sample::select(vec![1i64, 2, -3]);
    let filters = (
        0i64..8,
        0i64..8,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    let range =
        (range_strategy(), filters).prop_map(|(r, (min, max, on, keys, count))| pb::RangeRequest {
            min_mod_revision: if on { min * 20 } else { 0 },
            max_create_revision: if on { max * 40 } else { 0 },
            keys_only: keys,
            count_only: count && min == 0,
            ..r
        });
    prop_oneof![
        30 => put_strategy().prop_map(Call::Put),
        10 => delete_strategy().prop_map(Call::Delete),
        30 => range.prop_map(Call::Range),
        40 => txn_strategy(op_strategy().boxed()).prop_map(Call::Txn),
        // Not 0: after it etcd keeps answering HashKV(0), the newest, with the hash of revision 0.
        1 => prop::sample::select(vec![-1i64, 1, 2]).prop_map(|revision| Call::Compact(pb::CompactionRequest {
            revision,
            physical: true,
        })),
        2 => lease().prop_map(|id| Call::Grant(pb::LeaseGrantRequest { id, ttl: 8_000 })),
        2 => lease().prop_map(|id| Call::Revoke(pb::LeaseRevokeRequest { id })),
        1 => (0..3i32, 0..3i32).prop_map(|(action, alarm)| Call::Alarm(pb::AlarmRequest {
            action,
            member_id: 1,
            alarm,
        })),
        6 => (1..3i32).prop_map(|alarm| Call::Alarm(pb::AlarmRequest {
            action: AlarmAction::Deactivate as i32,
            member_id: 1,
            alarm,
        })),
        2 => Just(Call::HashKv(pb::HashKvRequest { revision: 0 })),
    ]
}

/// A put that keeps its value or lease, after a delete in one transaction: real etcd may crash.
fn may_crash_etcd(call: &Call) -> bool {
    fn any(ops: &pb::TxnRequest, wanted: fn(&Request) -> bool) -> bool {
        let mut all = ops.success.iter().chain(&ops.failure);
        all.any(|op| match &op.request {
            Some(Request::RequestTxn(nested)) => any(nested, wanted),
            Some(request) => wanted(request),
            None => false,
        })
    }
    let Call::Txn(r) = call else {
        return false;
    };
    let keeps =
        |r: &Request| matches!(r, Request::RequestPut(p) if p.ignore_value || p.ignore_lease);
    any(r, keeps) && any(r, |r| matches!(r, Request::RequestDeleteRange(_)))
}

/// Revisions of the request become relative to the newest one.
fn relate(call: Call, revision: i64) -> Call {
    let near = |n: i64| if n > 0 { revision + 3 - n } else { n };
    match call {
        Call::Range(r) => Call::Range(pb::RangeRequest {
            revision: near(r.revision),
            ..r
        }),
        Call::Compact(r) if r.revision > 0 => Call::Compact(pb::CompactionRequest {
            revision: revision + 2 - 2 * r.revision,
            ..r
        }),
        other => other,
    }
}

/// Whether the call asks etcd about a revision in which one transaction deleted and wrote a key. etcd
/// takes the key for dead then: its HashKV may differ, and compacted there it loses the key and crashes
/// on the next read of it.
fn meets_a_reborn_key(call: &Call, view: &engine::View) -> bool {
    let revision = match call {
        Call::Compact(r) => r.revision,
        Call::HashKv(_) => view.revision(),
        _ => return false,
    };
    let mut deleted = std::collections::HashSet::new();
    let mut reborn = false;
    if (view.compact_revision().max(1)..=view.revision()).contains(&revision) {
        let end = view.events(revision, 1, &mut |event| {
            match event.kind() {
                _ if event.revision().main != revision => {}
                engine::EventKind::Delete => drop(deleted.insert(event.key().to_vec())),
                engine::EventKind::Put => reborn |= deleted.contains(event.key()),
            }
            std::ops::ControlFlow::Continue(())
        });
        end.expect("reads");
    }
    reborn
}

fn anonymous(header: &mut Option<pb::ResponseHeader>) {
    if let Some(h) = header {
        *h = crate::apply::txn::header(h.revision);
    }
}

struct Etcd {
    kv: pb::kv_client::KvClient<Channel>,
    lease: pb::lease_client::LeaseClient<Channel>,
    maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
}

impl Etcd {
    async fn call(&mut self, call: Call) -> Answer {
        let answer = match call {
            Call::Range(r) => self
                .kv
                .range(r)
                .await
                .map(|r| Answer::Range(r.into_inner())),
            Call::Put(r) => self.kv.put(r).await.map(|r| Answer::Put(r.into_inner())),
            Call::Delete(r) => {
                let r = self.kv.delete_range(r).await;
                r.map(|r| Answer::Delete(r.into_inner()))
            }
            Call::Txn(r) => self.kv.txn(r).await.map(|r| Answer::Txn(r.into_inner())),
            Call::Compact(r) => self
                .kv
                .compact(r)
                .await
                .map(|r| Answer::Compact(r.into_inner())),
            Call::Grant(r) => {
                let r = self.lease.lease_grant(r).await;
                r.map(|r| Answer::Grant(r.into_inner()))
            }
            Call::Revoke(r) => {
                let r = self.lease.lease_revoke(r).await;
                r.map(|r| Answer::Revoke(r.into_inner()))
            }
            Call::Alarm(r) => {
                let r = self.maintenance.alarm(r).await;
                r.map(|r| Answer::Alarm(r.into_inner()))
            }
            Call::HashKv(r) => {
                let r = self.maintenance.hash_kv(r).await;
                r.map(|r| Answer::HashKv(r.into_inner()))
            }
        };
        answer.unwrap_or_else(|s| Answer::Refused(s.code() as u8, s.message().to_owned()))
    }
}

async fn ours(api: &Api<LocalNode>, call: Call) -> Answer {
    let ctx = RequestCtx::default();
    let logged = |request| {
        api.node.apply(request).map(|reply| match reply {
            Reply::LeaseGrant(r) => Answer::Grant(r),
            Reply::LeaseRevoke(r) => Answer::Revoke(r),
            other => panic!("{other:?}"),
        })
    };
    let answer = match call {
        Call::Range(r) => {
            let encoded = api.range(&ctx, r).await;
            encoded.map(|e| Answer::Range(decode_range(&e).expect("decodes")))
        }
        Call::Put(r) => api.put(&ctx, r).await.map(Answer::Put),
        Call::Delete(r) => api.delete_range(&ctx, r).await.map(Answer::Delete),
        Call::Txn(r) => api.txn(&ctx, r).await.map(Answer::Txn),
        Call::Compact(r) => api.compact(&ctx, r).await.map(Answer::Compact),
        Call::Alarm(r) => api.alarm(&ctx, r).await.map(Answer::Alarm),
        Call::HashKv(r) => api.hash_kv(&ctx, r).await.map(Answer::HashKv),
        Call::Grant(r) => logged(pb::InternalRaftRequest {
            lease_grant: Some(r),
            ..Default::default()
        }),
        Call::Revoke(r) => logged(pb::InternalRaftRequest {
            lease_revoke: Some(r),
            ..Default::default()
        }),
    };
    answer.unwrap_or_else(|s| Answer::Refused(s.code as u8, s.message.into_owned()))
}

fn comparable(mut answer: Answer) -> Answer {
    match &mut answer {
        Answer::Range(r) => anonymous(&mut r.header),
        Answer::Put(r) => anonymous(&mut r.header),
        Answer::Delete(r) => anonymous(&mut r.header),
        Answer::Txn(r) => anonymous(&mut r.header),
        Answer::Compact(r) => anonymous(&mut r.header),
        Answer::Grant(r) => anonymous(&mut r.header),
        Answer::Revoke(r) => anonymous(&mut r.header),
        Answer::Alarm(r) => {
            anonymous(&mut r.header);
            // etcd lists them in the order of a hash map.
            r.alarms.sort_by_key(|a| (a.alarm, a.member_id));
        }
        Answer::HashKv(r) => anonymous(&mut r.header),
        Answer::Refused(..) => {}
    }
    answer
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// A real etcd on fresh files; killed when dropped.
struct Fresh {
    child: std::process::Child,
    endpoint: String,
    _dir: tempfile::TempDir,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_etcd() -> Option<Fresh> {
    let tools = std::env::var_os("QUORATE_ETCD_DIR")?;
    let binary = std::path::Path::new(&tools).join("bin/etcd-3.6");
    let free_port = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("an address").port()
    };
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let dir = tempfile::tempdir().expect("a directory");
    let child = std::process::Command::new(binary)
        .args(["--data-dir"])
        .arg(dir.path())
        .args(["--listen-client-urls", &endpoint])
        .args(["--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .ok()?;
    Some(Fresh {
        child,
        endpoint,
        _dir: dir,
    })
}

#[test]
fn every_answer_is_etcds() {
    let Some(etcd) = start_etcd() else {
        eprintln!("passed over: no etcd in QUORATE_ETCD_DIR");
        return;
    };
    let endpoint = etcd.endpoint.clone();
    let rounds = from_env("QUORATE_ROUNDS", 3_000);
    let seed = from_env("QUORATE_SEEDS", 1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = call_strategy();

    let api = crate::testing::api(Limits::default());
    crate::testing::block_on(async {
        let channel = Channel::from_shared(endpoint).expect("an address");
        let mut tries = 0;
        let channel = loop {
            match channel.connect().await {
                Ok(channel) => break channel,
                Err(error) => assert!(tries < 600, "etcd does not answer: {error}"),
            }
            tries += 1;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let mut etcd = Etcd {
            kv: pb::kv_client::KvClient::new(channel.clone()),
            lease: pb::lease_client::LeaseClient::new(channel.clone()),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel),
        };
        let (mut accepted, mut nested) = (0, 0);
        for round in 0..rounds {
            let call = strategy.new_tree(&mut runner).expect("generates").current();
            if may_crash_etcd(&call) {
                continue;
            }
            let call = relate(call, api.node.engine().view().revision());
            if meets_a_reborn_key(&call, &api.node.engine().view()) {
                continue;
            }
            let expected = comparable(etcd.call(call.clone()).await);
            let got = comparable(ours(&api, call.clone()).await);
            assert_eq!(got, expected, "request {round} of seed {seed}: {call:#?}");
            if let Answer::Txn(r) = &got {
                let is_nested =
                    |r: &pb::ResponseOp| matches!(r.response, Some(Response::ResponseTxn(_)));
                nested += u64::from(r.responses.iter().any(is_nested));
            }
            accepted += u64::from(!matches!(got, Answer::Refused(..)));
        }
        assert!(
            accepted > rounds / 4,
            "most of it must have been more than refusals"
        );
        assert!(nested > 0 || rounds < 1000);
    });
}
