//! unix(7): the saved form of a socket, and what of it is seen from its own end.

use super::options::{self, Filter, SocketOption};
use crate::error::{Error, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, Found};
use crate::resource::graph::{How, Key, Part};
use crate::resource::path::FilePath;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::{file, socket};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// A unix socket; it has one open file description and one only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixSocket {
    /// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_SEQPACKET`.
    pub kind: i32,
    /// What getsockname(2) says: a path, or a zero byte and an abstract name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Bytes>,
    /// The network namespace that it lives in, an index into the tree's; `None` for meio's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u32>,
    /// The file that it is bound to. An accepted socket has that of its listening one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<BoundFile>,
    /// What it is there for.
    #[serde(default)]
    pub role: Role,
    /// Bits: 1 nothing more can be received, 2 nothing more can be sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shutdown: u8,
    /// `ECONNRESET` waits to be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// `SO_PEERCRED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_identity: Option<Identity>,
    /// What was received and not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<Message>,
    /// Options that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<SocketOption>,
    /// A filter over what comes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

/// The file of a bound socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundFile {
    /// Where it is now, which need not be where it was bound; `None` when it is gone.
    pub path: Option<FilePath>,
    /// Permission bits.
    pub mode: u32,
    /// Owner: uid, gid.
    pub owner: (u32, u32),
}

/// What a socket is there for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It has no peer.
    #[default]
    Alone,
    /// listen(2).
    Listening {
        /// Connections that may wait.
        backlog: i32,
        /// Who waits to be accepted, first come first; `None` for one that has closed its end since.
        pending: Vec<Option<FileId>>,
    },
    /// It has a peer.
    Connected {
        /// Who.
        peer: Peer,
        /// It came out of accept(2), and its name is that of the listening socket.
        accepted: bool,
    },
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// A socket of the tree.
    File(FileId),
    /// Not accepted yet; the listening socket.
    Waiting(FileId),
    /// It has been closed; its name.
    Gone(Option<Bytes>),
    /// A socket outside of the tree with this name, connected to anew.
    Outside(Bytes),
}

/// Who connected, or listened: credentials(7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Process; 0 when it lives in no pid namespace that meio sees.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// One message, or bytes of a stream between two borders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The bytes.
    #[serde(with = "crate::image::bytes")]
    pub data: Vec<u8>,
    /// Name of the socket that sent it (datagrams).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Bytes>,
    /// Descriptors that travel with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileId>,
    /// Sender: pid, uid, gid. Seen only where `SO_PASSCRED` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<(i32, u32, u32)>,
    /// One byte, sent with `MSG_OOB`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub urgent: bool,
}

impl UnixSocket {
    /// For the graph.
    pub fn part(&self) -> Part {
        let peer = match &self.role {
            Role::Connected { peer: Peer::File(peer) | Peer::Waiting(peer), .. } => Some((Key::File(*peer), How::Connected)),
            _ => None,
        };
        let carried = self.queue.iter().flat_map(|m| &m.files).map(|&f| (Key::File(f), How::Carries));
        let detail = self.name.as_ref().map(|Bytes(name)| readable(name)).unwrap_or_default();
        Part { detail, needs: peer.into_iter().chain(carried).collect(), ..Part::of("unix socket") }
    }

    /// All numbers of processes in it.
    pub fn pids(&mut self) -> impl Iterator<Item = &mut i32> {
        let sent = self.queue.iter_mut().filter_map(|m| m.credentials.as_mut()).map(|c| &mut c.0);
        self.peer_identity.iter_mut().map(|i| &mut i.pid).chain(sent)
    }
}

/// A name as people write it: `/run/socket`, `@abstract`.
pub fn readable(name: &[u8]) -> String {
    match name.split_first() {
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}

/// What a socket tells of itself without being changed.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let kind = socket::number(fd, libc::SO_TYPE)?;
    let name = socket::name(fd)?;
    let listening = socket::number(fd, libc::SO_ACCEPTCONN)? != 0;
    let filter = match options::filter(fd) {
        Ok(filter) => filter,
        Err(Errno::EACCES) => {
            capture.refuse(found.pid, found.object(), "a BPF program filters what it receives", "detach it first (SO_DETACH_BPF)");
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    let file = match name.as_ref().filter(|n| n.first() != Some(&0)) {
        Some(name) => Some(bound_file(found, fd, name, capture)?),
        None => None,
    };
    let new = match capture.new_sockets.entry((libc::AF_UNIX, kind)) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => place.insert(options::New::of(libc::AF_UNIX, kind)?),
    };
    let socket = UnixSocket {
        kind,
        name: name.map(Bytes),
        file,
        role: if listening { Role::Listening { backlog: 0, pending: Vec::new() } } else { Role::Alone },
        peer_identity: peer_identity(fd),
        options: options::capture(fd, new),
        filter,
        ..UnixSocket::default()
    };
    Ok(Some(FileKind::Unix(Box::new(socket))))
}

/// Where the file of a bound socket is, and whose.
fn bound_file(found: &Found, fd: BorrowedFd<'_>, name: &[u8], capture: &Capture) -> Result<BoundFile> {
    let bound = socket::bound_file(fd).map_err(|e| Error::from(e).context(format!("looking for the file of {}", readable(name))))?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", bound.as_raw_fd()))?;
    let meta = File::from(bound).metadata()?;
    let there = |path: &FilePath| std::fs::symlink_metadata(capture.place(found.pid, path));
    let same = |path: &FilePath| there(path).is_ok_and(|m| (m.dev(), m.ino()) == (meta.dev(), meta.ino()));
    // What the kernel says first; after that what the name says, seen from the process.
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", found.pid)).unwrap_or_default();
    let named = cwd.join(std::path::Path::new(std::ffi::OsStr::from_bytes(name)));
    let candidates = [FilePath::from(link.as_os_str().as_bytes()), FilePath::from(named.as_os_str().as_bytes())];
    let path = candidates.into_iter().find(same);
    Ok(BoundFile { path, mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) })
}

/// `SO_PEERCRED` and `SO_PEERGROUPS`; `None` when there never was a peer.
fn peer_identity(fd: BorrowedFd<'_>) -> Option<Identity> {
    let word = |bytes: &[u8], n: usize| bytes.get(n * 4..n * 4 + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let credentials = socket::option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12).ok()?;
    let (pid, uid, gid) = (word(&credentials, 0)?, word(&credentials, 1)?, word(&credentials, 2)?);
    if uid == u32::MAX {
        return None;
    }
    const NGROUPS_MAX: usize = 65536;
    const SO_PEERGROUPS: i32 = 59;
    let groups = match socket::option(fd, libc::SOL_SOCKET, SO_PEERGROUPS, 256) {
        Err(Errno::ERANGE) => socket::option(fd, libc::SOL_SOCKET, SO_PEERGROUPS, NGROUPS_MAX * 4),
        groups => groups,
    };
    let groups = groups.unwrap_or_default();
    let groups = (0..groups.len() / 4).filter_map(|n| word(&groups, n)).collect();
    Some(Identity { pid: pid as i32, uid, gid, groups })
}

/// Gives a socket its status flags, `O_NONBLOCK` for one.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    file::set_flags(fd, (flags & libc::O_NONBLOCK as u32) as i32).map_err(|e| Error::from(e).context("setting the flags of a socket"))
}
