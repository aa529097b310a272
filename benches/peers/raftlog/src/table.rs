//! Counting, printing, and holding the figures against the marks.

use crate::pipeline::Pipes;
use crate::subjects::Shape;
use hdrhistogram::Histogram;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

/// What this process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Of all its threads, in user and system mode.
    cpu: Duration,
    /// Handed to the block layer, or dirtied in the page cache.
    written: u64,
}

impl Sub for Used {
    type Output = Used;
    fn sub(self, before: Used) -> Used {
        Used {
            cpu: self.cpu.saturating_sub(before.cpu),
            written: self.written.saturating_sub(before.written),
        }
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, more: Used) {
        self.cpu += more.cpu;
        self.written += more.written;
    }
}

impl Used {
    /// Processor time in microseconds.
    pub fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6
    }
}

pub fn used() -> Used {
    let mut spec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `spec` is written during the call only.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut spec) };
    assert_eq!(answer, 0, "this clock is always there");
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let written = io.lines().find_map(|l| l.strip_prefix("write_bytes: "));
    Used {
        cpu: Duration::new(spec.tv_sec as u64, spec.tv_nsec as u32),
        written: written.and_then(|w| w.parse().ok()).unwrap_or(0),
    }
}

/// A minute, in tenths of a microsecond.
const TENTHS_MAX: u64 = 600_000_000;

/// One subject in one shape.
pub struct Cell {
    pub subject: &'static str,
    pub shape: Shape,
    micros: Histogram<u64>,
    rounds: u64,
    took: Duration,
    used: Used,
    flushes: u64,
}

impl Cell {
    pub fn new(subject: &'static str, shape: Shape) -> Cell {
        Cell {
            subject,
            shape,
            micros: Histogram::new_with_bounds(1, TENTHS_MAX, 3).expect("sound bounds"),
            rounds: 0,
            took: Duration::ZERO,
            used: Used::default(),
            flushes: 0,
        }
    }

    pub fn note(&mut self, round: Duration) {
        // Tenths of a microsecond: a fast disk takes tens of them.
        self.micros.saturating_record(round.as_nanos() as u64 / 100);
        self.rounds += 1;
    }

    pub fn slice(&mut self, took: Duration, used: Used, flushes: u64) {
        self.took += took;
        self.used += used;
        self.flushes += flushes;
    }

    fn entries(&self) -> f64 {
        (self.rounds * self.shape.writers) as f64
    }

    fn per_second(&self) -> f64 {
        self.entries() / self.took.as_secs_f64()
    }

    fn flushes_per_second(&self) -> f64 {
        self.flushes as f64 / self.took.as_secs_f64()
    }

    fn micros(&self, quantile: f64) -> f64 {
        self.micros.value_at_quantile(quantile) as f64 / 10.0
    }

    fn cpu_micros(&self) -> f64 {
        self.used.cpu_micros() / self.entries()
    }
}

/// All cells on one file system, with or without neighbours.
pub struct Run {
    pub name: String,
    pub cells: Vec<Cell>,
}

impl Run {
    pub fn print(&self) {
        println!("\n### {}\n", self.name);
        println!(
            "| bytes | writers | subject | entries/s | p50 µs | p99 µs | p99.9 µs | flushes/entry | bytes written/entry | CPU µs/entry |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for c in &self.cells {
            println!(
                "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.4} | {:.0} | {:.2} |",
                c.shape.bytes,
                c.shape.writers,
                c.subject,
                c.per_second(),
                c.micros(0.5),
                c.micros(0.99),
                c.micros(0.999),
                c.flushes as f64 / c.entries(),
                c.used.written as f64 / c.entries(),
                c.cpu_micros(),
            );
        }
    }

    fn cell(&self, subject: &str, writers: u64, bytes: usize) -> Option<&Cell> {
        let shape = Shape { writers, bytes };
        self.cells
            .iter()
            .find(|c| c.subject == subject && c.shape == shape)
    }

    fn is_storm(&self) -> bool {
        self.name.contains("storm")
    }
}

const OURS: &str = "ours, pwritev2";

/// One mark: what is compared, the figure, what it would be for the floor, and whether it may be above or
/// must not be below the bound.
fn line(what: &str, figure: f64, floor: Option<f64>, bound: f64, at_most: bool) {
    let meets = |figure: f64| match at_most {
        true => figure <= bound,
        false => figure >= bound,
    };
    let word = if at_most { "at most" } else { "at least" };
    let verdict = match (meets(figure), floor.is_none_or(meets)) {
        (true, _) => "met",
        (false, true) => "MISSED",
        (false, false) => "MISSED, by the floor too",
    };
    let floor = floor.map_or("".into(), |f| format!("{f:.2}"));
    println!("| {what} | {word} {bound} | {figure:.2} | {floor} | {verdict} |");
}

/// The marks that the log is held to.
pub fn marks(runs: &[Run], pipes: &[Pipes]) {
    println!("\n### Marks\n");
    println!("| what | mark | found | the floor in its place | |");
    println!("|---|---|---|---|---|");
    for run in runs {
        let of = |subject: &str, writers, bytes| run.cell(subject, writers, bytes);
        let at = |what: String| format!("{}: {what}", run.name);
        for bytes in [300, 4096, 64 << 10] {
            let (Some(ours), Some(floor)) = (of(OURS, 1, bytes), of("floor", 1, bytes)) else {
                continue;
            };
            let grown = of("file, fdatasync", 1, bytes);
            if run.is_storm() {
                let Some(grown) = grown else { continue };
                for (q, word, bound) in [(0.5, "p50", 0.1), (0.99, "p99", 0.25)] {
                    let what = at(format!(
                        "1 writer, {bytes} B, {word} / {word} of a growing file"
                    ));
                    let of = |cell: &Cell| cell.micros(q) / grown.micros(q);
                    line(&what, of(ours), Some(of(floor)), bound, true);
                }
                continue;
            }
            let what = at(format!("1 writer, {bytes} B, p50 / floor's p50"));
            let ratio = ours.micros(0.5) / floor.micros(0.5);
            line(&what, ratio, None, 1.1, true);
        }
        if run.is_storm() {
            continue;
        }
        for pipe in pipes.iter().filter(|p| p.name == run.name) {
            for p in &pipe.pipes {
                let Shape { writers, bytes } = p.shape;
                if writers < 256 || bytes != 300 {
                    continue;
                }
                let what = at(format!(
                    "pipeline of {writers} writers, {bytes} B, {}, flushes/s / floor's with the same writes",
                    p.subject
                ));
                line(&what, p.of_floor(false), None, 0.9, false);
            }
        }
        for writers in [256, 2048] {
            if let (Some(ours), Some(floor)) = (of(OURS, writers, 300), of("floor", writers, 300)) {
                let what = at(format!(
                    "rounds of {writers} writers, 300 B, flushes/s / floor's"
                ));
                let ratio = ours.flushes_per_second() / floor.flushes_per_second();
                line(&what, ratio, None, 0.9, false);
            }
        }
        if let Some(ours) = of(OURS, 256, 300) {
            let what = at("256 writers, 300 B, CPU µs per entry".into());
            line(&what, ours.cpu_micros(), None, 0.5, true);
        }
        for ours in run.cells.iter().filter(|c| c.subject == OURS) {
            let Shape { writers, bytes } = ours.shape;
            let (Some(theirs), Some(floor)) = (
                of("raft-engine", writers, bytes),
                of("floor", writers, bytes),
            ) else {
                continue;
            };
            let bound = match (writers, run.name.as_str()) {
                (1, "xfs") => 1.6,
                (1, _) => 1.15,
                _ => 1.0,
            };
            let what = at(format!(
                "{writers} writers, {bytes} B, appends/s / raft-engine's"
            ));
            let of = |cell: &Cell| cell.per_second() / theirs.per_second();
            line(&what, of(ours), Some(of(floor)), bound, false);
        }
    }
}
