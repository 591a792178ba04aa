//! What the kernel tells of all sockets of IPv4 and IPv6 in a network namespace: sock_diag(7), `linux/inet_diag.h`.

use super::netlink::{Socket, u32_at};
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// The protocols whose sockets are listed.
pub const PROTOCOLS: [u8; 3] = [libc::IPPROTO_TCP as u8, libc::IPPROTO_UDP as u8, libc::IPPROTO_UDPLITE as u8];

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet {
    /// `IPPROTO_TCP`, …
    pub protocol: u8,
    /// `TCP_ESTABLISHED` (1), `TCP_LISTEN` (10), …
    pub state: u8,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; port 0 where there is none.
    pub remote: SocketAddr,
    /// Inode; 0 for a socket that no descriptor leads to: not accepted yet, or closed.
    pub inode: u64,
}

/// All sockets of [`PROTOCOLS`] in the network namespace that the caller lives in.
pub fn sockets() -> io::Result<Vec<Inet>> {
    let socket = Socket::sock_diag()?;
    let mut found = Vec::new();
    for protocol in PROTOCOLS {
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct inet_diag_req_v2: family, protocol, extensions, filler, states, then what only a single one needs.
            let mut request = vec![family as u8, protocol, 0, 0];
            request.extend_from_slice(&u32::MAX.to_ne_bytes());
            request.resize(56, 0);
            let messages = match socket.dump(SOCK_DIAG_BY_FAMILY, &request) {
                // A kernel without that protocol, or without its list.
                Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::EOPNOTSUPP)) => continue,
                messages => messages?,
            };
            found.extend(messages.iter().filter_map(|m| parse(protocol, m)));
        }
    }
    Ok(found)
}

/// What is left of TCP connections that nobody has a descriptor of: their sockets were closed.
pub fn remains() -> io::Result<Vec<Inet>> {
    let mut all = sockets()?;
    all.retain(|s| s.protocol == libc::IPPROTO_TCP as u8 && s.inode == 0 && s.state != super::sock_diag::LISTEN && s.remote.port() != 0);
    Ok(all)
}

/// Ends a TCP socket as if its last packet had come (`SOCK_DESTROY`, Linux 4.5).
pub fn destroy(socket: &Inet) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    let family = if socket.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = vec![family as u8, socket.protocol, 0, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend([socket.local.port().to_be_bytes(), socket.remote.port().to_be_bytes()].concat());
    for end in [socket.local, socket.remote] {
        let mut bytes = match end.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.resize(16, 0);
        request.extend(bytes);
    }
    request.extend([0; 4]); // any interface
    request.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
    Socket::sock_diag()?.change(SOCK_DESTROY, 0, &request)
}

/// `struct inet_diag_msg`.
fn parse(protocol: u8, message: &[u8]) -> Option<Inet> {
    let port = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = message.get(at..at + 16)?.try_into().ok()?;
        let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[..4]).ok()?));
        if i32::from(message[0]) == libc::AF_INET { v4().map(IpAddr::V4) } else { Some(Ipv6Addr::from(bytes).into()) }
    };
    Some(Inet {
        protocol,
        state: *message.get(1)?,
        local: (address(8)?, port(4)?).into(),
        remote: (address(24)?, port(6)?).into(),
        inode: u64::from(u32_at(message, 68)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    #[test]
    fn both_ends_and_a_listener() {
        let inode = |fd: i32| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/self/fd/{fd}")).expect("a file"));
        for ip in ["127.0.0.1", "::1"] {
            let Ok(listener) = TcpListener::bind((ip, 0)) else { continue };
            let name = listener.local_addr().expect("name");
            let peer = TcpStream::connect(name).expect("connect");
            let udp = UdpSocket::bind((ip, 0)).expect("bind");
            let all = sockets().expect("a list");
            let by = |fd: i32| *all.iter().find(|s| s.inode == inode(fd)).expect("listed");
            let found = by(peer.as_raw_fd());
            assert_eq!((found.state, found.local, found.remote), (1, peer.local_addr().expect("name"), name));
            let found = by(listener.as_raw_fd());
            assert_eq!((found.state, found.local, found.remote.port(), found.protocol), (10, name, 0, 6));
            let found = by(udp.as_raw_fd());
            assert_eq!((found.local, found.remote.port(), found.protocol), (udp.local_addr().expect("name"), 0, 17));
            // The end that was not accepted yet.
            assert!(all.iter().any(|s| s.local == name && s.remote == peer.local_addr().expect("name") && s.inode == 0));
        }
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        assert_eq!(parse(6, &[2; 71]), None);
        assert_eq!(parse(6, &[]), None);
    }
}
