//! POSIX message queues: mq_overview(7).
//!
//! Messages can be read only by taking them. A keeper ([`crate::sys::apart`]) does so while the tree stands still, and sends them again in
//! the order in which they came out, whatever becomes of meio. A queue that holds nothing is not touched.
//!
//! A process that asked for a signal (mq_notify(3)) is asked to be told again; which value goes with the signal is shown
//! nowhere, so only a handler that does not see it is served. While messages wait too, putting the first one back would set the
//! notification off: the program is left to read them first.

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use super::graph::Part;
use super::path::FilePath;
use super::process::Process;
use super::thread::serde_bytes_vec::Bytes;
use crate::error::{Context, Result};
use crate::sys::namespace::Kind;
use crate::sys::proc::read;
use crate::sys::{apart, file, mqueue};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// One queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name, without the slash.
    pub name: FilePath,
    /// The name has been removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlinked: bool,
    /// The ipc namespace that it belongs to, when that is not meio's: an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
    /// Permission bits.
    pub mode: u32,
    /// uid, gid.
    pub owner: (u32, u32),
    /// Most messages that fit.
    pub max_messages: u32,
    /// Longest message, bytes.
    pub message_size: u32,
    /// Priority and content of each message, in the order in which they are received.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<(u32, Bytes)>,
    /// Last access and last change: seconds, nanoseconds.
    pub times: [(i64, i64); 2],
    /// Who is to be told of a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
}

/// A registration by mq_notify(3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// The process.
    pub pid: i32,
    /// The signal that it gets, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// An open queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueEnd {
    /// Index into [`super::Tree::message_queues`].
    pub queue: u32,
}

impl QueueEnd {
    /// For the graph.
    pub fn part(&self) -> Part {
        Part::of("POSIX message queue")
    }
}

/// A queue of the tree, held until everything else has been captured.
#[derive(Debug)]
pub struct Held {
    identity: (u64, u64),
    fd: OwnedFd,
    holder: (i32, String),
    waiting: i64,
}

/// Whether it is a queue: a file of another kind of file system, whose path leads nowhere, or below where that is mounted.
pub fn is_queue(found: &Found) -> bool {
    const MQUEUE_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x1980_0202);
    // Its names have one slash.
    if found.link.iter().filter(|b| **b == b'/').count() > 1 && !found.link.starts_with(b"/dev/mqueue/") {
        return false;
    }
    let link = format!("/proc/{}/fd/{}", found.pid, found.fd);
    nix::sys::statfs::statfs(link.as_str()).is_ok_and(|s| s.filesystem_type() == MQUEUE_MAGIC)
}

/// Saves a queue, but for what waits in it.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let identity = (found.meta.dev(), found.meta.ino());
    if let Some(known) = capture.queues_held.iter().position(|q| q.identity == identity) {
        return Ok(Some(FileKind::MessageQueue(QueueEnd { queue: known as u32 })));
    }
    let doing = || format!("reading {} of process {}", found.object(), found.pid);
    let fd = reopen(found.duplicate()?.as_fd(), libc::O_RDWR | libc::O_NONBLOCK).context(doing)?;
    let meta = &found.meta;
    let attributes = mqueue::attributes(fd.as_fd()).context(doing)?;
    let mut status = String::new();
    File::from(fd.try_clone()?).read_to_string(&mut status).context(doing)?;
    // The kernel takes that for an access.
    let _ = file::set_times(fd.as_fd(), [(meta.atime(), meta.atime_nsec()), (0, libc::UTIME_OMIT)]);
    let notify = match Notify::parse(&status) {
        Ok(notify) => notify,
        Err(reason) => {
            capture.refuse(found.pid, found.object(), reason, "let the program give that up first (mq_notify)");
            return Ok(None);
        }
    };
    if attributes.waiting > 0 && notify.is_some() {
        let reason = "messages wait in it, and a process is to be told of the next one (mq_notify)";
        capture.refuse(found.pid, found.object(), reason, "try again when the program has read them");
        return Ok(None);
    }
    let unlinked = meta.nlink() == 0;
    let name = found.link.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let name = if unlinked { name.strip_suffix(b" (deleted)").unwrap_or(name) } else { name };
    capture.queues_held.push(Held { identity, fd, holder: (found.pid, found.object()), waiting: attributes.waiting });
    capture.message_queues.push(Queue {
        name: FilePath::from(name),
        unlinked,
        namespace: None,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        max_messages: attributes.max_messages as u32,
        message_size: attributes.message_size as u32,
        messages: Vec::new(),
        times: [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())],
        notify,
    });
    Ok(Some(FileKind::MessageQueue(QueueEnd { queue: capture.message_queues.len() as u32 - 1 })))
}

/// A description of our own of a queue.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let mut options = File::options();
    options.read(flags & libc::O_ACCMODE != libc::O_WRONLY).write(flags & libc::O_ACCMODE != libc::O_RDONLY);
    let file = options.custom_flags(flags & !libc::O_ACCMODE | libc::O_CLOEXEC).open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(file.into())
}

/// After all descriptors have been seen: refuses queues that others have open, and reads what waits. `processes` are those of a
/// tree that stands still.
pub fn finish(tree: &HashSet<i32>, processes: &[Process], capture: &mut Capture) -> Result<()> {
    let mut held = std::mem::take(&mut capture.queues_held);
    if held.is_empty() {
        return Ok(());
    }
    let identities: Vec<(u64, u64)> = held.iter().map(|h| h.identity).collect();
    for (pid, n) in holders(&identities, |pid| tree.contains(&pid)) {
        let name = String::from_utf8_lossy(&read::read(pid, "comm").unwrap_or_default()).trim().to_owned();
        let (holder, object) = held[n].holder.clone();
        let reason = format!("process {pid} ({name}), outside of the tree, has this message queue open");
        capture.refuse(holder, object, reason, "dump a process above both, or end the other one first");
    }
    for (n, held) in held.iter().enumerate() {
        let (pid, object) = held.holder.clone();
        match capture.message_queues[n].notify {
            Some(notify) if !tree.contains(&notify.pid) => {
                let reason = format!("process {}, outside of the tree, is to be told of its next message (mq_notify)", notify.pid);
                capture.refuse(pid, object, reason, "end that process first");
            }
            Some(Notify { pid: told, signal: Some(signal) }) if capture.standing && !unseen(processes, told, signal) => {
                let reason =
                    format!("the value that goes with signal {signal} (mq_notify) cannot be read, and process {told} may look at it");
                capture.refuse(pid, object, reason, "let the program give that up first, or handle the signal without SA_SIGINFO");
            }
            _ => {}
        }
    }
    if !capture.standing || !capture.refusals.is_empty() {
        return Ok(());
    }
    for (n, held) in held.iter_mut().enumerate() {
        let places = processes.iter().find(|p| p.pid == held.holder.0).map(|p| &p.places);
        let queue = &mut capture.message_queues[n];
        queue.namespace = places.and_then(|p| p.of(&capture.namespaces.found, Kind::Ipc));
        // A running tree was seen before: what it has done since.
        held.waiting = mqueue::attributes(held.fd.as_fd())?.waiting;
    }
    let full: Vec<usize> = (0..held.len()).filter(|&n| held[n].waiting > 0).collect();
    if full.is_empty() {
        return Ok(());
    }
    let found = apart::keep(|| full.iter().map(|&n| turn_over(held[n].fd.as_fd())).collect::<Result<Vec<_>>>());
    for (n, messages) in full.into_iter().zip(found.context(|| "reading message queues")?) {
        capture.message_queues[n].messages = messages;
    }
    Ok(())
}

/// Processes that have one of these open, but for meio and those that do not count; each with the index of the queue.
pub fn holders(identities: &[(u64, u64)], counts_not: impl Fn(i32) -> bool) -> Vec<(i32, usize)> {
    let own = std::process::id() as i32;
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|p| *p != own && !counts_not(*p));
    let mut found = Vec::new();
    for pid in pids {
        for fd in read::fds(pid).unwrap_or_default() {
            let is = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok().map(|m| (m.dev(), m.ino()));
            let known = identities.iter().position(|i| Some(*i) == is);
            found.extend(known.map(|n| (pid, n)).filter(|f| !found.contains(f)));
        }
    }
    found
}

/// Whether a process cannot look at the value that its signal carries.
fn unseen(processes: &[Process], pid: i32, signal: i32) -> bool {
    let Some(process) = processes.iter().find(|p| p.pid == pid) else { return false };
    let handled = process.signals.actions.iter().any(|(s, a)| *s == signal && a.handler > 1 && a.flags & libc::SA_SIGINFO as u64 == 0);
    let blocked = |t: &super::thread::Thread| (1..=64).contains(&signal) && t.sigmask >> (signal - 1) & 1 != 0;
    handled && !process.threads.iter().any(blocked)
}

/// Takes all messages out and sends them again. Runs in a keeper.
fn turn_over(queue: BorrowedFd<'_>) -> Result<Vec<(u32, Bytes)>> {
    let again = reopen(queue, libc::O_WRONLY)?;
    let before = File::from(queue.try_clone_to_owned()?).metadata()?;
    let mut buffer = vec![0; mqueue::attributes(queue)?.message_size.max(1) as usize];
    let mut messages = Vec::new();
    let failed = loop {
        match mqueue::receive(queue, &mut buffer) {
            Ok((priority, n)) => messages.push((priority, Bytes(buffer[..n].to_vec()))),
            Err(Errno::EAGAIN) => break None,
            Err(Errno::EINTR) => {}
            Err(e) => break Some(e),
        }
    };
    // Every one of them, even if that must wait for room.
    let mut lost = failed;
    for (priority, Bytes(content)) in &messages {
        while let Err(e) = mqueue::send(again.as_fd(), content, *priority) {
            if e != Errno::EINTR {
                lost = Some(e);
                break;
            }
        }
    }
    let _ = file::set_times(queue, [(before.atime(), before.atime_nsec()), (before.mtime(), before.mtime_nsec())]);
    lost.map_or(Ok(messages), |e| Err(e.into()))
}

impl Notify {
    /// Reads `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260`, or says why it cannot be kept.
    fn parse(status: &str) -> std::result::Result<Option<Notify>, &'static str> {
        let field = |name: &str| status.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix(':')?.parse::<i32>().ok());
        let (Some(kind), Some(signal), Some(pid)) = (field("NOTIFY"), field("SIGNO"), field("NOTIFY_PID")) else {
            return Err("it does not tell whether somebody waits for a message");
        };
        match kind {
            libc::SIGEV_THREAD => Err("a thread is to be started at the next message (SIGEV_THREAD), by a socket of the C library"),
            libc::SIGEV_SIGNAL if pid == 0 && signal == 0 => Ok(None),
            libc::SIGEV_NONE => Ok(Some(Notify { pid, signal: None })),
            _ => Ok(Some(Notify { pid, signal: Some(signal) })),
        }
    }
}

impl Queue {
    /// A queue of these properties, empty, in our ipc namespace; nobody there has this name.
    pub fn make(&self, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let fd = mqueue::make(name, self.max_messages.into(), self.message_size.into())?;
        let mode = nix::sys::stat::Mode::from_bits_truncate(self.mode);
        let finished = nix::unistd::fchown(fd.as_fd(), Some(self.owner.0.into()), Some(self.owner.1.into()))
            .and_then(|()| nix::sys::stat::fchmod(fd.as_fd(), mode));
        finished.inspect_err(|_| {
            let _ = mqueue::unlink(name);
        })?;
        Ok(fd)
    }

    /// Sends its messages to the queue, which is empty.
    pub fn fill(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.messages.iter().try_for_each(|(priority, Bytes(content))| mqueue::send(fd, content, *priority))?;
        file::set_times(fd, self.times).map_err(Into::into)
    }

    /// The one of this name in our ipc namespace, if any: whether it is the same one with the same content (or none), or else in
    /// what it differs. Nobody must have it open.
    pub fn standing(&self) -> Result<Option<std::result::Result<OwnedFd, String>>> {
        let fd = match mqueue::open(self.name.bytes(), libc::O_RDWR | libc::O_NONBLOCK) {
            Err(Errno::ENOENT) => return Ok(None),
            fd => fd?,
        };
        let meta = File::from(fd.try_clone()?).metadata()?;
        let there = mqueue::attributes(fd.as_fd())?;
        if (there.max_messages, there.message_size) != (self.max_messages.into(), self.message_size.into()) {
            return Ok(Some(Err(format!("it holds {} messages of {} bytes", there.max_messages, there.message_size))));
        }
        if (meta.mode() & 0o7777, meta.uid(), meta.gid()) != (self.mode, self.owner.0, self.owner.1) {
            return Ok(Some(Err(format!("its owner is {}:{}, its mode {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777))));
        }
        if there.waiting > 0 && apart::keep(|| turn_over(fd.as_fd()))? != self.messages {
            return Ok(Some(Err("other messages wait in it".to_owned())));
        }
        Ok(Some(Ok(fd)))
    }

    /// Who else has this queue open.
    pub fn held_by(fd: &OwnedFd) -> Result<Option<i32>> {
        let meta = File::from(fd.try_clone()?).metadata()?;
        Ok(holders(&[(meta.dev(), meta.ino())], |_| false).first().map(|h| h.0))
    }
}

/// A queue that has a name, as far as it must be known to be found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Left {
    name: FilePath,
    /// Device and inode.
    file: (u64, u64),
}

impl Left {
    /// Those of the ipc namespace of meio.
    pub fn of(queues: &[Queue]) -> Vec<Left> {
        let named = queues.iter().filter(|queue| !queue.unlinked && queue.namespace.is_none());
        named.filter_map(|queue| Some(Left { file: Left::there(&queue.name)?, name: queue.name.clone() })).collect()
    }

    fn there(name: &FilePath) -> Option<(u64, u64)> {
        let meta = File::from(mqueue::open(name.bytes(), libc::O_RDONLY | libc::O_NONBLOCK).ok()?).metadata().ok()?;
        Some((meta.dev(), meta.ino()))
    }

    /// Takes the name away, unless another queue has it by now or somebody has the queue open: the tree has ended here, and has its
    /// own elsewhere.
    pub fn remove(&self) {
        if Left::there(&self.name) == Some(self.file) && holders(&[self.file], |_| false).is_empty() {
            let _ = mqueue::unlink(self.name.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told() {
        let parse = |text: &str| Notify::parse(text);
        assert_eq!(parse("QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"), Ok(None));
        let told = Notify { pid: 82, signal: Some(10) };
        assert_eq!(parse("QSIZE:129        NOTIFY:0     SIGNO:10    NOTIFY_PID:82    \n"), Ok(Some(told)));
        assert_eq!(parse("QSIZE:0 NOTIFY:1 SIGNO:0 NOTIFY_PID:5\n"), Ok(Some(Notify { pid: 5, signal: None })));
        assert!(parse("QSIZE:0 NOTIFY:2 SIGNO:0 NOTIFY_PID:5\n").is_err());
        assert!(parse("QSIZE:0").is_err());
    }
}
