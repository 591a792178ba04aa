//! Processes that are born in a user namespace of the tree, since their pid namespace is owned by it: what `unshare -Urpf`
//! and containers without root make.
//!
//! A pid namespace belongs to the user namespace of who made it, and only who rules over a pid namespace may choose
//! numbers in it. So the first process is born from a helper that has gone into the user namespace; its number outside,
//! which its parent knows it by, is had by counting up to it. Those below choose their numbers inside only, and have the one
//! outside in the same way.

use super::births::Births;
use super::places::Places;
use super::skeleton::lost;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::resource::Tree;
use crate::resource::process::Process;
use crate::resource::thread::Thread;
use crate::sys::namespace::Kind;
use crate::sys::proc::{read, status};
use crate::tracee::stub::{self, Stub};
use std::collections::HashMap;
use std::os::fd::AsRawFd;

/// Numbers are taken by others, too.
const TRIES: usize = 64;

/// The user namespace that owns the pid namespace of a process, when that is nested in the base.
pub fn owner(tree: &Tree, process: &Process) -> Option<u32> {
    let here = process.places.of(&tree.namespaces, Kind::Pid).filter(|id| Some(*id) != tree.base())?;
    tree.namespaces.get(here as usize)?.owner
}

/// How many pid namespaces below the base the outermost one is that confines a process.
fn level(tree: &Tree, process: &Process) -> Option<usize> {
    let mut outermost = None;
    let mut at = Some(process);
    // As many steps as there are processes: an image may go in circles.
    for _ in 0..tree.processes.len() {
        let Some(p) = at.filter(|p| p.level() > 0) else { break };
        if owner(tree, p).is_some() {
            outermost = Some(p.level());
        }
        at = tree.processes.iter().find(|q| q.pid == p.ppid);
    }
    outermost
}

/// Whether a process is born in a user namespace of the tree.
pub fn is(tree: &Tree, process: &Process) -> bool {
    level(tree, process).is_some()
}

/// Those of the numbers of one of its tasks, the innermost first, that may be chosen.
pub fn choosable<'n>(tree: &Tree, process: &Process, numbers: &'n [i32]) -> &'n [i32] {
    match level(tree, process) {
        Some(level) => &numbers[..numbers.len().min(process.level() + 1 - level.min(process.level()))],
        None => numbers,
    }
}

/// The nearest forebear that is not born in a user namespace of the tree.
fn forebear<'t>(tree: &'t Tree, process: &Process) -> Option<&'t Process> {
    let parent = |pid: i32| tree.processes.iter().find(|p| p.pid == pid);
    std::iter::successors(parent(process.ppid), |p| parent(p.ppid)).take(tree.processes.len()).find(|p| !is(tree, p))
}

/// Prepares a birth by a stub that cannot choose the number outside: of a process or one of its threads, with these numbers, the
/// innermost first. The number that it shall get, and how many pid namespaces above its own.
pub fn prepare(tree: &Tree, process: &Process, numbers: &[i32], stubs: &HashMap<i32, Stub>) -> Result<Option<(i32, usize)>> {
    let Some(outer) = forebear(tree, process).filter(|_| is(tree, process)) else { return Ok(None) };
    let above = process.level().saturating_sub(outer.level());
    let (Some(&wanted), Some(stub)) = (numbers.get(above), stubs.get(&outer.pid)) else { return Ok(None) };
    Ok(count_to(stub, wanted - 1)?.then_some((wanted, above)))
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
    pub(super) fn bear_confined(&mut self, child: &Process, user: u32, tree: &Tree, places: &Places<'_>) -> Result<()> {
        self.flush()?;
        let Some(wanted) = child.number(self.parent.level()) else { return Err(lost()) };
        for _ in 0..TRIES {
            let (number, helper) = self.clone_from(self.stub, 0, child.exit_signal)?;
            let helper = self.stub.born(helper, false)?;
            let mut script = helper.script();
            if let Some(leader) = child.threads.first() {
                leader.credentials.tell_ids(&mut script)?;
            }
            let fd = places.fd(Some(user), Kind::User)?.as_raw_fd() as u64;
            script.call("setns of user", libc::SYS_setns, &[fd, Kind::User.flag() as u64])?;
            script.call("unshare", libc::SYS_unshare, &[libc::CLONE_NEWPID as u64])?;
            script.run()?;
            count_to(self.stub, wanted - 1)?;
            let (got, born) = self.clone_from(&helper, libc::CLONE_PARENT as u64, 0)?;
            stub::end(&helper);
            let mut leave = vec![number];
            if got == i64::from(wanted) {
                self.born.push(born);
            } else {
                stub::end(&helper.born(born, false)?);
                leave.push(got);
            }
            let mut script = self.stub.script();
            for number in leave {
                script.expect("wait4", number as u64, libc::SYS_wait4, &[number as u64, 0, libc::__WALL as u64, 0])?;
            }
            script.run()?;
            if got == i64::from(wanted) {
                return self.children_go_there(child, wanted, tree);
            }
        }
        Err(crowded(child))
    }

    /// Bears a child below such a process.
    pub(super) fn bear_below(&mut self, child: &Process, flags: u64, seen: i32, stubs: &HashMap<i32, Stub>, tree: &Tree) -> Result<()> {
        self.flush()?;
        let numbers = child.numbers();
        for _ in 0..TRIES {
            let wanted = prepare(tree, child, &numbers, stubs)?;
            let mut script = self.stub.script();
            script.clone_task(flags, child.exit_signal, choosable(tree, child, &numbers), seen)?;
            let born = *script.run()?.births.first().ok_or_else(lost)?;
            let Some((wanted, above)) = wanted else {
                // Without a proc file system outside nobody there can have known the number from it.
                self.born.push(born);
                return Ok(());
            };
            let got = read::parsed(born, "status", status::parse)?.ns_pid;
            if got.iter().rev().nth(above) == Some(&wanted) {
                self.born.push(born);
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
