//! What can be seen of processes from outside, in `/proc`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

/// All processes of this pid namespace.
pub fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let mut pids: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// The fields of `/proc/PID/stat` that follow the name: state, parent, ….
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Some(text.rsplit_once(')')?.1.split_whitespace().map(String::from).collect())
}

/// Its state letter as proc_pid_stat(5) has it, `None` when it is gone.
pub fn state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// `root` and all its descendants, parents first.
pub fn tree(root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in processes() {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        if fs::metadata(format!("/proc/{pid}")).is_ok() {
            found.push(pid);
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// All processes with what they wait in, for people who look for the reason of a failure.
pub fn listing() -> String {
    let line = |pid| {
        let text = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let pending = text("status").lines().filter(|l| l.starts_with("Sig") || l.starts_with("Shd")).collect::<Vec<_>>().join(" ");
        format!("{}  in {} {}\n  {pending}\n", text("stat").trim(), text("wchan"), text("syscall").trim())
    };
    processes().into_iter().map(line).collect()
}

/// The threads of a process.
pub fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    tids
}

/// Mappings without heap and stack, which may grow at any time: one line each.
pub fn mappings(pid: i32) -> String {
    let text = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().filter(|line| !line.ends_with("[heap]") && !line.ends_with("[stack]")).fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "  {line}");
        all
    })
}

/// Descriptors: number, target, flags.
pub fn descriptors(pid: i32) -> String {
    let mut lines = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let number: i32 = entry.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(-1);
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find(|line| line.starts_with("flags:")).unwrap_or("").to_string();
        lines.insert(number, format!("  fd {number} {} {flags}\n", target.display()));
    }
    lines.into_values().collect()
}

/// What a tracer must not leave changed of one thread.
fn thread(pid: i32, tid: i32) -> String {
    let text = fs::read(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut line = format!("  thread {tid}:");
    for field in text.lines() {
        let (key, value) = field.split_once(":\t").unwrap_or((field, ""));
        match key {
            "State" => {
                let kept = value.chars().next().filter(|state| "TtZ".contains(*state));
                let _ = write!(line, " {}", kept.unwrap_or('-'));
            }
            "Name" | "TracerPid" | "Uid" | "SigBlk" | "SigIgn" | "SigCgt" | "CapEff" => {
                let _ = write!(line, " {key} {value}");
            }
            _ => {}
        }
    }
    line + "\n"
}

/// Everything of these processes that a dump must leave as it was.
pub fn snapshot(pids: &[i32]) -> String {
    let mut all = String::new();
    for &pid in pids {
        let _ = writeln!(all, "process {pid}");
        all += &mappings(pid);
        all += &descriptors(pid);
        for tid in threads(pid) {
            all += &thread(pid, tid);
        }
    }
    all
}

/// The lines in which two snapshots differ.
pub fn difference(before: &str, after: &str) -> String {
    let only = |a: &str, b: &str, sign: char| {
        let other: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).map(|line| format!("{sign}{line}\n")).collect::<String>()
    };
    only(before, after, '-') + &only(after, before, '+')
}
