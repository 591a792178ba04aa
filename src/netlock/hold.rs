//! The hold of a watch: what leaves some addresses of this host waits until somebody says that it may go.
//!
//! It stands behind everything else that a packet passes on its way out, where its source is what clients see, whether it was
//! sent here or forwarded. Unlike a lock's its table does not go with meio, and lets nothing past a queue that nobody serves:
//! when meio is killed, what waited is lost and nothing more gets out. Only who opens it lets everything out.

use super::kept::Owner;
use super::table::{HELD, Held};
use super::{PASS, refused};
use crate::error::{Context, Error, Kind, Result};
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
}

/// What comes close together is looked at together.
const TOGETHER: Duration = Duration::from_micros(300);
/// Who asks for an epoch as soon as the first one waits leaves out all who are a little later: nothing comes any more after this,
const QUIET: Duration = Duration::from_micros(500);
/// and nobody waits longer for others;
const LONGEST: Duration = Duration::from_millis(3);
/// or than these parts of what they wait for anyhow, where that takes long: whoever is left out waits for two of them.
const PARTS: (u32, u32) = (16, 2);
/// But for so long at most.
const MOST: Duration = Duration::from_millis(20);
/// A TCP that acknowledges what its program has not answered yet has somebody wait who goes on sending, not who asks: that one
/// sends again after 200 ms at the earliest (`TCP_RTO_MIN` of Linux), and where its window is full the window goes on so often.
const BARE: Duration = Duration::from_millis(20);
/// So few packets are somebody alone, who waits for nobody if they were as few the last time, however long ago that was.
const FEW: u64 = 4;

/// What has come to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    Nothing,
    /// Something, and more comes: ask again soon.
    Gathers,
    /// Nothing more comes, or somebody has waited for others for long.
    Waits,
}

/// Packets that came together.
#[derive(Debug, Clone, Copy)]
struct Coming {
    /// Number of the last.
    last: u32,
    count: u64,
    at: Instant,
    /// How many of them say more than that something has arrived.
    asks: u64,
}

/// How long packets have waited.
#[derive(Debug, Clone)]
pub struct Waits {
    /// Those that wait.
    coming: VecDeque<Coming>,
    /// When some were let out last, and how many waited then that say more than that something has arrived.
    gone: Option<Instant>,
    expected: u64,
    /// Marks that nothing was let out up to yet, and when they were put.
    marks: VecDeque<(u32, Instant)>,
    /// How long it took lately from a mark until it was let out up to that.
    takes: Duration,
    /// How many waited how long, in steps; the last one is for all that is longer.
    counts: Vec<u64>,
    longest: Duration,
}

/// A step of [`Waits`].
const STEP: Duration = Duration::from_micros(100);
/// How many there are.
const STEPS: usize = 20_000;

impl Default for Waits {
    fn default() -> Self {
        let (coming, marks) = (VecDeque::new(), VecDeque::new());
        Waits { coming, gone: None, expected: 0, marks, takes: Duration::ZERO, counts: vec![0; STEPS], longest: Duration::ZERO }
    }
}

impl Waits {
    fn go(&mut self, last: u32, now: Instant) {
        self.gone = Some(now);
        let passed = self.marks.iter().take_while(|(mark, _)| !is_after(*mark, last)).count();
        if let Some((_, put)) = self.marks.drain(..passed).next_back() {
            self.takes = (self.takes * 3 + now.saturating_duration_since(put)) / 4;
        }
        let gone = self.coming.iter().take_while(|came| !is_after(came.last, last)).count();
        // Who is answered now asks again, and then all wait.
        self.expected = self.coming.iter().map(|came| came.asks).sum();
        for Coming { count, at, .. } in self.coming.drain(..gone) {
            let waited = now.saturating_duration_since(at);
            let step = (waited.as_micros() / STEP.as_micros()) as usize;
            self.counts[step.min(STEPS - 1)] += count;
            self.longest = self.longest.max(waited);
        }
    }

    /// After how long without any others, and after how long altogether, those that wait ask.
    fn patience(&self) -> (Duration, Duration) {
        let (quiet, longest) = (self.takes / PARTS.0, self.takes / PARTS.1);
        (QUIET.max(quiet.min(MOST / 8)), LONGEST.max(longest.min(MOST)))
    }

    /// How many packets have waited.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long the one waited at this place among all, from 0 for the shortest to 1 for the longest.
    pub fn quantile(&self, place: f64) -> Duration {
        let wanted = (self.count() as f64 * place) as u64;
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += count;
            seen > wanted
        });
        step.map_or(self.longest, |step| (STEP * (step as u32 + 1)).min(self.longest))
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

fn locked(waits: &Mutex<Waits>) -> MutexGuard<'_, Waits> {
    waits.lock().unwrap_or_else(PoisonError::into_inner)
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
        let held = make(Held::Queued(number)).or_else(|_| make(Held::ByTarget(number))).map_err(|e| cannot(&e)).context(doing)?;
        let shared = Arc::new(Shared {
            queue,
            let_out: AtomicU32::new(0),
            closed: AtomicBool::new(closed),
            ends: AtomicBool::new(false),
            waits: Mutex::default(),
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

    /// A mark behind all that waits now.
    pub fn mark(&self) -> Result<u32> {
        let mark = self.shared.queue.state().context(|| "looking at what is held")?.seen;
        locked(&self.shared.waits).marks.push_back((mark, Instant::now()));
        Ok(mark)
    }

    /// Whether something has come after this mark, and nothing else is to be expected soon.
    pub fn waits_after(&self, mark: u32) -> News {
        if !self.shared.closed.load(Ordering::Relaxed) {
            return News::Nothing;
        }
        let waits = locked(&self.shared.waits);
        let after = || waits.coming.iter().skip_while(|came| !is_after(came.last, mark));
        let (Some(oldest), Some(last)) = (after().next(), waits.coming.back()) else { return News::Nothing };
        let Some(first) = after().find(|came| came.asks > 0) else {
            return if oldest.at.elapsed() >= BARE { News::Waits } else { News::Nothing };
        };
        // Who was answered just now asks again.
        let [since, last] = [first.at, last.at].map(|at| waits.gone.map_or(at, |gone| gone.max(at)));
        let asks: u64 = after().map(|came| came.asks).sum();
        let (quiet, longest) = waits.patience();
        // Those who were answered long ago may never ask again.
        let expected = if waits.expected > FEW && since > waits.gone.unwrap_or(since) + longest { 0 } else { waits.expected };
        let all = expected > 0 && asks >= expected;
        let most = asks >= expected - expected / 4 && last.elapsed() >= quiet;
        if all || most || since.elapsed() >= longest { News::Waits } else { News::Gathers }
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
            let mut came = Coming { last: 0, count: 0, at: Instant::now(), asks: 0 };
            let taken = self.queue.notices(&mut buffer, |number, bare| {
                came = Coming { last: number, count: came.count + 1, asks: came.asks + u64::from(!bare), ..came };
            });
            if came.count > 0 {
                locked(&self.waits).coming.push_back(came);
                rings();
            }
            if taken.is_err() {
                return;
            }
            std::thread::sleep(TOGETHER);
        }
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
