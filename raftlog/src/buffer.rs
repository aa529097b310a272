//! Memory that a disk can be written from directly: block-aligned, a whole number of blocks.

use crate::format::{BLOCK_BYTES, padded};
use memmap2::{Advice, MmapMut};
use std::io;
use std::ops::{Deref, DerefMut};

/// An anonymous mapping; page-aligned, zeroed, never moved while it lives.
pub(crate) struct Buffer {
    map: MmapMut,
    /// Its number in the ring's table of registered buffers, if it is one of them.
    pub slot: Option<u16>,
}

/// From this size on memory is asked for in huge pages: one page to pin for a direct write instead of
/// hundreds. Where there are none it is ordinary memory.
const HUGE_BYTES: usize = 2 << 20;

impl Buffer {
    /// At least `bytes` of zeroed memory.
    pub fn new(bytes: usize) -> io::Result<Buffer> {
        let map = MmapMut::map_anon(padded(bytes.max(1)))?;
        if map.len() >= HUGE_BYTES {
            // Advice: whether it is taken changes nothing but speed.
            let _ = map.advise(Advice::HugePage);
        }
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
