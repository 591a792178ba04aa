//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst): the kernel marks pages that are written, moved or new.
//!
//! Two things it does not mark, as seen under Linux 6.1 and 6.12: pages that mremap(2) moves a whole page table at a time, 2 MiB or more that
//! are aligned, and the page of zeros that is read where something was given back. So a page only counts as kept when it is also
//! where it was, in the same frame: one that is not marked has not been touched, and two cannot be in one frame.
//!
//! It marks too much where a new mapping is joined to one that is there: all pages of both.
//!
//! Asking and wiping are two steps, so nothing may run in between. All of a process is wiped at once, and whoever else wipes
//! (another meio, a debugger) takes news away that nobody can see is missing. A kernel without `CONFIG_MEM_SOFT_DIRTY` accepts
//! it all and never marks anything, so the tracker is only used after it was tried ([`crate::sys::feature::soft_dirty`]).

use super::hash::begin;
use super::{Area, Hashes, Kind, Of, Seen, Tracker, apart};
use crate::error::{Context, Result};
use crate::sys::pagemap::{PAGE, Pagemap, Place, push};
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use std::collections::{HashMap, HashSet};

/// A process whose marks were wiped.
struct Wiped {
    /// When it began: a child inherits its parent's marks, and another process may get its number.
    begun: u64,
    /// Where its pages were, in order.
    places: Vec<(u64, Place)>,
}

/// See the [module](self).
#[derive(Default)]
pub struct SoftDirty {
    wiped: HashMap<i32, Wiped>,
    hashes: Hashes,
}

impl Tracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn still(&self) -> bool {
        true
    }

    fn stranger(&self, _: i32) -> bool {
        false
    }

    fn enter(&mut self, _: &mut freeze::Process, _: &[Vma], _: Option<u64>, _: &mut Known) -> Result<Option<String>> {
        Ok(None)
    }

    fn look(&mut self, pid: i32, areas: &[Area], seen: &mut Seen) -> Result<()> {
        let context = || format!("reading the page map of process {pid}");
        let map = Pagemap::open(pid).context(context)?;
        let begun = begin(pid);
        // Forgotten until it is wiped again: what fails in between makes everything count as changed.
        let known = self.wiped.remove(&pid).filter(|w| Some(w.begun) == begun);
        let (mut places, mut next) = (Vec::new(), 0);
        for area in apart(areas) {
            // Merging pages loses marks; what is given back and is zero again has none where pages are huge.
            let before = match &known {
                Some(wiped) if !area.mergeable && area.kind != Kind::Hugetlb => &wiped.places[..],
                _ => &[],
            };
            let out = &mut seen[area.class];
            let tell = |page: u64, place: Option<Place>, marked: bool| {
                while before.get(next).is_some_and(|b| b.0 < page) {
                    next += 1;
                }
                let kept = !marked && place.is_some_and(|place| before.get(next) == Some(&(page, place)));
                push(if kept { &mut out.kept } else { &mut out.changed }, page, page + PAGE);
                places.extend(place.map(|place| (page, place)));
            };
            map.soft_dirty((area.start, area.end), tell).context(context)?;
        }
        std::fs::write(format!("/proc/{pid}/clear_refs"), "4").context(|| format!("wiping the marks of process {pid}"))?;
        if let Some(begun) = begun {
            self.wiped.insert(pid, Wiped { begun, places });
        }
        Ok(())
    }

    fn missed(&mut self, of: Of, range: (u64, u64)) {
        match of {
            // Nothing is missed of a process that stands still: then something is wrong with all of it.
            Of::Process(pid) => drop(self.wiped.remove(&pid)),
            Of::Object(..) => self.hashes.forget(of, range),
        }
    }

    fn doubt(&mut self) {
        self.wiped.clear();
        self.hashes.clear();
    }

    fn protects(&self, _: i32) -> bool {
        false
    }

    fn retain(&mut self, of: &HashSet<Of>) {
        self.wiped.retain(|&pid, _| of.contains(&Of::Process(pid)));
        self.hashes.retain(of);
    }

    fn hashes(&self) -> &Hashes {
        &self.hashes
    }
}
