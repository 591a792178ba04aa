//! Which pages of a mapping hold something of its own: `PAGEMAP_SCAN` (Linux 6.7), else the
//! `/proc/PID/pagemap` words (Documentation/admin-guide/mm/pagemap.rst).

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg {
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

const IS_WPALLOWED: u64 = 1;
const IS_WRITTEN: u64 = 1 << 1;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_PFNZERO: u64 = 1 << 5;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 1 << 1;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Pages of the process's own: anonymous memory, and private copies of file pages.
    Own,
    /// The same of a mapping without a file, where the kernel need not look at each page for it: a quarter of the time.
    Anonymous,
    /// Pages that exist, of shared memory.
    Present,
}

/// Room for what one scan finds; used again and again.
#[derive(Debug)]
pub struct Regions(Vec<Region>);

impl Default for Regions {
    fn default() -> Self {
        // Random single pages, each between two that have not changed: 8,192 of them fit into one call.
        Regions(vec![Region::default(); 16384])
    }
}

/// Where pages go: those that were written since the last look, and those that were not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pages {
    /// Ranges (start, end) of pages that exist and may be other ones than at the last look; in order, apart.
    pub changed: Vec<(u64, u64)>,
    /// Ranges of pages that exist and are surely the same as at the last look; likewise.
    pub kept: Vec<(u64, u64)>,
}

impl Pages {
    /// Notes pages behind all others.
    pub fn push(&mut self, changed: bool, start: u64, end: u64) {
        push(if changed { &mut self.changed } else { &mut self.kept }, start, end);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.changed.clear();
        self.kept.clear();
    }
}

/// The pagemap of one process.
pub struct Pagemap {
    file: File,
    scan: bool,
}

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    pub fn open(pid: i32) -> std::io::Result<Self> {
        Ok(Pagemap { file: File::open(format!("/proc/{pid}/pagemap"))?, scan: true })
    }

    /// Appends the ranges (start, end) of wanted pages between `start` and `end`, merged, in order.
    pub fn ranges(&mut self, start: u64, end: u64, want: Want, out: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
        if self.scan {
            match self.scan(start, end, want, out) {
                Err(Errno::ENOTTY | Errno::EINVAL) => self.scan = false,
                other => return other.map_err(Into::into),
            }
        }
        self.words(start, end, want, out)
    }

    fn scan(&self, mut start: u64, end: u64, want: Want, out: &mut Vec<(u64, u64)>) -> Result<(), Errno> {
        let mut regions = [Region::default(); 512];
        while start < end {
            // A private copy: neither backed by a file nor the shared zero page. Inverted categories must be absent.
            let absent = match want {
                Want::Own => IS_FILE | IS_PFNZERO,
                Want::Anonymous => IS_PFNZERO,
                Want::Present => 0,
            };
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: absent,
                category_mask: absent,
                category_anyof_mask: IS_PRESENT | IS_SWAPPED,
                return_mask: IS_PRESENT,
            };
            // SAFETY: `arg` and the region array that it points to outlive the call.
            let n = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }? as usize;
            for r in &regions[..n] {
                push(out, r.start, r.end);
            }
            if arg.walk_end <= start {
                return Err(Errno::EIO);
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    /// Tells which of the process's own pages in one mapping were written since they were last protected, and protects
    /// those again, each page in one step: what is written afterwards is told the next time. `file`: behind the mapping
    /// is a file.
    ///
    /// # Errors
    /// `EPERM` when writes to it are not noted: then nothing was done, unless mappings have changed meanwhile. `out` may
    /// hold a part of the answer then.
    pub fn protect(&self, start: u64, end: u64, file: bool, regions: &mut Regions, out: &mut Pages) -> Result<(), Errno> {
        // Whether a page belongs to a file takes time to find out. Of anonymous memory none does.
        let absent = if file { IS_FILE } else { IS_PFNZERO };
        let mut at = start;
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: WP_MATCHING | CHECK_WPASYNC,
                start: at,
                end,
                walk_end: 0,
                vec: regions.0.as_mut_ptr() as u64,
                vec_len: regions.0.len() as u64,
                max_pages: 0,
                category_inverted: absent,
                category_mask: absent,
                category_anyof_mask: IS_PRESENT | IS_SWAPPED,
                return_mask: IS_WRITTEN | if file { IS_SWAPPED } else { 0 },
            };
            // SAFETY: `arg` and the regions that it points to outlive the call.
            let n = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }? as usize;
            for r in &regions.0[..n] {
                // Over a file a page that was given back (`MADV_DONTNEED`) leaves a mark behind that looks like a protected
                // page in swap. What is read there is the file's.
                out.push(r.categories != 0, r.start, r.end);
            }
            // It stops before a huge page of a size that cannot be protected.
            if arg.walk_end <= at {
                return Err(Errno::EPERM);
            }
            at = arg.walk_end;
        }
        Ok(())
    }

    /// Whether writes to the mapping with this page are noted.
    pub fn noted(&self, page: u64) -> bool {
        let mut region = Region::default();
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start: page,
            end: page + PAGE,
            walk_end: 0,
            vec: (&raw mut region) as u64,
            vec_len: 1,
            max_pages: 0,
            category_inverted: 0,
            category_mask: IS_WPALLOWED,
            category_anyof_mask: 0,
            return_mask: IS_WPALLOWED,
        };
        // SAFETY: `arg` and `region` outlive the call.
        let found = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) };
        found == Ok(1) && region.categories & IS_WPALLOWED != 0
    }

    fn words(&self, start: u64, end: u64, want: Want, out: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
        let mut buf = vec![0u8; 64 * 1024];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE).min(buf.len() as u64 / 8) as usize;
            let n = self.file.read_at(&mut buf[..pages * 8], at / PAGE * 8)? / 8;
            if n == 0 {
                break;
            }
            for (i, w) in buf[..n * 8].chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
                let there = word >> 62 != 0;
                let file = word >> 61 & 1 != 0;
                if there && (want == Want::Present || !file) {
                    let page = at + i as u64 * PAGE;
                    push(out, page, page + PAGE);
                }
            }
            at += n as u64 * PAGE;
        }
        Ok(())
    }
}

fn push(out: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match out.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => out.push((start, end)),
    }
}
