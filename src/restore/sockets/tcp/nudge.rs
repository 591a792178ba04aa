//! Peers that have waited for answers say again at once what was not heard.
//!
//! Whoever is not answered says it again after a while, and after twice as long each time: when a tree has been away for a second, its
//! clients are silent for another one. To a TCP that waits so, an ICMP message that its packet did not get to the host is a sign that
//! the network, and not a jam, has lost it: it goes one step back (RFC 6069; Linux since 2.6.34, `tcp_ld_RTO_revert`), and says it
//! again when the time for that step is over, which it is. The message is true: nobody was here. To a connection where nothing is
//! missing it says nothing, and it ends none (RFC 1122, 4.2.3.9).

use crate::resource::Tree;
use crate::resource::socket::choice;
use crate::sys::tcp;
use crate::sys::wire::Wire;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// Steps back that are enough: each halves what is left of a timer at least.
const STEPS: usize = 3;

/// What is to be said to the other ends when the tree runs.
pub struct Nudges {
    wires: HashMap<Option<u32>, Wire>,
    /// Network namespace, this end, the other end, and what it may be the first to miss.
    all: Vec<(Option<u32>, SocketAddr, SocketAddr, u32)>,
}

impl Nudges {
    /// For connections that lead out of the tree.
    pub(super) fn new(tree: &Tree, wires: HashMap<Option<u32>, Wire>) -> Nudges {
        let out: HashSet<_> = choice::outside(&tree.files).into_iter().collect();
        let mut all = Vec::new();
        for (_, connection) in super::all(tree).filter(|(id, connection)| out.contains(id) && connection.state != tcp::SYN_SENT) {
            let ends = connection.inet.local.zip(connection.inet.peer);
            let Some((stream, (local, peer))) = connection.stream.as_ref().zip(ends) else { continue };
            // What has arrived, and what was confirmed last.
            let mut missed = vec![stream.received_to, stream.window[4]];
            missed.dedup();
            all.extend(missed.into_iter().map(|seq| (connection.inet.network, local.into(), peer.into(), seq)));
        }
        Nudges { wires, all }
    }

    /// Says it. What cannot be said is said again by whoever waits, only later.
    pub fn send(&self) {
        if self.all.is_empty() {
            return;
        }
        // Whoever brings a tree back may run before all others, and the tree runs by now: a thread of its own does not.
        std::thread::scope(|scope| drop(std::thread::Builder::new().name("nudge".into()).spawn_scoped(scope, || self.say())));
    }

    fn say(&self) {
        for _ in 0..STEPS {
            for (network, local, peer, seq) in &self.all {
                let _ = self.wires.get(network).map(|wire| wire.unreachable(*local, *peer, *seq));
            }
        }
    }
}
