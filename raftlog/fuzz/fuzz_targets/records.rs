//! The records of a batch; see `raftlog::fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raftlog::fuzz::records(bytes));
