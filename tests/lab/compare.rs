//! The metadata of a tree before and after a restore: everything is equal but for a short list.

use serde_json::Value;
use std::collections::BTreeSet;

/// Something that may differ between the images of a tree and of the same tree restored.
pub struct Allowed {
    /// Where: field names, `[]` for any place of a list. What lies below is meant, too.
    pub path: &'static str,
    /// Which fixtures may differ in it, by their line in `tests/fixtures.rs`; empty for all.
    pub only: &'static [&'static str],
    /// How far.
    pub how: How,
    /// A fixture that always differs in it: without it nobody would notice that the allowance is needed no more. `None`
    /// where it depends on the instant.
    pub sure: Option<&'static str>,
    /// Why this is no loss.
    pub why: &'static str,
}

/// How far a value may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In every way.
    Free,
    /// A text in the digits in brackets.
    InodeNumber,
    /// A number in this bit.
    Bit(u64),
    /// Time left: it has run on, but not for longer than there was between the dumps. Where it begins anew, up to the
    /// interval.
    RanOn,
    /// A number by at most this much.
    Near(u64),
    /// Upwards.
    Later,
    /// A list of signals by those that came from the kernel since: `SIGALRM` of a timer that ran out, `SIGCHLD` of a child
    /// that was stopped.
    Alarm,
}

const fn allow(path: &'static str, how: How, why: &'static str) -> Allowed {
    Allowed { path, only: &[], how, sure: None, why }
}

/// Everything that may differ.
pub const ALLOWED: &[Allowed] = &[
    allow("manifest.created", How::Later, "the second image was made later"),
    allow("manifest.birth", How::Free, "the restored tree began later; its program's random bytes are checked by tests/chains.rs"),
    allow("tree.clocks", How::Free, "a thread was reading a clock, or not"),
    allow("tree.processes[].threads[].registers", How::Free, "it ran in between"),
    allow("tree.processes[].threads[].xstate", How::Free, "it ran in between"),
    allow("tree.processes[].threads[].waiting", How::Free, "it ran in between: it waits for another instant"),
    Allowed { sure: Some("pipes"), ..allow("tree.files[].link", How::InodeNumber, "a new pipe or socket has another inode") },
    Allowed {
        sure: Some("pipes"),
        ..allow(
            "tree.files[].flags",
            How::Bit(O_LARGEFILE),
            "open(2) sets O_LARGEFILE, pipe(2) and TIOCGPTPEER do not; it means nothing in 64 bits",
        )
    },
    Allowed {
        only: &["mqueue"],
        ..allow("tree.message_queues[].name", How::Free, "a queue whose name was removed, and is another one's by now")
    },
    Allowed { only: &["mqueue"], ..allow("tree.files[].link", How::Free, "the same, as its descriptor shows it") },
    Allowed { sure: Some("timerfd"), ..allow("tree.files[].kind.TimerFd.remaining_ns", How::RanOn, "its clock runs") },
    allow(
        "tree.files[].kind.TimerFd.deadline_ns",
        How::Near(500_000_000),
        "the instant is the clock plus the time left, read one after the other",
    ),
    allow("tree.files[].kind.TimerFd.ticks", How::Later, "its clock runs"),
    Allowed { sure: Some("tcp"), ..allow("tree.files[].kind.Tcp.stream.clock", How::Later, "the clock of its timestamps runs") },
    Allowed {
        only: &["tcp", "tcp_mapped", "tcp_over_ipv6", "tcp_pair", "tcp_pair_over_ipv6", "tcp_states", "tcp_states_over_ipv6"],
        ..allow("tree.files[].kind.Tcp.options", How::Free, "TCP_QUICKACK follows what is said; the fixtures check the others")
    },
    Allowed {
        only: &["tcp", "tcp_mapped", "tcp_over_ipv6", "tcp_pair", "tcp_pair_over_ipv6", "tcp_states", "tcp_states_over_ipv6"],
        ..allow(
            "tree.files[].kind.Tcp.stream",
            How::Free,
            "both ends go on talking, and what was under way arrives; each checks every byte",
        )
    },
    allow("tree.processes[].timers.posix[].remaining_ns", How::RanOn, "its clock runs"),
    allow("tree.processes[].timers.interval[][]", How::RanOn, "its clock runs"),
    Allowed {
        only: &["busy", "objects", "itimers", "timers"],
        ..allow("tree.processes[].signals.pending", How::Free, "signals go round in it all the time")
    },
    Allowed {
        only: &["busy", "objects", "timers"],
        ..allow("tree.processes[].threads[].pending", How::Free, "signals go round in it all the time")
    },
    Allowed { only: &["busy"], ..allow("tree.processes[].memory.borders.brk", How::Later, "its heap grows") },
    Allowed { only: &["busy"], ..allow("tree.processes[].memory.mappings[].end", How::Later, "its heap grows") },
    Allowed { only: &["busy"], ..allow("tree.processes[].threads[].sigmask", How::Free, "its handlers block signals") },
    Allowed { only: &["busy"], ..allow("tree.pipes[].content", How::Free, "it sends itself numbers all the time") },
    Allowed { only: &["busy", "timers"], ..allow("tree.processes[].timers.posix[].overrun", How::Free, "its timer rings all the time") },
    Allowed { only: &["objects"], ..allow("tree.files[].kind.Unix.queue", How::Free, "it sends itself numbers all the time") },
    Allowed { only: &["objects"], ..allow("tree.files[].kind.TimerFd.ticks", How::Free, "its timer rings all the time") },
    Allowed { only: &["objects"], ..allow("tree.files[].kind.EventFd", How::Free, "it counts all the time") },
    Allowed {
        only: &["busy", "objects"],
        ..allow("tree.mapped[].mtime", How::Free, "it writes to a file that it has mapped, all the time")
    },
    Allowed {
        only: &["usernest"],
        ..allow(
            "tree.namespaces[].content.Mounts.mounts",
            How::Free,
            "the table is in the order in which mounts were made; what hides what is checked by the fixture",
        )
    },
    Allowed {
        only: &["deleted"],
        sure: Some("deleted"),
        ..allow("tree.files[].link", How::Free, "another file has its old name, so it is made under a new one and removed")
    },
    Allowed {
        only: &["deleted"],
        sure: Some("deleted"),
        ..allow("tree.files[].kind.Regular.path", How::Free, "another file has its old name, so it is made under a new one and removed")
    },
    Allowed {
        only: &["deleted"],
        sure: Some("deleted"),
        ..allow("tree.objects[].origin.Deleted.path", How::Free, "another file has its old name, so it is made under a new one and removed")
    },
    Allowed {
        only: &["inotify"],
        sure: Some("inotify"),
        ..allow("tree.files[].kind.Inotify.unread", How::Free, "no call puts events back: one says in their place that some were lost")
    },
    allow("tree.processes[].signals.pending", How::Alarm, "a timer runs out, or a child stops, although its process is stopped"),
    allow("tree.system_v.queues[].perm.ctime", How::Later, "no call sets the times of a queue"),
    allow("tree.system_v.queues[].stime", How::Later, "no call sets the times of a queue"),
    allow("tree.system_v.queues[].rtime", How::Later, "no call sets the times of a queue"),
    allow("tree.system_v.sets[].otime", How::Later, "no call sets the times of semaphores"),
    allow("tree.system_v.sets[].perm.ctime", How::Later, "no call sets the times of semaphores"),
    allow("tree.system_v.segments[].perm.ctime", How::Later, "no call sets the times of a segment"),
    allow("tree.system_v.segments[].atime", How::Later, "no call sets the times of a segment"),
    Allowed { sure: Some("sysvshm"), ..allow("tree.system_v.segments[].dtime", How::Later, "no call sets the times of a segment") },
    Allowed { sure: Some("sysvshm"), ..allow("tree.system_v.segments[].reader", How::Free, "the pid of the meio that has read it") },
    Allowed {
        only: &["ipc_inside", "ipc_twice"],
        ..allow("tree.system_v.segments[].lpid", How::Free, "a gap: who attached or detached last is another process of the tree")
    },
    Allowed {
        only: &["ipc_inside", "ipc_twice"],
        ..allow("tree.system_v.queues[].lrpid", How::Free, "a gap: of a queue nothing was taken from, the restore says that it has")
    },
    Allowed {
        only: &["mqueue"],
        ..allow("tree.message_queues[].times[][]", How::Later, "whoever takes its messages and puts them back touches it")
    },
    Allowed {
        only: &["mounts"],
        ..allow("tree.namespaces[].content.Mounts.own[].inodes[].accessed", How::Later, "who looks at a folder reads it")
    },
    Allowed { only: &["mounts"], ..allow("tree.objects[].origin.Mounted.times[]", How::Later, "the restore or the dump has read it") },
    Allowed {
        only: &["mounts"],
        ..allow(
            "tree.namespaces[].content.Mounts.own[].inodes[].modified",
            How::Later,
            "overlayfs works in its folders, also when it is mounted",
        )
    },
    Allowed {
        only: &["mounts"],
        ..allow(
            "tree.namespaces[].content.Mounts.own[].inodes[].names",
            How::Free,
            "overlayfs keeps a second name of its whiteouts at hand",
        )
    },
];

const O_LARGEFILE: u64 = 0o100000;

/// The differences of two results of `meio inspect --json` that nothing allows, a line each; and what of the list was used.
/// `fixture` is the line of `tests/fixtures.rs`, `elapsed_ns` the time from before the first dump until after the second.
pub fn differences(fixture: &str, before: &Value, after: &Value, elapsed_ns: u64) -> (Vec<String>, BTreeSet<&'static str>) {
    let mut walk = Walk { fixture, elapsed_ns, found: Vec::new(), used: BTreeSet::new() };
    for part in ["manifest", "tree"] {
        let (before, after) = (canonical(&before[part]), canonical(&after[part]));
        walk.values(part, part, (&before, &after), (&Value::Null, &Value::Null));
    }
    (walk.found, walk.used)
}

/// Allowances that `fixture` should have needed and did not.
pub fn unneeded<'a>(fixture: &'a str, used: &'a BTreeSet<&'static str>) -> impl Iterator<Item = &'static str> + 'a {
    ALLOWED.iter().filter(move |a| a.sure == Some(fixture) && !used.contains(a.path)).map(|a| a.path)
}

struct Walk<'a> {
    fixture: &'a str,
    elapsed_ns: u64,
    found: Vec<String>,
    used: BTreeSet<&'static str>,
}

impl Walk<'_> {
    /// `path` with the places in lists, `pattern` without; `around` is what the values are in.
    fn values(&mut self, path: &str, pattern: &str, (before, after): (&Value, &Value), around: (&Value, &Value)) {
        if before == after {
            return;
        }
        match (before, after) {
            (Value::Object(a), Value::Object(b)) => {
                let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in names {
                    let values = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
                    self.values(&format!("{path}.{name}"), &format!("{pattern}.{name}"), values, (before, after));
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (n, values) in a.iter().zip(b).enumerate() {
                    self.values(&format!("{path}[{n}]"), &format!("{pattern}[]"), values, (before, after));
                }
            }
            _ if self.allows(pattern, (before, after), around) => {}
            _ => {
                let short = |v: &Value| v.to_string().chars().take(400).collect::<String>();
                self.found.push(format!("{path}: {} -> {}", short(before), short(after)));
            }
        }
    }

    fn allows(&mut self, pattern: &str, (before, after): (&Value, &Value), around: (&Value, &Value)) -> bool {
        // What is said of one ipc namespace holds in all of them.
        let pattern = &pattern.replace("tree.system_v_elsewhere[].objects", "tree.system_v");
        let covers = |a: &&Allowed| {
            let below = pattern.strip_prefix(a.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            below && (a.only.is_empty() || a.only.contains(&self.fixture)) && self.within(a.how, (before, after), around)
        };
        let found = ALLOWED.iter().find(covers);
        self.used.extend(found.map(|a| a.path));
        found.is_some()
    }

    fn within(&self, how: How, (before, after): (&Value, &Value), around: (&Value, &Value)) -> bool {
        let numbers = before.as_u64().zip(after.as_u64());
        match how {
            How::Free => true,
            How::InodeNumber => {
                before.as_str().zip(after.as_str()).is_some_and(|(a, b)| nameless(a).is_some() && nameless(a) == nameless(b))
            }
            How::Bit(bit) => numbers.is_some_and(|(a, b)| a ^ b == bit),
            How::Near(most) => numbers.is_some_and(|(a, b)| a.abs_diff(b) <= most),
            How::Later if around.0.is_array() => instant(around.0).zip(instant(around.1)).is_some_and(|(a, b)| a <= b),
            How::Later => numbers.is_some_and(|(a, b)| a <= b),
            How::Alarm => before.as_array().zip(after.as_array()).is_some_and(|(a, b)| {
                // `struct siginfo`: the signal, no error, SI_KERNEL; or CLD_STOPPED.
                const ALARM: &str = "0e0000000000000080000000";
                const CHILD_STOPPED: &str = "110000000000000005000000";
                let expected = |s: &str| s.starts_with(ALARM) || s.starts_with(CHILD_STOPPED);
                b.starts_with(a) && b[a.len()..].iter().all(|s| s.as_str().is_some_and(expected))
            }),
            How::RanOn => numbers.is_some_and(|(a, b)| self.ran_on(a, b, around.0)),
        }
    }

    fn ran_on(&self, before: u64, after: u64, around: &Value) -> bool {
        // `interval_ns` of the timer, or the first of the pair (interval, time left), which is in microseconds.
        let (interval, elapsed) = match around {
            Value::Array(pair) => {
                // setitimer(2) adds a tick to the processor time that is wanted, and getitimer(2) does not take it off.
                const TICK: u64 = 10_000;
                let (before, elapsed) = (before + TICK, self.elapsed_ns / 1000 + TICK);
                let interval = pair[0].as_u64().unwrap_or(0) + TICK;
                return after <= before.max(interval) && (interval > TICK || before.saturating_sub(after) <= elapsed);
            }
            timer => (timer["interval_ns"].as_u64().unwrap_or(0), self.elapsed_ns),
        };
        if before > elapsed || interval == 0 {
            return after <= before && before - after <= elapsed;
        }
        after <= interval.max(before)
    }
}

/// Seconds and nanoseconds.
fn instant(pair: &Value) -> Option<(i64, i64)> {
    Some((pair.get(0)?.as_i64()?, pair.get(1)?.as_i64()?))
}

/// `pipe:[7]` without its number.
fn nameless(link: &str) -> Option<&str> {
    let (kind, number) = link.strip_suffix(']')?.split_once(":[")?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(kind)
}

/// Brings into one form what has more than one.
fn canonical(part: &Value) -> Value {
    let mut part = part.clone();
    if let Some(processes) = part.get_mut("processes").and_then(Value::as_array_mut) {
        // Children stand in the order of their birth, and those that were adopted by it.
        processes.sort_by_key(|p| p["pid"].as_i64());
        for process in processes {
            if let Some(mappings) = process["memory"].get_mut("mappings").and_then(Value::as_array_mut) {
                *mappings = joined(mappings);
            }
        }
    }
    part
}

/// Mappings with neighbours joined that differ in nothing: what keeps them apart is how they came to be (whether they could
/// once be written to), which the kernel tells nobody.
fn joined(mappings: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for mapping in mappings {
        let Some(last) = all.last_mut().filter(|last| follows(last, mapping)) else {
            all.push(mapping.clone());
            continue;
        };
        last["end"] = mapping["end"].clone();
    }
    all
}

fn follows(a: &Value, b: &Value) -> bool {
    let same = ["flags", "huge_page_kib", "name", "policy", "prot", "shared"].iter().all(|field| a[*field] == b[*field]);
    let length = a["end"].as_u64().unwrap_or(0) - a["start"].as_u64().unwrap_or(0);
    let backing = match (&a["backing"], &b["backing"]) {
        (Value::Object(a), Value::Object(b)) => a.iter().zip(b).all(|((kind, a), (other, b))| {
            let number = |v: &Value| [v["file"].clone(), v["object"].clone()];
            kind == other && number(a) == number(b) && a["offset"].as_u64().unwrap_or(0) + length == b["offset"].as_u64().unwrap_or(0)
        }),
        (a, b) => a == b && a == "Anonymous",
    };
    same && backing && a["end"] == b["start"]
}

mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        let process = json!({"pid": 7, "comm": "a", "threads": [{"registers": {"rip": 1}, "sigmask": 0}], "memory": {"mappings": [
            {"start": 0, "end": 4096, "prot": 1, "backing": {"File": {"file": 0, "offset": 0}}},
            {"start": 4096, "end": 8192, "prot": 1, "backing": {"File": {"file": 0, "offset": 4096}}},
        ]}, "signals": {"pending": []}, "timers": {"interval": [[0, 500], [100, 50]], "posix": [{"interval_ns": 0, "remaining_ns": 9_000}]}});
        let files = json!([{"link": "pipe:[5]", "flags": 2, "pos": 3}, {"link": "/a/b", "flags": 0, "pos": 0}]);
        json!({"manifest": {"created": 10, "host": "h"}, "tree": {"processes": [process], "files": files}})
    }

    fn found(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut after = sample();
        change(&mut after);
        differences("none", &sample(), &after, 5_000).0
    }

    #[test]
    fn what_nothing_allows_is_found() {
        type Change = fn(&mut Value);
        let planted: [(&str, Change); 15] = [
            ("tree.processes[0].signals.pending", |v| {
                v["tree"]["processes"][0]["signals"] = json!({"pending": ["0f0000000000000080000000"]});
            }),
            ("manifest.host", |v| v["manifest"]["host"] = "other".into()),
            ("manifest.created", |v| v["manifest"]["created"] = 9.into()),
            ("tree.processes[0].comm", |v| v["tree"]["processes"][0]["comm"] = "b".into()),
            ("tree.processes[0].extra", |v| v["tree"]["processes"][0]["extra"] = 1.into()),
            ("tree.processes[0].comm", |v| drop(v["tree"]["processes"][0].as_object_mut().unwrap().remove("comm"))),
            ("tree.processes[0].threads", |v| v["tree"]["processes"][0]["threads"] = json!([])),
            ("tree.processes[0].threads[0].sigmask", |v| v["tree"]["processes"][0]["threads"][0]["sigmask"] = 1.into()),
            ("tree.files[0].link", |v| v["tree"]["files"][0]["link"] = "socket:[5]".into()),
            ("tree.files[1].link", |v| v["tree"]["files"][1]["link"] = "/a/c".into()),
            ("tree.files[0].flags", |v| v["tree"]["files"][0]["flags"] = 0o102001.into()),
            ("tree.files[0].pos", |v| v["tree"]["files"][0]["pos"] = 4.into()),
            ("tree.processes[0].memory.mappings[0].prot", |v| {
                for n in 0..2 {
                    v["tree"]["processes"][0]["memory"]["mappings"][n]["prot"] = 3.into();
                }
            }),
            ("tree.processes[0].timers.interval[0][1]", |v| v["tree"]["processes"][0]["timers"]["interval"][0][1] = 10_501.into()),
            ("tree.processes[0].timers.posix[0].remaining_ns", |v| {
                v["tree"]["processes"][0]["timers"]["posix"][0]["remaining_ns"] = 3_999.into();
            }),
        ];
        for (path, plant) in planted {
            let found = found(plant);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{path}: ")), "{path}: {found:?}");
        }
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        assert_eq!(found(|_| ()), Vec::<String>::new());
        let allowed = found(|v| {
            v["tree"]["processes"][0]["signals"]["pending"] = json!(["0e000000000000008000000000"]);
            v["manifest"]["created"] = 11.into();
            v["tree"]["processes"][0]["threads"][0]["registers"]["rip"] = 2.into();
            v["tree"]["files"][0]["link"] = "pipe:[6]".into();
            v["tree"]["files"][0]["flags"] = (2 | O_LARGEFILE).into();
            v["tree"]["processes"][0]["timers"] =
                json!({"interval": [[0, 498], [100, 99]], "posix": [{"interval_ns": 0, "remaining_ns": 4_000}]});
            let whole = json!({"start": 0, "end": 8192, "prot": 1, "backing": {"File": {"file": 0, "offset": 0}}});
            v["tree"]["processes"][0]["memory"]["mappings"] = json!([whole]);
        });
        assert_eq!(allowed, Vec::<String>::new());
    }

    #[test]
    fn every_allowance_has_its_reason_and_its_fixture() {
        let lines = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures.rs")).unwrap();
        for a in ALLOWED {
            assert!(!a.why.is_empty(), "{}", a.path);
            for fixture in a.only.iter().chain(&a.sure) {
                assert!(lines.contains(&format!("\n    {fixture}: \"")), "{}: there is no fixture {fixture}", a.path);
            }
            let again = ALLOWED.iter().filter(|b| b.path == a.path && b.only == a.only).count();
            assert_eq!(again, 1, "{} is allowed twice", a.path);
        }
    }
}
