//! UDP sockets on their way back.
//!
//! What had been received is put in by packets that seem to come from the old senders ([`Wire`]), as long as the socket has a
//! port that nobody knows. A socket whose port was chosen by the kernel loses it when it is disconnected and keeps its queue;
//! only then it gets its own address, which others may share, its interface and its peer.

use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::socket::inet::{self, Address, LevelOption};
use crate::resource::socket::received::Received;
use crate::resource::socket::udp::{self, Udp};
use crate::sys::namespace::{self, places, within};
use crate::sys::wire::{PASS, Wire};
use crate::sys::{datagram, socket};
use nix::errno::Errno;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What senders of datagrams are made of, by network namespace.
#[derive(Default)]
pub struct Datagrams {
    wires: HashMap<Option<u32>, Wire>,
    /// How many sockets of the tree have a port.
    ports: HashMap<(Option<u32>, u16), usize>,
    /// Those that share one, and what `SO_REUSEADDR` is to be: it may have been another one when they were bound.
    sharing: Vec<(OwnedFd, i32)>,
}

/// A packet through the loopback interface takes less.
const SOON: Duration = Duration::from_secs(1);
/// Bytes of buffer while a socket is filled: what was received may take more memory than it did.
const LARGE: i32 = i32::MAX / 4;
const IP_LOCAL_PORT_RANGE: i32 = 51;
/// Options that decide which port can be had, or which packets come in.
const NARROW: [(i32, i32); 3] =
    [(libc::SOL_SOCKET, libc::SO_REUSEADDR), (libc::SOL_SOCKET, libc::SO_REUSEPORT), (libc::SOL_SOCKET, libc::SO_BINDTODEVICE)];

/// Does something in the network namespace that is given, or here.
pub(super) fn inside<T: Send>(network: Option<&OwnedFd>, work: impl FnOnce() -> T + Send) -> Result<T> {
    match network {
        Some(network) => Ok(within(&places([(network, namespace::Kind::Net)]), work)?),
        None => Ok(work()),
    }
}

fn is_narrow(option: &LevelOption) -> bool {
    NARROW.contains(&(option.level, option.name))
}

impl Datagrams {
    /// For the sockets of a tree.
    pub fn of(tree: &Tree) -> Datagrams {
        let mut datagrams = Datagrams::default();
        for file in &tree.files {
            if let FileKind::Udp(udp) = &file.kind
                && let Some(local) = udp.inet.local
            {
                *datagrams.ports.entry((udp.inet.network, local.port)).or_default() += 1;
            }
        }
        datagrams
    }

    /// All are bound: they share their ports as they did from here on.
    pub fn finish(&mut self) -> Result<()> {
        let set = |(fd, reuse): (OwnedFd, i32)| socket::set_number(fd.as_fd(), libc::SO_REUSEADDR, reuse);
        self.sharing.drain(..).try_for_each(set).context(|| "setting SO_REUSEADDR")
    }

    /// A socket as it was, in its network namespace when that is not meio's.
    pub fn udp(&mut self, udp: &Udp, network: Option<&OwnedFd>, warnings: &mut Vec<String>) -> Result<OwnedFd> {
        let what = udp.called();
        if !udp::is(udp.inet.family, udp.inet.kind, udp.inet.protocol) {
            return Err(Error::image("image damaged: a UDP socket of another protocol"));
        }
        let mut told = Vec::new();
        let made = inside(network, || udp.inet.make(&what, &mut told))??;
        warnings.append(&mut told);
        let fd = made.as_fd();
        let own = |o: &LevelOption| udp::OWN.iter().any(|k| (k.0, k.1) == (o.level, o.name));
        let (cork, others): (Vec<_>, Vec<_>) = udp.own.iter().cloned().partition(|o| (o.level, o.name) == (libc::IPPROTO_UDP, udp::CORK));
        inet::set(fd, &others, own, &what, warnings);
        if !udp.queue.is_empty() || udp.refused {
            self.fill(fd, udp, network, &what, warnings)?;
        }
        if let Some(local) = udp.inet.local
            && self.ports.get(&(udp.inet.network, local.port)).is_some_and(|&n| n > 1)
        {
            self.sharing.push((made.try_clone()?, socket::number(fd, libc::SO_REUSEADDR)?));
            socket::set_number(fd, libc::SO_REUSEADDR, 1)?;
        }
        join(fd, udp, &what)?;
        for group in &udp.groups {
            group.join(fd).context(|| what.clone())?;
        }
        udp.inet.finish(fd, &what, warnings)?;
        inet::set(fd, &cork, own, &what, warnings);
        let how = match udp.shutdown {
            1 => libc::SHUT_RD,
            2 => libc::SHUT_WR,
            3 => libc::SHUT_RDWR,
            _ => return Ok(made),
        };
        match socket::shutdown(fd, how) {
            Err(Errno::ENOTCONN) | Ok(()) => Ok(made),
            Err(e) => Err(e).context(|| format!("shutting down {what}")),
        }
    }

    /// Puts in what was in it, at a port of the kernel's choice, which it has no more afterwards.
    fn fill(&mut self, fd: BorrowedFd<'_>, udp: &Udp, network: Option<&OwnedFd>, what: &str, warnings: &mut Vec<String>) -> Result<()> {
        let doing = || format!("filling {what}");
        let six = udp.inet.family == libc::AF_INET6;
        for (level, name) in NARROW {
            let nothing: &[u8] = if name == libc::SO_BINDTODEVICE { b"\0" } else { &[0; 4] };
            socket::set_option(fd, level, name, nothing).context(doing)?;
        }
        if udp.refused {
            refuse(fd, six).context(doing)?;
            if socket::events(fd)? & libc::POLLERR == 0 {
                warnings.push(format!("{what}: an error that waited to be told (ECONNREFUSED) is lost"));
            }
            socket::disconnect(fd).context(doing)?;
        }
        if !udp.queue.is_empty() {
            let any: IpAddr = if six { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            crate::sys::inet::bind(fd, SocketAddr::new(any, 0)).context(doing)?;
            let _ = socket::set_number(fd, libc::SO_RCVBUFFORCE, LARGE);
            let wire = self.wire(udp.inet.network, network)?;
            let port = crate::sys::inet::local(fd).context(doing)?.port();
            let mut lost = 0;
            for datagram in &udp.queue {
                // Where one is kept out, by a packet filter, others are.
                let patience = if lost == 0 { SOON } else { Duration::ZERO };
                lost += usize::from(!put_in(fd, wire, udp, datagram, port, patience)?);
            }
            if lost > 0 {
                warnings.push(format!("{what}: {lost} of {} unread datagrams could not be put back", udp.queue.len()));
            }
            socket::disconnect(fd).context(doing)?;
        }
        inet::set(fd, &udp.inet.more, is_narrow, what, &mut Vec::new());
        Ok(())
    }

    fn wire(&mut self, number: Option<u32>, network: Option<&OwnedFd>) -> Result<&Wire> {
        if let Entry::Vacant(unknown) = self.wires.entry(number) {
            unknown.insert(inside(network, || Wire::new(PASS))?.context(|| "making raw sockets")?);
        }
        self.wires.get(&number).ok_or_else(|| Error::other("no raw sockets"))
    }
}

/// Lets the socket be told that nobody listens where it has sent to. It is not bound yet.
fn refuse(fd: BorrowedFd<'_>, six: bool) -> nix::Result<()> {
    // Nobody has listened there since RFC 1078 was given up.
    const TCPMUX: u16 = 1;
    let own: IpAddr = if six { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    crate::sys::inet::connect(fd, SocketAddr::new(own, TCPMUX))?;
    nix::sys::socket::send(fd.as_raw_fd(), &[], nix::sys::socket::MsgFlags::MSG_DONTWAIT)?;
    let begin = Instant::now();
    while socket::events(fd)? & libc::POLLERR == 0 && begin.elapsed() < SOON {
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Sends a datagram to the socket at `port`; whether it arrives.
fn put_in(fd: BorrowedFd<'_>, wire: &Wire, udp: &Udp, received: &Received, port: u16, patience: Duration) -> Result<bool> {
    const TTL: u8 = 64;
    let to = SocketAddr::new(destination(udp, received), port);
    for part in received.parts() {
        let before = datagram::received(fd)?;
        let sent = wire.udp(received.source(), to, udp.is_lite(), received.ttl.unwrap_or(TTL), received.tos.unwrap_or(0), part);
        let begin = Instant::now();
        // Each has arrived before the next: they stay in order.
        loop {
            let now = datagram::received(fd)?;
            if now.0 != before.0 {
                break;
            }
            if sent.is_err() || now.1 != before.1 || begin.elapsed() > patience {
                return Ok(false);
            }
            // Whoever is urgent would keep from the processor whom he waits for.
            std::thread::sleep(Duration::from_micros(5));
        }
    }
    Ok(true)
}

/// The address of this machine that a datagram is put in at: where it was sent to as far as that is known, and no group.
fn destination(udp: &Udp, received: &Received) -> IpAddr {
    let own = udp.inet.local.map(|l| l.ip.to_canonical()).filter(|ip| !ip.is_unspecified());
    let fits = |ip: &IpAddr| !ip.is_multicast() && ip.is_ipv4() == received.from.is_ipv4() && *ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    let fallback = if received.from.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    received.to.filter(fits).or(own.filter(fits)).unwrap_or(fallback)
}

/// Gives a socket its address and its peer.
fn join(fd: BorrowedFd<'_>, udp: &Udp, what: &str) -> Result<()> {
    let Some(peer) = udp.inet.peer else { return bind(fd, udp, what) };
    let connect = || crate::sys::inet::connect(fd, peer.into());
    // A port of its own choice goes with the connection, as does the address; whoever chose them keeps them.
    if let Some(local) = udp.inet.local
        && by_itself(fd, udp, local, connect).unwrap_or(false)
    {
        return Ok(());
    }
    bind(fd, udp, what)?;
    connect().map_err(|e| unreachable(e, peer, what))
}

fn unreachable(e: Errno, peer: Address, what: &str) -> Error {
    let peer = SocketAddr::from(peer);
    Error::new(Kind::NotFound, format!("{what} cannot be connected to {peer}: {e}"))
        .help(format!("bring the interface or the route back: ip route get {}", peer.ip()))
}

/// Connects without binding where that leads to the same address and port, which the kernel can be told to choose (Linux 6.3).
fn by_itself(fd: BorrowedFd<'_>, udp: &Udp, local: Address, connect: impl Fn() -> nix::Result<()>) -> nix::Result<bool> {
    let range = |from: u16, to: u16| {
        socket::set_option(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, &(u32::from(from) | u32::from(to) << 16).to_ne_bytes())
    };
    if udp.inet.more.iter().any(|o| (o.level, o.name) == (libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE)) {
        return Ok(false);
    }
    range(local.port, local.port)?;
    let connected = connect();
    let same = connected.is_ok() && crate::sys::inet::local(fd).is_ok_and(|now| now == SocketAddr::from(local));
    range(0, 0)?;
    if !same {
        socket::disconnect(fd)?;
        inet::set(fd, &udp.inet.more, is_narrow, "", &mut Vec::new());
    }
    Ok(same)
}

fn bind(fd: BorrowedFd<'_>, udp: &Udp, what: &str) -> Result<()> {
    udp.inet.bind(fd, what)
}
