//! ELF core files out of an image, one a process, as the kernel writes them (core(5)): what is in
//! memory only goes in, what can be read in the files that were mapped stays out.

use super::elf::ReadMemory;
use super::memory::Contents;
use super::notes::notes;
use crate::error::{Context, Result};
use crate::resource::memory::{Backing, Mapping, PAGE};
use crate::resource::process::Process;
use crate::sys::arch::MACHINE;
use goblin::elf::header::{ELFCLASS64, ELFDATA2LSB, ELFMAG, ET_CORE, EV_CURRENT};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
/// More program headers than this do not fit into the header (elf(5), `PN_XNUM`).
const PN_XNUM: u64 = 0xffff;
/// A longer stretch of memory that nobody touched becomes a segment without content: file systems
/// do not take files of any length, however empty. Bytes.
const MAX_HOLE: u64 = 1 << 30;
/// Longer private mappings of a file that is still there are not copied out of the file. Bytes.
const MAX_FILE: u64 = 64 << 20;
/// Bytes that are copied at a time.
const CHUNK: u64 = 256 << 10;

/// Writes `core.PID` into `dir` for every process that has memory, readable by its owner alone.
/// Each appears under its name only when it is complete.
pub fn core(contents: &Contents, dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).context(|| format!("making {}", dir.display()))?;
    let alive = contents.tree().processes.iter().filter(|p| p.memory.is_some() && !p.threads.is_empty());
    let named = |p: &Process| one(contents, p, dir).context(|| format!("core file of process {}", p.pid));
    alive.map(named).collect()
}

fn one(contents: &Contents, process: &Process, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(format!("core.{}", process.pid));
    let mut part = Part::new(dir.join(format!(".core.{}.{}", process.pid, std::process::id())))?;
    write(contents, process, &part.file)?;
    std::fs::rename(&part.path, &path).context(|| format!("naming {}", path.display()))?;
    part.complete = true;
    Ok(path)
}

/// A file that is not complete yet, and goes away if it never is.
struct Part {
    path: PathBuf,
    file: File,
    /// It has its final name.
    complete: bool,
}

impl Part {
    fn new(path: PathBuf) -> Result<Part> {
        // What an earlier run left behind when it was killed.
        let _ = std::fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        Ok(Part { file: file.context(|| format!("making {}", path.display()))?, path, complete: false })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.complete {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A stretch of memory in the core file.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    memory: Range<u64>,
    prot: u32,
    /// Bytes from the start that are in the file.
    length: u64,
    /// Only these of them can be anything but zero.
    filled: Vec<Range<u64>>,
}

/// What goes in of one mapping.
fn segments(contents: &Contents, process: &Process, mapping: &Mapping) -> Vec<Segment> {
    let saved = contents.saved(process, mapping);
    let range = mapping.start..mapping.end;
    let segment = |memory: Range<u64>, filled: Vec<Range<u64>>, length: u64| Segment { memory, prot: mapping.prot, length, filled };
    let whole = mapping.end.saturating_sub(mapping.start);
    match mapping.backing {
        Backing::File { file, offset } => {
            let there = contents.file(file).is_some();
            if saved.is_empty() {
                // Debuggers find the build id in the first page of a program or library.
                let mut start = [0; 4];
                let mut read = || contents.read_process(process, mapping.start, &mut start).is_ok_and(|n| n == 4);
                let length = if offset == 0 && read() && start == *ELFMAG { PAGE.min(whole) } else { 0 };
                let first = range.start..range.start + length;
                return vec![segment(range, Vec::from([first]), length)];
            }
            if there && whole <= MAX_FILE {
                return vec![segment(range.clone(), vec![range], whole)];
            }
            split(&range, &saved, 0, segment)
        }
        Backing::Kernel if saved.is_empty() => vec![segment(range, Vec::new(), 0)],
        Backing::Kernel => split(&range, &saved, 0, segment),
        // Guard pages and address space that was only reserved.
        _ if saved.is_empty() && mapping.prot == 0 => vec![segment(range, Vec::new(), 0)],
        _ => split(&range, &saved, MAX_HOLE, segment),
    }
}

/// Cuts a mapping where more than `hole` bytes in it are not in the image: those get no content.
fn split(
    range: &Range<u64>,
    saved: &[Range<u64>],
    hole: u64,
    segment: impl Fn(Range<u64>, Vec<Range<u64>>, u64) -> Segment,
) -> Vec<Segment> {
    let mut out = Vec::new();
    let mut filled: Vec<Range<u64>> = Vec::new();
    let mut start = range.start;
    let end = range.end..range.end;
    for next in saved.iter().chain([&end]) {
        let empty_from = filled.last().map_or(start, |r| r.end);
        if next.start - empty_from > hole {
            if empty_from > start {
                out.push(segment(start..empty_from, std::mem::take(&mut filled), empty_from - start));
            }
            out.push(segment(empty_from..next.start, Vec::new(), 0));
            start = next.start;
        }
        filled.push(next.clone());
    }
    if range.end > start {
        out.push(segment(start..range.end, filled, range.end - start));
    }
    out
}

fn write(contents: &Contents, process: &Process, file: &File) -> Result<()> {
    let memory = contents.process(process);
    let mappings = process.memory.as_ref().map_or(&[][..], |m| &m.mappings);
    let sane = mappings.iter().filter(|m| m.start < m.end);
    let segments: Vec<Segment> = sane.flat_map(|m| segments(contents, process, m)).collect();
    let notes = notes(contents.tree(), process, &memory);
    memory.failed()?;
    let count = segments.len() as u64 + 1;
    let notes_at = EHDR + count * PHDR + if count >= PN_XNUM { SHDR } else { 0 };
    let mut at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
    let mut head = header(count);
    let note_segment = Segment { memory: 0..0, prot: 0, length: notes.len() as u64, filled: Vec::new() };
    program_header(&mut head, PT_NOTE, notes_at, &note_segment);
    let mut offsets = Vec::with_capacity(segments.len());
    for segment in &segments {
        program_header(&mut head, PT_LOAD, at, segment);
        offsets.push(at);
        at += segment.length;
    }
    if count >= PN_XNUM {
        head.extend([0; 44]);
        head.extend((count as u32).to_le_bytes());
        head.extend([0; 16]);
    }
    head.extend(notes);
    file.write_all_at(&head, 0).context(|| "writing")?;
    for (segment, at) in segments.iter().zip(offsets) {
        copy(contents, process, segment, file, at)?;
    }
    file.set_len(at).context(|| "writing")
}

/// The ELF header of a core file with so many program headers.
fn header(count: u64) -> Vec<u8> {
    let many = count >= PN_XNUM;
    let mut out = Vec::with_capacity((EHDR + count * PHDR + SHDR) as usize);
    out.extend(ELFMAG);
    out.extend([ELFCLASS64, ELFDATA2LSB, EV_CURRENT, 0]);
    out.resize(16, 0);
    out.extend(ET_CORE.to_le_bytes());
    out.extend(MACHINE.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    let sections_at = if many { EHDR + count * PHDR } else { 0 };
    for number in [0, EHDR, sections_at] {
        out.extend(number.to_le_bytes());
    }
    out.extend(0_u32.to_le_bytes());
    let phnum = count.min(PN_XNUM) as u16;
    let shnum = u16::from(many);
    for number in [EHDR as u16, PHDR as u16, phnum, if many { SHDR as u16 } else { 0 }, shnum, 0] {
        out.extend(number.to_le_bytes());
    }
    out
}

fn program_header(out: &mut Vec<u8>, kind: u32, offset: u64, segment: &Segment) {
    // `PROT_*` has reading as 1 and executing as 4, `PF_*` the other way round.
    let flags = (segment.prot & 1) << 2 | segment.prot & 2 | (segment.prot & 4) >> 2;
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    let (start, size) = (segment.memory.start, segment.memory.end - segment.memory.start);
    let align = if kind == PT_LOAD { PAGE } else { 4 };
    for number in [offset, start, 0, segment.length, size, align] {
        out.extend(number.to_le_bytes());
    }
}

/// Writes the content of a segment at `at`; pages that are zero stay holes of the file.
fn copy(contents: &Contents, process: &Process, segment: &Segment, file: &File, at: u64) -> Result<()> {
    let memory = contents.process(process);
    let mut buffer = vec![0; CHUNK as usize];
    for range in &segment.filled {
        let mut from = range.start;
        while from < range.end {
            let chunk = &mut buffer[..CHUNK.min(range.end - from) as usize];
            // What cannot be read lies behind the end of its file.
            let got = memory.read(from, chunk);
            let is_zero = |page: &[u8]| page.iter().all(|&b| b == 0);
            let pages: Vec<&[u8]> = chunk[..got].chunks(PAGE as usize).collect();
            let mut next = 0;
            for same in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                let length: usize = same.iter().map(|page| page.len()).sum();
                if !is_zero(same[0]) {
                    let offset = at + (from - segment.memory.start) + next as u64;
                    file.write_all_at(&chunk[next..next + length], offset).context(|| "writing")?;
                }
                next += length;
            }
            from += chunk.len() as u64;
        }
    }
    memory.failed()
}
