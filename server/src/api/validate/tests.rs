use super::*;
use crate::testing::req::*;

const OPS_MAX: usize = 128;

fn check(r: &pb::TxnRequest) -> Result<(), Status> {
    txn(r, OPS_MAX)
}

fn branch(ops: Vec<pb::RequestOp>) -> Result<(), Status> {
    let on_success = check(&pb::TxnRequest {
        success: ops.clone(),
        ..Default::default()
    });
    let on_failure = check(&pb::TxnRequest {
        failure: ops,
        ..Default::default()
    });
    assert_eq!(on_success, on_failure, "both branches follow one rule");
    on_success
}

#[test]
fn rule_2_1_empty_key_comes_before_sort_options() {
    let r = pb::RangeRequest {
        sort_order: 9,
        ..Default::default()
    };
    assert_eq!(range(&r), Err(errors::EMPTY_KEY));
    assert_eq!(put(&pb::PutRequest::default()), Err(errors::EMPTY_KEY));
    assert_eq!(
        delete_range(&pb::DeleteRangeRequest::default()),
        Err(errors::EMPTY_KEY)
    );
}

#[test]
fn rule_2_6_unknown_enums_are_refused() {
    for (order, target) in [(3, 0), (-1, 0), (0, 5), (0, -1)] {
        let r = pb::RangeRequest {
            key: "k".into(),
            sort_order: order,
            sort_target: target,
            ..Default::default()
        };
        assert_eq!(range(&r), Err(errors::INVALID_SORT_OPTION));
        assert_eq!(branch(vec![op_range(r)]), Err(errors::INVALID_SORT_OPTION));
    }
}

#[test]
fn rule_3_1_put_flags() {
    let base = pb::PutRequest {
        key: "k".into(),
        value: "v".into(),
        lease: 7,
        ..Default::default()
    };
    let with_value = pb::PutRequest {
        ignore_value: true,
        ignore_lease: true,
        ..base.clone()
    };
    assert_eq!(put(&with_value), Err(errors::VALUE_PROVIDED));
    let with_lease = pb::PutRequest {
        ignore_lease: true,
        ..base.clone()
    };
    assert_eq!(put(&with_lease), Err(errors::LEASE_PROVIDED));
    assert_eq!(put(&base), Ok(()));
    assert_eq!(
        branch(vec![op_put(with_lease)]),
        Err(errors::LEASE_PROVIDED)
    );
}

#[test]
fn rule_4_1_each_list_of_the_top_level_has_the_whole_budget() {
    let ops = |n: usize| (0..n).map(|i| op(put_of(&format!("k{i}"), "v"))).collect();
    assert_eq!(branch(ops(128)), Ok(()));
    assert_eq!(branch(ops(129)), Err(errors::TOO_MANY_OPS));
    let compares = |n: usize| pb::TxnRequest {
        compare: vec![cmp_version("k", 0); n],
        ..Default::default()
    };
    assert_eq!(check(&compares(128)), Ok(()));
    assert_eq!(check(&compares(129)), Err(errors::TOO_MANY_OPS));
}

#[test]
fn rule_4_1_nested_budget_is_what_the_parent_left() {
    let nested = |outer: usize, inner: usize| {
        let mut ops: Vec<_> = (1..outer).map(|i| op(range_of(&format!("r{i}")))).collect();
        ops.push(op_txn(pb::TxnRequest {
            failure: (0..inner).map(|i| op(range_of(&format!("i{i}")))).collect(),
            ..Default::default()
        }));
        ops
    };
    assert_eq!(branch(nested(100, 28)), Ok(()));
    assert_eq!(branch(nested(100, 29)), Err(errors::TOO_MANY_OPS));
    assert_eq!(branch(nested(100, 50)), Err(errors::TOO_MANY_OPS));
}

#[test]
fn rule_4_2_every_op_of_both_branches_is_checked() {
    assert_eq!(check(&pb::TxnRequest::default()), Ok(()));
    assert_eq!(
        branch(vec![pb::RequestOp { request: None }]),
        Err(errors::KEY_NOT_FOUND)
    );
    assert_eq!(branch(vec![op(range_of(""))]), Err(errors::EMPTY_KEY));
    let nested = op_txn(pb::TxnRequest {
        failure: vec![op(put_of("", "v"))],
        ..Default::default()
    });
    assert_eq!(branch(vec![nested]), Err(errors::EMPTY_KEY));
    assert_eq!(
        check(&pb::TxnRequest {
            compare: vec![cmp_version("", 0)],
            ..Default::default()
        }),
        Err(errors::EMPTY_KEY)
    );
}

#[test]
fn rule_4_3_overlap_inside_one_branch() {
    let put_k = || op(put_of("k", "v"));
    let del = |k: &str, e: &str| op(delete_of(k, e));
    assert_eq!(branch(vec![put_k(), put_k()]), Err(errors::DUPLICATE_KEY));
    for ops in [
        vec![put_k(), del("k", "")],
        vec![del("k", ""), put_k()],
        vec![put_k(), del("a", "z")],
        vec![del("k", "l"), put_k()],
    ] {
        assert_eq!(branch(ops), Err(errors::DUPLICATE_KEY));
    }
    for ops in [
        vec![put_k(), del("a", "k")],
        vec![put_k(), del("k2", "")],
        vec![put_k(), del("z", "a")],
        vec![del("a", "z"), del("b", "c"), del("a", "")],
        vec![put_k(), op(range_of("k"))],
    ] {
        assert_eq!(branch(ops), Ok(()));
    }
}

#[test]
fn rule_4_3_the_branches_do_not_see_each_other() {
    let r = pb::TxnRequest {
        success: vec![op(put_of("k", "1"))],
        failure: vec![op(put_of("k", "2"))],
        ..Default::default()
    };
    assert_eq!(check(&r), Ok(()));
}

#[test]
fn rule_4_3_open_ended_delete_does_not_count_as_overlap() {
    assert_eq!(
        branch(vec![op(delete_of("a", "\0")), op(put_of("k", "v"))]),
        Ok(())
    );
}

fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
    op_txn(pb::TxnRequest {
        success,
        failure,
        ..Default::default()
    })
}

#[test]
fn rule_4_3_sides_of_one_nested_txn_may_share_a_key() {
    let put_k = || op(put_of("k", "v"));
    assert_eq!(branch(vec![nested(vec![put_k()], vec![put_k()])]), Ok(()));
    assert_eq!(
        branch(vec![nested(vec![put_k()], vec![op(delete_of("a", "z"))])]),
        Ok(())
    );
}

#[test]
fn rule_4_3_siblings_may_not_share_a_key_even_on_different_sides() {
    let put_k = || op(put_of("k", "v"));
    assert_eq!(
        branch(vec![
            nested(vec![put_k()], vec![]),
            nested(vec![], vec![put_k()])
        ]),
        Err(errors::DUPLICATE_KEY)
    );
}

#[test]
fn rule_4_3_parent_and_nested_writes_collide_both_ways() {
    let put_k = || op(put_of("k", "v"));
    let del = || op(delete_of("a", "z"));
    for ops in [
        vec![put_k(), nested(vec![put_k()], vec![])],
        vec![put_k(), nested(vec![del()], vec![])],
        vec![nested(vec![], vec![del()]), put_k()],
        vec![del(), nested(vec![put_k()], vec![])],
        vec![nested(vec![], vec![put_k()]), del()],
    ] {
        assert_eq!(branch(ops), Err(errors::DUPLICATE_KEY));
    }
    assert_eq!(
        branch(vec![
            op(put_of("other", "v")),
            nested(vec![op(delete_of("k", ""))], vec![])
        ]),
        Ok(())
    );
}

#[test]
fn rule_4_3_sibling_nested_put_then_delete_is_accepted() {
    let put_k = || nested(vec![op(put_of("k", "v"))], vec![]);
    let del = || nested(vec![op(delete_of("a", "z"))], vec![]);
    assert_eq!(branch(vec![put_k(), del()]), Ok(()));
    assert_eq!(branch(vec![del(), put_k()]), Err(errors::DUPLICATE_KEY));
}

#[test]
fn rule_4_8_what_counts_as_read_only_and_serializable() {
    let serializable = |on: bool| {
        op_range(pb::RangeRequest {
            key: "k".into(),
            serializable: on,
            ..Default::default()
        })
    };
    let of = |success: Vec<pb::RequestOp>| pb::TxnRequest {
        success,
        ..Default::default()
    };
    assert!(txn_is_read_only(&of(vec![])) && txn_is_serializable(&of(vec![])));
    assert!(txn_is_serializable(&of(vec![serializable(true)])));
    assert!(!txn_is_serializable(&of(vec![
        serializable(true),
        serializable(false)
    ])));
    assert!(!txn_is_read_only(&of(vec![op(put_of("k", "v"))])));
    assert!(!txn_is_read_only(&of(vec![nested(vec![], vec![])])));
}
