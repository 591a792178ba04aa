//! A process of meio's own that works on for a tree when the command has ended, and its guard: a second one that shares its
//! table of descriptors, so that nothing that it holds open is closed while either of them lives.

use super::spawn::{CloneArgs, clone};
use super::task;
use crate::error::{Context, Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Handles that the two can tell each other of.
const HANDLES: usize = 1022;

/// What it says when it fails, or is silent when it has done all.
pub struct Server {
    pid: i32,
    ended: Option<i32>,
    /// Closed or written to: the tree runs.
    go: Option<File>,
    said: File,
    handles: Handles,
}

/// What the server has of meio.
pub struct Link {
    go: File,
    say: File,
    /// Of the meio that has started it.
    meio: OwnedFd,
}

/// Numbers of descriptors, in memory that server and guard share.
struct Board {
    lives: AtomicBool,
    count: AtomicUsize,
    /// A pid, and in the lower half the number of a pidfd of it.
    handles: [AtomicU64; HANDLES],
}

/// Handles of the processes of the tree, known to both.
#[derive(Clone, Copy)]
pub struct Handles(NonNull<Board>);

// SAFETY: the board is made of atomics and is never unmapped.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

impl Handles {
    fn new() -> nix::Result<Handles> {
        let length = std::num::NonZeroUsize::new(size_of::<Board>()).ok_or(Errno::EINVAL)?;
        let (prot, flags) =
            (nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE, nix::sys::mman::MapFlags::MAP_SHARED);
        // SAFETY: new memory, all zero, which is a valid board; nobody unmaps it.
        unsafe { nix::sys::mman::mmap_anonymous(None, length, prot, flags) }.map(|at| Handles(at.cast()))
    }

    fn board(&self) -> &Board {
        // SAFETY: it lives as long as the process, and is only changed atomically.
        unsafe { self.0.as_ref() }
    }

    /// Whether the tree lives: what goes wrong now, meio itself does not see.
    pub fn do_live(&self) -> bool {
        self.board().lives.load(Ordering::Acquire)
    }

    /// Adds a process, in place of one that has ended when there is no other. Those who have no place are found below their
    /// parents only.
    pub fn add(&self, pid: i32, handle: OwnedFd) {
        let board = self.board();
        let count = board.count.load(Ordering::Acquire);
        let new = (pid as u64) << 32 | handle.as_raw_fd() as u64;
        if let Some(place) = board.handles.get(count) {
            place.store(new, Ordering::Release);
            board.count.store(count + 1, Ordering::Release);
        } else if let Some(place) = board.handles.iter().find(|h| has_ended(h.load(Ordering::Acquire) as u32 as i32)) {
            let old = place.swap(new, Ordering::AcqRel) as u32 as i32;
            // SAFETY: the board owned it, and has forgotten it.
            drop(unsafe { OwnedFd::from_raw_fd(old) });
        } else {
            return;
        }
        let _ = handle.into_raw_fd();
    }

    /// All of them: pid and handle.
    pub fn all(&self) -> Vec<(i32, RawFd)> {
        let board = self.board();
        let count = board.count.load(Ordering::Acquire).min(HANDLES);
        let both = board.handles[..count].iter().map(|h| h.load(Ordering::Acquire));
        both.map(|h| ((h >> 32) as i32, h as u32 as i32)).collect()
    }
}

/// Whether the process of a handle has ended.
pub fn has_ended(pidfd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, as is said.
    unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
}

/// A second number for a descriptor.
pub fn duplicate(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the number is of a descriptor that stays open; the duplicate is nobody else's.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for Server {
    /// It may go on for long.
    fn drop(&mut self) {
        if !self.has_ended() {
            task::reap(self.pid);
        }
    }
}

impl Server {
    /// Starts it, and waits until it is ready. Of meio's descriptors it has `keep` and standard error, no other. `work` returns what
    /// goes wrong.
    ///
    /// # Errors
    /// When the kernel gives no process or no pipe.
    pub fn start(keep: &[RawFd], work: impl FnOnce(&Link, Handles) -> Result<()>) -> Result<Server> {
        let doing = || "starting a process that brings the pages";
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let ((hear_go, go), (said, say)) = (pipe().context(doing)?, pipe().context(doing)?);
        let meio = task::pidfd(std::process::id() as i32).context(doing)?;
        let handles = Handles::new().context(doing)?;
        // SAFETY: the C library's own fork: what the child allocates is sound. It never returns.
        let pid = Errno::result(unsafe { libc::fork() }).context(doing)?;
        if pid != 0 {
            drop(say);
            let mut server = Server { pid, ended: None, go: Some(go.into()), said: said.into(), handles };
            let mut ready = [0];
            if server.said.read_exact(&mut ready).is_err() {
                server.wait(0);
                return Err(Error::other("a process that brings the pages cannot be started"));
            }
            return Ok(server);
        }
        let link = Link { go: hear_go.into(), say: say.into(), meio };
        let own = [link.go.as_raw_fd(), link.say.as_raw_fd(), link.meio.as_raw_fd()];
        stand_alone(&keep.iter().copied().chain(own).collect::<Vec<_>>());
        let result = catch_unwind(AssertUnwindSafe(|| work(&link, handles)));
        let failed = result.unwrap_or_else(|_| Err(Error::other("it failed without a word"))).err();
        // SAFETY: ends the child, without the clean-up that is meio's.
        unsafe { libc::_exit(i32::from(failed.is_some())) }
    }

    /// The tree lives whatever becomes of meio: it does not ask any more what goes wrong.
    pub fn lives(&self) {
        self.handles.board().lives.store(true, Ordering::Release);
    }

    /// The tree runs.
    pub fn go(&mut self) {
        if let Some(mut go) = self.go.take() {
            let _ = go.write_all(&[1]);
        }
    }

    /// Whether it has ended; its status is taken.
    pub fn has_ended(&mut self) -> bool {
        self.wait(libc::WNOHANG)
    }

    fn wait(&mut self, flags: i32) -> bool {
        let mut status = 0;
        while self.ended.is_none() {
            // SAFETY: waits for our own child; the status outlives the call.
            match unsafe { libc::waitpid(self.pid, &raw mut status, flags) } {
                0 => return false,
                -1 if Errno::last() == Errno::EINTR => {}
                // Somebody who waits for everybody has taken it.
                -1 => self.ended = Some(0),
                _ => self.ended = Some(status),
            }
        }
        true
    }

    /// Once it has ended, or says that it will: what has gone wrong.
    pub fn failure(&mut self) -> Option<Error> {
        let killed = self.has_ended() && self.ended != Some(0);
        let mut fds = [PollFd::new(self.said.as_fd(), PollFlags::POLLIN)];
        if !killed && poll(&mut fds, PollTimeout::ZERO).unwrap_or(0) == 0 {
            return None;
        }
        // To the end, which comes when the tree has ended: the guard has it, too.
        let mut bytes = Vec::new();
        let _ = self.said.read_to_end(&mut bytes);
        self.wait(0);
        match bytes.split_first_chunk::<4>() {
            Some((code, message)) => {
                let kind = if i32::from_le_bytes(*code) == Kind::Image.code() { Kind::Image } else { Kind::Other };
                Some(Error::new(kind, String::from_utf8_lossy(message)))
            }
            None => (self.ended != Some(0)).then(cut_short),
        }
    }

    /// Waits for its end. To be called when nothing of the tree is left.
    pub fn end(mut self) {
        self.go = None;
        self.wait(0);
    }
}

/// What the guard says.
pub fn cut_short() -> Error {
    let message = "the process that brought the pages of the restored program was killed before all were there";
    Error::other(format!("{message}: the program was ended, since it would have found zeros")).help("restore the image again")
}

impl Link {
    /// Tells meio that the tree may run: [`Server::start`] waits for it.
    pub fn ready(&self) {
        let mut say = &self.say;
        let _ = say.write_all(&[1]);
    }

    /// Tells meio what has gone wrong, should it still be there.
    pub fn say(&self, e: &Error) {
        let mut say = &self.say;
        let _ = say.write_all(&[&e.kind.code().to_le_bytes(), e.message.as_bytes()].concat());
    }

    /// Whether the meio that began this is there to tell the user.
    pub fn has_listener(&self) -> bool {
        let mut fds = [PollFd::new(self.meio.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Readable when the tree runs.
    pub fn go(&self) -> &File {
        &self.go
    }
}

/// Out of meio's session, with nothing open but these and standard error, and with the signals as they are by default.
fn stand_alone(keep: &[RawFd]) {
    let _ = nix::unistd::setsid();
    let _ = nix::unistd::chdir("/");
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        let handler =
            if matches!(signal, Signal::SIGHUP | Signal::SIGPIPE | Signal::SIGINT) { SigHandler::SigIgn } else { SigHandler::SigDfl };
        let _ = super::signal::set_handler(signal, handler);
    }
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&nix::sys::signal::SigSet::empty()), None);
    // Each process that the tree bears meanwhile takes some.
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut next = 3;
    for fd in keep.into_iter().chain([i32::MAX]) {
        if fd > next {
            // SAFETY: what is closed belongs to values of meio that this process never uses nor drops.
            unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) };
        }
        next = fd.saturating_add(1);
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for fd in [0, 1] {
            // SAFETY: numbers.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
    // Whoever kills one of them kills the tree.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// The guard of a process, as that has it.
pub struct Guard {
    pid: i32,
    /// What the guard looks at: their table is one.
    _own: OwnedFd,
}

impl Guard {
    /// Starts a guard, which does `work` when the caller has ended without [dismissing](Guard::dismiss) it.
    ///
    /// # Errors
    /// When the kernel gives no process.
    pub fn post(name: &std::ffi::CStr, work: impl FnOnce()) -> Result<Guard> {
        let doing = || "starting a guard";
        let own = task::pidfd(std::process::id() as i32).context(doing)?;
        let args = CloneArgs { flags: libc::CLONE_FILES as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        let mut before = [0u8; 16];
        // It has its name from its birth on.
        // SAFETY: room for a name, and a name.
        unsafe {
            libc::prctl(libc::PR_GET_NAME, before.as_mut_ptr());
            libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        }
        // The caller has one thread, so that the child's memory is sound. It never returns.
        let born = clone(&args);
        if born != Ok(0) {
            // SAFETY: the name that it had.
            unsafe { libc::prctl(libc::PR_SET_NAME, before.as_ptr()) };
            return Ok(Guard { pid: born.context(doing)?, _own: own });
        }
        let _ = nix::unistd::setsid();
        loop {
            let mut fds = [PollFd::new(own.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::NONE).is_ok_and(|n| n > 0) {
                break;
            }
        }
        let _ = catch_unwind(AssertUnwindSafe(work));
        // SAFETY: ends the child, without the clean-up that is meio's.
        unsafe { libc::_exit(0) }
    }

    /// Takes it from its post.
    pub fn dismiss(self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        while let Err(Errno::EINTR) = nix::sys::wait::waitpid(pid, None) {}
    }
}
