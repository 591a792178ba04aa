//! Address spaces: mappings, the heap's borders, and which objects back them.

use super::capture::Capture;
use super::numa::Policy;
use super::path::FilePath;
use super::shared::Origin;
use super::system_v;
use crate::error::{Context, Result};
use crate::sys::memory;
use crate::sys::pagemap::{self, Guards};
use crate::sys::proc::maps::Vma;
use crate::sys::proc::{maps, read, stat};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

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
    /// The kernel's own `[vdso]`, `[vvar]` and `[vvar_vclock]` pages, and rings of asynchronous I/O ([`super::aio`]).
    Kernel,
}

/// A mapping with fewer pages than this that have a content is filled before the program runs.
pub const LATER_FROM: u64 = 64;

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
    /// The name shown in the maps file: `[heap]`, `[stack]`, `[anon:…]`, a path, or empty.
    pub name: String,
    /// NUMA policy of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

impl Mapping {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    /// Whether what is written to it reaches what stands behind it, or would after mprotect(2).
    pub fn may_write(&self) -> bool {
        self.shared && self.flags.iter().any(|f| f == "mw")
    }
    /// Whether its pages may be brought after the program runs.
    pub fn can_wait(&self) -> bool {
        let has = |flag: &str| self.flags.iter().any(|f| f == flag);
        // What is locked is wanted in memory; what a child finds zero (MADV_WIPEONFORK) is not told of.
        let fixed = self.huge_page_kib != 0 || has("lo") && !has("lf") || has("wf");
        self.backing == Backing::Anonymous && !self.shared && !fixed
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
    pub path: FilePath,
    /// Size in bytes when it was saved.
    pub size: u64,
    /// Time of last modification, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// GNU build id of an ELF file.
    pub build_id: Option<Vec<u8>>,
    /// The mount namespace that the path belongs to, when that is not meio's: an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
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
    /// Guards, start and end by address: pages that may not be touched, without a mapping of their own (madvise(2)
    /// `MADV_GUARD_INSTALL`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<(u64, u64)>,
}

impl AddressSpace {
    /// The guards of a mapping.
    pub fn guards_of(&self, mapping: &Mapping) -> &[(u64, u64)] {
        let from = self.guards.partition_point(|g| g.1 <= mapping.start);
        let to = self.guards.partition_point(|g| g.0 < mapping.end);
        self.guards.get(from..to).unwrap_or(&[])
    }
}

/// `VmFlags` that a restore must set again; the others follow from how a mapping is made.
const KEPT: [&[u8; 2]; 13] = [b"mw", b"gd", b"lo", b"lf", b"sr", b"rr", b"dc", b"nr", b"ht", b"dd", b"wf", b"hg", b"nh"];
/// Same page merging, madvise(2) `MADV_MERGEABLE`.
const MERGEABLE: &[u8; 2] = b"mg";

/// The mappings of a process with their flags, and its guards, which are only looked for while it stands still: both take a
/// walk through all of its memory, unless they are known.
fn layout(pid: i32, capture: &mut Capture) -> Result<(Vec<Vma>, Guards)> {
    let guards = |vmas: &[Vma]| pagemap::guards(pid, vmas).context(|| format!("reading the page map of process {pid}"));
    let smaps = || read::parsed(pid, "smaps", maps::parse);
    if !capture.standing {
        return Ok((smaps()?, Vec::new()));
    }
    if capture.recall.glance.knows(pid) {
        let text = read::read(pid, "maps")?;
        if let Some(known) = capture.recall.glance.layout(pid, &text) {
            return Ok(known);
        }
    }
    let Some(quiet) = &mut capture.recall.quiet else {
        let vmas = smaps()?;
        let guards = guards(&vmas)?;
        return Ok((vmas, guards));
    };
    let text = read::read(pid, "maps")?;
    if let Some(known) = quiet.layout(pid, &text) {
        return Ok(known);
    }
    let vmas = smaps()?;
    let guards = guards(&vmas)?;
    quiet.note_layout(pid, text, (&vmas, &guards));
    Ok((vmas, guards))
}

/// Reads the address space of a process; what cannot be saved is noted in `capture`.
pub fn survey(pid: i32, capture: &mut Capture) -> Result<(AddressSpace, Vec<Vma>)> {
    let (vmas, guards) = layout(pid, capture)?;
    let mut mappings = Vec::with_capacity(vmas.len());
    for vma in vmas.iter().filter(|v| v.name != b"[vsyscall]") {
        if let Some(backing) = backing(pid, vma, capture)? {
            let flags = KEPT.iter().copied().chain([MERGEABLE]).filter(|f| vma.has(f) || on_fault(f, vma));
            mappings.push(Mapping {
                start: vma.start,
                end: vma.end,
                prot: vma.prot,
                shared: vma.shared,
                backing,
                flags: flags.map(|f| String::from_utf8_lossy(f.as_slice()).into_owned()).collect(),
                huge_page_kib: if vma.has(b"ht") { vma.kernel_page_kib as u32 } else { 0 },
                name: String::from_utf8_lossy(&vma.name).into_owned(),
                policy: None, // what the process itself tells: see dump::ask
            });
        }
    }
    let exe = executable(pid, capture)?;
    let stat = read::parsed(pid, "stat", stat::parse)?;
    let borders = Borders {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: 0, // only the process itself knows: see Process::ask
        start_stack: stat.startstack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        auxv: read::auxv(pid)?,
    };
    let vdso_hash = match vmas.iter().find(|v| v.name == b"[vdso]") {
        Some(v) => {
            let mut image = vec![0u8; v.len() as usize];
            memory::read(pid, v.start, &mut image).context(|| format!("reading the vDSO of process {pid}"))?;
            xxhash_rust::xxh3::xxh3_64(&image)
        }
        None => 0,
    };
    Ok((AddressSpace { mappings, borders, exe, vdso_hash, guards }, vmas))
}

/// Memory that is locked when it is touched, mlock2(2) `MLOCK_ONFAULT`, is a flag that older kernels have no letters for.
fn on_fault(flag: &[u8; 2], vma: &Vma) -> bool {
    flag == b"lf" && vma.has(b"lo") && vma.has(b"??")
}

/// What stands behind a mapping; `None` after a refusal.
fn backing(pid: i32, vma: &Vma, capture: &mut Capture) -> Result<Option<Backing>> {
    let at = format!("mapping {:x}-{:x} ({})", vma.start, vma.end, String::from_utf8_lossy(&vma.name));
    if matches!(vma.name.as_slice(), b"[vdso]" | b"[vvar]" | b"[vvar_vclock]") || vma.name.starts_with(b"/[aio]") {
        return Ok(Some(Backing::Kernel));
    }
    let refused: Option<(&str, &str)> = if vma.has(b"um") || vma.has(b"uw") && !capture.watched_by_meio.contains(&pid) {
        Some((
            "it is watched by userfaultfd",
            "end the program's own use of userfaultfd first; after `meio restore --lazy`, wait until all pages are there",
        ))
    } else if vma.protection_key.is_some_and(|key| key != 0) {
        Some(("it has a protection key (pkeys), which is not supported yet", "run the program without protection keys"))
    } else if vma.has(b"ss") {
        Some(("it is a shadow stack", "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"))
    } else if let Some(refused) = super::unsupported::by_name(&vma.name) {
        Some(refused)
    } else if vma.name.starts_with(b"anon_inode:") {
        Some(("it belongs to a kernel object that is not supported yet", "end the program's use of it first"))
    } else if vma.has(b"pf") || vma.has(b"io") {
        Some(("it maps a device", "the device's state cannot be read; close it first"))
    } else if vma.has(b"ht") && (vma.shared || vma.name.starts_with(b"/memfd:")) {
        Some(("shared huge pages (hugetlbfs) are not supported yet", "use transparent huge pages"))
    } else {
        None
    };
    if let Some((reason, advice)) = refused {
        capture.refuse(pid, at, reason, advice);
        return Ok(None);
    }
    // Private huge pages show the kernel's internal file.
    // The first segment of an ipc namespace has the number 0.
    let segment = vma.name.starts_with(b"/SYSV");
    if vma.inode == 0 && !segment || (vma.has(b"ht") && vma.name.starts_with(b"/anon_hugepage")) {
        return Ok(Some(Backing::Anonymous));
    }
    let (path, deleted) = vma.path();
    let path = FilePath::from(path);
    let alike = (capture.mounts_of(pid), vma.dev, vma.inode, vma.name.clone());
    if let Some(&file) = capture.mapped_alike.get(&alike) {
        return Ok(Some(Backing::File { file, offset: vma.offset }));
    }
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
    let meta = std::fs::metadata(&link).context(|| format!("reading {at} of process {pid}"))?;
    let same = !deleted && std::fs::metadata(capture.place(pid, &path)).is_ok_and(|now| (now.dev(), now.ino()) == (meta.dev(), meta.ino()));
    if same {
        let file = mapped_file(pid, &path, &meta, capture);
        capture.mapped_alike.insert(alike, file);
        return Ok(Some(Backing::File { file, offset: vma.offset }));
    }
    if segment {
        let open = || File::open(&link).context(|| format!("reading {at} of process {pid}"));
        let object = system_v::object(vma.inode as i32, (meta.dev(), capture.ipc_of(pid)), capture, open)?;
        return Ok(Some(Backing::Object { object, offset: vma.offset }));
    }
    let namespace = capture.mounts_of(pid);
    let object = capture.object((meta.dev(), meta.ino()), || {
        let file = File::open(&link).context(|| format!("reading {at} of process {pid}"))?;
        let origin = match path.bytes().strip_prefix(b"/memfd:") {
            Some(name) => Origin::memfd(name, &file)?,
            None if path.bytes() == b"/dev/zero" || path.bytes().starts_with(b"[anon_shmem:") => Origin::Anonymous,
            None => Origin::Deleted { path: path.clone(), mode: meta.mode(), owner: (meta.uid(), meta.gid()), namespace },
        };
        Ok((origin, file))
    })?;
    Ok(Some(Backing::Object { object, offset: vma.offset }))
}

fn executable(pid: i32, capture: &mut Capture) -> Result<Backing> {
    let link = format!("/proc/{pid}/exe");
    let meta = std::fs::metadata(&link).context(|| format!("reading {link}"))?;
    let (path, _) = FilePath::from_link(&read::link(pid, "exe")?);
    if std::fs::metadata(capture.place(pid, &path)).is_ok_and(|now| (now.dev(), now.ino()) == (meta.dev(), meta.ino())) {
        return Ok(Backing::File { file: mapped_file(pid, &path, &meta, capture), offset: 0 });
    }
    let namespace = capture.mounts_of(pid);
    let object = capture.object((meta.dev(), meta.ino()), || {
        let origin = Origin::Deleted { path: path.clone(), mode: meta.mode(), owner: (meta.uid(), meta.gid()), namespace };
        Ok((origin, File::open(&link).context(|| format!("reading {link}"))?))
    })?;
    Ok(Backing::Object { object, offset: 0 })
}

fn mapped_file(pid: i32, path: &FilePath, meta: &std::fs::Metadata, capture: &mut Capture) -> u32 {
    let key = (capture.mounts_of(pid), path.clone());
    if let Some(&index) = capture.mapped_index.get(&key) {
        return index;
    }
    let index = capture.mapped.len() as u32;
    let place = capture.place(pid, path);
    let build_id = capture.recall.build_id(&place, meta);
    capture.mapped.push(MappedFile {
        path: path.clone(),
        size: meta.len(),
        mtime: (meta.mtime(), meta.mtime_nsec() as u32),
        build_id,
        namespace: key.0,
    });
    capture.mapped_index.insert(key, index);
    index
}

/// The GNU build id of an ELF file, when its notes lie within the first page, where linkers put them.
pub fn build_id(path: &std::path::Path) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: [u8; 4] = 3u32.to_le_bytes();
    let mut head = vec![0u8; PAGE as usize];
    let n = std::os::unix::fs::FileExt::read_at(&File::open(path).ok()?, &mut head, 0).ok()?;
    let head = &head[..n];
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    // A note: name size 4, descriptor size, type 3, the name "GNU\0", then the id.
    let name = memchr::memmem::find_iter(head, b"GNU\0").find(|&i| i >= 12 && head[i - 4..i] == NT_GNU_BUILD_ID)?;
    let size = u32::from_le_bytes(head[name - 8..name - 4].try_into().ok()?) as usize;
    head.get(name + 4..name + 4 + size.min(64)).map(<[u8]>::to_vec)
}
