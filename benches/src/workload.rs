//! What one call of each workload does.

use bytes::Bytes;
use clap::ValueEnum;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tonic::Status;
use tonic::transport::Channel;

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Put of a random key.
    Put,
    /// The guarded update of Kubernetes: if mod(key) = n then put else range.
    Txn,
    /// Linearizable range of one key.
    Range1,
    /// Serializable range of one key.
    Range1Serializable,
    /// Linearizable range of 100 keys.
    Range100,
    /// Serializable range of 100 keys.
    Range100Serializable,
    /// Puts under one prefix by the first connection, with a watcher per call in flight of every
    /// other one (of the same one, when there is no other).
    Watch,
}

impl Kind {
    /// The name on the command line and in tables.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|v| v.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// The `n`-th key. Fixed width, so that key order is number order.
pub fn key(n: u64) -> Bytes {
    Bytes::from(format!("/bench/key/{n:010}"))
}

/// One caller with one call in flight.
pub struct Caller {
    client: KvClient<Channel>,
    rng: SmallRng,
    kind: Kind,
    key_space: u64,
    value: Vec<u8>,
    /// Keys this caller alone updates, with the revision it saw last.
    owned: Vec<(u64, i64)>,
}

/// Keys one caller of the txn workload owns.
const OWNED_KEYS: u64 = 64;

impl Caller {
    /// Caller number `index` of `callers`.
    pub fn new(
        channel: Channel,
        kind: Kind,
        index: u64,
        callers: u64,
        args: &crate::LoadArgs,
    ) -> Caller {
        let mut rng = SmallRng::seed_from_u64(args.seed ^ (index << 20));
        let mut value = vec![0; args.value_bytes];
        rng.fill_bytes(&mut value);
        let each = (args.key_space / callers).clamp(1, OWNED_KEYS);
        Caller {
            client: KvClient::new(channel).max_decoding_message_size(usize::MAX),
            rng,
            kind,
            key_space: args.key_space,
            value,
            owned: (0..each)
                .map(|i| ((index + i * callers) % args.key_space, -1))
                .collect(),
        }
    }

    /// Makes one call; the result is checked, so that a server that answers nonsense fails the run.
    pub async fn call(&mut self) -> Result<(), Status> {
        match self.kind {
            Kind::Put | Kind::Watch => self.put().await,
            Kind::Txn => self.txn().await,
            Kind::Range1 => self.range(1, false).await,
            Kind::Range1Serializable => self.range(1, true).await,
            Kind::Range100 => self.range(100, false).await,
            Kind::Range100Serializable => self.range(100, true).await,
        }
    }

    fn fresh_value(&mut self) -> Bytes {
        let stamp = self.rng.next_u64().to_le_bytes();
        let n = stamp.len().min(self.value.len());
        self.value[..n].copy_from_slice(&stamp[..n]);
        Bytes::copy_from_slice(&self.value)
    }

    async fn put(&mut self) -> Result<(), Status> {
        let request = pb::PutRequest {
            key: key(self.rng.gen_range(0..self.key_space)),
            value: self.fresh_value(),
            ..Default::default()
        };
        self.client.put(request).await.map(drop)
    }

    async fn txn(&mut self) -> Result<(), Status> {
        let slot = self.rng.gen_range(0..self.owned.len());
        let (n, revision) = self.owned[slot];
        let value = self.fresh_value();
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                result: pb::compare::CompareResult::Equal as i32,
                target: pb::compare::CompareTarget::Mod as i32,
                key: key(n),
                target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
                ..Default::default()
            }],
            success: vec![pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                    key: key(n),
                    value,
                    ..Default::default()
                })),
            }],
            failure: vec![pb::RequestOp {
                request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest {
                    key: key(n),
                    ..Default::default()
                })),
            }],
        };
        let response = self.client.txn(request).await?.into_inner();
        self.owned[slot].1 = if response.succeeded {
            response.header.map_or(0, |h| h.revision)
        } else {
            // The first update of a key learns its revision from the failure branch.
            match response
                .responses
                .into_iter()
                .next()
                .and_then(|r| r.response)
            {
                Some(pb::response_op::Response::ResponseRange(range)) => {
                    range.kvs.first().map_or(0, |kv| kv.mod_revision)
                }
                _ => return Err(Status::internal("txn answered without its range")),
            }
        };
        Ok(())
    }

    async fn range(&mut self, keys: u64, serializable: bool) -> Result<(), Status> {
        let first = self.rng.gen_range(0..=self.key_space.saturating_sub(keys));
        let request = pb::RangeRequest {
            key: key(first),
            range_end: if keys == 1 {
                Bytes::new()
            } else {
                key(first + keys)
            },
            serializable,
            ..Default::default()
        };
        let response = self.client.range(request).await?.into_inner();
        if response.kvs.len() as u64 != keys {
            return Err(Status::internal(format!(
                "asked for {keys} keys, got {}",
                response.kvs.len()
            )));
        }
        Ok(())
    }
}
