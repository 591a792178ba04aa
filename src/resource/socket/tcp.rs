//! TCP connections: numbers, windows, both queues.

mod read;

pub use read::{Reading, begin, complete, options, prepare, quick};

use super::choice::Choice;
use super::inet::{self, Inet, LevelOption};
use crate::error::{Context, Result};
use crate::resource::Tree;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::namespace::{Kind, places, within};
use crate::sys::sock_diag::inet as diag;
use crate::sys::socket;
use crate::sys::tcp::{self, Info, Repair, Window};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// One TCP socket that does not listen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// What every internet socket has.
    pub inet: Inet,
    /// State as the kernel numbers it: 1 for established, 7 for closed, …
    pub state: u8,
    /// Options of `IPPROTO_TCP` that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<LevelOption>,
    /// Whether the program wants to read no more (shutdown(2) `SHUT_RD`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub deaf: bool,
    /// The connection, where there is one, or what of it can still be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// How it came to be closed; `None` for one that was never connected, or is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Both sides have sent all they had.
    Done,
    /// The other end, or nobody there, broke it off, and the program has not been told.
    Reset,
    /// It was never answered but with a refusal, and the program has not been told.
    Refused,
}

fn is_false(b: &bool) -> bool {
    !b
}

/// What a connection holds. Numbers do not count what a FIN uses up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Number behind the last byte that was received.
    pub received_to: u32,
    /// Number behind the last byte that was written.
    pub written_to: u32,
    /// What was received and not read.
    #[serde(default, with = "crate::image::bytes", skip_serializing_if = "Vec::is_empty")]
    pub received: Vec<u8>,
    /// What was written and not acknowledged.
    #[serde(default, with = "crate::image::bytes", skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<u8>,
    /// How many bytes of that were not sent either.
    #[serde(default)]
    pub unsent: u32,
    /// The largest segment that the other end takes.
    pub largest_segment: u32,
    /// Shifts of both windows: those of the other end, and its own.
    pub scales: (u8, u8),
    /// Selective acknowledgements.
    #[serde(default)]
    pub sack: bool,
    /// The clock of the timestamps, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<u32>,
    /// `struct tcp_repair_window`.
    pub window: Window,
    /// `TCP_WINDOW_CLAMP`.
    #[serde(default)]
    pub clamp: u32,
}

/// (level, name, room): options of tcp(7) that can be asked and set, in the order in which they are set.
const KNOWN: &[(i32, i32, usize)] = &[
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 4),
    (libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 4),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
    (libc::IPPROTO_TCP, libc::TCP_INQ, 4),
    (libc::IPPROTO_TCP, 37, 4), // TCP_TX_DELAY
    (libc::IPPROTO_TCP, 44, 4), // TCP_RTO_MAX_MS
    (libc::IPPROTO_TCP, 45, 4), // TCP_RTO_MIN_US
    (libc::IPPROTO_TCP, 46, 4), // TCP_DELACK_MAX_US
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, 4),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 4),
];

/// `IPPROTO_MPTCP`.
pub const MPTCP: i32 = 262;

/// What stands in the way of an image of a socket.
type Obstacle = (&'static str, &'static str);

impl Tcp {
    /// For the graph.
    pub fn part(&self) -> Part {
        let at = |a: &inet::Address| SocketAddr::from(*a).to_string();
        let ends: Vec<String> = self.inet.local.iter().chain(&self.inet.peer).map(at).collect();
        Part::of("TCP connection").detail(ends.join(" - "))
    }

    /// For people: `TCP connection 10.0.0.1:80 - 10.0.0.2:4711`.
    pub fn called(&self) -> String {
        let part = self.part();
        if part.detail.is_empty() { "TCP socket".to_owned() } else { format!("{} {}", part.kind, part.detail) }
    }

    /// Whether anything can arrive for it.
    pub fn reachable(&self) -> bool {
        self.state != tcp::CLOSE
    }

    /// Whether a FIN was written, and whether it has been acknowledged.
    pub fn ended(&self) -> (bool, bool) {
        let written = matches!(self.state, tcp::FIN_WAIT1 | tcp::FIN_WAIT2 | tcp::CLOSING | tcp::LAST_ACK);
        (written, self.state == tcp::FIN_WAIT2)
    }

    /// Whether a FIN was received.
    pub fn heard_the_end(&self) -> bool {
        matches!(self.state, tcp::CLOSE_WAIT | tcp::LAST_ACK | tcp::CLOSING)
    }

    /// What becomes of the notices of bytes that were sent without a copy (`MSG_ZEROCOPY`), where there may be such: the kernel
    /// counts them by itself, and forgets which bytes they are about when these go into the image.
    pub fn notices(&self) -> Option<String> {
        let set = |o: &LevelOption| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_ZEROCOPY) && o.value.first() != Some(&0);
        let written = self.stream.as_ref().map(|s| s.written.len()).filter(|_| self.inet.more.iter().any(set))?;
        let lost = if written > 0 { format!("; none comes for {written} bytes under way") } else { String::new() };
        Some(format!("{}: notices of MSG_ZEROCOPY are numbered from 0 again{lost}", self.called()))
    }

    /// Those of the options that may be set at all.
    pub fn may_set(option: &LevelOption) -> bool {
        KNOWN.iter().any(|k| (k.0, k.1) == (option.level, option.name))
    }
}

/// Saves a TCP socket as far as it can be seen from outside; [`complete`] adds its connection when the tree stands still.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    let mut tcp = Tcp { inet, ..Tcp::default() };
    // Of a tree that stands still all this is asked when it is read.
    if capture.standing && tcp.inet.protocol != MPTCP && capture.decisions.tcp() == Choice::Keep {
        return Ok(Some(FileKind::Tcp(Box::new(tcp))));
    }
    let mut events = 0;
    if tcp.inet.protocol != MPTCP {
        (tcp.state, events) = (tcp::info(fd)?.state, socket::events(fd)?);
    }
    if let Some((reason, advice)) = obstacle(fd, &tcp, events, true)? {
        // What cannot be kept can be broken off.
        if capture.decisions.tcp() == Choice::Close && !tcp::in_repair(fd).is_ok_and(|yes| yes) {
            tcp.break_off();
            return Ok(Some(FileKind::Tcp(Box::new(tcp))));
        }
        let reason = format!("{}: {reason}", tcp.called());
        match tcp.inet.protocol {
            MPTCP => capture.refuse(found.pid, found.object(), reason, advice),
            _ if tcp::upper(fd).is_some() => capture.refuse(found.pid, found.object(), reason, advice),
            _ => capture.refuse_for_now(found.pid, found.object(), reason, advice),
        }
        return Ok(None);
    }
    Ok(Some(FileKind::Tcp(Box::new(tcp))))
}

/// `set`: whether options may stand in the way that a program sets.
fn obstacle(fd: BorrowedFd<'_>, tcp: &Tcp, events: i16, set: bool) -> Result<Option<Obstacle>> {
    if tcp.inet.protocol == MPTCP {
        // Whoever accepts one that has fallen back gets a socket of TCP. Whoever connects keeps one of MPTCP, which the kernel
        // does not let be repaired (TCP_REPAIR is ENOPROTOOPT), and without that nothing shows what was written and not sent.
        let reason = match tcp.inet.peer.is_some() && tcp::has_fallen_back(fd) {
            true => "MPTCP, fallen back to TCP: the kernel shows neither its numbers nor what was written",
            false => "MPTCP does not show the numbers of its subflows",
        };
        return Ok(Some((reason, "let the program use plain TCP (sysctl net.mptcp.enabled=0), or break it off (--tcp close)")));
    }
    if set && tcp::upper(fd).is_some() {
        return Ok(Some((
            "the kernel encrypts it (kTLS), and does not give its keys back",
            "let the program do that itself, or break the connection off (--tcp close)",
        )));
    }
    Ok(match tcp.state {
        tcp::SYN_RECV => Some(("it is being opened (TCP Fast Open)", "wait until the other end has answered")),
        _ if set && tcp::in_repair(fd)? => Some(("somebody else has it in repair (TCP_REPAIR)", "end whoever repairs it first")),
        tcp::CLOSE => None,
        _ if events & libc::POLLPRI != 0 => Some(("urgent data wait in it", "let the program read them first (MSG_OOB)")),
        _ if events & libc::POLLERR != 0 => Some(("an error or a notice waits in it to be read", "let the program read it first")),
        _ => None,
    })
}

/// Refuses connections whose segments are signed: only the list of all sockets shows that. Looked for before the tree stands
/// still, as it takes its time.
pub fn refuse_signed(capture: &mut Capture) -> Result<()> {
    if capture.standing || capture.decisions.tcp() == Choice::Close {
        return Ok(());
    }
    let mut own: BTreeMap<Option<u32>, HashMap<String, FileId>> = BTreeMap::new();
    for file in &capture.files {
        if let FileKind::Tcp(tcp) = &file.kind
            && tcp.reachable()
        {
            own.entry(tcp.inet.network).or_default().insert(file.link.clone(), file.id);
        }
    }
    for (network, files) in own {
        let Some(Ok(like)) = files.values().map(|&id| capture.duplicate(capture.holders[id as usize])).find(Result::is_ok) else {
            continue;
        };
        let inside = match network {
            Some(_) => Some(socket::network(like.as_fd())?),
            None => None,
        };
        let all = within(&places(inside.iter().map(|fd| (fd, Kind::Net))), || diag::tcp(!0))??;
        for entry in all.iter().filter(|e| e.signed) {
            let Some(&id) = files.get(&format!("socket:[{}]", entry.inode)) else { continue };
            let (FileKind::Tcp(tcp), (pid, fd)) = (&capture.files[id as usize].kind, capture.holders[id as usize]) else { continue };
            let reason = format!("{}: its segments are signed, and the kernel does not give the key back (TCP_MD5SIG)", tcp.called());
            capture.refuse(pid, format!("fd {fd} (socket:[{}])", entry.inode), reason, "close it first, or break it off (--tcp close)");
        }
    }
    Ok(())
}

/// Takes all connections of a tree that its image keeps into repair for good: they end with their tree, and nobody is told.
pub fn silence(tree: &Tree, capture: &Capture) -> Result<()> {
    for (file, holder) in tree.files.iter().zip(&capture.holders) {
        if matches!(&file.kind, FileKind::Tcp(tcp) if tcp.reachable()) {
            tcp::repair(capture.duplicate(*holder)?.as_fd(), Repair::On).context(|| "silencing a TCP connection")?;
        }
    }
    Ok(())
}

impl Stream {
    /// What both ends agreed on.
    pub fn info(&self) -> Info {
        Info { state: tcp::ESTABLISHED, timestamps: self.clock.is_some(), sack: self.sack, scales: self.scales, ..Info::default() }
    }

    /// The part of what was written that was sent, and the one that was not.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        self.written.split_at(self.written.len().saturating_sub(self.unsent as usize))
    }
}
