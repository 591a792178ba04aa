//! All connections that wait at the listening sockets of a network namespace: taken, looked at, and put back, at once.
//!
//! It is done by a [keeper](crate::sys::apart), since a connection that is not put back is lost; and behind a network lock, since
//! one that is not there for a moment would be answered with a reset.

use super::waiting::{self, Placing, Stage, Waiting};
use crate::error::{Context, Error, Result};
use crate::sys::ear::Ear;
use crate::sys::sock_diag::inet as diag;
use crate::sys::wire::{ACK, PSH, Segment, plain};
use crate::sys::{inet, socket, tcp};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A listening socket.
#[derive(Debug)]
pub struct Seat {
    /// Duplicated from the tree.
    pub fd: OwnedFd,
    /// Where it listens.
    pub local: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub interface: u32,
}

/// What waits at one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// First those that have come the whole way, in their order.
    pub waiting: Vec<Waiting>,
    /// Peers of half-open ones whose numbers could not be found out.
    pub unknown: Vec<String>,
}

/// How long the answer of the own stack may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// Those that have sent a SYN to a socket, and nothing else yet.
pub fn half_open(seats: &[Seat]) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let all = diag::tcp(1 << tcp::SYN_RECV).context(|| "listing half-open connections (sock_diag)")?;
    let own = all.into_iter().filter(|e| seats.iter().any(|seat| seat.takes(e.local)));
    Ok(own.map(|e| (e.local, e.peer)).collect())
}

/// Takes all that waits and puts it back, but for half-open connections between ends that are to be `spared`. For the network
/// namespace of the sockets.
///
/// # Errors
/// When one could not be put back; the others are.
pub fn exchange(seats: &[Seat], spared: &[(SocketAddr, SocketAddr)]) -> Result<Vec<Found>> {
    let placing = Placing::new()?;
    let ear = Ear::new().context(|| "making a packet socket")?;
    let mut found: Vec<Found> = seats.iter().map(|_| Found::default()).collect();
    let mut failed = Ok(());
    let patience: Vec<Option<Vec<u8>>> = seats.iter().map(|seat| without_patience(seat.fd.as_fd())).collect();
    for (seat, found) in seats.iter().zip(&mut found) {
        failed = failed.and(waiting::take(seat.fd.as_fd(), &mut found.waiting));
    }
    // What was opened up by Fast Open only is half-open, too, and was taken.
    match half_open(seats) {
        Err(e) => failed = failed.and(Err(e)),
        Ok(list) => {
            for (local, peer) in list.into_iter().filter(|ends| !spared.contains(ends)) {
                match open_up(seats, &placing, &ear, (local, peer)) {
                    Ok(Some((n, waiting))) => found[n].waiting.push(waiting),
                    Ok(None) => found.iter_mut().take(1).for_each(|f| f.unknown.push(peer.to_string())),
                    Err(e) => failed = failed.and(Err(e)),
                }
            }
        }
    }
    for (seat, found) in seats.iter().zip(&found) {
        for waiting in &found.waiting {
            failed = failed.and(placing.put(waiting, seat.interface)).and_then(|()| remind(seats, &placing, &ear, waiting));
        }
    }
    for (seat, patience) in seats.iter().zip(patience) {
        if let Some(value) = patience {
            let set = socket::set_option(seat.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &value);
            failed = failed.and(set.context(|| "setting TCP_DEFER_ACCEPT again"));
        }
    }
    failed.map(|()| found)
}

/// Lets a socket take connections that have brought no data; what it was told of them (`TCP_DEFER_ACCEPT`) is returned.
pub fn without_patience(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let value = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4).ok()?;
    if value.iter().all(|b| *b == 0) {
        return None;
    }
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &[0; 4]).ok()?;
    Some(value)
}

impl Seat {
    /// A listening socket as it is.
    pub fn of(fd: OwnedFd) -> Result<Seat> {
        let doing = || "looking at a listening socket";
        let local = inet::local(fd.as_fd()).context(doing)?;
        let interface = diag::bound_interface(fd.as_fd()).context(doing)?;
        Ok(Seat { fd, local, interface })
    }

    /// Whether a connection to this address comes to it, or may.
    pub fn takes(&self, local: SocketAddr) -> bool {
        let (own, local) = (plain(self.local), plain(local));
        own.port() == local.port() && (own.ip() == local.ip() || own.ip().is_unspecified())
    }
}

/// Since Linux 6.15 a half-open connection takes nothing that shows a time before it was begun, or after its own last SYN. So a peer
/// that has heard of it, but before it was put in its place, is told the time, and the SYN is answered once more.
///
/// # Errors
/// When the own stack cannot be reached.
pub fn remind(seats: &[Seat], placing: &Placing, ear: &Ear, waiting: &Waiting) -> Result<()> {
    if waiting.stage != Stage::HalfOpen || !waiting.timestamps {
        return Ok(());
    }
    let (local, peer) = waiting.ends();
    let doing = || format!("telling the time to {peer}");
    let group: Vec<usize> = (0..seats.len()).filter(|&n| seats[n].takes(local)).collect();
    numbers(seats, &group, placing, ear, (local, peer)).context(doing)?;
    placing.again(waiting).context(doing)
}

/// Completes a half-open connection, as its peer would, and takes it: it tells what both ends agreed on only then. The number of the
/// seat that had it, and the connection. `None` when it does not say its number.
fn open_up(seats: &[Seat], placing: &Placing, ear: &Ear, (local, peer): (SocketAddr, SocketAddr)) -> Result<Option<(usize, Waiting)>> {
    let doing = || format!("completing the connection from {peer}");
    let group: Vec<usize> = (0..seats.len()).filter(|&n| seats[n].takes(local)).collect();
    let Some(own) = numbers(seats, &group, placing, ear, (local, peer)).context(doing)? else { return Ok(None) };
    // Whatever else waits for data would wait on without this byte.
    let last = Segment { seq: own.ack, ack: own.seq, flags: ACK | PSH, window: u16::MAX, data: vec![0], ..Segment::default() };
    placing.wire().tcp(plain(peer), plain(local), &last).context(doing)?;
    for _ in 0..100 {
        for &n in &group {
            let mut taken = Vec::new();
            waiting::take(seats[n].fd.as_fd(), &mut taken)?;
            if let Some(mut waiting) = taken.pop() {
                waiting.data.clear();
                waiting.stage = Stage::HalfOpen;
                waiting.peer_clock = own.timestamps().map_or(0, |(_, peer)| peer);
                return Ok(Some((n, waiting)));
            }
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Err(Error::other("it does not come into the queue")).context(doing)
}

/// A segment that a half-open connection cannot have expected is answered with its numbers; the peer, whom the answer may reach,
/// finds nothing new in it.
fn numbers(
    seats: &[Seat],
    group: &[usize],
    placing: &Placing,
    ear: &Ear,
    (local, peer): (SocketAddr, SocketAddr),
) -> Result<Option<Segment>> {
    let marks: Vec<i32> = group.iter().map(|&n| socket::number(seats[n].fd.as_fd(), libc::SO_MARK).unwrap_or(0)).collect();
    let mark = |n: usize, mark: i32| socket::set_number(seats[n].fd.as_fd(), libc::SO_MARK, mark);
    // The answer has to pass the lock to be heard.
    group.iter().try_for_each(|&n| mark(n, crate::sys::wire::PASS as i32))?;
    let mut heard = Ok(None);
    for seq in [0, 1 << 31] {
        // Unlike others, one with data is always answered.
        let odd = Segment { seq, data: vec![0], ..Segment::default() };
        heard = placing.wire().tcp(plain(peer), plain(local), &odd).and_then(|()| ear.hear(local, peer, PATIENCE));
        if !matches!(heard, Ok(None)) {
            break;
        }
    }
    for (&n, &old) in group.iter().zip(&marks) {
        mark(n, old)?;
    }
    Ok(heard?.filter(|segment| segment.flags == ACK))
}

/// How many more connections may end while those that wait are exchanged.
const MARGIN: u32 = 64;

/// Connections in `TCP_TIME_WAIT`, by `/proc/net/sockstat`.
fn remembered(sockstat: &str) -> u32 {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap_or_default();
    let mut words = tcp.split(' ');
    words.find(|word| *word == "tw").and_then(|_| words.next()?.parse().ok()).unwrap_or(0)
}

/// The first kernel that was seen to take connections back. No probe tells: what is tried is lost where it fails.
const TAKES_BACK: (u32, u32) = (6, 12);

/// Whether a kernel's release, such as `6.1.0-9-amd64`, is older than a version.
fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found < version)
}

/// Whether everything that waits could be put back: asked while it still waits.
///
/// # Errors
/// What stands in the way, for which connection.
pub fn possible(seats: &[Seat]) -> Result<()> {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    if is_before(&release, TAKES_BACK) {
        return Err(Error::other(format!("Linux {release} would not take it back (6.1 was seen not to, 6.12 does)")));
    }
    let all = diag::tcp(1 << tcp::ESTABLISHED | 1 << tcp::CLOSE_WAIT | 1 << tcp::SYN_RECV);
    let all = all.context(|| "listing connections (sock_diag)")?;
    // One at a time is made to have ended, and the kernel remembers only so many.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let most = read("/proc/sys/net/ipv4/tcp_max_tw_buckets").trim().parse().unwrap_or(u32::MAX);
    if remembered(&read("/proc/thread-self/net/sockstat")).saturating_add(MARGIN) > most {
        return Err(Error::other(
            "as many connections in TIME_WAIT as there may be (net.ipv4.tcp_max_tw_buckets) leave no way to put it back",
        ));
    }
    for entry in all.iter().filter(|e| e.inode == 0 && seats.iter().any(|seat| seat.takes(e.local))) {
        waiting::possible(entry.local, entry.peer)
            .map_err(|e| Error::other(format!("the connection from {} could not be put back: {e}", entry.peer)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert!(is_before("6.1.0-9-cloud-amd64", (6, 12)) && is_before("5.10.1", (6, 12)) && is_before("6.11.99", (6, 12)));
        assert!(!is_before("6.12.117+deb13-cloud-amd64", (6, 12)) && !is_before("6.18.44", (6, 12)) && !is_before("7.0", (6, 12)));
        assert!(!is_before("", (6, 12)) && !is_before("unknown", (6, 12)));
    }

    #[test]
    fn connections_that_are_remembered() {
        assert_eq!(remembered("sockets: used 9\nTCP: inuse 5 orphan 0 tw 17 alloc 7 mem 1\nUDP: inuse 1 mem 2\n"), 17);
        assert_eq!((remembered(""), remembered("TCP: inuse 5 tw")), (0, 0));
        // As this machine writes it.
        assert!(std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap().contains(" tw "));
    }
}
