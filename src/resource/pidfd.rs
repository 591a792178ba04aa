//! pidfd_open(2): handles of tasks. They are opened anew when the tasks of the tree exist again, and delivered late.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::{How, Key, Part};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::anon::{self, PIDFD_THREAD};
use crate::sys::proc::{fdinfo, read, status};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// One handle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PidFd {
    /// Process or, with `PIDFD_THREAD` in the flags, thread that it leads to. 0 when that has ended and been waited for.
    pub target_pid: i32,
    /// The target has been waited for: its status of wait(2), 0 where the kernel does not keep it (before Linux 6.15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departed: Option<i32>,
    /// The target lives outside of the tree and must be the same one at the restore: inode of the handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<u64>,
}

impl PidFd {
    /// For the graph.
    pub fn part(&self) -> Part {
        let inside = self.departed.is_none() && self.outside.is_none() && self.target_pid > 0;
        let needs = inside.then_some((Key::Process(self.target_pid), How::Watches)).into_iter().collect();
        Part { needs, ..Part::of("pidfd").detail(format!("of process {}", self.target_pid)) }
    }
}

/// Whether a descriptor is a handle of a task.
pub fn is_pidfd(found: &Found) -> bool {
    found.link == b"anon_inode:[pidfd]" || found.link.starts_with(b"pidfd:[")
}

/// Saves a handle. Whether its target belongs to the tree is looked at when all of it is known.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(target) = target(&found.info) else {
        capture.refuse(found.pid, found.object(), "its target cannot be read", "close it first");
        return Ok(None);
    };
    if target > 0 {
        return Ok(Some(FileKind::PidFd(PidFd { target_pid: target, ..PidFd::default() })));
    }
    if target == 0 {
        capture.refuse(found.pid, found.object(), "its target lives in another pid namespace", "close it first");
        return Ok(None);
    }
    let status = anon::exit_status(found.duplicate()?.as_fd()).unwrap_or(0);
    Ok(Some(FileKind::PidFd(PidFd { departed: Some(status), ..PidFd::default() })))
}

/// The task that proc_pid_fdinfo(5) shows: -1 when it has been waited for, 0 when it cannot be seen from here.
fn target(info: &fdinfo::FdInfo) -> Option<i32> {
    std::str::from_utf8(info.value("Pid")?).ok()?.parse().ok()
}

/// Refuses handles of tasks outside of the tree, unless the user wants them to be looked for again.
pub fn refuse_outsiders(tree: &HashSet<i32>, capture: &mut Capture) {
    for id in 0..capture.files.len() {
        let FileKind::PidFd(handle) = &capture.files[id].kind else { continue };
        let target = handle.target_pid;
        let process = read::parsed(target, "status", status::parse).map_or(target, |s| s.tgid);
        if target == 0 || tree.contains(&target) || tree.contains(&process) {
            continue;
        }
        let (pid, fd) = capture.holders[id];
        let inode = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).map(|m| m.ino());
        if let (true, Ok(inode)) = (capture.decisions.external(&format!("pidfd:{target}")), inode) {
            if let FileKind::PidFd(handle) = &mut capture.files[id].kind {
                handle.outside = Some(inode);
            }
            continue;
        }
        let name = read::read(target, "comm").unwrap_or_default();
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        let object = format!("fd {fd} ({})", capture.files[id].link);
        let reason = format!("it leads to process {target} ({name}), outside of the tree");
        capture.refuse(pid, object, reason, format!("dump a process above both, or say --external pidfd:{target}"));
    }
}

impl PidFd {
    /// The handle again. `task` is the target as meio sees it; `flags` are those of the open file. Not for a target that
    /// has been waited for.
    pub fn make(&self, task: Option<i32>, flags: u32) -> Result<OwnedFd> {
        let doing = || format!("opening a handle of task {}", self.target_pid);
        let flags = flags & (PIDFD_THREAD | libc::O_NONBLOCK as u32);
        match (self.outside, task) {
            (Some(inode), _) => {
                let fd = anon::pidfd(self.target_pid, flags).context(doing)?;
                let now = nix::sys::stat::fstat(&fd)?.st_ino;
                if now == inode {
                    return Ok(fd);
                }
                Err(Error::new(Kind::NotFound, format!("process {} is another one than at the dump", self.target_pid))
                    .help("it was dumped with --external: the process outside must still be there"))
            }
            (None, Some(task)) => anon::pidfd(task, flags).context(doing),
            _ => Err(Error::image(format!("image damaged: task {} is not there", self.target_pid))),
        }
    }
}
