//! What becomes of a watch whose link, standby or meio is lost: it comes back by itself, and nothing that a client was told is.

use super::{Counter, PROTECTED, SLOW, Watched, has_address, meios, noted, oldest, redis};
use crate::lab::hosts::{Host, Hosts};
use crate::lab::{Lab, SOON, until};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Nothing that is TCP gets from one host to the other: of the link and its streams, not of the service.
pub fn cut(hosts: &Hosts, from: usize, to: usize) {
    cut_ports(hosts, from, to, &[]);
}

pub fn cut_ports(hosts: &Hosts, from: usize, to: usize, ports: &[&str]) {
    let there = &hosts.hosts[to].address;
    hosts.hosts[from].plain("ip", &[&["rule", "add", "blackhole", "ipproto", "tcp", "to", there, "pref", "5"], ports].concat());
}

/// Nothing at all gets there, but what is said from the service's address.
pub fn cut_all(hosts: &Hosts, from: usize, to: usize) {
    hosts.hosts[from].plain("ip", &["rule", "add", "blackhole", "to", &hosts.hosts[to].address, "pref", "5"]);
}

/// What was cut off is there again.
pub fn heal(hosts: &Hosts, from: usize) {
    hosts.hosts[from].plain("ip", &["rule", "del", "pref", "5"]);
}

/// What was said since: a place in it.
fn place(watched: &Watched) -> usize {
    watched.said().len()
}

fn said_since(watched: &Watched, place: usize, what: &str) -> bool {
    watched.said().get(place..).is_some_and(|said| said.contains(what))
}

/// The first host is lost: the second one goes on with every answer that was given.
fn lose_the_first(hosts: &mut Hosts, watched: &mut Watched, counter: Counter, pid: i32) {
    assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(hosts));
    assert!(until(SOON, || watched.is_protected()), "{}\n{}", watched.said(), noted(hosts));
    hosts.wire(0, false);
    hosts.hosts[0].fail();
    let _ = watched.meio.wait();
    assert!(counter.go_on(20), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    counter.end();
    assert!(hosts.hosts[1].runs(pid));
}

fn sessions(host: &Host) {
    host.plain("pkill", &["-KILL", "-f", "^sshd(-session)?: [^/]"]);
}

crate::alone! {
    /// The sessions of ssh end, and who stands by does not: it goes on with what it has, and is never less than ready.
    fn a_session_that_ends() {
        let lab = Lab::new("watch-session");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "10s"]);
        let counter = Counter::begin();
        let agent = oldest(&hosts.hosts[1]);
        for _ in 0..3 {
            assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
            let before = place(&watched);
            sessions(&hosts.hosts[1]);
            assert!(until(SOON, || said_since(&watched, before, "the link to the standby is lost")), "{}", watched.said());
            // Nothing gets out that the standby does not have.
            assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        }
        assert!(watched.is_protected() && watched.said().matches(PROTECTED).count() == 1, "{}\n{}", watched.said(), noted(&hosts));
        assert_eq!(agent, oldest(&hosts.hosts[1]));
        lose_the_first(&mut hosts, &mut watched, counter, pid);
    }

    /// Nothing comes over the link, while heartbeats do: the service goes on alone, and not when the link is there again.
    fn a_link_that_is_cut() {
        let lab = Lab::new("watch-cut");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, SLOW);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        let before = place(&watched);
        [(0, 1), (1, 0)].into_iter().for_each(|(from, to)| cut(&hosts, from, to));
        assert!(until(SOON, || said_since(&watched, before, "unprotected")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[0]) && !has_address(&hosts.hosts[1]));
        let before = place(&watched);
        [0, 1].into_iter().for_each(|from| heal(&hosts, from));
        assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        lose_the_first(&mut hosts, &mut watched, counter, pid);
    }

    /// The link is there, and its streams carry nothing: they are made again through it.
    fn streams_that_are_cut() {
        let lab = Lab::new("watch-streams");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, SLOW);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        let before = place(&watched);
        cut_ports(&hosts, 0, 1, &["dport", "1024-65534"]);
        assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        lose_the_first(&mut hosts, &mut watched, counter, pid);
    }

    /// Who stands by is killed: the service goes on, unprotected, and another one stands by.
    fn a_standby_that_is_killed() {
        let lab = Lab::new("watch-standby");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, SLOW);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        let before = place(&watched);
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        assert!(until(SOON, || said_since(&watched, before, "unprotected")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        lose_the_first(&mut hosts, &mut watched, counter, pid);
    }

    /// A meio that was killed is started again before the standby takes over: it goes on with the tree, and with that standby.
    fn a_meio_that_is_started_again() {
        let lab = Lab::new("watch-again");
        let (hosts, pid) = redis(&lab);
        let choices = ["--timeout", "20s", "--name", "again"];
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        let agent = oldest(&hosts.hosts[1]);
        // Children of the one that is killed outlive it for a while.
        let first = meios(&hosts.hosts[0]);
        hosts.hosts[0].plain("kill", &["-KILL", &first[0]]);
        let _ = watched.meio.wait();
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        let second = meios(&hosts.hosts[0]).into_iter().find(|meio| !first.contains(meio)).expect("a meio");
        assert!(watched.said().contains("the meio of this watch was killed"), "{}", watched.said());
        assert!(counter.go_on(20), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        assert_eq!(agent, oldest(&hosts.hosts[1]));
        let stands = || counter.answers.load(Ordering::Relaxed);
        let before = stands();
        assert!(until(SOON, || stands() > before + 20) && watched.is_protected(), "{}\n{}", watched.said(), noted(&hosts));
        hosts.hosts[0].plain("kill", &["-INT", &second]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(hosts.hosts[0].runs(pid) && has_address(&hosts.hosts[0]) && !has_address(&hosts.hosts[1]));
        let unlocked = hosts.hosts[0].command(std::path::Path::new(crate::MEIO)).args(["check", "--unlock", "again"]).output();
        assert!(!unlocked.expect("it starts").status.success(), "a lock was left");
    }

    /// The same after the standby has taken over: the tree stands still, and nobody hears of it.
    fn a_meio_that_is_started_too_late() {
        let lab = Lab::new("watch-late");
        let (hosts, pid) = redis(&lab);
        let choices = ["--timeout", "2s", "--name", "late"];
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        let counter = Counter::begin();
        assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(20), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        let mut watched = Watched::start(&lab, &hosts, pid, &choices);
        let done = watched.meio.wait().expect("it ends");
        assert!(done.code() == Some(3) && watched.said().contains("the standby has taken over"), "{done:?} {}", watched.said());
        assert!(!hosts.hosts[0].runs(pid) && hosts.hosts[1].runs(pid) && !has_address(&hosts.hosts[0]));
        assert!(counter.go_on(20), "{}", noted(&hosts));
        counter.end();
        // Whoever asks once more is told so.
        let mut watched = Watched::start(&lab, &hosts, pid, &choices);
        assert!(!watched.meio.wait().expect("it ends").success() && watched.said().contains("has taken over"), "{}", watched.said());
        assert!(until(Duration::from_secs(1), || has_address(&hosts.hosts[1])));
    }
}
