//! The host that has taken over becomes the primary: whoever ran it before comes back, and stands by for it from then on.
//!
//! It is called, since that host is the one that can log in here: a process of its own takes the tree over from the one that has
//! stood by, which ends.

use super::again::{Here, Reach};
use super::control::{self, Ask};
use super::history::has_ended;
use super::porch::{Guest, Porch};
use super::protect::{self, Options};
use super::record::{Record, Store};
use super::resume;
use super::ring::{self, Ring, Role, is_among};
use super::setup::{Returns, SETUP, Seat, Setup};
use super::state::{Acks, Activation, Limits};
use crate::dump::{self, Output, Track};
use crate::error::{Error, Result};
use crate::migrate::plan::pack;
use crate::progress::Report;
use crate::resource::capture::Decisions;
use crate::transport::{Destination, Frame, How, Peer, called_from};
use std::time::{Duration, Instant};

/// For the one that has stood by to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a process needs from one watch to the next.
const PAUSE: Duration = Duration::from_millis(300);

/// Protects what runs here, with the help of who has called.
///
/// # Errors
/// What keeps it from that: the tree goes on, and nobody stands by.
pub fn serve(peer: Peer, returns: Returns) -> Result<()> {
    let store = Store::open()?;
    let say = |setup: &Setup| peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(setup)? });
    let not_yet = |why: &str| say(&Setup::NotYet { why: why.to_owned() });
    let several = !returns.at.is_empty();
    // Between two watches of a process nobody seems to be at work on it.
    let claimed = store.is_claimed(&returns.name)?
        || several && {
            std::thread::sleep(PAUSE);
            store.is_claimed(&returns.name)?
        };
    let there = store.read(&returns.name)?.and_then(|record| Some((part(&record, &returns)?, record)));
    let Some((part, record)) = there else {
        return match claimed {
            true => not_yet("it stands by there, and does not run it"),
            false if !returns.runs && has_ended(&store, &returns.name, returns.generation) => say(&Setup::Over),
            false => say(&Setup::Nobody),
        };
    };
    let Some(tree) = record.about.tree else { return say(&Setup::Nobody) };
    match (claimed, record.settled(), &record.door) {
        (true, Some(_), Some(token)) => return say(&Setup::There { token: token.clone() }),
        (true, Some(Activation::Taken(_)), _) if part == Part::Runs => {}
        (false, ..) => {}
        _ => return not_yet("another meio is at work on it there"),
    }
    // What runs there keeps who answers for it until another one can.
    if let Some(why) = Some(tree).filter(|_| part == Part::Runs).map_or(Ok(None), |tree| hindrance(tree.pid, &returns.decisions))? {
        return not_yet(&why);
    }
    if claimed {
        let asked = control::ask(&store, &returns.name, Ask::Handover, PATIENCE);
        // Another one who calls may have asked first.
        asked.map(drop).or_else(|e| if several { Ok(()) } else { Err(e) })?;
    }
    // Where several stand by it is the process that has taken over that lets them in.
    if several && claimed {
        return match door(&store, &returns.name)? {
            Some(token) => say(&Setup::There { token }),
            None => not_yet("what was taken over there is not protected yet"),
        };
    }
    let mut noted = Noted(store, returns.name.clone());
    if several && part == Part::Overtaken && !returns.runs {
        return not_yet("the tree is there, too, until it is known that it runs here");
    }
    if several {
        let ring = Ring::told(&returns).on_record(&record);
        if !returns.runs && is_among(&ring.left, &returns.at) {
            return say(&Setup::Over);
        }
        return ring::run(ring, Role::Leads, vec![Guest { peer, returns }], &mut noted).map(drop);
    }
    let host = called_from().map_or_else(|| peer.hello.host.clone(), |address| address.to_string());
    let (runs, witness) = (returns.runs, returns.witness.clone());
    let options = options(tree.pid, &returns, vec![Destination { user: None, host, port: None }]);
    // A tree of which nobody here knows that it was overtaken is ended by who hears so: by the next call, which finds a door.
    if part == Part::Overtaken {
        match resume::find(&options, Some(&record)) {
            Ok(Some(_)) if runs => {}
            Ok(Some(_)) => return not_yet("the tree is there, too, until it is known that it runs here"),
            Ok(None) => return not_yet("the tree is there, too, and nothing keeps it silent"),
            Err(e) => return not_yet(&e.message),
        }
    }
    let porch = Porch::begin()?;
    let here = Here { peers: vec![peer], witness, porch: porch.clone(), claim: None };
    let done = protect::run_over(&options, Reach::Calls(here), &mut noted);
    porch.end();
    if let Err(e) = &done {
        noted.warning(&format!("it cannot be protected by who has come back: {e}"));
    }
    done.map(drop)
}

/// Stands by for who has called, and runs it; where it runs here, too, that is told to who has it.
///
/// # Errors
/// As [`serve`], and of one that stands by.
pub fn invited(peer: Peer, seat: Seat) -> Result<()> {
    let store = Store::open()?;
    let name = seat.returns.name.clone();
    if store.is_claimed(&name)? || store.read(&name)?.and_then(|record| record.about.tree).is_some_and(|tree| tree.lives()) {
        return serve(peer, seat.returns);
    }
    peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(&Setup::Nobody)? })?;
    drop(peer);
    let mut noted = Noted(store, name);
    ring::run(Ring::seated(&seat, None), Role::Follows, Vec::new(), &mut noted).map(drop)
}

/// What leads to the process that lets others in here, which may need a moment to begin.
fn door(store: &Store, name: &str) -> Result<Option<String>> {
    const LOOK: Duration = Duration::from_millis(20);
    const MOMENT: Duration = Duration::from_secs(3);
    let until = Instant::now() + MOMENT;
    loop {
        match store.read(name)?.and_then(|record| record.door) {
            None if Instant::now() < until => std::thread::sleep(LOOK),
            door => return Ok(door),
        }
    }
}

/// With what a tree is protected by these hosts, as one of them has said.
pub fn options(pid: i32, returns: &Returns, mut hosts: Vec<Destination>) -> Options {
    let count = hosts.len();
    let acks = if count > 1 { returns.limits.acks } else { Acks::default() };
    let others = hosts.split_off(1);
    Options {
        dump: copied(pid, returns),
        name: returns.name.clone(),
        standby: hosts.swap_remove(0),
        others,
        how: How::default(),
        addresses: returns.addresses.clone(),
        pid_namespace: returns.pid_namespace,
        spool: returns.spool.clone(),
        limits: Limits { standbys: count, acks, ..returns.limits },
        acks: returns.limits.acks,
        fence: returns.fence.clone(),
        witness: None,
        on_event: returns.on_event.clone(),
        control_group: None,
        begun: Default::default(),
        refused: None,
        among: None,
        hands: None,
    }
}

/// What keeps the tree from being watched, after a while for all of its memory to be here.
///
/// # Errors
/// When it cannot be looked at.
pub fn hindrance(pid: i32, decisions: &Decisions) -> Result<Option<String>> {
    const MOMENT: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_millis(50);
    let until = Instant::now() + MOMENT;
    loop {
        let look = dump::preflight(pid, decisions)?;
        match look.refusals.iter().find(|refusal| !refusal.transient) {
            None => return Ok(None),
            Some(_) if Instant::now() < until => std::thread::sleep(LOOK),
            Some(refusal) => return Ok(Some(format!("{}: {}", refusal.object, refusal.reason))),
        }
    }
}

/// How the tree is copied.
fn copied(pid: i32, returns: &Returns) -> dump::Options {
    dump::Options {
        pid,
        capsule: returns.capsule.clone(),
        output: Output::Stdout,
        kill: false,
        level: returns.level,
        freeze_timeout: returns.freeze_timeout,
        decisions: returns.decisions.clone(),
        live: Some(dump::MAX_PAUSE),
        track: Track::Auto,
        parent: None,
    }
}

/// What this host is for who has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It runs here, and who has come back knows of nothing newer.
    Runs,
    /// It ran here, and has not heard that who calls has taken over.
    Overtaken,
}

/// `None`: nothing of it lives here that who has come back has to do with.
fn part(record: &Record, returns: &Returns) -> Option<Part> {
    let activation = record.settled()?;
    record.about.tree.filter(|tree| tree.lives())?;
    match activation {
        Activation::Taken(generation) | Activation::Primary { generation, .. } if generation >= returns.generation => Some(Part::Runs),
        Activation::Primary { .. } | Activation::Demoted(_) if record.back.is_some() => Some(Part::Overtaken),
        _ => None,
    }
}

/// Nobody looks at it but who reads what is noted of the watch.
pub struct Noted(pub Store, pub String);

impl Report for Noted {
    fn warning(&mut self, text: &str) {
        self.0.note(&self.1, text);
    }
    fn last_words(&mut self, e: &Error) {
        self.0.note(&self.1, &e.to_string());
    }
    fn note(&mut self, text: &str) {
        self.0.note(&self.1, text);
    }
    fn is_log(&self) -> bool {
        true
    }
}
