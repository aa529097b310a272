//! The disks a crash can leave behind.

use crate::state::{FileEffect, Inode, Mutation, NameEffect, State};
use crate::{Disk, SECTOR};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fmt;

/// Up to this many pending effects every subset is tried.
pub const EXHAUSTIVE: usize = 8;
/// How many random subsets are tried beyond that.
pub const RANDOM_SUBSETS: usize = 64;

/// What a pending effect would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EffectKind {
    /// A file's length becomes this many bytes.
    Size(u64),
    /// The sector at this byte offset gets new content.
    Sector(u64),
    Link,
    Unlink,
    Rename {
        to: String,
    },
}

/// One effect that a power loss may keep or drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The name it concerns.
    pub path: String,
    pub kind: EffectKind,
}

/// Which of the pending effects, numbered as by [`Disk::pending`], a power loss keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survivors {
    None,
    All,
    Only(usize),
    AllBut(usize),
    /// Bit i says whether effect i survives; for up to 64 effects.
    Mask(u64),
    /// Each survives with probability 1/2, decided by this seed.
    Random(u64),
}

impl Survivors {
    fn choose(&self, n: usize) -> Vec<bool> {
        let mut rng = match self {
            Survivors::Random(seed) => StdRng::seed_from_u64(*seed),
            _ => StdRng::seed_from_u64(0),
        };
        (0..n)
            .map(|i| match self {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Only(k) => i == *k,
                Survivors::AllBut(k) => i != *k,
                Survivors::Mask(mask) => mask >> i & 1 == 1,
                Survivors::Random(_) => rng.r#gen(),
            })
            .collect()
    }
}

/// A disk as found after a crash, and what that crash kept.
#[derive(Clone)]
pub struct Image {
    pub disk: Disk,
    /// For messages: what happened to the call under way and the pending effects.
    pub story: String,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story)
    }
}

impl Disk {
    /// What a power loss now might keep or drop, including the effects of the call under way.
    pub fn pending(&self) -> Vec<Effect> {
        let state = self.with_call_under_way();
        let mut effects = Vec::new();
        for (ino, inode) in &state.inodes {
            let path = state.name_of(*ino);
            effects.extend(inode.pending.iter().map(|effect| Effect {
                path: path.clone(),
                kind: match effect {
                    FileEffect::Size(len) => EffectKind::Size(*len as u64),
                    FileEffect::Sector(no, _) => EffectKind::Sector((no * SECTOR) as u64),
                },
            }));
        }
        effects.extend(state.pending_names.iter().map(|effect| match effect {
            NameEffect::Link { path, .. } => Effect {
                path: path.clone(),
                kind: EffectKind::Link,
            },
            NameEffect::Unlink { path, .. } => Effect {
                path: path.clone(),
                kind: EffectKind::Unlink,
            },
            NameEffect::Rename { from, to, .. } => Effect {
                path: from.clone(),
                kind: EffectKind::Rename { to: to.clone() },
            },
        }));
        effects
    }

    /// The disk after a power loss that keeps `survivors`. This disk is not changed. Everything
    /// on the new one is durable, and it is up.
    pub fn after_power_loss(&self, survivors: &Survivors) -> Disk {
        let state = self.with_call_under_way();
        let n = state.pending_names.len()
            + state
                .inodes
                .values()
                .map(|i| i.pending.len())
                .sum::<usize>();
        let mut keep = survivors.choose(n).into_iter();
        let mut keep = || keep.next().expect("one decision per effect");
        let mut images = BTreeMap::new();
        for (ino, inode) in &state.inodes {
            let mut image = inode.durable.clone();
            for effect in &inode.pending {
                if keep() {
                    effect.apply(&mut image);
                }
            }
            images.insert(*ino, image);
        }
        let mut names = state.durable_names.clone();
        for effect in &state.pending_names {
            if keep() {
                effect.apply(&mut names);
            }
        }
        let mut after = state.fork();
        after.inodes = images
            .into_iter()
            .filter(|(ino, _)| names.values().any(|i| i == ino))
            .map(|(ino, image)| {
                let inode = Inode {
                    durable: image.clone(),
                    cache: image,
                    ..Inode::default()
                };
                (ino, inode)
            })
            .collect();
        after.names = names.clone();
        after.durable_names = names;
        after.pending_names.clear();
        Disk::from_state(after)
    }

    /// Every disk that a power loss now may leave, by the rule in the crate's head.
    pub fn power_images(&self) -> impl Iterator<Item = Image> + use<> {
        let n = self.pending().len();
        let seed = self.lock().rng.clone().r#gen::<u64>();
        let choices: Vec<Survivors> = if n <= EXHAUSTIVE {
            (0..1u64 << n).map(Survivors::Mask).collect()
        } else {
            [Survivors::None, Survivors::All]
                .into_iter()
                .chain((0..n).map(Survivors::Only))
                .chain((0..n).map(Survivors::AllBut))
                .chain((0..RANDOM_SUBSETS as u64).map(|i| Survivors::Random(seed.wrapping_add(i))))
                .collect()
        };
        let disk = self.clone();
        choices.into_iter().map(move |survivors| Image {
            disk: disk.after_power_loss(&survivors),
            story: format!("power loss, {n} pending, kept {survivors:?}"),
        })
    }

    /// One disk that a power loss now may leave, chosen by `seed`: usually a random subset,
    /// sometimes nothing or everything.
    pub fn random_power_image(&self, seed: u64) -> Image {
        let survivors = match seed % 8 {
            0 => Survivors::None,
            1 => Survivors::All,
            _ => Survivors::Random(seed),
        };
        Image {
            disk: self.after_power_loss(&survivors),
            story: format!("power loss, kept {survivors:?}"),
        }
    }

    /// Every disk that the death of the process may leave: the call under way not done, done, or
    /// for a write done up to each sector boundary (at most eight of them, spread evenly).
    pub fn process_images(&self) -> impl Iterator<Item = Image> + use<> {
        let state = self.lock();
        let mut found = vec![(state.fork(), "process death, call not done".to_string())];
        if let Some(Some(call)) = state.down.clone() {
            if let Mutation::Write { offset, data, .. } = &call {
                let first = SECTOR - *offset as usize % SECTOR;
                let cuts: Vec<usize> = (first..data.len()).step_by(SECTOR).collect();
                for cut in cuts.iter().step_by(cuts.len().div_ceil(8).max(1)) {
                    let mut after = state.fork();
                    after.apply(without_sync(call.clone(), *cut));
                    found.push((after, format!("process death, write cut at {cut}")));
                }
            }
            let mut after = state.fork();
            after.apply(call);
            found.push((after, "process death, call done".to_string()));
        }
        drop(state);
        found.into_iter().map(|(state, story)| Image {
            disk: Disk::from_state(state),
            story,
        })
    }

    /// The state with the call under way turned into pending effects.
    fn with_call_under_way(&self) -> State {
        let state = self.lock();
        let mut copy = state.fork();
        match state.down.clone() {
            // An unfinished sync has made nothing certain: its effects stay pending.
            Some(Some(Mutation::SyncData { .. } | Mutation::SyncDir { .. }))
            | Some(None)
            | None => {}
            Some(Some(call)) => copy.apply(without_sync(call, usize::MAX)),
        }
        copy
    }
}

/// The call with at most `cut` bytes written and, if it was a durable write, not durable yet.
fn without_sync(call: Mutation, cut: usize) -> Mutation {
    match call {
        Mutation::Write {
            ino,
            offset,
            mut data,
            ..
        } => {
            data.truncate(cut);
            Mutation::Write {
                ino,
                offset,
                data,
                dsync: false,
            }
        }
        other => other,
    }
}
