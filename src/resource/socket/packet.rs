//! packet(7): packets as an interface sends and receives them.

use super::inet::{Inet, LevelOption};
use super::udp::own_options;
use super::{lost, options};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::namespace::{self, places, within};
use crate::sys::sock_diag::packets::{self, Seen};
use crate::sys::{datagram, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A packet socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// What every socket has that may filter and be limited.
    pub inet: Inet,
    /// The protocol that it hears, `ETH_P_*`; 0 for none.
    pub protocol: u16,
    /// The interface that it is bound to; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Options of its own that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<LevelOption>,
    /// What it has asked interfaces to hear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memberships: Vec<Asked>,
    /// `PACKET_FANOUT`: number and manner of the group that shares what arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<u32>,
    /// `PACKET_COPY_THRESH`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub copy_threshold: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `PACKET_ADD_MEMBERSHIP`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Name of the interface.
    pub interface: String,
    /// `PACKET_MR_*`.
    pub kind: u16,
    /// A link layer address.
    #[serde(with = "crate::image::bytes")]
    pub address: Vec<u8>,
    /// How often.
    pub count: u32,
}

const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_COPY_THRESH: i32 = 7;
const PACKET_FANOUT: i32 = 18;
/// Own options: `PACKET_AUXDATA`, `_ORIGDEV`, `_VERSION`, `_RESERVE`, `_LOSS`, `_VNET_HDR`, `_TIMESTAMP`, `_TX_HAS_OFF`,
/// `_QDISC_BYPASS`, `_IGNORE_OUTGOING`, `_VNET_HDR_SZ`.
pub const OWN: [(i32, i32, usize); 11] = [
    (SOL_PACKET, 8, 4),
    (SOL_PACKET, 9, 4),
    (SOL_PACKET, 10, 4),
    (SOL_PACKET, 12, 4),
    (SOL_PACKET, 14, 4),
    (SOL_PACKET, 15, 4),
    (SOL_PACKET, 17, 4),
    (SOL_PACKET, 19, 4),
    (SOL_PACKET, 20, 4),
    (SOL_PACKET, 23, 4),
    (SOL_PACKET, 24, 4),
];
/// `PACKET_FANOUT_CBPF` and `_EBPF`, by programs that cannot be read.
const BY_PROGRAM: [u32; 2] = [6, 7];
/// More often nobody asks for the same.
const MOST: u32 = 4096;

/// Saves a packet socket. What it has received and nobody has read is not kept: only the first packet can be looked at.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(mut inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    let inode = found.meta.ino();
    let list = || packets::list().map(|list| list.into_iter().find(|s| s.inode == inode));
    let seen = match inet.network {
        Some(_) => within(&places([(&socket::network(fd)?, namespace::Kind::Net)]), list)?,
        None => list(),
    };
    let Some(seen) = seen.context(|| "listing packet sockets (sock_diag)")? else {
        if capture.standing {
            capture.refuse(found.pid, found.object(), "packet socket: it is not in the list of packet sockets", "close it first");
        }
        return Ok(None);
    };
    let obstacle = match () {
        () if seen.rings => {
            Some(("packets arrive in a ring that it shares with the program (PACKET_RX_RING, PACKET_TX_RING)", "close it first"))
        }
        () if options::filter(fd) == Err(Errno::EACCES) => {
            Some(("a BPF program filters what it receives", "detach it first (SO_DETACH_BPF)"))
        }
        () if seen.fanout.is_some_and(|f| BY_PROGRAM.contains(&(f >> 16 & 0xff))) => {
            Some(("a BPF program divides what arrives among its group (PACKET_FANOUT)", "close it first"))
        }
        () => None,
    };
    if let Some((reason, advice)) = obstacle {
        capture.refuse(found.pid, found.object(), format!("packet socket: {reason}"), advice);
        return Ok(None);
    }
    inet.ask(fd, &mut capture.inet)?;
    let own = own_options(fd, &OWN, &inet, capture)?;
    lost(found, fd, socket::events(fd)?, capture)?;
    let named = |index: u32| datagram::interface_name(fd, index as i32);
    let Seen { index, protocol, .. } = seen;
    let mut memberships = Vec::new();
    for (index, kind, address, count) in seen.memberships {
        let interface = named(index).context(|| "looking for the interface of a packet socket")?;
        memberships.push(Asked { interface, kind, address, count });
    }
    let interface = if index == 0 { None } else { Some(named(index).context(|| "looking for the interface of a packet socket")?) };
    let fanout = match seen.fanout {
        Some(_) => socket::option(fd, SOL_PACKET, PACKET_FANOUT, 4).ok().and_then(|v| v.try_into().ok()).map(u32::from_ne_bytes),
        None => None,
    };
    let packet = Packet { inet, protocol, interface, own, memberships, fanout, copy_threshold: seen.copy_threshold };
    Ok(Some(FileKind::Packet(Box::new(packet))))
}

impl Packet {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("packet socket").detail(self.interface.clone().unwrap_or_default())
    }

    /// The socket again, in the network namespace that the caller lives in.
    pub fn make(&self, what: &str, warnings: &mut Vec<String>) -> Result<OwnedFd> {
        if self.inet.family != libc::AF_PACKET || self.memberships.iter().any(|m| m.count > MOST || m.address.len() > 8) {
            return Err(Error::image("image damaged: an impossible packet socket"));
        }
        let doing = || format!("making {what}");
        // Nothing arrives before it is bound.
        let made = socket::socket_of(libc::AF_PACKET, self.inet.kind, 0).context(doing)?;
        let fd = made.as_fd();
        self.inet.dress(fd, what, warnings);
        super::inet::set(fd, &self.own, |o| OWN.iter().any(|k| (k.0, k.1) == (o.level, o.name)), what, warnings);
        if self.copy_threshold != 0 {
            socket::set_option(fd, SOL_PACKET, PACKET_COPY_THRESH, &self.copy_threshold.to_ne_bytes()).context(doing)?;
        }
        let index = |name: &str| {
            datagram::interface_index(fd, name).map_err(|e| {
                Error::new(Kind::NotFound, format!("{what} listens on the interface {name}: {e}"))
                    .help(format!("bring the interface {name} back"))
            })
        };
        // The last comes first in the kernel's list.
        for asked in self.memberships.iter().rev() {
            // struct packet_mreq
            let mut request = index(&asked.interface)?.to_ne_bytes().to_vec();
            request.extend(asked.kind.to_ne_bytes());
            request.extend((asked.address.len() as u16).to_ne_bytes());
            request.extend(&asked.address);
            request.resize(16, 0);
            for _ in 0..asked.count {
                socket::set_option(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request).context(doing)?;
            }
        }
        self.inet.finish(fd, what, warnings)?;
        // struct sockaddr_ll
        let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
        address.extend(self.protocol.to_be_bytes());
        address.extend(self.interface.as_deref().map_or(Ok(0), index)?.to_ne_bytes());
        address.resize(20, 0);
        if self.protocol != 0 || self.interface.is_some() {
            datagram::bind(fd, &address).context(doing)?;
        }
        if let Some(fanout) = self.fanout {
            socket::set_option(fd, SOL_PACKET, PACKET_FANOUT, &fanout.to_ne_bytes()).context(doing)?;
        }
        Ok(made)
    }
}
