//! Style is a test: layers, sizes, leftovers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// No file may be longer; wished for are [`WISHED`].
const LONGEST: usize = 600;
const WISHED: usize = 400;

/// A source file: its path below the repository, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The module path below the crate: `sys::proc::maps`; tests in files of their own count to their module.
    fn module(&self) -> String {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").replace('/', "::");
        path.trim_end_matches("::mod").to_string()
    }

    /// The text without comments and without unit tests inside the file; lines keep their places.
    fn code(&self) -> String {
        let mut inside_tests = false;
        let keep = |line: &&str| {
            inside_tests |= line.starts_with("mod tests {");
            let keep = !inside_tests && !line.trim_start().starts_with("//");
            inside_tests &= *line != "}";
            keep
        };
        let mut keep = keep;
        self.text.lines().map(|l| if keep(&l) { l } else { "" }).collect::<Vec<_>>().join("\n")
    }

    fn is_test(&self) -> bool {
        let simulator = self.path.starts_with("src/migrate/simulate") || self.path.starts_with("src/watch/simulate");
        simulator || self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    folders.iter().for_each(|f| collect(&Path::new(super::ROOT).join(f), &mut paths));
    paths.sort();
    assert!(!paths.is_empty());
    let read = |path: PathBuf| Source {
        text: std::fs::read_to_string(&path).expect("text"),
        path: path.strip_prefix(super::ROOT).expect("below the repository").to_string_lossy().into_owned(),
    };
    paths.into_iter().map(read).collect()
}

/// Fails with all complaints at once.
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The paths after `crate::` in a text, braces taken apart as far as layers need it: `crate::{a::b, c}` gives `a`
/// and `c`; `crate::a::{b, c}` gives `a::b` and `a::c`.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (_, rest) in code.match_indices("crate::").map(|(at, m)| (at, &code[at + m.len()..])) {
        expand("", rest, &mut paths);
    }
    paths
}

/// Reads one path at the start of `rest`; returns what follows it.
fn expand<'a>(prefix: &str, rest: &'a str, into: &mut Vec<String>) -> &'a str {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let path = format!("{prefix}{}", &rest[..end]);
    let mut rest = &rest[end..];
    if !rest.starts_with('{') || !path.is_empty() && !path.ends_with("::") {
        into.push(path);
        return rest;
    }
    rest = &rest[1..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if rest.is_empty() || rest.starts_with('}') {
            return rest.get(1..).unwrap_or("");
        }
        let before = rest.len();
        rest = expand(&path, rest, into);
        // ` as name`, or something that is no path at all.
        let skip = rest.find([',', '}']).unwrap_or(rest.len());
        rest = &rest[skip..];
        if rest.len() == before {
            return rest;
        }
    }
}

/// Paths that start in the crate or, in `resource` and `image`, above the file itself.
fn uses(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut paths = crate_paths(&code);
    let module = source.module();
    let mut above: Vec<&str> = module.split("::").collect();
    // `super` of a module that is a folder's mod.rs is one level further up than its file name says.
    above.pop();
    let prefix: String = above.iter().map(|part| format!("{part}::")).collect();
    for (at, found) in code.match_indices("super::") {
        if !code[..at].ends_with("super::") && !code[at + found.len()..].starts_with("super::") {
            expand(&prefix, &code[at + found.len()..], &mut paths);
        }
    }
    paths
}

/// The layers from the top; each may use what stands below it, and `error` and `progress`.
const LAYERS: [&[&str]; 12] = [
    &["main", "cli"],
    &["drain"],
    &["watch"],
    &["migrate"],
    &["dump", "restore", "check", "postmortem"],
    &["capsule"],
    &["netlock"],
    &["resource"],
    &["transport"],
    &["tracee"],
    &["image"],
    &["sys"],
];
/// Uses beside or against the arrows, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // check says what a dump of this very tree would refuse, and only dump knows.
    ("check", "dump::preflight"),
    // The saved form of an interrupted call is what holding a task finds out about it.
    ("tracee", "resource::thread::Waiting"),
];
/// What uses less than its place would allow.
const ONLY: &[(&str, &[&str])] = &[("transport", &["sys"])];
/// Words that every layer may use; `progress` not from `image` and `sys`.
const WORDS: [&str; 2] = ["error", "progress"];

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&name))
}

#[test]
fn arrows_point_down() {
    let mut complaints = Vec::new();
    for source in sources(&["src"]).iter().filter(|s| !s.is_test()) {
        let module = source.module();
        let own = module.split("::").next().unwrap_or("").to_string();
        if WORDS.contains(&own.as_str()) {
            complaints.extend(uses(source).iter().filter(|u| !u.starts_with("error")).map(|u| format!("{} uses {u}", source.path)));
            continue;
        }
        let Some(own_layer) = layer(&own) else {
            complaints.push(format!("{}: which layer is {own}? see LAYERS in tests/tidy.rs", source.path));
            continue;
        };
        for used in uses(source) {
            let top = used.split("::").next().unwrap_or("");
            let fine = match layer(top) {
                _ if top == own || top.is_empty() || top == "error" => true,
                _ if top == "progress" => !["image", "sys"].contains(&own.as_str()),
                _ if EXCEPTIONS.contains(&(own.as_str(), used.as_str())) => true,
                Some(_) if ONLY.iter().any(|o| o.0 == own && !o.1.contains(&top)) => false,
                Some(l) => l > own_layer,
                None => false,
            };
            if !fine {
                complaints.push(format!("{} ({own}) uses {used}", source.path));
            }
        }
    }
    none(complaints);
}

#[test]
fn the_image_knows_no_kernel() {
    let mut complaints = Vec::new();
    for source in sources(&["src/image"]).iter().filter(|s| !s.is_test()) {
        complaints.extend(
            uses(source)
                .iter()
                .filter(|u| u.starts_with("sys") && !u.starts_with("sys::arch"))
                .map(|u| format!("{} uses {u}", source.path)),
        );
        for word in ["libc::", "nix::", "procfs::", "/proc/"] {
            let code = source.code();
            let whole = |(at, _): (usize, &str)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            complaints.extend(code.match_indices(word).any(whole).then(|| format!("{} uses {word}", source.path)));
        }
    }
    none(complaints);
}

/// What the kinds stand on: the walk over all of them, and the table that leads to them. Every kind may use these,
/// and the walks may use every kind.
const GROUND: &[&str] = &["capture", "quiet", "recall", "rebuild", "graph", "kinds", "descriptor"];
/// Kinds that may use another kind: saved types that hold other saved types or their numbers.
const MAY_USE: &[(&str, &[&str])] = &[
    ("outside", &["ignored"]),
    ("aio", &["memory"]),
    ("process", &["aio"]),
    ("mqueue", &["path", "process", "thread"]),
    ("device", &["path", "unsupported"]),
    ("cgroup", &["path"]),
    ("epoll", &[]),
    ("fanotify", &["path"]),
    ("inotify", &["path"]),
    ("terminal", &["path"]),
    ("namespace", &["mount", "network", "path", "process"]),
    ("process", &["attributes", "limits", "memory", "namespace", "path", "signals", "thread", "timers"]),
    ("terminal", &["path", "pty"]),
    ("pty", &["terminal", "thread"]),
    ("process", &["attributes", "limits", "memory", "path", "signals", "system_v", "thread", "timers"]),
    ("thread", &["attributes", "credentials", "sched", "seccomp"]),
    ("process", &["attributes", "limits", "memory", "namespace", "path", "signals", "thread", "timers"]),
    ("thread", &["attributes", "credentials", "sched", "seccomp"]),
    ("namespace", &["mount", "network", "path", "process"]),
    ("mount", &["memory", "path", "shared", "thread"]),
    ("network", &["thread"]),
    ("tun", &["network", "path"]),
    ("signals", &["thread"]),
    ("pipe", &["path", "thread"]),
    ("regular", &["memory", "path", "shared"]),
    ("shared", &["memory", "path"]),
    ("memory", &["path", "shared", "unsupported"]),
    ("system_v", &["memory", "process", "shared", "thread"]),
    ("memory", &["path", "shared", "system_v"]),
    ("socket", &["path", "thread"]),
    ("memory", &["numa", "path", "shared"]),
    ("attributes", &["numa"]),
];

#[test]
fn kinds_of_resource_stand_alone() {
    let all = sources(&["src/resource"]);
    let kind_of = |path: &str| path.split("::").nth(1).unwrap_or("").to_string();
    let kinds: BTreeSet<String> = all.iter().map(|s| kind_of(&s.module())).filter(|k| !k.is_empty()).collect();
    let mut complaints = Vec::new();
    for source in all.iter().filter(|s| !s.is_test()) {
        let kind = kind_of(&source.module());
        if kind.is_empty() {
            continue;
        }
        let allowed = |other: &str| MAY_USE.iter().any(|m| m.0 == kind && m.1.contains(&other));
        for used in uses(source).iter().filter(|u| u.starts_with("resource::")) {
            let other = kind_of(used);
            let ground = GROUND.contains(&other.as_str()) || GROUND.contains(&kind.as_str());
            let fine = other == kind || ground || !kinds.contains(&other) || allowed(&other);
            if !fine {
                complaints.push(format!("{} uses resource::{other}; what they share needs a number in Tree, or see MAY_USE", source.path));
            }
        }
    }
    none(complaints);
}

#[test]
fn only_the_command_line_prints() {
    let mut complaints = Vec::new();
    for source in sources(&["src"]).iter().filter(|s| !s.is_test()) {
        let prints = ["println!(", "eprintln!(", "print!(", "eprint!("].iter().any(|p| source.code().contains(p));
        let exits = source.code().contains("process::exit(");
        if (prints || exits) && !source.path.starts_with("src/cli/") && source.path != "src/main.rs" {
            complaints.push(format!("{} prints or exits; report to progress::Report, return an error", source.path));
        }
    }
    none(complaints);
}

#[test]
fn unsafe_lives_under_sys() {
    let mut complaints = Vec::new();
    for source in sources(&["src"]) {
        let code = source.code();
        if !source.path.starts_with("src/sys/")
            && (code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("(unsafe_code)"))
        {
            complaints.push(format!("{} has unsafe", source.path));
        }
    }
    none(complaints);
}

#[test]
fn nothing_is_left_over() {
    // Put together so that this file does not hold them itself.
    let words = ["todo", "unimplemented", "dbg"].map(|w| format!("{w}!("));
    let ignored = format!("#[{}", "ignore");
    let mut complaints = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (n, line) in source.text.lines().enumerate() {
            let place = format!("{}:{}", source.path, n + 1);
            if words.iter().any(|w| line.contains(w.as_str())) || line.contains(&ignored) {
                complaints.push(format!("{place}: {}", line.trim()));
            }
            if line.ends_with([' ', '\t']) || line.contains('\t') {
                complaints.push(format!("{place}: white space"));
            }
        }
        let last = source.text.chars().last();
        complaints.extend((last != Some('\n')).then(|| format!("{}: no line end at its end", source.path)));
    }
    none(complaints);
}

/// Whoever looks at the clock of the day may see it go back, or on by an hour: nothing that a watch decides hangs on it. It stands
/// beside what is noted, and one file's time is compared with another's.
#[test]
fn clocks_that_are_set_decide_nothing() {
    const NOTED: [&str; 4] = ["src/watch/history.rs", "src/watch/record.rs", "src/watch/witness/server.rs", "src/watch/witness/store.rs"];
    let looks = |s: &Source| ["SystemTime", "CLOCK_REALTIME"].iter().any(|name| s.code().contains(name));
    let all = sources(&["src/watch", "src/transport"]);
    let found: BTreeSet<&str> = all.iter().filter(|s| !s.is_test() && looks(s)).map(|s| s.path.as_str()).collect();
    assert_eq!(found, BTreeSet::from(NOTED));
}

#[test]
fn every_file_says_what_it_is() {
    let all = sources(&["src", "tests", "benches"]);
    let silent = all.iter().filter(|s| !s.text.starts_with("//! "));
    none(silent.map(|s| format!("{} does not begin with //!", s.path)).collect());
}

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let lines = source.text.lines().count();
        if lines > LONGEST {
            complaints.push(format!("{} has {lines} lines, at most {LONGEST}", source.path));
        } else if lines > WISHED {
            println!("{} has {lines} lines, wished for are {WISHED}", source.path);
        }
    }
    none(complaints);
}

#[test]
fn paths_are_read_from_uses() {
    let mut paths = crate_paths("use crate::{error::{Error, Kind}, sys};\nuse crate::a::b as c; let x = crate::d::e();");
    paths.sort();
    assert_eq!(paths, ["a::b", "d::e", "error::Error", "error::Kind", "sys"]);
    let source =
        Source { path: "src/resource/pipe.rs".into(), text: "use super::thread::Bytes;\n// super::no\nmod tests {\ncrate::no\n}\n".into() };
    assert_eq!(uses(&source), ["resource::thread::Bytes"]);
}
