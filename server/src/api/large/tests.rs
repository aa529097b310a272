//! What goes to the reader threads answers as what does not; shares are bounded and come back.

use super::*;
use crate::api::kv::{decode_range, encode_range};
use crate::api::{Api, RequestCtx};
use crate::limits::Limits;
use crate::node::Node;
use crate::testing::req::{cmp_version, op_range, put_of, range_all};
use crate::testing::{LocalNode, block_on};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

fn bounds() -> Bounds {
    Bounds {
        inline_bytes: 4096,
        budget_bytes: 1 << 20,
        readers: 2,
        wait: Duration::from_secs(7),
    }
}

/// A member with 200 keys of 100 bytes, half of them written twice.
fn api(bounds: Bounds) -> Api<LocalNode> {
    let mut api = crate::testing::api(Limits::default());
    api.large = Large::new(bounds);
    let ctx = RequestCtx::default();
    for i in 0..300 {
        let put = put_of(&format!("k{:03}", i % 200), &format!("{i:0100}"));
        block_on(api.put(&ctx, put)).unwrap();
    }
    api
}

fn revision(api: &Api<LocalNode>) -> i64 {
    api.node.engine().view().revision()
}

/// Requests of every form that can be large.
fn requests(revision: i64) -> Vec<pb::RangeRequest> {
    let mut requests = vec![range_all()];
    for (order, target) in [
        (SortOrder::Descend, SortTarget::Key),
        (SortOrder::Ascend, SortTarget::Value),
        (SortOrder::Descend, SortTarget::Mod),
    ] {
        requests.push(pb::RangeRequest {
            sort_order: order as i32,
            sort_target: target as i32,
            limit: 150,
            ..range_all()
        });
    }
    requests.push(pb::RangeRequest {
        keys_only: true,
        ..range_all()
    });
    requests.push(pb::RangeRequest {
        min_mod_revision: 100,
        ..range_all()
    });
    let newest = requests.clone().into_iter();
    let old = newest.map(|r| pb::RangeRequest {
        revision: revision - 50,
        ..r
    });
    let mut all: Vec<_> = old.collect();
    all.push(pb::RangeRequest {
        count_only: true,
        revision: revision - 50,
        ..range_all()
    });
    all.extend(requests);
    all
}

#[test]
fn a_reader_thread_answers_what_the_network_thread_would() {
    let api = api(bounds());
    let ctx = RequestCtx::default();
    for r in requests(revision(&api)) {
        let view = api.node.engine().view();
        let header = api.node.header(view.revision());
        let expected = encode_range(&view, &header, &r).unwrap();
        let answer = block_on(api.range(&ctx, r.clone())).unwrap();
        assert_eq!(
            decode_range(&answer).unwrap(),
            decode_range(&expected).unwrap(),
            "{r:?}"
        );
        assert!(api.large.readers.get().is_some(), "went to a reader");
        drop(answer);
        assert_eq!(api.large.budget.available_permits(), 256, "{r:?}");
    }
    let txn = pb::TxnRequest {
        compare: vec![cmp_version("k000", 2)],
        success: requests(revision(&api)).into_iter().map(op_range).collect(),
        ..Default::default()
    };
    let large = block_on(api.txn(&ctx, txn.clone())).unwrap();
    let inline = self::api(Bounds::new(Duration::ZERO));
    let mut expected = block_on(inline.txn(&ctx, txn)).unwrap();
    expected.header = large.header;
    assert!(large.succeeded);
    assert_eq!(large, expected);
    assert_eq!(api.large.budget.available_permits(), 256);
}

#[test]
fn small_answers_and_counts_stay_where_they_are() {
    let api = api(bounds());
    let ctx = RequestCtx::default();
    for r in [
        pb::RangeRequest {
            limit: 10,
            ..range_all()
        },
        pb::RangeRequest {
            count_only: true,
            ..range_all()
        },
        pb::RangeRequest {
            key: "k000".into(),
            revision: 2,
            ..Default::default()
        },
    ] {
        block_on(api.range(&ctx, r)).unwrap();
    }
    assert!(api.large.readers.get().is_none());
}

/// Keeps all readers busy until the senders are dropped.
fn occupy(large: &Large) -> Vec<std::sync::mpsc::Sender<()>> {
    let busy = |_| {
        let (release, wait) = channel::<()>();
        let job = Box::new(move || {
            let _ = wait.recv();
        });
        assert!(large.readers().unwrap().send(job).is_ok());
        release
    };
    (0..large.bounds.readers).map(busy).collect()
}

#[test]
fn a_large_answer_holds_up_no_other_call_of_its_thread() {
    let api = api(bounds());
    let ctx = RequestCtx::default();
    let busy = occupy(&api.large);
    block_on(async {
        let mut large = std::pin::pin!(api.range(&ctx, range_all()));
        let small = async {
            for _ in 0..10 {
                let one = pb::RangeRequest {
                    limit: 1,
                    ..range_all()
                };
                api.range(&ctx, one).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = &mut large => panic!("no reader was free"),
            () = small => {}
        }
        drop(busy);
        large.await.unwrap();
    });
}

#[test]
fn a_call_that_finds_no_share_waits_and_is_then_refused() {
    let api = api(bounds());
    let ctx = RequestCtx::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let all = api.large.share(usize::MAX).await.unwrap();
        assert_eq!(all.bytes(), 1 << 20, "one answer may take all of it");
        let began = tokio::time::Instant::now();
        let refused = api.range(&ctx, range_all()).await.unwrap_err();
        assert_eq!(refused, errors::TOO_MANY_REQUESTS);
        assert_eq!(began.elapsed().as_secs(), 7, "it waited for its share");
        // A small one needs none.
        let one = pb::RangeRequest {
            limit: 1,
            ..range_all()
        };
        api.range(&ctx, one).await.unwrap();
        // One that waits goes on when a share comes free.
        let waits = api.range(&ctx, range_all());
        let (answer, ()) = tokio::join!(waits, async { drop(all) });
        let answer = answer.unwrap();
        let held = 256 - api.large.budget.available_permits();
        assert!(held > 0, "until it is sent");
        drop(answer);
        assert_eq!(api.large.budget.available_permits(), 256);
    });
}

#[test]
fn a_share_that_was_too_small_grows_or_the_call_is_refused() {
    let api = api(Bounds {
        wait: Duration::ZERO,
        ..bounds()
    });
    let read = |share: Share| {
        let view = api.node.engine().view();
        block_on(api.large.on_reader(view, share, |reads| {
            let mut kvs = Vec::new();
            crate::apply::range::range(reads, &range_all(), &mut kvs).unwrap();
            Ok(kvs.len())
        }))
    };
    let small = block_on(api.large.share(1)).unwrap();
    let (keys, share) = read(small).unwrap();
    assert_eq!(keys, 200);
    assert!(share.unwrap().bytes() >= 200 * 100);
    let small = block_on(api.large.share(1)).unwrap();
    let rest = api.large.budget.available_permits() as u32;
    let others = api.large.budget.clone().try_acquire_many_owned(rest);
    let refused = read(small).unwrap_err();
    assert_eq!(refused, errors::TOO_MANY_REQUESTS);
    drop(others);
    assert_eq!(api.large.budget.available_permits(), 256);
}

#[test]
fn an_answer_nobody_waits_for_is_not_built_and_a_panic_takes_no_reader_away() {
    let api = api(bounds());
    let busy = occupy(&api.large);
    let keys = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = keys.clone();
    {
        let view = api.node.engine().view();
        let hint = Hint {
            slow: true,
            ..Hint::default()
        };
        let read = api.large.read(view, hint, move |reads| {
            let count = &mut |_: KvRef<'_>| {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                ControlFlow::Continue(())
            };
            reads.visit(&KeyRange::all(), 0, count).unwrap();
            Ok(())
        });
        // Begun, then dropped.
        block_on(async {
            let mut read = std::pin::pin!(read);
            tokio::select! {
                biased;
                _ = &mut read => panic!("no reader was free"),
                () = std::future::ready(()) => {}
            }
        });
    }
    drop(busy);
    for _ in 0..3 * api.large.bounds.readers {
        let view = api.node.engine().view();
        let hint = Hint {
            slow: true,
            ..Hint::default()
        };
        let panics = api.large.read(view, hint, |_| -> Result<(), Status> {
            panic!("as wanted")
        });
        let ended = block_on(panics).unwrap_err();
        assert_eq!(ended.code, Code::Internal);
    }
    let began = Instant::now();
    while api.large.budget.available_permits() < 256 {
        assert!(began.elapsed() < Duration::from_secs(30), "a share is lost");
        std::thread::yield_now();
    }
    assert_eq!(keys.load(std::sync::atomic::Ordering::SeqCst), 0);
}
