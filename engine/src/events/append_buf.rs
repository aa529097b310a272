//! A byte buffer with one appending owner and any number of readers of its published prefix.
//!
//! Readers get a [`Published`] handle that covers the bytes present when it was made; the owner
//! goes on appending behind it without copying. This is the only unsafe code of the record layer.
//!
//! Invariants:
//! 1. Bytes below any length that was ever handed out are never written again.
//! 2. There is one [`AppendBuf`] per allocation (it is not `Clone`), and appending takes `&mut`.
//! 3. The buffer never moves or grows: what does not fit is refused.

use std::cell::UnsafeCell;
use std::sync::Arc;

struct Shared {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: the cells below a published length are only read (invariant 1), those above it are
// touched by the one owner alone (invariant 2), so no byte is ever written while shared. Whoever
// sends a `Published` to another thread does so through a synchronising hand-over, which orders
// the writes below its length before the reads.
unsafe impl Sync for Shared {}

/// The owner's side.
pub(crate) struct AppendBuf {
    shared: Arc<Shared>,
    len: usize,
}

/// A readable prefix.
#[derive(Clone)]
pub(crate) struct Published {
    shared: Arc<Shared>,
    len: usize,
}

impl AppendBuf {
    /// An empty buffer for `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> AppendBuf {
        let zeroes = vec![0u8; capacity].into_boxed_slice();
        let raw = Box::into_raw(zeroes) as *mut [UnsafeCell<u8>];
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`, and `raw` owns the allocation alone.
        let bytes = unsafe { Box::from_raw(raw) };
        AppendBuf {
            shared: Arc::new(Shared { bytes }),
            len: 0,
        }
    }

    /// Appends all of `bytes`, or nothing when they do not fit.
    #[must_use]
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let room = self.shared.bytes.len() - self.len;
        if bytes.len() > room {
            return false;
        }
        let to = UnsafeCell::raw_get(self.shared.bytes[self.len..].as_ptr());
        // SAFETY: `to` starts a run of at least `bytes.len()` cells at or above `self.len`. No
        // `Published` covers them, and `&mut self` excludes any other writer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.len += bytes.len();
        true
    }

    /// A handle on everything appended so far.
    pub(crate) fn published(&self) -> Published {
        Published {
            shared: self.shared.clone(),
            len: self.len,
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        slice(&self.shared, self.len)
    }

    pub(crate) fn room(&self) -> usize {
        self.shared.bytes.len() - self.len
    }
}

impl Published {
    pub(crate) fn as_slice(&self) -> &[u8] {
        slice(&self.shared, self.len)
    }
}

fn slice(shared: &Shared, len: usize) -> &[u8] {
    let cells = &shared.bytes[..len];
    // SAFETY: the first `len` bytes are initialised and, being below a length that was handed
    // out (or held by the owner through `&self`), are not written while the slice lives.
    unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let mut buf = AppendBuf::new(4);
        assert!(buf.append(b"abc"));
        assert!(!buf.append(b"de"));
        assert_eq!(buf.as_slice(), b"abc");
        assert!(buf.append(b"d"));
        assert!(buf.append(b""));
        assert_eq!((buf.as_slice(), buf.room()), (&b"abcd"[..], 0));
        assert_eq!(AppendBuf::new(0).as_slice(), b"");
    }

    #[test]
    fn readers_see_their_prefix_while_the_owner_appends() {
        let mut buf = AppendBuf::new(1 << 16);
        let (send, recv) = std::sync::mpsc::sync_channel::<Published>(4);
        let reader = std::thread::spawn(move || {
            let mut seen = 0;
            for published in recv {
                let bytes = published.as_slice();
                assert!(bytes.len() >= seen);
                seen = bytes.len();
                assert!(bytes.iter().enumerate().all(|(i, b)| *b == i as u8));
            }
            seen
        });
        for i in 0..1usize << 16 {
            assert!(buf.append(&[i as u8]));
            if i % 1021 == 0 {
                send.send(buf.published()).expect("reader lives");
            }
        }
        send.send(buf.published()).expect("reader lives");
        drop(send);
        assert_eq!(reader.join().expect("no panic"), 1 << 16);
    }
}
