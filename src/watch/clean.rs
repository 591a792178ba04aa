//! What a meio has left that was killed while it watched, or that ended since another host had taken over: seen, and taken away.

use super::control;
use super::record::{Record, Store};
use super::start::free;
use super::state::Activation;
use super::status::{Role, State, Status};
use crate::dump::{self, moving::Leftover};
use crate::error::{Error, Kind, Result};
use crate::migrate::address::Probe;
use crate::migrate::frozen::{self, announce, silence};
use crate::migrate::record::Member;
use crate::netlock::kept::{self, Owner};
use crate::progress::Report;
use crate::tracee::freeze::freeze;
use std::collections::BTreeSet;
use std::time::Duration;

/// How a tree goes on that nobody watches any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It runs here.
    Runs,
    /// It stands still here: another host answers.
    Stands,
    /// There is none here.
    Gone,
}

/// All watches of which something is on this host, and that one may see.
///
/// # Errors
/// When a record cannot be read, or one may not ask, and `only` names that watch.
pub fn all(only: Option<&str>) -> Result<Vec<Status>> {
    let mut found = Vec::new();
    let held = kept::list(None).unwrap_or_default().into_iter().filter_map(|lock| match lock.owner {
        Owner::Watch(name) => Some(name),
        _ => None,
    });
    let mut held: BTreeSet<String> = held.collect();
    for store in Store::visible() {
        let names = match store.names() {
            // Of others' watches nothing is to be seen, unless they are asked for.
            Err(e) if e.kind == Kind::Permission && only.is_none() => continue,
            names => names?,
        };
        for name in names.into_iter().filter(|name| only.is_none_or(|only| only == name)) {
            held.remove(&name);
            match one(&store, &name) {
                Err(e) if only.is_none() && e.kind == Kind::Permission => {}
                Err(e) if only.is_none() => found.push(silent(&name, &e)),
                status => found.extend(status?),
            }
        }
    }
    // Of one that was killed before there was a record.
    let held = held.into_iter().filter(|name| only.is_none_or(|only| only == name));
    found.extend(held.map(|name| Status { name, state: State::LeftBehind, ..Status::default() }.told()));
    Ok(found)
}

fn silent(name: &str, why: &Error) -> Status {
    let status = Status { name: name.to_owned(), state: State::Silent, ..Status::default() }.told();
    Status { loses: format!("{} ({})", status.loses, why.message), ..status }
}

/// How a watch stands, as who is at work says, or as is on record of it.
fn one(store: &Store, name: &str) -> Result<Option<Status>> {
    if let Some(status) = control::status(store, name)? {
        return Ok(Some(status));
    }
    let record = store.read(name)?;
    let claimed = store.is_claimed(name)?;
    let nothing = record.is_none();
    let left = record.map(|record| left_behind(&record)).unwrap_or_else(|| Status { name: name.to_owned(), ..Status::default() });
    Ok(match claimed {
        true => Some(Status { state: State::Silent, ..left }.told()),
        // Somebody has begun and ended there, and nothing else.
        false if nothing && !has_hold(name) => None,
        false => Some(Status { state: State::LeftBehind, ..left }.told()),
    })
}

fn has_hold(name: &str) -> bool {
    kept::is_kept(None, &Owner::Watch(name.to_owned())).unwrap_or(false)
}

fn left_behind(record: &Record) -> Status {
    let role = if record.about.standby { Role::Standby } else { Role::Primary };
    let about = &record.about;
    Status {
        name: record.name.clone(),
        role,
        pid: about.tree.filter(Member::lives).map(|tree| tree.pid),
        other: Some(about.other.clone()).filter(|other| !other.is_empty()),
        at: about.addresses.iter().map(ToString::to_string).collect(),
        generation: record.activation.map_or(0, |a| a.generation()),
        ..Status::default()
    }
}

/// Takes away what is left of a watch at which nobody is at work: rules, queue, records, images. Its address is as it was before
/// the watch, unless somebody else has it: then that one answers for the tree, and it stands still here. What is to be known is
/// added to `warnings`.
///
/// # Errors
/// [`Kind::NotFound`] when there is nothing of it; when somebody is at work on it; when something cannot be taken away.
pub fn clean(name: &str, warnings: &mut Vec<String>, report: &mut dyn Report) -> Result<Left> {
    let nothing = || Error::new(Kind::NotFound, format!("nothing is watched under the name {name}")).help("meio status shows what is");
    let owner = Owner::Watch(name.to_owned());
    let held = has_hold(name);
    let stores = Store::visible();
    let mut here = None;
    for store in &stores {
        if store.names()?.iter().any(|known| known == name) {
            here = Some(store);
            break;
        }
    }
    let Some(store) = here else {
        if !held {
            return Err(nothing());
        }
        kept::release(None, &owner)?;
        return Ok(Left::Gone);
    };
    let _claim = free(store, name)?;
    let Some(record) = store.read(name)? else {
        // Killed before anything was touched but the way out.
        if held {
            kept::release(None, &owner)?;
        }
        store.forget(name)?;
        return if held { Ok(Left::Gone) } else { Err(nothing()) };
    };
    let left = settle(&record, warnings, report)?;
    if held {
        kept::release(None, &owner)?;
    }
    record.about.tree.iter().for_each(|tree| store.forget_tree(tree.pid));
    store.forget(name)?;
    Ok(left)
}

/// The tree, and its address.
fn settle(record: &Record, warnings: &mut Vec<String>, report: &mut dyn Report) -> Result<Left> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let about = &record.about;
    let tree = about.tree.filter(Member::lives);
    let mut warn = |text: String| {
        report.warning(&text);
        warnings.push(text);
    };
    let primary = match record.activation {
        None => return Ok(Left::Gone),
        // It was taken over and is here: its address goes when it does.
        Some(Activation::Taken(_) | Activation::Taking(_)) => {
            if tree.is_none() {
                about.addresses.iter().filter(|address| address.is_up().unwrap_or(false)).for_each(|address| drop(address.take()));
            }
            return Ok(if tree.is_some() { Left::Runs } else { Left::Gone });
        }
        Some(Activation::Primary { .. }) => true,
        Some(Activation::Demoted(_)) => false,
    };
    let mut elsewhere = !primary;
    for address in about.addresses.iter().filter(|_| primary) {
        let others = address.probe(Probe { times: 2, ..Probe::QUICK }, &[])?;
        if !others.is_empty() {
            elsewhere = true;
            warn(format!("somebody else on the network has {}: it is left there", address.ip));
        }
    }
    if elsewhere {
        let Some(tree) = tree else { return Ok(Left::Gone) };
        if primary {
            stop(tree.pid, PATIENCE, about.holds)?;
        }
        return Ok(Left::Stands);
    }
    for address in &about.addresses {
        if !address.is_up()? {
            address.bring_up()?;
            announce(address);
        }
    }
    warn(format!("{} could not be asked whether it has taken over; clean up there, too: meio unwatch {}", about.other, record.name));
    Ok(if tree.is_some() { Left::Runs } else { Left::Gone })
}

/// Has a tree stand still without meio. `holds`: its connections live elsewhere, which whoever ends it here is not to disturb.
pub fn stop(pid: i32, patience: Duration, holds: bool) -> Result<()> {
    let mut frozen = freeze(pid, patience)?;
    let mut stopped = frozen.stop();
    if holds {
        stopped = stopped.and(frozen.processes.iter().try_for_each(|process| silence(process.pid)));
    }
    frozen.release();
    stopped
}

/// Ends a tree here that stands still, and runs elsewhere. `holds`: its connections live there, and nobody hears of the end here.
///
/// # Errors
/// When a process cannot be held; then nothing was ended.
pub fn end(options: &dump::Options, holds: bool) -> Result<()> {
    // What cannot be looked at any more leaves nothing that is known.
    let leftover = dump::preflight(options.pid, &options.decisions).map(|look| Leftover::of(&look.tree));
    frozen::end(freeze(options.pid, options.freeze_timeout)?, holds)?;
    leftover.unwrap_or_default().remove();
    Ok(())
}
