//! What the kernel tells of TCP sockets that nobody has a descriptor of: sock_diag(7), `struct inet_diag_msg`.

use super::netlink::{Socket, attributes, u16_at, u32_at};
use super::socket;
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_INFO`: `struct tcp_info`.
const INFO: u16 = 2;
/// `INET_DIAG_MD5SIG`: keys by which segments are signed.
const SIGNATURES: u16 = 18;
/// State of a connection that has ended, and is remembered for a minute lest its last segments meet another one.
pub const TIME_WAIT: u8 = 6;

/// One TCP socket of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `TCP_ESTABLISHED` and so on; a connection that begins is in `TCP_SYN_RECV`.
    pub state: u8,
    /// Its own address.
    pub local: SocketAddr,
    /// That of the other end.
    pub peer: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub interface: u32,
    /// Inode, 0 for a connection that was not accepted yet and for one that nobody holds any more.
    pub inode: u32,
    /// Bytes to read, a FIN counts as one; connections that wait for accept(2) of a listening one.
    pub readable: u32,
    /// Bytes not acknowledged; backlog of a listening one.
    pub written: u32,
    /// Seconds until the timer of a connection in `TCP_TIME_WAIT` ends, and the like; in milliseconds.
    pub expires: u32,
    /// Segments are signed (`TCP_MD5SIG`).
    pub signed: bool,
    /// `struct tcp_info`, if there is one.
    pub info: Vec<u8>,
}

/// Of a listening socket: how many connections wait to be accepted, and how many may (`TCP_INFO`, tcp(7)).
pub fn backlog(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    let info = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 32)?;
    let at = |n| u32_at(&info, n).ok_or(Errno::EINVAL);
    Ok((at(24)?, at(28)?)) // tcpi_unacked, tcpi_sacked
}

/// The number of the interface that a socket is bound to, or 0.
pub fn bound_interface(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    const SO_BINDTOIFINDEX: i32 = 62;
    socket::number(fd, SO_BINDTOIFINDEX).map(|n| n as u32)
}

/// `struct inet_diag_req_v2` for TCP.
fn request(family: i32, states: u32, id: &[u8]) -> Vec<u8> {
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 1 << (INFO - 1), 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request.resize(56, 0);
    request
}

/// All TCP sockets, of both families, of the network namespace that the caller lives in, that are in one of `states` (a bit for
/// each number of a state), in the order in which the kernel keeps them.
pub fn list(states: u32) -> io::Result<Vec<Entry>> {
    let netlink = Socket::sock_diag()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for message in netlink.dump(SOCK_DIAG_BY_FAMILY, &request(family, states, &[]))? {
            found.extend(entry(&message));
        }
    }
    Ok(found)
}

/// Ends a connection that is only remembered (`TCP_TIME_WAIT`); nobody is told.
///
/// # Errors
/// `EOPNOTSUPP` where the kernel cannot (`CONFIG_INET_DIAG_DESTROY`), `ENOENT` when it is not there any more.
pub fn forget(netlink: &Socket, entry: &Entry) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    let (family, id) = identity(entry.local, entry.peer, entry.interface);
    netlink.change(SOCK_DESTROY, 0, &request(family, 1 << TIME_WAIT, &id))
}

/// `struct inet_diag_sockid`, with the family.
fn identity(local: SocketAddr, peer: SocketAddr, interface: u32) -> (i32, Vec<u8>) {
    let mut id = [local.port().to_be_bytes(), peer.port().to_be_bytes()].concat();
    for ip in [local.ip(), peer.ip()] {
        match ip {
            IpAddr::V4(ip) => id.extend([ip.octets(), [0; 4], [0; 4], [0; 4]].concat()),
            IpAddr::V6(ip) => id.extend(ip.octets()),
        }
    }
    id.extend(interface.to_ne_bytes());
    id.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
    (if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, id)
}

/// Whoever would get a segment from `peer` to `local`: that connection, or the socket that listens there. `interface` is the one
/// that it is bound to, or 0.
pub fn find(netlink: &Socket, local: SocketAddr, peer: SocketAddr, interface: u32) -> io::Result<Option<Entry>> {
    let (family, id) = identity(local, peer, interface);
    match netlink.one(SOCK_DIAG_BY_FAMILY, &request(family, !0, &id)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => Ok(answer?.as_deref().and_then(entry)),
    }
}

/// `struct inet_diag_msg` and its attributes.
fn entry(message: &[u8]) -> Option<Entry> {
    let six = i32::from(*message.first()?) == libc::AF_INET6;
    let interface = u32_at(message, 40)?;
    let address = |ip: usize, port: usize| {
        let bytes: [u8; 16] = message.get(ip..ip + 16)?.try_into().ok()?;
        let port = u16::from_be(u16_at(message, port)?);
        if !six {
            return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])), port));
        }
        let ip = Ipv6Addr::from(bytes);
        let scope = if ip.is_unicast_link_local() { interface } else { 0 };
        Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
    };
    let attributes = attributes(message.get(72..)?);
    let signed = attributes.iter().any(|a| a.0 == SIGNATURES);
    let info = attributes.into_iter().find(|a| a.0 == INFO).map(|a| a.1);
    Some(Entry {
        state: *message.get(1)?,
        local: address(8, 4)?,
        peer: address(24, 6)?,
        interface,
        expires: u32_at(message, 52)?,
        readable: u32_at(message, 56)?,
        written: u32_at(message, 60)?,
        inode: u32_at(message, 68)?,
        signed,
        info: info.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::fresh_network;
    use crate::sys::tcp;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn who_waits_to_be_accepted() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        fresh_network(|| {
            assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            for any in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(any).unwrap();
                let at = listener.local_addr().unwrap();
                let mut client = TcpStream::connect(at).unwrap();
                io::Write::write_all(&mut client, b"hello").unwrap();
                let all = list(1 << tcp::ESTABLISHED | 1 << tcp::LISTEN).unwrap();
                let waits = all.iter().find(|e| e.local == at && e.inode == 0).unwrap();
                assert_eq!((waits.peer, waits.state, waits.readable), (client.local_addr().unwrap(), tcp::ESTABLISHED, 5));
                assert!(waits.info.len() > 100);
                let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
                let inode = std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
                let listens = all.iter().find(|e| e.state == tcp::LISTEN && u64::from(e.inode) == inode).unwrap();
                assert_eq!((listens.local, listens.readable, listens.interface), (at, 1, 0));
                let netlink = Socket::sock_diag().unwrap();
                let found = find(&netlink, at, waits.peer, 0).unwrap().unwrap();
                assert_eq!(Entry { info: vec![], ..found }, Entry { info: vec![], ..waits.clone() });
                let stranger = SocketAddr::new(at.ip(), 1);
                assert_eq!(find(&netlink, at, stranger, 0).unwrap().map(|e| e.inode), Some(listens.inode));
                assert_eq!(find(&netlink, stranger, at, 0).unwrap(), None);
                assert!(list(1 << tcp::SYN_RECV).unwrap().is_empty());
            }
        })
        .unwrap();
    }

    #[test]
    fn damaged_messages_are_none() {
        assert_eq!(entry(&[2; 71]), None);
        assert_eq!(entry(&[]), None);
    }
}
