//! Transcripts: what a script of `etcdctl` commands prints, made comparable.
//!
//! Two servers that behave alike still print different ids, ports, times, sizes and raft indexes.
//! [`Masks`] replaces exactly those; everything else must agree byte for byte.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::PATIENCE;
use crate::client::Client;
use crate::server::Server;

/// What stands for what in one server's output.
#[derive(Clone, Debug, Default)]
pub struct Masks {
    /// `(text, name)`: longer texts first.
    texts: Vec<(String, String)>,
}

/// JSON keys and `-w fields` names whose numbers depend on the server's files and log, not on what the
/// script did.
const NUMBERS: [&str; 10] = [
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftAppliedIndex",
    "DBSize",
    "DBSizeInUse",
    "RaftIndex",
    "RaftAppliedIndex",
    "ttl",
    "TTL",
];

/// Columns of tables for which the same holds.
const COLUMNS: [&str; 7] = [
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "TOOK",
    "VERSION",
];

impl Masks {
    /// The masks of a server: its ids, URLs and version.
    pub async fn of(server: &Server) -> Masks {
        let client = Client::new(server.connect().await);
        let status = client.status().await;
        let header = status.header.expect("a header");
        let mut masks = Masks::default();
        masks.text(server.url(), "http://CLIENT");
        masks.text(server.url().trim_start_matches("http://"), "CLIENT");
        masks.text(server.peer_url(), "http://PEER");
        masks.text(&status.version, "VERSION");
        masks.id(header.member_id, "MEMBER");
        masks.id(header.cluster_id, "CLUSTER");
        masks
    }

    fn text(&mut self, text: &str, name: &str) {
        self.texts.push((text.to_owned(), name.to_owned()));
        self.texts.sort_by_key(|(text, _)| usize::MAX - text.len());
    }

    /// An id is printed in hexadecimal, with leading zeros or without, or in decimal.
    pub fn id(&mut self, id: u64, name: &str) {
        self.text(&format!("{id:016x}"), name);
        self.text(&format!("{id:x}"), name);
        self.text(&id.to_string(), name);
    }

    /// The output with everything masked.
    pub fn apply(&self, output: &str) -> String {
        let mut output = output.to_owned();
        for (text, name) in &self.texts {
            output = output.replace(text, name);
        }
        let mut masked = String::new();
        let mut columns: Vec<bool> = Vec::new();
        for line in output.lines() {
            let line = match line.chars().next() {
                Some('+') if line.trim_matches(['+', '-']).is_empty() => "+-+".to_owned(),
                Some('┌' | '├' | '└') => "+-+".to_owned(),
                Some('|' | '│') => table_row(line, &mut columns),
                _ => self.line(line),
            };
            masked.push_str(&line);
            masked.push('\n');
        }
        masked
    }

    fn line(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for name in NUMBERS {
            line = mask_number(&line, &format!("\"{name}\":"));
            line = mask_number(&line, &format!("\"{name}\" : "));
        }
        line = mask_number(&line, "remaining(");
        for (start, end) in [
            ("took = ", None),
            ("]. took ", None),
            ("\"took\":\"", Some('"')),
            ("\"Took\" : \"", Some('"')),
            ("\"ts\":\"", Some('"')),
            ("\"target\":\"", Some('"')),
            ("\"caller\":\"", Some('"')),
            ("LocalAddr: '", Some('\'')),
        ] {
            line = mask_text(&line, start, end);
        }
        let endpoint = line.trim_start_matches("http://");
        if endpoint.starts_with("CLIENT, MEMBER, ") {
            line = status_line(&line);
        }
        line
    }
}

/// A row of a table: cells without padding, and those of masked columns as `*`. The first row of a table
/// names the columns.
fn table_row(line: &str, columns: &mut Vec<bool>) -> String {
    let border = ['|', '│'];
    let cells = line.trim_matches(border).split(border);
    let cells: Vec<&str> = cells.map(str::trim).collect();
    let is_head = cells.iter().any(|c| matches!(*c, "ENDPOINT" | "ID"))
        && cells.iter().all(|c| c.to_uppercase() == **c);
    if is_head {
        *columns = cells.iter().map(|c| COLUMNS.contains(c)).collect();
    }
    let mask = |(n, cell): (usize, &&str)| match columns.get(n) {
        Some(true) if !is_head => "*".to_owned(),
        _ => (*cell).to_owned(),
    };
    let cells: Vec<String> = cells.iter().enumerate().map(mask).collect();
    format!("| {} |", cells.join(" | "))
}

/// The one-line form of `endpoint status`: sizes, shares and the two indexes after the term.
fn status_line(line: &str) -> String {
    let mut numbers = 0;
    let mask = |cell: &str| {
        let is_number = !cell.is_empty() && cell.bytes().all(|b| b.is_ascii_digit());
        numbers += usize::from(is_number);
        let is_size = cell.ends_with('%')
            || cell
                .split_once(' ')
                .is_some_and(|(number, unit)| number.parse::<f64>().is_ok() && unit.ends_with('B'));
        if is_size || (is_number && numbers > 1) {
            "*".to_owned()
        } else {
            cell.to_owned()
        }
    };
    let cells: Vec<String> = line.split(", ").map(mask).collect();
    cells.join(", ")
}

/// Replaces the number after each `start` by `N`.
fn mask_number(line: &str, start: &str) -> String {
    mask(line, start, |rest| {
        rest.find(|c: char| !c.is_ascii_digit() && c != '-')
            .unwrap_or(rest.len())
    })
}

/// Replaces the text after each `start`, up to `end` (the end of the word without one), by `N`.
fn mask_text(line: &str, start: &str, end: Option<char>) -> String {
    mask(line, start, |rest| {
        let found = match end {
            Some(end) => rest.find(end),
            None => rest.find(char::is_whitespace),
        };
        found.unwrap_or(rest.len())
    })
}

fn mask(line: &str, start: &str, length: impl Fn(&str) -> usize) -> String {
    let mut masked = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(start) {
        let (before, after) = rest.split_at(at + start.len());
        let skip = length(after);
        masked.push_str(before);
        if skip > 0 {
            masked.push('N');
        }
        rest = &after[skip..];
    }
    masked + rest
}

/// Runs one script of `dir` with a client against a server; returns the masked output.
///
/// Panics when the script hangs.
pub async fn run(server: &Server, etcdctl: &Path, dir: &Path, script: &str) -> String {
    let mut masks = Masks::of(server).await;
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let names = scratch.path().join("masks");
    let output_path = scratch.path().join("transcript");
    let output = std::fs::File::create(&output_path).expect("a file");
    std::fs::write(&names, "").expect("a file");
    let endpoint = server.url().trim_start_matches("http://");
    let mut command = Command::new("sh");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCDCTL") {
            command.env_remove(name);
        }
    }
    // Needed by 3.4, and later ones complain of it.
    if etcdctl.to_string_lossy().ends_with("3.4") {
        command.env("ETCDCTL_API", "3");
    }
    let mut child = command
        .arg("-c")
        .arg(". ./common.sh; . \"./$SCRIPT\"")
        .current_dir(dir)
        .env("SCRIPT", script)
        .env("ETCDCTL", etcdctl)
        .env("ETCDCTL_ENDPOINTS", endpoint)
        .env("SCRATCH", scratch.path())
        .env("MASKS", &names)
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a handle"))
        .stderr(output)
        .spawn()
        .expect("sh");
    let began = Instant::now();
    let read =
        || String::from_utf8_lossy(&std::fs::read(&output_path).expect("output")).into_owned();
    while child.try_wait().expect("waiting for sh").is_none() {
        if began.elapsed() > 4 * PATIENCE {
            // It has ended already if this fails.
            let _ = child.kill();
            panic!("{script} hangs after:\n{}", read());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    for line in std::fs::read_to_string(&names).expect("masks").lines() {
        let (name, id) = line.split_once(' ').expect("NAME value");
        // A grant that failed leaves no number.
        if let Ok(id) = u64::from_str_radix(id, 16) {
            masks.id(id, name);
        }
    }
    masks.text(&scratch.path().display().to_string(), "SCRATCH");
    masks.apply(&read())
}

/// The lines in which two transcripts differ, with the command they belong to; `None` when they agree.
///
/// `known` are commands whose output is known to differ. It must: one that agrees is reported too.
pub fn difference(expected: &str, got: &str, known: &[&str]) -> Option<String> {
    let sections = |text: &str| -> Vec<String> { text.split("\n$ ").map(str::to_owned).collect() };
    let (expected, got) = (sections(expected), sections(got));
    let mut report = String::new();
    for n in 0..expected.len().max(got.len()) {
        let (e, g) = (expected.get(n), got.get(n));
        let command = e.and_then(|e| e.lines().next()).unwrap_or_default();
        if known.contains(&command) {
            if e == g {
                report += &format!("--- no longer differs\n$ {command}\n");
            }
        } else if e != g {
            let text = |s: Option<&String>| s.map_or("(nothing)", |s| s.as_str()).to_owned();
            report += &format!("--- expected\n$ {}\n--- got\n$ {}\n", text(e), text(g));
        }
    }
    (!report.is_empty()).then_some(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks() -> Masks {
        let mut masks = Masks::default();
        masks.text("127.0.0.1:2379", "CLIENT");
        masks.id(0x8e9e05c52164694d, "MEMBER");
        masks.text("3.6.14", "VERSION");
        masks
    }

    #[test]
    fn masks_what_depends_on_the_server_and_nothing_else() {
        let masked = |text: &str| masks().apply(text);
        let line = r#"{"member_id":10276657743932975437,"dbSize":20480,"revision":12}"#;
        assert_eq!(
            masked(line),
            "{\"member_id\":MEMBER,\"dbSize\":N,\"revision\":12}\n"
        );
        assert_eq!(
            masked("lease 1 granted with TTL(100s), remaining(98s)"),
            "lease 1 granted with TTL(100s), remaining(Ns)\n"
        );
        assert_eq!(
            masked("127.0.0.1:2379 is healthy: successfully committed proposal: took = 2.1ms"),
            "CLIENT is healthy: successfully committed proposal: took = N\n"
        );
        assert_eq!(
            masked("127.0.0.1:2379, 8e9e05c52164694d, 3.6.14, 20 kB, true, false, 2, 4, 4, "),
            "CLIENT, MEMBER, VERSION, *, true, false, 2, *, *, \n"
        );
        assert_eq!(masked("\"DBSize\" : 20480"), "\"DBSize\" : N\n");
    }

    #[test]
    fn masks_columns_of_tables() {
        let table = "\
+----------+---------+----------+\n\
| ENDPOINT | DB SIZE | REVISION |\n\
+----------+---------+----------+\n\
|       e1 |   20 kB |        7 |\n\
+----------+---------+----------+\n";
        assert_eq!(
            masks().apply(table),
            "+-+\n| ENDPOINT | DB SIZE | REVISION |\n+-+\n| e1 | * | 7 |\n+-+\n"
        );
    }

    #[test]
    fn differences_name_the_command() {
        let one = "\n$ etcdctl get a\n1\n[exit 0]\n\n$ etcdctl get b\n2\n[exit 0]\n";
        assert_eq!(difference(one, one, &[]), None);
        let other = one.replace("\n2\n", "\n3\n");
        let report = difference(one, &other, &[]).expect("they differ");
        assert!(report.contains("etcdctl get b") && !report.contains("etcdctl get a"));
        let known = ["etcdctl get b"];
        assert_eq!(difference(one, &other, &known), None);
        let report = difference(one, one, &known).expect("known to differ, and does not");
        assert!(report.contains("no longer differs"));
    }
}
