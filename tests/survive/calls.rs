//! One kernel call of meio's goes wrong: strace(1) lists them all, then disturbs a single one.
//!
//! A dump is followed into its threads. A restore is not: strace would take hold of the processes that meio itself has
//! to hold.

use crate::lab::{Lab, Outcome, SOON, now, observe, until};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::process::{Command, Stdio};

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injury {
    /// It is not made, and fails with `EIO`.
    Fails,
    /// meio is killed before it is made, which is after the one before it.
    Killed,
}

/// One call of meio's main thread, and what happens at it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The system call's name.
    pub name: String,
    /// Counted from 1 among the calls of this name.
    pub occurrence: usize,
    /// What happens.
    pub injury: Injury,
    /// How it looked in the undisturbed run.
    line: String,
    follow: bool,
}

impl Case {
    fn inject(&self) -> String {
        let how = match self.injury {
            Injury::Fails => "error=EIO",
            Injury::Killed => "signal=SIGKILL",
        };
        format!("inject={}:{how}:when={}", self.name, self.occurrence)
    }

    /// Whether the failure may end meio by SIGABRT: the allocator or the C library gives up.
    pub fn may_abort(&self) -> bool {
        ["mmap", "munmap", "mprotect", "mremap", "madvise", "sigaltstack"].contains(&self.name.as_str())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { name, occurrence, injury, line, follow } = self;
        let follow = if *follow { "-f " } else { "" };
        let how = if *injury == Injury::Fails { "fails" } else { "is not reached: SIGKILL" };
        writeln!(f, "{name} number {occurrence} {how}   (undisturbed: {line})")?;
        write!(f, "    by hand: strace {follow}-o log -e trace={name} -e {} meio …", self.inject())
    }
}

/// `command` under strace(1).
fn under(strace: &[&str], follow: bool, log: &std::path::Path, command: &Command) -> Command {
    let mut traced = Command::new("strace");
    traced.args(follow.then_some("-f")).args(["-qq", "-e", "signal=none", "-o"]).arg(log).args(strace);
    traced.arg(command.get_program()).args(command.get_args());
    traced.current_dir(command.get_current_dir().expect("folder")).stdin(Stdio::null());
    traced
}

/// All kernel calls of an undisturbed run from its main function on.
pub fn list(lab: &Lab, command: &Command, follow: bool, injury: Injury) -> Vec<Case> {
    let log = lab.path("strace");
    let done = lab.run(under(&["-e", "trace=all"], follow, &log, command));
    assert_eq!(done.code, 0, "undisturbed: {command:?}: {}{}", done.stdout, done.stderr);
    let text = String::from_utf8_lossy(&fs::read(&log).expect("log of strace")).into_owned();
    let mut count = HashMap::new();
    let mut begun = false;
    let mut start: HashMap<String, usize> = HashMap::new();
    let mut cases: Vec<Case> = Vec::new();
    let mut known = HashSet::new();
    for line in text.lines() {
        // with -f each line begins with the thread; "<... read resumed>" and "+++ exited" are no calls of their own
        let (thread, line) = line.split_once(' ').filter(|_| follow).unwrap_or(("", line));
        let line = line.trim_start();
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let occurrence = count.entry((thread.to_string(), name.to_string())).or_insert(0);
        *occurrence += 1;
        // A thread's first calls have the numbers that those of the start have in the main thread.
        let disturbs_start = *occurrence <= start.get(name).copied().unwrap_or(0);
        if begun && !disturbs_start && (injury == Injury::Killed || !cannot_fail(name)) && known.insert((name.to_string(), *occurrence)) {
            let line = line.chars().take(110).collect();
            cases.push(Case { name: name.to_string(), occurrence: *occurrence, injury, line, follow });
        }
        // The calls of the dynamic loader and of the language's start come first; this one is close to their end.
        if !begun && line.starts_with("rt_sigaction(SIGPIPE") {
            begun = true;
            start = count.iter().map(|((_, name), &n): (&(String, String), &usize)| (name.clone(), n)).collect();
        }
    }
    assert!(cases.len() > 50, "strace shows next to nothing: {text}");
    cases
}

/// Calls whose failure would be none of the kernel's: close(2) closes whatever it returns, which strace would keep it from;
/// brk(2) and exit(2) return no error; getrandom(2), futex(2) and clock_nanosleep(2) as used
/// here have none; restart_syscall(2) is what strace itself makes of the latter.
fn cannot_fail(name: &str) -> bool {
    matches!(name, "close" | "futex" | "clock_nanosleep" | "restart_syscall" | "brk" | "exit" | "exit_group" | "getrandom")
}

/// Runs `command` with one call disturbed. `None` when it does not end.
pub fn run(lab: &Lab, command: &Command, case: &Case) -> Option<Outcome> {
    let inject = case.inject();
    let trace = format!("trace={}", case.name);
    finish(lab, under(&["-e", &trace, "-e", &inject], case.follow, &lab.path("strace"), command))
}

/// Runs a command to its end, but ends it and all of meio when it takes too long.
fn finish(lab: &Lab, mut command: Command) -> Option<Outcome> {
    let (out, err) = (lab.path("stdout"), lab.path("stderr"));
    command.stdout(File::create(&out).expect("stdout")).stderr(File::create(&err).expect("stderr"));
    let begin = now();
    let mut child = command.spawn().expect("strace(1) starts");
    let mut status = None;
    until(SOON, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    let Some(status) = status else {
        observe::tree(child.id() as i32).into_iter().rev().for_each(super::kill);
        child.wait().expect("wait");
        return None;
    };
    let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
    Some(Outcome { code: status.code().unwrap_or(128 + signal), stdout: text(&out), stderr: text(&err), time: (begin, now()) })
}
