//! Who is at the other end (`SO_PEERCRED`): what is done to a socket is done by a child with that pid and user. A nested pid
//! namespace does not exist yet then: those who live there listen once more themselves.

use super::{Sockets, damaged, new_socket};
use crate::error::{Context, Result};
use crate::resource::Tree;
use crate::resource::credentials::Credentials;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::process::Process;
use crate::resource::socket::unix::{Identity, Role, UnixSocket};
use crate::sys::{apart, namespace};
use crate::tracee::stub::Script;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

impl Sockets<'_> {
    /// Who has the socket open, first in the tree.
    pub(super) fn holder(&self, id: FileId) -> Option<Identity> {
        let process = self.tree.processes.iter().find(|p| p.descriptors.iter().any(|d| d.file == id))?;
        let credentials = &process.threads.first()?.credentials;
        let (uid, gid) = (credentials.uid[1], credentials.gid[1]);
        Some(Identity { pid: process.pid, uid, gid, groups: credentials.groups.clone() })
    }

    /// A socket like this one.
    pub(super) fn new_socket(&mut self, id: FileId) -> Result<OwnedFd> {
        let kind = self.socket(id)?.kind;
        self.make_as(id, None, || new_socket(kind))
    }

    /// Makes something as somebody else in the network namespace of a socket. That matters at birth only: whoever
    /// connects and binds later does so in the socket's own.
    pub(super) fn make_as<R>(&mut self, id: FileId, who: Option<&Identity>, make: impl Fn() -> nix::Result<R>) -> Result<R> {
        let network = match self.socket(id)?.network {
            Some(number) => Some(self.networks.get(&number).ok_or_else(|| damaged(id, "lives nowhere"))?.try_clone()?),
            None => None,
        };
        self.act_in(id, who, network.as_ref().map(AsFd::as_fd), make)
    }

    /// Does something as somebody else.
    pub(super) fn act<R>(&mut self, id: FileId, who: Option<&Identity>, act: impl Fn() -> nix::Result<R>) -> Result<R> {
        self.act_in(id, who, None, act)
    }

    fn act_in<R>(
        &mut self,
        id: FileId,
        who: Option<&Identity>,
        network: Option<BorrowedFd<'_>>,
        act: impl Fn() -> nix::Result<R>,
    ) -> Result<R> {
        let run = |pid, who: Option<&Identity>| {
            apart::run(pid, || {
                // First: another user may not.
                network.map_or(Ok(()), |n| namespace::enter(n, namespace::Kind::Net))?;
                let user = who.map_or(Ok(()), |who| apart::become_user(who.uid, who.gid, &who.groups));
                Ok((user, act()))
            })
            .and_then(|done| done)
        };
        let Some(who) = who else {
            return if network.is_some() { run(0, None).and_then(|done| done.1) } else { act() }.map_err(Into::into);
        };
        let mut done = run(who.pid, Some(who));
        // A pid that has just been given up is in use for an instant longer than /proc shows it.
        let given_up = || !std::path::Path::new(&format!("/proc/{}", who.pid)).exists();
        let mut nap = Duration::from_millis(1);
        while matches!(done, Err(Errno::EEXIST)) && nap < Duration::from_millis(200) && given_up() {
            std::thread::sleep(nap);
            nap *= 2;
            done = run(who.pid, Some(who));
        }
        if matches!(done, Err(Errno::EEXIST | Errno::EPERM | Errno::EINVAL)) {
            let why = "that number cannot be had here";
            self.warnings.push(format!("{}: its peer was process {} (SO_PEERCRED); {why}", self.called(id), who.pid));
            done = run(0, Some(who));
        }
        let (user, done) = done.context(|| "starting a helper")?;
        if let Err(e) = user {
            self.warnings.push(format!("{}: its peer was user {} (SO_PEERCRED): {e}", self.called(id), who.uid));
        }
        done.map_err(Into::into)
    }
}

/// Whether somebody who has taken on its identity is whom a socket names.
fn is(process: &Process, identity: &Identity) -> bool {
    let as_now = |c: &Credentials| (c.uid[1], c.gid[1], &c.groups) == (identity.uid, identity.gid, &identity.groups);
    process.pid == identity.pid && process.threads.first().is_some_and(|leader| as_now(&leader.credentials))
}

fn socket(tree: &Tree, id: FileId) -> Option<&UnixSocket> {
    match &tree.files.get(id as usize)?.kind {
        FileKind::Unix(socket) => Some(socket),
        _ => None,
    }
}

/// What a process listens on, the first of its descriptors for each: backlog and descriptor.
fn listening<'t>(process: &'t Process, tree: &'t Tree) -> impl Iterator<Item = (FileId, i32, i32)> + 't {
    process.descriptors.iter().filter_map(|d| {
        let socket = socket(tree, d.file)?;
        let Role::Listening { backlog, .. } = socket.role else { return None };
        let first = process.descriptors.iter().find(|other| other.file == d.file).is_some_and(|first| first.fd == d.fd);
        (first && is(process, socket.peer_identity.as_ref()?)).then_some((d.file, d.fd, backlog))
    })
}

/// A process in a nested pid namespace listens itself, so that who connects from there sees its number. When it has its
/// descriptors and its identity.
pub fn listen_again(process: &Process, tree: &Tree, script: &mut Script<'_>) -> Result<()> {
    if process.level() == 0 {
        return Ok(());
    }
    for (_, fd, backlog) in listening(process, tree) {
        script.call("listen", libc::SYS_listen, &[fd as u64, backlog as u64])?;
    }
    Ok(())
}

/// The number that a socket showed to those who live with its peer in a nested pid namespace, when it shows 0 now.
pub fn unseen(id: FileId, of: &UnixSocket, tree: &Tree) -> Option<i32> {
    let identity = of.peer_identity.as_ref()?;
    let peer = tree.processes.iter().find(|p| p.pid == identity.pid)?;
    let listens_again = || matches!(of.role, Role::Listening { .. }) && listening(peer, tree).any(|(listening, ..)| listening == id);
    let pids = |p: &Process| p.places.of(&tree.namespaces, namespace::Kind::Pid);
    let holds = |p: &&Process| p.descriptors.iter().any(|d| d.file == id);
    let with_it = tree.processes.iter().filter(holds).any(|p| pids(p) == pids(peer));
    (peer.level() > 0 && with_it && !listens_again()).then(|| peer.own_number())
}
