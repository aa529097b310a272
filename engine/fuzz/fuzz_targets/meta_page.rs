//! See `engine::fuzz::meta_page`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine::fuzz::meta_page(bytes);
});
