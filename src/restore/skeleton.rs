//! The processes of a tree as bare stubs: pids, parents, sessions and groups, before any memory.
//!
//! A session is inherited at birth and left only by setsid(2), so birth order matters: children that belong to the
//! session their parent was born in are made before the parent calls setsid(2), the others after. What cannot be had that way
//! (a process that lost its parent and was adopted by a subreaper, or whose session's leader has ended) is born from a
//! donor in that session, which then steps out between, so that the kernel hands the child to its adoptive parent.

use super::births::Births;
use super::places::Places;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::Tree;
use crate::resource::process::{Process, State};
use crate::sys::proc::{read, status};
use crate::sys::ptrace;
use crate::tracee::stub::{self, Script, Stub};
use std::collections::{HashMap, HashSet};

/// The stubs of a tree.
pub struct Skeleton<'t> {
    pub(super) tree: &'t Tree,
    /// Stub of each process, by its pid in the image.
    pub stubs: HashMap<i32, Stub>,
    /// Children by parent's pid, as indices into `tree.processes`.
    children: HashMap<i32, Vec<usize>>,
    /// Processes that must be born from a donor: (index, parent, session).
    adopted: Vec<(usize, i32, i32)>,
    pids: HashSet<i32>,
    /// Namespaces that they enter.
    pub(super) places: &'t Places<'t>,
    /// How many pid namespaces of meio's are above the base.
    depth: usize,
    /// Sessions and the descriptors of their controlling terminals, which are inherited at birth like the session itself.
    terminals: Vec<(i32, i32)>,
}

/// Pids that do not belong to a process of the tree but must be free for a moment: leaders of sessions and groups that have ended.
pub fn departed_leaders(tree: &Tree) -> Vec<i32> {
    let pids: HashSet<i32> = tree.processes.iter().map(|p| p.pid).collect();
    let Some(root) = tree.processes.first() else { return Vec::new() };
    let mut departed = Vec::new();
    for p in &tree.processes {
        departed.extend([p.sid].into_iter().filter(|s| *s != root.sid && !pids.contains(s)));
        departed.extend([p.pgid].into_iter().filter(|g| *g != root.pgid && !pids.contains(g)));
    }
    departed.sort_unstable();
    departed.dedup();
    departed
}

impl<'t> Skeleton<'t> {
    /// Makes all processes below the root's stub.
    pub fn grow(tree: &'t Tree, root: Stub, terminals: Vec<(i32, i32)>, places: &'t Places<'t>) -> Result<Self> {
        let mut children: HashMap<i32, Vec<usize>> = HashMap::new();
        for (i, p) in tree.processes.iter().enumerate().skip(1) {
            children.entry(p.ppid).or_default().push(i);
        }
        let pids = tree.processes.iter().map(|p| p.pid).collect();
        let depth = read::parsed(root.pid, "status", status::parse)?.ns_pid.len().saturating_sub(1);
        let mut skeleton = Skeleton { tree, stubs: HashMap::new(), children, adopted: Vec::new(), pids, places, depth, terminals };
        let first = &tree.processes[0];
        skeleton.stubs.insert(first.pid, root);
        skeleton.bear(0, first.sid)?;
        skeleton.adopt()?;
        skeleton.groups()?;
        Ok(skeleton)
    }

    pub(super) fn process(&self, index: usize) -> &'t Process {
        &self.tree.processes[index]
    }

    /// The session that a process must be born in; `None` when any will do.
    fn birth_session(&self, index: usize) -> Option<i32> {
        let p = self.process(index);
        if p.sid != p.pid {
            return Some(p.sid);
        }
        let children = self.children.get(&p.pid).into_iter().flatten();
        children.filter_map(|&c| self.birth_session(c)).find(|&s| s != p.pid && !self.needs_donor_below(s, p.pid))
    }

    /// Whether a session that a child needs cannot have been its parent's.
    fn needs_donor_below(&self, session: i32, parent: i32) -> bool {
        // A session led by a descendant, or by nobody, is never inherited through this parent.
        let mut at = session;
        while let Some(p) = self.tree.processes.iter().find(|p| p.pid == at) {
            if p.ppid == parent {
                return true;
            }
            at = p.ppid;
        }
        !self.pids.contains(&session) && session != self.process(0).sid
    }

    /// Makes the children of a process that exists and was born in `session`, and theirs.
    fn bear(&mut self, index: usize, session: i32) -> Result<()> {
        let parent = self.process(index);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for &child in self.children.get(&parent.pid).into_iter().flatten() {
            match self.birth_session(child) {
                None => after.push((child, parent.sid)),
                Some(s) if s == parent.sid => after.push((child, s)),
                Some(s) if s == session => before.push((child, s)),
                Some(s) => self.adopted.push((child, parent.pid, s)),
            }
        }
        for list in [&mut before, &mut after] {
            self.in_order_of_birth(parent, list);
        }
        let stub = self.stubs[&parent.pid];
        self.enter(index)?;
        let all: Vec<(usize, i32)> = before.iter().chain(&after).copied().collect();
        let mut births = Births::begin(parent, &self.tree.namespaces, &stub);
        // Children in a pid namespace below must inherit the group. Otherwise groups come last: who is born of this one may
        // have to inherit the group that it leaves.
        let nested = all.iter().any(|&(child, _)| self.process(child).level() != parent.level());
        if nested && self.leads_group(index) {
            // A root that was given a session of its own leads its group already.
            births.script.attempt("setpgid", libc::SYS_setpgid, &[0, 0])?;
        }
        let mut setsid_done = parent.sid != parent.pid;
        for (n, &(child, _)) in all.iter().enumerate() {
            if n == before.len() && !setsid_done {
                self.lead(&mut births.script, parent)?;
                setsid_done = true;
            }
            births.bear(self.process(child), &self.stubs, self.tree, self.places)?;
        }
        if !setsid_done {
            self.lead(&mut births.script, parent)?;
        }
        let births = births.end(&self.stubs, self.tree)?;
        for (&(child, _), born) in all.iter().zip(births) {
            self.stubs.insert(self.process(child).pid, born);
        }
        for &(child, session) in &all {
            self.join_group_of_outer(parent, child)?;
            self.bear(child, session)?;
        }
        Ok(())
    }

    /// Whether a process leads a group, but not as the leader of its session. The group that the root was in was led from
    /// outside: the root leads it now.
    fn leads_group(&self, index: usize) -> bool {
        let p = self.process(index);
        p.sid != p.pid && (p.pgid == p.pid || index == 0 && !self.pids.contains(&p.pgid))
    }

    /// Starts a session, with its terminal.
    fn lead(&self, script: &mut Script<'_>, process: &Process) -> Result<()> {
        script.expect("setsid", process.own_number() as u64, libc::SYS_setsid, &[])?;
        match self.terminals.iter().find(|t| t.0 == process.pid) {
            Some(&(_, fd)) => script.call("ioctl TIOCSCTTY", libc::SYS_ioctl, &[fd as u64, libc::TIOCSCTTY, 0]),
            _ => Ok(()),
        }
    }

    /// Makes the processes that need a donor of their session.
    fn adopt(&mut self) -> Result<()> {
        while let Some((index, parent, session)) = self.adopted.pop() {
            let child = self.process(index);
            let parent_stub = self.stubs[&parent];
            if child.level() != 0 {
                return Err(Error::new(Kind::Unsupported, format!("process {} lost its parent in a nested pid namespace", child.pid)));
            }
            let subreaper = |on: u64| -> Result<()> {
                let mut script = parent_stub.script();
                let option = libc::PR_SET_CHILD_SUBREAPER as u64;
                script.call("prctl PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, &[option, on, 0, 0, 0])?;
                script.run().map(drop)
            };
            subreaper(1)?;
            // The one that steps out between: a child of somebody in that session; for a session that has nobody yet and
            // whose leader has ended, a helper with the leader's pid.
            let (donor, leads) = match self.donor(session, parent) {
                Some(donor) => (donor, false),
                None => (parent_stub, true),
            };
            let mut script = donor.script();
            if leads {
                script.clone_task(0, libc::SIGCHLD, &[session], session)?;
            } else {
                let args = script.data(&[0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0].map(u64::to_le_bytes).concat());
                script.call("clone3", libc::SYS_clone3, &[args, 64])?;
            }
            let ran = script.run()?;
            let between = donor.born(*ran.births.first().ok_or_else(lost)?, false)?;
            let number = *ran.results.last().ok_or_else(lost)? as u64;
            let mut script = between.script();
            if leads {
                script.call("setsid", libc::SYS_setsid, &[])?;
            }
            script.clone_task(0, child.exit_signal, &[child.pid], child.pid)?;
            let born = between.born(*script.run()?.births.first().ok_or_else(lost)?, false)?;
            stub::end(&between);
            let mut script = donor.script();
            script.expect("wait4", number, libc::SYS_wait4, &[number, 0, libc::__WALL as u64, 0])?;
            script.run()?;
            subreaper(0)?;
            self.stubs.insert(child.pid, born);
            self.bear(index, session)?;
        }
        Ok(())
    }

    /// Somebody who is in a session already, below `parent`.
    fn donor(&self, session: i32, parent: i32) -> Option<Stub> {
        let below = |mut pid: i32| {
            while let Some(p) = self.tree.processes.iter().find(|p| p.pid == pid) {
                if p.ppid == parent {
                    return true;
                }
                pid = p.ppid;
            }
            false
        };
        let there = self.tree.processes.iter().filter(|p| p.sid == session && below(p.pid));
        there.filter_map(|p| self.stubs.get(&p.pid)).next().copied()
    }

    /// Puts everyone into their process groups, who have not inherited them.
    fn groups(&self) -> Result<()> {
        let root = self.process(0);
        for index in (0..self.tree.processes.len()).filter(|&i| self.leads_group(i)) {
            let p = self.process(index);
            self.join_group(p, &self.stubs[&p.pid], p.pid)?;
        }
        let outside = !self.pids.contains(&root.pgid);
        if outside && root.sid != root.pid {
            self.join_group(root, &self.stubs[&root.pid], root.pid)?;
        }
        let mut led: HashMap<i32, (Stub, Stub, i32)> = HashMap::new();
        for p in self.tree.processes.iter().filter(|p| p.pgid != p.pid) {
            let stub = &self.stubs[&p.pid];
            if outside && p.pgid == root.pgid {
                if p.pid != root.pid && p.sid == root.sid {
                    self.join_group(p, stub, root.pid)?;
                }
                continue;
            }
            if self.group_of(stub)? == p.pgid {
                continue; // inherited
            }
            if !self.pids.contains(&p.pgid) && !led.contains_key(&p.pgid) {
                // Its leader has ended: someone takes the number for a moment.
                let mut script = stub.script();
                script.clone_task(0, libc::SIGCHLD, &[p.pgid], p.pgid)?;
                let helper = stub.born(*script.run()?.births.first().ok_or_else(lost)?, false)?;
                let mut script = helper.script();
                script.call("setpgid", libc::SYS_setpgid, &[0, 0])?;
                script.run()?;
                led.insert(p.pgid, (*stub, helper, p.pgid));
            }
            self.join_group(p, stub, p.pgid)?;
        }
        for (parent, helper, number) in led.into_values() {
            stub::end(&helper);
            let mut script = parent.script();
            script.expect("wait4", number as u64, libc::SYS_wait4, &[number as u64, 0, libc::__WALL as u64, 0])?;
            script.run()?;
        }
        Ok(())
    }

    /// Lets a process step into a group; it may be there already.
    fn join_group(&self, process: &Process, stub: &Stub, group: i32) -> Result<()> {
        if self.group_of(stub)? == group {
            return Ok(());
        }
        let Some(number) = self.number_seen(group, process.level()) else {
            return Err(Error::new(Kind::Unsupported, format!("process {} is in a group that it cannot see", process.pid)));
        };
        let mut script = stub.script();
        script.call("setpgid", libc::SYS_setpgid, &[0, number as u64])?;
        script.run().map(drop)
    }

    /// A new process whose group is led from a pid namespace above its own cannot step into it by itself: its parent, from
    /// there, puts it in.
    fn join_group_of_outer(&self, parent: &Process, child: usize) -> Result<()> {
        let child = self.process(child);
        if child.level() == parent.level() || self.number_seen(child.pgid, child.level()).is_some() {
            return Ok(());
        }
        let (Some(group), Some(number)) = (self.number_seen(child.pgid, parent.level()), child.number(parent.level())) else {
            return Ok(());
        };
        if self.stubs.contains_key(&child.pgid) && self.group_of(&self.stubs[&child.pid])? != child.pgid {
            let mut script = self.stubs[&parent.pid].script();
            script.call("setpgid", libc::SYS_setpgid, &[number as u64, group as u64])?;
            script.run()?;
        }
        Ok(())
    }

    /// The number of a process or group of the tree for those who live `level` pid namespaces below the base.
    fn number_seen(&self, number: i32, level: usize) -> Option<i32> {
        match self.tree.processes.iter().find(|p| p.pid == number) {
            Some(process) => process.number(level),
            None => (level == 0).then_some(number),
        }
    }

    /// The group that a stub is in, as the base numbers it.
    fn group_of(&self, stub: &Stub) -> Result<i32> {
        super::confined::group_of(stub, self.stubs.iter(), self.depth)
    }

    /// Ends the processes that had ended, stops those that were stopped. Their parents' notices are swallowed, since
    /// every parent runs another script afterwards.
    pub fn settle(&self) -> Result<()> {
        for p in &self.tree.processes {
            let stub = &self.stubs[&p.pid];
            match p.state {
                State::Running => {}
                State::Stopped(signal) => stub.stop(signal).context(|| format!("stopping process {}", p.pid))?,
                State::Zombie(status) => {
                    let mut script = stub.script();
                    let comm = script.data(&[p.comm.as_slice(), &[0]].concat());
                    script.call("prctl PR_SET_NAME", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, comm, 0, 0, 0])?;
                    script.run()?;
                    die(stub, status).context(|| format!("restoring zombie {}", p.pid))?;
                }
            }
        }
        Ok(())
    }
}

/// Ends a stub with a given status of wait(2).
pub fn die(stub: &Stub, status: i32) -> Result<()> {
    let signal = status & 0x7f;
    if signal != 0 {
        crate::sys::task::set_limit(stub.pid, libc::RLIMIT_CORE, (0, 0))?;
        if signal == libc::SIGKILL {
            stub::end(stub);
            return Ok(());
        }
        ptrace::cont(stub.tid, signal)?;
    } else {
        stub.exit(status >> 8 & 0xff)?;
    }
    loop {
        match ptrace::wait(stub.tid)? {
            ptrace::Status::Ended(_) => return Ok(()),
            _ => ptrace::cont(stub.tid, 0)?,
        }
    }
}

pub(super) fn lost() -> Error {
    Error::other("a process that was just made is missing")
}
