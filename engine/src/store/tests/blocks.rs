//! Crash images of real file systems: what a device may hold when the power goes, under ext4 and XFS and their journals.
//!
//! The file system lies on a loop device over a file of a FUSE file system that this test serves: it sees every block
//! write and every flush. A crash image is a prefix of that record in which each write since the last flush is there, torn
//! between sectors, or missing. The image is mounted, which replays the journal, and the store opened.
//!
//! Only with `QUORATE_LOOP` set; `QUORATE_IMAGES` (40) is the number of images per file system and backend.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::crash::{Story, change};
use super::*;
use crate::tests::loopback::{FileSystem, Mounted, run, run_on, wanted};

/// Room for the journals, too: that of XFS is not below some 6 MiB.
const DISK_BYTES: usize = 32 << 20;

/// What the device was asked to do.
enum Asked {
    Write(usize, Vec<u8>),
    Flush,
}

/// The device: what it holds, and how it came to that.
struct Device {
    bytes: Vec<u8>,
    record: Vec<Asked>,
}

// --- a file system of one file, in FUSE's own words ----------------------------------------------------------------------

const ROOT: u64 = 1;
const DISK: u64 = 2;
const WRITE_BYTES_MAX: u32 = 128 << 10;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn attributes(node: u64) -> Vec<u8> {
    let (mode, bytes) = match node {
        ROOT => (0o040_755u32, 0),
        _ => (0o100_600, DISK_BYTES as u64),
    };
    let mut out = Vec::new();
    for number in [node, bytes, bytes / 512, 0, 0, 0] {
        out.extend(number.to_le_bytes());
    }
    for number in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0u32] {
        out.extend(number.to_le_bytes());
    }
    out
}

/// The answer to one request: an error number or bytes; none where none is due.
fn answer(
    device: &Mutex<Device>,
    code: u32,
    node: u64,
    body: &[u8],
) -> Option<Result<Vec<u8>, i32>> {
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    const FOR_A_WHILE: u64 = 3600;
    Some(Ok(match code {
        // Lookup.
        1 if node == ROOT && body.starts_with(b"disk\0") => {
            let mut out = words(&[DISK, 0, FOR_A_WHILE, FOR_A_WHILE, 0]);
            out.extend(attributes(DISK));
            out
        }
        1 => return Some(Err(2)),
        // Forget, interrupt, forget many.
        2 | 36 | 42 => return None,
        // Attributes asked for or set.
        3 | 4 => {
            let mut out = words(&[FOR_A_WHILE, 0]);
            out.extend(attributes(node));
            out
        }
        // Open, also of the directory.
        14 | 27 => words(&[0, 0]),
        // Read.
        15 => {
            let (at, bytes) = (word(body, 8) as usize, half(body, 16) as usize);
            let device = lock(device);
            let from = at.min(device.bytes.len());
            device.bytes[from..(from + bytes).min(device.bytes.len())].to_vec()
        }
        // Write.
        16 => {
            let (at, bytes) = (word(body, 8) as usize, half(body, 16) as usize);
            let data = &body[40..40 + bytes];
            let mut device = lock(device);
            device.bytes[at..at + bytes].copy_from_slice(data);
            device.record.push(Asked::Write(at, data.to_vec()));
            words(&[bytes as u64])
        }
        // Figures of the file system.
        17 => {
            let mut out = words(&[1 << 20, 1 << 19, 1 << 19, 10, 10]);
            out.extend(
                [4096u32, 255, 4096, 0, 0, 0, 0, 0, 0, 0]
                    .iter()
                    .flat_map(|w| w.to_le_bytes()),
            );
            out
        }
        // Sync.
        20 => {
            lock(device).record.push(Asked::Flush);
            Vec::new()
        }
        // Release, flush at close, release of the directory, the end.
        18 | 25 | 29 | 38 => Vec::new(),
        // The greeting.
        26 => {
            let big_writes = 1u32 << 5;
            let mut out = Vec::new();
            for number in [
                7,
                31,
                half(body, 8),
                big_writes,
                12 | 10 << 16,
                WRITE_BYTES_MAX,
                1,
            ] {
                out.extend(u32::to_le_bytes(number));
            }
            out.resize(64, 0);
            out
        }
        _ => return Some(Err(38)),
    }))
}

/// Answers the kernel until the file system is unmounted.
fn serve(mut fuse: File, device: &Mutex<Device>) {
    let mut request = vec![0; WRITE_BYTES_MAX as usize + 8192];
    while let Ok(bytes) = fuse.read(&mut request) {
        let (code, unique, node) = (half(&request, 4), word(&request, 8), word(&request, 16));
        let Some(answer) = answer(device, code, node, &request[40..bytes]) else {
            continue;
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(number) => (-number, Vec::new()),
        };
        let mut out = (16 + body.len() as u32).to_le_bytes().to_vec();
        out.extend(error.to_le_bytes());
        out.extend(unique.to_le_bytes());
        out.extend(body);
        if fuse.write_all(&out).is_err() && code != 38 {
            return;
        }
    }
}

// --- the record and its images -----------------------------------------------------------------------------------------

/// What a run on the recorded file system left.
struct Recorded {
    kind: FileSystem,
    /// What the device held before the run.
    base: Vec<u8>,
    record: Vec<Asked>,
    story: Story,
    /// Length of the record when a checkpoint had been reported durable.
    durable: Vec<(usize, u64)>,
}

/// Undoes what a run set up, in reverse, also when it fails.
struct Undo(Vec<Vec<String>>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(command) = self.0.pop() {
            let args: Vec<&str> = command[1..].iter().map(String::as_str).collect();
            if let Err(what) = run(&command[0], &args) {
                eprintln!("{what}");
            }
        }
    }
}

fn record(kind: FileSystem, backend: IoBackend) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (served, mounted) = (at("served"), at("mounted"));
    let device = Arc::new(Mutex::new(Device {
        bytes: vec![0; DISK_BYTES],
        record: Vec::new(),
    }));
    let fuse = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let fd = "fd=0,rootmode=40000,user_id=0,group_id=0";
    run_on(
        "mount",
        &["-i", "-t", "fuse", "-o", fd, "recorder", &served],
        fuse.try_clone().unwrap().into(),
    )
    .expect("mounts");
    let server = {
        let device = device.clone();
        std::thread::spawn(move || serve(fuse, &device))
    };
    let owned = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
    let mut undo = Undo(vec![owned(&["umount", "-l", &served])]);
    let file = format!("{served}/disk");
    let node = run("losetup", &["-f", "--show", "--direct-io=on", &file]).expect("a loop device");
    undo.0.push(owned(&["losetup", "-d", &node]));
    kind.make(&node).expect("makes a file system");
    run("mount", &[&node, &mounted]).expect("mounts");
    undo.0.push(owned(&["umount", &mounted]));
    run("sync", &["-f", &mounted]).expect("syncs");
    let base = {
        let mut device = lock(&*device);
        device.record.clear();
        device.bytes.clone()
    };
    let mut story = Story::default();
    story.begun.insert(0, Model::new());
    let mut durable = Vec::new();
    let options = StoreOptions {
        backend,
        ..options(&std::path::Path::new(&mounted).join("store"))
    };
    let (store, mut writer, _) = Store::open(options).unwrap();
    let (mut rng, mut model) = (StdRng::seed_from_u64(5), Model::new());
    for round in 0..25 {
        change(&mut writer, &mut rng, &mut model, round).unwrap();
        writer.publish();
        if round % 5 == 4 {
            writer.request_shrink().unwrap();
            writer.publish();
        }
        let number = writer.checkpoint(vec![round as u8]).unwrap();
        story.begun.insert(number, model.clone());
        store.wait_durable(number).unwrap();
        durable.push((lock(&*device).record.len(), number));
        while writer.checkpoint_running() {
            std::thread::yield_now();
        }
    }
    drop((store, writer));
    let record = std::mem::take(&mut lock(&*device).record);
    drop(undo);
    server.join().unwrap();
    Recorded {
        kind,
        base,
        record,
        story,
        durable,
    }
}

impl Recorded {
    /// What the device may hold when the power goes after `len` requests.
    fn image(&self, len: usize, rng: &mut StdRng, flushes: bool) -> Vec<u8> {
        let flushed = self.record[..len]
            .iter()
            .rposition(|asked| flushes && matches!(asked, Asked::Flush))
            .unwrap_or(0);
        let mut bytes = self.base.clone();
        for (i, asked) in self.record[..len].iter().enumerate() {
            let Asked::Write(at, data) = asked else {
                continue;
            };
            let kept = i < flushed || rng.gen_bool(0.5);
            let torn = i >= flushed && rng.gen_ratio(1, 5);
            for (n, sector) in data.chunks(512).enumerate() {
                if kept && !(torn && rng.r#gen()) {
                    bytes[at + n * 512..][..sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }

    /// Mounts an image, opens the store in it and holds it against the story.
    fn examine(&self, len: usize, image: &[u8]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::write(&file, image).unwrap();
        let mounted = Mounted::image(dir, &file, self.kind)?;
        let at = mounted.path().join("store");
        let acknowledged = self.durable.iter().rev().find(|(mark, _)| *mark <= len);
        let options = StoreOptions {
            background: false,
            create: acknowledged.is_none(),
            ..options(&at)
        };
        let (store, mut writer, recovered) =
            Store::open(options).map_err(|error| format!("does not open: {error}"))?;
        let number = recovered.checkpoint;
        if acknowledged.is_some_and(|(_, durable)| number < *durable) {
            return Err(format!(
                "opens at {number}, but {acknowledged:?} was durable"
            ));
        }
        let snapshot = writer.publish();
        if self.story.begun.get(&number) != Some(&contents(&snapshot, TreeId::K)) {
            return Err(format!("opens at {number} with other contents"));
        }
        store
            .check(&mut runs_by_flag)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    /// How many of some images are wrong, and the first of them.
    fn wrong(&self, images: u64, flushes: bool) -> (u64, Option<String>) {
        let (mut wrong, mut first) = (0, None);
        for seed in 0..images {
            let mut rng = StdRng::seed_from_u64(seed);
            let len = rng.gen_range(1..=self.record.len());
            let image = self.image(len, &mut rng, flushes);
            if let Err(what) = self.examine(len, &image) {
                wrong += 1;
                first.get_or_insert(format!("seed {seed}, {len} requests: {what}"));
            }
        }
        (wrong, first)
    }
}

#[test]
fn crash_images_of_real_file_systems_hold_what_was_acknowledged() {
    if !wanted() {
        return;
    }
    let images = std::env::var("QUORATE_IMAGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40);
    for kind in FileSystem::all() {
        for backend in [IoBackend::Sync, IoBackend::Auto] {
            let recorded = record(kind, backend.clone());
            let flushes = recorded
                .record
                .iter()
                .filter(|a| matches!(a, Asked::Flush))
                .count();
            assert!(
                flushes >= 50,
                "two syncs per checkpoint reach the device: {flushes}"
            );
            let (wrong, first) = recorded.wrong(images, true);
            eprintln!(
                "{kind:?}, {backend:?}: {} requests, {flushes} flushes; {wrong} of {images} images wrong",
                recorded.record.len()
            );
            assert_eq!((wrong, first), (0, None), "{kind:?}, {backend:?}");
            // Negative control: a device for which a flush means nothing.
            let (wrong, _) = recorded.wrong(images.min(10), false);
            assert!(wrong > images.min(10) / 2, "{kind:?}: {wrong}");
        }
    }
}
