//! Each numbered rule of the crate's head, and the enumeration.

use simdisk::{Disk, EffectKind, Fault, OpKind, SECTOR, Survivors};

fn durable_file(disk: &Disk, path: &str, bytes: &[u8]) -> simdisk::File {
    let file = disk.create_new(path).unwrap();
    file.write_all_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("d").unwrap();
    file
}

fn images(disk: &Disk, path: &str) -> Vec<Option<Vec<u8>>> {
    let mut found: Vec<_> = disk
        .power_images()
        .map(|image| image.disk.contents(path).ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_power_loss_keeps_any_subset_of_unsynced_sectors() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; 3 * SECTOR]);
    file.write_all_at(0, &[1; 3 * SECTOR]).unwrap();
    assert_eq!(disk.pending().len(), 3);
    let found = images(&disk, "d/f");
    assert_eq!(found.len(), 8);
    for mask in 0..8usize {
        let want: Vec<u8> = (0..3 * SECTOR)
            .map(|i| (mask >> (i / SECTOR) & 1) as u8)
            .collect();
        assert!(found.contains(&Some(want)), "subset {mask:b} is missing");
    }
}

#[test]
fn a_sector_may_end_as_any_of_its_versions_but_never_as_a_mixture() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; SECTOR]);
    file.write_all_at(0, &[1; 100]).unwrap();
    file.write_all_at(100, &[2; 100]).unwrap();
    let found = images(&disk, "d/f");
    let heads: Vec<(u8, u8)> = found
        .iter()
        .map(|f| f.as_ref().unwrap())
        .map(|f| (f[0], f[100]))
        .collect();
    assert_eq!(heads, [(0, 0), (1, 0), (1, 2)]);
}

#[test]
fn growth_data_and_name_survive_independently() {
    let disk = Disk::new(1);
    let file = disk.create_new("d/f").unwrap();
    file.write_all_at(0, &[7; SECTOR]).unwrap();
    let kinds: Vec<_> = disk.pending().into_iter().map(|e| e.kind).collect();
    assert_eq!(
        kinds,
        [
            EffectKind::Size(SECTOR as u64),
            EffectKind::Sector(0),
            EffectKind::Link
        ]
    );
    let found = images(&disk, "d/f");
    assert_eq!(
        found,
        [
            None,
            Some(vec![]),
            Some(vec![0; SECTOR]),
            Some(vec![7; SECTOR])
        ]
    );
}

#[test]
fn a_data_sync_does_not_keep_the_name_and_a_directory_sync_not_the_data() {
    let disk = Disk::new(1);
    let file = disk.create_new("d/f").unwrap();
    file.write_all_at(0, b"x").unwrap();
    file.sync_data().unwrap();
    assert!(!disk.after_power_loss(&Survivors::None).exists("d/f"));

    let disk = Disk::new(1);
    let file = disk.create_new("d/f").unwrap();
    file.write_all_at(0, b"x").unwrap();
    disk.sync_dir("d").unwrap();
    let after = disk.after_power_loss(&Survivors::None);
    assert_eq!(after.contents("d/f").unwrap(), b"");
}

#[test]
fn a_dsync_write_makes_only_its_own_range_durable() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; 4 * SECTOR]);
    file.write_all_at(0, &[1; SECTOR]).unwrap();
    file.write_dsync_at(SECTOR as u64, &[2; SECTOR]).unwrap();
    let after = disk.after_power_loss(&Survivors::None);
    let bytes = after.contents("d/f").unwrap();
    assert_eq!((bytes[0], bytes[SECTOR]), (0, 2));
    file.sync_data().unwrap();
    assert!(disk.pending().is_empty());
    assert_eq!(disk.durable_contents("d/f").unwrap()[0], 1);
}

#[test]
fn a_dsync_write_that_grows_keeps_the_length_it_needs() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[]);
    file.write_all_at(0, &[1; 2 * SECTOR]).unwrap();
    file.write_dsync_at(2 * SECTOR as u64, &[3; SECTOR])
        .unwrap();
    let bytes = disk
        .after_power_loss(&Survivors::None)
        .contents("d/f")
        .unwrap();
    assert_eq!(bytes.len(), 3 * SECTOR);
    assert_eq!((bytes[0], bytes[2 * SECTOR]), (0, 3));
}

#[test]
fn renames_are_atomic_and_need_a_directory_sync() {
    let disk = Disk::new(1);
    durable_file(&disk, "d/old", b"old");
    durable_file(&disk, "d/new", b"new");
    disk.rename("d/new", "d/old").unwrap();
    assert_eq!(disk.contents("d/old").unwrap(), b"new");
    let mut found: Vec<_> = disk
        .power_images()
        .map(|i| (i.disk.contents("d/old").ok(), i.disk.contents("d/new").ok()))
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            (Some(b"new".to_vec()), None),
            (Some(b"old".to_vec()), Some(b"new".to_vec()))
        ]
    );
    disk.sync_dir("d").unwrap();
    assert!(disk.pending().is_empty());
}

#[test]
fn unlinking_needs_a_directory_sync_and_keeps_open_handles() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", b"abc");
    disk.unlink("d/f").unwrap();
    assert_eq!(file.len().unwrap(), 3);
    assert!(disk.after_power_loss(&Survivors::None).exists("d/f"));
    assert!(!disk.after_power_loss(&Survivors::All).exists("d/f"));
}

#[test]
fn a_process_crash_keeps_the_cache_and_what_is_pending() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; SECTOR]);
    file.write_all_at(0, &[1; SECTOR]).unwrap();
    disk.power_off();
    let found: Vec<_> = disk.process_images().collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].disk.contents("d/f").unwrap(), [1; SECTOR]);
    let again = found[0].disk.after_power_loss(&Survivors::None);
    assert_eq!(again.contents("d/f").unwrap(), [0; SECTOR]);
}

#[test]
fn the_step_under_way_may_have_happened_in_part() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; 2 * SECTOR]);
    let before = disk.steps();
    disk.crash_at(before + 1);
    file.write_dsync_at(0, &[1; 2 * SECTOR]).unwrap_err();
    assert!(disk.is_down());
    assert!(file.len().is_err());
    assert_eq!(images(&disk, "d/f").len(), 4);
    let cut: Vec<_> = disk
        .process_images()
        .map(|i| i.disk.contents("d/f").unwrap())
        .map(|b| (b[0], b[SECTOR]))
        .collect();
    assert_eq!(cut, [(0, 0), (1, 0), (1, 1)]);
}

#[test]
fn a_sync_under_way_has_made_nothing_certain() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; SECTOR]);
    file.write_all_at(0, &[1; SECTOR]).unwrap();
    disk.crash_at(disk.steps() + 1);
    file.sync_data().unwrap_err();
    assert_eq!(images(&disk, "d/f").len(), 2);
}

#[test]
fn a_failed_sync_leaves_clean_pages_and_a_lying_cache() {
    let mut lied = false;
    for seed in 0..16 {
        let disk = Disk::new(seed);
        let file = durable_file(&disk, "d/f", &[0; 4 * SECTOR]);
        file.write_all_at(0, &[1; 4 * SECTOR]).unwrap();
        disk.fail_at(disk.steps() + 1, Fault::Eio);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
        file.sync_data().expect("later syncs succeed");
        let mut cached = [0; 4 * SECTOR];
        file.read_at(0, &mut cached).unwrap();
        assert_eq!(cached, [1; 4 * SECTOR]);
        let after = disk.after_power_loss(&Survivors::All);
        let medium = after.contents("d/f").unwrap();
        let mut direct = [0; 4 * SECTOR];
        file.read_direct_at(0, &mut direct).unwrap();
        assert_eq!(direct.as_slice(), medium);
        lied |= medium != cached;
    }
    assert!(lied, "no seed lost anything");
}

#[test]
fn faults_hit_the_chosen_call() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; SECTOR]);
    disk.fail_at(disk.steps() + 1, Fault::Short(10));
    assert_eq!(file.write_at(0, &[1; SECTOR]).unwrap(), 10);
    disk.fail_when(|op| (op.kind == OpKind::Read && op.offset == 5).then_some(Fault::Eio));
    assert!(file.read_at(5, &mut [0; 1]).is_err());
    assert_eq!(file.read_at(0, &mut [0; 1]).unwrap(), 1);
    disk.clear_faults();
    assert!(file.read_at(5, &mut [0; 1]).is_ok());
    disk.fail_at(disk.steps() + 1, Fault::Misdirected(SECTOR as u64 / 2));
    file.write_dsync_at(0, &[9; 4]).unwrap();
    let bytes = disk.contents("d/f").unwrap();
    assert_eq!((bytes[0], bytes[SECTOR / 2]), (1, 9));
    disk.fail_at(disk.steps() + 1, Fault::Lost);
    file.write_dsync_at(0, &[8; 4]).unwrap();
    assert_eq!(disk.contents("d/f").unwrap()[0], 1);
}

#[test]
fn a_failed_durable_write_is_not_durable_for_sure() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..32 {
        let disk = Disk::new(seed);
        let file = durable_file(&disk, "d/f", &[0; 2 * SECTOR]);
        disk.fail_at(disk.steps() + 1, Fault::Eio);
        file.write_dsync_at(0, &[1; 2 * SECTOR]).unwrap_err();
        let bytes = disk
            .after_power_loss(&Survivors::All)
            .contents("d/f")
            .unwrap();
        outcomes.insert((bytes[0], bytes[SECTOR]));
    }
    assert_eq!(outcomes.len(), 4);
}

#[test]
fn a_full_disk_writes_short_then_refuses() {
    let disk = Disk::with_capacity(1, 1000);
    let file = disk.create_new("d/f").unwrap();
    assert_eq!(file.write_at(0, &[1; 800]).unwrap(), 800);
    assert_eq!(file.write_at(800, &[1; 800]).unwrap(), 200);
    assert_eq!(
        file.write_at(1000, &[1; 1]).unwrap_err().raw_os_error(),
        Some(28)
    );
    assert_eq!(
        file.write_at(0, &[2; 1000]).unwrap(),
        1000,
        "overwriting needs no room"
    );
    disk.unlink("d/f").unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn bit_rot_shows_in_cache_and_on_the_medium() {
    let disk = Disk::new(1);
    durable_file(&disk, "d/f", &[0; SECTOR]);
    disk.flip_bit("d/f", 3, 2).unwrap();
    assert_eq!(disk.contents("d/f").unwrap()[3], 4);
    assert_eq!(disk.durable_contents("d/f").unwrap()[3], 4);
}

#[test]
fn many_pending_effects_are_sampled_with_the_promised_sets() {
    let disk = Disk::new(1);
    let file = durable_file(&disk, "d/f", &[0; 10 * SECTOR]);
    file.write_all_at(0, &[1; 10 * SECTOR]).unwrap();
    let stories: Vec<_> = disk.power_images().collect();
    assert_eq!(stories.len(), 2 + 10 + 10 + simdisk::RANDOM_SUBSETS);
}

#[test]
fn equal_seeds_give_equal_disks() {
    let run = |seed| {
        let disk = Disk::new(seed);
        let file = durable_file(&disk, "d/f", &[0; 20 * SECTOR]);
        file.write_all_at(0, &[1; 20 * SECTOR]).unwrap();
        images(&disk, "d/f")
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn the_trace_names_every_step() {
    let disk = Disk::new(1);
    disk.start_trace();
    durable_file(&disk, "d/f", &[0; 8]);
    disk.rename("d/f", "d/g").unwrap();
    assert_eq!(
        disk.take_trace(),
        [
            "Create d/f",
            "Write d/f 0+8",
            "SyncData d/f",
            "SyncDir d",
            "Rename d/f -> d/g"
        ]
    );
}

mod random {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u8, u16, u16, bool),
        Sync(u8),
        SetLen(u8, u16),
        Create(u8),
        Rename(u8, u8),
        Unlink(u8),
        SyncDir,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3u8, 0..3000u16, 1..1500u16, any::<bool>())
                .prop_map(|(f, o, n, d)| Step::Write(f, o, n, d)),
            1 => (0..3u8).prop_map(Step::Sync),
            1 => (0..3u8, 0..3000u16).prop_map(|(f, n)| Step::SetLen(f, n)),
            2 => (0..3u8).prop_map(Step::Create),
            1 => (0..3u8, 0..3u8).prop_map(|(a, b)| Step::Rename(a, b)),
            1 => (0..3u8).prop_map(Step::Unlink),
            1 => Just(Step::SyncDir),
        ]
    }

    fn run(disk: &Disk, step: &Step, n: usize, model: &mut BTreeMap<String, Vec<u8>>) {
        let name = |f: &u8| format!("d/{f}");
        match step {
            Step::Create(f) => {
                if disk.create_new(&name(f)).is_ok() {
                    model.insert(name(f), vec![]);
                }
            }
            Step::Write(f, offset, len, dsync) => {
                if let Ok(file) = disk.open(&name(f)) {
                    let data = vec![n as u8 + 1; *len as usize];
                    let offset = *offset as usize;
                    if *dsync {
                        file.write_dsync_at(offset as u64, &data).unwrap();
                    } else {
                        file.write_at(offset as u64, &data).unwrap();
                    }
                    let bytes = model.get_mut(&name(f)).unwrap();
                    if bytes.len() < offset + data.len() {
                        bytes.resize(offset + data.len(), 0);
                    }
                    bytes[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
            Step::Sync(f) => {
                if let Ok(file) = disk.open(&name(f)) {
                    file.sync_data().unwrap();
                }
            }
            Step::SetLen(f, len) => {
                if let Ok(file) = disk.open(&name(f)) {
                    file.set_len(*len as u64).unwrap();
                    model.get_mut(&name(f)).unwrap().resize(*len as usize, 0);
                }
            }
            Step::Rename(a, b) if a != b => {
                if disk.rename(&name(a), &name(b)).is_ok() {
                    let bytes = model.remove(&name(a)).unwrap();
                    model.insert(name(b), bytes);
                }
            }
            Step::Rename(..) => {}
            Step::Unlink(f) => {
                if disk.unlink(&name(f)).is_ok() {
                    model.remove(&name(f));
                }
            }
            Step::SyncDir => disk.sync_dir("d").unwrap(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        /// The running program sees a plain file system; keeping everything keeps exactly that;
        /// after syncing everything, dropping everything loses nothing.
        #[test]
        fn cache_and_full_survival_agree_with_a_map(steps in prop::collection::vec(step(), 1..40)) {
            let disk = Disk::new(1);
            let mut model = BTreeMap::new();
            for (n, s) in steps.iter().enumerate() {
                run(&disk, s, n, &mut model);
            }
            // Not assert_eq: it would print the files.
            let agrees = |disk: &Disk| {
                let names = disk.list("d").unwrap();
                names.len() == model.len()
                    && model.iter().all(|(path, bytes)| disk.contents(path).is_ok_and(|b| b == *bytes))
            };
            prop_assert!(agrees(&disk));
            prop_assert!(agrees(&disk.after_power_loss(&Survivors::All)));
            for name in disk.list("d").unwrap() {
                disk.open(&format!("d/{name}")).unwrap().sync_data().unwrap();
            }
            disk.sync_dir("d").unwrap();
            prop_assert!(agrees(&disk.after_power_loss(&Survivors::None)));
            for image in disk.process_images() {
                prop_assert!(agrees(&image.disk));
            }
        }
    }
}
