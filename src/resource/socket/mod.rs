//! Sockets. Those of the unix and netlink families come back; the others are named and refused.

pub mod begun;
pub mod choice;
pub mod exchange;
pub mod inet;
pub mod listen;
pub mod multicast;
pub mod netlink;
pub mod options;
pub mod outside;
pub mod packet;
pub mod peers;
mod places;
pub mod queue;
pub mod raw;
pub mod received;
pub mod steady;
pub mod tcp;
pub mod udp;
pub mod unix;
pub mod waiting;

use super::capture::Capture;
use super::descriptor::{FileKind, Found};
use crate::error::{Context, Result};
use crate::sys::{datagram, socket};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

/// Saves a socket as far as it can be seen without its peer and its queue, which [`peers::complete`] adds.
pub fn capture(found: &Found, capture: &mut Capture) -> Result<Option<FileKind>> {
    let doing = || format!("reading {} of process {}", found.object(), found.pid);
    let fd = found.own()?;
    let domain = found.socket().context(doing)?.0;
    if domain == libc::AF_UNIX {
        return unix::capture(found, fd, capture).context(doing);
    }
    if domain == libc::AF_NETLINK {
        return netlink::capture(found, fd, capture).context(doing);
    }
    if matches!(domain, libc::AF_INET | libc::AF_INET6) {
        capture.network.insert(found.meta.ino());
    }
    let (_, kind, protocol) = found.socket().context(doing)?;
    if udp::is(domain, kind, protocol) {
        return udp::capture(found, fd, capture).context(doing);
    }
    if listen::is(fd, protocol) {
        return listen::capture(found, fd, capture).context(doing);
    }
    if raw::is(domain, kind, protocol) {
        return raw::capture(found, fd, capture).context(doing);
    }
    if domain == libc::AF_PACKET && matches!(kind, libc::SOCK_RAW | libc::SOCK_DGRAM) {
        return packet::capture(found, fd, capture).context(doing);
    }
    if matches!(protocol, libc::IPPROTO_TCP | tcp::MPTCP) && kind == libc::SOCK_STREAM {
        return tcp::capture(found, fd, capture).context(doing);
    }
    let listening = socket::number(fd, libc::SO_ACCEPTCONN).is_ok_and(|l| l != 0);
    let connected = socket::peer_name(fd).is_ok();
    let state = match (listening, connected) {
        (true, _) => "listening",
        (_, true) => "connected",
        _ => "not connected",
    };
    let what = describe(domain, kind, protocol);
    capture.refuse(
        found.pid,
        found.object(),
        format!("it is a {what} ({state}), which is not supported yet"),
        "close it, or wait for a later version",
    );
    Ok(None)
}

/// Tells what a socket holds that cannot be looked at beyond its begin.
fn lost(found: &Found, fd: BorrowedFd<'_>, events: i16, capture: &mut Capture) -> Result<()> {
    if !capture.standing {
        return Ok(());
    }
    let mut tell = |what: &str| capture.warnings.push(format!("process {}, {}: {what}", found.pid, found.object()));
    if events & libc::POLLIN != 0 && datagram::received(fd)?.0 > 0 {
        tell("packets that were received and not read will not be there again");
    }
    if events & libc::POLLERR != 0 {
        tell("an error that waits to be told will not be there again");
    }
    Ok(())
}

/// `TCP socket`, `raw socket of protocol 1`.
fn describe(domain: i32, kind: i32, protocol: i32) -> String {
    let version = if domain == libc::AF_INET6 { " over IPv6" } else { "" };
    match (domain, protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => format!("TCP socket{version}"),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => format!("UDP socket{version}"),
        (libc::AF_INET | libc::AF_INET6, _) if kind == libc::SOCK_RAW => format!("raw socket of protocol {protocol}{version}"),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => format!("ping socket{version}"),
        (libc::AF_INET | libc::AF_INET6, _) => format!("socket of protocol {protocol}{version}"),
        (libc::AF_PACKET, _) => "packet socket".into(),
        (libc::AF_ALG, _) => "crypto socket (AF_ALG)".into(),
        (libc::AF_VSOCK, _) => "vsock socket".into(),
        _ => format!("socket of address family {domain}, type {kind}, protocol {protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn families_have_names() {
        assert_eq!(describe(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP), "TCP socket over IPv6");
        assert_eq!(describe(libc::AF_INET, libc::SOCK_RAW, 1), "raw socket of protocol 1");
        assert_eq!(describe(99, 1, 2), "socket of address family 99, type 1, protocol 2");
    }
}
