//! TCP sockets that listen: their addresses, options and groups, and who waits at them.

use super::inet::{self, Inet, LevelOption};
use super::outside;
use crate::error::{Context, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::namespace::{self, Kind, places};
use crate::sys::tcp_diag::{self, Entry};
use crate::sys::{socket, tcp};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A listening TCP or MPTCP socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listening {
    /// What every internet socket has.
    pub inet: Inet,
    /// Connections that may wait, listen(2).
    pub backlog: u32,
    /// Options of `IPPROTO_TCP` that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<LevelOption>,
    /// Its place among those of one address that share it (`SO_REUSEPORT`): a program that chooses between them counts so.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub order: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `IPPROTO_MPTCP`.
const MPTCP: i32 = 262;

/// (level, name, room): options of tcp(7) that a listening socket can be asked for and can be given, in the order in which they
/// are set. Connections inherit most of them.
const KNOWN: &[(i32, i32, usize)] = &[
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, 32),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 4),
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
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 4),
];

impl Listening {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("listening socket").detail(self.address().map_or_else(String::new, |a| a.to_string()))
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.inet.local.map(SocketAddr::from)
    }

    /// For people: `the listening socket 0.0.0.0:80`.
    pub fn called(&self) -> String {
        self.address().map_or_else(|| "a listening socket".to_owned(), |a| format!("the listening socket {a}"))
    }

    /// Whether it is one of several that may share its address.
    fn shares(&self) -> bool {
        self.inet.more.iter().any(|o| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_REUSEPORT) && o.value.first() != Some(&0))
    }

    /// Options that may be set at all.
    pub fn may_set(option: &LevelOption) -> bool {
        KNOWN.iter().any(|k| (k.0, k.1) == (option.level, option.name))
    }
}

/// Whether a socket is of this kind.
pub fn is(fd: BorrowedFd<'_>, protocol: i32) -> bool {
    matches!(protocol, libc::IPPROTO_TCP | MPTCP) && socket::number(fd, libc::SO_ACCEPTCONN).is_ok_and(|l| l != 0)
}

/// Saves a listening socket as far as it tells of itself; nothing in it changes.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    let mut listening = Listening { inet, ..Listening::default() };
    match listening.inet.ask(fd, &mut capture.inet) {
        Err(_) if socket::filter(fd) == Err(Errno::EACCES) => {
            let reason = format!("{}: a BPF program filters what it receives", listening.called());
            capture.refuse(found.pid, found.object(), reason, "detach it first (SO_DETACH_BPF)");
            return Ok(None);
        }
        asked => asked?,
    }
    let key = listening.inet.key();
    if !capture.inet.listening.contains_key(&key) {
        let new = inet::another(fd, &listening.inet)?;
        capture.inet.listening.insert(key, inet::answers(new.as_fd(), KNOWN));
    }
    listening.options = capture.inet.listening.get(&key).map(|new| inet::differing(fd, KNOWN, new)).unwrap_or_default();
    listening.backlog = tcp_diag::backlog(fd)?.1;
    Ok(Some(FileKind::Listening(Box::new(listening))))
}

fn listening(capture: &Capture, id: FileId) -> Option<&Listening> {
    match &capture.files.get(id as usize)?.kind {
        FileKind::Listening(socket) => Some(socket),
        _ => None,
    }
}

/// `socket:[77]`
fn inode(capture: &Capture, id: FileId) -> u32 {
    let link = capture.files.get(id as usize).map_or("", |f| f.link.as_str());
    link.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap_or(0)
}

/// Finds out what only the list of all sockets shows: who else holds those of the tree, their order, who waits at them. Nothing is
/// changed; the tree may be running.
pub fn resolve(tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    let mut by_network: BTreeMap<Option<u32>, Vec<FileId>> = BTreeMap::new();
    for id in 0..capture.files.len() as FileId {
        if let Some(listening) = listening(capture, id) {
            by_network.entry(listening.inet.network).or_default().push(id);
        }
    }
    if !capture.standing && !by_network.is_empty() {
        let holders = outside::holders(tree);
        for &id in by_network.values().flatten() {
            let Some(who) = holders.get(&u64::from(inode(capture, id))) else { continue };
            let reason = format!("{} is also held by {}, outside of the tree", called(capture, id), outside::describe(Some(who)));
            let (pid, fd) = capture.holders[id as usize];
            capture.refuse(pid, format!("fd {fd}"), reason, "dump a process above both");
        }
    }
    for ids in by_network.values() {
        order(ids, capture)?;
        waiting(ids, capture)?;
    }
    Ok(())
}

fn called(capture: &Capture, id: FileId) -> String {
    listening(capture, id).map_or_else(String::new, Listening::called)
}

/// The sockets of the network namespace that some listening ones of the tree live in.
pub fn listed(like: &OwnedFd, network: Option<u32>, states: u32) -> Result<Vec<Entry>> {
    let doing = || "listing TCP sockets (sock_diag)";
    if network.is_none() {
        return tcp_diag::list(states).context(doing);
    }
    let network = socket::network(like.as_fd()).context(doing)?;
    namespace::within(&places([(&network, Kind::Net)]), || tcp_diag::list(states)).context(doing)?.context(doing)
}

/// Which of those that share an address was there first.
fn order(ids: &[FileId], capture: &mut Capture) -> Result<()> {
    let sharing: Vec<FileId> = ids.iter().copied().filter(|&id| listening(capture, id).is_some_and(Listening::shares)).collect();
    if sharing.len() < 2 {
        return Ok(());
    }
    let Ok(like) = capture.duplicate(capture.holders[sharing[0] as usize]) else { return Ok(()) };
    let all = listed(&like, listening(capture, sharing[0]).and_then(|l| l.inet.network), 1 << tcp::LISTEN)?;
    for id in sharing {
        let inode = inode(capture, id);
        let Some(at) = all.iter().position(|e| e.inode == inode) else { continue };
        if let FileKind::Listening(listening) = &mut capture.files[id as usize].kind {
            // The kernel puts new ones in front, but for those of IPv6 that share an address (inet_hash).
            let last = listening.inet.family == libc::AF_INET6;
            listening.order = if last { at } else { all.len() - at } as u32;
        }
    }
    Ok(())
}

/// Refuses, for now, those that have connections waiting at them.
fn waiting(ids: &[FileId], capture: &mut Capture) -> Result<()> {
    for &id in ids {
        let (pid, fd) = capture.holders[id as usize];
        // What runs closes sockets at any time.
        let Ok(own) = capture.duplicate((pid, fd)) else { continue };
        let count = tcp_diag::backlog(own.as_fd())?.0;
        if count > 0 {
            let s = if count == 1 { " waits" } else { "s wait" };
            let reason = format!("{count} connection{s} at {} to be accepted", called(capture, id));
            let advice = "dump again a moment later: the program has not accepted them yet";
            capture.refuse_for_now(pid, format!("fd {fd}"), reason, advice);
        }
    }
    Ok(())
}
