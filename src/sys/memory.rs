//! Reading and writing another process's memory: process_vm_readv(2), proc_pid_mem(5).

use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Copies `buf.len()` bytes at `address` of `pid`. Shorter when a page is not readable.
pub fn read_some(pid: i32, address: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which is exclusively borrowed; the remote side is checked by the kernel.
    Errno::result(unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) }).map(|n| n as usize)
}

/// Copies all of `buf` or fails with `EFAULT`.
pub fn read(pid: i32, address: u64, buf: &mut [u8]) -> Result<(), Errno> {
    if read_some(pid, address, buf)? == buf.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Reads a little-endian word.
pub fn read_u64(pid: i32, address: u64) -> Result<u64, Errno> {
    let mut b = [0; 8];
    read(pid, address, &mut b)?;
    Ok(u64::from_le_bytes(b))
}

/// Ranges of one process's memory that one call reads at most: `UIO_MAXIOV`.
pub const MOST_RANGES: usize = 1024;

/// Copies several ranges (address, length), one after the other, into several pieces of memory, likewise. At most
/// [`MOST_RANGES`] of both. Shorter when a page is not readable.
pub fn read_ranges(pid: i32, ranges: &[(u64, u64)], into: &mut [&mut [u8]]) -> Result<usize, Errno> {
    let remote: Vec<libc::iovec> = ranges.iter().map(|&(a, n)| libc::iovec { iov_base: a as *mut _, iov_len: n as usize }).collect();
    let local: Vec<libc::iovec> =
        into.iter_mut().map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() }).collect();
    let (locals, remotes) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
    // SAFETY: `local` describes pieces that are exclusively borrowed; the remote side is checked by the kernel.
    Errno::result(unsafe { libc::process_vm_readv(pid, local.as_ptr(), locals, remote.as_ptr(), remotes, 0) }).map(|n| n as usize)
}

/// Writes all of `buf` at `address`; the mapping must be writable.
pub fn write(pid: i32, address: u64, buf: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &buf[done..];
        let local = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let remote = libc::iovec { iov_base: (address + done as u64) as *mut _, iov_len: rest.len() };
        // SAFETY: the kernel only reads from `local`.
        match Errno::result(unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) })? {
            0 => return Err(Errno::EFAULT),
            n => done += n as usize,
        }
    }
    Ok(())
}

/// A copy of one page of our own, wherever it is; `None` where nothing is behind it. The kernel's own pages can neither be
/// read by the calls above nor safely by ourselves.
pub fn own_page(address: u64) -> Result<Option<Vec<u8>>, Errno> {
    let copy = nix::sys::memfd::memfd_create(c"page", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut page = vec![0; 4096];
    // SAFETY: only the kernel reads at the address, and says EFAULT where it cannot.
    match Errno::result(unsafe { libc::write(copy.as_raw_fd(), address as *const _, page.len()) }) {
        Ok(n) if n as usize == page.len() => {}
        Ok(_) | Err(Errno::EFAULT) => return Ok(None),
        Err(e) => return Err(e),
    }
    match File::from(copy).read_exact_at(&mut page, 0) {
        Ok(()) => Ok(Some(page)),
        Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// The memory of a process as a file: writes go through read-only protection (`FOLL_FORCE`).
pub struct MemFile(File);

impl MemFile {
    /// Opens `/proc/PID/mem`.
    pub fn open(pid: i32) -> std::io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).map(MemFile)
    }

    /// Writes all of `buf` at `address`.
    pub fn write(&self, address: u64, buf: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(buf, address)
    }

    /// Reads all of `buf` at `address`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, address)
    }
}
