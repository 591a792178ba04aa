//! Addresses of sockets of the internet families.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        AddressFamily::Inet => storage.as_sockaddr_in().map(|a| SocketAddr::V4(SocketAddrV4::from(*a))),
        AddressFamily::Inet6 => storage.as_sockaddr_in6().map(|a| SocketAddr::V6(SocketAddrV6::from(*a))),
        _ => None,
    }
}

/// The own address and port (getsockname(2)).
pub fn local(fd: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    nix::sys::socket::getsockname::<SockaddrStorage>(fd.as_raw_fd()).and_then(|a| address(&a).ok_or(Errno::EAFNOSUPPORT))
}

/// The address that it is connected to (getpeername(2)). `ENOTCONN` when it is not.
pub fn peer(fd: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    nix::sys::socket::getpeername::<SockaddrStorage>(fd.as_raw_fd()).and_then(|a| address(&a).ok_or(Errno::EAFNOSUPPORT))
}

/// bind(2).
pub fn bind(fd: BorrowedFd<'_>, to: SocketAddr) -> Result<(), Errno> {
    nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// connect(2).
pub fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> Result<(), Errno> {
    nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// Takes the first connection that waits at a listening socket, without waiting (`EAGAIN`); also says whose it is, which of one
/// that was broken off nobody says any more afterwards.
pub fn accept(fd: BorrowedFd<'_>) -> Result<(OwnedFd, SocketAddr), Errno> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, as is said.
    if Errno::result(unsafe { libc::poll(&raw mut poll, 1, 0) })? == 0 {
        return Err(Errno::EAGAIN);
    }
    // SAFETY: all-zero is valid; the structure has the size that is passed; on success the descriptor is new and ours.
    let (made, from) = unsafe {
        let mut from: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let made = libc::accept4(fd.as_raw_fd(), (&raw mut from).cast(), &raw mut len, libc::SOCK_CLOEXEC);
        let made = OwnedFd::from_raw_fd(Errno::result(made)?);
        (made, SockaddrStorage::from_raw((&raw const from).cast(), Some(len)))
    };
    Ok((made, from.as_ref().and_then(address).ok_or(Errno::EAFNOSUPPORT)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;
    use std::os::fd::AsFd;

    #[test]
    fn addresses_of_both_families() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = any.parse().unwrap();
            let family = if any.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let (a, b) = (socket::socket(family, libc::SOCK_DGRAM).unwrap(), socket::socket(family, libc::SOCK_DGRAM).unwrap());
            bind(a.as_fd(), any).unwrap();
            let there = local(a.as_fd()).unwrap();
            assert!(there.ip() == any.ip() && there.port() != 0);
            assert_eq!(peer(b.as_fd()), Err(Errno::ENOTCONN));
            // Without an interface that is up there is no way there.
            if connect(b.as_fd(), there).is_ok() {
                assert_eq!(peer(b.as_fd()), Ok(there));
            }
        }
    }
}
