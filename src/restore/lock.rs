//! The network lock of a restore: from before the first socket is made until the tree runs, nothing answers for it.

use super::places::Places;
use crate::error::Result;
use crate::netlock::kept::{self, Owner};
use crate::netlock::{self, Flow, Manner, NetLock};
use crate::resource::Tree;
use crate::resource::socket::choice::Choice;
use crate::resource::socket::inet::Inet;
use crate::sys::namespace::Kind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A lock of a caller, who has it over meio's own network namespace before there is anything to restore and after a failure.
#[derive(Debug, Clone)]
pub struct SharedLock(Arc<Mutex<NetLock>>);

impl SharedLock {
    /// One that locks nothing yet. What is slow about it is done.
    ///
    /// # Errors
    /// As [`NetLock::prepare`].
    pub fn prepare() -> Result<Self> {
        NetLock::prepare(None, Manner::Deaf).map(|lock| SharedLock(Arc::new(Mutex::new(lock))))
    }

    /// Locks what a tree hears and says, before it is there.
    pub fn block(&self, tree: &Tree) -> Result<()> {
        let flows = flows(tree, None);
        if flows.is_empty() { Ok(()) } else { self.locked().add(&flows).map(drop) }
    }

    fn locked(&self) -> MutexGuard<'_, NetLock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks over all connections of a tree that comes back. Dropped, those of this restore are opened; the one that the dump
/// kept stays, as the tree is still gone.
#[derive(Debug)]
pub struct Locks {
    own: Vec<NetLock>,
    /// Over meio's own network namespace, by the caller.
    shared: Option<SharedLock>,
    kept: Option<Owner>,
    /// Where the dump has kept locks: `None` for meio's own network namespace.
    at: Vec<Option<OwnedFd>>,
}

impl Locks {
    /// Locks what the tree of the image `id` had, in the namespaces where it will be again; those that `places` has made are
    /// locked already, and so is meio's own where there is a lock that is `shared`. Without connections nothing is asked of the
    /// kernel.
    ///
    /// # Errors
    /// Exit code 11 or 12 where the network cannot be locked.
    pub fn close(tree: &Tree, places: &mut Places<'_>, id: &[u8; 16], shared: Option<&SharedLock>) -> Result<Self> {
        let own = std::mem::take(&mut places.locks);
        let mut locks = Locks { own, shared: shared.cloned(), kept: None, at: Vec::new() };
        let owner = Owner::image(id);
        for network in places.adopted.iter().copied().map(Some).chain([None]) {
            let flows = flows(tree, network);
            // Those that are broken off only now were kept by the dump.
            if flows.is_empty() && tree.decisions.tcp != Choice::Close {
                continue;
            }
            let fd = match network {
                Some(_) => Some(places.fd(network, Kind::Net)?.try_clone()?),
                None => None,
            };
            let at = fd.as_ref().map(AsFd::as_fd);
            let is_kept = match kept::is_kept(at, &owner) {
                Err(_) if flows.is_empty() => false,
                kept => kept?,
            };
            if is_kept {
                locks.at.push(fd);
            } else if !flows.is_empty() && (network.is_some() || shared.is_none()) {
                let mut lock = NetLock::prepare(at, Manner::Deaf)?;
                lock.add(&flows)?;
                locks.own.push(lock);
            }
        }
        locks.kept = Some(owner).filter(|_| !locks.at.is_empty());
        Ok(locks)
    }

    /// What is left to be done for a tree that runs, by somebody else should meio die.
    pub fn left(&self) -> Option<impl FnOnce() + use<>> {
        let owner = self.kept.clone()?;
        let at: Vec<Option<OwnedFd>> = self.at.iter().map(|fd| fd.as_ref().and_then(|fd| fd.try_clone().ok())).collect();
        Some(move || at.iter().for_each(|fd| drop(kept::release(fd.as_ref().map(AsFd::as_fd), &owner))))
    }

    /// The tree runs: everything is let in, also what the dump has kept out since.
    pub fn open(mut self) -> Result<()> {
        if let Some(shared) = self.shared.take() {
            shared.locked().open()?;
        }
        for lock in &mut self.own {
            lock.open()?;
        }
        if !self.own.is_empty() {
            netlock::let_go(std::mem::take(&mut self.own));
        }
        let Some(owner) = self.kept.take() else { return Ok(()) };
        self.at.iter().try_for_each(|fd| kept::release(fd.as_ref().map(AsFd::as_fd), &owner).map(drop))
    }
}

/// Locks a network namespace that has just been made, before anything can arrive in it.
pub fn new_network(tree: &Tree, network: u32, fd: BorrowedFd<'_>) -> Result<Option<NetLock>> {
    let flows = flows(tree, Some(network));
    if flows.is_empty() {
        return Ok(None);
    }
    let mut lock = NetLock::prepare(Some(fd), Manner::Deaf)?;
    lock.add(&flows)?;
    Ok(Some(lock))
}

/// What the sockets of a tree hear and say in one network namespace, `None` for meio's own.
fn flows(tree: &Tree, network: Option<u32>) -> Vec<Flow> {
    tree.files.iter().filter_map(|f| f.kind.inet()).filter(|inet| inet.network == network).filter_map(flow).collect()
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
