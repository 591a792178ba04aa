//! The notes of a core file: registers of each thread and facts about the process, in the kernel's
//! own layouts (`struct elf_prstatus`, `struct elf_prpsinfo`, `NT_FILE`: core(5), linux/elfcore.h).

use super::elf::ReadMemory;
use super::xsave;
use crate::resource::Tree;
use crate::resource::memory::{Backing, Mapping, PAGE};
use crate::resource::process::{Process, State};
use crate::resource::shared::Origin;
use crate::resource::thread::Thread;
use crate::sys::arch::Registers;

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_X86_XSTATE: u32 = 0x202;

/// Bytes of the legacy part of the XSAVE area, which is what `NT_FPREGSET` holds.
const FXSAVE: usize = 512;

/// All notes of one process, one after the other.
pub fn notes(tree: &Tree, process: &Process, memory: &dyn ReadMemory) -> Vec<u8> {
    let mut out = Vec::new();
    let mut threads = process.threads.iter();
    // The first thread is the one that debuggers show first.
    let leader = threads.next();
    if let Some(leader) = leader {
        note(&mut out, "CORE", NT_PRSTATUS, &prstatus(process, leader));
    }
    note(&mut out, "CORE", NT_PRPSINFO, &prpsinfo(process, memory));
    if let Some(space) = &process.memory {
        note(&mut out, "CORE", NT_AUXV, &space.borders.auxv);
        note(&mut out, "CORE", NT_FILE, &files(tree, &space.mappings));
    }
    leader.inspect(|leader| vectors(&mut out, leader));
    for thread in threads {
        note(&mut out, "CORE", NT_PRSTATUS, &prstatus(process, thread));
        vectors(&mut out, thread);
    }
    out
}

/// Name and content are each filled up to four bytes (elf(5), "Notes").
fn note(out: &mut Vec<u8>, name: &str, kind: u32, content: &[u8]) {
    for number in [name.len() as u32 + 1, content.len() as u32, kind] {
        out.extend(number.to_le_bytes());
    }
    out.extend(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn vectors(out: &mut Vec<u8>, thread: &Thread) {
    if let Some(legacy) = thread.xstate.get(..FXSAVE) {
        note(out, "CORE", NT_FPREGSET, legacy);
        note(out, "LINUX", NT_X86_XSTATE, &xsave::for_debuggers(&thread.xstate));
    }
}

/// `struct user_regs_struct`.
fn general(r: &Registers) -> [u64; 27] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip, r.cs,
        r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ]
}

/// `struct elf_prstatus`. No signal is named as the cause: the process has not died of one.
fn prstatus(process: &Process, thread: &Thread) -> Vec<u8> {
    let mut out = vec![0; 12 + 4];
    let pending = process.signals.pending.iter().chain(&thread.pending);
    let pending = pending.filter_map(|info| Some(i32::from_le_bytes(*info.0.first_chunk()?)));
    let pending = pending.filter(|n| (1..=64).contains(n)).fold(0_u64, |set, n| set | 1 << (n - 1));
    out.extend(pending.to_le_bytes());
    out.extend(thread.sigmask.to_le_bytes());
    for id in [thread.tid, process.ppid, process.pgid, process.sid] {
        out.extend(id.to_le_bytes());
    }
    // Times of user, system, and of the children of both, which the image does not have.
    out.extend([0; 4 * 16]);
    general(&thread.registers).iter().for_each(|value| out.extend(value.to_le_bytes()));
    out.extend(1_u32.to_le_bytes());
    out.extend([0; 4]);
    out
}

/// `struct elf_prpsinfo`.
fn prpsinfo(process: &Process, memory: &dyn ReadMemory) -> Vec<u8> {
    let (number, letter) = match process.state {
        State::Running => (0, b'R'),
        State::Stopped(_) => (3, b'T'),
        State::Zombie(_) => (4, b'Z'),
    };
    let leader = process.threads.first();
    let nice = leader.map_or(0, |t| t.sched.nice) as i8;
    let mut out = vec![number, letter, u8::from(letter == b'Z'), nice as u8, 0, 0, 0, 0];
    out.extend([0; 8]);
    let ids = leader.map_or([0; 2], |t| [t.credentials.uid[0], t.credentials.gid[0]]);
    ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    for id in [process.pid, process.ppid, process.pgid, process.sid] {
        out.extend(id.to_le_bytes());
    }
    let mut name = leader.map_or(&process.comm, |t| &t.comm).clone();
    name.truncate(15);
    name.resize(16, 0);
    out.extend(name);
    let mut arguments = [0; 80];
    if let Some(space) = &process.memory {
        let length = space.borders.arg_end.saturating_sub(space.borders.arg_start).min(79) as usize;
        let got = memory.read(space.borders.arg_start, &mut arguments[..length]);
        arguments[..got].iter_mut().filter(|b| **b == 0).for_each(|b| *b = b' ');
    }
    out.extend(arguments);
    out
}

/// `NT_FILE`: count, page size, (start, end, offset in pages) of each, then the names.
fn files(tree: &Tree, mappings: &[Mapping]) -> Vec<u8> {
    let mut ranges = Vec::new();
    let mut names = Vec::new();
    for mapping in mappings {
        let Some((name, offset)) = file_name(tree, mapping) else { continue };
        for number in [mapping.start, mapping.end, offset / PAGE] {
            ranges.extend(number.to_le_bytes());
        }
        names.extend(name.into_bytes());
        names.push(0);
    }
    let mut out = Vec::new();
    out.extend((ranges.len() as u64 / 24).to_le_bytes());
    out.extend(PAGE.to_le_bytes());
    out.extend(ranges);
    out.extend(names);
    out
}

/// The name that the kernel would write for a mapping that has a file.
fn file_name(tree: &Tree, mapping: &Mapping) -> Option<(String, u64)> {
    let (name, offset) = match mapping.backing {
        Backing::File { file, offset } => (tree.mapped.get(file as usize)?.path.to_string(), offset),
        Backing::Object { object, offset } => {
            let object = tree.objects.iter().find(|o| o.id == object)?;
            let name = match &object.origin {
                // The kernel calls it `/dev/zero (deleted)`, about which debuggers complain.
                Origin::Anonymous => return None,
                Origin::Memfd { name, .. } => format!("/memfd:{name} (deleted)"),
                Origin::Deleted { path, .. } => format!("{path} (deleted)"),
                Origin::Mounted { path, .. } => path.to_string(),
                Origin::SystemV { .. } => mapping.name.clone(),
            };
            (name, offset)
        }
        Backing::Anonymous | Backing::Kernel => return None,
    };
    (!name.contains('\0')).then_some((name, offset))
}
