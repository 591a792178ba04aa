//! A command that ends the other host comes before everything else.

use super::{Counter, SLOW, Watched, has_address, noted, redis};
use crate::lab::{Lab, SOON, until};
use std::fs;

/// Notes who is to be ended, and does it only when that is allowed.
fn command(lab: &Lab) -> String {
    let [asked, allowed] = ["asked", "allowed"].map(|name| lab.path(name).display().to_string());
    format!("echo $MEIO_HOST >> {asked}; test -e {allowed}")
}

fn asked(lab: &Lab) -> String {
    fs::read_to_string(lab.path("asked")).unwrap_or_default()
}

/// One of both is lost; whoever is left waits for the command, and says who is to be ended.
fn loses(name: &str, lost: usize) {
    let lab = Lab::new(name);
    let (mut hosts, pid) = redis(&lab);
    let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--fence", &command(&lab)]].concat());
    let counter = Counter::begin();
    assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
    assert!(until(SOON, || watched.is_protected()), "{}\n{}", watched.said(), noted(&hosts));
    hosts.wire(lost, false);
    hosts.hosts[lost].fail();
    let said = |watched: &Watched| if lost == 0 { watched.said() + &noted(&hosts) } else { watched.said() };
    // It is tried again until it succeeds.
    assert!(until(SOON, || asked(&lab).lines().count() >= 2), "{}\n{}", asked(&lab), said(&watched));
    assert!(asked(&lab).lines().all(|host| host == format!("host{}", lost + 1)), "{}", asked(&lab));
    let left = &hosts.hosts[1 - lost];
    assert!(!has_address(left), "somebody answers: {}", said(&watched));
    fs::write(lab.path("allowed"), "").expect("file");
    assert!(counter.go_on(50), "it does not go on: {}\n{}", asked(&lab), said(&watched));
    counter.end();
    assert!(has_address(left) && left.runs(pid));
    if lost == 0 {
        let _ = watched.meio.wait();
    }
}

crate::alone! {
    fn the_primary_is_ended_before_the_standby_takes_over() {
        loses("watch-fence", 0);
    }

    fn the_standby_is_ended_before_the_primary_goes_on() {
        loses("watch-fence-back", 1);
    }
}
