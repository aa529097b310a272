//! One connection with a typed client per service, and short constructors for requests.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::PATIENCE;

/// What a client may receive in one message: more than any server here sends.
const RECEIVE_BYTES_MAX: usize = 256 << 20;

/// Clients of one member over one connection.
#[derive(Clone)]
pub struct Client {
    /// The connection.
    pub channel: Channel,
    /// KV.
    pub kv: pb::kv_client::KvClient<Channel>,
    /// Watch.
    pub watch: pb::watch_client::WatchClient<Channel>,
    /// Lease.
    pub lease: pb::lease_client::LeaseClient<Channel>,
    /// Cluster.
    pub cluster: pb::cluster_client::ClusterClient<Channel>,
    /// Maintenance.
    pub maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
    /// Auth.
    pub auth: pb::auth_client::AuthClient<Channel>,
}

impl Client {
    /// Typed clients of one connection.
    pub fn new(channel: Channel) -> Client {
        let limit = RECEIVE_BYTES_MAX;
        Client {
            kv: pb::kv_client::KvClient::new(channel.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
            watch: pb::watch_client::WatchClient::new(channel.clone())
                .max_decoding_message_size(limit),
            lease: pb::lease_client::LeaseClient::new(channel.clone()),
            cluster: pb::cluster_client::ClusterClient::new(channel.clone()),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel.clone())
                .max_decoding_message_size(limit),
            auth: pb::auth_client::AuthClient::new(channel.clone()),
            channel,
        }
    }

    /// Put; panics on an error.
    pub async fn put(&self, request: pb::PutRequest) -> pb::PutResponse {
        ok(self.try_put(request).await)
    }

    /// Put.
    pub async fn try_put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        inner(self.kv.clone().put(request).await)
    }

    /// Range; panics on an error.
    pub async fn range(&self, request: pb::RangeRequest) -> pb::RangeResponse {
        ok(self.try_range(request).await)
    }

    /// Range.
    pub async fn try_range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        inner(self.kv.clone().range(request).await)
    }

    /// The key-value of one key, if any.
    pub async fn get(&self, key: impl Into<Bytes>) -> Option<KeyValue> {
        self.range(range(key)).await.kvs.into_iter().next()
    }

    /// DeleteRange; panics on an error.
    pub async fn delete(&self, request: pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        ok(self.try_delete(request).await)
    }

    /// DeleteRange.
    pub async fn try_delete(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        inner(self.kv.clone().delete_range(request).await)
    }

    /// Txn; panics on an error.
    pub async fn txn(&self, request: pb::TxnRequest) -> pb::TxnResponse {
        ok(self.try_txn(request).await)
    }

    /// Txn.
    pub async fn try_txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        inner(self.kv.clone().txn(request).await)
    }

    /// Compact; panics on an error.
    pub async fn compact(&self, revision: i64) -> pb::CompactionResponse {
        ok(self.try_compact(revision, false).await)
    }

    /// Compact.
    pub async fn try_compact(
        &self,
        revision: i64,
        physical: bool,
    ) -> Result<pb::CompactionResponse, Status> {
        let request = pb::CompactionRequest { revision, physical };
        inner(self.kv.clone().compact(request).await)
    }

    /// The store's current revision.
    pub async fn revision(&self) -> i64 {
        let request = pb::RangeRequest {
            count_only: true,
            ..range("\0")
        };
        rev(&self.range(request).await.header)
    }

    /// Grants a lease; panics on an error.
    pub async fn grant(&self, ttl: i64, id: i64) -> pb::LeaseGrantResponse {
        ok(self.try_grant(ttl, id).await)
    }

    /// Grants a lease.
    pub async fn try_grant(&self, ttl: i64, id: i64) -> Result<pb::LeaseGrantResponse, Status> {
        let request = pb::LeaseGrantRequest { ttl, id };
        inner(self.lease.clone().lease_grant(request).await)
    }

    /// Revokes a lease.
    pub async fn try_revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        let request = pb::LeaseRevokeRequest { id };
        inner(self.lease.clone().lease_revoke(request).await)
    }

    /// Revokes a lease; panics on an error.
    pub async fn revoke(&self, id: i64) -> pb::LeaseRevokeResponse {
        ok(self.try_revoke(id).await)
    }

    /// LeaseTimeToLive with keys; panics on an error.
    pub async fn time_to_live(&self, id: i64) -> pb::LeaseTimeToLiveResponse {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        ok(inner(self.lease.clone().lease_time_to_live(request).await))
    }

    /// LeaseLeases; panics on an error.
    pub async fn leases(&self) -> pb::LeaseLeasesResponse {
        let request = pb::LeaseLeasesRequest {};
        ok(inner(self.lease.clone().lease_leases(request).await))
    }

    /// Status; panics on an error.
    pub async fn members(&self) -> Vec<pb::Member> {
        let request = pb::MemberListRequest { linearizable: true };
        let mut cluster = self.cluster.clone();
        ok(cluster.member_list(request).await).into_inner().members
    }

    /// The member's own figures.
    pub async fn status(&self) -> pb::StatusResponse {
        ok(inner(
            self.maintenance
                .clone()
                .status(pb::StatusRequest::default())
                .await,
        ))
    }

    /// Alarm; panics on an error.
    pub async fn alarm(
        &self,
        action: pb::alarm_request::AlarmAction,
        member_id: u64,
        alarm: pb::AlarmType,
    ) -> pb::AlarmResponse {
        let request = pb::AlarmRequest {
            action: action as i32,
            member_id,
            alarm: alarm as i32,
        };
        ok(inner(self.maintenance.clone().alarm(request).await))
    }

    /// HashKV.
    pub async fn try_hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Status> {
        let request = pb::HashKvRequest { revision };
        inner(self.maintenance.clone().hash_kv(request).await)
    }

    /// Defragment.
    pub async fn try_defragment(&self) -> Result<pb::DefragmentResponse, Status> {
        let request = pb::DefragmentRequest {};
        inner(self.maintenance.clone().defragment(request).await)
    }

    /// The whole Snapshot stream; panics on an error.
    pub async fn snapshot(&self) -> Vec<pb::SnapshotResponse> {
        let request = pb::SnapshotRequest {};
        let mut stream = ok(inner(self.maintenance.clone().snapshot(request).await));
        let mut parts = Vec::new();
        while let Some(part) = ok(stream.message().await) {
            parts.push(part);
        }
        parts
    }

    /// Opens a Watch stream.
    pub async fn watch_stream(&self) -> WatchStream {
        self.watch_stream_with(|_| {}).await
    }

    /// Opens a Watch stream with metadata of the caller's choice.
    pub async fn watch_stream_with(
        &self,
        edit: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> WatchStream {
        let (requests, queue) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(queue));
        edit(request.metadata_mut());
        let mut client = self.watch.clone();
        WatchStream {
            requests: Some(requests),
            responses: Responses::opening(async move { client.watch(request).await }),
        }
    }

    /// Opens a stream with one watch on it and waits for its creation.
    pub async fn watching(&self, request: pb::WatchCreateRequest) -> WatchStream {
        let mut stream = self.watch_stream().await;
        let created = stream.create(request).await;
        assert!(
            created.created && !created.canceled,
            "watch not created: {created:?}"
        );
        stream
    }

    /// Opens a LeaseKeepAlive stream.
    pub async fn keep_alive_stream(&self) -> KeepAliveStream {
        let (requests, queue) = mpsc::channel(64);
        let stream = ReceiverStream::new(queue);
        let mut client = self.lease.clone();
        KeepAliveStream {
            requests,
            responses: Responses::opening(async move { client.lease_keep_alive(stream).await }),
        }
    }
}

fn inner<T>(result: Result<tonic::Response<T>, Status>) -> Result<T, Status> {
    result.map(tonic::Response::into_inner)
}

/// The value of a call that must succeed.
#[track_caller]
pub fn ok<T>(result: Result<T, Status>) -> T {
    match result {
        Ok(value) => value,
        Err(status) => panic!(
            "the call failed: {:?} {:?}",
            status.code(),
            status.message()
        ),
    }
}

/// Asserts that a call failed with exactly this code and text.
#[track_caller]
pub fn fails<T: Debug>(result: Result<T, Status>, code: Code, message: &str) {
    match result {
        Ok(value) => panic!("succeeded, not {code:?} {message:?}: {value:?}"),
        Err(status) => assert_eq!(
            (status.code(), status.message()),
            (code, message),
            "another error"
        ),
    }
}

/// The revision of a header, which must be there.
#[track_caller]
pub fn rev(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().expect("a header").revision
}

/// The responses of a bidirectional stream. A server need not answer, not even with headers, before it
/// has got a request; so the call is made in the background.
#[allow(clippy::large_enum_variant)] // one per open stream of a test
enum Responses<T> {
    Opening(JoinHandle<Result<tonic::Response<Streaming<T>>, Status>>),
    Open(Streaming<T>),
}

impl<T: Send + 'static> Responses<T> {
    fn opening(
        call: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>> + Send + 'static,
    ) -> Responses<T> {
        Responses::Opening(tokio::spawn(call))
    }

    async fn message(&mut self) -> Result<Option<T>, Status> {
        if let Responses::Opening(call) = self {
            let stream = inner(call.await.expect("the call does not panic"))?;
            *self = Responses::Open(stream);
        }
        match self {
            Responses::Open(stream) => stream.message().await,
            Responses::Opening(_) => unreachable!("opened above"),
        }
    }
}

/// A bidirectional Watch stream.
pub struct WatchStream {
    requests: Option<mpsc::Sender<pb::WatchRequest>>,
    responses: Responses<pb::WatchResponse>,
}

impl WatchStream {
    /// Sends a request.
    pub async fn send(&self, request: RequestUnion) {
        self.send_raw(pb::WatchRequest {
            request_union: Some(request),
        })
        .await;
    }

    /// Sends a request as it is.
    pub async fn send_raw(&self, request: pb::WatchRequest) {
        let requests = self.requests.as_ref().expect("a stream still open");
        requests.send(request).await.expect("an open stream");
    }

    /// Creates a watch and returns the next response.
    pub async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        self.next().await
    }

    /// Cancels a watch; its answer is not awaited.
    pub async fn cancel(&self, watch_id: i64) {
        let request = pb::WatchCancelRequest { watch_id };
        self.send(RequestUnion::CancelRequest(request)).await;
    }

    /// Asks for progress; the answer is not awaited.
    pub async fn progress(&self) {
        let request = pb::WatchProgressRequest {};
        self.send(RequestUnion::ProgressRequest(request)).await;
    }

    /// The next response.
    pub async fn next(&mut self) -> pb::WatchResponse {
        match tokio::time::timeout(PATIENCE, self.responses.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => panic!("the watch stream ended"),
            Ok(Err(status)) => panic!("the watch stream failed: {status:?}"),
            Err(_) => panic!("no watch response came"),
        }
    }

    /// The next response, or `None` when none came within `wait`: only for saying that nothing comes,
    /// where no later response can prove it.
    pub async fn next_within(&mut self, wait: Duration) -> Option<pb::WatchResponse> {
        match tokio::time::timeout(wait, self.responses.message()).await {
            Ok(Ok(Some(response))) => Some(response),
            Ok(other) => panic!("the watch stream ended: {other:?}"),
            Err(_) => None,
        }
    }

    /// Waits for the end of the stream; returns what came before and how it ended.
    pub async fn end(&mut self) -> (Vec<pb::WatchResponse>, Option<Status>) {
        let mut before = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, self.responses.message()).await {
                Ok(Ok(Some(response))) => before.push(response),
                Ok(Ok(None)) => return (before, None),
                Ok(Err(status)) => return (before, Some(status)),
                Err(_) => panic!("the watch stream did not end"),
            }
        }
    }

    /// Reads responses until `count` events have come; returns the responses.
    pub async fn responses_of(&mut self, count: usize) -> Vec<pb::WatchResponse> {
        let mut responses = Vec::new();
        let mut events = 0;
        while events < count {
            let response = self.next().await;
            assert!(!response.canceled, "cancelled: {response:?}");
            events += response.events.len();
            responses.push(response);
        }
        assert_eq!(events, count, "more events than expected");
        responses
    }

    /// Reads responses until `count` events have come; returns the events.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let responses = self.responses_of(count).await;
        responses.into_iter().flat_map(|r| r.events).collect()
    }

    /// Half-closes: no more requests.
    pub fn half_close(&mut self) {
        self.requests = None;
    }
}

/// A bidirectional LeaseKeepAlive stream.
pub struct KeepAliveStream {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    responses: Responses<pb::LeaseKeepAliveResponse>,
}

impl KeepAliveStream {
    /// Sends a request; its answer is not awaited.
    pub async fn send(&self, id: i64) {
        let request = pb::LeaseKeepAliveRequest { id };
        self.requests.send(request).await.expect("an open stream");
    }

    /// The next response.
    pub async fn next(&mut self) -> pb::LeaseKeepAliveResponse {
        match tokio::time::timeout(PATIENCE, self.responses.message()).await {
            Ok(Ok(Some(response))) => response,
            other => panic!("no keep-alive response: {other:?}"),
        }
    }
}

// --- Requests -------------------------------------------------------------------------------------

/// Put of a key and a value.
pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

/// Range of one key.
pub fn range(key: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

/// Range of `[key, end)` by the wire's rules for `range_end`.
pub fn span(key: impl Into<Bytes>, end: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    }
}

/// Delete of one key.
pub fn delete(key: impl Into<Bytes>) -> pb::DeleteRangeRequest {
    delete_span(key, "")
}

/// Delete of `[key, end)`.
pub fn delete_span(key: impl Into<Bytes>, end: impl Into<Bytes>) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv: false,
    }
}

/// A watch of `[key, end)`.
pub fn watch(key: impl Into<Bytes>, end: impl Into<Bytes>) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    }
}

/// The `range_end` of all keys that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// A transaction.
pub fn txn(
    compare: impl Into<Vec<pb::Compare>>,
    success: impl Into<Vec<pb::RequestOp>>,
    failure: impl Into<Vec<pb::RequestOp>>,
) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: compare.into(),
        success: success.into(),
        failure: failure.into(),
    }
}

/// A request as an operation of a transaction.
pub trait IntoOp {
    /// The operation.
    fn op(self) -> pb::RequestOp;
}

macro_rules! into_op {
    ($($request:ty => $variant:ident),*) => {$(
        impl IntoOp for $request {
            fn op(self) -> pb::RequestOp {
                pb::RequestOp { request: Some(pb::request_op::Request::$variant(self)) }
            }
        }
    )*};
}
into_op!(
    pb::RangeRequest => RequestRange,
    pb::PutRequest => RequestPut,
    pb::DeleteRangeRequest => RequestDeleteRange,
    pb::TxnRequest => RequestTxn
);

/// A comparison of a key; the target follows the member of the union.
pub fn compare(
    key: impl Into<Bytes>,
    result: CompareResult,
    union: impl Into<Option<TargetUnion>>,
    target: CompareTarget,
) -> pb::Compare {
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        range_end: Bytes::new(),
        target_union: union.into(),
    }
}

/// Compares the version.
pub fn version(key: impl Into<Bytes>, result: CompareResult, n: i64) -> pb::Compare {
    let union = TargetUnion::Version(n);
    compare(key, result, union, CompareTarget::Version)
}

/// Compares the create revision.
pub fn create(key: impl Into<Bytes>, result: CompareResult, n: i64) -> pb::Compare {
    let union = TargetUnion::CreateRevision(n);
    compare(key, result, union, CompareTarget::Create)
}

/// Compares the mod revision.
pub fn modified(key: impl Into<Bytes>, result: CompareResult, n: i64) -> pb::Compare {
    let union = TargetUnion::ModRevision(n);
    compare(key, result, union, CompareTarget::Mod)
}

/// Compares the value.
pub fn value(key: impl Into<Bytes>, result: CompareResult, bytes: impl Into<Bytes>) -> pb::Compare {
    let union = TargetUnion::Value(bytes.into());
    compare(key, result, union, CompareTarget::Value)
}

/// Compares the lease.
pub fn lease(key: impl Into<Bytes>, result: CompareResult, n: i64) -> pb::Compare {
    let union = TargetUnion::Lease(n);
    compare(key, result, union, CompareTarget::Lease)
}
