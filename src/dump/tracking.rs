//! What of the memory of a tree must be read, by what is known of it already: what was laid by while the tree ran
//! ([`super::rounds`]), and what the image before this one has.

use super::copy::{From, Job, cut};
use super::rounds::Laid;
use super::spans::Spans;
use crate::error::Result;
use crate::image::Owner;
use crate::resource::memory::{AddressSpace, Backing};
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use crate::tracee::track::{self, Area, Choice, Class, Seen, Tracker};
use std::collections::{HashMap, HashSet};

/// Watches the memory of a tree.
pub struct Tracking {
    /// Tells what has changed.
    pub tracker: Box<dyn Tracker>,
    /// Pages that the image before has, by process. Those that have not changed since are not stored again.
    before: Option<HashMap<i32, Spans>>,
    /// The same of the image that is being made.
    named: HashMap<i32, Spans>,
    /// What has been copied while the tree ran.
    pub laid: Option<Laid>,
    /// The part of it that the image is made of, by process.
    pub wanted: HashMap<i32, Spans>,
    seen: Seen,
}

impl Tracking {
    /// Begins with a tree that nothing is known of.
    pub fn new(choice: Choice) -> Result<Tracking> {
        let tracker = track::tracker(choice)?;
        Ok(Tracking { tracker, before: None, named: HashMap::new(), laid: None, wanted: HashMap::new(), seen: Seen::default() })
    }

    /// Notes that the image that was just made is whole: the next one builds upon it.
    pub fn saved(&mut self) {
        self.before = Some(std::mem::take(&mut self.named));
        self.forget();
    }

    /// Nothing came of the image that was being made. What has changed since the one before is not known any more.
    pub fn lost(&mut self) {
        self.before = None;
        self.forget();
    }

    fn forget(&mut self) {
        self.named.clear();
        self.wanted.clear();
        self.laid = None;
    }

    /// Looks at a process that stands still and has been asked; adds what is to be copied of it. Why it cannot be watched, if
    /// it cannot, is returned.
    pub fn pages(
        &mut self,
        process: &mut freeze::Process,
        (vmas, space): (&[Vma], &AddressSpace),
        (call, known): (Option<u64>, &mut Known),
        jobs: &mut Vec<Job>,
    ) -> Result<Option<String>> {
        let pid = process.pid;
        let why = self.tracker.enter(process, vmas, call, known)?;
        self.seen.clear();
        self.tracker.look(pid, &areas(space), &mut self.seen)?;
        let nothing = Spans::default();
        let laid = self.laid.as_ref().and_then(|laid| laid.of(pid)).unwrap_or(&nothing);
        let before = self.before.as_ref().and_then(|before| before.get(&pid)).unwrap_or(&nothing);
        let (mut named, mut wanted) = (nothing.clone(), nothing.clone());
        let owner = Owner::Process(pid);
        for (class, from) in CLASSES.map(|class| (class, from(class, pid))) {
            let pages = &mut self.seen[class];
            // For people and debuggers; a restore has its own. It never changes.
            let vdso = space.mappings.iter().find(|m| class == Class::OverFile && m.backing == Backing::Kernel && m.name == "[vdso]");
            pages.kept.extend(vdso.map(|m| (m.start, m.end)));
            let changed = Spans::of(std::mem::take(&mut pages.changed));
            let kept = Spans::of(std::mem::take(&mut pages.kept));
            let from_laid = kept.and(laid);
            let inherited = kept.without(&from_laid).and(before);
            let read = changed.or(&kept.without(&from_laid).without(&inherited));
            cut(owner, from, false, read.ranges(), jobs);
            cut(owner, From::Parent, false, inherited.ranges(), jobs);
            named = named.or(&changed).or(&kept);
            wanted = wanted.or(&from_laid);
        }
        self.named.insert(pid, named);
        self.wanted.insert(pid, wanted);
        Ok(why)
    }

    /// What has changed of a process that runs, by how it is read.
    pub fn changed(&mut self, pid: i32, vmas: &[Vma]) -> Result<Vec<(From, Spans)>> {
        self.seen.clear();
        self.tracker.look(pid, &private(vmas), &mut self.seen)?;
        let of = |seen: &mut Seen, class| Spans::of(std::mem::take(&mut seen[class].changed));
        Ok(CLASSES.map(|class| (from(class, pid), of(&mut self.seen, class))).into())
    }

    /// Forgets all other processes.
    pub fn retain(&mut self, pids: &HashSet<i32>) {
        self.tracker.retain(pids);
    }
}

const CLASSES: [Class; 3] = [Class::Plain, Class::OverFile, Class::Protected];

fn from(class: Class, pid: i32) -> From {
    match class {
        Class::Plain | Class::OverFile => From::Memory(pid),
        Class::Protected => From::Protected(pid),
    }
}

fn class(readable: bool, file: bool) -> Class {
    match (readable, file) {
        (false, _) => Class::Protected,
        (true, false) => Class::Plain,
        (true, true) => Class::OverFile,
    }
}

/// The mappings with pages of the process's own.
fn areas(space: &AddressSpace) -> Vec<Area> {
    let own = space.mappings.iter().filter(|m| !m.shared && m.backing != Backing::Kernel);
    own.map(|m| {
        let file = m.backing != Backing::Anonymous;
        Area { start: m.start, end: m.end, class: class(m.prot & libc::PROT_READ as u32 != 0, file), file }
    })
    .collect()
}

/// The same, as proc_pid_maps(5) tells it.
fn private(vmas: &[Vma]) -> Vec<Area> {
    let kernel = |v: &&Vma| [&b"[vdso]"[..], b"[vvar", b"[vsyscall]", b"/[aio]"].iter().any(|name| v.name.starts_with(name));
    let own = vmas.iter().filter(|v| !v.shared && !kernel(v));
    own.map(|v| {
        let file = v.inode != 0 && !v.name.starts_with(b"/anon_hugepage");
        Area { start: v.start, end: v.end, class: class(v.prot & libc::PROT_READ as u32 != 0, file), file }
    })
    .collect()
}
