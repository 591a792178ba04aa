//! What a socket has received and nobody has read yet, looked at and left.
//!
//! The kernel shows the begin of a queue to anybody who holds the socket (`MSG_PEEK`), and what follows only after
//! `SO_PEEK_OFF` was set, which is a property of the socket and decides what the program itself would see with
//! `MSG_PEEK`. It is set only when there is more than the begin, and by a child that no signal for meio reaches
//! ([`apart`]): what it sets it also gives back, and meio does when the child is killed.
//!
//! One gap is the kernel's: a message without bytes behind others is shown once by an offset, and passed over by every later look
//! (`skb->peeked`). Where the same queue is dumped twice without having been read in between, the second image lacks it; the program
//! has it either way.

use crate::error::{Context, Result};
use crate::sys::{apart, socket};
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A message with descriptors of meio's own.
pub struct Peeked {
    /// What was seen.
    pub message: socket::Message<OwnedFd>,
    /// It is one byte out of band.
    pub urgent: bool,
}

/// First guess at the size of a datagram in bytes.
const ROOM: usize = 64 * 1024;

fn plain(message: socket::Message<OwnedFd>) -> Peeked {
    Peeked { message, urgent: false }
}

/// Everything in the queue of a socket of type `kind`. `ended`: nothing more will be received.
pub fn read(fd: BorrowedFd<'_>, kind: i32, ended: bool) -> Result<Vec<Peeked>> {
    let before = socket::number(fd, libc::SO_PEEK_OFF)?;
    let stream = kind == libc::SOCK_STREAM;
    let urgent = stream && socket::events(fd)? & libc::POLLPRI != 0;
    if stream {
        let total = socket::readable(fd)?;
        if total == 0 && !urgent {
            return Ok(Vec::new());
        }
        if before < 0 && !urgent {
            let first = socket::peek(fd, total, 0).context(|| "looking into the queue of a socket")?;
            if first.whole == total && first.fds.is_empty() {
                return Ok(vec![plain(first)]);
            }
        }
        return with_offset(fd, before, || bytes(fd, total, urgent));
    }
    let mut found = Vec::new();
    let mut at = 0;
    if before < 0 {
        match datagram(fd) {
            Ok(first) if first.whole == 0 && ended && kind == libc::SOCK_SEQPACKET => return Ok(found), // the end, no message
            Ok(first) => {
                at = first.whole;
                found.push(plain(first));
            }
            Err(Errno::EAGAIN) => return Ok(found),
            Err(e) => return Err(e).context(|| "looking into the queue of a socket"),
        }
    }
    with_offset(fd, before, || {
        loop {
            offset(fd, at)?;
            match datagram(fd) {
                Ok(end) if end.whole == 0 && ended && kind == libc::SOCK_SEQPACKET => return Ok(()),
                Ok(next) => {
                    at += next.whole;
                    found.push(plain(next));
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    })?;
    Ok(found)
}

/// Lets `look` use `SO_PEEK_OFF`, which was `before`.
pub(super) fn with_offset<R>(fd: BorrowedFd<'_>, before: i32, look: impl FnOnce() -> nix::Result<R>) -> Result<R> {
    let give_back = || socket::set_number(fd, libc::SO_PEEK_OFF, before);
    let looked = apart::run(0, || {
        let seen = look();
        give_back()?;
        seen
    });
    if looked.is_err() || matches!(looked, Ok(Err(_))) {
        // The child was killed, or could not do it.
        give_back().context(|| "giving SO_PEEK_OFF of a socket back")?;
    }
    looked.and_then(|seen| seen).context(|| "looking into the queue of a socket")
}

pub(super) fn offset(fd: BorrowedFd<'_>, at: usize) -> nix::Result<()> {
    socket::set_number(fd, libc::SO_PEEK_OFF, i32::try_from(at).map_err(|_| Errno::EFBIG)?)
}

/// The next message, whole.
fn datagram(fd: BorrowedFd<'_>) -> nix::Result<socket::Message<OwnedFd>> {
    let at = socket::number(fd, libc::SO_PEEK_OFF)?;
    let mut room = ROOM;
    loop {
        let mut message = socket::peek(fd, room, libc::MSG_TRUNC)?;
        if message.whole <= room {
            message.data.truncate(message.whole);
            return Ok(message);
        }
        room = message.whole;
        if at >= 0 {
            offset(fd, at as usize)?; // it has moved on
        }
    }
}

/// The bytes of a stream in pieces with one sender and one set of descriptors each.
fn bytes(fd: BorrowedFd<'_>, total: usize, urgent: bool) -> nix::Result<Vec<Peeked>> {
    if !urgent {
        return Ok(pieces(fd, total)?.into_iter().map(plain).collect());
    }
    let inline = socket::number(fd, libc::SO_OOBINLINE)? != 0;
    let byte = if inline { None } else { Some(socket::peek(fd, 1, libc::MSG_OOB)?) };
    let first = socket::at_mark(fd)?;
    // A byte out of band that comes first is passed over by offsets; one that comes later counts, and ends a piece.
    let pieces = pieces(fd, total - usize::from(first && !inline))?;
    let mut found: Vec<Peeked> = pieces.into_iter().map(plain).collect();
    if first && !inline {
        found.splice(..0, byte.map(|message| Peeked { message, urgent: true }));
        return Ok(found);
    }
    let fits = |p: &Peeked| byte.as_ref().is_none_or(|b| b.data.first() == p.message.data.first());
    // Other ends of pieces have reasons of their own: descriptors, or another sender.
    let clean =
        |n: usize| n == 0 || found[n - 1].message.fds.is_empty() && found[n - 1].message.credentials == found[n].message.credentials;
    let candidates: Vec<usize> = (usize::from(!first)..found.len()).filter(|&n| fits(&found[n])).collect();
    let Some(at) = candidates.iter().copied().find(|&n| clean(n)).or(candidates.last().copied()) else { return Ok(found) };
    let piece = &mut found[at].message;
    let rest = piece.data.split_off(1.min(piece.data.len()));
    found[at].urgent = true;
    if !rest.is_empty() {
        let (whole, credentials) = (rest.len(), found[at].message.credentials);
        found.insert(at + 1, plain(socket::Message { data: rest, whole, credentials, ..socket::Message::default() }));
    }
    Ok(found)
}

fn pieces(fd: BorrowedFd<'_>, total: usize) -> nix::Result<Vec<socket::Message<OwnedFd>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < total {
        offset(fd, at)?;
        let mut piece = match socket::peek(fd, total - at, 0) {
            Err(Errno::EAGAIN) => break,
            piece => piece?,
        };
        let n = piece.whole;
        if n == 0 {
            break;
        }
        if !piece.fds.is_empty() {
            let low = carrier(fd, at, n)?;
            if low > 0 {
                let data = piece.data.drain(..low).collect();
                found.push(socket::Message { data, whole: low, credentials: piece.credentials, ..socket::Message::default() });
                piece.whole -= low;
            }
        }
        found.push(piece);
        at += n;
    }
    Ok(found)
}

/// Which of `n` bytes from `at` is the first that descriptors came with: they go to whoever reads that one. It begins
/// the last of the kernel's pieces; a look at a byte before it shows the descriptors, too.
fn carrier(fd: BorrowedFd<'_>, at: usize, n: usize) -> nix::Result<usize> {
    offset(fd, at)?;
    socket::peek_border(fd, n - 1)
}
