//! Which handler serves which method.
//!
//! Every method of etcd 3.6 stands here, served or not: the metrics of all exist from the start, and one
//! that is not served is refused as an unknown method of a known service. Which methods a learner
//! serves is decided here too: Status, serializable Range, Snapshot and the health service.

use super::router::{Gate, Learner, Router};
use crate::api::health::Health;
use crate::api::{Api, RequestCtx};
use crate::metrics::{Kind, Metrics};
use crate::node::Node;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::health as health_pb;
use std::sync::Arc;
use std::time::Duration;

const KV: &str = "etcdserverpb.KV";
const WATCH: &str = "etcdserverpb.Watch";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const AUTH: &str = "etcdserverpb.Auth";
const HEALTH: &str = "grpc.health.v1.Health";
/// Their series appear with their first use only, so they are made known and nothing more.
const LAZY_SERVICES: [&str; 2] = ["v3lockpb.Lock", "v3electionpb.Election"];

struct Member<N>(Arc<Api<N>>);

impl<N: Node> Gate for Member<N> {
    fn has_leader(&self) -> bool {
        self.0.node().status().leader != 0
    }

    fn is_learner(&self) -> bool {
        self.0.node().status().is_learner
    }

    fn leaderless_max(&self) -> Duration {
        3 * self.0.limits.election_timeout
    }
}

/// The router of a member.
pub fn router<N: Node>(api: &Arc<Api<N>>, health: &Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let gate = Member(api.clone());
    let mut router = Router::new(gate, metrics, api.limits.receive_bytes_max());
    let r = &mut router;

    macro_rules! unary {
        ($service:ident { $($method:literal => $handler:ident, $learner:expr;)* }) => {$({
            let api = api.clone();
            r.unary($service, $method, $learner, move |ctx: RequestCtx, request| {
                let api = api.clone();
                async move { api.$handler(&ctx, request).await }
            });
        })*};
    }
    unary!(KV {
        "Range" => range, Learner::If(|r: &pb::RangeRequest| r.serializable);
        "Put" => put, Learner::Refuses;
        "DeleteRange" => delete_range, Learner::Refuses;
        "Txn" => txn, Learner::Refuses;
        "Compact" => compact, Learner::Refuses;
    });
    unary!(LEASE {
        "LeaseGrant" => lease_grant, Learner::Refuses;
        "LeaseRevoke" => lease_revoke, Learner::Refuses;
        "LeaseTimeToLive" => lease_time_to_live, Learner::Refuses;
        "LeaseLeases" => lease_leases, Learner::Refuses;
    });
    unary!(CLUSTER {
        "MemberAdd" => member_add, Learner::Refuses;
        "MemberRemove" => member_remove, Learner::Refuses;
        "MemberUpdate" => member_update, Learner::Refuses;
        "MemberList" => member_list, Learner::Refuses;
        "MemberPromote" => member_promote, Learner::Refuses;
    });
    unary!(MAINTENANCE {
        "Alarm" => alarm, Learner::Refuses;
        "Status" => status, Learner::Serves;
        "Defragment" => defragment, Learner::Refuses;
        "Hash" => hash, Learner::Refuses;
        "HashKV" => hash_kv, Learner::Refuses;
        "MoveLeader" => move_leader, Learner::Refuses;
    });
    unary!(AUTH {
        "AuthStatus" => auth_status, Learner::Refuses;
        "Authenticate" => authenticate, Learner::Refuses;
    });

    let watcher = api.clone();
    r.bidi_stream(WATCH, "Watch", false, move |ctx, requests, responses| {
        let api = watcher.clone();
        async move { api.watch(&ctx, requests, responses).await }
    });
    let lessor = api.clone();
    r.bidi_stream(
        LEASE,
        "LeaseKeepAlive",
        false,
        move |ctx, requests, responses| {
            let api = lessor.clone();
            async move { api.lease_keep_alive(&ctx, requests, responses).await }
        },
    );

    let checked = health.clone();
    r.unary(HEALTH, "Check", Learner::Serves, move |_, request| {
        let health = checked.clone();
        async move { health.check(request).await }
    });
    let listed = health.clone();
    r.unary(HEALTH, "List", Learner::Serves, move |_, request| {
        let health = listed.clone();
        async move { health.list(request).await }
    });
    let watched = health.clone();
    r.server_stream(
        HEALTH,
        "Watch",
        true,
        true,
        move |_, request: health_pb::HealthCheckRequest, responses| {
            let health = watched.clone();
            async move { health.watch(request, responses).await }
        },
    );

    r.declare(Kind::ServerStream, MAINTENANCE, "Snapshot");
    r.declare(Kind::Unary, MAINTENANCE, "Downgrade");
    for method in [
        "AuthEnable",
        "AuthDisable",
        "UserAdd",
        "UserGet",
        "UserList",
        "UserDelete",
        "UserChangePassword",
        "UserGrantRole",
        "UserRevokeRole",
        "RoleAdd",
        "RoleGet",
        "RoleList",
        "RoleDelete",
        "RoleGrantPermission",
        "RoleRevokePermission",
    ] {
        r.declare(Kind::Unary, AUTH, method);
    }
    LAZY_SERVICES
        .into_iter()
        .for_each(|service| r.service(service));
    router
}
