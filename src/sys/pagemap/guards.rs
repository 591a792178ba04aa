//! Guards: pages that may not be touched, without a mapping of their own (madvise(2) `MADV_GUARD_INSTALL`, Linux 6.13). They
//! stand in the page table only; `PAGEMAP_SCAN` tells them as of Linux 6.15, before that they look like a page in swap of a kind
//! of their own.

use super::written::{Question, Regions};
use super::{PAGE, Pagemap, push};
use crate::sys::proc::maps::Vma;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rayon::prelude::*;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

/// Makes guards.
pub const MADV_GUARD_INSTALL: i32 = 102;

const IS_GUARD: u64 = 1 << 8;
const PM_SWAP: u64 = 1 << 62;
/// With [`PM_SWAP`]: number of the swap area, and place in it.
const PM_PLACE: u64 = (1 << 55) - 1;

/// How this kernel tells guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// There are none.
    Never,
    /// By a scan.
    Scan,
    /// By the word of each page: this is one that is none.
    Word(u64),
    /// Not to us.
    Hidden,
}

static TOLD: LazyLock<Told> = LazyLock::new(|| told().unwrap_or(Told::Hidden));

impl Pagemap {
    /// Appends the ranges (start, end) of guards between `start` and `end`, merged, in order.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn guards(&self, start: u64, end: u64, out: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
        self.guards_as(*TOLD, (start, end), out)
    }

    fn guards_as(&self, told: Told, (start, end): (u64, u64), out: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
        match told {
            Told::Never | Told::Hidden => Ok(()),
            Told::Scan => {
                let question = Question { all: IS_GUARD, tell: IS_GUARD, ..Question::default() };
                Ok(self.ask((start, end), question, &mut Regions::few(), |r| push(out, r.start, r.end))?)
            }
            Told::Word(guard) => self.each(start, end, |page, word| {
                if word & PM_SWAP != 0 && word & PM_PLACE == guard {
                    push(out, page, page + PAGE);
                }
            }),
        }
    }
}

/// Guards of a process (start, end), merged, in order.
pub type Guards = Vec<(u64, u64)>;

/// Bytes from which on it pays to have another thread look at a part.
const SHARE: u64 = 256 << 20;

/// The guards in these mappings of a process: all page tables are walked.
///
/// # Errors
/// Those of the kernel.
pub fn guards(pid: i32, vmas: &[Vma]) -> std::io::Result<Guards> {
    let kernel = |v: &&Vma| [&b"[vdso]"[..], b"[vvar", b"[vsyscall]", b"/[aio]"].iter().any(|name| v.name.starts_with(name));
    let areas: Vec<(u64, u64)> = vmas.iter().filter(|v| !kernel(v) && !v.has(b"ht")).map(|v| (v.start, v.end)).collect();
    let map = Pagemap::open(pid)?;
    let mut guards = Guards::new();
    let all: u64 = areas.iter().map(|a| a.1 - a.0).sum();
    if all <= SHARE {
        areas.iter().try_for_each(|a| map.guards(a.0, a.1, &mut guards))?;
        return Ok(guards);
    }
    // Also of what is only set aside, however much that is, there are few.
    let size = SHARE.max(all / 64).next_multiple_of(SHARE);
    let cut = |&(start, end): &(u64, u64)| (start..end).step_by(size as usize).map(move |at| (at, end.min(at + size)));
    let shares: Vec<(u64, u64)> = areas.iter().flat_map(cut).collect();
    let look = |&(start, end): &(u64, u64)| {
        let mut found = Vec::new();
        map.guards(start, end, &mut found).map(|()| found)
    };
    for (start, end) in shares.par_iter().map(look).collect::<std::io::Result<Vec<_>>>()?.into_iter().flatten() {
        push(&mut guards, start, end);
    }
    Ok(guards)
}

/// Whether there are guards here that cannot be told.
pub fn are_hidden() -> bool {
    *TOLD == Told::Hidden
}

/// Finds out on a page of our own.
fn told() -> std::io::Result<Told> {
    let Some(length) = NonZeroUsize::new(PAGE as usize) else { return Ok(Told::Never) };
    // SAFETY: a fresh mapping at an address that the kernel chooses.
    let at = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE) }?;
    // SAFETY: all of our own mapping, that nothing points to.
    let made = unsafe { libc::madvise(at.as_ptr(), length.get(), MADV_GUARD_INSTALL) } == 0;
    let told = if made { told_of(at.as_ptr() as u64) } else { Ok(Told::Never) };
    // SAFETY: our own mapping.
    unsafe { munmap(at, length.get()) }?;
    told
}

/// How a guard is told.
fn told_of(guard: u64) -> std::io::Result<Told> {
    let map = Pagemap::open(std::process::id() as i32)?;
    let mut found = Vec::new();
    match map.guards_as(Told::Scan, (guard, guard + PAGE), &mut found) {
        Err(e) if ![Some(Errno::EINVAL as i32), Some(Errno::ENOTTY as i32)].contains(&e.raw_os_error()) => return Err(e),
        _ if found == [(guard, guard + PAGE)] => return Ok(Told::Scan),
        _ => {}
    }
    word_of(&map, guard)
}

fn word_of(map: &Pagemap, guard: u64) -> std::io::Result<Told> {
    let mut told = Told::Hidden;
    map.each(guard, guard + PAGE, |_, word| {
        if word & PM_SWAP != 0 && word & PM_PLACE != 0 {
            told = Told::Word(word & PM_PLACE);
        }
    })?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::region::Region;

    /// In both ways, as far as this kernel has them.
    #[test]
    fn guards_are_found_among_pages() {
        if *TOLD == Told::Never {
            return;
        }
        let mut region = Region::anonymous(700 * PAGE as usize).expect("memory");
        let start = region.bytes_mut().as_mut_ptr() as u64;
        for n in (0..700).step_by(2) {
            region.bytes_mut()[n * PAGE as usize] = 1;
        }
        let page = |n: u64| start + n * PAGE;
        let guards = [(0, 1), (10, 14), (511, 513), (600, 601), (699, 700)];
        for (from, to) in guards {
            // SAFETY: pages of our own region, whose content is not read any more.
            let made = unsafe { libc::madvise(page(from) as *mut libc::c_void, ((to - from) * PAGE) as usize, MADV_GUARD_INSTALL) };
            assert_eq!(made, 0);
        }
        let map = Pagemap::open(std::process::id() as i32).expect("page map");
        let expected = guards.map(|(from, to)| (page(from), page(to)));
        let word = word_of(&map, page(0)).expect("a word");
        assert!(word != Told::Hidden || !nix::unistd::geteuid().is_root());
        for told in [*TOLD, word].into_iter().filter(|&told| told != Told::Hidden) {
            let mut found = Vec::new();
            map.guards_as(told, (page(0), page(700)), &mut found).expect("an answer");
            assert_eq!(found, expected, "{told:?}");
            found.clear();
            map.guards_as(told, (page(11), page(511)), &mut found).expect("an answer");
            assert_eq!(found, [(page(11), page(14))], "{told:?}");
        }
    }
}
