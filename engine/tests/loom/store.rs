//! The store around its cache and its pins, as much of it as they see.

use crate::{stall, sync};

#[path = "../../src/store/cache.rs"]
pub mod cache;
mod models;
#[path = "../../src/store/pins.rs"]
pub mod pins;

#[derive(Clone, Debug)]
pub enum Error {
    Closed,
}

pub fn lock<T: ?Sized>(mutex: &sync::Mutex<T>) -> sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub mod error {
    pub type Result<T> = std::result::Result<T, super::Error>;
}

pub mod page {
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Addr {
        pub unit: u64,
        pub birth: u64,
    }
}

pub mod node {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;

    /// Memory of a page, which outlives the page so that a model may look where it should not.
    pub type Memory = Arc<Byte>;

    pub struct Byte(UnsafeCell<u64>);

    // SAFETY: loom checks every access to the cell.
    unsafe impl Send for Byte {}
    // SAFETY: as above.
    unsafe impl Sync for Byte {}

    pub type NodeRef = loom::sync::Arc<Node>;

    /// A page whose memory is written when it is dropped, as the allocator does with it.
    pub struct Node {
        pub buf: [u8; 4],
        bytes: Memory,
    }

    pub struct Page;

    impl Node {
        pub fn new(byte: u64) -> Node {
            Node {
                buf: [0; 4],
                bytes: Arc::new(Byte(UnsafeCell::new(byte))),
            }
        }

        pub fn page(&self) -> Page {
            Page
        }

        pub fn fetch_soon(&self) {}

        pub fn memory(&self) -> Memory {
            self.bytes.clone()
        }

        pub fn read(&self) -> u64 {
            read(&self.bytes)
        }
    }

    pub fn read(memory: &Memory) -> u64 {
        // SAFETY: loom checks that nobody writes meanwhile.
        memory.0.with(|byte| unsafe { *byte })
    }

    impl Page {
        pub fn is_leaf(&self) -> bool {
            // Inner pages are kept as soon as there is room for one.
            false
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            // SAFETY: loom checks that nobody reads meanwhile.
            self.bytes.0.with_mut(|byte| unsafe { *byte = u64::MAX });
        }
    }
}
