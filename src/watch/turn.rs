//! The host that has taken over becomes the primary: whoever ran it before comes back, and stands by for it from then on.
//!
//! It is called, since that host is the one that can log in here: a process of its own takes the tree over from the one that has
//! stood by, which ends.

use super::again::{Here, Reach};
use super::control::{self, Ask};
use super::protect::{self, Options};
use super::record::{Record, Store};
use super::resume;
use super::setup::{Returns, SETUP, Setup};
use super::state::Activation;
use crate::dump::{self, Output, Track};
use crate::error::{Error, Result};
use crate::migrate::plan::pack;
use crate::progress::Report;
use crate::resource::capture::Decisions;
use crate::transport::{Destination, Door, Frame, How, Peer, called_from};
use std::time::{Duration, Instant};

/// For the one that has stood by to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Protects what runs here, with the help of who has called.
///
/// # Errors
/// What keeps it from that: the tree goes on, and nobody stands by.
pub fn serve(peer: Peer, returns: Returns) -> Result<()> {
    let store = Store::open()?;
    let say = |setup: &Setup| peer.link.send(&Frame { kind: SETUP, generation: 0, payload: pack(setup)? });
    let not_yet = |why: &str| say(&Setup::NotYet { why: why.to_owned() });
    let claimed = store.is_claimed(&returns.name)?;
    let there = store.read(&returns.name)?.and_then(|record| Some((part(&record, &returns)?, record)));
    let Some((part, record)) = there else {
        return if claimed { not_yet("it stands by there, and does not run it") } else { say(&Setup::Nobody) };
    };
    let Some(tree) = record.about.tree else { return say(&Setup::Nobody) };
    match (claimed, record.settled(), &record.door) {
        (true, Some(Activation::Primary { .. } | Activation::Demoted(_)), Some(token)) => {
            return say(&Setup::There { token: token.clone() });
        }
        (true, Some(Activation::Taken(_)), _) if part == Part::Runs => {}
        (false, ..) => {}
        _ => return not_yet("another meio is at work on it there"),
    }
    // What runs there keeps who answers for it until another one can.
    if let Some(why) = Some(tree).filter(|_| part == Part::Runs).map_or(Ok(None), |tree| hindrance(tree.pid, &returns.decisions))? {
        return not_yet(&why);
    }
    if claimed {
        control::ask(&store, &returns.name, Ask::Handover, PATIENCE)?;
    }
    let mut noted = Noted(store, returns.name.clone());
    let host = called_from().map_or_else(|| peer.hello.host.clone(), |address| address.to_string());
    let (runs, witness) = (returns.runs, returns.witness.clone());
    let options = Options {
        dump: copied(tree.pid, &returns),
        name: returns.name,
        standby: Destination { user: None, host, port: None },
        others: Vec::new(),
        how: How::default(),
        addresses: returns.addresses,
        pid_namespace: returns.pid_namespace,
        spool: returns.spool,
        limits: returns.limits,
        acks: returns.limits.acks,
        fence: returns.fence,
        witness: None,
        on_event: returns.on_event,
        control_group: None,
        begun: Default::default(),
        refused: None,
    };
    // A tree of which nobody here knows that it was overtaken is ended by who hears so: by the next call, which finds a door.
    if part == Part::Overtaken {
        match resume::find(&options, Some(&record)) {
            Ok(Some(_)) if runs => {}
            Ok(Some(_)) => return not_yet("the tree is there, too, until it is known that it runs here"),
            Ok(None) => return not_yet("the tree is there, too, and nothing keeps it silent"),
            Err(e) => return not_yet(&e.message),
        }
    }
    let here = Here { peer, witness, door: Door::new()? };
    let done = protect::run_over(&options, Reach::Calls(Box::new(here)), &mut noted);
    if let Err(e) = &done {
        noted.warning(&format!("it cannot be protected by who has come back: {e}"));
    }
    done.map(drop)
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
}
