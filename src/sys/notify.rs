//! inotify(7) and fanotify(7).

use super::file::{borrow, memfd, own};
use super::handle::c_path;
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A new inotify instance.
pub fn inotify(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::inotify_init1(flags) }).map(own)
}

/// `_IOW('I', 0, s32)`, Linux 4.18 with `CONFIG_CHECKPOINT_RESTORE`.
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;

/// Chooses the number of the next watch; a number that is taken leads to the next one that is free.
pub fn set_next_watch(fd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: the request takes the number itself.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, i64::from(number)) }).map(drop)
}

/// Watches a path; the number of the watch.
pub fn watch(fd: BorrowedFd<'_>, path: &Path, mask: u32) -> Result<i32, Errno> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string.
    Errno::result(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// Bytes that can be read.
pub fn unread(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut bytes = 0i32;
    // SAFETY: the request writes the number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes.max(0) as u32)
}

/// Size of an event without a name.
const EVENT: usize = 16;

/// Makes an instance that has no watches yet say that events were lost (`IN_Q_OVERFLOW`), and nothing else: it is
/// filled with events of a file of our own until it is full, and these are read.
pub fn lose_events(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let most: usize = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?.trim().parse().unwrap_or(16384);
    let file = memfd(b"meio-events", libc::MFD_CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let number = watch(fd, Path::new(&path), libc::IN_OPEN | libc::IN_CLOSE)?;
    // Each opening and each closing; a row of equal events would be one.
    for _ in 0..most / 2 + 1 {
        drop(OpenOptions::new().read(true).open(&path)?);
    }
    // What this says is lost, too, since it is full.
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), number) })?;
    let mut reader = File::from(borrow(fd.as_raw_fd()).try_clone_to_owned()?);
    let mut room = vec![0u8; 4096 * EVENT];
    loop {
        let junk = (unread(fd)? as usize).saturating_sub(EVENT);
        if junk == 0 {
            return Ok(());
        }
        let part = junk.min(room.len());
        reader.read_exact(&mut room[..part])?;
    }
}

/// A new fanotify group.
pub fn fanotify(flags: u32, event_flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::fanotify_init(flags, event_flags) }).map(own)
}

/// Adds a mark to a fanotify group.
pub fn mark(fd: BorrowedFd<'_>, flags: u32, mask: u64, path: &Path) -> Result<(), Errno> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string.
    Errno::result(unsafe { libc::fanotify_mark(fd.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) }).map(drop)
}
