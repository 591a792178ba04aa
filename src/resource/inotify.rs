//! inotify(7): watches on files, under their old numbers.
//!
//! Events that were not read yet cannot be looked at without taking them away from the program, and a dump takes
//! nothing. A restored program reads instead what the kernel itself says when it had to drop events, `IN_Q_OVERFLOW`, and
//! looks again at what it watches.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::path::FilePath;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::handle::{self, Handle};
use crate::sys::notify;
use crate::sys::proc::fdinfo::NotifyMark;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One watch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Its number, the watch descriptor.
    pub wd: i32,
    /// `IN_*` events and flags.
    pub mask: u32,
    /// Where the file was found.
    pub path: FilePath,
}

/// One instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inotify {
    /// Its watches, by number.
    pub watches: Vec<Watch>,
    /// Bytes of events that were not read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// What inotify_add_watch(2) is told again; fdinfo shows more in older kernels.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK;

/// Saves an instance.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let own = found.duplicate()?;
    let unread = notify::unread(own.as_fd()).context(|| "asking for unread events")?;
    let listed: Option<Vec<NotifyMark>> = found.info.all("inotify").map(NotifyMark::parse).collect();
    let Some(mut listed) = listed else {
        capture.refuse(found.pid, found.object(), "its watches cannot be read", "close it first");
        return Ok(None);
    };
    listed.sort_by_key(|w| w.wd);
    let wanted: Vec<Handle> = listed.iter().map(NotifyMark::file).collect();
    let mut watches = Vec::new();
    for (w, path) in listed.iter().zip(handle::paths(found.pid, &handle::mounts(found.pid)?, &wanted)) {
        match path {
            Some(path) => {
                watches.push(Watch { wd: w.wd, mask: w.mask & MASK, path: FilePath::from(path.as_os_str().as_bytes()) });
            }
            None => {
                let reason = format!("watch {} is on a file that cannot be found by a path: inode {}", w.wd, w.inode);
                capture.refuse(found.pid, found.object(), reason, "it may have been removed; let the program give up that watch first");
            }
        }
    }
    if unread != 0 {
        let what = found.object();
        capture.warnings.push(format!(
            "process {}, {what}: {unread} bytes of events are unread and not kept; once restored it reads IN_Q_OVERFLOW instead",
            found.pid
        ));
    }
    Ok(Some(FileKind::Inotify(Inotify { watches, unread })))
}

impl Inotify {
    /// The instance again, without watches.
    pub fn make(&self) -> Result<OwnedFd> {
        notify::inotify(libc::IN_CLOEXEC).context(|| "making an inotify instance")
    }

    /// What the program will notice.
    pub fn warning(&self, link: &str) -> Option<String> {
        let lost = format!("{link}: {} bytes of unread events are lost; the program reads IN_Q_OVERFLOW instead", self.unread);
        (self.unread != 0).then_some(lost)
    }

    /// Watches again, when everything else has been opened and closed. Paths are those below `root`.
    pub fn arm(&self, fd: BorrowedFd<'_>, root: &Path) -> Result<()> {
        if self.unread != 0 {
            notify::lose_events(fd).context(|| "telling an inotify instance that events were lost")?;
        }
        for w in &self.watches {
            let doing = || format!("watching {}", w.path);
            notify::set_next_watch(fd, w.wd).context(doing)?;
            let wd = notify::watch(fd, &w.path.below(root), w.mask | libc::IN_DONT_FOLLOW).context(doing)?;
            if wd != w.wd {
                return Err(Error::new(Kind::Other, format!("watching {} gave number {wd} instead of {}", w.path, w.wd)));
            }
        }
        // Numbers go on from the last one, and are not given twice.
        let last = self.watches.iter().map(|w| w.wd).max().unwrap_or(0);
        match last.checked_add(1) {
            Some(next) => notify::set_next_watch(fd, next).context(|| "setting the number of the next watch"),
            None => Ok(()),
        }
    }
}
