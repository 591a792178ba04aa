//! Open files that can only be made when the tasks of the tree exist: handles of tasks.
//!
//! The stubs are born with everything that meio has open then. What comes later is sent to them over a socket that they
//! are born with (unix(7), `SCM_RIGHTS`), each into the number that is kept for it in the pool: from there on
//! it is a file like any other, one open file description in all processes.

use super::pool::Pool;
use super::skeleton;

use crate::error::{Context, Error, Result};
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::process::Process;
use crate::sys::anon;
use crate::tracee::stub::{Script, Stub};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use std::collections::{BTreeSet, HashMap};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

/// Descriptors in one message, at most (`SCM_MAX_FD`).
const AT_ONCE: usize = 253;

/// Whether a file is made late.
pub fn is_late(kind: &FileKind) -> bool {
    matches!(kind, FileKind::PidFd(_))
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
        if !tree.files.iter().any(|f| is_late(&f.kind)) {
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
        let late = |id: &FileId| tree.files.get(*id as usize).is_some_and(|f| is_late(&f.kind));
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
