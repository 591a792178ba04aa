//! Trees that outlive their host: what being watched costs, and how soon the standby goes on.

#[path = "watch/load.rs"]
mod load;
#[path = "watch/more.rs"]
pub mod more;
#[path = "watch/roles.rs"]
pub mod roles;

use super::figures::Figure;
use super::{Bench, MEIO, median, ms};
use crate::lab::hosts::{Host, Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, until};
use load::{Load, Random, WHILE, at, connect, set};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Time-out of the watches whose host is lost.
const TIMEOUT: &str = "500ms";
const PROTECTED: &str = "protected: if this host is lost, it goes on";

/// A redis with so many MiB of random values at the service's address on the first host.
struct Redis {
    lab: Lab,
    hosts: Hosts,
    pid: i32,
    keys: u64,
}

impl Redis {
    fn start(mib: u64) -> Redis {
        Redis::among(mib, 2)
    }

    /// On the first of so many hosts.
    fn among(mib: u64, hosts: usize) -> Redis {
        let lab = Lab::new("bench-watch");
        let hosts = Hosts::new(&lab, hosts);
        hosts.hosts.iter().for_each(|host| drop(host.plain("mount", &["-t", "tmpfs", "lib", "/var/lib"])));
        hosts.serve_at(0);
        let folder = lab.path("").display().to_string();
        let words = ["--port", "6379", "--save", "", "--appendonly", "no", "--dir", &folder, "--protected-mode", "no", "--logfile", ""];
        let pid = hosts.hosts[0].start(&lab, "redis-server", &words);
        assert!(until(SOON, || TcpStream::connect(format!("{SERVICE}:6379")).is_ok()), "redis does not answer: {}", lab.log());
        let keys = (mib << 20) / 4096;
        let (mut stream, mut random, mut out) = (connect(), Random(1), Vec::new());
        for first in (0..keys).step_by(256) {
            out.clear();
            let count = 256.min(keys - first);
            (first..first + count).for_each(|key| set(&mut random, key, &mut out));
            stream.write_all(&out).expect("sent");
            let mut answers = vec![0; 5 * count as usize];
            stream.read_exact(&mut answers).expect("answers");
        }
        Redis { lab, hosts, pid, keys }
    }

    fn watch(&self, more: &[&str]) -> Watched {
        Watched::begin(&self.lab, &self.hosts, self.pid, &[&["--vip", VIP], more].concat())
    }
}

/// Watched from the first host by the second.
struct Watched(Child);

impl Watched {
    fn begin(lab: &Lab, hosts: &Hosts, pid: i32, more: &[&str]) -> Watched {
        let [known, key] = ["known", "key"].map(|name| lab.path(name).display().to_string());
        let mut command = hosts.hosts[0].command(Path::new(MEIO));
        command.args(["watch", "-v", "--json", "--name", "bench", "--known-hosts", &known, "--identity", &key, "--remote-path", MEIO]);
        command.args(["--standby", &hosts.hosts[1].address]).args(more).arg(pid.to_string());
        let [out, err] = ["watch.out", "watch.err"].map(|name| lab.path(name));
        let file = |path| Stdio::from(fs::File::create(path).expect("a file"));
        let meio = command.stdout(file(&out)).stderr(file(&err)).spawn().expect("meio starts");
        let said = || [&out, &err].map(|path| fs::read_to_string(path).unwrap_or_default()).concat();
        assert!(until(Duration::from_secs(120), || said().contains(PROTECTED)), "{}", said());
        Watched(meio)
    }

    /// Ends the watch; what it says of itself.
    fn end(mut self, lab: &Lab, hosts: &Hosts) -> serde_json::Value {
        let said = |name| fs::read_to_string(lab.path(name)).unwrap_or_default();
        assert!(self.0.try_wait().is_ok_and(|done| done.is_none()), "it has ended: {}{}", said("watch.err"), said("watch.out"));
        let first = hosts.hosts[0].plain("pgrep", &["-o", "-x", "meio"]);
        hosts.hosts[0].plain("kill", &["-INT", first.trim()]);
        let _ = self.0.wait().expect("it ends");
        let text = fs::read_to_string(lab.path("watch.out")).expect("what it said");
        text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("{text}"))
    }
}

/// What the meios of a host need.
#[derive(Clone, Copy, Debug)]
struct Needs {
    /// Seconds of the processor so far.
    cpu: f64,
    /// MiB of no file, and in files that have no name, or that are in the spool.
    memory: f64,
}

fn needs(host: &Host) -> Needs {
    let script = "for p in $(pgrep -x meio); do
  [ -e /proc/$p/stat ] && sed 's/.*) //' /proc/$p/stat | cut -d' ' -f12,13 | sed 's/^/cpu /'
  sed -n 's/^RssAnon:/kib/p' /proc/$p/status
  for f in /proc/$p/fd/*; do stat -L -c 'fd %h %b %i %F' $f; done 2> /dev/null | sort -u
done; du -sk /var/tmp/.meio.*.images 2> /dev/null | sed 's/^/kib /'; true";
    let told = host.plain("bash", &["-c", script]);
    let (mut cpu, mut kib, mut seen) = (0.0, 0.0, std::collections::BTreeSet::new());
    for line in told.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |n: usize| words.get(n).and_then(|w| w.parse::<f64>().ok()).unwrap_or(0.0);
        match words.first() {
            Some(&"cpu") => cpu += (number(1) + number(2)) / 100.0,
            Some(&"kib") => kib += number(1),
            // Two descriptors of one file count once.
            Some(&"fd") if number(1) == 0.0 && line.contains("regular") && seen.insert(words[3].to_owned()) => kib += number(2) / 2.0,
            _ => {}
        }
    }
    Needs { cpu, memory: kib / 1024.0 }
}

/// A while of both hosts: share of a core that the meios of each need, and memory of the standby's.
fn share(hosts: &Hosts) -> impl FnOnce() -> [f64; 3] {
    let begun = Instant::now();
    let before = [needs(&hosts.hosts[0]), needs(&hosts.hosts[1])];
    move || {
        let took = begun.elapsed().as_secs_f64();
        let now = [needs(&hosts.hosts[0]), needs(&hosts.hosts[1])];
        [(now[0].cpu - before[0].cpu) / took * 100.0, (now[1].cpu - before[1].cpu) / took * 100.0, now[1].memory]
    }
}

/// What it costs a redis with 50 clients.
pub fn cost(_: &Bench, _: usize) -> Vec<Figure> {
    let redis = Redis::start(256);
    let alone = Load::begin(50, redis.keys).end();
    let watched = redis.watch(&["--timeout", "10s"]);
    let load = Load::begin(50, redis.keys);
    std::thread::sleep(Duration::from_secs(1));
    let share = share(&redis.hosts);
    let waits = load.end();
    let [here, there, memory] = share();
    let said = watched.end(&redis.lab, &redis.hosts);
    let number = |name: &str| said[name].as_f64().unwrap_or(f64::NAN);
    let a_second = |waits: &[f64]| waits.len() as f64 / WHILE.as_secs_f64();
    let (pause, worst) = (number("median_stop_ms"), number("p99_stop_ms"));
    let added = at(&waits, 0.5) - at(&alone, 0.5);
    let rate = a_second(&waits);
    let row = |what: &str, wished: &str, here: String, holds: bool| Figure::new(what, wished, here, Some(holds));
    vec![
        row("`watch`, redis, 256 MiB, 50 clients: pause of an epoch, median", "4 ms", ms(pause), pause <= 4.0),
        row("the same: 99 of 100", "12 ms", ms(worst), worst <= 12.0),
        row("the same: an answer comes later by (`hold`), median", "12 ms", ms(added), added <= 12.0),
        Figure::new("the same: 99 of 100 answers", "", format!("{}, {} unwatched", ms(at(&waits, 0.99)), ms(at(&alone, 0.99))), None),
        row(
            "the same: answers a second, each client one at a time",
            "4,000",
            format!("{rate:.0}, {:.0} unwatched", a_second(&alone)),
            rate >= 4000.0,
        ),
        Figure::new("the same: of a core, primary's and standby's meio", "", format!("{here:.0} % and {there:.0} %"), None),
        Figure::new("the same: memory of the standby's meio", "", format!("{memory:.0} MiB"), None),
    ]
}

/// The program that writes.
fn writer(bench: &Bench) -> PathBuf {
    let program = bench.folder.path().join("writer");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/writer.c");
    let made = std::process::Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).status();
    assert!(made.expect("cc starts").success(), "writer does not compile");
    program
}

/// 5,000 pages a second, from nobody but a program that writes.
pub fn pages(bench: &Bench, _: usize) -> Vec<Figure> {
    const MIB: u64 = 512;
    let program = writer(bench);
    let lab = Lab::new("bench-writer");
    let hosts = Hosts::new(&lab, 2);
    hosts.hosts.iter().for_each(|host| drop(host.plain("mount", &["-t", "tmpfs", "lib", "/var/lib"])));
    let [ready, board] = ["ready", "board"].map(|name| lab.path(name).display().to_string());
    fs::write(&board, [0; 4096]).expect("a board");
    let pid = hosts.hosts[0].start(&lab, &program.display().to_string(), &[&ready, &board, &MIB.to_string(), "5000"]);
    assert!(until(SOON, || Path::new(&ready).exists()), "it does not get ready: {}", lab.log());
    let watched = Watched::begin(&lab, &hosts, pid, &["--guarantee", "hot", "--timeout", "10s"]);
    std::thread::sleep(Duration::from_secs(2));
    let share = share(&hosts);
    std::thread::sleep(WHILE);
    let [here, there, memory] = share();
    let said = watched.end(&lab, &hosts);
    let epochs = said["epochs"].as_f64().unwrap_or(f64::NAN);
    eprintln!("writer: {epochs} epochs, {said}");
    let most = MIB as f64 * 1.1 + 64.0;
    vec![
        Figure::new("`watch`, 5,000 pages a second: of a core, standby's meio", "25 %", format!("{there:.0} %"), Some(there <= 25.0)),
        Figure::new("the same: primary's", "", format!("{here:.0} %"), None),
        Figure::new(
            &format!("the same: memory of the standby's meio for a tree of {MIB} MiB"),
            &format!("{most:.0} MiB"),
            format!("{memory:.0} MiB"),
            Some(memory <= most),
        ),
    ]
}

/// What one take-over was like.
struct TakeOver {
    /// From the notice until it ran, in milliseconds.
    took: f64,
    /// From the loss until the client's next answer.
    stall: f64,
    steps: String,
}

/// A witness on a host.
fn witness(host: &Host) -> Child {
    let child = host.command(Path::new(MEIO)).args(["witness", "--quiet"]).stdout(Stdio::null()).spawn().expect("meio starts");
    assert!(until(SOON, || host.plain("ss", &["-lun"]).contains(":26346 ")), "it does not listen");
    child
}

fn take_over(mib: u64, timeout: &str, witnessed: bool) -> TakeOver {
    let mut redis = Redis::among(mib, if witnessed { 3 } else { 2 });
    let mut third = redis.hosts.hosts.get(2).map(witness);
    let timeout: &[&str] = if timeout.is_empty() { &[] } else { &["--timeout", timeout] };
    let witness: &[&str] = if witnessed { &["--witness", "root@10.99.0.3"] } else { &[] };
    let Watched(mut meio) = redis.watch(&[timeout, witness].concat());
    // Values are written meanwhile, so that what the standby has is not one copy in a piece.
    let _ = Load::begin(8, redis.keys).end();
    let mut stream = connect();
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut ask = |stream: &mut TcpStream| {
        stream.write_all(b"INCR n\r\n").expect("sent");
        let mut line = String::new();
        lines.read_line(&mut line).expect("an answer");
        line.trim().strip_prefix(':').and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("{line:?}"))
    };
    let before = (0..200).map(|_| ask(&mut stream)).last();
    let begun = Instant::now();
    redis.hosts.wire(0, false);
    redis.hosts.hosts[0].fail();
    assert_eq!(before.map(|n| n + 1), Some(ask(&mut stream)), "an answer was forgotten");
    let stall = begun.elapsed().as_secs_f64() * 1e3;
    let _ = meio.wait();
    if let Some(third) = &mut third {
        redis.hosts.hosts[2].fail();
        let _ = third.wait();
    }
    let noted = redis.hosts.hosts[1].plain("cat", &["/var/lib/meio/watch/bench.log"]);
    let told = noted.lines().find_map(|line| line.split_once("taken over in ")).map(|(_, rest)| rest.to_owned());
    let told = told.unwrap_or_else(|| panic!("{noted}"));
    let took = told.split(' ').next().and_then(|n| n.parse().ok()).expect("milliseconds");
    eprintln!("redis, {mib} MiB: {told}; {stall:.0} ms of the client");
    if std::env::var_os("MEIO_BENCH_PHASES").is_some() {
        eprintln!("{noted}");
    }
    TakeOver { took, stall, steps: told.split_once(": ").map_or_else(String::new, |(_, steps)| steps.to_owned()) }
}

fn lost(mib: u64, size: &str, wished: f64, rounds: usize) -> Vec<Figure> {
    let mut all: Vec<TakeOver> = (0..rounds.min(5)).map(|_| take_over(mib, TIMEOUT, false)).collect();
    all.sort_by(|a, b| a.took.total_cmp(&b.took));
    let took = median(all.iter().map(|t| t.took).collect());
    let stall = median(all.iter().map(|t| t.stall).collect());
    let steps = all[all.len() / 2].steps.clone();
    vec![
        Figure::new(
            &format!("`watch`, redis, {size}: from the notice of the loss until it runs, median of {}", all.len()),
            &ms(wished),
            ms(took),
            Some(took <= wished),
        ),
        Figure::new("the same: its steps", "", steps, None),
        Figure::new(&format!("the same: a client waits, `--timeout {TIMEOUT}`, median"), "", ms(stall), None),
    ]
}

/// A small one is taken over.
pub fn small(_: &Bench, rounds: usize) -> Vec<Figure> {
    lost(256, "256 MiB", 60.0, rounds)
}

/// And a large one.
pub fn large(_: &Bench, rounds: usize) -> Vec<Figure> {
    lost(2048, "2 GiB", 80.0, rounds)
}
