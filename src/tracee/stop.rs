//! A stop that needs no tracer: a frozen tree is brought into a group stop of job control, in which it stays when meio is
//! killed, without an instruction of its programs being run on the way there.
//!
//! SIGSTOP is queued for the process; its first thread, which stands in a ptrace stop inside the kernel's handling of signals,
//! is sent on to take it, with everything else blocked. That marks all threads. When meio dies the kernel leads those that it
//! lets go into the stop that is pending for them (kernel/ptrace.c, `__ptrace_unlink`).
//!
//! What can be seen of it: a parent hears of it by SIGCHLD and waitid(2), as of any stop and its end, and who sends SIGCONT ends it.

use super::freeze::{Frozen, Process};
use super::{ALL_SIGNALS, Held};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::proc::{read, stat, status};
use crate::sys::ptrace::{self, Status};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// `1 << (SIGCONT - 1)`.
const CONTINUE: u64 = 1 << (libc::SIGCONT - 1);
/// What the kernel never has in a mask of blocked signals.
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// What must be known of a process to end its stop, also by another meio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    /// The process.
    pub pid: i32,
    /// When it began, in clock ticks since boot.
    pub start: u64,
    /// Job control had stopped it before: it stays so.
    pub before: bool,
    /// The thread that takes the signal, and what it has blocked.
    pub thread: (i32, u64),
    /// A SIGCONT was waiting, which the stop takes away.
    pub continued: bool,
}

impl Stopped {
    /// Whether the process is still there.
    pub fn lives(&self) -> bool {
        read::parsed(self.pid, "stat", stat::parse).is_ok_and(|s| s.start_time == self.start && !matches!(s.state, b'Z' | b'X'))
    }

    /// Whether all of its threads stand still.
    pub fn stands(&self) -> bool {
        let still = |tid| read::parsed_task(self.pid, tid, "stat", stat::parse).is_ok_and(|s| matches!(s.state, b'T' | b't' | b'Z' | b'X'));
        self.lives() && read::tasks(self.pid).is_ok_and(|all| all.into_iter().all(still))
    }
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), signal).context(|| format!("sending {signal} to process {pid}"))
}

/// Sends a held thread on until it reports one of these, and nothing of its program is run. `resume` is delivered to it at first.
fn on_to(tid: i32, mut resume: i32, there: impl Fn(Status) -> bool) -> Result<()> {
    let doing = || format!("stopping task {tid}");
    loop {
        ptrace::cont(tid, resume).context(doing)?;
        resume = 0;
        match ptrace::wait(tid).context(doing)? {
            status if there(status) => return Ok(()),
            Status::Ended(_) => return Err(Error::new(Kind::NotFound, format!("task {tid} was killed"))),
            // Whatever else it stops for on its way it stops for in the kernel.
            _ => {}
        }
    }
}

/// Sends a held thread on until it has stopped to receive SIGSTOP. Its report is not taken: with it the kernel would forget the
/// signal, and the task would go on if meio died just then.
fn meet_stop(tid: i32) -> Result<()> {
    let doing = || format!("stopping task {tid}");
    loop {
        ptrace::cont(tid, 0).context(doing)?;
        ptrace::await_report(tid).context(doing)?;
        if ptrace::delivered(tid) == Ok(libc::SIGSTOP) {
            return Ok(());
        }
        if let Status::Ended(_) = ptrace::wait(tid).context(doing)? {
            return Err(Error::new(Kind::NotFound, format!("task {tid} was killed")));
        }
    }
}

impl Frozen {
    /// What [`Frozen::stop`] will have to be undone with. Nothing is done yet.
    ///
    /// # Errors
    /// When a process has gone.
    pub fn stopped(&self) -> Result<Vec<Stopped>> {
        let of = |process: &Process| {
            let first = process.threads.first()?;
            let start = read::parsed(process.pid, "stat", stat::parse).map(|s| s.start_time);
            let waiting = read::parsed(first.tid, "status", status::parse).map(|s| (s.sig_pnd | s.shd_pnd) & CONTINUE != 0);
            let before = process.threads.iter().any(|t| t.group_stop.is_some() || t.deferred.iter().any(|info| is_stop(info)));
            let thread = (first.tid, first.sigmask);
            Some(start.and_then(|start| Ok(Stopped { pid: process.pid, start, before, thread, continued: waiting? })))
        };
        self.processes.iter().filter_map(of).collect()
    }

    /// Brings every process into a group stop. What was injected has been given back before.
    ///
    /// # Errors
    /// When a task was killed meanwhile. Some processes may have been stopped: [`Frozen::wake`] lets them go on.
    pub fn stop(&mut self) -> Result<()> {
        for process in &mut self.processes {
            let pid = process.pid;
            for thread in &mut process.threads {
                // It is stopped now.
                thread.deferred.retain(|info| !is_stop(info));
            }
            let Some(first) = process.threads.first_mut().filter(|t| t.group_stop.is_none()) else { continue };
            let tid = first.tid;
            let doing = || format!("stopping task {tid}");
            // The signal first: if meio dies in between, the task is stopped with its own mask.
            signal(pid, Signal::SIGSTOP)?;
            ptrace::set_sigmask(tid, ALL_SIGNALS).context(doing)?;
            let met = meet_stop(tid);
            ptrace::set_sigmask(tid, first.sigmask).or_else(gone).context(doing)?;
            met?;
            on_to(tid, libc::SIGSTOP, |status| matches!(status, Status::GroupStop(_)))?;
            process.threads.iter_mut().for_each(|thread| thread.group_stop = Some(libc::SIGSTOP));
        }
        Ok(())
    }

    /// Lets the tree go on, but those processes that job control had stopped before. What a handler of SIGCONT would do is not
    /// done. `stopped` is what was told before the stop, perhaps to another meio.
    ///
    /// # Errors
    /// When a process could not be woken, which stands still; all others go on.
    pub fn wake(mut self, stopped: &[Stopped]) -> Result<()> {
        let mut failed = Ok(());
        for process in &mut self.processes {
            let Some(known) = stopped.iter().find(|s| s.pid == process.pid) else { continue };
            // One that still runs was never brought to its stop, or has left it.
            let is_stopped = process.threads.iter().any(|t| t.group_stop.is_some()) || is_to_stop(process.pid);
            if is_stopped && !known.before && known.lives() {
                failed = failed.and(wake(process, known));
            }
        }
        self.release();
        failed
    }
}

/// Ends the group stop of one process, which is held.
fn wake(process: &mut Process, known: &Stopped) -> Result<()> {
    for thread in &mut process.threads {
        thread.group_stop = None;
        // Whoever stopped it may have died before it gave the mask back.
        if thread.tid == known.thread.0 && thread.sigmask | UNBLOCKABLE | CONTINUE == ALL_SIGNALS {
            thread.sigmask = known.thread.1;
            ptrace::set_sigmask(thread.tid, thread.sigmask).or_else(gone).context(|| format!("waking task {}", thread.tid))?;
        }
    }
    let Some(Held { tid, sigmask, .. }) = process.threads.first() else { return Ok(()) };
    let (tid, doing) = (*tid, || format!("waking task {tid}"));
    signal(process.pid, Signal::SIGCONT)?;
    let caught = read::parsed(tid, "status", status::parse).is_ok_and(|s| s.sig_cgt & CONTINUE != 0);
    let blocked = process.threads.iter().any(|t| t.sigmask & CONTINUE != 0);
    if caught || blocked {
        // It is taken here, and goes no further.
        ptrace::set_sigmask(tid, ALL_SIGNALS & !CONTINUE).context(doing)?;
        let take = || {
            on_to(tid, 0, |status| status == Status::Signal(libc::SIGCONT))?;
            ptrace::interrupt(tid).context(doing)?;
            on_to(tid, 0, |status| status == Status::Stop)
        };
        let taken = take();
        ptrace::set_sigmask(tid, *sigmask).or_else(gone).context(doing)?;
        taken?;
    }
    if known.continued { signal(process.pid, Signal::SIGCONT) } else { Ok(()) }
}

fn gone(e: Errno) -> std::result::Result<(), Errno> {
    if e == Errno::ESRCH { Ok(()) } else { Err(e) }
}

/// Whether a stop waits for a process.
fn is_to_stop(pid: i32) -> bool {
    read::parsed(pid, "status", status::parse).is_ok_and(|s| s.shd_pnd & 1 << (libc::SIGSTOP - 1) != 0)
}

/// Whether a signal that was kept back is a SIGSTOP.
fn is_stop(info: &[u8]) -> bool {
    info.get(..4) == Some(&libc::SIGSTOP.to_ne_bytes())
}

#[cfg(test)]
mod tests;
