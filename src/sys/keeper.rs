//! A child of meio that takes something out of the tree for a moment, and puts it back whatever becomes of meio.
//!
//! What waits in a terminal or in a POSIX message queue can be read only by taking it. Between taking and putting back nothing
//! must be able to fail: so that is done by a process of its own session, which no signal to meio's group reaches, which blocks
//! all others, and which is nobody's to kill. It hands over what it saw when everything is in its place again. When meio is killed
//! the tree goes on while its keeper is still at work, for as long as that takes: well below a millisecond for a queue, one for
//! some thousand bytes in a terminal. Nothing is lost then; who looks in that very moment may find less.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{Read, Write};

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
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
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

    #[test]
    fn it_hands_over_what_it_saw() {
        let own = nix::unistd::getsid(None).unwrap();
        let (sid, text) = keep(|| Ok((nix::unistd::getsid(None)?.as_raw(), "x".repeat(200_000)))).unwrap();
        assert!(sid != own.as_raw() && text.len() == 200_000);
        let failed = keep(|| Err::<(), _>(Error::other("a reason"))).unwrap_err();
        assert_eq!(failed.message, "a reason");
    }
}
