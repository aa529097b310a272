//! Random requests, for tests of many at once.

use super::req::*;
use bytes::Bytes;
use proptest::prelude::*;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::compare::TargetUnion;

/// One of a few keys, so that requests meet.
pub fn key_strategy() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "b", "ba", "c", "d", "e"]).prop_map(Bytes::from)
}

/// Range ends: mostly none, some above, some below, and the open one.
pub fn end_strategy() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "", "b", "c", "e", "z", "\0"]).prop_map(Bytes::from)
}

/// Puts with every flag, known and unknown leases, small and large values.
pub fn put_strategy() -> impl Strategy<Value = pb::PutRequest> {
    let small = prop::collection::vec(any::<u8>(), 0..12);
    let large = (500usize..3000).prop_map(|n| vec![7; n]);
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    (
        key_strategy(),
        prop_oneof![4 => small, 1 => large],
        prop::sample::select(vec![0i64, 0, 0, 1, 2, -3]),
        flags,
    )
        .prop_map(
            |(key, value, lease, (prev_kv, ignore_value, ignore_lease))| pb::PutRequest {
                key,
                value: if ignore_value {
                    Bytes::new()
                } else {
                    value.into()
                },
                lease: if ignore_lease { 0 } else { lease },
                prev_kv,
                ignore_value,
                ignore_lease,
            },
        )
}

/// Deletes of a key or a range.
pub fn delete_strategy() -> impl Strategy<Value = pb::DeleteRangeRequest> {
    (key_strategy(), end_strategy(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
        pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv,
        }
    })
}

/// Ranges with limits, revisions and sorts.
pub fn range_strategy() -> impl Strategy<Value = pb::RangeRequest> {
    (
        key_strategy(),
        end_strategy(),
        0i64..4,
        -2i64..40,
        0..3i32,
        0..5i32,
    )
        .prop_map(
            |(key, range_end, limit, revision, sort_order, sort_target)| pb::RangeRequest {
                key,
                range_end,
                limit,
                // Mostly the newest.
                revision: if revision > 20 { 0 } else { revision },
                sort_order,
                sort_target,
                ..Default::default()
            },
        )
}

/// Compares of every target, also over ranges, and with a constant of another target.
pub fn compare_strategy() -> impl Strategy<Value = pb::Compare> {
    let target = 0..7i32;
    (key_strategy(), end_strategy(), 0..4i32, 0i64..4, target).prop_map(
        |(key, range_end, result, n, target)| pb::Compare {
            key,
            range_end,
            result,
            target: target % 5,
            target_union: Some(match target {
                0 => TargetUnion::Version(n),
                1 => TargetUnion::CreateRevision(n + 2),
                2 => TargetUnion::ModRevision(n + 5),
                3 => TargetUnion::Value(Bytes::from(vec![n as u8 * 60])),
                4 => TargetUnion::Lease(n - 3),
                _ => TargetUnion::Version(1),
            }),
        },
    )
}

/// Operations of a transaction, nested ones included.
pub fn op_strategy() -> impl Strategy<Value = pb::RequestOp> {
    let leaf = prop_oneof![
        4 => put_strategy().prop_map(op_put),
        2 => delete_strategy().prop_map(op_delete),
        2 => range_strategy().prop_map(op_range),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| txn_strategy(inner).prop_map(op_txn))
}

/// Transactions over the given operations.
pub fn txn_strategy(
    inner: impl Strategy<Value = pb::RequestOp> + Clone,
) -> impl Strategy<Value = pb::TxnRequest> {
    (
        prop::collection::vec(compare_strategy(), 0..2),
        prop::collection::vec(inner.clone(), 0..4),
        prop::collection::vec(inner, 0..3),
    )
        .prop_map(|(compare, success, failure)| pb::TxnRequest {
            compare,
            success,
            failure,
        })
}
