//! Datagrams that an internet socket has received and nobody has read yet.

use super::queue::{offset, with_offset};
use crate::error::{Context, Result};
use crate::sys::{datagram, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// The bytes.
    #[serde(with = "crate::image::bytes")]
    pub data: Vec<u8>,
    /// Address of the sender.
    pub from: IpAddr,
    /// Its port.
    pub port: u16,
    /// Interface that its address belongs to (link-local ones).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scope: u32,
    /// Where it was sent to, if the program wants to be told (`IP_PKTINFO`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<IpAddr>,
    /// Hops that were left, if the program wants to be told (`IP_RECVTTL`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Type of service or traffic class, likewise (`IP_RECVTOS`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tos: Option<u8>,
    /// It is several of this length, the last maybe shorter, received at once (`UDP_GRO`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u16>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Enough for any datagram; several that were put together may be longer.
const ROOM: usize = 66_000;
const MOST: usize = 4 << 20;
const UDP_GRO: i32 = 104;

fn look(fd: BorrowedFd<'_>, at: Option<usize>) -> nix::Result<Option<datagram::Datagram>> {
    let mut room = ROOM;
    loop {
        offset_or_none(fd, at)?;
        match datagram::peek(fd, room) {
            Err(Errno::EMSGSIZE) if room < MOST => room = MOST,
            Err(Errno::EAGAIN) => return Ok(None),
            seen => return seen.map(Some),
        }
    }
}

fn offset_or_none(fd: BorrowedFd<'_>, at: Option<usize>) -> nix::Result<()> {
    at.map_or(Ok(()), |at| offset(fd, at))
}

/// Everything in the queue of a datagram socket, looked at and left. Whoever asks makes sure that no error waits to be told,
/// which this would take away. An empty datagram that somebody has looked at before is seen at the begin only.
pub fn read(fd: BorrowedFd<'_>) -> Result<Vec<Received>> {
    let before = socket::number(fd, libc::SO_PEEK_OFF)?;
    let doing = || "looking into the queue of a socket";
    let mut found = Vec::new();
    if before < 0 {
        match look(fd, None).context(doing)? {
            Some(first) => found.push(first),
            None => return Ok(Vec::new()),
        }
    }
    with_offset(fd, before, || {
        if before >= 0 {
            socket::set_number(fd, libc::SO_PEEK_OFF, -1)?;
            found.extend(look(fd, None)?);
        }
        let mut at = found.first().map_or(0, |first| first.data.len());
        while let Some(next) = look(fd, Some(at))? {
            at += next.data.len();
            found.push(next);
        }
        Ok(())
    })?;
    Ok(found.iter().filter_map(Received::of).collect())
}

impl Received {
    fn of(seen: &datagram::Datagram) -> Option<Received> {
        let from = datagram::address(&seen.from)?;
        let number = |level, kind| seen.told(level, kind).and_then(|v| Some(i32::from_ne_bytes(v.get(..4)?.try_into().ok()?)));
        let byte = |level, kind| seen.told(level, kind).and_then(|v| v.first().copied());
        let four = seen.told(libc::IPPROTO_IP, libc::IP_PKTINFO).and_then(|v| <[u8; 4]>::try_from(v.get(8..12)?).ok());
        let six = seen.told(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO).and_then(|v| <[u8; 16]>::try_from(v.get(..16)?).ok());
        let to = four.map(|ip| IpAddr::V4(Ipv4Addr::from(ip))).or(six.map(|ip| Ipv6Addr::from(ip).to_canonical()));
        let ttl = number(libc::IPPROTO_IP, libc::IP_TTL).or(number(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT));
        let tos = byte(libc::IPPROTO_IP, libc::IP_TOS).or(number(libc::IPPROTO_IPV6, libc::IPV6_TCLASS).map(|n| n as u8));
        Some(Received {
            data: seen.data.clone(),
            from: from.ip().to_canonical(),
            port: from.port(),
            scope: if let SocketAddr::V6(from) = from { from.scope_id() } else { 0 },
            to,
            ttl: ttl.map(|n| n as u8),
            tos,
            segment: number(libc::IPPROTO_UDP, UDP_GRO).and_then(|n| u16::try_from(n).ok()).filter(|&n| n > 0),
        })
    }

    /// Whom it came from.
    pub fn source(&self) -> SocketAddr {
        match self.from {
            IpAddr::V4(_) => SocketAddr::new(self.from, self.port),
            IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, self.port, 0, self.scope)),
        }
    }

    /// The datagrams that it was sent as.
    pub fn parts(&self) -> Vec<&[u8]> {
        match self.segment {
            Some(length) if self.data.len() > usize::from(length) => self.data.chunks(usize::from(length)).collect(),
            _ => vec![&self.data],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn all_of_a_queue_is_seen_and_stays() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let Ok(socket) = UdpSocket::bind(address) else { continue };
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let me = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.local_addr().unwrap().port());
            let sent: [&[u8]; 5] = [b"", b"one", b"", b"", &[7; 60000]];
            for data in sent {
                sender.send_to(data, me).unwrap();
            }
            let seen = read(socket.as_fd()).unwrap();
            assert!(seen.iter().map(|d| d.data.as_slice()).eq(sent), "{:?}", seen.iter().map(|d| d.data.len()).collect::<Vec<_>>());
            assert!(seen.iter().all(|d| d.source() == sender.local_addr().unwrap()));
            assert_eq!(socket::number(socket.as_fd(), libc::SO_PEEK_OFF), Ok(-1));
            let mut buffer = vec![0; 70000];
            for data in sent {
                assert_eq!(socket.recv(&mut buffer).unwrap(), data.len());
            }
            socket::set_number(socket.as_fd(), libc::SO_PEEK_OFF, 3).unwrap();
            assert!(read(socket.as_fd()).unwrap().is_empty());
            sender.send_to(b"two", me).unwrap();
            assert_eq!(read(socket.as_fd()).unwrap().len(), 1);
            assert_eq!(socket::number(socket.as_fd(), libc::SO_PEEK_OFF), Ok(3));
        }
    }

    #[test]
    fn several_at_once_are_taken_apart() {
        let from = Ipv4Addr::LOCALHOST.into();
        let one = Received { data: vec![1; 25], from, port: 1, scope: 0, to: None, ttl: None, tos: None, segment: Some(10) };
        assert_eq!(one.parts().iter().map(|p| p.len()).collect::<Vec<_>>(), [10, 10, 5]);
        assert_eq!(Received { segment: None, ..one }.parts().len(), 1);
    }
}
