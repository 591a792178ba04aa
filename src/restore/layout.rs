//! An address space is laid out in a stub by scripts: everything of the stub away, the kernel's own pages to their old
//! place, then every mapping. Content comes later.

use super::attach;
use super::pool::Pool;
use crate::error::{Context, Error, Result};
use crate::resource::Tree;
use crate::resource::memory::{AddressSpace, Backing, Mapping, PAGE};
use crate::resource::numa;
use crate::sys::pagemap::MADV_GUARD_INSTALL;
use crate::sys::proc::maps::Vma;
use crate::sys::proc::{maps, read};
use crate::tracee::stub::{Gadget, ROOM, Script, Stub};

/// Free bytes that are wanted behind the gadget, to move the vDSO through.
const PASSAGE: u64 = 1 << 20;

/// Finds a place for the stubs that is free in every address space of the tree.
pub fn gadget(tree: &Tree) -> Result<Gadget> {
    let mut taken: Vec<(u64, u64)> = tree
        .processes
        .iter()
        .filter_map(|p| p.memory.as_ref())
        // A stack may grow down while it is filled; keep clear of it.
        .flat_map(|m| m.mappings.iter().map(|v| (v.start.saturating_sub(PASSAGE), v.end)))
        .collect();
    taken.sort_unstable();
    let need = PAGE + ROOM + PASSAGE;
    let mut at: u64 = 0x10_0000;
    for (start, end) in taken {
        if start >= at && start - at >= need {
            break;
        }
        at = at.max(end.next_multiple_of(PAGE));
    }
    if at + need < 0x7fff_0000_0000 {
        Ok(Gadget { base: at })
    } else {
        Err(Error::other("no room in the address spaces of the tree to rebuild them"))
    }
}

/// The kernel's own mappings of this process.
pub(super) fn kernel_pages(vmas: &[Vma]) -> impl Iterator<Item = &Vma> {
    vmas.iter().filter(|v| matches!(v.name.as_slice(), b"[vdso]" | b"[vvar]" | b"[vvar_vclock]"))
}

/// Builds the address space in a stub whose children and threads exist already, or in a bare one.
pub fn build(stub: &Stub, space: &AddressSpace, pool: &Pool) -> Result<()> {
    let vmas = read::parsed(stub.pid, "maps", maps::parse).context(|| "reading a stub's mappings")?;
    let mut script = stub.script();
    let munmap = |script: &mut Script<'_>, start: u64, end: u64| script.call("munmap of the stub", libc::SYS_munmap, &[start, end - start]);
    for vma in &vmas {
        let kernel = kernel_pages(std::slice::from_ref(vma)).next().is_some();
        let own = vma.start >= stub.gadget.start() && vma.end <= stub.gadget.end();
        if !kernel && !own && vma.name != b"[vsyscall]" {
            munmap(&mut script, vma.start, vma.end)?;
        }
    }
    move_kernel_pages(&mut script, stub.gadget, &vmas, space)?;
    script.run()?;
    attach::attach(stub, space, pool)?;
    let mut script = stub.script();
    for mapping in space.mappings.iter().filter(|m| m.backing != Backing::Kernel) {
        map(&mut script, mapping, pool)?;
    }
    guard(&mut script, space)?;
    script.run()?;
    Ok(())
}

/// Moves vvar and vDSO as a whole: first all out of the way, then each to its old place.
fn move_kernel_pages(script: &mut Script<'_>, gadget: Gadget, vmas: &[Vma], space: &AddressSpace) -> Result<()> {
    const FIXED: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut passage = gadget.end();
    let mut moved = Vec::new();
    for vma in kernel_pages(vmas) {
        let wanted = space.mappings.iter().find(|m| m.backing == Backing::Kernel && m.name.as_bytes() == vma.name);
        match wanted {
            None => script.call("munmap of the vDSO", libc::SYS_munmap, &[vma.start, vma.len()])?,
            Some(mapping) => {
                script.expect("mremap of the vDSO", passage, libc::SYS_mremap, &[vma.start, vma.len(), vma.len(), FIXED, passage])?;
                moved.push((passage, vma.len(), mapping.start));
                passage += vma.len();
            }
        }
    }
    for (from, len, to) in moved {
        script.expect("mremap of the vDSO", to, libc::SYS_mremap, &[from, len, len, FIXED, to])?;
    }
    Ok(())
}

fn map(script: &mut Script<'_>, mapping: &Mapping, pool: &Pool) -> Result<()> {
    let has = |flag: &str| mapping.flags.iter().any(|f| f == flag);
    let mut flags = libc::MAP_FIXED_NOREPLACE | if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if has("gd") {
        flags |= libc::MAP_GROWSDOWN;
    }
    if has("nr") {
        flags |= libc::MAP_NORESERVE;
    }
    let (fd, offset) = match mapping.backing {
        Backing::Anonymous => {
            flags |= libc::MAP_ANONYMOUS;
            if mapping.huge_page_kib != 0 {
                let log2 = (mapping.huge_page_kib * 1024).ilog2();
                flags |= libc::MAP_HUGETLB | (log2 << libc::MAP_HUGE_SHIFT) as i32;
            }
            (-1, 0)
        }
        // What was mapped from a descriptor that could not write must not become writable by mprotect(2).
        Backing::File { file, offset } => (pool.mapped(file, mapping.may_write())?, offset),
        Backing::Object { object, .. } if pool.segment(object).is_some() => return Ok(()),
        Backing::Object { object, offset } => (pool.shared(object, !mapping.shared || mapping.may_write())?, offset),
        Backing::Kernel => return Ok(()),
    };
    let args = [mapping.start, mapping.len(), u64::from(mapping.prot), flags as u64, fd as u64, offset];
    script.expect("mmap", mapping.start, libc::SYS_mmap, &args)?;
    advise(script, mapping)
}

/// Makes the guards again, whose pages have no content; one that reaches beyond a mapping is refused by the kernel.
fn guard(script: &mut Script<'_>, space: &AddressSpace) -> Result<()> {
    for &(start, end) in &space.guards {
        let length = end.checked_sub(start).ok_or_else(|| Error::image("image damaged: a guard ends before it begins"))?;
        script.call("madvise MADV_GUARD_INSTALL", libc::SYS_madvise, &[start, length, MADV_GUARD_INSTALL as u64])?;
    }
    Ok(())
}

/// Locks a mapping. Where it has guards, the kernel stops at the first of them when it brings the pages into memory.
fn lock(script: &mut Script<'_>, mapping: &Mapping, guards: &[(u64, u64)]) -> Result<()> {
    const MLOCK_ONFAULT: u64 = 1;
    let on_fault = if mapping.flags.iter().any(|f| f == "lf") { MLOCK_ONFAULT } else { 0 };
    if guards.is_empty() {
        return script.call("mlock2", libc::SYS_mlock2, &[mapping.start, mapping.len(), on_fault]);
    }
    script.attempt("mlock2", libc::SYS_mlock2, &[mapping.start, mapping.len(), on_fault])?;
    let mut at = mapping.start;
    for &(start, end) in guards.iter().chain([&(mapping.end, mapping.end)]) {
        if at < start {
            script.call("mlock2", libc::SYS_mlock2, &[at, start - at, on_fault])?;
        }
        at = at.max(end);
    }
    Ok(())
}

/// Names and NUMA policies of mappings that are all there. Warnings for those that do not hold.
pub fn tell(stub: &Stub, space: &AddressSpace, name: i32) -> Result<Vec<String>> {
    let own = |m: &&Mapping| m.backing != Backing::Kernel;
    let policies: Vec<_> = space.mappings.iter().filter(own).filter_map(|m| Some((m.start, m.len(), m.policy.as_ref()?))).collect();
    let mut warnings = numa::bind(stub, &policies, name)?;
    let named = |m: &&Mapping| ["[anon:", "[anon_shmem:"].iter().find_map(|p| m.name.strip_prefix(p)).is_some();
    let named: Vec<&Mapping> = space.mappings.iter().filter(own).filter(named).collect();
    let mut script = stub.script();
    for mapping in &named {
        let text = mapping.name.split_once(':').map_or("", |(_, text)| text);
        let at = script.text(text.strip_suffix(']').unwrap_or(text).as_bytes());
        let args = [libc::PR_SET_VMA as u64, libc::PR_SET_VMA_ANON_NAME as u64, mapping.start, mapping.len(), at];
        script.attempt("prctl PR_SET_VMA", libc::SYS_prctl, &args)?;
    }
    let lost = named.iter().zip(script.run()?.results).filter(|(_, result)| *result != 0).count();
    if lost > 0 {
        warnings.push(format!("process {name}: {lost} mappings have no names now (PR_SET_VMA_ANON_NAME): this kernel gives none"));
    }
    Ok(warnings)
}

/// Gives a mapping what madvise(2) had set.
pub fn advise(script: &mut Script<'_>, mapping: &Mapping) -> Result<()> {
    let has = |flag: &str| mapping.flags.iter().any(|f| f == flag);
    for (flag, advice) in [
        ("sr", libc::MADV_SEQUENTIAL),
        ("rr", libc::MADV_RANDOM),
        ("dc", libc::MADV_DONTFORK),
        ("dd", libc::MADV_DONTDUMP),
        ("wf", libc::MADV_WIPEONFORK),
        ("hg", libc::MADV_HUGEPAGE),
        ("nh", libc::MADV_NOHUGEPAGE),
        ("mg", libc::MADV_MERGEABLE),
    ] {
        if has(flag) && !(flag == "dd" && mapping.huge_page_kib != 0) {
            script.attempt("madvise", libc::SYS_madvise, &[mapping.start, mapping.len(), advice as u64])?;
        }
    }
    Ok(())
}

/// Locks memory again and sets the borders and the executable. Comes after the content.
pub fn finish(script: &mut Script<'_>, space: &AddressSpace, pool: &Pool) -> Result<()> {
    for mapping in space.mappings.iter().filter(|m| m.flags.iter().any(|f| f == "lo")) {
        lock(script, mapping, space.guards_of(mapping))?;
    }
    let exe = match space.exe {
        Backing::File { file, .. } => pool.executable(file)?,
        Backing::Object { object, .. } => pool.object(object)?,
        _ => return Err(Error::image("a process of the image has no executable")),
    };
    let b = &space.borders;
    let auxv = script.data(&b.auxv);
    let words = [
        b.start_code,
        b.end_code,
        b.start_data,
        b.end_data,
        b.start_brk,
        b.brk,
        b.start_stack,
        b.arg_start,
        b.arg_end,
        b.env_start,
        b.env_end,
        auxv,
        b.auxv.len() as u64 | (exe as u64) << 32,
    ];
    let at = script.data(&words.map(u64::to_le_bytes).concat());
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    script.call("prctl PR_SET_MM_MAP", libc::SYS_prctl, &[PR_SET_MM, PR_SET_MM_MAP, at, words.len() as u64 * 8, 0])
}
