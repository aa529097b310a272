//! The process itself: how it starts, what it says, where it listens, how it ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use quorate_tests::PATIENCE;
use quorate_tests::client::{self, Client};
use quorate_tests::server::{Program, Server, free_port};
use tonic::transport::Endpoint;

fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let program = std::path::absolute(Program::quorate().unwrap().path).unwrap();
    let mut command = Command::new(program);
    // Where there is data some flags are not looked at.
    command.current_dir(dir.path());
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn get(stream: &mut (impl Read + Write), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    text(&answer)
}

#[test]
fn version_and_help_are_etcds_in_shape() {
    let version = text(&run(&["--version"]).stdout);
    let lines: Vec<&str> = version.lines().collect();
    assert_eq!(lines[0], "etcd Version: 3.6.14");
    assert!(lines[1].starts_with("Git SHA: "));
    assert!(lines[2].starts_with("Go Version: "));
    assert!(lines[3].starts_with("Go OS/Arch: linux/"));
    assert!(lines[4].starts_with("Quorate Version: "));
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("--listen-client-urls"));
}

#[test]
fn a_start_that_cannot_be_honoured_names_the_flag() {
    for (args, exit, said) in [
        (&["--no-such-flag"][..], 2, "--no-such-flag"),
        (&["--client-cert-auth"], 1, "--client-cert-auth"),
        (&["--auth-token=jwt,pub-key=x"], 1, "--auth-token"),
        (&["--force-new-cluster"], 1, "--force-new-cluster"),
        (
            &["--initial-cluster=default=http://localhost:2380,b=http://h:1"],
            1,
            "--initial-cluster",
        ),
        (
            &["--initial-cluster-state=existing"],
            1,
            "--initial-cluster-state",
        ),
        (&["--max-txn-ops=many"], 2, "--max-txn-ops"),
        (&["stray"], 2, "stray"),
        (&["--config-file=/nonexistent.yml"], 1, "/nonexistent.yml"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(exit), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}

/// 4.1 of the HTTP rules: one port serves gRPC and HTTP, several URLs and a Unix socket are served
/// alike, and the metrics listener serves its few paths only.
#[tokio::test]
async fn every_listener_serves_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("client.sock");
    let (first, second, metrics) = (free_port(), free_port(), free_port());
    let listen = format!(
        "--listen-client-urls=http://127.0.0.1:{first},http://127.0.0.1:{second},unix://{}",
        socket.display()
    );
    let advertise = format!("--advertise-client-urls=http://127.0.0.1:{first}");
    let mut child = Command::new(Program::quorate().unwrap().path)
        .args([&listen, &advertise])
        .arg(format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"))
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", metrics)).is_err()
        || !get(
            &mut TcpStream::connect(("127.0.0.1", metrics)).unwrap(),
            "/readyz",
        )
        .starts_with("HTTP/1.1 200")
    {
        assert!(began.elapsed() < PATIENCE, "not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for port in [first, second] {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let client = Client::new(endpoint.connect().await.unwrap());
        client.put(client::put("k", port.to_string())).await;
        let health = get(
            &mut TcpStream::connect(("127.0.0.1", port)).unwrap(),
            "/health",
        );
        assert!(
            health.contains(r#"{"health":"true","reason":""}"#),
            "{health}"
        );
    }
    let over_unix = get(&mut UnixStream::connect(&socket).unwrap(), "/version");
    assert!(
        over_unix.contains(r#""etcdserver":"3.6.14""#),
        "{over_unix}"
    );
    let scrape = get(
        &mut TcpStream::connect(("127.0.0.1", metrics)).unwrap(),
        "/metrics",
    );
    for name in [
        "etcd_server_has_leader 1",
        "etcd_mvcc_put_total 2",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "grpc_server_handled_total{",
        "process_resident_memory_bytes",
    ] {
        assert!(scrape.contains(name), "{name} is missing");
    }
    let elsewhere = get(
        &mut TcpStream::connect(("127.0.0.1", metrics)).unwrap(),
        "/version",
    );
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The service manager is told when clients are served, and not before.
#[tokio::test]
async fn readiness_reaches_the_service_manager() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut child = Command::new(Program::quorate().unwrap().path)
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut message = [0; 256];
    let length = manager.recv(&mut message).unwrap();
    assert!(text(&message[..length]).contains("READY=1"));
    let health = get(
        &mut TcpStream::connect(("127.0.0.1", port)).unwrap(),
        "/health",
    );
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// SIGTERM: the log says so, a checkpoint is made (the next start replays nothing), and the process
/// ends by the signal. The readiness line is etcd's.
#[tokio::test]
async fn a_graceful_stop_leaves_nothing_to_replay() {
    let mut server = Server::start(&Program::quorate().unwrap(), &[]).await;
    let client = Client::new(server.connect().await);
    for i in 0..50 {
        client.put(client::put(format!("k{i}"), "v")).await;
    }
    let status = server.terminate().await;
    assert_eq!(status.signal(), Some(15));
    let log = std::fs::read_to_string(server.log_path()).unwrap();
    for line in [
        r#""msg":"ready to serve client requests""#,
        r#""msg":"received signal; shutting down""#,
        r#""msg":"closed etcd server""#,
    ] {
        assert!(log.contains(line), "{line} is not in the log");
    }
    for line in log.lines() {
        let parsed: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(
            parsed["ts"].is_string() && parsed["caller"].is_string(),
            "{line}"
        );
    }
    let (engine, _writer) =
        engine::Engine::open(engine::Options::new(server.data_dir().join("member/store"))).unwrap();
    assert_eq!(engine.view().revision(), 51);
}

/// Flags that only matter for a new cluster are ignored once there is data: the ids stay.
#[tokio::test]
async fn a_member_keeps_its_ids_whatever_the_flags_say() {
    let program = Program::quorate().unwrap();
    let mut server = Server::start(&program, &["--initial-cluster-token=first"]).await;
    let before = Client::new(server.connect().await)
        .status()
        .await
        .header
        .unwrap();
    server.kill();
    server.set_args(&[
        "--initial-cluster-token=second",
        "--initial-cluster-state=existing",
        "--initial-cluster=a=http://a:2380,b=http://b:2380",
    ]);
    server.restart().await;
    let after = Client::new(server.connect().await)
        .status()
        .await
        .header
        .unwrap();
    assert_eq!(
        (before.cluster_id, before.member_id),
        (after.cluster_id, after.member_id)
    );
}

/// A config file starts a member alone; flags beside it are ignored.
#[tokio::test]
async fn a_config_file_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let file = dir.path().join("quorate.yml");
    std::fs::write(
        &file,
        format!(
            "name: filed\ndata-dir: {}\nlisten-client-urls: http://127.0.0.1:{port}\n\
             advertise-client-urls: http://127.0.0.1:{port}\ninitial-cluster: filed=http://localhost:2380\n",
            dir.path().join("data").display()
        ),
    )
    .unwrap();
    let mut child = Command::new(Program::quorate().unwrap().path)
        .env("ETCD_CONFIG_FILE", &file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let began = Instant::now();
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let members = Client::new(channel).members().await;
    assert_eq!(members[0].name, "filed");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What is announced is fed: after a little of everything no figure of it is still zero.
#[tokio::test]
async fn figures_come_from_where_they_say() {
    let server = Server::start(&Program::quorate().unwrap(), &[]).await;
    let client = Client::new(server.connect().await);
    for i in 0..20 {
        client.put(client::put(format!("k{}", i % 3), "v")).await;
    }
    client.range(client::span("k", "l")).await;
    client.try_hash_kv(0).await.unwrap();
    client.try_compact(10, true).await.unwrap();
    client.try_defragment().await.unwrap();
    let address = server.url().strip_prefix("http://").unwrap();
    let scrape = get(&mut TcpStream::connect(address).unwrap(), "/metrics");
    for name in [
        "etcd_server_range_duration_seconds_count{success=\"true\"}",
        "etcd_debugging_auth_revision",
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count",
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count",
        "etcd_debugging_mvcc_db_compaction_last",
        "etcd_mvcc_hash_rev_duration_seconds_count",
        "etcd_disk_wal_write_duration_seconds_count",
        "etcd_disk_wal_write_bytes_total",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_disk_backend_defrag_duration_seconds_count",
    ] {
        let line = scrape.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing"));
        assert!(!line.ends_with(" 0"), "{line}");
    }
}
