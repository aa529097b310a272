//! A segment header; see `raftlog::fuzz::segment_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raftlog::fuzz::segment_header(bytes));
