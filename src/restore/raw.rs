//! Sockets without ports on their way back: raw ones, those of echoes, packet sockets.

use super::datagrams::inside;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::socket::inet;
use crate::resource::socket::packet::Packet;
use crate::resource::socket::raw::{self, Raw};
use crate::sys::{apart, namespace, socket};
use nix::errno::Errno;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// More packets than may arrive while a socket is made.
const MANY: usize = 100_000;

/// A raw socket, or one of echoes.
pub fn make(raw: &Raw, network: Option<&OwnedFd>, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let what = raw.called();
    let doing = || format!("making a {what}");
    if !raw::is(raw.inet.family, raw.inet.kind, raw.inet.protocol) {
        return Err(Error::image("image damaged: a raw socket of an impossible type"));
    }
    let mut told = Vec::new();
    let made = match inside(network, || raw.inet.make(&what, &mut told))? {
        Err(_) if raw.echoes() => as_group(raw, network)?,
        made => made?,
    };
    warnings.append(&mut told);
    let fd = made.as_fd();
    inet::set(fd, &raw.own, |o| raw::OWN.iter().any(|k| (k.0, k.1) == (o.level, o.name)), &what, warnings);
    raw.inet.bind(fd, &what)?;
    for group in &raw.groups {
        group.join(fd).context(doing)?;
    }
    if let Some(peer) = raw.inet.peer {
        crate::sys::inet::connect(fd, SocketAddr::from(peer)).context(doing)?;
    }
    raw.inet.finish(fd, &what, warnings)?;
    // What it hears from its birth on it may not have wanted to hear.
    empty(fd);
    let how = match raw.shutdown {
        1 => libc::SHUT_RD,
        2 => libc::SHUT_WR,
        3 => libc::SHUT_RDWR,
        _ => return Ok(made),
    };
    match socket::shutdown(fd, how) {
        Err(Errno::ENOTCONN) | Ok(()) => Ok(made),
        Err(e) => Err(e).context(doing),
    }
}

/// Only some groups may make sockets of echoes, and root's need not be among them.
fn as_group(raw: &Raw, network: Option<&OwnedFd>) -> Result<OwnedFd> {
    let gid = raw.inet.owner.map_or(0, |o| o.1);
    let mut told = Vec::new();
    let made = apart::run(0, || {
        network.map_or(Ok(()), |n| namespace::enter(n.as_fd(), namespace::Kind::Net))?;
        apart::become_user(0, gid, &[])?;
        Ok(raw.inet.make("", &mut told))
    });
    made.and_then(|made| made).context(|| "starting a helper")?.map_err(|e| {
        let message = format!("{}; group {gid} may not make it", e.message);
        Error::new(Kind::Permission, message).help(format!("sysctl net.ipv4.ping_group_range='{gid} {gid}'"))
    })
}

fn empty(fd: BorrowedFd<'_>) {
    let mut byte = [0];
    for _ in 0..MANY {
        if nix::sys::socket::recv(fd.as_raw_fd(), &mut byte, nix::sys::socket::MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN) {
            return;
        }
    }
}

/// A packet socket.
pub fn packet(packet: &Packet, network: Option<&OwnedFd>, warnings: &mut Vec<String>) -> Result<OwnedFd> {
    let mut told = Vec::new();
    let made = inside(network, || packet.make("a packet socket", &mut told))?;
    warnings.append(&mut told);
    made
}
