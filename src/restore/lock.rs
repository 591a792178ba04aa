//! The network lock of a restore: from before the first socket is made until the tree runs, nothing answers for it.

use super::places::Places;
use crate::error::Result;
use crate::netlock::kept::{self, Owner};
use crate::netlock::{Flow, Manner, NetLock};
use crate::resource::Tree;
use crate::resource::socket::choice::Choice;
use crate::resource::socket::inet::Inet;
use crate::sys::namespace::Kind;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// Locks over all connections of a tree that comes back. Dropped, those of this restore are opened; the one that the dump
/// kept stays, as the tree is still gone.
#[derive(Debug)]
pub struct Locks {
    own: Vec<NetLock>,
    kept: Option<Owner>,
}

impl Locks {
    /// Locks what the tree of the image `id` had, in the namespaces where it will be again. Without connections nothing
    /// is asked of the kernel.
    ///
    /// # Errors
    /// Exit code 11 or 12 where the network cannot be locked.
    pub fn close(tree: &Tree, places: &Places<'_>, id: &[u8; 16]) -> Result<Self> {
        let mut networks: BTreeMap<Option<u32>, Vec<Flow>> = BTreeMap::new();
        for inet in tree.files.iter().filter_map(|f| f.kind.inet()) {
            if let Some(flow) = flow(inet) {
                networks.entry(inet.network).or_default().push(flow);
            }
        }
        // Those that are broken off only now were kept by the dump.
        if tree.decisions.tcp == Choice::Close {
            networks.entry(None).or_default();
        }
        let mut locks = Locks { own: Vec::new(), kept: None };
        for (network, flows) in networks {
            let owner = Owner::image(id);
            let is_kept = || match kept::is_kept(None, &owner) {
                Err(_) if flows.is_empty() => Ok(false),
                kept => kept,
            };
            if network.is_none() && is_kept()? {
                locks.kept = Some(owner);
                continue;
            }
            if flows.is_empty() {
                continue;
            }
            let fd = network.map(|_| places.fd(network, Kind::Net)).transpose()?;
            let mut lock = NetLock::prepare(fd.map(AsFd::as_fd), Manner::Drop)?;
            lock.add(&flows)?;
            locks.own.push(lock);
        }
        Ok(locks)
    }

    /// What is left to be done for a tree that runs, by somebody else should meio die.
    pub fn left(&self) -> Option<impl FnOnce() + use<>> {
        let owner = self.kept.clone()?;
        Some(move || drop(kept::release(None, &owner)))
    }

    /// The tree runs: everything is let in, also what the dump has kept out since.
    pub fn open(mut self) -> Result<()> {
        for lock in &mut self.own {
            lock.open()?;
        }
        self.kept.take().map_or(Ok(()), |owner| kept::release(None, &owner).map(drop))
    }
}

/// Whether some socket lives in a network namespace of the tree's own.
pub fn needs_places(tree: &Tree) -> bool {
    tree.files.iter().filter_map(|f| f.kind.inet()).any(|inet| inet.network.is_some())
}

/// What a socket hears and says; `None` for one that has no port.
fn flow(inet: &Inet) -> Option<Flow> {
    let local = inet.local.filter(|l| l.port != 0)?;
    let remote = inet.peer.filter(|p| p.port != 0);
    Some(Flow { protocol: inet.protocol as u8, local: local.into(), remote: remote.map(Into::into) })
}
