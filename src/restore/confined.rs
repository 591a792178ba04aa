//! Processes that are born in a user namespace of the tree, since their pid namespace is owned by it: what `unshare -Urpf`
//! and containers without root make.
//!
//! A pid namespace belongs to the user namespace of who made it, and only who rules over a pid namespace may choose
//! numbers in it. So the first process is born from a helper that has gone into the user namespace; its number outside,
//! which its parent knows it by, is had by counting up to it. Those below choose their numbers inside only, and have the one
//! outside in the same way.

use super::births::{Births, Born};
use super::places::Places;
use super::skeleton::lost;
use super::users;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::resource::Tree;
use crate::resource::process::Process;
use crate::resource::thread::Thread;
use crate::sys::namespace::Kind;
use crate::sys::proc::{read, status};
use crate::tracee::stub::{self, Stub};
use std::collections::HashMap;

/// Numbers are taken by others, too.
const TRIES: usize = 64;

/// The user namespace that all stubs are born in: the one that owns the tree's own pid namespace.
pub fn born_in(tree: &Tree) -> Option<u32> {
    tree.base().and_then(|base| tree.namespaces.get(base as usize)).and_then(|base| base.owner)
}

/// The user namespace that owns the pid namespace of a process, when that is nested in the base and its owner is another.
pub fn owner(tree: &Tree, process: &Process) -> Option<u32> {
    let here = process.places.of(&tree.namespaces, Kind::Pid).filter(|id| Some(*id) != tree.base())?;
    tree.namespaces.get(here as usize)?.owner.filter(|owner| Some(*owner) != born_in(tree))
}

/// A process and its forebears. As many as there are processes: an image may go in circles.
fn line<'t>(tree: &'t Tree, process: &'t Process) -> impl Iterator<Item = &'t Process> {
    let parent = |p: &&'t Process| tree.processes.iter().find(|q| q.pid == p.ppid);
    std::iter::successors(Some(process), parent).take(tree.processes.len())
}

/// The user namespace that a process is born in, unless that is meio's or the root's; and how many pid namespaces below the
/// base the outermost one is over which it rules there.
fn home(tree: &Tree, process: &Process) -> Option<(u32, usize)> {
    let mut home = None;
    for p in line(tree, process).take_while(|p| p.level() > 0) {
        match (owner(tree, p), home) {
            (Some(user), None) => home = Some((user, p.level())),
            (Some(user), Some((own, _))) if user == own => home = Some((own, p.level())),
            (_, Some(_)) => break,
            (None, None) => {}
        }
    }
    home
}

/// Whether a process is born in a user namespace of the tree that not all are born in.
pub fn is(tree: &Tree, process: &Process) -> bool {
    home(tree, process).is_some()
}

/// The user namespace that a process is born in.
pub fn birthplace(tree: &Tree, process: &Process) -> Option<u32> {
    home(tree, process).map(|home| home.0).or_else(|| born_in(tree))
}

/// Those of the numbers of one of its tasks, the innermost first, that may be chosen.
pub fn choosable<'n>(tree: &Tree, process: &Process, numbers: &'n [i32]) -> &'n [i32] {
    match home(tree, process) {
        Some((_, level)) => &numbers[..numbers.len().min(process.level() + 1 - level.min(process.level()))],
        None => numbers,
    }
}

/// A number that cannot be chosen: which it shall be, and how many pid namespaces above the own one.
pub type Wanted = (i32, usize);

/// Prepares a birth by a stub that cannot choose the numbers outside: of a process or one of its threads, with these numbers,
/// the innermost first. The numbers that can be had.
pub fn prepare(tree: &Tree, process: &Process, numbers: &[i32], stubs: &HashMap<i32, Stub>) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (above, &number) in numbers.iter().enumerate().skip(choosable(tree, process, numbers).len()) {
        // Somebody who rules over that pid namespace, since he was born in it.
        let level = process.level() - above.min(process.level());
        let ruler = line(tree, process).skip(1).find(|p| p.level() == level).and_then(|p| stubs.get(&p.pid));
        if let Some(ruler) = ruler
            && count_to(ruler, number - 1)?
        {
            wanted.push((number, above));
        }
    }
    Ok(wanted)
}

/// Whether a new task has got the numbers.
fn got(task: i32, wanted: &[Wanted]) -> Result<bool> {
    let numbers = read::parsed(task, "status", status::parse)?.ns_pid;
    Ok(wanted.iter().all(|&(number, above)| numbers.iter().rev().nth(above) == Some(&number)))
}

/// Makes the threads of a process but the first, by their number in the image.
pub fn bear_threads(tree: &Tree, process: &Process, stub: &Stub, stubs: &HashMap<i32, Stub>) -> Result<Vec<(i32, Stub)>> {
    let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    let inside = is(tree, process);
    let others: Vec<&Thread> = process.threads.iter().skip(1).collect();
    let mut births = Vec::new();
    let mut script = stub.script();
    for thread in &others {
        let numbers = thread.numbers();
        if inside {
            births.extend(std::mem::replace(&mut script, stub.script()).run()?.births);
            prepare(tree, process, &numbers, stubs)?;
        }
        script.clone_task(flags as u64, 0, choosable(tree, process, &numbers), thread.own_number())?;
    }
    births.extend(script.run()?.births);
    others.iter().zip(births).map(|(thread, born)| Ok((thread.tid, stub.born(born, true)?))).collect()
}

/// Lets the next number in the pid namespace of a stub be the one behind `last`, unless somebody else is faster. False
/// where it cannot: there is no proc file system.
pub fn count_to(stub: &Stub, last: i32) -> Result<bool> {
    if read::namespace(stub.pid, "pid")? == read::namespace(std::process::id() as i32, "pid")? {
        return Ok(std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string()).is_ok());
    }
    let mut script = stub.script();
    let path = script.text(b"/proc/sys/kernel/ns_last_pid");
    script.attempt("open", libc::SYS_open, &[path, (libc::O_WRONLY | libc::O_CLOEXEC) as u64])?;
    let Some(&fd @ 0..) = script.run()?.results.last() else { return Ok(false) };
    let mut script = stub.script();
    let text = last.to_string();
    let at = script.data(text.as_bytes());
    script.attempt("write", libc::SYS_write, &[fd as u64, at, text.len() as u64])?;
    script.call("close", libc::SYS_close, &[fd as u64])?;
    Ok(script.run()?.results.first() == Some(&(text.len() as i64)))
}

impl Births<'_> {
    /// Bears the first process of a pid namespace that a user namespace owns. The parent is outside of both.
    pub(super) fn bear_confined(
        &mut self,
        child: &Process,
        user: u32,
        stubs: &HashMap<i32, Stub>,
        tree: &Tree,
        places: &Places<'_>,
    ) -> Result<()> {
        self.flush()?;
        let Some(number) = child.number(self.parent.level()) else { return Err(lost()) };
        let numbers = child.numbers();
        for _ in 0..TRIES {
            let (seen, helper) = self.clone_from(self.stub, 0, child.exit_signal)?;
            let helper = self.stub.born(helper, false)?;
            users::enter_from(tree, places, child, (birthplace(tree, self.parent), user), &helper)?;
            let mut script = helper.script();
            script.call("unshare", libc::SYS_unshare, &[libc::CLONE_NEWPID as u64])?;
            script.run()?;
            let wanted = prepare(tree, child, &numbers, stubs)?;
            let (child_seen, born) = self.clone_from(&helper, libc::CLONE_PARENT as u64, 0)?;
            stub::end(&helper);
            let right = child_seen == i64::from(number) && got(born, &wanted)?;
            let mut leave = vec![seen];
            if right {
                self.born.push(Born::Seen(Box::new(helper.born(born, false)?)));
            } else {
                stub::end(&helper.born(born, false)?);
                leave.push(child_seen);
            }
            let mut script = self.stub.script();
            for number in leave {
                script.expect("wait4", number as u64, libc::SYS_wait4, &[number as u64, 0, libc::__WALL as u64, 0])?;
            }
            script.run()?;
            if right {
                // The parent may look at it only where that is a question of their user namespaces, not of their memory, which
                // is of meio's: for this moment.
                let nested = is(tree, self.parent);
                if nested {
                    dumpable(&helper, born, true)?;
                }
                self.children_go_there(child, number, tree)?;
                self.flush()?;
                return if nested { dumpable(&helper, born, false) } else { Ok(()) };
            }
        }
        Err(crowded(child))
    }

    /// Bears a child below such a process.
    pub(super) fn bear_below(&mut self, child: &Process, flags: u64, seen: i32, stubs: &HashMap<i32, Stub>, tree: &Tree) -> Result<()> {
        self.flush()?;
        let numbers = child.numbers();
        for _ in 0..TRIES {
            // Where there is no proc file system outside, nobody there can know its number.
            let wanted = prepare(tree, child, &numbers, stubs)?;
            let mut script = self.stub.script();
            script.clone_task(flags, child.exit_signal, choosable(tree, child, &numbers), seen)?;
            let born = *script.run()?.births.first().ok_or_else(lost)?;
            if got(born, &wanted)? {
                self.born.push(Born::Fresh(born));
                return Ok(());
            }
            stub::end(&self.stub.born(born, false)?);
            let mut script = self.stub.script();
            script.expect("wait4", seen as u64, libc::SYS_wait4, &[seen as u64, 0, libc::__WALL as u64, 0])?;
            script.run()?;
        }
        Err(crowded(child))
    }

    /// A child of a stub (or, with `CLONE_PARENT`, a sibling): its number for the stub, and for meio.
    fn clone_from(&self, stub: &Stub, flags: u64, exit_signal: i32) -> Result<(i64, i32)> {
        let mut script = stub.script();
        let args = script.data(&[flags, 0, 0, 0, exit_signal as u64, 0, 0, 0].map(u64::to_le_bytes).concat());
        script.call("clone3", libc::SYS_clone3, &[args, 64])?;
        let ran = script.run().context(|| "bearing the first process of a pid namespace")?;
        Ok((*ran.results.last().ok_or_else(lost)?, *ran.births.first().ok_or_else(lost)?))
    }
}

/// Whether others than root may look at a stub.
fn dumpable(like: &Stub, tid: i32, on: bool) -> Result<()> {
    let stub = Stub { tid, pid: tid, ..*like };
    let mut script = stub.script();
    script.call("prctl PR_SET_DUMPABLE", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, u64::from(on), 0, 0, 0])?;
    script.run().map(drop)
}

fn crowded(child: &Process) -> Error {
    let message = format!("process {} cannot have its number: others take it all the time", child.pid);
    Error::new(Failure::Unsupported, message).help("try again, or use --pid-namespace")
}

/// Whether a stub lives in that user namespace already.
pub fn lives_in(stub: &Stub, places: &Places<'_>, user: u32) -> Result<bool> {
    let wanted = crate::sys::namespace::identity(places.fd(Some(user), Kind::User)?)?;
    Ok(read::namespace(stub.pid, "user")? == wanted)
}

/// The number in the base of the group of a stub, by all stubs and how deep the base is.
pub fn group_of<'s>(stub: &Stub, mut stubs: impl Iterator<Item = (&'s i32, &'s Stub)>, depth: usize) -> Result<i32> {
    let status = read::parsed(stub.pid, "status", status::parse)?;
    // Those that could not choose their number in the base have another one there.
    let leader = status.ns_pgid.first().and_then(|group| stubs.find(|(_, stub)| stub.pid == *group));
    Ok(leader.map_or_else(|| status.ns_pgid.get(depth).copied().unwrap_or(0), |(pid, _)| *pid))
}
