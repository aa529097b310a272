//! Reading what a batch of entries will touch, before it is applied.
//!
//! Apply changes one key after the other; with a store larger than its page cache each could wait for a
//! page of its own. The keys of the entries to come are therefore looked up first, all together, and the
//! pages on their way are read many at a time.
//!
//! Invariants:
//! 1. Only the page cache changes: what is applied is the same with and without.
//! 2. A store whose pages are all at hand pays nothing: keys are gathered only while pages were missed
//!    lately.
//! 3. At most [`KEYS_MAX`] keys are looked up at a time, and one entry's beyond.

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::request_op::Request;

/// Keys looked up together.
const KEYS_MAX: usize = 1024;

/// Whether pages were missed lately.
#[derive(Default)]
pub(super) struct Cold {
    misses: Option<u64>,
    cold: bool,
}

impl Cold {
    /// Takes the count of missed pages so far; the first look says cold.
    pub fn look(&mut self, misses: u64) {
        self.cold = self.misses.replace(misses) != Some(misses);
    }

    pub fn is_cold(&self) -> bool {
        self.cold
    }
}

/// The keys of the first entries, and how many entries these are: all, or as many as [`KEYS_MAX`] allows.
/// What cannot be decoded has no keys here; applying it will say so.
pub(super) fn keys<'a>(entries: impl Iterator<Item = &'a Bytes>) -> (Vec<Bytes>, usize) {
    let (mut keys, mut taken) = (Vec::new(), 0);
    for data in entries {
        if keys.len() >= KEYS_MAX {
            break;
        }
        taken += 1;
        let Ok(request) = pb::InternalRaftRequest::decode(data.clone()) else {
            continue;
        };
        keys.extend(request.put.map(|r| r.key));
        keys.extend(request.delete_range.map(|r| r.key));
        if let Some(txn) = request.txn {
            of_txn(txn, &mut keys);
        }
    }
    (keys, taken)
}

/// Both branches: which one is taken is not known yet.
fn of_txn(txn: pb::TxnRequest, keys: &mut Vec<Bytes>) {
    keys.extend(txn.compare.into_iter().map(|c| c.key));
    for op in txn.success.into_iter().chain(txn.failure) {
        match op.request {
            Some(Request::RequestPut(r)) => keys.push(r.key),
            Some(Request::RequestRange(r)) => keys.push(r.key),
            Some(Request::RequestDeleteRange(r)) => keys.push(r.key),
            Some(Request::RequestTxn(r)) => of_txn(r, keys),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> pb::PutRequest {
        pb::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        }
    }

    fn entry(request: pb::InternalRaftRequest) -> Bytes {
        request.encode_to_vec().into()
    }

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(request),
        }
    }

    #[test]
    fn the_keys_of_every_kind_of_request_are_found() {
        let inner = pb::TxnRequest {
            success: vec![op(Request::RequestPut(put("d")))],
            ..Default::default()
        };
        let range = pb::RangeRequest {
            key: "e".into(),
            ..Default::default()
        };
        let delete = pb::DeleteRangeRequest {
            key: "f".into(),
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![pb::Compare {
                key: "c".into(),
                ..Default::default()
            }],
            success: vec![op(Request::RequestTxn(inner))],
            failure: vec![
                op(Request::RequestRange(range)),
                op(Request::RequestDeleteRange(delete.clone())),
                pb::RequestOp::default(),
            ],
        };
        let entries = [
            entry(pb::InternalRaftRequest {
                put: Some(put("a")),
                ..Default::default()
            }),
            entry(pb::InternalRaftRequest {
                delete_range: Some(delete),
                ..Default::default()
            }),
            Bytes::new(),
            Bytes::from_static(b"\xff\xff"),
            entry(pb::InternalRaftRequest {
                txn: Some(txn),
                ..Default::default()
            }),
        ];
        let (found, taken) = keys(entries.iter());
        assert_eq!(found, ["a", "f", "c", "d", "e", "f"]);
        assert_eq!(taken, entries.len());
    }

    #[test]
    fn a_long_batch_is_looked_up_in_pieces() {
        let one = entry(pb::InternalRaftRequest {
            put: Some(put("a")),
            ..Default::default()
        });
        let entries = vec![one; KEYS_MAX + 10];
        assert_eq!(keys(entries.iter()).1, KEYS_MAX);
        assert_eq!(keys(entries[KEYS_MAX..].iter()).1, 10);
    }

    #[test]
    fn a_store_is_cold_at_first_and_while_pages_are_missed() {
        let mut cold = Cold::default();
        let mut look = |misses| {
            cold.look(misses);
            cold.is_cold()
        };
        assert_eq!(
            [look(7), look(7), look(9), look(9)],
            [true, false, true, false]
        );
    }
}
