//! Crashes at every step, what they may leave, and mistakes that must be noticed.

use super::harness::{Harness, entry};
use super::seeds;
use crate::options::Sabotage;
use crate::{HardState, Row};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use simdisk::{Disk, Fault, OpKind};

const KIB: u64 = 1024;

fn hs(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    Some(HardState { term, vote, commit })
}

/// A fixed history that meets every mechanism: rolls, gathering, conflicts, seals, trims, recycling,
/// a snapshot mark, a restart. Stops early when the disk goes down.
fn fixed_script(h: &mut Harness) {
    let step = |h: &mut Harness, n: usize| {
        let last = h.content().last;
        let hard = h.content().hard_state;
        let term = hard.term.max(1);
        match n {
            0 => {
                let vote = hard.vote + 1;
                let hs = HardState { term, vote, ..hard };
                h.append(&[entry(last + 1, term, 100)], Some(hs));
                h.sync();
            }
            1 => {
                h.append(&[entry(last + 1, term, 5000)], None);
                h.log().flush();
                // What was refused is not counted on: the disk may be full.
                let next = h.content().last + 1;
                h.append(&[entry(next, term, 50)], None);
                let next = h.content().last + 1;
                let commit = (last + 1).min(next);
                let hs = HardState { commit, ..hard };
                h.append(&[entry(next, term, 50)], Some(hs));
                h.log().flush();
                h.log().background_step();
                h.wait();
            }
            2 => {
                let term = term + 1;
                let hs = HardState { term, ..hard };
                let index = last.max(hard.commit + 1);
                h.append(&[entry(index, term, 60)], Some(hs));
                h.sync();
                h.log().idle();
                h.wait();
            }
            3 => {
                for _ in 0..6 {
                    h.log().background_step();
                }
            }
            4 => {
                let hs = HardState {
                    commit: last,
                    ..hard
                };
                h.append(&[], Some(hs));
                h.sync();
                h.trim(last);
                h.log().background_step();
                h.log().background_step();
            }
            5 => {
                h.snapshot_mark(last + 5, term);
                let term = term + 1;
                let hs = HardState { term, ..hard };
                let next = h.content().last + 1;
                h.append(&[entry(next, term, 200)], Some(hs));
                h.sync();
                h.trim(1);
                h.log().background_step();
            }
            _ => unreachable!(),
        }
    };
    for n in [0, 1, 2, 0, 3, 1, 4, 0, 3, 1, 2, 5, 1, 3, 4, 1] {
        if h.is_poisoned() {
            return;
        }
        step(h, n);
    }
}

fn build(disk: Disk, sabotage: Sabotage) -> Harness {
    let mut h = Harness::new(disk, 16 * KIB);
    h.sabotage = sabotage;
    h
}

fn run_fixed(h: &mut Harness) -> Result<(), String> {
    for _ in 0..2 {
        match h.open() {
            Ok(_) => {}
            Err(e) if e == "down" => return Ok(()),
            Err(e) => return Err(e),
        }
        fixed_script(h);
        if h.is_poisoned() {
            return Ok(());
        }
    }
    Ok(())
}

/// A harness over an image, knowing what `before` knew.
fn on(image: &Disk, before: &Harness) -> Harness {
    let mut h = Harness::new(image.clone(), before.segment_bytes);
    h.sabotage = before.sabotage;
    h.openings = before.openings;
    h.history = before.history.clone();
    h.durable = before.durable;
    h.keep_from = before.keep_from;
    h
}

/// Recovers, writes a little, loses power again, recovers again.
fn recover_and_go_on(h: &mut Harness, rng: &mut StdRng) -> Result<(), String> {
    h.open()?;
    for _ in 0..3 {
        let last = h.content().last;
        let hard = h.content().hard_state;
        let term = hard.term + 1;
        h.append(
            &[entry(last + 1, term, 300)],
            Some(HardState { term, ..hard }),
        );
        h.log().flush();
        h.wait();
    }
    h.disk.power_off();
    let image = h.disk.random_power_image(rng.r#gen());
    let mut again = on(&image.disk, h);
    again
        .open()
        .map(|_| ())
        .map_err(|e| format!("second recovery, {}: {e}", image.story))
}

/// Every step of the fixed script crashed at, every image tried. Returns violations (at most a few)
/// and how many images there were.
fn crash_everywhere(sabotage: Sabotage, limit: usize) -> (Vec<String>, usize) {
    let mut whole = build(Disk::new(1), sabotage);
    if let Err(e) = run_fixed(&mut whole) {
        return (vec![e], 0);
    }
    let steps = whole.disk.steps();
    let mut rng = StdRng::seed_from_u64(1);
    let (mut violations, mut images) = (Vec::new(), 0);
    for k in 1..=steps {
        let disk = Disk::new(k);
        disk.crash_at(k);
        let mut h = build(disk, sabotage);
        if let Err(e) = run_fixed(&mut h) {
            violations.push(format!("step {k}: {e}"));
        }
        h.log = None;
        for image in h.disk.power_images().chain(h.disk.process_images()) {
            images += 1;
            let mut after = on(&image.disk, &h);
            if let Err(e) = recover_and_go_on(&mut after, &mut rng) {
                violations.push(format!("step {k} of {steps}, {}: {e}", image.story));
                if violations.len() >= limit {
                    return (violations, images);
                }
            }
        }
    }
    (violations, images)
}

#[test]
fn every_crash_of_the_fixed_script_recovers() {
    let (violations, images) = crash_everywhere(Sabotage::None, 3);
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(images > 5_000, "only {images} images");
    println!("{images} images");
}

#[test]
fn mistakes_are_noticed() {
    for sabotage in [
        Sabotage::AcknowledgeEarly,
        Sabotage::SkipDirSync,
        Sabotage::RollBeforeHeader,
        Sabotage::SkipDsync,
        Sabotage::WitnessForItself,
    ] {
        let (violations, _) = crash_everywhere(sabotage, 1);
        assert!(!violations.is_empty(), "{sabotage:?} went unnoticed");
        println!("{sabotage:?}: {}", violations[0]);
    }
}

/// Random callers, random crashes, several in a row.
fn random_chain(seed: u64, sabotage: Sabotage) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut h = Harness::new(Disk::new(seed), [16, 20, 32, 64][seed as usize % 4] * KIB);
    h.sabotage = sabotage;
    for round in 0..6 {
        let context = |e: String| format!("seed {seed}, round {round}: {e}");
        let start = h.disk.steps();
        h.disk.crash_at(start + rng.gen_range(1..80));
        match h.open() {
            Ok(_) => {}
            Err(e) if e == "down" => {}
            Err(e) => return Err(context(e)),
        }
        if h.log.is_some() {
            for _ in 0..rng.gen_range(1..120) {
                h.random_step(&mut rng);
                if h.is_poisoned() {
                    break;
                }
            }
            let durable = h.log().durable();
            h.saw(durable);
        }
        h.log = None;
        h.disk.power_off();
        let image = match rng.gen_range(0..4) {
            0 => {
                let all: Vec<_> = h.disk.process_images().collect();
                all[rng.gen_range(0..all.len())].clone()
            }
            _ => h.disk.random_power_image(rng.r#gen()),
        };
        h = on(&image.disk, &h);
    }
    h.open()
        .map(|_| ())
        .map_err(|e| format!("seed {seed}, at the end: {e}"))
}

#[test]
fn chains_of_random_crashes_recover() {
    for seed in 0..seeds(1000) {
        random_chain(seed, Sabotage::None).unwrap();
    }
}

#[test]
fn mistakes_are_noticed_in_random_chains() {
    for sabotage in [
        Sabotage::AcknowledgeEarly,
        Sabotage::SkipDirSync,
        Sabotage::AppendToRecoveredTail,
        Sabotage::SameSegmentId,
        Sabotage::SkipDsync,
        Sabotage::TrustUnsynced,
        Sabotage::WitnessForItself,
    ] {
        let noticed = (0..2000).find_map(|seed| random_chain(seed, sabotage).err());
        let noticed = noticed.unwrap_or_else(|| panic!("{sabotage:?} went unnoticed"));
        println!("{sabotage:?}: {noticed}");
    }
}

#[test]
fn a_failed_write_is_final() {
    for fault in [Fault::Eio, Fault::Enospc] {
        let mut h = build(Disk::new(3), Sabotage::None);
        h.open().unwrap();
        h.append(&[entry(1, 1, 10)], hs(1, 1, 0));
        h.sync();
        assert_eq!(h.durable, 2);
        h.disk
            .fail_when(move |op| (op.kind == OpKind::WriteDsync).then_some(fault));
        h.append(&[entry(2, 1, 10)], None);
        h.sync();
        let line = h
            .fatal
            .lock()
            .unwrap()
            .clone()
            .expect("the hook was called");
        assert!(
            line.contains("log/0000000000000001.log at byte 8192"),
            "{line}"
        );
        h.disk.clear_faults();
        assert!(!h.append(&[entry(3, 1, 10)], None), "poisoned");
        h.sync();
        h.log().idle();
        assert_eq!(h.durable, 2, "nothing is acknowledged afterwards");
        h.log = None;
        for image in h.disk.power_images().chain(h.disk.process_images()) {
            on(&image.disk, &h).open().unwrap();
        }
    }
}

/// Every call of the fixed script fails once. The log ends or carries on as it says it does; whatever
/// follows, nothing that was reported durable is lost, and the next start needs no help.
#[test]
fn an_error_at_any_call_loses_nothing() {
    let mut whole = build(Disk::new(1), Sabotage::None);
    run_fixed(&mut whole).unwrap();
    let steps = whole.disk.steps();
    let (mut images, mut ended) = (0, 0);
    for step in 1..=steps {
        for fault in [Fault::Eio, Fault::Enospc, Fault::Short(700)] {
            let disk = Disk::new(step);
            disk.fail_at(step, fault);
            let mut h = build(disk, Sabotage::None);
            let ran = run_fixed(&mut h);
            let told = matches!(&ran, Err(e) if e.starts_with("no violation"));
            assert!(told || ran.is_ok(), "step {step}, {fault:?}: {ran:?}");
            ended += usize::from(told || h.is_poisoned());
            h.disk.clear_faults();
            h.log = None;
            let process = h.disk.process_images().last();
            let power = (0..3).map(|n| h.disk.random_power_image(step * 3 + n));
            for image in power.chain(process) {
                images += 1;
                let opened = on(&image.disk, &h).open();
                assert!(
                    opened.is_ok(),
                    "step {step} of {steps}, {fault:?}, {}: {opened:?}",
                    image.story
                );
            }
        }
    }
    assert!(
        images as u64 > steps * 9,
        "{images} images of {steps} steps"
    );
    assert!(ended as u64 > steps, "{ended} ends of {steps} steps");
}

#[test]
fn short_writes_are_continued() {
    let mut h = build(Disk::new(3), Sabotage::None);
    h.open().unwrap();
    let mut n = 0;
    h.disk.fail_when(move |op| {
        n += 1;
        (op.kind == OpKind::WriteDsync && n % 2 == 1).then_some(Fault::Short(700))
    });
    for i in 1..5 {
        h.append(&[entry(i, 1, 3000)], None);
        h.sync();
    }
    assert_eq!(h.durable, 4);
    h.disk.clear_faults();
    h.open().unwrap();
}

#[test]
fn a_failing_background_is_final_too() {
    let mut h = build(Disk::new(3), Sabotage::None);
    h.open().unwrap();
    h.disk
        .fail_when(|op| (op.kind == OpKind::SyncData).then_some(Fault::Eio));
    while h.log().background_step() {}
    assert!(h.is_poisoned());
    assert!(!h.append(&[entry(1, 1, 1)], None));
}

#[test]
fn a_full_disk_refuses_entries_but_takes_hard_state_and_recovers_when_space_is_back() {
    // Room for the first segment and the two in reserve, and not a block more.
    let mut h = build(Disk::with_capacity(1, 3 * 16 * KIB), Sabotage::None);
    h.open().unwrap();
    while h.log().background_step() {}
    let mut last = 0;
    while h.append(&[entry(last + 1, 1, 3000)], hs(1, 1, 0)) {
        h.sync();
        last += 1;
    }
    assert_eq!(
        last, 4,
        "two segments of two blocks each; the third is kept"
    );
    // Many terms go by.
    let mut term = 1;
    while h.append(&[], hs(term + 1, 1, 0)) {
        h.sync();
        term += 1;
    }
    assert_eq!(term, 3, "the reserve took two blocks of hard state");
    h.append(&[], hs(term, 1, 0));
    let recovered = on(&h.disk.fork(), &h).open();
    // There is no room for the new segment that opening needs: an honest error, nothing lost.
    assert!(recovered.is_err());
    // Space comes back: the same log, without a restart, goes on.
    h.disk.set_capacity(Some(20 * 16 * KIB));
    assert!(h.append(&[entry(last + 1, 3, 3000)], hs(term, 1, last)));
    h.sync();
    h.open().unwrap();
    assert_eq!(h.log().last_index(), last + 1);
}

#[test]
fn a_full_disk_recovers_by_trimming_without_a_restart() {
    let mut h = build(Disk::with_capacity(1, 3 * 16 * KIB), Sabotage::None);
    h.open().unwrap();
    while h.log().background_step() {}
    let mut last = 0;
    while h.append(&[entry(last + 1, 1, 3000)], hs(1, 1, last)) {
        h.sync();
        last += 1;
    }
    h.append(&[], hs(1, 1, last));
    h.sync();
    h.trim(last + 1);
    for _ in 0..20 {
        last += 1;
        assert!(h.append(&[entry(last, 1, 3000)], hs(1, 1, last)));
        h.sync();
        h.trim(last);
    }
    h.open().unwrap();
}

#[test]
fn many_restarts_do_not_eat_the_disk() {
    let mut h = build(Disk::new(1), Sabotage::None);
    h.open().unwrap();
    while h.log().background_step() {}
    let before = h.disk.used_bytes();
    for _ in 0..20 {
        h.open().unwrap();
        while h.log().background_step() {}
    }
    let each = (h.disk.used_bytes() - before) / 20;
    assert!(each <= 4096, "{each} bytes per restart");
}

#[test]
fn a_lost_or_misdirected_write_is_refused_when_a_later_one_proves_it() {
    for fault in [Fault::Lost, Fault::Misdirected(12288)] {
        let mut h = build(Disk::new(3), Sabotage::None);
        h.open().unwrap();
        h.append(&[entry(1, 1, 10)], None);
        h.disk.fail_at(h.disk.steps() + 1, fault);
        h.sync();
        h.append(&[entry(2, 1, 10)], None);
        h.sync();
        let refusal = h.open().unwrap_err();
        let row = format!("(row {})", Row::AcknowledgedDamaged.number());
        assert!(refusal.contains(&row), "{refusal}");
    }
}
