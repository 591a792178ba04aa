//! Ending a tree whose pages cannot be brought any more, before it can find zeros in their place.

use crate::sys::proc::read;
use crate::sys::server::{Handles, duplicate, has_ended};
use crate::sys::task;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// Ends those whose handles are known, and all below them, and waits until they have.
pub fn end(handles: Handles) {
    let mut found = BTreeMap::new();
    gather(handles, &mut found, true);
    for handle in found.values() {
        let _ = task::signal(handle.as_raw_fd(), libc::SIGKILL);
    }
    // Nobody may be left who reads before the last of them has ended: no pages are missing for a dead process.
    while found.values().any(|handle| !has_ended(handle.as_raw_fd())) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Notes all processes of the tree that are not known yet. Those that hang below nobody any more are lost sight of.
pub fn follow(handles: Handles, known: &mut BTreeMap<i32, OwnedFd>) {
    let before: Vec<i32> = known.keys().copied().collect();
    gather(handles, known, false);
    known.retain(|_, handle| !has_ended(handle.as_raw_fd()));
    for (pid, handle) in known.iter().filter(|(pid, _)| !before.contains(pid)) {
        if let Ok(handle) = duplicate(handle.as_raw_fd()) {
            handles.add(*pid, handle);
        }
    }
}

/// The processes of the tree by their pids, stopped on the way if so wanted: who stands still has no new children.
fn gather(handles: Handles, found: &mut BTreeMap<i32, OwnedFd>, stop: bool) {
    for (pid, fd) in handles.all() {
        if !found.contains_key(&pid)
            && let Ok(handle) = duplicate(fd)
            && !has_ended(handle.as_raw_fd())
        {
            found.insert(pid, handle);
        }
    }
    let mut next: Vec<i32> = found.keys().copied().collect();
    while let Some(pid) = next.pop() {
        if stop {
            let _ = task::signal(found[&pid].as_raw_fd(), libc::SIGSTOP);
        }
        for child in read::children(pid).unwrap_or_default() {
            if !found.contains_key(&child)
                && let Ok(handle) = task::pidfd(child)
            {
                found.insert(child, handle);
                next.push(child);
            }
        }
    }
}
