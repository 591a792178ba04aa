//! Who stands by is changed while the tree runs.

use super::comeback::stands;
use super::control::{meio, status};
use super::several::{both, goes_on, guarded, lose, noted};
use super::{Counter, SLOW, Watched, has_address, machines, redis_on};
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};

/// A redis on the first of three hosts, watched by the second one alone, and a client that counts.
fn guarded_by_one(lab: &Lab) -> (Hosts, i32, Watched, Counter) {
    let (hosts, pid) = redis_on(lab, machines(lab, 3));
    let watched = Watched::with(lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    (hosts, pid, watched, counter)
}

fn change(hosts: &Hosts, watched: &Watched, command: &str, host: &str) {
    let (code, said) = meio(&hosts.hosts[0], &[command, "web", host]);
    assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(hosts));
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
        let (mut hosts, pid, mut watched, counter) = guarded_by_one(&lab);
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

    /// What cannot be is said, and nothing changes.
    fn what_is_refused() {
        let lab = Lab::new("changed-refused");
        let (hosts, _pid, watched, counter) = guarded_by_one(&lab);
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
