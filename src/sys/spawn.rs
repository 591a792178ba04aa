//! Birth of a stub: a process that executes next to nothing, to be filled with another one's state.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const PAGE: usize = 4096;

/// A static ELF program whose memory at `base + 4096` is anonymous, writable and executable for `room` bytes.
/// It is never run: it is stopped at the exit of execve(2).
pub fn stub_program(base: u64, room: u64) -> Vec<u8> {
    let mut elf = Vec::with_capacity(PAGE);
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bit, little endian
    for half in [2u16, super::arch::MACHINE] {
        put(&half.to_le_bytes()); // ET_EXEC
    }
    put(&1u32.to_le_bytes());
    for word in [base + 0x200, 64, 0] {
        put(&word.to_le_bytes()); // entry, program headers, section headers
    }
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    // The part beyond the file's one page is anonymous, so that the executable can be exchanged later (PR_SET_MM_MAP
    // refuses while the old one is mapped).
    let load = [(1u32, 7u32, base, PAGE as u64, PAGE as u64 + room), (0x6474_e551, 6, 0, 0, 0)];
    for (kind, flags, address, in_file, in_memory) in load {
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        for word in [0, address, address, in_file, in_memory, PAGE as u64] {
            put(&word.to_le_bytes());
        }
    }
    elf.resize(PAGE, 0xcc);
    elf
}

/// What a stub shall be at birth.
pub struct Birth<'a> {
    /// Its pid in its pid namespace; 0 for any.
    pub pid: i32,
    /// The stub program.
    pub program: &'a OwnedFd,
    /// It starts a session of its own.
    pub new_session: bool,
    /// Mount namespace to enter.
    pub mounts: Option<BorrowedFd<'a>>,
    /// A child of the new one that goes on only when this end of a pipe is closed by the parent.
    pub gate: BorrowedFd<'a>,
    /// The parent's end of the gate, to be closed in the child.
    pub gate_other_end: BorrowedFd<'a>,
}

/// `struct clone_args` of clone3(2), the part that is used.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
#[allow(missing_docs)] // the names are the kernel's own
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
}

/// Makes a child with a chosen pid (clone3(2) `set_tid`, Linux 5.5) that waits at its gate and then executes the stub.
pub fn spawn(birth: &Birth<'_>) -> Result<i32, Errno> {
    let tid = birth.pid;
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if tid == 0 { 0 } else { (&raw const tid) as u64 },
        set_tid_size: u64::from(tid != 0),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child has a copy of everything; it makes only system calls until execveat(2).
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid != 0 {
        return Ok(pid as i32);
    }
    let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: system calls on numbers and static strings; the child never returns to Rust code.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut byte = 0u8;
        libc::close(birth.gate_other_end.as_raw_fd());
        libc::read(birth.gate.as_raw_fd(), (&raw mut byte).cast(), 1);
        if birth.new_session {
            libc::setsid();
        }
        if let Some(mounts) = birth.mounts
            && libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) != 0
        {
            libc::_exit(126);
        }
        libc::syscall(libc::SYS_execveat, birth.program.as_raw_fd(), c"".as_ptr(), nothing.as_ptr(), nothing.as_ptr(), libc::AT_EMPTY_PATH);
        libc::_exit(127)
    }
}

/// Prepares a command to be started apart from everything here: in a session of its own, with no descriptors but 0, 1
/// and 2, and ended by the kernel when the caller's thread ends (prctl(2) `PR_SET_PDEATHSIG`).
pub fn apart(command: &mut std::process::Command) {
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, || {
            libc::setsid();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // Marked and not closed: the standard library tells of a failed execve(2) through one of them.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
}
