//! Probes of what is done to a running task from outside. Each holds a child made for it.

use super::{Child, Lack, Probe, check};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::{FromRawFd, OwnedFd};

const NT_PRSTATUS: usize = 1;
/// elf.h `NT_X86_XSTATE`.
const NT_X86_XSTATE: usize = 0x202;
/// linux/ptrace.h, 5.13.
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;

/// A child held by ptrace, stopped.
fn held() -> Result<Child, Lack> {
    let child = Child::waiting()?;
    nix::sys::ptrace::seize(child.0, nix::sys::ptrace::Options::empty())?;
    nix::sys::ptrace::interrupt(child.0)?;
    waitpid(child.0, None)?;
    Ok(child)
}

/// `PTRACE_GETREGSET` into a buffer; the bytes that the kernel filled.
fn regset(pid: Pid, kind: usize, buffer: &mut [u8]) -> Result<usize, Lack> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the iovec names a buffer that lives through the call, with its true length.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, pid.as_raw(), kind, &raw mut part) })?;
    Ok(part.iov_len)
}

/// ptrace(2): `PTRACE_SEIZE`, `PTRACE_INTERRUPT`, registers and signal mask of a child.
pub fn ptrace() -> Probe {
    let child = held()?;
    let mut registers = [0u8; 1024];
    let size = regset(child.0, NT_PRSTATUS, &mut registers)?;
    if size != size_of::<crate::sys::arch::Registers>() {
        return Err(Lack::seen(format!("the register file has {size} bytes")));
    }
    let mut mask = 0u64;
    // SAFETY: the kernel writes the 8 bytes of a signal set to `mask`.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, child.0.as_raw(), size_of::<u64>(), &raw mut mask) })?;
    nix::sys::ptrace::detach(child.0, None)?;
    Ok("a running task can be held and let go".into())
}

/// The vector state (XSAVE area) through ptrace, and XCR0 in it.
pub fn xsave() -> Probe {
    /// Offset of XCR0 in the area as ptrace returns it (`USER_XSTATE_XCR0_WORD` in the kernel's sources).
    const XCR0: std::ops::Range<usize> = 464..472;
    let child = held()?;
    let mut area = vec![0u8; 64 * 1024];
    let size = regset(child.0, NT_X86_XSTATE, &mut area)?;
    let xcr0 = area[XCR0].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    match size {
        0..576 => Err(Lack::seen(format!("the XSAVE area has only {size} bytes"))),
        _ => Ok(format!("{size} bytes for each thread, XCR0 {xcr0:#x}")),
    }
}

/// `PTRACE_GET_RSEQ_CONFIGURATION`: where a thread registered restartable sequences (glibc does, since 2.35).
pub fn rseq() -> Probe {
    let child = held()?;
    let mut configuration = [0u64; 3];
    let size = size_of_val(&configuration);
    // SAFETY: the kernel writes at most `size` bytes to the array.
    check(unsafe { libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, child.0.as_raw(), size, configuration.as_mut_ptr()) })?;
    Ok("restartable sequences can be read".into())
}

/// pidfd_getfd(2): a descriptor of the child becomes ours.
pub fn pidfd_getfd() -> Probe {
    let (ours, _writer) = nix::unistd::pipe()?;
    let child = Child::waiting()?;
    // SAFETY: no memory is involved.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, child.0.as_raw(), 0) })?;
    // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    use std::os::fd::AsRawFd;
    // SAFETY: no memory is involved.
    let got = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), ours.as_raw_fd(), 0) })?;
    // SAFETY: as above.
    let got = unsafe { OwnedFd::from_raw_fd(got as i32) };
    let same = nix::sys::stat::fstat(&got)?.st_ino == nix::sys::stat::fstat(&ours)?.st_ino;
    if same { Ok("descriptors can be taken over".into()) } else { Err(Lack::seen("it returned another file")) }
}

/// process_vm_readv(2): memory of the child, compared with what it must be.
pub fn read_memory() -> Probe {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let secret = *b"meio reads what the child has";
    let child = Child::waiting()?;
    let mut copy = [0u8; 29];
    let from = RemoteIoVec { base: secret.as_ptr() as usize, len: secret.len() };
    process_vm_readv(child.0, &mut [std::io::IoSliceMut::new(&mut copy)], &[from])?;
    if copy == secret { Ok("memory can be read from outside".into()) } else { Err(Lack::seen("it read something else")) }
}

/// kcmp(2): whether two descriptors are one open file. Asked about one that is, and one that is not.
pub fn kcmp() -> Probe {
    const KCMP_FILE: libc::c_int = 0;
    use std::os::fd::AsRawFd;
    let me = std::process::id();
    let (reader, writer) = nix::unistd::pipe()?;
    let same = |a: &OwnedFd, b: &OwnedFd| {
        // SAFETY: no memory is involved.
        check(unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, a.as_raw_fd(), b.as_raw_fd()) }).map(|order| order == 0)
    };
    let twin = reader.try_clone().map_err(|e| Lack::from(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
    match (same(&reader, &twin)?, same(&reader, &writer)?) {
        (true, false) => Ok("shared open files can be told apart".into()),
        _ => Err(Lack::seen("it gives wrong answers")),
    }
}
