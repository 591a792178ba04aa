//! Descriptors that led to known connections when the tree stood still last.
//!
//! proc_pid_fdinfo(5) takes three calls for each, and the kernel makes a file of each first: with hundreds of connections that is
//! longer than all else that is asked about a process. A duplicate (pidfd_getfd(2)) tells with two that cost a tenth whether it is
//! the same socket and which flags it has, and it is needed anyhow to read the connection. It does not tell what belongs to the
//! descriptor alone, nor locks, owners and signals: these are believed to be the same where the kernel has counted no call that
//! changes them.

use crate::sys::calls::{Call, Calls, Counters};
use crate::sys::task::Files;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Calls that change `FD_CLOEXEC`, locks, owners and signals of an open socket, or have a descriptor lead to one that was open
/// before. `io_uring` has some, too: whoever has a ring is refused.
const CALLS: &[Call] = &[
    // F_DUPFD, F_SETFD, F_SETLK, F_SETLKW, F_SETOWN, F_SETSIG, F_SETOWN_EX, F_OFD_SETLK, F_OFD_SETLKW, from F_SETLEASE on.
    ("fcntl", Some(c"cmd == 0 || cmd == 2 || (cmd >= 6 && cmd <= 8) || cmd == 10 || cmd == 15 || cmd == 37 || cmd == 38 || cmd >= 1024")),
    // FIONCLEX, FIOCLEX, FIOSETOWN, SIOCSPGRP.
    ("ioctl", Some(c"cmd == 0x5450 || cmd == 0x5451 || cmd == 0x8901 || cmd == 0x8902")),
    ("close_range", None),
    ("dup", None),
    ("dup2", None),
    ("dup3", None),
    ("flock", None),
    // SCM_RIGHTS.
    ("recvmsg", None),
    ("recvmmsg", None),
    ("pidfd_getfd", None),
];
/// Descriptors that the counters may take.
const MOST_COUNTERS: usize = 1024;
/// Duplicates that are kept until their connections are read: meio has only so many descriptors.
const MOST_KEPT: usize = 1024;

/// Where connections are.
#[derive(Debug, Default)]
pub struct Places {
    calls: Option<Calls>,
    counters: Vec<Counters>,
    /// By process, in the order of their numbers.
    places: HashMap<i32, Vec<Place>>,
    kept: usize,
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its number.
    pub fd: i32,
    /// The socket that it leads to.
    pub inode: u64,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
}

/// A descriptor that still leads to the same socket.
#[derive(Debug)]
pub struct Held {
    /// Where it is.
    pub place: Place,
    /// User and group of the socket.
    pub ids: (u32, u32),
    /// Flags of the open file as proc_pid_fdinfo(5) has them, with `O_CLOEXEC`.
    pub flags: u32,
    /// A duplicate, unless there are too many.
    pub own: Option<OwnedFd>,
}

impl Places {
    /// Begins to count.
    pub fn begin() -> Places {
        Places { calls: Calls::named(CALLS).ok(), ..Places::default() }
    }

    /// Has the calls of a task counted, too; one that is not counted could do anything.
    pub fn count(&mut self, tid: i32) {
        let Some(calls) = &self.calls else { return };
        match calls.count(std::iter::once(tid)) {
            Ok(counters) if (self.counters.len() + 1) * calls.len() <= MOST_COUNTERS => self.counters.push(counters),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            _ => *self = Places::default(),
        }
    }

    /// Forgets all if anybody has made such a call since this was asked last.
    pub fn look(&mut self) {
        self.kept = 0;
        if !self.counters.iter_mut().map(Counters::still).fold(true, |all, still| all && still) {
            self.places.clear();
        }
    }

    /// The descriptors of a process as they are now.
    pub fn note(&mut self, pid: i32, places: Vec<Place>) {
        if !self.counters.is_empty() {
            self.places.insert(pid, places);
        }
    }

    /// Whether this descriptor leads to the socket that it led to.
    pub fn find(&mut self, files: &Files, fd: i32, device: u64) -> Option<Held> {
        let places = self.places.get(&files.pid())?;
        let place = places[places.binary_search_by_key(&fd, |place| place.fd).ok()?];
        let own = files.get(fd).ok()?;
        let meta = nix::sys::stat::fstat(&own).ok()?;
        if (meta.st_dev, meta.st_ino) != (device, place.inode) {
            return None;
        }
        let cloexec = if place.cloexec { libc::O_CLOEXEC as u32 } else { 0 };
        let flags = fcntl(&own, FcntlArg::F_GETFL).ok()? as u32 | cloexec;
        self.kept += 1;
        Some(Held { place, ids: (meta.st_uid, meta.st_gid), flags, own: Some(own).filter(|_| self.kept <= MOST_KEPT) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;
    use nix::fcntl::FdFlag;
    use std::os::fd::AsRawFd;

    fn inode(fd: &OwnedFd) -> (u64, u64) {
        nix::sys::stat::fstat(fd).map(|meta| (meta.st_dev, meta.st_ino)).expect("a socket")
    }

    #[test]
    fn what_changes_is_looked_at_again() {
        let mut places = Places::begin();
        places.count(nix::unistd::gettid().as_raw());
        if places.counters.is_empty() {
            return; // not permitted, or a kernel without
        }
        let files = Files::of(std::process::id() as i32);
        let (mut socket, other) = socket::pair(libc::SOCK_STREAM).expect("sockets");
        let (fd, (device, number)) = (socket.as_raw_fd(), inode(&socket));
        let noted = |places: &mut Places| {
            places.look();
            places.note(files.pid(), vec![Place { fd, inode: number, cloexec: true }]);
            places.find(&files, fd, device).expect("as it was")
        };
        let found = noted(&mut places);
        assert_eq!((found.place.inode, found.flags), (number, (libc::O_RDWR | libc::O_CLOEXEC) as u32));
        // What the duplicate shows itself.
        fcntl(&socket, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("a flag");
        places.look();
        let found = places.find(&files, fd, device).expect("as it was");
        assert_eq!(found.flags & libc::O_NONBLOCK as u32, libc::O_NONBLOCK as u32);
        assert!(places.find(&files, other.as_raw_fd(), device).is_none() && places.find(&files, fd, device + 1).is_none());
        let changes: [(&str, &dyn Fn()); 3] = [
            ("F_SETFD", &|| _ = fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))),
            ("dup", &|| _ = nix::unistd::dup(&socket)),
            ("F_DUPFD_CLOEXEC", &|| _ = socket.try_clone()),
        ];
        for (what, change) in changes {
            noted(&mut places);
            change();
            places.look();
            assert!(places.find(&files, fd, device).is_none(), "{what}");
        }
        // Only looks.
        noted(&mut places);
        let mut lock = libc::flock { l_type: libc::F_RDLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        let _ = fcntl(&socket, FcntlArg::F_OFD_GETLK(&mut lock));
        places.look();
        assert!(places.find(&files, fd, device).is_some());
        // Another socket under the same number.
        nix::unistd::dup2(&other, &mut socket).expect("another");
        assert!(places.find(&files, fd, device).is_none());
    }
}
