//! The bytes of the format, held fast: a file that these tests cannot read the same way any more is another format.

use super::*;

/// A small file, made by fixed calls with a fixed identity.
fn small_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        background: false,
        ..options(dir.path())
    };
    let (store, mut writer, _) = Store::open(options).unwrap();
    for (key, value) in [
        (&b"/a/one"[..], &b"1"[..]),
        (b"/a/two", b"22"),
        (b"/a/three", b"333"),
    ] {
        writer.insert(TreeId::K, key, LIVE, value).unwrap();
    }
    let run = writer
        .write_run(
            RunKind::Value,
            b"/a/run",
            *b"owner-0123456789",
            b"contents".as_slice().into(),
        )
        .unwrap();
    writer
        .insert(TreeId::K, b"/a/run", LIVE | BY_RUN, &run.to_bytes())
        .unwrap();
    writer.publish();
    checkpoint(&store, &mut writer, b"user");
    store.check(&mut runs_by_flag).unwrap();
    std::fs::read(dir.path().join("tree.qdb")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn meta_page() {
    let file = small_file();
    let meta = &file[65536..65536 + 4096];
    assert_eq!(&meta[..8], b"QRTTREE\x01");
    assert_eq!(
        hex(&meta[12..24]),
        "01000000".to_owned() + "00020000" + "00020000"
    );
    assert_eq!(&meta[24..40], b"test file 000001");
    // Checkpoint 1; five units behind the 256 of the meta blocks; the map index has one page.
    assert_eq!(
        hex(&meta[40..56]),
        "0100000000000000".to_owned() + "0401000000000000"
    );
    assert_eq!(hex(&meta[72..80]), "0100000001000000");
    // Root of K: present, a leaf, four live entries.
    assert_eq!(
        hex(&meta[88..106]),
        "0100000000000000".to_owned() + "0400000000000000" + "0001"
    );
    assert_eq!(hex(&meta[208..212]), "04000000");
    assert_eq!(&meta[256..260], b"user");
    assert_eq!(crc32fast::hash(&meta[12..]).to_le_bytes(), meta[8..12]);
}

#[test]
fn leaf_page() {
    let file = small_file();
    let page = file[131_072..]
        .chunks_exact(512)
        .find(|page| page[4] == 1)
        .unwrap();
    // Kind, level, tree, flags; birth; four entries.
    assert_eq!(hex(&page[4..8]), "01000000");
    assert_eq!(hex(&page[16..26]), "0100000000000000".to_owned() + "0400");
    assert_eq!(hex(&page[32..40]), "0400000000000000");
    // First slot: cell, key length, head "/a/o"; its cell: value length, flags, key, value.
    let off = usize::from(page[48]) + 256 * usize::from(page[49]);
    assert_eq!(hex(&page[50..52]), "0600");
    assert_eq!(
        u32::from_le_bytes(page[52..56].try_into().unwrap()),
        u32::from_be_bytes(*b"/a/o")
    );
    assert_eq!(&page[off..off + 10], b"\x01\x00\x01/a/one1");
    let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(b"test file 000001"));
    hasher.update(&page[4..]);
    assert_eq!(hasher.finalize().to_le_bytes(), page[..4]);
}

#[test]
fn run() {
    let file = small_file();
    let run = file[131_072..]
        .chunks_exact(512)
        .find(|page| page[4] == 5)
        .unwrap();
    assert_eq!(hex(&run[4..8]), "05010000");
    assert_eq!(
        hex(&run[16..28]),
        "0100000000000000".to_owned() + "08000000"
    );
    assert_eq!(hex(&run[32..40]), "0600000001000000");
    assert_eq!(&run[40..56], b"owner-0123456789");
    assert_eq!(&run[64..78], b"/a/runcontents");
    assert!(run[78..].iter().all(|byte| *byte == 0));
}

#[test]
fn whole_file() {
    let file = small_file();
    assert_eq!(
        crc32fast::hash(&file[..133_632]),
        GOLDEN,
        "the format changed: raise its number and write down how"
    );
}

const GOLDEN: u32 = 2_464_945_200;
