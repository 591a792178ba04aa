//! Who stands by is changed while the tree runs.

use super::comeback::stands;
use super::control::{meio, status};
use super::links::heal;
use super::several::{both, goes_on, guarded, lose, noted};
use super::{Counter, SLOW, Watched, has_address, machines, redis_on};
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};
use std::path::Path;
use std::process::{Child, Stdio};

/// A redis on the first of three hosts, watched by the second one alone, and a client that counts.
fn guarded_by_one(lab: &Lab, more: &[&str]) -> (Hosts, i32, Watched, Counter) {
    let (hosts, pid) = redis_on(lab, machines(lab, 3));
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web"], more].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    (hosts, pid, watched, counter)
}

fn change(hosts: &Hosts, watched: &Watched, command: &str, host: &str) {
    let (code, said) = meio(&hosts.hosts[0], &[command, "web", host]);
    assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(hosts));
}

/// A third one is to stand by, too, and can be had when it is looked at. When the watch has ended for that nothing gets from the first
/// host to these any more, until [`heal`].
fn one_more_until_cut(lab: &Lab, from: &[usize]) -> (Hosts, i32, Watched, Counter, Child) {
    let cut = from.iter().map(|n| format!("ip rule add blackhole to 10.99.0.{n} pref 5")).collect::<Vec<_>>().join("; ");
    let hook = format!("test $MEIO_EVENT$MEIO_ROLE != overprimary || {{ {cut}; }}");
    let (hosts, pid, watched, counter) = guarded_by_one(lab, &["--on-event", &hook]);
    let mut command = hosts.hosts[0].command(Path::new(crate::MEIO));
    command.args(["add-standby", "web", "10.99.0.3"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let asked = command.spawn().expect("it starts");
    (hosts, pid, watched, counter, asked)
}

/// It says that it could not be, and that those stand by who did before: the second one alone, as protected as it was.
fn as_before(hosts: &Hosts, watched: &Watched, asked: Child) {
    let done = asked.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.code() == Some(1) && said.contains("web goes on with those who stood by before: "), "{said}\n{}", watched.said());
    assert!(watched.said().contains("those stand by again who did before: "), "{}", watched.said());
    let stand = || stands(&hosts.hosts[0], "primary", "protected") && stands(&hosts.hosts[1], "standby", "ready");
    assert!(until(SOON, stand), "{}\n{}", watched.said(), noted(hosts));
    let one = status(&hosts.hosts[0]);
    assert!(one["standbys"].is_null() && one["refused"].is_string(), "{one}");
    let gone = || meio(&hosts.hosts[2], &["status", "web"]).0 == 10;
    assert!(until(SOON, gone), "something is left: {}", noted(hosts));
}

/// The second one takes over alone.
fn one_goes_on(hosts: &mut Hosts, watched: &mut Watched, counter: Counter, pid: i32) {
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(hosts));
    lose(hosts, watched);
    assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    assert!(hosts.hosts[1].runs(pid) && has_address(&hosts.hosts[1]), "{}", noted(hosts));
    counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(hosts)));
}

crate::alone! {
    /// A second one is added to one that stands by, with connections that go on: they vote from then on.
    fn one_more() {
        let lab = Lab::new("changed-more");
        let (mut hosts, pid, mut watched, counter) = guarded_by_one(&lab, &[]);
        change(&hosts, &watched, "add-standby", "10.99.0.3");
        assert!(both(&hosts, "ready") == 2, "{}", status(&hosts.hosts[0]));
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        lose(&mut hosts, &mut watched);
        goes_on(&hosts, &watched, counter, pid);
    }

    /// One of two is removed: nothing of the watch is left there, and the other one takes over without asking anybody.
    fn one_less() {
        let lab = Lab::new("changed-less");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        change(&hosts, &watched, "remove-standby", "host3");
        assert!(stands(&hosts.hosts[0], "primary", "protected") && status(&hosts.hosts[0])["standbys"].is_null());
        let gone = || meio(&hosts.hosts[2], &["status", "web"]).0 == 10;
        assert!(until(SOON, gone), "something is left: {}", noted(&hosts));
        one_goes_on(&mut hosts, &mut watched, counter, pid);
    }

    /// One of two that is lost is removed; when it is back it can do nothing, and a user ends what is left there.
    fn one_that_is_lost() {
        let lab = Lab::new("changed-lost");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(2, false);
        assert!(until(SOON, || both(&hosts, "lost") == 1), "{}\n{}", status(&hosts.hosts[0]), watched.said());
        change(&hosts, &watched, "remove-standby", "10.99.0.3");
        hosts.wire(2, true);
        one_goes_on(&mut hosts, &mut watched, counter, pid);
        assert!(!has_address(&hosts.hosts[2]) && !hosts.hosts[2].runs(pid), "{}", noted(&hosts));
        let (code, said) = meio(&hosts.hosts[2], &["unwatch", "web"]);
        assert!([0, 3].contains(&code), "{code}: {said}");
    }

    /// One that is to stand by, too, is lost when the watch has ended for it already: it goes on as it was, with connections that go
    /// on, and whoever wanted that is told.
    fn one_that_is_lost_meanwhile() {
        let lab = Lab::new("changed-meanwhile");
        let (mut hosts, pid, mut watched, counter, asked) = one_more_until_cut(&lab, &[3]);
        as_before(&hosts, &watched, asked);
        one_goes_on(&mut hosts, &mut watched, counter, pid);
    }

    /// The same, and the one that stood by is not reached either for a while: the service goes on, nobody says that it is protected, and
    /// it is as soon as that one is reached.
    fn all_that_are_lost_meanwhile() {
        let lab = Lab::new("changed-all");
        let (mut hosts, pid, mut watched, counter, asked) = one_more_until_cut(&lab, &[2, 3]);
        assert!(until(2 * SOON, || watched.said().contains("nobody stands by: ")), "{}", watched.said());
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        assert!(!stands(&hosts.hosts[0], "primary", "protected") && has_address(&hosts.hosts[0]), "{}", watched.said());
        heal(&hosts, 0);
        heal(&hosts, 0);
        as_before(&hosts, &watched, asked);
        one_goes_on(&mut hosts, &mut watched, counter, pid);
    }

    /// What cannot be is said, and nothing changes.
    fn what_is_refused() {
        let lab = Lab::new("changed-refused");
        let (hosts, _pid, watched, counter) = guarded_by_one(&lab, &[]);
        let before = status(&hosts.hosts[0])["epoch"]["series"].clone();
        for (command, host, code, what) in [
            ("add-standby", "10.99.0.2", 2, "stands by for web already"),
            ("add-standby", "10.99.0.9", 15, ""),
            ("remove-standby", "10.99.0.3", 2, "does not stand by for web"),
            ("remove-standby", "10.99.0.2", 2, "is the only one"),
        ] {
            let (is, said) = meio(&hosts.hosts[0], &[command, "web", host]);
            assert!(is == code && said.contains(what), "{command} {host}: {is}: {said}");
        }
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        assert!(stands(&hosts.hosts[0], "primary", "protected") && status(&hosts.hosts[0])["epoch"]["series"] == before);
        let (code, said) = meio(&hosts.hosts[1], &["add-standby", "web", "10.99.0.3"]);
        assert!(code == 1 && said.contains("this is a standby"), "{code}: {said}");
        counter.end();
    }
}
