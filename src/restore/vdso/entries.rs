//! The functions that a vDSO offers, and the code that leads from those of one kernel's to those of another's.
//!
//! A program has asked for their addresses once, most often when it started, and calls them there for ever. So the old
//! bytes stay where they were, and each function begins with a jump: to the function of the same name in the vDSO of
//! the kernel that runs, or, where it has none, to the system call that it stands for.

use crate::error::{Error, Kind, Result};
use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::section_header::SHN_UNDEF;
use goblin::elf::sym::{STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE};
use std::collections::BTreeMap;

/// Bytes of `jmp rel32`.
const JUMP: usize = 5;
/// What the names of the functions begin with; each has a second name without it.
const PREFIX: &str = "__vdso_";
/// Each function of a vDSO and the system call behind it, vdso(7).
const CALLS: [(&str, i64); 5] = [
    ("clock_getres", libc::SYS_clock_getres),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("getcpu", libc::SYS_getcpu),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("time", libc::SYS_time),
];
/// Its state in the program's memory is laid out as one kernel has it, and goes with counters of that kernel: always the
/// system call. With a fifth argument of ~0 it is asked for the size of that state: -ENOSYS, as where there is none.
const GETRANDOM: (&str, [u8; 22]) = (
    "getrandom",
    [
        0x49, 0x83, 0xf8, 0xff, // cmp r8,-1
        0x74, 0x08, // je over the call
        0xb8, 0x3e, 0x01, 0x00, 0x00, // mov eax,318
        0x0f, 0x05, // syscall
        0xc3, // ret
        0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, // mov rax,-38
        0xc3, // ret
    ],
);

/// Names of functions, without their prefix, and their offsets from the start of the image.
pub type Entries = BTreeMap<String, u64>;

/// Code for one process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Patches {
    /// Offsets in the old image, and what is to be there.
    pub jumps: Vec<(u64, [u8; JUMP])>,
    /// What the page behind the new vDSO holds.
    pub annex: Vec<u8>,
}

/// Reads the functions of a vDSO. Of one that makes no sense, none.
pub fn entries(image: &[u8]) -> Entries {
    let Ok(elf) = Elf::parse(image) else { return Entries::new() };
    let base = elf.program_headers.iter().find(|p| p.p_type == PT_LOAD).map_or(0, |p| p.p_vaddr.wrapping_sub(p.p_offset));
    let function = |kind: u8| [STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE].contains(&kind);
    let there = elf.dynsyms.iter().filter(|s| s.st_shndx != SHN_UNDEF as usize && s.st_value != 0 && function(s.st_type()));
    let named = there.filter_map(|s| {
        let name = elf.dynstrtab.get_at(s.st_name)?;
        let offset = s.st_value.wrapping_sub(base);
        let inside = offset.checked_add(JUMP as u64).is_some_and(|end| end <= image.len() as u64);
        inside.then(|| (name.strip_prefix(PREFIX).unwrap_or(name).to_owned(), offset))
    });
    named.collect()
}

/// The code that leads from the functions of `old`, an image that lies at `old_at`, to those of a new one at `new_at`.
/// `annex` is where there is room for more.
pub fn patches(old: &[u8], old_at: u64, new: &Entries, new_at: u64, annex: u64) -> Result<Patches> {
    let from = entries(old);
    let mut places: Vec<u64> = from.values().copied().collect();
    places.sort_unstable();
    places.dedup();
    let narrow = |at: u64| places.iter().any(|&next| next > at && next - at < JUMP as u64);
    let mut patches = Patches::default();
    let mut done = Vec::new();
    for (name, &offset) in &from {
        // Known by its other name already.
        if done.contains(&offset) {
            continue;
        }
        let target = match new.get(name) {
            Some(there) if name != GETRANDOM.0 => new_at + there,
            _ => match call(name) {
                Some(code) => {
                    let at = annex + patches.annex.len() as u64;
                    patches.annex.extend(code);
                    patches.annex.resize(patches.annex.len().next_multiple_of(16), 0xcc);
                    at
                }
                // It reads nothing of the kernel's, like the one that enters an enclave: its old code is right.
                None => continue,
            },
        };
        done.push(offset);
        if narrow(offset) {
            return Err(Error::new(Kind::Kernel, format!("the vDSO of the image has no room for a jump at {name}")));
        }
        let far = || Error::new(Kind::Kernel, format!("this kernel's {name} of the vDSO is out of the reach of a jump"));
        patches.jumps.push((offset, jump(old_at + offset, target).ok_or_else(far)?));
    }
    Ok(patches)
}

/// Code that makes the system call behind a function.
fn call(name: &str) -> Option<Vec<u8>> {
    if name == GETRANDOM.0 {
        return Some(GETRANDOM.1.to_vec());
    }
    let number = CALLS.iter().find(|c| c.0 == name)?.1 as u32;
    let mut code = vec![0xb8]; // mov eax,number
    code.extend(number.to_le_bytes());
    code.extend([0x0f, 0x05, 0xc3]); // syscall; ret
    Some(code)
}

/// `jmp rel32`, when it reaches so far.
fn jump(from: u64, to: u64) -> Option<[u8; JUMP]> {
    let distance = to.wrapping_sub(from.wrapping_add(JUMP as u64)) as i64;
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        let maps = crate::sys::proc::read::parsed(std::process::id() as i32, "maps", crate::sys::proc::maps::parse).expect("maps");
        let vma = maps.iter().find(|v| v.name == b"[vdso]").expect("a vDSO");
        let mut image = vec![0; vma.len() as usize];
        crate::sys::memory::read(std::process::id() as i32, vma.start, &mut image).expect("the vDSO");
        image
    }

    #[test]
    fn this_kernels_functions_are_found() {
        let entries = entries(&own());
        for (name, _) in CALLS {
            assert!(entries.contains_key(name), "{name}: {entries:?}");
        }
    }

    #[test]
    fn every_function_leads_to_its_namesake() {
        let image = own();
        let here = entries(&image);
        let moved: Entries = here.iter().map(|(name, offset)| (name.clone(), offset + 64)).collect();
        let (old_at, new_at, annex) = (0x7fff_0000_0000, 0x7fff_0001_0000, 0x7fff_0002_0000);
        let patches = patches(&image, old_at, &moved, new_at, annex).expect("patches");
        assert_eq!(patches.jumps.len(), here.values().collect::<std::collections::BTreeSet<_>>().len());
        for (offset, code) in &patches.jumps {
            assert_eq!(code[0], 0xe9);
            let distance = i32::from_le_bytes(code[1..].try_into().expect("four bytes"));
            let target = (old_at + offset + 5).wrapping_add_signed(i64::from(distance));
            let random = here.get("getrandom") == Some(offset);
            assert_eq!(target, if random { annex } else { new_at + offset + 64 });
        }
    }

    #[test]
    fn what_the_new_one_lacks_is_a_system_call() {
        let image = own();
        let patches = patches(&image, 0x1000_0000, &Entries::new(), 0, 0x1001_0000).expect("patches");
        let number = (libc::SYS_clock_gettime as u32).to_le_bytes();
        assert!(patches.annex.windows(8).any(|w| w[0] == 0xb8 && w[1..5] == number && w[5..] == [0x0f, 0x05, 0xc3]));
        assert!(patches.annex.len().is_multiple_of(16) && patches.jumps.len() >= CALLS.len());
    }

    #[test]
    fn what_is_too_far_away_is_not_reached() {
        let here = entries(&own());
        assert!(patches(&own(), 0x1000, &here, 0x7fff_0000_0000, 0x7fff_1000_0000).is_err_and(|e| e.kind == Kind::Kernel));
        assert_eq!(jump(0x8000_0005, 0), None);
        assert_eq!(jump(0x1000, 0x1000), Some([0xe9, 0xfb, 0xff, 0xff, 0xff]));
    }

    #[test]
    fn nonsense_has_no_functions() {
        assert!(entries(&[]).is_empty());
        assert!(entries(&[0x7f; 4096]).is_empty());
        let mut image = own();
        for at in (0..image.len()).step_by(7) {
            image[at] ^= 0x5a;
            let _ = entries(&image); // must not panic
        }
    }
}
