//! Unix sockets: `UNIX_DIAG`, linux/unix_diag.h.

use super::SOCK_DIAG_BY_FAMILY;
use crate::sys::netlink::{Socket, attributes, u32_at};
use std::io;

/// Name, file, peer, pending connections, lengths of the queues.
const SHOW: u32 = 0x1f;

/// One socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unix {
    /// Inode. The kernel passes over connections that were not accepted yet, which have none.
    pub inode: u64,
    /// `SOCK_STREAM`, …
    pub kind: i32,
    /// `TCP_ESTABLISHED` (1), [`super::LISTEN`], or other for a socket without a peer.
    pub state: u8,
    /// The name that it is bound to; an abstract one begins with a zero byte.
    pub name: Option<Vec<u8>>,
    /// The file that it is bound to: the low 32 bits of its inode, and the device in the kernel's own coding.
    pub file: Option<(u32, u32)>,
    /// Inode of its peer, 0 when that has no file (any more, or not yet).
    pub peer: Option<u64>,
    /// Of a listening socket: inodes of those that wait to be accepted, 0 for one that has given up.
    pub pending: Vec<u64>,
    /// Bytes to read; pending connections of a listening socket.
    pub readable: u32,
    /// Memory of what was sent and not read; the backlog of a listening socket.
    pub written: u32,
    /// 1: nothing more can be received; 2: nothing more can be sent.
    pub shutdown: u8,
    /// In which list it stood, for whoever asks in several network namespaces.
    pub network: u32,
}

/// All unix sockets of the network namespace that the caller lives in.
pub fn list() -> io::Result<Vec<Unix>> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0]; // struct unix_diag_req
    request.extend(u32::MAX.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(SHOW.to_ne_bytes());
    request.extend([0; 8]);
    let mut sockets = Vec::new();
    Socket::sock_diag()?.each(SOCK_DIAG_BY_FAMILY, &request, |message| sockets.push(socket(message)))?;
    sockets.into_iter().map(|socket| socket.ok_or_else(|| io::Error::other("a netlink message that is cut off"))).collect()
}

/// `struct unix_diag_msg` and its attributes.
fn socket(body: &[u8]) -> Option<Unix> {
    let mut socket = Unix { kind: i32::from(*body.get(1)?), state: *body.get(2)?, inode: u64::from(u32_at(body, 4)?), ..Unix::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            0 if value.first() == Some(&0) => socket.name = Some(value.to_vec()),
            0 => socket.name = value.split(|b| *b == 0).next().map(<[u8]>::to_vec),
            1 => socket.file = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
            2 => socket.peer = Some(u64::from(u32_at(value, 0)?)),
            3 => socket.pending = value.chunks_exact(4).filter_map(|w| u32_at(w, 0)).map(u64::from).collect(),
            4 => (socket.readable, socket.written) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_and_its_unread_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut &a, b"hello").unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| {
            let fd = s.as_raw_fd();
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap())
        };
        let all = list().unwrap();
        let reader = all.iter().find(|s| s.inode == inode(&b)).unwrap();
        assert_eq!((reader.state, reader.readable, reader.peer, reader.shutdown), (1, 5, Some(inode(&a)), 1));
        let writer = all.iter().find(|s| s.inode == inode(&a)).unwrap();
        assert_eq!((writer.shutdown, writer.kind, writer.name.clone()), (2, libc::SOCK_STREAM, None));
        assert!(writer.written > 0);
    }

    #[test]
    fn damaged_messages_are_none() {
        assert_eq!(socket(&[1, 1, 1, 0, 9, 0, 0, 0]), None);
        assert_eq!(socket(&[1, 1, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1, 0, 0, 0]), None);
    }
}
