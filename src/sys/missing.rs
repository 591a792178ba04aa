//! userfaultfd(2) for pages that are brought later: registered in missing mode (ioctl_userfaultfd(2)), with events for all
//! that a program does to its mappings meanwhile.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const PAGE: u64 = 4096;
/// The version of the interface, `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_EVENT_FORK`, `_REMAP`, `_REMOVE` and `_UNMAP`.
const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
/// `UFFD_PAGEFAULT_FLAG_WRITE`.
const WRITE: u64 = 1;
/// Bytes of a `struct uffd_msg`, and how many are read at once.
const MESSAGE: usize = 32;
const AT_ONCE: usize = 16;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct Zeropage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);
nix::ioctl_read!(uffdio_wake, 0xaa, 0x02, Range);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xaa, 0x04, Zeropage);

/// What a program does; it waits until the message has been read, at a fault until the page is there.
#[derive(Debug)]
pub enum Message {
    /// Somebody needs the page at this address.
    Fault {
        /// Address of the page.
        address: u64,
        /// It is written to.
        write: bool,
    },
    /// It has a child, whose missing pages are told of by this one.
    Fork(Missing),
    /// A mapping has moved: from, to, bytes.
    Remap(u64, u64, u64),
    /// Its pages from the first address up to the second are given up: by madvise(2), munmap(2) or what else unmaps.
    Drop(u64, u64),
}

/// How far a call came, in bytes, and why it stopped there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// Bytes that have been dealt with.
    pub bytes: u64,
    /// Why no more.
    pub stop: Option<Errno>,
}

/// The missing pages of one address space. Closed by the last who has it, they are zero from then on.
#[derive(Debug)]
pub struct Missing(OwnedFd);

impl AsFd for Missing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Missing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Missing {
    /// Takes a new userfaultfd, made with `O_NONBLOCK` in the process whose memory it is about.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_PTRACE`, `EINVAL` when the kernel has not got all the events (before Linux 4.14).
    pub fn begin(fd: OwnedFd) -> Result<Missing, Errno> {
        let mut api = Api { api: API, features: EVENTS, ioctls: 0 };
        // SAFETY: the structure is the call's own and outlives it.
        unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Missing(fd))
    }

    /// From now on a page that is missing between two addresses is asked for.
    pub fn register(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut register = Register { range: Range { start, len: end - start }, mode: MISSING, ioctls: 0 };
        // SAFETY: as above.
        unsafe { uffdio_register(self.as_raw_fd(), &raw mut register) }.map(drop)
    }

    /// What there is to hear, at once and in order; nothing when nobody waits.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn hear(&self) -> Result<Vec<Message>, Errno> {
        let mut buffer = [0u8; MESSAGE * AT_ONCE];
        let n = match nix::unistd::read(&self.0, &mut buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            result => result?,
        };
        Ok(buffer[..n].chunks_exact(MESSAGE).filter_map(message).collect())
    }

    /// Brings pages. A page that is there already stops it with `EEXIST`, the end of a mapping with `ENOENT`; `EAGAIN`
    /// when a message is to be heard first.
    pub fn copy(&self, to: u64, pages: &[u8]) -> Came {
        let mut copy = Copy { dst: to, src: pages.as_ptr() as u64, len: pages.len() as u64, mode: 0, copy: 0 };
        // SAFETY: the kernel reads `pages` and writes into the other address space.
        let result = unsafe { uffdio_copy(self.as_raw_fd(), &raw mut copy) };
        came(result, copy.copy, pages.len() as u64)
    }

    /// Makes a page zero.
    pub fn zero(&self, page: u64) -> Came {
        let mut zero = Zeropage { range: Range { start: page, len: PAGE }, mode: 0, zeropage: 0 };
        // SAFETY: the structure outlives the call.
        let result = unsafe { uffdio_zeropage(self.as_raw_fd(), &raw mut zero) };
        came(result, zero.zeropage, PAGE)
    }

    /// Whoever waits for this page looks again.
    pub fn wake(&self, page: u64) {
        let mut range = Range { start: page, len: PAGE };
        // SAFETY: the structure outlives the call. It fails when the process has ended: nobody waits then.
        let _ = unsafe { uffdio_wake(self.as_raw_fd(), &raw mut range) };
    }
}

/// Has the kernel make huge pages of what lies between two addresses of another process (process_madvise(2), `MADV_COLLAPSE`,
/// Linux 6.1). `address` and `bytes` are multiples of their size.
///
/// # Errors
/// When a part of it cannot become huge.
pub fn collapse(pidfd: RawFd, address: u64, bytes: u64) -> Result<(), Errno> {
    const MADV_COLLAPSE: i32 = 25;
    let range = libc::iovec { iov_base: address as *mut _, iov_len: bytes as usize };
    // SAFETY: the kernel reads one structure, as is said; what lies there stays as it is.
    Errno::result(unsafe { libc::syscall(libc::SYS_process_madvise, pidfd, &raw const range, 1, MADV_COLLAPSE, 0) }).map(drop)
}

fn came(result: nix::Result<i32>, counted: i64, all: u64) -> Came {
    match result {
        Ok(_) => Came { bytes: all, stop: None },
        Err(e) => {
            // With some done, the call says EAGAIN and how many; what stopped it comes out when it goes on.
            let bytes = counted.max(0) as u64;
            let stop = if bytes > 0 { None } else { Some(e) };
            Came { bytes, stop }
        }
    }
}

fn message(bytes: &[u8]) -> Option<Message> {
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    match bytes[0] {
        0x12 => Some(Message::Fault { address: word(16) & !(PAGE - 1), write: word(8) & WRITE != 0 }),
        0x13 => {
            // SAFETY: the kernel has just put this descriptor into our table, and nobody else knows it.
            Some(Message::Fork(Missing(unsafe { OwnedFd::from_raw_fd(word(8) as u32 as i32) })))
        }
        0x14 => Some(Message::Remap(word(8), word(16), word(24))),
        0x15 | 0x16 => Some(Message::Drop(word(8), word(16))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood() {
        let mut bytes = [0u8; MESSAGE];
        bytes[0] = 0x12;
        bytes[8] = 1;
        bytes[16..24].copy_from_slice(&0x7f00_0000_1234u64.to_le_bytes());
        assert!(matches!(message(&bytes), Some(Message::Fault { address: 0x7f00_0000_1000, write: true })));
        bytes[0] = 0x14;
        bytes[24] = 16;
        assert!(matches!(message(&bytes), Some(Message::Remap(1, 0x7f00_0000_1234, 16))));
        bytes[0] = 0x99;
        assert!(message(&bytes).is_none());
    }

    #[test]
    fn a_partial_copy_goes_on() {
        assert_eq!(came(Err(Errno::EAGAIN), 8192, 65536), Came { bytes: 8192, stop: None });
        assert_eq!(came(Err(Errno::EAGAIN), -11, 65536), Came { bytes: 0, stop: Some(Errno::EAGAIN) });
        assert_eq!(came(Ok(0), 65536, 65536), Came { bytes: 65536, stop: None });
    }
}
