//! A standby that takes over since somebody wants it to.

use super::control::{is_clean, meio, standing, status};
use super::load::Load;
use super::{Counter, SLOW, Watched, count, has_address, noted, oldest, redis};
use crate::lab::hosts::Host;
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Exactly one of them has the tree and its address.
fn is_on(pid: i32, here: &Host, there: &Host) -> bool {
    here.runs(pid) && has_address(here) && !has_address(there)
}

/// What a host tells of the watch.
pub fn history(host: &Host) -> Vec<Value> {
    let (code, said) = meio(host, &["history", "web", "--json"]);
    assert_eq!(code, 0, "{said}");
    serde_json::from_str::<Value>(&said).expect("JSON")["events"].as_array().expect("events").clone()
}

crate::alone! {
    /// To and fro under load, `ROUNDS` times (five without it): the connections of clients live through all of it, nothing that they
    /// were told is lost or done twice, and never do two answer.
    fn to_and_fro_under_load() {
        let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse::<usize>().ok()).unwrap_or(5);
        let lab = Lab::new("watch-switch");
        let (mut hosts, pid) = redis(&lab);
        let (counter, load) = (Counter::begin(), Load::begin());
        let mut frozen = Vec::new();
        let told = lab.path("told");
        let hook = format!("echo $MEIO_NAME $MEIO_ROLE $MEIO_EVENT $MEIO_GENERATION >> {}", told.display());
        for round in 0..rounds {
            let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--on-event", &hook]].concat());
            let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
            assert!(counter.go_on(50), "round {round}: {}\n{}", watched.said(), noted(&hosts));
            standing(here, "protected");
            let (code, said) = meio(here, &["switchover", "web", "--json", "--to", &there.address]);
            assert_eq!(code, 0, "round {round}: {said}\n{}\n{}", watched.said(), noted(&hosts));
            let done: Value = serde_json::from_str(&said).expect("JSON");
            assert_eq!(done["generation"], 2, "{done}");
            assert!(done["host"].as_str().is_some_and(|host| watched.said().contains(host)), "{done}");
            frozen.push(done["frozen_ms"].as_f64().expect("a time"));
            println!("\nhold: switch-over {round}: {} {}", done["frozen_ms"], done["steps"]);
            assert!(counter.go_on(50), "round {round}: {}\n{}", watched.said(), noted(&hosts));
            let ended = watched.meio.wait().expect("it ends");
            assert!(matches!(ended.code(), Some(0 | 3)) && watched.said().contains("as was wanted, and nothing of it is left here"), "{}", watched.said());
            assert!(!here.lives(pid) && until(SOON, || is_on(pid, there, here)), "{}", noted(&hosts));
            assert!(until(SOON, || is_clean(here)), "something is left");
            for (host, wanted) in [(here, &["begun", "protected", "yielding", "switched"][..]), (there, &["standing-by", "ready", "taking-over", "taken-over"])] {
                let events = history(host);
                let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
                let mut rest = names.iter();
                assert!(wanted.iter().all(|one| rest.any(|name| name == one)), "{names:?}");
                let last = events.last().expect("an event");
                assert!(last["generation"] == 2 && last["epoch"] == done["epoch"] && !last["steps"].as_array().expect("steps").is_empty(), "{last}");
            }
            let one = standing(there, "running");
            assert!(one["generation"] == 2 && one["loses"].as_str().is_some_and(|loses| loses.contains("nobody stands by for it")), "{one}");
            // From there it is protected again.
            let (code, said) = meio(there, &["unwatch", "web"]);
            assert_eq!(code, 0, "{said}");
            assert!(until(SOON, || is_clean(there)), "something is left");
            hosts.hosts.swap(0, 1);
        }
        let answers = load.finish().unwrap_or_else(|e| panic!("{e}\n{}", noted(&hosts)));
        let gaps = counter.finish().unwrap_or_else(|e| panic!("{e}\n{}", noted(&hosts)));
        let (one, longest) = (gaps.len() + 1, gaps.last().copied().unwrap_or_default());
        println!("\nhold: {rounds} switch-overs, {one} answers of one client, one after {longest:.0?} at most; {answers} of the others");
        let told = std::fs::read_to_string(&told).expect("it was told");
        for wanted in ["web primary begun 1", "web primary switched 2", "web standby taken-over 2"] {
            assert!(told.lines().filter(|line| *line == wanted).count() == rounds, "{wanted}: {told}");
        }
        println!("\nhold: frozen for {frozen:?} ms");
        frozen.sort_by(f64::total_cmp);
        assert!(frozen[rounds / 2] < 1000.0, "{frozen:?}");
    }

    /// The standby's meio is killed at some moment of it: the tree runs on one of the hosts, and no answer is lost.
    fn a_standby_that_is_killed_meanwhile() {
        let lab = Lab::new("watch-switch-kill");
        let (hosts, pid) = redis(&lab);
        let watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        let counter = Counter::begin();
        for delay in [12u64, 20, 26, 32, 40, 50, 60, 75] {
            assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
            standing(here, "protected");
            let agent = oldest(there);
            let mut command = here.command(Path::new(crate::MEIO));
            let asked = command.args(["switchover", "web"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
            std::thread::sleep(Duration::from_millis(delay));
            let _ = there.command(Path::new("kill")).args(["-KILL", &agent]).status();
            let done = asked.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            println!("\nhold: killed after {delay} ms: {:?} {said}", done.status.code());
            assert!(counter.go_on(20), "nobody answers: {said}\n{}\n{}", watched.said(), noted(&hosts));
            if done.status.success() {
                assert!(until(SOON, || is_on(pid, there, here)), "{}", noted(&hosts));
                break;
            }
            assert!(matches!(done.status.code(), Some(1 | 15 | 16)), "{done:?}", done = done.status);
            // Another one stands by, or it had been taken over when that one was killed.
            let one = until(SOON, || is_on(pid, here, there)) || until(SOON, || is_on(pid, there, here));
            assert!(one, "{}", noted(&hosts));
            if !has_address(here) {
                break;
            }
        }
        counter.end();
    }

    /// What cannot be done is said, and nothing was touched.
    fn what_is_refused() {
        let lab = Lab::new("watch-switch-refused");
        let (hosts, pid) = redis(&lab);
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        assert_eq!(meio(here, &["switchover", "web"]).0, 10);
        let folder = lab.path("images").display().to_string();
        let mut series = here.command(Path::new(crate::MEIO)).args(["watch", "--dir", &folder, "--name", "kept", &pid.to_string()]).spawn().expect("it starts");
        assert!(until(SOON, || meio(here, &["status", "kept"]).0 == 0));
        let (code, said) = meio(here, &["switchover", "kept"]);
        assert!(code == 1 && said.contains("nobody stands by for kept"), "{said}");
        assert_eq!(meio(here, &["unwatch", "kept"]).0, 0);
        let _ = series.wait();
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "3s", "--name", "web"]);
        standing(here, "protected");
        let (code, said) = meio(here, &["switchover", "web", "--to", "elsewhere"]);
        assert!(code == 2 && said.contains("elsewhere does not stand by for web"), "{said}");
        let (code, said) = meio(there, &["switchover", "web"]);
        assert!(code == 1 && said.contains("on host1: meio switchover web"), "{said}");
        // One that does not answer cannot take over: the tree is not even stopped.
        let agent = oldest(there);
        there.plain("kill", &["-STOP", &agent]);
        std::thread::sleep(Duration::from_secs(4));
        let (code, said) = meio(here, &["switchover", "web"]);
        assert!(code != 0 && said.contains("could not take over web now"), "{said}");
        there.plain("kill", &["-CONT", &agent]);
        assert!(until(SOON, || count().is_some()) && until(SOON, || here.runs(pid)), "{}", watched.said());
        assert_eq!(status(here)["generation"], 1);
        assert_eq!(meio(here, &["unwatch", "web"]).0, 0);
        let _ = watched.meio.wait();
        assert!(until(SOON, || is_on(pid, here, there) && is_clean(here) && is_clean(there)), "{}", noted(&hosts));
    }

    /// Nothing waits while it is paused, and all is protected again afterwards.
    fn paused_for_a_while() {
        let lab = Lab::new("watch-paused");
        let (hosts, pid) = redis(&lab);
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        let counter = Counter::begin();
        standing(here, "protected");
        let (code, said) = meio(there, &["pause", "web"]);
        assert!(code == 1 && said.contains("on host1: meio pause web"), "{said}");
        let (code, said) = meio(here, &["pause", "web"]);
        assert!(code == 0 && said.contains("web is paused"), "{said}");
        let one = status(here);
        assert!(one["state"] == "paused" && one["loses"].as_str().is_some_and(|loses| loses.starts_with("everything: it is paused")), "{one}");
        let epochs = one["epochs"].as_u64();
        // Without epochs to wait for.
        assert!(counter.go_on(500), "{}", watched.said());
        assert_eq!(status(here)["epochs"].as_u64(), epochs);
        assert_eq!(standing(there, "starting")["epoch"], Value::Null);
        for refused in ["checkpoint", "switchover"] {
            let (code, said) = meio(here, &[refused, "web"]);
            assert!(code == 1 && said.contains("web"), "{refused}: {said}");
        }
        assert_eq!(meio(here, &["resume", "web"]).0, 0);
        assert!(standing(here, "protected")["epochs"].as_u64() > epochs);
        let (code, said) = meio(here, &["resume", "web"]);
        assert!(code == 1 && said.contains("web is not paused"), "{said}");
        assert!(counter.go_on(20), "{}", watched.said());
        counter.end();
        let names: Vec<String> = history(here).iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect();
        let from = names.iter().position(|name| name == "paused").expect("it is told");
        assert!(names[..from].contains(&"protected".to_owned()) && names[from..].contains(&"protected".to_owned()), "{names:?}");
        assert_eq!(meio(here, &["unwatch", "web"]).0, 0);
        let _ = watched.meio.wait();
        assert!(until(SOON, || is_on(pid, here, there) && is_clean(here) && is_clean(there)), "{}", noted(&hosts));
    }
}
