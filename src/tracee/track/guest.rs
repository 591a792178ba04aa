//! A thread that lives in a process for four calls, to make a userfaultfd that the process never has.
//!
//! It has the memory of the process but a table of descriptors of its own, and what it makes ends with it. From its first
//! instant on it stands on a frame that leads to exit(2): should meio die at any time, it is gone at once, and nothing is left
//! in the process.

use crate::error::{Context, Error, Kind, Result};
use crate::sys::anon::{self, PIDFD_THREAD};
use crate::sys::arch::{Registers, SignalFrame};
use crate::sys::memory;
use crate::sys::proc::read;
use crate::sys::ptrace::{self, Status};
use crate::sys::task;
use crate::sys::userfaultfd::FLAGS;
use crate::tracee::ALL_SIGNALS;
use crate::tracee::foothold::Foothold;
use crate::tracee::inject::Injector;
use nix::sys::statfs::{FsType, statfs};
use std::os::fd::OwnedFd;

/// `CLONE_FILES` as well: a copy of the table would be flushed, file by file, when the thread ends.
const THREAD: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
/// `CLOSE_RANGE_UNSHARE` (close_range(2), Linux 5.9): from now on a table of its own, empty.
const UNSHARE: u64 = 2;

/// Bytes that it needs of the stack.
const ROOM: u64 = 1024;

/// A userfaultfd of the process that `run` acts in. `threads` are all threads that it has. `None` where it cannot be had this
/// way: without a way back, under seccomp(2), when no more threads are allowed, before Linux 6.9.
///
/// # Errors
/// When a task has gone.
pub fn userfaultfd(run: &mut Injector<'_>, foothold: &Foothold, threads: &[i32]) -> Result<Option<OwnedFd>> {
    let Some(trampoline) = foothold.trampoline.filter(|_| !run.confined() && !run.stopped()) else { return Ok(None) };
    if anon::pidfd(run.tid(), PIDFD_THREAD).is_err() || may_have_queues(run.pid()) {
        return Ok(None);
    }
    // Far below the stack of the main thread: that one runs again, too, when meio dies.
    let Some(&stack) = foothold.places(1, ROOM).first() else { return Ok(None) };
    let mut saved = [0; ROOM as usize];
    memory::read(run.pid(), stack, &mut saved)?;
    let exit = Registers { rip: foothold.syscall, rsp: stack + ROOM - 64, rax: libc::SYS_exit as u64, rdi: 0, ..run.armed() };
    memory::write(run.pid(), stack, &SignalFrame::new(&exit, ALL_SIGNALS, &[], trampoline).at(stack))?;
    let made = born(run, &exit, (stack, threads));
    memory::write(run.pid(), stack, &saved)?;
    made
}

/// Whether a process has descriptors of POSIX message queues. The kernel copies some descriptors only to close them again
/// (its smallest table has 64), and takes a process that closes a queue to want no notice of it any more (mq_notify(3)).
fn may_have_queues(pid: i32) -> bool {
    const MQUEUE_MAGIC: FsType = FsType(0x1980_0202);
    let is_queue = |fd: i32| statfs(format!("/proc/{pid}/fd/{fd}").as_str()).is_ok_and(|s| s.filesystem_type() == MQUEUE_MAGIC);
    (0..256).any(is_queue)
}

/// Lets the thread be born, make what it is for, and end.
fn born(run: &mut Injector<'_>, exit: &Registers, (stack, threads): (u64, &[i32])) -> Result<Option<OwnedFd>> {
    if run.call(libc::SYS_clone, [THREAD as u64, stack, 0, 0, 0, 0])? < 0 {
        return Ok(None);
    }
    let tid = read::tasks(run.pid())?.into_iter().find(|tid| !threads.contains(tid));
    let Some(tid) = tid else { return Err(Error::new(Kind::NotFound, "a thread that was just born has gone")) };
    let guest = Guest { tid, armed: Registers { rsp: stack, orig_rax: u64::MAX, ..*exit } };
    until(tid, Status::Stop).context(|| guest.doing("beginning"))?;
    let made = guest.make();
    // Whatever became of it: it ends.
    guest.end()?;
    made
}

struct Guest {
    tid: i32,
    armed: Registers,
}

impl Guest {
    fn doing(&self, what: &str) -> String {
        format!("{what} thread {} that meio made", self.tid)
    }

    fn make(&self) -> Result<Option<OwnedFd>> {
        if self.call(libc::SYS_close_range, [0, u64::from(u32::MAX), UNSHARE])? != 0 {
            return Ok(None);
        }
        let fd = self.call(libc::SYS_userfaultfd, [FLAGS as u64, 0, 0])?;
        if fd < 0 {
            return Ok(None);
        }
        Ok(anon::pidfd(self.tid, PIDFD_THREAD).and_then(|handle| task::get_fd(&handle, fd as i32)).ok())
    }

    fn call(&self, number: i64, args: [u64; 3]) -> Result<i64> {
        let regs = Registers { rax: number as u64, rdi: args[0], rsi: args[1], rdx: args[2], ..self.armed };
        let run = || -> Result<i64> {
            ptrace::set_registers(self.tid, &regs)?;
            for _ in 0..2 {
                ptrace::syscall(self.tid)?;
                until(self.tid, Status::Syscall)?;
            }
            Ok(ptrace::registers(self.tid)?.rax as i64)
        };
        run().context(|| self.doing("running a call in"))
    }

    fn end(&self) -> Result<()> {
        let run = || -> Result<()> {
            ptrace::set_registers(self.tid, &self.armed)?;
            ptrace::cont(self.tid, 0)?;
            loop {
                match ptrace::wait(self.tid)? {
                    Status::Ended(_) => return Ok(()),
                    _ => ptrace::cont(self.tid, 0)?,
                }
            }
        };
        run().context(|| self.doing("ending"))
    }
}

/// Waits for a stop of this kind.
fn until(tid: i32, stop: Status) -> Result<()> {
    match ptrace::wait(tid)? {
        status if status == stop => Ok(()),
        Status::GroupStop(_) if stop == Status::Stop => Ok(()),
        Status::Ended(_) => Err(Error::new(Kind::NotFound, format!("task {tid} was killed"))),
        status => Err(Error::other(format!("task {tid} stopped unexpectedly: {status:?}"))),
    }
}
