//! What a host is among several that belong to one watch, one role after the other, until that is over: it stands by for whoever runs
//! it, or runs it itself, with all who call as its standbys.
//!
//! Whoever has taken over ([`super::agent`]) goes on here as the primary. Those that stood by for the one before call it, and so does
//! that one when it is back ([`super::comeback`]); it calls those of which nothing has come ([`Herald`]), and they call back. Each change of
//! who they are is a watch of its own, with new keys and a higher generation, as in [`super::change`].

use super::again::{Here, Reach};
use super::comeback::{self, Stood};
use super::control::Control;
use super::history;
use super::porch::{Guest, Porch};
use super::protect::{self, Options};
use super::record::{Record, Store};
use super::resume;
use super::setup::{Returns, Seat, Setup};
use super::start::free;
use super::state::{Limits, OnLoss};
use super::status::{Board, Role as Part, State, Status, Wish};
use super::turn;
use super::witness::Contact;
use crate::dump;
use crate::error::{Error, Kind, Result};
use crate::migrate::record::Member;
use crate::progress::Report;
use crate::sys::manager::Manager;
use crate::sys::signal;
use crate::transport::{Destination, How, Peer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It stands by for whoever runs it.
    Follows,
    /// It runs it.
    Leads,
}

/// How a primary belongs to several hosts.
#[derive(Debug, Clone, Default)]
pub struct Among {
    /// How it is logged in to; empty where only those know who come.
    pub own: String,
    /// Hosts that belong to it, and are not there.
    pub away: Vec<String>,
    /// Hosts that were taken out of it: they are told so when they call.
    pub left: Vec<String>,
}

/// All of them, as one knows them.
#[derive(Debug, Clone)]
pub struct Ring {
    /// How this one is logged in to; empty where only those know who come.
    pub own: String,
    /// The others, who is asked first before the others.
    pub hosts: Vec<Destination>,
    /// On which way.
    pub how: How,
    /// What is said to who runs it.
    pub returns: Returns,
    /// The group that may ask how it stands.
    pub group: Option<String>,
    /// How many of them are not waited for.
    pub gone: usize,
    /// Those that have no part in it any more.
    pub left: Vec<String>,
}

impl Ring {
    /// As the primary of a watch has it; `witness`: what leads to that.
    pub fn of(options: &Options, witness: Option<Contact>) -> Ring {
        let away = options.among.iter().flat_map(|among| named(&among.away));
        let hosts = std::iter::once(&options.standby).chain(&options.others).cloned().chain(away).collect();
        let (returns, group) = (comeback::returns(options, witness), options.control_group.clone());
        let left = options.among.as_ref().map(|among| among.left.clone()).unwrap_or_default();
        Ring { own: String::new(), hosts, how: options.how.clone(), returns, group, gone: 1, left }
    }

    /// As the only other host is known.
    pub fn pair(host: Destination, how: How, returns: Returns, group: Option<String>) -> Ring {
        Ring { own: String::new(), hosts: vec![host], how, returns, group, gone: 1, left: Vec::new() }
    }

    /// As one knows it that has stood by, from where `first` is to be asked first: his place, or the primary's.
    pub fn seated(seat: &Seat, first: Option<usize>) -> Ring {
        let how = How {
            ssh: seat.ssh.clone(),
            identity: seat.identity.clone(),
            known_hosts: seat.known_hosts.clone(),
            remote_path: seat.remote_path.clone(),
            ..How::default()
        };
        let mut ring = Ring { how, ..Ring::told(&seat.returns) };
        ring.hosts.clear();
        ring.learns(seat, first);
        ring
    }

    /// As somebody has said who calls.
    pub fn told(returns: &Returns) -> Ring {
        let bare = Returns { at: String::new(), ring: Vec::new(), instance: 0, runs: false, ..returns.clone() };
        let (own, hosts, how) = (String::new(), Vec::new(), How::default());
        let mut ring = Ring { own, hosts, how, returns: bare, group: None, gone: 1, left: Vec::new() };
        ring.hears(returns);
        ring
    }

    /// The way of those that stood by for a meio that was killed here, as far as it is on record.
    pub fn on_record(self, record: &Record) -> Ring {
        let seat = record.back.as_ref().and_then(|back| back.each.first()).and_then(|each| each.seat.as_deref());
        let Some(seat) = seat else { return self };
        let Ring { how, left, .. } = Ring::seated(seat, None);
        Ring { how, left, ..self }
    }

    /// Who they are now.
    pub fn learns(&mut self, seat: &Seat, first: Option<usize>) {
        let others = seat.hosts.iter().enumerate().filter(|(place, _)| *place != seat.place).map(|(_, host)| host);
        let first = first.map_or(Some(&seat.home), |of| seat.hosts.get(of));
        let mut names: Vec<&String> = first.into_iter().chain(others).chain([&seat.home]).chain(&seat.away).collect();
        let mut there = std::collections::BTreeSet::new();
        names.retain(|name| !name.is_empty() && there.insert(name.as_str()));
        self.hosts = names.into_iter().flat_map(|name| named(std::slice::from_ref(name))).collect();
        self.own = seat.hosts.get(seat.place).cloned().unwrap_or_default();
        self.left = seat.left.clone();
    }

    /// How this host is logged in to by one that is called so.
    fn own_for(&self, to: &Destination) -> String {
        if self.own.is_empty() { comeback::own(to) } else { self.own.clone() }
    }

    /// What is said to this one of them.
    pub fn says(&self, to: &Destination) -> Returns {
        let ring = self.hosts.iter().filter(|host| *host != to).map(ToString::to_string).collect();
        Returns { at: self.own_for(to), ring, ..self.returns.clone() }
    }

    /// Somebody has said who belongs to it.
    fn hears(&mut self, returns: &Returns) {
        for name in std::iter::once(&returns.at).chain(&returns.ring) {
            if let Ok(host) = Destination::parse(name)
                && *name != self.own
                && !self.hosts.contains(&host)
                && !is_among(&self.left, name)
            {
                self.hosts.push(host);
            }
        }
    }

    /// With what a tree here is protected by those who have come.
    fn options(&self, pid: i32, members: &[Destination]) -> Options {
        let away = self.hosts.iter().filter(|host| !members.contains(host)).map(ToString::to_string).collect();
        let among = Among { own: self.own.clone(), away, left: self.left.clone() };
        // Two of several that lose each other do not both go on.
        let returns = Returns { limits: Limits { on_loss: OnLoss::Hold, ..self.returns.limits }, ..self.returns.clone() };
        Options {
            how: self.how.clone(),
            control_group: self.group.clone(),
            among: Some(among),
            ..turn::options(pid, &returns, members.to_vec())
        }
    }

    /// What one that has no part in it yet is told.
    fn invitation(&self, to: &Destination, home: String, generation: u64) -> Seat {
        let away = self.hosts.iter().filter(|host| *host != to).map(ToString::to_string).chain([self.own_for(to)]);
        let away = away.filter(|name| *name != home).collect();
        Seat {
            place: 0,
            key: [0; 32],
            at: Vec::new(),
            hosts: vec![to.to_string()],
            ssh: self.how.ssh.clone(),
            identity: self.how.identity.clone(),
            known_hosts: self.how.known_hosts.clone(),
            remote_path: self.how.remote_path.clone(),
            home,
            away,
            left: self.left.clone(),
            returns: Returns { generation, instance: 0, runs: true, ..self.says(to) },
        }
    }
}

/// It was handed over, as was wanted, to the first of these: the others are to stand by for that one.
pub fn handed(ring: &Ring) {
    let how = way(&ring.how);
    let Some((home, others)) = ring.hosts.split_first() else { return };
    for to in others {
        let (to, how, says) = (to.clone(), how.clone(), Setup::Invite(Box::new(ring.invitation(to, home.to_string(), 0))));
        let work = move || drop(comeback::call(&to, &how, &Mutex::default(), &says));
        let _ = std::thread::Builder::new().name("herald".into()).spawn(work);
    }
}

/// What this host is from now on, one role after the other.
///
/// # Errors
/// When it can be neither of them.
pub fn run(ring: Ring, role: Role, guests: Vec<Guest>, report: &mut dyn Report) -> Result<Stood> {
    let done = act(ring, role, guests, report);
    if let Err(e) = &done {
        // Who was started by another host is looked at by nobody.
        report.note(&format!("this host has no part in it any more: {}", e.message));
    }
    done
}

fn act(mut ring: Ring, mut role: Role, mut guests: Vec<Guest>, report: &mut dyn Report) -> Result<Stood> {
    let store = Store::open()?;
    let manager = Arc::new(Manager::of_environment());
    loop {
        if role == Role::Leads
            && let Some(stood) = lead(&mut ring, std::mem::take(&mut guests), &store, &manager, report)?
        {
            return Ok(stood);
        }
        let ended = comeback::stand(&mut ring, &store, &manager, report)?;
        match (ended.next(), ended.seat) {
            (Some(next), Some(seat)) => {
                ring.learns(&seat, ended.overtaken);
                (role, ring.gone) = (next, usize::from(!ended.planned));
            }
            _ => return Ok(ended.stood),
        }
    }
}

/// How somebody else's files are used here: what the first primary logs in with may be here, too; else there is what is usual.
pub fn way(how: &How) -> How {
    How {
        identity: how.identity.iter().filter(|file| file.exists()).cloned().collect(),
        known_hosts: how.known_hosts.clone().filter(|file| file.exists()),
        ..how.clone()
    }
}

/// Whether this host is one of these, whoever logs in there.
pub fn is_among(names: &[String], name: &str) -> bool {
    let place = |name: &str| Destination::parse(name).ok().map(|host| (host.host, host.port));
    let meant = place(name);
    meant.is_some() && names.iter().any(|other| place(other) == meant)
}

/// Those that are called so.
fn named(names: &[String]) -> Vec<Destination> {
    names.iter().filter_map(|name| Destination::parse(name).ok()).collect()
}

/// One that is told to come when it is not there.
#[derive(Clone)]
struct Called {
    to: Destination,
    seat: Seat,
    /// It has come, and may have been lost since.
    came: bool,
}

/// Calls those that belong to it, and of whom nothing has come or comes any more, until it is dropped.
struct Herald {
    all: Arc<Mutex<Vec<Called>>>,
    ends: Arc<AtomicBool>,
}

impl Herald {
    fn begin(how: How, again: Duration, porch: Arc<Porch>) -> Result<Herald> {
        const STEP: Duration = Duration::from_millis(50);
        /// Who does not answer is not called more often.
        const RARELY: u32 = 3;
        let herald = Herald { all: Arc::default(), ends: Arc::default() };
        let (all, ends) = (herald.all.clone(), herald.ends.clone());
        let missing = move || {
            let lost = porch.missing();
            let mut missing = all.lock().unwrap_or_else(PoisonError::into_inner).clone();
            missing.retain(|one| !one.came || lost.contains(&one.to));
            missing
        };
        let work = move || {
            while !ends.load(Ordering::Relaxed) {
                let before = missing();
                // Who comes by itself is not to be called.
                let until = Instant::now() + again * RARELY;
                while !ends.load(Ordering::Relaxed) && Instant::now() < until {
                    std::thread::sleep(STEP);
                }
                for Called { to, seat, .. } in before {
                    let still = missing().iter().any(|one| one.to == to);
                    if still && !ends.load(Ordering::Relaxed) {
                        let _ = comeback::call(&to, &how, &Mutex::default(), &Setup::Invite(Box::new(seat)));
                    }
                }
            }
        };
        std::thread::Builder::new().name("herald".into()).spawn(work)?;
        Ok(herald)
    }

    fn calls(&self, ring: &Ring, there: &[Destination], generation: u64) {
        let called =
            |to: &Destination| Called { to: to.clone(), seat: ring.invitation(to, ring.own_for(to), generation), came: there.contains(to) };
        *self.all.lock().unwrap_or_else(PoisonError::into_inner) = ring.hosts.iter().map(called).collect();
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Shut when it is over.
struct Open(Arc<Porch>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Runs it, with all who call as its standbys. `None`: another one has taken over.
fn lead(ring: &mut Ring, guests: Vec<Guest>, store: &Store, manager: &Manager, report: &mut dyn Report) -> Result<Option<Stood>> {
    let name = ring.returns.name.clone();
    // From one watch to the next nobody else is to be at work on it.
    let claim = Arc::new(free(store, &name)?);
    let porch = Open(Porch::begin()?);
    guests.into_iter().for_each(|guest| porch.0.receives(guest));
    let herald = Herald::begin(way(&ring.how), ring.returns.limits.again, porch.0.clone())?;
    // Whoever ran it before, and was lost, is not waited for.
    let mut expected = ring.hosts.len().saturating_sub(ring.gone).max(1);
    let (mut complaint, mut hands) = (None, None::<Box<Options>>);
    loop {
        porch.0.bars(&ring.left);
        let only = hands.as_ref().map(|next| next.standby.clone());
        let tree = match wait(ring, &porch.0, &herald, (expected, only.as_ref()), (store, manager))? {
            Waited::Comes(tree) => tree,
            Waited::Over(stood) => return Ok(Some(stood)),
            Waited::InVain => {
                report.warning("the host that was to take over does not come: all stand by again");
                hands = None;
                continue;
            }
        };
        let (mut members, mut peers): (Vec<Destination>, Vec<Peer>) = (Vec::new(), Vec::new());
        let record = store.read(&name)?;
        let generation = record.as_ref().and_then(|record| record.activation).map_or(0, |a| a.generation());
        let mut overtaken = false;
        for Guest { peer, returns } in porch.0.take() {
            // Who belongs to it besides is known here.
            ring.hears(&Returns { ring: Vec::new(), ..returns.clone() });
            overtaken |= returns.runs && returns.generation > generation;
            if let Ok(host) = Destination::parse(&returns.at)
                && only.as_ref().is_none_or(|only| *only == host)
            {
                members.push(host);
                peers.push(peer);
            }
        }
        let there: Vec<Destination> = if only.is_some() { ring.hosts.clone() } else { members.clone() };
        herald.calls(ring, &there, generation);
        // All of its memory is to be here.
        let hindrance = turn::hindrance(tree.pid, &ring.returns.decisions).unwrap_or_else(|e| Some(e.message));
        let mut options = ring.options(tree.pid, &members);
        if let Some(back) = record.as_ref().and_then(|record| record.back.as_ref()) {
            // A meio was killed here: with those that it had, if there is anything to go on with.
            let known = back.each.first().and_then(|each| each.seat.as_ref()).map(|seat| ring.options(tree.pid, &named(&seat.hosts)));
            let known = Options { limits: back.limits, ..known.unwrap_or_else(|| options.clone()) };
            match resume::find(&known, record.as_ref())? {
                Some(_) => options = known,
                None if overtaken => return Err(Error::other("the tree is there, too, and nothing keeps it silent")),
                None => {}
            }
        }
        options.hands = hands.take().and_then(|next| next.hands);
        let begun = options.begun.clone();
        let here = Here { peers, witness: ring.returns.witness.clone(), porch: porch.0.clone(), claim: Some(claim.clone()) };
        let done = hindrance.map_or_else(|| protect::run_over(&options, Reach::Calls(here), report), |why| Err(Error::other(why)));
        let failed = match done {
            Ok(outcome) if outcome.replaced => return Ok(None),
            Ok(outcome) if outcome.switched => {
                // Whoever runs it now is asked first.
                let first = ring.hosts.iter().position(|host| members.contains(host));
                ring.hosts[..=first.unwrap_or_default()].rotate_right(1);
                return Ok(None);
            }
            Ok(protect::Outcome { changes: Some(next), .. }) => {
                ring.hosts = std::iter::once(&next.standby).chain(&next.others).cloned().collect();
                expected = ring.hosts.len();
                let away = next.among.iter().flat_map(|among| named(&among.away)).filter(|host| !ring.hosts.contains(host));
                let away: Vec<Destination> = away.collect();
                ring.hosts.extend(away);
                ring.left = next.among.as_ref().map(|among| among.left.clone()).unwrap_or_default();
                hands = Some(next).filter(|next| next.hands.is_some());
                continue;
            }
            Ok(outcome) if outcome.ended => return Ok(Some(Stood::Ran)),
            Ok(_) => return Ok(Some(Stood::Runs)),
            Err(e) if begun.load(Ordering::Relaxed) || e.kind == Kind::Interrupted => return Err(e),
            Err(e) => e,
        };
        if complaint.as_ref() != Some(&failed.message) {
            report.warning(&format!("nobody stands by for what runs here: {failed}"));
            complaint = Some(failed.message);
        }
        std::thread::sleep(ring.returns.limits.again);
        signal::check_interrupted()?;
    }
}

/// What has come of waiting.
enum Waited {
    /// There is somebody to protect the tree with,
    Comes(Member),
    /// or nothing to be protected any more;
    Over(Stood),
    /// or the one that is to take over has not come.
    InVain,
}

/// Waits for those who are to stand by: for the first as long as the tree lives, for the others a moment more.
fn wait(
    ring: &Ring,
    porch: &Porch,
    herald: &Herald,
    (expected, only): (usize, Option<&Destination>),
    (store, manager): (&Store, &Manager),
) -> Result<Waited> {
    const STEP: Duration = Duration::from_millis(10);
    const MOMENT: Duration = Duration::from_secs(3);
    let name = &ring.returns.name;
    let record = store.read(name)?;
    let Some((tree, record)) = record.and_then(|record| Some((record.about.tree?, record))) else { return Ok(Waited::Over(Stood::Over)) };
    let generation = record.activation.map_or(0, |a| a.generation());
    // What a killed meio has left behind is taken up.
    if record.back.is_none() {
        store.write(&Record { door: Some(porch.token().to_owned()), ..record })?;
    }
    let status = Status {
        name: name.clone(),
        role: Part::Primary,
        state: State::Unprotected,
        pid: Some(tree.pid),
        at: ring.returns.addresses.iter().map(ToString::to_string).collect(),
        generation,
        ..Status::default()
    };
    let control = Control::open(store, name, Arc::new(Board::new(status)), ring.group.as_deref())?;
    let board = control.board();
    let begun = Instant::now();
    let mut until = None;
    let mut told = None;
    let waited = loop {
        manager.lives();
        let there: Vec<String> = porch.guests().into_iter().filter(|name| only.is_none_or(|only| only.to_string() == *name)).collect();
        if told != Some(there.len()) {
            told = Some(there.len());
            herald.calls(ring, &named(&there), generation);
        }
        if !there.is_empty() {
            let until = *until.get_or_insert_with(|| Instant::now() + MOMENT + ring.returns.limits.again);
            if there.len() >= expected || Instant::now() >= until {
                break Waited::Comes(tree);
            }
        }
        if only.is_some() && there.is_empty() && begun.elapsed() >= 3 * MOMENT + ring.returns.limits.again {
            break Waited::InVain;
        }
        let over = if !tree.lives() || dump::ended(tree.pid) { Some(Stood::Ran) } else { None };
        if let Some(stood) = over.or_else(|| (board.wished() == Some(Wish::Over)).then_some(Stood::Runs)) {
            // Who calls later is to hear of it.
            history::ends(store, name, generation);
            store.forget(name)?;
            break Waited::Over(stood);
        }
        if signal::take().or_else(|| signal::passed().find(|signal| *signal != libc::SIGUSR1)).is_some() {
            board.end(Ok(Vec::new()));
            return Err(Error::new(Kind::Interrupted, "interrupted while nobody stands by"));
        }
        std::thread::sleep(STEP);
    };
    board.end(Ok(Vec::new()));
    Ok(waited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::capture::Decisions;

    fn returns(at: &str, ring: &[&str]) -> Returns {
        Returns {
            name: "web".into(),
            generation: 3,
            instance: 7,
            runs: false,
            addresses: Vec::new(),
            pid_namespace: false,
            spool: Default::default(),
            limits: Limits { on_loss: OnLoss::Continue, ..Limits::default() },
            fence: None,
            witness: None,
            on_event: None,
            capsule: None,
            level: None,
            freeze_timeout: Duration::from_secs(1),
            decisions: Decisions::default(),
            at: at.into(),
            ring: ring.iter().map(ToString::to_string).collect(),
        }
    }

    fn names(ring: &Ring) -> Vec<String> {
        ring.hosts.iter().map(ToString::to_string).collect()
    }

    /// What one of two standbys was told, with one host more that is not there.
    fn seat() -> Seat {
        let told = Ring { own: "root@one".into(), ..Ring::told(&returns("root@two", &["root@three", "root@four"])) };
        let place = told.invitation(&told.hosts[0], "root@one".into(), 3);
        Seat { hosts: vec!["root@two".into(), "root@three".into()], away: vec!["root@four".into()], ..place }
    }

    /// Who has taken over is asked first, or the primary; nobody is named twice, nor itself.
    #[test]
    fn each_knows_the_others() {
        let ring = Ring::seated(&seat(), None);
        assert_eq!((ring.own.as_str(), names(&ring)), ("root@two", vec!["root@one".into(), "root@three".into(), "root@four".into()]));
        let mut ring = Ring::seated(&seat(), Some(1));
        assert_eq!(names(&ring), ["root@three", "root@one", "root@four"]);
        let says = ring.says(&ring.hosts[0]);
        assert_eq!((says.at.as_str(), says.ring), ("root@two", vec!["root@one".to_owned(), "root@four".to_owned()]));
        ring.hears(&returns("root@four", &["root@two", "root@five"]));
        assert_eq!(names(&ring), ["root@three", "root@one", "root@four", "root@five"]);
    }

    /// Those who have come are the standbys, the others are away; of two that are left none goes on alone.
    #[test]
    fn who_comes_stands_by() {
        let ring = Ring::seated(&seat(), Some(1));
        let options = ring.options(1, &named(&["root@one".into(), "root@four".into()]));
        assert_eq!((options.standby.host.as_str(), options.others.len(), options.limits.standbys), ("one", 1, 2));
        assert_eq!(options.among.map(|among| among.away), Some(vec!["root@three".to_owned()]));
        let options = ring.options(1, &named(&["root@one".into()]));
        assert_eq!((options.limits.standbys, options.limits.on_loss), (1, OnLoss::Hold));
    }

    /// Who was taken out of it is not one of them again since somebody names it, or since it calls; whoever follows knows it, too.
    #[test]
    fn who_has_left_is_no_part_of_it() {
        let mut ring = Ring { left: vec!["root@five:22".into()], ..Ring::seated(&seat(), None) };
        ring.hears(&returns("root@four", &["admin@five:22", "root@five:23", "root@six"]));
        assert_eq!(names(&ring), ["root@one", "root@three", "root@four", "root@five:23", "root@six"]);
        let to = ring.hosts[0].clone();
        assert_eq!(Ring::seated(&ring.invitation(&to, "root@two".into(), 5), None).left, ["root@five:22"]);
        assert_eq!(ring.options(1, &named(&["root@one".into()])).among.map(|among| among.left), Some(ring.left.clone()));
        assert!(!is_among(&ring.left, "five") && !is_among(&[], ""));
    }

    /// Who is invited finds the host that has invited it, and all others.
    #[test]
    fn who_is_invited_finds_all() {
        let ring = Ring::seated(&seat(), Some(1));
        let to = &ring.hosts[2];
        let invited = Ring::seated(&ring.invitation(to, "root@two".into(), 5), None);
        assert_eq!((invited.own.as_str(), invited.returns.generation), ("root@four", 5));
        assert_eq!(names(&invited), ["root@two", "root@three", "root@one"]);
    }
}
