//! Connections that are at an end, on one side or on both: made as established ones in repair, they hear again what the
//! other end has said (sys/wire.rs), and say what they have said without anybody hearing it.

use crate::error::{Context, Error, Result};
use crate::resource::socket::inet::{Address, Inet};
use crate::resource::socket::tcp::{End, Stream, Tcp};
use crate::sys::netlink::Socket;
use crate::sys::sock_diag::inet::{self as diag, Entry};
use crate::sys::tcp::{self, Queue, Repair};
use crate::sys::wire::{self, Segment, Wire};
use crate::sys::{file, inet, socket};
use nix::errno::Errno;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the local stack may take for a segment.
const SOON: Duration = Duration::from_secs(2);

/// Both ends of a connection, and the way to say something in the name of the other one.
struct Line<'a> {
    fd: BorrowedFd<'a>,
    wire: &'a Wire,
    local: SocketAddr,
    peer: SocketAddr,
    stream: &'a Stream,
}

/// Brings a connection in repair, established and filled, into its state as far as that needs the other end, or is to
/// happen in silence. All that is left is what this end still has to say.
pub fn bring(fd: BorrowedFd<'_>, tcp: &Tcp, near: &mut Near) -> Result<()> {
    let (Some(stream), Some(local), Some(peer)) = (&tcp.stream, tcp.inet.local, tcp.inet.peer) else { return Ok(()) };
    if tcp.state == tcp::ESTABLISHED || tcp.state == tcp::FIN_WAIT1 {
        return Ok(());
    }
    let line = Line { fd, wire: near.wire()?, local: local.into(), peer: peer.into(), stream };
    match tcp.state {
        tcp::CLOSE_WAIT | tcp::LAST_ACK => {
            let before = u32::from(is_hastened(tcp));
            line.hear(wire::FIN, 0u32.wrapping_sub(before), tcp::CLOSE_WAIT)
        }
        tcp::FIN_WAIT2 => {
            line.say_the_end()?;
            line.hear(0, 1, tcp::FIN_WAIT2)
        }
        tcp::CLOSING => {
            line.say_the_end()?;
            line.hear(wire::FIN, 0, tcp::CLOSING)
        }
        state => Err(Error::image(format!("image damaged: a TCP connection in state {state}"))),
    }
}

/// What is asked of the network namespace that sockets are made in, once for all of them.
#[derive(Default)]
pub struct Near {
    wire: Option<Wire>,
    remains: Option<HashMap<(Plain, Plain), Entry>>,
}

/// An address without what only a socket knows of it.
type Plain = (IpAddr, u16);

fn plain(address: SocketAddr) -> Plain {
    (address.ip(), address.port())
}

impl Near {
    /// The raw sockets, where they were needed.
    pub fn into_wire(self) -> Option<Wire> {
        self.wire
    }

    /// The raw sockets.
    pub fn wire(&mut self) -> Result<&Wire> {
        if self.wire.is_none() {
            self.wire = Some(Wire::new(wire::PASS).context(|| "opening raw sockets for what the other end of a connection has said")?);
        }
        self.wire.as_ref().ok_or_else(|| Error::other("a raw socket has gone"))
    }

    /// Ends what is left of an earlier connection with the same addresses and ports, which waits for its last packets:
    /// whether there was such.
    pub fn clear(&mut self, local: SocketAddr, peer: SocketAddr) -> bool {
        let list = || diag::remains().unwrap_or_default().into_iter().map(|r| ((plain(r.local), plain(r.peer)), r));
        let remains = self.remains.get_or_insert_with(|| list().collect());
        remains
            .remove(&(plain(local), plain(peer)))
            .is_some_and(|r| Socket::sock_diag().and_then(|netlink| diag::destroy(&netlink, &r)).is_ok())
    }
}

impl Line<'_> {
    /// shutdown(2) in repair: the FIN counts as sent.
    fn say_the_end(&self) -> Result<()> {
        tcp::choose(self.fd, Queue::Written)?;
        socket::shutdown(self.fd, libc::SHUT_WR).context(|| "closing one direction of a connection")
    }

    /// Has the socket hear a segment of the other end that acknowledges what was acknowledged, and `more`.
    fn hear(&self, flags: u8, more: u32, state: u8) -> Result<()> {
        let Stream { received_to, written_to, written, window, scales, .. } = self.stream;
        let window = u16::try_from(window[1] >> scales.0).unwrap_or(u16::MAX);
        let ack = written_to.wrapping_sub(written.len() as u32).wrapping_add(more);
        let segment = Segment { seq: *received_to, ack, flags: flags | wire::ACK, window, ..Segment::default() };
        let say = || self.wire.tcp(self.peer, self.local, &segment).context(|| "saying again what the other end of a connection has said");
        say()?;
        self.until(state, say)
    }

    /// Says it again now and then, as the other end would have done: any packet may be lost.
    fn until(&self, state: u8, say: impl Fn() -> Result<()>) -> Result<()> {
        let (begin, mut again) = (Instant::now(), Duration::from_millis(20));
        loop {
            let now = tcp::info(self.fd)?.state;
            if now == state {
                return Ok(());
            }
            if begin.elapsed() > SOON {
                let what = format!("the connection {} - {} stays in state {now} instead of {state}", self.local, self.peer);
                return Err(Error::other(what).help("does a packet filter on the loopback interface drop packets?"));
            }
            if begin.elapsed() > again {
                again *= 3;
                say()?;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A socket whose connection has ended: it is connected to nobody, who ends it likewise. What its address and interface have to
/// do with that is nothing: where they are not here it has them afterwards, as far as that goes.
pub fn closed(made: OwnedFd, tcp: &Tcp, end: End, what: &str, near: &mut Near) -> Result<OwnedFd> {
    let fd = made.as_fd();
    let device = tcp.inet.more.iter().find(|o| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_BINDTODEVICE));
    let here = tcp.inet.local.is_none_or(is_here);
    if device.is_none() && here {
        return ended(made, tcp, end, what, near);
    }
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"\0").context(|| format!("making {what}"))?;
    if here {
        ended(made.try_clone()?, tcp, end, what, near)?;
    } else {
        let any = tcp.inet.local.map(|l| SocketAddr::new(loopback(l.ip), 0).into());
        let elsewhere = Tcp { inet: Inet { local: any, ..tcp.inet.clone() }, ..tcp.clone() };
        ended(made.try_clone()?, &elsewhere, end, what, near)?;
        let _ = rename(fd, tcp);
    }
    if let Some(device) = device {
        let _ = socket::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &device.value);
    }
    Ok(made)
}

/// Whether an address can be had, and connected to from itself.
fn is_here(address: Address) -> bool {
    let family = if address.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let bound = socket::socket(family, libc::SOCK_DGRAM).and_then(|fd| inet::bind(fd.as_fd(), SocketAddr::new(address.ip, 0)));
    address.scope == 0 && bound.is_ok()
}

fn loopback(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Gives a socket without a connection an address that nobody has here, for getsockname(2).
fn rename(fd: BorrowedFd<'_>, tcp: &Tcp) -> nix::Result<()> {
    const IPV6_FREEBIND: i32 = 78;
    let Some(local) = tcp.inet.local else { return Ok(()) };
    let option = if local.ip.is_ipv4() { (libc::IPPROTO_IP, libc::IP_FREEBIND) } else { (libc::IPPROTO_IPV6, IPV6_FREEBIND) };
    let before = socket::option(fd, option.0, option.1, 4)?;
    let reuse = socket::number(fd, libc::SO_REUSEADDR)?;
    socket::set_option(fd, option.0, option.1, &1i32.to_ne_bytes())?;
    // In repair whoever else has the port does not matter.
    let bound = tcp::repair(fd, Repair::On).and_then(|()| inet::bind(fd, local.into()));
    let left = tcp::repair(fd, Repair::Off);
    socket::set_number(fd, libc::SO_REUSEADDR, reuse)?;
    socket::set_option(fd, option.0, option.1, &before)?;
    bound.and(left)
}

/// The same, for an address that is here.
fn ended(made: OwnedFd, tcp: &Tcp, end: End, what: &str, near: &mut Near) -> Result<OwnedFd> {
    let fd = made.as_fd();
    let doing = || format!("making {what}");
    let nowhere = if tcp.inet.family == libc::AF_INET6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let local = tcp.inet.local.map_or(SocketAddr::new(nowhere, 0), SocketAddr::from);
    // Itself, at a port that nobody asks anything of.
    let peer = SocketAddr::new(local.ip(), DISCARD);
    if end == End::Refused {
        number(fd, 1).context(doing)?;
        tcp.inet.bind(fd, what)?;
        start(fd, peer).context(doing)?;
        let stream = Stream { written_to: 2, ..Stream::default() };
        let line = Line { fd, wire: near.wire()?, local: inet::local(fd)?, peer, stream: &stream };
        line.hear(wire::RST, 0, tcp::CLOSE)?;
        return Ok(made);
    }
    let received = tcp.stream.as_ref().map_or(&[][..], |s| &s.received);
    let window = [1, 65535, 65535, 65535, 1];
    let stream = Stream {
        received_to: 1u32.wrapping_add(received.len() as u32),
        written_to: 1,
        received: received.to_vec(),
        largest_segment: 1000,
        window: [window[0], window[1], window[2], window[3], 1u32.wrapping_add(received.len() as u32)],
        ..Stream::default()
    };
    let inet = Inet { local: Some(Address::from(local)), peer: Some(Address::from(peer)), ..tcp.inet.clone() };
    let open_one = Tcp { inet, state: tcp::ESTABLISHED, stream: Some(stream.clone()), ..Tcp::default() };
    tcp::repair(fd, Repair::On).context(doing)?;
    super::connect(fd, &open_one, &stream, what, near)?;
    super::fill(fd, &open_one, &stream).context(doing)?;
    let line = Line { fd, wire: near.wire()?, local: inet::local(fd)?, peer, stream: &stream };
    match end {
        End::Reset => line.hear(wire::RST, 0, tcp::CLOSE)?,
        _ => {
            line.hear(wire::FIN, 0, tcp::CLOSE_WAIT)?;
            line.say_the_end()?;
            let after = Stream { received_to: stream.received_to.wrapping_add(1), ..stream.clone() };
            Line { stream: &after, ..line }.hear(0, 1, tcp::CLOSE)?;
        }
    }
    tcp::repair(fd, Repair::Off).context(doing)?;
    Ok(made)
}

/// The port of the discard protocol.
const DISCARD: u16 = 9;

/// Numbers the SYN that a socket is going to send.
pub fn number(fd: BorrowedFd<'_>, first: u32) -> Result<()> {
    tcp::repair(fd, Repair::On)?;
    tcp::choose(fd, Queue::Written)?;
    tcp::set_sequence(fd, first)?;
    Ok(tcp::repair(fd, Repair::Off)?)
}

/// connect(2) that does not wait.
pub fn start(fd: BorrowedFd<'_>, peer: SocketAddr) -> nix::Result<()> {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
    file::set_flags(fd, flags | libc::O_NONBLOCK)?;
    let started = inet::connect(fd, peer);
    file::set_flags(fd, flags)?;
    match started {
        Err(Errno::EINPROGRESS) => Ok(()),
        started => started,
    }
}

/// Whether what was sent and not acknowledged is to be sent again without waiting for a second. The kernel has not measured a
/// round trip then; so one byte more than that is in the queue, which was acknowledged long ago, and is again ([`hasten`]).
pub fn is_hastened(tcp: &Tcp) -> bool {
    let sent = |s: &Stream| s.clock.is_some() && !s.parts().0.is_empty();
    tcp.state != tcp::CLOSING && tcp.stream.as_ref().is_some_and(sent)
}

/// Acknowledges the byte before all others, with a timestamp of just now. A round trip is measured so, and the next
/// retransmission follows after some milliseconds; those after it come when they should.
pub fn hasten(fd: BorrowedFd<'_>, tcp: &Tcp, stream: &Stream, wire: &Wire) -> Result<()> {
    /// Linux 6.16.
    const TCP_RTO_MIN_US: i32 = 45;
    /// Two ticks of the kernel's clock, as fast as that goes.
    const SHORT: [i32; 3] = [2000, 8000, 20_000];
    let (Some(local), Some(peer)) = (tcp.inet.local, tcp.inet.peer) else { return Ok(()) };
    let usual = socket::option(fd, libc::IPPROTO_TCP, TCP_RTO_MIN_US, 4);
    let _ = SHORT.iter().any(|us| socket::set_option(fd, libc::IPPROTO_TCP, TCP_RTO_MIN_US, &us.to_ne_bytes()).is_ok());
    let now = tcp::clock(fd)?;
    // Timestamps, RFC 7323: the other end's, 0 for none, and the own one that it answers to.
    let mut options = vec![1, 1, 8, 10, 0, 0, 0, 0];
    options.extend(now.to_be_bytes());
    let heard = u32::from(tcp.heard_the_end());
    let segment = Segment {
        seq: stream.received_to.wrapping_add(heard),
        ack: stream.written_to.wrapping_sub(stream.written.len() as u32),
        flags: wire::ACK,
        window: u16::try_from(stream.window[1] >> stream.scales.0).unwrap_or(u16::MAX),
        options,
        ..Segment::default()
    };
    let said = wire.tcp(peer.into(), local.into(), &segment);
    if let Ok(usual) = usual {
        let _ = socket::set_option(fd, libc::IPPROTO_TCP, TCP_RTO_MIN_US, &usual);
    }
    said.context(|| "acknowledging a byte that was acknowledged before")
}

/// Has the socket hear what it has heard before, so that it tells the other end how far it is; who has no such connection any
/// more answers with a reset.
pub fn ask(tcp: &Tcp, stream: &Stream, wire: &Wire) -> Result<()> {
    let (Some(local), Some(peer)) = (tcp.inet.local, tcp.inet.peer) else { return Ok(()) };
    let segment = Segment {
        seq: stream.window[4].wrapping_sub(1),
        ack: stream.written_to.wrapping_sub(stream.written.len() as u32),
        flags: wire::ACK,
        window: u16::try_from(stream.window[1] >> stream.scales.0).unwrap_or(u16::MAX),
        ..Segment::default()
    };
    wire.tcp(peer.into(), local.into(), &segment).context(|| "asking the other end of a connection how far it is")
}
