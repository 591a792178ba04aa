//! /proc/PID/maps and /proc/PID/smaps: proc_pid_maps(5), proc_pid_smaps(5).

use super::text::{decimal, device, hex, lines, malformed, unescape};
use crate::error::Result;

/// One mapping, as proc_pid_maps(5) and proc_pid_smaps(5) show it.
///
/// Fields that only smaps has are empty or 0 when the text was `maps`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` bits of mmap(2).
    pub prot: u32,
    /// `MAP_SHARED` instead of `MAP_PRIVATE`.
    pub shared: bool,
    /// Offset in the mapped file in bytes.
    pub offset: u64,
    /// Major and minor number of the mapped file's filesystem; (0, 0) without a file.
    pub dev: (u32, u32),
    /// Inode number of the mapped file; 0 without a file.
    pub inode: u64,
    /// Path, pseudo-path such as `[heap]`, or empty. Newlines are undone from
    /// `\012`; a path whose own text has `\012` cannot be told from those.
    pub name: Vec<u8>,
    /// `VmFlags`, two letters each.
    pub flags: Vec<[u8; 2]>,
    /// `Rss`: resident memory in KiB.
    pub rss_kib: u64,
    /// `KernelPageSize` in KiB.
    pub kernel_page_kib: u64,
    /// `Swap`: memory of the mapping that is in swap, in KiB.
    pub swap_kib: u64,
    /// `Anonymous`: resident memory that belongs to no file, in KiB.
    pub anon_kib: u64,
    /// Whether the mapping is locked into memory, mlock(2).
    pub locked: bool,
    /// `ProtectionKey`, pkeys(7); shown when the processor has them.
    pub protection_key: Option<u32>,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Whether `VmFlags` has these two letters.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }

    /// The name without the ` (deleted)` of an unlinked file, and whether it
    /// was there. A file whose own name ends that way looks the same.
    pub fn path(&self) -> (&[u8], bool) {
        match self.name.strip_suffix(b" (deleted)") {
            Some(path) => (path, true),
            None => (&self.name, false),
        }
    }
}

/// Parses /proc/PID/maps or /proc/PID/smaps; which one shows by itself.
pub fn parse(text: &[u8]) -> Result<Vec<Vma>> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in lines(text) {
        // Only header lines begin with an address; all fields of smaps begin with a capital letter.
        let understood = match (line.first(), vmas.last_mut()) {
            (Some(b'0'..=b'9' | b'a'..=b'f'), _) => header(line).map(|vma| vmas.push(vma)),
            (_, Some(vma)) => field(vma, line),
            (_, None) => None,
        };
        understood.ok_or_else(|| malformed("maps", line))?;
    }
    Ok(vmas)
}

/// `start-end rwxp offset maj:min inode   name`
fn header(line: &[u8]) -> Option<Vma> {
    let mut rest = line;
    let mut until = |stop: u8| {
        let i = rest.iter().position(|&b| b == stop)?;
        let part = &rest[..i];
        rest = &rest[i + 1..];
        Some(part)
    };
    let (start, end) = (hex(until(b'-')?)?, hex(until(b' ')?)?);
    let &[read, write, exec, share] = until(b' ')? else { return None };
    let (offset, dev) = (hex(until(b' ')?)?, device(until(b' ')?, 16)?);
    // A mapping without a name has a space after the inode too, but be content without.
    let digits = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
    let (inode, name) = rest.split_at(digits);
    let blanks = name.iter().take_while(|&&b| b == b' ').count();
    let bit = |letter: u8, flag: i32| if letter == b'-' { 0 } else { flag as u32 };
    (start <= end).then_some(())?;
    Some(Vma {
        start,
        end,
        prot: bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(exec, libc::PROT_EXEC),
        shared: share == b's',
        offset,
        dev,
        inode: decimal(inode)?,
        name: unescape(&name[blanks..], b"\n"),
        ..Vma::default()
    })
}

/// One `Name:  number kB` of smaps. Names that are not needed are skipped
/// after their first letters, because there are twenty to each mapping.
fn field(vma: &mut Vma, line: &[u8]) -> Option<()> {
    if let Some(value) = line.strip_prefix(b"Rss:") {
        vma.rss_kib = number(value)?;
    } else if let Some(value) = line.strip_prefix(b"Anonymous:") {
        vma.anon_kib = number(value)?;
    } else if let Some(value) = line.strip_prefix(b"Swap:") {
        vma.swap_kib = number(value)?;
    } else if let Some(value) = line.strip_prefix(b"KernelPageSize:") {
        vma.kernel_page_kib = number(value)?;
    } else if let Some(value) = line.strip_prefix(b"ProtectionKey:") {
        vma.protection_key = Some(u32::try_from(number(value)?).ok()?);
    } else if let Some(value) = line.strip_prefix(b"VmFlags:") {
        vma.flags = value.split(|&b| b == b' ').filter_map(|f| f.try_into().ok()).collect();
        // `Locked:` counts pages that are resident; the flag is what mlock(2) set.
        vma.locked = vma.has(b"lo");
    }
    Some(())
}

/// The number of `     12 kB`.
fn number(value: &[u8]) -> Option<u64> {
    let value = &value[value.iter().take_while(|&&b| b == b' ').count()..];
    decimal(value.strip_suffix(b" kB").unwrap_or(value))
}
