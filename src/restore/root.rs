//! The first process of a restored tree: born of meio itself, it waits while meio opens what the tree has open, then
//! executes the stub program and stops before the first instruction.

use super::namespace::Namespace;
use super::places::Places;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::sys::namespace::Kind as Space;
use crate::sys::spawn::{Birth, spawn, stub_program};
use crate::sys::{file, ptrace, task};
use crate::tracee::stub::{Gadget, ROOM, Stub};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// The first process before it is a stub. It ends with meio.
pub struct Root {
    /// As meio sees it.
    pub pid: i32,
    gadget: Gadget,
    opener: OwnedFd,
    planted: bool,
    /// What it uses until it executes the program: it shares meio's descriptor table.
    _used: [OwnedFd; 3],
}

impl Root {
    /// Whether the root is the first process of the pid namespace that it lives in, and makes that anew.
    pub fn is_init(tree: &Tree) -> bool {
        tree.base().is_some() && tree.processes[0].pid == 1
    }

    /// Makes it. `users` has the user namespaces.
    pub fn bear(tree: &Tree, gadget: Gadget, users: &Places, namespace: Option<&Namespace>, detach: bool) -> Result<Root> {
        let root = &tree.processes[0];
        let program = file::memfd(b"meio-stub", libc::MFD_CLOEXEC).context(|| "making the stub")?;
        std::io::Write::write_all(&mut File::from(program.try_clone()?), &stub_program(gadget.base, ROOM))?;
        let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let meio = task::pidfd(std::process::id() as i32).context(|| "opening a pidfd of meio")?;
        let owner = tree.base().and_then(|base| tree.namespaces[base as usize].owner);
        let user = match (owner, root.threads.first()) {
            (Some(owner), Some(leader)) => {
                let identity = &leader.credentials;
                Some((users.fd(Some(owner), Space::User)?.as_fd(), identity.uid[1], identity.gid[1], identity.groups.as_slice()))
            }
            _ => None,
        };
        let birth = Birth {
            pid: root.pid,
            init: Root::is_init(tree),
            user,
            program: &program,
            new_session: root.sid != root.pid && detach,
            mounts: namespace.map(Namespace::mounts),
            gate: gate.as_fd(),
            meio: meio.as_fd(),
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
        let doing = || "starting the first process";
        ptrace::seize(pid, Stub::OPTIONS | ptrace::EXEC).context(doing)?;
        Ok(Root { pid, gadget, opener, planted: false, _used: [gate, program, meio] })
    }

    /// Lets it execute the stub program: it has a copy of meio's descriptors from here on.
    pub fn plant(mut self) -> Result<Stub> {
        let (pid, gadget) = (self.pid, self.gadget);
        let run = || -> Result<Stub> {
            nix::unistd::write(&self.opener, &[0])?;
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
        let stub = run().context(|| "starting the first process");
        self.planted = stub.is_ok();
        stub
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if !self.planted {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::SIGKILL);
            while !matches!(ptrace::wait(self.pid), Ok(ptrace::Status::Ended(_)) | Err(_)) {}
        }
    }
}
