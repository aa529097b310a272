//! Binding listeners before anything else starts.

use super::Role;
use crate::config::urls::{Address, Endpoint};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// A listener that is bound and not yet served.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: Socket,
    pub(super) role: Role,
    url: String,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Why a listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    url: String,
    cause: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.url, self.cause)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Binds one URL. TCP ports are taken with `SO_REUSEADDR`, so a restart need not wait for old
/// connections to time out. A Unix socket that nobody answers on is replaced. TLS is refused: nothing
/// may listen in plain text where the operator asked for encryption.
pub fn bind(endpoint: &Endpoint, role: Role) -> Result<Bound, BindError> {
    let error = |cause| BindError {
        url: endpoint.url.clone(),
        cause,
    };
    if endpoint.tls {
        return Err(error(io::Error::new(
            io::ErrorKind::Unsupported,
            "TLS listeners are not supported yet",
        )));
    }
    let socket = match &endpoint.address {
        Address::Tcp(host, port) => bind_tcp(host, *port).map(Socket::Tcp),
        Address::Unix(path) => bind_unix(path).map(|l| Socket::Unix(l, path.clone())),
    };
    Ok(Bound {
        socket: socket.map_err(error)?,
        role,
        url: endpoint.url.clone(),
    })
}

impl Bound {
    /// The URL it was bound for.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The bound TCP address; tells the port when 0 was asked for.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }
}

fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
    for addr in (host, port).to_socket_addrs()? {
        match bind_addr(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What `TcpListener::bind` does, with our own backlog.
fn bind_addr(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = match addr {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened, is a stream socket and belongs to nobody else.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    let one: libc::c_int = 1;
    // SAFETY: the option is an int, `one` lives through the call and its size is passed.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    bind_raw(fd, addr)?;
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::listen(fd, BACKLOG) })?;
    Ok(listener)
}

fn bind_raw(fd: libc::c_int, addr: SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V4(addr) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(addr.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: `raw` is a whole IPv4 address that lives through the call; its size is passed.
            check(unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) })
        }
        SocketAddr::V6(addr) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: addr.ip().octets(),
                },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: `raw` is a whole IPv6 address that lives through the call; its size is passed.
            check(unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) })
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket file outlives the process that made it. It is removed only if it is a socket and nobody
/// answers on it.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let stale = path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;

    fn endpoint(url: &str) -> Endpoint {
        Endpoint::parse(url).unwrap()
    }

    #[test]
    fn a_bound_port_takes_connections_before_it_is_served() {
        for url in ["http://127.0.0.1:0", "http://[::1]:0"] {
            let bound = match bind(&endpoint(url), Role::All) {
                Ok(bound) => bound,
                // A machine without IPv6 cannot bind its loopback address.
                Err(error) if error.cause.kind() == io::ErrorKind::AddrNotAvailable => continue,
                Err(error) => panic!("{error}"),
            };
            let mut client = TcpStream::connect(bound.tcp_addr().unwrap()).unwrap();
            client.write_all(b"hello").unwrap();
        }
    }

    #[test]
    fn a_taken_port_is_refused_by_name() {
        let first = bind(&endpoint("http://127.0.0.1:0"), Role::All).unwrap();
        let url = format!("http://{}", first.tcp_addr().unwrap());
        let error = bind(&endpoint(&url), Role::All).unwrap_err();
        assert!(error.to_string().contains(&url), "{error}");
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn plain_text_never_stands_in_for_tls() {
        let error = bind(&endpoint("https://127.0.0.1:0"), Role::All).unwrap_err();
        assert_eq!(error.cause.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let url = format!("unix://{}", path.display());
        drop(bind(&endpoint(&url), Role::All).unwrap());
        assert!(path.exists(), "the file outlives its listener");
        let live = bind(&endpoint(&url), Role::All).unwrap();
        let error = bind(&endpoint(&url), Role::All).unwrap_err();
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        let file = dir.path().join("f");
        std::fs::write(&file, "data").unwrap();
        bind(&endpoint(&format!("unix://{}", file.display())), Role::All).unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }
}
