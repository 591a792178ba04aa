//! Probes of making processes as they were: chosen pids, memory borders, namespaces, programs without a file.

use super::{Child, Lack, Probe, check, last_errno};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::AsRawFd;

/// linux/sched.h `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3(2) with `set_tid`: a child with a pid of our choice. Needs `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`.
pub fn set_tid() -> Probe {
    // A number that was just used is free, and the kernel does not come back to it soon.
    let gone = Child::running(|| 0)?;
    let free = gone.0.as_raw();
    gone.answer()?;
    let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, set_tid: (&raw const free) as u64, set_tid_size: 1, ..CloneArgs::default() };
    // SAFETY: without flags this is fork: the child has its own copy of everything, and only leaves.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: leaves at once.
        unsafe { libc::_exit(0) }
    }
    let pid = check(pid)?;
    waitpid(Pid::from_raw(pid as i32), None)?;
    if pid == i64::from(free) { Ok("a child gets the pid that is asked for".into()) } else { Err(Lack::seen("the child got another pid")) }
}

/// linux/prctl.h `struct prctl_mm_map`.
#[repr(C)]
struct MmMap {
    borders: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// `PR_SET_MM_MAP` (prctl(2)): a child sets its own borders to what they are. Needs `CONFIG_CHECKPOINT_RESTORE`.
pub fn mm_map() -> Probe {
    const PR_SET_MM_MAP: libc::c_int = 14;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5); field 3 is the first one after the name in parentheses.
    let fields: Vec<u64> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect()).unwrap_or_default();
    let field = |n: usize| fields.get(n - 3).copied().ok_or_else(|| Lack::seen("/proc/self/stat is too short"));
    // SAFETY: asks for the end of the heap, and does not move it.
    let brk = check(unsafe { libc::syscall(libc::SYS_brk, 0) })? as u64;
    let (start_code, end_code, stack) = (field(26)?, field(27)?, field(28)?);
    let borders = [start_code, end_code, field(45)?, field(46)?, field(47)?, brk, stack, field(48)?, field(49)?, field(50)?, field(51)?];
    let map = MmMap { borders, auxv: 0, auxv_size: 0, exe_fd: u32::MAX };
    Child::running(move || {
        // SAFETY: `map` has the kernel's layout, and only this child's bookkeeping is set.
        match unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MmMap>(), 0) } {
            0 => 0,
            _ => last_errno(),
        }
    })?
    .answer()?;
    Ok("an address space gets its borders".into())
}

/// unshare(2) of one kind of namespace, in a child. `flag` is a `CLONE_NEW*`.
pub fn namespace(flag: libc::c_int) -> Probe {
    // SAFETY: unshare touches no memory; the child only leaves afterwards.
    Child::running(move || if unsafe { libc::unshare(flag) } == 0 { 0 } else { last_errno() })?.answer()?;
    Ok("can be made".into())
}

/// Runs a program that lies in a memfd (memfd_create(2), execveat(2)): what restores a deleted executable.
pub fn run_memfd() -> Probe {
    let file = memfd_create("meio-probe", MFdFlags::MFD_CLOEXEC)?;
    std::io::Write::write_all(&mut std::fs::File::from(file.try_clone()?), &smallest_program())?;
    let fd = file.as_raw_fd();
    Child::running(move || {
        let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
        // SAFETY: path, argument and environment lists are terminated, and outlive the call.
        unsafe { libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), nothing.as_ptr(), nothing.as_ptr(), libc::AT_EMPTY_PATH) };
        last_errno()
    })?
    .answer()?;
    Ok("a program without a file can be run".into())
}

/// An ELF program for x86_64 that only calls `exit(0)`: elf(5) header, one segment, nine bytes of code.
fn smallest_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]; // mov eax, 60; xor edi, edi; syscall
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |value: u64, bytes: usize| elf.extend(&value.to_le_bytes()[..bytes]);
    let size = HEADERS + CODE.len() as u64;
    for (value, bytes) in [(2, 2), (crate::sys::arch::MACHINE.into(), 2), (1, 4), (BASE + HEADERS, 8), (64, 8), (0, 8), (0, 4)] {
        put(value, bytes);
    }
    for value in [64, 56, 1, 64, 0, 0] {
        put(value, 2);
    }
    for (value, bytes) in [(1, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (size, 8), (size, 8), (4096, 8)] {
        put(value, bytes);
    }
    elf.extend(CODE);
    elf
}
