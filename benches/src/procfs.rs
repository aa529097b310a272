//! What a process has used, read from `/proc`.

use std::fs;

/// Totals since the process started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User plus system time, microseconds (resolution: one clock tick).
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Bytes handed to the block layer.
    pub written_bytes: u64,
}

/// Reads the usage of a process; `None` once it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold blanks and parentheses; fields are counted after the last ')'.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Some(Usage {
        cpu_us: ticks * 1_000_000 / ticks_per_second(),
        rss_bytes: field(&status, "VmRSS:").unwrap_or(0) * 1024,
        written_bytes: field(&io, "write_bytes:").unwrap_or(0),
    })
}

fn ticks_per_second() -> u64 {
    // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let mut x = 1u64;
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(50) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.cpu_us > 0);
        assert!(usage.rss_bytes > 0);
        assert!(super::usage(u32::MAX - 1).is_none());
    }
}
