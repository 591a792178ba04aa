//! Calls about another task: identity of its resources, descriptors, limits, scheduling.

use nix::errno::Errno;
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// What two tasks may share (kcmp(2)).
#[derive(Debug, Clone, Copy)]
pub enum Shared {
    /// Address space.
    Vm = 1,
    /// Descriptor table.
    Files = 2,
    /// Root, cwd, umask.
    Fs = 3,
    /// Adjustments of System V semaphores; also equal when neither task ever had any.
    SemUndo = 6,
}

fn kcmp(a: i32, b: i32, kind: i32, x: u64, y: u64) -> Result<Ordering, Errno> {
    // SAFETY: kcmp takes numbers only.
    match Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, x, y) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// Whether two tasks share `what`.
pub fn share(a: i32, b: i32, what: Shared) -> Result<bool, Errno> {
    kcmp(a, b, what as i32, 0, 0).map(|o| o == Ordering::Equal)
}

/// Orders two descriptors by their open file description; equal means the same one.
pub fn compare_files(a: (i32, i32), b: (i32, i32)) -> Result<Ordering, Errno> {
    kcmp(a.0, b.0, 0, a.1 as u64, b.1 as u64)
}

/// Orders a descriptor and an entry of an epoll instance by their open file description (`KCMP_EPOLL_TFD`, Linux 4.13).
/// An entry is the number under which it was added, and which of several with that number it is.
pub fn compare_epoll_target(a: (i32, i32), epoll: (i32, i32), entry: (i32, u32)) -> Result<Ordering, Errno> {
    /// `struct kcmp_epoll_slot`: the instance's number, the entry's number, its place.
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll.1 as u32, entry.0 as u32, entry.1];
    kcmp(a.0, epoll.0, KCMP_EPOLL_TFD, a.1 as u64, (&raw const slot) as u64)
}

/// A handle of the process (pidfd_open(2)).
pub fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: on success the kernel gives a new descriptor that nobody else owns.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A duplicate of descriptor `fd` of another process (pidfd_getfd(2), Linux 5.6).
pub fn get_fd(pidfd: &OwnedFd, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: as in `pidfd`.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process of a handle (pidfd_send_signal(2)).
pub fn signal(pidfd: RawFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: numbers, and no structure.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, 0, 0) }).map(drop)
}

/// The descriptors of one process, reached by a handle that is opened when it is first needed.
#[derive(Debug)]
pub struct Files {
    pid: i32,
    handle: OnceCell<OwnedFd>,
}

impl Files {
    /// Those of this process.
    pub fn of(pid: i32) -> Self {
        Files { pid, handle: OnceCell::new() }
    }

    /// Whose they are.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A duplicate of one of them.
    pub fn get(&self, fd: i32) -> Result<OwnedFd, Errno> {
        if self.handle.get().is_none() {
            let _ = self.handle.set(pidfd(self.pid)?);
        }
        self.handle.get().ok_or(Errno::ESRCH).and_then(|handle| get_fd(handle, fd))
    }
}

/// Head and length of the robust futex list (get_robust_list(2)).
pub fn robust_list(tid: i32) -> Result<(u64, u64), Errno> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both targets outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// All limits of a process as (soft, hard), or the error of prlimit(2).
pub fn limits(pid: i32) -> Result<Vec<(u64, u64)>, Errno> {
    (0..16)
        .map(|which| {
            let mut l = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: `l` outlives the call.
            Errno::result(unsafe { libc::prlimit64(pid, which, std::ptr::null(), &raw mut l) })?;
            Ok((l.rlim_cur, l.rlim_max))
        })
        .collect()
}

/// Whether limits of a process may be asked for, and set, by prlimit(2).
pub fn may_set_limits(pid: i32) -> bool {
    // SAFETY: numbers and null pointers only.
    unsafe { libc::prlimit64(pid, libc::RLIMIT_CPU, std::ptr::null(), std::ptr::null_mut()) == 0 }
}

/// Sets one limit of a process.
pub fn set_limit(pid: i32, which: u32, limit: (u64, u64)) -> Result<(), Errno> {
    let l = libc::rlimit64 { rlim_cur: limit.0, rlim_max: limit.1 };
    // SAFETY: `l` outlives the call.
    Errno::result(unsafe { libc::prlimit64(pid, which, &raw const l, std::ptr::null_mut()) }).map(drop)
}

/// `struct sched_attr` of sched_setattr(2), first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the names are the kernel's own
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    /// Clamped utilisation (Linux 5.3 with `CONFIG_UCLAMP_TASK`; others leave 0).
    pub util_min: u32,
    pub util_max: u32,
}

/// Scheduling attributes of a task.
pub fn sched_attr(tid: i32) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` outlives the call and its size is passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<SchedAttr>(), 0) })?;
    Ok(attr)
}

/// Sets the scheduling attributes of a task.
pub fn set_sched_attr(tid: i32, attr: &SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: `attr` outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) }).map(drop)
}

/// Whether this kernel clamps utilisation: everybody may use at least something, then.
pub fn utilisation_is_clamped() -> bool {
    sched_attr(0).is_ok_and(|own| own.util_max != 0)
}

/// The cookie of core scheduling of a task, 0 for none; an error where there is no such thing (Linux 5.14 with
/// `CONFIG_SCHED_CORE`, and more than one thread to a core).
pub fn core_cookie(tid: i32) -> Result<u64, Errno> {
    let mut cookie = 0u64;
    // SAFETY: the kernel writes the cookie, which outlives the call.
    Errno::result(unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, PIDTYPE_PID, &raw mut cookie) })?;
    Ok(cookie)
}

/// Gives the first of these tasks a new cookie and all others the same.
pub fn share_core_cookie(tids: &[i32]) -> Result<(), Errno> {
    let Some((&first, others)) = tids.split_first() else { return Ok(()) };
    // SAFETY: numbers only.
    let call = |what: u64, tid: i32| Errno::result(unsafe { libc::prctl(PR_SCHED_CORE, what, tid, PIDTYPE_PID, 0u64) }).map(drop);
    call(PR_SCHED_CORE_CREATE, first)?;
    // Whoever hands a cookie on has it: a thread of ours that ends afterwards.
    let hand_on = || {
        call(PR_SCHED_CORE_SHARE_FROM, first)?;
        others.iter().try_for_each(|&tid| call(PR_SCHED_CORE_SHARE_TO, tid))
    };
    std::thread::scope(|scope| scope.spawn(hand_on).join().unwrap_or(Err(Errno::EIO)))
}

const PR_SCHED_CORE: i32 = 62;
const PR_SCHED_CORE_GET: u64 = 0;
const PR_SCHED_CORE_CREATE: u64 = 1;
const PR_SCHED_CORE_SHARE_TO: u64 = 2;
const PR_SCHED_CORE_SHARE_FROM: u64 = 3;
const PIDTYPE_PID: u64 = 0;

/// Our own session keyring (keyrings(7)), 0 where there is none.
pub fn session_keyring() -> i32 {
    const KEYCTL_GET_KEYRING_ID: u64 = 0;
    const KEY_SPEC_SESSION_KEYRING: i64 = -3;
    // SAFETY: numbers only.
    (unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0u64) }).max(0) as i32
}

/// CPU mask of a task; as many bytes as the kernel uses. Tid 0 is the caller.
pub fn affinity(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: `mask` outlives the call and its size is passed.
    let n = Errno::result(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(n as usize);
    Ok(mask)
}

/// Sets the CPU mask of a task. Tid 0 is the caller.
pub fn set_affinity(tid: i32, mask: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `mask` within its length.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len(), mask.as_ptr()) }).map(drop)
}

/// Runs the caller on one CPU until dropped. A stopped tracee wakes four to five times
/// faster on the tracer's own CPU than across two.
pub struct Pinned(Option<Vec<u8>>);

impl Pinned {
    /// Moves the caller to `cpu`; does nothing when that is not allowed.
    pub fn to(cpu: usize) -> Self {
        let Ok(before) = affinity(0) else { return Pinned(None) };
        let mut mask = vec![0u8; (cpu / 64 + 1) * 8];
        mask[cpu / 8] = 1 << (cpu % 8);
        Pinned(set_affinity(0, &mask).is_ok().then_some(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(mask) = &self.0 {
            let _ = set_affinity(0, mask);
        }
    }
}

/// Queues a signal for one thread with all that a raw `siginfo_t` says (rt_tgsigqueueinfo(2)). For another process the kernel
/// takes only what a process may have sent: codes below 0 that are not `SI_TKILL`.
pub fn queue_signal(pid: i32, tid: i32, info: &[u8; 128]) -> Result<(), Errno> {
    let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
    // SAFETY: the kernel reads a `siginfo_t`, which has 128 bytes.
    Errno::result(unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, info.as_ptr()) }).map(drop)
}

/// Sends a signal to one thread (tgkill(2)).
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// The slack of our own timers in nanoseconds (prctl(2) `PR_GET_TIMERSLACK`).
pub fn own_timer_slack() -> u64 {
    // SAFETY: numbers only.
    (unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) }).max(0) as u64
}

/// Our own security bits (prctl(2) `PR_GET_SECUREBITS`).
pub fn securebits() -> u32 {
    // SAFETY: numbers only.
    (unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }).max(0) as u32
}

/// Processes that `tracer` traces, found in /proc; also those that have ended, until it has taken their reports.
pub fn tracees(tracer: i32) -> Vec<i32> {
    use super::proc::{read, status};
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| read::parsed(pid, "status", status::parse).is_ok_and(|s| s.tracer_pid == tracer))
        .collect()
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// I/O priority of a task (ioprio_get(2)), 0 when it was never set.
pub fn ioprio(tid: i32) -> Result<u32, Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) }).map(|n| n as u32)
}

/// Sets the I/O priority of a task.
pub fn set_ioprio(tid: i32, ioprio: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, ioprio) }).map(drop)
}

/// Whether this processor can make the cpuid instruction an error (arch_prctl(2) `ARCH_SET_CPUID`).
pub fn cpuid_can_fault() -> bool {
    const ARCH_SET_CPUID: i32 = 0x1012;
    static CAN: OnceLock<bool> = OnceLock::new();
    // SAFETY: numbers only; it is allowed, as it was.
    *CAN.get_or_init(|| unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0 })
}

/// Our own control over this kind of speculation (prctl(2) `PR_GET_SPECULATION_CTRL`), 0 where there is none.
pub fn speculation(which: u64) -> u32 {
    // SAFETY: numbers only.
    (unsafe { libc::prctl(libc::PR_GET_SPECULATION_CTRL, which, 0, 0, 0) }).max(0) as u32
}

/// Waits for the end of a child.
pub fn wait(pid: i32) {
    while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None) {}
}

/// Takes notice of the end of a child, whenever that is: a thread that has nothing else to do waits for it, so that nothing is left of it
/// however long meio goes on. What outlives meio is waited for by init.
pub fn reap(pid: i32) {
    let _ = std::thread::Builder::new().name("reaper".into()).spawn(move || wait(pid));
}
