//! Server processes.
//!
//! Invariants:
//! 1. A [`Server`] that was returned by [`Server::start`] or [`Server::restart`] has elected a leader
//!    and served a linearizable read.
//! 2. No process outlives its [`Server`]; its files go with it, unless the thread is panicking: then
//!    the log stays and its path is printed.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use quorate_proto::etcdserverpb as pb;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::PATIENCE;

/// A program that can be started as a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `quorate`, `etcd-3.5`, `etcd-3.6`.
    pub name: String,
    /// The binary.
    pub path: PathBuf,
    /// Whether it is a real etcd.
    pub real: bool,
}

impl Program {
    /// Ours: `$QUORATE_BIN`, or the binary in this test's target directory, built first if need be.
    pub fn quorate() -> io::Result<Program> {
        let path = match std::env::var_os("QUORATE_BIN") {
            Some(path) => PathBuf::from(path),
            None => built_binary()?,
        };
        if !path.is_file() {
            let message = format!("{} is not there", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        Ok(Program {
            name: "quorate".to_owned(),
            path,
            real: false,
        })
    }

    /// The real etcds that `tests/tools/fetch-etcd.sh` unpacked into `$QUORATE_ETCD_DIR` (or into
    /// `etcd` in the target directory), oldest first. Empty when there are none.
    pub fn etcds() -> Vec<Program> {
        ["3.5", "3.6"]
            .iter()
            .filter_map(|minor| {
                let name = format!("etcd-{minor}");
                let path = etcd_tool(&name)?;
                Some(Program {
                    name,
                    path,
                    real: true,
                })
            })
            .collect()
    }

    /// Ours and every real etcd. `$QUORATE_TARGETS`, a comma-separated list of names, picks from them;
    /// without it ours must be there.
    pub fn all() -> io::Result<Vec<Program>> {
        let wanted = std::env::var("QUORATE_TARGETS").ok();
        let wanted: Option<Vec<&str>> = wanted.as_deref().map(|list| list.split(',').collect());
        let is_wanted = |name: &str| wanted.as_ref().is_none_or(|list| list.contains(&name));
        let mut programs = Vec::new();
        if is_wanted("quorate") {
            programs.push(Program::quorate()?);
        }
        programs.extend(Program::etcds().into_iter().filter(|p| is_wanted(&p.name)));
        Ok(programs)
    }

    /// A flag of etcd 3.6 as this program spells it.
    fn flag(&self, flag: &str) -> String {
        const EXPERIMENTAL: [&str; 2] = [
            "--watch-progress-notify-interval",
            "--compaction-batch-limit",
        ];
        if self.name == "etcd-3.5" && EXPERIMENTAL.iter().any(|e| flag.starts_with(e)) {
            return flag.replacen("--", "--experimental-", 1);
        }
        flag.to_owned()
    }
}

/// A program of `fetch-etcd.sh`, e.g. `etcdctl-3.5`; `None` when it was not fetched.
pub fn etcd_tool(name: &str) -> Option<PathBuf> {
    fetched(Path::new("bin").join(name))
}

/// The program of `tests/go/client`; `None` when `fetch-etcd.sh` could not build it.
pub fn go_client() -> Option<PathBuf> {
    fetched("clients/go")
}

fn fetched(path: impl AsRef<Path>) -> Option<PathBuf> {
    let dir = match std::env::var_os("QUORATE_ETCD_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir().ok()?.parent()?.join("etcd"),
    };
    let path = dir.join(path);
    path.is_file().then_some(path)
}

/// The server of this tree. `cargo test` builds a package's binaries only for that package's own
/// tests, so this one is asked for; when it is fresh that takes a moment only.
fn built_binary() -> io::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = target_dir().map_err(|e| e.to_string())?;
        let root = dir.parent().ok_or("no target directory")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package=quorate", "--bin=quorate"]);
        build.arg("--manifest-path");
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        build.arg("--target-dir").arg(root);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().map_err(|e| e.to_string())?;
        match status.success() {
            true => Ok(dir.join("quorate")),
            false => Err(format!("building the server: {status}")),
        }
    });
    built.clone().map_err(io::Error::other)
}

/// `target/debug` or `target/release`: where this test binary's `deps` folder stands.
fn target_dir() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().and_then(Path::parent);
    dir.map(Path::to_path_buf)
        .ok_or_else(|| io::Error::other("this test binary stands in no target directory"))
}

/// A running (or killed) member.
pub struct Server {
    program: Program,
    args: Vec<String>,
    child: Option<Child>,
    dir: Option<TempDir>,
    endpoint: String,
    peer_url: String,
}

impl Server {
    /// Starts a member of a cluster of one on fresh files and free ports, with `args` (etcd's flags,
    /// as 3.6 spells them) added, and waits until it serves.
    ///
    /// Panics, with the end of the log, when it does not come up.
    pub async fn start(program: &Program, args: &[&str]) -> Server {
        // A port found free may be taken by someone else before the member binds it.
        for _ in 0..4 {
            let mut server = Server::unstarted(program, args);
            server.spawn();
            match server.serve().await {
                Ok(()) => return server,
                Err(message) if message.contains("address already in use") => {}
                Err(message) => panic!("{message}"),
            }
        }
        panic!("{}: no free port after four tries", program.name);
    }

    fn unstarted(program: &Program, args: &[&str]) -> Server {
        let dir = tempfile::Builder::new()
            .prefix("quorate-test-")
            .tempdir()
            .expect("a temporary directory");
        Server {
            program: program.clone(),
            args: args.iter().map(|a| program.flag(a)).collect(),
            child: None,
            dir: Some(dir),
            endpoint: format!("http://127.0.0.1:{}", free_port()),
            peer_url: format!("http://127.0.0.1:{}", free_port()),
        }
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let mut command = Command::new(&self.program.path);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        let cluster = format!("m1={}", self.peer_url);
        command
            .args(["--name", "m1", "--data-dir"])
            .arg(self.data_dir())
            .args(["--listen-client-urls", &self.endpoint])
            .args(["--advertise-client-urls", &self.endpoint])
            .args(["--listen-peer-urls", &self.peer_url])
            .args(["--initial-advertise-peer-urls", &self.peer_url])
            .args(["--initial-cluster", &cluster])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.program.path.display()));
        self.child = Some(child);
    }

    /// Waits until a leader is known and a linearizable read is answered.
    async fn serve(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Err(format!(
                    "{} ended with {status}:\n{}",
                    self.program.name,
                    self.log_tail()
                ));
            }
            if let Ok(channel) = self.endpoint().connect().await {
                let mut client = pb::kv_client::KvClient::new(channel);
                let request = pb::RangeRequest {
                    key: "health".into(),
                    ..Default::default()
                };
                let answer = tokio::time::timeout(Duration::from_secs(10), client.range(request));
                if matches!(answer.await, Ok(Ok(_))) {
                    return Ok(());
                }
            }
            if began.elapsed() > PATIENCE {
                return Err(format!(
                    "{} does not serve:\n{}",
                    self.program.name,
                    self.log_tail()
                ));
            }
            // The condition awaited is in another process.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the process as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the process to end (SIGTERM) and waits for it.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal_term();
        self.terminate_after_signal().await
    }

    /// Waits for the end of a process that was asked to end.
    pub async fn terminate_after_signal(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running process");
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("waiting for a child") {
                return status;
            }
            if began.elapsed() > PATIENCE {
                self.child = Some(child);
                panic!("{} does not stop:\n{}", self.program.name, self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends SIGTERM and does not wait.
    pub fn signal_term(&self) {
        let child = self.child.as_ref().expect("a running process");
        let sent = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(sent.expect("running kill").success(), "SIGTERM not sent");
    }

    /// Starts the process again on the same files and ports and waits until it serves.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn();
        if let Err(message) = self.serve().await {
            panic!("{message}");
        }
    }

    /// Replaces the added flags from the next start on.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|a| self.program.flag(a)).collect();
    }

    /// The exit status when the process has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// What runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The process id of the running process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running process").id()
    }

    /// The client URL.
    pub fn url(&self) -> &str {
        &self.endpoint
    }

    /// The peer URL.
    pub fn peer_url(&self) -> &str {
        &self.peer_url
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    /// The file with standard output and standard error.
    pub fn log_path(&self) -> PathBuf {
        self.root().join("log")
    }

    fn root(&self) -> &Path {
        self.dir.as_ref().expect("present until dropped").path()
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(self.endpoint.clone()).expect("a well-formed URL")
    }

    /// A new connection.
    pub async fn connect(&self) -> Channel {
        let result = self.endpoint().connect().await;
        result.unwrap_or_else(|e| panic!("connecting to {}: {e}", self.endpoint))
    }

    /// Keeps the files of this member for a look by hand; prints where they are.
    pub fn keep_files(&mut self) {
        if let Some(dir) = self.dir.take() {
            let path = dir.keep();
            eprintln!("{}: files kept in {}", self.program.name, path.display());
            // Still needed by the accessors until the end.
            self.dir = tempfile::tempdir().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            self.keep_files();
        }
    }
}

/// A port nothing listened on a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binding a free port");
    listener.local_addr().expect("a bound address").port()
}
