//! Probes of finding out which pages there are, and which have changed.

use super::{Lack, Probe, check};
use crate::sys::pagemap::{MADV_GUARD_INSTALL, Marker, Pagemap, Regions};
use crate::sys::userfaultfd::Userfaultfd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Pages of our own to try things on.
struct Pages(NonNull<c_void>, usize);

impl Pages {
    fn new(count: usize) -> Result<Pages, Lack> {
        let length = NonZeroUsize::new(count * PAGE).ok_or_else(|| Lack::seen("no pages"))?;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: our own mapping. A huge page would make neighbours look touched.
        unsafe { libc::madvise(at.as_ptr(), length.get(), libc::MADV_NOHUGEPAGE) };
        Ok(Pages(at, length.get()))
    }

    fn start(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn end(&self) -> u64 {
        self.start() + self.1 as u64
    }

    fn touch(&self, page: usize) {
        assert!((page + 1) * PAGE <= self.1);
        // SAFETY: inside our own writable mapping, as just checked; volatile so that it really happens.
        unsafe { self.0.as_ptr().cast::<u8>().add(page * PAGE).write_volatile(1) }
    }

    fn pagemap(&self, file: &File, page: usize) -> Result<u64, Lack> {
        let mut entry = [0u8; 8];
        file.read_exact_at(&mut entry, (self.start() / PAGE as u64 + page as u64) * 8)?;
        Ok(u64::from_ne_bytes(entry))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing else points into it.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

/// `/proc/PID/pagemap` (proc_pid_pagemap(5)): present pages are known from absent ones.
pub fn pagemap() -> Probe {
    const PRESENT: u64 = 1 << 63;
    let file = File::open("/proc/self/pagemap")?;
    let pages = Pages::new(2)?;
    pages.touch(1);
    match (pages.pagemap(&file, 0)? & PRESENT != 0, pages.pagemap(&file, 1)? & PRESENT != 0) {
        (false, true) => Ok("touched pages are known from untouched ones".into()),
        _ => Err(Lack::seen("it does not show which pages were touched")),
    }
}

/// linux/fs.h `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// The ranges of `pages` that have all categories of `mask`: start and end addresses.
fn scan(file: &File, pages: &Pages, mask: u64) -> Result<Vec<(u64, u64)>, Lack> {
    let mut found = [[0u64; 3]; 8];
    let mut arg = Scan {
        size: size_of::<Scan>() as u64,
        start: pages.start(),
        end: pages.end(),
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        category_mask: mask,
        return_mask: mask,
        ..Scan::default()
    };
    // SAFETY: `arg` has the kernel's layout and names `found` with its true length; both outlive the call.
    let n = check(unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) }.into())?;
    Ok(found.iter().take(n as usize).map(|r| (r[0], r[1])).collect())
}

/// `PAGEMAP_SCAN` (Linux 6.7): present pages as ranges, in one call.
pub fn pagemap_scan() -> Probe {
    let file = File::open("/proc/self/pagemap")?;
    let pages = Pages::new(4)?;
    pages.touch(1);
    pages.touch(2);
    let found = scan(&file, &pages, PAGE_IS_PRESENT)?;
    if found == [(pages.start() + PAGE as u64, pages.start() + 3 * PAGE as u64)] {
        Ok("touched pages are listed as ranges".into())
    } else {
        Err(Lack::seen("it lists the wrong pages"))
    }
}

/// Pages whose writes are noted, and the first of a page table that is all theirs; the second of it is touched.
fn noted_pages() -> Result<(Pages, u64, Userfaultfd, Pagemap), Lack> {
    const TABLE: usize = 512;
    let pages = Pages::new(4 * TABLE)?;
    let first = TABLE - pages.start() as usize / PAGE % TABLE;
    pages.touch(first + 1);
    let uffd = Userfaultfd::own()?;
    uffd.register(pages.start(), pages.end())?;
    let start = pages.start() + (first * PAGE) as u64;
    Ok((pages, start, uffd, Pagemap::open(std::process::id() as i32)?))
}

/// userfaultfd(2) with asynchronous write protection (Linux 6.7): which pages were written since the last look.
pub fn userfaultfd() -> Probe {
    let (pages, start, _uffd, map) = noted_pages()?;
    let mut regions = Regions::default();
    let mut look = || -> Result<_, Lack> {
        let mut written = Vec::new();
        map.written_present((pages.start(), pages.end()), &mut regions, &mut written)?;
        Ok(written)
    };
    look()?;
    let second = start + PAGE as u64;
    pages.touch(((second - pages.start()) / PAGE as u64) as usize);
    if look()? == [(second, second + PAGE as u64)] && look()?.is_empty() {
        Ok("written pages are found, each once".into())
    } else {
        Err(Lack::seen("it finds the wrong pages"))
    }
}

/// How written pages are found here.
#[derive(Debug, Clone, Copy)]
pub struct Scans {
    /// The kernel's fastest way finds all of them. Until Linux 6.16 it takes some pages in swap for unwritten.
    pub quick: bool,
    /// It tells of parts of a mapping that have no page table.
    pub holes: bool,
    /// How pages are shown that are not there, but marked.
    pub marker: Marker,
}

/// Finds out, where [`userfaultfd`] works.
///
/// # Errors
/// What does not work.
pub fn scans() -> Result<Scans, Lack> {
    let (pages, start, _uffd, map) = noted_pages()?;
    let mut regions = Regions::default();
    let guard = start + 2 * PAGE as u64;
    // A guard (Linux 6.13) is for the page table what a page in swap is.
    // SAFETY: one page of a mapping of our own that nothing points to.
    let installed = unsafe { libc::madvise(guard as *mut c_void, PAGE, MADV_GUARD_INSTALL) } == 0;
    let mut written = Vec::new();
    map.written((pages.start(), pages.end()), &mut regions, &mut written)?;
    let found = |page: u64| written.iter().any(|r| (r.0..r.1).contains(&page));
    if !found(start) || !found(start + PAGE as u64) {
        return Err(Lack::seen("it does not find all pages"));
    }
    // The next table has nothing in it.
    let hole = start + (512 * PAGE) as u64;
    Ok(Scans { quick: installed && found(guard), holes: found(hole), marker: map.marker(start)? })
}

/// Soft-dirty bits (`/proc/PID/clear_refs`, proc(5)), tried on a page: without `CONFIG_MEM_SOFT_DIRTY` the kernel
/// accepts the write and never sets the bit. What it does not mark is told by where pages are.
pub fn soft_dirty() -> Probe {
    let map = Pagemap::open(std::process::id() as i32)?;
    let pages = Pages::new(2)?;
    pages.touch(0);
    pages.touch(1);
    std::fs::write("/proc/self/clear_refs", "4")?;
    pages.touch(1);
    let (mut marks, mut shown) = (Vec::new(), true);
    map.soft_dirty((pages.start(), pages.end()), |_, place, marked| {
        marks.push(marked);
        shown &= place.is_some();
    })?;
    match marks[..] {
        [false, true] if shown => Ok("written pages are marked".into()),
        [false, true] => Err(Lack::seen("where pages are is not shown, so those that were moved cannot be told (CAP_SYS_ADMIN)")),
        _ => Err(Lack::seen("accepted, but written pages are not marked (CONFIG_MEM_SOFT_DIRTY is off)")),
    }
}
