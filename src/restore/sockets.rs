//! Unix sockets on their way back: made, bound and connected before any other file needs them, filled when all files
//! are there, and shut down last.
//!
//! Who connected or listened is a property of a connection (`SO_PEERCRED`), so these calls are made by a child with that
//! very pid and user ([`identity`]), which is gone before the tree takes its pids.

mod bind;
mod fill;
pub mod identity;
pub mod listen;
pub mod tcp;

use super::places::Places;
use super::pool::{Pool, raise_limit};
use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind, OpenFile};
use crate::resource::namespace::Namespace;
use crate::resource::socket::options;
use crate::resource::socket::unix::{Identity, Peer, Role, UnixSocket, readable, set_flags};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::{namespace, socket};
use bind::Reach;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Connections that may wait while they are made.
const ROOM: i32 = 65535;

/// Two ends and their type.
type Pair = (FileId, FileId, i32);

/// All unix sockets of a tree.
pub struct Sockets<'t> {
    tree: &'t Tree,
    made: HashMap<FileId, OwnedFd>,
    /// The other ends of sockets whose peers had gone, for as long as they are needed.
    ghosts: HashMap<FileId, OwnedFd>,
    /// What comes back differently.
    warnings: Vec<String>,
    /// The root as meio sees it, when the tree has pids of its own.
    home: Option<i32>,
    /// Network namespaces of sockets, by their place in the tree's table.
    networks: HashMap<u32, OwnedFd>,
    /// Where files of sockets are put that lie in a mount namespace of the tree.
    files: HashMap<FileId, PathBuf>,
}

/// Whether the namespaces of a tree must be there before its sockets are made.
pub fn need_places(tree: &Tree) -> bool {
    let unix = |file: &OpenFile| matches!(file.kind, FileKind::Unix(_));
    let apart = |namespace: &Namespace| matches!(namespace.kind, namespace::Kind::Net | namespace::Kind::Mnt);
    tree.files.iter().any(unix) && tree.namespaces.iter().any(apart)
}

fn new_socket(kind: i32) -> nix::Result<OwnedFd> {
    let made = socket::socket(libc::AF_UNIX, kind)?;
    options::widen(made.as_fd());
    Ok(made)
}

fn new_pair(kind: i32) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socket::pair(kind)?;
    options::widen(a.as_fd());
    options::widen(b.as_fd());
    Ok((a, b))
}

/// From now on children of meio are born in the pid namespace of a process.
fn enter(pid: i32) -> Result<()> {
    let doing = || format!("entering the pid namespace of process {pid}");
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/pid")).context(doing)?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWPID).context(doing)
}

fn damaged(id: FileId, what: &str) -> Error {
    Error::image(format!("image damaged: socket {id} {what}"))
}

impl<'t> Sockets<'t> {
    /// Makes all of them, with their names and connections, and nothing in them. `home` is the root of a tree with pids
    /// of its own that is there already: who made the connections is then made to have lived there.
    pub fn make(tree: &'t Tree, places: &Places<'_>, home: Option<i32>) -> Result<Sockets<'t>> {
        if let Some(root) = home {
            enter(root)?;
        }
        let made = Sockets::make_here(tree, places);
        if home.is_some() {
            enter(std::process::id() as i32)?;
        }
        made
    }

    fn make_here(tree: &'t Tree, places: &Places<'_>) -> Result<Sockets<'t>> {
        let mut sockets = Sockets {
            tree,
            made: HashMap::new(),
            ghosts: HashMap::new(),
            warnings: Vec::new(),
            home: None,
            networks: HashMap::new(),
            files: HashMap::new(),
        };
        for (id, socket) in sockets.all() {
            if let Some(network) = socket.network {
                sockets.networks.insert(network, places.fd(Some(network), namespace::Kind::Net)?.try_clone()?);
            }
            if let Some(path) = socket.file.as_ref().and_then(|f| f.path.as_ref()) {
                sockets.files.insert(id, places.path(places.mounts_of_file(id), path));
            }
        }
        let all: Vec<(FileId, &UnixSocket)> = sockets.all().collect();
        raise_limit(Pool::base_of(tree) as u64 + tree.files.len() as u64 + 3 * all.len() as u64 + 64)?;
        for &(id, socket) in &all {
            sockets.check(id, socket)?;
            if let Some(number) = identity::unseen(id, socket, tree) {
                let what = sockets.called(id);
                sockets
                    .warnings
                    .push(format!("{what}: its peer was process {number} (SO_PEERCRED) in a pid namespace of the tree; it is 0 there now"));
            }
        }
        sockets.pair_up(&all)?;
        // Listening sockets that have gone left connections with their names, which others may use by now.
        for &(id, socket) in &all {
            if socket.accepted() && sockets.listener(socket).is_none() {
                sockets.accepted(id, socket).context(|| format!("connecting {}", sockets.called(id)))?;
            }
        }
        for &(id, socket) in &all {
            sockets.single(id, socket).context(|| format!("making {}", sockets.called(id)))?;
        }
        for &(id, socket) in &all {
            if matches!(socket.role, Role::Listening { .. }) {
                socket::listen(sockets.fd(id)?, ROOM).context(|| format!("listening on {}", sockets.called(id)))?;
            }
        }
        for &(id, socket) in &all {
            if socket.accepted() && !sockets.made.contains_key(&id) {
                sockets.accepted(id, socket).context(|| format!("connecting {}", sockets.called(id)))?;
            }
        }
        for &(id, socket) in &all {
            sockets.lost_peer(id, socket).context(|| format!("connecting {}", sockets.called(id)))?;
        }
        for &(id, socket) in all.iter().filter(|(_, s)| matches!(s.role, Role::Listening { .. })) {
            // Connections inherit from the listening socket while they wait.
            sockets.settle(id, socket)?;
            sockets.waiting(id, socket).context(|| format!("connecting to {}", sockets.called(id)))?;
        }
        Ok(sockets)
    }

    /// A duplicate of one socket.
    pub fn open(&self, id: FileId) -> Result<OwnedFd> {
        Ok(self.fd(id)?.try_clone_to_owned()?)
    }

    fn all(&self) -> impl Iterator<Item = (FileId, &'t UnixSocket)> + use<'t> {
        self.tree.files.iter().enumerate().filter_map(|(id, file)| match &file.kind {
            FileKind::Unix(socket) => Some((id as FileId, &**socket)),
            _ => None,
        })
    }

    fn socket(&self, id: FileId) -> Result<&'t UnixSocket> {
        match self.tree.files.get(id as usize).map(|f| &f.kind) {
            Some(FileKind::Unix(socket)) => Ok(socket),
            _ => Err(damaged(id, "is not there")),
        }
    }

    fn fd(&self, id: FileId) -> Result<BorrowedFd<'_>> {
        self.made.get(&id).map(AsFd::as_fd).ok_or_else(|| damaged(id, "cannot be made"))
    }

    /// For people: `socket:[77] (/run/x)`.
    fn called(&self, id: FileId) -> String {
        let link = self.tree.files.get(id as usize).map_or("socket", |f| f.link.as_str());
        match self.socket(id).ok().and_then(|s| s.name.as_ref()) {
            Some(Bytes(name)) => format!("{link} ({})", readable(name)),
            None => link.to_owned(),
        }
    }

    /// What the rest takes for granted.
    fn check(&self, id: FileId, socket: &UnixSocket) -> Result<()> {
        if ![libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&socket.kind) {
            return Err(damaged(id, "is of no known type"));
        }
        let datagrams = socket.kind == libc::SOCK_DGRAM;
        match &socket.role {
            Role::Connected { peer: Peer::File(other), accepted } => {
                let other = self.socket(*other)?;
                let mutual = matches!(other.role, Role::Connected { peer: Peer::File(back), .. } if back == id);
                if other.kind != socket.kind
                    || !datagrams && !mutual
                    || *accepted && (datagrams || socket.name.is_none() || other.accepted())
                {
                    return Err(damaged(id, "has an impossible peer"));
                }
            }
            Role::Connected { peer: Peer::Waiting(listener), .. } => {
                let Role::Listening { pending, .. } = &self.socket(*listener)?.role else { return Err(damaged(id, "waits for nobody")) };
                if !pending.contains(&Some(id)) {
                    return Err(damaged(id, "waits at nobody's door"));
                }
            }
            Role::Listening { pending, .. } => {
                for client in pending.iter().flatten() {
                    if !matches!(self.socket(*client)?.role, Role::Connected { peer: Peer::Waiting(l), .. } if l == id) {
                        return Err(damaged(id, "has an impossible client"));
                    }
                }
                if datagrams || socket.name.is_none() {
                    return Err(damaged(id, "cannot listen"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Both ends at once, for ends that were made so: those of one maker in one network namespace all together, since a helper
    /// takes its time.
    fn pair_up(&mut self, all: &[(FileId, &'t UnixSocket)]) -> Result<()> {
        let mut makers: Vec<(Option<&Identity>, Vec<Pair>)> = Vec::new();
        let mut number_of = HashMap::new();
        let mut paired = HashSet::new();
        for &(id, socket) in all {
            let Some(other) = self.born_with(id, socket)?.filter(|other| !paired.contains(&id) && !paired.contains(other)) else {
                continue;
            };
            paired.extend([id, other]);
            let who = socket.peer_identity.as_ref();
            let number = *number_of.entry((who, socket.network)).or_insert(makers.len());
            if number == makers.len() {
                makers.push((who, Vec::new()));
            }
            makers[number].1.push((id, other, socket.kind));
        }
        for (who, pairs) in makers {
            let make = || pairs.iter().map(|&(_, _, kind)| new_pair(kind)).collect::<nix::Result<Vec<_>>>();
            let made = self.make_as(pairs[0].0, who, make).context(|| format!("making {}", self.called(pairs[0].0)))?;
            for (&(id, other, _), (a, b)) in pairs.iter().zip(made) {
                self.made.insert(id, a);
                self.made.insert(other, b);
                self.name(id).and_then(|()| self.name(other)).context(|| format!("making {}", self.called(id)))?;
            }
        }
        Ok(())
    }

    /// The other end, where both were made at once.
    fn born_with(&self, id: FileId, socket: &UnixSocket) -> Result<Option<FileId>> {
        let Some(other) = socket.peer() else { return Ok(None) };
        let mate = self.socket(other)?;
        let wanted = match socket.kind {
            // A peer without a name can only have been there from the beginning.
            libc::SOCK_DGRAM => other != id && (mate.name.is_none() || socket.name.is_none() && mate.peer() == Some(id)),
            _ => !socket.accepted() && !mate.accepted(),
        };
        Ok(wanted.then_some(other))
    }

    /// A socket that begins without a peer.
    fn single(&mut self, id: FileId, socket: &UnixSocket) -> Result<()> {
        if self.made.contains_key(&id) || socket.accepted() {
            return Ok(());
        }
        // Those whose peers have gone come with a ghost, but for the ones that had to find it by its name.
        if matches!(socket.role, Role::Connected { peer: Peer::Gone(None), .. })
            && (socket.kind != libc::SOCK_DGRAM || socket.name.is_none())
        {
            let (a, ghost) = self.make_as(id, socket.peer_identity.as_ref(), || new_pair(socket.kind))?;
            self.made.insert(id, a);
            self.ghosts.insert(id, ghost);
        } else {
            let made = self.new_socket(id)?;
            self.made.insert(id, made);
        }
        self.name(id)
    }

    /// Gives a socket its name.
    fn name(&self, id: FileId) -> Result<()> {
        let socket = self.socket(id)?;
        match &socket.name {
            Some(Bytes(name)) => {
                bind::bind(self.fd(id)?, name, socket.file.as_ref().and_then(|f| Some((f, self.files.get(&id)?.as_path()))))
            }
            None => Ok(()),
        }
    }

    /// The listening socket of the tree that an accepted one has its name from.
    fn listener(&self, accepted: &UnixSocket) -> Option<FileId> {
        let alike = |s: &UnixSocket| {
            matches!(s.role, Role::Listening { .. })
                && (s.kind, &s.name, &s.file, s.network) == (accepted.kind, &accepted.name, &accepted.file, accepted.network)
        };
        self.all().find(|(_, s)| alike(s)).map(|(id, _)| id)
    }

    /// A connection made as it was made first: somebody connects to a listening socket, which accepts.
    fn accepted(&mut self, id: FileId, socket: &'t UnixSocket) -> Result<()> {
        let (client, client_identity, client_id) = match &socket.role {
            Role::Connected { peer: Peer::File(other), .. } => {
                let other_socket = self.socket(*other)?;
                if !self.made.contains_key(other) {
                    let made = self.new_socket(*other)?;
                    self.made.insert(*other, made);
                    self.name(*other)?;
                }
                (self.open(*other)?, other_socket.peer_identity.as_ref(), Some(*other))
            }
            Role::Connected { peer: Peer::Gone(name), .. } => {
                let ghost = self.new_socket(id)?;
                if let Some(Bytes(name)) = name {
                    self.name_for_a_while(id, ghost.as_fd(), name)?;
                }
                (ghost, None, None)
            }
            _ => return Err(damaged(id, "was accepted from nobody")),
        };
        let listener = match self.listener(socket) {
            Some(listener) => self.open(listener)?,
            None => {
                let listener = self.new_socket(id)?;
                let Some(Bytes(name)) = &socket.name else { return Err(damaged(id, "has no name")) };
                bind::bind(listener.as_fd(), name, None)?;
                listener
            }
        };
        let accepted = self.connect_and_accept(id, client.as_fd(), client_identity, listener.as_fd(), socket.peer_identity.as_ref())?;
        self.made.insert(id, accepted);
        if client_id.is_none() {
            self.ghosts.insert(id, client);
        }
        Ok(())
    }

    fn connect_and_accept(
        &mut self,
        id: FileId,
        client: BorrowedFd<'_>,
        listened: Option<&Identity>,
        listener: BorrowedFd<'_>,
        connected: Option<&Identity>,
    ) -> Result<OwnedFd> {
        self.act(id, listened, || socket::listen(listener, ROOM))?;
        let reach = Reach::of(listener)?;
        self.act(id, connected, || reach.connect(client))?;
        let accepted = socket::accept(listener).context(|| "accepting a connection")?;
        options::widen(accepted.as_fd());
        Ok(accepted)
    }

    /// Clients of accepted sockets that have gone, and of sockets outside of the tree.
    fn lost_peer(&mut self, id: FileId, socket: &'t UnixSocket) -> Result<()> {
        let stream = socket.kind != libc::SOCK_DGRAM;
        match &socket.role {
            Role::Connected { peer: Peer::Gone(Some(Bytes(name))), accepted: false } if stream => {
                let namesake = |s: &UnixSocket| {
                    matches!(s.role, Role::Listening { .. }) && s.kind == socket.kind && s.name.as_ref().is_some_and(|n| n.0 == *name)
                };
                let listener = match self.all().find(|(_, s)| namesake(s)) {
                    Some((listener, _)) => self.open(listener)?,
                    None => self.new_socket(id)?,
                };
                if socket::name(listener.as_fd())?.is_none() {
                    self.name_for_a_while(id, listener.as_fd(), name)?;
                }
                let client = self.open(id)?;
                let ghost = self.connect_and_accept(id, client.as_fd(), socket.peer_identity.as_ref(), listener.as_fd(), None)?;
                self.ghosts.insert(id, ghost);
            }
            Role::Connected { peer: Peer::Outside(Bytes(name)), .. } => {
                let client = self.open(id)?;
                let who = self.holder(id);
                // A server that takes no connection must not hold meio up.
                set_flags(client.as_fd(), libc::O_NONBLOCK as u32)?;
                self.act(id, who.as_ref(), || socket::connect(client.as_fd(), name)).map_err(|e| {
                    Error::new(Kind::NotFound, format!("{} outside of the tree cannot be connected to: {}", readable(name), e.message))
                        .help("start the program that listens there")
                })?;
                if !socket.queue.is_empty() {
                    self.warnings.push(format!("{}: what was not read from {} is lost", self.called(id), readable(name)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Binds the socket of somebody who has gone. His name may be another's by now: then it comes back without.
    fn name_for_a_while(&mut self, id: FileId, fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        if let Err(e) = bind::bind(fd, name, None) {
            self.warnings.push(format!(
                "{}: its peer that has gone was {}, which is taken: {}",
                self.called(id),
                readable(name),
                e.message
            ));
            socket::bind(fd, &[]).context(|| "naming a socket")?;
        }
        Ok(())
    }
}

impl UnixSocket {
    /// Number of its peer in the tree.
    fn peer(&self) -> Option<FileId> {
        match self.role {
            Role::Connected { peer: Peer::File(id), .. } => Some(id),
            _ => None,
        }
    }

    /// Its peer is outside of the tree.
    fn leads_out(&self) -> bool {
        matches!(self.role, Role::Connected { peer: Peer::Outside(_), .. })
    }

    fn accepted(&self) -> bool {
        matches!(self.role, Role::Connected { accepted: true, .. })
    }
}
