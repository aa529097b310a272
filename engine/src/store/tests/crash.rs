//! Crashes on the simulated disk: every step of small scripts, process death and power loss.
//!
//! Oracle: what opens is exactly the state of one checkpoint, not older than the newest that was reported durable and
//! not newer than the newest that was begun; the checker finds nothing; and the store goes on from there.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, Fault, OpKind};

use super::*;

pub(super) fn sim_options(disk: &Disk) -> (StoreOptions, Arc<Mutex<Vec<String>>>) {
    let (hook, lines) = fatal_lines();
    let options = StoreOptions {
        backend: IoBackend::Sim(disk.clone()),
        background: false,
        extend_bytes: 4096,
        reserve_bytes: 4096,
        on_fatal: Some(hook),
        ..options(Path::new("store"))
    };
    (options, lines)
}

/// What a script did before the disk went down.
#[derive(Default)]
pub(super) struct Story {
    /// State of each checkpoint begun, by number; 0 is the empty store.
    pub begun: BTreeMap<u64, Model>,
    /// The newest reported durable; none before the store was opened.
    pub durable: Option<u64>,
}

/// Breaks a rule on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sabotage {
    None,
    MetaFirst,
}

/// Some rounds of changes, each ended by a checkpoint. Ends early when the disk goes down.
fn script(disk: &Disk, seed: u64, rounds: u64, sabotage: Sabotage) -> Story {
    let mut story = Story::default();
    story.begun.insert(0, Model::new());
    let (options, _) = sim_options(disk);
    let Ok((store, mut writer, _)) = Store::open(options) else {
        return story;
    };
    story.durable = Some(0);
    store.shared.meta_first.store(
        sabotage == Sabotage::MetaFirst,
        std::sync::atomic::Ordering::Relaxed,
    );
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::new();
    for round in 0..rounds {
        if change(&mut writer, &mut rng, &mut model, round).is_err() {
            return story;
        }
        writer.publish();
        // Changes behind the published state are no part of the checkpoint.
        if writer
            .insert(TreeId::K, b"unpublished", LIVE, &[round as u8])
            .is_err()
        {
            return story;
        }
        if round == 2 {
            writer.request_shrink().unwrap();
        }
        let number = writer.checkpoint(vec![round as u8; 3]).unwrap_or(0);
        if number == 0 {
            return story;
        }
        story.begun.insert(number, model.clone());
        model.insert(b"unpublished".to_vec(), (LIVE, vec![round as u8]));
        if store.wait_durable(number).is_err() {
            return story;
        }
        story.durable = Some(number);
    }
    story
}

pub(super) fn change(
    writer: &mut StoreWriter,
    rng: &mut StdRng,
    model: &mut Model,
    round: u64,
) -> Result<()> {
    for _ in 0..12 {
        let key = vec![b'k', rng.gen_range(0..30)];
        if rng.gen_ratio(1, 3) {
            if let Some((flags, value)) = model.remove(&key)
                && flags & BY_RUN != 0
            {
                writer.free_run(RunRef::from_bytes(value.as_slice().try_into().unwrap()));
            }
            writer.remove(TreeId::K, &key)?;
            continue;
        }
        if let Some((flags, value)) = model.get(&key)
            && flags & BY_RUN != 0
        {
            writer.free_run(RunRef::from_bytes(value.as_slice().try_into().unwrap()));
        }
        let (flags, value) = if rng.gen_ratio(1, 6) {
            let run = writer.write_run(
                RunKind::Value,
                &key,
                [0; 16],
                Bytes::from(vec![round as u8; 700]),
            )?;
            (LIVE | BY_RUN, run.to_bytes().to_vec())
        } else {
            (LIVE, vec![round as u8; rng.gen_range(0..100)])
        };
        writer.insert(TreeId::K, &key, flags, &value)?;
        model.insert(key, (flags, value));
    }
    Ok(())
}

/// Opens a disk as found after a crash and holds it against the story; the checkpoint it opened at.
pub(super) fn examine(disk: &Disk, story: &Story) -> std::result::Result<u64, String> {
    let (options, _) = sim_options(disk);
    let (store, mut writer, recovered) =
        Store::open(options).map_err(|error| format!("does not open: {error}"))?;
    let number = recovered.checkpoint;
    if number < story.durable.unwrap_or(0) {
        return Err(format!(
            "opens at {number}, but {:?} was durable",
            story.durable
        ));
    }
    let model = story
        .begun
        .get(&number)
        .ok_or_else(|| format!("opens at {number}, which was never begun"))?;
    let snapshot = writer.publish();
    store
        .check(&mut runs_by_flag)
        .map_err(|error| format!("check: {error}"))?;
    if contents(&snapshot, TreeId::K) != *model {
        return Err(format!("opens at {number} with other contents"));
    }
    Ok(number)
}

/// After a crash: change, checkpoint, lose power again, and everything still holds.
fn go_on(disk: &Disk, story: &Story, number: u64) -> std::result::Result<(), String> {
    let (options, _) = sim_options(disk);
    let (store, mut writer, _) =
        Store::open(options).map_err(|error| format!("second open: {error}"))?;
    let mut model = story.begun[&number].clone();
    let mut next = Story::default();
    for round in 0..2 {
        let key = [b'n', round];
        writer
            .insert(TreeId::K, &key, LIVE, &[round; 90])
            .map_err(|error| error.to_string())?;
        model.insert(key.to_vec(), (LIVE, vec![round; 90]));
        writer.publish();
        let number = writer
            .checkpoint(Vec::new())
            .map_err(|error| error.to_string())?;
        store
            .wait_durable(number)
            .map_err(|error| error.to_string())?;
        next.durable = Some(number);
        next.begun.insert(number, model.clone());
    }
    drop((store, writer));
    examine(&disk.after_power_loss(&simdisk::Survivors::None), &next).map(|_| ())
}

/// Crashes the script at every step, tries every image, and returns how many failed, with the first story.
fn crash_everywhere(seed: u64, rounds: u64, sabotage: Sabotage) -> (u64, u64, Option<String>) {
    let whole = Disk::new(seed);
    script(&whole, seed, rounds, sabotage);
    let (mut images, mut failures, mut first) = (0, 0, None);
    for step in 1..=whole.steps() {
        let disk = Disk::new(seed);
        disk.crash_at(step);
        let story = script(&disk, seed, rounds, sabotage);
        for (i, image) in disk.process_images().chain(disk.power_images()).enumerate() {
            images += 1;
            let result = examine(&image.disk, &story).and_then(|number| {
                // What could be read was made durable by opening: a power loss right after changes nothing.
                let after = image.disk.after_power_loss(&simdisk::Survivors::None);
                let again = examine(&after, &story)?;
                if again != number {
                    return Err(format!("opened at {number}, after a power loss at {again}"));
                }
                if i % 5 == 0 {
                    go_on(&image.disk, &story, number)
                } else {
                    Ok(())
                }
            });
            if let Err(what) = result {
                failures += 1;
                first.get_or_insert(format!("seed {seed} step {step}: {image:?}: {what}"));
            }
        }
    }
    (images, failures, first)
}

#[test]
fn every_crash_leaves_a_whole_checkpoint() {
    let seeds = std::env::var("QUORATE_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2);
    for seed in 1..=seeds {
        let (images, failures, first) = crash_everywhere(seed, 5, Sabotage::None);
        assert!(images > 500, "{images} images are hardly every crash");
        assert_eq!(failures, 0, "{first:?}");
    }
}

/// Negative control: the same test notices a meta page written before its pages.
#[test]
fn meta_before_pages_is_noticed() {
    let (_, failures, _) = crash_everywhere(1, 3, Sabotage::MetaFirst);
    assert!(failures > 0);
}

/// Runs the script with some syncs that report success and do nothing, then loses power at the end and in between.
fn lying_syncs(lie: fn(u64, OpKind) -> bool) -> bool {
    for stop in 1..200 {
        let disk = Disk::new(3);
        let mut syncs = 0;
        disk.fail_when(move |op| {
            if op.kind == OpKind::SyncData {
                syncs += 1;
            }
            lie(syncs, op.kind).then_some(Fault::Lost)
        });
        disk.crash_at(stop);
        let story = script(&disk, 3, 4, Sabotage::None);
        let broken = disk
            .power_images()
            .any(|image| examine(&image.disk, &story).is_err());
        if broken {
            return true;
        }
        if !disk.is_down() {
            return false;
        }
    }
    false
}

/// Negative controls: a skipped sync of the pages, of the meta page, of the directory.
#[test]
fn every_sync_is_needed() {
    // Creating syncs once, opening once more; from then on a checkpoint syncs its pages, then its meta page.
    assert!(!lying_syncs(|_, _| false));
    assert!(
        lying_syncs(|n, kind| kind == OpKind::SyncData && n > 2 && n % 2 == 1),
        "pages"
    );
    assert!(
        lying_syncs(|n, kind| kind == OpKind::SyncData && n > 2 && n.is_multiple_of(2)),
        "meta page"
    );
    assert!(lying_syncs(|_, kind| kind == OpKind::SyncDir), "directory");
}

/// The newest meta page rots: the checkpoint before it opens, untouched, although another checkpoint was under way.
fn fall_back(reuse_early: bool) -> std::result::Result<(), String> {
    let disk = Disk::new(9);
    let (options, _) = sim_options(&disk);
    let (store, mut writer, _) = Store::open(options).unwrap();
    lock(&store.shared.alloc).reuse_early = reuse_early;
    let mut rng = StdRng::seed_from_u64(4);
    let (mut model, mut story) = (Model::new(), Story::default());
    for round in 0..6 {
        change(&mut writer, &mut rng, &mut model, round).unwrap();
        writer.publish();
        let number = checkpoint(&store, &mut writer, b"");
        story.begun.insert(number, model.clone());
    }
    let newest = lock(&store.shared.durable).slot;
    // The next checkpoint writes all its pages and dies before its meta page.
    change(&mut writer, &mut rng, &mut model, 6).unwrap();
    writer.publish();
    let syncs = Arc::new(Mutex::new(0));
    let counted = syncs.clone();
    disk.fail_when(move |op| {
        let mut syncs = counted.lock().unwrap();
        *syncs += u32::from(op.kind == OpKind::SyncData);
        (*syncs > 0 && op.kind == OpKind::Write).then_some(Fault::Eio)
    });
    writer.checkpoint(Vec::new()).unwrap();
    assert_eq!(store.wait_durable(7), Err(Error::Poisoned));
    let after = disk.after_power_loss(&simdisk::Survivors::All);
    after
        .flip_bit("store/tree.qdb", newest as u64 * 65536 + 100, 3)
        .unwrap();
    story.durable = Some(5);
    let number = examine(&after, &story)?;
    assert_eq!(number, 5);
    let (options, _) = sim_options(&after);
    let (_, _, recovered) = Store::open(options).unwrap();
    assert!(
        recovered.fell_back && recovered.report.contains("unusable"),
        "{}",
        recovered.report
    );
    go_on(&after, &story, 5)
}

#[test]
fn the_checkpoint_before_the_newest_stays_usable() {
    assert_eq!(fall_back(false), Ok(()));
    assert!(
        fall_back(true).is_err(),
        "negative control: units reused one checkpoint early"
    );
}

#[test]
fn a_failed_write_or_sync_is_final() {
    for kind in [OpKind::Write, OpKind::SyncData] {
        for nth in 1..4 {
            let disk = Disk::new(1);
            let (options, lines) = sim_options(&disk);
            let (store, mut writer, _) = Store::open(options).unwrap();
            writer.insert(TreeId::K, b"a", LIVE, b"1").unwrap();
            writer.publish();
            let first = checkpoint(&store, &mut writer, b"good");
            writer.insert(TreeId::K, b"a", LIVE, b"2").unwrap();
            writer.publish();
            let mut seen = 0;
            disk.fail_when(move |op| {
                seen += u32::from(op.kind == kind);
                (op.kind == kind && seen == nth).then_some(Fault::Eio)
            });
            let number = writer.checkpoint(Vec::new()).unwrap();
            let ended = store.wait_durable(number);
            if ended.is_ok() {
                assert!(nth > 2);
                continue;
            }
            assert_eq!(ended, Err(Error::Poisoned));
            assert_eq!(writer.checkpoint(Vec::new()), Err(Error::Poisoned));
            assert_eq!(store.durable().checkpoint, first);
            let lines = lines.lock().unwrap();
            assert!(
                lines[0].contains("store/tree.qdb") && lines[0].contains("failed"),
                "{lines:?}"
            );
        }
    }
}

/// A sync that fails may throw away that the file has grown, while the kernel goes on showing the new length. The next
/// process must not build on that.
#[test]
fn a_length_that_a_failed_sync_lost_is_not_built_on() {
    let mut lost = 0;
    for seed in 0..60 {
        let disk = Disk::new(seed);
        let mut story = script(&disk, seed, 1, Sabotage::None);
        let mut rng = StdRng::seed_from_u64(seed);
        let (options, _) = sim_options(&disk);
        let (_store, mut writer, _) = Store::open(options).unwrap();
        disk.fail_when(|op| (op.kind == OpKind::SyncData).then_some(Fault::Eio));
        let first = story.durable.unwrap();
        let mut model = story.begun[&first].clone();
        for _ in 0..6 {
            change(&mut writer, &mut rng, &mut model, 1).unwrap();
        }
        writer.publish();
        let number = writer.checkpoint(Vec::new()).unwrap();
        story.begun.insert(number, model);
        disk.clear_faults();
        let file = "store/tree.qdb";
        lost += u32::from(
            disk.durable_contents(file).unwrap().len() < disk.contents(file).unwrap().len(),
        );
        // The kernel lives on; the next process works, and then the power goes.
        disk.power_off();
        let disk = disk.process_images().next().unwrap().disk;
        let at = examine(&disk, &story).unwrap();
        let (options, _) = sim_options(&disk);
        let (store, mut writer, _) = Store::open(options).unwrap();
        let mut model = story.begun[&at].clone();
        let mut story = Story::default();
        for round in 0..3 {
            for _ in 0..4 {
                change(&mut writer, &mut rng, &mut model, round).unwrap();
            }
            writer.publish();
            let number = checkpoint(&store, &mut writer, b"");
            story.begun.insert(number, model.clone());
            story.durable = Some(number);
        }
        let after = disk.after_power_loss(&simdisk::Survivors::None);
        let found = examine(&after, &story);
        assert!(found.is_ok(), "seed {seed}: {found:?}");
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_full_disk_loses_nothing_and_ends() {
    let disk = Disk::new(1);
    let (options, lines) = sim_options(&disk);
    let options = StoreOptions {
        reserve_bytes: 64 << 10,
        ..options
    };
    let (store, mut writer, _) = Store::open(options).unwrap();
    let mut model = Model::new();
    let put = |writer: &mut StoreWriter, model: &mut Model, i: u32| {
        writer
            .insert(TreeId::K, &i.to_be_bytes(), LIVE, &[7; 100])
            .unwrap();
        model.insert(i.to_be_bytes().to_vec(), (LIVE, vec![7; 100]));
    };
    (0..200).for_each(|i| put(&mut writer, &mut model, i));
    writer.publish();
    let good = checkpoint(&store, &mut writer, b"good");
    disk.set_capacity(Some(disk.used_bytes()));
    // The reserve carries some checkpoints on; the full disk is told at once.
    let mut i = 200;
    let failed = loop {
        (0..100).for_each(|_| {
            put(&mut writer, &mut model, i);
            i += 1;
        });
        writer.publish();
        let number = writer.checkpoint(Vec::new()).unwrap();
        match store.wait_durable(number) {
            Ok(()) => assert!(store.stats().no_space || number < good + 3),
            Err(Error::NoSpace { .. }) => break number,
            Err(error) => panic!("{error}"),
        }
        assert!(i < 100_000);
    };
    assert!(failed > good + 1 && store.stats().no_space && store.stats().checkpoints_failed == 1);
    for _ in 0..3 {
        put(&mut writer, &mut model, i);
        i += 1;
        writer.publish();
        let number = writer.checkpoint(Vec::new()).unwrap();
        assert!(matches!(
            store.wait_durable(number),
            Err(Error::NoSpace { .. })
        ));
        store.check(&mut no_runs).unwrap();
    }
    let snapshot = writer.publish();
    assert_eq!(contents(&snapshot, TreeId::K), model);
    snapshot.check(&mut no_runs).unwrap();
    disk.set_capacity(None);
    put(&mut writer, &mut model, i);
    writer.publish();
    let number = checkpoint(&store, &mut writer, b"room again");
    assert!(!store.stats().no_space);
    store.check(&mut no_runs).unwrap();
    writer.publish();
    assert_eq!(writer.dirty_bytes(), 0);
    assert_eq!(lines.lock().unwrap().len(), 0);
    let story = Story {
        begun: BTreeMap::from([(number, model)]),
        durable: Some(number),
    };
    drop((store, writer, snapshot));
    examine(&disk.after_power_loss(&simdisk::Survivors::None), &story).unwrap();
}
