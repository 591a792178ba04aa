//! How connections are read: in repair (`TCP_REPAIR`).
//!
//! A socket in repair is no use to its program. So each is taken into repair and out of it again before the next one, by a child
//! that ends what it has begun when meio is killed ([`apart`]); nothing but `SO_REUSEADDR` has to be put back.

use super::{End, KNOWN, Obstacle, Stream, Tcp, obstacle};
use crate::error::{Context, Error, Result};
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::socket::inet::{self, Inet, LevelOption};
use crate::resource::socket::steady::{self, Answer, Taken};
use crate::sys::file::{self, FileOwner};
use crate::sys::namespace::{Kind, places, within};
use crate::sys::priority::{inherited, processors};
use crate::sys::task::Files;
use crate::sys::tcp::{self, Info, Queue, Repair};
use crate::sys::{apart, socket};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

/// A connection that is in repair, for whoever has to end that.
type InRepair = Option<((i32, i32), i32)>;

/// One socket that is to be read.
#[derive(Debug)]
struct Job {
    id: FileId,
    holder: (i32, i32),
    tcp: Tcp,
    /// Its options are known.
    steady: Option<Taken>,
    owner: Option<FileOwner>,
    told: Option<Result<Option<Obstacle>>>,
}

/// Children that read connections at the same time.
const READERS: usize = 4;
/// Below that one of them is as fast.
const MANY: usize = 64;
/// Below that it takes longer to have a thread.
const FEW: usize = 8;

/// Connections that are being read by a thread of their own.
#[derive(Debug)]
pub struct Reading {
    thread: Option<JoinHandle<Read>>,
    /// So many files were looked through for them.
    files: usize,
}

/// What was read.
type Read = (Vec<Job>, inet::Known, Result<()>);

impl Reading {
    fn end(&mut self) -> Option<Read> {
        Some(self.thread.take()?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Reading {
    /// A connection in repair is no use to a tree that runs.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Begins to read the connections that have been found, while the caller looks at something else. The tree must stand still until
/// they are [complete], and nothing may arrive.
///
/// # Errors
/// When it cannot be found out what new sockets are like.
pub fn begin(capture: &mut Capture) -> Result<()> {
    let found = capture.files.iter().filter(|file| matches!(file.kind, FileKind::Tcp(_))).count();
    if found < FEW || processors() < 2 || !capture.refusals.is_empty() {
        return Ok(());
    }
    let files = capture.files.len();
    let (jobs, known) = (jobs(capture, 0)?, std::mem::take(&mut capture.inet));
    // Whoever is urgent waits for it.
    let thread = inherited(|| std::thread::Builder::new().name("sockets".into()).spawn(move || read(jobs, known)));
    capture.reading = Some(Reading { thread: Some(thread.context(|| "reading TCP connections")?), files });
    Ok(())
}

/// The connections among the files from this one on. What new sockets like them are like is known then.
fn jobs(capture: &mut Capture, from: usize) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for (file, holder) in capture.files.iter_mut().zip(&capture.holders).skip(from) {
        if let FileKind::Tcp(tcp) = &mut file.kind {
            let (tcp, steady) = (std::mem::take(&mut **tcp), capture.recall.connections.take(file.id));
            jobs.push(Job { id: file.id, holder: *holder, tcp, steady, owner: None, told: None });
        }
    }
    let mut known = std::mem::take(&mut capture.inet);
    for job in jobs.iter().filter(|job| job.steady.is_none()) {
        if !known.protocols.contains_key(&job.tcp.inet.key()) {
            prepare(capture.duplicate(job.holder)?.as_fd(), &job.tcp.inet, &mut known)?;
        }
    }
    capture.inet = known;
    Ok(jobs)
}

/// Reads some, by several children where they are many.
fn read(mut jobs: Vec<Job>, known: inet::Known) -> Read {
    let readers = processors().min(READERS);
    let share = if jobs.len() < MANY { jobs.len() } else { jobs.len().div_ceil(readers) };
    let done: Result<Vec<()>> = std::thread::scope(|scope| {
        let known = &known;
        if share == jobs.len() {
            return read_all(&mut jobs, known).map(|()| Vec::new());
        }
        let reading: Vec<_> = jobs.chunks_mut(share).map(|share| scope.spawn(|| read_all(share, known))).collect();
        reading.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    (jobs, known, done.map(drop))
}

/// Reads all connections that are not read yet. The tree must stand still, and nothing may arrive. Answers with the owners of
/// those that were only read here.
pub fn complete(capture: &mut Capture) -> Result<Vec<(FileId, FileOwner)>> {
    let mut all = Vec::new();
    let mut from = 0;
    if let Some(mut reading) = capture.reading.take()
        && let Some((jobs, known, done)) = reading.end()
    {
        (from, capture.inet, all) = (reading.files, known, jobs);
        done?;
    }
    let rest = jobs(capture, from)?;
    if !rest.is_empty() {
        let (jobs, known, done) = read(rest, std::mem::take(&mut capture.inet));
        capture.inet = known;
        all.extend(jobs);
        done?;
    }
    match all.iter().filter(|job| job.steady.is_some()).count() {
        0 => {}
        n => capture.notes.push(format!("connections whose options were known before: {n}")),
    }
    let mut owners = Vec::new();
    for job in all {
        let (holder, what) = (job.holder, job.tcp.called());
        capture.warnings.extend(job.tcp.notices());
        if let Some(owner) = job.owner {
            owners.push((job.id, owner));
            steady::remember_owner(job.id, owner, capture);
        }
        steady::remember(&job.tcp, job.id, capture);
        if let FileKind::Tcp(place) = &mut capture.files[job.id as usize].kind {
            **place = job.tcp;
        }
        let told = job.told.unwrap_or_else(|| Err(Error::other("it was not read")));
        if let Some((reason, advice)) = told.context(|| format!("reading {what}"))? {
            capture.refuse_for_now(holder.0, format!("fd {}", holder.1), format!("{what}: {reason}"), advice);
        }
    }
    Ok(owners)
}

/// Sees to it that what a new socket like this one answers is known.
pub fn prepare(fd: BorrowedFd<'_>, inet: &Inet, known: &mut inet::Known) -> Result<()> {
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
    let work = || {
        for job in jobs {
            // Nobody wants to know any more.
            if nix::unistd::getppid() != meio {
                break;
            }
            let (pid, fd) = job.holder;
            let held = job.steady.as_mut().and_then(|steady| steady.held.as_mut()?.0.take());
            if held.is_none() && files.as_ref().is_none_or(|f| f.pid() != pid) {
                files = Some(Files::of(pid));
            }
            let get = || files.as_ref().map_or(Err(Errno::ESRCH), |f| f.get(fd));
            let own = held.map_or_else(get, Ok);
            let read = |own: OwnedFd| -> Result<Option<Obstacle>> {
                match &job.steady {
                    Some(steady) => job.owner = Some(change(own.as_fd(), &mut job.tcp, steady)?),
                    None => options(own.as_fd(), &mut job.tcp, known)?,
                }
                if job.tcp.end.is_some() {
                    return Ok(None);
                }
                stream(own.as_fd(), &mut job.tcp, (job.holder, &mut open), job.steady.is_none())
            };
            job.told = Some(own.map_err(Error::from).and_then(read));
        }
    };
    let done = inherited(|| apart::run(0, work));
    // Its end must not be that of a connection, too.
    if let (Err(Errno::ECANCELED), Some(((pid, fd), reuse))) = (&done, open) {
        leave(Files::of(pid).get(fd)?.as_fd(), reuse)?;
    }
    done.context(|| "reading TCP connections")
}

/// Asks for all options.
pub fn options(fd: BorrowedFd<'_>, tcp: &mut Tcp, known: &inet::Known) -> Result<()> {
    tcp.inet.compare(fd, known)?;
    tcp.inet.more.retain(|o| (o.level, o.name) != (libc::SOL_SOCKET, libc::SO_INCOMING_CPU));
    let new = known.protocols.get(&tcp.inet.key());
    tcp.options = new.map(|new| inet::differing(fd, KNOWN, new)).unwrap_or_default();
    Ok(())
}

/// Place of `TCP_QUICKACK` among the options.
fn place_of_quick() -> usize {
    KNOWN.iter().position(|k| k.1 == libc::TCP_QUICKACK).unwrap_or(KNOWN.len())
}

/// What a new socket like this one says of `TCP_QUICKACK`, where that is known.
pub fn quick<'k>(inet: &Inet, known: &'k inet::Known) -> Option<&'k Answer> {
    known.protocols.get(&inet.key())?.get(place_of_quick())
}

/// Asks for what changes although no option is set: addresses, owners, sizes of buffers, `TCP_QUICKACK`.
fn change(fd: BorrowedFd<'_>, tcp: &mut Tcp, steady: &Taken) -> Result<FileOwner> {
    let ids = match &steady.held {
        Some((_, ids)) => *ids,
        None => nix::sys::stat::fstat(fd).map(|meta| (meta.st_uid, meta.st_gid))?,
    };
    tcp.inet.refresh(fd, ids)?;
    let at = place_of_quick();
    let asked = KNOWN.get(at..=at).unwrap_or_default();
    let now = inet::differing(fd, asked, std::slice::from_ref(&steady.quick));
    let before = |o: &LevelOption| KNOWN[..at].iter().any(|k| k.1 == o.name);
    tcp.options.retain(|o| o.name != libc::TCP_QUICKACK);
    let place = tcp.options.iter().take_while(|o| before(o)).count();
    tcp.options.splice(place..place, now);
    steady.owner.map_or_else(|| Ok(file::owner(fd)?), Ok)
}

fn leave(fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    let left = tcp::repair(fd, Repair::Off);
    if reuse != 0 {
        socket::set_number(fd, libc::SO_REUSEADDR, reuse)?;
    }
    Ok(left?)
}

/// The connection of a socket; or what makes that impossible just now.
///
/// `set`: whether options may stand in the way that a program sets.
fn stream(fd: BorrowedFd<'_>, tcp: &mut Tcp, (holder, open): ((i32, i32), &mut InRepair), set: bool) -> Result<Option<Obstacle>> {
    let info = tcp::info(fd)?;
    tcp.state = info.state;
    let events = socket::events(fd)?;
    // One that has been broken off already has no obstacle any more.
    if tcp.end.is_none()
        && let Some(obstacle) = obstacle(fd, tcp, events, set)?
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
    let reuse = tcp.inet.options.iter().find(|o| o.name == libc::SO_REUSEADDR);
    let reuse = reuse.and_then(|o| o.value.as_slice().try_into().ok()).map_or(0, i32::from_ne_bytes);
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
