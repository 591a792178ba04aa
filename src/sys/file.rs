//! Calls on descriptors of our own: pipes, memfd, terminals, holes.

use nix::errno::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// flock(2) `LOCK_EX`; closing the file gives it back.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: numbers only.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `F_GET_SEALS` of a memfd.
pub fn seals(file: &File) -> Result<u32, Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) }).map(|s| s as u32)
}

/// Sets the times of last access and last change: seconds, nanoseconds.
pub fn set_times(fd: BorrowedFd<'_>, times: [(i64, i64); 2]) -> Result<(), Errno> {
    let [access, change] = times.map(|(s, ns)| nix::sys::time::TimeSpec::new(s, ns));
    nix::sys::stat::futimens(fd, &access, &change)
}

/// Adds seals to a memfd.
pub fn add_seals(fd: BorrowedFd<'_>, seals: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// Capacity of a pipe in bytes.
pub fn pipe_size(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) }).map(|s| s as u32)
}

/// Bytes that wait in a pipe, asked at either end.
pub fn unread(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut bytes = 0i32;
    // SAFETY: the request writes one number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes.max(0) as usize)
}

/// Sets the capacity of a pipe.
pub fn set_pipe_size(fd: BorrowedFd<'_>, size: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, size) }).map(drop)
}

/// Sets the status flags (`O_APPEND`, `O_NONBLOCK`, …).
pub fn set_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// The unread content of a pipe, left in place (tee(2)). In packet mode one element a packet.
pub fn peek_pipe(read_end: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    use std::os::fd::AsFd;
    let size = pipe_size(read_end)?.max(4096);
    if pipe_size(to.as_fd())? != size {
        set_pipe_size(to.as_fd(), size)?;
    }
    // SAFETY: descriptors that we own; no memory is passed.
    let copied = Errno::result(unsafe { libc::tee(read_end.as_raw_fd(), to.as_raw_fd(), i32::MAX as usize, libc::SPLICE_F_NONBLOCK) });
    let mut left = match copied {
        Ok(0) | Err(Errno::EAGAIN) => return Ok(Vec::new()),
        Ok(n) => n as usize,
        Err(e) => return Err(e.into()),
    };
    let mut from = File::from(from);
    let mut content = Vec::new();
    loop {
        // A packet ends a read, and is never longer than a page.
        let mut piece = vec![0u8; left.min(65536)];
        let n = from.read(&mut piece)?;
        piece.truncate(n);
        left -= n;
        content.push(piece);
        if left == 0 || n == 0 {
            return Ok(content);
        }
    }
}

/// Size of the kernel's `struct termios2`.
pub const TERMIOS2: usize = 44;
const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;

/// Modes of a terminal.
pub fn termios(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut raw = vec![0u8; TERMIOS2];
    // SAFETY: the buffer has the size that the request writes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TCGETS2, raw.as_mut_ptr()) })?;
    Ok(raw)
}

/// Sets the modes of a terminal at once.
pub fn set_termios(fd: BorrowedFd<'_>, raw: &[u8]) -> Result<(), Errno> {
    if raw.len() != TERMIOS2 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the buffer has the size that the request reads.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TCSETS2, raw.as_ptr()) }).map(drop)
}

/// Rows and columns of a terminal.
pub fn window(fd: BorrowedFd<'_>) -> Result<(u16, u16), Errno> {
    // SAFETY: all-zero is valid, and the structure outlives the call.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets rows and columns of a terminal; its foreground group gets `SIGWINCH` when they change.
pub fn set_window(fd: BorrowedFd<'_>, size: (u16, u16)) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the structure outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Ranges (start, length) of a file that hold data (lseek(2) `SEEK_DATA`), page-aligned outwards.
pub fn data_ranges(file: &File, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    const PAGE: u64 = 4096;
    let seek = |at: u64, whence| {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::lseek(file.as_raw_fd(), at as i64, whence) }).map(|o| o as u64)
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(at, libc::SEEK_DATA) {
            Ok(start) => start / PAGE * PAGE,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => 0, // a file system without holes
            Err(e) => return Err(e),
        };
        let end = seek(start, libc::SEEK_HOLE).unwrap_or(size).next_multiple_of(PAGE).min(size.next_multiple_of(PAGE));
        if end <= start {
            break;
        }
        ranges.push((start, end - start));
        at = end;
    }
    Ok(ranges)
}

/// Gives back the room of a part of a file, which reads as zeros from then on.
pub fn punch(file: &File, from: u64, length: u64) -> Result<(), Errno> {
    use nix::fcntl::{FallocateFlags, fallocate};
    fallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, from as i64, length as i64)
}

/// A new memfd.
pub fn memfd(name: &[u8], flags: u32) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name is a valid C string; on success the descriptor is new and ours.
    Ok(Errno::result(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })?)
}

/// Takes ownership of a descriptor number that a call has just returned.
pub fn own(fd: i32) -> OwnedFd {
    // SAFETY: the callers pass a fresh descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes room for descriptors below `count` while nobody waits: when the table of a process with threads grows the kernel waits for
/// all processors, for ten milliseconds and more. What cannot be had now is had later.
pub fn make_room(count: u64) {
    let last = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
    // SAFETY: numbers only; the descriptor that may come of it is nobody else's.
    let made = unsafe {
        let root = libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        let made = libc::fcntl(root, libc::F_DUPFD_CLOEXEC, last);
        libc::close(root);
        made
    };
    if made >= 0 {
        drop(own(made));
    }
}

/// A descriptor of our own by its number, for a moment.
pub fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: the callers hold the descriptor in a pool that outlives the use; -1 alone would be unsound.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }
}

/// flock(2), without waiting.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<(), Errno> {
    let operation = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// fcntl(2) `F_OFD_SETLK` with a `struct flock`.
pub fn ofd_lock(fd: BorrowedFd<'_>, lock: &[u8; 32]) -> Result<(), Errno> {
    // SAFETY: the structure has the size and layout that the kernel reads.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock.as_ptr()) }).map(drop)
}

/// Shared anonymous memory as a descriptor: the file behind `mmap(MAP_SHARED | MAP_ANONYMOUS)`, reached by `/proc/self/map_files`.
pub fn shared_anonymous(size: u64) -> io::Result<OwnedFd> {
    let size = size as usize;
    // SAFETY: a new mapping of our own, unmapped below.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = at as usize;
    let end = start + size.next_multiple_of(4096);
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/self/map_files/{start:x}-{end:x}"));
    // SAFETY: the mapping made above; nothing refers to it.
    unsafe { libc::munmap(at, size) };
    opened.map(OwnedFd::from)
}

/// The same modes without echo, line editing, signals and translation: cfmakeraw(3) on a `struct termios2`.
pub fn raw_modes(modes: &[u8]) -> Vec<u8> {
    let mut raw = modes.to_vec();
    let mut clear = |at: usize, bits: u32| {
        if let Some(field) = raw.get_mut(at..at + 4) {
            let value = u32::from_le_bytes([field[0], field[1], field[2], field[3]]) & !bits;
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    clear(0, libc::IGNBRK | libc::BRKINT | libc::PARMRK | libc::ISTRIP | libc::INLCR | libc::IGNCR | libc::ICRNL | libc::IXON);
    clear(4, libc::OPOST);
    clear(12, libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    raw
}

/// `F_SETSIG` of fcntl(2).
pub const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
/// `F_SETOWN_EX` of fcntl(2), with a `struct f_owner_ex`: kind and number.
pub const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
/// The owner is a process group.
pub const F_OWNER_PGRP: i32 = 2;

/// Who gets a signal when something happens to an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: i32,
    /// Thread, process or process group; 0 for nobody.
    pub pid: i32,
    /// `F_GETSIG`: 0 for `SIGIO`.
    pub signal: i32,
}

/// The owner of an open file (fcntl(2) `F_GETOWN_EX`).
pub fn owner(fd: BorrowedFd<'_>) -> Result<FileOwner, Errno> {
    let mut owner = [0i32; 2];
    // SAFETY: the kernel writes a `struct f_owner_ex`, two numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    // SAFETY: numbers only.
    let signal = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })?;
    Ok(FileOwner { kind: owner[0], pid: owner[1], signal })
}
