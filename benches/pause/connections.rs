//! What connections cost: idle ones by the thousand, and a redis under load; and how long whoever asks on one of them waits.

use super::{Bench, end, median, ms, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PORT: &str = "7000";

/// Idle connections of one row; the first is what the others are compared with.
const COUNTS: [u64; 4] = [0, 100, 1000, 10_000];
/// Descriptors that are needed for each: the program's own number, and meio's own.
const NUMBERS: u64 = 2;

/// One dump while the tree goes on, one with `--kill`, and a restore; milliseconds.
struct Round {
    pause: f64,
    sockets: f64,
    restore: f64,
    /// The longest answer to somebody who asks all the time, over each.
    stall: f64,
    gone: f64,
}

/// A table of idle connections.
pub fn idle(bench: &Bench, rounds: usize) {
    let program = compile(bench);
    println!(
        "| idle connections | pause | one costs | of it sockets | one costs | restore | one costs | longest answer over `dump` | over `dump --kill`, `restore` |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut none = None;
    for count in COUNTS {
        // Without the right to raise the limit of open files some fewer fit.
        let count = count.min((most_descriptors().saturating_sub(200)) / NUMBERS);
        let all: Vec<Round> = (0..=rounds).map(|_| round(bench, &program, count)).skip(1).collect();
        let of = |what: fn(&Round) -> f64| median(all.iter().map(what).collect());
        let now = [of(|r| r.pause), of(|r| r.sockets), of(|r| r.restore)];
        let first = *none.get_or_insert(now);
        let one = |n: usize| if count == 0 { String::new() } else { format!("{:.1} µs", (now[n] - first[n]) * 1e3 / count as f64) };
        println!(
            "| {count} | {} | {} | {} | {} | {} | {} | {} | {} |",
            ms(now[0]),
            one(0),
            ms(now[1]),
            one(1),
            ms(now[2]),
            one(2),
            ms(of(|r| r.stall)),
            ms(of(|r| r.gone)),
        );
    }
    println!();
}

fn most_descriptors() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // proc_pid_status(5): CAP_SYS_RESOURCE is bit 24.
    let capabilities = read("/proc/self/status").lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    if capabilities.is_some_and(|c| c >> 24 & 1 != 0) {
        return read("/proc/sys/fs/nr_open").trim().parse().unwrap_or(0);
    }
    let limits = read("/proc/self/limits");
    limits.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn compile(bench: &Bench) -> PathBuf {
    let program = bench.folder.path().join("connections");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/connections.c");
    let made = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source).status();
    assert!(made.expect("cc starts").success(), "connections does not compile");
    program
}

/// Starts one of the programs and waits until it is ready.
fn start(bench: &Bench, program: &Path, words: &[&str]) -> Child {
    let ready = bench.folder.path().join("c.ready");
    let _ = fs::remove_file(&ready);
    let mut command = Command::new("setsid");
    command.arg(program).arg(words[0]).arg(&ready).args(&words[1..]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid(1) starts");
    until(|| ready.exists());
    child
}

/// The longest answer that somebody waits for while something is done, in milliseconds.
fn longest_answer(bench: &Bench, program: &Path, work: impl FnOnce()) -> f64 {
    let report = bench.folder.path().join("c.report");
    let mut ping = start(bench, program, &["ping", PORT, report.to_str().expect("path")]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    work();
    std::thread::sleep(std::time::Duration::from_millis(300));
    Command::new("kill").arg(ping.id().to_string()).status().expect("kill(1) starts");
    assert!(ping.wait().expect("wait").success(), "somebody was not answered");
    let report = fs::read_to_string(report).expect("report");
    report.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).expect("a number") / 1e6
}

fn round(bench: &Bench, program: &Path, count: u64) -> Round {
    let image = Path::new("/dev/shm/bench.meio");
    let name = image.to_str().expect("path");
    let mut server = start(bench, program, &["serve", PORT]);
    let pid = server.id().to_string();
    let mut holder = start(bench, program, &["hold", PORT, &count.to_string()]);
    let (mut dump, mut restore) = (serde_json::Value::Null, serde_json::Value::Null);
    let stall = longest_answer(bench, program, || dump = bench.meio(&["--json", "dump", &pid, "-o", name]).0);
    let gone = longest_answer(bench, program, || {
        bench.meio(&["--json", "dump", &pid, "-o", name, "--kill"]);
        server.wait().expect("wait");
        restore = bench.meio(&["--json", "restore", "-d", name]).0;
    });
    Command::new("kill").args(["-KILL", &pid]).status().expect("kill(1) starts");
    until(|| !Path::new("/proc").join(&pid).exists());
    end(&mut holder);
    let _ = fs::remove_file(image);
    let number = |value: &serde_json::Value, name: &str| value[name].as_f64().unwrap_or_else(|| panic!("{name} in {value}"));
    let sockets = ["lock", "sockets", "waiting connections"].iter().map(|p| phase(&dump, p)).sum();
    Round { pause: number(&dump, "pause_ms"), sockets, restore: number(&restore, "total_ms"), stall, gone }
}

/// Time of a phase, 0 when there was none.
fn phase(result: &serde_json::Value, name: &str) -> f64 {
    let phases = result["phases"].as_array().expect("phases");
    phases.iter().find(|p| p["phase"] == name).map_or(0.0, |p| p["ms"].as_f64().expect("ms"))
}

/// A redis of 256 MiB under load, by the parts of its pause.
pub fn redis(bench: &Bench, rounds: usize) {
    const DATA: u64 = 256;
    let quiet = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).current_dir(bench.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let server = ["redis-server", "--port", PORT, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"];
    let Ok(mut redis) = quiet("setsid", &server).spawn() else { return };
    let ask = |words: &[&str]| quiet("redis-cli", &[&["-p", PORT], words].concat()).status().is_ok_and(|s| s.success());
    if !quiet("redis-server", &["--version"]).status().is_ok_and(|s| s.success()) {
        let _ = redis.wait();
        println!("redis is not installed.\n");
        return;
    }
    until(|| ask(&["ping"]));
    // A script of its own: nothing but the server makes the data.
    let fill = "for i = 1, ARGV[1] do redis.call('SET', 'd' .. i, string.rep(tostring(i), 1048576):sub(1, 1048576)) end";
    assert!(ask(&["EVAL", fill, "0", &DATA.to_string()]));
    let mut load = quiet("redis-benchmark", &["-p", PORT, "-c", "50", "-l", "-q", "-t", "set,get,incr"]).spawn().expect("redis-benchmark");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let pid = redis.id().to_string();
    let parts: Vec<[f64; 5]> = (0..=rounds)
        .map(|_| {
            let done = bench.meio(&["--json", "dump", &pid, "-o", "/dev/shm/bench.meio"]).0;
            let pause = done["pause_ms"].as_f64().expect("pause");
            let (freeze, rest) = (phase(&done, "freeze"), phase(&done, "capture"));
            let sockets = ["lock", "sockets", "waiting connections"].iter().map(|p| phase(&done, p)).sum::<f64>();
            [pause, freeze, pause - freeze - sockets - rest, sockets, rest]
        })
        .skip(1)
        .collect();
    assert!(load.try_wait().expect("wait").is_none(), "a client of redis has ended");
    end(&mut load);
    end(&mut redis);
    let _ = fs::remove_file("/dev/shm/bench.meio");
    let of = |n: usize| ms(median(parts.iter().map(|p| p[n]).collect()));
    println!("| program | pause | freeze | memory | sockets | rest |\n|---|--:|--:|--:|--:|--:|");
    println!("| redis, {DATA} MiB, 50 busy connections | {} | {} | {} | {} | {} |\n", of(0), of(1), of(2), of(3), of(4));
}
