//! A machine that is emptied.

use crate::lab::hosts::{Host, Hosts};
use crate::lab::{Lab, SOON, until};
use crate::watch::{Counter, Watched, guarded, guards, has_address, machines, noted, redis_on};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// `meio drain` on a host: its exit code, what it writes, and what it says besides.
fn plain(lab: &Lab, host: &Host, arguments: &[&str]) -> (i32, String, String) {
    let (known, key) = (lab.path("known").display().to_string(), lab.path("key").display().to_string());
    let mut command = host.command(Path::new(crate::MEIO));
    command.args(["drain", "--known-hosts", &known, "--identity", &key, "--remote-path", crate::MEIO]).args(arguments);
    let done = command.output().expect("it starts");
    let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (done.status.code().expect("an exit code"), out, err)
}

/// The same with what it says last, for programs, and what else.
fn told(lab: &Lab, host: &Host, arguments: &[&str]) -> (i32, Value, String) {
    let (code, out, err) = plain(lab, host, &[&["--json"], arguments].concat());
    let last = out.lines().last().unwrap_or_else(|| panic!("{arguments:?} says nothing: {err}"));
    (code, serde_json::from_str(last).expect("JSON"), out.clone() + &err)
}

/// On the first host.
fn drain(lab: &Lab, hosts: &Hosts, arguments: &[&str]) -> (i32, Value, String) {
    told(lab, &hosts.hosts[0], arguments)
}

/// Names of the capsules of a host.
fn capsules(host: &Host) -> Vec<String> {
    let said: Value = serde_json::from_str(&host.plain(crate::MEIO, &["list", "--json"])).expect("JSON");
    said["capsules"].as_array().expect("capsules").iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
}

/// A program in a capsule that counts in a file, once it does.
fn counting(lab: &Lab, host: &Host, name: &str) {
    let file = lab.path(name).display().to_string();
    let script = format!("n=0; while :; do n=$((n + 1)); echo $n > {file}.new; mv {file}.new {file}; sleep 0.02; done");
    start(lab, host, name, &["sh", "-c", &script]);
}

fn start(lab: &Lab, host: &Host, name: &str, program: &[&str]) {
    let mut command = host.command(Path::new("sh"));
    // What is around it belongs to the test.
    command.args(["-c", "cd \"$FOLDER\" && exec \"$@\"", "sh", crate::MEIO, "run", "-d", "--name", name, "--"]).args(program);
    // What it writes to goes along.
    let log = || fs::File::options().create(true).append(true).open(lab.path("log")).expect("a file");
    let done = command.env("FOLDER", lab.path("")).stdout(log()).stderr(log()).status().expect("it starts");
    assert!(done.success(), "{name}: {}", lab.log());
    assert!(until(SOON, || lab.path(name).exists()), "{name} does not begin");
}

fn counted(lab: &Lab, name: &str) -> u64 {
    fs::read_to_string(lab.path(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// It counts on, from where it was.
fn goes_on(lab: &Lab, name: &str) -> bool {
    let before = counted(lab, name);
    until(SOON, || counted(lab, name) > before + 5)
}

fn names(list: &Value) -> Vec<(String, String)> {
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = list.as_array().expect("a list").iter().map(|one| (text(one, "name"), text(one, "kind"))).collect();
    all.sort();
    all
}

fn pair(name: &str, kind: &str) -> (String, String) {
    (name.to_owned(), kind.to_owned())
}

crate::alone! {
    /// A watched redis and two capsules go, and nobody notices more than a while; one that cannot go stays, is named with everything
    /// that stands in its way, and goes on. With --dry-run nothing goes.
    fn a_host_that_is_emptied() {
        let lab = Lab::new("drain");
        let (hosts, pid) = redis_on(&lab, machines(&lab, 3));
        let [here, there, third] = [&hosts.hosts[0], &hosts.hosts[1], &hosts.hosts[2]];
        for name in ["one", "two"] {
            counting(&lab, here, name);
        }
        // To be told of changes in two folders by signal is nothing that comes back.
        let program = "import fcntl, os, signal, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nfolders = [os.open(path, os.O_RDONLY) for path in ('/usr', '/usr/bin')]\nfor folder in folders: fcntl.fcntl(folder, 1026, 4)\nn = 0\nwhile True: n += 1; open('stuck', 'w').write(str(n)); time.sleep(0.02)";
        start(&lab, here, "stuck", &["python3", "-c", program]);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "2500ms", "--name", "web"]);
        let counter = Counter::begin();
        assert!(counter.go_on(50), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());

        let to = ["--to", &there.address, "--to", &third.address];
        let (code, dry, said) = drain(&lab, &hosts, &[&["--dry-run"], &to[..]].concat());
        assert_eq!(code, 3, "{said}");
        let all = [pair("one", "capsule"), pair("two", "capsule"), pair("web", "watch")];
        assert_eq!((names(&dry["moved"]), names(&dry["stayed"])), (all.to_vec(), vec![pair("stuck", "capsule")]), "{said}");
        assert_eq!(dry["hosts"].as_array().map(Vec::len), Some(2), "{said}");
        assert!(dry["hosts"][0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{said}");
        assert!(until(SOON, || here.runs(pid)) && capsules(here) == ["one", "stuck", "two"], "{said}");
        assert!(goes_on(&lab, "stuck"));

        // Where no host is named the one that stands by is known.
        let (code, alone, said) = drain(&lab, &hosts, &["--dry-run"]);
        assert!(code == 3 && names(&alone["moved"]) == all && names(&alone["stayed"]) == [pair("stuck", "capsule")], "{said}");
        assert!(alone["hosts"][0]["host"] == "host2" && alone["hosts"][0]["named"] == false, "{said}");

        let (code, done, said) = drain(&lab, &hosts, &to);
        println!("\ndrain: {done}");
        assert_eq!(code, 3, "{said}\n{}\n{}", watched.said(), noted(&hosts));
        assert_eq!((names(&done["moved"]), names(&done["stayed"])), (all.to_vec(), vec![pair("stuck", "capsule")]), "{said}");
        assert!(done["moved"].as_array().expect("a list").iter().all(|one| one["downtime_ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{said}");
        let stuck = &done["stayed"][0];
        assert!(stuck["code"] == 13 && stuck["refusals"].as_array().is_some_and(|all| all.len() == 2), "{said}");
        assert!(counter.go_on(50), "nobody answers: {said}\n{}\n{}", watched.said(), noted(&hosts));
        counter.end();
        let ended = watched.meio.wait().expect("it ends");
        assert!(matches!(ended.code(), Some(0 | 3)), "{}", watched.said());
        assert!(!here.lives(pid) && until(SOON, || there.runs(pid)) && has_address(there) && !has_address(here), "{}", noted(&hosts));
        // Only what stays is left here, and goes on.
        assert_eq!(capsules(here), ["stuck"]);
        let mut elsewhere = [capsules(there), capsules(third)].concat();
        elsewhere.sort();
        assert_eq!(elsewhere, ["one", "two"]);
        for name in ["one", "two", "stuck"] {
            assert!(goes_on(&lab, name), "{name} does not go on: {said}\n{}", lab.log());
        }
        // The same for people: a table, and why in full.
        let (_, out, err) = plain(&lab, here, &to);
        assert!(out.contains("NAME") && out.contains("stuck  capsule  -") && out.contains("0 went, 1 stayed"), "{out}");
        assert!(err.contains("error: stuck stays here: ") && err.matches("help:").count() >= 2, "{err}");
        // Nobody stands by for anything here any more: no host is known.
        let (code, none, said) = drain(&lab, &hosts, &[]);
        assert!(code == 3 && names(&none["stayed"]) == [pair("stuck", "capsule")], "{said}");
        assert!(none["stayed"][0]["help"].as_str().is_some_and(|help| help.contains("--to")), "{said}");
        // A host that is not there is said before anything is touched.
        let (code, done, said) = drain(&lab, &hosts, &["--to", "10.99.0.9", "--connect-timeout", "2s"]);
        assert!(code != 0 && done["type"] == "error", "{said}");
        assert_eq!(capsules(here), ["stuck"]);
    }

    /// Somebody at another host has it emptied. The watched redis goes to one of two that stand by for it, the other one and the host itself
    /// stand by for it then; a capsule goes to one of them, although none was named. What only images are kept of stays, and is named
    /// once. The exit code is the one from there.
    fn a_host_that_is_emptied_from_elsewhere() {
        let lab = Lab::new("drain-far");
        let (hosts, pid, watched, counter) = guarded(&lab, &[]);
        let [here, operator] = [&hosts.hosts[0], &hosts.hosts[1]];
        ["one", "kept"].iter().for_each(|name| counting(&lab, here, name));
        let mut series = here.command(Path::new(crate::MEIO));
        series.args(["watch", "--interval", "10s", "--name", "images", "--dir"]).arg(lab.path("images")).arg("kept");
        let mut series = series.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        assert!(until(SOON, || fs::read_dir(lab.path("images")).is_ok_and(|mut all| all.next().is_some())));

        let (code, dry, said) = told(&lab, operator, &["10.99.0.1", "--dry-run"]);
        let all = [pair("one", "capsule"), pair("web", "watch")];
        assert_eq!((code, names(&dry["moved"]), names(&dry["stayed"])), (3, all.to_vec(), vec![pair("images", "watch")]), "{said}");
        let known: Vec<&str> = dry["hosts"].as_array().into_iter().flatten().filter_map(|one| one["host"].as_str()).collect();
        assert!(dry["from"] == "host1" && known == ["host2", "host3"], "{said}");
        assert!(dry["stayed"][0]["help"].as_str().is_some_and(|help| help.contains("moves the capsule kept")), "{said}");
        assert!(until(SOON, || here.runs(pid)) && capsules(here) == ["kept", "one"], "{said}");

        let (code, out, err) = plain(&lab, operator, &["root@10.99.0.1"]);
        assert!(code == 3 && out.contains("2 went, 1 stayed") && out.contains("host1 stands by for web"), "{code}: {out}{err}");
        assert!(err.contains("images stays on host1: nobody stands by for it"), "{err}");
        assert!(counter.go_on(50), "nobody answers: {out}{err}\n{}\n{}", watched.said(), noted(&hosts));
        let next = (1..3).find(|n| has_address(&hosts.hosts[*n])).expect("one has it");
        guards(&hosts, next, &[0, 3 - next], &watched, pid);
        assert_eq!((capsules(here), [capsules(operator), capsules(&hosts.hosts[2])].concat()), (vec!["kept".into()], vec!["one".into()]));
        assert!(goes_on(&lab, "one") && goes_on(&lab, "kept"), "{out}{err}\n{}", lab.log());
        counter.finish().unwrap_or_else(|e| panic!("{e}: {}\n{}", watched.said(), noted(&hosts)));
        let _ = series.kill();
        let _ = series.wait();

        // This host may be named, too; one that does not answer is no host that has nothing.
        let (code, own, said) = told(&lab, &hosts.hosts[3 - next], &["localhost"]);
        assert!(code == 0 && names(&own["moved"]).is_empty() && own["standby_for"][0] == "web", "{said}");
        let (code, _, said) = told(&lab, operator, &["10.99.0.9", "--connect-timeout", "1s"]);
        assert_eq!(code, 15, "{said}");
    }
}
