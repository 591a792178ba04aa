//! Faults where three hosts have a part in it: two that stand by, or one and a witness.

use super::{Came, Dice, Fault, World, came};
use crate::lab::hosts::{Host, Hosts};
use crate::lab::{Lab, SOON, until};
use crate::watch::control::meio;
use crate::watch::links::{cut_all, heal};
use crate::watch::witness::{THIRD, witness};
use crate::watch::{Counter, Watched, has_address, noted};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

/// What is said to `meio watch` beside what a pair needs; a witness is there then.
pub fn options(world: World, lab: &Lab, hosts: &Hosts) -> Vec<&'static str> {
    match world {
        World::Pair => Vec::new(),
        World::Several => vec!["--standby", "10.99.0.3"],
        World::Witness => {
            // It ends with its host.
            drop(witness(lab, hosts));
            vec!["--witness", THIRD]
        }
    }
}

/// Nothing gets from one of them to these, or back, for a while.
fn part(hosts: &Hosts, one: usize, from: &[usize], dice: &mut Dice) {
    for other in from {
        cut_all(hosts, one, *other);
        cut_all(hosts, *other, one);
    }
    std::thread::sleep(dice.ms(200, 6000));
    for other in from {
        heal(hosts, one);
        heal(hosts, *other);
    }
}

/// It happens, and is over where it can be.
pub fn befall(fault: Fault, hosts: &mut Hosts, dice: &mut Dice) {
    match fault {
        Fault::LosePrimary | Fault::LoseOne => {
            let host = if fault == Fault::LosePrimary { 0 } else { 1 + dice.below(2) as usize };
            hosts.wire(host, false);
            hosts.hosts[host].fail();
        }
        Fault::PartStandbys => part(hosts, 1, &[2], dice),
        Fault::CutFromOne => part(hosts, 0, &[1 + dice.below(2) as usize], dice),
        Fault::CutFromAll | Fault::PartFromBoth => part(hosts, 0, &[1, 2], dice),
        Fault::PartFromWitness => part(hosts, 0, &[2], dice),
        Fault::PartFromStandby => part(hosts, 0, &[1], dice),
        Fault::KillWitness => {
            hosts.hosts[2].plain("pkill", &["-KILL", "-x", "meio"]);
            std::thread::sleep(dice.ms(200, 4000));
            let mut again = hosts.hosts[2].command(Path::new(crate::MEIO));
            drop(again.arg("witness").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meio starts"));
        }
        other => unreachable!("{other:?} is a fault of a pair"),
    }
}

/// A round where two stand by.
pub fn several(fault: Fault, (mut hosts, pid): (Hosts, i32), mut watched: Watched, counter: Counter, dice: &mut Dice) -> Came {
    let all = |watched: &Watched, hosts: &Hosts| {
        let third = hosts.hosts[2].command(Path::new("bash")).args(["-c", "cat /var/lib/meio/watch/*.log; ip -o -4 address"]).output();
        let third = third.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
        format!("{fault:?}:\n{}\n{}\n---- third\n{third}", watched.said(), noted(hosts))
    };
    let states = |hosts: &Hosts| {
        let states = seen(&hosts.hosts[0])["standbys"].as_array().cloned().unwrap_or_default();
        states.iter().filter_map(|one| one["state"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert!(until(SOON, || states(&hosts) == ["ready", "ready"]), "{:?} {}", states(&hosts), all(&watched, &hosts));
    befall(fault, &mut hosts, dice);
    assert!(counter.go_on(30), "nobody answers: {}", all(&watched, &hosts));
    let lost = fault == Fault::LosePrimary;
    let with = |hosts: &Hosts| {
        let there = (0..3).filter(|n| !(lost && *n == 0)).filter(|n| fault != Fault::LoseOne || *n == 0);
        there.filter(|n| has_address(&hosts.hosts[*n])).collect::<Vec<_>>()
    };
    let one = || matches!(with(&hosts)[..], [here] if hosts.hosts[here].runs(pid));
    assert!(until(SOON, one), "{:?}: {}", with(&hosts), all(&watched, &hosts));
    let here = with(&hosts)[0];
    assert!(here == 0 || matches!(fault, Fault::LosePrimary | Fault::CutFromAll), "host {here} has it: {}", all(&watched, &hosts));
    if here == 0 {
        // Enough of them are there, or are again.
        let name = seen(&hosts.hosts[0])["name"].as_str().expect("a name").to_owned();
        let among = |state: &str| states(&hosts).iter().any(|one| one == state);
        // The end of a watch waits for who is not known to be lost.
        let known = || fault != Fault::LoseOne || among("lost");
        let enough = || known() && among("ready") && seen(&hosts.hosts[0])["state"] == "protected";
        assert!(until(SOON, enough), "{:?} {}", states(&hosts), all(&watched, &hosts));
        assert!(counter.go_on(20), "it does not go on: {}", all(&watched, &hosts));
        let done = hosts.hosts[0].command(Path::new(crate::MEIO)).args(["unwatch", &name]).status().expect("it starts");
        assert!(done.success(), "{}", all(&watched, &hosts));
        let left = hosts.hosts[0].command(Path::new(crate::MEIO)).args(["check", "--unlock", &name]).status().expect("it starts");
        assert!(!left.success(), "a lock was left");
    } else {
        // The other one stands by for it, and a primary that has come back has ended what it had.
        let name = |n: usize| seen(&hosts.hosts[n])["name"].as_str().unwrap_or_default().to_owned();
        let other = 3 - here;
        let both = || name(here) == name(other) && serves(&hosts, here, "primary") && serves(&hosts, other, "standby");
        assert!(until(SOON, both), "nobody stands by: {}", all(&watched, &hosts));
        if !lost {
            assert!(until(SOON, || !hosts.hosts[0].lives(pid) && !has_address(&hosts.hosts[0])), "{}", all(&watched, &hosts));
        }
    }
    if lost {
        let _ = watched.meio.wait();
    }
    assert!(counter.go_on(20), "it does not go on: {}", all(&watched, &hosts));
    came(if here == 0 { "stayed" } else { "taken over" }, counter, || all(&watched, &hosts))
}

/// The watch of which a host knows, where it knows of one.
fn seen(host: &Host) -> Value {
    let (_, said) = meio(host, &["status", "--json"]);
    serde_json::from_str::<Value>(&said).unwrap_or_default()["watches"][0].take()
}

/// It is this for the watch, and all is well with it.
pub fn serves(hosts: &Hosts, host: usize, role: &str) -> bool {
    let one = seen(&hosts.hosts[host]);
    one["role"] == role && one["state"] == if role == "primary" { "protected" } else { "ready" }
}
