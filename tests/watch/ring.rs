//! Several hosts stand by, one takes over, and all that are there stand by for it: nobody has to do anything.

use super::comeback::{lose_power, stands};
use super::control::{meio, status};
use super::load::Load;
use super::several::{guarded, guarded_by, lose, noted};
use super::{Counter, SLOW, Watched, has_address, oldest};
use crate::lab::hosts::{Host, Hosts};
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::path::Path;

/// The one that has the address.
fn runs_on(hosts: &Hosts, of: &[usize]) -> usize {
    let with: Vec<usize> = of.iter().copied().filter(|n| has_address(&hosts.hosts[*n])).collect();
    assert_eq!(with.len(), 1, "{with:?} have the address: {}", noted(hosts));
    with[0]
}

/// Hosts that stand by and have everything, as this one knows.
fn ready(hosts: &Hosts, here: usize) -> Vec<String> {
    let (_, said) = meio(&hosts.hosts[here], &["status", "web", "--json"]);
    let all: Value = serde_json::from_str(&said).unwrap_or_default();
    let one = &all["watches"][0];
    let host = |one: &Value| one["host"].as_str().filter(|_| one["state"] == "ready").map(str::to_owned);
    let mut ready: Vec<String> = match one["standbys"].as_array().filter(|all| !all.is_empty()) {
        Some(all) => all.iter().filter_map(host).collect(),
        None => one["other"].as_str().filter(|_| one["state"] == "protected").map(str::to_owned).into_iter().collect(),
    };
    ready.sort();
    ready
}

/// This host runs it, and exactly these stand by for it.
pub fn guards(hosts: &Hosts, here: usize, others: &[usize], watched: &Watched, pid: i32) {
    let mut names: Vec<String> = others.iter().map(|n| format!("host{}", n + 1)).collect();
    names.sort();
    let all = || stands(&hosts.hosts[here], "primary", "protected") && ready(hosts, here) == names;
    let said = || format!("{}\n{}\n{}", status(&hosts.hosts[here]), watched.said(), noted(hosts));
    assert!(until(2 * SOON, all), "{names:?} do not stand by for host{}: {}", here + 1, said());
    for n in others {
        let other = &hosts.hosts[*n];
        // The primary knows it a moment before who looks there can.
        assert!(until(SOON, || stands(other, "standby", "ready")), "host{}: {}", n + 1, said());
        assert!(!other.lives(pid) && !has_address(other), "host{}: {}", n + 1, said());
    }
    assert!(until(SOON, || hosts.hosts[here].runs(pid)) && has_address(&hosts.hosts[here]), "{}", said());
}

/// What has ended on a host, and whose end nobody has taken notice of.
fn zombies(host: &Host) -> Vec<String> {
    let all = host.plain("ps", &["-eo", "stat=,ppid=,pid=,args="]);
    all.lines().filter(|line| line.starts_with('Z')).map(str::to_owned).collect()
}

fn fails(hosts: &mut Hosts, n: usize) {
    hosts.wire(n, false);
    hosts.hosts[n].fail();
}

fn ends(counter: Counter, watched: &Watched, hosts: &Hosts) {
    assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(hosts));
    counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(hosts)));
}

crate::alone! {
    /// One of three takes over: the other two stand by for it, together. When it is lost, too, one of these takes over.
    fn one_host_after_the_other() {
        let lab = Lab::new("ring-lost");
        let (mut hosts, pid, mut watched, counter) = guarded_by(&lab, 3, &[]);
        lose(&mut hosts, &mut watched);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let here = runs_on(&hosts, &[1, 2, 3]);
        let others: Vec<usize> = (1..4).filter(|n| *n != here).collect();
        guards(&hosts, here, &others, &watched, pid);
        fails(&mut hosts, here);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let next = runs_on(&hosts, &others);
        let last: Vec<usize> = others.into_iter().filter(|n| *n != next).collect();
        guards(&hosts, next, &last, &watched, pid);
        ends(counter, &watched, &hosts);
    }

    /// The primary is cut off from everybody, and comes back: nothing of the tree is left there, and it stands by beside the other one.
    /// So does each that is cut off then; and who stands by is changed where it was taken over.
    fn a_cable_that_is_pulled() {
        let lab = Lab::new("ring-cable");
        let (hosts, pid, watched, counter) = guarded(&lab, &[]);
        let mut here = 0;
        for _ in 0..2 {
            hosts.wire(here, false);
            assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
            let others: Vec<usize> = (0..3).filter(|n| *n != here).collect();
            let next = runs_on(&hosts, &others);
            assert!(!has_address(&hosts.hosts[here]), "{}", noted(&hosts));
            hosts.wire(here, true);
            let others: Vec<usize> = (0..3).filter(|n| *n != next).collect();
            guards(&hosts, next, &others, &watched, pid);
            here = next;
        }
        let other = (0..3).find(|n| *n != here).expect("another one");
        let rest = 3 - here - other;
        let (code, said) = meio(&hosts.hosts[here], &["remove-standby", "web", &hosts.hosts[other].address]);
        assert_eq!(code, 0, "{said}\n{}", noted(&hosts));
        guards(&hosts, here, &[rest], &watched, pid);
        assert_eq!(meio(&hosts.hosts[other], &["status", "web"]).0, 10, "{}", noted(&hosts));
        let (code, said) = meio(&hosts.hosts[here], &["add-standby", "web", &hosts.hosts[other].address]);
        assert_eq!(code, 0, "{said}\n{}", noted(&hosts));
        guards(&hosts, here, &[other, rest], &watched, pid);
        ends(counter, &watched, &hosts);
    }

    /// The primary's host loses its power, and boots again: the same command stands by, and the host takes over again.
    fn a_host_that_boots_again() {
        let lab = Lab::new("ring-boot");
        let (mut hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        lose_power(&hosts.hosts[0]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let here = runs_on(&hosts, &[1, 2]);
        let watched = Watched::start(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--standby", "10.99.0.3"]].concat());
        assert!(until(SOON, || watched.said().contains("it is not known who runs it")), "{}", watched.said());
        hosts.wire(0, true);
        guards(&hosts, here, &[0, 3 - here], &watched, pid);
        fails(&mut hosts, here);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let next = runs_on(&hosts, &[0, 3 - here]);
        guards(&hosts, next, &[3 - here - next], &watched, pid);
        ends(counter, &watched, &hosts);
    }

    /// Round and round under load, `ROUNDS` times (four without it): each takes over from the one before as is wanted, the other two stand
    /// by for it, no connection is lost, and nothing that clients were told.
    fn round_and_round_under_load() {
        let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse::<usize>().ok()).unwrap_or(4);
        let lab = Lab::new("ring-rolling");
        let (hosts, pid, watched, counter) = guarded(&lab, &[]);
        let load = Load::begin();
        let mut frozen = Vec::new();
        for round in 0..rounds {
            let (here, next) = (round % 3, (round + 1) % 3);
            guards(&hosts, here, &[next, (round + 2) % 3], &watched, pid);
            let (code, said) = meio(&hosts.hosts[here], &["switchover", "web", "--json", "--to", &hosts.hosts[next].address]);
            assert_eq!(code, 0, "round {round}: {said}\n{}\n{}", watched.said(), noted(&hosts));
            let done: Value = serde_json::from_str(&said).expect("JSON");
            assert_eq!(done["host"], format!("host{}", next + 1), "{done}");
            frozen.push(done["frozen_ms"].as_f64().expect("a time"));
            println!("\nhold: switch-over {round}: {} {}", done["frozen_ms"], done["steps"]);
            assert!(counter.go_on(50), "round {round}: {}\n{}", watched.said(), noted(&hosts));
        }
        let here = rounds % 3;
        guards(&hosts, here, &[(here + 1) % 3, (here + 2) % 3], &watched, pid);
        // Nothing is left of what they were before, although the same processes go on.
        let left = || hosts.hosts.iter().flat_map(zombies).collect::<Vec<_>>();
        assert!(until(SOON, || left().is_empty()), "{:?}", left());
        let answers = load.finish().unwrap_or_else(|e| panic!("{e}\n{}", noted(&hosts)));
        let gaps = counter.finish().unwrap_or_else(|e| panic!("{e}\n{}", noted(&hosts)));
        let (one, longest) = (gaps.len() + 1, gaps.last().copied().unwrap_or_default());
        println!("\nhold: {rounds} switch-overs, {one} answers of one client, one after {longest:.0?} at most; {answers} of the others");
        frozen.sort_by(f64::total_cmp);
        println!("\nhold: frozen for {frozen:?} ms");
        assert!(frozen[rounds / 2] < 1000.0, "{frozen:?}");
    }

    /// A host that is away is taken out of it: it is told so when it is back, and what stood still there is ended. Named again it stands
    /// by, asked by the host that runs it, though nobody starts a meio there. Cut off when the watch is ended it hears of that later.
    fn a_host_that_is_taken_out() {
        let lab = Lab::new("ring-out");
        let (hosts, pid, mut watched, counter) = guarded(&lab, &[]);
        hosts.wire(0, false);
        assert!(counter.go_on(50), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let here = runs_on(&hosts, &[1, 2]);
        let rest = 3 - here;
        guards(&hosts, here, &[rest], &watched, pid);
        let (code, said) = meio(&hosts.hosts[here], &["remove-standby", "web", "10.99.0.1"]);
        assert_eq!(code, 0, "{said}\n{}", noted(&hosts));
        hosts.wire(0, true);
        let ended = until(SOON, || watched.meio.try_wait().is_ok_and(|done| done.is_some()));
        assert!(ended, "it does not end: {}\n{}", watched.said(), noted(&hosts));
        let first = &hosts.hosts[0];
        assert!(meio(first, &["status", "web"]).0 == 10 && !first.lives(pid) && !has_address(first), "{}", watched.said());
        guards(&hosts, here, &[rest], &watched, pid);

        let (code, said) = meio(&hosts.hosts[here], &["add-standby", "web", "10.99.0.1"]);
        assert_eq!(code, 0, "{said}\n{}\n{}", status(first), noted(&hosts));
        guards(&hosts, here, &[0, rest], &watched, pid);
        hosts.wire(0, false);
        assert!(until(SOON, || ready(&hosts, here).len() == 1) && counter.go_on(50), "{}", noted(&hosts));
        let (code, said) = meio(&hosts.hosts[here], &["unwatch", "web"]);
        assert!(matches!(code, 0 | 3), "{code}: {said}");
        hosts.wire(0, true);
        for n in [0, rest] {
            let gone = || meio(&hosts.hosts[n], &["status", "web"]).0 == 10;
            assert!(until(SOON, gone), "host{} goes on: {}\n{}", n + 1, status(&hosts.hosts[n]), noted(&hosts));
        }
        ends(counter, &watched, &hosts);
        assert!(hosts.hosts[here].runs(pid) && has_address(&hosts.hosts[here]));
    }

    /// A host that stands by loses its power, and boots again: the one that runs it asks it to stand by, and nobody starts a meio there. The
    /// meio that has let all the others in is killed: one of these takes over, and what was left is ended there; or another one goes on.
    fn a_meio_that_is_killed_where_all_come() {
        let lab = Lab::new("ring-door");
        let (hosts, pid, watched, counter) = guarded(&lab, &[]);
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web", "--to", "10.99.0.2"]);
        assert_eq!(code, 0, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        guards(&hosts, 1, &[0, 2], &watched, pid);
        hosts.wire(2, false);
        lose_power(&hosts.hosts[2]);
        assert!(until(SOON, || ready(&hosts, 1) == ["host1"]), "{}", noted(&hosts));
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        hosts.hosts[2].serve_again(&lab);
        hosts.wire(2, true);
        guards(&hosts, 1, &[0, 2], &watched, pid);
        hosts.hosts[1].plain("kill", &["-KILL", &oldest(&hosts.hosts[1])]);
        // Who calls before that has another one go on there, and all stand by for that; it is the same to those who count.
        let leads = |n: &usize| has_address(&hosts.hosts[*n]) && stands(&hosts.hosts[*n], "primary", "protected");
        let leader = || (0..3).find(leads);
        assert!(until(2 * SOON, || leader().is_some()), "nobody takes over: {}\n{}", watched.said(), noted(&hosts));
        let here = leader().expect("one");
        let others: Vec<usize> = (0..3).filter(|n| *n != here).collect();
        guards(&hosts, here, &others, &watched, pid);
        // What is noted is noted once.
        let log = hosts.hosts[others[0]].plain("bash", &["-c", "cat /var/lib/meio/watch/web.log; true"]);
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines.windows(2).all(|two| two[0] != two[1]), "{log}");
        ends(counter, &watched, &hosts);
    }

    /// The host that is to take over cannot: it goes on where it was, and all stand by again as soon as they can. Where it cannot be reached
    /// any more the others do without it.
    fn a_switch_over_that_falls_back() {
        let lab = Lab::new("ring-back");
        let (hosts, pid, watched, counter) = guarded(&lab, &["--connect-timeout", "3s"]);
        // Somebody has its pid there.
        let taken = format!("for n in {{1..100}}; do echo {} > /proc/sys/kernel/ns_last_pid; sleep 1000 & [ $! = {pid} ] && exit; kill $!; done; exit 1", pid - 1);
        let output = std::process::Stdio::null;
        let done = hosts.hosts[1].command(Path::new("bash")).args(["-c", &taken]).stdout(output()).stderr(output()).status();
        assert!(done.expect("it starts").success());
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web", "--to", "10.99.0.2"]);
        assert!(code == 1 && said.contains("web goes on here: ") && said.contains(&pid.to_string()), "{code}: {said}");
        assert!(counter.go_on(50), "it does not go on: {}\n{}", watched.said(), noted(&hosts));
        hosts.hosts[1].plain("kill", &[&pid.to_string()]);
        guards(&hosts, 0, &[1, 2], &watched, pid);
        // It is lost before that is known here.
        hosts.wire(2, false);
        let (code, said) = meio(&hosts.hosts[0], &["switchover", "web", "--to", "10.99.0.3"]);
        assert!(code == 1 && said.contains("web goes on here: "), "{code}: {said}\n{}", watched.said());
        guards(&hosts, 0, &[1], &watched, pid);
        assert!(watched.said().contains("10.99.0.3 cannot be reached: the others stand by without it"), "{}", watched.said());
        ends(counter, &watched, &hosts);
    }
}
