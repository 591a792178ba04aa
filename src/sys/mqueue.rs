//! POSIX message queues: mq_overview(7). Their descriptors are files; nix's own type for them does not close itself.

use super::file;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// What mq_getattr(3) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Most messages that fit.
    pub max_messages: i64,
    /// Longest message, bytes.
    pub message_size: i64,
    /// Messages that are in it.
    pub waiting: i64,
}

/// A name as the C library has it, with its slash.
fn slashed(name: &[u8]) -> Result<CString, Errno> {
    CString::new([b"/", name].concat()).map_err(|_| Errno::EINVAL)
}

/// Opens the queue of this name in our ipc namespace.
pub fn open(name: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    let name = slashed(name)?;
    // SAFETY: the string outlives the call; without O_CREAT there are no more arguments.
    Errno::result(unsafe { libc::mq_open(name.as_ptr(), flags | libc::O_CLOEXEC) }).map(file::own)
}

/// Makes a queue, which must not be there yet, for ourselves alone.
pub fn make(name: &[u8], max_messages: i64, message_size: i64) -> Result<OwnedFd, Errno> {
    let name = slashed(name)?;
    // SAFETY: all fields of `mq_attr` are numbers, for which zero will do.
    let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
    (attr.mq_maxmsg, attr.mq_msgsize) = (max_messages, message_size);
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: string and attributes outlive the call.
    Errno::result(unsafe { libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attr) }).map(file::own)
}

/// Removes a name, mq_unlink(3).
pub fn unlink(name: &[u8]) -> Result<(), Errno> {
    let name = slashed(name)?;
    // SAFETY: the string outlives the call.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// Sizes, and how many messages wait.
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    // SAFETY: as above.
    let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    Errno::result(unsafe { libc::mq_getattr(queue.as_raw_fd(), &raw mut attr) })?;
    Ok(Attributes { max_messages: attr.mq_maxmsg, message_size: attr.mq_msgsize, waiting: attr.mq_curmsgs })
}

/// Takes the first message: its priority and its length in `buffer`, which has room for the longest.
pub fn receive(queue: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(u32, usize), Errno> {
    let mut priority = 0;
    // SAFETY: the kernel writes within the length of the buffer.
    let n = unsafe { libc::mq_receive(queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), &raw mut priority) };
    Errno::result(n).map(|n| (priority, n as usize))
}

/// Sends a message.
pub fn send(queue: BorrowedFd<'_>, message: &[u8], priority: u32) -> Result<(), Errno> {
    // SAFETY: the kernel reads within the length of the message.
    Errno::result(unsafe { libc::mq_send(queue.as_raw_fd(), message.as_ptr().cast(), message.len(), priority) }).map(drop)
}
