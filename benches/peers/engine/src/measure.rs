//! Clocks and counters of this process, and tables.

use std::time::Instant;

use hdrhistogram::Histogram;

/// CPU time of this thread in microseconds: a busy machine disturbs it less than the clock.
pub fn cpu_micros() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the struct it is given.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// CPU time of all threads of the process in microseconds.
pub fn process_cpu_micros() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: as above.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// How often this thread has waited for something: a lock, a queue, the disk. Being pushed off its core does not count.
pub fn waits() -> i64 {
    // SAFETY: an all-zero struct of integers is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the struct it is given.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    assert_eq!(failed, 0);
    usage.ru_nvcsw
}

/// Bytes this process had the storage layer write so far.
pub fn written_bytes() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> u64 {
    field("/proc/self/status", "VmRSS:") * 1024
}

/// Memory that the allocator has handed out and not got back, in bytes; resident beyond it is what it keeps.
pub fn allocated_bytes() -> u64 {
    // SAFETY: the call takes nothing and returns a struct of integers.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Bytes free on the file system that holds `dir`.
pub fn free_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).expect("no zero in a path");
    // SAFETY: an all-zero struct of integers is valid, and the call fills it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in a zero and `stat` lives as long as the call.
    match unsafe { libc::statvfs(path.as_ptr(), &mut stat) } {
        0 => stat.f_bavail * stat.f_frsize,
        _ => 0,
    }
}

/// CPU microseconds of this thread per call of `f`, over `n` calls.
pub fn per_call(n: u64, mut f: impl FnMut(u64)) -> f64 {
    let before = cpu_micros();
    (0..n).for_each(&mut f);
    (cpu_micros() - before) / n as f64
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Times in nanoseconds.
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Times {
        Times(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("valid bounds"))
    }
}

impl Times {
    /// Runs `f` and notes how long it took.
    pub fn time<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = f();
        self.0
            .saturating_record(started.elapsed().as_nanos() as u64);
        result
    }

    /// Notes a time.
    pub fn record(&mut self, took: std::time::Duration) {
        self.0.saturating_record(took.as_nanos() as u64);
    }

    /// A quantile in microseconds.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub fn max_micros(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Prints a table in Markdown.
pub fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n");
    println!("| {} |", head.join(" | "));
    println!("|{}|", vec!["---"; head.len()].join("|"));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// A figure with about three digits.
pub fn short(figure: f64) -> String {
    match figure.abs() {
        x if x >= 100.0 => format!("{figure:.0}"),
        x if x >= 10.0 => format!("{figure:.1}"),
        x if x >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}
