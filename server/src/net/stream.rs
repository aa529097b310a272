//! Byte streams: TCP or Unix, with the bytes that were read ahead put back.

use super::h2::PREFACE;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection not bound to a runtime, on its way to its thread.
pub(super) enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Detached {
    /// Registers with the runtime of the current thread.
    pub(super) fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Detached::Tcp(stream) => {
                stream.set_nodelay(true)?;
                Stream::Tcp(TcpStream::from_std(stream)?)
            }
            Detached::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! either {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the first bytes can be nothing but one of the protocols. Reads nothing behind the
/// preface. Ends with an error when the peer closes first.
pub(super) async fn detect(mut io: Stream) -> io::Result<(Protocol, Rewound)> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    let protocol = loop {
        match io.read(&mut read[len..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => len += n,
        }
        if read[..len] != PREFACE[..len] {
            break Protocol::Http1;
        }
        if len == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    Ok((
        protocol,
        Rewound {
            read,
            at: 0,
            len,
            io,
        },
    ))
}

/// A stream whose first bytes were read already and are handed out again.
pub(super) struct Rewound {
    read: [u8; PREFACE.len()],
    at: usize,
    len: usize,
    io: Stream,
}

impl Rewound {
    /// A stream of which nothing was read.
    pub(super) fn fresh(io: Stream) -> Rewound {
        Rewound {
            read: [0; PREFACE.len()],
            at: 0,
            len: 0,
            io,
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at < self.len {
            let n = buf.remaining().min(self.len - self.at);
            buf.put_slice(&self.read[self.at..self.at + n]);
            self.at += n;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Sends the bytes in the given pieces and returns the verdict and everything that can be read.
    async fn verdict(pieces: &[&[u8]]) -> io::Result<(Protocol, Vec<u8>)> {
        let (mut client, server) = UnixStream::pair().unwrap();
        let sending = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let (detected, ()) = tokio::join!(detect(Stream::Unix(server)), sending);
        let (protocol, mut rewound) = detected?;
        let mut all = Vec::new();
        rewound.read_to_end(&mut all).await.unwrap();
        Ok((protocol, all))
    }

    #[tokio::test]
    async fn the_preface_decides_however_it_is_cut_and_no_byte_is_lost() {
        let mut http2 = PREFACE.to_vec();
        http2.extend_from_slice(b"SETTINGS");
        for cut in 0..http2.len() {
            let (a, b) = http2.split_at(cut);
            assert_eq!(
                verdict(&[a, b]).await.unwrap(),
                (Protocol::Http2, http2.clone())
            );
        }
        for http1 in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"P",
            b"POST / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01",
        ] {
            if PREFACE.starts_with(http1) {
                assert!(verdict(&[http1]).await.is_err(), "cut off too early to say");
            } else {
                assert_eq!(
                    verdict(&[http1]).await.unwrap(),
                    (Protocol::Http1, http1.to_vec())
                );
            }
        }
    }
}
