//! Listening TCP sockets on their way back: all are made, in their order, before anything else is; whatever stands in the way of
//! any of them is named at once.

use super::super::places::Places;
use crate::error::{Context, Error, Refusal, Result};
use crate::resource::Tree;
use crate::resource::descriptor::{FileId, FileKind};
use crate::resource::socket::exchange::{self, Seat};
use crate::resource::socket::inet::{self, LevelOption};
use crate::resource::socket::listen::Listening;
use crate::resource::socket::outside;
use crate::resource::socket::waiting::{self, Placing};
use crate::sys::ear::Ear;
use crate::sys::namespace::{self, Kind};
use crate::sys::netlink::Socket;
use crate::sys::sock_diag::inet::{self as diag, Entry};
use crate::sys::{socket, tcp};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// All of a tree.
#[derive(Default)]
pub struct Listeners {
    made: HashMap<FileId, OwnedFd>,
}

type One<'t> = (FileId, &'t Listening);

impl Listeners {
    /// Makes all of them; from then on they listen.
    pub fn make(tree: &Tree, places: &Places<'_>, warnings: &mut Vec<String>) -> Result<Listeners> {
        let mut listeners = Listeners::default();
        let mut refusals = Vec::new();
        for (network, mut all) in listening(tree) {
            all.sort_by_key(|(_, listening)| listening.order);
            let made =
                namespace::within(&enter(network, places)?, || make_all(&all, warnings)).context(|| "entering a network namespace")?;
            for ((id, listening), made) in all.into_iter().zip(made) {
                match made {
                    Ok(fd) => drop(listeners.made.insert(id, fd)),
                    Err(e) if e.kind == crate::error::Kind::Image => return Err(e),
                    Err(e) => refusals.push(refusal(tree, id, listening, e)),
                }
            }
        }
        match refusals.len() {
            0 => Ok(listeners),
            1 => Err(Error::refused("cannot restore the listening socket of this tree", refusals)),
            _ => Err(Error::refused("cannot restore the listening sockets of this tree", refusals)),
        }
    }

    /// Puts the connections that waited into their queues again. A network lock must keep away what arrives, and what is answered.
    pub fn fill(&self, tree: &Tree, places: &Places<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let mut refusals = Vec::new();
        for (network, all) in listening(tree) {
            if all.iter().all(|(_, listening)| listening.waiting.is_empty()) {
                continue;
            }
            let filled = namespace::within(&enter(network, places)?, || {
                let mut refused = Vec::new();
                for (id, listening) in all {
                    refused.extend(unreachable(listening).map(|e| refusal(tree, id, listening, e)));
                }
                if refused.is_empty() { self.fill_all(tree, network, warnings).map(|()| refused) } else { Ok(refused) }
            });
            refusals.extend(filled.context(|| "entering a network namespace")??);
        }
        if refusals.is_empty() { Ok(()) } else { Err(Error::refused("cannot restore connections that wait to be accepted", refusals)) }
    }

    fn fill_all(&self, tree: &Tree, network: Option<u32>, warnings: &mut Vec<String>) -> Result<()> {
        let placing = Placing::new()?;
        let ear = Ear::new().context(|| "making a packet socket")?;
        let all = listening(tree).remove(&network).unwrap_or_default();
        let seats = all.iter().map(|(id, _)| Seat::of(self.open(*id)?)).collect::<Result<Vec<_>>>()?;
        for ((_, listening), Seat { fd, interface, .. }) in all.into_iter().zip(&seats) {
            let interface = *interface;
            let patience = exchange::without_patience(fd.as_fd());
            for waiting in &listening.waiting {
                placing.put(waiting, interface)?;
                exchange::remind(&seats, &placing, &ear, waiting)?;
                if placing.differs(waiting, interface) {
                    let (peer, what) = (SocketAddr::from(waiting.peer), listening.called());
                    warnings.push(format!("{what}: the connection from {peer} has another window here (net.ipv4.tcp_rmem)"));
                }
            }
            if let Some(value) = patience {
                socket::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &value)?;
            }
        }
        Ok(())
    }

    /// A duplicate of one.
    pub fn open(&self, id: FileId) -> Result<OwnedFd> {
        let made = self.made.get(&id).ok_or_else(|| Error::image("image damaged: a listening socket is missing"))?;
        Ok(made.try_clone()?)
    }
}

/// Those of a tree, by their network namespaces.
fn listening(tree: &Tree) -> BTreeMap<Option<u32>, Vec<One<'_>>> {
    let mut by_network: BTreeMap<Option<u32>, Vec<One<'_>>> = BTreeMap::new();
    for (id, file) in tree.files.iter().enumerate() {
        if let FileKind::Listening(listening) = &file.kind {
            by_network.entry(listening.inet.network).or_default().push((id as FileId, listening));
        }
    }
    by_network
}

/// What is entered to be in a network namespace.
fn enter<'p>(network: Option<u32>, places: &'p Places<'_>) -> Result<Vec<(BorrowedFd<'p>, Kind)>> {
    Ok(match network {
        Some(_) => namespace::places([(places.fd(network, Kind::Net)?, Kind::Net)]),
        None => Vec::new(),
    })
}

/// Why a connection that waited cannot be there again.
fn unreachable(listening: &Listening) -> Option<Error> {
    for waiting in &listening.waiting {
        let (local, peer) = waiting.ends();
        if !waiting.is_sound() || listening.address().is_none_or(|a| a.port() != local.port()) {
            return Some(Error::image("image damaged: an impossible connection waits"));
        }
        if let Err(e) = waiting::possible(local, peer) {
            let help = match e {
                Errno::EADDRNOTAVAIL => format!("give an interface the address first: ip address add {} dev NAME", local.ip()),
                _ => format!("there must be a way to {} before it can go on: see ip route", peer.ip()),
            };
            return Some(Error::other(format!("the connection from {peer} to {local} waits to be accepted: {e}")).help(help));
        }
    }
    None
}

fn refusal(tree: &Tree, id: FileId, listening: &Listening, error: Error) -> Refusal {
    let holder = tree.processes.iter().find_map(|p| Some((p.pid, p.descriptors.iter().find(|d| d.file == id)?.fd)));
    let (pid, fd) = holder.unwrap_or_default();
    let object = format!("fd {fd} ({})", listening.called());
    Refusal { pid, object, reason: error.message, advice: error.help.unwrap_or_default(), ..Refusal::default() }
}

/// Makes those of one network namespace, which the caller lives in.
fn make_all(all: &[One<'_>], warnings: &mut Vec<String>) -> Vec<Result<OwnedFd>> {
    let mut made: Vec<Result<OwnedFd>> = all.iter().map(|(_, listening)| bound(listening, warnings)).collect();
    for ((_, listening), made) in all.iter().zip(&mut made) {
        if let Ok(fd) = &*made
            && let Err(e) = listen(fd.as_fd(), listening, warnings)
        {
            *made = Err(e);
        }
    }
    made
}

fn option(options: &[LevelOption], level: i32, name: i32) -> Option<&[u8]> {
    options.iter().find(|o| (o.level, o.name) == (level, name)).map(|o| o.value.as_slice())
}

/// A socket that has its address.
fn bound(listening: &Listening, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let what = listening.called();
    let fd = listening.inet.make(&what, warnings)?;
    if let Some(device) = option(&listening.inet.more, libc::SOL_SOCKET, libc::SO_BINDTODEVICE) {
        let has = socket::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16).unwrap_or_default();
        if has != device {
            let name = String::from_utf8_lossy(device.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
            let help = format!("make an interface of that name first: ip link add {name} …, or ip link set OTHER name {name}");
            return Err(Error::other(format!("it is bound to the interface {name}, which there is not here")).help(help));
        }
    }
    // Connections of its own from before may still be there, in TIME_WAIT for one.
    socket::set_number(fd.as_fd(), libc::SO_REUSEADDR, 1)?;
    let bound = listening.inet.bind(fd.as_fd(), &what);
    let bound = if bound.is_err() && forget(listening) { listening.inet.bind(fd.as_fd(), &what) } else { bound };
    bound.map_err(|e| taken(e, listening))?;
    Ok(fd)
}

/// Connections of the port that have ended keep a socket without `SO_REUSEADDR` from having it, as they did not when it had it
/// already. Where nobody listens there they are forgotten: their peers have ended, too, and hear of nothing. Whether some were. The
/// tree's own connections, in repair, keep nobody away.
fn forget(listening: &Listening) -> bool {
    let Some(address) = listening.address() else { return false };
    let there: Vec<Entry> = users(address);
    let Ok(netlink) = Socket::sock_diag() else { return false };
    let remembered = there.iter().filter(|e| e.state == diag::TIME_WAIT);
    there.iter().all(|e| e.state != tcp::LISTEN) && remembered.filter(|e| diag::destroy(&netlink, e).is_ok()).count() > 0
}

/// Everybody who has to do with the port of an address.
fn users(address: SocketAddr) -> Vec<Entry> {
    let mut all = diag::tcp(!0).unwrap_or_default();
    all.retain(|e| e.local.port() == address.port() && meets(e.local, address));
    all
}

/// Who has the port, where that is what the error says.
fn taken(error: Error, listening: &Listening) -> Error {
    let Some(address) = listening.address() else { return error };
    if !error.message.contains("EADDRINUSE") {
        return error;
    }
    let there = users(address);
    let listens = there.iter().find(|e| e.state == tcp::LISTEN);
    if let Some(user) = listens.or_else(|| there.iter().find(|e| e.inode != 0)) {
        let holders = outside::holders(&HashSet::new());
        let who = outside::describe(holders.get(&user.inode));
        let what = if user.state == tcp::LISTEN { "listens" } else { "has connections" };
        return Error::other(format!("its address {address} is in use: {who} {what} there")).help("end that process first");
    }
    match there.iter().map(|e| e.expires).max() {
        Some(left) => {
            let seconds = left.div_ceil(1000);
            let reason = format!("connections of its address {address} that have ended are remembered for another {seconds} s");
            Error::other(reason).help("wait for that long, or let the program set SO_REUSEADDR")
        }
        None => error,
    }
}

/// Whether two addresses of one port cannot be had by two sockets.
fn meets(a: SocketAddr, b: SocketAddr) -> bool {
    let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
    a == b || a.is_unspecified() || b.is_unspecified()
}

/// Lets a socket listen as it did, with all its options.
fn listen(fd: BorrowedFd<'_>, listening: &Listening, warnings: &mut Vec<String>) -> Result<()> {
    let what = listening.called();
    inet::set(fd, &listening.options, Listening::may_set, &what, warnings);
    listening.inet.finish(fd, &what, warnings)?;
    let listened = || socket::listen(fd, listening.backlog.min(i32::MAX as u32) as i32);
    let listened = match listened() {
        Err(Errno::EADDRINUSE) if forget(listening) => listened(),
        listened => listened,
    };
    match listened {
        Err(e @ Errno::EADDRINUSE) => return Err(taken(Error::other(format!("{what} cannot have its address: {e}")), listening)),
        listened => listened.context(|| format!("listening on {what}"))?,
    }
    let (_, backlog) = diag::backlog(fd)?;
    if backlog != listening.backlog {
        warnings.push(format!("{what}: only {backlog} instead of {} connections may wait (net.core.somaxconn)", listening.backlog));
    }
    if option(&listening.inet.more, libc::SOL_SOCKET, libc::SO_REUSEADDR).is_none()
        && listening.inet.options.iter().all(|o| o.name != libc::SO_REUSEADDR)
    {
        socket::set_number(fd, libc::SO_REUSEADDR, 0)?;
    }
    Ok(())
}
