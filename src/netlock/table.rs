//! What a lock's table looks like: sets of flows, and the rules that ask them.
//!
//! Both directions share their sets, since keys begin with the tree's end: protocol, local address, local port, remote
//! address, remote port.

use super::{Flow, PASS};
use crate::sys::nft::{self, Batch, Hook, Rule, Unserved, register};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

/// The chain where locked packets go that come in,
pub const HELD: &str = "held";
/// and that of those that go out.
const SENT: &str = "sent";
/// Where they wait. The rule for that is made once: for one with a target of iptables the kernel waits until all that was taken
/// away before has gone, which takes milliseconds.
const WAIT: &str = "wait";
/// Before whatever the user has, address translation included: packets are seen as the sockets see them.
const PRIORITY: i32 = -400;

/// What becomes of locked packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// They are lost.
    Dropped,
    /// They wait in a queue.
    Queued(u16),
    /// The same by the target of iptables.
    ByTarget(u16),
}

impl Held {
    /// Makes something by which packets wait in a queue: in the one way that the kernel knows or in the other, which is tried first
    /// once it is known to be the one.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn queued<T>(queue: u16, mut make: impl FnMut(Held) -> io::Result<T>) -> io::Result<T> {
        static BY_TARGET: AtomicBool = AtomicBool::new(false);
        if BY_TARGET.load(Ordering::Relaxed) {
            return make(Held::ByTarget(queue));
        }
        make(Held::Queued(queue)).or_else(|_| make(Held::ByTarget(queue)).inspect(|_| BY_TARGET.store(true, Ordering::Relaxed)))
    }

    /// What does that with every packet.
    pub fn rule(self, unserved: Unserved) -> Rule {
        let rule = Rule::new().counter();
        match self {
            Held::Dropped => rule.verdict(nft::DROP),
            Held::Queued(queue) => rule.queue(queue, unserved),
            Held::ByTarget(queue) => rule.queue_target(queue, unserved),
        }
    }

    /// What does the same in a table that has [`WAIT`].
    fn lead(self) -> Rule {
        match self {
            Held::Dropped => self.rule(Unserved::Passes),
            Held::Queued(_) | Held::ByTarget(_) => Rule::new().goto(WAIT),
        }
    }
}

/// A set: its name and what its keys are made of.
struct Set {
    name: &'static str,
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`; `None` for both, as the first part of the key.
    family: Option<u8>,
    /// With the address of the tree's end, and with the other end.
    parts: (bool, bool),
}

const SETS: [Set; 5] = [
    Set { name: "connections4", family: Some(2), parts: (true, true) },
    Set { name: "connections6", family: Some(10), parts: (true, true) },
    Set { name: "addresses4", family: Some(2), parts: (true, false) },
    Set { name: "addresses6", family: Some(10), parts: (true, false) },
    Set { name: "ports", family: None, parts: (false, false) },
];

// Numbers of types in nft's own listing.
const NFPROTO: u32 = 2;
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const INET_PROTO: u32 = 12;
const SERVICE: u32 = 13;

impl Set {
    fn address(&self) -> u32 {
        if self.family == Some(2) { 4 } else { 16 }
    }

    /// How `nft list` shows a key: six bits a part.
    fn kind(&self) -> u32 {
        let address = if self.family == Some(2) { IPV4 } else { IPV6 };
        let parts: &[u32] = match self.parts {
            (true, true) => &[INET_PROTO, address, SERVICE, address, SERVICE],
            (true, false) => &[INET_PROTO, address, SERVICE],
            _ => &[NFPROTO, INET_PROTO, SERVICE],
        };
        parts.iter().fold(0, |kind, part| kind << 6 | part)
    }

    /// Bytes of a key; every part is filled up to four.
    fn length(&self) -> usize {
        let address = self.address() as usize;
        match self.parts {
            (true, true) => 12 + 2 * address,
            (true, false) => 8 + address,
            _ => 12,
        }
    }

    /// The rule that sends packets of this set to a chain.
    fn rule(&self, inbound: bool, chain: &str) -> Rule {
        let rule = Rule::new().meta(nft::NFPROTO, register(0));
        // The tree's end is where packets come in, and where they go out from.
        let (local, remote) = if inbound { (2, 0) } else { (0, 2) };
        let port = |rule: Rule, offset, to| rule.payload(nft::TRANSPORT, offset, 2, register(to));
        let Some(family) = self.family else {
            let rule = port(rule.meta(nft::L4PROTO, register(1)), local, 2);
            return rule.lookup(self.name, register(0)).goto(chain);
        };
        let length = self.address();
        let (source, destination) = if family == 2 { (12, 16) } else { (8, 24) };
        let (near, far) = if inbound { (destination, source) } else { (source, destination) };
        let words = length / 4;
        let mut rule = rule.equals(register(0), &[family]).meta(nft::L4PROTO, register(0));
        rule = port(rule.payload(nft::NETWORK, near, length, register(1)), local, 1 + words);
        if self.parts.1 {
            rule = port(rule.payload(nft::NETWORK, far, length, register(2 + words)), remote, 2 + 2 * words);
        }
        rule.lookup(self.name, register(0)).goto(chain)
    }
}

const CHAINS: [(&str, u32); 2] = [("input", nft::INPUT), ("output", nft::OUTPUT)];

/// A table, its chains and empty sets. It holds nothing before it is closed.
pub fn build(batch: &mut Batch, table: &nft::Table, held: [Held; 2]) {
    let name = &table.name;
    batch.table(table);
    for set in &SETS {
        batch.set(name, set.name, set.kind(), set.length());
    }
    batch.chain(name, HELD, None);
    batch.chain(name, SENT, None);
    batch.chain(name, WAIT, None);
    if let Some(queue) = held.iter().find(|held| **held != Held::Dropped) {
        batch.rule(name, WAIT, &queue.rule(Unserved::Passes));
    }
    again(batch, name, held);
    for (chain, number) in CHAINS {
        batch.chain(name, chain, Some(Hook { number, priority: PRIORITY }));
        let pass = Rule::new().meta(nft::MARK, register(0)).equals(register(0), &PASS.to_ne_bytes());
        batch.rule(name, chain, &pass.verdict(nft::ACCEPT));
    }
}

/// What comes in, and what goes out, is held again, after [`open`].
pub fn again(batch: &mut Batch, table: &str, [inward, outward]: [Held; 2]) {
    batch.rule(table, HELD, &inward.lead());
    batch.rule(table, SENT, &outward.lead());
}

/// From now on this becomes of what goes out.
pub fn outward(batch: &mut Batch, table: &str, held: Held) {
    batch.flush_chain(table, SENT);
    batch.rule(table, SENT, &held.lead());
}

/// Nothing is held any more.
pub fn open(batch: &mut Batch, table: &str) {
    batch.flush_chain(table, HELD);
    batch.flush_chain(table, SENT);
}

/// Takes all flows out of the sets of a table.
pub fn forget(batch: &mut Batch, table: &str) {
    for set in &SETS {
        batch.empty(table, set.name);
    }
}

/// From now on what is in the sets of a table is held.
pub fn close(batch: &mut Batch, table: &str) {
    for (chain, number) in CHAINS {
        let inbound = number == nft::INPUT;
        for set in &SETS {
            batch.rule(table, chain, &set.rule(inbound, if inbound { HELD } else { SENT }));
        }
    }
}

/// Puts flows into the sets of a table.
pub fn lock(batch: &mut Batch, table: &str, flows: &[Flow]) {
    let mut keys: [Vec<Vec<u8>>; SETS.len()] = Default::default();
    for flow in flows {
        for (set, key) in keys_of(flow).into_iter().flatten() {
            keys[set].push(key);
        }
    }
    for (set, keys) in SETS.iter().zip(&mut keys) {
        keys.sort_unstable();
        keys.dedup();
        batch.elements(table, set.name, keys);
    }
}

/// Index of a set in [`SETS`], and a key.
type Key = (usize, Vec<u8>);

fn keys_of(flow: &Flow) -> [Option<Key>; 2] {
    let word = |byte: u8| [byte, 0, 0, 0];
    let port = |port: u16| [port.to_be_bytes(), [0; 2]].concat();
    let local = flow.local.ip().to_canonical();
    let ports = |family: u8| Some((4, [&word(family)[..], &word(flow.protocol), &port(flow.local.port())].concat()));
    let near = |end: IpAddr| [&word(flow.protocol)[..], &bytes(end), &port(flow.local.port())].concat();
    match (local, flow.remote) {
        (end, Some(remote)) if !end.is_unspecified() => {
            let key = [near(end), bytes(remote.ip().to_canonical()), port(remote.port())].concat();
            [Some((usize::from(end.is_ipv6()), key)), None]
        }
        (end, None) if !end.is_unspecified() => [Some((2 + usize::from(end.is_ipv6()), near(end))), None],
        // A socket of IPv6 may serve IPv4 too.
        (IpAddr::V6(_), _) => [ports(10), ports(2)],
        (IpAddr::V4(_), _) => [ports(2), if matches!(flow.local, SocketAddr::V6(_)) { ports(10) } else { None }],
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
