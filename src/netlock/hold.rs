//! The hold of a watch: what leaves some addresses of this host waits until somebody says that it may go.
//!
//! It stands behind everything else that a packet passes on its way out, where its source is what clients see, whether it was
//! sent here or forwarded. Unlike a lock's its table does not go with meio, and lets nothing past a queue that nobody serves:
//! when meio is killed, what waited is lost and nothing more gets out. Only who opens it lets everything out.

use super::kept::Owner;
use super::table::{HELD, Held};
use super::waits::{Coming, News, Waits};
use super::{PASS, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::ear::Heard;
use crate::sys::netlink::Socket;
use crate::sys::nfqueue::{Queue, State, is_after};
use crate::sys::nft::{self, Batch, Hook, Rule, Unserved, register};
use crate::sys::priority::Urgent;
use crate::sys::wire;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After what sees to addresses and connections: `NF_IP_PRI_NAT_SRC` is 100, and the last but one 300.
const PRIORITY: i32 = 400;
/// Where the flags of a TCP segment stand in it.
const TCP_FLAGS: u32 = 13;
/// The chain of what goes out.
const CHAIN: &str = "output";
/// Packets that are held at most; more are dropped, and sent again by whoever sent them.
const PACKETS: u32 = 1 << 16;

/// A hold in the network namespace where it was made.
pub struct Hold {
    socket: Socket,
    name: String,
    held: Held,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Queue,
    /// Number of the newest packet that was let out.
    let_out: AtomicU32,
    closed: AtomicBool,
    ends: AtomicBool,
    waits: Mutex<Waits>,
    /// How it was answered who begins connections, since that was asked last. Who takes notices has it.
    answers: Mutex<VecDeque<Heard>>,
}

/// So many answers are kept.
const ANSWERS: usize = 4096;

/// What comes close together is looked at together.
const TOGETHER: Duration = Duration::from_micros(300);

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hold {
    /// Makes one that lets everything out yet, or nothing if it is to be `closed`: it is so before what another one has left
    /// goes. `came` is called by a thread of its own when packets have come to wait.
    ///
    /// # Errors
    /// [`Kind::Permission`] without `CAP_NET_ADMIN`, [`Kind::Kernel`] where packets cannot be held.
    pub fn prepare(watch: &str, addresses: &[IpAddr], closed: bool, came: impl Fn() + Send + 'static) -> Result<Hold> {
        let doing = || "preparing to hold what goes out";
        let pid = std::process::id();
        let socket = Socket::netfilter().map_err(refused).context(doing)?;
        let owner = Owner::Watch(watch.to_owned());
        // Numbers that no lock takes: what waits in one is never let out with what waits in another.
        let queue = Queue::new(0x2d65 + (pid % 0x3000) as u16, PACKETS, false).map_err(|e| cannot(&e)).context(doing)?;
        // What is left of one that was killed holds nothing that could still be let out.
        let left = closed && super::kept::is_kept(None, &owner).context(doing)?;
        if !closed {
            super::kept::release(None, &owner).context(doing)?;
        }
        let number = queue.number();
        let make = |held: Held| {
            let mut batch = Batch::default();
            let table = nft::Table { name: owner.table(), flags: 0, comment: Some(owner.comment(0)) };
            if left {
                batch.delete_table(&table.name);
            }
            build(&mut batch, &table, addresses);
            // Whether it can be closed is known before it must be.
            batch.rule(&table.name, HELD, &held.rule(Unserved::Lost));
            if !closed {
                batch.flush_chain(&table.name, HELD);
            }
            batch.commit(&socket).map(|()| held)
        };
        let held = Held::queued(number, make).map_err(|e| cannot(&e)).context(doing)?;
        let shared = Arc::new(Shared {
            queue,
            let_out: AtomicU32::new(0),
            closed: AtomicBool::new(closed),
            ends: AtomicBool::new(false),
            waits: Mutex::default(),
            answers: Mutex::default(),
        });
        let theirs = shared.clone();
        let reader = std::thread::Builder::new().name("hold".into()).spawn(move || theirs.read(&came)).context(doing)?;
        Ok(Hold { socket, name: owner.table(), held, shared, reader: Some(reader) })
    }

    fn change(&self, held: Option<Rule>) -> Result<()> {
        let mut batch = Batch::default();
        batch.flush_chain(&self.name, HELD);
        held.iter().for_each(|rule| batch.rule(&self.name, HELD, rule));
        batch.commit(&self.socket).map_err(refused).context(|| "holding what goes out")
    }

    /// From now on everything waits.
    pub fn close(&self) -> Result<()> {
        self.change(Some(self.held.rule(Unserved::Lost)))?;
        self.shared.closed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// How it was answered who begins connections, since this was asked last: those answers wait, or have gone.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn answers(&self) -> Result<Vec<Heard>> {
        let mut answers = locked(&self.shared.answers);
        self.shared.take(&mut answers, &mut [0; 8 << 10]).context(|| "looking at what is held")?;
        Ok(answers.drain(..).collect())
    }

    /// A mark behind all that waits now.
    pub fn mark(&self) -> Result<u32> {
        let mark = self.shared.queue.state().context(|| "looking at what is held")?.seen;
        locked(&self.shared.waits).mark(mark, Instant::now());
        Ok(mark)
    }

    /// Whether something has come after this mark, and nothing else is to be expected soon.
    pub fn waits_after(&self, mark: u32) -> News {
        if !self.shared.closed.load(Ordering::Relaxed) {
            return News::Nothing;
        }
        locked(&self.shared.waits).news(mark, Instant::now())
    }

    /// Lets out what was there at this mark.
    pub fn release(&self, mark: u32) -> Result<()> {
        if !is_after(mark, self.shared.let_out.load(Ordering::Relaxed)) {
            return Ok(());
        }
        self.shared.queue.accept_to(mark).context(|| "letting out what was held")?;
        self.shared.let_out.store(mark, Ordering::Relaxed);
        locked(&self.shared.waits).go(mark, Instant::now());
        Ok(())
    }

    /// Lets everything out, now and from now on.
    pub fn open(&self) -> Result<()> {
        self.release(self.mark()?)?;
        self.change(None)?;
        self.shared.closed.store(false, Ordering::Relaxed);
        self.release(self.mark()?)
    }

    /// How many packets wait, and how many were lost for want of room.
    pub fn state(&self) -> State {
        self.shared.queue.state().unwrap_or_default()
    }

    /// How long packets have waited.
    pub fn waits(&self) -> Waits {
        locked(&self.shared.waits).clone()
    }

    /// Nobody is to send anything from there any more: when this is dropped it goes, with all that waits.
    pub fn lose(&self) {
        self.shared.closed.store(false, Ordering::Relaxed);
    }
}

/// Has nothing get out through the hold that a meio has left which was killed, whoever serves its queue some day.
///
/// # Errors
/// When there is none, or it cannot be changed.
pub fn shut(watch: &str) -> Result<()> {
    let socket = Socket::netfilter().map_err(refused)?;
    let table = Owner::Watch(watch.to_owned()).table();
    let mut batch = Batch::default();
    batch.flush_chain(&table, HELD);
    batch.rule(&table, HELD, &Held::Dropped.rule(Unserved::Lost));
    batch.commit(&socket).map_err(refused).context(|| "shutting what was held")
}

impl Drop for Hold {
    /// One that is open goes; from one that is closed nothing gets out until somebody takes its table away.
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if self.shared.closed.load(Ordering::Relaxed) {
            let _ = self.change(Some(Held::Dropped.rule(Unserved::Lost)));
        } else {
            let mut batch = Batch::default();
            batch.delete_table(&self.name);
            let _ = batch.commit(&self.socket);
        }
    }
}

impl Shared {
    /// Takes notices while there is a hold, lest there be no room for them.
    fn read(&self, rings: &dyn Fn()) {
        const LOOK: u16 = 100;
        // Behind the tree and its clients it would hear of them too late.
        let _urgent = Urgent::begin();
        let mut buffer = [0; 8 << 10];
        while !self.ends.load(Ordering::Relaxed) {
            let ready = poll(&mut [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK));
            if !matches!(ready, Ok(1..)) {
                continue;
            }
            let taken = self.take(&mut locked(&self.answers), &mut buffer);
            if taken.as_ref().is_ok_and(|any| *any) {
                rings();
            }
            if taken.is_err() {
                return;
            }
            std::thread::sleep(TOGETHER);
        }
    }

    /// Takes the notices that there are: whether there were any.
    fn take(&self, answers: &mut VecDeque<Heard>, buffer: &mut [u8]) -> std::io::Result<bool> {
        let mut came = Coming::at(Instant::now());
        let taken = self.queue.notices(buffer, |number, front| {
            came = Coming { last: number, count: came.count + 1, asks: came.asks + u64::from(!wire::is_bare(front)), ..came };
            if wire::begins(front) {
                answers.extend(Heard::of(front));
                answers.drain(..answers.len().saturating_sub(ANSWERS));
            }
        });
        if came.count > 0 {
            locked(&self.waits).come(came);
        }
        taken.map(|()| came.count > 0)
    }
}

fn cannot(e: &std::io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::new(Kind::Permission, "holding packets needs CAP_NET_ADMIN").help("run meio as root"),
        _ => Error::new(Kind::Kernel, format!("this kernel cannot hold packets: {e}")).help(
            "a kernel with CONFIG_NETFILTER_NETLINK_QUEUE, and CONFIG_NFT_QUEUE or CONFIG_NETFILTER_XT_TARGET_NFQUEUE; or --guarantee hot",
        ),
    }
}

/// A table that lets everything out: its chain of what is held is empty.
fn build(batch: &mut Batch, table: &nft::Table, addresses: &[IpAddr]) {
    let name = &table.name;
    batch.table(table);
    batch.chain(name, HELD, None);
    batch.chain(name, CHAIN, Some(Hook { number: nft::POSTROUTING, priority: PRIORITY }));
    if addresses.iter().any(IpAddr::is_ipv6) {
        // RFC 4861: how neighbours are found is the host's own business, as ARP is.
        for kind in 133..=137u8 {
            let rule = Rule::new().meta(nft::NFPROTO, register(0)).equals(register(0), &[libc::NFPROTO_IPV6 as u8]);
            let rule = rule.meta(nft::L4PROTO, register(0)).equals(register(0), &[libc::IPPROTO_ICMPV6 as u8]);
            let rule = rule.payload(nft::TRANSPORT, 0, 1, register(0)).equals(register(0), &[kind]);
            batch.rule(name, CHAIN, &rule.verdict(nft::ACCEPT));
        }
    }
    // What meio asks half-open connections is answered by an ACK: it tells the peer nothing, and meio waits for it.
    let rule = Rule::new().meta(nft::MARK, register(0)).equals(register(0), &PASS.to_ne_bytes());
    let rule = rule.meta(nft::L4PROTO, register(0)).equals(register(0), &[libc::IPPROTO_TCP as u8]);
    let rule = rule.payload(nft::TRANSPORT, TCP_FLAGS, 1, register(0)).equals(register(0), &[wire::ACK]);
    batch.rule(name, CHAIN, &rule.verdict(nft::ACCEPT));
    for address in addresses {
        let (family, at, bytes) = match address {
            IpAddr::V4(ip) => (libc::NFPROTO_IPV4, 12, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::NFPROTO_IPV6, 8, ip.octets().to_vec()),
        };
        let rule = Rule::new().meta(nft::NFPROTO, register(0)).equals(register(0), &[family as u8]);
        let rule = rule.payload(nft::NETWORK, at, bytes.len() as u32, register(0)).equals(register(0), &bytes);
        batch.rule(name, CHAIN, &rule.goto(HELD));
    }
}
