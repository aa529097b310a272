//! The same log over real files: each way of writing, each kind of file system at hand, and where a
//! backend is forbidden.
//!
//! The suite is what every way of writing must pass everywhere: it is run here, in children that may
//! not use io_uring or lock memory, and, with `QUORATE_FILESYSTEMS=1` and root's rights, on tmpfs, ext4 and
//! XFS on loop devices.

use super::harness::entry;
use super::mounts::Mounted;
use crate::{Backend, Entry, HardState, Log, OpenError, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::{Arc, Mutex};

const KIB: u64 = 1024;

fn options(dir: &Path, backend: Backend) -> Options {
    Options {
        segment_bytes: 64 * KIB,
        backend,
        ..Options::new(dir)
    }
}

/// A way of writing.
#[derive(Clone, Debug)]
struct Way {
    backend: Backend,
    flush_thread: bool,
    direct: bool,
    dsync: bool,
}

impl Way {
    fn options(&self, dir: &Path) -> Options {
        Options {
            flush_thread: self.flush_thread,
            allow_direct: self.direct,
            allow_dsync: self.dsync,
            ..options(dir, self.backend.clone())
        }
    }

    /// The ways that work in `base`.
    fn all(base: &Path) -> Vec<Way> {
        let blocking = |flush_thread, direct, dsync| Way {
            backend: Backend::Sync,
            flush_thread,
            direct,
            dsync,
        };
        let mut all = vec![
            blocking(false, true, true),
            blocking(true, true, true),
            blocking(false, true, false),
            blocking(false, false, true),
            blocking(true, false, false),
        ];
        let ring = |direct| Way {
            backend: Backend::Uring,
            ..blocking(false, direct, true)
        };
        let temp = tempfile::tempdir_in(base).unwrap();
        match Log::open(ring(true).options(temp.path())) {
            Ok(_) => all.extend([ring(true), ring(false)]),
            Err(e) => eprintln!("io_uring is not tested here: {e}"),
        }
        all
    }
}

/// Everything that each way must pass in `base`.
fn suite(base: &Path, seeds: u64) {
    for way in Way::all(base) {
        let run = |what: fn(&Path, &Way)| {
            let temp = tempfile::tempdir_in(base).unwrap();
            what(temp.path(), &way);
        };
        for seed in 0..seeds {
            let temp = tempfile::tempdir_in(base).unwrap();
            random_caller(temp.path(), &way, seed);
        }
        run(large_batches);
        run(one_batch_behind_the_other);
        run(another_thread);
        run(faster_than_the_background);
        run(reopened_over_and_over);
    }
}

#[test]
fn every_way_of_writing_passes_the_suite() {
    suite(&std::env::temp_dir(), super::seeds(3));
}

/// Long, and not for everyone: `QUORATE_FILESYSTEMS=1`, as root.
#[test]
fn every_file_system_passes_the_suite() {
    if std::env::var_os("QUORATE_FILESYSTEMS").is_none() {
        eprintln!("passed over: QUORATE_FILESYSTEMS is not set");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    for kind in ["tmpfs", "ext4", "xfs"] {
        match Mounted::new(base.path(), kind, 512) {
            Ok(mounted) => {
                suite(mounted.path(), super::seeds(3));
                kill_rounds(mounted.path(), rounds());
                println!("{kind} passed");
            }
            Err(why) => {
                let required = std::env::var_os("QUORATE_REQUIRE_PEERS").is_some();
                assert!(!required, "{kind} must be tested here: {why}");
                eprintln!("passed over {kind}: {why}");
            }
        }
    }
}

/// Many short lives: each begins a segment and leaves one.
fn reopened_over_and_over(dir: &Path, way: &Way) {
    let mut model = Vec::new();
    for life in 0..12 {
        let (mut log, _) = Log::open(way.options(dir)).unwrap();
        check(&log, &model);
        let e = entry(life + 1, 1, 500 * life as usize);
        log.append(std::slice::from_ref(&e), None).unwrap();
        log.sync();
        model.push(e);
        if life % 2 == 0 {
            log.close();
        }
    }
}

fn check(log: &Log, model: &[Entry]) {
    let first = log.first_index();
    let read = log
        .entries(first, log.last_index() + 1, usize::MAX)
        .unwrap();
    assert_eq!(read, model[first as usize - 1..]);
}

fn random_caller(dir: &Path, way: &Way, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model: Vec<Entry> = Vec::new();
    let mut hs = HardState::default();
    for round in 0..4 {
        let (mut log, recovered) = Log::open(way.options(dir)).unwrap();
        assert_eq!(recovered.is_new, round == 0);
        assert_eq!(recovered.last_index, model.len() as u64);
        assert_eq!(recovered.hard_state, hs);
        check(&log, &model);
        for _ in 0..60 {
            match rng.gen_range(0..10) {
                0 => {
                    // A new leader replaces what is not committed.
                    hs.term += 1;
                    let keep = rng.gen_range(hs.commit as usize..=model.len());
                    model.truncate(keep);
                    let e = entry(keep as u64 + 1, hs.term, 20);
                    log.append(std::slice::from_ref(&e), Some(hs)).unwrap();
                    model.push(e);
                }
                1 => {
                    hs.commit = model.len() as u64;
                    log.append(&[], Some(hs)).unwrap();
                    log.sync();
                    log.trim(hs.commit.saturating_sub(10).max(1));
                }
                2 => log.idle(),
                3 => {
                    log.poll();
                }
                4 => {
                    log.wait();
                }
                n => {
                    let count = n - 4;
                    let from = model.len() as u64 + 1;
                    let new: Vec<_> = (from..from + count)
                        .map(|i| entry(i, hs.term, rng.gen_range(0..9000)))
                        .collect();
                    log.append(&new, None).unwrap();
                    log.flush();
                    model.extend(new);
                }
            }
        }
        let mark = log.appended();
        assert!(log.sync().covers(mark));
        check(&log, &model);
        if round % 2 == 0 {
            log.close();
        }
    }
}

fn large_batches(dir: &Path, way: &Way) {
    let options = Options {
        segment_bytes: 4096 * KIB,
        ..way.options(dir)
    };
    let (mut log, _) = Log::open(options.clone()).unwrap();
    let model: Vec<_> = (1..=30)
        .map(|i| entry(i, 1, if i % 7 == 0 { 2 << 20 } else { 200_000 }))
        .collect();
    for pair in model.chunks(2) {
        log.append(pair, None).unwrap();
        log.flush();
    }
    log.sync();
    check(&log, &model);
    drop(log);
    let (log, _) = Log::open(options).unwrap();
    check(&log, &model);
}

/// An owner who appends while a flush goes on hears of each flush's end before the next one's.
fn one_batch_behind_the_other(dir: &Path, way: &Way) {
    let (mut log, _) = Log::open(way.options(dir)).unwrap();
    let mut given = Vec::new();
    for i in 1..=60 {
        given.push(log.append(&[entry(i, 1, 900)], None).unwrap());
        log.flush();
        if i > 1 {
            let before = log.stats().flushes;
            let durable = log.wait_next();
            assert_eq!(log.stats().flushes, before + 1);
            assert!(durable.covers(given[i as usize - 2]), "{way:?}");
            assert!(!durable.covers(given[i as usize - 1]), "{way:?}");
        }
    }
    assert!(log.wait_next().covers(given[59]));
    assert_eq!(log.stats().flushes, 60);
    assert!(log.wait_next().covers(given[59]));
    assert_eq!(log.entries(1, 61, usize::MAX).unwrap().len(), 60);
}

/// A log may be opened on one thread and owned by another.
fn another_thread(dir: &Path, way: &Way) {
    let (mut log, _) = Log::open(way.options(dir)).unwrap();
    log.append(&[entry(1, 1, 10)], None).unwrap();
    log.sync();
    let mut log = std::thread::spawn(move || {
        for i in 2..20 {
            log.append(&[entry(i, 1, 10)], None).unwrap();
            log.sync();
        }
        log
    })
    .join()
    .unwrap();
    log.append(&[entry(20, 1, 10)], None).unwrap();
    log.sync();
    assert_eq!(log.entries(1, 21, usize::MAX).unwrap().len(), 20);
}

/// The background keeps the reserve, and appends wait for it.
fn faster_than_the_background(dir: &Path, way: &Way) {
    let (mut log, _) = Log::open(way.options(dir)).unwrap();
    // Far faster than segments are prepared: appends must wait, not fail.
    for i in 1..=200 {
        log.append(&[entry(i, 1, 9000)], None).unwrap();
        log.flush();
    }
    log.sync();
    assert!(log.stats().rolls > 20);
    assert_eq!(log.entries(1, 201, usize::MAX).unwrap().len(), 200);
}

#[test]
fn one_directory_has_one_log() {
    let temp = tempfile::tempdir().unwrap();
    let (_log, _) = Log::open(options(temp.path(), Backend::Sync)).unwrap();
    let error = Log::open(options(temp.path(), Backend::Sync)).err();
    assert!(matches!(error, Some(OpenError::Locked { .. })));
}

#[test]
fn a_damaged_batch_is_noticed_when_read() {
    let temp = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(options(temp.path(), Backend::Sync)).unwrap();
    log.append(&[entry(1, 1, 100)], None).unwrap();
    log.sync();
    let path = temp.path().join("0000000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 90] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = log.entries(1, 2, 1000).unwrap_err().to_string();
    assert!(
        error.contains("0000000000000001.log at byte 4096"),
        "{error}"
    );
}

#[test]
fn auto_reports_what_it_chose() {
    let temp = tempfile::tempdir().unwrap();
    let (log, recovered) = Log::open(options(temp.path(), Backend::Auto)).unwrap();
    assert!(
        recovered.report.contains(log.backend_name()),
        "{recovered:?}"
    );
}

/// Runs in a child process of the test below, where io_uring is forbidden as container runtimes
/// do it.
#[test]
fn child_without_io_uring() {
    let Ok(dir) = std::env::var("RAFTLOG_TEST_CHILD_DIR") else {
        return;
    };
    forbid_io_uring();
    let dir = Path::new(&dir);
    let error = Log::open(options(&dir.join("a"), Backend::Uring)).err();
    let error = error.expect("io_uring is forbidden").to_string();
    assert!(error.contains("Operation not permitted"), "{error}");
    let (mut log, recovered) = Log::open(options(&dir.join("b"), Backend::Auto)).unwrap();
    assert!(log.backend_name().starts_with("pwrite"), "{recovered:?}");
    assert!(recovered.report.contains("no io_uring"), "{recovered:?}");
    for i in 1..=20 {
        log.append(&[entry(i, 1, 3000)], None).unwrap();
        log.sync();
    }
    drop(log);
    let (log, _) = Log::open(options(&dir.join("b"), Backend::Auto)).unwrap();
    assert_eq!(log.last_index(), 20);
    suite(dir, 1);
    println!("child done");
}

#[test]
fn a_seccomp_filter_against_io_uring_leaves_a_working_log() {
    let temp = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::real::child_without_io_uring",
            "--nocapture",
        ])
        .env("RAFTLOG_TEST_CHILD_DIR", temp.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("child done"),
        "{text}"
    );
}

/// `EPERM` for io_uring_setup, io_uring_enter and io_uring_register, for this thread and those it
/// starts.
fn forbid_io_uring() {
    const LD_NR: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RET: u16 = 0x06; // BPF_RET | BPF_K
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(LD_NR, 0, 0, 0),
        op(JGE, 0, 1, 425),
        op(JGE, 0, 1, 428),
        op(RET, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(RET, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: both calls read their arguments during the call only; `filter` and the program it
    // points to live until after the second one.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Runs in a child process of the test below, as a user who may lock no memory.
#[test]
fn child_without_locked_memory() {
    let Ok(dir) = std::env::var("RAFTLOG_TEST_CHILD_MEMLOCK_DIR") else {
        return;
    };
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: the calls take numbers, and a structure that is only read during the call. Root may
    // lock what it likes, so the child becomes somebody else.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &none), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        }
    }
    let dir = Path::new(&dir);
    let (mut log, recovered) = match Log::open(options(&dir.join("a"), Backend::Uring)) {
        Ok(opened) => opened,
        Err(e) => {
            println!("child done: no io_uring here at all: {e}");
            return;
        }
    };
    let said = "buffers not registered: ";
    assert!(recovered.report.contains(said), "{}", recovered.report);
    assert!(recovered.report.contains("RLIMIT_MEMLOCK"), "{recovered:?}");
    assert!(!log.stats().registered_buffers);
    log.append(&[entry(1, 1, 10)], None).unwrap();
    log.sync();
    drop(log);
    suite(dir, 1);
    println!("child done");
}

#[test]
fn a_limit_on_locked_memory_leaves_a_working_ring() {
    let temp = tempfile::tempdir().unwrap();
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(temp.path(), everyone).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::real::child_without_locked_memory",
            "--nocapture",
        ])
        .env("RAFTLOG_TEST_CHILD_MEMLOCK_DIR", temp.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("child done"),
        "{text}"
    );
}

/// With a real disk that is full: a file-size limit stands in for it, in a child process.
#[test]
fn child_with_a_file_size_limit() {
    let Ok(dir) = std::env::var("RAFTLOG_TEST_CHILD_LIMIT_DIR") else {
        return;
    };
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = lines.clone();
    let (mut log, _) = Log::open(Options {
        fatal: Some(Arc::new(move |line: &str| {
            seen.lock().unwrap().push(line.to_string());
        })),
        ..options(Path::new(&dir), Backend::Sync)
    })
    .unwrap();
    log.append(&[entry(1, 1, 10)], None).unwrap();
    log.sync();
    let limit = libc::rlimit {
        rlim_cur: 4096,
        rlim_max: 4096,
    };
    // SAFETY: both calls only read their arguments; ignoring SIGXFSZ turns the signal into EFBIG.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let mark = log.append(&[entry(2, 1, 10)], None).unwrap();
    assert!(!log.sync().covers(mark), "the write failed");
    let lines = lines.lock().unwrap();
    assert!(lines[0].contains("cannot write"), "{lines:?}");
    println!("child done");
}

#[test]
fn a_real_write_error_is_final() {
    let temp = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::real::child_with_a_file_size_limit",
            "--nocapture",
        ])
        .env("RAFTLOG_TEST_CHILD_LIMIT_DIR", temp.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("child done"),
        "{text}"
    );
}

/// Killed without a chance to say goodbye: what the child reported is there.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("RAFTLOG_TEST_CHILD_KILL_DIR") else {
        return;
    };
    let (mut log, recovered) = Log::open(options(Path::new(&dir), Backend::Auto)).unwrap();
    let mut next = recovered.last_index + 1;
    loop {
        log.append(&[entry(next, 1, 700)], None).unwrap();
        log.append(&[entry(next + 1, 1, 5000)], None).unwrap();
        log.sync();
        next += 2;
        // Unbuffered, so that the parent knows at least what was acknowledged.
        std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("durable {}\n", next - 1).as_bytes(),
        )
        .unwrap();
    }
}

fn rounds() -> u64 {
    let rounds = std::env::var("QUORATE_ROUNDS");
    rounds.ok().and_then(|r| r.parse().ok()).unwrap_or(12)
}

#[test]
fn acknowledged_entries_survive_kill() {
    kill_rounds(&std::env::temp_dir(), rounds());
}

fn kill_rounds(base: &Path, rounds: u64) {
    let temp = tempfile::tempdir_in(base).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut acknowledged = 0;
    for round in 0..rounds {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::real::child_that_is_killed",
                "--nocapture",
            ])
            .env("RAFTLOG_TEST_CHILD_KILL_DIR", temp.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        // Let it get going, then kill it at an arbitrary moment.
        for _ in 0..rng.gen_range(1..60) {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            if let Some(n) = line.strip_prefix("durable ") {
                acknowledged = n.trim().parse().unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
        for line in rest.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            if let Some(n) = line.strip_prefix("durable ") {
                acknowledged = n.trim().parse().unwrap();
            }
        }
        let (log, recovered) = Log::open(options(temp.path(), Backend::Auto)).unwrap();
        assert!(
            recovered.last_index >= acknowledged,
            "round {round}: {acknowledged} was durable, found {recovered:?}"
        );
        for e in log
            .entries(1, recovered.last_index + 1, usize::MAX)
            .unwrap()
        {
            let len = if e.index % 2 == 1 { 700 } else { 5000 };
            assert_eq!(e, entry(e.index, 1, len));
        }
    }
}
