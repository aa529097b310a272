//! What one call of each workload does.

use bytes::Bytes;
use clap::ValueEnum;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

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
    /// The method that its calls go to.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Put | Kind::Watch => "/etcdserverpb.KV/Put",
            Kind::Txn => "/etcdserverpb.KV/Txn",
            _ => "/etcdserverpb.KV/Range",
        }
    }

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

/// One caller with one call in flight: makes its requests and looks at the answers; knows no network.
pub struct Caller {
    rng: SmallRng,
    kind: Kind,
    key_space: u64,
    value: Vec<u8>,
    /// Keys this caller alone updates, with the revision it saw last.
    owned: Vec<(u64, i64)>,
    /// Which of them the call in flight updates.
    slot: usize,
}

/// Keys one caller of the txn workload owns.
const OWNED_KEYS: u64 = 64;

impl Caller {
    /// Caller number `index` of `callers`.
    pub fn new(kind: Kind, index: u64, callers: u64, args: &crate::LoadArgs) -> Caller {
        let mut rng = SmallRng::seed_from_u64(args.seed ^ (index << 20));
        let mut value = vec![0; args.value_bytes];
        rng.fill_bytes(&mut value);
        let each = (args.key_space / callers).clamp(1, OWNED_KEYS);
        Caller {
            rng,
            kind,
            key_space: args.key_space,
            value,
            owned: (0..each)
                .map(|i| ((index + i * callers) % args.key_space, -1))
                .collect(),
            slot: 0,
        }
    }

    /// Appends the next request to `out`.
    pub fn request(&mut self, out: &mut Vec<u8>) {
        let encoded = match self.kind {
            Kind::Put | Kind::Watch => self.put().encode(out),
            Kind::Txn => self.txn().encode(out),
            Kind::Range1 => self.range(1, false).encode(out),
            Kind::Range1Serializable => self.range(1, true).encode(out),
            Kind::Range100 => self.range(100, false).encode(out),
            Kind::Range100Serializable => self.range(100, true).encode(out),
        };
        encoded.expect("a vector grows");
    }

    /// Looks at the answer, so that a server that answers nonsense fails the run.
    pub fn answer(&mut self, body: Bytes) -> Result<(), String> {
        let wrong = |e: prost::DecodeError| e.to_string();
        match self.kind {
            Kind::Put | Kind::Watch => {
                let response = pb::PutResponse::decode(body).map_err(wrong)?;
                if response.header.is_none_or(|h| h.revision <= 1) {
                    return Err("a put without a revision".to_owned());
                }
            }
            Kind::Txn => return self.txn_answer(pb::TxnResponse::decode(body).map_err(wrong)?),
            Kind::Range1 | Kind::Range1Serializable => {
                found(&pb::RangeResponse::decode(body).map_err(wrong)?, 1)?;
            }
            Kind::Range100 | Kind::Range100Serializable => {
                found(&pb::RangeResponse::decode(body).map_err(wrong)?, 100)?;
            }
        }
        Ok(())
    }

    fn fresh_value(&mut self) -> Bytes {
        let stamp = self.rng.next_u64().to_le_bytes();
        let n = stamp.len().min(self.value.len());
        self.value[..n].copy_from_slice(&stamp[..n]);
        Bytes::copy_from_slice(&self.value)
    }

    fn put(&mut self) -> pb::PutRequest {
        pb::PutRequest {
            key: key(self.rng.gen_range(0..self.key_space)),
            value: self.fresh_value(),
            ..Default::default()
        }
    }

    fn txn(&mut self) -> pb::TxnRequest {
        self.slot = self.rng.gen_range(0..self.owned.len());
        let (n, revision) = self.owned[self.slot];
        let value = self.fresh_value();
        pb::TxnRequest {
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
        }
    }

    fn txn_answer(&mut self, response: pb::TxnResponse) -> Result<(), String> {
        self.owned[self.slot].1 = if response.succeeded {
            response.header.map_or(0, |h| h.revision)
        } else {
            // The first update of a key learns its revision from the failure branch.
            match response.responses.first().and_then(|r| r.response.as_ref()) {
                Some(pb::response_op::Response::ResponseRange(range)) => {
                    range.kvs.first().map_or(0, |kv| kv.mod_revision)
                }
                _ => return Err("txn answered without its range".to_owned()),
            }
        };
        Ok(())
    }

    fn range(&mut self, keys: u64, serializable: bool) -> pb::RangeRequest {
        let first = self.rng.gen_range(0..=self.key_space.saturating_sub(keys));
        pb::RangeRequest {
            key: key(first),
            range_end: if keys == 1 {
                Bytes::new()
            } else {
                key(first + keys)
            },
            serializable,
            ..Default::default()
        }
    }
}

fn found(response: &pb::RangeResponse, keys: usize) -> Result<(), String> {
    match response.kvs.len() {
        n if n == keys => Ok(()),
        n => Err(format!("asked for {keys} keys, got {n}")),
    }
}
