//! A member: what is on its disk, and what runs while it is up.

use super::check::Checker;
use super::rng::Rng;
use crate::conf::apply_conf_change;
use crate::config::{Boot, Config};
use crate::ready::WalTask;
use crate::replica::Replica;
use crate::types::{ConfChange, ConfState, Entry, EntryKind, HardState, SnapshotMeta, Verdict};
use bytes::Bytes;
use raft_proto::Wire;
use std::collections::VecDeque;

/// A state machine that remembers what it was fed as a chain of digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) applied: u64,
    pub(crate) term: u64,
    pub(crate) chain: u64,
    pub(crate) conf_state: ConfState,
}

impl State {
    /// Applies an entry and says what becomes of a conf change. A function of the entry and the state
    /// alone.
    fn apply(&mut self, entry: &Entry, bootstrapped: u64) -> Option<Verdict> {
        self.applied = entry.index;
        self.term = entry.term;
        for &byte in entry.data.iter() {
            self.chain = (self.chain.rotate_left(5) ^ u64::from(byte)).wrapping_mul(31);
        }
        if entry.kind == EntryKind::Normal {
            return None;
        }
        let change = ConfChange::decode(entry.data.clone()).expect("written by a replica");
        let next = apply_conf_change(&self.conf_state, &change);
        let refused = entry.index > bootstrapped && entry.index % 7 == 3;
        let accepted = match next {
            Ok(next) if !refused => {
                self.conf_state = next;
                Some(change)
            }
            _ => None,
        };
        Some(Verdict {
            index: entry.index,
            accepted,
        })
    }

    pub(crate) fn to_snapshot(&self) -> SnapshotMeta {
        SnapshotMeta {
            index: self.applied,
            term: self.term,
            conf_state: self.conf_state.clone(),
            data: Bytes::copy_from_slice(&self.chain.to_be_bytes()),
        }
    }

    fn from_snapshot(snapshot: &SnapshotMeta) -> State {
        State {
            applied: snapshot.index,
            term: snapshot.term,
            chain: u64::from_be_bytes(snapshot.data.as_ref().try_into().expect("eight bytes")),
            conf_state: snapshot.conf_state.clone(),
        }
    }
}

/// What survives a crash.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) first_index: u64,
    previous_term: u64,
    pub(crate) entries: Vec<Entry>,
    snapshot: Option<SnapshotMeta>,
    checkpoint: State,
}

impl Disk {
    pub(crate) fn new(boot: Option<Boot>) -> Disk {
        let boot = boot.unwrap_or(Boot {
            first_index: 1,
            ..Boot::default()
        });
        Disk {
            hard_state: boot.hard_state,
            first_index: boot.first_index,
            previous_term: boot.previous_term,
            entries: boot.entries,
            snapshot: None,
            checkpoint: State {
                conf_state: boot.conf_state,
                ..State::default()
            },
        }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64 - 1
    }

    fn write(&mut self, task: &WalTask) {
        if let Some(snapshot) = &task.snapshot {
            self.first_index = snapshot.index + 1;
            self.previous_term = snapshot.term;
            self.entries.clear();
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(head) = task.entries.first() {
            assert!(
                self.first_index <= head.index && head.index <= self.last_index() + 1,
                "write at {} into {}..={}",
                head.index,
                self.first_index,
                self.last_index()
            );
            self.entries
                .truncate((head.index - self.first_index) as usize);
            self.entries.extend(task.entries.iter().cloned());
        }
        if let Some(state) = task.hard_state {
            assert!(state.term >= self.hard_state.term, "terms do not fall");
            self.hard_state = state;
        }
    }

    /// The state a boot begins with: the checkpoint, or a snapshot whose installation a crash cut.
    fn state(&self) -> State {
        match &self.snapshot {
            Some(snapshot) if snapshot.index > self.checkpoint.applied => {
                State::from_snapshot(snapshot)
            }
            _ => self.checkpoint.clone(),
        }
    }

    pub(crate) fn entries(&self, from: u64, to: u64, bytes_max: u64) -> Vec<Entry> {
        if from < self.first_index {
            return Vec::new();
        }
        let start = (from - self.first_index) as usize;
        let end = ((to - self.first_index) as usize).min(self.entries.len());
        let mut bytes = 0;
        self.entries[start.min(end)..end]
            .iter()
            .take_while(|entry| {
                let taken = bytes == 0 || bytes <= bytes_max;
                bytes += entry.data.len() as u64 + 1;
                taken
            })
            .cloned()
            .collect()
    }
}

/// Work of the state machine that is due at some step.
enum Work {
    Apply(Vec<Entry>),
    Install(SnapshotMeta),
}

/// A running member.
pub(crate) struct Live {
    pub(crate) replica: Replica,
    pub(crate) state: State,
    /// Tasks not yet being written.
    queue: VecDeque<WalTask>,
    /// Tasks of the write under way, and when it ends.
    flight: Option<(u64, VecDeque<WalTask>)>,
    work: VecDeque<(u64, Work)>,
}

/// What the world must do for a member after a turn.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) messages: Vec<crate::types::Message>,
    pub(crate) snapshots: u64,
    pub(crate) fetches: u64,
}

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) boot: u64,
    pub(crate) disk: Disk,
    pub(crate) live: Option<Live>,
    bootstrapped: u64,
}

/// How slow a member is, in steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) write_max: u64,
    pub(crate) apply_max: u64,
    pub(crate) install: u64,
}

impl Node {
    /// `bootstrapped` is the number of entries the cluster began with.
    pub(crate) fn new(id: u64, boot: Option<Boot>, bootstrapped: u64) -> Node {
        Node {
            id,
            boot: 0,
            disk: Disk::new(boot),
            live: None,
            bootstrapped,
        }
    }

    pub(crate) fn start(&mut self, mut config: Config) {
        self.boot += 1;
        config.boot_nonce = self.boot;
        let state = self.disk.state();
        let boot = Boot {
            hard_state: self.disk.hard_state,
            conf_state: state.conf_state.clone(),
            applied: state.applied,
            first_index: self.disk.first_index,
            previous_term: self.disk.previous_term,
            entries: self.disk.entries.clone(),
        };
        let replica = Replica::new(config, boot)
            .unwrap_or_else(|error| panic!("member {} does not start: {error}", self.id));
        self.live = Some(Live {
            replica,
            state,
            queue: VecDeque::new(),
            flight: None,
            work: VecDeque::new(),
        });
    }

    /// Stops at once. Of the write under way, and of those that wait, an arbitrary prefix is durable.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let Some(live) = self.live.take() else { return };
        let mut tasks: Vec<WalTask> = Vec::new();
        if let Some((_, flight)) = live.flight {
            tasks.extend(flight);
        }
        tasks.extend(live.queue);
        let kept = rng.below(tasks.len() as u64 + 1) as usize;
        for task in &tasks[..kept] {
            self.disk.write(task);
        }
    }

    /// Writes the state machine's state, which later starts begin with.
    pub(crate) fn checkpoint(&mut self) {
        if let Some(live) = &self.live {
            assert!(live.state.applied <= self.disk.last_index());
            self.disk.checkpoint = live.state.clone();
        }
    }

    /// Drops entries covered by the checkpoint, but the last `keep` of them.
    pub(crate) fn trim(&mut self, keep: u64) {
        let Some(live) = &mut self.live else { return };
        let first = (self.disk.checkpoint.applied + 1).saturating_sub(keep);
        if first <= self.disk.first_index {
            return;
        }
        let gone = (first - self.disk.first_index) as usize;
        self.disk.previous_term = self.disk.entries[gone - 1].term;
        self.disk.entries.drain(..gone);
        self.disk.first_index = first;
        live.replica.trimmed(first);
    }

    /// Ends a write and work of the state machine that are due.
    fn finish(&mut self, now: u64, pace: Pace, check: &mut Checker, turn: &mut Turn) {
        let Some(live) = &mut self.live else { return };
        if live.flight.as_ref().is_some_and(|&(due, _)| due <= now) {
            let (_, tasks) = live.flight.take().expect("just seen");
            // One write makes all tasks durable, in their order: what a later one takes back, a message
            // of an earlier one may still say, as if it had been slow.
            for task in tasks {
                self.disk.write(&task);
                let install = task.snapshot.clone();
                let (messages, persisted) = task.durable();
                for message in &messages {
                    check.sends(message, &self.disk);
                }
                turn.messages.extend(messages);
                live.replica.persisted(persisted);
                if let Some(snapshot) = install {
                    let due = now + pace.install;
                    live.work.push_back((due, Work::Install(snapshot)));
                }
            }
        }
        while live.work.front().is_some_and(|&(due, _)| due <= now) {
            let (_, work) = live.work.pop_front().expect("just seen");
            live.work(self.id, work, self.bootstrapped, check);
        }
    }

    /// Takes what the replica wants done and starts it.
    pub(crate) fn turn(
        &mut self,
        now: u64,
        pace: Pace,
        rng: &mut Rng,
        check: &mut Checker,
    ) -> Turn {
        let mut turn = Turn::default();
        self.finish(now, pace, check, &mut turn);
        let Some(live) = &mut self.live else {
            return turn;
        };
        while let Some(mut ready) = live.replica.ready() {
            for message in &ready.messages {
                check.sends(message, &self.disk);
            }
            turn.messages.append(&mut ready.messages);
            live.queue.extend(ready.wal);
            if !ready.committed.is_empty() {
                let due = now + rng.below(pace.apply_max + 1);
                let due = live.work.back().map_or(due, |&(last, _)| due.max(last));
                live.work.push_back((due, Work::Apply(ready.committed)));
            }
            for read in ready.reads {
                check.read_ends(self.id, self.boot, read);
            }
            for ctx in ready.reads_aborted {
                check.read_aborts(self.id, self.boot, ctx);
            }
            for fetch in ready.fetches {
                turn.fetches += 1;
                let entries = self.disk.entries(fetch.from, fetch.to, fetch.bytes_max);
                live.replica.fetched(fetch.id, entries);
            }
            for wanted in ready.snapshots_wanted {
                if live.state.applied >= wanted.index_min && live.state.applied > 0 {
                    turn.snapshots += 1;
                    let snapshot = live.state.to_snapshot();
                    live.replica.offer_snapshot(wanted.to, snapshot);
                }
            }
        }
        if live.flight.is_none() && !live.queue.is_empty() {
            let due = now + rng.below(pace.write_max + 1);
            live.flight = Some((due, std::mem::take(&mut live.queue)));
            // A write may end at once.
            self.finish(now, pace, check, &mut turn);
        }
        let live = self.live.as_ref().expect("still up");
        let status = live.replica.status();
        if status.role == crate::types::Role::Leader {
            check.leads(status.term, self.id);
        }
        check.commits(status.commit);
        assert!(status.applied <= status.persisted);
        assert!(status.persisted <= self.disk.last_index());
        turn
    }
}

impl Live {
    fn work(&mut self, id: u64, work: Work, bootstrapped: u64, check: &mut Checker) {
        match work {
            Work::Install(snapshot) => {
                // Entries that were applied meanwhile are not taken back.
                assert!(snapshot.index > self.state.applied, "an old snapshot");
                self.state = State::from_snapshot(&snapshot);
                self.replica.applied(snapshot.index, Vec::new());
            }
            Work::Apply(entries) => {
                let mut verdicts = Vec::new();
                for entry in &entries {
                    check.applies(id, self.state.applied, entry);
                    verdicts.extend(self.state.apply(entry, bootstrapped));
                }
                self.replica.applied(self.state.applied, verdicts);
            }
        }
        // From the moment it gets a snapshot the core is ahead of the state machine.
        let installs = |(_, work): &(u64, Work)| matches!(work, Work::Install(_));
        if self.replica.snapshot_ahead().is_none() && !self.work.iter().any(installs) {
            assert_eq!(
                self.replica.conf_state(),
                self.state.conf_state,
                "core and state machine disagree about the members"
            );
        }
    }
}
