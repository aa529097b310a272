//! What an opening does not take over: pages of a checkpoint that was lost, files of programs to come.

use std::os::unix::fs::FileExt;

use simdisk::{Disk, Fault, OpKind};

use super::*;

const FIRST_UNITS: u64 = 131_072;

fn options_on(disk: &Disk, skip: u32) -> StoreOptions {
    StoreOptions {
        backend: IoBackend::Sim(disk.clone()),
        background: false,
        extend_bytes: 4096,
        reserve_bytes: 4096,
        skip_numbers: Some(skip),
        on_fatal: Some(fatal_lines().0),
        ..options(Path::new("store"))
    }
}

fn put(writer: &mut StoreWriter, value: &[u8]) {
    writer.insert(TreeId::K, b"key", LIVE, value).unwrap();
    writer.publish();
}

/// A checkpoint dies after its pages and before its meta page. After the restart the next one writes other contents to
/// the same unit, and the device loses that write. What is read then, if that is not noticed?
fn stale_page(skip: u32) -> Result<Option<Vec<u8>>> {
    let disk = Disk::new(5);
    let (store, mut writer, _) = Store::open(options_on(&disk, 0)).unwrap();
    for value in [b"one", b"two"] {
        put(&mut writer, value);
        checkpoint(&store, &mut writer, b"");
    }
    put(&mut writer, b"lost");
    let mut synced = false;
    disk.fail_when(move |op| {
        synced |= op.kind == OpKind::SyncData;
        (synced && op.kind == OpKind::Write && op.offset < FIRST_UNITS).then_some(Fault::Eio)
    });
    let number = writer.checkpoint(Vec::new()).unwrap();
    assert_eq!(store.wait_durable(number), Err(Error::Poisoned));
    drop((store, writer));
    let disk = disk.after_power_loss(&simdisk::Survivors::All);
    let (store, mut writer, recovered) = Store::open(options_on(&disk, skip)).unwrap();
    assert_eq!(recovered.checkpoint, number - 1);
    put(&mut writer, b"here");
    let mut first = true;
    disk.fail_when(move |op| {
        // The arena's first piece is the page with the key.
        let lost = first && op.kind == OpKind::Write && op.offset >= FIRST_UNITS;
        first &= !lost;
        lost.then_some(Fault::Lost)
    });
    checkpoint(&store, &mut writer, b"");
    drop((store, writer));
    let disk = disk.after_power_loss(&simdisk::Survivors::All);
    let (_, mut writer, recovered) = Store::open(options_on(&disk, 0))?;
    if recovered.fell_back {
        return Ok(None);
    }
    let entry = writer.publish().get(TreeId::K, b"key")?;
    Ok(entry.map(|entry| entry.value.to_vec()))
}

#[test]
fn pages_of_a_lost_checkpoint_are_not_taken_for_new_ones() {
    assert!(!matches!(stale_page(7), Ok(Some(_))));
    // Negative control: with the number used again the old page passes.
    assert_eq!(stale_page(0), Ok(Some(b"lost".to_vec())));
}

#[test]
fn numbers_go_on_behind_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let options = || StoreOptions {
        identity: None,
        ..options(dir.path())
    };
    let mut last = 0;
    for _ in 0..3 {
        let (store, mut writer, recovered) = Store::open(options()).unwrap();
        assert_eq!(recovered.checkpoint, last);
        put(&mut writer, b"value");
        last = checkpoint(&store, &mut writer, b"");
    }
    // Three times the same number in a row has a chance of 2^-40.
    assert!(last > 3, "{last}");
}

/// A file that a newer program has touched is refused, even when its other slot could be opened.
#[test]
fn unknown_formats_and_features_are_refused() {
    for (at, says) in [(12, "format"), (212, "features")] {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer, _) = Store::open(options(dir.path())).unwrap();
        for value in [b"one", b"two"] {
            put(&mut writer, value);
            checkpoint(&store, &mut writer, b"");
        }
        let slot = lock(&store.shared.durable).slot;
        drop((store, writer));
        let path = dir.path().join("tree.qdb");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut page = vec![0; 4096];
        file.read_exact_at(&mut page, slot as u64 * 65536).unwrap();
        page[at] ^= 0x40;
        let crc = crc32fast::hash(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&page, slot as u64 * 65536).unwrap();
        let before = std::fs::read(&path).unwrap();
        let Err(Error::Mismatch { what, .. }) = Store::open(options(dir.path())).map(|_| ()) else {
            panic!("a file of a newer program was opened");
        };
        assert!(
            what.contains(says) && what.contains("use the program"),
            "{what}"
        );
        assert!(std::fs::read(&path).unwrap() == before);
    }
}
