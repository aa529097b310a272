//! One member's part in the consensus.

use crate::conf;
use crate::config::{Boot, Config};
use crate::error::{BootError, ProposeError, ReadError, ReceiveError};
use crate::log_view::LogView;
use crate::reads::{ReadHub, Start};
use crate::ready::{Ballot, Persisted, Ready, WalTask};
use crate::rules::Rule;
use crate::types::{
    ConfChange, ConfChangeAction, ConfState, Entry, EntryKind, HardState, Message, MessageType,
    PeerProgress, Role, SnapshotMeta, SoftState, Status, Verdict,
};
use bytes::Bytes;
use raft::{Error as RaftError, Raft, RawNode, SnapshotStatus, StateRole};
use raft_proto::Wire;
use raft_proto::eraftpb as pb;
use std::collections::VecDeque;

/// Terms and indexes from here on are refused: the core adds to them without checking.
const NUMBER_MAX: u64 = 1 << 62;

/// The longest read context taken from a peer; etcd sends 8 bytes, we send 16.
const PEER_CONTEXT_BYTES_MAX: usize = 64;

/// A member of a raft group: takes ticks, messages and reports, gives [`Ready`]s.
///
/// All calls are synchronous, none blocks, and equal sequences of calls give equal results. After
/// any call that may have changed something, take [`Replica::ready`] until it returns `None`.
pub struct Replica {
    raw: RawNode<LogView>,
    config: Config,
    ticks: u64,
    reads: ReadHub,
    outbox: Vec<Message>,
    /// What the driver was last told.
    soft: SoftState,
    /// The hard state last given out to be written.
    written: HardState,
    /// The term and vote that survive a crash.
    durable: Ballot,
    /// Tasks given out and not reported yet, in order.
    in_flight: VecDeque<u64>,
    /// Number of the last ready taken from the core.
    last_number: u64,
    /// A snapshot replaced the log, the state machine has not followed yet.
    installing: Option<u64>,
    /// Indexes of conf changes given out to be applied.
    changes: VecDeque<u64>,
}

impl Replica {
    /// Builds a replica from what was found at start. Its first ready holds the committed entries
    /// above `boot.applied`.
    pub fn new(config: Config, boot: Boot) -> Result<Replica, BootError> {
        let mut boot = boot;
        check_boot(&boot)?;
        if !Rule::R7CommitCoversApplied.broken(&config) {
            // Rule R7: the commit index is written without waiting, the state machine may be ahead.
            boot.hard_state.commit = boot.hard_state.commit.max(boot.applied);
        }
        let hard_state = boot.hard_state;
        let view = LogView::new(
            hard_state,
            boot.conf_state,
            boot.first_index,
            boot.previous_term,
            boot.entries,
        );
        let logger = config.log.logger();
        let raw = RawNode::new(&core_config(&config, boot.applied), view, &logger)
            .map_err(|error| BootError::Config(error.to_string()))?;
        let mut replica = Replica {
            reads: ReadHub::new(
                config.id,
                config.boot_nonce,
                config.reads_max,
                Rule::R2FreshContexts.broken(&config),
            ),
            raw,
            config,
            ticks: 0,
            outbox: Vec::new(),
            soft: SoftState::default(),
            written: hard_state,
            durable: Ballot {
                term: hard_state.term,
                vote: hard_state.vote,
            },
            in_flight: VecDeque::new(),
            last_number: 0,
            installing: None,
            changes: VecDeque::new(),
        };
        replica.shrink_log();
        replica.settle();
        Ok(replica)
    }

    /// One tick has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.reads
            .retry(self.ticks, (self.config.election_ticks as u64 / 2).max(1));
        if self.may_campaign() {
            self.raw.tick();
        }
        self.settle();
    }

    /// Proposes payloads, all in one message to the core: followers get them in as few messages as
    /// their sizes allow and the log in one task. On a follower they travel to the leader. `Ok` means
    /// that they are on their way, not that they will be committed.
    pub fn propose(&mut self, payloads: Vec<Bytes>) -> Result<(), ProposeError> {
        if payloads.is_empty() {
            return Ok(());
        }
        let entries = payloads
            .into_iter()
            .map(|data| pb::Entry {
                data,
                ..pb::Entry::default()
            })
            .collect();
        self.step_proposal(entries)
    }

    /// Proposes a conf change. The leader takes one at a time.
    pub fn propose_conf_change(&mut self, change: &ConfChange) -> Result<(), ProposeError> {
        // The core would silently turn the entry into an empty one.
        if self.raw.raft.state == StateRole::Leader && self.raw.raft.has_pending_conf() {
            return Err(ProposeError::ConfChangePending);
        }
        self.step_proposal(vec![pb::Entry {
            entry_type: pb::EntryType::EntryConfChange,
            data: Bytes::from(change.encode_to_vec()),
            ..pb::Entry::default()
        }])
    }

    fn step_proposal(&mut self, entries: Vec<pb::Entry>) -> Result<(), ProposeError> {
        let raft = &self.raw.raft;
        if raft.leader_id == raft::INVALID_ID {
            return Err(ProposeError::NoLeader);
        }
        if raft.state == StateRole::Leader {
            if raft.lead_transferee.is_some() {
                return Err(ProposeError::Transferring);
            }
            if raft.prs().get(raft.id).is_none() {
                return Err(ProposeError::NotMember);
            }
        }
        let proposal = Message {
            msg_type: MessageType::MsgPropose,
            from: self.config.id,
            entries,
            ..Message::default()
        };
        let result = self.raw.raft.step(proposal);
        self.settle();
        // With a leader known and no transfer running the core refuses for size alone.
        result.map_err(|_| ProposeError::Full)
    }

    /// Takes a message from a peer. An error means that the message was dropped and nothing changed;
    /// raft does not depend on any single message.
    pub fn receive(&mut self, message: Message) -> Result<(), ReceiveError> {
        self.check(&message)?;
        match message.msg_type {
            // Rule R2: the core never sees another process's read contexts.
            MessageType::MsgReadIndex => self.receive_read(message)?,
            MessageType::MsgReadIndexResp => {
                let answers = self.reads.finish(&message.entries[0].data, message.index);
                self.outbox.extend(answers);
            }
            _ => self.raw.step(message).map_err(|error| match error {
                RaftError::StepPeerNotFound => ReceiveError::UnknownPeer,
                _ => ReceiveError::Dropped,
            })?,
        }
        self.settle();
        Ok(())
    }

    fn receive_read(&mut self, mut message: Message) -> Result<(), ReceiveError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(ReceiveError::Dropped);
        }
        let context = message.entries[0].take_data();
        if self.reads.add_peer(message.from, context) {
            Ok(())
        } else {
            Err(ReceiveError::Dropped)
        }
    }

    /// What the core takes for granted about a message, and would panic over.
    fn check(&self, message: &Message) -> Result<(), ReceiveError> {
        use ReceiveError::Malformed;
        let raft = &self.raw.raft;
        if message.to != raft.id || message.from == raft.id || message.from == raft::INVALID_ID {
            return Err(ReceiveError::Misrouted);
        }
        let travels_without_term = matches!(
            message.msg_type,
            MessageType::MsgPropose | MessageType::MsgReadIndex
        );
        if (message.term == 0) != travels_without_term {
            return Err(Malformed("a term where none belongs, or none"));
        }
        let numbers = [message.term, message.index, message.reject_hint];
        if numbers.into_iter().any(|number| number >= NUMBER_MAX) {
            return Err(Malformed("a number beyond all logs"));
        }
        match message.msg_type {
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum => Err(Malformed("a kind that never travels")),
            MessageType::MsgPropose => check_proposal(message),
            // The receiving end of rule R1.
            MessageType::MsgAppend if Rule::R1NoMerging.broken(&self.config) => Ok(()),
            MessageType::MsgAppend => check_append(message),
            MessageType::MsgAppendResponse => {
                let current = message.term == raft.term && raft.state == StateRole::Leader;
                if current && !message.reject && message.index > raft.raft_log.last_index() {
                    return Err(Malformed("acknowledges entries that do not exist"));
                }
                Ok(())
            }
            MessageType::MsgHeartbeat => {
                // A leader announces no more than this member acknowledged to it.
                if message.term >= raft.term && message.commit > raft.raft_log.last_index() {
                    return Err(ReceiveError::LostEntries);
                }
                Ok(())
            }
            MessageType::MsgSnapshot => self.check_snapshot(message),
            MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
                let context = match message.entries.as_slice() {
                    [entry] => &entry.data,
                    _ => return Err(Malformed("a read without its one context")),
                };
                if context.is_empty() || context.len() > PEER_CONTEXT_BYTES_MAX {
                    return Err(Malformed("a read context of impossible size"));
                }
                Ok(())
            }
            MessageType::MsgTimeoutNow if !self.may_campaign() => Err(ReceiveError::Dropped),
            // A follower's core fails when it forwards what was forwarded already.
            MessageType::MsgTransferLeader if raft.state != StateRole::Leader => {
                Err(ReceiveError::Dropped)
            }
            MessageType::MsgTimeoutNow
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTransferLeader => Ok(()),
        }
    }

    fn check_snapshot(&self, message: &Message) -> Result<(), ReceiveError> {
        let metadata = message.get_snapshot().get_metadata();
        if metadata.index == 0 || metadata.term == 0 || metadata.conf_state.voters.is_empty() {
            return Err(ReceiveError::Malformed("a snapshot of nothing"));
        }
        if metadata.index >= NUMBER_MAX || metadata.term > message.term {
            return Err(ReceiveError::Malformed("a snapshot from the future"));
        }
        if check_conf_state(&metadata.conf_state).is_err() {
            return Err(ReceiveError::Malformed("a snapshot of an impossible group"));
        }
        if self.installing.is_some() {
            // A second snapshot may not replace one that is on its way to the disk.
            return Err(ReceiveError::Dropped);
        }
        Ok(())
    }

    /// The task of this proof and all before it are durable.
    ///
    /// # Panics
    ///
    /// If tasks are reported in another order than they were given out (rule R5).
    pub fn persisted(&mut self, persisted: Persisted) {
        let expected = self.in_flight.pop_front();
        assert_eq!(
            expected,
            Some(persisted.number),
            "log writes must be reported in order"
        );
        self.durable = persisted.ballot;
        self.core_persisted();
        self.settle();
    }

    /// Tells the core how far its readies are durable: up to the one before the next task in flight.
    fn core_persisted(&mut self) {
        let durable = self
            .in_flight
            .front()
            .map_or(self.last_number, |number| number - 1);
        self.raw.on_persist_ready(durable);
    }

    /// The state machine holds everything up to `index`. `verdicts` names, in order, every conf
    /// change up to there that came out as committed and was not reported before.
    ///
    /// While a [`WalTask::snapshot`] is not installed, reports about what precedes it have no effect.
    ///
    /// # Panics
    ///
    /// If the verdicts are not those of the committed conf changes, if an accepted change cannot be
    /// executed, or if `index` was not given out: state machine and core would disagree about who
    /// votes.
    pub fn applied(&mut self, index: u64, verdicts: Vec<Verdict>) {
        if self
            .snapshot_ahead()
            .is_some_and(|snapshot| index < snapshot)
        {
            // The core took position and members from the snapshot when it came.
            return;
        }
        self.installing = None;
        for verdict in verdicts {
            let expected = self.changes.pop_front();
            assert_eq!(
                expected,
                Some(verdict.index),
                "verdicts must name the committed conf changes"
            );
            assert!(verdict.index <= index, "verdict about an unapplied entry");
            if let Some(change) = verdict.accepted {
                self.execute(&change);
            }
        }
        assert!(
            self.changes.front().is_none_or(|&change| change > index),
            "conf change applied without a verdict"
        );
        self.raw.advance_apply_to(index);
        self.shrink_log();
        self.settle();
    }

    fn execute(&mut self, change: &ConfChange) {
        if change.action == ConfChangeAction::UpdateNode {
            return;
        }
        let expected = conf::apply_conf_change(&self.conf_state(), change)
            .unwrap_or_else(|error| panic!("accepted conf change {change:?}: {error}"));
        self.raw
            .apply_conf_change(change)
            .unwrap_or_else(|error| panic!("accepted conf change {change:?}: {error}"));
        assert_eq!(
            self.conf_state(),
            expected,
            "the core executed {change:?} differently"
        );
        self.step_down_if_removed();
        let view_members = self.conf_state();
        self.raw.mut_store().retain_offers(|id| {
            view_members.voters.contains(&id) || view_members.learners.contains(&id)
        });
    }

    /// Rule R3: the core would stay leader, and fail on its missing progress.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader
            && !raft.promotable()
            && !Rule::R3StepDownOnRemoval.broken(&self.config)
        {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// Asks for an index that a linearizable read must wait for; it comes out as
    /// [`Ready::reads`] or [`Ready::reads_aborted`] with this `ctx`. The caller gives up at its own
    /// deadline; a late answer does no harm.
    pub fn read(&mut self, ctx: u64) -> Result<(), ReadError> {
        if self.raw.raft.leader_id == raft::INVALID_ID {
            return Err(ReadError::NoLeader);
        }
        if self.reads.add(ctx) {
            Ok(())
        } else {
            Err(ReadError::Full)
        }
    }

    /// The index a linearizable read must wait for, if this member can tell without asking anybody:
    /// it leads, is the only voter and has committed in its term.
    pub fn read_index_now(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        let alone = raft.state == StateRole::Leader && self.is_sole_voter();
        (alone && raft.commit_to_current_term()).then_some(raft.raft_log.committed)
    }

    /// The last send to this member failed, or its connection broke.
    pub fn unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
        self.settle();
    }

    /// Hands leadership to `id` once its log is complete. Gives up after an election timeout. Has no
    /// effect on members that know no leader.
    pub fn transfer(&mut self, id: u64) {
        self.raw.transfer_leader(id);
        self.settle();
    }

    /// Starts an election now, if this member may.
    pub fn campaign(&mut self) {
        if self.raw.raft.promotable() && self.may_campaign() {
            // Refused while a committed conf change is not applied; the next timeout tries again.
            let _ = self.raw.campaign();
        }
        self.settle();
    }

    /// Forgets the leader, after proof from elsewhere that it is gone: this member then grants votes
    /// and campaigns without waiting for the rest of the timeout. Leaders are not affected.
    pub fn forget_leader(&mut self) {
        if self.raw.raft.state == StateRole::Follower {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        self.settle();
    }

    /// Answers a fetch. `entries` begin at its `from`; empty if they are gone by now.
    pub fn fetched(&mut self, id: u64, entries: Vec<Entry>) {
        for waiter in self.raw.mut_store().answer(id, entries) {
            self.raw.on_entries_fetched(waiter);
        }
        self.raw.mut_store().forget_answer();
        self.settle();
    }

    /// The log on disk begins at `first_index` now; everything before is in a durable state.
    ///
    /// # Panics
    ///
    /// If entries above the applied index were dropped.
    pub fn trimmed(&mut self, first_index: u64) {
        let applied = self.raw.raft.raft_log.applied;
        let store = self.raw.mut_store();
        // A snapshot on its way to the disk is ahead of everything that is trimmed meanwhile.
        assert!(
            first_index <= store.first().max(applied + 1),
            "the log begins at {first_index} but only {applied} is applied"
        );
        store.trim(first_index);
    }

    /// A snapshot is ready to travel to `to`: the next message the core sends there will announce
    /// it. It goes out with the member's next sign of life.
    pub fn offer_snapshot(&mut self, to: u64, snapshot: SnapshotMeta) {
        if self.raw.raft.prs().get(to).is_some() {
            self.raw.mut_store().offer(to, snapshot);
        }
    }

    /// Sending the announced snapshot to `to` ended. To be called for every `MsgSnapshot` that came
    /// out of [`Ready::messages`].
    pub fn snapshot_sent(&mut self, to: u64, success: bool) {
        let status = if success {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(to, status);
        self.settle();
    }

    /// What is to be done now, or `None`.
    pub fn ready(&mut self) -> Option<Ready> {
        self.start_reads();
        let mut ready = if self.raw.has_ready() {
            self.core_ready()
        } else {
            Ready::default()
        };
        ready.messages.append(&mut self.outbox);
        ready.reads = self.reads.take_done();
        ready.reads_aborted = self.reads.take_aborted();
        ready.fetches = self.raw.mut_store().take_fetches();
        ready.snapshots_wanted = self.raw.mut_store().take_snapshots_wanted();
        let soft = self.soft_state();
        if soft != self.soft {
            self.soft = soft;
            ready.soft = Some(soft);
        }
        (!ready.is_empty()).then_some(ready)
    }

    /// Whether [`Replica::ready`] would return something.
    pub fn has_ready(&self) -> bool {
        self.raw.has_ready()
            || !self.outbox.is_empty()
            || self.reads_may_start()
            || self.reads.has_results()
            || self.raw.store().has_wants()
            || self.soft_state() != self.soft
    }

    fn start_reads(&mut self) {
        if !self.reads_may_start() {
            return;
        }
        match self.reads.start(self.ticks) {
            Start::Core(context) => self.raw.read_index(context.to_vec()),
            Start::Ask(message) => self.outbox.push(message),
        }
    }

    fn reads_may_start(&self) -> bool {
        let raft = &self.raw.raft;
        // The core silently drops reads of a leader that has not committed in its term; hold them.
        self.reads.wants_round()
            && (raft.state != StateRole::Leader || raft.commit_to_current_term())
    }

    /// Takes one ready from the core and makes the log view hold what it hands out.
    fn core_ready(&mut self) -> Ready {
        let mut core = self.raw.ready();
        self.last_number = core.number();
        let snapshot =
            (!core.snapshot().is_empty()).then(|| SnapshotMeta::from_pb(core.snapshot().clone()));
        let entries = core.take_entries();
        let committed = core.take_committed_entries();
        let mut messages = core.take_messages();
        messages.append(&mut core.take_persisted_messages());
        for state in core.take_read_states() {
            let answers = self.reads.finish(&state.request_ctx, state.index);
            self.outbox.extend(answers);
        }
        let hard_state = HardState::from_pb(&self.raw.raft.hard_state());

        let store = self.raw.mut_store();
        if let Some(snapshot) = &snapshot {
            store.install(snapshot);
            self.installing = Some(snapshot.index);
            // Conf changes given out before are part of the snapshot now.
            self.changes.clear();
        }
        store.append(&entries);
        self.raw.advance_append_async(core);

        let mut ready = Ready {
            committed: committed.into_iter().map(Entry::from_pb).collect(),
            ..Ready::default()
        };
        self.changes.extend(
            ready
                .committed
                .iter()
                .filter(|entry| entry.kind == EntryKind::ConfChange)
                .map(|entry| entry.index),
        );
        self.order(&mut ready, hard_state, snapshot, entries, messages);
        ready
    }

    /// Decides what must be written and which messages wait for it.
    fn order(
        &mut self,
        ready: &mut Ready,
        hard_state: HardState,
        snapshot: Option<SnapshotMeta>,
        entries: Vec<pb::Entry>,
        messages: Vec<Message>,
    ) {
        let ballot = Ballot {
            term: hard_state.term,
            vote: hard_state.vote,
        };
        let ballot_changed = ballot.term != self.written.term || ballot.vote != self.written.vote;
        // A commit index alone is not worth a write (rule R7): it rides with the next one.
        let writes = ballot_changed || snapshot.is_some() || !entries.is_empty();
        let (now, later): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .partition(|message| self.may_overtake(message));
        ready.messages = now;
        if !writes && self.in_flight.is_empty() {
            ready.messages.extend(later);
            self.core_persisted();
            return;
        }
        if !writes && later.is_empty() {
            // Counts as durable together with the task before it.
            return;
        }
        let changed = writes && hard_state != self.written;
        if changed {
            self.written = hard_state;
        }
        self.in_flight.push_back(self.last_number);
        ready.wal = Some(WalTask::new(
            self.last_number,
            Ballot {
                term: self.written.term,
                vote: self.written.vote,
            },
            snapshot,
            entries.into_iter().map(Entry::from_pb).collect(),
            changed.then_some(hard_state),
            later,
        ));
    }

    /// Whether a message may leave before what was written up to now is durable.
    fn may_overtake(&self, message: &Message) -> bool {
        match message.msg_type {
            // Rule R6. They promise nothing about this member's disk: a heartbeat response says that
            // the leader was followed at this moment, the others carry requests of clients.
            MessageType::MsgHeartbeatResponse
            | MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgTransferLeader => true,
            // A leader replicates while it writes: it counts itself only when its write is done. Its
            // term must be durable before, which votes from others imply, but the sole voter of a
            // group with learners has none: after a crash it could lead the same term again and give
            // the learners other entries under the same index and term.
            MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgSnapshot
            | MessageType::MsgTimeoutNow => {
                message.term <= self.durable.term || Rule::R9DurableTermFirst.broken(&self.config)
            }
            MessageType::MsgRequestVote => Rule::R6OnlyHarmlessOvertake.broken(&self.config),
            // Acknowledgements and votes promise what must not be forgotten (rule R5).
            _ => Rule::R5DurableFirst.broken(&self.config),
        }
    }

    /// Whether an election may begin, as far as the state of this member's disk is concerned.
    fn may_campaign(&self) -> bool {
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader {
            return true;
        }
        // The core looks at entries above the applied index before it campaigns; while a snapshot is
        // being installed the log begins after them.
        if self.installing.is_some() && !Rule::R10NoElectionWhileInstalling.broken(&self.config) {
            return false;
        }
        // Rule R4: a sole voter wins at once, and a leader must have nothing in flight.
        let in_flight = raft.raft_log.last_index() != raft.raft_log.persisted;
        !(in_flight && self.is_sole_voter()) || Rule::R4SoleVoterWaits.broken(&self.config)
    }

    /// To be called after everything that steps the core.
    fn settle(&mut self) {
        // Rule R8: the core draws a new timeout from the thread's generator on every change of role.
        if !Rule::R8SeededElections.broken(&self.config) {
            let timeout = self.election_timeout();
            self.raw.raft.set_randomized_election_timeout(timeout);
        }
        self.reads.set_epoch(self.soft_state());
    }

    fn election_timeout(&self) -> usize {
        let raft = &self.raw.raft;
        let words = [
            self.config.seed,
            raft.id,
            self.config.boot_nonce,
            raft.term,
            raft.state as u64,
        ];
        let hash = words
            .into_iter()
            .fold(0x9e37_79b9_7f4a_7c15, |hash, word| mix(hash ^ word));
        let spread = self.config.election_ticks as u64;
        self.config.election_ticks + (hash % spread) as usize
    }

    /// Forgets entries in memory that no follower is likely to need.
    fn shrink_log(&mut self) {
        let raft = &self.raw.raft;
        let applied = raft.raft_log.applied;
        let mut keep_from = applied + 1;
        if raft.prs().iter().any(|(&id, _)| id != raft.id) {
            let slowest = raft
                .prs()
                .iter()
                .filter(|&(&id, progress)| {
                    id != raft.id && raft.state == StateRole::Leader && progress.recent_active
                })
                .map(|(_, progress)| progress.matched)
                .min();
            let needed = slowest.unwrap_or(applied).min(applied) + 1;
            keep_from = needed.saturating_sub(self.config.catch_up_entries);
        }
        let bytes_max = self.config.catch_up_bytes;
        self.raw.mut_store().shrink(applied, keep_from, bytes_max);
    }

    fn soft_state(&self) -> SoftState {
        let raft = &self.raw.raft;
        SoftState {
            leader: raft.leader_id,
            role: raft.state.into(),
            term: raft.term,
        }
    }

    fn is_sole_voter(&self) -> bool {
        // A voter of a group of one is its voter.
        self.raw.raft.promotable() && self.raw.raft.prs().is_singleton()
    }

    /// The index of the snapshot that replaced the log while the state machine has not followed.
    pub fn snapshot_ahead(&self) -> Option<u64> {
        let received = self.raw.snap().map(|snapshot| snapshot.metadata.index);
        received.or(self.installing)
    }

    /// The configuration in force, with ids in ascending order.
    pub fn conf_state(&self) -> ConfState {
        let mut conf_state = self.raw.raft.prs().conf().to_conf_state();
        conf::sort(&mut conf_state);
        conf_state
    }

    /// The hard state as of now; its commit index may be newer than any task.
    pub fn hard_state(&self) -> HardState {
        HardState::from_pb(&self.raw.raft.hard_state())
    }

    /// The term of the entry at `index`, if the log or its start knows it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        let log = &self.raw.raft.raft_log;
        let known = index + 1 >= log.first_index() && index <= log.last_index();
        if known { log.term(index).ok() } else { None }
    }

    /// Figures about this replica.
    pub fn status(&self) -> Status {
        let raft: &Raft<LogView> = &self.raw.raft;
        let store = raft.store();
        Status {
            id: raft.id,
            term: raft.term,
            vote: raft.vote,
            leader: raft.leader_id,
            role: Role::from(raft.state),
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            persisted: raft.raft_log.persisted,
            last_index: raft.raft_log.last_index(),
            first_index: store.first(),
            is_voter: raft.promotable(),
            is_sole_voter: self.is_sole_voter(),
            pending_conf_change: raft.has_pending_conf(),
            transferee: raft.lead_transferee.unwrap_or(0),
            log_bytes: store.bytes(),
            log_entries: store.len(),
        }
    }

    /// How a leader sees the other members, in the order of their ids; empty on others.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let learners = raft.prs().conf().learners();
        let mut peers: Vec<PeerProgress> = raft
            .prs()
            .iter()
            .filter(|&(&id, _)| id != raft.id)
            .map(|(&id, progress)| PeerProgress {
                id,
                matched: progress.matched,
                next: progress.next_idx,
                recently_active: progress.recent_active,
                in_snapshot: progress.state == raft::ProgressState::Snapshot,
                is_learner: learners.contains(&id),
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }
}

fn core_config(config: &Config, applied: u64) -> raft::Config {
    raft::Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: config.append_bytes_max,
        max_inflight_msgs: config.inflight_max,
        check_quorum: true,
        pre_vote: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        skip_bcast_commit: false,
        // Rule R1: merging checks continuity only against messages that hold entries.
        batch_append: Rule::R1NoMerging.broken(config),
        priority: 0,
        max_uncommitted_size: config.uncommitted_bytes_max,
        max_committed_size_per_ready: config.committed_bytes_max,
        ..raft::Config::default()
    }
}

/// What the core takes for granted about its start, and would panic over.
fn check_boot(boot: &Boot) -> Result<(), BootError> {
    if boot.first_index == 0 {
        return Err(BootError::Config("the log begins at index 0".into()));
    }
    let mut expected = boot.first_index;
    let mut term = boot.previous_term;
    for entry in &boot.entries {
        if entry.index != expected {
            return Err(BootError::Gap {
                expected,
                found: entry.index,
            });
        }
        if entry.term < term || entry.term == 0 {
            return Err(BootError::Terms { index: entry.index });
        }
        term = entry.term;
        expected += 1;
    }
    let last_index = expected - 1;
    if term > boot.hard_state.term {
        return Err(BootError::Terms { index: last_index });
    }
    if boot.applied + 1 < boot.first_index {
        return Err(BootError::StateTooOld {
            applied: boot.applied,
            first_index: boot.first_index,
        });
    }
    let needed = boot.applied.max(boot.hard_state.commit);
    if needed > last_index {
        return Err(BootError::LostEntries { needed, last_index });
    }
    check_conf_state(&boot.conf_state)
}

fn check_conf_state(conf_state: &ConfState) -> Result<(), BootError> {
    if !conf_state.voters_outgoing.is_empty() || !conf_state.learners_next.is_empty() {
        return Err(BootError::ConfState("joint consensus is not used".into()));
    }
    let mut ids: Vec<u64> = conf_state
        .voters
        .iter()
        .chain(&conf_state.learners)
        .copied()
        .collect();
    ids.sort_unstable();
    if ids.first() == Some(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(BootError::ConfState(format!(
            "member ids are 0 or repeated: {conf_state:?}"
        )));
    }
    Ok(())
}

fn check_proposal(message: &Message) -> Result<(), ReceiveError> {
    if message.entries.is_empty() {
        return Err(ReceiveError::Malformed("a proposal of nothing"));
    }
    let joint = pb::EntryType::EntryConfChangeV2;
    if message.entries.iter().any(|e| e.entry_type == joint) {
        return Err(ReceiveError::Malformed("a joint conf change"));
    }
    Ok(())
}

fn check_append(message: &Message) -> Result<(), ReceiveError> {
    let mut index = message.index;
    let mut term = message.log_term;
    // The core takes 0 for the term of every index outside of its log.
    if (index == 0) != (term == 0) || term > message.term {
        return Err(ReceiveError::Malformed("an impossible previous entry"));
    }
    for entry in &message.entries {
        index += 1;
        if entry.index != index {
            return Err(ReceiveError::Malformed("entries with a gap"));
        }
        if entry.term < term || entry.term == 0 || entry.term > message.term {
            return Err(ReceiveError::Malformed("entries with impossible terms"));
        }
        if entry.entry_type == pb::EntryType::EntryConfChangeV2 {
            return Err(ReceiveError::Malformed("a joint conf change"));
        }
        term = entry.term;
    }
    Ok(())
}

/// The finalizer of splitmix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests;
