//! Several hosts stand by, and say to each other which of them takes over.

use super::comeback::stands;
use super::control::{meio, status};
use super::links::{cut_all, heal};
use super::ring::guards;
use super::{Counter, SLOW, Watched, answers_again, has_address, machines, oldest, redis_on};
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What all hosts but the first have noted.
pub fn noted(hosts: &Hosts) -> String {
    const ALL: &str = "cat /var/lib/meio/watch/*.log; cat /var/lib/meio/watch/*.record; ps axo pid,stat,args; ip -o -4 address";
    let of = |n: usize| hosts.hosts[n].command(Path::new("bash")).args(["-c", ALL]).output().expect("nsenter starts").stdout;
    let all = (1..hosts.hosts.len()).filter(|n| hosts.hosts[*n].is_up());
    all.map(|n| format!("---- host {}\n{}", n + 1, String::from_utf8_lossy(&of(n)))).collect()
}

/// A redis on the first of three hosts, watched by the other two, and a client that counts.
pub fn guarded(lab: &Lab, more: &[&str]) -> (Hosts, i32, Watched, Counter) {
    guarded_by(lab, 2, more)
}

/// The same with so many standbys.
pub fn guarded_by(lab: &Lab, count: usize, more: &[&str]) -> (Hosts, i32, Watched, Counter) {
    let (hosts, pid) = redis_on(lab, machines(lab, count + 1));
    let others = hosts.hosts[2..].iter().flat_map(|host| ["--standby", &host.address]).collect::<Vec<_>>();
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web"], &others, more].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    let ready = || both(&hosts, "ready") == count;
    assert!(until(SOON, ready), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(&hosts));
    (hosts, pid, watched, counter)
}

/// How many of the standbys are so, as the primary knows.
pub fn both(hosts: &Hosts, state: &str) -> usize {
    let one: Value = status(&hosts.hosts[0]);
    one["standbys"].as_array().map_or(0, |all| all.iter().filter(|one| one["state"] == state).count())
}

pub fn lose(hosts: &mut Hosts, watched: &mut Watched) {
    hosts.wire(0, false);
    hosts.hosts[0].fail();
    let _ = watched.meio.wait();
}

/// Which of the standbys has it.
pub fn taken(hosts: &Hosts) -> Option<usize> {
    let with: Vec<usize> = (1..3).filter(|n| has_address(&hosts.hosts[*n])).collect();
    assert!(with.len() < 2, "two have the address: {}", noted(hosts));
    with.first().copied()
}

/// One of them has taken over, the connection lives, and the other one stands by for it.
pub fn goes_on(hosts: &Hosts, watched: &Watched, counter: Counter, pid: i32) -> usize {
    assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    let here = taken(hosts).expect("one has it");
    let other = 3 - here;
    assert!(until(SOON, || hosts.hosts[here].runs(pid)) && !hosts.hosts[other].lives(pid), "{}", noted(hosts));
    let both = || stands(&hosts.hosts[here], "primary", "protected") && stands(&hosts.hosts[other], "standby", "ready");
    assert!(until(SOON, both), "nobody stands by: {}\n{}", watched.said(), noted(hosts));
    assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(hosts)));
    here
}

crate::alone! {
    /// The primary is lost: one of two takes over with every answer that was given, and the other one stands by for it then.
    fn a_host_that_is_lost() {
        let lab = Lab::new("several-lost");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// The same where each must have what is let out.
    fn a_host_that_is_lost_to_all() {
        let lab = Lab::new("several-all");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &["--ack", "all"]);
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// Where nothing waits connections are broken off, and somebody answers again.
    fn a_host_that_is_lost_where_nothing_waits() {
        let lab = Lab::new("several-hot");
        let (mut hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let mut watched = Watched::begin(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--standby", "10.99.0.3"]].concat());
        assert!(until(SOON, || both(&hosts, "ready") == 2), "{}\n{}", watched.said(), noted(&hosts));
        lose(&mut hosts, &mut watched);
        assert!(answers_again(&watched, &hosts, &lab) > 0);
        let here = taken(&hosts).expect("one has it");
        assert!(until(SOON, || hosts.hosts[here].runs(pid)) && !hosts.hosts[3 - here].lives(pid), "{}", noted(&hosts));
    }

    /// The primary and one of three that stand by are lost at once: the other two are enough.
    fn two_hosts_that_are_lost() {
        let lab = Lab::new("several-two");
        let (mut hosts, pid, mut watched, counter) = guarded_by(&lab, 3, &[]);
        hosts.wire(3, false);
        hosts.hosts[3].fail();
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// One of two that stand by is lost: nobody who counts notices, and it is said. When the primary is lost then, nobody takes over alone.
    fn a_standby_that_is_lost() {
        let lab = Lab::new("several-standby");
        let (mut hosts, _, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(1, false);
        hosts.hosts[1].fail();
        assert!(until(SOON, || both(&hosts, "lost") == 1), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        assert!(counter.go_on(200), "{}\n{}", watched.said(), noted(&hosts));
        assert!(watched.said().contains("nothing is heard of host2"), "{}", watched.said());
        assert!(has_address(&hosts.hosts[0]) && both(&hosts, "ready") == 1);
        let before = counter.answers.load(Ordering::Relaxed);
        lose(&mut hosts, &mut watched);
        std::thread::sleep(Duration::from_secs(6));
        assert!(!has_address(&hosts.hosts[2]), "one of three takes over: {}", noted(&hosts));
        // What was on its way when the host was lost may have come.
        assert!(counter.answers.load(Ordering::Relaxed) <= before + 200);
    }

    /// One of two stands still for a while: nobody who counts notices. It gets what it has missed, and is of use again.
    fn a_standby_that_is_stopped() {
        let lab = Lab::new("several-stopped");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        let agent = oldest(&hosts.hosts[1]);
        hosts.hosts[1].plain("kill", &["-STOP", &agent]);
        let before = counter.answers.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(2));
        let meanwhile = counter.answers.load(Ordering::Relaxed) - before;
        hosts.hosts[1].plain("kill", &["-CONT", &agent]);
        assert!(meanwhile > 50, "{meanwhile} answers in two seconds: {}", watched.said());
        let series = |hosts: &Hosts| status(&hosts.hosts[0])["epoch"]["series"].as_u64();
        let first = series(&hosts);
        let caught_up = || {
            let one = status(&hosts.hosts[0]);
            let of = |n: usize| one["standbys"][n]["epoch"]["number"].as_u64().unwrap_or_default();
            of(0) > 0 && of(1).abs_diff(of(0)) < 20 && both(&hosts, "ready") == 2
        };
        assert!(until(SOON, caught_up), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(&hosts));
        assert_eq!(series(&hosts), first, "everything was copied again: {}", watched.said());
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// The two that stand by lose each other: nothing happens. With the primary lost, too, neither begins, until they find each other.
    fn standbys_that_lose_each_other() {
        let lab = Lab::new("several-parted");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        cut_all(&hosts, 1, 2);
        cut_all(&hosts, 2, 1);
        assert!(counter.go_on(100), "{}\n{}", watched.said(), noted(&hosts));
        lose(&mut hosts, &mut watched);
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(taken(&hosts), None, "{}", noted(&hosts));
        heal(&hosts, 1);
        heal(&hosts, 2);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// The meio of the primary is killed: it is taken over from. Started again, it ends what is left of the tree there, and stands by.
    fn a_meio_that_is_killed() {
        let lab = Lab::new("several-meio");
        let (hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        goes_on(&hosts, &watched, counter, pid);
        assert!(hosts.hosts[0].runs(pid) && !has_address(&hosts.hosts[0]));
        let mut again = Watched::start(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--standby", "10.99.0.3"]].concat());
        let here = taken(&hosts).expect("one has it");
        guards(&hosts, here, &[0, 3 - here], &again, pid);
        assert!(again.meio.try_wait().is_ok_and(|done| done.is_none()), "{}", again.said());
    }

    /// It is started again before they take over: it goes on with the tree, and with both. When the host is lost then they take over.
    fn a_meio_that_is_started_again() {
        let lab = Lab::new("several-again");
        let (mut hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let choices = ["--timeout", "15s", "--name", "web", "--standby", "10.99.0.3"];
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        let counter = Counter::begin();
        assert!(counter.go_on(20) && until(SOON, || both(&hosts, "ready") == 2), "{}\n{}", watched.said(), noted(&hosts));
        let agents = [1, 2].map(|n| oldest(&hosts.hosts[n]));
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        assert!(watched.said().contains("the meio of this watch was killed"), "{}", watched.said());
        assert!(until(SOON, || both(&hosts, "ready") == 2), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(&hosts));
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        assert_eq!([1, 2].map(|n| oldest(&hosts.hosts[n])), agents);
        // What was on record is of use for who is begun anew.
        hosts.hosts[1].plain("pkill", &["-KILL", "-x", "meio"]);
        assert!(until(SOON, || both(&hosts, "ready") == 1), "{}", status(&hosts.hosts[0]));
        assert!(until(SOON, || both(&hosts, "ready") == 2), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(&hosts));
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// What is not said of which of several standbys is refused, and a watch of them is ended like any other.
    fn what_is_refused() {
        let lab = Lab::new("several-refused");
        let (hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web"]);
        assert!(code == 2 && said.contains("several hosts stand by for web") && said.contains("--to HOST"), "{code}: {said}");
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web", "--to", "10.99.0.9"]);
        assert!(code == 2 && said.contains("10.99.0.9 does not stand by for web"), "{code}: {said}");
        assert!(counter.go_on(20), "{}", watched.said());
        let (code, said) = meio(&hosts.hosts[0], &["unwatch", "web"]);
        assert_eq!(code, 0, "{said}");
        let _ = watched.meio.wait();
        assert!(counter.go_on(20), "{}", watched.said());
        counter.end();
        assert!(hosts.hosts[0].runs(pid) && has_address(&hosts.hosts[0]));
        for n in 1..3 {
            let gone = || meio(&hosts.hosts[n], &["status", "web"]).0 == 10;
            assert!(until(SOON, gone), "something is left: {}", noted(&hosts));
        }
    }
}
