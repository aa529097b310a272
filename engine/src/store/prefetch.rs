//! A hint to the processor that bytes will be read soon.
//!
//! A scan reads entries that lie all over a page. Each costs a wait for memory unless it was asked for a few entries
//! before; what the scan does per entry is too long for the processor to look that far ahead itself.

/// Bytes the processor fetches at once.
const LINE: usize = 64;

/// Lines fetched at most: an entry that is longer is read from its beginning anyway.
const LINES_MAX: usize = 6;

/// Asks for the first lines of `bytes`. Changes nothing, and costs a few cycles.
#[inline]
pub(super) fn soon(bytes: &[u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for line in bytes.chunks(LINE).take(LINES_MAX) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction reads nothing that the program could see and cannot fault; the address is that of
        // a live slice all the same. SSE is part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (bytes, LINE, LINES_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_will_do_and_none_changes() {
        let page: Vec<u8> = (0..8192).map(|i| i as u8).collect();
        for from in [0, 1, 63, 8191, 8192] {
            soon(&page[from..]);
        }
        soon(&[]);
        assert!(page.iter().enumerate().all(|(i, byte)| *byte == i as u8));
    }
}
