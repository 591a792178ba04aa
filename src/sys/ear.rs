//! What the local stack sends and receives, overheard by a packet(7) socket.

use super::socket;
use super::wire::{Segment, plain};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// `ETH_P_ALL`.
const ALL: u16 = 3;

/// Bytes of a packet that are heard: the headers of IP and TCP, with all options.
const FRONT: u32 = 128;

/// Lets only segments in that have the flag SYN: classic BPF, `struct sock_filter` (code, where to go on if so and if not, operand).
const SYNS: [(u16, u8, u8, u32); 17] = [
    (0x30, 0, 0, 0),    // the version of IP
    (0x54, 0, 0, 0xf0), //
    (0x15, 0, 7, 0x40), // four:
    (0x30, 0, 0, 9),    // its protocol
    (0x15, 0, 11, 6),   // is TCP,
    (0x28, 0, 0, 6),    // and it is no later fragment;
    (0x45, 9, 0, 0x1fff),
    (0xb1, 0, 0, 0), // the flags stand behind its header
    (0x50, 0, 0, 13),
    (0x05, 0, 0, 4),
    (0x15, 0, 5, 0x60), // six:
    (0x30, 0, 0, 6),    // TCP comes next,
    (0x15, 0, 3, 6),
    (0x30, 0, 0, 53), // with its flags
    (0x45, 0, 1, 2),
    (0x06, 0, 0, FRONT),
    (0x06, 0, 0, 0),
];

/// Hears packets of the network namespace that it was made in, from then on.
#[derive(Debug)]
pub struct Ear(OwnedFd);

/// A TCP segment, without its data, and between whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who sends it.
    pub from: SocketAddr,
    /// Who is to get it.
    pub to: SocketAddr,
    /// What it is.
    pub segment: Segment,
}

impl Heard {
    /// What a packet is, of which the front is here from the IP header on.
    pub fn of(packet: &[u8]) -> Option<Heard> {
        let ((from, from_port), (to, to_port), segment) = parse(packet)?;
        Some(Heard { from: SocketAddr::new(from, from_port), to: SocketAddr::new(to, to_port), segment })
    }
}

impl Ear {
    /// Hears everything.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub fn new() -> Result<Ear, Errno> {
        let fd = socket::socket_of(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(ALL.to_be()))?;
        let _ = socket::set_number(fd.as_fd(), libc::SO_RCVBUFFORCE, 4 << 20);
        Ok(Ear(fd))
    }

    /// Hears only how TCP connections begin; what goes out only if it is `outgoing` (before Linux 4.20 always).
    ///
    /// # Errors
    /// As of [`Ear::new`].
    pub fn of_beginnings(outgoing: bool) -> Result<Ear, Errno> {
        const PACKET_IGNORE_OUTGOING: i32 = 23;
        // Without a protocol it hears nothing before the filter is there.
        let fd = socket::socket_of(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
        let filter: Vec<u8> = SYNS
            .iter()
            .flat_map(|(code, yes, no, operand)| [&code.to_ne_bytes()[..], &[*yes, *no], &operand.to_ne_bytes()].concat())
            .collect();
        socket::set_filter(fd.as_fd(), &filter)?;
        let _ = socket::set_number(fd.as_fd(), libc::SO_RCVBUFFORCE, 1 << 20);
        if !outgoing {
            let _ = socket::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32.to_ne_bytes());
        }
        let all = libc::sockaddr_ll { sll_family: libc::AF_PACKET as u16, sll_protocol: ALL.to_be(), ..nowhere() };
        // SAFETY: an address of its own family, with its size.
        Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const all).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
        Ok(Ear(fd))
    }

    /// What it has heard since this was asked last, and whether it goes out; whether that is all.
    ///
    /// # Errors
    /// As of recv(2).
    pub fn take(&self, mut each: impl FnMut(Heard, bool)) -> Result<bool, Errno> {
        const PACKET_STATISTICS: i32 = 6;
        let mut packet = [0u8; FRONT as usize];
        let mut way = nowhere();
        loop {
            let mut length = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the buffer and the address have the sizes that are passed.
            let n = unsafe {
                let (packet, way) = (packet.as_mut_ptr().cast(), (&raw mut way).cast());
                libc::recvfrom(self.0.as_raw_fd(), packet, FRONT as usize, libc::MSG_DONTWAIT, way, &raw mut length)
            };
            match Errno::result(n) {
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                n => {
                    let outgoing = way.sll_pkttype == libc::PACKET_OUTGOING;
                    Heard::of(&packet[..n? as usize]).into_iter().for_each(|heard| each(heard, outgoing));
                }
            }
        }
        // struct tpacket_stats: packets, and those for which there was no room, since this was asked last
        let told = socket::option(self.0.as_fd(), libc::SOL_PACKET, PACKET_STATISTICS, 8)?;
        Ok(told.get(4..8).is_none_or(|lost| lost == [0; 4]))
    }

    /// The next TCP segment between these addresses, without its data; `None` when none comes for as long as
    /// `patience`.
    pub fn hear(&self, from: SocketAddr, to: SocketAddr, patience: Duration) -> Result<Option<Segment>, Errno> {
        let end = Instant::now() + patience;
        let mut packet = [0u8; 128];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, as is said.
            match Errno::result(unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) }) {
                Ok(0) => return Ok(None),
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            // SAFETY: the buffer has the size that is passed.
            let n = unsafe { libc::recv(self.0.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), libc::MSG_DONTWAIT) };
            let n = match Errno::result(n) {
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(Errno::ENETDOWN) => continue, // an interface has gone
                n => n? as usize,
            };
            match parse(&packet[..n]) {
                Some((a, b, segment)) if (a, b) == (key(from), key(to)) => return Ok(Some(segment)),
                _ => {}
            }
        }
    }
}

fn nowhere() -> libc::sockaddr_ll {
    libc::sockaddr_ll { sll_family: 0, sll_protocol: 0, sll_ifindex: 0, sll_hatype: 0, sll_pkttype: 0, sll_halen: 0, sll_addr: [0; 8] }
}

/// An address without what is not on the wire.
fn key(address: SocketAddr) -> (IpAddr, u16) {
    let address = plain(address);
    (address.ip(), address.port())
}

type End = (IpAddr, u16);

/// A packet that begins with the header of IP.
fn parse(packet: &[u8]) -> Option<(End, End, Segment)> {
    let (from, to, head): (IpAddr, IpAddr, usize) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == libc::IPPROTO_TCP as u8 => {
            let at = |n: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(n..n + 4)?).ok()?));
            (at(12)?.into(), at(16)?.into(), usize::from(packet[0] & 15) * 4)
        }
        6 if *packet.get(6)? == libc::IPPROTO_TCP as u8 => {
            let at = |n: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(n..n + 16)?).ok()?));
            (at(8)?.into(), at(24)?.into(), 40)
        }
        _ => return None,
    };
    let tcp = packet.get(head..head + 20)?;
    let two = |n: usize| u16::from_be_bytes([tcp[n], tcp[n + 1]]);
    let four = |n: usize| u32::from_be_bytes([tcp[n], tcp[n + 1], tcp[n + 2], tcp[n + 3]]);
    let options = packet.get(head + 20..head + usize::from(tcp[12] >> 4) * 4).unwrap_or_default().to_vec();
    let segment = Segment { seq: four(4), ack: four(8), flags: tcp[13], window: two(14), options, data: Vec::new() };
    Some(((from, two(0)), (to, two(2)), segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::fresh_network;
    use crate::sys::wire::{ACK, PASS, SYN, Wire};
    use std::net::TcpListener;
    use std::process::Command;

    #[test]
    fn the_answer_to_a_syn_is_heard() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        fresh_network(|| {
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            for (mine, theirs) in [("127.0.0.1:0", "127.0.0.1:7"), ("[::1]:0", "[::1]:7")] {
                let listener = TcpListener::bind(mine).unwrap();
                let (me, them) = (listener.local_addr().unwrap(), theirs.parse().unwrap());
                let ear = Ear::new().unwrap();
                assert_eq!(ear.hear(me, them, Duration::from_millis(1)), Ok(None));
                let syn = Segment { seq: 77, flags: SYN, window: 9, ..Segment::default() };
                Wire::new(PASS).unwrap().tcp(them, me, &syn).unwrap();
                assert_eq!(ear.hear(them, me, Duration::from_secs(5)), Ok(Some(syn)));
                let answer = ear.hear(me, them, Duration::from_secs(5)).unwrap().unwrap();
                assert_eq!((answer.ack, answer.flags), (78, SYN | ACK));
            }
        })
        .unwrap();
    }

    #[test]
    fn how_connections_begin() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        fresh_network(|| {
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            for ip in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(ip).unwrap();
                let ears = [false, true].map(|outgoing| Ear::of_beginnings(outgoing).unwrap());
                let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                std::io::Write::write_all(&mut client, b"data").unwrap();
                let (me, them) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
                for (outgoing, ear) in [1, 2].into_iter().zip(&ears) {
                    let mut heard = Vec::new();
                    let mut ways = Vec::new();
                    assert_eq!(ear.take(|one, goes| (heard.push(one), ways.push(goes)).1), Ok(true));
                    // What goes out through the loopback interface comes in, too.
                    assert_eq!((heard.len(), ways.iter().filter(|goes| **goes).count()), (2 * outgoing, 2 * outgoing - 2), "{heard:?}");
                    let (first, last) = (&heard[0], &heard[heard.len() - 1]);
                    assert_eq!((first.from, first.to, first.segment.flags & (SYN | ACK)), (me, them, SYN));
                    assert_eq!((last.from, last.to, last.segment.flags & (SYN | ACK)), (them, me, SYN | ACK));
                    assert_eq!(last.segment.ack, first.segment.seq.wrapping_add(1));
                    assert_eq!(ear.take(|one, _| panic!("{one:?}")), Ok(true));
                }
            }
        })
        .unwrap();
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        assert!(parse(&[0x45; 39]).is_none() && parse(&[0x60; 59]).is_none() && parse(&[]).is_none());
    }
}
