//! Namespaces: which there are, how they are asked, entered and made (namespaces(7)).

mod holder;
mod init;

pub use holder::{Holder, Making, become_one, worker};
pub use init::spawn_init;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The kinds of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// user_namespaces(7).
    User,
    /// mount_namespaces(7).
    Mnt,
    /// pid_namespaces(7).
    Pid,
    /// network_namespaces(7).
    Net,
    /// ipc_namespaces(7).
    Ipc,
    /// uts_namespaces(7).
    Uts,
    /// time_namespaces(7).
    Time,
    /// cgroup_namespaces(7).
    Cgroup,
}

impl Kind {
    /// All kinds; the one that owns the others first.
    pub const ALL: [Kind; 8] = [Kind::User, Kind::Mnt, Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time, Kind::Cgroup];

    /// Its name in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mnt => "mnt",
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Time => "time",
            Kind::Cgroup => "cgroup",
        }
    }

    /// Its flag of clone(2), unshare(2) and setns(2).
    pub fn flag(self) -> i32 {
        match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Mnt => libc::CLONE_NEWNS,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Time => 0x80, // CLONE_NEWTIME, Linux 5.6
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }
}

/// Opens `/proc/PID/ns/NAME`; `name` may also be `pid_for_children` or `time_for_children`.
pub fn open(pid: i32, name: &str) -> io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from)
}

/// Device and inode: two namespaces are the same exactly when both are.
pub fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let meta = File::from(fd.try_clone()?).metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn relation(fd: &OwnedFd, request: libc::Ioctl) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no argument; on success the kernel gives a new descriptor that nobody else owns (ioctl_ns(2)).
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user namespace that owns a namespace (ioctl_ns(2) `NS_GET_USERNS`). `EPERM` when it is outside of our own.
pub fn owner(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    relation(fd, 0xb701)
}

/// Opens a file that a network namespace was bound to; `None` where there is none.
pub fn network_at(path: &Path) -> Option<OwnedFd> {
    let fd = OwnedFd::from(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?);
    // SAFETY: no memory is passed (ioctl_ns(2) `NS_GET_NSTYPE`); other files do not know the request.
    (unsafe { libc::ioctl(fd.as_raw_fd(), 0xb703) } == libc::CLONE_NEWNET).then_some(fd)
}

/// The parent of a pid or user namespace (`NS_GET_PARENT`). `EPERM` when it is outside of our own.
pub fn parent(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    relation(fd, 0xb702)
}

/// The user who made a user namespace (`NS_GET_OWNER_UID`), as our own user namespace numbers it.
pub fn owner_uid(fd: &OwnedFd) -> Result<u32, Errno> {
    let mut uid = 0u32;
    // SAFETY: `uid` outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), 0xb704, &raw mut uid) })?;
    Ok(uid)
}

/// setdomainname(2).
pub fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `name` within its length.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// setns(2).
pub fn enter(fd: BorrowedFd<'_>, kind: Kind) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::setns(fd.as_raw_fd(), kind.flag()) }).map(drop)
}

/// Runs `work` in a thread that lives in other namespaces: any but user, pid and time. Descriptors that it opens are
/// those of the whole process. In another mount namespace `/proc/self` may be missing: see [`crate::sys::file::reopen`].
pub fn within<T: Send>(places: &[(BorrowedFd<'_>, Kind)], work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    if places.is_empty() {
        return Ok(work());
    }
    in_a_thread(|| {
        // A thread that shares root and current directory with others may not change its mounts.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        places.iter().try_for_each(|&(fd, kind)| enter(fd, kind))?;
        Ok(work())
    })
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let inside = std::thread::Builder::new().spawn_scoped(scope, work);
        let inside = inside.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `work` in a thread that lives in a network namespace nobody else lives in.
pub fn fresh_network<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    in_a_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Pairs of descriptor and kind, as [`within`] and [`worker`] take them.
pub fn places<'a>(list: impl IntoIterator<Item = (&'a OwnedFd, Kind)>) -> Vec<(BorrowedFd<'a>, Kind)> {
    list.into_iter().map(|(fd, kind)| (fd.as_fd(), kind)).collect()
}
