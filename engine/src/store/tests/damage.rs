//! Damaged files: every flipped bit and every truncation gives an error or the same data, never a panic, and never
//! changes the file.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A file with all kinds of pages: several levels, long keys, runs, two durable checkpoints.
fn sample(dir: &Path) -> (Model, Model) {
    let (store, mut writer, _) = Store::open(StoreOptions {
        reserve_bytes: 4096,
        extend_bytes: 4096,
        ..options(dir)
    })
    .unwrap();
    let mut model = Model::new();
    for i in 0..150u32 {
        let key = format!("/registry/pods/default/{i:05}").into_bytes();
        writer
            .insert(TreeId::K, &key, LIVE, &[i as u8; 30])
            .unwrap();
        model.insert(key, (LIVE, vec![i as u8; 30]));
    }
    for i in 0..6u8 {
        let key = [vec![b'x'; 600], vec![i]].concat();
        writer.insert(TreeId::K, &key, 0, b"long").unwrap();
        model.insert(key, (0, b"long".to_vec()));
    }
    let run = writer
        .write_run(RunKind::Value, b"run", [3; 16], vec![9; 2000].into())
        .unwrap();
    writer
        .insert(TreeId::K, b"run", LIVE | BY_RUN, &run.to_bytes())
        .unwrap();
    model.insert(b"run".to_vec(), (LIVE | BY_RUN, run.to_bytes().to_vec()));
    writer.publish();
    checkpoint(&store, &mut writer, b"older");
    let older = model.clone();
    writer.insert(TreeId::K, b"newer", LIVE, b"n").unwrap();
    model.insert(b"newer".to_vec(), (LIVE, b"n".to_vec()));
    writer.publish();
    checkpoint(&store, &mut writer, b"newer");
    (older, model)
}

/// Opens and reads everything; the contents, or the first error.
fn read_all(dir: &Path) -> Result<(u64, Model)> {
    let (_store, mut writer, recovered) = Store::open(StoreOptions {
        background: false,
        ..options(dir)
    })?;
    let snapshot = writer.publish();
    let mut found = Model::new();
    let mut cursor = snapshot.cursor(TreeId::K);
    let mut more = cursor.seek(b"")?;
    while more {
        if cursor.flags() & BY_RUN != 0 {
            let run = RunRef::from_bytes(cursor.value().try_into().unwrap());
            assert_eq!(snapshot.read_run(run)?, vec![9; 2000]);
        }
        found.insert(
            cursor.key().to_vec(),
            (cursor.flags(), cursor.value().to_vec()),
        );
        more = cursor.next()?;
    }
    let mut back = cursor.seek_last()?;
    let mut count = 0;
    while back {
        count += 1;
        back = cursor.prev()?;
    }
    assert_eq!(count, found.len());
    Ok((recovered.checkpoint, found))
}

fn expect_sound(dir: &Path, bytes: &[u8], what: &str, older: &Model, newer: &Model) -> bool {
    let file = dir.join("tree.qdb");
    std::fs::write(&file, bytes).unwrap();
    let outcome = read_all(dir);
    assert!(
        std::fs::read(&file).unwrap() == bytes,
        "{what}: opening changed the file"
    );
    match outcome {
        Ok((2, found)) => assert!(found == *newer, "{what}: other contents"),
        Ok((1, found)) => assert!(found == *older, "{what}: other contents"),
        Ok((number, _)) => panic!("{what}: opened at {number}"),
        Err(error) => {
            assert!(error.to_string().contains("tree.qdb"), "{error}");
            return false;
        }
    }
    true
}

#[test]
fn flipped_bits_are_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (older, newer) = sample(dir.path());
    let good = std::fs::read(dir.path().join("tree.qdb")).unwrap();
    assert!(expect_sound(dir.path(), &good, "untouched", &older, &newer));
    let mut rng = StdRng::seed_from_u64(1);
    let used: Vec<usize> = (0..good.len()).filter(|i| good[*i] != 0).collect();
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..1500 {
        let at = if rng.gen_bool(0.8) {
            used[rng.gen_range(0..used.len())]
        } else {
            rng.gen_range(0..good.len())
        };
        let mut bytes = good.clone();
        bytes[at] ^= 1 << rng.gen_range(0..8);
        match expect_sound(dir.path(), &bytes, &format!("bit at {at}"), &older, &newer) {
            true => fine += 1,
            false => refused += 1,
        }
    }
    assert!(fine > 50 && refused > 50, "{fine} {refused}");
}

#[test]
fn sectors_lost_or_swapped_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (older, newer) = sample(dir.path());
    let good = std::fs::read(dir.path().join("tree.qdb")).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let sectors = good.len() / 512;
    for round in 0..400 {
        let mut bytes = good.clone();
        let (a, b) = (
            rng.gen_range(256..sectors) * 512,
            rng.gen_range(256..sectors) * 512,
        );
        match round % 3 {
            0 => bytes[a..a + 512].fill(0),
            1 => bytes.copy_within(b..b + 512, a),
            _ => rng.fill(&mut bytes[a..a + 512]),
        }
        expect_sound(
            dir.path(),
            &bytes,
            &format!("sector {a} from {b}"),
            &older,
            &newer,
        );
    }
}

#[test]
fn truncated_files_are_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (older, newer) = sample(dir.path());
    let good = std::fs::read(dir.path().join("tree.qdb")).unwrap();
    for len in (0..good.len()).step_by(good.len() / 150).chain([
        1,
        511,
        4096,
        65536,
        131_071,
        good.len() - 1,
    ]) {
        expect_sound(
            dir.path(),
            &good[..len],
            &format!("cut to {len}"),
            &older,
            &newer,
        );
    }
    let text = b"not a tree at all, ".repeat(20_000);
    std::fs::write(dir.path().join("tree.qdb"), &text).unwrap();
    let refused = read_all(dir.path()).unwrap_err();
    assert!(matches!(refused, Error::Mismatch { .. }), "{refused}");
    assert!(std::fs::read(dir.path().join("tree.qdb")).unwrap() == text);
}

/// Pages with bytes changed and the checksum made right again: the bounds checks are all that is left.
#[test]
fn arbitrary_pages_never_panic() {
    use crate::store::page::{Addr, Geometry, Page, seal};
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
    for i in 0..200u32 {
        let key = format!("/registry/{i:05}");
        writer
            .insert(TreeId::K, key.as_bytes(), (i % 2) as u8, &[1; 20])
            .unwrap();
        let long = [vec![b'y'; 90 + i as usize], vec![1]].concat();
        writer.insert(TreeId::K, &long, LIVE, b"v").unwrap();
    }
    writer.publish();
    checkpoint(&store, &mut writer, b"");
    let geo = Geometry::new(512).unwrap();
    let bytes = std::fs::read(dir.path().join("tree.qdb")).unwrap();
    let pages: Vec<&[u8]> = bytes[131_072..]
        .chunks_exact(512)
        .filter(|page| page[4] == 1 || page[4] == 2)
        .collect();
    assert!(pages.len() > 20);
    let rounds = std::env::var("QUORATE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40_000);
    let mut rng = StdRng::seed_from_u64(3);
    let mut accepted = 0;
    let addr = Addr {
        unit: 300,
        birth: 1,
    };
    for _ in 0..rounds {
        let mut page = pages[rng.gen_range(0..pages.len())].to_vec();
        for _ in 0..rng.gen_range(1..4) {
            let at = if rng.gen_bool(0.7) {
                rng.gen_range(24..120)
            } else {
                rng.gen_range(4..512)
            };
            page[at] = if rng.gen_bool(0.5) {
                rng.r#gen()
            } else {
                page[at].wrapping_add(1)
            };
        }
        seal(&mut page, addr, 7);
        let Ok(page) = Page::check(&page, &geo, addr, 7) else {
            continue;
        };
        accepted += 1;
        // An accepted page is safe to use, whatever it says.
        for i in 0..page.len() {
            let _ = (page.suffix(i), page.long(i), page.prefix());
            match page.is_leaf() {
                true => drop((page.flags(i), page.value(i))),
                false => drop(page.child(i)),
            }
        }
        let _ = page.search(
            usize::from(!page.is_leaf()),
            b"/registry/00031",
            &store.shared.pages,
        );
        let _ = page.search(
            usize::from(!page.is_leaf()),
            &[b'y'; 300],
            &store.shared.pages,
        );
    }
    assert!(accepted > 0 && accepted < rounds, "{accepted}");
    for _ in 0..rounds {
        let mut page = vec![0; 512];
        let filled = rng.gen_range(0..512);
        rng.fill(&mut page[..filled]);
        page[4] = rng.gen_range(0..4);
        seal(&mut page, addr, 7);
        let _ = Page::check(&page, &geo, addr, 7);
    }
}

#[test]
fn arbitrary_meta_pages_never_panic() {
    use crate::store::meta::{META_BYTES, Untrusted};
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let good = std::fs::read(dir.path().join("tree.qdb")).unwrap()[..META_BYTES].to_vec();
    assert!(Untrusted(&good).verify().is_ok());
    let mut rng = StdRng::seed_from_u64(6);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut page = good.clone();
        let at = rng.gen_range(12..300);
        page[at] = rng.r#gen();
        let crc = crc32fast::hash(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        accepted += u32::from(Untrusted(&page).verify().is_ok());
    }
    assert!(accepted > 0 && accepted < 20_000);
    assert!(Untrusted(&good[..100]).verify().is_err());
}
