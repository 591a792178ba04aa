//! All tasks of a tree on their way from bare stubs to what they were.

use super::ancestors;
use super::confined;
use super::fill;
use super::late;
use super::layout;
use super::lazy::Lazy;
use super::places::Places;
use super::pool::Pool;
use super::rings;
use super::root::Root;
use super::skeleton::Skeleton;
use super::system_v::{self, Made};
use super::terminal::Terminals;
use super::users;
use super::vdso::{Foreign, Moved};
use crate::error::{Context, Error, Result};
use crate::image::{Chain, Reader};
use crate::progress::{Report, phase};
use crate::resource::credentials::Credentials;
use crate::resource::owner::Owner;
use crate::resource::process::{Process, State};
use crate::resource::system_v::Actors;
use crate::resource::{Tree, cgroup};
use crate::sys::guardian::Guardian;
use crate::sys::proc::{read, status};
use crate::sys::{ptrace, signal, task};
use crate::tracee::stub::{Script, Stub};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// All tasks of the tree, stopped, on their way from stubs to what they were.
pub struct Planted<'t> {
    pub(super) tree: &'t Tree,
    pub(super) skeleton: Skeleton<'t>,
    /// Stub of each thread, by its tid in the image.
    pub threads: HashMap<i32, Stub>,
    /// Threads that go on elsewhere than they were stopped.
    pub(super) moved: HashMap<i32, Moved>,
    /// System V objects that were made; they go again when the tree does not come to life.
    made: Made,
}

impl<'t> Planted<'t> {
    /// Makes all processes and threads.
    pub fn plant(tree: &'t Tree, root: Root, terminals: &Terminals, places: &'t Places<'t>) -> Result<Self> {
        if let Some(slave) = &terminals.slave {
            nix::fcntl::fcntl(slave, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?; // for the stubs
        }
        let root = root.plant()?;
        let controlling = terminals.sessions().into_iter().map(|(session, _, fd)| (session, fd)).collect();
        let skeleton = Skeleton::grow(tree, root, controlling, places)?;
        skeleton.count_on()?;
        places.show_nested(&skeleton.stubs)?;
        let mut threads = HashMap::new();
        for process in &tree.processes {
            let stub = skeleton.stubs[&process.pid];
            threads.insert(process.pid, stub);
            users::enter(tree, places, process, &stub)?;
            threads.extend(confined::bear_threads(tree, process, &stub, &skeleton.stubs)?);
        }
        skeleton.settle()?;
        Ok(Planted { tree, skeleton, threads, moved: HashMap::new(), made: Made::new(tree) })
    }

    pub fn root(&self) -> i32 {
        self.skeleton.stubs[&self.tree.processes[0].pid].pid
    }

    /// Who shall be in front of the terminal that meio runs in: the leader of the group that was, else the root.
    pub fn front(&self) -> i32 {
        let groups = self.tree.terminals.iter().map(|t| t.foreground);
        groups.filter_map(|group| self.skeleton.stubs.get(&group)).map(|stub| stub.pid).next().unwrap_or_else(|| self.root())
    }

    pub(super) fn living(&self) -> impl Iterator<Item = &'t Process> + use<'t> {
        self.tree.processes.iter().filter(|p| !matches!(p.state, State::Zombie(_)))
    }

    /// Memory, then everything else, up to the last registers.
    pub fn rebuild(
        &mut self,
        (reader, chain, lazy): (Option<&mut Reader<'_>>, Option<Chain>, Option<&mut Lazy>),
        pool: &mut Pool,
        (terminals, foreign): (&Terminals, &Foreign),
        report: &mut dyn Report,
        phases: &mut Vec<(&'static str, Duration)>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        self.join_cgroups(warnings)?; // first of all, so that memory is accounted where it belongs
        self.share_cookies(warnings);
        let actors = self.actors()?;
        phase(report, phases, "layout", |_| {
            self.made.make(self.tree, &actors, pool, warnings)?;
            self.living().try_for_each(|p| {
                let Some(space) = &p.memory else { return Ok(()) };
                let stub = &self.skeleton.stubs[&p.pid];
                let built = layout::build(stub, space, pool).and_then(|()| rings::make(stub, space, &p.rings));
                warnings.extend(rings::warning(p.pid, &p.rings));
                let told = built.and_then(|()| layout::tell(stub, space, p.pid));
                told.map(|told| warnings.extend(told)).context(|| format!("process {}", p.pid))
            })
        })?;
        phase(report, phases, "memory", |report| {
            let pids = self.skeleton.stubs.iter().map(|(&pid, stub)| (pid, stub.pid)).collect();
            let targets = fill::Targets::new(self.tree, &pids, pool)?;
            if let Some(lazy) = lazy {
                return lazy.fill(self.tree, &self.skeleton.stubs, &targets, report, warnings).map(|()| 0);
            }
            let reader = reader.ok_or_else(|| Error::other("there is no image"))?;
            let mut progress = |bytes| {
                report.bytes(bytes, None);
                signal::check_interrupted()
            };
            let (bytes, from_parent) = fill::fill(|| reader.next_block(), &targets, &mut progress)?;
            chain.map_or(Ok(0), |chain| ancestors::fill(chain, reader, from_parent, &targets, &mut |more| progress(bytes + more)))
        })?;
        for process in self.living() {
            let moved = foreign.redirect(self.tree, process, &self.threads, warnings)?;
            self.moved.extend(moved.into_iter().map(|m| (m.tid, m)));
        }
        pool.seal(self.tree)?;
        pool.close_writers();
        phase(report, phases, "state", |_| {
            late::make(self.tree, &self.threads, pool)?;
            system_v::finish(self.tree, &actors)?;
            let made = deleted_folders(self.tree)?;
            let result = self.finish(pool, terminals, warnings);
            for folder in made.iter().rev() {
                let _ = std::fs::remove_dir(folder);
            }
            result
        })
    }

    fn join_cgroups(&self, warnings: &mut Vec<String>) -> Result<()> {
        let mut joining = cgroup::Joining::new();
        let set = |number: u32| {
            self.tree.cgroups.get(number as usize).ok_or_else(|| Error::image("image damaged: a task is in impossible cgroups"))
        };
        for process in self.living() {
            if let Some(number) = process.cgroups {
                joining.join(set(number)?, self.skeleton.stubs[&process.pid].pid, false);
            }
            for (number, thread) in process.threads.iter().filter_map(|t| Some((t.cgroups?, t))) {
                joining.join(set(number)?, self.threads[&thread.tid].tid, true);
            }
        }
        warnings.extend(joining.warnings);
        Ok(())
    }

    /// Tasks that may share a core share it again.
    fn share_cookies(&self, warnings: &mut Vec<String>) {
        let mut groups: HashMap<u32, Vec<i32>> = HashMap::new();
        for thread in self.living().flat_map(|p| &p.threads) {
            if let Some(cookie) = thread.attributes.cookie {
                groups.entry(cookie).or_default().push(self.threads[&thread.tid].tid);
            }
        }
        let has_none = |p: &Process| p.threads.iter().any(|t| t.attributes.cookie.is_none());
        if task::core_cookie(0).is_ok_and(|own| own != 0) && self.living().any(has_none) {
            warnings.push("tasks that had no cookie of core scheduling have that of meio now".to_owned());
        }
        for tids in groups.values() {
            if let Err(e) = task::share_core_cookie(tids) {
                warnings.push(format!("{} tasks have lost their cookie of core scheduling: {e}", tids.len()));
            }
        }
    }

    /// Those who make System V objects.
    fn actors(&self) -> Result<Actors> {
        let own = own_credentials()?;
        let stubs = self.living().map(|p| (p.pid, self.skeleton.stubs[&p.pid])).collect();
        Ok(Actors { stubs, root: self.skeleton.stubs[&self.tree.processes[0].pid], helpers: true, own: (own.uid[1], own.gid[1]) })
    }

    /// The number of a process group as it is seen `level` pid namespaces below the base, when somebody is in it.
    pub(super) fn group_seen(&self, group: i32, level: usize) -> Option<i32> {
        self.tree.processes.iter().find(|p| p.pgid == group)?;
        match self.tree.processes.iter().find(|p| p.pid == group) {
            Some(leader) => leader.number(level),
            None if level == 0 => Some(group),
            None => None,
        }
    }

    /// Owners and leases of the open files that fall to this process.
    pub(super) fn owners(&self, script: &mut Script<'_>, process: &Process) -> Result<()> {
        for owner in self.tree.owners.iter().filter(|o| o.holder.0 == process.pid) {
            let flags = self.tree.files.get(owner.file as usize).map_or(0, |f| f.flags);
            let target = self.owner_seen(owner, process.level());
            owner.tell(script, flags, target.ok_or_else(|| Error::image("image damaged: the owner of an open file is not there"))?)?;
        }
        Ok(())
    }

    /// The number of who gets the signals of an open file, as it is seen `level` pid namespaces below the base.
    fn owner_seen(&self, owner: &Owner, level: usize) -> Option<i32> {
        let (root, target) = (&self.tree.processes[0], owner.target_pid);
        if target == 0 {
            return Some(0);
        }
        if owner.is_group() {
            let led_outside = target == root.pgid && !self.tree.processes.iter().any(|p| p.pid == target);
            // Such a group is led by the root by now.
            return if led_outside { root.number(level) } else { self.group_seen(target, level) };
        }
        if level == 0 {
            return Some(target);
        }
        let thread = self.tree.processes.iter().flat_map(|p| &p.threads).find(|t| t.tid == target)?;
        thread.inner.get(level - 1).copied()
    }

    /// From here on the tree outlives meio, all of it or nothing: a task that is not let go below, because that fails or
    /// meio is killed just then, is let go by the kernel, not killed.
    ///
    /// The guardian that is returned stays on its post until what is `left` has been done by meio.
    pub fn entrust(&self, left: Option<impl FnOnce()>) -> Result<Option<Guardian>> {
        let pids: Vec<i32> = self.living().map(|p| self.skeleton.stubs[&p.pid].pid).collect();
        // The threads of one process end together anyway.
        let more = left.is_some();
        let guardian =
            if pids.len() > 1 || more { Some(Guardian::post(&pids, || left.into_iter().for_each(|left| left()))?) } else { None };
        let outlive = || -> Result<()> {
            self.living().flat_map(|p| &p.threads).try_for_each(|thread| {
                let tid = self.threads[&thread.tid].tid;
                ptrace::set_options(tid, 0).context(|| format!("letting go of task {}", thread.tid))
            })
        };
        let outlived = outlive();
        let outlived = outlived.and_then(|()| if more { guardian.iter().try_for_each(Guardian::entrust) } else { Ok(()) });
        if more && outlived.is_ok() {
            return Ok(guardian);
        }
        // In any case: meio answers for the tree itself when this has failed.
        let dismissed = guardian.map_or(Ok(()), Guardian::dismiss);
        outlived.and(dismissed).map(|()| None)
    }

    /// Lets all tasks go on, children before their parents.
    pub fn release(&mut self) {
        self.made.keep();
        for process in self.tree.processes.iter().rev() {
            for thread in process.threads.iter().rev() {
                let _ = ptrace::detach(self.threads[&thread.tid].tid);
            }
        }
    }

    /// Ends everything that was made.
    pub fn destroy(&mut self) {
        end_all();
    }
}

/// Ends all tracees and takes their reports. Their numbers are free again then: some are somebody else's children, who takes notice a
/// little later, and may bring the tree back once more.
pub fn end_all() {
    const SOON: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_micros(200);
    let mut ended = Vec::new();
    loop {
        match ptrace::poll(-1) {
            Ok(Some((tid, ptrace::Status::Ended(_)))) => ended.push(tid),
            Ok(Some((tid, _))) => end(tid),
            Ok(None) => {
                // Those that stand still have reported long ago: ask /proc whom we trace. One that has ended is asked for its report
                // until it has given it.
                let mine = task::tracees(std::process::id() as i32);
                if mine.is_empty() {
                    break;
                }
                mine.into_iter().for_each(end);
                std::thread::sleep(MOMENT);
            }
            Err(_) => break,
        }
    }
    let begun = Instant::now();
    let exists = |tid: &i32| Path::new(&format!("/proc/{tid}")).exists();
    // An init that never takes notice is not waited for.
    while ended.iter().any(exists) && begun.elapsed() < SOON {
        std::thread::sleep(MOMENT);
    }
}

fn end(tid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(tid), nix::sys::signal::SIGKILL);
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

pub(super) fn own_credentials() -> Result<Credentials> {
    let own = read::parsed(std::process::id() as i32, "status", status::parse)?;
    let mut credentials = Credentials::from_status(&own);
    credentials.securebits = task::securebits();
    Ok(credentials)
}
