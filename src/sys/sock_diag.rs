//! What the kernel tells of all unix sockets of a network namespace: sock_diag(7), `UNIX_DIAG`.

pub mod packets;

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Name, file, peer, pending connections, lengths of the queues.
const SHOW: u32 = 0x1f;

/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;

/// One socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unix {
    /// Inode. The kernel passes over connections that were not accepted yet, which have none.
    pub inode: u64,
    /// `SOCK_STREAM`, …
    pub kind: i32,
    /// `TCP_ESTABLISHED` (1), [`LISTEN`], or other for a socket without a peer.
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
pub fn unix_sockets() -> Result<Vec<Unix>, Errno> {
    // SAFETY: on success the descriptor is new and ours.
    let netlink = Errno::result(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG) })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })?;
    let mut request = Vec::new();
    request.extend_from_slice(&40u32.to_ne_bytes()); // struct nlmsghdr
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]); // struct unix_diag_req
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&SHOW.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    nix::unistd::write(netlink.as_fd(), &request)?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0u8; 128 * 1024];
    loop {
        // SAFETY: the buffer has the size that is passed.
        let n = Errno::result(unsafe { libc::recv(netlink.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })? as usize;
        if messages(&buffer[..n], &mut sockets)? {
            return Ok(sockets);
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes the messages of one datagram apart; whether it was the last.
fn messages(mut bytes: &[u8], sockets: &mut Vec<Unix>) -> Result<bool, Errno> {
    const HEADER: usize = 16;
    while let (Some(len), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let len = len as usize;
        let body = bytes.get(HEADER..len).ok_or(Errno::EBADMSG)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(Errno::from_raw(u32_at(body, 0).map_or(0, |e| (e as i32).wrapping_neg()))),
            _ => sockets.push(socket(body).ok_or(Errno::EBADMSG)?),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct unix_diag_msg` and its attributes.
fn socket(body: &[u8]) -> Option<Unix> {
    let mut socket = Unix { kind: i32::from(*body.get(1)?), state: *body.get(2)?, inode: u64::from(u32_at(body, 4)?), ..Unix::default() };
    let mut rest = body.get(16..)?;
    while let (Some(len), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let len = len as usize;
        let value = rest.get(4..len)?;
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
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_and_its_unread_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut &a, b"hello").unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let inode = |s: &UnixStream| {
            let fd = s.as_raw_fd();
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap())
        };
        let all = unix_sockets().unwrap();
        let reader = all.iter().find(|s| s.inode == inode(&b)).unwrap();
        assert_eq!((reader.state, reader.readable, reader.peer, reader.shutdown), (1, 5, Some(inode(&a)), 1));
        let writer = all.iter().find(|s| s.inode == inode(&a)).unwrap();
        assert_eq!((writer.shutdown, writer.kind, writer.name.clone()), (2, libc::SOCK_STREAM, None));
        assert!(writer.written > 0);
    }

    #[test]
    fn damaged_messages_are_refused() {
        let mut none = Vec::new();
        assert_eq!(messages(&[40, 0, 0, 0, 20, 0, 0, 0], &mut none), Err(Errno::EBADMSG));
        assert_eq!(messages(&[18, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0], &mut none), Err(Errno::EBADMSG));
        let refusal = [20u8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf3, 0xff, 0xff, 0xff];
        assert_eq!(messages(&refusal, &mut none), Err(Errno::EACCES));
        assert_eq!(socket(&[1, 1, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 0, 2, 0]), None);
    }
}
