//! Mount namespaces (mount_namespaces(7)): which mounts a tree has that lives in one of its own, in order.
//!
//! A mount shows a file system that meio can see as well, and is a bind mount of that place again; or the file system is
//! the namespace's own, and is made anew: empty ones that the kernel fills (proc, sysfs, devpts), tmpfs with its
//! [`contents`], overlay out of its layers. Nothing but a copy of the namespace is ever touched by a capture.

mod contents;
mod propagation;
mod rebuild;
mod shared;
mod steady;
#[cfg(test)]
mod tests;

use super::capture::Capture;
use super::path::FilePath;
use crate::error::{Context, Result};
use crate::sys::mount;
use crate::sys::proc::mountinfo::{self, Mount as Line};
use crate::sys::proc::read;
pub use contents::Place;
use contents::{Content, Inode, Reader};
use propagation::Groups;
use serde::{Deserialize, Serialize};
pub use shared::Seen;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
pub use steady::{Files, Stamp};

/// What is mounted in a mount namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Saved {
    /// Each after the one that it is mounted on; the root first.
    pub mounts: Vec<Mount>,
    /// File systems that exist only there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<FileSystem>,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// The mount that it is mounted on, an index; none for the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Where it is mounted, as the namespace's root sees it.
    pub at: FilePath,
    /// What it shows.
    pub shows: Shown,
    /// `MOUNT_ATTR_*` of mount_setattr(2).
    pub attributes: u64,
    /// Where its propagation comes from and goes to.
    #[serde(skip_serializing_if = "Groups::private")]
    pub groups: Groups,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// A place that meio sees, too.
    Host {
        /// The place.
        path: FilePath,
        /// Type of the file system there, to know it again.
        fstype: FilePath,
        /// It is a directory.
        folder: bool,
        /// It lies below other mounts: which one of those at the path, from below.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layer: Option<u32>,
    },
    /// A place of a file system that exists only there.
    Own {
        /// Index into [`Saved::own`].
        number: u32,
        /// The place below its root.
        root: FilePath,
    },
}

impl Default for Shown {
    fn default() -> Self {
        Shown::Own { number: 0, root: FilePath::default() }
    }
}

/// A file system of the namespace's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSystem {
    /// Its type.
    pub fstype: FilePath,
    /// What is called its device.
    pub source: FilePath,
    /// Its options, as they are shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<FilePath>,
    /// Mounted read-only as a whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Paths in its options (layers) are meant as the namespace sees them, else as meio does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inner_paths: bool,
    /// What is in it, when only memory holds it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inodes: Vec<Inode>,
    /// It is that of another mount namespace of the tree: which one, and its number there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<(u32, u32)>,
    /// The pid namespace that it shows (proc), when that is nested in the tree's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

impl Saved {
    /// What is in an inode of it, by the numbers of the file system and the inode.
    pub fn content(&self, place: Place) -> Option<&Content> {
        Some(&self.own.get(place.own as usize)?.inodes.get(place.inode as usize)?.content)
    }

    /// Has what is in files that are as they were before told by `before`. Whether it could tell all of it.
    pub fn complete<'b>(&mut self, before: impl Fn(Place) -> Option<&'b Content>) -> bool {
        self.own.iter_mut().flat_map(|own| &mut own.inodes).all(|inode| match inode.content {
            Content::Before(place) => before(place).map(|content| inode.content = content.clone()).is_some(),
            _ => true,
        })
    }
}

/// A mount namespace as a capture sees it.
pub struct View {
    /// Its root directory.
    pub root: OwnedFd,
    /// Its mounts.
    pub table: Vec<Line>,
}

impl View {
    /// The mount namespace of a process.
    pub fn of(pid: i32) -> Result<Self> {
        let namespace = namespace(pid)?;
        let look = |text: &[u8]| Ok((text.to_vec(), mount::place(None, Path::new("/"))?));
        let (text, root) = mount::within(&namespace, false, look).context(|| format!("entering the mount namespace of process {pid}"))?;
        Ok(View { root, table: parents_first(mountinfo::parse(&text)?) })
    }

    /// The way to a path of the namespace, for meio.
    pub fn path(&self, path: &FilePath) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd())).join(below(path.bytes(), b"/").unwrap_or_default())
    }
}

fn namespace(pid: i32) -> Result<File> {
    File::open(format!("/proc/{pid}/ns/mnt")).context(|| format!("opening the mount namespace of process {pid}"))
}

/// File systems that are made empty and filled by the kernel.
const VIRTUAL: [&[u8]; 15] = [
    b"proc",
    b"sysfs",
    b"devpts",
    b"mqueue",
    b"cgroup",
    b"cgroup2",
    b"debugfs",
    b"tracefs",
    b"securityfs",
    b"configfs",
    b"fusectl",
    b"pstore",
    b"binfmt_misc",
    b"devtmpfs",
    b"selinuxfs",
];
/// File systems whose contents are in memory only, and travel in the image.
const IN_MEMORY: [&[u8]; 2] = [b"tmpfs", b"ramfs"];
/// File systems that are made again when they hold nothing.
const WHEN_EMPTY: [&[u8]; 2] = [b"bpf", b"hugetlbfs"];

/// Saves the mount namespace of a process. `number` is that of the namespace in the image, `contents` tells whether
/// the contents of its file systems are wanted, too, whose owners are numbered by `ids`.
pub fn capture(pid: i32, number: u32, contents: bool, ids: &Ids, seen: &mut Seen, capture: &mut Capture) -> Result<Saved> {
    let view = View::of(pid)?;
    seen.look(number, &view);
    let host = Host { table: read::parsed(std::process::id() as i32, "mountinfo", mountinfo::parse)? };
    let mut saved = Saved::default();
    let mut own: Vec<(u32, u32)> = Vec::new();
    for line in &view.table {
        let parent = view.table.iter().position(|l| l.id == line.parent && l.id != line.id).map(|p| p as u32);
        let shows = match shown(line, &host, &view, &mut own, &mut saved.own) {
            Ok(shows) => shows,
            Err((reason, advice)) => {
                let object = format!("mount {} ({})", FilePath::from(&*line.mountpoint), String::from_utf8_lossy(&line.fstype));
                capture.refuse(pid, object, reason, advice);
                Shown::default()
            }
        };
        let groups = Groups::of(line, &host.table, &view.table);
        let at = FilePath::from(&*line.mountpoint);
        saved.mounts.push(Mount { parent, at, shows, attributes: attributes(&line.options), groups });
    }
    for (own, reason) in seen.learn(number, &view, &own, &mut saved) {
        capture.refuse(pid, format!("file system {}", saved.own[own as usize].fstype), reason, "unmount one of them");
    }
    saved.own.iter_mut().flat_map(|own| &mut own.options).for_each(|option| *option = ids.option(option));
    if contents {
        read_contents(pid, number, &view, &own, ids, &mut saved, capture)?;
    }
    Ok(saved)
}

/// Every mount after its parent; else the order in which they were made.
fn parents_first(table: Vec<Line>) -> Vec<Line> {
    let mut left = table;
    let mut sorted: Vec<Line> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ids: Vec<i32> = left.iter().map(|l| l.id).collect();
        let (now, later): (Vec<Line>, Vec<Line>) = left.into_iter().partition(|l| l.parent == l.id || !ids.contains(&l.parent));
        if now.is_empty() {
            break; // mounts on each other: no table of a kernel
        }
        sorted.extend(now);
        left = later;
    }
    sorted
}

/// The mounts that meio sees.
struct Host {
    table: Vec<Line>,
}

impl Host {
    /// A path at which meio sees what a mount shows, or would see it if nothing were mounted over it.
    fn find(&self, line: &Line) -> Option<(PathBuf, Option<u32>)> {
        let same = |l: &&Line| l.dev == line.dev && l.fstype == line.fstype;
        let mut candidates: Vec<(&Line, PathBuf)> = self
            .table
            .iter()
            .filter(same)
            .filter_map(|l| Some((l, join(&FilePath::from(&*l.mountpoint), &below(&line.root, &l.root)?))))
            .collect();
        // The same place of the same file system, at the same path, is the most likely to be meant.
        candidates.sort_by_key(|(l, path)| (l.root != line.root, path.as_path() != &*FilePath::from(&*line.mountpoint)));
        let seen = |(l, path): &(&Line, PathBuf)| {
            // Nothing may be mounted over it.
            mount::place(None, path).and_then(|place| mount::id(place.as_fd())).is_ok_and(|id| id == l.id)
        };
        if let Some((_, path)) = candidates.iter().find(|c| seen(c)) {
            return Some((path.clone(), None));
        }
        let (covered, path) = candidates.into_iter().find(|(l, _)| l.root == line.root)?;
        let layer = self.table.iter().filter(|l| l.mountpoint == covered.mountpoint).position(|l| l.id == covered.id)?;
        Some((path, Some(layer as u32)))
    }
}

/// What remains of a path below a folder, without a slash at its beginning.
fn below(path: &[u8], folder: &[u8]) -> Option<PathBuf> {
    let rest = match folder {
        b"/" => path,
        _ => path.strip_prefix(folder).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))?,
    };
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    Some(FilePath::from(rest).to_path_buf())
}

/// A path below a folder; nothing more than the folder for an empty one.
fn join(folder: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { folder.to_owned() } else { folder.join(rest) }
}

type Refused = (String, String);

/// What a mount shows; a file system that is the namespace's own is added to `own`.
fn shown(
    line: &Line,
    host: &Host,
    view: &View,
    own: &mut Vec<(u32, u32)>,
    saved: &mut Vec<FileSystem>,
) -> std::result::Result<Shown, Refused> {
    let refuse = |reason: &str, advice: &str| Err((reason.to_owned(), advice.to_owned()));
    let word = |w: &str| line.options.split(|b| *b == b',').any(|o| o == w.as_bytes());
    if word("idmapped") {
        return refuse("it maps ids (mount_setattr(2)), which cannot be read back", "unmount it first");
    }
    if line.root.ends_with(b"//deleted") {
        return refuse("it shows a directory that has been removed", "unmount it first");
    }
    if let Some((path, layer)) = host.find(line) {
        let folder = path.is_dir();
        let path = FilePath::from(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        return Ok(Shown::Host { path, fstype: FilePath::from(&*line.fstype), folder, layer });
    }
    let fstype = &*line.fstype;
    let overlay = fstype == b"overlay";
    if !VIRTUAL.contains(&fstype) && !IN_MEMORY.contains(&fstype) && !WHEN_EMPTY.contains(&fstype) && !overlay {
        return match fstype {
            b"nsfs" => refuse("it keeps a namespace alive", "unmount it first"),
            _ if fstype.starts_with(b"fuse") => refuse("its server is a process that is not part of it", "unmount it first"),
            _ if line.dev.0 != 0 => {
                refuse("its device is mounted in that namespace only", "mount it where meio runs, too: it is found there")
            }
            _ => refuse("this file system exists in that namespace only", "mount it where meio runs, too, or unmount it"),
        };
    }
    let number = own.iter().position(|dev| *dev == line.dev).map_or_else(
        || -> std::result::Result<u32, Refused> {
            let mut options = split_options(&line.super_options);
            let read_only = options.iter().any(|o| o.bytes() == b"ro");
            options.retain(|o| !matches!(o.bytes(), b"rw" | b"ro" | b"seclabel"));
            let (fstype, source) = (FilePath::from(fstype), FilePath::from(&*line.source));
            let inner_paths = if overlay { layers_inside(&options, view)? } else { false };
            own.push(line.dev);
            saved.push(FileSystem { fstype, source, options, read_only, inner_paths, ..FileSystem::default() });
            Ok(own.len() as u32 - 1)
        },
        |known| Ok(known as u32),
    )?;
    Ok(Shown::Own { number, root: FilePath::from(&*line.root) })
}

/// Options are divided by commas; those in a path have a backslash.
fn split_options(text: &[u8]) -> Vec<FilePath> {
    let mut options = vec![Vec::new()];
    let mut escaped = false;
    for &byte in text {
        if byte == b',' && !escaped {
            options.push(Vec::new());
        } else if let Some(last) = options.last_mut() {
            last.push(byte);
        }
        escaped = byte == b'\\' && !escaped;
    }
    options.iter().filter(|o| !o.is_empty()).map(|o| FilePath::from(o.as_slice())).collect()
}

/// Whether the layers of an overlay are found at their paths in the namespace; else they must be where meio is.
fn layers_inside(options: &[FilePath], view: &View) -> std::result::Result<bool, Refused> {
    let mut layers = Vec::new();
    for option in options {
        for (key, list) in [("lowerdir=", true), ("lowerdir+=", false), ("datadir+=", false), ("upperdir=", false), ("workdir=", false)] {
            if let Some(value) = option.bytes().strip_prefix(key.as_bytes()) {
                let parts = value.split(|b| list && *b == b':').filter(|p| !p.is_empty());
                layers.extend(parts.map(FilePath::from));
            }
        }
    }
    if layers.iter().all(|l| l.is_absolute() && view.path(l).is_dir()) {
        return Ok(true);
    }
    match layers.iter().find(|l| !l.is_absolute() || !l.is_dir()) {
        None => Ok(false),
        Some(layer) => Err((
            format!("its layer {layer} is found at this path neither in that namespace nor here"),
            "mount the overlay with absolute paths that stay where they are".into(),
        )),
    }
}

/// `MOUNT_ATTR_*` out of the options that a mount shows.
fn attributes(options: &[u8]) -> u64 {
    let mut set = libc::MOUNT_ATTR_STRICTATIME;
    for option in options.split(|b| *b == b',') {
        match option {
            b"ro" => set |= libc::MOUNT_ATTR_RDONLY,
            b"nosuid" => set |= libc::MOUNT_ATTR_NOSUID,
            b"nodev" => set |= libc::MOUNT_ATTR_NODEV,
            b"noexec" => set |= libc::MOUNT_ATTR_NOEXEC,
            b"nodiratime" => set |= libc::MOUNT_ATTR_NODIRATIME,
            b"nosymfollow" => set |= libc::MOUNT_ATTR_NOSYMFOLLOW,
            b"noatime" => set = set & !libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NOATIME,
            b"relatime" => set = set & !libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_RELATIME,
            _ => {}
        }
    }
    set
}

/// Ids of files as a user namespace counts them.
pub struct Ids {
    /// user_namespaces(7) `uid_map` and `gid_map`: inside, outside, how many.
    maps: [Vec<[u32; 3]>; 2],
}

impl Ids {
    /// Out of both maps; empty ones for the user namespace of meio.
    pub fn of(maps: [Vec<[u32; 3]>; 2]) -> Self {
        Ids { maps }
    }

    /// Owner and group as they are inside, from outside.
    fn inside(&self, owner: (u32, u32)) -> (u32, u32) {
        let find = |map: &[[u32; 3]], id: u32| map.iter().find(|m| id >= m[1] && id - m[1] < m[2]).map_or(id, |m| id - m[1] + m[0]);
        (find(&self.maps[0], owner.0), find(&self.maps[1], owner.1))
    }

    /// An option of a file system as it is to be given inside.
    fn option(&self, option: &FilePath) -> FilePath {
        let text = String::from_utf8_lossy(option.bytes());
        let number = |key: &str| text.strip_prefix(key).and_then(|id| id.parse::<u32>().ok());
        let inside = match (number("uid="), number("gid=")) {
            (Some(uid), _) => format!("uid={}", self.inside((uid, 0)).0),
            (_, Some(gid)) => format!("gid={}", self.inside((0, gid)).1),
            _ => return option.clone(),
        };
        FilePath::from(inside.as_bytes())
    }
}

/// Reads the contents of file systems that only the namespace's memory holds.
fn read_contents(
    pid: i32,
    number: u32,
    view: &View,
    devices: &[(u32, u32)],
    ids: &Ids,
    saved: &mut Saved,
    capture: &mut Capture,
) -> Result<()> {
    let wanted = |l: &&Line| {
        let fstype = &&*l.fstype;
        let own = devices.iter().position(|device| *device == l.dev);
        own.is_some_and(|own| saved.own[own].shared.is_none()) && (IN_MEMORY.contains(fstype) || WHEN_EMPTY.contains(fstype))
    };
    // From the top: what lies over another mount has to go first.
    let lines: Vec<&Line> = view.table.iter().filter(wanted).rev().collect();
    if lines.is_empty() {
        return Ok(());
    }
    let doing = || format!("reading the mounts of process {pid}");
    let open = |text: &[u8]| -> std::io::Result<Vec<Option<OwnedFd>>> {
        let table = mountinfo::parse(text).map_err(std::io::Error::other)?;
        Ok(lines.iter().map(|line| uncover(line, &table)).collect())
    };
    let opened = mount::within(&namespace(pid)?, true, open).context(doing)?;
    let mut mounts: Vec<(&Line, OwnedFd)> = Vec::new();
    for (line, mount) in lines.iter().zip(opened) {
        match mount {
            Some(mount) => mounts.push((line, mount)),
            None => {
                let object = format!("mount {} ({})", FilePath::from(&*line.mountpoint), String::from_utf8_lossy(&line.fstype));
                capture.refuse(pid, object, "it lies below another mount that cannot be lifted", "unmount one of them");
            }
        }
    }
    for (own, device) in devices.iter().enumerate().filter(|(own, _)| saved.own[*own].shared.is_none()).collect::<Vec<_>>() {
        let mut reader = Reader::new((number, own as u32), view, ids);
        let mut roots: Vec<&(&Line, OwnedFd)> = mounts.iter().filter(|(l, _)| l.dev == *device).collect();
        roots.sort_by_key(|(l, _)| (l.root.len(), l.id));
        for (line, mount) in roots {
            reader.tree(line, mount.as_fd(), capture).context(doing)?;
        }
        let inodes = reader.finish();
        if WHEN_EMPTY.contains(&saved.own[own].fstype.bytes()) && inodes.len() > 1 {
            let object = format!("file system {}", saved.own[own].fstype);
            capture.refuse(pid, object, "what is in it cannot be read", "remove it first");
        }
        saved.own[own].inodes = inodes;
    }
    Ok(())
}

/// In a copy of a namespace: lifts what lies over a mount, and gives a copy of that mount alone.
fn uncover(line: &Line, table: &[Line]) -> Option<OwnedFd> {
    let path = FilePath::from(&*line.mountpoint);
    for _ in 0..=table.len() {
        let place = mount::place(None, &path).ok()?;
        let id = mount::id(place.as_fd()).ok()?;
        let found = table.iter().find(|l| l.id == id)?;
        if (found.dev, &found.root) == (line.dev, &line.root) && found.mountpoint == line.mountpoint {
            // Alone, it shows what is under the mounts that are on it. What a user namespace was given cannot be taken apart.
            let alone = mount::copy(Some(place.as_fd()), Path::new("")).unwrap_or(place);
            // Reading must not change when something was read last.
            let _ = mount::set_attributes(alone.as_fd(), libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME, 0);
            return Some(alone);
        }
        mount::detach(&FilePath::from(&*found.mountpoint)).ok()?;
    }
    None
}
