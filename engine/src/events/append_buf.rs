//! A byte buffer with one appending owner and any number of readers of its published prefix.
//!
//! Readers get a [`Published`] handle that covers the bytes present when it was made; the owner
//! goes on appending behind it without copying.
//!
//! Invariants:
//! 1. Bytes below any length that was ever handed out are never written again.
//! 2. There is one [`AppendBuf`] per allocation (it is not `Clone`), and appending takes `&mut`.
//! 3. The buffer never moves or grows: what does not fit is refused.

use super::cells::{Cells, Seen};
use crate::sync::Arc;

/// The owner's side.
pub(crate) struct AppendBuf {
    cells: Arc<Cells>,
    len: usize,
}

/// A readable prefix.
#[derive(Clone)]
pub(crate) struct Published {
    cells: Arc<Cells>,
    len: usize,
}

impl AppendBuf {
    /// An empty buffer for `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> AppendBuf {
        AppendBuf {
            cells: Arc::new(Cells::new(capacity)),
            len: 0,
        }
    }

    /// Appends all of `bytes`, or nothing when they do not fit.
    #[must_use]
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room() {
            return false;
        }
        // SAFETY: nobody was ever given a length above `self.len`, and `&mut self` of the one owner excludes any
        // other writer.
        unsafe { self.cells.write(self.len, bytes) };
        self.len += bytes.len();
        true
    }

    /// A handle on everything appended so far.
    pub(crate) fn published(&self) -> Published {
        Published {
            cells: self.cells.clone(),
            len: self.len,
        }
    }

    pub(crate) fn as_slice(&self) -> Seen<'_> {
        // SAFETY: all of it was written, by this owner; it writes behind it only, and not while borrowed.
        unsafe { self.cells.read(self.len) }
    }

    pub(crate) fn room(&self) -> usize {
        self.cells.len() - self.len
    }
}

impl Published {
    pub(crate) fn as_slice(&self) -> Seen<'_> {
        // SAFETY: the length was taken when all below it was written, nothing below it is written again, and whoever
        // sent this here from another thread did so by a hand-over that synchronises.
        unsafe { self.cells.read(self.len) }
    }
}
