//! One end of a watch asks its witness. Nothing here waits but [`Arbiter::wait`]: questions are sent, and sent again, by whoever looks
//! for answers.

use super::ledger::{Holder, Question, Role, Verdict};
use super::store;
use super::{Arbiter, LENGTH, Number, PORT, Reply, Ticket, Way, random, read_reply, write_question};
use crate::error::{Context, Error, Kind, Result};
use crate::migrate::address::Address;
use crate::transport::Destination;
use crate::watch::beat::Key;
use crate::watch::state;
use crate::watch::status::Witness;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

/// After this a question is sent again.
const AGAIN: Duration = Duration::from_millis(50);
/// Who was not answered so long is not answered: to be known, and for another socket.
const LOST: Duration = Duration::from_secs(2);
/// How often it is looked whether the witness is there, if nothing is asked.
const LOOK: Duration = Duration::from_secs(1);
/// Datagrams of one question whose answers are waited for.
const REMEMBERED: usize = 16;

/// Where a witness is, and what it knows an end of the watch by. Kept and handed over like a key, which is in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// Name or address, and port.
    pub host: String,
    /// Port.
    pub port: u16,
    key: [u8; 32],
}

impl std::fmt::Debug for Contact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Contact({self})")
    }
}

impl std::fmt::Display for Contact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Destination { user: None, host: self.host.clone(), port: Some(self.port) }.fmt(f)
    }
}

impl Contact {
    /// From what a user has named, and the key as text.
    ///
    /// # Errors
    /// [`Kind::Usage`] when that is no key.
    pub fn new(at: &Destination, key: &str) -> Result<Contact> {
        let key = *store::key(key)?.bytes();
        Ok(Contact { host: at.host.clone(), port: at.port.unwrap_or(PORT), key })
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        (self.host.as_str(), self.port).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
    }
}

/// What has come of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// An answer.
    Ruling(state::Ruling),
    /// Nothing has come in time.
    Nothing,
}

/// What is being asked.
struct Asked {
    generation: u64,
    /// For how long nobody else may have the next one.
    lease: Duration,
    /// Somebody waits for what comes of it.
    tells: bool,
    begun: Instant,
    sent: Instant,
    /// Its datagrams, the oldest first.
    numbers: Vec<Number>,
}

/// The end that asks.
pub struct Client {
    contact: Contact,
    addresses: Vec<SocketAddr>,
    who: Holder,
    lease: Duration,
    /// How long an answer may take.
    patience: Duration,
    asks: Way,
    told: Way,
    ticket: Ticket,
    socket: Option<UdpSocket>,
    /// When it was made, and which of the addresses it goes to.
    made: Instant,
    turn: usize,
    asked: Option<Asked>,
    /// When something was sent, and when something was heard last.
    sent: Instant,
    heard: Instant,
    /// It has answered, and could not make anything durable.
    full: bool,
    /// What is wrong with it, as far as that was said.
    trouble: Option<&'static str>,
}

impl Client {
    /// Nothing is asked yet. `lease`: for how long nobody else may have the next generation.
    pub fn new(contact: &Contact, watch: u128, role: Role, lease: Duration) -> Result<Client> {
        let key = Key::of(contact.key);
        let now = Instant::now();
        Ok(Client {
            addresses: contact.addresses(),
            contact: contact.clone(),
            who: Holder { watch, role },
            lease,
            patience: Duration::from_millis(500),
            asks: Way::new(&key, role, false)?,
            told: Way::new(&key, role, true)?,
            ticket: Ticket::default(),
            socket: None,
            made: now,
            turn: 0,
            asked: None,
            sent: now,
            heard: now,
            full: false,
            trouble: None,
        })
    }

    /// What the next question has.
    #[cfg(test)]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    fn begin(&mut self, generation: u64, lease: Duration, tells: bool) {
        let now = Instant::now();
        self.asked = Some(Asked { generation, lease, tells, begun: now, sent: now, numbers: Vec::new() });
        self.send(now);
    }

    fn send(&mut self, now: Instant) {
        let Some(asked) = &mut self.asked else { return };
        (asked.sent, self.sent) = (now, now);
        let question = Question { who: self.who, generation: asked.generation, lease: asked.lease };
        let Ok(number) = random() else { return };
        if asked.numbers.len() >= REMEMBERED {
            asked.numbers.remove(0);
        }
        asked.numbers.push(number);
        let sealed = self.asks.seal(number, &write_question(&self.ticket, &question));
        // An address may have come or gone since: another socket finds another way.
        if self.socket.is_none() || now - self.made.max(self.heard) >= LOST {
            (self.socket, self.made) = (self.open(), now);
        }
        // That it cannot be sent is as if it were lost.
        if let (Some(socket), Ok(sealed)) = (&self.socket, sealed) {
            let _ = socket.send(&sealed);
        }
    }

    fn open(&mut self) -> Option<UdpSocket> {
        let to = *self.addresses.get(self.turn % self.addresses.len().max(1))?;
        self.turn += 1;
        let any = if to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.set_nonblocking(true).and_then(|()| socket.connect(to)).ok()?;
        Some(socket)
    }

    /// What has come of what was asked; never waits. To be called often.
    pub fn hear(&mut self) -> Option<Said> {
        let mut datagram = [0; LENGTH + 1];
        let now = Instant::now();
        while let Some(length) = self.socket.as_ref().and_then(|socket| socket.recv(&mut datagram).ok()) {
            let reply = self.told.open(&datagram[..length]).and_then(|(_, inside)| read_reply(&inside));
            let Some(reply) = reply.filter(|reply| self.asked.as_ref().is_some_and(|asked| asked.numbers.contains(&reply.echo))) else {
                continue;
            };
            (self.heard, self.ticket) = (now, reply.ticket);
            let Some(verdict) = reply.verdict else {
                // Who comes for the first time, or after an answer that was lost.
                self.send(now);
                continue;
            };
            let Some(asked) = self.asked.take() else { continue };
            self.full = if asked.generation > 0 { verdict == Verdict::Failed } else { self.full };
            if asked.tells {
                return Some(Said::Ruling(self.ruling(verdict, &reply)));
            }
        }
        let Some(asked) = &self.asked else {
            if now - self.sent >= LOOK {
                self.begin(0, Duration::ZERO, false);
            }
            return None;
        };
        if now - asked.begun >= self.patience {
            let asked = self.asked.take()?;
            return asked.tells.then_some(Said::Nothing);
        }
        if now - asked.sent >= AGAIN {
            self.send(now);
        }
        None
    }

    fn ruling(&self, verdict: Verdict, reply: &Reply) -> state::Ruling {
        use state::Whose;
        let whose = match reply.holder {
            None => Whose::Nobodys,
            Some(holder) if holder == self.who => Whose::Mine,
            Some(holder) if holder.watch == self.who.watch => Whose::Peers,
            Some(_) => Whose::Strangers,
        };
        state::Ruling { granted: verdict == Verdict::Granted, generation: reply.generation, whose, left: reply.left }
    }

    fn check(&self, taken: &[Address]) -> Result<()> {
        let own = self.socket.as_ref().map(|socket| socket.local_addr()).transpose().context(|| "a socket for the witness")?;
        match own.filter(|own| taken.iter().any(|address| address.ip == own.ip())) {
            Some(own) => {
                let what = format!("the way to the witness {} begins at {}, which goes with the tree", self.at(), own.ip());
                Err(Error::new(Kind::Usage, what).help("name the witness by an address to which this host has another way"))
            }
            None => Ok(()),
        }
    }
}

impl Arbiter for Client {
    fn at(&self) -> String {
        self.contact.to_string()
    }

    fn status(&self) -> Witness {
        Witness { at: self.at(), trouble: self.trouble.map(str::to_owned) }
    }

    fn trouble(&self) -> Option<&'static str> {
        self.trouble
    }

    fn ask(&mut self, generation: u64) {
        self.begin(generation, self.lease, true);
    }

    fn cede(&mut self, generation: u64) {
        self.begin(generation, Duration::ZERO, true);
    }

    fn event(&mut self) -> Option<state::Event> {
        self.hear().map(|said| match said {
            Said::Ruling(ruling) => state::Event::Ruled(ruling),
            Said::Nothing => state::Event::Unruled,
        })
    }

    fn news(&mut self) -> Option<String> {
        let trouble = match (self.heard.elapsed() >= LOST, self.full) {
            (true, _) => Some("does not answer"),
            (false, true) => Some("cannot make anything durable (is its disk full?)"),
            (false, false) => None,
        };
        if trouble == self.trouble {
            return None;
        }
        self.trouble = trouble;
        let at = self.at();
        Some(match trouble {
            Some(what) => format!("the witness {at} {what}: until it does, nobody takes over, and nobody goes on alone"),
            None => format!("the witness {at} answers again"),
        })
    }

    fn wait(&mut self, generation: u64, taken: &[Address]) -> Result<state::Ruling> {
        const LIMIT: Duration = Duration::from_secs(5);
        const STEP: Duration = Duration::from_millis(1);
        if self.addresses.is_empty() {
            return Err(Error::link(format!("{} has no address", self.contact.host)).help("name the witness as it is known on this host"));
        }
        let until = Instant::now() + LIMIT;
        let mut reply = None;
        self.ask(generation);
        self.check(taken)?;
        while reply.is_none() && Instant::now() < until {
            match self.hear() {
                Some(Said::Ruling(ruling)) => reply = Some(ruling),
                Some(Said::Nothing) => self.ask(generation),
                None => std::thread::sleep(STEP),
            }
        }
        reply.ok_or_else(|| {
            Error::link(format!("the witness {} does not answer", self.at()))
                .help("meio witness must run there, reached by UDP, with the key that was given; meio-witness(1) has more")
        })
    }
}
