//! Which files a tree needs, and what is in them.

use super::blocks::{self, block_for};
use super::entry::Identity;
use super::single::Untold;
use super::walk::{Step, Walk};
use super::{Choice, Folder, Request, Storage, Wanted};
use crate::error::{Context, Error, Kind as Failure, Refusal, Result};
use crate::resource::Tree;
use crate::resource::descriptor::FileKind;
use crate::resource::memory::Backing;
use crate::resource::path::FilePath;
use crate::resource::process::Process;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::namespace::Kind;
use crate::sys::proc::{fdinfo, read};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// File systems that show the kernel, or what comes with the tree: nothing in them is a file to be compared.
const SHOWN: [&str; 20] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// Those whose inode numbers come from a server that others speak with, too.
const SERVED: [&str; 9] = ["afs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "lustre", "nfs", "nfs4", "smb3"];
/// Those on a disk that several machines have.
const CLUSTERED: [&str; 3] = ["gfs2", "ocfs2", "vmfs"];

/// What only the source needs to know of what it asks for.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Of each file as it was compared; none where its times tell nothing.
    pub identities: Vec<Option<Identity>>,
    /// Whose times tell nothing.
    pub untold: Untold,
    /// What was looked at.
    pub paths: HashSet<FilePath>,
}

/// The mounts of this machine.
pub struct Mounts(Vec<(Vec<u8>, String, String)>);

impl Mounts {
    /// As they are now.
    pub fn read(boot: [u8; 16]) -> Result<(Self, [u8; 16])> {
        let text = std::fs::read("/proc/self/mountinfo").context(|| "reading /proc/self/mountinfo")?;
        Ok((Mounts::parse(&text), boot))
    }

    /// proc_pid_mountinfo(5): mount points, types and sources.
    fn parse(text: &[u8]) -> Self {
        let line = |line: &[u8]| {
            let text = String::from_utf8_lossy(line).into_owned();
            let (front, back) = text.split_once(" - ")?;
            let mut back = back.split(' ');
            let point = unescape(front.split(' ').nth(4)?);
            Some((point, back.next()?.to_owned(), back.next()?.to_owned()))
        };
        Mounts(text.split(|b| *b == b'\n').filter_map(line).collect())
    }

    /// Type and source of the file system at a path: the last that was mounted over it.
    fn at(&self, path: &Path) -> (String, String) {
        let below = |m: &&(Vec<u8>, _, _)| path.starts_with(Path::new(std::ffi::OsStr::from_bytes(&m.0)));
        let found = self.0.iter().filter(below).max_by_key(|m| m.0.len());
        found.map_or_else(Default::default, |m| (m.1.clone(), m.2.clone()))
    }
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal.filter(|_| bytes[at] == b'\\') {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

impl Storage {
    /// Of what is at a path.
    pub fn of(path: &Path, meta: &Metadata, mounts: &(Mounts, [u8; 16])) -> Self {
        let (kind, source) = mounts.0.at(path);
        // The halves of `f_fsid`: nothing that is read by name.
        let fsid = nix::sys::statvfs::statvfs(path).map_or(0, |s| s.filesystem_id());
        Storage { boot: mounts.1, file: (meta.dev(), meta.ino()), kind, source, fsid }
    }

    /// Whether both are one file.
    pub fn is_same(&self, other: &Storage) -> bool {
        let served = |s: &Storage| SERVED.contains(&s.kind.as_str()) && !s.source.starts_with("localhost") && !s.source.starts_with("127.");
        let alike = self.kind == other.kind && self.file.1 == other.file.1;
        match () {
            () if self.boot == other.boot => self.file == other.file,
            () if served(self) => alike && self.source == other.source,
            () if CLUSTERED.contains(&self.kind.as_str()) => alike && self.fsid != 0 && self.fsid == other.fsid,
            () => false,
        }
    }

    /// Whether it may be another machine's, too, and is not read to find out.
    fn is_served(&self) -> bool {
        SERVED.contains(&self.kind.as_str()) || CLUSTERED.contains(&self.kind.as_str())
    }
}

/// What stands for the content of a file.
pub fn content(path: &Path, size: u64, go_on: &dyn Fn() -> bool) -> std::io::Result<Bytes> {
    let hashes = blocks::hashes(path, size, block_for(size), go_on)?;
    Ok(Bytes(blocks::content(size, &hashes)))
}

/// Everything that the tree needs at the target, what the source keeps for itself, and what cannot be.
pub fn look(tree: &Tree, choice: &Choice, boot: [u8; 16], go_on: &dyn Fn() -> bool) -> Result<(Request, Seen, Vec<Refusal>)> {
    let mounts = Mounts::read(boot)?;
    let mut refusals = Vec::new();
    let shared = choice.shared.iter().map(|s| FilePath::from(s.as_os_str().as_bytes())).collect();
    let mut request = Request { copying: choice.copying, shared, ..Request::default() };
    for path in &choice.folders {
        if let Some(folder) = folder(path, choice, &mounts, &mut refusals)? {
            request.folders.push(folder);
        }
    }
    let nested = |f: &Folder| {
        let holds = |other: &&Folder| f.path != other.path && f.path.starts_with(&other.path) && f.storage.file.0 == other.storage.file.0;
        request.folders.iter().any(|other| holds(&other))
    };
    let keep: Vec<bool> = request.folders.iter().map(|f| !nested(f)).collect();
    let mut keep = keep.into_iter();
    request.folders.retain(|_| keep.next().unwrap_or(true));
    request.folders.dedup_by(|a, b| a.path == b.path);
    let mut seen = Seen::default();
    // Whatever was decided about them.
    seen.paths.extend(tree.files.iter().map(|f| FilePath::from_link(f.link.as_bytes()).0));
    for (path, need) in needs(tree).into_values() {
        if request.is_known(&path) {
            if need.mapped_to_write {
                seen.untold.extend(std::fs::metadata(&*path).ok().map(|m| (m.dev(), m.ino())));
            }
            continue;
        }
        if let Some((wanted, identity)) = wanted(&path, &need, &mounts, go_on)? {
            if need.mapped_to_write {
                seen.untold.insert(wanted.storage.file);
            }
            request.wanted.push(wanted);
            seen.identities.push(identity.filter(|_| !need.mapped_to_write));
        }
        seen.paths.insert(path);
    }
    Ok((request, seen, refusals))
}

/// Files that processes below `root` have opened since it was looked, each with its identity.
pub fn opened(root: i32, request: &Request, paths: &mut HashSet<FilePath>, boot: [u8; 16]) -> Result<Vec<(Wanted, Option<Identity>)>> {
    let mut mounts = None;
    let (mut pids, mut next, mut found) = (vec![root], 0, Vec::new());
    while let Some(&pid) = pids.get(next) {
        next += 1;
        pids.extend(read::children(pid).unwrap_or_default());
        for fd in read::fds(pid).unwrap_or_default() {
            let Ok(link) = read::fd_link(pid, fd) else { continue };
            let (path, deleted) = FilePath::from_link(&link);
            if !link.starts_with(b"/") || deleted || paths.contains(&path) || request.is_known(&path) {
                continue;
            }
            let Ok(meta) = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")) else { continue };
            if !meta.is_file() || !is_ours(pid, &path) {
                continue;
            }
            paths.insert(path.clone());
            if mounts.is_none() {
                mounts = Some(Mounts::read(boot)?);
            }
            let info = read::parsed(pid, &format!("fdinfo/{fd}"), fdinfo::parse);
            let written = info.is_ok_and(|i| i.flags & libc::O_PATH as u32 == 0 && i.flags & libc::O_ACCMODE as u32 != 0);
            let object = format!("fd {fd} ({path})");
            let need = Need { pid, object, kind: libc::S_IFREG, written, ..Need::default() };
            if let Some(mounts) = &mounts {
                found.extend(wanted(&path, &need, mounts, &|| true)?);
            }
        }
    }
    Ok(found)
}

/// Whether a process below `root` has a descriptor of what is at a path.
pub fn is_open(root: i32, path: &FilePath) -> bool {
    let (mut pids, mut next) = (vec![root], 0);
    while let Some(&pid) = pids.get(next) {
        next += 1;
        pids.extend(read::children(pid).unwrap_or_default());
        let mut links = read::fds(pid).unwrap_or_default().into_iter().filter_map(|fd| read::fd_link(pid, fd).ok());
        if links.any(|link| link == path.bytes()) {
            return true;
        }
    }
    false
}

/// What a tree needs a path for.
#[derive(Default)]
struct Need {
    pid: i32,
    object: String,
    build_id: Option<Vec<u8>>,
    kind: u32,
    written: bool,
    mapped_to_write: bool,
}

fn needs(tree: &Tree) -> BTreeMap<Vec<u8>, (FilePath, Need)> {
    let mut all: HashMap<Vec<u8>, (FilePath, Need)> = HashMap::new();
    let in_mounts = |p: &Process, n: Option<u32>| p.places.of(&tree.namespaces, Kind::Mnt) == n;
    for (index, file) in tree.mapped.iter().enumerate() {
        let holder = tree.processes.iter().find(|p| p.memory.is_some() && in_mounts(p, file.namespace));
        if file.namespace.is_some() && !holder.is_some_and(|p| is_ours(p.pid, &file.path)) {
            continue;
        }
        let is = |b: &Backing| matches!(b, Backing::File { file, .. } if *file as usize == index);
        let mapped_to_write =
            tree.processes.iter().filter_map(|p| p.memory.as_ref()).any(|m| m.mappings.iter().any(|v| v.may_write() && is(&v.backing)));
        let exe = tree.processes.iter().find(|p| p.memory.as_ref().is_some_and(|m| is(&m.exe)));
        let object = if exe.is_some() { "executable" } else { "mapped file" };
        let need = Need {
            pid: exe.or(holder).map_or(0, |p| p.pid),
            object: format!("{object} {}", file.path),
            build_id: file.build_id.clone().filter(|_| !mapped_to_write),
            kind: libc::S_IFREG,
            written: mapped_to_write,
            mapped_to_write,
        };
        all.insert(file.path.bytes().to_vec(), (file.path.clone(), need));
    }
    for process in tree.processes.iter().filter(|p| p.memory.is_some()) {
        let apart = process.places.of(&tree.namespaces, Kind::Mnt).is_some();
        for descriptor in &process.descriptors {
            let Some(file) = tree.files.get(descriptor.file as usize) else { continue };
            let FileKind::Regular(regular) = &file.kind else { continue };
            let kind = regular.mode & libc::S_IFMT;
            if regular.deleted.is_some() || !matches!(kind, libc::S_IFREG | libc::S_IFDIR) || apart && !is_ours(process.pid, &regular.path)
            {
                continue;
            }
            let written = file.flags & libc::O_PATH as u32 == 0 && file.flags & libc::O_ACCMODE as u32 != 0;
            let object = format!("fd {} ({})", descriptor.fd, regular.path);
            let fresh = || (regular.path.clone(), Need { pid: process.pid, object, kind, ..Need::default() });
            let need = &mut all.entry(regular.path.bytes().to_vec()).or_insert_with(fresh).1;
            need.written |= written;
            if need.written {
                need.build_id = None;
            }
        }
        if !process.fs.cwd_deleted && (!apart || is_ours(process.pid, &process.fs.cwd)) {
            let object = format!("current directory {}", process.fs.cwd);
            let fresh = || (process.fs.cwd.clone(), Need { pid: process.pid, object, kind: libc::S_IFDIR, ..Need::default() });
            all.entry(process.fs.cwd.bytes().to_vec()).or_insert_with(fresh);
        }
    }
    all.into_iter().collect()
}

/// Regular files that a tree can write and others can see: what is in them is in no image.
///
/// # Errors
/// When the mounts of this machine cannot be read.
pub fn written(tree: &Tree) -> Result<Vec<FilePath>> {
    let (mounts, _) = Mounts::read([0; 16])?;
    let all = needs(tree).into_values().filter(|(_, need)| need.written && need.kind == libc::S_IFREG).map(|(path, _)| path);
    Ok(all.filter(|path| !SHOWN.contains(&mounts.at(path.as_ref()).0.as_str())).collect())
}

/// Whether a path leads a process where it leads meio.
fn is_ours(pid: i32, path: &FilePath) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let there = file(&path.below(Path::new(&format!("/proc/{pid}/root"))));
    there.is_some() && there == file(path)
}

fn wanted(
    path: &FilePath,
    need: &Need,
    mounts: &(Mounts, [u8; 16]),
    go_on: &dyn Fn() -> bool,
) -> Result<Option<(Wanted, Option<Identity>)>> {
    // What goes away meanwhile is found when the tree stands still.
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(None) };
    let storage = Storage::of(path, &meta, mounts);
    if meta.mode() & libc::S_IFMT != need.kind || SHOWN.contains(&storage.kind.as_str()) {
        return Ok(None);
    }
    let identity = Identity::of(&meta);
    let sure = identity.will_tell();
    let content = match &need.build_id {
        None if meta.is_file() && !storage.is_served() => {
            let hashed = content(path, meta.size(), go_on);
            if !go_on() {
                return Err(Error::new(Failure::Interrupted, "interrupted"));
            }
            Some(hashed.context(|| format!("reading {path}"))?)
        }
        _ => None,
    };
    let wanted = Wanted {
        pid: need.pid,
        object: need.object.clone(),
        path: path.clone(),
        kind: need.kind,
        size: meta.size(),
        build_id: need.build_id.clone().map(Bytes),
        content,
        written: need.written,
        storage,
    };
    Ok(Some((wanted, sure.then_some(identity))))
}

/// A folder of data, unless it cannot be one.
fn folder(path: &Path, choice: &Choice, mounts: &(Mounts, [u8; 16]), refusals: &mut Vec<Refusal>) -> Result<Option<Folder>> {
    let doing = || path.display().to_string();
    let mut refuse = |reason: String, advice: &str| {
        let object = format!("folder {}", path.display());
        refusals.push(Refusal { object, reason, advice: advice.into(), ..Refusal::default() });
        Ok(None)
    };
    let real = path.canonicalize().context(doing)?;
    let meta = std::fs::metadata(&real).context(doing)?;
    let storage = Storage::of(&real, &meta, mounts);
    if !meta.is_dir() || real == Path::new("/") || SHOWN.contains(&storage.kind.as_str()) {
        return refuse("it cannot be kept in step".into(), "name a folder that holds nothing but data: --with-data DIR");
    }
    let (bytes, foreign) = extent(&real)?;
    let named = |p: &Path| choice.folders.iter().any(|f| f.canonicalize().is_ok_and(|f| f == p));
    if let Some(inside) = foreign.iter().map(|f| f.below(&real)).find(|p| !named(p)) {
        return refuse(format!("{} in it is a file system of its own", inside.display()), "name that, too: --with-data DIR, once for each");
    }
    Ok(Some(Folder { path: FilePath::from(real.as_os_str().as_bytes()), storage, bytes }))
}

/// Bytes on disk of what is in a folder, and the file systems that are mounted in it.
pub fn extent(top: &Path) -> Result<(u64, Vec<FilePath>)> {
    let mut walk = Walk::new(top)?;
    let mut bytes = 0;
    while let Some(step) = walk.step()? {
        if let Step::Enter(_, meta) = step {
            bytes += meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink().max(1) };
        }
    }
    Ok((bytes, walk.foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stores_a_path() {
        let text = b"30 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 30 0:40 / /srv/a\\040b rw shared:1 - nfs4 server:/export rw\n\
                     32 30 0:41 / /srv rw - tmpfs tmpfs rw\n";
        let mounts = Mounts::parse(text);
        assert_eq!(mounts.at(Path::new("/etc")), ("ext4".into(), "/dev/sda1".into()));
        assert_eq!(mounts.at(Path::new("/srv/x")), ("tmpfs".into(), "tmpfs".into()));
        assert_eq!(mounts.at(Path::new("/srv/a b/c")), ("nfs4".into(), "server:/export".into()));
    }

    #[test]
    fn when_two_machines_speak_of_one_file() {
        let of = |boot, device, kind: &str, source: &str| Storage {
            boot: [boot; 16],
            file: (device, 9),
            kind: kind.into(),
            source: source.into(),
            fsid: 5,
        };
        assert!(of(1, 1, "ext4", "/dev/sda").is_same(&of(1, 1, "ext4", "/dev/sda")), "one machine, one device");
        assert!(!of(1, 1, "ext4", "/dev/sda").is_same(&of(1, 2, "ext4", "/dev/sda")));
        assert!(!of(1, 1, "ext4", "/dev/sda").is_same(&of(2, 1, "ext4", "/dev/sda")), "a copy of the same disk");
        assert!(of(1, 1, "nfs4", "s:/x").is_same(&of(2, 7, "nfs4", "s:/x")));
        assert!(!of(1, 1, "nfs4", "s:/x").is_same(&of(2, 7, "nfs4", "s:/y")));
        assert!(!of(1, 1, "nfs4", "localhost:/x").is_same(&of(2, 7, "nfs4", "localhost:/x")));
        assert!(of(1, 1, "gfs2", "/dev/a").is_same(&of(2, 1, "gfs2", "/dev/b")));
    }
}
