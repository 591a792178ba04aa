//! Which pages of a mapping hold something of its own: `PAGEMAP_SCAN` (Linux 6.7), else the
//! `/proc/PID/pagemap` words (Documentation/admin-guide/mm/pagemap.rst).

mod guards;
mod written;

pub use guards::{Guards, MADV_GUARD_INSTALL, are_hidden, guards};
pub use written::{Marker, Place, Regions};

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

const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_PFNZERO: u64 = 1 << 5;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Pages of the process's own, in a mapping that has a file behind it: private copies of its pages.
    Own,
    /// Pages of anonymous memory. Which page belongs to a file takes eight times as long to tell.
    Anonymous,
    /// Pages that exist, of shared memory.
    Present,
}

/// The pagemap of one process.
pub struct Pagemap {
    file: File,
    scan: bool,
}

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process any more.
    pub fn open(pid: i32) -> std::io::Result<Self> {
        let opened = File::open(format!("/proc/{pid}/pagemap"));
        let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound && !std::path::Path::new(&format!("/proc/{pid}")).exists();
        let file = opened.map_err(|e| if gone(&e) { Errno::ESRCH.into() } else { e })?;
        Ok(Pagemap { file, scan: true })
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
        // No more than the kernel collects at a time: see `written`.
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

    fn words(&self, start: u64, end: u64, want: Want, out: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
        self.each(start, end, |page, word| {
            let there = word >> 62 != 0;
            let file = word >> 61 & 1 != 0;
            if there && (want == Want::Present || !file) {
                push(out, page, page + PAGE);
            }
        })
    }

    /// Reads the words of these pages.
    fn each(&self, start: u64, end: u64, mut tell: impl FnMut(u64, u64)) -> std::io::Result<()> {
        let mut buf = vec![0u8; (64 * 1024).min((end - start) / PAGE * 8) as usize];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE).min(buf.len() as u64 / 8) as usize;
            let n = self.file.read_at(&mut buf[..pages * 8], at / PAGE * 8)? / 8;
            if n == 0 {
                break;
            }
            for (i, w) in buf[..n * 8].chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
                tell(at + i as u64 * PAGE, word);
            }
            at += n as u64 * PAGE;
        }
        Ok(())
    }
}

/// Appends a range behind all others, to the last one if they touch.
pub fn push(out: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match out.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => out.push((start, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process may end while it is looked for.
    #[test]
    fn one_that_has_ended_is_none() {
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        let pid = child.id() as i32;
        child.wait().expect("it ends");
        assert_eq!(Pagemap::open(pid).err().and_then(|e| e.raw_os_error()), Some(libc::ESRCH));
        assert!(Pagemap::open(std::process::id() as i32).is_ok());
    }
}
