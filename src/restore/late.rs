//! Open files that can only be made when the tasks of the tree exist: handles of tasks, and terminals that were opened as
//! `/dev/tty`, which is another one in each session.
//!
//! The stubs are born with everything that meio has open then. What comes later is sent to them over a socket that they
//! are born with (unix(7), `SCM_RIGHTS`), each into the number that is kept for it in the pool: from there on
//! it is a file like any other, one open file description in all processes.

use super::pool::Pool;
use super::skeleton;

use crate::error::{Context, Error, Result};
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind, OpenFile};
use crate::resource::process::{Process, State};
use crate::sys::anon;
use crate::sys::task::Files;
use crate::tracee::stub::{Script, Stub};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::collections::{BTreeSet, HashMap};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

/// Descriptors in one message, at most (`SCM_MAX_FD`).
const AT_ONCE: usize = 253;

/// Whether a file is made late.
fn is_late(file: &OpenFile, tree: &Tree) -> bool {
    matches!(file.kind, FileKind::PidFd(_)) || session(file, tree).is_some()
}

/// The session of the tree in which a terminal was opened as `/dev/tty`.
fn session(file: &OpenFile, tree: &Tree) -> Option<i32> {
    let FileKind::Terminal(terminal) = &file.kind else { return None };
    let state = tree.terminals.get(terminal.terminal as usize).filter(|t| t.pair.is_some() && t.session != 0)?;
    (file.link == "/dev/tty").then_some(state.session)
}

/// What stands in for a late file until it can be made.
pub fn stand_in() -> Result<OwnedFd> {
    anon::eventfd(libc::EFD_CLOEXEC).context(|| "keeping a number for a descriptor")
}

/// The way by which late files come to the stubs.
pub struct Late {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Late {
    /// The way, when the tree needs it: our end, and the end that the stubs inherit.
    pub fn new(tree: &Tree) -> Result<Option<Late>> {
        if !tree.files.iter().any(|f| is_late(f, tree)) {
            return Ok(None);
        }
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok(Some(Late { ours, theirs }))
    }

    /// Puts the stubs' end where they inherit it.
    pub fn keep(self, keep: impl FnOnce(OwnedFd) -> Result<OwnedFd>) -> Result<Late> {
        Ok(Late { theirs: keep(self.theirs)?, ..self })
    }

    /// Gives a process those late files that it needs. All numbers below the pool are closed for that.
    pub fn deliver(&self, process: &Process, tree: &Tree, pool: &Pool, script: &mut Script<'_>) -> Result<()> {
        let late = |id: &FileId| tree.files.get(*id as usize).is_some_and(|f| is_late(f, tree));
        let needed: BTreeSet<FileId> = needed(process, tree).filter(late).collect();
        let needed: Vec<i32> = needed.into_iter().map(|id| pool.file(id)).collect::<Result<_>>()?;
        for numbers in needed.chunks(AT_ONCE.min(pool.base() as usize)) {
            let byte = [IoSlice::new(&[0])];
            sendmsg::<()>(self.ours.as_raw_fd(), &byte, &[ControlMessage::ScmRights(numbers)], MsgFlags::empty(), None)
                .context(|| "sending descriptors")?;
            script.call("close_range", libc::SYS_close_range, &[0, pool.base() as u64 - 1, 0])?;
            let header = message(script, numbers.len());
            script.expect("recvmsg", 1, libc::SYS_recvmsg, &[self.theirs.as_raw_fd() as u64, header, 0])?;
            // The lowest free numbers, in their order: from 0, since nothing is open there.
            for (n, &number) in numbers.iter().enumerate() {
                script.expect("dup3", number as u64, libc::SYS_dup3, &[n as u64, number as u64, libc::O_CLOEXEC as u64])?;
            }
        }
        if !needed.is_empty() {
            script.call("close_range", libc::SYS_close_range, &[0, pool.base() as u64 - 1, 0])?;
        }
        Ok(())
    }
}

/// The files that lead into a process's table, or that it shows to an epoll instance.
fn needed<'a>(process: &'a Process, tree: &'a Tree) -> impl Iterator<Item = FileId> + 'a {
    let watched = tree.files.iter().filter_map(move |f| match &f.kind {
        FileKind::Epoll(epoll) if epoll.first.0 == process.pid => Some(epoll.targets.iter().filter_map(|t| t.file)),
        _ => None,
    });
    process.descriptors.iter().map(|d| d.file).chain(watched.flatten())
}

/// A `struct msghdr` with room for one byte and `count` descriptors in the stub's memory; its address there.
fn message(script: &mut Script<'_>, count: usize) -> u64 {
    let byte = script.data(&[0]);
    let buffer = script.data(&[byte, 1].map(u64::to_le_bytes).concat());
    let control = (16 + 4 * count).next_multiple_of(8); // CMSG_SPACE
    let room = script.data(&vec![0; control]);
    script.data(&[0, 0, buffer, 1, room, control as u64, 0].map(u64::to_le_bytes).concat())
}

/// Makes the late files, now that the tasks are there, in meio's own table.
pub fn make(tree: &Tree, threads: &HashMap<i32, Stub>, pool: &mut Pool) -> Result<()> {
    for file in &tree.files {
        if let Some(session) = session(file, tree) {
            let member = tree.processes.iter().find(|p| p.sid == session && !matches!(p.state, State::Zombie(_)));
            // Where it cannot be opened so (there may be no such file in a place of the tree's own), it stays what it is.
            if let Some(stub) = member.and_then(|p| threads.get(&p.pid))
                && let Some(tty) = tty(stub, file.flags)?
            {
                pool.replace(file.id, tty)?;
            }
            continue;
        }
        let FileKind::PidFd(handle) = &file.kind else { continue };
        let task = threads.get(&handle.target_pid).map(|stub| stub.tid);
        let made = match (handle.departed, tree.processes.first().and_then(|root| threads.get(&root.pid))) {
            (Some(status), Some(root)) => departed(root, status, file.flags & libc::O_NONBLOCK as u32),
            _ => handle.make(task, file.flags),
        };
        pool.replace(file.id, made.context(|| format!("opening {}", file.link))?)?;
    }
    Ok(())
}

/// `/dev/tty` as a process of its session opens it.
fn tty(stub: &Stub, flags: u32) -> Result<Option<OwnedFd>> {
    let kept = flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | libc::O_DSYNC | libc::O_SYNC);
    let mut script = stub.script();
    let path = script.text(b"/dev/tty");
    let args = [libc::AT_FDCWD as u64, path, (kept | libc::O_NOCTTY | libc::O_CLOEXEC) as u64, 0];
    script.attempt("openat /dev/tty", libc::SYS_openat, &args)?;
    let number = script.run()?.results.last().copied().unwrap_or(-1);
    if number < 0 {
        return Ok(None);
    }
    let made = Files::of(stub.pid).get(number as i32).context(|| "taking a descriptor of /dev/tty");
    let mut script = stub.script();
    script.call("close", libc::SYS_close, &[number as u64])?;
    script.run()?;
    made.map(Some)
}

/// The handle of a process that has ended and was waited for: one that does so now. A child of the root, since nobody can
/// use a handle from another pid namespace.
fn departed(root: &Stub, status: i32, flags: u32) -> Result<OwnedFd> {
    let lost = || Error::other("a process that was just made is missing");
    let mut script = root.script();
    let args = script.data(&[0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0].map(u64::to_le_bytes).concat());
    script.call("clone3", libc::SYS_clone3, &[args, 64])?;
    let ran = script.run()?;
    let child = root.born(*ran.births.first().ok_or_else(lost)?, false)?;
    let number = *ran.results.last().ok_or_else(lost)? as u64;
    let handle = anon::pidfd(child.pid, flags).context(|| "opening the handle of a process that ends");
    skeleton::die(&child, status)?;
    let mut script = root.script();
    script.expect("wait4", number, libc::SYS_wait4, &[number, 0, libc::__WALL as u64, 0])?;
    script.run()?;
    handle
}
