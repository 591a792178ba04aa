//! What the local stack sends, overheard by a packet(7) socket.

use super::socket;
use super::wire::{Segment, plain};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// `ETH_P_ALL`.
const ALL: u16 = 3;

/// Hears all packets of the network namespace that it was made in, from then on.
#[derive(Debug)]
pub struct Ear(OwnedFd);

impl Ear {
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub fn new() -> Result<Ear, Errno> {
        let fd = socket::socket_of(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(ALL.to_be()))?;
        let _ = socket::set_number(fd.as_fd(), libc::SO_RCVBUFFORCE, 4 << 20);
        Ok(Ear(fd))
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
    fn what_is_cut_off_is_nothing() {
        assert!(parse(&[0x45; 39]).is_none() && parse(&[0x60; 59]).is_none() && parse(&[]).is_none());
    }
}
