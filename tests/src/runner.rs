//! Runs a table of cases against every server there is.
//!
//! A case is a function over a [`Ctx`]; its name begins with the number of the rule it proves, as
//! `docs/compatibility.md` numbers them. Starting a server costs more than most cases, so cases share
//! one where they can ([`Lane`]). The command line and the output are those of `cargo test`: filters,
//! `--exact`, `--skip`, `--list`; one line per case, then the failures and a closing line.
//!
//! Invariants:
//! 1. Every case runs on every program. None is skipped silently: a case that does not apply to a
//!    program says so in its [`Slot::only`] and is then not listed for it.
//! 2. A case in lane [`Lane::Serial`] has the server to itself while it runs.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::mvccpb::KeyValue;

use crate::PATIENCE;
use crate::client::{Client, delete_span, prefix_end, span, watch};
use crate::server::{Program, Server};

/// Which server a case runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A shared server, nobody else on it meanwhile: revisions move by the case's own doing only. The
    /// case leaves no alarm behind and expects no particular starting revision.
    Serial,
    /// A shared server beside other cases: for those that mostly wait. Own keys only, no compaction.
    Together,
    /// A server of its own, which it may restart, started with these flags (as etcd 3.6 spells them).
    Alone(&'static [&'static str]),
}

/// Whom a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Every program.
    All,
    /// Ours alone: where real etcd crashes or leaves the outcome open, and for known deviations.
    Ours,
    /// Real etcd alone: what ours does not do yet. A case for ours beside it says what it does instead.
    Etcd,
}

/// What a case returns.
pub type CaseFuture = Pin<Box<dyn Future<Output = ()>>>;

/// One row of the table.
pub struct Case {
    /// `module::r2_3_what`.
    pub name: &'static str,
    /// Where it runs and whom it is for.
    pub slot: Slot,
    /// What it does; it panics when the rule is broken.
    pub run: fn(Ctx) -> CaseFuture,
}

/// Where the cases of one group of a table run, and whom they are for.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Where.
    pub lane: Lane,
    /// Whom for.
    pub only: Only,
}

/// [`Lane::Serial`], for every program.
pub const SERIAL: Slot = Slot {
    lane: Lane::Serial,
    only: Only::All,
};

/// [`Lane::Together`], for every program.
pub const TOGETHER: Slot = Slot {
    lane: Lane::Together,
    only: Only::All,
};

/// [`Lane::Alone`] with these flags, for every program.
pub const fn alone(args: &'static [&'static str]) -> Slot {
    Slot {
        lane: Lane::Alone(args),
        only: Only::All,
    }
}

impl Slot {
    /// The same, for our server alone.
    pub const fn ours(self) -> Slot {
        Slot {
            lane: self.lane,
            only: Only::Ours,
        }
    }

    /// The same, for real etcd alone.
    pub const fn etcd(self) -> Slot {
        Slot {
            lane: self.lane,
            only: Only::Etcd,
        }
    }
}

/// Makes the rows of a module: `table![SERIAL => [a, b], alone(&["--flag"]) => [c]]`.
#[macro_export]
macro_rules! table {
    ($($slot:expr => [$($name:ident),+ $(,)?]),+ $(,)?) => {
        pub const CASES: &[$crate::runner::Case] = &[$($($crate::runner::Case {
            name: concat!(module_path!(), "::", stringify!($name)),
            slot: $slot,
            run: |ctx| Box::pin($name(ctx)),
        }),+),+];
    };
}

/// What a case gets: the server, a connection, and a key prefix nobody else uses.
pub struct Ctx {
    /// A connection of this case's own.
    pub client: Client,
    /// The program under test.
    pub program: Program,
    /// The minor of the etcd release it announces: 5 for 3.5.30.
    pub minor: u32,
    /// Only for [`Lane::Alone`]: the server, to kill and restart.
    pub server: Option<Server>,
    /// The server's client URL.
    pub url: String,
    /// The server's peer URL.
    pub peer_url: String,
    prefix: String,
}

impl std::ops::Deref for Ctx {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Ctx {
    /// A key of this case.
    pub fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}{name}", self.prefix))
    }

    /// The end of the range of this case's keys.
    pub fn end(&self) -> Bytes {
        prefix_end(self.prefix.as_bytes())
    }

    /// A range over all of this case's keys.
    pub fn all(&self) -> pb::RangeRequest {
        span(self.key(""), self.end())
    }

    /// A delete of all of this case's keys.
    pub fn delete_all(&self) -> pb::DeleteRangeRequest {
        delete_span(self.key(""), self.end())
    }

    /// A watch of all of this case's keys.
    pub fn watch_all(&self) -> pb::WatchCreateRequest {
        watch(self.key(""), self.end())
    }

    /// Puts `(name, value)` pairs, in order, one revision each.
    pub async fn put_all(&self, pairs: &[(&str, &str)]) {
        for (name, value) in pairs {
            let request = crate::client::put(self.key(name), value.to_string());
            self.client.put(request).await;
        }
    }

    /// The names of keys without this case's prefix.
    pub fn names(&self, kvs: &[KeyValue]) -> Vec<String> {
        kvs.iter().map(|kv| self.name(&kv.key)).collect()
    }

    /// The name of a key without this case's prefix.
    pub fn name(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key);
        let name = key.strip_prefix(&self.prefix);
        name.unwrap_or_else(|| panic!("{key} is no key of this case"))
            .to_owned()
    }

    /// The server of a case that runs alone.
    pub fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("this case runs alone")
    }

    /// Kills the server as a crash would, starts it again, and connects anew.
    pub async fn crash_and_restart(&mut self) {
        let server = self.server.as_mut().expect("this case runs alone");
        server.restart().await;
        self.client = Client::new(server.connect().await);
    }

    /// A second connection.
    pub async fn reconnect(&self) -> Client {
        let endpoint = tonic::transport::Endpoint::from_shared(self.url.clone());
        let channel = endpoint.expect("a URL").connect().await;
        Client::new(channel.expect("a connection"))
    }
}

static NEXT_PREFIX: AtomicU64 = AtomicU64::new(0);

async fn context(server: &Server, case: &Case) -> Ctx {
    let client = Client::new(server.connect().await);
    let status = client.status().await;
    let minor = status
        .version
        .split('.')
        .nth(1)
        .and_then(|m| m.parse().ok());
    let number = NEXT_PREFIX.fetch_add(1, Ordering::Relaxed);
    let short = case.name.rsplit("::").next().unwrap_or(case.name);
    Ctx {
        client,
        program: server.program().clone(),
        minor: minor.unwrap_or_else(|| panic!("no version: {:?}", status.version)),
        server: None,
        url: server.url().to_owned(),
        peer_url: server.peer_url().to_owned(),
        prefix: format!("{short}/{number}/"),
    }
}

#[derive(Default)]
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options::default();
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--skip" => options.skip.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "-Z" => drop(args.next()),
                flag if flag.starts_with('-') => {}
                _ => options.filters.push(arg),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let hit = |pattern: &String| match self.exact {
            true => name == pattern,
            false => name.contains(pattern.as_str()),
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skip.iter().any(hit)
    }
}

/// Results of all cases.
#[derive(Default)]
struct Report {
    passed: AtomicUsize,
    failures: Mutex<Vec<(String, String)>>,
}

impl Report {
    fn add(&self, name: String, result: Result<(), String>) {
        match result {
            Ok(()) => {
                println!("test {name} ... ok");
                self.passed.fetch_add(1, Ordering::Relaxed);
            }
            Err(message) => {
                println!("test {name} ... FAILED");
                let mut failures = self.failures.lock().expect("no panic holds it");
                failures.push((name, message));
            }
        }
    }
}

thread_local! {
    /// The text of the panic that is unwinding this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text")
}

/// Runs a future to its end on a runtime of its own; a panic becomes its text.
fn run_caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(future)));
    result.map_err(|_| PANIC.with_borrow_mut(std::mem::take))
}

async fn run_case(server: &Server, case: &Case) {
    let ctx = context(server, case).await;
    hang_guard((case.run)(ctx)).await;
}

async fn hang_guard(case: impl Future<Output = ()>) {
    if tokio::time::timeout(3 * PATIENCE, case).await.is_err() {
        panic!("the case hangs");
    }
}

/// Runs `cases` in order on one server that is started for them, and again when one brings it down.
fn run_shared(program: &Program, cases: &[(&Case, String)], threads: usize, report: &Report) {
    if cases.is_empty() {
        return;
    }
    let start = || run_caught(Server::start(program, &[]));
    let mut server = match start() {
        Ok(server) => server,
        Err(message) => {
            for (_, name) in cases {
                report.add(name.clone(), Err(message.clone()));
            }
            return;
        }
    };
    if threads == 1 {
        for (case, name) in cases {
            let mut result = run_caught(run_case(&server, case));
            if let Some(status) = server.exited() {
                let tail = server.log_tail();
                let text = result.err().unwrap_or_default();
                result = Err(format!("the server ended with {status}: {text}\n{tail}"));
                match start() {
                    Ok(again) => server = again,
                    Err(message) => return report.add(name.clone(), Err(message)),
                }
            }
            report.add(name.clone(), result);
        }
    } else {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((case, name)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        report.add(name.clone(), run_caught(run_case(&server, case)));
                    }
                });
            }
        });
        if let Some(status) = server.exited() {
            let tail = server.log_tail();
            let name = format!("{}::the shared server stays up", program.name);
            report.add(name, Err(format!("it ended with {status}\n{tail}")));
        }
    }
}

/// Runs each of `cases` on a server of its own.
fn run_alone(program: &Program, cases: &[(&Case, String)], report: &Report) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((case, name)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Lane::Alone(args) = case.slot.lane else {
                continue;
            };
            let result = run_caught(async {
                let server = Server::start(program, args).await;
                let mut ctx = context(&server, case).await;
                ctx.server = Some(server);
                hang_guard((case.run)(ctx)).await;
            });
            report.add(name.clone(), result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
}

/// Runs the tables as a test binary: parses the command line, prints results, returns the exit code.
pub fn main(tables: &[&'static [Case]]) -> ExitCode {
    let options = Options::parse();
    let programs = match Program::all() {
        Ok(programs) => programs,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    if !programs.iter().any(|p| p.real) {
        eprintln!(
            "no real etcd here (tests/tools/fetch-etcd.sh): the table is not proven by this run"
        );
    }
    let cases: Vec<&Case> = tables.iter().flat_map(|table| table.iter()).collect();
    let plan: Vec<(&Program, Vec<(&Case, String)>)> = programs
        .iter()
        .map(|program| {
            let applies = cases.iter().filter(|c| match c.slot.only {
                Only::All => true,
                Only::Ours => !program.real,
                Only::Etcd => program.real,
            });
            let named = applies.map(|c| {
                let name = c.name.split_once("::").map_or(c.name, |(_, rest)| rest);
                (*c, format!("{}::{name}", program.name))
            });
            let wanted = named.filter(|(_, name)| options.wants(name));
            (program, wanted.collect())
        })
        .collect();
    let total: usize = plan.iter().map(|(_, cases)| cases.len()).sum();
    let filtered = cases.len() * programs.len() - total;
    if options.list {
        for (_, name) in plan.iter().flat_map(|(_, cases)| cases) {
            println!("{name}: test");
        }
        println!("\n{total} tests, 0 benchmarks");
        return ExitCode::SUCCESS;
    }

    std::panic::set_hook(Box::new(|info| {
        let text = format!(
            "{}: {}",
            info.location().map(ToString::to_string).unwrap_or_default(),
            panic_text(info.payload())
        );
        PANIC.with_borrow_mut(|slot| {
            if slot.is_empty() {
                *slot = text;
            }
        });
    }));

    println!("\nrunning {total} tests");
    let began = Instant::now();
    let report = Report::default();
    for (program, cases) in &plan {
        let lane = |wanted: fn(Lane) -> bool| -> Vec<(&Case, String)> {
            let mut picked = cases.clone();
            picked.retain(|(case, _)| wanted(case.slot.lane));
            picked
        };
        std::thread::scope(|scope| {
            let report = &report;
            let serial = lane(|l| l == Lane::Serial);
            let together = lane(|l| l == Lane::Together);
            let alone = lane(|l| matches!(l, Lane::Alone(_)));
            scope.spawn(move || run_shared(program, &serial, 1, report));
            scope.spawn(move || run_shared(program, &together, 16, report));
            scope.spawn(move || run_alone(program, &alone, report));
        });
    }

    let passed = report.passed.into_inner();
    let failures = report.failures.into_inner().expect("no panic holds it");
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, message) in &failures {
            println!("---- {name} ----\n{message}\n");
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        failures.len(),
        began.elapsed().as_secs_f64()
    );
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
