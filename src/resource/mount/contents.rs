//! What is in a file system that only memory holds: every inode with its names, owner, times, attributes and bytes.

use super::steady::Inside;
use super::{Ids, View, below, join};
use crate::error::{Context, Error, Result};
use crate::resource::capture::Capture;
use crate::resource::memory::ObjectId;
use crate::resource::path::FilePath;
use crate::resource::shared::Origin;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::proc::mountinfo::Mount as Line;
use crate::sys::{file, xattr};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file with more data than this is an object of the image, with pages.
const INLINE: u64 = 64 << 10;

/// One inode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inode {
    /// Its names below the root of the file system, which itself has the empty name.
    pub names: Vec<FilePath>,
    /// `st_mode`.
    pub mode: u32,
    /// Uid and gid, as the namespace's user namespace counts.
    pub owner: (u32, u32),
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "nothing")]
    pub device: (u32, u32),
    /// Last access: seconds and nanoseconds.
    pub accessed: (i64, i64),
    /// Last change of its content.
    pub modified: (i64, i64),
    /// Extended attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(FilePath, Bytes)>,
    /// What is in it.
    pub content: Content,
}

fn nothing(device: &(u32, u32)) -> bool {
    *device == (0, 0)
}

/// What is in an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing: directories, devices, FIFOs, sockets.
    #[default]
    Nothing,
    /// Where a symbolic link leads.
    Link(FilePath),
    /// A file.
    File {
        /// Size in bytes.
        size: u64,
        /// Bytes with their offsets; between them is nothing.
        data: Vec<(u64, Bytes)>,
    },
    /// A file whose content comes with the pages.
    Object {
        /// Size in bytes.
        size: u64,
        /// Which object.
        object: ObjectId,
    },
    /// A file with the content that another has in the image which this one builds upon.
    Before(Place),
}

/// Where an inode is in a tree: the number of its mount namespace, of the file system there, and its own in that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Index into [`crate::resource::Tree::namespaces`].
    pub namespace: u32,
    /// Index into [`super::Saved::own`].
    pub own: u32,
    /// Index into [`super::FileSystem::inodes`].
    pub inode: u32,
}

/// Reads one file system.
pub struct Reader<'a> {
    /// Numbers of the namespace, and of the file system there.
    number: (u32, u32),
    view: &'a View,
    ids: &'a Ids,
    inodes: Vec<Inode>,
    known: HashMap<u64, usize>,
}

impl<'a> Reader<'a> {
    /// A reader for a file system of this namespace.
    pub fn new(number: (u32, u32), view: &'a View, ids: &'a Ids) -> Self {
        Reader { number, view, ids, inodes: Vec::new(), known: HashMap::new() }
    }

    /// Reads what a mount shows. What was read through another mount already is not read again.
    pub fn tree(&mut self, line: &Line, mount: BorrowedFd<'_>, capture: &mut Capture) -> Result<()> {
        let start = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let root = below(&line.root, b"/").unwrap_or_default();
        let device = std::fs::metadata(&start)?.dev();
        // Folders that stand to be read; their order is that of their names.
        let mut left = vec![PathBuf::new()];
        while let Some(folder) = left.pop() {
            let here = join(&start, &folder);
            // The link of /proc itself must be followed.
            let meta = if folder.as_os_str().is_empty() { std::fs::metadata(&here) } else { std::fs::symlink_metadata(&here) }?;
            let name = join(&root, &folder);
            if meta.dev() != device || !self.add(&name, &here, &meta, line, &folder, capture)? || !meta.is_dir() {
                continue;
            }
            let mut names: Vec<_> = std::fs::read_dir(&here)?.collect::<std::io::Result<Vec<_>>>()?.iter().map(|e| e.file_name()).collect();
            names.sort();
            left.extend(names.into_iter().rev().map(|n| folder.join(n)));
        }
        Ok(())
    }

    /// All that was read: folders before what is in them.
    pub fn finish(self) -> Vec<Inode> {
        self.inodes
    }

    /// Notes one name. False when it was known.
    fn add(&mut self, name: &Path, here: &Path, meta: &Metadata, line: &Line, folder: &Path, capture: &mut Capture) -> Result<bool> {
        let name = FilePath::from(name.as_os_str().as_bytes());
        if let Some(&known) = self.known.get(&meta.ino()) {
            if !self.inodes[known].names.contains(&name) {
                self.inodes[known].names.push(name);
                self.inodes[known].names.sort_by(|a, b| a.bytes().cmp(b.bytes()));
                return Ok(true);
            }
            return Ok(false);
        }
        let number = meta.rdev();
        let device = if meta.mode() & libc::S_IFMT == libc::S_IFCHR || meta.mode() & libc::S_IFMT == libc::S_IFBLK {
            (libc::major(number), libc::minor(number))
        } else {
            (0, 0)
        };
        let place = Place { namespace: self.number.0, own: self.number.1, inode: self.inodes.len() as u32 };
        let known = capture.recall.files.inside(meta, place);
        let (attributes, content) = match known {
            Some(known) => known,
            None => self.inside((&name, place), here, meta, (line, folder), capture)?,
        };
        self.known.insert(meta.ino(), self.inodes.len());
        self.inodes.push(Inode {
            names: vec![name],
            mode: meta.mode(),
            owner: self.ids.inside((meta.uid(), meta.gid())),
            device,
            accessed: (meta.atime(), meta.atime_nsec()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            attributes,
            content,
        });
        Ok(true)
    }

    fn inside(
        &self,
        (name, place): (&FilePath, Place),
        here: &Path,
        meta: &Metadata,
        (line, folder): (&Line, &Path),
        capture: &mut Capture,
    ) -> Result<Inside> {
        let content = match meta.mode() & libc::S_IFMT {
            libc::S_IFLNK => Content::Link(FilePath::from(std::fs::read_link(here)?.as_os_str().as_bytes())),
            libc::S_IFREG => self.file(here, meta, line, folder, capture)?,
            _ => Content::Nothing,
        };
        let attributes = xattr::all(here).context(|| format!("reading attributes of {name}"))?;
        let attributes = attributes.into_iter().filter(|(n, _)| n != b"security.selinux");
        let inside = (attributes.map(|(name, value)| (FilePath::from(name.as_slice()), Bytes(value))).collect(), content);
        match inside.1 {
            // What is in an object is not known by this.
            Content::Object { object, .. } => capture.sources[object as usize].stamp = capture.recall.files.stamp(meta),
            _ => capture.recall.files.note(meta, &inside, place),
        }
        Ok(inside)
    }

    fn file(&self, here: &Path, meta: &Metadata, line: &Line, folder: &Path, capture: &mut Capture) -> Result<Content> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(here)?;
        let size = meta.len();
        let ranges = file::data_ranges(&file, size)?;
        let path = FilePath::from(join(&FilePath::from(&*line.mountpoint), folder).as_os_str().as_bytes());
        // Pages are written through a path of the namespace; nothing may lie over it.
        let seen = std::fs::symlink_metadata(self.view.path(&path)).is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino()));
        if seen && ranges.iter().map(|r| r.1).sum::<u64>() > INLINE {
            let times = [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())];
            let origin = Origin::Mounted { namespace: self.number.0, path, times };
            let object = capture.object((meta.dev(), meta.ino()), || Ok((origin, file)))?;
            return Ok(Content::Object { size, object });
        }
        let mut data = Vec::new();
        for (start, length) in ranges {
            let mut bytes = vec![0; length.min(size - start) as usize];
            file.read_exact_at(&mut bytes, start)?;
            data.push((start, Bytes(bytes)));
        }
        Ok(Content::File { size, data })
    }
}

/// Makes all inodes below `root`, the path of a fresh file system.
pub fn write(root: &Path, inodes: &[Inode]) -> Result<()> {
    let place = |name: &FilePath| -> Result<PathBuf> {
        let plain = name.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain {
            return Err(Error::image(format!("image damaged: {name} is no name in a file system")));
        }
        Ok(if name.bytes().is_empty() { root.to_owned() } else { root.join(name) })
    };
    for inode in inodes {
        let Some(first) = inode.names.first() else { return Err(Error::image("image damaged: an inode without a name")) };
        let path = place(first)?;
        if let Some(folder) = path.parent().filter(|_| !first.bytes().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        make(&path, first, inode).context(|| format!("making {first} again"))?;
        for other in &inode.names[1..] {
            let other = place(other)?;
            std::fs::create_dir_all(other.parent().unwrap_or(root))?;
            std::fs::hard_link(&path, &other).context(|| format!("linking {}", other.display()))?;
        }
    }
    // Times last: making something in a folder changes the folder's.
    for inode in inodes {
        if let Some(name) = inode.names.first() {
            set_times(&place(name)?, inode).context(|| format!("setting the times of {name}"))?;
        }
    }
    Ok(())
}

fn make(path: &Path, name: &FilePath, inode: &Inode) -> Result<()> {
    let kind = inode.mode & libc::S_IFMT;
    let permissions = Mode::from_bits_truncate(inode.mode & 0o7777);
    match (&inode.content, kind) {
        (_, libc::S_IFDIR) if name.bytes().is_empty() || path.is_dir() => {}
        (_, libc::S_IFDIR) => std::fs::create_dir(path)?,
        (Content::Link(target), libc::S_IFLNK) => std::os::unix::fs::symlink(target, path)?,
        (Content::File { size, data }, libc::S_IFREG) => {
            let file = File::options().write(true).create(true).truncate(true).open(path)?;
            file.set_len(*size)?;
            for (at, Bytes(bytes)) in data {
                if at.checked_add(bytes.len() as u64).is_none_or(|end| end > *size) {
                    return Err(Error::image("image damaged: data beyond the end of a file"));
                }
                file.write_all_at(bytes, *at)?;
            }
        }
        (Content::Object { size, .. }, libc::S_IFREG) => {
            File::options().write(true).create(true).truncate(true).open(path)?.set_len(*size)?;
        }
        (_, libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK) => {
            let number = makedev(u64::from(inode.device.0), u64::from(inode.device.1));
            mknod(path, SFlag::from_bits_truncate(kind), permissions, number)?;
        }
        _ => return Err(Error::image(format!("image damaged: {name} has the mode {:o}", inode.mode))),
    }
    // For the root itself the path is a link of /proc, which is to be followed.
    let root = name.bytes().is_empty();
    let chown = if root { std::os::unix::fs::chown } else { std::os::unix::fs::lchown };
    chown(path, Some(inode.owner.0), Some(inode.owner.1)).context(|| "setting the owner")?;
    if kind != libc::S_IFLNK {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(inode.mode & 0o7777))?;
    }
    let inner = if root { path.join(".") } else { path.to_owned() };
    for (name, Bytes(value)) in &inode.attributes {
        xattr::set(&inner, name.bytes(), value).context(|| format!("setting the attribute {name}"))?;
    }
    Ok(())
}

fn set_times(path: &Path, inode: &Inode) -> Result<()> {
    let time = |t: (i64, i64)| TimeSpec::new(t.0, t.1);
    let follow =
        if inode.names.iter().any(|n| n.bytes().is_empty()) { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &time(inode.accessed), &time(inode.modified), follow)?)
}
