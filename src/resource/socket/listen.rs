//! TCP sockets that listen: their addresses, options and groups, and who waits at them.

use super::exchange::{self, Seat};
use super::inet::{self, Inet, LevelOption};
use super::outside;
use super::waiting::{Stage, Waiting};
use crate::error::{Context, Result};
use crate::resource::Tree;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::apart::keep;
use crate::sys::ear::Ear;
use crate::sys::namespace::{self, Kind, places};
use crate::sys::sock_diag::inet as diag;
use crate::sys::{socket, tcp};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

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
    /// Connections that nobody has accepted yet, first come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
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
    let inode = found.meta.ino();
    let mut listening = match capture.recall.connections.listening(inode).filter(|_| capture.standing) {
        Some(known) => {
            let Inet { options, more, filter, .. } = known.inet;
            Listening { inet: Inet { options, more, filter, ..inet }, options: known.options, ..Listening::default() }
        }
        None => match asked(inet, found, fd, capture)? {
            Some(asked) => asked,
            None => return Ok(None),
        },
    };
    listening.backlog = diag::backlog(fd)?.1;
    capture.recall.connections.remember_listening(inode, &listening);
    Ok(Some(FileKind::Listening(Box::new(listening))))
}

/// With all options. `None` after a refusal.
fn asked(inet: Inet, found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<Listening>> {
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
    let new = match capture.inet.listening.entry(key) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => place.insert(inet::answers(inet::another(fd, &listening.inet)?.as_fd(), KNOWN)),
    };
    listening.options = inet::differing(fd, KNOWN, new);
    Ok(Some(listening))
}

fn listening(capture: &Capture, id: FileId) -> Option<&Listening> {
    match &capture.files.get(id as usize)?.kind {
        FileKind::Listening(socket) => Some(socket),
        _ => None,
    }
}

/// `socket:[77]`
fn inode(capture: &Capture, id: FileId) -> u64 {
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
            let Some(who) = holders.get(&inode(capture, id)) else { continue };
            let reason = format!("{} is also held by {}, outside of the tree", called(capture, id), outside::describe(Some(who)));
            let (pid, fd) = capture.holders[id as usize];
            capture.refuse(pid, format!("fd {fd}"), reason, "dump a process above both");
        }
    }
    for ids in by_network.values() {
        listed(ids, capture)?;
    }
    Ok(())
}

fn called(capture: &Capture, id: FileId) -> String {
    listening(capture, id).map_or_else(String::new, Listening::called)
}

/// What the list of all sockets of one network namespace shows of some listening ones.
fn listed(ids: &[FileId], capture: &mut Capture) -> Result<()> {
    let Some(like) = ids.iter().find_map(|&id| duplicate(capture, id).ok()) else { return Ok(()) };
    let network = listening(capture, ids[0]).and_then(|l| l.inet.network);
    let all = inside(&like, network, || diag::tcp(1 << tcp::LISTEN))?.context(|| "listing TCP sockets (sock_diag)")?;
    let mut seats = Vec::new();
    for &id in ids {
        let inode = inode(capture, id);
        let Some(at) = all.iter().position(|e| e.inode == inode) else { continue };
        let (pid, fd) = capture.holders[id as usize];
        if all[at].signed {
            let reason = format!("{}: its connections are signed (TCP_MD5SIG)", called(capture, id));
            capture.refuse(pid, format!("fd {fd}"), reason, "let the program do without");
        }
        let FileKind::Listening(listening) = &mut capture.files[id as usize].kind else { continue };
        if listening.shares() {
            // The kernel puts new ones in front, but for those of IPv6 that share an address (inet_hash).
            let last = listening.inet.family == libc::AF_INET6;
            listening.order = if last { at } else { all.len() - at } as u32;
        }
        let Ok(seat) = duplicate(capture, id).and_then(Seat::of) else { continue };
        let waits = diag::backlog(seat.fd.as_fd())?.0;
        if capture.standing && waits > 0 {
            seats.push((id, waits, seat));
        }
    }
    for (id, waits, seat) in seats {
        possible(id, waits, (seat, network), capture)?;
    }
    Ok(())
}

/// Refuses, for now, what waits at a socket and could not be put back into its queue.
fn possible(id: FileId, waits: u32, (seat, network): (Seat, Option<u32>), capture: &mut Capture) -> Result<()> {
    let (pid, fd) = capture.holders[id as usize];
    let (like, seats) = (seat.fd.try_clone()?, [seat]);
    let reason = match listening(capture, id).map(|l| l.inet.protocol) {
        Some(MPTCP) => Some("of MPTCP nothing that waits can be kept".to_owned()),
        _ => inside(&like, network, || exchange::possible(&seats))?.err().map(|e| e.message),
    };
    if let Some(reason) = reason {
        let connections = if waits == 1 { "a connection waits".to_owned() } else { format!("{waits} connections wait") };
        let reason = format!("{connections} at {} to be accepted: {reason}", called(capture, id));
        capture.refuse_for_now(pid, format!("fd {fd}"), reason, "dump again when the program has accepted what waits");
    }
    Ok(())
}

fn duplicate(capture: &Capture, id: FileId) -> Result<OwnedFd> {
    capture.duplicate(capture.holders.get(id as usize).copied().unwrap_or_default())
}

/// Runs `work` in the network namespace of a socket.
fn inside<T: Send>(like: &OwnedFd, network: Option<u32>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let doing = || "entering the network namespace of a listening socket";
    if network.is_none() {
        return Ok(work());
    }
    let network = socket::network(like.as_fd()).context(doing)?;
    namespace::within(&places([(&network, Kind::Net)]), work).context(doing)
}

/// Both ends of a connection, the own one first.
type Ends = (SocketAddr, SocketAddr);

/// Whether a tree has any.
pub fn any(tree: &Tree) -> bool {
    tree.files.iter().any(|file| matches!(file.kind, FileKind::Listening(_)))
}

/// Adds to the listening sockets of a tree what waits at them. The tree must stand still, and a network lock must keep away what
/// arrives. Each connection is taken and put back, by a child that meio's end does not end; what the kernel says to that as the
/// connection's end is kept from its peer by `mute`, who would take it for an answer. Only half-open ones are left alone whose
/// beginning was heard. `half_open`: both ends of these, whoever's, where they have been listed. Returned is what is not kept.
///
/// # Errors
/// When something could not be put back.
pub fn complete(
    tree: &mut Tree,
    capture: &mut Capture,
    half_open: Option<Vec<Ends>>,
    mute: &mut dyn FnMut(bool) -> Result<()>,
) -> Result<Vec<String>> {
    let mut by_network: BTreeMap<Option<u32>, Vec<FileId>> = BTreeMap::new();
    for file in &tree.files {
        if let FileKind::Listening(listening) = &file.kind
            && listening.inet.protocol != MPTCP
        {
            by_network.entry(listening.inet.network).or_default().push(file.id);
        }
    }
    let mut begun = std::mem::take(&mut capture.recall.begun);
    begun.look();
    let (mut lost, mut listed) = (Vec::new(), Vec::new());
    for (network, ids) in by_network {
        let seats = ids.iter().map(|&id| Seat::of(duplicate(capture, id)?)).collect::<Result<Vec<_>>>()?;
        let Some(like) = seats.first().map(|seat| seat.fd.try_clone()).transpose()? else { continue };
        if capture.recall.quiet.is_some() {
            let number = socket::network(like.as_fd()).and_then(|fd| Ok(nix::sys::stat::fstat(&fd)?.st_ino)).unwrap_or(0);
            begun.begin(number, |outgoing| inside(&like, network, || Ear::of_beginnings(outgoing)).ok()?.ok());
        }
        let all = match &half_open {
            Some(all) => all.iter().filter(|(local, _)| seats.iter().any(|seat| seat.takes(*local))).copied().collect(),
            None => inside(&like, network, || exchange::half_open(&seats))??,
        };
        listed.extend(&all);
        let (known, unknown): (Vec<Ends>, Vec<Ends>) = all.into_iter().partition(|ends| begun.of(*ends).is_some());
        let waits = |seat: &Seat| diag::backlog(seat.fd.as_fd()).is_ok_and(|(waits, _)| waits > 0);
        let mut found = Vec::new();
        if seats.iter().any(waits) || !unknown.is_empty() {
            match inside(&like, network, || exchange::possible(&seats))? {
                // Of those that wait this has been asked; there may be half-open ones only.
                Err(e) => lost.push(format!("half-open connections are not kept: {}", e.message)),
                Ok(()) => {
                    mute(true)?;
                    let exchanged = inside(&like, network, || keep(|| exchange::exchange(&seats, &known)));
                    mute(false)?;
                    found = exchanged?.context(|| "putting back the connections that wait to be accepted")?;
                }
            }
        }
        found.resize_with(seats.len(), exchange::Found::default);
        found.iter().flat_map(|found| &found.waiting).filter(|w| w.stage == Stage::HalfOpen).for_each(|one| begun.learn(one));
        for ends in known {
            // Which of those that share an address would have got it nobody knows before.
            let seat = seats.iter().position(|seat| seat.takes(ends.0)).unwrap_or(0);
            found[seat].waiting.extend(begun.of(ends).cloned());
        }
        for (id, found) in ids.into_iter().zip(found) {
            if let Some(FileKind::Listening(listening)) = tree.files.get_mut(id as usize).map(|f| &mut f.kind) {
                lost.extend(found.unknown.iter().map(|peer| format!("a half-open connection from {peer} is not kept")));
                listening.waiting = found.waiting;
            }
        }
    }
    begun.keep(&listed);
    capture.recall.begun = begun;
    Ok(lost)
}
