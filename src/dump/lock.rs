//! The network lock of a dump: in each network namespace of the tree, over the connections that it has there.
//!
//! What takes its time is done while the tree runs; when it stands still the lists are read once more, since connections
//! come and go, and what is new is added.

use crate::error::{Context, Result};
use crate::netlock::kept::{self, Owner};
use crate::netlock::{self, Flow, Manner, NetLock, Opened};
use crate::sys::namespace::{self, Kind};
use crate::sys::netlink::Socket;
use crate::sys::proc::read;
use crate::sys::sock_diag::inet::{self as diag, Entry};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Locks over all connections of a tree.
#[derive(Debug, Default)]
pub struct Locks {
    networks: Vec<Network>,
    /// Inodes of the tree's sockets as far as they are known.
    own: HashSet<u64>,
    /// When everything was listed last.
    listed: Option<Instant>,
    /// Half-open connections that there were then, with both their ends; `None` where that has to be asked.
    half_open: Option<Vec<(SocketAddr, SocketAddr)>>,
}

/// One network namespace.
#[derive(Debug)]
struct Network {
    identity: (u64, u64),
    /// `None` for meio's own, which needs not be entered.
    fd: Option<OwnedFd>,
    lock: NetLock,
    /// Inodes of all sockets in it, whoever's they are, when the lock was prepared.
    known: HashSet<u64>,
    /// Local ports of the tree's TCP sockets.
    ports: HashSet<u16>,
}

impl Locks {
    /// Prepares locks for a tree that runs; `manner` says what becomes of packets meanwhile. `inodes`: those of its sockets that have to do with the network; without any
    /// there is nothing to do.
    ///
    /// # Errors
    /// Exit code 11 or 12 where the network cannot be locked.
    pub fn prepare(pids: &[i32], inodes: &HashSet<u64>, manner: Manner) -> Result<Self> {
        if inodes.is_empty() {
            return Ok(Locks::default());
        }
        let (mut networks, mut seen) = (Vec::new(), HashSet::new());
        let meio = std::process::id() as i32;
        for &pid in pids.iter().chain([&meio]) {
            // One that has ended needs none.
            let Ok(identity) = read::namespace(pid, "net") else { continue };
            if !seen.insert(identity) {
                continue;
            }
            let own = read::namespace(meio, "net").is_ok_and(|own| own == identity);
            let Ok(fd) = (!own).then(|| namespace::open(pid, "net")).transpose() else { continue };
            let sockets = list(fd.as_ref())?;
            // A program can go elsewhere and take along what it has opened here.
            if pid == meio && !sockets.iter().any(|s| inodes.contains(&s.inode)) {
                continue;
            }
            let mut lock = NetLock::prepare(fd.as_ref().map(AsFd::as_fd), manner)?;
            let flows = flows(&sockets, inodes);
            lock.expect(&flows)?;
            networks.push(Network { identity, fd, lock, known: sockets.iter().map(|s| s.inode).collect(), ports: ports(&flows).collect() });
        }
        Ok(Locks { networks, own: inodes.clone(), listed: None, half_open: None })
    }

    /// The same of locks that were opened, which stay where they are: to take a table away empties all queues of its network
    /// namespace, whoever's they are.
    pub fn again(mut self, pids: &[i32], inodes: &HashSet<u64>, manner: Manner) -> Result<Self> {
        let elsewhere = |pid: &i32| read::namespace(*pid, "net").is_ok_and(|n| self.networks.iter().all(|known| known.identity != n));
        if self.networks.is_empty() || pids.iter().any(elsewhere) {
            return Locks::prepare(pids, inodes, manner);
        }
        // What has come since then is few, and is added when the tree stands still.
        const LATELY: Duration = Duration::from_secs(1);
        if self.listed.is_some_and(|listed| listed.elapsed() < LATELY) {
            self.own.extend(inodes);
            return Ok(self);
        }
        for network in &mut self.networks {
            let sockets = list(network.fd.as_ref())?;
            let flows = flows(&sockets, inodes);
            network.lock.expect(&flows)?;
            network.ports.extend(ports(&flows));
            network.known = sockets.iter().map(|s| s.inode).collect();
        }
        self.own.clone_from(inodes);
        Ok(self)
    }

    /// Locks what the tree has, which stands still now.
    pub fn close(&mut self, pids: &[i32]) -> Result<()> {
        const MOST: usize = 4;
        // Mostly that is all: what is listed then is what there is until it is opened.
        self.networks.iter_mut().try_for_each(|network| network.lock.shut())?;
        for _ in 0..MOST {
            let lists = self.networks.iter().map(|network| list(network.fd.as_ref())).collect::<Result<Vec<_>>>()?;
            // To ask what every descriptor of the tree leads to is dear; mostly there is nothing new that could be its.
            let is_new = |(network, list): (&Network, &Vec<Entry>)| list.iter().any(|s| !network.known.contains(&s.inode));
            if self.networks.iter().zip(&lists).any(is_new) {
                self.own = held(pids);
            }
            let mut more = false;
            for (network, list) in self.networks.iter_mut().zip(&lists) {
                let flows = flows(list, &self.own);
                network.ports.extend(ports(&flows));
                network.known = list.iter().map(|s| s.inode).collect();
                more |= network.lock.add(&flows)?;
            }
            let half_open = lists.iter().flatten().filter(|entry| entry.is_half_open()).map(|entry| (entry.local, entry.peer));
            let half_open: Vec<_> = half_open.collect();
            self.half_open = Some(half_open).filter(|found| !more && (lists.len() == 1 || found.is_empty()));
            self.listed = Some(Instant::now());
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Both ends of the half-open connections, whoever's, in the network that is locked; `None` where that has to be asked, as where
    /// there are several.
    pub fn half_open(&self) -> Option<Vec<(SocketAddr, SocketAddr)>> {
        self.half_open.clone()
    }

    /// Whether all these sockets were known to be the tree's when it was locked.
    pub fn covers(&self, inodes: &HashSet<u64>) -> bool {
        inodes.is_subset(&self.own)
    }

    /// From now on packets that come in can be taken ([`Locks::copies`]), if they could not before. For locks that are open.
    pub fn copy(&mut self) -> Result<()> {
        self.networks.iter_mut().filter(|network| network.fd.is_none()).try_for_each(|network| network.lock.copy())
    }

    /// Packets that have come in to meio's own network namespace since this was asked last.
    pub fn copies(&self) -> Vec<Vec<u8>> {
        self.networks.iter().filter(|network| network.fd.is_none()).flat_map(|network| network.lock.copies()).collect()
    }

    /// Whether what goes out is lost, for a while: see [`NetLock::mute`].
    pub fn mute(&mut self, mute: bool) -> Result<()> {
        self.networks.iter_mut().filter(|network| network.lock.locked() > 0).try_for_each(|network| network.lock.mute(mute))
    }

    /// Both ends of connections that the tree has closed, and that have to deliver something yet, at least that they end. Nobody has
    /// a descriptor of them, so that they are in no image.
    pub fn unfinished(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let of = |network: &Network| {
            let inside = namespace::places(network.fd.as_ref().map(|fd| (fd, Kind::Net)));
            // Where they cannot be listed there is nothing to wait for.
            let mut all = namespace::within(&inside, diag::unfinished).ok().and_then(|all| all.ok()).unwrap_or_default();
            all.retain(|s| network.fd.is_some() || network.ports.contains(&s.local.port()));
            all.into_iter().map(|s| (s.local, s.peer))
        };
        self.networks.iter().flat_map(of).collect()
    }

    /// Waits until there are none ([`Locks::unfinished`]), but not for longer than `patience`. Those that there are then.
    pub fn finish(&self, patience: Duration) -> Vec<(SocketAddr, SocketAddr)> {
        const MOMENT: Duration = Duration::from_micros(500);
        let begun = Instant::now();
        loop {
            let left = self.unfinished();
            if left.is_empty() || begun.elapsed() >= patience {
                return left;
            }
            std::thread::sleep(MOMENT);
        }
    }

    /// Lets everything in.
    pub fn open(&mut self) -> Result<Opened> {
        let mut all = Opened::default();
        for network in &mut self.networks {
            let opened = network.lock.open()?;
            (all.packets, all.lost) = (all.packets + opened.packets, all.lost + opened.lost);
        }
        Ok(all)
    }

    /// Takes the open locks away while meio goes on.
    pub fn let_go(self) {
        if !self.networks.is_empty() {
            netlock::let_go(self);
        }
    }

    /// Nothing answers for the tree until it comes back: the locks outlive meio.
    pub fn keep(&mut self, owner: &Owner) -> Result<()> {
        let mut locks = self.networks.iter_mut().filter(|network| network.lock.locked() > 0);
        locks.try_for_each(|network| network.lock.keep(owner))
    }

    /// The tree lives after all.
    pub fn take_back(&self, owner: &Owner) {
        for network in &self.networks {
            // What is not there need not be taken away.
            let _ = kept::release(network.fd.as_ref().map(AsFd::as_fd), owner);
        }
    }

    /// See [`Networks::cut_off`].
    pub fn cut_off(&self, pids: &[i32]) {
        // meio's own does not end with them.
        cut_off(self.networks.iter().filter_map(|n| n.fd.as_ref()), pids);
    }

    /// How many connections and other ends are locked.
    pub fn len(&self) -> usize {
        self.networks.iter().map(|network| network.lock.locked()).sum()
    }

    /// Why packets cannot be held here.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.networks.iter().filter_map(|network| network.lock.remark.as_deref())
    }
}

/// Cuts off those of these network namespaces that end with these processes.
fn cut_off<'n>(networks: impl Iterator<Item = &'n OwnedFd>, pids: &[i32]) {
    for network in networks.filter(|fd| ends_with(fd, pids)) {
        let _ = namespace::within(&namespace::places([(network, Kind::Net)]), interfaces_down);
    }
}

/// The network namespaces that processes live in, but for meio's own.
#[derive(Debug)]
pub struct Networks(Vec<OwnedFd>);

impl Networks {
    /// Of these processes, as far as they still live.
    pub fn of(pids: &[i32]) -> Self {
        let mut seen: HashSet<_> = read::namespace(std::process::id() as i32, "net").into_iter().collect();
        let new = |pid: &&i32| read::namespace(**pid, "net").is_ok_and(|identity| seen.insert(identity));
        Networks(pids.iter().filter(new).filter_map(|&pid| namespace::open(pid, "net").ok()).collect())
    }

    /// Cuts off those that end with these processes, the tree's. The kernel takes the packet filter of a namespace that ends away
    /// before its interfaces, and would answer in between. Where that fails all is good all the same.
    pub fn cut_off(&self, pids: &[i32]) {
        cut_off(self.0.iter(), pids);
    }

    /// Takes the lock away that is kept for `owner` in these, and in meio's own.
    pub fn release(&self, owner: &Owner) -> Result<()> {
        let all = self.0.iter().map(|fd| Some(fd.as_fd())).chain([None]);
        // Where there is none there is nothing to take away; nor where the kernel has no packet filter.
        for network in all {
            if kept::is_kept(network, owner).unwrap_or(false) {
                kept::release(network, owner)?;
            }
        }
        Ok(())
    }
}

/// Whether nobody but these processes lives in a network namespace, and no file stands for it.
fn ends_with(network: &OwnedFd, pids: &[i32]) -> bool {
    let Ok(identity) = nix::sys::stat::fstat(network).map(|s| (s.st_dev, s.st_ino)) else { return false };
    let others = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut others = others.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| !pids.contains(pid));
    let mounts = read::read(std::process::id() as i32, "mountinfo").unwrap_or_default();
    let file = format!("net:[{}]", identity.1);
    !mounts.windows(file.len()).any(|w| w == file.as_bytes()) && !others.any(|pid| read::namespace(pid, "net").is_ok_and(|n| n == identity))
}

/// Takes the interfaces of the namespace down in which it is called.
fn interfaces_down() -> io::Result<()> {
    let socket = Socket::route()?;
    for link in socket.dump(libc::RTM_GETLINK, &[0; 16])? {
        let Some(index) = link.get(4..8) else { continue };
        // struct ifinfomsg: which one, its flags, and which of them change
        let head = [&[0; 4], index, &[0; 4], &libc::IFF_UP.to_ne_bytes()].concat();
        socket.change(libc::RTM_NEWLINK, 0, &head)?;
    }
    Ok(())
}

fn list(network: Option<&OwnedFd>) -> Result<Vec<Entry>> {
    let inside = namespace::places(network.map(|fd| (fd, Kind::Net)));
    namespace::within(&inside, diag::sockets)
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
fn flows(sockets: &[Entry], inodes: &HashSet<u64>) -> Vec<Flow> {
    let own = sockets.iter().filter(|s| s.inode != 0 && inodes.contains(&s.inode) && s.local.port() != 0);
    own.map(|s| Flow { protocol: s.protocol, local: s.local, remote: Some(s.peer).filter(|r| r.port() != 0) }).collect()
}

/// Local ports of the TCP sockets among them.
fn ports(flows: &[Flow]) -> impl Iterator<Item = u16> {
    flows.iter().filter(|flow| i32::from(flow.protocol) == libc::IPPROTO_TCP).map(|flow| flow.local.port())
}
