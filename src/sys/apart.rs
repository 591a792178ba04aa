//! Work that meio's death does not cut in two, or that is done by somebody with another pid or identity.
//!
//! A child does it, in a session of its own: a signal that kills meio does not reach it, nor one for meio's process group; what it
//! has begun it ends. There are two kinds. What only reads, or is undone by meio when the child is killed, is [`run`] with meio's
//! memory and descriptors. What takes something out of the tree for a moment is done by a *keeper* ([`keep`]).
//!
//! What waits in a terminal or in a POSIX message queue can be read only by taking it. Between taking and putting back nothing
//! must be able to fail: so a keeper has memory of its own, where no lock can be held by a thread that was just killed, blocks all
//! signals, runs before all others, and is nobody's to kill. It hands over what it saw when everything is in its place again. When
//! meio is killed the tree goes on while its keeper is still at work, for as long as that takes: well below a millisecond for a
//! queue, one for some thousand bytes in a terminal. Nothing is lost then; who looks in that very moment may find less.

use super::arch;
use super::spawn::CloneArgs;
use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use serde::{Serialize, de::DeserializeOwned};
use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Write};
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

/// Has `body` done by a child with this pid (0 for any) and returns what it returns. Memory and descriptors are meio's, which waits
/// for it as after vfork(2); credentials, root and current directory are its own.
///
/// # Errors
/// When the child cannot be made: `EEXIST` when the pid is taken. `ECANCELED` when it was killed or panicked: nothing is
/// known of how far it came.
pub fn run<R, F: FnOnce() -> R>(pid: i32, body: F) -> nix::Result<R> {
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
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> nix::Result<()> {
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

/// Runs `work` in a keeper, and waits for its end.
///
/// # Errors
/// When there can be no keeper, or with what `work` says.
pub fn keep<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let doing = || "starting a keeper";
    let (answers, answer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(doing)?;
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)).context(doing)?;
    // SAFETY: the C library's own fork: what the child allocates is sound. It runs `work`, and never returns.
    let pid = Errno::result(unsafe { libc::fork() });
    if pid == Ok(0) {
        drop(answers);
        let _ = nix::unistd::setsid();
        first();
        let result = catch_unwind(AssertUnwindSafe(work));
        let result: std::result::Result<T, String> = match result {
            Ok(result) => result.map_err(|e| e.message),
            Err(_) => Err("it failed without a word".to_owned()),
        };
        let mut bytes = Vec::new();
        // Nobody may be there to read it any more; that signal is blocked.
        if ciborium::into_writer(&result, &mut bytes).is_ok() {
            let _ = File::from(answer).write_all(&bytes);
        }
        // SAFETY: ends the child, without the clean-up that is meio's.
        unsafe { libc::_exit(0) }
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let pid = pid.context(doing)?;
    drop(answer);
    let mut bytes = Vec::new();
    let read = File::from(answers).read_to_end(&mut bytes);
    while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None) {}
    read.context(|| "listening to a keeper")?;
    let result: std::result::Result<T, String> =
        ciborium::from_reader(bytes.as_slice()).map_err(|_| Error::other("the keeper of what was taken out of the tree was killed"))?;
    result.map_err(Error::other)
}

/// Lets the caller run before all others, when it may: when meio is killed the tree goes on at once.
fn first() {
    // SAFETY: a structure of numbers, for which zero will do.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    // SAFETY: the structure outlives the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
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

    #[test]
    fn it_hands_over_what_it_saw() {
        let own = nix::unistd::getsid(None).unwrap();
        let (sid, text) = keep(|| Ok((nix::unistd::getsid(None)?.as_raw(), "x".repeat(200_000)))).unwrap();
        assert!(sid != own.as_raw() && text.len() == 200_000);
        let failed = keep(|| Err::<(), _>(Error::other("a reason"))).unwrap_err();
        assert_eq!(failed.message, "a reason");
    }
}
