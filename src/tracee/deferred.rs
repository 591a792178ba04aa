//! Signals that a task stopped for while it was made to act. They come again when it is let go, and say
//! what they said: who sent them, which timer ran out, which child ended.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::sys::ptrace::{self, Status};
use crate::sys::task;

/// How long a task may take to stop for a signal that was just sent to it.
const PATIENCE: Duration = Duration::from_millis(100);

/// Queues a signal again. False when it has been sent in a plain way, since no process may say for the kernel or for another
/// process what it said: [`deliver`] is to see to that.
pub(super) fn queue(pid: i32, tid: i32, info: &[u8]) -> bool {
    let number = |at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    let (signal, code) = (number(0), number(8));
    let whole: Option<&[u8; 128]> = info.try_into().ok();
    if code < 0 && whole.is_some_and(|info| task::queue_signal(pid, tid, info).is_ok()) {
        return true;
    }
    let _ = task::tgkill(pid, tid, signal);
    signal == libc::SIGSTOP
}

/// Lets go of a task that was sent these signals, putting right what each of them says when it stops for it.
///
/// # Errors
/// When it is held still: it has ended, or has not stopped for all of them in time.
pub(super) fn deliver(tid: i32, sent: &[&Vec<u8>]) -> Result<(), Errno> {
    let mut left: Vec<&Vec<u8>> = sent.to_vec();
    let until = Instant::now() + PATIENCE;
    ptrace::cont(tid, 0)?;
    loop {
        let Some((_, status)) = ptrace::poll(tid)? else {
            if Instant::now() < until {
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            // Blocked since, or on its way in a long call.
            ptrace::interrupt(tid)?;
            return match ptrace::wait(tid)? {
                Status::Signal(signal) => ptrace::detach_with(tid, signal),
                _ => Err(Errno::ETIMEDOUT),
            };
        };
        match status {
            Status::Ended(_) => return Err(Errno::ESRCH),
            Status::Signal(signal) => {
                let ours = |info: &&Vec<u8>| info[..4] == signal.to_ne_bytes();
                if let Some(at) = left.iter().position(ours) {
                    ptrace::set_siginfo(tid, left.remove(at))?;
                }
                if left.is_empty() {
                    return ptrace::detach_with(tid, signal);
                }
                ptrace::cont(tid, signal)?;
            }
            _ => ptrace::cont(tid, 0)?,
        }
    }
}
