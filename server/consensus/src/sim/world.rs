//! Members, the network between them, and what goes wrong.

use super::Outcome;
use super::check::Checker;
use super::node::{Node, Pace, Turn};
use super::rng::Rng;
use crate::bootstrap::{InitialMember, bootstrap};
use crate::config::Config;
use crate::rules::Rule;
use crate::types::{ConfChange, ConfChangeAction, Message, MessageType, Role};
use bytes::Bytes;
use raft_proto::Wire;
use std::collections::{BTreeMap, BTreeSet};

/// Steps per tick.
const TICK: u64 = 10;

/// What a seed picks.
#[derive(Clone, Debug)]
struct Swarm {
    voters: u64,
    spares: u64,
    steps: u64,
    loss: u64,
    repeat: u64,
    delay_max: u64,
    split: u64,
    crash: u64,
    propose: u64,
    read: u64,
    change: u64,
    transfer: u64,
    checkpoint: u64,
    trim: u64,
    idle: u64,
    pace: Pace,
    append_bytes_max: u64,
    catch_up_entries: u64,
    inflight_max: usize,
}

impl Swarm {
    fn new(rng: &mut Rng) -> Swarm {
        Swarm {
            voters: *rng.pick(&[1, 2, 3, 3, 3, 5]),
            spares: rng.below(3),
            steps: 3000,
            loss: *rng.pick(&[0, 0, 300, 1500]),
            repeat: *rng.pick(&[0, 300, 1500]),
            delay_max: *rng.pick(&[0, 5, 30, 120]),
            split: *rng.pick(&[0, 5, 30]),
            crash: *rng.pick(&[0, 10, 40]),
            propose: *rng.pick(&[300, 1500, 5000]),
            read: *rng.pick(&[100, 1000]),
            change: *rng.pick(&[0, 20, 100]),
            transfer: *rng.pick(&[0, 10]),
            checkpoint: *rng.pick(&[20, 200]),
            trim: *rng.pick(&[0, 20, 100]),
            idle: *rng.pick(&[0, 3000, 7000]),
            pace: Pace {
                write_max: *rng.pick(&[0, 5, 40, 300]),
                apply_max: *rng.pick(&[0, 10, 60]),
                install: *rng.pick(&[0, 50, 400]),
            },
            append_bytes_max: *rng.pick(&[0, 200, 1 << 20]),
            catch_up_entries: *rng.pick(&[0, 5, 1000]),
            inflight_max: *rng.pick(&[1, 4, 16]),
        }
    }
}

pub(crate) struct World {
    seed: u64,
    broken: Option<Rule>,
    rng: Rng,
    swarm: Swarm,
    faults: bool,
    now: u64,
    nodes: BTreeMap<u64, Node>,
    /// Encoded messages by arrival, then by order of sending.
    wire: BTreeMap<(u64, u64), Bytes>,
    sent: u64,
    /// Pairs that cannot reach each other, by direction.
    cut: BTreeSet<(u64, u64)>,
    check: Checker,
    next_value: u64,
    outcome: Outcome,
}

impl World {
    pub(crate) fn new(seed: u64, broken: Option<Rule>) -> World {
        let mut rng = Rng::new(seed);
        let swarm = Swarm::new(&mut rng);
        let members = (1..=swarm.voters)
            .map(|id| InitialMember {
                id,
                context: Bytes::from(format!("{{\"id\":{id}}}")),
            })
            .collect();
        let boot = bootstrap(members).expect("distinct members");
        let nodes = (1..=swarm.voters + swarm.spares)
            .map(|id| {
                let boot = (id <= swarm.voters).then(|| boot.clone());
                (id, Node::new(id, boot, swarm.voters))
            })
            .collect();
        World {
            seed,
            broken,
            rng,
            swarm,
            faults: true,
            now: 0,
            nodes,
            wire: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            check: Checker::default(),
            next_value: 0,
            outcome: Outcome::default(),
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            trace: self.check.trace(),
            committed: self.check.committed(),
            reads: self.check.reads_done,
            leaders: self.check.leaders(),
            ..self.outcome
        }
    }

    /// Faults first, then peace: the cluster must come to agree and to accept writes.
    pub(crate) fn run(&mut self) {
        for id in self.ids() {
            self.start(id);
        }
        for _ in 0..self.swarm.steps {
            self.misfortune();
            self.clients();
            self.step();
        }
        self.heal();
        for _ in 0..200 {
            for _ in 0..10 * TICK {
                self.step();
            }
            let value = self.value();
            if self.propose_to_leader(vec![value]) && self.agrees() {
                return;
            }
        }
        panic!("no agreement after the faults: {}", self.describe());
    }

    fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    fn config(&self, id: u64) -> Config {
        let mut config = Config::new(id, self.seed, 0);
        config.append_bytes_max = self.swarm.append_bytes_max;
        config.catch_up_entries = self.swarm.catch_up_entries;
        config.inflight_max = self.swarm.inflight_max;
        config.committed_bytes_max = 2000;
        config.broken = self.broken;
        config
    }

    fn start(&mut self, id: u64) {
        let config = self.config(id);
        let node = self.nodes.get_mut(&id).expect("known member");
        if node.live.is_none() {
            node.start(config);
        }
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("known member")
    }

    /// One step of time for everybody.
    fn step(&mut self) {
        self.now += 1;
        self.deliver();
        for id in self.ids() {
            let phase = id % TICK;
            if self.now % TICK == phase
                && let Some(live) = &mut self.node(id).live
            {
                live.replica.tick();
            }
            // A busy member looks at its inbox now and then, and finds more in it.
            if !(self.faults && self.rng.chance(self.swarm.idle)) {
                self.turn(id);
            }
        }
    }

    fn turn(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("known member");
        let pace = self.swarm.pace;
        let turn = node.turn(self.now, pace, &mut self.rng, &mut self.check);
        self.send_all(turn);
    }

    fn send_all(&mut self, turn: Turn) {
        self.outcome.snapshots += turn.snapshots;
        self.outcome.fetches += turn.fetches;
        for message in turn.messages {
            self.send(message);
        }
    }

    fn send(&mut self, message: Message) {
        let cut = self.cut.contains(&(message.from, message.to));
        let lost = cut || (self.faults && self.rng.chance(self.swarm.loss));
        if message.msg_type == MessageType::MsgSnapshot
            && let Some(live) = &mut self.node(message.from).live
        {
            live.replica.snapshot_sent(message.to, !lost);
        }
        if lost {
            if let Some(live) = &mut self.node(message.from).live {
                live.replica.unreachable(message.to);
            }
            return;
        }
        let bytes = Bytes::from(message.encode_to_vec());
        let copies = 1 + u64::from(self.faults && self.rng.chance(self.swarm.repeat));
        for copy in 0..copies {
            let delay_max = if self.faults { self.swarm.delay_max } else { 2 };
            // A repeated message may come much later, from a connection thought dead.
            let delay = self.rng.below(delay_max * (1 + 5 * copy) + 1);
            self.sent += 1;
            self.wire
                .insert((self.now + 1 + delay, self.sent), bytes.clone());
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let message = Message::decode(entry.remove()).expect("encoded by a member");
            if self.cut.contains(&(message.from, message.to)) {
                continue;
            }
            let to = message.to;
            if let Some(live) = &mut self.node(to).live {
                // Dropped messages are part of life; what matters is what follows from them.
                let _ = live.replica.receive(message);
            }
        }
    }

    fn misfortune(&mut self) {
        for id in self.ids() {
            let up = self.nodes[&id].live.is_some();
            let rate = if up { self.swarm.crash } else { 200 };
            if self.rng.chance(rate) {
                if up {
                    self.crash(id);
                } else {
                    self.start(id);
                }
            }
            if self.rng.chance(self.swarm.checkpoint) {
                self.node(id).checkpoint();
            }
            if self.rng.chance(self.swarm.trim) {
                let keep = self.rng.below(20);
                self.node(id).trim(keep);
            }
        }
        if self.rng.chance(self.swarm.split) {
            self.split();
        }
        if self.rng.chance(self.swarm.split) {
            self.cut.clear();
        }
    }

    fn crash(&mut self, id: u64) {
        self.outcome.crashes += 1;
        self.check.crashes(id);
        let node = self.nodes.get_mut(&id).expect("known member");
        node.crash(&mut self.rng);
    }

    /// Cuts the members in two, in one direction or both.
    fn split(&mut self) {
        let ids = self.ids();
        let left: Vec<u64> = ids
            .iter()
            .copied()
            .filter(|_| self.rng.chance(5000))
            .collect();
        let one_way = self.rng.chance(3000);
        for &a in &ids {
            for &b in &ids {
                let apart = left.contains(&a) != left.contains(&b);
                if apart && (!one_way || left.contains(&a)) {
                    self.cut.insert((a, b));
                }
            }
        }
    }

    fn clients(&mut self) {
        let ids = self.ids();
        if self.rng.chance(self.swarm.propose) {
            let count = 1 + self.rng.below(4);
            let values = (0..count).map(|_| self.value()).collect();
            let id = *self.rng.pick(&ids);
            if let Some(live) = &mut self.node(id).live {
                let _ = live.replica.propose(values);
            }
        }
        if self.rng.chance(self.swarm.read) {
            let id = *self.rng.pick(&ids);
            self.next_value += 1;
            let ctx = self.next_value;
            let boot = self.nodes[&id].boot;
            if let Some(live) = &mut self.node(id).live
                && live.replica.read(ctx).is_ok()
            {
                self.check.read_begins(id, boot, ctx);
            }
        }
        if self.rng.chance(self.swarm.change) {
            self.change();
        }
        if self.rng.chance(self.swarm.transfer) {
            let (from, to) = (*self.rng.pick(&ids), *self.rng.pick(&ids));
            if let Some(live) = &mut self.node(from).live {
                live.replica.transfer(to);
            }
        }
    }

    fn change(&mut self) {
        use ConfChangeAction::*;
        let ids = self.ids();
        let change = ConfChange {
            action: *self
                .rng
                .pick(&[AddNode, AddNode, AddLearnerNode, RemoveNode, UpdateNode]),
            node_id: *self.rng.pick(&ids),
            ..ConfChange::default()
        };
        let id = *self.rng.pick(&ids);
        if let Some(live) = &mut self.node(id).live
            && live.replica.propose_conf_change(&change).is_ok()
        {
            self.outcome.conf_changes += 1;
        }
    }

    fn value(&mut self) -> Bytes {
        self.next_value += 1;
        let mut value = self.next_value.to_be_bytes().to_vec();
        value.resize(8 + self.rng.below(60) as usize, 7);
        Bytes::from(value)
    }

    fn heal(&mut self) {
        self.faults = false;
        self.cut.clear();
        self.swarm.pace = Pace {
            write_max: 1,
            apply_max: 1,
            install: 1,
        };
        for id in self.ids() {
            self.start(id);
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| {
            let live = node.live.as_ref();
            live.is_some_and(|live| live.replica.status().role == Role::Leader)
        };
        let newest = |node: &&Node| node.live.as_ref().map(|live| live.replica.status().term);
        self.nodes
            .values()
            .filter(leads)
            .max_by_key(newest)
            .map(|node| node.id)
    }

    fn propose_to_leader(&mut self, values: Vec<Bytes>) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let live = self.node(leader).live.as_mut().expect("a leader is up");
        live.replica.propose(values).is_ok()
    }

    /// Whether every member of the leader's configuration applied the same, including all that any
    /// member ever applied before the leader's last proposal.
    fn agrees(&self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let live = self.nodes[&leader].live.as_ref().expect("a leader is up");
        if live.state.applied < self.check.applied() {
            return false;
        }
        let conf_state = &live.state.conf_state;
        conf_state
            .voters
            .iter()
            .chain(&conf_state.learners)
            .all(|id| {
                let other = self.nodes[id].live.as_ref();
                other.is_some_and(|other| other.state == live.state)
            })
    }

    fn describe(&self) -> String {
        let lines: Vec<String> = self
            .nodes
            .values()
            .map(|node| match &node.live {
                Some(live) => format!("{:?} {:?}", live.replica.status(), live.state),
                None => format!("{} is down", node.id),
            })
            .collect();
        lines.join("\n")
    }
}
