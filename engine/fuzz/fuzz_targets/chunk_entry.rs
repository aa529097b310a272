//! See `engine::fuzz::chunk_entry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine::fuzz::chunk_entry(bytes);
});
