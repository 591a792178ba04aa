//! Worlds in which everything goes wrong: a primary and a standby over paths that lose, delay, repeat and reorder what is said
//! and are cut, one way or both, with meios that are killed or stopped between any two steps, hosts that are lost, disks that
//! fail, captures that hang. Each world comes from a number and can be seen again by it: `WORLD=number`. `WORLDS=n` sets how many
//! there are.

mod court;
mod effects;
mod faults;
mod flaws;
mod life;
mod many;
mod parts;
mod properties;
mod switch;
mod world;

use super::state::{Guarantee, Limits, OnLoss};
use life::Life;
use world::{Fault, Flaw, World};

/// How many worlds; `make simulate` lives through more.
fn worlds() -> u64 {
    let asked = std::env::var("WORLDS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(2_000)
}

#[test]
fn nothing_lost_and_never_two() {
    life::nothing_lost_and_never_two::<World>(&["taken over", "stayed", "unwatched", "at risk", "lost"]);
}

/// All that a user may choose.
fn choices() -> impl Iterator<Item = Limits> {
    let all = [Guarantee::Hold, Guarantee::Hot].into_iter().flat_map(|guarantee| {
        [OnLoss::Hold, OnLoss::Continue]
            .into_iter()
            .flat_map(move |on_loss| [false, true].map(|fence| Limits { guarantee, on_loss, fence, ..Limits::default() }))
            .flat_map(|limits| [false, true].map(|witness| Limits { witness, ..limits }))
    });
    all.collect::<Vec<_>>().into_iter()
}

/// Without any fault nobody takes over, and all is protected, however slow or quick things are.
#[test]
fn peace_stays() {
    for (seed, limits) in (0..40).flat_map(|seed| choices().map(move |limits| (seed, limits))) {
        let world = World::live(seed, None, Some(limits), &[]);
        let told = world.told.join("\n");
        assert_eq!((world.wrong.as_deref(), world.end(), world.ready), (None, "stayed", true), "{told}\nworld {seed}");
    }
}

/// One thing that lasts, when all is protected: somebody answers, although nothing is mended.
#[test]
fn with_one_fault_somebody_answers() {
    let mut ends = std::collections::BTreeSet::new();
    for limits in choices() {
        for first in (500..900).step_by(if worlds() > 100_000 { 1 } else { 97 }) {
            for fault in Fault::ALL {
                let world = World::lasting(first, limits, &[(first, fault)]);
                if let Some(wrong) = world.wrong {
                    panic!("{}\n{fault:?}, {limits:?}: {wrong}", world.told.join("\n"));
                }
                ends.insert((format!("{fault:?}"), world.end()));
            }
        }
    }
    let ended = |fault: Fault, end| assert!(ends.contains(&(format!("{fault:?}"), end)), "{fault:?} never ends so: {end}; {ends:?}");
    use Fault::*;
    let moving = [KillPrimary, KillPrimaryHost, StopPrimary, CutAll, CutToStandby, CutToPrimary, Wedge, Yield];
    moving.into_iter().for_each(|fault| ended(fault, "taken over"));
    let staying = [KillStandby, StopStandby, CutLink, CutBeats, BreakLink, SlowStandby, DiskFails, Pause];
    staying.into_iter().chain(Fault::WITNESS).for_each(|fault| ended(fault, "stayed"));
    ended(Over, "unwatched");
}

/// One thing at every step of a peaceful life, and then another one a while later.
#[test]
fn at_every_step() {
    let thorough = worlds() > 100_000;
    let (step, again) = if thorough { (3, 61) } else { (97, 397) };
    let choices: Vec<Limits> = choices().collect();
    for first in (1..900).step_by(step) {
        for (n, fault) in Fault::ALL.into_iter().enumerate() {
            // In turn, so that a slice has all of them.
            let limits = choices[(first / step + n) % choices.len()];
            let live = |timely: &[(u64, Fault)]| {
                let world = World::live(first as u64, None, Some(limits), timely);
                if let Some(wrong) = world.wrong {
                    panic!("{}\n{timely:?}, {limits:?}: {wrong}", world.told.join("\n"));
                }
            };
            let first = first as u64;
            live(&[(first, fault)]);
            for second in (first + 1..first + 400).step_by(again) {
                Fault::ALL.iter().for_each(|&then| live(&[(first, fault), (second, then)]));
            }
        }
    }
}

/// Every flaw is found.
fn found(flaw: Flaw) -> String {
    life::found::<World>(flaw, 100_000)
}
