//! Worlds with several standbys, which say to each other which of them takes over: they may lose the primary, each other, or only one
//! way of that; be killed, stopped, lost with their hosts, and begun again with what is on their disks; have a witness and lose it, or
//! the way to it, and a command that ends the primary's host, or fails; and have clocks that jump. Each comes from a number and
//! can be seen again by it: `MANY=number`.

mod court;
mod effects;
mod faults;
mod fills;
mod properties;
mod world;

use super::super::state::{Acks, Guarantee, Limits, OnLoss};
use super::life::{self, Life};
use super::worlds;
use world::{Fault, Flaw, World};

#[test]
fn nothing_lost_and_never_two() {
    life::nothing_lost_and_never_two::<World>(&["taken over", "stayed", "unwatched", "at risk", "lost"]);
}

/// What lets something out and what votes have a standby in common, and no two have votes enough.
#[test]
fn whoever_is_asked_knows() {
    for (standbys, acks) in (1..8).flat_map(|n| [Acks::One, Acks::Majority, Acks::All].map(|acks| (n, acks))) {
        let limits = Limits { standbys, acks, ..Limits::default() };
        let (quorum, votes) = (limits.quorum(), limits.votes());
        assert!(quorum >= 1 && votes <= standbys && quorum + votes > standbys && 2 * votes > standbys, "{limits:?}");
        // Most of the hosts together with the primary.
        assert!(acks == Acks::One || standbys == 1 || 2 * (quorum + 1) > standbys + 1, "{limits:?}");
        assert!(acks != Acks::One || quorum == 1);
    }
}

/// All that a user may choose.
fn choices() -> Vec<Limits> {
    let mut all = Vec::new();
    for guarantee in [Guarantee::Hold, Guarantee::Hot] {
        for (standbys, acks) in [2, 3].into_iter().flat_map(|n| [Acks::One, Acks::Majority, Acks::All].map(|acks| (n, acks))) {
            let limits = Limits { guarantee, standbys, acks, ..Limits::default() };
            all.extend([OnLoss::Hold, OnLoss::Continue].map(|on_loss| Limits { on_loss, ..limits }));
            all.extend([(true, false), (false, true), (true, true)].map(|(witness, fence)| Limits { witness, fence, ..limits }));
        }
    }
    all
}

/// Without any fault nobody takes over, and all is protected, however slow or quick things are.
#[test]
fn peace_stays() {
    for (seed, limits) in (0..40).flat_map(|seed| choices().into_iter().map(move |limits| (seed, limits))) {
        let world = World::live(seed, None, Some(limits), &[]);
        let told = world.told.join("\n");
        assert_eq!((world.wrong.as_deref(), world.end(), world.is_ready()), (None, "stayed", true), "{told}\nworld {seed}");
    }
}

/// Who comes back with nothing, or has fallen behind, gets everything while the others go on.
#[test]
fn all_are_ready_again() {
    let mut copied = 0;
    for limits in choices() {
        for first in (600..1100).step_by(if worlds() > 100_000 { 1 } else { 37 }) {
            for fault in [Fault::Anew(1), Fault::Kill(2), Fault::BreakLink(1), Fault::Stop(2), Fault::CutHost(1)] {
                let world = World::live(first, None, Some(limits), &[(first, fault)]);
                let told = || format!("{}\n{fault:?} at {first}, {limits:?}", world.told.join("\n"));
                assert!(world.wrong.is_none() && (world.end() != "stayed" || world.are_ready()), "{:?} {}", world.wrong, told());
                copied += world.copies();
            }
        }
    }
    assert!(copied > 100, "{copied} copies were made");
}

/// One thing that lasts, when all is protected: somebody answers, although nothing is mended.
#[test]
fn with_one_fault_somebody_answers() {
    let (mut ends, mut begins) = (std::collections::BTreeSet::new(), 0);
    for limits in choices() {
        // Each at other moments.
        begins = (begins + 37) % 199;
        for first in (600 + begins..1100).step_by(if worlds() > 100_000 { 1 } else { 199 }) {
            for fault in Fault::all(&limits) {
                let world = World::lasting(first, limits, &[(first, fault)]);
                if let Some(wrong) = world.wrong {
                    panic!("{}\n{fault:?} at {first}, {limits:?}: {wrong}", world.told.join("\n"));
                }
                ends.insert((format!("{fault:?}"), world.end()));
            }
        }
    }
    let ended = |fault: Fault, end| assert!(ends.contains(&(format!("{fault:?}"), end)), "{fault:?} never ends so: {end}; {ends:?}");
    use Fault::*;
    [KillPrimary, RestartPrimary, KillPrimaryHost, StopPrimary, CutHost(0), Wedge].into_iter().for_each(|fault| ended(fault, "taken over"));
    ended(RestartPrimary, "stayed");
    let staying = [Kill(1), KillHost(2), Stop(1), Cut(1, 2), Cut(2, 1), CutHost(1), BreakLink(2), Slow(1), Full(2), DiskFails(1), Pause];
    let apart = [KillWitness, AnewWitness, WitnessDisk, JumpWitness, CutWitness(0), CutWitness(1), Jump(0), Jump(1)];
    staying.into_iter().chain(apart).for_each(|fault| ended(fault, "stayed"));
    ended(Over, "unwatched");
}

/// One thing at a step of a peaceful life, and then another one a while later.
#[test]
fn at_every_step() {
    let choices = choices();
    // In turn, so that a slice has all of them.
    let (step, again, each) = if worlds() > 100_000 { (3, 61, 1) } else { (197, 397, 7) };
    for first in (1..1100).step_by(step) {
        for n in 0..Fault::all(&Limits { standbys: 3, witness: true, ..Limits::default() }).len() {
            let limits = choices[(first / step + n) % choices.len()];
            let all = Fault::all(&limits);
            let fault = all[n % all.len()];
            let live = |timely: &[(u64, Fault)]| {
                let world = World::live(first as u64, None, Some(limits), timely);
                if let Some(wrong) = world.wrong {
                    panic!("{}\n{timely:?}, {limits:?}: {wrong}", world.told.join("\n"));
                }
            };
            let first = first as u64;
            live(&[(first, fault)]);
            for second in (first + 1..first + 400).step_by(again) {
                all.iter().skip(n % each).step_by(each).for_each(|&then| live(&[(first, fault), (second, then)]));
            }
        }
    }
}

/// The witness alone, and then the primary, too: nobody takes over, until it is back.
#[test]
fn without_the_witness_nobody_begins() {
    for limits in choices().into_iter().filter(|limits| limits.witness) {
        for lost in [Fault::KillWitness, Fault::WitnessDisk] {
            let timely = [(700, lost), (760, Fault::KillPrimaryHost)];
            let (world, mended) = (World::lasting(700, limits, &timely), World::live(700, None, Some(limits), &timely));
            assert_eq!((world.wrong.as_deref(), world.end()), (None, "lost"), "{}\n{limits:?}", world.told.join("\n"));
            assert_eq!((mended.wrong.as_deref(), mended.end()), (None, "taken over"), "{}\n{limits:?}", mended.told.join("\n"));
        }
    }
}

/// All standbys are lost to the primary, one after the other: by leave of the witness it goes on alone.
#[test]
fn with_the_witness_the_primary_goes_on_alone() {
    for limits in choices().into_iter().filter(|limits| limits.witness && limits.on_loss == OnLoss::Hold) {
        let timely: Vec<_> = (1..=limits.standbys).map(|of| (700 + of as u64, Fault::KillHost(of))).collect();
        let world = World::lasting(700, limits, &timely);
        let told = || format!("{}\n{limits:?}", world.told.join("\n"));
        assert!(world.wrong.is_none() && world.end() == "stayed" && world.is_free(), "{:?} {}: {}", world.wrong, world.end(), told());
        let alone = World::lasting(700, Limits { witness: false, ..limits }, &timely);
        assert!(!alone.is_free(), "{limits:?}");
    }
}

/// Every flaw is found.
fn found(flaw: Flaw) -> String {
    life::found::<World>(flaw, 200_000)
}

crate::migrate::simulate::flaws! {
    a_vote_for_who_has_less: AnyMark,
    votes_that_are_too_few: FewVotes,
    acknowledgements_that_are_too_few: FewAcks,
    a_vote_that_is_forgotten: VoteForgotten,
    a_vote_whose_giver_goes_on: NotDeaf,
    a_voter_that_does_not_know_what_was_said: Blank,
    a_vote_of_who_hears_the_primary: VotesAnyway,
    a_copy_in_part: HalfCopy,
    a_candidate_that_takes_a_silent_witness_for_a_grant: SilenceIsGrant,
    a_candidate_that_nobody_has_voted_for: NoVotes,
    a_fence_that_need_not_work: FenceNeedNotWork,
}
