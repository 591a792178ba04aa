//! Asynchronous write protection by userfaultfd(2), and `PAGEMAP_SCAN`: both as of Linux 6.7.
//!
//! A userfaultfd belongs to the address space that it was made in, so the process is made to make it, once. meio takes
//! it over (pidfd_getfd(2)) from a thread that has no other descriptor and ends with it ([`super::guest`]). From then on all
//! happens from outside: new mappings are registered by ioctl on meio's descriptor, a look is one ioctl a mapping. When meio
//! ends, however it ends, the kernel closes the only descriptor and takes every protection away.
//!
//! What is registered is a mapping, and none inherits it: those that are new, moved (mremap(2)) or a child's (fork(2)) are
//! not. A scan of one fails with `EPERM`; then all of it counts as changed and it is registered. What grows (a stack,
//! mremap(2) in place) stays registered: its new pages have never been protected, and so count as written.
//!
//! The kernel's fastest scan tells written pages only: of the others it is known from the look before that they exist. Some
//! kernels do not tell of a part of an address space that has no page table any more (`MADV_DONTNEED` of a huge page, or since
//! Linux 6.14 of all pages of a table); there one word of the page map for each 2 MiB does. Others make page tables for what has
//! none, so it is only used where pages were at the look before.

use super::guest;
use super::ranges::{Ranges, both, either, joined, within, without};
use super::{Area, Hashes, Kind, Of, Seen, Tracker, apart};
use crate::error::{Context, Error, Kind as ErrorKind, Result};
use crate::sys::feature::{self, Scans};
use crate::sys::pagemap::{Marker, PAGE, Pagemap, Regions, push};
use crate::sys::proc::maps::Vma;
use crate::sys::task;
use crate::sys::userfaultfd::{FLAGS, Userfaultfd};
use crate::tracee::Held;
use crate::tracee::foothold::{Foothold, Known};
use crate::tracee::freeze;
use crate::tracee::inject::Injector;
use nix::errno::Errno;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// What one page table of the lowest level covers.
const TABLE: u64 = 512 * PAGE;
/// Bytes from which on it pays to have another thread look at a part.
const SHARE: u64 = 1 << 30;
/// Runs of written pages of which it is found out which of them exist. Of fewer it takes longer than to read zeros.
const RUN: u64 = 16 * PAGE;

/// See the [module](self).
pub struct Uffd {
    watched: HashMap<i32, Watched>,
    scans: Scans,
    regions: Regions,
    hashes: Hashes,
}

/// What is known of one process.
struct Watched {
    /// `None`: it cannot be watched, all of it counts as changed.
    uffd: Option<Userfaultfd>,
    /// A page of a mapping that is registered; in another address space, after execve(2), it is not.
    landmark: u64,
    /// Its own pages at the last look.
    own: Ranges,
    /// They count as changed at the next look.
    doubted: bool,
    /// These do, in any order.
    missed: Ranges,
}

/// How the beginning went.
enum Begun {
    /// Writes are noted; a page of a mapping of which that is true.
    Watching(Userfaultfd, u64),
    /// It may be possible later.
    NotNow,
    /// It is not possible, and why.
    Never(String),
}

/// One look at one process.
struct Glance<'a> {
    uffd: &'a Userfaultfd,
    map: &'a Pagemap,
    scans: Scans,
    /// Own pages at the last look.
    own: &'a [(u64, u64)],
    regions: &'a mut Regions,
}

impl Uffd {
    /// A tracker that knows nobody yet.
    ///
    /// # Errors
    /// Where the kernel cannot do it.
    pub fn new() -> Result<Self> {
        let scans = feature::scans().map_err(|lack| Error::other(format!("userfaultfd: {lack}")))?;
        Ok(Uffd { watched: HashMap::new(), scans, regions: Regions::default(), hashes: Hashes::default() })
    }
}

impl Tracker for Uffd {
    fn name(&self) -> &'static str {
        "uffd"
    }

    fn still(&self) -> bool {
        false
    }

    fn stranger(&self, pid: i32) -> bool {
        match self.watched.get(&pid) {
            Some(watched) if watched.uffd.is_some() => !Pagemap::open(pid).is_ok_and(|map| map.noted(watched.landmark)),
            Some(_) => false,
            None => true,
        }
    }

    fn enter(&mut self, process: &mut freeze::Process, vmas: &[Vma], call: Option<u64>, known: &mut Known) -> Result<Option<String>> {
        let pid = process.pid;
        if !self.stranger(pid) {
            return Ok(None);
        }
        // Closed before the next one is made: a mapping can have only one.
        self.watched.remove(&pid);
        let threads: Vec<i32> = process.threads.iter().map(|t| t.tid).collect();
        let Some(held) = process.threads.first_mut() else { return Ok(None) };
        let (uffd, landmark, why) = match begin(held, &threads, vmas, call, known)? {
            Begun::NotNow => return Ok(None),
            Begun::Watching(uffd, landmark) => (Some(uffd), landmark, None),
            Begun::Never(why) => (None, 0, Some(format!("process {pid} is saved whole each time: {why}"))),
        };
        // Registered, but not looked at yet: doubted.
        self.watched.insert(pid, Watched { uffd, landmark, own: Ranges::new(), doubted: true, missed: Ranges::new() });
        Ok(why)
    }

    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()> {
        let context = || format!("reading the page map of process {pid}");
        let map = Pagemap::open(pid).context(context)?;
        // Not after execve(2): what this process maps now is not what the userfaultfd knows.
        let watched = self.watched.get_mut(&pid).filter(|w| w.uffd.is_some() && map.noted(w.landmark));
        let Some(watched) = watched else {
            for area in apart(areas) {
                whole(&map, &area, self.scans.marker, &mut self.regions, &mut seen[area.class].changed).context(context)?;
            }
            return Ok(());
        };
        // Whatever fails now: what the scans have told is lost.
        let doubted = std::mem::replace(&mut watched.doubted, true);
        let Some(uffd) = &watched.uffd else { return Ok(()) };
        let before = std::mem::take(&mut watched.own);
        let mut missed = std::mem::take(&mut watched.missed);
        missed.sort_unstable();
        let missed = either(&missed, &[]);
        for area in apart(areas) {
            let mut glance = Glance { uffd, map: &map, scans: self.scans, own: &before, regions: &mut self.regions };
            let looked = match area.kind {
                // What was given back and is zero again keeps its mark, and looks unchanged.
                Kind::Hugetlb => Err(Errno::EINVAL),
                _ if doubted => glance.first(&area),
                _ => glance.at(&area),
            };
            let (changed, kept) = match looked {
                Ok(found) => found,
                // Not to be registered, or mappings change meanwhile.
                Err(Errno::EPERM | Errno::EINVAL | Errno::ENOENT | Errno::ENOMEM | Errno::EBUSY | Errno::ESRCH | Errno::EAGAIN) => {
                    let mut all = Ranges::new();
                    whole(&map, &area, self.scans.marker, &mut self.regions, &mut all).context(context)?;
                    (all, Ranges::new())
                }
                Err(e) => return Err(Error::from(e)).context(context),
            };
            for &(start, end) in &either(&changed, &kept) {
                push(&mut watched.own, start, end);
            }
            let owed = both(&kept, &missed);
            let (changed, kept) = if owed.is_empty() { (changed, kept) } else { (either(&changed, &owed), without(&kept, &owed)) };
            let out = &mut seen[area.class];
            changed.iter().for_each(|r| push(&mut out.changed, r.0, r.1));
            kept.iter().for_each(|r| push(&mut out.kept, r.0, r.1));
        }
        watched.doubted = false;
        Ok(())
    }

    fn missed(&mut self, of: Of, range: (u64, u64)) {
        match of {
            Of::Process(pid) => self.watched.get_mut(&pid).into_iter().for_each(|w| w.missed.push(range)),
            Of::Object(..) => self.hashes.forget(of, range),
        }
    }

    fn doubt(&mut self) {
        self.watched.values_mut().for_each(|w| w.doubted = true);
        self.hashes.clear();
    }

    fn protects(&self, pid: i32) -> bool {
        self.watched.get(&pid).is_some_and(|w| w.uffd.is_some())
    }

    fn retain(&mut self, of: &HashSet<Of>) {
        self.watched.retain(|&pid, _| of.contains(&Of::Process(pid)));
        self.hashes.retain(of);
    }

    fn hashes(&self) -> &Hashes {
        &self.hashes
    }
}

/// All own pages of a mapping.
fn whole(map: &Pagemap, area: &Area, marker: Marker, regions: &mut Regions, out: &mut Ranges) -> std::io::Result<()> {
    map.existing((area.start, area.end), area.kind != Kind::Anonymous, marker, regions, out)
}

impl Glance<'_> {
    /// What has changed in a mapping, and what has not.
    fn at(&mut self, area: &Area) -> nix::Result<(Ranges, Ranges)> {
        let range = (area.start, area.end);
        let seen = if area.kind == Kind::File { self.over_file(range) } else { self.anonymous(range) };
        match seen {
            Err(Errno::EPERM) => self.first(area),
            seen => seen,
        }
    }

    /// All pages of a mapping, which is registered if it is not yet; none of them counts as unchanged.
    fn first(&mut self, area: &Area) -> nix::Result<(Ranges, Ranges)> {
        let range = (area.start, area.end);
        let mut found = self.all(area);
        if found == Err(Errno::EPERM) {
            self.uffd.register(range.0, range.1)?;
            found = self.all(area);
            // None was protected just now: these have marks of former times.
            if found.as_ref().map_or(true, |(_, marked)| !marked.is_empty()) {
                self.uffd.unprotect(range.0, range.1)?;
                found = self.all(area);
            }
        }
        let (written, kept) = found?;
        Ok((either(&written, &kept), Ranges::new()))
    }

    /// The own pages of a mapping that are not protected and those that are, all of them now.
    fn all(&mut self, area: &Area) -> nix::Result<(Ranges, Ranges)> {
        let range = (area.start, area.end);
        let (mut written, mut kept) = (Ranges::new(), Ranges::new());
        if area.kind == Kind::File {
            self.map.written_present(range, self.regions, &mut written)?;
            let own = self.existing(&[range], true)?;
            kept = without(&own, &written);
            written = without(&own, &kept);
        } else {
            self.map.written_and_kept(range, self.regions, &mut written, &mut kept)?;
        }
        Ok((written, kept))
    }

    /// Several threads share a large mapping.
    fn anonymous(&mut self, range: (u64, u64)) -> nix::Result<(Ranges, Ranges)> {
        let threads = rayon::current_num_threads() as u64;
        let size = ((range.1 - range.0) / threads).max(SHARE).next_multiple_of(TABLE);
        // At borders of page tables.
        let starts = (range.0 / TABLE * TABLE..range.1).step_by(size as usize);
        let shares: Vec<(u64, u64)> = starts.map(|at| (at.max(range.0), range.1.min(at + size))).collect();
        if let [one] = shares[..] {
            return self.share(one);
        }
        let (uffd, map, scans, own) = (self.uffd, self.map, self.scans, self.own);
        let look = |&share| Glance { uffd, map, scans, own, regions: &mut Regions::default() }.share(share);
        let found = shares.par_iter().map(look).collect::<Vec<_>>();
        let (mut changed, mut kept) = (Ranges::new(), Ranges::new());
        for share in found {
            let share = share?;
            share.0.iter().for_each(|r| push(&mut changed, r.0, r.1));
            share.1.iter().for_each(|r| push(&mut kept, r.0, r.1));
        }
        Ok((changed, kept))
    }

    fn share(&mut self, range: (u64, u64)) -> nix::Result<(Ranges, Ranges)> {
        let (mut changed, mut kept) = (Ranges::new(), Ranges::new());
        if !self.scans.quick {
            self.map.written_and_kept(range, self.regions, &mut changed, &mut kept)?;
            return Ok((changed, kept));
        }
        // The quick scan also protects what is not there: only where there is something, or it would take page tables for
        // all that a program has set aside.
        let own: Ranges = within(self.own, range).collect();
        let dense = joined(&own, TABLE / 8);
        for &part in &dense {
            let mut written = Ranges::new();
            self.map.written(part, self.regions, &mut written)?;
            let before: Ranges = within(&own, part).collect();
            let new = self.existing(&without(&written, &before), false)?;
            let mut again = Ranges::new();
            for (start, end) in both(&written, &before) {
                if end - start < RUN {
                    push(&mut again, start, end);
                } else {
                    self.existing(&[(start, end)], false)?.iter().for_each(|r| push(&mut again, r.0, r.1));
                }
            }
            changed.extend(either(&new, &again));
            let left = without(&before, &written);
            kept.extend(if self.scans.holes { left } else { self.with_table(&left)? });
        }
        let mut found = Ranges::new();
        for gap in without(&[range], &dense) {
            let (mut written, mut marked) = (Ranges::new(), Ranges::new());
            self.map.written_and_kept(gap, self.regions, &mut written, &mut marked)?;
            found.extend(either(&written, &marked));
        }
        Ok((either(&changed, &found), kept))
    }

    /// Those of these pages, which are all protected when they have a page table, that have one.
    fn with_table(&self, pages: &[(u64, u64)]) -> nix::Result<Ranges> {
        let mut there = Ranges::new();
        let mut known = None;
        for &(mut start, end) in pages {
            while start < end {
                let table = start / TABLE;
                let stop = end.min((table + 1) * TABLE);
                let exists = match known {
                    Some((of, exists)) if of == table => exists,
                    _ => self.map.known(start).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?,
                };
                known = Some((table, exists));
                if exists {
                    push(&mut there, start, stop);
                }
                start = stop;
            }
        }
        Ok(there)
    }

    fn over_file(&mut self, range: (u64, u64)) -> nix::Result<(Ranges, Ranges)> {
        let mut written = Ranges::new();
        self.map.written_present(range, self.regions, &mut written)?;
        let before: Ranges = within(self.own, range).collect();
        let unwritten = without(&before, &written);
        let mut present = Ranges::new();
        for &part in &unwritten {
            self.map.private(part, self.regions, &mut present)?;
        }
        // One that is not present is in swap, or has given way to the file's: it shows a mark in both cases.
        let kept = both(&unwritten, &present);
        let own = self.existing(&either(&before, &written), true)?;
        Ok((without(&own, &kept), kept))
    }

    /// Those of these pages that exist and are the process's own.
    fn existing(&mut self, pages: &[(u64, u64)], file: bool) -> nix::Result<Ranges> {
        let mut own = Ranges::new();
        for &part in pages {
            let found = self.map.existing(part, file, self.scans.marker, self.regions, &mut own);
            found.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        Ok(own)
    }
}

/// Lets the process itself make a userfaultfd and close it again once it is taken over. Should meio die between the two, the
/// process keeps a descriptor that does nothing.
fn plain(run: &mut Injector<'_>, pid: i32) -> Result<nix::Result<OwnedFd>> {
    let made = run.call(libc::SYS_userfaultfd, [FLAGS as u64, 0, 0, 0, 0, 0])?;
    if made < 0 {
        return Ok(Err(Errno::from_raw(-made as i32)));
    }
    let taken = task::Files::of(pid).get(made as i32);
    run.must(libc::SYS_close, [made as u64, 0, 0, 0, 0, 0])?;
    Ok(taken)
}

/// Makes the userfaultfd of a process that stands still. `threads`: all of its threads.
fn begin(held: &mut Held, threads: &[i32], vmas: &[Vma], call: Option<u64>, known: &mut Known) -> Result<Begun> {
    let pid = held.pid;
    let map = Pagemap::open(pid).context(|| format!("opening the page map of process {pid}"))?;
    // Another process has the same memory, and it is watched there: two that look would take news from each other.
    if vmas.iter().any(|v| map.noted(v.start)) {
        return Ok(Begun::Never("its memory is watched already".into()));
    }
    let Some(foothold) = Foothold::find(pid, vmas, held.registers.rsp, known) else {
        return Ok(Begun::Never("it holds no system call instruction".into()));
    };
    let mut run = match Injector::begin(held, &foothold, call) {
        // It is deep in its stack just now: at the next look.
        Err(e) if e.kind == ErrorKind::Unsupported => return Ok(Begun::NotNow),
        run => run?,
    };
    let taken = match guest::userfaultfd(&mut run, &foothold, threads)? {
        Some(fd) => Ok(fd),
        None => plain(&mut run, pid)?,
    };
    run.end()?;
    let uffd = match taken.and_then(Userfaultfd::adopt) {
        Ok(uffd) => uffd,
        Err(e) => return Ok(Begun::Never(format!("userfaultfd: {}", e.desc()))),
    };
    // The end of the stack holds the environment, and is never given back.
    let own = |v: &&Vma| !v.shared && v.prot & libc::PROT_WRITE as u32 != 0;
    let Some(stack) = vmas.iter().find(|v| v.name == b"[stack]").or_else(|| vmas.iter().rev().find(own)) else {
        return Ok(Begun::Never("it has no memory of its own".into()));
    };
    match uffd.register(stack.start, stack.end).and_then(|()| uffd.unprotect(stack.start, stack.end)) {
        Ok(()) => Ok(Begun::Watching(uffd, stack.end - PAGE)),
        Err(e) => Ok(Begun::Never(format!("userfaultfd: {}", e.desc()))),
    }
}
