//! Bytes on their way to the socket: frames gathered in one buffer, large pieces by reference.
//!
//! Invariants:
//! 1. Bytes leave in the order they were put in.
//! 2. A quiet connection holds no buffer: it borrows one for the time it has something to say.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Output {
    /// Goes out before `tail`.
    front: VecDeque<Bytes>,
    /// The end, where frames are appended.
    tail: Vec<u8>,
    /// How much of the tail was written already; only while `front` is empty.
    at: usize,
    /// Bytes of `front`.
    front_bytes: usize,
}

impl Output {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.front_bytes + self.tail.len() - self.at
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where frames are appended.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends a piece without copying it.
    pub fn share(&mut self, piece: Bytes) {
        if self.tail.len() > self.at {
            let mut before = Bytes::from(std::mem::take(&mut self.tail));
            before.advance(std::mem::take(&mut self.at));
            self.front_bytes += before.len();
            self.front.push_back(before);
        }
        self.front_bytes += piece.len();
        self.front.push_back(piece);
    }

    /// What comes next, in up to as many slices as there is room for; returns how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = &self.tail[self.at..];
        let pieces = self.front.iter().map(|piece| &piece[..]);
        let pieces = pieces.chain((!tail.is_empty()).then_some(tail));
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// The first `n` bytes were written.
    pub fn written(&mut self, mut n: usize) {
        while let Some(piece) = self.front.front_mut() {
            let part = n.min(piece.len());
            piece.advance(part);
            self.front_bytes -= part;
            n -= part;
            if !piece.is_empty() {
                return;
            }
            self.front.pop_front();
        }
        self.at += n;
        if self.at == self.tail.len() {
            self.tail.clear();
            self.at = 0;
        }
    }

    /// Uses this empty buffer from now on if it is larger than the one there is.
    pub fn lend(&mut self, mut buffer: Vec<u8>) {
        if self.tail.capacity() < buffer.capacity() {
            buffer.extend_from_slice(&self.tail);
            self.tail = buffer;
        }
    }

    /// Gives the buffer back if nothing is in it.
    pub fn take_back(&mut self) -> Option<Vec<u8>> {
        let unused = self.tail.is_empty() && self.tail.capacity() > 0;
        unused.then(|| std::mem::take(&mut self.tail))
    }

    /// Everything that waits, taken out.
    #[cfg(test)]
    pub fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.slices(&mut slices);
            let n = slices[..count].iter().map(|s| s.len()).sum();
            slices[..count]
                .iter()
                .for_each(|s| all.extend_from_slice(s));
            self.written(n);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_buffer_is_borrowed_and_returned_only_when_empty() {
        let mut out = Output::default();
        assert_eq!(out.take_back(), None);
        out.lend(Vec::with_capacity(100));
        out.tail().extend_from_slice(b"abc");
        assert_eq!(out.take_back(), None);
        out.written(2);
        assert_eq!((out.take_back(), out.len()), (None, 1));
        out.written(1);
        assert_eq!(out.take_back().unwrap().capacity(), 100);
        // What is in a smaller one comes along, and the larger is not given up for it.
        out.tail().extend_from_slice(b"abc");
        out.written(1);
        out.lend(Vec::with_capacity(200));
        assert_eq!(out.drain(), b"bc");
        assert_eq!(out.take_back().unwrap().capacity(), 200);
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order(
            pieces in prop::collection::vec((any::<bool>(), 0usize..50), 1..40),
            writes in prop::collection::vec(0usize..80, 0..60),
        ) {
            let (mut out, mut put, mut got) = (Output::default(), Vec::new(), Vec::new());
            let mut writes = writes.into_iter();
            for (n, (shared, len)) in pieces.into_iter().enumerate() {
                let piece = vec![n as u8; len];
                put.extend_from_slice(&piece);
                match shared {
                    true => out.share(piece.into()),
                    false => out.tail().extend_from_slice(&piece),
                }
                prop_assert_eq!(out.len(), put.len() - got.len());
                let mut slices = [IoSlice::new(&[]); 4];
                let count = out.slices(&mut slices);
                let there: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
                let n = writes.next().unwrap_or(0).min(there.len());
                got.extend_from_slice(&there[..n]);
                out.written(n);
            }
            got.extend(out.drain());
            prop_assert_eq!(got, put);
        }
    }
}
