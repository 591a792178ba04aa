//! Trees on their way from kernel to kernel: each is dumped under one and goes on under another.
//!
//! All that passes between the kernels is a folder, `TRAVELLER/` with the files of the traveller and an image for each
//! way that it has gone: `6.1.meio` was made where it set out, `6.1-6.12.meio` after it had come to the second.

use crate::lab::{self, Outcome, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What travels: a name, a program of `fixtures/programs` or an interpreter, and its arguments.
const TRAVELLERS: &[(&str, &str, &[&str])] = &[
    ("clocks", "clocks", &["8"]),
    ("vdso", "vdso", &["foreign"]),
    ("threads", "threads", &["50"]),
    ("vectors", "vectors", &["spin"]),
    ("pipes", "pipes", &[]),
    ("signals", "signals", &[]),
    ("timers", "timers", &[]),
    ("memfd", "memfd", &[]),
    ("tree", "tree", &[]),
    ("stacks", "stacks", &[]),
    ("bash", "/bin/bash", &[BASH]),
    ("python", "/usr/bin/python3", &[PYTHON]),
    ("redis", "/bin/bash", &[REDIS]),
];

/// Counts, with a child for each step; arguments are the prefix of its files.
const BASH: &str = r#"n=0; sum=0; sleep 100000 & child=$!
while [ ! -e "$0.go" ]; do
    n=$((n + 1)); sum=$((sum + n)); [ $n != 3 ] || echo ready >"$0.ready"
    printf -v now '%(%s)T'; [ "$now" -ge "${last:-0}" ] || { echo "the clock went back" >"$0.result"; exit 1; }
    last=$now; read -t 0.05 <&9
done 9<> <(:)
[ "$(date +%s)" -ge "$last" ] || sum=0
[ $sum = $((n * (n + 1) / 2)) ] && kill -0 $child && kill $child && echo ok >"$0.result" || echo wrong >"$0.result""#;

/// Threads that look at clocks, and a large dictionary.
const PYTHON: &str = r#"
import os, sys, threading, time
prefix = sys.argv[1]
table = {str(i): i * i for i in range(50000)}
stop, backwards, counts = [], [], [0, 0]
def look(n):
    last = time.monotonic_ns()
    while not stop:
        now = time.monotonic_ns()
        if now < last: backwards.append(last - now)
        last, counts[n] = now, counts[n] + 1
        if counts[n] % 1000 == 0: time.sleep(0.001)
threads = [threading.Thread(target=look, args=(n,)) for n in range(2)]
for t in threads: t.start()
while min(counts) < 10: time.sleep(0.001)
open(prefix + ".ready", "w").write("ready\n")
while not os.path.exists(prefix + ".go"): time.sleep(0.01)
before = list(counts)
while min(c - b for c, b in zip(counts, before)) < 10: time.sleep(0.001)
stop.append(1)
for t in threads: t.join()
right = not backwards and all(table[str(i)] == i * i for i in range(50000)) and abs(time.time() - time.clock_gettime(0)) < 5
with open(prefix + ".draft", "w") as f: f.write("ok\n" if right else f"wrong: {backwards[:3]}\n")
os.rename(prefix + ".draft", prefix + ".result")
"#;

/// A server with data, asked before and after.
const REDIS: &str = r#"redis-server --port 0 --unixsocket "$0.socket" --save "" --appendonly no >/dev/null 2>&1 &
ask() { redis-cli -s "$0.socket" "$@"; }
until [ "$(ask ping 2>/dev/null)" = PONG ]; do sleep 0.05; done
for i in 1 2 3 4 5 6 7 8 9; do ask set key$i "value of $i" >/dev/null; ask incr count >/dev/null; done
echo ready >"$0.ready"
until [ -e "$0.go" ]; do sleep 0.05; done
[ "$(ask get key7)" = "value of 7" ] && [ "$(ask incr count)" = 10 ] && [ "$(ask dbsize)" = 10 ] && said=ok || said=wrong
ask shutdown nosave; wait; echo $said >"$0.result""#;

/// Where all of them are, on every machine.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("journeys")
}

/// The two numbers that a kernel is known by.
pub fn short(release: &str) -> String {
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

struct Traveller {
    name: &'static str,
    folder: PathBuf,
}

impl Traveller {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs meio to its end.
    fn meio(&self, arguments: &[&str]) -> Outcome {
        let (out, err) = (self.file("stdout"), self.file("stderr"));
        let mut child = Command::new(crate::MEIO)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("stdout"))
            .stderr(File::create(&err).expect("stderr"))
            .spawn()
            .expect("meio starts");
        let begin = lab::now();
        let mut status = None;
        until(Duration::from_secs(60), || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        let code = status.and_then(|s| s.code()).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            -1
        });
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        Outcome { code, stdout: text(&out), stderr: text(&err), time: (begin, lab::now()) }
    }

    fn must(&self, arguments: &[&str]) -> Result<(u64, u64), String> {
        match self.meio(arguments) {
            Outcome { code: 0, time, .. } => Ok(time),
            // The processors differ; that is the only thing.
            Outcome { code: 3, time, stderr, .. } if stderr.lines().filter(|l| l.starts_with("warning")).all(|l| l.contains("XCR0")) => {
                Ok(time)
            }
            done => Err(format!("meio {}: exit {}: {}", arguments[0], done.code, one_line(&done.stderr))),
        }
    }

    /// Starts and is dumped.
    fn depart(&self, program: &str, arguments: &[&str], from: &str) -> Result<(), String> {
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).expect("folder");
        let prefix = self.file("x").to_str().expect("path").to_owned();
        let mut command = Command::new("setsid");
        // Nothing that the other processors or users may lack.
        command.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ");
        let bounds = std::env::var("BOUNDS").unwrap_or_default();
        if !bounds.is_empty() {
            command.args(["setpriv", "--bounding-set", &bounds]);
        }
        match program {
            path if path.starts_with('/') => command.arg(path).arg("-c").args(arguments).arg(&prefix),
            fixture => command.arg(lab::compile(fixture)).arg(&prefix).args(arguments),
        };
        let log = || File::options().create(true).append(true).open(self.file("log")).expect("log");
        // Their own numbers are to be free elsewhere, too.
        let _ = fs::write("/proc/sys/kernel/ns_last_pid", "20000");
        let command = command.current_dir(&self.folder).stdin(Stdio::null()).stdout(log()).stderr(log());
        let mut child = command.spawn().expect("setsid(1) starts");
        let ready = until(lab::SOON, || fs::read_to_string(self.file("x.ready")).is_ok_and(|said| !said.is_empty()));
        let said = fs::read_to_string(self.file("x.ready")).unwrap_or_default();
        let image = format!("{from}.meio");
        let pid = child.id().to_string();
        let done = match said.strip_prefix("skip ") {
            Some(why) => Err(format!("skipped: {}", one_line(why))),
            None if !ready => Err(format!("is not ready: {}", one_line(&fs::read_to_string(self.file("log")).unwrap_or_default()))),
            None => self.must(&["dump", &pid, "-o", &image, "--kill"]).map(|dumped| Away::default().save(self, from, dumped)),
        };
        end_all();
        let _ = child.wait();
        fs::write(self.file("pid"), pid).expect("pid");
        done
    }

    /// Comes from where `image` was made, is dumped again to `next`, and shows that nothing is missing.
    fn arrive(&self, from: &str, next: Option<&str>) -> Result<(), String> {
        let image = format!("{from}.meio");
        if !self.file(&image).exists() {
            return Err("did not set out".into());
        }
        for sign in ["x.go", "x.result"] {
            let _ = fs::remove_file(self.file(sign));
        }
        let (begin, end_of) = self.must(&["restore", "-d", &image])?;
        let away = Away::load(self, from, (begin, end_of));
        let pid: i32 = fs::read_to_string(self.file("pid")).expect("pid").parse().expect("a number");
        let done = self.show(pid, next, away, end_of);
        end_all();
        done
    }

    fn show(&self, pid: i32, next: Option<&str>, away: Away, back: u64) -> Result<(), String> {
        if let Some(next) = next {
            let image = format!("{next}.meio");
            let _ = fs::remove_file(self.file(&image));
            away.save(self, next, self.must(&["dump", &pid.to_string(), "-o", &image])?);
        }
        // Where it was only dumped it was away a little longer.
        let longer = lab::now() - back;
        fs::write(self.file("x.away"), format!("{} {} {back}", away.min, away.max + longer)).expect("away");
        fs::write(self.file("x.go"), "").expect("go");
        until(Duration::from_secs(60), || {
            let said = fs::read_to_string(self.file("x.result")).unwrap_or_default();
            said.ends_with('\n') || observe::state(pid).is_none()
        });
        match fs::read_to_string(self.file("x.result")).unwrap_or_default().as_str() {
            "ok\n" => Ok(()),
            said => Err(format!("says {}; {}", one_line(said), one_line(&fs::read_to_string(self.file("log")).unwrap_or_default()))),
        }
    }
}

/// How long a tree has been away in all, as the clock of every machine says: at least, at most.
#[derive(Default)]
struct Away {
    min: u64,
    max: u64,
}

impl Away {
    fn save(&self, traveller: &Traveller, image: &str, dumped: (u64, u64)) {
        let text = format!("{} {} {} {}", self.min, self.max, dumped.0, dumped.1);
        fs::write(traveller.file(&format!("{image}.away")), text).expect("away");
    }

    fn load(traveller: &Traveller, image: &str, restored: (u64, u64)) -> Away {
        let text = fs::read_to_string(traveller.file(&format!("{image}.away"))).expect("away");
        let n: Vec<u64> = text.split(' ').map(|n| n.parse().expect("a number")).collect();
        Away { min: n[0] + restored.0 - n[3], max: n[1] + restored.1 - n[2] }
    }
}

fn one_line(text: &str) -> String {
    let line: String = text.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join(" | ");
    line.chars().take(400).collect()
}

/// Ends everything but this process and the one that began the namespace.
fn end_all() {
    let own = std::process::id() as i32;
    until(lab::SOON, || {
        let others: Vec<i32> = observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).collect();
        for &pid in &others {
            // it may have ended by itself in between
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        others.iter().all(|&pid| observe::state(pid).is_none_or(|state| state == 'Z'))
    });
}

/// Does what `JOURNEY` says: steps `depart HERE`, `arrive IMAGE`, `arrive IMAGE NEXT`, one after the other.
pub fn go(steps: &str) {
    let only = std::env::var("TRAVELLER").unwrap_or_default();
    for step in steps.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        let words: Vec<&str> = step.split_whitespace().collect();
        for &(name, program, arguments) in TRAVELLERS.iter().filter(|t| t.0.contains(&only)) {
            // Those who set out under different kernels never meet.
            let origin = words[1].split('-').next().unwrap_or_default();
            let traveller = Traveller { name, folder: folder().join(format!("{name}-from-{origin}")) };
            let done = match words[..] {
                ["depart", here] => traveller.depart(program, arguments, here),
                ["arrive", image] => traveller.arrive(image, None),
                ["arrive", image, next] => traveller.arrive(image, Some(next)),
                _ => panic!("no such step: {step}"),
            };
            println!("journey: {step}: {}: {}", traveller.name, done.err().unwrap_or_else(|| "ok".into()));
        }
    }
}
