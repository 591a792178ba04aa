//! What every socket of the families `AF_INET` and `AF_INET6` has: where it lives, its addresses, its options.

use super::options::{self, Filter, SocketOption};
use crate::error::{Context, Error, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::Found;
use crate::sys::namespace::{self, Kind, places, within};
use crate::sys::{inet, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// An address with its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// IPv4 or IPv6.
    pub ip: IpAddr,
    /// Port, or the protocol of a raw socket.
    pub port: u16,
    /// `sin6_flowinfo`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flow: u32,
    /// `sin6_scope_id`, the number of an interface.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scope: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let (flow, scope) = match address {
            SocketAddr::V4(_) => (0, 0),
            SocketAddr::V6(v6) => (v6.flowinfo(), v6.scope_id()),
        };
        Address { ip: address.ip(), port: address.port(), flow, scope }
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        match address.ip {
            IpAddr::V4(ip) => (ip, address.port).into(),
            IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, address.port, address.flow, address.scope)),
        }
    }
}

/// One option of any level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelOption {
    /// `SOL_SOCKET`, `IPPROTO_IP`, …
    pub level: i32,
    /// Its name there.
    pub name: i32,
    /// As getsockopt(2) gives it.
    #[serde(with = "crate::image::bytes")]
    pub value: Vec<u8>,
}

/// One internet socket, but for what its protocol adds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inet {
    /// `AF_INET` or `AF_INET6`.
    pub family: i32,
    /// `SOCK_STREAM`, …
    pub kind: i32,
    /// `IPPROTO_*`.
    pub protocol: i32,
    /// The network namespace that it lives in, an index into the tree's; `None` for meio's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u32>,
    /// Its own address; `None` when it has neither that nor a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Address>,
    /// Whom it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Address>,
    /// User and group that own it, where that is not root: rules of packet filters and limits count by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// Options of `SOL_SOCKET` that every family has and that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<SocketOption>,
    /// All others that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<LevelOption>,
    /// A filter over what comes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

/// (level, name, room) in the order in which they are set: what matters to bind(2) and connect(2) first. All of them can
/// be set with the bytes that were asked.
const KNOWN: &[(i32, i32, usize)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, 4),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, 4),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, 4),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL, 4),
    (libc::SOL_SOCKET, 47, 8), // SO_MAX_PACING_RATE
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, 4),
    (libc::SOL_SOCKET, libc::SO_TXTIME, 8),
    (libc::SOL_SOCKET, 69, 4), // SO_PREFER_BUSY_POLL
    (libc::SOL_SOCKET, 70, 4), // SO_BUSY_POLL_BUDGET
    (libc::SOL_SOCKET, 73, 4), // SO_RESERVE_MEM
    (libc::SOL_SOCKET, 74, 4), // SO_TXREHASH
    (libc::SOL_SOCKET, 75, 4), // SO_RCVMARK
    (libc::SOL_SOCKET, 82, 4), // SO_RCVPRIORITY
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 4),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT, 4),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 4),
    (libc::IPPROTO_IP, 51, 4), // IP_LOCAL_PORT_RANGE
    (libc::IPPROTO_IP, libc::IP_TOS, 4),
    (libc::IPPROTO_IP, libc::IP_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_HDRINCL, 4),
    (libc::IPPROTO_IP, libc::IP_OPTIONS, 40),
    (libc::IPPROTO_IP, libc::IP_RECVOPTS, 4),
    (libc::IPPROTO_IP, libc::IP_RETOPTS, 4),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 4),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    (libc::IPPROTO_IP, libc::IP_RECVERR, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, 4),
    (libc::IPPROTO_IP, libc::IP_PASSSEC, 4),
    (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 4),
    (libc::IPPROTO_IP, libc::IP_MINTTL, 4),
    (libc::IPPROTO_IP, libc::IP_NODEFRAG, 4),
    (libc::IPPROTO_IP, 23, 4), // IP_CHECKSUM
    (libc::IPPROTO_IP, 25, 4), // IP_RECVFRAGSIZE
    (libc::IPPROTO_IP, 26, 4), // IP_RECVERR_RFC4884
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 4),
    (libc::IPPROTO_IP, 50, 4), // IP_UNICAST_IF
];

/// The same for sockets of `AF_INET6`, which have the others, too.
const KNOWN6: &[(i32, i32, usize)] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 4),
    (libc::IPPROTO_IPV6, 78, 4), // IPV6_FREEBIND
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 4),
    (libc::IPPROTO_IPV6, 33, 4), // IPV6_FLOWINFO_SEND
    (libc::IPPROTO_IPV6, 11, 4), // IPV6_FLOWINFO
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 4),
    (libc::IPPROTO_IPV6, 29, 4), // IPV6_MULTICAST_ALL
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 4),
    (libc::IPPROTO_IPV6, 31, 4), // IPV6_RECVERR_RFC4884
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292PKTINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292HOPLIMIT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, 512),
    (libc::IPPROTO_IPV6, 55, 512), // IPV6_RTHDRDSTOPTS
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, 512),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, 512),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPATHMTU, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 4),
    (libc::IPPROTO_IPV6, 70, 4), // IPV6_AUTOFLOWLABEL
    (libc::IPPROTO_IPV6, 73, 4), // IPV6_MINHOPCOUNT
    (libc::IPPROTO_IPV6, 74, 4), // IPV6_RECVORIGDSTADDR
    (libc::IPPROTO_IPV6, 76, 4), // IPV6_UNICAST_IF
    (libc::IPPROTO_IPV6, 77, 4), // IPV6_RECVFRAGSIZE
];

/// One kind of socket in one network namespace.
type Key = (Option<u32>, i32, i32, i32);
/// What a new socket answers to each question of a list, `None` where it has no such option.
pub type Answers = Vec<Option<Vec<u8>>>;

/// A new socket of one kind.
#[derive(Debug)]
struct New {
    general: options::New,
    list: Vec<(i32, i32, usize)>,
    answers: Answers,
}

impl Known {
    /// Sees to it that what a new socket like this one answers is known.
    pub fn prepare(&mut self, fd: BorrowedFd<'_>, inet: &Inet) -> Result<()> {
        if let Entry::Vacant(place) = self.new.entry(inet.key()) {
            let (new, list) = (another(fd, inet)?, known(inet.family, inet.kind));
            place.insert(New { general: options::New::asked(new.as_fd()), answers: answers(new.as_fd(), &list), list });
        }
        Ok(())
    }
}

/// What is known of the network namespaces of a capture, and of new sockets in them.
#[derive(Debug, Default)]
pub struct Known {
    /// By `SO_NETNS_COOKIE`: the place in the tree's table, `None` for meio's; nothing at all for one without a process.
    networks: HashMap<Vec<u8>, Option<Option<u32>>>,
    new: HashMap<Key, New>,
    /// Answers of the protocol's own options, which its own file asks.
    pub protocols: HashMap<Key, Answers>,
    /// The same for sockets that listen.
    pub listening: HashMap<Key, Answers>,
}

/// A new socket of the same kind in the same network namespace as `like`.
pub fn another(like: BorrowedFd<'_>, inet: &Inet) -> Result<OwnedFd> {
    let network = socket::network(like)?;
    let make = || socket::socket_of(inet.family, inet.kind, inet.protocol);
    let made = match inet.network {
        Some(_) => within(&places([(&network, Kind::Net)]), make).and_then(|made| made),
        None => make(),
    };
    made.context(|| "making a socket")
}

/// Room for the longest option of all lists.
const MOST: usize = 512;

/// The options of a list in which a socket differs from a new one.
pub fn differing(fd: BorrowedFd<'_>, list: &[(i32, i32, usize)], new: &[Option<Vec<u8>>]) -> Vec<LevelOption> {
    let differs = |(&(level, name, room), new): (&(i32, i32, usize), &Option<Vec<u8>>)| {
        let new = new.as_ref()?;
        let (mut small, mut large);
        let value: &mut [u8] = if room <= 16 {
            small = [0u8; 16];
            &mut small
        } else {
            large = [0u8; MOST];
            &mut large
        };
        let value = socket::option_into(fd, level, name, value.get_mut(..room)?).ok().and_then(|len| value.get(..len))?;
        (new != value).then(|| LevelOption { level, name, value: value.to_vec() })
    };
    list.iter().zip(new).filter_map(differs).collect()
}

/// What a socket answers to each question of a list.
pub fn answers(fd: BorrowedFd<'_>, list: &[(i32, i32, usize)]) -> Answers {
    list.iter().map(|&(level, name, room)| options::answer(fd, level, name, room)).collect()
}

/// Options of datagrams, and such as only these can be given. A connection shows there what it was opened by.
const NOT_OF_STREAMS: [(i32, i32); 11] = [
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, 29),
    (libc::SOL_SOCKET, libc::SO_TXTIME),
    (libc::IPPROTO_IP, libc::IP_HDRINCL),
    (libc::IPPROTO_IP, libc::IP_NODEFRAG),
    (libc::IPPROTO_IP, 25),
];

/// Its own address, where it is bound, and that of the other end.
fn ends(fd: BorrowedFd<'_>) -> (Option<Address>, Option<Address>) {
    let bound = |a: &SocketAddr| !a.ip().is_unspecified() || a.port() != 0;
    (inet::local(fd).ok().filter(bound).map(Address::from), inet::peer(fd).ok().map(Address::from))
}

/// The list that is asked of a socket.
fn known(family: i32, kind: i32) -> Vec<(i32, i32, usize)> {
    let six: &[_] = if family == libc::AF_INET6 { KNOWN6 } else { &[] };
    let not: &[_] = if kind == libc::SOCK_STREAM { &NOT_OF_STREAMS } else { &[] };
    six.iter().chain(KNOWN).copied().filter(|&(level, name, _)| !not.contains(&(level, name))).collect()
}

impl Inet {
    /// Its kind, its place and its addresses; nothing in it changes. `None` after a refusal.
    pub fn identify(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<Inet>> {
        let cookie = socket::option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)?;
        let network = match capture.inet.networks.get(&cookie) {
            Some(known) => *known,
            None => {
                let identity = namespace::identity(&socket::network(fd)?)?;
                let own = std::fs::metadata("/proc/thread-self/ns/net")?;
                let place = match capture.namespaces.known(identity) {
                    Some(place) => Some(Some(place)),
                    None if identity == (own.dev(), own.ino()) => Some(None),
                    None => None,
                };
                capture.inet.networks.insert(cookie, place);
                place
            }
        };
        let Some(network) = network else {
            let reason = "it lives in a network namespace that no process of the tree lives in";
            capture.refuse(found.pid, found.object(), reason, "dump a process above");
            return Ok(None);
        };
        let (family, kind, protocol) = found.socket()?;
        let (local, peer) = ends(fd);
        let (uid, gid) = (found.meta.uid(), found.meta.gid());
        Ok(Some(Inet {
            family,
            kind,
            protocol,
            network,
            local,
            peer,
            owner: Some((uid, gid)).filter(|owner| *owner != (0, 0)),
            ..Inet::default()
        }))
    }

    /// Adds the options in which the socket differs from a new one of its kind, and its filter.
    ///
    /// # Errors
    /// `EACCES` when the filter is not a classic one.
    pub fn ask(&mut self, fd: BorrowedFd<'_>, known: &mut Known) -> Result<()> {
        known.prepare(fd, self)?;
        self.compare(fd, known)
    }

    /// The same, where `known` is prepared.
    pub fn compare(&mut self, fd: BorrowedFd<'_>, known: &Known) -> Result<()> {
        let Some(New { general, list, answers }) = known.new.get(&self.key()) else { return Ok(()) };
        self.options = options::capture(fd, general);
        self.more = differing(fd, list, answers);
        // It follows what arrives, and means something only where nothing has.
        if self.peer.is_some() {
            self.more.retain(|o| (o.level, o.name) != (libc::SOL_SOCKET, libc::SO_INCOMING_CPU));
        }
        // bind(2) to an address of IPv6 sets this, and connect(2) from there does not; it says nothing more then.
        if self.local.is_some_and(|a| !a.ip.is_unspecified()) {
            self.more.retain(|o| (o.level, o.name) != (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
        }
        // Setting the one sets the other.
        if self.more.iter().any(|o| (o.level, o.name) == (libc::IPPROTO_IP, libc::IP_TOS))
            && self.options.iter().all(|o| o.name != libc::SO_PRIORITY)
        {
            let value = socket::option(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, 4)?;
            self.options.push(SocketOption { name: libc::SO_PRIORITY, value });
        }
        self.filter = options::filter(fd)?;
        Ok(())
    }

    /// Asks for what changes although no option is set, where all options are known. `owner`: its user and group.
    pub fn refresh(&mut self, fd: BorrowedFd<'_>, owner: (u32, u32)) -> Result<()> {
        (self.local, self.peer) = ends(fd);
        self.owner = Some(owner).filter(|owner| *owner != (0, 0));
        let (receive, send) = socket::buffers(fd)?;
        for option in &mut self.options {
            match option.name {
                libc::SO_RCVBUF => option.value = receive.to_ne_bytes().to_vec(),
                libc::SO_SNDBUF => option.value = send.to_ne_bytes().to_vec(),
                libc::SO_PEEK_OFF => option.value = socket::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 4)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Which new sockets it is compared with.
    pub fn key(&self) -> Key {
        (self.network, self.family, self.kind, self.protocol)
    }

    /// The socket again, its owner set, with the options that matter before it is bound. To be called in its network
    /// namespace.
    pub fn make(&self, what: &str, warnings: &mut Vec<String>) -> Result<OwnedFd> {
        if !matches!(self.family, libc::AF_INET | libc::AF_INET6) {
            return Err(Error::image("image damaged: an internet socket of another family"));
        }
        let alike = |a: &Address| a.ip.is_ipv6() == (self.family == libc::AF_INET6);
        if !self.local.iter().chain(&self.peer).all(alike) {
            return Err(Error::image("image damaged: a socket with an address of another family"));
        }
        let list = known(self.family, self.kind);
        if self.more.iter().any(|o| list.iter().all(|k| (k.0, k.1) != (o.level, o.name))) {
            return Err(Error::image(format!("image damaged: {what} has an option that is none of its kind's")));
        }
        let made = socket::socket_of(self.family, self.kind, self.protocol).context(|| format!("making {what}"))?;
        self.dress(made.as_fd(), what, warnings);
        Ok(made)
    }

    /// Gives a new socket its owner and the options that matter before it is bound.
    pub fn dress(&self, fd: BorrowedFd<'_>, what: &str, warnings: &mut Vec<String>) {
        if let Some((uid, gid)) = self.owner
            && let Err(e) = nix::unistd::fchown(fd, Some(uid.into()), Some(gid.into()))
        {
            warnings.push(format!("{what}: it belongs to root instead of user {uid}: {e}"));
        }
        set(fd, &self.more, |o| known(self.family, self.kind).iter().any(|k| (k.0, k.1) == (o.level, o.name)), what, warnings);
    }

    /// Binds it to its address.
    pub fn bind(&self, fd: BorrowedFd<'_>, what: &str) -> Result<()> {
        let Some(local) = self.local else { return Ok(()) };
        let address = SocketAddr::from(local);
        inet::bind(fd, address).map_err(|e| {
            let help = match e {
                Errno::EADDRNOTAVAIL => format!("give an interface the address first: ip address add {} dev NAME", local.ip),
                Errno::EADDRINUSE => "end whoever uses this port first".to_owned(),
                _ => "look at the interfaces and addresses of this machine: ip address".to_owned(),
            };
            Error::other(format!("{what} cannot have its address {address}: {e}")).help(help)
        })
    }

    /// Gives it the other options and its filter: the last that is done to it.
    pub fn finish(&self, fd: BorrowedFd<'_>, what: &str, warnings: &mut Vec<String>) -> Result<()> {
        options::apply(fd, &self.options, what, warnings);
        self.filter.as_ref().map_or(Ok(()), |filter| filter.apply(fd))
    }
}

/// `SO_NETNS_COOKIE`, Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// Sets those options that `may` be set. What cannot is named in `warnings`.
pub fn set(fd: BorrowedFd<'_>, options: &[LevelOption], may: impl Fn(&LevelOption) -> bool, what: &str, warnings: &mut Vec<String>) {
    for option in options {
        let (level, name) = (option.level, option.name);
        let done = if may(option) { socket::set_option(fd, level, name, &option.value) } else { Err(Errno::ENOPROTOOPT) };
        if let Err(e) = done {
            warnings.push(format!("{what}: option {name} of level {level} could not be set: {e}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_flow_and_scope() {
        for text in ["10.0.0.1:80", "[fe80::1]:443"] {
            let mut address: SocketAddr = text.parse().unwrap();
            if let SocketAddr::V6(v6) = &mut address {
                v6.set_scope_id(7);
                v6.set_flowinfo(9);
            }
            assert_eq!(SocketAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn options_that_differ_are_set_again() {
        for (family, kind, protocol) in [(libc::AF_INET, libc::SOCK_STREAM, 0), (libc::AF_INET6, libc::SOCK_DGRAM, 0)] {
            let from = socket::socket(family, kind).unwrap();
            let fd = from.as_fd();
            let yes = 1i32.to_ne_bytes();
            socket::set_option(fd, libc::IPPROTO_IP, libc::IP_TOS, &0x10i32.to_ne_bytes()).unwrap();
            socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, &[0; 4]).unwrap();
            socket::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &yes).unwrap();
            if family == libc::AF_INET6 {
                socket::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &yes).unwrap();
            }
            let mut known = Known::default();
            let mut inet = Inet { family, kind, protocol, ..Inet::default() };
            inet.ask(fd, &mut known).unwrap();
            let mut warnings = Vec::new();
            let to = inet.make("a socket", &mut warnings).unwrap();
            inet.finish(to.as_fd(), "a socket", &mut warnings).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            let mut again = Inet { family, kind, protocol, ..Inet::default() };
            again.ask(to.as_fd(), &mut known).unwrap();
            assert_eq!(inet, again);
            let count = if family == libc::AF_INET6 { 3 } else { 2 };
            assert_eq!((inet.more.len(), known.new.len()), (count, 1), "{:?}", inet.more);
        }
    }

    #[test]
    fn impossible_ones_are_refused() {
        let bad = Inet { family: libc::AF_UNIX, kind: libc::SOCK_STREAM, ..Inet::default() };
        assert!(bad.make("a socket", &mut Vec::new()).is_err());
        let local = Some(SocketAddr::from(([1, 2, 3, 4], 5)).into());
        let mixed = Inet { family: libc::AF_INET6, kind: libc::SOCK_STREAM, local, ..Inet::default() };
        assert!(mixed.make("a socket", &mut Vec::new()).is_err());
    }
}
