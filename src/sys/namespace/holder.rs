//! Children of meio that live in other namespaces for a moment: one that makes namespaces, one that works in them.

use super::{Kind, enter};
use crate::error::{Context, Error, Kind as Failure, Result};
use nix::errno::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A child that has made namespaces and holds them until it is dropped, or meio ends.
pub struct Holder {
    /// Its pid as meio sees it.
    pub pid: i32,
    gate: Option<OwnedFd>,
}

/// Where and as whom a [`Holder`] makes its namespaces.
#[derive(Debug, Default)]
pub struct Making<'a> {
    /// Namespaces to enter first.
    pub enter: &'a [(BorrowedFd<'a>, Kind)],
    /// Effective user and group whose a new user namespace becomes, as we number them before we enter those.
    pub maker: Option<(u32, u32)>,
    /// A file that is given our pid before: `cgroup.procs`.
    pub join: Vec<std::path::PathBuf>,
}

impl Holder {
    /// Makes namespaces, `kinds`, all owned by the user namespace that is entered last.
    pub fn make(making: &Making<'_>, kinds: &[Kind]) -> Result<Holder> {
        let doing = || format!("making a {} namespace", kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(" and "));
        let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
        let (answers, answer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
        let flags = kinds.iter().fold(0, |flags, kind| flags | kind.flag());
        // SAFETY: the child makes system calls only and never returns.
        let pid = Errno::result(unsafe { libc::fork() }).context(doing)?;
        if pid == 0 {
            let made = make(making, flags);
            // SAFETY: descriptors of our own; a buffer of our own.
            unsafe {
                let mut errno = made.err().map_or(0, |e| e as i32);
                libc::write(answer.as_raw_fd(), (&raw const errno).cast(), 4);
                libc::close(opener.as_raw_fd());
                libc::read(gate.as_raw_fd(), (&raw mut errno).cast(), 1);
                libc::_exit(0)
            }
        }
        let holder = Holder { pid, gate: Some(opener) };
        drop(answer);
        let mut errno = [0u8; 4];
        File::from(answers).read_exact(&mut errno).context(doing)?;
        match i32::from_le_bytes(errno) {
            0 => Ok(holder),
            e => Err(Errno::from_raw(e)).context(doing),
        }
    }

    /// One of the namespaces that it made.
    pub fn open(&self, kind: Kind) -> Result<OwnedFd> {
        // The maker itself stays in its time namespace.
        let name = if kind == Kind::Time { "time_for_children" } else { kind.name() };
        super::open(self.pid, name).context(|| format!("opening a new {} namespace", kind.name()))
    }
}

fn make(making: &Making<'_>, flags: i32) -> std::result::Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    for path in &making.join {
        let own = std::process::id().to_string();
        let file = nix::fcntl::open(path, nix::fcntl::OFlag::O_WRONLY, nix::sys::stat::Mode::empty())?;
        nix::unistd::write(&file, own.as_bytes())?;
    }
    if let Some((uid, gid)) = making.maker.filter(|maker| *maker != (0, 0)) {
        become_one(uid, gid)?;
    }
    making.enter.iter().try_for_each(|&(fd, kind)| enter(fd, kind))?;
    // A change of identity takes the signal of the parent's death away.
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

/// Becomes another effective user and group and keeps all capabilities, those over files, too; for a child of meio that
/// does nothing else.
///
/// # Errors
/// When the ids have no numbers here.
pub fn become_one(uid: u32, gid: u32) -> std::result::Result<(), Errno> {
    const NO_SETUID_FIXUP: i32 = 1 << 2;
    // SAFETY: numbers only. The raw calls: this thread is alone in its process.
    unsafe {
        // Where that is not allowed there may be no capabilities to keep.
        libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP);
        Errno::result(libc::syscall(libc::SYS_setresgid, -1, gid, -1))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, -1, uid, -1))?;
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    Ok(())
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.gate.take();
        while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None) {}
    }
}

/// Runs `work` in a child of meio that has entered `places`, of any kind: into a pid namespace it is born. What it made
/// there stays; what it returns is only whether it failed. The child ends with meio.
pub fn worker(places: &[(BorrowedFd<'_>, Kind)], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let doing = || "working in a namespace";
    let (reports, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
    let pid = fork()?;
    if pid == 0 {
        drop(reports);
        let (pids, others): (Vec<_>, Vec<_>) = places.iter().copied().partition(|p| p.1 == Kind::Pid);
        let run = || -> Result<()> {
            // The pid namespace first: who has entered another user namespace may not any more. Its children are in it.
            pids.iter()
                .chain(&others)
                .try_for_each(|&(fd, kind)| enter(fd, kind).context(|| format!("entering a {} namespace", kind.name())))?;
            if pids.is_empty() {
                return work();
            }
            // What the child of this child finds comes through the same pipe.
            match fork()? {
                0 => leave(&report, work()),
                inner => match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(inner), None) {
                    Ok(nix::sys::wait::WaitStatus::Exited(..)) => leave_silently(),
                    _ => Err(Error::other("the worker in the pid namespace was killed")),
                },
            }
        };
        let result = run();
        leave(&report, result);
    }
    drop(report);
    let mut said = String::new();
    let read = File::from(reports).read_to_string(&mut said);
    while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None) {}
    read.context(doing)?;
    let mut lines = said.lines();
    match lines.next() {
        Some("done") => Ok(()),
        Some(code) => {
            let kind = if code == "11" { Failure::Permission } else { Failure::Other };
            let error = Error::new(kind, lines.next().unwrap_or("it failed without a word"));
            Err(match lines.next() {
                Some(help) => error.help(help),
                None => error,
            })
        }
        None => Err(Error::other("a worker in a namespace was killed")),
    }
}

/// A child that ends with its parent.
fn fork() -> Result<i32> {
    // SAFETY: fork(3) of the C library leaves its own locks (the allocator's) usable in the child, and the child takes no others.
    let pid = Errno::result(unsafe { libc::fork() }).context(|| "starting a worker")?;
    if pid == 0 {
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    }
    Ok(pid)
}

fn leave(report: &OwnedFd, result: Result<()>) -> ! {
    let one_line = |text: &str| text.replace('\n', " ");
    let said = match result {
        Ok(()) => "done\n".to_owned(),
        Err(e) => format!("{}\n{}\n{}", e.kind.code(), one_line(&e.message), e.help.map_or(String::new(), |h| one_line(&h))),
    };
    // SAFETY: a descriptor that this process owns; it is not closed twice, since the process ends.
    let mut report = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(report.as_raw_fd()) });
    let _ = report.write_all(said.as_bytes());
    leave_silently()
}

fn leave_silently() -> ! {
    // SAFETY: ends the child without running what the parent registered for its end.
    unsafe { libc::_exit(0) }
}
