//! Sockets of the internet families below ports: raw(7), and those that send and receive echoes (icmp(7)).

use super::inet::{Address, Inet, LevelOption};
use super::multicast::{self, Membership};
use super::udp::own_options;
use super::{lost, options};
use crate::error::Result;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::namespace::{Kind, places, within};
use crate::sys::socket;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

/// A raw socket, or one of echoes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// What every internet socket has. The port of its address is the protocol, or the number of its echoes.
    pub inet: Inet,
    /// Options of its protocol, and the interface of its multicasts, that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<LevelOption>,
    /// Multicast groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Membership>,
    /// Bits: 1 nothing more can be received, 2 nothing more can be sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shutdown: u8,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

const SOL_RAW: i32 = 255;
/// Own options: `ICMP_FILTER`; `IPV6_CHECKSUM`, `IPV6_HDRINCL`; `ICMPV6_FILTER`; `IP_MULTICAST_IF`.
pub const OWN: [(i32, i32, usize); 5] = [
    (SOL_RAW, 1, 4),
    (SOL_RAW, 7, 4),
    (SOL_RAW, libc::IPV6_HDRINCL, 4),
    (libc::IPPROTO_ICMPV6, 1, 32),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
];

/// Whether a socket is one of these.
pub fn is(domain: i32, kind: i32, protocol: i32) -> bool {
    let echo = [(libc::AF_INET, libc::IPPROTO_ICMP), (libc::AF_INET6, libc::IPPROTO_ICMPV6)].contains(&(domain, protocol));
    matches!(domain, libc::AF_INET | libc::AF_INET6) && (kind == libc::SOCK_RAW || kind == libc::SOCK_DGRAM && echo)
}

/// Saves a raw socket. What it has received and nobody has read is not kept: only the first packet can be looked at.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(mut inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    if options::filter(fd) == Err(Errno::EACCES) {
        capture.refuse(found.pid, found.object(), "a BPF program filters what it receives", "detach it first (SO_DETACH_BPF)");
        return Ok(None);
    }
    if inet.peer.is_none() {
        inet.peer = connected(found, fd, &inet)?;
    }
    // Whoever may not make a socket of echoes compares with one of UDP, which is the same in these.
    let mut like = Inet { protocol: if inet.kind == libc::SOCK_DGRAM { libc::IPPROTO_UDP } else { inet.protocol }, ..inet.clone() };
    like.ask(fd, &mut capture.inet)?;
    let own = own_options(fd, &OWN, &like, capture)?;
    (inet.options, inet.more, inet.filter) = (like.options, like.more, like.filter);
    let events = socket::events(fd)?;
    lost(found, fd, events, capture)?;
    let groups = multicast::capture(fd, inet.family, &multicast::known(fd, inet.network, capture)?)?;
    Ok(Some(FileKind::Raw(Box::new(Raw { own, groups, shutdown: super::udp::ends(events), inet }))))
}

/// Whom it is connected to, if that has no port, which getpeername(2) takes for nobody.
fn connected(found: &Found, fd: BorrowedFd<'_>, inet: &Inet) -> Result<Option<Address>> {
    let name = match (inet.kind, inet.family) {
        (libc::SOCK_RAW, libc::AF_INET) => "raw",
        (libc::SOCK_RAW, _) => "raw6",
        (_, libc::AF_INET) => "icmp",
        _ => "icmp6",
    };
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let table = match inet.network {
        Some(_) => within(&places([(&socket::network(fd)?, Kind::Net)]), read)?,
        None => read(),
    };
    Ok(peer(&table, found.meta.ino()))
}

/// The remote address of the socket with this inode in `/proc/net/raw` and the like, if it is connected.
fn peer(table: &str, inode: u64) -> Option<Address> {
    let lines = table.lines().skip(1).map(|l| l.split_ascii_whitespace().collect::<Vec<_>>());
    let line = lines.into_iter().find(|l| l.get(9).and_then(|i| i.parse().ok()) == Some(inode))?;
    if line[3] != "01" {
        return None;
    }
    let (ip, port) = line[2].split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|w| u32::from_str_radix(std::str::from_utf8(w).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(Address { ip, port: u16::from_str_radix(port, 16).ok()?, flow: 0, scope: 0 })
}

impl Raw {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of(if self.echoes() { "ping socket" } else { "raw socket" })
            .detail(self.inet.local.map_or(String::new(), |l| l.ip.to_string()))
    }

    /// Whether it is one of echoes.
    pub fn echoes(&self) -> bool {
        self.inet.kind == libc::SOCK_DGRAM
    }

    /// For people.
    pub fn called(&self) -> String {
        super::describe(self.inet.family, self.inet.kind, self.inet.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_without_ports() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                       1: 00000000:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0\n\
                       1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 78 2 0000000000000000 0\n\
                      58: 00000000000000000000000000000000:003A 00000000000000000000000001000000:0000 01 0:0 00:0 0 0 0 79 2 0 0\nbroken\n";
        assert_eq!(peer(table, 77).map(|a| a.ip), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(peer(table, 78), None);
        assert_eq!(peer(table, 79).map(|a| a.ip), Some(Ipv6Addr::LOCALHOST.into()));
    }
}
