//! Trees that run at the target before their memory is there.

use super::{counted, counting, fixture, redis, result};
use crate::lab::hosts::{Hosts, VIP};
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A program with so many MiB of memory that it does not touch but when it is asked: then it says whether all is as it was.
const KEEPS: &str = "
import hashlib, os, sys
mib = int(sys.argv[1])
block = hashlib.shake_128(b'memory').digest(1 << 20)
memory = [bytes([n & 255]) + block for n in range(mib)]
prefix = sys.argv[2]
open(prefix + '.ready', 'w').close()
import time
while not os.path.exists(prefix + '.go'):
    time.sleep(0.01)
good = all(m[0] == n & 255 and m[1:] == block for n, m in enumerate(memory))
open(prefix + '.new', 'w').write('ok' if good else 'not what it was')
os.rename(prefix + '.new', prefix + '.result')
";

/// Nothing has this pid on a host any more, nor waits to be reaped.
fn gone(hosts: &Hosts, host: usize, pid: i32) -> bool {
    let there = |path: &str| hosts.hosts[host].command(Path::new("test")).args(["-e", path]).status().expect("test starts").success();
    until(SOON, || !there(&format!("/proc/{pid}")))
}

fn keeps(lab: &Lab, hosts: &Hosts, mib: u32) -> i32 {
    for name in ["k.ready", "k.go", "k.result"] {
        let _ = fs::remove_file(lab.path(name));
    }
    let prefix = lab.path("k").display().to_string();
    let pid = hosts.hosts[0].start(lab, "python3", &["-c", KEEPS, &mib.to_string(), &prefix]);
    assert!(until(Duration::from_secs(60), || lab.path("k.ready").exists()), "it does not get ready: {}", lab.log());
    pid
}

/// Its memory is as it was.
fn kept(lab: &Lab) {
    fs::write(lab.path("k.go"), "").expect("go");
    assert!(until(Duration::from_secs(60), || lab.path("k.result").exists()), "no verdict: {}", lab.log());
    assert_eq!(fs::read_to_string(lab.path("k.result")).expect("verdict"), "ok");
}

/// A move under way, and where it says how it goes.
struct Move(Child, PathBuf);

impl Move {
    fn said(&self) -> String {
        fs::read_to_string(&self.1).unwrap_or_default()
    }

    /// How it ends, and what it has said.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.0.wait().expect("meio ends");
        (status.code(), self.said())
    }
}

/// A move that takes its time over the pages, in the middle of that: it runs there.
fn in_the_middle(lab: &Lab, hosts: &Hosts, pid: i32) -> Move {
    let text = pid.to_string();
    let all = [text.as_str(), &hosts.hosts[1].address, "--lazy", "--bandwidth", "8M", "--compress", "none", "-v"];
    let path = lab.path("move");
    let log = fs::File::create(&path).expect("log");
    let child = hosts.migration(0, &all).stdout(Stdio::null()).stderr(log).spawn().expect("meio starts");
    let child = Move(child, path);
    assert!(until(SOON, || child.said().contains("its pages follow")), "it does not run there: {}", child.said());
    assert!(hosts.hosts[1].runs(pid) && hosts.hosts[0].lives(pid) && !hosts.hosts[0].runs(pid), "what is left here stands still");
    child
}

/// Half a million values.
const FILL: &str = "
import socket
s = socket.create_connection(('10.99.0.100', 6379))
f = s.makefile('rb')
for n in range(100):
    s.sendall(b''.join(b'SET key:%d:%d %064d\\r\\n' % (n, i, n * i) for i in range(5000)))
    assert all(f.readline() == b'+OK\\r\\n' for i in range(5000))
";

/// The names of the moves that are on record at the first host.
fn left(hosts: &Hosts) -> Vec<String> {
    let all = hosts.hosts[0].plain("sh", &["-c", "ls /run/meio/migrate 2>/dev/null | grep source$ || true"]);
    all.lines().filter_map(|line| Some(line.strip_suffix(".source")?.to_owned())).collect()
}

/// It stands still at the first host and runs nowhere; `--resume` says so, and only `--force` lets it go on.
fn stands_here(lab: &Lab, hosts: &Hosts, pid: i32) {
    let ended = until(SOON, || !hosts.hosts[1].lives(pid));
    assert!(ended, "it is not ended there");
    // A task that is let go on its way into a stop is counted as running for a moment.
    assert!(until(SOON, || hosts.hosts[0].lives(pid) && !hosts.hosts[0].runs(pid)), "it does not stand still here");
    let names = left(hosts);
    let [id] = &names[..] else { panic!("{names:?}") };
    for arguments in [["--resume", id], ["--abort", id]] {
        let done = lab.run(hosts.migration(0, &arguments));
        assert_eq!(done.code, 16, "{done:?}");
        assert!(done.stderr.contains("--force") && done.stderr.contains("stands still here"), "{}", done.stderr);
        assert!(!hosts.hosts[0].runs(pid));
    }
    let done = lab.run(hosts.migration(0, &["--abort", id, "--force"]));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(until(SOON, || hosts.hosts[0].runs(pid)) && left(hosts).is_empty());
}

crate::alone! {
    fn memory_that_is_written_meanwhile() {
        let lab = Lab::new("lazy-rewriting");
        let hosts = Hosts::new(&lab, 2);
        let pid = fixture(&lab, &hosts, 0, "rewriting", &[]);
        let text = pid.to_string();
        // The second time it happens that nothing was written since the last round: then nothing has to follow.
        let slow = ["--max-downtime", "1ms", "--on-timeout", "lazy", "--timeout", "1s"];
        for (from, to, how, told) in [(0, 1, &["--lazy"][..], "its pages follow"), (1, 0, &slow, "what is left follows")] {
            let done = hosts.migrate(&lab, from, &[&[text.as_str(), &hosts.hosts[to].address, "-v"], how].concat());
            assert!(matches!(done.code, 0 | 3), "{}{}\n{}", done.stdout, done.stderr, lab.log());
            assert!(!hosts.hosts[from].lives(pid) && hosts.hosts[to].lives(pid), "{}", done.stdout);
            assert!(done.stderr.contains(told), "{}", done.stderr);
            // The pids of its parts follow its own.
            assert!((pid..pid + 16).all(|pid| gone(&hosts, from, pid)));
        }
        fs::write(lab.path("x.away"), "0 60000000000 0").expect("away");
        fs::write(lab.path("x.go"), "").expect("go");
        assert!(until(Duration::from_secs(60), || lab.path("x.result").exists()), "no verdict: {}", lab.log());
        assert_eq!(fs::read_to_string(lab.path("x.result")).expect("verdict"), "ok\n", "{}", lab.log());
    }

    /// The client has one connection, and loses none of its answers.
    fn a_redis_that_counts() {
        let lab = Lab::new("lazy-redis");
        let hosts = Hosts::new(&lab, 2);
        let number = redis(&lab, &hosts);
        let pid = number.to_string();
        hosts.hosts[1].plain("python3", &["-c", FILL]);
        let client = counting(&lab);
        for (from, to) in [(0, 1), (1, 0), (0, 1)] {
            let done = hosts.migrate(&lab, from, &[&pid, &hosts.hosts[to].address, "--vip", VIP, "--lazy", "--json"]);
            assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, lab.log());
            assert_eq!(result(&done)["source"], "gone");
            println!("journey: {}", result(&done));
            assert!(result(&done)["bytes"].as_u64().is_some_and(|n| n > 1 << 20));
            assert!(gone(&hosts, from, number));
        }
        let said = counted(&lab, client);
        assert!(said["last"].as_u64().is_some_and(|n| n > 100), "{said}");
        println!("journey: {said}");
    }

    /// What is not there yet is never something else: the tree is ended, and what stands still is the only one.
    fn the_link_is_lost_in_the_middle() {
        let lab = Lab::new("lazy-cut");
        let hosts = Hosts::new(&lab, 2);
        let pid = keeps(&lab, &hosts, 96);
        // Whoever carries the link there ends, and with it all that goes over it; not who is there for that case.
        let child = in_the_middle(&lab, &hosts, pid);
        hosts.hosts[1].plain("bash", &["-c", "for d in /proc/[0-9]*; do grep -qz '^agent$' $d/cmdline 2>/dev/null && ! grep -q pageguard $d/comm && kill -9 ${d#/proc/}; done; true"]);
        let (code, said) = child.end();
        assert_eq!(code, Some(16), "{said}");
        let told = said.contains("pages were missing") || said.contains("pages missing");
        assert!(told && said.contains("--resume"), "{said}");
        stands_here(&lab, &hosts, pid);
        assert!(gone(&hosts, 1, pid));
        // Nobody says anything any more, on either way.
        let child = in_the_middle(&lab, &hosts, pid);
        hosts.hosts[1].plain("ip", &["link", "set", "eth0", "down"]);
        let (code, said) = child.end();
        assert_eq!(code, Some(16), "{said}");
        assert!(until(SOON, || !hosts.hosts[1].lives(pid)), "it is not ended there");
        hosts.hosts[1].plain("ip", &["link", "set", "eth0", "up"]);
        stands_here(&lab, &hosts, pid);
        assert!(gone(&hosts, 1, pid));
        // The source's meio is killed.
        let child = in_the_middle(&lab, &hosts, pid);
        hosts.hosts[0].plain("bash", &["-c", "for d in /proc/[0-9]*; do grep -qz '^migrate$' $d/cmdline 2>/dev/null && kill -9 ${d#/proc/}; done; true"]);
        child.end();
        stands_here(&lab, &hosts, pid);
        // Its pid is free when somebody has taken notice of its end.
        assert!(gone(&hosts, 1, pid));
        let done = hosts.migrate(&lab, 0, &[&pid.to_string(), &hosts.hosts[1].address, "--lazy"]);
        assert_eq!(done.code, 0, "{done:?}");
        kept(&lab);
    }

    /// Ten times the memory, and the same downtime. What it touches comes, too.
    fn downtime_does_not_follow_memory() {
        let lab = Lab::new("lazy-large");
        let hosts = Hosts::new(&lab, 2);
        let mut downtimes = Vec::new();
        for mib in [16, 160] {
            let pid = keeps(&lab, &hosts, mib);
            // At this speed all of it would take seconds.
            let arguments = [&pid.to_string(), &hosts.hosts[1].address, "--lazy", "--json", "--bandwidth", "64M", "--compress", "none"];
            let done = hosts.migrate(&lab, 0, &arguments);
            assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
            let result = result(&done);
            assert!(result["bytes"].as_u64().is_some_and(|n| n > u64::from(mib) << 20), "{result}");
            assert!(hosts.hosts[1].lives(pid));
            kept(&lab);
            assert!(gone(&hosts, 0, pid) && gone(&hosts, 1, pid));
            println!("journey: {mib} MiB: {result}");
            downtimes.push(result["downtime_ms"].as_f64().expect("a number"));
        }
        // 144 MiB more take 2.2 s.
        assert!(downtimes[1] < downtimes[0] + 1500.0, "{downtimes:?}");
    }
}
