//! Opening the streams of bulk: direct connections where the target can be reached, else sessions of ssh.
//!
//! source: ASK (its key, how many) → target: OFFER (port, its key, a token) → source connects, or starts sessions
//! that say the token; GO says which → target: OPEN once all streams are there.

use super::direct::{self, Gate, Key, Stream};
use super::flow::{Receiver, Sender};
use super::frame::Frame;
use super::lend::Lender;
use super::port::{Port, Stop};
use super::{Carrier, Direct, How, Link, Peer, Role, Way};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Kinds of the frames that open streams.
const ASK: u16 = 4;
const OFFER: u16 = 5;
const GO: u16 = 6;
const OPEN: u16 = 7;
/// A direct connection must be there by then, or it goes over ssh.
const REACHED: Duration = Duration::from_secs(1);
/// Logins at a time: a server sends some away when there are more (`MaxStartups` of sshd_config(5)).
const AT_ONCE: usize = 4;
/// All streams must be open by then.
const OPENED: Duration = Duration::from_secs(30);

#[derive(Serialize, Deserialize)]
struct Ask {
    streams: usize,
    /// The source's key, when it will connect directly.
    key: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Offer {
    /// Port and key of the target, when it listens.
    direct: Option<(u16, Vec<u8>)>,
    /// Where it believes to be.
    addresses: Vec<IpAddr>,
    token: String,
}

#[derive(Serialize, Deserialize)]
struct Go {
    direct: bool,
}

#[derive(Serialize, Deserialize)]
struct Open {
    /// How many came to the port who were somebody else.
    strangers: u64,
    /// Why it did not work.
    failed: Option<String>,
}

/// The streams of a peer.
pub struct Bulk {
    stop: Arc<Stop>,
    /// Until somebody sends or receives on them.
    streams: Option<Vec<Stream>>,
    /// No more bytes a second are sent, at the source.
    bandwidth: Option<u64>,
    /// Whether they go beside ssh.
    direct: bool,
    /// Who came to the port and had another key.
    strangers: u64,
    /// What keeps ssh sessions going, at the source; after the streams, so that what was sent last gets there.
    carriers: Vec<Carrier>,
    /// By which lent streams go back, at the target.
    _lent: Vec<UnixStream>,
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.end();
        // All hear of the end before the first is waited for.
        for carrier in &self.carriers {
            let _ = carrier.near.shutdown(std::net::Shutdown::Write);
        }
    }
}

impl Peer {
    /// Opens the streams; both ends call it, the source decides how they go.
    ///
    /// # Errors
    /// When they cannot be opened in one way or the other.
    pub fn open_bulk(&mut self) -> Result<()> {
        crate::sys::heap::keep_freed();
        let stop = Stop::new()?;
        self.link.stops(&stop);
        let bulk = match &self.role {
            Role::Source { way, how, .. } => ask(&mut self.link, way, how, stop)?,
            Role::Target { .. } => offer(&mut self.link, stop)?,
        };
        self.bulk = Some(bulk);
        Ok(())
    }

    /// The end of the streams that sends, once: the source's, or the target's where it was agreed so.
    ///
    /// # Errors
    /// When there are none, or somebody has them; when the kernel gives no threads.
    pub fn sender(&mut self) -> Result<Sender> {
        let bandwidth = self.bulk.as_ref().and_then(|b| b.bandwidth);
        Sender::new(self.streams()?, bandwidth)
    }

    /// The one that receives, once: the other one.
    ///
    /// # Errors
    /// When there are none, or somebody has them; when the kernel gives no threads.
    pub fn receiver(&mut self) -> Result<Receiver> {
        Receiver::new(self.streams()?)
    }

    fn streams(&mut self) -> Result<Vec<Stream>> {
        self.bulk.as_mut().and_then(|b| b.streams.take()).ok_or_else(|| Error::other("there are no streams that nobody has"))
    }

    /// Whether the streams go beside ssh; none before they are open.
    pub fn is_direct(&self) -> Option<bool> {
        self.bulk.as_ref().map(|b| b.direct)
    }

    /// How many came to the port of the streams who were not the source, and were sent away.
    pub fn strangers(&self) -> u64 {
        self.bulk.as_ref().map_or(0, |b| b.strangers)
    }
}

fn say(link: &Link, kind: u16, what: &impl Serialize) -> Result<()> {
    let mut payload = Vec::new();
    ciborium::into_writer(what, &mut payload).map_err(|e| Error::other(format!("cannot write a message: {e}")))?;
    link.send_own(&Frame { payload, ..Frame::bare(kind) })
}

fn hear<T: DeserializeOwned>(link: &mut Link, kind: u16, limit: Duration) -> Result<T> {
    let frame = link.receive_own(kind, limit)?;
    ciborium::from_reader(&frame.payload[..]).map_err(|_| Error::link(format!("a message of kind {kind} makes no sense")))
}

/// The source's side.
fn ask(link: &mut Link, way: &Way, how: &How, stop: Arc<Stop>) -> Result<Bulk> {
    let key = match how.direct {
        Direct::Auto => Some(Key::new()?),
        Direct::Never => None,
    };
    say(link, ASK, &Ask { streams: how.streams, key: key.as_ref().map(|k| k.public.clone()) })?;
    let offer: Offer = hear(link, OFFER, OPENED)?;
    let called = match (&key, &offer.direct) {
        (Some(key), Some((port, theirs))) => call(way, &offer.addresses, *port, key, theirs, how.streams, &stop),
        _ => None,
    };
    say(link, GO, &Go { direct: called.is_some() })?;
    let direct = called.is_some();
    let (streams, carriers) = match called {
        Some(streams) => (streams, Vec::new()),
        None => sessions(way, how, &offer.token, &stop)?,
    };
    let open: Open = hear(link, OPEN, OPENED)?;
    if let Some(why) = open.failed {
        return Err(Error::link(format!("the target cannot open streams: {}", super::pump::plain(why.as_bytes()))));
    }
    Ok(Bulk { stop, streams: Some(streams), bandwidth: how.bandwidth, direct, strangers: open.strangers, carriers, _lent: Vec::new() })
}

/// Direct connections, or none at all. Who is reached and is not the target ends the attempt: the target might count
/// the next one twice.
fn call(way: &Way, told: &[IpAddr], port: u16, own: &Key, theirs: &[u8], count: usize, stop: &Arc<Stop>) -> Option<Vec<Stream>> {
    let mut addresses = way.addresses();
    addresses.extend(told.iter().take(8));
    let mut seen = BTreeSet::new();
    addresses.retain(|a| seen.insert(*a));
    let end = Instant::now() + REACHED;
    let reached = addresses.into_iter().find_map(|address| {
        let at = SocketAddr::new(address, port);
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() { None } else { Some((at, TcpStream::connect_timeout(&at, left).ok()?)) }
    });
    let (at, first) = reached?;
    let first = direct::greet(first, own, theirs, stop).ok()?;
    std::thread::scope(|scope| {
        let others: Vec<_> =
            (1..count).map(|_| scope.spawn(move || direct::greet(TcpStream::connect_timeout(&at, REACHED)?, own, theirs, stop))).collect();
        let mut all = vec![first];
        for other in others {
            all.push(other.join().ok()?.ok()?);
        }
        Some(all)
    })
}

/// Sessions of ssh, each with an agent that lends its ends to the first one.
fn sessions(way: &Way, how: &How, token: &str, stop: &Arc<Stop>) -> Result<(Vec<Stream>, Vec<Carrier>)> {
    let command = format!("{} agent --bulk {token}", how.remote_path);
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::link("the target's offer makes no sense"));
    }
    let mut carriers = Vec::new();
    while carriers.len() < how.streams {
        let some = AT_ONCE.min(how.streams - carriers.len());
        let started: Vec<Result<Carrier>> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..some).map(|_| scope.spawn(|| way.start(&command, how.timeout))).collect();
            all.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::other("a thread has panicked")))).collect()
        });
        carriers.extend(started.into_iter().collect::<Result<Vec<_>>>()?);
    }
    let port = |c: &Carrier| Ok(Stream::Lent(Port::socket(c.near.try_clone()?, stop.clone(), None)?));
    let streams = carriers.iter().map(port).collect::<Result<Vec<_>>>()?;
    Ok((streams, carriers))
}

/// The target's side.
fn offer(link: &mut Link, stop: Arc<Stop>) -> Result<Bulk> {
    let ask: Ask = hear(link, ASK, OPENED)?;
    if !(1..=super::STREAMS).contains(&ask.streams) {
        return Err(Error::link(format!("the source asks for {} streams", ask.streams)));
    }
    let lender = Lender::new()?;
    let here = reached_at();
    let mut gate = None;
    let mut direct = None;
    if let Some(theirs) = &ask.key {
        let key = Key::new()?;
        // Where it cannot listen there are still the sessions.
        gate = Gate::open(here.unwrap_or(IpAddr::from([0; 4])), &key, theirs, &stop).ok();
        direct = gate.as_ref().map(|g| (g.port, key.public));
    }
    say(link, OFFER, &Offer { direct, addresses: here.into_iter().collect(), token: lender.token.clone() })?;
    let go: Go = hear(link, GO, OPENED)?;
    let taken = match (go.direct, gate) {
        (true, Some(gate)) => gate.take(ask.streams, OPENED).map(|(streams, strangers)| (streams, strangers, Vec::new())),
        (true, None) => Err(Error::link("the source calls where nobody listens")),
        (false, gate) => {
            let strangers = gate.as_ref().map_or(0, Gate::strangers);
            drop(gate);
            lender.take(ask.streams, &stop, OPENED).map(|(streams, back)| (streams, strangers, back))
        }
    };
    let failed = taken.as_ref().err().map(|e| e.message.clone());
    say(link, OPEN, &Open { strangers: taken.as_ref().map_or(0, |t| t.1), failed })?;
    let (streams, strangers, lent) = taken?;
    Ok(Bulk { stop, streams: Some(streams), bandwidth: None, direct: go.direct, strangers, carriers: Vec::new(), _lent: lent })
}

/// The address that the source's ssh has come from, as far as that is known: see `reached_at`.
pub fn called_from() -> Option<IpAddr> {
    std::env::var("SSH_CONNECTION").ok()?.split(' ').next()?.parse().ok()
}

/// The address that the source's ssh has come to: sshd says it in the environment, ssh(1).
fn reached_at() -> Option<IpAddr> {
    std::env::var("SSH_CONNECTION").ok()?.split(' ').nth(2)?.parse().ok()
}
