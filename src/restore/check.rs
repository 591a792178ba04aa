//! Everything that can be known to go wrong is found here, all of it, before anything is started.

use super::places::Places;
use super::{queues, reach, skeleton, system_v};
use crate::error::{Error, Kind as Failure, Refusal, Result};
use crate::resource::descriptor::FileKind;
use crate::resource::path::FilePath;
use crate::resource::shared::Origin;
use crate::resource::{Manifest, Tree};
use crate::sys::arch;
use crate::sys::namespace::Kind;
use crate::sys::proc::read;
use std::collections::HashSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

/// What this processor lacks and the one that the image was made on had, though no thread was just using its registers.
pub fn lesser_processor(manifest: &Manifest) -> Option<String> {
    let here = arch::instructions();
    let missing: Vec<&str> =
        manifest.processor.split(' ').filter(|name| !name.is_empty() && !here.split(' ').any(|own| own == *name)).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "this processor lacks instructions of the one that the image was made on ({}): code that has found them there ends with \
             SIGILL here",
            missing.join(" ")
        )
    })
}

/// A program asks once how large its vector state is, and saves it into that much memory for ever (the dynamic linker does, where it
/// binds lazily). On a processor that has more of it, that would be overrun.
fn larger_vectors(manifest: &Manifest, tree: &Tree) -> Result<()> {
    /// Bytes of a signal frame, as they were where the program was started; Linux 5.14.
    const AT_MINSIGSTKSZ: u64 = 51;
    let here = read::auxv(std::process::id() as i32).ok().and_then(|auxv| arch::auxiliary(&auxv, AT_MINSIGSTKSZ));
    for process in &tree.processes {
        let Some(space) = &process.memory else { continue };
        let larger = match (here, arch::auxiliary(&space.borders.auxv, AT_MINSIGSTKSZ)) {
            (Some(here), Some(there)) => here > there,
            _ => arch::xfeatures() & !manifest.xfeatures != 0,
        };
        if larger {
            let text =
                "was started on a processor with a smaller vector state than this one has: code that saves it would overrun its memory";
            return Err(
                Error::image(format!("process {} {text}", process.pid)).help("restore it on a machine with the same processor features")
            );
        }
    }
    Ok(())
}

/// Checks an image against this machine. `arriving`: addresses that will be here when they are needed, and the length of their networks.
pub fn check(manifest: &Manifest, tree: &Tree, pid_namespace: bool, arriving: &[(IpAddr, u8)]) -> Result<()> {
    structure(tree)?;
    super::places::check(tree)?;
    let in_use = tree.processes.iter().flat_map(|p| &p.threads).fold(0, |all, t| all | arch::in_use(&t.xstate));
    let missing = manifest.xfeatures & !arch::xfeatures();
    if missing & in_use != 0 {
        return Err(Error::image(format!(
            "the image was made on a processor with vector features that are missing here and in use (XCR0 bits {missing:#x})"
        ))
        .help("restore it on a machine with the same processor features"));
    }
    larger_vectors(manifest, tree)?;
    system_v::check(tree)?;
    queues::check(tree)?;
    let mut refusals = Vec::new();
    if !pid_namespace && tree.base().is_none() {
        pids(tree, &mut refusals);
    }
    let taken = refusals.len();
    reach::check(tree, arriving, &mut refusals);
    match (taken, refusals.len()) {
        (_, 0) => Ok(()),
        (taken, all) if taken == all => Err(Error::refused("cannot restore: pids are in use", refusals).help(OTHERS)),
        (0, _) => Err(Error::refused("cannot restore the connections of this tree here", refusals)),
        _ => Err(Error::refused("cannot restore here", refusals)),
    }
}

const OTHERS: &str = "use --pid-namespace to restore with the same numbers in a fresh pid namespace";

/// What the rest of the restore takes for granted.
fn structure(tree: &Tree) -> Result<()> {
    let bad = |what: String| Err(Error::image(format!("image damaged: {what}")));
    let Some(root) = tree.processes.first() else { return bad("it holds no process".into()) };
    let mut seen = HashSet::new();
    let mut tids = HashSet::new();
    let misplaced = |(n, id): (usize, u32)| n != id as usize;
    if tree.files.iter().map(|f| f.id).enumerate().any(misplaced) || tree.objects.iter().map(|o| o.id).enumerate().any(misplaced) {
        return bad("what it lists is not where its number says".into());
    }
    for (i, p) in tree.processes.iter().enumerate() {
        if p.pid <= 0 || !seen.insert(p.pid) {
            return bad(format!("process {} is listed twice or has an impossible pid", p.pid));
        }
        if (i == 0) != (p.ppid == 0) || (i > 0 && (!seen.contains(&p.ppid) || p.ppid == p.pid)) {
            return bad(format!("process {} has no parent before it", p.pid));
        }
        let zombie = matches!(p.state, crate::resource::process::State::Zombie(_));
        if zombie != p.memory.is_none() || zombie != p.threads.is_empty() || p.threads.first().is_some_and(|t| t.tid != p.pid) {
            return bad(format!("process {} lacks memory or threads", p.pid));
        }
        if p.descriptors.iter().any(|d| d.fd < 0 || d.file as usize >= tree.files.len()) {
            return bad(format!("process {} has an impossible descriptor", p.pid));
        }
        if let Some(t) = p.threads.iter().find(|t| t.tid <= 0 || !tids.insert(t.tid)) {
            return bad(format!("task {} is listed twice or has an impossible tid", t.tid));
        }
        let mappings = p.memory.iter().flat_map(|m| &m.mappings);
        let mut end = 0;
        for m in mappings {
            if m.start < end || m.end <= m.start || m.start % 4096 != 0 || m.end % 4096 != 0 {
                return bad(format!("process {} has impossible mappings", p.pid));
            }
            end = m.end;
        }
    }
    if root.memory.is_none() { bad("its root has ended".into()) } else { Ok(()) }
}

/// Files that are mapped must be the same, those that are open must be there; of those that are `settled` it is known.
pub fn files(tree: &Tree, places: &Places<'_>, settled: &HashSet<FilePath>) -> Result<()> {
    let mut refusals = Vec::new();
    let pid = tree.processes[0].pid;
    let mut refuse = |object: &FilePath, reason: String, advice: &str| {
        refusals.push(Refusal { pid, object: object.to_string(), reason, advice: advice.to_owned(), ..Refusal::default() });
    };
    for file in tree.mapped.iter().filter(|f| !settled.contains(&f.path)) {
        let place = places.path(file.namespace, &file.path);
        match std::fs::metadata(&place) {
            Err(e) => refuse(&file.path, format!("it is mapped by the tree and cannot be opened: {e}"), "bring the file back"),
            Ok(meta) if !meta.is_file() || comes_later(tree, file.namespace, &file.path) => {}
            Ok(meta) => {
                let same_time = (meta.mtime(), meta.mtime_nsec() as u32) == file.mtime;
                let same_id = file.build_id.is_some() && crate::resource::memory::build_id(&place) == file.build_id;
                let shared_only = !privately_mapped(tree, &file.path);
                if meta.len() != file.size && !shared_only || !same_time && !same_id && !shared_only {
                    refuse(&file.path, "it is mapped by the tree and has changed since the dump".into(), "bring the old version back");
                }
            }
        }
    }
    for file in &tree.files {
        let FileKind::Regular(regular) = &file.kind else { continue };
        if regular.deleted.is_some() || settled.contains(&regular.path) {
            continue;
        }
        match std::fs::symlink_metadata(places.path(places.mounts_of_file(file.id), &regular.path)) {
            Err(e) => refuse(&regular.path, format!("it was open and cannot be found: {e}"), "bring the file back"),
            Ok(meta) if meta.mode() & libc::S_IFMT != regular.mode & libc::S_IFMT => {
                refuse(&regular.path, "it was open and is of another type now".into(), "bring the file back");
            }
            Ok(_) => {}
        }
    }
    // One that was about to end when a running tree was looked at is in no directory any more.
    let somewhere = |fs: &crate::resource::process::Fs| !fs.cwd_deleted && !fs.cwd.as_os_str().is_empty() && !settled.contains(&fs.cwd);
    for p in tree.processes.iter().filter(|p| p.memory.is_some() && somewhere(&p.fs)) {
        if !places.path(p.places.of(&tree.namespaces, Kind::Mnt), &p.fs.cwd).is_dir() {
            refuse(&p.fs.cwd, format!("the current directory of process {} is not there", p.pid), "make the directory");
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error { kind: Failure::Image, ..Error::refused("cannot restore here", refusals) }) }
}

/// Whether a file is in memory only, and its content comes with the pages.
fn comes_later(tree: &Tree, mounts: Option<u32>, file: &FilePath) -> bool {
    let is = |origin: &Origin| matches!(origin, Origin::Mounted { namespace, path, .. } if Some(*namespace) == mounts && path == file);
    tree.objects.iter().any(|o| is(&o.origin))
}

fn privately_mapped(tree: &Tree, path: &FilePath) -> bool {
    use crate::resource::memory::Backing;
    let is = |b: &Backing| matches!(b, Backing::File { file, .. } if tree.mapped.get(*file as usize).is_some_and(|f| f.path == *path));
    tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| is(&m.exe) || m.mappings.iter().any(|v| !v.shared && is(&v.backing)))
}

/// Every pid and tid must be free.
fn pids(tree: &Tree, refusals: &mut Vec<Refusal>) {
    let wanted = tree.processes.iter().flat_map(|p| std::iter::once(p.pid).chain(p.threads.iter().map(|t| t.tid)));
    for pid in wanted.chain(skeleton::departed_leaders(tree)) {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() || refusals.iter().any(|r: &Refusal| r.pid == pid) {
            continue;
        }
        let name = read::read(pid, "comm").map(|c| String::from_utf8_lossy(&c).trim().to_owned()).unwrap_or_default();
        refusals.push(Refusal {
            pid,
            object: format!("pid {pid}"),
            reason: format!("it is in use by {name}"),
            advice: "end that process, or use --pid-namespace".into(),
            ..Refusal::default()
        });
    }
}
