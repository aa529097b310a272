//! The open chunk's buffer over bytes that loom watches one by one.

#[path = "../../src/events/append_buf.rs"]
pub mod append_buf;

pub mod cells {
    use loom::cell::UnsafeCell;

    pub struct Cells(Vec<UnsafeCell<u8>>);

    // SAFETY: loom checks every access to the cells.
    unsafe impl Sync for Cells {}

    pub type Seen<'a> = Vec<u8>;

    impl Cells {
        pub fn new(bytes: usize) -> Cells {
            Cells((0..bytes).map(|_| UnsafeCell::new(0)).collect())
        }

        pub fn len(&self) -> usize {
            self.0.len()
        }

        /// # Safety
        /// Loom checks what the real one demands.
        pub unsafe fn write(&self, at: usize, bytes: &[u8]) {
            for (cell, byte) in self.0[at..].iter().zip(bytes) {
                // SAFETY: loom checks that nobody reads or writes meanwhile.
                cell.with_mut(|to| unsafe { *to = *byte });
            }
        }

        /// # Safety
        /// Loom checks what the real one demands.
        pub unsafe fn read(&self, len: usize) -> Vec<u8> {
            // SAFETY: loom checks that nobody writes meanwhile.
            let read = |cell: &UnsafeCell<u8>| cell.with(|byte| unsafe { *byte });
            self.0[..len].iter().map(read).collect()
        }
    }
}
