//! Descriptors that the user has left out of the image: `/dev/null` stands in for them, so that their number stays taken,
//! reads find the end, and writes go nowhere.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::Part;
use crate::error::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// An open file that was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignored {
    /// What the user said, `KIND:ID`.
    pub id: String,
}

/// Names under which a user may decide about a descriptor, the one that is proposed first: `pipe:[INODE]` and
/// `socket:[INODE]`, `fd:PID/N`, `file:PATH`.
pub fn ids(found: &Found) -> Vec<String> {
    let link = String::from_utf8_lossy(&found.link);
    let fd = format!("fd:{}/{}", found.pid, found.fd);
    match () {
        () if link.starts_with("pipe:[") || link.starts_with("socket:[") => vec![link.into_owned(), fd],
        () if link.starts_with('/') => vec![fd, format!("file:{link}")],
        () => vec![fd],
    }
}

/// Whether the user has left it out.
pub fn capture(found: &Found, capture: &Capture) -> Option<FileKind> {
    if capture.decisions.is_empty() {
        return None;
    }
    ids(found).into_iter().find(|id| capture.decisions.ignores(id)).map(|id| FileKind::Ignored(Ignored { id }))
}

impl Ignored {
    /// What stands in for it.
    pub fn open(flags: u32) -> Result<OwnedFd> {
        const KEPT: u32 = (libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK | libc::O_PATH) as u32;
        open("/dev/null", OFlag::from_bits_truncate((flags & KEPT) as i32) | OFlag::O_CLOEXEC, Mode::empty())
            .context(|| "opening /dev/null")
    }

    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("ignored").detail(format!("left out: --ignore {}", self.id))
    }
}
