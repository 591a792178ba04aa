//! Mounts as objects with descriptors: the calls of fsopen(2), open_tree(2), move_mount(2) and mount_setattr(2), and
//! looking into the mount namespace of somebody else.

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const MOVE_MOUNT_SET_GROUP: u32 = 0x100;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
const FSPICK_EMPTY_PATH: u32 = 8;
const CLOEXEC: u32 = 1;

/// A descriptor, or the error, of a system call.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the callers pass what a call has just returned: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// A copy of the mount that `path` lies on, with `path` as its root and without what is mounted below; attached nowhere.
/// An empty path means what `folder` itself leads to.
pub fn copy(folder: Option<BorrowedFd<'_>>, path: &Path) -> io::Result<OwnedFd> {
    let folder = folder.map_or(libc::AT_FDCWD, |f| f.as_raw_fd());
    let path = text(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32 | libc::AT_SYMLINK_NOFOLLOW as u32;
    // SAFETY: the path is a C string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, folder, path.as_ptr(), flags) })
}

/// Attaches a mount where `at` leads to.
pub fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(mount, at, 0)
}

/// Lets the mount `to` share propagation with `from`: the same peer group, the same master (Linux 5.15).
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(from, to, MOVE_MOUNT_SET_GROUP)
}

fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let flags = flags | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: descriptors and static strings.
    let done = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    Ok(Errno::result(done).map(drop)?)
}

/// Sets and clears `MOUNT_ATTR_*` of a mount, and its propagation (`MS_SHARED`, `MS_SLAVE`, …; 0 leaves it).
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64, propagation: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    // SAFETY: the structure outlives the call and has the size that is told.
    let done = unsafe {
        let size = size_of::<libc::mount_attr>();
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &raw const attributes, size)
    };
    Ok(Errno::result(done).map(drop)?)
}

/// A file system that is being configured, fsopen(2).
pub struct Configuration(OwnedFd);

impl Configuration {
    /// A new file system of this type.
    pub fn new(fstype: &[u8]) -> io::Result<Self> {
        let name = text(fstype)?;
        // SAFETY: a C string that outlives the call.
        Ok(Configuration(descriptor(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), CLOEXEC) })?))
    }

    /// The file system of a mount, to change its options.
    pub fn of(mount: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a descriptor and a static string.
        let fd = unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), CLOEXEC | FSPICK_EMPTY_PATH) };
        Ok(Configuration(descriptor(fd)?))
    }

    /// Sets an option: one with a value, or a switch.
    pub fn set(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        match value {
            Some(value) => self.call(FSCONFIG_SET_STRING, Some(key), Some(value)),
            None => self.call(FSCONFIG_SET_FLAG, Some(key), None),
        }
    }

    /// Makes the file system, and a mount of it that is attached nowhere.
    pub fn mount(self) -> io::Result<OwnedFd> {
        self.call(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: a descriptor and numbers.
        let mount = unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), CLOEXEC, 0) };
        descriptor(mount).map_err(|e| self.explain(e))
    }

    /// Takes changed options into use.
    pub fn reconfigure(self) -> io::Result<()> {
        self.call(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    fn call(&self, command: u32, key: Option<&[u8]>, value: Option<&[u8]>) -> io::Result<()> {
        let (key, value) = (key.map(text).transpose()?, value.map(text).transpose()?);
        let pointer = |t: &Option<CString>| t.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        // SAFETY: the strings are C strings, or absent, and outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(&key), pointer(&value), 0) };
        Errno::result(done).map(drop).map_err(|e| self.explain(e.into()))
    }

    /// Adds what the kernel says about an error.
    fn explain(&self, error: io::Error) -> io::Error {
        let mut said = Vec::new();
        let mut message = [0u8; 512];
        while let Ok(n) = nix::unistd::read(self.0.as_fd(), &mut message)
            && n > 0
        {
            said.push(String::from_utf8_lossy(&message[..n]).trim().trim_start_matches("e ").to_owned());
        }
        if said.is_empty() { error } else { io::Error::new(error.kind(), format!("{error} ({})", said.join("; "))) }
    }
}

/// Id of the mount that a descriptor lies on, as mountinfo has it (statx(2) `STATX_MNT_ID`, Linux 5.8).
pub fn id(fd: BorrowedFd<'_>) -> io::Result<i32> {
    const STATX_MNT_ID: u32 = 0x1000;
    // SAFETY: all-zero is valid, and the structure outlives the call.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the path is a static string.
    let done = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_MNT_ID, &raw mut found) };
    Errno::result(done)?;
    Ok(found.stx_mnt_id as i32)
}

/// Opens a place without opening what is there.
pub fn place(folder: Option<BorrowedFd<'_>>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(match folder {
        Some(folder) if path.as_os_str().is_empty() => openat(folder, ".", flags, Mode::empty())?,
        Some(folder) => openat(folder, path, flags, Mode::empty())?,
        None => nix::fcntl::open(path, flags, Mode::empty())?,
    })
}

/// Makes all mounts of the own namespace private: what is done to them stays in it.
pub fn make_private() -> io::Result<()> {
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// Takes away the mount that is on top at `path`, with all below it.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Makes the mount `root` the root of the own mount namespace, and lets go of all that was there before.
pub fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    // The old root comes to lie on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Asks for something inside of a mount namespace, in a thread that ends afterwards; `look` gets the own mount table as
/// it is there. With `copied` it sees a private copy of the namespace, in which it may unmount as it likes.
pub fn within<T: Send>(namespace: &File, copied: bool, look: impl FnOnce(&[u8]) -> io::Result<T> + Send) -> io::Result<T> {
    let run = || -> io::Result<T> {
        let own = place(None, Path::new("/proc/thread-self/"))?;
        // A mount namespace can only be entered by who shares root and working directory with nobody.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
        if copied {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            make_private()?;
        }
        let mut table = Vec::new();
        File::from(openat(own.as_fd(), "mountinfo", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?).read_to_end(&mut table)?;
        look(&table)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace has failed")))
    })
}
