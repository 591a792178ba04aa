//! Moves between two machines, as a client and a program see them by their own clocks; what both ends need; and how fast bytes go.

use super::figures::Figure;
use super::{Bench, MEIO, median, ms};
use crate::lab::hosts::{Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, until};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Fills a redis, then writes 5,000 random values a second that each have a page of their own, and notes the longest answers.
const CLIENT: &str = include_str!("load.py");
/// Holds memory, and notes by how much it was late when it woke.
const IDLE: &str = "
import os, sys, time
memory = [os.urandom(1 << 20) for _ in range(int(sys.argv[1]))]
prefix = sys.argv[2]
open(prefix + '.ready', 'w').close()
last, longest = time.monotonic(), 0.0
while True:
    time.sleep(0.001)
    now = time.monotonic()
    if os.path.exists(prefix + '.ask'):
        open(prefix + '.new', 'w').write(str(longest * 1e3))
        os.rename(prefix + '.new', prefix + '.answer')
        os.unlink(prefix + '.ask')
        longest = 0.0
        now = time.monotonic()
    else:
        longest = max(longest, now - last)
    last = now
";

/// What one move was like.
struct Move {
    /// The longest that somebody waited, in milliseconds.
    longest: f64,
    /// What the ends needed.
    needs: Needs,
}

/// What the meios of either end needed.
#[derive(Clone, Copy, Default)]
struct Needs {
    /// KiB that one of them had in memory at most (`VmHWM`), and the same without what belongs to a file.
    most_kib: f64,
    own_kib: f64,
    /// Seconds of processor time: of who was started first, and of all others.
    first_cpu: f64,
    other_cpu: f64,
}

/// Asks for what was noted since it was asked last: the longest first.
fn asked(lab: &Lab) -> Vec<f64> {
    fs::write(lab.path("m.ask"), "").expect("question");
    assert!(until(SOON, || lab.path("m.answer").exists() && !lab.path("m.ask").exists()), "no answer: {}", lab.log());
    let text = fs::read_to_string(lab.path("m.answer")).expect("answer");
    fs::remove_file(lab.path("m.answer")).expect("answer");
    text.split_whitespace().map(|n| n.parse().expect("a number")).collect()
}

/// There and back again, `count` times after one that does not count.
fn moves(lab: &Lab, hosts: &Hosts, what: &str, pid: i32, arguments: &[&str], count: usize) -> Vec<Move> {
    let mut all = Vec::new();
    let text = pid.to_string();
    for n in 0..=count {
        let (from, to) = (n % 2, 1 - n % 2);
        let words = [&[text.as_str(), &hosts.hosts[to].address, "--json"], arguments].concat();
        // The one before may still be bringing its pages: whatever it is refused for then has touched nothing.
        let (begun, mut said) = (Instant::now(), String::new());
        let (done, needs) = loop {
            asked(lab);
            let (done, needs) = watched(pid, || hosts.migrate(lab, from, &words));
            if matches!(done.code, 0 | 3) {
                break (done, needs);
            }
            said.push_str(&done.stderr);
            assert!(begun.elapsed() < Duration::from_secs(60), "it cannot be moved: {said}{}", lab.log());
            std::thread::sleep(Duration::from_millis(200));
        };
        // Its pages may be missing still.
        std::thread::sleep(Duration::from_secs(1));
        let answers = asked(lab);
        let longest = answers[0];
        let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("JSON");
        let number = |name: &str| result[name].as_f64().unwrap_or_default();
        eprintln!(
            "{what}, move {n} of {count}: {longest:.1} ms of the client; downtime {:.1}, {} rounds, {:.0} MiB in {:.0} ms",
            number("downtime_ms"),
            number("rounds"),
            number("bytes") / f64::from(1 << 20),
            number("total_ms"),
        );
        if std::env::var_os("MEIO_BENCH_PHASES").is_some() {
            eprintln!("  longest {answers:?}");
            let phases: Vec<_> = result["phases"].as_array().into_iter().flatten().map(|p| format!("{} {}", p["name"], p["ms"])).collect();
            eprintln!("  {}", phases.join(", "));
        }
        all.push(Move { longest, needs });
        let there = |path: &str| hosts.hosts[from].command(Path::new("test")).args(["-e", path]).status().expect("test starts").success();
        assert!(until(SOON, || !there(&format!("/proc/{pid}"))), "it is not reaped");
    }
    all.remove(0);
    all
}

/// Runs `work`, and looks what all meios need meanwhile; what they bring into the tree is not their own.
fn watched<T>(tree: i32, work: impl FnOnce() -> T) -> (T, Needs) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let needs = scope.spawn(|| watch(tree, &over));
        let done = work();
        over.store(true, Ordering::Relaxed);
        (done, needs.join().expect("figures"))
    })
}

fn watch(tree: i32, over: &AtomicBool) -> Needs {
    // By pid: who was started first is the source.
    let mut all: BTreeMap<u32, [f64; 3]> = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            if !fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == Path::new(MEIO)) {
                continue;
            }
            let status = read("status");
            let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            let own = field("NSpid:").split_whitespace().next_back().and_then(|n| n.parse().ok());
            if own == Some(tree) {
                continue;
            }
            let kib = |name: &str| field(name).split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
            let stat = read("stat");
            let mut times = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).map(|n| n.parse().unwrap_or(0.0));
            let ticks: f64 = times.by_ref().take(2).sum();
            let seen = all.entry(pid).or_default();
            for (most, now) in seen.iter_mut().zip([kib("VmHWM:"), kib("RssAnon:"), ticks]) {
                *most = most.max(now);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let most = |n: usize| all.values().map(|seen| seen[n]).fold(0.0, f64::max);
    // USER_HZ is 100 on every Linux.
    let mut cpu = all.values().map(|seen| seen[2] / 100.0);
    Needs { most_kib: most(0), own_kib: most(1), first_cpu: cpu.next().unwrap_or(0.0), other_cpu: cpu.sum() }
}

fn rows(what: &str, all: &[Move], wished: f64, never: Option<f64>) -> Vec<Figure> {
    let count = all.len();
    let longest = median(all.iter().map(|m| m.longest).collect());
    let worst = all.iter().map(|m| m.longest).fold(0.0, f64::max);
    let [own, most] = [|m: &Move| m.needs.own_kib, |m: &Move| m.needs.most_kib].map(|of| all.iter().map(of).fold(0.0, f64::max) / 1024.0);
    let mut rows = vec![Figure::new(
        &format!("`migrate`, {what}: nobody answers, median of {count} moves"),
        &ms(wished),
        ms(longest),
        Some(longest <= wished),
    )];
    let slowest = |never: f64| Figure::new("the same: slowest of all moves", &ms(never), ms(worst), Some(worst <= never));
    rows.extend(never.map(slowest));
    let memory = format!("{most:.0} MiB, {own:.0} MiB of them of no file");
    rows.push(Figure::new("the same: memory of the meio that needs most, of both ends", "128 MiB", memory, Some(most <= 128.0)));
    rows
}

/// A redis under load.
pub fn redis(bench: &Bench, _: usize) -> Vec<Figure> {
    let lab = Lab::new("bench-redis");
    let hosts = Hosts::new(&lab, 2);
    hosts.serve_at(0);
    let folder = lab.path("").display().to_string();
    let words = ["--port", "6379", "--save", "", "--appendonly", "no", "--dir", &folder, "--protected-mode", "no", "--logfile", ""];
    let pid = hosts.hosts[0].start(&lab, "redis-server", &words);
    let prefix = lab.path("m").display().to_string();
    let mut client = Command::new("python3");
    let mut client = client.args(["-c", CLIENT, SERVICE, "6379", &prefix]).stdin(Stdio::null()).spawn().expect("python3 starts");
    assert!(until(Duration::from_secs(300), || lab.path("m.ready").exists()), "redis is not filled: {}", lab.log());
    let all = moves(&lab, &hosts, "redis", pid, &["--vip", VIP, "--on-timeout", "force"], bench.moves);
    let _ = client.kill();
    let _ = client.wait();
    rows("redis, 1 GiB, 5,000 writes a second", &all, 60.0, Some(250.0))
}

/// A program that does nothing but look at its watch.
pub fn idle(bench: &Bench, _: usize) -> Vec<Figure> {
    let lab = Lab::new("bench-idle");
    let hosts = Hosts::new(&lab, 2);
    let prefix = lab.path("m").display().to_string();
    let pid = hosts.hosts[0].start(&lab, "python3", &["-c", IDLE, "1024", &prefix]);
    assert!(until(Duration::from_secs(300), || lab.path("m.ready").exists()), "it does not get ready: {}", lab.log());
    let all = moves(&lab, &hosts, "idle", pid, &[], bench.moves);
    rows("idle python, 1 GiB", &all, 30.0, None)
}

/// With the keys of the hosts.
fn check_with(lab: &Lab, mut check: Command) -> Command {
    check.arg(lab.path("known")).arg("--identity").arg(lab.path("key"));
    check
}

/// `meio check --speed`: bytes a second, and what it took.
fn speed(lab: &Lab, hosts: &Hosts, bytes: &str, more: &[&str]) -> (f64, Needs) {
    let mut check = hosts.hosts[0].command(Path::new(MEIO));
    check.args(["check", "--host", &hosts.hosts[1].address, "--speed", bytes, "--json", "--remote-path", MEIO, "--known-hosts"]);
    let mut check = check_with(lab, check);
    check.args(more);
    let (done, needs) = watched(-1, || lab.run(check));
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("JSON");
    let rate = result["speed"]["bytes_per_second"].as_f64().expect("a rate");
    eprintln!("{bytes} {more:?}: {:.2} GiB/s, processors {:.2} s here and {:.2} s there", rate / GIB, needs.first_cpu, needs.other_cpu);
    (rate, needs)
}

const GIB: f64 = (1 << 30) as f64;

/// Bytes a second over the streams, and processor time a byte, beside one stream of the cipher; and how well a limit is kept.
pub fn throughput(_: &Bench, _: usize) -> Vec<Figure> {
    let lab = Lab::new("bench-speed");
    let hosts = Hosts::new(&lab, 2);
    // 50M is 50 MiB.
    let (limited, _) = speed(&lab, &hosts, "200M", &["--bandwidth", "50M"]);
    let off = limited / f64::from(50 << 20) - 1.0;
    let mut rows = vec![Figure::new("`--bandwidth 50M`", "5 %", format!("{:+.1} %", off * 100.0), Some(off.abs() <= 0.05))];
    let mut of = |name: &str, more: &[&str]| {
        let all: Vec<(f64, Needs)> = (0..3).map(|_| speed(&lab, &hosts, "4G", more)).collect();
        let rate = median(all.iter().map(|(rate, _)| *rate).collect());
        let a_gib = |of: fn(&Needs) -> f64| median(all.iter().map(|(_, needs)| of(needs) / 4.0).collect());
        let (here, there) = (a_gib(|n| n.first_cpu), a_gib(|n| n.other_cpu));
        let cost = format!("{:.2} GiB/s; {here:.2} s of a processor a GiB at the source, {there:.2} s at the target", rate / GIB);
        rows.push(Figure::new(name, "-", cost, None));
        rate
    };
    let rate = of("streams of `migrate`", &[]);
    of("one stream of `migrate`", &["--streams", "1"]);
    // Bytes a second of the processor, whatever else there is to do.
    let openssl = Command::new("openssl").args(["speed", "-seconds", "2", "-bytes", "16384", "-mr", "-evp", "aes-128-gcm"]).output();
    let said = openssl.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let one = said.lines().find_map(|l| l.strip_prefix("+F:")?.rsplit(':').next()?.trim().parse::<f64>().ok());
    rows.extend(one.map(|one| {
        Figure::new(
            "streams of `migrate`, of one AES-128-GCM stream (`openssl speed`)",
            "0.8 x",
            format!("{:.2} x ({:.2} of {:.2} GiB/s, {:.2} s of a processor a GiB)", rate / one, rate / GIB, one / GIB, GIB / one),
            Some(rate >= 0.8 * one),
        )
    }));
    rows
}
