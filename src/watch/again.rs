//! At the primary: whoever stands by is called, and called again when the link is lost; by threads, since who decides must not be
//! kept waiting.
//!
//! The one that was there before is asked for first: it has what was acknowledged, and goes on with it. Where it is no more a new
//! one is begun, which has nothing. As only one process can be at work on a watch there, a new one says that the other has ended;
//! and if that has taken over, it is on record there.

use super::beat::{Beats, Key};
use super::porch::Porch;
use super::protect::Options;
use super::record::{Back, Claim};
use super::setup::{SETUP, Seat, Setup};
use super::witness::Contact;
use crate::error::{Error, Kind, Result};
use crate::migrate::plan::{Details, Plan, pack, unpack};
use crate::progress::{Report, Silent};
use crate::transport::{self, Peer, Sender};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// For what the standby may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What everybody is asked.
#[derive(Clone)]
pub struct Ask {
    /// What the user wants.
    pub options: Options,
    /// What the tree needs.
    pub plan: Plan,
    /// Which watch it is.
    pub watch: u128,
    /// What leads to the witness.
    pub witness: Option<Contact>,
}

/// Who is called.
#[derive(Debug, Clone, Default)]
pub struct Whom {
    /// The primary's own, once it has one.
    pub generation: Option<u64>,
    /// Lower ones are on record here.
    pub least: u64,
    /// The last process that was there.
    pub instance: u64,
    /// What that one is to be told, to come to it.
    pub token: Option<String>,
    /// Nobody here has its key for heartbeats.
    pub fresh: bool,
    /// What it is told of others who stand by.
    pub seat: Option<Box<Seat>>,
}

impl Whom {
    /// Who stood by for a meio that was killed.
    pub fn back(back: &Back) -> Whom {
        Whom { instance: back.instance, token: Some(back.token.clone()), fresh: true, ..Whom::default() }
    }
}

/// How who stands by is reached.
pub enum Reach {
    /// They are called.
    Called,
    /// They call.
    Calls(Here),
}

/// Those who have called.
pub struct Here {
    /// The links that they have made, each at its place.
    pub peers: Vec<Peer>,
    /// What leads to the witness.
    pub witness: Option<Contact>,
    /// Where they come when these are lost.
    pub porch: Arc<Porch>,
    /// That nobody else is at work on it, where that is so already.
    pub claim: Option<Arc<Claim>>,
}

/// Who has answered.
pub enum Found {
    /// One that can be used.
    Standby(Box<Standing>),
    /// One that has taken over, with this generation and as this process.
    Taken {
        /// Its own.
        generation: u64,
        /// Which process.
        instance: u64,
        /// It runs there already.
        runs: bool,
    },
}

/// One that stands by.
pub struct Standing {
    /// The link to it,
    pub peer: Peer,
    /// and its streams.
    pub sender: Sender,
    /// The primary's generation.
    pub generation: u64,
    /// Which process it is.
    pub instance: u64,
    /// How many images it has, if it has been there before.
    pub images: Option<u64>,
    /// Where heartbeats go from now on, if not where they went before.
    pub beats: Option<Beats>,
    /// What is to be told to come back to it, where that is new.
    pub token: Option<String>,
    /// Where it hears other standbys, where that is new.
    pub polls: Option<SocketAddr>,
    /// What is different there.
    pub warnings: Vec<String>,
}

/// One that can be used, and waits for a word.
pub struct Answered {
    peer: Peer,
    key: Key,
    /// The highest on record there.
    pub generation: u64,
    instance: u64,
    images: Option<u64>,
    port: Option<u16>,
    token: Option<String>,
    /// Where it hears other standbys.
    pub polls: Option<SocketAddr>,
    warnings: Vec<String>,
}

/// What was answered.
pub enum Reply {
    /// It can be used.
    Standby(Box<Answered>),
    /// See [`Found::Taken`].
    Taken {
        /// Its own.
        generation: u64,
        /// Which process.
        instance: u64,
        /// It runs there already.
        runs: bool,
    },
}

/// Logs in and has an agent answer, the one that is there where there is one.
pub fn connect(options: &Options, whom: &Whom, report: &mut dyn Report) -> Result<Peer> {
    let command = match &whom.token {
        Some(token) => format!("agent --watch {}", transport::again(token)?),
        None => "agent --watch".into(),
    };
    transport::connect_to(&options.standby, &options.how, &command, report)
}

/// Comes to terms with who has answered. Everything that stands in the way is said before anything is touched.
pub fn agree(ask: &Ask, whom: &Whom, peer: Peer) -> Result<Found> {
    Ok(match question(ask, whom, peer)? {
        Reply::Taken { generation, instance, runs } => Found::Taken { generation, instance, runs },
        Reply::Standby(answered) => {
            let generation = whom.generation.unwrap_or(whom.least.max(answered.generation) + 1);
            Found::Standby(Box::new(answered.begin(ask, whom, generation)?))
        }
    })
}

/// Says it before the watch begins.
pub fn say(peer: &Peer, setup: &Setup) -> Result<()> {
    peer.link.send(&transport::Frame { kind: SETUP, generation: 0, payload: pack(setup)? })
}

/// The first half of it: nothing begins there.
pub fn question(ask: &Ask, whom: &Whom, mut peer: Peer) -> Result<Reply> {
    let options = &ask.options;
    let key = Key::make()?;
    let asked = Setup::Ask {
        name: options.name.clone(),
        watch: ask.watch,
        plan: Box::new(ask.plan.clone()),
        key: *key.bytes(),
        generation: whom.generation.unwrap_or(0),
        known: whom.instance,
        fresh: whom.fresh,
        several: options.limits.standbys > 1,
    };
    say(&peer, &asked)?;
    let frame = peer.link.receive(Some(PATIENCE))?;
    let taken = |theirs| whom.generation.is_some_and(|own| theirs > own);
    let (generation, instance, images, port, token, polls, warnings) = match unpack(&frame.payload)? {
        Setup::Answer { generation, instance, runs, .. } | Setup::Going { generation, instance, runs, .. } if taken(generation) => {
            return Ok(Reply::Taken { generation, instance, runs });
        }
        Setup::Answer { details, generation, instance, port, token, polls, .. } => {
            let Details { refusals, warnings, .. } = details;
            if !refusals.is_empty() {
                let what = format!("process {} cannot live on {}", options.dump.pid, options.standby.host);
                return Err(Error::refused(&what, refusals));
            }
            let polls = Some(polls).filter(|polls| *polls > 0).map(|polls| address(&options.standby.host, polls)).transpose()?;
            (generation, instance, None, Some(port), Some(token), polls, warnings)
        }
        Setup::Going { instance, images, port, .. } => {
            let generation = whom.generation.ok_or_else(|| Error::link("the standby goes on with what has not begun"))?;
            (generation, instance, Some(images), Some(port).filter(|_| whom.fresh), None, None, Vec::new())
        }
        _ => return Err(Error::link("the standby says something else than was asked")),
    };
    Ok(Reply::Standby(Box::new(Answered { peer, key, generation, instance, images, port, token, polls, warnings })))
}

impl Answered {
    /// The other half: it stands by for a primary of this generation.
    pub fn begin(self, ask: &Ask, whom: &Whom, generation: u64) -> Result<Standing> {
        let Answered { mut peer, key, instance, images, port, token, polls, warnings, .. } = self;
        let options = &ask.options;
        let beats = port.map(|port| beats(options, &key, port)).transpose()?;
        if images.is_none() {
            let (limits, witness) = (options.limits, ask.witness.clone());
            let (fence, on_event) = (options.fence.clone(), options.on_event.clone());
            let seat = whom.seat.clone();
            say(&peer, &Setup::Begin { generation, limits, fence, witness, on_event, seat })?;
        }
        peer.open_bulk()?;
        let sender = peer.sender()?;
        Ok(Standing { peer, sender, generation, instance, images, beats, token, polls, warnings })
    }
}

/// Heartbeats to there.
fn beats(options: &Options, key: &Key, port: u16) -> Result<Beats> {
    let host = &options.standby.host;
    let beats = Beats::to(key, address(host, port)?)?;
    if let Some(own) = beats.local().filter(|own| options.addresses.iter().any(|a| a.ip == own.ip())) {
        let what = format!("the way to {host} begins at {}, which goes with the tree", own.ip());
        return Err(Error::new(Kind::Usage, what).help("name the standby by an address to which this host has another way"));
    }
    Ok(beats)
}

/// Where heartbeats go to.
fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let found = (host, port).to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| Error::link(format!("{host} has no address for heartbeats")).help("name the standby as it is known here"))
}

/// Calls until somebody answers, one call at a time.
pub struct Calls {
    ask: Arc<Ask>,
    again: Duration,
    answers: mpsc::Receiver<Result<Found>>,
    tell: mpsc::Sender<Result<Found>>,
    at_work: bool,
    not_before: Instant,
    /// Where they come who call by themselves, and at which place this one is there.
    porch: Option<(Arc<Porch>, usize)>,
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.porch.iter().for_each(|(porch, _)| porch.close());
    }
}

impl Calls {
    /// Nobody is called yet. After this time it is tried again; who calls by himself comes to the `porch`, where this is the one at that
    /// place, who calls itself `host` if that is known.
    pub fn new(mut ask: Ask, again: Duration, porch: Option<(Arc<Porch>, usize)>, host: &str) -> Calls {
        /// Who lives answers by then; who does not is to be called again soon.
        const LIMIT: Duration = Duration::from_secs(5);
        ask.options.how.timeout = ask.options.how.timeout.min(LIMIT);
        let (tell, answers) = mpsc::channel();
        let ask = Arc::new(ask);
        if let Some((porch, of)) = &porch {
            porch.opens(*of, &ask, &tell, host);
        }
        Calls { ask, again, answers, tell, at_work: false, not_before: Instant::now(), porch }
    }

    /// Somebody calls, although somebody stands by.
    pub fn knocks(&self) -> bool {
        self.porch.as_ref().is_some_and(|(porch, of)| porch.knocks(*of))
    }

    /// Who stands by: nobody else who calls takes its place as long as it does.
    pub fn met(&self, host: &str) {
        if let Some((porch, of)) = &self.porch {
            porch.met(*of, host);
        }
    }

    /// What leads to the witness.
    pub fn witness(&self) -> Option<Contact> {
        self.ask.witness.clone()
    }

    /// Calls, unless that is being done or was a moment ago.
    pub fn call(&mut self, whom: &Whom) {
        if let Some((porch, of)) = &self.porch {
            return porch.wants(*of, whom);
        }
        if self.at_work || Instant::now() < self.not_before {
            return;
        }
        let (ask, tell, whom) = (self.ask.clone(), self.tell.clone(), whom.clone());
        let work = move || {
            let found = connect(&ask.options, &whom, &mut Silent).and_then(|peer| agree(&ask, &whom, peer));
            let _ = tell.send(found);
        };
        self.at_work = std::thread::Builder::new().name("call".into()).spawn(work).is_ok();
        self.not_before = Instant::now() + self.again;
    }

    /// Who has answered, if somebody has since.
    pub fn answer(&mut self) -> Option<Result<Found>> {
        let found = self.answers.try_recv().ok()?;
        self.at_work = false;
        // What stands in the way there does not go away by being asked for.
        const RARELY: u32 = 5;
        if found.as_ref().is_err_and(|e| e.kind != Kind::LinkFailed) {
            self.not_before = Instant::now() + self.again * RARELY;
        }
        Some(found)
    }
}
