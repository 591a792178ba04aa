//! Where a system call can be run inside a process without changing its text and without
//! mapping anything into it.
//!
//! Two things that nearly every process holds already are enough: the instructions
//! `syscall; ret`, and the signal return trampoline `mov $15,%eax; syscall` (both in every C
//! library and in the Go runtime), and some dead bytes of the initial stack. On those bytes lies, before
//! a register is touched, a signal frame that holds the interrupted state in full. A task whose tracer is
//! killed at any instant finishes the call, returns into the trampoline, and the kernel itself puts
//! every register, the vector state and the mask back (`proofs/heal.c` has the principle).

use super::volley::Links;
use crate::sys::memory;
use crate::sys::proc::maps::Vma;
use std::collections::HashMap;

/// Size of the region that is used on the stack, in bytes.
pub const REGION: u64 = 16 * 1024;
/// Bytes at the region's start that injected calls may use for their arguments and results.
pub const OUT: u64 = 8 * 1024;
/// Room that other code may need below the stack pointer of a running main thread while a frame is in use.
const DISTANCE: u64 = 48 * 1024;
/// System V ABI: leaf functions own 128 bytes below the stack pointer.
const RED_ZONE: u64 = 128;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSCALL_RET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $0xf,%rax; syscall` (C libraries) and `mov $0xf,%eax; syscall`.
const SIGRETURN: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];

/// A part of a file: device, inode, offset.
type FilePart = (u64, u64, u64);
/// Where it holds `syscall; ret`, the signal return trampoline, and what strings calls together, from its start.
type Instructions = (Option<u64>, Option<u64>, Option<Links>);

/// Offsets of useful instructions in a file, so that a library is searched once for a whole tree.
#[derive(Debug, Default)]
pub struct Known(HashMap<FilePart, Instructions>);

impl Known {
    fn of(&mut self, pid: i32, vma: &Vma) -> Instructions {
        if vma.inode == 0 {
            return instructions(pid, vma);
        }
        *self.0.entry(part(vma)).or_insert_with(|| instructions(pid, vma))
    }

    fn has(&self, vma: &Vma) -> bool {
        matches!(self.0.get(&part(vma)), Some((Some(_), Some(_), _)))
    }

    /// Forgets where nothing was found: a program that runs may just be on its way into memory.
    pub fn forget_misses(&mut self) {
        self.0.retain(|_, found| matches!(found, (Some(_), Some(_), _)));
    }
}

fn part(vma: &Vma) -> FilePart {
    (u64::from(vma.dev.0) << 32 | u64::from(vma.dev.1), vma.inode, vma.offset)
}

/// Searches a mapping.
fn instructions(pid: i32, vma: &Vma) -> Instructions {
    let ret = search(pid, vma, &SYSCALL_RET).next();
    let back = SIGRETURN.iter().find_map(|code| search(pid, vma, code).next());
    let links = match (ret, back) {
        (Some(_), Some(_)) => Links::search(pieces(pid, vma).map(|(at, code)| (at - vma.start, code))),
        _ => None,
    };
    (ret.map(|a| a - vma.start), back.map(|a| a - vma.start), links)
}

/// Whether the instructions are where they were found: the file may have been changed, or the process's own copy of it.
fn holds(pid: i32, vma: &Vma, found: Instructions) -> bool {
    let is = |offset: u64, codes: &[&[u8]]| {
        let mut bytes = [0; 9];
        let there = memory::read_some(pid, vma.start + offset, &mut bytes).unwrap_or(0);
        codes.iter().any(|code| bytes[..there].starts_with(code))
    };
    found.0.is_none_or(|o| is(o, &[&SYSCALL_RET])) && found.1.is_none_or(|o| is(o, &SIGRETURN))
}

/// Where to run calls in one process.
#[derive(Debug, Clone, Copy)]
pub struct Foothold {
    /// Address of `syscall; ret` (or of a bare `syscall` when there is no way back).
    pub syscall: u64,
    /// Address of the signal return trampoline; `None` when the process has none: calls then
    /// work, but the death of meio within one would not be survived.
    pub trampoline: Option<u64>,
    /// What strings calls together, if it is there.
    pub links: Option<Links>,
    /// The initial stack's mapping.
    stack: Option<(u64, u64)>,
    /// Stack pointer of the main thread when it is on that mapping.
    main_rsp: Option<u64>,
}

impl Foothold {
    /// Searches a process. One that runs is searched so that less is to be done when it stands still.
    pub fn find(pid: i32, vmas: &[Vma], main_rsp: u64, known: &mut Known) -> Option<Foothold> {
        let (mut syscall, mut trampoline, mut links) = (None, None, None);
        // Memory without a file (code made by the program itself) comes last: it may be another code the next moment.
        let code = vmas.iter().filter(|v| v.prot & 4 != 0 && v.prot & 1 != 0 && !v.name.starts_with(b"["));
        let (files, others): (Vec<&Vma>, Vec<&Vma>) = code.partition(|v| v.inode != 0);
        // Where it was found before, it is most likely again.
        let (before, files): (Vec<&Vma>, Vec<&Vma>) = files.into_iter().partition(|v| known.has(v));
        for vma in before.into_iter().chain(files).chain(others) {
            let mut found = known.of(pid, vma);
            if !holds(pid, vma, found) {
                found = instructions(pid, vma);
            }
            syscall = syscall.or(found.0.map(|o| vma.start + o));
            trampoline = trampoline.or(found.1.map(|o| vma.start + o));
            links = links.or(found.2.map(|l| l.at(vma.start)).filter(|l| l.hold(pid)));
            if syscall.is_some() && trampoline.is_some() {
                break;
            }
        }
        let stack = vmas.iter().find(|v| v.name == b"[stack]" && v.prot & 3 == 3).map(|v| (v.start, v.end));
        let main_rsp = stack.filter(|s| (s.0..s.1).contains(&main_rsp)).map(|_| main_rsp);
        match syscall {
            Some(syscall) => Some(Foothold { syscall, trampoline, links, stack, main_rsp }),
            None => vmas.iter().find(|v| v.name == b"[vdso]").and_then(|vma| search(pid, vma, &SYSCALL).next()).map(|syscall| Foothold {
                syscall,
                trampoline: None,
                links: None,
                stack,
                main_rsp,
            }),
        }
    }

    /// Places for many threads at once, none of which is on the initial stack: `size` bytes each, at most `wanted` of
    /// them, the highest first. Empty when there is no room that is surely dead.
    ///
    /// A thread whose registers lead to its place already and whose signals are not blocked yet would, if meio died just
    /// then, run a handler that grows down from there, over the places below. So they are to be taken in this order and
    /// given back in the opposite one: those below hold nothing then. Below the lowest there is room for a handler, too.
    pub fn places(&self, wanted: usize, size: u64) -> Vec<u64> {
        match (self.stack, self.main_rsp) {
            (Some((low, _)), Some(main)) => {
                let lowest = low + OUT;
                let room = (main - low).saturating_sub(DISTANCE + OUT) / size;
                (0..room.min(wanted as u64)).rev().map(|n| lowest + n * size).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a stack pointer lies on the initial stack.
    pub fn on_stack(&self, rsp: u64) -> bool {
        self.stack.is_some_and(|(low, high)| (low..high).contains(&rsp))
    }

    /// The dead bytes to use for a task with this stack pointer: below its own pointer for the main
    /// thread; far below the main thread's for the others, since that one runs again, too, when meio dies.
    pub fn region(&self, pid: i32, rsp: u64) -> Option<u64> {
        let (low, high) = self.stack?;
        if (low..high).contains(&rsp) {
            let start = rsp.checked_sub(RED_ZONE + REGION)? & !63;
            return (start >= low).then_some(start);
        }
        match self.main_rsp {
            Some(main) => (main - low >= DISTANCE + REGION).then_some(low),
            // The main thread is elsewhere (a coroutine, a Go stack): only bytes that were never used are surely dead.
            None => {
                let mut bytes = vec![0u8; REGION as usize];
                memory::read(pid, low, &mut bytes).ok()?;
                (high - low >= DISTANCE + REGION && bytes.iter().all(|&b| b == 0)).then_some(low)
            }
        }
    }
}

/// Addresses of `code` in a mapping.
fn search<'a>(pid: i32, vma: &'a Vma, code: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
    pieces(pid, vma).filter_map(move |(at, piece)| memchr::memmem::find(&piece, code).map(|i| at + i as u64))
}

/// What a mapping holds, in pieces that overlap, so that code across two of them is seen.
fn pieces(pid: i32, vma: &Vma) -> impl Iterator<Item = (u64, Vec<u8>)> + use<> {
    const PIECE: u64 = 256 * 1024;
    const OVERLAP: u64 = 64;
    let (start, end) = (vma.start, vma.end);
    (start..end).step_by(PIECE as usize).filter_map(move |at| {
        let mut piece = vec![0; (end - at).min(PIECE + OVERLAP) as usize];
        let n = memory::read_some(pid, at, &mut piece).ok()?;
        piece.truncate(n);
        Some((at, piece))
    })
}
