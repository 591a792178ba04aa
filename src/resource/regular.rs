//! Regular files, directories and `O_PATH` descriptors.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::{Key, Part};
use super::memory::ObjectId;
use super::path::FilePath;
use super::shared::{Origin, SharedMemory};
use crate::error::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// How the file is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regular {
    /// Absolute path, without the kernel's ` (deleted)`.
    pub path: FilePath,
    /// `st_mode`.
    pub mode: u32,
    /// Size in bytes when it was saved.
    pub size: u64,
    /// Owner: uid, gid.
    pub owner: (u32, u32),
    /// When the file was deleted while open: its content.
    pub deleted: Option<ObjectId>,
}

impl Regular {
    /// For the graph.
    pub fn part(&self) -> Part {
        match self.deleted {
            Some(object) => Part::of("deleted file").needs(Key::Object(object)),
            None if self.mode & libc::S_IFMT == libc::S_IFDIR => Part::of("directory"),
            None if self.mode & libc::S_IFMT == libc::S_IFREG => Part::of("file"),
            None => Part::of("path"),
        }
    }
}

/// Saves a regular file, a directory, or an `O_PATH` descriptor.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let meta = &found.meta;
    let owner = (meta.uid(), meta.gid());
    let (path, deleted) = FilePath::from_link(&found.link);
    if let Some(name) = path.bytes().strip_prefix(b"/memfd:") {
        if nix::sys::statfs::statfs(format!("/proc/{}/fd/{}", found.pid, found.fd).as_str())
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC)
        {
            let reason = "it is made of huge pages (MFD_HUGETLB), which is not supported yet";
            capture.refuse(found.pid, found.object(), reason, "use transparent huge pages");
            return Ok(None);
        }
        let object = capture.object((meta.dev(), meta.ino()), || {
            let file = content(found)?;
            Ok((Origin::memfd(name, &file)?, file))
        })?;
        return Ok(Some(FileKind::Memory(SharedMemory { object })));
    }
    // Many programs look at themselves now and then, and are done in an instant.
    if path.bytes().starts_with(b"/proc/") && path.bytes().get(6).is_some_and(u8::is_ascii_digit) {
        capture.refuse_for_now(found.pid, found.object(), "it is a file of a running process", "close it first");
        return Ok(None);
    }
    // A file may really be called `x (deleted)`.
    let whole = FilePath::from(found.link.as_slice());
    let path = if deleted && same(&capture.place(found.pid, &whole), meta) { whole } else { path };
    let there = same(&capture.place(found.pid, &path), meta);
    let mut saved = Regular { path: path.clone(), mode: meta.mode(), size: meta.len(), owner, deleted: None };
    if there {
        return Ok(Some(FileKind::Regular(saved)));
    }
    if !meta.is_file() {
        let reason = if deleted { "the directory has been removed" } else { "its path leads elsewhere by now" };
        capture.refuse(found.pid, found.object(), reason, "close it first");
        return Ok(None);
    }
    // Deleted, or its name belongs to another file by now: its content travels.
    let namespace = capture.mounts_of(found.pid);
    saved.deleted = Some(
        capture
            .object((meta.dev(), meta.ino()), || Ok((Origin::Deleted { path, mode: meta.mode(), owner, namespace }, content(found)?)))?,
    );
    Ok(Some(FileKind::Regular(saved)))
}

/// Whether the path leads to this very file.
fn same(path: &std::path::Path, meta: &std::fs::Metadata) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (meta.dev(), meta.ino()))
}

/// The file opened anew for reading, with a position of our own.
fn content(found: &Found) -> Result<File> {
    let link = format!("/proc/{}/fd/{}", found.pid, found.fd);
    File::open(&link).context(|| format!("reading {} of process {}", found.object(), found.pid))
}
