//! Options of sockets, socket(7): those that differ from a new socket's.

use crate::error::{Context, Result};
use crate::sys::socket;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// One option of `SOL_SOCKET`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketOption {
    /// `SO_*`.
    pub name: i32,
    /// As getsockopt(2) gives it.
    #[serde(with = "crate::image::bytes")]
    pub value: Vec<u8>,
}

// Newer than the C library's list.
const SO_BUF_LOCK: i32 = 72;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;
const SO_TIMESTAMPING_NEW: i32 = 65;

/// What can be asked and set again, in the order in which it is set. The lengths of both buffers come before the
/// flags that say who set them.
const KNOWN: [i32; 31] = [
    libc::SO_DEBUG,
    libc::SO_REUSEADDR,
    libc::SO_DONTROUTE,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_NO_CHECK,
    libc::SO_PRIORITY,
    libc::SO_LINGER,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_TIMESTAMPING,
    63, // SO_TIMESTAMP_NEW
    64, // SO_TIMESTAMPNS_NEW
    SO_TIMESTAMPING_NEW,
    libc::SO_MARK,
    libc::SO_RXQ_OVFL,
    libc::SO_WIFI_STATUS,
    libc::SO_NOFCS,
    libc::SO_SELECT_ERR_QUEUE,
    libc::SO_PEEK_OFF,
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    SO_BUF_LOCK,
    libc::SO_PASSCRED,
    libc::SO_PASSSEC,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
];

/// The options of a socket in which it differs from `new`, one of the same kind. The sizes of buffers are always named,
/// since their defaults are the machine's.
pub fn capture(fd: BorrowedFd<'_>, new: &New) -> Vec<SocketOption> {
    let differs = |(&name, new): (&i32, &Option<Vec<u8>>)| {
        let new = new.as_ref()?;
        let mut value = [0u8; 16];
        let value = socket::option_into(fd, libc::SOL_SOCKET, name, &mut value).ok().and_then(|len| value.get(..len))?;
        let always = matches!(name, libc::SO_SNDBUF | libc::SO_RCVBUF);
        (always || new != value).then(|| SocketOption { name, value: value.to_vec() })
    };
    KNOWN.iter().zip(&new.0).filter_map(differs).collect()
}

/// What a new socket answers. `None` where sockets of its kind have no such option: it need not be asked of any other.
pub fn answer(fd: BorrowedFd<'_>, level: i32, name: i32, room: usize) -> Option<Vec<u8>> {
    match socket::option(fd, level, name, room) {
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => None,
        answer => Some(answer.unwrap_or_default()),
    }
}

/// What a new socket answers to each of the questions.
#[derive(Debug)]
pub struct New([Option<Vec<u8>>; KNOWN.len()]);

impl New {
    /// Makes a socket and asks it.
    pub fn of(domain: i32, kind: i32) -> Result<Self> {
        let socket = socket::socket(domain, kind).context(|| "making a socket")?;
        Ok(New::asked(socket.as_fd()))
    }

    /// Asks a new socket.
    pub fn asked(new: BorrowedFd<'_>) -> Self {
        New(KNOWN.map(|name| answer(new, libc::SOL_SOCKET, name, 16)))
    }
}

/// Gives a socket its options. What cannot be set is named in `warnings`.
pub fn apply(fd: BorrowedFd<'_>, options: &[SocketOption], what: &str, warnings: &mut Vec<String>) {
    for option in options {
        let set = match option.name {
            name @ (libc::SO_SNDBUF | libc::SO_RCVBUF) => buffer(fd, name, &option.value),
            name if !KNOWN.contains(&name) => Err(Errno::ENOPROTOOPT),
            name => socket::set_option(fd, libc::SOL_SOCKET, name, &option.value),
        };
        if let Err(e) = set {
            warnings.push(format!("{what}: option {} of socket(7) could not be set: {e}", option.name));
        }
    }
    if options.iter().all(|o| o.name != SO_BUF_LOCK) {
        unlock_buffers(fd); // setting a size locks it
    }
}

/// getsockopt(2) tells twice of what setsockopt(2) was told. Only the privileged call goes beyond the machine's limit.
fn buffer(fd: BorrowedFd<'_>, name: i32, value: &[u8]) -> nix::Result<()> {
    let bytes = value.try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL)?;
    if socket::number(fd, name)? == bytes {
        return Ok(());
    }
    let force = if name == libc::SO_SNDBUF { libc::SO_SNDBUFFORCE } else { libc::SO_RCVBUFFORCE };
    match socket::set_number(fd, force, bytes / 2) {
        Err(Errno::EPERM) => socket::set_number(fd, name, bytes / 2),
        done => done,
    }?;
    // The kernel makes it larger by itself, also to an odd size, and doubles what is set.
    if socket::number(fd, name)? == bytes & !1 { Ok(()) } else { Err(Errno::EPERM) }
}

/// Lets a socket send as much as there may ever be; [`apply`] sets the true limit.
pub fn widen(fd: BorrowedFd<'_>) {
    const LARGE: i32 = i32::MAX / 4;
    if socket::set_number(fd, libc::SO_SNDBUFFORCE, LARGE).is_err() {
        let _ = socket::set_number(fd, libc::SO_SNDBUF, LARGE);
    }
}

/// The flags that say which buffer the program has set itself (`SO_BUF_LOCK`, Linux 5.14) as on a new socket.
pub fn unlock_buffers(fd: BorrowedFd<'_>) {
    let _ = socket::set_number(fd, SO_BUF_LOCK, 0);
}

/// A filter of classic instructions, and whether it is locked. `None` when there is none.
///
/// # Errors
/// `EACCES` when it is not classic.
pub fn filter(fd: BorrowedFd<'_>) -> nix::Result<Option<Filter>> {
    let instructions = socket::filter(fd)?;
    let locked = socket::number(fd, libc::SO_LOCK_FILTER).unwrap_or(0) != 0;
    Ok((!instructions.is_empty() || locked).then_some(Filter { instructions, locked }))
}

/// A filter that a socket runs over what it receives (`SO_ATTACH_FILTER`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// `struct sock_filter`, 8 bytes each.
    #[serde(with = "crate::image::bytes")]
    pub instructions: Vec<u8>,
    /// `SO_LOCK_FILTER`.
    pub locked: bool,
}

impl Filter {
    /// Attaches it.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.instructions.is_empty() {
            socket::set_filter(fd, &self.instructions).context(|| "attaching the filter of a socket")?;
        }
        if self.locked {
            socket::set_number(fd, libc::SO_LOCK_FILTER, 1).context(|| "locking the filter of a socket")?;
        }
        Ok(())
    }
}
