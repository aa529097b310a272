//! One write per wake: what the codec writes piece by piece leaves in one system call.
//!
//! The codec of HTTP/2 writes whenever it meets a payload it does not copy and flushes after each of its
//! steps; with a hundred answers in one wake that is a hundred system calls. Here writes gather in a
//! buffer, flushing by the codec is a no-op, and the driver of the connection flushes after each poll.
//!
//! Invariants:
//! 1. Bytes leave in the order they were written.
//! 2. At most [`GATHERED_BYTES_MAX`] are held; then the codec waits for the socket.
//! 3. A connection that is quiet holds no buffer.

use super::stream::Rewound;
use bytes::{Buf, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes gathered before the socket is asked.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// A write this large goes out by itself when nothing waits before it.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// A buffer larger than this is given back once it is empty.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// Slices of one gathered write.
const SLICES_MAX: usize = 16;

struct Outbox {
    io: Rewound,
    out: BytesMut,
}

/// The codec's side.
pub(super) struct Gathering(Arc<Mutex<Outbox>>);

/// The driver's side.
pub(super) struct Flusher(Arc<Mutex<Outbox>>);

/// Splits a stream into both sides.
pub(super) fn gather(io: Rewound) -> (Gathering, Flusher) {
    let outbox = Arc::new(Mutex::new(Outbox {
        io,
        out: BytesMut::new(),
    }));
    (Gathering(outbox.clone()), Flusher(outbox))
}

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(|p| p.into_inner())
}

impl Outbox {
    /// Writes until nothing is left.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(n);
        }
        if self.out.capacity() > KEPT_BYTES_MAX {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            if self.out.is_empty() && total >= DIRECT_BYTES_MIN {
                return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
            }
            if self.out.len() + total <= GATHERED_BYTES_MAX {
                bufs.iter().for_each(|buf| self.out.extend_from_slice(buf));
                return Poll::Ready(Ok(total));
            }
            // What waits and what is new in one write.
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            slices[0] = IoSlice::new(&self.out);
            let mut count = 1;
            for (slot, buf) in slices[1..].iter_mut().zip(bufs) {
                *slot = IoSlice::new(buf);
                count += 1;
            }
            let written = Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]);
            let n = ready!(written)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let waited = self.out.len();
            self.out.advance(n.min(waited));
            if n > waited {
                return Poll::Ready(Ok(n - waited));
            }
        }
    }
}

impl Flusher {
    /// Writes what has gathered.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_empty(cx)
    }
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = lock(&self.0);
        ready!(outbox.poll_empty(cx))?;
        Pin::new(&mut outbox.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Stream;
    use super::*;
    use proptest::prelude::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn pair() -> (Gathering, Flusher, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (gathering, flusher) = gather(Rewound::fresh(Stream::Unix(ours)));
        (gathering, flusher, theirs)
    }

    #[tokio::test]
    async fn nothing_leaves_before_the_driver_flushes_and_then_all_does() {
        let (mut gathering, flusher, mut theirs) = pair();
        for piece in [&b"one "[..], b"two ", b"three"] {
            gathering.write_all(piece).await.unwrap();
            gathering.flush().await.unwrap();
        }
        let mut got = [0; 64];
        assert!(theirs.try_read(&mut got).is_err());
        poll_fn(|cx| flusher.poll_flush(cx)).await.unwrap();
        let n = theirs.read(&mut got).await.unwrap();
        assert_eq!(&got[..n], b"one two three");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_stops_the_writer_at_the_bound() {
        let (mut gathering, _flusher, mut theirs) = pair();
        let mut accepted = 0;
        let piece = [7; 1000];
        while let Poll::Ready(n) =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut gathering).poll_write(cx, &piece))).await
        {
            accepted += n.unwrap();
        }
        assert!(lock(&gathering.0).out.len() <= GATHERED_BYTES_MAX);
        let closing = tokio::spawn(async move { gathering.shutdown().await });
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), accepted);
        closing.await.unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn bytes_arrive_in_order_whatever_the_sizes(
            writes in prop::collection::vec(
                prop::collection::vec(0usize..40_000, 1..20), 1..30),
            flushes in prop::collection::vec(any::<bool>(), 30),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (sent, got) = runtime.block_on(async {
                let (mut gathering, flusher, mut theirs) = pair();
                let reading = tokio::spawn(async move {
                    let mut all = Vec::new();
                    theirs.read_to_end(&mut all).await.unwrap();
                    all
                });
                let mut sent = Vec::new();
                let mut next = 0u8;
                for (write, flush) in writes.iter().zip(flushes) {
                    let pieces: Vec<Vec<u8>> = write.iter().map(|&len| {
                        next = next.wrapping_add(1);
                        vec![next; len]
                    }).collect();
                    let slices: Vec<IoSlice> = pieces.iter().map(|p| IoSlice::new(p)).collect();
                    if slices.iter().all(|s| s.is_empty()) {
                        continue;
                    }
                    let mut n = poll_fn(|cx| {
                        Pin::new(&mut gathering).poll_write_vectored(cx, &slices)
                    }).await.unwrap();
                    for piece in &pieces {
                        let part = n.min(piece.len());
                        sent.extend_from_slice(&piece[..part]);
                        n -= part;
                    }
                    assert_eq!(n, 0);
                    if flush {
                        poll_fn(|cx| flusher.poll_flush(cx)).await.unwrap();
                    }
                }
                gathering.shutdown().await.unwrap();
                drop((gathering, flusher));
                (sent, reading.await.unwrap())
            });
            prop_assert!(sent == got);
        }
    }
}
