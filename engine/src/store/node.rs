//! A page in memory, with those of its children that no checkpoint has written.
//!
//! An inner page's cell names its child by address. A child that is only in memory has none yet; then the cell's unit is
//! 0 and its birth is a place in the page's table of such children. The table is kept in pieces that copies of the page
//! share until they change them: copying a page costs a few reference counts, however many children it has.

use std::sync::{Arc, OnceLock};

use super::page::{Addr, Page, PageMut};

/// A page in memory. Immutable once it is published; `addr` is set once, when it is durable.
///
/// The order of the fields is kept: what readers follow lies beside the reference counts they touch anyway.
#[repr(C)]
pub(super) struct Node {
    pub buf: Box<[u8]>,
    kids: Kids,
    pub addr: OnceLock<Addr>,
    /// Number of the publish that first showed this page; 0 for pages read from disk.
    pub made: u64,
}

impl Drop for Node {
    fn drop(&mut self) {
        spare::keep(std::mem::take(&mut self.buf));
    }
}

/// Memory of dropped pages, for copies to come: each batch of changes drops about as many pages as it
/// copies, and blocks of this size are dear for the allocator. What is beyond the bound is freed.
mod spare {
    use std::sync::Mutex;

    /// Pages kept at most, over all stores of the process.
    const PAGES_MAX: usize = 512;

    static PAGES: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

    /// Nobody waits for a spare page: while another thread is at them, memory comes from the allocator. The writer copies
    /// pages while the checkpoint drops thousands; whoever holds the lock may have lost its core.
    fn pages() -> Option<std::sync::MutexGuard<'static, Vec<Box<[u8]>>>> {
        match PAGES.try_lock() {
            Ok(pages) => Some(pages),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    pub fn copy_of(page: &[u8]) -> Box<[u8]> {
        let spare = pages().and_then(|mut pages| pages.pop());
        match spare {
            Some(mut buf) if buf.len() == page.len() => {
                buf.copy_from_slice(page);
                buf
            }
            _ => Box::from(page),
        }
    }

    pub fn keep(buf: Box<[u8]>) {
        if buf.is_empty() {
            return;
        }
        if let Some(mut pages) = pages()
            && pages.len() < PAGES_MAX
        {
            pages.push(buf);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn copies_are_whole_whatever_was_kept_and_the_bound_holds() {
            for round in 0..3u8 {
                for bytes in [512, 4096, 8192] {
                    let page: Box<[u8]> = (0..bytes).map(|i| (i % 251) as u8 ^ round).collect();
                    let copies: Vec<_> = (0..PAGES_MAX).map(|_| copy_of(&page)).collect();
                    assert!(copies.iter().all(|copy| *copy == page));
                    copies.into_iter().for_each(keep);
                    assert!(crate::store::lock(&PAGES).len() <= PAGES_MAX);
                }
            }
        }
    }
}

/// Children in one piece of the table.
const PIECE: usize = 16;

type Piece = [Option<Arc<Node>>; PIECE];

/// Children that are only in memory.
#[derive(Clone, Default)]
struct Kids {
    pieces: Vec<Arc<Piece>>,
    /// Places that no cell names.
    free: Vec<u16>,
}

impl Kids {
    fn get(&self, place: usize) -> Option<&Arc<Node>> {
        self.pieces.get(place / PIECE)?[place % PIECE].as_ref()
    }

    fn at(&mut self, place: usize) -> &mut Option<Arc<Node>> {
        &mut Arc::make_mut(&mut self.pieces[place / PIECE])[place % PIECE]
    }

    fn add(&mut self, kid: Arc<Node>) -> usize {
        if self.free.is_empty() {
            let first = self.pieces.len() * PIECE;
            self.pieces.push(Arc::default());
            self.free
                .extend((first..first + PIECE).rev().map(|place| place as u16));
        }
        let place = usize::from(self.free.pop().expect("filled just above"));
        *self.at(place) = Some(kid);
        place
    }
}

/// What the cell of a child in memory says instead of an address.
fn place_mark(place: usize) -> Addr {
    Addr {
        unit: 0,
        birth: place as u64,
    }
}

impl Node {
    /// A page that is to become part of publish `made`.
    pub fn unwritten(buf: Box<[u8]>, made: u64) -> Node {
        Node {
            buf,
            kids: Kids::default(),
            addr: OnceLock::new(),
            made,
        }
    }

    /// A durable page as read from disk or just written.
    pub fn durable(buf: Box<[u8]>, addr: Addr) -> Node {
        Node {
            buf,
            kids: Kids::default(),
            addr: OnceLock::from(addr),
            made: 0,
        }
    }

    /// An unwritten copy to be changed, part of publish `made`.
    pub fn copy(&self, made: u64) -> Node {
        Node {
            buf: spare::copy_of(&self.buf),
            kids: self.kids.clone(),
            addr: OnceLock::new(),
            made,
        }
    }

    #[inline]
    pub fn page(&self) -> Page<'_> {
        Page(&self.buf)
    }

    pub fn page_mut(&mut self) -> PageMut<'_> {
        PageMut(&mut self.buf)
    }

    fn place(&self, i: usize) -> Option<usize> {
        debug_assert!(!self.page().is_leaf());
        let addr = self.page().child(i).addr;
        (addr.unit == 0).then_some(addr.birth as usize)
    }

    /// Child `i`, if it is only in memory.
    #[inline]
    pub fn kid(&self, i: usize) -> Option<&Arc<Node>> {
        self.kids.get(self.place(i)?)
    }

    /// All children that are only in memory, in no order.
    pub fn kids(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.kids
            .pieces
            .iter()
            .flat_map(|piece| piece.iter().flatten())
    }

    /// Gives child `i`, which has no place, one.
    pub fn add_kid(&mut self, i: usize, kid: Arc<Node>) {
        let place = self.kids.add(kid);
        self.page_mut().set_child_addr(i, place_mark(place));
    }

    /// Takes child `i` out for changing; its place stays.
    pub fn lift_kid(&mut self, i: usize) -> Option<Arc<Node>> {
        let place = self.place(i)?;
        self.kids.at(place).take()
    }

    /// Puts a child where `lift_kid` took one, or gives it a place.
    pub fn put_kid(&mut self, i: usize, kid: Arc<Node>) {
        match self.place(i) {
            Some(place) => *self.kids.at(place) = Some(kid),
            None => self.add_kid(i, kid),
        }
    }

    /// Child `i` leaves memory, or the page: its place is free.
    pub fn drop_kid(&mut self, i: usize) {
        if let Some(place) = self.place(i) {
            *self.kids.at(place) = None;
            self.kids.free.push(place as u16);
        }
    }
}
