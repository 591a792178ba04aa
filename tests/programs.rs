//! Real programs that nobody prepared, caught in the middle of their work: each
//! is dumped twice, restored, dumped again from the restored tree and restored
//! again, and what it was doing must come out as if nothing had happened.

mod batch;
pub mod databases;
mod interactive;
pub mod net;
mod rootless;
pub mod services;
mod ssh;
pub mod web;

use crate::lab::{self, Lab, Running, SOON, observe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the work of one program may take.
pub const WORK: Duration = Duration::from_secs(60);

/// Writes a text into the test's folder.
fn write(lab: &Lab, name: &str, text: &str) {
    std::fs::write(lab.path(name), text).expect("write");
}

/// A file of the test's folder, empty when it is not there.
fn read(lab: &Lab, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(lab.path(name)).unwrap_or_default()).into_owned()
}

/// Where the shell would find a program, past the wrappers that some machines put in front.
pub fn installed(name: &str) -> std::path::PathBuf {
    let folders = ["/usr/bin", "/bin", "/usr/local/bin"];
    let small = format!("{name}.tiny"); // vim of a small Debian
    [name, &small]
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| Path::new(folder).join(name)))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}

/// Runs a command in the test's folder to its end, undisturbed, and gives its standard output.
pub fn plainly(lab: &Lab, program: &str, arguments: &[&str]) -> String {
    let out = Command::new(installed(program)).args(arguments).current_dir(lab.path("")).output().expect(program);
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// Stops the whole tree by signals, and lets the images before and after a restore be compared: nothing has run in
/// between. What each program is doing is another state than any fixture's.
fn compared(lab: &mut Lab, running: &mut Running) {
    signal(running.pid, Signal::SIGSTOP, 'T');
    let begin = lab::now();
    let first = lab.dump(running, &["--kill"]);
    lab.restore(&first, running, &[]);
    let second = lab.dump(running, &[]);
    lab.same_metadata(&first, &second, lab::now() - begin);
    signal(running.pid, Signal::SIGCONT, '-');
}

/// Sends a signal to everybody, parents first, until all have this state; `-` for any.
fn signal(root: i32, signal: Signal, wanted: char) {
    let reached = until(SOON, || {
        let all = observe::tree(root);
        for &pid in &all {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        all.iter().all(|&pid| wanted == '-' || matches!(observe::state(pid), None | Some('Z')) || observe::state(pid) == Some(wanted))
    });
    assert!(reached, "the tree does not stand still\n{}", observe::listing());
}

/// Dumped twice, restored, dumped again from the restored tree, restored again;
/// before each dump `middle` must come true while the work is not done.
fn through(lab: &mut Lab, running: &mut Running, mut middle: impl FnMut(&Lab, u32) -> bool, done: impl Fn(&Lab) -> bool) {
    let mut reach = |lab: &Lab, running: &Running, step| {
        let pid = running.pid;
        let there = until(WORK, || middle(lab, step) || observe::state(pid).is_none());
        assert!(there && !done(lab) && observe::state(pid).is_some(), "step {step}: the work is over too early\n{}", lab.log());
    };
    reach(lab, running, 0);
    lab.dump(running, &[]);
    reach(lab, running, 1);
    let image = lab.dump(running, &["--kill"]);
    lab.restore(&image, running, &[]);
    reach(lab, running, 2);
    compared(lab, running);
    let image = lab.dump(running, &["--kill"]);
    lab.restore(&image, running, &[]);
}

/// Waits for the end of the work and of the tree.
fn finish(lab: &Lab, running: &mut Running, done: impl Fn(&Lab) -> bool) {
    let over = |state| matches!(state, None | Some('Z'));
    let ended = until(WORK, || over(observe::state(running.pid)));
    assert!(ended && done(lab), "the work was not finished: {}", lab.log());
    running.wait();
    lab.nothing_left();
}
