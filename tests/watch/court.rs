//! Several hosts stand by, and one host more says whether one of them may take over; or a command has to end the primary's host first.

use super::control::{meio, status};
use super::links::{cut_all, heal};
use super::ring::guards;
use super::several::{both, goes_on, guarded, lose, noted, taken};
use super::switch::history;
use super::witness::{kill, witness_on};
use super::{Counter, SLOW, Watched, has_address, machines, redis_on};
use crate::lab::hosts::{Host, Hosts};
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where the witness is, among four hosts.
const LAST: usize = 3;
const WITNESS: &str = "root@10.99.0.4";
/// Longer than silence and all that is asked then.
const LONG: Duration = Duration::from_millis(2500);

/// A redis on the first of four hosts, watched by these, with the last one as their witness, and a client that counts.
fn judged(lab: &Lab, others: &[&str]) -> (Hosts, i32, Child, Watched, Counter) {
    let (hosts, pid) = redis_on(lab, machines(lab, LAST + 1));
    let witness = witness_on(lab, &hosts, LAST);
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web", "--witness", WITNESS], others].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    (hosts, pid, witness, watched, counter)
}

fn two(lab: &Lab) -> (Hosts, i32, Child, Watched, Counter) {
    let made = judged(lab, &["--standby", "10.99.0.3"]);
    let (hosts, _, _, watched, _) = &made;
    assert!(until(SOON, || both(hosts, "ready") == 2), "{}\n{}\n{}", status(&hosts.hosts[0]), watched.said(), noted(hosts));
    made
}

/// The witness lets what runs on this host.
fn is_asked(host: &Host) {
    let one = status(host);
    assert!(one["witness"]["at"] == "10.99.0.4:26346" && one["witness"]["trouble"].is_null(), "{one}");
}

fn nobody_begins(hosts: &Hosts, counter: &Counter) {
    std::thread::sleep(LONG / 4);
    let before = counter.answers.load(Ordering::Relaxed);
    std::thread::sleep(LONG);
    assert!(taken(hosts).is_none() && counter.answers.load(Ordering::Relaxed) == before, "{}", noted(hosts));
}

/// Nothing gets from the first two hosts to the other two, nor back.
fn part(hosts: &Hosts) {
    for (one, other) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        cut_all(hosts, one, other);
        cut_all(hosts, other, one);
    }
}

crate::alone! {
    /// The primary is lost: the one that was chosen asks, and takes over; the other one stands by for it, and takes over from it with
    /// the leave of the same witness.
    fn one_host_after_the_other() {
        let lab = Lab::new("court-lost");
        let (mut hosts, pid, mut witness, mut watched, counter) = two(&lab);
        is_asked(&hosts.hosts[0]);
        lose(&mut hosts, &mut watched);
        let here = {
            assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
            taken(&hosts).expect("one has it")
        };
        let other = 3 - here;
        guards(&hosts, here, &[other], &watched, pid);
        is_asked(&hosts.hosts[here]);
        let events = history(&hosts.hosts[here]);
        let over = events.iter().rfind(|one| one["event"] == "taken-over").expect("it is told");
        let steps: Vec<&str> = over["steps"].as_array().expect("steps").iter().filter_map(|step| step[0].as_str()).collect();
        assert_eq!(steps[..3], ["detect", "votes", "witness"], "{over}");
        hosts.wire(here, false);
        hosts.hosts[here].fail();
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[other]) && until(SOON, || hosts.hosts[other].runs(pid)), "{}", noted(&hosts));
        counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(&hosts)));
        kill(&hosts, LAST, &mut witness);
    }

    /// The witness is lost: nobody who counts notices. Then the primary is: as long as the witness is away both wait, though each has the
    /// vote of the other one.
    fn the_witness_and_the_primary() {
        let lab = Lab::new("court-killed");
        let (mut hosts, pid, mut witness, mut watched, counter) = two(&lab);
        kill(&hosts, LAST, &mut witness);
        assert!(counter.go_on(100), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || status(&hosts.hosts[0])["witness"]["trouble"].is_string()), "{}", status(&hosts.hosts[0]));
        let (code, said) = meio(&hosts.hosts[0], &["remove-standby", "web", "10.99.0.3"]);
        assert!(code == 1 && said.contains("cannot be changed now: the witness 10.99.0.4:26346 does not answer"), "{code}: {said}");
        lose(&mut hosts, &mut watched);
        nobody_begins(&hosts, &counter);
        assert!(noted(&hosts).contains("Unruled"), "{}", noted(&hosts));
        let mut witness = witness_on(&lab, &hosts, LAST);
        goes_on(&hosts, &watched, counter, pid);
        kill(&hosts, LAST, &mut witness);
    }

    /// The witness and one standby are cut off from the other two: those go on. With the primary lost nobody begins on either side, since
    /// one has no leave, and neither enough votes. Together again one takes over.
    fn the_witness_and_one_that_stands_by() {
        let lab = Lab::new("court-parted");
        let (mut hosts, pid, mut witness, mut watched, counter) = two(&lab);
        part(&hosts);
        std::thread::sleep(LONG / 2);
        assert!(counter.go_on(100), "{}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[0]) && taken(&hosts).is_none(), "{}", noted(&hosts));
        lose(&mut hosts, &mut watched);
        nobody_begins(&hosts, &counter);
        (1..4).for_each(|n| (0..2).for_each(|_| heal(&hosts, n)));
        goes_on(&hosts, &watched, counter, pid);
        kill(&hosts, LAST, &mut witness);
    }

    /// Another host is added and has its vote; it takes over when a user wants that, and the others stand by for it. Then there is one
    /// less, and both standbys are lost: by leave of the witness it goes on alone.
    fn who_stands_by_is_changed() {
        let lab = Lab::new("court-changed");
        let (mut hosts, pid, mut witness, watched, counter) = judged(&lab, &[]);
        let (code, said) = meio(&hosts.hosts[0], &["add-standby", "web", "10.99.0.3"]);
        assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        assert_eq!(both(&hosts, "ready"), 2, "{}", status(&hosts.hosts[0]));
        is_asked(&hosts.hosts[0]);
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web", "--to", "10.99.0.3"]);
        assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        guards(&hosts, 2, &[0, 1], &watched, pid);
        is_asked(&hosts.hosts[2]);
        for n in 0..2 {
            hosts.wire(n, false);
            hosts.hosts[n].fail();
        }
        assert!(counter.go_on(50), "it does not go on alone: {}\n{}", status(&hosts.hosts[2]), noted(&hosts));
        let one = status(&hosts.hosts[2]);
        assert!(one["state"] == "unprotected" && has_address(&hosts.hosts[2]), "{one}");
        counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(&hosts)));
        kill(&hosts, LAST, &mut witness);
    }

    /// The one that takes over ends the primary's host first, and nobody else does; as long as it cannot nobody takes over.
    fn the_primary_is_ended_first() {
        let lab = Lab::new("court-fence");
        let [asked, allowed] = ["asked", "allowed"].map(|name| lab.path(name).display().to_string());
        let command = format!("echo $(hostname) $MEIO_HOST >>{asked}; test -e {allowed}");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &["--fence", &command]);
        let lines = || fs::read_to_string(&asked).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(lines().is_empty());
        lose(&mut hosts, &mut watched);
        assert!(until(SOON, || lines().len() >= 2), "{:?}\n{}", lines(), noted(&hosts));
        assert!(taken(&hosts).is_none(), "somebody answers: {}", noted(&hosts));
        fs::write(&allowed, "").expect("a file");
        let here = goes_on(&hosts, &watched, counter, pid);
        let all = lines();
        assert!(all.iter().all(|line| *line == format!("host{} host1", here + 1)), "{all:?} {}", here + 1);
    }
}
