//! The disk's state and the one place where it changes.

use crate::SECTOR;
use crate::fault::{Fault, Op, OpKind, down, eio, enospc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;

/// A change, as one step.
#[derive(Clone)]
pub(crate) enum Mutation {
    Create {
        path: String,
        ino: u64,
    },
    Rename {
        from: String,
        to: String,
        ino: u64,
    },
    Unlink {
        path: String,
        ino: u64,
    },
    SyncDir {
        dir: String,
    },
    Write {
        ino: u64,
        offset: u64,
        data: Vec<u8>,
        dsync: bool,
    },
    SyncData {
        ino: u64,
    },
    SetLen {
        ino: u64,
        len: u64,
    },
}

/// A change of a file's data that is not durable yet.
#[derive(Clone)]
pub(crate) enum FileEffect {
    Size(usize),
    /// Sector number and its whole content after the write, cut at the end of the file.
    Sector(usize, Vec<u8>),
}

/// A change of names that is not durable yet.
#[derive(Clone)]
pub(crate) enum NameEffect {
    Link { path: String, ino: u64 },
    Unlink { path: String, ino: u64 },
    Rename { from: String, to: String, ino: u64 },
}

#[derive(Clone, Default)]
pub(crate) struct Inode {
    pub durable: Vec<u8>,
    pub cache: Vec<u8>,
    pub pending: Vec<FileEffect>,
    /// A sync failed: the cache may hold bytes that are neither durable nor pending.
    pub lost: bool,
}

pub(crate) type Chooser = Box<dyn FnMut(&Op) -> Option<Fault> + Send>;

pub(crate) struct State {
    pub rng: StdRng,
    pub capacity: Option<u64>,
    pub inodes: BTreeMap<u64, Inode>,
    pub next_ino: u64,
    pub names: BTreeMap<String, u64>,
    pub durable_names: BTreeMap<String, u64>,
    pub pending_names: Vec<NameEffect>,
    pub steps: u64,
    pub crash_at: Option<u64>,
    /// Set while the disk is down: the step that was under way, if any.
    pub down: Option<Option<Mutation>>,
    pub planned: BTreeMap<u64, Fault>,
    pub chooser: Option<Chooser>,
    pub trace: Option<Vec<String>>,
}

/// The directory part of a name.
pub(crate) fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl NameEffect {
    pub fn touches(&self, dir: &str) -> bool {
        match self {
            NameEffect::Link { path, .. } | NameEffect::Unlink { path, .. } => dir_of(path) == dir,
            NameEffect::Rename { from, to, .. } => dir_of(from) == dir || dir_of(to) == dir,
        }
    }

    /// Applies to a table of names. An entry is removed only if it still means the same file: with
    /// an arbitrary subset kept, it may not.
    pub fn apply(&self, names: &mut BTreeMap<String, u64>) {
        let remove = |names: &mut BTreeMap<String, u64>, path: &str, ino: u64| {
            if names.get(path) == Some(&ino) {
                names.remove(path);
            }
        };
        match self {
            NameEffect::Link { path, ino } => {
                names.insert(path.clone(), *ino);
            }
            NameEffect::Unlink { path, ino } => remove(names, path, *ino),
            NameEffect::Rename { from, to, ino } => {
                remove(names, from, *ino);
                names.insert(to.clone(), *ino);
            }
        }
    }
}

impl FileEffect {
    pub fn apply(&self, image: &mut Vec<u8>) {
        match self {
            FileEffect::Size(len) => image.resize(*len, 0),
            FileEffect::Sector(no, data) => overwrite(image, no * SECTOR, data),
        }
    }
}

/// Copies `data` into `image`; what lies beyond the end is dropped.
fn overwrite(image: &mut [u8], offset: usize, data: &[u8]) {
    if offset < image.len() {
        let n = data.len().min(image.len() - offset);
        image[offset..offset + n].copy_from_slice(&data[..n]);
    }
}

/// Drops what a waiting sector holds beyond a length that has become durable since.
fn cut(effect: &mut FileEffect, len: usize) {
    if let FileEffect::Sector(no, data) = effect {
        data.truncate(len.saturating_sub(*no * SECTOR));
    }
}

impl Inode {
    /// What the medium holds once the pending effects are written.
    pub fn medium(&self) -> Vec<u8> {
        let mut image = self.durable.clone();
        self.pending.iter().for_each(|e| e.apply(&mut image));
        image
    }

    pub fn poke(&mut self, offset: usize, bytes: &[u8]) {
        overwrite(&mut self.durable, offset, bytes);
        overwrite(&mut self.cache, offset, bytes);
    }

    fn write(&mut self, offset: usize, data: &[u8], dsync: bool) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len();
        if end > self.cache.len() {
            self.cache.resize(end, 0);
            self.pending.push(FileEffect::Size(end));
        }
        self.cache[offset..end].copy_from_slice(data);
        let sectors = offset / SECTOR..end.div_ceil(SECTOR);
        if dsync {
            self.make_durable(sectors);
        } else {
            for no in sectors {
                let content = self.sector(no);
                self.pending.push(FileEffect::Sector(no, content));
            }
        }
    }

    fn sector(&self, no: usize) -> Vec<u8> {
        let end = ((no + 1) * SECTOR).min(self.cache.len());
        self.cache[no * SECTOR..end].to_vec()
    }

    /// The inode is one record, so a durable write that needs it makes the whole length durable;
    /// of the data, only its own sectors.
    fn make_durable(&mut self, sectors: std::ops::Range<usize>) {
        let mut waiting = Vec::new();
        for effect in std::mem::take(&mut self.pending) {
            match effect {
                FileEffect::Size(len) => {
                    self.durable.resize(len, 0);
                    waiting.iter_mut().for_each(|e| cut(e, len));
                }
                FileEffect::Sector(no, _) if sectors.contains(&no) => {}
                other => waiting.push(other),
            }
        }
        self.pending = waiting;
        for no in sectors {
            let content = self.sector(no);
            overwrite(&mut self.durable, no * SECTOR, &content);
        }
    }

    fn sync(&mut self) {
        for effect in std::mem::take(&mut self.pending) {
            effect.apply(&mut self.durable);
        }
    }

    /// A sync that failed: each effect reached the medium or never will.
    fn fail_sync(&mut self, rng: &mut StdRng) {
        for effect in std::mem::take(&mut self.pending) {
            if rng.r#gen() {
                effect.apply(&mut self.durable);
            }
        }
        self.lost = true;
    }

    fn set_len(&mut self, len: usize) {
        self.cache.resize(len, 0);
        self.pending.push(FileEffect::Size(len));
    }
}

impl State {
    pub fn new(seed: u64) -> State {
        State {
            rng: StdRng::seed_from_u64(seed),
            capacity: None,
            inodes: BTreeMap::new(),
            next_ino: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            steps: 0,
            crash_at: None,
            down: None,
            planned: BTreeMap::new(),
            chooser: None,
            trace: None,
        }
    }

    pub fn fork(&self) -> State {
        State {
            rng: self.rng.clone(),
            capacity: self.capacity,
            inodes: self.inodes.clone(),
            next_ino: self.next_ino,
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            pending_names: self.pending_names.clone(),
            steps: self.steps,
            ..State::new(0)
        }
    }

    pub fn check_up(&self) -> io::Result<()> {
        if self.down.is_some() {
            return Err(down());
        }
        Ok(())
    }

    pub fn take_down(&mut self, under_way: Option<Mutation>) {
        if self.down.is_none() {
            self.down = Some(under_way);
        }
    }

    pub fn lookup(&self, path: &str) -> io::Result<u64> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path))
    }

    pub fn list(&self, dir: &str) -> Vec<String> {
        let dir = dir.trim_end_matches('/');
        self.names
            .keys()
            .filter(|path| dir_of(path) == dir)
            .map(|path| path[path.rfind('/').map_or(0, |at| at + 1)..].to_string())
            .collect()
    }

    pub fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .map(|ino| self.inodes[ino].cache.len() as u64)
            .sum()
    }

    pub fn inode_mut(&mut self, ino: u64) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("handles name live inodes")
    }

    pub fn name_of(&self, ino: u64) -> String {
        self.names
            .iter()
            .find(|(_, i)| **i == ino)
            .map_or_else(|| format!("#{ino}"), |(name, _)| name.clone())
    }

    fn op(&self, mutation: &Mutation) -> Op {
        let (kind, path, offset, len) = match mutation {
            Mutation::Create { path, .. } => (OpKind::Create, path.clone(), 0, 0),
            Mutation::Rename { from, .. } => (OpKind::Rename, from.clone(), 0, 0),
            Mutation::Unlink { path, .. } => (OpKind::Unlink, path.clone(), 0, 0),
            Mutation::SyncDir { dir } => (OpKind::SyncDir, dir.clone(), 0, 0),
            Mutation::Write {
                ino,
                offset,
                data,
                dsync,
            } => {
                let kind = if *dsync {
                    OpKind::WriteDsync
                } else {
                    OpKind::Write
                };
                (kind, self.name_of(*ino), *offset, data.len())
            }
            Mutation::SyncData { ino } => (OpKind::SyncData, self.name_of(*ino), 0, 0),
            Mutation::SetLen { ino, len } => (OpKind::SetLen, self.name_of(*ino), *len, 0),
        };
        Op {
            step: self.steps,
            kind,
            path,
            offset,
            len,
        }
    }

    pub fn fault_of_read(&mut self, ino: u64, offset: u64, len: usize) -> Option<Fault> {
        self.chooser.as_ref()?;
        let op = Op {
            step: self.steps,
            kind: OpKind::Read,
            path: self.name_of(ino),
            offset,
            len,
        };
        self.chooser.as_mut().and_then(|choose| choose(&op))
    }

    /// Runs one step: counts it, crashes in it, lets it fail, or applies it. Returns the bytes
    /// written by a write, else 0.
    pub fn step(&mut self, mutation: Mutation) -> io::Result<usize> {
        self.check_up()?;
        self.steps += 1;
        let op = self.op(&mutation);
        let fault = self.planned.remove(&self.steps).or_else(|| {
            let choose = self.chooser.as_mut()?;
            choose(&op)
        });
        if self.trace.is_some() {
            self.record(&op, &mutation, fault);
        }
        if self.crash_at.is_some_and(|at| self.steps >= at) {
            self.take_down(Some(mutation));
            return Err(down());
        }
        match fault {
            None => self.apply_within_capacity(mutation),
            Some(fault) => self.apply_faulty(mutation, fault),
        }
    }

    fn record(&mut self, op: &Op, mutation: &Mutation, fault: Option<Fault>) {
        let mut line = match mutation {
            Mutation::Rename { to, .. } => format!("{:?} {} -> {to}", op.kind, op.path),
            Mutation::Write { .. } => {
                format!("{:?} {} {}+{}", op.kind, op.path, op.offset, op.len)
            }
            Mutation::SetLen { .. } => format!("{:?} {} {}", op.kind, op.path, op.offset),
            _ => format!("{:?} {}", op.kind, op.path),
        };
        if let Some(fault) = fault {
            line.push_str(&format!(" ! {fault:?}"));
        }
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    fn apply_faulty(&mut self, mut mutation: Mutation, fault: Fault) -> io::Result<usize> {
        match (fault, &mut mutation) {
            (Fault::Enospc, _) => return Err(enospc()),
            (Fault::Eio, Mutation::SyncData { ino }) => {
                let mut rng = self.rng.clone();
                self.inode_mut(*ino).fail_sync(&mut rng);
                self.rng = rng;
                return Err(eio());
            }
            (Fault::Eio, Mutation::SyncDir { dir }) => {
                self.fail_sync_dir(&dir.clone());
                return Err(eio());
            }
            (
                Fault::Eio,
                Mutation::Write {
                    ino,
                    offset,
                    data,
                    dsync: true,
                },
            ) => {
                // Any sectors of it may have landed; none of it may be counted on. The cache shows
                // the new bytes, as after a failed sync.
                let (ino, offset, data) = (*ino, *offset as usize, std::mem::take(data));
                let mut rng = self.rng.clone();
                let inode = self.inode_mut(ino);
                let earlier = std::mem::take(&mut inode.pending);
                inode.write(offset, &data, false);
                inode.fail_sync(&mut rng);
                inode.pending = earlier;
                self.rng = rng;
                return Err(eio());
            }
            (Fault::Eio, _) => return Err(eio()),
            (Fault::Short(n), Mutation::Write { data, .. }) => data.truncate(n),
            (Fault::Misdirected(to), Mutation::Write { offset, .. }) => *offset = to,
            (Fault::Short(_) | Fault::Misdirected(_), _) => {}
            (Fault::Lost, Mutation::Write { data, .. }) => return Ok(data.len()),
            (Fault::Lost, Mutation::Create { .. }) => {} // a handle must mean something
            (Fault::Lost, _) => return Ok(0),
        }
        self.apply_within_capacity(mutation)
    }

    fn fail_sync_dir(&mut self, dir: &str) {
        for effect in std::mem::take(&mut self.pending_names) {
            if !effect.touches(dir) {
                self.pending_names.push(effect);
            } else if self.rng.r#gen() {
                effect.apply(&mut self.durable_names);
            }
        }
    }

    fn apply_within_capacity(&mut self, mut mutation: Mutation) -> io::Result<usize> {
        if let Some(capacity) = self.capacity {
            let room = capacity.saturating_sub(self.used_bytes());
            match &mut mutation {
                Mutation::Write {
                    ino, offset, data, ..
                } => {
                    let len = self.inodes[ino].cache.len() as u64;
                    let fits = (len + room).saturating_sub(*offset).min(data.len() as u64);
                    if fits == 0 && !data.is_empty() {
                        return Err(enospc());
                    }
                    data.truncate(fits as usize);
                }
                Mutation::SetLen { ino, len }
                    if *len > self.inodes[ino].cache.len() as u64 + room =>
                {
                    return Err(enospc());
                }
                _ => {}
            }
        }
        let written = match &mutation {
            Mutation::Write { data, .. } => data.len(),
            _ => 0,
        };
        self.apply(mutation);
        Ok(written)
    }

    /// The effect of a step that completed.
    pub fn apply(&mut self, mutation: Mutation) {
        match mutation {
            Mutation::Create { path, ino } => {
                self.next_ino = self.next_ino.max(ino + 1);
                self.inodes.insert(ino, Inode::default());
                self.rename_now(NameEffect::Link { path, ino });
            }
            Mutation::Rename { from, to, ino } => {
                self.rename_now(NameEffect::Rename { from, to, ino })
            }
            Mutation::Unlink { path, ino } => self.rename_now(NameEffect::Unlink { path, ino }),
            Mutation::SyncDir { dir } => {
                for effect in std::mem::take(&mut self.pending_names) {
                    if effect.touches(&dir) {
                        effect.apply(&mut self.durable_names);
                    } else {
                        self.pending_names.push(effect);
                    }
                }
            }
            Mutation::Write {
                ino,
                offset,
                data,
                dsync,
            } => self.inode_mut(ino).write(offset as usize, &data, dsync),
            Mutation::SyncData { ino } => self.inode_mut(ino).sync(),
            Mutation::SetLen { ino, len } => self.inode_mut(ino).set_len(len as usize),
        }
    }

    fn rename_now(&mut self, effect: NameEffect) {
        effect.apply(&mut self.names);
        self.pending_names.push(effect);
    }
}
