//! A child of meio that ends processes when meio dies before it could answer for all of them.
//!
//! What becomes of a tracee when its tracer dies is a property of each task (`PTRACE_O_EXITKILL`), and no single call
//! changes that of two. While it is changed for one task after the other the guardian stands by. When the tree lives whatever
//! becomes of meio, there may be something left to be done for it: then that is the guardian's, should meio die.

use super::task;
use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long meio may take from where its descriptors are closed to its end.
const DYING: Duration = Duration::from_secs(5);

/// On its post until it is dismissed. Dropped, it is told that meio is no more, and believes it when meio has ended or some seconds
/// have gone by.
pub struct Guardian {
    pid: i32,
    alive: OwnedFd,
}

impl Guardian {
    /// Starts one that ends `pids` as soon as meio is gone; once they are [entrusted](Guardian::entrust) to nobody, it does what
    /// is `left` instead.
    ///
    /// # Errors
    /// When the kernel gives no process or no pipe.
    pub fn post(pids: &[i32], left: impl FnOnce()) -> Result<Guardian> {
        let doing = || "starting a guardian";
        let meio = task::pidfd(std::process::id() as i32).context(doing)?;
        let (gone, alive) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
        // SAFETY: the C library's own fork: what the child allocates is sound. It never returns.
        let pid = Errno::result(unsafe { libc::fork() }).context(doing)?;
        if pid != 0 {
            return Ok(Guardian { pid, alive });
        }
        drop(alive);
        let mut byte = 0u8;
        let mut entrusted = false;
        loop {
            // SAFETY: the kernel writes one byte, which outlives the call.
            match unsafe { libc::read(gone.as_raw_fd(), (&raw mut byte).cast(), 1) } {
                0 => break,
                1 => entrusted = true,
                _ => {}
            }
        }
        if entrusted {
            has_ended(&meio);
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(left));
        }
        // SAFETY: system calls on numbers; the child ends without the clean-up that is meio's.
        unsafe {
            for &pid in pids.iter().filter(|_| !entrusted) {
                libc::kill(pid, libc::SIGKILL);
            }
            libc::_exit(0)
        }
    }

    /// Starts one that does `work` beside meio, and after it; the pipe says what meio wants of it, and ends with meio.
    ///
    /// # Errors
    /// When the kernel gives no process or no pipe.
    pub fn beside(work: impl FnOnce(OwnedFd)) -> Result<Guardian> {
        let doing = || "starting a guardian";
        let (orders, alive) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
        // SAFETY: the C library's own fork: what the child allocates is sound. It never returns.
        let pid = Errno::result(unsafe { libc::fork() }).context(doing)?;
        if pid != 0 {
            return Ok(Guardian { pid, alive });
        }
        drop(alive);
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(orders)));
        // SAFETY: the child ends without the clean-up that is meio's.
        unsafe { libc::_exit(0) }
    }

    /// Tells one that works [beside](Guardian::beside) meio what is wanted.
    pub fn tell(&self, order: &[u8]) -> Result<()> {
        nix::unistd::write(&self.alive, order).map(drop).context(|| "telling the guardian")
    }

    /// From here on the processes live whatever becomes of meio.
    pub fn entrust(&self) -> Result<()> {
        nix::unistd::write(&self.alive, &[1]).map(drop).context(|| "telling the guardian that the tree lives")
    }

    /// Takes it from its post: nothing is left to be done.
    ///
    /// # Errors
    /// When it cannot be ended; the processes must be ended then, since it will.
    pub fn dismiss(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).context(|| "dismissing the guardian")?;
        task::wait(std::mem::take(&mut self.pid));
        Ok(())
    }
}

impl Drop for Guardian {
    /// Its end may take a while, which nobody waits for.
    fn drop(&mut self) {
        if self.pid != 0 {
            task::reap(self.pid);
        }
    }
}

/// Waits for the end of meio, whose end of the pipe is closed: its tracees and its locks are its own until then.
fn has_ended(meio: &OwnedFd) {
    let limit = Instant::now() + DYING;
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(meio.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}
