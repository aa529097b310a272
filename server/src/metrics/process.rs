//! What the kernel knows about this process, read from `/proc` at each scrape.
//!
//! A value that cannot be read keeps its last state: a scrape never fails because of it.

use super::Builder;
use prometheus::{Counter, Gauge};
use std::fs;
use std::sync::Mutex;

/// The standard process metrics of Prometheus clients, and etcd's two about file descriptors.
pub struct Process {
    cpu_seconds: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    start_time: Gauge,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    virtual_bytes_max: Gauge,
    received_bytes: Counter,
    transmitted_bytes: Counter,
    os_fd_used: Gauge,
    os_fd_limit: Gauge,
    /// Two scrapes at once must not both advance a counter by the same difference.
    refreshing: Mutex<()>,
}

impl Process {
    pub(super) fn new(b: &mut Builder) -> Process {
        Process {
            cpu_seconds: b.float_counter(
                "process_cpu_seconds_total",
                "User and system time of the process, in seconds.",
            ),
            open_fds: b.float_gauge("process_open_fds", "Open file descriptors."),
            max_fds: b.float_gauge("process_max_fds", "Limit of open file descriptors."),
            start_time: b.float_gauge(
                "process_start_time_seconds",
                "Unix time at which the process started, in seconds.",
            ),
            resident_bytes: b.float_gauge("process_resident_memory_bytes", "Resident memory."),
            virtual_bytes: b.float_gauge("process_virtual_memory_bytes", "Address space."),
            virtual_bytes_max: b.float_gauge(
                "process_virtual_memory_max_bytes",
                "Limit of the address space.",
            ),
            received_bytes: b.float_counter(
                "process_network_receive_bytes_total",
                "Bytes received by the network namespace.",
            ),
            transmitted_bytes: b.float_counter(
                "process_network_transmit_bytes_total",
                "Bytes sent by the network namespace.",
            ),
            os_fd_used: b.float_gauge("os_fd_used", "Open file descriptors."),
            os_fd_limit: b.float_gauge("os_fd_limit", "Limit of open file descriptors."),
            refreshing: Mutex::new(()),
        }
    }

    pub(super) fn refresh(&self) {
        let _one = self.refreshing.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(stat) = read("stat").as_deref().and_then(parse_stat) {
            advance(&self.cpu_seconds, stat.cpu_ticks as f64 / clock_ticks());
            self.virtual_bytes.set(stat.virtual_bytes as f64);
            self.resident_bytes
                .set(stat.resident_pages as f64 * page_bytes());
            if let Some(boot) = boot_time() {
                self.start_time
                    .set(boot + stat.start_ticks as f64 / clock_ticks());
            }
        }
        if let Some(limits) = read("limits") {
            if let Some(max) = parse_limit(&limits, "Max open files") {
                self.max_fds.set(max);
                self.os_fd_limit.set(max);
            }
            if let Some(max) = parse_limit(&limits, "Max address space") {
                self.virtual_bytes_max.set(max);
            }
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            let open = fds.count() as f64;
            self.open_fds.set(open);
            self.os_fd_used.set(open);
        }
        if let Some((received, sent)) = read("net/netstat").as_deref().and_then(parse_netstat) {
            advance(&self.received_bytes, received);
            advance(&self.transmitted_bytes, sent);
        }
    }
}

/// Brings a counter to `value` if that is further.
fn advance(counter: &Counter, value: f64) {
    let step = value - counter.get();
    if step > 0.0 {
        counter.inc_by(step);
    }
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{name}")).ok()
}

struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// The second field, the name of the program, may contain spaces and parentheses: fields are counted
/// from the last parenthesis, where the third one begins.
fn parse_stat(stat: &str) -> Option<Stat> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

/// The soft limit of a line of `/proc/self/limits`; unlimited is the largest number of 64 bits.
fn parse_limit(limits: &str, name: &str) -> Option<f64> {
    let line = limits.lines().find(|line| line.starts_with(name))?;
    match line[name.len()..].split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        soft => soft.parse().ok(),
    }
}

/// Bytes in and out of the IP layer: a line of names, then a line of values.
fn parse_netstat(netstat: &str) -> Option<(f64, f64)> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name: &str| {
        let at = names.split_whitespace().position(|n| n == name)?;
        values.split_whitespace().nth(at)?.parse::<f64>().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find(|line| line.starts_with("btime "))?;
    line["btime ".len()..].trim().parse().ok()
}

fn clock_ticks() -> f64 {
    // SAFETY: `sysconf` takes no pointer and has no precondition.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

fn page_bytes() -> f64 {
    // SAFETY: `sysconf` takes no pointer and has no precondition.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if bytes > 0 { bytes as f64 } else { 4096.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 11 22 0 0 20 0 1 0 333 4444 55 1844";
        let stat = parse_stat(stat).unwrap();
        assert_eq!(
            (stat.cpu_ticks, stat.start_ticks),
            (33, 333),
            "user and system time, start"
        );
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (4444, 55));
    }

    #[test]
    fn limits_and_traffic_are_found_by_name() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(parse_limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(
            parse_limit(limits, "Max address space"),
            Some(u64::MAX as f64)
        );
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 5 60 70\n";
        assert_eq!(parse_netstat(netstat), Some((60.0, 70.0)));
    }

    #[test]
    fn this_process_is_measured() {
        let mut builder = Builder {
            registry: prometheus::Registry::new(),
            specs: Vec::new(),
        };
        let process = Process::new(&mut builder);
        process.refresh();
        assert!(process.resident_bytes.get() > 0.0);
        assert!(process.open_fds.get() >= 3.0);
        assert!(process.max_fds.get() >= process.open_fds.get());
        assert!(process.start_time.get() > 1.5e9);
        let before = process.cpu_seconds.get();
        process.refresh();
        assert!(process.cpu_seconds.get() >= before);
    }
}
