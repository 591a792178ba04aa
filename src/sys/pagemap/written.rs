//! Which pages were written since they were last protected, where userfaultfd(2) has the kernel note that
//! ([`crate::sys::userfaultfd`]): `PAGEMAP_SCAN` with `PM_SCAN_WP_MATCHING`, Linux 6.7. Finding a page and protecting it
//! again are one step under the page table's lock: what is written afterwards is told the next time.

use super::{IS_FILE, IS_PFNZERO, IS_PRESENT, IS_SWAPPED, PAGE, Pagemap, Region, ScanArg, pagemap_scan, push};
use nix::errno::Errno;
use std::os::fd::AsRawFd;

const IS_WPALLOWED: u64 = 1;
const IS_WRITTEN: u64 = 1 << 1;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 1 << 1;
/// Bit of a page's word: it is not present, but the page table knows it.
const PM_SWAP: u64 = 1 << 62;
const PM_PRESENT: u64 = 1 << 63;
const PM_FILE: u64 = 1 << 61;
const PM_SOFT_DIRTY: u64 = 1 << 55;
/// Number of the frame; with [`PM_SWAP`], place in swap. Nothing without `CAP_SYS_ADMIN`.
const PM_PLACE: u64 = PM_SOFT_DIRTY - 1;
/// With [`PM_SWAP`]: number of the swap area.
const PM_TYPE: u64 = 31;

/// Room for what one scan finds; used again and again.
#[derive(Debug)]
pub struct Regions(Vec<Region>);

impl Default for Regions {
    fn default() -> Self {
        Regions(vec![Region::default(); MOST])
    }
}

/// Regions that one scan may tell, which are as many as the kernel collects at a time. Where it collects several times,
/// `walk_end` stays where it began the last time, though it has told all up to the end (seen up to Linux 6.18). Who goes on
/// from there is told twice what stands still, and what is written in between comes behind all that follows it.
const MOST: usize = 512;

impl Regions {
    /// Where few are expected.
    pub(super) fn few() -> Self {
        Regions(vec![Region::default(); 64])
    }
}

const _: () = assert!(MOST as u64 * PAGE <= 2 << 20, "PAGEMAP_WALK_SIZE of the kernel");

/// What a scan asks for.
#[derive(Clone, Copy, Default)]
pub(super) struct Question {
    pub(super) flags: u64,
    /// Must be there.
    pub(super) all: u64,
    /// Must not be there.
    pub(super) none: u64,
    /// One of them must be there.
    pub(super) any: u64,
    /// Are told.
    pub(super) tell: u64,
}

/// How the page table shows that there is no page but a mark: one to be protected once it is there, or a guard. It looks
/// like a page in a swap area of this number. `None` where that is not shown (without `CAP_SYS_ADMIN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker(Option<u64>);

/// The frame that a page is in, or its place in swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Marker {
    fn is(self, word: u64) -> bool {
        self.0 == Some(word & PM_TYPE)
    }
}

impl Pagemap {
    pub(super) fn ask(
        &self,
        (start, end): (u64, u64),
        q: Question,
        regions: &mut Regions,
        mut tell: impl FnMut(&Region),
    ) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: q.flags,
                start: at,
                end,
                walk_end: 0,
                vec: regions.0.as_mut_ptr() as u64,
                vec_len: regions.0.len() as u64,
                max_pages: 0,
                category_inverted: q.none,
                category_mask: q.all | q.none,
                category_anyof_mask: q.any,
                return_mask: q.tell,
            };
            // SAFETY: `arg` and the regions that it points to outlive the call.
            let n = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }? as usize;
            regions.0[..n].iter().for_each(&mut tell);
            // It stops before a huge page of a size that cannot be protected.
            if arg.walk_end <= at {
                return Err(Errno::EPERM);
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    /// Adds to `written` the pages of one mapping that were written, and protects them, with all others that are not
    /// there yet, as far as their page tables are: these are told once, as written.
    ///
    /// This is the kernel's fastest way, which some kernels have wrong: see [`crate::sys::feature::scans`].
    ///
    /// # Errors
    /// `EPERM` when writes to it are not noted: then nothing was done, unless mappings have changed meanwhile. `written`
    /// may hold a part of the answer then.
    pub fn written(&self, area: (u64, u64), regions: &mut Regions, written: &mut Vec<(u64, u64)>) -> Result<(), Errno> {
        let question = Question { flags: WP_MATCHING | CHECK_WPASYNC, all: IS_WRITTEN, tell: IS_WRITTEN, ..Question::default() };
        self.ask(area, question, regions, |r| push(written, r.start, r.end))
    }

    /// The same for pages that are there, those of files included; the others stay as they are.
    ///
    /// # Errors
    /// As [`Pagemap::written`].
    pub fn written_present(&self, area: (u64, u64), regions: &mut Regions, written: &mut Vec<(u64, u64)>) -> Result<(), Errno> {
        let flags = WP_MATCHING | CHECK_WPASYNC;
        let question = Question { flags, all: IS_WRITTEN, any: IS_PRESENT | IS_SWAPPED, tell: IS_WRITTEN, none: 0 };
        self.ask(area, question, regions, |r| push(written, r.start, r.end))
    }

    /// The same for anonymous memory, with the pages that are there and were not written.
    ///
    /// # Errors
    /// As [`Pagemap::written`].
    pub fn written_and_kept(
        &self,
        area: (u64, u64),
        regions: &mut Regions,
        written: &mut Vec<(u64, u64)>,
        kept: &mut Vec<(u64, u64)>,
    ) -> Result<(), Errno> {
        let flags = WP_MATCHING | CHECK_WPASYNC;
        let question = Question { flags, none: IS_PFNZERO, any: IS_PRESENT | IS_SWAPPED, tell: IS_WRITTEN, all: 0 };
        self.ask(area, question, regions, |r| push(if r.categories & IS_WRITTEN != 0 { &mut *written } else { &mut *kept }, r.start, r.end))
    }

    /// Adds the pages that are present and no file's; of pages in swap it cannot be told from here.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn private(&self, area: (u64, u64), regions: &mut Regions, out: &mut Vec<(u64, u64)>) -> Result<(), Errno> {
        // What is private needs time to be told, and has only to be where a file is.
        let question = Question { none: IS_FILE, any: IS_PRESENT, tell: IS_PRESENT, ..Question::default() };
        self.ask(area, question, regions, |r| push(out, r.start, r.end))
    }

    /// Adds those of these pages that exist and are the process's own: neither a file's, where there is one behind, nor
    /// zeros that were only read.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn existing(
        &self,
        area: (u64, u64),
        file: bool,
        marker: Marker,
        regions: &mut Regions,
        out: &mut Vec<(u64, u64)>,
    ) -> std::io::Result<()> {
        let none = if file { IS_FILE } else { IS_PFNZERO };
        let question = Question { none, any: IS_PRESENT, tell: IS_PRESENT, ..Question::default() };
        let mut at = area.0;
        let mut present = Vec::new();
        self.ask(area, question, regions, |r| push(&mut present, r.start, r.end))?;
        present.push((area.1, area.1));
        for (start, end) in present {
            if at < start {
                self.each(at, start, |page, word| {
                    if word & PM_SWAP != 0 && !marker.is(word) {
                        push(out, page, page + PAGE);
                    }
                })?;
            }
            if start < end {
                push(out, start, end);
            }
            at = end;
        }
        Ok(())
    }

    /// Whether a page is present, in swap, or marked: whether its page table exists, when all pages without are marked.
    pub fn known(&self, page: u64) -> std::io::Result<bool> {
        let mut known = false;
        self.each(page, page + PAGE, |_, word| known = word & (PM_PRESENT | PM_SWAP) != 0)?;
        Ok(known)
    }

    /// Whether writes to the mapping with this page are noted.
    pub fn noted(&self, page: u64) -> bool {
        let mut noted = false;
        let question = Question { all: IS_WPALLOWED, tell: IS_WPALLOWED, ..Question::default() };
        let mut regions = Regions(vec![Region::default()]);
        let asked = self.ask((page, page + PAGE), question, &mut regions, |r| noted |= r.categories & IS_WPALLOWED != 0);
        asked.is_ok() && noted
    }

    /// Tells of the own pages of a private mapping where each of them is, and whether its soft-dirty mark is set. The scan does
    /// not show the former.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn soft_dirty(&self, area: (u64, u64), mut tell: impl FnMut(u64, Option<Place>, bool)) -> std::io::Result<()> {
        self.each(area.0, area.1, |page, word| {
            if word & (PM_PRESENT | PM_SWAP) != 0 && word & PM_FILE == 0 {
                let shown = word & PM_PLACE != 0;
                let place = shown.then_some(Place(word & (PM_PRESENT | PM_SWAP | PM_PLACE)));
                tell(page, place, word & PM_SOFT_DIRTY != 0);
            }
        })
    }

    /// How a page is shown that has just been marked.
    pub fn marker(&self, page: u64) -> std::io::Result<Marker> {
        let mut marker = Marker(None);
        self.each(page, page + PAGE, |_, word| marker = Marker((word & PM_SWAP != 0).then_some(word & PM_TYPE).filter(|&t| t != 0)))?;
        Ok(marker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::region::Region as Memory;

    /// More regions than the kernel collects at a time: each is told once, in order.
    #[test]
    fn no_page_is_told_twice() {
        const PAGES: u64 = 3000;
        let mut memory = Memory::anonymous((PAGES * PAGE) as usize).expect("memory");
        for n in (0..PAGES).step_by(2) {
            memory.bytes_mut()[(n * PAGE) as usize] = 1;
        }
        let start = memory.bytes().as_ptr() as u64;
        let map = Pagemap::open(std::process::id() as i32).expect("page map");
        let mut found = Vec::new();
        match map.private((start, start + PAGES * PAGE), &mut Regions::default(), &mut found) {
            Err(Errno::ENOTTY) => return, // before Linux 6.7
            asked => asked.expect("an answer"),
        }
        let expected: Vec<_> = (0..PAGES).step_by(2).map(|n| (start + n * PAGE, start + (n + 1) * PAGE)).collect();
        assert!(found == expected, "{} ranges, in order: {}", found.len(), found.is_sorted());
    }
}
