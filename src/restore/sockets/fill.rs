//! What was in the sockets: unread messages, waiting connections, the end.

use super::bind::{self, Reach};
use super::{Sockets, damaged};
use crate::error::{Context, Result};
use crate::resource::descriptor::FileId;
use crate::resource::socket::options;
use crate::resource::socket::unix::{Message, Peer, Role, UnixSocket, readable, set_flags};
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::{apart, socket};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where the descriptors are that travel in messages.
pub type Files<'f> = &'f dyn Fn(FileId) -> Result<i32>;

/// Senders of datagrams that are not there any more, by their network namespaces and names.
type Strangers = HashMap<(Option<u32>, Option<Vec<u8>>), OwnedFd>;

impl<'t> Sockets<'t> {
    /// Fills all sockets and gives them their last properties. What comes back differently is returned. `home` is the
    /// root of a tree with pids of its own, as meio sees it: whoever is made to have sent something lives there.
    pub fn finish(mut self, files: Files<'_>, home: Option<i32>) -> Result<Vec<String>> {
        if let Some(root) = home {
            super::enter(root)?;
            self.home = home;
        }
        let all: Vec<(FileId, &'t UnixSocket)> = self.all().collect();
        for &(id, socket) in all.iter().filter(|(_, s)| s.kind != libc::SOCK_DGRAM) {
            self.stream(id, socket, files).context(|| format!("filling {}", self.called(id)))?;
        }
        self.datagrams(&all, files)?;
        for &(id, socket) in &all {
            // An end that closes with unread bytes is a reset for the other one.
            if socket.reset && self.ghosts.contains_key(&id) {
                socket::send(self.fd(id)?, &socket::Message { data: vec![0], ..socket::Message::default() }, 0)
                    .context(|| format!("resetting {}", self.called(id)))?;
            }
        }
        self.ghosts.clear();
        for &(id, socket) in &all {
            if !matches!(socket.role, Role::Listening { .. }) {
                self.settle(id, socket)?;
            }
            self.shut(id, socket)?;
        }
        if home.is_some() {
            super::enter(std::process::id() as i32)?;
        }
        Ok(self.warnings)
    }

    /// Options, filter and flags.
    pub(super) fn settle(&mut self, id: FileId, socket: &UnixSocket) -> Result<()> {
        let what = self.called(id);
        let fd = self.made.get(&id).ok_or_else(|| damaged(id, "cannot be made"))?.as_fd();
        options::unlock_buffers(fd);
        options::apply(fd, &socket.options, &what, &mut self.warnings);
        if let Some(filter) = &socket.filter {
            filter.apply(fd)?;
        }
        set_flags(fd, self.tree.files[id as usize].flags)
    }

    /// shutdown(2), which also stops the other end of a stream.
    fn shut(&self, id: FileId, socket: &UnixSocket) -> Result<()> {
        let fd = self.fd(id)?;
        let how = match socket.shutdown {
            1 => libc::SHUT_RD,
            2 => libc::SHUT_WR,
            3 => libc::SHUT_RDWR,
            _ => return Ok(()),
        };
        match socket::shutdown(fd, how) {
            Err(Errno::ENOTCONN) | Ok(()) => Ok(()),
            Err(e) => Err(e).context(|| format!("shutting down {}", self.called(id))),
        }
    }

    /// Connections that nobody has accepted yet, in their order.
    pub(super) fn waiting(&mut self, id: FileId, socket: &UnixSocket) -> Result<()> {
        let Role::Listening { backlog, pending } = &socket.role else { return Ok(()) };
        let listener = self.open(id)?;
        let reach = Reach::of(listener.as_fd())?;
        for client in pending {
            match *client {
                Some(client) => {
                    let (fd, who) = (self.open(client)?, self.holder(client));
                    // Whom it sees as its peer is whoever listens at this moment.
                    self.act(id, self.socket(client)?.peer_identity.as_ref(), || socket::listen(listener.as_fd(), super::ROOM))?;
                    self.act(client, who.as_ref(), || reach.connect(fd.as_fd()))?;
                }
                None => reach.connect(self.new_socket(id)?.as_fd())?,
            }
        }
        self.act(id, socket.peer_identity.as_ref(), || socket::listen(listener.as_fd(), *backlog))
    }

    /// The queue of a connected socket, sent by its other end.
    fn stream(&mut self, id: FileId, socket: &UnixSocket, files: Files<'_>) -> Result<()> {
        if socket.queue.is_empty() || socket.leads_out() {
            return Ok(());
        }
        let from = match socket.peer() {
            Some(peer) => self.open(peer)?,
            None => self.ghosts.get(&id).ok_or_else(|| damaged(id, "has messages from nobody"))?.try_clone()?,
        };
        for message in &socket.queue {
            self.send(id, from.as_fd(), None, message, files)?;
        }
        Ok(())
    }

    /// Sends one message so that all of it is there.
    fn send(&mut self, id: FileId, from: BorrowedFd<'_>, to: Option<Vec<u8>>, message: &Message, files: Files<'_>) -> Result<()> {
        let fds = message.files.iter().map(|&f| files(f)).collect::<Result<Vec<_>>>()?;
        let flags = if message.urgent { libc::MSG_OOB } else { 0 };
        let mut parts = socket::Message { data: message.data.clone(), whole: 0, name: to, fds, credentials: message.credentials };
        loop {
            let sent = self.send_as(id, from, &parts, flags)?;
            if sent >= parts.data.len() {
                return Ok(());
            }
            parts.data.drain(..sent);
            parts.fds.clear();
        }
    }

    /// Credentials name a process that must be there: a child has its pid for this moment.
    fn send_as(&mut self, id: FileId, from: BorrowedFd<'_>, message: &socket::Message<i32>, flags: i32) -> Result<usize> {
        let send = || socket::send(from, message, flags);
        let sent = match message.credentials {
            Some((pid, ..)) if pid > 0 => match apart::run(pid, send) {
                // Somebody has it: it can be named, by the number that meio sees.
                Err(Errno::EEXIST | Errno::EPERM | Errno::EINVAL) => {
                    let root = self.tree.processes.first().map(|p| p.pid);
                    let pid = self.home.filter(|_| root == Some(pid)).unwrap_or(pid);
                    let credentials = message.credentials.map(|(_, uid, gid)| (pid, uid, gid));
                    socket::send(from, &socket::Message { credentials, ..unsigned(message) }, flags)
                }
                sent => sent.and_then(|sent| sent),
            },
            // Pid 0: sent before anybody wanted to know from whom.
            _ => socket::send(from, &unsigned(message), flags),
        };
        match sent {
            Err(Errno::ESRCH) => {
                self.warnings.push(format!("{}: a message came from a process that cannot be named here", self.called(id)));
                socket::send(from, &unsigned(message), flags).map_err(Into::into)
            }
            sent => sent.context(|| format!("sending {} bytes", message.data.len())),
        }
    }

    /// All datagrams, and who is connected to whom. A connection shuts others out, and a second one empties the queue:
    /// what came from others goes in before it.
    fn datagrams(&mut self, all: &[(FileId, &'t UnixSocket)], files: Files<'_>) -> Result<()> {
        let mut strangers = Strangers::new();
        let all: Vec<_> = all.iter().filter(|(_, s)| s.kind == libc::SOCK_DGRAM && !s.leads_out()).copied().collect();
        let mut first = Vec::with_capacity(all.len());
        for &(id, socket) in &all {
            let others = socket.queue.iter().rposition(|m| !self.is_from_peer(socket, m)).map_or(0, |at| at + 1);
            let early = if self.moves(id, socket) { 0 } else { others };
            self.datagrams_of(id, &socket.queue[..early], &mut strangers, files)?;
            first.push(early);
        }
        // One that has a peer takes no connection from others: those came before its own.
        let mut open = all.clone();
        while !open.is_empty() {
            let wanted = |id: FileId, peer| open.iter().any(|&(other, s)| s.peer() == Some(id) && Some(other) != peer && other != id);
            let next = open.iter().position(|&(id, s)| !wanted(id, s.peer())).unwrap_or(0);
            let (id, socket) = open.swap_remove(next);
            self.connect_datagram(id, socket).context(|| format!("connecting {}", self.called(id)))?;
        }
        for (&(id, socket), early) in all.iter().zip(first) {
            self.datagrams_of(id, &socket.queue[early..], &mut strangers, files)?;
        }
        Ok(())
    }

    /// Whether a message came from the socket's own peer.
    fn is_from_peer(&self, socket: &UnixSocket, message: &Message) -> bool {
        match &socket.role {
            // A peer that turns to another one afterwards says what it has to say before.
            Role::Connected { peer: Peer::File(peer), .. } => {
                self.socket(*peer).is_ok_and(|p| p.name == message.from && !self.moves(*peer, p))
            }
            Role::Connected { peer: Peer::Gone(name), .. } => *name == message.from,
            _ => false,
        }
    }

    /// The other one of the pair that a datagram socket was made in.
    fn mate(&self, id: FileId) -> Option<FileId> {
        let socket = self.socket(id).ok()?;
        let of = |a: &UnixSocket, b: FileId, b_socket: &UnixSocket| {
            a.peer() == Some(b) && (b_socket.name.is_none() || a.name.is_none() && b_socket.peer() == Some(id))
        };
        let chosen = socket.peer().filter(|&p| self.socket(p).is_ok_and(|peer| of(socket, p, peer)));
        chosen.or_else(|| {
            self.all().find(|(_, s)| socket.name.is_none() && s.kind == libc::SOCK_DGRAM && s.peer() == Some(id)).map(|(o, _)| o)
        })
    }

    /// Whether a datagram socket was made in a pair and has another peer now, or none.
    fn moves(&self, id: FileId, socket: &UnixSocket) -> bool {
        self.mate(id).is_some_and(|mate| socket.peer() != Some(mate))
    }

    fn connect_datagram(&mut self, id: FileId, socket: &UnixSocket) -> Result<()> {
        let fd = self.open(id)?;
        match &socket.role {
            Role::Connected { peer: Peer::File(peer), .. } if self.mate(id) != Some(*peer) => {
                let peer = self.open(*peer)?;
                Reach::of(peer.as_fd())?.connect(fd.as_fd()).map_err(Into::into)
            }
            Role::Connected { peer: Peer::Gone(name), .. } if !self.ghosts.contains_key(&id) => {
                let ghost = self.new_socket(id)?;
                match name {
                    Some(Bytes(name)) => self.name_for_a_while(id, ghost.as_fd(), name)?,
                    None => socket::bind(ghost.as_fd(), &[])?,
                }
                let known = Reach::of(ghost.as_fd());
                match known {
                    Ok(reach) => reach.connect(fd.as_fd())?,
                    Err(e) => return Err(e),
                }
                self.ghosts.insert(id, ghost);
                Ok(())
            }
            Role::Alone if self.mate(id).is_some() => socket::disconnect(fd.as_fd()).map_err(Into::into),
            _ => Ok(()),
        }
    }

    /// Sends datagrams to one socket.
    fn datagrams_of(&mut self, id: FileId, messages: &[Message], strangers: &mut Strangers, files: Files<'_>) -> Result<()> {
        for message in messages {
            let what = self.called(id);
            let (from, connected) = self.sender(id, message, strangers).context(|| format!("filling {what}"))?;
            let receiver = self.open(id)?;
            let reach = if connected { None } else { Some(Reach::of(receiver.as_fd())?) };
            self.send(id, from.as_fd(), reach.as_ref().map(Reach::address), message, files).context(|| format!("filling {what}"))?;
        }
        Ok(())
    }

    /// A socket with the name that a message came from, and whether it is connected to the receiver just now.
    fn sender(&mut self, id: FileId, message: &Message, strangers: &mut Strangers) -> Result<(OwnedFd, bool)> {
        let mate = self.mate(id).filter(|m| self.socket(*m).is_ok_and(|m| m.name == message.from));
        let network = self.socket(id)?.network;
        let here = |s: &UnixSocket| s.network == network || s.file.is_some();
        let named = || {
            let all = self.all().filter(|(_, s)| s.kind == libc::SOCK_DGRAM && here(s) && s.name == message.from);
            all.into_iter().find(|(_, s)| s.name.is_some() || s.peer() == Some(id)).map(|(other, _)| other)
        };
        if let Some(other) = mate.or_else(named) {
            let from = self.open(other)?;
            let connected = self.socket(id)?.name.is_none();
            return Ok((from, connected));
        }
        if let Some(ghost) = self.ghosts.get(&id) {
            return Ok((ghost.try_clone()?, true));
        }
        let key = (self.socket(id)?.network, message.from.as_ref().map(|Bytes(name)| name.clone()));
        if let Some(known) = strangers.get(&key) {
            return Ok((known.try_clone()?, false));
        }
        let stranger = self.new_socket(id)?;
        if let Some(name) = &key.1
            && let Err(e) = bind::bind(stranger.as_fd(), name, None)
        {
            self.warnings.push(format!("{}: unread messages lose their sender {}: {}", self.called(id), readable(name), e.message));
        }
        let duplicate = stranger.try_clone()?;
        strangers.insert(key, stranger);
        Ok((duplicate, false))
    }
}

fn unsigned(message: &socket::Message<i32>) -> socket::Message<i32> {
    let (data, fds, name) = (message.data.clone(), message.fds.clone(), message.name.clone());
    socket::Message { data, fds, name, ..socket::Message::default() }
}
