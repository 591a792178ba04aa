//! A former primary that comes back: it calls the host that has taken over, and stands by for what runs there.
//!
//! As that host may not be able to log in here it is called, and called again when the link is lost; the frames are the same as
//! when it calls.

use super::agent::{self, Ended};
use super::change;
use super::control::{self, Ask, Control};
use super::nodes;
use super::protect::{self, Options, Outcome};
use super::record::{Record, Store};
use super::ring::{self, Ring, Role as Part};
use super::setup::{Returns, SETUP, Setup};
use super::start::free;
use super::state::{Acks, Activation, Limits};
use super::status::{Board, Role, Status, Wish};
use super::turn;
use super::visit::Asked;
use super::witness::Contact;
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::migrate::plan::{pack, unpack};
use crate::progress::{Report, Silent};
use crate::sys::manager::Manager;
use crate::sys::signal;
use crate::transport::{self, Destination, Frame, How, Peer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For what the other end may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stood {
    /// The watch is over, and nothing of it is left here.
    Over,
    /// It was taken over here, and goes on, though nobody looks at it any more,
    Runs,
    /// or has ended.
    Ran,
    /// It goes on here, and the host that ran it before is there again without it.
    Leads,
    /// Who runs it begins anew.
    Anew,
}

/// Whether this host has run what is watched under a name, and another one does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It is on record.
    Surely,
    /// It ended here together with its meio: that other one is to be asked.
    Perhaps,
}

fn due(record: Option<&Record>) -> Option<Due> {
    let record = record.filter(|record| record.about.tree.is_none_or(|tree| !tree.lives()))?;
    match record.activation? {
        Activation::Demoted(_) => Some(Due::Surely),
        Activation::Primary { .. } if record.back.is_some() => Some(Due::Perhaps),
        _ => None,
    }
}

/// Watches as [`protect::run`], and comes back when another host has taken over.
///
/// # Errors
/// Those of both.
pub fn watch(options: &Options, report: &mut dyn Report) -> Result<Outcome> {
    let (outcome, options) = &change::run(options, report)?;
    let outcome = outcome.clone();
    if outcome.switched && options.among.is_some() {
        let ring = Ring::of(options, contact(options, report)?);
        ring::handed(&ring);
        let stood = ring::run(ring, Part::Follows, Vec::new(), report)?;
        return Ok(Outcome { stood: Some(stood), ..outcome });
    }
    let returned = if outcome.replaced { come_back(options, report)? } else { None };
    Ok(Outcome { stood: returned.and_then(|returned| returned.stood), ..outcome })
}

/// Comes back, where another host has taken over what is on record here. `None`: it has not, and a watch may begin.
///
/// # Errors
/// When this host cannot stand by, or a signal has ended the wait for the other one.
pub fn come_back(options: &Options, report: &mut dyn Report) -> Result<Option<Outcome>> {
    let store = Store::open()?;
    let manager = Arc::new(Manager::of_environment());
    let Some(mut known) = due(store.read(&options.name)?.as_ref()) else { return Ok(None) };
    if options.limits.standbys > 1 {
        // Another process may stand by here already, since whoever runs it has asked for that.
        if store.is_claimed(&options.name)? {
            let _ = control::ask(&store, &options.name, Ask::Handover, PATIENCE);
        }
        return match ring::run(Ring::of(options, contact(options, report)?), Part::Follows, Vec::new(), report) {
            Err(e) if e.kind == Kind::NotFound && known == Due::Perhaps => Ok(None),
            stood => Ok(Some(Outcome { host: options.standby.host.clone(), stood: Some(stood?), ..Outcome::default() })),
        };
    }
    loop {
        let stood = match stand_by(options, &store, &manager, report) {
            Err(e) if e.kind == Kind::NotFound && known == Due::Perhaps => return Ok(None),
            stood => stood?,
        };
        let led = if stood == Stood::Leads { lead(options, &store, &manager, report)? } else { None };
        match led {
            Some(outcome) if outcome.replaced => known = Due::Surely,
            Some(outcome) => return Ok(Some(outcome)),
            None => {
                let stood = if stood == Stood::Leads { Stood::Ran } else { stood };
                return Ok(Some(Outcome { host: options.standby.host.clone(), stood: Some(stood), ..Outcome::default() }));
            }
        }
    }
}

/// Protects what was taken over here, as it was before: with the other host as its standby. `None`: it has ended meanwhile, or a user
/// has it forgotten.
fn lead(options: &Options, store: &Store, manager: &Manager, report: &mut dyn Report) -> Result<Option<Outcome>> {
    let mut complaint = None;
    loop {
        manager.lives();
        let runs = store.read(&options.name)?.filter(Record::runs);
        let Some(tree) = runs.and_then(|record| record.about.tree) else { return Ok(None) };
        let begun = Arc::<AtomicBool>::default();
        let dump = dump::Options { pid: tree.pid, ..options.dump.clone() };
        let hindrance = turn::hindrance(tree.pid, &dump.decisions)?;
        let wanted = Options { dump, begun: begun.clone(), ..options.clone() };
        let failed = match hindrance {
            Some(why) => why,
            None => match change::run(&wanted, report).map(|(outcome, _)| outcome) {
                Err(e) if !begun.load(Ordering::Relaxed) && e.kind != Kind::Interrupted => e.message,
                done => return done.map(Some),
            },
        };
        if complaint.as_ref() != Some(&failed) {
            report.warning(&format!("nobody stands by for what was taken over here: {failed}"));
            complaint = Some(failed);
        }
        std::thread::sleep(options.limits.again);
        signal::check_interrupted()?;
    }
}

/// Calls whoever runs it now, one call at a time.
pub struct Caller {
    /// What is said to each of those that may,
    all: Vec<(Destination, Returns)>,
    /// of which this one is asked next.
    at: usize,
    how: How,
    again: Duration,
    /// What leads to the process that has it there.
    token: Arc<Mutex<Option<String>>>,
    answers: mpsc::Receiver<Result<(Peer, Setup)>>,
    tell: mpsc::Sender<Result<(Peer, Setup)>>,
    at_work: bool,
    not_before: Instant,
    /// How many of those that were called last know nothing of it.
    nobody: usize,
    /// One of them says that it is over, or goes on without this host.
    over: bool,
    /// Who has started this meio, if that wants to know.
    manager: Arc<Manager>,
}

/// What is said to who runs it by one that is to be its only standby.
pub fn returns(options: &Options, witness: Option<Contact>) -> Returns {
    let dump = &options.dump;
    // Of several who are left as many are waited for.
    let acks = if options.among.is_some() || options.limits.standbys > 1 { options.acks } else { Acks::default() };
    Returns {
        name: options.name.clone(),
        generation: 0,
        instance: 0,
        runs: false,
        addresses: options.addresses.clone(),
        pid_namespace: options.pid_namespace,
        spool: options.spool.clone(),
        limits: Limits { standbys: 1, acks, ..options.limits },
        fence: options.fence.clone(),
        witness,
        on_event: options.on_event.clone(),
        capsule: dump.capsule.clone(),
        level: dump.level,
        freeze_timeout: dump.freeze_timeout,
        decisions: dump.decisions.clone(),
        at: String::new(),
        ring: Vec::new(),
    }
}

/// How this host is logged in to by another one, as far as it can know.
pub fn own(other: &Destination) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| format!("{}@", user.name));
    let local = || -> std::io::Result<IpAddr> {
        const DISCARD: u16 = 9;
        let to = (other.host.as_str(), DISCARD).to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let from: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Nothing is sent.
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    let host = local().map_or_else(|_| nodes::hostname(), |ip| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    user.unwrap_or_default() + &host
}

impl Caller {
    /// Nobody is called before this `pause` is over.
    fn new(all: Vec<(Destination, Returns)>, how: &How, manager: &Arc<Manager>, pause: Duration) -> Caller {
        /// Who lives answers by then; who does not is to be called again soon.
        const LIMIT: Duration = Duration::from_secs(5);
        let (tell, answers) = mpsc::channel();
        let how = How { timeout: how.timeout.min(LIMIT), ..how.clone() };
        let again = all.first().map_or(LIMIT, |(_, returns)| returns.limits.again);
        let (not_before, manager) = (Instant::now() + pause, manager.clone());
        Caller { all, at: 0, how, again, token: Arc::default(), answers, tell, at_work: false, not_before, nobody: 0, over: false, manager }
    }

    /// Who is asked next, and what it is told.
    fn next(&self) -> &(Destination, Returns) {
        &self.all[self.at]
    }

    /// Whoever has answered is the one who runs it, and nobody else is asked any more.
    fn stays(&mut self) {
        self.all = vec![self.all.swap_remove(self.at)];
        self.at = 0;
    }

    /// To be called over and over: who has started this meio hears that it lives.
    pub fn lives(&self) {
        self.manager.lives();
    }

    /// Calls, unless that is being done or was a moment ago: as who knows of this generation, this process, which runs it or not.
    pub fn call(&mut self, generation: u64, instance: u64, runs: bool) {
        if self.at_work || Instant::now() < self.not_before {
            return;
        }
        let (to, returns) = self.next().clone();
        // Who was asked to call may know nothing of it yet.
        let generation = generation.max(returns.generation);
        let returns = Setup::Returns(Box::new(Returns { generation, instance, runs, ..returns }));
        let (how, token, tell) = (self.how.clone(), self.token.clone(), self.tell.clone());
        let work = move || drop(tell.send(call(&to, &how, &token, &returns)));
        self.at_work = std::thread::Builder::new().name("call".into()).spawn(work).is_ok();
        // Whoever runs it itself only has to be told some time.
        const RARELY: u32 = 5;
        self.not_before = Instant::now() + self.again * if runs { RARELY } else { 1 };
    }

    /// Who has answered, with what it has asked.
    pub fn answer(&mut self) -> Option<Result<(Peer, Setup)>> {
        let answer = match self.answers.try_recv().ok()? {
            Ok((peer, Setup::Over)) => {
                self.over = true;
                Err(Error::new(Kind::NotFound, format!("{} says that it is over, or goes on without this host", peer.hello.host)))
            }
            answer => answer,
        };
        self.at_work = false;
        self.nobody = if answer.as_ref().is_err_and(|e| e.kind == Kind::NotFound) { self.nobody + 1 } else { 0 };
        // Another one may run it.
        if answer.is_err() && self.all.len() > 1 {
            (self.at, self.token) = ((self.at + 1) % self.all.len(), Arc::default());
            self.not_before = self.not_before.min(Instant::now() + self.again / self.all.len() as u32);
        }
        // Something is under way there.
        if answer.as_ref().is_err_and(|e| e.kind == Kind::Other) {
            self.not_before = self.not_before.min(Instant::now() + self.again);
        }
        Some(answer)
    }

    /// Whether one of them knows that it is over, or goes on without this host.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether all that were called are there, and have nothing of it.
    pub fn found_nobody(&self) -> bool {
        self.nobody >= self.all.len()
    }

    /// The same of one that this end has met before.
    pub fn visitor(&mut self) -> Option<(Peer, Asked)> {
        let (peer, setup) = self.answer()?.ok()?;
        Asked::of(setup).ok().map(|asked| (peer, asked))
    }
}

/// Logs in and says who comes back, or who runs it; what is asked then.
///
/// # Errors
/// When nobody can log in, or that one does not run it: [`Kind::NotFound`] where nothing of it is there.
pub fn call(to: &Destination, how: &How, token: &Mutex<Option<String>>, says: &Setup) -> Result<(Peer, Setup)> {
    let locked = || token.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..2 {
        let known = locked().clone();
        let command = match &known {
            Some(token) => format!("agent --watch {}", transport::again(token)?),
            None => "agent --watch".into(),
        };
        let mut peer = transport::connect_to(to, how, &command, &mut Silent)?;
        peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(says)? })?;
        match unpack(&peer.link.receive(Some(PATIENCE))?.payload)? {
            Setup::There { token } => *locked() = Some(token),
            Setup::Nobody => return Err(Error::new(Kind::NotFound, format!("{to} does not run it"))),
            Setup::NotYet { why } => return Err(Error::other(format!("{to} cannot be stood by for yet: {why}"))),
            setup @ (Setup::Ask { .. } | Setup::Over) => return Ok((peer, setup)),
            _ => return Err(Error::link(format!("{to} says something else than was asked"))),
        }
    }
    Err(Error::link(format!("{to} has nobody any more to whom it has sent")))
}

/// What leads to the witness, as it is on record.
fn contact(options: &Options, report: &mut dyn Report) -> Result<Option<Contact>> {
    let known = Store::open()?.read(&options.name)?.and_then(|record| record.back?.witness);
    protect::contact(options, known.as_ref(), report)
}

/// Stands by for what runs at the other host, until that is over or it was taken over here and has ended.
fn stand_by(options: &Options, store: &Store, manager: &Arc<Manager>, report: &mut dyn Report) -> Result<Stood> {
    let witness = contact(options, report)?;
    manager.ready();
    let mut one = Ring::pair(options.standby.clone(), options.how.clone(), returns(options, witness), options.control_group.clone());
    stand(&mut one, store, manager, report).map(|ended| ended.stood)
}

/// Stands by for whoever of these runs it, until that is over, or this host has another part in it.
///
/// # Errors
/// When it cannot, or a signal has ended the wait; [`Kind::NotFound`] where it is known that none of them runs it.
pub fn stand(ring: &mut Ring, store: &Store, manager: &Arc<Manager>, report: &mut dyn Report) -> Result<Ended> {
    let (mut complaint, mut pause) = (None, Duration::ZERO);
    loop {
        let again = ring.returns.limits.again;
        let several = ring.hosts.len() > 1 || !ring.own.is_empty();
        let says = |to: &Destination| (to.clone(), if several { ring.says(to) } else { ring.returns.clone() });
        let mut caller = Caller::new(ring.hosts.iter().map(says).collect(), &ring::way(&ring.how), manager, pause);
        let Some((peer, asked)) = wait(ring.group.as_deref(), store, &mut caller, report)? else {
            return Ok(Ended::default());
        };
        caller.stays();
        let host = peer.hello.host.clone();
        manager.status(&format!("{host} runs it: this host stands by"));
        match agent::begin(peer, asked, Some(caller), report) {
            Ok(Ended { stood: Stood::Anew, seat, .. }) => {
                report.note(&format!("{host} has begun anew: it is called again"));
                seat.iter().for_each(|seat| ring.learns(seat, None));
                // It lets in who calls, and waits for those who do.
                pause = if seat.is_some() { again / 10 } else { again };
                continue;
            }
            Err(e) if matches!(e.kind, Kind::LinkFailed | Kind::Unsupported) => {
                let reasons = e.refusals.iter().map(|refusal| format!("; {}: {}", refusal.object, refusal.reason));
                let text = std::iter::once(e.message.clone()).chain(reasons).collect::<String>();
                if complaint.as_ref() != Some(&text) {
                    report.warning(&format!("this host does not stand by yet: {text}"));
                    complaint = Some(text);
                }
            }
            stood => return stood,
        }
        pause = again;
    }
}

/// Waits until whoever runs it answers. `None`: a user has it forgotten.
fn wait(group: Option<&str>, store: &Store, caller: &mut Caller, report: &mut dyn Report) -> Result<Option<(Peer, Setup)>> {
    const STEP: Duration = Duration::from_millis(20);
    let (to, returns) = caller.next().clone();
    let name = &returns.name;
    let _claim = free(store, name)?;
    let record = store.read(name)?;
    let (generation, instance) = record.map_or((0, 0), |record| (record.activation.map_or(0, |a| a.generation()), record.instance));
    let status = Status {
        name: name.clone(),
        role: Role::Standby,
        other: Some(to.host),
        at: returns.addresses.iter().map(ToString::to_string).collect(),
        generation,
        ..Status::default()
    };
    let control = Control::open(store, name, Arc::new(Board::new(status)), group)?;
    let board = control.board();
    let mut complaint = None;
    loop {
        caller.lives();
        caller.call(generation, instance, false);
        match caller.answer() {
            Some(Ok(came)) => return Ok(Some(came)),
            Some(Err(_)) if caller.is_over() => {}
            Some(Err(e)) if caller.found_nobody() && due(store.read(name)?.as_ref()) == Some(Due::Perhaps) => return Err(e),
            Some(Err(e)) if complaint.as_ref() != Some(&e.message) => {
                report.warning(&format!("it is not known who runs it: {}", e.message));
                complaint = Some(e.message);
            }
            _ => {}
        }
        let wished = if caller.is_over() { Some(Wish::Over) } else { board.wished() };
        if matches!(wished, Some(Wish::Over | Wish::Handover)) {
            if wished == Some(Wish::Over) {
                store.forget(name)?;
            }
            if caller.is_over() {
                report.note("the watch is over, or goes on without this host");
            }
            board.end(Ok(Vec::new()));
            return Ok(None);
        }
        if signal::take().or_else(|| signal::passed().find(|signal| *signal != libc::SIGUSR1)).is_some() {
            return Err(Error::new(Kind::Interrupted, "interrupted while nobody stands by"));
        }
        std::thread::sleep(STEP);
    }
}
