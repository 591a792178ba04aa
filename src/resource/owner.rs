//! Who is told by a signal of what happens to an open file: owners (fcntl(2) `F_SETOWN_EX`, `F_SETSIG`), and leases
//! (`F_SETLEASE`), by which a program is told that somebody else opens the file.

use super::capture::Capture;
use super::descriptor::{FileId, Found};
use crate::error::{Context, Result};
use crate::sys::file::{self, F_OWNER_PGRP, F_SETOWN_EX, F_SETSIG, FileOwner};
use crate::sys::proc::{read, status};
use crate::tracee::stub::Script;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

/// What an open file has of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The open file.
    pub file: FileId,
    /// Process and descriptor by which it is set again.
    pub holder: (i32, i32),
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: i32,
    /// Thread, process or process group that gets the signal; 0 for nobody.
    pub target_pid: i32,
    /// The signal instead of `SIGIO`; 0 for that.
    pub signal: i32,
    /// `O_ASYNC`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asynchronous: bool,
    /// A lease: `F_RDLCK` or `F_WRLCK`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<i32>,
}

/// The `lock:` line of a lease in proc_pid_fdinfo(5): `1: LEASE  ACTIVE    READ 29955 fe:00:10576269 0 EOF`. `None` for other lines;
/// an error names a state that cannot be kept.
fn lease(line: &[u8]) -> Option<std::result::Result<i32, &'static str>> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_whitespace().skip(1);
    Some(match (words.next()?, words.next()?, words.next()?) {
        ("LEASE", "ACTIVE", "READ") => Ok(libc::F_RDLCK),
        ("LEASE", "ACTIVE", "WRITE") => Ok(libc::F_WRLCK),
        ("LEASE", "BREAKING", _) => Err("somebody waits for it to give up its lease"),
        ("LEASE", ..) => Err("its lease is just ending"),
        ("DELEG" | "LAYOUT", ..) => Err("a file server has delegated the file"),
        ("FLOCK" | "POSIX" | "OFDLCK", ..) => return None,
        _ => Err("it holds a lock of a kind that is not known"),
    })
}

/// Saves owner and lease of a new open file.
pub fn capture(found: &Found, id: FileId, capture: &mut Capture) -> Result<()> {
    let mut lease_held = None;
    for state in found.info.all("lock").filter_map(lease) {
        match state {
            Ok(kind) => lease_held = Some(kind),
            Err(reason) => capture.refuse(found.pid, found.object(), reason, "try again a moment later"),
        }
    }
    let kind = found.meta.mode() & libc::S_IFMT;
    let asynchronous = found.info.flags & libc::O_ASYNC as u32 != 0;
    let path_only = found.info.flags & libc::O_PATH as u32 != 0;
    // Regular files tell nobody of anything but leases. Most open files are such, and nothing is asked of them.
    if path_only || kind == libc::S_IFREG && lease_held.is_none() && !asynchronous {
        return Ok(());
    }
    let owner = file::owner(found.own()?).context(|| "asking for the owner of a file")?;
    if kind == libc::S_IFDIR && (owner.pid != 0 || owner.signal != 0) {
        let reason = "it watches the directory by dnotify (fcntl F_NOTIFY), whose mask cannot be read";
        capture.refuse(found.pid, found.object(), reason, "let the program close the directory; inotify is supported");
        return Ok(());
    }
    add(id, &owner, lease_held, capture);
    Ok(())
}

/// Saves what was asked of an open file, with its lease.
pub fn add(id: FileId, owner: &FileOwner, lease: Option<i32>, capture: &mut Capture) {
    let (Some(file), Some(&holder)) = (capture.files.get(id as usize), capture.holders.get(id as usize)) else { return };
    let asynchronous = file.flags & libc::O_ASYNC as u32 != 0;
    let FileOwner { kind, pid: target_pid, signal } = *owner;
    if (target_pid, signal, asynchronous, lease) != (0, 0, false, None) {
        capture.owners.push(Owner { file: id, holder, kind, target_pid, signal, asynchronous, lease });
    }
}

/// Refuses owners outside of the tree.
pub fn refuse_outsiders(tree: &HashSet<i32>, capture: &mut Capture) {
    let group = |pid: i32| nix::unistd::getpgid(Some(Pid::from_raw(pid))).map_or(0, Pid::as_raw);
    let inside = |o: &Owner| match o.kind {
        _ if o.target_pid == 0 => true,
        F_OWNER_PGRP => tree.iter().any(|&pid| group(pid) == o.target_pid),
        _ => tree.contains(&read::parsed(o.target_pid, "status", status::parse).map_or(o.target_pid, |s| s.tgid)),
    };
    let outside: Vec<Owner> = capture.owners.iter().filter(|o| !inside(o)).cloned().collect();
    for o in outside {
        let object = format!("fd {} ({})", o.holder.1, capture.files[o.file as usize].link);
        let whom = if o.kind == F_OWNER_PGRP { "process group" } else { "process" };
        let reason = format!("its signals go to {whom} {}, outside of the tree (F_SETOWN)", o.target_pid);
        capture.refuse(o.holder.0, object, reason, "dump a process above both");
    }
}

impl Owner {
    /// The signals go to a process group.
    pub fn is_group(&self) -> bool {
        self.kind == F_OWNER_PGRP
    }

    /// Sets it again, in its holder, when all processes are there. The kernel remembers as whom this is done, and
    /// lets only signals through that this user may send.
    ///
    /// `flags` are those of the open file; `target` is its target as the holder sees it.
    pub fn tell(&self, script: &mut Script<'_>, flags: u32, target: i32) -> Result<()> {
        let fd = self.holder.1 as u64;
        if let Some(lease) = self.lease {
            script.call("fcntl F_SETLEASE", libc::SYS_fcntl, &[fd, libc::F_SETLEASE as u64, lease as u64])?;
        }
        // A lease has made the process itself the owner.
        if self.target_pid != 0 || self.lease.is_some() {
            let owner = script.data(&[self.kind, target].map(i32::to_le_bytes).concat());
            script.call("fcntl F_SETOWN_EX", libc::SYS_fcntl, &[fd, F_SETOWN_EX as u64, owner])?;
        }
        if self.signal != 0 {
            script.call("fcntl F_SETSIG", libc::SYS_fcntl, &[fd, F_SETSIG as u64, self.signal as u64])?;
        }
        if self.asynchronous {
            let flags = flags & (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC) as u32;
            script.call("fcntl F_SETFL", libc::SYS_fcntl, &[fd, libc::F_SETFL as u64, u64::from(flags)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_leases() {
        assert_eq!(lease(b"1: LEASE  ACTIVE    READ 29955 fe:00:10576269 0 EOF"), Some(Ok(libc::F_RDLCK)));
        assert_eq!(lease(b"1: LEASE  ACTIVE    WRITE 1 fe:00:1 0 EOF"), Some(Ok(libc::F_WRLCK)));
        assert!(matches!(lease(b"1: LEASE  BREAKING  READ 1 fe:00:1 0 EOF"), Some(Err(_))));
        assert!(matches!(lease(b"1: SOMETHING  ACTIVE  READ 1 fe:00:1 0 EOF"), Some(Err(_))));
        assert_eq!(lease(b"1: FLOCK  ADVISORY  WRITE 11678 00:27:9 0 EOF"), None);
    }
}
