//! A former primary that comes back: it calls the host that has taken over, and stands by for what runs there.
//!
//! As that host may not be able to log in here it is called, and called again when the link is lost; the frames are the same as
//! when it calls.

use super::agent;
use super::change;
use super::control::Control;
use super::protect::{self, Options, Outcome};
use super::record::{Record, Store};
use super::setup::{Returns, SETUP, Seat, Setup};
use super::start::free;
use super::state::{Acks, Activation, Limits};
use super::status::{Board, Role, Status, Wish};
use super::turn::{self, Noted};
use super::visit::Asked;
use super::witness::Contact;
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::migrate::plan::{pack, unpack};
use crate::progress::{Report, Silent};
use crate::sys::manager::Manager;
use crate::sys::signal;
use crate::transport::{self, Destination, Frame, How, Peer};
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
    if options.limits.standbys > 1 {
        if outcome.replaced {
            report.warning("this host does not stand by again by itself, since several others did");
        }
        return Ok(outcome);
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
        let what = format!("this host ran {} before, and does not know whether one of its standbys does now", options.name);
        return Err(Error::other(what).help(format!("see there: meio status; if none does, meio unwatch {} here forgets it", options.name)));
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
    to: Destination,
    how: How,
    again: Duration,
    returns: Returns,
    /// What leads to the process that has it there.
    token: Arc<Mutex<Option<String>>>,
    answers: mpsc::Receiver<Result<(Peer, Setup)>>,
    tell: mpsc::Sender<Result<(Peer, Setup)>>,
    at_work: bool,
    not_before: Instant,
    /// Whoever was called last knows nothing of it.
    nobody: bool,
    /// Who has started this meio, if that wants to know.
    manager: Arc<Manager>,
}

/// What is said to who runs it by one that is to be its only standby.
pub fn returns(options: &Options, witness: Option<Contact>) -> Returns {
    let dump = &options.dump;
    Returns {
        name: options.name.clone(),
        generation: 0,
        instance: 0,
        runs: false,
        addresses: options.addresses.clone(),
        pid_namespace: options.pid_namespace,
        spool: options.spool.clone(),
        limits: Limits { standbys: 1, acks: Acks::default(), ..options.limits },
        fence: options.fence.clone(),
        witness,
        on_event: options.on_event.clone(),
        capsule: dump.capsule.clone(),
        level: dump.level,
        freeze_timeout: dump.freeze_timeout,
        decisions: dump.decisions.clone(),
    }
}

impl Caller {
    /// Nobody is called before this `pause` is over.
    fn new(to: &Destination, how: &How, returns: Returns, manager: &Arc<Manager>, pause: Duration) -> Caller {
        /// Who lives answers by then; who does not is to be called again soon.
        const LIMIT: Duration = Duration::from_secs(5);
        let (tell, answers) = mpsc::channel();
        let how = How { timeout: how.timeout.min(LIMIT), ..how.clone() };
        let (to, again) = (to.clone(), returns.limits.again);
        let (not_before, manager) = (Instant::now() + pause, manager.clone());
        Caller { to, how, again, returns, token: Arc::default(), answers, tell, at_work: false, not_before, nobody: false, manager }
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
        let returns = Returns { generation, instance, runs, ..self.returns.clone() };
        let (to, how, token, tell) = (self.to.clone(), self.how.clone(), self.token.clone(), self.tell.clone());
        let work = move || drop(tell.send(call(&to, &how, &token, &returns)));
        self.at_work = std::thread::Builder::new().name("call".into()).spawn(work).is_ok();
        // Whoever runs it itself only has to be told some time.
        const RARELY: u32 = 5;
        self.not_before = Instant::now() + self.again * if runs { RARELY } else { 1 };
    }

    /// Who has answered, with what it has asked.
    pub fn answer(&mut self) -> Option<Result<(Peer, Setup)>> {
        let answer = self.answers.try_recv().ok()?;
        self.at_work = false;
        self.nobody = answer.as_ref().is_err_and(|e| e.kind == Kind::NotFound);
        // Something is under way there.
        if answer.as_ref().is_err_and(|e| e.kind == Kind::Other) {
            self.not_before = self.not_before.min(Instant::now() + self.again);
        }
        Some(answer)
    }

    /// Whether the host that was called last is there, and has nothing of it.
    pub fn found_nobody(&self) -> bool {
        self.nobody
    }

    /// The same of one that this end has met before.
    pub fn visitor(&mut self) -> Option<(Peer, Asked)> {
        let (peer, setup) = self.answer()?.ok()?;
        Asked::of(setup).ok().map(|asked| (peer, asked))
    }
}

/// Logs in and says who comes back; what is asked then.
fn call(to: &Destination, how: &How, token: &Mutex<Option<String>>, returns: &Returns) -> Result<(Peer, Setup)> {
    let locked = || token.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..2 {
        let known = locked().clone();
        let command = match &known {
            Some(token) => format!("agent --watch {}", transport::again(token)?),
            None => "agent --watch".into(),
        };
        let mut peer = transport::connect_to(to, how, &command, &mut Silent)?;
        peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(&Setup::Returns(Box::new(returns.clone())))? })?;
        match unpack(&peer.link.receive(Some(PATIENCE))?.payload)? {
            Setup::There { token } => *locked() = Some(token),
            Setup::Nobody => return Err(Error::new(Kind::NotFound, format!("{to} does not run {}", returns.name))),
            Setup::NotYet { why } => return Err(Error::other(format!("{to} cannot be stood by for yet: {why}"))),
            setup @ Setup::Ask { .. } => return Ok((peer, setup)),
            _ => return Err(Error::link(format!("{to} says something else than was asked"))),
        }
    }
    Err(Error::link(format!("{to} has nobody any more to whom it has sent")))
}

/// Stands by for what runs at the other host, until that is over or it was taken over here and has ended.
fn stand_by(options: &Options, store: &Store, manager: &Arc<Manager>, report: &mut dyn Report) -> Result<Stood> {
    let known = store.read(&options.name)?.and_then(|record| record.back?.witness);
    let witness = protect::contact(options, known.as_ref(), report)?;
    manager.ready();
    let returns = returns(options, witness);
    stand(&(&options.standby, &options.how, returns, options.control_group.as_deref()), store, manager, report)
}

/// One of several standbys stands by for the one that has taken over, as long as it can log in there.
///
/// # Errors
/// When this host cannot stand by.
pub fn follow(seat: &Seat, of: usize) -> Result<Stood> {
    let store = Store::open()?;
    let manager = Arc::new(Manager::of_environment());
    let to = Destination::parse(seat.hosts.get(of).map_or("", String::as_str))?;
    // What the primary logs in with may be here, too; else there is what is usual.
    let how = How {
        ssh: seat.ssh.clone(),
        identity: seat.identity.iter().filter(|file| file.exists()).cloned().collect(),
        known_hosts: seat.known_hosts.clone().filter(|file| file.exists()),
        remote_path: seat.remote_path.clone(),
        ..How::default()
    };
    let mut noted = Noted(store.clone(), seat.returns.name.clone());
    stand(&(&to, &how, seat.returns.clone(), None), &store, &manager, &mut noted)
}

/// Who is called, how, with which words; and the group that may ask how it stands.
type Wanted<'w> = (&'w Destination, &'w How, Returns, Option<&'w str>);

fn stand(wanted: &Wanted, store: &Store, manager: &Arc<Manager>, report: &mut dyn Report) -> Result<Stood> {
    let (to, how, returns, group) = wanted;
    let (mut complaint, mut pause) = (None, Duration::ZERO);
    loop {
        let mut caller = Caller::new(to, how, returns.clone(), manager, pause);
        let Some((peer, asked)) = wait(*group, store, &mut caller, report)? else { return Ok(Stood::Over) };
        let host = peer.hello.host.clone();
        manager.status(&format!("{host} runs it: this host stands by"));
        match agent::begin(peer, asked, Some(caller), report) {
            Ok(Stood::Anew) => report.note(&format!("{host} has begun anew: it is called again")),
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
        pause = returns.limits.again;
    }
}

/// Waits until whoever runs it answers. `None`: a user has it forgotten.
fn wait(group: Option<&str>, store: &Store, caller: &mut Caller, report: &mut dyn Report) -> Result<Option<(Peer, Setup)>> {
    const STEP: Duration = Duration::from_millis(20);
    let name = &caller.returns.name.clone();
    let _claim = free(store, name)?;
    let record = store.read(name)?;
    let (generation, instance) = record.map_or((0, 0), |record| (record.activation.map_or(0, |a| a.generation()), record.instance));
    let status = Status {
        name: name.clone(),
        role: Role::Standby,
        other: Some(caller.to.host.clone()),
        at: caller.returns.addresses.iter().map(ToString::to_string).collect(),
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
            Some(Err(e)) if e.kind == Kind::NotFound && due(store.read(name)?.as_ref()) == Some(Due::Perhaps) => return Err(e),
            Some(Err(e)) if complaint.as_ref() != Some(&e.message) => {
                report.warning(&format!("it is not known who runs it: {}", e.message));
                complaint = Some(e.message);
            }
            _ => {}
        }
        if board.wished() == Some(Wish::Over) {
            store.forget(name)?;
            board.end(Ok(Vec::new()));
            return Ok(None);
        }
        if signal::take().or_else(|| signal::passed().find(|signal| *signal != libc::SIGUSR1)).is_some() {
            return Err(Error::new(Kind::Interrupted, "interrupted while nobody stands by"));
        }
        std::thread::sleep(STEP);
    }
}
