//! What being watched costs where the machine is not the limit, or much is under way; and how long clients wait.

use super::load::{Load, Manner, at};
use super::{Redis, Watched, take_over};
use crate::figures::Figure;
use crate::lab::hosts::Hosts;
use crate::lab::{Lab, SOON, until};
use crate::{Bench, median, ms};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// As `redis-benchmark -c 200 -P 32` has it.
const MUCH: Manner = Manner { clients: 200, depth: 32, small: Some(3), keys: 100_000 };

fn a_second(waits: &[f64]) -> f64 {
    waits.len() as f64 / super::WHILE.as_secs_f64()
}

fn part(what: &str, least: f64, here: f64, alone: f64) -> Figure {
    let holds = here >= least * alone;
    Figure::new(
        what,
        &format!("{:.0} %", least * 100.0),
        format!("{:.0} % ({here:.0} of {alone:.0} a second)", here / alone * 100.0),
        Some(holds),
    )
}

/// Both guarantees, with one request of each client under way and with many.
pub fn guarantees(_: &Bench, _: usize) -> Vec<Figure> {
    let redis = Redis::start(256);
    let one = || Load::begin(50, redis.keys).end();
    let much = || Load::like(MUCH).end();
    let (alone, alone_much) = (one(), a_second(&much()));
    let while_watched = |more: &[&str], one: &dyn Fn() -> Vec<f64>| {
        let watched = redis.watch(&[more, &["--timeout", "10s"]].concat());
        let figures = (one(), a_second(&much()));
        watched.end(&redis.lab, &redis.hosts);
        figures
    };
    let (hot, hot_much) = while_watched(&["--guarantee", "hot"], &one);
    let (_, hold_much) = while_watched(&[], &Vec::new);
    let added = at(&hot, 0.5) - at(&alone, 0.5);
    vec![
        Figure::new("`watch --guarantee hot`, 50 clients: an answer comes later by, median", "0.2 ms", ms(added), Some(added <= 0.2)),
        part("the same: answers a second, of those unwatched", 0.65, a_second(&hot), a_second(&alone)),
        part("the same, 200 clients with 32 requests under way each", 0.65, hot_much, alone_much),
        part("the same with `hold`", 0.4, hold_much, alone_much),
    ]
}

/// Lets a redis use half a processor; the folder of the group is to be removed when it has ended.
pub(super) fn half_a_processor(redis: &Redis) -> String {
    let script = format!(
        "if [ -d /sys/fs/cgroup/cpu ]; then g=/sys/fs/cgroup/cpu/meio-bench-$$; mkdir -p $g && echo 50000 > $g/cpu.cfs_quota_us
else g=/sys/fs/cgroup/meio-bench-$$; mkdir -p $g && echo '50000 100000' > $g/cpu.max; fi && echo {} > $g/cgroup.procs && echo $g",
        redis.pid
    );
    redis.hosts.hosts[0].plain("sh", &["-c", &script]).trim().to_owned()
}

/// The same of a redis that may use half a processor.
pub fn half(_: &Bench, _: usize) -> Vec<Figure> {
    let redis = Redis::start(256);
    let group = half_a_processor(&redis);
    let much = || a_second(&Load::like(MUCH).end());
    let alone = much();
    let while_watched = |more: &[&str]| {
        let watched = redis.watch(&[more, &["--timeout", "10s"]].concat());
        let rate = much();
        watched.end(&redis.lab, &redis.hosts);
        rate
    };
    let hold = while_watched(&[]);
    let hot = while_watched(&["--guarantee", "hot"]);
    drop(redis);
    let _ = fs::remove_dir(group);
    vec![
        part("`watch` of a redis that has half a processor, 200 clients with 32 requests under way each: `hold`", 0.75, hold, alone),
        part("the same: `hot`", 0.9, hot, alone),
    ]
}

/// The pause of an epoch that goes to three standbys, of which one is waited for, beside that of one that goes to one.
pub fn several(_: &Bench, _: usize) -> Vec<Figure> {
    let redis = Redis::among(256, 4);
    let pause = |more: &[&str]| {
        let watched = redis.watch(&[more, &["--timeout", "10s"]].concat());
        let rate = a_second(&Load::begin(50, redis.keys).end());
        let said = watched.end(&redis.lab, &redis.hosts);
        (said["median_stop_ms"].as_f64().unwrap_or(f64::NAN), rate)
    };
    let (one, rate_of_one) = pause(&[]);
    let others = redis.hosts.hosts[2..].iter().flat_map(|host| ["--standby", &host.address]);
    let (three, rate) = pause(&others.chain(["--ack", "1"]).collect::<Vec<_>>());
    vec![
        Figure::new(
            "`watch`, redis, 256 MiB, 50 clients: pause of an epoch with three standbys and `--ack 1`, of that with one",
            "110 %",
            format!("{:.0} % ({} and {})", three / one * 100.0, ms(three), ms(one)),
            Some(three <= one * 1.1),
        ),
        Figure::new("the same: answers a second", "", format!("{rate:.0} and {rate_of_one:.0}"), None),
    ]
}

/// A tree that does nothing.
pub fn idle(bench: &Bench, _: usize) -> Vec<Figure> {
    let program = super::writer(bench);
    let lab = Lab::new("bench-still");
    let hosts = Hosts::new(&lab, 2);
    hosts.hosts.iter().for_each(|host| drop(host.plain("mount", &["-t", "tmpfs", "lib", "/var/lib"])));
    let [ready, board] = ["ready", "board"].map(|name| lab.path(name).display().to_string());
    fs::write(&board, [0; 4096]).expect("a board");
    // Twenty pages in two hundred thousand seconds.
    let pid = hosts.hosts[0].start(&lab, &program.display().to_string(), &[&ready, &board, "1024", "0.0001"]);
    assert!(until(SOON, || Path::new(&ready).exists()), "it does not get ready: {}", lab.log());
    let watched = Watched::begin(&lab, &hosts, pid, &["--timeout", "10s", "--guarantee", "hot"]);
    // The first copy is over by then, and it has been seen that nothing happens.
    std::thread::sleep(Duration::from_secs(10));
    let share = super::share(&hosts);
    std::thread::sleep(super::WHILE);
    let [here, there, _] = share();
    watched.end(&lab, &hosts);
    vec![Figure::new(
        "`watch`, 1 GiB that nobody writes to: of a core, primary's meio; and standby's",
        "2 %",
        format!("{here:.1} %; {there:.1} %"),
        Some(here <= 2.0),
    )]
}

/// How long a client waits for its next answer when the host is lost, by time-out.
pub fn stalls(_: &Bench, rounds: usize) -> Vec<Figure> {
    let of = |(timeout, wished): (&str, f64)| {
        let all: Vec<f64> = (0..rounds.min(3)).map(|_| take_over(256, timeout, false).stall).collect();
        let stall = median(all);
        let name = if timeout.is_empty() { "the usual time-out".to_owned() } else { format!("`--timeout {timeout}`") };
        Figure::new(&format!("`watch`, the host is lost: a client waits, {name}, median"), &ms(wished), ms(stall), Some(stall <= wished))
    };
    [("", 1500.0), ("200ms", 700.0), ("100ms", 250.0)].map(of).into()
}
