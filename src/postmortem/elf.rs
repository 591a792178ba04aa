//! An ELF file that a process had mapped, or the vDSO out of its memory: what is needed to name an
//! address and to step out of a function. Only the sections that are needed are read, each bounded,
//! because the file may be an object out of a hostile image as well as a library of the system.

use super::cfi::{Cfi, Section};
use super::symbols::Symbols;
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64};
use goblin::elf::program_header::{PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE};
use goblin::elf::section_header::{SHF_COMPRESSED, SHT_DYNSYM, SHT_NOBITS, SHT_SYMTAB};
use goblin::elf::{Elf, Header, ProgramHeader, SectionHeader};

/// Bytes at addresses: a process's memory, a file, an object of the image.
pub trait ReadMemory {
    /// Fills `buf` from `address` on; returns how many leading bytes could be had.
    fn read(&self, address: u64, buf: &mut [u8]) -> usize;

    /// Eight bytes as a little-endian number.
    fn word(&self, address: u64) -> Option<u64> {
        let mut buf = [0; 8];
        (self.read(address, &mut buf) == buf.len()).then(|| u64::from_le_bytes(buf))
    }
}

impl ReadMemory for std::fs::File {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        use std::os::unix::fs::FileExt;
        let mut got = 0;
        while got < buf.len() {
            match self.read_at(&mut buf[got..], address.saturating_add(got as u64)) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        got
    }
}

impl ReadMemory for [u8] {
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        let from = usize::try_from(address).unwrap_or(usize::MAX).min(self.len());
        let n = buf.len().min(self.len() - from);
        buf[..n].copy_from_slice(&self[from..from + n]);
        n
    }
}

const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };
/// No section of a real file that is read here comes near it (bytes).
const MAX_SECTION: u64 = 512 << 20;
/// Bytes that are read at a time, so that a section that only claims to be large costs nothing.
const CHUNK: usize = 1 << 20;

/// A part of the file that is loaded.
#[derive(Debug)]
struct Load {
    offset: u64,
    filesz: u64,
    vaddr: u64,
    executable: bool,
}

/// What was read of the file.
#[derive(Debug, Default)]
pub struct ElfFile {
    loads: Vec<Load>,
    build_id: Option<Vec<u8>>,
    cfi: Cfi,
    symbols: Symbols,
}

/// `len` bytes at `offset`, or `None` when they are not all there.
fn bytes(file: &(impl ReadMemory + ?Sized), offset: u64, len: u64) -> Option<Vec<u8>> {
    if len > MAX_SECTION {
        return None;
    }
    let mut data = Vec::new();
    while (data.len() as u64) < len {
        let from = data.len();
        let want = CHUNK.min(len as usize - from);
        data.resize(from + want, 0);
        if file.read(offset.checked_add(from as u64)?, &mut data[from..]) != want {
            return None;
        }
    }
    Some(data)
}

/// The header and the program headers of a 64-bit x86 file.
fn headers(file: &(impl ReadMemory + ?Sized)) -> Option<(Header, Vec<ProgramHeader>)> {
    let start = bytes(file, 0, 64)?;
    let header = Elf::parse_header(&start).ok()?;
    let native = header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_ident[EI_DATA] == ELFDATA2LSB;
    if !native || header.e_machine != EM_X86_64 || usize::from(header.e_phentsize) != ProgramHeader::size(CTX) {
        return None;
    }
    let count = usize::from(header.e_phnum);
    let table = bytes(file, header.e_phoff, (count * ProgramHeader::size(CTX)) as u64)?;
    let programs = ProgramHeader::parse(&table, 0, count, CTX).ok()?;
    Some((header, programs))
}

/// The section headers and the table of their names.
fn sections(file: &(impl ReadMemory + ?Sized), header: &Header) -> Option<(Vec<SectionHeader>, Vec<u8>)> {
    let size = SectionHeader::size(CTX);
    if header.e_shoff == 0 || usize::from(header.e_shentsize) != size {
        return None;
    }
    let mut count = u64::from(header.e_shnum);
    let mut names = usize::from(header.e_shstrndx);
    if count == 0 || names == 0xffff {
        // elf(5): what does not fit into the header stands in the first section header.
        let first = SectionHeader::parse_from(&bytes(file, header.e_shoff, size as u64)?, 0, 1, CTX).ok()?;
        count = if count == 0 { first.first()?.sh_size } else { count };
        names = if names == 0xffff { first.first()?.sh_link as usize } else { names };
    }
    let table = bytes(file, header.e_shoff, count.checked_mul(size as u64)?)?;
    let sections = SectionHeader::parse_from(&table, 0, usize::try_from(count).ok()?, CTX).ok()?;
    let names = sections.get(names)?;
    let names = bytes(file, names.sh_offset, names.sh_size)?;
    Some((sections, names))
}

/// The NUL-terminated name at `offset` of a string table.
pub(super) fn name_at(table: &[u8], offset: usize) -> &[u8] {
    let rest = table.get(offset..).unwrap_or_default();
    &rest[..rest.iter().position(|&b| b == 0).unwrap_or(rest.len())]
}

/// The build id among the notes of one `PT_NOTE` segment (elf(5), "Notes").
fn build_id_in(notes: &[u8], align: usize) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let number = |at: usize| notes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut at = 0;
    while let (Some(name), Some(desc), Some(kind)) = (number(at), number(at + 4), number(at + 8)) {
        let desc_at = (at + 12 + name as usize).next_multiple_of(align);
        let end = desc_at + desc as usize;
        let id = notes.get(desc_at..end)?;
        if kind == NT_GNU_BUILD_ID && notes.get(at + 12..at + 16) == Some(b"GNU\0") && !id.is_empty() {
            return Some(id.to_vec());
        }
        at = end.next_multiple_of(align);
    }
    None
}

/// The GNU build id of a file, when it is an ELF file that has one.
pub fn build_id(file: &(impl ReadMemory + ?Sized)) -> Option<Vec<u8>> {
    let (_, programs) = headers(file)?;
    build_id_of(file, &programs)
}

fn build_id_of(file: &(impl ReadMemory + ?Sized), programs: &[ProgramHeader]) -> Option<Vec<u8>> {
    programs.iter().filter(|p| p.p_type == PT_NOTE).find_map(|p| {
        let align = if p.p_align == 8 { 8 } else { 4 };
        build_id_in(&bytes(file, p.p_offset, p.p_filesz.min(1 << 16))?, align)
    })
}

impl ElfFile {
    /// Reads what is needed; `None` when it is no ELF file of this architecture.
    pub fn read(file: &(impl ReadMemory + ?Sized)) -> Option<ElfFile> {
        let (header, programs) = headers(file)?;
        let loads = programs.iter().filter(|p| p.p_type == PT_LOAD);
        let mut elf = ElfFile {
            loads: loads
                .map(|p| Load { offset: p.p_offset, filesz: p.p_filesz, vaddr: p.p_vaddr, executable: p.p_flags & PF_X != 0 })
                .collect(),
            build_id: build_id_of(file, &programs),
            ..ElfFile::default()
        };
        if let Some((sections, names)) = sections(file, &header) {
            elf.read_sections(file, &sections, &names);
        }
        if elf.cfi.is_empty() {
            elf.read_segments(file, &programs);
        }
        elf.symbols.sort();
        Some(elf)
    }

    fn read_sections(&mut self, file: &(impl ReadMemory + ?Sized), sections: &[SectionHeader], names: &[u8]) {
        let body = |s: &SectionHeader| {
            let there = s.sh_type != SHT_NOBITS && s.sh_flags & u64::from(SHF_COMPRESSED) == 0;
            there.then(|| bytes(file, s.sh_offset, s.sh_size)).flatten()
        };
        let section = |s: &SectionHeader| Some(Section { address: s.sh_addr, data: body(s)? });
        for s in sections {
            match name_at(names, s.sh_name) {
                b".eh_frame" => self.cfi.eh_frame = section(s),
                b".eh_frame_hdr" => self.cfi.eh_frame_hdr = section(s),
                b".debug_frame" => self.cfi.debug_frame = section(s),
                b".text" => self.cfi.text = s.sh_addr,
                b".got" => self.cfi.got = s.sh_addr,
                _ => {}
            }
            if s.sh_type == SHT_SYMTAB || s.sh_type == SHT_DYNSYM {
                let names = sections.get(s.sh_link as usize).and_then(body);
                if let (Some(table), Some(names)) = (body(s), names) {
                    self.symbols.add(&table, &names);
                }
            }
        }
    }

    /// A file without section headers: the unwind tables by its program headers alone.
    fn read_segments(&mut self, file: &(impl ReadMemory + ?Sized), programs: &[ProgramHeader]) {
        let hdr = programs.iter().find(|p| p.p_type == PT_GNU_EH_FRAME);
        let section = |p: &ProgramHeader| {
            let data = bytes(file, p.p_offset, p.p_filesz)?;
            Some(Section { address: p.p_vaddr, data })
        };
        let Some(hdr) = hdr.and_then(section) else { return };
        let Some(address) = hdr.eh_frame_address() else { return };
        let load = self.loads.iter().find(|l| address.checked_sub(l.vaddr).is_some_and(|d| d < l.filesz));
        let Some(load) = load else { return };
        // Where it ends is not said; a terminating zero or the end of the segment does.
        let skip = address - load.vaddr;
        let Some(offset) = load.offset.checked_add(skip) else { return };
        let data = bytes(file, offset, load.filesz - skip);
        self.cfi.eh_frame = data.map(|data| Section { address, data });
        self.cfi.eh_frame_hdr = Some(hdr);
    }

    /// Its GNU build id.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// The address, as the file's own tables count, of the byte at `offset` in the file. Pages at
    /// the border of two segments are mapped twice: then it is the executable one that is meant.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let inside = |l: &&Load| offset.checked_sub(l.offset).is_some_and(|d| d < l.filesz);
        let load = self.loads.iter().filter(inside).max_by_key(|l| l.executable)?;
        Some(load.vaddr.wrapping_add(offset - load.offset))
    }

    /// The tables that say how to step out of a function.
    pub fn cfi(&self) -> &Cfi {
        &self.cfi
    }

    /// The function around an address of the file's own counting: its name as it stands in the
    /// symbol table, and how many bytes after its start the address is.
    pub fn symbol(&self, address: u64) -> Option<(&str, u64)> {
        self.symbols.find(address)
    }

    /// Adds the symbols of the file's detached debug information.
    pub fn add_debug(&mut self, debug: &(impl ReadMemory + ?Sized)) {
        let Some((header, programs)) = headers(debug) else { return };
        if build_id_of(debug, &programs) != self.build_id {
            return;
        }
        let Some((sections, names)) = sections(debug, &header) else { return };
        let mut other = ElfFile::default();
        other.read_sections(debug, &sections, &names);
        self.symbols.append(other.symbols);
        self.symbols.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn reads_the_running_program() {
        let elf = ElfFile::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(elf.symbols.find_name("main").is_some(), "the test binary has a main");
        assert!(!elf.cfi.is_empty());
        assert_eq!(elf.address_of(u64::MAX), None);
    }

    #[test]
    fn build_id_is_what_readelf_says() {
        let path = "/bin/sh";
        let id = build_id(&File::open(path).unwrap()).unwrap();
        let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
        let said = std::process::Command::new("readelf").args(["-n", path]).output().unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).contains(&hex), "{hex}");
    }

    #[test]
    fn damaged_files_are_no_harm() {
        let whole = std::fs::read("/bin/true").unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2000 {
            let mut bad = whole.clone();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Half of the hits go where the headers are.
                let at = (seed >> 33) as usize % if seed & 1 == 0 { 512 } else { bad.len() };
                bad[at] = (seed >> 20) as u8;
            }
            bad.truncate(if seed & 2 == 0 { bad.len() } else { (seed >> 40) as usize % bad.len() });
            if let Some(elf) = ElfFile::read(&bad[..]) {
                let _ = (elf.symbol(0x2000), elf.address_of(0x2000), elf.build_id());
            }
        }
    }
}
