//! See `engine::fuzz::file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = engine::fuzz::file(bytes);
});
