//! Compiles the .proto files with a compiler written in Rust: building needs no protoc.

use std::path::Path;

const FILES: [&str; 13] = [
    "kv.proto",
    "auth.proto",
    "rpc.proto",
    "membership.proto",
    "raft_internal.proto",
    "etcdserver.proto",
    "lease.proto",
    "raft.proto",
    "record.proto",
    "snap.proto",
    "v3lock.proto",
    "v3election.proto",
    "health.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(FILES, [dir])?;
    let mut config = prost_build::Config::new();
    // Keys and values are slices of the buffer they arrived in, never copied by decoding.
    config.bytes(["."]);
    config.enable_type_names();
    let client = std::env::var_os("CARGO_FEATURE_CLIENT").is_some();
    tonic_prost_build::configure()
        .build_server(false)
        .build_client(client)
        .compile_fds_with_config(set, config)?;
    Ok(())
}
