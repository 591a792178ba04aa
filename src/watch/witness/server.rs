//! The witness at work: one thread, one socket, no connections.
//!
//! What has come is answered in batches: all generations that it changes are written to the file together, and nobody is told before
//! they are there. Leases change nothing on the disk. Of who sends what cannot be opened nothing is kept, and he gets no answer.

use super::ledger::{Ledger, Role, Verdict};
use super::store::{Claim, Store};
use super::{Id, LENGTH, Reply, Ticket, Way, head, id, random, read_question, write_reply};
use crate::error::{Context, Error, Result};
use crate::progress::Report;
use crate::sys::manager::Manager;
use crate::sys::signal;
use crate::watch::beat::Key;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

/// Datagrams that are answered together.
const BATCH: usize = 256;
/// What the kernel is asked to keep of them meanwhile: some tens of thousands.
const ROOM: usize = 8 << 20;

/// What is kept of one end of a watch.
struct End {
    asks: Way,
    told: Way,
    /// What its next question must have.
    ticket: Ticket,
}

struct Service {
    name: String,
    key: Key,
    ends: [End; 2],
}

impl Service {
    fn new(name: String, key: Key) -> Result<Service> {
        let end = |role| Ok::<_, Error>(End { asks: Way::new(&key, role, false)?, told: Way::new(&key, role, true)?, ticket: random()? });
        let ends = [end(Role::Primary)?, end(Role::Standby)?];
        Ok(Service { name, key, ends })
    }

    fn end(&mut self, role: Role) -> &mut End {
        &mut self.ends[role as usize - 1]
    }
}

/// What came and what is to be said.
struct Turn {
    from: SocketAddr,
    service: Id,
    role: Role,
    reply: Reply,
}

/// What it has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Questions that were answered.
    pub answered: u64,
    /// Those of them whose ticket was not the right one.
    pub stale: u64,
    /// Datagrams that could not be opened.
    pub forged: u64,
    /// How often something was made durable.
    pub writes: u64,
}

/// A witness.
pub struct Server {
    store: Store,
    socket: UdpSocket,
    begun: Instant,
    ledger: Ledger,
    services: HashMap<Id, Service>,
    /// Of the keys, when they were read last.
    stamp: Option<SystemTime>,
    looked: Instant,
    count: Count,
    /// What is wrong, as far as that was said.
    complaint: Option<String>,
    _claim: Claim,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When another one is at work in that folder, what is there cannot be read, or the port is taken.
    pub fn open(store: Store, at: SocketAddr) -> Result<Server> {
        let claim = store.claim()?;
        let begun = Instant::now();
        let ledger = Ledger::new(store.read()?, Duration::ZERO);
        // What cannot be written later could not be granted either.
        store.write(ledger.entries())?;
        let socket = UdpSocket::bind(at).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        let socket = socket.context(|| format!("listening on {at}"))?;
        let _ = setsockopt(&socket, sockopt::RcvBuf, &ROOM);
        let services = HashMap::new();
        let (stamp, looked, count, complaint) = (None, begun, Count::default(), None);
        let mut server = Server { store, socket, begun, ledger, services, stamp, looked, count, complaint, _claim: claim };
        server.look()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn at(&self) -> Result<SocketAddr> {
        self.socket.local_addr().context(|| "the socket of the witness")
    }

    /// How many services it knows.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// What it has done so far.
    pub fn count(&self) -> Count {
        self.count
    }

    /// Answers until a signal comes. `manager`: who has started meio, and hears how things stand.
    ///
    /// # Errors
    /// When its socket fails.
    pub fn serve(&mut self, manager: &Manager, report: &mut dyn Report) -> Result<()> {
        const LOOK: Duration = Duration::from_secs(1);
        let wait = manager.every().map_or(LOOK, |every| every.min(LOOK));
        let mut known = None;
        manager.ready();
        while signal::take().is_none() {
            manager.lives();
            if known.replace(self.services()) != Some(self.services()) {
                manager.status(&format!("services: {}", self.services()));
            }
            self.turn(wait, report)?;
            if self.looked.elapsed() >= LOOK
                && let Err(e) = self.look()
            {
                self.complain(&e, report);
            }
        }
        manager.stopping();
        Ok(())
    }

    /// Says what is wrong, once.
    fn complain(&mut self, e: &Error, report: &mut dyn Report) {
        let text = e.to_string();
        if self.complaint.as_ref() != Some(&text) {
            report.warning(&text);
            self.complaint = Some(text);
        }
    }

    /// Reads the keys, if one has come or gone since.
    fn look(&mut self) -> Result<()> {
        self.looked = Instant::now();
        let stamp = self.store.stamp();
        if stamp.is_some() && stamp == self.stamp {
            return Ok(());
        }
        let keys: BTreeMap<String, Key> = self.store.keys()?;
        self.services.retain(|_, service| keys.get(&service.name).is_some_and(|key| key.bytes() == service.key.bytes()));
        for (name, key) in keys {
            if let Entry::Vacant(place) = self.services.entry(id(&key)?) {
                place.insert(Service::new(name, key)?);
            }
        }
        // A folder that has just changed may change again within the same tick of its clock.
        const TICK: Duration = Duration::from_millis(100);
        self.stamp = stamp.filter(|stamp| stamp.elapsed().is_ok_and(|since| since >= TICK));
        Ok(())
    }

    /// Answers what has come; waits for it as long as that.
    pub fn turn(&mut self, wait: Duration, report: &mut dyn Report) -> Result<()> {
        let limit = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], limit);
        let mut turns = Vec::new();
        let mut datagram = [0; LENGTH + 1];
        for _ in 0..BATCH {
            let Ok((length, from)) = self.socket.recv_from(&mut datagram) else { break };
            match self.hear(&datagram[..length], from)? {
                Some(turn) => turns.push(turn),
                None => self.count.forged += 1,
            }
        }
        if self.ledger.is_unsettled() {
            self.settle(&mut turns, report);
        }
        for turn in turns {
            let Some(service) = self.services.get_mut(&turn.service) else { continue };
            let sealed = service.end(turn.role).told.seal(random()?, &write_reply(&turn.reply))?;
            // What cannot be sent is as if it were lost.
            let _ = self.socket.send_to(&sealed, turn.from);
            self.count.answered += 1;
        }
        Ok(())
    }

    /// One datagram; `None`: it is none that is answered.
    fn hear(&mut self, datagram: &[u8], from: SocketAddr) -> Result<Option<Turn>> {
        /// Whoever was just given a key is not kept waiting, and who has none makes nobody read files.
        const SOON: Duration = Duration::from_millis(20);
        let Some((id, role)) = head(datagram) else { return Ok(None) };
        if !self.services.contains_key(&id) && self.looked.elapsed() >= SOON {
            // What cannot be read is said by who looks each second.
            let _ = self.look();
        }
        let Some(service) = self.services.get_mut(&id) else { return Ok(None) };
        let Some((number, inside)) = service.end(role).asks.open(datagram) else { return Ok(None) };
        let (ticket, question) = read_question(&inside, role);
        let now = self.begun.elapsed();
        let fresh = ticket == service.end(role).ticket;
        let answer = if fresh {
            service.end(role).ticket = random()?;
            Some(self.ledger.ask(&service.name, &question, now))
        } else {
            self.count.stale += 1;
            None
        };
        let entry = answer.map_or_else(|| self.ledger.entry(&service.name), |answer| answer.entry);
        let reply = Reply {
            echo: number,
            verdict: answer.map(|answer| answer.verdict),
            ticket: service.end(role).ticket,
            holder: entry.map(|entry| entry.holder),
            generation: entry.map_or(0, |entry| entry.generation),
            left: answer.map_or(Duration::ZERO, |answer| answer.left),
        };
        Ok(Some(Turn { from, service: id, role, reply }))
    }

    /// Makes durable what has changed; what cannot be is not granted.
    fn settle(&mut self, turns: &mut [Turn], report: &mut dyn Report) {
        let changed = self.ledger.unsettled();
        let done = self.store.write(self.ledger.entries());
        self.ledger.settle(done.is_ok());
        self.count.writes += 1;
        for turn in turns.iter_mut().filter(|turn| turn.reply.verdict == Some(Verdict::Granted)) {
            let Some(name) = self.services.get(&turn.service).map(|service| &service.name).filter(|name| changed.contains(*name)) else {
                continue;
            };
            let entry = self.ledger.entry(name);
            if done.is_err() {
                let (holder, generation) = (entry.map(|entry| entry.holder), entry.map_or(0, |entry| entry.generation));
                turn.reply = Reply { verdict: Some(Verdict::Failed), holder, generation, left: Duration::ZERO, ..turn.reply };
            } else if let Some(entry) = entry {
                report.note(&format!("{name}: generation {} is the {:?}'s", entry.generation, entry.holder.role));
            }
        }
        match done {
            Ok(()) => self.complaint = None,
            Err(e) => self.complain(&e, report),
        }
    }
}
