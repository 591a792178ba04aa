//! How long a task still has to wait.
//!
//! A call with a relative time-out that we interrupt is continued by the kernel from a deadline that it keeps to
//! itself. To rebuild the task elsewhere the time left must be known, and two calls would begin anew
//! even here (epoll_wait(2) and its kin fail with `EINTR` at every ptrace stop, ptrace(2) BUGS).
//! The scheduler tells: `se.exec_start` in `/proc/TID/sched` is the instant at which a sleeping task was
//! last switched out. A task that is in `restart_syscall(2)` was interrupted before, so its instant
//! says nothing; it is let go alone for an instant, and the timer that thereby appears in `/proc/timer_list` is its deadline.
//! That is dear: what was found out once is [remembered](Deadlines) for as long as the task has done nothing but sleep.

use super::Held;
use super::inject::ERESTART_RESTARTBLOCK;
use crate::error::Result;
use crate::resource::thread::Waiting;
use crate::sys::arch::Registers;
use crate::sys::proc::{read, sched, stat, syscall, timer_list};
use crate::sys::ptrace::{self, Status};
use crate::sys::{clock, memory};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// A task that was seen to sleep in a call before it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    number: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds when it fell asleep.
    since_ns: u64,
    switches: u64,
}

/// Where the time-out of a call is.
enum TimeOut {
    /// Milliseconds by value in this argument; negative is for ever.
    Milliseconds(u64),
    /// A `struct timespec` at this address; 0 is for ever.
    Timespec(u64),
}

/// The relative time-out of a call that the kernel does not write back itself.
fn time_out(number: u64, regs: &Registers) -> Option<TimeOut> {
    const FUTEX_CMD_MASK: u64 = 0x7f;
    match number as i64 {
        libc::SYS_poll => Some(TimeOut::Milliseconds(regs.rdx)),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(TimeOut::Milliseconds(regs.r10)),
        libc::SYS_nanosleep => Some(TimeOut::Timespec(regs.rdi)),
        libc::SYS_clock_nanosleep if regs.rsi & 1 == 0 => Some(TimeOut::Timespec(regs.rdx)),
        libc::SYS_futex if regs.rsi & FUTEX_CMD_MASK == 0 => Some(TimeOut::Timespec(regs.r10)),
        libc::SYS_epoll_pwait2 => Some(TimeOut::Timespec(regs.r10)),
        _ => None,
    }
}

/// Whether a call is one of those above, by its number alone.
fn timed(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_poll
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_nanosleep
            | libc::SYS_clock_nanosleep
            | libc::SYS_futex
    )
}

/// Notes a running task that sleeps in a timed call. Cheap for all others.
pub fn observe(pid: i32, tid: i32) -> Option<Blocked> {
    let text = read::read_task(pid, tid, "syscall").ok()?;
    let Ok(syscall::Syscall::Inside { nr, args, .. }) = syscall::parse(&text) else { return None };
    if nr == libc::SYS_restart_syscall {
        // Where it sleeps tells which call goes on, and only now is it sure to sleep: once stopped, it may get no
        // processor for a while after it was let go.
        let wchan = read::read_task(pid, tid, "wchan").ok()?;
        let number = number_by_sleep(&wchan, args[0])?;
        let switches = voluntary_switches(pid, tid).unwrap_or(0);
        return Some(Blocked { number, since_ns: 0, switches });
    }
    if !timed(nr) {
        return None;
    }
    let s = sched::parse(&read::read_task(pid, tid, "sched").ok()?);
    let cpu = read::parsed_task(pid, tid, "stat", stat::parse).ok()?.processor.max(0) as usize;
    let since_ns = (s.exec_start_ns? as i64 + clock::scheduler_offset_ns(cpu)?) as u64;
    Some(Blocked { number: nr as u64, since_ns, switches: s.nr_voluntary_switches? })
}

fn voluntary_switches(pid: i32, tid: i32) -> Option<u64> {
    sched::parse(&read::read_task(pid, tid, "sched").ok()?).nr_voluntary_switches
}

/// Until when tasks wait that were interrupted in a call with a time-out, as it was found out at their last stop.
#[derive(Debug, Default)]
pub struct Deadlines(HashMap<i32, Deadline>);

#[derive(Debug, Clone, Copy)]
struct Deadline {
    number: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds; `None` for never.
    at_ns: Option<u64>,
    /// How often it had given its processor away when it stood still.
    switches: u64,
}

impl Deadlines {
    /// Of a stopped task that is in restart_syscall(2): since its last stop it has fallen asleep, which is one switch, and the
    /// stop is another one. Any other call would have been one more, or would not have been interrupted.
    fn still(&self, held: &Held) -> Option<Deadline> {
        let known = self.0.get(&held.tid)?;
        let seen = held.waiting.filter(|seen| seen.switches == known.switches + 1)?;
        (voluntary_switches(held.pid, held.tid)? <= seen.switches + 1).then_some(*known)
    }

    fn note(&mut self, held: &Held, waiting: Option<&Waiting>) {
        self.0.remove(&held.tid);
        if let (Some(waiting), Some(switches)) = (waiting, voluntary_switches(held.pid, held.tid)) {
            let at_ns = waiting.remaining_ns.map(|left| clock::monotonic_ns().saturating_add(left));
            self.0.insert(held.tid, Deadline { number: waiting.number, at_ns, switches });
        }
    }

    /// Forgets all other tasks.
    pub fn keep(&mut self, tids: &HashSet<i32>) {
        self.0.retain(|tid, _| tids.contains(tid));
    }
}

/// What a stopped task waits for and how long still. `None` when it is in no such call.
pub fn remaining(held: &mut Held, known: &mut Deadlines) -> Result<Option<Waiting>> {
    let regs = held.registers;
    if (regs.orig_rax as i64) < 0 {
        return Ok(None);
    }
    if regs.orig_rax as i64 == libc::SYS_restart_syscall && regs.rax as i64 == ERESTART_RESTARTBLOCK {
        let waiting = match known.still(held) {
            Some(Deadline { number, at_ns, .. }) => {
                Some(Waiting { number, remaining_ns: at_ns.map(|at| at.saturating_sub(clock::monotonic_ns())) })
            }
            None => deadline_of_restarted(held)?,
        };
        // What could not be found out is looked for again.
        let found = |w: &&Waiting| w.remaining_ns.is_some() || time_out(w.number, &held.registers).is_none();
        known.note(held, waiting.as_ref().filter(found));
        return Ok(waiting);
    }
    let (waiting, exact) = given_in_arguments(held, &regs)?;
    // What is not interrupted in this way is made again with its arguments, and is told by them the next time.
    let restarts = exact && regs.rax as i64 == ERESTART_RESTARTBLOCK;
    known.note(held, waiting.as_ref().filter(|_| restarts));
    Ok(waiting)
}

/// The same of a call that was made by the program itself; and whether it was seen when it began to wait.
fn given_in_arguments(held: &Held, regs: &Registers) -> Result<(Option<Waiting>, bool)> {
    let number = regs.orig_rax;
    let Some(time_out) = time_out(number, regs) else {
        // An absolute deadline: made again, the call finds it in its arguments.
        let again = regs.rax as i64 == ERESTART_RESTARTBLOCK;
        return Ok((again.then_some(Waiting { number, remaining_ns: None }), true));
    };
    let Some(total) = total_ns(held.pid, &time_out)? else {
        return Ok((Some(Waiting { number, remaining_ns: None }), true));
    };
    // Only the sleep that was seen: one more voluntary switch is the stop itself.
    let elapsed = held.waiting.filter(|b| b.number == number).and_then(|b| {
        let now = sched::parse(&read::read_task(held.pid, held.tid, "sched").ok()?);
        (now.nr_voluntary_switches? <= b.switches + 1).then(|| clock::monotonic_ns().saturating_sub(b.since_ns))
    });
    let remaining_ns = Some(total.saturating_sub(elapsed.unwrap_or(0)));
    Ok((Some(Waiting { number, remaining_ns }), elapsed.is_some()))
}

fn total_ns(pid: i32, time_out: &TimeOut) -> Result<Option<u64>> {
    Ok(match *time_out {
        TimeOut::Milliseconds(ms) if (ms as i32) < 0 => None,
        TimeOut::Milliseconds(ms) => Some(u64::from(ms as u32) * 1_000_000),
        TimeOut::Timespec(0) => None,
        TimeOut::Timespec(at) => {
            let seconds = memory::read_u64(pid, at)?;
            let nanoseconds = memory::read_u64(pid, at + 8)?;
            Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
        }
    })
}

/// The first argument of clock_nanosleep(2) is the number of a clock, that of nanosleep(2) an address.
const CLOCKS: u64 = 4096;

/// The call that a task in restart_syscall(2) made at first: the constant that its code loads, else where it sleeps.
fn original_number(held: &Held, wchan: &[u8]) -> u64 {
    let mut code = [0u8; 5];
    let loaded = memory::read(held.pid, held.registers.rip.wrapping_sub(7), &mut code)
        .ok()
        .filter(|()| code[0] == 0xb8)
        .map(|()| i64::from(u32::from_le_bytes([code[1], code[2], code[3], code[4]])));
    if let Some(number) = loaded.filter(|&n| timed(n)) {
        return number as u64;
    }
    // Before it was stopped it was seen asleep; afterwards it may just have been on its way.
    let seen = held.waiting.map(|b| b.number).or_else(|| number_by_sleep(wchan, held.registers.rdi));
    seen.unwrap_or(if held.registers.rdi < CLOCKS { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep } as u64)
}

/// The call that sleeps at this place of the kernel.
fn number_by_sleep(wchan: &[u8], rdi: u64) -> Option<u64> {
    let at = |name: &[u8]| memchr::memmem::find(wchan, name).is_some();
    let number = if at(b"futex") {
        libc::SYS_futex
    } else if at(b"poll") {
        libc::SYS_poll
    } else if at(b"nanosleep") {
        if rdi < CLOCKS { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep }
    } else {
        return None;
    };
    Some(number as u64)
}

fn deadline_of_restarted(held: &mut Held) -> Result<Option<Waiting>> {
    let mut ahead = 0;
    let mut timers = || -> Vec<timer_list::HrTimer> {
        let begin = clock::monotonic_ns();
        let text = read::read_machine("timer_list").unwrap_or_default();
        let Ok(mut list) = timer_list::parse(&text) else { return Vec::new() };
        ahead = ahead_of(list.now_ns, begin, clock::monotonic_ns());
        list.timers.retain(|t| t.function == b"hrtimer_wakeup" || t.function == b"futex_wake");
        list.timers
    };
    let mut candidates: Option<Vec<timer_list::HrTimer>> = None;
    let mut own = None;
    let mut wchan = Vec::new();
    // A timer of another task that was set meanwhile shows up only once; its own ends at the same instant each time, though it
    // may lie elsewhere on the kernel's stack. So it must have been seen twice.
    for _ in 0..6 {
        let before = timers();
        // From system call stop to system call stop: should its time come just now, it does not get as far as its next instruction,
        // which would move one thread on while all others stand still.
        let (asleep_at, returned) = fall_asleep(held)?;
        wchan = asleep_at;
        let mut new = timers();
        // Any stop takes a pending interruption with it, so that it is asked for again at each.
        ptrace::interrupt(held.tid)?;
        if returned {
            ptrace::cont(held.tid, 0)?;
        }
        loop {
            match ptrace::wait(held.tid)? {
                Status::Stop | Status::GroupStop(_) => break,
                Status::Ended(_) => return Err(Errno::ESRCH.into()),
                Status::Signal(_) => held.defer()?,
                _ => {}
            }
            ptrace::interrupt(held.tid)?;
            ptrace::cont(held.tid, 0)?;
        }
        held.registers = ptrace::registers(held.tid)?;
        held.sigmask = ptrace::sigmask(held.tid)?;
        if held.registers.rax as i64 != ERESTART_RESTARTBLOCK {
            return Ok(None); // its time came just now
        }
        new.retain(|t| !before.contains(t));
        let Some(seen) = candidates.take() else {
            candidates = Some(new);
            continue;
        };
        // That of poll(2) may end the later the more of its time is left, so only the earlier end is the same each time.
        let again = |t: &timer_list::HrTimer| seen.iter().any(|s| s.softexpires_ns == t.softexpires_ns);
        let (mut both, once): (Vec<_>, Vec<_>) = new.into_iter().partition(again);
        if both.len() == 1 || (seen.is_empty() && once.is_empty()) {
            own = both.pop();
            break;
        }
        // Missed in one of the two: from here anew.
        candidates = Some(if both.is_empty() { once } else { both });
    }
    let number = original_number(held, &wchan);
    if time_out(number, &held.registers).is_none() {
        return Ok(Some(Waiting { number, remaining_ns: None }));
    }
    let now = clock::monotonic_ns().saturating_add_signed(-ahead);
    Ok(Some(Waiting { number, remaining_ns: own.map(|t| t.softexpires_ns.saturating_sub(now)) }))
}

/// How far our clock is ahead of the machine's, in nanoseconds: in a time namespace the list of timers still has the latter.
/// It was read between two instants of ours.
fn ahead_of(machine: u64, begin: u64, end: u64) -> i64 {
    if (begin..=end).contains(&machine) { 0 } else { begin.wrapping_sub(machine) as i64 }
}

/// Lets a stopped task make its interrupted call again. Where it sleeps, and whether the call has returned already, in which
/// case it is stopped at its exit.
fn fall_asleep(held: &mut Held) -> Result<(Vec<u8>, bool)> {
    let tid = held.tid;
    loop {
        ptrace::syscall(tid)?;
        match ptrace::wait(tid)? {
            Status::Syscall => break,
            Status::Ended(_) => return Err(Errno::ESRCH.into()),
            Status::Signal(_) => held.defer()?,
            _ => {}
        }
    }
    ptrace::syscall(tid)?;
    // On a busy machine it may get no processor for a while.
    let until = Instant::now() + Duration::from_millis(100);
    let begin = Instant::now();
    loop {
        if let Some((_, status)) = ptrace::poll(tid)? {
            return match status {
                Status::Ended(_) => Err(Errno::ESRCH.into()),
                _ => Ok((Vec::new(), true)),
            };
        }
        let wchan = read::read_task(held.pid, tid, "wchan").unwrap_or_default();
        if (wchan.len() > 1 && !wchan.starts_with(b"ptrace")) || Instant::now() >= until {
            return Ok((wchan, false));
        }
        std::thread::sleep(Duration::from_micros(if begin.elapsed() < Duration::from_millis(1) { 5 } else { 100 }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_is_told_from_the_machines_clock() {
        assert_eq!(ahead_of(1_000, 990, 1_010), 0);
        assert_eq!(ahead_of(1_000, 501_000, 501_010), 500_000);
        assert_eq!(ahead_of(501_000, 1_000, 1_010), -500_000);
    }
}
