//! The first process of a pid namespace.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// Forks the init of the pid namespace that was just unshared, in a mount namespace of its own with a fresh `/proc`.
/// Returns when it is ready, with an end of a pipe: once that is closed, it reaps whatever is handed to it and
/// ends when it is alone.
pub fn spawn_init() -> Result<(i32, OwnedFd), Errno> {
    let mut ready = [0i32; 2];
    let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the array has room for both descriptors.
    Errno::result(unsafe { libc::pipe2(ready.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the child makes system calls only and never returns to Rust code that could need locks.
    match Errno::result(unsafe { libc::fork() })? {
        0 => init(ready, gate.as_raw_fd()),
        pid => {
            let mut answer = 0i32;
            // SAFETY: descriptors of our own, a buffer of our own.
            let n = unsafe {
                libc::close(ready[1]);
                let n = libc::read(ready[0], (&raw mut answer).cast(), 4);
                libc::close(ready[0]);
                n
            };
            if n == 4 && answer == 0 {
                return Ok((pid, opener));
            }
            // SAFETY: waits for our own child.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(Errno::from_raw(answer))
        }
    }
}

fn init(ready: [i32; 2], gate: i32) -> ! {
    // SAFETY: system calls on numbers and static strings.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"meio-init".as_ptr());
        let proc = c"proc".as_ptr();
        let mut answer = 0i32;
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) != 0
            || libc::mount(proc, c"/proc".as_ptr(), proc, 0, std::ptr::null()) != 0
        {
            answer = *libc::__errno_location();
        }
        libc::write(ready[1], (&raw const answer).cast(), 4);
        if answer != 0 {
            libc::_exit(1);
        }
        libc::setsid();
        // Nothing of meio stays open but the gate: who waits for the end of a pipe must not wait for us.
        libc::dup2(gate, 0);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        // Until the tree is there, or meio has ended.
        libc::read(0, (&raw mut answer).cast(), 1);
        libc::close(0);
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            if libc::kill(-1, 0) != 0 {
                break; // alone
            }
            libc::usleep(20_000);
        }
        libc::_exit(0)
    }
}
