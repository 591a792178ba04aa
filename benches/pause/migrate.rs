//! Moves between two machines, as a client and a program see them by their own clocks; what both ends need; and how fast bytes go.

use super::figures::Figure;
use super::{Bench, MEIO, median, ms};
use crate::lab::hosts::{Hosts, SERVICE, VIP};
use crate::lab::{Lab, SOON, until};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Moves that count, after one that does not.
const MOVES: usize = 10;
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
    /// KiB of memory of its own that either end had at most.
    own_kib: f64,
}

/// Asks for what was noted since it was asked last.
fn asked(lab: &Lab) -> f64 {
    fs::write(lab.path("m.ask"), "").expect("question");
    assert!(until(SOON, || lab.path("m.answer").exists() && !lab.path("m.ask").exists()), "no answer: {}", lab.log());
    let text = fs::read_to_string(lab.path("m.answer")).expect("answer");
    fs::remove_file(lab.path("m.answer")).expect("answer");
    text.trim().parse().expect("a number")
}

/// There and back again.
fn moves(lab: &Lab, hosts: &Hosts, pid: i32, arguments: &[&str]) -> Vec<Move> {
    let mut all = Vec::new();
    let text = pid.to_string();
    for n in 0..=MOVES {
        let (from, to) = (n % 2, 1 - n % 2);
        let words = [&[text.as_str(), &hosts.hosts[to].address], arguments].concat();
        // The one before may still be bringing its pages.
        let ready = || matches!(hosts.migrate(lab, from, &[&words[..], &["--dry-run"]].concat()).code, 0 | 3);
        assert!(until(Duration::from_secs(60), ready), "it cannot be moved: {}", lab.log());
        std::thread::sleep(Duration::from_secs(1));
        asked(lab);
        let over = AtomicBool::new(false);
        let (done, own_kib) = std::thread::scope(|scope| {
            let most = scope.spawn(|| most_memory(pid, &over));
            let done = hosts.migrate(lab, from, &words);
            over.store(true, Ordering::Relaxed);
            (done, most.join().expect("a figure"))
        });
        assert!(matches!(done.code, 0 | 3), "{}{}", done.stdout, done.stderr);
        std::thread::sleep(Duration::from_secs(1));
        all.push(Move { longest: asked(lab), own_kib });
        let there = |path: &str| hosts.hosts[from].command(Path::new("test")).args(["-e", path]).status().expect("test starts").success();
        assert!(until(SOON, || !there(&format!("/proc/{pid}"))), "it is not reaped");
    }
    all.remove(0);
    all
}

/// KiB of anonymous memory of the one meio that had most of it, until it is over; what it brings into the tree is not its own.
fn most_memory(tree: i32, over: &AtomicBool) -> f64 {
    let mut most: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            if !fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == Path::new(MEIO)) {
                continue;
            }
            let status = read("status");
            let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            let own = field("NSpid:").split_whitespace().next_back().and_then(|n| n.parse().ok());
            if own != Some(tree) {
                most = most.max(field("RssAnon:").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    most
}

fn rows(what: &str, all: &[Move], wished: f64, never: Option<f64>) -> Vec<Figure> {
    let longest = median(all.iter().map(|m| m.longest).collect());
    let worst = all.iter().map(|m| m.longest).fold(0.0, f64::max);
    let own = all.iter().map(|m| m.own_kib).fold(0.0, f64::max) / 1024.0;
    let mut rows = vec![Figure::new(&format!("`migrate`, {what}: nobody answers"), &ms(wished), ms(longest), Some(longest <= wished))];
    rows.extend(
        never
            .map(|never| Figure::new(&format!("`migrate`, {what}: slowest of {MOVES} moves"), &ms(never), ms(worst), Some(worst <= never))),
    );
    rows.push(Figure::new(&format!("`migrate`, {what}: memory of either end"), "128 MiB", format!("{own:.0} MiB"), Some(own <= 128.0)));
    rows
}

/// A redis under load.
pub fn redis(_: &Bench, _: usize) -> Vec<Figure> {
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
    let all = moves(&lab, &hosts, pid, &["--vip", VIP, "--on-timeout", "force"]);
    let _ = client.kill();
    let _ = client.wait();
    rows("redis, 1 GiB, 5,000 writes a second", &all, 60.0, Some(250.0))
}

/// A program that does nothing but look at its watch.
pub fn idle(_: &Bench, _: usize) -> Vec<Figure> {
    let lab = Lab::new("bench-idle");
    let hosts = Hosts::new(&lab, 2);
    let prefix = lab.path("m").display().to_string();
    let pid = hosts.hosts[0].start(&lab, "python3", &["-c", IDLE, "1024", &prefix]);
    assert!(until(Duration::from_secs(300), || lab.path("m.ready").exists()), "it does not get ready: {}", lab.log());
    let all = moves(&lab, &hosts, pid, &[]);
    rows("idle python, 1 GiB", &all, 30.0, None)
}

/// With the keys of the hosts.
fn check_with(lab: &Lab, mut check: Command) -> Command {
    check.arg(lab.path("known")).arg("--identity").arg(lab.path("key"));
    check
}

/// Bytes a second over the streams, beside one stream of the cipher with both ends on the same processors.
pub fn throughput(_: &Bench, _: usize) -> Vec<Figure> {
    const BYTES: &str = "4G";
    let lab = Lab::new("bench-speed");
    let hosts = Hosts::new(&lab, 2);
    let mut all = Vec::new();
    for _ in 0..5 {
        let mut check = hosts.hosts[0].command(Path::new(MEIO));
        check.args(["check", "--host", &hosts.hosts[1].address, "--speed", BYTES, "--json", "--remote-path", MEIO, "--known-hosts"]);
        let done = lab.run(check_with(&lab, check));
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        let result: serde_json::Value = serde_json::from_str(done.stdout.lines().last().unwrap_or_default()).expect("JSON");
        all.push(result["bytes_per_second"].as_f64().expect("a rate"));
    }
    let speed = median(all);
    let openssl =
        Command::new("openssl").args(["speed", "-elapsed", "-seconds", "2", "-bytes", "16384", "-mr", "-evp", "aes-128-gcm"]).output();
    let said = openssl.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let one = said.lines().find_map(|l| l.strip_prefix("+F:")?.rsplit(':').next()?.trim().parse::<f64>().ok());
    let (gib, here) = (f64::from(1 << 30), speed / f64::from(1 << 30));
    vec![match one {
        Some(one) => Figure::new(
            "streams of `migrate`, of one AES-128-GCM stream (`openssl speed`)",
            "0.8 x",
            format!("{:.2} x ({here:.2} of {:.2} GiB/s)", speed / one, one / gib),
            Some(speed >= 0.8 * one),
        ),
        None => Figure::new("streams of `migrate`", "-", format!("{here:.2} GiB/s"), None),
    }]
}
