//! Asynchronous write protection by userfaultfd(2), and `PAGEMAP_SCAN`: both as of Linux 6.7.
//!
//! A userfaultfd belongs to the address space that it was made in, so the process is made to make it, once. meio takes
//! it over (pidfd_getfd(2)) and the process closes it in the same breath. From then on all happens from outside: new
//! mappings are registered by ioctl on meio's descriptor, a look is one ioctl a mapping. When meio ends, however it ends,
//! the kernel closes the only descriptor and takes every protection away.
//!
//! What is registered belongs to a mapping, and no mapping inherits it: those that are new, moved (mremap(2)) or a child's
//! (fork(2)) are not. A scan of one fails with `EPERM`; then all of it counts as changed and it is registered. What grows (a
//! stack, mremap(2) in place) stays registered: its new pages have never been protected.

use super::{Area, Pages, Seen, Tracker};
use crate::error::{Context, Error, Result};
use crate::sys::pagemap::{Pagemap, Regions, Want};
use crate::sys::proc::maps::Vma;
use crate::sys::task;
use crate::sys::userfaultfd::{FLAGS, Userfaultfd};
use crate::tracee::Held;
use crate::tracee::foothold::{Foothold, Known};
use crate::tracee::freeze;
use crate::tracee::inject::Injector;
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};

/// See the [module](self).
#[derive(Default)]
pub struct Uffd {
    watched: HashMap<i32, Watched>,
    regions: Regions,
}

/// What is known of one process.
struct Watched {
    /// `None`: it cannot be watched, all of it counts as changed.
    uffd: Option<Userfaultfd>,
    /// A page of a mapping that is registered; in another address space, after execve(2), it is not.
    landmark: u64,
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
        let Some(held) = process.threads.first_mut() else { return Ok(None) };
        let (watched, why) = match begin(held, vmas, call, known)? {
            Ok(watched) => (watched, None),
            Err(why) => (Watched { uffd: None, landmark: 0 }, Some(format!("process {pid} is saved whole each time: {why}"))),
        };
        self.watched.insert(pid, watched);
        Ok(why)
    }

    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()> {
        let context = || format!("reading the page map of process {pid}");
        let mut map = Pagemap::open(pid).context(context)?;
        let watched = self.watched.get(&pid);
        // Not so after execve(2): what this process maps now is not what the userfaultfd knows.
        let uffd = watched.filter(|w| map.noted(w.landmark)).and_then(|w| w.uffd.as_ref());
        let mut part = Pages::default();
        for area in areas {
            let out = &mut seen[area.class];
            part.clear();
            match uffd.map(|uffd| look_at(uffd, &map, area, &mut self.regions, &mut part)) {
                Some(Ok(())) => {
                    part.changed.iter().for_each(|r| out.push(true, r.0, r.1));
                    part.kept.iter().for_each(|r| out.push(false, r.0, r.1));
                }
                None
                | Some(Err(Errno::EPERM | Errno::EINVAL | Errno::ENOENT | Errno::ENOMEM | Errno::EBUSY | Errno::ESRCH | Errno::EAGAIN)) => {
                    map.ranges(area.start, area.end, Want::Own, &mut out.changed).context(context)?;
                }
                Some(Err(e)) => return Err(Error::from(e)).context(context),
            }
        }
        Ok(())
    }

    fn protects(&self, pid: i32) -> bool {
        self.watched.get(&pid).is_some_and(|w| w.uffd.is_some())
    }

    fn retain(&mut self, pids: &HashSet<i32>) {
        self.watched.retain(|pid, _| pids.contains(pid));
    }
}

/// Looks at a mapping, and registers it when that is still to be done.
fn look_at(uffd: &Userfaultfd, map: &Pagemap, area: &Area, regions: &mut Regions, out: &mut Pages) -> nix::Result<()> {
    let (start, end) = (area.start, area.end);
    match map.protect(start, end, area.file, regions, out) {
        Err(Errno::EPERM) => {
            // A part may have been told already when mappings change meanwhile: all of it is changed then.
            out.clear();
            uffd.register(start, end)?;
            map.protect(start, end, area.file, regions, out)?;
            let kept = std::mem::take(&mut out.kept);
            if !kept.is_empty() {
                return Err(Errno::EPERM);
            }
            Ok(())
        }
        done => done,
    }
}

/// Makes the userfaultfd of a process that stands still. In words, why it cannot be watched.
fn begin(held: &mut Held, vmas: &[Vma], call: Option<u64>, known: &mut Known) -> Result<std::result::Result<Watched, String>> {
    let pid = held.pid;
    let map = Pagemap::open(pid).context(|| format!("opening the page map of process {pid}"))?;
    // Another process has the same memory, and it is watched there: two that look would take news from each other.
    if vmas.iter().any(|v| map.noted(v.start)) {
        return Ok(Err("its memory is watched already".into()));
    }
    let Some(foothold) = Foothold::find(pid, vmas, held.registers.rsp, known) else {
        return Ok(Err("it holds no system call instruction".into()));
    };
    let mut run = Injector::begin(held, &foothold, call)?;
    let made = run.call(libc::SYS_userfaultfd, [FLAGS as u64, 0, 0, 0, 0, 0])?;
    let taken = if made >= 0 {
        let taken = task::Files::of(pid).get(made as i32);
        run.must(libc::SYS_close, [made as u64, 0, 0, 0, 0, 0])?;
        taken
    } else {
        Err(Errno::from_raw(-made as i32))
    };
    run.end()?;
    let uffd = match taken.and_then(Userfaultfd::adopt) {
        Ok(uffd) => uffd,
        Err(e) => return Ok(Err(format!("userfaultfd: {}", e.desc()))),
    };
    // The end of the stack holds the environment, and is never given back.
    let stack = vmas.iter().rev().find(|v| v.name == b"[stack]").or_else(|| vmas.iter().rev().find(|v| !v.shared && v.prot & 2 != 0));
    let Some(stack) = stack else { return Ok(Err("it has no memory of its own".into())) };
    match uffd.register(stack.start, stack.end) {
        Ok(()) => Ok(Ok(Watched { uffd: Some(uffd), landmark: stack.end - crate::sys::pagemap::PAGE })),
        Err(e) => Ok(Err(format!("userfaultfd: {}", e.desc()))),
    }
}
