//! What worlds of all kinds have in common: how one is lived through, and seen again when something was wrong in it.

use super::super::state::{Guarantee, Limits};
use super::worlds;
use crate::migrate::simulate::Dice;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

/// A world, which comes from a number.
pub trait Life: Sized {
    /// The variable of the environment that says which one is to be seen again.
    const SEEN: &'static str;
    /// What may be wrong with the machines.
    type Flaw: Copy + Debug;
    /// What may befall it.
    type Fault: Copy;

    /// Before anything has happened. `timely`: what befalls it at which step; whether it tells of itself, and whether
    /// nothing is mended.
    fn new(
        seed: u64,
        flaw: Option<Self::Flaw>,
        limits: Option<Limits>,
        timely: &[(u64, Self::Fault)],
        tells_and_lasts: (bool, bool),
    ) -> Self;

    /// Lives through it.
    fn run(&mut self);

    /// What has come of it.
    fn ended(&self) -> Ended<'_>;

    fn live(seed: u64, flaw: Option<Self::Flaw>, limits: Option<Limits>, timely: &[(u64, Self::Fault)]) -> Self {
        Self::lived(seed, flaw, limits, timely, false)
    }

    /// One in which nothing is mended.
    fn lasting(seed: u64, limits: Limits, timely: &[(u64, Self::Fault)]) -> Self {
        Self::lived(seed, None, Some(limits), timely, true)
    }

    /// It tells of itself when it is asked to, or when something was wrong.
    fn lived(seed: u64, flaw: Option<Self::Flaw>, limits: Option<Limits>, timely: &[(u64, Self::Fault)], lasting: bool) -> Self {
        let lived = |tells| {
            let mut world = Self::new(seed, flaw, limits, timely, (tells, lasting));
            world.run();
            world
        };
        let tells = seen::<Self>().is_some();
        let world = lived(tells);
        if world.ended().wrong.is_some() && !tells && flaw.is_none() { lived(true) } else { world }
    }
}

/// What has come of a world.
pub struct Ended<'w> {
    pub wrong: Option<&'w str>,
    pub told: &'w [String],
    /// How it ended, in words.
    pub end: &'static str,
    /// What befell it, and what the user had chosen.
    pub of: String,
}

fn seen<W: Life>() -> Option<u64> {
    std::env::var(W::SEEN).ok().and_then(|seed| seed.parse().ok())
}

/// Many worlds, or the one that is to be seen again. A simulator in which one of `ends` never comes about proves nothing about it.
pub fn nothing_lost_and_never_two<W: Life>(ends: &[&str]) {
    let live = |seed| {
        let world = W::live(seed, None, None, &[]);
        let Ended { wrong, told, end, of } = world.ended();
        assert_eq!(wrong, None, "{}\nworld {seed}: {of}", told.join("\n"));
        (told.join("\n"), end, of)
    };
    if let Some(seed) = seen::<W>() {
        let (told, _, of) = live(seed);
        return println!("{told}\n{of}");
    }
    let mut count = BTreeMap::<&str, u64>::new();
    (0..worlds()).for_each(|seed| *count.entry(live(seed).1).or_default() += 1);
    println!("{count:?}");
    for end in ends {
        assert!(count.get(end).is_some_and(|&n| n * 200 > worlds()), "too few worlds end so: {end}; {count:?}");
    }
}

/// The first world in which a flaw shows.
pub fn found<W: Life>(flaw: W::Flaw, enough: u64) -> String {
    let wrong = |seed| W::live(seed, Some(flaw), None, &[]).ended().wrong.map(|wrong| format!("world {seed}: {wrong}"));
    (0..enough).find_map(wrong).unwrap_or_else(|| panic!("{flaw:?} is not found"))
}

/// How long something lasts that befalls a world.
pub fn while_it_lasts(dice: &mut Dice) -> Duration {
    let most = if dice.chance(500) { 900 } else { 6000 };
    Duration::from_millis(dice.below(most))
}

/// What is wrong where a standby runs that went on from `base`, and the primary has let out `released`, or `answers`.
pub fn contradicted(limits: &Limits, base: u64, released: u64, answers: bool) -> Option<&'static str> {
    match limits.guarantee {
        Guarantee::Hold => (released > base).then_some("a client was told what nobody knows any more, or two answer"),
        Guarantee::Hot => answers.then_some("two answer"),
    }
}
