//! UDP and UDP-Lite: udp(7), udplite(7).

use super::inet::{self, Address, Inet, LevelOption};
use super::multicast::{self, Membership};
use super::options;
use super::received::{self, Received};
use crate::error::Result;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::{datagram, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// A UDP socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// What every internet socket has.
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
    /// `ECONNREFUSED` waits to be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// What was received and not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<Received>,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

/// `IPPROTO_UDPLITE`.
pub const UDPLITE: i32 = 136;
/// `UDP_CORK`, which holds back what is sent from then on.
pub const CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
/// Own options: `UDP_CORK`, `UDP_NO_CHECK6_TX`, `UDP_NO_CHECK6_RX`, `UDP_SEGMENT`, `UDP_GRO`, `UDPLITE_SEND_CSCOV`,
/// `UDPLITE_RECV_CSCOV`; and `IP_MULTICAST_IF`, whose address goes both ways.
pub const OWN: [(i32, i32, usize); 8] = [
    (libc::IPPROTO_UDP, CORK, 4),
    (libc::IPPROTO_UDP, 101, 4),
    (libc::IPPROTO_UDP, 102, 4),
    (libc::IPPROTO_UDP, 103, 4),
    (libc::IPPROTO_UDP, 104, 4),
    (UDPLITE, 10, 4),
    (UDPLITE, 11, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
];

/// Whether a socket is one of these.
pub fn is(domain: i32, kind: i32, protocol: i32) -> bool {
    matches!(domain, libc::AF_INET | libc::AF_INET6) && kind == libc::SOCK_DGRAM && matches!(protocol, libc::IPPROTO_UDP | UDPLITE)
}

/// Saves a UDP socket. Its queue is looked at when the tree stands still.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(mut inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    let encapsulates = socket::option(fd, libc::IPPROTO_UDP, UDP_ENCAP, 4).is_ok_and(|value| value.iter().any(|b| *b != 0));
    let events = socket::events(fd)?;
    let error = events & libc::POLLERR != 0;
    let obstacle = match () {
        () if options::filter(fd) == Err(Errno::EACCES) => {
            Some(("a BPF program filters what it receives", "detach it first (SO_DETACH_BPF)"))
        }
        () if encapsulates => Some(("the kernel takes packets of a tunnel from it (UDP_ENCAP)", "end the tunnel first: IPsec, L2TP")),
        () => None,
    };
    let passing = match () {
        () if error && reads_errors(fd) => Some("errors wait in it to be read (MSG_ERRQUEUE), which would take them away"),
        () if error && events & libc::POLLIN != 0 => Some("an error and datagrams wait in it: reading these would take the error away"),
        () if begun(fd, &inet)? => Some("a datagram has been begun (MSG_MORE, UDP_CORK) and not been sent, which cannot be seen"),
        () => None,
    };
    if let Some((reason, advice)) = obstacle {
        capture.refuse(found.pid, found.object(), format!("{}: {reason}", called(&inet)), advice);
        return Ok(None);
    }
    if let Some(reason) = passing {
        let advice = "dump again a moment later: the program has not come to it yet";
        capture.refuse_for_now(found.pid, found.object(), format!("{}: {reason}", called(&inet)), advice);
        return Ok(None);
    }
    inet.ask(fd, &mut capture.inet)?;
    let own = own_options(fd, &OWN, &inet, capture)?;
    if error && inet.peer.is_none() {
        capture.warnings.push(format!("process {}, {}: an error that waits to be told is lost", found.pid, found.object()));
    }
    let mut udp = Udp {
        own,
        groups: multicast::capture(fd, inet.family, &multicast::known(fd, inet.network, capture)?)?,
        shutdown: ends(events),
        refused: error && inet.peer.is_some(),
        inet,
        queue: Vec::new(),
    };
    if capture.standing && !error {
        udp.queue = received::read(fd)?;
    }
    Ok(Some(FileKind::Udp(Box::new(udp))))
}

/// The options of a list of its protocol's own in which a socket differs from a new one.
pub fn own_options(fd: BorrowedFd<'_>, list: &[(i32, i32, usize)], inet: &Inet, capture: &mut Capture) -> Result<Vec<LevelOption>> {
    let key = inet.key();
    if let Entry::Vacant(unknown) = capture.inet.protocols.entry(key) {
        let new = inet::another(fd, inet)?;
        unknown.insert(inet::answers(new.as_fd(), list));
    }
    Ok(inet::differing(fd, list, capture.inet.protocols.get(&key).map_or(&[], Vec::as_slice)))
}

/// Whether an error that waits may be one of those that come with what they are about.
fn reads_errors(fd: BorrowedFd<'_>) -> bool {
    let asked = [
        (libc::IPPROTO_IP, libc::IP_RECVERR),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        (libc::SOL_SOCKET, libc::SO_TXTIME),
    ];
    asked.iter().any(|&(level, name)| socket::option(fd, level, name, 8).is_ok_and(|value| value.iter().any(|b| *b != 0)))
}

/// Whether something that was written stays in the socket: mostly there is nothing.
fn begun(fd: BorrowedFd<'_>, inet: &Inet) -> Result<bool> {
    Ok(datagram::unsent(fd)? > 0 && datagram::is_begun(fd, inet.family)?)
}

/// What shutdown(2) has ended.
pub fn ends(events: i16) -> u8 {
    match (events & libc::POLLHUP != 0, events & libc::POLLRDHUP != 0) {
        (true, _) => 3,
        (_, true) => 1,
        _ => 0,
    }
}

/// `UDP socket 127.0.0.1:53`.
fn called(inet: &Inet) -> String {
    let lite = if inet.protocol == UDPLITE { "-Lite" } else { "" };
    let local = inet.local.map(|a| format!(" {}", SocketAddr::from(a))).unwrap_or_default();
    format!("UDP{lite} socket{local}")
}

impl Udp {
    /// For the graph.
    pub fn part(&self) -> Part {
        let shown = |a: &Option<Address>| a.map(|a| SocketAddr::from(a).to_string());
        let detail = [shown(&self.inet.local), shown(&self.inet.peer).map(|p| format!("to {p}"))];
        let detail = detail.into_iter().flatten().collect::<Vec<_>>().join(" ");
        Part::of("UDP socket").detail(detail)
    }

    /// For people: `UDP socket 127.0.0.1:53`.
    pub fn called(&self) -> String {
        called(&self.inet)
    }

    /// Whether it is of UDP-Lite.
    pub fn is_lite(&self) -> bool {
        self.inet.protocol == UDPLITE
    }
}
