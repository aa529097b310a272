//! Durable appends: the log with each backend against a bare loop of durable block writes.
//!
//! A round is what one flush carries: the entries of 1 to 2,048 writers that all wait for it. The
//! bare loop writes as many zero-padded bytes with one `pwritev2(RWF_DSYNC)` to a pre-written file
//! opened with `O_DIRECT`: no log can be faster on the same disk. Files lie in the system's temporary
//! directory, or in `QUORATE_BENCH_DIR`. Compare medians within one run only: the disk is shared.
//! Percentiles, CPU per entry, raft-engine, and neighbours that sync: `log-figures` in `benches/peers`.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raftlog::{BLOCK_BYTES, Backend, ENTRY_OVERHEAD_BYTES, Entry, HardState, Log, Options};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const BATCH_HEADER_BYTES: usize = 64;
const BARE_FILE_BYTES: usize = 64 << 20;
/// The log's largest single write.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Larger rounds are left out.
const ROUND_BYTES_MAX: usize = 32 << 20;
/// What the log keeps.
const KEEP_BYTES: usize = 96 << 20;

/// A log and a raft-like owner of it, who commits and trims as it goes.
struct Writer {
    log: Log,
    data: Bytes,
}

impl Writer {
    fn open(dir: &Path, backend: Backend, flush_thread: bool, bytes: usize) -> Option<Writer> {
        let options = Options {
            backend,
            flush_thread,
            ..Options::new(dir)
        };
        let (log, _) = Log::open(options).ok()?;
        let data = Bytes::from(vec![7; bytes]);
        Some(Writer { log, data })
    }

    fn round(&mut self, writers: u64) {
        let last = self.log.last_index();
        let entries: Vec<Entry> = (last + 1..=last + writers)
            .map(|index| Entry {
                index,
                term: 1,
                kind: 0,
                data: self.data.clone(),
            })
            .collect();
        let hard_state = HardState {
            term: 1,
            vote: 1,
            commit: last,
        };
        let mark = self
            .log
            .append(&entries, Some(hard_state))
            .expect("there is room");
        assert!(self.log.sync().covers(mark));
        self.trim(last);
    }

    fn trim(&mut self, last: u64) {
        let keep = (KEEP_BYTES / self.data.len()) as u64;
        if last > keep {
            self.log.trim(last - keep);
        }
    }

    /// The writers in two halves: one is encoded while the other is being made durable.
    fn pipelined(&mut self, writers: u64) {
        for _ in 0..2 {
            let last = self.log.last_index();
            let entries: Vec<Entry> = (last + 1..=last + writers / 2)
                .map(|index| Entry {
                    index,
                    term: 1,
                    kind: 0,
                    data: self.data.clone(),
                })
                .collect();
            let hard_state = HardState {
                term: 1,
                vote: 1,
                commit: last,
            };
            let appended = self.log.append(&entries, Some(hard_state));
            appended.expect("there is room");
            // The half before, then this one starts.
            self.log.wait();
            self.log.flush();
            self.trim(last);
        }
    }
}

/// One aligned buffer and one pre-written file.
struct Bare {
    file: File,
    buffer: *mut u8,
    layout: Layout,
    offset: usize,
    /// In a round.
    writes: usize,
}

impl Bare {
    fn open(dir: &Path, bytes: usize) -> Bare {
        let path = dir.join("bare");
        std::fs::write(&path, vec![0; BARE_FILE_BYTES]).expect("pre-write");
        let open = |flags| {
            OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(&path)
        };
        // Not every file system has O_DIRECT.
        let file = open(libc::O_DIRECT).or_else(|_| open(0)).expect("open");
        file.sync_all().expect("sync");
        let left = bytes.next_multiple_of(BLOCK_BYTES);
        let bytes = left.min(WRITE_BYTES_MAX);
        let layout = Layout::from_size_align(bytes, BLOCK_BYTES).expect("a valid layout");
        // SAFETY: the layout's size is not zero; the memory is freed once, with the same layout.
        let buffer = unsafe { alloc_zeroed(layout) };
        assert!(!buffer.is_null(), "out of memory");
        Bare {
            file,
            buffer,
            layout,
            offset: 0,
            writes: left.div_ceil(bytes),
        }
    }

    fn round(&mut self) {
        for _ in 0..self.writes {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.offset + self.layout.size() > BARE_FILE_BYTES {
            self.offset = 0;
        }
        let part = libc::iovec {
            iov_base: self.buffer.cast(),
            iov_len: self.layout.size(),
        };
        // SAFETY: the descriptor is open and `part` names memory that lives as long as `self`.
        let written = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                &part,
                1,
                self.offset as libc::off_t,
                libc::RWF_DSYNC,
            )
        };
        assert_eq!(written, self.layout.size() as isize);
        self.offset += self.layout.size();
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: allocated in `open` with this layout, and not freed before.
        unsafe { dealloc(self.buffer, self.layout) }
    }
}

fn durable_append(c: &mut Criterion) {
    let base = std::env::var_os("QUORATE_BENCH_DIR").map(std::path::PathBuf::from);
    let base = base.unwrap_or_else(std::env::temp_dir);
    for bytes in [300usize, 4096, 64 << 10] {
        let mut group = c.benchmark_group(format!("durable_append/{bytes}B"));
        for writers in [1u64, 16, 256, 2048] {
            if writers as usize * bytes > ROUND_BYTES_MAX {
                continue;
            }
            group.throughput(Throughput::Elements(writers));
            let temp = tempfile::tempdir_in(&base).expect("a directory for the bench");
            let padded = BATCH_HEADER_BYTES + writers as usize * (bytes + ENTRY_OVERHEAD_BYTES);
            let mut bare = Bare::open(temp.path(), padded);
            group.bench_function(BenchmarkId::new("bare", writers), |b| {
                b.iter(|| bare.round());
            });
            for (name, backend, thread) in [
                ("pwritev2", Backend::Sync, false),
                ("io_uring", Backend::Uring, false),
                ("pwritev2, pipelined", Backend::Sync, true),
                ("io_uring, pipelined", Backend::Uring, true),
            ] {
                let dir = temp.path().join(name);
                let Some(mut writer) = Writer::open(&dir, backend, thread, bytes) else {
                    eprintln!("{name} does not work here");
                    continue;
                };
                if thread && writers == 1 {
                    continue;
                }
                group.bench_function(BenchmarkId::new(name, writers), |b| match thread {
                    false => b.iter(|| writer.round(writers)),
                    true => b.iter(|| writer.pipelined(writers)),
                });
            }
        }
        group.finish();
    }
}

/// What a follower that has fallen behind costs: reading entries back from the disk.
fn read_back(c: &mut Criterion) {
    let temp = tempfile::tempdir().expect("a directory for the bench");
    let mut writer = Writer::open(temp.path(), Backend::Auto, false, 300).expect("the log opens");
    for _ in 0..20 {
        writer.round(256);
    }
    let last = writer.log.last_index();
    let mut group = c.benchmark_group("read_back");
    group.throughput(Throughput::Elements(256));
    group.bench_function("256 entries of 300 B", |b| {
        let mut from = 1;
        b.iter(|| {
            from = if from + 512 > last { 1 } else { from + 256 };
            let read = writer.log.entries(from, from + 256, usize::MAX);
            assert_eq!(read.expect("durable entries").len(), 256);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(3));
    targets = durable_append, read_back
}
criterion_main!(benches);
