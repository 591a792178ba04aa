//! Watches, seen and commanded from the outside.

use super::{PROTECTED, SLOW, Watched, ask, count, has_address, noted, oldest, redis};
use crate::lab::hosts::{Host, VIP};
use crate::lab::terminal::Terminal;
use crate::lab::{Lab, SOON, until};
use serde_json::Value;
use std::path::Path;

/// `meio` on a host: exit code and all that it says.
pub fn meio(host: &Host, arguments: &[&str]) -> (i32, String) {
    let done = host.command(Path::new(crate::MEIO)).args(arguments).output().expect("it starts");
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (done.status.code().expect("an exit code"), text)
}

/// The one watch that a host knows of.
pub fn status(host: &Host) -> Value {
    let (code, text) = meio(host, &["status", "--json"]);
    assert_eq!(code, 0, "{text}");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["watches"].as_array().map(Vec::len), Some(1), "{value}");
    value["watches"][0].clone()
}

/// The same once it stands so; a machine that was busy for long may have had the standby begin anew.
pub fn standing(host: &Host, state: &str) -> Value {
    let mut one = Value::Null;
    let stands = until(SOON, || {
        one = status(host);
        one["state"] == state
    });
    assert!(stands, "it is not {state}: {one}");
    one
}

/// Which epoch: later ones are greater.
fn epoch(of: &Value) -> (Option<u64>, Option<u64>) {
    (of["epoch"]["series"].as_u64(), of["epoch"]["number"].as_u64())
}

/// Nothing of a watch is on a host.
pub fn is_clean(host: &Host) -> bool {
    const LIST: &str = "ls -A /var/lib/meio/watch /run/meio 2>&1; nft list tables";
    let left = host.command(Path::new("bash")).args(["-c", LIST]).output().expect("bash starts").stdout;
    let left = String::from_utf8_lossy(&left).into_owned();
    let processes = host.command(Path::new("pgrep")).args(["-x", "meio"]).output().expect("pgrep starts").stdout;
    processes.is_empty() && !left.contains("web") && !left.contains("tree") && !left.contains("meio-")
}

/// What `meio watch` says that does not begin, and its exit code.
fn refused(lab: &Lab, host: &Host, arguments: &[&str]) -> (i32, String) {
    let (known, key) = (lab.path("known").display().to_string(), lab.path("key").display().to_string());
    let way = ["watch", "--known-hosts", &known, "--identity", &key, "--remote-path", crate::MEIO];
    meio(host, &[&way, arguments].concat())
}

crate::alone! {
    /// One watch from its beginning to its end, as both hosts tell of it.
    fn it_is_seen_and_commanded() {
        let lab = Lab::new("watch-control");
        let (hosts, pid) = redis(&lab);
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        assert_eq!(meio(here, &["status"]), (0, "nothing is watched on this host\n".to_owned()));
        assert!(meio(here, &["status", "web"]).0 == 10 && meio(here, &["checkpoint", "web"]).0 == 10 && meio(here, &["unwatch", "web"]).0 == 10);
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        let one = standing(here, "protected");
        assert!(one["role"] == "primary" && one["pid"] == pid && one["name"] == "web", "{one}");
        assert!(one["generation"] == 1 && one["epoch"]["number"].as_u64() > Some(1) && one["age_ms"].as_f64() < Some(60_000.0), "{one}");
        assert!(one["other"] == "host2" && one["at"][0] == VIP && one["guarantee"] == "hold", "{one}");
        assert!(one["loses"].as_str().is_some_and(|loses| loses.starts_with("nothing that clients were told")), "{one}");
        let other = standing(there, "ready");
        assert!(other["role"] == "standby" && other["other"] == "host1", "{other}");
        for lines in [meio(here, &["status"]), meio(here, &["status", "web"]), meio(there, &["status", "web"])] {
            assert!(lines.0 == 0 && lines.1.contains("web") && lines.1.lines().all(|line| line.chars().count() <= 80), "{lines:?}");
        }
        // What was there before this is whole afterwards.
        assert!(until(SOON, || count().is_some()));
        let before = epoch(&status(here));
        let (code, said) = meio(here, &["checkpoint", "web", "--json"]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert!(code == 0 && epoch(&said) > before, "{said}");
        let (code, said) = meio(there, &["checkpoint", "web"]);
        assert!(code == 1 && said.contains("on host1"), "{said}");
        // Only root, and a group, may ask.
        for what in ["status", "checkpoint", "unwatch"] {
            let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", crate::MEIO, what, "web"];
            let done = here.command(Path::new("setpriv")).args(nobody).output().expect("setpriv starts");
            assert_eq!(done.status.code(), Some(11), "{what}: {}", String::from_utf8_lossy(&done.stderr));
        }
        // The same tree, or the same name, once more.
        let again = |more: &[&str]| refused(&lab, here, &[&["--standby", &there.address, "--guarantee", "hot"], more].concat());
        let (code, said) = again(&["--name", "other", &pid.to_string()]);
        assert!(code == 1 && said.contains("is watched already, as web"), "{said}");
        let sleeps = here.start(&lab, "sleep", &["1000"]).to_string();
        let (code, said) = again(&["--name", "web", &sleeps]);
        assert!(code == 1 && said.contains("at work on the watch web here"), "{said}");
        // The standby's users may end it, too: both hosts are as they were.
        let (code, said) = meio(there, &["unwatch", "web"]);
        assert_eq!(code, 0, "{said}");
        let done = watched.meio.wait().expect("it ends");
        assert!(matches!(done.code(), Some(0 | 3)), "{done:?} {}", watched.said());
        assert!(until(SOON, || is_clean(here) && is_clean(there)), "{}", noted(&hosts));
        assert!(until(SOON, || count().is_some()) && has_address(here) && here.runs(pid) && meio(here, &["status", "web"]).0 == 10);
    }

    /// Who is in the group that was named may ask, and command; a terminal shows how it stands, in place, until it is left.
    fn a_group_and_a_terminal() {
        let lab = Lab::new("watch-group");
        let (hosts, pid) = redis(&lab);
        let here = &hosts.hosts[0];
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web", "--control-group", "games"]].concat());
        standing(here, "protected");
        let member = |group: &str, what: &[&str]| {
            let nobody = ["--reset-env", "--reuid=65534", "--regid=65534", &format!("--groups={group}"), crate::MEIO];
            let done = here.command(Path::new("setpriv")).args(nobody).args(what).output().expect("setpriv starts");
            (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
        };
        for what in [&["status", "web"][..], &["checkpoint", "web"]] {
            let (code, said) = member("games", what);
            assert_eq!(code, Some(0), "{what:?}: {said}");
            assert_eq!(member("mail", what).0, Some(11), "{what:?}");
        }
        let mut terminal = Terminal::new();
        let mut watching = here.command(Path::new(crate::MEIO));
        let mut watching = terminal.start(watching.args(["status", "web", "--watch"]));
        terminal.expect("web");
        terminal.expect("protected");
        // Once more, over what was there.
        terminal.expect("\x1b[");
        terminal.expect("protected");
        terminal.press("\x03");
        assert!(until(SOON, || watching.try_wait().is_ok_and(|done| done.is_some())), "it does not end: {}", terminal.shown());
        assert!(watched.is_protected(), "{}", watched.said());
        let (code, said) = member("games", &["unwatch", "web"]);
        assert_eq!(code, Some(0), "{said}");
        let _ = watched.meio.wait();
        assert!(until(SOON, || is_clean(here)) && here.runs(pid) && has_address(here));
    }

    /// Both meios are killed: what they leave is seen, and cleaned up by hand.
    fn what_is_left_behind() {
        let lab = Lab::new("watch-left");
        let (hosts, pid) = redis(&lab);
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        let spool = lab.path("spool").display().to_string();
        std::fs::create_dir(&spool).expect("a folder");
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "3s", "--name", "web", "--spool", &spool]);
        // The one that would take over does not notice, and no other one can be called.
        there.plain("pkill", &["-STOP", "-x", "meio"]);
        here.plain("kill", &["-KILL", &oldest(here)]);
        let _ = watched.meio.wait();
        there.plain("pkill", &["-KILL", "-x", "meio"]);
        assert!(until(SOON, || !has_address(here)), "the address is kept");
        assert!(until(SOON, || status(here)["state"] == "left-behind" && status(there)["state"] == "left-behind"), "{}", status(here));
        let (code, said) = meio(here, &["status"]);
        assert!(code == 0 && said.contains("meio unwatch web"), "{said}");
        assert!(ask("GET n").is_none(), "it answers");
        assert_eq!(meio(here, &["checkpoint", "web"]).0, 10);
        let (code, said) = meio(here, &["unwatch", "web"]);
        assert!(code == 3 && said.contains("host2 could not be asked") && said.contains("the tree goes on here"), "{said}");
        let (code, said) = meio(there, &["unwatch", "web"]);
        assert!(code == 0 && said.contains("nothing of it is left here"), "{said}");
        assert!(until(SOON, || is_clean(here) && is_clean(there)), "{}", noted(&hosts));
        assert!(until(SOON, || count().is_some()) && has_address(here) && here.runs(pid));
        assert_eq!(std::fs::read_dir(&spool).expect("a folder").count(), 0);
    }

    /// Whatever stands in the way is said, with its code, and nothing was touched.
    fn what_does_not_begin() {
        let lab = Lab::new("watch-refused");
        let (hosts, pid) = redis(&lab);
        let [here, there] = [&hosts.hosts[0], &hosts.hosts[1]];
        let text = pid.to_string();
        let try_to = |more: &[&str]| refused(&lab, here, &[&["--vip", VIP, "--name", "web"], more, &[&text]].concat());
        let standby = ["--standby", there.address.as_str()];
        for absurd in [&["--interval", "0"][..], &["--interval", "2h", "--interval-max", "2h"], &["--interval", "5s"], &["--timeout", "10ms"], &["--timeout", "2h"]] {
            let (code, said) = try_to(&[&standby, absurd].concat());
            assert!(code == 2 && said.contains("must be"), "{absurd:?}: {said}");
        }
        let (code, said) = try_to(&[&standby[..], &["--control-group", "no-such-group"]].concat());
        assert!(code == 2 && said.contains("no group no-such-group"), "{said}");
        let (code, said) = try_to(&["--standby", &format!("{}:9", there.address)]);
        assert!(code == 15, "{said}");
        // Somebody else on the network has the address.
        let bridge = |what: &str| {
            let done = std::process::Command::new("ip").args(["address", what, VIP.split('@').next().expect("an address"), "dev", "br0"]).status();
            assert!(done.expect("ip starts").success());
        };
        bridge("add");
        let (code, said) = try_to(&standby);
        assert!(code == 13 && said.contains("somebody else on the network has it"), "{said}");
        bridge("del");
        // The name is taken at the standby.
        let claim = "mkdir -p /var/lib/meio/watch; exec flock /var/lib/meio/watch/web.claim sleep 1000";
        let mut other = there.command(Path::new("bash")).args(["-c", claim]).spawn().expect("bash starts");
        assert!(until(SOON, || meio(there, &["status"]).1.contains("silent")), "{}", meio(there, &["status"]).1);
        let (code, said) = try_to(&standby);
        assert!(code != 0 && said.contains("another meio is at work on the watch web"), "{code} {said}");
        let _ = other.kill();
        there.plain("pkill", &["-KILL", "-x", "sleep"]);
        let _ = other.wait();
        assert!(!said.contains(PROTECTED) && here.runs(pid) && has_address(here) && until(SOON, || count().is_some()));
        assert!(until(SOON, || is_clean(here)), "{}", noted(&hosts));
    }
}
