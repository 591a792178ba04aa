//! The restore screenplay: read, plant, rebuild, release.

mod check;
mod fill;
mod foreground;
mod layout;
mod namespace;
mod pool;
mod skeleton;
mod terminal;

use crate::error::{Context, Error, Kind, Result};
use crate::image::Reader;
use crate::progress::{Report, phase};
use crate::resource::credentials::Credentials;
use crate::resource::descriptor::FileKind;
use crate::resource::process::{Process, State};
use crate::resource::{Manifest, Tree, signals, timers::Timers};
use crate::sys::guardian::Guardian;
use crate::sys::proc::{read, status};
use crate::sys::spawn::{Birth, spawn, stub_program};
use crate::sys::{arch, file, ptrace, signal, task};
use crate::tracee::stub::{Gadget, ROOM, Stub};
use namespace::Namespace;
use nix::errno::Errno;
use pool::Pool;
use skeleton::Skeleton;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;
use std::{path::PathBuf, process::ExitStatus, time::Duration};
use terminal::Terminals;

/// Where the image comes from.
#[derive(Debug, Clone)]
pub enum Input {
    /// From this file.
    Path(PathBuf),
    /// From standard input.
    Stdin,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the image comes from.
    pub input: Input,
    /// Return as soon as the tree runs.
    pub detach: bool,
    /// Write the root's pid here.
    pub pidfile: Option<PathBuf>,
    /// Restore into a fresh pid namespace.
    pub pid_namespace: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Pid of the tree's root as the caller sees it.
    pub root_pid: i32,
    /// Time until the tree ran.
    pub total: Duration,
    /// How the root ended (foreground only).
    pub exit: Option<ExitStatus>,
    /// What is different than before.
    pub warnings: Vec<String>,
    /// Each phase and its time.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Brings the tree of an image back.
///
/// Guarantee: until everything is in place nothing of the tree runs, and whatever fails, and whenever meio dies,
/// nothing of it is left: all its processes die with meio until they are let go together.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let begin = Instant::now();
    let mut phases = Vec::new();
    signal::catch();
    let mut reader = open(&options.input)?;
    let manifest: Manifest = reader.manifest()?;
    let tree: Tree = reader.tree()?;
    phase(report, &mut phases, "check", |_| check::check(&manifest, &tree, options.pid_namespace))?;
    let terminals = Terminals::prepare(&tree, options.detach)?;
    let mut warnings = terminals.warnings.clone();
    crate::sys::workers::start()?;
    let mut pool = phase(report, &mut phases, "files", |_| Pool::open(&tree, &terminals))?;
    let namespace = if options.pid_namespace { Some(Namespace::new()?) } else { None };

    let mut planted = phase(report, &mut phases, "processes", |report| {
        // A pid that has just been given up is in use for an instant longer than /proc shows it.
        let mut tries = 0;
        loop {
            match Planted::plant(&tree, &terminals, namespace.as_ref(), options.detach) {
                Err(e) if e.message.contains("EEXIST") && tries < 5 && namespace.is_none() => {
                    end_all();
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(2 << tries));
                }
                Err(e) => {
                    end_all();
                    return Err(e);
                }
                Ok(planted) => {
                    let (tasks, processes) = (planted.threads.len(), tree.processes.len());
                    report.note(&format!("tasks that were made: {tasks}; processes: {processes}"));
                    return Ok(planted);
                }
            }
        }
    })?;
    let result = planted.rebuild(&mut reader, &mut pool, &terminals, report, &mut phases, &mut warnings);
    if let Err(e) = result {
        drop(namespace);
        planted.destroy();
        return Err(e);
    }
    let root = planted.root();
    if let Some(path) = &options.pidfile
        && let Err(e) = std::fs::write(path, format!("{root}\n")).context(|| format!("writing {}", path.display()))
    {
        drop(namespace);
        planted.destroy();
        return Err(e);
    }
    if let Err(e) = planted.entrust() {
        drop(namespace);
        planted.destroy();
        return Err(e);
    }
    if let Some(namespace) = namespace {
        namespace.keep();
    }
    report.clear();
    let session = foreground::Session::begin(&terminals, &tree, root, options.detach);
    drop(pool);
    planted.release();
    let total = begin.elapsed();
    let exit = if options.detach { None } else { Some(session.serve(root, terminals)?) };
    Ok(Outcome { root_pid: root, total, exit, warnings, phases })
}

fn open(input: &Input) -> Result<Reader<'static>> {
    match input {
        Input::Stdin => Reader::open(std::io::stdin(), arch::MACHINE),
        Input::Path(path) => {
            let file = File::open(path).map_err(|e| {
                let kind = match e.kind() {
                    std::io::ErrorKind::NotFound => Kind::NotFound,
                    std::io::ErrorKind::PermissionDenied => Kind::Permission,
                    _ => Kind::Other,
                };
                Error::new(kind, format!("cannot open image {}: {e}", path.display()))
            })?;
            Reader::from_file(file, arch::MACHINE).context(|| path.display())
        }
    }
}

/// All tasks of the tree, stopped, on their way from stubs to what they were.
struct Planted<'t> {
    tree: &'t Tree,
    skeleton: Skeleton<'t>,
    /// Stub of each thread, by its tid in the image.
    threads: HashMap<i32, Stub>,
}

impl<'t> Planted<'t> {
    /// Makes all processes and threads.
    fn plant(tree: &'t Tree, terminals: &Terminals, namespace: Option<&Namespace>, detach: bool) -> Result<Self> {
        let gadget = layout::gadget(tree)?;
        let root = plant_root(tree, gadget, terminals, namespace, detach)?;
        let controlling = terminals.session.and_then(|s| Some((s.0, terminals.slave.as_ref()?.as_raw_fd())));
        let skeleton = Skeleton::grow(tree, root, controlling)?;
        let mut threads = HashMap::new();
        for process in &tree.processes {
            let stub = skeleton.stubs[&process.pid];
            threads.insert(process.pid, stub);
            let others: Vec<i32> = process.threads.iter().skip(1).map(|t| t.tid).collect();
            let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
            let mut script = stub.script();
            for &tid in &others {
                script.clone_task(flags as u64, 0, tid)?;
            }
            for (tid, born) in others.iter().zip(script.run()?.births) {
                threads.insert(*tid, stub.born(born, true)?);
            }
        }
        skeleton.settle()?;
        Ok(Planted { tree, skeleton, threads })
    }

    fn root(&self) -> i32 {
        self.skeleton.stubs[&self.tree.processes[0].pid].pid
    }

    fn living(&self) -> impl Iterator<Item = &'t Process> {
        self.tree.processes.iter().filter(|p| !matches!(p.state, State::Zombie(_)))
    }

    /// Memory, then everything else, up to the last registers.
    fn rebuild(
        &mut self,
        reader: &mut Reader<'_>,
        pool: &mut Pool,
        terminals: &Terminals,
        report: &mut dyn Report,
        phases: &mut Vec<(&'static str, Duration)>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        phase(report, phases, "layout", |_| {
            self.living().try_for_each(|p| {
                let Some(space) = &p.memory else { return Ok(()) };
                layout::build(&self.skeleton.stubs[&p.pid], space, pool).context(|| format!("process {}", p.pid))
            })
        })?;
        phase(report, phases, "memory", |report| {
            let pids = self.skeleton.stubs.iter().map(|(&pid, stub)| (pid, stub.pid)).collect();
            let targets = fill::Targets::new(self.tree, &pids, pool)?;
            fill::fill(reader, &targets, |bytes| {
                report.bytes(bytes, None);
                signal::check_interrupted()
            })
        })?;
        pool.seal(self.tree)?;
        pool.close_writers();
        phase(report, phases, "state", |_| {
            let own = own_credentials()?;
            let chosen = Timers::ids_can_be_chosen();
            let made = deleted_folders(self.tree)?;
            let result = self.living().try_for_each(|p| self.finish(p, pool, terminals, &own, chosen, warnings));
            for folder in made.iter().rev() {
                let _ = std::fs::remove_dir(folder);
            }
            result
        })
    }

    /// Everything of one process that is not memory content.
    fn finish(
        &self,
        process: &Process,
        pool: &Pool,
        terminals: &Terminals,
        own: &Credentials,
        chosen_timers: bool,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let stub = &self.skeleton.stubs[&process.pid];
        let mut script = stub.script();
        process.tell(&mut script)?;
        process.fs.tell(&mut script)?;
        if let (Some((session, foreground)), Some(slave)) = (terminals.session, &terminals.slave)
            && session == process.pid
            && self.tree.processes.iter().any(|p| p.pgid == foreground)
        {
            let at = script.data(&foreground.to_le_bytes());
            script.call("ioctl TIOCSPGRP", libc::SYS_ioctl, &[slave.as_raw_fd() as u64, libc::TIOCSPGRP, at])?;
        }
        descriptors(&mut script, self.tree, process, pool)?;
        if let Some(space) = &process.memory {
            layout::finish(&mut script, space, pool)?;
        }
        process.signals.tell(&mut script)?;
        process.timers.create(&mut script, chosen_timers)?;
        script.call("close_range", libc::SYS_close_range, &[pool.base() as u64, u64::from(u32::MAX), 0])?;
        // After the pool has gone: closing any descriptor of a file drops the process's record locks on it.
        for (d, lock) in process.descriptors.iter().flat_map(|d| d.locks.iter().map(move |lock| (d, lock))) {
            let at = script.data(&lock.to_flock());
            script.call("fcntl F_SETLK", libc::SYS_fcntl, &[d.fd as u64, libc::F_SETLK as u64, at])?;
        }
        script.run()?;
        warnings.extend(process.apply(stub.pid));
        for thread in &process.threads {
            let stub = &self.threads[&thread.tid];
            warnings.extend(thread.sched.apply(stub.tid, thread.tid));
            stub.block_signals()?;
            let mut script = stub.script();
            thread.tell(&mut script)?;
            thread.credentials.tell(&mut script, own)?;
            thread.tell_last(&mut script)?;
            signals::queue(&mut script, &thread.pending, process.pid, Some(thread.tid))?;
            if thread.tid == process.pid {
                signals::queue(&mut script, &process.signals.pending, process.pid, None)?;
                // Identity changes make a process undumpable.
                if process.dumpable <= 1 {
                    script.call("prctl PR_SET_DUMPABLE", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, u64::from(process.dumpable), 0, 0, 0])?;
                }
                process.timers.arm(&mut script)?;
            }
            script.run()?;
        }
        let mut entered = HashMap::new();
        for thread in &process.threads {
            let stub = &self.threads[&thread.tid];
            if let Some(registers) = thread.enter_wait(stub).context(|| format!("resuming the wait of task {}", thread.tid))? {
                entered.insert(thread.tid, registers);
            }
        }
        stub.vanish()?;
        for thread in &process.threads {
            thread.finish(self.threads[&thread.tid].tid, entered.get(&thread.tid).copied())?;
        }
        Ok(())
    }

    /// From here on the tree outlives meio, all of it or nothing: a task that is not let go below, because that fails or
    /// meio is killed just then, is let go by the kernel, not killed.
    fn entrust(&self) -> Result<()> {
        let pids: Vec<i32> = self.living().map(|p| self.skeleton.stubs[&p.pid].pid).collect();
        // The threads of one process end together anyway.
        let guardian = if pids.len() > 1 { Some(Guardian::post(&pids)?) } else { None };
        let outlive = || -> Result<()> {
            self.living().flat_map(|p| &p.threads).try_for_each(|thread| {
                let tid = self.threads[&thread.tid].tid;
                ptrace::set_options(tid, 0).context(|| format!("letting go of task {}", thread.tid))
            })
        };
        let outlived = outlive();
        // In any case: meio answers for the tree itself when this has failed.
        let dismissed = guardian.map_or(Ok(()), Guardian::dismiss);
        outlived.and(dismissed)
    }

    /// Lets all tasks go on, children before their parents.
    fn release(&mut self) {
        for process in self.tree.processes.iter().rev() {
            for thread in process.threads.iter().rev() {
                let _ = ptrace::detach(self.threads[&thread.tid].tid);
            }
        }
    }

    /// Ends everything that was made.
    fn destroy(&mut self) {
        end_all();
    }
}

/// Ends all tracees and takes their reports.
fn end_all() {
    loop {
        match ptrace::poll(-1) {
            Ok(Some((_, ptrace::Status::Ended(_)))) => {}
            Ok(Some((tid, _))) => {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(tid), nix::sys::signal::SIGKILL);
            }
            Ok(None) => {
                // Those that stand still have reported long ago: ask /proc whom we trace.
                let own = std::process::id() as i32;
                let mine = task::tracees(own);
                if mine.is_empty() {
                    return;
                }
                for pid in mine {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(_) => return,
        }
    }
}

/// The first stub, from which all others are born.
fn plant_root(tree: &Tree, gadget: Gadget, terminals: &Terminals, namespace: Option<&Namespace>, detach: bool) -> Result<Stub> {
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
        Errno::EEXIST => Error::other(format!("pid {} has just been taken by another process (EEXIST)", root.pid)).help("try again, or use --pid-namespace"),
        Errno::EPERM => Error::new(Kind::Permission, format!("may not choose pid {}", root.pid)).help("run meio as root, or give it CAP_CHECKPOINT_RESTORE"),
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

/// Brings every descriptor to its number and closes all others below the pool.
fn descriptors(script: &mut crate::tracee::stub::Script<'_>, tree: &Tree, process: &Process, pool: &Pool) -> Result<()> {
    let mut table: Vec<_> = process.descriptors.iter().collect();
    table.sort_by_key(|d| d.fd);
    let mut next = 0;
    for d in table {
        if d.fd > next {
            script.call("close_range", libc::SYS_close_range, &[next as u64, d.fd as u64 - 1, 0])?;
        }
        next = d.fd + 1;
        let cloexec = if d.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        script.expect("dup3", d.fd as u64, libc::SYS_dup3, &[pool.file(d.file)? as u64, d.fd as u64, cloexec])?;
    }
    for d in &process.descriptors {
        let file = tree.files.get(d.file as usize);
        // Once, by the first process that holds it.
        if let Some(FileKind::Epoll(epoll)) = file.map(|f| &f.kind)
            && epoll.first == (process.pid, d.fd)
        {
            epoll.tell(script, d.fd)?;
        }
    }
    if next < pool.base() {
        script.call("close_range", libc::SYS_close_range, &[next as u64, pool.base() as u64 - 1, 0])?;
    }
    Ok(())
}

/// Makes current directories that had been removed, for the moment in which they are entered.
fn deleted_folders(tree: &Tree) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for p in tree.processes.iter().filter(|p| p.fs.cwd_deleted) {
        let path = p.fs.cwd.to_path_buf();
        match std::fs::create_dir(&path) {
            Ok(()) => made.push(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| format!("making the removed directory {} again", path.display())),
        }
    }
    Ok(made)
}

fn own_credentials() -> Result<Credentials> {
    let own = read::parsed(std::process::id() as i32, "status", status::parse)?;
    let mut credentials = Credentials::from_status(&own);
    credentials.securebits = task::securebits();
    Ok(credentials)
}
