//! How long a tree stands still, how long all of it takes, and how that compares with what the machine needs to
//! merely copy or touch as much memory. `make bench` prints tables in Markdown: the figures that are aimed at, then what
//! else there is to know.
//!
//! `cargo bench --bench pause -- [--rounds N] [--mib N]... [--figures] [--small] [--connections] [--moves] [--watch]` makes a shorter run.

#[path = "pause/connections.rs"]
mod connections;
#[path = "pause/figures.rs"]
mod figures;
#[path = "pause/full.rs"]
mod full;
#[path = "pause/lab.rs"]
mod lab;
#[path = "pause/lazy.rs"]
mod lazy;
#[path = "pause/live.rs"]
mod live;
#[path = "pause/many.rs"]
mod many;
#[path = "pause/migrate.rs"]
mod migrate;
#[path = "pause/peer.rs"]
mod peer;
#[path = "pause/small.rs"]
mod small;
#[path = "pause/watch.rs"]
mod watch;
#[path = "pause/witness.rs"]
mod witness;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set inside of the namespace that everything runs in.
const INSIDE: &str = "MEIO_BENCH_INSIDE";
/// The first process of that namespace: it reaps orphans, so that pids are free again, and drops inherited descriptors,
/// which a tree could not take along. Its own are the network and System V objects, too.
const INIT: &str =
    r#"ip link set lo up; for fd in /proc/self/fd/*; do [ "${fd##*/}" -gt 2 ] && eval "exec ${fd##*/}>&-"; done; "$@"; exit $?"#;
const MEIO: &str = env!("CARGO_BIN_EXE_meio");

/// What is to be measured.
struct Plan {
    rounds: usize,
    /// Moves between machines.
    moves: usize,
    sizes: Vec<u64>,
    only: Option<Part>,
    /// Which measurement of a part of the figures, from 1; all of them without it.
    row: Option<usize>,
}

/// A part of the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Figures,
    Connections,
    Moves,
    Small,
    Watch,
}

fn main() {
    let plan = plan();
    if std::env::var_os(INSIDE).is_none() {
        let status = Command::new("unshare")
            .args(["--pid", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc", "bash", "-c", INIT, "bash"])
            .arg(std::env::current_exe().expect("own path"))
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .stdin(Stdio::null())
            .status()
            .expect("unshare(1) of util-linux starts");
        std::process::exit(status.code().unwrap_or(1));
    }
    let bench = Bench::new(plan.moves, plan.row);
    println!("{}\n", machine());
    let wanted = |part| plan.only.is_none_or(|only| only == part);
    if wanted(Part::Figures) {
        figures::table(&bench, plan.rounds);
    }
    if plan.only == Some(Part::Moves) {
        figures::moves(&bench, plan.rounds);
    }
    if plan.only == Some(Part::Watch) {
        figures::watch(&bench, plan.rounds);
    }
    if wanted(Part::Connections) {
        connections::redis(&bench, plan.rounds);
        connections::idle(&bench, plan.rounds);
    }
    if plan.only.is_none() {
        full::table(&bench, &plan.sizes, plan.rounds);
    }
    if wanted(Part::Small) {
        small::table(&bench, plan.rounds);
    }
    println!("\nMedians of {}, after one run that does not count; the image is read from the page cache.", plan.rounds);
}

fn plan() -> Plan {
    let mut plan = Plan { rounds: 5, moves: 10, sizes: Vec::new(), only: None, row: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0).expect("a number");
        match argument.as_str() {
            "--rounds" => {
                plan.rounds = number() as usize;
                plan.moves = plan.rounds;
            }
            "--mib" => plan.sizes.push(number()),
            "--row" => plan.row = Some(number() as usize),
            "--figures" => plan.only = Some(Part::Figures),
            "--small" => plan.only = Some(Part::Small),
            "--watch" => plan.only = Some(Part::Watch),
            "--moves" => plan.only = Some(Part::Moves),
            "--connections" => plan.only = Some(Part::Connections),
            "--bench" => {} // said by cargo
            other => panic!("what is {other}?"),
        }
    }
    if plan.sizes.is_empty() {
        plan.sizes = vec![256, 1024];
    }
    plan
}

/// What the program that is dumped holds.
#[derive(Clone, Copy)]
enum Load {
    /// MiB of random bytes, and threads.
    Memory(u64, u32),
    /// MiB of text, pointers and zeros.
    Mixed(u64),
    /// Processes, and threads of each.
    Many(u32, u32),
    /// Files, pipes, event and timer descriptors, sockets, epoll instances, devices.
    Descriptors(u32),
}

/// One dump and one restore; times in milliseconds.
struct Run {
    pause: f64,
    dump: f64,
    dump_command: f64,
    restore: f64,
    restore_command: f64,
    image: f64,
    peak_kib: f64,
    /// Of that, what belongs to no file.
    own_kib: f64,
    phases: String,
}

/// A folder on disk and the programs that are dumped.
struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
    mixed: PathBuf,
    moves: usize,
    row: Option<usize>,
}

impl Bench {
    fn new(moves: usize, row: Option<usize>) -> Bench {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let compile = |name: &str, source: &str| {
            let program = folder.path().join(name);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
            let made = Command::new("cc").args(["-O2", "-Wall", "-pthread", "-o"]).arg(&program).arg(source).status();
            assert!(made.expect("cc starts").success(), "{name} does not compile");
            program
        };
        let program = compile("memory", "benches/memory.c");
        let mixed = compile("mixed", "fixtures/programs/mixed.c");
        Bench { folder, program, mixed, moves, row }
    }

    /// memcpy into touched memory, memcpy into fresh memory, first touch.
    fn speed(&self, mib: u64) -> [f64; 3] {
        let out = Command::new(&self.program).args(["speed", &mib.to_string()]).output().expect("memory starts");
        assert!(out.status.success());
        let text = String::from_utf8(out.stdout).expect("numbers");
        let mut times = text.split_whitespace().map(|n| n.parse::<f64>().expect("a number") / 1e6);
        [0; 3].map(|_| times.next().expect("three numbers"))
    }

    /// A program is started, dumped, killed, restored and killed.
    fn round(&self, load: Load, level: &str, folder: &Path) -> Run {
        let image = folder.join("bench.meio");
        let mut child = self.start(load);
        let pid = child.id().to_string();
        let image_name = image.to_str().expect("path");
        let (dump, dump_command, [peak_kib, own_kib]) = self.meio(&["--json", "dump", &pid, "-o", image_name, "--compress", level]);
        end_all(&mut child);
        let (restore, restore_command, _) = self.meio(&["--json", "restore", "-d", image_name]);
        let restored = restore["root_pid"].as_i64().expect("root_pid").to_string();
        assert_eq!(restored, pid);
        kill_session(&restored);
        until(|| !Path::new("/proc").join(&restored).exists());
        let _ = fs::remove_file(&image);
        let number = |value: &serde_json::Value, name: &str| value[name].as_f64().unwrap_or_else(|| panic!("{name} in {value}"));
        let run = Run {
            pause: number(&dump, "pause_ms"),
            dump: number(&dump, "total_ms"),
            dump_command,
            restore: number(&restore, "total_ms"),
            restore_command,
            image: number(&dump, "image_bytes"),
            peak_kib,
            own_kib,
            phases: format!("dump {} restore {} in {:.0} ms", dump["phases"], restore["phases"], number(&restore, "total_ms")),
        };
        if std::env::var_os("MEIO_BENCH_PHASES").is_some() {
            eprintln!("pause {:.1} ms: {}", run.pause, run.phases);
        }
        run
    }

    /// Starts a program, in a session of its own, and waits until it has what it is to have.
    fn start(&self, load: Load) -> Child {
        let (prefix, ready) = (self.folder.path().join("x"), self.folder.path().join("x.ready"));
        let _ = fs::remove_file(&ready);
        let mut command = Command::new("setsid");
        match load {
            Load::Memory(mib, threads) => command.arg(&self.program).arg("hold").arg(&ready).args([mib.to_string(), threads.to_string()]),
            Load::Mixed(mib) => command.arg(&self.program).arg("mixed").arg(&ready).arg(mib.to_string()),
            Load::Many(processes, threads) => {
                command.arg(&self.program).arg("many").arg(&ready).args([processes.to_string(), threads.to_string()])
            }
            Load::Descriptors(count) => command.arg(&self.mixed).arg(&prefix).arg(count.to_string()),
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setsid(1) starts");
        until(|| ready.exists());
        child
    }

    /// Runs meio: its result, milliseconds from exec to exit, the peaks of its memory and of what belongs to no file, in KiB.
    fn meio(&self, arguments: &[&str]) -> (serde_json::Value, f64, [f64; 2]) {
        let [report, out, err] = ["report", "out", "err"].map(|name| self.folder.path().join(name));
        let status = Command::new(&self.program)
            .arg("run")
            .args([&report, Path::new(MEIO)])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("file"))
            .stderr(File::create(&err).expect("file"))
            .status()
            .expect("memory starts");
        let (out, err) = (fs::read_to_string(out).expect("text"), fs::read_to_string(err).expect("text"));
        assert!(status.success(), "meio {arguments:?}: {status}\n{out}{err}");
        let result = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("a result");
        let report = fs::read_to_string(report).expect("report");
        let mut numbers = report.split_whitespace().map(|n| n.parse::<f64>().expect("a number"));
        let [nanoseconds, peak, own] = [0; 3].map(|_| numbers.next().expect("three numbers"));
        (result, nanoseconds / 1e6, [peak, own])
    }
}

fn end(child: &mut Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// Ends a program that was started as the leader of a session, and all in it.
fn end_all(child: &mut Child) {
    kill_session(&child.id().to_string());
    child.wait().expect("wait");
}

/// Ends all processes of a session, and waits until they have gone; but its leader may wait for its parent.
fn kill_session(leader: &str) {
    let others = || {
        let listed = Command::new("ps").args(["-o", "pid=,stat=", "--sid", leader]).output().expect("ps(1) starts");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let alive =
            listed.lines().filter_map(|l| l.trim().split_once(' ')).filter(|(pid, state)| *pid != leader || !state.trim().starts_with('Z'));
        alive.map(|(pid, _)| pid.to_owned()).collect::<Vec<_>>()
    };
    until(|| {
        let pids = others();
        if !pids.is_empty() {
            Command::new("kill").arg("-KILL").args(&pids).stderr(Stdio::null()).status().expect("kill(1) starts");
        }
        pids.is_empty()
    });
}

fn until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(time: f64) -> String {
    if time < 10.0 { format!("{time:.1} ms") } else { format!("{time:.0} ms") }
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let field = |name: &str| cpus.lines().find(|l| l.starts_with(name)).and_then(|l| l.split(": ").nth(1)).unwrap_or("?").to_string();
    let memory = read("/proc/meminfo");
    let kib: f64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let virtual_machine = if field("flags").split(' ').any(|f| f == "hypervisor") { " (a virtual machine)" } else { "" };
    format!(
        "{}, {} cores, {:.0} GiB{virtual_machine}, Linux {}, meio {}",
        field("model name"),
        cpus.lines().filter(|l| l.starts_with("processor")).count(),
        kib / 1048576.0,
        read("/proc/sys/kernel/osrelease").trim(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Type of the file system of a folder, as in /proc/self/mounts.
fn file_system(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        folder.starts_with(point).then(|| (point.len(), kind.to_string()))
    };
    mounts.lines().filter_map(below).max().map_or_else(|| "?".into(), |found| found.1)
}
