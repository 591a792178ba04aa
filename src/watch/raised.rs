//! The addresses of a tree at the standby that takes over: they come up before it runs, and go down again when it does not, also
//! when this meio is killed meanwhile.

use super::lease::ignore_signals;
use crate::error::{Context, Result};
use crate::migrate::address::{Address, Probe};
use crate::migrate::frozen::announce_again;
use crate::migrate::record::Member;
use crate::netlock;
use crate::resource::thread::serde_bytes_vec::Bytes;
use crate::sys::guardian::Guardian;
use crate::sys::task;
use crate::sys::wire::Wire;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// An order: what is to become of them when meio is gone. Another number is the pid of the root of what is planted: they go unless that
/// lives then.
type Order = i32;
const DOWN: Order = 0;
const STAY: Order = -1;

/// The addresses, and who takes them down.
pub struct Raised {
    addresses: Vec<Address>,
    /// How many were brought up here.
    up: usize,
    keeper: Option<Guardian>,
}

impl Raised {
    /// None is up yet. Somebody else, a copy of meio as it is now, sees to them when meio is killed, and holds what meio holds now until
    /// then: the lock over what comes for the tree is to be there already, and nothing large.
    ///
    /// # Errors
    /// When the kernel gives no process.
    pub fn guarded(addresses: &[Address]) -> Result<Raised> {
        let theirs = addresses.to_vec();
        let meio = task::pidfd(std::process::id() as i32).context(|| "starting a guardian")?;
        let keeper = if theirs.is_empty() { None } else { Some(Guardian::beside(move |orders| keep(&theirs, &orders, &meio))?) };
        Ok(Raised { addresses: addresses.to_vec(), up: 0, keeper })
    }

    fn tell(&self, order: Order) {
        // One that is gone can do nothing.
        let _ = self.keeper.as_ref().map(|keeper| keeper.tell(&order.to_ne_bytes()));
    }

    /// Brings them up, silently.
    ///
    /// # Errors
    /// Those of the kernel; it may be tried again.
    pub fn raise(&mut self) -> Result<()> {
        self.tell(DOWN);
        for address in &self.addresses[self.up..] {
            address.bring_up()?;
            self.up += 1;
        }
        Ok(())
    }

    /// The tree is planted, with this root: it lives from some moment on whatever becomes of meio.
    pub fn planted(&self, root: i32) {
        self.tell(root);
    }

    /// Those that came up here go.
    pub fn take_down(&mut self) {
        self.addresses.iter().take(std::mem::take(&mut self.up)).for_each(|address| drop(address.take()));
        self.tell(STAY);
    }

    /// The tree runs: they stay, whatever becomes of meio, and the neighbours are told again.
    pub fn stay(&self) {
        self.tell(STAY);
        self.addresses.iter().for_each(announce_again);
    }

    /// Tells the neighbours once. To close the socket for it takes its time: where what comes to the other host is sent on nobody waits
    /// for that.
    pub fn announce(&self, wait: bool) {
        let addresses = self.addresses.clone();
        let work = move || addresses.iter().for_each(|address| drop(address.announce_once()));
        match std::thread::Builder::new().name("announce".into()).spawn(work) {
            Ok(thread) if wait => drop(thread.join()),
            Ok(_) => {}
            Err(_) => self.addresses.iter().for_each(|address| drop(address.announce_once())),
        }
    }

    /// Asks whether nobody else has one of them, whenever that is wanted.
    pub fn question(&self) -> impl FnOnce() -> bool + Send + use<> {
        let addresses = self.addresses.clone();
        move || addresses.iter().all(|address| address.probe(Probe::QUICK, &[]).is_ok_and(|others| others.is_empty()))
    }
}

/// Packets that came for the tree where it stood still, and wait until it runs here.
#[derive(Default)]
pub struct Waiting(Vec<Bytes>);

impl Waiting {
    /// These, too.
    pub fn take(&mut self, packets: Vec<Bytes>) {
        const MOST: usize = 1 << 16;
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend(packets.into_iter().take(room));
    }

    /// Hands them on; what cannot be is sent again by whoever sent it.
    pub fn deliver(&mut self) {
        if !self.0.is_empty() {
            let wire = Wire::new(netlock::PASS);
            for Bytes(packet) in self.0.drain(..) {
                let _ = wire.as_ref().map(|wire| wire.packet(&packet));
            }
        }
    }
}

fn keep(addresses: &[Address], orders: &OwnedFd, meio: &OwnedFd) {
    /// For meio to end whose descriptors are closed, and then for what was planted and ends with it.
    const DYING: u16 = 5000;
    const MOMENT: Duration = Duration::from_millis(20);
    ignore_signals();
    let (mut last, mut tree) = (STAY, None);
    let mut order = [0; size_of::<Order>()];
    loop {
        match nix::unistd::read(orders, &mut order) {
            Ok(n) if n == order.len() => {
                last = Order::from_ne_bytes(order);
                tree = Member::of(last).ok().filter(|_| last > 0);
            }
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    if last != STAY {
        // What is said by a tree that dies before it was let run is kept back by the lock; after this it has no address to say it from.
        let _ = poll(&mut [PollFd::new(meio.as_fd(), PollFlags::POLLIN)], PollTimeout::from(DYING));
        std::thread::sleep(MOMENT);
        if tree.is_none_or(|tree| !tree.lives()) {
            addresses.iter().filter(|address| address.is_up().unwrap_or(false)).for_each(|address| drop(address.take()));
        }
    }
}
