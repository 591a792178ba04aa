//! The network lock: while a tree with connections stands still, or is gone into an image, nothing answers for it.
//!
//! An nftables table of meio's own, scoped to exactly the flows of the tree, keeps arriving packets from the sockets (a
//! socket that is not there would answer with a reset) and what the kernel would send for them from the wire. The table
//! carries the flag by which the kernel takes it away with meio's netlink socket, however meio ends; nothing of other
//! tables is touched.
//!
//! [`Manner::Hold`] keeps arriving packets in a queue and lets them in afterwards, in order, so that nobody waits for a
//! retransmission. A lock that is [kept](NetLock::keep) outlives meio and says to whom it belongs ([`kept`]).
//!
//! What is slow is done by [`NetLock::prepare`], while the tree still runs; [`NetLock::add`] is one transaction of set
//! elements.

pub mod hold;
pub mod kept;
mod table;
#[cfg(test)]
mod tests;
pub mod waits;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::namespace::{self, Kind as Namespace};
use crate::sys::netlink::Socket;
use crate::sys::nfqueue::Queue;
use crate::sys::nft::{self, Batch};
use crate::sys::priority;
use kept::Owner;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use table::Held;

/// Packets with this mark (`SO_MARK` of meio's own raw sockets) pass every lock.
pub use crate::sys::wire::PASS;
/// Packets that a lock holds at most; more are dropped, and sent again by whoever sent them.
const PACKETS: u32 = 1 << 16;

/// Whose packets are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// `IPPROTO_TCP`, …
    pub protocol: u8,
    /// The tree's end. An address that is unspecified stands for all addresses.
    pub local: SocketAddr,
    /// The other end; `None` for everything to and from the local one.
    pub remote: Option<SocketAddr>,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// They wait until the lock is opened.
    Hold,
    /// The same, and those that come in can be taken meanwhile ([`NetLock::copies`]).
    Copy,
    /// Those that come in wait; those that go out are lost: what a socket says before it is itself again is meant for nobody.
    Deaf,
    /// They are lost, as on a bad wire.
    Drop,
}

/// A lock in one network namespace. Dropped, it is opened; when meio is killed the kernel does that, but for what was
/// held, which is lost then and sent again.
#[derive(Debug)]
pub struct NetLock {
    // The queue goes last: the table leads to it.
    socket: Socket,
    queue: Option<Queue>,
    name: String,
    /// The kernel takes the table away with the socket.
    owned: bool,
    /// All that is in its sets.
    expected: HashSet<Flow>,
    locked: HashSet<Flow>,
    /// What is in its sets is held.
    closed: bool,
    held: Held,
    /// What goes out is lost.
    mute: bool,
    /// It was opened, and may be closed again.
    opened: bool,
    /// Packets that were seen and lost before it was closed last.
    before: (u32, u32),
    /// Why packets are dropped although they should have been held.
    pub remark: Option<String>,
}

/// Runs something in a network namespace, `None` for meio's own.
fn inside<T: Send>(network: Option<BorrowedFd<'_>>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let places: Vec<_> = network.into_iter().map(|fd| (fd, Namespace::Net)).collect();
    namespace::within(&places, work).context(|| "entering the network namespace of the tree")
}

/// What a refusal of the kernel means.
fn refused(e: io::Error) -> Error {
    use nix::errno::Errno;
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => {
            Error::new(Kind::Permission, "locking the network needs CAP_NET_ADMIN").help("run meio as root")
        }
        Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOSYS) => {
            Error::new(Kind::Kernel, format!("this kernel cannot lock the network: {e}"))
                .help("a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET; connections cannot be saved without it")
        }
        _ => Error::from(e),
    }
}

impl NetLock {
    /// Makes a lock that locks nothing yet, in the network namespace `network` (`None`: meio's own).
    ///
    /// # Errors
    /// [`Kind::Permission`] without `CAP_NET_ADMIN`, [`Kind::Kernel`] without nftables.
    pub fn prepare(network: Option<BorrowedFd<'_>>, manner: Manner) -> Result<Self> {
        inside(network, || NetLock::here(manner))?.map_err(refused).context(|| "preparing the network lock")
    }

    fn here(manner: Manner) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = Socket::netfilter()?;
        kept::sweep_with(&socket)?;
        let pid = std::process::id();
        let name = format!("meio-{pid}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lock = NetLock {
            socket,
            queue: None,
            name,
            owned: true,
            expected: HashSet::new(),
            locked: HashSet::new(),
            closed: false,
            held: Held::Dropped,
            mute: manner == Manner::Deaf,
            opened: false,
            before: (0, 0),
            remark: None,
        };
        if manner == Manner::Drop {
            lock.make(Held::Dropped)?;
            return Ok(lock);
        }
        // Any number that is not in use; users' own ones are small.
        match Queue::new(0x6d65 + (pid % 0x4000) as u16, PACKETS, manner == Manner::Copy) {
            Ok(queue) => {
                let number = queue.number();
                lock.queue = Some(queue);
                if Held::queued(number, |held| lock.make(held)).is_ok() {
                    return Ok(lock);
                }
            }
            Err(e) => drop(e),
        }
        lock.queue = None;
        lock.make(Held::Dropped)?;
        lock.remark = Some("this kernel cannot hold packets: peers send again what arrives while the tree stands still".into());
        Ok(lock)
    }

    fn make(&mut self, held: Held) -> io::Result<()> {
        self.held = held;
        let both = self.both();
        let attempt = |flags| {
            let mut batch = Batch::default();
            let table = nft::Table { name: self.name.clone(), flags, comment: Some(Owner::own().comment(0)) };
            table::build(&mut batch, &table, both);
            batch.commit(&self.socket)
        };
        let made = attempt(nft::OWNER);
        self.owned = made.is_ok();
        // Before Linux 5.12 a table has no owner; what is left of it the next meio sweeps.
        made.or_else(|e| if unknown_flag(&e) { attempt(0) } else { Err(e) })
    }

    /// Locks these flows, and from now on holds what belongs to any flow of this lock. Either all or none of them. Of flows
    /// that [`NetLock::expect`] knows already nothing is left to do. One that was opened is closed again. Says whether there were
    /// others.
    pub fn add(&mut self, flows: &[Flow]) -> Result<bool> {
        let new: Vec<Flow> = flows.iter().filter(|f| !self.expected.contains(f)).copied().collect();
        self.close(&new, !flows.is_empty())?;
        self.locked.extend(flows);
        Ok(!new.is_empty())
    }

    /// From now on holds what belongs to any flow that [`NetLock::expect`] knows; which of them are locked is said later.
    pub fn shut(&mut self) -> Result<()> {
        self.close(&[], !self.expected.is_empty())
    }

    /// Adds flows, and closes it if it `closes` and is not closed yet.
    fn close(&mut self, new: &[Flow], closes: bool) -> Result<()> {
        let closes = closes && !self.closed;
        if !closes && new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        table::lock(&mut batch, &self.name, new);
        match (closes, self.opened) {
            (true, true) => table::again(&mut batch, &self.name, self.both()),
            (true, false) => table::close(&mut batch, &self.name),
            _ => {}
        }
        batch.commit(&self.socket).map_err(refused).context(|| "locking connections")?;
        self.opened &= !closes;
        self.closed |= closes;
        self.expected.extend(new);
        Ok(())
    }

    /// Names flows that are likely to be locked later, so that [`NetLock::add`] has less to do.
    pub fn expect(&mut self, flows: &[Flow]) -> Result<()> {
        const SLACK: usize = 256;
        let mut batch = Batch::default();
        let mut new: Vec<Flow> = flows.iter().filter(|f| !self.expected.contains(f)).copied().collect();
        // One that is closed again and again: most of what it knows is not there any more.
        let anew = self.opened && self.expected.len() > 2 * flows.len() + SLACK;
        if anew {
            table::forget(&mut batch, &self.name);
            new = flows.to_vec();
        }
        table::lock(&mut batch, &self.name, &new);
        batch.commit(&self.socket).map_err(refused).context(|| "preparing the network lock")?;
        if anew {
            self.expected.clear();
        }
        self.expected.extend(new);
        Ok(())
    }

    /// What becomes of what comes in, and of what goes out.
    fn both(&self) -> [Held; 2] {
        [self.held, if self.mute { Held::Dropped } else { self.held }]
    }

    /// Whether what goes out is lost, for a while: what the kernel says to meio is meant for nobody else.
    pub fn mute(&mut self, mute: bool) -> Result<()> {
        let mut batch = Batch::default();
        self.mute = mute;
        if self.closed {
            table::outward(&mut batch, &self.name, self.both()[1]);
        }
        batch.commit(&self.socket).map_err(refused).context(|| "changing the network lock")
    }

    /// From now on those that come in can be taken, as with [`Manner::Copy`]. For a lock that is open.
    ///
    /// # Errors
    /// Where packets cannot be held, or the kernel refuses: they wait as they did before.
    pub fn copy(&mut self) -> Result<()> {
        let Some(queue) = &mut self.queue else { return Err(Error::other("this kernel cannot hold packets")) };
        queue.copy().map_err(refused).context(|| "changing the network lock")
    }

    /// The packets that have come in since this was asked last; none where they are not held.
    pub fn copies(&self) -> Vec<Vec<u8>> {
        self.queue.as_ref().and_then(|queue| queue.copies().ok()).unwrap_or_default()
    }

    /// Flows that are locked.
    pub fn locked(&self) -> usize {
        self.locked.len()
    }

    /// Lets in what was held, in order, and everything that comes from now on.
    pub fn open(&mut self) -> Result<Opened> {
        let mut opened = Opened::default();
        let doing = || "opening the network lock";
        // Nearly all goes here; while its rules stand nothing can overtake.
        const ROUNDS: usize = 8;
        for _ in 0..ROUNDS {
            if !self.let_in(&mut opened).context(doing)? {
                break;
            }
        }
        let mut batch = Batch::default();
        table::open(&mut batch, &self.name);
        self.pass_on(|| batch.commit(&self.socket)).context(doing)?;
        // Base chains may only go when nothing is held any more: the kernel drops what waits in queues with them.
        while self.let_in(&mut opened).context(doing)? {}
        self.opened |= self.closed;
        self.closed = false;
        self.locked.clear();
        let before = std::mem::replace(&mut self.before, (opened.packets, opened.lost));
        // Notices and copies of what has gone only take up room.
        match &self.queue {
            Some(queue) if queue.copies_packets() => drop(queue.copies()),
            Some(queue) => drop(queue.notices(&mut [0; 4 << 10], |_, _| {})),
            None => {}
        }
        Ok(Opened { packets: opened.packets.wrapping_sub(before.0), lost: opened.lost.wrapping_sub(before.1) })
    }

    /// Does something that lets later packets pass; what comes until then is let in at once, lest those overtake it: whoever
    /// sent it would take it for lost, and send it again.
    fn pass_on<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(queue) = self.queue.as_ref().filter(|_| self.closed) else { return work() };
        const INSTANT: Duration = Duration::from_micros(10);
        let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
        // Accepting nothing would be an error, for which the kernel keeps a message.
        let accept = || queue.state().and_then(|state| if state.held > 0 { queue.accept() } else { Ok(()) });
        std::thread::scope(|scope| {
            let let_in = || {
                while !done.load(Ordering::Relaxed) && accept().is_ok() {
                    ready.store(true, Ordering::Relaxed);
                    std::thread::sleep(INSTANT);
                }
                ready.store(true, Ordering::Relaxed);
            };
            // Without it there is nothing worse than a few segments twice.
            // Whoever is urgent waits for it.
            if priority::inherited(|| std::thread::Builder::new().spawn_scoped(scope, let_in)).is_ok() {
                while !ready.load(Ordering::Relaxed) {
                    std::thread::sleep(INSTANT);
                }
            }
            let did = work();
            done.store(true, Ordering::Relaxed);
            did
        })
    }

    /// Whether there was something to let in.
    fn let_in(&self, opened: &mut Opened) -> io::Result<bool> {
        let Some(queue) = &self.queue else { return Ok(false) };
        let state = queue.state()?;
        (opened.packets, opened.lost) = (state.seen, state.dropped);
        if state.held > 0 {
            queue.accept()?;
        }
        Ok(state.held > 0)
    }

    /// Turns this into a lock that drops, outlives meio and belongs to `owner`: for a tree that is gone into an image.
    /// Packets that are held are lost.
    pub fn keep(&mut self, owner: &Owner) -> Result<()> {
        let mut batch = Batch::default();
        let table = nft::Table { name: owner.table(), flags: 0, comment: Some(owner.comment(self.locked.len())) };
        table::build(&mut batch, &table, [Held::Dropped; 2]);
        table::close(&mut batch, &table.name);
        table::lock(&mut batch, &table.name, &self.locked.iter().copied().collect::<Vec<_>>());
        batch.delete_table(&self.name);
        batch.commit(&self.socket).map_err(refused).context(|| "keeping the network lock")?;
        self.locked.clear();
        self.closed = false;
        Ok(())
    }
}

impl Drop for NetLock {
    fn drop(&mut self) {
        if self.closed {
            let _ = self.open();
        }
        if !self.owned {
            let mut batch = Batch::default();
            batch.delete_table(&self.name);
            let _ = batch.commit(&self.socket);
        }
    }
}

/// Takes open locks away while the caller goes on: the kernel waits for all processors before it does that, for tens of
/// milliseconds.
pub fn let_go<T: Send + 'static>(locks: T) {
    // Where there is no thread to be had the caller waits.
    let _ = std::thread::Builder::new().name("unlock".into()).spawn(move || drop(locks));
}

/// What was held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// Packets that were let in.
    pub packets: u32,
    /// Packets for which there was no room; they are sent again by whoever sent them.
    pub lost: u32,
}

fn unknown_flag(e: &io::Error) -> bool {
    use nix::errno::Errno;
    matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP))
}
