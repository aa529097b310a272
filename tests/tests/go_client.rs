//! etcd's own Go client (`tests/go/client`) against our server and against every real etcd there is: key-values,
//! transactions, watches, leases, maintenance, and its recipes for locks, elections and transactional memory.
//!
//! `tests/tools/fetch-etcd.sh` builds the program where Go and its modules can be had. Elsewhere there is nothing to run, and
//! the test says so.

use quorate_tests::server::{Program, Server, go_client};

/// Parts that our server does not have yet: they must be refused as not implemented.
const MISSING: &[&str] = &["snapshots"];

#[tokio::test]
async fn etcds_go_client() {
    let Some(client) = go_client() else {
        eprintln!("passed over: no Go client here (tests/tools/fetch-etcd.sh)");
        return;
    };
    for program in Program::all().expect("programs") {
        let server = Server::start(&program, &[]).await;
        let missing = if program.real { &[] } else { MISSING };
        let ended = tokio::process::Command::new(&client)
            .arg(server.url())
            .args(missing)
            .output()
            .await
            .expect("it runs");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(
            ended.status.success() && said.contains("9 parts passed"),
            "{}: {said}{}",
            program.name,
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}
