//! Packets that the local stack receives as if they had come from a peer: raw(7) sockets whose packets bring their own headers.
//!
//! A packet to an address of this machine goes through the loopback interface, and keeps the route that it was sent by: nobody
//! looks then whether its source could be on the other side of that interface, and a socket that is bound to the interface which
//! has the address sees it come in there. Nothing leaves the machine.

use super::socket;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Mark of the packets that a network lock of meio lets pass.
pub const PASS: u32 = 0x6d65_696f;

/// "Destination unreachable" of ICMP (RFC 792) and ICMPv6 (RFC 4443), and the code for "host" of the one and "no route" of the other.
const UNREACHABLE: [[u8; 2]; 2] = [[3, 1], [1, 0]];
/// `IPPROTO_UDPLITE`.
const UDPLITE: u8 = 136;
/// Hops that are left; the most there can be, which is what `IP_MINTTL` asks for at most.
const HOPS: u8 = 255;
/// Most bytes of TCP options.
pub const MOST_OPTIONS: usize = 40;
/// Most bytes that fit into one segment, with all options and either protocol below.
pub const MOST_DATA: usize = 65535 - 40 - 20 - MOST_OPTIONS;

/// Whether a packet, of which the front is here from the IP header on, is a TCP segment that has nothing but an acknowledgement:
/// no data, and neither begins nor ends a connection.
pub fn is_bare(front: &[u8]) -> bool {
    bare(front).unwrap_or(false)
}

fn bare(front: &[u8]) -> Option<bool> {
    let (total, segment) = segment(front)?;
    let (length, flags) = (usize::from(segment.get(12)? >> 4) * 4, segment.get(13)?);
    // One that is cut later may be longer than its header can say, which has 0 then.
    Some(total == length && flags & (FIN | SYN | RST) == 0)
}

/// Whether such a packet is a TCP segment by which a connection begins, or that answers one.
pub fn begins(front: &[u8]) -> bool {
    segment(front).and_then(|(_, segment)| segment.get(13)).is_some_and(|flags| flags & SYN != 0)
}

/// How long the TCP segment is in a packet of which the front is here, and what is here of it.
fn segment(front: &[u8]) -> Option<(usize, &[u8])> {
    let (head, protocol, total) = match front.first()? >> 4 {
        4 => (usize::from(front[0] & 15) * 4, *front.get(9)?, usize::from(u16::from_be_bytes([*front.get(2)?, *front.get(3)?]))),
        6 => (40, *front.get(6)?, 40 + usize::from(u16::from_be_bytes([*front.get(4)?, *front.get(5)?]))),
        _ => return None,
    };
    let segment = front.get(head..).filter(|_| i32::from(protocol) == libc::IPPROTO_TCP)?;
    Some((total.wrapping_sub(head), segment))
}

/// Flag of a TCP segment: no more data follows.
pub const FIN: u8 = 1;
/// A connection begins.
pub const SYN: u8 = 2;
/// A connection breaks off.
pub const RST: u8 = 4;
/// Data that the application should be given at once.
pub const PSH: u8 = 8;
/// The acknowledgement counts.
pub const ACK: u8 = 16;

/// A TCP segment, RFC 9293.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// Number of the first byte, or of SYN or FIN.
    pub seq: u32,
    /// Number of the next byte that is expected.
    pub ack: u32,
    /// [`FIN`], [`SYN`], [`RST`], [`PSH`], [`ACK`].
    pub flags: u8,
    /// Window, as it is on the wire: not scaled.
    pub window: u16,
    /// Options, at most [`MOST_OPTIONS`] bytes; filled up to whole words.
    pub options: Vec<u8>,
    /// Payload, at most [`MOST_DATA`] bytes.
    pub data: Vec<u8>,
}

impl Segment {
    /// The value of the option of this kind, if there is one.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.options.as_slice();
        loop {
            match rest {
                [1, more @ ..] => rest = more,
                [found, length, ..] if *found != 0 && *length >= 2 => {
                    let (option, more) = rest.split_at_checked(usize::from(*length))?;
                    if *found == kind {
                        return option.get(2..);
                    }
                    rest = more;
                }
                _ => return None,
            }
        }
    }

    /// The timestamps among the options, RFC 7323: the sender's clock, and what it has seen of the other's.
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let (own, seen) = self.option(8)?.split_first_chunk()?;
        Some((u32::from_be_bytes(*own), u32::from_be_bytes(*seen.first_chunk()?)))
    }
}

/// Sockets that packets are put into the stack by.
#[derive(Debug)]
pub struct Wire {
    v4: OwnedFd,
    /// None where the kernel has no IPv6.
    v6: Option<OwnedFd>,
}

impl Wire {
    /// For the network namespace that the caller lives in. All packets have the mark `mark` (`SO_MARK`).
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW` (raw sockets) or, before Linux 5.17, `CAP_NET_ADMIN` (the mark) in the user namespace
    /// that owns the network namespace.
    pub fn new(mark: u32) -> Result<Wire, Errno> {
        let raw = |domain, level, name| {
            let fd = socket::socket_of(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            socket::set_option(fd.as_fd(), level, name, &1i32.to_ne_bytes())?;
            socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes())?;
            Ok(fd)
        };
        let v6 = match raw(libc::AF_INET6, libc::IPPROTO_IPV6, libc::IPV6_HDRINCL) {
            Err(Errno::EAFNOSUPPORT) => None,
            made => Some(made?),
        };
        Ok(Wire { v4: raw(libc::AF_INET, libc::IPPROTO_IP, libc::IP_HDRINCL)?, v6 })
    }

    /// Puts a TCP segment in. `to` should be an address of this machine.
    ///
    /// # Errors
    /// `EMSGSIZE` for a segment that is too long, `EAFNOSUPPORT` for addresses of different families.
    pub fn tcp(&self, from: SocketAddr, to: SocketAddr, segment: &Segment) -> Result<(), Errno> {
        self.send(from, to, libc::IPPROTO_TCP as u8, HOPS, 0, |head| segment.encode(head))
    }

    /// Puts a datagram in, of UDP-Lite if `lite`. `ttl` (also the hop limit) and `tos` (also the traffic class) are those of
    /// the IP header.
    ///
    /// # Errors
    /// As of [`Wire::tcp`].
    pub fn udp(&self, from: SocketAddr, to: SocketAddr, lite: bool, ttl: u8, tos: u8, data: &[u8]) -> Result<(), Errno> {
        let protocol = if lite { UDPLITE } else { libc::IPPROTO_UDP as u8 };
        self.send(from, to, protocol, ttl, tos, |head| datagram(head, lite, data))
    }

    /// Tells `to`, which may be anywhere, that the segment with this number that it has sent to `from` did not get there.
    ///
    /// # Errors
    /// As of [`Wire::tcp`]; those of the route there.
    pub fn unreachable(&self, from: SocketAddr, to: SocketAddr, seq: u32) -> Result<(), Errno> {
        let lost = Head { from: plain(to), to: plain(from), protocol: libc::IPPROTO_TCP as u8 };
        // Eight bytes of it, as both say at least.
        let begin = [lost.ports(), seq.to_be_bytes().to_vec()].concat();
        let v6 = usize::from(lost.from.is_ipv6());
        let protocol = [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6][v6] as u8;
        self.send(from, to, protocol, HOPS, 0, |head| {
            let mut quoted = lost.packet(HOPS, 0, &begin)?;
            if v6 == 0 {
                let sum = !fold(&quoted[..20], 0);
                quoted[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let mut bytes = [&UNREACHABLE[v6][..], &[0; 6], &quoted].concat();
            // That of IPv6 is also over the addresses.
            let sum = if v6 == 1 { head.checksum(&bytes)? } else { !fold(&bytes, 0) };
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            Ok(bytes)
        })
    }

    /// Puts a whole packet in, from the IP header on, that came from somewhere else.
    ///
    /// # Errors
    /// `EINVAL` for what is no packet; as of [`Wire::tcp`].
    pub fn packet(&self, packet: &[u8]) -> Result<(), Errno> {
        let (fd, to): (_, SocketAddr) = match packet.first().map(|b| b >> 4) {
            Some(4) => {
                let to: [u8; 4] = packet.get(16..20).and_then(|b| b.try_into().ok()).ok_or(Errno::EINVAL)?;
                (&self.v4, (to, 0).into())
            }
            Some(6) => {
                let to: [u8; 16] = packet.get(24..40).and_then(|b| b.try_into().ok()).ok_or(Errno::EINVAL)?;
                (self.v6.as_ref().ok_or(Errno::EAFNOSUPPORT)?, (to, 0).into())
            }
            _ => return Err(Errno::EINVAL),
        };
        sendto(fd.as_raw_fd(), packet, &SockaddrStorage::from(to), MsgFlags::empty()).map(drop)
    }

    fn send(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        protocol: u8,
        ttl: u8,
        tos: u8,
        encode: impl FnOnce(&Head) -> Result<Vec<u8>, Errno>,
    ) -> Result<(), Errno> {
        let head = Head { from: plain(from), to: plain(to), protocol };
        let payload = encode(&head)?;
        let packet = head.packet(ttl, tos, &payload)?;
        let fd = match head.to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => self.v6.as_ref().ok_or(Errno::EAFNOSUPPORT)?,
        };
        let mut to = head.to;
        to.set_port(0); // which would be the number of a protocol
        sendto(fd.as_raw_fd(), &packet, &SockaddrStorage::from(to), MsgFlags::empty()).map(drop)
    }
}

/// An IPv4 address that is written as one of IPv6 (`::ffff:192.0.2.1`) as what it is on the wire.
pub fn plain(address: SocketAddr) -> SocketAddr {
    match (address, address.ip().to_canonical()) {
        (SocketAddr::V6(_), IpAddr::V4(ip)) => SocketAddr::new(IpAddr::V4(ip), address.port()),
        _ => address,
    }
}

/// What the headers of both layers say about a packet.
struct Head {
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
}

impl Head {
    /// The ports, as they begin all three protocols.
    fn ports(&self) -> Vec<u8> {
        [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat()
    }

    /// Both addresses as they are on the wire.
    fn addresses(&self) -> Result<Vec<u8>, Errno> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Ok([from.octets(), to.octets()].concat()),
            (IpAddr::V6(from), IpAddr::V6(to)) => Ok([from.octets(), to.octets()].concat()),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// Checksum over a payload and what TCP and UDP count as theirs of the IP header.
    fn checksum(&self, payload: &[u8]) -> Result<u16, Errno> {
        let pseudo = [self.addresses()?, u32::from(self.protocol).to_be_bytes().to_vec(), (payload.len() as u32).to_be_bytes().to_vec()];
        Ok(!fold(payload, fold(&pseudo.concat(), 0)))
    }

    /// The whole packet. The kernel adds what is zero: length, checksum and identification of IPv4.
    fn packet(&self, ttl: u8, tos: u8, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let addresses = self.addresses()?;
        let mut packet = Vec::with_capacity(40 + payload.len());
        if addresses.len() == 8 {
            let length = u16::try_from(20 + payload.len()).map_err(|_| Errno::EMSGSIZE)?;
            packet.extend([0x45, tos]);
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, ttl, self.protocol, 0, 0]);
        } else {
            let length = u16::try_from(payload.len()).map_err(|_| Errno::EMSGSIZE)?;
            packet.extend((6 << 28 | u32::from(tos) << 20).to_be_bytes());
            packet.extend(length.to_be_bytes());
            packet.extend([self.protocol, ttl]);
        }
        packet.extend(addresses);
        packet.extend(payload);
        Ok(packet)
    }
}

/// Sum in one's complement, RFC 1071, of `bytes` and what was summed up before.
fn fold(bytes: &[u8], sum: u16) -> u16 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let last = odd.first().map_or(0, |&b| u64::from(b) << 8);
    let mut sum = pairs.iter().fold(u64::from(sum) + last, |sum, &pair| sum + u64::from(u16::from_be_bytes(pair)));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Segment {
    fn encode(&self, head: &Head) -> Result<Vec<u8>, Errno> {
        if self.options.len() > MOST_OPTIONS || self.data.len() > MOST_DATA {
            return Err(Errno::EMSGSIZE);
        }
        let options = self.options.len().next_multiple_of(4);
        let mut bytes = head.ports();
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([(5 + options as u8 / 4) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]); // checksum, urgent pointer
        bytes.extend(&self.options);
        bytes.resize(20 + options, 1); // options that say nothing
        bytes.extend(&self.data);
        let sum = head.checksum(&bytes)?;
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        Ok(bytes)
    }
}

/// A datagram; the checksum of one of UDP-Lite is over all of it.
fn datagram(head: &Head, lite: bool, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let length = u16::try_from(8 + data.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut bytes = head.ports();
    bytes.extend(if lite { 0 } else { length }.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(data);
    // None at all would be zero.
    let sum = match head.checksum(&bytes)? {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace;
    use std::io::Read;
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;
    use std::time::Duration;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn checksums_are_those_of_rfc_1071() {
        assert_eq!(fold(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0), 0xddf2);
        assert_eq!(fold(&[0xff, 0xff, 0x01], 0), 0x0100);
        // What is received sums up to nothing, with the checksum in it.
        let head = Head { from: at("[2001:db8::1]:5"), to: at("[2001:db8::2]:6"), protocol: 6 };
        let segment = Segment { seq: 1, flags: SYN, options: vec![2, 4, 5, 180, 1], data: b"odd".to_vec(), ..Segment::default() };
        let bytes = segment.encode(&head).unwrap();
        assert_eq!((bytes.len(), bytes[12] >> 4, &bytes[20..28]), (20 + 8 + 3, 7, &[2u8, 4, 5, 180, 1, 1, 1, 1][..]));
        assert_eq!(head.checksum(&bytes).unwrap(), 0);
    }

    #[test]
    fn acknowledgements_are_told_from_what_says_more() {
        let from = ["1.2.3.4:5", "[2001:db8::1]:5"].map(at);
        for (from, to) in from.into_iter().zip(["1.2.3.5:6", "[2001:db8::2]:6"].map(at)) {
            let head = Head { from, to, protocol: 6 };
            let packet = |segment: &Segment, more: u16| {
                let segment = segment.encode(&head).unwrap();
                let length = segment.len() as u16 + more;
                let front = match from {
                    SocketAddr::V4(_) => [&[0x45, 0][..], &(20 + length).to_be_bytes(), &[0, 0, 0, 0, 64, 6], &[0; 10]].concat(),
                    SocketAddr::V6(_) => [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[6, 64], &[0; 32]].concat(),
                };
                [front, segment].concat()
            };
            let ack = Segment { flags: ACK, options: vec![1; 12], ..Segment::default() };
            assert!(is_bare(&packet(&ack, 0)));
            assert!(!is_bare(&packet(&ack, 1400)), "there is more of it than came with the notice");
            assert!(!is_bare(&packet(&Segment { data: vec![7], ..ack.clone() }, 0)));
            for flag in [FIN, SYN, RST] {
                assert!(!is_bare(&packet(&Segment { flags: ACK | flag, ..ack.clone() }, 0)));
            }
            let whole = packet(&ack, 0);
            (0..whole.len() - 18).for_each(|length| assert!(!is_bare(&whole[..length]), "{length}"));
            let mut other = whole.clone();
            other[if from.is_ipv4() { 9 } else { 6 }] = 17;
            assert!(!is_bare(&other), "a datagram");
        }
    }

    #[test]
    fn timestamps_are_found() {
        let of = |options: &[u8]| Segment { options: options.to_vec(), ..Segment::default() }.timestamps();
        assert_eq!(of(&[2, 4, 5, 180, 1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 0, 9]), Some((256, 9)));
        assert_eq!((of(&[]), of(&[1, 8, 10, 0]), of(&[5, 0, 8, 10]), of(&[0, 8])), (None, None, None, None));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let head = Head { from: at("1.2.3.4:5"), to: at("1.2.3.4:6"), protocol: 6 };
        for segment in
            [Segment { options: vec![1; 41], ..Segment::default() }, Segment { data: vec![0; MOST_DATA + 1], ..Segment::default() }]
        {
            assert_eq!(segment.encode(&head).unwrap_err(), Errno::EMSGSIZE);
        }
        assert_eq!(datagram(&head, false, &[0; 65536]).unwrap_err(), Errno::EMSGSIZE);
        let mixed = Head { from: at("1.2.3.4:5"), to: at("[::1]:6"), protocol: 6 };
        assert_eq!(mixed.packet(1, 0, b"").unwrap_err(), Errno::EAFNOSUPPORT);
        assert_eq!(plain(at("[::ffff:192.0.2.7]:9")), at("192.0.2.7:9"));
    }

    /// Runs `work` in a network namespace with addresses of the documentation on `lo` and on an interface of its own.
    fn alone(work: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
            return;
        }
        let script = "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
            ip addr add 198.51.100.1/24 dev v0; ip -6 addr add 2001:db8::1/64 dev v0 nodad";
        namespace::fresh_network(|| {
            assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success());
            work();
        })
        .unwrap();
    }

    fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = vec![0; 70000];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..n].to_vec(), from)
    }

    #[test]
    fn datagrams_come_from_whoever_is_named() {
        alone(|| {
            let wire = Wire::new(PASS).unwrap();
            for (mine, theirs) in [
                ("127.0.0.1:0", "192.0.2.7:4711"),
                ("198.51.100.1:0", "192.0.2.7:4711"),
                ("198.51.100.1:0", "198.51.100.9:53"),
                ("[::1]:0", "[2001:db8:7::9]:4711"),
                ("[2001:db8::1]:0", "[2001:db8:7::9]:4711"),
                ("[2001:db8::1]:0", "[2001:db8::77]:53"),
            ] {
                let socket = UdpSocket::bind(mine).unwrap();
                let me = socket.local_addr().unwrap();
                wire.udp(at(theirs), me, false, 9, 0x28, b"hello").unwrap();
                assert_eq!(receive(&socket), (b"hello".to_vec(), at(theirs)), "{mine}");
                let long = vec![7; if me.is_ipv4() { 65507 } else { 65487 }];
                wire.udp(at(theirs), me, false, 9, 0, &long).unwrap();
                assert!(receive(&socket) == (long, at(theirs)), "{mine}");
            }
            // IPv4 on a socket of IPv6.
            let socket = UdpSocket::bind("[::]:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            wire.udp(at("[::ffff:192.0.2.7]:1"), SocketAddr::new("::ffff:198.51.100.1".parse().unwrap(), port), false, 1, 0, b"").unwrap();
            assert_eq!(receive(&socket), (vec![], at("[::ffff:192.0.2.7]:1")));
        });
    }

    #[test]
    fn udp_lite_and_sockets_of_one_interface() {
        alone(|| {
            let wire = Wire::new(PASS).unwrap();
            if let Ok(lite) = socket::socket_of(libc::AF_INET, libc::SOCK_DGRAM, i32::from(UDPLITE)) {
                let lite = UdpSocket::from(lite);
                nix::sys::socket::bind(lite.as_raw_fd(), &SockaddrStorage::from(at("198.51.100.1:77"))).unwrap();
                wire.udp(at("192.0.2.7:78"), at("198.51.100.1:77"), true, 3, 0, b"lite").unwrap();
                assert_eq!(receive(&lite), (b"lite".to_vec(), at("192.0.2.7:78")));
            }
            for mine in ["198.51.100.1:0", "[2001:db8::1]:0"] {
                let bound = UdpSocket::bind(mine).unwrap();
                socket::set_option(bound.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"v0\0").unwrap();
                let theirs = if mine.starts_with('[') { at("[2001:db8:7::9]:1") } else { at("192.0.2.7:1") };
                wire.udp(theirs, bound.local_addr().unwrap(), false, 1, 0, b"in").unwrap();
                assert_eq!(receive(&bound), (b"in".to_vec(), theirs));
            }
        });
    }

    /// A connection that nobody is at the other end of: what answers is seen by a packet socket of the interface.
    #[test]
    fn a_connection_from_nowhere() {
        alone(|| {
            let wire = Wire::new(PASS).unwrap();
            for (mine, theirs) in [("198.51.100.1:0", at("198.51.100.9:4711")), ("[2001:db8::1]:0", at("[2001:db8::77]:4711"))] {
                let listener = TcpListener::bind(mine).unwrap();
                let me = listener.local_addr().unwrap();
                let (table, address) = (theirs.ip().to_string(), "02:00:00:00:00:09");
                let known = ["neigh", "replace", &table, "lladdr", address, "dev", "v0"];
                assert!(Command::new("ip").args(known).status().unwrap().success());
                let seen = socket::socket_of(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(3u16.to_be())).unwrap();
                wire.tcp(theirs, me, &Segment { seq: 1000, flags: SYN, window: 65535, ..Segment::default() }).unwrap();
                let answer = loop {
                    let mut packet = vec![0; 2000];
                    let n = nix::sys::socket::recv(seen.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
                    let head = if packet[0] >> 4 == 4 { 20 } else { 40 };
                    if n >= head + 20 && packet[head + 13] == SYN | ACK {
                        break packet[head..].to_vec();
                    }
                };
                let number = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
                assert_eq!(number(8), 1001);
                let said =
                    Segment { seq: 1001, ack: number(4) + 1, flags: ACK | PSH, window: 100, data: b"data".to_vec(), ..Segment::default() };
                wire.tcp(theirs, me, &said).unwrap();
                let (mut accepted, from) = listener.accept().unwrap();
                let mut read = [0; 4];
                accepted.read_exact(&mut read).unwrap();
                assert_eq!((&read, from), (b"data", theirs));
            }
        });
    }
}
