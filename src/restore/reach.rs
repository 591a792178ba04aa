//! Whether the connections and ports of a tree can be had on this machine: looked at before anything is made, all at once.
//!
//! Only sockets of meio's own network namespace are looked at. Those of the tree's come with their interfaces and addresses.

use crate::error::Refusal;
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::socket::inet::{Address, Inet};
use crate::resource::socket::{choice, listen::Listening, outside};
use crate::sys::netlink::Socket;
use crate::sys::sock_diag::inet::{self as diag, Entry as Seen};
use crate::sys::{inet, socket, tcp};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// Reason and advice.
type Obstacle = (String, String);
/// An address as it is found in any family.
type Plain = (IpAddr, u16);

fn plain(address: SocketAddr) -> Plain {
    (address.ip().to_canonical(), address.port())
}

/// Interface and mark of a socket, its own address, and that of the other end with its interface.
type Way = (Vec<u8>, Vec<u8>, Option<IpAddr>, IpAddr, u32);

/// What has been found out already: trees have thousands of connections between the same few machines.
#[derive(Default)]
struct Reach {
    /// Both ends of each connection of the tree.
    own: HashSet<(Plain, Plain)>,
    /// Addresses that are still to come, and how many bits of each name its network.
    arriving: HashMap<IpAddr, u8>,
    sockets: Vec<Seen>,
    connections: HashMap<(Plain, Plain), usize>,
    holders: Option<HashMap<u64, Vec<i32>>>,
    places: HashMap<(IpAddr, u32), Option<Errno>>,
    ways: HashMap<Way, Option<Errno>>,
    devices: HashMap<Vec<u8>, Option<Errno>>,
}

/// Adds what stands in the way. `arriving`: addresses that will be here when they are needed, and the length of their networks.
pub fn check(tree: &Tree, arriving: &[(IpAddr, u8)], refusals: &mut Vec<Refusal>) {
    let here = |inet: &Inet| inet.network.is_none();
    let own = choice::all_ends(&tree.files).into_iter().filter(|ends| ends.0.is_none()).map(|(_, near, far)| (near, far));
    let arriving = arriving.iter().copied().collect();
    let mut reach = Reach { own: own.collect(), arriving, ..Reach::default() };
    // An interface that comes with the tree may bring what is missing now.
    let furnished = tree.files.iter().any(|f| matches!(f.kind, FileKind::Tun(_)));
    for (id, file) in tree.files.iter().enumerate() {
        let mut found = Vec::new();
        let what = match &file.kind {
            FileKind::Tcp(tcp) if here(&tcp.inet) && tcp.end.is_none() => {
                found.extend(reach.whole(&tcp.inet, furnished));
                match tcp.reachable() {
                    true => found.extend(reach.connected(&tcp.inet)),
                    false if found.is_empty() => found.extend(reach.port(&tcp.inet, false)),
                    false => {}
                }
                tcp.called()
            }
            FileKind::Listening(listening) if here(&listening.inet) => {
                found.extend(reach.whole(&listening.inet, furnished));
                if found.is_empty() {
                    found.extend(reach.port(&listening.inet, true));
                    found.extend(reach.waiting(listening).filter(|_| !furnished));
                }
                listening.called()
            }
            FileKind::Udp(udp) if here(&udp.inet) => {
                found.extend(reach.whole(&udp.inet, furnished));
                if found.is_empty() {
                    found.extend(reach.port(&udp.inet, shares(tree, &udp.inet)));
                }
                udp.called()
            }
            FileKind::Raw(raw) if here(&raw.inet) => {
                found.extend(reach.whole(&raw.inet, furnished));
                "raw socket".into()
            }
            _ => continue,
        };
        refusals.extend(found.into_iter().map(|obstacle| refusal(tree, id as FileId, &what, obstacle)));
    }
}

fn refusal(tree: &Tree, id: FileId, what: &str, (reason, advice): Obstacle) -> Refusal {
    let holder = tree.processes.iter().find_map(|p| Some((p.pid, p.descriptors.iter().find(|d| d.file == id)?.fd)));
    let (pid, fd) = holder.unwrap_or_default();
    Refusal { pid, object: format!("fd {fd} ({what})"), reason, advice, ..Refusal::default() }
}

/// Whether several datagram sockets of the tree have the port of this one.
fn shares(tree: &Tree, inet: &Inet) -> bool {
    let same = |f: &&crate::resource::descriptor::OpenFile| matches!(&f.kind, FileKind::Udp(u) if u.inet.network.is_none() && u.inet.local.map(|l| l.port) == inet.local.map(|l| l.port));
    tree.files.iter().filter(same).nth(1).is_some()
}

/// An option that is not the one of a new socket.
fn option(inet: &Inet, level: i32, name: i32) -> Option<&[u8]> {
    inet.more.iter().find(|o| (o.level, o.name) == (level, name)).map(|o| o.value.as_slice())
}

fn device(inet: &Inet) -> Option<&[u8]> {
    option(inet, libc::SOL_SOCKET, libc::SO_BINDTODEVICE)
}

fn mark(inet: &Inet) -> Option<&[u8]> {
    inet.options.iter().find(|o| o.name == libc::SO_MARK).map(|o| o.value.as_slice())
}

/// Whether the socket may have an address that nobody has.
fn is_free(inet: &Inet) -> bool {
    const IPV6_FREEBIND: i32 = 78;
    let names = [
        (libc::IPPROTO_IP, libc::IP_FREEBIND),
        (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        (libc::IPPROTO_IPV6, IPV6_FREEBIND),
        (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    ];
    names.iter().any(|&(level, name)| option(inet, level, name).is_some_and(|v| v.iter().any(|b| *b != 0)))
}

/// A socket that says nothing to anybody.
fn probe(ip: IpAddr) -> nix::Result<OwnedFd> {
    socket::socket(if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, libc::SOCK_DGRAM)
}

/// Whether two addresses have their first `length` bits in common.
fn same_network(one: IpAddr, other: IpAddr, length: u8) -> bool {
    let bits = |differ: u128, all: u32| differ.leading_zeros().saturating_sub(128 - all) >= u32::from(length);
    match (one, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => bits(u128::from(a.to_bits() ^ b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => bits(a.to_bits() ^ b.to_bits(), 128),
        _ => false,
    }
}

fn readable(name: &[u8]) -> String {
    String::from_utf8_lossy(name.split(|b| *b == 0).next().unwrap_or_default()).escape_debug().to_string()
}

impl Reach {
    /// Its interface, its address and the way to the other end.
    fn whole(&mut self, inet: &Inet, furnished: bool) -> Option<Obstacle> {
        if furnished {
            return None;
        }
        self.device(inet).or_else(|| self.place(inet)).or_else(|| self.way(inet, inet.local, inet.peer?))
    }

    fn arrives(&self, ip: IpAddr) -> bool {
        self.arriving.contains_key(&ip.to_canonical())
    }

    /// Whether an address that arrives will bring the way to this one: both are of one network.
    fn brings_way(&self, ip: IpAddr) -> bool {
        self.arriving.iter().any(|(own, &length)| same_network(*own, ip.to_canonical(), length))
    }

    fn device(&mut self, inet: &Inet) -> Option<Obstacle> {
        let name = device(inet)?;
        let tried = || socket::set_option(probe([0, 0, 0, 0].into())?.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name);
        let error = *self.devices.entry(name.to_vec()).or_insert_with(|| tried().err());
        let name = readable(name);
        (error == Some(Errno::ENODEV)).then(|| {
            let advice = format!("make an interface of that name first: ip link add {name} …, or ip link set OTHER name {name}");
            (format!("it is bound to the interface {name}, which there is not here"), advice)
        })
    }

    fn place(&mut self, inet: &Inet) -> Option<Obstacle> {
        let local = inet.local.filter(|l| !l.ip.is_unspecified() && !is_free(inet) && !self.arrives(l.ip))?;
        let Address { ip, scope, .. } = local;
        let tried = || inet::bind(probe(ip)?.as_fd(), Address { port: 0, ..local }.into());
        match *self.places.entry((ip, scope)).or_insert_with(|| tried().err()) {
            Some(Errno::EADDRNOTAVAIL) => {
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                let advice = format!("give an interface the address first: ip address add {}/{bits} dev NAME", ip.to_canonical());
                Some((format!("it cannot have its address {}: no interface here has that", SocketAddr::from(local)), advice))
            }
            Some(Errno::ENODEV) => {
                let advice = "make the interface first: ip link lists those that are there with their numbers".to_owned();
                Some((format!("its address {ip} is of the interface number {scope}, which there is not here"), advice))
            }
            _ => None,
        }
    }

    fn way(&mut self, inet: &Inet, local: Option<Address>, peer: Address) -> Option<Obstacle> {
        let (device, mark) = (device(inet).unwrap_or_default(), mark(inet).unwrap_or_default());
        let from = local.filter(|l| !l.ip.is_unspecified() && !is_free(inet) && !self.arrives(l.ip));
        let tried = || {
            let fd = probe(peer.ip)?;
            for (name, value) in [(libc::SO_BINDTODEVICE, device), (libc::SO_MARK, mark)] {
                if !value.is_empty() {
                    socket::set_option(fd.as_fd(), libc::SOL_SOCKET, name, value)?;
                }
            }
            if let Some(from) = from {
                inet::bind(fd.as_fd(), Address { port: 0, ..from }.into())?;
            }
            inet::connect(fd.as_fd(), Address { port: peer.port.max(1), ..peer }.into())
        };
        let key = (device.to_vec(), mark.to_vec(), from.map(|f| f.ip), peer.ip, peer.scope);
        if self.brings_way(peer.ip) {
            return None;
        }
        let error = *self.ways.entry(key).or_insert_with(|| tried().err());
        let error = error.filter(|e| matches!(e, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN))?;
        let ip = peer.ip.to_canonical();
        let advice = format!("there must be a way to it before it can go on: ip route get {ip}, ip route add {ip} …");
        Some((format!("there is no way to {ip} from here ({})", error.desc()), advice))
    }

    fn waiting(&mut self, listening: &Listening) -> Option<Obstacle> {
        listening.waiting.iter().find_map(|w| {
            let inet = Inet { local: Some(w.local), ..listening.inet.clone() };
            let (reason, advice) = self.place(&inet).or_else(|| self.way(&inet, Some(w.local), w.peer))?;
            Some((format!("a connection from {} waits to be accepted: {reason}", SocketAddr::from(w.peer)), advice))
        })
    }

    /// All sockets that are there.
    fn look(&mut self) {
        if !self.sockets.is_empty() {
            return;
        }
        self.sockets = diag::sockets().unwrap_or_default();
        let held = |(_, s): &(usize, &Seen)| s.inode != 0 && s.protocol == libc::IPPROTO_TCP as u8 && s.state != tcp::LISTEN;
        let all = self.sockets.iter().enumerate().filter(held);
        self.connections = all.map(|(n, s)| ((plain(s.local), plain(s.peer)), n)).collect();
    }

    fn who(&mut self, inode: u64) -> String {
        let holders = self.holders.get_or_insert_with(|| outside::holders(&HashSet::new()));
        outside::describe(holders.get(&inode))
    }

    /// The connection itself.
    fn connected(&mut self, inet: &Inet) -> Option<Obstacle> {
        let (local, peer) = (SocketAddr::from(inet.local?), SocketAddr::from(inet.peer?));
        self.look();
        let inode = self.sockets.get(*self.connections.get(&(plain(local), plain(peer)))?)?.inode;
        let reason = format!("{} has a connection with the same addresses and ports", self.who(inode));
        Some((reason, "end that process first; it may be this very tree, restored before".into()))
    }

    /// Ends what an earlier restore that failed, or the tree itself, has left of the connections of the tree: whether there was such.
    fn sweep(&mut self) -> bool {
        let left = diag::remains().unwrap_or_default();
        let own = left.iter().filter(|s| self.own.contains(&(plain(s.local), plain(s.peer))));
        Socket::sock_diag().is_ok_and(|netlink| own.filter(|s| diag::destroy(&netlink, s).is_ok()).count() > 0)
    }

    /// Its port, for one that is bound.
    fn port(&mut self, inet: &Inet, shares: bool) -> Option<Obstacle> {
        let local = SocketAddr::from(inet.local.filter(|l| l.port != 0)?);
        let tried = || -> Result<Option<Errno>, ()> {
            let fd = inet.make("a socket", &mut Vec::new()).map_err(drop)?;
            if shares {
                socket::set_number(fd.as_fd(), libc::SO_REUSEADDR, 1).map_err(drop)?;
            }
            Ok(inet::bind(fd.as_fd(), local).err())
        };
        // What is impossible in other ways is told of where it is made.
        let first = tried();
        match if first == Ok(Some(Errno::EADDRINUSE)) && self.sweep() { tried() } else { first } {
            Ok(Some(Errno::EADDRINUSE)) => {}
            Ok(Some(Errno::EACCES)) => {
                let advice = "run meio as root, or lower sysctl net.ipv4.ip_unprivileged_port_start";
                return Some((format!("its port {} needs CAP_NET_BIND_SERVICE", local.port()), advice.into()));
            }
            _ => return None,
        }
        self.look();
        let mine = |s: &&Seen| i32::from(s.protocol) == inet.protocol && s.local.port() == local.port() && meets(s.local.ip(), local.ip());
        let there: Vec<Seen> = self.sockets.iter().filter(mine).cloned().collect();
        // Connections that have ended keep it only from some, which are told where they are made.
        let user = there.iter().find(|s| s.inode != 0)?;
        let what = match (i32::from(user.protocol), user.state) {
            (libc::IPPROTO_TCP, tcp::LISTEN) => "listens",
            (libc::IPPROTO_TCP, _) => "has connections",
            _ => "is bound",
        };
        Some((format!("its address {local} is in use: {} {what} there", self.who(user.inode)), "end that process first".into()))
    }
}

/// Whether two addresses of one port cannot be had by two sockets.
fn meets(a: IpAddr, b: IpAddr) -> bool {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    a == b || a.is_unspecified() || b.is_unspecified()
}
