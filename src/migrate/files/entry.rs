//! What a file is besides its content: type, mode, owner, times, extended attributes.

use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::xattr;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmodat, mknod, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What is set again where a file is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// `st_mode`.
    pub mode: u32,
    /// uid, gid.
    pub owner: (u32, u32),
    /// Last access: seconds, nanoseconds.
    pub atime: (i64, i64),
    /// Last modification.
    pub mtime: (i64, i64),
    /// Extended attributes, by name.
    pub xattrs: Vec<(Bytes, Bytes)>,
}

/// By this a file is known to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Inode number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: (i64, i64),
    /// Last change of anything.
    pub ctime: (i64, i64),
}

impl Identity {
    /// As it is now.
    pub fn of(meta: &Metadata) -> Self {
        let (mtime, ctime) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Identity { inode: meta.ino(), size: meta.size(), mtime, ctime }
    }

    /// Whether a change from now on gives another one: times of files go in steps.
    pub fn will_tell(&self) -> bool {
        const STEP: i128 = 50_000_000;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        let at = |t: (i64, i64)| i128::from(t.0) * 1_000_000_000 + i128::from(t.1);
        at(self.ctime) + STEP < now
    }
}

impl Meta {
    /// Of what is at a path, also of a symbolic link itself.
    pub fn of(path: &Path, meta: &Metadata) -> io::Result<Self> {
        let xattrs = xattr::all(path)?.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect();
        Ok(Meta {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            atime: (meta.atime(), meta.atime_nsec()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs,
        })
    }

    /// Type of the file.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether all is the same but what changes when somebody looks.
    pub fn same(&self, other: &Meta) -> bool {
        let of = |m: &Meta| (m.mode, m.owner, m.mtime);
        of(self) == of(other) && self.xattrs == other.xattrs
    }

    /// Gives it to what is at a path. The owner first, which takes set-uid bits and capabilities away; times last.
    pub fn set(&self, path: &Path) -> io::Result<()> {
        self.set_but_times(path)?;
        self.set_times(path)
    }

    fn set_but_times(&self, path: &Path) -> io::Result<()> {
        let link = self.kind() == libc::S_IFLNK;
        let now = std::fs::symlink_metadata(path)?;
        if (now.uid(), now.gid()) != self.owner {
            std::os::unix::fs::lchown(path, Some(self.owner.0), Some(self.owner.1))?;
        }
        if !link {
            fchmodat(nix::fcntl::AT_FDCWD, path, Mode::from_bits_truncate(self.mode), nix::sys::stat::FchmodatFlags::FollowSymlink)?;
        }
        let there = xattr::all(path)?;
        for (name, value) in &self.xattrs {
            if !there.iter().any(|(n, v)| (n, v) == (&name.0, &value.0)) {
                xattr::set(path, &name.0, &value.0)?;
            }
        }
        for (name, _) in there.iter().filter(|(name, _)| !self.xattrs.iter().any(|x| x.0.0 == *name)) {
            xattr::remove(path, name)?;
        }
        Ok(())
    }

    fn set_times(&self, path: &Path) -> io::Result<()> {
        let spec = |t: (i64, i64)| TimeSpec::new(t.0, t.1);
        Ok(utimensat(nix::fcntl::AT_FDCWD, path, &spec(self.atime), &spec(self.mtime), UtimensatFlags::NoFollowSymlink)?)
    }

    /// Makes a FIFO, a socket or a device.
    pub fn make_node(&self, path: &Path, device: u64) -> io::Result<()> {
        Ok(mknod(path, SFlag::from_bits_truncate(self.kind()), Mode::from_bits_truncate(0o600), device)?)
    }
}

/// Opens a file to read it, without a trace where that is allowed.
pub fn open(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags | libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    match open(libc::O_NOATIME) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => open(0),
        opened => opened,
    }
}

/// A path below a folder.
pub fn join(folder: &Path, path: &FilePath) -> std::path::PathBuf {
    if path.bytes().is_empty() { folder.to_owned() } else { path.below(folder) }
}

/// A hard link.
pub fn link(there: &Path, path: &Path) -> Result<(), Errno> {
    nix::unistd::linkat(nix::fcntl::AT_FDCWD, there, nix::fcntl::AT_FDCWD, path, AtFlags::empty())
}

/// The path with another last part.
pub fn beside(path: &Path, name: &str) -> std::path::PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(name)
}

/// Has the entries of the folder of a path on disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Whether a path that came from the other end leads nowhere else.
pub fn is_inside(path: &FilePath) -> bool {
    !path.bytes().contains(&0)
        && path.components().all(|c| matches!(c, std::path::Component::Normal(_)))
        && !path.as_os_str().as_bytes().starts_with(b"/")
}
