//! Memory that a disk can be written from directly: block-aligned, a whole number of blocks.

use crate::format::{BLOCK_BYTES, padded};
use memmap2::MmapMut;
use std::io;
use std::ops::{Deref, DerefMut};

/// An anonymous mapping; page-aligned, zeroed, never moved while it lives.
pub(crate) struct Buffer {
    map: MmapMut,
    /// Its number in the ring's table of registered buffers, if it belongs to the arena.
    pub slot: Option<u16>,
}

impl Buffer {
    /// At least `bytes` of zeroed memory.
    pub fn new(bytes: usize) -> io::Result<Buffer> {
        let map = MmapMut::map_anon(padded(bytes.max(1)))?;
        assert_eq!(map.as_ptr() as usize % BLOCK_BYTES, 0, "pages are aligned");
        Ok(Buffer { map, slot: None })
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}
