//! The function names of an ELF file, by address.

use super::elf::name_at;
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Sym;
use goblin::elf::section_header::SHN_UNDEF;
use goblin::elf::sym::{STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE};

/// How many entries in front of an address are looked at for a function that is still open there.
const LOOK_BACK: usize = 32;

#[derive(Debug)]
struct Entry {
    address: u64,
    size: u64,
    /// Start of the name in `names`.
    name: usize,
    /// Among several names of one function, the one that people know it by has the highest.
    rank: u8,
}

/// All functions of a file.
#[derive(Debug, Default)]
pub struct Symbols {
    entries: Vec<Entry>,
    names: Vec<u8>,
}

impl Symbols {
    /// Takes the functions out of a `.symtab` or `.dynsym` and its string table.
    pub fn add(&mut self, table: &[u8], names: &[u8]) {
        let ctx = Ctx { container: Container::Big, le: Endian::Little };
        let count = table.len() / Sym::size(Container::Big);
        let base = self.names.len();
        self.names.extend_from_slice(names);
        self.names.push(0);
        for sym in Sym::parse(table, 0, count, ctx).unwrap_or_default() {
            let label = sym.st_type() == STT_NOTYPE && sym.st_size == 0;
            let code = label || matches!(sym.st_type(), STT_FUNC | STT_GNU_IFUNC);
            let name = name_at(names, sym.st_name);
            if !code || sym.st_shndx == SHN_UNDEF as usize || sym.st_value == 0 || name.is_empty() {
                continue;
            }
            let binding = match sym.st_bind() {
                STB_GLOBAL => 2,
                STB_WEAK => 1,
                _ => 0,
            };
            let typed = u8::from(sym.st_type() != STT_NOTYPE) * 16;
            let plain = u8::from(!name.starts_with(b"_")) * 8;
            let (address, size, rank) = (sym.st_value, sym.st_size, typed + plain + binding);
            self.entries.push(Entry { address, size, name: base + sym.st_name, rank });
        }
    }

    /// Takes all of another table.
    pub fn append(&mut self, other: Symbols) {
        let base = self.names.len();
        self.names.extend(other.names);
        self.entries.extend(other.entries.into_iter().map(|e| Entry { name: e.name + base, ..e }));
    }

    /// Brings them into order; to be called before [`Symbols::find`].
    pub fn sort(&mut self) {
        self.entries.sort_by_key(|e| (e.address, e.rank));
    }

    fn name(&self, entry: &Entry) -> &str {
        let name = name_at(&self.names, entry.name);
        // `memcpy@@GLIBC_2.14` in the tables of a linked library.
        let name = name.split(|&b| b == b'@').next().unwrap_or(name);
        std::str::from_utf8(name).unwrap_or("")
    }

    /// The function around an address, and how far into it the address is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let end = self.entries.partition_point(|e| e.address <= address);
        let before = &self.entries[end.saturating_sub(LOOK_BACK)..end];
        let into = |e: &Entry| address - e.address;
        let sized = before.iter().rev().find(|e| into(e) < e.size);
        // Written in assembly and without a size: it reaches up to the next one.
        let open = || {
            let nearest = before.last()?.address;
            let first = before.partition_point(|e| e.address < nearest);
            // One of the names says where the function ends, and the address lies behind it.
            let ended = before[first..].iter().any(|e| e.size != 0);
            before.last().filter(|_| !ended)
        };
        let entry = sized.or_else(open)?;
        let name = self.name(entry);
        (!name.is_empty()).then(|| (name, into(entry)))
    }

    #[cfg(test)]
    pub fn find_name(&self, name: &str) -> Option<u64> {
        self.entries.iter().find(|e| self.name(e) == name).map(|e| e.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One `Elf64_Sym`.
    fn sym(name: u32, info: u8, value: u64, size: u64) -> Vec<u8> {
        let mut bytes = name.to_le_bytes().to_vec();
        bytes.extend([info, 0, 1, 0]);
        bytes.extend(value.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes
    }

    #[test]
    fn finds_the_best_name() {
        const FUNC: u8 = STT_FUNC;
        let names = b"\0__work\0work@@V1\0label\0big\0";
        let table = [
            sym(1, (STB_GLOBAL << 4) | FUNC, 0x1000, 0x10),
            sym(8, (STB_WEAK << 4) | FUNC, 0x1000, 0x10),
            sym(17, STT_NOTYPE, 0x2000, 0),
            sym(23, (STB_GLOBAL << 4) | FUNC, 0x1f00, 0x200),
            sym(17, STT_NOTYPE, 0x3000, 0),
        ]
        .concat();
        let mut symbols = Symbols::default();
        symbols.add(&table, names);
        symbols.sort();
        assert_eq!(symbols.find(0x1004), Some(("work", 4)));
        assert_eq!(symbols.find(0x1010), None, "behind the end of the function");
        assert_eq!(symbols.find(0x2010), Some(("big", 0x110)), "a label inside a function");
        assert_eq!(symbols.find(0x3008), Some(("label", 8)));
        assert_eq!(symbols.find(0xfff), None);
    }
}
