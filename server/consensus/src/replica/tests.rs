//! The replica alone, or a few of them joined by hand.

use super::*;
use crate::bootstrap::{InitialMember, bootstrap};
use proptest::prelude::*;

fn members(ids: &[u64]) -> Vec<InitialMember> {
    ids.iter()
        .map(|&id| InitialMember {
            id,
            context: Bytes::from(format!("{{\"id\":{id}}}")),
        })
        .collect()
}

fn payload(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A member whose disk and state machine are prompt.
struct Member {
    replica: Replica,
    applied: Vec<Entry>,
    reads: Vec<(u64, u64)>,
    aborted: Vec<u64>,
    tasks: usize,
}

impl Member {
    fn new(config: Config, boot: Boot) -> Member {
        Member {
            replica: Replica::new(config, boot).unwrap(),
            applied: Vec::new(),
            reads: Vec::new(),
            aborted: Vec::new(),
            tasks: 0,
        }
    }

    fn bootstrapped(id: u64, ids: &[u64]) -> Member {
        let mut member = Member::new(Config::new(id, 1, id), bootstrap(members(ids)).unwrap());
        assert!(member.turn().is_empty());
        member
    }

    /// Does all that is due, returns the messages to peers.
    fn turn(&mut self) -> Vec<Message> {
        let mut out = Vec::new();
        while let Some(mut ready) = self.replica.ready() {
            out.append(&mut ready.messages);
            if let Some(task) = ready.wal.take() {
                self.tasks += 1;
                let (mut messages, persisted) = task.durable();
                out.append(&mut messages);
                self.replica.persisted(persisted);
            }
            self.reads
                .extend(ready.reads.iter().map(|read| (read.ctx, read.index)));
            self.aborted.append(&mut ready.reads_aborted);
            self.apply(ready.committed);
            for fetch in ready.fetches {
                // What is old enough to be fetched is applied.
                let wanted = |entry: &&Entry| (fetch.from..fetch.to).contains(&entry.index);
                let entries = self.applied.iter().filter(wanted).cloned().collect();
                self.replica.fetched(fetch.id, entries);
            }
        }
        out
    }

    fn apply(&mut self, committed: Vec<Entry>) {
        let Some(last) = committed.last().map(|entry| entry.index) else {
            return;
        };
        let mut conf_state = self.replica.conf_state();
        let mut verdicts = Vec::new();
        for entry in committed.iter().filter(|e| e.kind == EntryKind::ConfChange) {
            // What cannot be executed is refused, as a state machine must.
            let change = ConfChange::decode(entry.data.clone()).ok();
            let next = change
                .as_ref()
                .map(|change| conf::apply_conf_change(&conf_state, change));
            let accepted = match next {
                Some(Ok(next)) => {
                    conf_state = next;
                    change
                }
                _ => None,
            };
            verdicts.push(Verdict {
                index: entry.index,
                accepted,
            });
        }
        self.applied.extend(committed);
        self.replica.applied(last, verdicts);
    }
}

/// Delivers messages among members until none is left.
fn settle_all(members: &mut [Member]) {
    loop {
        let messages: Vec<Message> = members.iter_mut().flat_map(Member::turn).collect();
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let to = message.to;
            if let Some(member) = members.iter_mut().find(|m| m.replica.config.id == to) {
                let _ = member.replica.receive(message);
            }
        }
    }
}

fn trio() -> Vec<Member> {
    let ids = [1, 2, 3];
    let mut group: Vec<Member> = ids
        .iter()
        .map(|&id| Member::bootstrapped(id, &ids))
        .collect();
    group[0].replica.campaign();
    settle_all(&mut group);
    assert_eq!(group[0].replica.status().role, Role::Leader);
    group
}

fn solo() -> Member {
    let mut member = Member::bootstrapped(1, &[1]);
    member.replica.campaign();
    assert!(member.turn().is_empty());
    assert_eq!(member.replica.status().role, Role::Leader);
    member
}

fn change(action: ConfChangeAction, node_id: u64) -> ConfChange {
    ConfChange {
        action,
        node_id,
        ..ConfChange::default()
    }
}

#[test]
fn a_replica_can_move_between_threads() {
    fn check<T: Send>() {}
    check::<Replica>();
    check::<WalTask>();
    check::<Ready>();
}

#[test]
fn a_fresh_single_member_leads_term_2() {
    let mut member = Member::new(Config::new(9, 1, 1), bootstrap(members(&[9])).unwrap());
    // Not before its own addition is applied.
    member.replica.campaign();
    assert_eq!(member.replica.status().role, Role::Follower);
    member.turn();
    member.replica.campaign();
    member.turn();
    let status = member.replica.status();
    assert_eq!((status.role, status.term), (Role::Leader, 2));
    assert_eq!((status.commit, status.applied), (2, 2));
    assert!(status.is_sole_voter);
    assert_eq!(member.replica.read_index_now(), Some(2));
}

#[test]
fn a_single_member_elects_itself_by_ticks_alone() {
    let mut member = Member::bootstrapped(1, &[1]);
    for _ in 0..20 {
        member.replica.tick();
        member.turn();
    }
    assert_eq!(member.replica.status().role, Role::Leader);
}

#[test]
fn many_payloads_make_one_task_and_come_out_after_it_is_durable() {
    let mut member = solo();
    let payloads: Vec<Bytes> = (0..100).map(|i| payload(&format!("p{i}"))).collect();
    member.replica.propose(payloads.clone()).unwrap();

    let ready = member.replica.ready().unwrap();
    assert!(ready.committed.is_empty());
    let task = ready.wal.unwrap();
    assert_eq!(task.entries.len(), 100);
    assert!(member.replica.ready().is_none());

    let (messages, persisted) = task.durable();
    assert!(messages.is_empty());
    member.replica.persisted(persisted);
    let ready = member.replica.ready().unwrap();
    assert!(ready.wal.is_none(), "a commit index alone is not written");
    let data: Vec<Bytes> = ready.committed.iter().map(|e| e.data.clone()).collect();
    assert_eq!(data, payloads);
    assert!(member.replica.ready().is_none());
}

#[test]
fn payloads_of_one_call_travel_in_one_message_per_follower() {
    let mut group = trio();
    let payloads: Vec<Bytes> = (0..64).map(|i| payload(&format!("p{i}"))).collect();
    group[0].replica.propose(payloads).unwrap();
    let ready = group[0].replica.ready().unwrap();
    assert_eq!(ready.messages.len(), 2, "before the leader's own write");
    for message in &ready.messages {
        assert_eq!(message.msg_type, MessageType::MsgAppend);
        assert_eq!(message.entries.len(), 64);
    }
    assert_eq!(ready.wal.unwrap().entries.len(), 64);
}

#[test]
fn big_proposals_are_split_at_the_message_limit() {
    let mut group = trio();
    let payloads = vec![Bytes::from(vec![0; 400 << 10]); 6];
    group[0].replica.propose(payloads).unwrap();
    let ready = group[0].replica.ready().unwrap();
    for message in &ready.messages {
        assert!(message.entries.len() <= 2);
    }
    assert_eq!(ready.wal.unwrap().entries.len(), 6);
    settle_all(&mut group);
}

#[test]
fn writes_may_pipeline_and_finish_in_order() {
    let mut member = solo();
    member.replica.propose(vec![payload("a")]).unwrap();
    let first = member.replica.ready().unwrap().wal.unwrap();
    member.replica.propose(vec![payload("b")]).unwrap();
    let second = member.replica.ready().unwrap().wal.unwrap();
    assert!(first.number() < second.number());

    member.replica.persisted(first.durable().1);
    let ready = member.replica.ready().unwrap();
    assert_eq!(ready.committed.len(), 1);
    assert_eq!(ready.committed[0].data, payload("a"));
    member.replica.persisted(second.durable().1);
    let ready = member.replica.ready().unwrap();
    assert_eq!(ready.committed[0].data, payload("b"));
}

#[test]
#[should_panic(expected = "log writes must be reported in order")]
fn r5_reporting_out_of_order_is_refused() {
    let mut member = solo();
    member.replica.propose(vec![payload("a")]).unwrap();
    let first = member.replica.ready().unwrap().wal.unwrap();
    member.replica.propose(vec![payload("b")]).unwrap();
    let second = member.replica.ready().unwrap().wal.unwrap();
    member.replica.persisted(second.durable().1);
    drop(first);
}

#[test]
fn an_idle_leader_does_not_collect_anything() {
    let mut group = trio();
    let numbers = group[0].replica.last_number;
    let tasks = group[0].tasks;
    for _ in 0..1000 {
        group[0].replica.tick();
        settle_all(&mut group);
    }
    assert!(group[0].replica.last_number > numbers + 900);
    assert_eq!(group[0].tasks, tasks, "heartbeats write nothing");
    assert!(group[0].replica.in_flight.is_empty());
    assert_eq!(group[0].replica.status().role, Role::Leader);
}

#[test]
fn r6_a_heartbeat_response_overtakes_a_write_and_an_acknowledgement_does_not() {
    let mut group = trio();
    group[0].replica.propose(vec![payload("a")]).unwrap();
    let append = group[0]
        .turn()
        .into_iter()
        .find(|m| m.to == 2 && m.msg_type == MessageType::MsgAppend)
        .unwrap();
    let follower = &mut group[1].replica;
    follower.receive(append).unwrap();
    let ready = follower.ready().unwrap();
    assert!(ready.messages.is_empty());
    let task = ready.wal.unwrap();

    let heartbeat = Message {
        msg_type: MessageType::MsgHeartbeat,
        to: 2,
        from: 1,
        term: follower.status().term,
        context: payload("ctx"),
        ..Message::default()
    };
    follower.receive(heartbeat).unwrap();
    let ready = follower.ready().unwrap();
    assert_eq!(
        ready.messages[0].msg_type,
        MessageType::MsgHeartbeatResponse
    );
    assert!(ready.wal.is_none());

    let (messages, persisted) = task.durable();
    assert_eq!(messages[0].msg_type, MessageType::MsgAppendResponse);
    follower.persisted(persisted);
}

#[test]
fn an_acknowledgement_without_a_write_waits_for_the_write_before_it() {
    let mut group = trio();
    group[0].replica.propose(vec![payload("a")]).unwrap();
    let append = group[0]
        .turn()
        .into_iter()
        .find(|m| m.to == 2 && m.msg_type == MessageType::MsgAppend)
        .unwrap();
    let follower = &mut group[1].replica;
    follower.receive(append.clone()).unwrap();
    let first = follower.ready().unwrap().wal.unwrap();
    // The same message again: nothing to write, and the same promise.
    follower.receive(append).unwrap();
    let ready = follower.ready().unwrap();
    assert!(ready.messages.is_empty());
    let second = ready.wal.unwrap();
    assert!(!second.has_writes());
    follower.persisted(first.durable().1);
    let (messages, persisted) = second.durable();
    assert_eq!(messages[0].msg_type, MessageType::MsgAppendResponse);
    follower.persisted(persisted);
}

/// The sole voter of a group with a learner: nobody else's vote proves that its term is durable.
#[test]
fn r9_a_leader_replicates_only_after_its_term_is_durable() {
    for broken in [None, Some(Rule::R9DurableTermFirst)] {
        let mut config = Config::new(1, 1, 1);
        config.broken = broken;
        let mut member = Member::new(
            config,
            Boot {
                hard_state: HardState {
                    term: 1,
                    vote: 0,
                    commit: 0,
                },
                conf_state: ConfState::from((vec![1], vec![2])),
                first_index: 1,
                ..Boot::default()
            },
        );
        member.turn();
        member.replica.campaign();
        let ready = member.replica.ready().unwrap();
        let task = ready.wal.unwrap();
        assert!(task.hard_state.is_some_and(|state| state.term == 2));
        let early = ready.messages.len();
        let (late, persisted) = task.durable();
        member.replica.persisted(persisted);
        let append = |message: &Message| message.msg_type == MessageType::MsgAppend;
        if broken.is_none() {
            assert_eq!((early, late.iter().filter(|m| append(m)).count()), (0, 1));
        } else {
            assert_eq!(early, 1, "the rule is what holds the message back");
        }
    }
}

#[test]
fn r4_a_sole_voter_does_not_campaign_with_entries_in_flight() {
    let run = |broken| {
        let mut config = Config::new(2, 1, 1);
        config.broken = broken;
        let boot = Boot {
            hard_state: HardState {
                term: 3,
                vote: 0,
                commit: 0,
            },
            conf_state: ConfState::from((vec![2], vec![])),
            first_index: 1,
            ..Boot::default()
        };
        let mut replica = Replica::new(config, boot).unwrap();
        // Entries from the leader of the group it was in before; their write takes long.
        let append = Message {
            msg_type: MessageType::MsgAppend,
            to: 2,
            from: 1,
            term: 3,
            entries: vec![pb::Entry {
                index: 1,
                term: 3,
                ..pb::Entry::default()
            }],
            ..Message::default()
        };
        replica.receive(append).unwrap();
        let task = replica.ready().unwrap().wal.unwrap();
        for _ in 0..50 {
            replica.tick();
        }
        assert_eq!(replica.status().role, Role::Follower);
        replica.persisted(task.durable().1);
        for _ in 0..50 {
            replica.tick();
        }
        assert_eq!(replica.status().role, Role::Leader);
    };
    run(None);
    let broken = std::panic::catch_unwind(|| run(Some(Rule::R4SoleVoterWaits)));
    assert!(
        broken.is_err(),
        "the core asserts that nothing is in flight"
    );
}

#[test]
fn r3_a_leader_that_removes_itself_steps_down() {
    let run = |broken| {
        let mut group = trio();
        group[0].replica.config.broken = broken;
        group[0]
            .replica
            .propose_conf_change(&change(ConfChangeAction::RemoveNode, 1))
            .unwrap();
        settle_all(&mut group);
        let status = group[0].replica.status();
        assert!(!status.is_voter);
        assert_eq!(status.role, Role::Follower);
        assert!(group[0].replica.read(1).is_err(), "no ghost answers reads");
        // The others learned of it and go on.
        assert_eq!(group[1].replica.conf_state().voters, [2, 3]);
        group[1].replica.forget_leader();
        group[2].replica.forget_leader();
        group[1].replica.campaign();
        settle_all(&mut group);
        assert_eq!(group[1].replica.status().role, Role::Leader);
    };
    run(None);
    let broken = std::panic::catch_unwind(|| run(Some(Rule::R3StepDownOnRemoval)));
    assert!(broken.is_err());
}

#[test]
fn r3_a_removed_leader_with_a_write_in_flight_survives_its_end() {
    let run = |broken| {
        let mut group = trio();
        let leader = &mut group[0].replica;
        leader.config.broken = broken;
        leader
            .propose_conf_change(&change(ConfChangeAction::RemoveNode, 1))
            .unwrap();
        let ready = leader.ready().unwrap();
        leader.persisted(ready.wal.unwrap().durable().1);
        let mut messages = ready.messages;
        // Entries that are still being written when the removal is applied.
        leader.propose(vec![payload("late")]).unwrap();
        let late = leader.ready().unwrap();
        for message in messages.drain(..) {
            let to = message.to as usize - 1;
            group[to].replica.receive(message).unwrap();
            for answer in group[to].turn() {
                let _ = group[0].replica.receive(answer);
            }
        }
        let leader = &mut group[0];
        let committed = leader.replica.ready().unwrap().committed;
        leader.apply(committed);
        leader.replica.persisted(late.wal.unwrap().durable().1);
        assert_eq!(leader.replica.status().role, Role::Follower);
    };
    run(None);
    assert!(std::panic::catch_unwind(|| run(Some(Rule::R3StepDownOnRemoval))).is_err());
}

/// The state machine is ahead of the commit index on disk, which is written lazily.
#[test]
fn r7_the_commit_index_covers_the_applied_index() {
    let boot = || {
        let mut boot = bootstrap(members(&[1])).unwrap();
        boot.hard_state.commit = 0;
        boot.applied = 1;
        boot
    };
    let replica = Replica::new(Config::new(1, 1, 1), boot()).unwrap();
    assert_eq!(replica.status().commit, 1);
    let broken = std::panic::catch_unwind(|| {
        let mut config = Config::new(1, 1, 1);
        config.broken = Some(Rule::R7CommitCoversApplied);
        Replica::new(config, boot()).map(drop)
    });
    assert!(broken.is_err(), "the core refuses to start");
}

#[test]
fn r8_election_timeouts_depend_on_the_seed_alone() {
    let timeouts = |seed, broken| -> Vec<usize> {
        let mut config = Config::new(1, seed, 1);
        config.election_ticks = 1000;
        config.broken = broken;
        let mut replica = Replica::new(config, bootstrap(members(&[1, 2, 3])).unwrap()).unwrap();
        (0..8)
            .map(|term| {
                let vote = Message {
                    msg_type: MessageType::MsgRequestVote,
                    to: 1,
                    from: 2,
                    term: term + 10,
                    index: 100,
                    log_term: 10,
                    ..Message::default()
                };
                replica.receive(vote).unwrap();
                replica.raw.raft.randomized_election_timeout()
            })
            .collect()
    };
    let first = timeouts(7, None);
    assert_eq!(first, timeouts(7, None));
    assert_ne!(first, timeouts(8, None));
    assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
    assert!(first.iter().all(|timeout| (1000..2000).contains(timeout)));
    let broken = Some(Rule::R8SeededElections);
    assert_ne!(timeouts(7, broken), timeouts(7, broken));
}

/// An empty append that announces a commit, and a resend of older entries, in one turn of the
/// leader: merging gives the entries another place in the log.
#[test]
fn r1_appends_are_not_merged() {
    let holds = |broken| {
        let mut group = trio();
        let leader = &mut group[0].replica;
        leader.config.broken = broken;
        let merge = core_config(&leader.config, 0).batch_append;
        leader.raw.set_batch_append(merge);
        // Five entries; member 3 holds them, member 2 was cut off before.
        let leader = &mut group[0].replica;
        for text in ["a", "b", "c", "d", "e"] {
            leader.propose(vec![payload(text)]).unwrap();
        }
        let ready = leader.ready().unwrap();
        leader.persisted(ready.wal.unwrap().durable().1);
        let start = leader.status().last_index - 5;
        for message in ready.messages.into_iter().filter(|m| m.to == 3) {
            group[2].replica.receive(message).unwrap();
        }
        let acks = group[2].turn();
        // In one turn: the commit is announced to all, then member 2 is found to lag.
        for ack in acks {
            let _ = group[0].replica.receive(ack);
        }
        let reject = Message {
            msg_type: MessageType::MsgAppendResponse,
            to: 1,
            from: 2,
            term: group[0].replica.status().term,
            reject: true,
            index: start + 5,
            reject_hint: start,
            log_term: group[0].replica.status().term,
            ..Message::default()
        };
        group[0].replica.receive(reject).unwrap();
        let mut fine = true;
        while let Some(ready) = group[0].replica.ready() {
            for message in ready.messages.iter().filter(|m| m.to == 2) {
                fine &= check_append(message).is_ok();
            }
        }
        fine
    };
    assert!(holds(None));
    assert!(!holds(Some(Rule::R1NoMerging)));
}

#[test]
fn r2_contexts_of_peers_never_reach_the_core() {
    let mut group = trio();
    let ask = Message {
        msg_type: MessageType::MsgReadIndex,
        to: 1,
        from: 2,
        entries: vec![pb::Entry {
            data: payload("their context"),
            ..pb::Entry::default()
        }],
        ..Message::default()
    };
    group[0].replica.receive(ask).unwrap();
    let heartbeats = group[0].turn();
    assert_eq!(heartbeats.len(), 2);
    for heartbeat in &heartbeats {
        assert_eq!(heartbeat.msg_type, MessageType::MsgHeartbeat);
        assert_eq!(heartbeat.context.len(), 16);
        assert_ne!(heartbeat.context, payload("their context"));
    }
    for heartbeat in heartbeats {
        let to = heartbeat.to as usize - 1;
        group[to].replica.receive(heartbeat).unwrap();
        for answer in group[to].turn() {
            let _ = group[0].replica.receive(answer);
        }
    }
    let answers = group[0].turn();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].msg_type, MessageType::MsgReadIndexResp);
    assert_eq!(answers[0].entries[0].data, payload("their context"));
    assert_eq!(answers[0].index, group[0].replica.status().commit);
}

#[test]
fn reads_are_answered_on_every_member() {
    let mut group = trio();
    group[0].replica.propose(vec![payload("a")]).unwrap();
    settle_all(&mut group);
    let commit = group[0].replica.status().commit;
    for member in 0..3 {
        group[member].replica.read(40 + member as u64).unwrap();
        settle_all(&mut group);
        assert_eq!(group[member].reads, [(40 + member as u64, commit)]);
    }
}

#[test]
fn reads_of_a_new_leader_wait_for_its_first_commit() {
    let mut member = Member::bootstrapped(1, &[1]);
    member.replica.campaign();
    member.replica.read(5).unwrap();
    let ready = member.replica.ready().unwrap();
    assert!(ready.reads.is_empty());
    assert!(member.replica.ready().is_none());
    assert_eq!(member.replica.read_index_now(), None);
    member.replica.persisted(ready.wal.unwrap().durable().1);
    member.turn();
    assert_eq!(member.reads, [(5, 2)]);
}

#[test]
fn a_lost_leader_aborts_reads() {
    let mut group = trio();
    group[0].replica.read(1).unwrap();
    // Nobody hears the leader; it steps down when it misses its quorum.
    for _ in 0..30 {
        group[0].replica.tick();
        group[0].turn();
    }
    assert_ne!(group[0].replica.status().role, Role::Leader);
    assert_eq!(group[0].aborted, [1]);
    assert!(group[0].reads.is_empty());
    assert!(group[0].replica.read(2).is_err());
}

#[test]
fn members_come_and_go() {
    let mut first = solo();
    first.turn();
    let joiner = Member::new(
        Config::new(2, 1, 2),
        Boot {
            first_index: 1,
            ..Boot::default()
        },
    );
    let mut group = vec![first, joiner];
    let steps = [
        (ConfChangeAction::AddLearnerNode, vec![1], vec![2]),
        (ConfChangeAction::UpdateNode, vec![1], vec![2]),
        (ConfChangeAction::AddNode, vec![1, 2], vec![]),
        (ConfChangeAction::RemoveNode, vec![1], vec![]),
    ];
    for (action, voters, learners) in steps {
        group[0]
            .replica
            .propose_conf_change(&change(action, 2))
            .unwrap();
        settle_all(&mut group);
        // The follower learns of the commit with the next heartbeat at the latest.
        group[0].replica.tick();
        settle_all(&mut group);
        let expected = ConfState::from((voters, learners));
        assert_eq!(group[0].replica.conf_state(), expected, "{action:?}");
        if action != ConfChangeAction::RemoveNode {
            assert_eq!(group[1].replica.conf_state(), expected, "{action:?}");
        }
    }
    assert!(group[0].replica.status().is_sole_voter);
}

#[test]
fn one_conf_change_at_a_time() {
    let mut group = trio();
    let add = change(ConfChangeAction::AddLearnerNode, 4);
    group[0].replica.propose_conf_change(&add).unwrap();
    assert_eq!(
        group[0].replica.propose_conf_change(&add),
        Err(ProposeError::ConfChangePending)
    );
    settle_all(&mut group);
    group[0].replica.propose_conf_change(&add).unwrap();
}

#[test]
fn a_refused_conf_change_reaches_nobody() {
    let mut member = solo();
    member
        .replica
        .propose_conf_change(&change(ConfChangeAction::AddNode, 2))
        .unwrap();
    let task = member.replica.ready().unwrap().wal.unwrap();
    member.replica.persisted(task.durable().1);
    let committed = member.replica.ready().unwrap().committed;
    let index = committed[0].index;
    let verdict = Verdict {
        index,
        accepted: None,
    };
    member.replica.applied(index, vec![verdict]);
    assert_eq!(member.replica.conf_state().voters, [1]);
    assert!(!member.replica.status().pending_conf_change);
}

#[test]
#[should_panic(expected = "conf change applied without a verdict")]
fn a_conf_change_cannot_be_skipped() {
    let mut replica =
        Replica::new(Config::new(1, 1, 1), bootstrap(members(&[1])).unwrap()).unwrap();
    let committed = replica.ready().unwrap().committed;
    replica.applied(committed[0].index, vec![]);
}

#[test]
fn proposals_say_why_they_are_refused() {
    let mut alone = Member::bootstrapped(1, &[1, 2]);
    assert_eq!(
        alone.replica.propose(vec![payload("a")]),
        Err(ProposeError::NoLeader)
    );
    let mut group = trio();
    let leader = &mut group[0].replica;
    assert_eq!(leader.propose(vec![]), Ok(()));
    leader.transfer(2);
    assert_eq!(
        leader.propose(vec![payload("a")]),
        Err(ProposeError::Transferring)
    );

    let mut config = Config::new(1, 1, 1);
    config.append_bytes_max = 500;
    config.uncommitted_bytes_max = 1000;
    let mut member = Member::new(config, bootstrap(members(&[1])).unwrap());
    member.turn();
    member.replica.campaign();
    member.turn();
    let block = Bytes::from(vec![0; 600]);
    assert_eq!(member.replica.propose(vec![block.clone()]), Ok(()));
    assert_eq!(
        member.replica.propose(vec![block.clone()]),
        Err(ProposeError::Full)
    );
    member.turn();
    assert_eq!(member.replica.propose(vec![block]), Ok(()));
}

#[test]
fn followers_forward_proposals() {
    let mut group = trio();
    group[2].replica.propose(vec![payload("from 3")]).unwrap();
    settle_all(&mut group);
    for member in &group {
        assert_eq!(member.applied.last().unwrap().data, payload("from 3"));
    }
}

#[test]
fn leadership_can_be_handed_over_and_forgotten() {
    let mut group = trio();
    group[0].replica.transfer(3);
    settle_all(&mut group);
    assert_eq!(group[2].replica.status().role, Role::Leader);
    assert_eq!(group[0].replica.status().leader, 3);

    // Two members that know the leader to be gone elect at once.
    group[0].replica.forget_leader();
    group[1].replica.forget_leader();
    assert_eq!(group[0].replica.status().leader, 0);
    let gone = group.pop().unwrap();
    group[0].replica.campaign();
    settle_all(&mut group);
    assert_eq!(group[0].replica.status().role, Role::Leader);
    drop(gone);
}

#[test]
fn progress_is_seen_by_the_leader_alone() {
    let mut group = trio();
    group[0].replica.propose(vec![payload("a")]).unwrap();
    settle_all(&mut group);
    let last = group[0].replica.status().last_index;
    let progress = group[0].replica.progress();
    let matched: Vec<_> = progress
        .iter()
        .map(|peer| (peer.id, peer.matched))
        .collect();
    assert_eq!(matched, [(2, last), (3, last)]);
    assert!(group[1].replica.progress().is_empty());
}

/// A follower that lags beyond the memory window gets its entries from the leader's disk.
#[test]
fn old_entries_come_from_disk() {
    let mut group = trio();
    group[0].replica.config.catch_up_entries = 0;
    let cut_off = group.pop().unwrap();
    for i in 0..30 {
        // An active follower's entries would be kept; after an election timeout it is not active.
        group[0].replica.tick();
        let proposal = payload(&format!("{i}"));
        group[0].replica.propose(vec![proposal]).unwrap();
        settle_all(&mut group);
    }
    let disk = group[0].applied.clone();
    assert!(group[0].replica.status().log_entries < 5);
    group.push(cut_off);

    let mut fetches = 0;
    for _ in 0..50 {
        group[0].replica.tick();
        let mut messages = Vec::new();
        while let Some(ready) = group[0].replica.ready() {
            messages.extend(ready.messages);
            for fetch in ready.fetches {
                fetches += 1;
                let entries = disk
                    .iter()
                    .filter(|entry| (fetch.from..fetch.to).contains(&entry.index))
                    .take(3)
                    .cloned()
                    .collect();
                group[0].replica.fetched(fetch.id, entries);
            }
            if let Some(task) = ready.wal {
                group[0].replica.persisted(task.durable().1);
            }
            group[0].apply(ready.committed);
        }
        for message in messages {
            let to = message.to as usize - 1;
            let _ = group[to].replica.receive(message);
            for answer in group[to].turn() {
                let _ = group[0].replica.receive(answer);
            }
        }
    }
    assert!(fetches >= 6, "{fetches}");
    assert_eq!(group[2].applied, disk);
}

/// A follower that lags beyond the start of the log gets a snapshot.
#[test]
fn a_snapshot_replaces_a_log_that_is_gone() {
    let mut group = trio();
    let cut_off = group.pop().unwrap();
    for i in 0..20 {
        group[0]
            .replica
            .propose(vec![payload(&format!("{i}"))])
            .unwrap();
        settle_all(&mut group);
    }
    let applied = group[0].replica.status().applied;
    group[0].replica.trimmed(applied + 1);
    group.push(cut_off);

    let mut wanted = None;
    for _ in 0..10 {
        group[0].replica.tick();
        let mut messages = Vec::new();
        while let Some(ready) = group[0].replica.ready() {
            messages.extend(ready.messages);
            wanted = wanted.or(ready.snapshots_wanted.first().copied());
        }
        for message in messages {
            let to = message.to as usize - 1;
            let _ = group[to].replica.receive(message);
            for answer in group[to].turn() {
                let _ = group[0].replica.receive(answer);
            }
        }
    }
    let wanted = wanted.unwrap();
    assert_eq!(wanted.to, 3);
    assert!(wanted.index_min <= applied);
    let meta = SnapshotMeta {
        index: applied,
        term: group[0].replica.term_at(applied).unwrap(),
        conf_state: group[0].replica.conf_state(),
        data: payload("where the state is"),
    };
    group[0].replica.offer_snapshot(3, meta.clone());
    let mut announced = None;
    for _ in 0..3 {
        group[0].replica.tick();
        for message in group[0].turn() {
            if message.msg_type == MessageType::MsgSnapshot {
                announced = Some(message);
                continue;
            }
            let to = message.to as usize - 1;
            let _ = group[to].replica.receive(message);
            for answer in group[to].turn() {
                let _ = group[0].replica.receive(answer);
            }
        }
    }
    let receiver = &mut group[2].replica;
    receiver.receive(announced.clone().unwrap()).unwrap();
    let task = receiver.ready().unwrap().wal.unwrap();
    assert_eq!(task.snapshot.as_ref(), Some(&meta));
    let (acks, persisted) = task.durable();
    receiver.persisted(persisted);
    assert_eq!(
        receiver.receive(announced.unwrap()),
        Err(ReceiveError::Dropped),
        "one installation at a time"
    );
    receiver.applied(applied, vec![]);
    assert_eq!(receiver.status().first_index, applied + 1);
    group[0].replica.snapshot_sent(3, true);
    for ack in acks {
        group[0].replica.receive(ack).unwrap();
    }
    group[0].replica.propose(vec![payload("after")]).unwrap();
    settle_all(&mut group);
    let last = group[2].applied.last().unwrap();
    assert_eq!(last.data, payload("after"));
}

#[test]
fn r10_no_election_while_a_snapshot_is_installed() {
    let run = |broken| {
        let mut config = Config::new(3, 1, 3);
        config.broken = broken;
        let mut member = Member::new(config, bootstrap(members(&[1, 2, 3])).unwrap());
        member.turn();
        let snapshot = Message {
            msg_type: MessageType::MsgSnapshot,
            to: 3,
            from: 1,
            term: 5,
            snapshot: Some(Box::new(
                SnapshotMeta {
                    index: 100,
                    term: 5,
                    conf_state: ConfState::from((vec![1, 2, 3], vec![])),
                    data: Bytes::new(),
                }
                .into_pb(),
            )),
            ..Message::default()
        };
        member.replica.receive(snapshot).unwrap();
        let task = member.replica.ready().unwrap().wal.unwrap();
        member.replica.persisted(task.durable().1);
        for _ in 0..100 {
            member.replica.tick();
        }
        assert_eq!(member.replica.status().role, Role::Follower);
        member.replica.applied(100, vec![]);
        for _ in 0..100 {
            member.replica.tick();
        }
        assert_eq!(member.replica.status().role, Role::PreCandidate);
    };
    run(None);
    let rule = Rule::R10NoElectionWhileInstalling;
    assert!(std::panic::catch_unwind(|| run(Some(rule))).is_err());
}

#[test]
fn messages_that_contradict_themselves_are_dropped() {
    use MessageType::*;
    let mut group = trio();
    let term = group[0].replica.status().term;
    let last = group[0].replica.status().last_index;
    let base = |msg_type, from, to| Message {
        msg_type,
        from,
        to,
        term,
        ..Message::default()
    };
    let entry = |index, term| pb::Entry {
        index,
        term,
        ..pb::Entry::default()
    };
    let cases = [
        ("for another member", base(MsgHeartbeat, 1, 3)),
        ("from itself", base(MsgHeartbeat, 2, 2)),
        ("from nobody", base(MsgHeartbeat, 0, 2)),
        (
            "no term",
            Message {
                term: 0,
                ..base(MsgAppend, 1, 2)
            },
        ),
        ("local", base(MsgHup, 1, 2)),
        ("local", base(MsgCheckQuorum, 1, 2)),
        ("empty proposal", base(MsgPropose, 1, 2)),
        (
            "joint change",
            Message {
                entries: vec![pb::Entry {
                    entry_type: pb::EntryType::EntryConfChangeV2,
                    ..pb::Entry::default()
                }],
                ..base(MsgPropose, 1, 2)
            },
        ),
        (
            "gap",
            Message {
                index: last,
                log_term: term,
                entries: vec![entry(last + 2, term)],
                ..base(MsgAppend, 1, 2)
            },
        ),
        (
            "term from the future",
            Message {
                index: last,
                log_term: term,
                entries: vec![entry(last + 1, term + 1)],
                ..base(MsgAppend, 1, 2)
            },
        ),
        (
            "overflow",
            Message {
                index: u64::MAX,
                entries: vec![entry(0, term)],
                ..base(MsgAppend, 1, 2)
            },
        ),
        (
            "commit beyond the log",
            Message {
                commit: last + 1,
                ..base(MsgHeartbeat, 1, 2)
            },
        ),
        ("snapshot of nothing", base(MsgSnapshot, 1, 2)),
        ("read without context", base(MsgReadIndex, 1, 2)),
        ("answer without context", base(MsgReadIndexResp, 1, 2)),
    ];
    for (name, message) in cases {
        let before = group[1].replica.status();
        assert!(group[1].replica.receive(message).is_err(), "{name}");
        assert_eq!(group[1].replica.status(), before, "{name}");
        assert!(group[1].replica.ready().is_none(), "{name}");
    }
    let ack = Message {
        index: last + 5,
        ..base(MsgAppendResponse, 2, 1)
    };
    assert!(group[0].replica.receive(ack).is_err());
    let stranger = base(MsgAppendResponse, 77, 1);
    assert_eq!(
        group[0].replica.receive(stranger),
        Err(ReceiveError::UnknownPeer)
    );
}

#[test]
fn impossible_starts_are_refused() {
    let entry = |index, term| Entry {
        index,
        term,
        ..Entry::default()
    };
    let base = || Boot {
        hard_state: HardState {
            term: 5,
            vote: 0,
            commit: 3,
        },
        conf_state: ConfState::from((vec![1], vec![])),
        applied: 2,
        first_index: 2,
        previous_term: 1,
        entries: vec![entry(2, 1), entry(3, 4)],
    };
    let start = |boot| Replica::new(Config::new(1, 1, 1), boot).err();
    assert_eq!(start(base()), None);
    let gap = Boot {
        entries: vec![entry(2, 1), entry(4, 4)],
        ..base()
    };
    assert_eq!(
        start(gap),
        Some(BootError::Gap {
            expected: 3,
            found: 4
        })
    );
    let falling = Boot {
        entries: vec![entry(2, 4), entry(3, 3)],
        ..base()
    };
    assert_eq!(start(falling), Some(BootError::Terms { index: 3 }));
    let mut future = base();
    future.hard_state.term = 3;
    assert_eq!(start(future), Some(BootError::Terms { index: 3 }));
    let old = Boot {
        applied: 0,
        ..base()
    };
    assert_eq!(
        start(old),
        Some(BootError::StateTooOld {
            applied: 0,
            first_index: 2
        })
    );
    let ahead = Boot {
        applied: 4,
        ..base()
    };
    let lost = |needed| {
        Some(BootError::LostEntries {
            needed,
            last_index: 3,
        })
    };
    assert_eq!(start(ahead), lost(4));
    let mut committed = base();
    committed.hard_state.commit = 9;
    assert_eq!(start(committed), lost(9));
    let twice = Boot {
        conf_state: ConfState::from((vec![1], vec![1])),
        ..base()
    };
    assert!(matches!(start(twice), Some(BootError::ConfState(_))));
    let mut config = Config::new(1, 1, 1);
    config.election_ticks = 1;
    let error = Replica::new(config, base()).err();
    assert!(matches!(error, Some(BootError::Config(_))));
}

#[test]
fn log_lines_reach_the_callback() {
    use crate::config::{LogLevel, LogSink};
    use std::sync::{Arc, Mutex};
    let lines: Arc<Mutex<Vec<(LogLevel, String)>>> = Arc::default();
    let sink = lines.clone();
    let mut config = Config::new(1, 1, 1);
    config.log = LogSink::Callback(Arc::new(move |level, line| {
        sink.lock().unwrap().push((level, line.to_owned()));
    }));
    let mut member = Member::new(config, bootstrap(members(&[1])).unwrap());
    member.turn();
    member.replica.campaign();
    let lines = lines.lock().unwrap();
    assert!(
        lines
            .iter()
            .any(|(level, line)| *level == LogLevel::Info && line.contains("became leader")),
        "{lines:?}"
    );
    assert!(lines.iter().any(|(_, line)| line.contains("commit=1")));
}

/// A small number, so that random messages are about entries and terms that exist; or a huge one.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0u64..9, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn conf_state() -> impl Strategy<Value = ConfState> {
    let ids = || prop::collection::vec(0u64..5, 0..4);
    (ids(), ids(), ids()).prop_map(|(voters, learners, voters_outgoing)| ConfState {
        voters,
        learners,
        voters_outgoing,
        ..ConfState::default()
    })
}

fn any_entry() -> impl Strategy<Value = pb::Entry> {
    let data = prop::collection::vec(any::<u8>(), 0..12);
    (0u64..3, number(), number(), data).prop_map(|(kind, term, index, data)| pb::Entry {
        entry_type: pb::EntryType::from_number(kind).unwrap(),
        term,
        index,
        data: Bytes::from(data),
        ..pb::Entry::default()
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let head = (0u64..19, 0u64..5, 1u64..4, any::<bool>());
    let numbers = prop::array::uniform8(number());
    let entries = prop::collection::vec(any_entry(), 0..3);
    let snapshot = prop::option::of((conf_state(), number(), number()));
    let context = prop::sample::select(vec!["", "CampaignTransfer", "0123456789abcdef"]);
    (head, numbers, entries, snapshot, context).prop_map(
        |((kind, from, to, reject), n, mut entries, snapshot, context)| {
            // Half of the appends follow their index.
            if n[7] % 2 == 0 {
                for (at, entry) in entries.iter_mut().enumerate() {
                    entry.index = n[2].wrapping_add(at as u64 + 1);
                }
            }
            Message {
                msg_type: MessageType::from_number(kind).unwrap(),
                from,
                to,
                reject,
                term: n[0],
                log_term: n[1],
                index: n[2],
                commit: n[3],
                reject_hint: n[4],
                request_snapshot: n[5],
                commit_term: n[6],
                entries,
                context: payload(context),
                snapshot: snapshot.map(|(conf_state, index, term)| {
                    Box::new(pb::Snapshot {
                        data: Bytes::new(),
                        metadata: pb::SnapshotMetadata {
                            conf_state,
                            index,
                            term,
                        },
                    })
                }),
                ..Message::default()
            }
        },
    )
}

/// `QUORATE_ROUNDS` overrides the number of sequences.
fn rounds() -> ProptestConfig {
    let rounds = std::env::var("QUORATE_ROUNDS").ok();
    let cases = rounds.map_or(400, |text| {
        text.parse().expect("a number in QUORATE_ROUNDS")
    });
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(rounds())]

    /// Whatever the sequence of messages: no panic, but for a leader that contradicts what this
    /// member knows to be committed.
    #[test]
    fn no_message_brings_a_member_down(
        messages in prop::collection::vec((any_message(), 0usize..3), 1..80),
    ) {
        let mut group = trio();
        for (message, ticks) in messages {
            let to = message.to as usize - 1;
            let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let member = &mut group[to];
                let _ = member.replica.receive(message.clone());
                let _ = member.turn();
                if let Some(index) = member.replica.snapshot_ahead() {
                    member.replica.applied(index, Vec::new());
                }
                for _ in 0..ticks * 7 {
                    member.replica.tick();
                    let _ = member.turn();
                }
            }));
            if let Err(panic) = end {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                prop_assert!(
                    text.contains("conflict with committed entry"),
                    "{}: {:?}",
                    text,
                    message
                );
                return Ok(());
            }
        }
    }
}
