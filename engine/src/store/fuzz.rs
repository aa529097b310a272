//! The store's part of the fuzz targets.

use bytes::Bytes;
use simdisk::Disk;

use super::alloc::Bitmap;
use super::error::Result;
use super::map;
use super::meta::{META_BYTES, Untrusted};
use super::page::{
    Addr, Geometry, HEADER, KIND_INNER, KIND_LEAF, KIND_RUN, LongKeys, Page, PageMut, StoredKey,
    get_u32, get_u64, put_u32, seal,
};
use super::runs;
use super::types::{IoBackend, RunRef, StoreOptions, TreeId};
use super::{Store, pages::seed_of};

const SEED: u32 = 7;

/// Long keys are what their reference says, as far as that is bearable.
struct AnyKey;

impl LongKeys for AnyKey {
    fn long_key(&self, run: RunRef) -> Result<Bytes> {
        Ok(Bytes::from(vec![b'l'; (run.len as usize).min(4096)]))
    }
}

/// A tree page: checked, and when it is accepted read and changed in every way there is. The first byte chooses the
/// page size. Whether it was accepted.
pub fn page(bytes: &[u8]) -> bool {
    let Some((size, bytes)) = bytes.split_first() else {
        return false;
    };
    let Some(geo) = Geometry::new(512 << (size % 5)) else {
        return false;
    };
    let mut image = bytes.to_vec();
    image.resize(geo.page_bytes, 0);
    let addr = Addr {
        unit: geo.first_unit + 1000,
        birth: 1 << 20,
    };
    seal(&mut image, addr, SEED);
    match Page::check(&image, &geo, addr, SEED) {
        Ok(page) => {
            read(page);
            change(&image, &geo);
            true
        }
        Err(_) => false,
    }
}

fn read(page: Page<'_>) {
    let first = usize::from(!page.is_leaf());
    let mut key = Vec::new();
    for i in first..page.len() {
        key.clear();
        page.key_into(i, &AnyKey, &mut key)
            .expect("keys are made up");
        page.fetch_soon(i);
        if page.is_leaf() {
            let entry = page.entry(i);
            assert_eq!(
                (entry.flags, entry.suffix, entry.value_len),
                (page.flags(i), page.suffix(i), page.value(i).len())
            );
            let value = &page.0[entry.value_at..][..entry.value_len];
            assert_eq!(value, page.value(i));
        } else {
            let _ = (page.child(i), page.child_live(i));
            page.child_for(&key, &AnyKey).expect("keys are made up");
        }
        if page.long(i).is_none() {
            let found = page.search(first, &key, &AnyKey).expect("keys are made up");
            // Long keys are made up and may stand anywhere.
            let plain = (first..page.len()).all(|i| page.long(i).is_none());
            assert!(!plain || found == (i, true), "a key is found where it is");
        }
    }
    for probe in [&b""[..], b"key1", &[0xff; 400]] {
        page.search(first, probe, &AnyKey)
            .expect("keys are made up");
    }
    let _ = (page.used(), page.hint());
}

fn change(image: &[u8], geo: &Geometry) {
    let good = |bytes: &[u8]| {
        let page = Page(bytes);
        assert!(
            page.len() == 0 || page.check_body(geo).is_ok(),
            "a change broke the page"
        );
    };
    let page = Page(image);
    if page.is_leaf() {
        let mut copy = image.to_vec();
        let mut key = page.prefix().to_vec();
        key.push(0xff);
        let (i, found) = page.search(0, &key, &AnyKey).expect("keys are made up");
        let plain = (0..page.len()).all(|i| page.long(i).is_none());
        let stored = StoredKey {
            bytes: &key,
            long: None,
        };
        if !found && plain && key.len() <= geo.key_inline_max {
            PageMut(&mut copy).leaf_insert(i, stored, 1, b"new");
            good(&copy);
        }
        let last = Page(&copy).len() - 1;
        for value in [&b""[..], b"other", &[9; 100]] {
            PageMut(&mut copy).leaf_replace(last, 1, value);
            good(&copy);
        }
        while Page(&copy).len() > 0 {
            let i = Page(&copy).len() / 2;
            PageMut(&mut copy).leaf_remove(i);
            good(&copy);
        }
    } else {
        let mut copy = image.to_vec();
        let i = page.len() - 1;
        if page.live().checked_add(3).is_some() {
            PageMut(&mut copy).set_child_live(i, 3);
            good(&copy);
        }
        while Page(&copy).len() > 0 {
            let i = Page(&copy).len() / 2;
            PageMut(&mut copy).inner_remove(i);
            good(&copy);
        }
    }
}

/// Reads bytes as a page without checking them: what no other code does.
#[cfg(test)]
pub fn use_unchecked(bytes: &[u8]) {
    read(Page(bytes));
}

/// A page, or the index, of the allocation map.
pub fn map_page(bytes: &[u8]) {
    let Some(geo) = Geometry::new(512) else {
        return;
    };
    let mut image = bytes.to_vec();
    image.resize(image.len().max(512).next_multiple_of(512), 0);
    let addr = Addr {
        unit: 300,
        birth: 9,
    };
    seal(&mut image, addr, SEED);
    let at = super::meta::MapIndexAt {
        unit: addr.unit,
        birth: addr.birth,
        units: (image.len() / 512) as u32,
        pages: get_u32(&image, 32),
    };
    let _ = map::check_index(&geo, &image, at, SEED);
    let number = get_u64(&image, 32).min(1000) as usize;
    let _ = map::check_page(&image[..512], number, addr, SEED, &mut Bitmap::default());
}

/// A run, header and all, held against the reference that its own header names. Whether it was accepted.
pub fn run(bytes: &[u8]) -> bool {
    let Some(geo) = Geometry::new(512) else {
        return false;
    };
    let mut image = bytes.to_vec();
    image.resize(image.len().max(512).next_multiple_of(512), 0);
    image[4] = KIND_RUN;
    let unit = get_u64(&image, 8);
    let Some(described) = runs::describe(&geo, &image, unit) else {
        return false;
    };
    let at = runs::RUN_HEADER + described.owner_key_bytes;
    let end = at + described.run.len as usize;
    if end > image.len() {
        let _ = runs::check(&geo, &image, described.run, SEED);
        return false;
    }
    let crc = runs::contents_crc(SEED, &image[at..end]);
    put_u32(&mut image, 28, crc);
    let head = runs::contents_crc(SEED, &image[4..at]);
    put_u32(&mut image, 0, head);
    let named = RunRef {
        crc,
        ..described.run
    };
    match runs::check(&geo, &image, named, SEED) {
        Ok(range) => {
            assert_eq!(range, at..end);
            true
        }
        Err(_) => false,
    }
}

/// A meta page. What is accepted encodes to what it came from, unused bytes aside.
pub fn meta_page(bytes: &[u8]) {
    let mut image = bytes.to_vec();
    image.resize(META_BYTES, 0);
    image[..8].copy_from_slice(b"QRTTREE\x01");
    let crc = crc32fast::hash(&image[12..]);
    put_u32(&mut image, 8, crc);
    let Ok(meta) = Untrusted(&image).verify() else {
        return;
    };
    let Some(geo) = Geometry::new(meta.page_bytes as usize) else {
        unreachable!("it was accepted")
    };
    let mut again = vec![0; META_BYTES];
    meta.encode(&geo, &mut again);
    assert_eq!(Untrusted(&again).verify(), Ok(meta));
}

/// A whole file with 512 byte pages, its checksums put right: opened, read from end to end both ways, checked. Says
/// what is wrong with it; that is not an error of ours.
pub fn file(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() < 131_072 || bytes.len() > 8 << 20 {
        return Err("not the size of a file".into());
    }
    let mut image = bytes.to_vec();
    let mut identity = [0; 16];
    identity.copy_from_slice(&image[24..40]);
    let seed = seed_of(&identity);
    for (i, unit) in image[131_072..].chunks_exact_mut(512).enumerate() {
        if unit.len() >= HEADER && matches!(unit[4], KIND_LEAF | KIND_INNER) {
            let addr = Addr {
                unit: 256 + i as u64,
                birth: get_u64(unit, 16),
            };
            seal(unit, addr, seed);
        }
    }
    let disk = Disk::new(1);
    let written = disk.create_new("store/tree.qdb").and_then(|file| {
        file.write_all_at(0, &image)?;
        file.sync_data()?;
        disk.sync_dir("store")
    });
    written.map_err(|error| error.to_string())?;
    let options = StoreOptions {
        page_bytes: 512,
        cache_bytes: 256 << 10,
        backend: IoBackend::Sim(disk),
        background: false,
        create: false,
        ..StoreOptions::new("store")
    };
    let text = |error: super::Error| error.to_string();
    let (store, mut writer, _) = Store::open(options).map_err(text)?;
    let snapshot = writer.publish();
    let mut wrong = Ok(());
    for tree in TreeId::ALL {
        let walk = || -> Result<()> {
            let mut cursor = snapshot.cursor(tree);
            let mut more = cursor.seek(b"")?;
            while more {
                let key = cursor.key().to_vec();
                snapshot.get(tree, &key)?;
                snapshot.count(tree, &key, None)?;
                more = cursor.next()?;
            }
            let mut more = cursor.seek_last()?;
            while more {
                more = cursor.prev()?;
            }
            Ok(())
        };
        if let Err(error) = walk() {
            wrong = Err(error.to_string());
        }
    }
    // Only the record layer knows who leads to which run: the checker must come to an end, and may object.
    let _ = store.check(&mut |_, _, _, _, _| Ok(()));
    wrong
}
