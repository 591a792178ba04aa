//! The network lock of a dump: in each network namespace of the tree, over the connections that it has there.
//!
//! What takes its time is done while the tree runs; when it stands still the lists are read once more, since connections
//! come and go, and what is new is added.

use crate::error::{Context, Result};
use crate::netlock::kept::Owner;
use crate::netlock::{Flow, Manner, NetLock, Opened};
use crate::sys::inet_diag::{self, Inet};
use crate::sys::namespace::{self, Kind};
use crate::sys::proc::read;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

/// Locks over all connections of a tree.
#[derive(Debug, Default)]
pub struct Locks(Vec<Network>);

/// One network namespace.
#[derive(Debug)]
struct Network {
    fd: OwnedFd,
    lock: NetLock,
    /// Inodes of all sockets in it, whoever's they are, when the lock was prepared.
    known: HashSet<u64>,
    /// Those of the tree among them.
    own: HashSet<u64>,
}

impl Locks {
    /// Prepares locks for a tree that runs. `inodes`: those of its sockets that have to do with the network; without any
    /// there is nothing to do.
    ///
    /// # Errors
    /// Exit code 11 or 12 where the network cannot be locked.
    pub fn prepare(pids: &[i32], inodes: &HashSet<u64>) -> Result<Self> {
        if inodes.is_empty() {
            return Ok(Locks::default());
        }
        let (mut networks, mut seen) = (Vec::new(), HashSet::new());
        for &pid in [std::process::id() as i32].iter().chain(pids) {
            // One that has ended needs none.
            let Ok(identity) = read::namespace(pid, "net") else { continue };
            if !seen.insert(identity) {
                continue;
            }
            let Ok(fd) = namespace::open(pid, "net") else { continue };
            let sockets = list(&fd)?;
            if !sockets.iter().any(|s| inodes.contains(&s.inode)) {
                continue;
            }
            let mut lock = NetLock::prepare(Some(fd.as_fd()), Manner::Hold)?;
            lock.expect(&flows(&sockets, inodes))?;
            networks.push(Network { fd, lock, known: sockets.iter().map(|s| s.inode).collect(), own: inodes.clone() });
        }
        Ok(Locks(networks))
    }

    /// Locks what the tree has, which stands still now.
    pub fn close(&mut self, pids: &[i32]) -> Result<()> {
        let mut held = None;
        for network in &mut self.0 {
            let sockets = list(&network.fd)?;
            // To ask what every descriptor of the tree leads to is dear; mostly there is nothing new that could be its.
            if sockets.iter().any(|s| !network.known.contains(&s.inode)) {
                network.own = held.get_or_insert_with(|| self::held(pids)).clone();
            }
            network.lock.add(&flows(&sockets, &network.own))?;
        }
        Ok(())
    }

    /// Whether a socket of the tree was known when the lists were read.
    pub fn covers(&self, inodes: &HashSet<u64>) -> bool {
        inodes.iter().all(|inode| self.0.iter().any(|network| network.own.contains(inode)))
    }

    /// Lets everything in.
    pub fn open(&mut self) -> Result<Opened> {
        let mut all = Opened::default();
        for network in &mut self.0 {
            let opened = network.lock.open()?;
            (all.packets, all.lost) = (all.packets + opened.packets, all.lost + opened.lost);
        }
        Ok(all)
    }

    /// Nothing answers for the tree until it comes back: the locks outlive meio.
    pub fn keep(self, owner: &Owner) -> Result<()> {
        self.0.into_iter().try_for_each(|network| network.lock.keep(owner))
    }

    /// How many connections and other ends are locked.
    pub fn len(&self) -> usize {
        self.0.iter().map(|network| network.lock.locked()).sum()
    }

    /// Why packets cannot be held here.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|network| network.lock.remark.as_deref())
    }
}

fn list(network: &OwnedFd) -> Result<Vec<Inet>> {
    let inside = namespace::places([(network, Kind::Net)]);
    namespace::within(&inside, inet_diag::sockets)
        .context(|| "entering the network namespace of the tree")?
        .context(|| "listing the sockets of the network namespace")
}

/// Inodes of all sockets that the processes have descriptors of.
fn held(pids: &[i32]) -> HashSet<u64> {
    let mut inodes = HashSet::new();
    for &pid in pids {
        for fd in read::fds(pid).unwrap_or_default() {
            let link = read::fd_link(pid, fd).unwrap_or_default();
            let inode = link.strip_prefix(b"socket:[").and_then(|l| std::str::from_utf8(l.strip_suffix(b"]")?).ok()?.parse().ok());
            inodes.extend::<Option<u64>>(inode);
        }
    }
    inodes
}

/// What these sockets hear and say. What waits to be accepted, or has been closed, is somebody's at the same port.
fn flows(sockets: &[Inet], inodes: &HashSet<u64>) -> Vec<Flow> {
    let own = sockets.iter().filter(|s| s.inode != 0 && inodes.contains(&s.inode) && s.local.port() != 0);
    own.map(|s| Flow { protocol: s.protocol, local: s.local, remote: Some(s.remote).filter(|r| r.port() != 0) }).collect()
}
