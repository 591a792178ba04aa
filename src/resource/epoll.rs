//! epoll instances and what they watch.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::{How, Key, Part};
use crate::error::{Context, Result};
use crate::tracee::stub::Script;
use nix::sys::epoll::{Epoll as Instance, EpollCreateFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// One watched descriptor, as proc_pid_fdinfo(5) shows it (`tfd:`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Descriptor number with which it was added.
    pub fd: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// The program's own word.
    pub data: u64,
}

/// One epoll instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoll {
    /// Process and descriptor that fill it again: those in which it was found first.
    pub first: (i32, i32),
    /// What it watches.
    pub targets: Vec<Target>,
}

/// Saves an epoll instance. What it watches must still be open under the number with which it was added.
pub fn capture(found: &Found, capture: &mut Capture) -> Option<FileKind> {
    let Some(listed) = found.info.epoll_targets() else {
        capture.refuse(found.pid, found.object(), "its watched descriptors cannot be read", "close it first");
        return None;
    };
    let mut targets = Vec::new();
    for t in listed {
        let open = std::fs::metadata(format!("/proc/{}/fd/{}", found.pid, t.tfd));
        let same = open.is_ok_and(|m| t.ino.is_none_or(|ino| std::os::unix::fs::MetadataExt::ino(&m) == ino));
        if !same {
            let reason = format!("it watches fd {}, which has been closed or replaced since", t.tfd);
            capture.refuse(found.pid, found.object(), reason, "not supported yet; close the epoll instance first");
            return None;
        }
        targets.push(Target { fd: t.tfd, events: t.events, data: t.data });
    }
    Some(FileKind::Epoll(Epoll { first: (found.pid, found.fd), targets }))
}

/// A new, empty instance.
pub fn create() -> Result<OwnedFd> {
    Instance::new(EpollCreateFlags::EPOLL_CLOEXEC).map(|e| e.0).context(|| "making an epoll instance")
}

impl Epoll {
    /// For the graph.
    pub fn part(&self) -> Part {
        let pid = self.first.0;
        let needs = self.targets.iter().map(|t| (Key::Descriptor(pid, t.fd), How::Watches)).collect();
        Part { needs, ..Part::of("epoll") }
    }

    /// Fills the instance, in a process that has all its descriptors again.
    pub fn tell(&self, script: &mut Script<'_>, epoll: i32) -> Result<()> {
        for t in &self.targets {
            // struct epoll_event is packed on x86_64: 4 bytes of events, 8 of data.
            let event = script.data(&[&t.events.to_le_bytes()[..], &t.data.to_le_bytes()[..]].concat());
            script.call("epoll_ctl", libc::SYS_epoll_ctl, &[epoll as u64, libc::EPOLL_CTL_ADD as u64, t.fd as u64, event])?;
        }
        Ok(())
    }
}
