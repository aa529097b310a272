//! A batch with its header; see `raftlog::fuzz::batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raftlog::fuzz::batch(bytes));
