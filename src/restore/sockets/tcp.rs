//! TCP connections on their way back. All of them are made in repair, where they say nothing and hear what comes, before
//! anything of the tree runs; they go to work together, last of all.

mod ends;
mod nudge;

pub use nudge::Nudges;

use crate::error::{Context, Error, Refusal, Result};
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::socket::tcp::{Stream, Tcp};
use crate::resource::socket::{choice, inet};
use crate::resource::socket::{options, unix};
use crate::restore::places::Places;
use crate::sys::namespace::Kind::Net;
use crate::sys::namespace::{places as entered, within};
use crate::sys::tcp::{self, Queue, Repair, Window};
use crate::sys::wire::Wire;
use crate::sys::{apart, file, socket};
use ends::Near;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The TCP sockets of a tree that do not listen.
#[derive(Default)]
pub struct Connections {
    made: HashMap<FileId, OwnedFd>,
    /// What speaks for the other ends, by network namespace.
    wires: HashMap<Option<u32>, Wire>,
    /// What comes back differently.
    pub warnings: Vec<String>,
}

/// Those of a tree.
fn all(tree: &Tree) -> impl Iterator<Item = (FileId, &Tcp)> {
    tree.files.iter().enumerate().filter_map(|(id, file)| match &file.kind {
        FileKind::Tcp(tcp) => Some((id as FileId, &**tcp)),
        _ => None,
    })
}

impl Connections {
    /// Makes all of them, at descriptors from `base` on.
    pub fn make(tree: &Tree, places: &Places<'_>, base: i32) -> Result<Connections> {
        let mut connections = Connections::default();
        let mut networks: BTreeMap<Option<u32>, Vec<(FileId, &Tcp)>> = BTreeMap::new();
        for (id, tcp) in all(tree) {
            networks.entry(tcp.inet.network).or_default().push((id, tcp));
        }
        let mut seen = HashSet::new();
        if let Some((_, tcp)) = all(tree).find(|(_, t)| t.reachable() && !seen.insert((t.inet.network, t.inet.local, t.inet.peer))) {
            return Err(Error::image(format!("image damaged: {} is there twice", tcp.called())));
        }
        let mut refusals = Vec::new();
        for (network, list) in networks {
            let inside = match network {
                Some(_) => entered([(places.fd(network, Net)?, Net)]),
                None => Vec::new(),
            };
            let mut near = Near::default();
            let make = || {
                for &(id, tcp) in &list {
                    let what = tcp.called();
                    match make(tcp, &what, &mut near, &mut connections.warnings) {
                        Ok(made) => drop(connections.made.insert(id, above(&made, base)?)),
                        Err(e) if e.kind == crate::error::Kind::Image => return Err(e),
                        Err(e) => refusals.push(refusal(tree, id, &what, e)),
                    }
                }
                Ok(())
            };
            within(&inside, make).context(|| "entering a network namespace")??;
            connections.wires.extend(near.into_wire().map(|wire| (network, wire)));
        }
        if refusals.is_empty() { Ok(connections) } else { Err(Error::refused("cannot restore the connections of this tree", refusals)) }
    }

    /// One of them, once.
    pub fn take(&mut self, id: FileId, flags: u32) -> Result<OwnedFd> {
        let made = self.made.remove(&id).ok_or_else(|| Error::image(format!("image damaged: connection {id} is not there")))?;
        unix::set_flags(made.as_fd(), flags)?;
        Ok(made)
    }
}

/// The same socket at a number that the tree does not use.
fn above(made: &OwnedFd, base: i32) -> Result<OwnedFd> {
    let new = nix::fcntl::fcntl(made, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(base)).context(|| "duplicating a descriptor")?;
    Ok(file::own(new))
}

fn refusal(tree: &Tree, id: FileId, what: &str, error: Error) -> Refusal {
    let holder = tree.processes.iter().find_map(|p| Some((p.pid, p.descriptors.iter().find(|d| d.file == id)?.fd)));
    let (pid, fd) = holder.unwrap_or_default();
    let advice = error.help.unwrap_or_else(|| "run it again with -v to see each step".into());
    Refusal { pid, object: format!("fd {fd} ({what})"), reason: error.message, advice, ..Refusal::default() }
}

fn make(tcp: &Tcp, what: &str, near: &mut Near, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let none = Stream::default();
    let stream = tcp.stream.as_ref().unwrap_or(&none);
    if tcp.inet.kind != libc::SOCK_STREAM || tcp.inet.protocol != libc::IPPROTO_TCP || stream.scales.0 > 14 || stream.scales.1 > 14 {
        return Err(Error::image(format!("image damaged: {what} is an impossible one")));
    }
    let ends = || tcp.inet.local.iter().chain(&tcp.inet.peer);
    if tcp.reachable() && (ends().count() < 2 || ends().any(|a| a.port == 0)) || !tcp.options.iter().all(Tcp::may_set) {
        return Err(Error::image(format!("image damaged: {what} has impossible addresses or options")));
    }
    let made = tcp.inet.make(what, warnings)?;
    let fd = made.as_fd();
    options::apply(fd, &tcp.inet.options, what, warnings);
    options::widen(fd);
    // The one that a connection begins with.
    let (first, later): (Vec<_>, Vec<_>) = tcp.options.iter().cloned().partition(|o| o.name == libc::TCP_CONGESTION);
    inet::set(fd, &first, Tcp::may_set, what, warnings);
    match (tcp.state, tcp.end) {
        (tcp::CLOSE, None) => tcp.inet.bind(fd, what)?,
        (tcp::CLOSE, Some(end)) => {
            inet::set(fd, &later, Tcp::may_set, what, warnings);
            return ends::closed(made, tcp, end, what, near);
        }
        (tcp::SYN_SENT, _) => {
            ends::number(fd, stream.written_to.wrapping_sub(1)).context(|| format!("making {what}"))?;
            tcp.inet.bind(fd, what)?;
        }
        _ => {
            tcp::repair(fd, Repair::On).context(|| format!("making {what}"))?;
            connect(fd, tcp, stream, what, near)?;
            fill(fd, tcp, stream).context(|| format!("filling {what}"))?;
            near.wire()?;
            ends::bring(fd, tcp, near).context(|| format!("closing {what}"))?;
        }
    }
    inet::set(fd, &later, Tcp::may_set, what, warnings);
    Ok(made)
}

/// The connection as it was, with nothing in it.
fn connect(fd: BorrowedFd<'_>, tcp: &Tcp, stream: &Stream, what: &str, near: &mut Near) -> Result<()> {
    let doing = || format!("making {what}");
    let (Some(local), Some(peer)) = (tcp.inet.local, tcp.inet.peer) else {
        return Err(Error::image(format!("image damaged: {what} has no addresses")));
    };
    tcp::choose(fd, Queue::Received).context(doing)?;
    tcp::set_sequence(fd, stream.received_to.wrapping_sub(stream.received.len() as u32)).context(doing)?;
    tcp::choose(fd, Queue::Written).context(doing)?;
    let first = stream.written_to.wrapping_sub(stream.written.len() as u32);
    tcp::set_sequence(fd, first.wrapping_sub(u32::from(ends::is_hastened(tcp)))).context(doing)?;
    tcp.inet.bind(fd, what)?;
    limit_segments(fd, stream.largest_segment.min(MOST_SEGMENT)).context(doing)?;
    let peer = SocketAddr::from(peer);
    let mut connected = crate::sys::inet::connect(fd, peer);
    if connected == Err(Errno::EADDRNOTAVAIL) && near.clear(local.into(), peer) {
        connected = crate::sys::inet::connect(fd, peer);
    }
    connected.map_err(|e| {
        let help = match e {
            Errno::EADDRNOTAVAIL | Errno::EADDRINUSE => "another connection has the same addresses and ports: end it first",
            _ => "there must be a way to the other end before it can go on: see ip route",
        };
        Error::other(format!("{what} cannot be connected to {peer} again: {e}")).help(help)
    })?;
    tcp::agree(fd, stream.largest_segment, stream.info()).context(doing)?;
    limit_segments(fd, 0).context(doing)?;
    if let Some(clock) = stream.clock {
        // It is told without its lowest bit, and must not go back.
        let step = if clock & 1 == 0 { 2 } else { 0 };
        tcp::set_clock(fd, clock.wrapping_add(step)).context(doing)?;
    }
    Ok(())
}

/// The windows, for a connection that has not heard the end of the other side yet: the one that it offered may count from
/// behind that.
fn offered(stream: &Stream) -> Window {
    let [at, send, largest, mut offered, mut from] = stream.window;
    let behind = from.wrapping_sub(stream.received_to);
    if behind == 1 {
        offered = offered.wrapping_add(1);
        from = stream.received_to;
    }
    [at, send, largest, offered, from]
}

/// The most that `TCP_MAXSEG` takes.
const MOST_SEGMENT: u32 = 32767;

/// connect(2) begins with small segments unless it is told of larger ones before.
fn limit_segments(fd: BorrowedFd<'_>, most: u32) -> nix::Result<()> {
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG, &most.to_ne_bytes())
}

/// The kernel computes the size of segments anew when the options of the headers below change, even to what they were.
fn measure_segments(fd: BorrowedFd<'_>, tcp: &Tcp) {
    let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
    let value = tcp.inet.more.iter().find(|o| (o.level, o.name) == (level, name)).map_or(&[][..], |o| &o.value);
    // Over IPv6 that cannot be done with none: segments have at most the size that was told before.
    let _ = socket::set_option(fd, level, name, value);
}

/// Fills both queues, but for what was not sent.
fn fill(fd: BorrowedFd<'_>, tcp: &Tcp, stream: &Stream) -> Result<()> {
    tcp::choose(fd, Queue::Received)?;
    let room = socket::number(fd, libc::SO_RCVBUF)?;
    let mut rest = stream.received.as_slice();
    let mut widened = false;
    while !rest.is_empty() {
        match tcp::write(fd, rest) {
            Ok(n) => rest = &rest[n..],
            // The pieces are not those in which it came.
            Err(Errno::ENOMEM) if !widened => {
                widened = true;
                socket::set_number(fd, libc::SO_RCVBUFFORCE, i32::MAX / 4)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    if widened {
        socket::set_number(fd, libc::SO_RCVBUFFORCE, room / 2)?;
    }
    tcp::set_window(fd, offered(stream)).map_err(|e| match e {
        Errno::EINVAL => Error::image("image damaged: windows that contradict each other"),
        e => e.into(),
    })?;
    measure_segments(fd, tcp);
    if stream.clamp != 0 {
        socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, &stream.clamp.to_ne_bytes())?;
    }
    tcp::choose(fd, Queue::Written)?;
    if ends::is_hastened(tcp) {
        append(fd, &[0])?;
    }
    // Behind a FIN that counts as sent nothing can be written any more.
    append(fd, if tcp.state == tcp::CLOSING { &stream.written } else { stream.parts().0 })
}

fn append(fd: BorrowedFd<'_>, mut rest: &[u8]) -> Result<()> {
    while !rest.is_empty() {
        rest = &rest[tcp::write(fd, rest)?..];
    }
    Ok(())
}

type Files<'a, 'f> = &'a dyn Fn(FileId) -> Option<BorrowedFd<'f>>;

impl Connections {
    /// Sends all of them to work; `file` knows their descriptors. A network lock still keeps away what they say and what comes.
    pub fn begin(&self, tree: &Tree, file: Files<'_, '_>) -> Result<Vec<String>> {
        self.each(tree, file, work)
    }

    /// The lock has been opened: all say what they have to say. What one says may be an answer to another.
    pub fn speak(&self, tree: &Tree, file: Files<'_, '_>) -> Result<Vec<String>> {
        let out: HashSet<FileId> = choice::outside(&tree.files).into_iter().collect();
        self.each(tree, file, |fd, (id, tcp), _, _| speak(fd, tcp, self.wires.get(&tcp.inet.network), out.contains(&id)))
    }

    /// What is left to be said when the tree runs.
    pub fn nudges(&mut self, tree: &Tree) -> Nudges {
        Nudges::new(tree, std::mem::take(&mut self.wires))
    }

    /// Takes them back into repair: they end with those who hold them, and nobody is told.
    pub fn silence(&self, tree: &Tree, file: Files<'_, '_>) {
        for fd in all(tree).filter(|(_, tcp)| tcp.reachable()).filter_map(|(id, _)| file(id)) {
            let _ = tcp::repair(fd, Repair::On);
        }
    }

    /// Does something to all or none of them, also when meio is killed just then. Returned is what went wrong.
    fn each(
        &self,
        tree: &Tree,
        file: Files<'_, '_>,
        act: impl Fn(BorrowedFd<'_>, (FileId, &Tcp), &str, &mut Vec<String>) -> Result<()>,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if all(tree).next().is_none() {
            return Ok(warnings);
        }
        let done = apart::run(0, || {
            for (id, tcp) in all(tree) {
                let what = tcp.called();
                let begun = file(id).ok_or_else(|| Error::image("image damaged: a connection is not there"));
                if let Err(e) = begun.and_then(|fd| act(fd, (id, tcp), &what, &mut warnings)) {
                    warnings.push(format!("{what}: {}", e.message));
                }
            }
        });
        done.context(|| "sending connections to work")?;
        Ok(warnings)
    }
}

fn work(fd: BorrowedFd<'_>, (_, tcp): (FileId, &Tcp), what: &str, warnings: &mut Vec<String>) -> Result<()> {
    let mut said = Ok(());
    match (tcp.state, &tcp.stream, tcp.inet.peer) {
        (tcp::CLOSE, ..) => {}
        (tcp::SYN_SENT, _, Some(peer)) => ends::start(fd, peer.into())?,
        (state, Some(stream), _) => {
            tcp::repair(fd, Repair::Off)?;
            if state != tcp::CLOSING {
                said = append(fd, stream.parts().1);
            }
            if matches!(state, tcp::FIN_WAIT1 | tcp::LAST_ACK) {
                socket::shutdown(fd, libc::SHUT_WR)?;
            }
        }
        _ => {}
    }
    if tcp.deaf {
        socket::shutdown(fd, libc::SHUT_RD)?;
    }
    tcp.inet.finish(fd, what, warnings)?;
    if tcp.stream.as_ref().is_some_and(|s| !s.written.is_empty()) {
        announce_room(fd).context(|| format!("waking who waits to write to {what}"))?;
    }
    said
}

/// Whoever was told that a connection takes no more waits for its announcement that it does. It makes one only after it
/// was asked while it was full (`SOCK_NOSPACE` of the kernel), and the buffer was wide when epoll instances asked. Where
/// its queue takes less memory than before, there may be room already.
fn announce_room(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let full = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO)? == 0;
    if full {
        return Ok(());
    }
    // To set this option, also to what it is, announces what room there is.
    let least = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4)?;
    socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &least)
}

/// What was kept back by the lock goes out. One that leads `out` asks the other end in any case: whether that has given up
/// meanwhile was not heard.
fn speak(fd: BorrowedFd<'_>, tcp: &Tcp, wire: Option<&Wire>, out: bool) -> Result<()> {
    let Some(stream) = tcp.stream.as_ref().filter(|_| tcp.reachable() && tcp.state != tcp::SYN_SENT) else { return Ok(()) };
    let (sent, unsent) = stream.parts();
    if let Some(wire) = wire {
        if ends::is_hastened(tcp) {
            ends::hasten(fd, tcp, stream, wire)?;
        } else if out || !sent.is_empty() {
            // It will be asked by other means, only later.
            let _ = ends::ask(tcp, stream, wire);
        }
    }
    let ends = matches!(tcp.state, tcp::FIN_WAIT1 | tcp::LAST_ACK);
    if ends || !unsent.is_empty() {
        push(fd)?;
    }
    Ok(())
}

/// Sends what can be sent now, which the kernel does as well when it is told not to wait for more (tcp(7)).
fn push(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let level = libc::IPPROTO_TCP;
    let corked = socket::option(fd, level, libc::TCP_CORK, 4)?;
    if corked.iter().all(|b| *b == 0) {
        let before = socket::option(fd, level, libc::TCP_NODELAY, 4)?;
        socket::set_option(fd, level, libc::TCP_NODELAY, &1i32.to_ne_bytes())?;
        socket::set_option(fd, level, libc::TCP_NODELAY, &before)?;
    }
    Ok(())
}
