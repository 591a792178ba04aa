//! userfaultfd(2) for one purpose: to learn which pages were written, from outside and without a fault that waits for
//! anybody. With `UFFD_FEATURE_WP_ASYNC` (Linux 6.7) the kernel itself takes the write protection of a page away at the
//! first write; `PAGEMAP_SCAN` then tells the page, see [`super::pagemap`].

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Flags of the call. `UFFD_USER_MODE_ONLY` (Linux 5.11) needs no privilege, and is no loss: a write that is only noted
/// may come from the kernel as well.
pub const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
const UFFD_USER_MODE_ONLY: i32 = 1;

const API: u64 = 0xaa;
const PAGEFAULT_FLAG_WP: u64 = 1;
/// Linux 5.19; known to every kernel that has `WP_ASYNC`, and built with the same option.
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Linux 6.4.
const WP_UNPOPULATED: u64 = 1 << 13;
/// Linux 6.7.
const WP_ASYNC: u64 = 1 << 15;
const MODE_WP: u64 = 1 << 1;

/// `struct uffdio_api`.
#[repr(C)]
pub struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
pub struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
pub struct WriteProtect {
    start: u64,
    length: u64,
    mode: u64,
}

nix::ioctl_readwrite!(uffdio_api, API, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, API, 0x00, Register);
nix::ioctl_readwrite!(uffdio_writeprotect, API, 0x06, WriteProtect);

/// One address space whose writes are noted. The kernel takes every protection away when the last descriptor is closed:
/// with meio's end at the latest, since nobody else has one.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// One for the own address space.
    pub fn own() -> Result<Self, Errno> {
        // SAFETY: no memory is involved; on success the descriptor is new and ours.
        let fd =
            Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })?;
        Userfaultfd::adopt(fd)
    }

    /// Takes over a new one, of whatever address space.
    ///
    /// # Errors
    /// `EINVAL` where writes cannot be noted without waiting: before Linux 6.7.
    pub fn adopt(fd: OwnedFd) -> Result<Self, Errno> {
        let mut api = Api { api: API, features: PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC, ioctls: 0 };
        // SAFETY: `api` has the kernel's layout and outlives the call.
        unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Userfaultfd(fd))
    }

    /// From now on writes between these addresses, whole mappings, are noted; for now all pages count as written, but see
    /// [`Userfaultfd::unprotect`].
    ///
    /// # Errors
    /// `ESRCH` when the address space is gone, `EBUSY` when somebody else's userfaultfd has one of the mappings, `EINVAL`
    /// and `EPERM` for those of which the kernel notes nothing.
    pub fn register(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut register = Register { start, length: end - start, mode: MODE_WP, ioctls: 0 };
        // SAFETY: `register` has the kernel's layout and outlives the call. No memory is changed.
        unsafe { uffdio_register(self.0.as_raw_fd(), &raw mut register) }.map(drop)
    }

    /// Takes the protection of all pages between these addresses away: they count as written.
    ///
    /// A mapping that was moved (mremap(2)) is not registered any more, but before Linux 6.13 its pages keep their marks.
    /// Registered again they would count as unchanged, and never be protected.
    ///
    /// # Errors
    /// `ENOENT` when one of the mappings is not registered.
    pub fn unprotect(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut protect = WriteProtect { start, length: end - start, mode: 0 };
        // SAFETY: `protect` has the kernel's layout and outlives the call. No memory is changed.
        unsafe { uffdio_writeprotect(self.0.as_raw_fd(), &raw mut protect) }.map(drop)
    }
}
