//! Durable appends of the log beside raft-engine, a plain file and the raw floor: one run, same file
//! system, same entries, alternating in short slices so that all of them meet the same neighbours.
//!
//!     cargo run --release -p raftlog-peers
//!
//! A round is what one flush carries: the entries of 1, 16, 256 or 2,048 writers that all wait for it, given
//! to each subject as one batch. So each writer's latency is its round's. The *floor* is a loop of
//! durable direct writes of as many bytes to a file that was written before; once more from memory in huge
//! pages, which the log uses where it gets them. The *file* grows by `write` and is synced by `fdatasync`.
//! raft-engine has its defaults but for compression, which is off. `fio` runs the floor's writes by itself.
//!
//! In rounds nothing can be encoded while a flush goes on, since all wait for it. The *pipeline* has as many
//! writers, each of which gives its next entry as soon as its last one is durable: what is given during a
//! flush is encoded then and goes with the next. The floor makes the very same writes after each slice.
//!
//! On ext4 and XFS on loop devices (needs root), or in `QUORATE_BENCH_DIR` or the system's temporary directory
//! as it is. Then all of it once more beside a process that appends to another file of the same file system
//! and syncs it without pause. At the end the marks, with the figures that meet or miss them.
//!
//! `QUORATE_BENCH_SLICES` (24) and `QUORATE_BENCH_SLICE_MS` (15) set how long; the default takes some five
//! minutes. `QUORATE_BENCH_ONLY=ext4` takes one file system.

#[path = "../../../../raftlog/src/tests/mounts.rs"]
mod mounts;
mod pipeline;
mod shared;
mod subjects;
mod table;

use mounts::Mounted;
use pipeline::Pipes;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use subjects::{Bare, Engine, Grown, Ours, Shape, Subject};
use table::{Cell, Run};

/// Writers and bytes of an entry.
const WRITERS: [u64; 4] = [1, 16, 256, 2048];
const BYTES: [usize; 3] = [300, 4096, 64 << 10];
/// One round takes no more than this many bytes; what is beyond is left out.
const ROUND_BYTES_MAX: u64 = 64 << 20;
/// How much the neighbour writes between two syncs.
const STORM_BYTES: usize = 8 << 20;
const STORM_FILE_BYTES: usize = 128 << 20;

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.and_then(|s| s.parse().ok()).unwrap_or(default)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, path] = &arguments[..]
        && word == "storm"
    {
        storm(Path::new(path));
    }
    let base = std::env::var_os("QUORATE_BENCH_DIR").map(PathBuf::from);
    let base = base.unwrap_or_else(std::env::temp_dir);
    let temp = tempfile::tempdir_in(&base).expect("a directory for the figures");
    println!("load before: {}", load());
    let (mut runs, mut pipes) = (Vec::new(), Vec::new());
    for kind in ["ext4", "xfs", "plain"] {
        if std::env::var("QUORATE_BENCH_ONLY").is_ok_and(|only| only != kind) {
            continue;
        }
        if kind == "plain" {
            // Only where the two others could not be had, or when asked for.
            if runs.is_empty() {
                runs.extend(run(kind, temp.path(), &mut pipes));
            }
            continue;
        }
        match Mounted::new(temp.path(), kind, 2600) {
            Ok(mounted) => runs.extend(run(kind, mounted.path(), &mut pipes)),
            Err(why) => println!("passed over {kind}: {why}"),
        }
    }
    println!("load after: {}", load());
    table::marks(&runs, &pipes);
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.trim().to_owned()
}

/// Quiet, in rounds and as a pipeline, then rounds beside the storm.
fn run(kind: &str, dir: &Path, pipes: &mut Vec<Pipes>) -> Vec<Run> {
    let mut runs = Vec::new();
    let quiet = pipeline::measure(kind, dir);
    quiet.print();
    pipes.push(quiet);
    for beside in [false, true] {
        let storm = beside.then(|| Storm::start(dir));
        let name = match beside {
            false => kind.to_owned(),
            true => format!("{kind}, beside a storm of syncs"),
        };
        let run = measure(name, dir);
        drop(storm);
        run.print();
        runs.push(run);
    }
    if let Some(text) = fio(dir) {
        println!("{text}");
    }
    runs
}

/// How many slices each subject gets in each shape, and how long they are.
fn slices() -> (u64, Duration) {
    let slice = number("QUORATE_BENCH_SLICE_MS", 15);
    (
        number("QUORATE_BENCH_SLICES", 24),
        Duration::from_millis(slice),
    )
}

fn measure(name: String, dir: &Path) -> Run {
    let temp = tempfile::tempdir_in(dir).expect("a directory for the subjects");
    let (slices, slice) = slices();
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for (name, huge) in [("floor", false), ("floor, huge pages", true)] {
        subjects.push(Box::new(Bare::open(temp.path(), name, huge)));
    }
    for (name, ring) in [("ours, pwritev2", false), ("ours, io_uring", true)] {
        match Ours::open(&temp.path().join(name), name, ring) {
            Ok(ours) => subjects.push(Box::new(ours)),
            Err(e) => println!("passed over: {e}"),
        }
    }
    subjects.push(Box::new(Grown::open(temp.path())));
    subjects.push(Box::new(Engine::open(&temp.path().join("raft-engine"))));
    for subject in &mut subjects {
        subject.settle();
    }
    let mut cells = Vec::new();
    for bytes in BYTES {
        for writers in WRITERS {
            let shape = Shape { writers, bytes };
            if shape.round_bytes() > ROUND_BYTES_MAX {
                continue;
            }
            let mut row: Vec<Cell> = subjects
                .iter()
                .map(|s| Cell::new(s.name(), shape))
                .collect();
            for subject in &mut subjects {
                subject.prepare(shape);
            }
            for _ in 0..slices {
                for (subject, cell) in subjects.iter_mut().zip(&mut row) {
                    one_slice(&mut **subject, cell, slice);
                }
            }
            cells.extend(row);
        }
    }
    Run { name, cells }
}

fn one_slice(subject: &mut dyn Subject, cell: &mut Cell, slice: Duration) {
    // Its own caches, not its neighbour's.
    subject.round();
    let before = table::used();
    let flushes = subject.flushes();
    let began = Instant::now();
    loop {
        let round = Instant::now();
        subject.round();
        let now = Instant::now();
        cell.note(now - round);
        if now - began >= slice {
            cell.slice(
                now - began,
                table::used() - before,
                subject.flushes() - flushes,
            );
            break;
        }
    }
    subject.tidy();
}

/// A process that appends and syncs until it is killed.
struct Storm(std::process::Child);

impl Storm {
    fn start(dir: &Path) -> Storm {
        let program = std::env::current_exe().expect("this program");
        let mut command = std::process::Command::new(program);
        command.arg("storm").arg(dir.join("storm"));
        Storm(command.spawn().expect("a process of our own"))
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        // It has no state worth ending well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn storm(path: &Path) -> ! {
    let data = vec![5; STORM_BYTES];
    loop {
        let mut file = std::fs::File::create(path).expect("a file to write to");
        for _ in 0..STORM_FILE_BYTES / STORM_BYTES {
            file.write_all(&data).expect("room");
            file.sync_all().expect("a disk that works");
        }
    }
}

/// The floor's writes by fio: one writer, blocks of 4, 8 and 68 KiB.
fn fio(dir: &Path) -> Option<String> {
    let mut text = String::from("fio, one writer, O_DIRECT and O_DSYNC, overwriting:");
    for kib in [4, 8, 68] {
        let file = dir.join("fio");
        let output = std::process::Command::new("fio")
            .args(["--name=floor", "--rw=write", "--direct=1", "--sync=dsync"])
            .args([
                "--ioengine=psync",
                "--size=64m",
                "--overwrite=1",
                "--minimal",
            ])
            .args(["--time_based", "--runtime=1", &format!("--bs={kib}k")])
            .arg(format!("--filename={}", file.display()))
            .output();
        let output = match output {
            Ok(output) if output.status.success() => output,
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                return Some(format!("passed over fio: {why}"));
            }
            Err(e) => return Some(format!("passed over fio: {e}")),
        };
        // The terse format, version 3: writes per second, then percentiles as `50.000000%=80`.
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let fields: Vec<&str> = line.trim().split(';').collect();
        let of = |n: usize| fields.get(n).copied().unwrap_or("?");
        let percentile = |p: &str| {
            let after = fields.iter().skip(48);
            let found = after.filter_map(|f| f.strip_prefix(p)).next();
            found.unwrap_or("?").to_owned()
        };
        text += &format!(
            " {kib} KiB {} writes/s, p50 {} µs, p99 {} µs;",
            of(48),
            percentile("50.000000%="),
            percentile("99.000000%=")
        );
        // Missing if fio made none.
        let _ = std::fs::remove_file(file);
    }
    Some(text)
}
