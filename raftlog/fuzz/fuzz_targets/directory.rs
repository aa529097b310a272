//! A directory of segments, opened; see `raftlog::fuzz::directory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raftlog::fuzz::directory(bytes));
