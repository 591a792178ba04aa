//! ptrace(2), typed. Every request must come from the thread that attached.

use super::arch::Registers;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{mem, ptr};

/// Report `PTRACE_EVENT_*` of fork, vfork and clone, and attach the new task on its birth.
pub const FOLLOW: i32 = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
/// Mark system call stops with bit 7 of the signal.
pub const SYSGOOD: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// Report execve(2).
pub const EXEC: i32 = libc::PTRACE_O_TRACEEXEC;
/// Kill the tracee when its tracer ends.
pub const EXITKILL: i32 = libc::PTRACE_O_EXITKILL;

/// No seccomp(2) filter is asked as long as the tracee is held (needs `CAP_SYS_ADMIN` and a tracer without a filter).
pub const SUSPEND_SECCOMP: i32 = 1 << 21;

const NT_X86_XSTATE: usize = 0x202;

/// Size of `siginfo_t` in the kernel.
pub const SIGINFO: usize = 128;

/// What wait(2) told about a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `PTRACE_EVENT_STOP` without job control: the answer to [`interrupt`], or a birth.
    Stop,
    /// `PTRACE_EVENT_STOP` because of job control; the stopping signal.
    GroupStop(i32),
    /// Another `PTRACE_EVENT_*`.
    Event(i32),
    /// Entry or exit of a system call.
    Syscall,
    /// A signal is about to be delivered.
    Signal(i32),
    /// Ended; the raw status of wait(2).
    Ended(i32),
    /// Continued or otherwise of no interest.
    Other,
}

pub(super) fn request(what: libc::c_uint, tid: i32, addr: usize, data: usize) -> Result<i64, Errno> {
    // SAFETY: the callers below pass addresses of live, correctly sized objects for the requests that read or write memory.
    Errno::result(unsafe { libc::ptrace(what, tid, addr, data) })
}

/// Attaches without stopping (`PTRACE_SEIZE`).
pub fn seize(tid: i32, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Asks a seized tracee to stop (`PTRACE_INTERRUPT`).
pub fn interrupt(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Resumes, delivering `signal` unless it is 0.
pub fn cont(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Resumes for one instruction, after which it stops with `SIGTRAP`. Only for tasks that die with meio: left alone, the
/// signal would be delivered.
pub fn step(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// Resumes until the next entry or exit of a system call.
pub fn syscall(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Lets go.
pub fn detach(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, 0, 0).map(drop)
}

/// Lets go, delivering `signal` unless it is 0.
pub fn detach_with(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// The signal that a stopped tracee is about to receive; 0 when it has stopped for another reason.
///
/// # Errors
/// `ESRCH` when it has not stopped.
pub fn delivered(tid: i32) -> Result<i32, Errno> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    match request(libc::PTRACE_GETSIGINFO, tid, 0, (&raw mut info) as usize) {
        // An event is told in the second byte of the code (kernel/signal.c, ptrace_notify).
        Ok(_) if info.si_code > 0xff || info.si_code == libc::SIGTRAP | 0x80 => Ok(0),
        Ok(_) => Ok(info.si_signo),
        Err(Errno::EINVAL) => Ok(0), // in a group stop there is none
        Err(e) => Err(e),
    }
}

/// Changes the options of a tracee.
pub fn set_options(tid: i32, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// The new task's id after a fork, vfork or clone event, in the tracer's pid namespace.
pub fn event_message(tid: i32) -> Result<u64, Errno> {
    let mut message = 0u64;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message) as usize)?;
    Ok(message)
}

fn regset_io(what: libc::c_uint, tid: i32, note: usize, buffer: *mut u8, len: usize) -> Result<usize, Errno> {
    let mut iov = libc::iovec { iov_base: buffer.cast(), iov_len: len };
    request(what, tid, note, (&raw mut iov) as usize)?;
    Ok(iov.iov_len)
}

/// General registers.
pub fn registers(tid: i32) -> Result<Registers, Errno> {
    let mut regs = Registers::default();
    regset_io(libc::PTRACE_GETREGSET, tid, libc::NT_PRSTATUS as usize, (&raw mut regs).cast(), size_of::<Registers>())?;
    Ok(regs)
}

/// Sets the general registers.
pub fn set_registers(tid: i32, regs: &Registers) -> Result<(), Errno> {
    let from = ptr::from_ref(regs).cast_mut().cast();
    regset_io(libc::PTRACE_SETREGSET, tid, libc::NT_PRSTATUS as usize, from, size_of::<Registers>()).map(drop)
}

/// The XSAVE area.
pub fn xstate(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut area = vec![0u8; 16 * 1024];
    let len = regset_io(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, area.as_mut_ptr(), area.len())?;
    area.truncate(len);
    Ok(area)
}

/// Sets the XSAVE area.
pub fn set_xstate(tid: i32, area: &[u8]) -> Result<(), Errno> {
    let from = area.as_ptr().cast_mut();
    regset_io(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, from, area.len()).map(drop)
}

/// Blocked signals.
pub fn sigmask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, 8, (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals.
pub fn set_sigmask(tid: i32, mask: u64) -> Result<(), Errno> {
    request(libc::PTRACE_SETSIGMASK, tid, 8, (&raw const mask) as usize).map(drop)
}

/// The raw `siginfo_t` of the signal that a tracee is about to receive.
///
/// # Errors
/// `EINVAL` when it has stopped for another reason.
pub fn siginfo(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut info = [0u8; SIGINFO];
    request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as usize)?;
    Ok(info.to_vec())
}

/// Says in other words what the signal is that a tracee is about to receive; all of a raw `siginfo_t`.
pub fn set_siginfo(tid: i32, info: &[u8]) -> Result<(), Errno> {
    let mut whole = [0u8; SIGINFO];
    let n = info.len().min(SIGINFO);
    whole[..n].copy_from_slice(&info[..n]);
    request(libc::PTRACE_SETSIGINFO, tid, 0, whole.as_ptr() as usize).map(drop)
}

/// Signals that wait for the thread, or with `shared` for its whole process, first come first.
pub fn pending(tid: i32, shared: bool) -> Result<Vec<Vec<u8>>, Errno> {
    const BATCH: usize = 32;
    let mut found = Vec::new();
    loop {
        let args = libc::ptrace_peeksiginfo_args { off: found.len() as u64, flags: u32::from(shared), nr: BATCH as i32 };
        let mut batch = [[0u8; SIGINFO]; BATCH];
        let n = request(libc::PTRACE_PEEKSIGINFO, tid, (&raw const args) as usize, batch.as_mut_ptr() as usize)? as usize;
        found.extend(batch[..n].iter().map(|info| info.to_vec()));
        if n < BATCH {
            return Ok(found);
        }
    }
}

/// rseq(2) registration of a tracee (Linux 5.13): address, size, signature, flags; `None` without one.
pub fn rseq(tid: i32) -> Result<Option<(u64, u32, u32, u32)>, Errno> {
    #[repr(C)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut c: Configuration = unsafe { mem::zeroed() };
    match request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of::<Configuration>(), (&raw mut c) as usize) {
        Ok(_) if c.pointer != 0 => Ok(Some((c.pointer, c.size, c.signature, c.flags))),
        Ok(_) | Err(Errno::EIO) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a stopped tracee's system calls are dispatched in user space (Linux 6.4, `PR_SET_SYSCALL_USER_DISPATCH`).
pub fn syscall_user_dispatch(tid: i32) -> Result<bool, Errno> {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
    // struct ptrace_sud_config: mode, selector, offset, len.
    let mut configuration = [0u64; 4];
    let size = size_of_val(&configuration);
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, configuration.as_mut_ptr() as usize)?;
    Ok(configuration[0] != 0)
}

/// Ends that were told to who waits for a tracee. Of a child of the same process nobody else will ever be told.
static ENDED: Mutex<VecDeque<(i32, i32)>> = Mutex::new(VecDeque::new());

fn taken(tid: i32, status: i32) -> Status {
    const MOST: usize = 64;
    let decoded = decode(status);
    if let Status::Ended(status) = decoded {
        let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
        ended.truncate(MOST - 1);
        ended.push_front((tid, status));
    }
    decoded
}

/// The raw status of wait(2) of a child that has ended while it was traced: waiting for it finds nobody any more.
pub fn end_of(pid: i32) -> Option<i32> {
    let ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    ended.iter().find(|(tid, _)| *tid == pid).map(|(_, status)| *status)
}

fn decode(status: i32) -> Status {
    if !libc::WIFSTOPPED(status) {
        return if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) { Status::Ended(status) } else { Status::Other };
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Status::Syscall,
        0 => Status::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Status::Stop,
        libc::PTRACE_EVENT_STOP => Status::GroupStop(signal),
        event => Status::Event(event),
    }
}

/// For whom [`wait`] waits just now; the number of times it has waited in the upper half.
static AWAITED: AtomicU64 = AtomicU64::new(0);

/// Waits for one task.
pub fn wait(tid: i32) -> Result<Status, Errno> {
    let count = AWAITED.load(Ordering::Relaxed) >> 32;
    AWAITED.store((count + 1) << 32 | tid as u32 as u64, Ordering::Relaxed);
    let result = wait_undisturbed(tid);
    AWAITED.store((count + 1) << 32, Ordering::Relaxed);
    result
}

/// Starts a thread that frees [`wait`] when it waits for the end of a process whose other threads were killed, too: the
/// kernel tells of the leader's end only when that of all traced threads has been taken notice of.
///
/// # Errors
/// When the kernel gives no thread.
pub fn watch_for_killed() -> std::io::Result<()> {
    const INTERVAL: Duration = Duration::from_millis(200);
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let watch = || {
        let mut before = 0;
        loop {
            std::thread::sleep(INTERVAL);
            let now = AWAITED.load(Ordering::Relaxed);
            if now as u32 != 0 && now == before {
                let leader = now as u32 as i32;
                let stat = super::proc::read::parsed(leader, "stat", super::proc::stat::parse);
                if stat.is_ok_and(|s| matches!(s.state, b'Z' | b'X')) {
                    let threads = super::proc::read::tasks(leader).unwrap_or_default();
                    threads.into_iter().filter(|&tid| tid != leader).for_each(|tid| {
                        let _ = poll(tid);
                    });
                }
            }
            before = now;
        }
    };
    std::thread::Builder::new().name("watch".into()).stack_size(64 << 10).spawn(watch).map(drop)
}

fn wait_undisturbed(tid: i32) -> Result<Status, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match Errno::result(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) }) {
            Ok(_) => return Ok(taken(tid, status)),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits until there is a report of one task, and leaves it there: a signal that the task has stopped for is still delivered
/// when its tracer dies.
pub fn await_report(tid: i32) -> Result<(), Errno> {
    loop {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
        // SAFETY: `info` outlives the call.
        match Errno::result(unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, flags) }) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// Takes a report of one task, or of any with `tid` -1, if there is one.
pub fn poll(tid: i32) -> Result<Option<(i32, Status)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match Errno::result(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) })? {
        0 => Ok(None),
        who => Ok(Some((who, taken(who, status)))),
    }
}
