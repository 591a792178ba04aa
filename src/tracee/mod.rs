//! Holding a process and making it act: stop a whole tree, run single system calls in it
//! so that it survives even the sudden death of its tracer, and build new ones from nothing.

mod deferred;
pub mod foothold;
pub mod freeze;
pub mod inject;
pub mod stop;
pub mod stub;
pub mod track;
pub mod volley;
pub mod wait_time;

use crate::error::{Context, Result};
use crate::sys::arch::Registers;
use crate::sys::proc::{read, status};
use crate::sys::ptrace;
use crate::sys::seccomp::Confinement;

/// All signals but those that cannot be blocked.
pub const ALL_SIGNALS: u64 = !0;

/// A stopped tracee. It exists only while the task is held; letting go consumes it.
#[derive(Debug)]
pub struct Held {
    /// Process id.
    pub pid: i32,
    /// Thread id.
    pub tid: i32,
    /// Registers at the stop, as the program must find them again.
    pub registers: Registers,
    /// Blocked signals at the stop.
    pub sigmask: u64,
    /// Stopped by job control before we came: the signal.
    pub group_stop: Option<i32>,
    /// What the task was waiting for before it was interrupted, when its time is limited.
    pub waiting: Option<wait_time::Blocked>,
    /// Signals that came while it was made to act and could not be blocked: raw `siginfo_t`, first come first.
    pub deferred: Vec<Vec<u8>>,
    /// seccomp(2), when it is under it; out of force while the task is held.
    pub confined: Option<Confinement>,
    /// Its number as it sees it itself, and a signal that means nothing to it; when both are known.
    pub hush: Option<(i32, i32)>,
    /// A call was injected that would have ended it, had meio died just then.
    pub exposed: bool,
}

impl Held {
    /// Takes over a task that has just been seen to stop.
    pub fn new(pid: i32, tid: i32, group_stop: Option<i32>) -> Result<Self> {
        let registers = ptrace::registers(tid).context(|| format!("reading the registers of task {tid}"))?;
        let sigmask = ptrace::sigmask(tid).context(|| format!("reading the signal mask of task {tid}"))?;
        Ok(Held {
            pid,
            tid,
            registers,
            sigmask,
            group_stop,
            waiting: None,
            deferred: Vec::new(),
            confined: None,
            hush: None,
            exposed: false,
        })
    }

    /// Lets the task go on. What it receives afterwards it receives as if nothing had been.
    pub fn release(self) {
        // The task may have been killed meanwhile: nothing is left to signal then.
        let sent: Vec<_> = self.deferred.iter().filter(|info| !deferred::queue(self.pid, self.tid, info)).collect();
        undo_interruption(self.tid);
        if sent.is_empty() || deferred::deliver(self.tid, &sent).is_err() {
            let _ = ptrace::detach(self.tid);
        }
    }

    /// Keeps back the signal that the task has stopped for, to be sent again when it is let go.
    pub fn defer(&mut self) -> Result<()> {
        let info = ptrace::siginfo(self.tid).context(|| format!("reading a signal of task {}", self.tid))?;
        self.deferred.push(info);
        Ok(())
    }
}

/// Some calls fail with `EINTR` at every ptrace stop (signal(7), "never restarted"). The one of a task that was stopped and
/// not asked anything begins anew.
fn undo_interruption(tid: i32) {
    const EINTR: i64 = -(libc::EINTR as i64);
    let Ok(registers) = ptrace::registers(tid) else { return };
    let answer = registers.rax as i64;
    if !matches!(answer, inject::ERESTART_RESTARTBLOCK | EINTR) || (registers.orig_rax as i64) < 0 {
        return;
    }
    // When a signal is about to be delivered, EINTR is the truth. What the kernel goes on with by restart_syscall(2) must
    // begin anew only where a filter may forbid that.
    let anew = |s: status::Status| if answer == EINTR { (s.sig_pnd | s.shd_pnd) & !s.sig_blk == 0 } else { s.seccomp == 2 };
    if read::parsed(tid, "status", status::parse).is_ok_and(anew) {
        let anew = Registers { rip: registers.rip - 2, rax: registers.orig_rax, orig_rax: u64::MAX, ..registers };
        let _ = ptrace::set_registers(tid, &anew);
    }
}
