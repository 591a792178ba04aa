//! Where stubs are born: namespaces that a process enters before it has children, and the pid namespaces of those.
//!
//! A pid namespace begins with its first process, so it cannot be made before: the parent of that process makes it.

use super::confined;
use super::places::Places;
use super::skeleton::{Skeleton, lost};
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::resource::Tree;
use crate::resource::namespace::{Content, Namespace};
use crate::resource::process::{Process, State};
use crate::sys::namespace::Kind;
use crate::tracee::stub::{Script, Stub};
use std::collections::HashMap;
use std::os::fd::AsRawFd;

/// A child.
pub enum Born {
    /// As meio sees it; its first stop is not seen yet.
    Fresh(i32),
    /// It has stopped.
    Seen(Box<Stub>),
}

/// The births of one process's children, in order.
pub struct Births<'s> {
    pub(super) parent: &'s Process,
    pub(super) stub: &'s Stub,
    namespaces: &'s [Namespace],
    /// What the parent runs next.
    pub script: Script<'s>,
    pub(super) born: Vec<Born>,
    /// Its own pid namespace.
    home: Option<u32>,
    /// The pid namespace that its next child will be born in.
    at: Option<u32>,
}

impl<'s> Births<'s> {
    /// Nobody yet.
    pub fn begin(parent: &'s Process, namespaces: &'s [Namespace], stub: &'s Stub) -> Self {
        let home = parent.places.of(namespaces, Kind::Pid);
        Births { parent, stub, namespaces, script: stub.script(), born: Vec::new(), home, at: home }
    }

    /// The next child.
    pub fn bear(&mut self, child: &Process, stubs: &HashMap<i32, Stub>, tree: &Tree, places: &Places<'_>) -> Result<()> {
        let wanted = child.places.of(self.namespaces, Kind::Pid);
        let mut flags = 0;
        if wanted != self.at {
            let first = child.own_number() == 1 && child.level() == self.parent.level() + 1;
            self.go_to(if first { self.home } else { wanted }, stubs, tree)?;
            if let Some(user) = confined::owner(tree, child).filter(|u| first && Some(*u) != confined::birthplace(tree, self.parent)) {
                return self.bear_confined(child, user, stubs, tree, places);
            }
            if first && self.parent.places.of_children(self.namespaces, Kind::Pid) == wanted {
                self.script.call("unshare", libc::SYS_unshare, &[libc::CLONE_NEWPID as u64])?;
                self.at = wanted;
            } else if first {
                flags = libc::CLONE_NEWPID as u64;
            }
        }
        let Some(seen) = child.number(self.parent.level()) else {
            return Err(Error::image(format!("image damaged: process {} is unknown to its parent", child.pid)));
        };
        if confined::is(tree, child) {
            return self.bear_below(child, flags, seen, stubs, tree);
        }
        self.script.clone_task(flags, child.exit_signal, &child.numbers(), seen)
    }

    /// After the birth of the first process of a pid namespace: the parent's further children are born there, when they were.
    pub(super) fn children_go_there(&mut self, first: &Process, number: i32, tree: &Tree) -> Result<()> {
        let there = first.places.of(&tree.namespaces, Kind::Pid);
        if self.parent.places.of_children(self.namespaces, Kind::Pid) == there { self.enter(number, there) } else { Ok(()) }
    }

    /// Runs what is left; the children.
    pub fn end(mut self, stubs: &HashMap<i32, Stub>, tree: &Tree) -> Result<Vec<Stub>> {
        let last = self.parent.places.of_children(self.namespaces, Kind::Pid);
        if self.parent.places.unborn {
            self.go_to(self.home, stubs, tree)?;
            self.script.call("unshare", libc::SYS_unshare, &[libc::CLONE_NEWPID as u64])?;
        } else {
            self.go_to(last, stubs, tree)?;
        }
        self.flush()?;
        let stub = self.stub;
        let stop = |born| match born {
            Born::Fresh(tid) => stub.born(tid, false),
            Born::Seen(child) => Ok(*child),
        };
        self.born.into_iter().map(stop).collect()
    }

    pub(super) fn flush(&mut self) -> Result<Vec<i64>> {
        let ran = std::mem::replace(&mut self.script, self.stub.script()).run()?;
        self.born.extend(ran.births.into_iter().map(Born::Fresh));
        Ok(ran.results)
    }

    /// From now on children are born in that pid namespace, which is there already.
    fn go_to(&mut self, wanted: Option<u32>, stubs: &HashMap<i32, Stub>, tree: &Tree) -> Result<()> {
        if wanted == self.at {
            return Ok(());
        }
        let member = if wanted == self.home {
            Some(self.parent)
        } else {
            let there = |p: &&Process| p.places.of(self.namespaces, Kind::Pid) == wanted && p.own_number() == 1;
            tree.processes.iter().find(there).filter(|p| stubs.contains_key(&p.pid))
        };
        let Some(number) = member.and_then(|p| p.number(self.parent.level())) else {
            let reason = format!("the children of process {} live in a pid namespace that begins later", self.parent.pid);
            return Err(Error::new(Failure::Unsupported, reason));
        };
        self.enter(number, wanted)
    }

    /// Enters the pid namespace of the process with that number.
    fn enter(&mut self, number: i32, wanted: Option<u32>) -> Result<()> {
        self.script.call("pidfd_open", libc::SYS_pidfd_open, &[number as u64, 0])?;
        let fd = *self.flush()?.last().ok_or_else(lost)? as u64;
        self.script.call("setns", libc::SYS_setns, &[fd, libc::CLONE_NEWPID as u64])?;
        self.script.call("close", libc::SYS_close, &[fd])?;
        self.at = wanted;
        Ok(())
    }
}

impl Skeleton<'_> {
    /// Children that are born in the parent's own pid namespace come before those in another.
    pub(super) fn in_order_of_birth(&self, parent: &Process, children: &mut [(usize, i32)]) {
        let home = parent.places.of(&self.tree.namespaces, Kind::Pid);
        let away = |child: usize| {
            let child = self.process(child);
            let here = child.places.of(&self.tree.namespaces, Kind::Pid);
            (here != home, here, child.own_number() != 1)
        };
        children.sort_by_key(|&(child, _)| away(child));
    }

    /// In pid namespaces that were made anew, the next numbers are given away behind those that are taken already.
    pub(super) fn count_on(&self) -> Result<()> {
        let table = &self.tree.namespaces;
        for (id, _) in table.iter().enumerate().filter(|(_, n)| n.kind == Kind::Pid) {
            let home = |p: &&Process| p.places.of(table, Kind::Pid) == Some(id as u32);
            let living = |p: &&Process| home(p) && p.memory.is_some();
            let Some(member) = self.tree.processes.iter().find(living) else { continue };
            // Those below are seen from here, too, when they descend from somebody here.
            let level = member.level();
            let below =
                |p: &Process| std::iter::successors(Some(p), |p| self.tree.processes.iter().find(|q| q.pid == p.ppid)).any(|p| home(&p));
            let seen = self.tree.processes.iter().filter(|p| below(p));
            let threads = self.tree.processes.iter().filter(home).flat_map(|p| p.threads.iter().map(|t| t.own_number()));
            let last = seen.filter_map(|p| p.number(level)).chain(threads).max().unwrap_or(1);
            let stub = &self.stubs[&member.pid];
            // Without a proc file system there the numbers begin again at the first that is free.
            confined::count_to(stub, last)?;
        }
        Ok(())
    }

    /// Takes a process into its namespaces, all but pid and user, where they are not those of its parent.
    pub(super) fn enter(&self, index: usize) -> Result<()> {
        let process = self.process(index);
        // One that has ended has left them, but it need not go anywhere else for that; it may not even be allowed to.
        if matches!(process.state, State::Zombie(_)) {
            return Ok(());
        }
        let parent = self.tree.processes.iter().find(|p| p.pid == process.ppid);
        let table = &self.tree.namespaces;
        let stub = &self.stubs[&process.pid];
        let mut script = stub.script();
        // Mounts last: they are entered by descriptor, too, but the directories change with them.
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time, Kind::Cgroup, Kind::Mnt] {
            let (from, to) = (parent.and_then(|p| p.places.of_children(table, kind)), process.places.of(table, kind));
            if from != to {
                let fd = self.places.fd(to, kind)?.as_raw_fd() as u64;
                script.call(calls(kind), libc::SYS_setns, &[fd, kind.flag() as u64])?;
            }
        }
        let clocks = process.places.of_children(table, Kind::Time).filter(|&c| process.places.of(table, Kind::Time) != Some(c));
        if clocks.is_some() {
            script.call("unshare of time", libc::SYS_unshare, &[Kind::Time.flag() as u64])?;
        }
        script.run()?;
        match clocks.and_then(|id| table.get(id as usize)).map(|n| &n.content) {
            Some(Content::Clocks { monotonic, boottime }) => {
                let text = super::places::offsets(*monotonic, *boottime);
                std::fs::write(format!("/proc/{}/timens_offsets", stub.pid), text)
                    .context(|| format!("setting the clocks of the children of process {}", process.pid))
            }
            _ => Ok(()),
        }
    }
}

fn calls(kind: Kind) -> &'static str {
    match kind {
        Kind::User => "setns of user",
        Kind::Mnt => "setns of mnt",
        Kind::Pid => "setns of pid",
        Kind::Net => "setns of net",
        Kind::Ipc => "setns of ipc",
        Kind::Uts => "setns of uts",
        Kind::Time => "setns of time",
        Kind::Cgroup => "setns of cgroup",
    }
}
