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
    let (offset, dev) = (hex(until(b' ')?)?, device(until(b' ')?)?);
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

#[cfg(test)]
mod tests {
    use super::*;
    const RW: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

    fn named<'a>(vmas: &'a [Vma], name: &[u8]) -> &'a Vma {
        vmas.iter().find(|vma| vma.name == name).unwrap_or_else(|| panic!("no {}", name.escape_ascii()))
    }

    #[test]
    fn smaps_of_6_18() {
        let vmas = parse(fixture!("6.18/smaps")).unwrap();
        assert_eq!(vmas.len(), 34);
        assert!(vmas.is_sorted_by_key(|vma| vma.start));
        let file = named(&vmas, b"/srv/meio/new\nline file");
        assert_eq!((file.start, file.end, file.prot), (0x7f5e_9d17_6000, 0x7f5e_9d17_8000, RW));
        assert_eq!((file.shared, file.offset, file.dev, file.inode), (true, 0, (0, 0x27), 6));
        assert!(file.has(b"sh") && file.has(b"ms") && !file.has(b"lo"));
        let gone = named(&vmas, b"/srv/meio/gone data (deleted)");
        assert_eq!(gone.path(), (&b"/srv/meio/gone data"[..], true));
        assert_eq!((gone.len(), gone.rss_kib, gone.kernel_page_kib), (8192, 4, 4));
        let locked: Vec<_> = vmas.iter().filter(|vma| vma.locked).collect();
        assert_eq!(locked.len(), 1);
        assert!(locked[0].has(b"nr") && locked[0].has(b"dd"));
        assert_eq!((locked[0].anon_kib, &*locked[0].name), (8, &b""[..]));
        let libc_data = vmas.iter().find(|vma| vma.offset == 0x1d_3000).unwrap();
        assert_eq!((libc_data.dev, libc_data.inode), ((0xfe, 0), 326_279));
        let top = vmas.last().unwrap();
        assert_eq!((&*top.name, top.start), (&b"[vsyscall]"[..], 0xffff_ffff_ff60_0000));
        assert_eq!(top.prot, libc::PROT_EXEC as u32);
    }

    #[test]
    fn maps_and_smaps_agree() {
        for (maps, smaps) in [
            (fixture!("6.18/maps"), fixture!("6.18/smaps")),
            (fixture!("6.1/maps"), fixture!("6.1/smaps")),
            (fixture!("5.10/maps"), fixture!("5.10/smaps")),
        ] {
            let bare = |mut vma: Vma| {
                assert!(!vma.flags.is_empty() && vma.kernel_page_kib >= 4);
                (vma.flags, vma.protection_key, vma.locked) = (Vec::new(), None, false);
                (vma.rss_kib, vma.kernel_page_kib, vma.swap_kib, vma.anon_kib) = (0, 0, 0, 0);
                vma
            };
            let expected: Vec<Vma> = parse(smaps).unwrap().into_iter().map(bare).collect();
            assert_eq!(parse(maps).unwrap(), expected);
        }
    }

    #[test]
    fn smaps_of_5_10() {
        let vmas = parse(fixture!("5.10/smaps")).unwrap();
        assert_eq!(vmas[0].name, b"/usr/bin/caf\xe9 d\xe9mon");
        let heap = named(&vmas, b"[heap]");
        assert_eq!((heap.swap_kib, heap.anon_kib, heap.rss_kib, heap.protection_key), (12, 100, 100, Some(3)));
        let huge = named(&vmas, b"/anon_hugepage (deleted)");
        assert_eq!((huge.kernel_page_kib, huge.has(b"ht"), huge.dev), (2048, true, (0, 0x0e)));
        assert_eq!(vmas.iter().find(|vma| vma.locked).unwrap().start, 0x7f2a_4000_0000);
        let memfd = named(&vmas, b"/memfd:a\nb (deleted)");
        assert!(memfd.shared && memfd.start < memfd.end);
        let wide = named(&vmas, b"/mnt/nvme/log (deleted) (deleted)");
        assert_eq!((wide.dev, wide.inode, wide.offset), ((0x103, 0x10_0000), u64::MAX, 0x3000));
        assert_eq!(wide.path(), (&b"/mnt/nvme/log (deleted)"[..], true));
    }

    #[test]
    fn smaps_of_6_1() {
        let vmas = parse(fixture!("6.1/smaps")).unwrap();
        assert_eq!(named(&vmas, b"[anon:arena 1: big]").flags.last(), Some(b"uw"));
        // Blanks inside and at the end belong to the name.
        assert!(!named(&vmas, b"/home/u/two  blanks and tab\t ").shared);
        assert_eq!(vmas[2].prot, RW | libc::PROT_EXEC as u32);
    }

    #[test]
    fn a_damaged_text_is_refused() {
        assert_eq!(parse(b"").unwrap(), []);
        for bad in [
            &b"Size: 4 kB\n"[..],
            b"1000-2000 r--p 0 00:00",
            b"2000-1000 r--p 0 00:00 0 \n",
            b"1000-2000 r--px 0 00:00 0 \n",
            b"1000-11112222333344445 r--p 0 00:00 0 \n",
            b"1000-2000 r--p 0 00:00 0 \nRss:  x kB\n",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.message.starts_with("maps: cannot understand `"), "{error}");
        }
    }

    #[test]
    fn a_thousand_mappings_are_quick() {
        let one = fixture!("6.18/smaps");
        let count = parse(one).unwrap().len();
        let many = one.repeat(1000 / count + 1);
        // The best of several, because tests share the machine; the bound has room for unoptimised code.
        let best = (0..10)
            .map(|_| {
                let begun = std::time::Instant::now();
                assert!(parse(&many).unwrap().len() >= 1000);
                begun.elapsed()
            })
            .min()
            .unwrap();
        println!("{} bytes in {best:?}", many.len());
        assert!(best.as_millis() < 200, "{best:?}");
    }
}
