//! Network namespaces (network_namespaces(7)): interfaces, addresses, routes, rules, neighbours, sysctls.
//!
//! What the kernel tells of an address or a route in rtnetlink(7) is what it takes to make it again; such records are
//! kept as they are, without what changes by itself.

mod links;
mod rebuild;
mod sysctl;
#[cfg(test)]
mod tests;

use super::capture::Capture;
use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::sys::namespace::{self, Kind};
use crate::sys::netlink::{Socket, attributes, put, u16_at, u32_at};
use crate::sys::nft;
use links::Link;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is in a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Saved {
    /// The name by which it outlives its processes: ip-netns(8).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Interfaces, each after those that it stands on.
    pub links: Vec<Link>,
    /// Addresses, `struct ifaddrmsg`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Record>,
    /// Nexthop objects, `struct nhmsg`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nexthops: Vec<Record>,
    /// Routes of all tables, `struct rtmsg`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Record>,
    /// Routing rules, `struct fib_rule_hdr`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Record>,
    /// Permanent neighbours and proxies, `struct ndmsg`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Record>,
    /// Files below `/proc/sys/net` that differ from those of a fresh namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<(String, String)>,
}

/// One object as rtnetlink(7) tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The structure at its beginning.
    pub head: Bytes,
    /// Attributes: type and value.
    pub attributes: Vec<(u16, Bytes)>,
}

/// Where ip-netns(8) binds network namespaces to their names.
const NAMES: &str = "/run/netns";

/// The name of a network namespace, empty when it has none.
fn name_of(fd: &OwnedFd) -> Result<String> {
    let identity = namespace::identity(fd)?;
    let names = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    let its = |entry: &std::fs::DirEntry| std::fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == identity);
    Ok(names.filter(its).find_map(|entry| entry.file_name().into_string().ok()).unwrap_or_default())
}

impl Saved {
    /// The namespace itself, where one of its name is there: it has outlived its processes, or somebody has made it for them.
    ///
    /// # Errors
    /// When it lacks an interface.
    pub fn there(&self) -> Result<Option<OwnedFd>> {
        if self.name.is_empty() || self.name.contains('/') || self.name.starts_with('.') {
            return Ok(None);
        }
        let Some(fd) = namespace::network_at(&Path::new(NAMES).join(&self.name)) else { return Ok(None) };
        let doing = || format!("looking into the network namespace {}", self.name);
        let read = || Socket::route().and_then(|socket| links::read(&socket));
        let links = namespace::within(&namespace::places([(&fd, Kind::Net)]), read).context(doing)?.context(doing)?;
        match self.links.iter().find(|l| links.iter().all(|there| there.name != l.name)) {
            Some(missing) => {
                let reason = format!("the network namespace {} is there without its interface {}", self.name, missing.name);
                let help = format!("give it that interface, or let it be made anew: ip netns delete {}", self.name);
                Err(Error::new(Failure::NotFound, reason).help(help))
            }
            None => Ok(Some(fd)),
        }
    }

    /// Whether some descriptor of a tun interface is detached for a while.
    pub fn has_idle_queues(&self) -> bool {
        self.links.iter().any(|l| l.idle_queues)
    }
}

impl Record {
    /// Out of a message whose structure has `head` bytes.
    fn parse(message: &[u8], head: usize) -> Option<Record> {
        let (head, rest) = message.split_at_checked(head)?;
        let attributes = attributes(rest).map(|(kind, value)| (kind, Bytes(value.to_vec()))).collect();
        Some(Record { head: Bytes(head.to_vec()), attributes })
    }

    /// The message.
    fn message(&self) -> Vec<u8> {
        let mut message = self.head.0.clone();
        for (kind, Bytes(value)) in &self.attributes {
            put(&mut message, *kind, value);
        }
        message
    }

    fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|a| a.0 == kind).map(|a| a.1.0.as_slice())
    }

    fn without(&mut self, kinds: &[u16]) {
        self.attributes.retain(|a| !kinds.contains(&a.0));
    }

    fn byte(&self, at: usize) -> u8 {
        self.head.0.get(at).copied().unwrap_or(0)
    }
}

/// A table of the kernel: how it is asked for, made and taken away, and the size of its structure.
#[derive(Clone, Copy)]
struct Kinds {
    make: u16,
    remove: u16,
    ask: u16,
    head: usize,
}

const ADDRESS: Kinds = Kinds { make: libc::RTM_NEWADDR, remove: libc::RTM_DELADDR, ask: libc::RTM_GETADDR, head: 8 };
const ROUTE: Kinds = Kinds { make: libc::RTM_NEWROUTE, remove: libc::RTM_DELROUTE, ask: libc::RTM_GETROUTE, head: 12 };
const NEIGHBOUR: Kinds = Kinds { make: libc::RTM_NEWNEIGH, remove: libc::RTM_DELNEIGH, ask: libc::RTM_GETNEIGH, head: 12 };
const RULE: Kinds = Kinds { make: libc::RTM_NEWRULE, remove: libc::RTM_DELRULE, ask: libc::RTM_GETRULE, head: 12 };
const NEXTHOP: Kinds = Kinds { make: 104, remove: 105, ask: 106, head: 8 };
const INET: u8 = libc::AF_INET as u8;
const INET6: u8 = libc::AF_INET6 as u8;

/// All objects of a kind and family, without what changes by itself.
fn table(socket: &Socket, kinds: Kinds, family: u8, flags: u8) -> io::Result<Vec<Record>> {
    let mut head = vec![0u8; kinds.head];
    head[0] = family;
    if kinds.ask == NEIGHBOUR.ask {
        head[10] = flags;
    }
    let found = match socket.dump(kinds.ask, &head) {
        // A kernel without this table, or this family.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => Vec::new(),
        found => found?,
    };
    let records = found.iter().filter_map(|message| Record::parse(message, kinds.head)).filter(|r| r.byte(0) == family);
    Ok(records.filter_map(|record| lasting(record, kinds)).collect())
}

/// Takes away what changes by itself; `None` for what the kernel makes and drops as it likes.
fn lasting(mut record: Record, kinds: Kinds) -> Option<Record> {
    if kinds.ask == ADDRESS.ask {
        const IFA_CACHEINFO: u16 = 6;
        const IFA_FLAGS: u16 = 8;
        const TENTATIVE: u8 = 0x40;
        for (kind, Bytes(value)) in &mut record.attributes {
            if *kind == IFA_CACHEINFO && value.len() == 16 {
                value[8..].fill(0); // when it was made and changed
            } else if *kind == IFA_FLAGS && !value.is_empty() {
                value[0] &= !TENTATIVE;
            }
        }
        record.head.0[2] &= !TENTATIVE;
    } else if kinds.ask == ROUTE.ask {
        const RTM_F_CLONED: u32 = 0x200;
        const RTA_NH_ID: u16 = 30;
        let flags = u32_at(&record.head.0, 8)?;
        if flags & RTM_F_CLONED != 0 {
            return None;
        }
        let kept = flags & 0x4; // RTNH_F_ONLINK; others tell how the route is now
        record.head.0[8..12].copy_from_slice(&kept.to_ne_bytes());
        record.without(&[12]); // RTA_CACHEINFO
        if record.get(RTA_NH_ID).is_some() {
            record.without(&[4, 5, 9, 18]); // the same again, expanded: RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA
        }
        // Local and broadcast routes that come with an address.
        if record.byte(4) == libc::RT_TABLE_LOCAL && record.byte(5) == libc::RTPROT_KERNEL {
            return None;
        }
        if record.byte(7) == libc::RTN_MULTICAST && record.byte(5) == libc::RTPROT_KERNEL {
            return None;
        }
    } else if kinds.ask == NEIGHBOUR.ask {
        const NUD_PERMANENT: u16 = 0x80;
        const NTF_PROXY: u8 = 0x08;
        if u16_at(&record.head.0, 8)? != NUD_PERMANENT && record.byte(10) & NTF_PROXY == 0 {
            return None;
        }
        record.without(&[3, 4]); // NDA_CACHEINFO, NDA_PROBES
    } else if kinds.ask == NEXTHOP.ask {
        record.head.0[1] = 0; // its scope follows from the gateway, and must not be told
        record.head.0[4] &= 0x4; // RTNH_F_ONLINK; other flags tell how it is now
    } else if kinds.ask == RULE.ask {
        record.without(&[18]); // padding
    }
    Some(record)
}

/// All that is looked at in one namespace.
fn read_tables(socket: &Socket) -> io::Result<Saved> {
    let both = |kinds: Kinds| -> io::Result<Vec<Record>> { Ok([table(socket, kinds, INET, 0)?, table(socket, kinds, INET6, 0)?].concat()) };
    const NTF_PROXY: u8 = 0x08;
    let proxies = [table(socket, NEIGHBOUR, INET, NTF_PROXY)?, table(socket, NEIGHBOUR, INET6, NTF_PROXY)?].concat();
    // Where the order means nothing, it is the order of the bytes.
    let key = |r: &Record| (r.head.0.clone(), r.message());
    let mut neighbours = [both(NEIGHBOUR)?, proxies].concat();
    neighbours.sort_by_key(key);
    let mut routes = table(socket, ROUTE, INET6, 0)?;
    routes.sort_by_key(key);
    Ok(Saved {
        name: String::new(),
        links: links::read(socket)?,
        addresses: both(ADDRESS)?,
        nexthops: [table(socket, NEXTHOP, INET, 0)?, table(socket, NEXTHOP, INET6, 0)?, table(socket, NEXTHOP, 0, 0)?].concat(),
        routes: [table(socket, ROUTE, INET, 0)?, routes].concat(),
        rules: both(RULE)?,
        neighbours,
        sysctls: Vec::new(),
    })
}

/// An interface of the network namespace that the caller lives in, with its addresses, what leads through it, and its settings.
pub fn interface(name: &str) -> Result<Option<Saved>> {
    Ok(connected(name)?.map(|saved| Saved { sysctls: sysctl::of_interface(name), ..saved }))
}

/// The same without its settings, which are hundreds of files.
pub fn connected(name: &str) -> Result<Option<Saved>> {
    let socket = Socket::route().context(|| "opening a netlink socket")?;
    let doing = || format!("reading the interface {name}");
    let Some(link) = links::read(&socket).context(doing)?.into_iter().find(|l| l.name == name) else { return Ok(None) };
    let own = read_tables(&socket).context(doing)?;
    let (index, of) = (link.index as u32, |records: Vec<Record>, at: usize| -> Vec<Record> {
        records.into_iter().filter(|r| u32_at(&r.head.0, at) == Some(link.index as u32)).collect()
    });
    const RTA_OIF: u16 = 4;
    let through = |r: &Record| r.get(RTA_OIF).and_then(|v| u32_at(v, 0)) == Some(index);
    Ok(Some(Saved {
        addresses: of(own.addresses, 4),
        neighbours: of(own.neighbours, 4),
        routes: own.routes.into_iter().filter(through).collect(),
        links: vec![link],
        ..Saved::default()
    }))
}

/// Saves the network namespace of a process.
pub fn capture(pid: i32, capture: &mut Capture) -> Result<Saved> {
    let doing = || format!("reading the network namespace of process {pid}");
    let fd = namespace::open(pid, "net").context(doing)?;
    let inside = namespace::places([(&fd, Kind::Net)]);
    let look = || -> io::Result<(Saved, sysctl::Values, NotKept)> {
        let socket = Socket::route()?;
        Ok((read_tables(&socket)?, sysctl::read(), not_kept(&socket)?))
    };
    let (mut saved, sysctls, others) = namespace::within(&inside, look).context(doing)?.context(doing)?;
    for (object, reason) in others {
        capture.refuse(pid, format!("network namespace: {object}"), reason, "remove it first");
    }
    let here = links::read(&Socket::route()?).context(|| "reading the links here")?;
    links::complete(pid, &mut saved.links, &here, capture);
    saved.sysctls = sysctl::differing(&sysctls, &sysctl::fresh()?);
    saved.name = name_of(&fd)?;
    Ok(saved)
}

/// Objects and reasons.
type NotKept = Vec<(&'static str, &'static str)>;

/// What a network namespace holds that is not kept.
fn not_kept(route: &Socket) -> io::Result<NotKept> {
    let mut found = Vec::new();
    // nfnetlink: subsystem 10 (nftables), NFT_MSG_GETTABLE.
    const NFT_GETTABLE: u16 = 10 << 8 | 1;
    let tables = Socket::netfilter().and_then(|s| s.dump(NFT_GETTABLE, &[0; 4])).unwrap_or_default();
    // Network locks come and go with dumps.
    if tables.iter().any(|t| nft::table(t).is_none_or(|t| !t.name.starts_with(nft::OURS))) {
        found.push(("nftables", "a packet filter is not kept"));
    }
    for name in ["ip_tables_names", "ip6_tables_names", "arp_tables_names"] {
        if std::fs::read(format!("/proc/thread-self/net/{name}")).is_ok_and(|names| !names.is_empty()) {
            found.push(("iptables", "a packet filter is not kept"));
        }
    }
    // A queue that was not made by the kernel itself has a handle; `struct tcmsg` has it at byte 8.
    let queues = route.dump(libc::RTM_GETQDISC, &[0; 20])?;
    if queues.iter().any(|q| u32_at(q, 8).is_some_and(|handle| handle != 0)) {
        found.push(("queueing discipline", "traffic control is not kept"));
    }
    Ok(found)
}
