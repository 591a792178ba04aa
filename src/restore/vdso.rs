//! Programs whose vDSO is another kernel's.
//!
//! Its bytes come back at their old place as plain memory, since the program has addresses in it, and the C library and
//! the auxiliary vector lead there; pages of zeros lie where its data was. The pages of the kernel that runs go to a free
//! place nearby, and every function of the old one begins with a jump to its namesake there ([`entries`]).
//!
//! A thread that was inside the old code comes out of it as it would have at the dump, on what the clocks were then
//! ([`inside`]). What stays is a frame of a signal handler that interrupted it there: when that returns, the thread goes on
//! in the old code, on zeros. What it reads there is guarded by a counter, which is another one now; so it begins again,
//! finds no clock that it could read by itself, and makes the system call. The coarse clocks alone read 0 this once.

mod entries;
mod inside;

use super::layout::kernel_pages;
use crate::error::{Context, Error, Kind as Failure, Result};
use crate::resource::Tree;
use crate::resource::aio::is_ring;
use crate::resource::clocks::{self, Clocks};
use crate::resource::memory::{AddressSpace, Backing, Mapping, PAGE};
use crate::resource::process::Process;
use crate::resource::thread::Thread;
use crate::sys::memory::{self, MemFile};
use crate::sys::namespace::Kind;
use crate::sys::proc::maps::Vma;
use crate::sys::proc::{maps, read};
use crate::tracee::stub::Stub;
use entries::Entries;
use inside::Old;
use std::collections::HashMap;

pub use inside::Moved;

/// First address that no program can have.
const TOP: u64 = 0x7fff_ffff_f000;
/// Lowest address that is used.
const BOTTOM: u64 = 0x10_0000;
/// How far a jump is trusted to lead; it could do twice that.
const REACH: u64 = 1 << 30;
/// Room that a stack is left to grow down, as the kernel itself leaves it when it chooses addresses.
const STACK: u64 = 256 << 20;
/// Room that the heap is left to grow up.
const HEAP: u64 = 1 << 30;
/// No vDSO comes near it.
const LARGEST: u64 = 1 << 20;

/// This kernel's own pages, as every process gets them.
struct Own {
    pages: Vec<Vma>,
    hash: u64,
    entries: Entries,
}

/// What is to be redirected in one process.
struct Redirection {
    /// Where the old vDSO is.
    old: (u64, u64),
    /// Where this kernel's is, 0 when it has none.
    new: u64,
    /// A page for code.
    annex: u64,
    /// Where the old kernel's data was: name, start and end of its mappings.
    data: Vec<(String, u64, u64)>,
}

/// All processes of a tree that have another kernel's vDSO, by their pids.
pub struct Foreign {
    entries: Entries,
    processes: HashMap<i32, Redirection>,
}

impl Own {
    fn read() -> Result<Own> {
        let pid = std::process::id() as i32;
        let vmas = read::parsed(pid, "maps", maps::parse)?;
        let pages: Vec<Vma> = kernel_pages(&vmas).cloned().collect();
        let mut image = Vec::new();
        if let Some(vdso) = pages.iter().find(|v| v.name == b"[vdso]") {
            image.resize(vdso.len() as usize, 0);
            memory::read(pid, vdso.start, &mut image).context(|| "reading this kernel's vDSO")?;
        }
        Ok(Own { pages, hash: xxhash_rust::xxh3::xxh3_64(&image), entries: entries::entries(&image) })
    }

    /// Whether the kernel's pages of a process can be this kernel's.
    fn serves(&self, space: &AddressSpace) -> bool {
        kernel_mappings(space).all(|m| {
            let here = self.pages.iter().find(|v| v.name == m.name.as_bytes());
            here.is_some_and(|v| v.len() == m.len()) && (m.name != "[vdso]" || self.hash == space.vdso_hash)
        })
    }

    /// Bytes from the first page to the last.
    fn span(&self) -> (u64, u64) {
        let start = self.pages.iter().map(|v| v.start).min().unwrap_or(0);
        (start, self.pages.iter().map(|v| v.end).max().unwrap_or(0) - start)
    }
}

fn kernel_mappings(space: &AddressSpace) -> impl Iterator<Item = &Mapping> {
    space.mappings.iter().filter(|m| m.backing == Backing::Kernel && !is_ring(m))
}

/// The free place of `length` bytes that is nearest to `near`.
fn place(space: &AddressSpace, near: u64, length: u64) -> Option<u64> {
    let around = |m: &Mapping| {
        let grows = m.flags.iter().any(|f| f == "gd") || m.name == "[stack]";
        let heap = m.end == space.borders.brk.next_multiple_of(PAGE) || m.name == "[heap]";
        (m.start.saturating_sub(if grows { STACK } else { 0 }), m.end.saturating_add(if heap { HEAP } else { 0 }))
    };
    let mut taken: Vec<(u64, u64)> = space.mappings.iter().map(around).collect();
    taken.push((0, BOTTOM));
    taken.push((TOP, u64::MAX));
    taken.sort_unstable();
    let (mut free, mut at) = (Vec::new(), 0);
    for (start, end) in taken {
        if start > at && start - at >= length {
            free.push((at, start - length));
        }
        at = at.max(end);
    }
    let nearest = free.into_iter().map(|(lowest, highest)| near.clamp(lowest, highest)).min_by_key(|at| at.abs_diff(near))?;
    (nearest.abs_diff(near) < REACH).then_some(nearest & !(PAGE - 1))
}

impl Foreign {
    /// Finds the processes whose vDSO is not this kernel's. In their saved form, theirs is plain memory from now on, and
    /// this kernel's pages have a place.
    pub fn settle(tree: &mut Tree) -> Result<Foreign> {
        let own = Own::read()?;
        let mut processes = HashMap::new();
        for process in &mut tree.processes {
            let pid = process.pid;
            if let Some(space) = process.memory.as_mut().filter(|space| !own.serves(space)) {
                let made = make_room(space, &own).context(|| format!("process {pid}"))?;
                processes.extend(made.map(|redirection| (pid, redirection)));
            }
        }
        Ok(Foreign { entries: own.entries, processes })
    }

    /// How many processes there are.
    pub fn count(&self) -> usize {
        self.processes.len()
    }

    /// Leads the old functions of a process whose memory is filled to the new ones. Threads that were inside of them come
    /// out first: returned is how they go on. `stubs` are its threads, by their tids.
    pub fn redirect(&self, tree: &Tree, process: &Process, stubs: &HashMap<i32, Stub>, warnings: &mut Vec<String>) -> Result<Vec<Moved>> {
        let (Some(r), Some(stub)) = (self.processes.get(&process.pid), stubs.get(&process.pid)) else { return Ok(Vec::new()) };
        let memory = MemFile::open(stub.pid).context(|| format!("opening the memory of process {}", process.pid))?;
        let mut image = vec![0; (r.old.1 - r.old.0) as usize];
        memory.read(r.old.0, &mut image).context(|| format!("reading the old vDSO of process {}", process.pid))?;
        let patches = entries::patches(&image, r.old.0, &self.entries, r.new, r.annex)?;
        let inside: Vec<&Thread> = process.threads.iter().filter(|t| (r.old.0..r.old.1).contains(&t.registers.rip)).collect();
        // Those in another time namespace had other pages.
        let clocks = tree.clocks.as_ref().filter(|_| process.places.of(&tree.namespaces, Kind::Time).is_none());
        let mut moved = Vec::new();
        if let Some(clocks) = clocks.filter(|_| !inside.is_empty()) {
            let places = r.places(clocks)?;
            for (at, page) in &places {
                memory.write(*at, page).context(|| "putting the old clocks in place")?;
            }
            let old = Old { at: r.old.0, image: &image, counter: clocks.counter };
            for thread in inside {
                match old.come_out(&stubs[&thread.tid], thread).context(|| format!("task {} in the vDSO", thread.tid))? {
                    Some(out) => moved.push(out),
                    None => warnings.push(caught(thread)),
                }
            }
            for (at, page) in &places {
                memory.write(*at, &vec![0; page.len()]).context(|| "taking the old clocks away")?;
            }
        } else {
            for thread in inside {
                moved.extend(patches.begin_again(&image, r.old.0, thread)?);
                if moved.last().is_none_or(|m| m.tid != thread.tid) {
                    warnings.push(caught(thread));
                }
            }
        }
        for (offset, code) in &patches.jumps {
            memory.write(r.old.0 + offset, code).context(|| "redirecting the vDSO")?;
        }
        memory.write(r.annex, &patches.annex).context(|| "redirecting the vDSO")?;
        Ok(moved)
    }
}

fn caught(thread: &Thread) -> String {
    format!("task {} was just reading a clock in the vDSO of another kernel: if it was a coarse one, it reads 0 this once", thread.tid)
}

impl Redirection {
    /// Where the saved pages were, and what they held.
    fn places<'c>(&self, clocks: &'c Clocks) -> Result<Vec<(u64, &'c [u8])>> {
        let place = |page: &'c clocks::Page| {
            let (_, start, end) = self.data.iter().find(|d| d.0 == page.mapping)?;
            let at = start.checked_add(page.offset).filter(|at| at % PAGE == 0 && at + PAGE <= *end)?;
            (page.content.len() as u64 == PAGE).then_some((at, page.content.as_slice()))
        };
        clocks.pages.iter().map(|p| place(p).ok_or_else(|| Error::image("image damaged: its clocks are nowhere"))).collect()
    }
}

/// Makes an address space's old pages plain memory, and adds this kernel's.
fn make_room(space: &mut AddressSpace, own: &Own) -> Result<Option<Redirection>> {
    let old = kernel_mappings(space).find(|m| m.name == "[vdso]").map(|m| (m.start, m.end));
    let data = kernel_mappings(space).filter(|m| m.name != "[vdso]").map(|m| (m.name.clone(), m.start, m.end)).collect();
    for mapping in space.mappings.iter_mut().filter(|m| m.backing == Backing::Kernel && !is_ring(m)) {
        mapping.backing = Backing::Anonymous;
        mapping.flags.clear();
        mapping.name.clear();
    }
    let Some(old) = old else { return Ok(None) };
    if old.1 - old.0 > LARGEST {
        return Err(Error::image("image damaged: no vDSO is that large"));
    }
    let (start, length) = own.span();
    let at = place(space, old.0, length + PAGE)
        .ok_or_else(|| Error::new(Failure::Kernel, "no room near the old vDSO for the one of this kernel, which is another"))?;
    let mapping = |start: u64, end: u64, prot: u32, backing: Backing, name: String| Mapping {
        start,
        end,
        prot,
        shared: false,
        backing,
        flags: Vec::new(),
        huge_page_kib: 0,
        name,
        policy: None,
    };
    for page in &own.pages {
        let name = String::from_utf8_lossy(&page.name).into_owned();
        space.mappings.push(mapping(page.start - start + at, page.end - start + at, page.prot, Backing::Kernel, name));
    }
    let annex = at + length;
    space.mappings.push(mapping(annex, annex + PAGE, (libc::PROT_READ | libc::PROT_EXEC) as u32, Backing::Anonymous, String::new()));
    space.mappings.sort_by_key(|m| m.start);
    let new = own.pages.iter().find(|v| v.name == b"[vdso]").map_or(0, |v| v.start - start + at);
    Ok(Some(Redirection { old, new, annex, data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, name: &str, backing: Backing) -> Mapping {
        let flags = if name == "[stack]" { vec!["gd".into()] } else { Vec::new() };
        Mapping { start, end, prot: 5, shared: false, backing, flags, huge_page_kib: 0, name: name.into(), policy: None }
    }

    fn space(mappings: Vec<Mapping>) -> AddressSpace {
        AddressSpace { mappings, borders: Default::default(), exe: Backing::Anonymous, vdso_hash: 1, guards: Vec::new() }
    }

    #[test]
    fn the_place_is_near_and_free() {
        let at = 0x7ffc_8497_e000;
        let space = space(vec![
            mapping(0x5555_0000_0000, 0x5555_0001_0000, "", Backing::Anonymous),
            mapping(0x7ffc_8494_0000, 0x7ffc_8496_1000, "[stack]", Backing::Anonymous),
            mapping(0x7ffc_8497_a000, at, "[vvar]", Backing::Kernel),
            mapping(at, at + 0x2000, "[vdso]", Backing::Kernel),
        ]);
        let found = place(&space, at, 0x9000).expect("a place");
        assert!(space.mappings.iter().all(|m| found + 0x9000 <= m.start || found >= m.end), "{found:x}");
        assert!(found.abs_diff(at) < 1 << 20, "{found:x}");
        // Nothing is put in the way of the stack.
        let below = place(&space, 0x7ffc_8494_0000, 0x20_0000).expect("a place");
        assert!(below + 0x20_0000 <= 0x7ffc_8494_0000 - STACK || below >= at, "{below:x}");
    }

    #[test]
    fn where_all_is_taken_there_is_no_place() {
        let space = space(vec![mapping(0x1000_0000, 0x7000_0000_0000, "", Backing::Anonymous)]);
        assert_eq!(place(&space, 0x3000_0000_0000, 0x1000), None);
        assert!(place(&space, 0x1001_0000, 0x1000).is_some_and(|at| at < 0x1000_0000));
    }

    #[test]
    fn another_kernels_pages_become_plain_memory() {
        let own = Own::read().expect("this kernel's pages");
        let at = 0x7ffc_8497_e000;
        let kernel =
            || space(vec![mapping(0x7ffc_8497_a000, at, "[vvar]", Backing::Kernel), mapping(at, at + 0x2000, "[vdso]", Backing::Kernel)]);
        let mut other = kernel();
        assert!(!own.serves(&other));
        let made = make_room(&mut other, &own).expect("room").expect("a redirection");
        assert_eq!(made.old, (at, at + 0x2000));
        assert!(other.mappings.windows(2).all(|m| m[0].end <= m[1].start), "{other:?}");
        let names: Vec<&str> = kernel_mappings(&other).map(|m| m.name.as_str()).collect();
        assert_eq!(names.len(), own.pages.len());
        let new = kernel_mappings(&other).find(|m| m.name == "[vdso]").expect("this kernel's");
        assert_eq!((new.start, new.len()), (made.new, own.pages.iter().find(|v| v.name == b"[vdso]").expect("one").len()));
        assert!(other.mappings.iter().any(|m| m.start == made.annex && m.backing == Backing::Anonymous));
        // Under this kernel it is right as it is.
        other.vdso_hash = own.hash;
        assert!(own.serves(&other));
    }

    #[test]
    fn without_a_vdso_nothing_is_redirected() {
        let mut bare = space(vec![mapping(0x10_0000, 0x20_0000, "", Backing::Anonymous)]);
        assert!(Own::read().expect("own").serves(&bare));
        assert!(make_room(&mut bare, &Own::read().expect("own")).expect("fine").is_none());
    }
}
