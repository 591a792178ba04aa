//! The first process of a capsule, and how a program is started below it.
//!
//! The init is a program of its own, a hundred bytes in a memfd: whatever becomes of meio's own binary, it can be saved
//! and brought back. It reaps, hands signals on to the program (always number 2), and ends as that ends.

use super::spawn::CloneArgs;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

std::arch::global_asm!(
    ".pushsection .rodata",
    "meio_capsule_init:",
    "sub rsp, 256",
    "mov eax, 157", // prctl(PR_SET_NAME)
    "mov edi, 15",
    "lea rsi, [rip + 9f]",
    "syscall",
    "mov qword ptr [rsp + 8], -1",
    "2:", // the next signal: all are blocked, rt_sigtimedwait(2)
    "mov eax, 128",
    "lea rdi, [rsp + 8]",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "cmp eax, 17", // SIGCHLD
    "je 3f",
    "test eax, eax",
    "jle 3f",
    "mov esi, eax", // kill(2, signal)
    "mov edi, 2",
    "mov eax, 62",
    "syscall",
    "jmp 2b",
    "3:", // wait4(-1, status, WNOHANG | __WALL)
    "mov eax, 61",
    "mov rdi, -1",
    "mov rsi, rsp",
    "mov edx, 0x40000001",
    "xor r10d, r10d",
    "syscall",
    "test eax, eax",
    "jle 2b",
    "cmp eax, 2",
    "jne 3b",
    "mov edi, dword ptr [rsp]",
    "mov ecx, edi",
    "and ecx, 127",
    "je 4f",
    "lea edi, [rcx + 128]",
    "jmp 5f",
    "4:",
    "shr edi, 8",
    "and edi, 255",
    "5:",
    "mov eax, 231", // exit_group
    "syscall",
    "ret", // `syscall; ret` and the signal trampoline below are meio's foothold
    "mov rax, 15",
    "syscall",
    "9:",
    ".asciz \"meio-init\"",
    "meio_capsule_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static meio_capsule_init: u8;
    static meio_capsule_init_end: u8;
}

/// The init as an ELF program.
pub fn init_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: u64 = 0x100;
    // SAFETY: both symbols bound the bytes that are assembled above.
    let code = unsafe {
        let start = &raw const meio_capsule_init;
        std::slice::from_raw_parts(start, (&raw const meio_capsule_init_end).offset_from(start) as usize)
    };
    let mut elf = Vec::new();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, super::arch::MACHINE] {
        put(&half.to_le_bytes()); // ET_EXEC
    }
    put(&1u32.to_le_bytes());
    for word in [BASE + CODE, 64, 0] {
        put(&word.to_le_bytes());
    }
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    let size = CODE + code.len() as u64;
    // PT_LOAD read and execute; PT_GNU_STACK read and write.
    for (kind, flags, address, size) in [(1u32, 5u32, BASE, size), (0x6474_e551, 6, 0, 0)] {
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        for word in [0, address, address, size, size, 4096] {
            put(&word.to_le_bytes());
        }
    }
    elf.resize(CODE as usize, 0);
    elf.extend_from_slice(code);
    elf
}

/// What is to be started, and where.
pub struct Capsule<'a> {
    /// The program, an absolute path.
    pub program: CString,
    /// Its arguments, the name first.
    pub arguments: Vec<CString>,
    /// Host name of the capsule.
    pub host: &'a str,
    /// It has a network namespace of its own.
    pub network: bool,
    /// It leads a session of its own and reads nothing.
    pub detach: bool,
    /// The terminal in whose foreground it shall be.
    pub terminal: Option<BorrowedFd<'a>>,
    /// The init.
    pub init: &'a OwnedFd,
    /// Goes on when a byte comes from here; ends when it is closed.
    pub gate: &'a OwnedFd,
    /// The parent's end of the gate.
    pub opener: &'a OwnedFd,
    /// What fails is written here: a letter for the step, and errno.
    pub report: &'a OwnedFd,
}

/// Starts a capsule; the pid of its init. The caller must have no other threads.
pub fn start(capsule: &Capsule<'_>) -> Result<i32, Errno> {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if capsule.network {
        flags |= libc::CLONE_NEWNET;
    }
    let args = CloneArgs { flags: flags as u64, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    // SAFETY: without CLONE_VM the child has a copy of everything, and nobody else's locks, since the caller is alone.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid != 0 {
        return Ok(pid as i32);
    }
    let (step, e) = match first(capsule) {
        Err(failed) => failed,
        Ok(never) => match never {},
    };
    fail(capsule.report.as_raw_fd(), step, e)
}

enum Never {}

/// The letter of a step that failed, and why.
type Failed = (u8, Errno);

fn fail(report: RawFd, step: u8, e: Errno) -> ! {
    let mut message = [step, 0, 0, 0, 0];
    message[1..].copy_from_slice(&(e as i32).to_le_bytes());
    // SAFETY: a descriptor and a buffer of our own; then the child ends.
    unsafe {
        libc::write(report, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

/// The init before it is the init.
fn first(capsule: &Capsule<'_>) -> Result<Never, Failed> {
    let at = |step: u8| move |e: Errno| (step, e);
    // SAFETY: numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(capsule.opener.as_raw_fd());
    }
    let mut byte = [0u8];
    if !matches!(nix::unistd::read(capsule.gate, &mut byte), Ok(1)) {
        return Err((b'g', Errno::ECANCELED));
    }
    mounts().map_err(at(b'm'))?;
    nix::unistd::sethostname(capsule.host).map_err(at(b'h'))?;
    if capsule.detach {
        nix::unistd::setsid().map_err(at(b's'))?;
    } else {
        nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)).map_err(at(b's'))?;
    }
    // Blocked for good: the init takes them one by one. A blocked signal reaches also an init that has no handler.
    nix::sys::signal::SigSet::all().thread_block().map_err(at(b's'))?;
    // SAFETY: the child does what its parent could.
    match Errno::result(unsafe { libc::fork() }).map_err(at(b'f'))? {
        0 => return second(capsule),
        2 => {}
        _ => return Err((b'f', Errno::EEXIST)),
    }
    let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
    let name: [*const libc::c_char; 2] = [c"meio-init".as_ptr(), std::ptr::null()];
    let null = nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDWR, nix::sys::stat::Mode::empty()).map_err(at(b'o'))?;
    // SAFETY: numbers, static strings, lists that outlive the call.
    unsafe {
        for fd in 0..3 {
            libc::dup2(null.as_raw_fd(), fd);
        }
        libc::chdir(c"/".as_ptr());
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
        libc::syscall(libc::SYS_execveat, capsule.init.as_raw_fd(), c"".as_ptr(), name.as_ptr(), nothing.as_ptr(), libc::AT_EMPTY_PATH);
    }
    Err((b'i', Errno::last()))
}

/// The program before it is the program.
fn second(capsule: &Capsule<'_>) -> Result<Never, Failed> {
    let at = |step: u8| move |e: Errno| (step, e);
    nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0)).map_err(at(b's'))?;
    if let Some(terminal) = capsule.terminal {
        // SIGTTOU is blocked.
        let _ = nix::unistd::tcsetpgrp(terminal, nix::unistd::getpid());
    }
    // SAFETY: numbers, and lists of strings that outlive the call.
    unsafe {
        if capsule.detach {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            libc::dup2(null, 0);
        }
        for signal in 1..65 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let arguments: Vec<*const libc::c_char> = capsule.arguments.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
        libc::execv(capsule.program.as_ptr(), arguments.as_ptr());
    }
    Err((b'x', Errno::last()))
}

/// What shows pids, System V and POSIX objects is the capsule's own.
fn mounts() -> Result<(), Errno> {
    use nix::mount::{MsFlags, mount};
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, none)?;
    if Path::new("/dev/shm").is_dir() {
        mount(Some("shm"), "/dev/shm", Some("tmpfs"), safe, Some("mode=1777"))?;
    }
    if Path::new("/dev/mqueue").is_dir() {
        match mount(Some("mqueue"), "/dev/mqueue", Some("mqueue"), safe | MsFlags::MS_NOEXEC, none) {
            // A kernel without them.
            Err(Errno::ENODEV) | Ok(()) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_is_a_small_program_with_a_foothold() {
        let elf = init_program();
        assert!(elf.starts_with(b"\x7fELF") && elf.len() < 600, "{} bytes", elf.len());
        let holds = |code: &[u8]| elf.windows(code.len()).any(|w| w == code);
        assert!(holds(&[0x0f, 0x05, 0xc3]), "syscall; ret");
        assert!(holds(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]), "mov rax, 15; syscall");
    }
}
