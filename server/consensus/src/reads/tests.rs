use super::*;

fn leader(term: u64) -> SoftState {
    SoftState {
        leader: 1,
        role: Role::Leader,
        term,
    }
}

fn follower(leader: u64, term: u64) -> SoftState {
    SoftState {
        leader,
        role: Role::Follower,
        term,
    }
}

fn hub(epoch: SoftState) -> ReadHub {
    let mut hub = ReadHub::new(1, 77, 100, false);
    hub.set_epoch(epoch);
    hub
}

fn start(hub: &mut ReadHub, now: u64) -> Context {
    match hub.start(now) {
        Start::Core(context) => context,
        Start::Ask(message) => message.entries[0].data.as_ref().try_into().unwrap(),
    }
}

#[test]
fn reads_share_rounds_and_none_joins_a_flying_one() {
    let mut hub = hub(leader(3));
    hub.add(1);
    hub.add(2);
    let first = start(&mut hub, 0);
    hub.add(3);
    assert!(hub.finish(&first, 10).is_empty());
    assert_eq!(
        hub.take_done(),
        [
            ReadDone { ctx: 1, index: 10 },
            ReadDone { ctx: 2, index: 10 }
        ]
    );
    let second = start(&mut hub, 0);
    hub.finish(&second, 12);
    assert_eq!(hub.take_done(), [ReadDone { ctx: 3, index: 12 }]);
}

#[test]
fn contexts_differ_between_rounds_and_starts() {
    let mut seen = std::collections::HashSet::new();
    for nonce in [1, 2] {
        let mut hub = ReadHub::new(1, nonce, 100, false);
        hub.set_epoch(leader(1));
        for read in 0..50 {
            hub.add(read);
            let context = start(&mut hub, 0);
            assert!(seen.insert(context));
            hub.finish(&context, 1);
        }
    }
}

#[test]
fn a_late_answer_finds_no_round() {
    let mut hub = hub(follower(2, 3));
    hub.add(1);
    let lost = start(&mut hub, 0);
    hub.retry(4, 5);
    assert!(!hub.wants_round(), "too early to give up");
    hub.retry(5, 5);
    assert!(hub.wants_round());
    hub.add(2);
    let again = start(&mut hub, 5);
    hub.finish(&lost, 10);
    assert!(hub.take_done().is_empty());
    hub.finish(&again, 11);
    assert_eq!(hub.take_done().len(), 2);
    hub.finish(&again, 11);
    assert!(hub.take_done().is_empty());
}

#[test]
fn a_new_leader_aborts_own_reads_and_drops_those_of_peers() {
    let mut hub = hub(leader(3));
    hub.add(1);
    let flying = start(&mut hub, 0);
    hub.add(2);
    hub.add_peer(9, Bytes::from_static(b"peer"));
    hub.set_epoch(follower(2, 4));
    assert_eq!(hub.take_aborted(), [1, 2]);
    assert!(hub.finish(&flying, 5).is_empty());
    assert!(!hub.has_results());
}

#[test]
fn peers_are_answered_with_their_own_context() {
    let mut hub = hub(leader(3));
    hub.add_peer(9, Bytes::from_static(b"peer"));
    let context = start(&mut hub, 0);
    let answers = hub.finish(&context, 8);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].msg_type, MessageType::MsgReadIndexResp);
    assert_eq!(
        (answers[0].to, answers[0].index, answers[0].term),
        (9, 8, 3)
    );
    assert_eq!(&answers[0].entries[0].data[..], b"peer");
}

#[test]
fn rounds_and_waiting_reads_are_bounded() {
    let mut hub = ReadHub::new(1, 77, 6, false);
    hub.set_epoch(leader(1));
    let mut contexts = Vec::new();
    for read in 0..4 {
        assert!(hub.add(read));
        contexts.push(start(&mut hub, 0));
    }
    assert!(hub.add(4));
    assert!(!hub.wants_round(), "four rounds fly");
    assert!(hub.add(5));
    assert!(!hub.add(6));
    hub.finish(&contexts[0], 1);
    assert!(hub.wants_round());
    assert!(hub.add(6));
}
