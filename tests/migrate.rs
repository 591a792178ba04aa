//! Trees that move between machines.

mod failures;
mod lazy;
mod programs;
mod streams;

use crate::lab::hosts::{Hosts, SERVICE, VIP};
use crate::lab::{Lab, Outcome, SOON, compile, until};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long one move may take, with a client that waits for it.
const MOVE: Duration = Duration::from_secs(60);

const INCR: &str = include_str!("migrate/incr.py");

/// What the last line of `--json` says.
pub fn result(done: &Outcome) -> serde_json::Value {
    serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {done:?}"))
}

/// A fixture on a host: its pid there.
fn fixture(lab: &Lab, hosts: &Hosts, at: usize, name: &str, arguments: &[&str]) -> i32 {
    let program = compile(name).display().to_string();
    let prefix = lab.path("x").display().to_string();
    let mut all = vec![prefix.as_str()];
    all.extend(arguments);
    let pid = hosts.hosts[at].start(lab, &program, &all);
    assert!(until(SOON, || lab.path("x.ready").exists()), "{name} does not get ready: {}", lab.log());
    pid
}

/// A fixture that is ready goes over a way of hosts and verifies itself at the last.
fn moves(name: &str, arguments: &[&str], way: &[usize]) {
    let lab = Lab::new(name);
    let hosts = Hosts::new(&lab, way.iter().max().expect("a way") + 1);
    let pid = fixture(&lab, &hosts, way[0], name, arguments);
    let text = pid.to_string();
    for pair in way.windows(2) {
        let (from, to) = (&hosts.hosts[pair[0]], &hosts.hosts[pair[1]]);
        let done = hosts.migrate(&lab, pair[0], &[&text, &to.address, "-v", "--on-timeout", "force"]);
        // That it is written faster than it can be sent may be warned of.
        assert!(matches!(done.code, 0 | 3), "{}{}\n{}", done.stdout, done.stderr, lab.log());
        assert!(!from.lives(pid) && to.lives(pid), "{}", done.stdout);
    }
    fs::write(lab.path("x.away"), "0 60000000000 0").expect("away");
    fs::write(lab.path("x.go"), "").expect("go");
    assert!(until(Duration::from_secs(60), || lab.path("x.result").exists()), "no verdict: {}", lab.log());
    assert_eq!(fs::read_to_string(lab.path("x.result")).expect("verdict"), "ok\n", "{}", lab.log());
}

/// A redis server at the service's address on the first host.
pub fn redis(lab: &Lab, hosts: &Hosts) -> i32 {
    hosts.serve_at(0);
    let folder = lab.path("").display().to_string();
    let arguments = ["--port", "6379", "--save", "", "--appendonly", "no", "--dir", &folder, "--protected-mode", "no", "--logfile", ""];
    let pid = hosts.hosts[0].start(lab, "redis-server", &arguments);
    let answers =
        || std::net::TcpStream::connect_timeout(&format!("{SERVICE}:6379").parse().expect("address"), Duration::from_millis(200)).is_ok();
    assert!(until(SOON, answers), "redis does not answer: {}", lab.log());
    pid
}

/// A client that counts at the service's address.
pub fn counting(lab: &Lab) -> Child {
    let stop = lab.path("stop");
    let child = Command::new("python3").args(["-c", INCR, SERVICE, "6379"]).arg(&stop).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let child = child.expect("python3 starts");
    assert!(until(SOON, || lab.path("stop.running").exists()), "the client does not begin");
    child
}

/// Ends it: what it says.
pub fn counted(lab: &Lab, child: Child) -> serde_json::Value {
    fs::write(lab.path("stop"), "").expect("stop");
    let done = child.wait_with_output().expect("the client ends");
    assert!(done.status.success(), "the client: {}", String::from_utf8_lossy(&done.stdout));
    serde_json::from_slice(&done.stdout).expect("JSON")
}

crate::alone! {
    /// Threads, timers and vector registers go there, further, and back.
    fn a_busy_program() {
        moves("busy", &[], &[0, 1, 2, 0]);
    }

    fn a_tree() {
        moves("tree", &[], &[0, 1]);
    }

    fn a_thread_with_a_lower_number_moves() {
        moves("wrapped", &[], &[0, 1]);
    }

    fn memory_that_is_written_meanwhile() {
        moves("rewriting", &[], &[0, 1]);
    }

    /// The client has one connection, and loses none of its answers.
    fn a_redis_that_counts() {
        let lab = Lab::new("redis");
        let hosts = Hosts::new(&lab, 3);
        let pid = redis(&lab, &hosts).to_string();
        let client = counting(&lab);
        let way = [0, 1, 2, 0, 1];
        for pair in way.windows(2) {
            let to = &hosts.hosts[pair[1]].address;
            let done = hosts.migrate(&lab, pair[0], &[&pid, to, "--vip", VIP, "--json"]);
            assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, lab.log());
            assert_eq!(result(&done)["source"], "gone");
        }
        let said = counted(&lab, client);
        assert!(said["last"].as_u64().is_some_and(|n| n > 100), "{said}");
        println!("journey: {said}");
    }

    /// Who may do little there is told what is missing, and nothing is touched.
    fn a_target_without_capabilities() {
        let lab = Lab::new("powerless");
        let hosts = Hosts::new(&lab, 2);
        let pid = redis(&lab, &hosts);
        let client = counting(&lab);
        let (text, to) = (pid.to_string(), hosts.hosts[1].address.clone());
        for (missing, word) in [
            ("-all", "CAP_CHECKPOINT_RESTORE"),
            ("-checkpoint_restore,-sys_admin", "CAP_CHECKPOINT_RESTORE"),
            ("-net_admin", "CAP_NET_ADMIN"),
        ] {
            for dry in [true, false] {
                let remote = format!("setpriv --bounding-set={missing} {}", crate::MEIO);
                let mut arguments = vec![text.as_str(), &to, "--vip", VIP, "--json", "--remote-path", &remote];
                arguments.extend(dry.then_some("--dry-run"));
                let done = hosts.migrate(&lab, 0, &arguments);
                assert_eq!(done.code, 13, "without {missing}: {done:?}");
                let said = done.stdout.lines().last().unwrap_or_default();
                assert!(said.contains(word), "without {missing}: {said}");
                assert!(hosts.hosts[0].runs(pid) && !hosts.hosts[1].lives(pid), "without {missing}: {done:?}");
            }
        }
        let said = counted(&lab, client);
        assert!(said["last"].as_u64().is_some_and(|n| n > 10), "{said}");
    }

    /// Everything that stands in the way is said at once, and nothing is touched.
    fn what_stands_in_the_way() {
        let lab = Lab::new("refused");
        let hosts = Hosts::new(&lab, 2);
        let pid = redis(&lab, &hosts).to_string();
        let client = counting(&lab);
        let to = hosts.hosts[1].address.clone();
        // Its address would stay here.
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--dry-run"]);
        assert_eq!(done.code, 13, "{done:?}");
        assert!(done.stderr.contains("--vip") && done.stderr.contains(SERVICE), "{}", done.stderr);
        // No such interface there.
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--dry-run", "--vip", "10.99.0.100/24@eth7"]);
        assert_ne!(done.code, 0, "{done:?}");
        // Its pid is somebody's there.
        let number: u32 = pid.parse().expect("a pid");
        hosts.hosts[1].plain("bash", &["-c", &format!("echo {} > /proc/sys/kernel/ns_last_pid; setsid sleep 100 > /dev/null 2>&1 & true", number - 1)]);
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--dry-run", "--vip", VIP]);
        assert_eq!(done.code, 13, "{done:?}");
        assert!(done.stderr.contains("in use by") && done.stderr.contains("--pid-namespace"), "{}", done.stderr);
        hosts.hosts[1].plain("kill", &[&pid]);
        let gone = || hosts.hosts[1].command(Path::new("test")).args(["-e", &format!("/proc/{pid}")]).status().is_ok_and(|s| !s.success());
        assert!(until(SOON, gone), "nobody reaps it");
        let done = hosts.migrate(&lab, 0, &[&pid, &to, "--dry-run", "--vip", VIP]);
        assert_eq!(done.code, 0, "{done:?}");
        let said = counted(&lab, client);
        assert!(said["last"].as_u64().is_some_and(|n| n > 10), "{said}");
    }
}
