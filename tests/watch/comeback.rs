//! A primary that was cut off, and comes back after another host has taken over.

use super::control::meio;
use super::links::{cut_all, heal};
use super::{Counter, SLOW, Watched, has_address, noted, oldest, redis};
use crate::lab::hosts::{Host, Hosts, SERVICE};
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::path::Path;

/// Watched, with a client that counts, and all is protected.
fn guarded(lab: &Lab, more: &[&str]) -> (Hosts, i32, Watched, Counter) {
    let (hosts, pid) = redis(lab);
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web"], more].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
    (hosts, pid, watched, counter)
}

/// What has happened on a host, in words.
fn events(host: &Host) -> Vec<String> {
    let (code, said) = meio(host, &["history", "web", "--json"]);
    assert_eq!(code, 0, "{said}");
    let all = serde_json::from_str::<Value>(&said).expect("JSON");
    all["events"].as_array().expect("events").iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect()
}

fn ends(watched: &mut Watched) -> i32 {
    assert!(until(SOON, || watched.meio.try_wait().is_ok_and(|done| done.is_some())), "it does not end: {}", watched.said());
    watched.meio.wait().expect("it has ended").code().expect("an exit code")
}

/// Whether nothing that a watch makes is left in the way of packets.
fn is_open(host: &Host) -> bool {
    !host.command(Path::new(crate::MEIO)).args(["check", "--unlock", "web"]).output().expect("it starts").status.success()
}

/// What a host is for the watch, and how that stands there.
pub fn stands(host: &Host, role: &str, state: &str) -> bool {
    let (_, said) = meio(host, &["status", "web", "--json"]);
    let all: Value = serde_json::from_str(&said).unwrap_or_default();
    all["watches"][0]["role"] == role && all["watches"][0]["state"] == state
}

/// Whether all of these have happened, in their order.
fn in_order(told: &[String], wanted: &[&str]) -> bool {
    let mut rest = told.iter();
    wanted.iter().all(|one| rest.any(|event| event == one))
}

/// All is protected again, the other way round: the first host stands by for the second one, and nothing of the tree is left there.
fn turned(hosts: &Hosts, watched: &Watched, pid: i32) {
    protected_on(1, hosts, watched, pid);
}

/// This host runs it, and the other one stands by.
fn protected_on(here: usize, hosts: &Hosts, watched: &Watched, pid: i32) {
    let [one, other] = [&hosts.hosts[here], &hosts.hosts[1 - here]];
    let both = || stands(one, "primary", "protected") && stands(other, "standby", "ready");
    assert!(until(SOON, both), "{}\n{}", watched.said(), noted(hosts));
    assert!(!other.lives(pid), "{}\n{}", watched.said(), noted(hosts));
    assert!(!has_address(other), "{}\n{}", watched.said(), noted(hosts));
    assert!(is_open(other), "{}\n{}", watched.said(), noted(hosts));
    // Now and then it is looked at.
    assert!(until(SOON, || one.runs(pid)) && has_address(one), "{}\n{}", watched.said(), noted(hosts));
}

/// The second host is lost, too: the first one goes on, and every answer holds that was given by either.
fn lose_the_second(hosts: &mut Hosts, watched: &Watched, counter: Counter, pid: i32) {
    assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    assert!(until(SOON, || stands(&hosts.hosts[1], "primary", "protected")), "{}\n{}", watched.said(), noted(hosts));
    hosts.wire(1, false);
    hosts.hosts[1].fail();
    assert!(counter.go_on(50), "it does not go on: {}", watched.said());
    counter.end();
    assert!(hosts.hosts[0].runs(pid) && has_address(&hosts.hosts[0]), "{}", watched.said());
    let told = events(&hosts.hosts[0]);
    assert!(in_order(&told, &["standing-by", "ready", "taking-over", "taken-over"]), "{told:?}");
}

/// Nothing but its disk outlives the loss of its power.
pub fn lose_power(host: &Host) {
    let all = format!("kill -KILL -1; ip address del {SERVICE}/24 dev eth0; nft flush ruleset; true");
    host.plain("bash", &["-c", &all]);
}

crate::alone! {
    /// The cable of the primary's host is pulled, and put back in when the other one has taken over: what stood still there is ended
    /// without a word to the client, whose connection goes on, and all is protected again without a hand. Then the other one is lost.
    fn a_cable_that_is_put_back_in() {
        let lab = Lab::new("comeback-cable");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        // Nobody has told it anything yet: it waits, and its tree is there.
        assert!(hosts.hosts[0].lives(pid) && !has_address(&hosts.hosts[0]), "{}", watched.said());
        hosts.wire(0, true);
        turned(&hosts, &watched, pid);
        let told = events(&hosts.hosts[0]);
        let expected = ["cut", "demoted", "replaced", "standing-by", "ready"];
        assert!(in_order(&told, &expected), "{told:?}");
        let told = events(&hosts.hosts[1]);
        assert!(in_order(&told, &["taken-over", "begun", "protected"]), "{told:?}");
        lose_the_second(&mut hosts, &watched, counter, pid);
        assert_eq!(meio(&hosts.hosts[0], &["unwatch", "web"]).0, 0);
        assert_eq!(ends(&mut watched), 3, "{}", watched.said());
        assert!(hosts.hosts[0].runs(pid) && has_address(&hosts.hosts[0]));
    }

    /// As it was asked to it leaves the tree where it is.
    fn a_tree_that_is_to_be_looked_at() {
        let lab = Lab::new("comeback-keep");
        let (hosts, pid, mut watched, counter) = guarded(&lab, &["--keep-demoted"]);
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        hosts.wire(0, true);
        assert_eq!(ends(&mut watched), 3, "{}", watched.said());
        assert!(hosts.hosts[0].lives(pid) && !hosts.hosts[0].runs(pid) && !has_address(&hosts.hosts[0]), "{}", watched.said());
        assert!(counter.go_on(50), "it does not go on: {}", noted(&hosts));
        counter.end();
    }

    /// A meio that was killed while its tree stood still for the other host ends it when it is started again, and not before it has
    /// heard that it runs there.
    fn a_meio_that_is_killed_before_it_knows() {
        let lab = Lab::new("comeback-killed");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        assert!(hosts.hosts[0].lives(pid));
        [(0, 1), (1, 0)].into_iter().for_each(|(from, to)| cut_all(&hosts, from, to));
        let watched = Watched::start(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        assert!(until(SOON, || watched.said().contains("nobody stands by")), "{}", watched.said());
        assert!(hosts.hosts[0].lives(pid) && !has_address(&hosts.hosts[0]), "{}", watched.said());
        [0, 1].into_iter().for_each(|from| heal(&hosts, from));
        turned(&hosts, &watched, pid);
        lose_the_second(&mut hosts, &watched, counter, pid);
    }

    /// The primary's host loses its power, and boots again: the same command stands by for the other one.
    fn a_host_that_boots_again() {
        let lab = Lab::new("comeback-boot");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        lose_power(&hosts.hosts[0]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        // While the other one is not heard nothing is begun.
        let watched = Watched::start(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        assert!(until(SOON, || watched.said().contains("it is not known who runs it")), "{}", watched.said());
        assert!(stands(&hosts.hosts[0], "standby", "starting"), "{}", watched.said());
        hosts.wire(0, true);
        turned(&hosts, &watched, pid);
        // It is started again as the standby that it is.
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        assert!(until(SOON, || stands(&hosts.hosts[1], "primary", "unprotected")), "{}", noted(&hosts));
        let watched = Watched::start(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        turned(&hosts, &watched, pid);
        lose_the_second(&mut hosts, &watched, counter, pid);
    }

    /// Only the meio of the host that has taken over is killed. One of the two goes on with the tree, and is protected by the other one
    /// again, where nothing of it is left, without a hand.
    fn a_meio_that_is_killed_where_it_was_taken_over() {
        let lab = Lab::new("comeback-mute");
        let (hosts, pid, watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        hosts.wire(0, true);
        turned(&hosts, &watched, pid);
        hosts.hosts[1].plain("kill", &["-KILL", &oldest(&hosts.hosts[1])]);
        let runs = |here: usize| stands(&hosts.hosts[here], "primary", "protected") && stands(&hosts.hosts[1 - here], "standby", "ready");
        let mut here = None;
        let protected = || {
            here = [0, 1].into_iter().find(|here| runs(*here));
            here.is_some()
        };
        // Who stood by has to notice first.
        assert!(counter.go_on(50), "nobody goes on: {}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, protected), "nobody stands by: {}\n{}", watched.said(), noted(&hosts));
        protected_on(here.unwrap_or_default(), &hosts, &watched, pid);
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
    }

    /// The same, and it is not reached before it was taken over from: what stands still there is ended when it is reached again.
    fn a_meio_that_is_killed_and_not_reached() {
        let lab = Lab::new("comeback-unreached");
        let (mut hosts, pid, watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        hosts.wire(0, true);
        turned(&hosts, &watched, pid);
        [(0, 1), (1, 0)].into_iter().for_each(|(from, to)| cut_all(&hosts, from, to));
        // The one before it may be about to end.
        let kill = || hosts.hosts[1].command(Path::new("kill")).args(["-KILL", &oldest(&hosts.hosts[1])]).status();
        assert!(until(SOON, || kill().is_ok_and(|done| done.success())), "{}", noted(&hosts));
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[0]) && hosts.hosts[1].lives(pid), "{}\n{}", watched.said(), noted(&hosts));
        [0, 1].into_iter().for_each(|from| heal(&hosts, from));
        protected_on(0, &hosts, &watched, pid);
        // And the other way round once more.
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(hosts.hosts[1].runs(pid) && has_address(&hosts.hosts[1]), "{}", noted(&hosts));
    }

    /// To and fro, by cables that are pulled: whoever runs it is protected by the other one again, without a hand.
    fn to_and_fro() {
        let lab = Lab::new("comeback-fro");
        let (mut hosts, pid, watched, counter) = guarded(&lab, &[]);
        for here in [0, 1, 0] {
            hosts.wire(here, false);
            assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
            hosts.wire(here, true);
            protected_on(1 - here, &hosts, &watched, pid);
            assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        }
        lose_the_second(&mut hosts, &watched, counter, pid);
    }

    /// What the other host has begun to take over and cannot bring back is not ended where it is.
    fn a_standby_that_cannot() {
        let lab = Lab::new("comeback-cannot");
        let (hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        // Somebody there has its pid from now on.
        let taken = format!("echo {} > /proc/sys/kernel/ns_last_pid && exec setsid --fork sleep 1000 > /dev/null 2>&1", pid - 1);
        let taken = || hosts.hosts[1].plain("bash", &["-c", &taken]);
        assert!(until(SOON, || { taken(); hosts.hosts[1].lives(pid) }), "the pid is free");
        hosts.wire(0, false);
        assert!(until(SOON, || noted(&hosts).contains("it could not be brought back")), "{}", noted(&hosts));
        hosts.wire(0, true);
        assert!(until(SOON, || watched.said().contains("the standby has taken over")), "{}\n{}", watched.said(), noted(&hosts));
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert!(watched.meio.try_wait().is_ok_and(|done| done.is_none()), "{}", watched.said());
        assert!(hosts.hosts[0].lives(pid) && !hosts.hosts[0].runs(pid) && !has_address(&hosts.hosts[0]), "{}", watched.said());
        assert_eq!(meio(&hosts.hosts[0], &["unwatch", "web"]).0, 0);
        assert_eq!(ends(&mut watched), 3, "{}", watched.said());
        assert!(hosts.hosts[0].lives(pid), "{}", watched.said());
        assert!(!has_address(&hosts.hosts[1]), "{}", noted(&hosts));
        // Its client waits for an answer that nobody gives.
        drop(counter);
    }
}
