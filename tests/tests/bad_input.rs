//! Bad input: damaged files, oversized and malformed requests, unknown paths, thousands of idle
//! connections. Each gets a clear error or refusal; nothing crashes and nothing is lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate_tests::client::{self, Client};
use quorate_tests::server::{Program, Server};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Code;

fn quorate() -> Program {
    Program::quorate().unwrap()
}

fn address(server: &Server) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // The server may reset after answering; what came before counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: &str, path: &str) -> String {
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"),
    )
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            out.extend(files_below(&entry.path()));
        } else {
            out.push(entry.path());
        }
    }
    out.sort();
    out
}

/// What a start on damaged files came to.
enum Start {
    /// It served, with this many of the keys.
    Served(usize),
    /// It refused, the start or the read of what is damaged, with this text.
    Refused(String),
}

async fn start_on(data: &Path) -> Start {
    let client_url = format!("http://127.0.0.1:{}", quorate_tests::server::free_port());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(quorate().path)
        .arg("--data-dir")
        .arg(data)
        .args(["--name", "m1"])
        .args(["--listen-client-urls", &client_url])
        .args(["--advertise-client-urls", &client_url])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let result = loop {
        if let Some(status) = child.try_wait().unwrap() {
            let text = std::fs::read_to_string(log.path()).unwrap();
            assert_eq!(
                status.code(),
                Some(1),
                "not an orderly refusal: {status}\n{text}"
            );
            assert!(!text.contains("panicked"), "{text}");
            break Start::Refused(text);
        }
        let endpoint = tonic::transport::Endpoint::from_shared(client_url.clone()).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            match Client::new(channel).try_range(client::span("k", "l")).await {
                Ok(found) => break Start::Served(found.kvs.len()),
                Err(status) if status.code() == Code::DataLoss => {
                    let text = std::fs::read_to_string(log.path()).unwrap();
                    assert!(text.contains("a read failed"), "not logged: {text}");
                    break Start::Refused(status.message().to_owned());
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let _ = child.kill();
    let _ = child.wait();
    result
}

const KEYS: usize = 300;

/// A data directory with a checkpoint, a log behind it, and `KEYS` acknowledged keys.
async fn filled(graceful: bool) -> (Server, PathBuf) {
    let mut server = Server::start(&quorate(), &[]).await;
    let client = Client::new(server.connect().await);
    for i in 0..KEYS {
        if i == KEYS / 2 {
            client.try_defragment().await.unwrap();
        }
        client
            .put(client::put(format!("k{i:05}"), vec![b'v'; 200]))
            .await;
    }
    if graceful {
        server.terminate().await;
    } else {
        server.kill();
    }
    let data = server.data_dir();
    (server, data)
}

/// Damage to any file ends in all keys served, or in a refusal that names the file and what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_refused_by_name_or_harmless() {
    let (_server, data) = filled(false).await;
    let mut rng = StdRng::seed_from_u64(11);
    let cases: usize = std::env::var("QUORATE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(24);
    let (mut served, mut refused) = (0, 0);
    for case in 0..cases {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("data");
        copy_dir(&data, &copy);
        let files: Vec<PathBuf> = files_below(&copy)
            .into_iter()
            .filter(|f| !f.ends_with("lock"))
            .collect();
        let victim = &files[case % files.len()];
        let bytes = std::fs::read(victim).unwrap();
        // Aim at what holds something: zeroed segments are long.
        let used = bytes.iter().rposition(|b| *b != 0).map_or(1, |p| p + 1);
        let what = if case % 2 == 0 {
            let mut bytes = bytes;
            let at = rng.gen_range(0..used);
            bytes[at] ^= 1 << rng.gen_range(0..8);
            std::fs::write(victim, bytes).unwrap();
            format!("bit flip at {at}")
        } else {
            let keep = rng.gen_range(0..used);
            let file = std::fs::File::options().write(true).open(victim).unwrap();
            file.set_len(keep as u64).unwrap();
            format!("cut to {keep}")
        };
        let name = victim.file_name().unwrap().to_string_lossy().into_owned();
        match start_on(&copy).await {
            Start::Served(keys) => {
                // The last batch of the log may look torn: it was acknowledged when the kill came,
                // and nothing behind it witnesses that. More than it may not be missing.
                assert!(
                    keys == KEYS || keys + 1 == KEYS && copy_is_log(victim),
                    "{name}: {what}: {keys} of {KEYS} keys are left and nobody was told"
                );
                served += 1;
            }
            Start::Refused(text) => {
                assert!(
                    text.contains(&name),
                    "{name}: {what}: does not name it:\n{text}"
                );
                refused += 1;
            }
        }
        // Refused or not, nothing of the damaged file was thrown away.
        assert!(victim.exists(), "{name} is gone");
    }
    println!("{served} served, {refused} refused");
    assert!(refused > 0, "no damage was noticed");
}

fn copy_is_log(path: &Path) -> bool {
    path.parent().is_some_and(|p| p.ends_with("log"))
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused() {
    let server = Server::start(&quorate(), &[]).await;
    let data = server.data_dir();
    let Start::Refused(text) = start_on(&data).await else {
        panic!("two processes serve one directory");
    };
    assert!(text.contains("in use by another process"), "{text}");
    assert!(Client::new(server.connect().await).revision().await >= 1);
}

#[tokio::test]
async fn a_directory_of_etcd_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let snap = dir.path().join("member/snap");
    std::fs::create_dir_all(&snap).unwrap();
    std::fs::write(snap.join("db"), b"bolt").unwrap();
    let Start::Refused(text) = start_on(dir.path()).await else {
        panic!("served");
    };
    assert!(text.contains("was written by etcd"), "{text}");
    assert_eq!(files_below(dir.path()), [snap.join("db")]);
}

/// 9.1: what is too large is refused with etcd's texts, and the connection lives on.
#[tokio::test]
async fn rule_9_1_oversized_requests_are_refused() {
    let server = Server::start(&quorate(), &[]).await;
    let client = Client::new(server.connect().await);
    client::fails(
        client.try_put(client::put("big", vec![0; 1_572_864])).await,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    let error = client
        .try_put(client::put("bigger", vec![0; 3 << 20]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(
        error
            .message()
            .starts_with("grpc: received message larger than max (")
            && error.message().ends_with("vs. 2097152)"),
        "{error}"
    );
    client.put(client::put("fits", vec![0; 1_500_000])).await;
    assert_eq!(client.get("fits").await.unwrap().value.len(), 1_500_000);
}

#[tokio::test]
async fn unknown_paths_and_methods_get_etcds_answers() {
    let server = Server::start(&quorate(), &[]).await;
    let address = address(&server);
    for path in [
        "/",
        "/v2/keys",
        "/v3alpha/kv/range",
        "/nothing",
        "/%ff",
        "/health/x",
    ] {
        let answer = get(&address, path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let post = http(
        &address,
        "POST /health HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
}

/// Garbage on the wire costs the connection that sent it and no other.
#[tokio::test]
async fn garbage_on_the_wire_harms_nobody_else() {
    let server = Server::start(&quorate(), &[]).await;
    let client = Client::new(server.connect().await);
    let address = address(&server);
    let mut rng = StdRng::seed_from_u64(3);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for case in 0..60 {
        let mut bytes = match case % 3 {
            0 => Vec::new(),
            1 => preface.to_vec(),
            _ => b"GET /health HTTP/1.1\r\n".to_vec(),
        };
        let len = rng.gen_range(1..5000);
        bytes.extend((0..len).map(|_| rng.r#gen::<u8>()));
        let mut stream = TcpStream::connect(&address).unwrap();
        // The server may hang up while it is being written to.
        let _ = stream.write_all(&bytes);
        drop(stream);
        if case % 10 == 0 {
            client.put(client::put("alive", format!("{case}"))).await;
        }
    }
    assert!(client.get("alive").await.is_some());
}

/// The load of `ten_thousand_idle_connections`, in a process of its own: opens connections and holds
/// them until its standard input closes.
#[test]
fn idle_connection_load() {
    let Ok(target) = std::env::var("QUORATE_IDLE_TARGET") else {
        return;
    };
    let count: usize = std::env::var("QUORATE_IDLE_COUNT")
        .unwrap()
        .parse()
        .unwrap();
    raise_soft_limit();
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(&target).unwrap();
        stream.write_all(settings).unwrap();
        held.push(stream);
    }
    // Every connection was taken by the server, not only by the kernel's queue: it sent its settings.
    for stream in &mut held {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.read_exact(&mut [0; 9]).unwrap();
    }
    println!("HOLDING");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn raise_soft_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid pointer to a rlimit that outlives them.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections() {
    const COUNT: usize = 10_000;
    let server = Server::start(&quorate(), &[]).await;
    let client = Client::new(server.connect().await);
    let before = resident_bytes(server.pid());
    let mut load = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "idle_connection_load", "--nocapture"])
        .env("QUORATE_IDLE_TARGET", address(&server))
        .env("QUORATE_IDLE_COUNT", COUNT.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut output = load.stdout.take().unwrap();
    let mut byte = [0];
    while !said.contains("HOLDING") {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the load ended: {said}");
        said.push(char::from(byte[0]));
    }
    for i in 0..100 {
        client.put(client::put("busy", format!("{i}"))).await;
    }
    let per_connection = (resident_bytes(server.pid()) - before) / COUNT as u64;
    println!("{per_connection} bytes of memory per idle connection");
    drop(load.stdin.take());
    load.wait().unwrap();
    client.put(client::put("busy", "after")).await;
    assert_eq!(client.get("busy").await.unwrap().value, "after");
}
