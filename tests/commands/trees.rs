//! The contract of the commands that hold a tree, on one that only sleeps.

use super::{code, err, fields, json, last, meio, no_pid, out, undocumented};
use crate::MEIO;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// A process that sleeps, with nothing of this test's own; ended when dropped.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn new() -> Self {
        // Descriptors that the test was started with would tie it to processes outside of its tree.
        let close = "for fd in /proc/self/fd/*; do fd=${fd##*/}; ((fd > 2)) && eval \"exec $fd>&-\"; done; exec sleep 1000";
        let mut command = Command::new("setsid");
        command.args(["bash", "-c", close]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("setsid runs");
        let comm = format!("/proc/{}/comm", child.id());
        let begin = std::time::Instant::now();
        while std::fs::read_to_string(&comm).expect("it lives").trim() != "sleep" {
            assert!(begin.elapsed().as_secs() < 20, "it does not sleep");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Sleeper(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn dump_ends_with_what_it_promises() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let mut sleeper = Sleeper::new();
    let pid = sleeper.pid();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(MEIO);
        command.args(["dump", &pid]).args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        let output = command.output().expect("meio runs");
        assert_eq!(code(&output), 0, "{} {}", out(&output), err(&output));
        output
    };

    // Words: one line on standard output. The name comes from the process.
    let output = run(&[]);
    let name = format!("sleep-{pid}.meio");
    let line = out(&output);
    assert_eq!(line.lines().count(), 1);
    assert!(line.starts_with(&name) && line.contains("stood still for") && line.contains("goes on running"), "{line}");
    let metadata = std::fs::metadata(folder.path().join(&name)).expect("the image");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);

    // -v tells of phases on standard error, -q of nothing.
    assert!(err(&run(&["-v"])).lines().count() >= 3);
    assert!(err(&run(&["-q"])).is_empty());

    // JSON: what the contract says, all of it documented.
    let result = last(&run(&["--json", "-v", "-o", "b.meio"]));
    for key in ["pause_ms", "total_ms", "memory_bytes", "image_bytes", "tasks", "processes"] {
        assert!(result[key].as_f64().is_some_and(|n| n > 0.0), "{key} in {result}");
    }
    assert_eq!((&result["source"], &result["image"]), (&"running".into(), &"b.meio".into()));
    assert_eq!(result["image_bytes"], std::fs::metadata(folder.path().join("b.meio")).expect("the image").len());
    let mut names = Vec::new();
    fields(&result, &mut names);
    undocumented(&names);

    // The image on standard output is an image, and nothing else is there.
    let output = run(&["-o", "-", "--compress", "none"]);
    assert!(std::str::from_utf8(&output.stderr).expect("text").contains("standard output: process"));
    std::fs::write(folder.path().join("c.meio"), &output.stdout).expect("written");
    let verified = meio(&["verify", folder.path().join("c.meio").to_str().expect("text")]);
    assert_eq!(code(&verified), 0, "{}", err(&verified));
    assert_eq!(sleeper.0.try_wait().expect("wait"), None, "it runs on");

    // --kill ends it.
    assert_eq!(last(&run(&["--json", "--kill"]))["source"], "gone");
    assert!(!sleeper.0.wait().expect("wait").success());
}

#[test]
fn a_stopped_tree_stays_stopped_and_is_said_to() {
    use nix::sys::signal::{Signal, kill};
    let folder = tempfile::tempdir().expect("folder");
    let sleeper = Sleeper::new();
    let pid = sleeper.pid();
    kill(nix::unistd::Pid::from_raw(pid.parse().expect("pid")), Signal::SIGSTOP).expect("it lives");
    let begin = std::time::Instant::now();
    while !stopped(&pid) {
        assert!(begin.elapsed().as_secs() < 20, "it does not stop");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let image = folder.path().join("stopped.meio");
    let run = |more: &[&str]| meio(&[&["dump", &pid, "-o", image.to_str().expect("text")], more].concat());
    let output = run(&["--json", "-v"]);
    assert_eq!((code(&output), &last(&output)["source"]), (0, &"frozen".into()), "{}", out(&output));
    let notes: Vec<Value> = json(&output).into_iter().filter(|line| line["event"] == "note").collect();
    assert!(notes.iter().any(|note| note["text"].as_str().is_some_and(|text| text.contains("stand still: 1;"))), "{notes:?}");
    assert!(stopped(&pid));
    let output = run(&[]);
    assert!(out(&output).contains("stands still as before"), "{}", out(&output));
    assert!(stopped(&pid));
}

/// Whether job control has stopped it, with nobody tracing it.
fn stopped(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains("State:\tT (stopped)") && !traced(pid)
}

#[test]
fn check_looks_through_a_tree() {
    let sleeper = Sleeper::new();
    let output = meio(&["check", "--pid", &sleeper.pid(), "--json"]);
    assert!([0, 3].contains(&code(&output)), "{}", out(&output));
    assert_eq!(last(&output)["refusals"], Value::Array(vec![]));
    let output = meio(&["check", "--pid", &no_pid()]);
    assert_eq!(code(&output), 10);
}

#[test]
fn restore_ends_with_what_it_promises() {
    let folder = tempfile::tempdir().expect("folder");
    let image = folder.path().join("sleep.meio");
    let image = image.to_str().expect("text");
    let mut sleeper = Sleeper::new();
    let pid = sleeper.pid();
    let dumped = meio(&["dump", &pid, "-o", image, "--kill", "-q"]);
    assert_eq!(code(&dumped), 0, "{}", err(&dumped));
    sleeper.0.wait().expect("it has ended");
    let end = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().expect("pid")), nix::sys::signal::Signal::SIGTERM);

    // Detached: the pid alone on standard output, one honest line on standard error.
    let output = meio(&["restore", "-d", image, "-v"]);
    assert_eq!((code(&output), out(&output).trim()), (0, pid.as_str()), "{}", err(&output));
    assert!(err(&output).lines().last().is_some_and(|l| l.contains("was restored in") && l.contains("goes on")), "{}", err(&output));
    assert!(err(&output).contains("tasks that were made: 1; processes: 1"), "{}", err(&output));

    // The pid is taken now, and its owner is named.
    let again = meio(&["restore", "-d", image, "--json"]);
    assert_ne!(code(&again), 0);
    let error = last(&again);
    let words = error.to_string();
    assert!(error["type"] == "error" && words.contains(&pid) && words.contains("--pid-namespace"), "{words}");
    end().expect("it runs");
    gone(&pid);

    // In the foreground its end is passed on.
    let mut command = Command::new(MEIO);
    let foreground = command.args(["restore", image, "--json"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let foreground = foreground.spawn().expect("meio runs");
    let begin = std::time::Instant::now();
    while std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or(true, |c| c.trim() != "sleep") || traced(&pid) {
        assert!(begin.elapsed().as_secs() < 20, "it does not come back");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    end().expect("it runs");
    let output = foreground.wait_with_output().expect("meio ends");
    let result = last(&output);
    assert_eq!(code(&output), 128 + libc::SIGTERM, "{result}");
    assert_eq!((&result["status"], &result["signal"]), (&"killed".into(), &libc::SIGTERM.into()));
    assert_eq!(result["root_pid"].to_string(), pid);
    assert!(result["total_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    let mut names = Vec::new();
    fields(&result, &mut names);
    undocumented(&names);
}

/// Whether it is still held by whoever brings it back.
fn traced(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.contains("TracerPid:\t0")
}

/// Waits until a process that is nobody's child here has been reaped.
fn gone(pid: &str) {
    let begin = std::time::Instant::now();
    while Path::new("/proc").join(pid).exists() {
        assert!(begin.elapsed().as_secs() < 20, "{pid} stays");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
