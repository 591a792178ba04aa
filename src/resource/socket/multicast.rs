//! Groups that a socket of the internet families has joined.
//!
//! The kernel lists the groups of interfaces, not those of sockets; but it says of a socket which sources of a given group on a
//! given interface it hears (`MCAST_MSFILTER`), and that it has not joined it. Asked for each group of each interface it
//! thereby tells all.

use crate::error::{Error, Kind, Result};
use crate::resource::capture::Capture;
use crate::sys::namespace::{self, places, within};
use crate::sys::{datagram, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// A group that a socket has joined on one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// Name of the interface.
    pub interface: String,
    /// Address of the interface (IPv4), by which the group may have been joined and may be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// It hears `sources` only; else all but these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
    /// Senders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpAddr>,
}

/// A group that somebody has joined on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    group: IpAddr,
    interface: String,
    index: u32,
}

const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_MSFILTER: i32 = 48;
/// `struct group_filter` up to its list of sources, each of which is a `struct sockaddr_storage`.
const HEAD: usize = 144;
const STORAGE: usize = 128;
const INCLUDE: u32 = 1;
/// More than `igmp_max_msf` allows on any machine.
const MOST_SOURCES: usize = 4096;

/// All groups of the network namespace that the caller lives in, but for those that only the kernel itself has joined.
pub fn joined() -> Vec<Joined> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    [of_igmp(&read("igmp")), of_igmp6(&read("igmp6"))].concat()
}

/// The groups of the network namespace of a socket, which is the one of this number in the tree's table.
pub fn known(fd: BorrowedFd<'_>, network: Option<u32>, capture: &mut Capture) -> Result<Rc<Vec<Joined>>> {
    if let Some(known) = capture.groups.get(&network) {
        return Ok(known.clone());
    }
    let found = match network {
        Some(_) => within(&places([(&socket::network(fd)?, namespace::Kind::Net)]), joined)?,
        None => joined(),
    };
    Ok(capture.groups.entry(network).or_insert(Rc::new(found)).clone())
}

/// `/proc/net/igmp`: a line for each interface, and indented below it one for each group.
fn of_igmp(text: &str) -> Vec<Joined> {
    let mut found = Vec::new();
    let mut interface = None;
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if !line.starts_with(char::is_whitespace) {
            interface = words.first().and_then(|n| n.parse().ok()).zip(words.get(1).map(|n| n.trim_end_matches(':').to_owned()));
            continue;
        }
        let (Some((index, name)), [group, users, ..]) = (&interface, words.as_slice()) else { continue };
        let Ok(group) = u32::from_str_radix(group, 16).map(|g| Ipv4Addr::from(g.to_ne_bytes())) else { continue };
        if group != Ipv4Addr::new(224, 0, 0, 1) || *users != "1" {
            found.push(Joined { group: group.into(), interface: name.clone(), index: *index });
        }
    }
    found
}

/// `/proc/net/igmp6`: index, interface, group, users.
fn of_igmp6(text: &str) -> Vec<Joined> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let group = Ipv6Addr::from(u128::from_str_radix(words.get(2)?, 16).ok()?);
        let all_nodes = [0xff01, 0xff02].map(|scope| Ipv6Addr::new(scope, 0, 0, 0, 0, 0, 0, 1)).contains(&group);
        let joined = Joined { group: group.into(), interface: (*words.get(1)?).to_owned(), index: words.first()?.parse().ok()? };
        (!all_nodes || words.get(3) != Some(&"1")).then_some(joined)
    };
    text.lines().filter_map(line).collect()
}

/// Those of the groups that a socket of family `domain` is in.
pub fn capture(fd: BorrowedFd<'_>, domain: i32, joined: &[Joined]) -> Result<Vec<Membership>> {
    let mut found = Vec::new();
    for j in joined.iter().filter(|j| domain == libc::AF_INET6 || j.group.is_ipv4()) {
        let Some((only, mut sources)) = heard(fd, j)? else { continue };
        sources.sort();
        let address = j.group.is_ipv4().then(|| datagram::interface_address(fd, &j.interface).ok()).flatten();
        found.push(Membership { group: j.group, interface: j.interface.clone(), address, only, sources });
    }
    // The kernel's own order is that in which they were joined, backwards.
    found.sort_by(|a, b| (a.group, &a.interface).cmp(&(b.group, &b.interface)));
    Ok(found)
}

/// Which sources of a group a socket hears: only these, or all but these. `None` when it has not joined the group.
fn heard(fd: BorrowedFd<'_>, joined: &Joined) -> Result<Option<(bool, Vec<IpAddr>)>> {
    let mut room = 16;
    loop {
        let mut filter = joined.index.to_ne_bytes().to_vec();
        filter.resize(8, 0);
        filter.extend(storage(joined.group));
        filter.extend([0; 4]);
        filter.extend((room as u32).to_ne_bytes());
        filter.resize(HEAD + room * STORAGE, 0);
        match datagram::ask(fd, level(joined.group), MCAST_MSFILTER, &mut filter) {
            // Not a member; an interface that is gone; an address family that this socket does not do.
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::ENOPROTOOPT | Errno::EINVAL) => return Ok(None),
            asked => asked?,
        }
        let word = |at: usize| filter.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let count = word(HEAD - 4) as usize;
        if count > room && room < MOST_SOURCES {
            room = count.min(MOST_SOURCES);
            continue;
        }
        let sources = filter.get(HEAD..).unwrap_or_default().chunks_exact(STORAGE).take(count);
        let sources = sources.filter_map(|s| datagram::address(s).map(|s| s.ip()));
        return Ok(Some((word(HEAD - 8) == INCLUDE, sources.collect())));
    }
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

/// `struct sockaddr_storage`.
fn storage(ip: IpAddr) -> Vec<u8> {
    let mut bytes = datagram::encode(SocketAddr::new(ip, 0));
    bytes.resize(STORAGE, 0);
    bytes
}

impl Membership {
    /// Joins the group again.
    pub fn join(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let index = datagram::interface_index(fd, &self.interface).map_err(|e| {
            let message = format!("the group {} cannot be joined again on {}: {e}", self.group, self.interface);
            Error::new(Kind::NotFound, message).help(format!("bring the interface {} back", self.interface))
        })?;
        let failed = |e: Errno| Error::from(e).context(format!("joining the group {} on {}", self.group, self.interface));
        let level = level(self.group);
        if !self.only {
            let (name, request) = match self.group {
                // struct ip_mreqn
                IpAddr::V4(group) => {
                    let address = self.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
                    (libc::IP_ADD_MEMBERSHIP, [&group.octets()[..], &address.octets(), &index.to_ne_bytes()].concat())
                }
                IpAddr::V6(group) => (libc::IPV6_ADD_MEMBERSHIP, [&group.octets()[..], &index.to_ne_bytes()].concat()),
            };
            socket::set_option(fd, level, name, &request).map_err(failed)?;
        }
        // struct group_source_req
        for &source in &self.sources {
            let mut request = index.to_ne_bytes().to_vec();
            request.resize(8, 0);
            request.extend(storage(self.group));
            request.extend(storage(source));
            let name = if self.only { MCAST_JOIN_SOURCE_GROUP } else { MCAST_BLOCK_SOURCE };
            socket::set_option(fd, level, name, &request).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn lists_of_groups() {
        let four = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n2\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     2 0:00000000\t\t0\nbroken\n\t\t\t\tzz\n";
        let found = of_igmp(four);
        let expected = |group: &str| Joined { group: group.parse().unwrap(), interface: "eth0".into(), index: 2 };
        assert_eq!(found, [expected("224.0.0.251"), expected("224.0.0.1")]);
        let six = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                   2    eth0            ff0200000000000000000000000000fb     1 00000004 0\nbroken\n";
        assert_eq!(of_igmp6(six), [expected("ff02::fb")]);
    }

    #[test]
    fn what_is_joined_is_seen_and_joined_again() {
        namespace::fresh_network(|| {
            if !std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|s| s.success()) {
                return;
            }
            let [a, b] = [0, 1].map(|_| UdpSocket::bind("[::]:0").unwrap());
            let [c, d] = [0, 1].map(|_| UdpSocket::bind("0.0.0.0:0").unwrap());
            a.join_multicast_v6(&"ff15::77".parse().unwrap(), 1).unwrap();
            let sources = |list: &[&str]| list.iter().map(|s| s.parse().unwrap()).collect::<Vec<IpAddr>>();
            let on = |group: &str, only, list: &[&str]| Membership {
                group: group.parse().unwrap(),
                interface: "lo".into(),
                address: group.parse::<Ipv4Addr>().ok().map(|_| Ipv4Addr::LOCALHOST),
                only,
                sources: sources(list),
            };
            let six = [on("ff15::77", false, &[]), on("ff15::78", true, &["2001:db8::1", "2001:db8::2"])];
            six[1].join(a.as_fd()).unwrap();
            let four = [on("239.1.2.3", false, &["192.0.2.1"]), on("239.1.2.4", true, &["192.0.2.7"]), on("239.1.2.5", false, &[])];
            four.iter().for_each(|m| m.join(c.as_fd()).unwrap());
            let sorted = |fd: BorrowedFd<'_>, domain| capture(fd, domain, &joined()).unwrap();
            assert_eq!(sorted(a.as_fd(), libc::AF_INET6), six);
            assert_eq!(sorted(c.as_fd(), libc::AF_INET), four);
            assert_eq!(sorted(b.as_fd(), libc::AF_INET6), []);
            assert_eq!(sorted(d.as_fd(), libc::AF_INET), []);
            // Left by the interface's address.
            c.leave_multicast_v4(&"239.1.2.5".parse().unwrap(), &Ipv4Addr::LOCALHOST).unwrap();
        })
        .unwrap();
    }
}
