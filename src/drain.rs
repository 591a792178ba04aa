//! The drain screenplay: everything that is protected here, or runs here in capsules, goes to other machines. All of it is looked at
//! before anything is touched; then one goes after the other, and what cannot go stays.
//!
//! A watched tree goes to its standby, by switch-over. A capsule goes to one of the machines that were named, by migration: to the
//! fittest that has room for it and where nothing stands in its way.

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
use crate::watch::clean;
use crate::watch::control::{self, Ask, may_take_over};
use crate::watch::record::Store;
use crate::watch::status::{Role, State, Status};
use crate::watch::switch::Switched;
use std::time::Duration;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where capsules may go.
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

/// A machine where capsules may go.
#[derive(Debug, Clone)]
pub struct Host {
    /// As the user has named it.
    pub to: Destination,
    /// What it calls itself.
    pub name: String,
    /// What is left of it, as it has said,
    pub asked: Room,
    /// less what is to go there.
    room: Room,
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
    /// Root of a capsule, and where it goes.
    migrates: Option<(i32, Destination)>,
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
    /// Where capsules may go.
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
    let mut fit: Vec<usize> = (0..hosts.len()).filter(|&n| hosts[n].room.memory >= takes(memory)).collect();
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
    let mut capsules = capsules(&watches)?;
    let mut plan = Plan::default();
    let mut phases = Vec::new();
    plan.hosts = phase(report, &mut phases, "hosts", |report| hosts(options, report))?;
    for status in &watches {
        watch(status, &mut plan);
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

/// Those that no watch takes along.
fn capsules(watches: &[Status]) -> Result<Vec<Capsule>> {
    let taken = |pid: i32| watches.iter().any(|status| status.pid == Some(pid) && status.role != Role::Series);
    let all = Roster::open()?.all()?.into_iter().filter(|entry| !taken(entry.pid));
    Ok(all.map(|entry| Capsule { memory: dump::extent(entry.pid).1, entry }).collect())
}

fn hosts(options: &Options, report: &mut dyn Report) -> Result<Vec<Host>> {
    let ask = |to: &Destination| {
        let (name, room) = room::ask(to, &options.how, report)?;
        let (load, processors) = (room.load, room.processors);
        report.note(&format!("{name}: {} of memory left, load {load:.2} on {processors} processors", mib(room.memory)));
        Ok(Host { to: to.clone(), name, asked: room, room })
    };
    options.to.iter().map(ask).collect()
}

fn watch(status: &Status, plan: &mut Plan) {
    let name = status.name.clone();
    match (status.role, status.state) {
        (Role::Standby, State::Running) => {
            let why = Error::other("it has taken over here, and nobody stands by for it");
            let why = why.help(format!("meio unwatch {name}, and watch it from here or move it by hand: meio migrate"));
            plan.stays.push(Stay { what: What::Watch, name, why });
        }
        (Role::Standby, _) => plan.standby_for.push(name),
        (Role::Primary, _) if status.standbys.len() > 1 => {
            let why = Error::new(Kind::Unsupported, "several hosts stand by for it, and it is not for meio to choose one of them");
            let why = why.help(format!("meio switchover {name} --to HOST"));
            plan.stays.push(Stay { what: What::Watch, name, why });
        }
        _ => match may_take_over(status) {
            Ok(()) => {
                let host = status.other.clone().unwrap_or_default();
                plan.moves.push(Move { what: What::Watch, name, host, warnings: Vec::new(), migrates: None });
            }
            Err(why) => plan.stays.push(Stay { what: What::Watch, name, why }),
        },
    }
}

fn moving(options: &Options, pid: i32, name: &str, to: &Destination) -> migrate::Options {
    let usual = migrate::Options::new(pid, Some(name.to_owned()), to.clone(), options.how.clone(), options.decisions.clone());
    migrate::Options { files: options.files.clone(), ..usual }
}

/// The fittest machine that takes it.
fn place(options: &Options, capsule: &Capsule, hosts: &mut [Host], report: &mut dyn Report) -> Result<Move> {
    let Capsule { entry: Entry { name, pid, .. }, memory } = capsule;
    if hosts.is_empty() {
        return Err(Error::new(Kind::Usage, "no host was named where it could go").help("meio drain --to HOST"));
    }
    let fit = fittest(hosts, *memory);
    let full = hosts.iter().enumerate().filter(|(n, _)| !fit.contains(n)).map(|(_, host)| {
        let what = format!("{} has no room for it: it takes {}, and {} are left", host.name, mib(takes(*memory)), mib(host.room.memory));
        Error::other(what).help("name one more host: --to")
    });
    let mut whys: Vec<Error> = full.collect();
    for n in fit {
        match migrate::dry_run(&moving(options, *pid, name, &hosts[n].to), report) {
            Ok(outcome) => {
                let host = &mut hosts[n];
                host.room.memory -= takes(*memory);
                let migrates = Some((*pid, host.to.clone()));
                return Ok(Move { what: What::Capsule, name: name.clone(), host: host.name.clone(), warnings: outcome.warnings, migrates });
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
    let Some((pid, to)) = &one.migrates else { return switch(name, report) };
    report.note(&format!("{name} goes to {}", one.host));
    let outcome = migrate::run(&moving(options, *pid, name, to), report)?;
    let migrate::Outcome { host, downtime, warnings, .. } = outcome;
    Ok(Moved { what: *what, name: name.clone(), host, downtime, warnings })
}

fn switch(name: &str, report: &mut dyn Report) -> Result<Moved> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let asked = phase(report, &mut Vec::new(), "switch over", |_| {
        let mut stores = Store::visible().into_iter();
        stores.find_map(|store| control::ask(&store, name, Ask::Switchover, PATIENCE).transpose()).transpose()
    })?;
    let Some(mut answer) = asked else { return Err(Error::new(Kind::NotFound, format!("nobody watches {name} any more"))) };
    let switched: Switched = serde_json::from_value(answer["switched"].take()).map_err(|e| Error::other(e.to_string()))?;
    let downtime = Duration::from_secs_f64(switched.frozen_ms.max(0.0) / 1e3);
    Ok(Moved { what: What::Watch, name: name.to_owned(), host: switched.host, downtime, warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, mib: u64, load: f64) -> Host {
        let to = Destination { user: None, host: name.into(), port: None };
        let room = Room { memory: mib << 20, load, processors: 2 };
        Host { to, name: name.into(), asked: room, room }
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
