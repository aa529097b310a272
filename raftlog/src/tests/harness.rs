//! A log beside something dumber: the list of records it was given.
//!
//! The oracle: what is recovered equals the fold of some prefix of the records, a prefix that holds
//! at least everything that was reported durable and at most everything that was appended.

use crate::options::Sabotage;
use crate::{Appended, Backend, Durable, Entry, HardState, Log, OpenError, Options, Recovered};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use simdisk::Disk;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Entry(Entry),
    HardState(HardState),
    Snapshot(u64, u64),
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub entries: BTreeMap<u64, Entry>,
    pub last: u64,
    pub hard_state: HardState,
    pub snapshot: Option<(u64, u64)>,
}

impl Content {
    fn say(&mut self, said: &Said) {
        match said {
            Said::Entry(e) => {
                self.entries.split_off(&e.index);
                self.entries.insert(e.index, e.clone());
                self.last = e.index;
            }
            Said::HardState(hs) => self.hard_state = *hs,
            Said::Snapshot(index, term) => {
                self.entries.clear();
                self.last = *index;
                self.snapshot = Some((*index, *term));
            }
        }
    }
}

/// The records of an append, in the order that the log promises.
pub fn said_by(before: HardState, entries: &[Entry], hs: Option<HardState>) -> Vec<Said> {
    let hs = hs.unwrap_or(before);
    let promise = HardState {
        commit: before.commit,
        ..hs
    };
    let mut all = Vec::new();
    if promise != before {
        all.push(Said::HardState(promise));
    }
    all.extend(entries.iter().cloned().map(Said::Entry));
    if hs != promise {
        all.push(Said::HardState(hs));
    }
    all
}

pub struct Harness {
    pub disk: Disk,
    pub segment_bytes: u64,
    pub sabotage: Sabotage,
    pub openings: u64,
    pub identity: [u64; 2],
    /// Everything said since the beginning, without what crashes have cost.
    pub history: Vec<Said>,
    /// How much of it was reported durable.
    pub durable: usize,
    /// Marks handed out since opening and how much of the history they stand for.
    marks: Vec<(Appended, usize)>,
    /// The highest trim asked for.
    pub keep_from: u64,
    pub log: Option<Log>,
    pub fatal: Arc<Mutex<Option<String>>>,
    content: Content,
}

impl Harness {
    pub fn new(disk: Disk, segment_bytes: u64) -> Harness {
        Harness {
            disk,
            segment_bytes,
            sabotage: Sabotage::None,
            openings: 0,
            identity: [0xc1, 0x0e],
            history: Vec::new(),
            durable: 0,
            marks: Vec::new(),
            keep_from: 1,
            log: None,
            fatal: Arc::default(),
            content: Content::default(),
        }
    }

    pub fn options(&self) -> Options {
        let fatal = self.fatal.clone();
        Options {
            segment_bytes: self.segment_bytes,
            backend: Backend::Sim(self.disk.clone()),
            identity: self.identity,
            fatal: Some(Arc::new(move |line: &str| {
                fatal.lock().unwrap().get_or_insert(line.to_string());
            })),
            inline_background: true,
            id_seed: Some(self.openings * 1_000_003),
            sabotage: self.sabotage,
            ..Options::new("log")
        }
    }

    /// Opens the log and compares what it holds with the history. A disk that went down meanwhile
    /// is no violation.
    pub fn open(&mut self) -> Result<Recovered, String> {
        self.log = None;
        self.openings += 1;
        self.fatal = Arc::default();
        let (log, recovered) = match Log::open(self.options()) {
            Ok(opened) => opened,
            Err(OpenError::Io { .. }) if self.disk.is_down() => return Err("down".into()),
            Err(e @ OpenError::Io { .. }) => return Err(format!("no violation: {e}")),
            Err(e) => return Err(format!("violation: {e}")),
        };
        self.log = Some(log);
        self.compare(&recovered)?;
        Ok(recovered)
    }

    fn compare(&mut self, recovered: &Recovered) -> Result<(), String> {
        let log = self.log.as_ref().expect("just opened");
        let mut found = Content {
            last: recovered.last_index,
            hard_state: recovered.hard_state,
            snapshot: recovered.snapshot,
            ..Content::default()
        };
        if recovered.first_index <= recovered.last_index {
            let entries = log
                .entries(recovered.first_index, recovered.last_index + 1, usize::MAX)
                .map_err(|e| format!("violation: recovered entries cannot be read: {e}"))?;
            found.entries = entries.into_iter().map(|e| (e.index, e)).collect();
        }
        let mut content = Content::default();
        let mut matched = None;
        for n in 0..=self.history.len() {
            if n > 0 {
                content.say(&self.history[n - 1]);
            }
            if n < self.durable {
                continue;
            }
            // What was trimmed may or may not be there still.
            let mut expected = content.clone();
            expected.entries.retain(|i, _| *i >= recovered.first_index);
            if expected == found {
                matched = Some((n, content.clone()));
            }
        }
        let Some((n, content)) = matched else {
            return Err(format!(
                "violation: recovered {recovered:?} (entries {:?}), which is no prefix of at \
                 least {} of the {} records said; durable ones end in {:?}",
                found.entries.keys().collect::<Vec<_>>(),
                self.durable,
                self.history.len(),
                &self.history[..self.durable].last()
            ));
        };
        let lowest = content.snapshot.map_or(1, |s| s.0 + 1).max(self.keep_from);
        if recovered.first_index > lowest {
            return Err(format!(
                "violation: the log starts at {} though only what is below {lowest} was trimmed",
                recovered.first_index
            ));
        }
        for e in found.entries.values() {
            if log.term(e.index) != Some(e.term) {
                return Err(format!("violation: term of {} is wrong", e.index));
            }
        }
        self.history.truncate(n);
        self.durable = n;
        self.marks.clear();
        self.content = content;
        Ok(())
    }

    pub fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("open")
    }

    pub fn append(&mut self, entries: &[Entry], hs: Option<HardState>) -> bool {
        let said = said_by(self.content.hard_state, entries, hs);
        match self.log().append(entries, hs) {
            Ok(mark) => {
                self.note(said, mark);
                true
            }
            Err(crate::AppendError::NoSpace | crate::AppendError::Poisoned) => false,
            Err(e) => panic!("append: {e}"),
        }
    }

    pub fn snapshot_mark(&mut self, index: u64, term: u64) -> bool {
        match self.log().snapshot_mark(index, term) {
            Ok(mark) => {
                self.note(vec![Said::Snapshot(index, term)], mark);
                true
            }
            Err(_) => false,
        }
    }

    fn note(&mut self, said: Vec<Said>, mark: Appended) {
        for s in said {
            self.content.say(&s);
            self.history.push(s);
        }
        self.marks.push((mark, self.history.len()));
        let durable = self.log().durable();
        self.saw(durable);
    }

    pub fn saw(&mut self, durable: Durable) {
        for (mark, len) in &self.marks {
            if durable.covers(*mark) {
                self.durable = self.durable.max(*len);
            }
        }
    }

    pub fn trim(&mut self, keep_from: u64) {
        self.keep_from = self.keep_from.max(keep_from);
        self.log().trim(keep_from);
    }

    pub fn wait(&mut self) {
        let durable = self.log().wait();
        self.saw(durable);
    }

    pub fn sync(&mut self) {
        let durable = self.log().sync();
        self.saw(durable);
    }

    pub fn is_poisoned(&self) -> bool {
        self.fatal.lock().unwrap().is_some()
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// One random step of a raft-like caller.
    pub fn random_step(&mut self, rng: &mut StdRng) {
        let hs = self.content.hard_state;
        let last = self.content.last;
        match rng.gen_range(0..100) {
            0..=39 => {
                let entries = random_entries(rng, last + 1, hs.term.max(1), self.segment_bytes);
                let new_last = entries.last().map_or(last, |e| e.index);
                let commit = match rng.gen_range(0..3) {
                    0 => rng.gen_range(hs.commit..=new_last.max(hs.commit)),
                    _ => hs.commit,
                };
                self.append(&entries, Some(HardState { commit, ..hs }));
            }
            40..=47 => {
                // A new term, perhaps a new leader that replaces uncommitted entries.
                let term = hs.term + 1;
                let from = rng.gen_range(hs.commit + 1..=last + 1);
                let from = from.max(self.log().first_index());
                let entries = random_entries(rng, from, term, self.segment_bytes);
                let vote = rng.gen_range(0..4);
                self.append(&entries, Some(HardState { term, vote, ..hs }));
            }
            48..=53 => {
                let term = hs.term + rng.gen_range(0..2);
                let vote = rng.gen_range(0..4);
                self.append(&[], Some(HardState { term, vote, ..hs }));
            }
            54..=58 => {
                let commit = rng.gen_range(hs.commit..=last.max(hs.commit));
                self.append(&[], Some(HardState { commit, ..hs }));
            }
            59..=70 => self.log().flush(),
            71..=74 => {
                let durable = self.log().poll();
                self.saw(durable);
            }
            75..=82 => self.wait(),
            83..=87 => self.sync(),
            88..=89 => self.log().idle(),
            90..=92 => {
                let keep = rng.gen_range(1..=hs.commit + 1);
                self.trim(keep);
            }
            93 => {
                // Not below an earlier mark, though the commit index may still be.
                let lowest = hs.commit.max(self.log().first_index() - 1);
                let index = lowest + rng.gen_range(0..20);
                if index > 0 {
                    self.snapshot_mark(index, hs.term.max(1));
                }
            }
            _ => {
                self.log().background_step();
            }
        }
    }
}

pub fn random_entries(rng: &mut StdRng, from: u64, term: u64, segment_bytes: u64) -> Vec<Entry> {
    let count = *[1, 1, 1, 2, 5].get(rng.gen_range(0..5)).unwrap();
    (0..count)
        .map(|i| {
            let len = match rng.gen_range(0..10) {
                0 => 0,
                1 => rng.gen_range(0..segment_bytes as usize / 4),
                2 => rng.gen_range(3900..4200),
                _ => rng.gen_range(1..600),
            };
            let mut data = vec![0; len];
            rng.fill(&mut data[..]);
            Entry {
                index: from + i,
                term,
                kind: rng.gen_range(0..3),
                data: Bytes::from(data),
            }
        })
        .collect()
}

/// An entry whose data tells its index and term.
pub fn entry(index: u64, term: u64, len: usize) -> Entry {
    let mut data = format!("{index}/{term} ").into_bytes();
    data.resize(len.max(data.len()), b'.');
    Entry {
        index,
        term,
        kind: 0,
        data: Bytes::from(data),
    }
}
