//! epoll instances and what they watch.
//!
//! An entry belongs to an open file and to the number under which it was added; that number may have been closed since,
//! or lead elsewhere. Which entries have been reported already cannot be read, except that when nothing at
//! all waits to be reported, an edge-triggered entry whose file is ready has been. Otherwise such an entry reports its
//! file once more: rather twice than never.

use super::capture::Capture;
use super::descriptor::{FileId, FileKind, Found};
use super::graph::{How, Key, Part};
use crate::error::{Context, Result};
use crate::sys::proc::fdinfo::{self, EpollTarget};
use crate::sys::proc::read;
use crate::sys::task;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll as Instance, EpollCreateFlags};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// One watched descriptor, as proc_pid_fdinfo(5) shows it (`tfd:`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Descriptor number with which it was added.
    pub fd: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// The program's own word.
    pub data: u64,
    /// The open file, when the number does not lead to it in the process that fills the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileId>,
}

/// One epoll instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoll {
    /// Process and descriptor that fill it again: those in which most of its entries are known by their numbers.
    pub first: (i32, i32),
    /// What it watches.
    pub targets: Vec<Target>,
    /// Nothing waited to be reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

impl Target {
    /// What of `events` is no event (`EP_PRIVATE_BITS` of the kernel). A one-shot entry that has fired has nothing else.
    const PRIVATE: u32 = (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;

    /// A one-shot entry that has reported and waits for `EPOLL_CTL_MOD`.
    pub fn disarmed(&self) -> bool {
        self.events & !Self::PRIVATE == 0
    }

    /// It reports a change once.
    pub fn edge_triggered(&self) -> bool {
        self.events & (libc::EPOLLET | libc::EPOLLONESHOT) as u32 == libc::EPOLLET as u32
    }
}

/// Saves an epoll instance. Which files it watches is looked for when all of them are known.
pub fn capture(found: &Found, capture: &mut Capture) -> Option<FileKind> {
    let Some(listed) = found.info.epoll_targets() else {
        capture.refuse(found.pid, found.object(), "its watched descriptors cannot be read", "close it first");
        return None;
    };
    let targets = listed.iter().map(|t| Target { fd: t.tfd, events: t.events, data: t.data, file: None }).collect();
    capture.watched.insert((found.pid, found.fd), listed);
    Some(FileKind::Epoll(Epoll { first: (found.pid, found.fd), targets, quiet: false }))
}

/// Finds the files behind the entries of all instances.
pub fn resolve(capture: &mut Capture) -> Result<()> {
    for id in 0..capture.files.len() {
        let FileKind::Epoll(epoll) = &capture.files[id].kind else { continue };
        let epoll = find(id as FileId, epoll.first, capture)?;
        capture.files[id].kind = FileKind::Epoll(epoll);
    }
    Ok(())
}

fn entries(holder: (i32, i32)) -> Result<Vec<EpollTarget>> {
    let info = read::parsed(holder.0, &format!("fdinfo/{}", holder.1), fdinfo::parse)?;
    Ok(info.epoll_targets().unwrap_or_default())
}

/// Which of several entries with the same number each is: kcmp(2) counts them.
fn places(listed: &[EpollTarget]) -> Vec<u32> {
    let mut seen: HashMap<i32, u32> = HashMap::new();
    let count = |t: &EpollTarget| {
        let next = seen.entry(t.tfd).or_default();
        *next += 1;
        *next - 1
    };
    listed.iter().map(count).collect()
}

/// Device and inode of what an entry watches.
fn identity(t: &EpollTarget) -> Option<(u64, u64)> {
    let (sdev, ino) = (t.sdev?, t.ino?);
    Some((nix::sys::stat::makedev(sdev >> 20, sdev & 0xf_ffff), ino))
}

/// Whether an entry is plainly that of the socket which its number leads to: no two open files share a socket's inode.
/// kcmp(2) goes through all entries each time, which makes it too dear where there are thousands.
fn is_that_socket(t: &EpollTarget, pid: i32, capture: &Capture) -> bool {
    let id = capture.descriptors.get(&(pid, t.tfd)).copied();
    let only = identity(t).and_then(|key| capture.file_index.get(&key)).filter(|list| list.len() == 1);
    let socket = |id: FileId| capture.files.get(id as usize).is_some_and(|f| f.link.starts_with("socket:["));
    id.is_some_and(|id| only.is_some_and(|list| list[0] == id) && socket(id))
}

fn find(id: FileId, holder: (i32, i32), capture: &mut Capture) -> Result<Epoll> {
    let listed = match capture.watched.remove(&holder) {
        // Of one that runs the newest is wanted.
        Some(listed) if capture.standing => listed,
        _ => entries(holder)?,
    };
    let places = places(&listed);
    let known_in = |(pid, fd): (i32, i32)| -> Vec<bool> {
        let same = |(t, &place): (&EpollTarget, &u32)| {
            is_that_socket(t, pid, capture)
                || task::compare_epoll_target((pid, t.tfd), (pid, fd), (t.tfd, place)).is_ok_and(|o| o == Ordering::Equal)
        };
        listed.iter().zip(&places).map(same).collect()
    };
    let count = |known: &[bool]| known.iter().filter(|k| **k).count();
    let (mut first, mut known) = (holder, known_in(holder));
    // An iterator: most instances are known by the numbers of their holder, and the table is long.
    for other in capture.descriptors.iter().filter(|d| *d.1 == id && *d.0 != holder).map(|d| *d.0) {
        if count(&known) == listed.len() {
            break;
        }
        let theirs = known_in(other);
        if count(&theirs) > count(&known) {
            (first, known) = (other, theirs);
        }
    }
    let mut epoll = Epoll { first, targets: Vec::new(), quiet: false };
    for ((t, &place), known) in listed.iter().zip(&places).zip(known) {
        let file = if known { None } else { search(t, place, first, capture) };
        if !known && file.is_none() && entries(holder)?.contains(t) {
            let object = format!("fd {} ({})", holder.1, capture.files[id as usize].link);
            let reason = format!("it watches a file under the number {} that no descriptor of the tree leads to any more", t.tfd);
            capture.refuse(holder.0, object, reason, "close the epoll instance first");
            continue;
        }
        let leads = file.or_else(|| capture.descriptors.get(&(first.0, t.tfd)).copied());
        if leads.is_some_and(|id| matches!(capture.files[id as usize].kind, FileKind::Ignored(_))) {
            continue; // what stands in for it cannot be watched
        }
        epoll.targets.push(Target { fd: t.tfd, events: t.events, data: t.data, file });
    }
    // The kernel lists them in the order of addresses.
    epoll.targets.sort_by_key(|t| (t.fd, t.file, t.data, t.events));
    epoll.quiet = capture.standing && quiet(&epoll, capture)?;
    Ok(epoll)
}

/// The open file behind an entry, among all of the tree. The tables are in kcmp(2)'s own order.
fn search(t: &EpollTarget, place: u32, epoll: (i32, i32), capture: &Capture) -> Option<FileId> {
    let compare = |id: FileId| task::compare_epoll_target(capture.holders[id as usize], epoll, (t.tfd, place)).ok();
    let Some(list) = capture.file_index.get(&identity(t)?) else {
        // stat(2) may show another device than the kernel has in mind (btrfs).
        return (0..capture.files.len() as FileId).find(|&id| compare(id) == Some(Ordering::Equal));
    };
    list.binary_search_by(|&id| compare(id).unwrap_or(Ordering::Less)).ok().map(|at| list[at])
}

/// Whether nothing waits to be reported. Not asked where a file's readiness depends on who asks: a signalfd would
/// be taken off the list of what is ready.
fn quiet(epoll: &Epoll, capture: &Capture) -> Result<bool> {
    let (pid, fd) = epoll.first;
    for t in &epoll.targets {
        let file = t.file.or_else(|| capture.descriptors.get(&(pid, t.fd)).copied());
        match file.map(|id| &capture.files[id as usize].kind) {
            None | Some(FileKind::SignalFd(_) | FileKind::Epoll(_)) => return Ok(false),
            Some(_) => {}
        }
    }
    let own = capture.duplicate((pid, fd))?;
    Ok(poll(&mut [PollFd::new(own.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? == 0)
}

/// A new, empty instance.
pub fn create() -> Result<OwnedFd> {
    Instance::new(EpollCreateFlags::EPOLL_CLOEXEC).map(|e| e.0).context(|| "making an epoll instance")
}

impl Epoll {
    /// For the graph.
    pub fn part(&self) -> Part {
        let pid = self.first.0;
        let needs = self.targets.iter().map(|t| (t.file.map_or(Key::Descriptor(pid, t.fd), Key::File), How::Watches)).collect();
        Part { needs, ..Part::of("epoll") }
    }
}
