//! Memory for pages: blocks of one size, out of slabs of 2 MiB that the kernel is asked to map as one.
//!
//! A read of some key looks at pages that nobody looked at lately. Where pages lie all over a heap of 4 KiB
//! mappings, the processor must find out for each of them where it is before it can read it, and on a virtual machine
//! that takes longer than the reading. A slab is one mapping, and a few hundred of them it remembers. Besides, a
//! block costs a dozen instructions here, and blocks of this size are dear for the allocator.
//!
//! Invariants:
//! 1. A block belongs to one caller from `take` to `give`; blocks never overlap.
//! 2. A slab goes back to the system when its last block does, but for a few kept for the next ([`KEPT_EMPTY`]).
//!    Blocks come out of the slab with the lowest number that has any, so that the others run empty.
//! 3. Nobody waits for memory: who finds the lock taken gets none here and asks the allocator, or leaves the block for
//!    the next one who comes by. Whoever holds the lock may have lost its core.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Bytes and alignment of a slab: what one entry of the processor's tables can map.
const SLAB_BYTES: usize = 2 << 20;

/// Bytes of a slab before its first block. A multiple of 64, as every block should be: blocks are aligned to that.
const HEAD_BYTES: usize = 64;

/// Alignment of every block.
pub(super) const ALIGN: usize = 64;

/// Empty slabs that are kept: a batch of changes gives back about as many pages as it takes.
const KEPT_EMPTY: usize = 2;

/// The beginning of a slab.
struct Head {
    number: usize,
}

/// What a block that nobody has begins with.
struct Free {
    next: Option<NonNull<Free>>,
}

struct Slab {
    memory: NonNull<u8>,
    free: Option<NonNull<Free>>,
    /// Blocks never handed out, from the end of the slab.
    fresh: usize,
    /// Blocks handed out and not given back.
    used: usize,
}

struct Inner {
    slabs: Vec<Option<Slab>>,
    /// A bit for each slab with room.
    open: Vec<u64>,
    /// No word of `open` before this one has a bit.
    lowest: usize,
    /// Slabs without a block in use.
    empty: usize,
    held: usize,
}

/// Blocks of one size.
pub(super) struct Slabs {
    block: usize,
    inner: Mutex<Inner>,
    /// Blocks given back while the lock was taken.
    late: Mutex<Vec<NonNull<u8>>>,
    any_late: AtomicBool,
}

// SAFETY: the pointers in it are to memory that it owns, and are followed under the locks only.
unsafe impl Send for Slabs {}
// SAFETY: as above.
unsafe impl Sync for Slabs {}

impl Slabs {
    /// Of blocks of `block` bytes, a multiple of 64 and at most a quarter of a slab.
    pub const fn new(block: usize) -> Slabs {
        assert!(block.is_multiple_of(ALIGN) && block >= ALIGN && block <= SLAB_BYTES / 4);
        Slabs {
            block,
            inner: Mutex::new(Inner {
                slabs: Vec::new(),
                open: Vec::new(),
                lowest: 0,
                empty: 0,
                held: 0,
            }),
            late: Mutex::new(Vec::new()),
            any_late: AtomicBool::new(false),
        }
    }

    const fn blocks_per_slab(&self) -> usize {
        (SLAB_BYTES - HEAD_BYTES) / self.block
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(inner) => Some(inner),
            // Nothing below panics half way.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// A block of undefined contents. None when another thread is here, or the system has no memory.
    pub fn take(&self) -> Option<NonNull<u8>> {
        let mut inner = self.try_lock()?;
        let surplus = self.sort_late(&mut inner);
        let block = inner.take(self.block, self.blocks_per_slab());
        drop(inner);
        surplus.into_iter().for_each(system::give);
        block
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// It came from `take` of the same slabs, was not given back since, and nobody uses it any more.
    pub unsafe fn give(&self, block: NonNull<u8>) {
        let Some(mut inner) = self.try_lock() else {
            let mut late = super::lock(&self.late);
            late.push(block);
            self.any_late.store(true, Ordering::Relaxed);
            return;
        };
        let mut surplus = self.sort_late(&mut inner);
        // SAFETY: the caller's promise.
        surplus.extend(unsafe { inner.give(block) });
        drop(inner);
        surplus.into_iter().for_each(system::give);
    }

    /// Puts the late blocks where they belong; the slabs that go back to the system for it.
    fn sort_late(&self, inner: &mut Inner) -> Vec<NonNull<u8>> {
        if !self.any_late.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let late = {
            let mut late = super::lock(&self.late);
            self.any_late.store(false, Ordering::Relaxed);
            std::mem::take(&mut *late)
        };
        late.into_iter()
            // SAFETY: whoever left the block promised it to `give`.
            .filter_map(|block| unsafe { inner.give(block) })
            .collect()
    }
}

impl Inner {
    fn take(&mut self, block: usize, per_slab: usize) -> Option<NonNull<u8>> {
        let number = match self.first_open() {
            Some(number) => number,
            None => self.grow(per_slab)?,
        };
        let slab = self.slabs[number].as_mut().expect("open slabs are here");
        let taken = match slab.free {
            Some(free) => {
                // SAFETY: blocks of the list lie in the slab, belong to nobody, and were made a `Free` by `give`.
                slab.free = unsafe { free.read() }.next;
                free.cast()
            }
            None => {
                slab.fresh -= 1;
                let at = HEAD_BYTES + (per_slab - 1 - slab.fresh) * block;
                // SAFETY: `fresh` of `per_slab` blocks, which fit the slab, lie behind this one.
                unsafe { slab.memory.add(at) }
            }
        };
        self.empty -= usize::from(slab.used == 0);
        slab.used += 1;
        if slab.free.is_none() && slab.fresh == 0 {
            self.open[number / 64] &= !(1 << (number % 64));
        }
        Some(taken)
    }

    fn first_open(&mut self) -> Option<usize> {
        while let Some(word) = self.open.get(self.lowest) {
            if *word != 0 {
                return Some(self.lowest * 64 + word.trailing_zeros() as usize);
            }
            self.lowest += 1;
        }
        None
    }

    fn set_open(&mut self, number: usize) {
        self.open[number / 64] |= 1 << (number % 64);
        self.lowest = self.lowest.min(number / 64);
    }

    fn grow(&mut self, per_slab: usize) -> Option<usize> {
        let memory = system::take()?;
        let number = match self.slabs.iter().position(Option::is_none) {
            Some(number) => number,
            None => {
                self.slabs.push(None);
                self.slabs.len() - 1
            }
        };
        self.open.resize(self.slabs.len().div_ceil(64), 0);
        // SAFETY: the slab is ours alone, and its first bytes are no block's.
        unsafe { memory.cast::<Head>().write(Head { number }) };
        self.slabs[number] = Some(Slab {
            memory,
            free: None,
            fresh: per_slab,
            used: 0,
        });
        self.empty += 1;
        self.held += 1;
        self.set_open(number);
        Some(number)
    }

    /// Takes a block in; the slab to give to the system, if one is to go.
    ///
    /// # Safety
    /// As of [`Slabs::give`].
    unsafe fn give(&mut self, block: NonNull<u8>) -> Option<NonNull<u8>> {
        let within = block.addr().get() % SLAB_BYTES;
        // SAFETY: slabs are aligned to their size, so the slab of this block begins `within` bytes before it, with its
        // head, which is written once before the first block is handed out.
        let number = unsafe { block.sub(within).cast::<Head>().as_ref() }.number;
        let slab = self.slabs[number].as_mut().expect("it has a block in use");
        let free = block.cast::<Free>();
        // SAFETY: the block belongs to nobody now, and is large enough and aligned.
        unsafe { free.write(Free { next: slab.free }) };
        slab.free = Some(free);
        slab.used -= 1;
        let used = slab.used;
        self.set_open(number);
        if used > 0 {
            return None;
        }
        self.empty += 1;
        if self.empty <= KEPT_EMPTY {
            return None;
        }
        self.empty -= 1;
        self.held -= 1;
        self.open[number / 64] &= !(1 << (number % 64));
        self.slabs[number].take().map(|slab| slab.memory)
    }
}

/// Where slabs come from.
#[cfg(not(miri))]
mod system {
    use std::ptr::{self, NonNull};

    use super::SLAB_BYTES;

    /// A slab, zeroed. It takes up memory from the first touch on.
    pub fn take() -> Option<NonNull<u8>> {
        // SAFETY: a new private mapping without a file touches nothing that exists.
        let raw = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * SLAB_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let raw = raw.cast::<u8>();
        let before = raw.align_offset(SLAB_BYTES);
        // SAFETY: an aligned slab lies within the mapping, which is two slabs long.
        let slab = unsafe { raw.add(before) };
        for (from, bytes) in [
            (raw, before),
            // SAFETY: the end of the slab is within the mapping, or is its end.
            (unsafe { slab.add(SLAB_BYTES) }, SLAB_BYTES - before),
        ] {
            if bytes > 0 {
                // SAFETY: these parts of the mapping are ours, and nobody has a pointer into them.
                unsafe { libc::munmap(from.cast(), bytes) };
            }
        }
        // Without it everything works, at the speed of small mappings.
        // SAFETY: the range is the slab, which is mapped; advice changes no contents.
        unsafe { libc::madvise(slab.cast(), SLAB_BYTES, libc::MADV_HUGEPAGE) };
        NonNull::new(slab)
    }

    /// Gives back what `take` gave.
    pub fn give(slab: NonNull<u8>) {
        // SAFETY: the slab is a whole mapping of its own, and its owner has let go of every block.
        unsafe { libc::munmap(slab.as_ptr().cast(), SLAB_BYTES) };
    }
}

#[cfg(miri)]
mod system {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    use super::SLAB_BYTES;

    fn layout() -> Layout {
        Layout::from_size_align(SLAB_BYTES, SLAB_BYTES).expect("a power of two")
    }

    pub fn take() -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc_zeroed(layout()) })
    }

    pub fn give(slab: NonNull<u8>) {
        // SAFETY: it came from `take`.
        unsafe { dealloc(slab.as_ptr(), layout()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(slabs: &Slabs) -> usize {
        crate::store::lock(&slabs.inner).held
    }

    /// Writes all over a block.
    fn fill(block: NonNull<u8>, bytes: usize, byte: u8) {
        // SAFETY: the test has the block, which is of this size.
        unsafe { block.write_bytes(byte, bytes) };
    }

    fn is_filled(block: NonNull<u8>, bytes: usize, byte: u8) -> bool {
        // SAFETY: as above; it was filled.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), bytes) };
        bytes.iter().all(|b| *b == byte)
    }

    impl Drop for Slabs {
        fn drop(&mut self) {
            let inner = self.inner.get_mut().expect("no test ends in a panic here");
            for slab in inner.slabs.drain(..).flatten() {
                assert_eq!(slab.used, 0, "a block is lost");
                system::give(slab.memory);
            }
        }
    }

    /// Takes and gives back at random, each block filled with a byte of its own all the while.
    #[test]
    fn blocks_never_overlap() {
        const BLOCK: usize = if cfg!(miri) { 256 << 10 } else { 8320 };
        let slabs = Slabs::new(BLOCK);
        let mut blocks: Vec<(NonNull<u8>, u8)> = Vec::new();
        let mut state = 1u64;
        for round in 0..if cfg!(miri) { 60 } else { 4000u32 } {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let random = (state >> 33) as usize;
            if random % 5 < 3 || blocks.is_empty() {
                let block = slabs.take().expect("nobody else is here");
                assert_eq!(block.addr().get() % ALIGN, 0);
                fill(block, BLOCK, round as u8);
                blocks.push((block, round as u8));
            } else {
                let (block, byte) = blocks.swap_remove(random % blocks.len());
                assert!(is_filled(block, BLOCK, byte));
                // SAFETY: it was taken once and is forgotten here.
                unsafe { slabs.give(block) };
            }
        }
        assert!(blocks.iter().all(|(block, b)| is_filled(*block, BLOCK, *b)));
        for (block, _) in blocks {
            // SAFETY: as above.
            unsafe { slabs.give(block) };
        }
        assert_eq!(held(&slabs), KEPT_EMPTY);
    }

    /// What is held follows what is in use, up and down, and low slabs are filled before high ones.
    #[test]
    fn empty_slabs_go_back() {
        const BLOCK: usize = 256 << 10;
        let slabs = Slabs::new(BLOCK);
        let per_slab = slabs.blocks_per_slab();
        let mut blocks: Vec<_> = (0..40 * per_slab)
            .map(|_| slabs.take().expect("nobody else is here"))
            .collect();
        assert_eq!(held(&slabs), 40);
        // Every slab loses all blocks but one: all of them stay.
        let kept: Vec<_> = blocks.iter().copied().step_by(per_slab).collect();
        blocks.retain(|block| !kept.contains(block));
        for block in blocks {
            // SAFETY: taken above, and not used.
            unsafe { slabs.give(block) };
        }
        assert_eq!(held(&slabs), 40);
        // New blocks fill the gaps: nothing is taken from the system.
        let again: Vec<_> = (0..39 * (per_slab - 1))
            .map(|_| slabs.take().expect("nobody else is here"))
            .collect();
        assert_eq!(held(&slabs), 40);
        let last = kept[39];
        let base = last.addr().get() - last.addr().get() % SLAB_BYTES;
        assert!(
            again
                .iter()
                .all(|block| !(base..base + SLAB_BYTES).contains(&block.addr().get())),
            "the last slab is left alone while others have room"
        );
        for (given, block) in again.into_iter().chain(kept).enumerate() {
            // SAFETY: taken above, and not used.
            unsafe { slabs.give(block) };
            let used = 39 * (per_slab - 1) + 39 - given;
            assert!(held(&slabs) <= used + KEPT_EMPTY);
        }
        assert_eq!(held(&slabs), KEPT_EMPTY);
    }

    /// Threads that find the lock taken get nothing, or leave their block: none is lost.
    #[test]
    fn blocks_given_back_beside_each_other_are_all_found_again() {
        const BLOCK: usize = if cfg!(miri) { 256 << 10 } else { 8320 };
        let slabs = Slabs::new(BLOCK);
        let rounds = if cfg!(miri) { 20 } else { 20_000u32 };
        std::thread::scope(|scope| {
            for byte in 0..4u8 {
                let slabs = &slabs;
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let Some(block) = slabs.take() else { continue };
                        fill(block, 64, byte);
                        assert!(is_filled(block, 64, byte));
                        // SAFETY: taken just now, and not used any more.
                        unsafe { slabs.give(block) };
                    }
                });
            }
        });
        {
            // Whoever comes while the lock is taken waits for nobody.
            let block = slabs.take().expect("nobody else is here");
            let inner = crate::store::lock(&slabs.inner);
            assert!(slabs.take().is_none());
            // SAFETY: taken above, and not used.
            unsafe { slabs.give(block) };
            assert_eq!(crate::store::lock(&slabs.late)[..], [block]);
            drop(inner);
        }
        let block = slabs.take().expect("nobody else is here");
        // SAFETY: taken just now, and not used.
        unsafe { slabs.give(block) };
        let inner = crate::store::lock(&slabs.inner);
        let used: usize = inner.slabs.iter().flatten().map(|slab| slab.used).sum();
        assert_eq!((used, inner.empty), (0, inner.held));
    }

    #[test]
    fn a_slab_is_zeroed_aligned_and_comes_again() {
        for _ in 0..3 {
            let slab = system::take().expect("memory");
            assert_eq!(slab.addr().get() % SLAB_BYTES, 0);
            assert!(is_filled(slab, 4096, 0));
            fill(slab, SLAB_BYTES, 7);
            system::give(slab);
        }
    }
}
