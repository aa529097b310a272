//! The behaviour table: every rule of `docs/compatibility.md` that one member can show, run against
//! our server and against every real etcd there is, so that the table itself is proven.

use std::process::ExitCode;

mod cluster;
mod compact;
mod header;
mod lease;
mod limits;
mod maintenance;
mod put;
mod range;
mod raw;
mod txn;
mod watch;

fn main() -> ExitCode {
    quorate_tests::runner::main(&[
        header::CASES,
        range::CASES,
        put::CASES,
        txn::CASES,
        compact::CASES,
        watch::CASES,
        lease::CASES,
        cluster::CASES,
        maintenance::CASES,
        limits::CASES,
    ])
}
