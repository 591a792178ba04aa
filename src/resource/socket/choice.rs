//! What becomes of TCP connections with somebody outside of the tree: `--tcp`.

use super::inet::Address;
use super::tcp::{End, Stream, Tcp};
use crate::resource::Tree;
use crate::resource::capture::Capture;
use crate::resource::descriptor::{FileId, FileKind, OpenFile};
use crate::sys::tcp;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::IpAddr;

/// What the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// They go on where they were.
    #[default]
    Keep,
    /// They come back broken off: the program finds `ECONNRESET`.
    Close,
    /// A tree that has such is not saved.
    Refuse,
}

impl Choice {
    /// Whether it is what nobody has to ask for.
    pub fn is_keep(&self) -> bool {
        *self == Choice::Keep
    }
}

/// One end and the other, in one network namespace; IPv4 in the clothes of IPv6 is IPv4.
pub type Ends = (Option<u32>, (IpAddr, u16), (IpAddr, u16));

fn ends(network: Option<u32>, near: Address, far: Address) -> Ends {
    let plain = |a: Address| (a.ip.to_canonical(), a.port);
    (network, plain(near), plain(far))
}

/// All ends of connections among some open files: those that wait to be accepted, too.
pub fn all_ends(files: &[OpenFile]) -> HashSet<Ends> {
    let mut all = HashSet::new();
    for file in files {
        match &file.kind {
            FileKind::Tcp(tcp) => all.extend(tcp.inet.local.zip(tcp.inet.peer).map(|(near, far)| ends(tcp.inet.network, near, far))),
            FileKind::Listening(l) => all.extend(l.waiting.iter().map(|w| ends(l.inet.network, w.local, w.peer))),
            _ => {}
        }
    }
    all
}

fn leads_out(all: &HashSet<Ends>, network: Option<u32>, near: Option<Address>, far: Option<Address>) -> bool {
    near.zip(far).is_none_or(|(near, far)| !all.contains(&ends(network, far, near)))
}

/// Connections whose other end is not among the open files.
pub fn outside(files: &[OpenFile]) -> Vec<FileId> {
    let all = all_ends(files);
    let is_out = |file: &&OpenFile| match &file.kind {
        FileKind::Tcp(tcp) => tcp.reachable() && leads_out(&all, tcp.inet.network, tcp.inet.local, tcp.inet.peer),
        _ => false,
    };
    files.iter().filter(is_out).map(|file| file.id).collect()
}

/// Names all of them, where the user wants no tree that has such.
pub fn refuse(capture: &mut Capture) {
    if capture.decisions.tcp() != Choice::Refuse {
        return;
    }
    for id in outside(&capture.files) {
        let (Some(file), Some(&(pid, fd))) = (capture.files.get(id as usize), capture.holders.get(id as usize)) else { continue };
        let FileKind::Tcp(tcp) = &file.kind else { continue };
        let (object, reason) = (format!("fd {fd} ({})", file.link), format!("{} leads out of the tree (--tcp refuse)", tcp.called()));
        capture.refuse(pid, object, reason, "close it first, or take it along (--tcp keep) or break it off (--tcp close)");
    }
}

/// Breaks all of them off, and forgets those that wait to be accepted: how many there were. What was received before can still
/// be read, as when the other end resets a connection.
pub fn close(tree: &mut Tree) -> usize {
    close_but(tree, |_| false)
}

/// The same of those alone that begin in meio's network namespace at other addresses than these.
pub fn close_elsewhere(tree: &mut Tree, addresses: &[IpAddr]) -> usize {
    close_but(tree, |(network, near)| network.is_some() || addresses.contains(&near.ip.to_canonical()))
}

fn close_but(tree: &mut Tree, stays: impl Fn((Option<u32>, Address)) -> bool) -> usize {
    let mut out = outside(&tree.files);
    out.retain(|&id| match tree.files.get(id as usize).map(|f| &f.kind) {
        Some(FileKind::Tcp(tcp)) => !tcp.inet.local.is_some_and(|near| stays((tcp.inet.network, near))),
        _ => false,
    });
    for &id in &out {
        if let Some(FileKind::Tcp(tcp)) = tree.files.get_mut(id as usize).map(|f| &mut f.kind) {
            tcp.break_off();
        }
    }
    let all = all_ends(&tree.files);
    let mut count = out.len();
    for file in &mut tree.files {
        if let FileKind::Listening(listening) = &mut file.kind {
            let (network, before) = (listening.inet.network, listening.waiting.len());
            listening.waiting.retain(|w| stays((network, w.local)) || !leads_out(&all, network, Some(w.local), Some(w.peer)));
            count += before - listening.waiting.len();
        }
    }
    count
}

impl Tcp {
    /// It is no connection any more, which the program has not been told yet.
    pub fn break_off(&mut self) {
        let received = self.stream.take().map(|s| s.received).filter(|received| !received.is_empty());
        self.stream = received.map(|received| Stream { received, ..Stream::default() });
        self.end = Some(if self.state == tcp::SYN_SENT { End::Refused } else { End::Reset });
        (self.state, self.deaf, self.inet.peer, self.inet.protocol) = (tcp::CLOSE, false, None, libc::IPPROTO_TCP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::socket::inet::Inet;
    use std::net::SocketAddr;

    fn address(text: &str) -> Option<Address> {
        Some(text.parse::<SocketAddr>().unwrap().into())
    }

    fn file(id: FileId, state: u8, near: &str, far: &str) -> OpenFile {
        let inet = Inet { local: address(near), peer: address(far), ..Inet::default() };
        let stream = Some(Stream { received: vec![7], unsent: 3, ..Stream::default() });
        let kind = FileKind::Tcp(Box::new(Tcp { inet, state, stream, ..Tcp::default() }));
        OpenFile { id, flags: 2, pos: 0, link: String::new(), locks: Vec::new(), kind }
    }

    #[test]
    fn only_what_leads_out_is_broken_off() {
        let files = vec![
            file(0, tcp::ESTABLISHED, "10.0.0.1:80", "10.0.0.2:5"),
            file(1, tcp::ESTABLISHED, "[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.1]:6"),
            file(2, tcp::CLOSE_WAIT, "10.0.0.1:6", "10.0.0.1:80"),
            file(3, tcp::SYN_SENT, "10.0.0.1:7", "10.0.0.9:80"),
        ];
        let mut tree = Tree { files, ..Tree::default() };
        let here = ["10.0.0.1".parse().unwrap()];
        assert_eq!(close_elsewhere(&mut tree, &here), 0);
        assert_eq!(close_elsewhere(&mut Tree { files: tree.files.clone(), ..Tree::default() }, &[]), 2);
        assert_eq!(close(&mut tree), 2);
        let ends: Vec<_> = tree.files.iter().map(|f| if let FileKind::Tcp(t) = &f.kind { t.end } else { None }).collect();
        assert_eq!(ends, [Some(End::Reset), None, None, Some(End::Refused)]);
        let FileKind::Tcp(first) = &tree.files[0].kind else { unreachable!() };
        assert_eq!((first.inet.local, first.inet.peer), (address("10.0.0.1:80"), None));
        assert_eq!(first.stream, Some(Stream { received: vec![7], ..Stream::default() }));
        assert_eq!(close(&mut tree), 0);
    }
}
