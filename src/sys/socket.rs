//! Sockets by number: options as bytes, addresses as bytes, messages with all that comes along.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors in one message (`SCM_MAX_FD`).
pub const MOST_FDS: usize = 253;
/// `struct sockaddr_un` without its family: the name of a unix socket as the kernel has it.
const NAME: usize = 108;
/// ioctl(2) on a unix socket: the file that it is bound to, as an `O_PATH` descriptor.
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
/// ioctl(2): the network namespace of a socket.
const SIOCGSKNS: libc::c_ulong = 0x894c;
/// ioctl(2): bytes that can be read.
const SIOCINQ: libc::c_ulong = 0x541b;
/// ioctl(2): whether the next byte is the one that was sent out of band.
const SIOCATMARK: libc::c_ulong = 0x8905;
/// `SCM_PIDFD` of unix(7), Linux 6.5.
const SCM_PIDFD: i32 = 4;

/// `pid`, `uid`, `gid` of `SCM_CREDENTIALS` and `SO_PEERCRED`.
pub type Credentials = (i32, u32, u32);

/// A message that was looked at or is to be sent.
#[derive(Debug)]
pub struct Message<F> {
    /// Its bytes.
    pub data: Vec<u8>,
    /// How many there are in truth, when they did not fit.
    pub whole: usize,
    /// Name of the sender's socket; `None` when it has none.
    pub name: Option<Vec<u8>>,
    /// Descriptors that travel with it.
    pub fds: Vec<F>,
    /// Who sent it.
    pub credentials: Option<Credentials>,
}

impl<F> Default for Message<F> {
    fn default() -> Self {
        Message { data: Vec::new(), whole: 0, name: None, fds: Vec::new(), credentials: None }
    }
}

/// An option as the kernel has it, of at most `room` bytes.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, room: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; room];
    let mut len = room as libc::socklen_t;
    // SAFETY: the buffer has the size that is passed.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    value.truncate(len as usize);
    Ok(value)
}

/// An option as the kernel has it; how many bytes it wrote.
pub fn option_into(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> Result<usize, Errno> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the buffer has the size that is passed.
    Errno::result(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(len as usize)
}

/// An option that is a number.
pub fn number(fd: BorrowedFd<'_>, name: i32) -> Result<i32, Errno> {
    let mut value = [0u8; 4];
    match option_into(fd, libc::SOL_SOCKET, name, &mut value)? {
        4 => Ok(i32::from_ne_bytes(value)),
        _ => Err(Errno::EINVAL),
    }
}

/// Most bytes that may wait to be read and to be sent (`SO_RCVBUF`, `SO_SNDBUF`), by one call: `SO_MEMINFO`, Linux 4.12.
pub fn buffers(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    const SO_MEMINFO: i32 = 55;
    let mut memory = [0u8; 40];
    let len = option_into(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut memory)?;
    let word = |n: usize| u32::from_ne_bytes([memory[4 * n], memory[4 * n + 1], memory[4 * n + 2], memory[4 * n + 3]]);
    if len < 16 { Err(Errno::EINVAL) } else { Ok((word(1), word(3))) }
}

/// Sets an option.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `value` within its length.
    Errno::result(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) }).map(drop)
}

/// Sets an option that is a number.
pub fn set_number(fd: BorrowedFd<'_>, name: i32, value: i32) -> Result<(), Errno> {
    set_option(fd, libc::SOL_SOCKET, name, &value.to_ne_bytes())
}

/// The classic filter (`SO_GET_FILTER`): 8 bytes an instruction. `EACCES` for one that is not classic.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    // The length counts instructions here, both ways. Without room the kernel says how many there are.
    let mut len: libc::socklen_t = 0;
    // SAFETY: no room, as is said.
    Errno::result(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, std::ptr::null_mut(), &raw mut len)
    })?;
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut value = vec![0u8; len as usize * 8];
    // SAFETY: the buffer has room for the instructions that the length allows.
    Errno::result(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value.as_mut_ptr().cast(), &raw mut len)
    })?;
    value.truncate(len as usize * 8);
    Ok(value)
}

/// Attaches a classic filter.
pub fn set_filter(fd: BorrowedFd<'_>, instructions: &[u8]) -> Result<(), Errno> {
    let mut aligned: Vec<u64> = instructions.chunks_exact(8).map(|i| u64::from_ne_bytes(i.try_into().unwrap_or_default())).collect();
    let program = libc::sock_fprog { len: aligned.len() as u16, filter: aligned.as_mut_ptr().cast() };
    // SAFETY: the structure has the layout of `struct sock_fprog`, and what it points to outlives the call.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const program).cast::<u8>(), size_of::<libc::sock_fprog>()) };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, bytes)
}

/// A new socket.
pub fn socket(domain: i32, kind: i32) -> Result<OwnedFd, Errno> {
    socket_of(domain, kind, 0)
}

/// A new socket of a protocol that is not the first of its family.
pub fn socket_of(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: on success the descriptor is new and ours.
    Errno::result(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two sockets that are connected.
pub fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [0i32; 2];
    // SAFETY: the array has room for both descriptors, which are new and ours.
    unsafe {
        Errno::result(libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

fn address(name: &[u8]) -> Result<(libc::sockaddr_un, libc::socklen_t), Errno> {
    // SAFETY: all-zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if name.len() > NAME {
        return Err(Errno::EINVAL);
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // A path ends with a zero, which is counted where there is room.
    let zero = usize::from(name.first().is_some_and(|b| *b != 0) && name.len() < NAME);
    Ok((address, (2 + name.len() + zero) as libc::socklen_t))
}

/// The name in an address that the kernel filled; `None` for a socket without one.
fn name_of(address: &libc::sockaddr_storage, len: usize) -> Option<Vec<u8>> {
    let len = len.min(2 + NAME + 1);
    if len <= 2 || i32::from(address.ss_family) != libc::AF_UNIX {
        return None;
    }
    // SAFETY: the structure is longer than what is read of it.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const *address).cast::<u8>().add(2), len - 2) };
    let mut name = bytes.to_vec();
    if name.first() != Some(&0) {
        name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
    }
    Some(name)
}

type Asks = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn asked(fd: BorrowedFd<'_>, ask: Asks) -> Result<Option<Vec<u8>>, Errno> {
    // SAFETY: all-zero is valid; the structure has the size that is passed.
    let (answer, address, len) = unsafe {
        let mut address: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        (ask(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len), address, len)
    };
    Errno::result(answer).map(|_| name_of(&address, len as usize))
}

/// The own name of a unix socket (getsockname(2)): a path, or a zero byte and an abstract name.
pub fn name(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    asked(fd, libc::getsockname)
}

/// The name of the socket that it is connected to (getpeername(2)).
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    asked(fd, libc::getpeername)
}

/// bind(2) to a unix name.
pub fn bind(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let (address, len) = address(name)?;
    // SAFETY: the structure outlives the call and is as long as is said.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// connect(2) to a unix name.
pub fn connect(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let (address, len) = address(name)?;
    // SAFETY: as in `bind`.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// connect(2) to nobody: a datagram socket has no peer any more.
pub fn disconnect(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: as in `bind`.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as libc::socklen_t) }).map(drop)
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// accept4(2).
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no address is asked for; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// shutdown(2).
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// What an ioctl(2) that writes one number answers.
pub(super) fn asks(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<i32, Errno> {
    let mut answer = 0i32;
    // SAFETY: the requests that are passed here write one number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut answer) })?;
    Ok(answer)
}

/// Bytes that can be read: of a datagram socket, those of the first message.
pub fn readable(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    asks(fd, SIOCINQ).map(|n| n.max(0) as usize)
}

/// Whether the byte that was sent out of band comes next.
pub fn at_mark(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    asks(fd, SIOCATMARK).map(|n| n != 0)
}

/// The file that a unix socket is bound to (`O_PATH`). `ENOENT` when it has none.
pub fn bound_file(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE, 0) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The network namespace that a socket lives in, which is that of whoever made it (Linux 4.10).
pub fn network(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed; on success the descriptor is new and ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS, 0) }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What poll(2) says at once: a pending error (`POLLERR`), a byte out of band (`POLLPRI`), the end (`POLLRDHUP`).
pub fn events(fd: BorrowedFd<'_>) -> Result<i16, Errno> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLPRI | libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: one structure, as is said.
    Errno::result(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents)
}

/// Looks at what would be received next, at most `room` bytes, and leaves it. Does not wait (`EAGAIN`).
pub fn peek(fd: BorrowedFd<'_>, room: usize, flags: i32) -> Result<Message<OwnedFd>, Errno> {
    let mut data = vec![0u8; room];
    let mut control = vec![0u64; 512];
    // SAFETY: all-zero is valid for both structures; all buffers have the sizes that are passed and outlive the call.
    let (n, header, from) = unsafe {
        let mut from: libc::sockaddr_storage = std::mem::zeroed();
        let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: room };
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() * 8;
        let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        (libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags), header, from)
    };
    let n = Errno::result(n)? as usize;
    let mut message = Message { whole: n, name: name_of(&from, header.msg_namelen as usize), ..Message::default() };
    data.truncate(n);
    message.data = data;
    // SAFETY: the control buffer is alive and as long as the kernel says; CMSG_NXTHDR stays inside of it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while !at.is_null() {
            let len = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let bytes = std::slice::from_raw_parts(libc::CMSG_DATA(at), len);
            let words: Vec<i32> = bytes.chunks_exact(4).map(|w| i32::from_ne_bytes(w.try_into().unwrap_or_default())).collect();
            match ((*at).cmsg_level, (*at).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => message.fds.extend(words.iter().map(|&fd| OwnedFd::from_raw_fd(fd))),
                (libc::SOL_SOCKET, SCM_PIDFD) => words.iter().filter(|&&fd| fd >= 0).for_each(|&fd| drop(OwnedFd::from_raw_fd(fd))),
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if words.len() == 3 => {
                    message.credentials = Some((words[0], words[1] as u32, words[2] as u32));
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMFILE); // descriptors that found no room in our table
    }
    Ok(message)
}

/// How many of the next bytes of a stream are in pieces, as the kernel keeps them, that end within `window` bytes: the
/// memory behind the window cannot be written to, where a copy stops that is only done piece by piece.
pub fn peek_border(fd: BorrowedFd<'_>, window: usize) -> Result<usize, Errno> {
    let mut data = vec![0u8; window];
    let nowhere = std::ptr::without_provenance_mut(8);
    // SAFETY: all-zero is valid; the buffer has the size that is passed; nothing lies at the address behind it, and the
    // kernel says so.
    let n = unsafe {
        let mut parts = [
            libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: window },
            libc::iovec { iov_base: nowhere, iov_len: i32::MAX as usize / 2 - window.min(i32::MAX as usize / 4) },
        ];
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = 2;
        libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT)
    };
    match Errno::result(n) {
        Err(Errno::EFAULT) => Ok(0),
        n => n.map(|n| n as usize),
    }
}

/// Sends a message without waiting; to the peer when `message.name` is `None`. `EAGAIN` when there is no room.
pub fn send(fd: BorrowedFd<'_>, message: &Message<i32>, flags: i32) -> Result<usize, Errno> {
    let mut control = vec![0u64; 512];
    // SAFETY: all-zero is valid; all buffers have the sizes that are passed and outlive the call; the control buffer has
    // room for the most descriptors and credentials.
    let sent = unsafe {
        let mut part = libc::iovec { iov_base: message.data.as_ptr().cast_mut().cast(), iov_len: message.data.len() };
        let mut header: libc::msghdr = std::mem::zeroed();
        let to = message.name.as_deref().map(address).transpose()?;
        if let Some((address, len)) = &to {
            header.msg_name = (&raw const *address).cast_mut().cast();
            header.msg_namelen = *len;
        }
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() * 8;
        let mut used = 0;
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        let mut put = |kind: i32, words: &[i32]| {
            (*at).cmsg_level = libc::SOL_SOCKET;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(words.len() as u32 * 4) as _;
            std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), libc::CMSG_DATA(at), words.len() * 4);
            used += libc::CMSG_SPACE(words.len() as u32 * 4) as usize;
            at = control.as_mut_ptr().cast::<u8>().add(used).cast();
        };
        if message.fds.len() > MOST_FDS {
            return Err(Errno::EINVAL);
        }
        if !message.fds.is_empty() {
            put(libc::SCM_RIGHTS, &message.fds);
        }
        if let Some((pid, uid, gid)) = message.credentials {
            put(libc::SCM_CREDENTIALS, &[pid, uid as i32, gid as i32]);
        }
        header.msg_controllen = used;
        if used == 0 {
            header.msg_control = std::ptr::null_mut();
        }
        libc::sendmsg(fd.as_raw_fd(), &raw const header, flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    Errno::result(sent).map(|n| n as usize)
}
