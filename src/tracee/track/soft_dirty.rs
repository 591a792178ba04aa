//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst): the kernel marks pages that are written, moved or new.
//!
//! Asking and wiping are two steps, so nothing may run in between. All of a process is wiped at once, and whoever else wipes
//! (another meio, a debugger) takes news away that nobody can see is missing. A kernel without `CONFIG_MEM_SOFT_DIRTY` accepts
//! it all and never marks anything, so the tracker is only used after it was tried ([`crate::sys::feature::soft_dirty`]).

use super::hash::begin;
use super::ranges::Ranges;
use super::{Area, Hashes, Kind, Of, Seen, Tracker, apart};
use crate::error::{Context, Result};
use crate::sys::pagemap::{Pagemap, push};
use crate::sys::proc::maps::Vma;
use crate::tracee::foothold::Known;
use crate::tracee::freeze;
use std::collections::{HashMap, HashSet};

/// See the [module](self).
#[derive(Default)]
pub struct SoftDirty {
    /// When each process began whose marks were wiped: a child inherits its parent's, and another process may get its number.
    wiped: HashMap<i32, u64>,
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
        let mut map = Pagemap::open(pid).context(context)?;
        let begun = begin(pid);
        // Forgotten until it is wiped again: what fails in between makes everything count as changed.
        let known = begun.is_some() && self.wiped.remove(&pid) == begun;
        for area in apart(areas) {
            let (mut marked, mut unmarked) = (Ranges::new(), Ranges::new());
            map.soft_dirty((area.start, area.end), &mut marked, &mut unmarked).context(context)?;
            // Merging pages loses marks; what is given back and is zero again has none where pages are huge.
            let sure = known && !area.mergeable && area.kind != Kind::Hugetlb;
            let out = &mut seen[area.class];
            if sure {
                marked.iter().for_each(|r| push(&mut out.changed, r.0, r.1));
                unmarked.iter().for_each(|r| push(&mut out.kept, r.0, r.1));
            } else {
                super::ranges::either(&marked, &unmarked).iter().for_each(|r| push(&mut out.changed, r.0, r.1));
            }
        }
        std::fs::write(format!("/proc/{pid}/clear_refs"), "4").context(|| format!("wiping the marks of process {pid}"))?;
        if let Some(begun) = begun {
            self.wiped.insert(pid, begun);
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
