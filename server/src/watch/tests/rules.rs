//! The rules of watching, by their numbers.

use super::super::frame::reason;
use super::super::{Options, WatchStream};
use super::*;
use crate::status::errors;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;

fn world() -> (World, WatchStream) {
    let world = World::new(options());
    let stream = world.hub.open();
    (world, stream)
}

#[test]
fn created_carries_the_current_revision_and_precedes_events_6w_1() {
    let (mut world, stream) = world();
    world.put("k");
    world.create(&stream, from(1, key("k")));
    world.put("k");
    world.settle();
    let got = take(&stream);
    assert!(got[0].created && got[0].events.is_empty());
    assert_eq!(revision(&got[0]), 2);
    assert_eq!(got[0].header.as_ref().unwrap().raft_term, 3);
    let events: Vec<_> = got[1..].iter().flat_map(shown).collect();
    assert_eq!(events, ["put k@2", "put k@3"]);
}

#[test]
fn the_server_picks_ids_by_a_counter_that_skips_used_ones_6w_2() {
    let (world, stream) = world();
    let id = |watch_id| pb::WatchCreateRequest {
        watch_id,
        ..key("k")
    };
    assert_eq!(world.watch(&stream, id(2)), 2);
    assert_eq!(world.watch(&stream, id(-5)), -5);
    let picked: Vec<_> = (0..3).map(|_| world.watch(&stream, id(0))).collect();
    assert_eq!(picked, [0, 1, 3]);
    stream.cancel(1, world.store.seen());
    take(&stream);
    assert_eq!(world.watch(&stream, id(0)), 4, "a freed id is not reused");
    assert_eq!(world.watch(&stream, id(1)), 1, "unless it is asked for");
    // Another stream counts for itself.
    assert_eq!(world.watch(&world.hub.open(), id(0)), 0);
}

fn refused(world: &World, stream: &WatchStream, request: pb::WatchCreateRequest) -> String {
    world.create(stream, request);
    let answers = take(stream);
    assert_eq!(answers.len(), 1);
    let answer = &answers[0];
    assert!(answer.created && answer.canceled && answer.watch_id == -1);
    assert_eq!(revision(answer), world.store.revision);
    assert_eq!(answer.compact_revision, 0);
    answer.cancel_reason.clone()
}

#[test]
fn a_duplicate_id_is_refused_and_the_stream_lives_on_6w_2() {
    let (mut world, stream) = world();
    let request = pb::WatchCreateRequest {
        watch_id: 7,
        ..key("k")
    };
    world.watch(&stream, request.clone());
    assert_eq!(refused(&world, &stream, request), reason::DUPLICATE_ID);
    world.put("k");
    world.settle();
    assert_eq!(take(&stream)[0].watch_id, 7);
}

#[test]
fn key_and_range_rules_6w_3() {
    let (mut world, stream) = world();
    for request in [range("b", "b"), range("c", "b")] {
        assert_eq!(refused(&world, &stream, request), reason::EMPTY_RANGE);
    }
    let one = world.watch(&stream, key(""));
    let half = world.watch(&stream, range("b", "d"));
    let open = world.watch(&stream, range("c", "\0"));
    let all = world.watch(&stream, range("\0", "\0"));
    let single = world.watch(&stream, key("b"));
    for key in ["\0", "a", "b", "c", "d"] {
        world.put(key);
    }
    world.settle();
    let got = take(&stream);
    let of = |id| -> Vec<String> {
        let mine = got.iter().filter(|r| r.watch_id == id);
        mine.flat_map(shown).collect()
    };
    assert_eq!(of(one), ["put \0@2"]);
    assert_eq!(of(half), ["put b@4", "put c@5"]);
    assert_eq!(of(open), ["put c@5", "put d@6"]);
    assert_eq!(of(all).len(), 5);
    assert_eq!(of(single), ["put b@4"]);
}

#[test]
fn start_revisions_6w_4() {
    let (mut world, stream) = world();
    for _ in 0..5 {
        world.put("k"); // 2..=6
    }
    world.compact(3);
    assert_eq!(
        refused(&world, &stream, from(-1, key("k"))),
        reason::COMPACTED
    );
    let current = world.watch(&stream, key("k"));
    let future = world.watch(&stream, from(8, key("k")));
    world.create(&stream, from(3, key("k")));
    world.create(&stream, from(2, key("k")));
    world.settle();
    let got = take(&stream);
    let past = got[0].watch_id;
    let below = got.iter().filter(|r| r.created).nth(1).unwrap().watch_id;
    let canceled = got.iter().find(|r| r.canceled).unwrap();
    assert_eq!(
        (
            canceled.watch_id,
            canceled.compact_revision,
            revision(canceled)
        ),
        (below, 3, 0)
    );
    assert_eq!(canceled.cancel_reason, "");
    world.put("k"); // 7
    world.put("k"); // 8
    world.settle();
    let mut all = got;
    all.extend(take(&stream));
    let of = |id| -> Vec<String> {
        let mine = all.iter().filter(|r| r.watch_id == id);
        mine.flat_map(shown).collect()
    };
    assert_eq!(of(current), ["put k@7", "put k@8"]);
    assert_eq!(of(future), ["put k@8"]);
    assert_eq!(
        of(past),
        (3..=8).map(|r| format!("put k@{r}")).collect::<Vec<_>>()
    );
    assert_eq!(of(below), [""; 0]);
}

#[test]
fn an_id_ended_by_compaction_stays_taken_until_it_is_cancelled_6w_4() {
    let (mut world, stream) = world();
    world.put("k");
    world.put("k");
    world.compact(3);
    let request = pb::WatchCreateRequest {
        watch_id: 9,
        ..from(2, key("k"))
    };
    world.create(&stream, request.clone());
    world.settle();
    assert_eq!(take(&stream).len(), 2);
    assert_eq!(
        refused(&world, &stream, request.clone()),
        reason::DUPLICATE_ID
    );
    stream.cancel(9, world.store.seen());
    let answer = take(&stream).pop().unwrap();
    assert!(answer.canceled && answer.watch_id == 9 && answer.compact_revision == 0);
    let again = pb::WatchCreateRequest {
        start_revision: 0,
        ..request
    };
    assert_eq!(world.watch(&stream, again), 9);
}

#[test]
fn cancel_is_answered_last_and_unknown_ids_are_not_6w_5() {
    let (mut world, stream) = world();
    let id = world.watch(&stream, key("k"));
    world.put("k");
    world.settle();
    stream.cancel(id, world.store.seen());
    stream.cancel(id, world.store.seen());
    stream.cancel(77, world.store.seen());
    world.put("k");
    world.settle();
    let got = take(&stream);
    assert_eq!(got.len(), 2);
    assert_eq!(shown(&got[0]), ["put k@2"]);
    assert!(got[1].canceled && !got[1].created && got[1].cancel_reason.is_empty());
    assert_eq!((got[1].watch_id, revision(&got[1])), (id, 2));
}

#[test]
fn a_refusal_carries_the_status_as_go_prints_it_6w_6() {
    let (world, stream) = world();
    let why = errors::PERMISSION_DENIED.to_string();
    stream.refuse(why.into(), world.store.seen());
    let answer = take(&stream).pop().unwrap();
    assert!(answer.created && answer.canceled && answer.watch_id == -1);
    assert_eq!(
        answer.cancel_reason,
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    );
}

#[test]
fn events_previous_versions_and_filters_6w_7() {
    let (mut world, stream) = world();
    let with_prev = pb::WatchCreateRequest {
        prev_kv: true,
        ..key("k")
    };
    let plain = world.watch(&stream, key("k"));
    let prev = world.watch(&stream, with_prev.clone());
    let filter = |filter: FilterType| pb::WatchCreateRequest {
        filters: vec![filter as i32],
        ..key("k")
    };
    let no_put = world.watch(&stream, filter(FilterType::Noput));
    let no_delete = world.watch(&stream, filter(FilterType::Nodelete));
    world.put("k");
    world.put("k");
    world.delete("k");
    world.settle();
    let got = take(&stream);
    let of = |id| -> Vec<String> {
        let mine = got.iter().filter(|r| r.watch_id == id);
        mine.flat_map(shown).collect()
    };
    assert_eq!(of(plain), ["put k@2", "put k@3", "delete k@4"]);
    assert_eq!(
        of(prev),
        ["put k@2", "put k@3 (was @2)", "delete k@4 (was @3)"]
    );
    assert_eq!(of(no_put), ["delete k@4"]);
    assert_eq!(of(no_delete), ["put k@2", "put k@3"]);
    assert!(
        got.iter().all(|r| !r.events.is_empty()),
        "nothing empty is sent"
    );
    let deleted = got.iter().find(|r| r.watch_id == no_put).unwrap();
    let kv = deleted.events[0].kv.as_ref().unwrap();
    let bare = mvccpb::KeyValue {
        key: "k".into(),
        mod_revision: 4,
        ..Default::default()
    };
    assert_eq!(kv, &bare);
    let put = got.iter().find(|r| r.watch_id == no_delete).unwrap();
    let kv = put.events[0].kv.as_ref().unwrap();
    assert_eq!((kv.version, kv.create_revision, kv.mod_revision), (1, 2, 2));
}

#[test]
fn catching_up_has_no_previous_version_at_the_compact_revision_6w_7() {
    // Whether the ring still has the event or only the store.
    for ring_events_max in [1, 1000] {
        let mut world = World::new(Options {
            ring_events_max,
            ..options()
        });
        let other = world.hub.open();
        world.watch(&other, key("other"));
        let stream = world.hub.open();
        for _ in 0..4 {
            world.put("k");
        }
        world.compact(3);
        let request = pb::WatchCreateRequest {
            prev_kv: true,
            ..from(3, key("k"))
        };
        world.watch(&stream, request);
        world.settle();
        let events: Vec<_> = take(&stream).iter().flat_map(shown).collect();
        assert_eq!(events, ["put k@3", "put k@4 (was @3)", "put k@5 (was @4)"]);
    }
}

#[test]
fn a_live_revision_is_one_response_6w_8() {
    let (mut world, stream) = world();
    let all = world.watch(&stream, range("a", "z"));
    world
        .store
        .txn(&[Op::Put("a", "1".into()), Op::Put("b", "1".into())]);
    world.store.txn(&[Op::Put("a", "2".into())]);
    world.publish();
    world.settle();
    let got = take(&stream);
    assert_eq!(shown(&got[0]), ["put a@2", "put b@2"]);
    assert_eq!(shown(&got[1]), ["put a@3"]);
    assert_eq!((revision(&got[0]), revision(&got[1])), (2, 3));
    assert!(got.iter().all(|r| r.watch_id == all));
}

#[test]
fn history_comes_in_batches_under_the_current_revision_6w_8() {
    for ring_events_max in [1, 100_000] {
        let mut world = World::new(Options {
            ring_events_max,
            ..options()
        });
        // Someone has to watch for the ring to be kept.
        let other = world.hub.open();
        world.watch(&other, key("other"));
        let stream = world.hub.open();
        for _ in 0..1500 {
            world.put("k");
        }
        world.settle();
        world.watch(&stream, from(1, key("k")));
        world.settle();
        let got = take(&stream);
        // Revision 1 never had an event, and the ring counts revisions, not events.
        let sizes: Vec<_> = got.iter().map(|r| r.events.len()).collect();
        assert!(sizes == [1000, 500] || sizes == [999, 501], "{sizes:?}");
        assert!(got.iter().all(|r| revision(r) == 1501));
        world.put("k");
        world.settle();
        let live = take(&stream);
        assert_eq!((live.len(), revision(&live[0])), (1, 1502));
    }
}

#[test]
fn large_responses_are_fragmented_when_asked_for_6w_9() {
    let mut world = World::new(Options {
        fragment_bytes: 440,
        ..options()
    });
    let stream = world.hub.open();
    let request = pb::WatchCreateRequest {
        fragment: true,
        ..range("a", "z")
    };
    let whole = world.watch(&stream, range("a", "z"));
    let split = world.watch(&stream, request.clone());
    let big = |key| Op::Put(key, "x".repeat(150));
    let keys = ["a", "b", "c", "d", "e"];
    world.txn(&keys.map(big));
    world.settle();
    let got = take(&stream);
    let of_whole: Vec<_> = got.iter().filter(|r| r.watch_id == whole).collect();
    assert_eq!((of_whole.len(), of_whole[0].fragment), (1, false));
    let check = |got: &[pb::WatchResponse]| {
        let at = got.iter().position(|r| r.watch_id == split).unwrap();
        let pieces: Vec<_> = got[at..].iter().take(3).collect();
        assert!(pieces.iter().all(|r| r.watch_id == split), "contiguous");
        let marks: Vec<_> = pieces
            .iter()
            .map(|r| (r.fragment, r.events.len()))
            .collect();
        assert_eq!(marks, [(true, 2), (true, 2), (false, 1)]);
        let events: Vec<_> = pieces.iter().flat_map(|r| shown(r)).collect();
        assert_eq!(events, keys.map(|k| format!("put {k}@2")));
    };
    check(&got);
    // From history as well, and a single event above the limit stays whole.
    let stream = world.hub.open();
    world.txn(&[Op::Put("f", "x".repeat(1000))]);
    world.settle();
    let request = pb::WatchCreateRequest {
        watch_id: split,
        ..from(2, request)
    };
    world.watch(&stream, request);
    world.settle();
    let got = take(&stream);
    let marks: Vec<_> = got.iter().map(|r| (r.fragment, r.events.len())).collect();
    assert_eq!(marks, [(true, 2), (true, 2), (true, 1), (false, 1)]);
}

#[test]
fn a_slow_stream_is_bounded_and_catches_up_alone_6w_10() {
    let (mut world, slow) = world();
    let fast = world.hub.open();
    world.watch(&slow, key("k"));
    world.watch(&fast, key("k"));
    let mut seen = Vec::new();
    for _ in 0..1000 {
        world.put("k");
        world.settle();
        seen.extend(take(&fast));
    }
    assert_eq!(seen.len(), 1000, "one live response per revision");
    let stats = world.hub.stats();
    assert_eq!((stats.queued, stats.unsynced, stats.watchers), (128, 1, 2));
    let mut got = Vec::new();
    while got
        .iter()
        .map(|r: &pb::WatchResponse| r.events.len())
        .sum::<usize>()
        < 1000
    {
        let some = take_some(&slow, 10);
        assert!(!some.is_empty());
        got.extend(some);
        world.settle();
    }
    let events: Vec<_> = got.iter().flat_map(shown).collect();
    let want: Vec<_> = (2..=1001).map(|r| format!("put k@{r}")).collect();
    assert_eq!(events, want);
    assert!(got.len() < 140, "the backlog comes in batches");
    assert_eq!(world.hub.stats().unsynced, 0);
}

#[test]
fn a_stream_is_bounded_in_bytes_6w_10() {
    let (mut world, stream) = world();
    world.watch(&stream, key("k"));
    for _ in 0..20 {
        world.txn(&[Op::Put("k", "x".repeat(1 << 20))]);
        world.settle();
    }
    let first = take(&stream);
    assert_eq!(first.len(), 4, "4 MiB and what went over");
    world.settle();
    let mut revisions: Vec<_> = first.iter().flat_map(shown).collect();
    loop {
        let some = take(&stream);
        if some.is_empty() {
            break;
        }
        revisions.extend(some.iter().flat_map(shown));
        world.settle();
    }
    assert_eq!(revisions.len(), 20);
}

#[test]
fn falling_behind_compaction_ends_a_slow_watch_6w_10() {
    let (mut world, stream) = world();
    let id = world.watch(&stream, key("k"));
    for _ in 0..300 {
        world.put("k");
    }
    world.settle();
    world.compact(250);
    world.settle();
    let mut got = take(&stream);
    world.settle();
    got.extend(take(&stream));
    let last = got.pop().unwrap();
    assert!(last.canceled && last.watch_id == id && last.compact_revision == 250);
    assert_eq!(revision(&last), 0);
    assert_eq!(got.len(), 128);
    world.put("k");
    world.settle();
    assert!(take(&stream).is_empty());
}

#[test]
fn compaction_leaves_synced_watches_alone_5_4() {
    let (mut world, stream) = world();
    world.watch(&stream, key("k"));
    world.put("k");
    world.put("k");
    world.settle();
    world.compact(3);
    world.put("k");
    world.settle();
    let events: Vec<_> = take(&stream).iter().flat_map(shown).collect();
    assert_eq!(events, ["put k@2", "put k@3", "put k@4"]);
}

#[test]
fn progress_notifications_come_with_the_ticker_6w_11() {
    let (mut world, stream) = world();
    let request = pb::WatchCreateRequest {
        progress_notify: true,
        ..key("k")
    };
    let id = world.watch(&stream, request.clone());
    world.watch(&stream, key("k"));
    world.put("other");
    world.settle();
    let due = world.hub.tick(world.now).expect("a tick is planned");
    let wait = due - world.now;
    let interval = options().progress_interval;
    assert!(
        wait >= interval && wait <= interval.mul_f64(1.1),
        "{wait:?}"
    );
    assert!(take(&stream).is_empty());
    world.later(wait);
    world.hub.tick(world.now);
    let got = take(&stream);
    assert_eq!(got.len(), 1);
    assert!(got[0].events.is_empty() && got[0].watch_id == id && revision(&got[0]) == 2);
    // A watch that sent events since the last tick skips one.
    world.put("k");
    world.settle();
    assert_eq!(take(&stream).len(), 2);
    world.later(wait);
    world.hub.tick(world.now);
    assert!(take(&stream).is_empty());
    world.later(wait);
    world.hub.tick(world.now);
    assert_eq!(revision(&take(&stream)[0]), 3);
    // Without such a watch there is no ticker.
    stream.cancel(id, world.store.seen());
    world.later(wait);
    assert_eq!(world.hub.tick(world.now), None);
}

#[test]
fn progress_is_not_promised_before_the_start_revision_or_while_behind_6w_11() {
    let (mut world, stream) = world();
    let request = pb::WatchCreateRequest {
        progress_notify: true,
        ..from(5, key("k"))
    };
    world.watch(&stream, request.clone());
    let slow = world.hub.open();
    world.watch(&slow, from(0, request));
    world.put("other");
    for _ in 0..2 {
        world.settle();
        let due = world.hub.tick(world.now).unwrap();
        world.now = due + Duration::from_secs(60);
        world.hub.tick(world.now);
    }
    assert!(take(&stream).is_empty(), "revision 2 lies before 5");
    take(&slow);
    for _ in 0..200 {
        world.put("k");
    }
    world.settle();
    for _ in 0..2 {
        let due = world.hub.tick(world.now).unwrap();
        world.now = due + Duration::from_secs(60);
        world.hub.tick(world.now);
    }
    assert!(take(&slow).iter().all(|r| !r.events.is_empty()));
}

#[test]
fn a_progress_request_is_answered_for_all_watches_6w_12() {
    let (mut world, stream) = world();
    stream.progress(world.store.seen());
    world.settle();
    assert!(take(&stream).is_empty(), "nothing without watches");
    world.watch(&stream, key("k"));
    world.watch(&stream, key("l"));
    world.put("other");
    world.put("k");
    // The hub has not seen the events yet: the answer waits for them and stands behind them.
    stream.progress(world.store.seen());
    assert!(take(&stream).is_empty());
    world.settle();
    let got = take(&stream);
    assert_eq!(got.len(), 2);
    assert_eq!(shown(&got[0]), ["put k@3"]);
    assert_eq!((got[1].watch_id, revision(&got[1])), (-1, 3));
    assert!(got[1].events.is_empty() && !got[1].created && !got[1].canceled);
    // A synced stream is answered at once.
    stream.progress(world.store.seen());
    assert_eq!(revision(&take(&stream)[0]), 3);
}

#[test]
fn a_progress_answer_waits_for_unsynced_watches_6w_12() {
    let mut world = World::new(Options {
        ring_events_max: 1,
        ..options()
    });
    for _ in 0..10 {
        world.put("k");
    }
    let stream = world.hub.open();
    world.watch(&stream, from(2, key("k")));
    stream.progress(world.store.seen());
    stream.progress(world.store.seen());
    assert!(take(&stream).is_empty());
    world.settle();
    let got = take(&stream);
    assert_eq!(got.len(), 2, "two requests, one answer: {got:?}");
    assert_eq!(got[0].events.len(), 10);
    assert_eq!((got[1].watch_id, revision(&got[1])), (-1, 11));
}

#[test]
fn a_watch_of_the_future_suppresses_progress_6w_12() {
    let (mut world, stream) = world();
    world.watch(&stream, from(5, key("k")));
    stream.progress(world.store.seen());
    world.settle();
    world.put("other");
    world.settle();
    assert!(take(&stream).is_empty());
    for _ in 0..3 {
        world.put("other");
    }
    stream.progress(world.store.seen());
    world.settle();
    assert_eq!(revision(&take(&stream)[0]), 5);
}

#[test]
fn a_full_stream_gets_its_progress_answer_behind_the_events_6w_12() {
    let (mut world, stream) = world();
    world.watch(&stream, key("k"));
    for _ in 0..200 {
        world.put("k");
    }
    world.settle();
    stream.progress(world.store.seen());
    let mut got = Vec::new();
    for _ in 0..10 {
        world.settle();
        got.extend(take(&stream));
    }
    let last = got.pop().unwrap();
    assert_eq!((last.watch_id, revision(&last)), (-1, 201));
    assert_eq!(got.iter().map(|r| r.events.len()).sum::<usize>(), 200);
}

#[test]
fn closing_a_stream_ends_its_watches() {
    let (mut world, stream) = world();
    for request in [key("k"), range("a", "z"), from(9, key("k"))] {
        world.watch(&stream, request);
    }
    assert_eq!(world.feed.watchers(), 3);
    drop(stream);
    assert_eq!((world.feed.watchers(), world.hub.stats().watchers), (0, 0));
    world.put("k");
    world.settle();
    assert_eq!(world.hub.stats().streams, 0);
}

#[test]
fn a_failed_read_ends_the_watch_with_its_reason() {
    struct Broken;
    impl History for Broken {
        fn revision(&self) -> i64 {
            2
        }
        fn compact_revision(&self) -> i64 {
            -1
        }
        fn events(
            &self,
            _: i64,
            _: usize,
            _: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
        ) -> Result<EventsEnd, HistoryError> {
            Err(HistoryError::Failed("page 7 is damaged".into()))
        }
    }
    let (mut world, stream) = world();
    world.put("k");
    let id = world.watch(&stream, from(1, key("k")));
    world.hub.pump();
    while world.hub.catch_up(|| Broken) {}
    let got = take(&stream).pop().unwrap();
    assert!(got.canceled && got.watch_id == id);
    assert_eq!(got.cancel_reason, "page 7 is damaged");
}

#[test]
fn events_of_watchers_with_the_same_wish_share_their_bytes() {
    let (mut world, a) = world();
    let b = world.hub.open();
    world.watch(&a, key("k"));
    world.watch(&b, range("a", "z"));
    world.txn(&[Op::Put("k", "x".repeat(1000))]);
    world.settle();
    let frame = |stream: &WatchStream| {
        let mut frames = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(stream.poll_take(1, &mut frames, &mut cx).is_ready());
        frames.pop().unwrap().events.as_slice()[0].as_ptr()
    };
    assert_eq!(frame(&a), frame(&b));
}
