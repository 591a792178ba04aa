//! Calls on descriptors that have no file: eventfd, timerfd, signalfd.

use super::file::own;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const NANO: u64 = 1_000_000_000;

/// A new eventfd(2) counter.
pub fn eventfd(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::eventfd(0, flags) }).map(own)
}

/// Adds to a counter of eventfd(2); its limit is not near.
pub fn add_ticks(fd: BorrowedFd<'_>, more: u64) -> Result<(), Errno> {
    nix::unistd::write(fd, &more.to_ne_bytes()).map(drop)
}

/// Reads a counter of eventfd(2) without waiting, whatever its flags say: all of it, or one of a semaphore.
pub fn take_ticks(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut taken = 0u64;
    let part = libc::iovec { iov_base: (&raw mut taken).cast(), iov_len: size_of::<u64>() };
    // SAFETY: `part` describes `taken`; both outlive the call.
    Errno::result(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) })?;
    Ok(taken)
}

/// A new signalfd(2) for a mask as `/proc` shows it: bit n is signal n + 1.
pub fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads the eight bytes of the mask; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) }).map(|fd| own(fd as i32))
}

/// A new timerfd(2), disarmed.
pub fn timerfd(clock: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::timerfd_create(clock, flags) }).map(own)
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / NANO) as i64, tv_nsec: (ns % NANO) as i64 }
}

/// Arms a timer: `flags` are `TFD_TIMER_*`, times in nanoseconds. A value of zero disarms.
pub fn set_timer(fd: BorrowedFd<'_>, flags: i32, value_ns: u64, interval_ns: u64) -> Result<(), Errno> {
    let time = libc::itimerspec { it_value: timespec(value_ns), it_interval: timespec(interval_ns) };
    // SAFETY: the structure outlives the call, and the old value is not asked for.
    Errno::result(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const time, std::ptr::null_mut()) }).map(drop)
}

/// Time left in nanoseconds, timerfd_gettime(2). A periodic timer that has expired starts its next round by being asked.
pub fn timer_left_ns(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut time = libc::itimerspec { it_value: timespec(0), it_interval: timespec(0) };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut time) })?;
    Ok(time.it_value.tv_sec as u64 * NANO + time.it_value.tv_nsec as u64)
}

/// `_IOW('T', 0, u64)`, Linux 3.17.
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;

/// Sets the number of expirations that have not been read yet.
pub fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads the eight bytes of `ticks`.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// pidfd_open(2): the handle leads to one thread, Linux 6.9.
pub const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// A handle of a task; `flags` are those of pidfd_open(2).
pub fn pidfd(pid: i32, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) }).map(|fd| own(fd as i32))
}

/// `struct pidfd_info`, first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid and eight user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}
/// `_IOWR(0xff, 11, struct pidfd_info)`, Linux 6.13.
const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
/// Asks for `exit_code`, Linux 6.15.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The status of wait(2) of a task that has ended and been waited for, where the kernel keeps it.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure has the size that the request names, and outlives the call.
    Errno::result(unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) }).ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
