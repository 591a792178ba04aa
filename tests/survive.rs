//! Whatever fails and whenever meio dies, the tree that it dumps goes on unharmed, and of a tree that it restores
//! nothing is left unless all of it runs.
//!
//! Every kernel call of an undisturbed run is made to fail once, and meio is killed at every one of them; then it is
//! killed at instants that have nothing to do with its calls. `make survive` does all of it, which takes long; without
//! `SURVIVE=all` each test does an even selection for a few seconds.

mod calls;
mod connections;
mod source;

use crate::lab::{Lab, Outcome, SOON, observe, until};
use calls::{Case, Injury};
use nix::sys::signal::Signal;
use source::{Kind, Source};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What one test may take when it does only a selection.
const SLICE: Duration = Duration::from_secs(5);
/// Failures after which nothing new is to be learned.
const ENOUGH: usize = 25;
/// What meio promises to end with (`src/error.rs`).
const PROMISED: [i32; 9] = [1, 2, 3, 10, 11, 12, 13, 14, 130];
const KILLED: i32 = 128 + 9;
const ABORTED: i32 = 128 + 6;

fn all() -> bool {
    std::env::var("SURVIVE").is_ok_and(|v| v == "all")
}

fn kill(pid: i32) {
    // it may have ended by itself
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}

/// Runs `attempt` for all of `0..n`, or evenly spread ones until the time is up, and lists all failures.
fn each(what: &str, n: usize, mut attempt: impl FnMut(usize) -> Result<(), String>) {
    let begin = Instant::now();
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // steps of the golden section spread evenly however soon it ends
    let step = (n * 618 / 1000..).find(|&s| s > 0 && gcd(s, n) == 1).expect("a step");
    let step = if all() { 1 } else { step };
    let (mut done, mut failures) = (0, Vec::new());
    for i in 0..n {
        if (!all() && begin.elapsed() > SLICE) || failures.len() >= ENOUGH {
            break;
        }
        if let Err(why) = attempt(i * step % n) {
            if all() {
                println!("survive: {why}");
            }
            failures.push(why);
        }
        done += 1;
    }
    // the harness has begun a line of its own
    println!("\nsurvive: {what}: {done} of {n} done in {:.0?}, {} failed", begin.elapsed(), failures.len());
    assert!(failures.is_empty(), "{what}: {} of {done} failed\n\n{}", failures.len(), failures.join("\n\n"));
}

/// What an image's folder holds is complete, and nothing else lies there. Empties it, but for an image to `keep`.
fn images(lab: &Lab, image: &Path, killed: bool, keep: bool) -> Result<(), String> {
    for entry in fs::read_dir(lab.path("images")).expect("folder").flatten() {
        if entry.path() == image {
            let done = lab.run(lab.meio(&["verify", image.to_str().expect("path")]));
            if done.code != 0 {
                return Err(format!("half an image has the final name: {}", done.stderr));
            }
        } else if !killed {
            return Err(format!("a file is left: {:?}", entry.file_name()));
        }
        if entry.path() != image || !keep {
            fs::remove_file(entry.path()).expect("remove");
        }
    }
    if keep && !image.exists() { Err("the image that was there before has gone".into()) } else { Ok(()) }
}

/// How meio ended is what it promises.
fn promised(case: &Case, outcome: &Outcome) -> Result<(), String> {
    let Outcome { code, stderr, .. } = outcome;
    match (case.injury, *code) {
        (_, 0) => Ok(()),
        (Injury::Killed, KILLED) => Ok(()),
        // Slowed down by strace, a storm may outlast the time for stopping it: a clear refusal, and it goes on.
        (Injury::Killed, 13) if stderr.contains("does not stop") => Ok(()),
        // A helper of meio's was killed, and meio itself tells of it.
        (Injury::Killed, 1) if stderr.contains("Operation canceled") => Ok(()),
        (Injury::Fails, ABORTED) if case.may_abort() => Ok(()),
        (Injury::Fails, code) if PROMISED.contains(&code) && (code == 3 || stderr.contains("error:")) => Ok(()),
        _ => Err(format!("meio ended with {code} and said: {stderr}")),
    }
}

/// What meio says that it has saved: `(2 processes, 7 tasks)`.
fn counted(outcome: &Outcome) -> &str {
    outcome.stdout.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(counted, _)| counted)
}

/// Every kernel call of a dump.
fn dump(kind: Kind, injury: Injury) {
    if kind == Kind::Capsule {
        source::furnish();
    }
    let lab = Lab::new("survive-dump");
    let image = lab.path("images/tree.meio");
    let command = |source: &Source| lab.meio(&["dump", &kind.target(source.pid()), "-o", image.to_str().expect("path")]);
    let mut source = Source::start(&lab, kind);
    // Each dump replaces the image of the one before.
    let replace = kind == Kind::Sleeper;
    let undisturbed = lab.run(command(&source));
    let cases = calls::list(&lab, &command(&source), true, injury);
    images(&lab, &image, false, replace).expect("an undisturbed dump");
    source.well(&lab).expect("undisturbed");
    each(&format!("dump of {kind:?}, a call {injury:?}"), cases.len(), |i| {
        let case = &cases[i];
        let judge = || -> Result<(), String> {
            let outcome = calls::run(&lab, &command(&source), case).ok_or("meio does not end")?;
            promised(case, &outcome)?;
            if outcome.code == 0 && kind != Kind::Storm && counted(&outcome) != counted(&undisturbed) {
                return Err(format!("only a part was saved: {}", outcome.stdout));
            }
            images(&lab, &image, injury == Injury::Killed, replace)?;
            source.well(&lab)
        };
        let result = judge().map_err(|why| format!("{case}\n    {why}"));
        if result.is_err() {
            source.running.kill();
            source = Source::start(&lab, kind);
            assert_eq!(lab.run(command(&source)).code, 0, "an undisturbed dump");
            let _ = images(&lab, &image, true, replace);
        }
        result
    });
    let _ = fs::remove_file(&image);
    lab.go_and_verify(source.running, SOON);
    lab.nothing_left();
}

/// Kills at instants that have nothing to do with meio's calls.
fn killed_at_random(kind: Kind, n: usize) {
    let lab = Lab::new("survive-random");
    let image = lab.path("images/tree.meio");
    let command = |source: &Source| lab.meio(&["dump", &kind.target(source.pid()), "-o", image.to_str().expect("path")]);
    let mut source = Source::start(&lab, kind);
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let done = lab.run(command(&source));
        assert_eq!(done.code, 0, "{}", done.stderr);
        longest = longest.max(Duration::from_nanos(done.time.1 - done.time.0));
        source.well(&lab).expect("undisturbed");
        images(&lab, &image, false, false).expect("undisturbed");
    }
    let mut seed = std::process::id() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    each(&format!("dump of {kind:?}, killed within {longest:?}"), n, |_| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let instant = longest.mul_f64((seed >> 11) as f64 / (1u64 << 53) as f64);
        let judge = || -> Result<(), String> {
            run_for(&mut command(&source), instant);
            source.well(&lab)?;
            images(&lab, &image, true, false)
        };
        let result = judge().map_err(|why| format!("killed after {instant:?}\n    {why}"));
        if result.is_err() {
            source.running.kill();
            source = Source::start(&lab, kind);
        }
        result
    });
    lab.go_and_verify(source.running, SOON);
    lab.nothing_left();
}

/// Starts a command and kills it after `time` unless it has ended.
fn run_for(command: &mut Command, time: Duration) {
    let null = std::process::Stdio::null;
    let mut child = command.stdout(null()).stderr(null()).spawn().expect("meio starts");
    let begin = Instant::now();
    // a sleep alone would be late by a timer's slack
    std::thread::sleep(time.saturating_sub(Duration::from_micros(200)));
    while begin.elapsed() < time {}
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// An image of a tree that is gone, and what is to be known of the tree.
struct Saved {
    kind: Kind,
    lab: Lab,
    image: String,
    root: i32,
    pids: Vec<i32>,
    links: String,
    mounts: String,
}

fn links() -> String {
    let all = fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces");
    all.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect::<Vec<_>>().join(" ")
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").expect("mounts")
}

impl Saved {
    fn new(kind: Kind) -> Saved {
        if kind == Kind::Capsule {
            source::furnish();
        }
        let mut lab = Lab::new("survive-restore");
        let (links, mounts) = (links(), mounts());
        let mut source = Source::start(&lab, kind);
        let mut pids = observe::tree(source.pid());
        pids.sort_unstable();
        let image = lab.dump(&mut source.running, &["--kill"]);
        Saved { kind, lab, image: image.to_str().expect("path").to_string(), root: source.pid(), pids, links, mounts }
    }

    fn command(&self) -> Command {
        self.lab.meio(&["restore", "-d", &self.image])
    }

    /// Those of the tree that are there, and whoever else is.
    fn left(&self) -> Vec<i32> {
        let own = std::process::id() as i32;
        observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).collect()
    }

    fn whole(&self) -> bool {
        // Numbers of a capsule are others outside every time.
        let left = self.left();
        left == self.pids || self.kind == Kind::Capsule && left.len() == self.pids.len()
    }

    fn gone(&self) -> Result<(), String> {
        // An interface goes a moment after the namespace that the other end was in.
        until(SOON / 4, || self.left().is_empty());
        if self.left().is_empty() && until(SOON, || links() == self.links) {
            if mounts() != self.mounts {
                return Err("mounts are left".into());
            }
            return if self.kind == Kind::Capsule { source::no_capsule(&self.lab) } else { Ok(()) };
        }
        let stat = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let left: Vec<_> = self.left().iter().map(stat).collect();
        Err(format!("of the processes {:?}, or others, some are left: {left:#?}; interfaces: {}", self.pids, links()))
    }

    /// The restored tree is whole, goes on, and ends when it is told to.
    fn well(&self) -> Result<(), String> {
        source::free(self.kind.root(self.root))?;
        self.kind.goes_on(&self.lab)?;
        fs::write(self.lab.path("x.go"), "").expect("go");
        until(SOON, || self.lab.path("x.result").exists());
        let said = fs::read_to_string(self.lab.path("x.result")).unwrap_or_default();
        if said.trim() != "ok" {
            return Err(format!("the restored tree says {said:?}"));
        }
        self.gone()
    }

    /// After a meio that was killed: nothing, or everything.
    fn nothing_or_everything(&self) -> Result<(), String> {
        // what the kernel has to end ends in a moment
        if until(Duration::from_millis(400), || self.left().is_empty()) {
            return Ok(());
        }
        let settled = until(SOON / 4, || self.left().is_empty() || (self.whole() && self.kind.goes_on(&self.lab).is_ok()));
        if !settled || self.left().is_empty() { self.gone() } else { self.well() }
    }

    /// Back to where only the image is.
    fn clean(&self) {
        until(SOON, || {
            self.left().into_iter().for_each(kill);
            self.left().is_empty()
        });
        for name in ["x.go", "x.result"] {
            let _ = fs::remove_file(self.lab.path(name));
        }
        if matches!(self.kind, Kind::Family | Kind::Spaces | Kind::Capsule) && !self.lab.path("x.fifo").exists() {
            nix::unistd::mkfifo(&self.lab.path("x.fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        }
    }
}

/// Every kernel call of a restore.
fn restore(kind: Kind, injury: Injury) {
    let saved = Saved::new(kind);
    let cases = calls::list(&saved.lab, &saved.command(), false, injury);
    saved.well().expect("undisturbed");
    saved.clean();
    each(&format!("restore of {kind:?}, a call {injury:?}"), cases.len(), |i| {
        let case = &cases[i];
        let judge = || -> Result<(), String> {
            let outcome = calls::run(&saved.lab, &saved.command(), case).ok_or("meio does not end")?;
            promised(case, &outcome)?;
            match outcome.code {
                0 | 3 => saved.well(),
                KILLED => saved.nothing_or_everything(),
                _ => saved.gone(),
            }
        };
        let result = judge().map_err(|why| format!("{case}\n    {why}"));
        saved.clean();
        result
    });
    saved.lab.nothing_left();
}

/// Kills of a restore at any instant.
fn restore_killed_at_random(kind: Kind, n: usize) {
    let saved = Saved::new(kind);
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let done = saved.lab.run(saved.command());
        assert_eq!(done.code, 0, "{}", done.stderr);
        longest = longest.max(Duration::from_nanos(done.time.1 - done.time.0));
        saved.well().expect("undisturbed");
        saved.clean();
    }
    let mut seed = std::process::id() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    each(&format!("restore of {kind:?}, killed within {longest:?}"), n, |_| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let instant = longest.mul_f64((seed >> 11) as f64 / (1u64 << 53) as f64);
        run_for(&mut saved.command(), instant);
        let result = saved.nothing_or_everything().map_err(|why| format!("killed after {instant:?}\n    {why}"));
        saved.clean();
        result
    });
    saved.lab.nothing_left();
}

crate::alone! {
    fn dump_of_busy_when_a_call_fails() { dump(Kind::Busy, Injury::Fails) }
    fn dump_of_busy_killed_at_a_call() { dump(Kind::Busy, Injury::Killed) }
    fn dump_of_a_sleeper_when_a_call_fails() { dump(Kind::Sleeper, Injury::Fails) }
    fn dump_of_a_sleeper_killed_at_a_call() { dump(Kind::Sleeper, Injury::Killed) }
    fn dump_of_sleepers_killed_at_a_call() { dump(Kind::Sleepers, Injury::Killed) }
    fn dump_of_a_family_when_a_call_fails() { dump(Kind::Family, Injury::Fails) }
    fn dump_of_a_family_killed_at_a_call() { dump(Kind::Family, Injury::Killed) }
    fn dump_of_a_storm_killed_at_a_call() { dump(Kind::Storm, Injury::Killed) }
    fn dump_of_objects_when_a_call_fails() { dump(Kind::Objects, Injury::Fails) }
    fn dump_of_objects_killed_at_a_call() { dump(Kind::Objects, Injury::Killed) }
    fn dump_of_objects_killed_at_random() { killed_at_random(Kind::Objects, if all() { 500 } else { 40 }) }
    fn dump_of_namespaces_when_a_call_fails() { dump(Kind::Spaces, Injury::Fails) }
    fn dump_of_namespaces_killed_at_a_call() { dump(Kind::Spaces, Injury::Killed) }
    fn dump_of_a_capsule_when_a_call_fails() { dump(Kind::Capsule, Injury::Fails) }
    fn dump_of_a_capsule_killed_at_a_call() { dump(Kind::Capsule, Injury::Killed) }
    fn restore_of_namespaces_when_a_call_fails() { restore(Kind::Spaces, Injury::Fails) }
    fn restore_of_namespaces_killed_at_a_call() { restore(Kind::Spaces, Injury::Killed) }
    fn restore_of_a_capsule_when_a_call_fails() { restore(Kind::Capsule, Injury::Fails) }
    fn restore_of_a_capsule_killed_at_a_call() { restore(Kind::Capsule, Injury::Killed) }
    fn restore_of_a_capsule_killed_at_random() { restore_killed_at_random(Kind::Capsule, if all() { 500 } else { 40 }) }
    fn dump_of_busy_killed_at_random() { killed_at_random(Kind::Busy, if all() { 1000 } else { 60 }) }
    fn dump_of_sleepers_killed_at_random() { killed_at_random(Kind::Sleepers, if all() { 500 } else { 40 }) }
    fn dump_of_what_is_unread_killed_at_random() { killed_at_random(Kind::Unread, if all() { 1000 } else { 60 }) }
    fn restore_of_busy_when_a_call_fails() { restore(Kind::Busy, Injury::Fails) }
    fn restore_of_busy_killed_at_a_call() { restore(Kind::Busy, Injury::Killed) }
    fn restore_of_a_family_when_a_call_fails() { restore(Kind::Family, Injury::Fails) }
    fn restore_of_a_family_killed_at_a_call() { restore(Kind::Family, Injury::Killed) }
    fn restore_of_objects_when_a_call_fails() { restore(Kind::Objects, Injury::Fails) }
    fn restore_of_objects_killed_at_a_call() { restore(Kind::Objects, Injury::Killed) }
    fn restore_of_busy_killed_at_random() { restore_killed_at_random(Kind::Busy, if all() { 500 } else { 40 }) }
}
