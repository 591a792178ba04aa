//! Work that meio's death does not cut in two, or that is done by somebody with another pid or identity.
//!
//! The child shares memory and descriptors with meio, which waits for it as after vfork(2); credentials, root and
//! current directory are its own. A signal that kills meio does not reach it, nor one for meio's process group: what it
//! has begun it ends. Whoever calls must expect that the child is killed instead.

use super::arch;
use super::spawn::CloneArgs;
use nix::errno::Errno;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of stack for the work.
const STACK: usize = 512 * 1024;

struct Work<F, R> {
    body: Option<F>,
    answer: Option<R>,
}

extern "C" fn begin<F: FnOnce() -> R, R>(work: *mut c_void) -> i32 {
    // SAFETY: `run` passes its own `Work<F, R>`, which outlives the child.
    let work = unsafe { &mut *work.cast::<Work<F, R>>() };
    let Some(body) = work.body.take() else { return 1 };
    // Out of meio's process group. It fails where the pid was that of a group already, which is as well.
    // SAFETY: no arguments.
    unsafe { libc::setsid() };
    // Nothing may unwind out of the child.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => {
            work.answer = Some(answer);
            0
        }
        Err(_) => 1,
    }
}

/// Has `body` done by a child with this pid (0 for any) and returns what it returns.
///
/// # Errors
/// When the child cannot be made: `EEXIST` when the pid is taken. `ECANCELED` when it was killed or panicked: nothing is
/// known of how far it came.
pub fn run<R, F: FnOnce() -> R>(pid: i32, body: F) -> Result<R, Errno> {
    let mut stack = vec![0u128; STACK / 16];
    let mut work = Work { body: Some(body), answer: None };
    let args = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK) as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        set_tid: if pid == 0 { 0 } else { (&raw const pid) as u64 },
        set_tid_size: u64::from(pid != 0),
        ..CloneArgs::default()
    };
    // SAFETY: the child has a stack of its own and ends in `begin`'s caller; CLONE_VFORK keeps this thread, whose thread
    // pointer it borrows, from running until then. All that it refers to outlives it.
    let born =
        unsafe { arch::clone3_on_stack((&raw const args).cast(), size_of::<CloneArgs>(), begin::<F, R>, (&raw mut work).cast::<c_void>()) };
    if born < 0 {
        return Err(Errno::from_raw(-born as i32));
    }
    let mut status = 0;
    // SAFETY: waits for our own child, which sends no signal.
    while unsafe { libc::waitpid(born as i32, &raw mut status, libc::__WALL) } < 0 && Errno::last() == Errno::EINTR {}
    work.answer.ok_or(Errno::ECANCELED)
}

/// Becomes another user, for good; only for the child of [`run`]. Capabilities stay permitted, and file access stays
/// that of root.
///
/// # Errors
/// When that is not allowed.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Errno> {
    const KEEP: i64 = -1;
    // SAFETY: the array outlives the call. The C library's own wrappers would change all threads of meio.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, KEEP, i64::from(gid), KEEP))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, KEEP, i64::from(uid), KEEP))?;
        libc::syscall(libc::SYS_setfsuid, 0);
        // Another identity makes the memory, which is meio's too, private to root (prctl(2) PR_SET_DUMPABLE).
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn shares_memory_and_descriptors_and_nothing_else() {
        let mut seen = Vec::new();
        let fd = run(0, || {
            seen.push(std::process::id());
            std::env::set_current_dir("/").map_err(|_| Errno::EIO)?;
            nix::unistd::pipe()
        });
        let (read, _write) = fd.unwrap().unwrap();
        assert_ne!(seen, [std::process::id()]);
        assert!(nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_GETFD).is_ok(), "{}", read.as_raw_fd());
        assert_ne!(std::env::current_dir().unwrap(), std::path::Path::new("/"));
        assert_eq!(run(0, || 7), Ok(7));
        assert!(run(1, || ()).is_err());
    }
}
