//! Connections that nobody has accepted yet: how they are taken from a listening socket, and how they come (back) to one.
//!
//! accept(2) is the only way to what such a connection holds, and takes it away. To put one where it was, with the numbers that both
//! ends count by, a connection of the same addresses is made that has just ended (`TCP_REPAIR`, and a FIN that seems to come from
//! the peer). When the peer's SYN seems to come again then, the kernel begins a new connection at the number of the ended one
//! plus 65537 (tcp_timewait_state_process), which is how that was chosen; the peer's last ACK, what it had sent and its FIN follow.
//! Not a byte of all that leaves the machine but what the kernel answers, which a network lock has to hold back. The peer cannot
//! tell the difference: its numbers, windows and options are those that it knows. Only the clock of the timestamps is the machine's
//! own; and of its own clock the connection learns anew from the next segment.

use super::inet::Address;
use crate::error::{Context, Error, Result};
use crate::sys::netlink::Socket;
use crate::sys::sock_diag::inet::{self as diag, Entry, TIME_WAIT};
use crate::sys::tcp::{self, Queue, Repair};
use crate::sys::wire::{self, ACK, FIN, PSH, RST, SYN, Segment, Wire, plain};
use crate::sys::{inet, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// The address that the peer has connected to.
    pub local: Address,
    /// The peer.
    pub peer: Address,
    /// Number of the SYN that this end has sent.
    pub own_first: u32,
    /// Number of the SYN of the peer.
    pub peer_first: u32,
    /// The largest segment that the peer takes.
    pub largest_segment: u16,
    /// Shifts of the windows: of the peer, and of this end.
    #[serde(default)]
    pub scales: (u8, u8),
    /// Both know selective acknowledgements.
    #[serde(default)]
    pub sack: bool,
    /// Both send timestamps.
    #[serde(default)]
    pub timestamps: bool,
    /// The clock of the peer's timestamps, where that is known: 0 does for a connection that is there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub peer_clock: u32,
    /// Both heed congestion marks (ECN).
    #[serde(default)]
    pub marks: bool,
    /// Bytes that the peer takes.
    pub window: u32,
    /// What the peer has sent.
    #[serde(default, with = "crate::image::bytes", skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<u8>,
    /// How far it has come.
    pub stage: Stage,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// How far a connection has come that waits to be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The SYN has been answered, and the peer has not said that it knows.
    HalfOpen,
    /// It is there.
    #[default]
    Open,
    /// The peer sends no more.
    Ended,
    /// The peer has broken it off.
    Broken,
}

/// What a connection in `TCP_TIME_WAIT` adds to its last number for the next of the same addresses.
const AHEAD: u32 = 65535 + 2;
/// How far the number of the peer's SYN is beyond the last of the connection that seems to have ended.
const BEHIND: u32 = 1000;
/// Bytes of a segment.
const PART: usize = 1400;

/// Takes all connections from a listening socket. They are closed then, and nobody was told.
///
/// # Errors
/// What was taken up to then is in `taken`.
pub fn take(listener: BorrowedFd<'_>, taken: &mut Vec<Waiting>) -> Result<()> {
    loop {
        let (fd, peer) = match inet::accept(listener) {
            Err(Errno::EAGAIN) => return Ok(()),
            accepted => accepted.context(|| "accepting a connection")?,
        };
        let waiting = look(fd.as_fd(), listener, peer).context(|| format!("reading a connection from {peer}"))?;
        taken.push(waiting);
    }
}

/// Reads a connection that was just accepted, and leaves it in repair.
fn look(fd: BorrowedFd<'_>, listener: BorrowedFd<'_>, peer: SocketAddr) -> Result<Waiting> {
    let mut local = inet::local(fd)?;
    if local.port() == 0 {
        local.set_port(inet::local(listener)?.port()); // lost by one that was broken off
    }
    tcp::repair(fd, Repair::On)?;
    let info = tcp::info(fd)?;
    let agreed = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 8)?;
    tcp::choose(fd, Queue::Received)?;
    let data = tcp::peek(fd, socket::readable(fd)?)?;
    let received = tcp::sequence(fd)?;
    tcp::choose(fd, Queue::Written)?;
    let written = tcp::sequence(fd)?;
    let stage = match info.state {
        tcp::SYN_RECV => Stage::HalfOpen, // with data that the peer will send again (TCP Fast Open)
        tcp::CLOSE => Stage::Broken,
        tcp::CLOSE_WAIT => Stage::Ended,
        _ => Stage::Open,
    };
    let keeps = stage != Stage::HalfOpen;
    let before = data.len() as u32 + u32::from(stage == Stage::Ended) + 1;
    Ok(Waiting {
        local: local.into(),
        peer: peer.into(),
        own_first: written.wrapping_sub(1),
        peer_first: received.wrapping_sub(before),
        largest_segment: tcp::largest_segment(fd)?.min(65535) as u16,
        scales: info.scales,
        sack: info.sack,
        timestamps: info.timestamps,
        peer_clock: 0,
        marks: agreed.get(5).is_some_and(|b| b & 8 != 0), // TCPI_OPT_ECN
        window: tcp::window(fd)?[1],
        data: if keeps { data } else { Vec::new() },
        stage,
    })
}

/// Whether a connection between these addresses could be put in place: that this machine has the one, and a way to the other.
///
/// # Errors
/// What stands in the way, of bind(2) or connect(2).
pub fn possible(local: SocketAddr, peer: SocketAddr) -> nix::Result<()> {
    let mut local = plain(local);
    local.set_port(0);
    let fd = socket::socket(family(local), libc::SOCK_STREAM)?;
    // In repair it is connected, and closed again, without a word.
    tcp::repair(fd.as_fd(), Repair::On)?;
    inet::bind(fd.as_fd(), local)?;
    inet::connect(fd.as_fd(), plain(peer))
}

fn family(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// Puts connections into the queue of the socket that listens at their addresses, in their order. For the network namespace that the
/// caller lives in.
pub struct Placing {
    wire: Wire,
    netlink: Socket,
}

impl Placing {
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn new() -> Result<Placing> {
        Ok(Placing { wire: Wire::new(wire::PASS).context(|| "making raw sockets")?, netlink: Socket::sock_diag()? })
    }

    /// By which it does so.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Puts one in. `interface` is the one that the listening socket is bound to, or 0.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn put(&self, waiting: &Waiting, interface: u32) -> Result<()> {
        const TRIES: u64 = 60;
        let doing = || format!("putting the connection from {} in its place", SocketAddr::from(waiting.peer));
        let (local, peer) = waiting.ends();
        let (mut there, mut begun) = (None, false);
        for tried in 0..TRIES {
            if tried > 3 {
                std::thread::sleep(Duration::from_micros(tried * tried * 10)); // the stack is busy
            }
            there = diag::find(&self.netlink, local, peer, interface).context(doing)?;
            match there.as_ref().map(|e| e.state) {
                // It outlives the socket that it wanted to come to until somebody asks for it.
                Some(tcp::SYN_RECV) if tried == 0 => {
                    self.send(waiting, &waiting.segment(waiting.peer_first.wrapping_add(1), RST)).context(doing)?;
                    continue;
                }
                Some(state) if tried < 2 && state != tcp::LISTEN && !begun => return Err(Errno::EADDRINUSE).context(doing),
                _ => begun = true,
            }
            if self.further(waiting, there.as_ref()).context(doing)? {
                return Ok(());
            }
        }
        let state = there.map_or("none".to_owned(), |e| format!("state {}, {} bytes to read", e.state, e.readable));
        Err(Error::other(format!("the kernel does not take it: {state}"))).context(doing)
    }

    /// Lets the peer's SYN come again.
    ///
    /// # Errors
    /// As of [`Wire::tcp`].
    pub fn again(&self, waiting: &Waiting) -> nix::Result<()> {
        self.send(waiting, &waiting.syn())
    }

    /// Whether this end shows its window in other steps than it did before.
    pub fn differs(&self, waiting: &Waiting, interface: u32) -> bool {
        let (local, peer) = waiting.ends();
        let there = diag::find(&self.netlink, local, peer, interface).ok().flatten();
        let info = there.map(|e| e.info).unwrap_or_default();
        // TCPI_OPT_WSCALE, and the shifts.
        info.get(5).is_some_and(|options| options & 4 != 0) && info.get(6).is_some_and(|shifts| shifts >> 4 != waiting.scales.1)
    }

    /// Does what is to be done next; whether there is nothing any more.
    fn further(&self, waiting: &Waiting, there: Option<&Entry>) -> nix::Result<bool> {
        let done = match there.map(|e| (e.state, e.readable)) {
            None | Some((tcp::LISTEN, _)) => {
                waiting.ended()?;
                self.send(waiting, &waiting.before())?;
                false
            }
            Some((tcp::FIN_WAIT1 | tcp::FIN_WAIT2, _)) => {
                self.send(waiting, &waiting.before())?;
                false
            }
            Some((TIME_WAIT, _)) => {
                self.send(waiting, &waiting.syn())?;
                if waiting.stage != Stage::HalfOpen {
                    self.rest(waiting)?;
                }
                false
            }
            Some((tcp::SYN_RECV, _)) if waiting.stage == Stage::HalfOpen => true,
            Some((state @ (tcp::ESTABLISHED | tcp::CLOSE_WAIT), readable)) => {
                let end = u32::from(waiting.stage == Stage::Ended);
                readable == waiting.data.len() as u32 + end && (state == tcp::CLOSE_WAIT) == (end == 1)
            }
            Some((tcp::SYN_RECV, _)) => false,
            Some(_) => return Err(Errno::EADDRINUSE),
        };
        if done && waiting.stage == Stage::Broken {
            let after = waiting.peer_first.wrapping_add(1 + waiting.data.len() as u32);
            self.send(waiting, &waiting.segment(after, RST | ACK))?;
        } else if !done && there.is_some_and(|e| matches!(e.state, tcp::SYN_RECV | tcp::ESTABLISHED)) {
            self.rest(waiting)?;
        }
        Ok(done)
    }

    fn send(&self, waiting: &Waiting, segment: &Segment) -> nix::Result<()> {
        let (local, peer) = waiting.ends();
        self.wire.tcp(peer, local, segment)
    }

    /// The last ACK, what the peer has sent, and its end.
    fn rest(&self, waiting: &Waiting) -> nix::Result<()> {
        let mut seq = waiting.peer_first.wrapping_add(1);
        self.send(waiting, &waiting.segment(seq, ACK))?;
        for part in waiting.data.chunks(PART) {
            self.send(waiting, &Segment { data: part.to_vec(), ..waiting.segment(seq, ACK | PSH) })?;
            seq = seq.wrapping_add(part.len() as u32);
        }
        if waiting.stage == Stage::Ended {
            self.send(waiting, &waiting.segment(seq, FIN | ACK))?;
        }
        Ok(())
    }
}

impl Waiting {
    /// Both addresses as they are on the wire: its own, and the peer's.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (plain(self.local.into()), plain(self.peer.into()))
    }

    /// Makes a connection between the same addresses that has sent its FIN, and leaves it to the kernel. Nothing is sent.
    fn ended(&self) -> nix::Result<()> {
        let (local, peer) = self.ends();
        let fd = socket::socket(family(local), libc::SOCK_STREAM)?;
        let fd = fd.as_fd();
        let received = self.peer_first.wrapping_sub(BEHIND);
        tcp::repair(fd, Repair::On)?;
        tcp::choose(fd, Queue::Received)?;
        tcp::set_sequence(fd, received)?;
        tcp::choose(fd, Queue::Written)?;
        tcp::set_sequence(fd, self.own_first.wrapping_sub(AHEAD + 1))?;
        inet::bind(fd, local)?;
        inet::connect(fd, peer)?;
        tcp::set_window(fd, [received, 65535, 65535, 65535, received])?;
        // What is written in repair counts as sent.
        socket::shutdown(fd, libc::SHUT_WR)?;
        tcp::repair(fd, Repair::Off)
    }

    /// What answers that FIN.
    fn before(&self) -> Segment {
        let ack = self.own_first.wrapping_sub(AHEAD);
        Segment { seq: self.peer_first.wrapping_sub(BEHIND), ack, flags: FIN | ACK, window: 65535, ..Segment::default() }
    }

    /// The SYN of the peer.
    pub fn syn(&self) -> Segment {
        let mut options = vec![2, 4];
        options.extend(self.largest_segment.to_be_bytes());
        if self.sack {
            options.extend([4, 2]);
        }
        if self.timestamps {
            options.extend([8, 10]);
            options.extend(self.peer_clock.to_be_bytes());
            options.extend([0; 4]);
        }
        if self.scales != (0, 0) {
            options.extend([3, 3, self.scales.0]);
        }
        let flags = if self.marks { SYN | 0xc0 } else { SYN }; // ECE, CWR
        Segment { seq: self.peer_first, flags, window: self.window.min(65535) as u16, options, ..Segment::default() }
    }

    /// A segment of the peer that has received the answer to its SYN.
    fn segment(&self, seq: u32, flags: u8) -> Segment {
        let window = (self.window >> self.scales.0).min(65535) as u16;
        let options = if self.timestamps { STAMP.to_vec() } else { Vec::new() };
        Segment { seq, ack: self.own_first.wrapping_add(1), flags, window, options, data: Vec::new() }
    }

    /// Whether it is one that can be.
    pub fn is_sound(&self) -> bool {
        let (local, peer) = self.ends();
        local.is_ipv4() == peer.is_ipv4() && self.scales.0 <= 14 && self.scales.1 <= 14 && self.own_first != 0
    }
}

/// Timestamps that say nothing: the next one counts, whatever it is.
const STAMP: [u8; 10] = [8, 10, 0, 0, 0, 0, 0, 0, 0, 0];

#[cfg(test)]
#[path = "waiting_tests.rs"]
pub mod tests;
