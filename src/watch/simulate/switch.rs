//! Worlds in which a user wants it to be taken over, and something goes wrong at any step of that.

use super::life::Life;
use super::world::{Fault, Flaw, World};
use super::{choices, worlds};

/// From when on all is protected, and how many steps later a switch-over is over that nothing stands in the way of.
const BEGINS: std::ops::Range<u64> = 500..900;
const LONG: u64 = 160;

/// What may befall it, in turn, at some steps of each; each is asked for at another moment.
fn each(mut live: impl FnMut(u64, u64, Fault, usize)) {
    let (begins, steps) = if worlds() > 100_000 { (7, 1) } else { (131, 5) };
    for (n, first) in BEGINS.step_by(begins).enumerate() {
        for fault in Fault::ALL {
            for then in (first + 1..first + LONG).step_by(steps) {
                live(first, then + n as u64 % steps as u64, fault, n);
            }
        }
    }
}

/// Nobody waits for silence, and nothing is lost: also with the slowest and the quickest links.
#[test]
fn what_is_wanted_happens() {
    for (seed, limits) in (0..40).flat_map(|seed| choices().map(move |limits| (seed, limits))) {
        let world = World::live(seed, None, Some(limits), &[(600 + seed, Fault::Yield)]);
        let told = world.told.join("\n");
        assert_eq!((world.wrong.as_deref(), world.end()), (None, "taken over"), "{told}\nworld {seed} {limits:?}");
        assert!(!world.is_left(), "it is where it was: {told}\nworld {seed} {limits:?}");
    }
}

/// One thing that lasts, at any step: somebody answers, although nothing is mended.
#[test]
fn with_one_fault_somebody_answers() {
    let mut ends = std::collections::BTreeMap::<&str, u64>::new();
    each(|first, then, fault, _| {
        for limits in choices() {
            let world = World::lasting(first, limits, &[(first, Fault::Yield), (then, fault)]);
            if let Some(wrong) = world.wrong {
                panic!("{}\n{fault:?} at {then} after {first}, {limits:?}: {wrong}", world.told.join("\n"));
            }
            *ends.entry(world.end()).or_default() += 1;
        }
    });
    println!("{ends:?}");
    assert!(["taken over", "stayed"].iter().all(|end| ends.contains_key(end)), "{ends:?}");
}

/// The same, and all is mended some time; and with another thing a while later.
#[test]
fn nothing_lost_and_never_two() {
    each(|first, then, fault, n| {
        let all: Vec<_> = choices().collect();
        let limits = all[(n + then as usize) % all.len()];
        let second = Fault::ALL[(then as usize * 7 + n) % Fault::ALL.len()];
        for timely in [&[(first, Fault::Yield), (then, fault)][..], &[(first, Fault::Yield), (then, fault), (then + 11, second)]] {
            let world = World::live(first, None, Some(limits), timely);
            if let Some(wrong) = world.wrong {
                panic!("{}\n{timely:?}, {limits:?}: {wrong}", world.told.join("\n"));
            }
        }
    });
}

/// What is broken on purpose is seen, with these faults at some step of a switch-over.
fn found(flaw: Flaw, witness: bool, faults: &[Fault]) {
    let limits: Vec<_> = choices().filter(|limits| limits.witness == witness).collect();
    let found = (BEGINS.start..BEGINS.end).any(|first| {
        let mut all = (first + 1..first + LONG).flat_map(|then| limits.iter().map(move |limits| (then, *limits)));
        all.any(|(then, limits)| {
            let timely: Vec<_> = std::iter::once((first, Fault::Yield)).chain(faults.iter().map(|fault| (then, *fault))).collect();
            World::live(first, Some(flaw), Some(limits), &timely).wrong.is_some()
        })
    });
    assert!(found, "{flaw:?} is not found");
}

#[test]
fn a_standby_that_does_not_wait() {
    found(Flaw::NeverWaits, false, &[Fault::KillStandby]);
}

#[test]
fn a_standby_that_does_not_look() {
    found(Flaw::NeverLooks, false, &[Fault::KillStandby]);
}

#[test]
fn a_standby_that_needs_no_witness() {
    found(Flaw::GoIsGrant, true, &[Fault::CutAll, Fault::CutWitnessThere]);
}

/// What becomes of it when the witness cannot be asked any more as soon as it is wanted.
#[test]
fn without_the_witness_it_goes_on_where_it_was() {
    for (seed, limits) in (0..10).flat_map(|seed| choices().filter(|limits| limits.witness).map(move |limits| (seed, limits))) {
        for fault in [Fault::KillWitness, Fault::CutWitnessThere, Fault::WitnessDisk] {
            let world = World::lasting(seed, limits, &[(600 + seed, Fault::Yield), (600 + seed, fault)]);
            let told = world.told.join("\n");
            // One way of the standby to it may have been left: to it, and then it knows who was let.
            let ends: &[&str] = if fault == Fault::CutWitnessThere { &["stayed", "taken over"] } else { &["stayed"] };
            assert!(
                world.wrong.is_none() && ends.contains(&world.end()) && world.serves(),
                "{:?}, {}: {told}\nworld {seed} {limits:?}",
                world.wrong,
                world.end()
            );
        }
    }
}
