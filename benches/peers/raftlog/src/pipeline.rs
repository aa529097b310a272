//! The log as a pipeline: writers in a closed loop, each waiting for its own entry, and the floor with the
//! very same writes.

use crate::shared::{Floor, Owner};
use crate::subjects::{Shape, data};
use crate::table::{Used, used};
use crate::{BYTES, ROUND_BYTES_MAX, WRITERS, slices};
use bytes::Bytes;
use hdrhistogram::Histogram;
use raftlog::Backend;
use std::path::Path;
use std::time::{Duration, Instant};

/// One way of writing in one shape.
pub struct Pipe {
    pub subject: &'static str,
    pub shape: Shape,
    micros: Histogram<u64>,
    entries: u64,
    flushes: u64,
    took: Duration,
    used: Used,
    /// The same writes by the floor, from ordinary memory and from huge pages.
    floors: [Duration; 2],
}

impl Pipe {
    fn flushes_per_second(&self) -> f64 {
        self.flushes as f64 / self.took.as_secs_f64()
    }

    fn floor_per_second(&self, huge: bool) -> f64 {
        self.flushes as f64 / self.floors[usize::from(huge)].as_secs_f64()
    }

    /// Flushes per second in parts of the floor's, which makes the same writes.
    pub fn of_floor(&self, huge: bool) -> f64 {
        self.flushes_per_second() / self.floor_per_second(huge)
    }
}

/// All of them on one file system.
pub struct Pipes {
    pub name: String,
    pub pipes: Vec<Pipe>,
}

impl Pipes {
    pub fn print(&self) {
        println!("\n### {}, pipeline\n", self.name);
        println!(
            "| bytes | writers | subject | entries/s | p50 µs | p99 µs | p99.9 µs | flushes/s | the floor's | the floor's, huge pages | entries/flush | CPU µs/entry |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        for p in &self.pipes {
            let micros = |quantile| p.micros.value_at_quantile(quantile) as f64 / 10.0;
            println!(
                "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.2} |",
                p.shape.bytes,
                p.shape.writers,
                p.subject,
                p.entries as f64 / p.took.as_secs_f64(),
                micros(0.5),
                micros(0.99),
                micros(0.999),
                p.flushes_per_second(),
                p.floor_per_second(false),
                p.floor_per_second(true),
                p.entries as f64 / p.flushes as f64,
                p.used.cpu_micros() / p.entries as f64,
            );
        }
    }
}

pub fn measure(kind: &str, dir: &Path) -> Pipes {
    let temp = tempfile::tempdir_in(dir).expect("a directory for the subjects");
    let mut owners = Vec::new();
    for (name, backend) in [
        ("ours, pwritev2 in a thread", Backend::Sync),
        ("ours, io_uring", Backend::Uring),
    ] {
        match Owner::open(&temp.path().join(name), backend, true) {
            Ok(owner) => owners.push((name, owner)),
            Err(e) => println!("passed over: {e}"),
        }
    }
    let mut floors = [false, true].map(|huge| {
        let path = temp.path().join(format!("floor-{huge}"));
        Floor::open(&path, huge)
    });
    owners.iter().for_each(|(_, owner)| owner.settle());
    let (slices, slice) = slices();
    let mut pipes = Vec::new();
    for bytes in BYTES {
        for writers in WRITERS.into_iter().filter(|w| *w > 1) {
            let shape = Shape { writers, bytes };
            if shape.round_bytes() > ROUND_BYTES_MAX {
                continue;
            }
            let mut row: Vec<Pipe> = Vec::new();
            for (subject, owner) in &mut owners {
                owner.prepare(writers, Bytes::from(data(bytes)));
                row.push(Pipe {
                    subject,
                    shape,
                    micros: Histogram::new_with_bounds(1, 600_000_000, 3).expect("sound bounds"),
                    entries: 0,
                    flushes: 0,
                    took: Duration::ZERO,
                    used: Used::default(),
                    floors: [Duration::ZERO; 2],
                });
            }
            for _ in 0..slices {
                for ((_, owner), pipe) in owners.iter_mut().zip(&mut row) {
                    let writes = one_slice(owner, pipe, slice);
                    for (floor, took) in floors.iter_mut().zip(&mut pipe.floors) {
                        floor.write(writes[0]);
                        let began = Instant::now();
                        writes.iter().for_each(|n| floor.write(*n));
                        *took += began.elapsed();
                    }
                }
            }
            pipes.extend(row);
        }
    }
    Pipes {
        name: kind.to_owned(),
        pipes,
    }
}

/// The sizes of the flushes that a slice took.
fn one_slice(owner: &mut Owner, pipe: &mut Pipe, slice: Duration) -> Vec<usize> {
    owner.begin();
    // Its own caches, not its neighbour's.
    owner.turn(|_, _| ());
    let mut writes = Vec::new();
    let mut written = owner.log.stats().flushed_bytes;
    let before = used();
    let began = Instant::now();
    loop {
        owner.turn(|writers, since| {
            // Tenths of a microsecond.
            let waited = since.elapsed().as_nanos() as u64 / 100;
            pipe.micros.saturating_record_n(waited, writers as u64);
            pipe.entries += writers as u64;
        });
        let now = owner.log.stats().flushed_bytes;
        writes.push((now - written) as usize);
        written = now;
        if began.elapsed() >= slice {
            break;
        }
    }
    pipe.took += began.elapsed();
    pipe.used += used() - before;
    pipe.flushes += writes.len() as u64;
    owner.end();
    writes
}
