//! Buffers that direct I/O takes: aligned to 4 KiB, zeroed when made.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Mutex;

const ALIGN: usize = 4096;

/// A heap buffer at an address that is a multiple of 4096.
pub(in crate::store) struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone; a shared reference only reads it.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    pub fn new(len: usize) -> AlignedBuf {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is never zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        AlignedBuf { ptr, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), ALIGN)
            .expect("buffer lengths stay far below isize::MAX")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes as long as self lives.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A few page-sized buffers kept for the next reads; more readers than that allocate.
pub(in crate::store) struct BufPool {
    len: usize,
    free: Mutex<Vec<AlignedBuf>>,
}

const KEPT_MAX: usize = 64;

impl BufPool {
    pub fn new(len: usize) -> BufPool {
        BufPool {
            len,
            free: Mutex::new(Vec::new()),
        }
    }

    pub fn take(&self) -> AlignedBuf {
        let kept = crate::store::lock(&self.free).pop();
        kept.unwrap_or_else(|| AlignedBuf::new(self.len))
    }

    pub fn give(&self, buf: AlignedBuf) {
        let mut free = crate::store::lock(&self.free);
        if free.len() < KEPT_MAX {
            free.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_own_their_bytes() {
        for len in [1, 512, 4096, 8192, 1 << 20] {
            let mut buf = AlignedBuf::new(len);
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|b| *b == 0));
            buf.fill(7);
            let moved = std::thread::spawn(move || buf.iter().map(|b| *b as usize).sum::<usize>());
            assert_eq!(moved.join().unwrap(), 7 * len);
        }
    }

    #[test]
    fn the_pool_keeps_a_bounded_number() {
        let pool = BufPool::new(512);
        let taken: Vec<_> = (0..200).map(|_| pool.take()).collect();
        taken.into_iter().for_each(|buf| pool.give(buf));
        assert_eq!(pool.free.lock().unwrap().len(), KEPT_MAX);
    }
}
