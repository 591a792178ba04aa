//! TCP connections as the kernel shows them to who repairs them: `TCP_REPAIR` of linux/tcp.h.

use super::socket;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `TCP_ESTABLISHED` of `TCP_INFO`, and the other states.
pub const ESTABLISHED: u8 = 1;
/// A SYN is on its way.
pub const SYN_SENT: u8 = 2;
/// A SYN came, and was answered.
pub const SYN_RECV: u8 = 3;
/// This end has said that it sends no more.
pub const FIN_WAIT1: u8 = 4;
/// The same, and the other end has heard it.
pub const FIN_WAIT2: u8 = 5;
/// No connection.
pub const CLOSE: u8 = 7;
/// The other end has said that it sends no more.
pub const CLOSE_WAIT: u8 = 8;
/// Both have, the other end first; it has not heard it yet.
pub const LAST_ACK: u8 = 9;
/// Waits for connections.
pub const LISTEN: u8 = 10;
/// Both have at once; the other end has not heard it yet.
pub const CLOSING: u8 = 11;

const TCP_MAXSEG: i32 = 2;
const TCP_INFO: i32 = 11;
const TCP_REPAIR: i32 = 19;
const TCP_IS_MPTCP: i32 = 43;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const TCP_ULP: i32 = 31;
/// ioctl(2): bytes that were written and not acknowledged; a FIN counts.
const SIOCOUTQ: libc::c_ulong = 0x5411;
/// ioctl(2): those of them that were not sent.
const SIOCOUTQNSD: libc::c_ulong = 0x894b;

/// What `TCP_INFO` says of how both ends agreed to talk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// [`ESTABLISHED`], …
    pub state: u8,
    /// Timestamps, RFC 7323.
    pub timestamps: bool,
    /// Selective acknowledgements, RFC 2018.
    pub sack: bool,
    /// Shifts of the windows of the other end and of this one.
    pub scales: (u8, u8),
    /// Both ends have agreed on any of these: they have been connected.
    pub agreed: bool,
    /// How many segments have come in.
    pub heard: u32,
}

/// Asks `TCP_INFO`.
pub fn info(fd: BorrowedFd<'_>) -> Result<Info, Errno> {
    let mut bytes = [0u8; 144];
    let len = socket::option_into(fd, libc::IPPROTO_TCP, TCP_INFO, &mut bytes)?;
    if len < bytes.len() {
        return Err(Errno::EINVAL);
    }
    let scales = if bytes[5] & 4 != 0 { (bytes[6] & 15, bytes[6] >> 4) } else { (0, 0) };
    let heard = u32::from_ne_bytes([bytes[140], bytes[141], bytes[142], bytes[143]]);
    Ok(Info { state: bytes[0], timestamps: bytes[5] & 1 != 0, sack: bytes[5] & 2 != 0, scales, agreed: bytes[5] & 7 != 0, heard })
}

fn number(fd: BorrowedFd<'_>, name: i32) -> Result<u32, Errno> {
    let mut bytes = [0u8; 4];
    socket::option_into(fd, libc::IPPROTO_TCP, name, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

fn set(fd: BorrowedFd<'_>, name: i32, value: u32) -> Result<(), Errno> {
    socket::set_option(fd, libc::IPPROTO_TCP, name, &value.to_ne_bytes())
}

/// What becomes of a connection that was in repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It is in repair: nothing is sent, what is written goes into its queues, and it ends without a word. `SO_REUSEADDR`
    /// is lost by the end of it.
    On,
    /// It works; nothing is sent because of that.
    Off,
}

/// Takes a socket into repair or out of it.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over its network namespace, or for a listening one.
pub fn repair(fd: BorrowedFd<'_>, how: Repair) -> Result<(), Errno> {
    let value: i32 = match how {
        Repair::On => 1,
        Repair::Off => -1,
    };
    set(fd, TCP_REPAIR, value as u32)
}

/// Whether a socket is in repair.
pub fn in_repair(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    number(fd, TCP_REPAIR).map(|n| n != 0)
}

/// One of the two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What was received and not read.
    Received = 1,
    /// What was written and not acknowledged.
    Written = 2,
}

/// Turns to a queue: what is received, sent and numbered from here on is of it. Only in repair.
pub fn choose(fd: BorrowedFd<'_>, queue: Queue) -> Result<(), Errno> {
    set(fd, TCP_REPAIR_QUEUE, queue as u32)
}

/// The number behind the last byte of the chosen queue.
pub fn sequence(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    number(fd, TCP_QUEUE_SEQ)
}

/// Numbers the first byte of the chosen queue. Only before it is connected.
pub fn set_sequence(fd: BorrowedFd<'_>, first: u32) -> Result<(), Errno> {
    set(fd, TCP_QUEUE_SEQ, first)
}

/// Windows (`struct tcp_repair_window`): the segment that the last window came with, the window to send into, the
/// largest one there was, the window that was offered, and from where on.
pub type Window = [u32; 5];

/// The windows of a connection in repair.
pub fn window(fd: BorrowedFd<'_>) -> Result<Window, Errno> {
    let mut bytes = [0u8; 20];
    socket::option_into(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &mut bytes)?;
    Ok(std::array::from_fn(|n| u32::from_ne_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]])))
}

/// Sets the windows of a connection in repair, whose queue of received bytes is filled.
///
/// # Errors
/// `EINVAL` for windows that contradict each other or the queue.
pub fn set_window(fd: BorrowedFd<'_>, window: Window) -> Result<(), Errno> {
    let bytes: Vec<u8> = window.iter().flat_map(|w| w.to_ne_bytes()).collect();
    socket::set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes)
}

/// The largest segment that the other end takes; only in repair.
pub fn largest_segment(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    number(fd, TCP_MAXSEG)
}

/// What both ends agreed on, for a connection in repair that has sent nothing.
pub fn agree(fd: BorrowedFd<'_>, largest_segment: u32, info: Info) -> Result<(), Errno> {
    let (theirs, own) = info.scales;
    // Kind of the option in TCP's own numbers, and its value.
    let mut list = vec![(2u32, largest_segment), (3, u32::from(theirs) | u32::from(own) << 16)];
    list.extend(info.sack.then_some((4, 0)));
    list.extend(info.timestamps.then_some((8, 0)));
    let bytes: Vec<u8> = list.iter().flat_map(|(kind, value)| [kind.to_ne_bytes(), value.to_ne_bytes()].concat()).collect();
    socket::set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)
}

/// The clock that the timestamps of a connection show: milliseconds from anywhere, or microseconds when its lowest bit is set.
pub fn clock(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    number(fd, TCP_TIMESTAMP)
}

/// Lets that clock go on from `now`; only in repair.
pub fn set_clock(fd: BorrowedFd<'_>, now: u32) -> Result<(), Errno> {
    set(fd, TCP_TIMESTAMP, now)
}

/// The protocol above TCP that the kernel speaks itself (`tls`), if any.
pub fn upper(fd: BorrowedFd<'_>) -> Option<String> {
    let mut name = [0u8; 16];
    let len = socket::option_into(fd, libc::IPPROTO_TCP, TCP_ULP, &mut name).ok()?;
    let name: Vec<u8> = name[..len].iter().copied().take_while(|b| *b != 0).collect();
    (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}

/// Whether a socket that was made for MPTCP and is connected has fallen back to TCP (Linux 5.16).
pub fn has_fallen_back(fd: BorrowedFd<'_>) -> bool {
    number(fd, TCP_IS_MPTCP) == Ok(0)
}

/// How many numbers were used and not acknowledged, and how many of them were not sent; a FIN counts as one.
pub fn outstanding(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    Ok((socket::asks(fd, SIOCOUTQ)? as u32, socket::asks(fd, SIOCOUTQNSD)? as u32))
}

/// Looks at the first `len` bytes of the chosen queue of a connection in repair, or of what was received.
pub fn peek(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; len];
    let mut at = 0;
    // Out of repair and in the queue of received bytes a call may stop at a border; it always begins at the front.
    while at < len {
        let n = look(fd, &mut bytes)?;
        if n <= at {
            break;
        }
        at = n;
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// Looks at the last `len` bytes of the queue of written bytes, in repair: those that were not acknowledged. The kernel
/// keeps segments as a whole until all of them was, and begins with the first byte of the first one.
pub fn peek_unacknowledged(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; len];
    loop {
        // How many there are, also when they found no room.
        let n = look(fd, &mut bytes)?;
        if n <= bytes.len() {
            bytes.truncate(n);
            bytes.drain(..n.saturating_sub(len));
            return Ok(bytes);
        }
        bytes.resize(n, 0);
    }
}

fn look(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer has the size that is passed.
    let n = unsafe { libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    Errno::result(n).map(|n| n as usize)
}

/// Appends to the chosen queue, or writes to a connection that works; how many bytes found room.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `bytes` within their length.
    let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    Errno::result(n).map(|n| n as usize)
}
