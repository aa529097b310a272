//! See `engine::fuzz::map_page`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    engine::fuzz::map_page(bytes);
});
