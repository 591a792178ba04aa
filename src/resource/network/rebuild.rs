//! Makes what is in a network namespace again, in a fresh one.

use super::links::{Link, Outside, attribute as a};
use super::{ADDRESS, INET, INET6, Kinds, NEIGHBOUR, NEXTHOP, ROUTE, RULE, Record, Saved, links, read_tables, sysctl};
use crate::error::{Context, Error, Result};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::netlink::{Socket, put};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What is taken along from the network namespace of meio.
pub struct Prepared {
    namespace: File,
    socket: Socket,
}

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// The attributes of a message that is being written.
struct Message(Vec<u8>);

impl Message {
    /// `struct ifinfomsg`.
    fn link(index: i32, flags: u32, change: u32) -> Message {
        let mut head = vec![0u8; 4];
        head.extend_from_slice(&index.to_ne_bytes());
        head.extend_from_slice(&flags.to_ne_bytes());
        head.extend_from_slice(&change.to_ne_bytes());
        Message(head)
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Result<Message> {
        if put(&mut self.0, kind, value) { Ok(self) } else { Err(Error::image("image damaged: an attribute that is too long")) }
    }

    fn number(self, kind: u16, value: u32) -> Result<Message> {
        self.with(kind, &value.to_ne_bytes())
    }

    fn all(self, list: &[(u16, Bytes)]) -> Result<Message> {
        list.iter().try_fold(self, |message, (kind, Bytes(value))| message.with(*kind, value))
    }

    fn empty() -> Message {
        Message(Vec::new())
    }
}

impl Saved {
    /// Takes along what ends of interfaces need that lie where meio is. In meio, before anything is started.
    pub fn prepare(&self) -> Result<Prepared> {
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        let here = links::read(&socket).context(|| "reading the links here")?;
        for outside in self.links.iter().filter_map(|l| l.outside.as_ref()) {
            if !outside.bridge.is_empty() && !here.iter().any(|l| l.name == outside.bridge) {
                let message = format!("the bridge {}, to which {} belonged, is not there", outside.bridge, outside.name);
                return Err(Error::new(crate::error::Kind::NotFound, message).help(format!("ip link add {} type bridge", outside.bridge)));
            }
        }
        let namespace = File::open("/proc/self/ns/net").context(|| "opening the own network namespace")?;
        Ok(Prepared { namespace, socket })
    }

    /// Makes everything. In a process of its own that has entered the fresh namespace and the user namespace that owns it.
    pub fn rebuild(&self, prepared: &Prepared) -> Result<()> {
        let fresh = sysctl::read();
        // Nobody else can have an address here; waiting for an answer would only leave it unusable for a second.
        sysctl::set("ipv6/conf/all/accept_dad", "0");
        sysctl::set("ipv6/conf/default/accept_dad", "0");
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        let born = links::read(&socket).context(|| "reading links")?;
        let mut made: Vec<i32> = Vec::new();
        for link in &self.links {
            let doing = || format!("making the interface {}", link.name);
            if !made.contains(&link.index) && !born.iter().any(|b| b.name == link.name) {
                self.make_link(link, prepared, &socket).context(doing)?;
                made.push(link.index);
                made.push(if link.kind == "veth" { link.link as i32 } else { 0 });
            }
        }
        for link in &self.links {
            let known = born.iter().find(|b| b.name == link.name).map_or(link.index, |b| b.index);
            let set = configure(link, known)?;
            socket.change(libc::RTM_NEWLINK, 0, &set).context(|| format!("configuring the interface {}", link.name))?;
        }
        let made = links::read(&socket).context(|| "reading links")?;
        for (link, now) in self.links.iter().filter_map(|l| Some((l, made.iter().find(|m| m.name == l.name)?))) {
            adjust(link, now, &socket).context(|| format!("configuring the interface {}", link.name))?;
        }
        sysctl::write(&self.settings(|key| !key.ends_with("/accept_dad")), &muted(&fresh))?;
        for link in &self.links {
            let known = born.iter().find(|b| b.name == link.name).map_or(link.index, |b| b.index);
            let up = Message::link(known, link.flags, link.flags | 0x1 | 0x1000);
            socket.change(libc::RTM_NEWLINK, 0, &up.0).context(|| format!("starting the interface {}", link.name))?;
            if let Some(outside) = &link.outside {
                attach_outside(outside, prepared).context(|| format!("attaching {}", outside.name))?;
            }
        }
        let lists = [
            ("address", ADDRESS, &self.addresses),
            ("neighbour", NEIGHBOUR, &self.neighbours),
            ("nexthop", NEXTHOP, &self.nexthops),
            ("route", ROUTE, &self.routes),
            ("rule", RULE, &self.rules),
        ];
        for (what, kinds, wanted) in lists {
            self.make(what, kinds, wanted, &socket)?;
        }
        self.remove_others(&socket)?;
        sysctl::write(&self.sysctls, &fresh)
    }

    /// Number of the first interface.
    pub fn index(&self) -> Option<i32> {
        self.links.first().map(|l| l.index)
    }

    /// User and group that may attach to the first interface, which is of the tun driver.
    pub fn tun_owner(&self) -> (Option<u32>, Option<u32>) {
        let id = |kind: u16| {
            let found = self.links.first()?.data.iter().find(|d| d.0 == kind)?;
            crate::sys::netlink::u32_at(&found.1.0, 0)
        };
        (id(1), id(2))
    }

    /// Gives the first interface, which is there, its properties, its addresses and routes. What cannot be had is named in
    /// `warnings`.
    pub fn furnish(&self, warnings: &mut Vec<String>) -> Result<()> {
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        let Some(link) = self.links.first() else { return Ok(()) };
        let now = links::read(&socket).context(|| "reading links")?;
        let Some(index) = now.iter().find(|l| l.name == link.name).map(|l| l.index) else {
            return Err(Error::other(format!("{} is not there", link.name)));
        };
        socket.change(libc::RTM_NEWLINK, 0, &configure(link, index)?)?;
        for (key, value) in self.sysctls.iter().filter(|(key, _)| sysctl::is_of_interface(key, &link.name)) {
            sysctl::set(key, value);
        }
        socket.change(libc::RTM_NEWLINK, 0, &Message::link(index, link.flags, link.flags | 0x1 | 0x1000).0)?;
        let mut wanted = self.clone();
        wanted.move_to(link.index, index);
        let born = super::interface(&link.name)?.unwrap_or_default();
        let same = |a: &Record, b: &Record| (a.byte(0), a.get(1), a.get(2)) == (b.byte(0), b.get(1), b.get(2));
        for other in born.addresses.iter().filter(|a| !wanted.addresses.iter().any(|w| same(a, w))) {
            let _ = socket.change(ADDRESS.remove, 0, &other.message());
        }
        let lists =
            [("address", ADDRESS, &wanted.addresses), ("neighbour", NEIGHBOUR, &wanted.neighbours), ("route", ROUTE, &wanted.routes)];
        for (what, kinds, list) in lists {
            if let Err(e) = self.make(what, kinds, list, &socket) {
                warnings.push(format!("the interface {}: {}", link.name, e.message));
            }
        }
        Ok(())
    }

    /// The same for an interface that has another number.
    /// Makes again what of the addresses and routes of the first interface is not there any more, but for the address `without` and
    /// what needs it.
    pub fn complete(&self, without: Option<&[u8]>) -> Result<()> {
        const IFA_LOCAL: u16 = 2;
        const IFA_ADDRESS: u16 = 1;
        let socket = Socket::route().context(|| "opening a netlink socket")?;
        let is_it = |r: &&Record| without.is_some() && r.get(IFA_LOCAL).or(r.get(IFA_ADDRESS)) == without;
        let addresses: Vec<Record> = self.addresses.iter().filter(|r| !is_it(r)).cloned().collect();
        self.make("address", ADDRESS, &addresses, &socket)?;
        let routes = self.make("route", ROUTE, &self.routes, &socket);
        if without.is_some() { Ok(()) } else { routes }
    }

    fn move_to(&mut self, from: i32, to: i32) {
        const RTA_OIF: u16 = 4;
        if from == to {
            return;
        }
        for record in self.addresses.iter_mut().chain(&mut self.neighbours).filter(|r| r.head.0.len() >= 8) {
            record.head.0[4..8].copy_from_slice(&to.to_ne_bytes());
        }
        for (_, Bytes(value)) in self.routes.iter_mut().flat_map(|r| &mut r.attributes).filter(|a| a.0 == RTA_OIF) {
            *value = to.to_ne_bytes().to_vec();
        }
    }

    fn settings(&self, want: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        self.sysctls.iter().filter(|(key, _)| want(key)).cloned().collect()
    }

    fn make_link(&self, link: &Link, prepared: &Prepared, socket: &Socket) -> Result<()> {
        if link.kind == "tun" {
            return tun(link);
        }
        // A kernel does not even take the value that a switch has when it lacks what it switches.
        let mut data = if link.kind == "bridge" { Message::empty() } else { Message::empty().all(&link.data)? };
        if link.kind == "veth" {
            const PEER: u16 = 1;
            let peer = match (&link.outside, self.links.iter().find(|l| l.index as u32 == link.link)) {
                (Some(outside), _) => Message::link(0, 0, 0)
                    .with(a::NAME, &zero_ended(&outside.name))?
                    .with(a::ADDRESS, &outside.address)?
                    .number(a::MTU, outside.mtu)?
                    .number(a::NAMESPACE, prepared.namespace.as_raw_fd() as u32)?,
                (None, Some(peer)) => {
                    Message::link(peer.index, 0, 0).with(a::NAME, &zero_ended(&peer.name))?.with(a::ADDRESS, &peer.address)?
                }
                (None, None) => return Err(Error::image("image damaged: a veth without its other end")),
            };
            data = Message::empty().with(PEER, &peer.0)?;
        }
        let info = Message::empty().with(a::INFO_KIND, link.kind.as_bytes())?.with(a::INFO_DATA, &data.0)?;
        let mut message = Message::link(link.index, 0, 0).with(a::NAME, &zero_ended(&link.name))?.with(a::INFO, &info.0)?;
        // A bridge takes that of a port for its own, unless it was given one.
        if !link.address.is_empty() && link.kind != "bridge" {
            message = message.with(a::ADDRESS, &link.address)?;
        }
        if link.link != 0 && link.kind != "veth" {
            message = message.number(a::LINK, link.link)?;
        }
        // The other end of a pair whose namespace has just ended goes a moment later.
        let begin = Instant::now();
        loop {
            match socket.change(libc::RTM_NEWLINK, CREATE, &message.0) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) && link.outside.is_some() && begin.elapsed() < Duration::from_secs(3) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return Ok(done?),
            }
        }
    }

    /// Makes what is not there. What needs another one of the list is tried again after it.
    fn make(&self, what: &str, kinds: Kinds, wanted: &[Record], socket: &Socket) -> Result<()> {
        let there = [super::table(socket, kinds, INET, 0)?, super::table(socket, kinds, INET6, 0)?].concat();
        let mut left: Vec<&Record> = wanted.iter().filter(|r| !there.contains(r)).collect();
        if kinds.make == ADDRESS.make {
            // A new address of IPv6 is put before the others of its scope, one of IPv4 behind them.
            let six = left.iter().position(|r| r.byte(0) == INET6).unwrap_or(left.len());
            left[six..].reverse();
        }
        while !left.is_empty() {
            let mut failed = Vec::new();
            let mut error = None;
            let before = left.len();
            for record in left {
                // Routes of IPv4 that differ only in what is no key are put behind each other.
                let flags = if kinds.make == ROUTE.make { libc::NLM_F_CREATE | libc::NLM_F_APPEND } else { libc::NLM_F_CREATE };
                let flags = if kinds.make == RULE.make { CREATE } else { flags };
                match socket.change(kinds.make, flags, &record.message()) {
                    Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                        failed.push(record);
                        error = Some(e);
                    }
                    _ => {}
                }
            }
            if let Some(e) = error.filter(|_| failed.len() == before) {
                return Err(e).context(|| format!("making a {what} ({:?})", failed[0]));
            }
            left = failed;
        }
        Ok(())
    }

    /// Takes away what the kernel made by itself and the namespace did not have.
    fn remove_others(&self, socket: &Socket) -> Result<()> {
        let now = read_tables(socket).context(|| "reading the namespace again")?;
        let address = |r: &Record| (r.head.0.clone(), r.get(1).map(<[u8]>::to_vec), r.get(2).map(<[u8]>::to_vec));
        let key = |r: &Record| {
            let (mut head, local, far) = address(r);
            head[2] = 0; // flags
            (head, local, far)
        };
        let known: Vec<_> = self.addresses.iter().map(key).collect();
        let mut others: Vec<(Kinds, &Record)> = Vec::new();
        others.extend(now.addresses.iter().filter(|r| !known.contains(&key(r))).map(|r| (ADDRESS, r)));
        others.extend(now.routes.iter().filter(|r| !self.routes.contains(r)).map(|r| (ROUTE, r)));
        others.extend(now.rules.iter().filter(|r| !self.rules.contains(r)).map(|r| (RULE, r)));
        for (kinds, record) in others {
            match socket.change(kinds.remove, 0, &record.message()) {
                // With an address its routes have gone.
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)) => {
                    return Err(e).context(|| format!("removing what was not there ({record:?})"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The same settings with those that are switched off for the time of the work.
fn muted(fresh: &sysctl::Values) -> sysctl::Values {
    let off = |(key, value): (&String, &String)| (key.clone(), if key.ends_with("/accept_dad") { "0".into() } else { value.clone() });
    fresh.iter().map(off).collect()
}

fn zero_ended(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Everything of an interface but that it runs.
fn configure(link: &Link, index: i32) -> Result<Vec<u8>> {
    let mut message = Message::link(index, 0, 0).number(a::MTU, link.mtu)?.number(a::QUEUE_LENGTH, link.queue_length)?;
    if link.group != 0 {
        message = message.number(a::GROUP, link.group)?;
    }
    if !link.alias.is_empty() {
        message = message.with(a::ALIAS, link.alias.as_bytes())?;
    }
    if !matches!(link.kind.as_str(), "" | "bridge") && !link.address.is_empty() {
        message = message.with(a::ADDRESS, &link.address)?;
    }
    if link.master != 0 {
        message = message.number(a::MASTER, link.master)?;
    }
    Ok(message.0)
}

/// Sets what a bridge, or a port of one, is not born with; one at a time.
fn adjust(link: &Link, now: &Link, socket: &Socket) -> Result<()> {
    if link.kind == "bridge" && link.address != now.address {
        let message = Message::link(link.index, 0, 0).with(a::ADDRESS, &link.address)?;
        socket.change(libc::RTM_NEWLINK, 0, &message.0).context(|| "setting the address of a bridge")?;
    }
    let bridge = if link.kind == "bridge" { &link.data[..] } else { &[] };
    for (kinds, wanted, now) in
        [((a::INFO_KIND, a::INFO_DATA), bridge, &now.data), ((a::INFO_SLAVE_KIND, a::INFO_SLAVE_DATA), &link.port[..], &now.port)]
    {
        for one in wanted.iter().filter(|d| !now.contains(d)) {
            let data = Message::empty().with(one.0, &one.1.0)?;
            let info = Message::empty().with(kinds.0, b"bridge")?.with(kinds.1, &data.0)?;
            let message = Message::link(link.index, 0, 0).with(a::INFO, &info.0)?;
            socket.change(libc::RTM_NEWLINK, 0, &message.0).context(|| format!("setting {} of a bridge", one.0))?;
        }
    }
    Ok(())
}

/// Puts the end that lies where meio is into its bridge, and starts it.
fn attach_outside(outside: &Outside, prepared: &Prepared) -> Result<()> {
    let here = links::read(&prepared.socket)?;
    let index = |name: &str| here.iter().find(|l| l.name == name).map(|l| l.index);
    let Some(own) = index(&outside.name) else { return Err(Error::other(format!("{} is not there", outside.name))) };
    let mut message = Message::link(own, outside.flags, outside.flags | 1);
    if let Some(bridge) = index(&outside.bridge) {
        message = message.number(a::MASTER, bridge as u32)?;
    }
    Ok(prepared.socket.change(libc::RTM_NEWLINK, 0, &message.0)?)
}

/// A persistent tun or tap interface.
fn tun(link: &Link) -> Result<()> {
    let byte = |kind: u16| link.data.iter().find(|d| d.0 == kind).and_then(|d| d.1.0.first().copied()).unwrap_or(0);
    let id = |kind: u16| link.data.iter().find(|d| d.0 == kind).and_then(|d| crate::sys::netlink::u32_at(&d.1.0, 0));
    let mut flags = i32::from(byte(3)); // IFLA_TUN_TYPE: IFF_TUN or IFF_TAP
    flags |= if byte(4) == 0 { libc::IFF_NO_PI } else { 0 };
    flags |= if byte(5) != 0 { libc::IFF_VNET_HDR } else { 0 };
    flags |= if byte(7) != 0 { libc::IFF_MULTI_QUEUE } else { 0 };
    crate::sys::tun::make(&link.name, link.index, flags as i16, id(1), id(2)).context(|| "making it with /dev/net/tun")
}
