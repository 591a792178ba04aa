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
