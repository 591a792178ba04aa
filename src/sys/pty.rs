//! Pseudo-terminals: ioctl_tty(2), pty(7). Numbers that libc does not have are from asm-generic/ioctls.h.

use super::file;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCGPTPEER: libc::c_ulong = 0x5441;

fn get(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<i32, Errno> {
    let mut value = 0i32;
    // SAFETY: all callers pass requests that write one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

fn set(fd: BorrowedFd<'_>, request: libc::c_ulong, value: i32) -> Result<(), Errno> {
    // SAFETY: all callers pass requests that read one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) }).map(drop)
}

fn plain(fd: BorrowedFd<'_>, request: libc::c_ulong, value: i32) -> Result<i32, Errno> {
    // SAFETY: all callers pass requests that take a number, not a pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as libc::c_ulong) })
}

/// Number of the slave below `/dev/pts`.
pub fn index(master: BorrowedFd<'_>) -> Result<u32, Errno> {
    get(master, TIOCGPTN).map(|n| n as u32)
}

/// Device number of the terminal behind a descriptor, which may be of `/dev/tty`: major, minor.
pub fn device(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    // The kernel's new_encode_dev(): minor in bits 31-20 and 7-0, major in bits 19-8.
    get(fd, TIOCGDEV).map(|d| d as u32).map(|d| (d >> 8 & 0xfff, d & 0xff | d >> 12 & 0xfff00))
}

/// Packet mode of a master.
pub fn packet(master: BorrowedFd<'_>) -> Result<bool, Errno> {
    get(master, TIOCGPKT).map(|v| v != 0)
}

/// Switches packet mode.
pub fn set_packet(master: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set(master, libc::TIOCPKT, i32::from(on))
}

/// Whether the slave is locked.
pub fn locked(master: BorrowedFd<'_>) -> Result<bool, Errno> {
    get(master, TIOCGPTLCK).map(|v| v != 0)
}

/// Locks or unlocks the slave.
pub fn set_locked(master: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set(master, TIOCSPTLCK, i32::from(on))
}

/// Exclusive mode of the side that the descriptor belongs to.
pub fn exclusive(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    get(fd, TIOCGEXCL).map(|v| v != 0)
}

/// Sets exclusive mode.
pub fn set_exclusive(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    plain(fd, libc::TIOCEXCL, 0).map(drop)
}

/// Line discipline; 0 is `N_TTY`.
pub fn discipline(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    get(fd, libc::TIOCGETD)
}

/// The session that a terminal controls, and its foreground group; 0 for none. Asked of a master it tells about the slave.
pub fn session(fd: BorrowedFd<'_>) -> (i32, i32) {
    (get(fd, libc::TIOCGSID).unwrap_or(0), get(fd, libc::TIOCGPGRP).unwrap_or(0).max(0))
}

/// Opens the slave of a master. Not with `O_CLOEXEC`: unlike open(2) this call leaves it among the file's own flags, and
/// `/proc/PID/fdinfo` would show it for every descriptor for ever.
pub fn peer(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    let slave = plain(master, TIOCGPTPEER, flags & !libc::O_CLOEXEC | libc::O_NOCTTY).map(file::own)?;
    fcntl(slave.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(slave)
}

/// Bytes that a read would give now; half a line that is being edited is not among them.
pub fn unread(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    get(fd, libc::FIONREAD).map(|n| n.max(0) as usize)
}

/// Types a byte, as if it came from the other side.
pub fn type_byte(slave: BorrowedFd<'_>, byte: u8) -> Result<(), Errno> {
    // SAFETY: the byte outlives the call.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSTI, &raw const byte) }).map(drop)
}

/// Stops or resumes output, tcflow(3).
pub fn stop_output(slave: BorrowedFd<'_>, stop: bool) -> Result<(), Errno> {
    plain(slave, libc::TCXONC, if stop { libc::TCOOFF } else { libc::TCOON }).map(drop)
}

/// Whether it has one of `events` now.
pub fn ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, events)];
    // A byte may still be on its way through the kernel's work queue.
    let waited = PollTimeout::from(if events.contains(PollFlags::POLLIN) { 1u8 } else { 0 });
    poll(&mut fds, waited).is_ok_and(|n| n > 0) && fds[0].revents().is_some_and(|r| r.intersects(events))
}

/// Rows, columns, and the size in pixels.
pub fn window(fd: BorrowedFd<'_>) -> Result<[u16; 4], Errno> {
    let mut size = [0u16; 4];
    // SAFETY: struct winsize is four shorts in this order.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) })?;
    Ok(size)
}

/// Sets rows, columns, and the size in pixels.
pub fn set_window(fd: BorrowedFd<'_>, size: [u16; 4]) -> Result<(), Errno> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, size.as_ptr()) }).map(drop)
}
