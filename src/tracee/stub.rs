//! Stubs: processes that meio makes and fills. They run *scripts*: tables of system calls that a fixed loop of 42 bytes
//! executes without a stop in between. All logic stays outside. They die with meio (`PTRACE_O_EXITKILL`), so that
//! a restore that fails leaves nothing.

use super::ALL_SIGNALS;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::arch::Registers;
use crate::sys::ptrace::{self, Status};
use crate::sys::spawn::CloneArgs;
use crate::sys::{memory, task};
use nix::errno::Errno;

/// Room of a stub behind its code page, for tables and their data.
pub const ROOM: u64 = 4096 + OPS * 64 + DATA;
/// Entries of one table.
const OPS: u64 = 1024;
/// Bytes for arguments.
const DATA: u64 = 256 * 1024;

/// rbx points to the table, r12 counts its entries: number, six arguments, result.
const LOOP: [u8; 43] = [
    0x48, 0x8b, 0x03, // mov rax,[rbx]
    0x48, 0x8b, 0x7b, 0x08, // mov rdi,[rbx+8]
    0x48, 0x8b, 0x73, 0x10, // mov rsi,[rbx+16]
    0x48, 0x8b, 0x53, 0x18, // mov rdx,[rbx+24]
    0x4c, 0x8b, 0x53, 0x20, // mov r10,[rbx+32]
    0x4c, 0x8b, 0x43, 0x28, // mov r8,[rbx+40]
    0x4c, 0x8b, 0x4b, 0x30, // mov r9,[rbx+48]
    0x0f, 0x05, // syscall
    0x48, 0x89, 0x43, 0x38, // mov [rbx+56],rax
    0x48, 0x83, 0xc3, 0x40, // add rbx,64
    0x49, 0xff, 0xcc, // dec r12
    0x75, 0xd6, // jnz to the start
    0xcc, // int3
];
/// Offset of the `syscall` instruction in [`LOOP`].
const SYSCALL: u64 = 27;

/// The fixed places in all stubs of one restore: free in every address space of the image.
#[derive(Debug, Clone, Copy)]
pub struct Gadget {
    /// The stub program's own page; [`ROOM`] bytes follow.
    pub base: u64,
}

impl Gadget {
    /// First address of the anonymous part.
    pub fn start(self) -> u64 {
        self.base + 4096
    }
    /// First address behind it.
    pub fn end(self) -> u64 {
        self.start() + ROOM
    }
    fn table(self) -> u64 {
        self.start() + 4096
    }
    fn data(self) -> u64 {
        self.table() + OPS * 64
    }
}

/// One stopped task of a stub.
#[derive(Debug, Clone, Copy)]
pub struct Stub {
    /// Task id as meio sees it.
    pub tid: i32,
    /// Its process as meio sees it (the memory is reached by this).
    pub pid: i32,
    /// Where its scripts lie.
    pub gadget: Gadget,
    /// Registers to start from.
    pub registers: Registers,
}

/// How an entry's result is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Any failure ends the restore.
    Success,
    /// Failure is noted by the caller, or does not matter.
    Anything,
    /// Exactly this value.
    Value(u64),
}

/// A table of calls for one task. It is run whenever it is full, and by [`Script::run`].
pub struct Script<'s> {
    stub: &'s Stub,
    table: Vec<[u64; 8]>,
    notes: Vec<(&'static str, Expect)>,
    data: Vec<u8>,
    results: Vec<i64>,
    births: Vec<i32>,
}

/// A script that runs.
pub struct Started<'s>(Script<'s>);

/// What a run brought.
pub struct Ran {
    /// Result of every call since the last run, in order.
    pub results: Vec<i64>,
    /// Tasks that were born, as meio sees them; each is stopped.
    pub births: Vec<i32>,
}

impl Stub {
    /// Options of all stubs.
    pub const OPTIONS: i32 = ptrace::FOLLOW | ptrace::SYSGOOD | ptrace::EXITKILL;

    /// Puts the loop into a stub that stopped at the exit of execve(2).
    pub fn prepare(&self) -> Result<()> {
        memory::write(self.pid, self.gadget.start(), &LOOP).context(|| format!("preparing process {}", self.pid))
    }

    /// A task born from this one: the same place, its own registers.
    pub fn born(&self, tid: i32, thread: bool) -> Result<Stub> {
        // Its birth stop may still be on its way.
        loop {
            match ptrace::wait(tid).context(|| format!("waiting for new task {tid}"))? {
                Status::Stop => break,
                Status::Ended(_) => return Err(killed(tid)),
                _ => ptrace::cont(tid, 0)?,
            }
        }
        Ok(Stub { tid, pid: if thread { self.pid } else { tid }, ..*self })
    }

    /// An empty script.
    pub fn script(&self) -> Script<'_> {
        Script { stub: self, table: Vec::new(), notes: Vec::new(), data: Vec::new(), results: Vec::new(), births: Vec::new() }
    }

    /// Registers that run one call directly at the loop's `syscall` instruction.
    fn direct(&self, number: u64, args: [u64; 6]) -> Registers {
        Registers {
            rip: self.gadget.start() + SYSCALL,
            rax: number,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            orig_rax: u64::MAX,
            ..self.registers
        }
    }

    /// Starts a call that sleeps and interrupts it at once, so that the kernel keeps its deadline. The kernel's answer.
    /// `argument` is put at the start of the data area first.
    pub fn enter(&self, number: u64, args: [u64; 6], argument: &[u8]) -> Result<i64> {
        memory::write(self.pid, self.argument(), argument)?;
        ptrace::set_registers(self.tid, &self.direct(number, args))?;
        ptrace::syscall(self.tid)?;
        self.until(Status::Syscall, Resume::Syscall)?;
        ptrace::interrupt(self.tid)?;
        ptrace::cont(self.tid, 0)?;
        self.until(Status::Stop, Resume::Run)?;
        Ok(ptrace::registers(self.tid)?.rax as i64)
    }

    /// Makes one call, without a script: each of these ends in a trap, which takes what the program does with `SIGTRAP` away from a
    /// task that has the signal blocked or ignored. `argument` is put where [`Stub::argument`] says.
    pub fn call(&self, number: u64, args: [u64; 6], argument: &[u8]) -> Result<i64> {
        memory::write(self.pid, self.argument(), argument)?;
        ptrace::set_registers(self.tid, &self.direct(number, args))?;
        ptrace::syscall(self.tid)?;
        self.until(Status::Syscall, Resume::Syscall)?;
        ptrace::syscall(self.tid)?;
        self.until(Status::Syscall, Resume::Syscall)?;
        Ok(ptrace::registers(self.tid)?.rax as i64)
    }

    /// Where [`Stub::enter`] puts its argument.
    pub fn argument(&self) -> u64 {
        self.gadget.data()
    }

    /// Starts to take the stub's own memory away. Two steps follow, and a stop.
    fn unmap(&self) -> Result<()> {
        let length = self.gadget.end() - self.gadget.start();
        ptrace::set_registers(self.tid, &self.direct(libc::SYS_munmap as u64, [self.gadget.start(), length, 0, 0, 0, 0]))?;
        Ok(ptrace::syscall(self.tid)?)
    }

    fn enter_unmap(&self) -> Result<()> {
        self.until(Status::Syscall, Resume::Syscall)?;
        Ok(ptrace::syscall(self.tid)?)
    }

    fn leave_unmap(&self) -> Result<()> {
        self.until(Status::Syscall, Resume::Syscall)?;
        let result = ptrace::registers(self.tid)?.rax as i64;
        if result != 0 {
            return Err(Errno::from_raw(-result as i32).into());
        }
        // Stopped at the exit of munmap(2): the page is never executed again.
        ptrace::interrupt(self.tid)?;
        Ok(ptrace::cont(self.tid, 0)?)
    }

    /// Waits for a stop, swallowing signals meant for the stub.
    fn until(&self, wanted: Status, resume: Resume) -> Result<()> {
        loop {
            match ptrace::wait(self.tid)? {
                status if status == wanted => return Ok(()),
                Status::GroupStop(_) if wanted == Status::Stop => return Ok(()),
                Status::Ended(_) => return Err(killed(self.tid)),
                _ => match resume {
                    Resume::Syscall => ptrace::syscall(self.tid)?,
                    Resume::Run => ptrace::cont(self.tid, 0)?,
                },
            }
        }
    }

    /// No seccomp(2) filter is asked until the task is let go.
    pub fn suspend_seccomp(&self) -> Result<()> {
        let doing = || format!("keeping the seccomp filters of task {} out of force", self.tid);
        ptrace::set_options(self.tid, Stub::OPTIONS | ptrace::SUSPEND_SECCOMP).context(doing)
    }

    /// Blocks all signals, so that queued ones stay pending.
    pub fn block_signals(&self) -> Result<()> {
        ptrace::set_sigmask(self.tid, ALL_SIGNALS).map_err(Into::into)
    }
}

#[derive(Clone, Copy)]
enum Resume {
    Syscall,
    Run,
}

/// Runs scripts of tasks that have no memory in common: all are started before anyone is waited for.
pub fn run_together<'s>(scripts: impl Iterator<Item = Result<Script<'s>>>) -> Result<()> {
    let started: Vec<Started<'s>> = scripts.map(|script| script?.start()).collect::<Result<_>>()?;
    started.into_iter().try_for_each(|script| script.end().map(drop))
}

/// Takes the stubs' own memory away from all of these; each is stopped inside signal handling afterwards and must get its final
/// registers.
pub fn vanish_together<'s>(stubs: impl Iterator<Item = &'s Stub> + Clone) -> Result<()> {
    let each =
        |step: fn(&Stub) -> Result<()>| stubs.clone().try_for_each(|stub| step(stub).context(|| format!("finishing process {}", stub.pid)));
    each(Stub::unmap)?;
    each(Stub::enter_unmap)?;
    each(Stub::leave_unmap)?;
    each(|stub| stub.until(Status::Stop, Resume::Run))
}

impl<'s> Started<'s> {
    /// Waits for its end.
    pub fn end(self) -> Result<Ran> {
        let mut script = self.0;
        script.land()?;
        Ok(Ran { results: script.results, births: script.births })
    }
}

impl<'s> Script<'s> {
    /// Starts what is left.
    pub fn start(mut self) -> Result<Started<'s>> {
        self.launch()?;
        Ok(Started(self))
    }

    /// Copies bytes into the stub's argument area; their address there. Valid for the next call.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        self.stub.gadget.data() + at as u64
    }

    /// A path or name with its closing zero.
    pub fn text(&mut self, text: &[u8]) -> u64 {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// Appends a call that must succeed. `what` names it in an error.
    pub fn call(&mut self, what: &'static str, number: i64, args: &[u64]) -> Result<()> {
        self.push(what, number, args, Expect::Success)
    }

    /// Appends a call that must return exactly `value`.
    pub fn expect(&mut self, what: &'static str, value: u64, number: i64, args: &[u64]) -> Result<()> {
        self.push(what, number, args, Expect::Value(value))
    }

    /// Appends a call that may fail.
    pub fn attempt(&mut self, what: &'static str, number: i64, args: &[u64]) -> Result<()> {
        self.push(what, number, args, Expect::Anything)
    }

    /// Appends a clone3(2) with chosen ids, the innermost pid namespace first; the one that clone3 returns is `seen`.
    pub fn clone_task(&mut self, flags: u64, exit_signal: i32, ids: &[i32], seen: i32) -> Result<()> {
        let args = self.clone_args(flags, exit_signal, ids);
        self.expect("clone3 with its old id", seen as u64, libc::SYS_clone3, &args)
    }

    /// Appends a clone3(2) with a chosen id, which may be in use.
    pub fn attempt_clone(&mut self, flags: u64, exit_signal: i32, tid: i32) -> Result<()> {
        let args = self.clone_args(flags, exit_signal, &[tid]);
        self.attempt("clone3 with a chosen id", libc::SYS_clone3, &args)
    }

    fn clone_args(&mut self, flags: u64, exit_signal: i32, ids: &[i32]) -> [u64; 2] {
        let set_tid = self.data(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        let args = CloneArgs { flags, exit_signal: exit_signal as u64, set_tid, set_tid_size: ids.len() as u64, ..CloneArgs::default() };
        let words = [
            args.flags,
            args.pidfd,
            args.child_tid,
            args.parent_tid,
            args.exit_signal,
            args.stack,
            args.stack_size,
            args.tls,
            args.set_tid,
            args.set_tid_size,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        [self.data(&bytes), bytes.len() as u64]
    }

    fn push(&mut self, what: &'static str, number: i64, args: &[u64], expect: Expect) -> Result<()> {
        let mut entry = [0u64; 8];
        entry[0] = number as u64;
        entry[1..=args.len()].copy_from_slice(args);
        self.table.push(entry);
        self.notes.push((what, expect));
        if self.table.len() as u64 == OPS || self.data.len() as u64 > DATA / 2 {
            self.flush()?;
        }
        Ok(())
    }

    /// Runs what is left and hands over all results.
    pub fn run(self) -> Result<Ran> {
        self.start()?.end()
    }

    fn flush(&mut self) -> Result<()> {
        self.launch()?;
        self.land()
    }

    fn launch(&mut self) -> Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        let (stub, gadget) = (self.stub, self.stub.gadget);
        if self.data.len() as u64 > DATA {
            return Err(Error::other(format!("too much data for one call in process {}", stub.pid)));
        }
        let doing = || format!("running a script in task {}", stub.tid);
        let bytes: Vec<u8> = self.table.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
        memory::write(stub.pid, gadget.table(), &bytes).context(doing)?;
        memory::write(stub.pid, gadget.data(), &self.data).context(doing)?;
        let start =
            Registers { rip: gadget.start(), rbx: gadget.table(), r12: self.table.len() as u64, orig_rax: u64::MAX, ..stub.registers };
        ptrace::set_registers(stub.tid, &start).context(doing)?;
        ptrace::cont(stub.tid, 0).context(doing)
    }

    fn land(&mut self) -> Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        let (stub, gadget) = (self.stub, self.stub.gadget);
        let doing = || format!("running a script in task {}", stub.tid);
        loop {
            match ptrace::wait(stub.tid).context(doing)? {
                Status::Signal(libc::SIGTRAP) => break,
                Status::Ended(_) => return Err(killed(stub.tid)),
                Status::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE) => {
                    self.births.push(ptrace::event_message(stub.tid).context(doing)? as i32);
                }
                Status::Signal(fatal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGSYS | libc::SIGILL)) => {
                    return Err(Error::other(format!("the script in task {} failed with signal {fatal}", stub.tid)));
                }
                // SIGCHLD of helpers and zombies, meant for nobody.
                _ => {}
            }
            ptrace::cont(stub.tid, 0).context(doing)?;
        }
        let mut bytes = vec![0; self.table.len() * 64];
        memory::read(stub.pid, gadget.table(), &mut bytes).context(doing)?;
        for (entry, &(what, expect)) in bytes.chunks_exact(64).zip(&self.notes) {
            let word = |i: usize| u64::from_le_bytes(entry[i * 8..i * 8 + 8].try_into().unwrap_or_default());
            let result = word(7) as i64;
            let failed = match expect {
                Expect::Anything => false,
                Expect::Success => (-4095..0).contains(&result),
                Expect::Value(value) => result as u64 != value,
            };
            if failed {
                return Err(refused(stub.tid, what, result));
            }
            self.results.push(result);
        }
        self.table.clear();
        self.notes.clear();
        self.data.clear();
        Ok(())
    }
}

fn refused(tid: i32, what: &str, result: i64) -> Error {
    if !(-4095..0).contains(&result) {
        return Error::other(format!("rebuilding task {tid}: {what}: unexpected result {result:#x}"));
    }
    let e = Errno::from_raw(-result as i32);
    let kind = match Error::from(e).kind {
        kind @ (Kind::Permission | Kind::Kernel) => kind,
        _ => Kind::Other,
    };
    Error::new(kind, format!("rebuilding task {tid}: {what}: {e}"))
}

fn killed(tid: i32) -> Error {
    Error::other(format!("task {tid} was killed while it was being rebuilt"))
}

/// Ends a stub that was made for a moment and takes its report.
pub fn end(stub: &Stub) {
    let _ = task::tgkill(stub.pid, stub.tid, libc::SIGKILL);
    while !matches!(ptrace::wait(stub.tid), Ok(Status::Ended(_)) | Err(_)) {}
}

impl Stub {
    /// Starts exit_group(2); the end is reported to the caller's next wait.
    pub fn exit(&self, code: i32) -> Result<()> {
        ptrace::set_registers(self.tid, &self.direct(libc::SYS_exit_group as u64, [code as u64, 0, 0, 0, 0, 0]))?;
        ptrace::cont(self.tid, 0)?;
        Ok(())
    }

    /// Stops the stub by job control, with a signal that stops. Scripts can still be run; let go, it stays stopped.
    pub fn stop(&self, signal: i32) -> Result<()> {
        task::tgkill(self.pid, self.tid, signal)?;
        ptrace::cont(self.tid, 0)?;
        loop {
            match ptrace::wait(self.tid)? {
                Status::Signal(s) if s == signal => ptrace::cont(self.tid, signal)?,
                Status::GroupStop(_) => return Ok(()),
                Status::Ended(_) => return Err(killed(self.tid)),
                _ => ptrace::cont(self.tid, 0)?,
            }
        }
    }
}
