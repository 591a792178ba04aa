//! A child of meio that ends processes when meio dies before it could answer for all of them.
//!
//! What becomes of a tracee when its tracer dies is a property of each task (`PTRACE_O_EXITKILL`), and no single call
//! changes that of two. While it is changed for one task after the other the guardian stands by.

use super::spawn::CloneArgs;
use crate::error::{Context, Result};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// On its post until it is dismissed. Dropped, it is told that meio is no more.
pub struct Guardian {
    pid: i32,
    _alive: OwnedFd,
}

impl Guardian {
    /// Starts one that ends `pids` as soon as meio is gone.
    ///
    /// # Errors
    /// When the kernel gives no process or no pipe.
    pub fn post(pids: &[i32]) -> Result<Guardian> {
        let doing = || "starting a guardian";
        let (gone, alive) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
        let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
        // SAFETY: without CLONE_VM the child has a copy of everything; it makes only system calls and never returns.
        let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }).context(doing)?;
        if pid != 0 {
            return Ok(Guardian { pid: pid as i32, _alive: alive });
        }
        // SAFETY: system calls on numbers and on a byte that outlives them.
        unsafe {
            libc::close(alive.as_raw_fd());
            let mut byte = 0u8;
            // Only the end of the pipe ends the loop; nobody writes.
            while libc::read(gone.as_raw_fd(), (&raw mut byte).cast(), 1) != 0 {}
            for &pid in pids {
                libc::kill(pid, libc::SIGKILL);
            }
            libc::_exit(0)
        }
    }

    /// Takes it from its post: from here on the processes live whatever becomes of meio.
    ///
    /// # Errors
    /// When it cannot be ended; the processes must be ended then, since it will.
    pub fn dismiss(self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).context(|| "dismissing the guardian")?;
        while let Err(Errno::EINTR) = nix::sys::wait::waitpid(pid, None) {}
        Ok(())
    }
}
