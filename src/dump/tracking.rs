//! What of the memory of a tree must be read, by what is known of it already: what was laid by while the tree ran
//! ([`super::rounds`]), and what the image before this one has.

use super::copy::{From, Job, cut};
use super::recent::Recent;
use super::rounds::Laid;
use super::spans::Spans;
use crate::error::Result;
use crate::image::{Known as Told, Owner, PAGE};
use crate::resource::memory::{AddressSpace, Backing};
use crate::resource::mount::Stamp;
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
pub use crate::tracee::track::Of;
use crate::tracee::track::{self, Area, Choice, Class, Kind, Pages, Seen, Tracker};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Pages that an image has.
#[derive(Debug, Default)]
struct Named {
    processes: HashMap<i32, Spans>,
    /// By device and inode; with that by which it can be told that it is as it was.
    objects: HashMap<(u64, u64), (Spans, Option<Stamp>)>,
}

/// Watches the memory of a tree.
pub struct Tracking {
    /// Tells what has changed.
    pub tracker: Box<dyn Tracker>,
    /// Pages that the image before has, by process. Those that have not changed since are not stored again.
    before: Option<Named>,
    /// The same of the image that is being made.
    named: Named,
    /// Device and inode of each object, by number.
    objects: Vec<Option<(u64, u64)>>,
    /// Files that are mapped.
    mapped: HashSet<(u64, u64)>,
    /// What has been copied while the tree ran.
    pub laid: Option<Laid>,
    /// The part of it that the image is made of.
    pub wanted: HashMap<Of, Spans>,
    /// Objects that were looked at while the tree ran.
    running: HashSet<Of>,
    seen: Seen,
    /// What pages held that were copied lately, where the next image may say how they differ from that.
    recent: Option<Recent>,
    /// Nobody is to be told of a page how it differs.
    pub plain: bool,
}

impl Tracking {
    /// Begins with a tree that nothing is known of.
    pub fn new(choice: Choice) -> Result<Tracking> {
        let tracker = track::tracker(choice)?;
        Ok(Tracking {
            tracker,
            before: None,
            named: Named::default(),
            objects: Vec::new(),
            mapped: HashSet::new(),
            laid: None,
            wanted: HashMap::new(),
            running: HashSet::new(),
            seen: Seen::default(),
            recent: None,
            plain: false,
        })
    }

    /// From now on images say of pages how they differ, for somebody who has those of the image before at hand.
    pub fn compares(&mut self) {
        self.recent = Some(Recent::default());
    }

    /// Notes that the image that was just made is whole: the next one builds upon it.
    pub fn saved(&mut self) {
        // What was copied while the tree ran went another way.
        for (of, spans) in self.wanted.iter().filter(|(_, spans)| spans.len() > 0) {
            self.recent.iter().for_each(|recent| recent.forget(*of, spans));
        }
        self.before = Some(std::mem::take(&mut self.named));
        self.forget();
    }

    /// Nothing came of the image that was being made. What has changed since the one before is not known any more.
    pub fn lost(&mut self) {
        self.before = None;
        self.recent = self.recent.take().map(|_| Recent::default());
        self.tracker.doubt();
        self.forget();
    }

    fn forget(&mut self) {
        self.named = Named::default();
        self.wanted.clear();
        self.running.clear();
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
        self.seen = Seen::default();
        self.tracker.look(pid, &areas(space), &mut self.seen)?;
        let nothing = Spans::default();
        let laid = self.laid.as_ref().and_then(|laid| laid.of(Of::Process(pid))).unwrap_or(&nothing);
        let before = self.before.as_ref().and_then(|before| before.processes.get(&pid)).unwrap_or(&nothing);
        let (mut named, mut wanted) = (nothing.clone(), nothing.clone());
        let owner = Owner::Process(pid);
        // They hold nothing, and cannot be read.
        let guards = Spans::of(space.guards.clone());
        // What an asynchronous read writes when it ends is seen by no tracker.
        let unseen = space.mappings.iter().any(|m| m.name.starts_with("/[aio]"));
        for (class, from) in CLASSES.map(|class| (class, from(class, pid))) {
            let pages = &mut self.seen[class];
            // For people and debuggers; a restore has its own. It never changes.
            let vdso = space.mappings.iter().find(|m| class == Class::OverFile && m.backing == Backing::Kernel && m.name == "[vdso]");
            pages.kept.extend(vdso.map(|m| (m.start, m.end)));
            let mut changed = Spans::of(std::mem::take(&mut pages.changed)).without(&guards);
            let mut kept = Spans::of(std::mem::take(&mut pages.kept)).without(&guards);
            if unseen {
                changed = changed.or(&std::mem::take(&mut kept));
            }
            let from_laid = kept.and(laid);
            let inherited = kept.without(&from_laid).and(before);
            let read = changed.or(&kept.without(&from_laid).without(&inherited));
            cut(owner, from, false, read.ranges(), jobs);
            cut(owner, From::Parent, false, inherited.ranges(), jobs);
            named = named.or(&changed).or(&kept);
            wanted = wanted.or(&from_laid);
        }
        self.named.processes.insert(pid, named);
        self.wanted.insert(Of::Process(pid), wanted);
        Ok(why)
    }

    /// What has changed of a process that runs, by how it is read.
    pub fn changed(&mut self, pid: i32, vmas: &[Vma]) -> Result<Vec<(From, Spans)>> {
        self.seen = Seen::default();
        self.tracker.look(pid, &private(vmas), &mut self.seen)?;
        let of = |seen: &mut Seen, class| Spans::of(std::mem::take(&mut seen[class].changed));
        Ok(CLASSES.map(|class| (from(class, pid), of(&mut self.seen, class))).into())
    }

    /// What has changed of an object of a tree that runs.
    pub fn changed_object(&mut self, of: Of, file: &File) -> Result<Spans> {
        let mut pages = Pages::default();
        self.tracker.object(of, file, file.metadata()?.len(), &mut pages)?;
        self.running.insert(of);
        Ok(Spans::of(pages.changed))
    }

    /// Nothing came of these jobs: what was told to have changed is told again at the next look.
    pub fn given_up(&mut self, jobs: &[Job]) {
        self.named = Named::default();
        self.wanted.clear();
        for job in jobs {
            let Some(of) = self.of(job.from) else { continue };
            for &(address, pages) in &job.ranges {
                self.tracker.missed(of, (address, address + u64::from(pages) * PAGE as u64));
            }
        }
    }

    /// Forgets all other processes.
    pub fn retain(&mut self, pids: &[i32]) {
        let objects = self.objects.iter().flatten().map(|&(dev, ino)| Of::Object(dev, ino)).chain(self.running.iter().copied());
        let all: HashSet<Of> = pids.iter().map(|&pid| Of::Process(pid)).chain(objects).collect();
        self.tracker.retain(&all);
    }

    /// Begins with the objects of a tree that stands still. `mapped`: files that are, and that may be written to unseen. `calm`: none
    /// others were since the last look.
    pub fn begin_objects(&mut self, mapped: &HashSet<(u64, u64)>, calm: bool) {
        self.objects.clear();
        self.mapped.clone_from(mapped);
        let known = self.before.iter_mut().flat_map(|before| &mut before.objects);
        known.filter(|(identity, _)| !calm || mapped.contains(identity)).for_each(|(_, known)| known.1 = None);
    }

    /// The next object is copied whole each time.
    pub fn unwatched(&mut self) {
        self.objects.push(None);
    }

    /// Looks at the next object of a tree that stands still; adds what is to be copied of it.
    pub fn object(&mut self, number: u32, (file, stamp): (&File, Option<Stamp>), size: u64, jobs: &mut Vec<Job>) -> Result<()> {
        let meta = file.metadata()?;
        let identity = (meta.dev(), meta.ino());
        self.objects.push(Some(identity));
        let stamp = stamp.filter(|_| !self.mapped.contains(&identity));
        let (nothing, unknown) = (Spans::default(), (Spans::default(), None));
        let (before, known) = self.before.as_ref().and_then(|before| before.objects.get(&identity)).unwrap_or(&unknown);
        let (changed, kept) = if stamp.is_some() && stamp == *known {
            (Spans::default(), before.clone())
        } else {
            let mut pages = Pages::default();
            self.tracker.object(Of::Object(identity.0, identity.1), file, size, &mut pages)?;
            (Spans::of(pages.changed), Spans::of(pages.kept))
        };
        let of = Of::Object(identity.0, identity.1);
        let from_laid = kept.and(self.laid.as_ref().and_then(|laid| laid.of(of)).unwrap_or(&nothing));
        let inherited = kept.without(&from_laid).and(before);
        let read = changed.or(&kept.without(&from_laid).without(&inherited));
        self.wanted.insert(of, from_laid);
        let owner = Owner::Object(number);
        cut(owner, From::Object(number as usize), false, read.ranges(), jobs);
        cut(owner, From::Parent, false, inherited.ranges(), jobs);
        self.named.objects.insert(identity, (changed.or(&kept), stamp));
        Ok(())
    }

    /// Pages that the image has which was just made, by process and by number of the object. Objects that are copied whole each time are
    /// not among them.
    pub fn all_named(&self) -> Vec<(Owner, &Spans)> {
        let mut all: Vec<(Owner, &Spans)> = self.named.processes.iter().map(|(&pid, spans)| (Owner::Process(pid), spans)).collect();
        for (number, identity) in self.objects.iter().enumerate() {
            let spans = identity.as_ref().and_then(|identity| self.named.objects.get(identity));
            all.extend(spans.map(|(spans, _)| (Owner::Object(number as u32), spans)));
        }
        all
    }

    /// Whose something is that was copied while the tree ran, in an image where processes are called as `name` says.
    pub fn owner(&self, of: Of, name: impl Fn(i32) -> i32) -> Option<Owner> {
        match of {
            Of::Process(pid) => Some(Owner::Process(name(pid))),
            Of::Object(dev, ino) => self.objects.iter().position(|o| *o == Some((dev, ino))).map(|n| Owner::Object(n as u32)),
        }
    }

    /// Notes bytes that were copied for a job.
    pub fn copied(&self, from: From, ranges: &[(u64, u32)], bytes: &[u8]) {
        if let Some(of) = self.of(from) {
            self.tracker.copied(of, ranges, bytes);
        }
    }

    /// Makes of the pages of a job how they differ from those that the image before has, where that is little; what is known of
    /// each then, or nothing of any. `child`: there is such an image.
    pub fn compare(&self, job: &Job, pages: &mut [u8], child: bool) -> Vec<Told> {
        let (Some(recent), Some(of), true) = (&self.recent, self.of(job.from), child) else { return Vec::new() };
        let before = self.before.as_ref().and_then(|before| match of {
            Of::Process(pid) => before.processes.get(&pid),
            Of::Object(dev, ino) => before.objects.get(&(dev, ino)).map(|(spans, _)| spans),
        });
        let has = |address| !self.plain && before.is_some_and(|before| before.contains(address));
        recent.compare(of, &job.ranges, pages, has)
    }

    fn of(&self, from: From) -> Option<Of> {
        match from {
            From::Memory(pid) | From::Protected(pid) => Some(Of::Process(pid)),
            From::Object(number) => self.objects.get(number).copied().flatten().map(|(dev, ino)| Of::Object(dev, ino)),
            From::Parent => None,
        }
    }
}

const CLASSES: [Class; 3] = [Class::Plain, Class::OverFile, Class::Protected];

fn from(class: Class, pid: i32) -> From {
    match class {
        Class::Plain | Class::OverFile => From::Memory(pid),
        Class::Protected => From::Protected(pid),
    }
}

fn class(readable: bool, kind: Kind) -> Class {
    match kind {
        _ if !readable => Class::Protected,
        Kind::File => Class::OverFile,
        Kind::Anonymous | Kind::Hugetlb => Class::Plain,
    }
}

fn kind(huge: bool, file: bool) -> Kind {
    match (huge, file) {
        (true, _) => Kind::Hugetlb,
        (false, true) => Kind::File,
        (false, false) => Kind::Anonymous,
    }
}

/// The mappings with pages of the process's own.
fn areas(space: &AddressSpace) -> Vec<Area> {
    let own = space.mappings.iter().filter(|m| !m.shared && m.backing != Backing::Kernel);
    own.map(|m| {
        let kind = kind(m.huge_page_kib != 0, m.backing != Backing::Anonymous);
        let mergeable = m.flags.iter().any(|f| f == "mg");
        Area { start: m.start, end: m.end, class: class(m.prot & libc::PROT_READ as u32 != 0, kind), kind, mergeable }
    })
    .collect()
}

/// The same, as proc_pid_maps(5) tells it.
fn private(vmas: &[Vma]) -> Vec<Area> {
    let kernel = |v: &&Vma| [&b"[vdso]"[..], b"[vvar", b"[vsyscall]", b"/[aio]"].iter().any(|name| v.name.starts_with(name));
    let own = vmas.iter().filter(|v| !v.shared && !kernel(v));
    own.map(|v| {
        let kind = kind(v.name.starts_with(b"/anon_hugepage"), v.inode != 0);
        // That is not told here: what may be, is taken to be.
        Area { start: v.start, end: v.end, class: class(v.prot & libc::PROT_READ as u32 != 0, kind), kind, mergeable: true }
    })
    .collect()
}
