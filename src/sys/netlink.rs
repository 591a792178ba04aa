//! rtnetlink(7) messages as they are: a head that the kind of message defines, then attributes.

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A buffer of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Of what is sent.
    Send,
    /// Of what is received.
    Receive,
}

/// A netlink socket; it belongs to the network namespace in which it was made.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A length as messages and attributes are filled up to.
pub fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

impl Socket {
    /// For links, addresses, routes, rules and neighbours.
    pub fn route() -> io::Result<Self> {
        Socket::new(SockProtocol::NetlinkRoute)
    }

    /// For the packet filter.
    pub fn netfilter() -> io::Result<Self> {
        Socket::new(SockProtocol::NetlinkNetFilter)
    }

    /// For lists of sockets.
    pub fn sock_diag() -> io::Result<Self> {
        Socket::new(SockProtocol::NetlinkSockDiag)
    }

    fn new(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket(fd))
    }

    /// Sends a request. What it asks for is done when this returns; an answer waits to be received.
    pub fn send(&self, kind: u16, flags: i32, payload: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]); // sequence, port
        message.extend_from_slice(payload);
        socket::sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Takes what the kernel answers; `each` gets type and payload. Ends with the answer.
    fn receive(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let damaged = || io::Error::other("a netlink message that is cut off");
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            let n = socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut left = &buffer[..n];
            while left.len() >= HEADER {
                let length = u32_at(left, 0).ok_or_else(damaged)? as usize;
                let kind = u16_at(left, 4).ok_or_else(damaged)?;
                let payload = left.get(HEADER..length).ok_or_else(damaged)?;
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let errno = u32_at(payload, 0).ok_or_else(damaged)? as i32;
                        return if errno == 0 { Ok(()) } else { Err(Errno::from_raw(-errno).into()) };
                    }
                    _ => each(kind, payload),
                }
                left = left.get(align(length)..).unwrap_or_default();
            }
        }
    }

    /// Takes what the kernel has said unasked until now; `each` gets type and payload.
    pub fn unasked(&self, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.drain(&mut vec![0u8; 256 << 10], each)
    }

    /// The same with a buffer of the caller's, in which the longest message must find room.
    pub fn drain(&self, buffer: &mut [u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let n = match socket::recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::ENOBUFS) => continue, // what found no room is lost
                n => n?,
            };
            let mut left = &buffer[..n];
            while let (Some(length), Some(kind)) = (u32_at(left, 0), u16_at(left, 4)) {
                let Some(payload) = left.get(HEADER..length as usize) else { break };
                each(kind, payload);
                left = left.get(align(length as usize)..).unwrap_or_default();
            }
        }
    }

    /// Sends messages that are one transaction and waits until the one with number `last`, which asks for an answer, is
    /// answered. Any refusal is that of all.
    pub fn transact(&self, messages: &[u8], last: u32) -> io::Result<()> {
        let damaged = || io::Error::other("a netlink message that is cut off");
        if messages.len() > 64 << 10 {
            let _ = self.room(Buffer::Send, messages.len() + (64 << 10));
        }
        socket::sendto(self.0.as_raw_fd(), messages, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0u8; 64 << 10];
        let mut refused = None;
        loop {
            let flags = if refused.is_some() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
            let n = match socket::recv(self.0.as_raw_fd(), &mut buffer, flags) {
                Err(Errno::EAGAIN) if refused.is_some() => 0,
                n => n?,
            };
            let mut left = &buffer[..n];
            while left.len() >= HEADER {
                let length = u32_at(left, 0).ok_or_else(damaged)? as usize;
                let payload = left.get(HEADER..length).ok_or_else(damaged)?;
                let errno = u32_at(payload, 0).ok_or_else(damaged)? as i32;
                match u16_at(left, 4).map(i32::from) {
                    Some(libc::NLMSG_ERROR) if errno != 0 => drop(refused.get_or_insert(Errno::from_raw(-errno))),
                    Some(libc::NLMSG_ERROR) if refused.is_none() && u32_at(left, 8) == Some(last) => return Ok(()),
                    _ => {}
                }
                left = left.get(align(length)..).unwrap_or_default();
            }
            if let (Some(errno), 0) = (refused, n) {
                return Err(errno.into());
            }
        }
    }

    /// Gives a buffer of the socket so many bytes, beyond the limit of the system where that is allowed.
    pub fn room(&self, which: Buffer, bytes: usize) -> nix::Result<()> {
        match which {
            Buffer::Send => {
                socket::setsockopt(&self.0, sockopt::SndBufForce, &bytes).or_else(|_| socket::setsockopt(&self.0, sockopt::SndBuf, &bytes))
            }
            Buffer::Receive => {
                socket::setsockopt(&self.0, sockopt::RcvBufForce, &bytes).or_else(|_| socket::setsockopt(&self.0, sockopt::RcvBuf, &bytes))
            }
        }
    }

    /// All objects of a kind: the payloads of the answers.
    pub fn dump(&self, kind: u16, head: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, libc::NLM_F_DUMP, head)?;
        let mut found = Vec::new();
        self.receive(|_, payload| found.push(payload.to_vec()))?;
        Ok(found)
    }

    /// The same, one after the other, for those who need not keep them.
    pub fn each(&self, kind: u16, head: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, libc::NLM_F_DUMP, head)?;
        self.receive(|_, payload| each(payload))
    }

    /// One object: the payload of the answer. `ENOENT` when there is none.
    pub fn one(&self, kind: u16, payload: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.send(kind, libc::NLM_F_ACK, payload)?;
        let mut found = None;
        self.receive(|_, payload| found = Some(payload.to_vec()))?;
        Ok(found)
    }

    /// Asks for a change and waits until it is done.
    pub fn change(&self, kind: u16, flags: i32, payload: &[u8]) -> io::Result<()> {
        self.send(kind, flags | libc::NLM_F_ACK, payload)?;
        self.receive(|_, _| {})
    }
}

/// Four bytes of a message.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Two bytes of a message.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The attributes in a text of them: type, without the bit that marks nested ones, and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> + Clone {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// Adds an attribute to a message. False when its value is too long to be one.
pub fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) -> bool {
    let Ok(length) = u16::try_from(4 + value.len()) else { return false };
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(align(message.len()), 0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let mut message = Vec::new();
        assert!(put(&mut message, 3, b"lo\0") && put(&mut message, 4, &1500u32.to_ne_bytes()) && put(&mut message, 9, b""));
        assert_eq!(message.len() % 4, 0);
        let all: Vec<(u16, &[u8])> = vec![(3, b"lo\0"), (4, &[0xdc, 5, 0, 0]), (9, &[])];
        assert_eq!(attributes(&message).collect::<Vec<_>>(), all);
        assert_eq!(attributes(&message[..9]).collect::<Vec<_>>(), all[..1]);
        assert_eq!(attributes(&[0, 0, 0, 0, 9, 9]).count(), 0);
        assert!(!put(&mut message, 1, &[0; 70000]));
    }
}
