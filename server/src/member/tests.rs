//! A member in this process.

use super::*;
use crate::config::{self, Request};
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use std::ffi::OsString;
use std::net::TcpListener;

/// Panics where the node cannot go on.
struct PanicOnGrant;

impl LeaseHook for PanicOnGrant {
    fn granted(&self, id: i64, _ttl: i64) {
        panic!("lease {id} was granted, as this test wants it");
    }
    fn revoked(&self, _id: i64) {}
}

#[test]
fn a_member_whose_node_panics_answers_its_calls_and_ends_with_what_the_panic_said() {
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}");
    let args = [
        format!("--data-dir={}", dir.path().display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
    ];
    let Ok(Request::Run(config)) = config::parse(args.into_iter().map(OsString::from), []) else {
        panic!("asked to run");
    };
    let client = std::thread::spawn(move || {
        crate::testing::block_on(async {
            let mut client = loop {
                match LeaseClient::connect(url.clone()).await {
                    Ok(client) => break client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            let grant = pb::LeaseGrantRequest { id: 7, ttl: 60 };
            client.lease_grant(grant).await
        })
    });
    let ended = run_hooked(*config, |_| Arc::new(PanicOnGrant)).unwrap_err();
    assert_eq!(
        ended,
        "the node thread panicked: lease 7 was granted, as this test wants it"
    );
    // The answer says so, or the connection ended with the process; the call does not wait.
    client.join().unwrap().unwrap_err();
}
