//! Who is at the other end (`SO_PEERCRED`), as those see it who live in a nested pid namespace: that does not exist yet when
//! sockets are made.

use crate::error::Result;
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::process::Process;
use crate::resource::socket::unix::{Identity, Role, UnixSocket};
use crate::tracee::stub::Script;

/// Whether somebody who has taken on its identity is whom a socket names.
fn is(process: &Process, identity: &Identity) -> bool {
    let as_now =
        |c: &crate::resource::credentials::Credentials| (c.uid[1], c.gid[1], &c.groups) == (identity.uid, identity.gid, &identity.groups);
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
    let pids = |p: &Process| p.places.of(&tree.namespaces, crate::sys::namespace::Kind::Pid);
    let holds = |p: &&Process| p.descriptors.iter().any(|d| d.file == id);
    let with_it = tree.processes.iter().filter(holds).any(|p| pids(p) == pids(peer));
    (peer.level() > 0 && with_it && !listens_again()).then(|| peer.own_number())
}
