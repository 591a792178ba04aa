//! The service address at the primary, in the hands of a child of meio: it is up as long as there is a lease, and goes down when
//! that ends, also when meio was stopped or killed before it could renew it.

use crate::error::Result;
use crate::migrate::address::Address;
use crate::migrate::frozen::announce;
use crate::netlock::hold;
use crate::netlock::kept::{self, Owner};
use crate::sys::guardian::Guardian;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// An order: nanoseconds since the watch began, until which the address may be up.
type Order = u64;
/// For good, whatever becomes of meio.
const FREE: Order = Order::MAX;
/// What is held is this meio's.
const OURS: Order = FREE - 1;
/// Not even now.
const HIDDEN: Order = 0;

/// The addresses, and who keeps them. Dropped, they stay as they are for as long as their lease goes.
pub struct Lease(Option<Guardian>);

impl Lease {
    /// They are up, and stay so until something else is said. It is a copy of meio: call this early. `begun`: from when on time
    /// is counted. `held`: name of the watch, when what leaves them is held. `down`: they are not here, and come when they are leased.
    pub fn take(addresses: &[Address], begun: Instant, held: Option<&str>, down: bool) -> Result<Lease> {
        if addresses.is_empty() {
            return Ok(Lease(None));
        }
        let (addresses, held) = (addresses.to_vec(), held.map(str::to_owned));
        Guardian::beside(move |orders| keep(&addresses, begun, held.as_deref(), down, &orders)).map(|guardian| Lease(Some(guardian)))
    }

    fn tell(&self, order: Order) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |guardian| guardian.tell(&order.to_ne_bytes()))
    }

    /// They are up until then.
    pub fn until(&self, until: Duration) -> Result<()> {
        self.tell((until.as_nanos() as Order).clamp(1, OURS - 1))
    }

    /// What leaves them is held under the name of the watch, or may be at any time.
    pub fn holds(&self) -> Result<()> {
        self.tell(OURS)
    }

    /// They are up for good.
    pub fn free(&self) -> Result<()> {
        self.tell(FREE)
    }

    /// They are down.
    pub fn hide(&self) -> Result<()> {
        self.tell(HIDDEN)
    }
}

fn keep(addresses: &[Address], begun: Instant, held: Option<&str>, hidden: bool, orders: &OwnedFd) {
    ignore_signals();
    let (mut until, mut up, mut ours) = (if hidden { HIDDEN } else { FREE }, !hidden, false);
    loop {
        let left = Duration::from_nanos(until).saturating_sub(begun.elapsed());
        let down = until != FREE && left.is_zero();
        if down == up {
            for address in addresses {
                if down {
                    let _ = address.take();
                } else if address.bring_up().is_ok() {
                    announce(address);
                }
            }
            up = !down;
        }
        // Rounded up: it is not to turn round and round in the last millisecond.
        let wait = if until == FREE || down {
            PollTimeout::NONE
        } else {
            PollTimeout::try_from(left.as_millis() as i32 + 1).unwrap_or(PollTimeout::MAX)
        };
        if !matches!(poll(&mut [PollFd::new(orders.as_fd(), PollFlags::POLLIN)], wait), Ok(1..)) {
            continue;
        }
        let mut order = [0; size_of::<Order>()];
        match nix::unistd::read(orders, &mut order) {
            Ok(n) if n == order.len() => match Order::from_ne_bytes(order) {
                OURS => ours = true,
                order => until = order,
            },
            Ok(0) => {
                // Nobody is there any more who could renew it.
                if let Some(watch) = held.filter(|_| ours) {
                    orphaned(watch, until == FREE);
                } else if until != FREE {
                    std::thread::sleep(Duration::from_nanos(until).saturating_sub(begun.elapsed()));
                }
                if until != FREE && up {
                    addresses.iter().for_each(|address| drop(address.take()));
                }
                return;
            }
            _ => {}
        }
    }
}

/// Without meio nothing gets out that is held, and nobody need wait for that. What holds nothing is not to be left.
fn orphaned(watch: &str, free: bool) {
    let _ = if free { kept::release(None, &Owner::Watch(watch.to_owned())).map(drop) } else { hold::shut(watch) };
}

/// ^C is for meio, which says then what is to be.
pub fn ignore_signals() {
    use nix::sys::signal::{SigHandler, Signal};
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let _ = crate::sys::signal::set_handler(signal, SigHandler::SigIgn);
    }
}
