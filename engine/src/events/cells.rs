//! Bytes of which a prefix may be read while one owner writes behind it. The unsafe code of the record layer, all of it.
//!
//! Invariants, which the caller keeps (`append_buf` is the only one):
//! 1. No byte is written that a reader may read: readers know a length, and writes happen at or above every length
//!    that was ever handed out.
//! 2. One thread writes at a time, and a length reaches other threads by a synchronising hand-over.

use std::cell::UnsafeCell;

pub(crate) struct Cells(Box<[UnsafeCell<u8>]>);

/// What a reader sees.
pub(crate) type Seen<'a> = &'a [u8];

// SAFETY: by invariant 1 no byte is written while another thread may read it, by invariant 2 none is written by two
// threads at once, and the hand-over of the length orders the writes below it before the reads.
unsafe impl Sync for Cells {}

impl Cells {
    /// So many zeroes.
    pub(crate) fn new(bytes: usize) -> Cells {
        Cells((0..bytes).map(|_| UnsafeCell::new(0)).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies `bytes` to `at`, where they must fit.
    ///
    /// # Safety
    /// No length above `at` was handed out, and nobody else writes.
    pub(crate) unsafe fn write(&self, at: usize, bytes: &[u8]) {
        let to = &self.0[at..at + bytes.len()];
        let to = UnsafeCell::raw_get(to.as_ptr());
        // SAFETY: `to` starts a run of `bytes.len()` cells. No reader may read them and nobody else writes
        // (invariants 1 and 2); `bytes` is a borrow, so it cannot be part of cells that are being
        // written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    /// They were written before the caller was given `len`, and are not written again.
    pub(crate) unsafe fn read(&self, len: usize) -> Seen<'_> {
        let cells = &self.0[..len];
        // SAFETY: the bytes are initialised and, being below a length that was handed out or read by the owner
        // itself, are not written while the slice lives (invariant 1).
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stays_as_it_was_while_more_is_written() {
        let cells = Cells::new(10);
        // SAFETY: one thread, and each write is behind all that was read.
        let (seen, all) = unsafe {
            cells.write(0, b"abc");
            let seen = cells.read(3);
            cells.write(3, b"defghij");
            cells.write(10, b"");
            (seen, cells.read(10))
        };
        assert_eq!(
            (seen, all, cells.len()),
            (&b"abc"[..], &b"abcdefghij"[..], 10)
        );
        let none = Cells::new(0);
        // SAFETY: there is nothing to read.
        assert_eq!(unsafe { none.read(0) }, b"");
    }
}
