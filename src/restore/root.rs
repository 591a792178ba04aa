//! The first process of a restored tree: made by meio itself, it executes the stub program and stops before the first instruction.

use super::namespace::Namespace;
use super::terminal::Terminals;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::sys::spawn::{Birth, spawn, stub_program};
use crate::sys::{file, ptrace};
use crate::tracee::stub::{Gadget, ROOM, Stub};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsFd;

/// The first stub, from which all others are born.
pub fn plant_root(tree: &Tree, gadget: Gadget, terminals: &Terminals, namespace: Option<&Namespace>, detach: bool) -> Result<Stub> {
    let root = &tree.processes[0];
    let program = file::memfd(b"meio-stub", libc::MFD_CLOEXEC).context(|| "making the stub")?;
    std::io::Write::write_all(&mut File::from(program.try_clone()?), &stub_program(gadget.base, ROOM))?;
    let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    if let Some(slave) = &terminals.slave {
        nix::fcntl::fcntl(slave.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    }
    let outside = root.sid != root.pid;
    let birth = Birth {
        pid: root.pid,
        program: &program,
        new_session: outside && detach,
        mounts: namespace.map(Namespace::mounts),
        gate: gate.as_fd(),
        gate_other_end: opener.as_fd(),
    };
    let born = spawn(&birth);
    if let Some(namespace) = namespace {
        namespace.leave()?;
    }
    let pid = born.map_err(|e| match e {
        Errno::EEXIST => Error::other(format!("pid {} has just been taken by another process (EEXIST)", root.pid))
            .help("try again, or use --pid-namespace"),
        Errno::EPERM => Error::new(Kind::Permission, format!("may not choose pid {}", root.pid))
            .help("run meio as root, or give it CAP_CHECKPOINT_RESTORE"),
        e => Error::from(e).context("making the first process"),
    })?;
    let run = || -> Result<Stub> {
        ptrace::seize(pid, Stub::OPTIONS | ptrace::EXEC)?;
        drop(opener);
        loop {
            match ptrace::wait(pid)? {
                ptrace::Status::Event(libc::PTRACE_EVENT_EXEC) => break,
                ptrace::Status::Ended(status) => return Err(Error::other(format!("the stub ended at once (status {status:#x})"))),
                _ => ptrace::cont(pid, 0)?,
            }
        }
        // Still inside of execve(2), whose result would overwrite a register: leave it first.
        ptrace::syscall(pid)?;
        while ptrace::wait(pid)? != ptrace::Status::Syscall {
            ptrace::syscall(pid)?;
        }
        ptrace::set_options(pid, Stub::OPTIONS)?;
        let stub = Stub { tid: pid, pid, gadget, registers: ptrace::registers(pid)? };
        stub.prepare()?;
        Ok(stub)
    };
    run().context(|| "starting the first process")
}
