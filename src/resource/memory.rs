//! Address spaces: mappings, the heap's borders, and which objects back them.

use serde::{Deserialize, Serialize};

/// Pages are 4 KiB on the one architecture that is supported.
pub const PAGE: u64 = 4096;

/// Number of an [`Object`] in the image.
pub type ObjectId = u32;

/// What stands behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Backing {
    /// Private anonymous memory; all of its content is in the process's own pages.
    Anonymous,
    /// A file with a name.
    File {
        /// Index into [`crate::resource::Tree::mapped`].
        file: u32,
        /// Offset of the mapping in the file, in bytes.
        offset: u64,
    },
    /// Shared anonymous memory, memfd or a deleted file: content is an [`Object`] of the image.
    Object {
        /// Which object.
        object: ObjectId,
        /// Offset of the mapping in the object, in bytes.
        offset: u64,
    },
    /// The kernel's own `[vdso]`, `[vvar]` and `[vvar_vclock]` pages.
    Kernel,
}

/// One mapping (VMA) of an address space, as proc_pid_smaps(5) shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` bits of mmap(2).
    pub prot: u32,
    /// `MAP_SHARED` instead of `MAP_PRIVATE`.
    pub shared: bool,
    /// What stands behind it.
    pub backing: Backing,
    /// The two-letter `VmFlags` that must be set again (madvise, mlock, growsdown, noreserve).
    pub flags: Vec<String>,
    /// Page size in KiB of a hugetlb mapping, else 0.
    pub huge_page_kib: u32,
    /// The name shown in the maps file: `[heap]`, `[stack]`, a path, or empty.
    pub name: String,
}

impl Mapping {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    /// Whether the address lies inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A file that is mapped, identified so that a changed one is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappedFile {
    /// Absolute path.
    pub path: String,
    /// Size in bytes when it was saved.
    pub size: u64,
    /// Time of last modification, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// GNU build id of an ELF file.
    pub build_id: Option<Vec<u8>>,
}

/// `struct prctl_mm_map` of prctl(2) `PR_SET_MM_MAP`: the borders that the kernel keeps of an address space.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the names are the kernel's own
pub struct Borders {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// The auxiliary vector, as getauxval(3) reads it.
    #[serde(with = "crate::image::bytes")]
    pub auxv: Vec<u8>,
}

/// One address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressSpace {
    /// All mappings, by address.
    pub mappings: Vec<Mapping>,
    /// Code, data, heap, stack, argument and environment borders.
    pub borders: Borders,
    /// The executable, index into the table of mapped files, or an object when it was deleted.
    pub exe: Backing,
    /// Content of the `[vdso]` mapping's ELF image, to know it again: hash (XXH3-64).
    pub vdso_hash: u64,
}
