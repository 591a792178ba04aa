//! A third host says which of two may go on.

use super::comeback::stands;
use super::control::{meio, standing};
use super::links::{cut_all, heal};
use super::switch::history;
use super::{Counter, PROTECTED, SLOW, Watched, count, has_address, machines, noted, redis_on};
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where the witness is.
pub const THIRD: &str = "root@10.99.0.3";

/// A witness on the third host, which has to be reached by SSH for the key.
pub fn witness(lab: &Lab, hosts: &Hosts) -> Child {
    witness_on(lab, hosts, 2)
}

/// The same on another one.
pub fn witness_on(lab: &Lab, hosts: &Hosts, of: usize) -> Child {
    let said = fs::File::options().create(true).append(true).open(lab.path("witness.err")).expect("a file");
    let mut command = hosts.hosts[of].command(Path::new(crate::MEIO));
    let child = command.args(["witness", "-v"]).stdout(Stdio::null()).stderr(said).spawn().expect("meio starts");
    let listens = || hosts.hosts[of].plain("ss", &["-lun"]).contains(":26346 ");
    assert!(until(SOON, listens), "it does not listen: {}", fs::read_to_string(lab.path("witness.err")).unwrap_or_default());
    child
}

/// Watched with a witness, and a client that counts.
fn guarded(lab: &Lab, prepare: impl FnOnce(&Hosts)) -> (Hosts, i32, Child, Watched, Counter) {
    let (hosts, pid) = redis_on(lab, machines(lab, 3));
    prepare(&hosts);
    let witness = witness(lab, &hosts);
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web", "--witness", THIRD]].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
    (hosts, pid, witness, watched, counter)
}

pub fn kill(hosts: &Hosts, of: usize, witness: &mut Child) {
    hosts.hosts[of].plain("pkill", &["-KILL", "-x", "meio"]);
    let _ = witness.wait();
}

/// Nothing gets from one of the two to the other, and everything to the third.
fn part(hosts: &Hosts) {
    cut_all(hosts, 0, 1);
    cut_all(hosts, 1, 0);
}

fn together(hosts: &Hosts) {
    heal(hosts, 0);
    heal(hosts, 1);
}

fn lose(hosts: &mut Hosts, watched: &mut Watched) {
    hosts.wire(0, false);
    hosts.hosts[0].fail();
    let _ = watched.meio.wait();
}

/// No answer comes for so long.
fn stands_still(counter: &Counter, time: Duration) -> bool {
    std::thread::sleep(Duration::from_millis(300));
    let before = counter.answers.load(Ordering::Relaxed);
    std::thread::sleep(time);
    counter.answers.load(Ordering::Relaxed) == before
}

fn said_since(watched: &Watched, place: usize, what: &str) -> bool {
    watched.said().get(place..).is_some_and(|said| said.contains(what))
}

/// How long the standby waited for the witness, and how long the take-over took, as it has noted.
fn asked_for(hosts: &Hosts) -> (f64, f64) {
    let noted = noted(hosts);
    let number = |what: &str| {
        let rest = noted.rsplit(what).next().filter(|_| noted.contains(what))?;
        rest.split(' ').next()?.parse().ok()
    };
    let both = (number(", witness "), number("taken over in "));
    let (Some(asked), Some(all)) = both else { panic!("{both:?}: {noted}") };
    (asked, all)
}

crate::alone! {
    /// The host is lost: the standby asks, and goes on as it would without a witness.
    fn a_host_that_is_lost() {
        let lab = Lab::new("witness-lost");
        let (mut hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let mut witness = witness(&lab, &hosts);
        // The key by hand, this once.
        let key = hosts.hosts[2].plain(crate::MEIO, &["witness", "--add", "web"]);
        assert_eq!(key, hosts.hosts[2].plain(crate::MEIO, &["witness", "--add", "web"]), "it is the same one");
        fs::write(lab.path("web.key"), key).expect("a file");
        let file = lab.path("web.key").display().to_string();
        let more = ["--name", "web", "--witness", "10.99.0.3", "--witness-key", &file];
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &more].concat());
        assert!(!watched.said().contains("no --witness"), "{}", watched.said());
        let status = hosts.hosts[0].plain(crate::MEIO, &["status", "web"]);
        assert!(status.contains("10.99.0.3:26346, which answers"), "{status}");
        let counter = Counter::begin();
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
        lose(&mut hosts, &mut watched);
        assert!(counter.go_on(50), "it does not go on: {}\n{}\n{}", watched.said(), noted(&hosts), lab.log());
        counter.end();
        assert!(hosts.hosts[1].runs(pid));
        let (asked, all) = asked_for(&hosts);
        println!("\nhold: {asked:.1} ms of a take-over of {all:.1} ms went to ask the witness");
        assert!(asked < 500.0, "{asked} ms");
        kill(&hosts, 2, &mut witness);
    }

    /// The two lose each other, and both see the witness: the one that has answered goes on, and the other one does not begin. When
    /// they find each other it stands by again, and takes over.
    fn two_that_lose_each_other() {
        let lab = Lab::new("witness-parted");
        let (mut hosts, pid, mut witness, mut watched, counter) = guarded(&lab, |_| {});
        for _ in 0..2 {
            assert!(until(SOON, || watched.is_protected()), "{}\n{}", watched.said(), noted(&hosts));
            let before = watched.said().len();
            part(&hosts);
            assert!(until(SOON, || said_since(&watched, before, "unprotected")), "{}\n{}", watched.said(), noted(&hosts));
            assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
            std::thread::sleep(Duration::from_secs(3));
            assert!(has_address(&hosts.hosts[0]) && !has_address(&hosts.hosts[1]), "two have the address");
            let before = watched.said().len();
            together(&hosts);
            assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        }
        let status = hosts.hosts[0].plain(crate::MEIO, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let one = &status["watches"][0];
        assert!(one["generation"] == 3 && one["witness"]["trouble"].is_null(), "{status}");
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
        lose(&mut hosts, &mut watched);
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(hosts.hosts[1].runs(pid));
        kill(&hosts, 2, &mut witness);
    }

    /// The primary is cut off from everybody: the standby takes over, and the primary gives in when it comes back, and stands by.
    fn a_cable_that_is_pulled() {
        let lab = Lab::new("witness-cable");
        let (hosts, pid, mut witness, watched, counter) = guarded(&lab, |_| {});
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(&hosts)));
        assert!(!has_address(&hosts.hosts[0]) && has_address(&hosts.hosts[1]));
        hosts.wire(0, true);
        let both = || stands(&hosts.hosts[1], "primary", "protected") && stands(&hosts.hosts[0], "standby", "ready");
        assert!(until(SOON, both), "{}\n{}", watched.said(), noted(&hosts));
        assert!(!hosts.hosts[0].lives(pid) && until(SOON, || hosts.hosts[1].runs(pid)) && !has_address(&hosts.hosts[0]) && has_address(&hosts.hosts[1]));
        kill(&hosts, 2, &mut witness);
    }

    /// The witness is killed: nothing stops. With the primary's host lost, too, nobody begins, which is said; when the witness is
    /// there again the standby takes over.
    fn a_witness_that_is_killed() {
        let lab = Lab::new("witness-killed");
        let (mut hosts, pid, mut killed, mut watched, counter) = guarded(&lab, |_| {});
        for _ in 0..2 {
            let before = watched.said().len();
            kill(&hosts, 2, &mut killed);
            assert!(until(SOON, || said_since(&watched, before, "does not answer")), "{}", watched.said());
            assert!(counter.go_on(100) && watched.is_protected(), "{}\n{}", watched.said(), noted(&hosts));
            let status = hosts.hosts[0].plain(crate::MEIO, &["status", "web"]);
            assert!(status.contains("10.99.0.3:26346, which does not answer"), "{status}");
            killed = witness(&lab, &hosts);
            assert!(until(SOON, || said_since(&watched, before, "answers again")), "{}", watched.said());
        }
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        kill(&hosts, 2, &mut killed);
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
        lose(&mut hosts, &mut watched);
        assert!(until(SOON, || noted(&hosts).contains("Unruled")), "{}", noted(&hosts));
        assert!(stands_still(&counter, Duration::from_secs(2)) && !has_address(&hosts.hosts[1]), "{}", noted(&hosts));
        assert!(noted(&hosts).contains("does not answer"), "{}", noted(&hosts));
        let mut witness = witness(&lab, &hosts);
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(hosts.hosts[1].runs(pid));
        kill(&hosts, 2, &mut witness);
    }

    /// Killed, and started again where the witness cannot be reached any more: the watch goes on with what it knows of it.
    fn a_meio_that_is_started_again() {
        let lab = Lab::new("witness-again");
        let (hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let mut witness = witness(&lab, &hosts);
        let choices = ["--timeout", "20s", "--name", "again", "--witness", THIRD];
        let mut watched = Watched::with(&lab, &hosts, pid, &choices);
        let counter = Counter::begin();
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        kill(&hosts, 2, &mut witness);
        hosts.wire(2, false);
        hosts.hosts[0].plain("pkill", &["-KILL", "-o", "-x", "meio"]);
        let _ = watched.meio.wait();
        let watched = Watched::with(&lab, &hosts, pid, &choices);
        assert!(watched.said().contains("the meio of this watch was killed"), "{}", watched.said());
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(until(SOON, || watched.said().contains("does not answer")), "{}", watched.said());
        hosts.hosts[0].plain("pkill", &["-INT", "-o", "-x", "meio"]);
    }

    /// Where nothing waits: with the standby lost, and then with the way to a new one, new connections are answered all the time by one.
    fn a_standby_that_is_lost() {
        let lab = Lab::new("witness-hot");
        let (mut hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let mut witness = witness(&lab, &hosts);
        let more = ["--guarantee", "hot", "--name", "web", "--witness", THIRD];
        let watched = Watched::with(&lab, &hosts, pid, &[SLOW, &more].concat());
        let before = watched.said().len();
        part(&hosts);
        assert!(until(SOON, || said_since(&watched, before, "unprotected")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || count().is_some()), "{}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[0]) && !has_address(&hosts.hosts[1]));
        let before = watched.said().len();
        together(&hosts);
        assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        let before = watched.said().len();
        hosts.wire(1, false);
        hosts.hosts[1].fail();
        assert!(until(SOON, || said_since(&watched, before, "unprotected")), "{}", watched.said());
        assert!(until(SOON, || count().is_some()) && has_address(&hosts.hosts[0]) && hosts.hosts[0].runs(pid));
        assert!(!watched.said().contains("nobody answers here"), "{}", watched.said());
        kill(&hosts, 2, &mut witness);
    }

    /// Neither the other one nor the witness is heard: nobody answers until one of them is. The same when the witness has no room to
    /// write down what it would grant.
    fn a_primary_that_hears_nobody() {
        let lab = Lab::new("witness-alone");
        let small = |hosts: &Hosts| {
            hosts.hosts[2].plain("mkdir", &["-p", "/var/lib/meio"]);
            hosts.hosts[2].plain("mount", &["-t", "tmpfs", "-o", "size=256k", "small", "/var/lib/meio"]);
        };
        let (hosts, _, mut killed, watched, counter) = guarded(&lab, small);
        kill(&hosts, 2, &mut killed);
        let before = watched.said().len();
        part(&hosts);
        assert!(until(SOON, || said_since(&watched, before, "nobody answers here")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(stands_still(&counter, Duration::from_secs(2)) && !has_address(&hosts.hosts[1]), "{}", noted(&hosts));
        let mut witness = witness(&lab, &hosts);
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        assert!(has_address(&hosts.hosts[0]) && !has_address(&hosts.hosts[1]));
        let before = watched.said().len();
        together(&hosts);
        assert!(until(SOON, || said_since(&watched, before, PROTECTED)), "{}\n{}", watched.said(), noted(&hosts));
        // Nothing more can be written.
        let fill = "cat /dev/zero > /var/lib/meio/fill 2> /dev/null; [ -s /var/lib/meio/fill ]";
        hosts.hosts[2].plain("bash", &["-c", fill]);
        let before = watched.said().len();
        part(&hosts);
        assert!(until(SOON, || said_since(&watched, before, "cannot make anything durable")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || said_since(&watched, before, "nobody answers here")), "{}\n{}", watched.said(), noted(&hosts));
        assert!(stands_still(&counter, Duration::from_secs(2)) && !has_address(&hosts.hosts[1]), "{}", noted(&hosts));
        hosts.hosts[2].plain("rm", &["/var/lib/meio/fill"]);
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        counter.end();
        // Whichever of them has asked first then.
        assert_ne!(has_address(&hosts.hosts[0]), has_address(&hosts.hosts[1]));
        kill(&hosts, 2, &mut witness);
    }

    /// By hand, with the leave of the witness: its lease is given back and not waited for, and the generation is the standby's.
    fn switched_over_by_hand() {
        let lab = Lab::new("witness-switch");
        let (hosts, pid, mut witness, mut watched, counter) = guarded(&lab, |_| {});
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        standing(here, "protected");
        let (code, said) = meio(here, &["switchover", "web", "--json", "--to", &there.address]);
        assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        let done: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        println!("\nhold: switch-over with a witness: {} {}", done["frozen_ms"], done["steps"]);
        // A lease would have been 1875 ms.
        assert!(done["generation"] == 2 && done["frozen_ms"].as_f64().is_some_and(|ms| ms < 1500.0), "{done}");
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        counter.end();
        let ended = watched.meio.wait().expect("it ends");
        assert!(matches!(ended.code(), Some(0 | 3)) && watched.said().contains("as was wanted, and nothing of it is left here"), "{}", watched.said());
        assert!(!here.lives(pid) && there.runs(pid) && !has_address(here) && has_address(there), "{}", noted(&hosts));
        let one = standing(there, "running");
        assert!(one["generation"] == 2 && one["witness"]["trouble"].is_null(), "{one}");
        let told = fs::read_to_string(lab.path("witness.err")).expect("it says something");
        assert!(told.contains("web: generation 2 is the Standby's"), "{told}");
        kill(&hosts, 2, &mut witness);
    }

    /// Without the witness nobody is switched over to: when it has just been lost the tree stands still for a moment, and goes on here;
    /// when that is known it is not even touched.
    fn not_switched_over_without_the_witness() {
        let lab = Lab::new("witness-no-switch");
        let (hosts, pid, mut killed, watched, counter) = guarded(&lab, |_| {});
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        let is_here = || here.runs(pid) && has_address(here) && !has_address(there) && !there.lives(pid);
        let yielded = || history(here).iter().filter(|event| event["event"] == "yielding").count();
        standing(here, "protected");
        kill(&hosts, 2, &mut killed);
        let (code, said) = meio(here, &["switchover", "web"]);
        assert!(code == 1 && said.contains("the witness 10.99.0.3:26346 did not let it"), "{code}: {said}\n{}\n{}", watched.said(), noted(&hosts));
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, is_here), "{}\n{}", watched.said(), noted(&hosts));
        assert_eq!(yielded(), 1);
        assert!(until(SOON, || !standing(here, "protected")["witness"]["trouble"].is_null()), "{}", watched.said());
        let (code, said) = meio(here, &["switchover", "web"]);
        assert!(code == 1 && said.contains("the witness 10.99.0.3:26346, which has to let it, does not answer"), "{said}");
        assert!(yielded() == 1 && until(SOON, is_here) && counter.go_on(20), "{}", watched.said());
        // It is asked again, and lets it.
        let mut witness = witness(&lab, &hosts);
        assert!(until(SOON, || standing(here, "protected")["witness"]["trouble"].is_null()), "{}", watched.said());
        let (code, said) = meio(here, &["switchover", "web"]);
        assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        counter.end();
        assert!(until(SOON, || there.runs(pid) && has_address(there) && !has_address(here)), "{}", noted(&hosts));
        kill(&hosts, 2, &mut witness);
    }

    /// What a watch cannot begin with is said, and the tree goes on.
    fn a_witness_that_is_not_there() {
        let lab = Lab::new("witness-none");
        let (hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let ends = |more: &[&str], code: i32, why: &str| {
            let mut watched = Watched::start(&lab, &hosts, pid, &[&["--name", "web", "--witness", THIRD], more].concat());
            let done = watched.meio.wait().expect("it ends");
            assert!(done.code() == Some(code) && watched.said().contains(why), "{done:?} {}", watched.said());
            assert!(hosts.hosts[0].runs(pid) && has_address(&hosts.hosts[0]));
        };
        ends(&[], 15, "the witness 10.99.0.3:26346 does not answer");
        let wrong = lab.path("wrong.key");
        fs::write(&wrong, "something else\n").expect("a file");
        let wrong = wrong.display().to_string();
        ends(&["--witness-key", &wrong], 2, "this is not the key of a witness");
    }
}
