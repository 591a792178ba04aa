//! Who stands by is changed while the tree runs: the watch ends, as `meio unwatch` has it end, and another one of the same name begins at
//! once, with the others. The tree runs on, and is unprotected until all have a copy.
//!
//! So nothing that was agreed upon by so many of so many hosts has to hold among others: who stood by before has heard that its watch
//! is over, or is lost; among those who have not heard it there are never enough for one of them to take over, since as many as
//! are waited for before anything is let out have ([`Limits::votes`](super::state::Limits::votes)); and what the new ones say to each
//! other is sealed with a key that it does not have.

use super::again::{self, Ask, Whom};
use super::porch::Porch;
use super::protect::{self, Options, Outcome};
use super::ring::{self, Among};
use super::state::{Acks, OnLoss};
use super::status::{Board, Role, State, Status};
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::progress::{Report, Silent};
use crate::sys::signal;
use crate::transport::{self, Destination};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Standbys of a watch at most.
pub const MOST: usize = 7;

/// What is to be done with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It stands by, too,
    Adds,
    /// or not any more.
    Removes,
    /// It is the only one that does, and then takes over.
    Hands,
}

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What is to be done,
    pub what: What,
    /// and with which host, as its user calls it.
    pub host: String,
}

/// Whether others can stand by for what is watched here.
///
/// # Errors
/// Why they cannot.
pub fn may(status: &Status) -> Result<()> {
    let (name, other) = (&status.name, status.other.clone().unwrap_or_default());
    match status.role {
        Role::Primary => Ok(()),
        Role::Standby => Err(Error::other(format!("this is a standby of {name}")).help(format!("ask where it runs: {other}"))),
        Role::Series => Err(Error::other(format!("nobody stands by for {name}: its images are kept in a folder"))),
    }
}

/// With what a watch goes on that is as `status` says.
///
/// # Errors
/// Why it cannot.
pub fn wanted(options: &Options, status: &Status, change: &Change) -> Result<Options> {
    let name = &options.name;
    if status.state != State::Protected {
        let what = format!("who stands by for {name} can be changed only while it is protected");
        return Err(Error::other(what).help("meio status says how it stands"));
    }
    if let Some(witness) = &status.witness
        && let Some(trouble) = &witness.trouble
    {
        let what = format!("who stands by for {name} cannot be changed now: the witness {} {trouble}", witness.at);
        return Err(Error::other(what).help("a watch begins only with its witness: meio status says when it is there again"));
    }
    if change.host.is_empty() {
        return Err(Error::new(Kind::Usage, format!("several hosts stand by for {name}")).help("name one of them: --to HOST"));
    }
    let mut all: Vec<Destination> = std::iter::once(&options.standby).chain(&options.others).cloned().collect();
    let mut called: Vec<&str> = status.standbys.iter().map(|one| one.host.as_str()).collect();
    if called.is_empty() {
        called.extend(status.other.as_deref());
    }
    let meant = Destination::parse(&change.host)?;
    let is = |n: usize| all[n].host == meant.host || called.get(n) == Some(&meant.host.as_str());
    let place = (0..all.len()).find(|n| is(*n));
    let mut away: Vec<String> = options.among.iter().flat_map(|among| among.away.clone()).collect();
    let mut hands = None;
    match (change.what, place) {
        (What::Adds, Some(_)) => return Err(Error::new(Kind::Usage, format!("{} stands by for {name} already", meant.host))),
        (What::Adds, None) if all.len() == MOST => return Err(Error::new(Kind::Usage, format!("{MOST} standbys are possible at most"))),
        (What::Adds, None) => {
            away.retain(|name| *name != meant.to_string());
            all.push(meant);
        }
        (_, None) => {
            let what = format!("{} does not stand by for {name}", meant.host);
            return Err(Error::new(Kind::Usage, what).help(format!("{} does", called.join(", "))));
        }
        (What::Hands, Some(n)) => {
            let one = all.remove(n);
            away.extend(std::mem::replace(&mut all, vec![one]).iter().map(ToString::to_string));
            hands = Some(Box::new(Options { refused: None, ..options.clone() }));
        }
        (What::Removes, Some(_)) if all.len() == 1 => {
            let what = format!("{} is the only one that stands by for {name}", meant.host);
            return Err(Error::new(Kind::Usage, what).help(format!("meio unwatch {name} ends the watch")));
        }
        (What::Removes, Some(n)) => drop(all.remove(n)),
    }
    let acks = if all.len() > 1 { options.acks } else { Acks::default() };
    let mut limits = options.limits;
    (limits.standbys, limits.acks) = (all.len(), acks);
    // That it goes on alone is nothing that several were told.
    if hands.is_some() {
        limits.on_loss = OnLoss::Hold;
    }
    let others = all.split_off(1);
    let standby = all.pop().unwrap_or_else(|| options.standby.clone());
    // Whoever runs it then is to find them all.
    let own = options.among.as_ref().map(|among| among.own.clone()).unwrap_or_default();
    let among = (options.among.is_some() || hands.is_some()).then_some(Among { own, away, ..Among::default() });
    Ok(Options { standby, others, limits, among, hands, refused: None, ..options.clone() })
}

/// With what a watch goes on when somebody is taken out of it that belongs to it, and is not there. `None`: no such host is meant.
fn without(options: &Options, status: &Status, change: &Change) -> Option<Options> {
    let among = options.among.as_ref().filter(|_| change.what == What::Removes && status.state == State::Protected)?;
    let place = |name: &String| Destination::parse(name).ok().map(|host| host.host);
    let meant = place(&change.host)?;
    let (gone, away): (Vec<String>, Vec<String>) = among.away.iter().cloned().partition(|host| place(host).as_ref() == Some(&meant));
    let among = Among { away, ..among.clone() };
    (!gone.is_empty()).then(|| Options { among: Some(among), hands: None, refused: None, ..options.clone() })
}

/// All that belong to a watch, there or not.
fn belong(options: &Options) -> Vec<String> {
    let there = std::iter::once(&options.standby).chain(&options.others).map(ToString::to_string);
    there.chain(options.among.iter().flat_map(|among| among.away.clone())).collect()
}

/// Who does not belong to it any more is known from now on, until it does again.
fn remembered(before: &Options, mut next: Options) -> Options {
    let all = belong(&next);
    if let Some(among) = &mut next.among {
        among.left = before.among.as_ref().map(|among| among.left.clone()).unwrap_or_default();
        among.left.extend(belong(before));
        among.left.retain(|host| !ring::is_among(&all, host));
        among.left.dedup();
    }
    next
}

/// Whether the tree could live on the last host that is named, which has nothing to do with it yet: nothing begins there.
///
/// # Errors
/// What stands in the way.
pub fn fits(ask: &Ask, options: &Options) -> Result<()> {
    let standby = options.others.last().unwrap_or(&options.standby).clone();
    let how = ring::way(&options.how);
    let options = Options { standby, how, ..options.clone() };
    let whom = Whom { fresh: true, ..Whom::default() };
    let peer = again::connect(&options, &whom, &mut Silent)?;
    again::question(&Ask { options, ..ask.clone() }, &whom, peer).map(drop)
}

/// Has others stand by when somebody wants that: `over` is told with whom the watch is to go on when nothing stands in the way.
pub fn changes(board: &Arc<Board>, ask: Ask, over: impl Fn(Options) + Clone + Send + 'static) {
    let mine = Arc::downgrade(board);
    board.changed_by(move |status, change| {
        let next = match without(&ask.options, status, change) {
            Some(next) => next,
            None => wanted(&ask.options, status, change)?,
        };
        let next = remembered(&ask.options, next);
        let (count, ask, over, adds) = (next.limits.standbys, ask.clone(), over.clone(), change.what == What::Adds);
        let board = mine.clone();
        let look = move || match if adds { fits(&ask, &next) } else { Ok(()) } {
            Ok(()) => over(next),
            Err(e) => board.upgrade().iter().for_each(|board| board.stays(e.clone())),
        };
        std::thread::Builder::new().name("change".into()).spawn(look)?;
        Ok(count)
    });
}

/// Takes in a host that has called and belongs to the watch: `over` is told with whom it is to go on.
pub fn joined(board: &Arc<Board>, porch: &Porch, options: &Options, over: impl Fn(Options) + Send + Sync + 'static) {
    let (mine, options) = (Arc::downgrade(board), options.clone());
    porch.joined_by(move |host| {
        let Some(status) = mine.upgrade().map(|board| board.status()) else { return "the watch is over".to_owned() };
        match wanted(&options, &status, &Change { what: What::Adds, host: host.to_owned() }) {
            Ok(next) => {
                over(remembered(&options, next));
                "it is taken in".to_owned()
            }
            Err(e) => e.message,
        }
    });
}

/// Watches, as [`protect::run`], and goes on with others when somebody wants that; with whom it was in the end.
///
/// # Errors
/// Those of the watch.
pub fn run(options: &Options, report: &mut dyn Report) -> Result<(Outcome, Options)> {
    let mut now = options.clone();
    let mut outcome = protect::run(&now, report)?;
    while let Some(next) = outcome.changes.take() {
        let before = std::mem::replace(&mut now, *next);
        match begin(&before, &mut now, report)? {
            Some(made) => outcome = made.after(&outcome),
            // The tree has ended, or somebody wants it to be left alone.
            None => {
                outcome.ended = dump::ended(now.dump.pid);
                break;
            }
        }
    }
    Ok((outcome, now))
}

/// With what it goes on by those alone that can be logged in to, if some of all cannot; which these are.
fn answering(options: &Options) -> Option<(Options, Vec<Destination>)> {
    const LIMIT: Duration = Duration::from_secs(5);
    let mut how = ring::way(&options.how);
    how.timeout = how.timeout.min(LIMIT);
    let all = std::iter::once(&options.standby).chain(&options.others).cloned();
    let (mut there, lost): (Vec<_>, Vec<_>) = all.partition(|host| transport::connect(host, &how, &mut Silent).is_ok());
    if there.is_empty() || lost.is_empty() {
        return None;
    }
    let mut limits = options.limits;
    limits.standbys = there.len();
    limits.acks = if there.len() > 1 { options.acks } else { Acks::default() };
    let others = there.split_off(1);
    Some((Options { standby: there.swap_remove(0), others, limits, ..options.clone() }, lost))
}

/// The watch with the others; with those who stood by before, if it cannot be. `None`: there is nothing to be watched any more.
fn begin(before: &Options, now: &mut Options, report: &mut dyn Report) -> Result<Option<Outcome>> {
    /// Who stood by before needs a moment to be gone.
    const MOMENT: Duration = Duration::from_secs(10);
    let until = Instant::now() + MOMENT;
    let mut complaint = None;
    loop {
        let begun = Arc::<AtomicBool>::default();
        let failed = match protect::run(&Options { begun: begun.clone(), ..now.clone() }, report) {
            Err(e) if begun.load(Ordering::Relaxed) => return Err(e),
            Err(e) if e.kind == Kind::Interrupted || dump::ended(now.dump.pid) => return Ok(None),
            Err(e) => e,
            Ok(outcome) => return Ok(Some(outcome)),
        };
        let silent = failed.kind == Kind::LinkFailed;
        // What it could not live with there does not pass by itself.
        let refused = failed.kind == Kind::Unsupported && now.refused.is_none();
        let reasons = failed.refusals.iter().map(|refusal| format!("; {}: {}", refusal.object, refusal.reason));
        let why = std::iter::once(failed.message.clone()).chain(reasons).collect::<String>();
        // A cable that is pulled for a moment is waited for, a host that is lost not for as long as one that is about to be free.
        let waited = if silent { Instant::now() + MOMENT / 2 } else { Instant::now() };
        if refused || waited >= until {
            let first = now.refused.is_none();
            if first {
                *now = Options { refused: Some(why.clone()), ..before.clone() };
                report.warning(&format!("those stand by again who did before: {why}"));
            }
            if let Some((fewer, lost)) = silent.then(|| answering(now)).flatten() {
                let lost = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                report.warning(&format!("{lost} cannot be reached: the others stand by without it, until meio add-standby names it again"));
                *now = fewer;
            } else if !first && complaint.as_ref() != Some(&why) {
                report.warning(&format!("nobody stands by: {why}"));
                complaint = Some(why);
            }
        }
        std::thread::sleep(now.limits.again.min(MOMENT / 20));
        if signal::check_interrupted().is_err() {
            return Ok(None);
        }
    }
}
