//! Trees that outlive their host.

mod changed;
mod comeback;
mod control;
mod copied;
mod counter;
mod court;
mod faults;
mod fences;
mod links;
mod load;
mod local;
mod nodes;
mod packets;
mod postgresql;
mod programs;
mod ring;
mod room;
mod service;
mod several;
mod switch;
mod witness;

use crate::lab::hosts::{Host, Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, until};
pub use counter::Counter;
pub use ring::guards;
pub use several::guarded;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A line of redis's own protocol, over a connection of its own; the answer.
fn ask(line: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&format!("{SERVICE}:6379").parse().ok()?, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    Some(answer.trim().to_owned()).filter(|answer| !answer.is_empty())
}

fn count() -> Option<u64> {
    ask("INCR n")?.strip_prefix(':')?.parse().ok()
}

/// Two hosts, whose disks are their own; the first has the address.
fn two(lab: &Lab) -> Hosts {
    machines(lab, 2)
}

/// More of them.
pub fn machines(lab: &Lab, count: usize) -> Hosts {
    let hosts = Hosts::new(lab, count);
    for host in &hosts.hosts {
        host.plain("mount", &["-t", "tmpfs", "lib", "/var/lib"]);
    }
    hosts.serve_at(0);
    hosts
}

/// A redis at the service's address on the first of them.
fn redis(lab: &Lab) -> (Hosts, i32) {
    redis_on(lab, two(lab))
}

/// The same of these.
pub fn redis_on(lab: &Lab, hosts: Hosts) -> (Hosts, i32) {
    let folder = lab.path("").display().to_string();
    let arguments = ["--port", "6379", "--save", "", "--appendonly", "no", "--dir", &folder, "--protected-mode", "no", "--logfile", ""];
    let pid = hosts.hosts[0].start(lab, "redis-server", &arguments);
    assert!(until(SOON, || count().is_some()), "redis does not answer: {}", lab.log());
    (hosts, pid)
}

/// The meio that was started first on a host: the others are its children.
fn oldest(host: &Host) -> String {
    host.plain("pgrep", &["-o", "-x", "meio"]).trim().to_owned()
}

/// All of them there, in the order in which they were started.
fn meios(host: &Host) -> Vec<String> {
    host.plain("pgrep", &["-x", "meio"]).lines().map(str::to_owned).collect()
}

pub fn has_address(host: &Host) -> bool {
    host.plain("ip", &["-o", "address"]).contains(&format!(" {SERVICE}/"))
}

/// What the standby has noted.
pub fn noted(hosts: &Hosts) -> String {
    let done = hosts.hosts[1].command(Path::new("bash")).args(["-c", "cat /var/lib/meio/watch/*; ps axo pid,stat,args"]).output();
    String::from_utf8_lossy(&done.expect("nsenter starts").stdout).into_owned()
}

/// Waits until somebody answers, over a new connection; the next number.
fn answers_again(watched: &Watched, hosts: &Hosts, lab: &Lab) -> u64 {
    let mut answer = None;
    let answers = || {
        answer = answer.or_else(count);
        answer.is_some()
    };
    assert!(until(Duration::from_secs(90), answers), "nobody answers: {}\n{}\n{}", watched.said(), noted(hosts), lab.log());
    answer.expect("a number")
}

/// What is said when the standby can take over.
const PROTECTED: &str = "protected: if this host is lost, it goes on";

/// Where many other tests run beside this one, silence of a second may be none.
const SLOW: &[&str] = &["--timeout", "2500ms"];

/// Watched from the first host by the second.
pub struct Watched {
    /// The meio on the first host.
    pub meio: Child,
    said: PathBuf,
    out: PathBuf,
}

impl Watched {
    fn begin(lab: &Lab, hosts: &Hosts, pid: i32, more: &[&str]) -> Watched {
        Watched::with(lab, hosts, pid, &[&["--guarantee", "hot"], more].concat())
    }

    /// It begins, and is protected.
    pub fn with(lab: &Lab, hosts: &Hosts, pid: i32, more: &[&str]) -> Watched {
        let watched = Watched::start(lab, hosts, pid, more);
        assert!(until(SOON, || watched.said().contains(PROTECTED)), "{}\n{}\n{}", watched.said(), noted(hosts), lab.log());
        watched
    }

    fn start(lab: &Lab, hosts: &Hosts, pid: i32, more: &[&str]) -> Watched {
        let said = lab.path("watch.err");
        let known = lab.path("known").display().to_string();
        let key = lab.path("key").display().to_string();
        let mut command = hosts.hosts[0].command(Path::new(crate::MEIO));
        command.args(["watch", "-v", "--known-hosts", &known, "--identity", &key, "--remote-path", crate::MEIO]);
        command.args(["--standby", &hosts.hosts[1].address, "--vip", VIP]).args(more).arg(pid.to_string());
        let out = Stdio::from(fs::File::create(lab.path("watch.out")).expect("a file"));
        let meio = command.stdout(out).stderr(fs::File::create(&said).expect("a file")).spawn().expect("meio starts");
        Watched { meio, said, out: lab.path("watch.out") }
    }

    /// Whether the standby could take over, as far as it was said.
    pub fn is_protected(&self) -> bool {
        let said = self.said();
        said.rfind("protected: if this host is lost").is_some_and(|at| said[at..].starts_with(PROTECTED))
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        text(&self.said) + &text(&self.out)
    }
}

/// The second host is lost; in the end the client that had connected before goes on.
fn alone_with(choice: &str, told: &str, then: impl FnOnce(&Hosts, &Counter)) {
    let lab = Lab::new("watch-alone");
    let (mut hosts, pid) = redis(&lab);
    let watched = Watched::with(&lab, &hosts, pid, &["--on-standby-loss", choice]);
    let counter = Counter::begin();
    assert!(counter.go_on(20), "{}\n{}", watched.said(), noted(&hosts));
    hosts.wire(1, false);
    hosts.hosts[1].fail();
    assert!(until(SOON, || watched.said().contains(told)), "{}", watched.said());
    then(&hosts, &counter);
    assert!(counter.go_on(20), "it does not go on: {}", watched.said());
    counter.end();
    assert!(has_address(&hosts.hosts[0]) && hosts.hosts[0].runs(pid));
}

crate::alone! {
    /// With what is held a client notices nothing but a while: its connection goes on, and what it was told holds.
    fn a_connection_that_outlives_its_host() {
        let lab = Lab::new("watch-hold");
        let (mut hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, SLOW);
        let counter = Counter::begin();
        assert!(counter.go_on(100), "{}\n{}", watched.said(), noted(&hosts));
        // A machine that was busy for long may have had the standby begin anew.
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
        // A kernel that goes on says for a while who had the address: what is to be said at the end is held.
        hosts.wire(0, false);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        assert!(counter.go_on(100), "it does not go on: {}\n{}\n{}", watched.said(), noted(&hosts), lab.log());
        counter.end();
        assert_eq!(ask("GET one").map(|_| ()), Some(()));
        assert!(hosts.hosts[1].runs(pid));
    }

    /// A meio that is killed leaves nothing that answers: its tree's packets go nowhere, its address goes.
    fn a_connection_that_outlives_its_meio() {
        let lab = Lab::new("watch-hold-kill");
        let (hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, &[SLOW, &["--name", "web"]].concat());
        let counter = Counter::begin();
        assert!(counter.go_on(100), "{}\n{}", watched.said(), noted(&hosts));
        assert!(until(SOON, || watched.is_protected()), "{}", watched.said());
        hosts.hosts[0].plain("kill", &["-KILL", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait();
        assert!(counter.go_on(100), "it does not go on: {}\n{}\n{}", watched.said(), noted(&hosts), lab.log());
        counter.end();
        assert!(!has_address(&hosts.hosts[0]) && has_address(&hosts.hosts[1]) && hosts.hosts[1].runs(pid));
        // The tree is still there, and mute until somebody says that it may speak.
        assert!(hosts.hosts[0].runs(pid));
        let unlocked = hosts.hosts[0].plain(crate::MEIO, &["check", "--unlock", "web"]);
        assert_eq!(unlocked.trim(), "1 network lock opened");
    }

    /// What has no epoch that the standby has does not get out, and does as soon as it has.
    fn answers_that_wait() {
        let lab = Lab::new("watch-hold-wait");
        let (hosts, pid) = redis(&lab);
        let mut watched = Watched::with(&lab, &hosts, pid, &["--timeout", "20s", "--json", "--name", "wait"]);
        let mut stream = TcpStream::connect(format!("{SERVICE}:6379")).expect("it answers");
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut ask = |limit| {
            stream.write_all(b"INCR waits\r\n").expect("sent");
            stream.set_read_timeout(Some(limit)).expect("option");
            let mut line = String::new();
            lines.read_line(&mut line).map(|_| line.trim().to_owned())
        };
        assert_eq!(ask(SOON).expect("an answer"), ":1");
        let standby = oldest(&hosts.hosts[1]);
        hosts.hosts[1].plain("kill", &["-STOP", &standby]);
        assert!(ask(Duration::from_millis(800)).is_err(), "it has answered");
        hosts.hosts[1].plain("kill", &["-CONT", &standby]);
        let mut line = String::new();
        stream.set_read_timeout(Some(SOON)).expect("option");
        lines.read_line(&mut line).expect("an answer");
        assert_eq!(line.trim(), ":2");
        // Without a watch nothing waits, and nothing of it is left.
        hosts.hosts[0].plain("kill", &["-INT", &oldest(&hosts.hosts[0])]);
        let _ = watched.meio.wait().expect("it ends");
        let said = fs::read_to_string(&watched.out).expect("what it said");
        let said: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
        assert!(said["held"]["packets"].as_u64() > Some(1) && said["held"]["longest_ms"].as_f64() > Some(500.0), "{said}");
        assert!(count().is_some() && hosts.hosts[0].runs(pid));
        let unlocked = hosts.hosts[0].command(Path::new(crate::MEIO)).args(["check", "--unlock", "wait"]).output().expect("it starts");
        assert!(!unlocked.status.success(), "a lock was left");
    }

    /// A standby that is lost may be about to take over: nobody answers until somebody says so.
    fn a_standby_that_is_lost() {
        alone_with("hold", "nobody answers here until it is known", |hosts, counter| {
            assert!(until(SOON, || !has_address(&hosts.hosts[0])), "the address is kept");
            let before = counter.answers.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(counter.answers.load(Ordering::Relaxed), before);
            hosts.hosts[0].plain("kill", &["-INT", &oldest(&hosts.hosts[0])]);
        });
    }

    /// The same, when the service is to go on alone.
    fn a_standby_that_is_lost_and_not_waited_for() {
        alone_with("continue", "it goes on alone", |_, _| {});
    }

    /// Everything on the first host ends at once: the second one goes on, at the same address.
    fn a_host_that_is_lost() {
        let lab = Lab::new("watch-lost");
        let (mut hosts, pid) = redis(&lab);
        (0..1000).for_each(|_| assert!(count().is_some()));
        let mut watched = Watched::begin(&lab, &hosts, pid, &[]);
        let before = count().expect("it answers");
        assert!(before > 1000);
        hosts.hosts[0].fail();
        let _ = watched.meio.wait();
        let after = answers_again(&watched, &hosts, &lab);
        assert!(after > 1000, "{after} after {before}");
        assert!(hosts.hosts[1].runs(pid));
    }

    /// A meio that is stopped cannot give up the address, but another process does; when it wakes up it stops the tree.
    fn a_meio_that_is_stopped() {
        let lab = Lab::new("watch-stopped");
        let (hosts, pid) = redis(&lab);
        (0..1000).for_each(|_| assert!(count().is_some()));
        let mut watched = Watched::begin(&lab, &hosts, pid, &["--keep-demoted"]);
        let meio = oldest(&hosts.hosts[0]);
        hosts.hosts[0].plain("kill", &["-STOP", &meio]);
        assert!(until(SOON, || !has_address(&hosts.hosts[0])), "the address is kept");
        assert!(until(Duration::from_secs(60), || has_address(&hosts.hosts[1])), "nobody takes over: {}", noted(&hosts));
        assert!(until(SOON, || count().is_some_and(|n| n > 1000)), "nobody answers: {}", noted(&hosts));
        // nsenter(1) stops with what it waits for, and has it go on.
        hosts.hosts[0].plain("kill", &["-CONT", &meio]);
        let waiting = nix::unistd::Pid::from_raw(watched.meio.id() as i32);
        nix::sys::signal::kill(waiting, nix::sys::signal::Signal::SIGCONT).expect("it is there");
        let done = watched.meio.wait().expect("it ends");
        assert_eq!(done.code(), Some(3), "{}", watched.said());
        assert!(watched.said().contains("the standby has taken over"), "{}", watched.said());
        assert!(!has_address(&hosts.hosts[0]) && !hosts.hosts[0].runs(pid) && hosts.hosts[1].runs(pid));
        assert!(count().is_some());
    }

    /// Both go on hearing nothing of each other: only one of them has the address, and the other one stands by when it is heard again.
    fn a_cable_that_is_pulled() {
        let lab = Lab::new("watch-cable");
        let (hosts, pid) = redis(&lab);
        (0..1000).for_each(|_| assert!(count().is_some()));
        let watched = Watched::begin(&lab, &hosts, pid, &["--name", "web"]);
        let cable = |state| assert!(std::process::Command::new("ip").args(["link", "set", "host1", state]).status().expect("ip").success());
        cable("down");
        assert!(until(Duration::from_secs(60), || has_address(&hosts.hosts[1])), "nobody takes over: {}", noted(&hosts));
        assert!(!has_address(&hosts.hosts[0]), "two have the address");
        assert!(until(SOON, || count().is_some_and(|n| n > 1000)), "nobody answers: {}", noted(&hosts));
        cable("up");
        let stands = || comeback::stands(&hosts.hosts[1], "primary", "protected") && comeback::stands(&hosts.hosts[0], "standby", "ready");
        assert!(until(SOON, stands), "{}\n{}", watched.said(), noted(&hosts));
        assert!(!has_address(&hosts.hosts[0]) && !hosts.hosts[0].lives(pid) && until(SOON, || hosts.hosts[1].runs(pid)));
        assert!(count().is_some_and(|n| n > 1000));
    }

    /// What is asked to end ends, and the tree goes on where it was.
    fn an_end_that_is_wished() {
        let lab = Lab::new("watch-over");
        let (hosts, pid) = redis(&lab);
        let mut watched = Watched::begin(&lab, &hosts, pid, &[]);
        let before = count().expect("it answers");
        hosts.hosts[0].plain("kill", &["-INT", &oldest(&hosts.hosts[0])]);
        let done = watched.meio.wait().expect("it ends");
        assert!(matches!(done.code(), Some(0 | 3)), "{done:?} {}", watched.said());
        assert_eq!(count(), Some(before + 1));
        assert!(hosts.hosts[0].runs(pid));
        // Its output goes to a file.
        let log = format!("may be newer than its memory ({})", lab.path("log").display());
        assert!(watched.said().contains(&log), "{}", watched.said());
        let gone = || hosts.hosts[1].command(Path::new("pgrep")).args(["-x", "meio"]).output().is_ok_and(|o| o.stdout.is_empty());
        assert!(until(SOON, gone), "a standby is left");
        assert_eq!(hosts.hosts[1].plain("ls", &["-A", "/var/lib/meio/watch"]), "");
    }
}
