//! fanotify(7): marks on files, mounts and file systems.
//!
//! Refused are groups that are asked for permission: while they stand still everybody who opens a file there waits, meio
//! itself among them; and events that were not read, which hold open files and cannot be looked at.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::path::FilePath;
use crate::error::{Context, Result};
use crate::sys::handle::{self, Handle};
use crate::sys::notify;
use crate::sys::proc::fdinfo::NotifyMark;
use crate::sys::proc::text::{fields, hex};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// What is meant by the path: 0 the file, `FAN_MARK_MOUNT`, `FAN_MARK_FILESYSTEM`.
    pub scope: u32,
    /// `FAN_*` events.
    pub mask: u64,
    /// Events that are ignored.
    pub ignored: u64,
    /// `FAN_MARK_*` flags of the mark.
    pub flags: u32,
    /// Where it was found.
    pub path: FilePath,
}

/// One group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fanotify {
    /// Flags of fanotify_init(2).
    pub flags: u32,
    /// Flags of the files that its events open.
    pub event_flags: u32,
    /// Its marks.
    pub marks: Vec<Mark>,
}

/// Saves a group.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let mut lines = found.info.all("fanotify");
    let flags = lines.next().and_then(init_flags);
    let marks: Option<Vec<NotifyMark>> = lines.map(NotifyMark::parse).collect();
    let (Some((flags, event_flags)), Some(listed)) = (flags, marks) else {
        capture.refuse(found.pid, found.object(), "its marks cannot be read", "close it first");
        return Ok(None);
    };
    if flags & (libc::FAN_CLASS_CONTENT | libc::FAN_CLASS_PRE_CONTENT) != 0 {
        let reason = "it is asked for permission, and everybody who opens a file would wait for it while it stands still";
        capture.refuse(found.pid, found.object(), reason, "stop the program that grants access, and start it anew");
        return Ok(None);
    }
    let unread = notify::unread(found.duplicate()?.as_fd()).context(|| "asking for unread events")?;
    if unread != 0 && capture.standing {
        let advice = "let the program read them: try again a moment later, with the image outside of what it watches";
        capture.refuse(found.pid, found.object(), "it has events that were not read, and each holds an open file", advice);
        return Ok(None);
    }
    let mounts = handle::mounts(found.pid)?;
    let inodes: Vec<Handle> = listed.iter().map(NotifyMark::file).collect();
    let mut marks = Vec::new();
    for (m, path) in listed.iter().zip(handle::paths(found.pid, &mounts, &inodes)) {
        let mounted = |is_it: &dyn Fn(&handle::Mount) -> bool| mounts.iter().find(|m| is_it(m)).map(|m| m.path.clone());
        let (scope, path) = match m.mnt_id {
            Some(id) => (libc::FAN_MARK_MOUNT, mounted(&|mount| mount.id == id)),
            None if m.inode == 0 => (libc::FAN_MARK_FILESYSTEM, mounted(&|mount| mount.device == m.sdev)),
            None => (0, path),
        };
        let Some(path) = path else {
            let reason = format!("it marks what cannot be found by a path: inode {}, device {:x}", m.inode, m.sdev);
            capture.refuse(found.pid, found.object(), reason, "it may have been removed; let the program give up that mark first");
            continue;
        };
        marks.push(Mark {
            scope,
            mask: u64::from(m.mask),
            ignored: u64::from(m.ignored_mask),
            flags: m.mflags,
            path: FilePath::from(path.as_os_str().as_bytes()),
        });
    }
    // The kernel lists them in the order of addresses.
    marks.sort_by(|a, b| (a.scope, a.path.bytes()).cmp(&(b.scope, b.path.bytes())));
    Ok(Some(FileKind::Fanotify(Fanotify { flags, event_flags, marks })))
}

/// `flags:12 event-flags:8000`, hexadecimal.
fn init_flags(value: &[u8]) -> Option<(u32, u32)> {
    let mut words = fields(value);
    let flags = hex(words.next()?.strip_prefix(b"flags:")?)?;
    let events = hex(words.next()?.strip_prefix(b"event-flags:")?)?;
    Some((flags.try_into().ok()?, events.try_into().ok()?))
}

/// Ignored events outlast a change of the file.
const SURVIVES: u32 = libc::FAN_MARK_IGNORED_SURV_MODIFY;
/// `FAN_MARK_EVICTABLE`, Linux 5.19.
const EVICTABLE: u32 = 0x200;
/// `FAN_MARK_IGNORE`, Linux 6.0: in place of `FAN_MARK_IGNORED_MASK`.
const IGNORE: u32 = 0x400;

impl Fanotify {
    /// The group again, without marks. The kernel shows `FAN_CLOEXEC` for ever, whatever became of the descriptor.
    pub fn make(&self) -> Result<OwnedFd> {
        notify::fanotify(self.flags, self.event_flags).context(|| "making a fanotify group")
    }

    /// Marks again, when everything else has been opened and closed. Paths are those below `root`, in whose mount
    /// namespace the tree lives.
    pub fn arm(&self, fd: BorrowedFd<'_>, root: &Path) -> Result<()> {
        for m in &self.marks {
            let path = m.path.below(root);
            let doing = || format!("marking {}", m.path);
            let common = libc::FAN_MARK_ADD | m.scope | m.flags & EVICTABLE;
            if m.mask != 0 {
                notify::mark(fd, common, m.mask, &path).context(doing)?;
            }
            if m.ignored != 0 {
                let how = if m.flags & IGNORE != 0 { IGNORE } else { libc::FAN_MARK_IGNORED_MASK };
                notify::mark(fd, common | how | m.flags & SURVIVES, m.ignored, &path).context(doing)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        assert_eq!(init_flags(b"flags:12 event-flags:8000"), Some((0x12, 0x8000)));
        assert_eq!(init_flags(b"sdev:fe00000 mflags:0 mask:38 ignored_mask:0"), None);
    }
}
