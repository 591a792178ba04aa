//! Sockets of IPv4 and IPv6, also those that nobody has a descriptor of: linux/inet_diag.h.

use super::{LISTEN, SOCK_DIAG_BY_FAMILY};
use crate::sys::netlink::{Socket, attributes, u16_at, u32_at};
use crate::sys::socket;
use crate::sys::tcp::{CLOSING, FIN_WAIT1, LAST_ACK, SYN_RECV};
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

/// `INET_DIAG_INFO`: `struct tcp_info`.
const INFO: u16 = 2;
/// `INET_DIAG_MD5SIG`: keys by which segments are signed.
const SIGNATURES: u16 = 18;

/// State of a connection that has ended, and is remembered for a minute lest its last segments meet another one.
pub const TIME_WAIT: u8 = 6;

const TCP: u8 = libc::IPPROTO_TCP as u8;
/// The protocols whose sockets are listed.
pub const PROTOCOLS: [u8; 3] = [TCP, libc::IPPROTO_UDP as u8, libc::IPPROTO_UDPLITE as u8];

/// One socket of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `IPPROTO_TCP`, …
    pub protocol: u8,
    /// `TCP_ESTABLISHED` and so on; a connection that begins is in `TCP_SYN_RECV`.
    pub state: u8,
    /// Its own address.
    pub local: SocketAddr,
    /// That of the other end; port 0 where there is none.
    pub peer: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub interface: u32,
    /// Inode, 0 for a connection that was not accepted yet and for one that nobody holds any more.
    pub inode: u64,
    /// Bytes to read, a FIN counts as one; connections that wait for accept(2) of a listening one.
    pub readable: u32,
    /// Seconds until the timer of a connection in `TCP_TIME_WAIT` ends, and the like; in milliseconds.
    pub expires: u32,
    /// Segments are signed (`TCP_MD5SIG`).
    pub signed: bool,
    /// `struct tcp_info`, where it was asked for.
    pub info: Vec<u8>,
}

impl Entry {
    /// It has sent a SYN to a listening socket, and nothing else yet.
    pub fn is_half_open(&self) -> bool {
        self.state == SYN_RECV
    }
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

/// `struct inet_diag_req_v2`.
fn request(family: i32, protocol: u8, info: bool, states: u32, id: &[u8]) -> Vec<u8> {
    let mut request = vec![family as u8, protocol, u8::from(info) << (INFO - 1), 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request.resize(56, 0);
    request
}

/// The sockets of a protocol in the network namespace that the caller lives in, of both families, in the order in which the kernel
/// keeps them.
fn list(protocol: u8, info: bool, states: u32) -> io::Result<Vec<Entry>> {
    let netlink = Socket::sock_diag()?;
    let mut found = Vec::new();
    if protocol == TCP && both_families(&netlink, info, states, &mut |message| found.extend(entry(protocol, message)))? {
        return Ok(found);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = request(family, protocol, info, states, &[]);
        netlink.each(SOCK_DIAG_BY_FAMILY, &request, |message| found.extend(entry(protocol, message)))?;
    }
    Ok(found)
}

/// The same of TCP by a request that is older than families in requests (`TCPDIAG_GETSOCK`, `struct inet_diag_req`), and so asks
/// for both at once: the kernel looks at all of its hash table for each request, which has a quarter of a million chains on a
/// machine of 24 GiB. False where the kernel does not know it any more.
fn both_families(netlink: &Socket, info: bool, states: u32, each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    const TCPDIAG_GETSOCK: u16 = 18;
    let mut request = vec![0, 0, 0, u8::from(info) << (INFO - 1)];
    request.resize(52, 0);
    request.extend(states.to_ne_bytes());
    request.extend([0; 4]);
    match netlink.each(TCPDIAG_GETSOCK, &request, each) {
        Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT)) => Ok(false),
        listed => listed.map(|()| true),
    }
}

/// All TCP sockets that are in one of `states` (a bit for each number of a state).
pub fn tcp(states: u32) -> io::Result<Vec<Entry>> {
    list(TCP, true, states)
}

/// All sockets of [`PROTOCOLS`], without their `struct tcp_info`.
pub fn sockets() -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for protocol in PROTOCOLS {
        match list(protocol, false, !0) {
            // A kernel without that protocol, or without its list.
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::EOPNOTSUPP)) => {}
            listed => found.extend(listed?),
        }
    }
    Ok(found)
}

/// What is left of TCP connections that nobody has a descriptor of: their sockets were closed.
pub fn remains() -> io::Result<Vec<Entry>> {
    let mut all = list(TCP, false, !0)?;
    all.retain(|s| s.inode == 0 && s.state != LISTEN && s.peer.port() != 0);
    Ok(all)
}

/// Those of them that have to deliver something yet, at least that they end: in `TCP_FIN_WAIT1`, `TCP_CLOSING` or `TCP_LAST_ACK`.
pub fn unfinished() -> io::Result<Vec<Entry>> {
    let mut all = list(TCP, false, 1 << FIN_WAIT1 | 1 << CLOSING | 1 << LAST_ACK)?;
    all.retain(|s| s.inode == 0);
    Ok(all)
}

/// Ends a TCP socket as if its last packet had come (Linux 4.5); of a connection that is only remembered (`TCP_TIME_WAIT`) nobody
/// is told.
///
/// # Errors
/// `EOPNOTSUPP` where the kernel cannot (`CONFIG_INET_DIAG_DESTROY`), `ENOENT` when it is not there any more.
pub fn destroy(netlink: &Socket, entry: &Entry) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    let (family, id) = identity(entry.local, entry.peer, entry.interface);
    netlink.change(SOCK_DESTROY, 0, &request(family, entry.protocol, false, 1 << entry.state, &id))
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
    match netlink.one(SOCK_DIAG_BY_FAMILY, &request(family, TCP, true, !0, &id)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => Ok(answer?.as_deref().and_then(|message| entry(TCP, message))),
    }
}

/// `struct inet_diag_msg` and its attributes.
fn entry(protocol: u8, message: &[u8]) -> Option<Entry> {
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
    let mut entry = Entry {
        protocol,
        state: *message.get(1)?,
        local: address(8, 4)?,
        peer: address(24, 6)?,
        interface,
        expires: u32_at(message, 52)?,
        readable: u32_at(message, 56)?,
        inode: u64::from(u32_at(message, 68)?),
        signed: false,
        info: Vec::new(),
    };
    for (kind, value) in attributes(message.get(72..)?) {
        match kind {
            INFO => entry.info = value.to_vec(),
            SIGNATURES => entry.signed = true,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::fresh_network;
    use crate::sys::tcp::ESTABLISHED;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    fn inode(fd: &impl AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a file").ino()
    }

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
                let all = tcp(1 << ESTABLISHED | 1 << LISTEN).unwrap();
                let waits = all.iter().find(|e| e.local == at && e.inode == 0).unwrap();
                assert_eq!((waits.peer, waits.state, waits.readable), (client.local_addr().unwrap(), ESTABLISHED, 5));
                assert!(waits.info.len() > 100);
                let listens = all.iter().find(|e| e.state == LISTEN && e.inode == inode(&listener)).unwrap();
                assert_eq!((listens.local, listens.readable, listens.interface), (at, 1, 0));
                let netlink = Socket::sock_diag().unwrap();
                let found = find(&netlink, at, waits.peer, 0).unwrap().unwrap();
                assert_eq!(Entry { info: vec![], ..found }, Entry { info: vec![], ..waits.clone() });
                let stranger = SocketAddr::new(at.ip(), 1);
                assert_eq!(find(&netlink, at, stranger, 0).unwrap().map(|e| e.inode), Some(listens.inode));
                assert_eq!(find(&netlink, stranger, at, 0).unwrap(), None);
                assert!(tcp(1 << SYN_RECV).unwrap().is_empty());
            }
        })
        .unwrap();
    }

    #[test]
    fn both_ends_and_a_listener() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(listener) = TcpListener::bind((ip, 0)) else { continue };
            let name = listener.local_addr().expect("name");
            let peer = TcpStream::connect(name).expect("connect");
            let udp = UdpSocket::bind((ip, 0)).expect("bind");
            let all = sockets().expect("a list");
            let by = |inode: u64| all.iter().find(|s| s.inode == inode).expect("listed");
            let found = by(inode(&peer));
            assert_eq!((found.state, found.local, found.peer), (1, peer.local_addr().expect("name"), name));
            let found = by(inode(&listener));
            assert_eq!((found.state, found.local, found.peer.port(), found.protocol), (10, name, 0, 6));
            let found = by(inode(&udp));
            assert_eq!((found.local, found.peer.port(), found.protocol), (udp.local_addr().expect("name"), 0, 17));
            // The end that was not accepted yet.
            assert!(all.iter().any(|s| s.local == name && s.peer == peer.local_addr().expect("name") && s.inode == 0));
        }
    }

    #[test]
    fn damaged_messages_are_none() {
        assert_eq!(entry(TCP, &[2; 71]), None);
        assert_eq!(entry(TCP, &[]), None);
    }
}
