//! The KV service: Range, Put, DeleteRange, Txn, Compact.
//!
//! Range is the hottest call there is: its key-values go from the tree's pages straight into the
//! encoded response.

use super::large::{Hint, Metered, Share, hold};
use super::{Api, Encoded, Learner, RequestCtx, engine_status, mismatched, validate};
use crate::apply::range::{Reads, Sink, key_range, range};
use crate::apply::txn::{self, Ops};
use crate::apply::{Alarms, Failure, LeaseSet, Reply, cost};
use crate::node::Node;
use crate::status::{Status, errors};
use bytes::{Bytes, BytesMut};
use engine::KvRef;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::AlarmType;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use std::time::Instant;

impl<N: Node> Api<N> {
    /// Range, encoded. Linearizable unless the request says serializable.
    pub async fn range(&self, ctx: &RequestCtx, r: pb::RangeRequest) -> Result<Encoded, Status> {
        let learner = if r.serializable {
            Learner::Serves
        } else {
            Learner::Refuses
        };
        self.admit(ctx, learner)?;
        validate::range(&r)?;
        if !r.serializable {
            self.node.linearizable().await?;
        }
        let view = self.node.engine().view();
        self.counters.add(&Ops {
            ranges: 1,
            ..Default::default()
        });
        if r.revision > view.revision() {
            return Err(errors::FUTURE_REV);
        }
        if r.revision > 0 && r.revision < view.compact_revision() {
            return Err(errors::COMPACTED);
        }
        let since = Instant::now();
        let answer = self.range_on_view(view, r).await;
        self.observer.ranged(answer.is_ok(), since.elapsed());
        answer
    }

    async fn range_on_view(
        &self,
        view: engine::View,
        r: pb::RangeRequest,
    ) -> Result<Encoded, Status> {
        let header = self.node.header(view.revision());
        let old = is_old(&r, view.revision());
        if r.range_end.is_empty() || (r.count_only && !old) {
            return encode_range(&view, &header, &r).map_err(engine_status);
        }
        let limit = match r.limit {
            1.. => r.limit as u64,
            _ => u64::MAX,
        };
        let hint = Hint {
            slow: old,
            keys: Some((key_range(&r.key, &r.range_end), limit)),
        };
        let read =
            move |reads: &Metered<'_>| encode_range(reads, &header, &r).map_err(engine_status);
        let (answer, share) = self.large.read(view, hint, read).await?;
        Ok(held(answer, share))
    }

    /// Put.
    pub async fn put(
        &self,
        ctx: &RequestCtx,
        r: pb::PutRequest,
    ) -> Result<pb::PutResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.check_quota(cost::put(&r)).await?;
        validate::put(&r)?;
        let request = pb::InternalRaftRequest {
            put: Some(r),
            ..Default::default()
        };
        match self.propose(request).await? {
            Reply::Put(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }

    /// DeleteRange.
    pub async fn delete_range(
        &self,
        ctx: &RequestCtx,
        r: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        validate::delete_range(&r)?;
        let request = pb::InternalRaftRequest {
            delete_range: Some(r),
            ..Default::default()
        };
        match self.propose(request).await? {
            Reply::DeleteRange(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            _ => Err(mismatched()),
        }
    }

    /// Txn. One that can only read is answered from a view without a log entry.
    pub async fn txn(
        &self,
        ctx: &RequestCtx,
        r: pb::TxnRequest,
    ) -> Result<pb::TxnResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        self.check_quota(cost::txn(&r)).await?;
        validate::txn(&r, self.limits.txn_ops_max)?;
        let mut response = if validate::txn_is_read_only(&r) {
            if !validate::txn_is_serializable(&r) {
                self.node.linearizable().await?;
            }
            self.txn_on_view(r).await?
        } else {
            let request = pb::InternalRaftRequest {
                txn: Some(r),
                ..Default::default()
            };
            match self.propose(request).await? {
                Reply::Txn(response) => response,
                _ => return Err(mismatched()),
            }
        };
        self.complete(&mut response.header);
        Ok(response)
    }

    async fn txn_on_view(&self, r: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let view = self.node.engine().view();
        let revision = view.revision();
        let hint = Hint {
            slow: validate::ranges(&r).flatten().any(|r| is_old(r, revision)),
            keys: None,
        };
        let read = move |reads: &Metered<'_>| -> Result<(pb::TxnResponse, Ops), Status> {
            let mut ops = Ops::default();
            let mut run = || -> Result<pb::TxnResponse, Failure> {
                let path = txn::decide(reads, &r)?;
                let no_puts = LeaseSet::default();
                txn::check(reads, &r, &path, reads.compact_revision(), &no_puts)?;
                Ok(txn::read(reads, &r, &path, &mut ops)?)
            };
            let response = run().map_err(|failure| match failure {
                Failure::Status(status) => status,
                Failure::Engine(error) => engine_status(error),
            })?;
            Ok((response, ops))
        };
        // The share ends with this call: until then the answer is being built.
        let ((response, ops), _share) = self.large.read(view, hint, read).await?;
        self.counters.add(&ops);
        Ok(response)
    }

    /// Compact. The physical form returns once the history is gone from the disk.
    pub async fn compact(
        &self,
        ctx: &RequestCtx,
        r: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Status> {
        self.admit(ctx, Learner::Refuses)?;
        let mut response = self.compact_to(r).await?;
        if r.physical {
            self.node.compacted(r.revision).await?;
        }
        self.complete(&mut response.header);
        Ok(response)
    }

    /// Compacts, by a call or by itself.
    pub(crate) async fn compact_to(
        &self,
        r: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Status> {
        let request = pb::InternalRaftRequest {
            compaction: Some(r),
            ..Default::default()
        };
        match self.propose(request).await? {
            Reply::Compact(response) => Ok(response),
            _ => Err(mismatched()),
        }
    }

    /// Proposes. When apply answers `NO_SPACE` and no alarm explains it, this member has reached its
    /// quota, and the alarm is raised before the answer goes out.
    ///
    /// The request is handed on before this returns, so that no future carries it about.
    pub(crate) fn propose(
        &self,
        request: pb::InternalRaftRequest,
    ) -> impl Future<Output = Result<Reply, Status>> + Send + use<'_, N> {
        let proposed = self.node.propose(request);
        async move {
            let result = proposed.await;
            if matches!(&result, Err(status) if *status == errors::NO_SPACE)
                && !self.alarms()?.any(AlarmType::Nospace)
            {
                Box::pin(self.raise_no_space()).await?;
            }
            result
        }
    }

    fn alarms(&self) -> Result<Alarms, Status> {
        Alarms::load(&self.node.engine().view()).map_err(engine_status)
    }

    /// Refuses what would take the store to its quota, and raises the alarm. Called before the request
    /// is looked at, as in etcd; nothing is proposed but the alarm.
    pub(crate) async fn check_quota(&self, cost: u64) -> Result<(), Status> {
        if cost == 0 || !cost::reaches_quota(&self.limits, &self.counters, self.node.engine(), cost)
        {
            return Ok(());
        }
        // Boxed: it is rare, and would make every future of a write larger.
        Box::pin(self.raise_no_space()).await?;
        Err(errors::NO_SPACE)
    }

    /// Logs the NOSPACE alarm of this member unless it stands already.
    async fn raise_no_space(&self) -> Result<(), Status> {
        let member_id = self.node.identity().member_id;
        if self.alarms()?.has(member_id, AlarmType::Nospace) {
            return Ok(());
        }
        let alarm = pb::AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id,
            alarm: AlarmType::Nospace as i32,
        };
        let request = pb::InternalRaftRequest {
            alarm: Some(alarm),
            ..Default::default()
        };
        self.node.propose(request).await.map(|_| ())
    }
}

/// Whether a request reads several keys at a revision that is not the newest.
fn is_old(r: &pb::RangeRequest, newest: i64) -> bool {
    !r.range_end.is_empty() && r.revision > 0 && r.revision < newest
}

/// An answer that keeps its share of memory until it is sent.
fn held(mut answer: Encoded, share: Option<Share>) -> Encoded {
    if let [body] = &mut answer.tail[..] {
        *body = hold(std::mem::take(body), share);
    }
    answer
}

/// Bodies up to this size go into the copied head of a reply.
const HEAD_BYTES_MAX: usize = 4096;

/// Answers a checked request from a state, encoded as a `RangeResponse`.
pub fn encode_range<R: Reads>(
    reads: &R,
    header: &pb::ResponseHeader,
    r: &pb::RangeRequest,
) -> engine::Result<Encoded> {
    let mut encoder = Encoder(BytesMut::with_capacity(512));
    prost::encoding::message::encode(1, header, &mut encoder.0);
    let summary = range(reads, r, &mut encoder)?;
    let mut out = encoder.0;
    if summary.more {
        out.extend_from_slice(&[3 << 3, 1]);
    }
    if summary.count != 0 {
        encode_varint(4 << 3, &mut out);
        encode_varint(summary.count as u64, &mut out);
    }
    let body = out.freeze();
    Ok(if body.len() <= HEAD_BYTES_MAX {
        Encoded {
            head: body,
            tail: Vec::new(),
        }
    } else {
        Encoded {
            head: Bytes::new(),
            tail: vec![body],
        }
    })
}

/// Reads an encoded response back, for callers inside the server.
pub fn decode_range(encoded: &Encoded) -> Result<pb::RangeResponse, prost::DecodeError> {
    match &encoded.tail[..] {
        [] => pb::RangeResponse::decode(encoded.head.clone()),
        [body] if encoded.head.is_empty() => pb::RangeResponse::decode(body.clone()),
        _ => {
            let mut whole = BytesMut::from(&encoded.head[..]);
            for piece in &encoded.tail {
                whole.extend_from_slice(piece);
            }
            pb::RangeResponse::decode(whole.freeze())
        }
    }
}

/// Writes the repeated field `kvs` of a `RangeResponse`: fields in ascending order, zeros left out, as
/// every protobuf encoder does.
struct Encoder(BytesMut);

impl Encoder {
    fn number(&mut self, tag: u8, n: i64) {
        if n != 0 {
            self.0.extend_from_slice(&[tag << 3]);
            encode_varint(n as u64, &mut self.0);
        }
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.extend_from_slice(&[tag << 3 | 2]);
            encode_varint(bytes.len() as u64, &mut self.0);
            self.0.extend_from_slice(bytes);
        }
    }
}

fn number_len(n: i64) -> usize {
    if n == 0 {
        0
    } else {
        1 + encoded_len_varint(n as u64)
    }
}

fn bytes_len(bytes: &[u8]) -> usize {
    match bytes.len() {
        0 => 0,
        n => 1 + encoded_len_varint(n as u64) + n,
    }
}

impl Sink for Encoder {
    fn push(&mut self, kv: KvRef<'_>) {
        let len = bytes_len(kv.key)
            + number_len(kv.create_revision)
            + number_len(kv.mod_revision)
            + number_len(kv.version)
            + bytes_len(kv.value)
            + number_len(kv.lease);
        self.0.reserve(len + 6);
        self.0.extend_from_slice(&[2 << 3 | 2]);
        encode_varint(len as u64, &mut self.0);
        self.bytes(1, kv.key);
        self.number(2, kv.create_revision);
        self.number(3, kv.mod_revision);
        self.number(4, kv.version);
        self.bytes(5, kv.value);
        self.number(6, kv.lease);
    }
}

#[cfg(test)]
mod against_etcd;
#[cfg(test)]
mod tests;
