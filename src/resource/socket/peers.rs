//! Whose peer is whose: what only the whole of a tree shows.

use super::outside;
use super::queue;
use super::unix::{Message, Peer, Role, UnixSocket, readable};
use crate::error::{Context, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{self, FileId, FileKind};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::sock_diag::LISTEN;
use crate::sys::sock_diag::unix::{self as diag, Unix};
use crate::sys::{namespace, socket};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

/// Everything about the unix sockets of one capture.
struct Sockets {
    /// The network namespaces that were asked, by their place in the tree's table; meio's own is the first.
    networks: Vec<Option<u32>>,
    /// What the kernel lists, by inode.
    listed: HashMap<u64, Unix>,
    /// The tree's own, by inode.
    own: HashMap<u64, FileId>,
    /// Processes outside that hold a socket, by inode.
    holders: HashMap<u64, Vec<i32>>,
    /// Nothing of the tree is missing in `own`.
    complete: bool,
}

fn unix(capture: &Capture, id: FileId) -> Option<&UnixSocket> {
    match &capture.files.get(id as usize)?.kind {
        FileKind::Unix(socket) => Some(socket),
        _ => None,
    }
}

fn unix_mut(capture: &mut Capture, id: FileId) -> Option<&mut UnixSocket> {
    match &mut capture.files.get_mut(id as usize)?.kind {
        FileKind::Unix(socket) => Some(socket),
        _ => None,
    }
}

fn inode(capture: &Capture, id: FileId) -> u64 {
    let link = capture.files.get(id as usize).map_or("", |f| f.link.as_str());
    link.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap_or(0)
}

/// The network namespaces that unix sockets of the tree live in, with their places in its table, but for meio's.
fn networks_of(capture: &Capture) -> Result<Vec<(u32, OwnedFd)>> {
    let mut found: Vec<(u32, OwnedFd)> = Vec::new();
    if capture.namespaces.found.iter().all(|n| n.kind != namespace::Kind::Net) {
        return Ok(found);
    }
    for id in (0..capture.files.len() as FileId).filter(|&id| unix(capture, id).is_some()) {
        let doing = || format!("asking for the network namespace of {}", object(capture, id).1);
        let network = socket::network(duplicate(capture, id)?.as_fd()).context(doing)?;
        match capture.namespaces.known(namespace::identity(&network).context(doing)?) {
            Some(known) if found.iter().all(|f| f.0 != known) => found.push((known, network)),
            _ => {}
        }
    }
    Ok(found)
}

fn object(capture: &Capture, id: FileId) -> (i32, String) {
    let (pid, fd) = capture.holders.get(id as usize).copied().unwrap_or_default();
    (pid, format!("fd {fd} (socket:[{}])", inode(capture, id)))
}

fn duplicate(capture: &Capture, id: FileId) -> Result<OwnedFd> {
    capture.duplicate(capture.holders.get(id as usize).copied().unwrap_or_default())
}

/// Finds the peer of every unix socket of the tree, and refuses what leads out of it. Nothing is changed; the tree may
/// be running: sockets that are under way in messages are not known then.
pub fn resolve(tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    if !capture.files.iter().any(|f| matches!(f.kind, FileKind::Unix(_))) {
        return Ok(());
    }
    let sockets = Sockets::list(tree, capture)?;
    for id in 0..capture.files.len() as FileId {
        let Some(entry) = unix(capture, id).and_then(|_| sockets.listed.get(&inode(capture, id))) else {
            // What runs closes sockets at any time, and those are not in the list either.
            if unix(capture, id).is_some() && capture.standing {
                let (pid, object) = object(capture, id);
                let reason = "it lives in a network namespace that no process of the tree lives in";
                capture.refuse(pid, object, reason, "dump a process above, or let the program close it");
            }
            continue;
        };
        let network = sockets.networks.get(entry.network as usize).copied().flatten();
        if let Some(holders) = sockets.holders.get(&inode(capture, id)) {
            let (pid, object) = object(capture, id);
            let reason = format!("the socket is also held by {}, outside of the tree", outside::describe(Some(holders)));
            capture.refuse(pid, object, reason, "dump a process above both");
            continue;
        }
        let role = match entry.state {
            LISTEN => sockets.listening(id, entry, capture),
            _ if entry.peer.is_some() => sockets.connected(id, entry, capture)?,
            _ => Some(Role::Alone),
        };
        if let (Some(role), Some(socket)) = (role, unix_mut(capture, id)) {
            (socket.role, socket.shutdown, socket.network) = (role, entry.shutdown, network);
        }
    }
    Ok(())
}

/// Reads the queues of all sockets, and what is found in queues only. The tree must stand still.
pub fn read_queues(capture: &mut Capture) -> Result<()> {
    let own = std::process::id() as i32;
    let mut id = 0;
    // What comes out of a queue is appended to the list and has its turn.
    while (id as usize) < capture.files.len() {
        if let Some(kind) = unix(capture, id).filter(|s| !matches!(s.role, Role::Listening { .. })).map(|s| s.kind) {
            let known = capture.refusals.len();
            read_queue(capture, id, kind)?;
            let (pid, object) = object(capture, id);
            for refusal in capture.refusals[known..].iter_mut().filter(|r| r.pid == own) {
                refusal.object = format!("{} in the queue of {object}", refusal.object);
                refusal.pid = pid;
            }
        }
        id += 1;
    }
    Ok(())
}

fn read_queue(capture: &mut Capture, id: FileId, kind: i32) -> Result<()> {
    let fd = duplicate(capture, id)?;
    let events = socket::events(fd.as_fd())?;
    let reset = events & libc::POLLERR != 0;
    let ended = events & libc::POLLRDHUP != 0;
    // Where messages have borders, a pending error is told, and forgotten, before the queue is looked at.
    let mut peeked = Vec::new();
    if !reset || kind == libc::SOCK_STREAM {
        peeked = queue::read(fd.as_fd(), kind, ended)?;
    } else if socket::readable(fd.as_fd())? > 0 {
        let (pid, object) = object(capture, id);
        let reason = "an error and messages wait in it: reading these would take the error away";
        capture.refuse_for_now(pid, object, reason, "dump again a moment later: the program has not read from it yet");
    }
    let mut messages = Vec::with_capacity(peeked.len());
    for p in peeked {
        let mut files = Vec::new();
        for fd in p.message.fds {
            files.extend(descriptor::held(fd, capture)?);
        }
        let from = if kind == libc::SOCK_DGRAM { p.message.name.map(Bytes) } else { None };
        messages.push(Message { data: p.message.data, from, files, credentials: p.message.credentials, urgent: p.urgent });
    }
    if let Some(socket) = unix_mut(capture, id) {
        (socket.queue, socket.reset) = (messages, reset);
    }
    Ok(())
}

impl Sockets {
    fn list(tree: &HashSet<i32>, capture: &Capture) -> Result<Sockets> {
        let doing = || "listing unix sockets (sock_diag)";
        let mut all = diag::list().context(doing)?;
        let mut networks = vec![None];
        for (id, namespace) in networks_of(capture)? {
            let inside = namespace::places([(&namespace, namespace::Kind::Net)]);
            let number = networks.len() as u32;
            let found = namespace::within(&inside, diag::list).context(doing)?.context(doing)?;
            all.extend(found.into_iter().map(|socket| Unix { network: number, ..socket }));
            networks.push(Some(id));
        }
        let ids = 0..capture.files.len() as FileId;
        let own = ids.filter(|&id| unix(capture, id).is_some()).map(|id| (inode(capture, id), id)).collect();
        let listed = all.into_iter().map(|s| (s.inode, s)).collect();
        Ok(Sockets { networks, listed, own, holders: outside::holders(tree), complete: capture.standing })
    }

    /// A listening socket with those that wait.
    fn listening(&self, id: FileId, entry: &Unix, capture: &mut Capture) -> Option<Role> {
        let (pid, object) = object(capture, id);
        let mut pending = Vec::new();
        for client in &entry.pending {
            match self.own.get(client) {
                Some(&file) => pending.push(Some(file)),
                None if *client == 0 || !self.complete && !self.holders.contains_key(client) => pending.push(None),
                None => {
                    let reason = format!("{} waits to be accepted, outside of the tree", outside::describe(self.holders.get(client)));
                    capture.refuse(pid, object.as_str(), reason, "let the program accept the connection first, or end that process");
                    return None;
                }
            }
        }
        // Their ends here have no inode, are not listed and cannot be looked into but by accept(2), and nobody can put
        // them back with the same peer credentials afterwards.
        let closed = entry.pending.iter().filter(|&&client| client == 0).count();
        let ids = [entry.name.as_deref().map(readable), Some(format!("[{}]", entry.inode))];
        if closed > 0 && !ids.iter().flatten().any(|id| capture.decisions.ignores(&format!("unix:{id}"))) {
            let reason = format!("{closed} of those who wait to be accepted have closed their ends: what they sent cannot be read");
            let id = ids.into_iter().flatten().next().unwrap_or_default();
            let advice = format!("dump again a moment later, when they are accepted, or let them come back without: --ignore unix:{id}");
            capture.refuse_for_now(pid, object, reason, advice);
            return None;
        }
        Some(Role::Listening { backlog: entry.written as i32, pending })
    }

    /// A socket with a peer.
    fn connected(&self, id: FileId, entry: &Unix, capture: &mut Capture) -> Result<Option<Role>> {
        let Some(peer) = entry.peer else { return Ok(Some(Role::Alone)) };
        let name = match self.listed.get(&peer) {
            Some(peer) => peer.name.clone(),
            None => match duplicate(capture, id) {
                Err(_) if !self.complete => return Ok(None), // closed in the meantime
                fd => socket::peer_name(fd?.as_fd()).unwrap_or_default(),
            },
        };
        let accepted = self.accepted(entry, name.as_deref());
        if let Some(&file) = self.own.get(&peer) {
            return Ok(Some(Role::Connected { peer: Peer::File(file), accepted }));
        }
        if !self.listed.contains_key(&peer) {
            let me = entry.inode;
            let waits = self.listed.values().find(|l| l.state == LISTEN && l.pending.contains(&me));
            match waits {
                Some(listener) => {
                    if let Some(&file) = self.own.get(&listener.inode) {
                        // The other end has no inode and is not listed; what lies there unread counts as memory of this one.
                        if entry.written > 0 {
                            let (pid, object) = object(capture, id);
                            let reason = "bytes were sent over its connection, which is not accepted yet, where nobody can read them";
                            let advice = "dump again a moment later: the program has not accepted the connection yet";
                            capture.refuse_for_now(pid, object, reason, advice);
                            return Ok(None);
                        }
                        return Ok(Some(Role::Connected { peer: Peer::Waiting(file), accepted: false }));
                    }
                    return Ok(self.outside(id, entry, listener.inode, name, capture));
                }
                None if peer != 0 => return Ok(self.outside(id, entry, peer, name, capture)),
                None => return Ok(Some(Role::Connected { peer: Peer::Gone(name.map(Bytes)), accepted })),
            }
        }
        Ok(self.outside(id, entry, peer, name, capture))
    }

    /// A socket whose peer is outside: kept when the user wants it and it can be had again, else refused.
    fn outside(&self, id: FileId, entry: &Unix, peer: u64, name: Option<Vec<u8>>, capture: &mut Capture) -> Option<Role> {
        if !self.complete && !self.holders.contains_key(&peer) {
            return None;
        }
        let (pid, object) = object(capture, id);
        let who = outside::describe(self.holders.get(&peer));
        let called = name.as_deref().map(readable);
        let ids = [called.clone(), Some(format!("[{}]", entry.inode)), Some(format!("[{peer}]"))];
        let wanted = |decided: &dyn Fn(&str) -> bool| ids.iter().flatten().any(|id| decided(&format!("unix:{id}")));
        if wanted(&|id| capture.decisions.external(id)) {
            if let Some(name) = name {
                let lost = entry.readable;
                if lost > 0 {
                    capture
                        .warnings
                        .push(format!("process {pid}, {object}: {lost} bytes from {who} were not read and will not be there again"));
                }
                if entry.written > 0 {
                    capture
                        .warnings
                        .push(format!("process {pid}, {object}: {who} has not read all that was sent; it will not be sent again"));
                }
                let name = outside::from_root(name, self.holders.get(&peer));
                return Some(Role::Connected { peer: Peer::Outside(Bytes(name)), accepted: false });
            }
            let reason = format!("its peer is held by {who}, outside of the tree, and has no name by which to connect to it again");
            capture.refuse(pid, object, reason, format!("dump a process above both, or let it be closed: --ignore unix:[{}]", entry.inode));
            return None;
        }
        if wanted(&|id| capture.decisions.ignores(id)) {
            return Some(Role::Connected { peer: Peer::Gone(name.map(Bytes)), accepted: self.accepted(entry, None) });
        }
        let (reason, advice) = match &called {
            Some(called) => (
                format!("its peer {called} is held by {who}, outside of the tree"),
                format!("dump a process above both, or let it connect anew: --external unix:{called}"),
            ),
            None => (
                format!("its peer is held by {who}, outside of the tree"),
                format!("dump a process above both, or let it be closed: --ignore unix:[{}]", entry.inode),
            ),
        };
        capture.refuse(pid, object, reason, advice);
        None
    }

    /// Whether a connected socket came out of accept(2): it has the name of a listening one then. Where both ends have
    /// names, the one that bound itself is the one without such a namesake.
    fn accepted(&self, entry: &Unix, peer: Option<&[u8]>) -> bool {
        if entry.kind == libc::SOCK_DGRAM || entry.name.is_none() {
            return false;
        }
        let here = |s: &Unix| s.network == entry.network || s.file.is_some();
        let listens = |s: &Unix, name: Option<&[u8]>| s.state == LISTEN && here(s) && s.name.as_deref() == name;
        let listener = |name: Option<&[u8]>| self.listed.values().any(|s| listens(s, name));
        peer.is_none() || listener(entry.name.as_deref()) || !listener(peer) && entry.name.as_deref() < peer
    }
}
