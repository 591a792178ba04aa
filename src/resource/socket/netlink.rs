//! netlink(7): a socket towards the kernel. What it asked for has been answered; what remains is who it is and what it
//! wants to hear.

use super::options::{self, Filter, SocketOption};
use crate::error::{Context, Error, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileKind, Found};
use crate::sys::namespace::{self, Kind, places, within};
use crate::sys::socket;
use nix::errno::Errno;
use nix::sys::socket::{NetlinkAddr, bind, connect, getpeername, getsockname};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// One netlink socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Netlink {
    /// `SOCK_RAW` or `SOCK_DGRAM`.
    pub kind: i32,
    /// `NETLINK_ROUTE`, …
    pub protocol: i32,
    /// The network namespace that it lives in, an index into the tree's; `None` for meio's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u32>,
    /// Its own address (`nl_pid`); 0 when it has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub port: u32,
    /// Multicast groups that it has joined, by their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
    /// Whom it is connected to: `nl_pid` and `nl_groups`. The kernel, (0, 0), unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<(u32, u32)>,
    /// Options of `SOL_NETLINK` that are set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_options: Vec<i32>,
    /// Options of `SOL_SOCKET` that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<SocketOption>,
    /// A filter over what comes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
/// On or off: `NETLINK_PKTINFO`, `_BROADCAST_ERROR`, `_NO_ENOBUFS`, `_LISTEN_ALL_NSID`, `_CAP_ACK`, `_EXT_ACK`,
/// `_GET_STRICT_CHK`.
const SWITCHES: [i32; 7] = [3, 4, 5, 8, 10, 11, 12];
/// No protocol has as many groups.
const MOST_GROUPS: usize = 32768;
/// Where the kernel names the sockets that packets are sent to.
const PACKETS_GO_TO: [&str; 2] = ["nfnetlink_queue", "nfnetlink_log"];

/// What `/proc/net/netlink` says of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// A list is being sent over it.
    listing: bool,
}

/// The line of the socket with this inode.
fn state(table: &str, inode: u64) -> Option<State> {
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let line = table.lines().skip(1).map(|l| l.split_ascii_whitespace().collect::<Vec<_>>());
    let line = line.into_iter().find(|l| l.get(9).and_then(|i| i.parse().ok()) == Some(inode))?;
    Some(State { listing: line[6] != "0" })
}

/// Saves a netlink socket.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let network = socket::network(fd)?;
    let table = capture.namespaces.known(namespace::identity(&network)?);
    let read = || PACKETS_GO_TO.map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/netfilter/{name}")).unwrap_or_default());
    let (listed, targets) =
        within(&places([(&network, Kind::Net)]), || (std::fs::read_to_string("/proc/thread-self/net/netlink"), read()))?;
    let state = state(&listed?, found.meta.ino());
    let own: NetlinkAddr = getsockname(fd.as_raw_fd())?;
    let protocol = socket::number(fd, libc::SO_PROTOCOL)?;
    let receives = protocol == libc::NETLINK_NETFILTER && targets.iter().any(|t| is_target(t, own.pid()));
    let here = table.is_some() || namespace::identity(&network)? == own_network()?;
    let events = socket::events(fd)?;
    let obstacle = match state {
        _ if !here => Some(("it lives in a network namespace that no process of the tree lives in", "dump a process above", false)),
        _ if receives => {
            Some(("packets are sent to it, which would be lost", "let the program unbind from its queue or group first", false))
        }
        // The list has those only that were bound, or have sent something; or it was closed in the meantime.
        None if own.pid() != 0 && capture.standing => Some(("it is not in the list of netlink sockets", "close it first", false)),
        Some(State { listing: true }) => Some(("a list is being sent over it", "let the program read it to its end first", true)),
        _ if events & libc::POLLIN != 0 => {
            Some(("messages wait in it, and only the kernel can send them", "let the program read them first", true))
        }
        _ if events & libc::POLLERR != 0 => Some(("an error waits to be told", "let the program read from it first", true)),
        _ => None,
    };
    if let Some((reason, advice, passes)) = obstacle {
        let reason = format!("netlink socket of protocol {protocol}: {reason}");
        if passes {
            capture.refuse_for_now(found.pid, found.object(), reason, advice);
        } else {
            capture.refuse(found.pid, found.object(), reason, advice);
        }
        return Ok(None);
    }
    let filter = match options::filter(fd) {
        Err(Errno::EACCES) => {
            capture.refuse(found.pid, found.object(), "a BPF program filters what it receives", "detach it first (SO_DETACH_BPF)");
            return Ok(None);
        }
        filter => filter?,
    };
    let peer: NetlinkAddr = getpeername(fd.as_raw_fd())?;
    let kind = socket::number(fd, libc::SO_TYPE)?;
    let on = |&name: &i32| socket::option(fd, SOL_NETLINK, name, 4).is_ok_and(|value| value.iter().any(|b| *b != 0));
    let netlink = Netlink {
        kind,
        protocol,
        network: table,
        port: own.pid(),
        groups: members(&socket::option(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, MOST_GROUPS / 8)?),
        peer: Some((peer.pid(), peer.groups())).filter(|peer| *peer != (0, 0)),
        own_options: SWITCHES.into_iter().filter(on).collect(),
        options: options::capture(fd, &options::New::of(libc::AF_NETLINK, kind)?),
        filter,
    };
    Ok(Some(FileKind::Netlink(Box::new(netlink))))
}

fn own_network() -> Result<(u64, u64)> {
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    Ok((own.dev(), own.ino()))
}

/// Whether a port is named as where packets go: number of the queue or group, port, and more.
fn is_target(table: &str, port: u32) -> bool {
    table.lines().any(|l| l.split_ascii_whitespace().nth(1).and_then(|p| p.parse().ok()) == Some(port))
}

/// The numbers in a map of groups: bit n is group n + 1.
fn members(map: &[u8]) -> Vec<u32> {
    let words = map.chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap_or_default()));
    words
        .enumerate()
        .flat_map(|(n, word)| (0..32).filter(move |bit| word & (1 << bit) != 0).map(move |bit| n as u32 * 32 + bit + 1))
        .collect()
}

impl Netlink {
    /// The socket again, in the network namespace of its own when that is not meio's. What is different is added to
    /// `warnings`; `what` names it there.
    pub fn make(&self, network: Option<&OwnedFd>, what: &str, warnings: &mut Vec<String>) -> Result<OwnedFd> {
        if !matches!(self.kind, libc::SOCK_RAW | libc::SOCK_DGRAM) || self.groups.len() > MOST_GROUPS {
            return Err(Error::image("image damaged: a netlink socket of an impossible type"));
        }
        let doing = || format!("making a netlink socket of protocol {}", self.protocol);
        let make = || socket::socket_of(libc::AF_NETLINK, self.kind, self.protocol);
        let made = within(&places(network.map(|n| (n, Kind::Net))), make).and_then(|made| made).context(doing)?;
        let fd = made.as_fd();
        options::unlock_buffers(fd);
        options::apply(fd, &self.options, what, warnings);
        for &name in self.own_options.iter().filter(|name| SWITCHES.contains(name)) {
            if let Err(e) = socket::set_option(fd, SOL_NETLINK, name, &1i32.to_ne_bytes()) {
                warnings.push(format!("{what}: option {name} of netlink(7) could not be set: {e}"));
            }
        }
        if let Some(filter) = &self.filter {
            filter.apply(fd)?;
        }
        if self.port != 0 {
            match bind(fd.as_raw_fd(), &NetlinkAddr::new(self.port, 0)) {
                Err(Errno::EADDRINUSE) => {
                    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context(doing)?;
                    warnings.push(format!("{what}: its port id {} is in use; it has another", self.port));
                }
                bound => bound.context(doing)?,
            }
        }
        for &group in &self.groups {
            if let Err(e) = socket::set_option(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group.to_ne_bytes()) {
                warnings.push(format!("{what}: it could not join group {group}: {e}"));
            }
        }
        if let Some((port, groups)) = self.peer {
            connect(fd.as_raw_fd(), &NetlinkAddr::new(port, groups)).context(doing)?;
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_inode() {
        let table = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n\
                     0000 0 77 00000011 0 0 0 2 0 1497\n0000 9 0 00000000 768 0 1 2 3 88\nbroken 1\n";
        assert_eq!(state(table, 1497), Some(State { listing: false }));
        assert_eq!(state(table, 88), Some(State { listing: true }));
        assert_eq!(state(table, 77), None);
    }

    #[test]
    fn maps_of_groups() {
        let map: Vec<u8> = [0x8000_0001u32, 0, 4].iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(members(&map), [1, 32, 67]);
        assert!(members(&[]).is_empty());
    }

    #[test]
    fn packets_go_to_ports() {
        assert!(is_target("    3  4242     0 2 65531     0     0        0  1\n", 4242));
        assert!(!is_target("    3  4242     0 2 65531     0     0        0  1\n", 3));
    }
}
