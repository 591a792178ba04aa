//! Whatever goes wrong with meio, nothing goes wrong with the tree.
//!
//! Every kernel call of a dump is made to fail once, and in a second pass meio is
//! killed at every one; every call of a restore is made to fail. strace(1) does
//! that to the real program. After each, a dumped tree must go on, verify itself
//! and look as before, and a failed restore must have started nothing.
//!
//! `make test` takes as many calls as fit into [`SLICE`], spread evenly; with
//! `SURVIVE=all` it is all of them.

use crate::lab::{Lab, Outcome, Running, observe, until};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long one of the three passes may take in `make test`.
const SLICE: Duration = Duration::from_secs(15);

/// The counters that the busy fixture keeps in its shared file.
const COUNTERS: usize = 7;

/// One call: its name, and which of its occurrences in a thread.
type Point = (String, u32);

/// What is done to meio there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    Error,
    Kill,
}

fn all() -> bool {
    std::env::var("SURVIVE").is_ok_and(|value| value == "all")
}

/// meio with `arguments` under strace with `options`.
fn traced(lab: &Lab, options: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(options).arg(env!("CARGO_BIN_EXE_meio")).args(arguments);
    command.current_dir(lab.path("images")).stdin(std::process::Stdio::null());
    command
}

/// Every call that meio makes, thread by thread.
fn points(lab: &Lab, follow: &[&str], arguments: &[&str]) -> Vec<Point> {
    let log = lab.path("trace");
    let mut options = follow.to_vec();
    options.extend(["-qq", "-o", log.to_str().expect("path")]);
    let done = lab.run(traced(lab, &options, arguments));
    assert_eq!(done.code, 0, "meio under strace: {}", done.stderr);
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in std::fs::read_to_string(&log).expect("trace").lines() {
        // with -f each line begins with the thread; "<... read resumed>" and "+++ exited" are no calls of their own
        let (thread, call) = match line.split_once(' ') {
            Some((thread, rest)) if thread.parse::<i32>().is_ok() => (thread, rest.trim_start()),
            _ => ("", line),
        };
        let name: String = call.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        // strace itself executes meio, and an end cannot fail
        if call[name.len()..].starts_with('(') && !["execve", "exit_group", "exit"].contains(&name.as_str()) {
            *counts.entry((thread.to_string(), name)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for ((_, name), count) in counts {
        let entry = most.entry(name).or_default();
        *entry = count.max(*entry);
    }
    assert!(most.get("ptrace").is_some_and(|&n| n > 10), "the trace is not of a dump or restore: {most:?}");
    most.into_iter().flat_map(|(name, count)| (1..=count).map(move |n| (name.clone(), n))).collect()
}

/// The points in an order in which every beginning is spread evenly over all of them.
fn spread(points: Vec<Point>) -> Vec<Point> {
    let n = points.len();
    // a step near the golden section that shares no divisor with n meets each point once
    let divisor = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let step = (n * 618 / 1000..).find(|&s| s > 0 && divisor(s, n) == 1).unwrap_or(1);
    (0..n).map(|i| points[i * step % n].clone()).collect()
}

/// Runs meio once undisturbed and then once for each point, with the blow falling there, and `verify` after each.
fn strike(lab: &Lab, blow: Blow, follow: &[&str], arguments: &[&str], mut verify: impl FnMut(&str, &Outcome)) {
    let points = spread(points(lab, follow, arguments));
    verify("nothing", &Outcome { code: 0, stdout: String::new(), stderr: String::new(), time: (0, 0) });
    let (begin, total) = (Instant::now(), points.len());
    let mut failed = 0;
    let mut done = 0;
    for (name, n) in points {
        if !all() && begin.elapsed() > SLICE {
            break;
        }
        let what = if blow == Blow::Error { "error=EIO" } else { "signal=SIGKILL" };
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:{what}:when={n}"));
        let mut options = follow.to_vec();
        options.extend(["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
        let outcome = lab.run(traced(lab, &options, arguments));
        failed += u32::from(outcome.code != 0);
        verify(&format!("{what} at {name} number {n}: exit code {}, {}", outcome.code, outcome.stderr.trim()), &outcome);
        done += 1;
    }
    println!("{done} of {total} calls were struck, {failed} times meio did not succeed");
    assert!(failed > done / 10, "hardly any blow has hit: {failed} of {done}");
}

/// The counters of the busy fixture.
fn beat(running: &Running) -> Vec<u64> {
    let bytes = std::fs::read(running.file("beat")).expect("counters");
    bytes.chunks_exact(8).take(COUNTERS).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// The tree goes on, is content with itself, and nothing about it has changed.
fn is_well(running: &Running, before: &str, what: &str) {
    let was = beat(running);
    let goes_on = until(Duration::from_secs(5), || beat(running).iter().zip(&was).all(|(now, was)| now > was));
    let verdict = std::fs::read_to_string(running.file("result")).unwrap_or_default();
    assert_eq!(verdict, "", "{what}: the tree has found a mistake in itself");
    assert!(goes_on, "{what}: the tree stands still: {was:?}, {:?}\n{}", beat(running), observe::listing());
    // a signal handler that is running shows as a changed mask for a moment
    let mut now = String::new();
    let same = until(Duration::from_secs(3), || {
        now = observe::snapshot(&observe::tree(running.pid));
        now == before
    });
    assert!(same, "{what}: the tree has been changed\n{}", observe::difference(before, &now));
}

/// A snapshot in which no signal handler happens to be running.
fn calm(running: &Running) -> String {
    let mut last = String::new();
    let settled = until(Duration::from_secs(10), || {
        let now = observe::snapshot(&observe::tree(running.pid));
        let twice = now == last;
        last = now;
        twice
    });
    assert!(settled, "the fixture does not settle");
    last
}

fn verified(lab: &Lab, image: &Path) -> bool {
    let mut command = lab.meio(&["verify"]);
    command.arg(image);
    lab.run(command).code == 0
}

/// Files in the folder of the images.
fn files(lab: &Lab) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(lab.path("images")).expect("folder").flatten().map(|entry| entry.path()).collect()
}

/// Every blow at a dump leaves the tree well, and no file under the final name that is not a whole image.
fn dump_survives(name: &str, blow: Blow) {
    let lab = Lab::new(name);
    let running = lab.fixture("busy", &[]);
    let before = calm(&running);
    let image = lab.path("images/struck.meio");
    let pid = running.pid.to_string();
    let arguments = ["dump", &pid, "-o", "struck.meio"];
    strike(&lab, blow, &["-f"], &arguments, |what, outcome| {
        is_well(&running, &before, what);
        assert!(outcome.code != 0 || image.exists(), "{what}: success without an image");
        assert!(!image.exists() || verified(&lab, &image), "{what}: half an image under the final name");
        let unlinking = what.contains("at unlink");
        for file in files(&lab) {
            // who is killed cannot clean up; what is left then has another name
            assert!(file == image || blow == Blow::Kill || unlinking, "{what}: {file:?} is left");
            std::fs::remove_file(file).expect("remove");
        }
    });
    lab.go_and_verify(running, Duration::from_secs(20));
    lab.nothing_left();
}

crate::alone! {
    fn dump_with_failing_calls() {
        dump_survives("survive-errors", Blow::Error);
    }

    fn dump_killed_at_any_call() {
        dump_survives("survive-kills", Blow::Kill);
    }

    fn restore_with_failing_calls() {
        let mut lab = Lab::new("survive-restore");
        let mut running = lab.fixture("busy", &[]);
        let image = lab.dump(&mut running, &["--kill"]);
        let path = image.to_str().expect("path").to_string();
        let own = std::process::id() as i32;
        let others = || observe::processes().into_iter().filter(|&pid| pid != 1 && pid != own).collect::<Vec<_>>();
        let pid = running.pid;
        // not followed: strace would take hold of the processes that meio itself has to hold
        let arguments = ["restore", "-d", &path];
        let end = || {
            // the tree of a restore that succeeded all the same, or that was only traced
            let mut all = Vec::new();
            until(Duration::from_secs(5), || {
                all = others();
                for &pid in &all {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                all.is_empty()
            });
            assert!(all.is_empty(), "processes are left: {}", observe::listing());
        };
        strike(&lab, Blow::Error, &[], &arguments, |what, outcome| {
            if outcome.code == 0 || outcome.code == 3 {
                assert!(observe::state(pid).is_some(), "{what}: success, and the tree is not there");
                end();
            } else {
                let gone = until(Duration::from_secs(5), || others().is_empty());
                assert!(gone, "{what}: something was started\n{}", observe::listing());
            }
            assert!(!lab.path("x.result").exists(), "{what}: the tree has found a mistake in itself");
        });
        lab.restore(&image, &mut running, &[]);
        lab.go_and_verify(running, Duration::from_secs(20));
        lab.nothing_left();
    }
}
