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

/// The command inherits no descriptors but the first three: others of meio may be on their way into a tree.
pub fn with_nothing(command: &mut std::process::Command) -> &mut std::process::Command {
    let close = || {
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: between fork(2) and execve(2) the closure makes one system call and nothing else.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, close) }
}

/// What a stub shall be at birth.
pub struct Birth<'a> {
    /// Its number in its pid namespace; 0 for any.
    pub pid: i32,
    /// It is the first process of a new pid namespace.
    pub init: bool,
    /// User namespace that it is born in, and the user, group and groups that it has when it enters.
    pub user: Option<(BorrowedFd<'a>, u32, u32, &'a [u32])>,
    /// The stub program.
    pub program: &'a OwnedFd,
    /// It starts a session of its own.
    pub new_session: bool,
    /// Mount namespace to enter.
    pub mounts: Option<BorrowedFd<'a>>,
    /// It executes the stub program when a byte comes from here.
    pub gate: BorrowedFd<'a>,
    /// A pidfd of meio: what is born after meio has ended must end.
    pub meio: BorrowedFd<'a>,
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
/// Until then it shares meio's descriptors: it inherits whatever meio opens before the gate opens.
pub fn spawn(birth: &Birth<'_>) -> Result<i32, Errno> {
    let Some((user, uid, gid, groups)) = birth.user else { return bear(birth, 0) };
    // It must be made by somebody in that user namespace: a child of meio, that gives it to meio.
    let (answers, answer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let between = clone(&CloneArgs { flags: libc::CLONE_FILES as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() })?;
    if between == 0 {
        // SAFETY: numbers, and a list that outlives the call. Raw calls: this thread is alone in the child.
        let entered = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            libc::syscall(libc::SYS_setresgid, gid, gid, gid);
            // Capabilities are needed up to setns(2), which gives its own.
            libc::prctl(libc::PR_SET_SECUREBITS, 1 << 2 | 1 << 4);
            libc::syscall(libc::SYS_setresuid, uid, uid, uid);
            libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER)
        };
        let born = Errno::result(entered).and_then(|_| bear(birth, libc::CLONE_PARENT as u64));
        let said = born.unwrap_or_else(|e| -(e as i32)).to_le_bytes();
        // SAFETY: a descriptor and a buffer of our own.
        unsafe {
            libc::write(answer.as_raw_fd(), said.as_ptr().cast(), said.len());
            libc::_exit(0)
        }
    }
    while let Err(Errno::EINTR) = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(between), None) {}
    // The table is shared, so that the pipe never ends by itself.
    drop(answer);
    let mut said = [0u8; 4];
    match nix::unistd::read(&answers, &mut said)? {
        4 => match i32::from_le_bytes(said) {
            e @ ..0 => Err(Errno::from_raw(-e)),
            pid => Ok(pid),
        },
        _ => Err(Errno::ECHILD),
    }
}

/// clone3(2) without shared memory: the child's pid, 0 in the child.
pub(super) fn clone(args: &CloneArgs) -> Result<i32, Errno> {
    // SAFETY: the arguments outlive the call; callers ask for no shared memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const *args, size_of::<CloneArgs>()) }).map(|pid| pid as i32)
}

fn bear(birth: &Birth<'_>, flags: u64) -> Result<i32, Errno> {
    let tid = birth.pid;
    let args = CloneArgs {
        flags: flags | libc::CLONE_FILES as u64 | if birth.init { libc::CLONE_NEWPID as u64 } else { 0 },
        // With CLONE_PARENT it is the one of the parent.
        exit_signal: if flags == 0 { libc::SIGCHLD as u64 } else { 0 },
        set_tid: if tid == 0 { 0 } else { (&raw const tid) as u64 },
        set_tid_size: u64::from(tid != 0),
        ..CloneArgs::default()
    };
    let pid = clone(&args)?;
    if pid != 0 {
        return Ok(pid);
    }
    let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: system calls on numbers and static strings; the child never returns to Rust code.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut ended = libc::pollfd { fd: birth.meio.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        if libc::poll(&raw mut ended, 1, 0) != 0 {
            libc::_exit(125);
        }
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut byte = 0u8;
        if libc::read(birth.gate.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(125);
        }
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

/// Prepares a command that goes on when ^C is typed: it is for the caller to end it.
pub fn deaf_to_interrupts(command: &mut std::process::Command) {
    // SAFETY: between fork and exec a single system call is made, and nothing is allocated.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, || {
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            Ok(())
        });
    }
}
