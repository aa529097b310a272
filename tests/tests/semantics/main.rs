//! The behaviour table: every rule of `docs/compatibility.md` that one member can show, run against
//! our server and against every real etcd there is, so that the table itself is proven.

use std::process::ExitCode;

mod header;
mod range;
mod raw;

fn main() -> ExitCode {
    quorate_tests::runner::main(&[header::CASES, range::CASES])
}
