//! TCP connections, read in repair (`TCP_REPAIR`): numbers, windows, both queues.
//!
//! A socket in repair is no use to its program. So each is taken into repair and out of it again before the next one, by a child
//! that ends what it has begun when meio is killed ([`apart`]); nothing but `SO_REUSEADDR` has to be put back.

use super::choice::Choice;
use super::inet::{self, Inet, LevelOption};
use crate::error::{Context, Error, Result};
use crate::resource::Tree;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, Found};
use crate::resource::graph::Part;
use crate::sys::namespace::{Kind, places, within};
use crate::sys::task::Files;
use crate::sys::tcp::{self, Info, Queue, Repair, Window};
use crate::sys::{apart, socket, tcp_diag};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One TCP socket that does not listen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// What every internet socket has.
    pub inet: Inet,
    /// State as the kernel numbers it: 1 for established, 7 for closed, …
    pub state: u8,
    /// Options of `IPPROTO_TCP` that are not those of a new socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<LevelOption>,
    /// Whether the program wants to read no more (shutdown(2) `SHUT_RD`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub deaf: bool,
    /// The connection, where there is one, or what of it can still be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// How it came to be closed; `None` for one that was never connected, or is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Both sides have sent all they had.
    Done,
    /// The other end, or nobody there, broke it off, and the program has not been told.
    Reset,
    /// It was never answered but with a refusal, and the program has not been told.
    Refused,
}

fn is_false(b: &bool) -> bool {
    !b
}

/// What a connection holds. Numbers do not count what a FIN uses up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Number behind the last byte that was received.
    pub received_to: u32,
    /// Number behind the last byte that was written.
    pub written_to: u32,
    /// What was received and not read.
    #[serde(default, with = "crate::image::bytes", skip_serializing_if = "Vec::is_empty")]
    pub received: Vec<u8>,
    /// What was written and not acknowledged.
    #[serde(default, with = "crate::image::bytes", skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<u8>,
    /// How many bytes of that were not sent either.
    #[serde(default)]
    pub unsent: u32,
    /// The largest segment that the other end takes.
    pub largest_segment: u32,
    /// Shifts of both windows: those of the other end, and its own.
    pub scales: (u8, u8),
    /// Selective acknowledgements.
    #[serde(default)]
    pub sack: bool,
    /// The clock of the timestamps, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<u32>,
    /// `struct tcp_repair_window`.
    pub window: Window,
    /// `TCP_WINDOW_CLAMP`.
    #[serde(default)]
    pub clamp: u32,
}

/// (level, name, room): options of tcp(7) that can be asked and set, in the order in which they are set.
const KNOWN: &[(i32, i32, usize)] = &[
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 4),
    (libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 4),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
    (libc::IPPROTO_TCP, libc::TCP_INQ, 4),
    (libc::IPPROTO_TCP, 37, 4), // TCP_TX_DELAY
    (libc::IPPROTO_TCP, 44, 4), // TCP_RTO_MAX_MS
    (libc::IPPROTO_TCP, 45, 4), // TCP_RTO_MIN_US
    (libc::IPPROTO_TCP, 46, 4), // TCP_DELACK_MAX_US
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, 4),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 4),
];

/// `IPPROTO_MPTCP`.
pub const MPTCP: i32 = 262;

/// What stands in the way of an image of a socket.
type Obstacle = (&'static str, &'static str);

impl Tcp {
    /// For the graph.
    pub fn part(&self) -> Part {
        let at = |a: &inet::Address| SocketAddr::from(*a).to_string();
        let ends: Vec<String> = self.inet.local.iter().chain(&self.inet.peer).map(at).collect();
        Part::of("TCP connection").detail(ends.join(" - "))
    }

    /// For people: `TCP connection 10.0.0.1:80 - 10.0.0.2:4711`.
    pub fn called(&self) -> String {
        let part = self.part();
        if part.detail.is_empty() { "TCP socket".to_owned() } else { format!("{} {}", part.kind, part.detail) }
    }

    /// Whether anything can arrive for it.
    pub fn reachable(&self) -> bool {
        self.state != tcp::CLOSE
    }

    /// Whether a FIN was written, and whether it has been acknowledged.
    pub fn ended(&self) -> (bool, bool) {
        let written = matches!(self.state, tcp::FIN_WAIT1 | tcp::FIN_WAIT2 | tcp::CLOSING | tcp::LAST_ACK);
        (written, self.state == tcp::FIN_WAIT2)
    }

    /// Whether a FIN was received.
    pub fn heard_the_end(&self) -> bool {
        matches!(self.state, tcp::CLOSE_WAIT | tcp::LAST_ACK | tcp::CLOSING)
    }

    /// Those of the options that may be set at all.
    pub fn may_set(option: &LevelOption) -> bool {
        KNOWN.iter().any(|k| (k.0, k.1) == (option.level, option.name))
    }
}

/// Saves a TCP socket as far as it can be seen from outside; [`complete`] adds its connection when the tree stands still.
pub fn capture(found: &Found, fd: BorrowedFd<'_>, capture: &mut Capture) -> Result<Option<FileKind>> {
    let Some(inet) = Inet::identify(found, fd, capture)? else { return Ok(None) };
    let mut tcp = Tcp { inet, ..Tcp::default() };
    // Of a tree that stands still all this is asked when it is read.
    if capture.standing && tcp.inet.protocol != MPTCP && capture.decisions.tcp() == Choice::Keep {
        return Ok(Some(FileKind::Tcp(Box::new(tcp))));
    }
    let mut events = 0;
    if tcp.inet.protocol != MPTCP {
        (tcp.state, events) = (tcp::info(fd)?.state, socket::events(fd)?);
    }
    if let Some((reason, advice)) = obstacle(fd, &tcp, events)? {
        // What cannot be kept can be broken off.
        if capture.decisions.tcp() == Choice::Close && !tcp::in_repair(fd).is_ok_and(|yes| yes) {
            tcp.break_off();
            return Ok(Some(FileKind::Tcp(Box::new(tcp))));
        }
        let reason = format!("{}: {reason}", tcp.called());
        match tcp.inet.protocol {
            MPTCP => capture.refuse(found.pid, found.object(), reason, advice),
            _ if tcp::upper(fd).is_some() => capture.refuse(found.pid, found.object(), reason, advice),
            _ => capture.refuse_for_now(found.pid, found.object(), reason, advice),
        }
        return Ok(None);
    }
    Ok(Some(FileKind::Tcp(Box::new(tcp))))
}

fn obstacle(fd: BorrowedFd<'_>, tcp: &Tcp, events: i16) -> Result<Option<Obstacle>> {
    if tcp.inet.protocol == MPTCP {
        return Ok(Some((
            "MPTCP does not show the numbers of its subflows",
            "let the program use plain TCP (sysctl net.mptcp.enabled=0), or break it off (--tcp close)",
        )));
    }
    if tcp::upper(fd).is_some() {
        return Ok(Some((
            "the kernel encrypts it (kTLS), and does not give its keys back",
            "let the program do that itself, or break the connection off (--tcp close)",
        )));
    }
    Ok(match tcp.state {
        tcp::SYN_RECV => Some(("it is being opened (TCP Fast Open)", "wait until the other end has answered")),
        _ if tcp::in_repair(fd)? => Some(("somebody else has it in repair (TCP_REPAIR)", "end whoever repairs it first")),
        tcp::CLOSE => None,
        _ if events & libc::POLLPRI != 0 => Some(("urgent data wait in it", "let the program read them first (MSG_OOB)")),
        _ if events & libc::POLLERR != 0 => Some(("an error or a notice waits in it to be read", "let the program read it first")),
        _ => None,
    })
}

/// Refuses connections whose segments are signed: only the list of all sockets shows that. Looked for before the tree stands
/// still, as it takes its time.
pub fn refuse_signed(capture: &mut Capture) -> Result<()> {
    if capture.standing || capture.decisions.tcp() == Choice::Close {
        return Ok(());
    }
    let mut own: BTreeMap<Option<u32>, HashMap<String, FileId>> = BTreeMap::new();
    for file in &capture.files {
        if let FileKind::Tcp(tcp) = &file.kind
            && tcp.reachable()
        {
            own.entry(tcp.inet.network).or_default().insert(file.link.clone(), file.id);
        }
    }
    for (network, files) in own {
        let Some(Ok(like)) = files.values().map(|&id| capture.duplicate(capture.holders[id as usize])).find(Result::is_ok) else {
            continue;
        };
        let inside = match network {
            Some(_) => Some(socket::network(like.as_fd())?),
            None => None,
        };
        let all = within(&places(inside.iter().map(|fd| (fd, Kind::Net))), || tcp_diag::list(!0))??;
        for entry in all.iter().filter(|e| e.signed) {
            let Some(&id) = files.get(&format!("socket:[{}]", entry.inode)) else { continue };
            let (FileKind::Tcp(tcp), (pid, fd)) = (&capture.files[id as usize].kind, capture.holders[id as usize]) else { continue };
            let reason = format!("{}: its segments are signed, and the kernel does not give the key back (TCP_MD5SIG)", tcp.called());
            capture.refuse(pid, format!("fd {fd} (socket:[{}])", entry.inode), reason, "close it first, or break it off (--tcp close)");
        }
    }
    Ok(())
}

/// A connection that is in repair, for whoever has to end that.
type InRepair = Option<((i32, i32), i32)>;

/// One socket that is to be read.
struct Job {
    id: FileId,
    holder: (i32, i32),
    tcp: Tcp,
    told: Option<Result<Option<Obstacle>>>,
}

/// Children that read connections at the same time.
const READERS: usize = 4;
/// Below that one of them is as fast.
const MANY: usize = 64;

/// Reads all connections. The tree must stand still, and nothing may arrive.
pub fn complete(capture: &mut Capture) -> Result<()> {
    let mut jobs = Vec::new();
    for (file, holder) in capture.files.iter_mut().zip(&capture.holders) {
        if let FileKind::Tcp(tcp) = &mut file.kind {
            jobs.push(Job { id: file.id, holder: *holder, tcp: std::mem::take(&mut **tcp), told: None });
        }
    }
    if jobs.is_empty() {
        return Ok(());
    }
    let mut known = std::mem::take(&mut capture.inet);
    for job in &jobs {
        if !known.protocols.contains_key(&job.tcp.inet.key()) {
            prepare(capture.duplicate(job.holder)?.as_fd(), &job.tcp.inet, &mut known)?;
        }
    }
    let readers = std::thread::available_parallelism().map_or(1, |n| n.get().min(READERS));
    let share = if jobs.len() < MANY { jobs.len() } else { jobs.len().div_ceil(readers) };
    let done: Result<Vec<()>> = std::thread::scope(|scope| {
        let known = &known;
        if share == jobs.len() {
            return read_all(&mut jobs, known).map(|()| Vec::new());
        }
        let reading: Vec<_> = jobs.chunks_mut(share).map(|share| scope.spawn(|| read_all(share, known))).collect();
        reading.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    capture.inet = known;
    done?;
    for job in jobs {
        let (holder, what) = (job.holder, job.tcp.called());
        if let FileKind::Tcp(place) = &mut capture.files[job.id as usize].kind {
            **place = job.tcp;
        }
        let told = job.told.unwrap_or_else(|| Err(Error::other("it was not read")));
        if let Some((reason, advice)) = told.context(|| format!("reading {what}"))? {
            capture.refuse_for_now(holder.0, format!("fd {}", holder.1), format!("{what}: {reason}"), advice);
        }
    }
    Ok(())
}

fn prepare(fd: BorrowedFd<'_>, inet: &Inet, known: &mut inet::Known) -> Result<()> {
    known.prepare(fd, inet)?;
    let new = inet::another(fd, inet)?;
    known.protocols.insert(inet.key(), inet::answers(new.as_fd(), KNOWN));
    Ok(())
}

/// Reads some, in a child of the calling thread's.
fn read_all(jobs: &mut [Job], known: &inet::Known) -> Result<()> {
    let meio = nix::unistd::getpid();
    let mut open: InRepair = None;
    let mut files: Option<Files> = None;
    let done = apart::run(0, || {
        for job in jobs {
            // Nobody wants to know any more.
            if nix::unistd::getppid() != meio {
                break;
            }
            let (pid, fd) = job.holder;
            if files.as_ref().is_none_or(|f| f.pid() != pid) {
                files = Some(Files::of(pid));
            }
            let Some(own) = files.as_ref().map(|f| f.get(fd)) else { break };
            let read = |own: OwnedFd| -> Result<Option<Obstacle>> {
                options(own.as_fd(), &mut job.tcp, known)?;
                if job.tcp.end.is_some() {
                    return Ok(None);
                }
                stream(own.as_fd(), &mut job.tcp, (job.holder, &mut open))
            };
            job.told = Some(own.map_err(Error::from).and_then(read));
        }
    });
    // Its end must not be that of a connection, too.
    if let (Err(Errno::ECANCELED), Some(((pid, fd), reuse))) = (&done, open) {
        leave(Files::of(pid).get(fd)?.as_fd(), reuse)?;
    }
    done.context(|| "reading TCP connections")
}

fn options(fd: BorrowedFd<'_>, tcp: &mut Tcp, known: &inet::Known) -> Result<()> {
    tcp.inet.compare(fd, known)?;
    tcp.inet.more.retain(|o| (o.level, o.name) != (libc::SOL_SOCKET, libc::SO_INCOMING_CPU));
    let new = known.protocols.get(&tcp.inet.key());
    tcp.options = new.map(|new| inet::differing(fd, KNOWN, new)).unwrap_or_default();
    Ok(())
}

fn leave(fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    let left = tcp::repair(fd, Repair::Off);
    if reuse != 0 {
        socket::set_number(fd, libc::SO_REUSEADDR, reuse)?;
    }
    Ok(left?)
}

/// The connection of a socket; or what makes that impossible just now.
fn stream(fd: BorrowedFd<'_>, tcp: &mut Tcp, (holder, open): ((i32, i32), &mut InRepair)) -> Result<Option<Obstacle>> {
    let info = tcp::info(fd)?;
    tcp.state = info.state;
    let events = socket::events(fd)?;
    // One that has been broken off already has no obstacle any more.
    if tcp.end.is_none()
        && let Some(obstacle) = obstacle(fd, tcp, events)?
    {
        return Ok(Some(obstacle));
    }
    match info.state {
        tcp::CLOSE => return closed(fd, tcp, info, events),
        tcp::SYN_SENT => tcp.inet.peer = Some(addressee(fd, tcp)?),
        _ => {}
    }
    tcp.deaf = events & libc::POLLRDHUP != 0 && !tcp.heard_the_end();
    let waiting = socket::readable(fd)?;
    let (used, unsent) = tcp::outstanding(fd)?;
    let clock = if info.timestamps { Some(tcp::clock(fd)?) } else { None };
    let clamp = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 4)?;
    let (fin, acknowledged) = tcp.ended();
    let fin_open = u32::from(fin && !acknowledged);
    let (used, unsent) = if info.state == tcp::SYN_SENT { (0, 0) } else { (used, unsent.saturating_sub(fin_open)) };
    let reuse = socket::number(fd, libc::SO_REUSEADDR)?;
    *open = Some((holder, reuse));
    let asked = tcp::repair(fd, Repair::On).map_err(Error::from).and_then(|()| {
        tcp::choose(fd, Queue::Received)?;
        let received_to = tcp::sequence(fd)?.wrapping_sub(u32::from(tcp.heard_the_end()));
        let received = if waiting > 0 { peek_all(fd, waiting)? } else { Vec::new() };
        tcp::choose(fd, Queue::Written)?;
        let written_to = tcp::sequence(fd)?.wrapping_sub(u32::from(fin));
        let length = used.saturating_sub(fin_open) as usize;
        let written = if length > 0 { tcp::peek_unacknowledged(fd, length)? } else { Vec::new() };
        let (window, largest_segment) = (tcp::window(fd)?, tcp::largest_segment(fd)?);
        Ok((received_to, received, written_to, written, length, window, largest_segment))
    });
    let left = leave(fd, reuse);
    *open = None;
    let (received_to, received, written_to, written, length, window, largest_segment) = asked?;
    left?;
    if received.len() != waiting || written.len() != length {
        return Ok(Some(("its queues change while they are read", "try again")));
    }
    tcp.stream = Some(Stream {
        received_to,
        written_to,
        received,
        written,
        unsent,
        largest_segment,
        scales: info.scales,
        sack: info.sack,
        clock,
        window,
        clamp: clamp.try_into().map(u32::from_ne_bytes).unwrap_or(0),
    });
    Ok(None)
}

/// A socket without a connection: there never was one, or what remains is unread bytes and an error.
fn closed(fd: BorrowedFd<'_>, tcp: &mut Tcp, info: Info, events: i16) -> Result<Option<Obstacle>> {
    if events & (libc::POLLRDHUP | libc::POLLERR) == 0 {
        return Ok(None);
    }
    tcp.end = match events & libc::POLLERR != 0 {
        false => Some(End::Done),
        // Both ends have agreed on something.
        true if info.agreed || info.heard > 1 => Some(End::Reset),
        true if info.heard == 1 => Some(End::Refused),
        true => return Ok(Some(("the error of a connection that was not answered waits in it", "let the program read it first"))),
    };
    let waiting = socket::readable(fd)?;
    let received = if waiting > 0 { peek_all(fd, waiting)? } else { Vec::new() };
    tcp.stream = (!received.is_empty()).then_some(Stream { received, ..Stream::default() });
    Ok(None)
}

/// Whom a socket is being connected to, which getpeername(2) does not tell yet.
fn addressee(fd: BorrowedFd<'_>, tcp: &Tcp) -> Result<inet::Address> {
    let inode = nix::sys::stat::fstat(fd)?.st_ino;
    let network = socket::network(fd)?;
    let table = if tcp.inet.family == libc::AF_INET6 { "tcp6" } else { "tcp" };
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
    let text = within(&places([(&network, Kind::Net)]), read)??;
    let found = text.lines().find_map(|line| remote(line, inode));
    found.ok_or_else(|| Error::other("it is not in the list of TCP sockets"))
}

/// The address of the other end in a line of `/proc/net/tcp`, when it is that of this socket.
fn remote(line: &str, inode: u64) -> Option<inet::Address> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if fields.get(9)?.parse::<u64>().ok()? != inode {
        return None;
    }
    let (address, port) = fields.get(2)?.split_once(':')?;
    // Words of the machine's own order.
    let words = (0..address.len() / 8).map(|n| u32::from_str_radix(address.get(8 * n..8 * n + 8)?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// Looks at what was received, from the first byte on: `SO_PEEK_OFF` would begin elsewhere, and move.
fn peek_all(fd: BorrowedFd<'_>, waiting: usize) -> Result<Vec<u8>> {
    let offset = socket::number(fd, libc::SO_PEEK_OFF).unwrap_or(-1);
    if offset < 0 {
        return Ok(tcp::peek(fd, waiting)?);
    }
    socket::set_number(fd, libc::SO_PEEK_OFF, -1)?;
    let peeked = tcp::peek(fd, waiting);
    socket::set_number(fd, libc::SO_PEEK_OFF, offset)?;
    Ok(peeked?)
}

/// Takes all connections of a tree that its image keeps into repair for good: they end with their tree, and nobody is told.
pub fn silence(tree: &Tree, capture: &Capture) -> Result<()> {
    for (file, holder) in tree.files.iter().zip(&capture.holders) {
        if matches!(&file.kind, FileKind::Tcp(tcp) if tcp.reachable()) {
            tcp::repair(capture.duplicate(*holder)?.as_fd(), Repair::On).context(|| "silencing a TCP connection")?;
        }
    }
    Ok(())
}

impl Stream {
    /// What both ends agreed on.
    pub fn info(&self) -> Info {
        Info { state: tcp::ESTABLISHED, timestamps: self.clock.is_some(), sack: self.sack, scales: self.scales, ..Info::default() }
    }

    /// The part of what was written that was sent, and the one that was not.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        self.written.split_at(self.written.len().saturating_sub(self.unsent as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_found_in_the_list() {
        let line =
            "   0: 0100007F:D431 0200000A:0050 02 00000000:00000000 00:00000000 00000000  0  0 4711 1 0000000000000000 20 4 30 10 -1";
        assert_eq!(remote(line, 4711).map(SocketAddr::from), Some("10.0.0.2:80".parse().unwrap()));
        assert_eq!(remote(line, 4712), None);
        let six = "0: 00000000000000000000000001000000:D431 000080FE000000000000000001000000:01BB 02 0:0 0:0 0 0 0 9 1 0 0 0 0 0";
        assert_eq!(remote(six, 9).map(SocketAddr::from), Some("[fe80::1]:443".parse().unwrap()));
        assert!(remote("", 1).is_none() && remote("sl local rem", 1).is_none());
    }
}
