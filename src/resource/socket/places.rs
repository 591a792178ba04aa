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
    begun: bool,
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
    /// Has the calls of these tasks counted; one that is not counted could do anything. They stand still.
    pub fn begin(tasks: impl Iterator<Item = i32>) -> Places {
        let mut places = Places { begun: true, ..Places::default() };
        let Ok(calls) = Calls::named(CALLS) else { return places };
        for tid in tasks {
            match calls.count(std::iter::once(tid)) {
                Ok(counters) if (places.counters.len() + 1) * calls.len() <= MOST_COUNTERS => places.counters.push(counters),
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                _ => return Places { begun: true, ..Places::default() },
            }
        }
        places
    }

    /// Whether it was tried.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Forgets all if anybody has made such a call since this was asked last.
    pub fn look(&mut self) {
        self.kept = 0;
        // All of them are asked: each remembers what it said.
        if self.counters.iter_mut().map(Counters::still).filter(|still| !still).count() > 0 {
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
    use nix::fcntl::{FdFlag, OFlag};
    use std::os::fd::AsRawFd;
    use std::sync::{Arc, mpsc};

    fn inode(fd: &OwnedFd) -> (u64, u64) {
        nix::sys::stat::fstat(fd).map(|meta| (meta.st_dev, meta.st_ino)).expect("a socket")
    }

    type Change = Box<dyn FnOnce(&OwnedFd) + Send>;

    /// A thread that is counted, and does what it is told with a socket.
    fn program(socket: Arc<OwnedFd>) -> (i32, impl Fn(Change)) {
        let ((tell, told), (say, said)) = (mpsc::channel::<Change>(), mpsc::channel());
        std::thread::spawn(move || {
            let _ = say.send(nix::unistd::gettid().as_raw());
            while let Ok(change) = told.recv() {
                change(&socket);
                let _ = say.send(0);
            }
        });
        (said.recv().expect("a thread"), move |change| {
            tell.send(change).expect("a thread");
            said.recv().expect("a thread");
        })
    }

    #[test]
    fn what_changes_is_looked_at_again() {
        let (socket, other) = socket::pair(libc::SOCK_STREAM).expect("sockets");
        let socket = Arc::new(socket);
        let (tid, run) = program(socket.clone());
        let mut places = Places::begin(std::iter::once(tid));
        if places.counters.is_empty() {
            return; // not permitted, or a kernel without
        }
        let files = Files::of(std::process::id() as i32);
        let (fd, (device, number)) = (socket.as_raw_fd(), inode(&socket));
        let noted = |places: &mut Places| {
            places.look();
            places.note(files.pid(), vec![Place { fd, inode: number, cloexec: true }]);
            places.find(&files, fd, device).expect("as it was")
        };
        let found = noted(&mut places);
        assert_eq!((found.place.inode, found.flags), (number, (libc::O_RDWR | libc::O_CLOEXEC) as u32));
        // What the duplicate shows itself, and what only looks.
        run(Box::new(|socket| _ = fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))));
        run(Box::new(|socket| _ = fcntl(socket, FcntlArg::F_GETFD)));
        places.look();
        let found = places.find(&files, fd, device).expect("as it was");
        assert_eq!(found.flags & libc::O_NONBLOCK as u32, libc::O_NONBLOCK as u32);
        assert!(places.find(&files, other.as_raw_fd(), device).is_none() && places.find(&files, fd, device + 1).is_none());
        let changes: [(&str, Change); 3] = [
            ("F_SETFD", Box::new(|socket| _ = fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())))),
            ("F_DUPFD_CLOEXEC", Box::new(|socket| _ = socket.try_clone())),
            ("dup", Box::new(|socket| _ = nix::unistd::dup(socket))),
        ];
        for (what, change) in changes {
            noted(&mut places);
            run(change);
            places.look();
            assert!(places.find(&files, fd, device).is_none(), "{what}");
        }
        // Another socket.
        places.note(files.pid(), vec![Place { fd, inode: inode(&other).1, cloexec: true }]);
        assert!(places.find(&files, fd, device).is_none());
    }
}
