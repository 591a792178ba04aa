//! Worlds in which everything goes wrong: both machines over links that lose, delay, repeat and reorder what is said and are
//! cut, with meios that are killed between any two steps, machines that are started anew, disks that fail. Each world comes
//! from a number and can be seen again by it: `WORLD=number`. `WORLDS=n` sets how many there are.

mod flaws;
mod world;

pub(crate) use flaws::flaws;
pub use world::Dice;
use world::{Fault, Flaw, World};

/// How many worlds; `make worlds` lives through more.
fn worlds() -> u64 {
    let asked = std::env::var("WORLDS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(100_000)
}

#[test]
fn never_two_never_none() {
    if let Some(seed) = std::env::var("WORLD").ok().and_then(|n| n.parse().ok()) {
        let world = World::live(seed, None);
        println!("{}", world.told.join("\n"));
        assert_eq!(world.wrong, None, "world {seed}");
        return;
    }
    let mut ends = std::collections::BTreeMap::<&str, u64>::new();
    for seed in 0..worlds() {
        let world = World::live(seed, None);
        if let Some(wrong) = world.wrong {
            panic!("{}\nworld {seed}: {wrong}", world.told.join("\n"));
        }
        *ends.entry(world.end()).or_default() += 1;
    }
    println!("{ends:?}");
    // A simulator in which one of these never happens proves nothing about it.
    for end in ["moved", "moved before its pages", "stayed", "forced", "forced after it was ended there", "lost with its machine"] {
        assert!(ends.get(end).is_some_and(|&n| n * 200 > worlds()), "too few worlds end so: {end}; {ends:?}");
    }
}

/// Without any fault it moves, in any order of what is slow and what is quick.
#[test]
fn peace_moves() {
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let world = World::calm(seed, &[]);
        assert!(world.wrong.is_none() && world.end().starts_with("moved"), "{}\nworld {seed}: {:?}", world.told.join("\n"), world.wrong);
        ends.insert(world.end());
    }
    assert_eq!(ends.len(), 2, "{ends:?}");
}

/// One thing, and then another one, at every step of a move that goes well otherwise.
#[test]
fn at_every_step() {
    let step = if worlds() > 100_000 { 1 } else { 7 };
    for end in ["moved", "moved before its pages"] {
        let seed = (0..100).find(|&seed| World::calm(seed, &[]).end() == end);
        step_by_step(seed.unwrap_or_else(|| panic!("no world ends so: {end}")), step);
    }
}

fn step_by_step(seed: u64, step: usize) {
    let last = World::calm(seed, &[]).steps;
    assert!(last > 40, "{last} steps");
    let live = |timely: &[(u64, Fault)]| {
        let world = World::calm(seed, timely);
        if let Some(wrong) = world.wrong {
            panic!("{}\n{timely:?}: {wrong}", world.told.join("\n"));
        }
    };
    for first in 0..=last {
        for fault in Fault::ALL {
            live(&[(first, fault)]);
            for second in (first..last + 40).step_by(step) {
                Fault::ALL.iter().for_each(|&then| live(&[(first, fault), (second, then)]));
            }
        }
    }
}

/// Every flaw is found.
fn found(flaw: Flaw) -> String {
    const ENOUGH: u64 = 100_000;
    let wrong = (0..ENOUGH).find_map(|seed| World::live(seed, Some(flaw)).wrong.map(|wrong| format!("world {seed}: {wrong}")));
    wrong.unwrap_or_else(|| panic!("{flaw:?} is not found"))
}
