//! Trees that are never at rest, and how it is seen that nothing has become of them.

use crate::lab::{Lab, Running, observe, until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// How long it may take until the tree is seen to be well.
const WELL: Duration = Duration::from_secs(8);

/// A tree that is dumped or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Threads, vector registers, queued signals, timers, a child.
    Busy,
    /// One thread in nanosleep(2).
    Sleeper,
    /// A thread for each call that waits for a limited time.
    Sleepers,
    /// Sockets, counters, timers, signals to be read, a filter for system calls.
    Objects,
    /// A shell that starts processes all the time.
    Storm,
    /// A shell with children that wait for each other.
    Family,
    /// Bytes that wait in terminals, messages that wait in a queue: looked at when it is asked to.
    Unread,
    /// A shell in namespaces of its own, below the unshare(1) that made them.
    Spaces,
    /// A shell in a capsule with an interface in a bridge.
    Capsule,
}

/// The capsule's name.
pub const CAPSULE: &str = "survivor";

/// Commands and subshells, counted; the status of each must come back as it was. What is said appears all at once.
const STORM: &str = r#"#!/bin/bash
say() { echo "$2" >"$1.draft" && mv "$1.draft" "$1"; }
n=0
while [ ! -e "$1.go" ]; do
    /bin/true || say "$1.result" "true failed with $?"
    (exit 3)
    [ $? = 3 ] || say "$1.result" "the status of a subshell was lost"
    n=$((n + 1))
    echo $n >"$1.count"
    [ $n != 3 ] || say "$1.ready" ready
done
[ -e "$1.result" ] || say "$1.result" ok
"#;

const FAMILY: &str = r#"#!/bin/bash
say() { echo "$2" >"$1.draft" && mv "$1.draft" "$1"; }
work() { local n=0; while [ ! -e "$1.go" ]; do n=$((n + 1)); echo $n >"$1.count$2"; read -t 0.01 <>"$1.fifo"; done; exit "$2"; }
mkfifo "$1.fifo"
work "$1" 4 & a=$!
(work "$1" 5 & b=$!; wait $b; [ $? = 5 ] && exit 6) & c=$!
until [ -s "$1.count4" ] && [ -s "$1.count5" ]; do read -t 0.01 <>"$1.fifo"; done
say "$1.ready" ready
wait $a; [ $? = 4 ] || say "$1.result" "the first child's status was lost"
wait $c; [ $? = 6 ] || say "$1.result" "the second child's status was lost"
rm "$1.fifo"
[ -e "$1.result" ] || say "$1.result" ok
"#;

/// It looks at what its namespaces hold, over and over; there is no program but the shell itself.
const SPACES: &str = r#"#!/bin/bash
say() { echo "$2" >"$1.draft" && mv "$1.draft" "$1"; }
if [ -z "$2" ]; then
    hostname within
    ip link set lo up
    mount -t tmpfs -o size=1m none /mnt
fi
echo kept >/dev/shm/survive 2>/dev/null
[ -n "$2" ] || echo kept >/mnt/survive
name=$(hostname) links=(/proc/sys/net/ipv4/conf/*)
mkfifo "$1.fifo"
exec 9<>"$1.fifo"
n=0
while [ ! -e "$1.go" ]; do
    read -r host </proc/sys/kernel/hostname
    [ "$host" = "$name" ] || say "$1.result" "the host name is $host"
    now=(/proc/sys/net/ipv4/conf/*)
    [ "${now[*]}" = "${links[*]}" ] || say "$1.result" "interfaces are others: ${now[*]}"
    [ -n "$2" ] || [ -s /mnt/survive ] || say "$1.result" "a file has gone"
    n=$((n + 1))
    echo $n >"$1.count"
    [ $n != 3 ] || say "$1.ready" ready
    read -r -t 0.01 <&9
done
rm "$1.fifo"
[ -e "$1.result" ] || say "$1.result" ok
"#;

/// One of them, running.
pub struct Source {
    kind: Kind,
    /// The tree.
    pub running: Running,
    before: String,
}

impl Kind {
    fn start(self, lab: &Lab) -> Running {
        for entry in fs::read_dir(lab.path("")).expect("folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with("x.") {
                fs::remove_file(entry.path()).expect("remove");
            }
        }
        let file = |text: &str| {
            let path = lab.path("script");
            fs::write(&path, text).expect("script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
            path
        };
        let script = |text: &str| lab.ready(&file(text), &[]);
        match self {
            Kind::Busy => lab.fixture("busy", &[]),
            Kind::Sleeper => lab.fixture("sleepers", &["alone"]),
            Kind::Sleepers => lab.fixture("sleepers", &["many"]),
            Kind::Unread => lab.fixture("unread", &[]),
            Kind::Objects => lab.fixture("objects", &[]),
            Kind::Storm => script(STORM),
            Kind::Family => script(FAMILY),
            Kind::Spaces => unshared(lab, &file(SPACES)),
            Kind::Capsule => capsule(lab, &file(SPACES)),
        }
    }

    /// How meio is told which tree is meant.
    pub fn target(self, root: i32) -> String {
        if self == Kind::Capsule { CAPSULE.into() } else { root.to_string() }
    }

    /// Root of the tree that is there now; numbers of a capsule are others outside every time.
    pub fn root(self, root: i32) -> i32 {
        if self != Kind::Capsule {
            return root;
        }
        let text = fs::read(format!("/run/meio/{CAPSULE}.json")).unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|e| e["pid"].as_i64()).map_or(0, |pid| pid as i32)
    }

    /// Numbers each of which grows while the tree is well.
    fn counters(self, lab: &Lab) -> Vec<u64> {
        let words = |n: usize| {
            let bytes = fs::read(lab.path("x.beat")).unwrap_or_default();
            bytes.chunks_exact(8).take(n).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
        };
        let number = |name: &str| fs::read_to_string(lab.path(name)).ok()?.trim().parse::<u64>().ok();
        match self {
            Kind::Busy | Kind::Sleepers | Kind::Objects => words(7),
            Kind::Sleeper | Kind::Unread => words(1),
            Kind::Storm | Kind::Spaces | Kind::Capsule => number("x.count").into_iter().collect(),
            Kind::Family => [number("x.count4"), number("x.count5")].into_iter().flatten().collect(),
        }
    }

    fn wanted(self) -> usize {
        match self {
            Kind::Busy | Kind::Sleepers | Kind::Objects => 7,
            Kind::Family => 2,
            Kind::Sleeper | Kind::Storm | Kind::Unread | Kind::Spaces | Kind::Capsule => 1,
        }
    }

    /// Whether every counter of the tree grows, and its own checks have found nothing.
    pub fn goes_on(self, lab: &Lab) -> Result<(), String> {
        let read = || {
            let mut seen = Vec::new();
            // a script's counter is empty for an instant
            until(Duration::from_secs(1), || {
                seen = self.counters(lab);
                seen.len() == self.wanted()
            });
            seen
        };
        let begin = read();
        if self == Kind::Unread {
            // What a killed meio has left to its keeper is done in a moment.
            let is_meio = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "meio\n");
            until(WELL, || !observe::processes().into_iter().any(is_meio));
            fs::write(lab.path("x.check"), "").expect("check");
        }
        let mut last = Vec::new();
        let grown = until(WELL, || {
            last = read();
            lab.path("x.result").exists() || (last.len() == begin.len() && last.iter().zip(&begin).all(|(now, then)| now > then))
        });
        if let Ok(said) = fs::read_to_string(lab.path("x.result")) {
            return Err(format!("it says: {}", said.trim()));
        }
        if grown && begin.len() == self.wanted() { Ok(()) } else { Err(format!("it stands still: counters {begin:?}, then {last:?}")) }
    }

    /// What a tracer must not have changed.
    fn snapshot(self, root: i32) -> String {
        let all = plain(&match self {
            // its children are others every time
            Kind::Storm => observe::snapshot(&[root]),
            _ => observe::snapshot(&observe::tree(root)),
        });
        match self {
            // redirections of a script come and go
            Kind::Storm | Kind::Family | Kind::Spaces | Kind::Capsule => {
                all.lines().filter(|line| !line.starts_with("  fd ")).map(|line| format!("{line}\n")).collect()
            }
            _ => all,
        }
    }
}

fn unshared(lab: &Lab, script: &Path) -> Running {
    let prefix = lab.path("x");
    let text = |path: &Path| path.to_str().expect("path").to_owned();
    let running = lab.spawn(Path::new("unshare"), &["-piumn", "--fork", "--mount-proc", &text(script), &text(&prefix)]);
    assert!(until(WELL, || running.file("ready").exists()), "it does not get ready: {}", lab.log());
    running
}

/// A roster, a network with a bridge and a folder for both of the test's own.
pub fn furnish() {
    use nix::mount::{MsFlags, mount};
    fs::create_dir_all("/run/meio").expect("folder");
    mount(Some("tmpfs"), "/run/meio", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
    for arguments in
        [&["link", "add", "br7", "type", "bridge"][..], &["addr", "add", "10.7.0.1/24", "dev", "br7"], &["link", "set", "br7", "up"]]
    {
        assert!(std::process::Command::new("ip").args(arguments).status().expect("ip(8) of iproute2 starts").success());
    }
}

/// No capsule is known any more, and nothing half written.
pub fn no_capsule(lab: &Lab) -> Result<(), String> {
    let listed = lab.run(lab.meio(&["list", "--json"])).stdout;
    let files: Vec<_> = fs::read_dir("/run/meio").into_iter().flatten().flatten().map(|e| e.file_name()).filter(|n| n != "lock").collect();
    let known = !listed.contains(r#""capsules":[]"#);
    if known || !files.is_empty() { Err(format!("of a capsule something is left: {listed}, {files:?}")) } else { Ok(()) }
}

fn capsule(lab: &Lab, script: &Path) -> Running {
    let prefix = lab.path("x");
    let text = |path: &Path| path.to_str().expect("path").to_owned();
    let arguments = ["run", "-d", "--name", CAPSULE, "--net", "veth=br7:10.7.0.2/24", "--", &text(script), &text(&prefix), "capsule"];
    let done = lab.run(lab.meio(&arguments));
    assert_eq!(done.code, 0, "{}", done.stderr);
    let running = Running::of(lab, Kind::Capsule.root(0));
    assert!(until(WELL, || running.file("ready").exists()), "it does not get ready: {}", lab.log());
    running
}

/// A snapshot in which neighbouring anonymous mappings that hold no code are one: an allocator moves the border
/// between what is in use and what is merely reserved all the time.
fn plain(snapshot: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in snapshot.lines() {
        let anonymous = line.ends_with(" 00000000 00:00 0 ") && !line.contains('x');
        let Some((start, rest)) = line.trim_start().split_once('-').filter(|_| anonymous) else {
            lines.push(line.to_string());
            continue;
        };
        let end = rest.split(' ').next().unwrap_or_default();
        match lines.last_mut().filter(|last| last.ends_with(&format!("-{start} anonymous"))) {
            Some(last) => *last = last.replace(&format!("-{start} "), &format!("-{end} ")),
            None => lines.push(format!("  {start}-{end} anonymous")),
        }
    }
    lines.join("\n")
}

/// Nobody in the tree is traced or stopped.
pub fn free(root: i32) -> Result<(), String> {
    let mut held = Vec::new();
    until(WELL, || {
        held.clear();
        for pid in observe::tree(root) {
            for tid in observe::threads(pid) {
                let text = fs::read(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("").trim().to_string();
                if (!text.is_empty() && field("TracerPid:") != "0") || field("State:").starts_with(['t', 'T']) {
                    held.push(format!("task {tid} of {pid}: tracer {}, state {}", field("TracerPid:"), field("State:")));
                }
            }
        }
        held.is_empty()
    });
    if held.is_empty() { Ok(()) } else { Err(format!("it is held: {held:?}")) }
}

impl Source {
    /// Starts one and notes how it looks.
    pub fn start(lab: &Lab, kind: Kind) -> Source {
        let running = kind.start(lab);
        kind.goes_on(lab).expect("a fresh tree goes on");
        let before = kind.snapshot(running.pid);
        Source { kind, running, before }
    }

    /// Its root.
    pub fn pid(&self) -> i32 {
        self.running.pid
    }

    /// It is as it was, and goes on.
    pub fn well(&self, lab: &Lab) -> Result<(), String> {
        if observe::state(self.pid()).is_none_or(|s| s == 'Z') {
            let said = fs::read_to_string(lab.path("x.result")).unwrap_or_else(|_| "nothing".into());
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
            let status = stat.split_ascii_whitespace().next_back().unwrap_or("unknown").to_owned();
            return Err(format!("it has ended: state {:?}, wait status {status}; it says {said}", observe::state(self.pid())));
        }
        free(self.pid())?;
        self.kind.goes_on(lab)?;
        let mut differ = String::new();
        // masks change within handlers, and allocators map and unmap: it must look like before again
        until(WELL, || {
            differ = observe::difference(&self.before, &self.kind.snapshot(self.pid()));
            differ.is_empty()
        });
        if differ.is_empty() { Ok(()) } else { Err(format!("it is not as it was:\n{differ}")) }
    }
}
