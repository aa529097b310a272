//! Random runs on the simulated disk, each with one kind of trouble: 1,000 seeds, or as many as `QUORATE_SEEDS` says.
//!
//! A run changes, publishes, writes checkpoints, holds old states, shrinks the file, crashes, is opened again and goes
//! on. What it must come to depends on the trouble:
//!
//! - **Honest** (crashes, errors, a full disk, short calls): acknowledged ⊆ recovered ⊆ submitted. What opens is a
//!   checkpoint that was begun, not older than the newest reported durable, and whole.
//! - **Dishonest** (rot, stale sectors, lost and misdirected writes that report success): the store may refuse, or fail
//!   a read, and names the file then; it never shows anything but a checkpoint that was begun.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, Fault, OpKind};

use super::crash::{Story, change, examine, sim_options};
use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Crash,
    WriteError,
    SyncError,
    ReadError,
    Full,
    Short,
    Rot,
    StaleSector,
    LostWrite,
    Misdirected,
}

const ALL: [Trouble; 10] = [
    Trouble::Crash,
    Trouble::WriteError,
    Trouble::SyncError,
    Trouble::ReadError,
    Trouble::Full,
    Trouble::Short,
    Trouble::Rot,
    Trouble::StaleSector,
    Trouble::LostWrite,
    Trouble::Misdirected,
];

impl Trouble {
    fn honest(self) -> bool {
        !matches!(
            self,
            Trouble::Rot | Trouble::StaleSector | Trouble::LostWrite | Trouble::Misdirected
        )
    }
}

const FILE: &str = "store/tree.qdb";

/// Lets the disk misbehave from now on, at random.
fn trouble(disk: &Disk, kind: Trouble, rng: &mut StdRng) {
    let mut rng = StdRng::seed_from_u64(rng.r#gen());
    match kind {
        Trouble::Crash => disk.crash_at(disk.steps() + rng.gen_range(1..90)),
        Trouble::Full => disk.set_capacity(Some(disk.used_bytes() + rng.gen_range(0..20_000))),
        Trouble::Rot | Trouble::StaleSector => {}
        _ => disk.fail_when(move |op| {
            let writes = matches!(op.kind, OpKind::Write | OpKind::WriteDsync);
            let (hit, fault) = match kind {
                Trouble::WriteError => (writes, Fault::Eio),
                Trouble::SyncError => (op.kind == OpKind::SyncData, Fault::Eio),
                Trouble::ReadError => (op.kind == OpKind::Read, Fault::Eio),
                Trouble::Short => {
                    let short = Fault::Short(rng.gen_range(1..op.len.max(2)));
                    let one_in_two = rng.r#gen();
                    return (op.len > 1 && one_in_two).then_some(short);
                }
                Trouble::LostWrite => (writes, Fault::Lost),
                _ => (writes, Fault::Misdirected(rng.gen_range(256..800) * 512)),
            };
            (hit && rng.gen_ratio(1, 25)).then_some(fault)
        }),
    }
}

/// Opens the store and works on it for a while, from the state that `story` says it is in. Ends early when something
/// fails.
fn live(disk: &Disk, rng: &mut StdRng, story: &mut Story, kind: Trouble, early: bool) {
    let (options, _) = sim_options(disk);
    let Ok((store, mut writer, recovered)) = Store::open(options) else {
        return;
    };
    lock(&store.shared.alloc).reuse_early = early;
    let mut model = story.begun[&recovered.checkpoint].clone();
    story.durable = story.durable.max(Some(recovered.checkpoint));
    let mut held = Vec::new();
    for round in 0..rng.gen_range(2..6) {
        if change(&mut writer, rng, &mut model, round).is_err() {
            return;
        }
        let snapshot = writer.publish();
        if rng.gen_ratio(1, 3) {
            held.push((snapshot, model.clone()));
        } else {
            drop(snapshot);
            if rng.gen_ratio(1, 3) {
                held.clear();
            }
        }
        if rng.gen_ratio(1, 4) && writer.request_shrink().is_err() {
            return;
        }
        // What a shrink moved belongs to the state, too.
        writer.publish();
        let Ok(number) = writer.checkpoint(vec![round as u8; 3]) else {
            return;
        };
        story.begun.insert(number, model.clone());
        match store.wait_durable(number) {
            Ok(()) => story.durable = Some(number),
            Err(Error::NoSpace { .. }) if kind == Trouble::Full => {
                if rng.gen_bool(0.5) {
                    disk.set_capacity(None);
                }
            }
            Err(_) => return,
        }
        for (snapshot, model) in &held {
            if kind.honest() && kind != Trouble::ReadError && !disk.is_down() {
                assert_eq!(
                    contents(snapshot, TreeId::K),
                    *model,
                    "a held state changed"
                );
            }
        }
    }
}

/// What a disk that lied may show.
fn examine_damaged(disk: &Disk, story: &Story) -> std::result::Result<bool, String> {
    let (options, _) = sim_options(disk);
    let named = |error: Error| match error {
        error if error.to_string().contains("tree.qdb") => Ok(false),
        error => Err(format!("an error that does not name the file: {error}")),
    };
    let (store, mut writer, recovered) = match Store::open(options) {
        Ok(opened) => opened,
        Err(error) => return named(error),
    };
    let snapshot = writer.publish();
    let mut found = Model::new();
    let mut cursor = snapshot.cursor(TreeId::K);
    let mut more = match cursor.seek(b"") {
        Ok(more) => more,
        Err(error) => return named(error),
    };
    while more {
        if cursor.flags() & BY_RUN != 0 {
            let run = RunRef::from_bytes(cursor.value().try_into().unwrap());
            match snapshot.read_run(run) {
                Ok(bytes) if bytes.len() == 700 && bytes.iter().all(|b| *b == bytes[0]) => {}
                Ok(_) => return Err("a run has other contents".into()),
                Err(error) => return named(error),
            }
        }
        found.insert(
            cursor.key().to_vec(),
            (cursor.flags(), cursor.value().to_vec()),
        );
        more = match cursor.next() {
            Ok(more) => more,
            Err(error) => return named(error),
        };
    }
    drop(store);
    match story.begun.get(&recovered.checkpoint) {
        Some(model) if *model == found => Ok(true),
        Some(_) => Err(format!(
            "opens at {} with other contents",
            recovered.checkpoint
        )),
        None => Err(format!("opens at {}, never begun", recovered.checkpoint)),
    }
}

/// Damages the file at rest.
fn damage(disk: &Disk, kind: Trouble, rng: &mut StdRng) {
    let Ok(bytes) = disk.contents(FILE) else {
        return;
    };
    for _ in 0..rng.gen_range(1..4) {
        // Usually where something is.
        let at = (0..20)
            .map(|_| rng.gen_range(0..bytes.len()))
            .find(|at| bytes[*at] != 0)
            .unwrap_or(0);
        let sector = at / 512 * 512;
        let end = bytes.len().min(sector + 512);
        match kind {
            Trouble::Rot => disk.flip_bit(FILE, at as u64, rng.gen_range(0..8)).unwrap(),
            // Another sector's bytes, as an old write or one that went astray leaves them.
            _ => {
                let from = rng.gen_range(0..bytes.len() / 512) * 512;
                let from = &bytes[from..(from + end - sector).min(bytes.len())];
                disk.poke(FILE, sector as u64, from).unwrap();
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    opened: AtomicU64,
    refused: AtomicU64,
    crashes: AtomicU64,
}

/// One run; what is wrong with it.
fn run(seed: u64, kind: Trouble, early: bool, tally: &Tally) -> std::result::Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = Disk::new(seed);
    let mut story = Story::default();
    story.begun.insert(0, Model::new());
    // A life without trouble first, often, so that there is something to lose.
    if rng.gen_bool(0.8) {
        live(&disk, &mut rng, &mut story, Trouble::Crash, early);
    }
    for _ in 0..3 {
        trouble(&disk, kind, &mut rng);
        live(&disk, &mut rng, &mut story, kind, early);
        if kind == Trouble::ReadError || kind == Trouble::Short {
            // Nothing was lost: the same program goes on.
            disk.clear_faults();
        }
        disk.power_off();
        let images: Vec<_> = disk.process_images().collect();
        let image = match rng.gen_range(0..3) {
            0 => images[rng.gen_range(0..images.len())].clone(),
            _ => disk.random_power_image(rng.r#gen()),
        };
        disk = image.disk;
        disk.set_capacity(None);
        if matches!(kind, Trouble::Rot | Trouble::StaleSector) {
            damage(&disk, kind, &mut rng);
        }
        let story_of = |what: String| format!("{kind:?}, {}: {what}", image.story);
        if !kind.honest() {
            let sound = examine_damaged(&disk, &story).map_err(story_of)?;
            let count = if sound { &tally.opened } else { &tally.refused };
            count.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        tally.crashes.fetch_add(1, Ordering::Relaxed);
        let number = examine(&disk, &story).map_err(story_of)?;
        // What comes now comes behind this; what was begun and is lost may not come back.
        story.begun.retain(|begun, _| *begun <= number);
        story.durable = Some(number);
    }
    Ok(())
}

fn seeds() -> u64 {
    std::env::var("QUORATE_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1000)
}

#[test]
fn random_runs_with_every_trouble_keep_what_was_promised() {
    let tally = Tally::default();
    let next = AtomicU64::new(0);
    let failed: Mutex<Vec<String>> = Mutex::default();
    let all = seeds();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= all {
                        return;
                    }
                    let kind = ALL[(seed % ALL.len() as u64) as usize];
                    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        run(seed, kind, false, &tally)
                    }));
                    match ran {
                        Ok(Ok(())) => {}
                        Ok(Err(what)) => {
                            failed.lock().unwrap().push(format!("seed {seed}: {what}"))
                        }
                        Err(_) => failed
                            .lock()
                            .unwrap()
                            .push(format!("seed {seed}: {kind:?} panicked")),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    if all >= 1000 {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (opened, refused) = (get(&tally.opened), get(&tally.refused));
        assert!(opened > 40 && refused > 40, "{opened} {refused}");
        assert!(get(&tally.crashes) > 1500);
    }
}

/// Negative control: units that are used again one checkpoint early. While the newest meta page is sound nobody
/// notices, so it rots.
#[test]
fn early_reuse_is_noticed_by_random_runs() {
    let broken = |early: bool| {
        (0..300u64).any(|seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let disk = Disk::new(seed);
            let mut story = Story::default();
            story.begun.insert(0, Model::new());
            live(&disk, &mut rng, &mut story, Trouble::Crash, early);
            // A later checkpoint writes its pages and does not get to its meta page.
            let (mut syncs, stop) = (0, 2 * rng.gen_range(2..4));
            disk.fail_when(move |op| {
                syncs += u32::from(op.kind == OpKind::SyncData);
                (syncs >= stop && op.kind == OpKind::Write).then_some(Fault::Eio)
            });
            live(&disk, &mut rng, &mut story, Trouble::Crash, early);
            disk.power_off();
            let after = disk.after_power_loss(&simdisk::Survivors::All);
            let bytes = after.contents(FILE).unwrap_or_default();
            let durable = story.durable.unwrap_or(0).to_le_bytes();
            let Some(newest) = (0..2u64).find(|slot| {
                let at = *slot as usize * 65536 + 40;
                bytes.get(at..at + 8) == Some(&durable[..])
            }) else {
                return false;
            };
            if after.flip_bit(FILE, newest * 65536 + 100, 3).is_err() {
                return false;
            }
            // The checkpoint before the newest must open, or nothing was ever durable.
            story.durable = Some(0);
            let begun = story.begun.len() > 3;
            if !begun {
                return false;
            }
            let examined = examine(&after, &story);
            if let (Err(what), false) = (&examined, early) {
                panic!("seed {seed}: {what}");
            }
            examined.is_err()
        })
    };
    assert!(!broken(false));
    assert!(broken(true));
}
