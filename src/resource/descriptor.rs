//! Descriptor tables: which number leads to which open file description.

use super::capture::Capture;
use super::graph::{Lost, Part};
use super::lock::{Family, Lock};
use super::{
    device, epoll, eventfd, fanotify, ignored, inotify, mqueue, outside, owner, pidfd, pipe, pty, regular, signalfd, socket, terminal,
    timerfd, tun, unsupported,
};
use crate::error::{Context, Error, Result};
use crate::sys::proc::fdinfo::{self, FdInfo};
use crate::sys::proc::read;
use crate::sys::task::{self, Files};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::Instant;

/// Number of an [`OpenFile`] in the image.
pub type FileId = u32;

/// One entry of a descriptor table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The descriptor number.
    pub fd: i32,
    /// The open file description; several descriptors, also of several processes, may share it.
    pub file: FileId,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
    /// Record locks (fcntl(2) `F_SETLK`) that the process took through this open file description.
    pub locks: Vec<Lock>,
}

/// One open file description (open(2), "open file description").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFile {
    /// Its number in the image.
    pub id: FileId,
    /// `O_*` status and access flags, octal in proc_pid_fdinfo(5).
    pub flags: u32,
    /// File offset in bytes.
    pub pos: u64,
    /// What `/proc/PID/fd/N` said, for people.
    pub link: String,
    /// Locks that belong to the open file description: flock(2) and `F_OFD_SETLK`.
    pub locks: Vec<Lock>,
    /// What it is.
    pub kind: FileKind,
}

/// The kinds of open file that are supported, one file each in this folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file, directory or `O_PATH` by its path.
    Regular(regular::Regular),
    /// Pipe or FIFO end.
    Pipe(pipe::PipeEnd),
    /// Character device that is opened anew by path.
    Device(device::Device),
    /// A terminal.
    Terminal(terminal::Terminal),
    /// The master side of a pseudo-terminal.
    Master(terminal::Terminal),
    /// An epoll instance.
    Epoll(epoll::Epoll),
    /// memfd or shared memory without a name.
    Memory(super::shared::SharedMemory),
    /// Left out by the user.
    Ignored(ignored::Ignored),
    /// End of a pipe to somebody outside, kept by name.
    Outside(outside::Outside),
    /// An eventfd counter.
    EventFd(eventfd::EventFd),
    /// A timer.
    TimerFd(timerfd::TimerFd),
    /// Signals to be read.
    SignalFd(signalfd::SignalFd),
    /// A handle of a task.
    PidFd(pidfd::PidFd),
    /// Watches on files.
    Inotify(inotify::Inotify),
    /// Marks on files, mounts and file systems.
    Fanotify(fanotify::Fanotify),
    /// A POSIX message queue.
    MessageQueue(mqueue::QueueEnd),
    /// A unix socket.
    Unix(Box<socket::unix::UnixSocket>),
    /// A TCP connection.
    Tcp(Box<socket::tcp::Tcp>),
    /// A socket towards the kernel.
    Netlink(Box<socket::netlink::Netlink>),
    /// A UDP socket.
    Udp(Box<socket::udp::Udp>),
    /// A TCP socket that listens.
    Listening(Box<socket::listen::Listening>),
    /// A raw socket, or one of echoes.
    Raw(Box<socket::raw::Raw>),
    /// The other end of a network interface.
    Tun(Box<tun::Tun>),
    /// A packet socket.
    Packet(Box<socket::packet::Packet>),
}

/// What is known of a descriptor before its kind is decided.
pub struct Found {
    /// Process.
    pub pid: i32,
    /// Descriptor number.
    pub fd: i32,
    /// `/proc/PID/fd/N`.
    pub link: Vec<u8>,
    /// stat(2) through the descriptor.
    pub meta: Metadata,
    /// proc_pid_fdinfo(5).
    pub info: FdInfo,
    files: Rc<Files>,
    own: OnceCell<OwnedFd>,
    socket: OnceCell<(i32, i32, i32)>,
}

impl FileKind {
    /// What every internet socket has, where it is one.
    pub fn inet(&self) -> Option<&socket::inet::Inet> {
        match self {
            FileKind::Tcp(tcp) => tcp.reachable().then_some(&tcp.inet),
            FileKind::Listening(listening) => Some(&listening.inet),
            FileKind::Udp(udp) => Some(&udp.inet),
            _ => None,
        }
    }

    /// What the graph shows of it; each kind answers in its own file.
    pub fn part(&self) -> Part {
        match self {
            FileKind::Regular(regular) => regular.part(),
            FileKind::Pipe(end) => end.part(),
            FileKind::Device(device) => device.part(),
            FileKind::Terminal(terminal) | FileKind::Master(terminal) => terminal.part(),
            FileKind::Epoll(epoll) => epoll.part(),
            FileKind::Memory(memory) => memory.part(),
            FileKind::Ignored(ignored) => ignored.part(),
            FileKind::Outside(outside) => outside.part(),
            FileKind::EventFd(_) => Part::of("eventfd"),
            FileKind::TimerFd(_) => Part::of("timerfd"),
            FileKind::SignalFd(_) => Part::of("signalfd"),
            FileKind::PidFd(pidfd) => pidfd.part(),
            FileKind::Inotify(_) => Part::of("inotify"),
            FileKind::Fanotify(_) => Part::of("fanotify"),
            FileKind::MessageQueue(queue) => queue.part(),
            FileKind::Unix(socket) => socket.part(),
            FileKind::Netlink(_) => Part::of("netlink socket"),
            FileKind::Tcp(tcp) => tcp.part(),
            FileKind::Udp(socket) => socket.part(),
            FileKind::Listening(listening) => listening.part(),
            FileKind::Raw(socket) => socket.part(),
            FileKind::Packet(socket) => socket.part(),
            FileKind::Tun(tun) => tun.part(),
        }
    }
}

impl Found {
    /// For refusals: `fd 5 (socket:[123])`.
    pub fn object(&self) -> String {
        format!("fd {} ({})", self.fd, String::from_utf8_lossy(&self.link))
    }

    /// For the graph, when it cannot be saved.
    fn lost(&self, refusal: u32) -> Lost {
        Lost { pid: self.pid, fd: self.fd, link: self.link.clone(), refusal }
    }

    /// The open file description itself, duplicated into meio.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.files.get(self.fd).context(|| format!("duplicating {} of process {}", self.object(), self.pid))
    }

    /// Of a socket: family, type and protocol, socket(2).
    pub fn socket(&self) -> Result<(i32, i32, i32)> {
        if let Some(known) = self.socket.get() {
            return Ok(*known);
        }
        let fd = self.own()?;
        let number = |name| crate::sys::socket::number(fd, name);
        let asked = (number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
        Ok(*self.socket.get_or_init(|| asked))
    }

    /// The same for all who ask for as long as this is looked at.
    pub fn own(&self) -> Result<BorrowedFd<'_>> {
        if self.own.get().is_none() {
            let _ = self.own.set(self.duplicate()?);
        }
        self.own.get().map(AsFd::as_fd).ok_or_else(|| Error::other("a descriptor has gone"))
    }
}

/// Reads the descriptor table of a process; new open file descriptions are added to `capture`.
pub fn survey(pid: i32, capture: &mut Capture) -> Result<Vec<Descriptor>> {
    let mut table = Vec::new();
    let listed = Instant::now();
    let mut fds = read::fds(pid)?;
    let files = capture.files_of(pid);
    fds.retain(|&fd| match socket::steady::take_held(&files, fd, capture) {
        Some(held) => {
            capture.descriptors.insert((pid, fd), held.file);
            table.push(held);
            false
        }
        None => true,
    });
    if !table.is_empty() {
        capture.took(listed.elapsed());
    }
    let listed = Instant::now();
    let infos = read::fd_infos(pid, &fds)?;
    let (listed, all) = (listed.elapsed(), infos.len().max(1) as u32);
    let mut sockets = 0;
    for (fd, info) in infos {
        let begin = Instant::now();
        if let Some(file) = socket::steady::take((pid, fd), &info, capture) {
            capture.descriptors.insert((pid, fd), file);
            table.push(Descriptor { fd, file, cloexec: info.flags & libc::O_CLOEXEC as u32 != 0, locks: Vec::new() });
            capture.took(begin.elapsed());
            sockets += 1;
            continue;
        }
        let found = look(pid, fd, info, capture)?;
        if let Some(refusal) = capture.lost_before(&found)? {
            capture.lost.push(found.lost(refusal));
            continue;
        }
        let ignored = ignored::capture(&found, capture).is_some();
        let locks: Vec<Lock> = found.info.all("lock").filter_map(Lock::parse).filter(|_| !ignored).collect();
        let (own, shared): (Vec<_>, Vec<_>) = locks.into_iter().partition(|l| l.family == Family::Posix);
        let before = capture.refusals.len();
        let Some(file) = identify(&found, shared, capture)? else {
            capture.lost.push(found.lost(before as u32));
            for refusal in &mut capture.refusals[before..] {
                refusal.id.get_or_insert_with(|| ignored::ids(&found).swap_remove(0));
            }
            continue;
        };
        let cloexec = found.info.flags & libc::O_CLOEXEC as u32 != 0;
        capture.descriptors.insert((pid, fd), file);
        table.push(Descriptor { fd, file, cloexec, locks: own });
        if found.link.starts_with(b"socket:[") {
            capture.took(begin.elapsed());
            sockets += 1;
        }
    }
    capture.took(listed * sockets / all);
    table.sort_unstable_by_key(|descriptor| descriptor.fd);
    if capture.standing {
        let (connections, files) = (&mut capture.recall.connections, &capture.files);
        connections.place(pid, &table, |id| socket::steady::inode(&files[id as usize]));
    }
    Ok(table)
}

/// Begins to read what takes its time, where all descriptors are known: [`find_unheld`] ends that.
pub fn begin_reading(capture: &mut Capture) -> Result<()> {
    socket::tcp::begin(capture)
}

/// Finds the open files that no process has a descriptor of: those in messages that nobody has received.
pub fn find_unheld(capture: &mut Capture) -> Result<()> {
    let begin = Instant::now();
    socket::peers::read_queues(capture)?;
    for (id, owner) in socket::tcp::complete(capture)? {
        owner::add(id, &owner, None, capture);
    }
    capture.took(begin.elapsed());
    Ok(())
}

/// The open file description of a descriptor of meio's own, which need not be in any table of the tree: a message that
/// nobody has received yet holds it. `None` after a refusal in the name of meio's pid.
pub fn held(fd: OwnedFd, capture: &mut Capture) -> Result<Option<FileId>> {
    let pid = std::process::id() as i32;
    let info = read::parsed(pid, &format!("fdinfo/{}", fd.as_raw_fd()), fdinfo::parse)?;
    let found = look(pid, fd.as_raw_fd(), info, capture)?;
    let locks = found.info.all("lock").filter_map(Lock::parse).filter(|l| l.family != Family::Posix).collect();
    let known = capture.files.len();
    let file = identify(&found, locks, capture)?;
    if capture.files.len() > known {
        capture.kept.push(fd); // others are compared with it
    }
    Ok(file)
}

fn look(pid: i32, fd: i32, info: FdInfo, capture: &mut Capture) -> Result<Found> {
    let files = capture.files_of(pid);
    // With thousands of sockets paths through /proc are dear. All of them lie in one mount, which no path leads to.
    if info.mnt_id.is_some_and(|mount| capture.socket_mount.is_some_and(|known| known.0 == mount)) {
        let duplicate = files.get(fd).context(|| format!("duplicating fd {fd} of process {pid}"))?;
        let file = File::from(duplicate);
        let (meta, own) = (file.metadata()?, OnceCell::from(OwnedFd::from(file)));
        return Ok(Found { pid, fd, link: socket_link(&meta), meta, info, files, own, socket: OnceCell::new() });
    }
    let meta = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).context(|| format!("reading fd {fd} of process {pid}"))?;
    let link = read::fd_link(pid, fd)?;
    if link.starts_with(b"socket:[") && link == socket_link(&meta) {
        capture.socket_mount = info.mnt_id.map(|mount| (mount, meta.dev()));
    }
    Ok(Found { pid, fd, link, meta, info, files, own: OnceCell::new(), socket: OnceCell::new() })
}

/// What /proc says of an open socket.
fn socket_link(meta: &Metadata) -> Vec<u8> {
    format!("socket:[{}]", meta.ino()).into_bytes()
}

/// What needs all descriptor tables: who is meant by a handle, what an epoll instance watches. `tree` holds all processes.
pub fn settle(tree: &HashSet<i32>, capture: &mut Capture) -> Result<()> {
    let begin = Instant::now();
    socket::peers::resolve(tree, capture)?;
    socket::listen::resolve(tree, capture)?;
    capture.took(begin.elapsed());
    socket::choice::refuse(capture);
    socket::tcp::refuse_signed(capture)?;
    socket::steady::prepare(tree, capture)?;
    pidfd::refuse_outsiders(tree, capture);
    tun::refuse_unheld(capture)?;
    socket::outside::refuse_shared(tree, capture);
    owner::refuse_outsiders(tree, capture);
    epoll::resolve(capture)?;
    eventfd::resolve(capture);
    Ok(())
}

/// The open file description behind a descriptor: one that is known (kcmp(2)), or a new one. `None` after a refusal.
fn identify(found: &Found, locks: Vec<Lock>, capture: &mut Capture) -> Result<Option<FileId>> {
    let flags = found.info.flags & !(libc::O_CLOEXEC as u32);
    let key = (found.meta.dev(), found.meta.ino());
    // Everything without a file has the same inode: the list is kept in kcmp(2)'s own order, and searched by halves.
    let (mut low, mut high) = (0, capture.file_index.get(&key).map_or(0, Vec::len));
    while low < high {
        let middle = (low + high) / 2;
        let id = capture.file_index[&key][middle];
        let order = task::compare_files((found.pid, found.fd), capture.holders[id as usize]);
        match order.context(|| "comparing open files (kcmp)")? {
            Ordering::Equal => return Ok(Some(id)),
            Ordering::Less => high = middle,
            Ordering::Greater => low = middle + 1,
        }
    }
    let Some(kind) = kind(found, capture)? else { return Ok(None) };
    let id = capture.files.len() as FileId;
    capture.files.push(OpenFile {
        id,
        flags,
        pos: found.info.pos as u64,
        link: String::from_utf8_lossy(&found.link).into_owned(),
        locks,
        kind,
    });
    capture.holders.push((found.pid, found.fd));
    owner::capture(found, id, capture)?;
    capture.file_index.entry(key).or_default().insert(low, id);
    Ok(Some(id))
}

/// Asks each kind in turn. The last word is a refusal.
fn kind(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let mode = found.meta.mode() & libc::S_IFMT;
    let path_only = found.info.flags & libc::O_PATH as u32 != 0;
    if let Some(decided) = ignored::capture(found, capture).or_else(|| outside::capture(found, capture)) {
        return Ok(Some(decided));
    }
    if let Some((reason, advice)) = unsupported::by_name(&found.link) {
        capture.refuse(found.pid, found.object(), reason, advice);
        return Ok(None);
    }
    match mode {
        _ if path_only => regular::capture(found, capture),
        _ if pidfd::is_pidfd(found) => pidfd::capture(found, capture),
        libc::S_IFREG if mqueue::is_queue(found) => mqueue::capture(found, capture),
        libc::S_IFREG | libc::S_IFDIR if !found.link.starts_with(b"anon_inode:") => regular::capture(found, capture),
        libc::S_IFIFO => pipe::capture(found, capture),
        _ if found.link == b"anon_inode:[eventpoll]" => Ok(epoll::capture(found, capture)),
        _ if found.link == b"anon_inode:[eventfd]" => Ok(eventfd::capture(found, capture)),
        _ if found.link == b"anon_inode:[fanotify]" => fanotify::capture(found, capture),
        _ if found.link == b"anon_inode:inotify" => inotify::capture(found, capture),
        _ if found.link == b"anon_inode:[timerfd]" => timerfd::capture(found, capture),
        _ if found.link == b"anon_inode:[signalfd]" => Ok(signalfd::capture(found, capture)),
        libc::S_IFCHR if terminal::is_terminal(found) => terminal::capture(found, capture),
        libc::S_IFCHR if pty::is_master(found) => pty::capture(found, capture),
        libc::S_IFCHR if tun::is(found) => tun::capture(found, capture),
        libc::S_IFCHR => Ok(device::capture(found, capture)),
        libc::S_IFSOCK => socket::capture(found, capture),
        _ => {
            let link = String::from_utf8_lossy(&found.link);
            let what = link.trim_start_matches("anon_inode:").trim_matches(['[', ']']);
            let reason = format!("descriptors of kind {what} are not supported yet");
            capture.refuse(found.pid, found.object(), reason, "close it, or wait for a later version");
            Ok(None)
        }
    }
}
