//! The barrier: stop every task of a tree so that nothing in it moves.
//!
//! Tasks are seized with the option to attach whatever they create, so a fork storm cannot
//! outrun us: each newly born task stops by itself. If a task does not stop (it sleeps
//! uninterruptibly, most often the parent of a vfork(2) child that has not called execve(2) yet),
//! everything is let go for a moment and tried again until the time is up.
//! If meio dies here, the kernel detaches and resumes every task unchanged.

use super::{Held, wait_time};
use crate::error::{Error, Kind, Refusal, Result};
use crate::sys::proc::{read, stat, status};
use crate::sys::ptrace::{self, Status};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// One process of a frozen tree.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent, 0 for the root.
    pub ppid: i32,
    /// Its stopped threads, the leader first; empty for a zombie.
    pub threads: Vec<Held>,
}

/// A tree in which nothing runs. Dropping it lets everything go on.
#[derive(Debug, Default)]
pub struct Frozen {
    /// Parents before children.
    pub processes: Vec<Process>,
}

impl Frozen {
    /// Lets the whole tree go on.
    pub fn release(mut self) {
        self.let_go();
    }

    fn let_go(&mut self) {
        // Children first: a parent that waits for them finds them running.
        for process in self.processes.drain(..).rev() {
            process.threads.into_iter().for_each(Held::release);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// What is known of a task while the barrier closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Asked,
    Stopped(Option<i32>),
}

#[derive(Default)]
struct Barrier {
    tasks: HashMap<i32, (i32, Task)>,
    /// pid → parent, in order of discovery.
    processes: Vec<(i32, i32)>,
    zombies: HashSet<i32>,
    waits: HashMap<i32, wait_time::Blocked>,
    /// Children of each process as they were listed last, when all of its threads were held already.
    listed: HashMap<i32, Vec<i32>>,
    /// Somebody was born of a held task, or has ended.
    moved: bool,
}

/// Stops every task of the tree below and including `root`.
///
/// # Errors
/// `Unsupported` with the tasks that did not stop within `patience`; `NotFound` when the
/// root ends meanwhile; `Permission` when a task may not be traced.
pub fn freeze(root: i32, patience: Duration) -> Result<Frozen> {
    let deadline = Instant::now() + patience;
    let mut attempt = Duration::from_millis(100);
    loop {
        let mut barrier = Barrier::default();
        let outcome = barrier.close(root, deadline.min(Instant::now() + attempt));
        match outcome {
            Ok(true) => return barrier.into_frozen(root),
            Ok(false) if Instant::now() < deadline => {
                barrier.abandon();
                std::thread::sleep(Duration::from_millis(5));
                attempt *= 2;
            }
            Ok(false) => {
                let stuck = barrier.stuck();
                barrier.abandon();
                return Err(Error::refused("cannot stop the tree", stuck));
            }
            Err(e) => {
                barrier.abandon();
                return Err(e);
            }
        }
    }
}

impl Barrier {
    /// Seizes and stops until a whole round finds nothing new. False when the time is up.
    fn close(&mut self, root: i32, deadline: Instant) -> Result<bool> {
        self.add_process(root, 0)?;
        loop {
            if !self.settle(deadline)? {
                return Ok(false);
            }
            if !self.discover(root)? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            crate::sys::signal::check_interrupted()?;
        }
    }

    fn add_process(&mut self, pid: i32, ppid: i32) -> Result<bool> {
        if self.processes.iter().any(|p| p.0 == pid) {
            return Ok(false);
        }
        self.processes.push((pid, ppid));
        self.add_threads(pid)?;
        Ok(true)
    }

    /// Seizes the threads of a process. Whether there was anything new, and all that there are.
    fn add_threads(&mut self, pid: i32) -> Result<(bool, Vec<i32>)> {
        // The kernel cuts the list off when the thread that it is just at ends. The count, the same before and after, says
        // whether it is whole.
        let before = read::task_count(pid);
        let listed = unless_gone(read::tasks(pid))?;
        let whole = before == read::task_count(pid) && before.is_none_or(|n| n == listed.len() as u64);
        let mut new = !whole;
        for &tid in &listed {
            if self.tasks.contains_key(&tid) || self.zombies.contains(&tid) {
                continue;
            }
            if let Some(wait) = wait_time::observe(pid, tid) {
                self.waits.insert(tid, wait);
            }
            match ptrace::seize(tid, ptrace::FOLLOW | ptrace::SYSGOOD) {
                Ok(()) => {
                    new = true;
                    self.tasks.insert(tid, (pid, Task::Asked));
                    // ESRCH: it ended between the two calls, its report is on the way.
                    if let Err(e) = ptrace::interrupt(tid)
                        && e != Errno::ESRCH
                    {
                        return Err(Error::from(e).context(format!("stopping task {tid}")));
                    }
                }
                Err(Errno::ESRCH) => {}
                // Born of a held parent and attached by the kernel, or left from the attempt before: its stop is on the way.
                Err(Errno::EPERM) if ours(tid) => {
                    new = true;
                    self.tasks.insert(tid, (pid, Task::Asked));
                }
                Err(Errno::EPERM) if self.note_zombie(pid, tid) => new = true,
                Err(e) => return Err(denied(e, pid, tid)),
            }
        }
        Ok((new, listed))
    }

    /// A task that cannot be seized because it has ended already.
    fn note_zombie(&mut self, _pid: i32, tid: i32) -> bool {
        let ended = ended(tid);
        if ended {
            self.zombies.insert(tid);
        }
        ended
    }

    /// Waits until every task that was asked has stopped. False when the time is up.
    fn settle(&mut self, deadline: Instant) -> Result<bool> {
        let mut nap = Duration::from_micros(5);
        let mut looked = false;
        loop {
            // One by one, they are found at once; asked for any, the kernel looks through all.
            let asked: Vec<i32> = self.tasks.iter().filter(|(_, t)| t.1 == Task::Asked).map(|(&tid, _)| tid).collect();
            if asked.is_empty() {
                break;
            }
            // Asked also while there are reports: a storm of births never lets them end. Who had no processor for all that time has
            // not seen yet whether they stopped.
            if looked && Instant::now() >= deadline {
                return Ok(false);
            }
            looked = true;
            let mut told = false;
            for tid in asked {
                match ptrace::poll(tid) {
                    Ok(Some((tid, status))) => self.report(tid, status)?,
                    Ok(None) => continue,
                    // Gone without a word, as the other threads of one that calls execve(2).
                    Err(Errno::ECHILD) => drop((self.tasks.remove(&tid), self.moved = true)),
                    Err(e) => return Err(e.into()),
                }
                told = true;
            }
            // Who was born meanwhile is known to nobody yet.
            match if told { Ok(None) } else { ptrace::poll(-1) } {
                Ok(Some((tid, status))) => {
                    self.report(tid, status)?;
                    continue;
                }
                Ok(None) => {}
                Err(Errno::ECHILD) => self.tasks.clear(),
                Err(e) => return Err(e.into()),
            }
            // They need a processor to stop on, maybe this one.
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_micros(if told { 100 } else { 1000 }));
            crate::sys::signal::check_interrupted()?;
        }
        Ok(true)
    }

    fn report(&mut self, tid: i32, status: Status) -> Result<()> {
        let pid = match self.tasks.get(&tid) {
            Some(&(pid, _)) => pid,
            // Born while we came, attached by the kernel.
            None => match read::parsed(tid, "status", status::parse).ok() {
                Some(s) if s.tgid != 0 => s.tgid,
                _ => return Ok(()),
            },
        };
        self.moved |= matches!(status, Status::Event(_) | Status::Ended(_));
        match status {
            Status::Stop => self.tasks.insert(tid, (pid, Task::Stopped(None))),
            Status::GroupStop(signal) => self.tasks.insert(tid, (pid, Task::Stopped(Some(signal)))),
            Status::Ended(_) => self.tasks.remove(&tid),
            // On its way: the stop that we asked for comes next. A signal is delivered as it would have been.
            Status::Signal(signal) => {
                self.tasks.insert(tid, (pid, Task::Asked));
                return resume(tid, signal);
            }
            Status::Event(_) | Status::Syscall | Status::Other => {
                self.tasks.insert(tid, (pid, Task::Asked));
                return resume(tid, 0);
            }
        };
        Ok(())
    }

    /// Looks for threads and children that are not known yet. Whether there may be more: a list of children loses some when
    /// one of them ends while it is read, so each is to be the same twice, without anybody having come or gone in between.
    fn discover(&mut self, root: i32) -> Result<bool> {
        let mut new = std::mem::take(&mut self.moved);
        let mut i = 0;
        while i < self.processes.len() {
            let pid = self.processes[i].0;
            i += 1;
            let (more, tids) = self.add_threads(pid)?;
            let children = unless_gone(read::children_of(pid, &tids))?;
            for &child in &children {
                new |= self.add_process(child, pid)?;
            }
            // What is born of held threads tells of itself.
            let before = if more { self.listed.remove(&pid) } else { self.listed.insert(pid, children.clone()) };
            new |= more || before.is_none_or(|before| before != children);
        }
        if !self.tasks.contains_key(&root) && !self.zombies.contains(&root) {
            return Err(Error::new(Kind::NotFound, format!("process {root} ended while it was being stopped")));
        }
        Ok(new)
    }

    fn stuck(&self) -> Vec<Refusal> {
        let mut stuck: Vec<_> = self.tasks.iter().filter(|(_, t)| t.1 == Task::Asked).collect();
        stuck.sort();
        stuck
            .into_iter()
            .map(|(tid, (pid, _))| {
                let state = read::parsed(*tid, "stat", stat::parse).ok().map_or('?', |s| s.state as char);
                let at = read::read(*tid, "wchan").map(|w| String::from_utf8_lossy(&w).into_owned()).unwrap_or_default();
                Refusal {
                    pid: *pid,
                    object: format!("task {tid}"),
                    reason: format!("does not stop: state {state}, waiting in the kernel at {at}"),
                    advice: "wait until it leaves the uninterruptible sleep, or give it longer with --freeze-timeout".into(),
                    ..Refusal::default()
                }
            })
            .collect()
    }

    /// Lets go of everything, stopped or not.
    fn abandon(self) {
        let mut asked = HashSet::new();
        for (&tid, &(_, task)) in &self.tasks {
            match task {
                Task::Stopped(_) => {
                    super::undo_interruption(tid);
                    let _ = ptrace::detach(tid);
                }
                Task::Asked => drop(asked.insert(tid)),
            }
        }
        // A task that has not stopped cannot be detached. What it waited for runs again now: wait for it shortly, then
        // leave it to the next attempt, or to the kernel, which detaches it unchanged when meio ends. What is born of it
        // meanwhile reports, too.
        let until = Instant::now() + Duration::from_millis(200);
        while !asked.is_empty() && Instant::now() < until {
            match ptrace::poll(-1) {
                Ok(Some((tid, Status::Signal(signal)))) => drop(resume(tid, signal)),
                Ok(Some((tid, status))) => {
                    asked.remove(&tid);
                    if !matches!(status, Status::Ended(_)) {
                        let _ = ptrace::detach(tid);
                    }
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        // Where the report of a stop was taken but not noted, there will be no other. One that has just stopped to receive a
        // signal is to receive it.
        for tid in asked {
            if let Ok(signal) = ptrace::delivered(tid) {
                let _ = ptrace::detach_with(tid, signal);
            }
        }
    }

    fn into_frozen(mut self, root: i32) -> Result<Frozen> {
        let mut by_process: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (&tid, &(pid, _)) in &self.tasks {
            by_process.entry(pid).or_default().push(tid);
        }
        let mut frozen = Frozen::default();
        for &(pid, ppid) in &self.processes {
            let mut tids = by_process.remove(&pid).unwrap_or_default();
            if tids.is_empty() && !(self.zombies.contains(&pid) && is_zombie(pid)) {
                continue; // ended while the barrier closed
            }
            // The leader first, then in order of birth.
            tids.sort_by_key(|&tid| (tid != pid, tid));
            let mut threads = Vec::with_capacity(tids.len());
            for tid in tids {
                let Task::Stopped(group) = self.tasks[&tid].1 else { continue };
                let mut held = match Held::new(pid, tid, group) {
                    Err(_) if pid != root && ended(tid) => continue, // killed while it was held
                    held => held?,
                };
                held.waiting = self.waits.remove(&tid);
                threads.push(held);
            }
            frozen.processes.push(Process { pid, ppid: if pid == root { 0 } else { ppid }, threads });
        }
        // Born of the tree, but handed to somebody outside of it when their parents ended: they are not the tree's any more.
        for tid in by_process.into_values().flatten() {
            let _ = ptrace::detach(tid);
        }
        Ok(frozen)
    }
}

/// Whether this thread traces a task already.
fn ours(tid: i32) -> bool {
    read::parsed(tid, "status", status::parse).is_ok_and(|s| s.tracer_pid == nix::unistd::gettid().as_raw())
}

/// Whether a task has ended, waited for or not.
fn ended(tid: i32) -> bool {
    read::parsed(tid, "stat", stat::parse).ok().is_none_or(|s| s.state == b'Z' || s.state == b'X')
}

/// Whether a process that had ended still waits for its parent to take notice.
fn is_zombie(pid: i32) -> bool {
    read::parsed(pid, "stat", stat::parse).is_ok_and(|s| s.state == b'Z')
}

fn resume(tid: i32, signal: i32) -> Result<()> {
    match ptrace::cont(tid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::from(e).context(format!("resuming task {tid}"))),
    }
}

/// What is to be seen of a process, which is nothing when it has ended. Any other failure would make the image incomplete.
fn unless_gone(seen: Result<Vec<i32>>) -> Result<Vec<i32>> {
    match seen {
        Err(e) if e.kind == Kind::NotFound => Ok(Vec::new()),
        seen => seen,
    }
}

fn denied(e: Errno, pid: i32, tid: i32) -> Error {
    let tracer = read::parsed(tid, "status", status::parse).map_or(0, |s| s.tracer_pid);
    if tracer != 0 {
        return Error::refused(
            "cannot stop the tree",
            vec![Refusal {
                pid,
                object: format!("task {tid}"),
                reason: format!("it is being traced by process {tracer}"),
                advice: "end the debugger or tracer first".into(),
                ..Refusal::default()
            }],
        );
    }
    Error::new(Kind::Permission, format!("may not trace task {tid} of process {pid}: {e}"))
        .help("run meio as root, or give it CAP_SYS_PTRACE")
}
