//! Probes: does this kernel, with these privileges, really do what meio needs? Each probe does the thing itself, on
//! meio's own process or on a child made for it, because a version number, a config file or even a call that returns
//! success proves nothing (a kernel without `CONFIG_MEM_SOFT_DIRTY` accepts the write that should arm it).

mod making;
mod memory;
mod tracing;

pub use making::{mm_map, namespace, run_memfd, set_tid};
pub use memory::{Scans, pagemap, pagemap_scan, scans, soft_dirty, userfaultfd};
pub use tracing::{kcmp, pidfd_getfd, ptrace, read_memory, rseq, xsave};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::fmt;

/// Why something does not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What the kernel answered, where it did.
    pub errno: Option<Errno>,
    /// In words.
    pub what: String,
}

impl Lack {
    /// Something was seen that should not be.
    fn seen(what: impl Into<String>) -> Self {
        Lack { errno: None, what: what.into() }
    }

    /// Whether a privilege is missing, rather than the feature.
    pub fn denied(&self) -> bool {
        matches!(self.errno, Some(Errno::EPERM | Errno::EACCES))
    }
}

impl From<Errno> for Lack {
    fn from(e: Errno) -> Self {
        Lack { errno: Some(e), what: format!("{e:?} ({})", e.desc()) }
    }
}

impl From<std::io::Error> for Lack {
    fn from(e: std::io::Error) -> Self {
        match e.raw_os_error() {
            Some(n) => Errno::from_raw(n).into(),
            None => Lack::seen(e.to_string()),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A detail worth knowing when it works, else what is lacking.
pub type Probe = Result<String, Lack>;

/// Turns the -1 of a system call into its errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Lack> {
    Ok(Errno::result(result)?)
}

/// A child of our own; it ends with meio at the latest, and is ended and reaped when this is dropped.
struct Child(Pid);

impl Child {
    /// A child that runs `work` and exits with what it returns. `work` may only make system calls: other threads'
    /// locks (the allocator's) may be held for ever in the copy.
    fn running(work: impl FnOnce() -> i32) -> Result<Child, Lack> {
        // SAFETY: the child makes system calls only, as `work` promises, and leaves by _exit.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Child(child)),
            ForkResult::Child => {
                // SAFETY: prctl and _exit touch no memory of this process.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::_exit(work())
                }
            }
        }
    }

    /// A child that waits until it is ended.
    fn waiting() -> Result<Child, Lack> {
        Child::running(|| {
            loop {
                // SAFETY: pause takes nothing.
                unsafe { libc::pause() };
            }
        })
    }

    /// Waits for its end: 0, or the errno it exited with.
    fn answer(self) -> Result<(), Lack> {
        let status = waitpid(self.0, None)?;
        // Reaped: nothing is left for drop to end, and its pid may soon be another's.
        std::mem::forget(self);
        match status {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, n) => Err(Errno::from_raw(n).into()),
            other => Err(Lack::seen(format!("the probe's child ended unexpectedly: {other:?}"))),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// The errno of the last call in a probe's child, as its exit code.
fn last_errno() -> i32 {
    Errno::last_raw()
}

/// `TCP_REPAIR` (tcp(7)): reading and writing the state of a connection. Needs `CAP_NET_ADMIN`.
pub fn tcp_repair() -> Probe {
    use std::os::fd::AsRawFd;
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let on: libc::c_int = 1;
    // SAFETY: the option value is one int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result.into())?;
    Ok("a connection's state can be read and written".into())
}

/// Whether a process can choose the ids of its POSIX timers (prctl(2) `PR_TIMER_CREATE_RESTORE_IDS`, Linux 6.15).
pub fn timer_ids_can_be_chosen() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: libc::c_int = 77;
    const GET: libc::c_ulong = 2;
    // SAFETY: numbers only.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_answers_with_its_errno() {
        assert_eq!(Child::running(|| 0).unwrap().answer(), Ok(()));
        let lack = Child::running(|| libc::EPERM).unwrap().answer().unwrap_err();
        assert_eq!(lack.errno, Some(Errno::EPERM));
        assert!(lack.denied());
        assert!(!Lack::from(Errno::ENOSYS).denied());
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = Child::waiting().unwrap();
        let pid = child.0;
        drop(child);
        assert_eq!(waitpid(pid, None), Err(Errno::ECHILD));
    }
}
