//! The drain screenplay: everything that is protected here, or runs here in capsules, goes to other machines. All of it is looked at
//! before anything is touched; then one goes after the other, and what cannot go stays.
//!
//! A watched tree goes to its standby, by switch-over; where several stand by, to the fittest of those that are up to date. A capsule goes
//! to one of the machines that were named, or else that stand by for what is watched here, by migration: to the fittest that has room for
//! it and where nothing stands in its way.

use crate::capsule::roster::{Entry, Roster};
use crate::dump;
use crate::error::{Error, Kind, Refusal, Result};
use crate::migrate;
use crate::migrate::files::Choice;
use crate::migrate::room::{self, Room};
use crate::progress::{Report, phase};
use crate::resource::capture::Decisions;
use crate::sys::signal;
use crate::transport::{Destination, How};
use crate::watch::control::may_take_over;
use crate::watch::status::{One, Role, State, Status};
use crate::watch::{clean, handover};
use std::time::Duration;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where capsules may go; where none is named, to those that stand by for what is watched here.
    pub to: Vec<Destination>,
    /// On which way.
    pub how: How,
    /// What to do about things in them that would be refused.
    pub decisions: Decisions,
    /// Which of their files are sent.
    pub files: Choice,
}

/// What goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A watched tree, by switch-over.
    Watch,
    /// A capsule, by migration.
    Capsule,
}

impl What {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            What::Watch => "watch",
            What::Capsule => "capsule",
        }
    }
}

/// A machine where something may go.
#[derive(Debug, Clone)]
pub struct Host {
    /// As the user has named it, who drains or who watches.
    pub to: Destination,
    /// What it calls itself.
    pub name: String,
    /// It was named for this.
    pub named: bool,
    /// What is left of it, as it has said,
    pub asked: Room,
    /// less what is to go there.
    room: Room,
    /// The way there.
    how: How,
    /// Capsules may.
    takes: bool,
}

/// One that is to go, and can as far as can be seen.
#[derive(Debug, Clone)]
pub struct Move {
    /// How.
    pub what: What,
    /// Of the watch or the capsule.
    pub name: String,
    /// What the other machine calls itself.
    pub host: String,
    /// What will be different there.
    pub warnings: Vec<String>,
    goes: Goes,
}

/// How it goes there.
#[derive(Debug, Clone)]
enum Goes {
    /// A watch, to the one that is meant of several.
    Switches(Option<String>),
    /// The root of a capsule, and the way.
    Migrates(i32, Box<(Destination, How)>),
}

/// One that has gone.
#[derive(Debug, Clone)]
pub struct Moved {
    /// How.
    pub what: What,
    /// Of the watch or the capsule.
    pub name: String,
    /// Where it runs now.
    pub host: String,
    /// For how long nobody ran.
    pub downtime: Duration,
    /// What is different there.
    pub warnings: Vec<String>,
    /// This machine stands by for it now.
    pub follows: bool,
}

/// One that stays, and why. With [`Kind::Frozen`] it may run there, and stands still here.
#[derive(Debug, Clone)]
pub struct Stay {
    /// How it was to go.
    pub what: What,
    /// Of the watch or the capsule.
    pub name: String,
    /// Why it does not, with all that stands in its way.
    pub why: Error,
}

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In this order.
    pub moves: Vec<Move>,
    /// What cannot go.
    pub stays: Vec<Stay>,
    /// Those that were asked.
    pub hosts: Vec<Host>,
    /// Watches for which this machine stands by: nobody will, when it is gone.
    pub standby_for: Vec<String>,
}

/// A capsule with what is to be known of it.
struct Capsule {
    entry: Entry,
    memory: u64,
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// More fits a machine, the more memory is left of it and the less it has to do.
fn fitness(room: &Room) -> f64 {
    room.memory as f64 / (1.0 + room.load / f64::from(room.processors.max(1)))
}

/// What a tree of so many bytes takes: images of it lie there for a while, and what meio itself needs.
fn takes(memory: u64) -> u64 {
    const ITSELF: u64 = 64 << 20;
    memory + memory / 4 + ITSELF
}

/// Machines with room for so much, the fittest first.
fn fittest(hosts: &[Host], memory: u64) -> Vec<usize> {
    let mut fit: Vec<usize> = (0..hosts.len()).filter(|&n| hosts[n].takes && hosts[n].room.memory >= takes(memory)).collect();
    fit.sort_by(|&a, &b| fitness(&hosts[b].room).total_cmp(&fitness(&hosts[a].room)));
    fit
}

/// Looks at everything, at all ends; nothing is touched.
///
/// # Errors
/// When a machine that was named cannot be asked, or it cannot be seen what there is here.
pub fn plan(options: &Options, report: &mut dyn Report) -> Result<Plan> {
    signal::catch();
    let watches = clean::all(None)?;
    let entries = Roster::open()?.all()?;
    let mut capsules = capsules(&entries, &watches);
    let mut plan = Plan::default();
    let mut phases = Vec::new();
    plan.hosts = phase(report, &mut phases, "hosts", |report| hosts(options, &watches, !capsules.is_empty(), report))?;
    for status in &watches {
        let capsule = entries.iter().find(|entry| status.pid == Some(entry.pid));
        watch(status, capsule, &mut plan);
    }
    // The largest one first: what is small finds room later, too.
    capsules.sort_by(|a, b| b.memory.cmp(&a.memory).then_with(|| a.entry.name.cmp(&b.entry.name)));
    for capsule in &capsules {
        signal::check_interrupted()?;
        match place(options, capsule, &mut plan.hosts, report) {
            Ok(one) => plan.moves.push(one),
            Err(e) if e.kind == Kind::Interrupted => return Err(e),
            Err(why) => plan.stays.push(Stay { what: What::Capsule, name: capsule.entry.name.clone(), why }),
        }
    }
    Ok(plan)
}

/// Those of which no watch is named.
fn capsules(entries: &[Entry], watches: &[Status]) -> Vec<Capsule> {
    let watched = |pid: i32| watches.iter().any(|status| status.pid == Some(pid));
    let all = entries.iter().filter(|entry| !watched(entry.pid)).cloned();
    all.map(|entry| Capsule { memory: dump::extent(entry.pid).1, entry }).collect()
}

/// Whether one of several is to be chosen for it.
fn is_choice(status: &Status) -> bool {
    status.role == Role::Primary && status.standbys.len() > 1
}

/// Those that were named must answer; those that stand by are asked where that is of use.
fn hosts(options: &Options, watches: &[Status], capsules: bool, report: &mut dyn Report) -> Result<Vec<Host>> {
    let ask = |to: &Destination, how: &How, named: bool, report: &mut dyn Report| {
        let (name, room) = room::ask(to, how, report)?;
        let (load, processors) = (room.load, room.processors);
        report.note(&format!("{name}: {} of memory left, load {load:.2} on {processors} processors", mib(room.memory)));
        let takes = named || options.to.is_empty();
        Ok::<_, Error>(Host { to: to.clone(), name, named, asked: room, room, how: how.clone(), takes })
    };
    let mut all = Vec::new();
    for to in &options.to {
        all.push(ask(to, &options.how, true, report)?);
    }
    let wanted = |status: &&Status| is_choice(status) || status.role == Role::Primary && capsules && options.to.is_empty();
    let mut met: Vec<Destination> = options.to.clone();
    for status in watches.iter().filter(wanted) {
        for login in handover::logins(&status.name) {
            signal::check_interrupted()?;
            let Ok(to) = Destination::parse(&login.to) else { continue };
            if met.contains(&to) {
                continue;
            }
            met.push(to.clone());
            match ask(&to, &login.how(&options.how), false, report) {
                Ok(host) if all.iter().any(|there| there.name == host.name) => {}
                Ok(host) => all.push(host),
                Err(e) if e.kind == Kind::Interrupted => return Err(e),
                Err(e) => {
                    report.warning(&format!("{to} stands by for {}, and does not say what is left of it: {}", status.name, e.message))
                }
            }
        }
    }
    Ok(all)
}

fn watch(status: &Status, capsule: Option<&Entry>, plan: &mut Plan) {
    let name = status.name.clone();
    let stays = |why: Error, help: String| Stay { what: What::Watch, name: name.clone(), why: why.help(help) };
    match (status.role, status.state) {
        (Role::Standby, State::Running) => {
            let why = Error::other("it has taken over here, and nobody stands by for it");
            plan.stays.push(stays(why, format!("meio unwatch {name}, and watch it from here or move it by hand: meio migrate")));
        }
        (Role::Standby, _) => plan.standby_for.push(name),
        (Role::Series, _) => {
            let why = Error::other(format!("nobody stands by for it: its images are kept here, in {}", status.at.join(", ")));
            let then = match (capsule, status.pid) {
                (Some(capsule), _) => format!("meio drain moves the capsule {} then", capsule.name),
                (None, pid) => format!("meio migrate {} HOST moves it then", pid.unwrap_or_default()),
            };
            plan.stays.push(stays(why, format!("meio unwatch {name} ends that; {then}, and meio watch --dir keeps images of it there")));
        }
        _ => match may_take_over(status).and_then(|()| successor(status, &plan.hosts)) {
            Ok(one) => {
                let host = one.map(|one| one.host.clone());
                let goes = Goes::Switches(host.clone());
                let host = host.or_else(|| status.other.clone()).unwrap_or_default();
                plan.moves.push(Move { what: What::Watch, name, host, warnings: Vec::new(), goes });
            }
            Err(why) => plan.stays.push(Stay { what: What::Watch, name, why }),
        },
    }
}

/// Which of several takes over: one that is ready, rather one that was named, rather one that is up to date, and of these the fittest.
/// `None`: only one stands by.
fn successor<'s>(status: &'s Status, hosts: &[Host]) -> Result<Option<&'s One>> {
    /// Epochs that one may be behind at any moment: as many as are on their way.
    const BEHIND: u64 = 20;
    if !is_choice(status) {
        return Ok(None);
    }
    let newest = status.standbys.iter().filter_map(|one| one.epoch).max().unwrap_or_default();
    let is_new = |one: &One| one.epoch.is_some_and(|epoch| epoch.series == newest.series && newest.number - epoch.number <= BEHIND);
    let rank = |one: &One| {
        let host = hosts.iter().find(|host| host.name == one.host);
        (host.is_some_and(|host| host.named), is_new(one), host.map_or(0.0, |host| fitness(&host.room)))
    };
    let mut ready: Vec<&One> = status.standbys.iter().filter(|one| one.state == "ready").collect();
    // Of those that are alike the first in the user's order.
    ready.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
    match ready.first() {
        Some(one) => Ok(Some(one)),
        None => {
            let all: Vec<&str> = status.standbys.iter().map(|one| one.host.as_str()).collect();
            Err(Error::other(format!("none of {} is ready to take over", all.join(", "))).help("meio status says how it stands"))
        }
    }
}

fn moving(options: &Options, pid: i32, name: &str, (to, how): (&Destination, &How)) -> migrate::Options {
    let usual = migrate::Options::new(pid, Some(name.to_owned()), to.clone(), how.clone(), options.decisions.clone());
    migrate::Options { files: options.files.clone(), ..usual }
}

/// The fittest machine that takes it.
fn place(options: &Options, capsule: &Capsule, hosts: &mut [Host], report: &mut dyn Report) -> Result<Move> {
    let Capsule { entry: Entry { name, pid, .. }, memory } = capsule;
    if !hosts.iter().any(|host| host.takes) {
        return Err(Error::new(Kind::Usage, "no host is known where it could go").help("name one: meio drain --to HOST"));
    }
    let fit = fittest(hosts, *memory);
    let full = hosts.iter().enumerate().filter(|(n, host)| host.takes && !fit.contains(n)).map(|(_, host)| {
        let what = format!("{} has no room for it: it takes {}, and {} are left", host.name, mib(takes(*memory)), mib(host.room.memory));
        Error::other(what).help("name one more host: --to")
    });
    let mut whys: Vec<Error> = full.collect();
    for n in fit {
        match migrate::dry_run(&moving(options, *pid, name, (&hosts[n].to, &hosts[n].how)), report) {
            Ok(outcome) => {
                let host = &mut hosts[n];
                host.room.memory -= takes(*memory);
                let goes = Goes::Migrates(*pid, Box::new((host.to.clone(), host.how.clone())));
                return Ok(Move { what: What::Capsule, name: name.clone(), host: host.name.clone(), warnings: outcome.warnings, goes });
            }
            Err(e) if e.kind == Kind::Interrupted => return Err(e),
            Err(e) => whys.push(e),
        }
    }
    Err(together(whys))
}

/// Everything that stands in the way, wherever it is, in one.
fn together(mut whys: Vec<Error>) -> Error {
    if whys.len() < 2 {
        return whys.pop().unwrap_or_else(|| Error::other("it cannot go anywhere"));
    }
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut messages: Vec<String> = Vec::new();
    for why in &whys {
        let fresh: Vec<Refusal> = why.refusals.iter().filter(|refusal| !refusals.contains(refusal)).cloned().collect();
        // What the tree itself does not allow is the same wherever it is to go.
        if why.refusals.is_empty() || !fresh.is_empty() {
            messages.push(why.message.clone());
        }
        refusals.extend(fresh);
    }
    let kind = whys.iter().map(|why| why.kind).find(|kind| *kind == Kind::Unsupported).unwrap_or(whys[0].kind);
    let help = whys.iter().find_map(|why| why.help.clone());
    let error = Error { refusals, ..Error::new(kind, messages.join("; ")) };
    help.map_or_else(|| error.clone(), |help| error.clone().help(help))
}

/// Moves them, one after the other; what has gone, and what stays after all. When it is interrupted, what was not begun stays.
pub fn run(options: &Options, moves: &[Move], report: &mut dyn Report) -> (Vec<Moved>, Vec<Stay>) {
    let (mut moved, mut stays) = (Vec::new(), Vec::new());
    let mut over: Option<Error> = None;
    for one in moves {
        let (what, name) = (one.what, one.name.clone());
        let done = match over.clone().map_or_else(signal::check_interrupted, Err) {
            Err(e) => Err(e),
            Ok(()) => go(options, one, report),
        };
        match done {
            Ok(one) => moved.push(one),
            Err(why) => {
                if why.kind == Kind::Interrupted {
                    over = Some(Error::new(Kind::Interrupted, "interrupted before it was begun").help("run it again"));
                }
                stays.push(Stay { what, name, why });
            }
        }
    }
    (moved, stays)
}

fn go(options: &Options, one: &Move, report: &mut dyn Report) -> Result<Moved> {
    let Move { what, name, .. } = one;
    let (pid, way) = match &one.goes {
        Goes::Switches(to) => return switch(name, to.clone(), report),
        Goes::Migrates(pid, way) => (*pid, way),
    };
    report.note(&format!("{name} goes to {}", one.host));
    let outcome = migrate::run(&moving(options, pid, name, (&way.0, &way.1)), report)?;
    let migrate::Outcome { host, downtime, warnings, .. } = outcome;
    Ok(Moved { what: *what, name: name.clone(), host, downtime, warnings, follows: false })
}

fn switch(name: &str, to: Option<String>, report: &mut dyn Report) -> Result<Moved> {
    let done = phase(report, &mut Vec::new(), "switch over", |_| handover::over(name, to))?;
    let Some((switched, follows)) = done else { return Err(Error::new(Kind::NotFound, format!("nobody watches {name} any more"))) };
    let downtime = Duration::from_secs_f64(switched.frozen_ms.max(0.0) / 1e3);
    Ok(Moved { what: What::Watch, name: name.to_owned(), host: switched.host, downtime, warnings: Vec::new(), follows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::state::Mark;

    fn host(name: &str, mib: u64, load: f64) -> Host {
        let to = Destination { user: None, host: name.into(), port: None };
        let room = Room { memory: mib << 20, load, processors: 2 };
        Host { to, name: name.into(), named: false, asked: room, room, how: How::default(), takes: true }
    }

    fn stands(host: &str, state: &str, number: u64) -> One {
        One { host: host.into(), state: state.into(), epoch: Some(Mark { series: 1, number }) }
    }

    /// One that is ready takes over: the fittest of those that are up to date, unless another one was named.
    #[test]
    fn one_of_several_is_chosen() {
        let mut hosts = [host("old", 9000, 0.0), host("small", 1000, 0.0), host("large", 4000, 0.0), host("busy", 8000, 9.0)];
        let standbys =
            vec![stands("old", "ready", 3), stands("small", "ready", 99), stands("large", "ready", 98), stands("busy", "ready", 99)];
        let mut status = Status { role: Role::Primary, state: State::Protected, standbys, ..Status::default() };
        let chosen = |status: &Status, hosts: &[Host]| successor(status, hosts).map(|one| one.map(|one| one.host.clone()));
        assert_eq!(chosen(&status, &hosts).expect("one"), Some("large".into()));
        // Of which nothing is known the first.
        assert_eq!(chosen(&status, &[]).expect("one"), Some("small".into()));
        hosts[3].named = true;
        assert_eq!(chosen(&status, &hosts).expect("one"), Some("busy".into()));
        status.standbys[3].state = "copying".into();
        assert_eq!(chosen(&status, &hosts).expect("one"), Some("large".into()));
        status.standbys.iter_mut().for_each(|one| one.state = "lost".into());
        assert!(chosen(&status, &hosts).is_err_and(|e| e.message.contains("none of old, small, large, busy")));
        status.standbys.truncate(1);
        assert_eq!(chosen(&status, &hosts).expect("no choice"), None);
    }

    /// Memory counts, and so does what a machine has to do; one without room is none.
    #[test]
    fn the_fittest_is_first() {
        let all = [host("small", 100, 0.0), host("busy", 8000, 9.0), host("idle", 4000, 0.1), host("large", 9000, 1.0)];
        assert_eq!(fittest(&all, 10 << 20), [3, 2, 1, 0]);
        assert_eq!(fittest(&all, 100 << 20), [3, 2, 1]);
        assert_eq!(fittest(&all, 7000 << 20), [3]);
        assert!(fittest(&all, 8000 << 20).is_empty());
    }

    /// What is the same at all of them is said once.
    #[test]
    fn all_that_stands_in_the_way() {
        let refusal =
            |object: &str| Refusal { pid: 7, object: object.into(), reason: "no".into(), advice: "end it".into(), ..Refusal::default() };
        let own = || Error::refused("cannot move process 7", vec![refusal("fd 3")]);
        let there = Error::refused("process 7 cannot live on b", vec![refusal("pid 7"), refusal("fd 3")]);
        let e = together(vec![own(), own(), there, Error::other("c has no room for it")]);
        assert_eq!(e.refusals.iter().map(|r| r.object.as_str()).collect::<Vec<_>>(), ["fd 3", "pid 7"]);
        assert_eq!(e.kind, Kind::Unsupported);
        for once in ["cannot move process 7", "cannot live on b", "c has no room for it"] {
            assert_eq!(e.message.matches(once).count(), 1, "{}", e.message);
        }
        assert_eq!(together(vec![Error::other("one")]).message, "one");
    }
}
