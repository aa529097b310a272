use super::*;
use crate::api::stream::Closed;
use crate::clock::ManualClock;
use crate::lease::expire;
use crate::limits::Limits;
use crate::status::Code;
use crate::testing::{LocalNode, identity, member};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

struct Member {
    api: Api<LocalNode>,
    clock: Arc<ManualClock>,
    ctx: RequestCtx,
}

fn run(test: impl AsyncFnOnce(Member)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (api, clock) = member(Limits::default());
    let ctx = RequestCtx::default();
    runtime.block_on(test(Member { api, clock, ctx }));
}

struct In(VecDeque<i64>);

impl Requests<pb::LeaseKeepAliveRequest> for In {
    async fn next(&mut self) -> Option<Result<pb::LeaseKeepAliveRequest, Status>> {
        self.0
            .pop_front()
            .map(|id| Ok(pb::LeaseKeepAliveRequest { id }))
    }
}

struct Out(mpsc::UnboundedSender<pb::LeaseKeepAliveResponse>);

impl Responses<pb::LeaseKeepAliveResponse> for Out {
    async fn send(&mut self, response: pb::LeaseKeepAliveResponse) -> Result<(), Closed> {
        self.0.send(response).map_err(|_| Closed)
    }
}

impl Member {
    async fn grant(&self, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, Status> {
        let request = pb::LeaseGrantRequest { id, ttl };
        self.api.lease_grant(&self.ctx, request).await
    }

    async fn attach(&self, key: &'static str, lease: i64) -> i64 {
        let request = pb::PutRequest {
            key: key.into(),
            lease,
            ..Default::default()
        };
        let response = self.api.put(&self.ctx, request).await.expect("puts");
        response.header.expect("is there").revision
    }

    async fn revoke(&self, id: i64) -> Result<i64, Status> {
        let request = pb::LeaseRevokeRequest { id };
        let response = self.api.lease_revoke(&self.ctx, request).await?;
        Ok(response.header.expect("is there").revision)
    }

    async fn time_to_live(&self, id: i64, keys: bool) -> pb::LeaseTimeToLiveResponse {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        let response = self.api.lease_time_to_live(&self.ctx, request).await;
        response.expect("answers")
    }

    /// Sends keep-alives on one stream; returns the answers and how the call ended.
    async fn keep_alive(
        &self,
        ids: &[i64],
    ) -> (Vec<pb::LeaseKeepAliveResponse>, Result<(), Status>) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let requests = In(ids.iter().copied().collect());
        let end = self
            .api
            .lease_keep_alive(&self.ctx, requests, Out(sender))
            .await;
        let mut answers = Vec::new();
        while let Ok(answer) = receiver.try_recv() {
            answers.push(answer);
        }
        (answers, end)
    }

    fn revision(&self) -> i64 {
        self.api.node.engine().view().revision()
    }
}

#[test]
fn grant_5l_1() {
    run(async |m| {
        let response = m.grant(7, 60).await.unwrap();
        assert_eq!(
            (response.id, response.ttl, &response.error[..]),
            (7, 60, "")
        );
        assert_eq!(
            response.header,
            Some(m.api.node.header(1)),
            "no new revision"
        );
        assert_eq!(m.grant(7, 60).await, Err(errors::LEASE_EXIST));
        assert_eq!(
            m.grant(8, 9_000_000_001).await,
            Err(errors::LEASE_TTL_TOO_LARGE)
        );
        assert_eq!(m.grant(8, 9_000_000_000).await.unwrap().ttl, 9_000_000_000);
        for (id, ttl) in [(-5, 0), (9, -3), (10, 1), (11, 2)] {
            let response = m.grant(id, ttl).await.unwrap();
            assert_eq!(
                (response.id, response.ttl),
                (id, 2),
                "raised to the shortest"
            );
        }
        let picked = m.grant(0, 60).await.unwrap().id;
        let again = m.grant(0, 60).await.unwrap().id;
        let member = identity().member_id & 0x7fff;
        for id in [picked, again] {
            assert!(id > 0);
            assert_eq!(id as u64 >> 48, member);
        }
        assert_eq!(again, picked + 1);
    });
}

#[test]
fn picked_ids_are_positive_and_never_zero_5l_1() {
    let ids = LeaseIds::starting_at(0x8000_0000_0000_ffff, 0);
    assert_eq!(ids.next() as u64, 0x7fff_0000_0000_0001);
    let ids = LeaseIds::starting_at(0, (1 << 40) - 1);
    let picked: Vec<_> = (0..300).map(|_| ids.next()).collect();
    assert!(picked.iter().all(|&id| id > 0), "zero is passed over");
    assert_eq!(picked[254..256], [0xffff_ffff_ffff, 1]);
}

#[test]
fn revoke_5l_2() {
    run(async |m| {
        assert_eq!(m.revoke(7).await, Err(errors::LEASE_NOT_FOUND));
        assert_eq!(m.revoke(0).await, Err(errors::LEASE_NOT_FOUND));
        m.grant(7, 60).await.unwrap();
        assert_eq!(m.revoke(7).await, Ok(1), "no key, no new revision");
        m.grant(7, 60).await.unwrap();
        m.attach("b", 7).await;
        m.attach("a", 7).await;
        assert_eq!(m.revoke(7).await, Ok(4), "one revision for both keys");
        let view = m.api.node.engine().view();
        assert_eq!(view.count(&engine::KeyRange::all(), 0).unwrap(), 0);
        assert_eq!(m.api.lessor.ids(), Vec::<i64>::new());
    });
}

#[test]
fn keep_alive_5l_3() {
    run(async |m| {
        m.grant(7, 60).await.unwrap();
        m.grant(8, 30).await.unwrap();
        m.clock.advance(Duration::from_secs(20));
        assert_eq!(m.time_to_live(7, false).await.ttl, 40);
        let (answers, end) = m.keep_alive(&[7, 99, 8, 7]).await;
        let short: Vec<_> = answers.iter().map(|a| (a.id, a.ttl)).collect();
        assert_eq!(short, [(7, 60), (99, 0), (8, 30), (7, 60)]);
        assert_eq!(answers[0].header, Some(m.api.node.header(1)));
        assert_eq!(end, Ok(()), "an unknown lease does not end it");
        assert_eq!(m.time_to_live(7, false).await.ttl, 60);
        assert_eq!(m.api.node.status().applied, 2, "nothing is logged");
    });
}

#[test]
fn keep_alive_of_an_expired_lease_waits_for_its_revocation_5l_3() {
    run(async |m| {
        m.grant(7, 5).await.unwrap();
        m.clock.advance(Duration::from_secs(5));
        // It has ended; the answer comes only once its keys are gone.
        let (answers, ()) = tokio::join!(m.keep_alive(&[7]), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            m.revoke(7).await.unwrap();
        });
        assert_eq!((answers.0[0].ttl, answers.1), (0, Ok(())));
        // Without one the call ends.
        m.grant(8, 5).await.unwrap();
        m.clock.advance(Duration::from_secs(5));
        let (answers, end) = m.keep_alive(&[8]).await;
        assert_eq!((answers.len(), end), (0, Err(errors::TIMEOUT)));
    });
}

#[test]
fn calls_that_need_the_leader_fail_without_one_5l_3() {
    run(async |m| {
        m.grant(7, 60).await.unwrap();
        m.api.node.set_status(|s| {
            s.is_leader = false;
            s.leader = 0;
        });
        let before = tokio::time::Instant::now();
        let (_, end) = m.keep_alive(&[7]).await;
        assert_eq!(end, Err(errors::NO_LEADER));
        assert!(before.elapsed() >= Duration::from_secs(7));
        let request = pb::LeaseTimeToLiveRequest { id: 7, keys: false };
        let answer = m.api.lease_time_to_live(&m.ctx, request).await;
        assert_eq!(answer.unwrap_err().code, Code::Unavailable);
        // The list needs nobody.
        let request = pb::LeaseLeasesRequest {};
        let leases = m.api.lease_leases(&m.ctx, request).await.unwrap().leases;
        assert_eq!(leases, [pb::LeaseStatus { id: 7 }]);
    });
}

#[test]
fn time_to_live_5l_4() {
    run(async |m| {
        let unknown = m.time_to_live(7, true).await;
        assert_eq!((unknown.id, unknown.ttl, unknown.granted_ttl), (7, -1, 0));
        m.grant(7, 60).await.unwrap();
        m.attach("a", 7).await;
        let revision = m.attach("b", 7).await;
        m.clock.advance(Duration::from_millis(500));
        let response = m.time_to_live(7, true).await;
        assert_eq!(
            (response.ttl, response.granted_ttl),
            (59, 60),
            "rounded down"
        );
        assert_eq!(response.keys, ["a", "b"]);
        assert_eq!(response.header, Some(m.api.node.header(revision)));
        assert_eq!(m.time_to_live(7, false).await.keys.len(), 0);
    });
}

#[test]
fn leases_5l_5() {
    run(async |m| {
        for (id, ttl) in [(1, 300), (2, 100), (3, 200)] {
            m.grant(id, ttl).await.unwrap();
        }
        let request = pb::LeaseLeasesRequest {};
        let response = m.api.lease_leases(&m.ctx, request).await.unwrap();
        let ids: Vec<_> = response.leases.iter().map(|l| l.id).collect();
        assert_eq!(ids, [2, 3, 1]);
        assert_eq!(response.header, Some(m.api.node.header(1)));
    });
}

#[test]
fn expired_leases_are_revoked_with_their_keys_5l_6() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let clock = Arc::new(crate::clock::RuntimeClock);
        let limits = Limits::default();
        let lessor = Arc::new(crate::lease::Lessor::new(clock, limits.election_timeout));
        let node = Arc::new(LocalNode::new(limits, lessor.clone()));
        let scanner = tokio::spawn(expire(node.clone(), lessor.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let apply = |request: pb::InternalRaftRequest| node.apply(request).unwrap();
        for (id, ttl) in (1..=600).map(|id| (id, 10)).chain([(1000, 20)]) {
            apply(pb::InternalRaftRequest {
                lease_grant: Some(pb::LeaseGrantRequest { id, ttl }),
                ..Default::default()
            });
            apply(pb::InternalRaftRequest {
                put: Some(pb::PutRequest {
                    key: format!("k{id}").into(),
                    lease: id,
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
        let keys = || {
            let all = engine::KeyRange::all();
            node.engine().view().count(&all, 0).unwrap()
        };
        tokio::time::sleep(Duration::from_millis(9_900)).await;
        assert_eq!((keys(), lessor.len()), (601, 601), "never early");
        tokio::time::sleep(Duration::from_millis(350)).await;
        assert_eq!(keys(), 101, "500 in one scan");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((keys(), lessor.ids()), (1, vec![1000]));
        // Whoever does not lead expires nothing, and who leads again gives full time.
        node.set_status(|s| s.is_leader = false);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(keys(), 1);
        node.set_status(|s| (s.is_leader, s.term) = (true, s.term + 2));
        tokio::time::sleep(Duration::from_millis(20_900)).await;
        assert_eq!(keys(), 1);
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_eq!(keys(), 0);
        scanner.abort();
    });
}

#[test]
fn a_restart_gives_every_lease_its_full_time_5l_7() {
    run(async |m| {
        m.grant(7, 60).await.unwrap();
        m.grant(-8, 30).await.unwrap();
        m.grant(9, 30).await.unwrap();
        m.revoke(9).await.unwrap();
        m.clock.advance(Duration::from_secs(29));
        let view = m.api.node.engine().view();
        m.api.lessor.load(&view).unwrap();
        assert_eq!(m.api.lessor.len(), 2);
        assert_eq!(
            m.time_to_live(7, false).await.ttl,
            61,
            "and one election timeout"
        );
        assert_eq!(m.time_to_live(-8, false).await.ttl, 31);
        assert_eq!(m.time_to_live(9, false).await.ttl, -1);
        assert_eq!(m.revision(), 1);
    });
}
