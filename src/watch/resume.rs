//! A watch whose meio was killed: another one finds the tree, which goes on, and what was left between it and its network.

use super::protect::Options;
use super::record::{Back, Each, Record};
use super::state::{Activation, Guarantee};
use crate::error::{Error, Kind, Result};
use crate::migrate::record::Member;
use crate::netlock::kept::{self, Owner};
use std::time::{Duration, Instant};

/// What goes on.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// Which watch.
    pub watch: u128,
    /// Of the primary; where it was demoted, of who has taken over.
    pub generation: u64,
    /// Of this process.
    pub instance: u64,
    /// What leads to the standby.
    pub back: Back,
    /// That has taken over, and the tree stands still here.
    pub demoted: bool,
}

/// Whether there is something to go on with: a record of this very tree, whose output is held. `None`: it begins anew.
///
/// # Errors
/// When somebody else answers for it and nothing of it is to be ended here, or it is to go on with other limits than those that the standby was told.
pub fn find(options: &Options, there: Option<&Record>) -> Result<Option<Resumed>> {
    let Some(record) = there else { return Ok(None) };
    let Some(back) = &record.back else { return Ok(None) };
    // What was demoted and has ended runs elsewhere.
    let ended = matches!(record.activation, Some(Activation::Demoted(_))) && !back.tree.lives();
    if !ended && Member::of(options.dump.pid).map_or(true, |tree| tree != back.tree) {
        return Ok(None);
    }
    let (generation, instance) = match record.activation {
        Some(Activation::Demoted(generation)) if !ended && !options.limits.keep_demoted => {
            let (watch, instance, back) = (record.watch, record.instance + 1, back.clone());
            return Ok(Some(Resumed { watch, generation, instance, back, demoted: true }));
        }
        Some(Activation::Primary { generation, instance }) => (generation, instance),
        Some(Activation::Demoted(generation) | Activation::Taken(generation) | Activation::Taking(generation)) => {
            let what = format!("{} has taken over the watch {}, with generation {generation}", back.host, record.name);
            let help = match ended {
                true => format!("nothing of it is left here; meio unwatch {} forgets that", record.name),
                false => format!("what stands still here may be ended; meio check --unlock {} has it heard again", record.name),
            };
            return Err(Error::other(what).help(help));
        }
        None => return Ok(None),
    };
    if !is_held(options)? {
        return Ok(None);
    }
    let hosts = || std::iter::once(&options.standby).chain(&options.others).map(ToString::to_string);
    let others = |each: &Each| each.seat.as_ref().is_some_and(|seat| !seat.hosts.iter().cloned().eq(hosts()));
    let several = options.limits.standbys > 1 && back.each.len() != options.limits.standbys;
    if back.limits != options.limits || several || back.each.iter().any(others) {
        let what = format!("the meio of the watch {} was killed, and its standby was told something else than is wanted now", record.name);
        return Err(Error::new(Kind::Usage, what).help("give it the options that it had"));
    }
    Ok(Some(Resumed { watch: record.watch, generation, instance: instance + 1, back: back.clone(), demoted: false }))
}

/// What was killed leaves a child for a moment, which lets everything out or nothing.
fn is_held(options: &Options) -> Result<bool> {
    const LOOK: Duration = Duration::from_millis(20);
    const MORE: Duration = Duration::from_secs(3);
    let owner = Owner::Watch(options.name.clone());
    let holds = options.limits.guarantee == Guarantee::Hold;
    let until = Instant::now() + options.limits.timeout + if holds { MORE } else { Duration::ZERO };
    loop {
        let kept = holds && kept::is_kept(None, &owner)?;
        if holds && !kept {
            return Ok(false);
        }
        let mut up = options.addresses.iter().map(|address| address.is_up().unwrap_or(false));
        if !options.addresses.is_empty() && !up.any(|up| up) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(kept);
        }
        std::thread::sleep(LOOK);
    }
}
