//! Datagrams of the internet and packet families with all that comes along, and the addresses of such sockets.

use nix::errno::Errno;
use nix::sys::socket::{SockaddrIn6, getpeername};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A message as recvmsg(2) shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Datagram {
    /// Its bytes, all of them.
    pub data: Vec<u8>,
    /// `struct sockaddr_*` of who sent it; empty when the kernel names nobody.
    pub from: Vec<u8>,
    /// Control messages: level, type, value.
    pub control: Vec<(i32, i32, Vec<u8>)>,
}

impl Datagram {
    /// The value of a control message.
    pub fn told(&self, level: i32, kind: i32) -> Option<&[u8]> {
        self.control.iter().find(|c| (c.0, c.1) == (level, kind)).map(|c| c.2.as_slice())
    }
}

/// Looks at what would be received next, whole, and leaves it (`MSG_PEEK`). Does not wait (`EAGAIN`). `SO_PEEK_OFF`, where it
/// is set, moves on: by what of it fitted into `room` when there is more of it.
///
/// # Errors
/// `EMSGSIZE` when it has more than `room` bytes.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> Result<Datagram, Errno> {
    let mut data = vec![0u8; room];
    let mut control = [0u64; 128];
    // SAFETY: all-zero is valid for both structures; all buffers have the sizes that are passed and outlive the call.
    let (n, header, from) = unsafe {
        let mut from: libc::sockaddr_storage = std::mem::zeroed();
        let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: room };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
        (libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags), header, from)
    };
    let n = Errno::result(n)? as usize;
    if n > room {
        return Err(Errno::EMSGSIZE);
    }
    data.truncate(n);
    let len = (header.msg_namelen as usize).min(size_of::<libc::sockaddr_storage>());
    // SAFETY: the structure is as long as what is read of it.
    let from = unsafe { std::slice::from_raw_parts((&raw const from).cast::<u8>(), len) }.to_vec();
    let mut datagram = Datagram { data, from, control: Vec::new() };
    // SAFETY: the control buffer is alive and as long as the kernel says; CMSG_NXTHDR stays inside of it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while !at.is_null() {
            let len = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let value = std::slice::from_raw_parts(libc::CMSG_DATA(at), len).to_vec();
            datagram.control.push(((*at).cmsg_level, (*at).cmsg_type, value));
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    Ok(datagram)
}

/// The address in `struct sockaddr_in` or `sockaddr_in6`; `None` for other families.
pub fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope)))
        }
        _ => None,
    }
}

/// bind(2) to an address as it is.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: the bytes outlive the call and are as many as is said; the kernel copies them.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) }).map(drop)
}

/// An address as the kernel wants it.
pub fn encode(address: SocketAddr) -> Vec<u8> {
    match address {
        SocketAddr::V4(v4) => {
            let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
            bytes
        }
        SocketAddr::V6(v6) => {
            let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
            bytes
        }
    }
}

/// Bytes of memory that what was received and not read takes, and how many packets found no room (`SO_MEMINFO`, Linux 4.12).
pub fn received(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    const SO_MEMINFO: i32 = 55;
    let value = super::socket::option(fd, libc::SOL_SOCKET, SO_MEMINFO, 36)?;
    let word = |n: usize| value.get(n * 4..n * 4 + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).unwrap_or(0);
    Ok((word(0), word(8)))
}

/// Bytes that were written and have not left the socket: of a datagram that was begun and not sent, for one (`SIOCOUTQ`).
pub fn unsent(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut answer = 0i32;
    // SAFETY: the request writes one number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut answer) })?;
    Ok(answer)
}

/// getsockopt(2) of an option that is told what is asked for in `value`, which it then fills.
pub fn ask(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut Vec<u8>) -> Result<(), Errno> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the buffer has the size that is passed.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    value.truncate(len as usize);
    Ok(())
}

fn about(fd: BorrowedFd<'_>, request: libc::c_ulong, interface: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: all-zero is a valid structure.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= asked.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in asked.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the requests that are passed here fill this structure.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut asked) })?;
    Ok(asked)
}

/// Whether a datagram of a UDP or UDP-Lite socket of a family was begun (`MSG_MORE`, `UDP_CORK`) and has not been sent. What has been
/// sent and waits on its way out is still charged to the socket ([`unsent`]), and tells nothing of that. Nothing is sent.
///
/// Who has begun one may go on with it to no matter which address: a part of no bytes, which is not even added (`MSG_PROBE`), does no
/// harm. Without one the address is looked at, which is none that could be sent to.
pub fn is_begun(fd: BorrowedFd<'_>, family: i32) -> Result<bool, Errno> {
    /// `linux/ipv6.h`: turns a socket of IPv6 into one of IPv4; not one that has begun a datagram, which is looked at first, nor one
    /// that is not connected to an address of IPv4.
    const IPV6_ADDRFORM: i32 = 1;
    if goes_on(fd, if family == libc::AF_INET { libc::AF_UNIX } else { libc::AF_INET })? {
        return Ok(true);
    }
    let would_turn = || getpeername::<SockaddrIn6>(fd.as_raw_fd()).is_ok_and(|peer| peer.ip().to_ipv4_mapped().is_some());
    if family == libc::AF_INET || would_turn() {
        return Ok(false);
    }
    match super::socket::set_option(fd, libc::IPPROTO_IPV6, IPV6_ADDRFORM, &libc::AF_INET.to_ne_bytes()) {
        Err(Errno::EBUSY) => Ok(true),
        Err(Errno::ENOTCONN | Errno::EADDRNOTAVAIL) => Ok(false),
        Err(e) => Err(e),
        Ok(()) => Err(Errno::EINVAL),
    }
}

/// Whether a part of no bytes is taken for an address of this family with port 0.
fn goes_on(fd: BorrowedFd<'_>, family: i32) -> Result<bool, Errno> {
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    /// `linux/socket.h`
    const MSG_PROBE: i32 = 0x10;
    let flags = libc::MSG_MORE | MSG_PROBE | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: nothing is read but the address, whose length is passed.
    let sent =
        unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, flags, address.as_ptr().cast(), address.len() as libc::socklen_t) };
    match Errno::result(sent) {
        Ok(_) => Ok(true),
        // No such family here, no such port, and an address of IPv4 for a socket that knows none.
        Err(Errno::EAFNOSUPPORT | Errno::EINVAL | Errno::ENETUNREACH) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Number of an interface of the network namespace that the socket lives in.
///
/// # Errors
/// `ENODEV` when it is not there.
pub fn interface_index(fd: BorrowedFd<'_>, name: &str) -> Result<i32, Errno> {
    // SAFETY: the request fills this field.
    about(fd, libc::SIOCGIFINDEX, name).map(|asked| unsafe { asked.ifr_ifru.ifru_ifindex })
}

/// Name of an interface of the network namespace that the socket lives in.
pub fn interface_name(fd: BorrowedFd<'_>, index: i32) -> Result<String, Errno> {
    // SAFETY: all-zero is a valid structure; the request fills the name, which ends with a zero.
    unsafe {
        let mut asked: libc::ifreq = std::mem::zeroed();
        asked.ifr_ifru.ifru_ifindex = index;
        Errno::result(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME, &raw mut asked))?;
        let name = asked.ifr_name.map(|c| c as u8);
        Ok(String::from_utf8_lossy(&name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())]).into_owned())
    }
}

/// The first IPv4 address of an interface. Only a socket of that family can tell.
pub fn interface_address(fd: BorrowedFd<'_>, name: &str) -> Result<Ipv4Addr, Errno> {
    // SAFETY: the request fills this field with a `struct sockaddr_in`, whose address is at byte 4.
    let address = about(fd, libc::SIOCGIFADDR, name).map(|asked| unsafe { asked.ifr_ifru.ifru_addr })?;
    let ip = |n: usize| address.sa_data[2 + n] as u8;
    Ok(Ipv4Addr::new(ip(0), ip(1), ip(2), ip(3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn addresses_come_back() {
        for text in ["192.0.2.7:53", "[2001:db8::1]:9", "[fe80::1%3]:7"] {
            let there: SocketAddr = text.parse().unwrap();
            assert_eq!(address(&encode(there)), Some(there));
        }
        assert_eq!(address(&[17, 0, 0, 0]), None);
        assert_eq!(address(&encode("192.0.2.7:53".parse().unwrap())[..7]), None);
    }

    #[test]
    fn a_datagram_is_seen_and_stays() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = socket.local_addr().unwrap();
        assert_eq!(peek(socket.as_fd(), 10), Err(Errno::EAGAIN));
        socket.send_to(b"hello", me).unwrap();
        super::super::socket::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, &1i32.to_ne_bytes()).unwrap();
        assert_eq!(peek(socket.as_fd(), 4), Err(Errno::EMSGSIZE));
        let seen = peek(socket.as_fd(), 5).unwrap();
        assert_eq!((seen.data.as_slice(), address(&seen.from)), (&b"hello"[..], Some(me)));
        assert_eq!(seen.told(libc::IPPROTO_IP, libc::IP_TTL), Some(&64i32.to_ne_bytes()[..]));
        assert!(received(socket.as_fd()).unwrap().0 > 0);
        assert_eq!(unsent(socket.as_fd()), Ok(0));
    }

    #[test]
    fn a_datagram_that_was_begun_is_seen_and_left_alone() {
        let hears = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap()];
        let [four, six] = [0, 1].map(|n| hears[n].local_addr().unwrap());
        let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), four.port());
        let only = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0);
        for (own, to, from) in [("0.0.0.0:0", four, 0), ("[::]:0", six, 1), ("[::]:0", mapped, 0), (&only.to_string(), six, 1)] {
            for connected in [false, true] {
                let socket = UdpSocket::bind(own).unwrap();
                if connected {
                    socket.connect(to).unwrap();
                }
                let family = if own.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET };
                let begun = || is_begun(socket.as_fd(), family);
                let address = encode(to);
                let say = |bytes: &[u8], flags| {
                    let (at, length) = if connected { (std::ptr::null(), 0) } else { (address.as_ptr().cast(), address.len() as u32) };
                    // SAFETY: bytes and an address with their lengths.
                    let sent = unsafe { libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags, at, length) };
                    assert_eq!(Errno::result(sent), Ok(bytes.len() as isize), "{own} {to} {connected}");
                };
                assert_eq!(begun(), Ok(false), "{own} {to} {connected}");
                say(b"one ", libc::MSG_MORE);
                assert_eq!((begun(), begun()), (Ok(true), Ok(true)), "{own} {to} {connected}");
                say(b"datagram", 0);
                assert_eq!(begun(), Ok(false), "{own} {to} {connected}");
                let mut room = [0; 100];
                hears[from].set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
                let n = hears[from].recv(&mut room).unwrap();
                assert_eq!(&room[..n], b"one datagram");
                hears[from].set_nonblocking(true).unwrap();
                assert!(hears[from].recv(&mut room).is_err(), "something else was sent");
                hears[from].set_nonblocking(false).unwrap();
                // It is still what it was.
                assert_eq!(socket.local_addr().unwrap().is_ipv6(), family == libc::AF_INET6);
            }
        }
    }
}
