//! Scripts of `etcdctl` commands, of several releases, against our server and a real etcd of the release
//! we announce (or the nearest there is): what they print must agree byte for byte, apart from what
//! [`quorate_tests::transcript`] masks.
//!
//! `tests/tools/fetch-etcd.sh` provides the programs. Where `QUORATE_ETCD_DIR` names its directory they
//! must be there; without it, and without them, there is nothing to compare and the tests say so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_tests::server::{Program, Server, etcd_tool};
use quorate_tests::transcript;

const SCRIPTS: [&str; 10] = [
    "put-get.sh",
    "sort.sh",
    "del.sh",
    "txn.sh",
    "watch.sh",
    "watch-interactive.sh",
    "lease.sh",
    "compact.sh",
    "maintenance.sh",
    "lock.sh",
];

/// Known deviations of ours: the client, the command, and why. None is left.
const KNOWN: &[(&str, &str, &str)] = &[];

fn scripts_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn tool(name: &str) -> Option<PathBuf> {
    let found = etcd_tool(name);
    if found.is_none() {
        assert!(
            std::env::var_os("QUORATE_ETCD_DIR").is_none(),
            "{name} is not in QUORATE_ETCD_DIR"
        );
        eprintln!("{name} is not here (tests/tools/fetch-etcd.sh): nothing to compare");
    }
    found
}

/// The servers whose transcripts must agree: first the reference.
fn pair() -> Option<(Program, Program)> {
    tool("etcd-3.5")?;
    let reference = Program::etcds().pop()?;
    // Only real etcds picked: they are compared with each other, which proves the scripts and the masks.
    let programs = Program::all().expect("programs");
    let subject = programs.iter().find(|p| !p.real).unwrap_or(&reference);
    Some((reference.clone(), subject.clone()))
}

fn compare_all(name: &str) {
    let (Some(etcdctl), Some((reference, subject))) = (tool(name), pair()) else {
        return;
    };
    let known: Vec<&str> = KNOWN
        .iter()
        .filter(|(client, _, _)| !subject.real && *client == name)
        .map(|(_, command, _)| *command)
        .collect();
    let wanted = std::env::var("QUORATE_TRANSCRIPT").unwrap_or_default();
    let scripts: Vec<&str> = SCRIPTS
        .into_iter()
        .filter(|s| s.contains(&wanted))
        .collect();
    let next = AtomicUsize::new(0);
    let differences = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let of = |program: &Program| {
                        block_on(async {
                            let server = Server::start(program, &[]).await;
                            transcript::run(&server, &etcdctl, &scripts_dir(), script).await
                        })
                    };
                    let (expected, got) = (of(&reference), of(&subject));
                    assert!(
                        expected.contains("[exit 0]"),
                        "{script} did nothing:\n{expected}"
                    );
                    if std::env::var_os("QUORATE_SHOW_TRANSCRIPTS").is_some() {
                        eprintln!("=== {script}\n{expected}");
                    }
                    if let Some(difference) = transcript::difference(&expected, &got, &known) {
                        let mut all = differences.lock().expect("no panic holds it");
                        all.push(format!("=== {script}\n{difference}"));
                    }
                }
            });
        }
    });
    let differences = differences.into_inner().expect("no panic holds it");
    assert!(
        differences.is_empty(),
        "{} differs from {}:\n{}",
        subject.name,
        reference.name,
        differences.join("\n")
    );
}

#[test]
fn etcdctl_3_4() {
    compare_all("etcdctl-3.4");
}

#[test]
fn etcdctl_3_5() {
    compare_all("etcdctl-3.5");
}

#[test]
fn etcdctl_3_6() {
    if etcd_tool("etcdctl-3.6").is_none() {
        // It needs the Go tool chain and is therefore optional.
        eprintln!("etcdctl-3.6 is not here (tests/tools/fetch-etcd.sh): nothing to compare");
        return;
    }
    compare_all("etcdctl-3.6");
}

/// `check perf` takes a minute: only with `QUORATE_CHECK_PERF=1`.
#[test]
fn check_perf_passes() {
    if std::env::var_os("QUORATE_CHECK_PERF").is_none() {
        eprintln!("QUORATE_CHECK_PERF is not set: check perf is not run");
        return;
    }
    let etcdctl = tool("etcdctl-3.5").expect("etcdctl");
    let program = Program::all().expect("programs").remove(0);
    let server = block_on(Server::start(&program, &[]));
    let output = Command::new(etcdctl)
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", server.url(), "check", "perf", "--load=s"])
        .args(["--auto-compact", "--auto-defrag"])
        .output()
        .expect("etcdctl");
    let text = String::from_utf8_lossy(&output.stdout);
    let verdicts: Vec<&str> = text.lines().filter(|l| l.contains("PASS")).collect();
    eprintln!("{}", verdicts.join("\n"));
    assert!(
        output.status.success() && text.trim_end().ends_with("PASS"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
