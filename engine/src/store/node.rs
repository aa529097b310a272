//! A page in memory, with those of its children that no checkpoint has written.
//!
//! An inner page's cell names its child by address. A child that is only in memory has none yet; then the cell's unit is
//! 0 and its birth is a place in the page's table of such children. The table is kept in pieces that copies of the page
//! share until they change them: copying a page costs a few reference counts, however many children it has.
//!
//! Node and page are one block of memory, first what is known of the page, its reference count among it, then its
//! bytes: whoever follows a reference finds both at one place. [`NodeRef`] counts, as [`Arc`] does, and gives the
//! block back to where it came from.
//!
//! Invariants:
//! 1. A node is changed only through a [`NewNode`], which nobody else can reach, or through [`NodeRef::get_mut`],
//!    which refuses when somebody else can.
//! 2. Behind the head of a block lie as many initialised bytes as its reference says.
//! 3. The last reference drops what the head holds and gives the block back, once.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use super::page::{Addr, Page, PageMut};
use super::slabs::{ALIGN, Slabs};

/// What is known of a page. Its size is a multiple of its alignment, so pages begin on a line of their own.
#[repr(align(64))]
pub(super) struct Head {
    kids: Kids,
    /// Set once, when the page is durable.
    pub addr: OnceLock<Addr>,
    /// Number of the publish that first showed this page; 0 for pages read from disk.
    pub made: u64,
    refs: AtomicUsize,
    /// The block came from the slabs of its size, not from the allocator.
    slab: bool,
}

/// A page in memory. Immutable once it is published, its address aside.
#[repr(C)]
pub(super) struct Node {
    head: Head,
    pub buf: [u8],
}

impl Deref for Node {
    type Target = Head;

    #[inline]
    fn deref(&self) -> &Head {
        &self.head
    }
}

/// Memory of a page and its node, bytes.
const fn block_bytes(page_bytes: usize) -> usize {
    size_of::<Head>() + page_bytes
}

/// Log2 of the smallest and the largest page.
const SIZES: std::ops::RangeInclusive<u32> = 9..=15;

/// Slabs for every size of page.
static SLABS: [Slabs; 7] = [
    Slabs::new(block_bytes(1 << 9)),
    Slabs::new(block_bytes(1 << 10)),
    Slabs::new(block_bytes(1 << 11)),
    Slabs::new(block_bytes(1 << 12)),
    Slabs::new(block_bytes(1 << 13)),
    Slabs::new(block_bytes(1 << 14)),
    Slabs::new(block_bytes(1 << 15)),
];

fn slabs_for(page_bytes: usize) -> &'static Slabs {
    let log = page_bytes.trailing_zeros();
    assert!(
        page_bytes.is_power_of_two() && SIZES.contains(&log),
        "pages have the sizes that the format knows"
    );
    &SLABS[(log - SIZES.start()) as usize]
}

fn layout(page_bytes: usize) -> Layout {
    Layout::from_size_align(block_bytes(page_bytes), ALIGN).expect("pages are small")
}

/// A counted reference to a page in memory.
pub(super) struct NodeRef(NonNull<Node>);

// SAFETY: it is an `Arc` of a `Node`, whose parts are all `Send` and `Sync`.
unsafe impl Send for NodeRef {}
// SAFETY: as above.
unsafe impl Sync for NodeRef {}

impl NodeRef {
    /// The node, if this is the only reference to it.
    pub fn get_mut(&mut self) -> Option<&mut Node> {
        // Pairs with the release in `drop`: what others did with the node happened before.
        if self.refs.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: no other reference exists, and none can come to be while this one is borrowed.
        Some(unsafe { self.0.as_mut() })
    }
}

impl NodeRef {
    /// Asks the processor for what a look-up reads of the page first: header, prefix, slots.
    #[inline]
    pub fn fetch_soon(&self) {
        const BYTES: usize = 256;
        super::prefetch::soon(&self.buf[..BYTES]);
    }
}

impl Deref for NodeRef {
    type Target = Node;

    #[inline]
    fn deref(&self) -> &Node {
        // SAFETY: the node lives as long as it is counted, and nobody changes it (invariant 1).
        unsafe { self.0.as_ref() }
    }
}

impl Clone for NodeRef {
    #[inline]
    fn clone(&self) -> NodeRef {
        // Nothing is read that the new reference guards: the old one guards it still.
        self.refs.fetch_add(1, Ordering::Relaxed);
        NodeRef(self.0)
    }
}

impl Drop for NodeRef {
    #[inline]
    fn drop(&mut self) {
        if self.refs.fetch_sub(1, Ordering::Release) == 1 {
            // What the others did with the node happens before it goes.
            fence(Ordering::Acquire);
            self.free();
        }
    }
}

impl NodeRef {
    #[inline(never)]
    fn free(&mut self) {
        let (len, slab) = (self.buf.len(), self.slab);
        // SAFETY: this was the last reference.
        unsafe { ptr::drop_in_place(&raw mut (*self.0.as_ptr()).head) };
        let block = self.0.cast::<u8>();
        match slab {
            // SAFETY: `NewNode::make` took the block from there, and nobody uses it any more.
            true => unsafe { slabs_for(len).give(block) },
            // SAFETY: `NewNode::make` allocated it with this layout, and nobody uses it any more.
            false => unsafe { dealloc(block.as_ptr(), layout(len)) },
        }
    }
}

/// A page that nobody else knows yet.
pub(super) struct NewNode(NodeRef);

impl NewNode {
    /// A node whose `len` bytes `fill` writes, all of them, at the address it is given.
    fn make(len: usize, made: u64, kids: Kids, fill: impl FnOnce(*mut u8)) -> NewNode {
        let (block, slab) = match slabs_for(len).take() {
            Some(block) => (block, true),
            None => {
                // SAFETY: the layout's size is not zero.
                let raw = unsafe { alloc(layout(len)) };
                let Some(block) = NonNull::new(raw) else {
                    handle_alloc_error(layout(len))
                };
                (block, false)
            }
        };
        let head = Head {
            kids,
            addr: OnceLock::new(),
            made,
            refs: AtomicUsize::new(1),
            slab,
        };
        // SAFETY: the block is ours, aligned for a `Head` and long enough for it and the page behind it.
        unsafe {
            block.cast::<Head>().write(head);
            fill(block.as_ptr().add(size_of::<Head>()));
        }
        // The pointer's length is that of the node's last field.
        let node = ptr::slice_from_raw_parts_mut(block.as_ptr(), len) as *mut Node;
        // SAFETY: blocks are not at address zero.
        NewNode(NodeRef(unsafe { NonNull::new_unchecked(node) }))
    }

    fn copy_of(page: &[u8], made: u64, kids: Kids) -> NewNode {
        NewNode::make(page.len(), made, kids, |to| {
            // SAFETY: `to` has room for as many bytes, and is new memory.
            unsafe { ptr::copy_nonoverlapping(page.as_ptr(), to, page.len()) }
        })
    }

    /// A zeroed page that is to become part of publish `made`.
    pub fn unwritten(page_bytes: usize, made: u64) -> NewNode {
        NewNode::make(page_bytes, made, Kids::default(), |to| {
            // SAFETY: `to` has room for as many bytes.
            unsafe { to.write_bytes(0, page_bytes) }
        })
    }

    /// A copy of a page as read from disk, or of what is to be written there.
    pub fn image(page: &[u8]) -> NewNode {
        NewNode::copy_of(page, 0, Kids::default())
    }

    /// A durable page, as read from disk or just written.
    pub fn durable(page: &[u8], addr: Addr) -> NewNode {
        let node = NewNode::image(page);
        let set = node.addr.set(addr);
        debug_assert!(set.is_ok(), "it was made just now");
        node
    }

    /// For all to see from now on.
    pub fn share(self) -> NodeRef {
        self.0
    }
}

impl Deref for NewNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.0
    }
}

impl DerefMut for NewNode {
    fn deref_mut(&mut self) -> &mut Node {
        // SAFETY: nobody else has a reference, since `share` takes this one.
        unsafe { self.0.0.as_mut() }
    }
}

/// Children in one piece of the table.
const PIECE: usize = 16;

type Piece = [Option<NodeRef>; PIECE];

/// Children that are only in memory.
#[derive(Clone, Default)]
struct Kids {
    pieces: Vec<Arc<Piece>>,
    /// Places that no cell names.
    free: Vec<u16>,
}

impl Kids {
    fn get(&self, place: usize) -> Option<&NodeRef> {
        self.pieces.get(place / PIECE)?[place % PIECE].as_ref()
    }

    fn at(&mut self, place: usize) -> &mut Option<NodeRef> {
        &mut Arc::make_mut(&mut self.pieces[place / PIECE])[place % PIECE]
    }

    fn add(&mut self, kid: NodeRef) -> usize {
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
    /// An unwritten copy to be changed, part of publish `made`.
    pub fn copy(&self, made: u64) -> NewNode {
        NewNode::copy_of(&self.buf, made, self.head.kids.clone())
    }

    /// Becomes what `other` is, its publish number aside, which is the same.
    pub fn become_as(&mut self, mut other: NewNode) {
        debug_assert_eq!(self.made, other.made);
        self.buf.copy_from_slice(&other.buf);
        std::mem::swap(&mut self.head.kids, &mut other.head.kids);
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
    pub fn kid(&self, i: usize) -> Option<&NodeRef> {
        self.head.kids.get(self.place(i)?)
    }

    /// All children that are only in memory, in no order.
    pub fn kids(&self) -> impl Iterator<Item = &NodeRef> {
        self.head
            .kids
            .pieces
            .iter()
            .flat_map(|piece| piece.iter().flatten())
    }

    /// Gives child `i`, which has no place, one.
    pub fn add_kid(&mut self, i: usize, kid: NodeRef) {
        let place = self.head.kids.add(kid);
        self.page_mut().set_child_addr(i, place_mark(place));
    }

    /// Takes child `i` out for changing; its place stays.
    pub fn lift_kid(&mut self, i: usize) -> Option<NodeRef> {
        let place = self.place(i)?;
        self.head.kids.at(place).take()
    }

    /// Puts a child where `lift_kid` took one, or gives it a place.
    pub fn put_kid(&mut self, i: usize, kid: NodeRef) {
        match self.place(i) {
            Some(place) => *self.head.kids.at(place) = Some(kid),
            None => self.add_kid(i, kid),
        }
    }

    /// Child `i` leaves memory, or the page: its place is free.
    pub fn drop_kid(&mut self, i: usize) {
        if let Some(place) = self.place(i) {
            *self.head.kids.at(place) = None;
            self.head.kids.free.push(place as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(bytes: usize, byte: u8) -> Vec<u8> {
        let mut page: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8 ^ byte).collect();
        page[4] = super::super::page::KIND_INNER;
        page
    }

    #[test]
    fn every_size_holds_what_was_put_in_and_begins_on_a_line() {
        for log in SIZES {
            let bytes = 1 << log;
            let image = page(bytes, 3);
            let addr = Addr { unit: 7, birth: 9 };
            let durable = NewNode::durable(&image, addr).share();
            assert_eq!(durable.buf, image[..]);
            assert_eq!((durable.addr.get(), durable.made), (Some(&addr), 0));
            assert_eq!(durable.buf.as_ptr().addr() % ALIGN, 0);
            let empty = NewNode::unwritten(bytes, 5);
            assert!(empty.buf.len() == bytes && empty.buf.iter().all(|byte| *byte == 0));
            let copy = durable.copy(5);
            assert_eq!((&copy.buf, copy.made), (&image[..], 5));
            assert_eq!(copy.addr.get(), None);
        }
    }

    #[test]
    fn a_node_is_changed_by_its_only_holder_alone_and_freed_by_its_last() {
        let kid = NewNode::image(&page(512, 1)).share();
        let mut parent = NewNode::unwritten(512, 1);
        parent.head.kids.add(kid.clone());
        let mut first = parent.share();
        assert!(first.get_mut().is_some());
        let second = first.clone();
        assert!(first.get_mut().is_none());
        let copy = second.copy(2).share();
        drop(second);
        first.get_mut().expect("the only one again").buf[9] = 1;
        assert_eq!((first.buf[9], copy.buf[9]), (1, 0));
        let refs = || kid.refs.load(Ordering::Relaxed);
        // The two parents share the piece of the table that holds it.
        assert_eq!(refs(), 2);
        drop(first);
        assert_eq!(refs(), 2);
        drop(copy);
        assert_eq!(refs(), 1);
    }

    #[test]
    fn becoming_another_takes_its_page_and_its_children() {
        let (old, new) = (NewNode::image(&page(512, 1)), NewNode::image(&page(512, 2)));
        let (old, new) = (old.share(), new.share());
        let mut node = NewNode::unwritten(512, 1);
        node.head.kids.add(old.clone());
        let mut other = NewNode::unwritten(512, 1);
        other.buf.copy_from_slice(&page(512, 3));
        other.head.kids.add(new.clone());
        node.become_as(other);
        assert_eq!(node.buf, page(512, 3)[..]);
        assert_eq!(old.refs.load(Ordering::Relaxed), 1);
        assert_eq!(new.refs.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn threads_share_and_drop_nodes() {
        let rounds = if cfg!(miri) { 20 } else { 2000u32 };
        std::thread::scope(|scope| {
            let (to, from) = std::sync::mpsc::channel::<NodeRef>();
            for byte in 0..2u8 {
                let to = to.clone();
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let node = NewNode::image(&page(1024, byte)).share();
                        to.send(node.clone()).expect("somebody listens");
                        assert_eq!(node.buf[1000], (1000 % 251) as u8 ^ byte);
                    }
                });
            }
            drop(to);
            for node in from {
                let byte = node.buf[0];
                assert_eq!(node.buf, page(1024, byte)[..]);
            }
        });
    }
}
